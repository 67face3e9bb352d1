"""llama.cpp runs what we export: the same greedy tokens, the same probabilities.

``pip install 'minids3[llama]'`` brings llama.cpp as wheels (the package ``xllamacpp``).
"""

import math

import pytest
import torch

from minids3.config import get_config
from minids3.data import load_tokenizer
from minids3.infer import generate_ids
from minids3.model import ModelFileError, Transformer, load_shipped
from minids3.model.gguf import save_gguf
from small_models import SIZES

xllamacpp = pytest.importorskip("xllamacpp", reason="needs pip install 'minids3[llama]'")

PROMPTS = ("Ask: Who rules Haldo?", "Once upon a time", "def add(a, b):\n    return", "7 + 5 =")


def random_model():
    torch.manual_seed(0)
    return Transformer(
        get_config("mini", **{**SIZES, "vocab_size": 2048, "hidden_size": 64})
    ).eval()


def shipped_model():
    try:
        return load_shipped("mini_chat").eval()
    except ModelFileError:
        pytest.skip("mini_chat is not here")


@pytest.mark.parametrize("make", [random_model, shipped_model])
def test_llama_cpp_generates_our_tokens(make, tmp_path):
    model, tokenizer, new = make(), load_tokenizer(), 16
    settings = xllamacpp.CommonParams()
    settings.model.path = str(save_gguf(model, tmp_path / "m.gguf", tokenizer))
    settings.n_ctx = model.config.max_position_embeddings
    settings.n_parallel, settings.warmup = 1, False
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # not fp16
    server = xllamacpp.Server(settings)
    for text in PROMPTS:
        prompt = tokenizer.encode(text, bos=True)
        ours = generate_ids(model, [prompt], new)[0]
        with torch.inference_mode():
            logs = model(ours[None, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
        asked = {"prompt": prompt, "n_predict": new, "temperature": 0, "n_probs": 3}
        asked |= {"ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(asked)
        steps = answer["choices"][0]["logprobs"]["content"]
        assert [step["id"] for step in steps] == ours[len(prompt) :].tolist(), text
        for step, log in zip(steps, logs, strict=True):
            for guess in step["top_logprobs"]:
                want = float(log[guess["id"]])
                assert math.isclose(guess["logprob"], want, abs_tol=1e-3), (text, guess, want)
