"""Families whose members may have to be drawn: spins with pair interactions, and families that a user writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

from sanov.families import information_projection
from sanov.systems.pn.cumulants import StateCumulants
from sanov.systems.pn.members import (
    EMPTY,
    Member,
    empty_cell,
    enumerated,
    pair_names,
    weighted_moments,
    with_products,
)
from sanov.systems.pn.sampling import (
    MIXED,
    Drawing,
    Flips,
    Sampler,
    Walk,
    draw_member,
    pseudo_likelihood,
    score_matching,
)

__all__ = ["SUPPORTS", "Ising", "UserFamily"]

ENUMERATED = 15  # spins: 2^15 states of 120 statistics are 30 MiB
SUPPORTS = ("real", "positive", "binary")


@dataclass(frozen=True)
class Ising:
    """Spins of -1 and 1 with fields and pair interactions: s_i and s_i s_j.

    Parameters
    ----------
    columns
        Names.
    interactions
        Whether the products belong to the statistics.
    """

    columns: tuple[str, ...]
    interactions: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self.columns + (pair_names(self.columns, squares=False) if self.interactions else ())

    @property
    def protected(self) -> frozenset[int]:
        """The fields; what may go are the interactions."""
        return frozenset(range(len(self.columns)))

    def statistics(self, table: Float[ndarray, "rows d"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""
        return with_products(table, 1) if self.interactions else table

    def log_base(self, table: Float[ndarray, "rows d"]) -> Float[ndarray, " rows"]:
        """Log-density of the base measure: every state counts the same."""
        return np.zeros(len(table))

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the member whose spins have these means and second moments: by enumeration, or by draws."""
        self._check_cells(mean)
        d = len(self.columns)
        if d > ENUMERATED:
            return self._draw(mean, drawing)
        states = self.statistics(2.0 * ((np.arange(2**d)[:, None] >> np.arange(d)) & 1) - 1)

        def moments(theta: Float[ndarray, " p"]) -> tuple[float, Float[ndarray, " p"], Float[ndarray, "p p"]]:
            energy = states @ theta
            log_partition = float(special.logsumexp(energy))
            centre, covariance = weighted_moments(states, np.exp(energy - log_partition))
            return log_partition, centre, covariance

        theta = information_projection(mean, moments, np.zeros(len(mean)))
        energy = states @ theta
        log_partition = float(special.logsumexp(energy))
        probabilities = np.exp(energy - log_partition)
        return Member(enumerated(states, probabilities), theta, log_partition)

    def _draw(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        d = len(self.columns)
        i, j = np.triu_indices(d, 1)

        def gain(states: ndarray, column: int, theta: ndarray) -> ndarray:
            field = np.full(len(states), theta[column])
            if self.interactions:
                coupling = np.zeros((d, d))
                coupling[i, j] = coupling[j, i] = theta[d:]
                field = field + states @ coupling[column]
            return np.asarray(-2 * states[:, column] * field)

        sampler = Flips(gain, (-1.0, 1.0))
        start = _start_by_flips(self.statistics, sampler, drawing.table, len(mean))
        return _drawn(self.statistics, mean, sampler, start, drawing)

    def _cells(self, mean: Float[ndarray, " p"]) -> Iterator[tuple[str, float]]:
        d = len(self.columns)
        for k, name in enumerate(self.columns):
            yield from ((f"{name} = {sign:+d}", (1 + sign * mean[k]) / 2) for sign in (-1, 1))
        if self.interactions:
            for place, (i, j) in enumerate(itertools.combinations(range(d), 2)):
                for s, t in itertools.product((-1, 1), repeat=2):
                    share = (1 + s * mean[i] + t * mean[j] + s * t * mean[d + place]) / 4
                    yield f"{self.columns[i]} = {s:+d}, {self.columns[j]} = {t:+d}", share

    def _check_cells(self, mean: Float[ndarray, " p"]) -> None:
        for cell, share in self._cells(mean):
            if share < EMPTY:
                raise empty_cell(cell)

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float:
        """Union bound over the cells of one and of two spins that might stay empty."""
        return min(1.0, float(sum((1 - share) ** rows for _, share in self._cells(mean))))


@dataclass(frozen=True)
class UserFamily:
    """A family given by a function that computes its statistics, with or without a normaliser that anybody knows.

    Parameters
    ----------
    names
        Names of the statistics.
    function
        Table [rows, columns] -> statistics [rows, p].
    base
        Table -> logarithm of the base measure [rows]; None is Lebesgue's, or counting.
    support
        ``real``, ``positive`` or ``binary`` (0 and 1): where the columns live.
    """

    names: tuple[str, ...]
    function: Callable[[Float[ndarray, "rows columns"]], Float[ndarray, "rows p"]]
    base: Callable[[Float[ndarray, "rows columns"]], Float[ndarray, " rows"]] | None = None
    support: str = "real"

    @property
    def protected(self) -> frozenset[int]:
        """None is known."""
        return frozenset()

    def statistics(self, table: Float[ndarray, "rows columns"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""
        return np.asarray(self.function(table), dtype=float).reshape(len(table), -1)

    def log_base(self, table: Float[ndarray, "rows columns"]) -> None:
        """Not known: neither is the normaliser."""
        return None

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the member with this mean, by Markov chains."""
        base = self.base or (lambda table: np.zeros(len(table)))
        if self.support == "binary":

            def gain(states: ndarray, column: int, theta: ndarray) -> ndarray:
                other = _flipped(states, column, 1.0)
                return np.asarray(
                    (self.statistics(other) - self.statistics(states)) @ theta + base(other) - base(states)
                )

            sampler = Flips(gain, (0.0, 1.0))
            start = _start_by_flips(self.statistics, sampler, drawing.table, len(mean))
            return _drawn(self.statistics, mean, sampler, start, drawing)
        return self._walk(mean, base, drawing)

    def _walk(self, mean: Float[ndarray, " p"], base: Callable[[ndarray], ndarray], drawing: Drawing) -> Member:
        """Walk on the columns, or on their logarithms where they are positive (whose Jacobian joins the base)."""
        positive = self.support == "positive"
        table = np.log(drawing.table) if positive else drawing.table

        def statistics(states: ndarray) -> ndarray:
            return self.statistics(np.exp(states) if positive else states)

        def log_base(states: ndarray) -> ndarray:
            return base(np.exp(states)) + states.sum(axis=1) if positive else base(states)

        def log_density(states: ndarray, theta: ndarray) -> ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                value = statistics(states) @ theta + log_base(states)
            return np.where(np.isfinite(value), value, -np.inf)

        covariance = np.atleast_2d(np.cov(table.T))
        root = np.linalg.cholesky(covariance + 1e-9 * np.diag(np.diag(covariance)))
        start = score_matching(statistics, log_base, table, np.sqrt(np.diag(covariance)))
        moved = Drawing(table, drawing.draws, drawing.seed)
        return _drawn(statistics, mean, Walk(log_density, root), start, moved)

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> None:
        """Not known."""
        return None


# -- what they share --------------------------------------------------------------------------------------------------


def _flipped(states: Float[ndarray, "rows columns"], column: int, total: float) -> Float[ndarray, "rows columns"]:
    other = states.copy()
    other[:, column] = total - states[:, column]
    return other


def _start_by_flips(
    statistics: Callable[[ndarray], ndarray], sampler: Flips, table: Float[ndarray, "rows columns"], p: int
) -> Float[ndarray, " p"]:
    def differences(rows: ndarray, column: int) -> ndarray:
        return np.asarray(statistics(rows) - statistics(_flipped(rows, column, sampler.total)))

    return pseudo_likelihood(sampler.gain, differences, table, p)


def _drawn(
    statistics: Callable[[ndarray], ndarray],
    mean: Float[ndarray, " p"],
    sampler: Sampler,
    start: Float[ndarray, " p"],
    drawing: Drawing,
) -> Member:
    draws = draw_member(statistics, mean, sampler, start, drawing)
    notes: tuple[str, ...] = ()
    if draws.mixing > MIXED:
        notes = (f"the Markov chains have not mixed (scale reduction {draws.mixing:.2f}): take more draws",)
    cumulants = StateCumulants(lambda: draws.blocks(statistics), mean)
    return Member(cumulants, draws.theta, None, draws.chains, notes)
