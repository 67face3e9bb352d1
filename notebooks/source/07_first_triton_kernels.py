# %% [markdown]
# # 07 · The first Triton kernels: thirty-two trips or five
#
# {{badge}}
#
# > **Claim.** Forward and backward, the textbook's RMSNorm carries its
# > input through memory **32 times**. Two kernels of a dozen lines carry it
# > **five times**, and a third for sums on the way. They run on this
# > machine without a GPU, agree with float64 to one part in 100,000, and
# > compile here for a T4, an A100, an L4 and an H100 without spilling a
# > register. Forget one mask and every number they return is still right.
# > What is wrecked is the memory next to them.
#
# **Takes** about 85 minutes to work through, 52 of them for the exercises;
# 'Run all' about 2 minutes on two CPU cores, most of it compiling. **Needs**
# notebook 02 (RMSNorm, softmax), and Linux or Colab: there is no Triton for
# macOS or Windows. **Afterwards** you can write, test and launch a Triton
# kernel with a gradient, say what its programs own, find in the compiled text
# whether it reads memory the way it should, and tell by a division whether a
# kernel waits for memory or for arithmetic.

# %%
# SETUP

# %% [markdown]
# ## 7.0 Memory is the price: the multiplications are free
#
# RMSNorm takes about four operations for each number. One layer of
# DeepSeek-V3, one text of 4,096 tokens of 7,168 numbers in BF16: 117
# million operations. An H100 does 989 million million a second at its peak
# and moves 3.35 million million bytes (datasheet, from memory and not
# checked here: MEM).
#
# **Guess before you run:** of the time that this RMSNorm takes, step by
# step as the textbook writes it, what share is arithmetic?

# %%
from minids3.sim.hardware import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

h100 = get_accelerator("H100")


class Traffic(TorchDispatchMode):
    """Adds up the bytes that PyTorch's operations read and write."""

    total = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        read = {a.data_ptr(): a for a in args if torch.is_tensor(a)}
        stored = {a.untyped_storage().data_ptr() for a in read.values()}
        if out.untyped_storage().data_ptr() not in stored:  # not a view
            for t in (*read.values(), out):
                self.total += min(t.nbytes, t.untyped_storage().nbytes())
        return out


def textbook(x, weight, eps=1e-6):
    square = x * x
    rstd = torch.rsqrt(square.mean(-1, keepdim=True) + eps)
    x_hat = x * rstd
    return x_hat * weight


x, weight = torch.randn(512, 1024), torch.randn(1024)
with Traffic() as forward:
    textbook(x, weight)
trips = forward.total / x.nbytes
size = 4096 * 7168 * 2
print(f"x crosses the memory bus {trips:.1f} times")
print(f"arithmetic {4 * 4096 * 7168 / h100.bf16_flops * 1e6:6.2f} µs")
print(f"memory     {trips * size / h100.memory_bandwidth * 1e6:6.2f} µs")

# %% [markdown]
# A tenth of a percent. (The units that do such arithmetic are slower than the
# tensor cores that the peak belongs to; it stays a small part.) Each line of
# `textbook` reads its inputs from memory and writes its result back, only for
# the next line to read it again. Seven trips: one to square, which reads and
# writes, one to average, two to scale, two to weigh.
#
# Reading `x` once and writing the result once would be two. Nothing in the
# formula asks for more. To get there we have to tell the GPU what to keep
# at hand between the lines, and that is what a **kernel** is.
#
# ## 7.1 Programs and tiles
#
# A GPU is many small processors: an H800 has 132 of them (TR). A kernel is
# launched as a grid of **programs**, and each is put on some processor when
# there is room. In what order, nobody promises. Programs do not talk to each
# other. So each must own a part of the result, its **tile**, and do
# everything for that tile.
#
# In Triton you write what *one* program does with its *whole* tile; how
# that is spread over threads is the compiler's business. Without a GPU the
# same source runs in Triton's **interpreter**: slow, on the CPU, one
# program after the other, with a debugger if you like.
#
# Here a program writes its own number into its tile of 8. `tl.arange` makes
# the tile's lanes, `out_ptr + i` their addresses. **Predict:** 22 elements,
# tiles of 8. What will be printed?

# %%
import triton
import triton.language as tl
from minids3.kernels.launch import interpreted


@triton.jit
def who_kernel(out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.program_id(0), mask=i < n)


device = "cpu" if interpreted() else "cuda"
print("kernels run",
      "in the interpreter" if interpreted() else "on the GPU")
out = torch.full((22,), -1, dtype=torch.int32, device=device)
who_kernel[(triton.cdiv(22, 8),)](out, 22, BLOCK=8)
print(out.tolist())

# %% [markdown]
# `who_kernel[(3,)]` is the launch: a grid of three programs. `cdiv` divides
# and rounds up. `BLOCK` is a `constexpr`: known when the kernel is
# compiled, a power of two, and each value makes another kernel.

