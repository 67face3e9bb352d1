"""The whole model against Hugging Face's DeepseekV3ForCausalLM on the same weights.

The 11M configuration ``mini`` without its MTP module, which transformers cannot train: hidden 256,
6 layers, 16 routed experts of which 4 work, vocabulary 2048. Training steps are forward, loss,
backward, clipping and the same fused AdamW on both sides; decoding is greedy with a cache, and the
tokens of both sides are compared. (An untrained router has near-ties, and one that rounding decides
differently changes the rest of its text.)

On a CPU everything runs on one thread and is measured in CPU time, the best of the rounds: that is
hardly disturbed by what else the machine does. Decoding is timed three times there: through the
model, prepared (what ``generate_ids`` does by itself), and compiled.
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from minids3.bench.timing import Comparison, alternate, environment
from minids3.config import get_config
from minids3.infer import generate_ids
from minids3.model import Transformer
from minids3.model.hf import save_hf
from minids3.train import build_optimizer

__all__ = ["run"]

BATCH, SEQ = 16, 256
PROMPT, NEW = 64, 64
WAYS = ("model", "prepared", "compiled")


def build(device: str, dtype: torch.dtype) -> tuple[Transformer, nn.Module]:
    """Ours and theirs with the same weights, through a checkpoint on disk."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = Transformer(get_config("mini", num_nextn_predict_layers=0)).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, Path(folder) / "m")
        hf = AutoModelForCausalLM.from_pretrained(Path(folder) / "m", dtype=dtype)
    return model.to(device), hf.to(device)


def _batch(device: str) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 2048, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


def _trainer(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = build_optimizer(model, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def training_steps(
    model: Transformer, hf: nn.Module, device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One training step of each, as functions."""
    inputs, targets = _batch(device)
    return (
        _trainer(model, lambda: model.loss(inputs, targets)),
        # shift_labels: the targets are shifted already
        _trainer(hf, lambda: hf(inputs, labels=inputs, shift_labels=targets, use_cache=False).loss),
    )


def decoders(
    model: Transformer, hf: nn.Module, batch: int, device: str, way: str = "prepared"
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Greedy generation of ``NEW`` tokens after ``PROMPT``, by each; ``way`` is one of ``WAYS``."""
    ids = torch.randint(0, 2048, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    ids = ids.to(device)
    options: dict[str, Any] = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 2,
        "eos_token_id": None,
        "attention_mask": torch.ones_like(ids),
    }

    def ours() -> Tensor:
        if way != "model":
            return generate_ids(model, ids, NEW, compile=way == "compiled")
        hook = model.register_forward_pre_hook(lambda *_: None)  # with a hook nothing is prepared
        try:
            return generate_ids(model, ids, NEW)
        finally:
            hook.remove()

    return ours, lambda: hf.generate(ids, **options)


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Measure, print a report, and return it as plain JSON types.

    CPU: fp32. GPU: BF16.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if device == "cpu":
        torch.set_num_threads(1)
    model, hf = build(device, dtype)
    about = {**environment(device), "transformers": _transformers_version(), "dtype": str(dtype)}
    print("  ".join(f"{k}: {v}" for k, v in about.items()))
    print(f"\n{'':34} {'ours':>12} {'transformers':>12}")
    results: list[Comparison] = []
    same: dict[str, float] = {}
    cpu = device == "cpu"
    timing: dict[str, Any] = {"rounds": rounds, "device": device, "cpu_time": cpu}
    for batch in (1, 16):
        for way in WAYS if cpu else ("model",):
            name = f"greedy decoding, batch {batch}, {way}"
            ours, theirs = decoders(model.eval(), hf.eval(), batch, device, way)
            try:
                same[name] = (ours() == theirs()).float().mean().item()
            except RuntimeError as error:
                if way != "compiled":
                    raise
                print(f"{name}: {str(error).splitlines()[0]}")
                continue
            results.append(
                alternate(name, ours, theirs, work=batch * NEW, unit="tokens/s", **timing)
            )
            print(results[-1].row() + f"  same tokens {same[name]:.0%}")
    ours_step, their_step = training_steps(
        copy.deepcopy(model).train(), copy.deepcopy(hf).train(), device
    )
    results.append(
        alternate(
            f"training step, {BATCH} x {SEQ}",
            ours_step,
            their_step,
            work=BATCH * SEQ,
            unit="tokens/s",
            **timing,
        )
    )
    print(results[-1].row())
    memory = {side: _peak(side, device) for side in ("ours", "transformers")}
    print(
        f"{'memory a training step adds':34} {memory['ours'] / 1e6:12,.0f} "
        f"{memory['transformers'] / 1e6:12,.0f} MB        "
        f"{memory['ours'] / memory['transformers']:6.2f}x"
    )
    profiles = {"ours": _profile(ours_step), "transformers": _profile(their_step)}
    for side, rows in profiles.items():
        print(f"\nwhere a training step's time goes, {side}:")
        for name, share in rows:
            print(f"  {share:6.1%}  {name}")
    return {
        "about": about,
        "results": [r.to_dict() for r in results],
        "same_tokens": same,
        "peak_bytes": memory,
        "profiles": profiles,
    }


def _transformers_version() -> str:
    import transformers

    return transformers.__version__


def _profile(step: Callable[[], None], top: int = 10) -> list[tuple[str, float]]:
    """Operators by their share of the time spent in all of them."""
    with profile(activities=list(ProfilerActivity.__members__.values())[:2]) as profiler:
        step()
    rows = profiler.key_averages()
    cuda = torch.cuda.is_available()
    times = {r.key: r.self_device_time_total if cuda else r.self_cpu_time_total for r in rows}
    total = sum(times.values()) or 1
    best = sorted(times.items(), key=lambda item: -item[1])[:top]
    return [(name, seconds / total) for name, seconds in best]


def _peak(side: str, device: str) -> int:
    """Bytes that two training steps add to a process (to the GPU), measured in one of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_here, (side, device))


def _peak_here(side: str, device: str) -> int:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, hf = build(device, dtype)
    step = training_steps(model, hf, device)[0 if side == "ours" else 1]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()
