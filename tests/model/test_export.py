"""Models for other programs: what transformers makes of the folder, what a GGUF file holds."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from minids3.config import ConfigError, get_config
from minids3.data import load_tokenizer
from minids3.infer import generate_ids
from minids3.model import ModelFileError, Transformer, find_model, save_model
from minids3.model import __main__ as command
from minids3.model.gguf import save_gguf
from minids3.model.hf import save_hf
from small_models import SIZES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 2048, "initializer_range": 0.3}
    model = Transformer(get_config("mini", **sizes)).eval()
    folder = tmp_path_factory.mktemp("export") / "m"
    save_model(model, folder)
    return model, folder


def test_a_command_takes_every_folder_of_a_model(saved, tmp_path):
    """A Hugging Face folder as well as our own, so that what was exported can be used here."""
    model, folder = saved
    save_hf(model, tmp_path / "hf")
    for given in (folder, tmp_path / "hf"):
        found, where = find_model(str(given))
        assert where == given
        for name, tensor in found.state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name].float(), rtol=0, atol=0)
    assert find_model("dense_chat")[1].name == "dense_chat"
    with pytest.raises(ModelFileError, match="no shipped model 'nobody'"):
        find_model("nobody")


def test_transformers_reads_model_and_tokenizer(saved):
    model, folder = saved
    out = folder.parent / "hf"
    assert command.main(["export", str(folder), "--to", "hf", "--out", str(out)]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out)
    text = "Ask: Who rules Haldo?\n  x = 12"
    ours = load_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer(text)["input_ids"] == ours.encode(text)
    assert tokenizer.decode(ours.encode(text)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.bos_id, ours.eos_id)
    ids = torch.tensor([ours.encode(text, bos=True)])
    got = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(got, generate_ids(model, ids, 8))


def test_the_release_s_format_keeps_the_notes(saved, tmp_path, capsys):
    model, _ = saved
    save_model(model, tmp_path / "m", {"tokens": 12})
    arguments = ["export", str(tmp_path / "m"), "--dtype", "fp8", "--to"]
    assert command.main([*arguments, "hf", "--out", str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf" / "about.json").read_text()) == {"tokens": 12}
    found, _ = find_model(str(tmp_path / "hf"))
    kinds = {name: t.dtype for name, t in load_file(tmp_path / "hf/model.safetensors").items()}
    assert kinds["model.layers.0.mlp.down_proj.weight"] is torch.float8_e4m3fn
    assert kinds["model.layers.0.mlp.down_proj.weight_scale_inv"] is torch.float32
    assert kinds["model.embed_tokens.weight"] is torch.bfloat16
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].float(), rtol=0.07, atol=0.002)
    assert command.main([*arguments, "gguf"]) == 2
    assert "--dtype fp8 is for hf" in capsys.readouterr().err


def test_a_gguf_file_holds_the_model(saved):
    model, folder = saved
    out = folder.parent / "m.gguf"
    assert command.main(["export", str(folder), "--to", "gguf", "--out", str(out)]) == 0
    reader, cfg = gguf.GGUFReader(out), model.config
    tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
    # llama.cpp's names for this architecture: every one that it needs, and no other.
    known = {
        gguf.TENSOR_NAMES[t].format(bid=bid)
        for t in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.DEEPSEEK2]
        for bid in range(cfg.num_hidden_layers)
    }
    assert {name.rsplit(".", 1)[0] for name in tensors} <= known
    for i, layer in enumerate(model.layers):
        k_b, v_b = tensors[f"blk.{i}.attn_k_b.weight"], tensors[f"blk.{i}.attn_v_b.weight"]
        both = torch.cat((k_b.transpose(1, 2), v_b), 1).flatten(0, 1)
        assert torch.equal(both, layer.self_attn.kv_b_proj.weight)
    experts = model.layers[1].mlp.experts
    stacked = [tensors[f"blk.1.ffn_{p}_exps.weight"] for p in ("gate", "up", "down")]
    assert torch.equal(torch.cat(stacked[:2], 1), experts.gate_up_proj)
    assert torch.equal(stacked[2], experts.down_proj)
    assert torch.equal(tensors["output.weight"], model.lm_head.weight)
    main = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("mtp"))
    biases = (cfg.num_hidden_layers - cfg.first_k_dense_replace) * cfg.n_routed_experts
    assert sum(t.numel() for t in tensors.values()) == main + biases

    def field(name):
        return reader.fields[name].contents()

    assert field("general.architecture") == "deepseek2"
    assert field("deepseek2.attention.key_length") == cfg.kv_lora_rank + cfg.qk_rope_head_dim
    assert field("deepseek2.expert_gating_func") == int(gguf.ExpertGatingFuncType.SIGMOID)
    assert abs(field("deepseek2.expert_weights_scale") - 2.5) < 1e-6
    tokenizer = load_tokenizer()
    names = field("tokenizer.ggml.tokens")
    assert len(names) == len(set(names)) == 2048
    assert names[tokenizer.eos_id] == "<|eos|>"
    merges = [
        tuple(names.index(part) for part in m.split(" "))
        for m in field("tokenizer.ggml.merges")[:50]
    ]
    assert merges == [tuple(m) for m in tokenizer.merges[:50]]


def test_half_precision_keeps_routers_and_norms_whole(saved):
    model, folder = saved
    out = save_gguf(model, folder.parent / "half.gguf", dtype=torch.float16)
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(out).tensors}
    whole = gguf.GGMLQuantizationType.F32
    for name, kind in kinds.items():
        is_whole = any(p in name for p in ("norm", "gate_inp", "exp_probs_b"))
        assert kind == (whole if is_whole else gguf.GGMLQuantizationType.F16), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_lora_rank": None}, "q_lora_rank=None"),
        ({"n_shared_experts": 0}, "no shared expert"),
        ({"n_routed_experts": 0}, "no routed experts"),
        ({"rope_interleave": False}, "rope_interleave=False"),
        ({"rope_factor": 2.0}, "YaRN"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"),
    ],
)
def test_what_gguf_cannot_say_is_refused(changes, message, tmp_path):
    model = Transformer(get_config("mini", **{**SIZES, **changes}))
    with pytest.raises(ConfigError, match=message):
        save_gguf(model, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(saved, tmp_path, capsys):
    _, folder = saved
    assert command.main(["export", "no_such_model", "--to", "hf"]) == 2
    assert command.main(["export", str(folder), "--to", "gguf", "--dtype", "bf16"]) == 2
    missing = str(tmp_path / "no" / "m.gguf")
    assert command.main(["export", str(folder), "--to", "gguf", "--out", missing]) == 2
    assert "error:" in capsys.readouterr().err
