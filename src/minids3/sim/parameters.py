"""Parameters of a configuration, component by component, without building a model.

The released model's numbers come out to the digit: 671,026,404,352 [C-params] and 11,610,067,968
for MTP [C-mtp-params]. Router biases are counted apart: they steer the choice of experts and are
never trained by a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from minids3.config import ModelConfig

__all__ = [
    "Component",
    "activated_parameters",
    "attention_parameters",
    "components",
    "dense_twin",
    "expert_parameters",
    "feed_forward_parameters",
    "layer_parameters",
    "matmul_parameters",
    "mtp_matmul_parameters",
    "mtp_parameters",
    "router_bias_parameters",
    "total_parameters",
]


@dataclass(frozen=True)
class Component:
    """``count`` equal parts of ``each`` parameters; ``activated`` of them work for one token.

    ``norms`` is how many of ``each`` are norm weights, which no matrix product touches.
    """

    name: str
    each: int
    count: int
    activated: int
    norms: int = 0

    @property
    def total(self) -> int:
        """Parameters of all the parts together."""
        return self.each * self.count

    @property
    def activated_total(self) -> int:
        """Parameters of the parts that one token passes through."""
        return self.each * self.activated


def attention_parameters(cfg: ModelConfig) -> tuple[int, int]:
    """Return (all parameters, latent-norm weights among them) of one attention (TR eq. 1-11)."""
    d, heads = cfg.hidden_size, cfg.num_attention_heads
    if cfg.attention == "gqa":
        return 2 * d * cfg.head_dim * (heads + cfg.num_key_value_heads), 0
    rank_q, rank_kv, rope = cfg.q_lora_rank, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    queries = heads * cfg.qk_head_dim
    query = d * queries if rank_q is None else rank_q * (d + queries)
    down = d * (rank_kv + rope)
    up = rank_kv * heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    out = heads * cfg.v_head_dim * d
    norms = rank_kv + (rank_q or 0)
    return query + down + up + out + norms, norms


def feed_forward_parameters(cfg: ModelConfig) -> int:
    """Return the parameters of one dense SwiGLU: gate, up and down, no biases."""
    return 3 * cfg.hidden_size * cfg.intermediate_size


def expert_parameters(cfg: ModelConfig) -> int:
    """Return the parameters of one routed expert (0 for a dense model)."""
    return 3 * cfg.hidden_size * cfg.moe_intermediate_size if cfg.is_moe else 0


def _moe_layers(cfg: ModelConfig) -> int:
    return sum(cfg.is_moe_layer(i) for i in range(cfg.num_hidden_layers))


def components(cfg: ModelConfig) -> list[Component]:
    """Return the main model's components in the order a token meets them, without empty ones."""
    layers, moe = cfg.num_hidden_layers, _moe_layers(cfg)
    dense = layers - moe
    table = cfg.vocab_size * cfg.hidden_size
    attention, latent_norms = attention_parameters(cfg)
    expert = expert_parameters(cfg)
    routed = moe * cfg.n_routed_experts
    shared = moe * cfg.n_shared_experts
    norms = 2 * layers + 1
    head = 0 if cfg.tie_word_embeddings else 1
    parts = [
        Component("embedding", table, 1, 1),
        Component("attention", attention, layers, layers, latent_norms),
        Component("dense feed-forward", feed_forward_parameters(cfg), dense, dense),
        Component("routed expert", expert, routed, moe * cfg.num_experts_per_tok),
        Component("shared expert", expert, shared, shared),
        Component("router weight", cfg.n_routed_experts * cfg.hidden_size, moe, moe),
        Component("block and final norms", cfg.hidden_size, norms, norms, cfg.hidden_size),
        Component("output head", table, head, head),
    ]
    return [p for p in parts if p.total]


def total_parameters(cfg: ModelConfig) -> int:
    """Return the main model's parameters: no MTP module, no router bias."""
    return sum(p.total for p in components(cfg))


def router_bias_parameters(cfg: ModelConfig) -> int:
    """Return the router biases of the main model (e_score_correction_bias, sigmoid gates)."""
    return _moe_layers(cfg) * cfg.n_routed_experts if cfg.scoring_func == "sigmoid" else 0


def activated_parameters(cfg: ModelConfig, embedding: bool = True, head: bool = True) -> int:
    """Return the parameters one token passes through, with or without embedding and output head."""
    left_out = {"embedding"} if not embedding else set()
    if not head:
        left_out.add("output head")
    return sum(p.activated_total for p in components(cfg) if p.name not in left_out)


def matmul_parameters(cfg: ModelConfig) -> int:
    """Return the weights one token is multiplied by: the head counts (tied or not), norms and the
    embedding lookup do not.
    """
    inside = sum(
        (p.each - p.norms) * p.activated
        for p in components(cfg)
        if p.name not in ("embedding", "output head")
    )
    return inside + cfg.vocab_size * cfg.hidden_size


def layer_parameters(cfg: ModelConfig, moe: bool) -> int:
    """Return the parameters of one layer with its two norms, a MoE or a dense one."""
    if moe:
        experts = (cfg.n_routed_experts + cfg.n_shared_experts) * expert_parameters(cfg)
        feed_forward = experts + cfg.n_routed_experts * cfg.hidden_size
    else:
        feed_forward = feed_forward_parameters(cfg)
    return attention_parameters(cfg)[0] + feed_forward + 2 * cfg.hidden_size


def mtp_parameters(cfg: ModelConfig) -> int:
    """Return what the MTP modules own: a layer, eh_proj and three norms each (TR eq. 21)."""
    d = cfg.hidden_size
    each = layer_parameters(cfg, cfg.is_moe) + 2 * d * d + 3 * d
    return cfg.num_nextn_predict_layers * each


def mtp_matmul_parameters(cfg: ModelConfig) -> int:
    """Return the weights a token is multiplied by in the MTP modules, shared head included."""
    attention, latent_norms = attention_parameters(cfg)
    if cfg.is_moe:
        experts = (cfg.num_experts_per_tok + cfg.n_shared_experts) * expert_parameters(cfg)
        feed_forward = experts + cfg.n_routed_experts * cfg.hidden_size
    else:
        feed_forward = feed_forward_parameters(cfg)
    head = cfg.vocab_size * cfg.hidden_size
    each = attention - latent_norms + feed_forward + 2 * cfg.hidden_size**2 + head
    return cfg.num_nextn_predict_layers * each


def dense_twin(cfg: ModelConfig) -> ModelConfig:
    """Return a dense model with ``cfg``'s attention, depth, width and (nearly) its size.

    The feed-forward is widened until the total is the nearest one an integer width can give.
    """
    slim = cfg.replace(n_routed_experts=0, num_experts_per_tok=0, n_shared_experts=0)
    rest = total_parameters(slim) - cfg.num_hidden_layers * feed_forward_parameters(slim)
    per_width = 3 * cfg.hidden_size * cfg.num_hidden_layers
    return slim.replace(intermediate_size=round((total_parameters(cfg) - rest) / per_width))
