# %% [markdown]
# # 16 · Serving: a dollar buys how many tokens?
#
# {{badge}}
#
# > **Claim.** One user alone on DeepSeek-V3 costs about **100 dollars**
# > for a million tokens; the article's price is **28 cents**. The factor
# > of 350 is made of memory, not of arithmetic. A cache in pages, as you
# > write it, gives the logits of no cache at all, to **1e-4**.
# > A batch makes tokens cheaper until the multipliers are busy, which with
# > 256 experts takes **18 times** as many texts as without. And on the one
# > day that was published, the article's price paid for the GPUs with
# > **2.3 %** to spare.
#
# **Takes** about 110 minutes to work through, 72 of them for the exercises;
# 'Run all' about a minute on two CPU cores. **Needs** notebooks 03
# (latent attention) and 04 (experts). **Afterwards** you can keep a cache in
# pages, attend over it in parts and merge them, say when a batch is free,
# place redundant experts, and turn tokens a second into a price.

# %%
# SETUP

# %% [markdown]
# ## 16.0 A hundred dollars
#
# A trained model writes one token at a time, and for each it multiplies by
# every weight that the token meets: 37 of 671 billion (notebook 04). The
# weights lie in a GPU's memory and have to come to its multipliers. An H800
# reads 3.35 terabytes a second and makes 1,979 trillion FP8 operations
# (both from memory, unverified). The model needs 673 GB, so two nodes of 8
# GPUs at an assumed \$2 an hour each.
#
# **Guess before you run:** one user, nobody else. How long does a token
# take to *read* its weights, and how long to multiply by them? And what
# does a million tokens cost?

# %% tags=["nbval-check-output"]
from minids3.config import get_config
from minids3.sim import parameters, serving
from minids3.sim.hardware import H800

v3 = get_config("v3_671b")
read = serving.weight_bytes_read(v3, 1)  # by one column
reading = read / H800.memory_bandwidth
multiplying = 2 * parameters.matmul_parameters(v3) / H800.fp8_flops
alone = 16 * 2 / 3600 * reading * 1e6
print(f"a token reads {read / 1e9:.1f} GB: {1e3 * reading:.1f} ms")
print(f"and multiplies for {1e6 * multiplying:.0f} microseconds, "
      f"{multiplying / reading:.1%} of that time")
print(f"a million tokens: ${alone:.0f}, {alone / 0.28:.0f} times $0.28")

# %% [markdown]
# The multipliers wait 99.7 % of the time, and 15 of 16 GPUs do nothing at
# all, since a token needs the experts of one layer after the other.
#
# So there is room for a factor of 350, and this notebook looks for it:
# remember what does not change (16.1), keep it where many texts fit (16.2
# to 16.4), let texts share a read of the weights (16.5, 16.6), keep all
# GPUs busy (16.7). Then comes the bill (16.8).
#
# ## 16.1 Remember what does not change
#
# A **cache** keeps what attention needs of every earlier token: here the
# latent and the rotary key, 576 numbers a layer (notebook 03). There are two
# phases. **Prefill** reads a prompt, all of its tokens at once; **decoding**
# adds a token at a time. We use the model of notebook 12, which ships with
# the workbook. **Predict:** how much time does the cache save on 192
# tokens, and how different are the logits?

# %%
import time

from minids3.data import load_split, load_tokenizer
from minids3.infer.cache import LatentCache
from minids3.model import load_shipped

torch.set_num_threads(1)  # so that times below are one core's
tok = load_tokenizer()
chat = load_shipped("mini_chat").eval()
split = load_split("validation")
lengths = split.lengths().tolist()
numbered = [n for n in range(split.n_documents) if lengths[n] > 80]
documents = [split.document(n).long() for n in numbered[:400]]
text = torch.cat(documents[:4])[:192]


@torch.no_grad()
def timed(steps):
    """Seconds of one core, and the logits of the last position each."""
    start = time.process_time()
    logits = torch.stack([step()[0, -1] for step in steps])
    return time.process_time() - start, logits


cache = LatentCache(chat.config)
plain, without = timed([lambda n=n: chat(text[None, :n])
                        for n in range(64, 193)])
quick, cached = timed(
    [lambda: chat(text[None, :64], cache)]
    + [lambda n=n: chat(text[None, n - 1:n], cache)
       for n in range(65, 193)])
print(f"129 tokens: {plain:.1f} s without a cache, {quick:.1f} s with one")
print(f"largest difference of two logits: "
      f"{(cached - without).abs().max():.0e}")

# %% tags=["nbval-check-output"]
print("cached = uncached, to 1e-4 in all 129 x 2,048 logits:",
      torch.allclose(cached, without, atol=1e-4))

# %% [markdown]
# Nothing is lost but the order of some sums. With a cache the work of a
# token no longer grows with all that was said before, except in attention.
#
# ## 16.2 Memory in pages
#
# How much memory should a text get? Nobody knows how long it will become.
# Reserve the model's maximum, and most of it stays empty. Reserve less, and
# the text must move when it has grown.
#
# The way out is as old as operating systems (Kwon et al. 2023 for language
# models): cut the memory into **pages** of a few rows, and give a text a
# page when it needs one. Its pages lie anywhere; a **table** says where. At
# most one page a text is partly empty. **Guess** what share of the memory
# holds something if each text reserves 512 rows.

