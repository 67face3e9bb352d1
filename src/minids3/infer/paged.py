"""One pass of a model over tokens of many texts, each with its own past in pages.

The tokens of all texts lie in one list ``[N]``: projections and experts do not care whose they are,
and read the weights once for all. Only attention looks at texts, and does so in groups that
have the same number of new tokens, so that a group is a rectangle.

Few new tokens attend to the latents themselves (absorbed; on a GPU by ``kernels.attention``), many
rebuild keys and values: ``LatentAttention.absorbing_is_cheaper`` says where the border is. The new
tokens of a text see its past and each other causally.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minids3.infer.cache import LatentCache
from minids3.infer.prepared import PreparedBlock, PreparedNorm, why_not_prepared
from minids3.model.block import Block
from minids3.model.transformer import Transformer
from minids3.nn import GroupedQueryAttention, LatentAttention
from minids3.nn.attention import causal_sdpa
from minids3.ops.attention import latent_decode
from minids3.ref.attention import pack_latent_ref, unpack_latent_ref

__all__ = ["Group", "PagedDecoder", "PagedModel", "Pass", "Piece"]


@dataclass(frozen=True)
class Piece:
    """The new tokens of one text.

    tokens: their ids. start: the first one's position. pages: of the text, room for all of them
    included.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]

    @property
    def stop(self) -> int:
        """Position after the last new token."""
        return self.start + len(self.tokens)


