"""Activation recomputation: forget in the forward pass what is cheap to compute again.

TR section 3.2.3 recomputes RMSNorm, MLA's up-projections and SwiGLU's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["recomputation"]


@contextlib.contextmanager
def recomputation(model: nn.Module) -> Iterator[None]:
    """Placeholder until the hooks are in place."""
    raise NotImplementedError
    yield