# %%
mean = sum(lengths) / len(lengths)
pages_of_16 = sum(-(-n // 16) * 16 for n in lengths) / len(lengths)
print(f"a document has {mean:.0f} tokens on average, at most "
      f"{max(lengths)}")
print(f"512 rows reserved for each: {mean / 512:.0%} of the memory in use")
print(f"pages of 16 rows:           {mean / pages_of_16:.0%}")

# %% [markdown]
# **What your result will look like.** Two texts in a memory of pages with 4
# rows. A had 10 rows in pages 6, 2 and 9, B had 3 in page 4, and page 0 was
# the first free one. After three more rows for A and one for B:

# %% tags=["fold"]
from minids3.viz.serving import page_map

viz.show(page_map([[6, 2, 9, 0], [4]], [13, 4], 12, 4), dpi=84,
         alt="A memory of 12 pages with 4 rows each. Text A has pages 6, "
         "2, 9 and 0, of which the last holds one row and the others four. "
         "Text B has page 4, which is full. Seven pages are free.")

# %% [markdown]
# EXERCISE text
# ### Exercise: rows into pages
#
# Write `store_rows`, the update of the cache: put new rows where they
# belong, take a page where there is no room, and say so when there is none.
# One trap: a table may be *longer* than the text, for rows were taken back.

# %%
# EXERCISE serve-pages

# %%
# CHECK serve-pages

# %% [markdown]
# Another accepted way is to work out first how many pages each text needs,
# refuse if there are too few, and then write all rows by one indexed
# assignment. That is what an engine does, since nothing is half done then.
#
# ## 16.3 Attention that follows the table
#
# Now decode. In notebook 03 you folded the up-projections into query and
# result, so that all heads compare with the *same* row: the latent and the
# rotary key. Only the rows' place is new. What lies after a text's end is
# somebody else's, or nobody's, and must not even be multiplied by zero.

# %% [markdown]
# EXERCISE text
# ### Exercise: attention over pages
#
# Write `attend_pages`, the absorbed decode step: each text's newest token
# attends to the text's own rows, wherever they are. The result for B texts
# is `[B, H, C]`, a mean latent for each head.

# %%
# EXERCISE serve-decode

# %%
# CHECK serve-decode

# %% [markdown]
# Both your functions together are a model that decodes many texts at once,
# each at its own position. Everything else comes from the trained layers.

# %%
class Memory:
    """Rows of some texts in pages, the same table for every layer."""

    def __init__(self, cfg, texts, n_pages=64, size=8):
        width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        self.pages = [torch.zeros(n_pages, size, width)
                      for _ in range(cfg.num_hidden_layers)]
        self.tables = [[] for _ in range(texts)]
        self.lengths = [0] * texts
        self.free = list(range(n_pages))[::-1]


@torch.no_grad()
def decode(model, memory, who, ids, attend=attend_pages):
    """One more token of the texts `who`: logits [B, V]."""
    lengths = [memory.lengths[b] for b in who]
    tables = [memory.tables[b] for b in who]
    places = torch.tensor(lengths)
    cos, sin = model.rope_cos[places], model.rope_sin[places]
    x = F.embedding(ids, model.embed_tokens.weight)  # [B, D]
    for i, block in enumerate(model.layers):
        mla = block.self_attn
        h = block.input_layernorm(x)[None]
        rows = mla.compress(h, cos, sin)[0]  # [B, C + R]
        memory.pages[i], grown, free = store_rows(
            memory.pages[i], tables, lengths, rows, [1] * len(who),
            memory.free)
        q = mla.fold_queries(*mla.queries(h, cos, sin))[0]  # [H, B, C + R]
        longest = max(map(len, grown))
        mean = attend(
            q.transpose(0, 1), memory.pages[i],
            torch.tensor([t + [0] * (longest - len(t)) for t in grown]),
            places + 1, mla.rank, mla.scale)  # [B, H, C]
        values = mla.unfold_values(mean.transpose(0, 1)[None])[0]
        x = x + mla.o_proj(values.transpose(0, 1).flatten(1))
        x = x + block.mlp(block.post_attention_layernorm(x))
    memory.free = free
    for b, table in zip(who, grown):
        memory.tables[b] = table
        memory.lengths[b] += 1
    return model.lm_head(model.norm(x))


# %% [markdown]
# Five texts of unequal length come at different times and share one memory,
# and every logit is compared with that of the whole text without any cache.
# **Predict** the largest difference, and whether it depends on who else is
# there.

# %%
texts = [documents[n][:length] for n, length in
         enumerate((61, 40, 73, 17, 56))]
arrivals = [0, 3, 9, 20, 21]
memory = Memory(chat.config, len(texts))
logits = [[] for _ in texts]
for step in range(max(a + len(t) for a, t in zip(arrivals, texts))):
    who = [b for b, (a, t) in enumerate(zip(arrivals, texts))
           if a <= step < a + len(t)]
    ids = torch.stack([texts[b][step - arrivals[b]] for b in who])
    for b, row in zip(who, decode(chat, memory, who, ids)):
        logits[b].append(row)
with torch.no_grad():
    truth = [chat(t[None])[0] for t in texts]
off = [(torch.stack(a) - b).abs().max().item()
       for a, b in zip(logits, truth)]
print("largest difference of each text:",
      ", ".join(f"{x:.0e}" for x in off))
print("tables:", *memory.tables, sep="\n  ")

# %% tags=["nbval-check-output"]
print("in pages = without a cache, to 1e-4:", max(off) < 1e-4)

# %% [markdown]
# ### The control: a cache that forgets to roll back
#
# Notebook 17 will write *guesses* into the cache, and take back those that
# turn out wrong. Nothing has to be erased for that: the length is put back,
# and the next rows go over the old ones. Let us write three wrong tokens
# into eight texts, after the 50th, and go on with the right ones in three
# ways: length put back; length forgotten; put back, but attention reads
# pages to their end. **Predict** which of the last two is worse, and how
# you would notice.

# %%
def whole_pages(q, pages, tables, lengths, rank, scale):
    """Attention to all rows of a text's pages, its own or not."""
    size = pages.shape[1]
    return attend_pages(q, pages, tables, -(-lengths // size) * size,
                        rank, scale)


EIGHT = torch.stack([d[:80] for d in documents[:8]])
GUESSED = EIGHT.roll(1, 0)[:, 20:23]  # another text's words


def after_guesses(roll_back, attend=attend_pages):
    """Logits at positions 50 to 78 of eight texts, after wrong guesses."""
    memory, who, found = Memory(chat.config, 8, n_pages=100), range(8), []
    for n in range(79):
        if n == 50:
            for wrong in GUESSED.T:
                decode(chat, memory, who, wrong)
            if roll_back:
                memory.lengths = [length - 3 for length in memory.lengths]
        found.append(decode(chat, memory, who, EIGHT[:, n], attend))
    return torch.stack(found[50:], 1)  # [8, 29, V]


ways = {"length put back": after_guesses(True),
        "length forgotten": after_guesses(False),
        "put back, pages read to their end": after_guesses(
            True, whole_pages)}
with torch.no_grad():
    right = chat(EIGHT)[:, 50:79]
losses = {name: F.cross_entropy(x.flatten(0, 1),
                                EIGHT[:, 51:].flatten()).item()
          for name, x in {"no guesses, no cache": right, **ways}.items()}
for name, x in ways.items():
    print(f"{name:34} logits differ by {(x - right).abs().max():.0e}, "
          f"{(x.argmax(-1) != right.argmax(-1)).sum():3} of 232 best "
          f"tokens; loss {losses[name]:.3f}")
print(f"{'no guesses, no cache':34} {'loss':>56} "
      f"{losses['no guesses, no cache']:.3f}")

# %% tags=["nbval-check-output"]
print("put back: right to 1e-4:",
      torch.allclose(ways["length put back"], right, atol=1e-4))
worst = min((x - right).abs().max() for x in list(ways.values())[1:])
print("both mistakes change logits by more than 0.1:", bool(worst > 0.1))

# %% [markdown]
# Nothing crashes. Few of the best tokens change, and the loss hardly moves,
# although the model has read three words that nobody wrote, or rows that are
# no words at all: with texts as easy as ours a demonstration does not show
# it, and an evaluation only by a hair. A comparison of *logits* does, at
# once. They are wrong by whole units.
#
# ## 16.4 One text, many multiprocessors
#
# With many texts there is work for a whole GPU: a program for every text.
# With *one* text of 64,000 tokens there is not. All heads share the rows, so
# that a kernel has one program for each 16 or so of 128 heads, and an H800
# has 132 multiprocessors (TR section 3.2). So the **rows** are cut into
# parts as well. Every part is a softmax by itself, and in the end they are
# merged.
#
# That is possible because a softmax forgets just one number: the sum that
# it divided by. Keep its logarithm (**lse**, log-sum-exp), and parts can be
# put together again. Parts may be empty: a kernel is launched for a fixed
# number of parts, and short texts have rows for a few. What lies in the
# place of an empty part was never written.

# %% [markdown]
# EXERCISE text
# ### Exercise: merge the parts
#
# Write `merge_splits`: from S parts `[..., S, C]` and their natural lse
# `[..., S]` to the attention over all rows, and its own lse.

# %%
# EXERCISE serve-merge

# %%
# CHECK serve-merge

# %% [markdown]
# Another accepted way takes the parts two at a time as they come in, with
# `logaddexp`. It is how a ring of GPUs does it that each hold some rows.
#
# Now the whole decode step in parts, on rows of the trained model. Beside
# yours run two merges that have shipped in real systems. One takes the
# plain **average** of the parts. The other gets its lse in **base 2**,
# since kernels compute 2 to the power x faster than e to the power x, and
# merges with e (FlashInfer's is base 2; vLLM issues 43919 and 47079).
# **Predict:** which is worse, and is the base-2 merge wrong by a factor or
# a little?

# %%
mla = chat.layers[3].self_attn
length = memory.lengths[2]
rows = torch.cat([memory.pages[3][p] for p in memory.tables[2]])[:length]
q = 2 * rows.std() * torch.randn(
    64, rows.shape[1], generator=torch.Generator().manual_seed(0))


def in_parts(n):
    """Attention to each of n parts of the rows: [H, n, C] and lse."""
    size = -(-length // n)
    out = torch.full((len(q), n, mla.rank), math.nan)  # never written
    lse = torch.full((len(q), n), -math.inf)
    for i, part in enumerate(rows.split(size)):
        scores = q @ part.T * mla.scale
        out[:, i] = scores.softmax(-1) @ part[:, :mla.rank]
        lse[:, i] = scores.logsumexp(-1)
    return out, lse


def by_average(out, lse):
    return out.nanmean(1)


def base_two_by_e(out, lse):
    return merge_splits(out, lse / math.log(2))[0]


exact = (q @ rows.T * mla.scale).double().softmax(-1) @ rows[
    :, :mla.rank].double()
merges = {"yours": lambda out, lse: merge_splits(out, lse)[0],
          "base 2 merged with e": base_two_by_e, "average": by_average}
PARTS = (1, 2, 4, 8, 16, 32, 64)
errors = {name: [((merge(*in_parts(n)) - exact).norm()
                  / exact.norm()).item() for n in PARTS]
          for name, merge in merges.items()}
print("parts", *(f"{n:8}" for n in PARTS))
for name, row in errors.items():
    print(f"{name:20}\n     ", *(f"{x:8.0e}" for x in row))

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.4, 2.9))
for (name, row), role, mark in zip(errors.items(), (
        "ours", "control", "baseline"), "os^"):
    ax.plot(PARTS, row, mark + "-", color=viz.COLORS[role], ms=5,
            label=name)
ax.set(xscale="log", yscale="log", xlabel="parts",
       ylabel="relative error of the result")
ax.set_xticks(PARTS, PARTS)
ax.minorticks_off()
ax.legend(fontsize=8, loc="center right")
viz.show(fig, dpi=88, alt="Relative error of merged attention against the "
         "number of parts, on a logarithmic axis. The right merge stays "
         f"near {max(errors['yours']):.0e}. Averaging and base-2 sums "
         "merged with e are right for one part alone and wrong by "
         f"{min(errors['average'][1:]):.0%} and "
         f"{min(errors['base 2 merged with e'][1:]):.0%} or more from two "
         "parts on.")

# %% [markdown]
# With one part all three are exact, and one part is what short texts have.
# So a test with a short prompt passes, and the fault shows as a model that
# becomes vague in *long* texts.
#
# ## 16.5 When is a batch free?
#
# Now let texts share a read of the weights. A decode step of B texts reads
# the weights **once** and multiplies B columns. As long as reading takes
# longer, further texts cost nothing. **Predict** from 16.0: at how many
# columns do the multipliers become the bottleneck?
#
# With experts the argument has a hole. Two texts choose *different*
# experts, and each chosen expert is read. A layer of E experts, of which a
# token takes K, is left with `E (1 - (1 - K/E)^B)` distinct ones by B
# tokens, if they choose evenly and by themselves. First: does our trained
# model obey the formula?

# %%
from minids3.nn.gate import record_routing

rows_of_80 = torch.stack([d[:80] for d in documents[:128]])
with torch.no_grad(), record_routing(chat) as log:
    chat(rows_of_80)
chosen = torch.stack([r.indices.view(128, 80, -1) for r in log.values()])
E, K = chat.config.n_routed_experts, chat.config.num_experts_per_tok
print("texts   distinct experts of 16: counted, by the formula")
for n in (1, 2, 4, 8, 16, 32):
    counted = [len(layer[first:first + n, place].unique())
               for layer in chosen for place in (20, 40, 60)
               for first in range(0, 128 - n + 1, n)]
    print(f"{n:5} {sum(counted) / len(counted):23.1f} "
          f"{serving.expected_experts(n, E, K):16.1f}")

# %% [markdown]
# Almost; texts do not choose quite evenly. So up to eight texts or so, each
# brings experts of its own, and pays for them. Now V3, with 256 experts of
# which a token takes 8, beside a dense model that has the same work per
# token, 37 billion weights.

# %%
columns = np.unique(np.geomspace(1, 16384, 120).astype(int))
per_column = 2 * parameters.matmul_parameters(v3) / H800.fp8_flops
moe = np.array([serving.weight_bytes_read(v3, int(n)) for n in columns])
dense = np.full(len(columns), moe[0])
steps = {"dense, 37B": dense, "256 experts, 671B": moe}
for name, n_bytes in steps.items():
    busy = n_bytes[-1] / H800.memory_bandwidth / per_column
    print(f"{name}: multipliers are busy from {busy:,.0f} columns on; two "
          f"columns\n   read {n_bytes[1] / n_bytes[0]:.2f} times the bytes "
          f"of one, 64 read {n_bytes[columns >= 64][0] / n_bytes[0]:.1f} "
          "times")

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.8, 3.4))
for (name, n_bytes), role in zip(steps.items(), ("baseline", "ours")):
    memory_s = n_bytes / H800.memory_bandwidth
    step_s = np.maximum(memory_s, columns * per_column)
    axes[0].plot(columns, 1e3 * step_s, color=viz.COLORS[role], label=name)
    axes[1].plot(columns, columns / step_s, color=viz.COLORS[role],
                 label=name)
