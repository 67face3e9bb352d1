"""The dashboard of a training run, drawn from its log while it runs or afterwards."""

from __future__ import annotations

import io
import itertools
import statistics
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minids3.train.log import read_log
from minids3.viz.style import COLORS, MUTED, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Watch", "dashboard", "describe_run", "loss_events"]

Entry = Mapping[str, Any]


def loss_events(
    losses: Sequence[float], window: int = 50, factor: float = 8.0
) -> list[tuple[int, int, str]]:
    """Where a loss curve jumps up, and whether it comes back.

    The line of a step is the median of the ``window`` losses before it, plus ``factor`` times the
    median of their distances from it. An event begins at a step above its line and lasts as long as
    the losses stay above that same line.

    Args:
        losses: one per step.
        window: how many losses a line rests on; the first so many steps have none.
        factor: how far above the usual an event begins.

    Returns:
        (start, length, kind) of each: ``"bad batch"`` is one step, ``"spike"`` more, ``"open"`` one
        that has not ended when the record does.

    Raises:
        ValueError: ``window`` is less than 1.
    """
    if window < 1:
        raise ValueError(f"window={window!r} must be 1 or more losses")
    events, t = [], window
    while t < len(losses):
        past = losses[t - window : t]
        level = statistics.median(past)
        line = level + factor * statistics.median(abs(x - level) for x in past)
        start = t
        while t < len(losses) and losses[t] > line:
            t += 1
        if t > start:
            kind = "spike" if t - start > 1 else "bad batch"
            events.append((start, t - start, "open" if t == len(losses) else kind))
        else:
            t += 1
    return events


def dashboard(entries: Sequence[Entry], title: str = "") -> Figure:
    """Six panels: loss, rate, balance, MTP, gradient norm, speed and memory, against tokens.

    Args:
        entries: of a log, as ``read_log`` returns them; a thinned record's steps and evaluations
            will do.
        title: over all of it.

    Returns:
        A matplotlib figure that no global state knows of.

    Raises:
        ValueError: there is no step among the entries.
    """
    from matplotlib.figure import Figure

    steps = [e for e in entries if e["kind"] == "step"]
    evaluations = [e for e in entries if e["kind"] == "evaluation" and e["step"] > 0]
    if not steps:
        raise ValueError("the log holds no step yet: there is nothing to draw")
    unit, letter = _unit(steps[-1]["tokens"])
    seen = [e["tokens"] / unit for e in steps]
    fig = Figure(figsize=(10, 5.6), layout="constrained")
    axes = fig.subplots(2, 3)
    _draw_loss(axes[0, 0], steps, evaluations, seen, unit)
    _draw_rate(axes[0, 1], steps, seen)
    _draw_balance(fig, axes[0, 2], steps, seen)
    _draw_mtp(axes[1, 0], steps, evaluations, seen, unit)
    _draw_norm(axes[1, 1], steps, seen)
    _draw_speed(axes[1, 2], steps, seen)
    for ax in axes.flat:
        ax.set_xlabel(f"tokens seen ({letter})")
        ax.set_xlim(0, max(seen[-1], 1e-9))
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    return fig


def describe_run(entries: Sequence[Entry]) -> str:
    """What the dashboard shows, in two sentences, for its alt text.

    Raises:
        ValueError: there is no step among the entries.
    """
    steps = [e for e in entries if e["kind"] == "step" and e["loss"] is not None]
    if not steps:
        raise ValueError("the log holds no step yet: there is nothing to describe")
    unit, letter = _unit(steps[-1]["tokens"])
    words = (
        f"Six panels over {steps[-1]['tokens'] / unit:.3g} {letter.removesuffix('s')} tokens. "
        "Training loss from "
        f"{steps[0]['loss']:.2f} to {steps[-1]['loss']:.2f} nats per token"
    )
    evaluations = [e for e in entries if e["kind"] == "evaluation"]
    if evaluations:
        words += f", {evaluations[-1]['loss']:.3f} on held-out text"
        floor = evaluations[-1].get("floor")
        words += f" with a floor of {floor:.3f}" if floor is not None else ""
    norm = max(e["grad_norm"] for e in steps)
    words += f"; learning rate, MaxVio by layer, MTP loss, gradient norm (at most {norm:.1f})"
    return words + ", tokens per second and memory."


class Watch:
    """``with Watch(folder):`` around ``trainer.fit()`` draws the run's log while it grows.

    In a notebook it is a widget that is redrawn every few seconds by a thread of its own; elsewhere
    it does nothing. The log is on disk, so another notebook can watch the same run. Where there is
    no log yet it waits.
    """

    def __init__(self, folder: str | Path, every: float = 10.0, title: str = "") -> None:
        """Watch ``folder/log.jsonl`` and redraw after ``every`` seconds."""
        self.path, self.every, self.title = Path(folder) / "log.jsonl", every, title
        self.drawn = 0  # the step of the newest picture
        self._stop = threading.Event()
        self._widget: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        """Show the widget and begin to look."""
        try:
            import ipywidgets
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            return self
        if get_ipython() is None:
            return self

        class Dashboard(ipywidgets.Image):
            """A picture with a text for front ends without widgets."""

            def __repr__(self) -> str:
                return "The dashboard is drawn here while a live kernel trains."

        self._widget = Dashboard(format="png", layout={"max_width": "100%"})
        display(self._widget)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw a last time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._redraw()

    def _look(self) -> None:
        while not self._stop.wait(self.every):
            self._redraw()

    def _redraw(self) -> None:
        """Draw the log as it is now, if there is something new in it."""
        if not self.path.is_file():
            return
        entries = read_log(self.path)
        steps = [e["step"] for e in entries if e["kind"] == "step"]
        if not steps or steps[-1] == self.drawn:
            return
        out = io.BytesIO()
        dashboard(entries, self.title).savefig(out, format="png", dpi=80)
        if self._widget is not None:
            self._widget.value = out.getvalue()
        self.drawn = steps[-1]


