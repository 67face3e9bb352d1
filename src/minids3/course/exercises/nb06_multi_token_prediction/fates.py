"""Which tokens of a text drafting makes in a step of their own."""

from __future__ import annotations

import re

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.infer.acceptance import token_fates as _library_fates


def token_fates(agreed):
    """How each token of a greedy text came, if drafts are used.

    agreed: n - 1 bools for a text of n tokens. agreed[j] says whether a
    draft for token j + 1, made along with token j, is the token that the
    main model chooses there
    returns a list of n strings: "own", "accepted" or "rejected"
    """
    fates, j, missed = [], 0, False
    while j <= len(agreed):
        fates.append("rejected" if missed else "own")
        hit = j < len(agreed) and agreed[j]
        if hit:
            fates.append("accepted")
        missed = not hit
        j += 1 + hit
    return fates


def _every_position(agreed):
    return ["own"] + ["accepted" if a else "rejected" for a in agreed]


def _never_rejected(agreed):
    return [f if f == "accepted" else "own" for f in token_fates(agreed)]


def _rejected_takes_a_place(agreed):
    fates = []
    for fate in token_fates(agreed):
        fates += ["rejected", "own"] if fate == "rejected" else [fate]
    return fates


def _one_late(agreed):
    return token_fates([*agreed[1:], False]) if agreed else ["own"]


def _first_is_drafted(agreed):
    return token_fates([True, *agreed])[1:]


def _pairs(agreed):
    fates = ["own"]
    for j, a in enumerate(agreed):
        fates.append("own" if j % 2 else "accepted" if a else "rejected")
    return fates


def _beyond_the_end(agreed):
    return token_fates([*agreed, True])


def _marks_the_one_before(agreed):
    fates = token_fates(agreed)
    new = ["own" if f == "rejected" else f for f in fates]
    for j, fate in enumerate(fates[1:]):
        if fate == "rejected":
            new[j] = "rejected"
    return new


def _ends_at_a_miss(agreed):
    fates = token_fates(agreed)
    first = fates.index("rejected") if "rejected" in fates else len(fates)
    return fates[: first + 1]


def _last_is_missing(agreed):
    return token_fates(agreed[:-1])


def _steps_only(agreed):
    return sum(f != "accepted" for f in token_fates(agreed))


def _two_after_own(agreed):
    """A chain of drafts: goes on drafting after an accepted one, two at most."""
    fates, j = ["own"], 0
    while j < len(agreed):
        if not agreed[j]:
            fates.append("rejected")
        elif fates[-2:] == ["accepted", "accepted"]:
            fates.append("own")
        else:
            fates.append("accepted")
        j += 1
    return fates


def _turned(agreed):
    return token_fates([not a for a in agreed])


def _state(agreed):
    fates = ["own"]
    for a in agreed:
        if fates[-1] == "accepted":
            fates.append("own")
        else:
            fates.append("accepted" if a else "rejected")
    return fates


def _by_runs(agreed):
    """In a row of drafts that agree the first, the third, ... are made and accepted."""
    fates, run = ["own"], 0
    for a in agreed:
        after_accepted = run % 2 == 1
        run = run + 1 if a else 0
        fates.append("accepted" if run % 2 else "own" if after_accepted else "rejected")
    return fates


def _by_pattern(agreed):
    row = "".join("y" if a else "n" for a in agreed)
    fates = ["own"]
    for step in re.findall("y.?|n", row):  # what an accepted draft skips is skipped here, too
        fates += ["rejected"] if step == "n" else ["accepted", "own"][: len(step)]
    return fates


def _recursive(agreed):
    def after(j, first):
        if j == len(agreed):
            return [first]
        if agreed[j]:
            rest = after(j + 2, "own") if j + 2 <= len(agreed) else []
            return [first, "accepted", *rest]
        return [first, *after(j + 1, "rejected")]

    return after(0, "own")


def _library(agreed):
    return _library_fates(agreed)