axes[0].plot(columns, 1e3 * columns * per_column, ls=":", lw=1.2,
             color=viz.COLORS["muted"], label="multiplying")
axes[1].axhline(1 / per_column, ls=":", lw=1.2,
                color=viz.COLORS["muted"], label="multiplying")
axes[0].set(xscale="log", yscale="log", xlabel="columns (texts)",
            ylabel="ms of a step, one memory", ylim=(3, 1000))
axes[1].set(xscale="log", yscale="log", xlabel="columns (texts)",
            ylabel="tokens a second")
for ax in axes:
    ax.legend(fontsize=8)
fig.tight_layout()
viz.show(fig, dpi=88, alt="Two log-log plots against the number of "
         "columns. Left, milliseconds of a step: dense stays at 11 until "
         "300 columns; with experts it climbs from 11 at once to 200 at "
         "128 columns, stays there until 5,400, and both then follow the "
         "line of multiplying. Right, tokens a second: dense rises in "
         "proportion and reaches the roof of 27,000 at 300 columns; with "
         "experts it rises slowly, then in proportion from 100 columns "
         "on, and reaches the same roof at 5,400.")

# %% [markdown]
# For a dense model a batch is **free** until 304 columns, and then it is at
# the roof. For the mixture it is **expensive from the second token on**: 1.5
# times the bytes for two, 16 times for 64. From about 100 columns on all
# experts are read anyway, and then further texts are free for very long.
# The roof is the same; the way there takes 18 times as many texts. A
# mixture of experts is a model for somebody with many users.
#
# ### On this machine
#
# The same with our models and one core of this machine, whatever it is: the
# engine of `minids3.infer` decodes B texts at once, with `mini_chat` and
# with the dense model that ships beside it. The roofline is measured, too:
# one matrix as large as all weights, times one column (reading) and times 256
# (multiplying). **Predict** how many times as many tokens a second 64
# texts get as one.

