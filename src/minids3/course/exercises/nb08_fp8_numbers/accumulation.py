"""Adding up in a register of 14 bits."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.numerics import cut, limited_matmul


def limited_sum(products, promote_every=None):
    """Sum of each row in a register of 14 bits, 32 products at a time.

    products [R, K] float64, exact; K is a multiple of 32
    promote_every: move the register to a float32 total and empty it after
    so many products, a multiple of 32; None: never
    returns [R] float32
    """
    total = torch.zeros(len(products))
    register = torch.zeros(len(products), dtype=torch.float64)
    for start in range(0, products.shape[1], 32):
        step = products[:, start : start + 32]
        terms = torch.cat((step, register[:, None]), 1)  # [R, 33]
        largest = terms.abs().amax(1, keepdim=True)
        register = cut(terms, largest).sum(1)
        register = cut(register, register)
        if promote_every and (start + 32) % promote_every == 0:
            total += register.float()
            register = torch.zeros_like(register)
    return total + register.float()


def _run(products, promote_every, align=None, store=None, grid=None, empty=True, rest=True):
    align = align or (lambda terms, largest: cut(terms, largest))
    store = store or (lambda register: cut(register, register))
    total = torch.zeros(len(products))
    register = torch.zeros(len(products), dtype=torch.float64)
    for start in range(0, products.shape[1], 32):
        step = products[:, start : start + 32]
        terms = torch.cat((step, register[:, None]), 1)
        largest = (terms if grid is None else grid(terms)).abs().amax(1, keepdim=True)
        register = store(align(terms, largest).sum(1))
        if promote_every and (start + 32) % promote_every == 0:
            total += register.float()
            if empty:
                register = torch.zeros_like(register)
    return total + register.float() if rest else total


def _sum_exact(products, promote_every=None):
    return products.sum(1).float()


def _sum_no_align(products, promote_every=None):
    return _run(products, promote_every, align=lambda terms, largest: terms)


def _sum_no_store(products, promote_every=None):
    return _run(products, promote_every, store=lambda register: register)


def _sum_products_grid(products, promote_every=None):
    return _run(products, promote_every, grid=lambda terms: terms[:, :-1])


def _nearest(x, largest):
    return cut(x + torch.sign(x) * torch.exp2((_power(largest) - 14).double()), largest)


def _power(largest):
    return torch.frexp(largest).exponent - 1


def _sum_nearest(products, promote_every=None):
    return _run(products, promote_every, align=_nearest)


def _sum_never(products, promote_every=None):
    return _run(products, None)


def _sum_not_emptied(products, promote_every=None):
    return _run(products, promote_every, empty=False)


def _sum_rest_lost(products, promote_every=None):
    return _run(products, promote_every, rest=promote_every is None)


def _sum_every_step(products, promote_every=None):
    return _run(products, 32 if promote_every else None)


def _sum_late(products, promote_every=None):
    return _run(products, promote_every and 2 * promote_every)


def _sum_always(products, promote_every=None):
    return _run(products, promote_every or 128)


def _sum_twelve(products, promote_every=None):
    return _run(
        products,
        promote_every,
        align=lambda terms, largest: cut(terms, largest, 12),
        store=lambda register: cut(register, register, 12),
    )


def _sum_integers(products, promote_every=None):
    """Whole numbers of steps; a power of two is a shift."""
    found = []
    for row in products.tolist():
        total, register = torch.zeros(()), 0.0
        for start in range(0, len(row), 32):
            terms = [*row[start : start + 32], register]
            grid = math.ldexp(1.0, math.frexp(max(map(abs, terms)))[1] - 14)
            register = grid * sum(int(t / grid) for t in terms)
            grid = math.ldexp(1.0, math.frexp(register)[1] - 14)
            register = grid * int(register / grid)
            if promote_every and (start + 32) % promote_every == 0:
                total, register = total + torch.tensor(register).float(), 0.0
        found.append(total + torch.tensor(register).float())
    return torch.stack(found)


def _sum_chunks(products, promote_every=None):
    """A register's life at a time, then the fp32 additions."""
    total = torch.zeros(len(products))
    for chunk in products.split(promote_every or products.shape[1], 1):
        register = torch.zeros(len(products), 1, dtype=torch.float64)
        for step in chunk.split(32, 1):
            largest = torch.maximum(step.abs().amax(1, keepdim=True), register.abs())
            new = cut(step, largest).sum(1, keepdim=True) + cut(register, largest)
            register = cut(new, new)
        total = total + register[:, 0].float()
    return total


