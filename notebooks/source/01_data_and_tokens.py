# %% [markdown]
# # 01 · Data and tokens
#
# {{badge}}
#
# > **Claim.** A loop around two functions of yours learns the first 600
# > merges of the `tokenizers` package, and 51 lines of the library all 1,784,
# > to the last id. With them our corpus takes less than a third as many
# > tokens as bytes. And because we know the grammar that wrote it, we can
# > compute, before training anything, the loss that no model will beat.
#
# **Takes** about 80 minutes, 49 of them for the exercises; 'Run all' about a
# minute on one CPU core, no GPU. **Needs** Python, and notebook 00 for how
# exercises work. **Afterwards** you can train and apply a byte-level BPE,
# pack documents into batches, compute the entropy of a grammar, and put two
# losses that were counted in different tokens on one scale.

# %%
# SETUP

# %% [markdown]
# ## 1.0 Two teams report a loss: what one token is worth
#
# Two teams model the same stories. Both report their loss on the same unseen
# documents, in nats per token:
#
# | team | loss, nats per token |
# |---|---|
# | Red | 0.14 |
# | Blue | 0.60 |
#
# **Guess before you run:** by what factor is Red's model better? Would you
# pay for Red's?

# %%
from minids3.data import DOMAINS, corpora, load_split, load_tokenizer

tok = load_tokenizer()
valid = load_split("validation")

stories = valid.only("stories")
exact_nats = stories.bits.sum().item() * math.log(2)
texts = [tok.decode(stories.document(i).tolist())
         for i in range(stories.n_documents)]
units = {"Red": sum(len(text.encode()) for text in texts),
         "Blue": sum(len(tok.encode(text)) for text in texts)}

for team, n in units.items():
    n += len(texts)  # every document also ends with one <|eos|>
    print(f"{team:5} {exact_nats / n:.2f} nats per token   "
          f"({exact_nats:,.0f} nats over {n:,} tokens)")

# %% [markdown]
# The same number of nats. Both teams have the **same, perfect** model: it is
# the grammar that wrote the stories, and it is as surprised by a document in
# one notation as in the other. Red counts bytes, Blue counts tokens, most of
# which are whole words. Red has spread one bill over four times as many
# payers.
#
# So before anybody trains anything, three questions need an answer: what is a
# token, what is in a batch, and what is the lowest loss there is? This
# notebook answers all three.
#
# ## 1.1 Four kinds of text
#
# Here is one document from each of our four domains.

# %%
import textwrap

samples = {d: corpora.generate(d, 1, seed=2)[0] for d in DOMAINS}
viz.text_table(
    ["domain", "a document"],
    [[d, "\n".join(textwrap.fill(line, 48)
                   for line in doc.text.split("\n"))]
     if d == "stories" else [d, doc.text] for d, doc in samples.items()])

# %% [markdown]
# They look different on purpose: in notebook 05 experts will divide the work
# among themselves, and we want to *see* along which lines. They are also
# generated, by a small grammar that throws dice. A story tracks where two
# things are and asks at the end; a sum is worked column by column; code comes
# with asserts that run; facts belong to one invented country.
#
# Mind how differently they are made: a story is long words between spaces, a
# sum is digits and signs. A good notation has to suit both.
#
# ## 1.2 From bytes to tokens
#
# A computer stores text as bytes: UTF-8 writes every character of every
# script as one to four of them. There are only 256, so a model over bytes
# never meets an unknown word. What does it cost?

# %% tags=["nbval-check-output"]
for text in ("the fox", "naïve", "水獺", "🦊"):
    data = list(text.encode("utf-8"))
    print(f"{text!r:10} {len(text)} characters, "
          f"{len(data):2} bytes: {data}")

# %% [markdown]
# A token per byte means four to five steps for an English word, and attention
# pays for every *pair* of steps. A token per word would be short, but then
# what is the token of a word nobody has seen?
#
# **Byte-pair encoding** takes the middle road (Sennrich et al. 2016; on bytes
# since GPT-2). Begin with bytes. Find the pair of neighbours that occurs most
# often, make it a new token, and repeat. Frequent words end up whole, rare
# ones in pieces, and the worst case is bytes again.
#
# One rule first: some borders are never crossed. The text is cut into
# **pieces**, and merges happen inside a piece only. DeepSeek-V3 does this
# too, with a longer pattern; ours fits on a line.

# %%
from minids3.data.bpe import PATTERN, piece_ids, split_pieces

print(PATTERN)
code = samples["code"].text

# %% tags=["fold"]
viz.show(viz.token_strip(split_pieces(code)).figure(
    columns=84, title="A document cut into pieces"),
    alt="A small Python function cut into coloured pieces: words with the "
    "space before them, single digits, runs of punctuation, and line "
    "breaks together with the indentation that follows.", dpi=90)

