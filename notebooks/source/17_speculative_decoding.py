# %% [markdown]
# # 17 · Speculative decoding
#
# {{badge}}
#
# > **Claim.** Letting a small module guess the next tokens, and checking the
# > guesses in one pass of the large one, changes **nothing** about the text:
# > not "hardly anything", but the same distribution to the last decimal. The
# > rule that you write here stands up to an exact count over all cases and to
# > a chi-square test on a trained model. Three rules that look just as
# > sensible fail both. And what it saves depends on who else is being served:
# > with V3's experts on one GPU most of the gain is gone for a single user,
# > and on V3's own 144 GPUs it is gone with many.
#
# **Takes** about 100 minutes to work through, 55 of them for the exercises;
# 'Run all' about a minute on two CPU cores. **Needs** notebooks 04
# (experts), 06 (the MTP module) and 16 (serving). **Afterwards** you can
# write the accept-or-reject rule and prove it, keep two caches right, and say
# for a given model and a given batch whether guessing pays.

# %%
# SETUP

# %% [markdown]
# ## 17.0 A machine that waits
#
# A text is written one token after the other, and each needs a full pass of
# the model. Take one user of DeepSeek-V3 and, to be generous, one H800 that
# could hold it all. For one token it reads the weights of all layers, with 8
# of 256 experts in each: 37.7 GB in FP8. Then it multiplies each by a number
# or two.
#
# **Guess before you run:** what share of the time do the multipliers work?

# %% tags=["nbval-check-output"]
from minids3.config import get_config
from minids3.sim import parameters, serving
from minids3.sim.hardware import H800

v3 = get_config("v3_671b")
n_bytes = serving.weight_bytes_read(v3, 1)
flops = 2 * parameters.matmul_parameters(v3)
reading, working = n_bytes / H800.memory_bandwidth, flops / H800.fp8_flops
print(f"reading {n_bytes / 1e9:.1f} GB: {1e3 * reading:.1f} ms")
print(f"multiplying {flops / 1e9:.0f} GFLOP: {1e3 * working:.3f} ms, "
      f"{working / reading:.1%} of the time")

# %% [markdown]
# A third of a per cent. A second token in the same pass would multiply
# twice as much, and nobody would notice. But there is no second token: it
# depends on the first.
#
# Unless somebody **guesses** it. That is all of this notebook. A small
# **drafter** proposes one or more tokens (**drafts**). One pass of the main
# model runs over the last token *and* the drafts, as **columns** side by
# side. It gives, at every place, the distribution of the next token: so it
# says, for each draft, what it would have done there itself. Drafts that hold
# are kept, and the pass has made several tokens.
#
# V3 has its drafter on board: the MTP module of notebook 06, which reads the
# main model's hidden vector and the token just chosen, and predicts the one
# after it.
#
# ## 17.1 When does a draft hold?
#
# In greedy decoding the answer is easy: if it is the main model's likeliest
# token. But most texts are *sampled*. The main model then has no opinion
# about "the" next token; it has a **distribution** p: 'red' in 30 of 100
# cases, 'blue' in 25, and so on. The draft was drawn from the drafter's
# distribution q. In which cases may it stay, so that in the end tokens appear
# exactly as often as p says?
#
# Think of 100 cases. The drafter says 'red' 50 times, and 30 are wanted.
# Then 30 of the 50 may stay: with probability p/q = 0.6. It says 'blue' 10
# times, and 25 are wanted. All 10 stay, and 15 are missing. The 20 cases in
# which 'red' was rejected have to become those tokens that are missing, each
# as often as it is missing: in proportion to p − q, where that is positive.
# This is the **residual**. (Leviathan et al. 2022, Chen et al. 2023.)

# %% [markdown]
# EXERCISE text
# ### Exercise: accept or reject
#
# Write `accept_and_residual`: the chance of every token to be accepted if it
# is drafted, and the distribution to draw from after a rejection. With p =
# (0.3, 0.25, 0.45) and q = (0.5, 0.1, 0.4) the chances are 0.6, 1, 1 and the
# residual is (0, 0.75, 0.25). Mind the zeros: top-p sampling (notebook 16)
# makes many.

# %%
# EXERCISE spec-accept

# %%
# CHECK spec-accept

# %% [markdown]
# ## 17.2 Proof by counting
#
# With five tokens nothing has to be simulated. A token x comes out in two
# ways: it was drafted and accepted, or something was rejected and x was drawn
# afterwards. So its probability is
#
# `q(x) · accept(x) + P(rejected) · residual(x)`
#
# Here is that sum for the rule above and for four others, each of which has
# been in somebody's code:
#
# - **drawn again**: after a rejection draw from p, as one would without
#   drafts;
# - **greedy draft, softmax q**: draft the drafter's likeliest token, but
#   divide by its softmax;
# - **greedy draft, certain q**: draft the likeliest token, and say so: q is
#   1 there;
# - **accept everything**.
#
# **Predict:** which two of the five are exact? And which accepts most drafts?

# %%
p = torch.tensor([0.36, 0.26, 0.20, 0.12, 0.06])
q = torch.tensor([0.10, 0.48, 0.14, 0.03, 0.25])
certain = F.one_hot(q.argmax(), 5).float()
accept, residual = accept_and_residual(p, q)
sure_accept, sure_residual = accept_and_residual(p, certain)
RULES = {  # drafts are drawn from; chance to be accepted; drawn otherwise
    "accept_and_residual": (q, accept, residual),
    "drawn again": (q, accept, p),
    "greedy draft, softmax q": (certain, accept, residual),
    "greedy draft, certain q": (certain, sure_accept, sure_residual),
    "accept everything": (q, torch.ones(5), p),
}


