"""The tokenizer in use: `tokenizers` does the work, our file format and guarantees around it.

The file holds the merges as pairs of ids; everything else (specials, bytes, pattern) is fixed by
`bpe`. Text is always text: a user who types `<|eos|>` gets the characters, not the control token,
unless `allow_special=True` is passed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from minids3.data.bpe import (
    BPE,
    BYTE_ORDER,
    N_SPECIALS,
    PATTERN,
    SPECIALS,
    Pair,
    check_text,
    check_texts,
    check_vocab_size,
    token_id,
)
from minids3.data.files import DataError, read_json, write_atomic

__all__ = ["FORMAT", "Tokenizer", "byte_characters", "train_merges"]

FORMAT = "minids3-bpe-1"
_SPECIAL = re.compile("(" + "|".join(re.escape(name) for name in SPECIALS) + ")")


def byte_characters() -> dict[int, str]:
    """The character by which `tokenizers`, as GPT-2, writes each byte in its vocabulary."""
    table, extra = {}, 0
    for byte in BYTE_ORDER:
        printable = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE
        table[byte] = chr(byte) if printable else chr(256 + extra)
        extra += not printable
    return table


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_merges(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> list[Pair]:
    """Learn merges with the `tokenizers` package, as pairs of ids; contract of `bpe.train_bpe`."""
    check_vocab_size(vocab_size)
    texts = list(check_texts(texts))  # checked here: the package's trainer swallows some errors
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=max(min_frequency, 0),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]
    vocab = learned["vocab"]
    pairs = [m if isinstance(m, list) else m.split(" ") for m in learned["merges"]]
    return [(vocab[left], vocab[right]) for left, right in pairs]


class Tokenizer:
    """Byte-level BPE with eight control tokens; lossless for every string.

    Args:
        merges: pairs of token ids in the order they were learned.

    Raises:
        TypeError, ValueError: as `bpe.BPE`; also if two merges make the same token.
    """

    bos_id, eos_id, pad_id, user_id, assistant_id, fim_begin_id, fim_hole_id, fim_end_id = range(8)

    def __init__(self, merges: Sequence[Pair]) -> None:
        self._bpe = BPE(merges)
        self.merges = list(self._bpe.merges)
        characters = byte_characters()
        names = list(SPECIALS) + [
            "".join(characters[byte] for byte in token)
            for token in self._bpe.token_bytes[N_SPECIALS:]
        ]
        if len(set(names)) != len(names):
            raise ValueError("two merges make the same token: the list of merges is not usable")
        # Control tokens are in the vocabulary but not "added tokens", or text could spell them.
        model = models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in self.merges],
        )
        self.backend = Backend(model)
        self.backend.pre_tokenizer = _pre_tokenizer()
        self.backend.decoder = decoders.ByteLevel()

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self._bpe.token_bytes)

    @property
    def checksum(self) -> str:
        """SHA-256 of what defines the ids; shards carry it, so a wrong vocabulary is noticed."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(
        self, text: str, bos: bool = False, eos: bool = False, allow_special: bool = False
    ) -> list[int]:
        """Token ids of a text; with `allow_special` names such as `<|user|>` become control tokens.

        Raises:
            TypeError: if `text` is not a string.
            ValueError: if it holds lone surrogates, which UTF-8 cannot write.
        """
        check_text(text)
        ids = [self.bos_id] if bos else []
        for part in _SPECIAL.split(text) if allow_special else (text,):
            if allow_special and part in SPECIALS:
                ids.append(SPECIALS.index(part))
            else:
                ids += self.backend.encode(part).ids
        return ids + ([self.eos_id] if eos else [])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, without control tokens.

        Raises:
            TypeError: if `texts` is a single string or holds something else.
            ValueError: if a text holds lone surrogates, which UTF-8 cannot write.
        """
        checked = list(check_texts(texts))
        return [encoding.ids for encoding in self.backend.encode_batch(checked)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; control tokens are left out, or written by name.

        Raises:
            TypeError: if an id is no integer.
            ValueError: for an id outside the vocabulary.
        """
        checked = (token_id(i, self.vocab_size) for i in ids)
        return b"".join(
            b"" if skip_special and i < N_SPECIALS else self._bpe.token_bytes[i] for i in checked
        ).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for (the name, for a control token); errors as `decode`."""
        return self._bpe.token_bytes[token_id(token, self.vocab_size)]

    def to_json(self) -> str:
        """The tokenizer as canonical JSON text."""
        head = {"format": FORMAT, "pattern": PATTERN, "specials": list(SPECIALS)}
        lines = ",\n".join(f"  [{left}, {right}]" for left, right in self.merges)
        return json.dumps(head, indent=1)[:-2] + f',\n "merges": [\n{lines}\n ]\n}}\n'

    def save(self, path: str | Path) -> None:
        """Write the tokenizer file, at once or not at all."""
        write_atomic(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file; DataError if it is not one."""
        path = Path(path)
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path.name} is not a tokenizer file of format {FORMAT}")
        if content.get("pattern") != PATTERN or content.get("specials") != list(SPECIALS):
            raise DataError(f"{path.name} was made for another pattern or other control tokens")
        merges = content.get("merges")
        if not isinstance(merges, list):
            raise DataError(f"{path.name} has no list of merges")
        try:
            return cls(merges)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path.name} is damaged: {error}") from None
