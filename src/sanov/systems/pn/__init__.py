"""p-n criterion: move the members of a parametric family onto the true distribution, and ask whether n rows suffice.

The fitted member f^ is away from the member f* closest to the truth g (its information projection) by a divergence
whose mean is the estimation risk,

    R(n) = E_g D[f* || f^] = a/n + b/n^2 + O(n^-3),

and the sample is large enough for the p parameters if R(n) <= delta, the divergence below which no test tells the two
apart with an error below 1/2 - epsilon (Pinsker: delta = 8 epsilon^2). With G the information of the model and V the
covariance of its sufficient statistics under the truth,

    a = tr(G^-1 V) / 2,

which is p/2 where the model is right; b is a function of the cumulants up to the fourth (`sanov.families`). No
competing model is needed, and in an exponential family no normalising constant.

Three doors: a table; a fitted statsmodels result (`from_results`: first order); no data yet (`parameters=24`).

Reference: sheena2021pn.

Deviations from the paper. Of the paper only its abstract, its section list and secondary sources could be read, so:

- the expansion is derived anew, also for a wrong model, and is checked against exact risks and simulation;
- the paper's bound on the Bayes error was not seen: Pinsker's is the default, two others stand beside it;
- its simple form is taken to be sample cumulants with G = V (``method=simple``); the default is the sandwich, because
  p/2 is far too optimistic on real tables;
- intervals, weights, clusters, the compression path, AIC2, high-probability guarantees and Riley's criteria are ours.
"""

from __future__ import annotations

from typing import Any

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import parse
from sanov.systems.pn.answer import Findings, table_answer
from sanov.systems.pn.coefficients import Coefficients, estimate
from sanov.systems.pn.compression import Step, compression_path
from sanov.systems.pn.config import Config
from sanov.systems.pn.first_order import planning_answer, regression_answer
from sanov.systems.pn.planning import Target
from sanov.systems.pn.reading import Data, Outcome, naming, read
from sanov.systems.pn.results import read_results
from sanov.systems.pn.riley import MinimumSize, minimum_size

__all__ = ["Config", "Data", "apply", "from_results", "read"]

LONGEST_PATH = 150  # statistics up to which the compression path is a matter of seconds


def apply(data: Data, config: Config, *, fitted: Any = None, seed: int = 0) -> Answer:
    """Say whether the rows suffice, how many are missing, how many parameters they carry, and where the model is wrong.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options.
    fitted
        Not used: there is nothing to fit.
    seed
        Of the bootstrap and of draws.

    Raises
    ------
    InputError
        If the risk is not defined: too few rows, or an estimate on the boundary.
    """
    if fitted is not None:
        raise InputError("there is nothing to fit, so nothing fitted to apply", where="pn", fix="leave out --fitted")
    if data.sample is None:
        return planning_answer(int(config.parameters or 0), config)
    with naming(data.name, data.roles):
        coefficients = estimate(
            data.sample,
            method=config.method or ("simple" if ":" in config.family else "sandwich"),
            order=config.order,
            bootstrap=config.bootstrap,
            draws=config.draws,
            rank_tolerance=config.rank_tolerance,
            confidence=config.confidence,
            seed=seed,
        )
    target = Target(config.epsilon, config.bound, config.guarantee, config.confidence, coefficients.eigenvalues)
    path = _path(coefficients, target)
    riley = _riley(data.outcome, config)
    return table_answer(Findings(data, data.sample, config, coefficients, target, path, riley))


def _path(coefficients: Coefficients, target: Target) -> tuple[Step, ...]:
    if coefficients.parameters > LONGEST_PATH:
        return ()
    return tuple(compression_path(coefficients, target.limit))


def _riley(outcome: Outcome | None, config: Config) -> MinimumSize | None:
    if outcome is None:
        return None
    given, shrinkage = config.riley.r_squared, config.riley.shrinkage
    return minimum_size(outcome.predictors, outcome.values, r_squared=given, shrinkage=shrinkage)


def from_results(results: Any, *, clusters: Any = None, **options: Any) -> Answer:
    """Apply the criterion to a fitted statsmodels result, at first order.

    Parameters
    ----------
    results
        Of OLS, WLS, GLM, Logit, Poisson or another likelihood model.
    clusters
        A label per row; rows of one cluster depend on one another. None takes the groups of a result that was fitted
        with ``cov_type="cluster"``.
    options
        Fields of `Config` that concern the target: `epsilon`, `bound`, `guarantee`, `confidence`.

    Raises
    ------
    InputError
        If the object is no maximum-likelihood result with scores per row.
    """
    return regression_answer(read_results(results, clusters), parse(Config, options))
