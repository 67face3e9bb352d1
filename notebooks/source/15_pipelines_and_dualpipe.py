# %% [markdown]
# # 15 · Nobody waits for long: pipelines and DualPipe
#
# {{badge}}
#
# > **Claim.** A model cut into P stages leaves every GPU idle for
# > **(P − 1)(F + B)** a step in 1F1B, and for **a third** of that if the
# > backward pass is split in two and its second half put off by the right
# > amount, and by no more. Orders that you write here are PyTorch's own,
# > action for action. Four real processes that follow them compute the
# > gradients of one process to **1e-12**, and are idle where a simulation
# > on paper says so. DualPipe's gain is what runs *at the same time*:
# > without that, DualPipeV idles **twice** as long as the schedule it
# > replaces.
#
# **Takes** about 100 minutes to work through, 60 of them for the exercises;
# 'Run all' two to three minutes on two CPU cores. **Needs** notebook 02
# (backward passes); notebook 14 helps with the links. **Afterwards** you
# can write a schedule, prove it valid, say what a bubble is made of, split a
# backward pass, and read DeepSeek-V3's published step as a puzzle with one
# piece missing.

# %%
# SETUP

# %% [markdown]
# ## 15.0 Fifteen of sixteen wait
#
# In training, DeepSeek-V3 takes up some 14 bytes for each of its 671
# billion parameters (notebook 10): weights, gradients, the optimizer's
# memory. That is over 9 terabytes, and a GPU has 80 gigabytes. Experts can
# be spread over many GPUs (notebook 14). The layers are cut, too: about four
# to each of **16 stages**, a stage to a group of GPUs (TR section 3.2). The
# text of a batch goes through stage 0, then 1, and so on to 15, and its
# gradients come all the way back. That is a **pipeline**. A GPU's place in
# it is its **rank**.
#
# **Guess before you run:** a batch goes through in one piece. What share
# of the time is each GPU idle? And if the batch is cut into 120
# **micro-batches** that follow each other?

# %% tags=["nbval-check-output"]
from minids3.sim.bill.lines import PRETRAINING_HOURS

STAGES = 16
for pieces in (1, 8, 120):
    # A rank that works for `pieces` turns waits for the 15 others, too.
    idle = (STAGES - 1) / (pieces + STAGES - 1)
    print(f"{pieces:4} pieces: idle {idle:5.1%} of the time, "
          f"{idle * PRETRAINING_HOURS / 1e3:6,.0f}K of 2,664K GPU-hours")

# %% [markdown]
# In one piece, fifteen of sixteen GPUs wait at any moment. In 120 pieces it
# is still a ninth of the time: 296,000 hours, 592,000 dollars, for nothing.
# This time has a name, the **bubble**, and this notebook is about making it
# small. (15,360 sequences of a batch over 128 groups of GPUs, one sequence
# at a time, make 120; the report does not print the number.)
#
# ## 15.1 A schedule is an order
#
# Let us draw time from left to right and the ranks from top to bottom, four
# of them, with eight micro-batches. Going backward takes about twice as
# long as going forward, since two products are computed where there was
# one: `F = 1` and `B = 2`, in any unit. The simplest plan, GPipe: everything
# forward, then everything backward.

# %%
from minids3.sim.pipeline import (
    Action, Costs, Schedule, bubble, check_schedule, make_schedule,
    peak_activations, simulate)

RANKS, PIECES = 4, 8
gpipe = make_schedule("gpipe", RANKS, PIECES)
print(gpipe.orders[0][0], "means: stage 0, forward, micro-batch 0")
steps = simulate(gpipe)
print(f"the step takes {steps.makespan:g}; each rank is idle for "
      f"{steps.idle[0]:g}")

# %% tags=["fold"]
from minids3.viz.pipeline import describe_timelines, timelines

panels = {"GPipe": steps}
viz.show(timelines(panels), alt=describe_timelines(panels), dpi=84)

# %% [markdown]
# The white triangles on both sides are the bubble: rank 3 waits until the
# first micro-batch has come down to it, and rank 0, at the end, until the
# last gradient has come back up.
#
# One thing hurts more than the white space. What a forward computes is kept
# until its backward: the **activations**. Here every rank holds those of
# all eight micro-batches at once; with V3's 120 nothing would fit.
#
# **Think before you read on:** rank 3 could go backward through micro-batch
# 0 right after its forward. When can rank 2? How many micro-batches would
# each rank hold then?

