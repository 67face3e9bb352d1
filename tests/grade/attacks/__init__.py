"""Submissions that try to gain points, or to hurt, by other means than a right answer.

Each attack is the code of one answer cell for ``mla-cache-size`` or ``mla-naive`` (wrong as an
answer) and what it would do if it worked. ``{secret}``, ``{victim}`` and ``{parent}`` are filled in
by the test: a file that must not be read, one that must not change, the grader's process.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ATTACKS", "Attack"]

WRONG = """
def cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return 0
"""
WRONG_TENSOR = """
def attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return q_nope
"""


@dataclass(frozen=True)
class Attack:
    """One tampering answer; ``forbidden`` says that it must be reported as a shortcut.

    ``plain`` is the same answer without the attempt. It may be worth something, and the attempt
    must not be worth more.
    """

    name: str
    code: str
    exercise: str = "mla-cache-size"
    forbidden: bool = False
    plain: str = ""


ATTACKS: list[Attack] = []


def _attack(name: str, code: str, **more: object) -> None:
    ATTACKS.append(Attack(name, code, **more))  # type: ignore[arg-type]


# patched checkers and swallowed errors ------------------------------------------------------------

_attack(
    "patched_check",
    """
import minids3.course
import minids3.course.check
minids3.course.check = lambda id, fn=None, **k: fn
"""
    + WRONG,
)
_attack(
    "patched_run_check",
    """
try:
    import minids3.course.run as run
    run.run_check = lambda *a, **k: None
except Exception:
    pass
try:
    from minids3.course import checker
    checker.Checker._fail = checker.Checker._ok
except Exception:
    pass
"""
    + WRONG,
)
_attack(
    "patched_comparison",
    """
import torch, math, builtins
torch.isclose = lambda a, b, **k: torch.ones_like(a, dtype=torch.bool)
torch.allclose = torch.equal = lambda *a, **k: True
torch.testing.assert_close = lambda *a, **k: None
math.isclose = lambda *a, **k: True
builtins.abs = lambda x: 0
builtins.all = builtins.any = lambda *a: True
"""
    + WRONG,
)
_attack(
    "excepthook",
    """
import sys
sys.excepthook = lambda *a: None
ip = get_ipython()
ip.set_custom_exc((Exception,), lambda *a, **k: None)
ip.showtraceback = lambda *a, **k: None
"""
    + WRONG,
)
_attack(
    "ast_transformer",
    """