def comes_out(drafted, accept, otherwise):
    """The distribution of what comes out, and how often drafts hold."""
    kept = drafted * accept
    return kept + (1 - kept.sum()) * otherwise, kept.sum().item()


print(f"{'':26}accepted   off by   what comes out")
for name, rule in RULES.items():
    probs, held = comes_out(*rule)
    off = (probs - p).abs().sum() / 2
    print(f"{name:26}{held:8.2f}{off:9.3f}   "
          + " ".join(f"{x:.3f}" for x in probs))
print(f"{'wanted':46}" + " ".join(f"{x:.3f}" for x in p))

# %% tags=["nbval-check-output"]
for name, rule in RULES.items():
    off = (comes_out(*rule)[0] - p).abs().sum().item() / 2
    print(f"{name:26}", "exact" if off < 1e-6 else "WRONG")

# %% [markdown]
# "Off by" is the **total variation**: the share of texts that would have to
# change for the distribution to be right. *Drawn again* gives too much to
# tokens that had their accepted drafts already. *Softmax q* is the subtle
# one: the ratio must use the distribution from which the draft **really** was
# drawn. A greedy draft was not drawn from the softmax; its distribution is
# one 1 and otherwise zeros, and then it is exact, too. *Accept everything* is
# the fastest of all. It writes the drafter's text.
#
# How many drafts hold has a simple form as well: the sum over x of q(x) ·
# min(1, p/q) is the **overlap** Σ min(p, q) of the two distributions. No
# exact rule can accept more.
#
# ## 17.3 More than one
#
# If one guess is good, two may be better. The drafter goes on from its own
# guess; the check looks at the drafts in order. Draft 2 was made for a text
# that ends in draft 1. If draft 1 falls, draft 2 is a guess about a text that
# does not exist. And if *all* hold, the pass has computed one more
# distribution, that of the place after the last draft, and a token from it is
# free.

# %% [markdown]
# EXERCISE text
# ### Exercise: several drafts at once
#
# Write `check_drafts`. Random numbers u are handed in, so that your function
# can be tested exactly. With chances 0.6 and 0.9 and u = (0.5, 0.95) the
# first draft holds and the second falls: n = 1, and the residual of the
# second place. You may use `accept_and_residual`.

# %%
# EXERCISE spec-verify

# %%
# CHECK spec-verify

# %% [markdown]
# Count again: texts of three tokens from an alphabet of four, where every
# distribution depends on the token before. A step drafts two tokens; whatever
# is missing after it is drawn plainly. All 4 · 4 pairs of drafts, all
# outcomes, weighted: the distribution of the 64 texts against the one without
# drafts. The chance that exactly n drafts hold is found by asking
# `check_drafts` itself, with u just below and just above each chance.

# %%
def three_tokens(P, Q, start=0):
    """Distribution [V, V, V] of three tokens, two of them drafted."""
    V = len(P)
    total = torch.zeros(V, V, V, dtype=P.dtype)
    for a in range(V):
        for b in range(V):
            p = torch.stack((P[start], P[a], P[b]))
            q = torch.stack((Q[start], Q[a]))
            chance = accept_and_residual(p[:2], q)[0]
            x, y = chance[0, a], chance[1, b]
            for n, u, weight in ((0, ((1 + x) / 2, y / 2), 1 - x),
                                 (1, (x / 2, (1 + y) / 2), x * (1 - y)),
                                 (2, (x / 2, y / 2), x * y)):
                _, probs = check_drafts(p, [a, b], q, torch.stack(u))
                part = Q[start, a] * Q[a, b] * weight * probs
                if n == 0:  # two tokens are missing: plainly
                    total += part[:, None, None] * P[:, :, None] * P
                elif n == 1:
                    total[a] += part[:, None] * P
                else:
                    total[a, b] += part
    return total


torch.manual_seed(0)
P, Q = torch.softmax(1.5 * torch.randn(2, 4, 4, dtype=torch.float64), -1)
plain = P[0][:, None, None] * P[:, :, None] * P[None]
drafted = three_tokens(P, Q)

# %% tags=["nbval-check-output"]
print("64 probabilities, their sum is 1:",
      abs(drafted.sum().item() - 1) < 1e-12)
print("largest difference below 1e-12: ",
      (drafted - plain).abs().max().item() < 1e-12)

# %% [markdown]
# ## 17.4 On a real model
#
# Five tokens are a toy. Now the model that ships with the workbook: 2,048
# tokens, latent attention, experts, one MTP module, sampled with temperature
# 1 and top-p 0.9. Both go into p **before** the comparison: p is the
# distribution that the user asked for.
#
# The drafter is free to do as it likes, as long as q is the distribution it
# really draws from. We let it draft at a temperature of 0.4, timidly, and for
# a reason: a drafter that nearly agrees with the model would let nearly any
# rule pass.
#
# We let it write the three tokens after the beginning of a story. Top-p keeps
# only few tokens at each place, so that the exact probability of every
# possible text can be listed: the numbers that must come out.

# %%
from minids3.data import DOMAINS, load_split, load_tokenizer
from minids3.infer.sample import next_token_probs
from minids3.model import load_shipped

tok = load_tokenizer()
model = load_shipped("mini_chat").eval()
BEGIN = tuple(tok.encode("One morning, Mira the fox left a", bos=True))
ASKED = dict(temperature=1.0, top_p=0.9)
TIMID = dict(temperature=0.4, top_p=0.9)
PROBS = {}  # text -> the main model's and the module's, for its next token


