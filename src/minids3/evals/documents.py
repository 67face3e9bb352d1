"""Is what a model writes exactly right? The grammars can tell, to the letter.

Three measures of a model of the workbook's corpora: how many of the documents it writes could be
their grammar's; how many of the sums that it is asked it gets right; and, in the command, how often
the second token that its MTP module drafts is its own choice. A model a few hundredths of a nat
above the floor still errs somewhere in many a long document, so the first is the strictest.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch

from minids3.data import Tokenizer, corpora
from minids3.data.corpora import ALL_DOMAINS
from minids3.data.corpora.arithmetic import answer
from minids3.infer import generate_ids
from minids3.model import Transformer

__all__ = ["domain_of", "grammatical", "grammatical_share", "sample_documents", "sums_right"]

FIRST_WORDS = {
    "arithmetic": ("Add", "Subtract", "Multiply"),
    "code": ("def ",),
    "facts": ("Ask: ",),
    "notes": ("Notes",),
}
"""How the documents of a domain begin; stories have many openings, and are what is left."""


def sample_documents(
    model: Transformer,
    tokenizer: Tokenizer,
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
    limit: int = 400,
) -> list[str]:
    """``n`` documents from nothing but ``<|bos|>``; one that does not end within ``limit`` is cut.

    Args:
        model: in evaluation mode.
        tokenizer: of its vocabulary.
        n: how many.
        temperature: 1 is what the model believes.
        seed: of the draws.
        limit: tokens.
    """
    start = torch.full((n, 1), tokenizer.bos_id, device=model.lm_head.weight.device)
    limit = min(limit, model.config.max_position_embeddings - 1)
    ids = generate_ids(model, start, limit, temperature, seed=seed, eos_id=tokenizer.eos_id)
    texts = []
    for row in ids[:, 1:].tolist():
        end = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
        texts.append(tokenizer.decode(row[:end], skip_special=False))
    return texts


def domain_of(text: str) -> str:
    """The domain that a document's first words belong to."""
    for domain, words in FIRST_WORDS.items():
        if text.startswith(words):
            return domain
    return "stories"


def grammatical(text: str) -> bool:
    """Whether some grammar of the workbook could have written exactly this document."""
    try:
        corpora.score(domain_of(text), text)
    except ValueError:
        return False
    return True


def grammatical_share(texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Per domain: how many documents are grammatical, of how many that begin like it."""
    found = {domain: (0, 0) for domain in ALL_DOMAINS}
    for text in texts:
        right, count = found[domain_of(text)]
        found[domain_of(text)] = right + grammatical(text), count + 1
    return found


def sums_right(
    model: Transformer, tokenizer: Tokenizer, n: int = 200, seed: int = 0
) -> tuple[int, int]:
    """How many of ``n`` calculations of the trained range the model gets right, decoding greedily.

    Each is a question drawn anew, sums, differences and products as in the corpus; the model writes
    the working and the answer, and only the answer counts.
    """
    rng = random.Random(f"sums:{seed}")
    prompts, wanted = [], []
    for _ in range(n):
        document = corpora.draw(rng, {"arithmetic": 1.0})
        question = document.text.split("\n")[0]
        sign = question.split(".")[0]
        a, b = map(int, re.findall(r"\d+", question))
        prompts.append(tokenizer.encode(question + "\n", bos=True))
        wanted.append(answer(sign, a, b))
    right = 0
    found = generate_ids(model, prompts, 110, eos_id=tokenizer.eos_id)
    for ids, number in zip(found, wanted, strict=True):
        lines = tokenizer.decode(ids.tolist()).split("\n")
        right += lines[-1] == f"A: {number}"
    return right, n
