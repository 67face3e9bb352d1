"""The shipped ``mini_chat`` in Hugging Face's hands: the same logits, tokens and words."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging
from transformers.quantizers import quantizer_finegrained_fp8

from minids3.data import data_dir, load_tokenizer
from minids3.infer import generate_ids
from minids3.model import __main__ as command
from minids3.model import load_shipped

TEXT = "One morning, Mira the mole left a wooden clock in the boat."


@pytest.fixture(scope="module")
def ours():
    return load_shipped("mini_chat").eval()


@pytest.fixture
def ids():
    return torch.tensor([load_tokenizer().encode(TEXT, bos=True)])


@pytest.fixture(autouse=True)
def silence():
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would name every tensor of the MTP module, left out there
    yield
    logging.set_verbosity(before)


@torch.no_grad()
def test_exported_it_is_the_same_model(ours, ids, tmp_path):
    assert command.main(["export", "mini_chat", "--to", "hf", "--out", str(tmp_path / "m")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-4, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]] == ids[0].tolist()
    got = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
    )
    assert torch.equal(got, generate_ids(ours, ids, 24))


@torch.no_grad()
def test_the_stored_fp8_is_what_transformers_reads(ours, ids, monkeypatch):
    """Without a GPU it widens FP8 to BF16, so that logits agree to some steps of BF16."""
    # accelerate is asked for, but not used to dequantise
    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
    theirs = AutoModelForCausalLM.from_pretrained(data_dir() / "checkpoints" / "mini_chat").eval()
    found = theirs.model.layers[1].mlp.shared_experts.down_proj.weight
    own = ours.layers[1].mlp.shared_experts.down_proj.weight
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), own, rtol=2**-8, atol=0)
    torch.testing.assert_close(theirs(ids).logits.float(), ours(ids), rtol=0.05, atol=0.5)
