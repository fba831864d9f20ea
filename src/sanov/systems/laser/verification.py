"""How well scores tell right from wrong: on all prompts, at a fitted threshold on held-out ones, and beside what is free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int

from sanov.comparisons import Interval, cluster_bootstrap
from sanov.core.errors import InputError
from sanov.scores import auroc
from sanov.systems.laser.calibration import (
    by_length,
    fit_platt,
    fit_threshold,
    harmonic,
    held_out,
    reliability_frame,
    verdicts,
)

__all__ = ["Judged", "Verification", "interval", "verify"]

DRAWS = 400  # resamples of an interval


@dataclass(frozen=True, eq=False)
class Judged:
    """Completions with their scores, row by row.

    Parameters
    ----------
    prompts, groups
        Text and number of the prompt of each.
    answers
        In a form that equal answers share; None where there is none.
    scores
        0 where a completion was cut, or gives no answer.
    rewards
        0 or 1; NaN where not known.
    finished
        Whether each ended by itself.
    lengths
        Tokens of each; None where not known.
    columns
        Further columns of the table of completions.
    free
        Other measures of confidence, for nothing: by name, one number a completion.
    """

    prompts: list[str]
    groups: Int[np.ndarray, " rows"]
    answers: list[str | None]
    scores: Float64[np.ndarray, " rows"]
    rewards: Float64[np.ndarray, " rows"]
    finished: Bool[np.ndarray, " rows"]
    lengths: Int[np.ndarray, " rows"] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    free: Mapping[str, Float64[np.ndarray, " rows"]] = field(default_factory=dict)

    @property
    def known(self) -> Bool[np.ndarray, " rows"]:
        """Rows whose reward is known."""
        found: Bool[np.ndarray, " rows"] = ~np.isnan(self.rewards)
        return found


@dataclass
class Verification:
    """What is known of verdicts: numbers, tables, figures, and the threshold they were made with."""

    threshold: float
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Float64[np.ndarray, " rows"]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Known:
    """The rows whose reward is known, which of them give an answer, and which are there to fit on."""

    scores: Float64[np.ndarray, " rows"]
    right: Bool[np.ndarray, " rows"]
    groups: Int[np.ndarray, " rows"]
    answered: Bool[np.ndarray, " rows"]
    fit: Bool[np.ndarray, " rows"]

    @property
    def fits(self) -> bool:
        """Whether there are right and wrong rows to fit on, and others to judge."""
        own = self.right[self.fit]
        return bool(own.any() and not own.all() and not self.fit.all())


def verify(judged: Judged, threshold: float | str, share: float, seed: int) -> Verification:
    """Judge verdicts by known rewards.

    Parameters
    ----------
    judged
        What was scored.
    threshold
        Of the verdict; ``calibrated`` for the one that is best on a share of the prompts.
    share
        That share.
    seed
        Of which prompts these are, and of intervals.

    Raises
    ------
    InputError
        A calibrated threshold is asked for where rewards are not known, or are all equal.
    """
    rows = judged.known
    if not rows.any():
        if isinstance(threshold, str):
            fix = "name rewards, or give a column `reward`"
            raise InputError("nothing says which completions are right", where="score_threshold=calibrated", fix=fix)
        above = float((judged.scores > threshold).mean())
        return Verification(threshold, {"mean_score": float(judged.scores.mean()), "share_above": above})
    answered = np.array([given is not None for given in judged.answers])[rows]
    groups = judged.groups[rows]
    fit = held_out(groups, share, seed)
    known = _Known(judged.scores[rows], judged.rewards[rows] == 1, groups, answered, fit)
    found = _verdicts(judged, known, threshold, seed)
    found.tables["Reliability"] = reliability_frame(known.scores, known.right)
    found.figures["Reliability"] = _reliability(found.tables["Reliability"])
    found.figures["Scores"] = _histogram(known.scores, known.right)
    if judged.lengths is not None:
        lengths = judged.lengths[rows]
        found.tables["By length"] = by_length(known.scores, known.right, lengths, threshold=found.threshold)
    if judged.free:
        free = {name: values[rows] for name, values in judged.free.items()}
        found.tables["Beside the score"] = beside = _beside(known, free, seed)
        told = (f"{name} {_short(area)}" for name, area in beside.select("confidence", "auroc").iter_rows())
        found.lines["AUROC of"] = ", ".join(told)
    return found


def _verdicts(judged: Judged, known: _Known, threshold: float | str, seed: int) -> Verification:
    """Judge the plain threshold on all rows, and what is fitted on the rows that it was not fitted on."""
    plain = 0.5 if isinstance(threshold, str) else threshold
    rows = [_judged(f"score > {plain:g}", known.scores, known.right, plain, "all prompts")]
    some = known.answered
    of_answers = _judged(f"score > {plain:g}", known.scores[some], known.right[some], plain, "those with an answer")
    values: dict[str, Any] = {}
    found = Verification(plain)
    rest = ~known.fit
    if known.fits:
        cut = fit_threshold(known.scores[known.fit], known.right[known.fit])
        platt = fit_platt(known.scores[known.fit], known.right[known.fit])
        found.columns["probability"] = platt(judged.scores)
        rows.append(_judged(f"score > {plain:g}", known.scores[rest], known.right[rest], plain, "held-out prompts"))
        rows.append(
            _judged(f"score > {cut:.4g}, fitted", known.scores[rest], known.right[rest], cut, "held-out prompts")
        )
        p = platt(known.scores[rest])
        rows.append(_judged("probability > 0.5, fitted", p, known.right[rest], 0.5, "held-out prompts"))
        values = {"fitted_threshold": cut, "platt_slope": platt.slope, "platt_intercept": platt.intercept}
        found.lines["calibration"] = (
            f"error {_short(rows[1]['ece'])} as it is and {_short(rows[3]['ece'])} as fitted probability; "
            f"best threshold {cut:.3f} (fitted on {len(np.unique(known.groups[known.fit]))} prompts, judged on "
            f"{len(np.unique(known.groups[rest]))})"
        )
    elif isinstance(threshold, str):
        text = "there are not right and wrong completions on two prompts or more, to fit a threshold and to judge it"
        raise InputError(text, where="score_threshold=calibrated", fix="give more prompts")
    calibrated = isinstance(threshold, str)
    main = rows[2] if calibrated else rows[0]
    on = rest if calibrated else np.ones(len(rest), dtype=bool)
    found.threshold = values["fitted_threshold"] if calibrated else plain
    found.values = _headline(main, known, on, found.threshold, seed) | values
    found.values |= {f"{name}_answered": of_answers[name] for name in ("auroc", "f1")}
    found.tables["Verdicts"] = pl.DataFrame([*rows, of_answers], infer_schema_length=None)
    found.lines["verdict"] = _verdict_line(main)
    if main["auroc"] is None:
        found.notes.append(f"AUROC is undefined: all completions are {'right' if known.right[on].all() else 'wrong'}.")
    return found


def _judged(verdict: str, scores: np.ndarray, right: np.ndarray, threshold: float, on: str) -> dict[str, Any]:
    found = verdicts(scores, right, threshold=threshold)
    told = {name: None if math.isnan(value) else value for name, value in found.items()}
    share = float(right.mean()) if len(right) else None
    return {"verdict": verdict, "judged_on": on, "completions": len(scores), "right": share, **told}


def _headline(main: Mapping[str, Any], known: _Known, on: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    """Return the numbers of the verdict, those that claims are about with their intervals over prompts."""
    names = ("auroc", "acc", "acc_pos", "acc_neg", "f1", "ece", "brier")
    values: dict[str, Any] = {"threshold": threshold, **{name: main[name] for name in names}}
    both = np.column_stack([known.scores[on], known.right[on]])

    def f1(rows: np.ndarray) -> float:
        return harmonic(rows[:, 0], rows[:, 1] == 1, threshold)

    for name, statistic in (("auroc", lambda rows: auroc(rows[:, 0], rows[:, 1])), ("f1", f1)):
        found = interval(both, known.groups[on], statistic, seed)
        if values[name] is not None and found is not None:
            values |= {f"{name}_low": found.low, f"{name}_high": found.high}
    return values


def interval(
    values: np.ndarray, groups: Int[np.ndarray, " rows"], statistic: Callable[[Any], float], seed: int
) -> Interval | None:
    """Return the interval of a statistic over resampled prompts; None where there is one prompt alone."""
    if len(np.unique(groups)) < 2:
        return None
    return cluster_bootstrap(values, groups, statistic, draws=DRAWS, seed=seed)


def _verdict_line(main: Mapping[str, Any]) -> str:
    text = f"{main['verdict']}: {main['acc']:.1%} of {main['completions']} verdicts are right"
    parts = (("acc_pos", "right"), ("acc_neg", "wrong"))
    told = [f"{main[name]:.1%} of {kind} answers" for name, kind in parts if main[name] is not None]
    f1 = f"; F1 (harmonic mean) {main['f1']:.3f}" if main["f1"] is not None else ""
    return f"{text} ({', '.join(told)}){f1}"


def _beside(known: _Known, free: Mapping[str, np.ndarray], seed: int) -> pl.DataFrame:
    """Compare the score with other measures of confidence on the same completions."""
    rows: list[dict[str, Any]] = []
    for name, other in {"score": known.scores, **free}.items():
        area = auroc(other, known.right)
        row: dict[str, Any] = {"confidence": name, "auroc": None if math.isnan(area) else area}
        row |= dict.fromkeys(("score_minus_it", "low", "high"))
        if name != "score" and not math.isnan(area):
            three = np.column_stack([known.scores, other, known.right])
            found = interval(three, known.groups, _difference, seed)
            row["score_minus_it"] = _difference(three)
            row |= {} if found is None else {"low": found.low, "high": found.high}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _difference(rows: np.ndarray) -> float:
    return auroc(rows[:, 0], rows[:, 2]) - auroc(rows[:, 1], rows[:, 2])


def _short(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


# -- figures ----------------------------------------------------------------------------------------------------------


def _reliability(frame: pl.DataFrame) -> dict[str, Any]:
    """Share right against mean score, a point a bin, with the diagonal."""
    unit = {"domain": [0, 1]}
    x = {"field": "confidence", "type": "quantitative", "scale": unit, "title": "mean score, held in [0, 1]"}
    y = {"field": "right", "type": "quantitative", "scale": unit, "title": "share right"}
    size = {"field": "rows", "type": "quantitative", "title": "completions"}
    ends = [{"confidence": place, "right": place} for place in (0, 1)]
    return {
        "layer": [
            {"data": {"values": ends}, "mark": {"type": "line", "strokeDash": [4, 4]}, "encoding": {"x": x, "y": y}},
            {"data": {"values": frame.to_dicts()}, "mark": "point", "encoding": {"x": x, "y": y, "size": size}},
        ]
    }


def _histogram(scores: np.ndarray, right: np.ndarray, bins: int = 30) -> dict[str, Any]:
    """How many right and wrong completions have which score."""
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 1.0)
    edges = np.linspace(low, high, bins + 1)
    values = [
        {"score": float(edges[place]), "to": float(edges[place + 1]), "completions": int(count), "answer": kind}
        for kind, own in (("right", right), ("wrong", ~right))
        for place, count in enumerate(np.histogram(scores[own], edges)[0])
    ]
    encoding = {
        "x": {"field": "score", "type": "quantitative", "bin": {"binned": True}, "title": "score"},
        "x2": {"field": "to"},
        "y": {"field": "completions", "type": "quantitative", "stack": None, "title": "completions"},
        "color": {"field": "answer", "type": "nominal", "title": "answer"},
    }
    return {"data": {"values": values}, "mark": {"type": "bar", "opacity": 0.6}, "encoding": encoding}
