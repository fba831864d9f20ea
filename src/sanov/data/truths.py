"""Distributions for which the risk of a family's maximum-likelihood estimate is known, exactly or by simulation.

A `Truth` is a sampler of rows, the family that is fitted to them (which need not contain it), and the divergence
D[f* || f^] of a fitted member from the projection f*, simulated straight from the sampling distribution of the
sufficient statistics. Its quadratic and cubic parts in the error t of the mean of the statistics have the exact mean
a/n + c/n^2, as the second and third moments of t are known. `risk` averages what is left, which is of order n^-2 and so
is its standard deviation, and adds that mean back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, special, stats

BATCH, MOST = 2_000, 5_000_000  # replicates at a time, and in all

__all__ = ["TRUTHS", "Risk", "Truth", "population_truth", "risk", "sample_size"]

Simulation = tuple[Float[ndarray, " replicates"], Float[ndarray, " replicates"]]  # D; its quadratic and cubic parts


@dataclass(frozen=True)
class Truth:
    """A distribution, a family, and what is known of the estimation risk.

    Parameters
    ----------
    name
        In a table.
    family
        The family fitted to the rows, as `pn` names it.
    parameters
        Its number of free parameters p.
    inside
        Whether the family contains the truth.
    first, second
        The coefficients of R(n) = a/n + b/n^2; `second` is None for a population.
    cubic
        c: n^2 times the mean of the cubic part of the divergence.
    sample
        ``sample(rng, rows)``: rows of data.
    simulate
        ``simulate(rng, rows, replicates)``: divergences of fits to so many samples, and their first two parts.
        Samples without an estimate are left out.
    exact
        The risk at n rows in closed form, where there is one.
    population
        The table that is the truth, where one is.
    """

    name: str
    family: str
    parameters: int
    inside: bool
    first: float
    second: float | None
    cubic: float
    sample: Callable[[np.random.Generator, int], Float[ndarray, "rows columns"]]
    simulate: Callable[[np.random.Generator, int, int], Simulation]
    exact: Callable[[float], float] | None = None
    population: Float[ndarray, "rows columns"] | None = None


@dataclass(frozen=True)
class Risk:
    """A simulated risk (nats) and its standard error."""

    mean: float
    error: float


def risk(truth: Truth, rows: int, precision: float, rng: np.random.Generator) -> Risk:
    """Simulate the risk at a number of rows, given that the estimate exists.

    Parameters
    ----------
    truth, rows
        Of what, and n.
    precision
        Wanted standard error, relative to a/n. A first batch tells how many replicates that takes.
    rng
        Of the samples.
    """
    wanted = precision * truth.first / rows
    rest = _rest(truth, rows, rng)
    batches = math.ceil(min((rest.std(ddof=1) / wanted) ** 2, MOST) / BATCH)
    rest = np.concatenate([rest, *(_rest(truth, rows, rng) for _ in range(1, batches))])
    known = truth.first / rows + truth.cubic / rows**2
    return Risk(known + float(rest.mean()), float(rest.std(ddof=1) / np.sqrt(len(rest))))


def _rest(truth: Truth, rows: int, rng: np.random.Generator) -> Float[ndarray, " replicates"]:
    divergences, parts = truth.simulate(rng, rows, BATCH)
    return np.asarray(divergences - parts)


def sample_size(truth: Truth, delta: float, precision: float, rng: np.random.Generator) -> float:
    """Return the n at which the risk is `delta`: a root of the exact risk, or of a/n + b/n^2 with b fitted near it.

    Parameters
    ----------
    truth, delta
        Of what, and the threshold, nats.
    precision
        Relative standard error of the simulated risk, and so about that of n.
    rng
        Of the samples.
    """
    exact = truth.exact
    if exact is not None:
        return float(optimize.brentq(lambda n: exact(n) - delta, truth.first / delta, 100 * truth.first / delta))
    rows = truth.first / delta
    for _ in range(2):  # b absorbs the terms above it, and is right at the n where it is fitted
        nearby = round(rows)
        second = (risk(truth, nearby, precision, rng).mean - truth.first / nearby) * nearby**2
        rows = (truth.first + np.sqrt(truth.first**2 + 4 * second * delta)) / (2 * delta)
    return float(rows)


# -- waiting times and counts -----------------------------------------------------------------------------------------


def _gamma(shape: float) -> Truth:
    """Gamma times under the exponential family, with mean 1: the family contains it where the shape is 1."""

    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.gamma(shape, 1 / shape, (rows, 1))

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        mean = rng.gamma(shape * rows, 1 / (shape * rows), replicates)
        return np.log(mean) + 1 / mean - 1, (mean - 1) ** 2 / 2 - 2 * (mean - 1) ** 3 / 3

    def exact(rows: float) -> float:
        n = shape * rows
        return float(special.digamma(n) - np.log(n) + 1 / (n - 1)) if n > 1 else np.inf

    name = "exponential" if shape == 1 else f"gamma {shape:g} under exponential"
    a, b, c = 1 / (2 * shape), 11 / (12 * shape**2), -4 / (3 * shape**2)
    return Truth(name, "exponential", 1, shape == 1, a, b, c, sample, simulate, exact)


def _poisson(rate: float) -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.poisson(rate, (rows, 1)).astype(float)

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        mean = rng.poisson(rate * rows, replicates) / rows
        mean = mean[mean > 0]
        shift = mean / rate - 1
        return rate * (shift - np.log1p(shift)), rate * (shift**2 / 2 - shift**3 / 3)

    return Truth("poisson", "poisson", 1, True, 0.5, 5 / (12 * rate), -1 / (3 * rate), sample, simulate)


def _multinomial(shares: Float[ndarray, " cells"]) -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.choice(len(shares), (rows, 1), p=shares).astype(float)

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        found = rng.multinomial(rows, shares, replicates) / rows
        shift = found[(found > 0).all(axis=1)] / shares - 1
        return -np.log1p(shift) @ shares, (shift**2 / 2 - shift**3 / 3) @ shares

    p = len(shares) - 1
    second = (5 * float((1 / shares).sum()) - 6 * p - 5) / 12
    cubic = -float(((1 - shares) * (1 - 2 * shares) / shares).sum()) / 3
    return Truth("multinomial", "multinomial", p, True, p / 2, second, cubic, sample, simulate)


# -- the normal family ------------------------------------------------------------------------------------------------


def _from_standard_normal(
    mean: Float[ndarray, "replicates d"], covariance: Float[ndarray, "replicates d d"]
) -> Simulation:
    """Return D[N(0, I) || N(mean, covariance)] with its quadratic and cubic parts in mean and second moments."""
    dimension = mean.shape[1]
    inverse = np.linalg.inv(covariance)
    divergence = (
        np.trace(inverse, axis1=1, axis2=2)
        + np.einsum("ri,rij,rj->r", mean, inverse, mean)
        - dimension
        + np.linalg.slogdet(covariance)[1]
    ) / 2
    second = covariance + mean[:, :, None] * mean[:, None, :] - np.eye(dimension)
    quadratic = (mean**2).sum(axis=1) / 2 + (second**2).sum(axis=(1, 2)) / 4
    cubic = (
        -np.einsum("ri,rij,rj->r", mean, second, mean) - np.einsum("rij,rjk,rki->r", *[second] * 3, optimize=True) / 3
    )
    return divergence, quadratic + cubic


def _cubic_of_normal(dimension: int, fourth: float, sixth: float) -> float:
    """Return c of the normal family, from E r^4 and E r^6 of the whitened truth, r its distance from the mean."""
    return -(fourth - dimension) - (sixth - 3 * fourth + 2 * dimension) / 3


def _normal(dimension: int) -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows d"]:
        return rng.standard_normal((rows, dimension))

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        mean = rng.standard_normal((replicates, dimension)) / np.sqrt(rows)
        scatter = stats.wishart(rows - 1, np.eye(dimension)).rvs(replicates, random_state=rng)
        return _from_standard_normal(mean, scatter.reshape(replicates, dimension, dimension) / rows)

    def exact(rows: float) -> float:
        d = dimension
        if rows <= d + 2:
            return np.inf
        degrees = special.digamma((rows - np.arange(1, d + 1)) / 2).sum()
        return float(degrees + d * np.log(2 / rows) + (rows + 1) * d / (rows - d - 2) - d) / 2

    d, p = dimension, dimension * (dimension + 3) // 2
    second = (d * (d + 2) * (d + 3) - d * (d + 1) * (2 * d + 1) / 12 - d * (d + 1) / 2 - d / 3) / 2
    cubic = _cubic_of_normal(d, float(d * (d + 2)), float(d * (d + 2) * (d + 4)))
    return Truth(f"normal, d={d}", "gaussian", p, True, p / 2, second, cubic, sample, simulate, exact)


def _laplace() -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.laplace(0, np.sqrt(0.5), (rows, 1))

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        x = rng.laplace(0, np.sqrt(0.5), (replicates, rows))
        return _from_standard_normal(x.mean(axis=1)[:, None], x.var(axis=1)[:, None, None])

    cubic = _cubic_of_normal(1, 6.0, 90.0)  # E x^2k = (2k)! / 2^k
    return Truth("laplace under normal", "gaussian", 2, False, 7 / 4, 197 / 24, cubic, sample, simulate)


def population_truth(name: str, values: Float[ndarray, "rows columns"]) -> Truth:
    """Rows drawn with replacement from a table, under the normal family: the table is the truth, so it is known.

    Parameters
    ----------
    name
        What to call it.
    values
        The population; its covariance must be regular.
    """
    size, dimension = values.shape
    centred = values - values.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(centred.T @ centred / size), centred.T).T
    products = (white[:, :, None] * white[:, None, :]).reshape(size, -1)
    moments = np.hstack([white, products])
    first = ((white**2).sum() + ((products - np.eye(dimension).ravel()) ** 2).sum() / 2) / (2 * size)

    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows columns"]:
        return values[rng.integers(size, size=rows)]

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        even = np.full(size, 1 / size)
        means = rng.multinomial(rows, even, replicates) @ moments / rows
        mean = means[:, :dimension]
        second = means[:, dimension:].reshape(-1, dimension, dimension)
        return _from_standard_normal(mean, second - mean[:, :, None] * mean[:, None, :])

    p = dimension * (dimension + 3) // 2
    distances = (white**2).sum(axis=1)
    cubic = _cubic_of_normal(dimension, float((distances**2).mean()), float((distances**3).mean()))
    return Truth(name, "gaussian", p, False, float(first), None, cubic, sample, simulate, population=values)


# -- three spins ------------------------------------------------------------------------------------------------------

SPINS = np.array([[s1, s2, s3] for s1 in (-1, 1) for s2 in (-1, 1) for s3 in (-1, 1)], dtype=float)
PAIRS = np.column_stack([SPINS, SPINS[:, [0, 0, 1]] * SPINS[:, [1, 2, 2]]])
FIELD = np.array([0.2, -0.1, 0.3, 0.3, 0.2, -0.25])  # s1 s2 s3 s12 s13 s23
TILT = 0.5  # of s1 s2 s3, which no pair can express


def _spins(name: str, tilt: float, statistics: Float[ndarray, "states p"], *, inside: bool, family: str) -> Truth:
    shares = special.softmax(PAIRS @ FIELD + tilt * SPINS.prod(axis=1))
    target = shares @ statistics
    projection, _ = _moment_match(target[None], statistics, np.zeros(statistics.shape[1]))
    start = projection[0]
    found = _coefficients(statistics, special.softmax(statistics @ start), shares)
    normaliser = special.logsumexp(statistics @ start)

    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 3"]:
        return SPINS[rng.choice(len(SPINS), rows, p=shares)]

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        means = rng.multinomial(rows, shares, replicates) @ statistics / rows
        fitted, exists = _moment_match(means, statistics, start)
        fitted, shift = fitted[exists], (means[exists] - target) @ found.white
        divergence = special.logsumexp(fitted @ statistics.T, axis=1) - normaliser - (fitted - start) @ target
        cubic = np.einsum("ijk,ri,rj,rk->r", found.third, shift, shift, shift, optimize=True)
        return divergence, (shift**2).sum(axis=1) / 2 - cubic / 3

    p, a, b, c = statistics.shape[1], found.first, found.second, found.cubic
    return Truth(name, family, p, inside, a, b, c, sample, simulate)


@dataclass(frozen=True)
class _Coefficients:
    first: float
    second: float
    cubic: float
    white: Float[ndarray, "p p"]  # whitens the statistics under the model
    third: Float[ndarray, "p p p"]  # cumulants of the model, whitened


def _coefficients(
    statistics: Float[ndarray, "states p"], model: Float[ndarray, " states"], truth: Float[ndarray, " states"]
) -> _Coefficients:
    """Return a, b and c from full tensors of cumulants, the plain way: p^4 numbers are held.

    Parameters
    ----------
    statistics
        Of each state.
    model, truth
        Probabilities of the states under the projection and under the truth, with one mean of the statistics.
    """
    centred = statistics - model @ statistics
    values, vectors = np.linalg.eigh((centred.T * model) @ centred)
    whitening = vectors / np.sqrt(values)
    white = centred @ whitening
    one = np.eye(white.shape[1])
    third = np.einsum("s,si,sj,sk->ijk", model, white, white, white)
    pairs = np.einsum("ij,kl->ijkl", one, one)
    fourth = np.einsum("s,si,sj,sk,sl->ijkl", model, white, white, white, white, optimize=True)
    fourth = fourth - pairs - pairs.transpose(0, 2, 1, 3) - pairs.transpose(0, 2, 3, 1)
    v = (white.T * truth) @ white
    skewness = np.einsum("s,si,sj,sk->ijk", truth, white, white, white)
    bracket = (
        -np.einsum("ijkl,ij,kl", fourth, v, v)
        + np.einsum("ije,ekl,ij,kl", third, third, v, v, optimize=True)
        + 2 * np.einsum("ike,ejl,ij,kl", third, third, v, v, optimize=True)
    )
    cubic = -float((third * skewness).sum()) / 3
    return _Coefficients(float(np.trace(v) / 2), cubic + float(3 * bracket / 8), cubic, whitening, third)


def _moment_match(
    means: Float[ndarray, "replicates p"], statistics: Float[ndarray, "states p"], start: Float[ndarray, " p"]
) -> tuple[Float[ndarray, "replicates p"], ndarray]:
    """Newton's method for many log-linear models at once: parameters, and where they exist."""
    theta = np.tile(start, (len(means), 1))
    for _ in range(40):
        shares = special.softmax(theta @ statistics.T, axis=1)
        fitted = shares @ statistics
        gap = means - fitted
        if np.abs(gap).max() < 1e-12:
            break
        products = (shares @ _outer(statistics)).reshape(len(means), *[statistics.shape[1]] * 2)
        covariance = products - fitted[:, :, None] * fitted[:, None, :] + 1e-13 * np.eye(statistics.shape[1])
        step = np.linalg.solve(covariance, gap[:, :, None])[:, :, 0]
        theta = theta + step / np.maximum(1, np.abs(step).max(axis=1, keepdims=True))
    return theta, np.abs(gap).max(axis=1) < 1e-9


def _outer(statistics: Float[ndarray, "states p"]) -> Float[ndarray, "states pp"]:
    products: Float[ndarray, "states p p"] = statistics[:, :, None] * statistics[:, None, :]
    return products.reshape(len(statistics), -1)


TRUTHS: dict[str, Callable[[], Truth]] = {
    "exponential": partial(_gamma, 1.0),
    "gamma 0.5": partial(_gamma, 0.5),
    "gamma 2": partial(_gamma, 2.0),
    "poisson": partial(_poisson, 3.0),
    "multinomial": lambda: _multinomial(np.array([0.2, 0.3, 0.5])),
    "normal 1": partial(_normal, 1),
    "normal 2": partial(_normal, 2),
    "normal 5": partial(_normal, 5),
    "laplace": _laplace,
    "ising": lambda: _spins("ising", 0.0, PAIRS, inside=True, family="ising"),
    "ising tilted": lambda: _spins("ising, tilted", TILT, PAIRS, inside=False, family="ising"),
    "independence": lambda: _spins(
        "independence, on the tilted spins", TILT, SPINS, inside=False, family="independence"
    ),
}