def _sum_library(products, promote_every=None):
    ones = torch.ones(products.shape[1], 1, dtype=torch.float64)
    return limited_matmul(products, ones, promote_every=promote_every)[:, 0]


def _sum_register_uncut(products, promote_every=None):
    return _run(
        products,
        promote_every,
        align=lambda terms, largest: torch.cat((cut(terms[:, :-1], largest), terms[:, -1:]), 1),
    )


def _sum_one_grid(products, promote_every=None):
    return _run(products, promote_every, align=lambda terms, largest: cut(terms, largest.amax()))


def _sum_one_at_a_time(products, promote_every=None):
    total = torch.zeros(len(products))
    register = torch.zeros(len(products), dtype=torch.float64)
    for k in range(products.shape[1]):
        terms = torch.stack((products[:, k], register), 1)
        register = cut(terms, terms.abs().amax(1, keepdim=True)).sum(1)
        register = cut(register, register)
        if promote_every and (k + 1) % promote_every == 0:
            total += register.float()
            register = torch.zeros_like(register)
    return total + register.float()


def _sum_sixteen(products, promote_every=None):
    total = torch.zeros(len(products))
    register = torch.zeros(len(products), dtype=torch.float64)
    for start in range(0, products.shape[1], 16):
        terms = torch.cat((products[:, start : start + 16], register[:, None]), 1)
        register = cut(terms, terms.abs().amax(1, keepdim=True)).sum(1)
        register = cut(register, register)
        if promote_every and (start + 16) % promote_every == 0:
            total += register.float()
            register = torch.zeros_like(register)
    return total + register.float()


def _sum_whole_interval(products, promote_every=None):
    total = torch.zeros(len(products))
    for chunk in products.split(promote_every or products.shape[1], 1):
        register = cut(chunk, chunk.abs().amax(1, keepdim=True)).sum(1)
        total += cut(register, register).float()
    return total


def _sum_viewed(products, promote_every=None):
    return limited_sum(products.view(-1).view(products.shape), promote_every)