# %% [markdown]
# EXERCISE text
# ### Exercise: one forward, one backward
#
# Write `one_f_one_b`: what a rank does in **1F1B**, the schedule that most
# pipelines run. First come as many forwards as there are ranks after this
# one: until then no gradient can have come back. From there on it takes
# turns. The result is a list of pairs, `("F", 3)` for a forward and
# `("B", 3)` for a backward of micro-batch 3.

# %%
# EXERCISE pipe-1f1b

# %%
# CHECK pipe-1f1b

# %% [markdown]
# A list for each rank makes a schedule. Is it **valid**? Each rank does its
# list strictly in order, and an action begins only when its input has
# arrived: a forward needs that of the stage before, a backward the one of
# the stage after. If each waits for another, all of them hang.
# `check_schedule` plays it through and raises an error if one gets stuck, or
# if something is missing or done twice.
#
# **Predict:** is 1F1B faster than GPipe?

# %%
def as_schedule(name, orders, pieces=PIECES):
    """Lists of (kind, micro-batch), one a rank, as a checked schedule."""
    ranks = tuple(range(len(orders)))
    schedule = Schedule(name, (ranks,), pieces, tuple(
        tuple(Action(kind, rank, i) for kind, i in orders[rank])
        for rank in ranks))
    check_schedule(schedule)
    return schedule


mine = as_schedule("1F1B", [one_f_one_b(rank, RANKS, PIECES)
                            for rank in range(RANKS)])
for schedule in (gpipe, mine):
    print(f"{schedule.name:6} takes {simulate(schedule).makespan:g}, idle "
          f"{simulate(schedule).idle}, micro-batches held "
          f"{peak_activations(schedule)}")
print("your order is PyTorch's:",
      mine.orders == make_schedule("1f1b", RANKS, PIECES).orders)

# %% tags=["fold"]
panels = {"GPipe": steps, "1F1B": simulate(mine)}
viz.show(timelines(panels), alt=describe_timelines(panels), dpi=84)

# %% [markdown]
# Not by a second. The bubble is the same 9 = (4 − 1)(1 + 2): the white has
# only moved into the middle. What 1F1B saves is memory: a rank holds at
# most as many micro-batches as there are ranks from it to the end, be they 8
# or 120. And the check can fail. Let rank 1 send nothing ahead:

# %%
broken = [one_f_one_b(rank, RANKS, PIECES) for rank in range(RANKS)]
broken[1] = one_f_one_b(RANKS - 1, RANKS, PIECES)
try:
    as_schedule("broken 1F1B", broken)
except ValueError as error:
    print(error)

# %% [markdown]
# On GPUs such a mistake raises no error. It is a run that stands still, on
# 2,048 GPUs, until somebody looks.
#
# ## 15.2 A backward is two
#
# Why does B take twice as long as F? Because it is two things. A product
# `z = a @ w.T` has two gradients:
#
# | | computes | who waits for it |
# |---|---|---|
# | **I** | `grad_a = grad_z @ w`, for the input | the stage before, right now |
# | **W** | `grad_w = grad_z.T @ a`, for the weight | the optimizer, at the end of the step |
#
# Three products of the same size, one forward and two backward: with
# nothing else to do, F = I = W. Automatic differentiation computes I and W
# together because that is convenient. Nobody says it has to.
#
# (Names: the report's B is both, I + W. The Zero Bubble paper, where the
# idea comes from, calls I alone "B". Formulas from the two do not mix.)

# %% [markdown]
# EXERCISE text
# ### Exercise: the urgent half
#
# Write `backward_input`: the I of a small stage with two weights and a SiLU
# in between, `y = silu(x @ w1.T) @ w2.T`. It returns the gradient of `x`
# and, for each of the two products, what its W will need one day: its input
# and the gradient of its output. SiLU is `a · sigmoid(a)`.

# %%
# EXERCISE pipe-split

# %%
# CHECK pipe-split

# %% [markdown]
# Put it to work: a stage of ours between two others. First all Is, from the
# back to the front, then the Ws, *in another order, later*. Everything must
# be what automatic differentiation finds in one go.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
D, H, N, STAGES_HERE = 16, 32, 8, 3
weights = [(torch.randn(H, D) / 4, torch.randn(D, H) / 6)
           for _ in range(STAGES_HERE)]
batch = torch.randn(N, D)


def forward(x, weights):
    """The input of every stage, and the last one's output."""
    seen = [x]
    for w1, w2 in weights:
        seen.append(F.silu(seen[-1] @ w1.T) @ w2.T)
    return seen


seen = forward(batch, weights)
grad, put_aside = 2 * seen[-1], {}  # the loss is the sum of squares
for stage in reversed(range(STAGES_HERE)):  # I: each waits for the next
    grad, put_aside[stage] = backward_input(grad, seen[stage],
                                            *weights[stage])
