"""Many processes: experts, data and pipelines across them, on ``torch.distributed``.

    launch      start processes from a notebook or a test
    expert      experts dealt to processes, tokens sent to them and back

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
