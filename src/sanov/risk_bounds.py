"""What a Kullback-Leibler risk R(n) = a/n + b/n^2 means: Bayes errors, rows, parameters, coin tosses.

The Bayes error between two distributions at equal priors is ``Er = (1 - TV) / 2``: one half means that no test tells
them apart. Each bound turns a Kullback-Leibler divergence D into a lower bound of Er, and so an allowed gap epsilon of
Er from one half into a threshold delta on D.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import integrate, optimize, stats

from sanov.core.errors import InputError

__all__ = [
    "BOUNDS",
    "GUARANTEES",
    "Bound",
    "Guarantee",
    "bayes_error_bound",
    "coin_toss_equivalent",
    "kl_threshold",
    "largest_parameters",
    "required_sample_size",
    "risk",
    "risk_limit",
]

Bound = Literal["pinsker", "bretagnolle_huber", "sharp"]
Guarantee = Literal["mean", "markov", "chi2"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)
COIN = (0.5, 0.75)  # a and b of one fair coin
FAR = 7.0  # nats beyond which the least KL is that of a coin without tails, by less than rounding


def _check_bound(kind: str) -> None:
    if kind not in BOUNDS:
        raise InputError(f"the bound is {kind!r}", where="bound", expected=f"one of {', '.join(BOUNDS)}")


def _binary_kl(p: float, q: float) -> float:
    """KL between two coins that show heads with probabilities p and q, 0 < q < 1."""
    one = p * math.log(p / q) if p > 0 else 0.0
    other = (1 - p) * math.log1p((q - p) / (1 - q)) if p < 1 else 0.0
    return one + other


def _least_kl(variation: float) -> float:
    """L(v): the least KL between two distributions at total variation v; two coins attain it.

    The first of them shows one side rarely, and from v = 0.96 on practically never.
    """
    if variation <= 0:
        return 0.0
    if variation >= 1:
        return math.inf
    found = optimize.minimize_scalar(
        lambda p: _binary_kl(p, p + variation),
        bounds=(0.0, 1 - variation),
        method="bounded",
        options={"xatol": 1e-14},
    )
    return min(float(found.fun), _binary_kl(0.0, variation))


def kl_threshold(epsilon: float | int, kind: str = "pinsker") -> float:
    """Return delta: the largest KL that keeps the Bayes error within `epsilon` of one half.

    Parameters
    ----------
    epsilon
        Allowed gap, in (0, 1/2).
    kind
        ``pinsker``: 8 epsilon^2; ``bretagnolle_huber``: -log(1 - 4 epsilon^2), the larger of these two only for epsilon
        above 0.446; ``sharp``: the exact minimum of KL at TV = 2 epsilon, found numerically over pairs of coins.

    Raises
    ------
    InputError
        If `epsilon` is out of range or there is no such bound.

    References
    ----------
    bretagnolle1979estimation; fedotov2003refinements (the exact minimum).
    """
    _check_bound(kind)
    if not 0 < epsilon < 0.5:
        raise InputError(f"the value is {epsilon!r}", where="epsilon", expected="a number > 0 and < 0.5")
    if kind == "pinsker":
        return 8 * epsilon**2
    if kind == "bretagnolle_huber":
        return -math.log1p(-4 * epsilon**2)
    return _least_kl(2 * epsilon)


def bayes_error_bound(kl: float | int, kind: str = "pinsker") -> float:
    """Lower bound of the Bayes error, at equal priors, of two distributions that are `kl` apart.

    Parameters
    ----------
    kl
        Kullback-Leibler divergence in either direction, nats. An expected divergence gives a bound of the expected
        Bayes error: the three bounds are convex in `kl` (Jensen).
    kind
        As in `kl_threshold`, whose inverse this is: at ``kl_threshold(epsilon)`` it returns 1/2 - epsilon.

    Raises
    ------
    InputError
        If `kl` is negative or there is no such bound.

    References
    ----------
    bretagnolle1979estimation; fedotov2003refinements.
    """
    _check_bound(kind)
    if not kl >= 0:
        raise InputError(f"the divergence is {kl!r}", where="kl", expected="a number >= 0")
    if kind == "pinsker":
        return (1 - min(math.sqrt(kl / 2), 1.0)) / 2
    if kind == "bretagnolle_huber":  # (1 - sqrt(1 - exp(-kl))) / 2, without its cancellation
        return math.exp(-kl) / (1 + math.sqrt(-math.expm1(-kl))) / 2
    return math.exp(-kl) / 2 if kl > FAR else (1 - _variation(kl)) / 2


def _variation(kl: float | int) -> float:
    """Invert `_least_kl` up to `FAR`; the other two bounds are upper ones of the variation."""
    high = math.sqrt(min(kl / 2, -math.expm1(-kl)))
    if kl == 0 or _least_kl(high) <= kl:
        return high
    return float(optimize.brentq(lambda v: _least_kl(v) - kl, 0.0, high, xtol=1e-14))


def risk(a: float | int, b: float | int, rows: float | int) -> float:
    """R(n) = a/n + b/n^2, nats.

    Parameters
    ----------
    a, b
        The coefficients, nats times rows and nats times rows squared.
    rows
        n.
    """
    return a / rows + b / rows**2


def required_sample_size(a: float | int, b: float | int, delta: float | int) -> float:
    """Return n*: the rows at which a/n + b/n^2 has come down to delta (not rounded).

    Where b < 0 the expansion rises before it falls; n* is the larger root, on the falling side.

    Parameters
    ----------
    a, b
        Coefficients of the risk, a > 0.
    delta
        Largest accepted risk, nats.

    Raises
    ------
    InputError
        If a or delta is not positive, or b is so negative that the expansion never reaches delta.
    """
    if not a > 0 or not delta > 0:
        raise InputError(f"a = {a:.6g}, delta = {delta:.6g}", where="required_sample_size", expected="both above 0")
    discriminant = a * a + 4 * b * delta
    if discriminant < 0:
        raise InputError(
            f"no n meets delta = {delta:.6g} at second order; first-order n* is {a / delta:.6g}",
            where=f"b = {b:.6g}",
            fix="use order=1",
        )
    return (a + math.sqrt(discriminant)) / (2 * delta)


def largest_parameters(rows: float | int, delta: float | int, ratio: float | int = 1.0) -> float:
    """How many parameters `rows` carry at first order: p with ratio p / (2n) = delta (not rounded).

    Parameters
    ----------
    rows
        n.
    delta
        Largest accepted risk, nats; 8 epsilon^2 gives 16 epsilon^2 n.
    ratio
        tr(G^-1 V) / p: 1 where the model is right, larger where the data vary more than it says.
    """
    return 2 * rows * delta / ratio


def coin_toss_equivalent(kl: float | int) -> float:
    """Tosses m after which the bias of a fair coin is known with this risk: 1/(2m) + 3/(4m^2) = `kl`.

    Parameters
    ----------
    kl
        The risk of a model, nats, above 0.
    """
    return required_sample_size(*COIN, kl)


# -- guarantees that hold with high probability -----------------------------------------------------------------------


def risk_limit(
    delta: float | int,
    guarantee: str = "mean",
    *,
    confidence: float | int = 0.95,
    eigenvalues: Float[ndarray, " p"] | None = None,
) -> float:
    """Return the largest expected risk under which the divergence D itself is at most delta, as far as is asked.

    Parameters
    ----------
    delta
        Threshold on D, nats.
    guarantee
        ``mean``: E D <= delta, so delta itself. ``markov``: P(D > delta) <= 1 - confidence by Markov's inequality, so
        (1 - confidence) delta. ``chi2``: the same from the limit law of 2nD, a sum of chi-squares of one degree
        weighted by the eigenvalues of G^-1 V.
    confidence
        Probability of D <= delta, in (0, 1); ``mean`` ignores it.
    eigenvalues
        For ``chi2``: the eigenvalues of G^-1 V, all ones where the model is right.

    Raises
    ------
    InputError
        If there is no such guarantee, or ``chi2`` lacks its eigenvalues, one is not finite, or none is positive.
    """
    if guarantee not in GUARANTEES:
        raise InputError(f"the guarantee is {guarantee!r}", where="guarantee", expected=f"one of {GUARANTEES}")
    if not 0 < confidence < 1:
        raise InputError(f"the value is {confidence!r}", where="confidence", expected="a number > 0 and < 1")
    if guarantee == "mean":
        return delta
    if guarantee == "markov":
        return (1 - confidence) * delta
    if eigenvalues is None:
        raise InputError("chi2 needs the eigenvalues of G^-1 V", where="eigenvalues")
    weights = np.asarray(eigenvalues, float)
    if not np.isfinite(weights).all() or not (weights > 0).any():
        found = f"they are {weights.tolist()}"
        raise InputError(found, where="eigenvalues", expected="finite numbers, one of them above 0")
    weights = weights[weights > 1e-12 * weights.max()]
    return float(delta * weights.sum() / _weighted_chi_square_quantile(weights, confidence))


def _weighted_chi_square_quantile(weights: Float[ndarray, " p"], confidence: float | int) -> float:
    if np.ptp(weights) <= 1e-9 * weights.max():
        return float(weights.mean() * stats.chi2.ppf(confidence, len(weights)))
    scale = float(weights.sum())
    share = weights / scale  # a sum of mean 1
    low, high = 1.0, 1.0
    while _tail(share, high) > 1 - confidence:
        high *= 2
    while _tail(share, low) < 1 - confidence:
        low /= 2
    return scale * float(optimize.brentq(lambda x: _tail(share, x) - (1 - confidence), low, high, rtol=1e-10))


def _tail(weights: Float[ndarray, " p"], x: float) -> float:
    """P(sum_i w_i chi2_1 > x), x > 0.

    It is ``(2 pi i)^-1`` times the integral of ``exp(K(s) - s x) / s``, with K the cumulant generating function, along a
    path through the saddle point on (0, 1 / (2 max w)), or through the one below 0 plus the residue 1 of the pole. The
    only cut is the real axis beyond 1 / (2 max w), so the path may bend to the right on both sides, where the integrand
    falls like a Gaussian and the trapezoidal rule converges geometrically.

    Reference: rice1980distribution.
    """
    end = 0.5 / float(weights.max())
    below = x < float(weights.sum())
    bracket = (-(len(weights) + 2) / x, -1e-12 * end) if below else (1e-12 * end, (1 - 1e-12) * end)

    def slope(s: float) -> float:
        return float((weights / (1 - 2 * weights * s)).sum()) - 1 / s - x

    start = float(optimize.brentq(slope, *bracket))
    width = float((2 * (weights / (1 - 2 * weights * start)) ** 2).sum() + start**-2) ** -0.5
    y = width * np.linspace(0, 60, 6001)
    path, velocity = start + y**2 / (4 * width) + 1j * y, y / (2 * width) + 1j
    exponent = -0.5 * np.log(1 - 2 * np.multiply.outer(path, weights)).sum(axis=1) - path * x
    values = (np.exp(exponent) * velocity / path).imag
    return float(below + integrate.trapezoid(values, y) / math.pi)