late = {stage: [g.T @ a for a, g in put_aside[stage]]
        for stage in (1, 0, 2)}  # W: nobody waits, any order will do

leaves = [tuple(w.clone().requires_grad_() for w in pair)
          for pair in weights]
forward(batch, leaves)[-1].square().sum().backward()
worst = max((ours - leaf.grad).abs().max() / leaf.grad.abs().max()
            for stage in range(STAGES_HERE)
            for ours, leaf in zip(late[stage], leaves[stage]))
print("weights' gradients equal autograd's:", bool(worst < 1e-5))

# %% [markdown]
# Nothing is free: what you returned for W has to be kept until W runs, and
# in this stage that is every activation of both products, with gradients on
# top. *When* W runs decides how much memory it costs.
#
# ## 15.3 Where the W goes
#
# Since nobody waits for a W, it can fill any hole that comes after its I.
# But a rank does not know where its holes are; it has an order. The plan of
# ZB1P: let up to `delay` of them wait, and no more.

# %% [markdown]
# EXERCISE text
# ### Exercise: put it off
#
# Write `put_off`. It takes a rank's order of F and B and splits each B into
# an I, in the same place, and a W. As soon as more than `delay` Is have no W
# yet, the oldest one's W follows.

# %%
# EXERCISE pipe-put-off

# %%
# CHECK pipe-put-off

# %% [markdown]
# Now try delays on your own 1F1B order. **Predict** first: with F = I = W
# = 1, which of these is fastest?
#
# - *none*: every W right after its I
# - *rank*: rank r lets r of them wait
# - *all*: every W at the very end
#
# "Held" is counted twice: until I, as if a W needed nothing, and until W.

# %%
DELAYS = {"none": lambda rank: 0, "rank": lambda rank: rank,
          "4 on each": lambda rank: 4, "all": lambda rank: PIECES}
delayed = {}
for name, delay in DELAYS.items():
    delayed[name] = as_schedule(name, [
        put_off(one_f_one_b(rank, RANKS, PIECES), delay(rank))
        for rank in range(RANKS)])
    line = simulate(delayed[name])
    print(f"{name:10} takes {line.makespan:g}, idle {line.idle[0]:g}; held "
          f"until I {peak_activations(delayed[name])}, until W "
          f"{peak_activations(delayed[name], 'weight')}")
print("delay 'rank' is PyTorch's ZB1P:",
      delayed["rank"].orders == make_schedule("zb1p", RANKS, PIECES).orders)

# %% tags=["fold"]
panels = {f"W put off: {name}": simulate(delayed[name])
          for name in ("none", "rank", "all")}
viz.show(timelines(panels), alt=describe_timelines(panels), dpi=84)

# %% [markdown]
# Even with no delay the bubble falls from 9 to 6: the rank above no longer
# waits for a W. With the right delay it is 3. And *more* delay is worse, not
# better. Look where the holes are: late, when no forwards are left and the
# last gradients come up one by one. *None* has nothing left to fill them
# with. *All* has plenty, behind the last I, where no hole is. The right
# delay has just enough waiting in the right place; too much put off costs
# time *and* memory.
#
# The last column is what the name "1P" is about: until W, every rank holds
# P micro-batches, as much as the first rank of 1F1B. The price is that it is
# now every rank.
#
# ## 15.4 Three formulas
#
# The report compares three schedules by the idle time of a GPU (TR table
# 2). P is the number of stages; F, B and W are times, **B = I + W**; and
# `pair` is the time of a forward and a backward *together*, which is the
# subject of section 15.6:
#
# | schedule | idle time of a rank |
# |---|---|
# | 1F1B | (P − 1)(F + B) |
# | ZB1P | (P − 1)(F + B − 2W) |
# | DualPipe | (P / 2 − 1)(pair + B − 3W) |
#
# The first two you have just seen: 9 and 3. Where do the two Ws come from?
# Each of P − 1 steps down the pipeline costs a wait of F on the way there
# and, split, of I instead of B on the way back: that takes off one W. Into
# what remains one more W is placed.

# %% [markdown]
# EXERCISE text
# ### Exercise: the table as code
#
# Write `idle_time`. Mind what B is.

# %%
# EXERCISE pipe-idle

# %%
# CHECK pipe-idle

# %% [markdown]
# A formula in a paper is a claim. Test it against the simulation, first with
# equal times, then with others: for V3's layers, a W is shorter than an I,
# because attention itself has no weights. **Predict:** which of the three
# stays exact?

