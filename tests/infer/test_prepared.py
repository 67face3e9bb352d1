"""The prepared decoder against the model: same logits, same tokens, and only where it applies."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from deepseek_twin import CONFIGS, build
from minids3.config import get_config
from minids3.infer import generate_ids, make_cache, prepared
from minids3.infer.prepared import PreparedDecoder, why_not_prepared
from minids3.model import Transformer
from minids3.nn import record_routing
from minids3.nn.linear import to_float8


def gqa(**changes):
    torch.manual_seed(0)
    return Transformer(get_config("tiny", **{"initializer_range": 0.3, **changes}))


MODELS = {
    "grouped": gqa,
    "multi-head": lambda: gqa(num_key_value_heads=4),
    "multi-query, half-split": lambda: gqa(num_key_value_heads=1, rope_interleave=False),
    "tied": lambda: gqa(tie_word_embeddings=True, rms_norm_eps=1e-3),
    "odd latent": lambda: build(kv_lora_rank=65),
    "with MTP": lambda: build(num_nextn_predict_layers=1),
    **{name: (lambda changes=changes: build(**changes)) for name, changes in CONFIGS.items()},
}


def trained(make):
    """Gains and biases that are not all one and zero."""
    model = make().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            if p.ndim == 1 and "rope" not in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def some_ids(batch, steps, seed=0):
    return torch.randint(0, 97, (batch, steps), generator=torch.Generator().manual_seed(seed))


def by_the_model(model, *args, **kwargs):
    """What generation gives without the prepared decoder."""
    model.register_forward_hook(lambda *_: None)
    try:
        return generate_ids(model, *args, **kwargs)
    finally:
        model._forward_hooks.clear()


@pytest.fixture(params=["plain", "fixed shapes"])
def compiled(request, monkeypatch):
    """Both kinds of step; the second without its compiler, which would take minutes."""
    monkeypatch.setattr(prepared, "_compiled_step", lambda: prepared._step)
    return request.param == "fixed shapes"


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_and_cache_are_the_models(name, batch, compiled):
    model = trained(MODELS[name])
    ids = some_ids(batch, 12)
    caches = [make_cache(model.config, batch, 15) for _ in range(2)]
    for cache in caches:
        model(ids[:, :4], cache)
    decoder = PreparedDecoder(model, caches[1], compiled)
    for n in range(4, 12):
        want, got = model(ids[:, n : n + 1], caches[0])[:, 0], decoder(ids[:, n])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert caches[1].length == 12
    for attribute in ("latent", "k", "v"):
        if hasattr(caches[0], attribute):
            torch.testing.assert_close(
                *(getattr(c, attribute) for c in caches), rtol=1e-4, atol=1e-5
            )
    # and the model goes on from its cache
    more = some_ids(batch, 3, seed=5)
    want, got = (model(more, cache) for cache in caches)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    with pytest.raises(ValueError, match="holds 15 positions, all are taken"):
        decoder(ids[:, 0])


@pytest.mark.parametrize("name", MODELS)
def test_generated_tokens_are_the_models(name, compiled):
    model = trained(MODELS[name])
    prompts = [row[: 3 + 2 * i] for i, row in enumerate(some_ids(3, 9))]
    sampled = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
    for ids, options in ((some_ids(1, 6), {}), (prompts, {}), (some_ids(5, 6), sampled)):
        want = by_the_model(model, ids, 12, **options)
        got = generate_ids(model, ids, 12, compile=compiled, **options)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_generation_takes_it_by_itself_where_it_pays(monkeypatch):
    made = []

    class Spy(PreparedDecoder):
        def __init__(self, model, cache, compiled=False):
            made.append((cache.batch_size, compiled))
            super().__init__(model, cache, compiled)

    monkeypatch.setattr(sys.modules["minids3.infer.generate"], "PreparedDecoder", Spy)
    model = gqa().eval()
    generate_ids(model, some_ids(2, 5), 20)
    assert made == [(2, False)]
    generate_ids(model, some_ids(2, 5), 2)  # too few steps to pack anything
    generate_ids(model.train(), some_ids(2, 5), 20)
    generate_ids(model.eval().bfloat16(), some_ids(2, 5), 20)
    assert len(made) == 1


class MyAttention(nn.Module):
    """A reader's own."""


def _hook(model):
    model.layers[0].mlp.register_forward_hook(lambda *_: None)


