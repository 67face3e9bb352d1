"""The checker on functions made to provoke it."""

import numpy as np
import pytest
import torch

from minids3.course import check
from minids3.course.check import CheckFailed, format_report
from minids3.course.compare import difference, resembles
from minids3.course.registry import Alternative, Exercise, Mutant, UnknownExercise, get
from minids3.course.run import run_check


def double(x, k=2):
    """Multiply by k."""
    return x * k


def plus(x, k=2):
    return x + k


def check_double(c):
    x = c.randn(c.size(2, 3), 4)
    y = c.call(x, label="runs")
    c.shape(y, x.shape, "y")
    with c.part():
        c.close(y, 2 * x, "y")
        c.true(y[0, 0] == 2 * x[0, 0], "the first is exact", "it is not")
    with c.part():
        c.close(c.call(x, 3), 3 * x, label="k is used")
    with c.part():
        c.grad((x,), (0,), lambda t: t * 2, names=("x",))


EX = Exercise(
    id="double",
    notebook="98_test",
    title="Double",
    difficulty=1,
    importance=1,
    minutes=1,
    points=1,
    solution=double,
    library=double,
    check=check_double,
    hints=("What?", "x * k"),
    mutants=(
        Mutant("plus", plus, "You added."),
        Mutant("ignores_k", lambda x, k=2: x * 2, "You ignored k."),
    ),
    alternatives=(Alternative("add", lambda x, k=2: sum(x for _ in range(k))),),
)


def said(fn, seed=0):
    return format_report(EX, run_check(EX, fn, seed))


def test_text_is_the_checklist_of_the_voice():
    assert said(double).splitlines() == [
        "double   6 of 6",
        "  ok    runs",
        f"  ok    y has shape {shape()}",
        "  ok    y has the right values",
        "  ok    the first is exact",
        "  ok    k is used",
        "  ok    the gradient is right",
        "The notebook goes on with your double.",
    ]


def shape():
    return run_check(EX, double).items[1].label.split("shape ")[1]


def test_partial_credit_and_diagnosis():
    report = run_check(EX, lambda x, k=9: x * 2)
    assert report.passed == 5
    assert report.mutant == "ignores_k"
    assert "You ignored k." in said(lambda x, k=9: x * 2)


def test_a_known_mistake_is_told_even_beside_another():
    def ignores_k_and_detaches(x, k=2):
        return x.detach() * 2

    report = run_check(EX, ignores_k_and_detaches)
    assert report.passed == 4
    assert report.mutant == "ignores_k"


def test_items_after_a_failure_are_not_reached():
    report = run_check(EX, lambda x, k=2: x[:1] * k)
    assert [i.status for i in report.items] == ["ok", "no"] + ["not reached"] * 4
    assert "it is [1, 4]" in report.items[1].reason
    assert not report.diagnosis


def test_same_answer_same_text():
    assert said(plus) == said(plus) == said(lambda x, k=2: k + x)
    assert said(plus, 0) != said(plus, 1)


def raise_in_line_3(x, k=2):
    y = x
    raise TypeError(f"no {k} {y.ndim}")


def in_place(x, k=2):
    x *= k
    return x


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (raise_in_line_3, "raised TypeError: no 2 2 (line 3 of your function)"),
        (in_place, "changed its input in place"),
        (lambda x, k=2: None, "Did you forget 'return'?"),
        (lambda x, k=2: x * k * float("nan"), "it is nan, expected"),
        (lambda x, k=2: [x], "it is a list of 1, expected a tensor"),
        (lambda x: x * 2, "raised TypeError"),
        (lambda x, k=2: x.detach() * k, "no gradient arrives at x"),
        (lambda x, k=2: exit(), "raised SystemExit"),
        (lambda x, k=2: x.numpy() * k, "expected a tensor"),
        ("text", "you passed a str, not a function"),
        (None, "you passed None, not a function"),
    ],
)
def test_failures_are_told(fn, words):
    text = " ".join(said(fn).split())
    assert words in text