# %% tags=["nbval-check-output"]
print("                    formula   simulated, least and most idle rank")
for times in ((1, 1, 1), (1, 1.4, 0.6), (1, 0.8, 1.2)):
    costs = Costs(*map(float, times))
    print("F, I, W = {}, {}, {}".format(*times))
    for name in ("1f1b", "zb1p", "dualpipe"):
        pair = sum(times)  # nothing hidden, for now
        by_formula = idle_time(name, 8, *times, pair)
        idle = simulate(make_schedule(name, 8, 16), costs).idle
        says = bubble(name, 8, costs).relation
        print(f"    {name:10} {by_formula:10.1f}    {min(idle):5.1f} "
              f"{max(idle):5.1f}   {says}")

# %% [markdown]
# With F = I = W all three are exact. 1F1B's always is. With a short W the
# formula promises too *little* for DualPipe (the truth is better), and with
# a long W it promises too *much* for both others: a W that is longer than
# the hole it was meant for does not fit.
#
# ## 15.5 Folded, and from both ends
#
# The triangle at the start is there because the last rank has to wait for
# P − 1 others. Two ideas make the way shorter.
#
# **Fold the pipeline.** Cut the model into 2P stages and lay them out as a V:
# rank r holds stage r and stage 2P − 1 − r, the last rank both in the middle.
# A micro-batch goes down the ranks and comes back up; the loss is on rank 0,
# and its backward starts right there. This is **ZBV** (the Zero Bubble
# authors' second schedule).
#
# **Enter from both ends.** Give every rank a second stage: rank r holds r and
# P − 1 − r, and half of the micro-batches travel the other way. This is
# DeepSeek's **DualPipe**. Every weight is now held twice. Cut in half, and
# folded back on itself, it becomes **DualPipeV**: a V like ZBV's, with
# DualPipe's order and one copy of the weights.
#
# To compare them fairly, the model and the ranks stay the same: four ranks
# hold all of it. A stage of a V is half as large, and takes half as long.

# %%
HALF = Costs(0.5, 0.5, 0.5)
compared = {"1F1B": (mine, Costs()),
            "ZB1P": (delayed["rank"], Costs()),
            "ZBV": (make_schedule("zbv", RANKS, PIECES), HALF),
            "DualPipe": (make_schedule("dualpipe", RANKS, PIECES), Costs()),
            "DualPipeV": (make_schedule("dualpipev", RANKS, PIECES), HALF)}


def row(name, schedule, costs):
    """Idle time, and peak activations in quarters of a model."""
    line = simulate(schedule, costs)
    size = RANKS / schedule.n_stages  # of a stage, against a quarter
    held = [size * n for n in peak_activations(schedule, "weight")]
    copies = 2 if len(schedule.placement) > 1 else 1
    return (f"{name:12} {line.makespan:8.1f} {min(line.idle):12.1f} "
            f"{max(line.idle):5.1f} {max(held):8.1f} {copies:8}")


print(f"{'schedule':12} {'takes':>8} {'idle: least':>12} {'most':>5} "
      f"{'held':>8} {'weights':>8}")
for name, (schedule, costs) in compared.items():
    print(row(name, schedule, costs))

# %% [markdown]
# Read the control in the last line against the third: **DualPipeV idles
# twice as long as ZBV**, 3.0 against 1.5, with the same V and nearly the
# same memory. As a *schedule* it is the worse of the two. DualPipe, with all
# weights twice, is not even ahead of ZBV. Then why did DeepSeek build it?
#
# Because there is one thing that no line above shows. All of them take F and
# B to be computing. In a model whose experts sit on other GPUs they are not:
# half of a forward is *waiting for the network*.
#
# ## 15.6 What hides behind what
#
# A GPU has two things that work at the same time: its multiprocessors
# compute, and its links move bytes. Work is queued in **streams**, each of
# which does one task after the other, in the order of launch. For one
# layer of a forward the tasks are
#
# `attention → dispatch → experts → combine`
#
# and each needs the one before (notebook 14): computing, link, computing,
# link. A micro-batch alone can hide nothing. But *two* micro-batches that do
# not need each other can: while one computes, the other travels. DualPipe's
# order brings, on every rank and for most of the step, a forward of one
# micro-batch and a backward of another together. That is a **pair**.

# %% [markdown]
# EXERCISE text
# ### Exercise: two streams
#
# Write `run_streams`: from the tasks of each stream, in launch order, and
# from what each task needs, work out when each begins and ends. It is the
# same kind of play as `simulate`, and you will need nothing but a loop.

# %%
# EXERCISE pipe-overlap

# %%
# CHECK pipe-overlap

