# %% [markdown]
# # 02 · A transformer you wrote yourself
#
# {{badge}}
#
# > **Claim.** A decoder assembled from five functions of your own starts at a
# > loss of ln V, comes within **0.3 nats per token** of the entropy of its
# > corpus in under two minutes on two CPU cores, and writes readable text.
# > The same model with a leak in its mask reaches a *lower* loss than the
# > entropy allows, and cannot write a sentence.
#
# **Takes** about 80 minutes to work through, 51 of them for the exercises;
# 'Run all' about 2.5 minutes on two CPU cores. **Needs** notebooks 00
# (RMSNorm) and 01 (tokens, entropy floor). **Afterwards** you can write RoPE,
# causal attention, SwiGLU, the loss, an AdamW step and top-p sampling from
# memory, tell a healthy loss curve from a leaking one, and say what 6ND
# counts and what it forgets.
#
# Everything later in this workbook replaces one part of the model built here.
# So it is worth building well.

# %%
# SETUP

# %% [markdown]
# ## 2.0 What to beat: tables of one and two tokens
#
# Somebody has trained a model and reports a loss of 2.1. Good or bad? A loss
# means nothing without its neighbours, so we put up four marks first:
#
# - **uniform**: every one of the V tokens equally likely, ln V nats;
# - **one token**: how often each token occurs, whatever came before;
# - **pairs**: a V x V table of what follows what;
# - **floor**: the exact entropy of the corpus (notebook 01). Nothing that
#   plays fair gets below it, since the rest is coin tosses of our generator.
#
# **Guess before you run:** the table of pairs has four million entries. Does
# it get halfway from uniform to the floor? Nearly there?

# %%
from minids3.data import entropy_floor, load_split, load_tokenizer

tok = load_tokenizer()
V = tok.vocab_size
train_split, valid_split = load_split("train"), load_split("validation")
seen, unseen = train_split.tokens.long(), valid_split.tokens.long()

single = torch.bincount(seen, minlength=V).double() + 0.1
p_single = single / single.sum()
pairs = torch.bincount(seen[:-1] * V + seen[1:], minlength=V * V)
pairs = pairs.view(V, V).double()
# An unseen pair falls back on the single counts, or its loss is infinite.
p_pair = (pairs + 20 * p_single) / (pairs.sum(1, keepdim=True) + 20)

before, after = unseen[:-1], unseen[1:]
MARKS = {
    "uniform, ln V": math.log(V),
    "one token": -p_single[after].log().mean().item(),
    "pairs": -p_pair[before, after].log().mean().item(),
    "entropy floor": entropy_floor(valid_split),
}
for name, nats in MARKS.items():
    print(f"{name:15}{nats:6.2f} nats per token")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.5, 2.6))
rows = list(MARKS)
colors = [viz.COLORS["baseline"]] * 3 + [viz.COLORS["floor"]]
ax.barh(rows, MARKS.values(), color=colors, height=0.6)
for row, nats in MARKS.items():
    ax.annotate(f"{nats:.2f}", (nats, row), (5, 0), va="center",
                textcoords="offset points")
ax.set_xlabel("loss on unseen text (nats per token)")
ax.set_xlim(0, math.log(V) * 1.12)
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
alt = "Bars of the loss: " + ", ".join(
    f"{name} {nats:.2f}" for name, nats in MARKS.items()) + " nats."
viz.show(fig, alt=alt)

# %% [markdown]
# A table of pairs knows that `carried` is followed by `the`. It cannot know
# that the lantern is in the attic because somebody carried it there three
# sentences ago. The gap between the last two bars is everything that takes
# **memory of more than one token**. A table for two tokens of memory would
# have V³ entries, for three V⁴. That road ends here. Attention is the other
# one.
#
# ## 2.1 The shape of the thing
#
# Tokens `[B, T]` become vectors `[B, T, D]`. Every layer adds two corrections
# to them:
#
# ```
# x = x + attention(norm(x))        positions talk to one another
# x = x + feed_forward(norm(x))     each position thinks on its own
# ```
#
# Finally a norm, and a matrix `[V, D]` that turns each vector into V logits,
# the scores of the next token. B is the batch, T positions, D the model's
# width, H heads of width d, F the hidden width of the feed-forward.
#
# The norm is yours already: you wrote `rms_norm` in notebook 00. It divides
# each vector by its root mean square. Here `x` grows with each correction
# that is added to it, and the norm lets a layer see its direction and not how
# much has been added up so far.

# %%
from minids3.ref.norm import rms_norm_ref as rms_norm

# %% [markdown]
# ## 2.2 RoPE: turn a vector by its position
#
# Attention compares vectors and has no idea of order: shuffle the past and
# the sums stay the same. **RoPE** writes the position into the vector by
# *turning* it. Channels are taken in pairs. Pair j of a vector of width R at
# position t is turned by the angle `t · θ^(-2j/R)`, θ = 10,000: the first
# pair by one radian per step, the last so slowly that it hardly moves in a
# thousand.

# %%
from minids3.ref.rope import rope_tables

R = 32
cos, sin = rope_tables(24, R)  # each [24, 16]: a row per position

