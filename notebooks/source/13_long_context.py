# %% [markdown]
# # 13 · Eight times as long: YaRN in two stages
#
# {{badge}}
#
# > **Claim.** A model that was trained on 256 positions breaks down before
# > it has read 700: its loss is **more than eight times** what it was, and a
# > number that stood once in the text is not found again. YaRN, which slows
# > down some rotations and leaves the others alone, mends most of the loss
# > without a single step of training, and finds numbers in texts of
# > **2,000** tokens. Two short stages of 24 steps lower the loss further;
# > the whole costs short texts **less than 0.1 nats**. Every rotation slowed
# > down alike ruins the model from its first token.
#
# **Takes** about 90 minutes to work through, 53 of them for the exercises;
# 'Run all' about three minutes on two CPU cores. **Needs** notebooks 02
# (RoPE) and 03 (latent attention). **Afterwards** you can say which angles a
# model has never seen, write YaRN's frequencies and its two multipliers,
# build a needle test that measures what it says, and price a longer context.

# %%
# SETUP

# %% [markdown]
# ## 13.0 The loss on page two
#
# The model is the small DeepSeek-V3 that ships with the workbook: latent
# attention, 16 experts, an MTP module, trained on rows of 256 tokens. RoPE
# has no table of positions that could run out: a rotation is defined for
# every position. So nothing keeps us from giving the model rows of 2,048.
#
# **Guess before you run:** the documents are short, and a row holds more of
# them; that is all that changes. The loss at position 200 is about half a
# nat. What is it at position 1,000?

# %%
from minids3.data import PackedBatches, load_tokenizer
from minids3.data.fresh import stream_validation
from minids3.model import Transformer, load_shipped

tok = load_tokenizer()
base = load_shipped("mini_chat").eval()
SHORT, LONG = 256, 2048  # trained on, wanted
valid, held_out = stream_validation(tok, n=200)
long_rows = PackedBatches(valid, 1, LONG, shuffle=False)


def with_positions(model, positions):
    """A copy of a model for longer texts, otherwise as it was."""
    longer = Transformer(
        model.config.replace(max_position_embeddings=positions))
    longer.load_state_dict(model.state_dict())
    return longer.eval()


@torch.no_grad()
def loss_by_place(model, n=3, width=128):
    """Mean loss in nats of every 128 positions of n long rows."""
    losses = []
    for step in range(n):
        ids, targets = long_rows.batch(step)
        each = F.cross_entropy(model(ids)[0], targets[0], reduction="none")
        losses.append(each.view(-1, width).mean(1))
    return torch.stack(losses).mean(0)


longer = with_positions(base, LONG)
places = {"no change": loss_by_place(longer)}
for start in (0, 128, 256, 512, 1024, 1920):
    print(f"positions {start:5,} to {start + 127:5,}: "
          f"{places['no change'][start // 128]:.2f} nats per token")

# %% [markdown]
# A little way beyond the last trained position it holds; then it collapses,
# and soon the loss is several times what it was, although every document is
# as short as ever and hardly a token needs anything that is further back
# than 256. What has happened?
#
# ## 13.1 Angles nobody has seen
#
# RoPE turns pair j of a query or key by `theta^(-2j/R)` radians a position,
# and a score depends on the *difference* of two positions. So for a pair,
# a distance is an angle. The fastest pair turns once in 6 positions, the
# slowest hardly moves. **How many full turns does each pair make within the
# text a model was trained on?**

# %% [markdown]
# EXERCISE text
# ### Exercise: how often does a pair turn?
#
# Write `turns`. Pair j of the R/2 pairs turns by `theta^(-2j/R)` radians
# from one position to the next. Return how many full turns every pair makes
# over `length` positions.

# %%
# EXERCISE rope-turns

# %%
# CHECK rope-turns

# %% [markdown]
# A pair that turns often has seen **every** angle in training: at a longer
# distance it shows an angle that is known. A pair that made half a turn has
# seen half of the circle. **Predict:** of our model's 16 pairs, how many
# have never come round within 256 positions?

