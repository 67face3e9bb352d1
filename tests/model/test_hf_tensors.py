"""Tensors of a checkpoint: all are used or refused by name, whatever they are stored in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM
from transformers.quantizers import quantizer_finegrained_fp8

from deepseek_twin import build
from minids3.config import ConfigError
from minids3.model import ModelFileError
from minids3.model.hf import hf_layout, load_hf, save_hf
from minids3.ref.quant import quantize_ref

IDS = torch.randint(0, 101, (2, 11), generator=torch.Generator().manual_seed(0))


def edit_tensors(folder, change):
    """Write the tensors anew: ``change`` gets a dictionary of them."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({k: t for k, t in tensors.items() if t is not None}, path, {"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def logits(model):
    with torch.no_grad():
        return model(IDS)


# -- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fp8_round_trip_runs_with_all_defaults(tmp_path, dtype):
    model = build(num_nextn_predict_layers=1).to(dtype).eval()
    save_hf(model, tmp_path, fp8=True)
    again = load_hf(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert logits(again).dtype == dtype
    exact = logits(load_hf(tmp_path, dtype=torch.float32))
    close = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(logits(again).float(), exact, **close)


@pytest.mark.parametrize("part", ["norm", "mlp.gate.weight", "lm_head", "embed_tokens", "q_b_proj"])
def test_one_part_in_another_dtype(tmp_path, part):
    model = build().eval()
    save_hf(model, tmp_path, dtype=torch.bfloat16)
    original = load_file(tmp_path / "model.safetensors")
    noise = {k: t.float() * 1.001 for k, t in original.items() if part in k}
    edit_tensors(tmp_path, lambda tensors: tensors.update(noise))
    again = load_hf(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    state = again.state_dict()
    for entry in hf_layout(again.config):  # nothing is rounded
        assert torch.equal(entry.view(state).float(), stored[entry.name].float()), entry.name
    assert again.embed_tokens.weight.dtype == (
        torch.bfloat16 if part == "mlp.gate.weight" else torch.float32
    )
    assert logits(again).isfinite().all()
    assert logits(load_hf(tmp_path, dtype=torch.bfloat16)).dtype == torch.bfloat16
    # and out again as they are
    save_hf(again, tmp_path / "again")
    assert torch.equal(logits(load_hf(tmp_path / "again")), logits(again))


def test_transformers_bfloat16_keeps_its_routers(tmp_path):
    """It stores router weights in fp32 beside a bf16 model; that does not make the model fp32."""
    save_hf(build(), tmp_path / "ours", dtype=torch.bfloat16)
    hf = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    hf.save_pretrained(tmp_path / "theirs")
    again = load_hf(tmp_path / "theirs")
    assert again.lm_head.weight.dtype == torch.bfloat16
    assert again.layers[1].mlp.gate.weight.dtype == torch.float32
    for key, tensor in load_hf(tmp_path / "ours").state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key].to(tensor.dtype)), key


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.bool, torch.complex64])
def test_dtypes_that_hold_no_weights_are_refused(tmp_path, dtype):
    with pytest.raises(ConfigError, match=r"cannot hold weights: choose one of torch\.float32"):
        save_hf(build(), tmp_path / "m", dtype=dtype)
    assert not (tmp_path / "m").exists()
    save_hf(build(), tmp_path / "m")
    with pytest.raises(ConfigError, match="cannot hold weights"):
        load_hf(tmp_path / "m", dtype=dtype)
    with pytest.raises(ConfigError, match="'float32' cannot hold weights"):
        load_hf(tmp_path / "m", dtype="float32")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e5m2, torch.int32])
def test_weights_of_other_dtypes_are_refused_by_name(tmp_path, dtype):
    save_hf(build(), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(40).to(dtype)}))
    with pytest.raises(ModelFileError, match=r"safetensors: 'model\.norm\.weight' has dtype"):
        load_hf(tmp_path)


