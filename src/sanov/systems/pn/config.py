"""The options of `pn`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from sanov.core.options import Options, option
from sanov.families import Bound, Guarantee
from sanov.systems.pn.expansion import Method

__all__ = ["Config", "Map", "Riley"]

SMALLEST = 1e-6  # gap of the Bayes error: n* is 10^10 rows a parameter there, and below it thresholds drown in rounding


class Map(Options):
    """The user's columns that play a part of their own."""

    outcome: str | None = option(
        None,
        "Column to predict: it leaves the family, and Riley's minimum sample size is given too.",
        source="choice: no outcome unless one is named",
    )
    weights: str | None = option(None, "Column of row weights.", source="choice: rows count alike")
    weights_kind: Literal["probability", "frequency"] = option(
        "probability",
        "Whether a weight is an inverse selection probability, or the number of equal rows that were observed.",
        source="choice: survey weights are the usual case",
    )
    clusters: str | None = option(
        None, "Column of labels; rows of one cluster depend on one another.", source="choice: rows are independent"
    )
    delimiter: str = option("", "What separates the cells of a text file, if not the usual.", source="choice")


class Riley(Options):
    """What Riley's criteria take besides the table."""

    r_squared: float | None = option(
        None,
        "Expected R-squared of the prediction model (Cox and Snell's if the outcome is binary); none: these rows'.",
        source="choice: from the rows, corrected for optimism",
        gt=0,
        lt=1,
    )
    prevalence: float | None = option(
        None, "Without a table: expected share of events of a binary outcome.", source="choice: continuous", gt=0, lt=1
    )
    shrinkage: float = option(0.9, "Wanted shrinkage factor.", source="riley2019binary", gt=0, lt=1)


class Config(Options):
    """Options of `pn`. Here `epsilon` is the allowed gap of the Bayes error from one half."""

    family: str = option(
        "gaussian",
        "gaussian, ising, multinomial, poisson, exponential, or module:function giving sufficient statistics.",
        source="choice: means and all products, the family that most methods assume",
    )
    epsilon: float = option(
        0.05,
        "Allowed gap between one half and the Bayes error of telling the fitted model from the best one.",
        source="choice: at most 55 % of guesses are right",
        gt=0,
        lt=0.5,
    )
    bound: Bound = option(
        "pinsker", "How a divergence bounds the Bayes error.", source="choice: the paper's constant was not seen"
    )
    method: Method | None = option(
        None,
        "Where cumulants come from; none: sandwich for a named family, simple for module:function.",
        source="choice: sandwich is right also where the model is not",
    )
    order: Literal[1, 2] = option(2, "Terms of the expansion in 1/n.", source="paper: both orders")
    guarantee: Guarantee = option(
        "mean", "What must not exceed the threshold: the expected divergence, or a quantile of it.", source="choice"
    )
    confidence: float = option(0.95, "Level of intervals, and of markov and chi2.", source="choice", gt=0.5, lt=1)
    bootstrap: int = option(200, "Replicates behind the intervals; 0 gives none.", source="choice", ge=0)
    draws: int | None = option(
        None, "Monte Carlo draws where a member must be sampled; none: 50 per row.", source="choice", ge=100
    )
    rank_tolerance: float = option(
        1e-9,
        "Relative size of an eigenvalue below which columns depend on one another.",
        source="choice: between rounding and the smallest real eigenvalue of the tables tried",
        gt=0,
        lt=1e-3,
    )
    columns: tuple[str, ...] = option((), "Columns to use; none: all.", source="choice")
    parameters: int | None = option(
        None, "Number of parameters, where there is no table yet.", source="choice: planning", ge=1, le=10_000_000
    )
    map: Map = Map()
    riley: Riley = Riley()

    @field_validator("epsilon")
    @classmethod
    def _not_tiny(cls, epsilon: float) -> float:
        if epsilon < SMALLEST:
            raise ValueError(f"the value is {epsilon:g}; expected a number >= {SMALLEST:g} and < 0.5")
        return epsilon