# %% tags=["nbval-check-output"]
R = base.config.qk_rope_head_dim
seen, wanted = turns(SHORT, R), turns(LONG, R)
new = [j for j in range(R // 2) if seen[j] < 1 < wanted[j]]
print(f"pairs with less than a full turn in {SHORT} positions: "
      f"{int((seen < 1).sum())} of {R // 2}")
print(f"of these, pairs that come round within {LONG:,}: "
      f"{', '.join(map(str, new))}")

# %% tags=["fold"]
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.7))
for ax, j in zip(axes, (2, 7, 8, 11)):
    for length, radius, role in ((LONG, 1.0, "control"),
                                 (SHORT, 0.82, "ours")):
        n = turns(length, R)[j].item()
        angles = np.linspace(0, 2 * math.pi * min(n, 1), 200)
        ax.plot(radius * np.cos(angles), radius * np.sin(angles), lw=7,
                color=viz.COLORS[role], solid_capstyle="butt")
    ax.set_title(f"pair {j}", fontsize=10)
    ax.set_xlabel(f"{seen[j].item():.2f} and {wanted[j].item():.1f} turns")
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
fig.tight_layout()
viz.show(fig, dpi=92, alt="Four circles, for pairs 2, 7, 8 and 11: the "
         f"inner arc is what the pair turns through in {SHORT} positions, "
         f"the outer one in {LONG}. Pair 2 has gone round in both; the "
         "others have seen a part of the circle, a smaller one for later "
         "pairs, and would have to go on beyond it.")

# %% [markdown]
# Inner arc, blue: trained. Outer arc: what a text of 2,048 asks for. The
# attention has learned what a score at those angles means, and has learned
# nothing about the rest of the circle. It is not that the model cannot
# *see* far; it hears directions it has no word for.
#
# ## 13.2 Two ways to slow down
#
# If the angles are the trouble, keep them small. **Linear interpolation**
# (Chen et al. 2023) divides every frequency by s, so that position 2,048
# turns every pair as far as position 2,048/s did. Nothing new on any
# circle. But the fastest pair, which tells a neighbour from the next but
# one, now turns s times less for it.
#
# **YaRN** (Peng et al. 2023) slows down only who needs it. A pair that made
# at least `beta_fast` turns in the original text keeps its frequency. One
# that made at most `beta_slow` is divided by s. Between them a ramp, linear
# in the pair's number, blends the two frequencies:
#
# `f' = f · (1 − ramp) + f / s · ramp`
#
# DeepSeek-V3 takes s = 40, beta_fast = 32 and beta_slow = 1 (TR section
# 4.3; the released code). The ends of the ramp are rounded outwards to whole
# pairs.

# %% [markdown]
# EXERCISE text
# ### Exercise: YaRN's frequencies
#
# Write `yarn_frequencies`. First find the pair, a fraction, that turns
# exactly beta times in `original` positions: solve your `turns` for j. The
# ramp begins at the pair of `beta_fast`, rounded down and not below 0, and
# ends at that of `beta_slow`, rounded up and not above R − 1 (so it may end
# beyond the last pair, as in the released code). If both ends are equal, it
# ends 0.001 later. Return the R/2 blended frequencies.

# %%
# EXERCISE yarn-frequencies

# %%
# CHECK yarn-frequencies

# %% [markdown]
# V3's values, put on our model. Ours has 256 positions where V3 had 4,096,
# and 16 pairs for 32. **Predict:** with the published 32 and 1, how many of
# our pairs keep their frequency?

# %%
S = 10  # V3: 40 x 4,096 = 163,840 for 131,072; here 2,560 for 2,048
ramps = {
    "V3: R = 64, L = 4,096, s = 40, 32 / 1": (64, 1e4, 40, 4096, 32, 1),
    f"ours: R = {R}, L = 256, s = {S}, 32 / 1": (R, 1e4, S, SHORT, 32, 1),
    f"ours: R = {R}, L = 256, s = {S}, 4 / 1": (R, 1e4, S, SHORT, 4, 1),
}
kept = {}
for name, values in ramps.items():
    dim, theta = values[:2]
    plain = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    kept[name] = yarn_frequencies(*values) / plain
    whole = int((kept[name] > 0.999).sum())
    print(f"{name:38} {whole:2} of {dim // 2} pairs stay as they are")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 3))
looks = (("published", "o-"), ("control", "s--"), ("ours", "^-"))
for (name, ratio), (role, mark) in zip(kept.items(), looks):
    n_turns = turns(*((4096, 64) if name[0] == "V" else (SHORT, R)))
    ax.semilogx(n_turns, ratio, mark, color=viz.COLORS[role], ms=4.5,
                label=name)
ax.axvline(1, color="0.5", lw=1, ls=":")
ax.set(xlabel="full turns of the pair within the original text (log scale)",
       ylabel="frequency kept", ylim=(0, 1.08))
