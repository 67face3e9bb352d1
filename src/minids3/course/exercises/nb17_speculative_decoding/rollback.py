"""What stays after a check: text, both caches, and what the MTP module reads next."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def after_check(text, drafts, n, token, hidden):
    """What stays after a check, and what the MTP module reads next.

    text: ids known before the step. The pass computed its last id at place
    len(text) - 1 and the k drafts after it, so the main cache now holds
    len(text) + k places. n drafts were accepted; `token` comes after them
    hidden [1 + k, D]: the main model's vectors of the last id and of drafts
    Place i of the MTP module reads hidden vector i and token i + 1. Of the
    main model's vectors it has read those of the text but the last; from
    place len(text) - 1 on it read its own output, to make further drafts.
    returns the new text; how many places of the main cache stay; how many
    of the module's; and the vectors [m, D] that it reads next, with the
    last m ids of the new text
    """
    known = len(text)
    new = text + drafts[:n] + [token]
    return new, known + n, known - 1, hidden[: n + 1]
# fmt: on


def _changed(text, drafts, n, token, hidden, **fields):
    names = ("new", "main", "mtp", "rows")
    right = dict(zip(names, after_check(text, drafts, n, token, hidden), strict=True))
    return tuple((right | fields).values())


def _main_keeps_all(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, main=len(text) + len(drafts))


def _main_keeps_token(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, main=len(text) + n + 1)


def _main_loses_last(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, main=len(text) + n - 1)


def _main_starts_again(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, main=len(text) - 1)


def _mtp_keeps_own(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, mtp=len(text) - 2 + max(1, len(drafts)))


def _mtp_keeps_accepted(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, mtp=len(text) - 1 + n)


def _mtp_as_main(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, mtp=len(text) + n)


def _mtp_one_more(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, mtp=len(text))


def _kept_and_read(text, drafts, n, token, hidden):
    rows = hidden[n : n + 1]
    return _changed(text, drafts, n, token, hidden, mtp=len(text) - 1 + n, rows=rows)


def _mtp_one_short(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, mtp=len(text) - 2)


def _all_vectors(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, rows=hidden)


def _last_vector(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, rows=hidden[n : n + 1])


def _vectors_one_short(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, rows=hidden[:n])


def _drafts_vectors(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, rows=hidden[1 : n + 1])


def _token_lost(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, new=text + drafts[:n])


def _drafts_stay(text, drafts, n, token, hidden):
    return _changed(text, drafts, n, token, hidden, new=[*text, *drafts, token])


def _one_by_one(text, drafts, n, token, hidden):
    new, rows = list(text), [hidden[0]]
    for i in range(n):
        new.append(drafts[i])
        rows.append(hidden[i + 1])
    new.append(token)
    main = len(new) - 1
    return new, main, main - n - 1, torch.stack(rows)


def _from_the_end(text, drafts, n, token, hidden):
    wrong = len(drafts) - n
    new = [*text, *drafts[: len(drafts) - wrong], token]
    rows = hidden.narrow(0, 0, hidden.shape[0] - wrong)
    return new, len(new) - 1, len(new) - 1 - rows.shape[0], rows


@exercise(
    "spec-rollback",
    solution=after_check,
    notebook="17_speculative_decoding",
    title="Two caches, rolled back",
    difficulty=3,
    importance=4,
    minutes=15,
    hints=(
        "Take a text of 10 ids, 2 drafts, 1 accepted. Write down the places 0 to 11 and who has "
        "computed what at each. Which of these rest on a token that is not in the text? Has "
        "anybody computed the new token yet?",
        "new text = text, the first n drafts, token\n"
        "main cache: all of the old text, and n drafts          # token: computed next time\n"
        "module: only places fed with the main model's vectors  # the text but the last\n"
        "vectors = of the last id and of the n drafts           # n + 1 rows",
    ),
    mutants=[
        Mutant(
            "main_keeps_all",
            _main_keeps_all,
            "The main cache still holds rejected drafts. Later tokens would attend to words that "
            "are not in the text.",
        ),
        Mutant(
            "main_keeps_token",
            _main_keeps_token,
            "You counted the new token as cached. Nobody has computed it: it goes through the "
            "model in the next step.",
        ),
        Mutant(
            "main_loses_last",
            _main_loses_last,
            "You dropped a place too many from the main cache: the last accepted one, which would "
            "have to be computed again.",
        ),
        Mutant(
            "main_starts_again",
            _main_starts_again,
            "You rolled the main cache back to before the step. What it computed of accepted "
            "tokens is right and stays.",
        ),
        Mutant(
            "mtp_keeps_own",
            _mtp_keeps_own,
            "The module keeps places that it computed from its own output, to make further "
            "drafts. Now the main model's vectors are there, and replace them.",
        ),
        Mutant(
            "mtp_keeps_accepted",
            _mtp_keeps_accepted,
            "The module keeps a place for every accepted draft. The tokens are right, but what it "
            "read there were not the main model's vectors: drop them and read again.",
        ),
        Mutant(
            "mtp_as_main",
            _mtp_as_main,
            "You cut both caches to the same length. The module lags: place i needs token "
            "i + 1, so it has read only up to the last id but one.",
        ),
        Mutant(
            "kept_and_read",
            _kept_and_read,
            "The module keeps accepted places and goes on with the last vector. It read its own "
            "output there: all n + 1 places must be read again.",
        ),
        Mutant(
            "mtp_one_more",
            _mtp_one_more,
            "The module keeps len(text) places, one too many. The vector of the text's last id was "
            "not there when it read that place.",
        ),
        Mutant(
            "mtp_one_short",
            _mtp_one_short,
            "You dropped a place too many from the module's cache. It has read the vectors of all "
            "ids of the text but the last.",
        ),
        Mutant(
            "all_vectors",
            _all_vectors,
            "You hand over the vectors of rejected drafts as well. Their tokens are gone.",
        ),
        Mutant(
            "last_vector",
            _last_vector,
            "You hand over the last vector only. The module attends to its own past, so it has to "
            "read every place, those of accepted drafts included.",
        ),
        Mutant(
            "vectors_one_short",
            _vectors_one_short,
            "You hand over n vectors. The last id of the text and n drafts are n + 1.",
        ),
        Mutant(
            "drafts_vectors",
            _drafts_vectors,
            "The vector of the text's last id is missing. The pass computed it in this step, so "
            "the module has not read it yet.",
        ),
        Mutant(
            "token_lost",
            _token_lost,
            "The token that the check ended with is missing from the text. Every step makes at "
            "least that one.",
        ),
        Mutant(
            "drafts_stay",
            _drafts_stay,
            "Rejected drafts are still in your text.",
        ),
    ],
    alternatives=[
        Alternative("one_by_one", _one_by_one),
        Alternative("from_the_end", _from_the_end),
    ],
)
def check_after(c):
    """Two, none, all of the drafts accepted; one draft, none; ids that repeat; a text of one id."""
    length, k, width = c.size(7, 12), c.size(4, 5), c.size(3, 5)
    ids = c.randint(100, 999, length + k + 1).tolist()
    text, drafts, token = ids[:length], ids[length:-1], ids[-1]
    hidden = c.randn(1 + k, width)

    def state(label, n, drafts=drafts, hidden=hidden, first=None, text=text):
        got = c.call(text, drafts, n, token, hidden, returns=4, label=first)
        known = len(text)
        kept = [i for i, _ in enumerate([*text, *drafts]) if i < known or i - known < n]
        read = [i for i, _ in enumerate(text) if i + 1 < known]
        c.equal(list(got[0]), [*[[*text, *drafts][i] for i in kept], token], label=f"{label}: text")
        c.equal(list(got[1:3]), [len(kept), len(read)], label=f"{label}: places of both caches")
        rows = [hidden[i].tolist() for i in range(1 + n)]
        c.close(got[3], torch.tensor(rows), label=f"{label}: vectors for the module")

    with c.part():
        state("2 drafts accepted", 2, first="runs on a text, drafts and their vectors")
    with c.part():
        state("none accepted", 0)
    with c.part():
        state("all accepted", k)
    with c.part():
        state("one draft, accepted", 1, drafts[:1], hidden[:2])
    with c.part():
        state("no drafts at all", 0, [], hidden[:1])
    with c.part():
        state("ids that occur again", 1, [token, text[0], *drafts[2:]])
    with c.part():
        state("a text of one id", 1, text=text[:1])
