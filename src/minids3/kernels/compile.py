"""Compile kernels for GPUs that nobody in the room owns, and look inside.

Triton compiles on any Linux machine: it needs the name of a target, not the target itself. So a
reader can look at the PTX of an H100 on a laptop, and the tests can see, without any GPU, that
every kernel compiles for six generations and uses the tensor-core instruction it is there for::

    python -m minids3.kernels.compile            # the whole matrix
    python -m minids3.kernels.compile rms_norm   # kernels whose name contains this

Compiling must happen in a process without TRITON_INTERPRET, so ``inspect`` starts one.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minids3.command import Parser, demand, run
from minids3.kernels.source import locate

__all__ = ["TARGETS", "CompileError", "Inspection", "Spec", "inspect", "matrix", "specs"]

TARGETS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
NAMES = {"t4": "sm_75", "a100": "sm_80", "l4": "sm_89", "h100": "sm_90", "b200": "sm_100"}
NAMES["g4"] = "sm_120"  # Colab's name of the RTX PRO 6000 Blackwell
# KiB of shared memory that one program may have (CUDA programming guide, from memory).
SHARED = {"sm_75": 64, "sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
_TENSOR_CORE = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*")


class CompileError(RuntimeError):
    """The compiler refused a kernel; the message is its own."""


@dataclass(frozen=True)
class Spec:
    """A kernel with its constants settled: how to launch or compile it, and what to find in it.

    signature: type of each argument that is no constexpr, such as ``"*bf16"`` or ``"i32"``.
    constexprs: their values. divisible: integer arguments known to be multiples of 16.
    expects: per target a regular expression that its PTX must match.
    targets: what it is compiled for; max_spill_bytes: local memory allowed per thread.
    """

    name: str
    kernel: Any = field(repr=False)
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    divisible: Sequence[str] = ()
    expects: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[str] = TARGETS
    max_spill_bytes: int = 0

    def launch(self, grid: tuple[int, ...], *args: Any) -> None:
        """Run the kernel with these constants, warps and stages.

        ``args`` stand in the order of the kernel's parameters and bring their own types; those of
        ``signature`` are for compiling, where there are no arguments.
        """
        self.kernel[grid](
            *args, **self.constexprs, num_warps=self.num_warps, num_stages=self.num_stages
        )


def operand(kind: str, tile: tuple[int, int] | None = None) -> str:
    """Type of an argument: a pointer to ``kind``, or what the copy engine loads ``tile`` from."""
    return f"tensordesc<{kind}{list(tile)}>" if tile else f"*{kind}"


@dataclass(frozen=True)
class Inspection:
    """A compiled kernel.

    instructions: the tensor-core instructions of the PTX and how often each stands there.
    registers: per thread. shared_bytes: per program. spill_bytes: local memory per thread.
    """

    name: str
    target: str
    ptx: str = field(repr=False)
    registers: int
    shared_bytes: int
    spill_bytes: int
    instructions: dict[str, int]

    def find(self, pattern: str) -> list[str]:
        """Lines of the PTX that match a regular expression, stripped."""
        return [line.strip() for line in self.ptx.splitlines() if re.search(pattern, line)]


def inspect(
    kernel: Any,
    target: str = "h100",
    *,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any] | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: Sequence[str] = (),
) -> Inspection:
    """Compile ``kernel`` for ``target`` in a process of its own, and return what came out.

    Args:
        kernel: a ``@triton.jit`` function of a module or of a notebook's cell.
        target: ``"t4"``, ``"a100"``, ``"l4"``, ``"h100"``, ``"b200"``, ``"g4"``, or an architecture
            such as ``"sm_90"``.
        signature: type of each argument that is no constexpr: ``{"x_ptr": "*fp32", "n": "i32"}``.
        constexprs: values of the constexpr arguments.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        divisible: integer arguments to be taken as multiples of 16; pointers always are.

    Raises:
        ValueError: unknown target, or an argument without a type or value.
        CompileError: the compiler refused the kernel.
        NoTriton: Triton is not installed.
    """
    spec = Spec(
        getattr(kernel, "__name__", "kernel"),
        kernel,
        signature,
        constexprs or {},
        num_warps,
        num_stages,
        divisible,
    )
    ((_, result),) = _compile([(spec, _architecture(target))])
    if isinstance(result, CompileError):
        raise result
    return result


def specs(contains: str = "") -> list[Spec]:
    """The ``SPECS`` of every file in this folder whose names contain a text, in order."""
    package = importlib.import_module("minids3.kernels")
    found: list[Spec] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        if module not in ("compile", "language", "launch", "source"):
            found += getattr(importlib.import_module(f"minids3.kernels.{module}"), "SPECS", ())
    return [s for s in found if contains in s.name]


def matrix(chosen: Sequence[Spec]) -> Iterator[tuple[Spec, str, Inspection | CompileError]]:
    """Compile each kernel for each of its targets, one after the other, and yield as they come."""
    jobs = [(s, t) for s in chosen for t in s.targets]
    for (spec, target), (_, result) in zip(jobs, _compile(jobs), strict=True):
        yield spec, target, result


def faults(spec: Spec, target: str, result: Inspection | CompileError) -> list[str]:
    """What is wrong with a cell of the matrix; empty if nothing is."""
    if isinstance(result, CompileError):
        return [f"does not compile: {result}"]
    wrong = []
    pattern = spec.expects.get(target)
    if pattern and not re.search(pattern, result.ptx):
        wrong.append(f"nothing in the PTX matches {pattern!r}; found {result.instructions}")
    allowed = max(spec.max_spill_bytes, _frame())
    if result.spill_bytes > allowed:
        wrong.append(f"{result.spill_bytes} bytes of local memory, {allowed} allowed")
    limit = SHARED.get(target)
    if limit is not None and result.shared_bytes > 1024 * limit:
        wrong.append(f"{result.shared_bytes} bytes of shared memory, {1024 * limit} allowed")
    return wrong


def _frame() -> int:
    """Bytes of local memory that Triton before 3.9 gives some kernels that spill nothing."""
    from minids3.kernels.language import triton

    return 8 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0


def _architecture(target: str) -> str:
    name = NAMES.get(target.lower(), target.lower())
    if not re.fullmatch(r"sm_\d{2,3}", name):
        raise ValueError(
            f"unknown target {target!r}: one of {', '.join(NAMES)}, or sm_75, sm_90 .."
        )
    return name


def _compile(
    jobs: Sequence[tuple[Spec, str]],
) -> Iterator[tuple[str, Inspection | CompileError]]:
    """Send all jobs to one child process and yield its answers in order."""
    if importlib.util.find_spec("triton") is None:
        from minids3.kernels.language import NoTriton

        raise NoTriton
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for spec, target in jobs:
            lines.append(
                json.dumps(
                    {
                        **locate(spec.kernel, Path(folder)),
                        "name": spec.name,
                        "target": target,
                        "signature": dict(spec.signature),
                        "constexprs": dict(spec.constexprs),
                        "num_warps": spec.num_warps,
                        "num_stages": spec.num_stages,
                        "divisible": list(spec.divisible),
                    }
                )
            )
        hidden = ("TRITON_INTERPRET", "PYTEST_VERSION")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        # IPython before 8 puts its extensions on the path, and beside them a package named "tests".
        paths = (p for p in sys.path if p and Path(p).parts[-2:] != ("IPython", "extensions"))
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        jobs_file = Path(folder) / "jobs.jsonl"  # a pipe would fill up while answers fill another
        jobs_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with jobs_file.open(encoding="utf-8") as stdin:
            child = subprocess.Popen(
                [sys.executable, "-m", "minids3.kernels.compile", "--child"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if len(lines) == 1 else subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        assert child.stdout is not None
        with child:
            for _ in lines:
                answer = child.stdout.readline()
                if not answer:
                    trouble = child.stderr.read()[-2000:] if child.stderr else "it ended early"
                    raise CompileError(f"the compiling process failed: {trouble}")
                data = json.loads(answer)
                name = data.get("name", "")
                yield name, CompileError(data["error"]) if "error" in data else Inspection(**data)


def _child() -> int:
    """Read jobs as JSON lines, write an answer line for each."""
    answers = os.fdopen(os.dup(1), "w")  # the compiler may print; answers have their own channel
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = _compile_here(job)
        except Exception as error:  # reported to the parent, which knows what to do with it
            answer = {"name": job["name"], "error": f"{type(error).__name__}: {error}"[:4000]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _compile_here(job: dict[str, Any]) -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from minids3.kernels.language import jit, triton

    if job["path"]:
        sys.path.insert(0, job["path"])
    kernel = getattr(importlib.import_module(job["module"]), job["attribute"])
    if not hasattr(kernel, "arg_names"):
        kernel = jit(kernel)
    signature, constexprs = job["signature"], job["constexprs"]
    missing = [a for a in kernel.arg_names if a not in signature and a not in constexprs]
    if missing:
        raise ValueError(f"no type or value for {', '.join(missing)}: add it to the signature")
    types = {a: signature.get(a, "constexpr") for a in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(kernel.arg_names)
        if types[a].startswith("*") or a in job["divisible"]
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", int(job["target"].removeprefix("sm_")), 32),
        options={"num_warps": job["num_warps"], "num_stages": job["num_stages"]},
    )
    ptx = compiled.asm["ptx"]
    instructions: dict[str, int] = {}
    for found in _TENSOR_CORE.findall(ptx):
        instructions[found] = instructions.get(found, 0) + 1
    registers, spilled = _resources(compiled.asm["cubin"])
    return {
        "name": job["name"],
        "target": job["target"],
        "ptx": ptx,
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": spilled,
        "instructions": instructions,
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, from the binary."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing about registers: {text[:500]}")
    return int(found[1]), int(found[2])


def _report(contains: str) -> int:
    demand("triton", "compiling kernels", "triton (on Linux)")
    chosen = specs(contains)
    if not chosen:
        names = [s.name for s in specs()]
        near = ", ".join(difflib.get_close_matches(contains, names, 5, 0.3) or names[:5])
        raise ValueError(f"no kernel's name contains {contains!r}; there are {near} and others")
    bad = 0
    print(f"{'kernel':34} {'target':7} {'registers':>9} {'shared':>8} {'spilled':>8}  tensor cores")
    for spec, target, result in matrix(chosen):
        wrong = faults(spec, target, result)
        if isinstance(result, Inspection):
            cores = ", ".join(f"{n} x {i}" for i, n in result.instructions.items()) or "-"
            print(
                f"{spec.name:34} {target:7} {result.registers:9} {result.shared_bytes:8} "
                f"{result.spill_bytes:8}  {cores}",
                flush=True,
            )
        for sentence in wrong:
            print(f"{spec.name:34} {target:7} WRONG: {sentence}", flush=True)
        bad += bool(wrong)
    print(f"{len(chosen)} kernels, {bad} cells with faults")
    return 1 if bad else 0


def main(argv: list[str] | None = None) -> int:
    """Print the compile matrix; 1 if a cell has a fault, 2 if nothing can be compiled."""
    parser = Parser(
        prog="python -m minids3.kernels.compile", description="Compile kernels without a GPU."
    )
    parser.add_argument(
        "contains", nargs="?", default="", help="only kernels with this in the name"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return _child()
    return run(lambda: _report(args.contains))


if __name__ == "__main__":
    sys.exit(main())
