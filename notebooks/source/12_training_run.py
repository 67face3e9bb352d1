# %% [markdown]
# # 12 · Everything at once: the training run
#
# {{badge}}
#
# > **Claim.** The whole recipe (latent attention, experts balanced by
# > biases, an MTP module, FP8 products) trains from nothing on 120,000
# > tokens of fresh text to within **0.9 nats** of the floor that no model
# > can beat, and within **0.06 nats** of the same run in BF16 with each of
# > three seeds, which is less than two seeds of one run differ by. Killed in
# > the middle and resumed, it is the run that was never killed,
# > **bit for bit**; leave one piece out of the checkpoint and it is not.
# > And 2.664 million GPU-hours, DeepSeek-V3's pre-training, follow from its
# > published step time and from its FLOPs, to within half a percent.
#
# **Takes** about 100 minutes to work through, 65 of them for the exercises;
# 'Run all' about 5 minutes on two CPU cores. **Needs** notebooks 03 to 06
# and 10. **Afterwards** you can plan a run in tokens, accumulate a large
# batch exactly, say what a checkpoint has to hold and prove it, tell a loss
# spike from a bad batch, and compute how well a cluster was used.

# %%
# SETUP

# %% [markdown]
# ## 12.0 A step costs 23 dollars
#
# The report says that DeepSeek-V3 saw 14.8 trillion tokens in sequences of
# 4,096, with batches that grew from 3,072 to 15,360 sequences over the
# first 469 billion tokens (TR section 4.2). ISCA table 4 says how long a
# step took: 19.926 seconds on 2,048 GPUs.
#
# **Guess before you run:** how many optimizer steps is that? Ten thousand,
# a quarter of a million, ten million?

# %% tags=["nbval-check-output"]
from minids3.train import TrainConfig
from minids3.train.schedule import Schedule

v3 = TrainConfig(
    tokens=int(14.8e12), seq_len=4096,
    batch_size=Schedule(((469e9, 15360, "linear"),), start=3072))
V3_STEPS = v3.total_steps()
SECONDS, GPUS, PRICE = 19.926, 2048, 2.0  # ISCA table 4, TR table 1
step_price = SECONDS * GPUS / 3600 * PRICE
print(f"optimizer steps:       {V3_STEPS:,}")
print(f"one full step:         {15360 * 4096 / 1e6:.1f}M tokens, "
      f"{step_price:.2f} dollars")
print(f"a night of ten hours:  {10 * GPUS * PRICE:,.0f} dollars")

# %% [markdown]
# A quarter of a million steps, one after the other, 54 days long. Each
# needs the one before it. A night that has to be done again, because
# nobody kept what was needed to go on, costs as much as a car. So this
# notebook has two halves: how to make a long run *fast and good*, and how
# to make it *survive*.
#
# (The report gives the ends of the batch ramp and says "gradually"; that
# it is a straight line in tokens is our assumption.)
#
# ## 12.1 Four schedules, and one clock
#
# Four settings of DeepSeek-V3 change while it trains (TR section 4.2):
#
# | what | from the start | then | at the end |
# |---|---|---|---|
# | learning rate | up to 2.2e-4 in 2,000 steps | constant until 10T tokens, a cosine to 2.2e-5 until 14.3T | 2.2e-5 for 333B tokens, 7.3e-6 for the last 167B |
# | sequences in a batch | 3,072 | up to 15,360 over 469B tokens | 15,360 |
# | λ, the weight of the MTP loss | 0.3 | | 0.1 from 10T tokens on |
# | γ, the speed of the biases | 0.001 | | 0 from 14.3T tokens on |
#
# All of them are told in **tokens seen**, and not in steps. While the batch
# grows, a step is no fixed amount of anything; a token is.

# %% [markdown]
# EXERCISE text
# ### Exercise: a value over tokens
#
# Write `value_at`. A schedule is a list of phases `(end, value, shape)`.
# "constant" holds `value` throughout; "linear" and "cosine" lead from the
# value that held before to `value`, the cosine along half a wave, flat at
# both ends. Only the first phase begins at `start`, at 0 tokens.

# %%
# EXERCISE run-schedule

# %%
# CHECK run-schedule

# %% [markdown]
# Now all four, from the published numbers. How many tokens are the 2,000
# steps of the warm-up? That depends on the batch, which grows meanwhile, so
# we walk through them. **Predict:** at which two marks do several of the
# four curves change together?

# %%
ROWS = [(469e9, 15360, "linear")]
tokens = 0
for _ in range(2000):
    tokens += round(value_at(tokens, ROWS, 3072)) * 4096
WARMUP = tokens
V3_PLAN = {
    "learning rate": ([(WARMUP, 2.2e-4, "linear"),
                       (10e12, 2.2e-4, "constant"),
                       (14.3e12, 2.2e-5, "cosine"),
                       (14.633e12, 2.2e-5, "constant"),
                       (14.8e12, 7.3e-6, "constant")], 0.0),
    "sequences in a batch": (ROWS, 3072),
    "weight of the MTP loss": ([(10e12, 0.3, "constant"),
                                (14.8e12, 0.1, "constant")], 0.0),
    "speed of the biases": ([(14.3e12, 0.001, "constant"),
                             (14.8e12, 0.0, "constant")], 0.0),
}
print(f"the warm-up of 2,000 steps takes {WARMUP / 1e9:.1f}B tokens, "
      f"{WARMUP / 14.8e12:.2%} of the run")

# %% tags=["fold"]
fig, axes = plt.subplots(2, 2, figsize=(10, 4.4), sharex=True)
seen = np.concatenate([np.linspace(0, 0.5e12, 300),
                       np.linspace(0.5e12, 14.8e12 - 1, 1500)])
for ax, (name, (phases, start)) in zip(axes.flat, V3_PLAN.items()):
    ax.plot(seen / 1e12, [value_at(t, phases, start) for t in seen],
            color=viz.COLORS["published"])
    for mark in (10, 14.3):
        ax.axvline(mark, color=viz.COLORS["muted"], ls=":", lw=1)
    ax.set(title=name)
    ax.set_ylim(bottom=0)
for ax, word in zip(axes.flat, ("rate", "sequences", "λ", "γ")):
    ax.set_ylabel(word)
for ax in axes[1]:
    ax.set_xlabel("tokens seen (trillions)")
fig.tight_layout()
viz.show(fig, dpi=88, alt="DeepSeek-V3's four schedules over 14.8 trillion "
         "tokens. The learning rate rises at once to 2.2e-4, is constant "
         "to 10, falls along a cosine to 14.3 and has two small steps. The "
         "batch reaches 15,360 sequences after 0.469. The MTP weight drops "
         "from 0.3 to 0.1 at 10, the speed of the biases from 0.001 to 0 "
         "at 14.3 trillion.")

