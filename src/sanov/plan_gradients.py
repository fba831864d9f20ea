"""Gradients of a loss of a transport plan by the cost: through the rounds that made it, or at their fixed point.

Both take the gradient by ``log P``, which is ``P * dL/dP``, and return the gradient by ``-cost / epsilon``. Shapes are
those of `kernel_scaling`.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

from sanov.kernel_scaling import gibbs_kernel, product_with, safe_range

__all__ = ["implicit_gradient", "unrolled_gradient"]

RIDGE = 1e-13


def unrolled_gradient(
    grad: Tensor,
    cost: Tensor,
    epsilon: float,
    marginals: tuple[Tensor, Tensor],
    history: tuple[Tensor, Tensor],
) -> Tensor:
    """Reverse mode through all half-steps, from the potentials after each round.

    A half-step of the rows, ``log u = log a - logsumexp_j(M + log v)`` with ``M = -cost / epsilon``, has the Jacobian
    ``-exp(log u + log v + M) / a`` by M and by log v. All those matrices are one kernel, scaled by vectors that the
    potentials give; so a half-step costs one product with it, and what they add to the gradient by M is the kernel
    times a matrix of as low a rank as there are half-steps. Where the vectors leave the safe range, the kernel is made
    anew. `grad` is overwritten.
    """
    log_us, log_vs = _half_steps(history)
    row, column = marginals
    product = product_with(cost)
    # Gradients by log v and by log u, over minus v and u, which are 1 on top of the last kernel.
    carried, pending = grad.sum(-2).view_as(column).neg_(), grad.sum(-1).view_as(row).neg_()
    end = len(log_us)
    while end > 0:
        base_u, base_v = log_us[end - 1], log_vs[end - 1]
        kernel = gibbs_kernel(cost, epsilon, base_u, base_v)
        us, vs = log_us[:end] - base_u, log_vs[:end] - base_v
        start = _segment_start(us, vs)
        us, vs = us[start:].exp_(), vs[start:].exp_()
        half_steps = _weighted(kernel, us, vs, row, column, first=start % 2)
        for matrix, weight, slot in reversed(half_steps):
            carried = product(matrix, torch.mul(weight, carried, out=slot))
            if pending is not None:
                carried, pending = carried.add_(pending), None
        carried *= us[0] if start % 2 else vs[0]
        grad.addcmul_(kernel, torch.matmul(_columns(us), _columns(vs).mT), value=-1)
        end = start
    return grad


def _weighted(
    kernel: Tensor, us: Tensor, vs: Tensor, row: Tensor, column: Tensor, *, first: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The matrix of each half-step, what it weights the gradient with, and where that product goes.

    With the products in their places, ``us vs'`` times the kernel is minus the gradient by M.
    """
    half_steps: list[tuple[Tensor, Tensor, Tensor]] = [(kernel, row, row)] * len(us)
    for matrix, vectors, marginal, place in ((kernel.mT, us, row, first), (kernel, vs, column, 1 - first)):
        slots = vectors[place::2]
        weights = slots.square().div_(-marginal)
        half_steps[place::2] = zip(repeat(matrix), weights.unbind(), slots.unbind(), strict=False)
    return half_steps


def implicit_gradient(grad: Tensor, plan: Tensor) -> Tensor:
    """Exact gradient at the fixed point, where the plan depends on the cost alone.

    Row and column sums of the plan are constant; so if ``-cost / epsilon`` moves, the potentials move such that they
    stay. The adjoint of that linear system has n + m unknowns; those that belong to the longer side are eliminated. A
    constant may pass between the two potentials: that direction is removed by adding ``r r'``, r the row sums, which
    moves no solution since the right-hand side sums to 0. Solved in float64 with a relative ridge of 1e-13, for plans
    that are nearly permutations, where what remains is nearly 0.
    """
    if plan.shape[-2] > plan.shape[-1]:
        return implicit_gradient(grad.mT, plan.mT).mT
    wide, wide_grad = plan.double(), grad.double()
    rows, columns = wide.sum(-1, keepdim=True), wide.sum(-2, keepdim=True)
    grad_rows, grad_columns = wide_grad.sum(-1, keepdim=True), wide_grad.sum(-2, keepdim=True)
    shares = wide / columns
    system = torch.diag_embed(rows.squeeze(-1) * (1 + RIDGE)) - shares @ wide.mT + rows @ rows.mT
    on_rows: Tensor = torch.linalg.solve(system, grad_rows - shares @ grad_columns.mT)
    on_columns = (grad_columns - on_rows.mT @ wide) / columns
    return grad - (wide * (on_rows + on_columns)).to(grad.dtype)


def _half_steps(history: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Potentials on which each half-step's Jacobian stands, in order: rows at even places, columns at odd ones."""
    log_us, log_vs = (potentials.repeat_interleave(2, 0) for potentials in history)
    return log_us, torch.cat([torch.zeros_like(log_vs[:1]), log_vs[:-1]])


def _segment_start(drift_u: Tensor, drift_v: Tensor) -> int:
    """Index of the first half-step from which on all potentials stay within the safe range of the last one's."""
    drift = torch.maximum(drift_u.abs().flatten(1).amax(1), drift_v.abs().flatten(1).amax(1))
    outside = torch.nonzero(drift > safe_range(drift.dtype))
    return int(outside[-1]) + 1 if len(outside) else 0


def _columns(vectors: Tensor) -> Tensor:
    """Vectors of all steps, [steps, n] or [steps, batch, n, 1], as columns, [n, steps] or [batch, n, steps]."""
    return vectors.T if vectors.ndim == 2 else vectors.squeeze(-1).movedim(0, -1)
