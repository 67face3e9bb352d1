# %% [markdown]
# # 08 · FP8 to the bit: two hundred and fifty-six numbers
#
# {{badge}}
#
# > **Claim.** Cast to eight bits, more than **99 %** of a model's gradients
# > become zero. The same eight bits with one scale for every 128 numbers
# > keep a typical token's within **3 %**, and an outlier a million times
# > too large hurts its own 127 neighbours and nobody else. What the bytes
# > are *added up* in matters as much: a register of 14 bits loses **6 to
# > 7 %** of a sum of 4,096 positive products, and less than **0.1 %** if it
# > is emptied every 128.
#
# **Takes** about 95 minutes to work through, 68 of them for the exercises;
# 'Run all' about 1 minute on one CPU core. **Needs** notebook 02 (what a
# linear layer and its gradient are). **Afterwards** you can read and write an
# FP8 number by hand, choose a scale, say what E5M2 and UE8M0 are for, and
# explain why DeepSeek-V3 interrupts its tensor cores every 128 products.

# %%
# SETUP

# %% [markdown]
# ## 8.0 What a plain cast loses: 99 % of the gradients
#
# FP8 means: every number of a matrix product takes one byte instead of two.
# Half the memory, half the traffic, twice the rate of multiplication. So
# take a small dense model in the middle of its training, and look at what
# its linear layers multiply: their **inputs**, their **weights**, and in the
# backward pass the **gradients** of their outputs.

# %%
from minids3.data import PackedBatches, load_split
from minids3.model import load_shipped

model = load_shipped("mini_dense")
batch = PackedBatches(load_split("validation"), 8, 256,
                      shuffle=False).batch(0)
inputs, weights, gradients = {}, {}, {}


def watch(name):
    def hook(layer, args, out):
        inputs[name] = args[0].detach().flatten(0, 1)
        weights[name] = layer.weight.detach()
        out.register_hook(lambda g: gradients.update(
            {name: g.detach().flatten(0, 1)}))
    return hook


for name, layer in model.named_modules():
    if isinstance(layer, torch.nn.Linear) and "head" not in name:
        layer.register_forward_hook(watch(name))
model.loss(*batch).backward()

LAYER = "layers.3.self_attn.q_proj"  # one with very small gradients
KINDS = {"inputs": inputs, "weights": weights, "gradients": gradients}
for kind, found in KINDS.items():
    size = found[LAYER].abs()
    print(f"{kind:9} {list(size.shape)!s:12} "
          f"median {size.median():8.1e}   largest {size.max():8.1e}")

# %% [markdown]
# (This layer's gradients are among the smallest in the model; others are up
# to some thousand times larger.) PyTorch has the format already:
# `float8_e4m3fn`. **Guess before you run:** of each of the three kinds, what
# share becomes exactly zero when you cast it and read it back?