# %% [markdown]
# At 10T tokens the rate begins to fall and the MTP loss loses two thirds of
# its weight. At 14.3T the rate is down to a tenth and the experts' biases
# are held still. The last 500 billion tokens, 3.4 % of the run, are
# for settling down.
#
# ## 12.2 The same plan, a hundred million times smaller
#
# Our run has the same parts. The architecture is that of the workbook's
# `mini`, narrower: latent attention, 8 routed experts and a shared one in
# two of three layers, 2 of them chosen within 2 of 4 groups, and an MTP
# module. The schedules have V3's shapes; ramp and decay take a larger
# share, since a run of a few hundred steps has no time for a plateau of
# 67 %.
#
# The text is drawn while the run goes on, from the four grammars of notebook
# 01 and a fifth, notes with numbers to look up. Nothing is gone over twice:
# what recurs, a short sum now and then, does so by the grammar's own
# chance. No document of the held-out set is ever drawn. So there is nothing
# to learn by heart, and the floor is exact.

# %%
from minids3.bench import training  # its settings, to compare with
from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_tokenizer
from minids3.data.fresh import FreshBatches, stream_validation
from minids3.model import Transformer
from minids3.train import Trainer

SEQ, TOKENS, LR = 128, 120_000, 5e-3
small = dict(
    hidden_size=96, intermediate_size=192, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, q_lora_rank=48,
    kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=64,
    max_position_embeddings=256)
plan = TrainConfig(
    tokens=TOKENS, seq_len=SEQ, ema=0.95,
    lr=Schedule(((0.06 * TOKENS, LR, "linear"),
                 (0.5 * TOKENS, LR, "constant"),
                 (0.95 * TOKENS, 0.1 * LR, "cosine"),
                 (0.98 * TOKENS, 0.1 * LR, "constant"),
                 (1.0 * TOKENS, 0.033 * LR, "constant"))),
    batch_size=Schedule(((0.2 * TOKENS, 5, "linear"),), start=1),
    mtp_weight=Schedule(((0.5 * TOKENS, 0.3), (TOKENS, 0.1))),
    bias_update_speed=Schedule(((0.95 * TOKENS, 0.01), (TOKENS, 0.0))))

tokenizer = load_tokenizer()
held_out, held_out_texts = stream_validation(tokenizer)
FLOOR = entropy_floor(held_out)


def start(model=(), seed=0, out_dir=None, data=None, **changes):
    """A run before its first step; `model` and `changes` differ from it."""
    torch.manual_seed(seed)
    cfg = plan.replace(seed=seed, eval_batches=8, **changes)
    text = FreshBatches(tokenizer, 8, SEQ, seed=seed,
                        held_out=held_out_texts)
    sizes = {**small, **dict(model)}
    return Trainer(Transformer(get_config("mini", **sizes)), cfg,
                   text if data is None else data,
                   PackedBatches(held_out, 8, SEQ, shuffle=False),
                   out_dir=out_dir, floor=FLOOR)


# %% tags=["nbval-check-output"]
from minids3.sim import parameters

cfg = get_config("mini", **small)
print(f"weights {parameters.total_parameters(cfg):,}, activated per token "
      f"{parameters.activated_parameters(cfg):,}")
print(f"{plan.total_steps()} steps; the batch grows from "
      f"{plan.batch_rows(0)} to {plan.batch_rows(TOKENS)} rows of {SEQ}")
print(f"the floor of the held-out text: {FLOOR:.3f} nats per token")
print("same settings as the recorded runs:",
      plan.flat() == training.PLAN.flat() and small == training.MODEL)

# %% [markdown]
# ## 12.3 One step: a limit on its length
#
# A batch that is unlike the others can have a gradient ten times as long as
# usual, and one step along it can undo an hour. The usual protection is to
# **clip** (TR section 4.2: at 1.0): if all gradients together, taken as one
# long vector, are longer than the limit, all of them are scaled down by the
# same factor. The step gets shorter; its direction stays.

# %% [markdown]
# EXERCISE text
# ### Exercise: clip by the global norm
#
# Write `clip_gradients`. `grads` is a list of tensors of any shapes, and
# `None` where a parameter took no part (an expert that nobody chose). The
# norm is the root of the sum of the squares of **all** their elements.

# %%
# EXERCISE run-clip

# %%
# CHECK run-clip

# %% [markdown]
# Try it on a real gradient, the first of our model. Beside it the mistake
# that looks harmless: clip every tensor by its own norm. **Predict** what
# that does to the *angle* between the step and the true gradient.

# %%
probe = start()
inputs, targets = probe.train_batches.rows(0, 8)
probe.model.loss(inputs, targets).backward()
grads = [p.grad for p in probe.model.parameters()]
clipped, norm = clip_gradients(grads, 0.1)
apart = [None if g is None else clip_gradients([g], 0.1)[0][0]
         for g in grads]
there = [p.grad for p in probe.model.parameters() if p.grad is not None]
theirs = torch.nn.utils.get_total_norm(there).item()


def degrees(a, b):
    """Angle between two lists of tensors, each taken as one vector."""
    a, b = (torch.cat([g.flatten() for g in x if g is not None]).double()
            for x in (a, b))
    return math.degrees(math.acos(min(1.0, F.cosine_similarity(
        a, b, dim=0).item())))


print(f"norm {float(norm):.4f}, PyTorch says {theirs:.4f}")
print(f"{sum(g is None for g in grads)} of {len(grads)} parameters have no "
      "gradient: those of the MTP module, whose loss we left out")
print(f"clipped together: turned by {degrees(clipped, grads):.1f} degrees")
print(f"clipped apart:    turned by {degrees(apart, grads):.1f} degrees")

# %% [markdown]
# ## 12.4 One step: a batch that does not fit
#
# V3's batch of 62.9 million tokens fits on no machine; a run on 2,048 GPUs
# takes it in pieces, and so does a laptop. Gradients add up, so a large
# batch can be passed through in **micro-batches** and the optimizer called
# once. It sounds trivial, and there are three ways to get it wrong:
#
# - a *mean of means* is not the mean, if the pieces have different numbers
#   of targets (padding, masked questions in fine-tuning);
# - a piece with *no* target has a mean of 0/0, which is NaN, and NaN times
#   zero is NaN;
# - the experts' biases (notebook 05) are to move **once per optimizer
#   step** by the load of the whole batch, and not once per piece.
#
# Hugging Face's own `Trainer` made the first mistake until October 2024
# (transformers, pull request 34191): it is easy to make, and no curve shows
# it.

# %% [markdown]
# EXERCISE text
# ### Exercise: the large batch from small passes
#
# Write `one_step`. Each pass brings the gradient of *its own mean* loss,
# its number of targets n, and its load. Return the gradient of the mean
# over **all** targets, and the bias after one update
# `b + speed · sign(mean load − load)` (notebook 05).

