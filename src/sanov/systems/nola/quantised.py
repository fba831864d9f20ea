"""Coefficients in 16, 8 or 4 bits: symmetric, one scale a vector, and the derivative that training takes through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["BITS", "Bits", "dequantised", "packed", "quantised", "straight_through", "unpacked"]

Bits = Literal[32, 16, 8, 4]
BITS = (32, 16, 8, 4)
LEVELS = {8: 127, 4: 7}  # largest code: as many below zero as above


def quantised(vector: Float[Tensor, " count"], bits: Bits) -> tuple[Int8[Tensor, " count"], Float[Tensor, ""]]:
    """Return whole numbers and the scale that turns them back into the vector, within half a step.

    Parameters
    ----------
    vector
        Any finite numbers.
    bits
        8 (codes -127 to 127) or 4 (-7 to 7).

    Returns
    -------
    Codes and scale: the largest size in the vector is the largest code.
    """
    wide = vector.detach().float()
    scale = wide.abs().amax() / LEVELS[bits] if len(wide) else wide.new_zeros(())
    codes = torch.where(scale > 0, wide / scale.clamp_min(torch.finfo(torch.float32).tiny), 0.0).round()
    return codes.clamp(-LEVELS[bits], LEVELS[bits]).to(torch.int8), scale


def dequantised(codes: Int8[Tensor, " count"], scale: Float[Tensor, ""]) -> Float[Tensor, " count"]:
    """Return codes times their scale, in float32."""
    return codes.float() * scale


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, bits: Bits) -> Tensor:
        if bits == 16:
            return vector.half().to(vector.dtype)
        return dequantised(*quantised(vector, bits)).to(vector.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(vector: Float[Tensor, " count"], bits: Bits) -> Float[Tensor, " count"]:
    """Return what a vector will be once stored in so many bits, with the gradient of the vector itself.

    Parameters
    ----------
    vector
        Coefficients that are trained.
    bits
        In which they will be stored.
    """
    rounded: Tensor = vector if bits == 32 else _StraightThrough.apply(vector, bits)  # type: ignore[no-untyped-call]
    return rounded


def packed(codes: Int8[Tensor, " codes"], bits: Bits) -> UInt8[Tensor, " bytes"]:
    """Return codes as bytes: one each, or two 4-bit numbers in one, the first in its lower half."""
    if bits == 8:
        return codes.view(torch.uint8)
    even = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(torch.uint8) & 0xF
    return even[::2] | (even[1::2] << 4)


def unpacked(data: UInt8[Tensor, " bytes"], sizes: Sequence[int], bits: Bits) -> list[Int8[Tensor, " count"]]:
    """Return the codes of vectors of these sizes, which `packed` had laid one behind the other.

    Raises
    ------
    InputError
        There are more or fewer bytes.
    """
    total = sum(sizes)
    if len(data) != -(-total * bits // 8):
        expected = f"{-(-total * bits // 8):,} for {total:,} coefficients in {bits} bits"
        raise InputError(f"there are {len(data):,} bytes", where="coefficients", expected=expected)
    if bits == 8:
        return list(torch.split(data.view(torch.int8), list(sizes)))
    halves = torch.stack([data & 0xF, data >> 4], dim=1).flatten()[:total]
    return list(torch.split((halves.to(torch.int8) ^ 8) - 8, list(sizes)))
