"""The ``minids3`` command: ``grade`` for instructors and students, ``release`` for bundles."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minids3.command import Parser, fail

if TYPE_CHECKING:
    from minids3.grade.records import SubmissionResult

__all__ = ["main"]

_GRADE = """\
Grade a folder of submitted notebooks: one folder or one file per student. Grades, a feedback page
per student and a summary of the class go to --out. Interrupted, the same command goes on where it
stopped. With --self, and no submissions, show what the public checks say about one's own notebook.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = Parser(prog="minids3", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    grade = commands.add_parser("grade", help="grade submitted notebooks", description=_GRADE)
    grade.add_argument("notebook", help="03, 03_latent_attention, or the path of a notebook")
    grade.add_argument("submissions", nargs="?", type=Path, help="folder of submissions")
    grade.add_argument("--out", type=Path, help="folder for grades and pages")
    grade.add_argument("--seed", type=int, help="of the hidden inputs (default: a fresh one)")
    grade.add_argument("--private", type=Path, help="folder with checks of your own")
    grade.add_argument("--deadline", type=Path, help="a time, or a CSV file of student,deadline")
    grade.add_argument("--jobs", type=int, default=0, help="processes (default: one per core)")
    grade.add_argument("--no-sandbox", action="store_true", help="you trust every line you grade")
    grade.add_argument("--nbval", action="store_true", help="also run nbval over the public checks")
    grade.add_argument("--self", action="store_true", help="the public checks of your notebook")
    release = commands.add_parser("release", help="make the bundle that students get")
    release.add_argument("notebooks", nargs="+", help="numbers or names, such as 03 04")
    release.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    release.add_argument("--zip", action="store_true", help="pack it into a zip file as well")
    guide = commands.add_parser("guide", help="for authors: rewrite the instructor guide")
    guide.add_argument("--no-execute", action="store_true", help="do not run its notebook")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (needs a human) or 2 (cannot)."""
    top = parser()
    args = top.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if args.command == "release":
            return _release(args)
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
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        return fail(error)


def _release(args: argparse.Namespace) -> int:
    from minids3.grade.handout.release import release

    made = release(args.notebooks, args.out, pack=args.zip)
    print(f"{len(made)} files in {args.out}")
    return 0


def _grade(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from minids3.grade.job import failed
    from minids3.grade.process.pool import Pool
    from minids3.grade.records import SubmissionResult
    from minids3.grade.reports.gradebook import Gradebook, Options, choose_seed, file_names
    from minids3.grade.reports.publish import write_pages
    from minids3.grade.submissions.collect import Deadlines, collect
    from minids3.grade.submissions.pristine import Pristine, find_notebook
    from minids3.isolation import sandbox

    out, folder = args.out.resolve(), args.submissions.resolve()
    if out == folder or folder in out.parents or out in folder.parents:
        raise ValueError(f"--out must lie outside the submissions, not at {args.out}")
    path = find_notebook(args.notebook).resolve()
    pristine = Pristine.read(path)
    deadlines = Deadlines.read(args.deadline) if args.deadline else Deadlines()
    private = args.private.resolve() if args.private else None
    if private is not None and not private.is_dir():
        raise ValueError(f"there is no folder {args.private} with private checks")
    hidden = tuple(p for p in (out, folder, private) if p is not None)
    options = Options(choose_seed(out, args.seed), not args.no_sandbox, private, hidden, args.nbval)
    if options.isolate:
        sandbox.demand()  # at once, not once per submission
    submissions = collect(folder, pristine.name, pristine.ids)
    book = Gradebook(out, pristine, path, options)
    book.begin()
    left = book.resume(submissions)
    there = sum(s.path is not None for s in submissions)
    if len(left) < there:
        print(f"{there - len(left)} of {there} need no grading again")
    names = file_names(s.student for s in submissions)
    by_student = {s.student: s for s in left}
    tasks = [book.task(s) for s in left]
    jobs = max(1, min(args.jobs or os.cpu_count() or 1, len(tasks) or 1))
    hide = {} if tasks else {"disable": True}  # not False: TQDM_DISABLE decides then
    with tqdm(total=len(tasks), desc=f"grading {pristine.name}", **hide) as bar:
        for task, grade, error in Pool(jobs).run(tasks):
            result = SubmissionResult.from_dict(grade) if grade else failed(task, error)
            student = task["student"]
            book.keep(by_student[student], result, names[student])
            bar.update()
    results = book.finish(submissions, {s.student: deadlines.late(s) for s in submissions})
    write_pages(out, results, names, pristine.title)
    return _tell(args.out, results, options.seed)


def _tell(out: Path, results: list[SubmissionResult], seed: int) -> int:
    """Print the outcome in a few lines; return 1 if something waits for a human."""
    waiting = [(r.student, s) for r in results for s in r.needs_human]
    totals = [r.points for r in results if r.path]
    most = max((r.max_points for r in results), default=0.0)
    middle = round(statistics.median(totals), 2) if totals else 0.0
    print(f"{len(totals)} submissions graded, median {middle:g} of {most:g} points, seed {seed}")
    print(f"{out / 'grades.csv'}\n{out / 'summary.html'}\n{out / 'feedback'}/")
    for student, sentence in waiting[:20]:
        line = f"needs a human: {student}: {sentence}"
        print("".join(c if c.isprintable() else "?" for c in line))  # no terminal codes of theirs
    if len(waiting) > 20:
        print(f"... and {len(waiting) - 20} more in summary.html")
    return 1 if waiting else 0