# %%
from minids3.infer.engine import Engine, Sampling

plain_model = load_shipped("dense_chat").eval()


def step_seconds(model, batch, steps=6):
    """Best of several decode steps of a batch, in seconds of one core."""
    engine = Engine(model, max_batch=batch, chunk=100_000)
    for document in documents[:batch]:
        engine.submit(document[:32], Sampling(max_new_tokens=steps + 2))
    engine.step()  # prefill
    best = math.inf
    for _ in range(steps):
        start = time.process_time()
        engine.step()
        best = min(best, time.process_time() - start)
    return best


def best_of(run, times=5):
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


BATCHES = (1, 2, 4, 8, 16, 32, 64)
measured = {name: [step_seconds(model, b) for b in BATCHES]
            for name, model in (("dense", plain_model), ("experts", chat))}
size = int(math.sqrt(parameters.matmul_parameters(plain_model.config)))
matrix = torch.randn(size, size)
one, many = torch.randn(size, 1), torch.randn(size, 256)
READ = best_of(lambda: matrix @ one) / (4 * size * size)  # s a byte
MULTIPLY = best_of(lambda: matrix @ many) / (2 * 256 * size * size)
print(f"this core reads {1e-9 / READ:.0f} GB/s and makes "
      f"{1e-9 / MULTIPLY:.0f} GFLOP/s")
print("texts         " + "".join(f"{b:7}" for b in BATCHES))
for name, seconds in measured.items():
    print(f"{name:8} ms   " + "".join(f"{1e3 * s:7.1f}" for s in seconds))
    print("   tokens/s   " + "".join(
        f"{b / s:7.0f}" for b, s in zip(BATCHES, seconds)))


# %% tags=["fold"]
def roofline(model, batch):
    """Least seconds of a step on this core."""
    cfg = model.config
    read = READ * serving.weight_bytes_read(cfg, batch, "fp32")
    return max(read, 2 * MULTIPLY * batch
               * parameters.matmul_parameters(cfg))


