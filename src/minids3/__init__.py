"""A small DeepSeek-V3, built step by step and measured.

The layers import each other in one direction only (a test reads the imports)::

    config, numerics, isolation -> ref, kernels -> ops -> nn -> model
        -> {train, infer} -> {parallel, evals} -> viz -> {course, bench} -> grade

``data`` and ``sim`` stand beside that chain; what commands share is in ``command``. Importing
``minids3`` never needs Triton, a GPU, transformers or a network.

Figures name their sources by short names (TR is the technical report, ISCA the hardware paper, LFB
the paper on balancing); notebooks/sources.md has them all, with every published figure.
"""

import os

__all__ = ["__version__"]

# PyTorch's threads wait for each other without spinning: beside any other program, spinning makes
# them several times slower. OpenMP reads this when torch is imported; who set it keeps what is set.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
