"""The first-order risk of a regression: its coefficient, its error, and which parameters make it.

For a regression the risk is E_x D[f*(. | x) || f^(. | x)], and outside exponential families its leading coefficient is

    a = tr(I A^-1 B A^-1) / 2,

with I the expected information of the model, A the observed one and B the mean outer product of the scores, each per
row at the estimate. Where the model is right I = A = B and a = p/2. No term of order n^-2 is known here, so none is
given. The error of a follows from its influence function, in which B, A, I and the estimate all move with a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.families import general_first_order

__all__ = ["Fit", "Regression", "assess"]

NOT_STATIONARY = 0.01  # n s' A^-1 s of the mean score s: a hundredth of one parameter's noise
RELATIVE_CUT = 1e-9  # eigenvalues of A below this share of the largest belong to redundant columns
STEP = 1e-4  # of the differences by which the estimate is moved, in standard errors of one row


@dataclass(frozen=True, eq=False)
class Fit(ABC):
    """A fitted likelihood model, seen from its rows.

    Parameters
    ----------
    name
        The model's class.
    theta, names
        The estimate, and what its parameters are called.
    notes
        What was assumed.
    """

    name: str
    theta: Float[ndarray, " p"]
    names: list[str]
    notes: tuple[str, ...]

    @abstractmethod
    def scores(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "rows p"]:
        """Return the gradient of each row's log-likelihood."""

    @abstractmethod
    def observed(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        """Return A: minus the mean Hessian."""

    @abstractmethod
    def expected(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        """Return I: the mean information under the model."""

    @abstractmethod
    def row_traces(
        self, observed: Float[ndarray, "p p"], expected: Float[ndarray, "p p"]
    ) -> Float[ndarray, " rows"] | None:
        """Add tr(A_i X) and tr(I_i Y) of each row, for symmetric X and Y; None where rows are not told apart."""


@dataclass(frozen=True)
class Regression:
    """What a fitted regression says about its own estimation risk.

    Parameters
    ----------
    name
        The model's class.
    rows
        Observations.
    parameters
        Free parameters (the rank of A); the variance of a linear model is one of them.
    first, error
        The coefficient a of a/n, and its standard error.
    eigenvalues
        Of I A^-1 B A^-1; all 1 where the model is right.
    shares
        Each parameter's share of 2a; each is 1 where the model is right.
    notes
        What was assumed.
    """

    name: str
    rows: int
    parameters: int
    first: float
    error: float
    eigenvalues: Float[ndarray, " p"]
    shares: dict[str, float]
    notes: tuple[str, ...] = ()


def assess(fit: Fit, clusters: Any = None) -> Regression:
    """Compute the first-order coefficient of a fit.

    Parameters
    ----------
    fit
        The model at its maximum-likelihood estimate.
    clusters
        A label per row (a list, an array or a series); scores are added within a cluster.

    Raises
    ------
    InputError
        If the scores do not add up to zero, or the labels do not fit the rows.
    """
    scores = fit.scores(fit.theta)
    rows = len(scores)
    units = np.arange(rows) if clusters is None else _places(clusters, rows)
    values, vectors = np.linalg.eigh(fit.observed(fit.theta))
    basis = vectors[:, values > RELATIVE_CUT * values.max()]  # where the design is deficient, what it can tell apart
    inverse = (basis / values[-basis.shape[1] :]) @ basis.T
    mean = scores.mean(axis=0)
    if rows * mean @ inverse @ mean > NOT_STATIONARY:
        raise InputError(
            "the scores do not add up to zero at these parameters",
            where="results",
            expected="a maximum-likelihood estimate (not a penalised fit, and converged)",
        )
    metric = inverse @ fit.expected(fit.theta) @ inverse
    spread = _spread(scores, units)
    first = float(np.vdot(metric, spread)) / 2
    notes = fit.notes
    if basis.shape[1] < len(values):
        notes += (f"p reduced from {len(values)} to {basis.shape[1]}: the design is rank-deficient",)
    if clusters is not None:
        notes += (f"scores are added within {units.max() + 1} clusters",)
    return Regression(
        name=fit.name,
        rows=rows,
        parameters=basis.shape[1],
        first=first,
        error=_error(fit, scores, units, basis, inverse),
        eigenvalues=_spectrum(metric, spread)[: basis.shape[1]],
        shares=dict(zip(fit.names, map(float, np.diag(metric @ spread)), strict=True)),
        notes=notes,
    )


def _places(clusters: Any, rows: int) -> ndarray:
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise InputError(f"there are {labels.size} labels", where="clusters", expected=f"{rows}, one per row")
    return np.unique(labels, return_inverse=True)[1]


def _added(values: ndarray, units: ndarray) -> ndarray:
    """Add rows within their units."""
    total = np.zeros((units.max() + 1, *values.shape[1:]))
    np.add.at(total, units, values)
    return total


def _spread(scores: Float[ndarray, "rows p"], units: ndarray) -> Float[ndarray, "p p"]:
    """B."""
    sums = _added(scores, units)
    return np.asarray(sums.T @ sums / len(scores))


def _spectrum(metric: Float[ndarray, "p p"], spread: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
    """Eigenvalues of ``metric @ spread``, largest first, through a symmetric matrix."""
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return np.linalg.eigvalsh(root.T @ metric @ root)[::-1]


def _error(
    fit: Fit,
    scores: Float[ndarray, "rows p"],
    units: ndarray,
    basis: Float[ndarray, "p r"],
    inverse: Float[ndarray, "p p"],
) -> float:
    """Return the standard error of a, from the influence of each unit."""
    spread = _spread(scores, units)
    metric = inverse @ fit.expected(fit.theta) @ inverse
    sums = _added(scores, units)
    influence = np.einsum("ui,ij,uj->u", sums, metric, sums) / 2
    around = metric @ spread @ inverse
    rows = fit.row_traces(-(around + around.T) / 2, inverse @ spread @ inverse / 2)
    if rows is not None:
        influence += _added(rows - rows.mean() + scores @ (inverse @ _gradient(fit, units, basis, inverse)), units)
    influence -= influence.sum() / len(scores) * np.bincount(units)
    return float(np.sqrt(np.square(influence).sum())) / len(scores)


def _gradient(
    fit: Fit, units: ndarray, basis: Float[ndarray, "p r"], inverse: Float[ndarray, "p p"]
) -> Float[ndarray, " p"]:
    """Differentiate a by the parameters, the rows held: central differences."""

    def first(theta: Float[ndarray, " p"]) -> float:
        expected, observed = (basis.T @ matrix @ basis for matrix in (fit.expected(theta), fit.observed(theta)))
        return general_first_order(expected, observed, basis.T @ _spread(fit.scores(theta), units) @ basis)

    gradient = np.zeros(len(fit.theta))
    for place, scale in enumerate(np.sqrt(np.diag(inverse))):
        step = np.zeros(len(fit.theta))
        step[place] = STEP * scale
        if scale > 0:
            gradient[place] = (first(fit.theta + step) - first(fit.theta - step)) / (2 * STEP * scale)
    return gradient
