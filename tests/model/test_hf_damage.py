"""Damaged folders of both kinds: the promised error, or the right model, and nothing else."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_twin import build
from minids3.config import ConfigError, ModelConfig, get_config
from minids3.model import ModelFileError, Transformer, load_model, save_model
from minids3.model.hf import from_hf_config, load_hf, save_hf, to_hf_config

SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
SMALL |= {"num_experts_per_tok": 2, "num_nextn_predict_layers": 1, "rope_factor": 2.0}

CALM = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from(
        [2**31, -(2**63), 10**30, 0.5, -1.0, 1e-300, 1e300, float("nan"), float("inf")]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: (folder, its files' bytes, how to load it, the right weights)}."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    hf, own = build(**SMALL), Transformer(get_config("tiny"))
    made = {
        "one file": (save_hf(hf, root / "one"), load_hf, hf),
        "shards": (save_hf(hf, root / "shards", max_shard_bytes=60_000), load_hf, hf),
        "own": (save_model(own, root / "own"), load_model, own),
    }
    return {
        name: (folder, {p: p.read_bytes() for p in folder.iterdir()}, load, model.state_dict())
        for name, (folder, load, model) in made.items()
    }


def fault(folders, kind, path, content):
    """Load with ``content`` in the file ``path``: the error's text, or None for the right model."""
    folder, files, load, right = folders[kind]
    try:
        (folder / path).write_bytes(content)
        model, text = load(folder), None
    except ModelFileError as error:
        text = str(error)
    finally:
        for whole, before in files.items():
            whole.write_bytes(before)
    if text is not None:
        assert folder.name in text
        assert text.encode()  # it can be printed
        return text
    state = model.state_dict()
    assert state.keys() <= right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in state.items())
    return None


def names_of(folders, kind, ending):
    return sorted(p.name for p in folders[kind][1] if p.name.endswith(ending))


@CALM
@given(st.data())
def test_any_json_in_any_field_of_config(folders, data):
    kind = data.draw(st.sampled_from(sorted(folders)))
    folder, files, _, _ = folders[kind]
    fields = json.loads(files[folder / "config.json"])
    place = fields
    if "rope_scaling" in fields and data.draw(st.booleans()):
        place = fields["rope_scaling"]
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.one_of(st.sampled_from(sorted(place)), st.text(max_size=5)))
        if data.draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = data.draw(JSON)
    fault(folders, kind, "config.json", json.dumps(fields).encode())


@CALM
@given(JSON, JSON)
def test_any_json_instead_of_a_file(folders, content, inner):
    for kind, name in (("one file", "config.json"), ("own", "config.json")):
        assert fault(folders, kind, name, json.dumps(content).encode())
    index = "model.safetensors.index.json"
    for damaged in (content, {"weight_map": inner}, {"weight_map": {"model.norm.weight": inner}}):
        assert fault(folders, "shards", index, json.dumps(damaged).encode())


@CALM
@given(st.data())
def test_flipped_lost_and_added_bytes(folders, data):
    kind = data.draw(st.sampled_from(sorted(folders)))
    name = data.draw(
        st.sampled_from(
            [
                n
                for e in ("json", "tensors")
                for n in names_of(folders, kind, e)
                if n != "about.json"
            ]
        )
    )
    content = bytearray(folders[kind][1][folders[kind][0] / name])
    header = 8 + int.from_bytes(content[:8], "little") if name.endswith("tensors") else len(content)
    at = data.draw(st.integers(0, header - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "add", "end"]))
    if how == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[at : at + data.draw(st.integers(1, 40))]
    elif how == "add":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        del content[at:]
    fault(folders, kind, name, bytes(content))


DEEP = b"[" * 200_000
FILES = {
    "empty": b"",
    "list": b"[1]",
    "number": b"3",
    "null": b"null",
    "string": b'"model"',
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "UTF-16": '{"model_type": "deepseek_v3"}'.encode("utf-16"),
    "deep": DEEP,
    "deep object": b'{"a":' * 200_000,
    "huge number": b'{"model_type": "deepseek_v3", "vocab_size": ' + b"9" * 5000 + b"}",
    "zeros": b"\0" * 1000,
    "half": b'{"model_type": ',
}