# %% tags=["fold"]
fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.9))
turn = torch.linspace(0, 2 * math.pi, 100)
for ax, j in zip(axes, (0, 2, 4, 8)):
    ax.plot(turn.cos(), turn.sin(), color="0.75", lw=0.8, zorder=1)
    dots = ax.scatter(cos[:, j], sin[:, j], c=range(24), cmap="viridis",
                      s=26, zorder=2)
    ax.plot([0, cos[1, j]], [0, sin[1, j]], color=viz.PALETTE[1], lw=2)
    ax.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal",
           xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    ax.set_title(f"pair {j}: {10000 ** (-2 * j / R):.3f} rad a step",
                 fontsize=9)
    ax.set_xlabel("first channel")
axes[0].set_ylabel("second channel")
fig.tight_layout()
fig.colorbar(dots, ax=axes, label="position t", fraction=0.012, pad=0.02)
viz.show(fig, alt="Four circles: the point (1, 0) turned by positions 0 to "
         "23. Pair 0 goes round almost four times, pair 2 about once, pair "
         "4 covers a third of the circle and pair 8 hardly moves.", dpi=88)

# %% [markdown]
# EXERCISE text
# ### Exercise: turn the pairs
#
# Write `rope`. `x` is `[..., T, R]`; `cos` and `sin` are `[T, R // 2]`, the
# tables plotted above. The pair (a, b) = channels (2j, 2j + 1) becomes
# `(a·cos − b·sin, a·sin + b·cos)`. The result has the shape, the channel
# order and the dtype of `x`. Position 0 is not turned at all; at position 1
# the pair (1, 0) becomes (0.540, 0.841), cosine and sine of one radian.

# %%
# EXERCISE rope

# %%
# CHECK rope

# %% [markdown]
# Now the reason for all this. A score is a dot product of a query and a key.
# Turn both by their positions, m and n, and only the *difference* of the
# angles survives. The score depends on the distance m − n and not on where
# in the text the two are.
#
# Left: one query and one key, their score at every distance, for a pair of
# words near the start, in the middle, and far out. Right, the **control**:
# only the queries are turned. **Predict** what happens to the three curves
# on the right.

# %%
torch.manual_seed(4)
q, k = torch.randn(1, R), torch.randn(1, R)
gaps = torch.arange(41)
curves = {}
for start in (0, 100, 400):
    at_q, at_k = rope_tables(start + gaps, R), rope_tables(
        torch.tensor([start]), R)
    turned_q = rope(q.expand(41, R), *at_q)
    curves[start] = (turned_q @ rope(k, *at_k)[0], turned_q @ k[0])

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for start, mark in zip(curves, ("o", "x", "+")):
    for ax, score in zip(axes, curves[start]):
        ax.plot(gaps, score, mark, ms=7 - 2 * (mark == "o"),
                label=f"key at position {start}")
axes[0].set_title("queries and keys turned")
axes[1].set_title("control: only queries turned")
axes[0].set_ylabel("score q · k")
for ax in axes:
    ax.set_xlabel("distance m − n (positions)")
axes[0].legend(fontsize=8, loc="lower left")
fig.tight_layout()
viz.show(fig, alt="Scores against distance. Left, both turned: the curves "
         "for keys at positions 0, 100 and 400 coincide. Right, only "
         "queries turned: three different curves.", dpi=88)
spread = (curves[400][0] - curves[0][0]).abs().max()
print(f"both turned: the curves differ by at most {spread:.0e}")

# %% [markdown]
# Three marks in one spot on the left: a rule such as "look four words back"
# can be learned once and holds everywhere. Keep the picture in mind for
# notebook 03, where DeepSeek-V3 keeps 64 of 192 channels apart just so that
# they may be turned.
#
# ## 2.3 Causal attention: looking back, never ahead
#
# Every position makes a **query** (what do I need?), a **key** (what do I
# have?) and a **value** (what do I pass on?). The score of query t and key s
# is their dot product over √d. A softmax over s turns a query's scores into
# weights that sum to 1, and the result is the average of the values with
# those weights. Per head that is a `[T, T]` matrix: row t is what position t
# looks at.
#
# One rule makes it a *language* model: position t must not see positions
# after t, for they contain the answer. Their scores become −∞ before the
# softmax, so their weights are exactly 0.

# %% [markdown]
# EXERCISE text
# ### Exercise: causal attention
#
# Write `causal_attention`. `q` and `k` are `[B, H, T, d]`, `v` is
# `[B, H, T, dv]`; return `[B, H, T, dv]`. Scores are divided by √d. Position
# t averages the values of positions 0 … t, itself included. So the first
# position returns its own value, and with queries of zeros every position
# returns the plain mean of all values up to it.

# %%
# EXERCISE causal-attention

# %%
# CHECK causal-attention

# %%
torch.manual_seed(1)
T = 9
q, k = torch.randn(1, 1, T, R), torch.randn(1, 1, T, R)
eye = torch.eye(T).expand(1, 1, T, T)
weights = causal_attention(q, k, eye)[0, 0]  # averaging one-hot values
scores = (q @ k.transpose(-1, -2) / math.sqrt(R))[0, 0]
allowed = torch.ones(T, T).tril()

# %% tags=["fold"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2))
panels = (("what may be seen", allowed, "Greys"),
          ("scores q · k / √d", scores, "PuOr"),
          ("weights after mask and softmax", weights, "viridis"))