ax.invert_xaxis()
ax.legend(fontsize=8, loc="lower left")
viz.show(fig, dpi=92, alt="Frequency kept against turns within the "
         "original text. V3: 1 down to about 30 turns, then a ramp to 1/40 "
         "at 1 turn. Ours with 32 and 1: only the first pair is kept, the "
         "ramp covers all that turn at all. With 4 and 1: pairs above 4 "
         "turns are kept, the ramp is short.")

# %% [markdown]
# A recipe has its sizes built in. In 256 positions hardly a pair makes 32
# turns, so the published values would slow down nearly everybody. Measured
# in turns, V3 leaves a third of its pairs alone. We take `beta_fast = 4`.
# Both are compared below.

# %% [markdown]
# Now the loss by position again, nothing trained yet: no change, linear
# interpolation, YaRN with the published betas, YaRN with ours. **Predict**
# the order, within the first 256 positions and at the end.

# %%
from minids3.ref.rope import rope_tables

BETA_FAST, BETA_SLOW = 4, 1


def with_frequencies(model, frequencies):
    """A copy of a model for LONG positions with other frequencies."""
    copy = with_positions(model, LONG)
    copy.rope_cos, copy.rope_sin = rope_tables(
        LONG, R, frequencies=frequencies)
    return copy


plain = 1e4 ** (-torch.arange(0, R, 2, dtype=torch.float64) / R)
tables = {"all / s": plain / S,
          "YaRN, 32 / 1": yarn_frequencies(R, 1e4, S, SHORT, 32, 1),
          "YaRN, 4 / 1": yarn_frequencies(R, 1e4, S, SHORT, BETA_FAST,
                                          BETA_SLOW)}
for name, frequencies in tables.items():
    places[name] = loss_by_place(with_frequencies(base, frequencies))
for name, losses in places.items():
    print(f"{name:13} first 256: {losses[:2].mean():.2f}   "
          f"last 256: {losses[-2:].mean():.2f} nats per token")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 3.3))
looks = {"no change": ("baseline", "s-"), "all / s": ("control", "x--"),
         "YaRN, 32 / 1": ("published", "^:"), "YaRN, 4 / 1": ("ours", "o-")}
middle = 64 + 128 * np.arange(16)
for name, losses in places.items():
    role, mark = looks[name]
    ax.plot(middle, losses, mark, color=viz.COLORS[role], ms=4, label=name)
ax.axvline(SHORT, color="0.5", lw=1, ls=":")
ax.annotate("trained up to here", (SHORT, 0.12), (4, 0), fontsize=8,
            textcoords="offset points", color=viz.COLORS["muted"])
ax.set(xlabel="position", ylabel="loss (nats per token)", ylim=(0, 3.6))
ax.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.52))
viz.show(fig, dpi=92, alt="Loss by position up to 2,048, without training. "
         + "; ".join(f"{name}: {x[0]:.2f} at the start, {x[4]:.2f} around "
                     f"position 576, {x[-1]:.2f} at the end"
                     for name, x in places.items()) + ".")

# %% [markdown]
# Without a single step of training YaRN does most of the work. Linear
# interpolation keeps every angle within what was seen and ruins the model
# from the first position on: neighbours now look ten times as close as they
# were, and most of what a small model knows is about neighbours. It is
# known to need training, and more of it than YaRN (Peng et al. 2023).

# %% [markdown]
# ## 13.3 Two multipliers, and the bugs around them
#
# A longer text has more keys, and the same advantage in score buys a
# smaller share of the attention. YaRN sharpens: it multiplies scores by
# `m²` with `m = 0.1 · ln s + 1`.
#
# **Predict:** one key scores 4 above all others. Its share of the attention
# among 256 keys is 18 %. Among 2,048? And with a factor of m² on all
# scores?

# %% tags=["nbval-check-output"]
m = 0.1 * math.log(S) + 1


def share(n, lead=4.0, factor=1.0):
    """Attention of one key that leads n - 1 others by `lead`."""
    return 1 / (1 + (n - 1) * math.exp(-lead * factor))


print(f"among 256 keys:                 {share(256):.1%}")
print(f"among 2,048 keys:               {share(2048):.1%}")
print(f"among 2,048, scores x {m * m:.3f}:   "
      f"{share(2048, factor=m * m):.1%}")

