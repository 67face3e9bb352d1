"""Clipping gradients by their global norm."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def clip_gradients(grads, max_norm=1.0):
    """Scale gradients so that their common norm is at most `max_norm`.

    grads: list of float tensors of any shapes, or None where a parameter
      got no gradient
    returns a new list of the same kind (shapes, dtypes, None), and the norm
    before clipping (a number)
    """
    squares = [g.float().pow(2).sum().item() for g in grads if g is not None]
    norm = math.sqrt(sum(squares))
    factor = max_norm / norm if norm > max_norm else 1.0
    return [None if g is None else factor * g for g in grads], norm


def _norm(grads):
    return math.sqrt(sum(g.double().pow(2).sum().item() for g in grads if g is not None))


def _scaled(grads, factor):
    return [None if g is None else factor * g for g in grads]


def _clip_each(grads, max_norm=1.0):
    new = [None if g is None else clip_gradients([g], max_norm)[0][0] for g in grads]
    return new, _norm(grads)


def _clip_elements(grads, max_norm=1.0):
    return [None if g is None else g.clamp(-max_norm, max_norm) for g in grads], _norm(grads)


def _clip_always(grads, max_norm=1.0):
    norm = _norm(grads)
    return _scaled(grads, max_norm / norm if norm else 1.0), norm


def _clip_sum_of_norms(grads, max_norm=1.0):
    norm = sum(float(g.norm()) for g in grads if g is not None)
    return _scaled(grads, min(1.0, max_norm / norm) if norm else 1.0), norm


def _clip_no_root(grads, max_norm=1.0):
    norm = _norm(grads) ** 2
    return _scaled(grads, min(1.0, max_norm / norm) if norm else 1.0), norm


def _clip_root_mean(grads, max_norm=1.0):
    norm = _norm(grads) / math.sqrt(sum(g.numel() for g in grads if g is not None))
    return _scaled(grads, min(1.0, max_norm / norm) if norm else 1.0), norm


def _clip_largest(grads, max_norm=1.0):
    norm = max(float(g.norm()) for g in grads if g is not None)
    return _scaled(grads, min(1.0, max_norm / norm) if norm else 1.0), norm


def _clip_last(grads, max_norm=1.0):
    norm = 0.0
    for g in grads:
        norm = norm if g is None else float(g.double().norm())
    return _scaled(grads, min(1.0, max_norm / norm) if norm else 1.0), norm


def _clip_compared_with_one(grads, max_norm=1.0):
    norm = _norm(grads)
    return _scaled(grads, max_norm / norm if norm > 1 else 1.0), norm


def _clip_any_longer(grads, max_norm=1.0):
    norm = _norm(grads)
    longer = any(float(g.double().norm()) > max_norm for g in grads if g is not None)
    return _scaled(grads, max_norm / norm if longer else 1.0), norm


def _clip_norm_after(grads, max_norm=1.0):
    new, norm = clip_gradients(grads, max_norm)
    return new, min(norm, max_norm)


def _clip_at_one(grads, max_norm=1.0):
    return clip_gradients(grads, 1.0)


def _clip_dropped(grads, max_norm=1.0):
    return clip_gradients([g for g in grads if g is not None], max_norm)


def _clip_zeroed(grads, max_norm=1.0):
    new, norm = clip_gradients(grads, max_norm)
    return [torch.zeros(1) if g is None else g for g in new], norm


def _clip_in_place(grads, max_norm=1.0):
    norm = _norm(grads)
    for g in grads:
        if g is not None:
            g.mul_(min(1.0, max_norm / norm) if norm else 1.0)
    return grads, norm


def _clip_flat(grads, max_norm=1.0):
    there = [g.flatten() for g in grads if g is not None]
    norm = torch.cat(there).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # torch's own way around 0 / 0
    return [None if g is None else g * factor for g in grads], norm


def _clip_of_norms(grads, max_norm=1.0):
    norms = torch.stack([torch.linalg.vector_norm(g) for g in grads if g is not None])
    norm = torch.linalg.vector_norm(norms).item()
    new = []
    for g in grads:
        if g is None:
            new.append(None)
        elif norm <= max_norm:
            new.append(g.clone())
        else:
            new.append(g / norm * max_norm)
    return tuple(new), norm


def _clip_library(grads, max_norm=1.0):
    norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None]).item()
    return _scaled(grads, min(1.0, max_norm / max(norm, 1e-12))), norm


@exercise(
    "run-clip",
    solution=clip_gradients,
    notebook="12_training_run",
    title="A speed limit",
    difficulty=2,
    importance=4,
    minutes=8,
    library=_clip_library,
    forbids=(
        "torch.nn.utils.clip_grad_norm_",
        "torch.nn.utils.clip_grad_value_",
        "torch.nn.utils.clip_grads_with_norm_",
        "torch.nn.utils.get_total_norm",
    ),
    hints=(
        "If all tensors were laid end to end in one long vector, what would be its length? And "
        "what happens to its direction when every tensor is multiplied by the same number?",
        "norm = root of the sum of the squares of ALL elements of ALL tensors (None has none)\n"
        "factor = max_norm / norm where norm is larger than max_norm, else 1\n"
        "multiply every tensor by the same factor; None stays None\n"
        "return the new list and norm",
    ),
    mutants=[
        Mutant(
            "each_tensor",
            _clip_each,
            "You clipped every tensor by its own norm. That turns the step: large tensors shrink, "
            "small ones do not. One common factor keeps the direction.",
        ),
        Mutant(
            "elements",
            _clip_elements,
            "You cut single elements off at max_norm. Asked for is one factor for all of them.",
        ),
        Mutant(
            "always",
            _clip_always,
            "You also scale small gradients up to max_norm. A limit is not a target: below it "
            "the factor is 1.",
        ),
        Mutant(
            "sum_of_norms",
            _clip_sum_of_norms,
            "You added the tensors' norms. Lengths at right angles add as squares: root of the "
            "sum of the squared norms.",
        ),
        Mutant(
            "no_root",
            _clip_no_root,
            "That is the sum of the squares. The norm is its square root.",
        ),
        Mutant(
            "root_mean",
            _clip_root_mean,
            "You took the root of the mean square. The norm is of the sum: it grows with the "
            "number of parameters.",
        ),
        Mutant(
            "largest",
            _clip_largest,
            "You took the largest tensor's norm for that of all. Every tensor adds its squares.",
        ),
        Mutant(
            "last",
            _clip_last,
            "You kept the last tensor's norm alone: each one replaced that of the tensor before. "
            "Add up all the squares, then take the root.",
        ),
        Mutant(
            "compared_with_one",
            _clip_compared_with_one,
            "You compared the norm with 1. The limit is max_norm, in the comparison as in the "
            "factor.",
        ),
        Mutant(
            "any_longer",
            _clip_any_longer,
            "You clip only if a single tensor is longer than max_norm. It is their common norm "
            "that has a limit, and it may be beyond it when no tensor is.",
        ),
        Mutant(
            "norm_after",
            _clip_norm_after,
            "You returned the norm after clipping, which never exceeds max_norm. The one before "
            "is what tells that something was wrong.",
        ),
        Mutant(
            "at_one",
            _clip_at_one,
            "You clip at 1 whatever max_norm is. Use the argument.",
        ),
        Mutant(
            "dropped",
            _clip_dropped,
            "You left the Nones out of the returned list, and every gradient after one of them "
            "now belongs to the wrong parameter.",
        ),
        Mutant(
            "zeroed",
            _clip_zeroed,
            "You turned None into zeros. An optimizer skips None; with a zero it decays weight "
            "and moments. None stays None.",
        ),
        Mutant(
            "in_place",
            _clip_in_place,
            "You changed the list or the tensors you were given. Here new ones are asked for, so "
            "that both can be compared.",
        ),
    ],
    alternatives=[
        Alternative("flat", _clip_flat),
        Alternative("of_norms", _clip_of_norms),
    ],
)
def check_clip(c):
    """Above, below and near the limit, other limits, None, zeros, other tensors and dtypes."""
    # The largest tensor is neither the first nor the last.
    grads = [0.3 * c.randn(c.size(5, 7)), 4 * c.randn(c.size(3, 5), c.size(2, 4)), c.randn(2, 2, 3)]
    norm = _by_hand(grads)
    new, said = c.call(list(grads), returns=2, label="runs on three tensors, and leaves them alone")
    with c.part():
        c.close(_number(said), norm, label="the norm of all elements together, before clipping")
    with c.part():
        c.close(_number(_by_hand(new)), 1.0, label="clipped to a common norm of 1")
        label = "all by the same factor: the direction stays"
        c.close(list(new), [g / norm for g in grads], label=label)
    with c.part():
        limits = (0.1, 1.5 + 2 * float(c.rand(1)))
        got = [list(c.call(list(grads), limit, returns=2)[0]) for limit in limits]
        wanted = [[g * (limit / norm) for g in grads] for limit in limits]
        c.close(got, wanted, label="another max_norm")
    with c.part():
        small = [g * (0.4 / norm) for g in grads]
        new, said = c.call(small, returns=2)
        c.close(list(new), small, label="a norm of 0.4 is below the limit: nothing changes")
        c.close(_number(said), 0.4, label="and is told as it is")
    with c.part():
        new, said = c.call([None, *grads[:2], None, grads[2]], 2.0, returns=2)
        wanted = [g * (2 / norm) for g in grads]
        holds = len(new) == 5 and new[0] is None and new[3] is None
        c.true(holds, "None stays None, in its place", "a parameter without gradient stays without")
        c.close([new[1], new[2], new[4]], wanted, label="and counts for nothing in the norm")
    with c.part():
        zeros = [torch.zeros(3), torch.zeros(2, 2)]
        new, said = c.call(zeros, returns=2)
        c.close([*new, _number(said)], [*zeros, 0.0], label="gradients of zero stay zero: no 0 / 0")
    with c.part():
        odd = [3 + c.rand(1)[0], c.strided(4 * c.randn(3, 4)), c.randn(2)]
        norm = _by_hand(odd)
        new, said = c.call(odd, returns=2)
        c.close(_number(said), norm, label="a turned matrix and a single number count, too")
        c.close(list(new), [g / norm for g in odd], label="and are scaled, too")
    with c.part():
        half = torch.full((4,), 300.0, dtype=torch.float16)
        new, said = c.call([half, None], returns=2)
        label = "float16: the square of 300 does not fit, the norm does"
        c.close(_number(said), 600.0, label=label)
        c.dtype(new[0], torch.float16, "what becomes of a float16 gradient")
    with c.part():
        two = [_of_norm(c.randn(3, 2), 1.2), _of_norm(c.randn(4), 1.6)]  # together: 2
        cases = [(two, limit) for limit in (1.5, 1.8, 1.99, 3.0)] + [([0.45 * g for g in two], 0.5)]
        got = [list(c.call(list(some), limit, returns=2)[0]) for some, limit in cases]
        factors = (1.5 / 2, 1.8 / 2, 1.99 / 2, 1.0, 0.5 / 0.9)
        wanted = [[g * x for g in some] for (some, _), x in zip(cases, factors, strict=True)]
        label = "any limit: a common norm just above it is clipped, one below it is not"
        c.close(got, wanted, label=label)
    with c.part():
        kinds = [torch.bfloat16, torch.float64]
        got = [c.call([c.randn(6, dtype=kind)], 0.5, returns=2)[0][0].dtype for kind in kinds]
        label = "bfloat16 stays bfloat16, float64 stays float64"
        c.true(got == kinds, label, "a gradient has its parameter's dtype, a clipped one too")


def _number(value):
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _of_norm(t, norm):
    return t * (norm / math.hypot(*t.flatten().tolist()))


def _by_hand(grads):
    return math.hypot(*(x for g in grads if g is not None for x in g.flatten().tolist()))
