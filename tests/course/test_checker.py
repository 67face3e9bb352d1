"""The checker on functions made to provoke it."""

import pytest
import torch

from minids3.course import check
from minids3.course.check import CheckFailed, format_report
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
        ([1, 2], [1, 2, 3], "its length is 2, expected 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "the key 'b' is missing"),
        ({"a": 1, "c": 1}, {"a": 1}, "there is a key 'c'"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "at ['a'][1] it is 2, expected 3"),
        ("ab", "ac", "it is 'ab', expected 'ac'"),
        (3, [3], "it is an int, expected a list of 1"),
        (float("nan"), 1.0, "it is nan, expected 1"),
        (1.0, 1.5, "it is 1, expected 1.5"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "at [1] it is 2, expected 3"),
    ],
)
def test_differences(got, expected, words):
    from minids3.course.compare import difference

    assert words in difference(got, expected, 1e-6, 1e-6)
    assert difference(expected, expected, 0, 0) == ""


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