# %%
# EXERCISE run-accumulate

# %%
# CHECK run-accumulate

# %% [markdown]
# The library's `Trainer` does the same. Test it from outside: two runs of
# the same seed on the same rows, some of whose targets are masked. One
# takes each batch whole, the other row by row. **Predict** how far apart
# the weights are after five steps, and whether the biases agree exactly.


# %%
class HalfMasked:
    """Fresh text in which every second row keeps a tenth of its targets."""

    def __init__(self):
        self.text = FreshBatches(tokenizer, 8, SEQ, seed=9)
        self.fingerprint = "half masked"

    def rows(self, first, count):
        inputs, targets = self.text.rows(first, count)
        targets[::2, : 9 * SEQ // 10] = -100
        return inputs, targets


def five_steps(**changes):
    run = start(data=HalfMasked(), precision="fp32",
                batch_size=Schedule(((TOKENS, 4),)), **changes)
    before = torch.cat([p.detach().flatten()
                        for p in run.model.parameters()])
    for _ in range(5):
        run.train_step()
    weights = torch.cat([p.detach().flatten()
                         for p in run.model.parameters()])
    biases = torch.cat([b for n, b in run.model.named_buffers()
                        if n.endswith("expert_bias")])
    return weights - before, biases, run


whole, whole_bias, _ = five_steps()
split, split_bias, run = five_steps(micro_batch_size=1)
print("difference of the two ways, relative to the way gone: "
      f"{((whole - split).norm() / whole.norm()).item():.1e}")
print("biases equal:", torch.equal(whole_bias, split_bias))

# %% [markdown]
# Now the wrong way, on one batch: four passes, weighed alike. The
# difference is not a rounding error.

# %%
def mean_gradient(model, rows):
    """Gradient of the mean loss over `rows` of the masked text, flat."""
    model.zero_grad()
    inputs, targets = HalfMasked().rows(0, 4)
    model.loss(inputs[rows], targets[rows]).backward()
    grad = torch.cat([p.grad.flatten() for p in model.parameters()
                      if p.grad is not None])
    return grad, int((targets[rows] >= 0).sum())


true_gradient, _ = mean_gradient(run.model, slice(0, 4))
nobody = torch.zeros(8, dtype=torch.int64)
passes = [(*mean_gradient(run.model, slice(i, i + 1)), nobody)
          for i in range(4)]
yours, _ = one_step(passes, torch.zeros(8), 0.01)
naive = sum(g for g, _, _ in passes) / 4
size = true_gradient.norm()
print("targets of the four passes:", [n for _, n, _ in passes])
print(f"yours against the whole batch:  "
      f"{((yours - true_gradient).norm() / size).item():.1e}")
print(f"a mean of means:                "
      f"{((naive - true_gradient).norm() / size).item():.2f}")

# %% [markdown]
# ## 12.5 A second model on the side
#
# V3 keeps an **exponential moving average** of its weights beside the run
# (TR section 3.2.3), in the CPU's memory, where it costs the GPUs nothing.
# The learning rate makes weights jitter around a good place; their average
# is nearer to its middle. So the average tells early how good the model
# *will* be once the rate has fallen.

# %% [markdown]
# EXERCISE text
# ### Exercise: the moving average
#
# Write `update_average`. With `decay` from the first step on, an average
# would for a long time consist of the random start; so the first updates
# take less of it: `d = min(decay, (1 + updates) / (10 + updates))`.

# %%
# EXERCISE run-average

# %%
# CHECK run-average

# %% [markdown]
# ## 12.6 The run
#
# Everything together: latent attention, experts and their biases, MTP, FP8
# products by V3's recipe. On a CPU the FP8 of notebook 10 is an emulation:
# every operand is rounded as the tensor core would round it, which takes
# time instead of saving it.
#
# The trainer writes a line per step into `log.jsonl`. `Watch` draws it
# while it grows; the next cell has it as a figure.
# **Guess** two things first: how far above the floor will it end? And which
# of the layers will be the hardest to balance?

# %% tags=["nbval-ignore-output"]
import tempfile
from pathlib import Path

from minids3.viz.training import Watch, dashboard, describe_run

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
fp8 = start(out_dir=folder / "fp8", precision="fp8", eval_every=77)
with Watch(folder / "fp8", title="the whole recipe, FP8"):
    fp8.fit()

# %% tags=["fold"]
from minids3.train.log import read_log

log = read_log(folder / "fp8" / "log.jsonl")
viz.show(dashboard(log, "the whole recipe, FP8"), dpi=80,
         alt=describe_run(log))

# %% [markdown]
# Read it from the top left. The loss is drawn as its distance from the
# floor, on a log scale, so that the last part of the way can be seen. The
# average (dashed) is *behind*: in so short a run the model learns faster
# than its average can follow. Look for it again in the long run of section
# 12.11. The map says how uneven each layer's load is; its last row is the
# MTP module, which has experts of its own.

# %%
last = [e for e in log if e["kind"] == "evaluation"][-1]
print(f"{last['tokens']:,} tokens: {last['loss'] - FLOOR:.3f} nats above "
      f"the floor, the average {last['ema_loss'] - FLOOR:.3f}")
print(f"second token accepted: {last['acceptance']:.0%}")

# %% [markdown]
# ## 12.7 What each part was good for
#
# Four more runs on the very same text. `BF16` differs from the run above in
# precision alone, and the three others from `BF16`: no balancing of the
# experts, no MTP module, and a **dense** model without experts whose
# feed-forwards cost the same FLOPs per token.
#
# **Predict** their order. Which of the four is worst?

# %%
from minids3.sim import flops

SAVE, LATE = 60, 120  # checkpoints that we shall need
PARTS = {  # changes of the model, and of the plan
    "BF16": ({}, dict(out_dir=folder / "bf16", save_every=SAVE, keep=9)),
    "no balancing": ({}, dict(bias_update_speed=0.0)),
    "no MTP": ({"num_nextn_predict_layers": 0}, {}),
    "dense": ({"num_nextn_predict_layers": 0, "n_routed_experts": 0}, {}),
}
RUNS = {"FP8": fp8}
for name, (model, changes) in PARTS.items():
    RUNS[name] = start(model, precision="bf16", **changes)
    RUNS[name].fit()
bf16 = RUNS["BF16"]

# %%
for name, each in RUNS.items():
    costs = flops.training_flops_per_token(each.model.config, SEQ)
    mtp = flops.training_flops_per_token(each.model.config, SEQ, mtp=True)
    print(f"{name:13} {each.history.valid_loss[-1] - FLOOR:.3f} nats above "
          f"the floor; {costs / 1e6:.2f} MFLOP a token, "
          f"{mtp / costs - 1:4.0%} more for MTP")

# %% [markdown]
# One seed is an anecdote. The same five runs were recorded with three seeds
# by `python -m minids3.bench training`.

# %%
from minids3.bench.records import recorded

found = recorded("training")
KEYS = dict(zip(RUNS, training.VARIANTS))
bands = {name: sorted(r["valid_loss"] - found["floor"]
                      for r in found["runs"] if r["variant"] == key)
         for name, key in KEYS.items()}
for name, seeds in bands.items():
    print(f"{name:13} {seeds[0]:.3f} to {seeds[-1]:.3f} nats above the "
          f"floor, {len(seeds)} seeds")

# %% tags=["fold"]
LOOKS = {"FP8": "ours", "BF16": "floor", "no balancing": "control",
         "no MTP": "published", "dense": "baseline"}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(1.35, 1))