# %% [markdown]
# Where does the factor go? In the code there are **two** places, and the
# configuration has two numbers for them.
#
# | | multiplies | is |
# |---|---|---|
# | attention factor | the rotary tables, cos and sin | m(mscale) / m(mscale_all_dim) if both are given, else m(1) |
# | softmax scale | every score | width^−½ · m(mscale_all_dim)² if that is given, else width^−½ |
#
# with `m(x) = 0.1 · x · ln s + 1`. Queries and keys of MLA have a part that
# does not turn: the first place never reaches it, the second does. V3's
# report speaks of the rotary part alone (TR section 4.3); its released code
# sets both numbers to 1, so that the first factor is 1 and the second
# reaches the whole score.

# %% [markdown]
# EXERCISE text
# ### Exercise: the two multipliers
#
# Write `multipliers`. Return the attention factor and the softmax scale for
# a query of `width` channels. 0 means that a number is not given.

# %%
# EXERCISE yarn-multipliers

# %%
# CHECK yarn-multipliers

# %% [markdown]
# Each wrong combination has been shipped by somebody:
#
# - Megatron-LM took `mscale` for `mscale_all_dim`
#   ([issue 1429](https://github.com/NVIDIA/Megatron-LM/issues/1429),
#   February 2025). In V3 both are 1: nothing shows.
# - transformers left the second factor out of its DeepSeek-V2 until
#   [July 2026](https://github.com/huggingface/transformers/pull/47435).
# - mobius had the first one only, which is 1 in V3: a factor of 1.87 was
#   missing from every score
#   ([August 2026](https://github.com/onnxruntime/mobius/pull/548)).
#
# The last report notes that **position 0 was right to the last digits**.
# Why? The first token sees one key, and a softmax over one score is 1,
# whatever the score. A test with a single token finds none of these.

# %%
from minids3.nn.mla import LatentAttention


def stretched(model, positions, frequencies, attention_factor, scale):
    """A copy of a model with other rotary tables and another scale."""
    copy = with_positions(model, positions)
    cos, sin = rope_tables(positions, R, frequencies=frequencies)
    copy.rope_cos = cos * attention_factor
    copy.rope_sin = sin * attention_factor
    for module in copy.modules():
        if isinstance(module, LatentAttention):
            module.scale = scale
    return copy


width = base.config.qk_nope_head_dim + R
frequencies = yarn_frequencies(R, 1e4, S, SHORT, BETA_FAST, BETA_SLOW)
on_tables, on_scores = multipliers(width, S, 1.0, 1.0)
yarn = stretched(base, LONG, frequencies, on_tables, on_scores)

library = Transformer(base.config.replace(
    max_position_embeddings=LONG, rope_factor=float(S),
    original_max_position_embeddings=SHORT, beta_fast=float(BETA_FAST),
    beta_slow=float(BETA_SLOW), mscale=1.0, mscale_all_dim=1.0))
library.load_state_dict(base.state_dict())
library = library.eval()

# %% tags=["nbval-check-output"]
with torch.no_grad():
    ids = torch.randint(8, tok.vocab_size, (1, 600),
                        generator=torch.Generator().manual_seed(0))
    right = yarn(ids)
    print("your YaRN is the library's, within 1e-3:",
          (right - library(ids)).abs().max().item() < 1e-3)
    dropped = stretched(base, LONG, frequencies, on_tables, width**-0.5)
    moved = stretched(base, LONG, frequencies, m * m, width**-0.5)
    wrongs = (("dropped", dropped), ("moved to the tables", moved))
    for name, wrong in wrongs:
        gap = (wrong(ids) - right).abs().amax(-1)[0]
        print(f"softmax factor {name}: position 0 within 1e-3:",
              gap[0].item() < 1e-3, " others off by more than 0.1:",
              gap[1:].max().item() > 0.1)

# %% [markdown]
# ## 13.4 The test itself
#
# Before anything is trained: can the ruler be trusted? The first widely
# used needle test walks back from the depth asked for to the nearest token
# that is a full stop. With a tokenizer that joins full stops to words there
# is none, and it walks to position 0, while the chart shows the depth asked
# for
# ([gkamradt/LLMTest_NeedleInAHaystack](https://github.com/gkamradt/LLMTest_NeedleInAHaystack),
# read in the code). Its needle was a sentence a model may know, and another
# model gave the marks. RULER (Hsieh et al. 2024) repaired most of that. What
# we keep of its lessons:
#
# - keys and values are random in **every** text;
# - what is reported is where the needle **is**, in tokens;
# - other needles are there as **distractors**;
# - a question without a needle must score at **chance**;
# - inside the trained length the score must be high, or the test measures
#   something else. It is the line that longer texts are held against.

