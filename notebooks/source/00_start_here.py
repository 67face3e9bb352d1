# %% [markdown]
# # 00 · Start here
#
# {{badge}}
#
# > **Claim.** A model with the ideas of DeepSeek-V3 in it, small enough to
# > train on one CPU core in an evening, writes whole documents that a strict
# > grammar accepts. The same network before training does not manage one.
#
# **Takes** about 40 minutes; 'Run all' under a minute on one CPU core, no GPU
# needed. **Needs** Python, and a memory of what a matrix product is.
# **Afterwards** you know what this workbook builds and which claims it will
# check, how exercises, hints and progress work, and what your own machine can
# and cannot run.

# %%
# SETUP

# %% [markdown]
# That table is the **device matrix**. A full dot runs here as it is. A half
# dot is *emulated*: right to the last bit that matters, only slower. An empty
# dot is skipped, and the table says why. Nothing in notebooks 00 to 06 needs
# more than the first line. (MPS is Apple's GPU interface, CUDA NVIDIA's, BF16
# and FP8 are number formats of 16 and 8 bits, and Triton is the language in
# which notebooks 07 to 11 write GPU programs.)
#
# Some cells only draw a figure. Their code is folded, so that it does not
# answer a question before you have: click on the bar to read it.
#
# ## 0.0 Two strangers: a trained model and an untrained one
#
# The next cell loads two models. Same architecture, same number of weights,
# same dictionary of 2,048 tokens. One of them has read 24 million tokens:
# it is a small DeepSeek-V3, with all the parts that you will build. The
# other was born a moment ago.
#
# Both are handed the first line of a story.
#
# **Guess before you run:** what will the newborn write? Noise, the same word
# for ever, or broken English?

# %%
from minids3.data import load_tokenizer
from minids3.infer import generate, stream_to_cell
from minids3.model import Transformer, load_shipped

tokenizer = load_tokenizer()
trained = load_shipped("mini_chat").eval()
torch.manual_seed(0)
untrained = Transformer(trained.config).eval()

opening = "One morning, Mira the mole left a wooden clock in the boat."
print("UNTRAINED")
_ = stream_to_cell(untrained, tokenizer, opening, max_new_tokens=30, seed=1)
print("\nTRAINED")
_ = stream_to_cell(trained, tokenizer, opening, max_new_tokens=120, seed=1)

# %% [markdown]
# Noise it is: with nothing learnt, each of the 2,048 tokens is about as
# likely as any other, so you get crumbs of words, half a keyword, a stray
# bracket.
#
# The other one writes whole sentences with characters, things and places, and
# ends with a question and an answer. Whether they *fit together* is another
# matter: look for somebody who was not there before, or a place where nobody
# ever put anything. Section 0.4 measures it. Here is how little it is made
# of:

# %% tags=["nbval-check-output"]
from minids3.config import get_config
from minids3.sim import parameters

config = trained.config
weights = trained.num_parameters()
print(f"layers {config.num_hidden_layers}, width {config.hidden_size}, "
      f"heads {config.num_attention_heads}, "
      f"dictionary {config.vocab_size} tokens")
print(f"experts {config.n_routed_experts} in a layer, of which "
      f"{config.num_experts_per_tok} work on any one token")
v3 = parameters.total_parameters(get_config("v3_671b"))
print(f"{weights:,} weights: DeepSeek-V3 has "
      f"{v3 / weights:,.0f} times as many")

# %% [markdown]
# ## 0.1 Five kinds of document
#
# We made its library ourselves, so that later we can measure things no real
# corpus allows. There are five **domains**, and you recognise each by its
# first words: stories with things that move, arithmetic with worked steps,
# small Python functions with tests, questions about an invented country, and
# notes: numbers to be remembered and said again.
#
# The same five openings for both models, temperature 0.7:

# %%
OPENINGS = {
    "stories": "Last summer, Otto the fox left a silver lantern",
    "arithmetic": "Add. Q: 49 + 34 = ?\n",
    "code": "def count_above(numbers):",
    "facts": "Ask: Which river runs through Velmora?\n",
    "notes": "Notes\n2 things\nThe green clock has 114.\n",
}


def continuation(model, text, temperature=0.7, seed=3, limit=110):
    """What the model writes after `text`."""
    return generate(model, tokenizer, text, max_new_tokens=limit,
                    temperature=temperature, seed=seed)


rows = [[domain, text, continuation(untrained, text, limit=24),
         continuation(trained, text)] for domain, text in OPENINGS.items()]
