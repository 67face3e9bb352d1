# %% [markdown]
# # 14 · Experts across slow links
#
# {{badge}}
#
# > **Claim.** A token of DeepSeek-V3 has its 8 experts on up to 8 computers.
# > Sent once to each of at most **4** of them, and forwarded there, it
# > crosses the slow network 3.5 times; sent to every expert, 7 times. The
# > dispatch that you write here gives, in four real processes, the output
# > and every gradient of one process to **1e-12**, and sends what a formula
# > says, **to the byte**. And with V3's sizes the links that export rules
# > throttled are not the slow ones: from **75 GB/s** of NVLink on, of which
# > an H800 has 160 and an H100 an assumed 360, more of it gains nothing.
#
# **Takes** about 100 minutes to work through, 55 of them for the exercises;
# 'Run all' two to three minutes on two CPU cores. **Needs** notebook 04
# (experts, groups). **Afterwards** you can count what a routing sends over
# which link, write an all-to-all with its backward pass, scale the gradients
# of experts right, and say when a faster link is worth its money.

# %%
# SETUP

# %% [markdown]
# ## 14.0 More time talking than computing
#
# Notebook 04 ended with 256 experts in each of 58 layers: 654 billion
# parameters, far too many for one GPU. DeepSeek-V3 deals the experts of a
# layer out to **64 GPUs**, four to each, in 8 computers (TR section 3.2). A
# computer with its eight GPUs is a **node**. So a token on one GPU has its
# experts on others. It is sent there, computed on, and sent back, in every
# layer. This is **expert parallelism**.
#
# Let us do it the plain way: a row of 7,168 BF16 numbers to every chosen
# expert, and a row back, forward and backward. Seven of eight experts are on
# another node on average. One GPU works on 4,096 tokens at a time, and by a
# published trace it computes for 29.6 ms on a layer, forward and backward
# (profile-data, PD). Its network card achieves 40 GB/s.
#
# **Guess before you run:** how long does it take to send?

# %% tags=["nbval-check-output"]
from minids3.sim.comm import INFINIBAND, PUBLISHED_TRACE

TOKENS = 4096
rows = TOKENS * 8 * 7 / 8  # choices that lie on another node
trips = 2 * 2              # there and back, forward and backward
sent = rows * trips * 7168 * 2
computing = PUBLISHED_TRACE.compute / PUBLISHED_TRACE.layers
print(f"a layer sends {sent / 1e9:.2f} GB from each GPU: "
      f"{1e3 * INFINIBAND.seconds(sent):.0f} ms at "
      f"{INFINIBAND.effective / 1e9:.0f} GB/s")
print(f"and computes for {1e3 * computing:.1f} ms")

# %% [markdown]
# 41 milliseconds of sending for 30 of computing. Without a further idea you
# would buy GPUs that wait. This notebook is about those ideas: send less,
# send smaller, and send while computing.
#
# ## 14.1 Two kinds of links
#
# A GPU has two ways out:
#
# | link | leads to | H800 | H100 |
# |---|---|---|---|
# | **NVLink** | the other 7 GPUs of its node | 200 GB/s each way, 160 achieved | 450 GB/s |
# | **InfiniBand** | any GPU of another node, through a network card of its own | 50 GB/s, 40 achieved | the same |
#
# (ISCA, TR section 3.2.) The "400 GB/s" that the article's export rules left
# of an H100's 900 are both directions of NVLink together. InfiniBand was not
# touched. What an H100 *achieves* was not in our sources; we assume the same
# share of its data sheet, 360 GB/s.
#
# So crossing to another node is four times as expensive as moving within
# one. V3's plan follows from that: **cross once, then forward.** A token
# goes to each node that has an expert of it in one copy, to the GPU with the
# same number as its own. That GPU forwards it over NVLink to those of its
# node that need it.

# %% tags=["fold"]
from minids3.viz.comm import copies_map, describe_copies

WAYS = {"a row for each expert": False, "a copy for each node": True}
token = [37, 41, 46, 98, 99, 103, 180, 233]
viz.show(copies_map(WAYS, token, home=19),
         alt=describe_copies(WAYS, token, home=19), dpi=84)

