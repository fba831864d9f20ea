"""The cost of moving one point onto another: a norm of their difference, for all pairs of two clouds.

`torch.cdist` works along the features of a pair. Where points have few of them and pairs are many, as with the outputs
of a classifier of two or three classes over a batch, that leaves most of a vector register empty; there, on a CPU, the
1-norm is taken one feature at a time, for all pairs at once. In orders above 2 the powers of differences underflow, and
at infinity `torch.cdist` gives each of several largest differences the whole gradient; there the differences are
divided by the largest one first. No way holds an array of all pairs and features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sanov.core.errors import InputError
from sanov.precision import first_derivative_only, wide_dtype

__all__ = ["pairwise_cost"]

# Where one feature at a time is faster than `torch.cdist`, measured on one core with AVX-512.
FEW_FEATURES, MANY_PAIRS = 3, 2**16
HELD = 2**20  # differences held at a time where they are divided by the largest: 4 MiB in float32
BLOCK = 2**17  # differences of one feature held at a time: 512 KiB in float32, which stay in the second-level cache


def pairwise_cost(
    x: Float[Tensor, "*batch n features"], y: Float[Tensor, "*batch m features"], p: float | int = 1
) -> Float[Tensor, "*batch n m"]:
    """Cost of all pairs of two clouds of points, D_ij = ||x_i - y_j||_p: the norm, not its p-th power.

    At a kink the gradient is a subgradient: for p = 1 the term of a feature in which two points agree adds 0, for p > 1
    the pair does if the two points are the same, and for p = infinity the largest differences share it evenly. For
    p = 1 and 2 the gradient has no derivative itself: ``create_graph=True`` is an error.

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
    dtype = wide_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    if p not in (1, 2):
        return _scaled_norms(x, y, float(p))
    few_features, many_pairs = x.shape[-1] <= FEW_FEATURES, x.shape[-2] * y.shape[-2] >= MANY_PAIRS
    if p == 1 and few_features and many_pairs and x.is_cpu:
        cost: Tensor = _Manhattan.apply(x, y)  # type: ignore[no-untyped-call]
        return cost
    # The shortcut through a matrix product loses all digits of near points, and with them the zero at a tie.
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def _scaled_norms(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Norms of all pairs, a block of rows at a time, which the backward pass computes once more."""
    step = max(1, HELD // max(1, math.prod(x.shape[:-2]) * y.shape[-2] * y.shape[-1]))
    costs = [checkpoint(_scaled_norm, rows, y, p, use_reentrant=False) for rows in torch.split(x, step, -2)]
    return torch.cat(costs, -2)


def _scaled_norm(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Largest difference, times the norm of the differences divided by it: no power overflows, nor vanishes if it counts."""
    differences = (x.unsqueeze(-2) - y.unsqueeze(-3)).abs()
    largest = differences.amax(-1)
    if p == math.inf:
        return largest
    largest = largest.detach()  # the norm does not depend on what it is computed relative to
    same = largest == 0
    total = (differences / largest.masked_fill(same, 1).unsqueeze(-1)).pow(p).sum(-1)
    return largest * total.masked_fill(same, 1).pow(1 / p)


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
    @first_derivative_only
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
