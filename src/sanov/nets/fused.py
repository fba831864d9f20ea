"""Pieces of a decoder whose gradients are written by hand, because on a CPU the many small steps of autograd cost more."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sanov.precision import first_derivative_only

__all__ = ["gated", "root_norm", "turned"]


def root_norm(
    x: Float[Tensor, "*places width"], gain: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*places width"]:
    """Divide states by the root of their mean square, and multiply them by a gain.

    Parameters
    ----------
    x
        The states.
    gain
        A factor for each entry.
    eps
        Added to the mean square.

    Reference
    ---------
    zhang2019root, eq. 4.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return functional.rms_norm(x, gain.shape, gain, eps)  # one kernel, which minds half precision
    normed: Tensor = _RootNorm.apply(x, gain, eps)  # type: ignore[no-untyped-call]
    return normed


class _RootNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, scale, gain)
        return normed * gain

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, gain = ctx.saved_tensors
        by_gain = (grad * normed).flatten(0, -2).sum(dim=0)
        by_normed = grad * gain
        along = torch.linalg.vecdot(by_normed, normed).div_(-normed.shape[-1])[..., None]
        return by_normed.addcmul_(normed, along).mul_(scale), by_gain, None


def turned(
    x: Float[Tensor, "places heads size"], cos: Float[Tensor, "places 1 size"], sin: Float[Tensor, "places 1 size"]
) -> Float[Tensor, "places heads size"]:
    """Turn pairs of entries by an angle: entry i of a head with entry i + size / 2.

    Parameters
    ----------
    x
        Queries or keys.
    cos, sin
        Of the angles, each twice; the sines of the first half negated.

    Reference
    ---------
    su2024roformer, eq. 34, with the pairs that the Llama family takes.
    """
    result: Tensor = _Turned.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return result


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        result: Tensor = (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turned.apply(grad, cos, -sin), None, None  # type: ignore[no-untyped-call]


def gated(gate: Float[Tensor, "*places units"], up: Float[Tensor, "*places units"]) -> Float[Tensor, "*places units"]:
    """Return ``silu(gate) * up``; what the backward pass needs of it is computed again there, and not kept.

    Parameters
    ----------
    gate, up
        What the two maps of a gated perceptron give.

    Reference
    ---------
    shazeer2020glu, eq. 6.
    """
    product: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate: Tensor = torch.ops.aten.silu_backward(grad * up, gate)
        return by_gate, functional.silu(gate).mul_(grad)
