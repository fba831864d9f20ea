"""Riley's minimum sample size for a prediction model, and events per variable: a neighbour's answer beside ours.

`pn` asks whether the *joint distribution* of the columns is estimated well; Riley's criteria ask whether a *regression
of one outcome* on them is, so the two numbers answer different questions and are shown side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from sanov.core.errors import InputError

__all__ = [
    "MinimumSize",
    "binary_criteria",
    "continuous_criteria",
    "explained",
    "maximal_r_squared",
    "minimum_size",
    "planned_size",
]

OPTIMISM = 0.05  # largest accepted difference between apparent and adjusted R-squared (of its maximum, if binary)
MARGIN = 0.05  # largest accepted half-width of the interval of the overall risk
RATIO = 1.1  # largest accepted multiplicative error of the residual standard deviation and of the mean
NO_KNOWLEDGE = 0.15  # share of the maximal R-squared to expect where nothing is known (riley2020calculating)


@dataclass(frozen=True)
class MinimumSize:
    """The rows that each criterion asks for, and what went into them.

    Parameters
    ----------
    kind
        ``binary`` or ``continuous``.
    criteria
        Criterion to rows.
    parameters
        Number of candidate predictor parameters.
    r_squared
        Expected R-squared of the model: Cox and Snell's for a binary outcome.
    basis
        Where `r_squared` comes from.
    events
        Rows in the rarer class; all rows where the outcome is continuous.
    rows_at_hand
        Rows of the data.
    """

    kind: str
    criteria: dict[str, int]
    parameters: int
    r_squared: float
    basis: str
    events: int
    rows_at_hand: int

    @property
    def rows(self) -> int:
        """The minimum sample size: the largest of the criteria."""
        return max(self.criteria.values())

    @property
    def events_per_parameter(self) -> float:
        """Events (rows, if continuous) at hand per predictor parameter."""
        return self.events / self.parameters

    @property
    def binding(self) -> str:
        """The criterion that asks for the most."""
        return max(self.criteria, key=self.criteria.__getitem__)

    def table(self) -> pl.DataFrame:
        """Columns: criterion, rows."""
        return pl.DataFrame({"criterion": list(self.criteria), "rows": list(self.criteria.values())})


def maximal_r_squared(prevalence: float) -> float:
    """Largest Cox-Snell R-squared that a binary outcome of this prevalence admits.

    Reference: riley2019binary.
    """
    log_likelihood = prevalence * math.log(prevalence) + (1 - prevalence) * math.log1p(-prevalence)
    return -math.expm1(2 * log_likelihood)


def binary_criteria(parameters: int, r_squared: float, prevalence: float, *, shrinkage: float = 0.9) -> dict[str, int]:
    """Rows that the three criteria for a binary outcome ask for.

    Parameters
    ----------
    parameters
        Candidate predictor parameters.
    r_squared
        Expected Cox-Snell R-squared, in (0, `maximal_r_squared`).
    prevalence
        Expected share of events, in (0, 1).
    shrinkage
        Wanted uniform shrinkage factor.

    Raises
    ------
    InputError
        If `r_squared` is not attainable.

    References
    ----------
    riley2019binary, criteria (i) to (iii).
    """
    largest = maximal_r_squared(prevalence)
    if not 0 < r_squared < min(largest, shrinkage):
        raise InputError(
            f"the expected R-squared is {r_squared:.4g}",
            where="riley.r_squared",
            expected=f"a number between 0 and {min(largest, shrinkage):.4g}, the most at prevalence {prevalence:.3g}",
        )

    def rows(factor: float) -> int:
        return math.ceil(parameters / ((factor - 1) * math.log1p(-r_squared / factor)))

    return {
        f"shrinkage of at most {1 - shrinkage:.0%}": rows(shrinkage),
        "optimism in R-squared of at most 0.05": rows(r_squared / (r_squared + OPTIMISM * largest)),
        "overall risk to within 0.05": math.ceil((1.96 / MARGIN) ** 2 * prevalence * (1 - prevalence)),
    }


def continuous_criteria(
    parameters: int, r_squared: float, mean: float, deviation: float, *, shrinkage: float = 0.9
) -> dict[str, int]:
    """Rows that the four criteria for a continuous outcome ask for.

    The fourth, on the mean, is left out where the mean is smaller than the standard deviation: the zero of the scale is
    then arbitrary, and a multiplicative error means nothing.

    Parameters
    ----------
    parameters
        Candidate predictor parameters.
    r_squared
        Expected adjusted R-squared, in (0, 1).
    mean, deviation
        Mean and standard deviation of the outcome, in its unit.
    shrinkage
        Wanted uniform shrinkage factor.

    Raises
    ------
    InputError
        If `r_squared` is not in (0, 1).

    References
    ----------
    riley2019continuous, criteria (i) to (iv).
    """
    if not 0 < r_squared < 1:
        raise InputError(
            f"the expected R-squared is {r_squared:.4g}", where="riley.r_squared", expected="0 < value < 1"
        )

    def shrinks_little(rows: int) -> bool:
        apparent = math.log((1 - r_squared) * (rows - parameters - 1) / (rows - 1))
        return 1 + (parameters - 2) / (rows * apparent) >= shrinkage

    def residual_is_sharp(rows: int) -> bool:
        freedom = rows - parameters - 1
        low, high = stats.chi2.ppf(0.025, freedom), stats.chi2.ppf(0.975, freedom)
        return bool(max(high / freedom, freedom / low) <= RATIO**2)

    def mean_is_sharp(rows: int) -> bool:
        error = deviation * math.sqrt((1 - r_squared) / rows)
        return bool(stats.t.ppf(0.975, rows - parameters - 1) * error <= (RATIO - 1) * abs(mean))

    fewest = parameters + 2
    criteria = {
        f"shrinkage of at most {1 - shrinkage:.0%}": _smallest(shrinks_little, fewest),
        "optimism in R-squared of at most 0.05": math.ceil(round(1 + parameters * (1 - r_squared) / OPTIMISM, 9)),
        "residual deviation to within 10%": _smallest(residual_is_sharp, fewest),
    }
    if abs(mean) >= deviation:
        criteria["mean to within 10%"] = _smallest(mean_is_sharp, fewest)
    return criteria


def _smallest(enough: Callable[[int], bool], fewest: int) -> int:
    """Return the smallest number of rows that is enough, by bisection on a monotone condition."""
    low, high = fewest - 1, fewest
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# -- from the rows at hand --------------------------------------------------------------------------------------------


def explained(x: Float[ndarray, "rows predictors"], y: Float[ndarray, " rows"], *, binary: bool) -> float:
    """R-squared of the regression of `y` on `x` after correction for optimism.

    Cox and Snell's with the heuristic shrinkage of van Houwelingen and le Cessie for a binary outcome, the adjusted one
    otherwise. At or below zero the predictors explain nothing beyond chance.

    Reference: riley2019binary; riley2019continuous.
    """
    rows, predictors = x.shape
    scale = x.std(axis=0)
    design = np.column_stack([np.ones(rows), (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)])
    if not binary:
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        return float(1 - residual.var() / y.var() * (rows - 1) / (rows - predictors - 1))
    ratio = _likelihood_ratio(design, y)
    return -math.expm1(-ratio / rows) * (1 - predictors / ratio) if ratio > 0 else 0.0


def _likelihood_ratio(design: Float[ndarray, "rows columns"], y: Float[ndarray, " rows"]) -> float:
    """Likelihood-ratio statistic of a logistic regression against its intercept alone (Newton, step halving)."""
    share = y.mean()
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = math.log(share / (1 - share))

    def log_likelihood(point: Float[ndarray, " columns"]) -> float:
        logit = design @ point
        return float((y * logit - np.logaddexp(0, logit)).sum())

    start = current = log_likelihood(coefficients)
    for _ in range(50):  # under separation the likelihood has a limit that the iterates reach, though they diverge
        probability = 1 / (1 + np.exp(-np.clip(design @ coefficients, -500, 500)))
        information = (design.T * (probability * (1 - probability))) @ design
        step = np.linalg.lstsq(information, design.T @ (y - probability), rcond=None)[0]
        while log_likelihood(coefficients + step) < current - 1e-12 and np.abs(step).max() > 1e-10:
            step = step / 2
        coefficients = coefficients + step
        before, current = current, max(current, log_likelihood(coefficients))
        if current - before < 1e-10 * abs(current):
            break
    return 2 * (current - start)


def minimum_size(
    x: Float[ndarray, "rows predictors"],
    y: Float[ndarray, " rows"],
    *,
    r_squared: float | None = None,
    shrinkage: float = 0.9,
) -> MinimumSize:
    """Riley's minimum sample size for a regression of `y` on the columns of `x`.

    Parameters
    ----------
    x
        Predictors; each column is one parameter.
    y
        Outcome: two values are a binary outcome, more a continuous one.
    r_squared
        Expected R-squared; None takes it from these rows, corrected for optimism, or 15 % of its maximum where these
        rows say that nothing is explained.
    shrinkage
        Wanted uniform shrinkage factor.

    Raises
    ------
    InputError
        If the outcome has one value only, or there are fewer rows than parameters.
    """
    rows, parameters = x.shape
    values = np.unique(y)
    if len(values) < 2:
        raise InputError(f"the outcome has one class only ({values[0]:g})", where="map.outcome", expected="two or more")
    if rows < parameters + 2:
        raise InputError(f"n={rows}, p={parameters}: no regression can be fitted", where="map.outcome")
    binary = len(values) == 2
    target = (y == values[1]).astype(float) if binary else y
    prevalence = float(target.mean())
    largest = maximal_r_squared(prevalence) if binary else 1.0
    basis = "given"
    if r_squared is None:
        r_squared, basis = explained(x, target, binary=binary), "these rows, corrected for optimism"
        if not 0 < r_squared < min(largest, shrinkage if binary else 1.0):
            r_squared, basis = NO_KNOWLEDGE * largest, "15% of its maximum: these rows do not tell"
    if binary:
        criteria = binary_criteria(parameters, r_squared, prevalence, shrinkage=shrinkage)
    else:
        deviation = float(target.std(ddof=1))
        criteria = continuous_criteria(parameters, r_squared, prevalence, deviation, shrinkage=shrinkage)
    events = int(min(target.sum(), rows - target.sum())) if binary else rows
    return MinimumSize("binary" if binary else "continuous", criteria, parameters, r_squared, basis, events, rows)


def planned_size(
    parameters: int, *, r_squared: float | None, prevalence: float | None, shrinkage: float = 0.9
) -> MinimumSize:
    """Riley's minimum sample size where there are no rows yet.

    Parameters
    ----------
    parameters
        Candidate predictor parameters.
    r_squared
        Expected R-squared: Cox and Snell's where `prevalence` is given; None takes 15 % of its maximum.
    prevalence
        Expected share of events of a binary outcome; None for a continuous one, whose mean is left open.
    shrinkage
        Wanted uniform shrinkage factor.

    Raises
    ------
    InputError
        If `r_squared` is not attainable.
    """
    largest = 1.0 if prevalence is None else maximal_r_squared(prevalence)
    basis = "15% of its maximum" if r_squared is None else "given"
    r_squared = NO_KNOWLEDGE * largest if r_squared is None else r_squared
    if prevalence is None:
        kind, criteria = "continuous", continuous_criteria(parameters, r_squared, 0.0, 1.0, shrinkage=shrinkage)
    else:
        kind, criteria = "binary", binary_criteria(parameters, r_squared, prevalence, shrinkage=shrinkage)
    return MinimumSize(kind, criteria, parameters, r_squared, basis, 0, 0)