for name, each in RUNS.items():
    loss = np.array(each.history.train_loss) - FLOOR
    smooth = np.convolve(loss, np.ones(9) / 9, "valid")
    axes[0].plot(np.array(each.history.tokens[4:-4]) / 1e3, smooth, lw=1.3,
                 color=viz.COLORS[LOOKS[name]],
                 ls="--" if name == "BF16" else "-", label=name)
axes[0].set_yscale("log")
axes[0].set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
axes[0].minorticks_off()
axes[0].set( xlabel="tokens seen (thousands)", title="this run",
            ylabel="training loss above the floor\n(nats, mean of 9 steps)")
axes[0].legend(fontsize=8)
for row, name in enumerate(RUNS):
    mine = RUNS[name].history.valid_loss[-1] - FLOOR
    color = viz.COLORS[LOOKS[name]]
    axes[1].plot(bands[name], [row] * len(bands[name]), "o", ms=6,
                 color=color, mfc="none")
    axes[1].plot(mine, row, "D", ms=5, color=color)
axes[1].set_yticks(range(len(RUNS)), RUNS)
axes[1].invert_yaxis()
axes[1].set(xlabel="held-out loss above the floor (nats)",
            title="diamonds: this run; circles: recorded")
fig.tight_layout()
viz.show(fig, dpi=88, alt="Left: training loss above the floor over tokens "
         "for five runs. Right: where they end, recorded seeds as circles: "
         + "; ".join(f"{n} {s[0]:.2f} to {s[-1]:.2f}"
                     for n, s in bands.items()) + " nats.")

# %% [markdown]
# Runs of one seed see the same text, so compare them seed by seed.

# %% tags=["nbval-check-output"]
def by_seed(name, key="valid_loss"):
    """A figure of each seed's run, in the order of the seeds."""
    rows = [r for r in found["runs"] if r["variant"] == KEYS[name]]
    return [r[key] for r in sorted(rows, key=lambda r: r["seed"])]


gaps = {name: [a - b for a, b in zip(by_seed(name), by_seed("BF16"))]
        for name in RUNS if name != "BF16"}
for name, three in gaps.items():
    print(f"{name:13} minus BF16:", "  ".join(f"{g:+.3f}" for g in three))
for name in ("BF16", "no balancing"):
    print(f"{name:13} MaxVio at the end:", by_seed(name, "max_violation"))
mine = fp8.history.valid_loss[-1] - FLOOR
print("FP8 ends within 0.9 nats of the floor, here and with each seed:",
      max(mine, bands["FP8"][-1]) < 0.9)
print("within 0.06 nats of BF16:", max(map(abs, gaps["FP8"])) < 0.06)
print("two seeds of BF16 differ by more than that:",
      bands["BF16"][-1] - bands["BF16"][0] > 0.06)
print("every difference changes its sign with the seed:",
      all(min(three) < 0 < max(three) for three in gaps.values()))

# %% [markdown]
# Three readings, from the safest to the least safe.
#
# - **Balance** shows in the load and not in the loss. Without the biases
#   the fullest expert has three times its share, with them 1.3 times; the
#   loss goes either way. On one CPU nobody waits for the fullest expert.
# - **Experts and MTP**: no difference was found. Look along the rows. With
#   the second seed everything that we took out or put in made the loss
#   worse; with the third, everything made it better. Had we shown you one
#   seed, you would have believed it. What experts are worth has to be
#   measured where it shows, as in notebook 04, and MTP pays in drafts,
#   which the run without it cannot make. Mind the price, too: the module
#   makes a training step of *this* model 64 % more expensive, since it
#   needs the output head again, a large part of so small a model. At
#   DeepSeek-V3's size it is 4 %.
# - **FP8**: the same. No difference was found, and one of 0.05 nats could
#   have been missed. Notebook 10 looks more closely.
#
# ## 12.8 kill -9
#
# Now for survival. A child process trains the BF16 run once more from the
# beginning and writes a checkpoint every ten steps. Somewhere in the middle
# of a step we kill it with the signal that no program can catch. What is
# left is a folder. We resume from it here, in another process, and go on to
# step 60.
#
# **Predict:** of the three files of that checkpoint, weights, optimizer and
# average, how many are the same *byte for byte* as those of the run above,
# which nobody killed?

# %%
import json
import os
import signal
import subprocess
import sys
import time

from minids3.train import latest_checkpoint

CHILD = """
import sys, torch
from minids3.bench import training
torch.set_num_threads(int(sys.argv[2]))
run = training.trainer("bf16", 0, sys.argv[1], save_every=10,
                       eval_batches=8)
run.fit(progress=False)
"""
killed = folder / "killed"
child = subprocess.Popen([sys.executable, "-c", CHILD, str(killed),
                          str(torch.get_num_threads())])
log_file, done = killed / "log.jsonl", 0
while done < 33 and child.poll() is None:
    time.sleep(0.05)
    if log_file.is_file():
        done = sum('"kind": "step"' in line
                   for line in log_file.read_text().splitlines())
os.kill(child.pid, signal.SIGKILL)
print("the child ended with signal", -child.wait())

# %%
left = latest_checkpoint(killed)
again = start(out_dir=killed, precision="bf16", save_every=SAVE)
again.resume(left)
print("resumed from", left.name)
again.fit(until=SAVE)


def digests(root):
    """SHA-256 of each file of the checkpoint of step 60."""
    state = root / f"step_{SAVE:08d}" / "state.json"
    return json.loads(state.read_text())["sha256"]


# %% tags=["nbval-check-output"]
for name, digest in digests(folder / "bf16").items():
    same = digests(killed)[name] == digest
    print(f"{name:24} the same, byte for byte: {same}")

# %% [markdown]
# All three. There is no trick in it, only two decisions. The data is a
# *function*: row number in, text out, so "where was I" is one number. And
# every schedule is a function of tokens, so "what was the rate" is another.
# What remains has to be written down.
#
# ## 12.9 What a checkpoint must hold
#
# Which things, exactly? Here is a training run small enough to read: a
# model of 4 experts with 6 weights each, AdamW, a learning rate with
# warm-up in tokens, a bias per expert, dropped inputs, masked rows, a
# moving average. Its whole state is in one dict.


