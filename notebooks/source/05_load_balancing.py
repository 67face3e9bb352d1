# %% [markdown]
# # 05 · Load balancing without a loss: nobody waits, nobody idles
#
# {{badge}}
#
# > **Claim.** Left alone, the gate of a mixture of experts sends most
# > tokens to a few experts: within 200 steps the fullest has more than
# > **four times** its share and others have next to nothing. A loss strong
# > enough to forbid that by force costs **more than 0.1 nats**. One number
# > per expert, moved by a fixed step against its load, evens the load
# > without a gradient, and the loss stays within **0.06 nats** of the run
# > that was left alone.
#
# **Takes** about 75 minutes to work through, 40 of them for the exercises;
# 'Run all' about 2 minutes on two CPU cores. **Needs** notebook 04 (gate,
# top-k, experts). **Afterwards** you can measure a load, write the bias
# update and the sequence-wise loss of DeepSeek-V3, say what each of the two
# is for, measure how far experts have specialised, and tell what an uneven
# load would cost on 2,048 GPUs.

# %%
# SETUP

# %% [markdown]
# ## 5.0 A model that forgets its experts
#
# A small model: three layers, the first with a dense feed-forward, the
# other two with 16 routed experts and one shared expert each. Every token
# goes to 2 of the 16. Nobody tells the gate to be fair.
#
# `train` below is a plain training loop around the library's `Trainer`. It
# writes down each step's **load**: how many token-expert pairs each expert
# got. The `rule` is for later; without one the biases stay zero.

# %%
from minids3.config import get_config
from minids3.data import DOMAINS, PackedBatches, load_split
from minids3.model import Transformer
from minids3.nn import record_routing
from minids3.train import TrainConfig, Trainer
from minids3.train.balance import expert_load
from tqdm.auto import trange

E, K, STEPS, BATCH, SEQ, LR = 16, 2, 200, 8, 128, 5e-3
cfg = get_config(
    "mini_dense", hidden_size=96, intermediate_size=192, head_dim=24,
    num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=E,
    n_shared_experts=1, num_experts_per_tok=K, moe_intermediate_size=64)
GATES = ["layers.1.mlp.gate", "layers.2.mlp.gate"]
train_split, valid_split = load_split("train"), load_split("validation")
valid_batches = PackedBatches(valid_split, BATCH, SEQ, shuffle=False)


def train(name, rule=None, aux=0.0, alpha=0.0, until=STEPS, seed=0):
    """Train a model and keep loads and biases of every step [S, L, E]."""
    torch.manual_seed(seed)
    plan = TrainConfig(
        steps=STEPS, batch_size=BATCH, seq_len=SEQ, lr=LR, warmup_steps=20,
        decay_start=STEPS // 2, min_lr=LR / 20, seed=seed,
        bias_update_speed=0.0,  # the rule does it, and later it is yours
        batch_balance_weight=aux, seq_balance_weight=alpha)
    run = Trainer(Transformer(cfg), plan,
                  PackedBatches(train_split, BATCH, SEQ, seed=seed))
    run.model.train()
    loads, biases = [], []
    for step in trange(until, desc=name, unit="step"):
        with record_routing(run.model) as log:
            run.train_step()
        gates = [run.model.get_submodule(g) for g in GATES]
        loads.append([expert_load(log[g].indices, E) for g in GATES])
        if rule is not None:
            for gate, load in zip(gates, loads[-1]):
                gate.expert_bias.copy_(rule(gate.expert_bias, load, step))
        biases.append([gate.expert_bias.clone() for gate in gates])
    run.loads = torch.stack([torch.stack(pair) for pair in loads])
    run.biases = torch.stack([torch.stack(pair) for pair in biases])
    run.model.eval()
    return run


wild = train("no balancing")

# %% [markdown]
# 2 of 16: an even load gives every expert 12.5 % of the tokens. **Guess
# before you run:** of the 32 experts in the two layers, how many get less
# than a tenth of that on text the model has not seen?

# %%
@torch.no_grad()
def measure(model, batches=valid_batches, n=32):
    """Loss in nats per token, and load [L, E], over n batches."""
    nats, load = 0.0, 0
    for step in range(n):
        with record_routing(model) as log:
            nats += model.loss(*batches.batch(step)).item() / n
        load = load + torch.stack(
            [expert_load(log[g].indices, E) for g in GATES])
    return nats, load


