"""Plain, differentiable PyTorch for every operation: the oracle of all faster code."""

__all__: list[str] = []  # import from its modules