# %% [markdown]
# Now the real thing. DeepSeek published a trace of one such pair on a rank
# with four layers: 118.2 ms of computing; 31.0 ms of dispatch and 49.4 ms
# of combine, eight calls each, plus 32.6 ms in which the links count and
# wait (profile-data, PD). Its annotations also show the order of launch,
# layer by layer. How the computing divides into its six tasks is not
# published; we take FLOPs as the measure, and a third each for F, I and W.
# Backward, what was a combine sends gradients out, like a dispatch, and the
# other way round.
#
# **Predict:** the tasks take 118.2 + 80.4 = 198.6 ms, one after the other.
# What is the best that two streams can do? And if both micro-batches are
# launched in the obvious order, in each layer first all of the forward, then
# all of the backward?

# %%
from itertools import pairwise

from minids3.sim.comm import PUBLISHED_TRACE as TRACE

ATTENTION = 542 / (542 + 793)  # MFLOP of a token in one layer, forward
compute = 1e3 * TRACE.compute / TRACE.layers / 3  # ms of F, of I, of W
TIMES = {"attn": ATTENTION * compute, "mlp": (1 - ATTENTION) * compute,
         "dispatch": 1e3 * TRACE.dispatch / 8,
         "combine": 1e3 * TRACE.combine / 8}
SAME_AS = {"dispatch B": "combine", "combine B": "dispatch"}

PUBLISHED = ("combine B", "attn F", "mlp B", "dispatch F", "dispatch B",
             "mlp W", "mlp F", "attn B", "attn W", "combine F")
OBVIOUS = ("attn F", "dispatch F", "mlp F", "combine F", "combine B",
           "mlp B", "dispatch B", "attn B", "mlp W", "attn W")


def pair_of(order, layers=4, waiting=0.0):
    """Streams and needs of a pair whose tasks are launched in `order`."""
    streams, needs = {"computing": [], "links": []}, {}
    for n in range(layers):
        for task in order:
            took = TIMES[SAME_AS.get(task, task.split()[0])]
            links = task.startswith(("dispatch", "combine"))
            streams["links" if links else "computing"].append(
                (f"{task} {n}", took + waiting * links))
        for way in (("attn F", "dispatch F", "mlp F", "combine F"),
                    ("combine B", "mlp B", "dispatch B", "attn B")):
            for before, after in pairwise(way):
                needs[f"{after} {n}"] = [f"{before} {n}"]
            if n:
                needs[f"{way[0]} {n}"] = [f"{way[-1]} {n - 1}"]
        needs[f"mlp W {n}"] = [f"mlp B {n}"]
        needs[f"attn W {n}"] = [f"attn B {n}"]
    return streams, needs


def drawn(order, **options):
    """Times of every task, by stream, for the figure."""
    streams, needs = pair_of(order, **options)
    times = run_streams(streams, needs)
    return {name: {task: times[task] for task, _ in tasks}
            for name, tasks in streams.items()}


def length(panel):
    return max(end for tasks in panel.values() for _, end in tasks.values())


pairs = {"launched as published": drawn(PUBLISHED),
         "forward first, then backward": drawn(OBVIOUS)}
for name, panel in pairs.items():
    print(f"{name:30} {length(panel):6.1f} ms")
waits = drawn(PUBLISHED, waiting=1e3 * TRACE.waiting / 16)
print(f"{'published, and links also wait':30} {length(waits):6.1f} ms")
print(f"{'measured':30} {1e3 * TRACE.wall:6.1f} ms")

# %% tags=["fold"]
from minids3.viz.pipeline import describe_streams, streams

viz.show(streams(pairs, "ms"), alt=describe_streams(pairs, "ms"), dpi=84)

# %% [markdown]
# In the published order the links are never in the way: the pair takes what
# its computing takes, and 80 ms of transfers cost nothing. In the obvious
# order, **with the same two streams**, nothing at all is hidden. A stream
# keeps its order: an attention that waits for its combine holds up the
# other micro-batch's work behind it. Overlap is not something hardware does
# for you. It is an order of launch.
#
# With the links' counting and waiting spread over the 16 calls we come to
# 127 ms; 129.0 were measured. The rest we cannot name.
#
# ## 15.7 Five schedules, side by side
#
# Now give every pair the published discount. Computing and transfers of F
# and B together are 198.6 ms apart and 129.0 as a pair: 0.65 of F + B. Only
# the two schedules that make pairs can use it. **Predict:** which is first
# now, and by how much?

# %%
SAVED = TRACE.wall / (TRACE.compute + TRACE.dispatch + TRACE.combine)
PAIR = max(SAVED * 3, 2.0)  # not shorter than a backward alone
plans = dict(compared)
plans["DualPipe"] = (compared["DualPipe"][0],
                     Costs(1.0, 1.0, 1.0, overlapped=PAIR))
