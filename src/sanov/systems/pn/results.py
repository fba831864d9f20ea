"""The door for a model that statsmodels has fitted: the first-order risk from its scores and its two informations.

For a regression the risk is E_x D[f*(. | x) || f^(. | x)], and outside exponential families its leading coefficient is

    a = tr(I A^-1 B A^-1) / 2,

with I the expected information of the model, A the observed one and B the mean outer product of the scores, each per
row at the estimate. Where the model is right I = A = B and a = p/2. No term of order n^-2 is known here, so none is
given. The objects are used by what they can do (`score_obs`, `hessian`, `wresid`): statsmodels is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError

__all__ = ["Regression", "read_results"]

CANONICAL = {"Logit", "MNLogit", "Poisson"}  # the observed information does not depend on the outcome
NOT_STATIONARY = 0.01  # n s' A^-1 s of the mean score s: a hundredth of one parameter's noise
RELATIVE_CUT = 1e-9  # eigenvalues of A below this share of the largest belong to redundant columns


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


@dataclass(frozen=True)
class _Pieces:
    scores: Float[ndarray, "rows p"]
    observed: Float[ndarray, "p p"]  # A
    expected: Float[ndarray, "p p"]  # I
    names: list[str]
    notes: tuple[str, ...] = ()


def read_results(results: Any, clusters: Any = None) -> Regression:
    """Compute the first-order coefficient of a fitted model.

    Parameters
    ----------
    results
        What `fit` of a statsmodels model returned: OLS, WLS, GLM, Logit, Poisson, or any likelihood model with scores
        per observation.
    clusters
        A label per row (a list, an array or a series); scores are added within a cluster.

    Raises
    ------
    InputError
        The object is no such result, has frequency weights, or was not fitted by maximum likelihood.
    """
    pieces = _pieces(results)
    rows = len(pieces.scores)
    scores = pieces.scores if clusters is None else _within(pieces.scores, clusters)
    values, vectors = np.linalg.eigh((pieces.observed + pieces.observed.T) / 2)
    kept = values > RELATIVE_CUT * values.max()
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    _check_stationary(pieces.scores.mean(axis=0), inverse, rows)
    risk_metric = inverse @ pieces.expected @ inverse
    terms = np.einsum("ri,ij,rj->r", scores, risk_metric, scores) / 2
    spread = scores.T @ scores / rows
    notes = pieces.notes
    if not kept.all():
        notes += (f"p reduced from {len(kept)} to {int(kept.sum())}: the design is rank-deficient",)
    if clusters is not None:
        notes += (f"scores are added within {len(terms)} clusters",)
    return Regression(
        name=type(results.model).__name__,
        rows=rows,
        parameters=int(kept.sum()),
        first=float(terms.sum() / rows),
        error=float(np.sqrt(len(terms)) * terms.std(ddof=1) / rows),
        eigenvalues=_spectrum(risk_metric, spread)[: kept.sum()],
        shares=dict(zip(pieces.names, map(float, np.diag(risk_metric @ spread)), strict=True)),
        notes=notes,
    )


def _spectrum(metric: Float[ndarray, "p p"], spread: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
    """Eigenvalues of ``metric @ spread``, largest first, through a symmetric matrix."""
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return np.linalg.eigvalsh(root.T @ metric @ root)[::-1]


def _within(scores: Float[ndarray, "rows p"], clusters: Any) -> Float[ndarray, "clusters p"]:
    labels = np.asarray(clusters)
    if labels.shape != (len(scores),):
        raise InputError(f"there are {labels.size} labels", where="clusters", expected=f"{len(scores)}, one per row")
    _, index = np.unique(labels, return_inverse=True)
    added = np.zeros((index.max() + 1, scores.shape[1]))
    np.add.at(added, index, scores)
    return added


def _check_stationary(mean_score: Float[ndarray, " p"], inverse: Float[ndarray, "p p"], rows: int) -> None:
    if rows * mean_score @ inverse @ mean_score > NOT_STATIONARY:
        raise InputError(
            "the scores do not add up to zero at these parameters",
            where="results",
            expected="a maximum-likelihood estimate (not a penalised fit, and converged)",
        )


def _pieces(results: Any) -> _Pieces:
    model: Any = getattr(results, "model", None)
    if hasattr(results, "wresid") and hasattr(model, "wexog"):
        return _linear(np.asarray(model.wexog), np.asarray(results.wresid), list(model.exog_names))
    if not (hasattr(model, "score_obs") and hasattr(model, "hessian")):
        raise InputError(
            f"a {type(results).__name__} has no scores per observation",
            where="results",
            expected="a statsmodels result of OLS, WLS, GLM, Logit, Poisson or another likelihood model",
        )
    return _generalised(results) if hasattr(model, "freq_weights") else _likelihood(results)


def _linear(design: Float[ndarray, "rows k"], residual: Float[ndarray, " rows"], names: list[str]) -> _Pieces:
    """Take a linear model with normal errors; log sigma is its last parameter, for which I = A = 2."""
    rows, columns = design.shape
    variance = float(residual @ residual) / rows
    scores = np.column_stack([design * (residual / variance)[:, None], residual**2 / variance - 1])
    information = np.zeros((columns + 1, columns + 1))
    information[:columns, :columns] = design.T @ design / (rows * variance)
    information[columns, columns] = 2.0
    return _Pieces(scores, information, information, [*names, "log(sigma)"])


def _generalised(results: Any) -> _Pieces:
    model, parameters = results.model, np.asarray(results.params)
    if np.any(np.asarray(model.freq_weights) != 1) or np.any(np.asarray(model.var_weights) != 1):
        raise InputError("the rows are weighted", where="results", fix="repeat rows instead of weighting them")
    if type(model.family).__name__ == "Gaussian" and type(model.family.link).__name__ == "Identity":
        return _linear(np.asarray(model.exog), np.asarray(results.resid_response), list(model.exog_names))
    scale, rows = float(results.scale), len(model.endog)
    observed = -np.asarray(model.hessian(parameters, scale=scale, observed=True)) / rows
    expected = -np.asarray(model.hessian(parameters, scale=scale, observed=False)) / rows
    scores = np.asarray(model.score_obs(parameters, scale=scale))
    notes = () if scale == 1 else (f"the dispersion {scale:.4g} is taken as known",)
    return _Pieces(scores, observed, expected, list(model.exog_names), notes)


def _likelihood(results: Any) -> _Pieces:
    model = results.model
    parameters = np.asarray(results.params).ravel(order="F")
    scores = np.asarray(model.score_obs(parameters))
    observed = -np.asarray(model.hessian(parameters)) / len(scores)
    names = list(getattr(results.params, "index", model.exog_names))
    if len(names) != len(parameters):
        names = [f"{names[i % len(names)]}[{i // len(names)}]" for i in range(len(parameters))]
    canonical = type(model).__name__ in CANONICAL
    note = "the observed information stands for the expected one, which this model does not give"
    return _Pieces(scores, observed, observed, [str(name) for name in names], () if canonical else (note,))