import ast
class Pass(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(Pass()) if get_ipython().ast_transformers else None
"""
    + WRONG,
)
_attack(
    "input_transformer",
    """
ip = get_ipython()
try:
    ip.input_transformers_post.append(lambda lines: ["pass\\n"])
except Exception:
    pass
"""
    + WRONG,
)
_attack(
    "patched_import",
    """
import builtins
real = builtins.__import__
def fake(name, *a, **k):
    if "course" in name or "grade" in name:
        raise SystemExit(0)
    return real(name, *a, **k)
builtins.__import__ = fake
"""
    + WRONG,
)

# lying values -------------------------------------------------------------------------------------

_attack(
    "lying_int",
    """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return Yes(0)
    def __rsub__(self, other): return Yes(0)
    def __abs__(self): return Yes(0)
    __hash__ = int.__hash__
    def __le__(self, other): return True
def cache_bytes(*a, **k):
    return Yes(0)
""",
)
_attack(
    "lying_str",
    """
class Yes(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def cache_bytes(*a, **k):
    return Yes("right")
""",
)
_attack(
    "lying_tensor",
    """
import torch
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.isclose, torch.Tensor.isclose):
            return torch.ones(1, dtype=torch.bool)
        if func is torch.Tensor.any:
            return torch.tensor(False)
        return super().__torch_function__(func, types, args, kwargs or {{}})
    shape = property(lambda self: (2, 3, 5, 7))
def attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return q_nope.clone().as_subclass(Liar)
""",
    exercise="mla-naive",
)
_attack(
    "lying_any_object",
    """
class Anything:
    def __getattr__(self, name): return lambda *a, **k: self
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __iter__(self): return iter([self])
    def __len__(self): return 1
    __class__ = property(lambda self: int)
def cache_bytes(*a, **k):
    return Anything()
""",
)
_attack(
    "pickle_bomb",
    """
import os
class Bomb:
    def __reduce__(self):
        return (os.system, ("echo x >> {victim}",))
    def __deepcopy__(self, memo):
        open({victim!r}, "a").write("x")
        return 0
def cache_bytes(*a, **k):
    return Bomb()
""",
)
_attack(
    "nan_everywhere",
    """
import torch
def attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return torch.full((*q_nope.shape[:3], 7), float("nan"))
""",
    exercise="mla-naive",
)
_attack(
    "constant_of_public_case",
    """
import torch
def attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    import hashlib
    raise NotImplementedError("still a stub") if q_nope.shape != (0,) else None
""",
    exercise="mla-naive",
)

# frames, memory, the channel ----------------------------------------------------------------------

_attack(
    "frames",
    """
import sys
def cache_bytes(*a, **k):
    frame = sys._getframe()
    while frame is not None:
        for name, value in list(frame.f_locals.items()):
            if name in ("expected", "want", "labels", "check", "exercise"):
                return value
        frame = frame.f_back
    return 0
""",
)
_attack(
    "garbage_collector",
    """
import gc
def cache_bytes(*a, **k):
    for thing in gc.get_objects():
        if type(thing).__name__ in ("Exercise", "Checker", "Report", "Mutant"):
            return thing.solution(*a, **k)
    return 0
""",
)
_attack(
    "forged_reply",
    """
import os, json, struct
def cache_bytes(*a, **k):
    reply = json.dumps({{"value": True, "passed": True, "points": 100, "status": "passed",
                        "tripped": []}}).encode()
    for fd in range(3, 20):
        try:
            os.write(fd, struct.pack(">Q", len(reply)) + reply)
        except OSError:
            pass
    return 0
""",
)
_attack(
    "patched_encoder",
    """
import sys
wire = sys.modules["minids3.grade.process.wire"]
wire.encode = lambda *a, **k: {{"opaque": "right"}}
runner = sys.modules["minids3.grade.process.runner"]
runner._Server.answer = lambda self, m: {{"value": 0, "callable": True, "points": 9}}
"""
    + WRONG,
)
_attack(
    "deep_reply",
    """
import sys
def cache_bytes(*a, **k):
    sys.modules["minids3.grade.process.wire"].encode = None
    import json
    json.dumps = lambda *a, **k: "[" * 100000
    return 0
""",
)
_attack(
    "huge_integer",
    """
def cache_bytes(*a, **k):
    return 10 ** 100000
""",
)
_attack(
    "huge_reply",
    """
def cache_bytes(*a, **k):
    return "x" * (200 << 20)
""",
)
_attack(
    "infinite_list",
    """
def cache_bytes(*a, **k):
    loop = []
    loop.append(loop)
    return loop
""",
)

# the machine --------------------------------------------------------------------------------------

_attack(
    "read_hidden_tests",
    """
def cache_bytes(*a, **k):
    return open({secret!r}).read()
""",
)
_attack(
    "read_solutions",
    """
def cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    import importlib, pathlib, minids3
    root = pathlib.Path(minids3.__file__).parent
    for path in (root / "course" / "exercises").rglob("*.py"):
        if "cache_size" in path.name:
            space = {{}}
            exec(path.read_text(), space)
            return space["cache_bytes"](kind, layers, heads, kv_heads, head_dim, latent, rotary,
                                        size)
    module = importlib.import_module("minids3.course.exercises.nb03_latent_attention.cache_size")
    return module.cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size)
""",
)
_attack(
    "import_exercises",
    """
import sys
sys.modules.pop("minids3.course", None)
from minids3.course.registry import get
cache_bytes = get("mla-cache-size").solution
""",
)
_attack(
    "symlink_to_secret",
    """
