"""Gradients of a loss of a transport plan by the cost: through the rounds that made it, or at their fixed point.

Both take the gradient by ``log P``, which is ``P * dL/dP``, and return the gradient by ``-cost / epsilon``. Shapes are
those of `kernel_scaling`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanov.kernel_scaling import gibbs_kernel, product_with, safe_range

__all__ = ["implicit_gradient", "unrolled_gradient"]

RIDGE = 1e-13


def unrolled_gradient(
    grad: Tensor,
    plan: Tensor,
    cost: Tensor,
    epsilon: float,
    marginals: tuple[Tensor, Tensor],
    history: tuple[Tensor, Tensor],
) -> Tensor:
    """Reverse mode through all half-steps, from the potentials after each round and log v before the first.

    A half-step of the rows, ``log u = log a - logsumexp_j(M + log v)`` with ``M = -cost / epsilon``, has the Jacobian
    ``-exp(log u + log v + M) / a`` by M and by log v. All those matrices are one kernel, scaled by vectors that the
    potentials give; so a half-step costs one product with it, and what they add to the gradient by M is the kernel
    times a matrix of as low a rank as there are half-steps. Where the vectors leave the safe range, the kernel is made
    anew. `grad` is overwritten.
    """
    log_us, log_vs = history
    row, column = marginals
    product, on_rows, on_columns = product_with(cost), torch.empty_like(row), torch.empty_like(column)
    on_u: Tensor | None = grad.sum(-1).view_as(row)
    on_v = grad.sum(-2).view_as(column)
    end, kernel = len(log_us), plan
    while end > 0:
        us, vs, kernel_of_rows = log_us[:end] - log_us[end - 1], log_vs[: end + 1] - log_vs[end], kernel
        start = _segment_start(us, vs)
        if start == end:  # within one round v went so far that the two half-steps need a kernel each
            start = end - 1
            kernel_of_rows = gibbs_kernel(cost, epsilon, log_us[start], log_vs[start])
            vs = torch.zeros_like(vs)
        us, vs = us[start:].exp_(), vs[start:].exp_()
        of_rows, of_columns = us.square().div_(-row), vs[1:].square().div_(-column)
        transposed, lefts, rights = kernel_of_rows.mT, list[Tensor](), list[Tensor]()
        # Carried on: the gradient by log v over -v, or that by log u over -u; at the end v and u are 1.
        carried = -on_v
        for of_row, of_column in zip(reversed(of_rows.unbind()), reversed(of_columns.unbind()), strict=True):
            right = of_column * carried
            carried = product(kernel, right, out=on_rows)
            if on_u is not None:
                carried, on_u = carried.sub_(on_u), None
            left = of_row * carried
            carried = product(transposed, left, out=on_columns)
            rights.append(right)
            lefts.append(left)
        on_v = -vs[0] * carried
        grad.addcmul_(kernel, _sum_of_outer(us, torch.stack(rights[::-1])), value=-1)
        grad.addcmul_(kernel_of_rows, _sum_of_outer(torch.stack(lefts[::-1]), vs[:-1]), value=-1)
        end = start
        if end > 0:
            kernel = gibbs_kernel(cost, epsilon, log_us[end - 1], log_vs[end])
    return grad


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


def _segment_start(drift_u: Tensor, drift_v: Tensor) -> int:
    """Index of the first round from which on all potentials, before and after it, stay near the last ones."""
    drift = torch.cat([drift_u.flatten(1), drift_v[:-1].flatten(1)], 1).abs_().amax(1).tolist()
    largest = safe_range(drift_u.dtype)
    return next((place + 1 for place in reversed(range(len(drift))) if drift[place] > largest), 0)


def _sum_of_outer(lefts: Tensor, rights: Tensor) -> Tensor:
    """Sum over rounds of left right', from [rounds, n] and [rounds, m] or [rounds, batch, n, 1] and so on."""
    if lefts.ndim == 2:
        return lefts.T @ rights
    return lefts.squeeze(-1).movedim(0, -1) @ rights.squeeze(-1).movedim(0, -2)
