"""Texts of unequal length in one batch: each equals itself alone, and Hugging Face masked alike."""

import pytest
import torch

from deepseek_twin import CONFIGS, build, twin
from llama_twin import llama_of
from minids3.config import get_config
from minids3.infer import generate_ids, make_cache
from minids3.model import Transformer

LENGTHS = (3, 9, 1, 6)


def gqa(**changes):
    torch.manual_seed(0)
    return Transformer(get_config("tiny", **{"initializer_range": 0.3, **changes})).eval()


MODELS = {
    "gqa": gqa,
    "mla": lambda: build().eval(),
    "mla, half-split": lambda: build(rope_interleave=False).eval(),
    "mla, yarn": lambda: build(**CONFIGS["yarn"]).eval(),
    "mla, plain queries": lambda: build(**CONFIGS["plain queries"]).eval(),
}


def texts(lengths=LENGTHS, seed=0, vocab=97):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=generator) for n in lengths]


def padded(rows, side, width=None, fill=5):
    """``[B, T]`` ids and mask; "both" pads some on each side."""
    width = width or max(map(len, rows)) + (2 if side == "both" else 0)
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        spare = width - len(row)
        start = {"left": spare, "right": 0, "both": min(1 + i, spare)}[side]
        ids[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_each_text_alone(name, side):
    model, rows = MODELS[name](), texts()
    ids, mask = padded(rows, side)
    for given in (mask, mask.bool(), mask.int()):
        logits = model(ids, attention_mask=given)
        assert bool(logits.isfinite().all())
        for i, row in enumerate(rows):
            torch.testing.assert_close(
                logits[i][mask[i].bool()], model(row[None])[0], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("absorb", [True, False, None])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("name", ["gqa", "mla", "mla, plain queries"])
@torch.no_grad()
def test_a_cache_filled_in_chunks_remembers_the_padding(name, side, absorb):
    model, rows = MODELS[name](), texts()
    for layer in model.layers:
        layer.self_attn.absorb = absorb
    ids, mask = padded(rows, side)
    more = torch.stack(texts((4,) * len(rows), seed=1))
    for cuts in ([ids.shape[1]], [2, 3, ids.shape[1] - 5], [1] * ids.shape[1]):
        cache = make_cache(model.config, len(rows), ids.shape[1] + 4)
        parts, stop = [], 0
        for n in cuts:
            stop += n
            parts.append(model(ids[:, stop - n : stop], cache, mask[:, :stop]))
        parts.append(model(more[:, :3], cache))  # the new ones are real, the cache knows the rest
        whole = torch.cat((mask, torch.ones(len(rows), 4, dtype=torch.int64)), 1)
        parts.append(model(more[:, 3:], cache, whole))
        logits = torch.cat(parts, 1)
        for i, row in enumerate(rows):
            alone = model(torch.cat((row, more[i]))[None])[0]
            torch.testing.assert_close(logits[i][whole[i].bool()], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["base", "plain queries", "yarn"])
@torch.no_grad()
def test_logits_equal_hugging_face_with_the_same_mask(name, side):
    model = build(**CONFIGS[name]).eval()
    hf = twin(model).eval()
    ids, mask = padded(texts(vocab=101), side)
    ours, theirs = model(ids, attention_mask=mask), hf(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_logits_equal_llama_with_the_same_mask():
    model = gqa()
    ids, mask = padded(texts(), "left")
    ours, theirs = model(ids, attention_mask=mask), llama_of(model)(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gqa", "mla", "mla, yarn"])
def test_greedy_generation_of_unequal_prompts(name):
    model, rows = MODELS[name](), texts()
    hf = llama_of(model) if name == "gqa" else twin(model).eval()
    alone = [generate_ids(model, row[None], 20)[0] for row in rows]
    for together in (
        generate_ids(model, rows, 20),
        generate_ids(model, [row.tolist() for row in rows], 20),
    ):
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    for side in ("left", "right", "both"):
        ids, mask = padded(rows, side)
        out = generate_ids(model, ids, 20, attention_mask=mask)
        assert torch.equal(out[:, : ids.shape[1]], ids)
        for i, row in enumerate(rows):
            assert torch.equal(out[i, ids.shape[1] :], alone[i][len(row) :])
    ids, mask = padded(rows, "left")
    theirs = hf.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(generate_ids(model, ids, 20, attention_mask=mask), theirs)


def test_unequal_prompts_end_at_their_own_end():
    model, rows = gqa(), texts()
    free = generate_ids(model, rows, 15)
    eos = int(free[1][len(rows[1]) + 4])
    for got, row in zip(generate_ids(model, rows, 15, eos_id=eos), rows, strict=True):
        assert torch.equal(got, generate_ids(model, [row], 15, eos_id=eos)[0])
        assert eos not in got[len(row) : -1]


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("name", ["gqa", "mla"])
def test_losses_and_gradients_equal_the_sum_over_texts_alone(name, side):
    changes = {"num_nextn_predict_layers": 2}
    model = gqa(**changes) if name == "gqa" else build(**changes)
    rows = texts((5, 9, 4, 6))
    ids, mask = padded(rows, side)
    targets = torch.full_like(ids, 3)  # padding's targets are not ignored: the mask says so
    for i, row in enumerate(rows):
        targets[i][mask[i].bool()] = torch.cat((row[1:], torch.tensor([-100])))
    main, extra = model.losses(ids, targets, mask, reduction="sum")
    (main + sum(extra)).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    want = torch.zeros(3)
    for row in rows:
        own = torch.cat((row[1:], torch.tensor([-100])))[None]
        alone, ahead = model.losses(row[None], own, reduction="sum")
        (alone + sum(ahead)).backward()
        want += torch.stack((alone, *ahead)).detach()
    torch.testing.assert_close(torch.stack((main, *extra)).detach(), want, rtol=1e-5, atol=1e-5)
    for n, p in model.named_parameters():
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(grads[n], p.grad, rtol=1e-4, atol=1e-5 * scale)
    counted = sum(len(row) - 1 for row in rows)
    mean = torch.stack((model.loss(ids, targets, mask), *model.losses(ids, targets, mask)[1]))
    torch.testing.assert_close(mean, want / counted)


@torch.no_grad()
def test_mtp_logits_equal_each_text_alone():
    model, rows = build(num_nextn_predict_layers=2).eval(), texts((5, 9, 4))
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        got = model.mtp_logits(ids, mask)
        for i, row in enumerate(rows):
            start = int(mask[i].argmax())
            for k, alone in enumerate(model.mtp_logits(row[None])):
                mine = got[k][i, start : start + alone.shape[1]]
                torch.testing.assert_close(mine, alone[0], rtol=1e-5, atol=1e-5)


def test_targets_that_do_not_fit_are_refused_with_a_mask_too():
    ids, mask = padded(texts(), "left")
    with pytest.raises(ValueError, match="do not fit"):
        gqa().loss(ids, ids[:, 1:], mask)


def test_rows_of_padding_alone_are_finite_and_have_finite_gradients():
    for model in (gqa(), build(num_nextn_predict_layers=1)):
        ids, mask = padded(texts(), "left")
        mask[2] = 0
        assert bool(model(ids, attention_mask=mask).isfinite().all())
        main, extra = model.losses(ids, ids.roll(-1, 1), mask)
        (main + sum(extra)).backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_masked_tokens_in_the_middle_are_as_good_as_absent():
    model, row = build().eval(), texts((8,))[0][None]
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1]])
    alone = model(row[:, mask[0].bool()])
    torch.testing.assert_close(model(row, attention_mask=mask)[:, mask[0].bool()], alone)
    with pytest.raises(ValueError, match="interrupts a text"):
        build(num_nextn_predict_layers=1).mtp_logits(row, mask)


@torch.no_grad()
def test_a_mask_of_ones_changes_no_bit():
    for model in (gqa(), build().eval()):
        ids = torch.stack(texts((7, 7)))
        assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)), model(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    for model in (gqa(initializer_range=0.05), build(initializer_range=0.05).eval()):
        ids, mask = padded(texts(), "left")
        logits = model.to(dtype)(ids, attention_mask=mask)
        for i, row in enumerate(texts()):
            gap = logits[i, -len(row) :].float() - model(row[None])[0].float()
            assert gap.norm() / model(row[None]).float().norm() < 0.05


WRONG = {
    "additive": (lambda m: (1.0 - m) * -1e9, ValueError, "bool or integer"),
    "other values": (lambda m: m * 2, ValueError, "nothing but 0"),
    "negative": (lambda m: m - 1, ValueError, "nothing but 0"),
    "one row": (lambda m: m[:1], ValueError, r"must be \[B, S\] = \[4, 9\]"),
    "too short": (lambda m: m[:, 1:], ValueError, r"must be \[B, S\] = \[4, 9\]"),
    "flat": (lambda m: m[0], ValueError, r"must be \[B, S\] = \[4, 9\]"),
    "4-D": (lambda m: m[:, None, None], ValueError, r"must be \[B, S\] = \[4, 9\]"),
    "a list": (lambda m: m.tolist(), TypeError, "must be a tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_refused(name):
    change, error, match = WRONG[name]
    model = build().eval()
    ids, mask = padded(texts(), "left")
    calls = (
        lambda m: model(ids, attention_mask=m),
        lambda m: model.loss(ids, ids, m),
        lambda m: model.losses(ids, ids, m),
        lambda m: generate_ids(model, ids, 2, attention_mask=m),
    )
    for call in calls:
        with pytest.raises(error, match=match):
            call(change(mask))


@torch.no_grad()
def test_a_mask_may_not_contradict_the_cache():
    model = build().eval()
    ids, mask = padded(texts(), "left")
    whole = torch.cat((mask, torch.ones(4, 1, dtype=torch.int64)), 1)
    for first, then in ((mask, torch.ones_like(whole)), (None, whole)):
        cache = make_cache(model.config, 4, 12)
        model(ids, cache, first)
        with pytest.raises(ValueError, match="says otherwise of the cached positions"):
            model(ids[:, :1], cache, then)
        with pytest.raises(ValueError, match=r"\[4, 10\] \(9 cached and 1 new"):
            model(ids[:, :1], cache, torch.ones(4, 1, dtype=torch.int64))


def test_wrong_prompts_are_refused():
    model = gqa()
    for prompts, match in (
        ([], "the list is empty"),
        ([[1], []], "prompt 1 has no token"),
        ([[1.5], [2]], "integer token ids"),
        ([[[1]], [[2]]], "integer token ids"),
        ("ab", "a sequence of token ids"),
        ([1, 2], "sequence of integer token ids"),
        (torch.tensor([1, 2]), "a list of prompts"),
        ([list(range(64)), [1]], "it needs 1 to 63"),
    ):
        with pytest.raises(ValueError, match=match):
            generate_ids(model, prompts, 2)
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        generate_ids(model, ids, 2, attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="needs no attention_mask"):
        generate_ids(model, [[1]], 2, attention_mask=ids)
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        generate_ids(model, ids, -1)
    assert torch.equal(generate_ids(model, ids, 0), ids)
    with pytest.raises(TypeError, match="must be a tensor"):
        model([[1, 2]])
    with pytest.raises(ValueError, match="must be int64"):
        model(torch.ones(1, 2))
    with pytest.raises(TypeError, match="must be a ModelConfig"):
        Transformer("mini")
