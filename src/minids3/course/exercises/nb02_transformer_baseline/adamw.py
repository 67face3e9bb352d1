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


def _adamw_betas_built_in(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, eps=eps, weight_decay=weight_decay)


def _adamw_eps_built_in(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, weight_decay=weight_decay)


def _adamw_decay_built_in(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, eps, 0.1 if weight_decay else 0.0)


def _adamw_eps_in_root(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    still, m, v = adamw_step(p, grad, m, v, step, 0.0, betas, eps, 0.0)
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return still - lr * weight_decay * p - lr * m_hat / torch.sqrt(v_hat + eps), m, v


def _adamw_eps_first(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    still, m, v = adamw_step(p, grad, m, v, step, 0.0, betas, eps, 0.0)
    m_hat = m / (1 - betas[0] ** step)
    root = (torch.sqrt(v) + eps) / math.sqrt(1 - betas[1] ** step)
    return still - lr * weight_decay * p - lr * m_hat / root, m, v


def _adamw_decay_after(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, betas, eps, 0.0)
    return p - lr * weight_decay * p, m, v


def _adamw_v_uncorrected(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    still, m, v = adamw_step(p, grad, m, v, step, 0.0, betas, eps, 0.0)
    m_hat = m / (1 - betas[0] ** step)
    return still - lr * weight_decay * p - lr * m_hat / (torch.sqrt(v) + eps), m, v


def _adamw_preallocated(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    new_p, new_m, new_v = p.clone(), m.clone(), v.clone()
    new_m.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    new_v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    new_p.mul_(1 - lr * weight_decay)
    root = (new_v / (1 - betas[1] ** step)).sqrt_().add_(eps)
    new_p.addcdiv_(new_m / (1 - betas[0] ** step), root, value=-lr)
    return new_p, new_m, new_v


def _adamw_in_float64(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    wide = [t.double() for t in (p, grad, m, v)]
    new = adamw_step(*wide, step, lr, betas, eps, weight_decay)
    return tuple(t.to(p.dtype) for t in new)


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
        Mutant(
            "betas_built_in",
            _adamw_betas_built_in,
            "You built 0.9 and 0.95 in. betas is an argument: (beta1, beta2) of m and of v.",
        ),
        Mutant(
            "eps_built_in",
            _adamw_eps_built_in,
            "You built 1e-8 in. eps is an argument.",
        ),
        Mutant(
            "decay_built_in",
            _adamw_decay_built_in,
            "You built 0.1 in. weight_decay is an argument.",
        ),
        Mutant(
            "eps_in_root",
            _adamw_eps_in_root,
            "You put eps under the root. It is added to the root: with gradients of 1e-5 the step "
            "is several times too small otherwise.",
        ),
        Mutant(
            "eps_first",
            _adamw_eps_first,
            "You added eps to the root of v before correcting it. Correct v first, then take the "
            "root, then add eps.",
        ),
        Mutant(
            "decay_after",
            _adamw_decay_after,
            "You let the weights decay after the step. AdamW multiplies the old p by 1 - lr * "
            "weight_decay and then moves.",
        ),
        Mutant(
            "v_uncorrected",
            _adamw_v_uncorrected,
            "You corrected m and not v. Both start at zero, so both are too small at first: "
            "divide v by 1 - beta2 ** step.",
        ),
    ],
    alternatives=[
        Alternative("lerp", _adamw_lerp),
        Alternative("one_sum", _adamw_one_sum),
        Alternative("preallocated", _adamw_preallocated),
        Alternative("in_float64", _adamw_in_float64),
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
    with c.part():
        options = {"betas": (0.7, 0.99), "eps": 1e-6, "weight_decay": 0.5}
        small = [3e-6 * torch.sign(g) * (1 + g.abs()) for g in grads]
        wanted = _torch_adamw(p, small, 0.1, **options)
        new = c.call(p, small[0], zero, zero, 1, 0.1, **options, returns=3)
        c.close(
            new[0], wanted[0], label="gradients of 1e-5 with other betas, eps and decay: step 1"
        )
        new = c.call(new[0], small[1], new[1], new[2], 2, 0.1, **options, returns=3)
        c.close(
            new[0], wanted[1], label="gradients of 1e-5 with other betas, eps and decay: step 2"
        )


def _torch_adamw(p, grads, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    w = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([w], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    after = []
    for grad in grads:
        w.grad = grad.clone()
        optimizer.step()
        after.append(w.detach().clone())
    return after