@torch.no_grad()
def look(texts):
    """Fill PROBS for texts of equal length."""
    for some in (texts[i:i + 64] for i in range(0, len(texts), 64)):
        ids = torch.tensor(some)
        ps = next_token_probs(model(ids)[:, -1], **ASKED)
        qs = next_token_probs(model.mtp_logits(ids)[0][:, -1], **TIMID)
        PROBS.update(zip(some, zip(ps, qs)))


def both_of(text):
    if text not in PROBS:
        look([text])
    return PROBS[text]


level, overlap = {BEGIN: 1.0}, []
for place in range(3):
    look(list(level))
    overlap.append(sum(w * torch.minimum(*PROBS[t]).sum().item()
                       for t, w in level.items()))
    level = {(*t, v): w * PROBS[t][0][v].item()
             for t, w in level.items()
             for v in PROBS[t][0].nonzero().flatten().tolist()}
EXACT = {t[len(BEGIN):]: w for t, w in level.items()}
print(f"{len(EXACT)} possible texts, probabilities sum to "
      f"{sum(EXACT.values()):.6f}")
print("overlap of both, place by place:",
      " ".join(f"{x:.2f}" for x in overlap))
for text, w in sorted(EXACT.items(), key=lambda x: -x[1])[:4]:
    print(f"{w:6.1%}  ...{tok.decode(list(text))!r}")

# %% [markdown]
# Now write with drafts, several thousand times, and count. The **chi-square
# test** adds up (counted − expected)² / expected over all texts, rare ones
# taken together. If the rule is exact, the sum is about as large as the
# number of classes less one, and its p-value, the chance to be at least
# that large by accident, is anything between 0 and 1. A p-value of
# one in a million is no accident.
#
# **Predict:** which of the wrong rules will hide best?

# %%
def write(rule, g):
    """Three tokens after BEGIN, with drafts."""
    text, drafts, held = BEGIN, 0, 0
    while len(text) < len(BEGIN) + 3:
        draft, accepted, token = rule(*both_of(text), g)
        drafts, held = drafts + (draft is not None), held + accepted
        text += (draft if accepted else token,)
        if accepted and len(text) < len(BEGIN) + 3:  # the free token
            text += (draw(both_of(text)[0], g),)
    return text[len(BEGIN):], drafts, held


def draw(probs, g):
    return int(torch.multinomial(probs, 1, generator=g))


def exact(p, q, g):
    """Your rule, with one draft: the draft, whether it holds, what else."""
    x = draw(q, g)
    both = torch.stack((p, p))  # the second row is the next place's: unused
    n, probs = check_drafts(both, [x], q[None], torch.rand(1, generator=g))
    return x, n == 1, draw(probs, g)


def drawn_again(p, q, g):
    x = draw(q, g)
    chance = accept_and_residual(p, q)[0][x]
    return x, bool(torch.rand((), generator=g) < chance), draw(p, g)


def softmax_q(p, q, g):
    x = int(q.argmax())
    accept, residual = accept_and_residual(p, q)
    return (x, bool(torch.rand((), generator=g) < accept[x]),
            draw(residual, g))


def everything(p, q, g):
    return draw(q, g), True, None


def plainly(p, q, g):
    return None, False, draw(p, g)


def chi_square(counts, n):
    """Statistic, classes less one, p-value; classes of 8 or more."""
    classes, rest = [], [0.0, 0]
    for text, w in EXACT.items():
        seen = counts.get(text, 0)
        if n * w >= 8:
            classes.append((n * w, seen))
        else:
            rest = [rest[0] + n * w, rest[1] + seen]
    rest[1] += sum(c for t, c in counts.items() if t not in EXACT)
    classes.append((max(rest[0], 0.5), rest[1]))
    value = sum((seen - want) ** 2 / want for want, seen in classes)
    free = len(classes) - 1
    chance = torch.special.gammaincc(torch.tensor(free / 2.0).double(),
                                     torch.tensor(value / 2).double())
    return value, free, chance.item()


# %%
from collections import Counter

N = 4000
WRITERS = {"without drafts": plainly, "accept_and_residual": exact,
           "drawn again": drawn_again, "greedy, softmax q": softmax_q,
           "accept everything": everything}
counted, found = {}, {}
print(f"{'':22}accepted   chi-square   classes - 1   p-value")
for name, rule in WRITERS.items():
    g = torch.Generator().manual_seed(17)
    texts, drafts, held = zip(*(write(rule, g) for _ in range(N)))
    counted[name] = Counter(texts)
    found[name] = chi_square(counted[name], N)
    value, free, chance = found[name]
    share = f"{sum(held) / sum(drafts):.0%}" if any(drafts) else "-"
    print(f"{name:22}{share:>9}{value:12.1f}{free:14}{chance:10.1e}")

# %% tags=["fold"]
top = sorted(EXACT, key=lambda t: -EXACT[t])[:24]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharey=True)
for ax, name, role in ((axes[0], "accept_and_residual", "ours"),
                       (axes[1], "accept everything", "control")):
    want = np.array([N * EXACT[t] for t in top])
    got = np.array([counted[name].get(t, 0) for t in top])
    ax.bar(range(len(top)), got, 0.75, color=viz.COLORS[role],
           label=f"counted: {name}")
    ax.errorbar(range(len(top)), want, 2 * np.sqrt(want), fmt="_",
                color=viz.COLORS["ink"], ms=7, lw=1,
                label="expected, ± 2 standard deviations")
    ax.set_xlabel("the 24 likeliest texts of three tokens")
    ax.set_xticks([])
    ax.legend(fontsize=8)