fig, ax = plt.subplots(figsize=(7.6, 3.3))
for (name, seconds), model, role in zip(
        measured.items(), (plain_model, chat), ("baseline", "ours")):
    ax.plot(BATCHES, [b / s for b, s in zip(BATCHES, seconds)], "o-", ms=4,
            color=viz.COLORS[role], label=f"{name}, measured")
    ax.plot(BATCHES, [b / roofline(model, b) for b in BATCHES], "--",
            lw=1.2, color=viz.COLORS[role], label=f"{name}, roofline")
ax.set(xscale="log", yscale="log", xlabel="texts in a step",
       ylabel="tokens a second, one core")
ax.set_xticks(BATCHES, BATCHES)
ax.minorticks_off()
ax.legend(fontsize=8)
viz.show(fig, dpi=88, alt="Tokens a second of one core against the number "
         "of texts, measured and by the roofline. Dense from "
         f"{1 / measured['dense'][0]:.0f} to "
         f"{64 / measured['dense'][-1]:.0f}; experts from "
         f"{1 / measured['experts'][0]:.0f} to "
         f"{64 / measured['experts'][-1]:.0f}. Both stay below their "
         "roofs.")

# %% [markdown]
# The roofs say when weights are the bottleneck of a core: up to a handful of
# texts. The models stay far below them. A step of a model this small is
# hundreds of small operations, and *starting* them takes longer than what
# they do. But look: that cost, too, is the same for 1 and for 64 texts, and
# a batch shares it. On a GPU the starts are launches of kernels, and small
# models and small batches pay for them in just the same way.
#
# ## 16.6 Continuous batching
#
# A batch helps only while it is full. Texts do not come together, and do
# not end together. **Static** batches wait until all of them are done; in
# **continuous** batching (Yu et al. 2022, *Orca*) a place is filled at the
# next step. Here are 40 requests, whose arrival times and lengths were drawn
# once with a seed: a new one every two steps or so, most of them short, some
# ten times as long. Our engine serves them both ways, with 8 places.
# **Predict** the ratio of steps. And: does a request get the same tokens?

# %%
from dataclasses import dataclass

from minids3.viz.serving import Served, batches


@dataclass(frozen=True)
class Request:
    number: int
    arrived: int  # in steps of the engine
    prompt: torch.Tensor
    new: int


draw = torch.Generator().manual_seed(16)
gaps = torch.empty(40).exponential_(1 / 2, generator=draw)
news = 4 + torch.empty(40).exponential_(1 / 28, generator=draw)
TRACE = [Request(n, int(at), documents[n][:int(p)], min(int(m), 160))
         for n, (at, p, m) in enumerate(zip(
             gaps.cumsum(0), torch.randint(16, 80, (40,), generator=draw),
             news))]
PLACES = 8


def serve(continuous):
    """What became of each request, its tokens, and seconds of one core."""
    engine, coming = Engine(chat, max_batch=PLACES), list(TRACE)
    clock, known, first = 0, {}, {}
    done, tokens = [], {request.number: [] for request in TRACE}
    seconds = time.process_time()
    while coming or not engine.idle:
        here = [r for r in coming if r.arrived <= clock]
        if not continuous:  # a full batch, when the last one is done
            full = len(here) >= min(PLACES, len(coming))
            here = here[:PLACES] if engine.idle and full else []
        for r in here:
            coming.remove(r)
            known[engine.submit(r.prompt, Sampling(
                max_new_tokens=r.new))] = r
        if engine.idle:  # nobody there: wait for the next
            clock += 1
            continue
        for event in engine.step():
            r = known[event.request]
            first.setdefault(r.number, clock)
            tokens[r.number] += event.tokens
            if event.finished:
                done.append(Served(r.number, r.arrived, first[r.number],
                                   clock + 1))
        clock += 1
    return done, tokens, time.process_time() - seconds


served, written = {}, {}
for name in ("static", "continuous"):
    served[name], written[name], seconds = serve(name == "continuous")
    waits = sorted(s.start - s.arrived for s in served[name])
    last = max(s.stop for s in served[name])
    total = sum(map(len, written[name].values()))
    print(f"{name:11} {last:4} steps, {total / last:.1f} tokens a step; "
          f"first token after {sum(waits) / 40:.0f} steps in the mean, "
          f"nine of ten within {waits[35]}; {seconds:.1f} s")

# %% tags=["fold"]
ends = {name: max(s.stop for s in x) for name, x in served.items()}
viz.show(batches(served, PLACES), dpi=88,
         alt="Bars of 40 requests in 8 places over the steps of the "
         "engine, two panels. Static: batches begin together, and most "
         "places are grey until the longest is done; it takes "
         f"{ends['static']} steps. Continuous: a place is taken again as "
         "soon as it is free, with grey only at the end; it takes "
         f"{ends['continuous']} steps.")

# %% tags=["nbval-check-output"]
print("every request got the same tokens in both:",
      written["static"] == written["continuous"])
print("continuous needs less than two thirds of the steps:",
      ends["continuous"] < 2 / 3 * ends["static"])

# %% [markdown]
# Grey is what static batches throw away: a read of all weights that nobody
# in that place uses, and the time until a batch is full. The steps are the
# engine's clock here, which also runs while it waits; seconds depend
# on your machine, and on a core, where a batch is not free, they differ by
# less.
#
# ## 16.7 The busiest GPU decides
#
# V3's experts are spread over 32 GPUs (prefill) or 144 (decoding, in
# February 2025; OI). In a layer all GPUs wait for the one with the most
# tokens. Notebook 05 balanced experts over *training*; a service's users
# have favourites. So busy experts are held more than once: 32 **redundant
# experts** a layer (TR section 3.4). How to place them was published as
# EPLB: *replicate* by load, then *pack*.
#
# **What your result will look like.** Loads 90, 40, 35, 20 on two GPUs with
# three places each: expert 0 gets both additional replicas, of 30 each, and
# the GPUs come to 100 and 85.

# %% [markdown]
# EXERCISE text
# ### Exercise: place redundant experts
#
# Write `place_experts`, for one layer. The rule of ties is part of it: all
# GPUs compute the placement by themselves, and it has to be the same one.

# %%
# EXERCISE serve-place

# %%
# CHECK serve-place

