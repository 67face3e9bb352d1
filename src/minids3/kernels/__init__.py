"""Triton kernels, and thin functions that check shapes and launch them; no autograd here.

Import the file you need (``minids3.kernels.norm``); ``minids3.ops`` joins kernels and references.
Every kernel's docstring has its formula. One with more than a block's size to settle is launched
from the ``Spec`` that ``kernels.compile`` compiles.

Letters of shapes::

    M   rows of a product, or of any matrix     B   sequences
    N   its columns                             H   heads
    K   what is summed                          T   positions; in FP8 also tiles of 128
    E   experts, sorted one after the other     R   channels that are rotated
    F   width inside a feed-forward             D   width of the model
    V   vocabulary                              P   programs of a launch
    S   positions of keys so far                C   latent of keys and values

In ``moe``: N tokens and K experts for each, so N K rows.
"""

__all__: list[str] = []  # import from its modules