axes[0].set_ylabel(f"how often in {N:,}")
fig.tight_layout()
viz.show(fig, dpi=88, alt="Counts of the 24 likeliest texts against "
         "what is expected. Left, accept_and_residual: the bars scatter "
         "around it. Right, accept everything: they are far above it. "
         f"p-values {found['accept_and_residual'][2]:.2f} and "
         f"{found['accept everything'][2]:.0e}.")

# %% tags=["nbval-check-output"]
for name, (value, free, chance) in found.items():
    print(f"{name:22}", "not to be told apart from p" if chance > 1e-3
          else "not p")

# %% [markdown]
# A test like this can only *fail* to find a difference; the proof is section
# 17.2. But it sees what no look at a page of text would: all the wrong rules
# write perfect little stories. And it needs a drafter that is wrong often
# enough. With the drafter at the model's own temperature (set `TIMID` to
# `ASKED` and run the three cells again) nearly all drafts hold, and *drawn
# again* passes with 4,000 texts, as does *accept everything*: a good drafter
# hides a bad rule.
#
# ## 17.5 Two caches
#
# So far every distribution came from a pass over the whole text. A decoder
# has a **cache** (notebook 16), or rather two, one for the main model and one
# for the MTP module. A pass over the last token and k drafts puts k + 1 new
# entries into the first, whatever is accepted afterwards. And the module,
# whose place i reads the main model's vector of token i and the embedding of
# token i + 1, was fed its *own* output to make drafts beyond the first.
#
# | a text of 5 ids, 2 drafts, 1 accepted | place 4 | place 5 | place 6 |
# |---|---|---|---|
# | went through the main model | id 4 | draft 1 | draft 2 |
# | now in the text | id 4 | draft 1 | the new token |
# | main cache holds | right | right | **wrong** |
# | the module had read | **its own vector**, draft 1 | - | - |
# | and must read now | vector of id 4, draft 1 | vector of draft 1, new token | - |

# %% [markdown]
# EXERCISE text
# ### Exercise: two caches, rolled back
#
# Write `after_check`: what stays, and what the module reads next. In the
# table's example the new text has 7 ids, the main cache keeps 6 places, the
# module's 4, and the module reads two vectors.

# %%
# EXERCISE spec-rollback

# %%
# CHECK spec-rollback

# %% [markdown]
# Rolling back is only a number: entries beyond it are written over. Here is
# the whole decoder, made of your three functions. Temperature 0 needs no case
# of its own: p and q are then certain, and the rule accepts a draft if both
# name the same token.

# %%
from minids3.infer import generate_ids, make_cache


class Drafter:
    """The MTP module with its own cache."""

    def __init__(self, model):
        deeper = model.config.num_hidden_layers + 1  # its block is the last
        self.model, self.module = model, model.mtp[0]
        self.cache = make_cache(
            model.config.replace(num_hidden_layers=deeper))

    def read(self, vectors, ids):
        """Go on from vectors [m, D] and the token after each: [m, D]."""
        start = self.cache.length
        place = slice(start, start + len(ids))
        out = self.module(
            vectors[None], self.model.embed_tokens(torch.tensor([ids])),
            self.model.rope_cos[place], self.model.rope_sin[place],
            self.cache)
        self.cache.advance(len(ids))
        return out[0]

    def drafts(self, vectors, ids, k, probs_of, g):
        """k drafts and the distributions [k, V] they were drawn from."""
        tokens, q = [], []
        for i in range(k):
            out = (self.read(vectors, ids) if i == 0
                   else self.read(out[-1:], tokens[-1:]))
            q.append(probs_of(self.model.lm_head(out[-1])))
            tokens.append(draw(q[-1], g))
        return tokens, torch.stack(q)


@torch.no_grad()
def decode(model, prompt, new, k, temperature=0.0, seed=0,
           after=after_check):
    """At least `new` tokens after a prompt: the text, and its steps."""
    g = torch.Generator().manual_seed(seed)

    def probs_of(logits):
        return next_token_probs(logits, temperature)

    main, drafter = make_cache(model.config), Drafter(model)
    text, steps = list(prompt), []
    vectors = model.hidden_states(torch.tensor([text]), main)[0]
    text.append(draw(probs_of(model.lm_head(vectors[-1])), g))
    while len(text) < len(prompt) + new:
        drafts, q = drafter.drafts(
            vectors, text[-len(vectors):], k, probs_of, g)
        hidden = model.hidden_states(
            torch.tensor([[text[-1], *drafts]]), main)[0]
        p = probs_of(model.lm_head(hidden))
        n, last = check_drafts(p, drafts, q, torch.rand(k, generator=g))
        token = draw(last, g)
        steps.append((drafts, n, token))
        text, *kept, vectors = after(text, drafts, n, token, hidden)
        for cache, places in zip((main, drafter.cache), kept):
            cache.length = min(cache.length, places)  # rolled back
    return text, steps


# %% [markdown]
# Does it write, greedily, token for token what the model writes without
# drafts? And what if something goes wrong in `after_check`? Three controls:
# the **main** cache keeps everything; the **module's** does; or the module is
# **blind**, and reads zeros instead of the main model's vectors. **Predict**
# for each: will the text be wrong, or slow, or neither?

# %%
split = load_split("validation")
STARTS = {d: split.only(d).document(3).tolist()[:24] for d in DOMAINS}
NEW = 48


def main_forgets(text, drafts, n, token, hidden):
    new, _, mtp, rows = after_check(text, drafts, n, token, hidden)
    return new, math.inf, mtp, rows  # nothing is taken back


def module_forgets(text, drafts, n, token, hidden):
    new, keep, _, rows = after_check(text, drafts, n, token, hidden)
    return new, keep, math.inf, rows


