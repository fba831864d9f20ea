"""The risk of maximum likelihood in an exponential family: its expansion, the projection, and what they ask of a sample.

For a family ``f = exp(theta . xi - Psi(theta))`` and a truth g that need not belong to it, the member closest to g has
``E xi = E_g xi``, and the estimate from n rows is R(n) = E D[f* || f^] away from it on average. With t the error of the
mean of the statistics and phi the Legendre dual of Psi,

    D = sum_(k >= 2) (k - 1) / k!  phi_k[t^k],     E t^2 = V / n,   E t^3 = K / n^2,   E t^4 = 3 sym(V V) / n^2 + ...

so that R(n) = a/n + b/n^2 + O(n^-3), where indices are raised with the inverse of G = Psi_2:

    a = tr(G^-1 V) / 2
    b = -1/3 Psi^ijk K_ijk + 3/8 ( -Psi^ijkl V_ij V_kl + Psi^ij_e Psi^ekl V_ij V_kl + 2 Psi^ik_e Psi^ejl V_ij V_kl )

Where g belongs to the family, V = G and K = Psi_3. In whitened coordinates, G = 1, with third and fourth cumulants
k3 and k4 and T1 = |k3|^2, T2 = sum_k (sum_i k3_iik)^2, K4 = sum_ij k4_iijj, this is

    R(n) = p / (2n) + (10 T1 + 9 T2 - 9 K4) / (24 n^2) + O(n^-3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.cubic_forms import CubicForm, ThirdMoments, symmetric
from sanov.risk_bounds import (
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

__all__ = [
    "BOUNDS",
    "GUARANTEES",
    "Bound",
    "CubicForm",
    "Expansion",
    "Guarantee",
    "ThirdMoments",
    "bayes_error_bound",
    "coin_toss_equivalent",
    "expand",
    "general_first_order",
    "information_projection",
    "kl_threshold",
    "largest_parameters",
    "required_sample_size",
    "risk",
    "risk_coefficients",
    "risk_limit",
    "symmetric",
    "well_specified",
    "whitening",
]

RELATIVE_CUT = 1e-9  # eigenvalues below this share of the largest are dependence, not variance
ROWS_AT_ONCE = 1024
MOST_STEPS = 200
SOLVED = 1e-18  # squared Newton decrement: twice the nats still to be gained
DEGENERATE = 1e-10  # a variance that has shrunk to this share of what it was, given the others: the boundary


@dataclass(frozen=True)
class Expansion:
    """Coefficients of the risk and of its dual.

    Parameters
    ----------
    a
        Of 1/n, nats times rows; shared by E D[f* || f^] and E D[f^ || f*].
    b
        Of 1/n^2 in E D[f* || f^].
    b_dual
        Of 1/n^2 in E D[f^ || f*]. The optimism of the log-likelihood is 2a/n + (b + b_dual)/n^2 per row.
    """

    a: float
    b: float
    b_dual: float


def expand(
    third: Float[ndarray, "p p p"],
    fourth: float,
    covariance: Float[ndarray, "p p"],
    skewness: Float[ndarray, "p p p"],
) -> Expansion:
    """Coefficients of the risk from cumulants in coordinates in which G = 1.

    Parameters
    ----------
    third
        Third cumulants of the model, Psi_ijk.
    fourth
        Fourth cumulants of the model contracted twice with the covariance of the data, sum_ijkl Psi_ijkl V_ij V_kl.
    covariance, skewness
        V and K: n and n^2 times the second and third moments of the error of the mean of the statistics.

    References
    ----------
    sheena2021pn (the expansion to this order; the form used here follows from the sum over phi_k above).
    """
    mixed = np.tensordot(covariance, third, (1, 0))
    twice = np.tensordot(covariance, mixed, (1, 1)).transpose(1, 0, 2)
    trace = np.einsum("ij,ijk->k", covariance, third)
    bracket = float(-fourth + trace @ trace + 2 * np.vdot(third, twice))
    cross = float(np.vdot(third, skewness))
    return Expansion(float(np.trace(covariance)) / 2, -cross / 3 + 3 * bracket / 8, -cross / 6 + bracket / 8)


def well_specified(p: int, t1: float | int, t2: float | int, k4: float | int) -> Expansion:
    """Coefficients of the risk where the truth belongs to the family.

    Parameters
    ----------
    p
        Number of parameters.
    t1, t2, k4
        |k3|^2 (Mardia's skewness of the statistics), |sum_i k3_ii.|^2, and sum_ij k4_iijj (Mardia's kurtosis less
        p(p+2)).

    Reference: mardia1970measures (the two measures).
    """
    return Expansion(p / 2, (10 * t1 + 9 * t2 - 9 * k4) / 24, (2 * t1 + 3 * t2 - 3 * k4) / 24)


def whitening(covariance: Float[ndarray, "p p"], cut: float = RELATIVE_CUT) -> Float[ndarray, "p r"]:
    """W with W' C W = 1 on the r directions in which C is not degenerate.

    Parameters
    ----------
    covariance
        C, symmetric and non-negative.
    cut
        Directions whose eigenvalue in the correlation matrix is below this share of the largest are left out.

    Raises
    ------
    InputError
        If an entry is not finite.
    """
    if not np.isfinite(covariance).all():
        raise InputError("an entry is not finite", where="covariance", expected="finite numbers")
    scale = np.sqrt(np.diag(covariance))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > cut * values.max()
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None])


def risk_coefficients(statistics: Float[ndarray, "rows statistics"], cut: float = RELATIVE_CUT) -> tuple[float, float]:
    """Coefficients (a, b) of the risk, with the sample's moments for the model's: no normaliser, no estimate.

    Parameters
    ----------
    statistics
        Sufficient statistics, a row per observation. Columns that depend linearly on others do not count.
    cut
        Relative cut of the eigenvalues that decides the rank.

    Returns
    -------
    a, b
        p/2 with p the rank, and (10 T1 + 9 T2 - 9 K4) / 24 from the sample's moments. They do not change under an
        invertible affine map of the statistics. A table with more rows than p^2 costs rows * p^3 / 6; a shorter one is
        done in pairs of rows, rows^2 * p. Neither holds a matrix of rows by rows.

    Raises
    ------
    InputError
        If there are not more rows than statistics, or one of them or its square is not finite.

    Reference: sheena2021pn.
    """
    rows = len(statistics)
    if rows <= statistics.shape[1]:
        raise InputError(
            f"n={rows}, p={statistics.shape[1]}: covariance is singular; reduce p or use first order",
            where="statistics",
        )
    if not np.isfinite(statistics).all():
        row, column = np.argwhere(~np.isfinite(statistics))[0]
        value = f"row {row}, column {column} is {statistics[row, column]}"
        raise InputError(value, where="statistics", expected="finite numbers")
    centred = statistics - statistics.mean(axis=0)
    white = centred @ whitening(centred.T @ centred / rows, cut)
    p = white.shape[1]
    length = np.einsum("ri,ri->r", white, white)
    t1 = _paired_skewness(white) if rows < p * p else _tensor_skewness(white)
    t2 = float(np.square(length @ white / rows).sum())
    found = well_specified(p, t1, t2, float(np.square(length).mean()) - p * (p + 2))
    return found.a, found.b


def _tensor_skewness(white: Float[ndarray, "rows p"]) -> float:
    moments = ThirdMoments(white.shape[1])
    moments.add(white)
    return float(np.square(moments.tensor() / len(white)).sum())


def _paired_skewness(white: Float[ndarray, "rows p"]) -> float:
    """Sum of the cubed inner products of all pairs of rows, a block of rows at a time."""
    blocks = (white[start : start + ROWS_AT_ONCE] @ white.T for start in range(0, len(white), ROWS_AT_ONCE))
    return float(sum(np.vdot(block * block, block) for block in blocks)) / len(white) ** 2


def general_first_order(
    expected: Float[ndarray, "p p"], observed: Float[ndarray, "p p"], score: Float[ndarray, "p p"]
) -> float:
    """Return a = tr(I A^-1 B A^-1) / 2 for any regular parametric family, exponential or not.

    Parameters
    ----------
    expected
        I: the model's Fisher information per row, the Hessian of D[f* || f_theta] at the projection.
    observed
        A: minus the mean second derivative of the log-density of the data.
    score
        B: the mean outer product of the scores.

    Reference: sheena2021pn. The term of order 1/n^2 is not known for such families.
    """
    half = np.linalg.solve(observed, expected)
    return float(np.trace(half @ np.linalg.solve(observed, score))) / 2


# -- the member closest to the data -----------------------------------------------------------------------------------

Moments = Callable[[Float[ndarray, " p"]], tuple[float, Float[ndarray, " p"], Float[ndarray, "p p"]]]


def information_projection(
    mean: Float[ndarray, " p"], moments: Moments, start: Float[ndarray, " p"]
) -> Float[ndarray, " p"]:
    """Natural parameter of the member whose statistics have this mean: the member closest in KL to any such truth.

    Newton's method with step halving on the convex function Psi(theta) - theta . mean.

    Parameters
    ----------
    mean
        Wanted mean of the statistics.
    moments
        theta -> (Psi, mean of the statistics, their covariance) under the member theta; Psi may be infinite.
    start
        A parameter with finite Psi.

    Raises
    ------
    InputError
        If no member has this mean: it lies on the boundary of the means that the family can have, or beyond.

    Reference: csiszar1975divergence.
    """
    theta = np.array(start, float)
    log_partition, current, covariance = moments(theta)
    scale = np.sqrt(np.diag(covariance))
    for _ in range(MOST_STEPS):
        gradient = mean - current
        step = _newton_step(covariance, gradient, scale)
        decrement = float(gradient @ step)
        if decrement < SOLVED:
            return np.asarray(theta + step)
        size, value = 1.0, log_partition - float(theta @ mean)
        while True:
            trial = theta + size * step
            log_partition, current, covariance = moments(trial)
            # what rounding hides from the function value, the decrement still sees: then the full step is taken
            if decrement < 1e-8 or log_partition - float(trial @ mean) <= value - 0.1 * size * decrement:
                break
            size /= 2
            if size < 1e-10:
                raise _no_member()
        theta = trial
    raise _no_member()


def _newton_step(
    covariance: Float[ndarray, "p p"], gradient: Float[ndarray, " p"], scale: Float[ndarray, " p"]
) -> Float[ndarray, " p"]:
    try:
        factor = np.linalg.cholesky(covariance / np.outer(scale, scale))
    except np.linalg.LinAlgError:
        raise _no_member() from None
    if not np.diag(factor).min() ** 2 > DEGENERATE:
        raise _no_member()
    half = np.linalg.solve(factor, gradient / scale)
    return np.asarray(np.linalg.solve(factor.T, half) / scale)


def _no_member() -> InputError:
    return InputError(
        "the MLE does not exist: the mean of the statistics lies on the boundary of what the family can have",
        where="information projection",
        fix="merge cells, drop the statistic that never varies given the others, or collect more rows",
    )