plans["DualPipeV"] = (compared["DualPipeV"][0],
                      Costs(0.5, 0.5, 0.5, overlapped=PAIR / 2))
print(f"a pair takes {PAIR:.2f} instead of 3\n")
print(f"{'schedule':12} {'takes':>8} {'idle: least':>12} {'most':>5} "
      f"{'held':>8} {'weights':>8}")
for name, (schedule, costs) in plans.items():
    print(row(name, schedule, costs))

# %% tags=["fold"]
panels = {name: simulate(schedule, costs)
          for name, (schedule, costs) in plans.items()}
viz.show(timelines(panels), alt=describe_timelines(panels), dpi=84)

# %% [markdown]
# This is the whole argument for DualPipe in one picture. The white space is
# not what makes it shorter; it is that blue and orange lie one above the
# other. With eight micro-batches it is ahead of ZBV by a seventh; with V3's
# 120 the pairs are nearly everything:

# %% tags=["nbval-check-output"]
for ranks, pieces in ((4, 8), (4, 40), (16, 120)):
    zbv = simulate(make_schedule("zbv", ranks, pieces), HALF).makespan
    dual = make_schedule("dualpipev", ranks, pieces)
    apart = simulate(dual, HALF).makespan
    both = simulate(dual, Costs(0.5, 0.5, 0.5,
                                overlapped=PAIR / 2)).makespan
    print(f"{ranks:2} ranks, {pieces:3} micro-batches, DualPipeV against "
          f"ZBV: {apart / zbv - 1:+.1%} with nothing hidden, "
          f"{both / zbv - 1:+.1%} with pairs")

# %% [markdown]
# The two DualPipes are even here, but one of them holds all weights twice.
# That was cheap for V3, whose experts are spread over 64 GPUs (the report
# says so), and needless all the same: *Cut in half*, a blog post of Sea AI
# Lab, where Zero Bubble comes from, pointed it out, and DeepSeek's
# repository took DualPipeV from there. (TR's table lists "2 ×" for its
# parameters. A *rank* of DualPipeV holds two stages, too; but on half as
# many ranks, so that as a whole the weights are there once.)
#
# ## 15.8 For real
#
# So far nothing has run. Now four processes, four ranks, on your machine:
# each holds its stages of a small model, and follows its list through
# PyTorch's own pipelining (`torch.distributed.pipelining`), which sends
# activations and gradients from process to process. The first two schedules
# are **your** lists.
#
# Your machine may have two cores, and four ranks would fight for them. So a
# stage does its real arithmetic, which is tiny, and then *sleeps* for as
# long as a GPU would compute. Order, transfers, waiting and gradients are
# real. PyTorch does the two halves of a pair one after the other, unless one
# registers a function of one's own for pairs; we let a pair sleep for the
# shorter time. All of it is in `minids3/bench/pipelines.py`.
#
# **Predict:** what will the gradients differ by from those of one process?
# And where will the measured step be longer than the simulated one?

# %% tags=["nbval-ignore-output"]
from minids3.bench import pipelines
from minids3.bench.records import recorded
from minids3.parallel import launch

real = {"1F1B": mine, "ZB1P": delayed["rank"],
        "ZBV": compared["ZBV"][0],
        "DualPipeV, nothing hidden": compared["DualPipeV"][0],
        "DualPipeV, pairs overlapped": compared["DualPipeV"][0]}
times = {title: costs for title, (_, costs) in pipelines.PLANS.items()}
try:
    measured = pipelines.run_schedules(real, times)
    print("measured here, in four processes")
except launch.LaunchError as error:
    print(f"No processes here ({error}).")
    about = recorded("pipelines")
    measured = pipelines.read_record(about)
    print("Recorded by python -m minids3.bench pipelines,",
          about["about"]["date"], "on", about["about"]["device"])

# %% [markdown]
# Time is in our unit, an F of a quarter of the model (a tenth of a second
# here); gradients are in units of the largest one.

# %% tags=["nbval-ignore-output"]
print("schedule                       paper  measured   gradients off by")
for title, step in measured.items():
    print(f"{title:29} {step.simulated:6.1f} "
          f"{step.timeline.makespan:9.2f} {step.gradient_error:15.1e}")

# %% tags=["nbval-check-output"]
print("gradients are one process's:",
      all(step.gradient_error < 1e-12 for step in measured.values()))

# %% tags=["fold", "nbval-ignore-output"]
title = "DualPipeV, pairs overlapped"
panels = {f"{name}, measured" if on else f"{name}, on paper": line
          for name, schedule, costs in (
              ("ZB1P", delayed["rank"], times["ZB1P"]),
              (title, real[title], times[title]))
          for on, line in ((0, simulate(schedule, costs)),
                           (1, measured[name].timeline))}