def module_blind(text, drafts, n, token, hidden):
    *right, rows = after_check(text, drafts, n, token, hidden)
    return *right, torch.zeros_like(rows)


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y),
                min(len(a), len(b)))


RUNS, same, pace = {}, {}, {}
AFTER = {"right": after_check, "main": main_forgets,
         "module": module_forgets, "blind": module_blind}
print("equal tokens of 48, and tokens per step, with two drafts:")
print(f"{'':12}{'right':>14}{'main forgets':>16}{'module forgets':>16}"
      f"{'module blind':>16}")
for domain, start in STARTS.items():
    want = generate_ids(model, torch.tensor([start]), NEW)[0].tolist()
    want = want[-NEW:]
    words = []
    for name, after in AFTER.items():
        text, steps = decode(model, start, NEW, 2, after=after)
        got = text[len(start):len(start) + NEW]
        equal = first_difference(got, want)
        same[domain, name] = equal
        made = sum(n + 1 for _, n, _ in steps) / len(steps)
        words.append(f"{equal:3} {made:6.2f}")
        pace[domain, name] = made
        if name == "right":
            RUNS[domain, 2] = steps
    RUNS[domain, 1] = decode(model, start, NEW, 1)[1]
    print(f"{domain:10}" + "".join(f"{w:>16}" for w in words))

# %% tags=["nbval-check-output"]
print("rolled back: all tokens equal in every domain:",
      all(same[d, "right"] == NEW for d in DOMAINS))
print("main cache not rolled back: wrong text in some domain:",
      any(same[d, "main"] < NEW for d in DOMAINS))
print("module forgetful or blind: still the right text:",
      all(same[d, k] == NEW for d in DOMAINS for k in ("module", "blind")))
print("module blind: fewer tokens per step in most domains:",
      sum(pace[d, "blind"] < pace[d, "right"] for d in DOMAINS) > 2)

# %% [markdown]
# A main cache that remembers rejected words soon writes another text, unless
# attention happens not to care for them. A module that remembers its own
# dreams writes the **same** text, and so does a blind one, with clearly fewer
# drafts that hold (where a text is so regular that it can be guessed blindly,
# not even that). Whatever the drafter does, the check makes it right. That is
# the beauty of the method, and its trap: a broken drafter is never wrong,
# only slow, and nobody notices. Watch the acceptance, not the text.
#
# ## 17.6 Tokens per step
#
# How many tokens does a step make? One is certain. The first draft adds one
# with probability a₁; the second adds one with a₂, *if the first held*. And a
# step takes longer than a plain one: drafts have to be made, and each is a
# column more.

# %% [markdown]
# EXERCISE text
# ### Exercise: what a step is worth
#
# Write `step_worth`. Two drafts with 0.8 and 0.5, at a cost of 0.1 for making
# and 0.2 for checking each, give 2.2 tokens in 1.6 times the time: 1.375.

# %%
# EXERCISE spec-worth

# %%
# CHECK spec-worth

# %% [markdown]
# Now for real, with seconds. The library's `Engine` (notebook 16) drafts and
# checks by the same rules; here it serves one text at a time, greedily, with
# no, one and two drafts. Two beginnings of unseen documents in each domain.
#
# **Predict:** how many tokens will a step make with one and with two drafts?
# And how much *faster* will that be on this machine?

# %%
import time

from minids3.infer.engine import Engine, Sampling

torch.set_num_threads(1)  # seconds of one core


def serve(domain, drafts, n=2, new=48):
    """Tokens per step, acceptance, CPU seconds for n texts."""
    engine = Engine(model, drafts=drafts, max_batch=1)
    docs = split.only(domain)
    began = time.process_time()
    for i in range(n):
        engine.generate([docs.document(i).tolist()[:24]],
                        Sampling(max_new_tokens=new))
    seconds = time.process_time() - began
    s = engine.statistics
    return dict(tokens=s.generated / s.steps, seconds=seconds,
                accepted=s.accepted / max(1, s.drafted),
                made=s.generated, steps=s.steps)


serve("stories", 2, 1, 8)  # warm up
measured = {}
print(f"{'':12}tokens per step          tokens per second")
print(f"{'drafts':12}" + 2 * f"{'0':>8}{'1':>8}{'2':>8}")
for domain in DOMAINS:
    for drafts in (0, 1, 2):
        runs = [serve(domain, drafts) for _ in range(2)]
        measured[domain, drafts] = min(runs, key=lambda r: r["seconds"])
    row = [measured[domain, k] for k in (0, 1, 2)]
    print(f"{domain:12}" + "".join(f"{r['tokens']:8.2f}" for r in row)
          + "".join(f"{r['made'] / r['seconds']:8.0f}" for r in row))

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.1))
for k, role in enumerate(("muted", "ours", "baseline")):
    at = np.arange(4) + 0.27 * (k - 1)
    runs = [measured[d, k] for d in DOMAINS]
    label = ("no draft", "one draft", "two drafts")[k]
    bars = [r["tokens"] for r in runs]
    base = [measured[d, 0] for d in DOMAINS]
    speed = [(r["made"] / r["seconds"]) / (b["made"] / b["seconds"])
             for r, b in zip(runs, base)]
    for ax, values in zip(axes, (bars, speed)):
        ax.bar(at, values, 0.25, color=viz.COLORS[role], label=label)
        for x, v in zip(at, values):
            ax.annotate(f"{v:.2f}", (x, v), (0, 2), ha="center",
                        textcoords="offset points", fontsize=7)
