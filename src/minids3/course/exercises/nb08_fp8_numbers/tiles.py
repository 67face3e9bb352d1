"""One scale for every 128 numbers of a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.quant import quantize_ref


def quantize_tiles(x, tile=128):
    """E4M3 numbers with one scale for every `tile` numbers of a row.

    x [M, K] float32, finite; K need not be a multiple of tile
    returns q [M, K] float8_e4m3fn and scale [M, ceil(K / tile)] float32,
    with x close to q * scale; a tile of zeros has scale 1
    """
    M, K = x.shape
    tiled = F.pad(x, (0, -K % tile)).reshape(M, -1, tile)
    largest = tiled.abs().amax(-1)
    scale = torch.where(largest > 0, largest / 448, 1.0)
    scaled = (tiled / scale[..., None]).clamp(-448, 448)
    q = scaled.reshape(M, -1)[:, :K].to(torch.float8_e4m3fn)
    return q, scale


def _tiled(x, tile):
    return F.pad(x, (0, -x.shape[1] % tile)).reshape(len(x), -1, tile)


def _finish(x, scale, tile):
    wide = scale.repeat_interleave(tile, 1)[:, : x.shape[1]]
    return (x / wide).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def _scale(largest, top=448.0):
    return torch.where(largest > 0, largest / top, 1.0)


def _tiles_per_tensor(x, tile=128):
    largest = x.abs().max().expand(len(x), -(-x.shape[1] // tile))
    return _finish(x, _scale(largest).clone(), tile)


def _tiles_per_row(x, tile=128):
    largest = x.abs().amax(1, keepdim=True).expand(-1, -(-x.shape[1] // tile))
    return _finish(x, _scale(largest).clone(), tile)


def _tiles_shared_rows(x, tile=128):
    largest = _tiled(x, tile).abs().amax((0, 2))[None].expand(len(x), -1)
    return _finish(x, _scale(largest).clone(), tile)


def _tiles_inverse(x, tile=128):
    q, scale = quantize_tiles(x, tile)
    return q, 1 / scale


def _tiles_signed_max(x, tile=128):
    return _finish(x, _scale(_tiled(x, tile).amax(-1)), tile)


def _tiles_zero_nan(x, tile=128):
    largest = _tiled(x, tile).abs().amax(-1)
    return _finish(x, largest / 448, tile)


def _tiles_zero_scale(x, tile=128):
    q, scale = quantize_tiles(x, tile)
    return q, torch.where(_tiled(x, tile).abs().amax(-1) > 0, scale, 0.0)


def _tiles_240(x, tile=128):
    return _finish(x, _scale(_tiled(x, tile).abs().amax(-1), 240.0), tile)


def _tiles_floor(x, tile=128):
    largest = _tiled(x, tile).abs().amax(-1)
    scale = _scale(largest.clamp(min=1e-4)).masked_fill(largest == 0, 1.0)
    return _finish(x, scale, tile)


def _tiles_padded(x, tile=128):
    scale = quantize_tiles(x, tile)[1]
    return _finish(F.pad(x, (0, -x.shape[1] % tile)), scale, tile)


def _tiles_padded_with_ones(x, tile=128):
    wide = F.pad(x, (0, -x.shape[1] % tile), value=1.0)
    return _finish(x, _scale(_tiled(wide, tile).abs().amax(-1)), tile)


def _tiles_edge_dropped(x, tile=128):
    whole = x.shape[1] // tile * tile
    q, scale = quantize_tiles(x, tile)
    scale = torch.where(torch.arange(scale.shape[1]) < x.shape[1] // tile, scale, 1.0)
    return torch.cat((q[:, :whole].float(), x[:, whole:]), 1).to(torch.float8_e4m3fn), scale


def _tiles_deviation(x, tile=128):
    spread = _tiled(x, tile).square().mean(-1).sqrt() * 3
    return _finish(x, _scale(spread), tile)


def _tiles_integers(x, tile=128):
    scale = _scale(_tiled(x, tile).abs().amax(-1))
    wide = scale.repeat_interleave(tile, 1)[:, : x.shape[1]]
    return (x / wide).round().to(torch.float8_e4m3fn), scale


def _tiles_not_divided(x, tile=128):
    return x.to(torch.float8_e4m3fn), quantize_tiles(x, tile)[1]


def _tiles_loop(x, tile=128):
    quantized, scales = [], []
    for part in x.split(tile, 1):
        largest = part.abs().max(1, keepdim=True).values
        scale = largest / 448
        scale[largest == 0] = 1.0
        quantized.append((part / scale).to(torch.float8_e4m3fn).view(torch.uint8))
        scales.append(scale)
    return torch.cat(quantized, 1).view(torch.float8_e4m3fn), torch.cat(scales, 1)


def _tiles_scattered(x, tile=128):
    which = torch.arange(x.shape[1]) // tile
    n = -(-x.shape[1] // tile)
    index = which.expand(len(x), -1)
    largest = torch.zeros(len(x), n).scatter_reduce(1, index, x.abs(), "amax")
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / 448.0)
    return (x / scale[:, which]).to(torch.float8_e4m3fn), scale


def _tiles_library(x, tile=128):
    return quantize_ref(x, (1, tile))


def _float64_scale(x, tile=128):
    q, scale = quantize_tiles(x, tile)
    return q, scale.double()


def _tile_built_in(x, tile=128):
    return quantize_tiles(x, 128 if tile > 40 else 32)


def _viewed(x, tile=128):
    return quantize_tiles(x.view(-1).view(x.shape), tile)


def _preallocated(x, tile=128):
    rows, columns = x.shape
    scale = torch.ones(rows, -(-columns // tile))
    q = torch.zeros(x.shape)
    for j in range(scale.shape[1]):
        part = x[:, j * tile : (j + 1) * tile].double()
        most = part.abs().max(1).values
        scale[:, j] = torch.where(most == 0, 1.0, most / 448)
        q[:, j * tile : (j + 1) * tile] = (part / scale[:, j, None]).clamp(-448, 448)
    return q.to(torch.float8_e4m3fn), scale


@exercise(
    "fp8-tiles",
    solution=quantize_tiles,
    notebook="08_fp8_numbers",
    title="A scale for every 128",
    difficulty=3,
    importance=5,
    minutes=15,
    library=_tiles_library,
    hints=(
        "Into which shape do you bring [M, K] so that a tile is an axis of its own? What may you "
        "add to a row whose last tile is short, without changing any tile's largest magnitude?",
        "pad the rows with zeros to a multiple of tile, reshape to [M, tiles, tile]\n"
        "largest = the largest magnitude of each tile            # [M, tiles]\n"
        "scale = largest / 448, but 1 where largest is 0         # [M, tiles]\n"
        "scaled = tiles / scale (with an axis added), clamped to -448 .. 448\n"
        "q = scaled as [M, padded K], cut to K columns, as float8_e4m3fn",
    ),
    mutants=[
        Mutant(
            "per_tensor",
            _tiles_per_tensor,
            "All your scales are the same: you took the maximum of the whole tensor, so that one "
            "outlier costs everybody.",
        ),
        Mutant(
            "per_row",
            _tiles_per_row,
            "You have one scale per row. Each 128 columns of it have their own.",
        ),
        Mutant(
            "shared_rows",
            _tiles_shared_rows,
            "Your tiles reach over all rows. A row is a token, and a loud token must not set its "
            "neighbours' scale.",
        ),
        Mutant(
            "inverse",
            _tiles_inverse,
            "You returned 448 / largest. The scale multiplies when reading, x = q * scale: return "
            "largest / 448.",
        ),
        Mutant(
            "signed_max",
            _tiles_signed_max,
            "You took the largest number, not the largest magnitude: a tile whose outlier is "
            "negative saturates.",
        ),
        Mutant(
            "zero_nan",
            _tiles_zero_nan,
            "A tile of zeros was divided by zero and is NaN now. Give it scale 1.",
        ),
        Mutant(
            "zero_scale",
            _tiles_zero_scale,
            "A tile of zeros has scale 0 in your answer, and dividing by it gives NaN. "
            "Give it scale 1.",
        ),
        Mutant(
            "two_forty",
            _tiles_240,
            "You mapped the largest number to 240. E4M3 goes up to 448; the range above is unused.",
        ),
        Mutant(
            "floor",
            _tiles_floor,
            "You keep the scale above a floor, as the released inference kernel does (1e-4 / 448). "
            "Gradients can be smaller than that, and then they use few of the codes, or none.",
        ),
        Mutant(
            "padded",
            _tiles_padded,
            "The padding is still there: cut q back to K columns.",
        ),
        Mutant(
            "padded_with_ones",
            _tiles_padded_with_ones,
            "You filled the last, short tile up with ones, and where all of its numbers are "
            "smaller, a one became the largest. Fill up with zeros.",
        ),
        Mutant(
            "edge_dropped",
            _tiles_edge_dropped,
            "The last, short tile was not scaled. It has its own largest number like the others.",
        ),
        Mutant(
            "deviation",
            _tiles_deviation,
            "Your scale comes from a typical size, so the tile's largest numbers saturate. Take "
            "the maximum.",
        ),
        Mutant(
            "integers",
            _tiles_integers,
            "You rounded to whole numbers first, as for INT8. E4M3 has codes between them: leave "
            "the rounding to the cast.",
        ),
        Mutant(
            "not_divided",
            _tiles_not_divided,
            "You computed the scales and did not divide by them before the cast.",
        ),
        Mutant(
            "float64_scale",
            _float64_scale,
            "Your scales are float64. float32 is asked for: a kernel will read them as such.",
        ),
        Mutant(
            "tile_built_in",
            _tile_built_in,
            "You built sizes of tiles in. tile is an argument, and any number will do.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs x to be contiguous: use reshape.",
        ),
    ],
    alternatives=[
        Alternative("loop", _tiles_loop),
        Alternative("scattered", _tiles_scattered),
        Alternative("preallocated", _preallocated),
    ],
)
def check_tiles(c):
    """Scales by hand, numbers back within rounding, ragged edge, zeros, tiny tiles, tile size."""
    rows, extra = c.size(3, 5), c.size(20, 100)
    columns = 256 + extra
    x = c.randn(rows, columns) * torch.exp2(c.randint(-4, 5, rows, 1).float())
    x[:, 128:256] *= 30  # tiles of a row differ
    x[0, 200], x[1, 5], x[2, columns - 1] = -500.0, -77.0, -99.0  # magnitudes count
    x[0, 256:].clamp_(-0.5, 0.5)  # what a short tile is filled up with must not count
    out = c.call(x, label=f"runs on {[rows, columns]}", returns=2)
    q, scale = out
    c.shape(q, (rows, columns), "q")
    c.shape(scale, (rows, 3), "scale")
    with c.part():
        c.dtype(q, torch.float8_e4m3fn, "q")
        c.dtype(scale, torch.float32, "scale")
        c.close(scale, _scales(x, 128), label="scale is largest magnitude / 448", rtol=1e-6, atol=0)
    with c.part():
        largest = torch.stack([t.float().abs().amax(1) for t in q.split(128, 1)], 1)
        label = "the largest number of every tile becomes 448 in q"
        c.close(largest, torch.full((rows, 3), 448.0), label=label)
    with c.part():
        label = "q * scale is x within half a step of E4M3"
        c.true(_within(x, q, scale, 128), label, "some numbers are further away than that")
    with c.part():
        zeros = x.clone()
        zeros[1, 128:256] = 0
        q, scale = c.call(zeros)
        label = "a tile of zeros has scale 1 and stays zero"
        c.equal(scale[1, 1:2], torch.ones(1), label=label)
        c.equal(q[1, 128:256].float(), torch.zeros(128), label="its q is zero")
    with c.part():
        tiny = 1e-8 * c.randn(2, 128)
        q, scale = c.call(tiny)
        label = "the scale of numbers as small as gradients"
        c.close(scale, _scales(tiny, 128), label=label, rtol=1e-6, atol=0)
        label = "and they keep their precision"
        c.true(_within(tiny, q, scale, 128), label, "some numbers are further away than that")
    with c.part():
        q, scale = c.call(x, 32)
        c.shape(scale, (rows, -(-columns // 32)), label="tile=32 makes more scales")
        c.true(_within(x, q, scale, 32), "and every one belongs to its 32 numbers")
    with c.part():
        narrow = x[:1, :1]
        scale = c.call(narrow)[1]
        c.close(scale, narrow.abs() / 448, label="a single number is a tile", rtol=1e-6, atol=0)
    with c.part():
        q, scale = c.call(c.strided(x), 48)
        c.shape(
            scale, (rows, -(-columns // 48)), label="tile=48 and an x that is not contiguous work"
        )
        label = "with the scales of 48 numbers"
        c.close(scale, _scales(x, 48), label=label, rtol=1e-6, atol=0)
    with c.part():
        scale = c.call(c.strided(x[:, :256]), returns=2)[1]
        label = "an x of 256 columns that is not contiguous works"
        c.close(scale, _scales(x[:, :256], 128), label=label, rtol=1e-6, atol=0)
    with c.part():
        for size in ("1e-20", "1e37", "1e-37"):
            far = float(size) * c.randn(2, 128)
            q, scale = c.call(far, returns=2)
            c.close(scale, _scales(far, 128), label=f"the scale of {size}", rtol=1e-4, atol=0)
            label = f"numbers around {size} keep their precision"
            c.true(_within(far, q, scale, 128), label, "some numbers are further away than that")


def _scales(x, tile):
    found = []
    for row in x.double().tolist():
        tiles = [row[k : k + tile] for k in range(0, len(row), tile)]
        found.append([max(map(abs, t)) / 448 for t in tiles])
    return torch.tensor(found, dtype=torch.float32)


def _within(x, q, scale, tile):
    """Half a step: 2^-4 of a normal number, 2^-10 of the scale below."""
    wide = scale.double().repeat_interleave(tile, 1)[:, : x.shape[1]]
    error = (q.double() * wide - x.double()).abs()
    allowed = torch.maximum(x.double().abs() / 16, wide * 2.0**-10)
    return bool((error <= allowed * 1.0001).all())
