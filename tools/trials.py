"""What is tried in an environment: the set-up cell, the data, unit tests, solved notebooks."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT, Environment
from running import TESTS, Outcome, call, demand, last_line, run_pytest

__all__ = ["Trial", "install", "trials"]

QUICK_TESTS = ("data", "numerics", "ref", "nn", "sim")
FEW_NOTEBOOKS = ("00", "07", "08")
SHOWN = ("torch", "triton", "numpy", "ipython", "ipykernel", "ipywidgets", "transformers")
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "900")

# Colab's set-up cell, in IPython; the package comes from this checkout instead of GitHub.
SETUP = """
import sys, types
from IPython.core.interactiveshell import InteractiveShell

sys.modules["google.colab"] = types.ModuleType("google.colab")
InteractiveShell.instance().run_cell({cell!r}).raise_error()
import minids3
assert "site-packages" in minids3.__file__, minids3.__file__
"""


@dataclass(frozen=True)
class Trial:
    """One line of the table; ``run`` gets the file for its output."""

    name: str
    run: Callable[[Path], Outcome]


def install(env: Environment, log: Path) -> Outcome:
    """Make the environment afresh and install its packages.

    Raises:
        Failed: it cannot be made.
    """
    start = time.perf_counter()
    demand([env.python, "-m", "venv", "--clear", env.folder], log)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("\n".join(env.constraints) + "\n", encoding="utf-8")
        demand([env.bin, "-m", "pip", "install", "-q", "-c", file, *env.wants], log)
    found = _versions(env)
    note = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
    return Outcome(seconds=time.perf_counter() - start, note=note)


def trials(
    env: Environment, notebooks: Sequence[str] | None, options: Sequence[str], quick: bool
) -> list[Trial]:
    """Return what is tried in ``env``, in its order.

    Args:
        env: where.
        notebooks: numbers of solved notebooks; None means all on Colab's versions, else a few.
        options: for pytest, when it runs the unit tests.
        quick: a few folders of tests and a few notebooks.

    Raises:
        ValueError: no solved notebook of that number.
    """
    on_colab = env.name == "colab"
    wanted = tuple(notebooks or (FEW_NOTEBOOKS if quick or not on_colab else ("",)))
    solved = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
    for number in wanted:
        if not any(path.name.startswith(number) for path in solved):
            raise ValueError(f"no solved notebook starts with {number!r}")
    books = [
        Trial(f"notebook {path.name[:2]}", functools.partial(run_pytest, env, [path], NBVAL))
        for path in solved
        if path.name.startswith(wanted)
    ]
    units = [
        Trial(f"tests: {name}", functools.partial(run_pytest, env, paths, options))
        for name, paths in _test_files(quick).items()
    ]
    data = Trial("data, byte for byte", functools.partial(_data, env))
    if not on_colab:
        return [data, *units, *books]
    first = Trial("set-up cell", functools.partial(_setup_cell, env))
    checkout = Trial("checkout", functools.partial(_checkout, env))
    return [first, *books, checkout, data, *units]  # notebooks see the package as Colab does


def _test_files(quick: bool) -> dict[str, list[Path]]:
    """Return the test files by their folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.relative_to(TESTS).parts[0]
        name = folder if folder != path.name else "beside them"
        if name != "browser" and (not quick or name in QUICK_TESTS):
            found.setdefault(name, []).append(path)
    return found


def _versions(env: Environment) -> dict[str, str]:
    command = [str(env.bin), "-m", "pip", "list", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {entry["name"].lower(): entry["version"] for entry in json.loads(done.stdout)}


def _setup_cell(env: Environment, log: Path) -> Outcome:
    """Run the set-up cell as on Colab; it may add packages, and change none."""
    start = time.perf_counter()
    call([env.bin, "-m", "pip", "uninstall", "-q", "-y", "minids3"], log)
    book = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    cell = next("".join(c["source"]) for c in book["cells"] if c.get("id") == "setup")
    cell, count = re.subn(r'"minids3 @ [^"]+"', f'"minids3 @ {ROOT.as_uri()}"', cell)
    if count != 1:
        return Outcome(failed=1, note="the set-up cell installs nothing from an address")
    before = _versions(env)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "setup_cell.py")
        script.write_text(SETUP.format(cell=cell), encoding="utf-8")
        status = call([env.bin, script], log, Path(folder))
    seconds = time.perf_counter() - start
    if status:
        return Outcome(failed=1, seconds=seconds, note=last_line(log))
    after = _versions(env)
    changed = [f"{n} {v} became {after.get(n)}" for n, v in before.items() if after.get(n) != v]
    note = "; ".join(changed) or f"adds {', '.join(sorted(after.keys() - before.keys()))}"
    return Outcome(0 if changed else 1, len(changed), seconds=seconds, note=note)


def _checkout(env: Environment, log: Path) -> Outcome:
    """Put the checkout in the package's place: some tests read its files."""
    start = time.perf_counter()
    demand([env.bin, "-m", "pip", "install", "-q", "--no-deps", "-e", ROOT], log)
    return Outcome(passed=1, seconds=time.perf_counter() - start)


def _data(env: Environment, log: Path) -> Outcome:
    """Rebuild the shipped data elsewhere and compare the files."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        demand([env.bin, "-m", "minids3.data", "build", "--out", folder], log)
        built = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    wrong = sorted(n for n, raw in built.items() if raw != (ROOT / "data" / n).read_bytes())
    note = f"differs: {', '.join(wrong)}" if wrong else ""
    return Outcome(len(built) - len(wrong), len(wrong), 0, time.perf_counter() - start, note)
