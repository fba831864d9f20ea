"""Entropic optimal transport between two clouds of points, from the matrix of their costs.

Of all plans P >= 0 with row sums a and column sums b, of total mass 1, the entropic one minimises::

    <P, D> + epsilon sum_ij P_ij log P_ij

It is ``P_ij = exp((f_i + g_j - D_ij) / epsilon)``, and Sinkhorn's iteration finds its potentials f and g by setting the
row sums and the column sums right in turn. SinKD sums over plans with unit marginals: its loss is the number of rows
times ``<P, D>`` here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.ground_cost import pairwise_cost
from sanov.kernel_scaling import Scaling, scale
from sanov.plan_gradients import implicit_gradient, unrolled_gradient
from sanov.precision import first_derivative_only, wide_dtype, widen

__all__ = ["Plan", "pairwise_cost", "sinkhorn", "sinkhorn_divergence", "sorted_transport_1d"]

Gradient = Literal["unroll", "envelope", "implicit"]


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """A transport plan of total mass 1, and what it costs.

    Attributes
    ----------
    plan
        P, [*batch, n, m]. Column sums are right to rounding, row sums to `marginal_error`.
    cost
        <P, D>, [*batch].
    ground_cost
        D, [*batch, n, m].
    potentials
        f, [*batch, n], and g, [*batch, m], in the unit of the cost. Constants for the gradient.
    marginal_error
        sum_i |sum_j P_ij - a_i|, [*batch], from 0 to 2: the L1 error of the row sums. A constant for the gradient.
    iterations
        Rounds done.
    """

    plan: Float[Tensor, "*batch n m"]
    cost: Float[Tensor, "*batch"]
    ground_cost: Float[Tensor, "*batch n m"]
    potentials: tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]
    marginal_error: Float[Tensor, "*batch"]
    iterations: int

    @property
    def regularised_cost(self) -> Float[Tensor, "*batch"]:
        """<P, D> + epsilon sum P log P, [*batch]; it equals <P, f + g>.

        It is below `cost` by epsilon times the plan's entropy. With epsilon KL(P || a b') as the second term it would
        be larger by epsilon (H(a) + H(b)), which for uniform weights is epsilon log(n m).
        """
        f, g = self.potentials
        # epsilon log P; as the total mass is constant, it is also what epsilon sum P log P changes with P by.
        scores = f[..., :, None] + g[..., None, :] - self.ground_cost.detach()
        return self.cost + (self.plan * scores).sum((-2, -1))


def sinkhorn(
    cost: Float[Tensor, "*batch n m"],
    *,
    epsilon: float | int,
    iterations: int,
    tolerance: float | None = None,
    gradient: Gradient = "unroll",
    row_weights: Float[Tensor, "*batch n"] | None = None,
    column_weights: Float[Tensor, "*batch m"] | None = None,
) -> Plan:
    """Entropic transport plan of a cost, by Sinkhorn's iteration: row sums first, column sums last.

    It works in the range of floating point at small `epsilon` too. Leading axes of the cost are a batch of separate
    problems.

    Parameters
    ----------
    cost
        D, [*batch, n, m], finite. Half precision is computed in float32.
    epsilon
        Entropic regularisation, in the unit of the cost.
    iterations
        Rounds of two half-steps each; with a tolerance, the most that are done.
    tolerance
        Stop where the marginal error of every problem of the batch is at most this. The rounds are then over-relaxed,
        which needs several times fewer of them for the same fixed point (except for ``gradient="unroll"``). None does
        exactly `iterations` plain rounds, as the paper does.
    gradient
        What the gradient of the results by the cost is. It has no derivative itself: ``create_graph=True`` is an error.

        - ``unroll``: that of the rounds done, in reverse mode. It needs no convergence.
        - ``envelope``: P for both costs, the plan counting as a constant. At convergence that is the gradient of the
          regularised cost; from that of `Plan.cost` the part through the plan is missing. It costs nothing.
        - ``implicit``: the exact one at convergence, through the plan too. A linear system of min(n, m) unknowns.
    row_weights, column_weights
        Marginals a and b, positive, scaled to sum 1; uniform by default. Constants for the gradient.

    Raises
    ------
    InputError
        If an option is out of range, a weight is not positive, or the cost is empty or not finite.

    Reference
    ---------
    cuturi2013sinkhorn, alg. 1; cui2024sinkd (a fixed number of rounds, differentiated as they are);
    feydy2019interpolating, sec. 3 (envelope).
    """
    epsilon = float(epsilon)
    _check_options(epsilon, iterations, tolerance, gradient)
    if not cost.numel():
        raise InputError(f"it has shape {list(cost.shape)}", where="cost", expected="at least one row and one column")
    cost = widen(cost)
    batch, problems, (n, m) = cost.shape[:-2], math.prod(cost.shape[:-2]), cost.shape[-2:]
    flat = cost if cost.ndim == 2 else cost.reshape((problems, n, m) if problems > 1 else (n, m))
    row = _marginal(row_weights, flat, problems, n, "row_weights")
    column = _marginal(column_weights, flat, problems, m, "column_weights")
    tracked = cost.requires_grad and torch.is_grad_enabled()
    record = tracked and gradient == "unroll"
    scaling = scale(flat.detach(), epsilon, row, column, iterations, tolerance, record=record)
    plan = scaling.plan
    if tracked and gradient == "envelope":
        flat = _CostOfConstantPlan.apply(flat)  # type: ignore[no-untyped-call]
    elif tracked:
        plan = _PlanOfCost.apply(flat, epsilon, row, column, scaling)  # type: ignore[no-untyped-call]
    # A single problem needs no array of the products.
    value = (plan * flat).sum((-2, -1)) if flat.ndim == 3 else torch.dot(plan.flatten(), flat.flatten())
    if not math.isfinite(value.detach().sum().item()):
        raise InputError("some entries are infinite, or too large", where="cost", expected="finite costs")
    f, g = epsilon * scaling.log_u, epsilon * scaling.log_v
    error = (scaling.row_sums - row).abs_()
    if batch:
        plan, value = plan.reshape(cost.shape), value.reshape(batch)
        f, g, error = f.reshape(*batch, n), g.reshape(*batch, m), error.reshape(*batch, n)
    return Plan(plan, value, cost, (f, g), error.sum(-1), scaling.rounds)


def sinkhorn_divergence(
    cost_xy: Float[Tensor, "*batch n m"],
    cost_xx: Float[Tensor, "*batch n n"],
    cost_yy: Float[Tensor, "*batch m m"],
    *,
    epsilon: float | int,
    iterations: int,
    tolerance: float | None = None,
    gradient: Gradient = "envelope",
) -> Float[Tensor, "*batch"]:
    """Debiased cost of transport, ``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2``, OT being the regularised cost.

    Without debiasing a cloud has a cost to itself, and a smaller cloud can be nearer to it than it is. This difference
    is 0 for equal clouds, and at convergence at least 0 where the kernel ``exp(-cost / epsilon)`` is positive definite,
    as it is for p-norms with p from 1 to 2. It is the same with sum P log P as with KL(P || a b').

    Parameters
    ----------
    cost_xy, cost_xx, cost_yy
        Costs between the clouds, and of each cloud to itself.
    epsilon, iterations, tolerance, gradient
        As in `sinkhorn`; weights are uniform.

    Raises
    ------
    InputError
        As `sinkhorn`.

    Reference
    ---------
    feydy2019interpolating, eq. 3 and theorem 1.
    """

    def regularised(cost: Tensor) -> Tensor:
        found = sinkhorn(cost, epsilon=epsilon, iterations=iterations, tolerance=tolerance, gradient=gradient)
        return found.regularised_cost

    return regularised(cost_xy) - (regularised(cost_xx) + regularised(cost_yy)) / 2


def sorted_transport_1d(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Exact transport, without regularisation, between two clouds of as many points on a line, at the cost |x - y|.

    ``mean |sort(x) - sort(y)|``: total mass 1, as in `sinkhorn`. The outputs of a classifier of two classes are such
    clouds: with a and b their first probabilities the 1-norm costs 2 |a - b|, and over a batch of n the sum of the
    optimal assignment is ``2 sum |sort(a) - sort(b)| = 2 n sorted_transport_1d(a, b)``. Where two sorted points agree,
    the gradient is 0.

    Parameters
    ----------
    x, y
        The points, [*batch, n].

    Returns
    -------
    The cost, [*batch], float32 or wider.

    Raises
    ------
    InputError
        If the shapes differ, or there are no points.

    Reference
    ---------
    peyre2019computational, remark 2.28.
    """
    if x.shape != y.shape or not x.shape[-1]:
        found = f"clouds of shapes {list(x.shape)} and {list(y.shape)}"
        raise InputError(found, where="sorted_transport_1d", expected="as many points, at least one, in both")
    dtype = wide_dtype(x, y)
    return (x.to(dtype).sort(-1).values - y.to(dtype).sort(-1).values).abs().mean(-1)


class _PlanOfCost(torch.autograd.Function):
    """The plan as a function of the cost: through its rounds where they are recorded, else as their fixed point."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, epsilon: float, row: Tensor, column: Tensor, scaling: Scaling) -> Tensor:
        ctx.epsilon = epsilon
        ctx.save_for_backward(cost, scaling.plan, row, column, *(scaling.history or ()))
        return scaling.plan

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cost, plan, row, column, *history = ctx.saved_tensors
        grad = grad * plan
        with torch.autocast(grad.device.type, enabled=False):
            if history:
                grad = unrolled_gradient(grad, plan, cost, ctx.epsilon, (row, column), (history[0], history[1]))
            else:
                grad = implicit_gradient(grad, plan)
        return grad.div_(-ctx.epsilon), None, None, None, None


class _CostOfConstantPlan(torch.autograd.Function):
    """The cost as it is. A second derivative would show that its plan is no constant, so that there is none."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor) -> Tensor:
        return cost.view_as(cost)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _check_options(epsilon: float, iterations: int, tolerance: float | None, gradient: str) -> None:
    if not 0 < epsilon < math.inf:
        raise InputError(f"it is {epsilon}", where="epsilon", expected="a positive number")
    if iterations < 1:
        raise InputError(f"it is {iterations}", where="iterations", expected="at least 1")
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"it is {tolerance}", where="tolerance", expected="a positive number, or None")
    if gradient not in get_args(Gradient):
        raise InputError(f"it is {gradient!r}", where="gradient", expected=f"one of {', '.join(get_args(Gradient))}")


def _marginal(weights: Tensor | None, cost: Tensor, problems: int, length: int, name: str) -> Tensor:
    """Weights of sum 1 for every problem, [length] or [batch, length, 1]."""
    shape = (problems, length, 1) if cost.ndim == 3 else (length,)
    if weights is None:
        return cost.new_full(shape, 1 / length)
    if weights.shape[-1] != length or weights.numel() != problems * length:
        raise InputError(f"it has shape {list(weights.shape)}", where=name, expected=f"{length} weights a problem")
    weights = weights.detach().to(cost.dtype).reshape(problems, length)
    if not (weights.min() > 0 and weights.max() < math.inf):
        raise InputError("some weights are not positive", where=name, expected="positive weights")
    return (weights / weights.sum(-1, keepdim=True)).reshape(shape)