# %% [markdown]
# EXERCISE text
# ### Exercise: put needles into a haystack
#
# Write `build_haystack`. The text is `head`, then whole `lines` from the
# front, as many as leave room for head and needles in `length` tokens (stop
# at the first line that does not fit). If those lines have n tokens
# together, a needle of depth d goes to the first boundary between lines
# with at least d · n tokens of lines before it. Return the ids, and the
# index at which each needle begins. Everything is a list of token ids.

# %%
# EXERCISE needle-haystack

# %%
# CHECK needle-haystack

# %% [markdown]
# With it the library draws its texts from here on: four needles each, at
# random depths, all of them asked for, each question for itself from a
# cache that has read the text once. **Predict** the map of our untrained
# YaRN: has slowing down helped, before a single step of training?

# %%
import random

from minids3.evals import draw_haystack, recall_by_length
from minids3.viz.needle import needle_maps

TEXTS = 6
LENGTHS = (128, 250, 500, 1000, 2000)


def found_by_length(found):
    """Share of needles found, and of absent ones 'found', by length."""
    rows = {}
    for one in found:
        near = min(LENGTHS, key=lambda n: abs(n - one.length))
        rows.setdefault(near, []).append(one)
    return {n: (sum(f.right for f in some) / len(some),
                sum(f.lucky for f in some) / len(some), len(some))
            for n, some in sorted(rows.items())}


def in_words(maps):
    """The maps' shares for those who cannot see them."""
    return "; ".join(
        f"{name}: " + ", ".join(
            f"{n:,} tokens {right:.0%}"
            for n, (right, _, _) in found_by_length(found).items())
        for name, found in maps.items()) + "."


def look(model, lengths=LENGTHS, seed=0, texts=TEXTS):
    """Needles found in fresh texts, put together by your function."""
    return recall_by_length(model, tok, lengths, texts, seed=seed,
                            build=build_haystack)


linear = with_frequencies(base, plain / S)
untrained = {"no change": look(longer), "all / s": look(linear),
             "YaRN": look(yarn)}
before = untrained["no change"]
print("tokens   found   a number never given   of   (no change)")
for n, (right, lucky, count) in found_by_length(before).items():
    print(f"{n:6,} {right:7.0%} {lucky:16.0%} {count:14}")

# %% tags=["fold"]
viz.show(needle_maps(untrained, dict.fromkeys(untrained, SHORT)), dpi=88,
         alt="Share of needles found, length of the text against place of "
         "the needle, without training: " + in_words(untrained))

# %% [markdown]
# Without a change, the model finds most numbers as long as the text is no
# longer than those it was trained on (not all: looking back is its weak
# side, as the stories of notebook 00 showed), and none beyond. All
# frequencies divided alike: none anywhere. And YaRN finds hardly fewer in
# 2,000 tokens than in 250, **before a single step of training**. What the
# model has learned about looking back it can still use, once the angles are
# those it knows.

# %% [markdown]
# ## 13.5 Two stages
#
# V3 went from 4,096 to 32,768 positions in 1,000 steps of 1,920 rows, then
# to 131,072 in 1,000 steps of 480 rows: the same tokens per step in both,
# and one set of YaRN values, made for the longer, from the start (TR section
# 4.3). The learning rate was that of the end of pre-training.
#
# We do the same, smaller: 12 steps of 4 rows of 1,024, then 12 of 2 rows of
# 2,048, at a sixth of the plateau's rate. A row begins with a long text of
# the kind we test, with fresh keys and numbers; the rest of it are ordinary
# documents. What V3 used is not published.

# %%
from minids3.data import entropy_floor
from minids3.evals import LongRows
from minids3.train import TrainConfig, Trainer, evaluate

STAGES = ((12, 4, 1024), (12, 2, 2048))  # steps, rows, positions
short_rows = PackedBatches(valid, 4, SHORT, shuffle=False)


def extend(model, stage, seed=0, lr=5e-4):
    """Train a copy of a model for one stage; its tables and scale stay."""
    steps, rows, length = stage
    torch.manual_seed(seed)
    plan = TrainConfig(steps=steps, batch_size=rows, seq_len=length, lr=lr,
                       warmup_steps=2, decay_start=steps, seed=seed,
                       mtp_weight=0.1, bias_update_speed=0.0)
    data = LongRows(tok, rows, length, seed=seed, held_out=held_out)
    run = Trainer(model, plan, data)
    run.fit()
    return model.eval()


