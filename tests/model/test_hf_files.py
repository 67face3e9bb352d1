"""Checkpoints of Hugging Face's deepseek_v3: out, in, and what the release's files look like."""

import json
from collections import Counter

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM

from deepseek_twin import CONFIGS, build
from minids3.config import ConfigError, get_config
from minids3.model import ModelFileError, Transformer
from minids3.model.hf import from_hf_config, hf_layout, load_hf, save_hf, to_hf_config
from minids3.ref.quant import block_dequantize_ref, block_quantize_ref

IDS = torch.randint(0, 101, (2, 11), generator=torch.Generator().manual_seed(0))


def theirs(folder, **more):
    model, info = DeepseekV3ForCausalLM.from_pretrained(
        folder, output_loading_info=True, experts_implementation="eager", **more
    )
    return model.eval(), info


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_reads_what_we_write_and_we_read_it_back(tmp_path, name):
    model = build(**CONFIGS[name]).eval()
    save_hf(model, tmp_path / "m")
    hf, info = theirs(tmp_path / "m")
    assert not any(info.values()), info
    torch.testing.assert_close(hf(IDS).logits, model(IDS), rtol=1e-5, atol=1e-5)
    again = load_hf(tmp_path / "m")
    assert again.config == model.config
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_we_read_what_hugging_face_writes(tmp_path):
    model = build(num_nextn_predict_layers=1).eval()
    save_hf(model, tmp_path / "ours")
    hf, _ = theirs(tmp_path / "ours")
    hf.save_pretrained(tmp_path / "theirs")  # drops the MTP layer
    again = load_hf(tmp_path / "theirs")
    assert again.config.num_nextn_predict_layers == 0
    assert torch.equal(again(IDS), model(IDS))
    with pytest.raises(ModelFileError, match=r"layers\.3\..* is missing and \d+ more"):
        load_hf(tmp_path / "theirs", mtp=True)


def test_shards_and_mtp(tmp_path):
    model = build(num_nextn_predict_layers=2)
    save_hf(model, tmp_path / "m", max_shard_bytes=60_000)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(p.stat().st_size < 80_000 for p in (tmp_path / "m").glob("*.safetensors"))
    again = load_hf(tmp_path / "m")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert len(load_hf(tmp_path / "m", mtp=False).mtp) == 0
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    on_disk = sum(t.nbytes for f in files for t in load_file(tmp_path / "m" / f).values())
    assert index["metadata"]["total_size"] == on_disk


def test_hugging_face_drafts_with_our_mtp_module(tmp_path, monkeypatch):
    model = build(num_nextn_predict_layers=1).eval()
    save_hf(model, tmp_path / "m")
    # transformers finds the module of the release, layer 61, and calls any other unexpected
    pattern = [r"model\.layers\.3\..*"]
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", pattern)
    hf, info = theirs(tmp_path / "m")
    assert not any(info.values()), info
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = hf.generate(IDS[:1], **options)
    assert torch.equal(hf.generate(IDS[:1], use_mtp=True, **options), plain)


def test_bfloat16_keeps_the_router_bias(tmp_path):
    model = build()
    save_hf(model, tmp_path / "m", dtype=torch.bfloat16)
    dtypes = Counter()
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            dtypes[str(file.get_tensor(name).dtype), "bias" in name] += 1
    assert set(dtypes) == {("torch.bfloat16", False), ("torch.float32", True)}
    again = load_hf(tmp_path / "m")
    assert again.lm_head.weight.dtype == torch.bfloat16
    for layer, old in zip(again.layers[1:], model.layers[1:], strict=True):
        assert torch.equal(layer.mlp.gate.expert_bias, old.mlp.gate.expert_bias)


def test_fp8_round_trip(tmp_path):
    model = build(hidden_size=160, num_nextn_predict_layers=1, moe_intermediate_size=136)
    save_hf(model, tmp_path / "m", dtype=torch.float32, fp8=True)
    again = load_hf(tmp_path / "m", dtype=torch.float32)
    quantised = {e.source for e in hf_layout(model.config) if e.fp8}
    for key, tensor in model.state_dict().items():
        other = again.state_dict()[key]
        if key in quantised:  # 3 mantissa bits: at most 1/16 of a number, 2^-10 of the maximum
            bound = tensor.abs() / 16 + tensor.abs().max() / 448 / 2**9
            assert bool(((tensor - other).abs() <= bound).all()), key
            assert not torch.equal(tensor, other), key
        else:
            assert torch.equal(tensor, other), key
    # written again, the same bytes: a number already in the format stays what it is
    save_hf(again, tmp_path / "n", dtype=torch.float32, fp8=True)
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in "mn")
    for name, tensor in first.items():
        if tensor.dtype == torch.float8_e4m3fn:
            assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


