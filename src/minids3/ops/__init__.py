"""Operations with their own gradients, one file per topic; ``nn`` builds its layers of them.

Letters of shapes::

    B   sequences                        N   tokens, all sequences in one list
    T   positions                        E   experts
    D   width of the model               K   experts that a token goes to
    R   channels that are rotated        F   width inside a feed-forward or an expert
    V   vocabulary                       H   heads
    S   positions of keys so far         C   latent of keys and values

In ``gemm`` and ``grouped_mm``, as in matrix products everywhere: M rows, N columns, K is summed.
"""

__all__: list[str] = []  # import from its modules
