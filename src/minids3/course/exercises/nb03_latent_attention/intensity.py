"""FLOPs for each byte of cache that a decoding step reads."""

from __future__ import annotations

from minids3.course.exercises.nb03_latent_attention.cache_size import cache_bytes
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim.memory import attention_flops_per_byte


# fmt: off
def flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary,
                   size=2):
    """FLOPs of a step's attention for each byte of cache that it reads.

    kind: "mha", "gqa" or "mla" (absorbed); queries: a text's new tokens
    heads, kv_heads, head_dim, latent, rotary, size: as for cache_bytes
    scores and weighted sum count, a multiply-add as two FLOPs; the cache is
    read once for all heads and all queries of its text
    returns a float
    """
    if kind == "mla":
        macs = heads * ((latent + rotary) + latent)
    else:
        macs = heads * (head_dim + head_dim)
    read = cache_bytes(kind, 1, heads, kv_heads, head_dim, latent, rotary,
                       size)
    return 2 * queries * macs / read
# fmt: on


def _ratio(kind, queries, macs, read, size):
    return 2 * queries * macs[kind] / (read[kind] * size)


def _macs(heads, head_dim, latent, rotary):
    pair = heads * 2 * head_dim
    return {"mha": pair, "gqa": pair, "mla": heads * (2 * latent + rotary)}


def _read(heads, kv_heads, head_dim, latent, rotary):
    return {
        "mha": heads * 2 * head_dim,
        "gqa": kv_heads * 2 * head_dim,
        "mla": latent + rotary,
    }


def _macs_not_flops(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, size) / 2


def _per_number(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, 1)


def _always_two_bytes(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, 2)