# %%
def cast(x):
    """To E4M3 and back, without thinking."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def zeroed(read, x):
    """Share of the nonzero numbers of x that are read back as zero."""
    return ((read == 0) & (x != 0)).sum().item() / (x != 0).sum().item()


lost = {kind: [zeroed(cast(x), x) for x in found.values()]
        for kind, found in KINDS.items()}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.5, 2.5))
this = list(inputs).index(LAYER)
for row, (kind, shares) in enumerate(lost.items()):
    spread = np.linspace(-0.25, 0.25, len(shares))
    role = "control" if kind == "gradients" else "ours"
    ax.scatter(100 * np.array(shares), row + spread, s=14,
               color=viz.COLORS[role])
    ax.scatter(100 * shares[this], row + spread[this], s=46, marker="o",
               fc="none", ec=viz.COLORS["ink"],
               label=LAYER if row == 0 else None)
ax.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
ax.set_yticks(range(3), lost)
ax.invert_yaxis()
ax.set(xlabel="numbers that became zero (%), a dot per layer",
       xlim=(-3, 103))
viz.show(fig, dpi=90, alt="Share of numbers that a cast to E4M3 turns into "
         "zero, a dot per layer. Largest of inputs "
         f"{max(lost['inputs']):.1%}, of weights "
         f"{max(lost['weights']):.1%}; smallest of gradients "
         f"{min(lost['gradients']):.1%}.")

# %% tags=["nbval-check-output"]
print("in every layer more than 99 % of the gradients are gone:",
      min(lost["gradients"]) > 0.99)
print("of inputs and weights at most 3 %:",
      max(lost["inputs"] + lost["weights"]) < 0.03)

# %% [markdown]
# A model trained like that learns nothing. Nothing is wrong with the format,
# it does exactly what its 256 numbers allow. So: which 256 numbers?
#
# ## 8.1 What a byte says
#
# A byte of **E4M3** has three fields: one bit of **sign**, four of
# **exponent** `e`, three of **mantissa** `m`.

# %%
from minids3.viz.fp8 import byte_figure, byte_toggles, explain

# %% tags=["fold"]
viz.show(byte_figure(0x3C), dpi=88, alt="The byte 0x3C, bits 0 0111 100: "
         "sign 0, exponent 7, mantissa 4, so " + explain(0x3C) + ". Below, "
         "a line with all positive numbers of E4M3 from 2^-9 to 448.")

# %% [markdown]
# | e | value | |
# |---|---|---|
# | 1 to 15 | ± 2^(e − 7) · (1 + m/8) | **normal**: a leading one that is not stored |
# | 0 | ± 2^−6 · m/8 | **subnormal**: no leading one, evenly spaced down to 0 |
# | 15 with m = 7 | NaN | one code per sign, 0x7F and 0xFF |
#
# Two things to notice. The **bias** 7 is a convention: e = 7 means 2^0. And
# IEEE formats give the whole top exponent away for infinity and NaN; E4M3
# gives away a single code and has no infinity. That is why it ends at 448
# and not at 240 (Micikevicius et al. 2022).

# %% [markdown]
# EXERCISE text
# ### Exercise: read a byte
#
# Write `decode_e4m3`. `codes` is a uint8 tensor of any shape; return float32
# of the same shape. Do not cast: shift and mask. The codes 0x00, 0x01, 0x38,
# 0x7E and 0xB8 are 0, 2^−9, 1, 448 and −1.

# %%
# EXERCISE fp8-decode

# %%
# CHECK fp8-decode

# %% [markdown]
# There are only 256 cases, so no sampling: ask PyTorch about all of them.
# NaN differs from everything, itself included, so it is compared apart.

# %% tags=["nbval-check-output"]
every = torch.arange(256).to(torch.uint8)
mine = decode_e4m3(every)
theirs = every.view(torch.float8_e4m3fn).float()
print("NaN in the same places:", torch.equal(mine.isnan(), theirs.isnan()))
known = ~theirs.isnan()
print("all other codes equal:", torch.equal(mine[known], theirs[known]))
print("and so do their signs, -0 included:", torch.equal(
    torch.signbit(mine[known]), torch.signbit(theirs[known])))

# %% [markdown]
# ## 8.2 Where the numbers are
#
# **Predict:** between 1 and 2 there are eight numbers. How many are there
# between 128 and 256? And between 0 and 1?

# %%
positive = mine[:127].double().numpy()

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.8, 2.7), width_ratios=(1.3, 1))
axes[0].plot(range(127), positive, ".", ms=3.5, color=viz.COLORS["ours"])
axes[0].set_yscale("log", base=2)
axes[0].set(xlabel="code", ylabel="number", title="codes 0 to 126")
edges = 2.0 ** np.arange(-7, 10)
counts, _ = np.histogram(positive[1:], np.r_[0, edges])
axes[1].bar(range(-8, 9), counts, 0.8, color=[
    viz.COLORS["muted"] if p < -6 else viz.COLORS["ours"]
    for p in range(-8, 9)])
axes[1].set(xlabel="numbers from 2^p up to 2^(p+1)", ylabel="how many",
            xticks=range(-8, 9, 4),
            title="a power of two each (left end: the rest)")
fig.tight_layout()
below_one = int(((positive > 0) & (positive < 1)).sum())
viz.show(fig, dpi=88, alt="Left: the number of every code on a log scale, "
         "nearly a straight line from 2^-9 to 448. Right: eight numbers "
         "between neighbouring powers of two from 2^-6 on, seven in the "
         "last, and only a few subnormals below.")
print("between 128 and 256:", int(((positive >= 128)
                                   & (positive < 256)).sum()))
print("between 0 and 1:", below_one)

# %% [markdown]
# Eight per power of two, everywhere. So the *relative* distance is about
# the same all along, and the code is nearly a logarithm of the number. The
# price is at the left end: below 2^−6 the numbers thin out, the smallest is
# 2^−9, and what is below half of that rounds to zero. The gradients of our
# layer are around 2^−28, those of most others between 2^−25 and 2^−16.
#
# Eight bits can be divided in other ways. DeepSeek-V3 uses E4M3 for
# *everything* it multiplies in FP8 (TR section 3.3.2); before it, E5M2 was
# customary for gradients. **E5M6** holds one kind of cached activation, and
# **UE8M0** is a pure exponent, for scales.

# %%
from minids3.numerics import (
    BF16, E4M3, E5M2, E5M6, UE8M0, relative_error, round_to)

print(f"{'format':7}{'bits':>5}{'smallest':>11}{'largest':>11}"
      f"{'powers of 2':>13}{'worst rounding':>16}")
for fmt in (E4M3, E5M2, E5M6, BF16, UE8M0):
    span = math.log2(fmt.max / fmt.min_positive)
    worst = fmt.epsilon / 2 / (1 + fmt.epsilon / 2)
    print(f"{fmt.name:7}{fmt.bits:5}{fmt.min_positive:11.1e}"
          f"{fmt.max:11.3g}{span:13.1f}{worst:16.2%}")

# %% tags=["fold"]
x = torch.logspace(-6, 6, 40000, dtype=torch.float64)
bins = x.log2().floor().numpy()
powers = np.unique(bins)[1:-1]  # the ends are no whole powers of two
fig, ax = plt.subplots(figsize=(8.5, 2.9))
for fmt, role, dash in ((E5M2, "baseline", "--"), (E4M3, "ours", "-"),
                        (BF16, "floor", ":")):
    error = ((round_to(x, fmt, saturate=True) - x).abs() / x).numpy()
    worst = [error[bins == p].max() for p in powers]
    ax.step(2.0 ** powers, worst, dash, where="post", lw=2,
            color=viz.COLORS[role], label=fmt.name)
ax.set(xscale="log", yscale="log", ylim=(1e-3, 2), xlabel="number",
       ylabel="worst relative error within\na power of two")
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
viz.show(fig, dpi=88, alt="Worst relative rounding error within each power "
         "of two, against the number, log scales. E4M3 stays below 6 "
         "percent from 2^-6 to 464 and rises to "
         "1 on both sides; E5M2 stays below 12 percent over a range of "
         "nine decades; BF16 is below 0.4 percent throughout.")

# %% [markdown]
# Each format is a basin with a flat floor. Inside, E4M3 is wrong by at most 1
# part in 17, E5M2 by 1 in 9. Outside, everything is lost. E5M2's basin is
# wider by fourteen powers of two, and its floor is a factor of two higher:
# **a bit of exponent buys range and costs precision**. Keep that trade in
# mind; section 8.5 asks whether the range can be had without the price.
#
# ## 8.3 Rounding: which byte does a number get?
#
# The nearest one. Two rules remain. A number exactly in the **middle** goes
# to the even code, so that ties go up as often as down. And what is larger
# than 448 **saturates**: a quantiser would rather be wrong by a factor than
# return NaN.

# %% [markdown]
# EXERCISE text
# ### Exercise: write a byte
#
# Write `encode_e4m3`, the inverse. `x` is float32 of any shape; return
# uint8 codes. Everything beyond ±448 becomes ±448, infinities as well; NaN
# stays NaN. Between two powers of two the codes are evenly spaced, so
# divide by the spacing and round. Do not cast here either. 0, 1, 1000 and
# −0.3 become 0x00, 0x38, 0x7E and 0xAA.

# %%
# EXERCISE fp8-encode

# %%
# CHECK fp8-encode

# %% [markdown]
# Again a comparison with something we did not write. A million numbers of
# all sizes inside the range, and every middle between two neighbours.

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(0)
many = torch.randn(1_000_000, generator=draw) * torch.exp2(
    torch.randint(-14, 7, (1_000_000,), generator=draw).float())
many = many.clamp(-448, 448)
want = many.to(torch.float8_e4m3fn).view(torch.uint8)
print("a million numbers get PyTorch's byte:",
      torch.equal(encode_e4m3(many), want))
finite = decode_e4m3(torch.arange(127).to(torch.uint8))
middles = (finite[1:] + finite[:-1]) / 2
print("so do all 126 middles:", torch.equal(
    encode_e4m3(middles),
    middles.to(torch.float8_e4m3fn).view(torch.uint8)))
back = encode_e4m3(decode_e4m3(torch.arange(127).to(torch.uint8)))
print("decode, then encode, changes no code:",
      back.tolist() == list(range(127)))

# %% [markdown]
# Why bother about ties? They are rare for arbitrary numbers, but short
# numbers make short results, and those land on middles all the time.
# **Predict:** we average all pairs of E4M3 numbers between 1 and 2 and
# round the averages. By how much is their *mean* off under each rule?

# %%
eight = finite[56:64].double()  # 1, 1.125, ... 1.875
exact = ((eight[:, None] + eight) / 2).flatten()
rules = {"to the even code": torch.round(exact * 8) / 8,
         "always up": torch.floor(exact * 8 + 0.5) / 8,
         "cut towards zero": torch.floor(exact * 8) / 8}
for rule, rounded in rules.items():
    print(f"{rule:17} mean off by "
          f"{(rounded - exact).mean() / exact.mean():+.2%}")
ties = ((exact * 8) % 1 == 0.5).sum().item()
print(f"{ties} of {len(exact)} averages lie exactly in the middle")

# %% [markdown]
# Errors of single numbers are one thing. An error with a **direction** is
# another: add up thousands and it stays, where random ones cancel. Section
# 8.7 is about a machine that cuts.
#
# ## 8.4 A scale for every 128
#
# The gradients are too small, the basin is where it is. So move them:
# divide by a **scale** before the cast, multiply when reading. The natural
# choice maps the largest magnitude to 448:
#
# `scale = largest / 448`,  `q = cast(x / scale)`,  `x ≈ q · scale`
#
# Whose largest? DeepSeek-V3 gives every token its own scale for every 128
# channels, a **1 × 128 tile**, computed on the spot from the very numbers
# it scales (TR section 3.3.2). Weights share one per 128 × 128 block.

# %% [markdown]
# EXERCISE text
# ### Exercise: quantise in tiles
#
# Write `quantize_tiles`. `x` is `[M, K]`. Return `q` `[M, K]` as
# `float8_e4m3fn` and `scale` `[M, ceil(K / tile)]`. The last tile of a row
# may be short. A tile of zeros gets scale 1, so that nobody divides by 0. A
# row whose largest magnitude is 896 gets the scale 2.

# %%
# EXERCISE fp8-tiles

# %%
# CHECK fp8-tiles

# %% [markdown]
# Back to the gradients that vanished, of one layer. The histograms show
# where they land *before* the cast, and the shaded band is what E4M3 can
# hold. **Predict:** with one scale for the whole tensor, are they saved?

# %%
def read_tiles(q, scale, tile=128):
    """Numbers back from tiles."""
    wide = scale.repeat_interleave(tile, 1)[:, :q.shape[1]]
    return q.float() * wide


def per_tensor(x, fmt=E4M3):
    """Round to fmt with one scale for all of x, and read back."""
    scale = x.abs().max().double() / fmt.max
    return round_to(x / scale, fmt, saturate=True) * scale


grad = gradients[LAYER]
q, scale = quantize_tiles(grad)
placed = {"no scale": grad,
          "one scale": grad / (grad.abs().max() / 448),
          "a scale per 1 x 128": grad / scale.repeat_interleave(
              128, 1)[:, :grad.shape[1]]}
gone = {"no scale": zeroed(cast(grad), grad),
        "one scale": zeroed(per_tensor(grad), grad),
        "a scale per 1 x 128": zeroed(read_tiles(q, scale), grad)}

# %% tags=["fold"]
fig, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True)
for ax, (name, x) in zip(axes, placed.items()):
    x = x.flatten().abs()
    ax.axvspan(-10, math.log2(464), color=viz.PALETTE[2], alpha=0.18, lw=0)
    ax.hist(x[x > 0].log2().numpy(), range(-46, 11), color=viz.COLORS[
        "control" if gone[name] > 0.1 else "ours"])
    ax.set_title(f"{name}: {gone[name]:.1%} lost", fontsize=9.5)
    ax.set_xlabel("log2 of the magnitude")
axes[0].set_ylabel("gradients")
fig.tight_layout()
viz.show(fig, dpi=88, alt="Histograms of the gradients' magnitudes in "
         "powers of two over the band that E4M3 holds. Lost: " + ", ".join(
             f"{n} {v:.1%}" for n, v in gone.items()) + ".")

# %% [markdown]
# One scale moves the crowd, but only as far as its largest member allows. In
# this layer that loses nearly half of the numbers, one of the worst cases of
# the model; its mean over all layers comes below. Tokens differ: those with
# the largest gradients, one in twenty, have more than 50,000 times as much as
# those with the smallest, also one in twenty. Where a prediction was right,
# there is little to learn. One scale for all cannot serve both. A scale per
# token and tile can.
#
# Count it over all layers. Two measures: the share of numbers lost, and how
# far each token's gradient is off, `‖read − x‖ / ‖x‖`, for the typical
# token and for the unlucky one in a hundred.

# %%
def token_errors(read, x):
    """Relative error of every row of x that is not zero."""
    error = (read - x).norm(dim=1) / x.norm(dim=1)
    return error[x.norm(dim=1) > 0].double()


WAYS = {"no scale": cast, "one scale": per_tensor,
        "1 x 128": lambda x: read_tiles(*quantize_tiles(x))}
summary = {}
for way, read in WAYS.items():
    shares = [zeroed(read(g), g) for g in gradients.values()]
    errors = torch.cat([token_errors(read(g), g)
                        for g in gradients.values()])
    summary[way] = (float(np.mean(shares)), errors.median().item(),
                    errors.quantile(0.99).item())
    print(f"{way:10} lost {summary[way][0]:6.1%}   typical token off by "
          f"{summary[way][1]:6.1%}   one in 100 by {summary[way][2]:6.1%}")

# %% tags=["nbval-check-output"]
print("in tiles a typical token is within 3 %:",
      summary["1 x 128"][1] < 0.03)
print("and the unlucky one in 100 within 4 %:",
      summary["1 x 128"][2] < 0.04)
print("with one scale some tokens lose more than half:",
      summary["one scale"][2] > 0.5)

# %% [markdown]
# ## 8.5 The outlier
#
# Now under control. A matrix of 256 × 1,024 normal numbers, one of which is
# replaced by an outlier that we make larger and larger. What counts is the
# error of **all the others**. Five candidates:
#
# - E4M3, one scale for the tensor: the control that should fail;
# - E5M2, one scale: the old remedy, more range;
# - INT8, one scale: evenly spaced numbers, the other use of eight bits;
# - E4M3, a scale per 128 × 128 block, as for weights;
# - E4M3, your 1 × 128 tiles.
#
# **Predict** for each: at what size of the outlier does it break? (The
# outlier's neighbours are about 1.)

# %%
from minids3.ref.quant import dequantize_ref, quantize_ref


def int8(x):
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


def blocks(x):
    return dequantize_ref(*quantize_ref(x, (128, 128)), (128, 128))


CANDIDATES = {
    "INT8, one scale": (int8, viz.PALETTE[4], ":"),
    "E4M3, one scale": (per_tensor, viz.COLORS["control"], "-"),
    "E5M2, one scale": (lambda x: per_tensor(x, E5M2),
                        viz.COLORS["baseline"], "-"),
    "E4M3, 128 x 128": (blocks, viz.PALETTE[5], "-"),
    "E4M3, 1 x 128": (WAYS["1 x 128"], viz.COLORS["ours"], "-")}
sizes = 10.0 ** np.arange(0.5, 7.1, 0.5)


def others_error(read, size, seed):
    """Relative error of all numbers but the outlier."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 1024, generator=draw)
    x[17, 300] = size
    back = read(x)
    x[17, 300] = back[17, 300] = 0
    return relative_error(back, x)


