"""The objective: main loss and weighted mean of the MTP losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise


def mtp_loss(targets, lam, logits, *extra):
    """What is minimised, and the losses that it is made of, in nats.

    targets [B, T]: the token after each, -100: not counted
    lam: weight of the mean over depth
    logits [B, T, V] of the main model
    extra: for each depth k = 1 .. D logits [B, T - k, V]; may be none
    returns the objective, and a tensor [1 + D]: main loss, L_1, .., L_D
    """
    counted = (targets != -100).sum()
    losses = []
    for k, scores in enumerate([logits, *extra]):
        labels = targets[:, k:].flatten()
        nats = F.cross_entropy(scores.flatten(0, 1), labels, reduction="sum")
        losses.append(nats / counted)
    losses = torch.stack(losses)
    if not extra:
        return losses[0], losses
    return losses[0] + lam * losses[1:].mean(), losses


def _nats(scores, labels):
    """Surprisal of each label, 0 where ignored, and how many count."""
    log_probs = torch.log_softmax(scores, -1)
    counted = labels != -100
    chosen = log_probs.gather(-1, labels.masked_fill(~counted, 0)[..., None])[..., 0]
    return -(chosen * counted), counted.sum()


def _both(losses, lam):
    losses = torch.stack(list(losses))
    ahead = losses[1:]
    return losses[0] + lam * ahead.sum() / max(len(ahead), 1), losses


def _own_mean(targets, lam, logits, *extra):
    losses = []
    for k, scores in enumerate([logits, *extra]):
        nats, count = _nats(scores, targets[:, k:])
        losses.append(nats.sum() / count)
    return _both(losses, lam)


def _all_positions(targets, lam, logits, *extra):
    losses = [
        _nats(scores, targets[:, k:])[0].sum() / targets.numel()
        for k, scores in enumerate([logits, *extra])
    ]
    return _both(losses, lam)


def _not_shifted(targets, lam, logits, *extra):
    count = (targets != -100).sum()
    losses = [
        _nats(scores, targets[:, : scores.shape[1]])[0].sum() / count for scores in [logits, *extra]
    ]
    return _both(losses, lam)


def _shifted_by_one(targets, lam, logits, *extra):
    count = (targets != -100).sum()
    losses = []
    for k, scores in enumerate([logits, *extra]):
        labels = targets[:, min(k, 1) :][:, : scores.shape[1]]
        losses.append(_nats(scores, labels)[0].sum() / count)
    return _both(losses, lam)


def _sum_over_depth(targets, lam, logits, *extra):
    _, losses = mtp_loss(targets, lam, logits, *extra)
    return losses[0] + lam * losses[1:].sum(), losses


def _lambda_on_all(targets, lam, logits, *extra):
    _, losses = mtp_loss(targets, lam, logits, *extra)
    return lam * _both(losses, 1.0)[0], losses


def _shared_out(targets, lam, logits, *extra):
    _, losses = mtp_loss(targets, lam, logits, *extra)
    return _both(losses, lam)[0] - lam * losses[0], losses


def _mean_of_all_losses(targets, lam, logits, *extra):
    _, losses = mtp_loss(targets, lam, logits, *extra)
    return (losses[0] + lam * losses[1:].sum()) / len(losses), losses


def _no_lambda(targets, lam, logits, *extra):
    _, losses = mtp_loss(targets, lam, logits, *extra)
    return _both(losses, 1.0)


def _detached(targets, lam, logits, *extra):
    return mtp_loss(targets, lam, logits, *(scores.detach() for scores in extra))


def _detached_parts(targets, lam, logits, *extra):
    total, losses = mtp_loss(targets, lam, logits, *extra)
    return total, losses.detach()


def _by_hand(targets, lam, logits, *extra):
    count = (targets != -100).sum()
    losses = [_nats(s, targets[:, k:])[0].sum() / count for k, s in enumerate([logits, *extra])]
    return _both(losses, lam)


def _padded(targets, lam, logits, *extra):
    losses = []
    for k, scores in enumerate([logits, *extra]):
        labels = F.pad(targets[:, k:], (0, k), value=-100)
        full = F.pad(scores, (0, 0, 0, k))
        mean = _nats(full, labels)[0].mean()
        losses.append(mean * targets.numel() / (targets != -100).sum())
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss * (lam / len(extra))
    return total, torch.stack(losses)


def _lambda_built_in(targets, lam, logits, *extra):
    return mtp_loss(targets, 0.3, logits, *extra)


def _overflows(targets, lam, logits, *extra):
    counted = targets != -100
    losses = []
    for k, scores in enumerate([logits, *extra]):
        labels, kept = targets[:, k:].clamp(min=0), counted[:, k:]
        chosen = scores.gather(-1, labels[..., None])[..., 0]
        nats = torch.log(torch.exp(scores).sum(-1)) - chosen
        losses.append((nats * kept).sum() / counted.sum())
    losses = torch.stack(losses)
    return (losses[0] + lam * losses[1:].mean() if extra else losses[0]), losses


def _from_probabilities(probs, targets, lam, extra):
    counted = targets != -100
    losses = []
    for k, p in enumerate(probs):
        labels = targets[:, k:].clamp(min=0)
        nats = -torch.log(p.gather(-1, labels[..., None])[..., 0])
        losses.append((nats * counted[:, k:]).sum() / counted.sum())
    losses = torch.stack(losses)
    return (losses[0] + lam * losses[1:].mean() if extra else losses[0]), losses


def _log_of_softmax(targets, lam, logits, *extra):
    probs = [torch.softmax(scores, -1) for scores in (logits, *extra)]
    return _from_probabilities(probs, targets, lam, extra)


def _exp_over_sum(targets, lam, logits, *extra):
    probs = [s.exp() / s.exp().sum(-1, keepdim=True) for s in (logits, *extra)]
    return _from_probabilities(probs, targets, lam, extra)


def _viewed(targets, lam, logits, *extra):
    flat = [t.view(-1, t.shape[-1]).view(t.shape) for t in (logits, *extra)]
    return mtp_loss(targets, lam, *flat)


def _in_float64(targets, lam, logits, *extra):
    count = float((targets != -100).sum())
    losses = torch.zeros(1 + len(extra), dtype=torch.float64)
    for k, scores in enumerate((logits, *extra)):
        logp = torch.log_softmax(scores.double(), -1)
        for b in range(targets.shape[0]):
            for i in range(targets.shape[1] - k):
                if targets[b, i + k] != -100:
                    losses[k] = losses[k] - logp[b, i, targets[b, i + k]] / count
    losses = losses.float()
    return losses[0] + (lam * losses[1:].sum() / len(extra) if extra else 0), losses


@exercise(
    "mtp-loss",
    solution=mtp_loss,
    notebook="06_multi_token_prediction",
    title="Two losses, one objective",
    difficulty=3,
    importance=4,
    minutes=12,
    hints=(
        "How many targets does depth k have, and by what number does the report divide their sum? "
        "If there were two modules instead of one, should the MTP part weigh twice as much?",
        "counted = number of targets that are not -100\n"
        "main = sum of -log p over logits and targets / counted\n"
        "for k = 1 .. D: L_k = the same sum over extra[k-1] and targets from column k on, "
        "/ counted again\n"
        "objective = main + lam * (L_1 + .. + L_D) / D;   just main if there is no module",
    ),
    mutants=[
        Mutant(
            "own_mean",
            _own_mean,
            "You divided L_k by its own T - k targets. Equation 24 divides by T, as for the main "
            "loss: every predicted token weighs the same, however deep.",
        ),
        Mutant(
            "all_positions",
            _all_positions,
            "You divided by all positions. Ignored targets count neither in the sum nor in the "
            "number you divide by.",
        ),
        Mutant(
            "not_shifted",
            _not_shifted,
            "The modules were scored on the main model's targets. Module k at position i answers "
            "for targets[i + k].",
        ),
        Mutant(
            "shifted_by_one",
            _shifted_by_one,
            "Every module was scored one place further. For depth 2 it is two places: targets "
            "from column k on.",
        ),
        Mutant(
            "sum_over_depth",
            _sum_over_depth,
            "You added the depths up. Equation 25 takes their mean, lambda / D, so that lambda "
            "means the same whatever D is.",
        ),
        Mutant(
            "lambda_on_all",
            _lambda_on_all,
            "Lambda went over the whole. The main loss keeps weight 1; lambda belongs to the MTP "
            "part alone.",
        ),
        Mutant(
            "shared_out",
            _shared_out,
            "You took 1 - lambda of the main loss. It keeps weight 1: the MTP loss is added, it "
            "takes nothing away.",
        ),
        Mutant(
            "mean_of_all_losses",
            _mean_of_all_losses,
            "You averaged the main loss in with the others. Only the MTP losses are averaged.",
        ),
        Mutant("no_lambda", _no_lambda, "Lambda is not used: the MTP losses weigh like the main."),
        Mutant(
            "detached",
            _detached,
            "No gradient goes through the MTP losses, so nothing would learn from them. Did you "
            "detach them or take .item()?",
        ),
        Mutant(
            "detached_parts",
            _detached_parts,
            "The gradient comes through the objective alone. The Trainer below adds up the parts "
            "itself, so they need it too: no detach, item or torch.tensor.",
        ),
        Mutant(
            "lambda_built_in",
            _lambda_built_in,
            "You built 0.3 in. lam is an argument: V3 lowers it to 0.1 late in training.",
        ),
        Mutant(
            "overflows",
            _overflows,
            "exp of the logits overflows from 89 on. Use F.cross_entropy or torch.logsumexp.",
        ),
        Mutant(
            "exp_over_sum",
            _exp_over_sum,
            "From logits of 89 on, exp over the sum of exps is inf / inf, which is nan. Use "
            "F.cross_entropy or torch.logsumexp.",
        ),
        Mutant(
            "log_of_softmax",
            _log_of_softmax,
            "The softmax of an unlikely token rounds to 0, and the log of 0 is infinite. Stay in "
            "logs: F.cross_entropy, or torch.logsumexp minus the label's logit.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs contiguous logits, and slices of them are not: use flatten or "
            "reshape.",
        ),
    ],
    alternatives=[
        Alternative("by_hand", _by_hand),
        Alternative("padded", _padded),
        Alternative("in_float64", _in_float64),
    ],
)
def check_mtp_loss(c):
    """One module, two, none; ignored targets; lambda 0; the gradient."""
    rows, steps, vocab = c.size(2, 3), c.size(5, 7), c.size(7, 11)
    lam = 0.3
    logits = c.randn(rows, steps, vocab)
    extra = [2 * c.randn(rows, steps - k, vocab) for k in (1, 2)]
    targets = c.randint(0, vocab, rows, steps)
    masked = targets.clone()
    masked[0, 1:4] = -100

    label = f"runs on logits {list(logits.shape)} and one module"
    total, losses = c.call(targets, lam, logits, extra[0], label=label, returns=2)
    want, parts = _expected(targets, lam, logits, extra[0])
    with c.part():
        c.shape(losses, (2,), label="it returns the objective, and a tensor: main loss, L_1")
        c.close(losses[0], parts[0], label="the main loss is the mean over all T targets")
        c.close(losses[1], parts[1], label="L_1 is a sum over T - 1 targets, divided by T")
    with c.part():
        c.close(total, want, label="with one module the objective is main + 0.3 L_1")
    with c.part():
        total, losses = c.call(targets, lam, logits, *extra, returns=2)
        want, parts = _expected(targets, lam, logits, *extra)
        c.close(losses[2], parts[2], label="L_2 is a sum over T - 2 targets, divided by T")
        c.close(total, want, label="with two modules it is main + 0.3 (L_1 + L_2) / 2")
    with c.part():
        total, losses = c.call(masked, lam, logits, *extra, returns=2)
        want, parts = _expected(masked, lam, logits, *extra)
        c.close(losses, parts, label="ignored targets count nowhere")
        c.close(total, want, label="nor in the objective")
    with c.part():
        total, losses = c.call(targets, lam, logits, returns=2)
        want = _expected(targets, lam, logits)[0]
        c.close(total, want, label="without a module the objective is the main loss")
    with c.part():
        c.grad(
            args=(masked, lam, logits, *extra),
            wrt=(2, 3, 4),
            expected_fn=mtp_loss,
            label="the gradient reaches every set of logits",
            names=("logits", "the logits of depth 1", "the logits of depth 2"),
        )
    with c.part():
        other = c.choice((0.05, 0.1, 0.7))
        total, _ = c.call(targets, other, logits, *extra, returns=2)
        want = _expected(targets, other, logits, *extra)[0]
        c.close(total, want, label=f"with lam = {other} the modules count {other} times")
    with c.part():
        total, losses = c.call(targets, 0.0, logits, *extra, returns=2)
        want, parts = _expected(targets, 0.0, logits, *extra)
        c.close(losses, parts, label="with lam = 0 all parts still come back")
        c.close(total, want, label="and the objective is the main loss")
    with c.part():
        high = [t + 200 for t in (logits, *extra)]  # exp overflows, and no probability is small
        total, losses = c.call(targets, lam, *high, returns=2)
        label = "200 added to all logits changes no loss"
        c.close(losses, _expected(targets, lam, *high)[1], label=label)
    with c.part():
        loud = [150 * t for t in (logits, *extra)]
        total, losses = c.call(targets, lam, *[c.strided(t) for t in loud], returns=2)
        want, parts = _expected(targets, lam, *loud)
        c.close(losses, parts, label="logits of hundreds, not contiguous: the losses are right")
        c.close(total, want, label="and the objective")


def _expected(targets, lam, logits, *extra):
    """All in float64 and one token at a time."""
    count = sum(int(t) != -100 for t in targets.flatten())
    losses = []
    for k, scores in enumerate([logits, *extra]):
        nats = 0.0
        for b in range(scores.shape[0]):
            for i in range(scores.shape[1]):
                target = int(targets[b, i + k])
                if target != -100:
                    row = scores[b, i].double()
                    nats += float(row.logsumexp(0) - row[target])
        losses.append(nats / count)
    depth = len(extra)
    total = losses[0] + (lam * sum(losses[1:]) / depth if depth else 0.0)
    return torch.tensor(total), torch.tensor(losses)
