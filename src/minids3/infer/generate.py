"""Generation: prefill the prompt once, then one token at a time from the cache.

Small fp32 models on a CPU decode through ``infer.prepared``, latent attention on a GPU through the
paged kernel (``infer.paged``), everything else through the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from minids3.infer.cache import KVCache, LatentCache, make_cache
from minids3.infer.paged import PagedDecoder
from minids3.infer.prepared import PreparedDecoder, why_not_known, why_not_prepared
from minids3.infer.sample import check_settings, sample
from minids3.model.padding import check_mask
from minids3.model.transformer import Transformer

__all__ = ["TextTokenizer", "generate", "generate_ids", "stream", "stream_to_cell"]


class TextTokenizer(Protocol):
    """What generation needs from a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        ...

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of ``text``."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...


Prompts = Sequence["Sequence[int] | Tensor"]
"""Prompts of any lengths: lists of ids, or 1-D tensors."""

WORTH_PREPARING = 4
"""Packing the weights takes as long as one or two steps of the model."""


@torch.inference_mode()
def _steps(
    model: Transformer,
    ids: Tensor,
    real: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    compile: bool = False,
) -> Iterator[Tensor]:
    """Yield the next token of every row ``[B]``, up to ``max_new_tokens`` times.

    ``ids [B, T]`` are padded on the left if at all, ``real [B, T]`` says where they are not.
    """
    check_settings(temperature, top_p)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be 0 or a greater integer")
    room = model.config.max_position_embeddings - ids.shape[1]
    if ids.shape[1] == 0 or room <= 0:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens; it needs 1 to "
            f"{model.config.max_position_embeddings - 1} so that something can follow"
        )
    steps = min(max_new_tokens, room)
    if steps == 0:
        return
    generator = torch.Generator(ids.device).manual_seed(seed)
    capacity = ids.shape[1] + steps
    if compile:  # few shapes, since each is compiled for itself
        capacity = max(64, 1 << (capacity - 1).bit_length())
    cache = make_cache(
        model.config,
        batch_size=ids.shape[0],
        capacity=min(capacity, model.config.max_position_embeddings),
        dtype=model.lm_head.weight.dtype,
        device=ids.device,
    )
    decode: Callable[[Tensor], Tensor] | None = None
    logits = model.lm_head(model.hidden_states(ids, cache, real)[:, -1])
    for step in range(steps):
        token = sample(logits, temperature, top_p, generator)
        yield token
        if step + 1 == steps:
            return
        if decode is None:
            decode = _decoder(model, cache, steps - 1, compile)
        logits = decode(token)


def _decoder(
    model: Transformer, cache: KVCache | LatentCache, steps: int, compile: bool
) -> Callable[[Tensor], Tensor]:
    """From a token ``[B]`` to logits ``[B, V]``, the fastest way for ``steps`` steps."""
    if compile or (steps >= WORTH_PREPARING and why_not_prepared(model) is None):
        return PreparedDecoder(model, cache, compiled=compile)
    if isinstance(cache, LatentCache) and _on_gpu(cache) and why_not_known(model) is None:
        return PagedDecoder(model, cache)
    return lambda token: model.lm_head(model.hidden_states(token[:, None], cache)[:, -1])


def _on_gpu(cache: LatentCache) -> bool:
    return cache.latent.is_cuda


def _left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One batch ``[B, T]`` of 1-D ``rows``, and where it is real; None: everywhere."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    if min(lengths) == 0:
        raise ValueError(f"prompt {lengths.index(0)} has no token; every one needs at least 1")
    batch = torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows])
    if min(lengths) == longest:
        return batch, None
    columns = torch.arange(longest, device=batch.device)
    return batch, columns >= longest - torch.tensor(lengths, device=batch.device)[:, None]


