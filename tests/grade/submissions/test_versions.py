"""What a grade rests on is read the same by every Python that this machine has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minids3
from minids3.course.repository import root

SOURCE = Path(minids3.__file__).parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
SCRIPT = """
import hashlib, importlib.util, json, sys, types
from pathlib import Path
source, notebooks = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("minids3", "minids3.course", "minids3.grade", "minids3.grade.submissions"):
    module = types.ModuleType(name)  # without what the packages import themselves
    module.__path__ = [str(source.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = module
from minids3.grade.submissions import slices
from minids3.grade.submissions.reading import cells_of, load
found = {}
for path in sorted(notebooks.glob("[0-9]*.ipynb")):
    told = []
    for cell in cells_of(load(path)):
        for s in (slices.statements(cell.source) or ()) if cell.kind == "code" else ():
            told.append([s.text, sorted(s.binds), sorted(s.loads), s.star, s.setting])
    found[path.stem] = hashlib.sha256(json.dumps(told).encode()).hexdigest(), len(told)
print(json.dumps(found))
"""


def interpreters():
    """Return the Pythons of this machine, by version: on the path, or kept by pyenv."""
    found = {}
    for version in VERSIONS:
        kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        place = shutil.which(f"python{version}") or (str(kept[-1]) if kept else None)
        if place and subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            found[version] = place
    return found


def told(python):
    command = [python, "-c", SCRIPT, str(SOURCE), str(root() / "notebooks" / "solutions")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_python_sees_the_same_statements_and_names():
    others = interpreters()
    if not others:
        pytest.skip("no other Python here")
    mine = told(sys.executable)
    assert sum(count for _, count in mine.values()) > 1000
    for version, place in others.items():
        assert told(place) == mine, version


def test_every_python_compiles_the_grader():
    code = "import sys\nfor p in sys.argv[1:]: compile(open(p, encoding='utf-8').read(), p, 'exec')"
    files = [str(p) for room in ("grade", "isolation") for p in (SOURCE / room).rglob("*.py")]
    for version, place in interpreters().items():
        done = subprocess.run([place, "-c", code, *files], capture_output=True, text=True)
        assert done.returncode == 0, (version, done.stderr)