sweep = {name: np.array([[others_error(read, s, seed) for s in sizes]
                         for seed in range(3)])
         for name, (read, _, _) in CANDIDATES.items()}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.5, 3.3))
for name, (_, color, dash) in CANDIDATES.items():
    ax.fill_between(sizes, 100 * sweep[name].min(0),
                    100 * sweep[name].max(0), color=color, alpha=0.25)
    ax.plot(sizes, 100 * sweep[name].mean(0), dash, marker="o", ms=3,
            color=color, label=name)
ax.set(xscale="log", yscale="log", xlabel="size of the outlier (others: 1)",
       ylabel="error of all others (%)", ylim=(0.3, 150))
ax.legend(fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
at = {n: 100 * v[:, -3].mean() for n, v in sweep.items()}
viz.show(fig, dpi=88, alt="Error of all other numbers against the size of "
         "one outlier, log scales. At a million: " + ", ".join(
             f"{n} {v:.1f} percent" for n, v in at.items())
         + ". INT8 breaks at about 100, E4M3 with one scale at about "
         "100,000.")

# %% tags=["nbval-check-output"]
last = {name: values[:, -3].max() for name, values in sweep.items()}
print("outlier of a million, three seeds:")
print("  E4M3 with one scale loses over 90 %:",
      sweep["E4M3, one scale"][:, -3].min() > 0.9)
print("  1 x 128 tiles stay below 4 %:", last["E4M3, 1 x 128"] < 0.04)
print("  E5M2 never breaks, and is never below 5 %:",
      sweep["E5M2, one scale"].min() > 0.05
      and sweep["E5M2, one scale"].max() < 0.06)
print("outlier of 1,000: INT8 is lost, E4M3 with one scale is not:",
      sweep["INT8, one scale"][:, 5].min() > 0.9
      and sweep["E4M3, one scale"][:, 5].max() < 0.03)

# %% [markdown]
# Read it slowly, it is not quite the textbook's story. **INT8** is the best
# of all without an outlier and breaks at the first moderate one, because its
# 256 numbers are evenly spaced. **E4M3 with one scale** shrugs off an outlier
# of ten thousand: it is a *floating-point* format with eighteen powers of two
# between its ends. But it has an end, and then everything is lost at once.
#
# **E5M2** has no cliff in this picture and pays for that everywhere, with
# twice the error. **Tiles** have both: E4M3's precision, and a range that
# belongs to the scales, which are float32. That is the argument for E4M3 in
# both directions (TR section 3.3.2, "mantissa over exponents"). What is
# lost is lost next to the outlier:

# %%
draw = torch.Generator().manual_seed(0)
x = torch.randn(256, 1024, generator=draw)
x[17, 300] = 1e6

# %% tags=["fold"]
fig, axes = plt.subplots(1, 3, figsize=(10, 2.7), sharey=True)
hurt = {}
for ax, name in zip(axes, ("E4M3, one scale", "E4M3, 128 x 128",
                           "E4M3, 1 x 128")):
    error, rest = CANDIDATES[name][0](x) - x, x.clone()
    error[17, 300] = rest[17, 300] = 0  # the outlier itself is not counted
    share = (error.view(256, 8, 128).norm(dim=2)
             / rest.view(256, 8, 128).norm(dim=2))
    hurt[name] = int((share > 0.1).sum())
    shown = ax.imshow(100 * share, aspect="auto", vmin=0, vmax=100,
                      interpolation="nearest")
    ax.set(title=name, xlabel="tile of 128 columns")
    ax.grid(visible=False)
axes[0].set_ylabel("row")
fig.tight_layout()
fig.colorbar(shown, ax=axes, label="error of a tile (%)", fraction=0.02,
             pad=0.02)
viz.show(fig, dpi=84, alt="Error of every tile of 1 x 128 with an outlier "
         "of a million in row 17, tile 2. Tiles off by more than 10 "
         "percent: " + ", ".join(f"{n}: {v}" for n, v in hurt.items())
         + ", of 2048.")
for name, n in hurt.items():
    print(f"{name:16} {n:4} of 2048 tiles off by more than 10 %")

# %% [markdown]
# The whole matrix; a block of 128 rows; one tile.
#
# ## 8.6 Scales without a mantissa
#
# A scale is a float32, and multiplying by it rounds once more. If it is a
# **power of two** it only moves exponents, and nothing is rounded at all.
# DeepSeek-V3 uses them where it hurts most: for the input of the linear layer
# after attention, and for what it sends to the experts (TR section 3.3.3).
# Its other FP8 activations are re-tiled as well, with ordinary scales.
#
# Powers of two also fit into a byte, an exponent and nothing else: that is
# **UE8M0**. In V3 it was a special case. It became the rule: V3.2's
# configuration says `scale_fmt: ue8m0`, and on NVIDIA's Blackwell GPUs
# (compute capability 10.0, `sm_100`) the tensor cores read such scales
# themselves, four packed into an int32 (DeepGEMM's README).
#
# The scale may only get larger. If it got smaller, the tile's largest
# number would land above 448.

# %% [markdown]
# EXERCISE text
# ### Exercise: round a scale up
#
# Write `power_of_two_scale`: the smallest power of two that is not below
# `scale`, for a tensor of any shape. A power of two stays itself: 0.2, 0.25
# and 3 become 0.25, 0.25 and 4.

# %%
# EXERCISE fp8-power-of-two

# %%
# CHECK fp8-power-of-two

# %% [markdown]
# What does it cost, and what does it buy? The forward pass needs an
# activation in tiles along its rows, the weight gradient needs the same one
# in tiles along its *columns*. The tensor was stored in FP8, so it is read,
# transposed and **quantised again**. **Predict:** how many of its numbers
# does the second rounding change, with either kind of scale?

# %%
def quantize_with(x, rule):
    """Tiles of 128 with scales changed by `rule`, read back."""
    scale = rule(quantize_tiles(x)[1])
    wide = scale.repeat_interleave(128, 1)[:, :x.shape[1]]
    return cast(x / wide) * wide


draw = torch.Generator().manual_seed(1)
acts = torch.randn(512, 512, generator=draw)
acts = acts * torch.exp2(torch.randn(512, 1, generator=draw))
table = {}
for name, rule in (("float32 scales", lambda s: s),
                   ("powers of two", power_of_two_scale)):
    once = quantize_with(acts, rule)
    twice = quantize_with(once.T.contiguous(), rule).T
    table[name] = (relative_error(once, acts), relative_error(twice, acts),
                   (once != twice).float().mean().item())
    print(f"{name:15} error once {table[name][0]:.2%}   twice "
          f"{table[name][1]:.2%}   changed by the second rounding "
          f"{table[name][2]:6.1%}")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.5, 2.1))
