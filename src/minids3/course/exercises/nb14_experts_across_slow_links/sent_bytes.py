"""Bytes of a layer's communication."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim.comm import row_bytes


# fmt: off
def layer_bytes(rows, width, dispatch="fp8"):
    """Bytes that so many rows take in one layer, forward and backward.

    rows: copies of tokens that cross a link, or their mean, such as 3.5;
      each is a vector of `width`, a multiple of 128
    forward: dispatch, then combine back along the same way; backward: the
    gradients, against both, in the format of what they follow backwards
    dispatch: "fp8", one byte a number and for every 128 numbers an FP32
      scale; or "bf16"
    combine is BF16. Of the gradients, those of combine's results travel
    the way of a dispatch and in its format, those of dispatch's tokens in
    BF16.
    returns an int, for a mean a float
    """
    out = width + 4 * (width // 128) if dispatch == "fp8" else 2 * width
    back = 2 * width
    return 2 * rows * (out + back)
# fmt: on


def _sum(rows, width, dispatch, fp8, bf16=None, back=None, passes=2):
    bf16 = 2 * width if bf16 is None else bf16
    back = 2 * width if back is None else back
    return passes * rows * ((fp8 if dispatch == "fp8" else bf16) + back)


def _no_scales(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width)


def _byte_scales(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 128)


def _one_scale(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + 4)


def _forward_only(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 32, passes=1)


def _dispatch_only(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 32, back=0)


def _combine_fp8(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 32, back=width + width // 32)


def _backward_twice(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 32, passes=3)


def _always_fp8(rows, width, dispatch="fp8"):
    return layer_bytes(rows, width)


def _bf16_scales(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 32, bf16=2 * width + width // 32)


def _gradients_bf16(rows, width, dispatch="fp8"):
    first = width + width // 32 if dispatch == "fp8" else 2 * width
    return rows * (first + 3 * 2 * width)


def _combine_like_dispatch(rows, width, dispatch="fp8"):
    return 4 * rows * (width + width // 32 if dispatch == "fp8" else 2 * width)


def _gradients_fp8(rows, width, dispatch="fp8"):
    out = width + width // 32 if dispatch == "fp8" else 2 * width
    return rows * (3 * out + 2 * width)


def _bf16_sized(rows, width, dispatch="fp8"):
    return _sum(rows, width, dispatch, width + width // 64)


def _whole_bytes(rows, width, dispatch="fp8"):
    return int(layer_bytes(rows, width, dispatch))


def _library(rows, width, dispatch="fp8"):
    return 2 * rows * (row_bytes(width, dispatch) + row_bytes(width, "bf16"))


def _four_trips(rows, width, dispatch="fp8"):
    tiles = width / 128
    trip = {"fp8": int(width + 4 * tiles), "bf16": width * 2}
    trips = [dispatch, "bf16", dispatch, "bf16"]
    return sum(rows * trip[form] for form in trips)


@exercise(
    "ep-bytes",
    solution=layer_bytes,
    notebook="14_experts_across_slow_links",
    title="Bytes of a layer",
    difficulty=1,
    importance=4,
    minutes=6,
    hints=(
        "A row makes four trips in one layer of one training step. Which two go out to the "
        "experts, which two come back? How many scales has a vector of 7,168 numbers?",
        "out = width bytes and 4 for each 128 of them, if FP8; 2 * width if BF16\n"
        "back = 2 * width\n"
        "2 * rows * (out + back)         # forward and backward",
    ),
    mutants=[
        Mutant(
            "no_scales",
            _no_scales,
            "The scales are missing. Without them FP8 numbers are worth nothing on the other side.",
        ),
        Mutant(
            "byte_scales",
            _byte_scales,
            "You gave a scale one byte. It is FP32 here, four bytes.",
        ),
        Mutant(
            "one_scale",
            _one_scale,
            "You sent one scale for the whole vector. There is one for every 128 numbers.",
        ),
        Mutant(
            "forward_only",
            _forward_only,
            "That is the forward pass. Backward, gradients make both trips again.",
        ),
        Mutant(
            "dispatch_only",
            _dispatch_only,
            "Results have to come back: combine is missing.",
        ),
        Mutant(
            "combine_fp8",
            _combine_fp8,
            "You let combine travel in FP8. Results are summed where they arrive, so they keep "
            "BF16 (TR section 3.3.3).",
        ),
        Mutant(
            "backward_twice",
            _backward_twice,
            "You counted the backward pass twice as much as the forward. In computing it is; "
            "vectors travel as often as before.",
        ),
        Mutant(
            "always_fp8",
            _always_fp8,
            "You ignored `dispatch`: in BF16 a row out takes 2 bytes a number and no scale.",
        ),
        Mutant(
            "bf16_scales",
            _bf16_scales,
            "You added scales to BF16 as well. Its numbers have an exponent of eight bits already.",
        ),
        Mutant(
            "gradients_bf16",
            _gradients_bf16,
            "You sent all gradients in BF16. Those that go out to the experts travel like a "
            "dispatch.",
        ),
        Mutant(
            "combine_like_dispatch",
            _combine_like_dispatch,
            "You let combine travel in dispatch's format. Results are summed where they arrive, so "
            "they keep BF16 (TR section 3.3.3).",
        ),
        Mutant(
            "gradients_fp8",
            _gradients_fp8,
            "You sent all gradients in dispatch's format. Those of the tokens come back like a "
            "combine, in BF16.",
        ),
        Mutant(
            "bf16_sized_scales",
            _bf16_sized,
            "Your scales come to half of what they take: four bytes each (FP32), on both trips in "
            "FP8.",
        ),
        Mutant(
            "whole_bytes",
            _whole_bytes,
            "You made a whole number of the result. For a mean number of rows it is a mean, too, "
            "and has a fraction.",
        ),
    ],
    alternatives=[
        Alternative("library", _library),
        Alternative("four_trips", _four_trips),
    ],
)
def check_layer_bytes(c):
    """V3's row, other widths, both formats, means of rows, no rows at all."""
    got = c.call(1, 7168, label="runs on one row of V3's width")
    c.equal(got, 43_456, label="2 x (7,392 + 14,336) = 43,456 bytes")
    with c.part():
        c.equal(c.call(1, 7168, "bf16"), 57_344, label="dispatch in BF16: 57,344")
    rows, width = c.size(100, 900), 128 * c.size(3, 20)
    trips = [width + 4 * len(range(0, width, 128)), 2 * width]
    with c.part():
        label = f"{rows} rows of {width}"
        c.equal(c.call(rows, width, "fp8"), 2 * rows * sum(trips), label=label)
    with c.part():
        label = "the same in BF16"
        c.equal(c.call(rows, width, dispatch="bf16"), 8 * rows * width, label=label)
    with c.part():
        c.equal(c.call(3.5, 7168), 152_096.0, label="3.5 rows a token: 152,096")
    with c.part():
        c.equal(c.call(0, width), 0, label="no rows, no bytes")
    with c.part():
        rows = c.choice([0.7, 1.2, 1.7, 2.2])
        label = f"{rows} rows of 128: a mean has a fraction"
        c.close(c.call(rows, 128), rows * (132 + 256 + 132 + 256), label=label, rtol=1e-6)