# %% [markdown]
# A dot is a space, an arrow a line break. A word takes along the space before
# it, so ` fox` in a sentence is one piece. Digits stay single: a model that
# sees `47` as one unbreakable thing has to learn its column of ones by heart.
#
# Pieces repeat. Of nearly 800,000 in the training text of our tokenizer only
# some 1,250 are *different*, so we keep each once, with the number of times
# it occurs.

# %% tags=["nbval-check-output"]
from collections import Counter

from minids3.data.build import tokenizer_texts

corpus = tokenizer_texts()  # what the shipped tokenizer was trained on
pieces = Counter(p for text in corpus for p in split_pieces(text))
words = [piece_ids(piece) for piece in pieces]  # one token per byte
times = list(pieces.values())
print(f"{sum(len(text) for text in corpus):,} bytes, "
      f"{sum(times):,} pieces, {len(pieces):,} different")
for piece, n in pieces.most_common(6):
    print(f"{piece!r:8} {n:7,} times, as tokens {piece_ids(piece)}")

# %% [markdown]
# EXERCISE text
# ### Exercise: count the neighbours
#
# Write `count_pairs`. `words` is a list of words, each a list of token ids;
# `times[i]` says how often word i occurs in the text. Return a dict from
# `(left, right)` to the number of times that pair of neighbours occurs in the
# **text**. No pair crosses from one word to the next. So the words `[4, 5]`
# and `[4, 5, 4]`, 10 times and once, have the pairs `(4, 5)` 11 times and
# `(5, 4)` once. (Ids 0 to 7 are control tokens, 8 to 263 the bytes, in the
# order of GPT-2's alphabet: printable ones first, so a space is 228 and `t`
# is 91. Everything from 264 up will be made by you.)

# %%
# EXERCISE bpe-count-pairs

# %%
# CHECK bpe-count-pairs

# %% [markdown]
# **Predict:** which two neighbouring bytes are the most frequent in our
# corpora? And what do you make of the two spaces?

# %%
from minids3.data.bpe import BPE

raw = BPE([])  # no merges yet: knows only the bytes


def show_pair(pair):
    """A pair of byte tokens as text."""
    return raw.decode(pair).replace(" ", "·").replace("\n", "↵")


top = Counter(count_pairs(words, times)).most_common(16)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 3.1))
ax.bar([show_pair(pair) for pair, _ in top], [n for _, n in top],
       color=viz.COLORS["ours"])
ax.set(ylabel="times in the corpus", xlabel="pair of bytes (· is a space)",
       title="The sixteen most frequent neighbours")
ax.grid(axis="x", visible=False)
plt.setp(ax.get_xticklabels(), family="DejaVu Sans Mono")
viz.show(fig, alt="Bar chart of the sixteen most frequent pairs of bytes. "
         f"First is {show_pair(top[0][0])!r} with {top[0][1]:,}.")

# %% [markdown]
# EXERCISE text
# ### Exercise: merge a pair
#
# The leader is the middle of `the`. Two spaces are the indentation of code.
#
# Write `merge_pair`. It walks through `ids` from left to right and replaces
# every occurrence of `pair` by the single token `new_id`, and returns a new
# list. With the pair `(4, 4)` and the new id 300, `[4, 4, 4, 5]` becomes
# `[300, 4, 5]`: a token that was used up cannot be used again.

# %%
# EXERCISE bpe-merge

# %%
# CHECK bpe-merge

# %% [markdown]
# Those two functions are the whole of BPE training; the rest is a loop. When
# two pairs are equally frequent somebody has to decide, and we decide as the
# `tokenizers` package does: the smaller pair of ids.

# %%
from minids3.data.bpe import N_SPECIALS

FIRST = N_SPECIALS + 256  # id of the first merged token


def learn(words, times, n, tie=1):
    """Learn n merges; also how many tokens the corpus takes after each."""
    merges, sizes = [], [sum(len(w) * k for w, k in zip(words, times))]
    for _ in range(n):
        counts = count_pairs(words, times)
        best = min(counts, key=lambda pair: (
            -counts[pair], tie * pair[0], tie * pair[1]))
        words = [merge_pair(w, best, FIRST + len(merges)) for w in words]
        merges.append(best)
        sizes.append(sum(len(w) * k for w, k in zip(words, times)))
    return merges, sizes


mine, sizes = learn(words, times, 600)
names = BPE(mine).token_bytes
print("the first twelve:", [names[FIRST + i].decode() for i in range(12)])
print("500 to 506:      ", [names[FIRST + i].decode()
                            for i in range(500, 507)])

