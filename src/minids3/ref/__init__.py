"""Plain, differentiable PyTorch for every operation: the oracle that faster code is measured against."""