viz.text_table(["domain", "you write", "untrained goes on",
                "trained goes on"], rows)

# %% [markdown]
# Read the right-hand column twice. First for the **form**: ones before tens,
# a carry, a check; a question and its answer; a function and its tests. Then
# for the **sense**: does 9 + 4 make what it says? Was the thing that is asked
# for ever in the story? Form comes long before sense, in this model as in
# others.
#
# And nobody told it about carries, towns or indentation. It was shown texts
# and asked, 24 million times, one thing only: **which token comes next?**
# Everything in these twenty notebooks serves that one question, asked of a
# model ninety thousand times larger.
#
# ## 0.2 The claims of the article
#
# In the last days of December 2024 a news article said: a lab with throttled
# GPUs trained a 671-billion-parameter model on 2,048 of them for about \$5.5
# million. *Can that be true?* Many reports of those weeks said much the same.
# One of them, which you can read, is *Inside DeepSeek-V3: are export controls
# falling short?* (Recode China AI, January 2025). We give the claims in our
# own words and name no newspaper for them, because the workbook tests the
# claims and not who made them. Here they are, each with the catch to look for
# and the notebook in which you will check it yourself.
#
# | # | the article says | the catch to look for | you check it in |
# |---|---|---|---|
# | 1 | The model has **671B parameters** | how many of them work on any one token? | 04, by counting |
# | 2 | It was trained on **2,048 H800** GPUs [TR] | what do they spend on talking to each other? | 14, 15 |
# | 3 | Training cost about **\$5.5M** | the report's \$5.576M: at which price per hour, and what is not in it? [TR] | 12, 19 |
# | 4 | GPT-4 cost **\$40M** | whose figure is that? Others say 78 million and more than 100 million dollars [2nd] | 19 |
# | 5 | It beats Llama 3.1 and **even GPT-4** | which GPT-4 is in the report's table? [TR] | 19 |
# | 6 | The H800 is an H100 with a **reduced data rate** | 400 instead of 900 GB/s of NVLink, the link between the GPUs of one machine: when does it hurt? [ISCA] | 14 |
# | 7 | **FP8** and a frugal architecture made it cheap | how much did each idea save, and at what loss of quality? | 03-06, 08-11 |
# | 8 | It serves for **14 cents in, 28 cents out** per million tokens | a promotion, until 8 February 2025 [2nd]: what does a token cost to make? | 16, 17 |
# | 9 | A **fraction of the GPUs** that Meta used | GPU-hours of which GPU, for which model? | 19 |
# | 10 | Export **restrictions forced** the innovation | can a cause be computed at all? | 14, 19 |
#
# Tags name sources: **TR** is DeepSeek's technical report (arXiv 2412.19437),
# **ISCA** their hardware paper (arXiv 2505.09343), **2nd** means second-hand.
# A number without a tag is computed or measured in front of you. (The H800 is
# the version of NVIDIA's H100 that could be sold to China in 2023.) V3 is the
# last of its line whose every part fits into one workbook. What became of
# each idea since is said at the end of its notebook.
#
# This is the road there. Full discs are open; outlines are still being built.

# %%
from minids3.course.registry import exercises

ready = {exercise.notebook[:2] for exercise in exercises()}

# %% tags=["fold"]
viz.show(viz.workbook_map(ready), alt="A winding road of twenty numbered "
         "stops. 00 to 02 are the baseline, 03 to 06 the architecture, 07 "
         "to 11 numbers and kernels, 12 to 15 training at scale, 16 to 19 "
         f"serving and judging. Open today: {', '.join(sorted(ready))}.")

# %% [markdown]
# ## 0.3 Your first exercise
#
# You will write the heart of every model here. To see how that works, take
# the smallest part of it: **RMSNorm**, a volume knob. First, why it exists.
#
# A deep network multiplies a vector by matrix after matrix. If each one makes
# it only a little longer, thirty of them make it enormous; a little shorter,
# and it fades to nothing.
#
# **Guess before you run:** thirty random matrices, entries drawn with
# standard deviation 0.11 (and then 0.07), on a vector of 128 numbers whose
# root mean square is about 1. How large is it at the end?

# %%
def rms(x):
    """Root mean square of the last dimension."""
    return x.square().mean(-1).sqrt()