def _row(ids: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """One prompt as a 1-D int64 tensor."""
    try:
        row = torch.as_tensor(ids, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a prompt must be a sequence of token ids, got {ids!r}") from error
    if row.ndim != 1 or (row.numel() and (row.is_floating_point() or row.dtype == torch.bool)):
        raise ValueError(
            f"a prompt must be a sequence of integer token ids, got {row.dtype} of shape "
            f"{list(row.shape)}"
        )
    return row.long()


@overload
def generate_ids(
    model: Transformer,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    eos_id: int | None = ...,
    attention_mask: Tensor | None = ...,
    *,
    compile: bool = ...,
) -> Tensor: ...
@overload
def generate_ids(
    model: Transformer,
    ids: Prompts,
    max_new_tokens: int,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    eos_id: int | None = ...,
    *,
    compile: bool = ...,
) -> list[Tensor]: ...
def generate_ids(
    model: Transformer,
    ids: Tensor | Prompts,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
    attention_mask: Tensor | None = None,
    *,
    compile: bool = False,
) -> Tensor | list[Tensor]:
    """Continue a batch of prompts.

    Prompts of unequal length come as a list, or padded on either side and with an
    ``attention_mask``. Decoded greedily, each is continued as it is alone.

    Args:
        model: in evaluation mode; the cache takes its dtype and device from it.
        ids: ``[B, T]`` int64 prompts, or a list of B sequences of ids.
        max_new_tokens: at most so many are added, fewer if the model's positions run out.
        temperature: 0 for greedy.
        top_p: nucleus size.
        seed: of the draws; same seed and batch, same text.
        eos_id: a row that has drawn it is filled with it; all rows done ends the loop.
        attention_mask: ``[B, T]`` bool or integer beside a tensor, 1 for a real token.
        compile: let ``torch.compile`` fuse the step, for fp32 on a CPU; it needs a C++ compiler and
            takes minutes for the first text of a batch size and length (to a power of two).

    Returns:
        ``[B, T + n]`` int64, prompts included, if ``ids`` is a tensor. Of a list, B 1-D tensors:
        each prompt with its continuation, which ends with the first ``eos_id``.

    Raises:
        ValueError: an empty or too long prompt, a wrong mask, a setting out of range, or
            ``compile`` for a model that ``PreparedDecoder`` does not take.
        RuntimeError: ``compile`` without a C++ compiler, or with a damaged cache.
    """
    if isinstance(ids, Tensor):
        real = None
        if ids.ndim != 2:
            raise ValueError(f"ids must be [B, T] or a list of prompts, got {list(ids.shape)}")
        given: Tensor | list[Tensor] = ids
        if attention_mask is not None:
            real = check_mask(attention_mask, ids, None, 0)
        batch, real = (ids, None) if real is None else _left_padded(_chosen(ids, real))
    else:
        if attention_mask is not None:
            raise ValueError("a list of prompts needs no attention_mask: leave it out")
        given = [_row(row, model.lm_head.weight.device) for row in ids]
        if not given:
            raise ValueError("there is no prompt: the list is empty")
        batch, real = _left_padded(given)
    new: list[Tensor] = []
    done = torch.zeros(batch.shape[0], dtype=torch.bool, device=batch.device)
    settings = (max_new_tokens, temperature, top_p, seed, compile)
    for token in _steps(model, batch, real, *settings):
        if eos_id is not None:
            token = token.masked_fill(done, eos_id)
            done = done | (token == eos_id)
        new.append(token)
        if eos_id is not None and bool(done.all()):
            break
    added = torch.stack(new, 1) if new else batch[:, :0]
    if isinstance(given, Tensor):
        return torch.cat((given, added), 1)
    ends = [_length(row, eos_id) for row in added]
    return [
        torch.cat((prompt, row[:end])) for prompt, row, end in zip(given, added, ends, strict=True)
    ]


def _chosen(ids: Tensor, real: Tensor) -> list[Tensor]:
    """The real tokens of every row."""
    return [row[keep] for row, keep in zip(ids, real, strict=True)]


def _length(row: Tensor, eos_id: int | None) -> int:
    """How many tokens there are up to the first ``eos_id``, itself included."""
    tokens = row.tolist()
    return tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)


def stream(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    compile: bool = False,
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
    for token in _steps(model, ids, None, max_new_tokens, temperature, top_p, seed, compile):
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
    *,
    compile: bool = False,
) -> str:
    """Return the continuation of ``prompt`` (without it); arguments and errors as ``stream``."""
    settings = (max_new_tokens, temperature, top_p, seed)
    return "".join(stream(model, tokenizer, prompt, *settings, compile=compile))


def stream_to_cell(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    compile: bool = False,
) -> str:
    """Print prompt and continuation as it comes; return the continuation. Else as ``stream``."""
    print(prompt, end="", flush=True)
    pieces = []
    settings = (max_new_tokens, temperature, top_p, seed)
    for piece in stream(model, tokenizer, prompt, *settings, compile=compile):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)