# -- FP8 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["e8m0", "bytes", "bf16", "fp64"])
def test_scales_in_any_storage(tmp_path, storage):
    save_hf(build(), tmp_path, fp8=True)

    def to_powers(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            tensors[name] = torch.exp2(torch.ceil(torch.log2(tensors[name])))

    def store(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            scale = tensors[name]
            tensors[name] = {
                "e8m0": lambda s: s.to(torch.float8_e8m0fnu),
                "bytes": lambda s: (torch.log2(s) + 127).to(torch.uint8),
                "bf16": lambda s: s.bfloat16(),
                "fp64": lambda s: s.double(),
            }[storage](scale)

    edit_tensors(tmp_path, to_powers)
    right = load_hf(tmp_path)
    edit_tensors(tmp_path, store)
    again = load_hf(tmp_path)
    for key, tensor in right.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert right.layers[0].mlp.up_proj.weight.abs().max() < 2

    def spoil(tensors):
        tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(1, 1).int()

    edit_tensors(tmp_path, spoil)
    with pytest.raises(ModelFileError, match=r"up_proj\.weight_scale_inv' has dtype I32"):
        load_hf(tmp_path)


@pytest.mark.parametrize("block", [(64, 64), (32, 16), (1, 128), (256, 128)])
def test_blocks_of_other_sizes(tmp_path, block):
    model = build(hidden_size=160)
    save_hf(model, tmp_path, fp8=True)
    state, right = model.state_dict(), {}

    def requantise(tensors):
        for entry in hf_layout(model.config):
            if entry.fp8:
                values, scale = quantize_ref(entry.view(state), block)
                tensors.update({entry.name: values, entry.scale_name: scale})
                rows = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
                right[entry.name] = values.float() * rows[: entry.shape[0], : entry.shape[1]]

    edit_tensors(tmp_path, requantise)
    if block != (256, 128):
        with pytest.raises(ModelFileError, match=r"safetensors: '.*' .*expected|_proj.*expected"):
            load_hf(tmp_path)
    quant = {"quant_method": "fp8", "weight_block_size": list(block)}
    edit_config(tmp_path, quantization_config=quant)
    loaded = load_hf(tmp_path)
    again = loaded.state_dict()
    for entry in hf_layout(model.config):
        if entry.fp8:
            assert torch.equal(entry.view(again), right[entry.name]), entry.name
    assert logits(loaded).isfinite().all()


def test_a_weight_that_fp8_cannot_hold_is_named(tmp_path):
    model = build()
    model.layers[1].mlp.experts.down_proj.data[3, 0, 0] = float("nan")
    with pytest.raises(ModelFileError, match=r"experts\.3\.down_proj\.weight cannot be written"):
        save_hf(model, tmp_path / "m", fp8=True)
    assert not (tmp_path / "m").exists()


H8 = {"num_attention_heads": 8, "num_key_value_heads": 8}
WHOLE = {**H8, "hidden_size": 256, "q_lora_rank": 128, "kv_lora_rank": 112, "qk_nope_head_dim": 48}
WHOLE |= {"qk_rope_head_dim": 16, "v_head_dim": 80, "intermediate_size": 256}


@pytest.mark.parametrize(
    ("sizes", "outcome"),
    [
        ({}, "equal"),  # every side at most 128: one block
        (WHOLE, "equal"),  # multiples of 128 and single blocks
        ({"intermediate_size": 192}, "wrong"),
        ({"intermediate_size": 257}, "refused"),
    ],
)
def test_what_transformers_reads_of_fp8(tmp_path, monkeypatch, sizes, outcome):
    """The docstring of ``model.hf`` says this; a transformers that does better breaks the test."""
    # accelerate is asked for, but not used to dequantise
    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
    save_hf(build(**sizes), tmp_path, fp8=True)
    ours = logits(load_hf(tmp_path))

    def theirs():
        hf = DeepseekV3ForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
        with torch.no_grad():
            return hf.float().eval()(IDS).logits

    if outcome == "refused":
        with pytest.raises(RuntimeError, match="issues during automatic conversion"):
            theirs()
        return
    difference = (theirs() - ours).abs().max() / ours.abs().max()
    assert difference < 1e-5 if outcome == "equal" else difference > 0.05


# -- which tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", [1, 0, None, 3])
def test_mtp_modules_are_read_whatever_the_field_says(tmp_path, field):
    model = build(num_nextn_predict_layers=3 if field == 3 else 1)
    save_hf(model, tmp_path)
    edit_config(tmp_path, num_nextn_predict_layers=... if field is None else field)
    for mtp in (None, True):
        again = load_hf(tmp_path, mtp=mtp)
        assert len(again.mtp) == len(model.mtp)
        assert torch.equal(again.mtp[0].eh_proj.weight, model.mtp[0].eh_proj.weight)
    assert len(load_hf(tmp_path, mtp=False).mtp) == 0


def test_mtp_modules_that_are_not_whole(tmp_path):
    save_hf(build(num_nextn_predict_layers=2), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"model.layers.4.eh_proj.weight": None}))
    with pytest.raises(ModelFileError, match=r"layers\.4\.eh_proj\.weight' is missing"):
        load_hf(tmp_path)
    save_hf(build(), tmp_path)
    assert len(load_hf(tmp_path).mtp) == 0
    with pytest.raises(ModelFileError, match="is missing"):
        load_hf(tmp_path, mtp=True)
    edit_tensors(tmp_path, lambda t: t.update({"model.layers.7.eh_proj.weight": torch.ones(3)}))
    with pytest.raises(ModelFileError, match="is missing"):
        load_hf(tmp_path)