for ax, label in zip(axes, ("tokens per step",
                            "tokens per second (no draft = 1)")):
    ax.set_xticks(range(4), DOMAINS)
    ax.set(ylabel=label, ylim=(0, 3.4))
    ax.grid(axis="x", visible=False)
axes[0].legend(fontsize=8, ncols=3)
fig.tight_layout()
gains = {k: np.mean([measured[d, 0]["seconds"] / measured[d, 0]["made"]
                     / (measured[d, k]["seconds"] / measured[d, k]["made"])
                     for d in DOMAINS]) for k in (1, 2)}
viz.show(fig, dpi=88, alt="Tokens per step and speed by domain with no, "
         "one and two drafts. Tokens per step: "
         + "; ".join(f"{d} " + ", ".join(f"{measured[d, k]['tokens']:.2f}"
                                         for k in (0, 1, 2))
                     for d in DOMAINS)
         + f". Mean speed-up {gains[1]:.2f} and {gains[2]:.2f}.")

# %% [markdown]
# Tokens per step come out not far from their limits of 2 and 3; the model
# and its texts are simple. The *time* tells another story. Where has the
# rest gone? The steps themselves say it: how much longer is one with drafts
# than one without?

# %%
def step_seconds(k):
    """CPU seconds of a step, mean over domains."""
    return (sum(measured[d, k]["seconds"] for d in DOMAINS)
            / sum(measured[d, k]["steps"] for d in DOMAINS))


def by_place(k):
    """Acceptance of each of k drafts, where those before it held."""
    steps = [s for d in DOMAINS for s in RUNS[d, k]]
    return [sum(n > i for _, n, _ in steps)
            / max(1, sum(n >= i for _, n, _ in steps)) for i in range(k)]


for k in (1, 2):
    c = (step_seconds(k) / step_seconds(0) - 1) / k
    rates = by_place(k)
    tokens, speed = step_worth(rates, 0.0, c)
    print(f"{k} draft{'s' * (k > 1)}: accepted "
          + ", ".join(f"{a:.0%}" for a in rates)
          + f"; each costs {c:.2f} of a step, to make and to check")
    print(f"   step_worth says {tokens:.2f} tokens, {speed:.2f} times; "
          f"measured {gains[k]:.2f}")

# %% [markdown]
# (Other work on the machine moves these seconds by a fifth or more. Run the
# cells again before you believe a small difference.)
#
# On a small model on a CPU, a draft costs a good part of a step: the MTP
# module is one block beside six, and its pass through the head is as long as
# the main model's. And the second column brings its own experts. On a large
# model the module is nearly free: in V3 it multiplies 4 % of what the main
# model does.
#
# The **second draft** comes from a module that was trained for the first
# only. It reads its own output where it should read the main model's vector.
# Here that costs some of the acceptance. V4's module, used twice, had 76.9 %
# of its first and 38.1 % of its second drafts accepted (vLLM issue 41044,
# second-hand): with two numbers like these, is a second draft worth it?

# %%
V4 = [0.769, 0.381]
print("each draft costs   one draft   two drafts")
for cost in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
    one, two = step_worth(V4[:1], cost, 0)[1], step_worth(V4, cost, 0)[1]
    print(f"{cost:16.2f}{one:12.2f}{two:13.2f}"
          f"   {'two' if two > one else 'one'}")

# %% [markdown]
# ### Hotter texts
#
# All of that was greedy. For sampled texts the acceptance is the overlap Σ
# min(p, q). **Predict:** does it rise or fall with the temperature?

# %%
HEAT = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@torch.no_grad()
def overlap_at(domain, n=6):
    """Overlap at each temperature, mean over given texts."""
    docs, sums, count = split.only(domain), np.zeros(len(HEAT)), 0
    for i in range(n):
        ids = docs.document(i)[None, :200].long()
        p, q = model(ids)[0, 1:], model.mtp_logits(ids)[0][0]
        sums += [torch.minimum(next_token_probs(p, t),
                               next_token_probs(q, t)).sum().item()
                 for t in HEAT]
        count += len(p)
    return sums / count


heat = {d: overlap_at(d) for d in DOMAINS}

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7, 3))
for d, ls in zip(DOMAINS, ("-", "--", "-.", ":")):
    ax.plot(HEAT, heat[d], ls, marker="o", ms=4, color=viz.COLORS[d],
            label=d)
ax.axhspan(0.85, 0.90, color=viz.COLORS["published"], alpha=0.3, lw=0,
           label="V3's, TR")
ax.set(xlabel="temperature", ylabel="drafts accepted", ylim=(0, 1.02))
ax.legend(fontsize=8, ncols=2, loc="lower left")
viz.show(fig, dpi=88, alt="Acceptance against temperature, on given texts: "
         + "; ".join(f"{d} {heat[d][0]:.2f} at 0, {heat[d][4]:.2f} at 1, "
                     f"{heat[d][-1]:.2f} at 2" for d in DOMAINS) + ".")

# %% [markdown]
# Up to the model's own temperature of 1 little happens. The acceptance may
# even rise: greedily, two nearly equal tokens are a rejection if the two
# distributions order them differently, and by overlap they are hardly any.
# Above 1 both distributions flatten, each in its own way, and part.
#
# ## 17.7 Against the report
#
# The report names two numbers: the second token is accepted in
# **85 to 90 %** of cases, and decoding makes **1.8 times** as many tokens
# per second (TR section 5.4.3). Are they consistent? Turn your `step_worth`
# around.

# %% tags=["nbval-check-output"]
for a in (0.85, 0.90):
    tokens, _ = step_worth([a], 0, 0)
    print(f"{a:.0%} accepted: {tokens:.2f} tokens per step; 1.8 times the "
          f"speed leaves {tokens / 1.8 - 1:.1%} for draft and check")

