"""The answer for a table: enough rows or not, how many more, how many parameters they carry, where the model fails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from sanov.core.answers import Answer
from sanov.families import Expansion, well_specified
from sanov.systems.pn.coefficients import Coefficients
from sanov.systems.pn.compression import Step
from sanov.systems.pn.config import Config
from sanov.systems.pn.figures import compression_figure, planner_figure, shares_figure
from sanov.systems.pn.planning import Plan, Target, bounds_table, planner_curve, rows_needed
from sanov.systems.pn.reading import Data
from sanov.systems.pn.riley import MinimumSize
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.wording import (
    WHY_RILEY,
    Interval,
    bounds_line,
    certainty_line,
    coin_line,
    count,
    listed,
    model_line,
    number,
    rows_line,
    verdict,
)

__all__ = ["Findings", "table_answer"]

UNLIKELY = 1e-6  # a probability of no MLE below this is not worth a sentence
WHY_EVENTS = (
    "Events per parameter is a rule of thumb: unlike the other two it does not know how strong the effects are."
)


@dataclass(frozen=True)
class Findings:
    """Everything that is known when the answer is written.

    Parameters
    ----------
    data, sample, config
        What was asked.
    coefficients
        Of the risk.
    target
        What is asked of it.
    path
        The compression path; empty where it was not computed.
    riley
        Riley's minimum sample size, where an outcome is named.
    """

    data: Data
    sample: Sample
    config: Config
    coefficients: Coefficients
    target: Target
    path: tuple[Step, ...] = ()
    riley: MinimumSize | None = None

    @property
    def rows(self) -> float:
        """Rows at hand."""
        return self.coefficients.rows

    @property
    def plan(self) -> Plan:
        """The coefficients beside the target."""
        found = self.coefficients
        return Plan(found.a, found.b, 2 * found.a / found.parameters, self.target.limit)

    @property
    def enough(self) -> bool:
        """Whether the estimated risk at these rows is accepted."""
        return self.plan.required <= self.rows

    @property
    def ratio_interval(self) -> Interval:
        """Interval of tr(G^-1 V) / p, where the method estimates it."""
        found = self.coefficients.interval("a") if self.coefficients.method == "sandwich" else None
        per = 2 / self.coefficients.parameters
        return (per * found[0], per * found[1]) if found else None


def table_answer(found: Findings) -> Answer:
    """Write the answer."""
    tables = _tables(found)
    rows, plan = found.rows, found.plan
    required = plan.required if math.isfinite(plan.required) else None
    curve = planner_figure(tables["Planner curve"], plan.limit, rows, required)
    figures = {"Risk by number of rows": curve}
    if found.coefficients.method == "sandwich":
        figures["Where the data depart from the model"] = shares_figure(tables["Statistics"])
    if len(found.path) > 1:
        figures["Fewer parameters"] = compression_figure(tables["Compression path"], rows)
    return Answer(
        system="pn",
        sentence=_sentence(found),
        values=_values(found),
        tables=tables,
        figures=figures,
        notes=_notes(found),
        provenance={"input": found.data.digest},
        source=found.data.source,
        lines=_lines(found),
    )


# -- words ------------------------------------------------------------------------------------------------------------


def _sentence(found: Findings) -> str:
    rows = found.rows
    risk = found.coefficients.interval(lambda a, b: a / rows + b / rows**2)
    return verdict(found.plan, found.target, rows, risk)


def _lines(found: Findings) -> dict[str, str]:
    plan, target, rows = found.plan, found.target, found.rows
    required = found.coefficients.interval(rows_needed(plan.limit))
    family = f"{found.coefficients.parameters} in the family ({found.config.family})"
    parts = {
        "rows": rows_line(plan, target, rows, required),
        "parameters": f"{family}; these rows suffice for about {plan.carried(rows):,}",
        "model": _model_line(found),
        "orders": _orders_line(found),
        "bounds": bounds_line(plan, target, rows),
        "certainty": certainty_line(plan, target),
        "coin": coin_line(plan.risk(rows)),
        "criteria": _criteria_line(found.coefficients),
        "compression": _compression_line(found),
    }
    if found.riley:
        parts |= {"Riley": f"{_riley_line(found.riley, found)} {WHY_RILEY}", "events": _events_line(found.riley)}
    return parts


def _model_line(found: Findings) -> str:
    coefficients = found.coefficients
    if coefficients.method == "simple":
        return "taken to be right by method=simple; method=sandwich tests it"
    shares = _statistics(coefficients)
    return model_line(coefficients.ratio, found.ratio_interval, found.config.confidence, shares, "tr(G^-1 V)/p")


def _orders_line(found: Findings) -> str:
    table = _estimates(found).select("estimate", "rows required")
    return "n* by " + ", ".join(f"{name} {count(rows)}" for name, rows in table.iter_rows())


def _criteria_line(coefficients: Coefficients) -> str:
    found = {"AIC": coefficients.aic, "AIC2": coefficients.aic2, "TIC": coefficients.tic}
    return ", ".join(f"{name} {value:,.1f}" for name, value in found.items() if value is not None)


def _compression_line(found: Findings) -> str:
    if len(found.path) < 2:
        return ""
    first = found.path[1]
    text = f"without {first.removed} n* is {count(first.required)}"
    if found.enough:
        return text
    fits = next((k for k, step in enumerate(found.path) if step.required and step.required <= found.rows), None)
    if fits is None:
        return f"{text}; no smaller family on the path fits these rows"
    return f"{text}; without {fits} ({listed([step.removed for step in found.path[1 : fits + 1]])}) these rows suffice"


def _riley_line(size: MinimumSize, found: Findings) -> str:
    outcome = found.data.outcome.name if found.data.outcome else ""
    return (
        f"{size.rows:,} rows to predict '{outcome}' with {size.parameters} parameters ({size.binding}; "
        f"R-squared {size.r_squared:.3g}, {size.basis})."
    )


def _events_line(size: MinimumSize) -> str:
    kind = "events" if size.kind == "binary" else "rows"
    return f"{size.events:,} {kind}, {size.events_per_parameter:.3g} per parameter. {WHY_EVENTS}"


def _notes(found: Findings) -> tuple[str, ...]:
    sample, coefficients = found.sample, found.coefficients
    notes = list(coefficients.warnings)
    effect = " The ratio above includes the design effect." if coefficients.method == "sandwich" else ""
    if sample.effective_rows < sample.rows * (1 - 1e-9):
        notes.append(
            f"weights: {count(sample.rows)} rows weigh as much as {sample.effective_rows:,.1f} (Kish).{effect}"
        )
    if coefficients.units < coefficients.rows:
        notes.append(f"clusters: {count(coefficients.units)} of them are the independent units.{effect}")
    if coefficients.no_mle and coefficients.no_mle > UNLIKELY:
        notes.append(
            f"another sample of this size has no maximum-likelihood estimate with probability up to "
            f"{coefficients.no_mle:.2g}; the risk is the one where it exists"
        )
    if coefficients.a_error > 0:
        errors = f"{number(coefficients.a_error)} in a, {number(coefficients.b_error)} in b"
        notes.append(f"Monte Carlo standard errors: {errors}")
    if found.data.outcome:
        notes.append(f"'{found.data.outcome.name}' is the outcome, and no column of the family")
    few = math.ceil(2 / (1 - found.config.confidence) - 1e-9)
    if 0 < found.config.bootstrap < few:
        notes.append(
            f"intervals of {found.config.confidence:.0%} are rough with bootstrap={found.config.bootstrap}: "
            f"take {few} or more"
        )
    return tuple(notes)


# -- numbers ----------------------------------------------------------------------------------------------------------


def _estimates(found: Findings) -> pl.DataFrame:
    """Put the orders side by side, the method's own last."""
    coefficients, rows = found.coefficients, found.rows
    simple = Expansion(coefficients.a_simple, 0.0, 0.0)
    kinds = {"p/2": simple}
    if coefficients.t1 is not None and coefficients.t2 is not None and coefficients.k4 is not None:
        kinds["p/2 second order"] = well_specified(
            coefficients.parameters, coefficients.t1, coefficients.t2, coefficients.k4
        )
    if coefficients.method == "sandwich":
        kinds["TIC"] = Expansion(coefficients.a, 0.0, 0.0)
        if coefficients.order == 2:
            kinds["sandwich second order"] = Expansion(coefficients.a, coefficients.b, coefficients.b_dual)
    lines = []
    for name, value in kinds.items():
        plan = Plan(value.a, value.b, 2 * value.a / coefficients.parameters, found.target.limit)
        required = plan.required if math.isfinite(plan.required) else None
        lines.append(
            {
                "estimate": name,
                "a": value.a,
                "b": value.b,
                "risk": plan.risk(rows),
                "rows required": required,
                "enough": required is not None and required <= rows,
                "parameters carried": plan.carried(rows),
            }
        )
    return pl.DataFrame(lines)


