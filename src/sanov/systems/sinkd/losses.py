"""The transport loss: how far a batch of student outputs is from the batch of teacher outputs."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import widen
from sanov.transport import Plan, pairwise_cost, sinkhorn, sorted_transport_1d

__all__ = ["Gradient", "Transported", "sinkhorn_loss"]

Gradient = Literal["unroll", "envelope", "implicit"]


class Transported(NamedTuple):
    """A transport loss, how far its plan is from exact marginals, and after how many rounds.

    ``value`` is the mean form SD/b, which does not grow with the batch; `total` is the sum form SD of the released code,
    whose plan has total mass b. ``marginal_error`` is the largest deviation of a row sum of that plan from 1. The error
    to which a tolerance holds is another: the mean deviation, which is from 2/b of the largest to all of it.
    ``iterations`` counts the rounds done, 0 where sorting needs none.
    """

    value: Float[Tensor, ""]
    marginal_error: Float[Tensor, ""]
    rows: int
    iterations: int

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum form SD = b * value."""
        return self.rows * self.value


def sinkhorn_loss(
    student_logits: Float[Tensor, "student_rows student_classes"],
    teacher_logits: Float[Tensor, "teacher_rows teacher_classes"],
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    tolerance: float | None = None,
    temperature: float = 2.0,
    p: float = 1.0,
    gradient: Gradient = "unroll",
    identity_penalty: float = 0.0,
    debiased: bool = False,
    sort: bool = False,
) -> Transported:
    """Entropic transport between the student's and the teacher's outputs of one batch.

    With p_s = softmax(student / T), p_t = softmax(teacher / T), D_ij = ||p_s[i] - p_t[j]||_p + gamma [i != j] and P the plan
    after rounds of row and column scaling of exp(-D / epsilon), the value is sum_ij P_ij D_ij / b, where P has mass b.
    It does not see which row got which output (for gamma = 0): it needs a loss by row beside it.

    Parameters
    ----------
    student_logits, teacher_logits
        Of the same rows. No gradient reaches the teacher.
    epsilon
        Entropic regularisation, in the unit of the cost.
    iterations
        Rounds, each a row step and a column step; where `tolerance` is given, the most.
    tolerance
        Stop where the row sums of P are off by at most this in the mean (`transport.Plan.marginal_error`). One of them
        may be off by up to b/2 times as much: see `Transported.marginal_error`. None makes all rounds.
    temperature
        Of both softmaxes.
    p
        Order of the norm.
    gradient
        ``"unroll"`` differentiates through the rounds (paper); ``"envelope"`` takes the plan as constant; ``"implicit"`` is
        the exact gradient at convergence.
    identity_penalty
        gamma; with it large the value tends to the mean of ||p_s[i] - p_t[i]||_p, for p = 1 twice the total variation.
    debiased
        Sinkhorn divergence OT(s, t) - OT(s, s)/2 - OT(t, t)/2 of the regularised value, which is 0 where the clouds agree.
    sort
        Exact transport (epsilon -> 0) by sorting, for two classes.

    Returns
    -------
    The loss in the mean form, with the largest deviation of a row sum and the rounds done.

    Raises
    ------
    InputError
        Student and teacher differ in rows or classes, or `sort` is asked for what sorting cannot do.

    Reference
    ---------
    cui2024sinkd; the debiased form: feydy2019interpolating, eq. 3.
    """
    if student_logits.shape != teacher_logits.shape:
        found = f"student logits of shape {list(student_logits.shape)}, teacher logits {list(teacher_logits.shape)}"
        fix = "for different vocabularies use systems.sinkd.sequences"
        raise InputError(found, where="sinkhorn_loss", expected="the same rows and classes in both", fix=fix)
    student, teacher = (_softmax(logits, temperature) for logits in (student_logits, teacher_logits.detach()))
    if sort:
        return _sorted(student, teacher, p, plain=identity_penalty == 0 and not debiased)

    def move(x: Tensor, y: Tensor) -> Plan:
        cost = _with_penalty(pairwise_cost(x, y, p=p), identity_penalty)
        return sinkhorn(cost, epsilon=epsilon, iterations=iterations, tolerance=tolerance, gradient=gradient)

    plan = move(student, teacher)
    value = plan.cost
    if debiased:
        own = move(student, student).regularised_cost + move(teacher, teacher).regularised_cost
        value = plan.regularised_cost - 0.5 * own
    error = plan.plan.detach().sum(dim=-1).mul_(len(student)).sub_(1).abs_().amax()
    return Transported(value, error, len(student), plan.iterations)


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(widen(logits) / temperature, dim=-1)


def _with_penalty(cost: Tensor, gamma: float) -> Tensor:
    return cost + gamma * (1 - torch.eye(len(cost), dtype=cost.dtype, device=cost.device)) if gamma else cost


def _sorted(student: Tensor, teacher: Tensor, p: float, plain: bool) -> Transported:
    """Two classes lie on a line: ||(a, 1-a) - (b, 1-b)||_p = 2^(1/p) |a - b|."""
    if student.shape[1] != 2 or not plain:
        found = f"{student.shape[1]} classes" if plain else "an identity penalty or the debiased form"
        raise InputError(f"sorting was asked for with {found}", where="sort", expected="two classes and the plain cost")
    stretch = 2.0 ** (1.0 / p) if math.isfinite(p) else 1.0
    value = stretch * sorted_transport_1d(student[:, 0], teacher[:, 0])
    return Transported(value, value.new_zeros(()), len(student), 0)
