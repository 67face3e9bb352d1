"""Many processes: experts, data and pipelines across them, on ``torch.distributed``.

    launch      start processes from a notebook or a test
    expert      experts dealt to processes, tokens sent to them and back
    data        rows dealt to processes, weights sharded by FSDP2, gradients added up
    pipeline    layers dealt to processes, run by PyTorch's schedules
    checkpoint  written by many processes, read by any number
    training    the training command on many processes

Letters of shapes are those of ``minids3.nn``. Importing this package starts nothing.
"""

from minids3.parallel.launch import (
    LaunchError,
    LaunchTimeout,
    LaunchUnavailable,
    RankFailed,
    Run,
    run,
    unavailable,
)

__all__ = [
    "LaunchError",
    "LaunchTimeout",
    "LaunchUnavailable",
    "RankFailed",
    "Run",
    "run",
    "unavailable",
]
