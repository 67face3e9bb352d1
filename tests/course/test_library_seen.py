"""The library's function in the reader's name is no answer, in whatever it is wrapped."""

import functools
import importlib
import json
import linecache
import types

import pytest

from minids3.course import check
from minids3.course.check import CheckFailed
from minids3.course.hints import source_of
from minids3.course.launching import is_library, library_of
from minids3.course.progress import progress
from minids3.course.registry import exercises, get
from minids3.grade import own
from minids3.grade.records import Piece, Program
from minids3.kernels.language import jit, tl, triton

ALL = exercises()
each = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
SAID = "this is the library's version: run your own cell above first"


def wrapped(fn):
    @functools.wraps(fn)
    def again(*args, **kwargs):
        return fn(*args, **kwargs)

    return again


def kernel_of(exercise, fn):
    return jit(fn) if exercise.kernel else fn


def test_there_are_exercises():
    assert len(ALL) >= 53


@each
def test_the_library_s_function_is_seen_in_every_wrapping(exercise, home, capsys):
    plain, given = exercise.library, library_of(exercise)
    other = types.FunctionType(plain.__code__, dict(plain.__globals__), "mine")
    forms = [given, plain, exercise.solution, other, functools.partial(plain), wrapped(plain)]
    forms += [functools.partial(wrapped(functools.partial(given))), functools.cache(plain)]
    forms += [kernel_of(exercise, exercise.solution), types.MethodType(plain, 3)]
    forms += [a.fn for a in exercise.alternatives]
    for fn in forms:
        assert is_library(exercise, fn)
    going_on = check(exercise.id, given)
    assert is_library(exercise, going_on)
    assert type(going_on) is type(given)
    out = capsys.readouterr().out
    assert SAID in out
    assert " of " not in out.splitlines()[0]
    assert not home.exists()


@each
def test_the_reader_s_own_copy_is_not(exercise):
    """The solved notebook's cell has the very text of the solution, and is the reader's."""
    space = exercise.solution.__globals__ | {"triton": triton, "tl": tl, "__name__": "__main__"}
    text = source_of(exercise.id)
    name = f"<cell of {exercise.id}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile("from __future__ import annotations\n" + text, name, "exec"), space)
    mine = space[exercise.name]
    for fn in (mine, functools.partial(mine), wrapped(mine)):
        assert not is_library(exercise, fn)


@pytest.mark.parametrize(
    "name",
    ["minids3.ops.norm.rms_norm", "minids3.ref.norm.rms_norm_ref", "minids3.nn.norm.RMSNorm",
     "minids3.kernels.norm._rms_norm_fwd_kernel"],
)  # fmt: skip
def test_anything_of_the_package_is(name):
    module, _, attribute = name.rpartition(".")
    assert is_library(get("rms-norm"), getattr(importlib.import_module(module), attribute))


class Scaled:
    """A reader's own class that keeps a function of the package for its own use."""

    def __init__(self):
        self.fn = get("rms-norm").library

    def __call__(self, x, weight, eps=1e-6):
        return self.fn(x, weight, eps)


@pytest.mark.parametrize("fn", [None, "text", 3, len, print, Scaled(), Scaled, lambda x: x])
def test_other_things_are_not(fn):
    assert not is_library(get("rms-norm"), fn)


def test_a_second_run_of_the_check_cell_solves_nothing(home, capsys):
    def rms_norm(x, weight, eps=1e-6):
        return x

    rms_norm = check("rms-norm", rms_norm)
    first = progress("00").rows[0]
    for _ in range(2):
        rms_norm = check("rms-norm", rms_norm)
    row = progress("00").rows[0]
    assert (row.tries, row.passed, row.solved) == (1, first.passed, False)
    assert capsys.readouterr().out.count(SAID) == 2


def test_in_strict_mode_it_is_an_error(monkeypatch):
    monkeypatch.setenv("MINIDS3_STRICT", "1")
    with pytest.raises(CheckFailed, match=SAID):
        check("rms-norm", get("rms-norm").library)
    check("rms-norm", get("rms-norm").library, dry=True)


@each
@pytest.mark.parametrize("value", ["_theirs", "functools.partial(_theirs)"])
def test_grade_self_sees_it(exercise, value):
    function = exercise.library
    code = f"from {function.__module__} import {function.__name__} as _theirs\nimport functools\n"
    program = Program(
        exercise.id, exercise.name, (Piece("answer", f"{code}{exercise.name} = {value}", "cell 1"),)
    )
    assert own._report(exercise, program) is None


def test_grade_self_gives_no_points_for_it(tmp_path, capsys):
    exercise = get("mla-choose")
    code = f"# EXERCISE {exercise.id}\nfrom {exercise.library.__module__} import "
    code += f"{exercise.library.__name__} as f\n{exercise.name} = f"
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": code}
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4}))
    assert own.show(path) == 1
    out = capsys.readouterr().out
    assert f"{exercise.id}   {SAID}" in out
    assert "public checks: 0 of" in out