viz.show(timelines(panels), alt=describe_timelines(panels), dpi=84)

# %% [markdown]
# The picture is the paper's, a little stretched: every message costs a
# fraction of a millisecond, and processes wake up late on a busy machine.
# The gradients are those of one process to the last bits, whatever the
# order. That is worth a moment: a pipeline is one of the few tricks in this
# workbook that changes **nothing** about the result.
#
# ## 15.9 The published step, and what is missing in it
#
# ISCA table 4 says what a step of V3 was made of, in seconds: forwards
# alone 1.13, backwards alone 1.99, weights alone 0.48, pairs 13.95, bubble
# 2.06, optimizer 0.29. With 16 ranks and 120 micro-batches, DualPipe's order
# tells how many of each a rank does. Divide:

# %% tags=["nbval-check-output"]
from minids3.sim.pipeline import PUBLISHED_STEP, decode_step

step = decode_step(rank=0)
n, costs = step.counts, step.costs
print(f"an outer rank does {n['F']} F, {n['B']} B, {n['I']} I, {n['W']} W "
      f"and {n['FB']} pairs")
F_S, I_S, W_S, PAIR_S = (costs.forward, costs.input_grad,
                         costs.weight_grad, costs.overlapped)
print(f"F {F_S:.3f} s, I {I_S:.3f}, W {W_S:.3f}; a pair {PAIR_S:.3f}")
formula = idle_time("dualpipe", 16, F_S, I_S, W_S, PAIR_S)
print(f"bubble by your formula {formula:.2f} s, simulated "
      f"{max(step.simulated.idle):.2f}, published "
      f"{PUBLISHED_STEP.bubble:.2f}")
apart = F_S + I_S + W_S
print(f"a pair, {PAIR_S:.3f} s, against F + B, {apart:.3f} s: "
      f"{1 - PAIR_S / apart:.0%} saved")

# %% [markdown]
# Two things do not fit, and it is better to say so than to hide it.
#
# **Half of the bubble is not in the formula.** 1.09 seconds by the formula,
# 2.06 published. Not in it: the embedding on the first stage and the head
# and MTP module on the last, which make stages unequal; messages between
# stages; experts that are fuller on one rank than on another; and waiting
# for the slowest of 2,048 GPUs. Which of these it is, and how much of each,
# nobody outside knows.
#
# **Pairs save 8 % here and 35 % in the trace.** If a forward alone hid
# nothing, F + B should take 0.20 s by the trace (it has four layers, as a
# rank has), not 0.157. So either what runs alone is faster for other
# reasons, with all multiprocessors and a free network to itself, or it
# hides something, too, or the table's seconds are not those of one outer
# rank, as we assumed. All of this is *inferred*, the 120 as well.
#
# How much can one suspect do? Make a single stage slower, the last one,
# which also has the head. **Guess** what 10 % there do to a step:

# %%
for extra in (0, 10, 20, 40):
    def all_but_last(seconds, extra=extra):
        return [seconds] * 15 + [seconds * (1 + extra / 100)]

    uneven = simulate(make_schedule("1f1b", 16, 120), Costs(
        *map(all_but_last, (F_S, I_S, W_S))))
    print(f"last stage {extra:2} % slower: a step of 1F1B takes "
          f"{uneven.makespan:.2f} s, the others are idle for "
          f"{max(uneven.idle):.2f}")

# %% [markdown]
# A stage that is 10 % slower than the others adds almost two seconds to a
# step of 1F1B: 120 times a tenth of F + B. In a pipeline everybody has the
# pace of the slowest, and no schedule helps against it. Of the suspects
# above, unequal stages are therefore a strong one.
#
# ## 15.10 Play: your own pipeline
#
# First standing still: how the bubble's share falls with the number of
# micro-batches. **Predict** where DualPipeV with nothing hidden lies.

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(8, 3.2))
counts = [8, 12, 16, 24, 32, 48, 64, 96]
for name, label, costs, style in (
        ("1f1b", "1F1B", Costs(), "-"), ("zb1p", "ZB1P", Costs(), "-"),
        ("zbv", "ZBV", HALF, "-"),
        ("dualpipev", "DualPipeV, nothing hidden", HALF, "--"),
        ("dualpipev", "DualPipeV, pairs", Costs(
            0.5, 0.5, 0.5, overlapped=PAIR / 2), "-")):
    useful = 3 * np.array(counts)
    spans = [simulate(make_schedule(name, 4, n), costs).makespan
             for n in counts]
    ax.plot(counts, 3 * np.array(counts) / spans, style, marker="o", ms=3,
            label=label)
