"""The cost of moving one point onto another: a norm of their difference, for all pairs of two clouds.

`torch.cdist` works along the features of a pair. Where points have few of them and pairs are many, as with the outputs
of a classifier of two or three classes over a batch, that leaves most of a vector register empty; there the 1-norm is
taken one feature at a time, for all pairs at once. Neither way holds an array of all pairs and features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sanov.core.errors import InputError

__all__ = ["pairwise_cost"]

# Where one feature at a time is faster than `torch.cdist`, measured on one core with AVX-512.
FEW_FEATURES, MANY_PAIRS = 3, 2**16
BLOCK = 2**17  # differences held at a time: 512 KiB in float32, which stay in the second-level cache


def pairwise_cost(
    x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch m features"], p: float | int = 1
) -> Float[Tensor, "*batch n m"]:
    """Cost of all pairs of two clouds of points, D_ij = ||x_i - y_j||_p: the norm, not its p-th power.

    At a kink the gradient is a subgradient: for p = 1 the term of a feature in which two points agree adds 0, for p > 1
    the pair does if the two points are the same. The result can be differentiated once.

    Parameters
    ----------
    x
        Points of the first cloud, [*batch, n, features].
    y
        Points of the second cloud, [*batch, m, features].
    p
        Order of the norm, at least 1; ``math.inf`` is the largest absolute difference.

    Returns
    -------
    The cost, [*batch, n, m], float32 or wider: half precision is computed in float32.

    Raises
    ------
    InputError
        If p is below 1, or the two clouds have different numbers of features or leading axes.

    Reference
    ---------
    cui2024sinkd (whose cost is p = 1).
    """
    if not p >= 1:
        raise InputError(f"the order of the norm is {p}", where="p", expected="a number of at least 1")
    if x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        found = f"clouds of shapes {list(x.shape)} and {list(y.shape)}"
        raise InputError(found, where="pairwise_cost", expected="equal leading axes and equal numbers of features")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    if p == 1 and x.shape[-1] <= FEW_FEATURES and x.shape[-2] * y.shape[-2] >= MANY_PAIRS:
        cost: Tensor = _Manhattan.apply(x, y)  # type: ignore[no-untyped-call]
        return cost
    # The shortcut through a matrix product loses all digits of near points, and with them the zero at a tie.
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")


class _Manhattan(torch.autograd.Function):
    """The 1-norm, one feature at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        cost = x.new_zeros(*x.shape[:-1], y.shape[-2])
        for rows, features, buffer in _blocks(x, y):
            total = cost[..., rows, :]
            for left, right in features:
                total += torch.sub(left, right, out=buffer).abs_()
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        of_x, of_y = (
            torch.zeros_like(z) if need else None for z, need in zip((x, y), ctx.needs_input_grad, strict=True)
        )
        for rows, features, buffer in _blocks(x, y):
            above = grad[..., rows, :]
            for feature, (left, right) in enumerate(features):
                signed = torch.sub(left, right, out=buffer).sign_().mul_(above)
                if of_x is not None:
                    torch.sum(signed, -1, out=of_x[..., rows, feature])
                if of_y is not None:
                    of_y[..., feature] -= signed.sum(-2)
        return of_x, of_y


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, list[tuple[Tensor, Tensor]], Tensor]]:
    """Rows of x; each feature of them as a column and of y as a row; room for their difference."""
    n, m = x.shape[-2], y.shape[-2]
    step = max(1, BLOCK // max(1, math.prod(x.shape[:-2]) * m))
    columns, right = x.unsqueeze(-1), y.mT.contiguous().unsqueeze(-2).unbind(-3)
    buffer = x.new_empty(*x.shape[:-2], min(step, n), m)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        left = columns[..., rows, :, :].unbind(-2)
        yield rows, list(zip(left, right, strict=True)), buffer[..., : rows.stop - start, :]
