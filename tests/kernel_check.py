"""A check of a small kernel, as exercises have them: it adds one to ten numbers."""

from minids3.course.checker import Checker, Stop


def run(fn):
    """Run it and return the checker."""
    c = Checker("triton-x", fn, labels=["runs", "all written", "nothing else", "values"])
    x, out = c.randn(10), c.guarded(10)
    try:
        c.launch((2,), x, out, 10, label="runs", BLOCK=8)
        c.true(out.written(), "all written")
        c.true(out.untouched(), "nothing else", "it wrote past the end")
        c.close(out.view, x + 1, label="values")
    except Stop:
        pass
    return c
