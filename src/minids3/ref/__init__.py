"""Plain, differentiable PyTorch for every operation: the oracle of all faster code.

Letters of shapes::

    B   sequences                        N   tokens, all sequences in one list
    T   positions, those of queries      E   experts
    S   positions of keys so far         K   experts that a token goes to
    D   width of the model               F   width inside a feed-forward or an expert
    H   heads; Hk of keys and values     V   vocabulary
    d   channels of a head; dn without rotation, R with it, dv of values
    C   latent of keys and values; Cq of queries

In ``gemm`` and ``quant``, as in matrix products everywhere: M rows, N columns, K is summed.
"""

__all__: list[str] = []  # import from its modules