# %%
def small_step(run):
    """One training step; changes what is in the dict `run`."""
    data = torch.Generator().manual_seed(run["rows"])
    x = torch.randn(16, 6, generator=data)
    counted = torch.rand(16, generator=data) > 0.3
    noise = torch.Generator()
    noise.set_state(run["rng"])
    dropped = x * (torch.rand(16, 6, generator=noise) > 0.1)
    run["rng"] = noise.get_state()

    chosen = (torch.sigmoid(x[:, :4]) + run["bias"]).argmax(1)
    error = (dropped * run["weights"][chosen]).sum(1) - x.sin().sum(1)
    error = error * counted
    run["loss"] = (error**2).sum().item() / counted.sum().item()
    run["grad"] = torch.zeros_like(run["weights"]).index_add(
        0, chosen, 2 * error[:, None] * dropped) / counted.sum()
    run["load"] = torch.bincount(chosen, minlength=4)

    run["rows"] += 16
    run["tokens"] += int(counted.sum())
    run["updates"] += 1
    lr = 0.05 * min(1.0, run["tokens"] / 400)
    run["m"].lerp_(run["grad"], 0.1)
    run["v"].lerp_(run["grad"] ** 2, 0.05)
    m_hat = run["m"] / (1 - 0.9 ** run["updates"])
    v_hat = run["v"] / (1 - 0.95 ** run["updates"])
    run["weights"] -= lr * m_hat / (v_hat.sqrt() + 1e-8)
    mean = run["load"].float().mean()
    run["bias"] += 0.02 * torch.sign(mean - run["load"])
    d = (1 + run["updates"]) / (10 + run["updates"])
    run["average"].lerp_(run["weights"], 1 - d)


# %% [markdown]
# To resume means: make a fresh run, put in what was kept, go on. If the
# resumed curve leaves the original, a piece is missing. Try it with the
# weights alone, as many a first checkpoint was written.

# %%
import copy

from minids3.course.exercises.nb12_training_run.small_run import new_run


def train_small(run, steps):
    """Losses, and the weights after each of `steps` steps."""
    losses, weights = [], []
    for _ in range(steps):
        small_step(run)
        losses.append(run["loss"])
        weights.append(run["weights"].clone())
    return losses, torch.stack(weights)


def resume_from(kept, steps=40):
    """Go on in a fresh run with what was kept."""
    return train_small({**new_run(77), **copy.deepcopy(kept)}, steps)


original = new_run(5)
before, _ = train_small(original, 40)
stopped = copy.deepcopy(original)
after, truth = train_small(original, 40)
resumed, _ = resume_from({"weights": stopped["weights"]})
print("loss of the next five steps")
print("  never stopped:      ", [f"{x:.3f}" for x in after[:5]])
print("  resumed, weights:   ", [f"{x:.3f}" for x in resumed[:5]])

# %% [markdown]
# EXERCISE text
# ### Exercise: what must not be forgotten
#
# Write `checkpoint`. It takes the dict of a run and returns a dict with
# **copies** of everything that a later step reads before it has written it,
# and nothing else: what every step makes anew need not be stored. Go
# through `small_step` line by line, with a pencil.

# %%
# EXERCISE run-checkpoint

# %%
# CHECK run-checkpoint

# %% [markdown]
# With your list the resumed run is the original. Take one piece out of it
# at a time. **Predict:** which missing piece shows latest, and which does
# not show in the weights at all?

# %%
kept = checkpoint(stopped)
_, mine = resume_from(kept)
gone = {}
for piece in kept:
    rest = {name: value for name, value in kept.items() if name != piece}
    _, weights = resume_from(rest)
    gone[piece] = (weights - truth).flatten(1).norm(dim=1)
print("your checkpoint, largest difference:",
      (mine - truth).abs().max().item())

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 3.4))
styles = ("-", "--", "-.", ":") * 3
shown = [n for n in gone if n != "weights"]
colors = [c for c in viz.PALETTE if c != viz.PALETTE[6]] * 2  # no yellow
for piece, style, color in zip(shown, styles, colors):
    line = gone[piece].clamp_min(1e-8)
    ax.plot(range(1, 41), line, style, lw=1.6, label=piece, color=color)
ax.set(yscale="log", xlabel="steps after resuming", ylim=(5e-9, 30),
       ylabel="distance of the weights\nfrom the original run")
ax.legend(title="missing", ncols=2, fontsize=8, loc="center left",
          bbox_to_anchor=(1, 0.5))
same = [n for n in shown if float(gone[n].max()) == 0]
viz.show(fig, dpi=88, alt="Distance between the weights of the original "
         "and of a run resumed without one piece, over 40 steps, log "
         "scale. "
         f"Without {' and '.join(same)} it is zero, drawn at the bottom; "
         "without any other piece it is above a thousandth from the first "
         "steps on.")

# %% [markdown]
# Only the average is missed by nobody: the run goes on as if nothing had
# happened, and the model you meant to publish is gone. That is the worst
# kind, since no curve will ever tell you.
#
# Now the same with the real run. From the checkpoint of step 120 we go on
# four times: with everything, with empty optimizer moments, with the
# experts' biases at zero, and with the data begun again.

# %%
from minids3.train.settings import Position


def go_on(spoil=None, steps=20):
    """Losses of the next steps, after `spoil` took something away."""
    run = start(precision="bf16")
    run.resume(folder / "bf16" / f"step_{LATE:08d}")
    if spoil is not None:
        spoil(run)
    run.fit(until=LATE + steps, progress=False)
    return run.history.train_loss[LATE:]


def no_moments(run):
    run.optimizer.state.clear()


def no_biases(run):
    for name, buffer in run.model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.zero_()


def no_rows(run):
    run.position = Position(run.position.step, run.position.tokens, 0)


wanted = bf16.history.train_loss[LATE:LATE + 20]
resumes = {"everything": go_on(), "no moments": go_on(no_moments),
           "no biases": go_on(no_biases),
           "data begun again": go_on(no_rows)}
for name, losses in resumes.items():
    apart = [abs(a - b) for a, b in zip(losses, wanted)]
    print(f"{name:17} first step {apart[0]:.5f}, mean of 20 "
          f"{np.mean(apart):.5f} nats from the original")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 3))
for (name, losses), style, role in zip(
        resumes.items(), ("-", "--", "-.", ":"),
        ("ours", "control", "baseline", "published")):
    apart = np.abs(np.array(losses) - np.array(wanted)).clip(1e-7)
    ax.plot(range(LATE + 1, LATE + 21), apart, style, label=name,
            color=viz.COLORS[role])