tokens = sum(a * b * c for a, b, c in STAGES)
print(f"{tokens:,} tokens in {sum(s[0] for s in STAGES)} steps")

# %%
loss_before = evaluate(base, short_rows, 8)
grown = {"YaRN, no step": loss_by_place(yarn)}
stage_1 = extend(stretched(base, LONG, frequencies, on_tables, on_scores),
                 STAGES[0])
between, grown["after stage 1"] = look(stage_1), loss_by_place(stage_1)
loss_between = evaluate(stage_1, short_rows, 8)

# %%
stage_2 = extend(stage_1, STAGES[1])
after, grown["after stage 2"] = look(stage_2), loss_by_place(stage_2)
loss_after = evaluate(stage_2, short_rows, 8)

# %% [markdown]
# **Predict:** the rows of stage 1 end at position 1,024. What does stage 1
# do for the positions beyond?

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(9.8, 3.2))
looks = (("muted", ":"), ("train", "s--"), ("ours", "o-"))
for (name, losses), (role, mark) in zip(grown.items(), looks):
    ax.plot(middle, losses, mark, color=viz.COLORS[role], ms=4,
            label=f"{name}: {losses.mean():.3f}")
worst = places["no change"]
ax.plot(middle, worst, "x-", color=viz.COLORS["control"], ms=4, lw=1,
        label=f"no change: {worst.mean():.3f}")
for length in (SHORT, 1024):
    ax.axvline(length, color="0.5", lw=1, ls=":")
ax.set(xlabel="position", ylabel="loss (nats per token)", ylim=(0, 1.3))
ax.legend(fontsize=8, title="mean over all positions", title_fontsize=8,
          loc="upper left", bbox_to_anchor=(1, 1))
fig.tight_layout()
viz.show(fig, dpi=92, alt="Loss by position up to 2,048. Without a change "
         "it leaves the picture before position 600. Means over all "
         "positions: " + "; ".join(f"{name} {x.mean():.3f}"
                                   for name, x in grown.items()) + ".")

# %% tags=["nbval-check-output"]
end = {name: losses[-4:].mean() for name, losses in grown.items()}
print("last 512 positions: YaRN without a step divides the loss by more "
      "than 2.5:",
      (places["no change"][-4:].mean() > 2.5 * end["YaRN, no step"]).item())
print("both stages together lower it further:",
      (end["after stage 2"] < end["YaRN, no step"]).item())
print("short texts, within 0.1 nats of before:",
      abs(loss_after - loss_before) < 0.1)

# %% [markdown]
# And the needles: before, between, after. Texts above the line are longer
# than any that the model was trained on.

# %% tags=["fold"]
maps = {"before": before, "after stage 1": between, "after stage 2": after}
viz.show(needle_maps(maps, {"before": SHORT, "after stage 1": 1024,
                            "after stage 2": LONG}), dpi=88,
         alt="Share of needles found, length of the text against place of "
         "the needle: " + in_words(maps))

# %% [markdown]
# ## 13.6 The controls that fail
#
# Would the same steps have done it without YaRN? That takes many more
# minutes than a notebook has, so it was run once by a command, every
# variant with the same steps on the same rows:
#
# ```
# python -m minids3.bench long_context --json
# ```
#
# **Predict** the order at 2,000 tokens: no change at all, all frequencies
# divided by s, YaRN with the softmax factor dropped, with that factor moved
# to the rotary tables, with the published betas 32 and 1, YaRN as above.

# %%
from minids3.bench.records import recorded

record = recorded("long_context")
print(f"{'found, in texts of':34}{'500':>6}{'1,000':>8}{'2,000':>8}"
      "   short loss")
for one in record["outcomes"]:
    last = one["stages"][-1]
    print(f"{one['variant']:34}" + "".join(
        f"{last['by_length'][n]['found']:{width}.0%}"
        for n, width in (("500", 6), ("1000", 8), ("2000", 8)))
        + f"{last['short_loss']:13.3f}")

