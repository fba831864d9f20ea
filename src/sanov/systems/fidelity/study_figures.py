"""Vega-Lite figures of a study: gains by task, against the student's size, against excess agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from sanov.systems.fidelity.study_findings import Findings

__all__ = ["figures"]

Spec = dict[str, Any]
GAIN = "gain over labels alone, points"


def figures(found: Findings) -> dict[str, Spec]:
    """Return those figures for which there are numbers."""
    level = f"{found.settings.confidence:.0%}".replace("%", " %")
    drawn = {f"Gain by task, with {level} intervals": _forest(found.tasks)}
    if found.sides:
        drawn["The same gain by other rules"] = _forest(_sides(found), "rows")
    points = _points(found)
    if points["size"].drop_nulls().n_unique() > 1:
        size = {"title": "size of the student, billions of weights", "scale": {"type": "log"}}
        drawn["Gain against the student's size"] = _scatter(points, "size", size)
    if len(points["excess"].drop_nulls()):
        excess = {"title": "agreement beyond that of independent errors, points", "scale": {"zero": False}}
        drawn["Gain against excess agreement"] = _scatter(points, "excess", excess)
    return drawn


def _sides(found: Findings) -> pl.DataFrame:
    sides = [found.asked, *found.sides]
    return pl.DataFrame({
        "rows": [side.label or "all rows" for side in sides],
        "mean gain": [side.mean for side in sides],
        "low": [side.interval.low if side.interval else None for side in sides],
        "high": [side.interval.high if side.interval else None for side in sides],
    }, schema_overrides={"low": pl.Float64, "high": pl.Float64})  # fmt: skip


def _points(found: Findings) -> pl.DataFrame:
    rows = found.rows
    columns = {"gain": rows.column(rows.headline), "size": rows.size, "excess": found.excess[:, -1]}
    numbers = [pl.Series(name, np.asarray(values)) for name, values in columns.items()]
    return rows.labels.with_columns(numbers).fill_nan(None)


def _forest(table: pl.DataFrame, name: str = "task") -> Spec:
    """One row a task: its mean gain with its interval, and a line at 0."""
    y = {"field": name, "type": "nominal", "sort": None, "title": None}
    x = {"field": "mean gain", "type": "quantitative", "title": GAIN}
    tips = [
        {"field": name},
        *({"field": f, "type": "quantitative", "format": ".2f"} for f in ("mean gain", "low", "high")),
    ]
    span = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "tooltip": tips}
    return {
        "data": {"values": table.select(name, "mean gain", "low", "high").to_dicts()},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "rule", "strokeWidth": 2, "color": "var(--c1)"}, "encoding": span},
            {"mark": {"type": "point", "filled": True, "size": 80}, "encoding": {"x": x, "y": y, "tooltip": tips}},
        ],
    }


def _scatter(points: pl.DataFrame, field: str, axis: Spec) -> Spec:
    kept = points.filter(pl.col(field).is_not_null() & pl.col("gain").is_not_null())
    names = [column for column in points.columns if column not in ("gain", "size", "excess")]
    numbers = [{"field": name, "type": "quantitative", "format": ".2f"} for name in ("gain", field)]
    encoding = {
        "x": {"field": field, "type": "quantitative", **axis},
        "y": {"field": "gain", "type": "quantitative", "title": GAIN},
        "color": {"field": "method", "type": "nominal", "title": None},
        "tooltip": [*({"field": name} for name in names), *numbers],
    }
    return {
        "data": {"values": kept.to_dicts()},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": {"y": {"datum": 0}}},
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": encoding},
        ],
    }
