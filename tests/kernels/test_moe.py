"""Kernels of a mixture of experts, against loops over the experts: values, gradients, edges."""

import pytest
import torch
from fp8_cores import sum_error

from minids3.bench import kernel_shapes
from minids3.bench.kernel_shapes import COUNTS
from minids3.kernels import grouped, grouped_fp8, moe
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import aligned
from minids3.nn import Experts
from minids3.ops.moe import combine, dispatch, grouped_mm, plan_dispatch
from minids3.ref.activation import swiglu_ref
from minids3.ref.quant import TILE, block_quantize_ref, dequantize_ref, quantize_ref


def counts_of(name, device):
    return torch.tensor(COUNTS[name], device=device)


def randn(*shape, device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


def loop(x, weight, counts):
    """Each expert's rows times its matrix, transposed, in fp64."""
    stretches = x.double().split(counts.tolist())
    return torch.cat([s @ w.double().T for s, w in zip(stretches, weight, strict=True)])


def loop_wgrad(grad, x, counts):
    pairs = zip(
        grad.double().split(counts.tolist()), x.double().split(counts.tolist()), strict=True
    )
    return torch.stack([g.T @ s for g, s in pairs])


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


# the tile map -----------------------------------------------------------------------------------


@jit
def _map_kernel(counts_ptr, out_ptr, n_experts, BLOCK_M: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    expert, first, end = grouped.find_tile(counts_ptr, tile, n_experts, BLOCK_M, E_PAD)
    tl.store(out_ptr + tile * 3, expert)
    tl.store(out_ptr + tile * 3 + 1, first)
    tl.store(out_ptr + tile * 3 + 2, end)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("block", [16, 64])
def test_the_tiles_cover_each_row_once_and_never_two_experts(device, name, block):
    counts = counts_of(name, device)
    total, experts = int(counts.sum()), len(counts)
    launched = grouped.most_tiles(total, experts, block)
    out = torch.zeros(launched, 3, dtype=torch.int32, device=device)
    pad = grouped.power_of_two_from(experts)
    _map_kernel[(launched,)](counts, out, experts, BLOCK_M=block, E_PAD=pad)
    owner = torch.arange(experts).repeat_interleave(counts.cpu())
    seen = torch.zeros(total, dtype=torch.int64)
    for expert, first, end in out.tolist():
        if expert >= experts:
            continue
        rows = slice(first, min(first + block, end))
        assert rows.stop > rows.start
        assert bool((owner[rows] == expert).all())
        seen[rows] += 1
    assert bool((seen == 1).all())
    used = int((out[:, 0] < experts).sum())
    assert used == sum(-(-n // block) for n in COUNTS[name]) <= launched


# grouped products -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in kernel_shapes.GROUPED.checked),
        (kernel_shapes.GROUPED.checked[-1], torch.float16),
    ],
)
def test_grouped_products_equal_the_loop(device, guard, shape, dtype):
    per_expert, n, k = shape
    counts = torch.tensor(per_expert, device=device)
    m, e = sum(per_expert), len(per_expert)
    x = randn(m, k, device=device, dtype=dtype)
    weight = randn(e, n, k, device=device, dtype=dtype)
    grad = randn(m, n, device=device, dtype=dtype, seed=1)
    got = (
        grouped.grouped_gemm_nt(x, weight, counts),
        grouped.grouped_gemm_nn(grad, weight, counts),
        grouped.grouped_wgrad(grad, x, counts),
    )
    assert guard.intact()
    want = (
        loop(x, weight, counts),
        loop(grad, weight.transpose(1, 2), counts),
        loop_wgrad(grad, x, counts),
    )
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert not bool(a.isnan().any())
        assert relative(a, b) < (1e-6 if dtype == torch.float32 else 6e-4)
    assert bool((got[2][counts.cpu() == 0] == 0).all())


def test_sides_of_whole_blocks_take_the_path_without_masks(device):
    counts = torch.tensor([3, 0, 61], device=device)
    x, weight = randn(64, 128, device=device), randn(3, 128, 128, device=device)
    grad = randn(64, 128, device=device, seed=3)
    assert relative(grouped.grouped_gemm_nt(x, weight, counts), loop(x, weight, counts)) < 1e-6
    want = loop(grad, weight.transpose(1, 2), counts)
    assert relative(grouped.grouped_gemm_nn(grad, weight, counts), want) < 1e-6


@pytest.fixture
def engine(monkeypatch):
    """Switches the copy engine off (False) or on for whatever it could fetch (True)."""

    def switch(on):
        for module in (grouped, grouped_fp8):
            monkeypatch.setattr(
                module, "copy_engine", lambda *given: on and all(map(aligned, given))
            )

    return switch


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("n", "k"), [(88, 72), (128, 128)])
def test_whole_tiles_give_the_same_as_addresses(device, guard, engine, name, n, k):
    counts = counts_of(name, device)
    m, e = int(counts.sum()), len(counts)
    half = {"device": device, "dtype": torch.float16}
    x, weight, grad = randn(m, k, **half), randn(e, n, k, **half), randn(m, n, seed=1, **half)
    a = [t.to(device) for t in quantize_ref(randn(m, k, seed=2))]
    b = [t.to(device) for t in quantized_weights(randn(e, n, k, seed=3))]
    a[0], b[0] = a[0][:, :64].contiguous(), b[0][..., :64].contiguous()  # rows of 16 bytes
    across = moe.grouped_quant_transposed(grad, counts), moe.grouped_quant_transposed(x, counts)
    results = []
    for on in (False, True):
        engine(on)
        results.append(
            (
                grouped.grouped_gemm_nt(x, weight, counts),
                grouped.grouped_gemm_nn(grad, weight, counts),
                moe.fp8_grouped_gemm_nt(
                    a[0], a[1][:, :1].contiguous(), b[0], b[1][..., :1].contiguous(), counts
                ),
                moe.fp8_grouped_wgrad(*across[0], *across[1], counts),
            )
        )
        assert guard.intact()
    for by_address, by_tile in zip(*results, strict=True):
        assert not bool(by_tile.isnan().any())
        torch.testing.assert_close(by_tile, by_address, rtol=1e-5, atol=1e-5)


def test_a_tile_that_hangs_over_does_not_meet_the_next_expert(device, engine):
    counts = torch.tensor([40, 10], device=device)
    half = {"device": device, "dtype": torch.float16}
    weight, grad = randn(2, 88, 64, **half), randn(50, 88, **half)
    engine(True)
    want = grouped.grouped_gemm_nn(grad, weight, counts)[:40]
    weight[1] = float("nan")
    got = grouped.grouped_gemm_nn(grad, weight, counts)
    assert torch.equal(got[:40], want)
    assert bool(got[40:].isnan().all())


def test_fp32_is_not_fetched_by_tiles(device, monkeypatch):
    asked = []
    monkeypatch.setattr(grouped, "copy_engine", lambda *given: asked.append(given) or False)
    counts = torch.tensor([3, 5], device=device)
    x, weight = randn(8, 16, device=device), randn(2, 32, 16, device=device)
    grouped.grouped_gemm_nt(x, weight, counts)
    assert not asked
    grouped.grouped_gemm_nt(x.half(), weight.half(), counts)
    assert asked


def test_int32_counts_and_empty_inputs(device):
    x, weight = randn(5, 16, device=device), randn(2, 8, 16, device=device)
    few = torch.tensor([2, 3], dtype=torch.int32, device=device)
    assert relative(grouped.grouped_gemm_nt(x, weight, few), loop(x, weight, few)) < 1e-6
    none = torch.zeros(2, dtype=torch.int64, device=device)
    assert grouped.grouped_gemm_nt(x[:0], weight, none).shape == (0, 8)
    assert grouped.grouped_gemm_nn(x[:0, :8].contiguous(), weight, none).shape == (0, 16)
    empty = grouped.grouped_wgrad(x[:0, :8].contiguous(), x[:0], none)
    assert torch.equal(empty, torch.zeros_like(weight))
    thin = grouped.grouped_gemm_nt(x[:, :0].contiguous(), weight[..., :0].contiguous(), few)
    assert torch.equal(thin, torch.zeros(5, 8, device=device))


def test_what_does_not_fit_is_refused(device):
    x, weight = randn(5, 16, device=device), randn(2, 8, 16, device=device)
    counts = torch.tensor([2, 3], device=device)
    with pytest.raises(ValueError, match=r"expected \[M, K\], \[E, N, K\]"):
        grouped.grouped_gemm_nt(x[:, :8].contiguous(), weight, counts)
    with pytest.raises(ValueError, match="one dtype"):
        grouped.grouped_gemm_nt(x.half(), weight, counts)
    with pytest.raises(ValueError, match="weight is not contiguous"):
        grouped.grouped_gemm_nt(x, weight.transpose(1, 2), counts)
    with pytest.raises(ValueError, match="expected float8_e4m3fn"):
        moe.fp8_grouped_gemm_nt(x, x, weight, weight, counts)
    with pytest.raises(ValueError, match=r"expected \[N, D\] and \[N \* top_k\]"):
        moe.permute(x, inverse=counts, top_k=2)


# E4M3 -------------------------------------------------------------------------------------------


def quantized_weights(weight):
    pairs = [block_quantize_ref(w) for w in weight]
    return torch.stack([q for q, _ in pairs]), torch.stack([s for _, s in pairs])


def read(q, scale, block):
    return dequantize_ref(q.cpu(), scale.cpu(), block).double()


@pytest.mark.parametrize("name", ["ragged", "all in the last", "more experts than rows"])
@pytest.mark.parametrize(("n", "k"), [(90, 128), (200, 200)])
def test_grouped_fp8_equals_the_loop_over_the_same_bytes(device, guard, name, n, k):
    counts = counts_of(name, device)
    x, weight = randn(int(counts.sum()), k), randn(len(counts), n, k)
    x[:, :64] *= 30  # scales differ from block to block
    a, b = quantize_ref(x), quantized_weights(weight)
    given = [t.to(device) for t in (*a, *b)]
    got = moe.fp8_grouped_gemm_nt(*given, counts, out_dtype=torch.float32)
    assert guard.intact()
    dense = torch.stack([read(q, s, (128, 128)) for q, s in zip(*b, strict=True)])
    want = loop(read(*a, TILE), dense, counts)
    assert relative(got.cpu(), want) < sum_error(device)
    assert relative(got.cpu(), loop(x, weight, counts)) < 0.05  # what E4M3 costs


@pytest.mark.parametrize("name", ["ragged", "more experts than rows"])
@pytest.mark.parametrize("kept_in_fp8", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_transposed_tiles_start_anew_at_each_expert(device, name, kept_in_fp8, power_of_two):
    counts = counts_of(name, device)
    x = randn(int(counts.sum()), 200)
    scale = None
    given = x
    if kept_in_fp8:
        given, scale = quantize_ref(x)
        x = dequantize_ref(given, scale)
    q, new = moe.grouped_quant_transposed(
        given.to(device), counts, None if scale is None else scale.to(device), power_of_two
    )
    tiles = sum(-(-n // 128) for n in COUNTS[name])
    assert q.shape[1] == 128 * grouped.most_tiles(len(x), len(counts), 128) >= 128 * tiles
    padded = [
        torch.cat((s, s.new_zeros(-len(s) % 128, 200)))
        for s in x.split(list(COUNTS[name]))
        if len(s)
    ]
    want_q, want_scale = quantize_ref(torch.cat(padded).T.contiguous(), TILE, power_of_two)
    assert torch.equal(new[:, :tiles].cpu(), want_scale)
    got_q = q[:, : tiles * 128].cpu()
    assert torch.equal(got_q.view(torch.uint8), want_q.view(torch.uint8))


@pytest.mark.parametrize("name", ["ragged", "one expert", "more experts than rows"])
def test_fp8_weight_gradient_equals_the_loop_over_the_same_bytes(device, guard, name):
    counts = counts_of(name, device)
    m, n, k = int(counts.sum()), 100, 72
    grad, x = randn(m, n, seed=1).to(device), randn(m, k).to(device)
    gq, gs = moe.grouped_quant_transposed(grad, counts)
    xq, xs = moe.grouped_quant_transposed(x, counts)
    got = moe.fp8_grouped_wgrad(gq, gs, xq, xs, counts).cpu()
    assert guard.intact()
    tile, want = 0, []
    for rows in COUNTS[name]:
        tiles = -(-rows // 128)
        own = slice(tile * 128, (tile + tiles) * 128)
        g = read(gq[:, own], gs[:, tile : tile + tiles], TILE) if tiles else torch.zeros(n, 0)
        r = read(xq[:, own], xs[:, tile : tile + tiles], TILE) if tiles else torch.zeros(k, 0)
        want.append(g.double() @ r.double().T)
        tile += tiles
    assert relative(got, torch.stack(want)) < sum_error(device)
    assert relative(got, loop_wgrad(grad.cpu(), x.cpu(), counts)) < 0.06


# SwiGLU into E4M3 -------------------------------------------------------------------------------


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("m", "f"), kernel_shapes.SWIGLU_QUANT.checked)
def test_swiglu_quant(device, guard, m, f, power_of_two):
    x = randn(m, 2 * f) * 4
    q, scale = moe.swiglu_quant(x.to(device), power_of_two)
    assert guard.intact()
    h = swiglu_ref(*x.chunk(2, -1))
    want_q, want_scale = quantize_ref(h, TILE, power_of_two)
    torch.testing.assert_close(scale.cpu(), want_scale, rtol=1e-6, atol=0)
    # exp may differ in its last bit, which moves a number across a rounding boundary now and then
    changed = q.cpu().view(torch.uint8) != want_q.view(torch.uint8)
    assert float(changed.float().mean()) < 0.003
    error = (dequantize_ref(q.cpu(), scale.cpu()) - h).abs()
    step = scale.cpu().repeat_interleave(128, 1)[:, :f]
    assert bool((error <= torch.maximum(h.abs() * 2**-4, step * 2**-10) * 1.001).all())


def test_swiglu_quant_of_zeros_infinities_and_nan(device):
    x = torch.ones(3, 256)
    x[0] = 0.0
    x[1, 5], x[1, 128 + 7], x[2, 9] = torch.inf, -torch.inf, torch.nan
    q, scale = moe.swiglu_quant(x.to(device))
    h = swiglu_ref(*x.chunk(2, -1))
    want_q, want_scale = quantize_ref(h)
    torch.testing.assert_close(scale.cpu(), want_scale)
    assert float(scale[0, 0]) == 1.0
    torch.testing.assert_close(q.cpu().float(), want_q.float(), equal_nan=True)


def test_swiglu_quant_reads_half_precision_without_rounding_the_product(device):
    x = (randn(9, 400) * 3).half()
    q, scale = moe.swiglu_quant(x.to(device))
    want_q, want_scale = quantize_ref(swiglu_ref(*x.float().chunk(2, -1)))
    torch.testing.assert_close(scale.cpu(), want_scale, rtol=1e-6, atol=0)
    changed = q.cpu().view(torch.uint8) != want_q.view(torch.uint8)
    assert float(changed.float().mean()) < 0.003


# rows -------------------------------------------------------------------------------------------


def routing(n, e, k, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(n, e, generator=generator).argsort(1)[:, :k]
    weights = torch.rand(n, k, generator=generator)
    return indices.to(device), weights.to(device)


@pytest.mark.parametrize(("n", "e", "k", "d"), kernel_shapes.ROWS.checked)
def test_rows_out_and_back(device, guard, n, e, k, d):
    indices, weights = routing(n, e, k, device)
    plan = plan_dispatch(indices, e)
    x, y = randn(n, d, device=device), randn(n * k, d, device=device)
    rows = moe.permute(x, inverse=plan.inverse, top_k=k)
    back = moe.unpermute(y, weights, plan.inverse)
    grad = randn(n, d, device=device, seed=5)
    grad_y, grad_weights = moe.combine_bwd(grad, y, weights, inverse=plan.inverse)
    assert guard.intact()
    assert torch.equal(rows, x[plan.order // k])
    pairs = y[plan.inverse].view(n, k, d)
    torch.testing.assert_close(back, (pairs * weights[..., None]).sum(1))
    want = (weights[..., None] * grad[:, None]).flatten(0, 1)[plan.order]
    torch.testing.assert_close(grad_y, want)
    torch.testing.assert_close(grad_weights, (pairs * grad[:, None]).sum(-1), atol=1e-4, rtol=1e-4)


def test_bytes_and_scales_travel_as_well(device):
    indices, _ = routing(6, 4, 2, device)
    plan = plan_dispatch(indices, 4)
    q, scale = (t.to(device) for t in quantize_ref(randn(6, 130)))
    rows = moe.permute(q, inverse=plan.inverse, top_k=2)
    assert rows.dtype == q.dtype
    assert torch.equal(rows.view(torch.uint8), q.view(torch.uint8)[plan.order // 2])
    scales = moe.permute(scale, inverse=plan.inverse, top_k=2)
    assert torch.equal(scales, scale[plan.order // 2])


def test_no_tokens(device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    x = randn(0, 8, device=device)
    assert moe.permute(x, inverse=none, top_k=2).shape == (0, 8)
    weights = randn(0, 2, device=device)
    assert moe.unpermute(x, weights, none).shape == (0, 8)
    assert moe.combine_bwd(x, x, weights, inverse=none)[0].shape == (0, 8)


# the operations ---------------------------------------------------------------------------------


def test_a_layer_on_kernels_has_the_values_and_gradients_of_the_reference(device):
    torch.manual_seed(0)
    indices, weights = routing(19, 6, 2, device)
    indices[indices == 4] = 5  # nobody asks expert 4
    inputs = (
        randn(19, 24, device=device),
        randn(6, 36, 24, device=device),
        randn(6, 24, 18, device=device),
        weights,
    )
    plan = plan_dispatch(indices, 6)
    assert int(plan.counts[4]) == 0
    outcomes = []
    for backend in ("ref", "triton"):
        x, up, down, w = leaves = [t.clone().requires_grad_() for t in inputs]
        rows = dispatch(x, plan, backend=backend)
        gate, value = grouped_mm(rows, up, plan.counts, backend=backend).chunk(2, -1)
        h = torch.nn.functional.silu(gate) * value
        out = combine(grouped_mm(h, down, plan.counts, backend=backend), w, plan, backend=backend)
        out.square().sum().backward()
        outcomes.append([out.detach(), *(t.grad for t in leaves)])
    for ours, theirs in zip(outcomes[1], outcomes[0], strict=True):
        assert relative(ours, theirs.double()) < 2e-6


def test_only_the_gradients_that_are_wanted(device):
    counts = torch.tensor([2, 0, 3], device=device)
    x, weight = randn(5, 8, device=device), randn(3, 4, 8, device=device).requires_grad_()
    grouped_mm(x, weight, counts, backend="triton").sum().backward()
    assert bool((weight.grad[1] == 0).all())
    assert x.grad is None


def test_auto_is_plain_pytorch_on_a_cpu(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a kernel was launched")

    for name in ("permute", "unpermute", "combine_bwd"):
        monkeypatch.setattr(moe, name, refuse)
    for name in ("grouped_gemm_nt", "grouped_gemm_nn", "grouped_wgrad"):
        monkeypatch.setattr(grouped, name, refuse)
    from minids3.config import get_config

    cfg = get_config("tiny", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    experts = Experts(cfg)
    indices, weights = routing(7, 4, 2, "cpu")
    experts(randn(7, cfg.hidden_size), indices, weights).sum().backward()
    with pytest.raises(ValueError, match="backend='cuda'"):
        dispatch(randn(7, 8), plan_dispatch(indices, 4), backend="cuda")
