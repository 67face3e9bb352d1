# %% [markdown]
# # 11 · MoE kernels: all experts in one launch
#
# {{badge}}
#
# > **Claim.** Once rows are sorted, a layer of experts is **six** kernel
# > launches, whether it has 4 experts or 256, and the size of each launch
# > is known before the gate has chosen anybody. The result equals a loop
# > over the experts to within rounding, experts without a single token
# > included. Forget where an expert's rows end, and in our example more
# > than a quarter of the rows is multiplied by somebody else's matrix.
#
# **Takes** about 95 minutes to work through, 63 of them for the exercises;
# 'Run all' about a minute. **Needs** notebook 04 (dispatch and combine), 07
# (Triton) and 08 (E4M3). **Afterwards** you can write a grouped matrix
# product, say why its grid is larger than needed, and fuse an activation with
# its rounding.

# %%
# SETUP

# %% [markdown]
# ## 11.0 A loop over experts: death by a thousand launches
#
# The obvious way to compute 256 experts is a loop. Here is one, for rows
# that are sorted by expert already. `Launches` counts what it asks of a
# GPU: every operation that computes something is at least one kernel
# launch; slicing and transposing are free.
#
# **Guess before you run:** how many launches is one layer, forward only? In
# a model with 58 such layers?

# %%
from torch.utils._python_dispatch import TorchDispatchMode

FREE = {"slice", "select", "split", "t", "transpose", "permute", "view",
        "detach", "unsqueeze", "alias", "split_with_sizes", "expand"}


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations, except those that only look."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op._schema.name.split("::")[1] not in FREE
        return op(*args, **(kwargs or {}))


def experts_loop(rows, counts, up, down):
    """rows [M, D] sorted by expert; up [E, 2F, D]; down [E, D, F]."""
    out, start = [], 0
    for e, n in enumerate(counts.tolist()):  # here the CPU waits
        mine = rows[start:start + n]
        start += n
        gate, value = (mine @ up[e].T).chunk(2, -1)
        out.append((F.silu(gate) * value) @ down[e].T)
    return torch.cat(out)


def route(tokens, n_experts, top_k, skew=0.5, seed=0):
    """Experts of each token [tokens, top_k]; skew makes some popular."""
    lot = torch.Generator().manual_seed(seed)
    liked = skew * torch.randn(n_experts, generator=lot)
    noise = torch.rand(tokens, n_experts, generator=lot)
    return (liked - (-noise.log()).log()).topk(top_k, -1).indices


E, K, D, WIDTH = 256, 8, 16, 8
indices = route(512, E, K)
counts = torch.bincount(indices.flatten(), minlength=E)
torch.manual_seed(0)
rows = torch.randn(512 * K, D)
up, down = torch.randn(E, 2 * WIDTH, D), torch.randn(E, D, WIDTH)
with Launches() as launches:
    experts_loop(rows, counts, up, down)
print(f"one layer:  {launches.count:,} launches forward")
print(f"58 layers: {58 * launches.count:,} launches, and 58 times the CPU "
      "waits to be told the counts")

# %% [markdown]
# Every launch costs the CPU time, however little the kernel does. (A few
# microseconds, it is said; here we only count them.) Worse is the
# innocent `tolist()`. A GPU works through a queue that the CPU fills ahead
# of it. Asking for the counts means: stop, let the queue run dry, copy a
# few numbers, start again. In every layer.
#
# And each of those products is small. Here are the rows that each expert
# gets:

# %%
def load_figure(counts, title):
    fig, ax = plt.subplots(figsize=(9, 2.5))
    ranked = counts.sort(descending=True).values
    ax.bar(range(len(counts)), ranked, width=1, color=viz.COLORS["ours"])
    mean = counts.double().mean().item()
    ax.axhline(mean, color=viz.COLORS["floor"], ls="--")
    ax.annotate(f"mean {mean:.0f}", (len(counts) * 0.99, mean), (0, 4),
                textcoords="offset points", ha="right",
                color=viz.COLORS["floor"])
    ax.set(xlabel="expert, by load", ylabel="rows", title=title,
           xlim=(-1, len(counts)))
    return fig


wide = torch.bincount(route(4096, E, K).flatten(), minlength=E)

# %% tags=["fold"]
viz.show(load_figure(wide, "4,096 tokens, 8 of 256 experts each"), dpi=88,
         alt="Rows per expert, sorted: the fullest of 256 experts has "
         f"{wide.max()} rows, the emptiest {wide.min()}, the mean is 128.")

# %% [markdown]
# 4,096 tokens make 32,768 rows, 128 to an expert on average, and no two
# experts the same. That raggedness is the whole difficulty. One product for
# all wants equal shapes.
#
# ## 11.1 Pad everybody, or cut into tiles
#
# **Padding to the fullest** makes the shapes equal: `[E, longest, D]`, one
# batched product. The rest is zeros, multiplied with great care.
#
# A GPU's product works in **tiles** anyway, say 128 rows at a time, one
# program to a tile. So the smallest unit we must not mix is a tile. Let
# every expert start a tile of its own, and only the *last* tile of each is
# partly idle:

# %%
def layout_figure(counts, block):
    """Rows and padding of each expert, padded to the fullest and tiled."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.9), sharey=True)
    longest, y = int(counts.max()), range(len(counts))
    tiles = (counts + block - 1) // block
    padded = (torch.full_like(counts, longest), tiles * block)
    for ax, held, name in zip(axes, padded, ("padded to the fullest",
                                             f"tiles of {block}")):
        ax.barh(y, held, color="#DDDAD2", height=0.7)
        ax.barh(y, counts, color=viz.COLORS["ours"], height=0.7)
        idle = 1 - counts.sum() / held.sum()
        ax.set(xlabel="rows", title=f"{name}: {100 * idle:.0f} % idle",
               yticks=list(y), xlim=(0, max(longest, held.max()) + 2))
        ax.grid(axis="y", visible=False)
    for e, n in enumerate(tiles.tolist()):
        for t in range(n + 1):
            axes[1].plot([t * block] * 2, [e - 0.35, e + 0.35], lw=1,
                         color="white")
    axes[0].set_ylabel("expert")
    axes[0].invert_yaxis()
    fig.tight_layout()
    return fig, [1 - float(counts.sum() / h.sum()) for h in padded]


few = torch.bincount(route(64, 8, 2, skew=1.0, seed=3).flatten(),
                     minlength=8)

# %% tags=["fold"]
fig, idle = layout_figure(few, 16)
viz.show(fig, dpi=88, alt="Two panels of eight experts' rows "
         f"{few.tolist()}. Left, padded to the fullest: "
         f"{100 * idle[0]:.0f} percent grey padding. Right, in tiles of "
         f"16: {100 * idle[1]:.0f} percent, only at each expert's end.")

# %% [markdown]
# Blue is work, grey is idleness. On the left, one popular expert makes
# everybody wait. On the right, nobody pays for anybody else.
#
# ## 11.2 Offsets: sort, count, add up
#
# Three arrays describe the whole layout: the **order** in which rows are
# sorted, where each expert's rows **start**, and where each expert's tiles
# **end** in the list of all tiles.
#
# Then the grid. A launch must say how many programs it wants, *before* the
# GPU has counted anything. The number of tiles depends on the routing, but
# not its upper bound: M rows fill at most M // block tiles to the brim, and
# besides those each of the E experts can have one ragged tile. Ask for that
# many; programs that find no tile leave at once.

# %% [markdown]
# EXERCISE text
# ### Exercise: offsets
#
# Write `grouped_offsets`. `experts` is `[M]`: the expert of each row, not
# sorted. Return `order [M]`, `starts [E]`, `tile_ends [E]`, and `programs`,
# an `int` that may depend on M, E and `block` alone. For `[2, 0, 2]`, three
# experts and tiles of 2: order `[1, 0, 2]`, starts `[0, 1, 1]`, tile ends
# `[1, 1, 2]`.

# %%
# EXERCISE moe-offsets

# %%
# CHECK moe-offsets

# %% [markdown]
# How much idleness is left at full size? 32,768 rows, 256 experts, from a
# perfectly fair gate (left end) to one with strong favourites. **Predict:**
# does a larger tile waste more or less? Which line does not care about
# favourites?

# %%
SKEWS = [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
idle = {"padded to the fullest": [], "tiles of 128": [], "tiles of 64": [],
        "tiles of 16": []}
spare = []
for skew in SKEWS:
    flat = route(4096, 256, 8, skew).flatten()
    load = torch.bincount(flat, minlength=256)
    idle["padded to the fullest"].append(
        1 - len(flat) / float(256 * load.max()))
    for block in (128, 64, 16):
        _, _, tile_ends, programs = grouped_offsets(flat, 256, block)
        used = int(tile_ends[-1])
        idle[f"tiles of {block}"].append(1 - len(flat) / (used * block))
        if block == 128:
            spare.append(programs - used)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 3.1))
looks = (("X-", "control"), ("o-", "ours"), ("s--", "train"),
         ("^:", "muted"))
for (name, shares), (mark, role) in zip(idle.items(), looks):
    ax.plot(SKEWS, [100 * s for s in shares], mark, ms=5, label=name,
            color=viz.COLORS[role])
ax.set(xlabel="skew of the gate (0 = fair)", ylim=(0, 100),
       ylabel="rows computed for nothing\n(percent)")
ax.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
viz.show(fig, dpi=88, alt="Share of idle rows by skew of the gate, from 0 "
         "to 1.5: " + "; ".join(
             f"{n} {100 * s[0]:.0f} to {100 * s[-1]:.0f} percent"
             for n, s in idle.items()) + ".")

# %% [markdown]
# Padding to the fullest computes mostly nothing as soon as the gate has
# favourites. Tiles lose about half a tile per expert, nearly whatever the
# gate likes.
#
# But look at the left end. With a perfectly fair gate, which is what V3 pays
# for with its biases, padding to the fullest loses a fifth to chance and
# tiles of 128 lose a third: **padding wins exactly there** (tiles of 64 are
# level with it). With about 128 rows each, half of the experts need a second
# tile for a few rows. Tiles win as soon as the load is uneven, or as experts
# have more rows than a tile. Two things help them: more rows to an expert
# (more tokens, or fewer experts on this GPU), and lower tiles. The library
# switches to 64 rows when experts are small.

# %% tags=["nbval-check-output"]
print("never too few programs:   ", all(s >= 0 for s in spare))
print("at most one spare each:   ", all(s <= 256 for s in spare))

# %% [markdown]
# ## 11.3 Each program finds its expert
#
# On the GPU nobody hands a program its tile. It has its number, and the
# counts. It rounds every count up to tiles, adds them up, and asks **how
# many experts' tiles end at or before my number?** That is its expert. An
# expert without rows has no tiles: its end equals its neighbour's, and it
# is skipped without any special case.
#
# 256 numbers, one `tl.cumsum`, three sums: next to a tile's thousands of
# multiplications that is nothing, so *every* program does it.

# %%
import triton
import triton.language as tl

# %% [markdown]
# EXERCISE text
# ### Exercise: which expert am I?
#
# Write `tile_map_kernel`. `counts` is `[E]` int64. Program t stores three
# numbers at `map_ptr + 3 * t`: its expert, its first row, and where the rows
# of **that expert** end. Programs without a tile store −1, 0, 0. `E_PAD` is a
# power of two with room for E lanes. Counts `[3, 0, 2]` and tiles of 2 give
# `(0, 0, 3)`, `(0, 2, 3)`, `(2, 3, 5)`, and then `(−1, 0, 0)`.

# %%
# EXERCISE moe-tile-map

# %%
# CHECK moe-tile-map

# %% [markdown]
# `launch` below runs a kernel and counts it, on the GPU if there is one.
# Look at your map: each bar is a program, at the rows it owns.

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
launched = []


def launch(kernel, grid, *args, **constants):
    """kernel[grid](...), and a line in the list."""
    launched.append(grid)
    kernel[grid](*args, **constants)


def pad_to(n):
    """The next power of two."""
    return 1 << max(n - 1, 1).bit_length()


def tile_map(counts, rows, block):
    """The map [programs, 3] of these counts, by your kernel."""
    n_experts = len(counts)
    programs = rows // block + min(n_experts, rows)
    out = torch.empty(programs, 3, dtype=torch.int32, device=counts.device)
    launch(tile_map_kernel, (programs,), counts, out, n_experts,
           BLOCK=block, E_PAD=pad_to(n_experts))
    return out


def map_figure(counts, tiles, block):
    fig, ax = plt.subplots(figsize=(9, 2.9))
    edges = [0, *counts.cumsum(0).tolist()]
    # Yellow cannot be read on its own pale band.
    colors = [c if c != viz.PALETTE[6] else "#8A6A00" for c in viz.PALETTE]
    for e in range(len(counts)):
        ax.axvspan(edges[e], edges[e + 1], color=colors[e % 8],
                   alpha=0.13, lw=0)
        if counts[e]:
            ax.annotate(f"{e}", (edges[e] / 2 + edges[e + 1] / 2, -0.9),
                        ha="center", fontsize=8, color="0.35")
    for t, (e, first, end) in enumerate(tiles.tolist()):
        if e < 0:
            ax.plot(0.6, t, "x", ms=5, color=viz.COLORS["muted"])
            continue
        stop = min(first + block, end)
        ax.barh(t, stop - first, left=first, height=0.75,
                color=colors[e % 8])
        ax.barh(t, first + block - stop, left=stop, height=0.75,
                color="none", edgecolor=colors[e % 8], lw=1.2,
                linestyle=":")
    ax.set(xlabel="row, sorted by expert (bands and numbers above)",
           ylabel="program", yticks=range(0, len(tiles), 2),
           xlim=(0, edges[-1] + 3), ylim=(len(tiles) - 0.3, -2))
    ax.grid(axis="y", visible=False)
    return fig


few[5] = 0  # and nobody likes expert 5
tiles = tile_map(few.to(device), int(few.sum()), 16).cpu()
surplus = int((tiles[:, 0] < 0).sum())

# %% tags=["fold"]
viz.show(map_figure(few, tiles, 16), dpi=88, alt=f"Programs 0 to "
         f"{len(tiles) - 1} as bars over the rows of eight experts, "
         f"{few.tolist()} rows. Each bar lies within one expert; its idle "
         f"rows are a dotted box. {surplus} programs, crosses at the left, "
         "have no tile.")

# %% [markdown]
# Solid is what a program computes and stores, dotted the part of its tile
# that is idle, a cross a program with nothing to do. The idle part reaches
# over the *next* expert's rows. Remember that.
#
# ## 11.4 The grouped product
#
# Now the product itself: `y = x @ w[expert].T` for each row, with that
# row's expert. Compared with an ordinary matrix product only three things
# are new: where rows start, where the matrix starts, where to stop storing.

# %% [markdown]
# EXERCISE text
# ### Exercise: the grouped product
#
# Write `grouped_gemm_kernel`. `x` is `[M, K]`, sorted by expert; `w` is
# `[E, N, K]`; `y` is `[M, N]`; `map` is what your kernel wrote. Program
# (tile, column block) computes `BLOCK_M` × `BLOCK_N` numbers of y. Add up
# in fp32 with `tl.dot(x, w, total, input_precision="ieee")`; the last
# argument forbids the short cut of rounding fp32 to 10 bits first. With `x`
# of ones, K = 70 and every number of `w[e]` equal to e, each row of expert e
# is 70 · e.

# %%
# EXERCISE moe-grouped-gemm

# %%
# CHECK moe-grouped-gemm

# %% [markdown]
# Two launches: the map, the product. Does it equal a loop? Below, y is
# poisoned with NaN first, so that a row which nobody writes shows up.
# **Predict** what happens to experts 0, 3 and 7, who have no rows.

# %% tags=["nbval-check-output"]
def grouped_gemm(x, w, counts, block=16):
    """x [M, K] sorted by expert, w [E, N, K], counts [E] -> [M, N]."""
    (rows, k), n = x.shape, w.shape[1]
    tiles = tile_map(counts, rows, block)
    y = torch.full((rows, n), math.nan, device=x.device)  # poison
    grid = (len(tiles), triton.cdiv(n, 32))
    launch(grouped_gemm_kernel, grid, x, w, tiles, y, n, k,
           BLOCK_M=block, BLOCK_N=32, BLOCK_K=32)
    return y


def by_loop(x, w, counts):
    """The same in fp64, one expert after the other."""
    blocks = x.double().split(counts.tolist())
    return torch.cat([b @ w[e].double().T for e, b in enumerate(blocks)])


def distance(got, want):
    """Relative error of the whole."""
    return ((got.double() - want).norm() / want.norm()).item()


torch.manual_seed(1)
ragged = torch.tensor([0, 21, 16, 0, 5, 1, 33, 0], device=device)
x = torch.randn(76, 70, device=device)
w = torch.randn(8, 50, 70, device=device)
want = by_loop(x, w, ragged)
launched.clear()
y = grouped_gemm(x, w, ragged)
print("equal to the loop to 1e-6:", distance(y, want) < 1e-6)
print("every row written:        ", not bool(y.isnan().any()))
print("launches:                 ", len(launched))

# %% [markdown]
# Experts 0, 3 and 7 are in no program's map. Nobody had to remember them.
#
# **The control that fails.** Suppose somebody forgets that experts end
# within tiles. They cut the sorted rows every 16 rows, ask whose row is the
# first of each tile, and use that expert for the tile. Fewer tiles, no
# waste, a prettier grid. **Predict:** which share of the rows comes out
# wrong?

# %%
def careless_map(counts, block):
    """Tiles that ignore where experts end."""
    ends = counts.cumsum(0)
    firsts = torch.arange(0, int(ends[-1]), block, device=counts.device)
    owner = torch.searchsorted(ends, firsts, right=True)
    last = ends[-1].expand_as(firsts)
    return torch.stack((owner, firsts, last), 1).int()


tiles = careless_map(ragged, 16)
mixed = torch.empty_like(y)
launch(grouped_gemm_kernel, (len(tiles), 2), x, w, tiles, mixed, 50, 70,
       BLOCK_M=16, BLOCK_N=32, BLOCK_K=32)
norms = want.norm(dim=1)
per_row = [((got.double() - want).norm(dim=1) / norms).cpu()
           for got in (y, mixed)]
wrong = per_row[1] > 1e-3

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(9, 2.9))
edges = [0, *ragged.cumsum(0).tolist()]
for e, n in enumerate(ragged.tolist()):
    ax.axvspan(edges[e] - 0.5, edges[e] + n - 0.5, lw=0, alpha=0.13,
               color=viz.PALETTE[e % 8])
for t in range(0, 77, 16):
    ax.axvline(t - 0.5, color="0.45", ls=":", lw=1)
for errors, name, mark, role in ((per_row[0], "your map", "o", "ours"),
                                 (per_row[1], "careless", "X", "control")):
    ax.semilogy(errors, mark, ms=4, color=viz.COLORS[role], label=name)
ax.set(xlabel="row (bands: experts; dotted: every 16 rows)",
       ylabel="relative error", xlim=(-1, 76.5), ylim=(1e-9, 1e2))
ax.legend(loc="center right", fontsize=8.5)
viz.show(fig, dpi=88, alt="Relative error of each of 76 rows. With your "
         f"map all are below 1e-6. With the careless map "
         f"{int(wrong.sum())} rows have errors around 1, wherever a tile "
         "runs on into the next expert's rows.")

# %% tags=["nbval-check-output"]
print(f"careless: {int(wrong.sum())} of {len(wrong)} rows are wrong,",
      f"by about {per_row[1][wrong].median():.1f} times their length")
print("your map: no row is off by more than 1e-6:",
      bool((per_row[0] < 1e-6).all()))

# %% [markdown]
# An error of √2 is what two unrelated vectors of equal length have: those
# rows hold a perfectly good product with *somebody else's* matrix. Nothing
# crashed. In a model the loss would only be a bit worse, and you would go
# looking in the optimizer.
#
# ## 11.5 From the interpreter to an H100
#
# The interpreter is patient; a compiler is not. Compile your kernel for two
# GPUs, in BF16 and with tiles as large as they should be there.
# **Predict:** which line of the output differs most?

# %%
from minids3.kernels.compile import inspect

kinds = {"x_ptr": "*bf16", "w_ptr": "*bf16", "map_ptr": "*i32",
         "y_ptr": "*bf16", "N": "i32", "K": "i32"}
for target in ("h100", "a100"):
    found = inspect(
        grouped_gemm_kernel, target, signature=kinds, num_warps=8,
        constexprs={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64},
        divisible=["N", "K"])
    print(f"{target}: {found.registers} registers, "
          f"{found.shared_bytes / 1024:.0f} KiB shared, "
          f"{found.spill_bytes} bytes spilled")
    for name, times in found.instructions.items():
        print(f"      {times:3} x {name}")

# %% [markdown]
# On the H100 a few large `wgmma` instructions, each started by four warps
# together; on the A100 many small `mma`. The same Python. Nothing here
# knows about experts: after its first ten lines your kernel *is* a matrix
# product.
#
# The library's version (`minids3/kernels/grouped.py`) differs in three
# ways. It has no separate map: each program searches by itself, one launch
# less. It walks over tiles in bands, so that programs running at the same
# time share rows and matrices in the L2 cache. And it reads idle rows from
# the expert's last row rather than masking them; on an H100 the copy engine
# fetches whole tiles instead. `grouped_fp8.py` does the same with E4M3
# numbers and a scale per block, as in notebook 09.
#
# ## 11.6 SwiGLU that rounds on the way out
#
# Between the two products sits SwiGLU, and with FP8 its result must be
# quantised for the second one: 1 × 128 tiles, online scale. As two kernels
# that is a round trip through memory for nothing. Count the bytes of each
# hidden number, with 16 bits before it is rounded to eight. **Guess** the
# ratio first.

# %%
CODES = 1 + 4 / 128  # a byte, and four for a scale every 128
trips = {"two kernels": (("SwiGLU reads", 4), ("writes", 2),
                         ("quantise reads", 2), ("writes", CODES)),
         "fused": (("reads", 4), ("writes", CODES))}
total = {name: sum(b for _, b in steps) for name, steps in trips.items()}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 1.9))
for row, (name, steps) in enumerate(trips.items()):
    left = 0
    for step, width in steps:
        role = "train" if "reads" in step else "baseline"
        ax.barh(row, width, left=left, color=viz.COLORS[role], height=0.6,
                edgecolor="white", lw=2)
        ax.annotate(step, (left + width / 2, row), ha="center",
                    va="center", fontsize=8)
        left += width
    ax.annotate(f"{total[name]:.2f}", (left, row), (5, 0), va="center",
                textcoords="offset points")
ax.set(xlabel="bytes moved per hidden number", xlim=(0, 10),
       ylim=(1.5, -0.5), yticks=[])
ax.set_yticks([0, 1], list(trips))
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=88, alt="Bars of bytes per hidden number. Two kernels: "
         "SwiGLU reads 4 and writes 2, quantise reads 2 and writes 1.03, "
         f"{total['two kernels']:.2f} in all. Fused: reads 4, writes 1.03, "
         f"{total['fused']:.2f} in all.")

# %% tags=["nbval-check-output"]
ratio = total["two kernels"] / total["fused"]
print(f"fused moves {ratio:.2f} times fewer bytes")

# %% [markdown]
# A kernel like this does little arithmetic, so it should take about as long
# as its bytes do. And the scale, which needs the largest number of a tile
# *before* the first can be written? All 128 numbers are in one program's
# registers: no second look at memory.

# %%
from minids3.kernels.fp8 import encode_e4m3

# %% [markdown]
# EXERCISE text
# ### Exercise: round once, on the way out
#
# Write `swiglu_quant_kernel`. `x` is `[M, 2F]`: a row's gate numbers, then
# its up numbers. Program (row, tile) computes `h = silu(gate) * up` for
# `BLOCK` numbers in fp32, the scale `max|h| / 448` (1 for a tile of
# zeros), and stores the codes of `h / scale`. `encode_e4m3` turns fp32
# into codes, by the rules of notebook 08. In every tile that is not zero the
# largest number gets the code 0x7E or 0xFE, that is ±448.

# %%
# EXERCISE moe-swiglu-quant

# %%
# CHECK moe-swiglu-quant

# %% [markdown]
# Fused is also a little more exact: h is rounded once, from fp32 to E4M3.
# Two kernels round it to BF16 first. **Predict:** how many of the codes
# does that detour change? One in a thousand, one in fifty, one in five?

# %%
from minids3.ref.quant import dequantize_ref, quantize_ref
from minids3.ref.activation import swiglu_ref


def swiglu_quant(x, block=128):
    """x [M, 2F] -> E4M3 [M, F] and scales, by your kernel."""
    rows, width = x.shape[0], x.shape[1] // 2
    q = torch.empty(rows, width, dtype=torch.uint8, device=x.device)
    scale = torch.empty(rows, triton.cdiv(width, block), device=x.device)
    launch(swiglu_quant_kernel, (rows, scale.shape[1]), x, q, scale, width,
           BLOCK=block)
    return q.view(torch.float8_e4m3fn), scale


torch.manual_seed(2)
gate_up = 2 * torch.randn(64, 2 * 512)
exact = swiglu_ref(*gate_up.double().chunk(2, -1)).double()
once, once_scale = (t.cpu() for t in swiglu_quant(gate_up.to(device)))
twice, twice_scale = quantize_ref(
    swiglu_ref(*gate_up.chunk(2, -1)).bfloat16())
changed = (once.view(torch.uint8) != twice.view(torch.uint8)).float().mean()
errors = [distance(dequantize_ref(q, s), exact)
          for q, s in ((once, once_scale), (twice, twice_scale))]
print(f"codes that the detour changes: {100 * changed:.1f} %")
print(f"relative error: {100 * errors[0]:.3f} % rounded once, "
      f"{100 * errors[1]:.3f} % by way of BF16")

# %% [markdown]
# So the gain in exactness is real and tiny: E4M3's own rounding is 16 times
# coarser than BF16's. Fusing is about bytes.
#
# ## 11.7 Combine: every row back to its token
#
# The last move sums each token's K rows by the gate's weights. Every token
# is owned by one program that *fetches* its rows. The other way round, K
# programs adding into one token, needs atomic additions, whose order
# changes from run to run, and with it the last bits.

# %% [markdown]
# EXERCISE text
# ### Exercise: combine
#
# Write `combine_kernel`. `y` is `[N·K, D]`, sorted by expert; pair
# `n * TOP_K + k` is at place `inverse[n * TOP_K + k]`. Program
# (token, column block) writes the weighted sum of K rows, kept in fp32. One
# token with rows `[[1, 0], [0, 2]]`, `inverse` `[1, 0]` and weights
# `[[0.5, 3]]` gets `[3, 1]`.

# %%
# EXERCISE moe-combine-kernel

# %%
# CHECK moe-combine-kernel

# %% [markdown]
# ## 11.8 The result: a layer in six launches
#
# All together. For sorting we use `plan_dispatch`, the library's version of
# your offsets, which stays on the GPU. Then six launches: permute, map,
# product, SwiGLU, product, combine. Permute is borrowed: it is combine's
# mirror image, a token's program copies its row to K places.
#
# There are two ways through the middle. In fp32: the library's SwiGLU of
# notebook 07, and your product again, with the same map. In FP8: your fused
# kernel, and the library's `fp8_grouped_gemm_nt` with matrices that were
# quantised beforehand in blocks of 128 × 128; it finds its tiles by itself.

# %%
from minids3.kernels import moe as library
from minids3.kernels.activation import swiglu_fwd
from minids3.ops.moe import plan_dispatch
from minids3.ref.quant import block_quantize_ref


def borrowed(kernel, *args, **kwargs):
    """A kernel of the library: one launch."""
    launched.append(kernel.__name__)
    return kernel(*args, **kwargs)


def product(x, w, tiles, block):
    """The grouped product with a map at hand."""
    y = torch.empty(len(x), w.shape[1], device=x.device)
    launch(grouped_gemm_kernel, (len(tiles), triton.cdiv(w.shape[1], 32)),
           x, w, tiles, y, w.shape[1], x.shape[1],
           BLOCK_M=block, BLOCK_N=32, BLOCK_K=32)
    return y


def experts_grouped(x, indices, weights, up, down, block=16):
    """x [N, D]; indices, weights [N, K]; up [E, 2F, D]; down [E, D, F],
    or E4M3 and scales; returns [N, D]."""
    tokens, top_k = indices.shape
    _, inverse, counts = plan_dispatch(indices, len(up))
    rows = borrowed(library.permute, x, inverse=inverse, top_k=top_k)
    tiles = tile_map(counts, len(rows), block)
    hidden = product(rows, up, tiles, block)
    if isinstance(down, tuple):
        y = borrowed(library.fp8_grouped_gemm_nt, *swiglu_quant(hidden),
                     *down, counts, out_dtype=torch.float32)
    else:
        y = product(borrowed(swiglu_fwd, hidden), down, tiles, block)
    out = torch.empty_like(x)
    launch(combine_kernel, (tokens, triton.cdiv(x.shape[1], 64)), y,
           weights, inverse, out, x.shape[1], TOP_K=top_k, BLOCK=64)
    return out


# %% [markdown]
# 24 tokens, 2 of 12 experts each, of which nobody chooses the last three.
# Against a loop in fp64, token by token and expert by expert. The FP8 way
# is compared twice: with a loop over the *same rounded* numbers, and with
# one that never rounds. **Predict** three orders of magnitude.

# %%
torch.manual_seed(4)
N, TOP, E, D, WIDTH = 24, 2, 12, 64, 160
indices = route(N, E - 3, TOP, skew=0.7, seed=5)
weights, x = torch.rand(N, TOP), torch.randn(N, D)
up, down = torch.randn(E, 2 * WIDTH, D) / 8, torch.randn(E, D, WIDTH) / 12


def plain(t):
    return t.double()


def layer_by_loop(round_h, round_w):
    """One token after the other, in fp64, hidden numbers rounded."""
    out = torch.zeros(N, D, dtype=torch.float64)
    for n in range(N):
        for k, e in enumerate(indices[n].tolist()):
            gate, value = (up[e].double() @ x[n].double()).chunk(2)
            h = round_h((F.silu(gate) * value)[None])[0]
            out[n] += weights[n, k].double() * (round_w(down[e]) @ h)
    return out


def in_tiles(h):
    return dequantize_ref(*quantize_ref(h.float())).double()


def in_blocks(w):
    return dequantize_ref(*block_quantize_ref(w), (128, 128)).double()


x_, i_, w_, up_, down_ = (t.to(device)
                          for t in (x, indices, weights, up, down))
pairs = [block_quantize_ref(matrix) for matrix in down]
eight_ = tuple(torch.stack(t).to(device) for t in zip(*pairs))
launched.clear()
ours = experts_grouped(x_, i_, w_, up_, down_).cpu()
n_launches = [len(launched)]
launched.clear()
eight = experts_grouped(x_, i_, w_, up_, eight_).cpu()
n_launches.append(len(launched))
true = layer_by_loop(plain, plain)
gaps = {"fp32, against a loop": distance(ours, true),
        "FP8, against a loop over the same numbers": distance(
            eight, layer_by_loop(in_tiles, in_blocks)),
        "FP8, against a loop that never rounds": distance(eight, true)}
for name, gap in gaps.items():
    print(f"{name:44}{gap:.1e}")

# %% tags=["nbval-check-output"]
fp32, same, never = gaps.values()
print(f"experts with rows: {indices.unique().numel()} of {E}")
print("launches in fp32 and in FP8:", n_launches)
print("fp32 equals the loop to 1e-6:", fp32 < 1e-6)
print("FP8 equals a loop over the same numbers to 2e-3:", same < 2e-3)
print("and E4M3 costs between 1 and 6 %:", 0.01 < never < 0.06)

# %% [markdown]
# The first two are tests of the kernels: nothing but the order of sums
# differs. (In the second an exponential that ends on another last bit may
# move one code in thousands by a step, hence the wider margin.) The third
# is the price of E4M3, and notebook 10 asks whether training can live with
# it.
#
# Now the headline. Count both ways for more and more experts, forward only,
# two experts per token.

# %%
crowd = (4, 8, 16, 32, 64, 128, 256)
tally = {"loop": [], "grouped": []}
for n_experts in crowd:
    chosen = route(32, n_experts, 2)
    load = torch.bincount(chosen.flatten(), minlength=n_experts)
    u, d = torch.randn(n_experts, 16, 8), torch.randn(n_experts, 8, 8)
    rows = torch.randn(64, 8)
    with Launches() as launches:
        experts_loop(rows, load, u, d)
    tally["loop"].append(launches.count + 2)  # permute and combine
    launched.clear()
    experts_grouped(*(t.to(device) for t in (
        torch.randn(32, 8), chosen, torch.rand(32, 2), u, d)))
    tally["grouped"].append(len(launched))

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 3))
for name, mark, role in (("loop", "X-", "control"),
                         ("grouped", "o-", "ours")):
    ax.loglog(crowd, tally[name], mark, color=viz.COLORS[role])
    ax.annotate(f"{name}: {tally[name][-1]:,}", (256, tally[name][-1]),
                (8, 0), textcoords="offset points", va="center",
                color=viz.COLORS[role])
ax.set(xlabel="experts", ylabel="kernel launches,\none layer forward",
       xlim=(3.5, 700), ylim=(2, 3000))
ax.set_xticks(crowd, [str(n) for n in crowd])
ax.minorticks_off()
viz.show(fig, dpi=88, alt="Kernel launches of a layer against the number "
         f"of experts, log axes: the loop rises from {tally['loop'][0]} at "
         f"4 experts to {tally['loop'][-1]:,} at 256; grouped stays at "
         f"{tally['grouped'][-1]}.")

# %% tags=["nbval-check-output"]
print("loop:   ", tally["loop"])
print("grouped:", tally["grouped"])

# %% [markdown]
# Four launches for every expert and three besides, or six for all. (Both
# lines leave out the gate and the sorting, which the two ways share.)

# %% [markdown]
# ## 11.9 And backward
#
# The gradient of the input is the same kernel with the matrices read the
# other way. The gradient of a matrix is new: `dW[e] = dyᵀ x`, summed over
# *that expert's rows*. Now rows are what is summed, each expert has a sum
# of its own length, and an expert without rows must get **zeros written**:
# memory that nobody wrote is not zero.
#
# `minids3.ops.moe.grouped_mm` joins the three. Against autograd through a
# loop:

# %% tags=["nbval-check-output"]
from minids3.ops.moe import grouped_mm

torch.manual_seed(6)
g = torch.randn(76, 50, device=device)
x76, w8 = torch.randn(76, 70), torch.randn(8, 50, 70)
grads = {}
for backend in ("ref", "triton"):
    leaves = [t.to(device).requires_grad_() for t in (x76, w8)]
    grouped_mm(*leaves, ragged, backend=backend).backward(g)
    grads[backend] = [leaf.grad for leaf in leaves]
for name, a, b in zip(("input", "matrices"), grads["triton"],
                      grads["ref"]):
    print(f"gradient of the {name:9} equal to 1e-6:",
          distance(a, b.double()) < 1e-6)
empty = (ragged == 0).cpu()
print("experts without rows get zeros:    ",
      bool((grads["triton"][1].cpu()[empty] == 0).all()))

# %% [markdown]
# In FP8 there is one more trap. The weight gradient needs tiles of 128
# *rows* that share a scale, and a tile that ran across two experts would
# give both the scale of the louder. So `grouped_quant_transposed` starts a
# new tile at each expert and fills up its last one with zeros: the same
# tile map again, now for quantising.
#
# ## 11.10 On a GPU
#
# The interpreter says what a kernel computes, not how fast it is. So `python
# -m minids3.bench kernels --device cuda --json` ran on a GPU: 8,192 rows of
# 7,168 for matrices of 4,096 x 7,168, with uneven loads and one empty
# expert, once for 8 experts and once for 32.
#
# **Guess:** the same FLOPs for 32 experts as for 8. Who loses least: the
# loop, PyTorch's grouped product, or ours?

# %%
from minids3.bench import recorded

record = recorded("kernels")
found = {}
for r in record["results"]:
    if "grouped GEMM" in r["name"]:
        ours = "ours, FP8" if "FP8" in r["name"] else "ours, BF16"
        names = {"ours": ours, "torch grouped_mm BF16": "the same, again"}
        for who, rate in r["rate"].items():
            found[names.get(who, who), r["shape"].split(", ")[1]] = rate
LOOKS = {"loop of cuBLAS products": "muted", "torch grouped_mm": "baseline",
         "the same, again": "baseline", "ours, BF16": "ours",
         "ours, FP8": "train"}
sizes = ("8 experts", "32 experts")
for who in LOOKS:
    few_, many = (found[who, size] for size in sizes)
    print(f"{who:24} {few_:4.0f} -> {many:4.0f} TFLOP/s "
          f"({many / few_ - 1:+.0%})")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 3))
for i, (who, role) in enumerate(LOOKS.items()):
    bars = ax.bar(np.arange(2) + 0.17 * (i - 2),
                  [found[who, size] for size in sizes], 0.16,
                  color=viz.COLORS[role], label=who,
                  hatch="///" if "again" in who else None, ec="white")
    ax.bar_label(bars, fmt="%.0f", fontsize=8)
ax.set_xticks(range(2), sizes)
ax.set(ylabel="TFLOP/s",
       title=f"{record['about']['device']}, {record['about']['date']}")
ax.margins(y=0.13)
ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
fig.tight_layout()
viz.show(fig, dpi=86, alt="TFLOP/s of grouped products. " + " ".join(
    f"{size}: " + ", ".join(f"{who} {found[who, size]:.0f}"
                            for who in LOOKS) + "." for size in sizes))

# %%
for r in record["results"]:
    if any(w in r["name"] for w in ("permute", "quantise")):
        ratio = ", ".join(f"{v:.2f} of a copy" if n == "device copy" else
                          f"{v:.2f} x {n}" for n, v in r["ratio"].items())
        print(f"{r['name']:18}{r['shape']:22}{ratio}")

# %% [markdown]
# Everybody loses: with 256 rows an expert each matrix is fetched for fewer
# rows. PyTorch's grouped product loses most, 29 % in one of its two timings
# and 34 % in the other, and with 32 experts it is no faster than the loop,
# which loses 25 %. Ours loses least, a tenth.
#
# Look at the hatched bars before you believe any ratio. They are the *same*
# PyTorch product, timed a second time beside our FP8 kernel: 674 instead of
# 610 with 8 experts, 10 % apart. So 10 % is noise here. With 8 experts ours
# in BF16 is 0.91 to 1.01 times as fast as PyTorch's, which is no difference,
# and in FP8 1.1 to 1.2 times as fast as PyTorch's in BF16. With 32 experts
# the two timings agree to 2 %: ours is 1.3 times as fast in BF16, and 1.5 in
# FP8.
#
# ## 11.11 Play: fit the tile to the load
#
# Low tiles waste less and reuse less: a matrix block that is fetched for 16
# rows is fetched eight times as often as for 128. First three situations
# side by side, then sliders.

# %% tags=["fold"]
def situation(ax, experts, tokens, skew, block):
    flat = route(tokens, experts, min(8, experts), skew).flatten()
    load = torch.bincount(flat, minlength=experts)
    held = (load + block - 1) // block * block
    ranked = load.argsort(descending=True)
    ax.bar(range(experts), held[ranked], width=1, color="#DDDAD2")
    ax.bar(range(experts), load[ranked], width=1, color=viz.COLORS["ours"])
    programs = len(flat) // block + experts
    wasted = 100 * (1 - len(flat) / float(held.sum()))
    ax.set_title(f"{tokens} tokens, tiles of {block}:\n"
                 f"{wasted:.0f} % idle, {int(held.sum()) // block} of "
                 f"{programs} programs", fontsize=9)
    ax.set(xlabel="expert, by load", ylabel="rows")
    return wasted


fig, axes = plt.subplots(1, 3, figsize=(10, 2.7))
cases = ((256, 4096, 0.5, 128), (256, 256, 0.5, 128),
         (256, 256, 0.5, 16))
shown = [situation(ax, *case) for ax, case in zip(axes, cases)]
fig.tight_layout()
viz.show(fig, dpi=84, alt="Rows and padding of 256 experts by load: 4,096 "
         f"tokens in tiles of 128 leave {shown[0]:.0f} percent idle, 256 "
         f"tokens in tiles of 128 {shown[1]:.0f} percent, 256 tokens in "
         f"tiles of 16 {shown[2]:.0f} percent.")

# %% tags=["nbval-ignore-output"]
def play_tiles(experts=64, tokens=1024, skew=0.5, block=64):
    """Rows of each expert, and what their tiles leave idle."""
    fig, ax = plt.subplots(figsize=(7, 2.7))
    situation(ax, experts, tokens, skew, block)
    return fig


viz.play(play_tiles, experts=[8, 16, 32, 64, 128, 256],
         tokens=[64, 256, 1024, 4096], skew=(0, 2, 0.25),
         block=[16, 32, 64, 128])

# %% [markdown]
# The middle panel is decoding: few tokens, many experts, and a tile of 128
# for eight rows. That is one reason why an inference system gathers tokens
# from many GPUs before it asks the experts. And with so few rows the
# arithmetic hardly matters: 256 matrices must be read all the same.
# Notebook 16 comes back to it.
#
# ## The article, so far
#
# Nothing is decided here, but something is possible: 37B of 671B parameters
# at work (claim 1) saves nothing if 256 small products starve a GPU. With
# grouped products they do not. This notebook has no line in the Bill, for the
# published hours contain it.
#
# ## What became of it
#
# The line that starts here ends in one kernel for everything: DeepGEMM's
# *Mega MoE* (since April 2026) fuses dispatch between GPUs, both products,
# SwiGLU and combine, 1.5 to 1.96 times as fast as separate kernels at 8 GPUs
# (its README and pull request 304). PyTorch has grouped products as
# `torch.nn.functional.grouped_mm`, and torchtitan trains with them. MoE
# layers in MXFP8 gain 10 to 25 % tokens a second (torchao's tutorial, 2026).
#
# ## What this does not show
#
# - The time of *your* kernels. Launches, idle rows and bytes are counted; the
#   TFLOP/s of section 11.10 are the library's, on one GPU on one day.
# - Tensors here are tiny and tiles of 16 serve the interpreter. The library
#   takes 128 × 128 (64 for small experts), compiled and checked for six
#   generations of GPUs: `python -m minids3.kernels.compile grouped`.
# - Only one GPU. In training DeepSeek-V3 spreads the 256 experts over 64
#   GPUs (TR section 3.2), and rows travel before they are sorted: notebook
#   14.
# - A fair routing is assumed to be somebody else's job (notebook 05). Tiles
#   remove the padding, not the wait for the fullest expert's *GPU*.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 3.3 (tiles,
#   blocks, FP8 products), section 3.2 (expert parallelism).
# - DeepGEMM, README: grouped products, contiguous, masked and with groups
#   along K.
# - Gale et al. 2022, MegaBlocks, arXiv 2211.15841: section 4 (no dropped
#   tokens without padding).
# - PyTorch, `torch.nn.functional.grouped_mm`: the same idea as one call.
# - Triton, tutorial on group GEMM: a persistent kernel instead of one
#   program per tile.
#
# **Next:** [12 · The training run](12_training_run.ipynb), where all of it
# trains a model together.
