"""A small class, graded, to write tables of."""

import csv
import io
import json

from minids3.grade.records import ExerciseResult, ItemResult, SubmissionResult

POINTS = {"a": 4.0, "b": 2.0}


class Notebook:
    ids = ("a", "b")


def result(student, *statuses, points=(4.0, 1.0), **more):
    made = []
    for id, status, p in zip(POINTS, statuses, points, strict=True):
        waits = status in ("forbidden", "needs a human", "grader error")
        notes = [f"because of {status}"] if waits else []
        items = [ItemResult("works", "ok")]
        value = 0.0 if waits else p
        made.append(
            ExerciseResult(id, f"Title {id}", value, POINTS[id], status, items, notes=notes)
        )
    path = more.pop("path", f"in/{student}.ipynb")
    return SubmissionResult(student, "03_x", path, made, **more).total()


def klass():
    return [
        result("Ada", "passed", "partial", id="11"),
        result("Eve (7)", "forbidden", "passed", id="12"),
        result("=1+1", "needs a human", "needs a human", id="13", path=""),
        result("Kurt", "passed", "passed", id="14", look=["two files are called Kurt"]),
    ]


def read(path, delimiter=","):
    raw = path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(raw.decode("utf-8-sig")), delimiter=delimiter))


def graded(folder, notebook, *results):
    """Write a folder as ``minids3 grade`` does, and return it."""
    folder.mkdir()
    data = {"notebook": notebook, "submissions": [r.to_dict() for r in results]}
    (folder / "grades.json").write_text(json.dumps(data))
    return folder
