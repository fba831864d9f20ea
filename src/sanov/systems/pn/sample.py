"""The rows of a table as a stream of statistics, with weights and clusters, and the moments that the risk needs.

What is independent is a *unit*: a row, or a cluster of rows. With weights w of mean one, N rows and xi the statistics,

    y_c = sum over the rows of unit c of w (xi - mean),     n_c = sum of w,     N = sum n_c,

N and N^2 times the second and third moments of the error of the mean are

    V = sum_c y_c y_c' / N,     K = sum_c y_c (x) y_c (x) y_c / N.

So a/n + b/n^2 counts rows, and a design that repeats itself within clusters, or weights rows unevenly, shows as a larger
V. A row of frequency f stands for f equal, independent units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.core.progress import track
from sanov.families import ThirdMoments
from sanov.systems.pn.statistics import Prepared

__all__ = ["Sample", "ThirdOrder", "Units", "WeightsKind"]

WeightsKind = Literal["probability", "frequency"]
BLOCK = 4096


@dataclass(frozen=True)
class Units:
    """A block of rows and of the units that they make up.

    Parameters
    ----------
    rows
        Centred statistics, in the coordinates asked for.
    weights
        w of each row.
    sums
        y of each unit.
    mass
        n_c of each unit.
    copies
        How many equal units each stands for.
    starts
        First row of each unit; None where every row is one.
    """

    rows: Float[ndarray, "rows p"]
    weights: Float[ndarray, " rows"]
    sums: Float[ndarray, "units p"]
    mass: Float[ndarray, " units"]
    copies: Float[ndarray, " units"]
    starts: ndarray | None

    def gathered(self, values: Float[ndarray, " rows"]) -> Float[ndarray, " units"]:
        """Add w times a value of each row within its unit, per copy."""
        if self.starts is not None:
            return np.asarray(np.add.reduceat(self.weights * values, self.starts))
        return np.asarray(values * self.mass)


@dataclass(frozen=True)
class ThirdOrder:
    """Moments of third order and what goes with them, in the coordinates of a pass.

    Parameters
    ----------
    skewness
        K.
    rows_third
        sum w xi (x) xi (x) xi / N over the rows; equal to K where every row is a unit and weighs one.
    rows_fourth
        sum w q xi xi' / N over the rows, with q = xi' V xi.
    drift, drift_square
        sum n_c y_c / N and sum n_c y_c y_c' / N: what V and K lose when the mean moves.
    """

    skewness: Float[ndarray, "p p p"]
    rows_third: Float[ndarray, "p p p"]
    rows_fourth: Float[ndarray, "p p"]
    drift: Float[ndarray, " p"]
    drift_square: Float[ndarray, "p p"]


class Sample:
    """A prepared table with its design, read a block at a time.

    Parameters
    ----------
    prepared
        The table in the coordinates of its family.
    weights
        A weight per row, not negative: a list, an array or a series; None weighs all alike.
    weights_kind
        ``probability``: a row stands for 1/probability others, and the weights are scaled to mean one. ``frequency``: a
        row was observed so many times.
    clusters
        A label per row; rows of one cluster depend on one another, clusters do not.
    block
        Rows at a time.

    Raises
    ------
    InputError
        Weights or labels that do not fit the table.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        weights: Any = None,
        weights_kind: WeightsKind = "probability",
        clusters: Any = None,
        block: int = BLOCK,
    ):
        table = prepared.table
        weight = np.ones(len(table)) if weights is None else _checked_weights(weights, len(table))
        labels = None if clusters is None else _checked_labels(clusters, len(table))
        if (weight == 0).any():
            kept = weight > 0
            table, weight = table[kept], weight[kept]
            labels = None if labels is None else labels[kept]
        self.weighted = weights is not None
        self._frequency = self.weighted and weights_kind == "frequency"
        if self.weighted and not self._frequency:
            weight = weight / weight.mean()
        self._starts: ndarray | None = None
        if labels is not None:
            order = np.argsort(labels, kind="stable")
            table, weight, labels = table[order], weight[order], labels[order]
            self._starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
        self.prepared, self.table, self._weights, self._block = prepared, table, weight, block

    @property
    def rows(self) -> float:
        """N, frequencies counted."""
        return float(self._weights.sum())

    @property
    def units(self) -> float:
        """Independent units: clusters, or rows."""
        return float(len(self._starts)) if self._starts is not None else self.rows

    @property
    def effective_rows(self) -> float:
        """Kish's effective sample size, (sum w)^2 / sum w^2; N with frequencies or no weights."""
        return self.rows if self._frequency else self.rows**2 / float(np.square(self._weights).sum())

    @property
    def plain(self) -> bool:
        """Whether every row is a unit of weight one (frequencies allowed)."""
        return self._starts is None and (self._frequency or not self.weighted)

    @property
    def p(self) -> int:
        """Number of statistics."""
        return len(self.prepared.names)

    def _parts(self) -> list[tuple[slice, ndarray | None]]:
        """Blocks of rows, and the first row of each unit in them; a cluster is never cut."""
        if self._starts is None:
            return [(slice(start, start + self._block), None) for start in range(0, len(self.table), self._block)]
        ends = np.append(self._starts[1:], len(self.table))
        first, parts = 0, []
        while first < len(ends):
            begin = self._starts[first]
            last = max(first + 1, int(np.searchsorted(ends, begin + self._block, side="right")))
            parts.append((slice(begin, ends[last - 1]), self._starts[first:last] - begin))
            first = last
        return parts

    def statistics(self) -> Iterator[tuple[ndarray, ndarray]]:
        """Yield statistics and weights, a block of rows at a time."""
        for part, _ in self._parts():
            yield self.prepared.model.statistics(self.table[part]), self._weights[part]

    def units_of(
        self, centre: Float[ndarray, " q"], matrix: Float[ndarray, "q p"] | None = None, what: str = ""
    ) -> Iterator[Units]:
        """Yield the blocks with ``matrix' (xi - centre)`` as statistics (None: the identity); `what` is shown."""
        parts = self._parts()
        for part, starts in track(parts, what) if what else parts:
            rows = self.prepared.model.statistics(self.table[part]) - centre
            rows = rows if matrix is None else rows @ matrix
            weights = self._weights[part]
            ones = np.ones(len(rows))
            if starts is not None:
                sums = np.add.reduceat(rows * weights[:, None], starts, axis=0)
                mass = np.add.reduceat(weights, starts)
                yield Units(rows, weights, sums, mass, np.ones(len(starts)), starts)
            elif self._frequency:
                yield Units(rows, weights, rows, ones, weights, None)
            else:
                sums = rows * weights[:, None] if self.weighted else rows
                yield Units(rows, weights, sums, weights, ones, None)

    # -- moments ------------------------------------------------------------------------------------------------------

    def mean(self) -> Float[ndarray, " p"]:
        """Mean of the statistics."""
        total = np.zeros(self.p)
        for xi, weights in self.statistics():
            total += weights @ xi
        return total / self.rows

    def mean_log_base(self) -> float | None:
        """Mean of the logarithm of the base measure, where the family knows it."""
        total = 0.0
        for part, _ in self._parts():
            values = self.prepared.model.log_base(self.table[part])
            if values is None:
                return None
            total += float(self._weights[part] @ values)
        return total / self.rows

    def covariances(self, centre: Float[ndarray, " p"]) -> tuple[Float[ndarray, "p p"], Float[ndarray, "p p"]]:
        """Covariance of the rows, and V."""
        rows, units = np.zeros((2, self.p, self.p))
        for block in self.units_of(centre):
            rows += (block.rows.T * block.weights) @ block.rows
            if not self.plain:
                units += (block.sums.T * block.copies) @ block.sums
        rows /= self.rows
        return rows, rows if self.plain else units / self.rows

    def drift(self, centre: Float[ndarray, " q"], matrix: Float[ndarray, "q p"]) -> Float[ndarray, " p"]:
        """Sum n_c y_c / N; zero where every row is a unit of weight one."""
        total = np.zeros(matrix.shape[1])
        if not self.plain:
            for block in self.units_of(centre, matrix):
                total += (block.copies * block.mass) @ block.sums
        return total / self.rows

    def third_order(
        self, centre: Float[ndarray, " q"], matrix: Float[ndarray, "q p"], covariance: Float[ndarray, "p p"]
    ) -> ThirdOrder:
        """Gather the moments of third order in the coordinates ``matrix' xi``, where V is `covariance`."""
        p = matrix.shape[1]
        units, rows = ThirdMoments(p), ThirdMoments(p)
        fourth, square, drift = np.zeros((p, p)), np.zeros((p, p)), np.zeros(p)
        for block in self.units_of(centre, matrix, "third moments"):
            u, w, counted = block.rows, block.weights, block.copies * block.mass
            rows.add(u, w)
            fourth += (u.T * (w * np.einsum("ri,ri->r", u @ covariance, u))) @ u
            square += (block.sums.T * counted) @ block.sums
            drift += counted @ block.sums
            if not self.plain:
                units.add(block.sums, block.copies)
        n = self.rows
        rows_third = rows.tensor() / n
        skewness = rows_third if self.plain else units.tensor() / n
        return ThirdOrder(skewness, rows_third, fourth / n, drift / n, square / n)


def _checked_weights(weights: Any, rows: int) -> Float[ndarray, " rows"]:
    values = np.asarray(weights, dtype=float)
    if values.shape != (rows,):
        raise InputError(f"there are {values.size} weights", where="weights", expected=f"{rows}, one per row")
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        found, where = f"the weight is {values[bad[0]]}", f"row {bad[0] + 1}, weights"
        raise InputError(found, where=where, expected="a number >= 0", fix="correct it, or leave the row out")
    if np.count_nonzero(values) < 2:
        raise InputError("fewer than two rows have a weight above 0", where="weights", expected="two or more")
    return values


def _checked_labels(clusters: Any, rows: int) -> ndarray:
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise InputError(f"there are {labels.size} labels", where="clusters", expected=f"{rows}, one per row")
    _, index = np.unique(labels, return_inverse=True)
    if index.max() == 0:
        fix = "name another column, or leave out map.clusters"
        raise InputError("all rows are in one cluster", where="clusters", expected="two or more clusters", fix=fix)
    return index