for ax, (title, image, cmap) in zip(axes, panels):
    top = image.abs().max().item()
    low = -top if cmap == "PuOr" else 0
    shown = ax.imshow(image, cmap=cmap, vmin=low, vmax=top)
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="key position s", xticks=range(0, T, 2),
           yticks=range(0, T, 2))
    ax.grid(visible=False)
    if image is not allowed:
        fig.colorbar(shown, ax=ax, fraction=0.046)
axes[0].set_ylabel("query position t")
fig.tight_layout()
viz.show(fig, alt="Three 9 by 9 maps. The mask is a lower triangle with "
         "its diagonal. The scores fill the whole square. The weights are "
         "zero above the diagonal and each row sums to one.", dpi=88)
print("row sums:", [round(s, 4) for s in weights.sum(-1).tolist()])

# %% [markdown]
# A trick in that cell is worth keeping: average the rows of an identity
# matrix, and what comes out are the weights themselves. It works for any
# attention you can only call.
#
# A mask can be wrong and look right. A test that cannot be fooled asks the
# **gradient**: which inputs can move the output at position 5? We keep two
# leaky variants for it, and for section 2.9.

# %%
def leaky_attention(q, k, v):
    """Attention without a mask: every position sees the whole text."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, -1) @ v


def off_by_one_attention(q, k, v):
    """The mask starts one step late: t sees t + 1, its own answer."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(2)
    return torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v


def reach(attend, t=5):
    """Size of the gradient of output t with respect to each input."""
    x = torch.randn(1, 1, T, R, requires_grad=True)
    attend(x, x, x)[0, 0, t].sum().backward()
    return x.grad[0, 0].norm(dim=-1)


torch.manual_seed(2)
variants = {"yours": causal_attention, "no mask": leaky_attention,
            "mask one step late": off_by_one_attention}

# %% tags=["fold"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), sharey=True)
for ax, (name, attend) in zip(axes, variants.items()):
    size = reach(attend)
    bars = ax.bar(range(T), size, color=viz.COLORS["ours"])
    for bar in bars[6:]:
        bar.set_color(viz.COLORS["control"])
    ax.axvline(5.5, color="0.5", ls="--", lw=1)
    leaks = [s for s in range(6, T) if size[s] > 0]
    ax.set_title(f"{name}: leaks from {leaks or 'nowhere'}", fontsize=9)
    ax.set(xlabel="input position", xticks=range(T))
axes[0].set_ylabel("gradient of output 5")
fig.tight_layout()
viz.show(fig, alt="Gradient of output 5 by input position. Yours: nonzero "
         "at 0 to 5 only. Without a mask: nonzero everywhere. Mask one "
         "step late: nonzero at 0 to 6.", dpi=88)

# %% [markdown]
# ## 2.4 SwiGLU: each position on its own
#
# Between two rounds of attention each position goes through a small network
# of its own. DeepSeek-V3, like Llama, uses three matrices instead of two: an
# `up` projection computes features, a `gate` decides how much of each passes,
# `down` brings them back to D. The gate's curve is SiLU, `z · sigmoid(z)`: a
# soft switch, smooth, and slightly negative on the left.

# %%
z = torch.linspace(-6, 6, 200)

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3))
axes[0].plot(z, F.silu(z), lw=2, label="SiLU")
axes[0].plot(z, F.relu(z), "--", label="ReLU")
axes[0].plot(z, torch.sigmoid(z), ":", lw=2, label="sigmoid")
axes[0].set(xlabel="z (gate before the switch)", ylabel="value")
axes[0].legend()
grid = F.silu(z)[:, None] * z[None, :]
shown = axes[1].imshow(grid.T, origin="lower", extent=(-6, 6, -6, 6),
                       cmap="PuOr", vmin=-20, vmax=20, aspect="auto")
axes[1].set(xlabel="gate z", ylabel="up", title="silu(gate) · up")
axes[1].grid(visible=False)
fig.colorbar(shown, ax=axes[1])
fig.tight_layout()
viz.show(fig, alt="Left: SiLU, ReLU and sigmoid from -6 to 6; SiLU follows "
         "ReLU but dips slightly below zero. Right: the product of gate "
         "and up; left of zero almost nothing passes.", dpi=88)

# %% [markdown]
# EXERCISE text
# ### Exercise: SwiGLU
#
# Write `swiglu`. `x` is `[..., D]`, `w_gate` and `w_up` are `[F, D]`,
# `w_down` is `[D, F]` (weights are stored `[out, in]`, as everywhere in
# PyTorch). Return `down(silu(gate(x)) · up(x))`, shape `[..., D]`. With 1 × 1
# matrices of ones, x = 2 becomes silu(2) · 2 = 3.523.

# %%
# EXERCISE swiglu

# %%
# CHECK swiglu

# %% [markdown]
# ## 2.5 Assembly
#
# That is all of it. Four functions, `rms_norm`, `rope`, `causal_attention`
# and `swiglu`, and matrices between them. The attributes carry the names that
# Hugging Face checkpoints use, so that weights can be exchanged by name.

# %%
from torch import nn


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


class MyBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, cfg, attend):
        super().__init__()
        d, f = cfg.hidden_size, cfg.intermediate_size
        self.width, self.attend = cfg.head_dim, attend
        self.input_layernorm = nn.RMSNorm(d)
        self.self_attn = nn.ModuleDict(
            {f"{name}_proj": linear(d, d) for name in "qkvo"})
        self.post_attention_layernorm = nn.RMSNorm(d)
        self.mlp = nn.ModuleDict({"gate_proj": linear(d, f),
                                  "up_proj": linear(d, f),
                                  "down_proj": linear(f, d)})

    def forward(self, x, cos, sin):
        h = rms_norm(x, self.input_layernorm.weight)
        q, k, v = (self.heads(h, name) for name in "qkv")
        out = self.attend(rope(q, cos, sin), rope(k, cos, sin), v)
        x = x + self.self_attn["o_proj"](out.transpose(1, 2).flatten(2))
        h = rms_norm(x, self.post_attention_layernorm.weight)
        return x + swiglu(h, *(self.mlp[f"{name}_proj"].weight
                               for name in ("gate", "up", "down")))

    def heads(self, h, name):  # [B, T, D] -> [B, H, T, d]
        out = self.self_attn[f"{name}_proj"](h)
        return out.unflatten(-1, (-1, self.width)).transpose(1, 2)


# %%
class MyTransformer(nn.Module):
    """Token ids [B, T] to logits [B, T, V]."""

    def __init__(self, cfg, attend):
        super().__init__()
        self.config = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(
            MyBlock(cfg, attend) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.RMSNorm(cfg.hidden_size)
        self.lm_head = linear(cfg.hidden_size, cfg.vocab_size)
        for weight in self.parameters():
            if weight.ndim == 2:  # the norms start at one
                nn.init.normal_(weight, std=cfg.initializer_range)

    def forward(self, ids):
        tables = rope_tables(ids.shape[1], self.config.head_dim)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, *tables)
        return self.lm_head(rms_norm(x, self.norm.weight))

    def loss(self, ids, targets):
        return lm_loss(self(ids), targets)  # yours, in section 2.6


# %% [markdown]
# Is it right? The library has its own decoder, `minids3.model.Transformer`,
# and its test suite holds that one against Hugging Face's Llama. Give both
# the same weights and compare every logit.

# %% tags=["nbval-check-output"]
from minids3.config import get_config
from minids3.model import Transformer

cfg = get_config("mini_dense")
torch.manual_seed(0)
theirs = Transformer(cfg).eval()
mine = MyTransformer(cfg, causal_attention)
print(mine.load_state_dict(theirs.state_dict()))

ids = torch.randint(0, V, (2, 50))
with torch.no_grad():
    gap = (mine(ids) - theirs(ids)).abs().max().item()
print("largest difference of any logit is below 1e-5:", gap < 1e-5)
n = sum(p.numel() for p in mine.parameters())
print(f"{n:,} parameters in {cfg.num_hidden_layers} layers")

# %% [markdown]
# ## 2.6 The loss: one number to make small
#
# The model guesses the next token at *every* position at once, so a text of
# T + 1 tokens is T exercises. The packer of notebook 01 already lays inputs
# and targets one step apart; the model itself never shifts anything.

# %% tags=["nbval-check-output"]
from minids3.data import PackedBatches

SEQ, BATCH = 128, 16
train_batches = PackedBatches(train_split, BATCH, SEQ, seed=0)
valid_batches = PackedBatches(valid_split, BATCH, SEQ, shuffle=False)
inputs, targets = train_batches.batch(0)
print("input  ->  target")
special = {tok.bos_id: "<|bos|>", tok.eos_id: "<|eos|>"}
for pair in zip(inputs[0, :9].tolist(), targets[0, :9].tolist()):
    a, b = (special.get(i) or repr(tok.decode([i])) for i in pair)
    print(f"{a:>12}  ->  {b}")

# %% [markdown]
# EXERCISE text
# ### Exercise: the loss
#
# Write `lm_loss`. `logits` is `[B, T, V]`, `targets` `[B, T]` holds the next
# token of each position, or `ignore_index` where nothing is to be learned.
# Return the mean of −log softmax(logits)[target] over the positions that
# count, in nats. Logits may be large: `exp(200)` is infinite in 32 bits.
# Equal logits give ln V whatever the targets are, here ln 2,048 = 7.625.

# %%
# EXERCISE lm-loss

# %%
# CHECK lm-loss

# %% [markdown]
# **Predict:** the model has just been initialised with small random weights.
# It knows nothing. What is its loss, in terms of V?

# %%
with torch.no_grad():
    start_loss = lm_loss(mine(inputs), targets).item()
print(f"measured {start_loss:.3f}    ln V = {math.log(V):.3f}")

# %% [markdown]
# Logits near zero, a softmax near uniform, a loss near ln V. If a new model
# starts anywhere else, stop and look: above it, the initial weights are too
# large and the model is confidently wrong; below it, something leaks.
#
# ## 2.7 One step of AdamW
#
# The gradient says which way is down for each of the weights. Plain descent
# would move a weight with a tiny gradient by a tiny amount. **Adam** keeps
# two running averages per weight, of the gradient (`m`) and of its square
# (`v`), and moves by `m / √v`: about lr for every weight, whatever its
# gradient's size. The **W** stands for weight decay, applied to the weight
# directly and not through that division. Both averages start at zero and are
# too small at first; dividing by `1 − β^step` repairs that.

