"""Which modules become FP8."""

from __future__ import annotations

import re

import torch

from minids3.config import get_config
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.model import Transformer
from minids3.model.hf.names import hf_layout


def goes_fp8(name):
    """Whether a module's products are FP8 in DeepSeek-V3.

    name: where it is, such as "layers.3.self_attn.o_proj"
    returns True or False
    """
    last = name.split(".")[-1]
    if last.endswith("norm"):
        return False
    return last not in ("embed_tokens", "lm_head", "gate", "eh_proj")


def _fp8_substring(name):
    return goes_fp8(name) and "gate" not in name


def _fp8_head(name):
    return goes_fp8(name) or name == "lm_head"


def _fp8_embedding(name):
    return goes_fp8(name) or name == "embed_tokens"


def _fp8_gate(name):
    return goes_fp8(name) or name.endswith(".gate")


def _fp8_eh_proj(name):
    return goes_fp8(name) or name.endswith("eh_proj")


def _fp8_norms(name):
    return name.split(".")[-1] not in ("embed_tokens", "lm_head", "gate", "eh_proj")


def _fp8_no_attention(name):
    return goes_fp8(name) and "self_attn" not in name


def _fp8_no_mtp(name):
    return goes_fp8(name) and not name.startswith("mtp")


def _fp8_no_shared(name):
    return goes_fp8(name) and "shared_experts" not in name


def _fp8_no_experts(name):
    return goes_fp8(name) and not name.endswith(".experts")


def _fp8_proj_only(name):
    return goes_fp8(name) and (name.endswith("_proj") or name.endswith("experts"))


def _fp8_edges(name):
    return goes_fp8(name) and not name.startswith("layers.0.")


def _fp8_list(name):
    parts = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj"]
    return name.split(".")[-1] in [*parts, "up_proj", "down_proj", "experts"]


def _fp8_pattern(name):
    kept = r"(^|\.)(embed_tokens|lm_head|gate|eh_proj|\w*norm)$"
    return re.search(kept, name) is None


def _modules_text(name):
    return str(goes_fp8(name))


@exercise(
    "fp8-modules",
    solution=goes_fp8,
    notebook="10_fp8_training",
    title="Who may round, and who may not",
    difficulty=2,
    importance=4,
    minutes=7,
    hints=(
        "Five kinds of modules stay as they are. Which ones decide something by comparing close "
        "numbers, which speak with the vocabulary, and which cost next to nothing anyway? Mind "
        "that gate and gate_proj are different modules.",
        "last = the part of the name after the last dot\n"
        "if last ends with 'norm': return False\n"
        "return whether last is none of: embedding, head, gate, eh_proj",
    ),
    mutants=[
        Mutant(
            "substring",
            _fp8_substring,
            "gate_proj was left out: the word gate is part of its name, but it is a third of every "
            "feed-forward. Compare the last part of the name, whole.",
        ),
        Mutant(
            "head",
            _fp8_head,
            "The head is in. Its logits decide between 129,280 words, and the loss starts there.",
        ),
        Mutant("embedding", _fp8_embedding, "The embedding is in. It is a lookup, no product."),
        Mutant(
            "gate",
            _fp8_gate,
            "The gate is in. It compares close numbers, and a rounding error sends tokens to other "
            "experts.",
        ),
        Mutant(
            "eh_proj",
            _fp8_eh_proj,
            "eh_proj is in. The released checkpoints keep the MTP module's projection in BF16.",
        ),
        Mutant("norms", _fp8_norms, "Norms are in. They are no products and cost next to nothing."),
        Mutant(
            "no_attention",
            _fp8_no_attention,
            "You left all of attention out. Only its core stays, the softmax over scores; its "
            "projections are ordinary linear layers.",
        ),
        Mutant(
            "no_mtp",
            _fp8_no_mtp,
            "You left the MTP module out as a whole. Its block is like any other; only eh_proj and "
            "the norms stay.",
        ),
        Mutant(
            "no_shared",
            _fp8_no_shared,
            "The shared experts are missing. They are ordinary feed-forwards.",
        ),
        Mutant(
            "no_experts",
            _fp8_no_experts,
            "The routed experts are missing, and they are 97 % of all weights.",
        ),
        Mutant(
            "proj_only",
            _fp8_proj_only,
            "kv_a_proj_with_mqa is missing: its name does not end in _proj.",
        ),
        Mutant(
            "first_layer",
            _fp8_edges,
            "You spared the first layer. Some recipes do; DeepSeek-V3's does not.",
        ),
        Mutant(
            "text",
            _modules_text,
            "You returned text. 'False' is true in an if: return True or False.",
        ),
    ],
    alternatives=[
        Alternative("list", _fp8_list),
        Alternative("pattern", _fp8_pattern),
    ],
)
def check_modules(c):
    """Every module with weights of a random MLA + MoE + MTP model, against the released files."""
    cfg = get_config(
        "mini",
        num_hidden_layers=c.size(3, 5),
        first_k_dense_replace=c.size(1, 2),
        num_nextn_predict_layers=c.size(1, 2),
    )
    released = _released(cfg)
    answers = {}
    gate = c.call("layers.3.mlp.gate", allow_none=True)
    c.true(
        isinstance(gate, bool),
        "it returns True or False",
        f"it returned {gate!r:.40}. Every way through it needs a return of True or False: wrap "
        "what re.search found in bool()",
    )
    for name in released:
        answers[name] = c.call(name)

    def agree(label, *parts):
        chosen = [n for n in released if any(p in f".{n}." for p in parts)]
        wrong = [n for n in chosen if answers[n] != released[n]]
        c.true(not wrong, label, f"{wrong[0]} should be {released[wrong[0]]}" if wrong else "")

    with c.part():
        agree(
            "projections are in, of attention and of feed-forwards", "_proj.", "kv_a_proj_with_mqa."
        )
    with c.part():
        agree("routed experts are in", ".mlp.experts.")
    with c.part():
        agree("the gate is out", ".mlp.gate.")
    with c.part():
        agree("embedding and head are out", ".embed_tokens.", ".lm_head.")
    with c.part():
        agree("norms are out", "norm.")
    with c.part():
        agree("feed-forwards and shared experts are in", ".mlp.")
    with c.part():
        agree("the MTP module: its block is in, eh_proj is out", ".mtp.")
    with c.part():
        c.true(answers == released, "the whole list is that of the released checkpoint")
    with c.part():
        for name, wanted in (("layers.42.self_attn.o_proj", True), ("layers.42.mlp.gate", False)):
            got = c.call(name, allow_none=True)
            c.true(got is wanted, f"{name} is {wanted}", f"it returned {got!r:.40}")


def _released(cfg):
    """Module names, and whether a released checkpoint holds their weights as FP8."""
    with torch.device("meta"):
        model = Transformer(cfg)
    owners = {name for name, m in model.named_modules() if list(m.parameters(recurse=False))}
    fp8 = {t.source.rpartition(".")[0] for t in hf_layout(cfg) if t.fp8}
    return {name: name in fp8 for name in sorted(owners)}
