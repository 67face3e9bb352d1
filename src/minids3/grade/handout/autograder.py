"""An autograder for Gradescope: a zip file with this package, the notebook and two scripts.

Gradescope builds a container from ``setup.sh`` once and calls ``run_autograder`` for each
submission; it reads ``results/results.json``. The container is thrown away afterwards, so where it
has no Landlock a submission is graded without the sandbox. What the page shows is the feedback of
``minids3 grade``; items are visible, hidden inputs are not in them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minids3.course.repository import root
from minids3.grade.files import write
from minids3.grade.records import LOOK, ExerciseResult, SubmissionResult
from minids3.grade.submissions.pristine import Pristine, find_notebook

__all__ = ["grade_folder", "main", "results_of", "write_autograders"]

_SETUP = """\
#!/usr/bin/env bash
set -euo pipefail
apt-get update
apt-get install -y python3 python3-venv python3-pip
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install --no-cache-dir /autograder/source/minids3
"""
_RUN = """\
#!/usr/bin/env bash
cd /autograder
exec venv/bin/python -m minids3.grade.handout.autograder \\
    source/notebooks/{name}.ipynb submission results/results.json
"""
_SKIPPED = {"__pycache__", ".mypy_cache", ".pytest_cache", "bench"}


def _package() -> Iterator[tuple[str, Path]]:
    """Yield the files that installing this package takes, with their names in the zip file."""
    home = root()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (home / name).exists():
            yield name, home / name
    for folder in ("src", "data"):
        for path in sorted((home / folder).rglob("*")):
            inside = path.relative_to(home)
            if path.is_file() and not _SKIPPED & set(inside.parts[:-1]):
                yield inside.as_posix(), path


def write_autograders(notebooks: Sequence[str], out: Path) -> list[Path]:
    """Write ``NN_name-autograder.zip`` beside ``out`` for each notebook; return the files.

    Not into the bundle: that one is the students', and this one holds the solutions.
    """
    made = []
    for path in dict.fromkeys(find_notebook(n) for n in notebooks):
        pristine = Pristine.read(path)
        place = out.resolve().parent / f"{pristine.name}-autograder.zip"
        temporary = place.with_name(f".{place.name}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as pack:
            _script(pack, "setup.sh", _SETUP)
            _script(pack, "run_autograder", _RUN.format(name=pristine.name))
            pack.writestr(zipfile.ZipInfo(f"notebooks/{pristine.name}.ipynb"), path.read_bytes())
            for name, file in _package():
                pack.writestr(zipfile.ZipInfo(f"minids3/{name}"), file.read_bytes(),
                              zipfile.ZIP_DEFLATED)  # fmt: skip
        os.replace(temporary, place)
        made.append(place)
    return made


def _script(pack: zipfile.ZipFile, name: str, text: str) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o755 << 16
    pack.writestr(info, text)


# in Gradescope's container ------------------------------------------------------------------------


def _outcome(e: ExerciseResult) -> str:
    lines = [e.diagnosis, *(f"{i.label}: {i.reason}" for i in e.items if i.status == "no")]
    lines += [n for n in e.notes if not n.startswith(LOOK)]
    if e.needs_human:
        lines.insert(0, "Nobody has decided yet: a person will look at this answer.")
    return "\n".join(line for line in lines if line)


def results_of(result: SubmissionResult) -> dict[str, Any]:
    """Return a result as Gradescope's ``results.json`` has it.

    What waits for a person has no score: the instructor gives one in Gradescope itself.
    """
    tests: list[dict[str, Any]] = []
    for e in result.exercises:
        test = {"name": e.title, "max_score": e.max_points, "output": _outcome(e)}
        if not e.needs_human:
            test |= {"score": e.points}
            test |= {"status": "passed" if e.status == "passed" else "failed"}
        tests.append(test)
    made: dict[str, Any] = {"tests": tests, "output": "\n".join(result.problems)}
    if not result.undecided:
        made["score"] = result.points
    waits = "\n".join(result.needs_human)
    if waits:  # for the instructor's eyes
        note = {"name": "for the instructor", "output": waits, "visibility": "hidden"}
        made["tests"].append(note)
    return made


def grade_folder(notebook: Path, folder: Path, seed: int) -> SubmissionResult:
    """Grade the one submission in ``folder``, as the command would."""
    from minids3.grade.job import grade_one, scrub, undecided
    from minids3.grade.submissions.collect import collect
    from minids3.isolation import sandbox

    pristine = Pristine.read(notebook)
    with tempfile.TemporaryDirectory(prefix="minids3-submission-") as home:
        shutil.copytree(folder, Path(home, "in", "student"), symlinks=True)  # one folder, a student
        found = collect(Path(home, "in"), pristine.name, pristine.ids, pristine.names,
                        Path(home, "unpacked"))[0]  # fmt: skip
        task = {"student": "submission", "notebook": str(notebook.resolve()), "seed": seed,
                "path": str(found.path), "isolate": not sandbox.missing(), "private": "",
                "hidden": [home], "nbval": False}  # fmt: skip
        if found.path is None:
            return undecided(task, found.problems[0])
        result = grade_one(task)
    result.problems, result.remarks, result.look = found.problems, found.remarks, found.look
    return SubmissionResult.from_dict(scrub(result.to_dict()))


def main(arguments: Sequence[str]) -> int:
    """Grade a submission: notebook, folder, place of ``results.json``."""
    import secrets

    notebook, folder, place = map(Path, arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    made = results_of(grade_folder(notebook, folder, secrets.randbelow(2**31)))
    write(place, json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
