"""What is looked at before training: overlap of the outputs, an epsilon that invites collapse, the marginals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import SanovWarning
from sanov.divergences import total_variation
from sanov.systems.sinkd.losses import Transported, sinkhorn_loss
from sanov.transport import pairwise_cost

__all__ = [
    "LARGEST_ERROR",
    "Overlap",
    "invites_collapse",
    "overlap",
    "rounds_needed",
    "safe_epsilon",
    "tolerance_needed",
    "warn_of_batch",
    "warn_of_error",
]

LARGEST_ERROR = 0.05  # largest deviation of a row sum from 1 above which one is told
MOST_ROUNDS = 10_000


class Overlap(NamedTuple):
    """How much student and teacher agree before training.

    ``median_distance`` and ``share_apart`` are of the total variation by row (share above 0.5); ``effective_dimension``
    is the participation ratio of the teacher's cloud, the number of directions in which its outputs vary alike.
    """

    median_distance: float
    share_apart: float
    effective_dimension: float

    def sentence(self) -> str:
        """Will transport help here? The figures, and what they suggest."""
        figures = (
            f"before training the median total variation between student and teacher is {self.median_distance:.2f}, "
            f"{self.share_apart:.0%} of rows are above 0.5, and the teacher's outputs vary in "
            f"{self.effective_dimension:.1f} directions"
        )
        if self.median_distance < 0.1:
            return f"{figures}: they overlap, and transport can add little to KL"
        if self.effective_dimension < 1.5:
            return f"{figures}: transport compares little more than the marginal distribution of one number"
        return f"{figures}: there is room for transport"


def overlap(student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"]) -> Overlap:
    """Return how much the outputs of student and teacher overlap, at temperature 1.

    Parameters
    ----------
    student_logits, teacher_logits
        Of the same rows; the student is the untrained one.
    """
    log_s, log_t = (torch.log_softmax(logits.double(), dim=-1) for logits in (student_logits, teacher_logits))
    distance = total_variation(log_t, log_s)
    cloud = log_t.exp() - log_t.exp().mean(dim=0)
    covariance = cloud.T @ cloud
    squares = float(covariance.square().sum())
    dimension = float(covariance.trace()) ** 2 / squares if squares > 0 else 0.0
    return Overlap(float(distance.median()), float((distance > 0.5).double().mean()), dimension)


def invites_collapse(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"], **options: Any
) -> bool:
    """Whether a student that gives every row the mean output would do better than one that equals the teacher.

    Also where epsilon is above half the median cost, at which the plan hardly depends on the outputs.

    Parameters
    ----------
    student_logits, teacher_logits
        Of one batch, the student untrained.
    options
        Of `sinkhorn_loss`.
    """
    if len(teacher_logits) < 2 or options.get("sort"):
        return False
    temperature = options["temperature"]
    outputs = torch.softmax(teacher_logits / temperature, dim=-1)
    mean = outputs.mean(dim=0, keepdim=True).expand_as(outputs).log() * temperature
    perfect = float(sinkhorn_loss(teacher_logits, teacher_logits, **options).value)
    collapsed = float(sinkhorn_loss(mean, teacher_logits, **options).value)
    cost = pairwise_cost(torch.softmax(student_logits / temperature, dim=-1), outputs, p=options["p"])
    return perfect > collapsed or options["epsilon"] > 0.5 * float(cost.median())


def safe_epsilon(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"], **options: Any
) -> float | None:
    """Return the largest of epsilon, epsilon/2, epsilon/4 ... that does not invite collapse, if one of ten does not."""
    for halvings in range(10):
        epsilon = options["epsilon"] / 2**halvings
        if not invites_collapse(student_logits, teacher_logits, **{**options, "epsilon": epsilon}):
            return float(epsilon)
    return None


def rounds_needed(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"], **options: Any
) -> int | None:
    """Return how many rounds, by doubling, leave no row off by more than `LARGEST_ERROR`; None if 10,000 do not.

    With a tolerance it is None too where that stops the rounds before: see `tolerance_needed`.
    """
    iterations = options["iterations"]
    while iterations <= MOST_ROUNDS:
        moved = _as_in_training(student_logits, teacher_logits, {**options, "iterations": iterations})
        if float(moved.marginal_error) <= LARGEST_ERROR:
            return int(iterations)
        iterations *= 2
    return None


def tolerance_needed(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"], **options: Any
) -> tuple[float, int] | None:
    """Return the largest of tolerance/2, tolerance/4 ... that leaves no row off by more than `LARGEST_ERROR`.

    With it come the rounds that reach it. None if 10,000 do not, or none of ten halvings does.
    """
    for halvings in range(1, 11):
        tolerance = options["tolerance"] / 2**halvings
        trial = {**options, "tolerance": tolerance, "iterations": MOST_ROUNDS}
        moved = _as_in_training(student_logits, teacher_logits, trial)
        if float(moved.marginal_error) <= LARGEST_ERROR:
            return tolerance, moved.iterations
        if moved.iterations == MOST_ROUNDS:
            break
    return None


def _as_in_training(student_logits: Tensor, teacher_logits: Tensor, options: Mapping[str, Any]) -> Transported:
    """Transport with the rounds of training: up to a tolerance, those that a gradient goes through are plain ones."""
    student = student_logits.detach().requires_grad_(options.get("tolerance") is not None)
    with torch.enable_grad():
        return sinkhorn_loss(student, teacher_logits, **options)


@torch.no_grad()
def warn_of_batch(
    student_logits: Float[Tensor, "rows classes"],
    teacher_logits: Float[Tensor, "rows classes"],
    options: Mapping[str, Any],
) -> None:
    """Warn where epsilon invites collapse, or where the rounds leave the marginals far from met, on one batch.

    Parameters
    ----------
    student_logits, teacher_logits
        Of one batch, the student untrained.
    options
        Of `sinkhorn_loss`.
    """
    values = {**options, "gradient": "envelope"}  # the cheapest
    epsilon = safe_epsilon(student_logits, teacher_logits, **values)
    if epsilon is None or epsilon < options["epsilon"]:
        advice = "lower transport_temperature" if epsilon is None else f"set epsilon to {epsilon:.3g} or less"
        text = f"epsilon = {options['epsilon']:g} invites collapse to the mean output on these data; {advice}."
        warnings.warn(text, SanovWarning, stacklevel=3)
    moved = _as_in_training(student_logits, teacher_logits, options)
    error = float(moved.marginal_error)
    if error > LARGEST_ERROR:
        stopped_at = options.get("tolerance") if moved.iterations < options["iterations"] else None
        advice = _advice(student_logits, teacher_logits, options)
        warn_of_error(error, moved.iterations, advice, tolerance=stopped_at)


def _advice(student_logits: Tensor, teacher_logits: Tensor, options: Mapping[str, Any]) -> str:
    rounds = rounds_needed(student_logits, teacher_logits, **options)
    if rounds is not None:
        return f"{rounds} rounds would do"
    found = None
    if options.get("tolerance") is not None:
        found = tolerance_needed(student_logits, teacher_logits, **options)
    return f"{found[1]} rounds, to tolerance = {found[0]:g}, would do" if found else "raise epsilon"


def warn_of_error(error: float, iterations: int, advice: str | None = None, *, tolerance: float | None = None) -> None:
    """Warn of a plan whose rows are far from their marginals.

    Parameters
    ----------
    error
        Largest deviation of a row sum from 1, where the total mass is the number of rows.
    iterations
        Rounds done.
    advice
        What to do; by default what helps in general.
    tolerance
        The one at which the rounds stopped; None where they were all done.
    """
    stopped = "" if tolerance is None else f", stopped at tolerance = {tolerance:g},"
    advice = advice or f"set {'more iterations' if tolerance is None else 'a smaller tolerance'}, or a larger epsilon"
    text = f"after {iterations} rounds{stopped} a row of the plan is off by {error:.0%}; {advice}."
    warnings.warn(text, SanovWarning, stacklevel=3)
