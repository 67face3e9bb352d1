"""Bytes: parameters, optimizer state, and the cache of a generating model.

Cache per token and layer, in numbers: MHA and GQA keep a key and a value per key-value head; MLA
keeps one latent and one rotary key for all heads (TR section 2.1.1; ISCA prints 70.272 KB for
V3).
"""

from __future__ import annotations

from dataclasses import dataclass

from minids3.config import ModelConfig
from minids3.sim.parameters import total_parameters

__all__ = [
    "BYTES",
    "TrainingBytes",
    "attention_flops_per_byte",
    "dtype_bytes",
    "kv_cache_bytes",
    "kv_cache_bytes_per_token",
    "parameter_bytes",
    "training_bytes",
]

BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one number in ``dtype``; ``ValueError`` lists the known ones."""
    if dtype not in BYTES:
        raise ValueError(f"dtype={dtype!r}; choose one of {', '.join(BYTES)}")
    return BYTES[dtype]


def parameter_bytes(cfg: ModelConfig, dtype: str = "bf16") -> int:
    """Return the bytes of the main model's parameters in one dtype."""
    return total_parameters(cfg) * dtype_bytes(dtype)


def kv_cache_bytes(
    attention: str,
    n_layers: int,
    tokens: int,
    *,
    n_heads: int | None = None,
    head_dim: int | None = None,
    v_head_dim: int | None = None,
    n_kv_heads: int | None = None,
    latent: int | None = None,
    rope: int | None = None,
    dtype: str = "bf16",
) -> int:
    """Return the cache's bytes for ``tokens`` tokens.

    ``"mha"`` needs n_heads and head_dim, ``"gqa"`` n_kv_heads and head_dim, ``"mla"`` latent
    and rope (the widths of the latent and of the shared rotary key). Values are as wide as
    keys unless v_head_dim says otherwise. A missing or senseless size raises ``ValueError``.
    """
    if attention == "mha":
        heads, width = _need("mha", n_heads=n_heads, head_dim=head_dim)
        numbers = heads * (width + (v_head_dim or width))
    elif attention == "gqa":
        heads, width = _need("gqa", n_kv_heads=n_kv_heads, head_dim=head_dim)
        numbers = heads * (width + (v_head_dim or width))
    elif attention == "mla":
        numbers = sum(_need("mla", latent=latent, rope=rope))
    else:
        raise ValueError(f"attention={attention!r}; choose 'mha', 'gqa' or 'mla'")
    if n_layers < 1 or tokens < 0:
        raise ValueError(f"n_layers={n_layers} must be 1 or more and tokens={tokens} 0 or more")
    return numbers * n_layers * tokens * dtype_bytes(dtype)


def attention_flops_per_byte(
    attention: str,
    queries: int = 1,
    *,
    n_heads: int,
    head_dim: int | None = None,
    n_kv_heads: int | None = None,
    latent: int | None = None,
    rope: int | None = None,
    dtype: str = "bf16",
) -> float:
    """Return the FLOPs of a decoding step's attention for each byte of cache that it reads.

    Scores and weighted sums of one text's ``queries`` new tokens; the cache is read once for all of
    them and all heads. ``"mla"`` is the absorbed path. A multiply-add is two FLOPs. Sizes and
    errors as ``kv_cache_bytes``.
    """
    if queries < 1 or n_heads < 1:
        raise ValueError(f"queries={queries} and n_heads={n_heads} must be 1 or more")
    read = kv_cache_bytes(
        attention,
        1,
        1,
        n_heads=n_heads,
        head_dim=head_dim,
        n_kv_heads=n_kv_heads,
        latent=latent,
        rope=rope,
        dtype=dtype,
    )
    if attention == "mla":
        content, rotary = _need("mla", latent=latent, rope=rope)
        width = (content + rotary) + content  # a score, a share of the sum
    else:
        width = 2 * _need(attention, head_dim=head_dim)[0]
    return 2 * queries * n_heads * width / read


def _need(attention: str, **sizes: int | None) -> list[int]:
    for name, value in sizes.items():
        if value is None or value < 1:
            raise ValueError(f"a {attention} cache needs {name}, 1 or more; got {value}")
    return [int(value) for value in sizes.values() if value is not None]


def kv_cache_bytes_per_token(cfg: ModelConfig, dtype: str = "bf16") -> int:
    """Return what one token of context costs a generating model of this configuration."""
    if cfg.attention == "mla":
        sizes = {"latent": cfg.kv_lora_rank, "rope": cfg.qk_rope_head_dim}
        return kv_cache_bytes("mla", cfg.num_hidden_layers, 1, dtype=dtype, **sizes)
    sizes = {"n_kv_heads": cfg.num_key_value_heads, "head_dim": cfg.head_dim}
    return kv_cache_bytes("gqa", cfg.num_hidden_layers, 1, dtype=dtype, **sizes)


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that training holds for the parameters alone, before any activation."""

    weights: int
    gradients: int
    master: int
    moments: int

    @property
    def total(self) -> int:
        """All four together."""
        return self.weights + self.gradients + self.master + self.moments


def training_bytes(
    cfg: ModelConfig,
    weights: str = "bf16",
    gradients: str = "fp32",
    master: str | None = "fp32",
    moments: str = "bf16",
) -> TrainingBytes:
    """Return weights, gradients, master copy and Adam's two moments in bytes, nothing sharded.

    The defaults are V3's: FP32 master weights and gradients, BF16 moments (TR section 3.3).
    ``master=None`` means the weights are their own master copy.
    """
    n = total_parameters(cfg)
    return TrainingBytes(
        weights=n * dtype_bytes(weights),
        gradients=n * dtype_bytes(gradients),
        master=0 if master is None else n * dtype_bytes(master),
        moments=2 * n * dtype_bytes(moments),
    )
