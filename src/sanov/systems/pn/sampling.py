"""Moments of a density known up to its normaliser, and the member that matches the data's: Markov chain Monte Carlo.

The target is ``exp(theta . xi(x))`` against a base measure. Many short chains run side by side, all begun at rows of the
data. First theta follows Newton steps with the chains' own moments; then it is held, the draws to be used are made, and
the equations for the mean are solved exactly on these draws by importance weights (geyer1992constrained). The chains
are independent, so what the Monte Carlo error of anything is can be read off the spread between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy import special

from sanov.core.errors import InputError
from sanov.core.progress import track
from sanov.families import information_projection

__all__ = ["Drawing", "Draws", "Flips", "Sampler", "Walk", "draw_member", "pseudo_likelihood", "score_matching"]

Table = Float[ndarray, "rows columns"]
Statistics = Callable[[ndarray], ndarray]

FEWEST_CHAINS, MOST_CHAINS, DRAWS_A_CHAIN = 50, 2000, 100
ROUNDS = 40  # Newton steps before the draws
SWEEPS = 20  # sweeps a Newton step
BURN = 100  # sweeps at the final theta before the first draw
LONGEST_STEP, WORSE = 1.0, 1.5  # in standard deviations of the statistics; growth of a squared distance
LEAST_SHARE = 0.5  # effective share of the draws after weighting; below it they are drawn again
REPEATS = 6
ACCEPTED = 0.3  # share of proposals that a random walk should accept
MIXED, UNSETTLED = 1.1, 1.5  # ratios of standard deviations with and without the spread between chains
BLOCK = 4096


@dataclass(frozen=True)
class Drawing:
    """What drawing needs besides the target.

    Parameters
    ----------
    table
        The data: where chains begin.
    draws
        How many draws are wanted.
    seed
        Of the chains.
    """

    table: Table
    draws: int
    seed: int


@dataclass(frozen=True)
class Draws:
    """Weighted draws, chain after chain.

    Parameters
    ----------
    table
        The draws; the first ``len(table) / chains`` rows are the first chain.
    weights
        Probabilities, adding up to one.
    chains
        Number of independent chains of equal length.
    theta
        The natural parameter that they stand for.
    mixing
        Largest ratio, over the statistics, of the standard deviation of all draws to that within chains.
    """

    table: Table
    weights: Float[ndarray, " rows"]
    chains: int
    theta: Float[ndarray, " p"]
    mixing: float

    def blocks(self, statistics: Statistics) -> Iterator[tuple[ndarray, ndarray]]:
        """Yield statistics and weights, whole chains at a time."""
        kept = len(self.table) // self.chains
        step = kept * max(1, BLOCK // kept)
        for start in range(0, len(self.table), step):
            yield statistics(self.table[start : start + step]), self.weights[start : start + step]


@runtime_checkable
class Sampler(Protocol):
    """A way to move chains so that the target stays as it is."""

    thin: int

    def move(self, states: Table, theta: Float[ndarray, " p"], sweeps: int, rng: Generator) -> Table:
        """Return the chains after some sweeps."""


class Flips:
    """Gibbs sampling of columns with two values, one column after the other.

    Parameters
    ----------
    gain
        (states, column, theta) -> what the log-density of each chain gains if the column takes its other value.
    values
        The two values.
    """

    thin = 5

    def __init__(self, gain: Callable[[ndarray, int, ndarray], ndarray], values: tuple[float, float]):
        self.gain, self.total = gain, sum(values)

    def move(self, states: Table, theta: Float[ndarray, " p"], sweeps: int, rng: Generator) -> Table:
        """Return the chains after some sweeps."""
        states = states.copy()
        for _ in range(sweeps):
            for column in range(states.shape[1]):
                flip = rng.random(len(states)) < special.expit(self.gain(states, column, theta))
                states[:, column] = np.where(flip, self.total - states[:, column], states[:, column])
        return states


class Walk:
    """Random-walk Metropolis on all columns at once; its step adapts until it is frozen.

    Parameters
    ----------
    log_density
        (states, theta) -> logarithm of the unnormalised density in the coordinates that walk.
    root
        A square root of the covariance of the columns, in these coordinates.
    """

    def __init__(self, log_density: Callable[[ndarray, ndarray], ndarray], root: Float[ndarray, "columns columns"]):
        self._log_density, self._root = log_density, root
        self._step = 2.38 / np.sqrt(len(root))  # optimal for a normal target (roberts1997weak)
        self.thin = 5 + 2 * len(root)
        self.adapting = True

    def move(self, states: Table, theta: Float[ndarray, " p"], sweeps: int, rng: Generator) -> Table:
        """Return the chains after some sweeps."""
        current = self._log_density(states, theta)
        for _ in range(sweeps):
            proposal = states + self._step * rng.standard_normal(states.shape) @ self._root.T
            value = self._log_density(proposal, theta)
            accept = np.log(rng.random(len(states))) < value - current
            states = np.where(accept[:, None], proposal, states)
            current = np.where(accept, value, current)
            if self.adapting:
                self._step *= np.exp(0.1 * (accept.mean() - ACCEPTED))
        return states


# -- where to begin ---------------------------------------------------------------------------------------------------


def pseudo_likelihood(
    gain: Callable[[ndarray, int, ndarray], ndarray],
    differences: Callable[[ndarray, int], ndarray],
    table: Table,
    p: int,
) -> Float[ndarray, " p"]:
    """Maximise the product of the conditional probabilities of each column given the others (besag1975statistical).

    Parameters
    ----------
    gain
        As for `Flips`.
    differences
        (table, column) -> statistics of the rows less those with the column's other value.
    table
        The data, values of two kinds.
    p
        Number of statistics.
    """
    theta = np.zeros(p)
    for _ in range(25):
        gradient, information = np.zeros(p), np.zeros((p, p))
        for column in range(table.shape[1]):
            change = differences(table, column)
            other = special.expit(gain(table, column, theta))
            gradient += other @ change
            information += (change.T * (other * (1 - other))) @ change
        ridge = 1e-6 * np.trace(information) / p + 1e-12
        step = np.linalg.solve(information + ridge * np.eye(p), gradient)
        theta += step * min(1.0, 2 / (1e-12 + np.abs(step).max()))
        if np.abs(step).max() < 1e-6:
            break
    return theta


def score_matching(
    statistics: Statistics, log_base: Callable[[ndarray], ndarray], table: Table, spread: Float[ndarray, " columns"]
) -> Float[ndarray, " p"]:
    """Solve Hyvarinen's linear equations for theta, with derivatives by central differences.

    Parameters
    ----------
    statistics, log_base
        Of rows, in coordinates that range over the whole real line.
    table
        The data in these coordinates.
    spread
        Standard deviation of each column.

    Reference: hyvarinen2005estimation.
    """
    middle = statistics(table)
    p = middle.shape[1]
    matrix, right = np.zeros((p, p)), np.zeros(p)
    for column, scale in enumerate(spread):
        shift = np.zeros(table.shape[1])
        shift[column] = 1e-3 * scale
        up, down = statistics(table + shift), statistics(table - shift)
        slope = (up - down) / (2 * shift[column])
        bend = (up - 2 * middle + down) / shift[column] ** 2
        base_slope = (log_base(table + shift) - log_base(table - shift)) / (2 * shift[column])
        matrix += slope.T @ slope / len(table)
        right -= bend.mean(axis=0) + base_slope @ slope / len(table)
    return np.linalg.lstsq(matrix, right, rcond=1e-10)[0]


# -- the member -------------------------------------------------------------------------------------------------------


def draw_member(
    statistics: Statistics, mean: Float[ndarray, " p"], sampler: Sampler, start: Float[ndarray, " p"], drawing: Drawing
) -> Draws:
    """Find the member whose statistics have this mean, and draw from it.

    Parameters
    ----------
    statistics
        xi of rows in the coordinates in which `sampler` moves.
    mean
        Wanted mean of the statistics.
    sampler
        Moves the chains.
    start
        Natural parameter to begin with.
    drawing
        The data in these coordinates, the number of draws, the seed.

    Raises
    ------
    InputError
        If the chains run away or do not settle (the density cannot be normalised), or do not find the member.
    """
    rng = np.random.default_rng(drawing.seed)
    chains = int(np.clip(drawing.draws // DRAWS_A_CHAIN, FEWEST_CHAINS, MOST_CHAINS))
    states = drawing.table[rng.integers(len(drawing.table), size=chains)]
    theta, states = _approach(statistics, mean, sampler, np.array(start, float), drawing, states, rng)
    if isinstance(sampler, Walk):
        sampler.adapting = False
    for _ in range(REPEATS):
        states = sampler.move(states, theta, BURN * sampler.thin // 5, rng)
        table = _collect(sampler, states, theta, -(-drawing.draws // chains), rng)
        states = table[:, -1]
        mixing = _mixing(table, statistics)
        if not mixing < UNSETTLED:
            raise _lost(f"the Markov chains do not settle (scale reduction {mixing:.2f})")
        try:
            draws = _solve(statistics, mean, theta, table, mixing)
        except InputError:
            raise _lost("the Markov chains do not surround the mean of the data") from None
        if 1 / np.square(draws.weights).sum() >= LEAST_SHARE * len(draws.weights):
            return draws
        theta = draws.theta
    raise _lost("the Markov chains have not found the member with the mean of these data")


def _lost(found: str) -> InputError:
    return InputError(
        found,
        where="family",
        expected="statistics with which exp(theta . xi) can be normalised",
        fix="add a statistic that bounds the tails, take more draws, or method=simple, which needs none",
    )


def _approach(
    statistics: Statistics,
    mean: ndarray,
    sampler: Sampler,
    theta: ndarray,
    drawing: Drawing,
    states: Table,
    rng: Generator,
) -> tuple[ndarray, Table]:
    """Follow Newton steps with the moments of the chains until what is left is their noise.

    A step after which the chains are further from the data than before, on the data's own scale, is taken back and
    halved: so a step to where the density cannot be normalised does no harm.
    """
    scale = np.atleast_2d(np.cov(statistics(drawing.table).T))
    enough, size = 4 * len(mean) / len(states), 1.0
    best, nearest, step = (theta, states), np.inf, np.zeros_like(theta)
    for _ in track(range(ROUNDS), "matching moments"):
        states, centre, covariance = _moments(statistics, sampler, theta, states, rng)
        gap = mean - centre
        far = _length(scale, gap)
        if not np.isfinite(covariance).all() or far > max(WORSE * nearest, enough):
            size /= 2
            theta, states = best[0] + size * step, best[1]
            continue
        best, nearest = (theta, states), far
        if max(far, _length(covariance, gap)) < enough:
            break
        step = np.linalg.lstsq(covariance, gap, rcond=1e-8)[0]
        step *= min(1.0, LONGEST_STEP / np.sqrt(max(_length(covariance, gap), 1e-300)))
        size = min(1.0, 2 * size)
        theta = theta + size * step
    return best


def _length(metric: ndarray, gap: ndarray) -> float:
    """Squared length of a gap of means, in standard deviations."""
    return float(gap @ np.linalg.lstsq(metric, gap, rcond=1e-8)[0])


def _moments(
    statistics: Statistics, sampler: Sampler, theta: ndarray, states: Table, rng: Generator
) -> tuple[Table, ndarray, ndarray]:
    seen = []
    for _ in range(SWEEPS):
        states = sampler.move(states, theta, max(1, sampler.thin // 5), rng)
        seen.append(statistics(states))
    values = np.concatenate(seen[SWEEPS // 2 :])
    return states, values.mean(axis=0), np.atleast_2d(np.cov(values.T))


def _collect(sampler: Sampler, states: Table, theta: ndarray, kept: int, rng: Generator) -> ndarray:
    table = np.empty((len(states), kept, states.shape[1]))
    for place in track(range(kept), "drawing"):
        states = sampler.move(states, theta, sampler.thin, rng)
        table[:, place] = states
    return table


def _solve(statistics: Statistics, mean: ndarray, theta: ndarray, table: ndarray, mixing: float) -> Draws:
    """Weight the draws so that their mean is the wanted one."""
    chains, kept, columns = table.shape
    flat = table.reshape(chains * kept, columns)
    even = Draws(flat, np.full(len(flat), 1 / len(flat)), chains, theta, mixing)

    def log_weights(change: ndarray) -> ndarray:
        logs = [(xi - mean) @ change for xi, _ in even.blocks(statistics)]
        return np.asarray(np.concatenate(logs) - np.log(len(flat)))

    def moments(change: ndarray) -> tuple[float, ndarray, ndarray]:
        logs = log_weights(change)
        total = float(special.logsumexp(logs))
        weighted = Draws(flat, np.exp(logs - total), chains, theta, mixing)
        centre, second = np.zeros(len(mean)), np.zeros((len(mean), len(mean)))
        for xi, weights in weighted.blocks(statistics):
            centre += weights @ (xi - mean)
            second += ((xi - mean).T * weights) @ (xi - mean)
        return total, centre, second - np.outer(centre, centre)

    change = information_projection(np.zeros(len(mean)), moments, np.zeros(len(mean)))
    logs = log_weights(change)
    return Draws(flat, np.exp(logs - special.logsumexp(logs)), chains, theta + change, mixing)


def _mixing(table: Float[ndarray, "chains kept columns"], statistics: Statistics) -> float:
    """Return the potential scale reduction of gelman1992inference, the largest over the statistics."""
    chains, kept, columns = table.shape
    if kept < 2:
        return 1.0
    even = Draws(table.reshape(-1, columns), np.ones(chains * kept), chains, np.zeros(0), 1.0)
    means, within = [], []
    for xi, _ in even.blocks(statistics):
        by_chain = xi.reshape(-1, kept, xi.shape[1])
        means.append(by_chain.mean(axis=1))
        within.append(by_chain.var(axis=1, ddof=1))
    inside = np.concatenate(within).mean(axis=0)
    between = np.concatenate(means).var(axis=0, ddof=1)
    return float(np.sqrt(np.max((kept - 1) / kept + between / np.maximum(inside, 1e-300))))