# %% [markdown]
# First come scraps, and much later names.
#
# **Guess:** 600 merges have been learned. How many tokens does the corpus
# take now, compared with bytes? A half? A third? And what will the other
# 1,184 merges of our vocabulary add?

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.4, 3.3))
ax.plot([s / 1e6 for s in sizes], color=viz.COLORS["ours"])
ax.axhline(sum(times) / 1e6, color=viz.COLORS["floor"], linestyle="--")
ax.text(595, sum(times) / 1e6 - 0.17, "one token per piece",
        color=viz.COLORS["floor"], ha="right", fontsize=8.5)
for n in (0, 20, 100, 300, 600):
    ax.plot(n, sizes[n] / 1e6, "o", color=viz.COLORS["ours"])
    ax.annotate(f"{sizes[n] / sizes[0]:.0%}", (n, sizes[n] / 1e6),
                textcoords="offset points", xytext=(6, 6), fontsize=8.5)
ax.set(xlabel="merges learned", ylabel="tokens in the corpus (millions)",
       ylim=(0, None), title="Every merge makes the corpus shorter")
viz.show(fig, alt="Number of tokens in the corpus against merges learned. "
         f"It falls steeply at first, to {sizes[100] / sizes[0]:.0%} of "
         f"the bytes after 100 merges and {sizes[600] / sizes[0]:.0%} "
         "after 600, "
         "close to one token per piece.")

# %% [markdown]
# After 600 merges the corpus is about a tenth above one token per piece, and
# no merge can go below that. The later ones finish rare names, and serve
# other people's text: the training text ends with a list of common English
# and Python words.
#
# Here is a sentence on the way:

# %%
sentence = samples["stories"].text.split(". ")[0] + "."


def cut(text, merges):
    """Text of each token when only these merges are known."""
    encoder = BPE(merges)
    return [encoder.token_bytes[i].decode(errors="replace")
            for i in encoder.encode(text)]

# %% tags=["fold"]
for n in (20, 100, 600):
    parts = cut(sentence, mine[:n])
    viz.show(viz.token_strip(parts).figure(
        columns=92, title=f"{n} merges: {len(parts)} tokens"),
        alt=f"The sentence '{sentence}' in {len(parts)} tokens with {n} "
        "merges.", dpi=90)

# %% [markdown]
# ### The same merges as the `tokenizers` package's?
#
# The package `tokenizers` does this in Rust, and the shipped tokenizer was
# trained with it. **Predict:** how many of your 600 merges are the same, in
# the same order?

# %% tags=["nbval-check-output"]
from minids3.data.bpe import train_bpe
from minids3.data.tokenizer import train_merges

same = sum(a == b for a, b in zip(mine, tok.merges))
print(f"yours against the shipped file:  {same} of {len(mine)} equal")

ours = train_bpe(corpus, 2048)        # the library's loop, incremental
theirs = train_merges(corpus, 2048)   # the tokenizers package
print(f"all {len(theirs)} merges, ours = theirs: {ours == theirs}")

# Control: when two pairs are equally frequent, take the larger ids.
other = learn(words, times, 600, tie=-1)[0]
where = [a == b for a, b in zip(mine, other)]
print(f"control, ties the other way:    {sum(where)} of {len(mine)} equal, "
      f"the first difference at number {where.index(False)}")

# %% [markdown]
# All of them. The control shows that this is not a matter of course. The
# first tie that matters is number 90; decide it the other way, and from there
# on many tokens have other numbers: the same text gets other ids. Two
# programs share a vocabulary only if they agree on every detail.
#
# ## 1.3 Using it on a new word
#
# Training gave a *ranked* list of merges. To cut a new word, replay training:
# of all neighbours that have a merge, apply the one that was learned
# **first**, and look again.

# %% [markdown]
# EXERCISE text
# ### Exercise: encode a word
#
# Write `encode_word`. `ids` is a word as byte tokens; `ranks` maps a pair to
# its rank r, and merge number r makes token `first_id + r`. Go on until no
# neighbouring pair has a rank. Your `merge_pair` is there to be used. With
# `ranks = {(5, 6): 0, (4, 5): 1}` and `first_id = 264`, `[4, 5, 6]` becomes
# `[4, 264]`: rank 0 goes first, although (4, 5) comes first in the word.

# %%
# EXERCISE bpe-encode

# %%
# CHECK bpe-encode

# %%
ranks = {pair: r for r, pair in enumerate(tok.merges)}


def encode(text):
    """Token ids of a text, by your functions."""
    return [i for piece in split_pieces(text)
            for i in encode_word(piece_ids(piece), ranks, FIRST)]


for text in ("hedgehog", "hedgehogs", "Velmora", "otterly", "水獺"):
    parts = [tok.token_bytes(i).decode(errors="replace")
             for i in encode(" " + text)]
    print(f"{text:10} {len(parts)} tokens  {parts}")

# %% [markdown]
# Known words are whole, an unknown one falls into known parts, and a script
# that was never seen falls back to bytes (a byte alone is no character, hence
# the question marks). Nothing is ever lost. Next: the package again, now on
# unseen documents and on real code.
#
# And one trap. `<|eos|>` is a control token that ends a document. What if
# somebody *types* those characters? If they became the control token, any
# user could end the model's document. **Predict** the last two lines:

# %% tags=["nbval-check-output"]
from minids3.data import standard_library

unseen = [tok.decode(valid.document(i).tolist())
          for i in range(valid.n_documents)]
equal = sum(encode(text) == tok.encode(text) for text in unseen[:300])
print(f"{equal} of 300 documents get the same ids")

real = standard_library(60_000)  # modules of the Python that runs this
print("Python's own library, too:",
      all(encode(text) == tok.encode(text) for text in real))
print("and back again, unharmed: ",
      all(tok.decode(encode(text)) == text for text in real))

typed = "bye <|eos|>"
print("as text:   ", tok.encode(typed))
print("as control:", tok.encode(typed, allow_special=True))

# %% [markdown]
# Text stays text unless the program asks otherwise.
#
# ## 1.4 Packing
#
# Training wants rectangles: B rows of T tokens. Documents are as long as they
# please. The obvious way gives each document its own row and fills up with
# padding.
#
# **Guess:** with rows of 128 tokens, which share of the multiplications would
# be spent on padding?

# %%
T = 128
n_docs = 14
first = [valid.document(i) for i in range(n_docs)]
kinds = valid.domain_ids[:n_docs].tolist()
wasted = 1 - valid.lengths().clamp(max=T).sum().item() / (
    valid.n_documents * T)

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.4))
place = 0
for row, (document, kind) in enumerate(zip(first, kinds)):
    colour = viz.COLORS[DOMAINS[kind]]
    n = len(document)
    axes[0].barh(row, min(n, T), color=colour, edgecolor="white")
    while n > 0:  # a packed document may continue in the next row
        row_now, column = divmod(place, T)
        width = min(n, T - column)
        axes[1].barh(row_now, width, left=column, color=colour,
                     edgecolor="white")
        place, n = place + width, n - width
for ax, title in zip(axes, ("One document a row", "Packed")):
    ax.set(xlim=(0, T), ylim=(n_docs - 0.4, -0.6), title=title,
           xlabel="position in the row (tokens)", ylabel="row")
    ax.grid(visible=False)
for domain in DOMAINS:
    axes[1].bar(0, 0, color=viz.COLORS[domain], label=domain)
axes[1].legend(fontsize=8, ncols=2, loc="lower right")
fig.tight_layout()
viz.show(fig, alt=f"{n_docs} documents, coloured by domain. One to a row "
         f"they fill {n_docs} rows of {T} about half; packed end to end "
         "they take "
         f"{math.ceil(place / T)} rows with no gap.")
print(f"padding in rows of {T}: {wasted:.0%} of all positions")

# %% [markdown]
# Half the bill for nothing. So documents are laid **end to end** and the
# stream is cut, wherever the knife falls. DeepSeek-V3 packs in the same way
# and does *not* mask attention at the borders (TR section 4.1): a sum may
# look at the story before it and has to learn that it does not help.

# %% [markdown]
# EXERCISE text
# ### Exercise: pack documents
#
# Write `pack_documents`. Concatenate the documents into a stream of N tokens
# and cut it into `inputs` `[R, T]`; `targets` `[R, T]` holds for each input
# the token that comes **after it in the stream**. Use as many rows as
# possible; a tail too short for a row is dropped. Every other token but the
# first is predicted exactly once. `[1, 2, 3]` and `[4, 5, 6]` in rows of two
# give inputs `[[1, 2], [3, 4]]` and targets `[[2, 3], [4, 5]]`; 6 is dropped.

# %%
# EXERCISE pack-documents

# %%
# CHECK pack-documents

# %% [markdown]
# `PackedBatches` in the library does this, and lays the documents in a new
# order every epoch. A batch is a **pure function of (seed, step)**: step
# 5,000 is the same after a crash, on another machine, or asked for twice.
# That is what lets a training run resume bit for bit.

# %% tags=["nbval-check-output"]
from minids3.data import PackedBatches

inputs, targets = pack_documents([d.long() for d in first], 16)
print(repr(tok.decode(inputs[1].tolist())))
print("   and then", repr(tok.decode(targets[1, -1:].tolist())), "\n")

train = load_split("train")
once = PackedBatches(train, batch_size=4, seq_len=128, seed=0)
again = PackedBatches(train, batch_size=4, seq_len=128, seed=0)
print(f"{len(train.tokens):,} tokens, {train.n_documents:,} documents, "
      f"{len(once):,} batches an epoch")
later = once.batch(5000)[0]
print("step 5000 is the same twice:",
      torch.equal(later, again.batch(5000)[0]))

