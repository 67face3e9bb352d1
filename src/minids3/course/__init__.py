"""The workbook's machinery: exercises, checks, hints, progress, and the notebooks' build.

A notebook uses ``check``, ``hint``, ``solution``, ``progress`` and ``setup``; an author of
exercises ``minids3.course.registry``; the build is ``python -m minids3.course``.
"""

from __future__ import annotations

from minids3.course.check import CheckFailed, check
from minids3.course.hints import hint, solution
from minids3.course.progress import progress
from minids3.course.setup import setup

__all__ = ["CheckFailed", "check", "hint", "progress", "setup", "solution"]
