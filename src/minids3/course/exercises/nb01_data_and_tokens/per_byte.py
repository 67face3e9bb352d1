"""Bits per byte."""

from __future__ import annotations

import math

import numpy as np
import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.evals.bits import bits_per_byte as _library


def bits_per_byte(losses, n_tokens, texts):
    """Loss of a model in bits per byte of the text.

    losses: one a batch, the mean over its tokens, in nats
    n_tokens: one a batch, how many tokens that was, control tokens included
    texts: list of strings, what all batches together say, without control
      tokens; they need not be cut as the batches are
    returns a float
    """
    nats = sum(loss * n for loss, n in zip(losses, n_tokens, strict=True))
    n_bytes = sum(len(text.encode()) for text in texts)
    return nats / math.log(2) / n_bytes


def _nats(losses, n_tokens):
    return sum(loss * n for loss, n in zip(losses, n_tokens, strict=True))


def _bytes(texts):
    return sum(len(text.encode()) for text in texts)


def _even_batches(losses, n_tokens, texts):
    mean = sum(losses) / len(losses)
    return mean * sum(n_tokens) / math.log(2) / _bytes(texts)


def _means_only(losses, n_tokens, texts):
    return sum(losses) / math.log(2) / _bytes(texts)


def _characters(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / sum(len(text) for text in texts)


def _nats_per_byte(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / _bytes(texts)


def _times_ln2(losses, n_tokens, texts):
    return _nats(losses, n_tokens) * math.log(2) / _bytes(texts)


def _bits_per_token(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / sum(n_tokens)


def _text_by_text(losses, n_tokens, texts):
    rates = [
        loss * n / math.log(2) / len(text.encode())
        for loss, n, text in zip(losses, n_tokens, texts, strict=False)
    ]
    return sum(rates) / len(rates)


def _ends_counted(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / (_bytes(texts) + len(texts))


def _ends_unpaid(losses, n_tokens, texts):
    mean = _nats(losses, n_tokens) / sum(n_tokens)
    return mean * (sum(n_tokens) - len(texts)) / math.log(2) / _bytes(texts)


def _joined_by_lines(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / len("\n".join(texts).encode())


def _stripped(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / _bytes([text.strip() for text in texts])


def _share(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) / (8 * _bytes(texts))


def _rounded(losses, n_tokens, texts):
    return round(bits_per_byte(losses, n_tokens, texts), 3)


def _whole_bits(losses, n_tokens, texts):
    return _nats(losses, n_tokens) / math.log(2) // _bytes(texts)


def _with_numpy(losses, n_tokens, texts):
    n_bytes = len("".join(texts).encode("utf-8"))
    return float(np.dot(losses, n_tokens) / np.log(2) / n_bytes)


def _with_torch(losses, n_tokens, texts):
    bits = torch.tensor(losses).double() * math.log2(math.e)
    n_bytes = sum(len(bytes(text, "utf8")) for text in texts)
    return ((bits * torch.tensor(n_tokens)).sum() / n_bytes).item()


def _by_weighted_mean(losses, n_tokens, texts):
    all_tokens = sum(n_tokens)
    mean = 0.0
    for i in range(len(losses)):
        mean += losses[i] * n_tokens[i] / all_tokens
    bytes_per_token = len("".join(texts).encode()) / all_tokens
    return mean / bytes_per_token / math.log(2)


def _by_code_length(losses, n_tokens, texts):
    bits = 0
    for loss, n in zip(losses, n_tokens, strict=True):
        bits = bits + n * math.log2(math.exp(loss))
    size = 0
    for text in texts:
        size += len(list(text.encode()))
    return bits / size


@exercise(
    "bits-per-byte",
    solution=bits_per_byte,
    notebook="01_data_and_tokens",
    title="One ruler",
    difficulty=2,
    importance=4,
    minutes=6,
    library=_library,
    hints=(
        "What did the model pay for everything together, in nats? A batch of ten tokens and one "
        "of a thousand each report one mean: how do you get from means to the whole bill? And "
        "what does every team agree on, whatever its tokens?",
        """
        nats    = sum over batches of (mean loss * number of tokens)
        n_bytes = sum over texts of the length of its UTF-8      (text.encode())
        return nats / ln 2 / n_bytes                             (a bit is ln 2 nats)
        """,
    ),
    mutants=[
        Mutant(
            "even_batches",
            _even_batches,
            "You averaged the batches as if they were equally long. A mean over ten tokens counts "
            "ten times, one over a thousand a thousand times.",
        ),
        Mutant(
            "means_only",
            _means_only,
            "You added the means up. A batch has paid its mean for every one of its tokens: "
            "multiply by how many they are.",
        ),
        Mutant(
            "characters",
            _characters,
            "You counted characters. Outside of ASCII a character is two to four bytes: "
            "text.encode() has them.",
        ),
        Mutant(
            "nats_per_byte",
            _nats_per_byte,
            "That is nats per byte. A bit is ln 2 = 0.693 nats, so divide by that.",
        ),
        Mutant(
            "times_ln2",
            _times_ln2,
            "You multiplied by ln 2. A bit is the smaller unit, so there are more bits than nats: "
            "divide.",
        ),
        Mutant(
            "bits_per_token",
            _bits_per_token,
            "That is bits per token, which every tokenizer changes. Divide by the bytes of the "
            "texts.",
        ),
        Mutant(
            "text_by_text",
            _text_by_text,
            "You took batch i for text i, and the mean of their rates. Texts and batches are cut "
            "independently: all bits, over all bytes.",
        ),
        Mutant(
            "ends_counted",
            _ends_counted,
            "You counted a byte for the end of every text. Control tokens cost the model nats but "
            "are no text, and who cut the texts otherwise would get another number.",
        ),
        Mutant(
            "ends_unpaid",
            _ends_unpaid,
            "You subtracted the control tokens from the count. The model paid for them, so their "
            "nats are on the bill.",
        ),
        Mutant(
            "joined_by_lines",
            _joined_by_lines,
            "You put something between the texts before you counted. Those bytes are not in the "
            'texts: join with "", or add up the lengths.',
        ),
        Mutant(
            "stripped",
            _stripped,
            "You cut off the spaces and line breaks at the ends of the texts. The model had to "
            "predict them: they are bytes like any other.",
        ),
        Mutant(
            "share",
            _share,
            "You divided by the bits of the text, eight to a byte. That is how far the text could "
            "be compressed; asked for is the loss per byte.",
        ),
        Mutant(
            "rounded",
            _rounded,
            "You rounded. Losses near zero are numbers, too: round when you print.",
        ),
        Mutant(
            "whole_bits",
            _whole_bits,
            "You used // and lost the fraction. Bits per byte are rarely a whole number: use /.",
        ),
    ],
    alternatives=[
        Alternative("with_numpy", _with_numpy),
        Alternative("with_torch", _with_torch),
        Alternative("by_weighted_mean", _by_weighted_mean),
        Alternative("by_code_length", _by_code_length),
    ],
)
def check_bits_per_byte(c):
    """Unequal batches, texts cut otherwise, other scripts, two notations, a small loss."""
    losses, counts, texts = _report(c, "adeilnorst", 3, 3)
    got = c.call(losses, counts, texts, label="runs on three batches and three texts")
    c.close(got, _by_hand(losses, counts, texts), label="it is all bits over all bytes")
    with c.part():
        losses, counts, texts = _report(c, "adeilnorst", c.size(4, 6), 2)
        got = c.call(losses, counts, texts)
        label = "two texts, and more batches than texts"
        c.close(got, _by_hand(losses, counts, texts), label=label)
    with c.part():
        losses, counts, texts = _report(c, "äé獺水🦊x", 2, 3)
        got = c.call(losses, counts, texts)
        label = "a character of another script is several bytes"
        c.close(got, _by_hand(losses, counts, texts), label=label)
    with c.part():
        losses, counts, texts = _report(c, "ab \n", 2, 4)
        texts = [f"  {text}\n" for text in texts]
        got = c.call(losses, counts, texts)
        label = "spaces and line breaks are bytes"
        c.close(got, _by_hand(losses, counts, texts), label=label)
    with c.part():
        losses, counts, texts = _report(c, "acegikm", 2, 2)
        got = c.call(losses, counts, texts * 2)
        label = "texts that occur twice count twice"
        c.close(got, _by_hand(losses, counts, texts * 2), label=label)
    with c.part():
        coarse = [c.size(5, 60) for _ in range(3)]
        nats = (20 + 90 * c.rand(3)).double().tolist()
        texts = [_text(c, "acegikm", 4 * n) for n in coarse]
        for name, per_token in (("bytes", 4), ("words", 1)):
            counts = [n * per_token for n in coarse]
            losses = [x / n for x, n in zip(nats, counts, strict=True)]
            got = c.call(losses, counts, texts)
            label = f"the same nats, counted in {name}, are the same bits per byte"
            c.close(got, sum(nats) / math.log(2) / (4 * sum(coarse)), label=label)
    with c.part():
        losses, counts, texts = _report(c, "acegikm", 2, 2)
        losses = [loss * 1e-6 for loss in losses]
        got = c.call(losses, counts, texts)
        label = "a loss of a millionth is not zero"
        c.close(got, _by_hand(losses, counts, texts), label=label, atol=0)


def _text(c, letters, n):
    return "".join(letters[i] for i in c.randint(0, len(letters), n).tolist())


def _report(c, letters, batches, n_texts):
    """Losses and sizes of unequal batches, and texts that are cut otherwise."""
    losses = (0.2 + 3 * c.rand(batches)).double().tolist()
    counts = [c.size(3, 9) * 5**i for i in range(batches)]
    return losses, counts, [_text(c, letters, c.size(20, 40) + 7 * i) for i in range(n_texts)]


def _by_hand(losses, counts, texts):
    bits = sum(x * n * 1.4426950408889634 for x, n in zip(losses, counts, strict=True))
    return bits / sum(
        1 + (ord(x) > 0x7F) + (ord(x) > 0x7FF) + (ord(x) > 0xFFFF) for x in "".join(texts)
    )