for row, (name, (once, twice, _)) in enumerate(table.items()):
    ax.barh(row - 0.18, 100 * once, 0.34, color=viz.PALETTE[5],
            label="quantised once" if row == 0 else None)
    ax.barh(row + 0.18, 100 * twice, 0.34, color=viz.COLORS["ours"],
            label="and again in tiles the other way" if row == 0 else None)
ax.set_yticks([0, 1], table)
ax.invert_yaxis()
ax.set_xlabel("relative error (%)")
ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=88, alt="Relative error after one and two roundings: "
         + "; ".join(f"{n} {100 * a:.2f} and {100 * b:.2f} percent"
                     for n, (a, b, _) in table.items()) + ".")

# %% tags=["nbval-check-output"]
print("float32 scales: the second rounding changes over half:",
      table["float32 scales"][2] > 0.5)
print("powers of two: it changes less than 1 in 100:",
      table["powers of two"][2] < 0.01)

# %% [markdown]
# A power of two costs a little the first time, since the tile's largest
# number lands anywhere between 224 and 448. The second time is free, unless
# a number slips into the subnormals on the way.
#
# ## 8.7 Adding up with 14 bits
#
# So far nothing was multiplied. A tensor core multiplies two FP8 numbers
# exactly and *adds* the products, and on Hopper (H100 and H800) the adding is
# less exact than one would think: "around 14 bits" of the sum survive (TR
# section 3.3.2); the hardware paper says a register of 1 + 8 + 13 bits, sign,
# exponent and fraction (ISCA). The rule, as the report describes it (TR
# section 3.5.2):
#
# 1. one instruction takes 32 products and what is in the register;
# 2. all 33 are **cut** to the grid of the largest among them, 13 bits
#    below its leading one;
# 3. their sum is cut in the same way, to 13 bits below *its* leading one, 14
#    bits with it, and is the new register.
#
# `cut(x, largest)` does step 2 in numbers, and `cut(total, total)` step 3. A
# product of 1 beside a register of 5,000:

# %%
from minids3.numerics import cut

for size in (1.0, 100.0, 5000.0, 20000.0):
    kept = cut(torch.tensor(1.1875).double(), torch.tensor(size).double())
    print(f"largest term {size:7.0f}:  1.1875 counts as {kept.item():.6f}")

# %% [markdown]
# The fuller the register, the less a newcomer counts. And it is a cut, not
# a rounding: it never errs in the newcomer's favour.
#
# The cure is old-fashioned: carry the register over to a float32 variable
# before it gets full, and start again at zero. DeepSeek-V3 does so every
# **N_C = 128** products, four instructions.

# %% [markdown]
# EXERCISE text
# ### Exercise: fourteen bits, and out in time
#
# Write `limited_sum`. `products` is `[R, K]` float64, K a multiple of 32.
# Follow the three steps; with `promote_every`, move the register to a float32
# total after so many products. `cut` is at your disposal. 4,096 products of 1
# give 4,096 either way; 4,096 products of 1.1875 give 4,374, and with
# promotion every 128 they give 4,864, which is right.

# %%
# EXERCISE fp8-accumulate

# %%
# CHECK fp8-accumulate

# %% [markdown]
# Two kinds of data, both rounded to E4M3 first, so that the error below is
# that of the *adding* alone: normal numbers of both signs, and positive
# ones, uniform between 0 and 1. **Predict** how the error grows with K for
# each, and what promotion does to it.