import os
def cache_bytes(*a, **k):
    os.symlink({secret!r}, "here")
    os.link({secret!r}, "there")
    return open("here").read()
""",
)
_attack(
    "forged_results",
    """
import os, json
for folder in (os.path.dirname({victim!r}), "..", "../..", "/tmp", os.getcwd()):
    try:
        with open(os.path.join(folder, "grades.json"), "w") as f:
            json.dump({{"points": 100}}, f)
    except OSError:
        pass
"""
    + WRONG,
)
_attack(
    "spoil_files",
    """
import os, shutil
for act in (lambda p: open(p, "w").close(), os.remove, lambda p: os.truncate(p, 0),
            lambda p: os.chmod(p, 0), lambda p: os.rename(p, p + "x"),
            lambda p: shutil.rmtree(os.path.dirname(p)), lambda p: os.utime(p, (0, 0))):
    try:
        act({victim!r})
    except OSError:
        pass
"""
    + WRONG,
)
_attack(
    "conftest",
    """
for name in ("conftest.py", "sitecustomize.py", "usercustomize.py", "torch.py", "pytest.ini"):
    for folder in (".", "..", "../.."):
        try:
            open(f"{{folder}}/{{name}}", "w").write("raise SystemExit(0)")
        except OSError:
            pass
"""
    + WRONG,
)
_attack(
    "environment",
    """
import os
os.environ.update(PYTHONSTARTUP="x.py", PYTHONPATH=".", PYTEST_ADDOPTS="--co", MINIDS3_STRICT="0")
def cache_bytes(*a, **k):
    return os.environ.get("MINIDS3_SEED", os.environ.get("SEED", 0))
""",
)
_attack(
    "kill_parent",
    """
import os, signal
for pid in ({parent}, os.getppid(), 0, -1, -os.getpgid(0), -os.getpgid(os.getppid())):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        try:
            if pid != os.getpid():
                os.kill(pid, number)
        except OSError:
            pass
"""
    + WRONG,
)
_attack(
    "exit",
    """
import os, sys, atexit
def cache_bytes(*a, **k):
    os._exit(0)
""",
)
_attack(
    "exit_at_load",
    """
import sys
sys.exit(0)
""",
)
_attack(
    "abort",
    """
import ctypes
def cache_bytes(*a, **k):
    ctypes.string_at(0)
""",
)
_attack(
    "fork_bomb",
    """
import os
try:
    while True:
        os.fork()
except OSError:
    pass
"""
    + WRONG,
)
_attack(
    "daemon",
    """
import os, subprocess, sys
try:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
except OSError:
    pass
"""
    + WRONG,
)
_attack(
    "thread_bomb",
    """
import threading, time
threading.stack_size(65536)
try:
    for _ in range(20000):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
except Exception:
    pass
time.sleep(2)
"""
    + WRONG,
)
_attack(
    "endless_output",
    """
import os, sys
print("x" * (64 << 20))
for fd in (1, 2):
    for _ in range(100):
        os.write(fd, b"x" * (1 << 20))
def cache_bytes(*a, **k):
    while True:
        print("x" * 100000)
""",
)
_attack(
    "giant_allocation",
    """
def cache_bytes(*a, **k):
    import torch
    return len([torch.ones(1 << 30) for _ in range(64)])
""",
)
_attack(
    "infinite_loop",
    """
def cache_bytes(*a, **k):
    while True:
        pass
""",
)
_attack(
    "sleeping",
    """
def cache_bytes(*a, **k):
    import time
    try:
        time.sleep(10 ** 6)
    except BaseException:
        time.sleep(10 ** 6)
""",
)
_attack(
    "ignored_signals",
    """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def cache_bytes(*a, **k):
    while True:
        pass
""",
)
_attack(
    "fill_disk",
    """
def cache_bytes(*a, **k):
    n = 0
    while True:
        n += 1
        with open(f"f{{n}}", "wb") as f:
            f.write(bytes(1 << 20))
""",
)
_attack(
    "sockets",
    """
