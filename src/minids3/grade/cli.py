"""The ``minids3`` command: ``grade``, ``book`` and ``release``; for students ``grade --self``."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minids3.command import Parser, fail

if TYPE_CHECKING:
    from minids3.grade.records import SubmissionResult
    from minids3.grade.reports.decisions import Decisions
    from minids3.grade.reports.gradebook import Gradebook
    from minids3.grade.reports.roster import Roster
    from minids3.grade.submissions.collect import Collected, Submission
    from minids3.grade.submissions.pristine import Pristine

__all__ = ["main"]

_GRADE = """\
Grade a folder (or a platform's zip file) of submitted notebooks: one folder or one file per
student. Grades, a feedback page per student and a summary of the class go to --out; what waits for
a person goes to decisions.csv there, and is read back from it. Interrupted, the same command goes
on where it stopped. With --self, and no submissions, show what the public checks say about one's
own notebook.
"""
_EXPORTS = ("canvas", "moodle", "gradescope", "csv")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = Parser(prog="minids3", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    grade = commands.add_parser("grade", help="grade submitted notebooks", description=_GRADE)
    add = grade.add_argument
    add("notebook", help="03, 03_latent_attention, or the path of a notebook")
    add("submissions", nargs="?", type=Path, help="folder or zip file of submissions")
    add("--out", type=Path, help="folder for grades and pages")
    add("--seed", type=int, help="of the hidden inputs (default: a fresh one)")
    add("--private", type=Path, help="folder with checks of your own")
    add("--deadline", type=Path, help="a file with a time, or a table of student,deadline")
    add("--exercise", action="append", default=[], metavar="ID[=POINTS]",
        help="grade only this one (may be given again), with these points")  # fmt: skip
    add("--student", action="append", default=[], help="grade only theirs (may be given again)")
    add("--force", action="store_true", help="grade again what is graded already")
    add("--limit", action="append", default=[], metavar="NAME=VALUE",
        help="such as call_seconds=20 or memory_mib=4096 (may be given again)")  # fmt: skip
    add("--export", choices=_EXPORTS, help="also write the grades as that platform reads them")
    add("--roster", type=Path, help="the platform's own table of the class, for --export")
    add("--title", help="of the assignment there (default: the notebook's name)")
    add("--out-of", type=float, help="scale exported grades to this number of points")
    add("--grade-column", default="", help="which column of Moodle's worksheet is the grade's")
    add("--jobs", type=int, default=0, help="processes (default: one per core)")
    add("--no-sandbox", action="store_true", help="you trust every line you grade")
    add("--nbval", action="store_true", help="also run nbval over the public checks")
    add("--self", action="store_true", help="the public checks of your notebook")
    book = commands.add_parser("book", help="one gradebook over the notebooks of a term")
    book.add_argument("grades", nargs="+", type=Path, help="folders that minids3 grade wrote")
    book.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    book.add_argument("--roster", type=Path, action="append", default=[],
                      help="a platform's table of the class (may be given again)")  # fmt: skip
    book.add_argument("--platform", choices=_EXPORTS, help="whose table --roster is")
    release = commands.add_parser("release", help="make the bundle that students get")
    release.add_argument("notebooks", nargs="+", help="numbers or names, such as 03 04")
    release.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    release.add_argument("--zip", action="store_true", help="pack it into a zip file as well")
    release.add_argument("--gradescope", action="store_true",
                         help="also an autograder for each notebook, for Gradescope")  # fmt: skip
    guide = commands.add_parser("guide", help="for authors: rewrite the instructor guide")
    guide.add_argument("--no-execute", action="store_true", help="do not run its notebook")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (needs a human) or 2 (cannot)."""
    top = parser()
    args = top.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        with _stopped_gently():
            return _command(top, args)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        return fail(error)


@contextlib.contextmanager
def _stopped_gently() -> Any:
    """Take a request to end, or a closed terminal, as Ctrl-C: what was started is ended, too."""
    kept = {}
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not here, or not the main thread
            number = getattr(signal, name)
            kept[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


def _command(top: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.command == "release":
        return _release(args)
    if args.command == "book":
        return _book(args)
    if args.command == "guide":
        from minids3.grade.handout.guide import write_guide

        print(*write_guide(run=not args.no_execute), sep="\n")
        return 0
    if args.self:
        from minids3.grade.own import show

        return show(Path(args.notebook))
    if args.submissions is None or args.out is None:
        top.error("grade needs a folder of submissions and --out (or --self)")
    return _grade(args)


def _release(args: argparse.Namespace) -> int:
    from minids3.grade.handout.release import release

    made = release(args.notebooks, args.out, pack=args.zip)
    print(f"{len(made)} files in {args.out}")
    if args.gradescope:
        from minids3.grade.handout.autograder import write_autograders

        print(*write_autograders(args.notebooks, args.out), sep="\n")
    return 0


def _book(args: argparse.Namespace) -> int:
    from minids3.grade.reports.roster import Roster
    from minids3.grade.reports.term import write_term

    if args.roster and not args.platform:
        raise ValueError(f"--roster is a platform's table: add --platform {'|'.join(_EXPORTS)}")
    rosters = [Roster.read(args.platform, path) for path in args.roster]
    waiting = write_term(args.grades, args.out, rosters)
    print(args.out)
    for line in waiting:
        print(f"needs a human: {_printable(line)}")
    return 1 if waiting else 0


def _chosen(values: Sequence[str]) -> dict[str, float | None]:
    """Return the exercises of ``--exercise ID[=POINTS]``."""
    found: dict[str, float | None] = {}
    for value in values:
        id, given, points = value.partition("=")
        try:
            found[id.strip()] = float(points) if given else None
        except ValueError:
            raise ValueError(f"--exercise {value}: {points!r} are no points") from None
        if (found[id.strip()] or 0.0) < 0:
            raise ValueError(f"--exercise {value}: points are not negative")
    return found


def _limits(values: Sequence[str]) -> dict[str, float]:
    """Return the limits of ``--limit NAME=VALUE``."""
    from minids3.isolation.sandbox import Limits

    known = {f.name: f.default for f in fields(Limits)}
    found: dict[str, float] = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            kind = type(known[name])
            found[name] = kind(number)
        except (KeyError, ValueError):
            raise ValueError(
                f"--limit {value}: write NAME=NUMBER with a name of {', '.join(known)}"
            ) from None
        if found[name] <= 0 and name != "restarts":
            raise ValueError(f"--limit {value}: must be more than 0")
    return found


def _grade(args: argparse.Namespace) -> int:
    from minids3.grade.reports.decisions import Decisions
    from minids3.grade.reports.gradebook import Gradebook, Options, choose_seed, file_names
    from minids3.grade.submissions.collect import collect
    from minids3.grade.submissions.deadlines import Deadlines
    from minids3.grade.submissions.pristine import Pristine, find_notebook
    from minids3.isolation import sandbox

    out, folder = args.out.resolve(), args.submissions.resolve()
    if out == folder or folder in out.parents or out in folder.parents:
        raise ValueError(f"--out must lie outside the submissions, not at {args.out}")
    path = find_notebook(args.notebook).resolve()
    pristine = Pristine.read(path)
    chosen, limits = _chosen(args.exercise), _limits(args.limit)
    worth = pristine.points  # of those that are not chosen, too: somebody may have decided on them
    pristine = pristine.only(chosen) if chosen else pristine
    deadlines = Deadlines.read(args.deadline) if args.deadline else Deadlines()
    decisions = Decisions.read(out / "decisions.csv", worth | pristine.points)
    private = args.private.resolve() if args.private else None
    hidden = tuple(p for p in (out, folder, private) if p is not None)
    options = Options(choose_seed(out, args.seed), not args.no_sandbox, private, hidden,
                      args.nbval, chosen, limits)  # fmt: skip
    roster = _roster(args)
    if options.isolate:
        sandbox.demand()  # at once, not once per submission
    elif not hasattr(os, "fork"):
        raise RuntimeError("grading starts a process per answer, which needs Linux or macOS")
    if private is not None:
        _try_private(private, pristine)
    found = collect(folder, pristine.name, pristine.ids, pristine.names, out / "unpacked")
    wanted = _students(args.student, found)
    for name in deadlines.unknown(found):
        print(f"{args.deadline}: {_printable(name)} handed nothing in")
    lost = _absent(decisions, found, pristine.ids)
    book = Gradebook(out, pristine, path, options)
    book.begin()
    left = book.resume(found, wanted, args.force)
    _tell_left(book, found, left)
    names = file_names(s.student for s in found)
    _run(args, book, left, names)
    results = book.finish(found, {s.student: deadlines.late(s) for s in found}, decisions)
    failed = _publish(out, results, names, pristine.title, found)
    if args.export:
        failed += _export(args, results, pristine, roster)
    return _tell(args.out, results, options.seed, found, [*lost, *failed])


def _roster(args: argparse.Namespace) -> Roster | None:
    """Read ``--roster`` before anybody is graded: what is wrong with it is said at once.

    Raises:
        ValueError: it, or the number of ``--out-of``, cannot be used.
    """
    from minids3.grade.reports.roster import Roster

    if args.out_of is not None and not 0 < args.out_of < math.inf:
        raise ValueError(f"--out-of {args.out_of:g}: must be more than 0")
    if args.roster is None:
        return None
    if not args.export:
        raise ValueError("--roster is a platform's table: say which one's with --export")
    return Roster.read(args.export, args.roster, args.grade_column)


def _absent(decisions: Decisions, found: Collected, ids: Sequence[str]) -> list[str]:
    """Add who handed nothing in and is decided on all the same; return the decisions left over."""
    from minids3.grade.submissions.choose import NOTHING, Submission

    platforms = {s.platform for s in found}
    platform = platforms.pop() if len(platforms) == 1 else ""
    lost = []
    for name in decisions.unknown(found):
        if decisions.settles(name, ids):
            number = name if name.isdecimal() else ""
            found.append(Submission(name, None, [NOTHING], id=number, platform=platform))
        else:
            lost.append(f"{decisions.place(name)}: {name} handed nothing in: decision NOT applied; "
                        "write a name of grades.csv, or excuse from all ('*' as the exercise, "
                        "'yes' as excused)")  # fmt: skip
    found.sort(key=lambda s: (s.student.casefold(), s.student))
    return lost


def _tell_left(book: Gradebook, found: Collected, left: Sequence[Submission]) -> None:
    """Say whom this run does not grade, and why."""
    there = [s for s in found if s.path is not None]
    taken = sum(s.student in book.results for s in there)
    waiting = len(there) - taken - len(left)
    if taken:
        print(f"{taken} of {len(there)} need no grading again")
    if waiting:
        print(f"{waiting} of {len(there)} are not graded yet, and have no row in grades.csv")


def _try_private(folder: Path, pristine: Pristine) -> None:
    """Try an instructor's own checks on the worked solutions before anybody is graded.

    Raises:
        ValueError: one cannot be used; says which.
    """
    from minids3.course.registry import get
    from minids3.grade.private import load_private

    if any(get(id).kernel for id in pristine.ids):
        os.environ.setdefault("TRITON_INTERPRET", "1")
    load_private(folder)


def _students(names: Sequence[str], found: Collected) -> set[str]:
    """Return the students whom ``--student`` names, by name, number or folder.

    Raises:
        ValueError: nobody is called so.
    """
    from minids3.grade.tables import same_name

    wanted = set()
    for name in names:
        mine = {s.student for s in found
                if same_name(name) in (same_name(s.student), s.id, same_name(s.entry))}  # fmt: skip
        if not mine:
            raise ValueError(f"--student {name}: nobody is called so")
        wanted |= mine
    return wanted


def _run(args: argparse.Namespace, book: Any, left: list[Any], names: dict[str, str]) -> None:
    """Grade what is left, and keep each grade as soon as it is there."""
    from tqdm.auto import tqdm

    from minids3.grade.job import READING_SECONDS, failed
    from minids3.grade.process.pool import Pool
    from minids3.grade.records import SubmissionResult
    from minids3.isolation.sandbox import Limits

    by_student = {s.student: s for s in left}
    tasks = [book.task(s) for s in left]
    jobs = max(1, min(args.jobs or os.cpu_count() or 1, len(tasks) or 1))
    limits = Limits(**book.options.limits)
    # Longer than all limits together allow, so that it is theirs to say what took too long.
    seconds = READING_SECONDS + 600 + 6 * len(book.pristine.ids) * limits.exercise_seconds
    # tqdm looks at TQDM_DISABLE when it is first imported, which may be before it was set.
    off = not tasks or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    hide = {"disable": True} if off else {}
    with tqdm(total=len(tasks), desc=f"grading {book.pristine.name}", **hide) as bar:
        for task, grade, error in Pool(jobs).run(tasks, seconds):
            result = SubmissionResult.from_dict(grade) if grade else failed(task, error)
            student = task["student"]
            book.keep(by_student[student], result, names[student])
            bar.update()


def _publish(
    out: Path,
    results: list[SubmissionResult],
    names: dict[str, str],
    title: str,
    found: Collected,
) -> list[str]:
    from minids3.grade.judging.likeness import alike
    from minids3.grade.reports.publish import write_pages

    left = [(e.place, e.reason) for e in found.left]
    return write_pages(out, results, names, title, left, alike(results))


def _export(
    args: argparse.Namespace,
    results: list[SubmissionResult],
    pristine: Pristine,
    roster: Roster | None,
) -> list[str]:
    from minids3.grade.reports.export import export

    place = args.out / f"{args.export}.csv"
    title = args.title or pristine.name
    missing = export(args.export, place, results, title, roster, args.out_of)
    print(place, *missing.notes, sep="\n")
    return [*(f"{student}: not in {args.roster}" for student in missing), *missing.unsure]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)  # no terminal codes of theirs


def _tell(
    out: Path,
    results: list[SubmissionResult],
    seed: int,
    found: Collected,
    failed: Sequence[str] = (),
) -> int:
    """Print the outcome in a few lines; return 1 if something waits for a human."""
    from minids3.grade.reports.export import whole

    waiting = [*failed, *(f"{r.student}: {s}" for r in results for s in r.needs_human)]
    waiting += [f"not taken: {e.place}: {e.reason}" for e in found.left if e.grave]
    there = [r for r in results if r.path]
    totals = [r.points for r in there if not r.undecided and not r.excused]
    most = whole(results)
    middle = round(statistics.median(totals), 2) if totals else 0.0
    print(f"{len(there)} submissions graded, median {middle:g} of {most:g} points, seed {seed}")
    print(f"{out / 'grades.csv'}\n{out / 'summary.html'}\n{out / 'feedback'}/")
    for sentence in waiting[:20]:
        print(_printable(f"needs a human: {sentence}"))
    if len(waiting) > 20:
        print(f"... and {len(waiting) - 20} more in summary.html")
    if (out / "decisions.csv").exists() and waiting:
        print(f"decide in {out / 'decisions.csv'}, then run the same command again")
    return 1 if waiting else 0
