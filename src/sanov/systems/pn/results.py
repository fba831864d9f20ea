"""The door for a model that statsmodels has fitted.

The objects are used by what they can do (`score_obs`, `hessian`, `wresid`): statsmodels is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.systems.pn.regression import Fit, Regression, assess

__all__ = ["read_results"]

CANONICAL = {"Logit", "MNLogit", "Poisson"}  # the observed information does not depend on the outcome


def read_results(results: Any, clusters: Any = None) -> Regression:
    """Compute the first-order coefficient of a fitted model.

    Parameters
    ----------
    results
        What `fit` of a statsmodels model returned: OLS, WLS, GLM, Logit, Poisson, or any likelihood model with scores
        per observation.
    clusters
        A label per row (a list, an array or a series); scores are added within a cluster. None takes the groups of a
        result that was fitted with ``cov_type="cluster"``.

    Raises
    ------
    InputError
        The object is no such result, has weights, or was not fitted by maximum likelihood.
    """
    if clusters is None and getattr(results, "cov_type", "") == "cluster":
        clusters = results.cov_kwds.get("groups")
    return assess(_fit(results), clusters)


def _fit(results: Any) -> Fit:
    model: Any = getattr(results, "model", None)
    name = type(model).__name__
    if hasattr(results, "wresid") and hasattr(model, "wexog"):
        return _Linear.of(name, model.wexog, model.wendog, list(model.exog_names))
    if not (hasattr(model, "score_obs") and hasattr(model, "hessian")):
        raise InputError(
            f"a {type(results).__name__} has no scores per observation",
            where="results",
            expected="a statsmodels result of OLS, WLS, GLM, Logit, Poisson or another likelihood model",
        )
    return _generalised(results, name) if hasattr(model, "freq_weights") else _likelihood(results, name)


def _generalised(results: Any, name: str) -> Fit:
    model = results.model
    if np.any(np.asarray(model.freq_weights) != 1) or np.any(np.asarray(model.var_weights) != 1):
        raise InputError("the rows are weighted", where="results", fix="repeat rows instead of weighting them")
    if type(model.family).__name__ == "Gaussian" and type(model.family.link).__name__ == "Identity":
        return _Linear.of(name, model.exog, model.endog, list(model.exog_names))
    scale = float(results.scale)
    notes = () if scale == 1 else (f"the dispersion {scale:.4g} is taken as known",)
    names = [str(name) for name in model.exog_names]
    return _Generalised(name, np.asarray(results.params), names, notes, model, scale)


def _likelihood(results: Any, name: str) -> Fit:
    theta = np.asarray(results.params).ravel(order="F")
    names = list(getattr(results.params, "index", results.model.exog_names))
    if len(names) != len(theta):
        names = [f"{names[place % len(names)]}[{place // len(names)}]" for place in range(len(theta))]
    note = "the observed information stands for the expected one, which this model does not give"
    notes = () if name in CANONICAL else (note,)
    return _Likelihood(name, theta, [str(name) for name in names], notes, results.model)


@dataclass(frozen=True, eq=False)
class _Linear(Fit):
    """A linear model with normal errors; the last parameter is log sigma."""

    design: Float[ndarray, "rows k"]
    outcome: Float[ndarray, " rows"]

    @classmethod
    def of(cls, name: str, design: Any, outcome: Any, names: list[str]) -> _Linear:
        x, y = np.asarray(design, float), np.asarray(outcome, float)
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        deviation = np.sqrt(np.square(y - x @ coefficients).mean())
        return cls(name, np.append(coefficients, np.log(deviation)), [*names, "log(sigma)"], (), x, y)

    def _standardised(self, theta: Float[ndarray, " p"]) -> Float[ndarray, " rows"]:
        return np.asarray((self.outcome - self.design @ theta[:-1]) * np.exp(-theta[-1]))

    def scores(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "rows p"]:
        u = self._standardised(theta)
        return np.column_stack([self.design * (u * np.exp(-theta[-1]))[:, None], u**2 - 1])

    def observed(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        information, u = self.expected(theta), self._standardised(theta)
        information[-1, :-1] = information[:-1, -1] = 2 * u @ self.design * np.exp(-theta[-1]) / len(u)
        information[-1, -1] = 2 * (u @ u) / len(u)
        return information

    def expected(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        information = np.zeros((len(theta), len(theta)))
        information[:-1, :-1] = self.design.T @ self.design * np.exp(-2 * theta[-1]) / len(self.design)
        information[-1, -1] = 2.0
        return information

    def row_traces(self, observed: Float[ndarray, "p p"], expected: Float[ndarray, "p p"]) -> Float[ndarray, " rows"]:
        u, x = self._standardised(self.theta), self.design * np.exp(-self.theta[-1])
        squares = np.einsum("ri,ij,rj->r", x, observed[:-1, :-1] + expected[:-1, :-1], x)
        return np.asarray(
            squares + 4 * u * (x @ observed[:-1, -1]) + 2 * u**2 * observed[-1, -1] + 2 * expected[-1, -1]
        )


@dataclass(frozen=True, eq=False)
class _Likelihood(Fit):
    """A likelihood model; where it has one linear predictor, `hessian_factor` tells its rows apart."""

    model: Any

    def scores(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "rows p"]:
        return np.asarray(self.model.score_obs(theta))

    def observed(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        return -np.asarray(self.model.hessian(theta)) / len(self.model.exog)

    def expected(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        return self.observed(theta)

    def row_traces(
        self, observed: Float[ndarray, "p p"], expected: Float[ndarray, "p p"]
    ) -> Float[ndarray, " rows"] | None:
        design = np.asarray(self.model.exog)
        if design.shape[1] != len(self.theta) or not hasattr(self.model, "hessian_factor"):
            return None
        factor = np.abs(np.asarray(self.model.hessian_factor(self.theta)))  # its sign differs between models
        return np.asarray(factor * np.einsum("ri,ij,rj->r", design, observed + expected, design))


@dataclass(frozen=True, eq=False)
class _Generalised(Fit):
    """A generalised linear model, which tells observed from expected information."""

    model: Any
    scale: float

    def scores(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "rows p"]:
        return np.asarray(self.model.score_obs(theta, scale=self.scale))

    def observed(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        return self._information(theta, True)

    def expected(self, theta: Float[ndarray, " p"]) -> Float[ndarray, "p p"]:
        return self._information(theta, False)

    def _information(self, theta: Float[ndarray, " p"], observed: bool) -> Float[ndarray, "p p"]:
        hessian = self.model.hessian(theta, scale=self.scale, observed=observed)
        return -np.asarray(hessian) / len(self.model.endog)

    def row_traces(self, observed: Float[ndarray, "p p"], expected: Float[ndarray, "p p"]) -> Float[ndarray, " rows"]:
        design = np.asarray(self.model.exog)
        total = np.zeros(len(design))
        for matrix, kind in ((observed, True), (expected, False)):
            factor = np.asarray(self.model.hessian_factor(self.theta, scale=self.scale, observed=kind))
            total += factor * np.einsum("ri,ij,rj->r", design, matrix, design)
        return total