# %% tags=["fold"]
def draw_tiles(ax, n, BLOCK):
    """Rows are programs, squares their lanes; idle lanes are hatched."""
    programs = -(-n // BLOCK)
    for p in range(programs):
        for lane in range(BLOCK):
            i = p * BLOCK + lane
            ax.add_patch(plt.Rectangle(
                (lane, p), 0.92, 0.88, lw=0.6, ec=viz.COLORS["muted"],
                fc=viz.PALETTE[p % 6] if i < n else "none",
                hatch=None if i < n else "////"))
            if i < n and BLOCK <= 16 and programs <= 8:
                ax.text(lane + 0.46, p + 0.46, i, ha="center",
                        va="center", fontsize=8, color="white")
    ax.set(xlim=(-0.2, BLOCK), ylim=(programs, -0.15),
           xlabel="lane of the tile", ylabel="program")
    ax.set_xticks(np.arange(0, BLOCK, max(BLOCK // 8, 1)) + 0.46,
                  range(0, BLOCK, max(BLOCK // 8, 1)))
    step = max(programs // 8, 1)
    ax.set_yticks(np.arange(0, programs, step) + 0.44,
                  range(0, programs, step))
    ax.grid(visible=False)
    return programs * BLOCK - n


fig, ax = plt.subplots(figsize=(7, 2.1))
idle = draw_tiles(ax, 22, 8)
viz.show(fig, dpi=90, alt="Three rows of eight squares, a row per program: "
         "elements 0 to 7, 8 to 15, 16 to 21. The last two squares of the "
         f"third row are hatched: {idle} lanes without an element.")

# %% [markdown]
# The last tile sticks out. `mask=i < n` tells those lanes to do nothing:
# no load, no store. Remember the two hatched squares.

# %% [markdown]
# EXERCISE text
# ### Exercise: one tile for each
#
# Write `add_kernel`: `out = x + y` for `n` numbers, as programs of `BLOCK`
# lanes. `tl.load(pointer, mask=...)` reads a tile, `tl.store(pointer,
# tile, mask=...)` writes one. `n` need not be a multiple of anything. For
# `[1, 2, 3]` and `[10, 20, 30]` memory holds `[11, 22, 33]` afterwards, and
# nothing beyond it has changed.

# %%
# EXERCISE triton-add

# %%
# CHECK triton-add

# %% [markdown]
# The line that launches it is ordinary Python:

# %% tags=["nbval-check-output"]
def add(x, y, BLOCK=1024):
    """Sum of two contiguous tensors of one shape."""
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    add_kernel[grid](x, y, out, x.numel(), BLOCK=BLOCK)
    return out


x, y = torch.randn(2, 77, 333, device=device)
print("equal to PyTorch's sum, bit for bit:", torch.equal(add(x, y), x + y))

# %% [markdown]
# ## 7.2 The control: a kernel without a mask
#
# Here is the same kernel after somebody cleaned up. The loads have their
# masks, the store has lost it. To see what happens we put `out` and a
# tensor of sevens next to each other, as PyTorch's allocator does all the
# time.
#
# **Predict:** is `out` right? Will there be an error?

# %% tags=["nbval-check-output"]
@triton.jit
def add_unmasked_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    y = tl.load(y_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + y)  # no mask


memory = torch.full((30,), 7.0, device=device)
out, neighbour = memory[:22], memory[22:]
before = memory.clone()
x, y = torch.randn(2, 22, device=device)
add_unmasked_kernel[(3,)](x, y, out, 22, BLOCK=8)
print("every sum is right:", torch.equal(out, x + y))
print("the neighbour was   ", before[22:].int().tolist())
print("the neighbour is now", neighbour.int().tolist())

# %% tags=["fold"]
fig, axes = plt.subplots(2, 1, figsize=(8.6, 1.9), sharex=True)
for ax, name, cells in zip(axes, ("before", "after"), (before, memory)):
    for i, value in enumerate(cells.tolist()):
        hit = i >= 22 and value != 7
        color = (viz.COLORS["control"] if hit else viz.PALETTE[5]
                 if i >= 22 else viz.COLORS["ours"])
        ax.add_patch(plt.Rectangle((i, 0), 0.9, 1, fc=color))
        if i >= 22:
            ax.text(i + 0.45, 0.47, f"{value:.0f}", ha="center",
                    va="center", fontsize=9, color="white" if hit else
                    viz.COLORS["ink"], weight="bold" if hit else None)
    ax.set(xlim=(-0.3, 30.2), ylim=(-0.1, 1.1), yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
    ax.grid(visible=False)
for middle, text in ((11, "out: 22 numbers"), (26, "the neighbour: 8")):
    axes[0].text(middle, 1.2, text, ha="center", fontsize=9)
axes[1].set_xlabel("address (in numbers of 4 bytes)")
lost = int((neighbour != 7).sum())
viz.show(fig, dpi=90, alt="Two strips of memory, 22 numbers of out and 8 "
         f"sevens of a neighbour; after the launch {lost} of the sevens, "
         "right after out, are zeros.")

# %% [markdown]
# Two hatched squares, two ruined numbers. No error, no warning, and a test
# that compares `out` with the truth would be green. In a training run the
# neighbour is a weight or somebody's gradient, and you look for the fault
# in the learning rate.
#
# So the checks here do not trust the result alone. They give your kernel
# an output in the middle of a larger buffer full of poison, and look at the
# margins afterwards. Show it the cleaned-up kernel:

# %% tags=["nbval-check-output"]
_ = check("triton-add", add_unmasked_kernel, dry=True)

# %% [markdown]
# ## 7.3 Look inside: the PTX of a GPU you do not own
#
# To *run* a kernel on an H100 takes an H100. To *compile* it does not: the
# compiler needs the name of the target and nothing else. What comes out is
# **PTX**, the assembly language of NVIDIA's GPUs, in which one thread's
# work is written down. `inspect` compiles in a process of its own, since
# this one may be in the interpreter.
#
# `signature` gives the arguments' types; `divisible` promises that `n` is a
# multiple of 16. **Predict:** 1,024 lanes are 128 threads of 8 numbers.
# How many additions and how many loads will a thread have?

# %%
import re

from minids3.kernels.compile import Spec, inspect, matrix
from tqdm.auto import tqdm

SIGNATURE = {"x_ptr": "*fp32", "y_ptr": "*fp32", "out_ptr": "*fp32",
             "n": "i32"}
compiled = inspect(add_kernel, "h100", signature=SIGNATURE,
                   constexprs={"BLOCK": 1024}, divisible=("n",))
adds = len(re.findall(r"add\.f32", compiled.ptx))
print(f"{len(compiled.ptx.splitlines())} lines of PTX, {adds} additions, "
      f"{compiled.registers} registers a thread. Among the lines:\n")
for line in compiled.find(r"^\s*(@\S+\s+)?(ld|st)\.global|setp|add\.f32"):
    print(line)

# %% [markdown]
# Read it from the top. `setp.lt` compares an index with `n` and keeps the
# answer in a **predicate** `%p1`: that is your mask. `@%p1 ld.global` loads
# only if the predicate is true. Then eight `add.f32`, and the store, under
# the same predicate. The unmasked kernel's store would have none.
#
# The word that matters most is short: **`.v4`**. One instruction fetches
# four numbers of 32 bits, 16 bytes in one go, the most that a load of these
# four GPUs can. It decides whether a kernel that waits for memory waits
# well.

# %% [markdown]
# EXERCISE text
# ### Exercise: how much does one instruction fetch?
#
# Write `load_widths`. `ptx` is a text like the one above. Return a list:
# for each load from **global** memory, in order, how many bytes a thread
# gets from it. `ld.global.v4.b32` is 4 times 32 bits, so 16; without a `.v`
# it is one number. There may be further words in between, as in
# `ld.global.L1::evict_last.b64`, which fetches 8 bytes.

# %%
# EXERCISE ptx-loads

# %%
# CHECK ptx-loads

# %% [markdown]
# Now use your tool. The same kernel, twice on each of four GPUs: once with
# the promise that `n` is a multiple of 16, once without. **Predict** what
# the missing promise costs. A hint: may one instruction load four numbers
# if the mask could end between them?

# %%
GPUS = {"T4": "sm_75", "A100": "sm_80", "L4": "sm_89", "H100": "sm_90"}
names = {architecture: gpu for gpu, architecture in GPUS.items()}
jobs = [Spec(label, add_kernel, SIGNATURE, {"BLOCK": 1024}, divisible=d,
             targets=tuple(GPUS.values()))
        for label, d in (("n = 16 k", ("n",)), ("any n", ()))]
widths = {(spec.name, names[target]): load_widths(result.ptx)
          for spec, target, result in tqdm(matrix(jobs), "compiling",
                                           2 * len(GPUS))}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 2.6))
for row, gpu in enumerate(GPUS):
    for shift, label, color in ((-0.2, "n = 16 k", viz.COLORS["ours"]),
                                (0.2, "any n", viz.COLORS["control"])):
        left = 0
        for width in widths[label, gpu]:
            ax.barh(row + shift, width - 0.5, 0.34, left, color=color)
            left += width
        ax.text(left + 0.6, row + shift, va="center", fontsize=8,
                s=f"{len(widths[label, gpu])} loads of "
                f"{widths[label, gpu][0]} bytes ({label})")
ax.set_yticks(range(4), GPUS)
ax.set(xlabel="bytes that one thread fetches, a piece per instruction",
       xlim=(0, 88))
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=90, alt="For each GPU two bars of 64 bytes: cut into "
         + "; ".join(f"{len(w)} loads of {w[0]} bytes ({label}, {gpu})"
                     for (label, gpu), w in widths.items()))

# %% [markdown]
# The bytes are the same, the instructions four times as many. A mask that
# may end anywhere has to be asked for every single number. When you launch
# a kernel, Triton looks at each integer, and if 16 divides it compiles the
# better version for that. This is one reason why layers are multiples of 16
# wide.
#
# Another kernel, another instruction that matters. Below, a program
# multiplies two 64 × 64 tiles of FP16 with `tl.dot`. **Predict** which of
# the four GPUs will do it without tensor cores.

# %%
@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    c = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(c_ptr + at, c)


DOT = Spec("dot", dot_kernel,
           {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32"},
           {"N": 64}, targets=tuple(GPUS.values()))
for _, target, result in matrix([DOT]):
    fma = len(result.find(r"\bfma\.rn\.f32"))
    found = ", ".join(f"{count} x {opcode}" for opcode, count in
                      result.instructions.items())
    print(f"{names[target]:5} {found or f'{fma} x fma.rn.f32, one by one'}")

# %% [markdown]
# `mma.sync` is a tensor-core instruction in which 32 threads multiply a
# small tile together; `wgmma` is the H100's, in which 128 threads multiply
# a large one straight from shared memory. For the T4 this compiler emits
# single multiply-adds, although that GPU has tensor cores. Notebook 09
# looks for one word more in that line: `e4m3`.
#
# ## 7.4 Softmax: a row in registers
#
# Step by step, softmax makes even more trips than RMSNorm: maximum,
# subtract, exponential, sum, divide. In a kernel a program takes a whole
# row, keeps it in registers, and all five happen there.
#
# Rows are rarely a power of two long, tiles always are. The idle lanes hold
# what you pass as `other=`, and they take part in the maximum and the sum.

# %% [markdown]
# EXERCISE text
# ### Exercise: a row in registers
#
# Write `softmax_kernel`. `x` and `out` are `[rows, n_cols]`, program p owns
# row p, `BLOCK` lanes cover it. Subtract the row's maximum before you take
# exponentials. `tl.max(tile, 0)`, `tl.sum(tile, 0)` and `tl.exp` are there.
# The row `[0, ln 3]` becomes `[0.25, 0.75]`.

# %%
# EXERCISE triton-softmax

# %%
# CHECK triton-softmax

# %% [markdown]
# How long may a row be? It has to fit into the registers of one processor.
# DeepSeek-V3's vocabulary has 129,280 entries, a row of logits 517 KB in
# FP32, and that is too much for 256 KB of registers (MEM).
#
# Then a program walks along the row in blocks and keeps two numbers: the
# largest so far, `m`, and the sum of exponentials relative to it, `s`. If a
# block brings a larger maximum, the old sum is *rescaled*:
#
# `m' = max(m, block)`, `s' = s · exp(m − m') + Σ exp(block − m')`
#
# This is the **online softmax** (Milakov and Gimelshein 2018, algorithm 3):
# one walk for both numbers, one more to write. **Predict** the right
# picture: does `s` only grow?

# %%
from itertools import pairwise

torch.manual_seed(3)
row = torch.randn(72).double()
row[29] = 4.0  # a late favourite
m, s, history = -torch.inf, 0.0, []
for block in row.split(8):
    new = max(m, block.max().item())
    s = s * math.exp(m - new) + (block - new).exp().sum().item()
    m = new
    history.append((m, s))

steps = range(1, len(history) + 1)

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.4, 2.7), width_ratios=(1.5, 1))
axes[0].plot(row, ".", ms=4, color=viz.COLORS["muted"], label="the row")
axes[0].step(np.arange(0, 73, 8), [history[0][0], *(h[0] for h in history)],
             color=viz.COLORS["ours"], label="largest so far, m")
axes[0].set(xlabel="element", ylabel="value", xticks=range(0, 73, 8))
axes[0].legend(fontsize=8)
axes[1].plot(steps, [h[1] for h in history], "o-",
             color=viz.COLORS["control"])
axes[1].set(xlabel="blocks read", ylabel="s, relative to exp(m)",
            ylim=(0, None))
fig.tight_layout()
drop = max(a[1] - b[1] for a, b in pairwise(history))
viz.show(fig, dpi=85, alt="Left: 72 numbers in blocks of 8 and the running "
         f"maximum, ending at {history[-1][0]:.2f}. Right: the running sum "
         f"by block; where the maximum jumps it drops by up to {drop:.1f}.")
whole = (row - row.max()).exp().sum().item()
print("same sum as with the whole row:", abs(s - whole) < 1e-12 * whole)

# %% [markdown]
# When the maximum jumps, the sum drops: it is now counted in a larger unit.
# The library has both versions, and picks by length. Notebook 16 will use
# the same two numbers to join pieces of an attention row.

# %% tags=["nbval-check-output"]
from minids3.kernels.softmax import softmax

x = 5 * torch.randn(6, 1000, device=device)
truth = x.double().softmax(-1)
for block in (None, 64, 256):
    error = (softmax(x, block=block) - truth).abs().max().item()
    print("a row at a time:   " if block is None else
          f"in blocks of {block:4}:", "within 1e-6:", error < 1e-6)

# %% [markdown]
# ## 7.5 RMSNorm, in one trip
#
# You know the formula from notebook 00: `y = x · rstd · weight`, with `rstd
# = 1 / √(mean(x²) + eps)`. As a kernel it has one number to think about. It
# reads BF16 or FP16 and must square in FP32: `.to(tl.float32)` right after
# the load. And it leaves something behind for the way back: `rstd`, one
# number per row.

# %% [markdown]
# EXERCISE text
# ### Exercise: the norm, in one trip
#
# Write `rms_norm_kernel`: a program per row, `x` and `y` `[rows, n_cols]`,
# `weight` `[n_cols]`, `rstd` `[rows]`. `tl.sqrt` takes a tile or a single
# number. With weights of 1 the row `[3, 4]` becomes `[0.8485, 1.1314]`, and
# its `rstd` is 0.2828.

# %%
# EXERCISE triton-rms-norm

# %%
# CHECK triton-rms-norm

# %% [markdown]
# ## 7.6 The backward pass
#
# Let `x̂ = x · rstd` and let `g` be the gradient that arrives at `y`.
#
# The weight's gradient is easy to write: `dw = Σ over rows of g · x̂`. Keep
# it in mind, it will be the hard one.
#
# For `dx`, note what a norm does: it forgets how long a row is. Doubling
# `x` changes nothing, so the gradient has no business along `x`. Take `g ·
# weight`, remove its part along `x̂`, and scale:
#
# `dx = rstd · (g·w − x̂ · mean(g·w · x̂))`
#
# The picture has two channels instead of 7,168.

# %%
two = torch.tensor([1.6, 0.9])
pull = torch.tensor([0.35, 1.05])
hat = two * two.square().mean().rsqrt()
along = (pull * hat).mean() * hat
left = pull - along

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(5.2, 3.4))
turn = torch.linspace(-0.15, 1.9, 80)
ax.plot(2**0.5 * turn.cos(), 2**0.5 * turn.sin(), ls="--",
        color=viz.COLORS["muted"])
ax.text(-0.55, 1.58, "all rows of mean square 1", fontsize=8,
        color=viz.COLORS["muted"])


def arrow(start, vector, color, text, shift):
    ax.annotate("", start + vector, start, arrowprops={
        "arrowstyle": "-|>", "color": color, "lw": 2})
    ax.annotate(text, start + vector, shift, color=color, fontsize=10,
                textcoords="offset points")


arrow(torch.zeros(2), hat, viz.COLORS["ink"], "x̂", (-14, -16))
arrow(hat, pull, viz.COLORS["baseline"], "g·w", (4, 2))
arrow(hat, along, viz.COLORS["control"], "removed", (4, -4))
arrow(hat, left, viz.COLORS["ours"], "dx / rstd", (-26, 7))
ax.set(xlim=(-0.6, 2.6), ylim=(-0.1, 2.1), aspect="equal",
       xlabel="channel 0", ylabel="channel 1")
viz.show(fig, dpi=85, alt="An arrow x̂ to a circle; from its tip the "
         "incoming gradient, its part along x̂, which is removed, and what "
         "is left, a tangent of the circle.")

# %% tags=["nbval-check-output"]
probe = two.clone().requires_grad_()
textbook(probe, torch.ones(2)).backward(pull)
print("autograd's dx is perpendicular to x:",
      abs((probe.grad * two).sum().item()) < 1e-6)

# %% [markdown]
# Now `dw`. It sums over rows, and the rows belong to different programs.
# One way: every program adds its rows into one `dw`, with additions that
# cannot be torn apart (*atomic*). But nobody promises an order, and sums of
# floating-point numbers depend on theirs. Take 512 numbers and add them up
# in 200 orders. **Guess:** how many different sums?

# %%
draw = np.random.default_rng(0)
terms = draw.standard_normal(512).astype(np.float32)
sums = [np.cumsum(draw.permutation(terms), dtype=np.float32)[-1]
        for _ in range(200)]
exact = terms.astype(np.float64).sum()

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7, 2.4))
ax.hist((np.array(sums, np.float64) - exact) * 1e6, bins=40,
        color=viz.COLORS["control"])
ax.axvline(0, color=viz.COLORS["floor"], ls="--")
ax.set(xlabel="sum minus the exact sum (millionths)", ylabel="orders")
distinct = len(set(sums))
viz.show(fig, dpi=85, alt="Histogram of 200 sums of the same 512 numbers "
         f"in different orders: {distinct} different values, within a few "
         "millionths of the exact one.")
print(f"{distinct} different sums of the same numbers")

# %% [markdown]
# None is wrong, but a run that gives other bits each time cannot be
# repeated, and a bug that shows once a week cannot be found. So we do it in
# two moves: each program sums *its own* rows in a fixed order and writes
# **one partial row** into a table; then the table's rows are added, again
# in a fixed order. For `ROWS` rows a program that is `1 / ROWS` of a trip.
#
# A program now has a tile with two axes. `[:, None]` turns lanes into a
# column, `[None, :]` into a row, and the pointers broadcast:
#
# `at = row[:, None] * n_cols + col[None, :]`

# %% [markdown]
# EXERCISE text
# ### Exercise: the backward pass, the same in every run
#
# Write `rms_norm_backward_kernel`. Program p owns rows `p * ROWS` to `p *
# ROWS + ROWS - 1`; the last one may have fewer. It writes `dx` for them and
# row p of `partial`: its share of the weight's gradient. For the row
# `[3, 4]`, weights of 1 and a gradient of `[1, 0]`, `dx` is
# `[0.1810, -0.1358]` and the share `[0.8485, 0]`.
#
# If you would rather loop over the rows: the interpreter refuses a mask
# that joins a tile with a single comparison (`tile_mask & (row < n_rows)`:
# "mask has unsupported dtype"), which the compiler accepts. Join tiles:
# `(col < n_cols) & (at < n_rows * n_cols)`.

# %%
# EXERCISE triton-rms-backward

# %%
# CHECK triton-rms-backward

# %% [markdown]
# PyTorch should not know that there are kernels below. A `Function` with a
# `forward` and a `backward` makes them one node of the graph:

# %%
class RMSNorm(torch.autograd.Function):
    """Your two kernels as one differentiable operation."""

    ROWS = 8

    @staticmethod
    def forward(ctx, x, weight, eps=1e-6):
        y, rstd = torch.empty_like(x), x.new_empty(len(x))
        rms_norm_kernel[(len(x),)](
            x, weight, y, rstd, x.shape[1], eps,
            BLOCK=triton.next_power_of_2(x.shape[1]))
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, rstd = ctx.saved_tensors
        programs = triton.cdiv(len(x), RMSNorm.ROWS)
        dx, partial = torch.empty_like(x), x.new_empty(programs, x.shape[1])
        rms_norm_backward_kernel[(programs,)](
            grad.contiguous(), x, weight, rstd, dx, partial, *x.shape,
            ROWS=RMSNorm.ROWS, BLOCK=triton.next_power_of_2(x.shape[1]))
        return dx, partial.sum(0), None


# %% [markdown]
# ## 7.7 The result: right, lean, and ready for four GPUs
#
# Three questions. Are the numbers right, against float64? How often does
# the input cross the bus? And does it compile, without *spilling*, that is
# without registers that had to be swapped out to memory?

# %%
torch.manual_seed(0)
shape = (43, 500)  # no multiple of anything
given = [torch.randn(shape, device=device),
         torch.randn(shape[1], device=device)]
grad = torch.randn(shape, device=device)


def through(function, dtype):
    x, weight = (t.to(dtype, copy=True).requires_grad_() for t in given)
    y = function(x, weight)
    y.backward(grad.to(dtype))
    return y.detach(), x.grad, weight.grad


truth = through(textbook, torch.float64)
errors = {}
for name, function in (("textbook", textbook), ("kernels", RMSNorm.apply)):
    got = through(function, torch.float32)
    errors[name] = [((a - b).norm() / b.norm()).item()
                    for a, b in zip(got, truth)]
    print(f"{name:9} relative error of y {errors[name][0]:.1e}, "
          f"dx {errors[name][1]:.1e}, dw {errors[name][2]:.1e}")

# %% tags=["nbval-check-output"]
print("kernels within one part in 100,000:", max(errors["kernels"]) < 1e-5)
runs = [through(RMSNorm.apply, torch.float32)[2] for _ in range(3)]
print("dw has the same bits in three runs:",
      all(torch.equal(runs[0], r) for r in runs))

# %% [markdown]
# For the trips we let `Traffic` count the textbook, forward and backward.
# Inside a kernel it cannot look, but we wrote the kernels: every tensor
# they touch crosses the bus once (the weights are read by each program, and
# come from the cache). **Guess** the textbook's backward before you
# run. Its forward was 7.

# %%
x = torch.randn(512, 1024, requires_grad=True)
weight, grad = torch.randn(1024, requires_grad=True), torch.randn(512, 1024)
with Traffic() as there:
    y = textbook(x, weight)
with Traffic() as back:
    y.backward(grad)
rows, cols = x.shape
partial = rows // RMSNorm.ROWS * cols * 4
ours_there = x.nbytes + weight.nbytes + y.nbytes + rows * 4
ours_back = (grad.nbytes + x.nbytes + weight.nbytes + rows * 4  # read
             + x.nbytes + partial                               # written
             + partial + weight.nbytes)                         # added up
bars = {"textbook": (there.total, back.total),
        "your kernels": (ours_there, ours_back),
        "the least possible": (2 * x.nbytes, 3 * x.nbytes)}
bars = {k: [b / x.nbytes for b in v] for k, v in bars.items()}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.8, 2.2))
for row, (name, (a, b)) in enumerate(bars.items()):
    ax.barh(row, a, 0.6, color=viz.COLORS["ours"],
            label="forward" if row == 0 else None)
    ax.barh(row, b, 0.6, a, color=viz.COLORS["baseline"],
            label="backward" if row == 0 else None)
    ax.text(a + b + 0.4, row, f"{a:.1f} + {b:.1f} = {a + b:.1f}",
            va="center", fontsize=9)
