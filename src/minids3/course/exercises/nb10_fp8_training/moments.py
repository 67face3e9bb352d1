"""One step of AdamW with BF16 moments."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.optim import Bf16AdamW


def adamw_step(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    """One AdamW step on an fp32 master weight, its moments kept in BF16.

    p, grad: fp32; m, v: bf16, same shape; step: 1, 2, ...; lr: number
    returns the new p (fp32), m and v (bf16)
    """
    m = beta1 * m.float() + (1 - beta1) * grad
    v = beta2 * v.float() + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    p = p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8)
    return p, m.bfloat16(), v.bfloat16()


def _moments_weights_too(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    return p.bfloat16(), m, v


def _moments_weights_through(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    return p.bfloat16().float(), m, v


def _moments_fp32(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    new, _, _ = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    m = beta1 * m.float() + (1 - beta1) * grad
    return new, m, beta2 * v.float() + (1 - beta2) * grad**2


def _moments_fp16(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    new, _, _ = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    m = beta1 * m.float() + (1 - beta1) * grad
    return new, m.half(), (beta2 * v.float() + (1 - beta2) * grad**2).half()


def _moments_bf16_arithmetic(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    small = grad.bfloat16()
    m = beta1 * m + (1 - beta1) * small
    v = beta2 * v + (1 - beta2) * small * small
    m_hat, v_hat = m.float() / (1 - beta1**step), v.float() / (1 - beta2**step)
    return p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8), m, v


def _moments_rounded_first(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    _, m, v = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    m_hat, v_hat = m.float() / (1 - beta1**step), v.float() / (1 - beta2**step)
    return p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8), m, v


def _moments_no_correction(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    m = beta1 * m.float() + (1 - beta1) * grad
    v = beta2 * v.float() + (1 - beta2) * grad**2
    p = p * (1 - lr * decay) - lr * m / (v.sqrt() + 1e-8)
    return p, m.bfloat16(), v.bfloat16()


def _moments_coupled(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    return adamw_step(p, grad + decay * p, m, v, step, lr, beta1, beta2, 0.0)


def _moments_no_decay(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, beta1, beta2, 0.0)


def _moments_not_squared(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    m = beta1 * m.float() + (1 - beta1) * grad
    v = beta2 * v.float() + (1 - beta2) * grad.abs()
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    p = p * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8)
    return p, m.bfloat16(), v.bfloat16()


def _moments_lerp(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    m = torch.lerp(m.float(), grad, 1 - beta1)
    v = torch.lerp(v.float(), grad.square(), 1 - beta2)
    size = (v / (1 - beta2**step)).sqrt() + 1e-8
    update = m / (1 - beta1**step) / size + decay * p
    return p - lr * update, m.to(torch.bfloat16), v.to(torch.bfloat16)


def _moments_library(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    weight = torch.nn.Parameter(p.clone())
    weight.grad = grad.clone()
    optimizer = Bf16AdamW([weight], lr=lr, betas=(beta1, beta2), weight_decay=decay)
    state = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[weight] = state
    optimizer.step()
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def _moments_betas_built_in(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, decay=decay)


def _moments_decay_built_in(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, beta1, beta2)


def _moments_decay_without_lr(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay / lr)


def _moments_corrected_kept(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    new, _, _ = adamw_step(p, grad, m, v, step, lr, beta1, beta2, decay)
    m = (beta1 * m.float() + (1 - beta1) * grad) / (1 - beta1**step)
    v = (beta2 * v.float() + (1 - beta2) * grad**2) / (1 - beta2**step)
    return new, m.bfloat16(), v.bfloat16()


def _moments_decay_after(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, beta1, beta2, 0.0)
    return p * (1 - lr * decay), m, v


def _moments_in_float64(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    wide = _expected(p, grad, m, v, step, lr, beta1, beta2, decay)
    return wide[0].float(), wide[1].to(m.dtype), wide[2].to(v.dtype)


@exercise(
    "fp8-moments",
    solution=adamw_step,
    notebook="10_fp8_training",
    title="Half the bytes for the optimizer",
    difficulty=3,
    importance=3,
    minutes=10,
    library=_moments_library,
    hints=(
        "What has to be precise: what is stored for a long time in small steps, or what is used "
        "once and forgotten? Where in the step do you round, then?",
        "m = beta1 * m in fp32 + (1 - beta1) * grad\n"
        "v = beta2 * v in fp32 + (1 - beta2) * grad squared\n"
        "m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)\n"
        "p = p * (1 - lr * decay) - lr * m_hat / (sqrt(v_hat) + 1e-8)\n"
        "return p, m and v rounded to bf16",
    ),
    mutants=[
        Mutant(
            "weights_too",
            _moments_weights_too,
            "The weight became BF16 as well. It is the master: it must stay fp32, or small updates "
            "are lost.",
        ),
        Mutant(
            "weights_through_bf16",
            _moments_weights_through,
            "The weight has dtype fp32, but its numbers went through BF16. Updates smaller than "
            "1/512 of it are lost.",
        ),
        Mutant("fp32_moments", _moments_fp32, "The moments came back in fp32: round them to BF16."),
        Mutant(
            "fp16_moments",
            _moments_fp16,
            "FP16 has more digits but too little range: squares of small gradients become zero. "
            "BF16.",
        ),
        Mutant(
            "bf16_arithmetic",
            _moments_bf16_arithmetic,
            "You computed the moments in BF16. Read them into fp32 first; only what is stored is "
            "rounded.",
        ),
        Mutant(
            "rounded_first",
            _moments_rounded_first,
            "You rounded the moments and then used the rounded ones. Use them at full precision, "
            "and round what you store.",
        ),
        Mutant(
            "no_correction",
            _moments_no_correction,
            "The bias correction is missing: at step 1 both moments are far too small.",
        ),
        Mutant(
            "coupled",
            _moments_coupled,
            "You added the decay to the gradient. In AdamW it is decoupled: it shrinks the weight "
            "by lr * decay and never enters the moments.",
        ),
        Mutant(
            "no_decay",
            _moments_no_decay,
            "The weight decay is missing: the weight shrinks by lr * decay each step.",
        ),
        Mutant(
            "not_squared",
            _moments_not_squared,
            "The second moment averages the gradient's square, not its size.",
        ),
        Mutant(
            "betas_built_in",
            _moments_betas_built_in,
            "You built 0.9 and 0.95 in. beta1 and beta2 are arguments.",
        ),
        Mutant(
            "decay_built_in",
            _moments_decay_built_in,
            "You built 0.1 in. decay is an argument.",
        ),
        Mutant(
            "decay_without_lr",
            _moments_decay_without_lr,
            "Your decay is not multiplied by lr: a tenth of the weight is gone in every step. p "
            "shrinks by the factor 1 - lr * decay.",
        ),
        Mutant(
            "corrected_kept",
            _moments_corrected_kept,
            "You returned the corrected moments. What is kept for the next step is m and v "
            "themselves; the correction is for this step's update only.",
        ),
        Mutant(
            "decay_after",
            _moments_decay_after,
            "The weight shrinks first: you shrank the update too.",
        ),
    ],
    alternatives=[
        Alternative("lerp", _moments_lerp),
        Alternative("library", _moments_library),
        Alternative("in_float64", _moments_in_float64),
    ],
)
def check_moments(c):
    """Two steps against fp64, dtypes, tiny gradients, small updates of large weights."""
    shape = (c.size(3, 6), c.size(5, 9))
    p, lr = c.randn(*shape), c.choice([0.01, 0.02, 0.05])
    m, v = torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)
    grad = 0.1 * c.randn(*shape)
    new, m1, v1 = c.call(p, grad, m, v, 1, lr, label="runs and returns p, m and v", returns=3)
    with c.part():
        c.dtype(new, torch.float32, "the weight")
        expected = _expected(p, grad, m, v, 1, lr)
        c.close(new, expected[0], label="the weight after step 1", rtol=1e-5, atol=2e-6)
    with c.part():
        c.true(
            m1.dtype == v1.dtype == torch.bfloat16,
            "both moments are stored in BF16",
            f"they are {str(m1.dtype).removeprefix('torch.')} and "
            f"{str(v1.dtype).removeprefix('torch.')}",
        )
        c.close(
            m1,
            expected[1],
            label="m is the new mean of gradients, to one BF16 step",
            rtol=4.2e-3,
            atol=0,
        )
        c.close(
            v1,
            expected[2],
            label="v is the new mean of squares, to one BF16 step",
            rtol=4.2e-3,
            atol=0,
        )
    with c.part():
        m, v = (0.1 * c.randn(*shape)).bfloat16(), (0.01 * c.rand(*shape) + 1e-3).bfloat16()
        later = c.call(p, grad, m, v, 7, lr, returns=3)
        wanted = _expected(p, grad, m, v, 7, lr)
        c.close(
            later[0], wanted[0], label="a later step goes on from m and v", rtol=1e-5, atol=2e-6
        )
    with c.part():
        tiny = c.call(p, 1e-6 * grad, 0 * m, 0 * v, 1, lr, returns=3)
        c.true(bool((tiny[2] > 0).all()), "squares of tiny gradients do not vanish")
        wanted = _expected(p, 1e-6 * grad, 0 * m, 0 * v, 1, lr)[0]
        label = "1e-8 is added beside the root"
        c.close(tiny[0], wanted, label=label, rtol=1e-5, atol=2e-6)
    with c.part():
        still = c.call(p, 0 * grad, 0 * m, 0 * v, 1, lr, returns=3)[0]
        label = "with a gradient and moments of 0 the weight only decays"
        c.close(still, p.double() * (1 - 0.1 * lr), label=label, rtol=1e-6, atol=0)
    with c.part():
        moved = c.call(p + 3, grad, m, v, 7, 1e-5, returns=3)[0]
        wanted = _expected(p + 3, grad, m, v, 7, 1e-5)[0]
        label = "an update of a hundred-thousandth arrives"
        c.close(moved, wanted, label=label, rtol=2e-7, atol=3e-7)
    with c.part():
        options = {"beta1": 0.7, "beta2": 0.99, "decay": 0.4}
        other = c.call(p, grad, m, v, 4, lr, **options, returns=3)
        wanted = _expected(p, grad, m, v, 4, lr, **options)
        label = "other betas, another decay: the weight"
        c.close(other[0], wanted[0], label=label, rtol=1e-5, atol=2e-6)
        c.close(other[1], wanted[1], label="and m", rtol=4.2e-3, atol=1e-5)
        c.close(other[2], wanted[2], label="and v", rtol=4.2e-3, atol=0)
    with c.part():
        far = c.call(p, grad, m, v, 4, 0.5, decay=0.4, returns=3)[0]
        wanted = _expected(p, grad, m, v, 4, 0.5, decay=0.4)[0]
        label = "lr = 0.5 and decay = 0.4: the update itself is not decayed"
        c.close(far, wanted, label=label, rtol=1e-5, atol=2e-5)


def _expected(p, grad, m, v, step, lr, beta1=0.9, beta2=0.95, decay=0.1):
    p, grad, m, v = (t.double() for t in (p, grad, m, v))
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad * grad
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + 1e-8)
    return p - lr * decay * p - lr * update, m, v
