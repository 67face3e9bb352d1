"""Commands run in an environment, and what pytest counted in them."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT, Environment

__all__ = ["Failed", "Outcome", "call", "demand", "last_line", "run_pytest"]

LIMIT = 5400  # seconds for one command
FIND = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if not u.find_spec(n)])"
TESTS = ROOT / "tests"


@dataclass
class Outcome:
    """What came of a trial: counts of tests (or cells, or files), seconds, and what to know."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""


class Failed(RuntimeError):
    """A command that failed; the message is the last line that it printed."""


def call(command: Sequence[str | Path], log: Path, cwd: Path = ROOT, limit: float = LIMIT) -> int:
    """Run a command with its output appended to ``log``, and return its status; 124: too long."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory() as home, log.open("a", encoding="utf-8") as file:
        given = {
            "OMP_NUM_THREADS": "1",
            "TQDM_MININTERVAL": "2",  # nbval loses the end of a cell with thousands of messages
            "MINIDS3_HOME": home,
            "PYTHONNOUSERSITE": "1",
        }
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env=kept | given,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            if process.poll() is None:  # too long, or Ctrl-C: with all that it started
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()


def demand(command: Sequence[str | Path], log: Path) -> None:
    """Run a command that must succeed.

    Raises:
        Failed: it does not.
    """
    if status := call(command, log):
        raise Failed("took too long" if status == 124 else last_line(log))


def last_line(log: Path) -> str:
    """Return the last line of a file of output."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "printed nothing"


def run_pytest(
    env: Environment, paths: Sequence[Path], options: Sequence[str], log: Path
) -> Outcome:
    """Run pytest and count; test files that import what the environment lacks are left out."""
    start = time.perf_counter()
    without = lacking(env, [path for path in paths if path.suffix == ".py"])
    names = sorted(set().union(*without.values()))
    note = f"{len(without)} files left out: no {', '.join(names)}" if without else ""
    given = [path for path in paths if path not in without]
    if not given:
        return Outcome(note=note)
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    quiet = ("-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    status = call([env.bin, "-m", "pytest", *quiet, *options, *given], log)
    outcome = counted(report)
    outcome.seconds, outcome.note = time.perf_counter() - start, note
    if status == 5:
        outcome.note = "; ".join(filter(None, ["no test was chosen", note]))
    elif status and not outcome.failed:
        outcome.failed = 1
        outcome.note = "took too long" if status == 124 else last_line(log)
    return outcome


def counted(report: Path) -> Outcome:
    """Return the counts in pytest's report; none if there is no such file."""
    total = Outcome()
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            total.failed += failed
            total.skipped += skipped
            total.passed += int(suite.get("tests", 0)) - failed - skipped
    return total


def imports(path: Path) -> set[str]:
    """Return the packages that a file imports when it is itself imported."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return found


def lacking(env: Environment, files: Sequence[Path]) -> dict[Path, set[str]]:
    """Return the test files that cannot be imported in ``env``, and the packages that they lack."""
    needs: dict[Path, set[str]] = {}
    for file in files:
        needs[file] = set()
        todo = [file]
        while todo:
            for name in imports(todo.pop()) - needs[file]:
                needs[file].add(name)
                if (beside := TESTS / f"{name}.py").exists():  # such as deepseek_twin
                    todo.append(beside)
    folders = (TESTS, Path(__file__).parent)
    own = {path.stem for folder in folders for path in folder.iterdir()}
    own |= {"minids3", *sys.stdlib_module_names}
    asked = sorted(set().union(*needs.values()) - own)
    done = subprocess.run(
        [str(env.bin), "-c", FIND, *asked], capture_output=True, text=True, check=True, cwd="/"
    )
    absent = set(ast.literal_eval(done.stdout))
    return {file: names & absent for file, names in needs.items() if names & absent}
