"""Is a system right as often as it is confident? Expected calibration error with a bootstrap of the sums of its bins.

With d_b the mean over all examples of (confidence - right) in bin b, the error is sum_b |d_b|: a function of a few means,
which are drawn together for all systems. Absolute values of noise are not zero, so that the error of a sample lies too high,
and those of its draws higher still. So the upper end of an interval is the percentile, and the lower end is reflected at the
estimate (davison1997bootstrap, section 5.2), or 0 where a calibrated system would often have as large an error: where the
estimate is not above the quantile of sum_b |d*_b - d_b|. A test holds its coverage to its level by
simulation, for well and badly calibrated systems; percentiles alone never cover the error 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy import ndarray

from sanov.scores import calibration_error, reliability_table
from sanov.systems.fidelity.resampling import FEW, draw_means, normal_means

__all__ = ["Calibrated", "Confidence", "calibrate"]


@dataclass(frozen=True, eq=False)
class Confidence:
    """How confident a system is of its answer, and whether the answer is right; NaN where it gave no probability.

    Parameters
    ----------
    system
        Name of the system.
    confidence
        The probability that it gives to its own answer.
    right
        1 where the answer is right, else 0.
    """

    system: str
    confidence: Float[ndarray, " rows"]
    right: Float[ndarray, " rows"]

    @property
    def known(self) -> ndarray:
        """Where there is a confidence."""
        return np.asarray(~np.isnan(self.confidence))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Calibration of some systems.

    Parameters
    ----------
    table
        Reliability, by system and bin.
    errors
        Expected calibration error of each system.
    draws
        The same of each bootstrap draw.
    noise
        For each draw, the error that a calibrated system with these gaps' spread would have.
    """

    table: pl.DataFrame
    errors: Mapping[str, float]
    draws: Mapping[str, Float[ndarray, " draws"]]
    noise: Mapping[str, Float[ndarray, " draws"]]

    def interval(self, system: str, confidence: float) -> tuple[float, float]:
        """Return the interval of a system's error."""
        error = self.errors[system]
        high = float(np.quantile(self.draws[system], (1 + confidence) / 2))
        calibrated = error <= float(np.quantile(self.noise[system], confidence))
        return (0.0 if calibrated else max(0.0, 2 * error - high)), high


def calibrate(systems: Sequence[Confidence], bins: int, draws: int, seed: int) -> Calibrated:
    """Return the reliability table, each system's calibration error, and its bootstrap draws.

    Parameters
    ----------
    systems
        Of the same examples.
    bins
        Of equal width, over [0, 1].
    draws, seed
        Of the bootstrap; without draws there are none.

    Reference
    ---------
    guo2017calibration.
    """
    tables, errors = [], {}
    for each in systems:
        p, y = each.confidence[each.known], each.right[each.known]
        tables.append(pl.DataFrame({"system": each.system, **reliability_table(p, y, bins)}))
        errors[each.system] = calibration_error(p, y, bins)
    table = pl.concat(tables)
    if not draws:
        return Calibrated(table, errors, {}, {})
    places, gaps = [_bin(each, bins) for each in systems], [_gap(each) for each in systems]
    mean = np.stack([np.bincount(place, gap, bins) for place, gap in zip(places, gaps, strict=True)]) / len(gaps[0])
    drawn = _draw_gaps(places, gaps, mean, draws, seed)
    known = np.array([each.known.mean() for each in systems])
    sizes, noise = (np.abs(values).sum(axis=2) / known for values in (drawn, drawn - mean))
    return Calibrated(table, errors, *(dict(zip(errors, values.T, strict=True)) for values in (sizes, noise)))


def _bin(each: Confidence, bins: int) -> Int[ndarray, " rows"]:
    edges = np.linspace(0, 1, bins + 1)  # those of the reliability table
    return np.searchsorted(edges[1:-1], np.where(each.known, each.confidence, 0.0))


def _gap(each: Confidence) -> Float[ndarray, " rows"]:
    return np.where(each.known, each.confidence - each.right, 0.0)


def _draw_gaps(
    places: Sequence[Int[ndarray, " rows"]],
    gaps: Sequence[Float[ndarray, " rows"]],
    mean: Float[ndarray, "systems bins"],
    draws: int,
    seed: int,
) -> Float[ndarray, "draws systems bins"]:
    """Draw the mean gap of every bin of every system."""
    rows, bins, flat = len(gaps[0]), mean.shape[1], mean.ravel()
    if rows <= FEW:
        values = np.zeros((rows, flat.size))
        for number, (place, gap) in enumerate(zip(places, gaps, strict=True)):
            values[np.arange(rows), number * bins + place] = gap
        return draw_means(values, draws, seed).reshape(draws, *mean.shape)
    both = list(zip(places, gaps, strict=True))
    blocks = [[_products(a, b, x, y, bins) for b, y in both] for a, x in both]
    covariance = np.block(blocks) / rows - np.outer(flat, flat)
    return normal_means(flat, covariance, rows, draws, seed).reshape(draws, *mean.shape)


def _products(
    first: Int[ndarray, " rows"],
    second: Int[ndarray, " rows"],
    x: Float[ndarray, " rows"],
    y: Float[ndarray, " rows"],
    bins: int,
) -> Float[ndarray, "bins bins"]:
    """Sum x y over the examples of each pair of bins."""
    return np.bincount(first * bins + second, x * y, bins * bins).reshape(bins, bins)