@exercise(
    "mtp-fates",
    solution=token_fates,
    notebook="06_multi_token_prediction",
    title="Step by step through a text",
    difficulty=2,
    importance=3,
    minutes=7,
    library=_library,
    hints=(
        "A step has made token j and, since its draft was accepted, token j + 1. Along with which "
        "token is the next draft made? Which entry of agreed is never looked at?",
        "j = 0, and nothing was rejected yet\n"
        "as long as there is a token j:\n"
        '    it is "rejected" if the draft for it was, else "own"\n'
        "    is there a token j + 1, and does the draft for it agree?\n"
        '        yes: it is "accepted"; go on with token j + 2, nothing rejected\n'
        "        no: go on with token j + 1, and remember that a draft for it was rejected",
    ),
    mutants=[
        Mutant(
            "every_position",
            _every_position,
            "You made a draft at every position. A step drafts one token: after an accepted one "
            "the next token is the main model's own, whatever agreed says there.",
        ),
        Mutant(
            "never_rejected",
            _never_rejected,
            'A token whose draft was thrown away is "rejected", not "own": the step before has '
            "tried it in vain.",
        ),
        Mutant(
            "rejected_takes_a_place",
            _rejected_takes_a_place,
            "Your list is longer than the text. A rejected draft is thrown away and takes no "
            'place: the token in its place is "rejected", and only that.',
        ),
        Mutant(
            "one_late",
            _one_late,
            "You are one entry late: agreed[j] is about token j + 1, so the first entry is about "
            "the second token.",
        ),
        Mutant(
            "first_is_drafted",
            _first_is_drafted,
            'You let a draft decide about token 0. Nothing was drafted before it: it is "own", '
            "and agreed[0] is about token 1.",
        ),
        Mutant(
            "pairs",
            _pairs,
            "You walk in pairs. After a rejected draft the step has made one token only: the next "
            "step begins at once, and drafts along with the token whose draft was rejected.",
        ),
        Mutant(
            "beyond_the_end",
            _beyond_the_end,
            "You made a token after the last one. With n - 1 entries the text has n tokens.",
        ),
        Mutant(
            "marks_the_one_before",
            _marks_the_one_before,
            'You marked the token that the bad draft was made along with. "rejected" is the next '
            "one, for which the draft was.",
        ),
        Mutant(
            "ends_at_a_miss",
            _ends_at_a_miss,
            "You stopped at the first rejected draft. It ends a step, not the text.",
        ),
        Mutant(
            "last_is_missing",
            _last_is_missing,
            "The last token is missing. With n - 1 entries the text has n tokens, the first of "
            "them without a draft.",
        ),
        Mutant(
            "steps_only",
            _steps_only,
            "You returned the number of steps. Asked is a list with a word for every token.",
        ),
        Mutant(
            "two_after_own",
            _two_after_own,
            "You let a step make two drafts, the second after an accepted one. This module drafts "
            "a single token per step.",
        ),
        Mutant(
            "turned",
            _turned,
            "Yes and no are the wrong way round: a draft is accepted where it agrees.",
        ),
    ],
    alternatives=[
        Alternative("state", _state),
        Alternative("by_runs", _by_runs),
        Alternative("by_pattern", _by_pattern),
        Alternative("recursive", _recursive),
    ],
)
def check_fates(c):
    """Random rows, all and then none, every second draft, short texts."""
    row = _drafts(c, c.size(40, 60), 0.7)
    out = c.call(list(row), label=f"runs on {len(row)} drafts")
    with c.part():
        c.equal(out, _by_parity(row), label="a random row: every token has its word")
        rare = _drafts(c, c.size(40, 60), 0.25)
        c.equal(c.call(list(rare)), _by_parity(rare), label="and one with few good drafts")
    good, bad = c.size(5, 12), c.size(4, 9)
    with c.part():
        first = [True] * good + [False] * bad
        label = f"{good} drafts in a row agree, then none of {bad}"
        c.equal(c.call(list(first)), _by_parity(first), label=label)
        longer = [True, *first]
        c.equal(c.call(list(longer)), _by_parity(longer), label="and with one more that agrees")
    with c.part():
        last = [False] * bad + [True] * good
        label = f"none of {bad} agrees, then all of {good}"
        c.equal(c.call(list(last)), _by_parity(last), label=label)
    with c.part():
        n = c.size(4, 9)
        want = ["own", "accepted"] * n + ["own", "rejected", "rejected"]
        label = "those that agree are the very ones that are made, but for the last two"
        c.equal(c.call([True, False] * n + [False, False]), want, label=label)
        want = ["own", "rejected", "accepted"] + ["own", "accepted"] * (n - 1)
        label = "one place later: the first is rejected, all others accepted"
        c.equal(c.call([False, True] * n), want, label=label)
    with c.part():
        short = [False, *_drafts(c, 2, 0.5)]
        c.equal(c.call(list(short)), _by_parity(short), label=f"a text of four tokens, {short}")
        c.equal(c.call([]), ["own"], label="a text of one token, without a draft")


def _drafts(c, n, share):
    return [bool(x) for x in c.rand(n) < share]


def _by_parity(agreed):
    """Token j + 1 is accepted if the row of agreements that ends at j has an odd length."""
    odd = []
    for j in range(len(agreed)):
        first = max((i + 1 for i in range(j + 1) if not agreed[i]), default=0)
        odd.append((j + 1 - first) % 2 == 1)
    words = ["own"]
    for hit, before in zip(odd, [False, *odd], strict=False):
        words.append("accepted" if hit else "own" if before else "rejected")
    return words
