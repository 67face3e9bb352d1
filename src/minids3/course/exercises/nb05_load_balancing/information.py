"""Mutual information of domain and expert."""

from __future__ import annotations

import math

import numpy as np
import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.balance import mutual_information


def expert_information(counts):
    """Bits that knowing the expert tells about the domain.

    counts [D, E] int64: how often tokens of domain d chose expert e; a
    count may be 0, and so may a whole row or column
    returns a float, from 0 to H(D)
    """
    p = counts.double() / counts.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0)
    nats = torch.special.xlogy(p, p) - torch.special.xlogy(p, independent)
    return nats.sum().item() / math.log(2)


def _entropy(p, dim=None):
    """Entropy in bits, over everything or one axis."""
    nats = -torch.special.xlogy(p, p)
    return (nats.sum() if dim is None else nats.sum(dim)) / math.log(2)


def _tables(counts):
    """Joint, of the domains, of the experts, and domain given expert (0 where never chosen)."""
    p = counts.double() / counts.sum()
    experts = p.sum(0)
    return p, p.sum(1), experts, p / torch.where(experts > 0, experts, 1.0)


def _in_nats(counts):
    return expert_information(counts) * math.log(2)


def _joint(counts):
    return _entropy(_tables(counts)[0]).item()


def _domains_only(counts):
    return _entropy(_tables(counts)[1]).item()


def _what_is_left(counts):
    _, _, experts, given = _tables(counts)
    return (experts @ _entropy(given, 0)).item()


def _wrong_way_round(counts):
    p, domains, _, _ = _tables(counts)
    given = p / torch.where(domains > 0, domains, 1.0)[:, None]
    return (_entropy(domains) - domains @ _entropy(given, 1)).item()


def _equal_domains(counts):
    rows = counts[counts.sum(1) > 0].double()
    return expert_information(rows / rows.sum(1, keepdim=True))


def _experts_alike(counts):
    _, domains, experts, given = _tables(counts)
    return (_entropy(domains) - _entropy(given, 0)[experts > 0].mean()).item()


def _against_even(counts):
    p = _tables(counts)[0]
    return math.log2(p.numel()) - _entropy(p).item()


def _share(counts):
    held = _domains_only(counts)
    return expert_information(counts) / held if held > 1e-9 else 0.0


def _no_zero_case(counts):
    p, domains, experts, _ = _tables(counts)
    return (p * torch.log2(p / (domains[:, None] * experts))).sum().item()


def _idle_divides(counts):
    p, domains, experts, _ = _tables(counts)
    return (_entropy(domains) - experts @ _entropy(p / experts, 0)).item()


def _one_more(counts):
    return expert_information(counts + 1)


def _tiny_added(counts):
    p = counts.double() / counts.sum() + 1e-6
    independent = p.sum(1, keepdim=True) * p.sum(0)
    return (p * torch.log2(p / independent)).sum().item()


def _zeros_dropped(counts):
    used = (counts > 0).all(0)
    return expert_information(counts[:, used]) if used.any() else 0.0


def _products_of_counts(counts):
    total, rows, columns = counts.sum(), counts.sum(1, keepdim=True), counts.sum(0)
    product, expected = counts * total, rows * columns
    used = (product > 0) & (expected > 0)
    ratio = product[used].double() / expected[used].double()
    return (counts[used] / total * ratio.log2()).sum().item()


def _unweighted(counts):
    p, domains, experts, _ = _tables(counts)
    used = p > 0
    return torch.log2(p[used] / (domains[:, None] * experts)[used]).sum().item()


def _by_entropies(counts):
    p, domains, experts, _ = _tables(counts)
    return _entropy(domains) + _entropy(experts) - _entropy(p)


def _before_and_after(counts):
    _, domains, experts, given = _tables(counts)
    return (_entropy(domains) - experts @ _entropy(given, 0)).item()


def _loop(counts):
    rows = counts.tolist()
    total = sum(map(sum, rows))
    columns = [sum(c) for c in zip(*rows, strict=True)]
    bits = 0.0
    for row in rows:
        for n, column in zip(row, columns, strict=True):
            if n:
                bits += n / total * math.log2(n / sum(row) * (total / column))
    return bits


def _tiny_inside_the_log(counts):
    p = counts.float() / counts.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0)
    return (p * torch.log2((p + 1e-12) / (independent + 1e-12))).sum()


def _numpy(counts):
    p = counts.numpy() / counts.numpy().sum()
    held = []
    for q in (p.sum(1), p.sum(0), p.ravel()):
        q = q[q > 0]
        held.append(-(q * np.log2(q)).sum())
    return held[0] + held[1] - held[2]


def _library(counts):
    return mutual_information(counts).item()


