"""What the parts of the grader hand to each other, and what is kept of a grade: plain data.

``merge`` makes ``Answers`` of a submission, ``grading`` a ``SubmissionResult`` of those, and
``feedback``, ``summary`` and the gradebook are written from that. Results go to disk and come back
as plain JSON, never as pickles: what a student's code said may be in them as text, nothing else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "LOOK",
    "STATUSES",
    "Answers",
    "ExerciseResult",
    "ItemResult",
    "Piece",
    "Program",
    "PublicCell",
    "SubmissionResult",
]

STATUSES = (
    "passed",  # every item, every seed
    "partial",
    "failed",
    "stub",  # the cell was left as it came
    "missing",  # the cell is gone
    "forbidden",  # calls what the exercise asks to write; no points until somebody has looked
    "grader error",  # our fault: never a zero, somebody has to look
    "needs a human",
    "decided",  # by a person, who may have changed the points
    "excused",  # by a person: it does not count
)
LOOK = "for a human: "  # begins a note that asks for a look and costs no points


# what is graded -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Some code that runs as one cell, and where it comes from."""

    kind: str  # "given" (the instructor's), "helper" (the student's own cell) or "answer"
    code: str
    cell: str = ""  # for messages: "cell 12"


@dataclass(frozen=True)
class Program:
    """One student's answer to one exercise, with all that has to run before it.

    ``pieces`` run in order in one fresh namespace. A ``given`` or ``helper`` piece that fails is no
    reason to stop: note it and run the next. Before them the namespace gets the library's functions
    of the exercises in ``earlier``. Whether there is an answer at all is ``status``.
    """

    id: str
    name: str  # of the function that the exercise asks for
    pieces: tuple[Piece, ...] = ()
    earlier: tuple[str, ...] = ()  # ids of earlier exercises whose functions are used here
    status: str = "answered"  # or "stub" or "missing"
    found_by: str = ""  # "grade_id", "cell id", "marker", "name", "place" or ""
    problems: tuple[str, ...] = ()
    human: str = ""  # why a person has to judge it, such as a newer Python's syntax; "" if none
    points: float = -1.0  # what the notebook says it is worth; below 0: what the exercise says
    wider: Program | None = None  # with what changes a variable by a call: tried if this one fails

    @property
    def code(self) -> str:
        """The student's own text: helpers that are used, then the answer."""
        own = [p.code.strip("\n") for p in self.pieces if p.kind != "given"]
        return "\n\n\n".join(own)

    @property
    def answer(self) -> str:
        """The answer's text alone."""
        return "\n\n\n".join(p.code.strip("\n") for p in self.pieces if p.kind == "answer")


@dataclass(frozen=True)
class Answers:
    """What a submission answers: one program per exercise of the notebook, in its order."""

    notebook: str  # "NN_name"
    programs: tuple[Program, ...]
    merged: dict[str, Any]  # the instructor's notebook with the answers and helpers put in
    public: dict[str, Any] = field(default_factory=dict)  # set-up, answers and checks alone
    problems: tuple[str, ...] = ()

    def __getitem__(self, id: str) -> Program:
        """Return the program of exercise ``id``."""
        for program in self.programs:
            if program.id == id:
                return program
        raise KeyError(id)


# grades -------------------------------------------------------------------------------------------


@dataclass
class ItemResult:
    """One line of an exercise's checklist, over all seeds: ok only where every seed was."""

    label: str
    status: str  # "ok", "no", "not reached" or "grader error"
    reason: str = ""
    points: float = 0.0
    max_points: float = 0.0


@dataclass
class ExerciseResult:
    """The grade of one exercise, and why."""

    id: str
    title: str
    points: float
    max_points: float
    status: str  # of STATUSES
    items: list[ItemResult] = field(default_factory=list)
    diagnosis: str = ""  # the sentence of the known mistake that it resembles
    mutant: str = ""  # and that mistake's name
    hint: str = ""
    code: str = ""  # what the student wrote
    seeds: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # printed, for student and instructor
    comment: str = ""  # of the person who decided

    def __post_init__(self) -> None:
        """Refuse a status that nobody knows how to show."""
        if self.status not in STATUSES:
            raise ValueError(f"exercise {self.id}: no status {self.status!r}; use one of STATUSES")

    @property
    def needs_human(self) -> bool:
        """Whether an instructor has to look before this counts."""
        return self.status in ("forbidden", "grader error", "needs a human")


@dataclass
class PublicCell:
    """What plain nbval said about one check cell of the merged notebook: evidence, no points."""

    id: str  # of the cell
    outcome: str  # "passed", "failed", "not run"
    message: str = ""


@dataclass
class SubmissionResult:
    """The grade of one submission of one notebook."""

    student: str
    notebook: str
    path: str  # of the submission, as it was given
    exercises: list[ExerciseResult]
    points: float = 0.0
    max_points: float = 0.0
    late: str = ""  # "" or how late, in words
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # for the instructor, not for the student
    seed: int = 0
    seconds: float = 0.0
    sandbox: str = ""  # what isolated the student's code, in words
    nbval: list[PublicCell] = field(default_factory=list)
    error: str = ""  # a fault of the grader's own that stopped everything
    key: str = ""  # fingerprint of submission, notebook, grader and seed: when to grade again
    id: str = ""  # the platform's number of the student
    platform: str = ""  # whose number that is; "" if nobody knows
    look: list[str] = field(default_factory=list)  # what a human has to decide about the file
    comment: str = ""  # of the person who decided, on the whole of it

    @property
    def needs_human(self) -> list[str]:
        """Reasons why an instructor has to look, one sentence each; empty if none."""
        found = list(self.look)
        if self.error and any(e.needs_human for e in self.exercises):
            found.append(f"grader error: {self.error}")
        same = {(e.status, *e.notes[:1]) for e in self.exercises}
        if len(same) == 1 and self.exercises and self.exercises[0].needs_human:
            first = self.exercises[0]  # one reason for all of them, such as a broken file
            return [*found, *(first.notes[:1] if not self.error else [])] or [first.status]
        for e in self.exercises:
            if e.needs_human:
                found.append(f"{e.id}: {e.status}" + (f" ({e.notes[0]})" if e.notes else ""))
            found += [f"{e.id}: {n.removeprefix(LOOK)}" for n in e.notes if n.startswith(LOOK)]
        return found

    @property
    def undecided(self) -> bool:
        """Whether an exercise has no points yet: a person has to give them."""
        return any(e.needs_human for e in self.exercises)

    @property
    def decided(self) -> bool:
        """Whether a person has decided on something in it."""
        return any(e.status in ("decided", "excused") for e in self.exercises)

    @property
    def excused(self) -> bool:
        """Whether all of it is excused."""
        return bool(self.exercises) and all(e.status == "excused" for e in self.exercises)

    def total(self) -> SubmissionResult:
        """Add up the exercises into ``points`` and ``max_points``; returns itself."""
        self.points = round(sum(e.points for e in self.exercises), 2)
        self.max_points = round(sum(e.max_points for e in self.exercises), 2)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SubmissionResult:
        """Return the result that ``to_dict`` was made of.

        Raises:
            ValueError: something else than such a dictionary.
        """
        try:
            data = dict(data)
            data["exercises"] = [
                ExerciseResult(**{**e, "items": [ItemResult(**i) for i in e["items"]]})
                for e in data["exercises"]
            ]
            data["nbval"] = [PublicCell(**c) for c in data.get("nbval", [])]
            return cls(**data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is no grade as minids3 writes it ({error!r})") from None
