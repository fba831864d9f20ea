"""How the coefficients a and b answer to each row: the terms that the bootstrap weighs.

In coordinates in which G = 1, b is a function of the model's cumulants G, Psi_3, Psi_4 and of the data's V and K. A row
enters through V and K, and through the model: by way of the estimate, or directly where the sample's own cumulants stand
for the model's. Each way is a cubic form, a quadratic form and a linear form of the row, so a pass over the rows yields
their first-order terms, which add up to zero.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.families import CubicForm, symmetric
from sanov.systems.pn.cumulants import Cumulants

__all__ = ["Sensitivity", "Term", "model_gradient", "sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """Partial derivatives of b, in coordinates in which G = 1.

    Parameters
    ----------
    covariance
        By V.
    skewness
        By K.
    third
        By Psi_3.
    information
        M with ``db = -<M, dG>``.
    trace
        sum_ij Psi_ijk V_ij, which is also minus twice the derivative of a by the natural parameter.
    v
        V itself; b answers to Psi_4 by ``-3/8 <dPsi_4, V (x) V>``, and a to G by ``-<V, dG> / 2``.
    """

    covariance: Float[ndarray, "p p"]
    skewness: Float[ndarray, "p p p"]
    third: Float[ndarray, "p p p"]
    information: Float[ndarray, "p p"]
    trace: Float[ndarray, " p"]
    v: Float[ndarray, "p p"]


def sensitivity(
    third: Float[ndarray, "p p p"],
    fourth: Float[ndarray, "p p"],
    covariance: Float[ndarray, "p p"],
    skewness: Float[ndarray, "p p p"],
) -> Sensitivity:
    """Differentiate b; the arguments are those of `families.expand`."""
    v = covariance
    mixed = np.tensordot(v, third, (1, 0))
    twice = np.tensordot(v, mixed, (1, 1)).transpose(1, 0, 2)
    trace = np.einsum("ij,ijk->k", v, third)
    along = third @ trace
    crossed = np.tensordot(third, mixed, ([0, 2], [0, 2]))
    ends = np.tensordot(third, twice, ([0, 1], [0, 1]))
    by_third = symmetric(-skewness / 3 + 0.75 * np.multiply.outer(v, trace) + 1.5 * twice)
    loops = -4 * fourth @ v + np.outer(trace, trace) + 4 * along @ v + 2 * ends + 8 * crossed @ v
    information = -np.tensordot(third, skewness, ([1, 2], [1, 2])) + 3 * loops / 8
    return Sensitivity(
        covariance=3 * (-fourth + along + 2 * crossed) / 4,
        skewness=-third / 3,
        third=by_third,
        information=(information + information.T) / 2,
        trace=trace,
        v=v,
    )


def model_gradient(
    found: Sensitivity, third: Float[ndarray, "p p p"], cumulants: Cumulants, *, moves_data: bool
) -> Float[ndarray, " p"]:
    """Differentiate b by the natural parameter, along which each cumulant moves by the next.

    Parameters
    ----------
    found
        The partial derivatives.
    third
        Third cumulants of the model.
    cumulants
        The model, in the coordinates of `found`.
    moves_data
        Whether V and K are the model's too and move with it.
    """
    by_second, by_third = -found.information, found.third
    if moves_data:
        by_second, by_third = by_second + found.covariance, by_third + found.skewness
    moved = np.einsum("ij,ije->e", by_second, third) + cumulants.fourth_with(by_third)
    return np.asarray(moved - 3 * cumulants.fifth(found.v) / 8)


@dataclass(frozen=True, eq=False)
class Term:
    """A polynomial of each row: its terms of a and of b, up to a constant.

    Parameters
    ----------
    a_linear, b_linear
        Linear forms.
    a_quadratic, b_quadratic
        Quadratic forms.
    b_cubic
        Cubic form of b.
    square_of
        X, where ``-3/8 (u'Xu)^2`` belongs to b.
    """

    a_linear: Float[ndarray, " p"]
    b_linear: Float[ndarray, " p"]
    a_quadratic: Float[ndarray, "p p"] | None = None
    b_quadratic: Float[ndarray, "p p"] | None = None
    b_cubic: Float[ndarray, "p p p"] | None = None
    square_of: Float[ndarray, "p p"] | None = None

    @functools.cached_property
    def _cubic(self) -> CubicForm | None:
        return None if self.b_cubic is None else CubicForm(self.b_cubic)

    def __call__(self, rows: Float[ndarray, "rows p"]) -> Float[ndarray, "rows 2"]:
        """Evaluate at each row."""
        values = rows @ np.stack([self.a_linear, self.b_linear], axis=1)
        for place, quadratic in enumerate((self.a_quadratic, self.b_quadratic)):
            if quadratic is not None:
                values[:, place] += np.einsum("ri,ri->r", rows @ quadratic, rows)
        if self._cubic is not None:
            values[:, 1] += self._cubic(rows)
        if self.square_of is not None:
            values[:, 1] -= 0.375 * np.einsum("ri,ri->r", rows @ self.square_of, rows) ** 2
        return np.asarray(values)

    def __add__(self, other: Term) -> Term:
        """Add two terms, of which at most one holds a square."""
        return Term(
            self.a_linear + other.a_linear,
            self.b_linear + other.b_linear,
            _sum(self.a_quadratic, other.a_quadratic),
            _sum(self.b_quadratic, other.b_quadratic),
            _sum(self.b_cubic, other.b_cubic),
            self.square_of if other.square_of is None else other.square_of,
        )

    @classmethod
    def linear(cls, a: Float[ndarray, " p"], b: Float[ndarray, " p"]) -> Term:
        """Return what a unit does through the estimate: the derivatives by the natural parameter."""
        return cls(a, b)

    @classmethod
    def of_data(cls, found: Sensitivity, drift: Float[ndarray, " p"], drift_square: Float[ndarray, "p p"]) -> Term:
        """Return what a unit's sum y does through V and K; the drifts are those of `sample.ThirdOrder`."""
        return cls(
            a_linear=-drift,
            b_linear=-2 * found.covariance @ drift - 3 * np.einsum("ijk,ij->k", found.skewness, drift_square),
            a_quadratic=np.eye(len(drift)) / 2,
            b_quadratic=found.covariance,
            b_cubic=found.skewness,
        )

    @classmethod
    def of_data_first(cls, drift: Float[ndarray, " p"]) -> Term:
        """Return the part of `of_data` that belongs to a."""
        return cls(-drift, np.zeros(len(drift)), a_quadratic=np.eye(len(drift)) / 2)

    @classmethod
    def of_law(cls, found: Sensitivity) -> Term:
        """Return what a row does through G, Psi_3 and Psi_4, where they are those of the rows (or draws) themselves."""
        v = found.v
        return cls(
            a_linear=np.zeros(len(v)),
            b_linear=1.5 * v @ found.trace - 3 * np.einsum("iik->k", found.third),
            a_quadratic=-v / 2,
            b_quadratic=-found.information + 0.75 * np.trace(v) * v + 1.5 * v @ v,
            b_cubic=found.third,
            square_of=v,
        )

    @classmethod
    def of_law_first(cls, v: Float[ndarray, "p p"]) -> Term:
        """Return the part of `of_law` that belongs to a."""
        return cls(np.zeros(len(v)), np.zeros(len(v)), a_quadratic=-v / 2)


def _sum(one: ndarray | None, other: ndarray | None) -> ndarray | None:
    if one is None or other is None:
        return other if one is None else one
    return np.asarray(one + other)
