"""Generation: prefill the prompt once, then one token at a time from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from minids3.infer.cache import make_cache
from minids3.infer.sample import sample
from minids3.model.transformer import Transformer

__all__ = ["TextTokenizer", "generate", "generate_ids", "stream", "stream_to_cell"]


class TextTokenizer(Protocol):
    """What generation needs from a tokenizer."""

    vocab_size: int
    eos_id: int

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of ``text``."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...


@torch.inference_mode()
def _steps(
    model: Transformer,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[Tensor]:
    """Yield the next token of every row ``[B]``, up to ``max_new_tokens`` times."""
    room = model.config.max_position_embeddings - ids.shape[1]
    if ids.shape[1] == 0 or room <= 0:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens; it needs 1 to "
            f"{model.config.max_position_embeddings - 1} so that something can follow"
        )
    steps = min(max_new_tokens, room)
    generator = torch.Generator(ids.device).manual_seed(seed)
    cache = make_cache(
        model.config,
        batch_size=ids.shape[0],
        capacity=ids.shape[1] + steps,
        dtype=model.lm_head.weight.dtype,
        device=ids.device,
    )
    for _ in range(steps):
        hidden = model.hidden_states(ids, cache)[:, -1]  # only the last position needs the head
        token = sample(model.lm_head(hidden), temperature, top_p, generator)
        yield token
        ids = token[:, None]


def generate_ids(
    model: Transformer,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> Tensor:
    """Continue a batch of equally long prompts.

    Args:
        model: in evaluation mode; the cache takes its dtype and device from it.
        ids: ``[B, T]`` int64 prompts.
        max_new_tokens: at most so many are added, fewer if the model's positions run out.
        temperature: 0 for greedy.
        top_p: nucleus size.
        seed: of the draws; same seed, same text.
        eos_id: a row that has drawn it is filled with it; all rows done ends the loop.

    Returns:
        ``[B, T + n]`` int64, prompts included.

    Raises:
        ValueError: an empty or too long prompt, or a setting out of range.
    """
    columns = [ids]
    done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    for token in _steps(model, ids, max_new_tokens, temperature, top_p, seed):
        if eos_id is not None:
            token = token.masked_fill(done, eos_id)
            done = done | (token == eos_id)
        columns.append(token[:, None])
        if eos_id is not None and bool(done.all()):
            break
    return torch.cat(columns, 1)


def stream(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` piece by piece, until the end token or the limit.

    A character whose bytes are spread over several tokens is held back until it is complete.

    Raises:
        ValueError: the tokenizer's vocabulary is not the model's; else as ``generate_ids``.
    """
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{model.config.vocab_size}: load the tokenizer that the model was trained with"
        )
    device = model.lm_head.weight.device
    ids = torch.tensor([tokenizer.encode(prompt, bos=True)], device=device)
    waiting: list[int] = []
    for token in _steps(model, ids, max_new_tokens, temperature, top_p, seed):
        if int(token) == tokenizer.eos_id:
            break
        waiting.append(int(token))
        text = tokenizer.decode(waiting)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            waiting.clear()
            yield text
    if waiting:
        yield tokenizer.decode(waiting)


def generate(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Return the continuation of ``prompt`` (without it); arguments and errors as ``stream``."""
    return "".join(stream(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed))


def stream_to_cell(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Print prompt and continuation as it comes; return the continuation. Else as ``stream``."""
    print(prompt, end="", flush=True)
    pieces = []
    for piece in stream(model, tokenizer, prompt, max_new_tokens, temperature, top_p, seed):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)