@pytest.mark.parametrize("name", FILES)
def test_json_files_of_every_kind(folders, name):
    for kind, file in (
        ("one file", "config.json"),
        ("own", "config.json"),
        ("shards", "model.safetensors.index.json"),
    ):
        text = fault(folders, kind, file, FILES[name])
        assert file in text
        assert "\n" not in text
        assert len(text) < 400


@pytest.mark.parametrize(
    "file",
    ["../one/model.safetensors", "/etc/passwd", "", ".", "a" * 300 + ".safetensors", "\ud800", 3,
     None, [], "config.json", "no\0thing.safetensors", "model-00009-of-00009.safetensors"],
)  # fmt: skip
def test_names_in_the_index(folders, file):
    index = "model.safetensors.index.json"
    content = json.loads(folders["shards"][1][folders["shards"][0] / index])
    content["weight_map"]["model.norm.weight"] = file
    text = fault(folders, "shards", index, json.dumps(content).encode())
    assert "is missing" in text or "no safetensors file beside it" in text


def test_folders_and_nothing_in_place_of_files(tmp_path):
    torch.manual_seed(0)
    for save, load in (
        (lambda f: save_hf(build(**SMALL), f, max_shard_bytes=60_000), load_hf),
        (lambda f: save_hf(build(**SMALL), f), load_hf),
        (lambda f: save_model(Transformer(get_config("tiny")), f), load_model),
    ):
        folder = save(tmp_path / "m")
        for path in [p for p in folder.iterdir() if p.name != "about.json"]:
            before = path.read_bytes()
            path.unlink()
            with pytest.raises(
                ModelFileError, match=r"missing|fit its config|copy|is not expected"
            ):
                load(folder)
            path.mkdir()
            with pytest.raises(ModelFileError, match=str(folder)):
                load(folder)
            path.rmdir()
            path.write_bytes(before)
        load(folder)
        (tmp_path / "file").write_text("")
        for wrong in (tmp_path / "file", tmp_path / "nothing"):
            with pytest.raises(ModelFileError, match=rf"{wrong}.*config\.json is missing"):
                load(wrong)


def test_sizes_that_no_memory_has(folders):
    for kind in ("one file", "own"):
        folder, files, _, _ = folders[kind]
        fields = json.loads(files[folder / "config.json"])
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                     "n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "v_head_dim",
                     "qk_rope_head_dim", "max_position_embeddings", "num_nextn_predict_layers",
                     "n_shared_experts"):  # fmt: skip
            for size in (2**31 - 2, 10**12, 10**400):
                damaged = json.dumps({**fields, name: size}).encode()
                text = fault(folders, kind, "config.json", damaged)
                unused = kind == "own" and size == 2**31 - 2  # a dense model has no experts
                assert text or (unused and name not in ("vocab_size", "hidden_size"))


@CALM
@given(st.sampled_from(list(ModelConfig.__dataclass_fields__)), JSON)
def test_any_json_in_a_configuration(name, value):
    for base in (get_config("tiny"), get_config("mini")):
        try:
            cfg = ModelConfig.from_dict({**base.to_dict(), name: value})
        except ConfigError as error:
            text = str(error)
        else:
            text = name
            assert ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
        assert name in text or isinstance(value, int | float)  # a size may break another's rule


@CALM
@given(st.dictionaries(st.sampled_from([*to_hf_config(get_config("mini")), "x"]), JSON), JSON)
def test_any_fields_of_hugging_face(fields, rope):
    base = to_hf_config(get_config("mini"))
    for given_fields in (fields, {**base, **fields}, {**base, "rope_parameters": rope}):
        try:
            cfg = from_hf_config({"model_type": "deepseek_v3", **given_fields})
        except ConfigError:
            continue
        assert isinstance(cfg, ModelConfig)