def test_block_scales_multiply():
    weight = torch.randn(130, 300, generator=torch.Generator().manual_seed(0))
    weight[:128, :128] = 0
    quantized, scale = block_quantize_ref(weight)
    assert scale.shape == (2, 3)
    assert scale[0, 0] == 1
    by_hand = quantized.float()
    for i in range(2):
        for j in range(3):
            by_hand[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scale[i, j]
    assert torch.equal(block_dequantize_ref(quantized, scale), by_hand)
    assert quantized.float().abs().amax() == 448
    with pytest.raises(ValueError, match=r"expected \[2, 3\]"):
        block_dequantize_ref(quantized, scale.T)
    with pytest.raises(ValueError, match="NaN"):
        block_quantize_ref(weight.fill_(float("nan")))


def test_the_layout_of_the_released_checkpoint():
    """Counts of the Hub's metadata [C-files]: FP8 weights, scales, what stays BF16."""
    fp8 = bf16 = fp32 = weights = scales = 0
    for entry in hf_layout(get_config("v3_671b")):
        count = torch.Size(entry.shape).numel()
        weights += 1
        if entry.fp8:
            fp8 += count
            fp32 += torch.Size(entry.scale_shape).numel()
            scales += 1
        elif entry.name.endswith("e_score_correction_bias"):
            fp32 += count
        else:
            bf16 += count
    assert (fp8, bf16, fp32) == (680_571_043_840, 3_918_786_560, 41_555_600)
    assert fp8 + bf16 + fp32 == 684_531_386_000
    assert (weights, scales) == (46_183, 45_808)


def test_config_of_the_release():
    fields = to_hf_config(get_config("v3_671b"), "bfloat16", fp8=True)
    assert fields["rope_scaling"] == {
        "type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    cfg = from_hf_config(fields)
    assert cfg.replace(head_dim=32) == get_config("v3_671b")


def test_what_cannot_be_said_is_refused():
    with pytest.raises(ConfigError, match="latent attention only"):
        to_hf_config(get_config("mini_dense"))
    with pytest.raises(ConfigError, match="sigmoid"):
        to_hf_config(get_config("mini", scoring_func="softmax"))
    with pytest.raises(ConfigError, match="model_type='llama'"):
        from_hf_config({"model_type": "llama"})
    fields = to_hf_config(get_config("mini"))
    with pytest.raises(ConfigError, match="attention_bias=True"):
        from_hf_config({**fields, "attention_bias": True})
    with pytest.raises(ConfigError, match="'linear'"):
        from_hf_config({**fields, "rope_scaling": {"type": "linear", "factor": 2}})


def test_damaged_folders_are_explained(tmp_path):
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        load_hf(tmp_path)
    folder = save_hf(build(num_nextn_predict_layers=1), tmp_path / "m")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    for change, message in (
        ({"model.norm.weight": None}, r"'model\.norm\.weight' is missing"),
        ({"model.extra": torch.ones(2)}, r"'model\.extra' is unexpected"),
        ({"model.norm.weight": torch.ones(3)}, r"has shape \[3\].* needs \[40\]"),
        ({"model.layers.3.embed_tokens.weight": torch.ones(101, 40)}, "pass mtp=False"),
        ({"model.norm.weight": torch.ones(40).to(torch.float8_e4m3fn)}, "scale_inv' is missing"),
    ):
        merged = {k: t for k, t in {**state, **change}.items() if t is not None}
        save_file(merged, weights)
        with pytest.raises(ModelFileError, match=message):
            load_hf(folder)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelFileError, match="damaged"):
        load_hf(folder)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
        load_hf(folder)


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    folder = save_hf(build(), tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("minids3.model.hf.files.json.dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        save_hf(build(seed=1), tmp_path / "m")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_loaded_models_train(tmp_path):
    save_hf(build(tie_word_embeddings=True), tmp_path / "m")
    model = load_hf(tmp_path / "m").train()
    assert isinstance(model, Transformer)
    model.loss(IDS, IDS.roll(-1, 1)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.lm_head.weight is model.embed_tokens.weight