def test_values_told_with_the_first_index():
    def wrong(x, k=2):
        y = x * k
        y[1, 2] += 1
        return y

    text = said(wrong)
    assert "at [1, 2] it is" in text
    assert "(1 of" in text


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        ([1, 2, 3], [1, 5, 3], "at [1] it is 2, expected 5"),
        (3.0, 3, "it is the float 3, expected a whole number"),
        ([1, 2.0], [1, 2], "at [1] it is the float 2"),
        (3.0, torch.tensor(3.0), "it is a float, expected a tensor"),
        (torch.tensor([1.0]), torch.tensor([1]), "its dtype is float32, expected whole numbers"),
        ([1, 2], [1, 2, 3], "its length is 2, expected 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "the key 'b' is missing"),
        ({"a": 1, "c": 1}, {"a": 1}, "there is a key 'c'"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "at ['a'][1] it is 2, expected 3"),
        ("ab", "ac", "it is 'ab', expected 'ac'"),
        (3, [3], "it is an int, expected a list of 1"),
        (torch.tensor([3]), 3, "it is a tensor of shape [1], expected a single value"),
        (torch.tensor([True]), True, "it is a tensor of shape [1], expected a single value"),
        (float("nan"), 1.0, "it is nan, expected 1"),
        (5.0, float("inf"), "it is 5, expected inf"),
        (-float("inf"), float("inf"), "it is -inf, expected inf"),
        (float("inf"), 5.0, "it is inf, expected 5"),
        (1.0, 1.5, "it is 1, expected 1.5"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "at [1] it is 2, expected 3"),
    ],
)
def test_differences(got, expected, words):
    assert words in difference(got, expected, 1e-6, 1e-6)
    assert difference(expected, expected, 0, 0) == ""


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        (torch.tensor([1.5, 2.0]), torch.tensor([1.5, 2.0]).double(), True),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8), True),
        ([1, (2.0, "a")], (1.0, [2, "a"]), True),
        ({"n": torch.tensor(3), "m": 1}, {"m": 1, "n": 3}, True),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), True),
        (np.float64(0.5), 0.5, True),
        (float("nan"), torch.tensor(float("nan")), True),
        (torch.tensor(float("inf")), float("inf"), True),
        (torch.tensor(5.0), torch.tensor(float("inf")), False),
        (torch.tensor(-float("inf")), torch.tensor(float("inf")), False),
        (float("nan"), float("inf"), False),
        (1_000_000, 1_000_001, False),
        (torch.tensor([1_000_000]), torch.tensor([1_000_001]), False),
        (10**400, 1e300, False),
        (torch.tensor([1.5]).bfloat16(), torch.tensor([1.5]), False),
        (torch.tensor([True]), torch.tensor([1]), False),
        (True, 1, False),
        (torch.zeros(2, 1), torch.zeros(2), False),
        ([1, 2], [1, 2, 3], False),
        ([1], torch.tensor([1]), False),
        ("1", 1, False),
    ],
)
def test_what_resembles_what(a, b, alike):
    assert resembles(a, b, 1e-4, 1e-6) is resembles(b, a, 1e-4, 1e-6) is alike


def test_large_numbers_that_cancel_are_known_less_well():
    large = torch.tensor([1e6, -2e6, 0.25, 3e5])
    assert resembles(large, large + torch.tensor([0, 0, 8.0, 0]), 1e-4, 1e-6)
    assert not resembles(large, large + torch.tensor([0, 0, 800.0, 0]), 1e-4, 1e-6)
    assert not resembles(large / 1e6, large / 1e6 + torch.tensor([0, 0, 8e-6, 0]), 1e-4, 1e-6)
    codes = large.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert resembles(codes, codes.clone(), 1e-4, 1e-6)


