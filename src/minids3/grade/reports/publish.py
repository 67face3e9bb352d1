"""The pages of a class, as files: one per student, and one for the instructor."""

from __future__ import annotations

from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.reports.feedback import feedback
from minids3.grade.reports.summary import summary

__all__ = ["write_pages"]


def write_pages(
    out: Path, results: list[SubmissionResult], names: dict[str, str], title: str
) -> None:
    """Write ``feedback/STUDENT.html`` for each result and ``summary.html``."""
    for result in results:
        write(out / "feedback" / f"{names[result.student]}.html", feedback(result, title))
    links = {student: f"feedback/{name}.html" for student, name in names.items()}
    write(out / "summary.html", summary(results, title, links))
