"""Measures of exactness, on documents whose rightness is known."""

import pytest
import torch

from minids3.config import get_config
from minids3.data import corpora, load_tokenizer
from minids3.data.corpora import ALL_DOMAINS
from minids3.evals import documents
from minids3.evals.__main__ import main
from minids3.model import Transformer, save_model


def test_the_grammars_own_documents_are_right_and_a_changed_letter_is_not():
    for domain in ALL_DOMAINS:
        for document in corpora.generate(domain, 25, seed=11):
            assert documents.domain_of(document.text) == domain
            assert documents.grammatical(document.text)
            assert not documents.grammatical(document.text + "!")
            middle = len(document.text) // 2
            spoiled = document.text[:middle] + "#" + document.text[middle + 1 :]
            assert not documents.grammatical(spoiled)


def test_shares_are_counted_by_domain():
    sums, facts = (corpora.generate(d, 3, seed=1) for d in ("arithmetic", "facts"))
    texts = [d.text for d in (*sums, *facts)]
    texts[0] = texts[0].replace("A: ", "A: 9")
    shares = documents.grammatical_share([*texts, "One day"])
    assert shares["arithmetic"] == (2, 3)
    assert shares["facts"] == (3, 3)
    assert shares["stories"] == (0, 1)
    assert shares["code"] == (0, 0)


class Oracle:
    """Answers like a model that calculates; every third time it is one too high."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, 0

    def __call__(self, model, prompts, limit, eos_id):
        found = []
        for ids in prompts:
            self.asked += 1
            words = self.tokenizer.decode(ids).split()
            a, b = [int(w.strip(".,")) for w in words if w.strip(".,").isdigit()]
            sign = words[0].strip(".")
            result = {"Add": a + b, "Subtract": a - b, "Multiply": a * b}[sign]
            result += self.asked % 3 == 0
            text = f"working = 3\nA: {result}"
            found.append(torch.tensor([*ids, *self.tokenizer.encode(text), eos_id]))
        return found


def test_only_the_answer_counts(monkeypatch):
    tokenizer = load_tokenizer()
    monkeypatch.setattr(documents, "generate_ids", Oracle(tokenizer))
    assert documents.sums_right(None, tokenizer, n=30) == (20, 30)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "first_k_dense_replace": 1, "max_position_embeddings": 160}
    return Transformer(get_config("mini", **sizes)).eval()


def test_documents_of_an_untrained_model_are_many_and_wrong(model):
    texts = documents.sample_documents(model, load_tokenizer(), 3, limit=12)
    assert len(texts) == 3
    assert texts == documents.sample_documents(model, load_tokenizer(), 3, limit=12)
    assert not any(map(documents.grammatical, texts))


def test_the_command(model, tmp_path, capsys):
    save_model(model, tmp_path / "m")
    assert main([str(tmp_path / "m"), "--n", "4"]) == 0
    told = capsys.readouterr().out
    assert all(domain in told for domain in ALL_DOMAINS)
    assert "sums right      0 of    4    0%" in told
    assert told.count(" nats\n") == len(ALL_DOMAINS)
    assert main(["nothing"]) == 2
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "m"), "--n", "0"])
    assert stop.value.code == 2
