"""Truths whose risk is known exactly or to high precision: what the criterion is tested on.

A risk that has no closed form is simulated with its two leading terms as control variates: with t the whitened error of
the mean of the statistics, the average of ``D - |t|^2/2 + k3[t, t, t]/3`` is of order n^-2 with a standard deviation of
that order, and ``a/n - <k3, K>/(3n^2)`` is added back exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize, special

from sanov.families import required_sample_size, risk, well_specified
from sanov.systems.pn.coefficients import Coefficients, estimate
from sanov.systems.pn.drawn import Ising
from sanov.systems.pn.exact import (
    exponential_invariants,
    exponential_risk,
    multinomial_invariants,
    multinomial_risk,
    normal_invariants,
    normal_risk,
    poisson_invariants,
    poisson_risk,
)
from sanov.systems.pn.members import Exponential, Family, Multinomial, Normal, Poisson
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import Prepared

__all__ = ["TRUTHS", "Simulation", "Truth", "truth"]

SPINS = np.array([[1.0 - 2 * (state >> bit & 1) for bit in range(3)] for state in range(8)])
FIELDS = np.array([0.2, -0.1, 0.3, 0.3, 0.2, -0.25])  # s1, s2, s3, s1*s2, s1*s3, s2*s3
TILT = 0.5  # of s1*s2*s3, which the pair model lacks
CELLS = np.array([0.2, 0.3, 0.5])
COUNT = 3.0
NODES = 12  # of the quadratures: exact to degree 23, and sixth moments of quadratic statistics need 12
BATCH = 2000
NEWTON = 60


@dataclass(frozen=True)
class Simulation:
    """How a risk without a closed form is simulated.

    Parameters
    ----------
    means
        (n, replicates, generator) -> means of the statistics of so many samples [replicates, p].
    losses
        Means of the statistics -> D[f* || f^], not finite where there is no MLE.
    population
        The coefficients at the truth, with the tensors that the control variates need.
    """

    means: Callable[[int, int, np.random.Generator], ndarray]
    losses: Callable[[ndarray], ndarray]
    population: Coefficients

    def risk(self, n: int, replicates: int, seed: int) -> tuple[float, float]:
        """Return the risk at n rows and its standard error."""
        frame, found = self.population.frame, self.population.found
        if found.third is None or found.moments is None:
            raise ValueError("the population's coefficients are not of second order")
        rng = np.random.default_rng(seed)
        rest = []
        for start in range(0, replicates, BATCH):
            means = self.means(n, min(BATCH, replicates - start), rng)
            t = (means - frame.centre) @ frame.matrix
            cubic = np.einsum("ijk,ri,rj,rk->r", found.third, t, t, t, optimize=True)
            rest.append(self.losses(means) - np.square(t).sum(axis=1) / 2 + cubic / 3)
        values = np.concatenate(rest)
        values = values[np.isfinite(values)]
        known = self.population.a / n - float(np.vdot(found.third, found.moments.skewness)) / (3 * n * n)
        return known + float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@dataclass(frozen=True)
class Truth:
    """A distribution and a family fitted to it.

    Parameters
    ----------
    name
        What it is called.
    model
        The family; `family` is its name for `statistics.prepare`.
    family
        As in `statistics.prepare`; ``independent spins`` is Ising's without interactions.
    well_specified
        Whether the truth belongs to the family.
    a, b
        Exact coefficients of the risk.
    draw
        (n, generator) -> table of n rows.
    known
        n -> risk, where there is a closed form, or the simulation.
    """

    name: str
    model: Family
    family: str
    well_specified: bool
    a: float
    b: float
    draw: Callable[[int, np.random.Generator], ndarray]
    known: Callable[[int], float] | Simulation

    @property
    def parameters(self) -> int:
        """P."""
        return len(self.model.names)

    def prepared(self, n: int, rng: np.random.Generator) -> Prepared:
        """Draw n rows, in the coordinates of the family."""
        columns = getattr(self.model, "columns", ("cell",))
        return Prepared(self.family, self.model, columns, self.draw(n, rng), self.parameters)

    def risk(self, n: int, *, replicates: int = 20_000, seed: int = 0) -> tuple[float, float]:
        """Return the risk at n rows and its standard error (0 where it is exact).

        Parameters
        ----------
        n
            Rows.
        replicates, seed
            Of the simulation, where there is one.
        """
        if isinstance(self.known, Simulation):
            return self.known.risk(n, replicates, seed)
        return self.known(n), 0.0

    def required(self, delta: float, *, replicates: int = 20_000, seed: int = 0) -> float:
        """Return the true n*: where the risk comes down to delta.

        Where the risk is exact, by linear interpolation between whole n; else from a/n + b/n^2 + c/n^3 with c from a
        simulation at the second-order n*.
        """
        start = required_sample_size(self.a, self.b, delta)
        if not isinstance(self.known, Simulation):
            return _crossing(self.known, int(start), delta)
        n = max(2, round(start))
        c = (self.known.risk(n, replicates, seed)[0] - risk(self.a, self.b, n)) * n**3
        return float(
            optimize.brentq(lambda m: risk(self.a, self.b, m) + c / m**3 - delta, start / 2, 2 * start, xtol=1e-6)
        )


def _crossing(exact: Callable[[int], float], start: int, delta: float) -> float:
    low = high = start
    while exact(low) <= delta:
        low -= max(1, low // 20)
    while exact(high) > delta:
        high += max(1, high // 20)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exact(middle) > delta else (low, middle)
    above, below = exact(low), exact(high)
    return low + (above - delta) / (above - below) * (high - low)


def truth(name: str) -> Truth:
    """Build a truth by its name, one of `TRUTHS`."""
    return TRUTHS[name]()


# -- with an exact risk -----------------------------------------------------------------------------------------------


def _gamma(shape: float) -> Truth:
    """Return Gamma(shape) under the exponential model: the exponential's risk at n times shape rows."""
    return Truth(
        name="exponential" if shape == 1 else f"gamma({shape:g})",
        model=Exponential(("x",)),
        family="exponential",
        well_specified=shape == 1,
        a=1 / (2 * shape),
        b=well_specified(1, *exponential_invariants(1)).b / shape**2,
        draw=lambda n, rng: rng.gamma(shape, size=(n, 1)),
        known=lambda n: exponential_risk(n, shape),
    )