ax.set_yticks(range(3), bars)
ax.set(xlabel="trips of x through memory", xlim=(0, 40))
ax.invert_yaxis()
ax.legend(fontsize=8, loc="lower right")
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=90, alt="Trips through memory, forward and backward: "
         + "; ".join(f"{k} {a:.1f} + {b:.1f}"
                     for k, (a, b) in bars.items()))

# %% tags=["nbval-check-output"]
ratio = sum(bars["textbook"]) / sum(bars["your kernels"])
print("the textbook makes more than five times as many trips:", ratio > 5)

# %% [markdown]
# Autograd does not simplify. It goes back through every line, and each line
# of the way back is again a trip or three.
#
# Now the compiler's verdict, for rows as wide as DeepSeek-V3's, 7,168 in
# BF16, so tiles of 8,192. **Predict:** the backward holds `x̂`, gradient
# and the partial sum. Will 16 warps (512 threads, 16 numbers each) do?

# %%
HALF, WHOLE, COUNT = "*bf16", "*fp32", "i32"
norm_jobs = [
    Spec("forward", rms_norm_kernel, {
        "x_ptr": HALF, "weight_ptr": HALF, "y_ptr": HALF, "rstd_ptr": WHOLE,
        "n_cols": COUNT, "eps": "fp32"}, {"BLOCK": 8192}, num_warps=16,
        divisible=("n_cols",), targets=tuple(GPUS.values())),
    Spec("backward", rms_norm_backward_kernel, {
        "grad_ptr": HALF, "x_ptr": HALF, "weight_ptr": HALF,
        "rstd_ptr": WHOLE, "dx_ptr": HALF, "partial_ptr": WHOLE,
        "n_rows": COUNT, "n_cols": COUNT}, {"ROWS": 1, "BLOCK": 8192},
        num_warps=16, divisible=("n_cols",), targets=tuple(GPUS.values()))]
