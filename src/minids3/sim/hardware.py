"""Accelerators as tables of figures, each with its source.

A figure tagged ``MEM`` was written down from memory and never checked against a document here; it
may be used in a plot, and the plot has to say so. ``None`` means that no source at hand gives the
figure.

Source tags (TR, ISCA, C, MEM) are those of notebooks/sources.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

__all__ = [
    "ACCELERATORS",
    "H100",
    "H800",
    "MEASURED_V3_TRAINING",
    "Accelerator",
    "get_accelerator",
    "least_time",
]


@dataclass(frozen=True)
class Accelerator:
    """One accelerator's peaks and links, in FLOP/s, bytes and bytes per second.

    ``nvlink_one_way`` is per direction, ``nvlink_total`` both directions together; ``nic`` is
    the link of one accelerator to the other nodes. ``sources`` names the source of every
    figure that is not ``None``.
    """

    name: str
    bf16_flops: float | None = None
    fp8_flops: float | None = None
    memory_bytes: float | None = None
    memory_bandwidth: float | None = None
    nvlink_total: float | None = None
    nvlink_one_way: float | None = None
    nvlink_achieved: float | None = None
    nic: float | None = None
    nic_achieved: float | None = None
    streaming_multiprocessors: int | None = None
    sources: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Refuse a figure without a source, and a source without a figure."""
        given = {name for name in self.figures() if getattr(self, name) is not None}
        if given != set(self.sources):
            odd = ", ".join(sorted(given ^ set(self.sources)))
            raise ValueError(f"{self.name}: figures and sources do not match for {odd}")

    @classmethod
    def figures(cls) -> list[str]:
        """Return the names of the fields that hold a figure."""
        return [f.name for f in fields(cls) if f.name not in ("name", "sources")]

    def source(self, figure: str) -> str:
        """Return the source tag of ``figure``; ``KeyError`` says which figures are known."""
        if figure not in self.sources:
            known = ", ".join(sorted(self.sources))
            raise KeyError(f"{self.name} has no sourced figure {figure!r}; it has {known}")
        return self.sources[figure]

    def is_verified(self, figure: str) -> bool:
        """Whether ``figure`` comes from a document rather than from memory (tag MEM)."""
        return not self.source(figure).startswith("MEM")


_DATASHEET = "MEM: datasheet figure, unverified here"

H800 = Accelerator(
    name="H800",
    bf16_flops=989.4e12,
    fp8_flops=1979e12,
    memory_bytes=80e9,
    memory_bandwidth=3.35e12,
    nvlink_total=400e9,
    nvlink_one_way=200e9,
    nvlink_achieved=160e9,
    nic=50e9,
    nic_achieved=40e9,
    streaming_multiprocessors=132,
    sources={
        "bf16_flops": f"{_DATASHEET}; ISCA's MFU implies about 988e12 [C]",
        "fp8_flops": _DATASHEET,
        "memory_bytes": _DATASHEET,
        "memory_bandwidth": _DATASHEET,
        "nvlink_total": "ISCA",
        "nvlink_one_way": "ISCA",
        "nvlink_achieved": "ISCA",
        "nic": "ISCA, TR: one 400G NIC per GPU",
        "nic_achieved": "ISCA, TR",
        "streaming_multiprocessors": "TR",
    },
)

H100 = Accelerator(
    name="H100",
    bf16_flops=989.4e12,
    fp8_flops=1979e12,
    memory_bytes=80e9,
    memory_bandwidth=3.35e12,
    nvlink_total=900e9,
    nvlink_one_way=450e9,
    streaming_multiprocessors=132,
    sources={
        "bf16_flops": _DATASHEET,
        "fp8_flops": _DATASHEET,
        "memory_bytes": _DATASHEET,
        "memory_bandwidth": _DATASHEET,
        "nvlink_total": "ISCA",
        "nvlink_one_way": "C: half of the total",
        "streaming_multiprocessors": _DATASHEET,
    },
)

ACCELERATORS: dict[str, Accelerator] = {a.name: a for a in (H800, H100)}


@dataclass(frozen=True)
class MeasuredTraining:
    """What one published training run achieved per accelerator."""

    accelerator: str
    count: int
    achieved_causal: float
    achieved_full: float
    mfu_causal: float
    mfu_full: float
    tokens_per_day: float
    source: str

    @property
    def implied_peak(self) -> float:
        """Peak in FLOP/s that the published achieved rate and MFU imply."""
        return self.achieved_causal / self.mfu_causal


MEASURED_V3_TRAINING = MeasuredTraining(
    accelerator="H800",
    count=2048,
    achieved_causal=385e12,
    achieved_full=432e12,
    mfu_causal=0.3894,
    mfu_full=0.4373,
    tokens_per_day=272.80e9,
    source="ISCA table 4",
)


def get_accelerator(name: str) -> Accelerator:
    """Return the accelerator called ``name`` in any case; ``KeyError`` lists the known ones."""
    key = name.upper()
    if key not in ACCELERATORS:
        raise KeyError(f"no accelerator {name!r}; known are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[key]


def least_time(
    kernels: Iterable[tuple[float, float]], peak: float, bandwidth: float
) -> tuple[float, float]:
    """Return the least time of kernels that run one after the other: the roofline, in seconds.

    A kernel computes and moves bytes at once, so the longer of the two counts; the next one begins
    when it has ended (Williams, Waterman and Patterson 2009, summed over kernels).

    Args:
        kernels: for each one its operations and the bytes that it reads and writes.
        peak: operations per second; bandwidth: bytes per second.

    Returns:
        Seconds, and the share of them in kernels whose transfers take longer than their arithmetic.

    Raises:
        ValueError: no kernel, one without any work, or a figure that is negative or no number.
    """
    if not (peak > 0 and bandwidth > 0):
        raise ValueError(f"peak {peak} and bandwidth {bandwidth} must be positive")
    total = waiting = 0.0
    for operations, moved in kernels:
        if not (operations >= 0 and moved >= 0 and operations + moved > 0):
            raise ValueError(
                f"a kernel of {operations} operations and {moved} bytes: neither may be negative, "
                "and one of them has to be positive"
            )
        arithmetic, memory = operations / peak, moved / bandwidth
        total += max(arithmetic, memory)
        waiting += memory if memory > arithmetic else 0.0
    if total == 0:
        raise ValueError("there is no kernel: give a list of (operations, bytes)")
    return total, waiting / total