# %% [markdown]
# Heaps are accepted, too, and faster. EPLB itself computes in float32, so
# that two sums may tie there and not in Python's floats; the library's
# `sim.eplb` equals it in all 40 cases that we recorded.
#
# Now the loads of our model, which has learned to send each domain to
# experts of its own: 16 experts on 8 GPUs. **Predict:** how many times the
# mean load does the busiest GPU have, with the experts in order, and with
# 24 places by your function? And if the placement was made for *stories*,
# and the users want *code*?

# %%
from minids3.data.corpora import DOMAINS

domain_of = {n: DOMAINS[i] for n, i in enumerate(split.domain_ids.tolist())
             if i < len(DOMAINS)}
LOADS = {}
for domain in DOMAINS:
    mine = [n for n, d in domain_of.items() if d == domain][:60]
    row = torch.cat([split.document(n) for n in mine]).long()[:8 * 256]
    with torch.no_grad(), record_routing(chat) as log:
        chat(row[:len(row) // 128 * 128].view(-1, 128))
    LOADS[domain] = torch.stack([
        r.indices.flatten().bincount(minlength=E) for r in log.values()])


def gpu_loads(gpus, load):
    """What each GPU carries; an expert's replicas share its load."""
    held = torch.tensor(gpus)  # [GPUs, places]
    count = held.flatten().bincount(minlength=len(load))
    return (load / count)[held].sum(1)


IN_ORDER = [[2 * g, 2 * g + 1] for g in range(8)]


def unevenness(placements, loads):
    """Busiest over mean, averaged over the layers."""
    each = [gpu_loads(gpus, load) for gpus, load in zip(placements, loads)]
    return sum((x.max() / x.mean()).item() for x in each) / len(each)


stories = [place_experts(load, 24, 8) for load in LOADS["stories"]]
mixed = [place_experts(load, 24, 8) for load in sum(LOADS.values())]
own = {d: [place_experts(load, 24, 8) for load in LOADS[d]]
       for d in DOMAINS}
print("busiest GPU over the mean    in order   own load   stories' load   "
      "the mixture's")
for d in DOMAINS:
    row = [unevenness(p, LOADS[d]) for p in (
        [IN_ORDER] * len(LOADS[d]), own[d], stories, mixed)]
    print(f"{d:25}" + "".join(f"{x:12.2f}" for x in row))

# %% tags=["fold"]
layer = int(np.argmax([unevenness([IN_ORDER], [x]) for x in LOADS["code"]]))
load = LOADS["code"][layer]
fig, axes = plt.subplots(1, 3, figsize=(9.8, 2.7), sharey=True)
heights = []
for ax, (title, gpus) in zip(axes, {
        "in order": IN_ORDER, "placed for code": own["code"][layer],
        "placed for stories": stories[layer]}.items()):
    x = gpu_loads(gpus, load)
    x = x / x.mean()
    heights.append(x.max().item())
    ax.bar(range(8), x, color=[viz.COLORS[
        "control" if v == x.max() else "ours"] for v in x])
    ax.axhline(1, color=viz.COLORS["muted"], lw=1, ls=":")
    ax.set(title=f"{title}: {x.max():.2f}", xlabel="GPU")
    ax.set_xticks(range(8))
axes[0].set_ylabel("load, mean = 1")
fig.tight_layout()
viz.show(fig, dpi=88, alt="Load of 8 GPUs when the users write code, "
         f"layer {layer + 1}, divided by the mean. In order the busiest "
         f"has {heights[0]:.2f}, placed for this load {heights[1]:.2f}, "
         f"placed for stories {heights[2]:.2f}.")

# %% [markdown]
# A placement is good for the load that it was made for. V3's service makes
# it anew every ten minutes or so from what was seen (TR section 3.4), and
# the mixture of all users is kinder than any one of them.
#
# At V3's sizes, with loads that fall off like one over a root of the rank,
# and with one hot group. Prefill with 4 nodes places *whole groups* on
# nodes (**hierarchical**), which keeps a token's traffic on few nodes; with
# 18 or 40 nodes the 8 groups cannot be divided, and EPLB silently forgets
# about groups (**global**).

# %%
from minids3.sim import eplb

draw = torch.Generator().manual_seed(0)
rank = torch.rand(4, 256, generator=draw).argsort(-1) + 1
hot = 1 + torch.rand(4, 256, generator=draw)
hot[:, 64:96] *= 20
SKEWED = {"favourites": 1e5 / rank.float() ** 0.5, "a hot group": 1e4 * hot}
print(f"{'':13}{'':9}nodes GPUs places   before  after   replicas beside "
      "their own kind")
for name, loads in SKEWED.items():
    for use, nodes, gpus, places in (("prefill", 4, 32, 288),
                                     ("decoding", 18, 144, 288),
                                     ("TR 3.4", 40, 320, 320)):
        after = eplb.place(loads, places, 8, nodes, gpus)
        before = "-"
        if 256 % gpus == 0:
            plain_order = eplb.in_order(4, 256, gpus)
            before = f"{plain_order.max_over_mean(loads).mean():.2f}"
        print(f"{name:13}{use:9}{nodes:5}{gpus:5}{places:6}{before:>10} "
              f"{after.max_over_mean(loads).mean():6.2f}   "
              f"{int(after.wasted_replicas().sum()):3} of "
              f"{4 * (places - 256)}, {after.policy}")

# %% [markdown]
# (256 experts cannot be dealt out equally to 144 or 320 GPUs. With 32 more,
# or 64, they can.) Three things to take home. With favourites, EPLB does its
# work, the better the more places a GPU has. With one **hot group**,
# hierarchical placement stays bad, since the group's node carries it
# whatever is done inside. And **replicas of one expert may share a GPU**:
# nothing in the rule forbids it. Such a replica takes memory and relieves
# nobody. It happened in 25 of the 40 cases we recorded from EPLB's own code,
# and once broke the transfer of weights in vLLM (issue 18343). With one
# expert a GPU (320) there is nothing left to pack, and the busiest expert's
# share is the answer.
#
# ## 16.8 The price
#
# On one day of February 2025 DeepSeek published everything (OI): on average
# 226.75 nodes of 8 H800s; 608 billion tokens in, of which 342 were found in
# a cache; 168 billion out; a node of prefill took in 73,700 a second, cached
# ones included, and a node of decoding put out 14,800.
#
# **Guess before you run:** do these figures fit each other? And what did a
# million output tokens cost?

# %% [markdown]
# EXERCISE text
# ### Exercise: from tokens a second to dollars a million
#
# Write `serving_cost`. The result for a day has the nodes that it needed,
# and three prices.

# %%
# EXERCISE serve-price

# %%
# CHECK serve-price

# %% tags=["nbval-check-output"]
HIT, MISS, OUT = 342e9, 266e9, 168e9
prefill, decoding, per_in, per_miss, per_out = serving_cost(
    HIT, MISS, OUT, 73_700, 14_800, 8, 2.0)
print(f"nodes: {prefill:.1f} + {decoding:.1f} = {prefill + decoding:.1f}; "
      "published: 226.75")
print(f"dollars a million: input ${per_in:.3f}, uncached ${per_miss:.3f}, "
      f"output ${per_out:.3f}")
cost = 226.75 * 8 * 24 * 2.0
article = (HIT * 0.014 + MISS * 0.14 + OUT * 0.28) / 1e6
print(f"the day cost ${cost:,.0f}; at the article's price it brings in "
      f"${article:,.0f}, {article / cost - 1:+.1%}")

# %% [markdown]
# The day closes to a tenth of a percent. And the article's price was
# **break-even**: 28 cents for output are *less* than its cost of 30.0, and
# 14 for uncached input just above 13.8. That is with the speed of two months
# later; in December it was perhaps a loss. It was the older model V2.5's
# price, kept for V3 as a promotion until 8 February 2025.
#
# A **hit** is cheap for a reason that you have built: rows in pages can be
# shared by texts that begin alike, and are not computed again.

# %%
engine = Engine(chat, max_batch=4)
preamble = torch.cat(documents[:2])[:120]
for n in (5, 6, 7):
    before = engine.statistics.computed, engine.statistics.reused
    engine.generate([torch.cat((preamble, documents[n][:20]))],
                    Sampling(max_new_tokens=8))
    print(f"prompt of 140 tokens, 120 of them seen before: "
          f"{engine.statistics.reused - before[1]:3} from pages, "
          f"{engine.statistics.computed - before[0]:3} tokens computed")

# %% [markdown]
# ### The price must name a length
#
# **Predict:** an output token at position 128,000 costs how many times one
# at position 1,000? Two things go wrong at once: it reads more rows, and
# fewer texts fit into memory, so that fewer share a read of the weights. The
# line is the best that the roofline allows for V3's decoding; the points are
# DeepSeek's own, read off a figure by eye (V32 figure 3).

# %% tags=["fold"]
from minids3.sim import prices

contexts = [int(n) for n in np.geomspace(512, 131_072, 40)]
roof = prices.decode_cost_by_context(serving.V3_DECODE, contexts, 2.0)
fig, ax = plt.subplots(figsize=(7.6, 3.4))
ax.plot(contexts, roof, color=viz.COLORS["ours"],
        label="decoding, roofline (at best)")
ax.plot(4989, per_out, "D", color=viz.COLORS["ours"],
        label="decoding, the published day")
for (model, points), mark in zip(prices.COST_BY_CONTEXT.items(), "os"):
    for i, (kind, role) in enumerate((("prefill", "baseline"),
                                      ("decoding", "published"))):
        xs = [max(n, 512) for n in points]
        ax.plot(xs, [p[i] for p in points.values()], mark, ms=7,
                color=viz.COLORS[role], mfc=viz.COLORS[
                    "card" if mark == "s" else role],
                label=f"{model}, {kind}")
for price, name in ((0.28, "article: output"), (0.14, "article: input")):
    ax.axhline(price, color=viz.COLORS["control"], lw=1, ls=":")
    ax.annotate(name, (1400, price), (0, 3), textcoords="offset points",
                fontsize=8, color=viz.COLORS["control"])
ax.set(xscale="log", yscale="log", xlabel="position of the token (left "
       "edge: 0)", ylabel="dollars a million")
ax.set_xticks([1024, 4096, 16384, 65536, 131072],
              ["1K", "4K", "16K", "64K", "128K"])
ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], [0.05, 0.1, 0.2, 0.5, 1, 2])
ax.minorticks_off()
ax.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
viz.show(fig, dpi=88, alt="Dollars a million tokens against the position "
         f"of the token. The roofline of decoding goes from {roof[0]:.2f} "
         f"to {roof[-1]:.2f} at 128K; the published day lies at 0.30 and "
         "4,989. Read off DeepSeek's figure: V3.1 from 0.05 and 0.07 at "
         "0 to 0.66 and 2.15 at 128K; V3.2, with sparse attention, 0.18 "
         "and 0.25 at 128K. Dotted lines: the article's 0.28 and 0.14.")

