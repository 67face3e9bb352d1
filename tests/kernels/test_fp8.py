"""Software E4M3 inside a kernel: equal to the format's definition for every code and input."""

import pytest
import torch

from minids3 import numerics
from minids3.kernels.fp8 import decode_e4m3, encode_e4m3
from minids3.kernels.language import jit, tl


@jit
def _encode_kernel(x_ptr, code_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(code_ptr + i, encode_e4m3(x), mask=i < n)


@jit
def _decode_kernel(code_ptr, x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, decode_e4m3(tl.load(code_ptr + i, mask=i < n, other=0)), mask=i < n)


def encode(x):
    code = torch.zeros(x.numel(), dtype=torch.uint8, device=x.device)
    _encode_kernel[(-(-x.numel() // 4096),)](x, code, x.numel(), BLOCK=4096)
    return code.cpu().long()


def test_every_code_is_decoded_exactly(device):
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    got = torch.zeros(256, dtype=torch.float16, device=device)
    _decode_kernel[(1,)](codes, got, 256, BLOCK=256)
    want = numerics.decode(codes.cpu(), numerics.E4M3)
    torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(got[~got.isnan()].cpu()), torch.signbit(want[~want.isnan()]))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_of_number_is_encoded_as_defined(device, seed):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[~codes.isnan()].sort().values
    middles = (codes[1:] + codes[:-1]) / 2  # ties
    x = torch.cat(
        [
            bits.view(torch.float32),
            torch.randn(100_000, generator=generator) * 100,
            torch.randn(50_000, generator=generator) * 2**-8,
            codes,
            middles,
            torch.nextafter(middles, torch.tensor(torch.inf)),
            torch.nextafter(middles, torch.tensor(-torch.inf)),
            torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 448, 464, 465, 2**-10]),
        ]
    ).contiguous()
    got, want = encode(x.to(device)), numerics.encode(x, numerics.E4M3, saturate=True)
    nan = x.isnan()
    assert torch.equal(got[~nan], want[~nan])
    assert bool(((got[nan] & 0x7F) == 0x7F).all())