def _statistics(coefficients: Coefficients) -> pl.DataFrame:
    table = pl.DataFrame({"statistic": list(coefficients.shares), "share": list(coefficients.shares.values())})
    return table.sort((pl.col("share") - 1).abs(), descending=True)


def _tables(found: Findings) -> dict[str, pl.DataFrame]:
    coefficients, config = found.coefficients, found.config
    tables = {
        "Estimates": _estimates(found),
        "Bounds and guarantees": bounds_table(found.plan, found.target, found.rows),
        "Statistics": _statistics(coefficients),
        "Planner curve": planner_curve(found.plan, found.rows, coefficients.replicates, config.confidence),
    }
    criteria = {"AIC": coefficients.aic, "AIC2 (ours)": coefficients.aic2, "TIC": coefficients.tic}
    if any(value is not None for value in criteria.values()):
        tables["Information criteria"] = pl.DataFrame({"criterion": list(criteria), "value": list(criteria.values())})
    if len(found.path) > 1:
        tables["Compression path"] = _path_table(found.path)
    if found.riley:
        tables["Riley's criteria"] = found.riley.table()
    return tables


def _path_table(path: tuple[Step, ...]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "removed": [step.removed or "nothing" for step in path],
            "parameters": [step.parameters for step in path],
            "rows required": [step.required for step in path],
            "risk": [step.risk for step in path],
            "fit lost": [step.lost for step in path],
            "total": [step.total for step in path],
        },
        schema_overrides={"rows required": pl.Float64, "fit lost": pl.Float64, "total": pl.Float64},
    )