def load_bars(load, title):
    """Load of each expert in multiples of the mean, a panel per layer."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.7), sharey=True)
    for ax, one, layer in zip(axes, load.double(), (1, 2)):
        share = one / one.mean()
        low = viz.COLORS["control"]
        ax.bar(range(E), share, color=[
            low if s < 0.1 else viz.COLORS["ours"] for s in share])
        for e in (share < 0.1).nonzero().flatten().tolist():
            ax.plot(e, 0.12, "v", ms=5, color=low)
        ax.axhline(1, color=viz.COLORS["floor"], ls="--")
        ax.set(title=f"{title}, layer {layer}", xlabel="expert",
               xticks=range(0, E, 2))
    axes[0].set_ylabel("load (1 = the mean)")
    fig.tight_layout()
    return fig


wild_loss, wild_load = measure(wild.model)
relative = wild_load / wild_load.double().mean(-1, keepdim=True)
idle = int((relative < 0.1).sum())

# %% tags=["fold"]
viz.show(load_bars(wild_load, "no balancing"), dpi=90,
         alt=f"Load of 16 experts in two layers after {STEPS} steps "
         f"without balancing, in multiples of the mean: the fullest have "
         f"{relative[0].max():.1f} and {relative[1].max():.1f}; {idle} of "
         "32, marked by triangles, have less than a tenth.")
print(f"{idle} of 32 experts get less than a tenth of their share")

# %% [markdown]
# A triangle marks an expert that has practically been switched off. Its
# weights are there, they take memory, and nobody asks it anything.
#
# Why? Choosing is a race with a reward for being ahead. An expert that gets
# more tokens gets more gradient, becomes more useful, and the gate learns
# to score it higher. One that is never chosen gets no gradient at all and
# stays as bad as it was. On one CPU that is a pity. On a cluster, where
# every expert has a GPU of its own, it is an empty GPU beside a queue.
#
# ## 5.1 MaxVio: how full is the fullest expert?
#
# A layer is done when its **fullest** expert is done, so that is what the
# usual measure looks at (LFB):
#
# `MaxVio = (largest load − mean load) / mean load`
#
# 0 is even; 1 means that the fullest expert has twice its share. The most
# that K choices among E experts can reach is E/K − 1: here 7.

# %% [markdown]
# EXERCISE text
# ### Exercise: MaxVio of every layer
#
# Write `layer_violation`. `indices` is `[L, N, K]`: for each of L layers,
# the K experts that each of N tokens chose. Count the load of all
# `n_experts` experts, the unused ones included, and return MaxVio as `[L]`.
# One layer, two tokens and four experts: for `[[[0, 1], [0, 2]]]` the loads
# are 2, 1, 1, 0, the mean is 1, and the result is `[1.0]`.

# %%
# EXERCISE balance-violation

# %%
# CHECK balance-violation

# %% [markdown]
# Now follow the collapse while it happens. The map shows layer 2, a column
# per step, experts sorted by their final load. **Predict:** is it a slow
# drift, or is it decided early?

# %%
def violation_of(loads):
    """MaxVio from loads [..., E]: the same formula, already counted."""
    loads = loads.double()
    return loads.amax(-1) / loads.mean(-1) - 1


with torch.no_grad(), record_routing(wild.model) as log:
    wild.model(valid_batches.batch(0)[0])
chosen = torch.stack([log[g].indices.flatten(0, 1) for g in GATES])
print("MaxVio of layers 1 and 2 on one batch:",
      [round(v, 2) for v in layer_violation(chosen, E).tolist()])

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.8, 3.1), width_ratios=(1.5, 1))
late = wild.loads[-20:, 1].sum(0).argsort(descending=True)
shown = axes[0].imshow(wild.loads[:, 1, late].T / (BATCH * SEQ * K / E),
                       aspect="auto", interpolation="nearest", vmax=5)
axes[0].set(xlabel="training step", ylabel="expert, by final load",
            title="no balancing, layer 2")
axes[0].grid(visible=False)
fig.colorbar(shown, ax=axes[0], label="load (1 = the mean)")
for layer in (0, 1):
    axes[1].plot(violation_of(wild.loads[:, layer]), lw=1.2,
                 label=f"layer {layer + 1}")
axes[1].axhline(E / K - 1, color="0.5", ls=":", label="the most possible")
axes[1].set(xlabel="training step", ylabel="MaxVio", ylim=(0, 7.6))
axes[1].legend(fontsize=8, loc="lower right")
fig.tight_layout()
peak = violation_of(wild.loads).max().item()
viz.show(fig, dpi=80, alt="Left: load of the 16 experts of layer 2 by "
         "step; after about 15 steps a handful of rows is bright and "
         f"most are dark. Right: MaxVio by step, peaking at {peak:.1f} "
         "of 7.")

# %% [markdown]
# It is decided within the first couple of dozen steps, before the model has
# learned anything worth specialising in. Later some experts come back, most
# do not. So whatever balances has to act **from the first step**.
#
# ## 5.2 The old remedy: a loss
#
# The usual cure puts unfairness into the objective (Fedus et al. 2021).
# Take `f_i`, how often expert i was chosen, scaled so that 1 is even, and
# `P_i`, the average score that the gate gave it. Add `weight · Σ f_i P_i`.
# The counts pass no gradient, the scores do: a full expert's score is
# pushed down.
#
# It works. But it is a second objective, and its gradient does not ask
# whether a token *needs* that expert. How hard does it pull? Compare its
# gradient with that of the language loss, on the collapsed model's gates.

# %%
from minids3.train.balance import batch_balance_loss

weights = [g.weight for g in map(wild.model.get_submodule, GATES)]
with record_routing(wild.model) as log:
    language = wild.model.loss(*wild.train_batches.batch(STEPS))
balance = sum(batch_balance_loss(r.scores, r.indices) for r in log.values())


def norm_of(loss):
    grads = torch.autograd.grad(loss, weights, retain_graph=True)
    return torch.stack([g.norm() for g in grads]).norm().item()


pull = norm_of(balance) / norm_of(language)
tried = (0.001, 0.01, 0.1, 1.0, 5.0)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7, 2.6))
ax.plot([str(w) for w in tried], [w * pull for w in tried], "o", ms=9,
        color=viz.COLORS["baseline"])
ax.axhline(1, color=viz.COLORS["ours"], ls="--")
ax.annotate("as hard as the language loss", (0.01, 2.1), fontsize=8,
            xycoords=("axes fraction", "data"), color=viz.COLORS["ours"])
ax.set(yscale="log", xlabel="weight of the auxiliary loss",
       ylabel="its pull on the gates\n(language loss = 1)")
viz.show(fig, alt="Dots, log scale: the auxiliary loss's gradient on the "
         "gate weights relative to the language loss's, from "
         f"{tried[0] * pull:.2g} at weight 0.001 to {tried[-1] * pull:.0f} "
         "at weight 5.", dpi=90)

# %% [markdown]
# Take the heaviest of these, 5, and train. **Predict** both numbers that we
# care about: how even does the load get, and how does the loss on unseen
# text compare with that of the run without balancing?

# %%
forced = train("auxiliary loss, weight 5", aux=5.0)
forced_loss, forced_load = measure(forced.model)
print("                    loss    MaxVio of layers 1 and 2")
for name, loss, load in (("no balancing", wild_loss, wild_load),
                         ("auxiliary loss", forced_loss, forced_load)):
    vio = "   ".join(f"{v:.2f}" for v in violation_of(load))
    print(f"{name:18}{loss:6.3f}    {vio}")

# %% [markdown]
# Even as a ruler, and much worse at its job. The weight is a knob with a
# price on either side. We turned it, over three seeds (`train("...", aux=w,
# seed=s)` with `STEPS = 240`): at 0.01 the load was even (MaxVio below 0.5)
# and the loss within 0.02 nats of the run without balancing; at 1 it was
# 0.015 to 0.03 worse; at 10 it was 0.7 to 3 nats worse.
#
# So at *this* size there is a comfortable middle. Somebody has to find it,
# at every size anew, and at 671 billion parameters nobody turns knobs for
# fun.
#
# ## 5.3 The idea: steer the choice, leave the score alone
#
# Notebook 04's gate has a bias `b` in it that we set to zero. It is added
# to the scores **for choosing only**; the weights of the chosen experts
# come from the scores without it. After every step (LFB, TR section 2.1.2):
#
# `b_i ← b_i + speed · sign(mean load − load_i)`
#
# An expert that was too full becomes a little harder to choose, one that
# was too empty a little easier. No gradient, no second objective. The load
# is counted over the **whole batch**, all GPUs together. And only the sign
# counts: whether an expert has one token too many or a thousand, the step
# is the same.

# %% [markdown]
# EXERCISE text
# ### Exercise: one step of the bias
#
# Write `update_bias`. `bias` is `[E]`, `load` is `[E]` integers. Return the
# new bias as a new tensor. An expert exactly at the mean stays put: loads of
# 4, 2 and 0 move three biases of zero by −speed, 0 and +speed.

# %%
# EXERCISE balance-bias

# %%
# CHECK balance-bias

# %% [markdown]
# DeepSeek-V3 moves its biases by 0.001 a step for 14.3 trillion tokens and
# then holds them for the last 500 billion (TR section 4.2). At the end the
# learning rate is tiny, the loads hardly move, and a bias that keeps
# stepping would only rattle.

# %% [markdown]
# EXERCISE text
# ### Exercise: let go at the end
#
# Write `bias_speed`. After `tokens` of `total` tokens the speed is `speed`,
# and for the last `last` tokens it is 0. With a total of 10 and the last 2,
# it is still `speed` at 7 and 0 at 8.

# %%
# EXERCISE balance-schedule

# %%
# CHECK balance-schedule

# %% [markdown]
# Our run has 200 steps, not hundreds of thousands. Scores lie between 0 and
# 1 and the winners' lead is some tenths: at 0.001 a step the bias could
# cross 0.2 in the whole run. So we take **0.01**, ten times the published
# speed. What the speed does comes right after. **Predict** the picture: do
# the biases settle, or keep growing?

# %%
TOTAL = STEPS * BATCH * SEQ
LAST = TOTAL * 0.5 / 14.8  # the same share as in the report


def by_bias(speed):
    """The rule for `train`: your step at your speed."""
    def rule(bias, load, step):
        now = bias_speed(step * BATCH * SEQ, TOTAL, LAST, speed)
        return update_bias(bias, load, now)
    return rule


steered = train("bias, speed 0.01", by_bias(0.01))
steered_loss, steered_load = measure(steered.model)

# %% tags=["fold"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3))
colors = plt.cm.viridis(np.linspace(0, 0.95, E))
order = steered.biases[-1, 1].argsort()
axes[0].imshow(steered.loads[:, 1, order].T / (BATCH * SEQ * K / E),
               aspect="auto", interpolation="nearest", vmin=0, vmax=5)
axes[0].grid(visible=False)
for color, e in zip(colors, order.tolist()):
    axes[1].plot(range(0, STEPS, 4), steered.biases[::4, 1, e],
                 color=color, lw=1)
axes[0].set(ylabel="expert, by final bias", title="load, layer 2",
            yticks=range(0, E, 4))
axes[1].set(ylabel="bias", title="bias, layer 2")
for run, name, role in ((wild, "no balancing", "control"),
                        (steered, "bias", "ours")):
    axes[2].plot(violation_of(run.loads).mean(-1), lw=1.2, label=name,
                 color=viz.COLORS[role])
axes[2].set(ylabel="MaxVio, mean of layers", title="violation")
axes[2].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.5))
for ax in axes:
    ax.set_xlabel("training step")
fig.tight_layout()
end = violation_of(steered.loads[-20:]).mean().item()
start = violation_of(steered.loads).mean(-1).max().item()
viz.show(fig, dpi=80, alt="Left: map of the loads of layer 2; a few rows "
         "are bright in the first steps, then all are alike. Middle: "
         f"biases spread to between {steered.biases[-1, 1].min():.2f} and "
         f"{steered.biases[-1, 1].max():.2f}. Right: MaxVio rises to "
         f"{start:.1f} and falls to {end:.2f}, without balancing it stays "
         "high.")

# %% [markdown]
# The race starts as before: for some steps a few favourites take everything
# (bright spots on the left; the map has the colours of section 5.1). Then
# their biases have sunk and those of the forgotten experts have risen far
# enough, and the map turns into one colour: load 1 for everybody. The bias
# has found the handicap of each expert, as in horse racing: the better the
# horse, the heavier the saddle.
#
# ## 5.4 How fast?
#
# Too slow, and the collapse is faster than the cure. Too fast, and a step
# is larger than the distance between the scores: the whole crowd changes
# sides at once. **Predict** which of the three curves is the lowest at step
# 60.

# %%
SHORT = 60
speeds = {0.001: train("speed 0.001", by_bias(0.001), until=SHORT),
          0.01: steered,
          0.1: train("speed 0.1", by_bias(0.1), until=SHORT)}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 3))
for speed, run in speeds.items():
    curve = violation_of(run.loads[:SHORT]).mean(-1)
    ax.plot(range(1, SHORT + 1), curve, lw=1.5,
            label=f"speed {speed}")
ax.set(xlabel="training step", ylabel="MaxVio, mean of layers",
       ylim=(0, None))
ax.legend()
at_end = {s: violation_of(r.loads[SHORT - 20:SHORT]).mean().item()
          for s, r in speeds.items()}
viz.show(fig, dpi=80, alt=f"MaxVio over {SHORT} steps; mean of the last 20 "
         "steps: " + ", ".join(
             f"{v:.1f} at speed {s}" for s, v in at_end.items()))

# %% [markdown]
# At 0.001 the handicap grows by a thousandth a step and the favourites are
# faster. At 0.1 the load never comes to rest: an expert that is too full is
# empty one step later, and full again after that. In between there is a wide
# range that works. Over three seeds the last 20 of the 60 steps had a
# MaxVio of 3.8 to 4.7 at 0.001, of 0.7 to 0.9 at 0.01 and of 2.0 to 2.3 at
# 0.1.
#
# The right speed depends on how many steps there are. LFB tried 0.0001,
# 0.001 and 0.01 on its 1B model and took 0.001. DeepSeek-V3 has more than
# 200,000 steps ahead of it (14.8T tokens, at most 63M a step): there 0.001
# is fast enough, and it rattles ten times less than ours.
#
# ## 5.5 The sequence-wise loss: every text for itself
#
# The bias sees the batch. A batch can be even while each *sequence* in it
# leans on three experts, and when one user's text is all that a machine has
# to do, the balance of other people's texts is no help. DeepSeek-V3 adds a
# safety net, the **sequence-wise loss** (TR eq. 17-20), with a weight α of
# only 0.0001:
#
# - `f_i = E / (K T)` times how many of the T tokens have expert i among
#   their K best **unbiased** scores: a count, no gradient;
# - `P_i` = mean over t of `s_ti / Σ_j s_tj`;
# - `Σ_i f_i P_i`, in each sequence, then the mean over sequences.

# %% [markdown]
# EXERCISE text
# ### Exercise: the sequence-wise loss
#
# Write `sequence_loss`. `scores` is `[B, T, E]`, positive, straight from
# the sigmoid. Return the scalar without α. A perfectly even sequence gives 1,
# one that always wants the same K of E experts gives nearly E / K.

# %%
# EXERCISE balance-sequence

# %%
# CHECK balance-sequence

# %% [markdown]
# Train the full recipe, bias and α = 0.0001. And measure what the bias
# cannot see: MaxVio within single sequences of 128 tokens. **Predict:** are
# sequences more even than batches, or less?

# %%
full = train("bias and sequence-wise loss", by_bias(0.01), alpha=1e-4)
full_loss, full_load = measure(full.model)


@torch.no_grad()
def within_sequences(model, n=16):
    """Mean MaxVio of single sequences, and the mean sequence_loss."""
    found, losses = [], []
    for step in range(n):
        with record_routing(model) as log:
            model(valid_batches.batch(step)[0])
        for g in GATES:  # sequences stand where layers did: [B, T, K]
            found.append(layer_violation(log[g].indices, E))
            losses.append(sequence_loss(log[g].scores, K))
    return torch.cat(found).mean().item(), torch.stack(losses).mean().item()


RUNS = {"no balancing": (wild, wild_loss, wild_load),
        "auxiliary loss": (forced, forced_loss, forced_load),
        "bias": (steered, steered_loss, steered_load),
        "bias + sequence": (full, full_loss, full_load)}
rows = {}
for name, (run, _, load) in RUNS.items():
    per_batch = violation_of(run.loads[-20:]).mean().item()
    rows[name] = (violation_of(load).mean().item(), per_batch,
                  *within_sequences(run.model))
print("                    MaxVio: all    batch    sequence    sum f P")
for name, row in rows.items():
    print(f"{name:18}{row[0]:13.2f}{row[1]:9.2f}{row[2]:12.2f}"
          f"{row[3]:11.3f}")

# %% [markdown]
# From left to right the window gets smaller (the whole validation text, one
# batch of 1,024 tokens, one sequence of 128) and the load less even. Some
# of that is plain chance: 256 choices thrown at 16 experts at random have a
# MaxVio of about 0.45. The rest is the texts: a sum and a story want
# different experts.
#
# ## 5.6 The result
#
# Four runs, same seed, same batches. Right means worse at language, up
# means less even. **Predict** where each of them is before you look.

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 3.7))
looks = {"no balancing": ("control", "X"),
         "auxiliary loss": ("baseline", "s"),
         "bias": ("ours", "o"), "bias + sequence": ("floor", "D")}
for name, (run, loss, _) in RUNS.items():
    role, mark = looks[name]
    ax.plot(loss, rows[name][1], mark, ms=11, color=viz.COLORS[role],
            label=f"{name}: {loss:.3f} nats, MaxVio {rows[name][1]:.2f}")
ax.set(xlabel="loss on unseen text (nats per token)",
       ylabel="MaxVio of a batch\n(mean of the last 20 steps)",
       ylim=(0, 7.4))
ax.axhline(E / K - 1, color="0.5", ls=":")
ax.annotate("two experts do everything", (0.99, 7.0), (0, -12), fontsize=8,
            xycoords=("axes fraction", "data"), ha="right", color="0.4",
            textcoords="offset points")
ax.legend(loc="center right", fontsize=9)
viz.show(fig, dpi=85, alt="Loss against MaxVio: " + "; ".join(
    f"{n} {RUNS[n][1]:.3f} nats and {rows[n][1]:.2f}" for n in RUNS))

# %% tags=["nbval-check-output"]
late = {name: row[1] for name, row in rows.items()}
print("no balancing: MaxVio above 3:", late["no balancing"] > 3)
print("auxiliary loss: MaxVio below 1:", late["auxiliary loss"] < 1)
print("    and it costs more than 0.1 nats:",
      forced_loss - steered_loss > 0.1)
print("bias: MaxVio below 1:", late["bias"] < 1)
print("    and within 0.06 nats of no balancing:",
      abs(steered_loss - wild_loss) < 0.06)

# %% [markdown]
# **Over three seeds**, and in the run above, which repeats the first of them
# with a library that differs in the last bits: without balancing MaxVio ends
# at 4.2 to 6.0, and 7 to 16 of the 32 experts are practically off. The
# auxiliary loss at weight 5 brings it to 0.2 to 0.3 and costs 0.22 to 0.72
# nats against the bias. The bias brings it to 0.4 to 0.5.
#
# And the loss of language? Seed by seed, without balancing 0.789, 0.784,
# 0.791; with the bias 0.809, 0.816, 0.786; with the sequence-wise loss beside
# it 0.791, 0.810, 0.803 (above: 0.790, 0.806, 0.785). So no: the bias does
# not make the model *better* here. On average it is 0.016 worse than a run
# that uses a handful of experts, which is about as much as it moves from seed
# to seed. Our reading: in two hundred steps everybody is short of practice,
# and a few experts that see all tokens learn sooner than sixteen that share
# them. We gave both four times the steps (`STEPS = 800` in section 5.0):
# 0.608, 0.594, 0.615 without balancing, 0.611, 0.601, 0.604 with the bias. On
# average the gap is gone, and MaxVio stayed at 4.4 to 5.7 against 0.3.
#
# Of the sequence-wise loss we see one thing for certain: what it minimises,
# `Σ f P`, was lower in all three seeds (1.14 to 1.20 against 1.18 to 1.29).
# Whether single sequences become evener at α = 0.0001 these short runs
# cannot tell: in two seeds they did, in one they did not.
#
# ## 5.7 Two ways to get it wrong
#
# **Control one: the wrong sign.** Full experts get fuller. The exercise
# rejects it; here is what it does to a model. **Predict** MaxVio after 60
# steps.

# %%
def backwards(bias, load, step):
    """The update with its sign turned."""
    return 2 * bias - update_bias(bias, load, 0.01)


wrong = train("wrong sign", backwards, until=60)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 2.8))
for run, name, role in ((wrong, "wrong sign", "control"),
                        (wild, "no balancing", "muted"),
                        (steered, "right sign", "ours")):
    curve = violation_of(run.loads[:60]).mean(-1)
    ax.plot(range(1, 61), curve, label=name, color=viz.COLORS[role])
ax.set(xlabel="training step", ylabel="MaxVio, mean of layers",
       ylim=(0, 7.4))
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.49), fontsize=8)
last = violation_of(wrong.loads[-1])
viz.show(fig, dpi=80, alt="MaxVio over 60 steps: with the wrong sign it "
         f"climbs to {last.mean():.1f} of 7 and stays, without balancing "
         "it is a little lower, with the right sign it falls.")
used = (wrong.loads[-1] > 0).sum(-1).tolist()
print(f"experts in use at the end, of 16: {used}")

# %% [markdown]
# **Control two: a bias that leaks into the weights.** The bias may only
# choose. Suppose somebody computes the gate's weights from the *biased*
# scores as well:

# %%
import copy

from minids3.nn import Gate


class LeakyGate(Gate):
    """Chooses as usual, but weighs by the biased scores."""

    def forward(self, x):
        routing = super().forward(x)
        biased = routing.scores + self.expert_bias
        weights = biased.gather(-1, routing.indices)
        weights = weights / weights.sum(-1, keepdim=True)
        return routing._replace(weights=weights * self.route_scale)


def shifted(model, gate_class, shift):
    """A copy with another gate, all of its biases moved by `shift`."""
    twin = copy.deepcopy(model)
    for name in GATES:
        gate = gate_class(cfg)
        gate.load_state_dict(twin.get_submodule(name).state_dict())
        gate.expert_bias += shift
        twin.get_submodule(name.removesuffix(".gate")).gate = gate
    return twin.eval()


# %% [markdown]
# A test that needs no training: add the same number to **all** biases.
# Every expert is as far ahead of the others as before, so no choice
# changes, and nothing in the output should. **Predict** the two lines.

# %%
shifts = [-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.5, 1.0]
lines = {}
for name, kind in (("Gate", Gate), ("LeakyGate", LeakyGate)):
    lines[name] = [measure(shifted(steered.model, kind, s), n=4)[0]
                   for s in shifts]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.2, 2.8))
for (name, line), role in zip(reversed(lines.items()),
                              ("control", "ours")):
    ax.plot(shifts, line, "o-", color=viz.COLORS[role], label=name)
ax.set(xlabel="added to every bias", ylabel="loss (nats per token)")
ax.legend()
viz.show(fig, dpi=90, alt="Loss against a shift of all biases: flat for "
         f"the right gate at {lines['Gate'][0]:.3f}; the leaky gate is at "
         f"{lines['LeakyGate'][5]:.3f} without a shift and rises to "
         f"{max(lines['LeakyGate']):.3f} for negative shifts.")

# %% tags=["nbval-check-output"]
flat = max(lines["Gate"]) - min(lines["Gate"])
print("a shift of all biases leaves Gate alone:", flat < 1e-4)
bent = max(lines["LeakyGate"]) - min(lines["LeakyGate"])
print("and changes LeakyGate's loss:", bent > 0.01)

# %% [markdown]
# The right gate does not notice. The leaky one divides by the sum of two
# biased scores, and where that sum comes near zero its weights explode.
#
# Look at the middle, too. At the biases that training really reached, the
# leak hardly shows. We also trained with it from the first step: 0.788,
# 0.796 and 0.805 nats over three seeds, no worse than the right gate. **No
# loss curve finds this bug at this size.** With two experts of similar
# scores the weights are near one half each, leak or no leak. What finds it
# is the invariance: a statement about what must *not* change. Keep such
# statements; they cost a few lines.
#
# ## 5.8 Do experts become experts?
#
# Our text has four domains, so we can ask. Feed each domain alone and count
# who works. In the maps a row is a domain, a column an expert (sorted by
# the domain that uses it most), 1 is an even share. **Predict:** which of
# the two balanced models has the more colourful map, the one under the
# auxiliary loss or the one under the bias?

# %%
def by_domain(model, n=4):
    """Load [L, domains, E] on unseen documents of each domain."""
    found = []
    for name in DOMAINS:
        batches = PackedBatches(valid_split.only(name), BATCH, SEQ,
                                shuffle=False)
        found.append(measure(model, batches, n)[1])
    return torch.stack(found, 1)


maps = {name: by_domain(run.model) for name, (run, _, _) in RUNS.items()}
shown_runs = ("auxiliary loss", "bias")

# %% tags=["fold"]
fig, axes = plt.subplots(2, 2, figsize=(10, 4.1), sharey=True)
for row, name in zip(axes, shown_runs):
    for ax, load, layer in zip(row, maps[name].double(), (1, 2)):
        share = load / load.mean(-1, keepdim=True)
        best = share.argmax(0) * 100 - share.amax(0)
        shown = ax.imshow(share[:, best.argsort()], aspect="auto", vmin=0,
                          vmax=3, cmap="cividis")
        ax.set_title(f"{name}, layer {layer}", fontsize=10)
        ax.set_yticks(range(4), DOMAINS)
        ax.set_xticks([])
        ax.grid(visible=False)
for ax in axes[1]:
    ax.set_xlabel("expert, sorted by its favourite domain")
fig.tight_layout()
fig.colorbar(shown, ax=axes, label="load (1 = even)", fraction=0.02,
             pad=0.02)
worst = {n: violation_of(maps[n]).mean().item() for n in shown_runs}
viz.show(fig, dpi=88, alt="Maps of domains by experts, two layers. MaxVio "
         "within a domain, on average: " + ", ".join(
             f"{n} {v:.2f}" for n, v in worst.items()) + ".")

# %% [markdown]
# One number for a map: how many **bits** does knowing the expert tell about
# the domain? That is the *mutual information* of the two. Four equally likely
# domains hold 2 bits; an expert that serves all alike tells 0.

# %% [markdown]
# EXERCISE text
# ### Exercise: what an expert tells about the domain
#
# Write `expert_information`. `counts` is `[D, E]`: how often the tokens of
# domain d chose expert e. Before you know the expert, the domain holds
# `H(D) = −Σ p_d log2 p_d` bits. Once you know it, some of them are left:
# `Σ p_e H(D | e)`, where `H(D | e)` is the entropy of expert e's own choices
# over the domains. Return the difference as a float. Domains need not be
# equally large, counts may be 0 or in the billions. `[[4, 0], [0, 4]]` gives
# 1 bit, `[[3, 1], [1, 3]]` gives 0.189, and `[[2, 2], [2, 2]]` gives 0.

# %%
# EXERCISE balance-information

# %%
# CHECK balance-information

# %% [markdown]
# Now for our maps. Even where there is nothing to know, finite counts never
# come out at exactly 0. So there is a control: the same count over four
# groups of *mixed* batches. **Guess** how many of the 2 bits an expert under
# the bias tells: nearly all, half, a few tenths?

# %%
class Every4th:
    """Batches start, start + 4, start + 8, ... of the mixed text."""

    def __init__(self, start):
        self.start = start

    def batch(self, step):
        return valid_batches.batch(self.start + 4 * step)


bits = {name: [expert_information(m) for m in loads]
        for name, loads in maps.items()}
mixed = torch.stack([measure(steered.model, Every4th(i), 4)[1]
                     for i in range(4)], 1)
bits["control: mixed groups"] = [expert_information(m) for m in mixed]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 2.9))
for row, (name, pair) in enumerate(bits.items()):
    role = looks.get(name, ("muted", ""))[0]
    for offset, value, layer in zip((-0.2, 0.2), pair, (1, 2)):
        ax.barh(row + offset, value, 0.36, color=viz.COLORS[role])
        ax.annotate(f"layer {layer}: {value:.2f}", (value, row + offset),
                    (4, 0), textcoords="offset points", va="center",
                    fontsize=8)
ax.set_yticks(range(len(bits)), bits)
ax.set_xlabel("bits that the expert tells about the domain (of 2)")
ax.invert_yaxis()
ax.margins(x=0.15)
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=90, alt="Bits by run, layers 1 and 2: " + "; ".join(
    f"{n} {a:.2f} and {b:.2f}" for n, (a, b) in bits.items()))

# %% tags=["nbval-check-output"]
print("the bias lets experts specialise more than the auxiliary loss:",
      min(bits["bias"]) > max(bits["auxiliary loss"]))
print("mixed groups tell next to nothing:",
      max(bits["control: mixed groups"]) < 0.05)

# %% [markdown]
# The bias leaves experts free to have a favourite, as long as all domains
# together keep everyone busy. A strong auxiliary loss wants something else:
# that the average *score* of every expert be alike, and the easiest way is
# to stop preferring anybody. Over three seeds the bias gave 0.26 to 0.38
# bits, the auxiliary loss 0.04 to 0.09. Even the run without balancing has
# less, 0.11 to 0.19: two overloaded experts serve all domains.
#
# This is the message of TR figure 9, in a model a ten-thousandth as large.
# How much it helps the *loss* is another question, which these runs do not
# answer.
#
# ## 5.9 At scale: what LFB and the report measured
#
# Three published comparisons, none of them ours.

# %%
tasks = ["BBH", "MMLU", "HumanEval", "GSM8K", "MATH"]
small = [39.3 - 37.3, 51.8 - 51.0, 22.6 - 22.0, 29.6 - 27.1, 11.1 - 10.9]
large = [67.9 - 66.7, 67.2 - 68.3, 46.3 - 40.2, 74.5 - 70.7, 39.6 - 37.2]

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.1), width_ratios=(1, 1.7))
for offset, values, name, role in (
        (-0.19, (0.72, 0.52), "auxiliary loss", "baseline"),
        (0.19, (0.04, 0.04), "bias", "ours")):
    bars = axes[0].bar([offset, 1 + offset], values, 0.36,
                       color=viz.COLORS[role], label=name)
    axes[0].bar_label(bars, fmt="%.2f", fontsize=8)
axes[0].set_xticks([0, 1], ["1B", "3B"])
axes[0].set(ylabel="MaxVio, whole validation set", title="LFB")
axes[0].legend(fontsize=8)
for offset, values, name, color in (
        (-0.19, small, "15.7B", viz.PALETTE[5]),
        (0.19, large, "228.7B", viz.PALETTE[0])):
    bars = axes[1].bar(np.arange(5) + offset, values, 0.36, color=color,
                       label=name)
    axes[1].bar_label(bars, fmt="%+.1f", fontsize=8)
axes[1].axhline(0, color="0.4", lw=0.8)
axes[1].set_xticks(range(5), tasks)
axes[1].set(ylabel="points gained", ylim=(-2.2, 7.4),
            title="bias instead of auxiliary loss (TR table 5)")
axes[1].legend(fontsize=8, loc="upper left")
fig.tight_layout()
viz.show(fig, dpi=90, alt="Left, LFB: MaxVio falls from 0.72 to 0.04 at 1B "
         "and from 0.52 to 0.04 at 3B. Right, TR table 5: points gained by "
         "the bias on five benchmarks for two model sizes, all positive "
         "but MMLU of the large model at -1.1.")

# %% [markdown]
# | Published | auxiliary loss | bias | source |
# |---|---|---|---|
# | perplexity, 1B | 9.56 | **9.50** | LFB |
# | perplexity, 3B | 7.97 | **7.92** | LFB |
# | Pile, bits per byte, 15.7B | 0.727 | **0.724** | TR table 5 |
# | Pile, bits per byte, 228.7B | 0.656 | **0.652** | TR table 5 |
#
# | Validation loss (TR section 4.5.3) | per sequence | bias | per batch |
# |---|---|---|---|
# | 1B | 2.258 | 2.253 | 2.253 |
# | 3B | 2.085 | 2.080 | 2.080 |
#
# Read the second table closely. An auxiliary loss over the whole *batch* is
# as good as the bias there; what costs is forcing every *sequence* to be
# even. The gain lies in the **scope** of the demand, not in the absence of
# a gradient. That is why the published α for sequences is so small.
#
# ## 5.10 Play: a gate without a model
#
# No training here: 16 experts whose scores are skewed from the start, 256
# fresh tokens a step, and your update. First two settings as a picture.
#
# **Predict:** with a larger skew, does the bias end further from zero, or
# does it just take longer?

# %%
def simulate(speed, skew, steps=150, tokens=256):
    """Loads and biases [S, E] of a skewed gate under your update."""
    draw = torch.Generator().manual_seed(0)
    favour = skew * torch.linspace(-1, 1, E)
    bias, loads, biases = torch.zeros(E), [], []
    for _ in range(steps):
        logits = torch.randn(tokens, E, generator=draw) + favour
        best = (logits.sigmoid() + bias).topk(K, -1).indices
        loads.append(expert_load(best, E))
        bias = update_bias(bias, loads[-1], speed)
        biases.append(bias)
    return torch.stack(loads), torch.stack(biases)

# %% tags=["fold"]
def draw_simulation(axes, speed, skew):
    loads, biases = simulate(speed, skew)
    colors = plt.cm.viridis(np.linspace(0.95, 0, E))
    axes[0].plot(violation_of(loads), lw=1.2, color=viz.COLORS["ours"])
    for e, color in enumerate(colors):
        axes[1].plot(biases[:, e], lw=1, color=color)
    end = violation_of(loads[-50:]).mean()
    axes[0].set_title(f"speed {speed:g}, skew {skew:g}", fontsize=9)
    axes[1].set_title(f"MaxVio at the end {end:.2f}", fontsize=9)
    axes[0].set(ylabel="MaxVio", ylim=(0, 7.3))
    axes[1].set(ylabel="bias of each expert")
    for ax in axes:
        ax.set_xlabel("step")
    return end.item()


fig, axes = plt.subplots(1, 4, figsize=(10.5, 2.6))
ends = [draw_simulation(axes[:2], 0.005, 1.0),
        draw_simulation(axes[2:], 0.1, 1.0)]
fig.tight_layout()
viz.show(fig, dpi=76, alt="Two simulations of 150 steps at skew 1. Speed "
         f"0.005: MaxVio falls and ends at {ends[0]:.2f}, biases fan out. "
         f"Speed 0.1: MaxVio rattles, {ends[1]:.2f} at the end, and all "
         "biases climb together.")

# %% [markdown]
# On the right all biases climb together. After each step more experts are
# too empty than too full, so more go up than down. It does no harm: what is
# added to all of them changes no choice. torchtitan subtracts the mean of
# the update all the same, which keeps the numbers small. Try the speed in
# between, and a skew of 3.
#
# **Your turn, 5 minutes, without a check.** Write that version: an
# `update_bias` whose step has its mean taken away. Put it into `simulate`.
# The loads must come out as before, step by step, and the biases must add up
# to zero (to float precision).

# %% tags=["nbval-ignore-output"]
def bias_simulator(speed=0.005, skew=1.0):
    """MaxVio and biases of a skewed gate over 150 steps."""
    fig, axes = plt.subplots(1, 2, figsize=(8.5, 3))
    draw_simulation(axes, round(speed, 3), round(skew, 2))
    fig.tight_layout()
    return fig


viz.play(bias_simulator, speed=(0.0, 0.1, 0.005), skew=(0.0, 3.0, 0.25))

# %% [markdown]
# ## 5.11 The Bill
#
# What is an even load worth in hours? With expert parallelism a layer waits
# for the GPU whose experts got most, so the expert part of the time is
# stretched by a factor of **1 + MaxVio**. In DeepSeek-V3 the routed experts
# are about half of all FLOPs. Put LFB's published violations in. **Guess:**
# how many GPU-hours lie between 0.72 and 0.04?

# %% tags=["nbval-check-output"]
from minids3.sim import bill
from minids3.sim.bill.lines_05 import expert_gpu_hours, imbalance_gpu_hours

hours, share = expert_gpu_hours()
print(f"routed experts: {share:.1%} of the FLOPs, {hours / 1e6:.2f}M hours")
VIOLATIONS = {"bias, 1B and 3B": 0.04, "auxiliary loss, 3B": 0.52,
              "auxiliary loss, 1B": 0.72}
for name, vio in VIOLATIONS.items():
    print(f"{name:20} MaxVio {vio}: "
          f"{imbalance_gpu_hours(vio) / 1e3:4.0f}K hours of waiting")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 2.4))
extra = [imbalance_gpu_hours(v) / 1e6 for v in VIOLATIONS.values()]
names = [f"{n} ({v})" for n, v in VIOLATIONS.items()]
total = hours / share / 1e6
ax.barh(names, total - hours / 1e6, 0.55, color=viz.PALETTE[5],
        label="everything else")
ax.barh(names, hours / 1e6, 0.55, left=total - hours / 1e6,
        color=viz.COLORS["ours"], label="routed experts")
ax.barh(names, extra, 0.55, left=total, color=viz.COLORS["control"],
        label="waiting for the fullest")
for row, value in enumerate(extra):
    ax.annotate(f"+{value * 1e3:.0f}K", (total + value, row), (4, 0),
                textcoords="offset points", va="center")
ax.set_xlabel("H800 GPU-hours (millions)")
ax.margins(x=0.1)
ax.legend(ncols=3, fontsize=8, loc="lower center",
          bbox_to_anchor=(0.4, 1.0))
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=90, alt=f"Stacked bars of GPU-hours: {total:.2f} million "
         "for an even load, and on top waiting of "
         + ", ".join(f"{v * 1e3:.0f}K ({n})" for v, n in zip(extra, names)))

# %%
bill.show(upto="05")

# %% [markdown]
# A third of the run on top, in this scenario. It is a scenario: V3's own
# violation is not published. A GPU that holds four experts is evener than
# its fullest one, which makes the figure too large; single batches are less
# even than a whole validation set, which makes it too small. The order of
# magnitude is what explains the effort.
#
# ## The article, so far
#
# Claim 7 asks how much each idea saved. Without balance the run would have
# taken up to 3.55 million hours instead of 2.66, if the fullest expert sets
# the pace as it did in LFB's models. That is a bound and no measurement.
#
# ## What became of it
#
# The bias is still there. V4 (April 2026) keeps it, with another score, and
# torchtitan has it among its core models, with the mean of the update taken
# away (read in August 2026). What was added is balance *when serving*: EPLB
# (DeepSeek, February 2025) copies the busiest experts to more GPUs; notebook
# 16 writes it. And V4's first three layers of experts, which choose by a hash
# of the token id, get the load that the text's words have: no bias can move
# a hash.
#
# ## What this does not show
#
# - Our models are tiny and train for 200 steps on 0.2 million tokens. That
#   the unbalanced run is not worse in its *loss* is part of that: idle
#   experts are wasted capacity, and here capacity is not what is short.
# - The weight of the auxiliary loss was chosen to be harmful. A well-chosen
#   one did fine here, as the numbers in section 5.2 say. The published
#   gains over a well-chosen one are 0.06 and 0.05 in perplexity (LFB).
# - "Domain" is ours: four generators with different words. TR figure 9
#   looks at domains of the Pile, in models of 15.7B parameters.
# - Nothing waited for anything here; all experts ran on one CPU. Notebook
#   14 sends tokens between processes, notebook 16 copies hot experts.
# - The node limit of notebook 04 was off. With it, whole groups of experts
#   can run empty.
#
# ## References
#
# - Wang et al. 2024, *Auxiliary-loss-free load balancing*, arXiv
#   2408.15664: algorithm 1, sections 3 and 4 (LFB).
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 2.1.2 (eq.
#   16-20), 4.2 (speed and α), 4.5.2 and table 5, 4.5.3 (scope of the
#   balance), figure 9 (specialisation).
# - Fedus et al. 2021, *Switch Transformers*, arXiv 2101.03961: section 2.2
#   (eq. 4-6, the auxiliary loss).
# - Insights into DeepSeek-V3, arXiv 2505.09343v2: table 4 (the rate of the
#   run, which turns FLOPs into hours).
#
# **Next:** [06 · Multi-token prediction](06_multi_token_prediction.ipynb),
# where one position learns from more than one token.
