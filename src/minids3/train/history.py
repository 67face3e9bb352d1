"""What a training run recorded, and its picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History"]


@dataclass
class History:
    """Lists that grow by one entry per training step, and one per evaluation.

    ``train_loss`` and ``valid_loss`` are nats per token; ``steps`` counts from 1, and so do
    ``valid_steps``, where 0 is the model before its first step. ``tokens`` is how many tokens had
    been trained on. ``mtp_loss`` is the mean over MTP modules (TR eq. 24), ``max_violation`` the
    mean MaxVio over layers with experts and ``layer_violation`` each layer's, one entry per step
    where the model has such parts. ``valid_acceptance`` is how often the second token that the MTP
    module drafts would be accepted, ``valid_ema_loss`` the loss of the averaged weights, one entry
    per evaluation of runs that have them. A step that had nothing to learn from has a loss of NaN.
    """

    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    valid_steps: list[int] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    mtp_loss: list[float] = field(default_factory=list)
    max_violation: list[float] = field(default_factory=list)
    layer_violation: list[list[float]] = field(default_factory=list)
    valid_acceptance: list[float] = field(default_factory=list)
    valid_ema_loss: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the lists as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> History:
        """Build from what ``to_dict`` returned; ``ValueError`` if it is not that."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(content.keys() - known)
        if unknown:
            raise ValueError(f"the history has {unknown[0]!r}, which this version does not know")
        if not all(isinstance(value, list) for value in content.values()):
            raise ValueError("the history holds something that is not a list")
        return cls(**content)

    def plot(
        self, ax: Axes | None = None, lines: dict[str, float] | None = None, label: str = ""
    ) -> Axes:
        """Draw training and validation loss against the step.

        Args:
            ax: where to draw; a new figure by default.
            lines: horizontal lines to compare with, such as ``{"entropy floor": 0.9}``, in nats.
            label: put before "training" and "validation" in the legend.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 4))
        (curve,) = ax.plot(
            self.steps, self.train_loss, lw=1, alpha=0.45, label=f"{label} training".strip()
        )
        if self.valid_loss:
            ax.plot(
                self.valid_steps,
                self.valid_loss,
                "o-",
                ms=3.5,
                color=curve.get_color(),
                label=f"{label} validation".strip(),
            )
        for (name, value), style in zip((lines or {}).items(), ("--", ":", "-.") * 9, strict=False):
            ax.axhline(value, color="0.4", ls=style, lw=1, label=f"{name}: {value:.2f}")
        ax.set_xlabel("training step")
        ax.set_ylabel("loss (nats per token)")
        ax.legend()
        return ax