# %% [markdown]
# "A million tokens cost 28 cents" is true at the mean length of that day's
# users, 4,989 tokens, and wrong by a factor of eight for somebody who talks
# about a whole book. V3.2's sparse attention (notebook 20) takes that
# factor away.
#
# ### What became of the price

# %%
day = prices.OI_DAY
print(f"{'dollars a million, from':42}    hit  miss output   that day")
for p in prices.PRICES:
    model = p.model.replace(", 16:00", "").split(" (")[0]
    print(f"{p.since[:10]:11}{model:31}{p.hit:7.4f} {p.miss:5.3f} "
          f"{p.output:6.2f} {p.revenue(day) / 1e3:9,.1f}K"
          f"{'' if p.verified else '  second-hand'}")

# %% tags=["fold"]
from datetime import date

line = [("article", "2024-12-26")] + [
    (name, prices.price_of(name).since[:10]) for name in (
        "v3", "v3.1", "v3.2", "v4-flash", "v4-flash-off-peak",
        "v4.1-flash")]
when = [date.fromisoformat(d) for _, d in line] + [date(2026, 11, 15)]
fig, ax = plt.subplots(figsize=(8.6, 3.2))
for kind, role in (("output", "ours"), ("miss", "baseline"),
                   ("hit", "floor")):
    values = [getattr(prices.price_of(name), kind) for name, _ in line]
    ax.step(when, values + values[-1:], where="post",
            color=viz.COLORS[role], label=kind)
