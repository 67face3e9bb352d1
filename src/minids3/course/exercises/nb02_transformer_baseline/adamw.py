"""One step of AdamW."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8,
               weight_decay=0.1):
    """One AdamW update of one tensor, without changing its arguments.

    p, grad, m, v: tensors of one shape; m, v start at zero
    step: 1 for the first update; lr, weight_decay, eps: numbers
    returns the new p, m, v
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p = p - lr * weight_decay * p
    p = p - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return p, m, v
# fmt: on


def _adamw_coupled(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad + weight_decay * p, m, v, step, lr, betas, eps, 0.0)


def _adamw_uncorrected(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    return p - lr * weight_decay * p - lr * m / (torch.sqrt(v) + eps), m, v


def _adamw_corrected_twice(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay)
    return p, m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)


def _adamw_step_from_zero(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step + 1, lr, betas, eps, weight_decay)


def _adamw_full_decay(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay / lr)


def _adamw_undecayed(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, eps, 0.0)


def _adamw_no_root(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    decayed, m, v = adamw_step(p, grad, m, v, step, 0.0, betas, eps, 0.0)
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return decayed - lr * weight_decay * p - lr * m_hat / (v_hat + eps), m, v


def _adamw_swapped(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas[::-1], eps, weight_decay)


def _adamw_in_place(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    new = adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay)
    for old, fresh in zip((p, m, v), new, strict=True):
        old.copy_(fresh)
    return p, m, v


def _adamw_lerp(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = torch.lerp(m, grad, 1 - betas[0])
    v = torch.lerp(v, grad * grad, 1 - betas[1])
    size = lr / (1 - betas[0] ** step)
    root = v.sqrt() / math.sqrt(1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - size * m / (root + eps), m, v


def _adamw_one_sum(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = m + (1 - betas[0]) * (grad - m)
    v = v + (1 - betas[1]) * (grad.square() - v)
    direction = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)) ** 0.5 + eps)
    return p - lr * (direction + weight_decay * p), m, v


@exercise(
    "adamw-step",
    solution=adamw_step,
    notebook="02_transformer_baseline",
    title="One step downhill, at the same pace for every weight",
    difficulty=3,
    importance=4,
    minutes=10,
    forbids=(
        "torch.optim.AdamW",
        "torch.optim.Adam",
        "torch.optim._functional.adamw",
        "torch._fused_adamw_",
    ),
    hints=(
        "m and v start at zero, so after one step m is only (1 - beta1) of the gradient: what do "
        "you divide by to undo that? Does the weight decay pass through m and v, or around them?",
        "m = beta1 * m + (1 - beta1) * grad\n"
        "v = beta2 * v + (1 - beta2) * grad squared\n"
        "m_hat = m / (1 - beta1 ** step);  v_hat = v / (1 - beta2 ** step)\n"
        "p = p - lr * weight_decay * p            # around the moments, not through them\n"
        "p = p - lr * m_hat / (sqrt(v_hat) + eps)\n"
        "return p, m, v                           # m and v as they are, not the corrected ones",
    ),
    mutants=[
        Mutant(
            "coupled",
            _adamw_coupled,
            "The decay went into the gradient (Adam with L2). There it is divided by sqrt(v) like "
            "everything else; the W in AdamW stands for keeping it out.",
        ),
        Mutant(
            "uncorrected",
            _adamw_uncorrected,
            "The bias correction is missing: m and v start at zero and are too small at first.",
        ),
        Mutant(
            "corrected_twice",
            _adamw_corrected_twice,
            "You returned the corrected moments. Keep the raw ones, or they are corrected again "
            "next step.",
        ),
        Mutant(
            "step_from_zero",
            _adamw_step_from_zero,
            "The correction used step + 1. The first update already comes with step = 1.",
        ),
        Mutant(
            "full_decay",
            _adamw_full_decay,
            "The decay was not multiplied by lr: it would not fade with the schedule.",
        ),
        Mutant("undecayed", _adamw_undecayed, "The weight decay is missing: this is plain Adam."),
        Mutant(
            "no_root",
            _adamw_no_root,
            "Divide by the square root of v_hat: v is in squared units of the gradient.",
        ),
        Mutant(
            "swapped_betas",
            _adamw_swapped,
            "The betas changed places: beta1 belongs to m (the direction), beta2 to v (the size).",
        ),
        Mutant(
            "in_place",
            _adamw_in_place,
            "Your function changed the tensors it was given. Compute new ones and return them.",
        ),
    ],
    alternatives=[
        Alternative("lerp", _adamw_lerp),
        Alternative("one_sum", _adamw_one_sum),
    ],
)
def check_adamw_step(c):
    """Three steps against torch.optim.AdamW, the first one's size, decay alone, no side effects."""
    rows, columns = c.size(2, 4), c.size(3, 5)
    p, grads = c.randn(rows, columns), [c.randn(rows, columns) for _ in range(3)]
    zero = torch.zeros_like(p)
    expected = _torch_adamw(p, grads, lr=0.01)
    label = "runs, leaves its arguments alone and returns p, m, v"
    new = c.call(p, grads[0], zero, zero, 1, 0.01, label=label, returns=3)
    with c.part():
        c.close(new[1], 0.1 * grads[0], label="m after step 1 is a tenth of the gradient")
        c.close(new[2], 0.05 * grads[0] ** 2, label="v after step 1 is a twentieth of its square")
        c.close(new[0], expected[0], label="p after step 1 equals torch.optim.AdamW's")
        for i, word in ((1, "2"), (2, "3")):
            new = c.call(new[0], grads[i], new[1], new[2], i + 1, 0.01, returns=3)
            c.close(new[0], expected[i], label=f"p after step {word} equals torch.optim.AdamW's")
    with c.part():
        plain = c.call(p, grads[0], zero, zero, 1, 0.01, (0.9, 0.95), 1e-8, 0.0, returns=3)
        label = "without decay the first step moves every weight by lr"
        c.close((plain[0] - p).abs(), torch.full_like(p, 0.01), label=label, rtol=1e-3)
    with c.part():
        still = c.call(p, zero, zero, zero, 1, 0.01, returns=3)
        c.close(still[0], p * 0.999, label="a gradient of zero leaves only the decay, lr times 0.1")


def _torch_adamw(p, grads, lr):
    w = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([w], lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    after = []
    for grad in grads:
        w.grad = grad.clone()
        optimizer.step()
        after.append(w.detach().clone())
    return after