print("kernel    GPU   registers  shared memory  spilled  bytes per load")
spilled = 0
for spec, target, result in matrix(norm_jobs):
    spilled += result.spill_bytes
    wide = sorted(set(load_widths(result.ptx)), reverse=True)
    print(f"{spec.name:9} {names[target]:5} {result.registers:9} "
          f"{result.shared_bytes:14} {result.spill_bytes:8}  {wide}")

# %% tags=["nbval-check-output"]
print("nothing spilled on any of the four:", spilled == 0)

# %% [markdown]
# They do, with half of the 128 registers to spare that each of 512 threads
# may have (MEM). `ROWS` is 1 there: eight rows of 8,192 would not fit into
# registers at once. The library's kernel keeps one partial row in registers
# and *walks* over its rows, so that few partials are written however wide a
# row is. It is `src/minids3/kernels/norm.py`, and you can read all of it
# now.
#
# ## 7.8 The roofline
#
# When is it memory and when arithmetic? Divide. A kernel's **intensity** is
# its operations per byte moved. A GPU's balance is its peak rate per byte
# of its bandwidth; for the H100's figures above that is 295. Below it, a
# kernel cannot be faster than `intensity × bandwidth`: the roof slopes.
#
# The same in seconds: arithmetic takes `operations / peak`, transfers
# `bytes / bandwidth`. A good kernel does both at once, and the **longer** of
# the two times is what it needs at least. The next kernel waits until it has
# ended, so over several kernels the times **add up**.

