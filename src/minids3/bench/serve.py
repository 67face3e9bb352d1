"""Serving: the engine against Hugging Face's ``generate``, and guesses against none.

The shipped ``mini_chat`` if it is there, else its sizes with random weights (whose guesses are
hardly ever right; the report says which). Both sides have the same weights and decode greedily.

- 16 requests of unequal prompts and lengths: the engine computes them together, each until it is
  done; ``generate`` in static batches of 4 and of 16, padded, each until its longest is done. What
  counts are the tokens that were asked for. Later requests do not wait for earlier ones here, so
  this is about batches that shrink, not about arrivals.
- one request: ``generate_ids`` and ``generate``; the engine with one and two guesses and without.

On a CPU everything runs on one thread and is measured in CPU time, the best of the rounds.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minids3.bench.timing import Comparison, alternate, environment
from minids3.config import get_config
from minids3.infer import generate_ids
from minids3.infer.engine import Engine, Sampling
from minids3.model import ModelFileError, Transformer, load_shipped
from minids3.model.hf import save_hf

__all__ = ["run"]

REQUESTS, PROMPT, NEW = 16, 64, 96


def _models(device: str, dtype: torch.dtype) -> tuple[Transformer, nn.Module, str]:
    """Ours, theirs with the same weights, and which they are."""
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()  # it would report every tensor of the MTP module, left out there
    try:
        model, name = load_shipped("mini_chat"), "the shipped mini_chat"
    except ModelFileError:
        torch.manual_seed(0)
        model, name = Transformer(get_config("mini_chat")), "mini_chat, random weights"
    model = model.to(device, dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, Path(folder) / "m")
        hf = AutoModelForCausalLM.from_pretrained(Path(folder) / "m", dtype=dtype)
    return model, hf.to(device).eval(), name


def _texts(count: int, vocabulary: int) -> list[list[int]]:
    """Beginnings of the validation's documents, so that a trained model has something to say."""
    from minids3.data import load_split

    split, rng = load_split("validation"), random.Random(0)
    found: list[list[int]] = []
    for i in range(split.n_documents):
        ids = split.document(i).tolist()
        length = rng.randrange(16, 129)
        if len(ids) > length and max(ids) < vocabulary:
            found.append(ids[:length])
        if len(found) == count:
            return found
    raise RuntimeError(f"only {len(found)} documents are long enough")


def static_batches(
    hf: nn.Module, prompts: list[list[int]], news: list[int], size: int, device: str
) -> Callable[[], None]:
    """``generate`` on ``size`` requests at a time, in the order of arrival, padded on the left."""

    def batch(start: int) -> tuple[Tensor, Tensor, int]:
        some = prompts[start : start + size]
        longest = max(map(len, some))
        ids = torch.tensor([[2] * (longest - len(p)) + p for p in some], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some], device=device)
        return ids, mask, max(news[start : start + size])

    def go() -> None:
        for start in range(0, len(prompts), size):
            ids, mask, new = batch(start)
            hf.generate(  # type: ignore[operator]
                ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=2,
                eos_token_id=None,
            )

    return go


def _engine(model: Transformer, drafts: int = 0, max_batch: int = REQUESTS) -> Engine:
    return Engine(model, drafts=drafts, max_batch=max_batch)


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Measure, print a report, and return it as plain JSON types. CPU: fp32. GPU: BF16."""
    import transformers

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if device == "cpu":
        torch.set_num_threads(1)
    model, hf, weights = _models(device, dtype)
    about = {
        **environment(device),
        "transformers": transformers.__version__,
        "dtype": str(dtype),
        "weights": weights,
    }
    print("  ".join(f"{k}: {v}" for k, v in about.items()))
    print(f"\n{'':34} {'ours':>12} {'peer':>12}")
    timing: dict[str, Any] = {"rounds": rounds, "device": device, "cpu_time": device == "cpu"}
    rng = random.Random(1)
    prompts = _texts(REQUESTS, model.config.vocab_size)
    news = [rng.choice((16, 32, 64, 128, 192)) for _ in prompts]
    results: list[Comparison] = []

    def compare(
        name: str, ours: Callable[[], object], peer: Callable[[], object], work: int
    ) -> None:
        results.append(alternate(name, ours, peer, work=work, unit="tokens/s", **timing))
        print(results[-1].row(), flush=True)

    def serve_all() -> list[list[int]]:
        return _engine(model).generate(prompts, [Sampling(max_new_tokens=n) for n in news])

    for size in (4, REQUESTS):
        peer = static_batches(hf, prompts, news, size, device)
        compare(f"{REQUESTS} requests, HF static by {size}", serve_all, peer, sum(news))
    one = torch.tensor([prompts[0]], device=device)
    peer = static_batches(hf, prompts[:1], [NEW], 1, device)
    compare("one request, HF", lambda: generate_ids(model, one, NEW), peer, NEW)
    found: dict[str, Any] = {}
    singles = [p[:PROMPT] for p in prompts[:4]]

    def one_by_one(drafts: int) -> Engine:
        engine = _engine(model, drafts, 1)
        for prompt in singles:
            engine.generate([prompt], Sampling(max_new_tokens=NEW))
        return engine

    for drafts in (1, 2) if len(model.mtp) else ():
        compare(
            f"one at a time, {drafts} guesses, without",
            lambda drafts=drafts: one_by_one(drafts),  # type: ignore[misc]
            lambda: one_by_one(0),
            len(singles) * NEW,
        )
        counts = one_by_one(drafts).statistics
        found[f"{drafts} guesses"] = {
            "accepted": counts.accepted / max(1, counts.drafted),
            "tokens_per_step": counts.generated / counts.steps,
        }
        print(f"  {found[f'{drafts} guesses']}")
    return {"about": about, "results": [r.to_dict() for r in results], "guesses": found}
