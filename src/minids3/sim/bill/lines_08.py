"""Notebook 08: what eight bits instead of sixteen halve, what they double, and what they do not.

Halved are the bytes of every operand, nearly: scales travel along. Doubled is the peak rate of the
tensor cores (datasheet, MEM), for the products that are computed in FP8 at all (TR section 3.3).
"""

from __future__ import annotations

from minids3.config import ModelConfig, get_config
from minids3.sim import flops, parameters
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import SEQ_LEN
from minids3.sim.hardware import H800

__all__ = ["bytes_per_number", "fp8_share", "line_08", "speed_limit"]

# Components whose products stay in BF16 or FP32 (TR section 3.3.1); the attention core does, too.
_EXCLUDED = ("output head", "router weight")


def bytes_per_number(block: tuple[int, int]) -> float:
    """Return the bytes of an E4M3 number and its part of the block's fp32 scale."""
    rows, columns = block
    if min(block) < 1:
        raise ValueError(f"block={block} must have at least one row and one column")
    return 1 + 4 / (rows * columns)


def fp8_share(cfg: ModelConfig, seq_len: int = SEQ_LEN) -> float:
    """Return the part of the training FLOPs that are products in FP8, causal attention counted."""
    kept = sum(p.activated_total for p in parameters.components(cfg) if p.name in _EXCLUDED)
    in_fp8 = 6 * (parameters.matmul_parameters(cfg) - kept)
    return in_fp8 / flops.training_flops_per_token(cfg, seq_len, "causal")


def speed_limit(share: float, rate: float) -> float:
    """Return how many times as fast all is if ``share`` of it runs at ``rate`` times the speed.

    Raises ``ValueError`` for a share outside 0 to 1 or a rate that is not positive.
    """
    if not 0 <= share <= 1 or rate <= 0:
        raise ValueError(f"share={share} must lie in 0..1 and rate={rate} above 0")
    return 1 / (1 - share + share / rate)


@entry("08")
def line_08() -> Line:
    """Bound the gain in arithmetic time, and count the bytes of an operand with its scales."""
    share = fp8_share(get_config("v3_671b"))
    assert H800.fp8_flops is not None
    assert H800.bf16_flops is not None
    rate = H800.fp8_flops / H800.bf16_flops
    limit = speed_limit(share, rate)
    tile, block = bytes_per_number((1, 128)), bytes_per_number((128, 128))
    return Line(
        notebook="08",
        title="Eight bits instead of sixteen: at most so many times as fast",
        value=limit,
        unit="times",
        formula=(
            f"1 / ({100 * (1 - share):.1f} % + {100 * share:.1f} % / {rate:.2f}): the FLOPs that "
            f"stay in BF16, and those in FP8 at {rate:.2f} times the peak. Bytes per number "
            f"{tile:.3f} (activations) and {block:.4f} (weights) instead of 2"
        ),
        source="C, minids3.sim.flops; TR (what is FP8); peaks: datasheet, MEM",
        kind="computed",
        leaves_out=(
            "that a kernel is not at its peak; quantising, and everything bound by memory or "
            "links rather than arithmetic. No GPU-hours: the published rate is that of the run "
            "in FP8, so its hours already contain the gain"
        ),
    )
