"""Kernels against their peers on a GPU: ``python -m minids3.bench kernels --device cuda --json``.

Memory-bound kernels are held against ``torch.compile`` of the reference and against a device copy
that moves as many bytes; matrix products against cuBLAS in BF16 and, where this PyTorch has it,
against ``scaled_mm`` with the same block scaling. Every result is first compared with float64.

Each call is timed by itself with CUDA events and with the L2 cache emptied before it, ours and the
peers by turns. On a CPU the interpreter is no object of timing: there small shapes are compared
with float64, and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minids3.bench.kernel_cases import Case, Setting, cases
from minids3.bench.timing import environment
from minids3.numerics import relative_error

__all__ = ["run"]

_CACHE_BYTES = 256 << 20  # several times an L2


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Check every kernel, time it on a GPU, print a table, and return it as plain JSON types.

    A kernel or peer that fails is reported with its error; the others go on.
    """
    cuda = torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    about = {**environment(device), "triton": _triton_version(), "dtype": str(dtype)}
    print("  ".join(f"{k}: {v}" for k, v in about.items()), flush=True)
    results = []
    with torch.no_grad():
        torch.manual_seed(0)
        for case in cases(Setting(device, dtype, cuda)):
            result = measure(case, cuda, rounds)
            results.append(result)
            print(row(result), flush=True)
            if cuda:
                torch.cuda.empty_cache()
    return {"about": about, "results": results}


def measure(case: Case, timed: bool, rounds: int) -> dict[str, Any]:
    """Error against float64 and, if ``timed``, seconds of ours and of each peer."""
    result: dict[str, Any] = {
        "name": case.name,
        "shape": case.shape,
        "kind": case.kind,
        "bound": case.bound,
    }
    try:
        result["error"] = _worst(case.value(case.ours()), case.truth())
        result["correct"] = result["error"] <= case.bound
    except Exception as error:  # one kernel's trouble is a line of the report, not its end
        return {**result, "correct": False, "failed": f"{type(error).__name__}: {error}"[:500]}
    if not timed:
        return result
    runs: dict[str, Callable[[], Any]] = {"ours": case.ours}
    for name, peer in case.peers.items():
        try:
            peer()
            torch.cuda.synchronize()
            runs[name] = peer
        except Exception as error:
            result.setdefault("peers_failed", {})[name] = f"{type(error).__name__}: {error}"[:300]
    seconds = _time(runs, rounds, case.name)
    scale = 1e9 if case.kind == "memory" else 1e12
    result["unit"] = "GB/s" if case.kind == "memory" else "TFLOP/s"
    result["seconds"] = {name: statistics.median(t) for name, t in seconds.items()}
    result["rate"] = {name: case.work / s / scale for name, s in result["seconds"].items()}
    result["ratio"] = {
        name: statistics.median(p / o for o, p in zip(seconds["ours"], times, strict=True))
        for name, times in seconds.items()
        if name != "ours"
    }
    return result


def _time(runs: dict[str, Callable[[], Any]], rounds: int, name: str) -> dict[str, list[float]]:
    """Median seconds of ten single calls per round, by turns, the L2 cache emptied before each."""
    flush = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device="cuda")
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for turn in tqdm(range(rounds + 1), desc=name, leave=False):
        for key, call in runs.items():
            events = []
            for _ in range(10):
                flush.zero_()
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                stop.record()
                events.append((start, stop))
            torch.cuda.synchronize()
            if turn:
                times = [start.elapsed_time(stop) / 1e3 for start, stop in events]
                seconds[key].append(statistics.median(times))
    return seconds


def row(result: dict[str, Any]) -> str:
    """One line of the report."""
    head = f"{result['name']:34} {result['shape']:30}"
    if "failed" in result:
        return f"{head} FAILED {result['failed']}"
    mark = "ok" if result["correct"] else "WRONG"
    text = f"{head} error {result['error']:.1e} {mark}"
    if "rate" in result:
        text += f"  {result['rate']['ours']:8,.0f} {result['unit']}"
        text += "".join(f"  {ratio:5.2f}x {name}" for name, ratio in result["ratio"].items())
    for name, why in result.get("peers_failed", {}).items():
        text += f"  ({name} does not run: {why[:80]})"
    return text


def _worst(got: Any, want: Any) -> float:
    """Largest relative error over one result or several."""
    if isinstance(want, Tensor):
        return relative_error(got.double(), want.double())
    return max(_worst(g, w) for g, w in zip(got, want, strict=True))


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
