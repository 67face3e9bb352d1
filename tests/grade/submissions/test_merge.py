"""Answers are found, and keep their helpers, whatever was done to the notebook around them."""

import copy
import sys

import pytest

from minids3.grade.submissions.merge import merge
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.slices import python_of

IDS = ["mla-compress", "mla-naive", "mla-cache-size", "mla-absorb", "mla-choose", "mla-intensity"]


def code(source, **fields):
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], **fields}


def place(notebook, id):
    return next(k for k, c in enumerate(notebook["cells"]) if c.get("id") == id)


def cell(notebook, id):
    return notebook["cells"][place(notebook, id)]


def text(c):
    return c["source"] if isinstance(c["source"], str) else "".join(c["source"])


def run(program, **given):
    """Execute a program as the grader does: a failing piece stops nothing."""
    space = dict(given)
    for piece in program.pieces:
        try:
            exec(compile(piece.code, piece.cell, "exec"), space)
        except Exception:
            continue
    return space.get(program.name)


def statuses(answers):
    return [p.status for p in answers.programs]


def test_solved_and_student_notebook(pristine, solved, student):
    answers = merge(pristine, solved)
    assert [p.id for p in answers.programs] == IDS
    assert statuses(answers) == ["answered"] * len(IDS)
    assert {p.found_by for p in answers.programs} == {"grade_id"}
    assert all(p.problems == () for p in answers.programs)
    assert all(callable(run(p)) for p in answers.programs)
    assert statuses(merge(pristine, student)) == ["stub"] * len(IDS)


def test_programs_leave_out_the_long_runs(pristine, solved):
    given = [
        p.code for q in merge(pristine, solved).programs for p in q.pieces if p.kind == "given"
    ]
    assert given
    for piece in given:
        assert all(line.startswith(("import ", "from ")) for line in piece.splitlines())


def without_ids(notebook):
    for c in notebook["cells"]:
        c.pop("id", None)
    notebook["nbformat_minor"] = 0


def without_metadata(notebook):
    for c in notebook["cells"]:
        c["metadata"] = {}


def like_colab(notebook):
    for c in notebook["cells"]:
        c["metadata"] = {"id": c.pop("id"), "outputId": "x"}
    notebook.pop("metadata")


def bare(notebook):
    without_ids(notebook)
    without_metadata(notebook)


def answers_alone(notebook):
    bare(notebook)
    notebook["cells"] = [c for c in notebook["cells"] if text(c).startswith("# EXERCISE")]


def new_ids(notebook):
    without_metadata(notebook)
    for k, c in enumerate(notebook["cells"]):
        c["id"] = f"fresh{k}"


def format_three(notebook):
    bare(notebook)
    for c in notebook["cells"]:
        if c["cell_type"] == "code":
            c["input"] = c.pop("source")
    notebook["worksheets"] = [{"cells": notebook.pop("cells")}]
    notebook["nbformat"] = 3


def windows_lines(notebook):
    for c in notebook["cells"]:
        c["source"] = text(c).replace("\n", "\r\n")


def moved_to_the_end(notebook):
    moved = [c for c in notebook["cells"] if text(c).startswith("# EXERCISE")]
    rest = [c for c in notebook["cells"] if c not in moved]
    notebook["cells"] = rest + moved[::-1]


FORMS = [without_ids, without_metadata, like_colab, bare, answers_alone, new_ids, format_three]
FORMS += [windows_lines, moved_to_the_end]


@pytest.mark.parametrize("change", FORMS, ids=lambda f: f.__name__)
def test_every_form_gives_the_same_answers(pristine, solved, change):
    before = merge(pristine, solved)
    changed = copy.deepcopy(solved)
    change(changed)
    after = merge(pristine, changed)
    assert [p.answer for p in after.programs] == [p.answer for p in before.programs]
    assert statuses(after) == ["answered"] * len(IDS)
    assert [p.code for p in after.programs] == [p.code for p in before.programs]


def test_without_any_mark_the_function_is_found_by_its_name(pristine, solved):
    bare(solved)
    for c in solved["cells"]:
        if text(c).startswith("# EXERCISE"):
            c["source"] = text(c).split("\n", 1)[1]
    answers = merge(pristine, solved)
    assert statuses(answers) == ["answered"] * len(IDS)
    assert {p.found_by for p in answers.programs} == {"name"}


