"""How many parameters there are, and how many one token uses."""

from __future__ import annotations

import torch

from minids3.config import get_config
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim import parameters


# fmt: off
def feed_forward_parameters(hidden, layers, dense_layers, dense_width,
                            routed, shared, top_k, expert_width):
    """Parameters of all feed-forward layers: in all, and used by one token.

    The first dense_layers of the layers are plain SwiGLUs of dense_width.
    The others have a gate, routed experts of which a token uses top_k, and
    shared experts; an expert is a SwiGLU of expert_width.
    returns total, activated
    """
    dense = dense_layers * 3 * hidden * dense_width
    expert = 3 * hidden * expert_width
    gate = routed * hidden
    moe_layers = layers - dense_layers
    total = dense + moe_layers * (gate + (routed + shared) * expert)
    activated = dense + moe_layers * (gate + (top_k + shared) * expert)
    return total, activated
# fmt: on


def _all_routed(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, _ = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return total, total


def _no_shared(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    return feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, 0, top_k, expert_width
    )


def _shared_idle(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    args = (hidden, layers, dense_layers, dense_width, routed)
    total, _ = feed_forward_parameters(*args, shared, top_k, expert_width)
    return total, feed_forward_parameters(*args, 0, top_k, expert_width)[1]


def _no_gate(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, activated = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    gates = (layers - dense_layers) * routed * hidden
    return total - gates, activated - gates


def _gate_of_chosen(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, activated = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return total, activated - (layers - dense_layers) * (routed - top_k) * hidden


def _two_matrices(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    dense = dense_layers * 2 * hidden * dense_width
    expert, gate, moe = 2 * hidden * expert_width, routed * hidden, layers - dense_layers
    return (
        dense + moe * (gate + (routed + shared) * expert),
        dense + moe * (gate + (top_k + shared) * expert),
    )


def _everywhere(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    return feed_forward_parameters(
        hidden,
        layers + dense_layers,
        dense_layers,
        dense_width,
        routed,
        shared,
        top_k,
        expert_width,
    )


def _no_dense(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    return feed_forward_parameters(
        hidden, layers, dense_layers, 0, routed, shared, top_k, expert_width
    )


def _shared_within(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, activated = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return total, activated - (layers - dense_layers) * shared * 3 * hidden * expert_width


def _one_layer(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    return feed_forward_parameters(
        hidden, dense_layers + 1, dense_layers, dense_width, routed, shared, top_k, expert_width
    )


def _one_gate(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, activated = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    others = (layers - dense_layers - 1) * routed * hidden
    return total - others, activated - others


def _layer_by_layer(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total = activated = 0
    for layer in range(layers):
        if layer < dense_layers:
            total += 3 * hidden * dense_width
            activated += 3 * hidden * dense_width
        else:
            total += hidden * (routed + 3 * expert_width * (routed + shared))
            activated += hidden * (routed + 3 * expert_width * (top_k + shared))
    return total, activated


def _total_less_idle(
    hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
):
    moe = layers - dense_layers
    total = 3 * hidden * (dense_layers * dense_width + moe * (routed + shared) * expert_width)
    total += moe * hidden * routed
    return [total, total - moe * (routed - top_k) * 3 * hidden * expert_width]


def _dense_idle(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    total, activated = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return total, activated - 3 * dense_layers * hidden * dense_width


def _through_float32(
    hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
):
    counts = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return tuple(int(torch.tensor(float(n), dtype=torch.float32)) for n in counts)


def _floats(hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width):
    counts = feed_forward_parameters(
        hidden, layers, dense_layers, dense_width, routed, shared, top_k, expert_width
    )
    return counts[0] / 1, counts[1] / 1


@exercise(
    "moe-activated",
    solution=feed_forward_parameters,
    notebook="04_mixture_of_experts",
    title="All of it, and the part that works",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "Which matrices does every token meet in a layer with experts, whatever the gate says? "
        "To choose some of the experts, how many of them must the gate score?",
        "dense = dense_layers times 3 matrices of hidden x dense_width\n"
        "expert = 3 matrices of hidden x expert_width\n"
        "gate = one row of hidden per routed expert: all are scored\n"
        "total = dense + (layers - dense_layers) * (gate + (routed + shared) * expert)\n"
        "activated: the same with top_k in place of routed",
    ),
    mutants=[
        Mutant(
            "all_routed",
            _all_routed,
            "You counted every routed expert as activated. A token meets top_k of them.",
        ),
        Mutant(
            "no_shared",
            _no_shared,
            "The shared experts are missing: they are parameters, and every token uses them.",
        ),
        Mutant(
            "shared_idle",
            _shared_idle,
            "The shared experts are missing in the activated count: they come on top of top_k, and "
            "every token passes through them.",
        ),
        Mutant(
            "no_gate",
            _no_gate,
            "The gates are missing: a matrix [routed, hidden] in each layer with experts.",
        ),
        Mutant(
            "one_gate",
            _one_gate,
            "You counted one gate for the whole model. Each layer with experts has its own.",
        ),
        Mutant(
            "gate_of_chosen",
            _gate_of_chosen,
            "You counted only the chosen experts' rows of the gate. It has to score all of them "
            "in order to choose.",
        ),
        Mutant(
            "two_matrices",
            _two_matrices,
            "A SwiGLU has three matrices: gate, up and down.",
        ),
        Mutant(
            "everywhere",
            _everywhere,
            "You put experts into all the layers. The first dense_layers have none.",
        ),
        Mutant(
            "no_dense",
            _no_dense,
            "The dense layers at the bottom are missing: they count, and every token uses them.",
        ),
        Mutant(
            "one_layer",
            _one_layer,
            "You counted a single layer with experts. There are layers - dense_layers of them.",
        ),
        Mutant(
            "dense_idle",
            _dense_idle,
            "You left the dense layers out of the activated parameters. Every token goes through "
            "them.",
        ),
        Mutant(
            "through_float32",
            _through_float32,
            "You counted in float32, which knows whole numbers up to 16 million only. Use "
            "Python's ints.",
        ),
        Mutant(
            "floats",
            _floats,
            "You returned floats. Parameters are counted: use whole numbers.",
        ),
    ],
    alternatives=[
        Alternative("layer_by_layer", _layer_by_layer),
        Alternative("total_less_idle", _total_less_idle),
    ],
)
def check_feed_forward_parameters(c):
    """Against the library's component list, without shared experts, without dense layers."""
    sizes = {
        "hidden": 8 * c.size(3, 5),
        "layers": c.size(6, 8),
        "dense_layers": 2,
        "dense_width": 10 * c.size(7, 9),
        "routed": c.size(12, 16),
        "shared": 2,
        "top_k": c.size(3, 5),
        "expert_width": c.size(17, 23),
    }
    out = c.call(
        **sizes,
        label="runs on a small configuration and returns two numbers",
        returns=2,
    )
    total, activated = _expected(sizes)
    with c.part():
        c.equal(out[0], total, label="total: every dense layer, gate and expert")
    with c.part():
        c.equal(out[1], activated, label="activated: top_k routed experts and all shared ones")
    with c.part():
        alone = sizes | {"shared": 0, "dense_layers": 0}
        plain = c.call(**alone, returns=2)
        label = "no shared experts, no dense layers"
        c.equal(list(plain), list(_expected(alone)), label=label)
    with c.part():
        every = sizes | {"top_k": sizes["routed"]}
        both = c.call(**every, returns=2)
        label = "if a token uses all experts, the two are equal"
        c.equal(list(both), list(_expected(every)), label=label)
    with c.part():
        dense = sizes | {"layers": 2}
        only = c.call(**dense, returns=2)
        wanted = 2 * 3 * sizes["hidden"] * sizes["dense_width"]
        c.equal(list(only), [wanted, wanted], label="dense layers only: all of it is activated")
    with c.part():
        v3 = {
            "hidden": 7168,
            "layers": 61,
            "dense_layers": 3,
            "dense_width": 18432,
            "routed": 256,
            "shared": 1,
            "top_k": 8,
            "expert_width": 2048 + c.size(1, 9),  # nearly DeepSeek-V3's
        }
        big = c.call(**v3, returns=2)
        c.equal(tuple(big), _expected(v3), label="numbers of eleven digits are exact")


def _expected(sizes):
    """From the library's components, which are tested against built models."""
    cfg = get_config(
        "tiny",
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        first_k_dense_replace=sizes["dense_layers"],
        intermediate_size=sizes["dense_width"],
        n_routed_experts=sizes["routed"],
        n_shared_experts=sizes["shared"],
        num_experts_per_tok=sizes["top_k"],
        moe_intermediate_size=sizes["expert_width"],
    )
    names = ("dense feed-forward", "routed expert", "shared expert", "router weight")
    parts = [p for p in parameters.components(cfg) if p.name in names]
    return sum(p.total for p in parts), sum(p.activated_total for p in parts)
