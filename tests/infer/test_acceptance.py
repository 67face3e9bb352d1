"""Acceptance of the second token, against walks over positions and a free decoding."""

import pytest
import torch
from torch import nn

from minids3.config import get_config
from minids3.data import DOMAINS, load_split
from minids3.infer import generate_ids
from minids3.infer.acceptance import (
    acceptance_by_domain,
    draft_agreement,
    second_token_acceptance,
    token_fates,
    tokens_per_step,
)
from minids3.model import Transformer


def tiny(**changes):
    torch.manual_seed(0)
    changes = {"initializer_range": 0.3, "num_nextn_predict_layers": 1, **changes}
    return Transformer(get_config("tiny", **changes)).eval()


def some_ids(batch, steps, seed=0):
    return torch.randint(0, 97, (batch, steps), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_agreement_is_one_prefix_at_a_time():
    model, ids = tiny(), some_ids(2, 9)
    got = draft_agreement(model, ids)
    assert got.shape == (2, 8)
    assert got.dtype == torch.bool
    for i in range(8):  # the draft for token i+2 needs tokens 0 .. i+1 and no more
        prefix = ids[:, : i + 2]
        draft = model.mtp_logits(prefix)[0][:, -1].argmax(-1)
        said = model(prefix)[:, -1].argmax(-1)
        assert torch.equal(got[:, i], draft == said)


def test_share_and_start():
    model, ids = tiny(), some_ids(3, 12)
    agreed = draft_agreement(model, ids)
    assert second_token_acceptance(model, ids) == pytest.approx(agreed.float().mean().item())
    late = agreed[:, 4:].float().mean().item()
    assert second_token_acceptance(model, ids, start=4) == pytest.approx(late)


def test_a_module_that_copies_the_main_model_is_always_accepted():
    """Feed the module what the main model will know one position later: it cannot be refused."""

    class Oracle(nn.Module):
        def forward(self, hidden, embedding, cos, sin, cache=None):
            return self.future

    model, ids = tiny(), some_ids(2, 10)
    oracle = Oracle()
    with torch.no_grad():
        oracle.future = model.hidden_states(ids)[:, 1:]
    model.mtp = nn.ModuleList([oracle])
    assert second_token_acceptance(model, ids) == 1.0
    oracle.future = -oracle.future
    assert second_token_acceptance(model, ids) == 0.0


@torch.no_grad()
def test_on_its_own_greedy_text_it_is_the_rate_of_free_drafting():
    model, prompt = tiny(), some_ids(1, 5)
    text = generate_ids(model, prompt, 20)
    hits = []
    for n in range(5, 24):  # main model takes token n, module drafts n + 1, main model decides
        first = model(text[:, :n])[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(first, text[:, n : n + 1])
        with_first = torch.cat((text[:, :n], first), 1)
        draft = model.mtp_logits(with_first)[0][:, -1].argmax(-1)
        hits.append(bool(draft == model(with_first)[:, -1].argmax(-1)))
    got = second_token_acceptance(model, text[:, :24], start=4)
    assert got == pytest.approx(sum(hits) / len(hits))


@torch.no_grad()
def test_a_decoder_with_drafts_proposes_at_fewer_positions():
    """After an accepted draft its position is passed: the rates differ, and the text does not."""
    differ = 0
    for seed in range(6):
        torch.manual_seed(seed)
        changes = {"vocab_size": 5, "initializer_range": 0.3, "num_nextn_predict_layers": 1}
        model = Transformer(get_config("tiny", **changes)).eval()
        prompt = some_ids(1, 4, seed) % 5
        text = prompt
        accepted = []
        while text.shape[1] < 40:
            text = torch.cat((text, model(text)[:, -1].argmax(-1, keepdim=True)), 1)
            draft = model.mtp_logits(text)[0][:, -1].argmax(-1, keepdim=True)
            accepted.append(bool(draft == model(text)[:, -1].argmax(-1)))
            if accepted[-1]:
                text = torch.cat((text, draft), 1)
        text = text[:, :40]
        assert torch.equal(text, generate_ids(model, prompt, 36))
        everywhere = draft_agreement(model, text)[0, 3:]
        visited, at = [], 0
        while at < len(everywhere):  # the same drafts, those of the positions it stops at
            visited.append(bool(everywhere[at]))
            at += 2 if visited[-1] else 1
        assert accepted[: len(visited)] == visited
        fates = token_fates(everywhere.tolist())
        assert len(fates) == len(everywhere) + 1
        drafted = [fate == "accepted" for fate in fates if fate != "own"]
        assert drafted == visited
        rate = second_token_acceptance(model, text, start=3)
        differ += abs(rate - sum(visited) / len(visited)) > 0.02
    assert differ > 0


def test_by_domain_weighs_tokens_and_changes_nothing():
    split = load_split("validation")
    torch.manual_seed(0)
    cfg = get_config("tiny", vocab_size=2048, num_nextn_predict_layers=1)
    model = Transformer(cfg).eval()
    got = acceptance_by_domain(model, split, documents=2)
    assert tuple(got) == DOMAINS
    docs = [split.only("facts").document(i).long()[None, :64] for i in range(2)]
    agreed = torch.cat([draft_agreement(model, doc).flatten() for doc in docs])
    assert got["facts"] == pytest.approx(agreed.float().mean().item())
    with pytest.raises(ValueError, match="documents=0"):
        acceptance_by_domain(model, split, documents=0)


def test_fates_of_tokens():
    assert token_fates([]) == ["own"]
    by_hand = ["own", "accepted", "own", "rejected", "rejected", "accepted"]
    assert token_fates([True, True, False, False, True]) == by_hand
    assert token_fates([True, False] * 2) == ["own", "accepted"] * 2 + ["own"]


@pytest.mark.parametrize(("p", "depth", "tokens"), [(0.85, 1, 1.85), (0, 1, 1), (0.5, 3, 1.875)])
def test_tokens_per_step(p, depth, tokens):
    assert tokens_per_step(p, depth) == pytest.approx(tokens)
    assert tokens_per_step(1.0, depth) == depth + 1
    assert tokens_per_step(p, 0) == 1


def test_clear_errors():
    with pytest.raises(ValueError, match="num_nextn_predict_layers=1"):
        second_token_acceptance(tiny(num_nextn_predict_layers=0), some_ids(1, 5))
    with pytest.raises(ValueError, match="T of 2 or more"):
        second_token_acceptance(tiny(), some_ids(1, 1))
    with pytest.raises(ValueError, match="start=4 leaves no position"):
        second_token_acceptance(tiny(), some_ids(1, 5), start=4)
    with pytest.raises(ValueError, match="must lie in"):
        tokens_per_step(1.2)