@exercise(
    "fp8-accumulate",
    solution=limited_sum,
    notebook="08_fp8_numbers",
    title="Fourteen bits, and out in time",
    difficulty=3,
    importance=5,
    minutes=15,
    library=_sum_library,
    forbids=("minids3.numerics.accumulate.limited_matmul",),
    hints=(
        "Which 33 numbers does one instruction add, and which of them decides how fine the grid "
        "is? What is kept between two instructions, and with how many bits?",
        "total = zeros [R] float32;  register = zeros [R] float64\n"
        "for every 32 products:\n"
        "    terms = the 32 products and the register             # [R, 33]\n"
        "    largest = the largest magnitude of the 33            # [R, 1]\n"
        "    register = sum of cut(terms, largest)\n"
        "    register = cut(register, register)                   # 14 bits are stored\n"
        "    every promote_every products: total += register; register = 0\n"
        "return total + register",
    ),
    mutants=[
        Mutant(
            "exact",
            _sum_exact,
            "Your sum is exact, or exact and cut once at the end. The register is short all the "
            "time: cut the terms before each addition.",
        ),
        Mutant(
            "not_aligned",
            _sum_no_align,
            "Your products are added in full and only the register is short. All 33 terms are cut "
            "to the largest one's grid before they are added; cutting each by itself changes "
            "nothing, a product of two E4M3 numbers has 8 bits.",
        ),
        Mutant(
            "not_stored_short",
            _sum_no_store,
            "The sum of the aligned terms has more than 14 bits, and the register must not: cut "
            "it once more by itself.",
        ),
        Mutant(
            "products_grid",
            _sum_products_grid,
            "The register belongs to the 33 terms as well. When it has grown, it sets the grid, "
            "and that is what hurts at large K.",
        ),
        Mutant(
            "nearest",
            _sum_nearest,
            "You rounded the terms to the nearest step. They are cut towards zero, which is why "
            "the error has a direction.",
        ),
        Mutant(
            "never_promoted",
            _sum_never,
            "promote_every has no effect: move the register to the float32 total on time.",
        ),
        Mutant(
            "not_emptied",
            _sum_not_emptied,
            "You added the register to the total and did not empty it, so that everything counts "
            "several times.",
        ),
        Mutant(
            "rest_lost",
            _sum_rest_lost,
            "What is in the register after the last promotion is lost. Add it at the end.",
        ),
        Mutant(
            "every_step",
            _sum_every_step,
            "You promoted after every 32 products. Promote after promote_every of them.",
        ),
        Mutant(
            "late",
            _sum_late,
            "You promoted half as often as asked for: count products, 32 per step, and count the "
            "ones just added.",
        ),
        Mutant(
            "always",
            _sum_always,
            "With promote_every=None nothing is promoted, and yours is.",
        ),
        Mutant(
            "a_bit_short",
            _sum_twelve,
            "You kept 12 fraction bits. There are 13 below the leading one: 14 in all.",
        ),
        Mutant(
            "register_uncut",
            _sum_register_uncut,
            "You cut the products and left the register as it was. It is one of the 33 terms: cut "
            "it to the common grid, too.",
        ),
        Mutant(
            "one_grid",
            _sum_one_grid,
            "You took one grid for all rows. Each row has a register, and a largest term, of its "
            "own.",
        ),
        Mutant(
            "one_at_a_time",
            _sum_one_at_a_time,
            "You added one product at a time. One instruction aligns 32 products and the register "
            "together, by their largest.",
        ),
        Mutant(
            "sixteen",
            _sum_sixteen,
            "You added 16 products at a time. One instruction takes 32, and the register is cut "
            "only between two of them.",
        ),
        Mutant(
            "whole_interval",
            _sum_whole_interval,
            "You added all products up to a promotion at once. One instruction takes 32 of them, "
            "and what it leaves in the register is cut again with the next 32.",
        ),
        Mutant(
            "layout",
            _sum_viewed,
            "Your code needs products to be contiguous: use reshape, or slice.",
        ),
    ],
    alternatives=[
        Alternative("integers", _sum_integers),
        Alternative("chunks", _sum_chunks),
    ],
)
def check_sum(c):
    """One instruction by hand, several, promotion, what is left over, both signs, zeros."""
    rows, steps = c.size(6, 8), c.size(9, 11)
    x = _products(c, rows, 32 * steps)
    one = x[:, :32].contiguous()
    out = c.call(one, label=f"runs on products {[rows, 32]}")
    c.shape(out, (rows,), "the result")
    near = {"rtol": 2e-7, "atol": 0}
    with c.part():
        c.dtype(out, torch.float32, "the result")
        c.close(out, _by_hand(one), label="one instruction, 32 products", **near)
    with c.part():
        few = x[:, :64].contiguous()
        c.close(c.call(few), _by_hand(few), label="two instructions", **near)
        c.close(c.call(x), _by_hand(x), label=f"{steps} instructions without promotion", **near)
    with c.part():
        x4 = x[:, :256].contiguous()
        label = "promotion every 128 products"
        c.close(c.call(x4, 128), _by_hand(x4, 128), label=label, **near)
        label = "what is left after the last promotion counts too"
        c.close(c.call(x, 128), _by_hand(x, 128), label=label, **near)
        c.close(c.call(x, 64), _by_hand(x, 64), label="promotion every 64 products", **near)
    with c.part():
        mixed = x * torch.sign(c.randn(rows, x.shape[1])).double()
        mixed[:, 0] += 3000  # no sum near zero
        label = "terms of both signs are cut towards zero"
        c.close(c.call(mixed, 128), _by_hand(mixed, 128), label=label, **near)
    with c.part():
        nothing = torch.zeros(2, 64, dtype=torch.float64)
        c.equal(c.call(nothing, 64), torch.zeros(2), label="zeros stay zero")
    with c.part():
        pair = x[:, :64].clone()
        big = torch.exp2(torch.ceil(torch.log2(64 * pair.abs().sum(1))))
        pair[:, 40], pair[:, 50] = big, -big  # they cancel, and leave a coarse grid
        label = "large products that cancel: the register, too, is cut to their grid"
        c.close(c.call(pair), _by_hand(pair), label=label, **near)
    with c.part():
        label = "products that are not contiguous give the same"
        c.close(c.call(c.strided(x), 64), _by_hand(x, 64), label=label, **near)
    with c.part():
        lost = torch.zeros(1, 65 * 32, dtype=torch.float64)
        lost[0, 0], lost[0, 32::32] = 2.0**25, 1.0
        label = "in a float32 total, 2^25 + 1 is 2^25, 64 times over"
        c.equal(c.call(lost, 32), torch.tensor([2.0**25]), label=label)
    with c.part():
        loud = torch.full((1, 8 * 32), 0.75, dtype=torch.float64)
        loud[0, 64] = 2.0**14
        label = "64 products of 0.75 count; those beside 2^14, and after it, are lost"
        c.equal(c.call(loud), torch.tensor([2.0**14 + 48]), label=label)
    with c.part():
        # No smaller group of these is cut otherwise: only what is stored in full gives another sum.
        ones = torch.ones(1, 32, dtype=torch.float64)
        ones[0, 0] += 2.0**-13
        label = "31 ones and 1 + 2^-13 are 32 in a register of 14 bits"
        c.equal(c.call(ones), torch.tensor([32.0]), label=label)
    with c.part():
        nearly = torch.zeros(1, 32, dtype=torch.float64)
        nearly[0, 0] = 2 - 2.0**-40
        label = "2 - 2^-40 is cut to 2 - 2^-13, not rounded to 2"
        c.equal(c.call(nearly), torch.tensor([2 - 2.0**-13]), label=label)


def _products(c, rows, columns):
    """Products of two E4M3 numbers, all positive, of sizes that differ by up to 2^12."""
    a = (8 + c.randint(0, 8, rows, columns)).double()
    b = (8 + c.randint(0, 8, rows, columns)).double()
    return a * b / 64 * torch.exp2(-c.randint(0, 13, rows, columns).double())


def _by_hand(products, promote_every=None):
    """Row by row in Python integers: a grid of 2^g is a division by 2^g, cut by int()."""
    found = []
    for row in products.tolist():
        total, register = torch.zeros((), dtype=torch.float32), 0.0
        for start in range(0, len(row), 32):
            terms = [*row[start : start + 32], register]
            largest = max(abs(t) for t in terms)
            g = math.frexp(largest)[1] - 1 - 13
            register = sum(int(t * 2.0**-g) for t in terms) * 2.0**g
            if register:
                g = math.frexp(register)[1] - 1 - 13
                register = int(register * 2.0**-g) * 2.0**g
            if promote_every is not None and (start + 32) % promote_every == 0:
                total, register = total + torch.tensor(register, dtype=torch.float32), 0.0
        found.append(total + torch.tensor(register, dtype=torch.float32))
    return torch.stack(found)
