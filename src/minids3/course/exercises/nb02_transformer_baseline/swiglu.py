"""The gated feed-forward network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise


def swiglu(x, w_gate, w_up, w_down):
    """Gated feed-forward network: down(silu(gate(x)) * up(x)).

    x [..., D]; w_gate, w_up [F, D]; w_down [D, F]
    returns [..., D]
    """
    gate = x @ w_gate.T
    up = x @ w_up.T
    return (gate * torch.sigmoid(gate) * up) @ w_down.T


def _swiglu_sigmoid(x, w_gate, w_up, w_down):
    return (torch.sigmoid(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_swapped(x, w_gate, w_up, w_down):
    return swiglu(x, w_up, w_gate, w_down)


def _swiglu_gelu(x, w_gate, w_up, w_down):
    return (F.gelu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_relu(x, w_gate, w_up, w_down):
    return (F.relu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_added(x, w_gate, w_up, w_down):
    return (F.silu(x @ w_gate.T) + (x @ w_up.T)) @ w_down.T


def _swiglu_late(x, w_gate, w_up, w_down):
    return F.silu((x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_linear(x, w_gate, w_up, w_down):
    return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)


def _swiglu_one_product(x, w_gate, w_up, w_down):
    gate, up = (x @ torch.cat((w_gate, w_up)).T).chunk(2, -1)
    return torch.einsum("...f,df->...d", gate / (1 + torch.exp(-gate)) * up, w_down)


def _swiglu_exp(x, w_gate, w_up, w_down):
    gate = x @ w_gate.T
    return (gate * torch.exp(gate) / (1 + torch.exp(gate)) * (x @ w_up.T)) @ w_down.T


def _swiglu_to_float(x, w_gate, w_up, w_down):
    return swiglu(x.float(), w_gate.float(), w_up.float(), w_down.float())


def _swiglu_einsum(x, w_gate, w_up, w_down):
    gate = torch.einsum("...d,fd->...f", x, w_gate)
    up = torch.einsum("...d,fd->...f", x, w_up)
    return torch.einsum("...f,df->...d", gate / (1 + torch.exp(-gate)) * up, w_down)


@exercise(
    "swiglu",
    solution=swiglu,
    notebook="02_transformer_baseline",
    title="A feed-forward network with a gate",
    difficulty=1,
    importance=4,
    minutes=5,
    library=_swiglu_linear,
    hints=(
        "Two projections of the same x go up to F, one comes back down to D. Which of the two "
        "passes through silu(z) = z * sigmoid(z), and how do they meet? The weights are stored "
        "[out, in]: what must happen before x can be multiplied by them?",
        "gate = x times w_gate transposed        # [..., F]\n"
        "up = x times w_up transposed            # [..., F]\n"
        "hidden = gate * sigmoid(gate) * up\n"
        "return hidden times w_down transposed   # [..., D]",
    ),
    mutants=[
        Mutant(
            "sigmoid",
            _swiglu_sigmoid,
            "That is the plain GLU: sigmoid(gate). SiLU also multiplies by the gate itself.",
        ),
        Mutant(
            "swapped",
            _swiglu_swapped,
            "Gate and up changed places: silu goes around the product with w_gate.",
        ),
        Mutant("gelu", _swiglu_gelu, "That is GeGLU. Here the gate is SiLU, z * sigmoid(z)."),
        Mutant("relu", _swiglu_relu, "That is ReGLU. Here the gate is SiLU, z * sigmoid(z)."),
        Mutant(
            "added",
            _swiglu_added,
            "Gate and up were added. A gate multiplies: where it is 0, nothing passes.",
        ),
        Mutant(
            "late",
            _swiglu_late,
            "SiLU went around the product of both. It belongs around the gate alone.",
        ),
        Mutant(
            "overflows",
            _swiglu_exp,
            "exp(gate) / (1 + exp(gate)) is inf / inf for a large gate. Use torch.sigmoid, or 1 / "
            "(1 + exp(-gate)).",
        ),
        Mutant(
            "stays_float32",
            _swiglu_to_float,
            "You computed in float32 and stayed there. The result has the dtype of x.",
        ),
    ],
    alternatives=[
        Alternative("linear", _swiglu_linear),
        Alternative("one_product", _swiglu_one_product),
        Alternative("einsum", _swiglu_einsum),
    ],
)
def check_swiglu(c):
    """Shape, values, a closed gate, and every position on its own."""
    width, hidden, steps = c.size(5, 8), c.size(9, 12), c.size(3, 5)
    x = c.randn(2, steps, width)
    weights = c.randn(hidden, width), c.randn(hidden, width), c.randn(width, hidden)
    y = c.call(x, *weights, label=f"runs on x {list(x.shape)} with F = {hidden}")
    c.shape(y, x.shape, "the result")
    with c.part():
        c.dtype(y, x.dtype, "the result")
        gate, up, down = (w.double() for w in weights)
        z = torch.einsum("btd,fd->btf", x.double(), gate)
        inside = z / (1 + torch.exp(-z)) * torch.einsum("btd,fd->btf", x.double(), up)
        c.close(y, torch.einsum("btf,df->btd", inside, down).float(), "the result", atol=1e-4)
    with c.part():
        closed = c.call(x, torch.zeros_like(weights[0]), *weights[1:])
        label = "behind a closed gate (w_gate = 0) nothing passes"
        c.close(closed, torch.zeros_like(x), label=label)
    with c.part():
        single = c.call(x[0, 0], *weights)
        label = "one vector [D] alone gives what it gave among the others"
        c.close(single, y[0, 0], label=label, atol=1e-4)
    with c.part():
        square = [w[:width, :width] for w in weights]
        label = "F = D: square weights are [out, in], too"
        c.close(c.call(x, *square), _swiglu_linear(x, *square), label=label, atol=1e-4)
    with c.part():
        label = "an x that is not contiguous gives the same"
        apart = c.call(c.strided(x), *weights)
        c.close(apart, _swiglu_linear(x, *weights), label=label, atol=1e-4)
    with c.part():
        c.grad(
            args=(x, *weights),
            wrt=(0, 1, 2, 3),
            expected_fn=_swiglu_linear,
            label="the gradient reaches x and all three weights",
            names=("x", "w_gate", "w_up", "w_down"),
            atol=1e-3,
        )
    with c.part():
        big = c.call(100 * x, *weights)
        label = "gates of some hundreds are right"
        wanted = _swiglu_linear(100 * x.double(), *(w.double() for w in weights)).float()
        c.close(big, wanted, label=label, rtol=1e-3, atol=0.1)
    with c.part():
        half = c.call(x.bfloat16(), *(w.bfloat16() for w in weights))
        c.dtype(half, torch.bfloat16, label="bfloat16 in, bfloat16 out")
        wanted = _swiglu_linear(x, *weights)
        off = (half.float() - wanted).norm() / wanted.norm()
        c.true(
            off < 0.05, "with the same numbers to bfloat16's precision", f"{100 * off:.3g} % off"
        )
