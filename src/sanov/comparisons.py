"""Is a difference more than chance? Paired effects, resampling of clusters, exact tests; on NumPy and SciPy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import bdtr, betaincinv, ndtri, stdtr, stdtrit

from sanov.core.errors import InputError

__all__ = [
    "Effect",
    "Interval",
    "cluster_bootstrap",
    "difference_interval",
    "holm",
    "mcnemar",
    "paired_effect",
    "share_interval",
    "sign_flip",
]

OneARow = Sequence[Any] | np.ndarray

CHUNK = 2**20  # signs held at a time
TIE = 1e-12  # sums that differ by less than this share of the largest possible one are equal but for rounding


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences, its confidence interval, and the p-value of the two-sided test that it is zero."""

    mean: float
    low: float
    high: float
    n: int
    standard_error: float
    p_value: float


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval; ``draws`` counts the resamples on which the statistic was defined."""

    estimate: float
    low: float
    high: float
    clusters: int
    draws: int


def paired_effect(differences: OneARow, confidence: float = 0.95) -> Effect:
    """Mean of paired differences, with the interval and p-value of Student's t.

    Parameters
    ----------
    differences
        One a pair (seed, learner, fold ...), at least 2.
    confidence
        Coverage of the interval.

    Returns
    -------
    The effect. Differences that are all equal have an interval of width zero, and a p-value of 0, or of 1 if all are 0.

    Raises
    ------
    InputError
        If there are fewer than 2 differences, one is not finite, or the confidence is not inside (0, 1).

    Reference
    ---------
    student1908probable.
    """
    d = _numbers(differences, "differences", fewest=2)
    shifted = d - d[0]  # equal differences are exactly zero now, which their mean need not leave
    mean, error = float(d[0] + shifted.mean()), float(shifted.std(ddof=1) / np.sqrt(d.size))
    half = error * float(stdtrit(d.size - 1, (1 + _inside(confidence)) / 2))
    p_value = 2 * float(stdtr(d.size - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Effect(mean, mean - half, mean + half, d.size, error, p_value)


def share_interval(shares: OneARow, sizes: OneARow, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share over clusters, inside [0, 1] whatever the clusters say.

    It is Clopper and Pearson's exact interval at the number of independent rows that would leave the mean of the clusters
    as uncertain as it is; where the clusters do not differ, at the number of clusters.

    Parameters
    ----------
    shares
        Of each cluster (prompt, learner ...), in [0, 1]: at least 2.
    sizes
        Rows of each.
    confidence
        Coverage of the interval.

    Returns
    -------
    Its ends, around the mean of the shares.

    Raises
    ------
    InputError
        If there are fewer than 2 shares, one is outside [0, 1], or the confidence is not inside (0, 1).

    Reference
    ---------
    korn1998confidence.
    """
    values, rows = _numbers(shares, "shares", fewest=2), float(np.sum(np.asarray(sizes)))
    if values.min() < 0 or values.max() > 1:
        raise InputError("one is outside [0, 1]", where="shares", expected="shares of clusters")
    mean, variance, n = float(values.mean()), float(values.var(ddof=1)) / values.size, values.size
    tail = (1 - _inside(confidence)) / 2
    effective = float(n)
    if variance > 0:  # which few clusters say less of than as many rows would
        freedom = float(stdtrit(rows - 1, 1 - tail) / stdtrit(n - 1, 1 - tail)) ** 2
        effective = min(mean * (1 - mean) / variance * freedom, rows)
    right = effective * mean
    low = float(betaincinv(right, effective - right + 1, tail)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, effective - right, 1 - tail)) if right < effective else 1.0
    return low, high