def test_a_deleted_cell_is_missing_and_an_emptied_one_a_stub(pristine, solved):
    cell(solved, "answer-mla-naive")["source"] = "# EXERCISE mla-naive\n"
    del solved["cells"][place(solved, "answer-mla-compress")]
    answers = merge(pristine, solved)
    assert statuses(answers) == ["missing", "stub", *["answered"] * (len(IDS) - 2)]
    # The instructor's own stub stands where nothing was answered.
    merged = [text(c) for c in answers.merged["cells"] if c.get("id") == "answer-mla-compress"]
    assert "NotImplementedError" in merged[0]


@pytest.mark.parametrize("body", ["pass", "...", "raise NotImplementedError('todo')", '"""Doc."""'])
def test_a_function_with_nothing_in_it_is_a_stub(pristine, solved, body):
    cell(solved, "answer-mla-choose")["source"] = (
        f"# EXERCISE mla-choose\ndef count_macs(queries, cached, *rest):\n    {body}\n"
    )
    assert merge(pristine, solved)["mla-choose"].status == "stub"


HELPER = "import math\nSCALE = 2\n\ndef twice(x):\n    return SCALE * x\n"
USES = "# EXERCISE mla-choose\ndef count_macs(*sizes):\n    return twice(sizes[0]), math.pi\n"


@pytest.mark.parametrize("where", ["start", "before", "other answer", "setup", "check", "same"])
def test_helpers_run_with_the_answer_wherever_they_stand(pristine, solved, where):
    cell(solved, "answer-mla-choose")["source"] = USES
    if where == "start":
        solved["cells"].insert(0, code(HELPER, id="mine"))
    elif where == "before":
        solved["cells"].insert(place(solved, "answer-mla-choose"), code(HELPER, id="mine"))
    elif where == "check":  # written below the answer, above the check
        solved["cells"].insert(place(solved, "check-mla-choose"), code(HELPER, id="mine"))
    elif where == "same":
        cell(solved, "answer-mla-choose")["source"] = f"{USES}\n{HELPER}"
    else:
        id = "setup" if where == "setup" else "answer-mla-compress"
        cell(solved, id)["source"] = text(cell(solved, id)) + "\n" + HELPER
    program = merge(pristine, solved)["mla-choose"]
    fn = run(program)
    assert fn(21) == (42, pytest.approx(3.14159, abs=1e-4))
    assert "twice" in program.code


def test_trials_are_left_out(pristine, solved):
    trial = "import time\ntime.sleep(100)\nfor i in range(10):\n    print(cache_bytes(i))\n"
    solved["cells"].insert(3, code(trial, id="trial"))
    solved["cells"].insert(place(solved, "answer-mla-choose"), code("x = count_macs(1)", id="t2"))
    assert all("sleep" not in p.code for p in merge(pristine, solved).programs)
    assert "x = count_macs" not in merge(pristine, solved)["mla-choose"].code


def test_a_table_that_is_filled_later_is_kept_whole(pristine, solved):
    cell(solved, "answer-mla-choose")["source"] = (
        "# EXERCISE mla-choose\ndef count_macs(q, *rest):\n    return TABLE[q] + sum(LIST)\n"
    )
    at = place(solved, "answer-mla-choose")
    more = ["TABLE = {}; LIST = []", "for i in range(5):\n    TABLE[i] = i * i", "LIST.append(1)"]
    for k, source in enumerate(more):
        solved["cells"].insert(at + k, code(source, id=f"mine{k}"))
    assert run(merge(pristine, solved)["mla-choose"])(4) == 17


