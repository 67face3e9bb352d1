"""Exercises of notebook 06: shifting, the module's input, the weighted loss,
acceptance, drafts in a running text.

The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb06_multi_token_prediction import (
    shift,
    module_input,
    loss,
    accept,
    fates,
)

__all__ = ["accept", "fates", "loss", "module_input", "shift"]
