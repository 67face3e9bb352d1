"""Triton kernels, and thin functions that check shapes and launch them; no autograd here.

Import the file you need (``minids3.kernels.norm``); ``minids3.ops`` joins kernels and references.
"""

__all__: list[str] = []  # import from its modules
