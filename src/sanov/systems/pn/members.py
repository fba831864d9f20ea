"""Families whose members are known in closed form: their statistics, and the member closest to the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

from sanov.core.errors import InputError
from sanov.systems.pn.cumulants import Cumulants, IndependentCumulants, NormalCumulants, StateCumulants
from sanov.systems.pn.exact import (
    Invariants,
    exponential_invariants,
    multinomial_invariants,
    normal_invariants,
    poisson_invariants,
)
from sanov.systems.pn.sampling import Drawing

__all__ = [
    "EMPTY",
    "Exponential",
    "Family",
    "Member",
    "Multinomial",
    "Normal",
    "Poisson",
    "empty_cell",
    "enumerated",
    "pair_names",
    "weighted_moments",
    "with_products",
]

STATES_AT_ONCE = 4096
EMPTY = 1e-12  # a probability below this is a cell without a row


@dataclass(frozen=True)
class Member:
    """A member of a family.

    Parameters
    ----------
    cumulants
        Of its statistics.
    theta
        Natural parameter.
    log_partition
        Psi(theta), where it is known.
    chains
        0, or the number of independent chains of equal length whose draws the cumulants are taken from.
    notes
        What the user should know.
    invariants, same_for_all
        The invariants where they have a formula, and whether they are the same for all members of the family.
    """

    cumulants: Cumulants
    theta: Float[ndarray, " p"]
    log_partition: float | None
    chains: int = 0
    notes: tuple[str, ...] = ()
    invariants: Invariants | None = None
    same_for_all: bool = False


@runtime_checkable
class Family(Protocol):
    """Sufficient statistics, and what is known of the members."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""

    @property
    def protected(self) -> frozenset[int]:
        """Statistics without which the family would not be one; compression keeps them."""

    def statistics(self, table: Float[ndarray, "rows columns"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""

    def log_base(self, table: Float[ndarray, "rows columns"]) -> Float[ndarray, " rows"] | None:
        """Log-density of the base measure in the units of the data; None where it is not known."""

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the member whose statistics have this mean; `drawing` serves those that must be sampled."""

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float | None:
        """Upper bound of the probability that another sample of this size has no MLE; None where it is not known."""


def pair_names(columns: Sequence[str], *, squares: bool) -> tuple[str, ...]:
    """Names of the products of two columns, in the order of `numpy.triu_indices`."""
    pairs = itertools.combinations_with_replacement(columns, 2) if squares else itertools.combinations(columns, 2)
    return tuple(f"{a}^2" if a == b else f"{a}*{b}" for a, b in pairs)


def with_products(table: Float[ndarray, "rows d"], offset: int) -> Float[ndarray, "rows p"]:
    """Append the products of two columns: of each with itself too (offset 0), or of different ones (offset 1)."""
    i, j = np.triu_indices(table.shape[1], offset)
    return np.hstack([table, table[:, i] * table[:, j]])


@dataclass(frozen=True)
class Normal:
    """The d-variate normal distribution: z_i and z_i z_j, squares included.

    Parameters
    ----------
    columns
        Names.
    log_scale
        Sum of the logarithms of the units of z, in the units of the data.
    """

    columns: tuple[str, ...]
    log_scale: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self.columns + pair_names(self.columns, squares=True)

    @property
    def protected(self) -> frozenset[int]:
        """Means and variances; what may go are the interactions."""
        d = len(self.columns)
        i, j = np.triu_indices(d)
        return frozenset(range(d)) | frozenset(d + np.flatnonzero(i == j))

    def statistics(self, table: Float[ndarray, "rows d"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""
        return with_products(table, 0)

    def log_base(self, table: Float[ndarray, "rows d"]) -> Float[ndarray, " rows"]:
        """Log-density of the base measure in the units of the data."""
        return np.full(len(table), -self.log_scale - 0.5 * table.shape[1] * math.log(2 * math.pi))

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the normal distribution with these first and second moments."""
        d = len(self.columns)
        i, j = np.triu_indices(d)
        centre, second = mean[:d], np.empty((d, d))
        second[i, j] = second[j, i] = mean[d:]
        covariance = second - np.outer(centre, centre)
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise InputError(
                "the MLE does not exist: the covariance of the columns is singular",
                where="family=gaussian",
                fix="drop columns, or collect more rows than columns",
            ) from None
        precision = np.linalg.inv(covariance)
        pull = precision @ centre
        theta = np.concatenate([pull, np.where(i == j, -0.5, -1.0) * precision[i, j]])
        log_partition = float(0.5 * centre @ pull + np.log(np.diag(root)).sum())
        products = root[i, :, None] * root[j, None, :]
        linear = np.vstack([root, centre[i, None] * root[j] + centre[j, None] * root[i]])
        quadratic = np.concatenate([np.zeros((d, d, d)), (products + products.transpose(0, 2, 1)) / 2])
        cumulants = NormalCumulants(linear, quadratic)
        return Member(cumulants, theta, log_partition, invariants=normal_invariants(d), same_for_all=True)

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float:
        """Zero with more rows than columns."""
        return 0.0 if rows > len(self.columns) else 1.0


@dataclass(frozen=True)
class Multinomial:
    """Cells of a table: the indicators of all cells but the last.

    Parameters
    ----------
    cells
        Names; the data hold the place of each row's cell.
    """

    cells: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self.cells[:-1]

    @property
    def protected(self) -> frozenset[int]:
        """None: cells can be merged."""
        return frozenset()

    def statistics(self, table: Float[ndarray, "rows 1"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""
        return np.asarray(table[:, :1] == np.arange(len(self.cells) - 1), dtype=float)

    def log_base(self, table: Float[ndarray, "rows 1"]) -> Float[ndarray, " rows"]:
        """Log-density of the base measure: every cell counts the same."""
        return np.zeros(len(table))

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the multinomial distribution with these shares."""
        shares = self._shares(mean)
        for cell, share in zip(self.cells, shares, strict=True):
            if share < EMPTY:
                raise empty_cell(cell)
        theta = np.log(shares[:-1] / shares[-1])
        cumulants = enumerated(np.eye(len(shares))[:, :-1], shares)
        return Member(cumulants, theta, -math.log(shares[-1]), invariants=multinomial_invariants(shares))

    def _shares(self, mean: Float[ndarray, " p"]) -> Float[ndarray, " cells"]:
        return np.append(mean, 1 - mean.sum())

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float:
        """Union bound over the cells that might stay empty."""
        return min(1.0, float(((1 - self._shares(mean)) ** rows).sum()))


@dataclass(frozen=True)
class _Independent:
    """Columns that do not depend on one another, each its own statistic."""

    columns: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self.columns

    @property
    def protected(self) -> frozenset[int]:
        """All: without its statistic a column has no distribution."""
        return frozenset(range(len(self.columns)))

    def statistics(self, table: Float[ndarray, "rows p"]) -> Float[ndarray, "rows p"]:
        """Xi of each row."""
        return table


class Poisson(_Independent):
    """Independent Poisson counts."""

    def log_base(self, table: Float[ndarray, "rows p"]) -> Float[ndarray, " rows"]:
        """Log-density of the base measure, 1/x!."""
        return np.asarray(-special.gammaln(table + 1).sum(axis=1))

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the Poisson distributions with these means."""
        cumulants = IndependentCumulants(np.tile(mean, (4, 1)), np.eye(len(mean)))
        return Member(cumulants, np.log(mean), float(mean.sum()), invariants=poisson_invariants(mean))

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float:
        """Probability that some column is all zero."""
        return float(-np.expm1(np.log1p(-np.exp(-rows * mean)).sum()))


class Exponential(_Independent):
    """Independent exponential waiting times."""

    def log_base(self, table: Float[ndarray, "rows p"]) -> Float[ndarray, " rows"]:
        """Log-density of the base measure, Lebesgue's."""
        return np.zeros(len(table))

    def project(self, mean: Float[ndarray, " p"], drawing: Drawing) -> Member:
        """Return the exponential distributions with these means."""
        orders = np.stack([math.factorial(r - 1) * mean**r for r in (2, 3, 4, 5)])
        cumulants = IndependentCumulants(orders, np.eye(len(mean)))
        invariants = exponential_invariants(len(mean))
        return Member(cumulants, -1 / mean, float(np.log(mean).sum()), invariants=invariants, same_for_all=True)

    def no_mle(self, mean: Float[ndarray, " p"], rows: float) -> float:
        """Zero: the mean of a sample is positive."""
        return 0.0


# -- what they share --------------------------------------------------------------------------------------------------


def weighted_moments(
    states: Float[ndarray, "states p"], weights: Float[ndarray, " states"]
) -> tuple[Float[ndarray, " p"], Float[ndarray, "p p"]]:
    """Mean and covariance of weighted states."""
    centre = weights @ states
    centred = states - centre
    return centre, (centred.T * weights) @ centred


def enumerated(states: Float[ndarray, "states p"], probabilities: Float[ndarray, " states"]) -> StateCumulants:
    """Cumulants of a distribution on a list of states."""

    def blocks() -> Iterator[tuple[ndarray, ndarray]]:
        for start in range(0, len(states), STATES_AT_ONCE):
            part = slice(start, start + STATES_AT_ONCE)
            yield states[part], probabilities[part]

    return StateCumulants(blocks, probabilities @ states)


def empty_cell(cell: str) -> InputError:
    """Say that a cell has no row."""
    return InputError("the cell is empty: the MLE does not exist; merge cells", where=cell)
