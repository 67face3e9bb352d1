"""The pages of a class, as files: one per student, and one for the instructor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.reports.feedback import feedback
from minids3.grade.reports.summary import summary

__all__ = ["write_pages"]


def write_pages(
    out: Path,
    results: list[SubmissionResult],
    names: dict[str, str],
    title: str,
    left: Sequence[tuple[str, str]] = (),
    alike: Sequence[tuple[str, list[str], bool]] = (),
) -> list[str]:
    """Write ``feedback/STUDENT.html`` for each result and ``summary.html`` (see there).

    Returns the students whose page could not be written, each with the reason; the others' are.
    """
    failed = []
    for result in results:
        try:
            write(out / "feedback" / f"{names[result.student]}.html", feedback(result, title))
        except Exception as error:  # one student's text is no reason to leave the others waiting
            failed.append(f"{result.student}: no page ({type(error).__name__}: {error!s:.200})")
    links = {student: f"feedback/{name}.html" for student, name in names.items()}
    write(out / "summary.html", summary(results, title, links, left, alike))
    return failed