ax.set(yscale="log", xlabel="step", ylim=(5e-8, 3),
       xticks=range(LATE + 1, LATE + 21, 3),
       ylabel="distance of the training loss\nfrom the original (nats)")
ax.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
viz.show(fig, dpi=88, alt="Distance of the training loss from the original "
         "run's over 20 steps after resuming, log scale: exactly zero with "
         "everything, drawn at the bottom; without moments, without biases "
         "and with the data begun again well above it.")

# %% tags=["nbval-check-output"]
print("with everything, all 20 losses are the same to the last bit:",
      resumes["everything"] == wanted)
print("without a piece, none of the other runs is:",
      all(resumes[n] != wanted for n in list(resumes)[1:]))

# %% [markdown]
# Each gap has its own face. Biases and data show in the very first loss.
# Empty moments show one step late, since the first loss after resuming is
# computed before the first update, and then they cost most. The biases'
# gap is the smallest: few tokens change experts, and at 0.01 a step the
# biases find back soon. In a log of noisy losses nobody would see it.
#
# ## 12.10 One bad batch, or a broken model?
#
# The report has an unusual sentence in its abstract: in the whole training
# there was no *irrecoverable* loss spike, and nothing was rolled back. What
# would one look like? A high loss alone says little. It may be the batch:
# an odd document, and the next step is as before. Or it may be the model: a
# step that went too far, and now every batch is hard.

# %% [markdown]
# EXERCISE text
# ### Exercise: tell the two apart
#
# Write `find_events`. The `window` losses before a step tell what is usual:
# their median, and the median distance from it. A step more than `factor`
# times that distance above the median begins an **event**, which lasts as
# long as the losses stay above *the line of its first step*. One step: "bad
# batch". More: "spike". Not over when the record ends: "open".

# %%
# EXERCISE run-spikes

# %%
# CHECK run-spikes

# %% [markdown]
# Cause both on purpose. From the same checkpoint we go on twice: once with
# one batch in the middle whose targets are shuffled, once with a learning
# rate that is 15 times too high for three steps. **Predict:** does clipping
# save us from the first? From the second?

# %%
class OneBadBatch:
    """The run's own text; the targets of one batch are shuffled."""

    def __init__(self, text, bad_row):
        self.text, self.bad_row = text, bad_row
        self.fingerprint = text.fingerprint

    def rows(self, first, count):
        inputs, targets = self.text.rows(first, count)
        if first <= self.bad_row < first + count:
            mix = torch.randperm(targets.numel(),
                                 generator=torch.Generator().manual_seed(0))
            targets = targets.flatten()[mix].view_as(targets)
        return inputs, targets


AT, MORE = LATE + 16, 34
point = folder / "bf16" / f"step_{LATE:08d}"
before = [0, *bf16.history.tokens[:AT - 2]]
bad_row = sum(plan.batch_rows(tokens) for tokens in before)
text = FreshBatches(tokenizer, 8, SEQ, seed=0, held_out=held_out_texts)

batch = start(data=OneBadBatch(text, bad_row), precision="bf16")
batch.resume(point)
batch.fit(until=LATE + MORE, progress=False)

hot = start(precision="bf16")
hot.resume(point)
hot.fit(until=AT - 1, progress=False)
calm, hot.cfg = hot.cfg, hot.cfg.replace(
    lr=Schedule(((TOKENS, 15 * LR),)))
hot.fit(until=AT + 2, progress=False)
hot.cfg = calm
hot.fit(until=LATE + MORE, progress=False)

for name, each in (("one bad batch", batch), ("rate 15 times", hot)):
    events = find_events(each.history.train_loss[LATE - 16:], window=24)
    print(f"{name}:", [(start_ + LATE - 15, n, kind)
                       for start_, n, kind in events])

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.4, 3))
for each, name, role in ((bf16, "the run itself", "muted"),
                         (batch, "one bad batch", "baseline"),
                         (hot, "rate 15 times, 3 steps", "control")):
    part = each.history.train_loss[LATE - 16:LATE + MORE]
    ax.plot(range(LATE - 15, LATE - 15 + len(part)), part, lw=1.5,
            color=viz.COLORS[role], label=name)
ax.set(xlabel="step", ylabel="training loss\n(nats per token)")
ax.legend(fontsize=8)
viz.show(fig, dpi=88, alt="Training loss by step. With one bad batch there "
         f"is a single high point at step {AT} and the curve is back at "
         "once; after three steps at 15 times the rate the loss stays high "
         "for many steps.")

# %% [markdown]
# The bad batch is a needle: its gradient was clipped to length 1 like any
# other, and AdamW's moments diluted it. The hot rate is a wound. Clipping
# limits the *gradient*; but AdamW divides by the gradient's size anyway,
# and how far it goes is the learning rate's business.
#
# In large runs the two can be mixed. PaLM's spikes (section 5.1 of its
# paper) came from certain batches, and only in a certain state of the
# weights: the same batches were harmless elsewhere. Its cure was to go back
# about a hundred steps and skip some hundred batches. That is what a
# **rollback** is, and why the checkpoints have to be there.
#
# ## 12.11 The long run
#
# The model that ships with this workbook, `mini_chat`, was trained by the
# same trainer on one CPU core, over hours, in two stages: 18 million tokens
# of fresh text with a plateau at 3e-3, then 6 million others from the same
# weights, with a plateau at 1e-3 and an optimizer that starts afresh. Here
# is its record, and your function on all of its steps.

# %%
from itertools import accumulate

long = recorded("mini_chat")
if long is None:
    print("data/bench has no record of it yet: python -m "
          "minids3.bench.training LOG makes one from the run's log")
else:
    print(f"{long['total_steps']:,} steps, {long['tokens'] / 1e6:.1f}M "
          f"tokens, {long['seconds'] / 3600:.1f} hours on one core of an "
          f"{long['about']['device']}")
    for stage, end in enumerate(accumulate(long["stages"]), start=1):
        at_end = [e for e in long["evaluations"] if e["step"] <= end][-1]
        print(f"stage {stage}, step {at_end['step']:>6,}: held-out loss "
              f"{at_end['loss']:.3f}, floor {long['floor']:.3f}: "
              f"{at_end['loss'] - long['floor']:.3f} above; second token "
              f"accepted {at_end['acceptance']:.1%}")
    kinds = [e["kind"] for e in long["events"]]
    print("events:", {k: kinds.count(k) for k in sorted(set(kinds))}
          or "none")

# %% tags=["fold"]
if long is not None:
    entries = [*long["steps"], *long["evaluations"]]
    viz.show(dashboard(entries, "mini_chat, recorded"), dpi=80,
             alt=describe_run(entries))

