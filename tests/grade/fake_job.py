"""Stands in for a grading process: full points for what was answered, and all that can go wrong."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from minids3.grade import job
from minids3.grade.records import ExerciseResult, ItemResult, SubmissionResult
from minids3.grade.submissions.merge import merge
from minids3.grade.submissions.reading import load


def grade_one(task):
    pristine = job._pristine(task)
    answers = merge(pristine, load(Path(task["path"])))
    text = "".join(p.code for p in answers.programs)
    if "BOOM" in text:
        os._exit(3)
    if "KILL" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "HANG" in text:
        time.sleep(60)
    if "FAULT" in text:
        raise RuntimeError("the disk is full")
    with Path(os.environ["FAKE_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{task['student']}\n")
    made = []
    for p in answers.programs:
        ok = p.status == "answered"
        points = float(ok)
        item = ItemResult("works", "ok" if ok else "no", "" if ok else "stub", points, 1.0)
        status = "passed" if ok else p.status
        made.append(ExerciseResult(p.id, p.id, points, 1.0, status, [item], code=p.code))
    path, seed = task["path"], task["seed"]
    print("a library prints")
    return SubmissionResult(task["student"], pristine.name, path, made, seed=seed).total()


if __name__ == "__main__":
    sys.setrecursionlimit(2000)
    job.grade_one = grade_one
    assert json  # the protocol is job.main's
    job.main()
