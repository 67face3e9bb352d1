r"""Byte-level byte-pair encoding, ours: short enough to read, fast enough to use once.

Recipe (Sennrich, Haddow and Birch 2016, on bytes as in GPT-2):

1. cut the text into pieces that merges never cross (`PATTERN`): words with the space before them,
   single digits, runs of punctuation, line breaks with the indentation that follows;
2. every piece starts as its UTF-8 bytes, one token each, so nothing is ever unknown;
3. count adjacent pairs over all pieces, merge the most frequent pair into a new token, repeat.

Ids: `N_SPECIALS` control tokens, then 256 bytes, then one token per merge. Bytes are numbered as
the `tokenizers` package numbers them (printable ones first), and ties are broken as it does:
highest count, then smallest pair of ids. So both give the same ids, which a test proves. `heapq`
keeps the candidates; counts that went out of date are corrected when they come up, as in that
package.
"""

from __future__ import annotations

import heapq
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

__all__ = [
    "BPE",
    "BYTE_ORDER",
    "BYTE_TO_ID",
    "N_SPECIALS",
    "PATTERN",
    "SPECIALS",
    "Pair",
    "check_text",
    "check_texts",
    "check_vocab_size",
    "merge_pair",
    "piece_ids",
    "split_pieces",
    "token_id",
    "train_bpe",
]

SPECIALS = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|fim_begin|>",
    "<|fim_hole|>",
    "<|fim_end|>",
)
N_SPECIALS = len(SPECIALS)

# ASCII classes only, so that Python's `re` and the regular expressions of `tokenizers` agree.
# Every character falls into exactly one class, so the pieces joined are the text.
PATTERN = r" ?[A-Za-z]+|[0-9]| ?[^A-Za-z0-9 \t\r\n]+|[\r\n]+[ \t]*|[ \t]+"
_PIECES = re.compile(PATTERN)

# GPT-2's order: printable bytes stand for themselves and come first, the others follow.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER: tuple[int, ...] = (*_PRINTABLE, *(b for b in range(256) if b not in set(_PRINTABLE)))
BYTE_TO_ID: dict[int, int] = {byte: N_SPECIALS + rank for rank, byte in enumerate(BYTE_ORDER)}

Pair = tuple[int, int]
MAX_BYTES = 1 << 24  # of all tokens together; 40 doublings of a token would fill any memory