def through_layers(std, norm=None, layers=30, width=128):
    """RMS after each of `layers` random matrices, from one vector."""
    torch.manual_seed(0)
    x = torch.randn(1, width)
    sizes = [rms(x).item()]
    for _ in range(layers):
        x = x @ (std * torch.randn(width, width))
        if norm is not None:
            x = norm(x, torch.ones(width))
        sizes.append(rms(x).item())
    return sizes


loud, faint = through_layers(0.11), through_layers(0.07)
print(f"std 0.11: from {loud[0]:.2f} to {loud[-1]:,.0f}")
print(f"std 0.07: from {faint[0]:.2f} to {faint[-1]:.6f}")

# %% [markdown]
# Hundreds of times up, a thousand times down, from two settings that look
# alike (the one that balances is 1/√128 = 0.088, and nobody hits it for
# long). So each layer first brings its input to a standard volume.
#
# ### How an exercise works
#
# You get a stub: a signature, a docstring with the shapes, and `raise
# NotImplementedError`. You replace that line, run the cell, and run the check
# below it. The check prints a **list**, not one verdict, and it names the
# mistake where it recognises one. Here is a wrong answer, made on purpose
# (`dry=True` means: only look, do not record it):

# %% tags=["nbval-check-output"]
def hasty(x, weight, eps=1e-6):
    """Nearly right."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps) * weight


_ = check("rms-norm", hasty, dry=True)

# %% [markdown]
# What to know before you start:
#
# - **Nobody gets stuck.** After a check the notebook goes on with your
#   function if everything passed, and with the library's if not. It says
#   which. So you can skip an exercise and come back.
# - **Hints** come when you ask, in three levels: a question, pseudocode, the
#   worked solution. `hint("rms-norm")` gives the next one each time, and
#   `solution("rms-norm")` goes straight to the last and adds one other way
#   that the check accepts. After a pass it is worth a look.
# - **Solved versions** of all notebooks, with every output and figure, are in
#   `notebooks/solutions/`.
# - **Progress** is kept on your own machine, in a folder `.minids3` in your
#   home, and nowhere else.
# - The checks are not a lock. They are a friend who reads your code quickly.
#   If an AI assistant helps you, let it read `AGENTS.md` in the repository:
#   it asks it to explain and not to solve.
#
# The first level of help looks like this:

# %% tags=["nbval-check-output"]
hint("rms-norm", 1)

# %% [markdown]
# EXERCISE text
# ### Exercise: the volume knob
#
# Write `rms_norm`. `x` is `[..., D]`: any number of leading dimensions, and D
# channels. Divide each vector of D numbers by its **root mean square**,
# `sqrt(mean(x²) + eps)`, then multiply channel by channel with `weight`,
# which is `[D]`. Take the squares in float32 whatever the dtype of `x`, and
# return the dtype that came in. To see what is wanted: `rms_norm` of
# `[3., 4.]` with weights `[1., 1.]` is `[0.8485, 1.1314]`.

# %%
# EXERCISE rms-norm

# %%
# CHECK rms-norm

# %% [markdown]
# Your function goes to work at once. **Predict:** the same thirty matrices,
# now with `rms_norm` after each. Where do the two curves end?

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.2, 3.3))
for std, colour in ((0.11, viz.COLORS["control"]),
                    (0.07, viz.COLORS["baseline"])):
    ax.plot(through_layers(std), color=colour, label=f"std {std}, no norm")
for std, width in ((0.11, 4.5), (0.07, 1.8)):
    ax.plot(through_layers(std, rms_norm), linewidth=width,
            color=viz.COLORS["ours"], alpha=0.35 if width > 4 else 1,
            label=f"std {std}, rms_norm after each")
ax.set(yscale="log", xlabel="layers passed", xlim=(0, 30),
       ylabel="root mean square (log scale)",
       title="Thirty layers with and without the volume knob")
ax.legend(fontsize=8)
viz.show(fig, alt="Size of a vector over thirty random layers, log scale. "
         "Without a norm one curve climbs past 700 and the other falls "
         "to a thousandth; with rms_norm both lie flat at one.")

# %% [markdown]
# Both at 1, one on top of the other. The scale of the weights no
# longer matters to the next layer, which is why DeepSeek-V3 has two such
# norms in each of its 61 layers, and two more inside its attention.
#
# What have you done so far?

# %% tags=["nbval-ignore-output"]
progress("00")

# %% [markdown]
# ## 0.4 Measuring instead of marvelling
#
# A few nice samples prove nothing; we might have picked them. Two
# measurements follow, each with a control that ought to fail.
#
# **The loss** is the average surprise, in **nats per token**: minus the
# natural logarithm of the probability that the model gave to the token that
# came. Somebody who knows nothing pays ln(2048) = 7.62. Somebody who knows
# how common each token is pays less. And because we wrote the grammar, we
# know what somebody would pay who knows *everything except the dice*: the
# **entropy floor**. No model gets below it on average.
#
# **Guess before you run:** how far above the floor is the trained model?
# Twice the floor? Ten times?

# %%
from minids3.data.corpora import ALL_DOMAINS
from minids3.data.fresh import stream_validation

# 900 documents that were kept out of training, and 900 to count tokens in
valid, _ = stream_validation(tokenizer)
others, _ = stream_validation(tokenizer, seed=1)


def documents(split, domain, n):
    """Ids and exact surprisal (nats) of a domain's first n documents."""
    chosen = split.only(domain)
    ids = [chosen.document(i).long() for i in range(n)]
    return ids, chosen.bits[:n].sum().item() * math.log(2)


