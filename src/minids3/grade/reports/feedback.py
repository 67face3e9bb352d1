"""One student's page: what passed, what did not and why, and the question to go on with."""

from __future__ import annotations

from minids3.grade.records import LOOK, ExerciseResult, ItemResult, SubmissionResult
from minids3.grade.reports.pages import STATUS, bar, chip, esc, kind_of, number, page, worth

__all__ = ["feedback"]

_MARKS = {
    "ok": ("m-ok", "✓", "passed"),
    "no": ("m-no", "✗", "failed"),
    "not reached": ("m-none", "·", "not reached"),
    "grader error": ("m-look", "!", "grader error"),
}
_ABOUT = {
    "stub": "Nothing was written here, so there is nothing to grade yet.",
    "missing": "This exercise's cell is not in your notebook. Copy it from a fresh one, answer it "
    "and hand in again.",
    "grader error": "Something went wrong on the grader's side. This is not a zero: a person will "
    "look at it.",
    "forbidden": "This answer uses what the exercise asks you to do without, so a person has to "
    "look at it before it counts.",
    "needs a human": "This could not be graded automatically. A person will look at it.",
    "decided": "A person has looked at this answer and decided on its points.",
    "excused": "A person has excused you from this exercise: it does not count.",
}


def feedback(result: SubmissionResult, title: str) -> str:
    """Return the page of one submission of the notebook that is called ``title``."""
    body = [
        f'<p class="over">{esc(title)}</p>\n<h1>{esc(result.student)}</h1>',
        _total(result),
        _problems(result),
        _overview(result),
        *(_exercise(e) for e in result.exercises),
        _footer(),
    ]
    return page(f"{result.student} · {title}", "\n".join(b for b in body if b))


def _total(result: SubmissionResult) -> str:
    points, most = number(result.points), number(result.max_points)
    parts = [(kind_of(e), e.points) for e in result.exercises]
    late = f' <span class="chip some">{esc(result.late)}</span>' if result.late else ""
    far = " so far" if result.undecided else ""
    return (
        f'<div class="total"><b>{points}</b> <span class="soft">of {most} points{far}</span>{late}'
        f"</div>\n{bar(parts, result.max_points, f'{points} of {most} points')}\n"
        f"<p>{esc(_sentence(result))}</p>"
    )


def _sentence(result: SubmissionResult) -> str:
    """Say in one sentence where the student stands."""
    if result.excused:
        return "A person has excused you from this notebook: it does not count."
    counted = [e for e in result.exercises if e.status != "excused"]
    n = len(counted)
    passed = sum(e.status == "passed" for e in counted)
    waiting = sum(e.needs_human for e in counted)
    if waiting == n:
        return "Nobody has decided yet: a person will look at this submission."
    if passed == n:
        return "Everything passed, with inputs you had seen and with inputs you had not."
    first = (
        next(e for e in counted if e.status != "passed" and not e.needs_human)
        if (passed + waiting < n)
        else None
    )
    text = f"{passed} of {n} exercises passed."
    if first is not None:
        text += f" The next one to look at is “{first.title}”."
    if waiting:
        text += f" {waiting} will be looked at by a person."
    return text


def _problems(result: SubmissionResult) -> str:
    said = _box("look", "From the person who looked", [result.comment]) if result.comment else ""
    if not result.problems:
        return said
    lines = "".join(f"<p>{esc(p)}</p>" for p in result.problems)
    return f'{said}<div class="box some"><b>About your file</b>{lines}</div>'


def _overview(result: SubmissionResult) -> str:
    rows = "".join(
        f'<tr><td><a href="#{esc(e.id)}">{esc(e.title)}</a></td><td>{chip(e.status)}</td>'
        f'<td class="num">{worth(e)}</td></tr>'
        for e in result.exercises
    )
    return (
        '<div class="card"><table><thead><tr><th>Exercise</th><th>Outcome</th>'
        f'<th class="num">Points</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _exercise(e: ExerciseResult) -> str:
    done = e.status in ("passed", "excused")
    parts = [
        f'<section class="card" id="{esc(e.id)}">',
        f'<div class="head"><h2>{esc(e.title)}</h2><span class="id">{esc(e.id)}</span>'
        f'{chip(e.status)}<span class="points">{worth(e)}</span></div>',
    ]
    if e.status in _ABOUT:
        parts.append(_box(STATUS[e.status][0], "What this means", [_ABOUT[e.status]]))
    if e.comment:
        parts.append(_box("look", "From the person who looked", [e.comment]))
    if e.diagnosis and not done:
        parts.append(_box("no", "What probably happened", [e.diagnosis]))
    if e.items and e.status not in ("stub", "missing"):
        parts.append(_checklist(e.items, folded=done))
    notes = [n for n in e.notes if not n.startswith(LOOK)]
    if notes:
        parts.append(_box("none", "Noted while grading", notes))
    if e.hint and not done and e.status not in ("grader error", "needs a human"):
        parts.append(_box("look", "A question to go on with", [e.hint]))
        parts.append(
            f'<p class="soft">More in the notebook: <code>hint("{esc(e.id)}")</code> asks the same '
            "question; called again it gives pseudocode.</p>"
        )
    if e.code.strip() and e.status != "stub":
        parts.append(
            f"<details{'' if done else ' open'}><summary>Your code</summary>"
            f"<pre>{_code(e.code)}</pre></details>"
        )
    parts.append("</section>")
    return "\n".join(parts)


def _box(kind: str, head: str, lines: list[str]) -> str:
    text = "".join(f"<p>{esc(line)}</p>" for line in lines)
    return f'<div class="box {kind}"><b>{esc(head)}</b>{text}</div>'


def _checklist(items: list[ItemResult], folded: bool) -> str:
    rows = []
    for item in items:
        mark, sign, words = _MARKS.get(item.status, _MARKS["no"])
        why = f'<span class="why">{esc(item.reason)}</span>' if item.reason else ""
        off = ' class="off"' if item.status == "not reached" else ""
        share = number(item.points) if item.points else ""
        rows.append(
            f'<li{off}><span class="mark {mark}" role="img" aria-label="{words}">{sign}</span>'
            f'<span>{esc(item.label)}{why}</span><span class="share">{share}</span></li>'
        )
    listed = f'<ul class="list">{"".join(rows)}</ul>'
    if folded:
        return f"<details><summary>{len(items)} checks, all passed</summary>{listed}</details>"
    passed = sum(i.status == "ok" for i in items)
    return f"<h3>{passed} of {len(items)} checks passed</h3>{listed}"


def _code(text: str) -> str:
    """Return Python as coloured HTML; what cannot be coloured is shown plain."""
    text = text.strip("\n")
    if len(text) > 20_000:
        return esc(text[:20_000]) + "\n…"
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        return highlight(text, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    except Exception:
        return esc(text)


def _footer() -> str:
    return (
        "<footer><p>Each check ran with the inputs the notebook shows and with others it does not, "
        "and counts if it passed with all of them. Exercises were graded one by one: a mistake in "
        "one costs nothing in the next. A check that was not reached comes after one that failed."
        "</p></footer>"
    )