labels = ("promotion", "V3", "V3.1", "V3.2", "V4-Flash", "off-peak",
          "V4.1-Flash")
for at, label, (name, _) in zip(when, labels, line):
    below = label == "V4.1-Flash"
    ax.annotate(label, (at, prices.price_of(name).output),
                (2, -11 if below else 4), fontsize=7.5,
                textcoords="offset points")
ax.set(yscale="log", ylabel="dollars a million", ylim=(0.002, 4),
       xlabel="date")
ax.set_yticks([0.01, 0.1, 1], [0.01, 0.1, 1])
ax.legend(fontsize=8, loc="upper right", ncols=3)
viz.show(fig, dpi=88, alt="DeepSeek's prices from December 2024 to "
         "November 2026 as steps on a logarithmic axis. Output 0.28, "
         "1.10 from February 2025, 1.68 from September, 0.42 with V3.2, "
         "0.28 with V4-Flash in April 2026, 0.66 and 0.60 off-peak since "
         "August. Uncached input between 0.14 and 0.56, hits from 0.07 "
         "down to 0.003.")

# %% [markdown]
# Two months after the article V3's price was four times as high; 16 months
# after it another, smaller model had the article's price again. So the
# article's figure is a **price**, of one moment, and no cost. (Dates and the
# rows marked second-hand: `notebooks/sources.md`, section *Serving and
# prices*.)
#
# ## 16.9 Play: your own service
#
# What would it cost? Roofline of V3's decoding, times the share of it that
# was reached that day, 47 %. First standing still:

# %% tags=["nbval-check-output"]
from dataclasses import replace


def what_if(dollars=2.0, texts_per_gpu=88, context=4989, reached=47,
            gpus=144, weights="fp8"):
    """Dollars of a million output tokens, and what decides."""
    try:
        where = replace(serving.V3_DECODE, gpus=gpus, weights=weights,
                        places=max(288, gpus))
        fit = serving.largest_batch(where, context)
    except ValueError as error:
        return str(error)
    if texts_per_gpu > fit:
        return f"only {fit} texts of {context:,} tokens fit on a GPU"
    step = serving.decode_step(where, texts_per_gpu, context)
    rate = step.tokens_per_second * reached / 100
    cost = prices.dollars_per_million(rate, dollars)
    return (f"${cost:.2f} a million, {cost / 0.28:.1f} times $0.28; "
            f"{rate / texts_per_gpu:.0f} tokens a second for a user; "
            f"longest part: {step.bound}")


CHANGES = ({}, {"dollars": 2.95}, {"texts_per_gpu": 8},
           {"context": 32_000, "texts_per_gpu": 16}, {"weights": "bf16"},
           {"weights": "bf16", "gpus": 320}, {"reached": 100})
viz.text_table(["changed", "what comes of it"], [
    [", ".join(f"{k} {v}" for k, v in change.items()) or "as that day",
     what_if(**change)] for change in CHANGES])

# %% tags=["nbval-ignore-output"]
viz.play(what_if, alt="Dollars of a million output tokens",
         dollars=(1.0, 8.0, 0.05), texts_per_gpu=(1, 200, 1),
         context=(1, 131_072, 1), reached=(5, 100, 1),
         gpus=[32, 72, 144, 320], weights=["fp8", "bf16"])

# %% [markdown]
# ## 16.10 The Bill

# %%
from minids3.sim import bill

bill.show(upto="16")

# %% [markdown]
# **Claim 8 of the article, so far:** "14 and 28 cents per million tokens"
# was the price; what it says about *cost* is this. On the published day it
# would have paid for the GPUs at \$2 an hour and 2.3 % more, and for
# nothing else. And the factor of 350 of section 16.0? A cache, pages and
# batches of 88 texts a GPU; the links, which are now the longest part; and
# all of it 47 % of the best.
#
# ## What became of it
#
# - **February and March 2025.** DeepSeek published the parts of its service
#   in a week of releases: FlashMLA, DeepEP, DeepGEMM, EPLB; and the day
#   above, with a "theoretical" margin of 545 % that counts all tokens at
#   R1's price (OI).
# - **May 2025.** SGLang served V3 on 12 nodes of 8 H100s: 52,300 tokens in
#   and 22,300 out a second and node, for inputs of 2,000 tokens
#   (second-hand, LMSYS).
# - **September 2025.** V3.2-Exp: attention to 2,048 chosen tokens, and a
#   line of the cache in 656 bytes, most of it FP8 (FlashMLA's README). Its
#   price fell by half and more.
# - **April to September 2026.** V4 and V4.1 replaced MLA; V4-Flash was at
#   the article's price again, with 13 of 284 billion parameters active
#   (sizes second-hand). Since August the price has a peak hour.
#
# ## What this does not show
#
# - **A GPU.** All times here are one core's, or a roofline's with peaks from
#   memory. The kernel for GPUs is `minids3.kernels.attention`; its measured
#   speed is a matter of `python -m minids3.bench kernels`.
# - **Latency.** A user sees the time to the first token and between tokens.
#   Large batches buy price with patience: 20 to 22 tokens a second for a
#   user on that day (OI).
# - **Static batches at their worst.** Nobody serves like that any more; it
#   is the measure from which continuous batching was once a gain.
# - **Load over a day.** At night 226 nodes' worth of GPUs were not used for
#   serving; who pays for them is not in the arithmetic.
# - **The price in December 2024.** The day's rates are of February 2025, V3
#   and R1 together.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 3.4 (prefill,
#   decoding, redundant experts).
# - DeepSeek-AI, open-infra-index, day 6: *DeepSeek-V3/R1 Inference System
#   Overview* (the day, and the layout).
# - Repository deepseek-ai/EPLB (the rule, and the program we compare with).
# - Kwon et al. 2023, *PagedAttention*, arXiv 2309.06180: section 4 (pages,
#   sharing).
# - Yu et al. 2022, *Orca*, OSDI: section 3 (continuous batching).
# - Insights into DeepSeek-V3, arXiv 2505.09343v2: section 2 (a decode step's
#   bound).
#
# **Next:** [17 · Speculative decoding](17_speculative_decoding.ipynb): two
# tokens for one read.