# %% [markdown]
# EXERCISE text
# ### Exercise: AdamW
#
# Write `adamw_step` for one tensor. `m ← β₁m + (1−β₁)g`, `v ← β₂v +
# (1−β₂)g²`, corrected by `1 − β^step` when used (but returned uncorrected).
# `p` shrinks by `lr · weight_decay · p` and moves by `lr · m̂ / (√v̂ + eps)`.
# Return new `p, m, v`; leave the arguments alone. The first step moves a
# weight by almost exactly lr against the sign of its gradient, whatever the
# gradient's size.

# %%
# EXERCISE adamw-step

# %%
# CHECK adamw-step

# %% [markdown]
# Your function against PyTorch's optimizer, on the whole model: same
# gradients, one step each. Matrices decay, norm weights do not: they start
# at one, and a scale pulled to zero switches its channel off.

# %% tags=["nbval-check-output"]
from minids3.train import build_optimizer

mine.loss(inputs, targets).backward()
stepped = {}
with torch.no_grad():
    for name, p in mine.named_parameters():
        zero = torch.zeros_like(p)
        decay = 0.1 if p.ndim == 2 else 0.0
        stepped[name], _, _ = adamw_step(
            p.detach(), p.grad, zero, zero, step=1, lr=2e-3,
            weight_decay=decay)
build_optimizer(mine, lr=2e-3).step()
gap = max((stepped[name] - p).abs().max().item()
          for name, p in mine.named_parameters())
print("largest difference of any weight is below 1e-6:", gap < 1e-6)

# %% [markdown]
# ## 2.8 A plan for the learning rate
#
# The step size follows a plan: a short ramp, because the first gradients come
# from random weights; a plateau; then half a cosine down, so that the end is
# fine work. DeepSeek-V3's plan has the same three parts, and two constant
# rates at the end (TR section 4.2); on its scale the ramp of 2,000 steps
# is too short to see.

# %%
from minids3.train import TrainConfig, Trainer, evaluate

STEPS, SHORT, LR = 450, 120, 5e-3
plan = TrainConfig(steps=STEPS, batch_size=BATCH, seq_len=SEQ, lr=LR,
                   warmup_steps=30, decay_start=STEPS // 4, min_lr=LR / 20,
                   eval_every=50, eval_batches=8, seed=0)

t = np.linspace(0, 14.8, 1200)  # trillions of tokens, facts from TR
v3 = np.where(t < 10, 2.2e-4, 0.0)
fall = (t >= 10) & (t < 14.3)
v3[fall] = 2.2e-5 + 0.5 * (2.2e-4 - 2.2e-5) * (
    1 + np.cos(np.pi * (t[fall] - 10) / 4.3))
v3[(t >= 14.3) & (t < 14.633)] = 2.2e-5
v3[t >= 14.633] = 7.3e-6

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.8))
axes[0].plot([plan.lr_at(s) for s in range(plan.steps)], lw=2)
axes[0].set(title="this notebook", xlabel="training step",
            ylabel="learning rate")
axes[1].plot(t, v3, lw=2, color=viz.COLORS["published"])
axes[1].set(title="DeepSeek-V3 (TR 4.2)", ylabel="learning rate",
            xlabel="tokens (trillions)")
fig.tight_layout()
viz.show(fig, alt="Two learning-rate plans: a ramp, a plateau and a cosine "
         "fall; DeepSeek-V3's adds two constant rates at the end.",
         dpi=88)

# %% [markdown]
# ## 2.9 Train it, beside a cheat
#
# Two models, same seed, same batches, same plan. One has your attention. The
# other has the unmasked `leaky_attention` from section 2.3. Both train for
# the same few steps first.
#
# **Predict**, and write it down: which of the two has the lower loss? Can
# either of them get below the entropy floor?

# %%
def new_run(attend):
    torch.manual_seed(plan.seed)
    model = MyTransformer(cfg, attend)
    return Trainer(model, plan, train_batches, valid_batches)


honest, leaky = new_run(causal_attention), new_run(leaky_attention)
for run in (honest, leaky):
    run.fit(until=SHORT)

# %% tags=["fold"]
def loss_axes(last, names):
    """Axes with a logarithmic loss and the marks of section 2.0."""
    fig, ax = plt.subplots(figsize=(8.2, 4))
    for name, style in zip(names, (":", "-.", (0, (6, 3)), "--")):
        nats = MARKS[name]
        floor_line = name == "entropy floor"
        color = viz.COLORS["floor" if floor_line else "muted"]
        ax.axhline(nats, color=color, ls=style, lw=1.4)
        ax.annotate(f"{name} {nats:.2f}", (1.01, nats), va="center",
                    xycoords=("axes fraction", "data"), color=color)
    ax.set(xlabel="training step",
           ylabel="loss (nats per token, log scale)",
           yscale="log", xlim=(0, last))
    ax.set_yticks([0.25, 0.5, 1, 2, 4, 8], "0.25 0.5 1 2 4 8".split())
    ax.minorticks_off()
    return fig, ax