def _values(found: Findings) -> dict[str, object]:
    coefficients, plan, rows = found.coefficients, found.plan, found.rows
    required = coefficients.interval(rows_needed(plan.limit)) or (None, None)
    risk = coefficients.interval(lambda a, b: a / rows + b / rows**2) or (None, None)
    values: dict[str, object] = {
        "enough": found.enough,
        "rows": int(rows) if rows == int(rows) else rows,
        "parameters": coefficients.parameters,
        "epsilon": found.config.epsilon,
        "delta": found.target.delta,
        "risk_allowed": plan.limit,
        "risk": plan.risk(rows),
        "risk_low": risk[0],
        "risk_high": risk[1],
        "rows_required": plan.required,
        "rows_required_low": required[0],
        "rows_required_high": required[1],
        "rows_more": plan.more(rows),
        "parameters_carried": plan.carried(rows),
        "a": coefficients.a,
        "b": coefficients.b,
        "a_simple": coefficients.a_simple,
        "a_tic": coefficients.trace / 2,
        "misspecification_ratio": coefficients.ratio,
        "effective_rows": found.sample.effective_rows,
        "independent_units": coefficients.units,
    }
    if found.riley:
        values |= {"riley_rows": found.riley.rows, "events_per_parameter": found.riley.events_per_parameter}
    return values