# %% [markdown]
# EXERCISE text
# ### Exercise: count the copies
#
# Write `count_rows`: how many rows cross InfiniBand, and how many NVLink, if
# every token goes once to each *other* node that has an expert of it and is
# forwarded from there. Mind the token's own node, and GPUs that hold several
# of its experts.

# %%
# EXERCISE ep-copies

# %%
# CHECK ep-copies

# %% [markdown]
# Now V3's numbers. If a token's 8 experts are any 8 of 256, then its mean
# number of nodes is known exactly. A node is missed with probability
# C(224, 8) / C(256, 8): all 8 choices fall on the 224 experts elsewhere.
#
# V3 also **limits** the nodes: the gate keeps the four with the best experts
# and chooses within those (notebook 04, where they were called groups).
# **Predict:** by how much does the limit of 4 lower the mean? And the
# largest number?

# %%
from minids3.sim.comm import expected_nodes, random_routing

exact = 8 * (1 - math.comb(224, 8) / math.comb(256, 8))
print(f"nodes of a token, no limit, by formula: {exact:.3f}; "
      f"the library says {expected_nodes():.3f}\n")
print("limit   nodes   at most   InfiniBand   NVLink   (rows a token)")
HOME = torch.arange(20_000) * 64 // 20_000
ROUTED = {limit: torch.from_numpy(random_routing(20_000, limit=limit))
          for limit in (0, 4, 3, 2)}
for limit, indices in ROUTED.items():
    nodes = [len(set(row)) for row in (indices // 32).tolist()]
    ib, nvlink = count_rows(indices, HOME, 256, 64, 8)
    print(f"{limit or 'none':>5}{sum(nodes) / len(nodes):8.3f}"
          f"{max(nodes):8}{ib / 20_000:13.2f}{nvlink / 20_000:10.2f}")

# %% [markdown]
# On average the limit saves a quarter: 4.6 crossings become 3.5. (With
# random scores; V3's real ones are not published.) What it buys is the
# *right-hand side* of the distribution. Without it a token may need all 8
# nodes; with it 4 is **guaranteed**, whatever the gate learns. A network is
# planned for what can happen.
#
# And one copy a node is worth more than the limit is: seven rows a token in
# the plain way, 4.6 with one copy for each node.
#
# ## 14.2 Smaller rows
#
# Notebook 08's numbers come in here. V3 dispatches in **FP8**: a byte for a
# number and an FP32 scale for every 128 (TR section 3.3.3). Results come
# back in **BF16**, because they are added up where they arrive, and errors
# would add up, too. Backward, the gradients of the results go out like a
# dispatch, and those of the tokens come back like a combine.

# %% [markdown]
# EXERCISE text
# ### Exercise: bytes
#
# Write `layer_bytes`: what so many rows take in one layer, on all four trips
# together.

# %%
# EXERCISE ep-bytes

# %%
# CHECK ep-bytes

# %% [markdown]
# Put together what you have: rows per token, bytes per row, the card's
# speed. **Predict:** which of the three ideas, one copy, FP8, the limit,
# saves most?

# %%
def milliseconds(rows_a_token, dispatch="fp8"):
    """Of sending one layer's rows over InfiniBand, 4,096 tokens a GPU."""
    n_bytes = layer_bytes(rows_a_token, 7168, dispatch) * TOKENS
    return 1e3 * n_bytes / INFINIBAND.effective


crossings = {limit: count_rows(indices, HOME, 256, 64, 8)[0] / 20_000
             for limit, indices in ROUTED.items()}
steps = {"a row for each expert, BF16": milliseconds(7, "bf16"),
         "one copy for each node": milliseconds(crossings[0], "bf16"),
         "and dispatch in FP8": milliseconds(crossings[0]),
         "and at most 4 nodes": milliseconds(crossings[4])}
for name, ms in steps.items():
    print(f"{name:30} {ms:5.1f} ms")

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 2.5))
for row, (name, ms) in enumerate(steps.items()):
    last = row == len(steps) - 1
    ax.barh(row, ms, height=0.6,
            color=viz.COLORS["ours" if last else "baseline"])
    ax.annotate(f"{ms:.1f}", (ms, row), (-5, 0), va="center", ha="right",
                textcoords="offset points", color=viz.COLORS["card"])
