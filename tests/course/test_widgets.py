"""Every widget of the notebooks opens at its function's defaults, below a static twin."""

import ast
import re
from pathlib import Path

import pytest

from minids3.viz.widgets import _NONE, _control

SOURCES = sorted((Path(__file__).parents[2] / "notebooks" / "source").glob("[0-9][0-9]_*.py"))


def cells(path):
    """Kind and text of each cell."""
    parts = re.split(r"^# %%(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for head, text in zip(parts[1::2], parts[2::2], strict=True):
        yield ("markdown" if "[markdown]" in head else "code"), text.strip()


def widgets():
    for path in SOURCES:
        before = []
        for kind, text in cells(path):
            if kind == "code" and "viz.play(" in text:
                tree = ast.parse(text)
                (call,) = (
                    n for n in ast.walk(tree)
                    if isinstance(n, ast.Call) and ast.unparse(n.func) == "viz.play"
                )  # fmt: skip
                yield pytest.param(call, text, list(before), id=f"{path.stem}-{call.args[0].id}")
            before.append((kind, text))


ALL = list(widgets())


def defaults(name, *texts):
    """The literal defaults of a function that one of the texts defines."""
    for text in reversed(texts):
        for node in ast.walk(ast.parse(text)) if f"def {name}(" in text else ():
            if isinstance(node, ast.FunctionDef) and node.name == name:
                given = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                pairs = zip(given, node.args.defaults, strict=True)
                return {a.arg: ast.literal_eval(v) for a, v in pairs}
    raise AssertionError(f"no cell defines {name}")


def test_every_notebook_with_controls_is_looked_at():
    found = sum(path.read_text(encoding="utf-8").count("viz.play(") for path in SOURCES)
    assert len(ALL) == found > 10


@pytest.mark.parametrize(("call", "text", "before"), ALL)
def test_it_opens_at_the_defaults(call, text, before):
    code = [t for kind, t in before if kind == "code" and "def " in t]
    wanted = defaults(call.args[0].id, *code, text)
    for keyword in call.keywords:
        if keyword.arg == "alt":
            continue
        try:
            spec = ast.literal_eval(keyword.value)
        except ValueError:  # a widget or a variable: it opens at its own value
            continue
        default = wanted.get(keyword.arg, _NONE)
        opened = _control(keyword.arg, spec, default).value
        if default is not _NONE:
            assert opened == default, keyword.arg  # on the slider's steps, among the options


@pytest.mark.parametrize(("call", "text", "before"), ALL)
def test_a_static_twin_stands_above(call, text, before):
    """Between the heading and the widget something is drawn, printed or shown."""
    section = []
    for kind, words in reversed(before):
        section += [words] if kind == "code" else []
        if kind == "markdown" and re.search(r"^# ## ", words, re.MULTILINE):
            break
    assert any(re.search(r"viz\.show\(|print\(|viz\.text_table\(", code) for code in section)
