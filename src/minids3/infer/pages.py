"""Memory for many texts at once: pages that are lent, shared and given back.

A text that may grow to the model's last position would, in one piece, hold that much memory from
the start. In pages it holds what it has used, up to a page, and the same page may serve several
texts that begin alike (Kwon et al. 2023, arXiv 2309.06180). Which page holds which tokens is found
by a digest of everything up to the page's end, since a cached row depends on all tokens before it.

Page 0 is never lent and stays zero: what reads beyond the end of a text reads it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence

import torch
from torch import Tensor

from minids3.config import ModelConfig
from minids3.numerics.pages import packed_bytes

__all__ = ["OutOfPages", "PagePool", "extend_digests", "page_memory"]


class OutOfPages(RuntimeError):
    """Every page is in use; somebody has to give some back first."""


class PagePool:
    """Who holds which page, and which finished pages may be used again."""

    def __init__(self, n_pages: int) -> None:
        """Manage pages 1 to ``n_pages`` - 1; ``ValueError`` if there is not even one."""
        if n_pages < 2:
            raise ValueError(f"n_pages={n_pages} must be 2 or more: page 0 is never lent")
        self.n_pages = n_pages
        self._free = deque(range(1, n_pages))
        self._holders = [0] * n_pages
        self._digest: dict[int, bytes] = {}  # of pages whose content can be found again
        self._found: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by nobody; oldest first

    @property
    def available(self) -> int:
        """How many pages ``take`` could give."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """How many pages somebody holds."""
        return self.n_pages - 1 - self.available

    def take(self) -> int:
        """A page of one's own; the content that was unused for longest is forgotten for it.

        Raises:
            OutOfPages: all are in use.
        """
        if self._free:
            page = self._free.popleft()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._found[self._digest.pop(page)]
        else:
            raise OutOfPages(f"all {self.n_pages - 1} pages are in use")
        self._holders[page] = 1
        return page

    def share(self, digest: bytes) -> int | None:
        """The page with this content, one more time held; None: there is none."""
        page = self._found.get(digest)
        if page is not None:
            self._idle.pop(page, None)
            self._holders[page] += 1
        return page

    def publish(self, page: int, digest: bytes) -> None:
        """Let others find a page that is full and will not change again."""
        if page not in self._digest and digest not in self._found:
            self._digest[page], self._found[digest] = digest, page

    def give_back(self, page: int) -> None:
        """Hold ``page`` once less; its content stays until the room is needed."""
        if self._holders[page] < 1:
            raise ValueError(f"page {page} is held by nobody")
        self._holders[page] -= 1
        if self._holders[page] == 0:
            if page in self._digest:
                self._idle[page] = None
            else:
                self._free.append(page)


def extend_digests(
    digests: list[bytes], tokens: Sequence[int], page: int, ahead: int = 0
) -> list[bytes]:
    """What identifies the content of each full page of a text, itself and all before it.

    Args:
        digests: of the text's first pages; those of later ones are appended.
        tokens: of the text.
        page: tokens of a page.
        ahead: how many tokens after its end a page's content depends on: 1 with an MTP module,
            which reads the token after each position.

    Returns:
        ``digests``.
    """
    while (start := len(digests) * page) + page + ahead <= len(tokens):
        part = ",".join(map(str, tokens[start : start + page + ahead]))
        before = digests[-1] if digests else b""
        digests.append(hashlib.blake2b(before + part.encode(), digest_size=16).digest())
    return digests


def page_memory(
    cfg: ModelConfig,
    n_pages: int,
    page: int,
    layers: int,
    dtype: torch.dtype,
    device: torch.device | str,
    fp8: bool = False,
) -> tuple[Tensor, ...]:
    """What a model's attention remembers, in pages of zeros.

    Latent attention: one tensor ``[L, pages, page, C + R]``, or ``[L, pages, page, bytes]`` uint8
    with ``fp8``. Grouped-query attention: keys and values, each ``[L, pages, page, Hk, d]``.

    Raises:
        ValueError: ``fp8`` without latents, or for a latent that has no FP8 line.
    """
    if cfg.attention == "mla":
        width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        if fp8:
            width = packed_bytes(cfg.kv_lora_rank, cfg.qk_rope_head_dim)
            dtype = torch.uint8
        return (torch.zeros(layers, n_pages, page, width, dtype=dtype, device=device),)
    if fp8:
        raise ValueError("only latents have an FP8 line, and this model keeps keys and values")
    shape = (layers, n_pages, page, cfg.num_key_value_heads, cfg.head_dim)
    return tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
