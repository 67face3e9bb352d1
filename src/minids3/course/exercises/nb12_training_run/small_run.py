"""A training run small enough to read: 4 experts, AdamW, a bias, an average, dropout.

``small_step`` stands in notebook 12 word for word; a test compares the two.
"""

from __future__ import annotations

import torch

__all__ = ["STATE", "new_run", "small_step"]

STATE = ("weights", "m", "v", "updates", "bias", "average", "tokens", "rows", "rng")


# fmt: off
def small_step(run):
    """One training step; changes what is in the dict `run`."""
    data = torch.Generator().manual_seed(run["rows"])
    x = torch.randn(16, 6, generator=data)
    counted = torch.rand(16, generator=data) > 0.3
    noise = torch.Generator()
    noise.set_state(run["rng"])
    dropped = x * (torch.rand(16, 6, generator=noise) > 0.1)
    run["rng"] = noise.get_state()

    chosen = (torch.sigmoid(x[:, :4]) + run["bias"]).argmax(1)
    error = (dropped * run["weights"][chosen]).sum(1) - x.sin().sum(1)
    error = error * counted
    run["loss"] = (error**2).sum().item() / counted.sum().item()
    run["grad"] = torch.zeros_like(run["weights"]).index_add(
        0, chosen, 2 * error[:, None] * dropped) / counted.sum()
    run["load"] = torch.bincount(chosen, minlength=4)

    run["rows"] += 16
    run["tokens"] += int(counted.sum())
    run["updates"] += 1
    lr = 0.05 * min(1.0, run["tokens"] / 400)
    run["m"].lerp_(run["grad"], 0.1)
    run["v"].lerp_(run["grad"] ** 2, 0.05)
    m_hat = run["m"] / (1 - 0.9 ** run["updates"])
    v_hat = run["v"] / (1 - 0.95 ** run["updates"])
    run["weights"] -= lr * m_hat / (v_hat.sqrt() + 1e-8)
    mean = run["load"].float().mean()
    run["bias"] += 0.02 * torch.sign(mean - run["load"])
    d = (1 + run["updates"]) / (10 + run["updates"])
    run["average"].lerp_(run["weights"], 1 - d)
# fmt: on


def new_run(seed):
    """A run before its first step: the keys of STATE, and what a step leaves lying about."""
    start = torch.Generator().manual_seed(seed)
    weights = 0.1 * torch.randn(4, 6, generator=start)
    run = {
        "weights": weights, "m": torch.zeros(4, 6), "v": torch.zeros(4, 6), "updates": 0,
        "bias": torch.zeros(4), "average": weights.clone(), "tokens": 0, "rows": 0,
        "rng": start.get_state(),
        "loss": 0.0, "grad": torch.zeros(4, 6), "load": torch.zeros(4, dtype=torch.int64),
    }  # fmt: skip
    return run