# %% [markdown]
# The same six panels, two hundred times as many tokens. Compare it with
# what the report says of a run a million times longer: "we did not
# experience any irrecoverable loss spikes or perform any rollbacks" (TR
# abstract). It is a sentence about *open* events: spikes that came back
# are not ruled out by it.
#
# ### Beside a dense model
#
# Its baseline ships, too. `dense_chat` read the same documents in the same
# order, with the same schedules. It has ordinary attention, no experts and
# no MTP module, and feed-forwards so wide that a token costs the same FLOPs
# (without MTP's). **Predict:** which of the two ends nearer to the floor,
# and on which kind of text do they differ most?

# %%
from minids3.evals import loss_above_floor
from minids3.model import load_shipped

shipped = {"with experts": "mini_chat", "dense": "dense_chat"}
above = {}
for label, name in shipped.items():
    model = load_shipped(name)
    plain, with_mtp = (
        flops.training_flops_per_token(model.config, 256, mtp=mtp)
        for mtp in (False, True))
    above[label] = loss_above_floor(model, held_out, 40)
    print(f"{label:13} {model.num_parameters() / 1e6:.1f}M parameters, "
          f"{plain / 1e6:.1f} MFLOP a token, {with_mtp / 1e6:.1f} with MTP")
print("nats above the floor, 40 whole documents of each kind:")
for domain, ours in above["with experts"].items():
    print(f"  {domain:11} with experts {ours:.3f}   "
          f"dense {above['dense'][domain]:.3f}")
sparse, dense = (
    {e["step"]: e["loss"]
     for e in recorded(name)["evaluations"] if e["step"]}
    for name in shipped.values())
both = sorted(sparse.keys() & dense.keys())
print(f"on the way, dense was further from the floor at "
      f"{sum(dense[at] > sparse[at] for at in both)} of {len(both)} "
      "evaluations")

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.1), width_ratios=(1.3, 1))
for (label, name), role in zip(shipped.items(), ("ours", "baseline")):
    run = recorded(name)
    points = [e for e in run["evaluations"] if e["tokens"]]
    axes[0].plot([e["tokens"] / 1e6 for e in points],
                 [e["loss"] - run["floor"] for e in points],
                 color=viz.COLORS[role], label=label)
    axes[1].barh([n + (0.2 if role == "baseline" else -0.2)
                  for n in range(len(above[label]))],
                 list(above[label].values()), height=0.36,
                 color=viz.COLORS[role])
axes[0].set(yscale="log", xlabel="tokens seen (millions)",
            ylabel="held-out loss above\nthe floor (nats)")
axes[0].set_yticks([0.1, 0.2, 0.5], ["0.1", "0.2", "0.5"])
axes[0].minorticks_off()
axes[0].legend(fontsize=8)
axes[1].set_yticks(range(len(above["dense"])), above["dense"])
axes[1].invert_yaxis()
axes[1].grid(axis="y", visible=False)
axes[1].set_xlabel("nats above the floor, whole documents")
fig.tight_layout()
viz.show(fig, dpi=88, alt="Left: held-out loss above the floor over "
         "tokens, recorded, with experts and dense. Right: bars by kind of "
         "text, with experts and dense: " + "; ".join(
             f"{d} {above['with experts'][d]:.3f} and {dense:.3f}"
             for d, dense in above["dense"].items()) + " nats.")

# %% [markdown]
# In section 12.7, after minutes, nobody could tell the two apart. After 24
# million tokens the model with experts is nearer to the floor in every kind
# of text, by a factor of two to two and a half in code, stories and notes,
# and by more in sums and facts. It was nearer all the way, too.
#
# Mind what this comparison is. It is one run of each, so no spread is known
# and the factors may well be others with another seed. Three things differ
# at once, experts, latent attention and MTP, and it does not say which of
# them did it. And equal are only the FLOPs of a token on its way through the
# main model: training paid a third more for MTP (4 % in DeepSeek-V3), and
# memory holds twice as many parameters.
#
# ## 12.12 How much of the machine was used?
#
# A GPU's data sheet promises a number of FLOPs per second. The **model
# FLOPs utilisation** (MFU) is the share of it that went into the model's own
# arithmetic:
#
# `MFU = tokens per second · FLOPs per token / peak FLOPs per second`
#
# What is computed twice to save memory does not count as useful, and
# neither do waiting, copying or rounding. FLOPs per token are those of
# notebook 02, forward and backward; the attention is counted causally.
# **Guess** the MFU of our run on this machine, against the fastest matrix
# product it can do.

# %%
from minids3.sim.bill import lines_12


def fastest_product(n=1024, seconds=1.0):
    """FLOP/s of the best of several fp32 products of n x n matrices."""
    a, b, best, stop = torch.randn(n, n), torch.randn(n, n), 0.0, 0.0
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        clock = time.perf_counter()
        a @ b
        best = max(best, 2 * n**3 / (time.perf_counter() - clock))
    return best


peak = fastest_product()
timed = start(precision="fp32", batch_size=Schedule(((TOKENS, 8),)))
timed.train_step()
clock = time.perf_counter()
for _ in range(5):
    timed.train_step()
rate = 5 * 8 * SEQ / (time.perf_counter() - clock)
per_token = flops.training_flops_per_token(cfg, SEQ, mtp=True)
print(f"this machine: {rate:,.0f} tokens/s x {per_token / 1e6:.1f} MFLOP = "
      f"{rate * per_token / 1e9:.1f} GFLOP/s")
print(f"its fastest product: {peak / 1e9:.0f} GFLOP/s")
print(f"MFU {lines_12.mfu(rate, per_token, peak):.0%}")

# %% tags=["nbval-check-output"]
from minids3.sim.hardware import H800

v3_flops = flops.training_flops_per_token(get_config("v3_671b"), 4096)
v3_rate = lines_12.tokens_per_second_per_gpu()
print(f"published: {v3_rate:,.0f} tokens/s and GPU x {v3_flops / 1e9:.1f} "
      f"GFLOP = {v3_rate * v3_flops / 1e12:.0f} TFLOP/s")
print(f"MFU against BF16's peak: {lines_12.published_mfu():.1%}, "
      "ISCA table 4 measured 38.9%")
print(f"against FP8's: "
      f"{lines_12.published_mfu() * H800.bf16_flops / H800.fp8_flops:.1%}")
print(f"hours by step time {lines_12.hours_by_steps() / 1e3:,.0f}K, "
      f"published {lines_12.TRAINING_HOURS / 1e3:,.0f}K")

# %% [markdown]
# Two ways, one answer: the published hours, tokens and seconds fit
# together. (Both peaks are a data sheet's, written down from memory: MEM in
# the workbook's list of sources. ISCA's own figures imply 988 TFLOPS.)
#
# The 39 % flatter: most products ran in FP8, whose peak is twice as high,
# and against that it is 20 %. They are also unfair: the MTP module's FLOPs,
# 4 % more, were done and are not counted. A utilisation is as good as its
# two assumptions, what counts as useful and what counts as possible.
#
# ## 12.13 On a GPU
#
# The same trainer, the same recipe, and FP8 is no emulation any more: the
# kernels of notebooks 09 and 11 run on the GPU's own tensor cores. Without
# one, this cell says so.

