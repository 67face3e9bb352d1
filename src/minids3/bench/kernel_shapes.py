"""The shapes at which kernels are tested and measured: one list for both.

``checked`` are small and ragged: ``tests/kernels`` runs all of them, in the interpreter where there
is no GPU, and there the benchmark runs the last. ``large`` are for the tests on a GPU, ``measured``
are V3's sizes, which the benchmark times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "ADD",
    "COUNTS",
    "CROSS_ENTROPY",
    "FP8_GEMM",
    "FP8_WGRAD",
    "GROUPED",
    "QUANT",
    "RMS_NORM",
    "ROPE",
    "ROWS",
    "SOFTMAX",
    "SWIGLU",
    "SWIGLU_QUANT",
    "Shapes",
]


class Shapes(NamedTuple):
    """The shapes of one kernel, by purpose."""

    checked: tuple[Any, ...]
    measured: tuple[Any, ...]
    large: tuple[Any, ...] = ()

    def of(self, full: bool) -> tuple[Any, ...]:
        """What the benchmark runs: all that is measured, or the last that is checked."""
        return self.measured if full else self.checked[-1:]


def _uneven(experts: int, rows: int) -> tuple[int, ...]:
    """Counts as a gate makes them: between a half and three halves of the mean, one expert idle."""
    shares = [0.5 + e * 0.618034 % 1 for e in range(experts)]
    shares[experts // 2] = 0
    counts = [int(share / sum(shares) * rows) for share in shares]
    counts[0] += rows - sum(counts)
    return tuple(counts)


ADD = Shapes(((1,), (1023,), (1024,), (1025,), (5000,)), ((1 << 28,),))
SOFTMAX = Shapes(((1, 1), (3, 16), (5, 63), (2, 65), (2, 3, 130)), ((16384, 8192),))
RMS_NORM = Shapes(
    ((1, 1), (1, 7), (5, 64), (7, 100), (3, 2, 130), (70, 33), (2, 2500)),
    ((16384, 7168),),
    ((1000, 512), (1000, 1536), (1000, 7168), (1000, 16384)),
)
SWIGLU = Shapes(((1, 1), (5, 63), (2, 3, 64), (3, 1030)), ((32768, 2048),))
ROPE = Shapes(
    ((1, 2), (5, 6), (3, 7, 64), (2, 3, 9, 16), (2, 1, 2, 33, 10)),
    ((128, 8192, 64),),
)
CROSS_ENTROPY = Shapes(
    ((1, 1), (1, 2), (4, 16), (5, 17), (3, 131)), ((4096, 129280),), ((64, 129280),)
)
QUANT = Shapes(
    ((1, 1), (1, 128), (3, 127), (33, 129), (129, 300), (260, 64), (5, 256)),
    ((16384, 7168),),
    ((4099, 7168),),
)
SWIGLU_QUANT = Shapes(((1, 1), (5, 128), (17, 200), (40, 300), (5, 256)), ((32768, 2048),))
"""Rows and F; the input has twice as many columns."""
ROWS = Shapes(
    ((1, 9, 1, 1), (6, 9, 3, 40), (5, 9, 2, 1500), (4, 9, 8, 17), (7, 4, 2, 40)),
    ((8192, 256, 8, 7168),),
)
"""Tokens, experts, experts for each token, width."""
FP8_GEMM = Shapes(
    (
        (1, 1, 1),
        (1, 129, 128),
        (64, 64, 256),
        (70, 200, 131),
        (130, 66, 384),
        (5, 3, 16),
        (5, 6, 300),
    ),
    ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 7168, 16384)),
    ((4096, 4096, 7168), (1000, 2112, 1536), (515, 129, 1001)),
)
"""M, N, K."""
FP8_WGRAD = Shapes(FP8_GEMM.checked, ((4096, 7168, 8192),), FP8_GEMM.large)
COUNTS = {
    "full tiles": (64, 128, 64),
    "one expert": (45,),
    "all in the last": (0, 0, 0, 0, 30),
    "more experts than rows": (0, 1, 0, 0, 1, 0, 0, 0, 1, 0),
    "ragged": (0, 70, 1, 0, 33, 64, 0),
}
GROUPED = Shapes(
    tuple((counts, 90, 70) for counts in COUNTS.values()),
    ((_uneven(8, 8192), 4096, 7168), (_uneven(32, 8192), 4096, 7168)),
)
"""Rows of each expert, N, K."""