ax.axhline(1, color=viz.COLORS["muted"], lw=1, ls=":")
ax.set(xlabel="micro-batches", xscale="log", ylabel="work done per time\n"
       "(1: never idle, nothing hidden)")
ax.set_xticks(counts, counts)
ax.minorticks_off()
ax.legend(fontsize=8, ncols=2)
viz.show(fig, dpi=88, alt="Work done per time against the number of "
         "micro-batches on four ranks. 1F1B rises from 0.73 to 0.97, ZB1P "
         "and DualPipeV with nothing hidden from 0.89 to 0.99, ZBV a "
         "little above. DualPipeV with pairs crosses 1 at once and comes "
         "near 1.45.")

# %% tags=["fold"]
def play(schedule="dualpipev", ranks=4, micro_batches=8, W=1.0, pair=2.0):
    """A schedule's timeline; W is a part of B = 2, pair at least 2."""
    v = schedule in ("zbv", "dualpipev")
    size = 0.5 if v else 1.0
    costs = Costs(size, size * (2 - W), size * W, overlapped=size * pair)
    try:
        order = make_schedule(schedule, ranks, micro_batches)
        line = simulate(order, costs)
    except ValueError as error:
        return str(error)
    return timelines({schedule: line})


viz.show(play(), dpi=84, alt="Timeline of DualPipeV on four ranks with "
         "eight micro-batches, forward and backward in pairs.")

# %% [markdown]
# That is where the controls begin. Which schedule suffers most when a pair
# saves nothing (3.0)? Which gains most from more micro-batches?

# %% tags=["nbval-ignore-output"]
viz.play(play, alt="Timeline of a chosen schedule",
         schedule=["dualpipev", "1f1b", "zb1p", "zbv", "dualpipe"],
         ranks=(2, 8, 1), micro_batches=(4, 32, 1), W=(0.2, 1.8, 0.2),
         pair=(2.0, 3.0, 0.1))

# %% [markdown]
# ## 15.11 The Bill

# %%
from minids3.sim import bill

bill.show(upto="15")

# %% [markdown]
# **Claim 7 of the article, so far:** "architecture optimisations" include
# one that no benchmark sees, an order of work. The bubble that is left,
# 275K hours, costs about 0.55 million dollars, a tenth of the whole Bill;
# 1F1B in its place would have cost about 350K hours more, by our decoding of
# the step, and more than that if the trace is right about pairs.
#
# **What became of it.** DeepSeek published DualPipe's code in February
# 2025, and DualPipeV, after *Cut in half*, in March (DP). PyTorch has ZBV
# since December 2024 (pull request 142084) and DualPipeV since August 2025
# (159591); both orders are equal to DeepSeek's in every case we compared.
# torchtitan runs DeepSeek-V3 with it (repository, read in August 2026).
# DeepEP's second version (April 2026) needs 4 to 6 multiprocessors for
# V3-like training where the first needed 24 (its README): hiding
# communication has become cheaper, not needless.
#
# ## What this does not show
#
# - **Sleep is not work.** Real stages also fight for memory bandwidth and
#   multiprocessors; a pair slows both of its halves down, which is why the
#   trace has 129 and not 118 ms.
# - **Transfers between stages** are free in our simulations unless asked
#   for (`Costs(communication=...)`); on a slow network 1F1B's turns begin to
#   wait for each other.
# - **Equal stages.** V3's first three layers have no experts, and the head
#   and the MTP module are on the last stage. Section 15.9 shows what that
#   can do.
# - **The decoded step is an inference**: 120 micro-batches, an outer rank.
# - The memory column counts activations in quarters of a model, without
#   weights, gradients, or what is computed again instead of kept.
#
# ## References
#
# - DeepSeek-V3 technical report, arXiv 2412.19437: section 3.2.1 (DualPipe,
#   figures 4 and 5, table 2), 3.2.2 (communication).
# - Qi et al. 2023, *Zero Bubble Pipeline Parallelism*, arXiv 2401.10241:
#   sections 2 (splitting B, ZB-H1) and 6 (ZBV).
# - Huang et al. 2018, *GPipe*, arXiv 1811.06965. Narayanan et al. 2021,
#   arXiv 2104.04473: section 2.2 (1F1B, interleaved).
# - Insights into DeepSeek-V3, arXiv 2505.09343v2: table 4 (the step).
# - Repositories deepseek-ai/DualPipe and deepseek-ai/profile-data.
#
# **Next:** [16 · Serving](16_serving.ipynb): the trained model meets its
# users.