# %% [markdown]
# ## 1.5 How low can a loss go?
#
# An event of probability p carries a **surprisal** of -log2 p bits. Its
# average is the **entropy**, and Shannon proved in 1948 that no code, hence
# no model, needs fewer bits on average. For English nobody knows the number.
# For our corpora we do, since we wrote the dice.

# %% [markdown]
# EXERCISE text
# ### Exercise: the entropy of a grammar
#
# A grammar is a choice, and after each option another choice, or the end. As
# data: a node is a list of `(probability, rest)`, where `rest` is the next
# node or `None`. Different choices always write different texts. Write
# `grammar_entropy`: the entropy of the finished text in bits (a fair coin,
# `[(0.5, None), (0.5, None)]`, has 1). After an option of probability p you
# have paid -log2 p, and whatever follows is only paid by those who got there;
# an option may have probability 0, and then it costs nothing.

# %%
# EXERCISE grammar-entropy

# %%
# CHECK grammar-entropy

# %% [markdown]
# Try it on something small. "The fox sleeps." or, three times out of four,
# "The fox hides the cup *somewhere*", in one of 14 places. **Guess:** more or
# less than the 3.81 bits that 14 equal places alone would cost?

# %% tags=["nbval-check-output"]
places = [(1 / 14, None)] * 14
small = [(0.25, None), (0.75, places)]
print(f"{grammar_entropy(small):.3f} bits")
by_hand = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
print(f"by hand: {by_hand:.3f} for "
      f"the choice + 0.75 x {math.log2(14):.3f} for the place")

# %% [markdown]
# The real grammars are Python functions that throw dice through `d.pick` and
# `d.branch`. The library runs *the same function* three ways: to write a
# document, to read the dice back out of a text (its exact surprisal), and to
# walk over all branches (the exact entropy). Nothing is estimated; the
# simulation below is only there to check it.

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.6, 3.6))
for domain in DOMAINS:
    bits = np.array([d.bits for d in corpora.generate(domain, 3000, 5)])
    n = np.unique(np.geomspace(10, len(bits), 60).astype(int))
    mean = bits.cumsum()[n - 1] / n
    error = 2 * bits.std() / np.sqrt(n)
    exact = corpora.entropy(domain)
    colour = viz.COLORS[domain]
    ax.fill_between(n, (mean - error) / exact, (mean + error) / exact,
                    color=colour, alpha=0.15, linewidth=0)
    ax.plot(n, mean / exact, color=colour,
            label=f"{domain}: exactly {exact:.2f} bits")
ax.axhline(1, color=viz.COLORS["ink"], linewidth=1)
ax.set(xscale="log", xlim=(10, 3000), ylim=(0.8, 1.2),
       xlabel="documents drawn", ylabel="mean surprisal / exact entropy",
       title="Sampling homes in on the computed entropy")
ax.legend(fontsize=8, loc="upper right")
viz.show(fig, alt="Mean surprisal of sampled documents over the exact "
         "entropy, against the number of documents, for four domains. All "
         "four curves converge to one.", dpi=100)

# %% [markdown]
# Now look inside one document. **Predict:** in the story and in the sum
# below, where are the bits? Where does a perfect reader learn *nothing*?

# %%
def bits_per_token(text, domain):
    """Tokens of a text, and the bits of the dice thrown in each."""
    parts = [tok.token_bytes(i).decode() for i in tok.encode(text)]
    ends = np.cumsum([len(part) for part in parts])
    paid = np.zeros(len(parts))
    for choice in corpora.trace(domain, text):
        at = np.searchsorted(ends, choice.offset, side="right")
        paid[at] += choice.bits
    return parts, paid

# %% tags=["fold"]
for domain in ("stories", "arithmetic", "code"):
    parts, paid = bits_per_token(samples[domain].text, domain)
    viz.show(viz.token_strip(parts, paid, unit="bits", high=6.5).figure(
        columns=88, title=f"{domain}: {paid.sum():.1f} bits in "
        f"{len(parts)} tokens, {(paid == 0).mean():.0%} of them free"),
        alt=f"A document of {domain} with its surprisal per token. Dark "
        "are the free choices; all that follows from them is blank.",
        dpi=90)

# %% [markdown]
# White tokens are *certain* to somebody who understands. In the sum, all dice
# are thrown in the first line; the working, the carry and the answer cost a
# perfect reader nothing. To a bad model they cost a lot. So the gap between a
# model and the floor is what the model can still **learn**; the floor itself
# is pure chance.
#
# (A choice that writes several tokens is booked on its first.)

# %%
from minids3.data import entropy_floor

floors = {d: entropy_floor(valid.only(d)) for d in DOMAINS}
floors["all four"] = entropy_floor(valid)

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7, 3.1))
colours = [viz.COLORS[d] for d in DOMAINS] + [viz.COLORS["muted"]]
ax.bar(list(floors), list(floors.values()), color=colours, width=0.6)
for i, value in enumerate(floors.values()):
    ax.text(i, value + 0.012, f"{value:.3f}", ha="center", fontsize=9)
