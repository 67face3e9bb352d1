"""Training: optimizer, schedule, loop, checkpoints."""

from minids3.train.checkpoint import CheckpointError, latest_checkpoint
from minids3.train.evaluation import evaluate
from minids3.train.history import History
from minids3.train.optim import build_optimizer
from minids3.train.schedule import Schedule, lr_at
from minids3.train.settings import TrainConfig
from minids3.train.trainer import Trainer

__all__ = [
    "CheckpointError",
    "History",
    "Schedule",
    "TrainConfig",
    "Trainer",
    "build_optimizer",
    "evaluate",
    "latest_checkpoint",
    "lr_at",
]
