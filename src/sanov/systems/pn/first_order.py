"""The answers that stop at a/n: a fitted regression, and a study without data."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import stats

from sanov.core.answers import Answer
from sanov.families import BOUNDS, coin_toss_equivalent
from sanov.systems.pn.config import Config
from sanov.systems.pn.figures import planner_figure, shares_figure
from sanov.systems.pn.planning import Plan, Target, bounds_table, planner_curve
from sanov.systems.pn.regression import Regression
from sanov.systems.pn.riley import MinimumSize, planned_size
from sanov.systems.pn.wording import (
    WHY_RILEY,
    bounds_line,
    certainty_line,
    coin_line,
    count,
    model_line,
    number,
    rows_line,
    verdict,
)

__all__ = ["planning_answer", "regression_answer"]

RATIOS = (1.0, 1.25, 1.5, 2.0, 4.0)


def planning_answer(parameters: int, config: Config) -> Answer:
    """Rows that so many parameters need, where there are no data yet.

    Parameters
    ----------
    parameters
        p.
    config
        What is asked of the risk.
    """
    target = Target(config.epsilon, config.bound, config.guarantee, config.confidence, np.ones(parameters))
    plan = Plan(parameters / 2, 0.0, 1.0, target.limit)
    required = plan.required
    curve = planner_curve(plan, None, None, config.confidence)
    tables = {
        "Bounds and guarantees": bounds_table(plan, target, None),
        "Wrong models": _ratios_table(plan),
        "Planner curve": curve,
    }
    riley = _planned(parameters, config)
    if riley:
        tables["Riley's criteria"] = riley.table()
    parts = {
        "bounds": bounds_line(plan, target, None),
        "certainty": certainty_line(plan, target),
        "coin": coin_line(target.limit),
        "wrong model": f"if the data vary twice as much as the model says, {count(2 * required)} rows",
        "per row": f"one parameter costs {count(required / parameters)} rows at epsilon={config.epsilon:g}",
        "Riley": _planned_line(riley) if riley else "",
    }
    return Answer(
        system="pn",
        sentence=(
            f"{parameters:,} parameters need {count(required)} rows at first order, if the model is right: then the "
            f"expected divergence is at most the {number(plan.limit)} nats that epsilon={config.epsilon:g} allows."
        ),
        values={
            "parameters": parameters,
            "epsilon": config.epsilon,
            "delta": target.delta,
            "risk_allowed": plan.limit,
            "rows_required": required,
            "coin_tosses": coin_toss_equivalent(target.limit),
            "riley_rows": riley.rows if riley else None,
            **{f"rows_required_{bound}": plan.a / target.limit_of(bound, config.guarantee) for bound in BOUNDS},
        },
        tables=tables,
        figures={"Risk by number of rows": planner_figure(curve, plan.limit, None, required)},
        notes=("first order, p / (2n); a table brings in the second order and the fit of the model",),
        lines=parts,
    )


def _planned(parameters: int, config: Config) -> MinimumSize | None:
    asked = config.riley
    if asked.r_squared is None and asked.prevalence is None:
        return None
    return planned_size(parameters, r_squared=asked.r_squared, prevalence=asked.prevalence, shrinkage=asked.shrinkage)


def _planned_line(size: MinimumSize) -> str:
    return (
        f"{size.rows:,} rows to predict a {size.kind} outcome with {size.parameters} parameters ({size.binding}; "
        f"R-squared {size.r_squared:.3g}, {size.basis}). {WHY_RILEY}"
    )


def _ratios_table(plan: Plan) -> pl.DataFrame:
    return pl.DataFrame({"tr(G^-1 V)/p": list(RATIOS), "rows required": [plan.required * ratio for ratio in RATIOS]})


def regression_answer(found: Regression, config: Config) -> Answer:
    """Whether a fitted regression has rows enough for its parameters.

    Parameters
    ----------
    found
        From `read_results`.
    config
        What is asked of the risk.
    """
    target = Target(config.epsilon, config.bound, config.guarantee, config.confidence, found.eigenvalues)
    plan = Plan(found.first, 0.0, 2 * found.first / found.parameters, target.limit)
    half = float(stats.norm.ppf((1 + config.confidence) / 2)) * found.error / found.first
    a = (float(found.first * np.exp(-half)), float(found.first * np.exp(half)))  # on the log scale: a is positive
    draws = found.first * np.exp(stats.norm.ppf(np.linspace(0.0005, 0.9995, 1000)) * found.error / found.first)
    rows = float(found.rows)
    curve = planner_curve(plan, rows, np.column_stack([draws, 0 * draws]), config.confidence)
    statistics = pl.DataFrame({"statistic": list(found.shares), "share": list(found.shares.values())})
    statistics = statistics.sort((pl.col("share") - 1).abs(), descending=True)
    tables = {
        "Bounds and guarantees": bounds_table(plan, target, rows),
        "Statistics": statistics,
        "Planner curve": curve,
    }
    return Answer(
        system="pn",
        sentence=verdict(plan, target, rows, _scaled(a, 1 / rows), f"the risk of this {found.name} model"),
        values=_values(found, plan, target, a),
        tables=tables,
        figures={
            "Risk by number of rows": planner_figure(curve, plan.limit, rows, plan.required),
            "Where the data depart from the model": shares_figure(statistics),
        },
        notes=(
            "first order only: outside exponential families no term of order n^-2 is known",
            "enough means that the fitted model is near the best of its kind, not that its predictions are calibrated; "
            "Riley's criteria ask for that (name the outcome of a table by map.outcome)",
            *found.notes,
        ),
        lines=_lines(found, plan, target, a, statistics),
    )


def _lines(
    found: Regression, plan: Plan, target: Target, a: tuple[float, float], statistics: pl.DataFrame
) -> dict[str, str]:
    p, rows = found.parameters, float(found.rows)
    return {
        "rows": rows_line(plan, target, rows, _scaled(a, 1 / plan.limit)),
        "parameters": f"{p} in the model; these rows suffice for about {plan.carried(rows):,}",
        "model": model_line(plan.ratio, _scaled(a, 2 / p), target.confidence, statistics, "tr(I A^-1 B A^-1)/p"),
        "simple": f"p/2 instead of a = {number(plan.a)} asks for {count(p / 2 / plan.limit)} rows",
        "bounds": bounds_line(plan, target, rows),
        "certainty": certainty_line(plan, target),
        "coin": coin_line(plan.risk(rows)),
    }


def _scaled(interval: tuple[float, float], factor: float) -> tuple[float, float]:
    return interval[0] * factor, interval[1] * factor


def _values(found: Regression, plan: Plan, target: Target, a: tuple[float, float]) -> dict[str, object]:
    return {
        "enough": plan.required <= found.rows,
        "rows": found.rows,
        "parameters": found.parameters,
        "epsilon": target.epsilon,
        "delta": target.delta,
        "risk_allowed": plan.limit,
        "risk": plan.risk(float(found.rows)),
        "risk_low": a[0] / found.rows,
        "risk_high": a[1] / found.rows,
        "rows_required": plan.required,
        "rows_required_low": a[0] / plan.limit,
        "rows_required_high": a[1] / plan.limit,
        "rows_more": plan.more(float(found.rows)),
        "parameters_carried": plan.carried(float(found.rows)),
        "a": found.first,
        "a_simple": found.parameters / 2,
        "misspecification_ratio": plan.ratio,
    }