def check_text(text: Any) -> str:
    """Refuse what is no text.

    Raises:
        TypeError: if `text` is not a string.
        ValueError: if it holds lone surrogates, which UTF-8 cannot write.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a string of text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text is not valid Unicode at character {error.start}: it holds half of a surrogate "
            "pair, and text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it"
        ) from None
    return text


def check_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, each checked; one string, whose letters would pass for texts, is refused."""
    if isinstance(texts, str | bytes):
        raise TypeError("expected a list of texts, got a single one: write [text]")
    return map(check_text, texts)


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a size that is no whole number, or leaves no room for the bytes."""
    if not isinstance(vocab_size, int):
        raise TypeError(f"vocab_size must be a whole number, got {vocab_size!r}")
    first = N_SPECIALS + 256
    if vocab_size < first:
        raise ValueError(
            f"vocab_size must be at least {first} (specials and bytes), got {vocab_size}"
        )


def token_id(value: Any, vocab_size: int) -> int:
    """A token id as an int.

    Raises:
        TypeError: if it is no integer (of Python, NumPy or PyTorch).
        ValueError: if it is outside the vocabulary.
    """
    try:
        token = operator.index(value)
    except (TypeError, ValueError):
        raise TypeError(f"a token id is an integer, got {value!r}") from None
    if not 0 <= token < vocab_size:
        raise ValueError(f"token {token} is outside the vocabulary of {vocab_size}")
    return token


def split_pieces(text: str) -> list[str]:
    """Cut a text into the pieces that merges never cross; joined they are the text again."""
    return _PIECES.findall(text)


def piece_ids(piece: str) -> list[int]:
    """The UTF-8 bytes of a piece as token ids."""
    return [BYTE_TO_ID[byte] for byte in piece.encode("utf-8")]


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace every occurrence of `pair` by `new_id`, from left to right."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> list[Pair]:
    """Learn merges from texts until the vocabulary is full or no pair is frequent enough.

    Args:
        texts: any number of strings.
        vocab_size: specials + 256 bytes + merges; the i-th merge makes token
            `N_SPECIALS + 256 + i`.
        min_frequency: a pair must occur this often.

    Raises:
        TypeError: if `texts` is a single string or holds something else.
        ValueError: if `vocab_size` leaves no room for the bytes, or a text is not valid Unicode.
    """
    check_vocab_size(vocab_size)
    first = N_SPECIALS + 256
    pieces = Counter(piece for text in check_texts(texts) for piece in split_pieces(text))
    words = [piece_ids(piece) for piece in pieces]
    multiplicity = list(pieces.values())

    counts: dict[Pair, int] = defaultdict(int)
    homes: dict[Pair, set[int]] = defaultdict(set)  # the words a pair occurs in
    for index, (word, times) in enumerate(zip(words, multiplicity, strict=True)):
        for pair in pairwise(word):
            counts[pair] += times
            homes[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while len(merges) < vocab_size - first and heap:
        negative, pair = heapq.heappop(heap)
        if -negative != counts[pair]:  # out of date: put it back where it belongs now
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        if -negative < max(min_frequency, 1):
            break
        new_id = first + len(merges)
        merges.append(pair)
        touched: set[Pair] = set()
        for index in homes.pop(pair):
            old, times = words[index], multiplicity[index]
            new = merge_pair(old, pair, new_id)
            for gone in pairwise(old):
                counts[gone] -= times
            for come in pairwise(new):
                counts[come] += times
                homes[come].add(index)
                if new_id in come:
                    touched.add(come)
            words[index] = new
        for come in touched:
            heapq.heappush(heap, (-counts[come], come))
    return merges


@dataclass
class BPE:
    """Encoder and decoder for a list of merges, in plain Python.

    Raises:
        TypeError: if a merge is not a pair of whole numbers.
        ValueError: if a pair occurs twice, uses a token that does not exist yet, or the tokens
            grow beyond all measure.
    """

    merges: Sequence[Pair]
    rank: dict[Pair, int] = field(init=False)
    token_bytes: list[bytes] = field(init=False)
    _cache: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.merges = [_pair(merge) for merge in self.merges]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        if len(self.rank) != len(self.merges):
            raise ValueError("the list of merges contains a pair twice")
        self.token_bytes = [name.encode() for name in SPECIALS]
        self.token_bytes += [bytes([byte]) for byte in BYTE_ORDER]
        size = 0
        for left, right in self.merges:
            if not N_SPECIALS <= min(left, right) <= max(left, right) < len(self.token_bytes):
                raise ValueError(f"merge ({left}, {right}) uses a token that does not exist yet")
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
            size += len(self.token_bytes[-1])
            if size > MAX_BYTES:
                raise ValueError(f"the tokens are longer than {MAX_BYTES:,} bytes together")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text: per piece, apply the earliest-learned merge until none applies.

        Raises:
            TypeError, ValueError: as `check_text`.
        """
        check_text(text)
        ids: list[int] = []
        for piece in split_pieces(text):
            if piece not in self._cache:
                self._cache[piece] = self.encode_piece(piece)
            ids += self._cache[piece]
        return ids

    def encode_piece(self, piece: str) -> list[int]:
        """Token ids of one piece."""
        ids = piece_ids(piece)
        while len(ids) > 1:
            best = min(pairwise(ids), key=lambda p: self.rank.get(p, len(self.rank)))
            if best not in self.rank:
                break
            ids = merge_pair(ids, best, N_SPECIALS + 256 + self.rank[best])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TypeError, ValueError: as `token_id`.
        """
        known = self.token_bytes
        found = b"".join(known[token_id(i, len(known))] for i in ids)
        return found.decode("utf-8", errors="replace")


def _pair(merge: Any) -> Pair:
    """A merge as two ints."""
    if not isinstance(merge, tuple | list) or len(merge) != 2:
        raise TypeError(f"a merge is a pair of token ids, got {str(merge)[:60]}")
    try:
        return operator.index(merge[0]), operator.index(merge[1])
    except TypeError:
        raise TypeError(f"a merge is a pair of token ids, got {str(merge)[:60]}") from None