REASONS = {
    "training": (lambda m: m.train(), "training mode"),
    "bf16": (lambda m: m.bfloat16(), "bfloat16"),
    "double": (lambda m: m.double(), "float64"),
    "a bf16 head": (lambda m: m.lm_head.bfloat16(), "bfloat16"),
    "meta": (lambda m: m.to("meta"), "on meta"),
    "FP8 layers": (lambda m: to_float8(m), "Float8Linear"),
    "own layer": (lambda m: setattr(m.layers[1], "self_attn", MyAttention()), "MyAttention"),
    "a bias": (lambda m: setattr(m, "lm_head", nn.Linear(24, 97)), "lm_head has a bias"),
    "own method": (
        lambda m: setattr(m, "hidden_states", lambda *a: m.embed_tokens(a[0])),
        "the model has a hook or a method of its own",
    ),
    "parametrized": (
        lambda m: nn.utils.parametrizations.weight_norm(m.layers[0].mlp.down_proj),
        "ParametrizedLinear",
    ),
    "hook": (_hook, "layers.0.mlp has a hook"),
    "own forward": (
        lambda m: setattr(m.layers[0], "forward", m.layers[0].forward),
        "layers.0 has a hook",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_models_it_does_not_take(name):
    change, match = REASONS[name]
    model = gqa().eval()
    assert why_not_prepared(model) is None
    change(model)
    assert match in why_not_prepared(model)
    with pytest.raises(ValueError, match="cannot be prepared"):
        PreparedDecoder(model, make_cache(model.config, 1, 8))


def test_other_reasons():
    model = build().eval()
    model.layers[0].self_attn.absorb = False
    assert "absorb=False" in why_not_prepared(model)
    model.layers[0].self_attn.absorb = True
    assert why_not_prepared(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not_prepared(model) == "autocast is on"
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert "all modules" in why_not_prepared(model)
    with record_routing(model) as log:
        generate_ids(model, some_ids(1, 4), 8)
    assert log["layers.1.mlp.gate"].indices.shape == (1, 1, model.config.num_experts_per_tok)
    for name, pays in (("mini", True), ("mini_dense", True), ("v3_671b", False)):
        assert (prepared._added_numbers(get_config(name)) <= prepared.MOST_ADDED) == pays
    with pytest.raises(ValueError, match="training mode"):
        generate_ids(model.train(), some_ids(1, 4), 8, compile=True)


def test_the_next_text_sees_changed_weights():
    model = build().eval()
    ids = some_ids(1, 5)
    before = generate_ids(model, ids, 20)
    for p in model.parameters():  # .data: no version counter tells of it
        p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    after = generate_ids(model, ids, 20)
    assert torch.equal(after, by_the_model(model, ids, 20))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", ["grouped", "base"])
@torch.inference_mode()
def test_the_whole_step_is_one_graph_and_compiled_once(name, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(prepared._step, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(prepared, "_compiled_step", lambda: step)
    model, ids = trained(MODELS[name]), some_ids(2, 5)
    want = by_the_model(model, ids, 20)
    for _text in range(2):
        assert torch.equal(generate_ids(model, ids, 20, compile=True), want)
    assert torch.equal(
        generate_ids(model, ids[:, :4], 7, compile=True), by_the_model(model, ids[:, :4], 7)
    )
    assert counter.frame_count == 1


def test_without_a_compiler_it_says_so():
    code = (
        "import torch\nfrom minids3.config import get_config\n"
        "from minids3.infer import generate_ids\nfrom minids3.model import Transformer\n"
        "m = Transformer(get_config('tiny', num_hidden_layers=1)).eval()\n"
        "generate_ids(m, torch.ones(1, 3, dtype=torch.int64), 5, compile=True)"
    )
    env = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: torch.compile failed: a compiled decoder needs a C++" in done.stderr


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("library", "a file in its cache is damaged"),
        ("source", "a file in its cache is damaged"),
        ("compiler", "needs a C++ compiler"),
        ("other", "could not compile the step on this machine"),
    ],
)
def test_what_failed_when_compiling_and_what_to_do(kind, says, tmp_path, monkeypatch):
    """What a stopped compilation leaves behind must not be blamed on the compiler."""
    from torch._inductor.exc import CppCompileError

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    library, source = tmp_path / "step.main.so", tmp_path / "step.py"
    library.touch()
    source.write_text("def call(args:\n")

    def step(*_):
        try:
            if kind == "library":
                ctypes.CDLL(str(library))  # "file too short", as torch finds it
            elif kind == "source":
                compile(source.read_text(), str(source), "exec")
            elif kind == "compiler":
                raise CppCompileError(["g++", str(source)], "no room on the device")
            raise NotImplementedError("something else")
        except Exception as error:
            raise torch._dynamo.exc.BackendCompilerFailed(step, error, None) from error

    monkeypatch.setattr(prepared, "_compiled_step", lambda: step)
    with pytest.raises(RuntimeError, match=r"torch\.compile failed") as caught:
        generate_ids(gqa().eval(), some_ids(1, 3), 5, compile=True)
    message = str(caught.value)
    assert says in message
    assert (f"delete the folder {tmp_path} and try again" in message) == ("damaged" in says)
    assert "compile=False does without" in message