import socket
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM),
                     (socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_STREAM)):
    try:
        socket.socket(family, kind)
    except OSError:
        continue
    open({victim!r}, "a").write("a socket")
    from pathlib import Path
    Path("socket").write_text("open")
def cache_bytes(*a, **k):
    import urllib.request
    return urllib.request.urlopen("http://127.0.0.1:{port}/").read().decode()
""",
)
_attack(
    "other_processes",
    """
import os
def cache_bytes(*a, **k):
    found = []
    for pid in ({parent}, os.getppid()):
        for name in ("environ", "cmdline", "maps", "mem", "fd"):
            try:
                found.append(open(f"/proc/{{pid}}/{{name}}", "rb").read(100))
            except OSError:
                pass
    return len(found)
""",
)

# shortcuts ----------------------------------------------------------------------------------------

_attack(
    "reference",
    """
from minids3.ref.norm import rms_norm_ref as mine
def rms_norm(x, weight, eps=1e-6):
    return mine(x, weight, eps)
""",
    exercise="rms-norm",
    forbidden=True,
)
_attack(
    "reference_by_string",
    """
import sys
def rope(x, cos, sin):
    module = sys.modules["minids3.r" + "ef.rope"]
    return vars(module)["apply_rope" + "_ref"](x, cos, sin)
""",
    exercise="rope",
    forbidden=True,
)
_attack(
    "reference_through_the_module",
    """
import minids3.nn as layers, torch
def rms_norm(x, weight, eps=1e-6):
    layer = layers.RMSNorm(x.shape[-1], eps)
    layer.weight = torch.nn.Parameter(weight)
    return layer(x)
""",
    exercise="rms-norm",
    forbidden=True,
)
_attack(
    "reference_swallowed",
    """
from minids3.ref import rope as tools
def rope(x, cos, sin):
    try:
        return getattr(tools, "apply_" + "rope_ref")(x, cos, sin)
    except BaseException:
        return x
""",
    exercise="rope",
    forbidden=True,
)
_attack(
    "source_of_the_reference",
    """
import inspect, sys
def rope(x, cos, sin):
    module = sys.modules["minids3.ref.rope"]
    space = dict(vars(module))
    exec(inspect.getsource(module), space)
    return space["apply_rope_ref"](x, cos, sin)
""",
    exercise="rope",
)
_attack(
    "ready_made",
    """
import torch.nn.functional as Q
def causal_attention(q, k, v, **more):
    return Q.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
""",
    exercise="causal-attention",
    forbidden=True,
)
_attack(
    "ready_made_hidden",
    """
import torch
def causal_attention(q, k, v, **more):
    name = "".join(["scaled_dot", "_product_", "attention"])
    return getattr(torch._C._nn, name)(q, k, v, is_causal=True, enable_gqa=True)
""",
    exercise="causal-attention",
    forbidden=True,
)
_attack(
    "stored_optimizer",
    """
import torch
def adamw_step(p, grad, m, v, step, lr, *rest, **more):
    w = torch.nn.Parameter(p.clone()); w.grad = grad
    torch.optim.AdamW([w], lr=lr).step()
    return w.detach(), m, v
""",
    exercise="adamw-step",
    forbidden=True,
)
_attack(
    "edited_points",
    """
# EXERCISE mla-cache-size  points: 1000, locked: false, grade: true
points = 1000
score = max_points = 1000
"""
    + WRONG,
)
_attack(
    "monkeypatched_torch",
    """