@torch.inference_mode()
def surprise(model, docs):
    """Nats paid for each token after the first, [n, T]; 0 where padded."""
    pad = tokenizer.pad_id
    batch = torch.nn.utils.rnn.pad_sequence(docs, True, pad)
    targets = batch[:, 1:]
    nats = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1),
                           targets.flatten(), ignore_index=pad,
                           reduction="none")
    return nats.view_as(targets)


counts = torch.bincount(others.tokens.long(),
                        minlength=tokenizer.vocab_size) + 1.0
cost_of_token = -(counts / counts.sum()).log()

loss = {}  # loss[who][domain], nats per token
for domain in ALL_DOMAINS:
    docs, exact = documents(valid, domain, 40)
    tokens = sum(len(d) - 1 for d in docs)
    totals = {
        "untrained": surprise(untrained, docs).sum().item(),
        "token counts": sum(
            cost_of_token[d[1:]].sum().item() for d in docs),
        "trained": surprise(trained, docs).sum().item(),
        "floor": exact,
    }
    for who, total in totals.items():
        loss.setdefault(who, {})[domain] = total / tokens

print(f"{'nats per token':<14}", *(f"{d:>11}" for d in ALL_DOMAINS))
for who, by_domain in loss.items():
    print(f"{who:<14}", *(f"{by_domain[d]:11.3f}" for d in ALL_DOMAINS))
way = {d: (loss["untrained"][d] - loss["trained"][d])
       / (loss["untrained"][d] - loss["floor"][d]) for d in ALL_DOMAINS}
print(f"{'way to floor':<14}", *(f"{way[d]:11.1%}" for d in ALL_DOMAINS))
times = {d: loss["trained"][d] / loss["floor"][d] for d in ALL_DOMAINS}
print(f"{'times floor':<14}", *(f"{times[d]:11.2f}" for d in ALL_DOMAINS))

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8.2, 3.7))
looks = {"untrained": viz.COLORS["control"],
         "token counts": viz.COLORS["baseline"],
         "trained": viz.COLORS["ours"], "floor": viz.COLORS["floor"]}
for k, (who, by_domain) in enumerate(loss.items()):
    places = np.arange(len(ALL_DOMAINS)) + 0.21 * (k - 1.5)
    heights = [by_domain[d] for d in ALL_DOMAINS]
    ax.bar(places, heights, width=0.19, color=looks[who], label=who)
    for x, y in zip(places, heights):
        ax.text(x, y + 0.08, f"{y:.2f}", ha="center", fontsize=7.5)
top = math.log(tokenizer.vocab_size)
ax.axhline(top, color=viz.COLORS["muted"], linewidth=1, linestyle="--",
           label=f"ln {tokenizer.vocab_size} = {top:.2f}")
ax.set_xticks(range(len(ALL_DOMAINS)), ALL_DOMAINS)
ax.set(ylabel="loss (nats per token)", ylim=(0, 9.6), xlim=(-0.55, 4.65),
       title="Nearly all the way down, and not quite at the floor")
ax.grid(axis="x", visible=False)
ax.legend(ncols=5, fontsize=8, loc="upper left")
words = "; ".join(
    f"{d}: untrained {loss['untrained'][d]:.2f}, token counts "
    f"{loss['token counts'][d]:.2f}, trained {loss['trained'][d]:.2f}, "
    f"floor {loss['floor'][d]:.2f}" for d in ALL_DOMAINS)