@exercise(
    "balance-information",
    solution=expert_information,
    notebook="05_load_balancing",
    title="What an expert tells about the domain",
    difficulty=3,
    importance=3,
    minutes=8,
    library=_library,
    hints=(
        "Of all the choices of ONE expert, which shares come from which domain, and how many bits "
        "is that still open? Does an expert that is chosen ten times as often count as much as "
        "another? What is 0 times the logarithm of 0 here?",
        "p = counts / sum of all counts                    # [D, E], sums to 1\n"
        "p_d = p summed over experts; p_e = p summed over domains\n"
        "before = -sum of p_d * log2(p_d)\n"
        "after = sum over e of p_e * H(column e of p / p_e)\n"
        "return before - after            # 0 * log2(0) is 0; skip experts with p_e = 0\n"
        "(the same: sum over d and e of p * log2(p / (p_d * p_e)))",
    ),
    mutants=[
        Mutant(
            "in_nats",
            _in_nats,
            "That is in nats. Bits are logarithms to the base 2: divide by ln 2.",
        ),
        Mutant(
            "joint",
            _joint,
            "That is the entropy of the pair, of domain and expert together. Asked is what one "
            "tells about the other: what the two hold apart, minus this.",
        ),
        Mutant(
            "domains_only",
            _domains_only,
            "You returned H(D), what the domain holds before anything is known. Subtract what is "
            "left once the expert is known.",
        ),
        Mutant(
            "what_is_left",
            _what_is_left,
            "You returned what is still open when the expert is known. The information is what "
            "has gone: H(D) minus this.",
        ),
        Mutant(
            "wrong_way_round",
            _wrong_way_round,
            "You subtracted what the expert holds when the domain is known, H(E | d). From H(D) "
            "goes what the domain holds when the expert is known: divide each COLUMN by its sum.",
        ),
        Mutant(
            "equal_domains",
            _equal_domains,
            "You made all domains equally large. A domain with more choices counts more: divide "
            "by the sum of all counts, not row by row.",
        ),
        Mutant(
            "experts_alike",
            _experts_alike,
            "You took the plain mean over the experts. One that is chosen ten times as often "
            "counts ten times as much: weigh each by p_e.",
        ),
        Mutant(
            "against_even",
            _against_even,
            "You compared with an even table. A full expert or a large domain is no information "
            "about the other: compare with the product p_d * p_e of this very table.",
        ),
        Mutant(
            "share",
            _share,
            "You divided by H(D): that is a share between 0 and 1. Bits were asked for.",
        ),
        Mutant(
            "no_zero_case",
            _no_zero_case,
            "A count of 0 makes your sum nan. p log2 p goes to 0 with p: leave these terms out, "
            "or use torch.special.xlogy.",
        ),
        Mutant(
            "idle_divides",
            _idle_divides,
            "An expert that nobody chose makes you divide 0 by 0. It has p_e = 0 and adds "
            "nothing: leave it out.",
        ),
        Mutant(
            "one_more",
            _one_more,
            "You added 1 to every count to be rid of the zeros, and changed the others with them. "
            "A term with a count of 0 is 0: leave it out.",
        ),
        Mutant(
            "tiny_added",
            _tiny_added,
            "You added a small number to every share to be rid of the zeros. Beside many zeros it "
            "adds up: a term with a count of 0 is 0, leave it out.",
        ),
        Mutant(
            "zeros_dropped",
            _zeros_dropped,
            "You left out every expert that has a 0 somewhere. Its other counts tell most of "
            "all: only the single term is 0.",
        ),
        Mutant(
            "products_of_counts",
            _products_of_counts,
            "Products of counts in the billions do not fit into int64. Make shares first, then "
            "multiply.",
        ),
        Mutant(
            "unweighted",
            _unweighted,
            "You added up the logarithms as they are. Each counts as often as it occurs: times p.",
        ),
    ],
    alternatives=[
        Alternative("by_entropies", _by_entropies),
        Alternative("before_and_after", _before_and_after),
        Alternative("loop", _loop),
        Alternative("tiny_inside_the_log", _tiny_inside_the_log),
        Alternative("numpy", _numpy),
    ],
)
def check_information(c):
    """Counts without zeros and with, an independent table, nothing to tell, billions."""
    domains, experts = c.size(3, 5), c.size(6, 9)
    counts = _uneven(c, domains, experts)
    out = c.call(counts, label=f"runs on counts {list(counts.shape)}")
    with c.part():
        _bits(c, out, counts, "the bits that the expert tells about the domain")
        sizes = c.randint(1, 9, domains + experts)
        alike = sizes[:domains, None] * sizes[domains:]
        label = "all domains use the experts in the same proportions: 0 bits"
        _bits(c, c.call(alike), alike, label)
    with c.part():
        holes = counts * (c.rand(domains, experts) < 0.6)
        holes[torch.arange(domains), torch.arange(domains)] = counts.diagonal()
        holes[0, 1] = 0
        _bits(c, c.call(holes), holes, "a count of 0 adds nothing")
        own = torch.diag(c.randint(1, 99, 16))  # 240 zeros: a little for each of them shows
        label = "every domain has an expert of its own: all of H(D)"
        _bits(c, c.call(own), own, label)
    with c.part():
        idle = torch.nn.functional.pad(counts, (1, 1, 1, 0))
        label = "idle experts and a domain without text change nothing"
        _bits(c, c.call(idle), counts, label)
    with c.part():
        _bits(c, c.call(counts[:2]), counts[:2], "two domains are right")
        _bits(c, c.call(counts[:1]), counts[:1], "and with a single one there is nothing to tell")
    with c.part():
        many = c.strided(counts * 10**9)
        _bits(c, c.call(many), counts, "a billion times as many choices tell as much")


def _bits(c, got, counts, label):
    """As with printed numbers: a ten-thousandth of a bit is near enough."""
    c.close(got, _by_hand(counts), label=label, rtol=1e-4, atol=1e-4)


def _uneven(c, domains, experts):
    """Counts above 0: domains of different sizes, experts that are full, and favourites."""
    size = torch.tensor([1.0, 3.0, 7.0, 2.0, 5.0])[:domains, None]
    full = c.randn(1, experts).exp()
    return (20 * size * full * c.randn(domains, experts).exp()).long() + 1


def _by_hand(counts):
    """From the entropies of the lists of counts: H(D) + H(E) - H(D, E)."""
    rows = counts.tolist()
    columns = list(zip(*rows, strict=True))
    lists = [[sum(r) for r in rows], [sum(col) for col in columns], [n for r in rows for n in r]]
    held = [sum(n / sum(x) * math.log2(sum(x) / n) for n in x if n) for x in lists]
    return held[0] + held[1] - held[2]