fig, ax = loss_axes(SHORT, ("uniform, ln V", "pairs", "entropy floor"))
for run, name, role in ((honest, "your mask", "ours"),
                        (leaky, "leaky mask", "control")):
    ax.plot(run.history.steps, run.history.train_loss, lw=1.6,
            color=viz.COLORS[role], label=name)
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
below = leaky.history.train_loss[-1]
viz.show(fig, alt=f"Training loss over {SHORT} steps. The leaky model "
         f"falls through the entropy floor to {below:.2f} nats; the honest "
         f"one is at {honest.history.train_loss[-1]:.2f}, above the floor.")
print(f"leaky  {leaky.history.train_loss[-1]:.2f}   "
      f"honest {honest.history.train_loss[-1]:.2f}   "
      f"floor {MARKS['entropy floor']:.2f} nats per token")

# %% [markdown]
# On paper the leaky model wins by a landslide: it went *through* the floor.
# With real text nobody would know the floor, and the curve would look like a
# triumph. Here it is a proof of fraud, since nothing honest beats the entropy
# of the source. Does validation help? It leaks the same way:

# %%
for name, run in (("leaky", leaky), ("honest", honest)):
    nats = evaluate(run.model, valid_batches, 4)
    print(f"{name:7} validation {nats:.2f}")

# %% [markdown]
# Now let both write. While generating there is no next token to peek at.

# %%
@torch.no_grad()
def write(model, prompt, n=60):
    """Continue a prompt greedily; recomputes everything, needs no cache."""
    ids = torch.tensor([tok.encode(prompt, bos=True)])
    start = ids.shape[1]
    for _ in range(n):
        best = model(ids)[0, -1].argmax()
        if best == tok.eos_id:
            break
        ids = torch.cat((ids, best.view(1, 1)), 1)
    return tok.decode(ids[0, start:].tolist())


PROMPT = "One morning, Mira the fox left a red lantern in the kitchen."
for name, run in (("LEAKY", leaky), ("YOURS", honest)):
    print(f"{name} after {SHORT} steps:\n{PROMPT}"
          f"{write(run.model, PROMPT)}\n")

# %% [markdown]
# A loss cannot tell copying from predicting. The leaky model learned to read
# the answer off the next position; take that away and it has nothing to say.
# Yours is young, but what it learned is the right thing. Let it finish: the
# rest of the plan, a bit more than a minute.

# %%
history = honest.fit()
model = honest.model
final = evaluate(model, valid_batches, len(valid_batches))
floor = MARKS["entropy floor"]
print(f"validation {final:.3f}   floor {floor:.3f}   "
      f"above it {final - floor:.3f} nats per token")

# %% [markdown]
# **The band.** Over three seeds the model ended 0.24 to 0.25 nats per token
# above the floor (this cell and the two before it, run with `seed=0, 1, 2` in
# `plan`); the notebook asks for less than **0.3**. If yours is
# outside, something is wrong with it, or with us.

# %% tags=["nbval-check-output"]
BAND = 0.3
print("started within 0.1 of ln V:", abs(start_loss - math.log(V)) < 0.1)
print("ends within the band:", 0 < final - floor < BAND)
print("the cheat is below the floor:", below < floor)

# %% tags=["fold"]
fig, ax = loss_axes(STEPS, MARKS)
ax.plot(history.steps, history.train_loss, lw=0.8, alpha=0.6,
        color=viz.COLORS["train"], label="training")
ax.plot(history.valid_steps, history.valid_loss, "o-", ms=4,
        color=viz.COLORS["valid"], label="validation")
ax.axhspan(floor, floor + BAND, color=viz.COLORS["floor"], alpha=0.2,
           label=f"the band: up to {BAND} above the floor")
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
viz.show(fig, alt=f"Loss by step: from {history.train_loss[0]:.2f} "
         f"at ln V down past the tables to {final:.2f} on validation, "
         f"inside the band of {BAND} above the floor of {floor:.2f}.")

# %% [markdown]
# Within about fifty steps the curve passes the table of pairs, and from there
# on it gains from context alone. What is left? Ask each domain for itself:
# our generator knows the exact entropy of every document it wrote.

# %%
from minids3.data import DOMAINS


@torch.no_grad()
def domain_loss(name, n=24):
    """Loss and floor of n unseen documents of a domain, in nats."""
    docs = valid_split.only(name)
    nats = count = 0
    for i in range(n):
        doc = docs.document(i).long()[None]
        predicted = doc.shape[1] - 1
        nats += lm_loss(model(doc[:, :-1]), doc[:, 1:]).item() * predicted
        count += predicted
    return nats / count, docs.bits[:n].sum().item() * math.log(2) / count


by_domain = {name: domain_loss(name) for name in DOMAINS}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 2.9))
for row, (name, (nats, low)) in enumerate(by_domain.items()):
    first = row == 0
    ax.barh(row - 0.19, nats, 0.36, color=viz.COLORS["ours"],
            label="your model" if first else None)
    ax.barh(row + 0.19, low, 0.36, color=viz.COLORS["floor"],
            label="exact entropy" if first else None)
    ax.annotate(f"{nats:.2f}, floor {low:.2f}", (nats, row - 0.19), (5, 0),
                textcoords="offset points", va="center", fontsize=8)
ax.set_yticks(range(len(DOMAINS)), DOMAINS)
ax.set_xlabel("loss on unseen documents (nats per token)")
ax.legend(loc="lower right")
ax.invert_yaxis()
ax.margins(x=0.2)
ax.grid(axis="y", visible=False)
viz.show(fig, alt="Loss and floor by domain: " + "; ".join(
    f"{name} {nats:.2f} against {low:.2f}"
    for name, (nats, low) in by_domain.items()) + " nats per token.")