# %% tags=["fold"]
variants = list(dict.fromkeys(o["variant"] for o in record["outcomes"]))
fig, axes = plt.subplots(1, 2, figsize=(9.8, 3.2), sharey=True)
for ax, stage in zip(axes, (1, 2)):
    for variant, color, mark in zip(variants, viz.PALETTE, "os^vDP"):
        runs = [o["stages"][stage]["by_length"] for o in record["outcomes"]
                if o["variant"] == variant]
        xs = [int(n) for n in runs[0]]
        ys = [[100 * r[str(n)]["found"] for r in runs] for n in xs]
        ax.plot(xs, [sum(y) / len(y) for y in ys], mark + "-", color=color,
                ms=4, lw=1.4, label=variant)
        if len(runs) > 1:
            ax.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys],
                            color=color, alpha=0.15, lw=0)
    ax.axvline(STAGES[stage - 1][2], color="0.5", lw=1, ls=":")
    ax.set(title=f"after stage {stage}", xlabel="tokens of the text")
axes[0].set_ylabel("needles found (%)")
axes[1].legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
fig.tight_layout()
end = {v: [o["stages"][2]["by_length"]["2000"]["found"]
           for o in record["outcomes"] if o["variant"] == v]
       for v in variants}
viz.show(fig, dpi=88, alt="Needles found against length of the text, after "
         "either stage, one line a variant, shaded where there are several "
         "seeds. After stage 2, in texts of 2,000: " + "; ".join(
             f"{v} {sum(x) / len(x):.0%}" for v, x in end.items()) + ".")

# %% [markdown]
# Without YaRN the same steps on the same rows find next to nothing beyond
# the trained length, and with all frequencies slowed down nothing at all.
# Slowing down the right pairs is what does it, and not the training.
#
# Look at the two bugs of 13.3, too: with the softmax factor dropped or moved
# to the tables **as much is found** as without the bug, and the loss of
# short texts is the same. One seed each, with YaRN's three as far apart as
# that. So this test cannot see them, which may be why they were shipped; the
# comparison of logits could, at once. The published betas, which slow down
# nearly all pairs of our model, cost the short texts most.
#
# ## 13.7 What it cost the short texts
#
# YaRN as V3, Hugging Face and vLLM use it is **static**: a short text is
# read with the slowed-down pairs too. So look at short texts as well.

# %%
print(f"floor                  {entropy_floor(valid):.3f} nats per token")
for name, loss in (("before", loss_before),
                   ("YaRN, no step", evaluate(yarn, short_rows, 8)),
                   ("after stage 1", loss_between),
                   ("after stage 2", loss_after)):
    print(f"{name:22} {loss:.3f}")

# %% [markdown]
# The slowed-down pairs cost a short text at once, and the steps win back a
# good half of it. What is left is not all YaRN's: the table above has the
# loss without a change after the same steps, and that rose as well.

# %% [markdown]
# ## 13.8 Play: whose ramp is it?
#
# Original length, factor and betas, and which pairs stay. First standing
# still, then with sliders.

