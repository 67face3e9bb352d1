"""``play``: sliders under a figure, for ipywidgets 7.7 and 8."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from minids3.viz.show import picture

__all__ = ["play"]

_NONE = inspect.Parameter.empty


def play(fn: Callable[..., Any], *, alt: str | None = None, **controls: Any) -> Any:
    """Show ``fn``'s figure and redraw it whenever a control moves.

    Args:
        fn: called with the controls' values by name; returns a matplotlib figure, a string, or
            anything that can be displayed.
        alt: the figure's alt text, by default the first line of ``fn``'s docstring.
        controls: as for ``ipywidgets.interactive``: a widget, ``(low, high[, step])``, a list of
            options, a bool or a string. They open at ``fn``'s defaults, where it has any.

    Returns:
        The widget; as the last value of a cell it is shown. Without a live kernel the front end
        shows a line of text instead.
    """
    import ipywidgets as widgets
    from IPython.display import display

    words = alt or (inspect.getdoc(fn) or "").split("\n")[0] or "An interactive figure"
    parameters = inspect.signature(fn).parameters
    children = {
        name: _control(name, spec, parameters[name].default if name in parameters else _NONE)
        for name, spec in controls.items()
    }
    output = widgets.Output()

    def draw(change: Any = None) -> None:
        values = {name: widget.value for name, widget in children.items()}
        with output:
            output.clear_output(wait=True)
            result = fn(**values)
            if hasattr(result, "savefig"):
                state = ", ".join(f"{k} = {v}" for k, v in values.items())
                result = picture(result, f"{words} ({state})")
            if isinstance(result, str):
                print(result)
            elif result is not None:
                display(result)

    for widget in children.values():
        widget.observe(draw, names="value")
    draw()
    return _make([output, *children.values()])


def _control(name: str, spec: Any, default: Any) -> Any:
    import ipywidgets as widgets

    widget = spec
    if not isinstance(spec, widgets.Widget):
        if isinstance(spec, range):
            spec = (spec.start, spec.stop - 1, spec.step)
        widget = widgets.interactive(lambda **_: None, **{name: spec}).children[0]
        if default is not _NONE and not isinstance(spec, str | bool):
            widget.value = default  # raises where it is none of the options
    if not widget.description:
        widget.description = name.replace("_", " ")
    with contextlib.suppress(Exception):
        widget.style.description_width = "initial"
    if hasattr(widget, "continuous_update"):
        widget.continuous_update = False  # a redraw per step of the slider would lag
    return widget


def _make(children: list[Any]) -> Any:
    import ipywidgets as widgets

    class Play(widgets.VBox):
        """The figure above its controls, with a text for front ends without widgets."""

        def __repr__(self) -> str:
            # Front ends cut this at 110 characters.
            return (
                "Its controls need a live kernel: run this cell. "
                "The output above shows the same without them."
            )

    return Play(children)
