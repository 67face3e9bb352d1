"""Plain, differentiable PyTorch for every operation: the oracle of all faster code."""
