"""What coefficients a and b say about a study: rows, parameters, Bayes errors, coin tosses, and the curve R(n)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.families import (
    BOUNDS,
    GUARANTEES,
    Bound,
    Guarantee,
    bayes_error_bound,
    coin_toss_equivalent,
    kl_threshold,
    largest_parameters,
    required_sample_size,
    risk,
    risk_limit,
)

__all__ = ["Plan", "Target", "bounds_table", "planner_curve", "rows_needed"]

CURVE_POINTS = 60
CURVE_SPAN = 8.0  # from n*/8 to 8 n*


@dataclass(frozen=True)
class Target:
    """What is asked of the risk.

    Parameters
    ----------
    epsilon, bound
        The gap allowed to the Bayes error, and the bound that turns it into a divergence.
    guarantee, confidence
        For the mean, or with which probability.
    eigenvalues
        Of G^-1 V, for the guarantee ``chi2``.
    """

    epsilon: float
    bound: Bound
    guarantee: Guarantee
    confidence: float
    eigenvalues: Float[ndarray, " p"]

    @property
    def delta(self) -> float:
        """The largest accepted divergence, nats."""
        return kl_threshold(self.epsilon, self.bound)

    @property
    def limit(self) -> float:
        """The largest accepted mean risk, nats."""
        return self.limit_of(self.bound, self.guarantee)

    def limit_of(self, bound: Bound, guarantee: Guarantee) -> float:
        """Return the same under another bound and guarantee."""
        delta = kl_threshold(self.epsilon, bound)
        if guarantee == "chi2":
            return delta * self._chi_square_share
        return risk_limit(delta, guarantee, confidence=self.confidence)

    @functools.cached_property
    def _chi_square_share(self) -> float:
        """Mean risk per threshold under the limit law, whose quantile does not depend on the bound."""
        return risk_limit(1.0, "chi2", confidence=self.confidence, eigenvalues=self.eigenvalues)


@dataclass(frozen=True)
class Plan:
    """Coefficients of a risk beside a target.

    Parameters
    ----------
    a, b
        Of R(n) = a/n + b/n^2.
    ratio
        tr(G^-1 V) / p.
    limit
        The largest accepted mean risk.
    """

    a: float
    b: float
    ratio: float
    limit: float

    @property
    def required(self) -> float:
        """n*, not rounded; infinite where no n meets the limit."""
        return rows_needed(self.limit)(self.a, self.b)

    def risk(self, rows: float) -> float:
        """R(n), nats."""
        return risk(self.a, self.b, rows)

    def more(self, rows: float) -> int | None:
        """Rows that are missing; None where no n is enough."""
        return max(0, math.ceil(self.required - rows)) if math.isfinite(self.required) else None

    def carried(self, rows: float) -> int:
        """Parameters that so many rows carry at first order, at this ratio."""
        return math.floor(largest_parameters(rows, self.limit, self.ratio))


def rows_needed(limit: float) -> Callable[[float, float], float]:
    """Return the function (a, b) -> n*, which is infinite where no n meets the limit at second order."""

    def needed(a: float, b: float) -> float:
        try:
            return required_sample_size(a, b, limit)
        except InputError:
            return math.inf

    return needed


def bounds_table(plan: Plan, target: Target, rows: float | None) -> pl.DataFrame:
    """Every bound and guarantee side by side.

    Columns: the threshold on the divergence, the mean risk that it allows, the rows it asks for, tosses of a coin that
    are as informative, and where there are data, whether they suffice and the Bayes error that they guarantee.
    """
    lines = []
    for bound in BOUNDS:
        for guarantee in GUARANTEES:
            limit = target.limit_of(bound, guarantee)
            needed = rows_needed(limit)(plan.a, plan.b)
            line = {
                "bound": bound,
                "guarantee": guarantee,
                "delta": kl_threshold(target.epsilon, bound),
                "mean risk allowed": limit,
                "rows required": math.ceil(needed) if math.isfinite(needed) else None,
                "coin tosses": coin_toss_equivalent(limit),
            }
            if rows is not None:
                now = max(plan.risk(rows), 0.0)
                guaranteed = now * kl_threshold(target.epsilon, bound) / limit
                line |= {"enough": needed <= rows, "Bayes error at least": bayes_error_bound(guaranteed, bound)}
            lines.append(line)
    return pl.DataFrame(lines)


def planner_curve(
    plan: Plan, rows: float | None, replicates: Float[ndarray, "replicates 2"] | None, confidence: float
) -> pl.DataFrame:
    """R(n) over a range that holds n* and the rows at hand, with its bootstrap band and its first-order part."""
    centre = plan.required if math.isfinite(plan.required) else plan.a / plan.limit
    low, high = min(centre, rows or centre) / CURVE_SPAN, max(centre, rows or centre) * CURVE_SPAN
    grid = np.unique(np.round(np.geomspace(max(low, 2.0), high, CURVE_POINTS)))
    curve = pl.DataFrame({"rows": grid.astype(int), "risk": plan.a / grid + plan.b / grid**2})
    curve = curve.with_columns(pl.Series("first order", plan.a / grid))
    if replicates is None:
        return curve
    bent = replicates[:, :1] / grid + replicates[:, 1:] / grid**2
    tails = np.quantile(bent, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return curve.with_columns(pl.Series("low", tails[0]), pl.Series("high", tails[1]))
