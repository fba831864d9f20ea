"""The sentences that the three doors share."""

from __future__ import annotations

import math

import polars as pl

from sanov.families import bayes_error_bound, coin_toss_equivalent
from sanov.systems.pn.planning import Plan, Target, rows_needed

__all__ = [
    "WHY_RILEY",
    "Interval",
    "bounds_line",
    "certainty_line",
    "coin_line",
    "count",
    "listed",
    "model_line",
    "number",
    "rows_line",
    "span",
    "verdict",
]

Interval = tuple[float, float] | None
ALIKE = 1e-6  # what differs by less is equal up to rounding
WHY_RILEY = (
    "Riley asks that one regression overfits little; pn, that the joint distribution of all columns is estimated "
    "closely."
)
BOUND_NAMES = {"pinsker": "Pinsker", "bretagnolle_huber": "Bretagnolle-Huber", "sharp": "sharp"}


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def count(value: float | int | None) -> str:
    """Return a number of rows, rounded up, with thousands separated."""
    return "no number of" if value is None or not math.isfinite(value) else f"{math.ceil(round(value, 6)):,}"


def span(interval: Interval, level: float, *, whole: bool = False, digits: int = 4) -> str:
    """Return an interval in brackets, with a leading space; nothing where there is none, or only a point."""
    if interval is None or _is_point(interval):
        return ""
    low, high = (count(end) if whole else f"{end:.{digits}g}" for end in interval)
    return f" ({level:.0%} {low} to {'any number' if math.isinf(interval[1]) else high})"


def _is_point(interval: tuple[float, float]) -> bool:
    return interval[1] - interval[0] < ALIKE * abs(interval[1])


def listed(names: list[str], most: int = 3) -> str:
    """Join a few names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def verdict(plan: Plan, target: Target, rows: float, risk: Interval, subject: str = "the estimation risk") -> str:
    """Whether the rows are enough, in one sentence with its interval."""
    if not math.isfinite(plan.required):
        return (
            f"Undecided: no n meets delta = {number(plan.limit)} at second order, where b = {number(plan.b)} is "
            f"negative; first-order n* is {count(plan.a / plan.limit)}, and these are {count(rows)} rows. Use order=1."
        )
    enough = plan.required <= rows
    answer = "Enough" if enough else "Not enough"
    if risk and risk[0] <= plan.limit <= risk[1]:
        answer += ", but within its error"
    return (
        f"{answer}: at {count(rows)} rows {subject} is {number(plan.risk(rows))} nats{span(risk, target.confidence)}, "
        f"{'at most' if enough else 'more than'} the {number(plan.limit)} that epsilon={target.epsilon:g} allows."
    )


def rows_line(plan: Plan, target: Target, rows: float, required: Interval) -> str:
    """How many rows are required, and how many are missing."""
    more = plan.more(rows)
    if more is None:
        return f"no n meets delta at second order; first-order n* is {count(plan.a / plan.limit)} (order=1)"
    last = f"{count(more)} more than these {count(rows)}" if more else f"these are {count(rows)}"
    return f"{count(plan.required)} are required{span(required, target.confidence, whole=True)}: {last}"


def model_line(ratio: float, interval: Interval, level: float, shares: pl.DataFrame, symbol: str) -> str:
    """Whether the model is misspecified, and by which statistics.

    Parameters
    ----------
    ratio, interval, level
        Variance under the data over that under the model, per parameter; its interval and the level of that.
    shares
        Columns `statistic` and `share`, the largest departures first.
    symbol
        What the ratio is called.
    """
    told = f"{symbol} = {ratio:.3g}{span(interval, level, digits=3)}, 1 if right"
    if interval and interval[0] - ALIKE <= 1 <= interval[1] + ALIKE:
        return f"no sign of misspecification: {told}"
    side = pl.col("share") > 1 if ratio > 1 else pl.col("share") < 1
    most = [f"{name} ({share:.3g})" for name, share in shares.filter(side).head(3).iter_rows()]
    reason = f"; most by {', '.join(most)}" if most else ""
    return f"{'misspecified' if interval else 'no interval'}: {told}{reason}"


def bounds_line(plan: Plan, target: Target, rows: float | None) -> str:
    """n* under each bound, and the Bayes error that the rows at hand guarantee."""
    limits = {name: target.limit_of(bound, target.guarantee) for bound, name in BOUND_NAMES.items()}  # type: ignore[arg-type]
    needed = ", ".join(f"{name} {count(rows_needed(limit)(plan.a, plan.b))}" for name, limit in limits.items())
    if rows is None:
        return f"n* by {needed}"
    error = bayes_error_bound(max(plan.risk(rows), 0.0), target.bound)
    return f"n* by {needed}; mean Bayes error >= {error:.4f}"


def certainty_line(plan: Plan, target: Target) -> str:
    """n* if the divergence itself, not its mean, is to meet the threshold."""
    chi2, markov = (rows_needed(target.limit_of(target.bound, kind))(plan.a, plan.b) for kind in ("chi2", "markov"))
    return (
        f"in {target.confidence:.0%} of samples, not on average: {count(chi2)} rows (chi-squared limit), "
        f"{count(markov)} (Markov)"
    )


def coin_line(risk: float) -> str:
    """How often a fair coin must be tossed to be known as well."""
    return f"known as well as a fair coin after {count(coin_toss_equivalent(risk))} tosses" if risk > 0 else ""