# %% [markdown]
# Making the draft takes some 4 % of the multiplications. So a check that
# costs *next to nothing* is what the 1.8 needs. When is that so?
#
# ## 17.8 With experts
#
# For a dense model a second column is free until the multipliers are busy:
# all weights are read anyway. With experts every column brings its own. But
# neighbours in a text are not strangers: they may like the same experts. How
# many different ones do two columns read?

# %% [markdown]
# EXERCISE text
# ### Exercise: whose weights are read?
#
# Write `experts_read`: what neighbours chose together, and what strangers
# would. For the choices (0, 1), (1, 2), (1, 3) of four experts and two
# columns, neighbours read 3 on average. Strangers: expert 1, which all
# chose, is met for certain, the others with 1 − (2/3)² = 5/9 each: 2.67.

# %%
# EXERCISE spec-experts

# %%
# CHECK spec-experts

# %% [markdown]
# Measure it on the model: 16 experts, four for each token, five layers.
# **Predict:** two strangers with evenly loved experts would read 7 of 16.
# Will neighbours read more or fewer?

# %%
from minids3.nn.gate import record_routing

rows = {}
with torch.no_grad(), record_routing(model) as log:
    for domain in DOMAINS:
        docs = split.only(domain)
        for i in range(4):
            model(docs.document(i)[None, :200].long())
            for name, routing in log.items():
                rows.setdefault((domain, name), []).append(
                    routing.indices.view(-1, routing.indices.shape[-1]))
layers = [name for name in log if not name.startswith("mtp")]
E, K = model.config.n_routed_experts, model.config.num_experts_per_tok
read2 = {}
print("experts read by two columns     neighbours   strangers   "
      "strangers, all experts even")
for domain in DOMAINS:
    both = [experts_read(text, E, 2) for name in layers
            for text in rows[domain, name]]
    read2[domain] = np.mean(both, axis=0)
    even = serving.expected_experts(2, E, K)
    print(f"{domain:32}{read2[domain][0]:10.2f}{read2[domain][1]:12.2f}"
          f"{even:12.2f}")

# %% [markdown]
# Strangers with the text's own favourites meet a little more often than with
# even ones, and neighbours, which are what a step really checks, a little
# more often still. It helps little: two columns read far more matrices than
# the four of one.

# %% tags=["nbval-check-output"]
print("two neighbours read at least half as many again as one token:",
      all(read2[d][0] > 1.5 * K for d in DOMAINS))
print("and fewer than two strangers with even experts:",
      all(read2[d][0] < serving.expected_experts(2, E, K) for d in DOMAINS))

# %% [markdown]
# V3's real choices are not published, so take strangers with even experts.
# What does a second column cost **in weights**? Two settings: one GPU that
# has all experts, as in notebook 06, and the 144 GPUs of V3's service in
# February 2025 (OI), each with its own sequences and a few experts of every
# layer. **Predict:** where is one user the worst case?

# %% tags=["nbval-check-output"]
print("sequences      a second column reads so many more weights")
print("per GPU        one GPU with all experts      144 GPUs together")
for batch in (1, 8, 32, 64, 128, 256):
    alone, many = (
        serving.weight_bytes_read(v3, 2 * batch, **where)
        / serving.weight_bytes_read(v3, batch, **where) - 1
        for where in ({}, dict(gpus=144, places=288)))
    print(f"{batch:6}{alone:23.0%}{many:27.1%}")

# %% [markdown]
# On one GPU a second column is expensive up to about a hundred tokens: they
# read half of the experts again. On 144 GPUs there *are* more than a hundred
# tokens, even with one user on each, and the column is nearly free. That is
# the setting in which 1.8 makes sense.
#
# But expert parallelism has its own price: **every column travels**, to its
# experts and back, accepted or not (notebook 14). Put everything together,
# weights, cache, attention and links, in the library's roofline
# (`minids3.sim.serving`), with 85 % accepted.
#
# **Predict** the shape of the curve: gain against sequences on each GPU.

# %%
batches = np.unique(np.geomspace(1, 256, 60).astype(int))
alone = serving.Deployment(v3)


def gain(where, batch, a=0.85, context=4989):
    """Tokens per second with one draft, in relation to none."""
    with_draft = serving.decode_step(where, batch, context, 2, 1 + a)
    plain = serving.decode_step(where, batch, context)
    return with_draft.tokens_per_second / plain.tokens_per_second


curves = {"144 GPUs, links included": [gain(serving.V3_DECODE, b)
                                       for b in batches],
          "one GPU that holds it all": [gain(alone, b) for b in batches]}
for b in (1, 16, 32, 64, 88, 128, 256):
    step = serving.decode_step(serving.V3_DECODE, b, 4989, 2, 1.85)
    print(f"{b:4} sequences: {gain(serving.V3_DECODE, b):.2f} times; with "
          f"a draft the step waits for {step.bound}")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 3.2))
for (name, values), role, ls in zip(curves.items(), ("ours", "baseline"),
                                    ("-", "--")):
    ax.plot(batches, values, ls, color=viz.COLORS[role], label=name)
ax.axhline(1.8, color=viz.COLORS["published"], ls=":", label="1.8, TR")
ax.axhline(1, color="0.4", lw=1)
ax.axvline(88, color=viz.COLORS["muted"], lw=1, ls=":")
ax.annotate("that day's mean,\ninferred", (88, 1.62), (4, 0), fontsize=7.5,
            textcoords="offset points", color=viz.COLORS["muted"])
