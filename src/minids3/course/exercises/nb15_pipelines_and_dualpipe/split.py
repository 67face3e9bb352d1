"""The backward pass in two halves."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def backward_input(grad_y, x, w1, w2):
    """The I of a stage with two weights: y = silu(x @ w1.T) @ w2.T

    grad_y [N, D]: gradient of the loss with respect to y
    x [N, D]; w1 [H, D]; w2 [D, H]; all of one dtype, and so are the results
    returns grad_x [N, D], and what W needs, a list of two pairs, w1's
    first: (input of its product, gradient of its product's output)
    """
    before = x @ w1.T
    sigmoid = torch.sigmoid(before)
    hidden = before * sigmoid
    grad_hidden = grad_y @ w2
    grad_before = grad_hidden * (sigmoid + hidden * (1 - sigmoid))
    return grad_before @ w1, [(x, grad_before), (hidden, grad_y)]
# fmt: on


def _parts(grad_y, x, w1, w2):
    before = x @ w1.T
    sigmoid = torch.sigmoid(before)
    hidden = before * sigmoid
    grad_hidden = grad_y @ w2
    return before, sigmoid, hidden, grad_hidden, sigmoid + hidden * (1 - sigmoid)


def _no_slope(grad_y, x, w1, w2):
    _, _, hidden, grad_hidden, _ = _parts(grad_y, x, w1, w2)
    return grad_hidden @ w1, [(x, grad_hidden), (hidden, grad_y)]


def _slope_sigmoid(grad_y, x, w1, w2):
    _, sigmoid, hidden, grad_hidden, _ = _parts(grad_y, x, w1, w2)
    grad_before = grad_hidden * sigmoid
    return grad_before @ w1, [(x, grad_before), (hidden, grad_y)]


def _slope_of_sigmoid(grad_y, x, w1, w2):
    _, sigmoid, hidden, grad_hidden, _ = _parts(grad_y, x, w1, w2)
    grad_before = grad_hidden * sigmoid * (1 - sigmoid)
    return grad_before @ w1, [(x, grad_before), (hidden, grad_y)]


def _kept_before_slope(grad_y, x, w1, w2):
    _, _, hidden, grad_hidden, slope = _parts(grad_y, x, w1, w2)
    return grad_hidden * slope @ w1, [(x, grad_hidden), (hidden, grad_y)]


def _kept_before_silu(grad_y, x, w1, w2):
    before, _, _, grad_hidden, slope = _parts(grad_y, x, w1, w2)
    grad_before = grad_hidden * slope
    return grad_before @ w1, [(x, grad_before), (before, grad_y)]


def _kept_stage_ends(grad_y, x, w1, w2):
    grad_x, kept = backward_input(grad_y, x, w1, w2)
    return grad_x, [(x, grad_x), (kept[1][0], grad_y)]


def _pairs_swapped(grad_y, x, w1, w2):
    grad_x, kept = backward_input(grad_y, x, w1, w2)
    return grad_x, [(grad, given) for given, grad in kept]


def _last_first(grad_y, x, w1, w2):
    grad_x, kept = backward_input(grad_y, x, w1, w2)
    return grad_x, kept[::-1]


def _w_done(grad_y, x, w1, w2):
    grad_x, kept = backward_input(grad_y, x, w1, w2)
    return grad_x, [grad.T @ given for given, grad in kept]


def _mean_of_rows(grad_y, x, w1, w2):
    grad_x, kept = backward_input(grad_y, x, w1, w2)
    return grad_x, [(given, grad / len(x)) for given, grad in kept]


def _mean_of_all(grad_y, x, w1, w2):
    grad_x, kept = _mean_of_rows(grad_y, x, w1, w2)
    return grad_x / len(x), kept


def _slope_after(grad_y, x, w1, w2):
    _, _, hidden, grad_hidden, _ = _parts(grad_y, x, w1, w2)
    sigmoid = torch.sigmoid(hidden)
    grad_before = grad_hidden * sigmoid * (1 + hidden * (1 - sigmoid))
    return grad_before @ w1, [(x, grad_before), (hidden, grad_y)]


def _with_autograd(grad_y, x, w1, w2):
    x = x.detach().requires_grad_()
    before = F.linear(x, w1)
    hidden = F.silu(before)
    y = F.linear(hidden, w2)
    grad_x, grad_before = torch.autograd.grad(y, (x, before), grad_y)
    return grad_x, [(x.detach(), grad_before), (hidden.detach(), grad_y)]


def _with_tanh(grad_y, x, w1, w2):
    a = torch.einsum("nd,hd->nh", x, w1)
    half = 0.5 * (1 + torch.tanh(a / 2))  # the sigmoid
    slope = half * (1 + a * (1 - half))
    g = torch.einsum("nd,dh->nh", grad_y, w2) * slope
    return torch.einsum("nh,hd->nd", g, w1), [(x, g), (a * half, grad_y)]


@exercise(
    "pipe-split",
    solution=backward_input,
    notebook="15_pipelines_and_dualpipe",
    title="A backward pass in two halves",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "A product z = a @ w.T has two gradients: grad_z @ w for its input, grad_z.T @ a for its "
        "weight. Which of the two does the stage before yours need? What two tensors must you "
        "keep, so that somebody can compute the other one an hour later?",
        "before = x @ w1.T; hidden = silu(before)             # forward again\n"
        "grad_hidden = grad_y @ w2\n"
        "grad_before = grad_hidden * slope of silu at before  # s + hidden * (1 - s), s = sigmoid\n"
        "grad_x = grad_before @ w1\n"
        "return grad_x, [(x, grad_before), (hidden, grad_y)]",
    ),
    mutants=[
        Mutant(
            "no_slope",
            _no_slope,
            "You went through SiLU as if it were not there. Its slope multiplies the gradient.",
        ),
        Mutant(
            "slope_sigmoid",
            _slope_sigmoid,
            "You took sigmoid as SiLU's slope. SiLU is a product, a times sigmoid(a), and both "
            "change with a: its slope has two terms.",
        ),
        Mutant(
            "slope_of_sigmoid",
            _slope_of_sigmoid,
            "That is the slope of sigmoid. SiLU is x times sigmoid(x).",
        ),
        Mutant(
            "kept_before_slope",
            _kept_before_slope,
            "You kept w1 the gradient of the hidden values. Its product's output is what goes "
            "INTO SiLU: the slope belongs to it.",
        ),
        Mutant(
            "kept_before_silu",
            _kept_before_silu,
            "You kept w2 the values before SiLU. The input of its product is what comes out of it.",
        ),
        Mutant(
            "kept_stage_ends",
            _kept_stage_ends,
            "You kept w1 the gradient of the stage's input. Its pair has the gradient of its "
            "product's output, one step earlier in the backward pass.",
        ),
        Mutant(
            "pairs_swapped",
            _pairs_swapped,
            "Your pairs are (gradient, input). The other way round: the input comes first.",
        ),
        Mutant("last_first", _last_first, "The first pair is w1's, the second w2's."),
        Mutant(
            "w_done",
            _w_done,
            "You computed the weights' gradients already. Then nothing has been put off: keep "
            "what their products need, and leave the products to W.",
        ),
        Mutant(
            "mean_of_rows",
            _mean_of_rows,
            "You divided by the number of rows. grad_y comes from the loss; whatever mean there "
            "is, is in it already.",
        ),
        Mutant(
            "mean_of_all",
            _mean_of_all,
            "All that you return is divided by the number of rows. If the loss is a mean, grad_y "
            "has that factor already.",
        ),
        Mutant(
            "slope_after",
            _slope_after,
            "You took the slope at what comes out of SiLU. It is the slope at what goes in.",
        ),
    ],
    alternatives=[
        Alternative("with_autograd", _with_autograd),
        Alternative("with_tanh", _with_tanh),
    ],
)
def check_backward_input(c):
    """Input gradient, both pairs, the weights' gradients made from them; float64; large values."""
    rows, width, inner = c.size(9, 12), c.size(5, 7), c.size(14, 18)
    grad_y, x = c.randn(rows, width), 2 * c.randn(rows, width)
    w1, w2 = c.randn(inner, width) / width**0.5, c.randn(width, inner) / inner**0.5
    grad_x, kept = c.call(
        grad_y, x, w1, w2, returns=2, label=f"runs on grad_y {[rows, width]}, returns two things"
    )
    wanted = _truth(grad_y, x, w1, w2)
    why = "it is no list of two pairs of tensors"
    with c.part():
        c.close(grad_x, wanted["x"], label="grad_x is what the stage before needs", rtol=1e-3)
    with c.part():
        c.true(_is_pairs(kept), "two pairs are kept for W", why)
        c.shape(kept[0][0], [rows, width], label=f"w1's input has shape {[rows, width]}")
        c.shape(kept[0][1], [rows, inner], label=f"w1's gradient has shape {[rows, inner]}")
        with c.part():
            got = kept[0][1].T @ kept[0][0]
            c.close(got, wanted["w1"], label="W from the first pair: w1's gradient", rtol=1e-3)
        with c.part():
            c.shape(kept[1][0], [rows, inner], label=f"w2's input has shape {[rows, inner]}")
            got = kept[1][1].T @ kept[1][0]
            c.close(got, wanted["w2"], label="W from the second pair: w2's gradient", rtol=1e-3)
    with c.part():
        fine = [t.double() for t in (grad_y, x, w1, w2)]
        wanted = _truth(*fine)
        grad_x, kept = c.call(*fine, returns=2)
        label = "in float64: grad_x, to ten digits"
        c.close(grad_x, wanted["x"], label=label, rtol=1e-10, atol=1e-12)
        c.dtype(grad_x, torch.float64, label="and float64 itself")
        c.true(_is_pairs(kept), "and two pairs, in float64", why)
        got = [grad.double().T @ given.double() for given, grad in kept]
        wanted = [wanted["w1"], wanted["w2"]]
        label = "and both weights' gradients, made from the pairs"
        c.close(got, wanted, label=label, rtol=1e-10, atol=1e-12)
    with c.part():
        before = x[:1] @ w1.T  # past where exp overflows, on both sides
        one = (grad_y[:1], x[:1] * (100 / min(before.max(), -before.min())), w1, w2)
        grad_x, kept = c.call(*one, returns=2)
        wanted = _truth(*one)
        c.close(grad_x, wanted["x"], label="one row, large values: grad_x", rtol=1e-3, atol=1e-4)
        c.true(_is_pairs(kept), "and two pairs", why)
        c.shape(kept[0][1], [1, inner], label="and w1's gradient has a row")
        got = kept[0][1].T @ kept[0][0]
        c.close(got, wanted["w1"], label="and w1's gradient", rtol=1e-3, atol=1e-3)
        c.shape(kept[1][0], [1, inner], label="and w2's input has a row")
        got = kept[1][1].T @ kept[1][0]
        c.close(got, wanted["w2"], label="and w2's gradient", rtol=1e-3, atol=1e-3)


def _is_pairs(kept):
    return len(kept) == 2 and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(t.ndim == 2 for t in pair)
        for pair in kept
    )


def _truth(grad_y, x, w1, w2):
    """All three gradients by autograd in float64."""
    leaves = [t.double().requires_grad_() for t in (x, w1, w2)]
    y = F.silu(leaves[0] @ leaves[1].T) @ leaves[2].T
    grads = torch.autograd.grad(y, leaves, grad_y.double())
    return {name: g.to(x.dtype) for name, g in zip(("x", "w1", "w2"), grads, strict=True)}