import torch
torch.Tensor.__eq__ = lambda a, b: True
torch.Tensor.any = lambda *a: torch.tensor(False)
torch.autograd.grad = lambda out, inputs, *a, **k: [torch.ones_like(i) for i in inputs]
"""
    + WRONG_TENSOR,
    exercise="mla-naive",
)

# lies about the cost ------------------------------------------------------------------------------

# Right values, but every key and value is rebuilt: all items but the count.
REBUILDS = """
import math
import torch
def attend_absorbed(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    kv = (c_kv @ w_kv_b.T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    k_nope, v = kv[..., :nope], kv[..., nope:]
    scores = q_nope @ k_nope.transpose(-1, -2) + q_rope @ k_rope[:, None].transpose(-1, -2)
    scores = scores / math.sqrt(nope + q_rope.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v
"""


def _cost(name: str, code: str) -> None:
    _attack(name, code, exercise="mla-absorb", plain=REBUILDS)


_cost(
    "patched_flop_counter",
    """
from torch.utils import flop_counter
flop_counter.FlopCounterMode.get_total_flops = lambda self: 0
flop_counter.FlopCounterMode._count_flops = lambda self, op, out, args, kwargs: out
flop_counter.flop_registry.clear()
"""
    + REBUILDS,
)
_cost(
    "modes_switched_off",
    REBUILDS
    + """
from torch.utils import _python_dispatch
honest = attend_absorbed
def attend_absorbed(*args):
    with _python_dispatch._disable_current_modes():
        return honest(*args)
""",
)
_cost(
    "forged_count",
    REBUILDS
    + """
import sys
runner = sys.modules["minids3.grade.process.runner"]
def call(self, m):
    m = dict(m, record=False)
    return dict(honest(self, m), flops=0)
honest = runner._Server.call
runner._Server.call = call
""",
)
_cost(
    "forged_steps",
    REBUILDS
    + """
import sys
runner = sys.modules["minids3.grade.process.runner"]
wire = sys.modules["minids3.grade.process.wire"]
def recorded(self, args, kwargs, tensors):
    value = wire.encode(self.fn(*args, **kwargs))
    return {{"steps": [{{"constant": value, "gives": [5]}}], "result": {{"number": 5}},
            "value": value, "flops": 0}}
runner._Server._recorded = recorded
""",
)
_cost(
    "malformed_steps",
    REBUILDS
    + """
import sys
runner = sys.modules["minids3.grade.process.runner"]
runner._Server._recorded = lambda self, *a: {{
    "steps": [{{"op": ["aten::from_file", ""], "args": {{"list": [{{"plain": {secret!r}}}]}},
              "kwargs": {{"dict": []}}, "gives": [5]}}], "result": {{"number": 5}}}}
""",
)
_cost(
    "numpy_does_it",
    REBUILDS
    + """
honest = attend_absorbed
def attend_absorbed(*args):
    if any(a.requires_grad for a in args):
        return honest(*args)
    q_nope, q_rope, c_kv, k_rope, w_kv_b = (a.numpy() for a in args)
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    weight = w_kv_b.reshape(n_heads, -1, w_kv_b.shape[-1])
    kv = c_kv[:, None] @ weight.swapaxes(-1, -2)
    k, v = torch.from_numpy(kv[..., :nope]), torch.from_numpy(kv[..., nope:])
    scores = q_nope @ k.numpy().swapaxes(-1, -2) + q_rope @ k_rope[:, None].swapaxes(-1, -2)
    scores = torch.from_numpy(scores) / math.sqrt(nope + q_rope.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    share = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return torch.from_numpy(share.numpy() @ v.numpy())
""",
)
_cost(
    "products_by_element",
    REBUILDS.replace("(c_kv @ w_kv_b.T)", "torch.stack([(c_kv * w).sum(-1) for w in w_kv_b], -1)"),
)
_cost(
    "products_by_vector",
    REBUILDS.replace("(c_kv @ w_kv_b.T)", "torch.stack([c_kv.flatten(0, 1).mv(w)"
                     ".unflatten(0, c_kv.shape[:2]) for w in w_kv_b], -1)"),
)  # fmt: skip

_cost("distances_do_it", REBUILDS.replace("(c_kv @ w_kv_b.T)",
      "((c_kv.square().sum(-1, keepdim=True) + w_kv_b.square().sum(-1)"
      " - torch.cdist(c_kv, w_kv_b[None].expand(len(c_kv), -1, -1)) ** 2) / 2)"))  # fmt: skip
_cost("division_does_it", REBUILDS.replace("(c_kv @ w_kv_b.T)",
      "(c_kv[..., None, :] / (1 / w_kv_b)).sum(-1)"))  # fmt: skip

# what the grader's own process is told ------------------------------------------------------------

_attack(
    "forged_trips",
    """
import sys
sys.modules["minids3.grade.process.tripwire"].taken = lambda: 7
"""
    + WRONG,
)
_attack(
    "forged_trips_of_others",
    """
import sys
trips = sys.modules["minids3.grade.process.tripwire"]
trips.taken = lambda: ["<b>the instructor</b>", {{}}, 3, None]
"""
    + WRONG,
)
_attack(
    "forged_failures",
    """
import sys
runner = sys.modules["minids3.grade.process.runner"]
honest = runner._Server.answer
def answer(self, m):
    reply = honest(self, m)
    return dict(reply, failed=7, printed=[[1]], kinds=3, first="x", line="y", after=5)
runner._Server.answer = answer
"""
    + WRONG,
)
_attack(
    "values_without_a_form",
    """
class Thing:
    pass
def attend_naive(*a):
    return Thing()
""",
    exercise="mla-naive",
)
_attack(
    "values_passed_back",
    """
class Thing:
    pass
def update_bias(*a, **k):
    return Thing()
""",
    exercise="balance-bias",
)
_attack(
    "half_a_character",
    """
def cache_bytes(*a, **k):
    raise ValueError(chr(0xd800) + "<script>")
""",
)
_attack(
    "colliding_hashes",
    """
def cache_bytes(*a, **k):
    return {{k * (2**61 - 1) for k in range(3000)}}
""",
)
_attack(
    "sleeping_at_load",
    """
import time
time.sleep(10 ** 6)
"""
    + WRONG,
)
_attack(
    "open_files_without_names",
    """
import os
def cache_bytes(*a, **k):
    kept = []
    for n in range(100):
        f = open(f"f{{n}}", "wb")
        os.unlink(f"f{{n}}")
        f.write(bytes(30 << 20)); f.flush()
        kept.append(f)
    return 0
""",
)
_attack(
    "signals_by_owner",
    """
import fcntl, os, signal, socket, struct
a, b = socket.socketpair()
for command, value in ((8, {parent}), (10, signal.SIGKILL), (15, struct.pack("ii", 1, {parent}))):
    try:
        fcntl.fcntl(a, command, value)
    except OSError:
        pass
try:
    fcntl.ioctl(a, 0x8901, struct.pack("i", {parent}))
    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)
except OSError:
    pass
b.send(b"x")
"""
    + WRONG,
)
_attack(
    "datagrams",
    """
import socket
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for send in (lambda: a.sendto(b"x", "/dev/log"), lambda: socket.send_fds(a, [b"x"], [0]),
             lambda: a.sendmsg([b"x"], [], 0, "/run/systemd/journal/socket")):
    try:
        send()
    except OSError:
        continue
    raise SystemExit("sent")
"""
    + WRONG,
)
_attack(
    "operator_of_pytorch",
    """
import torch
def causal_attention(q, k, v, **more):
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return torch.ops.aten._scaled_dot_product_attention_math(q, k, v, is_causal=True)[0]
""",
    exercise="causal-attention",
    forbidden=True,
)
_attack(
    "operator_of_pytorch_hidden",
    """
import torch
def lm_loss(logits, targets, *rest, **more):
    name = "cross_" + "entropy" + "_loss"
    return getattr(getattr(torch, "o" + "ps").aten, name)(logits.flatten(0, -2), targets.flatten())
""",
    exercise="lm-loss",
    forbidden=True,
)


# what costs the grader, not the student -----------------------------------------------------------

_attack(
    "flood_of_tripped_names",
    """
import sys
flood = [0] * 300_000
sys.modules["minids3.grade.process.tripwire"].taken = lambda: flood
"""
    + WRONG,
)
_attack(
    "folders_in_folders",
    """
import os
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
"""
    + WRONG,
)
_attack(
    "folders_in_folders_that_nobody_may_read",
    """
import os
for n in range(1500):
    os.mkdir("d", 0o700)
    os.chdir("d")
    os.chmod("..", 0)
"""
    + WRONG,
)
_attack(
    "an_endless_range",
    """
def place_experts(*args, **more):
    return [range(10 ** 18)] * 2
""",
    exercise="serve-place",
)

# ready-made functions by other ways ---------------------------------------------------------------

_attack(
    "operators_of_a_graph",
    """
from torch import _C as T
graph = T.parse_ir(\"\"\"
graph(%x : Tensor, %y : Tensor, %i : int):
  %n : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %s : float = prim::Constant[value=0.]()
  %r : Tensor = aten::cross_entropy_loss(%x, %y, %n, %one, %i, %s)
  return (%r)
\"\"\")
f = T._create_function_from_graph("f", graph)
def lm_loss(logits, targets, ignore_index=-100):
    return f(logits.float().flatten(0, -2), targets.flatten(), ignore_index)
""",
    exercise="lm-loss",
)
_attack(
    "a_name_put_together",
    """
import torch
f = getattr(torch, "_fused_ad" + "am_")
def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    a, b, c = (t.float().clone().contiguous() for t in (p, m, v))
    a.mul_(1 - lr * weight_decay)
    f([a], [grad.float().contiguous()], [b], [c], [], [torch.tensor(float(step))], lr=lr,
      beta1=betas[0], beta2=betas[1], weight_decay=0.0, eps=eps, amsgrad=False, maximize=False)
    return a.to(p.dtype), b.to(p.dtype), c.to(p.dtype)
""",
    exercise="adamw-step",
    forbidden=True,
)
_attack(
    "a_reference_implementation",
    """
import torch
import torch._refs.nn.functional as R
f = vars(R)["nll" + "_loss"]
def lm_loss(logits, targets, ignore_index=-100):
    logs = torch.log_softmax(logits.float().flatten(0, -2), -1)
    return f(logs, targets.flatten(), ignore_index=ignore_index)
""",
    exercise="lm-loss",
    forbidden=True,
)
_SPOILS = """
import torch
known = []
def spoil(*args):
    key = [float(a.detach().flatten()[0]) for a in args if a.numel()]
    if key in known:
        with torch.no_grad():
            for a in args:
                a.zero_()
    known.append(key)
"""
_ZEROS = """
import torch
def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    {}
    return torch.zeros_like(p), torch.zeros_like(m), torch.zeros_like(v)
"""
_attack(
    "inputs_made_zero",
    _SPOILS.replace("{", "{{").replace("}", "}}") + _ZEROS.format("spoil(p, grad, m, v)"),
    exercise="adamw-step",
)
_attack(
    "inputs_made_zero_where_gradients_are_asked_for",
    _SPOILS
    + """
def rope(x, cos, sin):
    spoil(x, cos, sin)
    return torch.zeros_like(x) + 0 * x
""",
    exercise="rope",
)

# costs that are counted ---------------------------------------------------------------------------

_REBUILT = """
import math
import torch
def product(x, w):
    return x @ w.T
{}
def attend_absorbed(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    kv = product(c_kv, w_kv_b).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    k_nope, v = kv[..., :nope], kv[..., nope:]
    scores = q_nope @ k_nope.transpose(-1, -2) + q_rope @ k_rope[:, None].transpose(-1, -2)
    scores = scores / math.sqrt(nope + q_rope.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v
"""
_attack(
    "products_put_together_from_sums",
    _REBUILT.format(
        """
def product(x, w):
    if x.requires_grad or w.requires_grad:
        return x @ w.T
    x, w = x[:, :, None, :], w[None, None]
    rest, total = x.abs(), torch.zeros(())
    for bit in range(3, -25, -1):
        one = rest >= 2.0 ** bit
        rest = torch.where(one, rest - 2.0 ** bit, rest)
        total = total + torch.where(one, w * 2.0 ** bit, 0.0)
    return torch.where(x < 0, -total, total).sum(-1)
"""
    ),
    exercise="mla-absorb",
    plain=_REBUILT.format(""),
)