# %% [markdown]
# EXERCISE text
# ### Exercise: the least time of one kernel after another
#
# Write `least_time`: the seconds of kernels that run one after the other,
# and the share of them that passes in kernels that wait for memory. A
# machine of 100 operations and 10 bytes a second needs 5 seconds for the
# kernel `(200, 50)` and 4 for `(400, 10)`. Only the first waits for memory.
# For both together `least_time` returns 9 seconds and a share of 0.556.

# %%
# EXERCISE roof-time

# %%
# CHECK roof-time

# %% [markdown]
# Your function draws the roof: what a kernel reaches at most is its
# operations by its least time. **Predict:** how large must two square BF16
# matrices be for their product to leave the slope? And where is your
# backward kernel, with some ten operations for each number and three trips?

# %%
tokens, width = 4096, 7168
one = tokens * width * 2  # bytes of a trip in BF16


def product(m, n, k):
    """Operations and bytes of [m, k] times [k, n], in BF16."""
    return 2 * m * n * k, 2 * (m * k + k * n + m * n)


def roof(work, moved):
    """The rate that a kernel reaches at most, in operations a second."""
    return work / least_time([(work, moved)], h100.bf16_flops,
                             h100.memory_bandwidth)[0]


norm = (4 * one / 2, 2 * one)
POINTS = {
    "add": (one / 2, 3 * one),
    "RMSNorm, textbook": (4 * one / 2, 7 * one),
    "RMSNorm, one kernel": norm,
    "its backward": (10 * one / 2, 3 * one),
    "softmax, one kernel": (5 * one / 2, 2 * one),
    **{f"product, n = {n}": product(n, n, n)
       for n in (128, 512, 1024, 8192)}}