def _normal(d: int) -> Truth:
    expansion = well_specified(d * (d + 3) // 2, *normal_invariants(d))
    return Truth(
        name=f"normal({d})",
        model=Normal(tuple(f"x{k + 1}" for k in range(d))),
        family="gaussian",
        well_specified=True,
        a=expansion.a,
        b=expansion.b,
        draw=lambda n, rng: rng.standard_normal((n, d)),
        known=lambda n: normal_risk(n, d),
    )


def _poisson() -> Truth:
    expansion = well_specified(1, *poisson_invariants(np.array([COUNT])))
    return Truth(
        name=f"poisson({COUNT:g})",
        model=Poisson(("x",)),
        family="poisson",
        well_specified=True,
        a=expansion.a,
        b=expansion.b,
        draw=lambda n, rng: rng.poisson(COUNT, size=(n, 1)).astype(float),
        known=lambda n: poisson_risk(n, COUNT),
    )


def _multinomial() -> Truth:
    expansion = well_specified(2, *multinomial_invariants(CELLS))
    return Truth(
        name="multinomial(0.2, 0.3, 0.5)",
        model=Multinomial(("A", "B", "C")),
        family="multinomial",
        well_specified=True,
        a=expansion.a,
        b=expansion.b,
        draw=lambda n, rng: rng.choice(3, size=(n, 1), p=CELLS).astype(float),
        known=lambda n: multinomial_risk(n, CELLS),
    )


# -- with a simulated risk --------------------------------------------------------------------------------------------


def _population(model: Family, family: str, states: ndarray, probabilities: ndarray) -> Coefficients:
    """Coefficients of a distribution on states: those of a sample in which each state has its share."""
    table = Prepared(family, model, getattr(model, "columns", ("cell",)), states, len(model.names))
    sample = Sample(table, weights=probabilities * 1e9, weights_kind="frequency")
    return estimate(sample, bootstrap=0)


def _laplace() -> Truth:
    """Return Laplace of variance one under the normal model."""
    nodes, weights = np.polynomial.laguerre.laggauss(NODES)
    states = np.concatenate([nodes, -nodes])[:, None] / np.sqrt(2)
    population = _population(Normal(("x",)), "gaussian", states, np.tile(weights, 2) / 2)

    def draw(n: int, rng: np.random.Generator) -> ndarray:
        return rng.laplace(scale=np.sqrt(0.5), size=(n, 1))

    def means(n: int, replicates: int, rng: np.random.Generator) -> ndarray:
        x = rng.laplace(scale=np.sqrt(0.5), size=(replicates, n))
        return np.stack([x.mean(axis=1), np.square(x).mean(axis=1)], axis=1)

    def losses(found: ndarray) -> ndarray:
        variance = found[:, 1] - found[:, 0] ** 2
        return np.asarray(np.log(variance) + (1 + found[:, 0] ** 2) / variance - 1) / 2

    simulation = Simulation(means, losses, population)
    return Truth("laplace", Normal(("x",)), "gaussian", False, population.a, population.b, draw, simulation)


def _spins(tilt: float, interactions: bool) -> Truth:
    """Return three spins, with or without a third-order interaction, under the pair model or the independent one."""
    model = Ising(("s1", "s2", "s3"), interactions)
    energy = Ising(("s1", "s2", "s3")).statistics(SPINS) @ FIELDS + tilt * SPINS.prod(axis=1)
    probabilities = special.softmax(energy)
    family = "ising" if interactions else "independent spins"
    population = _population(model, family, SPINS, probabilities)
    statistics = model.statistics(SPINS)
    theta = np.asarray(population.theta)

    def draw(n: int, rng: np.random.Generator) -> ndarray:
        return SPINS[rng.choice(8, size=n, p=probabilities)]

    def means(n: int, replicates: int, rng: np.random.Generator) -> ndarray:
        return np.asarray(rng.multinomial(n, probabilities, size=replicates) @ statistics / n)

    def losses(found: ndarray) -> ndarray:
        return _state_losses(statistics, theta, probabilities @ statistics, found)

    name = "spins" + (", tilted" if tilt else "") + ("" if interactions else ", independent")
    simulation = Simulation(means, losses, population)
    right = tilt == 0 and interactions
    return Truth(name, model, family, right, population.a, population.b, draw, simulation)


def _state_losses(
    states: Float[ndarray, "states p"], theta: Float[ndarray, " p"], centre: Float[ndarray, " p"], means: ndarray
) -> Float[ndarray, " replicates"]:
    """D[f* || f^] of many fits at once: Newton on all of them; not a number where one does not converge."""
    estimates = np.tile(theta, (len(means), 1))
    for _ in range(NEWTON):
        weights = special.softmax(estimates @ states.T, axis=1)
        found = weights @ states
        covariance = np.einsum("rs,si,sj->rij", weights, states, states, optimize=True)
        covariance -= found[:, :, None] * found[:, None, :]
        step = np.linalg.solve(covariance + 1e-14 * np.eye(len(theta)), (means - found)[:, :, None])[:, :, 0]
        length = np.abs(step).max(axis=1, keepdims=True)
        estimates = estimates + step / np.maximum(1, length)
        if length.max() < 1e-10:
            break
    gain = special.logsumexp(estimates @ states.T, axis=1) - special.logsumexp(states @ theta)
    return np.where(length[:, 0] < 1e-8, gain - (estimates - theta) @ centre, np.nan)


TRUTHS: dict[str, Callable[[], Truth]] = {
    "exponential": functools.partial(_gamma, 1.0),
    "gamma(0.5)": functools.partial(_gamma, 0.5),
    "gamma(2)": functools.partial(_gamma, 2.0),
    "laplace": _laplace,
    "normal(1)": functools.partial(_normal, 1),
    "normal(2)": functools.partial(_normal, 2),
    "normal(5)": functools.partial(_normal, 5),
    "poisson(3)": _poisson,
    "multinomial(0.2, 0.3, 0.5)": _multinomial,
    "spins": functools.partial(_spins, 0.0, True),
    "spins, tilted": functools.partial(_spins, TILT, True),
    "spins, tilted, independent": functools.partial(_spins, TILT, False),
}