def _read_per_query(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return flops_per_byte(kind, 1, heads, kv_heads, head_dim, latent, rotary, size)


def _read_per_head(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    read = _read(heads, heads, head_dim, latent, rotary)
    read["mla"] *= heads
    return _ratio(kind, queries, macs, read, size)


def _one_head(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    macs["mla"] //= heads
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _kv_heads_compute(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    macs["gqa"] = kv_heads * 2 * head_dim
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _scores_only(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = {"mha": heads * head_dim, "gqa": heads * head_dim, "mla": heads * (latent + rotary)}
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _rotary_averaged(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    macs["mla"] += heads * rotary
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _no_rotary(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, 0)
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _naive_widths(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    macs["mla"] = heads * (head_dim + rotary + head_dim)
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    return _ratio(kind, queries, macs, read, size)


def _latent_read_twice(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    macs = _macs(heads, head_dim, latent, rotary)
    read = _read(heads, kv_heads, head_dim, latent, rotary)
    read["mla"] += latent
    return _ratio(kind, queries, macs, read, size)


def _bytes_per_flop(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return 1 / flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, size)


def _whole(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    return flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, size) // 1


def _rounded(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    exact = flops_per_byte(kind, queries, heads, kv_heads, head_dim, latent, rotary, size)
    return round(exact, 1)


def _by_library(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    if kind == "mla":
        sizes = {"latent": latent, "rope": rotary}
    else:
        sizes = {"head_dim": head_dim, "n_kv_heads": kv_heads}
    return attention_flops_per_byte(kind, queries, n_heads=heads, **sizes) * 2 / size


def _closed_form(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    reuse = {
        "mha": 1,
        "gqa": heads / kv_heads,
        "mla": heads * (1 + latent / (latent + rotary)),
    }
    return 2 * queries * reuse[kind] / size


def _product_by_product(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    key, value = (latent + rotary, latent) if kind == "mla" else (head_dim, head_dim)
    flops = 0
    for _ in range(queries * heads):
        flops += 2 * key  # a score
        flops += 2 * value  # a share of the weighted sum
    kept = {"mha": heads, "gqa": kv_heads}.get(kind, 1)
    numbers = latent + rotary if kind == "mla" else kept * (key + value)
    return flops / (size * numbers)


def _for_many_tokens(kind, queries, heads, kv_heads, head_dim, latent, rotary, size=2):
    layers, tokens = 3, 1000
    width = 2 * latent + rotary if kind == "mla" else 2 * head_dim
    flops = 2 * layers * tokens * queries * heads * width
    one = cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size)
    return flops / (tokens * one)


@exercise(
    "mla-intensity",
    solution=flops_per_byte,
    notebook="03_latent_attention",
    title="Arithmetic for each byte",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "Take one cached token in one layer. How many numbers does a head multiply with it for "
        "the score, and how many for the weighted sum? Who else uses the same numbers while they "
        "are there?",
        "multiply-adds for one query and one cached token, all heads together:\n"
        "    mha, gqa: heads * (head_dim + head_dim)     # a score, a share of the sum\n"
        "    mla:      heads * ((latent + rotary) + latent)\n"
        "bytes read = cache_bytes of one layer           # once for all heads and queries\n"
        "return 2 * queries * multiply-adds / bytes read",
    ),
    mutants=[
        Mutant(
            "macs_not_flops",
            _macs_not_flops,
            "You counted multiply-adds. Each is two floating-point operations here, as in the "
            "data sheets of GPUs.",
        ),
        Mutant(
            "per_number",
            _per_number,
            "That is per number read. A number takes `size` bytes.",
        ),
        Mutant(
            "always_two_bytes",
            _always_two_bytes,
            "You fixed two bytes a number. With one byte a number there is twice the arithmetic "
            "for each byte: use size.",
        ),
        Mutant(
            "read_per_query",
            _read_per_query,
            "Your result does not grow with the queries. They all use the same cache, which is "
            "read once: more FLOPs, no more bytes.",
        ),
        Mutant(
            "read_per_head",
            _read_per_head,
            "You read the cache anew for every query head. Heads that share a key and a value, or "
            "a latent, share the reading as well.",
        ),
        Mutant(
            "one_head",
            _one_head,
            "For MLA you counted the arithmetic of one head, or a reading for every head. All "
            "heads score every latent, and one reading serves them all.",
        ),
        Mutant(
            "kv_heads_compute",
            _kv_heads_compute,
            "For GQA you counted the arithmetic of the key-value heads. Every query head scores "
            "for itself.",
        ),
        Mutant(
            "scores_only",
            _scores_only,
            "You counted the scores alone. The weighted sum of the values is as much work again, "
            "or nearly.",
        ),
        Mutant(
            "rotary_averaged",
            _rotary_averaged,
            "The weighted sum runs over the latent alone. The rotary key has a share in the scores "
            "only.",
        ),
        Mutant(
            "no_rotary",
            _no_rotary,
            "The scores of MLA have a rotary part, too: latent + rotary multiply-adds a head.",
        ),
        Mutant(
            "naive_widths",
            _naive_widths,
            "Those are the widths of rebuilt keys and values. The absorbed path never rebuilds "
            "them: its heads meet the latent itself.",
        ),
        Mutant(
            "latent_read_twice",
            _latent_read_twice,
            "You read the latent once for the scores and once for the sum. It is read once and "
            "used for both.",
        ),
        Mutant(
            "bytes_per_flop",
            _bytes_per_flop,
            "That is bytes per FLOP. Asked for is the inverse.",
        ),
        Mutant(
            "whole",
            _whole,
            "You cut off the fraction. The result is a ratio: use / and not //.",
        ),
        Mutant(
            "rounded",
            _rounded,
            "You rounded the result. Return the ratio as it is; rounding is for printing.",
        ),
    ],
    alternatives=[
        Alternative("library", _by_library),
        Alternative("closed_form", _closed_form),
        Alternative("product_by_product", _product_by_product),
        Alternative("many_tokens", _for_many_tokens),
    ],
)
def check_flops_per_byte(c):
    """V3, random sizes of all three kinds, several queries, other number formats."""
    got = c.call("mla", 1, 128, 128, 128, 512, 64, label='runs on V3\'s sizes with kind "mla"')
    near = {"rtol": 1e-6, "atol": 1e-6}
    c.close(got, 241.7778, label="DeepSeek-V3: 242 FLOPs a byte", **near)
    groups, kv_heads, width = c.size(3, 7), c.size(2, 5), 8 * c.size(2, 9)
    heads, latent, rotary = groups * kv_heads, c.size(70, 90), 2 * c.size(5, 12)
    sizes = (heads, kv_heads, width, latent, rotary)
    used = {
        "mha": [1] * (2 * width),  # how often a head's numbers are used, each
        "gqa": [groups] * (2 * width),
        "mla": [2 * heads] * latent + [heads] * rotary,
    }
    reuse = {kind: sum(times) / len(times) for kind, times in used.items()}
    for kind, times in reuse.items():
        with c.part():
            label = f"{kind}, {heads} heads and {kv_heads} key-value heads: {times:.1f}"
            c.close(c.call(kind, 1, *sizes), times, label=label, **near)
    queries = c.size(3, 9)
    for kind, times in reuse.items():
        with c.part():
            label = f"{kind}, {queries} new tokens of a text: {queries} times as much"
            c.close(c.call(kind, queries, *sizes), queries * times, label=label, **near)
    with c.part():
        got = [c.call(kind, queries, *sizes, size) for kind in reuse for size in (1, 4)]
        label = "numbers of one byte: twice as much; of four: half"
        wanted = [queries * t * f for t in reuse.values() for f in (2, 0.5)]
        c.close(got, wanted, label=label, **near)