# %% [markdown]
# And inside a document? Each token below is shaded by what it cost the model
# (hover to see the nats). Free choices of our generator, such as the digits
# of the question, cost and must cost: they *are* the entropy. A shaded digit
# further down is another matter. It is copied or computed from the question,
# so its floor is zero, and the model does not see it coming.

# %%
doc = valid_split.only("arithmetic").document(0).long()
with torch.no_grad():
    logp = model(doc[None, :-1])[0].log_softmax(-1)
nats = -logp.gather(-1, doc[1:, None])[:, 0]
viz.token_strip([tok.decode([i]) for i in doc[1:-1].tolist()],
                nats[:-1].tolist(), high=3.0)

# %% [markdown]
# ## 2.10 From logits to a choice: temperature and top-p
#
# `write` always took the likeliest token. The model gives a distribution, and
# a text that is drawn from it is another one each time, as the corpus is.
# Two settings tame the draw. **Temperature** divides the logits: below 1 the
# likely become likelier, at 0 only the best is left. **Top-p** drops the
# tail: the smallest set of tokens that holds the share p of the probability
# stays (*nucleus* sampling).

# %% [markdown]
# EXERCISE text
# ### Exercise: what to draw from
#
# Write `next_token_probs`. `logits` is `[..., V]`; return probabilities of
# the same shape. First divide by `temperature`; at 0 the likeliest token gets
# 1 and the others 0. Then go through the tokens from the likeliest on until
# their sum reaches `top_p`: those stay, the one that reaches it included,
# the others get 0, and what is left is scaled to sum to 1. Every position has
# a set of its own. So the probabilities 0.05, 0.5, 0.3 and 0.15 become 0,
# 0.625, 0.375 and 0 with top-p 0.7.

# %%
# EXERCISE next-token

# %%
# CHECK next-token

# %% [markdown]
# Here is how your model opens a story. **Predict:** which setting leaves the
# fewest tokens possible, and which leaves all of them?

# %%
with torch.no_grad():
    opening = tok.encode("One morning, Mira the fox left a", bos=True)
    ids = torch.tensor([opening])
    next_logits = model(ids)[0, -1]
order = next_logits.argsort(descending=True)[:12]
names = [repr(tok.decode([i])) for i in order.tolist()]

# %% tags=["fold"]
def bars(ax, temperature, top_p):
    probs = next_token_probs(next_logits, temperature, top_p)
    ax.bar(range(12), probs[order], color=viz.COLORS["ours"])
    ax.set_xticks(range(12), names, rotation=60, ha="right", fontsize=7)
    ax.set_ylim(0, 0.8)
    ax.set_title(f"T = {temperature}, top-p = {top_p}: "
                 f"{int((probs > 0).sum())} possible", fontsize=9)


fig, axes = plt.subplots(1, 3, figsize=(9.8, 3.2), sharey=True)
for ax, setting in zip(axes, ((0.5, 1.0), (1.0, 1.0), (1.0, 0.8))):
    bars(ax, *setting)
axes[0].set_ylabel("probability of the next token")
fig.tight_layout()
viz.show(fig, alt="Probabilities of the twelve likeliest next tokens after "
         "a story prompt, at temperature 0.5, at 1, and at 1 with top-p "
         "0.8, where the tail is cut off.", dpi=88)

# %% [markdown]
# A temperature makes the tail thin and leaves it there; only top-p takes it
# away. Over 2,048 tokens a thin tail still adds up, and one odd word puts the
# rest of a text off course.
#
# **Play.** The same with sliders.

# %% tags=["nbval-ignore-output"]
def next_token(temperature=1.0, top_p=1.0):
    """Probabilities of the twelve likeliest next tokens."""
    fig, ax = plt.subplots(figsize=(7, 3))
    bars(ax, round(temperature, 2), round(top_p, 2))
    ax.set_ylabel("probability")
    fig.tight_layout()
    return fig


viz.play(next_token, temperature=(0.0, 2.0, 0.1), top_p=(0.05, 1.0, 0.05))

# %% [markdown]
# ## 2.11 The model writes
#
# Now text, drawn token by token from your distribution. Everything in it is
# yours: attention, loss, optimizer, weights, and the choice.

# %%
@torch.no_grad()
def draw(model, prompt, n, temperature, top_p, seed):
    """Continue a prompt by draws; recomputes everything, needs no cache."""
    dice = torch.Generator().manual_seed(seed)
    ids = torch.tensor([tok.encode(prompt, bos=True)])
    start = ids.shape[1]
    for _ in range(n):
        probs = next_token_probs(model(ids)[:, -1], temperature, top_p)
        token = torch.multinomial(probs, 1, generator=dice)
        if token == tok.eos_id:
            break
        ids = torch.cat((ids, token), 1)
    return tok.decode(ids[0, start:].tolist())


PROMPTS = {
    "stories": PROMPT,
    "arithmetic": "Add. Q: 47 + 28 = ?",
    "code": "def count_above(numbers):",
    "facts": "Ask: Who rules Feldra?",
}
for name, prompt in PROMPTS.items():
    text = draw(model, prompt, 90, temperature=0.7, top_p=0.95, seed=1)
    print(f"--- {name}\n{prompt}{text}\n")

