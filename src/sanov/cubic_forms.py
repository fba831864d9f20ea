"""Third moments of a table, and the cubic form that a symmetric tensor defines, by blocked matrix products.

Of the p^3 entries of ``sum_r w_r u_ri u_rj u_rk`` only the p(p+1)(p+2)/6 with i <= j <= k differ. Columns are cut into
tiles; for each tile J the products u_i u_j (j in J, i up to J) meet the columns from J on in one matrix product, so a
row costs about p^3/6 multiplications at the speed of BLAS, and nothing is ever as long as the table squared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

__all__ = ["CubicForm", "ThirdMoments", "symmetric"]

TILE = 8  # columns a tile: the products of a tile then stay in the second-level cache
CHUNK = 512  # rows a product


def _tiles(p: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + TILE, p)) for start in range(0, p, TILE))


def _chunks(rows: Float[ndarray, "rows p"]) -> Iterator[tuple[slice, Float[ndarray, "p chunk"]]]:
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        yield part, np.ascontiguousarray(rows[part].T)


def _products(columns: Float[ndarray, "p chunk"], start: int, stop: int) -> Float[ndarray, "pairs chunk"]:
    """Products of each column of the tile with each column up to its end."""
    return np.asarray(columns[start:stop, None, :] * columns[None, :stop, :]).reshape(-1, columns.shape[1])


def symmetric(tensor: Float[ndarray, "p p p"]) -> Float[ndarray, "p p p"]:
    """Average of a tensor over the six orders of its axes."""
    pairs = tensor + tensor.transpose(0, 2, 1)
    return np.asarray(pairs + pairs.transpose(1, 0, 2) + pairs.transpose(1, 2, 0)) / 6


class ThirdMoments:
    """The running sum of ``w u (x) u (x) u`` over the rows of a table.

    Parameters
    ----------
    p
        Number of columns.
    """

    def __init__(self, p: int):
        self._sums = [np.zeros((stop - start, stop, p - start)) for start, stop in _tiles(p)]
        self._p = p

    def add(self, rows: Float[ndarray, "rows p"], weights: Float[ndarray, " rows"] | None = None) -> None:
        """Add rows, each `weights` times (once where None)."""
        for part, columns in _chunks(rows):
            last = columns if weights is None else columns * weights[part]
            for (start, stop), total in zip(_tiles(self._p), self._sums, strict=True):
                product = _products(columns, start, stop) @ last[start:].T
                total += product.reshape(total.shape)

    def tensor(self) -> Float[ndarray, "p p p"]:
        """Return the sum so far, with all its p^3 entries."""
        p = self._p
        full = np.empty((p, p, p))
        i, j, k = (np.arange(p).reshape(shape) for shape in ((p, 1, 1), (1, p, 1), (1, 1, p)))
        for (start, stop), total in zip(_tiles(p), self._sums, strict=True):
            low, middle, high = i[:stop], j[:, start:stop], k[:, :, start:]
            known = total.transpose(1, 0, 2)
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
                place = tuple((low, middle, high)[axis] for axis in order)
                full[place] = known
        return full


class CubicForm:
    """The form ``u -> sum_ijk T_ijk u_i u_j u_k`` of a symmetric tensor.

    Parameters
    ----------
    tensor
        T; only its symmetric part matters.
    """

    def __init__(self, tensor: Float[ndarray, "p p p"]):
        p = len(tensor)
        tensor = symmetric(tensor)
        self._parts = []
        for start, stop in _tiles(p):
            part = tensor[start:stop, :stop, start:].copy()
            # a triple of tiles stands for all its orders: 6 of three different ones, 3 of two, 1 of one
            part *= 6.0
            part[:, start:, :] /= 2
            part[:, :, : stop - start] /= 2
            part[:, start:, : stop - start] *= 2 / 3
            self._parts.append(part.reshape(-1, p - start).T.copy())
        self._p = p

    def __call__(self, rows: Float[ndarray, "rows p"]) -> Float[ndarray, " rows"]:
        """Evaluate the form at each row."""
        values = np.zeros(len(rows))
        for part, columns in _chunks(rows):
            for (start, stop), tensor in zip(_tiles(self._p), self._parts, strict=True):
                values[part] += np.einsum("kr,kr->r", tensor @ _products(columns, start, stop), columns[start:])
        return values
