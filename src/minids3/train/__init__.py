"""Training: optimizer, schedule, loop, checkpoints."""

from minids3.train.checkpoint import CheckpointError, latest_checkpoint
from minids3.train.history import History
from minids3.train.optim import build_optimizer
from minids3.train.schedule import lr_at
from minids3.train.settings import TrainConfig
from minids3.train.trainer import Trainer, evaluate

__all__ = [
    "CheckpointError",
    "History",
    "TrainConfig",
    "Trainer",
    "build_optimizer",
    "evaluate",
    "latest_checkpoint",
    "lr_at",
]
