"""Joint cumulants of the sufficient statistics under a member of a family, contracted so that no p^4 array is made.

Three kinds of members: a list of weighted states (enumerated, or drawn), independent columns, and the normal
distribution with its linear and quadratic statistics. Each knows its cumulants up to the fifth order, in the
coordinates of its statistics or of any linear map of them. Cumulants are the derivatives of the log-partition function,
so those of order k + 1 say how those of order k move with the natural parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.families import CubicForm, ThirdMoments

__all__ = ["Blocks", "Cumulants", "IndependentCumulants", "NormalCumulants", "StateCumulants"]

Blocks = Callable[[], Iterator[tuple[Float[ndarray, "rows p"], Float[ndarray, " rows"]]]]


@runtime_checkable
class Cumulants(Protocol):
    """What the expansion of the risk asks of a member."""

    def transformed(self, matrix: Float[ndarray, "p r"]) -> Cumulants:
        """Return the cumulants of the statistics ``matrix' xi``."""

    def information(self) -> Float[ndarray, "p p"]:
        """G: the covariance of the statistics."""

    def third(self) -> Float[ndarray, "p p p"]:
        """Return all third cumulants."""

    def third_with(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ij Psi_ije x_ij, for symmetric x."""

    def fourth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, "p p"]:
        """sum_kl Psi_ijkl x_kl, for symmetric x."""

    def fourth_with(self, c: Float[ndarray, "p p p"]) -> Float[ndarray, " p"]:
        """sum_ijk Psi_ijke c_ijk, for symmetric c."""

    def fifth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ijkl Psi_ijkle x_ij x_kl, for symmetric x."""


@dataclass(frozen=True)
class StateCumulants:
    """Cumulants of a distribution on listed states, read a block at a time.

    Parameters
    ----------
    blocks
        Gives the statistics of the states and their probabilities, a block at a time, as often as it is called; the
        probabilities of all blocks add up to one.
    centre
        The mean of the statistics.
    matrix
        The linear map of the statistics that is looked at; None is the identity.
    """

    blocks: Blocks
    centre: Float[ndarray, " q"]
    matrix: Float[ndarray, "q p"] | None = None

    def transformed(self, matrix: Float[ndarray, "p r"]) -> StateCumulants:
        """Return the cumulants of the statistics ``matrix' xi``."""
        return StateCumulants(self.blocks, self.centre, matrix if self.matrix is None else self.matrix @ matrix)

    def __iter__(self) -> Iterator[tuple[Float[ndarray, "rows p"], Float[ndarray, " rows"]]]:
        """Yield the centred statistics and the probabilities."""
        for states, weights in self.blocks():
            centred = states - self.centre
            yield (centred if self.matrix is None else centred @ self.matrix), weights

    @property
    def _size(self) -> int:
        return len(self.centre) if self.matrix is None else self.matrix.shape[1]

    def information(self) -> Float[ndarray, "p p"]:
        """G: the covariance of the statistics."""
        total = np.zeros((self._size, self._size))
        for w, weights in self:
            total += (w.T * weights) @ w
        return total

    def third(self) -> Float[ndarray, "p p p"]:
        """Return all third cumulants."""
        moments = ThirdMoments(self._size)
        for w, weights in self:
            moments.add(w, weights)
        return moments.tensor()

    def third_with(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ij Psi_ije x_ij: E[(w'xw) w]."""
        total = np.zeros(self._size)
        for w, weights in self:
            total += (weights * _form(w, x)) @ w
        return total

    def fourth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, "p p"]:
        """sum_kl Psi_ijkl x_kl: E[w w' (w'xw)] less its three pairings."""
        moment = np.zeros((self._size, self._size))
        for w, weights in self:
            moment += (w.T * (weights * _form(w, x))) @ w
        g = self.information()
        return np.asarray(moment - g * np.vdot(g, x) - 2 * g @ x @ g)

    def fourth_with(self, c: Float[ndarray, "p p p"]) -> Float[ndarray, " p"]:
        """sum_ijk Psi_ijke c_ijk: E[c(w, w, w) w] less its three pairings."""
        cubic, moment, g = CubicForm(c), np.zeros(self._size), self.information()
        for w, weights in self:
            moment += (weights * cubic(w)) @ w
        return np.asarray(moment - 3 * g @ np.einsum("ij,ijk->k", g, c))

    def fifth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ijkl Psi_ijkle x_ij x_kl: E[(w'xw)^2 w] less its ten pairs with a triple."""
        g = self.information()
        xgx = x @ g @ x
        moment, simple, double = np.zeros((3, self._size))
        for w, weights in self:
            form = _form(w, x)
            moment += (weights * form**2) @ w
            simple += (weights * form) @ w
            double += (weights * _form(w, xgx)) @ w
        return np.asarray(moment - 2 * np.vdot(g, x) * simple - 4 * double - 4 * g @ (x @ simple))


def _form(rows: Float[ndarray, "rows p"], matrix: Float[ndarray, "p p"]) -> Float[ndarray, " rows"]:
    return np.asarray(np.einsum("ri,ri->r", rows @ matrix, rows))


@dataclass(frozen=True)
class IndependentCumulants:
    """Cumulants of a linear map of independent variables.

    Parameters
    ----------
    orders
        Cumulants of order 2, 3, 4 and 5 of each variable.
    matrix
        The map: statistics = matrix @ variables.
    """

    orders: Float[ndarray, "4 variables"]
    matrix: Float[ndarray, "p variables"]

    def transformed(self, matrix: Float[ndarray, "p r"]) -> IndependentCumulants:
        """Return the cumulants of the statistics ``matrix' xi``."""
        return IndependentCumulants(self.orders, matrix.T @ self.matrix)

    def information(self) -> Float[ndarray, "p p"]:
        """G: the covariance of the statistics."""
        return np.asarray((self.matrix * self.orders[0]) @ self.matrix.T)

    def third(self) -> Float[ndarray, "p p p"]:
        """Return all third cumulants."""
        m = self.matrix
        return np.asarray(np.einsum("il,jl,kl,l->ijk", m, m, m, self.orders[1], optimize=True))

    def third_with(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ij Psi_ije x_ij."""
        return np.asarray(self.matrix @ (self.orders[1] * _form(self.matrix.T, x)))

    def fourth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, "p p"]:
        """sum_kl Psi_ijkl x_kl."""
        return np.asarray((self.matrix * (self.orders[2] * _form(self.matrix.T, x))) @ self.matrix.T)

    def fourth_with(self, c: Float[ndarray, "p p p"]) -> Float[ndarray, " p"]:
        """sum_ijk Psi_ijke c_ijk."""
        return np.asarray(self.matrix @ (self.orders[2] * CubicForm(c)(self.matrix.T)))

    def fifth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ijkl Psi_ijkle x_ij x_kl."""
        return np.asarray(self.matrix @ (self.orders[3] * _form(self.matrix.T, x) ** 2))


@dataclass(frozen=True)
class NormalCumulants:
    """Cumulants of statistics ``c . w + w' S w`` of standard normal variables w.

    They are the derivatives of ``-log det(1 - 2S)/2 + c' (1 - 2S)^-1 c / 2``, that is the polarised forms of

        order 2   c'c / 2 + tr S^2            order 4   2 c' S^2 c + 2 tr S^4
        order 3   c'Sc + 4/3 tr S^3           order 5   4 c' S^3 c + 16/5 tr S^5

    Parameters
    ----------
    linear, quadratic
        c and the symmetric S of each statistic.
    """

    linear: Float[ndarray, "p d"]
    quadratic: Float[ndarray, "p d d"]

    def transformed(self, matrix: Float[ndarray, "p r"]) -> NormalCumulants:
        """Return the cumulants of the statistics ``matrix' xi``."""
        return NormalCumulants(matrix.T @ self.linear, np.tensordot(matrix, self.quadratic, (0, 0)))

    def information(self) -> Float[ndarray, "p p"]:
        """G: the covariance of the statistics."""
        flat = self.quadratic.reshape(len(self.quadratic), -1)
        return np.asarray(self.linear @ self.linear.T + 2 * flat @ flat.T)

    def third(self) -> Float[ndarray, "p p p"]:
        """Return all third cumulants: 8 tr(S_i S_j S_k) + 2 (c_i S_j c_k + c_j S_i c_k + c_i S_k c_j)."""
        c, s = self.linear, self.quadratic
        traces = np.einsum("iab,jbc,kca->ijk", s, s, s, optimize=True)
        ends = np.einsum("ia,jab,kb->ijk", c, s, c, optimize=True)
        return np.asarray(8 * traces + 2 * (ends + ends.transpose(1, 0, 2) + ends.transpose(0, 2, 1)))

    def _pairs(
        self, x: Float[ndarray, "p p"]
    ) -> tuple[Float[ndarray, "d d d d"], Float[ndarray, "d d d"], Float[ndarray, "d d"]]:
        """sum_kl x_kl of S_k (x) S_l, of S_k (x) c_l, and of c_k (x) c_l."""
        mixed = np.tensordot(x, self.quadratic, (1, 0))
        both = np.tensordot(self.quadratic, mixed, (0, 0))
        return both, np.tensordot(mixed, self.linear, (0, 0)), self.linear.T @ x @ self.linear

    def third_with(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ij Psi_ije x_ij."""
        both, mixed, ends = self._pairs(x)
        matrix = 8 * np.einsum("abbd->ad", both) + 2 * ends
        return np.asarray(
            np.tensordot(self.quadratic, matrix, ([1, 2], [0, 1])) + 4 * self.linear @ np.einsum("abb->a", mixed)
        )

    def fourth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, "p p"]:
        """sum_kl Psi_ijkl x_kl."""
        c, s = self.linear, self.quadratic
        both, mixed, ends = self._pairs(x)
        square = np.einsum("abbd->ad", both)
        vector = np.einsum("abb->a", mixed)
        flat = s.reshape(len(s), -1)
        around = np.tensordot(s, both, ([1, 2], [1, 2])).reshape(len(s), -1)
        traces = 16 * (2 * flat @ (s @ square).reshape(len(s), -1).T + flat @ around.T)
        # c_i (x) everything with c_i at an end, then both c's inside, then both outside
        one_end = c @ (s @ vector + np.einsum("abc,jbc->ja", mixed, s)).T
        both_ends = c @ square @ c.T
        inside = flat @ (s @ ends).reshape(len(s), -1).T
        total = traces + 8 * (2 * one_end + both_ends + inside)
        return np.asarray((total + total.T) / 2)

    def fourth_with(self, c: Float[ndarray, "p p p"]) -> Float[ndarray, " p"]:
        """sum_ijk Psi_ijke c_ijk."""
        ends, s = self.linear, self.quadratic
        one = np.tensordot(c, s, (2, 0))
        two = np.einsum("ijab,jbc->iac", one, s, optimize=True)
        product = np.einsum("iab,ibc->ac", two, s)
        at_end = np.einsum("iab,ib->a", two, ends)
        inside = np.einsum("ijab,jb,ic->ac", one, ends, ends, optimize=True)
        return np.asarray(
            48 * np.tensordot(s, product, ([1, 2], [1, 0]))
            + 24 * ends @ at_end
            + 24 * np.tensordot(s, inside, ([1, 2], [0, 1]))
        )

    def fifth(self, x: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
        """sum_ijkl Psi_ijkle x_ij x_kl."""
        both, mixed, ends = self._pairs(x)
        square = np.einsum("abbd->ad", both)
        vector = np.einsum("abb->a", mixed)
        crossed = np.einsum("abcd,bcde->ae", both, both, optimize=True)
        trace = 128 * (square @ square + np.einsum("abcd,bc->ad", both, square) + crossed)
        outer = square @ vector + np.einsum("abcd,bcd->a", both, mixed) + np.einsum("abc,bc->a", mixed, square)
        middle = np.outer(vector, vector) + np.einsum("abc,cdb->ad", mixed, mixed)
        middle += np.einsum("abcd,bc->ad", both, ends)
        beside = np.einsum("abc,b->ac", mixed, vector) + np.einsum("abc,bcd->ad", mixed, mixed) + square @ ends
        matrix = trace + 32 * (middle + 2 * beside)
        return np.asarray(64 * self.linear @ outer + np.tensordot(self.quadratic, matrix, ([1, 2], [0, 1])))