@dataclass(eq=False)
class Group:
    """Texts with equally many new tokens, their rows one after the other.

    n_texts, n_new: B texts with T new tokens each. rows: where they lie in the pass. page: tokens
    of a page. table ``[B, pages]`` and lengths ``[B]`` as ``latent_decode`` takes them. longest,
    ragged: what is known of the lengths without asking the device.
    """

    n_texts: int
    n_new: int
    rows: slice
    page: int
    table: Tensor
    lengths: Tensor
    longest: int
    ragged: bool

    @classmethod
    def of(cls, pieces: Sequence[Piece], first_row: int, page: int, device: torch.device) -> Group:
        """The group of ``pieces``, all of one length."""
        n_texts, n_new = len(pieces), len(pieces[0].tokens)
        stops = [piece.stop for piece in pieces]
        longest = max(stops)
        used = -(-longest // page)
        tables = [list(piece.pages[:used]) for piece in pieces]
        padded = [table + [0] * (used - len(table)) for table in tables]
        return cls(
            n_texts,
            n_new,
            slice(first_row, first_row + n_texts * n_new),
            page,
            torch.tensor(padded, dtype=torch.int32, device=device),
            torch.tensor(stops, dtype=torch.int32, device=device),
            longest,
            min(stops) != longest,
        )

    @functools.cached_property
    def slots(self) -> Tensor:
        """Where each text's positions lie, ``[B * S]``; those beyond its end are page 0's."""
        position = torch.arange(self.longest, device=self.table.device)
        slots = self.table.long()[:, position // self.page] * self.page + position % self.page
        if self.ragged:
            slots = slots.masked_fill(position >= self.lengths[:, None], 0)
        return slots.flatten()

    @functools.cached_property
    def visible(self) -> Tensor | None:
        """Which keys each query sees, ``[B, 1, T, S]`` bool; None: all."""
        if self.n_new == 1 and not self.ragged:
            return None
        new = torch.arange(self.n_new, device=self.table.device)
        last = self.lengths[:, None] - self.n_new + new
        position = torch.arange(self.longest, device=self.table.device)
        return (position <= last[..., None])[:, None]

    @functools.cached_property
    def unseen(self) -> Tensor | None:
        """What ``visible`` adds to scores, ``[B, T, S]``: 0, and -inf where a key is not seen."""
        if self.visible is None:
            return None
        zeros = torch.zeros(self.visible[:, 0].shape, device=self.table.device)
        return zeros.masked_fill_(~self.visible[:, 0], -torch.inf)

    def gather(self, rows: Tensor) -> Tensor:
        """The texts' rows ``[B, S, ...]`` of a layer's ``rows [pages * page, ...]``."""
        return rows.index_select(0, self.slots).unflatten(0, (self.n_texts, self.longest))


@dataclass(eq=False)
class Pass:
    """New tokens of several texts, to be computed together.

    ids, positions, slots ``[N]``: what the tokens are, where they stand, and where in the pages
    they are remembered. ``order[i]``: where the rows of the i-th given piece are.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: Sequence[Group]
    order: Sequence[slice] = ()

    @classmethod
    def of(cls, pieces: Sequence[Piece], page: int, device: torch.device) -> Pass:
        """A pass over ``pieces`` of any lengths."""
        by_length: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            by_length.setdefault(len(piece.tokens), []).append(i)
        groups: list[Group] = []
        order: list[slice] = [slice(0)] * len(pieces)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for members in by_length.values():
            group = [pieces[i] for i in members]
            groups.append(Group.of(group, len(ids), page, device))
            for i, piece in zip(members, group, strict=True):
                order[i] = slice(len(ids), len(ids) + len(piece.tokens))
                ids += piece.tokens
                for position in range(piece.start, piece.stop):
                    positions.append(position)
                    slots.append(piece.pages[position // page] * page + position % page)

        def whole(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return cls(whole(ids), whole(positions), whole(slots), groups, order)

    def store(self, rows: Tensor, new: Tensor) -> None:
        """Remember ``new [N, ...]`` in a layer's ``rows [pages * page, ...]``."""
        rows.index_copy_(0, self.slots, new.to(rows.dtype))


class PagedModel:
    """A model and its memory in pages.

    Small fp32 models on a CPU run with packed weights (``infer.prepared``), all others through
    their own layers; the numbers are the same up to the order of summation.
    """

    def __init__(
        self,
        model: Transformer,
        memory: tuple[Tensor, ...],
        page: int,
        drafts: bool = False,
        prepare: bool | None = None,
    ) -> None:
        """Pack what can be packed.

        Args:
            model: in evaluation mode.
            memory: of ``page_memory``, with a layer more if there are drafts.
            page: tokens of a page.
            drafts: whether the first MTP module runs as well.
            prepare: None: where ``why_not_prepared`` has nothing against it.
        """
        self.model, self.memory, self.page = model, memory, page
        self.rows = [[part.flatten(0, 1) for part in layer] for layer in zip(*memory, strict=True)]
        self.device = model.lm_head.weight.device
        self.packs = memory[0].dtype == torch.uint8
        modules: list[Any] = list(model.mtp)[:1] if drafts else []
        blocks = self._blocks = [*model.layers, *(module.block for module in modules)]
        for block in blocks:
            if not isinstance(block, Block) or not isinstance(
                block.self_attn, LatentAttention | GroupedQueryAttention
            ):
                raise ValueError(
                    "pages are known to the library's own layers only; generate_ids runs others"
                )
        if prepare is None:
            prepare = why_not_prepared(model, drafts) is None and not self.packs
        self.prepared: list[PreparedBlock] | None = None
        if prepare:
            with torch.no_grad():
                self.prepared = [PreparedBlock(block) for block in blocks]
                self.final_norm = PreparedNorm(model.norm)
            repeat = model.config.rope_interleave
            self.cos, self.sin = (
                t.repeat_interleave(2, -1) if repeat else torch.cat((t, t), -1)
                for t in (model.rope_cos, model.rope_sin)
            )
        self.layers = len(model.layers)

    def hidden(self, batch: Pass) -> Tensor:
        """The main model's last hidden vectors ``[N, D]`` after the final norm."""
        x = F.embedding(batch.ids, self.model.embed_tokens.weight)
        if self.prepared is not None:
            place = self._place(batch)
            for block in self.prepared[: self.layers]:
                x = block(x, place)
            return self.final_norm(x)
        for layer in range(self.layers):
            x = self._block(layer, x, batch)
        return self.model.norm(x)

    def draft(self, hidden: Tensor, batch: Pass) -> Tensor:
        """The first MTP module's hidden vectors ``[N, D]``, ready for the head.

        ``hidden [N, D]`` belongs to the pass's positions, its ids are the tokens *after* these.
        """
        module: Any = self.model.mtp[0]
        embedding = F.embedding(batch.ids, self.model.embed_tokens.weight)
        x = module.eh_proj(torch.cat((module.enorm(embedding), module.hnorm(hidden)), -1))
        if self.prepared is not None:
            return module.norm(self.prepared[self.layers](x, self._place(batch)))
        return module.norm(self._block(self.layers, x, batch))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden vectors."""
        return self.model.lm_head(hidden)

    def _place(self, batch: Pass) -> _PagedPlace:
        return _PagedPlace(batch, self.rows, self.cos[batch.positions], self.sin[batch.positions])

    def _block(self, layer: int, x: Tensor, batch: Pass) -> Tensor:
        """One layer, or the MTP module's as the one after the last: ``[N, D]``."""
        block: Any = self._blocks[layer]
        cos, sin = self.model.rope_cos[batch.positions], self.model.rope_sin[batch.positions]
        h = block.input_layernorm(x)[None]  # one text, as far as projections are concerned
        attend = self._latent if isinstance(block.self_attn, LatentAttention) else self._grouped
        x = x + attend(block.self_attn, h, cos, sin, batch, layer)
        return x + block.mlp(block.post_attention_layernorm(x))

    def _latent(
        self,
        attention: LatentAttention,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: Pass,
        layer: int,
    ) -> Tensor:
        """Latent attention of ``h [1, N, D]``; returns ``[N, D]``."""
        q_nope, q_rope = attention.queries(h, cos, sin)  # [1, H, N, ..]
        latent = attention.compress(h, cos, sin)[0]
        memory, known = self.memory[0][layer], self.rows[layer][0]
        batch.store(known, pack_latent_ref(latent, attention.rank) if self.packs else latent)
        out = h.new_empty(h.shape[1], attention.n_heads * attention.v_dim)
        for group in batch.groups:
            nope, rope = (
                q[0, :, group.rows].unflatten(1, (group.n_texts, group.n_new)).transpose(0, 1)
                for q in (q_nope, q_rope)
            )  # [B, H, T, ..]
            absorb = attention.absorb
            if absorb is None:
                absorb = attention.absorbing_is_cheaper(group.n_new, group.longest)
            if absorb:
                mean = latent_decode(
                    attention.fold_queries(nope, rope).transpose(1, 2).contiguous(),
                    memory,
                    group.table,
                    group.lengths,
                    rank=attention.rank,
                    scale=attention.scale,
                )
                part = attention.unfold_values(mean.transpose(1, 2))
            else:
                rows = group.gather(known)
                if self.packs:
                    rows = unpack_latent_ref(rows, attention.rank).to(nope.dtype)
                part = attention.attend_naive(nope, rope, rows, group.visible)
            out[group.rows] = part.transpose(1, 2).flatten(0, 1).flatten(1)
        return attention.o_proj(out)

    def _grouped(
        self,
        attention: GroupedQueryAttention,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: Pass,
        layer: int,
    ) -> Tensor:
        """Grouped-query attention of ``h [1, N, D]``; returns ``[N, D]``."""
        q, k, v = attention.project(h, cos, sin)  # [1, heads, N, d]
        for part, new in zip(self.rows[layer], (k, v), strict=True):
            batch.store(part, new[0].transpose(0, 1))
        out = h.new_empty(h.shape[1], attention.o_proj.in_features)
        for group in batch.groups:
            rows = q[0, :, group.rows].unflatten(1, (group.n_texts, group.n_new)).transpose(0, 1)
            keys, values = (group.gather(part).transpose(1, 2) for part in self.rows[layer])
            part = causal_sdpa(rows, keys, values, visible=group.visible)
            out[group.rows] = part.transpose(1, 2).flatten(0, 1).flatten(1)
        return attention.o_proj(out)


class _PagedPlace:
    """What a ``PreparedBlock`` asks about tokens of many texts; ``prepared._Place`` is of one."""

    index = None

    def __init__(
        self, batch: Pass, rows: Sequence[Sequence[Tensor]], cos: Tensor, sin: Tensor
    ) -> None:
        self.batch, self.rows, self.cos, self.sin = batch, rows, cos[:, None], sin[:, None]

    def rotated(self, x: Tensor, turned: Tensor) -> Tensor:
        """RoPE of ``x [N, heads, R]``, given its quarter turn."""
        return torch.addcmul(x * self.cos, turned, self.sin)

    def mean_latent(self, layer: int, q: Tensor, new: Tensor, rank: int) -> Tensor:
        """Mean latents ``[N, H, C]`` of ``q [N, H, C + R]``, after storing ``new [N, C + R]``."""
        (rows,) = self.rows[layer]
        self.batch.store(rows, new)
        parts = []
        for group in self.batch.groups:
            keys = group.gather(rows)  # [B, S, C + R]
            queries = q[group.rows].reshape(group.n_texts, -1, q.shape[-1])  # [B, T * H, C + R]
            weights = _softmax(queries @ keys.mT, group)
            parts.append((weights @ keys[..., :rank]).view(-1, q.shape[1], rank))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def mean_value(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mean values ``[N, Hk, H / Hk, d]`` of ``q``, after storing ``k`` and ``v [N, Hk, d]``."""
        for rows, new in zip(self.rows[layer], (k, v), strict=True):
            self.batch.store(rows, new)
        parts = []
        for group in self.batch.groups:
            keys, values = (group.gather(r).transpose(1, 2) for r in self.rows[layer])
            rows = q[group.rows].unflatten(0, (group.n_texts, group.n_new)).transpose(1, 2)
            weights = _softmax(rows.flatten(2, 3) @ keys.mT, group)  # [B, Hk, T * H / Hk, S]
            mean = (weights @ values).unflatten(2, (group.n_new, -1))
            parts.append(mean.transpose(1, 2).flatten(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _softmax(scores: Tensor, group: Group) -> Tensor:
    """Weights of ``scores [B, ..., T * heads, S]`` over what the queries see; overwrites them."""
    unseen = group.unseen
    if unseen is not None:
        if group.n_new > 1:
            unseen = unseen.repeat_interleave(scores.shape[-2] // group.n_new, 1)
        scores.add_(unseen if scores.ndim == 3 else unseen[:, None])
    return scores.softmax(-1)


class PagedDecoder:
    """Logits of the next token from a filled cache of latents, by the kernel of paged decoding.

    The cache is looked at as pages, one for each text and as long as its capacity. Padding, which
    pages do not know, is closed up first; from then on the cache belongs to the decoder.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, cache: LatentCache) -> None:
        """Take over ``cache``; ``ValueError`` if the model has layers of somebody else's."""
        self.cache, device = cache, cache.latent.device
        self.model = PagedModel(model, (cache.latent,), cache.capacity, prepare=False)
        texts = torch.arange(cache.batch_size, device=device)
        self.table, self.first_slots = texts[:, None].int(), texts * cache.capacity
        self.lengths = torch.full_like(texts, cache.length)
        self.longest, self.ragged = cache.length, False
        if cache.real is not None:
            self.lengths = cache.real.sum(-1)
            self.longest, shortest = int(self.lengths.max()), int(self.lengths.min())
            self.ragged = shortest != self.longest
            order = (~cache.real).int().argsort(dim=-1, stable=True)[..., None]  # real ones first
            for latent in cache.latent[:, :, : cache.length]:
                latent.copy_(latent.gather(1, order.expand_as(latent)))

    def __call__(self, token: Tensor) -> Tensor:
        """Logits ``[B, V]`` after one more ``token [B]`` of every text."""
        if self.longest >= self.cache.capacity:
            raise ValueError(f"the cache holds {self.cache.capacity} positions, all are taken")
        positions = self.lengths
        self.lengths, self.longest = positions + 1, self.longest + 1
        group = Group(
            n_texts=len(token),
            n_new=1,
            rows=slice(0, len(token)),
            page=self.cache.capacity,
            table=self.table,
            lengths=self.lengths.int(),
            longest=self.longest,
            ragged=self.ragged,
        )
        batch = Pass(token, positions, self.first_slots + positions, [group])
        return self.model.logits(self.model.hidden(batch))
