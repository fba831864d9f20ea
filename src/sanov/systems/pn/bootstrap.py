"""Intervals of a and b: a multiplier bootstrap of per-row terms, from one pass over the rows.

To first order an estimate moves by the mean of its rows' terms (its influence function), so that reweighting the rows
needs no second look at them. Each independent unit c gets random multipliers e_c of mean and variance one; a replicate
is

    b* = b + sum_c (e_c - 1) term_c / N,       a* = a exp( sum_c (e_c - 1) term_c / (N a) ),

the second on the logarithmic scale, so that a* stays positive. The multipliers are exponential, which makes this the
first-order form of the Bayesian bootstrap (rubin1981bayesian; vandervaart1996weak, section 3.6). All replicates are made
at once; nothing of the size of the table is held but two numbers per unit. Where the statistics have so heavy tails that
the moments of twice their order are badly known, the intervals are too short, as every bootstrap's are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

__all__ = ["interval", "multiplier_replicates"]

UNITS_AT_ONCE = 8192


def multiplier_replicates(
    a: float,
    b: float,
    terms: Float[ndarray, "units 2"],
    copies: Float[ndarray, " units"],
    total: float,
    *,
    replicates: int,
    seed: int,
) -> Float[ndarray, "replicates 2"]:
    """Draw replicates of (a, b).

    Parameters
    ----------
    a, b
        The estimates.
    terms
        Per unit, its terms of a and of b; with `copies` as weights they add up to zero.
    copies
        How many equal, independent units each stands for (their multipliers are added up).
    total
        N, which the sum of the terms is divided by.
    replicates
        How many.
    seed
        Of the multipliers.
    """
    rng = np.random.default_rng(seed)
    shift = np.zeros((replicates, 2))
    for start in range(0, len(terms), UNITS_AT_ONCE):
        part = slice(start, start + UNITS_AT_ONCE)
        count = copies[part]
        if (count == 1).all():
            multipliers = rng.standard_exponential((replicates, len(count)))
        else:
            multipliers = rng.standard_gamma(np.broadcast_to(count, (replicates, len(count))))
        shift += (multipliers - count) @ terms[part]
    shift /= total
    return np.stack([a * np.exp(shift[:, 0] / a) if a > 0 else a + shift[:, 0], b + shift[:, 1]], axis=1)


def interval(
    replicates: Float[ndarray, "replicates 2"], of: Callable[[float, float], float], confidence: float
) -> tuple[float, float]:
    """Percentile interval of a function of (a, b); replicates where it is not finite count as infinitely large.

    Parameters
    ----------
    replicates
        From `multiplier_replicates`.
    of
        The function.
    confidence
        Probability that the interval should cover.
    """
    values = np.sort([of(float(a), float(b)) for a, b in replicates])
    values = np.where(np.isfinite(values), values, np.inf)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.sort(values), [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