ax.set(ylabel="floor (nats per token)", ylim=(0, 0.72),
       title="The lowest loss there is, validation documents")
ax.grid(axis="x", visible=False)
viz.show(fig, alt="Exact loss floors in nats per token: " + ", ".join(
    f"{d} {v:.3f}" for d, v in floors.items()) + ".")
print(f"a model that knows nothing: ln {tok.vocab_size} = "
      f"{math.log(tok.vocab_size):.2f}")

# %% [markdown]
# Remember the last bar. Notebook 02 trains a transformer against it, and a
# model that gets *below* it will turn out to be cheating.
#
# ## 1.6 The signature result: one ruler for all tokenizers
#
# Back to the two teams. Divide what was paid not by tokens, which everybody
# cuts differently, but by the **bytes of the text**, which nobody can argue
# about, and count in bits, of which one is ln 2 = 0.693 nats.

# %% [markdown]
# EXERCISE text
# ### Exercise: one ruler
#
# Write `bits_per_byte`: all bits that a model has paid, over all bytes of the
# text in UTF-8. You get what an evaluation loop has at its end. For each
# batch, `losses` holds the mean loss in nats per token, and `n_tokens` how
# many tokens that was, control tokens included; batches are unequal. `texts`
# is what all of them say together, as strings without control tokens, and
# need not be cut as the batches are. Two batches, 8 tokens at ln 2 nats and 4
# at 2 ln 2, on the texts `"ab"` and `"cdef"` are 16 bits on 6 bytes: 2.667.

# %%
# EXERCISE bits-per-byte

# %%
# CHECK bits-per-byte

# %% [markdown]
# Red and Blue once more, on all four domains, each document a batch of its
# own. **Predict** the last column. And what does the plain mean of the
# documents' losses say, in which a short one counts like a long one?

# %% tags=["nbval-check-output"]
nats = valid.bits * math.log(2)  # of each document, by the exact grammar
teams = {"Red": [len(text.encode()) + 1 for text in unseen],
         "Blue": [len(tok.encode(text)) + 1 for text in unseen]}
print("team   nats/token  plain mean  bits/byte")
for team, n_tokens in teams.items():
    losses = [x / n for x, n in zip(nats.tolist(), n_tokens)]
    ruled = bits_per_byte(losses, n_tokens, unseen)
    print(f"{team:6} {nats.sum() / sum(n_tokens):10.3f} "
          f"{np.mean(losses):11.3f} {ruled:10.3f}")

# %% [markdown]
# One model, one number at last. The plain mean is 2 % too low for Red and 5 %
# for Blue: a comparison of plain means would compare the lengths of documents
# as well.
#
# To see what the ruler is for, we need a model that trains in a second under
# any vocabulary:
# a **4-gram**. It counts which token followed the last four, falls back on
# the last three where those were rare, and so on down. The *same* model, the
# same documents, five tokenizers:
#
# - bytes; 64, 256 and all 1,784 merges;
# - the **control**: merges learned from arithmetic and nothing else.
#
# **Predict two rankings** before you run: by nats per token, and by bits per
# byte.

# %%
from minids3.data import Tokenizer

train_texts = [tok.decode(train.document(i).tolist()) for i in range(6000)]
valid_texts = unseen[:600]
n_bytes = sum(len(text.encode()) for text in valid_texts)
valid_bits = valid.bits[:600].sum().item()

alone = [doc.text for doc in corpora.generate("arithmetic", 4000, 1)]
wrong = Tokenizer(train_merges(alone, FIRST + 400))
tokenizers = {"bytes": Tokenizer([])}
for n in (64, 256):
    tokenizers[f"{n} merges"] = Tokenizer(tok.merges[:n])
tokenizers[f"{len(tok.merges)} merges"] = tok
tokenizers["wrong texts"] = wrong  # ran out of pairs after 107 merges


def stream(texts, t):
    """All documents as one array of ids, with <|bos|> and <|eos|>."""
    return np.array([i for ids in t.encode_batch(texts)
                     for i in (t.bos_id, *ids, t.eos_id)])


def keys(ids, k, last):
    """One integer for the k tokens before a position (and its own)."""
    key = np.zeros(len(ids) - 4, dtype=np.int64)
    for j in range(k, -1 if last else 0, -1):
        key = key * 2048 + ids[4 - j:len(ids) - j]
    return key


def times_seen(seen, new, k, last):
    """How often the k tokens before each new one (and it) were seen."""
    known, n = np.unique(keys(seen, k, last), return_counts=True)
    wanted = keys(new, k, last)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[place] == wanted, n[place], 0)


