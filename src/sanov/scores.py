"""How good are predicted probabilities? Ranking, likelihood, squared error, calibration; on NumPy alone.

In all of these `p` comes first, the predicted probability that the outcome is 1, and then `y`, the outcome, 0 or 1 (or
False and True). Beside them: how alike two partitions are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sanov.core.errors import InputError

__all__ = ["adjusted_rand", "auroc", "brier", "calibration_error", "log_loss", "reliability_table"]

OneARow = Sequence[Any] | np.ndarray
Vector = Float[np.ndarray, " rows"]


def auroc(score: OneARow, y: OneARow) -> float:
    """Area under the ROC curve: the chance that a random 1 is scored above a random 0, ties counting one half.

    Parameters
    ----------
    score
        Any number that grows with the chance of a 1, [rows]. It may be infinite.
    y
        Outcomes, [rows].

    Returns
    -------
    The area, in [0, 1]; NaN, that is undefined, where `y` has one class only.

    Raises
    ------
    InputError
        If the lengths differ, there is no row, a score is NaN, or an outcome is neither 0 nor 1.

    Reference
    ---------
    hanley1982meaning; the mid-ranks are those of mann1947test.
    """
    scores, outcomes = _pair(score, y, "score")
    if np.isnan(scores).any():
        raise InputError("a score is NaN", where="score", expected="numbers")
    ones = outcomes.sum()
    zeros = len(outcomes) - ones
    if not ones or not zeros:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((mid_ranks[inverse] @ outcomes - ones * (ones + 1) / 2) / (ones * zeros))


def log_loss(p: OneARow, y: OneARow, *, clip: float = 0.0) -> float:
    """Mean negative log-likelihood of the outcomes, in nats.

    Parameters
    ----------
    p, y
        Probabilities and outcomes, [rows].
    clip
        Probabilities are held in [clip, 1 - clip] first. Without it, a certain prediction that is wrong costs infinity.

    Returns
    -------
    The mean.

    Raises
    ------
    InputError
        If the lengths differ, there is no row, a probability is outside [0, 1], an outcome is neither 0 nor 1, or
        `clip` is outside [0, 0.5).

    Reference
    ---------
    good1952rational.
    """
    if not 0 <= clip < 0.5:
        raise InputError(f"it is {clip}", where="clip", expected="a number from 0 to below 0.5")
    probabilities, outcomes = _probabilities(p, y)
    held = np.clip(probabilities, clip, 1 - clip)
    with np.errstate(divide="ignore"):
        return float(-np.where(outcomes == 1, np.log(held), np.log1p(-held)).mean())


def brier(p: OneARow, y: OneARow) -> float:
    """Mean squared difference between probability and outcome, in [0, 1].

    Parameters
    ----------
    p, y
        Probabilities and outcomes, [rows].

    Returns
    -------
    The mean.

    Raises
    ------
    InputError
        If the lengths differ, there is no row, a probability is outside [0, 1], or an outcome is neither 0 nor 1.

    Reference
    ---------
    brier1950verification (its score is twice ours, the sum over both outcomes).
    """
    probabilities, outcomes = _probabilities(p, y)
    return float(np.square(probabilities - outcomes).mean())


def calibration_error(p: OneARow, y: OneARow, bins: int = 15) -> float:
    """Return the expected calibration error: the rows' mean of their bin's |mean probability - share of ones|.

    It lies in [0, 1], depends on the bins, and is biased upwards where they hold few rows.

    Parameters
    ----------
    p, y, bins
        As in `reliability_table`.

    Returns
    -------
    The error.

    Raises
    ------
    InputError
        As `reliability_table`.

    Reference
    ---------
    guo2017calibration, eq. 3.
    """
    table = reliability_table(p, y, bins)
    gaps = np.abs(table["confidence"] - table["right"])
    return float(gaps @ table["rows"] / table["rows"].sum())


def reliability_table(p: OneARow, y: OneARow, bins: int = 15) -> dict[str, np.ndarray]:
    """Predicted against observed, in bins of equal width over [0, 1].

    A bin holds its upper edge and not its lower one; the first holds 0 as well. Bins without rows are left out.

    Parameters
    ----------
    p, y
        Probabilities and outcomes, [rows].
    bins
        Number of bins, at least 1.

    Returns
    -------
    Columns with one entry a bin: ``low`` and ``high``, its edges; ``rows``, how many it holds; ``confidence``, their mean
    probability; ``right``, their share of ones.

    Raises
    ------
    InputError
        If the lengths differ, there is no row, a probability is outside [0, 1], an outcome is neither 0 nor 1, or there
        is no bin.

    Reference
    ---------
    guo2017calibration, sec. 2.
    """
    if bins < 1:
        raise InputError(f"it is {bins}", where="bins", expected="at least 1")
    probabilities, outcomes = _probabilities(p, y)
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], probabilities)
    rows = np.bincount(place, minlength=bins)
    kept = rows > 0
    sums = {"confidence": np.bincount(place, probabilities, bins), "right": np.bincount(place, outcomes, bins)}
    means = {name: total[kept] / rows[kept] for name, total in sums.items()}
    return {"low": edges[:-1][kept], "high": edges[1:][kept], "rows": rows[kept], **means}


def adjusted_rand(first: OneARow, second: OneARow) -> float:
    """How alike two partitions of the same rows are: 1 for the same, 0 on average for random ones of the same sizes.

    Parameters
    ----------
    first, second
        Name of each row's part, [rows].

    Returns
    -------
    The Rand index, adjusted for chance; 1 where both put all rows together, or all apart.

    Raises
    ------
    InputError
        If the lengths differ, or there is no row.

    Reference
    ---------
    hubert1985comparing, eq. 5.
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or one.shape != two.shape or not one.size:
        found = f"their shapes are {list(one.shape)} and {list(two.shape)}"
        raise InputError(found, where="two partitions", expected="two lists of one length, at least 1")
    (_, a), (_, b) = (np.unique(part, return_inverse=True) for part in (one, two))
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    both, rows, columns = (float((n * (n - 1) / 2).sum()) for n in (table, table.sum(axis=1), table.sum(axis=0)))
    pairs = len(one) * (len(one) - 1) / 2
    chance = rows * columns / pairs if pairs else 0.0
    largest = (rows + columns) / 2
    return 1.0 if largest == chance else (both - chance) / (largest - chance)


def _pair(values: OneARow, y: OneARow, name: str) -> tuple[Vector, Vector]:
    first, outcomes = np.asarray(values, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != outcomes.shape or not first.size:
        found = f"their shapes are {list(first.shape)} and {list(outcomes.shape)}"
        raise InputError(found, where=f"{name} and y", expected="two lists of one length, at least 1")
    if not np.isin(outcomes, (0, 1)).all():
        raise InputError("an outcome is neither 0 nor 1", where="y", expected="0 and 1")
    return first, outcomes


def _probabilities(p: OneARow, y: OneARow) -> tuple[Vector, Vector]:
    probabilities, outcomes = _pair(p, y, "p")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError("a probability is outside [0, 1], or NaN", where="p", expected="numbers from 0 to 1")
    return probabilities, outcomes
