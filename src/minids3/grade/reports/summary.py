"""The class on one page: who needs a human, how points are spread, what was hard and why."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from minids3.grade.records import ExerciseResult, SubmissionResult
from minids3.grade.reports.export import whole
from minids3.grade.reports.pages import STATUS, bar, chip, esc, kind_of, number, page, worth

__all__ = ["summary"]

_ORDER = ("ok", "some", "no", "none", "look")
_WIDTHS = tuple(w * 10.0**k for k in range(-1, 9) for w in (1, 2, 2.5, 5))
_KINDS = {
    "ok": "passed",
    "some": "partly",
    "no": "not yet",
    "none": "not written",
    "look": "needs a look",
}


def summary(
    results: list[SubmissionResult],
    title: str,
    links: dict[str, str],
    left: Sequence[tuple[str, str]] = (),
    alike: Sequence[tuple[str, list[str], bool]] = (),
) -> str:
    """Return the page.

    Args:
        results: one per student.
        title: of the notebook.
        links: from a student to the feedback page.
        left: files that were not taken, each with the reason.
        alike: groups of answers that differ in names alone (see ``judging.likeness``).
    """
    body = [
        f'<p class="over">Class summary</p>\n<h1>{esc(title)}</h1>',
        _tiles(results),
        _waiting(results, links),
        _left(left),
        _distribution(results),
        _exercises(results),
        _mistakes(results),
        _items(results),
        _alike(alike),
        _students(results, links),
        _footer(results),
    ]
    return page(f"Summary · {title}", "\n".join(b for b in body if b), "wide")


def _handed_in(results: list[SubmissionResult]) -> list[SubmissionResult]:
    return [r for r in results if r.path]


def _decided(results: list[SubmissionResult]) -> list[SubmissionResult]:
    """Those whose points are all there, to count with."""
    return [r for r in _handed_in(results) if not r.undecided and not r.excused]


def _left(left: Sequence[tuple[str, str]]) -> str:
    if not left:
        return ""
    cells = "".join(f"<tr><td>{esc(p)}</td><td>{esc(why)}</td></tr>" for p, why in left)
    text = "Nobody's work is in the grades because of these. Rename or unpack what should be."
    table = f'<div class="scroll"><table class="pairs"><tbody>{cells}</tbody></table></div>'
    return _card("Files that were not taken", text, table)


def _alike(groups: Sequence[tuple[str, list[str], bool]]) -> str:
    if not groups:
        return ""
    rows = []
    for id, students, own in groups[:40]:
        more = f" and {len(students) - 12} more" if len(students) > 12 else ""
        names = ", ".join(students[:12]) + more
        same = " (the workbook's own solution, which is public)" if own else ""
        rows.append(f"<tr><td><code>{esc(id)}</code></td><td>{esc(names)}{same}</td></tr>")
    text = (
        "For you alone. Short functions look alike when they are right, so this proves nothing: "
        "ask both to change a line, and say which check fails and why."
    )
    table = f'<table class="pairs"><tbody>{"".join(rows)}</tbody></table>'
    return _card("The same but for names", text, f'<div class="scroll">{table}</div>')


def _card(head: str, text: str, body: str) -> str:
    said = f'<p class="soft">{text}</p>' if text else ""
    return f'<section class="card"><h2>{esc(head)}</h2>{said}{body}</section>'


def _tiles(results: list[SubmissionResult]) -> str:
    there = _handed_in(results)
    totals = [r.points for r in _decided(results)]
    most = whole(results)
    middle = number(statistics.median(totals)) if totals else "–"
    absent = len(results) - len(there)
    tiles = [
        (str(len(there)), f"graded of {len(results)}" if absent else "submissions, all graded"),
        (middle, f"median of {number(most)} points"),
        (str(sum(r.points == r.max_points for r in _decided(results))), "with full marks"),
        (str(sum(bool(r.late) for r in results)), "late"),
        (str(sum(bool(r.needs_human) for r in results)), "need a human"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{value}</b><span>{esc(words)}</span></div>' for value, words in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _link(student: str, links: dict[str, str]) -> str:
    return f'<a href="{esc(links.get(student, "#"))}">{esc(student)}</a>'


def _waiting(results: list[SubmissionResult], links: dict[str, str]) -> str:
    rows = [(r.student, sentence) for r in results for sentence in r.needs_human]
    noted = [(r.student, p) for r in results if r.path for p in r.problems]
    seen: set[str] = set()
    for r in results:
        for remark in r.remarks:
            if remark not in seen:
                seen.add(remark)
                noted.append((r.student, remark))
    made = ""
    if rows:
        made = _card("Needs a human", "Decide these before the grades go out.", _pairs(rows, links))
    if noted:
        text = "About the files. None of this changed a grade."
        made += _card("Also noted", text, _pairs(noted, links))
    return made


def _pairs(rows: list[tuple[str, str]], links: dict[str, str]) -> str:
    cells = "".join(f"<tr><td>{_link(s, links)}</td><td>{esc(text)}</td></tr>" for s, text in rows)
    return f'<div class="scroll"><table class="pairs"><tbody>{cells}</tbody></table></div>'


# plots --------------------------------------------------------------------------------------------


def _bins(results: list[SubmissionResult], most: float) -> list[tuple[float, float, int]]:
    """Return lower edge, upper edge and count of at most twelve bins of a round width."""
    width = next(w for w in _WIDTHS if most / w <= 12)
    count = math.ceil(most / width - 1e-9)
    counts = [0] * count
    for r in results:
        counts[min(count - 1, int(r.points / width))] += 1
    return [(k * width, (k + 1) * width, n) for k, n in enumerate(counts)]


def _distribution(results: list[SubmissionResult]) -> str:
    there = _decided(results)
    most = whole(results)
    if not there or most <= 0:
        return ""
    bins = _bins(there, most)
    top = max(n for *_, n in bins)
    left, right, base, high = 40, 860, 226, 170
    step = (right - left) / len(bins)
    marks, counts = [], []
    for k, (low, up, n) in enumerate(bins):
        x, h = left + k * step, high * n / top
        if n:
            marks.append(
                f'<rect x="{x + 2:.1f}" y="{base - h:.1f}" width="{step - 4:.1f}" '
                f'height="{h:.1f}" rx="3" fill="var(--bar-look)"><title>{n} with '
                f"{number(low)} to {number(min(up, most))} points</title></rect>"
            )
            counts.append(
                f'<text class="value" x="{x + step / 2:.1f}" y="{base - h - 7:.1f}" '
                f'text-anchor="middle">{n}</text>'
            )
    for k in range(len(bins) + 1):
        edge = bins[k][0] if k < len(bins) else bins[-1][1]
        marks.append(
            f'<text x="{left + k * step:.1f}" y="{base + 20}" text-anchor="middle">'
            f"{number(round(edge, 1))}</text>"
        )
    middle = statistics.median(r.points for r in there)
    x = left + (right - left) * middle / bins[-1][1]
    anchor = "end" if x > right - 90 else "start"
    shift = -6 if anchor == "end" else 6
    marks.append(
        f'<line class="median" x1="{x:.1f}" y1="6" x2="{x:.1f}" y2="{base}"/>'
        f'<text x="{x + shift:.1f}" y="18" text-anchor="{anchor}">median {number(middle)}</text>'
    )
    words = "; ".join(f"{number(a)} to {number(min(b, most))} points: {n}" for a, b, n in bins if n)
    drawn = (
        f'<svg viewBox="0 0 900 272" role="img" aria-label="Students by points. {esc(words)}">'
        f'<line class="grid" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>'
        f"{''.join(marks + counts)}"  # counts last: the median's line passes behind them
        f'<text x="{(left + right) / 2}" y="{base + 42}" text-anchor="middle">points of '
        f"{number(most)}</text></svg>"
    )
    return _card("How the points are spread", "Students per interval of points.", drawn)


def _by_exercise(results: list[SubmissionResult]) -> dict[str, list[ExerciseResult]]:
    found: dict[str, list[ExerciseResult]] = defaultdict(list)
    for r in _handed_in(results):
        for e in r.exercises:
            if e.status != "excused":
                found[e.id].append(e)
    return found


def _mean_share(graded: list[ExerciseResult]) -> float:
    graded = [e for e in graded if not e.needs_human]
    most = sum(e.max_points for e in graded)
    return sum(e.points for e in graded) / most if most else 0.0


def _exercises(results: list[SubmissionResult]) -> str:
    rows = []
    for graded in sorted(_by_exercise(results).values(), key=_mean_share):
        counts = Counter(kind_of(e) for e in graded)
        parts = [(kind, float(counts[kind])) for kind in _ORDER]
        words = ", ".join(f"{counts[k]} {_KINDS[k]}" for k in _ORDER if counts[k])
        rows.append(
            f"<div>{esc(graded[0].title)}<small><code>{esc(graded[0].id)}</code></small></div>"
            f"{bar(parts, len(graded), words)}"
            f'<div class="num">{100 * _mean_share(graded):.0f} %</div>'
        )
    if not rows:
        return ""
    keys = "".join(
        f'<span><i style="background:var(--bar-{k})"></i>{_KINDS[k]}</span>' for k in _ORDER
    )
    body = f'<div class="rows">{"".join(rows)}</div><div class="legend">{keys}</div>'
    text = "Hardest first. Bars count students; the figure is the mean share of the points."
    return _card("Which exercises were hard", text, body)


def _mistakes(results: list[SubmissionResult]) -> str:
    found: Counter[tuple[str, str, str]] = Counter()
    for graded in _by_exercise(results).values():
        for e in graded:
            if e.diagnosis and e.status != "passed":
                found[(e.id, e.title, e.diagnosis)] += 1
    if not found:
        return ""
    rows = "".join(
        f'<div class="mistake"><b>{n}</b><div><p>{esc(sentence)}</p>'
        f'<span class="soft">{esc(title)} · <code>{esc(id)}</code></span></div></div>'
        for (id, title, sentence), n in sorted(found.items(), key=lambda i: (-i[1], i[0]))[:12]
    )
    text = "Students whose function did the same as a known mistake, on the same inputs."
    return _card("Most common misconceptions", text, rows)


def _items(results: list[SubmissionResult]) -> str:
    """List checks that fail often though no known mistake explains why."""
    found: Counter[tuple[str, str]] = Counter()
    for graded in _by_exercise(results).values():
        for e in graded:
            bad = next((i for i in e.items if i.status == "no"), None)
            if bad and not e.diagnosis and e.status in ("partial", "failed"):
                found[(e.title, bad.label)] += 1
    if not found:
        return ""
    rows = "".join(
        f'<div class="mistake"><b>{n}</b><div><p>{esc(label)}</p><span class="soft">{esc(title)}'
        "</span></div></div>"
        for (title, label), n in sorted(found.items(), key=lambda i: (-i[1], i[0]))[:8]
    )
    text = "The first check that failed where no known mistake fits: worth reading a few of these."
    return _card("Unexplained failures", text, rows)


def _students(results: list[SubmissionResult], links: dict[str, str]) -> str:
    rows = []
    for r in results:
        cells = "".join(
            f'<span class="{kind_of(e)}" role="img" aria-label="{esc(e.title)}: '
            f'{STATUS[e.status][1]}" title="{esc(e.title)}: {STATUS[e.status][1]}, '
            f'{worth(e)}">{STATUS[e.status][2]}</span>'
            for e in r.exercises
        )
        late = f'<span class="chip some">{esc(r.late)}</span>' if r.late else ""
        look = chip("needs a human") if r.needs_human else ""
        rows.append(
            f'<tr><td>{_link(r.student, links)}</td><td><span class="cells">{cells}</span></td>'
            f'<td class="num">{_points(r)}</td>'
            f"<td>{late} {look}</td></tr>"
        )
    head = (
        "<tr><th>Student</th><th>Exercises, in order</th><th class='num'>Points</th>"
        "<th>Look at</th></tr>"
    )
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return _card("Students", "", f'<div class="scroll">{table}</div>')


def _points(r: SubmissionResult) -> str:
    if r.excused:
        return "excused"
    far = " so far" if r.undecided else ""
    return f"{number(r.points)} of {number(r.max_points)}{far}"


def _footer(results: list[SubmissionResult]) -> str:
    seeds = sorted({r.seed for r in results})
    boxes = sorted({r.sandbox for r in results if r.sandbox})
    used = f" Isolation: {esc('; '.join(boxes))}." if boxes else ""
    again = ", ".join(map(str, seeds))
    return f"<footer><p>Seed {again}: the same seed gives the same grades.{used}</p></footer>"