def four_gram_nats(t):
    """Nats that a 4-gram model pays on the validation texts."""
    seen, new = stream(train_texts, t), stream(valid_texts, t)
    p = np.bincount(seen, minlength=t.vocab_size) + 0.1
    p = (p / p.sum())[new[4:]]
    for k in range(1, 5):  # mix: longer contexts count as far as seen
        p = ((times_seen(seen, new, k, True) + p)
             / (times_seen(seen, new, k, False) + 1))
    return -np.log(p).sum(), len(p)


print(f"{'tokenizer':13} tokens/doc  nats/token  bits/byte")
ruler = {}
for name, t in tokenizers.items():
    nats, n = four_gram_nats(t)
    ruler[name] = nats / n, bits_per_byte([nats / n], [n], valid_texts), n
    print(f"{name:13} {n / 600:10.1f} {nats / n:11.2f} "
          f"{ruler[name][1]:10.3f}")
floor_byte = valid_bits / n_bytes
print(f"{'exact floor':13} {'':10} {'depends':>11} {floor_byte:10.3f}")

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.5))
colours = [viz.COLORS["baseline"]] + 3 * [viz.COLORS["ours"]] + [
    viz.COLORS["control"]]
for ax, k, title in ((axes[0], 0, "Nats per token: misleads"),
                     (axes[1], 1, "Bits per byte: one ruler")):
    ax.bar(list(ruler), [r[k] for r in ruler.values()], color=colours)
    for i, r in enumerate(ruler.values()):
        ax.text(i, r[k] * 1.02, f"{r[k]:.2f}", ha="center", fontsize=8.5)
    ax.set_title(title)
    ax.grid(axis="x", visible=False)
    plt.setp(ax.get_xticklabels(), rotation=20, ha="right")
axes[0].set(ylabel="loss (nats per token)",
            ylim=(0, 1.2 * max(r[0] for r in ruler.values())))
axes[1].set(ylabel="loss (bits per byte)",
            ylim=(0, 1.2 * max(r[1] for r in ruler.values())))
for i, r in enumerate(ruler.values()):  # one floor, in each one's units
    axes[0].hlines(valid_bits * math.log(2) / r[2], i - 0.4, i + 0.4,
                   color=viz.COLORS["floor"], linewidth=2)
axes[1].axhline(floor_byte, color=viz.COLORS["floor"], linewidth=2,
                label="exact floor")
axes[1].legend(loc="upper center")
fig.tight_layout()
words_ = ", ".join(f"{n}: {r[0]:.2f} and {r[1]:.2f}"
                   for n, r in ruler.items())
viz.show(fig, alt="Loss of the same kind of model under five tokenizers, "
         f"nats per token and bits per byte. {words_}. The floor differs "
         f"per tokenizer on the left and is {floor_byte:.2f} on the right.",
         dpi=100)

# %% [markdown]
# **By nats per token, bytes win and the full vocabulary comes last. By bits
# per byte it is the other way round**, and only the second order is true: the
# nats that were paid for the *same texts* fall by almost half. The left panel
# is not noise, it is wrong by construction, and its floor (green) moves with
# the tokenizer. On the right there is one floor for all.
#
# The control looks respectable on the left, ahead of both large vocabularies.
# On the right it is what it is: merges of digits and column headings do
# little for words.
#
# V3's report does the same: its perplexity benchmark, Pile-test, is given in
# bits per byte, **because** the models compared have different tokenizers
# (V3 0.548, Llama 3.1 405B 0.542, TR table 3).
#
# ### A tokenizer is at home in the texts it was trained on
#
# The control was slightly mean; here it is in full. Each row is a tokenizer
# trained on one kind of text, each column a kind of text to be cut.
# **Predict:** where are the worst squares?

# %%
home = {d: Tokenizer(train_merges(
    [doc.text for doc in corpora.generate(d, 3000, 1)], 2048))
    for d in DOMAINS}
home["all four"] = tok
library = standard_library(200_000)
home["Python library"] = Tokenizer(train_merges(library[::2], 2048))
tests = {d: [doc.text for doc in corpora.generate(d, 200, 7)]
         for d in DOMAINS} | {"Python library": library[1::2]}
table = np.array([[sum(len(x.encode()) for x in texts)
                   / sum(map(len, t.encode_batch(texts)))
                   for texts in tests.values()] for t in home.values()])

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7.2, 4.1))
image = ax.imshow(table, cmap="cividis", vmin=1, vmax=table.max())
ax.set_xticks(range(len(tests)), list(tests), rotation=20, ha="right")
ax.set_yticks(range(len(home)), list(home))
for i, j in np.ndindex(table.shape):
    light = table[i, j] < 0.6 * table.max()
    ax.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center",
            color="white" if light else "black", fontsize=9)
ax.set(xlabel="text that is cut", ylabel="tokenizer trained on",
       title="Bytes per token: more is shorter")