# %% [markdown]
# Grammar, layout and the names of this small world are right. What fails is
# what has to be carried over a distance: who is in the story, what was left
# where, the digits of a sum. The figures above said so in numbers, and the
# later notebooks go after it.
#
# And the **control**: what if nobody tames the draw? Your weights fit the
# library's decoder, so they can move there. Its `generate` keeps the keys and
# values of the past (notebook 16 is about that cache), and so it does not
# start over at every token as `draw` does. **Predict:** which of the three
# falls apart?

# %%
from minids3.infer import generate

theirs.load_state_dict(model.state_dict())
same = generate(theirs, tok, PROMPT, max_new_tokens=90, temperature=0.7,
                top_p=0.95, seed=1) == draw(model, PROMPT, 90, 0.7, 0.95, 1)
print(f"same seed, same text as the library's: {same}\n")
for temperature, top_p in ((1.0, 1.0), (1.6, 1.0), (1.6, 0.8)):
    text = generate(theirs, tok, PROMPT, max_new_tokens=50,
                    temperature=temperature, top_p=top_p, seed=1)
    print(f"--- T = {temperature}, top-p = {top_p}\n{PROMPT}{text}\n")

# %% [markdown]
# The hot draw reaches into a tail of two thousand tokens and soon leaves the
# language. With the tail cut off, the same temperature writes sentences.
#
# ## 2.12 The Bill
#
# What would this recipe cost at the size in the article? Training a weight on
# a token takes 6 FLOPs: a multiply and an add forward, twice that backward.
# So N parameters on D tokens take **6ND**. The rule forgets attention, whose
# scores are products of activations and have no weights, and it counts the
# embedding, which is a look-up. The library counts both properly.

# %% tags=["nbval-check-output"]
from minids3.sim import flops, parameters

v3 = get_config("v3_671b")
twin = parameters.dense_twin(v3)  # as large, but one FFN for every token
six_n = 6 * parameters.total_parameters(twin)
print(f"dense 671B, 6N:            {six_n / 1e9:8.1f} GFLOP per token")
for mask in ("none", "causal", "full"):
    exact = flops.training_flops_per_token(twin, 4096, mask)
    print(f"counted, attention {mask:7} {exact / 1e9:8.1f}")
small = flops.training_flops_per_token(cfg, SEQ, "causal")
print(f"your model:                {small / 1e9:8.4f}")

# %%
from minids3.sim import bill

bill.show(upto="02")

# %% tags=["fold"]
fig = bill.figure(upto="02")
viz.show(fig, alt="Bars of GPU-hours from zero: the dense 671B model at "
         "about 41.5 million hours, by 6ND and counted, and a dashed line "
         "close to the left end at the published 2.788 million.")

# %% [markdown]
# Fifteen times too expensive. At this size the correction to 6ND is under one
# percent; at longer texts or smaller widths it is not. The factor of fifteen
# has to come from somewhere, and the next notebooks go looking.
#
# ## The article, so far
#
# Claim 3 has a yardstick now: \$83 million for the plain way, counted and not
# estimated. Nothing else has been decided yet.
#
# ## What became of it
#
# The decoder that you built is still the frame of V3.2, of V4 and of most
# open models of 2026. Two parts of it have moved. The **optimizer**: Muon,
# which makes a matrix's update orthogonal, is in PyTorch as
# `torch.optim.Muon` (documentation of 2.14), and Hugging Face's documentation
# of V4 (April 2026) names it for the weight matrices. And the **residual
# stream**: mHC (arXiv 2512.24880, December 2025) runs several streams side by
# side and mixes them by doubly stochastic matrices; V4 has four. Notebook 20
# will try both.
#
# ## What this does not show
#
# - The corpora are ours: a grammar with a few hundred words. Readable text
#   comes cheap there, and a band above *this* floor says nothing about
#   English.
# - The mask test was one model and one kind of leak. Real leaks are subtler:
#   a normalisation over positions, a tokenizer that saw the test set, experts
#   chosen by looking at the whole batch (notebook 04).
# - Packed documents see each other here, as in DeepSeek-V3's pre-training
#   (TR section 4.1); nothing stops a story from reading the sum before it.
# - The GPU-hours assume that this dense model would reach the rate of another
#   one, Llama-3.1-405B in BF16 on H100s (second-hand). Nobody has trained it.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 2 (architecture),
#   section 4.2 (hyper-parameters and learning-rate plan), table 1 (cost).
# - Vaswani et al. 2017, arXiv 1706.03762: section 3.2 (attention).
# - Su et al. 2021, arXiv 2104.09864: section 3.2 (RoPE).
# - Shazeer 2020, arXiv 2002.05202: section 2 (SwiGLU).
# - Loshchilov and Hutter 2019, arXiv 1711.05101: algorithm 2 (AdamW).
# - Holtzman et al. 2020, arXiv 1904.09751: section 3.1 (nucleus sampling).
# - Grattafiori et al. 2024, *The Llama 3 herd of models*, arXiv 2407.21783:
#   the rate of the baseline (second-hand here).
#
# **Next:** [03 · Latent attention](03_latent_attention.ipynb), where the
# memory of all those keys and values becomes the problem.