balance = h100.bf16_flops / h100.memory_bandwidth
x_axis = np.geomspace(0.05, 2e4, 200)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.6, 3.7))
ax.loglog(x_axis, [roof(x, 1) / 1e12 for x in x_axis],
          color=viz.COLORS["ink"])
ax.axvline(balance, color=viz.COLORS["muted"], ls=":")
ax.text(balance * 1.1, 0.25, f"{balance:.0f} operations\nper byte",
        fontsize=8, color=viz.COLORS["muted"])
for name, (work, moved) in POINTS.items():
    at, top = work / moved, roof(work, moved) / 1e12
    slope = at < balance
    ax.plot(at, top, "o", ms=7, color=viz.COLORS[
        "control" if slope else "floor"])
    shift, side = {"softmax, one kernel": ((-8, 5), "right"),
                   "product, n = 8192": ((0, 8), "center")}.get(
                       name, ((8, -11), "left"))
    ax.annotate(name, (at, top), shift, textcoords="offset points",
                fontsize=8, ha=side)
ax.set(xlabel="intensity (operations per byte of memory traffic)",
       ylabel="roof (TFLOP/s)", ylim=(0.1, 3000))
ax.set_title("H100, BF16 datasheet figures (MEM, unverified here)",
             fontsize=9)
viz.show(fig, dpi=85, alt=f"Roofline of an H100 with its bend at "
         f"{balance:.0f} operations per byte. On the slope: " + ", ".join(
             f"{k} at {a / b:.2g}" for k, (a, b) in POINTS.items()
             if a / b < balance) + ". On the flat roof: larger products.")