def difference_interval(differences: OneARow, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two shares of the same rows, inside [-1, 1].

    It is Wald's after half a row was added to each of the four cells: both right, one alone, the other, none.

    Parameters
    ----------
    differences
        Of each row: -1, 0 or 1.
    confidence
        Coverage of the interval.

    Returns
    -------
    Its ends.

    Raises
    ------
    InputError
        If there is no difference, one is another number, or the confidence is not inside (0, 1).

    Reference
    ---------
    agresti2005simple.
    """
    d = _numbers(differences, "differences", fewest=1)
    if not np.isin(d, (-1, 0, 1)).all():
        raise InputError("one is none of -1, 0 and 1", where="differences", expected="differences of right and wrong")
    n, gained, lost = d.size + 2, float((d == 1).sum()) + 0.5, float((d == -1).sum()) + 0.5
    mean = (gained - lost) / n
    half = float(ndtri((1 + _inside(confidence)) / 2)) * np.sqrt(gained + lost - n * mean**2) / n
    return max(-1.0, mean - half), min(1.0, mean + half)


def cluster_bootstrap(
    values: np.ndarray,
    clusters: OneARow,
    statistic: Callable[[Any], float] = np.mean,
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic when whole clusters of rows (learners, crews, pairs) are drawn anew.

    Rows of one cluster depend on one another; resampling rows would make the interval too narrow. For the difference of
    two models, let the columns be what both said of a row, and the statistic the difference: it is paired then.

    Parameters
    ----------
    values
        What the statistic is of, an array [rows, ...].
    clusters
        The cluster of each row, any sortable labels, [rows].
    statistic
        From resampled rows of `values` to a number. Draws on which it is NaN are left out; an infinite one counts, and
        may make an end of the interval infinite.
    draws
        Number of resamples.
    confidence
        Coverage of the interval.
    seed
        Of the resampling.

    Returns
    -------
    The statistic of all rows and its interval (NaN if no draw gave a number).

    Raises
    ------
    InputError
        If there are fewer than 2 clusters, the lengths differ, or confidence or draws are out of range.

    Reference
    ---------
    davison1997bootstrap, sec. 3.8 (whole clusters) and 5.3.1 (percentiles).
    """
    rows = _rows_by_cluster(len(values), clusters)
    if draws < 1:
        raise InputError(f"it is {draws}", where="draws", expected="at least 1")
    generator, tail = np.random.default_rng(seed), (1 - _inside(confidence)) / 2
    found = np.array([statistic(values[rows.resample(generator)]) for _ in range(draws)], dtype=np.float64)
    found = found[~np.isnan(found)]
    if not found.size:
        low, high = np.nan, np.nan
    elif np.isfinite(found).all():
        low, high = np.quantile(found, [tail, 1 - tail])
    else:  # between a finite and an infinite draw there is no line
        low, high = np.quantile(found, [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(statistic(values)), float(low), float(high), len(rows.sizes), found.size)


def sign_flip(
    differences: OneARow,
    *,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    exact_up_to: int = 20,
    draws: int = 100_000,
    seed: int = 0,
) -> float:
    """P-value of the hypothesis that each difference is as likely as its negative.

    It is the share of the 2^n assignments of signs whose sum is at least as far from zero as the observed one, or at
    least as large; no distribution is assumed. The smallest possible value is 2 / 2^n, or 1 / 2^n.

    Parameters
    ----------
    differences
        One a pair or cluster.
    alternative
        Against differences on either side of zero, or above it.
    exact_up_to
        Up to this many differences all assignments are counted; above, `draws` random ones are, and the observed one
        with them, so that the value is never 0.
    draws
        Number of random assignments.
    seed
        Of the random assignments.

    Returns
    -------
    The p-value.

    Raises
    ------
    InputError
        If there is no difference, or one is not finite.

    Reference
    ---------
    fisher1935design, sec. 21; phipson2010permutation (the observed one counts).
    """
    d = _numbers(differences, "differences", fewest=1)
    size = np.abs if alternative == "two-sided" else np.positive
    threshold = size(d.sum()) - TIE * np.abs(d).sum()
    if d.size <= exact_up_to:
        sums = np.zeros(1)
        for difference in d:
            sums = np.concatenate([sums + difference, sums - difference])
        return float((size(sums) >= threshold).mean())
    generator, step, beyond = np.random.default_rng(seed), max(1, CHUNK // d.size), 0
    for start in range(0, draws, step):
        signs = 2.0 * generator.integers(0, 2, (min(step, draws - start), d.size), dtype=np.int8) - 1
        beyond += int((size(signs @ d) >= threshold).sum())
    return (1 + beyond) / (1 + draws)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of McNemar's test: whether b of b + c disagreements can be a fair coin's count.

    Parameters
    ----------
    b, c
        Rows on which only the first, and only the second, of two classifiers is right.

    Returns
    -------
    The p-value; 1 if the two never disagree.

    Raises
    ------
    InputError
        If a count is negative.

    Reference
    ---------
    mcnemar1947note, with the binomial distribution in place of its normal limit.
    """
    if b < 0 or c < 0:
        raise InputError(f"b is {b} and c is {c}", where="mcnemar", expected="counts not below 0")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def holm(p_values: OneARow) -> Float[np.ndarray, " tests"]:
    """P-values adjusted by Holm's step-down rule: rejecting those up to alpha keeps any false rejection below alpha.

    Parameters
    ----------
    p_values
        Of the tests of one family, each in [0, 1].

    Returns
    -------
    Adjusted p-values, in the same order.

    Raises
    ------
    InputError
        If a p-value is outside [0, 1] or NaN.

    Reference
    ---------
    holm1979simple.
    """
    p = _numbers(p_values, "p_values", fewest=0)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise InputError("a p-value is outside [0, 1]", where="p_values", expected="probabilities")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


@dataclass(frozen=True)
class _Rows:
    """Row numbers sorted by cluster, and where each cluster starts in them."""

    order: Int[np.ndarray, " rows"]
    starts: Int[np.ndarray, " clusters"]
    sizes: Int[np.ndarray, " clusters"]

    def resample(self, generator: np.random.Generator) -> Int[np.ndarray, " drawn"]:
        """Return the rows of as many clusters as there are, drawn with replacement."""
        chosen = generator.integers(0, len(self.sizes), len(self.sizes))
        sizes = self.sizes[chosen]
        first = np.repeat(self.starts[chosen] - np.cumsum(sizes) + sizes, sizes)
        drawn: np.ndarray = self.order[first + np.arange(sizes.sum())]
        return drawn


def _rows_by_cluster(n_rows: int, clusters: OneARow) -> _Rows:
    labels = np.asarray(clusters)
    if labels.shape != (n_rows,):
        found = f"it has shape {list(labels.shape)}, with {n_rows} rows of values"
        raise InputError(found, where="clusters", expected="one label a row")
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise InputError(f"there are {len(sizes)} clusters", where="clusters", expected="at least 2")
    return _Rows(np.argsort(inverse, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def _numbers(values: OneARow, name: str, fewest: int) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < fewest:
        raise InputError(
            f"it has shape {list(array.shape)}", where=name, expected=f"a list of at least {fewest} numbers"
        )
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"entry {place} is {array[place]}", where=name, expected="finite numbers")
    return array


def _inside(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"it is {confidence}", where="confidence", expected="a number between 0 and 1, both excluded")
    return confidence
