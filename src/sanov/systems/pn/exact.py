"""Families whose cumulants, or whose very risk, are known in closed form: oracles, and the arms of the experiment.

An exact risk is E D[f* || f^] of the maximum-likelihood estimate; where the estimate fails to exist with positive
probability, the risk is that given that it exists.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special, stats

__all__ = [
    "Invariants",
    "bernoulli_risk",
    "exponential_invariants",
    "exponential_risk",
    "multinomial_invariants",
    "multinomial_risk",
    "normal_invariants",
    "normal_risk",
    "poisson_invariants",
    "poisson_risk",
]


class Invariants(NamedTuple):
    """T1 = |k3|^2, T2 = |sum_i k3_ii.|^2 and K4 = sum_ij k4_iijj of whitened statistics; additive over blocks."""

    t1: float
    t2: float
    k4: float


def normal_invariants(d: int) -> Invariants:
    """Return those of the d-variate normal distribution, the same for every member.

    The orthonormal statistics are w_i and w'S_a w with ``sum_a S_a[ij] S_a[kl] = (1_ik 1_jl + 1_il 1_jk) / 4``, from
    which T1 = d^3 + 6d^2 + 7d and T2 = 2d(d+2)^2; with r^2 = |w|^2 the squared length of the statistics is
    (r^4 + d)/2, from which K4 = E (r^4 + d)^2 / 4 - p(p+2).
    """
    p = d * (d + 3) // 2
    eighth = d * (d + 2) * (d + 4) * (d + 6)
    length = (eighth + 2 * d * d * (d + 2) + d * d) / 4
    return Invariants(float(d**3 + 6 * d**2 + 7 * d), float(2 * d * (d + 2) ** 2), length - p * (p + 2))


def poisson_invariants(means: Float[ndarray, " p"]) -> Invariants:
    """Return those of independent Poisson columns: the three are the sum of 1/mean."""
    total = float((1 / np.asarray(means)).sum())
    return Invariants(total, total, total)


def exponential_invariants(p: int) -> Invariants:
    """Return those of p independent exponential columns: 4, 4 and 6 each."""
    return Invariants(4.0 * p, 4.0 * p, 6.0 * p)


def multinomial_invariants(cells: Float[ndarray, " cells"]) -> Invariants:
    """Return those of p + 1 cells, in terms of M = sum of 1/probability."""
    p, m = len(cells) - 1, float((1 / np.asarray(cells)).sum())
    return Invariants(m - 3 * p - 1, m - 2 * p - 1 - p * p, m - p * p - 4 * p - 1)


def exponential_risk(n: int, shape: float | int = 1.0) -> float:
    """Risk of the exponential model under a Gamma truth of this shape and any scale; infinite where n shape <= 1.

    Parameters
    ----------
    n
        Rows.
    shape
        1 is a right model.
    """
    m = n * shape
    return float(special.digamma(m) - math.log(m) + 1 / (m - 1)) if m > 1 else math.inf


def normal_risk(n: int, d: int) -> float:
    """Risk of the d-variate normal model under a normal truth; infinite where n <= d + 2."""
    if n <= d + 2:
        return math.inf
    digammas = float(special.digamma((n - np.arange(1, d + 1)) / 2).sum())
    return 0.5 * (digammas + d * math.log(2 / n) + (n + 1) * d / (n - d - 2) - d)


def poisson_risk(n: int, mean: float | int) -> float:
    """Risk of the Poisson model under a Poisson truth, given that the sample is not all zero."""
    total = n * mean
    high = int(total + 15 * math.sqrt(total) + 40)
    sums = np.arange(1, high)
    weights = stats.poisson.pmf(sums, total)
    estimates = sums / n
    losses = mean * np.log(mean / estimates) + estimates - mean
    return float(weights @ losses / weights.sum())


def bernoulli_risk(n: int, probability: float) -> float:
    """Risk of one coin, given that both sides came up."""
    return multinomial_risk(n, np.array([probability, 1 - probability]))


def multinomial_risk(n: int, cells: Float[ndarray, " cells"]) -> float:
    """Risk of the multinomial model under a multinomial truth, given that no cell is empty, by enumeration.

    Parameters
    ----------
    n
        Rows.
    cells
        Probabilities of two or three cells.
    """
    if len(cells) == 2:
        first = np.arange(1, n)
        counts = np.stack([first, n - first], axis=1)
    else:
        pairs = [(i, j) for i, j in itertools.product(range(1, n - 1), repeat=2) if i + j < n]
        head = np.array(pairs)
        counts = np.column_stack([head, n - head.sum(axis=1)])
    logs = special.gammaln(n + 1) - special.gammaln(counts + 1).sum(axis=1) + counts @ np.log(cells)
    weights = np.exp(logs)
    losses = -(np.log(counts / n) - np.log(cells)) @ np.asarray(cells)
    return float(weights @ losses / weights.sum())