# %% [markdown]
# A square product's intensity is n / 3, so the slope ends at n = 886.
# Everything you wrote today is far down, at some thousandths of the peak; the
# backward pass, at 1.7 operations a byte, at little more than half a percent.
# No cleverness in arithmetic helps there, and no tensor core; only fewer
# bytes do. One kernel instead of four lines moves the point to the right,
# along the roof. The large products live on the other side, and they are
# where FP8 will pay twice: half the bytes, and twice the peak.
#
# Does the slope matter, when a layer's work is nearly all in its products?
# The gate and up projections of one expert multiply `[4096, 7168]` by
# `[7168, 4096]`: two thousand times the operations of the norm before them.
# **Guess:** what share of the time of both waits for memory? And when FP8
# doubles the peak (datasheet, MEM)?

# %% tags=["nbval-check-output"]
lines = [(one / 2, 2 * one),  # square
         (one / 2, one),      # average
         (one / 2, 2 * one),  # times rstd
         (one / 2, 2 * one)]  # times weight
gate_up = product(tokens, 4096, width)
print("work of the product:", round(gate_up[0] / norm[0]), "norms")
for name, kernels in (("textbook", lines), ("one kernel", [norm])):
    for kind, peak in (("BF16", h100.bf16_flops), ("FP8", h100.fp8_flops)):
        seconds, waiting = least_time([*kernels, gate_up], peak,
                                      h100.memory_bandwidth)
        print(f"{name:10} {kind:4} peak: {seconds * 1e6:3.0f} µs, of which "
              f"{waiting:.0%} waits for memory")

# %% [markdown]
# A third of the time for a two-thousandth of the work. Twice the peak makes
# that **half**, since the norm gets no faster with it. The faster products
# become, the more it pays to fuse what is around them.
#
# And how near do the library's kernels come to their roof? That takes a
# GPU. `python -m minids3.bench kernels --device cuda --json` holds each one
# against what `torch.compile` makes of the same formula, and against a
# plain copy that moves as many bytes, and writes down what it found.
#
# **Guess** before you run: which of the kernels below falls short of a
# copy's speed, and why?

# %%
from minids3.bench import recorded

record = recorded("kernels")
timed = [r for r in record["results"] if r["kind"] == "memory"][::-1]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.6, 4.2))
for shift, who, role in ((0.2, "ours", "ours"),
                         (-0.2, "torch.compile", "baseline")):
    ax.barh(np.arange(len(timed)) + shift,
            [r["rate"][who] / 1e3 for r in timed], 0.38,
            color=viz.COLORS[role], label=who)
ax.plot([r["rate"]["device copy"] / 1e3 for r in timed],
        range(len(timed)), "|", ms=20, mew=2, color=viz.COLORS["floor"],
        label="copy")
ax.set_yticks(range(len(timed)), [r["name"] for r in timed])
ax.set(xlabel="TB read and written per second",
       title=f"{record['about']['device']}, {record['about']['date']}")
ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
fig.tight_layout()
viz.show(fig, dpi=86, alt="Bytes per second of each kernel as a part of a "
         "copy's: " + ", ".join(
             f"{r['name']} {r['ratio']['device copy']:.2f}"
             for r in timed[::-1]) + ".")

# %% [markdown]
# Most bars end at a copy's mark or near it: there is little left to win.
# `torch.compile`, which fuses too, is as fast where rows need no more than
# one look, and slower elsewhere.
#
# Cross-entropy stands out. A row of V3's logits has 129,280 numbers, 259 KB
# in BF16, more than a multiprocessor can hold. So they are read once for
# the sum and again for the gradient, and the picture counts one reading:
# two passes over memory are counted, three are made, and two thirds of the
# roof is all that can be had. `permute` writes eight rows for each that it
# reads, and writing is slower than copying.
#
# If your machine has a GPU, the next cell measures your own RMSNorm's roof
# right here.

# %% tags=["nbval-ignore-output"]
if device == "cuda":
    from minids3.ops.norm import rms_norm

    big = torch.randn(tokens, width, device=device, dtype=torch.bfloat16)
    gain = torch.ones(width, device=device, dtype=torch.bfloat16)
    for name, run in (("textbook", lambda: textbook(big, gain)),
                      ("library", lambda: rms_norm(big, gain))):
        ms = triton.testing.do_bench(run)
        print(f"measured here: {name:9} {ms * 1e3:6.0f} µs")
else:
    print("no GPU here")

# %% [markdown]
# ## 7.9 Play: what a power of two costs
#
# Tiles come in powers of two, rows do not. First the whole picture:
# **predict** the worst case.

