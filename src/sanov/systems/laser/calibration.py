"""How well scores tell right from wrong, whether they are probabilities, and where the best verdict is.

What is fitted is fitted on some prompts, and judged on the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int
from scipy.special import expit, log_expit

from sanov.core.errors import InputError
from sanov.scores import auroc, brier, calibration_error, reliability_table

__all__ = ["Platt", "by_length", "fit_platt", "fit_threshold", "harmonic", "held_out", "reliability_frame", "verdicts"]

OneARow = Sequence[Any] | np.ndarray
Scores = Float64[np.ndarray, " rows"]
Right = Bool[np.ndarray, " rows"]


def verdicts(scores: OneARow, right: OneARow, *, threshold: float = 0.5, bins: int = 15) -> dict[str, float]:
    """Say how well scores tell right from wrong; NaN where a number is not defined.

    Parameters
    ----------
    scores
        A score above the threshold says that a row is right. As probabilities they are held in [0, 1].
    right
        Whether it is.
    threshold
        Of the verdict.
    bins
        Of the calibration error.

    Returns
    -------
    ``acc``, the share of verdicts that are right, and the same among right and among wrong rows (``acc_pos``,
    ``acc_neg``); ``f1``, the harmonic mean of the last two, which is what the paper calls F1; ``auroc``; ``ece`` and
    ``brier``.

    Raises
    ------
    InputError
        The lengths differ.

    Reference
    ---------
    yang2025laser; guo2017calibration.
    """
    scores, right = _pair(scores, right, "the score")
    nan = math.nan
    if not len(scores):
        return dict.fromkeys(("acc", "acc_pos", "acc_neg", "f1", "auroc", "ece", "brier"), nan)
    good = (scores > threshold) == right
    held = np.clip(scores, 0, 1)
    return {
        "acc": float(good.mean()),
        "acc_pos": float(good[right].mean()) if right.any() else nan,
        "acc_neg": float(good[~right].mean()) if not right.all() else nan,
        "f1": harmonic(scores, right, threshold),
        "auroc": auroc(scores, right),
        "ece": calibration_error(held, right, bins),
        "brier": brier(held, right),
    }


def harmonic(scores: Scores, right: Right, threshold: float) -> float:
    """Return the harmonic mean of accuracy on right and on wrong rows; NaN where one of the two is missing."""
    if right.all() or not right.any():
        return math.nan
    good = (scores > threshold) == right
    of_right, of_wrong = float(good[right].mean()), float(good[~right].mean())
    return 2 * of_right * of_wrong / (of_right + of_wrong) if of_right + of_wrong else 0.0


@dataclass(frozen=True)
class Platt:
    """Probability that an answer is right, 1 / (1 + exp(-(slope * score + intercept)))."""

    slope: float
    intercept: float

    def __call__(self, scores: OneARow) -> Scores:
        """Return the probability of each score."""
        found: Scores = expit(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)
        return found


def fit_platt(scores: OneARow, right: OneARow) -> Platt:
    """Fit the probability of being right by maximum likelihood, on targets drawn in from 0 and 1 as Platt does.

    The targets are (n_1 + 1) / (n_1 + 2) and 1 / (n_0 + 2), so that the fit exists where scores separate the two.

    Parameters
    ----------
    scores, right
        Of completions that are not judged by it afterwards.

    Raises
    ------
    InputError
        There is one class only, or the lengths differ.

    Reference
    ---------
    platt1999probabilistic, sec. 2.2.
    """
    scores, right = _both(scores, right, "the probability")
    from scipy.optimize import minimize

    ones = int(right.sum())
    zeros = len(right) - ones
    target = np.where(right, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    centre, spread = float(np.mean(scores)), float(np.std(scores)) or 1.0
    x = (scores - centre) / spread  # so that the tolerance means the same for all scales

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights[0] * x + weights[1]
        value = -(target * log_expit(z) + (1 - target) * log_expit(-z)).sum()
        slack = expit(z) - target
        return float(value), np.array([slack @ x, slack.sum()])

    start = np.array([0.0, np.log((ones + 1) / (zeros + 1))])
    a, b = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9 * len(x)}).x
    return Platt(float(a / spread), float(b - a * centre / spread))


def fit_threshold(scores: OneARow, right: OneARow) -> float:
    """Return the threshold with the largest harmonic mean of accuracy on right and on wrong rows.

    It lies in the middle between two scores; of several, the lowest.

    Parameters
    ----------
    scores, right
        Of completions that are not judged by it afterwards.

    Raises
    ------
    InputError
        There is one class only, or the lengths differ.
    """
    scores, right = _both(scores, right, "score_threshold")
    distinct, inverse = np.unique(scores, return_inverse=True)
    if len(distinct) == 1:
        return float(distinct[0])
    ones = np.bincount(inverse, right, len(distinct))
    zeros = np.bincount(inverse, ~right, len(distinct))
    above = 1 - np.cumsum(ones)[:-1] / ones.sum()  # right rows above each gap
    below = np.cumsum(zeros)[:-1] / zeros.sum()  # wrong rows below it
    total = above + below
    harmonic = np.divide(2 * above * below, total, out=np.zeros_like(total), where=total > 0)
    best = int(np.argmax(harmonic))
    return float((distinct[best] + distinct[best + 1]) / 2)


def held_out(groups: Int[np.ndarray, " rows"], share: float, seed: int) -> Bool[np.ndarray, " rows"]:
    """Return the rows to fit on: those of a share of the prompts, so that no prompt is on both sides.

    Parameters
    ----------
    groups
        The prompt of each row.
    share
        Of the prompts; at least one is on either side, where there are two.
    seed
        Of the choice.
    """
    prompts = np.unique(groups)
    count = int(np.clip(round(share * len(prompts)), min(1, len(prompts) - 1), len(prompts) - 1))
    chosen = np.random.default_rng([seed, len(prompts)]).permutation(prompts)[:count]
    found: Bool[np.ndarray, " rows"] = np.isin(groups, chosen)
    return found


def reliability_frame(probabilities: Scores, right: Right, bins: int = 15) -> pl.DataFrame:
    """Return predicted against observed by bins, as a table.

    Parameters
    ----------
    probabilities
        Held in [0, 1].
    right
        Outcomes.
    bins
        Number of bins.
    """
    return pl.DataFrame(reliability_table(np.clip(probabilities, 0, 1), right, bins))


def by_length(
    scores: Scores, right: Right, lengths: Int[np.ndarray, " rows"], *, threshold: float = 0.5, strata: int = 4
) -> pl.DataFrame:
    """Judge scores among completions of like length, where length itself says little.

    Parameters
    ----------
    scores, right
        Of completions.
    lengths
        Their tokens.
    threshold
        Of the verdict.
    strata
        Parts of about equally many rows; fewer where many lengths are equal.

    Returns
    -------
    A row a part: ``from_tokens``, ``to_tokens``, ``rows``, ``right``, and the numbers of `verdicts`.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, strata + 1)[1:-1], method="inverted_cdf"))
    part = np.searchsorted(edges, lengths)  # a part holds its upper edge
    rows = []
    for place in np.unique(part):
        own = part == place
        found = verdicts(scores[own], right[own], threshold=threshold)
        told = {name: value if value == value else None for name, value in found.items()}
        span = {"from_tokens": int(lengths[own].min()), "to_tokens": int(lengths[own].max())}
        rows.append({**span, "rows": int(own.sum()), "right": float(right[own].mean()), **told})
    return pl.DataFrame(rows, infer_schema_length=None)


def _pair(scores: OneARow, right: OneARow, where: str) -> tuple[Scores, Right]:
    if len(scores) != len(right):
        found = f"there are {len(scores)} scores and {len(right)} labels"
        raise InputError(found, where=where, expected="one label a score")
    return np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)


def _both(scores: OneARow, right: OneARow, where: str) -> tuple[Scores, Right]:
    """Return scores and labels, of which some are right and some wrong."""
    values, labels = _pair(scores, right, where)
    if labels.all() or not labels.any():
        one = "right" if len(labels) and labels.all() else "wrong"
        found = f"all {len(labels)} completions to fit on are {one}"
        raise InputError(found, where=where, expected="right and wrong ones", fix="give more prompts")
    return values, labels