ax.grid(visible=False)
fig.colorbar(image, label="bytes per token")
viz.show(fig, alt="Heat map of bytes per token, six tokenizers by five "
         "kinds of text. The diagonal is best, a tokenizer of one domain "
         "cuts the others to little more than bytes, and the one trained "
         "on all four "
         "equals each on its home ground.")

# %% [markdown]
# Away from home a tokenizer sinks towards one byte per token. Ours, trained
# on all four, is as good on each as its specialist, because the four together
# have fewer words than it has tokens. On real code it is poor. DeepSeek-V3's,
# made for several languages and for code, has 128K tokens (TR section 4.1).
#
# **To go further**, count the 4-grams of one more tokenizer,
# `Tokenizer(tok.merges[:600])`, with `four_gram_nats`, and put it to your
# ruler. **Predict** first between which two bars of the right panel it comes.
#
# ## 1.7 Play
#
# How many merges does a text need? Move the slider, or type your own text:
# your name, another language, a line of code. For readers without a live
# kernel, one line at two settings:

# %%
line = "Nora hid 47 kites under the bridge, naïvely."

# %% tags=["fold"]
for n in (50, 1784):
    parts = cut(line, tok.merges[:n])
    viz.show(viz.token_strip(parts).figure(
        columns=92, title=f"{n} merges: {len(parts)} tokens, "
        f"{len(line.encode()) / len(parts):.1f} bytes each"),
        alt=f"'{line}' in {len(parts)} tokens with {n} merges.", dpi=90)

# %% tags=["nbval-ignore-output"]
def tokens_of(text, merges):
    """A text cut into tokens with the given number of merges."""
    parts = cut(text or " ", tok.merges[:merges])
    return viz.token_strip(parts).figure(
        columns=92, title=f"{merges} merges: {len(parts)} tokens")


viz.play(tokens_of, text=line, merges=(0, 1784, 8))

# %% [markdown]
# ## 1.8 The Bill
#
# How much is there to read? The report says 14.8 trillion tokens [TR].
# **Guess:** at 250 words a minute, day and night, how long would *you* need?

# %%
from minids3.sim import bill

bill.show(upto="01")

# %% tags=["nbval-check-output"]
tokens = bill.line_01().value
years = tokens * 0.75 / 250 / 60 / 24 / 365  # about 3/4 word a token
print(f"{tokens / 1e12:.1f}T tokens: about {years:,.0f} years of reading")
times = tokens / len(train.tokens)
print(f"our training split is {times:,.0f} times smaller")

# %% [markdown]
# This line has no dollars yet. It is the D in the 6ND of the next notebook.
# (Three quarters of a word per token is a rule of thumb for English.)
#
# ## The article, so far
#
# It says nothing about tokens, and everything it says about cost depends on
# them: claim 3, \$5.5 million, is a price for 14.8 trillion tokens and for no
# other number. That number is the report's own and cannot be checked from
# outside.
#
# ## What became of it
#
# Byte-level BPE is still how text gets into these models: V3.2 (2025) went on
# from V3's checkpoint, tokenizer included. What changed is what tokens are
# *for*. Engram (DeepSeek, January 2026, repository) looks up short sequences
# of tokens in a table by a hash, as a second way to have many parameters and
# use few, and V4 (April 2026, Hugging Face's documentation) routes its first
# three layers of experts by a hash of the token id. The 4-grams of section
# 1.6 are back, as memory.
#
# ## Limits of what you saw
#
# - The floor is exact for *our grammar*. For text in the wild nobody knows
#   the entropy; a lower loss is then all there is to go by.
# - The floor is a mean. On a finite set of documents a model may be a little
#   above or below it by luck; here the validation split's own surprisal is
#   used, which removes most of that.
# - A window that opens in the middle of a document hides its beginning, so a
#   model on packed rows pays a little more than the floor even if perfect.
# - Bits per byte compares losses, not usefulness, and a model that sees four
#   tokens gains more from long ones than a transformer, which sees far back
#   anyway. Read the right panel as a ruler, not as praise of BPE.
# - Our pattern knows ASCII letters only. Other scripts are cut safely but
#   coarsely; V3's tokenizer was built for Chinese as well as English.
#
# ## References
#
# 1. Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with
#    Subword Units, arXiv 1508.07909: section 3.2 and algorithm 1.
# 2. Radford et al., Language Models are Unsupervised Multitask Learners
#    (GPT-2, 2019): section 2.2, byte-level BPE.
# 3. Shannon, A Mathematical Theory of Communication (1948): sections 6 and 9.
# 4. Gao et al., The Pile, arXiv 2101.00027: section 3.1, bits per byte.
# 5. DeepSeek-V3 Technical Report, arXiv 2412.19437: section 4.1 (data,
#    tokenizer, packing), table 3 (Pile-test). [TR]
#
# **Next:** [02 · A transformer you wrote
# yourself](02_transformer_baseline.ipynb), which has a floor to reach now.
