"""Grades as plain data."""

import json

import pytest

from minids3.grade.records import (
    Answers,
    ExerciseResult,
    ItemResult,
    Piece,
    Program,
    PublicCell,
    SubmissionResult,
)


def result():
    items = [ItemResult("y is right", "ok", points=1.5, max_points=1.5), ItemResult("fast", "no")]
    first = ExerciseResult("rms-norm", "Norm", 1.5, 3, "partial", items, seeds=[0, 7])
    second = ExerciseResult("rope", "Rope", 0, 2, "forbidden", notes=["calls apply_rope_ref"])
    return SubmissionResult(
        "ada", "00_start_here", "ada.ipynb", [first, second], nbval=[PublicCell("c", "passed")]
    ).total()


def test_round_trip_through_json():
    made = result()
    assert SubmissionResult.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_totals_and_what_needs_a_human():
    made = result()
    assert (made.points, made.max_points) == (1.5, 5)
    assert made.needs_human == ["rope: forbidden (calls apply_rope_ref)"]
    made.error = "disk full"
    assert made.needs_human[0] == "grader error: disk full"


def test_bad_data_is_refused():
    for bad in ({}, {"student": 1}, {**result().to_dict(), "exercises": [{}]}):
        with pytest.raises(ValueError, match="no grade"):
            SubmissionResult.from_dict(bad)
    with pytest.raises(ValueError, match="no status"):
        ExerciseResult("a", "A", 0, 1, "perfect")


def test_code_of_a_program():
    pieces = (Piece("given", "import torch"), Piece("helper", "def h(): ..."), Piece("answer", "f"))
    program = Program("a", "f", pieces)
    assert program.code == "def h(): ...\n\n\nf"
    assert program.answer == "f"
    answers = Answers("00_x", (program,), {})
    assert answers["a"] is program
    with pytest.raises(KeyError):
        answers["b"]