UNUSED = {
    "model.layers.0.self_attn.q_a_proj.bias": torch.zeros(28),
    "model.layers.1.mlp.experts.12.up_proj.weight": torch.zeros(18, 40),
    "model.layers.1.mlp.gate.bias": torch.zeros(12),
    "model.layers.x.weight": torch.zeros(2),
    "model.layers." + "9" * 5000 + ".weight": torch.zeros(2),
    "model.layers.1.self_attn.indexer.wk.weight": torch.zeros(2, 2),
    "model.empty": torch.zeros(0),
    "model.layers.1.mlp.shared_experts.up_proj.bias": torch.zeros(0, 40),
    "model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1),  # beside an FP32 weight
    "lm_head.weight_scale_inv": torch.ones(1, 1),
    "model.layers.0.mlp.up_proj.input_scale": torch.ones(1),
}


@pytest.mark.parametrize("name", UNUSED)
def test_tensors_without_use_are_refused_by_name(tmp_path, name):
    save_hf(build(), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({name: UNUSED[name]}))
    with pytest.raises(ModelFileError, match=f"'{name[:99]}.* is unexpected"):
        load_hf(tmp_path)


def test_tables_of_old_files_are_ignored(tmp_path):
    model = build()
    save_hf(model, tmp_path)
    tables = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)]
    tables.append("model.rotary_emb.inv_freq")
    edit_tensors(tmp_path, lambda t: t.update({name: torch.ones(4) for name in tables}))
    assert torch.equal(logits(load_hf(tmp_path)), logits(model))


def test_a_tied_head_is_compared(tmp_path):
    model = build(tie_word_embeddings=True, num_nextn_predict_layers=1)
    save_hf(model, tmp_path)
    table = model.embed_tokens.weight.detach()
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": table}))
    assert torch.equal(logits(load_hf(tmp_path)), logits(model))
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": table + 1}))
    for mtp in (None, False):
        with pytest.raises(ModelFileError, match=r"'lm_head\.weight' differs .*tie_word_embedd"):
            load_hf(tmp_path, mtp=mtp)
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ModelFileError, match="shared_head"):
        load_hf(tmp_path)
    again = load_hf(tmp_path, mtp=False)
    assert torch.equal(again.lm_head.weight, table + 1)


def test_one_tensor_in_two_files(tmp_path):
    save_hf(build(), tmp_path, max_shard_bytes=60_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    first, second = (load_file(shard) for shard in shards[:2])
    name = next(iter(first))
    save_file({**second, name: first[name] + 1}, shards[1])
    where = f"{shards[0].name} and in {shards[1].name}"
    with pytest.raises(ModelFileError, match=rf"'{name}' is in {where}"):
        load_hf(tmp_path)


def test_an_index_that_disagrees_with_its_files(tmp_path):
    save_hf(build(), tmp_path, max_shard_bytes=60_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    moved = next(n for n, f in index["weight_map"].items() if f == files[0])
    index["weight_map"][moved] = files[1]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=rf"{files[1]} holds '{moved}', but it does not"):
        load_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"of an older save")
    with pytest.raises(ModelFileError, match="delete those that are older"):
        load_hf(tmp_path)