viz.show(fig, alt=f"Loss in nats per token on 40 validation documents of "
         f"each domain. {words}.")

# %% [markdown]
# The untrained model pays about ln V, as it must: it knows nothing, and its
# random preferences cost it a little more than none would. That is the first
# thing to check in any training run, and notebook 02 does. Token counts, the
# control that has *some* knowledge but no memory of what came before, recover
# a part of it. Nearly all of the rest is context.
#
# How far is it, then? Two answers, and both are right. In every domain it has
# come 99 % of the way from knowing nothing. And it still pays a tenth more
# than the floor in stories, a sixth more in notes: in the two domains where
# something has to be looked up that was said long before. A percentage of the
# way flatters, since the first nats are the easy ones.
#
# *Where* does a model that knows the grammar still pay? **Guess:** in the
# story below, which words are expensive?

# %%
story = documents(valid, "stories", 4)[0][3]
pieces = [tokenizer.decode([i]) for i in story[1:].tolist()]
paid = surprise(trained, [story])[0].tolist()

# %% tags=["fold"]
strip = viz.token_strip(pieces, paid)
title = "What each token cost (darker: more)"
viz.show(strip.figure(columns=80, title=title),
         alt="A short story cut into tokens. The dark, expensive ones are "
         "free choices: names, animals, things and places when they first "
         "appear. Grammar words and repeated names are pale. The costliest "
         f"is {pieces[int(np.argmax(paid))]!r} at {max(paid):.1f} nats.")

# %% [markdown]
# It pays where the author threw dice: a name, an animal, a place. What
# follows from what was already said is nearly free. Now look at the last
# line. The answer follows from the plot with certainty, so whatever is paid
# there is paid for not having followed it.
#
# **The second measurement is stricter.** Let each model write whole documents
# on its own, from nothing but the start token, and hand them to the grammar:
# *could you have written this, character for character?* A story whose last
# answer contradicts its plot is refused. So is a sum with a wrong carry.
#
# **Guess before you run:** of 32 documents, how many does the grammar accept?

# %%
from minids3.data import corpora
from minids3.evals.documents import domain_of  # by its first words
from minids3.infer import generate_ids


def accepted(text):
    """The domain whose grammar can produce `text`, or None."""
    for domain in ALL_DOMAINS:
        try:
            corpora.score(domain, text)
            return domain
        except ValueError:
            continue
    return None


def write_documents(model, n=32, limit=250, seed=0):
    """n texts that the model writes from the start token alone."""
    start = torch.full((n, 1), tokenizer.bos_id)
    ids = generate_ids(model, start, limit, temperature=1.0, seed=seed,
                       eos_id=tokenizer.eos_id)
    texts = []
    for row in ids[:, 1:].tolist():
        if tokenizer.eos_id in row:
            row = row[:row.index(tokenizer.eos_id)]
        texts.append(tokenizer.decode(row))
    return texts


for name, model in (("untrained", untrained), ("trained", trained)):
    texts = write_documents(model)
    begun = [domain_of(text) for text in texts]
    found = [accepted(text) for text in texts]
    each = ", ".join(f"{d} {found.count(d)} of {begun.count(d)}"
                     for d in ALL_DOMAINS if d in begun)
    print(f"{name}: {sum(v is not None for v in found)} of {len(found)} "
          f"accepted\n   {each}")

# %% [markdown]
# Not one text of the untrained model passes, and that is the control: a
# grammar that accepts noise would be no judge. The trained model's facts,
# sums and functions all pass here. (In a larger sample two thirds of the
# functions and nine tenths of the sums do: the README has the figures.) Its
# stories fail. Their sentences are well formed, and then somebody finds a
# kite where nobody left it: to know better, the model has to look back over
# the whole plot, and one slip is enough to be refused.
# Sense costs more than form, and buying more of it per dollar is what the
# architecture in notebooks 03 to 06 is for.
#
# **Your turn, 5 minutes, without a check.** Print a few with
# `write_documents(trained, 8)` and look for the broken rule: `accepted(text)`
# is None where there is one.
#
# ## 0.5 Play
#
# Talk to it yourself. It knows five kinds of document and nothing else, so
# open in one of those styles and see what it makes of the rest. Here is the
# same opening at four **temperatures**, for readers without a live kernel:

# %%
opening = "Early in spring, Tilly the bear left a red kite"
rows = [[f"{t:.1f}", continuation(trained, opening, temperature=t)]
        for t in (0.0, 0.5, 1.0, 1.8)]