# How a helper cell may change by a call what the answer uses, and what the answer makes of it.
CALLS = {
    "a function that fills": ("def fill(d):\n    d[3] = 9\nT = {}\nfill(T)", "T[3]"),
    "a function with a global": ("def init():\n    global P\n    P = 9\ninit()", "P"),
    "a decorator": ("T = {}\ndef keep(f):\n    T[3] = f\n    return f\n"
                    "@keep\ndef nine():\n    return 9", "T[3]()"),
    "a function of a module": ("import heapq\nT = []\nheapq.heappush(T, 9)", "T[0]"),
    "out=": ("import numpy as np\nT = np.zeros(1)\nnp.add(T, 9, out=T)", "T[0]"),
    "an attribute": ("def f():\n    pass\nsetattr(f, 'nine', 9)", "f.nine"),
    "a comprehension": ("T = []\n[T.append(i) for i in [9]]", "T[0]"),
    "a method's value kept": ("T = {}\n_ = T.setdefault(3, 9)", "T[3]"),
    "a function of a function": ("T = []\ndef g():\n    T.append(9)\nh = lambda: g()\nh()",
                                 "T[0]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_that_changes_what_the_answer_uses_is_tried(pristine, solved, kind):
    helper, value = CALLS[kind]
    cell(solved, "answer-mla-choose")["source"] = (
        f"# EXERCISE mla-choose\ndef count_macs(*a):\n    return {value}\n"
    )
    solved["cells"].insert(place(solved, "answer-mla-choose"), code(helper, id="mine"))
    assert run(merge(pristine, solved)["mla-choose"].wider)(1) == 9


def test_a_call_that_only_tries_a_function_is_not(pristine, solved):
    cell(solved, "answer-mla-choose")["source"] = USES
    trial = f"{HELPER}\nprint(twice(3))\nfor i in range(9):\n    losses = [twice(i)]\n"
    solved["cells"].insert(place(solved, "answer-mla-choose"), code(trial, id="mine"))
    program = merge(pristine, solved)["mla-choose"]
    assert "losses" not in program.code
    assert run(program)(21)[0] == 42


@pytest.mark.parametrize("mark", ["\f", "\u2028", "\u2029", "\x85", "\x1c", "\v"])
@pytest.mark.parametrize("where", ["answer", "check below", "helper", "magic"])
def test_what_ends_a_line_for_others_ends_none_of_python_s(pristine, solved, mark, where):
    said = f"    # pasted{mark}from a page\n"
    answer = f"# EXERCISE mla-choose\ndef count_macs(*a):\n{said}    return nine()\n"
    helper = f"def nine():\n{said}    return 9\n"
    if where == "check below":
        answer += "count_macs = check('mla-choose', count_macs)\n"
    if where == "magic":
        answer = f"%time x = 3\n{answer}"
    cell(solved, "answer-mla-choose")["source"] = answer
    source = f"y = 3\n{helper}z = nine()\n" if where == "helper" else helper.replace(said, "")
    solved["cells"].insert(place(solved, "answer-mla-choose"), code(source, id="mine"))
    assert run(merge(pristine, solved)["mla-choose"])(1) == 9


def test_a_future_import_of_an_earlier_cell_comes_along(pristine, solved):
    solved["cells"].insert(1, code("from __future__ import annotations\nimport this", id="mine"))
    program = merge(pristine, solved)["mla-choose"]
    assert program.pieces[0].code == "from __future__ import annotations"


def test_names_looked_up_by_string_keep_every_helper(pristine, solved):
    cell(solved, "answer-mla-choose")["source"] = (
        "# EXERCISE mla-choose\ndef count_macs(*a):\n    return globals()['hid' + 'den'](a)\n"
    )
    helper = "def hidden(a):\n    return len(a)\n"
    solved["cells"].insert(place(solved, "answer-mla-choose"), code(helper, id="mine"))
    assert run(merge(pristine, solved)["mla-choose"])(1, 2, 3) == 3


def test_earlier_exercises_come_from_the_library(pristine, solved):
    cell(solved, "answer-mla-absorb")["source"] = (
        "# EXERCISE mla-absorb\ndef attend_absorbed(*args):\n    return attend_naive(*args)\n"
    )
    program = merge(pristine, solved)["mla-absorb"]
    assert program.earlier == ("mla-naive",)
    assert run(program, attend_naive=lambda *args: "library")() == "library"


def test_given_cells_are_the_instructors(pristine, solved):
    given = next(c for c in solved["cells"] if "apply_rope_ref as rope" in text(c))
    given["source"] = text(given).replace("import apply_rope_ref as rope", "import cheat as rope")
    cell(solved, "check-mla-compress")["source"] = "compress = print\nprint('5 of 5')"
    answers = merge(pristine, solved)
    own = [text(c) for c in answers.merged["cells"] if c.get("id") == "check-mla-compress"]
    assert own == ['compress = check("mla-compress", compress)']
    # What was changed in a given cell is the student's, runs in the sandbox, and says so.
    assert "import cheat" in answers["mla-compress"].code
    assert 'compress = check("mla-compress", compress)' not in answers["mla-compress"].code


def test_the_last_definition_before_the_check_counts(pristine, solved):
    at = place(solved, "answer-mla-choose")
    first = copy.deepcopy(solved["cells"][at])
    first["source"] = "# EXERCISE mla-choose\ndef count_macs(*a):\n    return 'first'\n"
    second = {**first, "id": "other"}
    second["source"] = first["source"].replace("first", "second")
    after = {**second, "source": first["source"].replace("first", "after"), "id": "third"}
    solved["cells"][at : at + 2] = [first, second, solved["cells"][at + 1], after]
    program = merge(pristine, solved)["mla-choose"]
    assert run(program)() == "second"
    assert "several times" in program.problems[0]


def test_an_answer_written_elsewhere_counts_where_the_cell_was_left(pristine, student):
    written = (
        "def count_macs(*a):\n    return 'mine'\n\ncount_macs = check('mla-choose', count_macs)"
    )
    student["cells"].append(code(written, id="mine"))
    program = merge(pristine, student)["mla-choose"]
    assert (program.status, program.found_by) == ("answered", "name")
    assert run(program, check=lambda id, fn: "library")() == "mine"


def test_a_second_version_in_an_added_cell_before_the_check_wins(pristine, solved):
    better = "def count_macs(*a):\n    return 'better'\n"
    solved["cells"].insert(place(solved, "check-mla-choose"), code(better, id="mine"))
    assert run(merge(pristine, solved)["mla-choose"])() == "better"


MAGIC = (
    "%%time\n# EXERCISE mla-choose\n!ls\n%matplotlib inline\ndef count_macs(*a):\n    return 7\n"
)


@pytest.mark.parametrize(
    "source",
    [MAGIC, MAGIC + "print(undefined)", MAGIC + "count_macs?\n", MAGIC + "if 1:\n    %pip list\n"],
)
def test_magics_do_no_harm(pristine, solved, source):
    cell(solved, "answer-mla-choose")["source"] = source
    assert run(merge(pristine, solved)["mla-choose"])() == 7


@pytest.mark.parametrize(
    "magic", ["memit", "mprun -f f", "snakeviz", "wandb", "mypy", "timeit -n 1"]
)
def test_a_magic_that_watches_its_cell_leaves_it_python(pristine, solved, magic):
    cell(solved, "answer-mla-choose")["source"] = f"%%{magic}\n{MAGIC.partition(chr(10))[2]}"
    assert run(merge(pristine, solved)["mla-choose"])() == 7


@pytest.mark.parametrize("magic", ["bash", "script python", "html", "python3", "R", "unknown"])
def test_a_cell_in_another_language_is_none(magic):
    assert python_of(f"%%{magic}\necho this is 'not Python") == ""


def test_broken_python_is_an_answer_that_fails_alone(pristine, solved):
    cell(solved, "answer-mla-choose")["source"] = "# EXERCISE mla-choose\ndef count_macs(:\n"
    solved["cells"].insert(2, code("this is not python (", id="mine"))
    answers = merge(pristine, solved)
    assert statuses(answers) == ["answered"] * len(IDS)
    assert "not Python" in answers["mla-choose"].problems[0]
    assert all(callable(run(p)) for p in answers.programs[:4])


HOSTILE = ["(" * 5000, "-" * 200_000 + "1", "x = " + "[" * 3000 + "]" * 3000, "\0", "1" * 150_000]
HOSTILE += ["%%bash\nrm -rf /", "def f(:\n\t  x", "a" + ".b" * 20_000, "# EXERCISE " * 1000]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_cells_built_to_break_the_reader(pristine, solved, number):
    source = HOSTILE[number]
    solved["cells"].insert(2, code(source, id="mine"))
    cell(solved, "answer-mla-choose")["source"] = f"# EXERCISE mla-choose\n{source}"
    answers = merge(pristine, solved)
    assert statuses(answers)[:4] == ["answered"] * 4
    assert all(callable(run(p)) for p in answers.programs[:4])


NEWER = [
    ("def count_macs[T](q: T, *rest: T) -> T:\n    return q", "type parameters", (3, 12)),
    ("type Size = int\ndef count_macs(q: Size, *rest):\n    return q", "a type statement", (3, 12)),
    ("def count_macs(*a):\n    return f'{a[0]:{'>'}3}'", "an f-string of Python 3.12", (3, 12)),
    ("def count_macs(*a):\n    return f'{'\\n'.join(a)}'", "an f-string of Python 3.12", (3, 12)),
    ("def count_macs(*a):\n    try:\n        return a\n    except A, B:\n        pass",
     "except without parentheses of Python 3.14", (3, 14)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "why", "since"), NEWER)
def test_a_newer_python_s_syntax_is_said_to_be_that(pristine, solved, source, why, since):
    if sys.version_info >= since:
        pytest.skip("this Python reads it")
    cell(solved, "answer-mla-choose")["source"] = f"# EXERCISE mla-choose\n{source}"
    answers = merge(pristine, solved)
    assert why in answers["mla-choose"].human
    assert [p.human for p in answers.programs[:4]] == [""] * 4


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads it")
def test_a_helper_in_a_newer_python_s_syntax_makes_the_answer_one_for_a_human(pristine, solved):
    cell(solved, "answer-mla-choose")["source"] = USES
    helper = "def twice[T](x: T) -> T:\n    return 2 * x"
    solved["cells"].insert(place(solved, "answer-mla-choose"), code(helper, id="mine"))
    answers = merge(pristine, solved)
    assert "type parameters" in answers["mla-choose"].human
    assert [p.human for p in answers.programs[:4]] == [""] * 4


@pytest.mark.parametrize(("version", "newer"), [("3.99.1", True), ("3.8.2", False), ("x", False)])
def test_the_version_that_the_notebook_tells(pristine, solved, version, newer):
    cell(solved, "answer-mla-choose")["source"] = "# EXERCISE mla-choose\ndef count_macs(:\n"
    solved["metadata"]["language_info"] = {"name": "python", "version": version}
    answers = merge(pristine, solved)
    assert ("the notebook ran with Python 3.99" in answers["mla-choose"].human) == newer
    assert answers["mla-compress"].human == ""


def test_loop_variables_of_an_answer_want_no_given_cell(pristine, solved, save):
    """Its own ``i`` is not the one that a cell of the notebook happens to have."""
    given = next(c for c in pristine.cells if c.kind == "given" and c.number > 0)
    own = copy.deepcopy(pristine.notebook)
    own["cells"][given.number]["source"] = "i = [len(str(i)) for i in range(9)]; load = long_run(i)"
    source = "# EXERCISE mla-choose\ndef count_macs(*a):\n    i = 0\n    i += 1\n    return i\n"
    cell(solved, "answer-mla-choose")["source"] = source
    path = save(own, f"{pristine.name}.ipynb")
    program = merge(Pristine.read(path), solved)["mla-choose"]
    assert [p.kind for p in program.pieces] == ["answer"]


def test_malformed_cells_are_passed_over(pristine, solved):
    odd = [None, 3, {}, {"cell_type": "code"}, {"cell_type": "code", "source": 5}, code([1, "x"])]
    odd += [{**code("pass"), "metadata": None, "id": 7}, {**code("1"), "metadata": {"nbgrader": 1}}]
    solved["cells"][2:2] = odd
    assert statuses(merge(pristine, solved)) == ["answered"] * len(IDS)


def test_a_forged_notebook_keeps_no_points_or_checks(pristine, solved):
    for c in solved["cells"]:
        c["metadata"].setdefault("nbgrader", {})["points"] = 1000
        c["metadata"]["tags"] = ["nbval-skip"]
    merged = merge(pristine, solved).merged
    plain = [c["metadata"] for c in pristine.notebook["cells"]]
    assert [c["metadata"] for c in merged["cells"]] == plain


def test_public_notebook_is_short(pristine, solved):
    cells = merge(pristine, solved).public["cells"]
    kinds = [c["id"].split("-")[0] for c in cells]
    assert kinds.count("answer") == kinds.count("check") == len(IDS)
    assert kinds[0] == "setup"
    assert len(cells) <= 16


@pytest.mark.parametrize("first", ["seen = []", "seen: list = []", "from math import pi as seen"])
def test_a_name_that_the_answer_binds_itself_wants_no_given_cell(pristine, solved, save, first):
    given = next(c for c in pristine.cells if c.kind == "given" and c.number > 0)
    own = copy.deepcopy(pristine.notebook)
    own["cells"][given.number]["source"] = "seen, unseen = long_run(), 3"
    uses = "def count_macs(*a):\n    seen.append(a)\n    return a\n"
    path = save(own, f"{pristine.name}.ipynb")
    for source, wanted in ((f"{first}\n{uses}", 0), (uses, 1), (f"seen += [1]\n{uses}", 1)):
        cell(solved, "answer-mla-choose")["source"] = f"# EXERCISE mla-choose\n{source}"
        program = merge(Pristine.read(path), solved)["mla-choose"]
        assert [p.kind for p in program.pieces].count("given") == wanted, source