ax.set_xscale("log", base=2)
ax.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
ax.set(xlabel="sequences on each GPU, 4,989 cached tokens each",
       ylabel="tokens per second with\none draft (none = 1)",
       ylim=(0.6, 2.0))
ax.legend(fontsize=8, loc="lower left", ncols=3)
viz.show(fig, dpi=90, alt="Gain by one draft at 85 percent acceptance "
         "against sequences per GPU. On 144 GPUs: "
         + ", ".join(f"{gain(serving.V3_DECODE, b):.2f} at {b}"
                     for b in (1, 32, 64, 88, 128))
         + ". One GPU that holds all experts: "
         + ", ".join(f"{gain(alone, b):.2f} at {b}" for b in (1, 8, 128))
         + ". The report's 1.8 is marked.")

# %% [markdown]
# Two opposite answers to "for whom?". One GPU with all experts: drafts pay
# for *many* users, since one alone has to fetch the second column's experts.
# V3's 144 GPUs: drafts pay for *few* users on each; with 128 sequences the
# links are full, the second column doubles what they carry, and 15 % of it is
# thrown away. Then a draft is a loss.
#
# That is a model, and an optimistic one: no launch, no imbalance, no time for
# the draft. But its shape is why serving systems switch drafting off under
# load, and why DeepSeek's own next drafter decides anew in every step how
# much to check (at the end of this notebook).
#
# ## 17.9 Play: how a text came to be
#
# Standing still first: the beginning of a story, with one and with two
# drafts. Struck out is what was drafted and rejected.

# %% tags=["fold"]
from minids3.viz.speculation import (DraftStep, describe_steps,
                                     speculation_steps)


def shown(domain, k):
    """The recorded steps of a run, as texts."""
    return [DraftStep(tuple(tok.decode([i]) for i in drafts), n,
                      tok.decode([token]))
            for drafts, n, token in RUNS[domain, k]]


both = {"one draft": shown("stories", 1), "two drafts": shown("stories", 2)}
viz.show(speculation_steps(both), alt=describe_steps(both), dpi=80)

# %% [markdown]
# Drafts fall where the text could go on in more than one way: a name, a
# number, an object. Look for these in the other domains.

# %% tags=["nbval-ignore-output"]
def came_to_be(domain="arithmetic", drafts=2, steps=12):
    """Steps of decoding a text with drafts."""
    title = f"{domain}, {drafts} draft{'s' * (drafts > 1)}"
    return speculation_steps({title: shown(domain, drafts)}, steps)


viz.play(came_to_be, domain=list(DOMAINS), drafts=[1, 2], steps=(4, 24, 2))

# %% [markdown]
# ## 17.10 The Bill

# %%
from minids3.sim import bill

bill.show(upto="17")

# %% [markdown]
# ## The article, so far
#
# **Claim 8**, 14 and 28 cents per million tokens: drafts make a user's text
# up to 1.8 times as fast (TR). They make the *service* cheaper only where
# its machines wait for memory: in the roofline 39 % cheaper with 32 sequences
# on each GPU, and 8 % more expensive with 128. Whether the published day of
# notebook 16 was served with drafts is not published, so its \$0.30 stays as
# it is.
#
# ## What became of it
#
# The rule has not changed since 2022; the drafters have. **EAGLE-3** (March
# 2025, arXiv 2503.01840) trains a drafter after the fact, on vectors from
# several layers of the main model, and lets it read its own output *in
# training*, so that later drafts hold as well: the weakness of section 17.6.
# **DSpark** (DeepSeek, 27 June 2026, repository DeepSpec) has three layers
# that draft a block of five at once, a small head that ties each token to
# the one before, and a head that estimates how likely each draft is to hold,
# so that under load fewer are checked: the answer to section 17.8. DeepSeek
# reports texts 60 to 85 % faster than with V4-Flash's MTP module at equal
# throughput (second-hand, vllm-ascend issue 11126). Others measured 3.2 to
# 3.6 tokens a step on V4-Flash (SGLang issue 29488, June 2026) and 2.82 on
# V4.1-Flash, with the scheduling switched off (vLLM issue 56797, September
# 2026). V4-Flash's checkpoint of 31 July 2026 came with DSpark and without an
# MTP module (llama.cpp pull request 25784). So MTP as a drafter lasted from
# V3 to V4. All of them are checked by the rule that you wrote.
#
# ## What this does not show
#
# - **Our acceptance is not V3's.** The corpora are small grammars, and the
#   module is a seventh of the model. That ours is the higher one says
#   nothing.
# - **Seconds** are one CPU core's. On a GPU at batch 1 passes over one and
#   two columns take nearly the same time, and launches count.
# - **Batches.** We decoded one text at a time. In a batch every text accepts
#   a different number, which the engine handles and we did not time.
# - **Equal numbers.** Greedy texts were equal here. With BF16 and another
#   batch, sums are taken in another order, and two nearly equal tokens may
#   change places, with drafts or without.
# - **Trees.** Drafters can propose several continuations at once. That takes
#   another mask and a longer rule.
# - The rooflines leave out the draft's own time, and V3's real routing.
#
# ## References
#
# - Leviathan, Kalman, Matias 2022, arXiv 2211.17192: section 2 (the rule and
#   its proof), section 3 (expected tokens).
# - Chen et al. 2023, arXiv 2302.01318: algorithm 2 (the same, found at the
#   same time).
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 5.4.3 (85 to 90 %,
#   1.8 times), section 2.2 (the module).
# - Li et al. 2025, *EAGLE-3*, arXiv 2503.01840.
# - Repository deepseek-ai/DeepSpec: README (drafters, training, evaluation).
#
# **Next:** 18 · Post-training: how a model that continues texts becomes one
# that answers.