# panels -------------------------------------------------------------------------------------------


def _unit(tokens: float) -> tuple[float, str]:
    for size, name in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions")):
        if tokens >= size:
            return size, name
    return 1e3, "thousands"


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _draw_loss(
    ax: Axes, steps: list[Entry], evaluations: list[Entry], seen: list[float], unit: float
) -> None:
    """The loss over the floor, on a log scale: how much is still to be learned."""
    floor = next((e["floor"] for e in evaluations if e.get("floor") is not None), None)
    base = floor or 0.0
    losses = [_nan(e["loss"]) - base for e in steps]
    ax.plot(seen, losses, lw=0.8, alpha=0.7, color=COLORS["train"], label="training")
    at = [e["tokens"] / unit for e in evaluations]
    if at:
        held_out = [e["loss"] - base for e in evaluations]
        ax.plot(at, held_out, "o-", ms=3, color=COLORS["valid"], label="held out")
    average = [(x, e["ema_loss"] - base) for x, e in zip(at, evaluations, strict=True)
               if e.get("ema_loss") is not None]  # fmt: skip
    if average:
        ax.plot(*zip(*average, strict=True), "s--", ms=3, color=PALETTE[1], label="average")
    _log_scale(ax)
    above = "nats per token" if floor is None else f"nats above the floor, {floor:.3f}"
    ax.set(title="loss", ylabel=above)
    ax.legend(fontsize=7.5)


def _draw_rate(ax: Axes, steps: list[Entry], seen: list[float]) -> None:
    """Learning rate, and the tokens of a batch where they change."""
    ax.plot(seen, [e["lr"] for e in steps], color=COLORS["ours"], label="learning rate")
    ax.set(title="learning rate", ylabel="learning rate")
    ax.set_ylim(bottom=0)
    pairs = itertools.pairwise(steps)
    sizes = [(b["tokens"] - a["tokens"]) / (b["step"] - a["step"]) for a, b in pairs]
    if sizes and max(sizes) > 1.05 * min(sizes):
        other = ax.twinx()
        other.plot(seen[1:], sizes, color=PALETTE[1], ls="--", lw=1.2)
        other.set_ylim(bottom=0)
        other.set_ylabel("tokens a batch (dashed)", color="#8A6A00")
        other.grid(visible=False)


def _draw_balance(fig: Figure, ax: Axes, steps: list[Entry], seen: list[float]) -> None:
    """MaxVio of every layer as a map."""
    ax.set(title="MaxVio by layer", ylabel="layer with experts")
    loads = [(x, e["max_violation"]) for x, e in zip(seen, steps, strict=True)
             if e.get("max_violation")]  # fmt: skip
    if not loads:
        _nothing(ax, "no experts in this model")
        return
    at, rows = zip(*loads, strict=True)
    values = list(zip(*rows, strict=True))
    top = max(max(row) for row in rows)
    # Cells between the steps: a batch that grows makes them wider.
    edges = [0.0, *at]
    shown = ax.pcolormesh(edges, range(len(values) + 1), values, vmin=0, vmax=max(top, 0.5))
    ax.set_yticks([i + 0.5 for i in range(len(values))], range(1, len(values) + 1))
    ax.invert_yaxis()
    ax.grid(visible=False)
    fig.colorbar(shown, ax=ax, label="MaxVio (0 is even)", pad=0.02, aspect=25)


def _draw_mtp(
    ax: Axes, steps: list[Entry], evaluations: list[Entry], seen: list[float], unit: float
) -> None:
    """The MTP module's loss, and how often its draft would be accepted."""
    ax.set(title="MTP module", ylabel="its loss (nats per token)")
    pairs = [(x, e["mtp_loss"]) for x, e in zip(seen, steps, strict=True) if "mtp_loss" in e]
    if not pairs:
        _nothing(ax, "no MTP module in this model")
        return
    ax.plot(*zip(*pairs, strict=True), lw=0.9, color=COLORS["train"])
    accepted = [(e["tokens"] / unit, 100 * e["acceptance"]) for e in evaluations
                if e.get("acceptance") is not None]  # fmt: skip
    if accepted:
        other = ax.twinx()
        other.plot(*zip(*accepted, strict=True), "o-", ms=3, color=PALETTE[2])
        other.set_ylim(0, 100)
        other.set_ylabel("second token accepted (%, dots)", color="#00664A")
        other.grid(visible=False)


def _draw_norm(ax: Axes, steps: list[Entry], seen: list[float]) -> None:
    ax.plot(seen, [e["grad_norm"] or float("nan") for e in steps], lw=0.8, color=COLORS["ours"])
    ax.axhline(1, color=COLORS["control"], ls="--", lw=1)
    _log_scale(ax)
    ax.set(title="gradient norm", ylabel="norm before clipping\n(at 1, dashed)")


def _draw_speed(ax: Axes, steps: list[Entry], seen: list[float]) -> None:
    ax.plot(seen, [e["tokens_per_second"] for e in steps], color=COLORS["ours"])
    ax.set(title="speed and memory", ylabel="tokens per second,\nmean so far")
    ax.set_ylim(bottom=0)
    memory = [e.get("memory_mib") or 0 for e in steps]
    if max(memory) > 0:
        other = ax.twinx()
        other.plot(seen, memory, color=MUTED, ls="--", lw=1.2)
        other.set_ylim(0, 1.15 * max(memory))
        other.set_ylabel("memory at most (MiB, dashed)", color=MUTED)
        other.grid(visible=False)


def _log_scale(ax: Axes) -> None:
    """A log axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _nothing(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=MUTED)