# %%
lengths = [128, 256, 512, 1024, 2048, 4096, 8192]
DATA = {"normal": torch.randn, "positive": torch.rand}


def products_of(kind, K, seed, rows=48):
    """Exact products [rows, K] of two E4M3 vectors per row."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (round_to(DATA[kind](rows, K, generator=draw), E4M3).double()
            for _ in range(2))
    return a * b


def sum_error(total, products):
    return relative_error(total, products.sum(1))


errors = {}
for kind in DATA:
    for every in (None, 128):
        errors[kind, every] = np.array([[
            sum_error(limited_sum(p, every), p)
            for p in (products_of(kind, K, seed) for K in lengths)]
            for seed in range(3)])

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.8, 3), sharey=True)
for ax, kind in zip(axes, DATA):
    for every, role, name in ((None, "control", "never promoted"),
                              (128, "ours", "promoted every 128")):
        v = 100 * errors[kind, every]
        ax.fill_between(lengths, v.min(0), v.max(0), alpha=0.25,
                        color=viz.COLORS[role])
        ax.plot(lengths, v.mean(0), "o-", ms=4, color=viz.COLORS[role],
                label=name)
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="K, products in a sum",
           title=f"{kind} numbers")
axes[0].set_ylabel("relative error (%)")
axes[1].plot(4096, 2, "D", ms=7, color=viz.COLORS["published"])
axes[1].annotate("TR: nearly 2 %", (4096, 2), (0, -15), fontsize=8,
                 ha="center", textcoords="offset points",
                 color=viz.COLORS["published"])
axes[0].legend(fontsize=8)
fig.tight_layout()
at = {key: 100 * v[:, 5].mean() for key, v in errors.items()}
viz.show(fig, dpi=88, alt="Relative error against K, log scales, three "
         "seeds. At K = 4096: normal "
         f"{at['normal', None]:.3f} percent, promoted "
         f"{at['normal', 128]:.3f}; positive {at['positive', None]:.2f} "
         f"percent, promoted {at['positive', 128]:.3f}. Promoted lines are "
         "flat.")

# %% tags=["nbval-check-output"]
v = errors["positive", None][:, 5]
print("positive, K = 4096, never promoted: 6 to 7 %:",
      v.min() > 0.06 and v.max() < 0.07)
print("promoted every 128: below 0.1 %, at every K:",
      errors["positive", 128].max() < 0.001
      and errors["normal", 128].max() < 0.001)
print("normal numbers, never promoted: below 0.3 % up to K = 8192:",
      errors["normal", None].max() < 0.003)

# %% [markdown]
# With signs the sum stays small, the register too, and cuts go both ways.
# With positive numbers the register fills up, and each of the 33 terms is
# cut downward at every step. The error grows with K and has a direction.
# Promoted, both lines are flat: a sum of 8,192 is as good as one of 128.
#
# Here is the direction, for every row of 4,096 positive products:

# %%
p = products_of("positive", 4096, 0, rows=128)
exact = p.sum(1)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 2.4))
for every, role, name in ((None, "control", "never promoted"),
                          (1024, "baseline", "every 1,024"),
                          (128, "ours", "every 128")):
    off = (100 * (limited_sum(p, every) - exact) / exact).numpy()
    ax.hist(off, np.arange(-7.5, 0.6, 0.05), color=viz.COLORS[role],
            label=f"{name}: {off.mean():+.2f} %")
ax.axvline(0, color="0.5", lw=0.8)
ax.set(xlabel="signed error of a sum (%)", ylabel="rows")
ax.legend(fontsize=8)
viz.show(fig, dpi=88, alt="Histogram of signed errors of 128 sums of 4096 "
         "positive products: all are too small, by about 6.6 percent never "
         "promoted, about 1.3 percent promoted every 1024, about 0.05 "
         "percent every 128.")

# %% [markdown]
# ### And the report's 2 %?
#
# The report says that for two random matrices at K = 4,096 the largest
# relative error is nearly 2 %. It does not say what the numbers were. We
# get 6 to 7 % for uniform positive ones, a tenth of a percent for normal
# ones (a *largest relative* error means nothing there: some sums are nearly
# zero). And our rule is a description, not the circuit. Change it a little:

# %%
from minids3.numerics import limited_matmul


def one_cut(products, bits=13):
    """The 32 products are added exactly, only the register is cut."""
    register = torch.zeros(len(products), dtype=torch.float64)
    for step in products.split(32, 1):
        register = register + step.sum(1)
        register = cut(register, register, bits)
    return register


one = torch.ones(4096, 1, dtype=torch.float64)
bits = range(11, 19)
rule = [100 * sum_error(limited_matmul(p, one, b)[:, 0], p) for b in bits]
gentle = [100 * sum_error(one_cut(p, b), p) for b in bits]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.8, 2.9))
ax.plot(bits, rule, "o-", color=viz.COLORS["control"],
        label="all 33 terms are cut (our rule)")
ax.plot(bits, gentle, "s-", color=viz.PALETTE[5],
        label="only the register is cut")
ax.plot(13, 2, "D", ms=7, color=viz.COLORS["published"])
ax.annotate("TR: nearly 2 %", (13, 2), (-9, -3), fontsize=8, ha="right",
            color=viz.COLORS["published"], textcoords="offset points")
ax.axvline(13, color="0.7", lw=0.8, zorder=0)
ax.set(yscale="log", xlabel="fraction bits of the register",
       ylabel="relative error (%)")
ax.legend(fontsize=8)
viz.show(fig, dpi=88, alt="Error at K = 4096, positive numbers, against "
         f"the register's fraction bits. At 13: {rule[2]:.1f} percent if "
         f"all terms are cut, {gentle[2]:.2f} if only the register is. 2 "
         "percent lies between.")

# %% [markdown]
# At 13 bits the published 2 % lies between the two readings, and within two
# bits of ours. That is as far as an emulation can go: it shows the
# mechanism and its order of magnitude, it does not reproduce a chip. What
# holds under *every* reading is the flat line of promotion.
#
# How often is enough? Moving the register costs time on the ordinary cores,
# so rarely is better.

# %%
intervals = [32, 64, 128, 256, 512, 1024, 2048, 4096]
each = [100 * sum_error(limited_sum(p, n), p) for n in intervals]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.5, 2.6))
ax.plot(intervals, each, "o-", color=viz.COLORS["ours"])
ax.plot([128], [each[2]], "o", ms=10, mfc="none",
        color=viz.COLORS["published"])
ax.annotate("N_C = 128 (TR)", (128, each[2]), (8, -14),
            textcoords="offset points", color=viz.COLORS["published"])
rounding = 100 * relative_error(
    read_tiles(*quantize_tiles(acts)), acts)
ax.axhline(rounding, ls="--", color=viz.COLORS["floor"])
ax.annotate("error of one number in E4M3", (34, rounding * 1.15),
            fontsize=8, color=viz.COLORS["floor"])
ax.set_xscale("log", base=2)
ax.set(yscale="log", xlabel="products between two promotions",
       ylabel="error of the sum (%)")
viz.show(fig, dpi=88, alt="Error of sums of 4096 positive products against "
         "the promotion interval: " + ", ".join(
             f"{n}: {e:.3f} percent" for n, e in zip(intervals, each))
         + f". Dashed: E4M3's own rounding, {rounding:.1f} percent.")

# %% [markdown]
# At 128 the adding is fifty times more exact than the numbers that are
# added. And 128 is the width of a tile: after 128 products the scale
# changes, the partial sum has to be multiplied by it anyway, in float32, on
# the ordinary cores. The promotion comes almost for free with the scaling
# (TR section 3.3.2). Notebook 09 builds that loop.
#
# ## 8.8 Play: a byte of switches
#
# Eight bits in a row. First four bytes as pictures: **what is each?** Cover
# the right-hand side.

# %%
SHOWN = {0x01: "the smallest", 0x07: "the largest subnormal",
         0x7E: "the largest", 0xC5: "an ordinary one"}

# %% tags=["fold"]
for code, what in SHOWN.items():
    viz.show(byte_figure(code), dpi=84, alt=f"{what}: the bits of "
             f"{code:#04x}, {code:08b}, and {explain(code)}.")

# %% [markdown]
# Now yours. What comes after 448? Find a number whose nearest neighbour is
# 32 away. Make zero in two ways. What does switching the *lowest exponent
# bit* do to a normal number, and what to 0x07?

# %% tags=["nbval-ignore-output"]
byte_toggles()

# %% [markdown]
# ## 8.9 The Bill
#
# What do eight bits halve, and what double? The bytes of an operand, but
# for its scales. The peak rate, for the products that are in FP8 at all:
# attention's core, the output head and the gate are not (TR section 3.3.1).
# **Guess:** if the other products take no more than half the time, how much
# faster is a whole training step at most?

# %% tags=["nbval-check-output"]
from minids3.config import get_config
from minids3.sim import bill
from minids3.sim.bill.lines_08 import (
    bytes_per_number, fp8_share, speed_limit)

share = fp8_share(get_config("v3_671b"))
print(f"bytes per number: activations {bytes_per_number((1, 128)):.3f}, "
      f"weights {bytes_per_number((128, 128)):.4f}, BF16 2")
print(f"products in FP8: {share:.1%} of the FLOPs")
print(f"twice as fast there: at most {speed_limit(share, 2):.2f} times "
      "as fast in all")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 1.9))
rest = 100 * (1 - share)
for row, (part, what) in enumerate(((100 * share, "BF16"),
                                    (50 * share, "FP8"))):
    ax.barh(row, rest, 0.55, color=viz.PALETTE[5],
            label="stays in BF16" if row == 0 else None)
    ax.barh(row, part, 0.55, left=rest, color=viz.COLORS["ours"],
            label="products of linear layers" if row == 0 else None)
    ax.annotate(f"{rest + part:.0f}", (rest + part, row), (4, 0),
                textcoords="offset points", va="center")
ax.set_yticks([0, 1], ["all in BF16", "with FP8"])
ax.invert_yaxis()
ax.set(xlabel="arithmetic time at peak rates (all in BF16 = 100)",
       xlim=(0, 112))
ax.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=88, alt="Two stacked bars of arithmetic time: 100 in "
         f"BF16, {rest + 50 * share:.0f} with FP8, of which {rest:.0f} "
         "stay in BF16 in both.")

# %%
bill.show(upto="08")

# %% [markdown]
# An upper bound from data sheets, and the sheets are marked as unverified.
# The published run reached 39 % of the *BF16* peak with its FP8 kernels
# (ISCA table 4), so a step was nowhere near this bound; communication,
# memory and the quantising itself do not get faster. Kernels do not reach a
# factor of two either: notebook 09 has measured ones, and notebook 10 puts
# them into this formula and asks what training in FP8 costs in *loss*.
#
# ## The article, so far
#
# Of claim 7, FP8, you know the mechanism: half the bytes, at most twice the
# rate on 85 % of the arithmetic, and two tricks, scales and promotion,
# without which it would not work. What it saved is notebook 10's line.
#
# ## What became of it
#
# The formats went on to shrink. Blackwell's tensor cores take block scales in
# hardware, in the **MX** formats one UE8M0 for every 32 numbers (arXiv
# 2310.10537), down to four bits. V4 (April 2026) keeps its experts in FP4
# (Hugging Face's documentation). E5M6 turned out to be no curiosity:
# DeepSeek's TileKernels (April 2026, repository) has a cast to it. And Triton
# 3.8 (August 2026) runs products of MX numbers in its interpreter, so that
# notebook 20 can be done on a CPU.
#
# ## What this does not show
#
# - Hopper's adder is not public. Section 8.7's rule follows what the report
#   (TR section 3.5.2) and the hardware paper say of it; in what order it
#   adds, and what else it cuts, we do not know.
# - No speed was measured. Emulated FP8 is slower than float32 on a CPU.
# - The gradients are those of one batch of one small dense model with 128
#   channels, where a tile is a whole row. In a layer with 7,168 channels
#   there are 56 tiles per token.
# - Errors of single products say little about training. 3 % of noise on
#   every operand sounds terrible; notebook 10 shows what it does.
# - Stochastic rounding, another way to avoid a direction, is not used by
#   DeepSeek-V3 and not shown.
#
# ## References
#
# - Micikevicius et al. 2022, *FP8 formats for deep learning*, arXiv
#   2209.05433: section 3, table 1 (E4M3, E5M2 and their special codes).
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 3.3.1 (what is
#   in FP8), 3.3.2 (tiles, accumulation, mantissa over exponents, online
#   scales), 3.3.3 (E5M6, powers of two), 3.5.2 (wishes to hardware).
# - *Insights into DeepSeek-V3*, arXiv 2505.09343v2: section 3.1 (the
#   register of 1 + 8 + 13 bits), table 4 (the achieved rate).
# - Rouhani et al. 2023, *Microscaling data formats*, arXiv 2310.10537:
#   section 3 (E8M0 scales shared by blocks).
#
# **Next:** [09 · FP8 GEMM](09_fp8_gemm.ipynb), where tiles, scales and
# promotion become one kernel.
