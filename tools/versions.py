"""Try the workbook on other Pythons and on other versions of its packages.

``make versions`` tries it on every Python found from 3.10 to 3.13, each in an environment of its
own: the lower bounds of pyproject.toml on the oldest, the newest versions on the others. ``make
colab`` tries it on Colab's versions. Both print a table and say by their status whether all passed:
0 if so, 1 if something failed, 2 if it cannot be tried.

What is done is kept in build/versions, so that an interrupted run goes on; it counts as long as no
file under version control changes. What failed is tried again. Needs Python's own library alone::

    python tools/versions.py matrix --only 3.13 --quick
    python tools/versions.py matrix --only 3.12 --with torch==2.13.0
    python tools/versions.py colab --notebooks 00 07 --tests "-k rope"

A PyTorch without CUDA is smaller: ``PIP_EXTRA_INDEX_URL`` may name an index that has one.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from environments import ROOT, Environment, colab, matrix
from running import Failed, Outcome
from trials import Trial, install, trials

KEPT = ROOT / "build" / "versions"
HEAD = ("environment", "what", "passed", "failed", "skipped", "seconds", "")


def source_mark() -> str:
    """Return a mark that changes with every file under version control."""
    parts = []
    for command in (["git", "rev-parse", "HEAD"], ["git", "diff", "HEAD"]):
        parts.append(subprocess.run(command, cwd=ROOT, capture_output=True).stdout)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


class Record:
    """What was found in one environment, in a file that is written after each trial."""

    def __init__(self, path: Path, environment: str, source: str, fresh: bool = False) -> None:
        """Read what an earlier run found, as far as it is of this environment and source.

        Raises:
            ValueError: the file is damaged.
        """
        self.path = path
        self.marks = {"environment": environment, "source": source}
        self.outcomes: dict[str, Outcome] = {}
        if fresh or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            outcomes = {k: Outcome(**v) for k, v in found["outcomes"].items()}
            same = {k: found["marks"][k] == v for k, v in self.marks.items()}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: remove it, or start with --fresh") from None
        if same["environment"]:
            self.outcomes = {k: v for k, v in outcomes.items() if same["source"] or k == "install"}

    def done(self, name: str) -> bool:
        """Whether a trial was made, and nothing failed in it."""
        return name in self.outcomes and not self.outcomes[name].failed

    def enter(self, name: str, outcome: Outcome) -> None:
        """Note an outcome, in the file too."""
        self.outcomes[name] = outcome
        whole = {
            "marks": self.marks,
            "outcomes": {k: dataclasses.asdict(v) for k, v in self.outcomes.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        os.replace(temporary, self.path)


def attempt(env: Environment, wanted: Iterable[Trial], record: Record, logs: Path) -> None:
    """Make the environment if it is not there, and try what has not passed yet."""
    logs.mkdir(parents=True, exist_ok=True)
    if not (record.done("install") and env.bin.exists()):
        wanted = [Trial("install", lambda log: install(env, log)), *wanted]
    for trial in wanted:
        if trial.name != "install" and record.done(trial.name):
            continue
        print(f"{env.name}: {trial.name}", file=sys.stderr, flush=True)
        log = logs / f"{''.join(c if c.isalnum() else '_' for c in trial.name)}.log"
        log.write_text("", encoding="utf-8")
        try:
            outcome = trial.run(log)
        except (Failed, OSError, subprocess.CalledProcessError) as error:
            outcome = Outcome(failed=1, note=str(error))
        if trial.name == "install":  # in a new environment nothing has passed
            record.outcomes.clear()
        record.enter(trial.name, outcome)
        if outcome.failed and trial.name in ("install", "set-up cell", "checkout"):
            return  # the others would fail for the same reason


def table(found: Mapping[str, Mapping[str, Outcome]], wanted: Mapping[str, Sequence[str]]) -> str:
    """Return the outcomes as a table in Markdown: a line for each trial, and one of sums.

    Args:
        found: environment -> trial -> outcome.
        wanted: environment -> trials, in their order; one that was not made says so.
    """
    rows: list[tuple[str, ...]] = [HEAD]
    for env, names in wanted.items():
        made = {name: found[env][name] for name in names if name in found[env]}
        rows += [(env, name, *_cells(made.get(name))) for name in names]
        total = Outcome(
            note=f"{len(names) - len(made)} not tried" if len(made) < len(names) else ""
        )
        for o in made.values():
            total.passed += o.passed
            total.failed += o.failed
            total.skipped += o.skipped
            total.seconds += o.seconds
        rows.append((env, "all", *_cells(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    rows.insert(1, tuple("-" * max(width, 1) for width in widths))
    lines = (" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def _cells(o: Outcome | None) -> tuple[str, ...]:
    if o is None:
        return ("", "", "", "", "not tried")
    note = " ".join(o.note.replace("|", "/").split())
    return (str(o.passed), str(o.failed), str(o.skipped), f"{o.seconds:.0f}", note)


def chosen(environments: Sequence[Environment], only: Sequence[str]) -> list[Environment]:
    """Return the environments whose names start with one of ``only``; all if that is empty.

    Raises:
        ValueError: there is none of that name.
    """
    for name in only:
        if not any(env.name.startswith(name) for env in environments):
            known = ", ".join(env.name for env in environments) or "none"
            raise ValueError(f"no environment starts with {name!r}; there are: {known}")
    return [env for env in environments if not only or env.name.startswith(tuple(only))]


def run(args: argparse.Namespace) -> int:
    """Try what ``args`` ask for, print the table, and return the exit status."""
    environments = [colab()] if args.what == "colab" else chosen(matrix(args.given), args.only)
    if not environments:
        raise ValueError("no Python from 3.10 to 3.13 was found on the path or in pyenv")
    tests = shlex.split(args.tests)
    plans = {e: trials(e, args.notebooks, tests, args.quick) for e in environments}
    wanted = {e.name: ["install", *(t.name for t in plan)] for e, plan in plans.items()}
    if args.list:
        for name, names in wanted.items():
            print(f"{name}: {', '.join(names)}")
        return 0
    records, interrupted = {}, False
    try:
        for env, plan in plans.items():
            source = f"{source_mark()} {args.tests}".strip()
            record = Record(KEPT / f"{env.name}.json", env.mark, source, args.fresh)
            records[env.name] = record
            attempt(env, plan, record, KEPT / env.name)
            if args.remove:
                shutil.rmtree(env.folder, ignore_errors=True)
    except KeyboardInterrupt:
        interrupted = True
    found = {name: records[name].outcomes if name in records else {} for name in wanted}
    print(table(found, wanted))
    print(f"What was printed: {KEPT.relative_to(ROOT)}", file=sys.stderr)
    if interrupted:
        return 130
    fine = all(records[env].done(name) for env, names in wanted.items() for name in names)
    return 0 if fine else 1


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and do it; what cannot be done becomes one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add: Any = parser.add_argument
    add("what", choices=["matrix", "colab"], help="Pythons found here, or Colab's versions")
    add("--only", nargs="+", default=[], metavar="3.13", help="these environments of the matrix")
    add("--with", nargs="+", default=[], dest="given", metavar="A==1.2", help="these versions")
    add("--notebooks", nargs="+", metavar="00", help="solved notebooks (colab: all, else a few)")
    add("--tests", default="", metavar='"-k rope"', help="arguments for pytest")
    add("--quick", action="store_true", help="a few folders of tests and a few notebooks")
    add("--fresh", action="store_true", help="make environments and trials anew")
    add("--remove", action="store_true", help="remove an environment once it was tried")
    add("--list", action="store_true", help="only say what would be tried")
    try:
        return run(parser.parse_args(argv))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