# %% tags=["nbval-ignore-output"]
from minids3.train.recipes import build_trainer

if torch.cuda.is_available():
    for precision in ("fp8", "bf16"):
        torch.cuda.reset_peak_memory_stats()
        big = build_trainer("mini", device="cuda", precision=precision,
                            tokens=600_000)
        clock = time.perf_counter()
        big.fit()
        took = time.perf_counter() - clock
        print(f"mini, {precision}: "
              f"{big.position.tokens / took:,.0f} tokens/s, "
              f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB, "
              f"{big.history.valid_loss[-1] - big.floor:.3f} above floor")
else:
    print("no GPU here: python -m minids3.train mini --device cuda "
          "--precision fp8 is what would run")

# %% [markdown]
# ## 12.14 Play: plan your own
#
# How many steps, how many days, for how many dollars? The price is V3's: a
# second on 2,048 GPUs for every 3.16 million tokens (ISCA table 4). First
# what the batch ramp does. **Predict:** without a ramp, at full batches
# from the first token, how many of the 242,800 steps would be saved?

# %%
def plan_run(trillions=14.8, first=3072, full=15360, ramp=469):
    """Steps, days and dollars of a run at the published speed."""
    # A batch that grows evenly in tokens: steps are the integral of
    # d tokens / batch, a logarithm.
    climb = full / first
    mean = first * ((climb - 1) / math.log(climb) if climb != 1 else 1)
    steps = (ramp * 1e9 / mean + (trillions * 1e12 - ramp * 1e9) / full)
    seconds = trillions * 1e12 / (15360 * 4096) * SECONDS
    return (f"{steps / 4096:,.0f} steps, {seconds / 86400:.1f} days, "
            f"{seconds * GPUS / 3600 * PRICE / 1e6:.3f}M dollars")


print("as published: ", plan_run())
print("without a ramp:", plan_run(first=15360))
print("always small:  ", plan_run(full=3072))

# %% tags=["nbval-ignore-output"]
viz.play(plan_run, alt="Steps, days and dollars of a planned run",
         trillions=(1.0, 30.0, 0.1), first=(1024, 15360, 1024),
         full=(3072, 15360, 1024), ramp=(50, 1000, 50))

# %% [markdown]
# Small batches cost no money here, only steps: the price is per token. (In
# truth a small batch also fills 2,048 GPUs badly, which is why V3 does not
# stay there.) The idea of a ramp is that early on, when every sequence says
# much the same, a small batch learns as much from a token as a large one:
# then it buys extra optimizer steps, here some 7,500, for nothing.
#
# ## 12.15 The Bill

# %%
from minids3.sim import bill

print(bill.lines("12")[-1])
viz.show(bill.figure("12"), dpi=80, alt="The Bill so far: GPU-hours of "
         "whole runs, a dense model's beside those with experts and the "
         "published 2.664 million hours of pre-training.")

# %% [markdown]
# **Claim 3 of the article, so far:** "about 5.5 million dollars" is 2.788M
# GPU-hours at an assumed 2 dollars. 2.664M of them, 95.6 %, are
# pre-training, and those now follow twice: from the seconds of a step, and
# from the FLOPs at the achieved rate. What nobody outside can check is what
# the table leaves out, and says that it leaves out: every run before this
# one.
#
# **What became of it.** V3.2-Exp (September 2025) was not trained from
# nothing: it went on from a checkpoint with 128K positions, 2.1 billion
# tokens to warm up a new part and 943.7 billion at a rate of 7.3e-6, the
# last of the rates above (V32, section 2.1). The optimizer may change next:
# Muon is in PyTorch since August 2025 (second-hand), and Hugging Face's
# documentation of DeepSeek-V4 (April 2026) names it for the weight
# matrices. torchtitan has V3 with its MTP loss among its core models
# (repository, read in August 2026). Notebook 20 tries Muon on what you
# built.
#
# ## 12.16 Talk to it
#
# The model that you have just trained, on 120,000 tokens. The shipped one
# had two hundred times as many. **Guess** before you read: does it spell?
# Does it count?

# %%
from minids3.infer import generate

for opening in ("One morning, Mira the mole left", "Add. Q: 49 + 34 = ?\n",
                "Ask: Which river runs through Velmora?\n"):
    words = generate(fp8.model, tokenizer, opening, max_new_tokens=40,
                     temperature=0.6, seed=1)
    print(f"> {opening.strip()}\n{words.strip()}\n")

# %% tags=["nbval-ignore-output"]
def talk(opening="One morning, Otto the fox", temperature=0.6, seed=1):
    """What the model just trained makes of an opening."""
    return opening + generate(fp8.model, tokenizer, opening,
                              max_new_tokens=60, temperature=temperature,
                              seed=seed)


viz.play(talk, opening="One morning, Otto the fox",
         temperature=(0.0, 1.5, 0.1), seed=(0, 20, 1))

# %% [markdown]
# ## What this does not show
#
# - **Small and short.** A run of some hundred steps can be planned badly in
#   ways that a long one forgives, and the other way round. Differences
#   between the five runs are those of three seeds at this size.
# - **FP8 is emulated** here. What it does to the loss is real, what it does
#   to the clock is not; notebook 10 has the longer comparison, and 12.13
#   the real one for readers with a GPU.
# - **Equal FLOPs per token is one kind of fairness.** The dense model has
#   fewer weights. The MTP module costs extra FLOPs in training, printed in
#   12.7, which are not given to the run without it.
# - **Bit for bit** holds for the same machine, the same number of threads
#   and the same version of PyTorch. Another machine adds in another order.
# - 2,048 GPUs fail in ways one process does not: notebooks 14 and 15.
# - The batch ramp in tokens is our reading of "gradually increased".
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: abstract (no spikes),
#   section 3.2.3 (average, recomputation), 4.2 (schedules,
#   AdamW, clipping), table 1 (hours).
# - Insights into DeepSeek-V3, arXiv 2505.09343v2: table 4 (seconds of a
#   step, MFU).
# - Loshchilov and Hutter 2019, *Decoupled weight decay*, arXiv 1711.05101.
# - Wang et al. 2024, arXiv 2408.15664: algorithm 1 (biases, whole batch).
# - Chowdhery et al. 2022, *PaLM*, arXiv 2204.02311: section 4.1 and
#   appendix B (MFU), section 5.1 (spikes, and skipping batches).
#
# **Next:** [13 · Long context](13_long_context.ipynb): the finished model
# learns to read eight times as far.
