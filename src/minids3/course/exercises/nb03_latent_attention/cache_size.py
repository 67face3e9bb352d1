"""Bytes that one token of context takes."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim.memory import kv_cache_bytes


def cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    """Bytes of cache for one token of context.

    kind: "mha", "gqa" or "mla"; layers, heads, kv_heads: how many
    head_dim: width of a key and of a value; latent, rotary: C and R
    size: bytes of one number
    returns an int
    """
    if kind == "mla":
        numbers = latent + rotary
    elif kind == "gqa":
        numbers = 2 * kv_heads * head_dim
    else:
        numbers = 2 * heads * head_dim
    return layers * numbers * size


def _count(kind, layers, mha, gqa, mla, size):
    return layers * {"mha": mha, "gqa": gqa, "mla": mla}[kind] * size


def _keys_only(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return _count(kind, layers, heads * head_dim, kv_heads * head_dim, latent + rotary, size)


def _latent_twice(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    both = 2 * (latent + rotary)
    return _count(kind, layers, 2 * heads * head_dim, 2 * kv_heads * head_dim, both, size)


def _rotary_per_head(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    mla = latent + heads * rotary
    return _count(kind, layers, 2 * heads * head_dim, 2 * kv_heads * head_dim, mla, size)


def _latent_per_head(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    mla = heads * (latent + rotary)
    return _count(kind, layers, 2 * heads * head_dim, 2 * kv_heads * head_dim, mla, size)


def _rotary_forgotten(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return _count(kind, layers, 2 * heads * head_dim, 2 * kv_heads * head_dim, latent, size)


def _query_heads(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return cache_bytes(kind, layers, heads, heads, head_dim, latent, rotary, size)


def _key_value_heads(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return cache_bytes(kind, layers, kv_heads, kv_heads, head_dim, latent, rotary, size)


def _group_size(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return cache_bytes(kind, layers, heads, heads // kv_heads, head_dim, latent, rotary, size)


def _one_layer(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return cache_bytes(kind, 1, heads, kv_heads, head_dim, latent, rotary, size)


def _always_two_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, 2)


def _cache_library(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    numbers = kv_cache_bytes(
        kind,
        layers,
        1,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        latent=latent,
        rope=rotary,
        dtype="fp8",
    )
    return numbers * size


def _cache_table(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    pair = head_dim + head_dim
    return _count(kind, layers, heads * pair, kv_heads * pair, latent + rotary, size)


def _a_float(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    bits = 8 * size
    return cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, 1) * bits / 8


def _in_bits(kind, layers, heads, kv_heads, head_dim, latent, rotary, size=2):
    return 8 * cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary, size)


@exercise(
    "mla-cache-size",
    solution=cache_bytes,
    notebook="03_latent_attention",
    title="What one token of context costs",
    difficulty=1,
    importance=4,
    minutes=5,
    library=_cache_library,
    hints=(
        "Write down what each kind keeps of a token in one layer: which vectors, how wide, how "
        "many of them? In which of the three does the number of query heads appear?",
        "mha: a key and a value for each head            -> 2 * heads * head_dim numbers\n"
        "gqa: a key and a value for each key-value head  -> 2 * kv_heads * head_dim\n"
        "mla: one latent and one rotary key, no heads    -> latent + rotary\n"
        "return numbers * layers * size",
    ),
    mutants=[
        Mutant(
            "keys_only",
            _keys_only,
            "MHA and GQA keep a key and a value. You counted one of the two.",
        ),
        Mutant(
            "latent_twice",
            _latent_twice,
            "You doubled the latent for keys and values. Both come out of the same one: it is kept "
            "once.",
        ),
        Mutant(
            "rotary_per_head",
            _rotary_per_head,
            "You counted a rotary key for every head. All heads share one.",
        ),
        Mutant(
            "latent_per_head",
            _latent_per_head,
            "You multiplied the latent by the heads. No head appears in MLA's cache.",
        ),
        Mutant(
            "rotary_forgotten",
            _rotary_forgotten,
            "The rotary key is missing. It cannot be rebuilt from the latent, so it is kept too.",
        ),
        Mutant(
            "query_heads",
            _query_heads,
            "For GQA you counted the query heads. Queries are not kept; keys and values are, one "
            "for each key-value head.",
        ),
        Mutant(
            "key_value_heads",
            _key_value_heads,
            "For MHA you counted kv_heads. There every one of the heads keeps its own key and "
            "value.",
        ),
        Mutant(
            "group_size",
            _group_size,
            "heads // kv_heads is how many query heads share a key and a value. GQA keeps "
            "kv_heads of each.",
        ),
        Mutant("one_layer", _one_layer, "That is one layer. Every layer has its own cache."),
        Mutant(
            "always_two_bytes",
            _always_two_bytes,
            "You fixed two bytes a number. An FP8 cache has one, an FP32 cache four: use size.",
        ),
        Mutant(
            "a_float",
            _a_float,
            "You returned a float. Bytes are counted: use whole numbers throughout, // instead of "
            "/.",
        ),
        Mutant(
            "in_bits",
            _in_bits,
            "That is in bits. A byte has eight of them.",
        ),
    ],
    alternatives=[
        Alternative("library", _cache_library),
        Alternative("table", _cache_table),
    ],
)
def check_cache_bytes(c):
    """Three published models, random sizes, other number formats, what must not matter."""
    v3 = (61, 128, 128, 128, 512, 64)
    got = c.call("mha", *v3, label='runs on V3\'s sizes with kind "mha"')
    c.equal(got, 3_997_696, label="128 heads of 128, 61 layers, MHA: 3,997,696 bytes")
    with c.part():
        got = c.call("mla", *v3)
        c.equal(got, 70_272, label="DeepSeek-V3's MLA: 70,272 bytes")
    with c.part():
        got = c.call("gqa", 126, 128, 8, 128, 512, 64)
        c.equal(got, 516_096, label="Llama-3.1-405B, 8 key-value heads: 516,096 bytes")
    layers, heads, width = c.size(3, 9), 4 * c.size(3, 6), 16 * c.size(2, 5)
    latent, rotary = c.size(70, 90), 2 * c.size(5, 12)
    sizes = (layers, heads, 1, width, latent, rotary)
    expected = {
        "mha": sum(width for _ in range(layers * heads) for _ in "kv"),
        "gqa": sum(width for _ in range(layers) for _ in "kv"),
        "mla": sum(latent + rotary for _ in range(layers)),
    }
    for kind, numbers in expected.items():
        with c.part():
            got = c.call(kind, *sizes)
            label = f"{kind}, other sizes: {2 * numbers:,} bytes"
            c.equal(got, 2 * numbers, label=label)
    with c.part():
        got = [c.call(kind, *sizes, 1) for kind in expected]
        label = "numbers of one byte each: half of it"
        c.equal(got, list(expected.values()), label=label)
    with c.part():
        got = [c.call(kind, *sizes, 4) for kind in expected]
        label = "numbers of four bytes each: twice as much"
        c.equal(got, [4 * numbers for numbers in expected.values()], label=label)
    with c.part():
        more = c.call("mla", layers, 3 * heads, 1, width, latent, rotary)
        label = "three times the heads cost an MLA cache nothing"
        c.equal(more, 2 * expected["mla"], label=label)
