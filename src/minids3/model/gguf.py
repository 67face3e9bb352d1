"""A model as one GGUF file, the format of llama.cpp, under its architecture ``deepseek2``.

llama.cpp runs MLA absorbed, with one shared key-value head, so ``kv_b`` is stored as two tensors
per layer: ``attn_k_b`` (each head's ``[C, dn]``, folded into the query) and ``attn_v_b`` (each
head's ``[dv, C]``). Experts are stacked, as here. MTP modules are left out: nothing there reads
them.

Text is cut by one of the patterns that llama.cpp has by name, and this workbook's is not among
them. The nearest, ``smollm``, cuts words, digits and punctuation alike, but line breaks with
indentation and apostrophes otherwise; give token ids where it matters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minids3.config import ConfigError, ModelConfig
from minids3.data import Tokenizer
from minids3.data.bpe import N_SPECIALS
from minids3.data.tokenizer import byte_characters
from minids3.model.transformer import Transformer

__all__ = ["gguf_tensors", "save_gguf"]

PATTERN = "smollm"
LATENT_EPS = 1e-6  # of the latents' norms here; llama.cpp has one epsilon for all
CONTROL, NORMAL = 3, 1  # gguf.TokenType
SIGMOID, SOFTMAX = 2, 1  # gguf.ExpertGatingFuncType


def save_gguf(
    model: Transformer,
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write ``model`` to one file, at once or not at all.

    Args:
        model: what to save.
        path: the file.
        tokenizer: its tokens and merges go into the file, too.
        dtype: of matrices, fp32 or fp16; norms, routers and their biases stay fp32.

    Raises:
        ConfigError: llama.cpp has no way to say something that this model needs.
        ImportError: the package ``gguf`` is not installed.
        OSError: the file cannot be written.
    """
    from gguf import GGUFWriter

    cfg, path = model.config, Path(path)
    _check(cfg)
    if tokenizer is not None and tokenizer.vocab_size != cfg.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {cfg.vocab_size}"
        )
    partial = path.with_name(path.name + ".partial")
    writer = GGUFWriter(partial, "deepseek2")
    try:
        _write_fields(writer, cfg)
        if tokenizer is not None:
            _write_tokenizer(writer, tokenizer)
        for name, tensor in gguf_tensors(model):
            wide = tensor.ndim == 1 or "gate_inp" in name
            numbers = tensor.detach().to("cpu", torch.float32 if wide else dtype).contiguous()
            writer.add_tensor(name, numbers.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    os.replace(partial, path)
    return path


def gguf_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the file, in PyTorch's order of dimensions."""
    cfg = model.config
    yield "token_embd.weight", model.embed_tokens.weight
    yield "output_norm.weight", model.norm.weight
    yield "output.weight", model.lm_head.weight
    layers: list[Any] = list(model.layers)
    for i, layer in enumerate(layers):
        attention, mlp, at = layer.self_attn, layer.mlp, f"blk.{i}."
        yield at + "attn_norm.weight", layer.input_layernorm.weight
        yield at + "attn_q_a.weight", attention.q_a_proj.weight
        yield at + "attn_q_a_norm.weight", attention.q_a_layernorm.weight
        yield at + "attn_q_b.weight", attention.q_b_proj.weight
        yield at + "attn_kv_a_mqa.weight", attention.kv_a_proj_with_mqa.weight
        yield at + "attn_kv_a_norm.weight", attention.kv_a_layernorm.weight
        both = attention.kv_b_proj.weight.unflatten(0, (cfg.num_attention_heads, -1))
        k_b, v_b = both.split((cfg.qk_nope_head_dim, cfg.v_head_dim), 1)
        yield at + "attn_k_b.weight", k_b.transpose(1, 2)  # [H, C, dn]
        yield at + "attn_v_b.weight", v_b  # [H, dv, C]
        yield at + "attn_output.weight", attention.o_proj.weight
        yield at + "ffn_norm.weight", layer.post_attention_layernorm.weight
        if not cfg.is_moe_layer(i):
            for part in ("gate", "up", "down"):
                yield f"{at}ffn_{part}.weight", getattr(mlp, f"{part}_proj").weight
            continue
        yield at + "ffn_gate_inp.weight", mlp.gate.weight
        yield at + "exp_probs_b.bias", mlp.gate.expert_bias
        gate, up = mlp.experts.gate_up_proj.chunk(2, 1)
        yield at + "ffn_gate_exps.weight", gate
        yield at + "ffn_up_exps.weight", up
        yield at + "ffn_down_exps.weight", mlp.experts.down_proj
        for part in ("gate", "up", "down"):
            yield f"{at}ffn_{part}_shexp.weight", getattr(mlp.shared_experts, f"{part}_proj").weight


def _check(cfg: ModelConfig) -> None:
    """Refuse what the architecture ``deepseek2`` cannot say."""
    wrong = {
        "attention='gqa'": cfg.attention != "mla",
        "q_lora_rank=None": cfg.q_lora_rank is None,
        "no routed experts": not cfg.is_moe,
        "no shared expert": cfg.n_shared_experts == 0,
        "rope_interleave=False": not cfg.rope_interleave,
        "positions stretched by YaRN": cfg.is_yarn,
        f"rms_norm_eps={cfg.rms_norm_eps}": cfg.rms_norm_eps != LATENT_EPS,
    }
    for what, there in wrong.items():
        if there:
            raise ConfigError(
                f"this model has {what}, which a GGUF file of deepseek2 written here cannot say: "
                "export to hf"
            )


def _write_fields(writer: Any, cfg: ModelConfig) -> None:
    """Sizes, under llama.cpp's names."""
    latent, rope = cfg.kv_lora_rank, cfg.qk_rope_head_dim
    whole = {
        "context_length": cfg.max_position_embeddings,
        "embedding_length": cfg.hidden_size,
        "block_count": cfg.num_hidden_layers,
        "feed_forward_length": cfg.intermediate_size,
        "vocab_size": cfg.vocab_size,
        "leading_dense_block_count": cfg.first_k_dense_replace,
        "attention.head_count": cfg.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": cfg.q_lora_rank,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": cfg.qk_nope_head_dim + rope,
        "attention.value_length_mla": cfg.v_head_dim,
        "rope.dimension_count": rope,
        "expert_count": cfg.n_routed_experts,
        "expert_used_count": cfg.num_experts_per_tok,
        "expert_shared_count": cfg.n_shared_experts,
        "expert_feed_forward_length": cfg.moe_intermediate_size,
        "expert_group_count": cfg.n_group,
        "expert_group_used_count": cfg.topk_group,
        "expert_gating_func": SIGMOID if cfg.scoring_func == "sigmoid" else SOFTMAX,
    }
    for name, value in whole.items():
        writer.add_uint32(f"deepseek2.{name}", value)
    floats = {
        "attention.layer_norm_rms_epsilon": cfg.rms_norm_eps,
        "rope.freq_base": cfg.rope_theta,
        "expert_weights_scale": cfg.routed_scaling_factor,
    }
    for name, number in floats.items():
        writer.add_float32(f"deepseek2.{name}", number)
    writer.add_bool("deepseek2.expert_weights_norm", cfg.norm_topk_prob)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    """Tokens as GPT-2 writes bytes, and merges."""
    characters = byte_characters()
    names = [
        tokenizer.decode([i], skip_special=False)
        if i < N_SPECIALS
        else "".join(characters[byte] for byte in tokenizer.token_bytes(i))
        for i in range(tokenizer.vocab_size)
    ]
    add = writer
    add.add_tokenizer_model("gpt2")
    add.add_tokenizer_pre(PATTERN)
    add.add_token_list(names)
    add.add_token_types([CONTROL if i < N_SPECIALS else NORMAL for i in range(len(names))])
    merges = [f"{names[left]} {names[right]}" for left, right in tokenizer.merges]
    add.add_token_merges(merges)
    add.add_bos_token_id(tokenizer.bos_id)
    add.add_eos_token_id(tokenizer.eos_id)
    add.add_pad_token_id(tokenizer.pad_id)
    add.add_add_bos_token(True)
