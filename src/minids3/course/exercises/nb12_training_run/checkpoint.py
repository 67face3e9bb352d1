"""What a checkpoint must hold."""

from __future__ import annotations

import copy

import torch

from minids3.course.exercises.nb12_training_run.small_run import STATE, new_run, small_step
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def checkpoint(run):
    """Everything that later steps of a run read, copied.

    run: a dict that small_step changes
    returns a dict with some of the keys of run, and copies of their values
    """
    kept = {}
    for name in ("weights", "m", "v", "updates", "bias", "average",
                 "tokens", "rows", "rng"):
        value = run[name]
        kept[name] = value.clone() if torch.is_tensor(value) else value
    return kept
# fmt: on


def _kept(run, *gone):
    return {name: copy.deepcopy(run[name]) for name in STATE if name not in gone}


def _no_moments(run):
    return _kept(run, "m", "v")


def _no_second_moment(run):
    return _kept(run, "v")


def _no_updates(run):
    return _kept(run, "updates")


def _no_biases(run):
    return _kept(run, "bias")


def _no_average(run):
    return _kept(run, "average")


def _no_tokens(run):
    return _kept(run, "tokens")


def _no_rows(run):
    return _kept(run, "rows")


def _no_position(run):
    return _kept(run, "rows", "tokens")


def _no_random_state(run):
    return _kept(run, "rng")


def _everything(run):
    return copy.deepcopy(run)


def _weights_only(run):
    return {"weights": run["weights"].clone()}


def _model(run):
    return {name: run[name].clone() for name in ("weights", "bias")}


def _copied(run):
    return copy.deepcopy({name: run[name] for name in STATE})


def _minus_scratch(run):
    kept = {name: value for name, value in run.items() if name not in ("loss", "grad", "load")}
    return {n: torch.empty_like(v).copy_(v) if hasattr(v, "shape") else v for n, v in kept.items()}


@exercise(
    "run-checkpoint",
    solution=checkpoint,
    notebook="12_training_run",
    title="What must not be forgotten",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "Go through small_step line by line. Which entries does a step read before it has "
        "written them? Those come from the step before, and only those. And what happens to an "
        "entry that you stored without copying it, when the next step changes it in place?",
        "read, and written by the step before: weights, m, v, updates, bias, average, tokens,\n"
        "  rows, rng\n"
        "written before anything reads them: loss, grad, load\n"
        "copy: tensors with clone(); numbers need none",
    ),
    mutants=[
        Mutant(
            "weights_only",
            _weights_only,
            "The weights alone are a model, and a fine one to talk to. They are not a run: "
            "nothing of the optimizer, the schedule or the data is there.",
        ),
        Mutant(
            "model_only",
            _model,
            "Weights and biases are the model. A run also has an optimizer, a place in the data "
            "and one in the schedule.",
        ),
        Mutant(
            "no_moments",
            _no_moments,
            "The optimizer's two moments are missing. They come back as zeros, and bias "
            "correction, which takes them for old ones, makes the first steps tiny.",
        ),
        Mutant(
            "no_second_moment",
            _no_second_moment,
            "v is missing. Its zero divides m, which is not zero: the first step after resuming "
            "is enormous.",
        ),
        Mutant(
            "no_updates",
            _no_updates,
            "The number of updates is missing. Bias correction then blows up moments that are "
            "full-grown already.",
        ),
        Mutant(
            "no_biases",
            _no_biases,
            "The experts' bias is missing. No optimizer knows it and no gradient brings it back: "
            "tokens go to other experts at once.",
        ),
        Mutant(
            "no_average",
            _no_average,
            "The average of the weights is missing. The run itself goes on as if nothing were "
            "wrong, and the model you wanted to publish is gone.",
        ),
        Mutant(
            "no_tokens",
            _no_tokens,
            "The tokens seen are missing, so the schedule begins again: the learning rate goes "
            "through its warm-up a second time.",
        ),
        Mutant(
            "no_rows",
            _no_rows,
            "The place in the data is missing. The run reads from the first row again, and what "
            "it has seen already looks wonderfully easy.",
        ),
        Mutant(
            "no_position",
            _no_position,
            "Neither the place in the data nor the tokens seen are there: data and schedule both "
            "begin again.",
        ),
        Mutant(
            "no_random_state",
            _no_random_state,
            "The random generator's state is missing. Other inputs are dropped from the first "
            "step on: no disaster, and not the same run.",
        ),
        Mutant(
            "everything",
            _everything,
            "It goes on bit for bit, and it is larger than it need be: gradient, load and loss "
            "are written by every step before anything reads them.",
        ),
    ],
    alternatives=[
        Alternative("copied", _copied),
        Alternative("minus_scratch", _minus_scratch),
    ],
)
def check_checkpoint(c):
    """Resume in a fresh run, go on beside the original, and compare step by step."""
    run = new_run(c.size(0, 10**6))
    for _ in range(c.size(18, 24)):
        small_step(run)
    kept = c.call(run, label="runs, and leaves the run alone")
    c.true(
        isinstance(kept, dict) and set(kept) <= set(run),
        "it returns a dict with keys of the run",
        "a resumed run will look for the names it knows",
    )
    stored = copy.deepcopy(kept)
    original, again, curve = copy.deepcopy(run), _resumed(c, stored), []
    for n in range(1, 41):
        small_step(original)
        small_step(again)
        curve.append((n, [x for x in STATE if not _equal(original[x], again[x])]))
    with c.part():
        c.true(
            "weights" not in curve[0][1],
            "one step after resuming, the weights are the same, bit for bit",
            f"they left the original at once: {_where(curve)}",
        )
    with c.part():
        left = [(n, names) for n, names in curve if names]
        c.true(
            not left,
            "40 steps after resuming, everything is the same",
            f"the resumed run leaves the original: {_where(left)}",
        )
    with c.part():
        given = [value for value in run.values() if torch.is_tensor(value)]
        for _ in range(3):
            small_step(run)
        c.call(new_run(c.size(0, 10**6)))  # a checkpoint of another run
        for value in given:
            value.zero_()
        c.true(
            all(_equal(kept[name], stored[name]) for name in stored),
            "the checkpoint stands still while the run goes on",
            "a value is shared with the run, or with a checkpoint made later: copy it",
        )
    with c.part():
        more = sorted(set(kept) - set(STATE))
        why = f"{', '.join(more)}: written by every step before anything reads it"
        c.true(not more, "nothing is stored that no step needs", why)


def _resumed(c, kept):
    """A fresh run of another seed with the checkpoint's entries put in."""
    return {**new_run(10**6 + c.size(1, 10**6)), **copy.deepcopy(kept)}


def _equal(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b


def _where(curve):
    """The first differences in words; the weights last, since everything ends up in them."""
    if not curve:
        return "nowhere"
    n, names = next(((n, names) for n, names in curve if names), curve[0])
    return f"step {n} after resuming, in {', '.join(names)}"