# %% tags=["fold"]
def draw_ramp(ax, original, factor, beta_fast, beta_slow, dim=64):
    plain = 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    slow = yarn_frequencies(dim, 1e4, factor, original, beta_fast,
                            beta_slow)
    ax.bar(range(dim // 2), slow / plain, color=viz.COLORS["ours"])
    ax.axhline(1 / factor, color=viz.COLORS["control"], ls="--", lw=1.2)
    ax.set(xlabel="pair", ylabel="frequency kept", ylim=(0, 1.05),
           title=f"L = {original:,}, s = {factor:g}, "
                 f"{beta_fast:g} / {beta_slow:g}")
    return int((slow / plain > 0.999).sum())


fig, axes = plt.subplots(1, 3, figsize=(9.8, 2.7), sharey=True)
stay = [draw_ramp(ax, *values) for ax, values in zip(
    axes, ((4096, 40, 32, 1), (256, 10, 32, 1), (256, 10, 4, 1)))]
fig.tight_layout()
viz.show(fig, alt="Frequency kept by each of 32 pairs. V3's values keep "
         f"{stay[0]} pairs; a text of 256 with the same betas keeps "
         f"{stay[1]}, with 4 and 1 {stay[2]}.", dpi=88)

# %% tags=["nbval-ignore-output"]
def ramp(original=4096, factor=40, beta_fast=32, beta_slow=1):
    """Frequency kept by each of 32 pairs."""
    fig, ax = plt.subplots(figsize=(7, 2.8))
    draw_ramp(ax, original, factor, beta_fast, beta_slow)
    return fig


viz.play(ramp, original=[64, 128, 256, 1024, 4096, 32768],
         factor=[2, 4, 10, 40, 100], beta_fast=[2, 4, 8, 16, 32, 64],
         beta_slow=[1, 2, 4])

# %% [markdown]
# ## 13.9 The Bill
#
# The report gives the extension 119,000 GPU-hours (TR table 1). **Guess:**
# per token, was that as much as pre-training, twice, or five times?

# %% [markdown]
# EXERCISE text
# ### Exercise: what long texts cost
#
# Write `extension_cost`. A token costs six FLOPs for every multiply-add of
# the forward pass: those in the matrices, `weights`, and `pair` for every
# key it sees, half of the text's positions on average. Return all tokens,
# FLOPs per token averaged over tokens, and GPU-hours at `rate` FLOPs per
# second.

# %%
# EXERCISE extension-cost

# %%
# CHECK extension-cost

# %% tags=["nbval-check-output"]
WEIGHTS, PAIR, RATE = 36.6246e9, 61 * 128 * 320, 385e12
v3 = [(1000, 1920, 32_768), (1000, 480, 131_072)]
n, per_token, hours = extension_cost(v3, WEIGHTS, PAIR, RATE)
_, plain, _ = extension_cost([(1, 1, 4096)], WEIGHTS, PAIR, RATE)
print(f"tokens:                 {n / 1e9:7.1f} billion")
print(f"FLOPs per token:        {per_token / 1e9:7.0f} GF, "
      f"{per_token / plain:.1f} times as many as at 4,096")
print(f"at 385 TFLOPS:          {hours / 1e3:7.0f}K GPU-hours")
print(f"published:              {119:7}K, "
      f"{119e3 / (n / 1e12) / 1e3:.0f}K per trillion tokens, "
      f"{119e3 / (n / 1e12) / 180e3:.1f} times pre-training's 180K")
print(f"not explained by FLOPs: {119e3 / hours:7.2f} times")

# %% [markdown]
# Attention grows with the square of the text, and that explains a factor of
# 3.3 of the 5.3. The remaining 1.6 is not published. Likely parts: fewer
# rows to fill a pipeline with, attention kernels at another rate than
# matrix products, activations that have to be recomputed.

# %%
from minids3.sim import bill

bill.show(upto="13")

# %% [markdown]
# **Claim 3 of the article, so far** (trained for about 5.5 million
# dollars): the extension is 4 % of it, \$0.238M at the assumed 2 dollars an
# hour.
#
# ## What became of it
#
# - **August 2025.** V3.1 went on from V3's base with 630 billion tokens in
#   the first extension stage alone, ten times V3's 62.9 billion
#   (second-hand, [2nd-v31-extension]).
# - **September 2025.** V3.2-Exp continues from 128K with sparse attention:
#   an indexer picks 2,048 keys for every query, so that long texts cost
#   attention in proportion to their length. Its training took 2.1 billion
#   tokens to warm the indexer up and 943.7 billion with it (V32 section
#   2.1) - more than seven times V3's extension.
# - **2026.** GLM-5 keeps V3's skeleton and takes over its sparse attention
#   (Hugging Face's documentation); V4 replaces MLA and reads a million
#   positions (sizes second-hand). Notebook 20 builds the indexer.
#
# ## What this does not show
#
# - Language. Our texts have a few hundred words, and a needle looks like no
#   line around it. RULER's harder tasks (many hops, counting, values that
#   contradict each other) are not here.
# - That the extension is cheap in general: the model learns one task on
#   long texts, the one that is tested.
# - That our betas are good ones. They follow V3's in *turns* and not in the
#   share of the pairs; three seeds do not rank settings that are close.
# - Dynamic scaling, as some libraries offer it: there the factor follows
#   the text's length. V3 has nothing of the kind.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 4.3 (the two
#   stages, YaRN's values, a needle test), table 1 (hours).
# - Peng et al. 2023, *YaRN*, arXiv 2309.00071: section 3.1 and 3.2 (ramp),
#   3.3 (the factor on the scores).
# - Chen et al. 2023, *Position Interpolation*, arXiv 2306.15595: section 2.
# - Hsieh et al. 2024, *RULER*, arXiv 2404.06654: section 3.
# - Su et al. 2021, *RoFormer*, arXiv 2104.09864: section 3.2 (RoPE).
#
# **Next:** [14 · Experts across slow
# links](14_experts_across_slow_links.ipynb), where 671 billion parameters do
# not fit into one machine.