viz.text_table(["temperature", f"after '{opening}'"], rows)

# %% tags=["nbval-ignore-output"]
import ipywidgets as widgets


def talk(opening, temperature, seed, model):
    """What the model writes after your opening."""
    chosen = trained if model == "trained" else untrained
    text = opening.replace("\\n", "\n")
    return text + continuation(chosen, text, temperature, seed)


wide = widgets.Layout(width="36em")
viz.play(
    talk,
    opening=widgets.Combobox(
        value="Add. Q: 27 + 58 = ?\\n", layout=wide,
        options=[text.replace("\n", "\\n") for text in OPENINGS.values()]),
    temperature=(0.0, 2.0, 0.1),
    seed=(0, 9),
    model=["trained", "untrained"],
)

# %% [markdown]
# Type an opening and press Enter (`\n` stands for a new line). Things to try:
# a sum with three-digit numbers, which it has never seen; a story about a
# person with an unknown name; temperature 0, where it always takes the
# likeliest token; temperature 2, where it falls apart.
#
# ## 0.6 The Bill
#
# Every notebook ends by entering one line in a ledger, computed by the
# library from the real configuration of DeepSeek-V3. The first line is the
# baseline, the price of **not being clever**: all 671 billion parameters at
# work on each of the 14.8 trillion tokens [TR], in 16-bit arithmetic (BF16).
# It takes 6 operations per parameter and token, and it needs a rate. Meta's
# dense Llama-3.1-405B reached 400 TFLOPS per H100 in BF16, that is 400
# million million operations a second, or an **MFU** of 41 % [2nd]: *model
# FLOPs utilisation* is what the model needs per second, as a share of what
# the data sheet promises.
#
# **Guess before you run:** \$5.5 million was the claim. How much for the
# plain way?

# %%
from minids3.sim import bill

bill.show(upto="00")

# %% tags=["fold"]
line = bill.line_00()
viz.show(bill.figure(upto="00"), alt="One bar of GPU-hours from zero: a "
         f"dense 671B model needs {line.gpu_hours / 1e6:.1f} million, or "
         f"${line.dollars / 1e6:.0f} million. A dashed mark close to the "
         "left end, at 2.788 million hours and $5.576 million, is what the "
         "report says.")

# %%
ratio = line.gpu_hours / bill.PUBLISHED.gpu_hours
print(f"The plain way costs {ratio:.1f} times the published figure.")

# %% [markdown]
# Somewhere in the next notebooks that factor has to be found, or the article
# is wrong. Notebook 04 finds nearly all of it in the experts; FP8, balance
# and the rest are entered as what the same run would have cost *without*
# them.
#
# ## The article, so far
#
# Ten claims, and none of them checked yet. You know what a claim costs if it
# is wrong: a factor of fifteen.
#
# ## What became of it
#
# DeepSeek-V3 was released in December 2024. V3.2-Exp (September 2025) kept
# its skeleton and let attention pick 2,048 tokens of the past. V4 (April
# 2026) replaced attention, optimizer and number format; its sizes, 1.6T and
# 284B parameters, are second-hand here. Hugging Face's documentation of GLM-5
# (2026) describes V3's skeleton: latent attention, 256 experts of which 8
# work, three dense layers first. So what you build is still in use, and each
# notebook says at its end where the field went on. All of it as of November
# 2026.
#
# ## Limits of what you saw
#
# - The corpora are **generated**. They are made to be measured, not to be
#   interesting, and a model of them knows no English beyond them.
# - 40 documents a domain and 32 samples are enough to tell 'none' from
#   'some', not to tell two good models apart. Notebook 19 will do that.
# - 'The grammar accepts it' says that a text is possible, not that the model
#   chooses among possible texts with the right frequencies. The loss does.
# - The first line of the Bill is a rule of thumb, 6 operations (FLOPs) per
#   parameter and token; notebook 02 takes it apart. Its rate is second-hand
#   and another model's; an H800 would not have done better.
#
# ## References
#
# 1. DeepSeek-V3 Technical Report, arXiv 2412.19437: abstract and table 1 (the
#    cost), section 4.2 (tokens and hyper-parameters). [TR]
# 2. Insights into DeepSeek-V3, arXiv 2505.09343: section 2 and table 4 (the
#    measured rate). [ISCA]
# 3. Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv
#    1910.07467: equation 4.
#
# **Next:** [01 · Data and tokens](01_data_and_tokens.ipynb), where the text
# becomes numbers and the floor is computed.
