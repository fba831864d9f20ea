"""Distributions for which the risk of a family's maximum-likelihood estimate is known, exactly or by simulation.

A `Truth` is a sampler of rows, the family that is fitted to them (which need not contain it), and the divergence
D[f* || f^] of a fitted member from the projection f*, simulated straight from the sampling distribution of the
sufficient statistics. The quadratic part q = t' G^-1 t / 2 of that divergence has the exact mean a/n; `risk` averages
D - q and adds a/n back, so that a relative precision of 10^-3 costs 10^4 replicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, special, stats

BATCH = 1000  # samples of a population whose counts are held at a time

__all__ = ["TRUTHS", "Risk", "Truth", "population_truth", "risk", "sample_size"]

Simulation = tuple[Float[ndarray, " replicates"], Float[ndarray, " replicates"]]  # D and its quadratic part


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
    sample
        ``sample(rng, rows)``: rows of data.
    simulate
        ``simulate(rng, rows, replicates)``: divergences of fits to so many samples, and their quadratic parts.
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
    sample: Callable[[np.random.Generator, int], Float[ndarray, "rows columns"]]
    simulate: Callable[[np.random.Generator, int, int], Simulation]
    exact: Callable[[float], float] | None = None
    population: Float[ndarray, "rows columns"] | None = None


@dataclass(frozen=True)
class Risk:
    """A simulated risk (nats) and its standard error."""

    mean: float
    error: float


def risk(truth: Truth, rows: int, replicates: int, rng: np.random.Generator) -> Risk:
    """Simulate the risk at a number of rows, given that the estimate exists."""
    divergences, quadratic = truth.simulate(rng, rows, replicates)
    rest = divergences - quadratic
    return Risk(truth.first / rows + float(rest.mean()), float(rest.std(ddof=1) / np.sqrt(len(rest))))


def sample_size(truth: Truth, delta: float, replicates: int, rng: np.random.Generator) -> float:
    """Return the n at which the risk is `delta`: a root of the exact risk, or of a/n + b/n^2 with b fitted near it."""
    if truth.exact is not None:
        return float(optimize.brentq(lambda n: truth.exact(n) - delta, truth.first / delta, 100 * truth.first / delta))
    rows = truth.first / delta
    for _ in range(3):  # b absorbs the terms above it, and is right at the n where it is fitted
        nearby = round(rows)
        second = (risk(truth, nearby, replicates, rng).mean - truth.first / nearby) * nearby**2
        rows = (truth.first + np.sqrt(truth.first**2 + 4 * second * delta)) / (2 * delta)
    return float(rows)


# -- waiting times and counts -----------------------------------------------------------------------------------------


def _gamma(shape: float) -> Truth:
    """Gamma times under the exponential family, with mean 1: the family contains it where the shape is 1."""

    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.gamma(shape, 1 / shape, (rows, 1))

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        mean = rng.gamma(shape * rows, 1 / (shape * rows), replicates)
        return np.log(mean) + 1 / mean - 1, (mean - 1) ** 2 / 2

    def exact(rows: float) -> float:
        n = shape * rows
        return float(special.digamma(n) - np.log(n) + 1 / (n - 1)) if n > 1 else np.inf

    name = "exponential" if shape == 1 else f"gamma {shape:g} under exponential"
    a, b = 1 / (2 * shape), 11 / (12 * shape**2)
    return Truth(name, "exponential", 1, shape == 1, a, b, sample, simulate, exact)


def _poisson(rate: float) -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.poisson(rate, (rows, 1)).astype(float)

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        mean = rng.poisson(rate * rows, replicates) / rows
        mean = mean[mean > 0]
        return rate * np.log(rate / mean) + mean - rate, (mean - rate) ** 2 / (2 * rate)

    return Truth("poisson", "poisson", 1, True, 0.5, 5 / (12 * rate), sample, simulate)


def _multinomial(shares: Float[ndarray, " cells"]) -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.choice(len(shares), (rows, 1), p=shares).astype(float)

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        found = rng.multinomial(rows, shares, replicates) / rows
        found = found[(found > 0).all(axis=1)]
        return (shares * np.log(shares / found)).sum(axis=1), ((found - shares) ** 2 / shares).sum(axis=1) / 2

    p = len(shares) - 1
    second = (5 * float((1 / shares).sum()) - 6 * p - 5) / 12
    return Truth("multinomial", "multinomial", p, True, p / 2, second, sample, simulate)


# -- the normal family ------------------------------------------------------------------------------------------------


def _from_standard_normal(
    mean: Float[ndarray, "replicates d"], covariance: Float[ndarray, "replicates d d"]
) -> Simulation:
    """D[N(0, I) || N(mean, covariance)] and its quadratic part."""
    dimension = mean.shape[1]
    inverse = np.linalg.inv(covariance)
    divergence = (
        np.trace(inverse, axis1=1, axis2=2)
        + np.einsum("ri,rij,rj->r", mean, inverse, mean)
        - dimension
        + np.linalg.slogdet(covariance)[1]
    ) / 2
    second = covariance + mean[:, :, None] * mean[:, None, :] - np.eye(dimension)
    return divergence, (mean**2).sum(axis=1) / 2 + (second**2).sum(axis=(1, 2)) / 4


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
    return Truth(f"normal, d={d}", "gaussian", p, True, p / 2, second, sample, simulate, exact)


def _laplace() -> Truth:
    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 1"]:
        return rng.laplace(0, np.sqrt(0.5), (rows, 1))

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        x = rng.laplace(0, np.sqrt(0.5), (replicates, rows))
        return _from_standard_normal(x.mean(axis=1)[:, None], x.var(axis=1)[:, None, None])

    return Truth("laplace under normal", "gaussian", 2, False, 7 / 4, 197 / 24, sample, simulate)


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
        sizes = [min(BATCH, replicates - start) for start in range(0, replicates, BATCH)]
        means = np.concatenate([rng.multinomial(rows, even, batch) @ moments / rows for batch in sizes])
        mean = means[:, :dimension]
        second = means[:, dimension:].reshape(-1, dimension, dimension)
        return _from_standard_normal(mean, second - mean[:, :, None] * mean[:, None, :])

    p = dimension * (dimension + 3) // 2
    return Truth(name, "gaussian", p, False, float(first), None, sample, simulate, population=values)


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
    information = np.cov(statistics.T, aweights=special.softmax(statistics @ start), ddof=0)
    normaliser = special.logsumexp(statistics @ start)

    def sample(rng: np.random.Generator, rows: int) -> Float[ndarray, "rows 3"]:
        return SPINS[rng.choice(len(SPINS), rows, p=shares)]

    def simulate(rng: np.random.Generator, rows: int, replicates: int) -> Simulation:
        means = rng.multinomial(rows, shares, replicates) @ statistics / rows
        fitted, exists = _moment_match(means, statistics, start)
        fitted, shift = fitted[exists], means[exists] - target
        divergence = special.logsumexp(fitted @ statistics.T, axis=1) - normaliser - (fitted - start) @ target
        return divergence, (shift * np.linalg.solve(information, shift.T).T).sum(axis=1) / 2

    first, second = _coefficients(statistics, special.softmax(statistics @ start), shares)
    return Truth(name, family, statistics.shape[1], inside, first, second, sample, simulate)


def _coefficients(
    statistics: Float[ndarray, "states p"], model: Float[ndarray, " states"], truth: Float[ndarray, " states"]
) -> tuple[float, float]:
    """Return a and b from full tensors of cumulants, the plain way: p^4 numbers are held.

    Parameters
    ----------
    statistics
        Of each state.
    model, truth
        Probabilities of the states under the projection and under the truth, with one mean of the statistics.
    """
    centred = statistics - model @ statistics
    values, vectors = np.linalg.eigh((centred.T * model) @ centred)
    white = centred @ (vectors / np.sqrt(values))
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
    return float(np.trace(v) / 2), float(3 * bracket / 8 - (third * skewness).sum() / 3)


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