def test_a_known_mistake_is_told_whatever_its_dtype():
    assert run_check(EX, lambda x, k=2: x.double() * 2).mutant == "ignores_k"


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_check(EX, lambda x, k=2: x * k + 0 * torch.randn(1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_wrong_solution_is_our_fault_and_raises():
    bad = Exercise(**{**EX.__dict__, "id": "double-bad", "solution": plus_documented})
    with pytest.raises(AssertionError, match="fails its own check"):
        run_check(bad, double)


def plus_documented(x, k=2):
    """Add k."""
    return x + k


def mine_rms_norm(x, weight, eps=1e-6):
    wide = x.float()
    return (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight).to(x.dtype)


def test_check_returns_the_function_to_go_on_with(capsys):
    warm = get("rms-norm")
    assert check("rms-norm", mine_rms_norm) is mine_rms_norm
    assert check("rms-norm", warm.mutants[0].fn) is warm.library
    assert "goes on with the library's version" in capsys.readouterr().out


def test_dry_check_only_looks(monkeypatch, home, capsys):
    monkeypatch.setenv("MINIDS3_STRICT", "1")
    check("rms-norm", get("rms-norm").mutants[0].fn, dry=True)
    assert "take its square root" in capsys.readouterr().out.lower()
    assert not home.exists()


@pytest.mark.parametrize("name", ["PYTEST_VERSION", "MINIDS3_STRICT"])
def test_strict_mode_raises_a_short_message(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(CheckFailed, match=r"rms-norm: \d of \d+\.") as caught:
        check("rms-norm", get("rms-norm").mutants[0].fn)
    assert "/" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"CheckFailed: {caught.value}"]


def test_unknown_id_names_the_nearest():
    with pytest.raises(UnknownExercise, match="Did you mean rms-norm"):
        check("rmsnorm", double)


def check_parts(c):
    with c.part():
        c.close(c.call(x := c.randn(3)), 2 * x, label="one")
        c.close(c.call(x := c.randn(3), 3), 3 * x, label="two")
    with c.part():
        x = c.randn(3)
        c.close(c.call(x), 2 * x, label="three")


PARTS = Exercise(**{**EX.__dict__, "id": "double-parts", "check": check_parts})


def test_a_part_that_fails_early_leaves_the_next_one_s_inputs_as_they_are():
    seen = []

    def first_wrong(x, k=2):
        seen.append(x.clone())
        return x * k if len(seen) > 1 else x[:1]

    report = run_check(PARTS, first_wrong, confirm=False)
    assert [i.status for i in report.items] == ["no", "not reached", "ok"]
    wrong = list(seen)
    seen.clear()
    seen.append(None)
    run_check(PARTS, first_wrong, confirm=False)
    assert torch.equal(wrong[-1], seen[-1])


@pytest.mark.parametrize(("text", "named"), [("of my own", False), ("no such kind", True)])
def test_an_exception_s_type_alone_proves_nothing(text, named):
    def refuses(x, k=2):
        raise ValueError("no such kind")

    def mine(x, k=2):
        raise ValueError(text)

    mutants = (Mutant("refuses", refuses, "You refuse."), *EX.mutants)
    exercise = Exercise(**{**EX.__dict__, "id": f"double-raises-{named:d}", "mutants": mutants})
    assert run_check(exercise, mine).mutant == ("refuses" if named else "")


def test_the_same_numbers_once_are_no_diagnosis():
    first = Exercise(**{**PARTS.__dict__, "id": "double-once"})
    drawn = []
    run_check(first, lambda x, k=2: drawn.append(x.clone()) or x, confirm=False)

    def looks_like_plus(x, k=2):  # for seed 0's numbers alone
        return x + k if any(torch.equal(x, d) for d in drawn) else x * k + 7

    assert run_check(first, looks_like_plus, confirm=False).mutant == "plus"
    assert run_check(first, looks_like_plus).mutant == ""
    assert run_check(first, lambda x, k=2: k + x).mutant == "plus"


def check_soft(c):
    y = c.call(x := c.randn(3), label="runs")
    c.close(y, 2 * x, label="values")
    c.true((y.abs() > x.abs()).all(), "larger than before", "it is smaller somewhere")
    with c.part():
        c.close(c.call(x, 3), 3 * x, label="times three")


SOFT = Exercise(**{**EX.__dict__, "id": "double-soft", "check": check_soft})


def test_what_explains_a_wrong_number_is_checked_after_it():
    report = run_check(SOFT, lambda x, k=2: x * k / 4, confirm=False)
    assert [i.status for i in report.items] == ["ok", "no", "no", "no"]
    assert report.items[2].reason == "it is smaller somewhere"


def test_a_result_of_another_form_ends_the_part():
    report = run_check(SOFT, lambda x, k=2: (x * k)[:2], confirm=False)
    assert [i.status for i in report.items] == ["ok", "no", "not reached", "not reached"]


def test_items_that_were_not_reached_are_one_line():
    text = format_report(EX, run_check(EX, lambda x, k=2: x[:1] * k))
    assert "  ..    4 more items (not reached)" in text.splitlines()
    assert text.count("not reached") == 1


def as_table(x, k=2):
    """A table for 2, else the product."""
    return {"a": 1} if k == 2 else x * k


def test_what_cannot_be_used_in_a_part_ends_that_part_alone():
    def check(c):
        y = c.call(x := c.randn(2), label="runs")
        with c.part():
            c.equal(y["a"] + 1, 2, label="first")
        with c.part():
            c.close(c.call(x, 3), 3 * x, label="second")

    exercise = Exercise(**{**EX.__dict__, "id": "double-odd", "check": check,
                           "solution": as_table,})  # fmt: skip
    report = run_check(exercise, lambda x, k=2: x * k, confirm=False)
    assert [i.status for i in report.items] == ["ok", "no", "ok"]
    assert "cannot be used" in report.items[1].reason


def test_a_known_mistake_beside_others_is_named_where_most_is_alike():
    """Notebook 00's own example: no root, and the statistics in the dtype of x."""

    def hasty(x, weight, eps=1e-6):
        return x / (x.square().mean(dim=-1, keepdim=True) + eps) * weight

    assert run_check(get("rms-norm"), hasty).mutant == "no_sqrt"


def test_strided_is_the_same_and_not_contiguous():
    from minids3.course.checker import Checker

    for shape in ((5,), (3, 4), (2, 3, 4)):
        t = torch.randn(shape)
        apart = Checker.strided(t)
        assert torch.equal(apart, t)
        assert not apart.is_contiguous()