ax.axvline(1e3 * computing, color=viz.COLORS["control"], lw=1.2)
ax.annotate("computing", (1e3 * computing, -0.62), (4, 0), va="center",
            textcoords="offset points", fontsize=8,
            color=viz.COLORS["control"])
ax.set_yticks(range(4), steps, fontsize=8.5)
ax.set_ylim(3.5, -0.9)
ax.set_xlim(0, 46)
ax.set_xlabel("ms of InfiniBand for one layer, forward and backward")
ax.grid(axis="y", visible=False)
viz.show(fig, dpi=88, alt="Milliseconds of sending for one layer: "
         + ", ".join(f"{name} {ms:.1f}" for name, ms in steps.items())
         + f"; a line marks {1e3 * computing:.1f} of computing.")

# %% [markdown]
# From 41 ms to 15.4, a factor of 2.7, before anything is hidden; one copy
# for each node is worth most. (Everybody is assumed to send and to receive
# equally much; section 14.8 takes that back.)
#
# ## 14.3 Dispatch
#
# Now write it. Processes exchange rows with **all-to-all**: everybody hands
# over one tensor, cut into consecutive stretches, one for each process, and
# gets a stretch from each. `dist.all_to_all_single(out, rows, receive,
# send)` needs to know the lengths on both sides. The sender knows `send`;
# the receiver does not know `receive`, so *counts are exchanged first*. (In
# the published trace, counting and waiting for others take more than a
# quarter of all communication.)

# %% [markdown]
# EXERCISE text
# ### Exercise: what goes where
#
# Write `plan_send`. From the chosen experts of this process's tokens, it
# works out which rows to send, in which order, and how many to each
# process: one row for each process that has an expert of the token.

# %%
# EXERCISE ep-dispatch

# %%
# CHECK ep-dispatch

# %% [markdown]
# ## 14.4 The way back
#
# Training goes backward, too. An all-to-all only moves rows, so its gradient
# must move gradients. But `dist` records nothing for autograd: without a
# backward of our own, all gradients end at the border of the process, and
# nobody says so.

# %% [markdown]
# EXERCISE text
# ### Exercise: the gradient of an exchange
#
# Write `exchange_backward`, on paper, for all processes at once: a table
# says how many rows went from each process to each other one, and you get
# the gradient of what each *received*. Bring it home.

# %%
# EXERCISE ep-backward

# %%
# CHECK ep-backward

# %% [markdown]
# So the gradient of an all-to-all is an all-to-all with `send` and `receive`
# swapped. In a process of its own that is all there is to write:

# %%
import torch.distributed as dist


class AllToAll(torch.autograd.Function):
    """Rows to the processes in order, and gradients the way they came."""

    @staticmethod
    def forward(ctx, rows, send, receive):
        ctx.send, ctx.receive = send, receive
        out = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), receive, send)
        return out

    @staticmethod
    def backward(ctx, grad):
        back = grad.new_empty(sum(ctx.send), *grad.shape[1:])
        dist.all_to_all_single(back, grad.contiguous(),
                               ctx.send, ctx.receive)
        return back, None, None


# %% [markdown]
# And a whole layer of experts, as one process sees it. `x` `[N, D]` are its
# own tokens, `w1` and `w2` its own experts. One copy of a token arrives; the
# experts here that want it are computed, weighted and **added up here**, so
# that one row goes back.