# %%
widths_of = np.arange(2, 8200)
tiles = 2 ** np.ceil(np.log2(widths_of))
V3 = {"latent of keys": 512, "latent of queries": 1536, "experts": 2048,
      "hidden": 7168}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.2, 2.7))
ax.plot(widths_of, (1 - widths_of / tiles) * 100, lw=1,
        color=viz.COLORS["muted"])
for name, n in V3.items():
    share = (1 - n / 2 ** math.ceil(math.log2(n))) * 100
    ax.plot(n, share, "o", color=viz.COLORS["ours"])
    ax.annotate(f"{name}: {n}", (n, share), (6, 7), fontsize=8,
                textcoords="offset points", ha="right" if n > 7000
                else "left", bbox={"fc": ax.get_facecolor(), "ec": "none",
                                   "pad": 0.5})
ax.set(xlabel="numbers in a row", ylabel="idle lanes (%)", ylim=(-3, 58),
       xlim=(0, 8400))
viz.show(fig, dpi=88, alt="Share of idle lanes by row width, a saw between "
         "0 and 50 percent. DeepSeek-V3's widths: 512 and 2048 at 0, 1536 "
         "at 25, 7168 at 12.5 percent.")

# %% [markdown]
# One number more than a power of two, and half the lanes idle. They move no
# bytes, so on the slope they cost little; registers they do cost.
#
# A long vector is another matter: there `BLOCK` is yours to choose. Here
# are 100 numbers in tiles of 16 and of 64.

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 2.6), width_ratios=(1, 1.5))
for ax, block in zip(axes, (16, 64)):
    idle = draw_tiles(ax, 100, block)
    ax.set_title(f"tiles of {block}: {idle} idle lanes", fontsize=10)
fig.tight_layout()
viz.show(fig, dpi=85, alt="100 numbers: seven programs of 16 lanes with 12 "
         "idle ones in the last, and two programs of 64 with 28.")

# %% [markdown]
# Turn the knobs. **Predict:** which `BLOCK` wastes least for 100 numbers,
# and why would nobody choose it?

# %% tags=["nbval-ignore-output"]
def tiles_and_waste(n=22, block=8):
    """Programs and lanes for n numbers; idle lanes are hatched."""
    programs = -(-n // block)
    fig, ax = plt.subplots(figsize=(8, min(0.9 + 0.28 * programs, 5)))
    idle = draw_tiles(ax, n, block)
    ax.set_title(f"{programs} programs, {idle} idle lanes "
                 f"({idle / (programs * block):.0%})", fontsize=10)
    return fig


viz.play(tiles_and_waste, n=(1, 128, 1), block=[4, 8, 16, 32, 64])

# %% [markdown]
# Tiles of 4 leave no lane idle. But threads come in groups of 32 that act
# as one: a tile of 4 employs a whole group, and 28 of its threads only
# watch.
#
# **The Bill** gets no line from this notebook. Fused kernels are in the
# published hours already; what they would have been without is not
# published, and a guess is no entry.
#
# ## The article, so far
#
# Nothing new: kernels are in none of its ten claims. They are in all of its
# hours.
#
# ## What became of it
#
# Triton moved on while this was written: 3.8 (August 2026) lets the
# interpreter run products of numbers with block scales (`tl.dot_scaled`), 3.9
# (October 2026) dropped block pointers, which nothing here uses (release
# pages). Below it grew **Gluon**, in which you place threads and shared
# memory yourself. DeepSeek writes its newer kernels in **TileLang**:
# TileKernels (April 2026, repository) has gates, casts and mHC in it, each
# with a PyTorch reference and a test beside it, as here. And an RTX PRO 6000
# (Colab's G4) is one more row of the matrix: `inspect(..., "g4")`.
#
# ## What this does not show
#
# - Your kernels were not timed. Their trips are counted, the roof is a
#   datasheet's, and a count is a bound and no measurement. What was timed, on
#   one GPU on one day, are the library's kernels in section 7.8.
# - The textbook is a weak rival. `torch.compile` fuses such lines by
#   itself, and writes Triton to do it. Kernels by hand pay where it does
#   not see the whole: products with scales (notebook 09), ragged experts
#   (notebook 11).
# - The interpreter runs programs in order, one at a time. Two programs that
#   write to the same place never collide in it; on a GPU they do. A check
#   notes which program wrote what and tells you; your other cells do not.
# - The interpreter keeps BF16 as 16 bits: it rounds by cutting off, and adds
#   and multiplies the bits (Triton's issue 11584; for `tl.dot` the library
#   mends it). So the checks use FP32 and FP16. In a kernel, convert to FP32
#   before you compute: on a GPU that is the better habit, too.
# - PTX is not the last word: another assembler turns it into machine
#   code. Registers and spills above are from that step, for the versions
#   installed here.
# - Unmasked *loads* were not on show. They read what does not belong to
#   them, and on a GPU may end the whole process. Before a check runs your
#   kernel on a GPU, the interpreter compares every address, in a process of
#   its own; your other cells have no such guard.
#
# ## References
#
# - Tillet, Kung and Cox 2019, *Triton: an intermediate language and
#   compiler for tiled neural network computations*: programs and tiles.
# - Milakov and Gimelshein 2018, *Online normalizer calculation for
#   softmax*, arXiv 1805.02867: algorithm 3.
# - Zhang and Sennrich 2019, *Root mean square layer normalization*, arXiv
#   1910.07467: eq. 4.
# - Williams, Waterman and Patterson 2009, *Roofline*, Communications of the
#   ACM 52(4).
# - NVIDIA, *Parallel thread execution ISA*: the instructions `ld`, `mma`
#   and `wgmma`.
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 3 (an H800's 132
#   processors, 20 of them busy with communication).
#
# **Next:** [08 · FP8 numbers](08_fp8_numbers.ipynb), where a number has eight
# bits.
