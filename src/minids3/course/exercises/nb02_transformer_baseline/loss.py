"""The language-model loss."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.loss import cross_entropy_ref


def lm_loss(logits, targets, ignore_index=-100):
    """Mean negative log-probability of the targets, in nats.

    logits [B, T, V]; targets [B, T] int64, already the *next* token of
    each position, or ignore_index where nothing counts
    returns a scalar
    """
    log_total = torch.logsumexp(logits, dim=-1)
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    chosen = logits.gather(-1, index[..., None])[..., 0]
    return (log_total - chosen)[counted].mean()


def _loss_terms(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    log_probs = torch.log_softmax(logits, -1)
    return -log_probs.gather(-1, index[..., None])[..., 0] * counted, counted


def _loss_shifted_again(logits, targets, ignore_index=-100):
    return lm_loss(logits[:, :-1], targets[:, 1:], ignore_index)


def _loss_summed(logits, targets, ignore_index=-100):
    return _loss_terms(logits, targets, ignore_index)[0].sum()


def _loss_mean_of_all(logits, targets, ignore_index=-100):
    return _loss_terms(logits, targets, ignore_index)[0].mean()


def _loss_ignored_as_zero(logits, targets, ignore_index=-100):
    return lm_loss(logits, targets.masked_fill(targets == ignore_index, 0), -1)


def _loss_mean_of_rows(logits, targets, ignore_index=-100):
    terms, counted = _loss_terms(logits, targets, ignore_index)
    return (terms.sum(-1) / counted.sum(-1)).mean()


def _loss_bits(logits, targets, ignore_index=-100):
    return lm_loss(logits, targets, ignore_index) / math.log(2)


def _loss_overflowing(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    probs = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return -torch.log(probs.gather(-1, index[..., None])[..., 0])[counted].mean()


def _loss_sum_overflowing(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    log_total = torch.exp(logits).sum(-1).log()
    return (log_total - logits.gather(-1, index[..., None])[..., 0])[counted].mean()


def _loss_one_maximum(logits, targets, ignore_index=-100):
    return _loss_sum_overflowing(logits - logits.max(), targets, ignore_index)


def _loss_log_of_softmax(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    probs = torch.softmax(logits, -1)
    return -torch.log(probs.gather(-1, index[..., None])[..., 0])[counted].mean()


def _loss_log_softmax(logits, targets, ignore_index=-100):
    terms, counted = _loss_terms(logits, targets, ignore_index)
    return terms.sum() / counted.sum()


def _loss_flat(logits, targets, ignore_index=-100):
    keep = targets.reshape(-1) != ignore_index
    rows, wanted = logits.reshape(-1, logits.shape[-1])[keep], targets.reshape(-1)[keep]
    rows = rows - rows.max(-1, keepdim=True).values
    chosen = rows[torch.arange(len(rows)), wanted]
    return (rows.exp().sum(-1).log() - chosen).mean()


def _loss_mark_built_in(logits, targets, ignore_index=-100):
    counted = targets != -100
    index = targets.masked_fill(~counted, 0)
    logp = torch.log_softmax(logits, -1).gather(-1, index[..., None])[..., 0]
    return -logp[counted].mean()


def _loss_mark_clamped(logits, targets, ignore_index=-100):
    counted = targets != -100
    logp = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -(logp * counted).sum() / counted.sum()


def _loss_mark_flat(logits, targets, ignore_index=-100):
    keep = targets.flatten() != -100
    rows, wanted = logits.flatten(0, 1)[keep], targets.flatten()[keep]
    return -torch.log_softmax(rows, -1)[torch.arange(len(rows)), wanted].mean()


def _loss_any_negative(logits, targets, ignore_index=-100):
    return lm_loss(logits, targets.clamp(min=-1), -1)


def _loss_viewed(logits, targets, ignore_index=-100):
    flat = logits.view(-1, logits.shape[-1]), targets.view(-1)
    return lm_loss(flat[0][None], flat[1][None], ignore_index)


def _loss_one_hot(logits, targets, ignore_index=-100):
    counted = (targets != ignore_index).to(logits.dtype)
    index = torch.where(targets == ignore_index, 0, targets)
    one_hot = torch.zeros_like(logits).scatter(-1, index[..., None], 1.0)
    shifted = logits - logits.amax(-1, keepdim=True)
    logp = shifted - shifted.exp().sum(-1, keepdim=True).log()
    return -((one_hot * logp).sum(-1) * counted).sum() / counted.sum()


def _loss_loop(logits, targets, ignore_index=-100):
    terms = []
    for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist(), strict=True):
        if target != ignore_index:
            terms.append(torch.logsumexp(row, 0) - row[target])
    return torch.stack(terms).mean()


@exercise(
    "lm-loss",
    solution=lm_loss,
    notebook="02_transformer_baseline",
    title="The one number that is minimised",
    difficulty=3,
    importance=5,
    minutes=10,
    library=cross_entropy_ref,
    forbids=(
        "torch.nn.functional.cross_entropy",
        "torch.nn.functional.nll_loss",
        "torch.nn.CrossEntropyLoss",
        "torch.nn.NLLLoss",
    ),
    hints=(
        "What is the logarithm of softmax(logits)[target], before any exp is taken? It is a "
        "difference of two numbers, and one of them has a numerically safe function in torch. "
        "How many positions is the mean over if some are ignored?",
        "log_total = logsumexp of logits over V                  # [B, T]\n"
        "counted = targets differ from ignore_index              # [B, T] bool\n"
        "chosen = logits at the target (gather; put 0 where ignored, gather needs an index)\n"
        "return the mean of (log_total - chosen) over the counted positions",
    ),
    mutants=[
        Mutant(
            "shifted_again",
            _loss_shifted_again,
            "You shifted by one position. The targets already are the next tokens: shifting again "
            "asks for the token after next.",
        ),
        Mutant(
            "summed",
            _loss_summed,
            "That is the sum. With a sum the loss, and the best learning rate, depend on the batch "
            "size.",
        ),
        Mutant(
            "mean_of_all",
            _loss_mean_of_all,
            "You divided by all B x T positions. Ignored ones must not count in the mean either.",
        ),
        Mutant(
            "ignored_as_zero",
            _loss_ignored_as_zero,
            "Ignored positions were scored as if their target were token 0. Leave them out.",
        ),
        Mutant(
            "mean_of_rows",
            _loss_mean_of_rows,
            "You averaged each row, then the rows: a row with few targets got the weight of a "
            "full one. Every counted token weighs the same.",
        ),
        Mutant(
            "bits",
            _loss_bits,
            "That is the loss in bits (log base 2). Training losses are in nats: natural log.",
        ),
        Mutant(
            "overflowing",
            _loss_overflowing,
            "exp of a large logit overflows to infinity. Subtract the row's maximum first, or use "
            "logsumexp.",
        ),
        Mutant(
            "sum_overflowing",
            _loss_sum_overflowing,
            "You took the log of a sum of exps, and already one large logit makes that sum "
            "infinite. torch.logsumexp is the same, safely: it subtracts each row's maximum first.",
        ),
        Mutant(
            "one_maximum",
            _loss_one_maximum,
            "You subtracted one maximum from all positions. Where a row's logits lie far below it, "
            "every exp is 0, and so is their sum: each row needs a maximum of its own.",
        ),
        Mutant(
            "log_of_softmax",
            _loss_log_of_softmax,
            "The softmax of an unlikely token rounds to 0 and its log is minus infinity. Stay in "
            "logs: logsumexp minus the chosen logit.",
        ),
        Mutant(
            "mark_built_in",
            _loss_mark_built_in,
            "You built -100 in. Which target does not count is said by the argument ignore_index.",
        ),
        Mutant(
            "mark_clamped",
            _loss_mark_clamped,
            "Yours leaves out -100 and takes any other negative target for token 0. What does not "
            "count is what equals ignore_index, whatever it is.",
        ),
        Mutant(
            "mark_flat",
            _loss_mark_flat,
            "Yours leaves out -100, and a -1 picks the last token, as an index from the end. What "
            "does not count is what equals ignore_index, whatever it is.",
        ),
        Mutant(
            "any_negative",
            _loss_any_negative,
            "You left out every negative target, whatever ignore_index says. It can be any "
            "number, such as the id of a padding token.",
        ),
        Mutant(
            "layout",
            _loss_viewed,
            "Your code needs contiguous logits, and logits[:, :-1] is not: use flatten or reshape.",
        ),
    ],
    alternatives=[
        Alternative("log_softmax", _loss_log_softmax),
        Alternative("flat_with_maximum", _loss_flat),
        Alternative("one_hot", _loss_one_hot),
        Alternative("loop", _loss_loop),
    ],
)
def check_lm_loss(c):
    """Values, ignored targets, large logits, and the gradient softmax minus one-hot."""
    rows, steps, vocab = c.size(2, 3), c.size(4, 6), c.size(7, 11)
    logits = c.randn(rows, steps, vocab)
    targets = c.randint(0, vocab, rows, steps)
    targets[0, 1] = 0  # a token like any other
    masked = targets.clone()
    masked[0, 1:] = -100
    loss = c.call(logits, targets, label=f"runs on logits {list(logits.shape)}")
    c.shape(loss, (), label="the loss is one number, shape []")
    with c.part():
        c.close(loss, _expected_loss(logits, targets), label="it is the mean of -log p(target)")
    with c.part():
        flat = c.call(torch.zeros_like(logits), targets)
        wanted = torch.tensor(math.log(vocab))
        c.close(flat, wanted, label=f"equal logits cost ln V = {wanted:.4f} nats")
    with c.part():
        ignored = c.call(logits, masked)
        label = "ignored targets count neither in the sum nor in the mean"
        c.close(ignored, _expected_loss(logits, masked), label=label)
    with c.part():
        wide = logits * 200
        wide[0, 0] += 1000  # the other rows are far below this one
        label = "logits of the order 200 neither overflow nor underflow"
        c.close(c.call(wide, targets), _expected_loss(wide, targets), label=label)
    with c.part():
        high = c.call(logits + 200, targets)  # exp overflows, and no probability is small
        label = "200 added to every logit changes nothing"
        c.close(high, _expected_loss(logits + 200, targets), label=label)
    with c.part():
        c.grad(
            args=(logits, masked),
            wrt=(0,),
            expected_fn=cross_entropy_ref,
            label="the gradient is softmax minus one-hot over the count",
            names=("logits",),
        )
    with c.part():
        # Together, -1 first: a mark that is built in fails both, in ways that can be told apart.
        got = c.call(logits, masked.masked_fill(masked == -100, -1), -1)
        c.close(
            got, _expected_loss(logits, masked), label="with ignore_index=-1 a -1 does not count"
        )
        padding = int(targets[0, 0])
        got = c.call(logits, targets, padding)
        label = "with ignore_index a token's id, that token does not count"
        c.close(
            got, _expected_loss(logits, targets.masked_fill(targets == padding, -100)), label=label
        )
    with c.part():
        got = c.call(logits[:, :-1], targets[:, 1:])
        label = "logits and targets that are slices, logits[:, :-1] and targets[:, 1:], are right"
        c.close(got, _expected_loss(logits[:, :-1], targets[:, 1:]), label=label)


def _expected_loss(logits, targets):
    total, count = 0.0, 0
    for row, target in zip(logits.double().flatten(0, 1), targets.flatten(), strict=True):
        if target == -100:
            continue
        top = row.max()
        total += float(top + (row - top).exp().sum().log() - row[target])
        count += 1
    return torch.tensor(total / count, dtype=torch.float32)