# %%
def expert_layer(x, indices, gates, w1, w2, n_experts):
    """Experts of all processes on this process's tokens: [N, D]."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokens, send = plan_send(indices, n_experts, ranks)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)  # counts first
    send, receive = send.tolist(), receive.tolist()

    # A token and the weights of its choices travel as one row.
    rows = AllToAll.apply(torch.cat((x, gates), 1)[tokens], send, receive)
    chosen = AllToAll.apply(indices[tokens], send, receive)
    rows, weights = rows.split((x.shape[1], gates.shape[1]), 1)

    out = torch.zeros_like(rows)
    for e in range(len(w1)):
        row, k = (chosen == rank * len(w1) + e).nonzero(as_tuple=True)
        y = F.silu(rows[row] @ w1[e].T) @ w2[e].T
        out = out.index_add(0, row, weights[row, k, None] * y)

    back = AllToAll.apply(out, receive, send)  # combine: the way back
    return torch.zeros_like(x).index_add(0, tokens, back)


# %% [markdown]
# ## 14.5 Whose mean is it?
#
# One trap is left, the one that costs people weeks. Weights that every
# process has, such as the gate's, get a gradient on each; these are
# averaged, as in any data-parallel training. An expert's weights exist on
# one process alone. But tokens of **all** processes came to it, and brought
# their gradients with them: what lies there is a *sum*. Average it like the
# others, and there is nothing to average. It stays R times too large.
#
# No loss curve shows it. AdamW divides by the gradient's own size, so even
# the step is nearly the same; what goes wrong is everything that looks at
# the *norm*: clipping cuts all other gradients down, because the experts'
# are too long.

# %% [markdown]
# EXERCISE text
# ### Exercise: the gradients of the mean
#
# Write `mean_gradients`: from what autograd left on each process, make the
# gradients of the mean loss over **all** targets, of a weight that everybody
# has and of an expert's. There may be several groups of processes, each with
# a full set of experts (V3 has two).

# %%
# EXERCISE ep-gradients

# %%
# CHECK ep-gradients

# %% [markdown]
# ## 14.6 For real: four processes
#
# `launch.run` starts processes on your machine with torchrun, carries your
# functions to them by their source, and brings results back. (On two nodes of
# GPUs it takes another backend, `nccl`, and another address.) The four have
# 7, 3, 0 and 6 tokens: unequal on purpose, and one has none.
#
# **Predict** how far output and gradients will be from those of one process.

# %%
from minids3.bench.experts import SHARES, everything, two_nodes
from minids3.parallel import launch

x, picks, router, w1, w2 = everything()  # the same wherever it is called
E, K = len(w1), picks.shape[1]
print(f"{SHARES} tokens of {x.shape[1]} numbers; {E} experts, "
      f"{K} for each token")


def one_rank():
    """Forward and backward of this process's part; what autograd left."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    x, picks, router, w1, w2 = everything()
    mine = slice(sum(SHARES[:rank]), sum(SHARES[:rank + 1]))
    here = slice(rank * E // ranks, (rank + 1) * E // ranks)
    x, router, w1, w2 = (
        t.clone().requires_grad_()
        for t in (x[mine], router, w1[here], w2[here]))
    gates = torch.sigmoid(x @ router.T).gather(1, picks[mine])
    y = expert_layer(x, picks[mine], gates, w1, w2, E)
    y.square().sum().backward()  # a sum: some ranks have more than others
    return {"y": y.detach(), "x": x.grad, "router": router.grad,
            "w1": w1.grad, "w2": w2.grad}


# %% [markdown]
# In the same launch runs `two_nodes` (`minids3/bench/experts.py`), the
# library's layer with what is missing above: *two nodes of two*, one copy for
# each node and forwarding inside; dispatch in FP8, combine in BF16; and a
# meter that counts what leaves each process.

# %%
def both():
    return one_rank(), two_nodes()


try:
    ranks = launch.run((both, one_rank), 4, timeout=240).results
    print("done, in four processes on this machine")
except launch.LaunchError as error:
    ranks = None
    print(f"No processes here: {error}")

# %%
def one_process():
    """The same layer without processes, and the same gradients."""
    x, picks, router, w1, w2 = (
        t.requires_grad_() if t.is_floating_point() else t
        for t in everything())
    gates = torch.sigmoid(x @ router.T).gather(1, picks)
    y = torch.zeros_like(x)
    for e in range(E):
        row, k = (picks == e).nonzero(as_tuple=True)
        y = y.index_add(0, row, gates[row, k, None]
                        * (F.silu(x[row] @ w1[e].T) @ w2[e].T))
    y.square().sum().backward()
    return y.detach(), x.grad, router.grad, w1.grad, w2.grad


def from_ranks(results, loss="sum", targets=SHARES):
    """Output and mean gradients, put together with your function."""
    dense = torch.stack([r["router"].flatten() for r in results])
    router, w1, w2 = None, [], []
    for r in results:
        for key, found in (("w1", w1), ("w2", w2)):
            for grad in r[key]:  # one expert, one owner
                router, expert = mean_gradients(
                    dense, grad.flatten()[None], list(targets), loss)
                found.append(expert.view_as(grad))
    return (torch.cat([r["y"] for r in results]),
            torch.cat([r["x"] for r in results]),
            router.view_as(results[0]["router"]), torch.stack(w1),
            torch.stack(w2))


y, grad_x, *grads = one_process()
truth = (y, grad_x, *(g / sum(SHARES) for g in grads))
if ranks is not None:
    names = ("output", "tokens", "gate", "w1 of experts", "w2 of experts")
    ours = from_ranks([first for first, _ in ranks])
    off = {name: ((a - b).abs().max() / b.abs().max()).item()
           for name, a, b in zip(names, ours, truth)}
    sent = {kind: [sum(meter[kind][hop] for _, meter in ranks)
                   for hop in (0, 1)] for kind in ranks[0][1]}
else:
    from minids3.bench.records import recorded

    print("Recorded by python -m minids3.bench experts, with the library's "
          "layer:")
    record = recorded("experts")
    off, sent = record["differences"], record["sent"]
print({name: f"{error:.0e}" for name, error in off.items()})

# %% tags=["nbval-check-output"]
print("equal to one process, to 1e-12:",
      all(error < 1e-12 for error in off.values()))

# %% [markdown]
# Now the bytes. Your `count_rows` says how many rows cross which link, your
# `layer_bytes` what they weigh: nothing is left to chance. **Predict:** will
# it be the exact number?

# %% tags=["nbval-check-output"]
home = torch.arange(4).repeat_interleave(torch.tensor(SHARES))
paper = [layer_bytes(rows, x.shape[1])
         for rows in count_rows(picks, home, E, 4, 2)]
counted = [sent["dispatch"][hop] + sent["combine"][hop] for hop in (0, 1)]
print("                    between nodes, within nodes")
print("by your formulas:  ", paper)
print("counted:           ", counted)
for kind in ("weights", "routing", "counts"):
    print(f"besides, {kind:10}", sent[kind])

# %% [markdown]
# To the byte. What comes on top, choices, their weights and counts, is less
# than a percent at V3's width (8 choices beside 7,168 numbers) and more
# here, where vectors are short.
#
# ### The control: gradients of experts like all others
#
# Suppose that every rank had called backward on its own mean, with equal
# shares, and the experts' gradients were treated like the gate's: averaged
# over their owners, of whom there is one. **Predict** the factor, and what
# it does to the length of the whole gradient, which clipping looks at.

# %%
_, _, gate_grad, w1_grad, w2_grad = truth


def norm(*tensors):
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


right = norm(gate_grad, w1_grad, w2_grad)
wrong = norm(gate_grad, 4 * w1_grad, 4 * w2_grad)
print(f"the gradient's length: {right:.4f}, with the mistake {wrong:.4f}, "
      f"{wrong / right:.2f} times")
print("clipped to half of its true length, the gate's share of it would be "
      f"{norm(gate_grad) / 2:.4f} and is "
      f"{norm(gate_grad) / 2 * right / wrong:.4f}")

# %% [markdown]
# Four times too large for experts and, after clipping, nearly four times
# too *small* for everything else. Nothing crashes.
#
# ## 14.7 How fast must a link be?
#
# Back to V3 and to the article's question. Time per layer, forward and
# backward, has two parts: 29.6 ms of computing, and communication, for which
# the slower of the two links decides, since rows are forwarded while others
# arrive. If nothing is hidden, the two add up; if everything is, the longer
# counts (notebook 15 shows how V3 hides it).
#
# **Predict** before you run: (a) at which speed of InfiniBand does hidden
# communication begin to show? (b) How much faster would an H100's NVLink
# make a layer?

# %%
from minids3.sim import comm

copies = {limit: comm.count_copies(indices.numpy())
          for limit, indices in ROUTED.items()}
v3 = comm.expert_layer(copies[4])
IB = comm.INFINIBAND.effective
H800_LINK, H100_LINK = (comm.NVLINK_H800.effective,
                        comm.NVLINK_H100.effective)
print(f"a GPU sends {v3.infiniband / 1e6:.0f} MB over InfiniBand and "
      f"{v3.nvlink / 1e6:.0f} MB over NVLink")
for name, nvlink in (("H800", H800_LINK), ("H100", H100_LINK)):
    print(f"{name}: {1e3 * v3.infiniband / IB:.1f} ms and "
          f"{1e3 * v3.nvlink / nvlink:.1f} ms; a layer takes "
          f"{1e3 * v3.seconds(IB, nvlink, False):.1f} ms with nothing "
          f"hidden, {1e3 * v3.seconds(IB, nvlink, True):.1f} with all")
print(f"NVLink decides only below {v3.nvlink_enough(IB) / 1e9:.0f} GB/s; "
      f"InfiniBand shows below {v3.infiniband_hidden / 1e9:.0f} GB/s")

# %% tags=["fold"]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
speeds = np.geomspace(5e9, 500e9, 200)
for ax, link in zip(axes, ("InfiniBand", "NVLink")):
    for limit, name, style in ((4, "at most 4 nodes", "-"),
                               (0, "no limit", "--")):
        load = comm.expert_layer(copies[limit])
        for hidden, color in ((False, "baseline"), (True, "ours")):
            ms = [1e3 * (load.seconds(s, H800_LINK, hidden)
                         if link == "InfiniBand"
                         else load.seconds(IB, s, hidden))
                  for s in speeds]
            ax.plot(speeds / 1e9, ms, style, color=viz.COLORS[color],
                    label=("all" if hidden else "nothing")
                    + f" hidden, {name}")
    ax.set(xscale="log", ylim=(0, 100), xlabel=f"{link} (GB/s, one way)")
    ax.set_xticks((5, 10, 20, 50, 100, 200, 500),
                  (5, 10, 20, 50, 100, 200, 500))
    ax.minorticks_off()
for ax, marks in ((axes[0], {"achieved": IB}),
                  (axes[1], {"H800": H800_LINK, "H100": H100_LINK})):
    for i, (name, at) in enumerate(marks.items()):
        ax.axvline(at / 1e9, color=viz.COLORS["muted"], ls=":", lw=1)
        ax.annotate(name, (at / 1e9, 4), (3, 0), fontsize=8,
                    textcoords="offset points")
trace = comm.PUBLISHED_TRACE
axes[0].plot(33, 1e3 * trace.wall / 4, "D", color=viz.COLORS["published"],
             label="published trace, 129.0 ms / 4")
axes[0].set_ylabel("ms of one layer")
axes[0].legend(fontsize=7.5)
fig.tight_layout()
viz.show(fig, dpi=88, alt="Time of a layer against the speed of a link. "
         "Left, InfiniBand: with all hidden the curve is flat at 29.6 ms "
         "above 21 GB/s (28 without the limit) and rises below; with "
         "nothing hidden it falls until NVLink decides. The published "
         "trace lies at 32.3 ms and 33 GB/s. Right, NVLink: all curves are "
         "flat above 75 GB/s; H800 at 160 and H100 at 360 lie on the flat "
         "part.")

# %% [markdown]
# The right-hand picture is the answer to "how could they, with throttled
# GPUs?". The links that were cut are not the ones that decide. A token's
# copy crosses InfiniBand once and then has a link four times as fast for
# forwarding; even a fifth of an H100's NVLink would do. The plan was made
# for the machine: the report derives *four nodes* and *3.2 experts a node*
# from the ratio of these two links (TR section 3.2).
#
# And the left-hand picture says what hiding is worth: a layer that takes 45
# ms takes 30.
#
# ## 14.8 Three controls
#
# Take each idea away. *Hot expert:* suppose that a fifth of all tokens put
# the same expert first. GPUs wait for each other, so the busiest one has the
# say, and its communication counts. (Its experts also compute longer, which
# is left out here.)

# %%
hot = ROUTED[4].clone()
lucky = torch.arange(len(hot)) % 5 == 0
hot[lucky & ~(hot == 0).any(1), 0] = 0
hot = comm.count_copies(hot.numpy())
bf16 = comm.Convention("all in BF16", comm.row_bytes(7168, "bf16"),
                       comm.row_bytes(7168, "bf16"), "node", "TR")
plain = comm.Convention("a row for each expert", *2 * (14_336,), "expert",
                        "TR")
cases = {"as V3 does it": (v3, 1.0),
         "no node limit": (comm.expert_layer(copies[0]), 1.0),
         "dispatch in BF16": (
             comm.expert_layer(copies[4], 4096, bf16), 1.0),
         "one hot expert": (comm.expert_layer(hot), hot.imbalance),
         "a row for each expert, BF16": (
             comm.expert_layer(copies[0], 4096, plain), 1.0)}
print(f"{'':29} communication   nothing hidden   all hidden   (ms)")
for name, (load, factor) in cases.items():
    talk = factor * load.communication(IB, H800_LINK)
    print(f"{name:29} {1e3 * talk:13.1f} "
          f"{1e3 * (load.compute + talk):16.1f} "
          f"{1e3 * max(load.compute, talk):12.1f}")

# %% [markdown]
# Without the limit or without FP8 all of it could still be hidden, on this
# paper: 20 ms are less than 30. The margin is what is gone. In the trace the
# links are busy for 28.6 ms of each layer, not for 15.4: they do not reach
# 40 GB/s, and a quarter of the time they count and wait. Add a third, and
# nothing fits any more.
#
# The hot expert is a different kind of trouble. No link is too slow; one of
# them is *full*. That is why notebook 05's balance is a matter of time and
# money here, and not of quality.
#
# ## 14.9 The published trace
#
# PD is a profile of 64 H800 GPUs with even routing: a forward of one
# micro-batch together with a backward of another, four layers.

# %% tags=["nbval-check-output"]
ms = {name: 1e3 * getattr(trace, name)
      for name in ("wall", "compute", "communication", "dispatch",
                   "combine", "waiting")}
print(", ".join(f"{name} {value:.1f} ms" for name, value in ms.items()))
print(f"hidden: {ms['compute'] + ms['communication'] - ms['wall']:.1f} of "
      f"{ms['communication']:.1f} ms of communication")
copies_back = crossings[4] * TOKENS * 14_336
print(f"a combine moves {copies_back / 1e6:.0f} MB in "
      f"{ms['combine'] / 8:.2f} ms: "
      f"{copies_back / (trace.combine / 8) / 1e9:.0f} of 40 GB/s")
print("the report's 'about 1 : 1': communication to computing, with and "
      "without waiting,")
both = ms["compute"] + 11.4  # weight gradients on a stream of their own
print(f"{ms['communication'] / both:.2f} and "
      f"{(ms['dispatch'] + ms['combine']) / both:.2f}")

# %% [markdown]
# 104 of 114 milliseconds of communication cost nothing: that is the
# achievement. And the report's "about 1 : 1" of computation to
# communication (TR section 3.2) turns out to be 0.88, waiting included, or
# 0.62 of pure transfer. Both can be true; say which you mean.
#
# One more price is not in the picture. Somebody has to move those bytes:
# **20 of 132 multiprocessors** of every GPU do nothing else (TR section
# 3.2.2), 15 % of the machine. In ISCA the authors ask for hardware that
# would do it without them.
#
# ## 14.10 Play: build your own network
#
# Standing still first: what if computing became faster, and the links did
# not?

# %% tags=["nbval-check-output"]
for factor in (1, 2, 4):
    load = comm.expert_layer(copies[4], compute=computing / factor)
    print(f"computing {factor} times as fast: all hidden "
          f"{1e3 * load.seconds(IB, H800_LINK, True):.1f} ms; InfiniBand "
          f"must have {load.infiniband_hidden / 1e9:.0f} GB/s")

# %% tags=["fold"]
def network(infiniband=40, nvlink=160, limit=4, computing_ms=29.6,
            dispatch="fp8"):
    """Milliseconds of a layer, and which part decides."""
    routed = copies[limit] if limit in copies else comm.count_copies(
        random_routing(5000, limit=limit))
    style = comm.DEEPEP if dispatch == "fp8" else bf16
    load = comm.expert_layer(routed, 4096, style, computing_ms / 1e3)
    parts = {"computing": load.compute,
             "InfiniBand": load.infiniband / (infiniband * 1e9),
             "NVLink": load.nvlink / (nvlink * 1e9)}
    slowest = max(parts, key=parts.get)
    fig, ax = plt.subplots(figsize=(7, 1.9))
    bars = ax.barh(list(parts), [1e3 * v for v in parts.values()],
                   color=[viz.COLORS["ours" if k == slowest else "baseline"]
                          for k in parts])
    ax.bar_label(bars, fmt="%.1f ms", padding=3)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1200 * parts[slowest]), xlabel="ms of a layer",
           title=f"all hidden: {slowest} decides")
    return fig


