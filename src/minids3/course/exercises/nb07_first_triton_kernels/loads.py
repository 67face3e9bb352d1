"""Reading a kernel's PTX: how much does one instruction fetch?"""

from __future__ import annotations

import re

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def load_widths(ptx):
    """Bytes that a thread fetches, per load from global memory, in order.

    ptx: text, one instruction a line, as 'ld.global.v4.b32 {...}' (4 x 32
    bits = 16 bytes), or with a predicate first, as '@%p1 ld.global.b32 ..'
    returns a list of whole numbers
    """
    widths = []
    for opcode in re.findall(r"\bld\.global[\w.:]*", ptx):
        *words, last = opcode.split(".")
        count = next((int(w[1]) for w in words if w in ("v2", "v4", "v8")), 1)
        widths.append(count * int(last[1:]) // 8)
    return widths
# fmt: on


def _widths(ptx, pattern=r"\bld\.global[\w.:]*", vector=True, divide=8):
    widths = []
    for opcode in re.findall(pattern, ptx):
        *words, last = opcode.split(".")
        count = next((int(w[1]) for w in words if w in ("v2", "v4", "v8")), 1)
        widths.append((count if vector else 1) * int(last[1:]) // divide)
    return widths


def _loads_no_vector(ptx):
    return _widths(ptx, vector=False)


def _loads_bits(ptx):
    return _widths(ptx, divide=1)


def _loads_stores_too(ptx):
    return _widths(ptx, r"\b(?:ld|st)\.global[\w.:]*")


def _loads_any_memory(ptx):
    return _widths(ptx, r"\bld\.(?:global|shared|param)[\w.:]*")


def _loads_only_plain(ptx):
    return _widths(ptx, r"\bld\.global(?:\.v\d)?\.[a-z]\d+")


def _loads_distinct(ptx):
    return list(dict.fromkeys(_widths(ptx)))


def _loads_total(ptx):
    return sum(_widths(ptx))


def _loads_masked_only(ptx):
    return _widths("\n".join(line for line in ptx.splitlines() if "@" in line))


def _loads_lines(ptx):
    widths = []
    for line in ptx.splitlines():
        for word in line.split():
            if not word.startswith("ld.global"):
                continue
            bits = int("".join(d for d in word.split(".")[-1] if d.isdigit()))
            times = [int(w[1:]) for w in word.split(".") if w in {"v2", "v4", "v8"}]
            widths.append(bits * (times or [1])[0] // 8)
    return widths


def _loads_groups(ptx):
    found = re.finditer(r"\bld\.global(?:\.[\w:]+?)*?(?:\.v([248]))?\.[a-z](\d+)\s", ptx)
    return [int(m[1] or 1) * int(m[2]) // 8 for m in found]


def _all_digits(ptx):
    widths = []
    for opcode in re.findall(r"\bld\.global[\w.:]*", ptx):
        width = 1
        for n in re.findall(r"\d+", opcode):
            width *= int(n)
        widths.append(width // 8)
    return widths


def _fractions(ptx):
    return [width / 1 for width in load_widths(ptx)]


def _unpredicated(ptx):
    lines = [line.strip() for line in ptx.splitlines()]
    return load_widths("\n".join(line for line in lines if line.startswith("ld.")))


@exercise(
    "ptx-loads",
    solution=load_widths,
    notebook="07_first_triton_kernels",
    title="How much does one instruction fetch?",
    difficulty=2,
    importance=2,
    minutes=7,
    hints=(
        "Split an opcode such as ld.global.v4.b32 at its dots. Which part says how many numbers, "
        "and which says how many bits each has?",
        "for every word of the text that starts with ld.global:\n"
        "    parts = word split at '.'\n"
        "    bits = the digits of the last part            # b32 -> 32\n"
        "    count = 2, 4 or 8 if v2, v4 or v8 is among the parts, else 1\n"
        "    append count * bits // 8",
    ),
    mutants=[
        Mutant(
            "no_vector",
            _loads_no_vector,
            "You overlooked the vector: .v4 means that one instruction fetches four numbers.",
        ),
        Mutant("bits", _loads_bits, "These are bits. A byte has eight of them."),
        Mutant(
            "stores_too",
            _loads_stores_too,
            "You counted st.global as well: that is a store. Loads begin with ld.",
        ),
        Mutant(
            "any_memory",
            _loads_any_memory,
            "You counted loads from shared or parameter memory. Those are on the chip; the slow "
            "ones say ld.global.",
        ),
        Mutant(
            "only_plain",
            _loads_only_plain,
            "A load may carry more words, such as .L1::evict_last, between global and its type. "
            "You lost those.",
        ),
        Mutant(
            "distinct",
            _loads_distinct,
            "You returned every width once. Each load counts, in the order of the text.",
        ),
        Mutant(
            "total",
            _loads_total,
            "You summed up. The widths are wanted one by one: two loads of 16 bytes and eight of 4 "
            "fetch the same, and are not the same.",
        ),
        Mutant(
            "masked_only",
            _loads_masked_only,
            "You kept only lines with a predicate (@%p). A load without a mask has none.",
        ),
        Mutant(
            "all_digits",
            _all_digits,
            "You multiplied every number in the opcode. A hint such as L2::128B has one, too: "
            "only the vector's length and the type count.",
        ),
        Mutant(
            "fractions",
            _fractions,
            "You returned floats. Bytes are whole numbers: divide with //.",
        ),
        Mutant(
            "unpredicated",
            _unpredicated,
            "You missed loads under a predicate: their lines begin with '@%p1 ', and the opcode "
            "comes after it.",
        ),
    ],
    alternatives=[
        Alternative("lines", _loads_lines),
        Alternative("groups", _loads_groups),
    ],
)
def check_loads(c):
    """A text with every kind of load, a store, other memories; real lines; nothing to find."""
    kinds = [
        ("v4.b32", 16),
        ("b32", 4),
        ("v2.b64", 16),
        ("b16", 2),
        ("v2.b32", 8),
        ("L1::evict_last.v4.b32", 16),
        ("nc.b64", 8),
        ("u8", 1),
        ("v8.b32", 32),
        ("v2.f32", 8),
    ]
    order = sorted(range(len(kinds)), key=lambda _: c.size(0, 10**6))
    lines = [".version 8.7", ".target sm_90a", "ld.param.b64 %rd1, [add_kernel_param_0];"]
    want = []
    for place, k in enumerate(order):
        name, width = kinds[k]
        mask = f"@%p{place} " if place % 3 else ""
        lines.append(f"\t{mask}ld.global.{name} {{ %r{place} }}, [ %rd{place} + 0 ];")
        lines.append(f"\tadd.f32 %f{place}, %f{place}, %f1;")
        want.append(width)
    lines += ["\t@%p1 st.global.v4.b32 [ %rd9 + 0 ], { %r1, %r2, %r3, %r4 };"]
    lines += ["\tld.shared.b32 %r5, [%r6];", "\tret;"]
    got = c.call("\n".join(lines), label="reads a text with ten loads")
    c.true(isinstance(got, list), "returns a list", "it is no list")
    with c.part():
        c.equal(len(got), 10, label="finds ten loads, no store, nothing from other memories")
        c.equal(got, want, label="their widths in bytes, in order")
    with c.part():
        one = "@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];"
        c.equal(c.call(one), [16], label="four numbers of 32 bits are 16 bytes")
    with c.part():
        c.equal(c.call("ret;"), [], label="a text without loads")
    with c.part():
        hints = (
            ("L2::128B.v2.b32", 8),
            ("L1::no_allocate.L2::256B.v4.b16", 8),
            ("L2::cache_hint.b64", 8),
        )
        text = "\n".join(f"ld.global.{name} {{ %r1 }}, [ %rd1 ];" for name, _ in hints)
        c.equal(
            c.call(text),
            [w for _, w in hints],
            label="hints with numbers of their own, as L2::128B",
        )
