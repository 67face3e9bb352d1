"""Adding up with few bits, as Hopper's tensor cores do for FP8.

One instruction multiplies 32 pairs, aligns the products to the largest exponent among them and the
running sum, cuts what lies more than 13 fraction bits below it, and adds: about 14 bits survive
(TR section 3.5.2; ISCA section 3.1: FP22 registers, 1 + 8 + 13). Over a long K the cut-off parts
add up. The cure is to move the sum to an FP32 register every N_C = 128 products (TR section 3.3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cut", "limited_matmul"]


def limited_matmul(
    a: Tensor,
    b: Tensor,
    fraction_bits: int = 13,
    step: int = 32,
    promote_every: int | None = None,
) -> Tensor:
    """Product ``a @ b`` with an accumulator of few bits.

    The emulation is of the described rule, not of an undocumented circuit: products are exact,
    the cut is towards zero, the sum of the aligned terms is cut once more when stored.

    Args:
        a: ``[M, K]``, numbers of an FP8 format (any floating dtype; products must be exact in
            fp64).
        b: ``[K, N]``.
        fraction_bits: kept below the leading bit of the largest term.
        step: products added by one instruction.
        promote_every: add the accumulator to an fp32 sum and empty it after so many products, a
            multiple of ``step``; None: never.

    Returns:
        ``[M, N]`` fp32.

    Raises:
        ValueError: shapes do not fit, or ``promote_every`` is no multiple of ``step``.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"cannot multiply {list(a.shape)} by {list(b.shape)}")
    if promote_every is not None and (promote_every < step or promote_every % step):
        raise ValueError(f"promote_every={promote_every} must be a multiple of step={step}")
    a, b = a.double(), b.double()
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float32, device=a.device)
    register = total.double()
    for start in range(0, a.shape[1], step):
        products = a[:, start : start + step, None] * b[None, start : start + step]
        terms = torch.cat((products, register[:, None]), 1)  # [M, step + 1, N]
        aligned = cut(terms, terms.abs().amax(1, keepdim=True), fraction_bits)
        register = aligned.sum(1)
        register = cut(register, register, fraction_bits)
        done = start + step
        if promote_every is not None and done % promote_every == 0:
            total += register.float()
            register = torch.zeros_like(register)
    return total + register.float()


def cut(x: Tensor, largest: Tensor, fraction_bits: int = 13) -> Tensor:
    """``x`` cut towards zero to the grid that ``largest`` has with so many fraction bits.

    Where the leading bit of ``largest`` stands for 2^e, everything below 2^(e - fraction_bits) is
    dropped. With ``largest = x`` this shortens each number by itself.

    Args:
        x: any floating dtype; exact in fp64.
        largest: broadcast against ``x``; the sign does not count.
        fraction_bits: kept below the leading bit.

    Returns:
        the dtype and broadcast shape of ``x``.
    """
    _, power = torch.frexp(largest)  # largest = [0.5, 1) * 2^power, leading bit 2^(power - 1)
    shift = fraction_bits + 1 - power
    return torch.ldexp(torch.ldexp(x, shift).trunc(), -shift)