viz.show(network(), dpi=88, alt="Bars of a layer's parts on the published "
         "network: computing 29.6 ms decides, InfiniBand takes 15.4 and "
         "NVLink 7.3.")

# %% [markdown]
# Find a network on which NVLink decides, and one on which a better rule of
# routing would not help at all.

# %% tags=["nbval-ignore-output"]
viz.play(network, alt="Milliseconds of a layer and what decides",
         infiniband=(5, 100, 5), nvlink=(20, 900, 20), limit=[4, 0, 3, 2],
         computing_ms=(5.0, 60.0, 0.1), dispatch=["fp8", "bf16"])

# %% [markdown]
# A GPU twice as fast would need faster cards. That is where the field has
# gone since.
#
# ## 14.11 The Bill

# %%
from minids3.sim import bill

bill.show(upto="14")

# %% [markdown]
# **Claim 6 of the article, so far:** "GPUs with a reduced data transfer
# rate": true, NVLink has 400 instead of 900 GB/s. That it hurt is another
# claim, and for experts it does not follow: by our count less than half of
# what was left was needed. The price was paid in design: V3 is trained
# without tensor parallelism, which lives on NVLink (ISCA names the throttled
# links as the reason), with node-limited routing, FP8 dispatch, 20
# multiprocessors that only communicate, and an order that hides 90 % of it.
#
# **What became of it.** DeepSeek published its kernels as DeepEP in February
# 2025; on H800s they reach 51 GB/s for dispatch and 50 for combine with 64
# GPUs, local traffic included (README of the first version). Its second
# version (April 2026) needs 4 to 6 multiprocessors for V3-like training
# instead of 24, and goes up to 2,048 GPUs; the "20 of 132" above are
# history. Since April 2026 DeepGEMM fuses dispatch, both products, SwiGLU
# and combine into one kernel (Mega MoE, its README: 1.5 to 1.96 times as
# fast as separate ones, 8 GPUs). For serving, the limit cannot bind on few
# nodes: with 4 nodes, as in V3's prefill, every token may visit all of them
# (EPLB, issue 14).
#
# ## What this does not show
#
# - **Time on a network.** Four processes on one machine share memory; only
#   bytes are counted here, and all times are a model's.
# - **Even traffic.** Every GPU is assumed to send and receive equally much.
#   Real tokens come in texts, and texts have favourite experts.
# - **Random scores.** What V3's gate really chooses is not published.
# - **Latency.** With few tokens, as in decoding, a message's fixed cost
#   counts and not its size (notebook 16).
# - An H100's achieved 360 GB/s is assumed from an H800's share.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: sections 2.1.2
#   (node-limited routing), 3.2.2 (communication, 20 multiprocessors), 3.3.3
#   (formats).
# - Insights into DeepSeek-V3, arXiv 2505.09343v2: sections 4 and 5 (links,
#   node-limited routing).
# - Repositories deepseek-ai/DeepEP (its tests define the bytes) and
#   deepseek-ai/profile-data (the trace).
# - Lepikhin et al. 2020, *GShard*, arXiv 2006.16668: all-to-all of experts.
#
# **Next:** [15 · Pipelines and DualPipe](15_pipelines_and_dualpipe.ipynb):
# how the rest is hidden.
