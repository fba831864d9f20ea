"""Vega-Lite figures of `pn`: the planner curve, the statistics that depart, the compression path."""

from __future__ import annotations

from typing import Any

import polars as pl

__all__ = ["compression_figure", "planner_figure", "shares_figure"]

Spec = dict[str, Any]
MOST_BARS = 25


def _tip(field: str, title: str, kind: str = "quantitative", form: str = "") -> Spec:
    return {"field": field, "title": title, "type": kind} | ({"format": form} if form else {})


def planner_figure(curve: pl.DataFrame, limit: float, rows: float | None, required: float | None) -> Spec:
    """R(n) with its band; the accepted risk as a line; the rows at hand and the rows required as marks.

    Parameters
    ----------
    curve
        From `planner_curve`.
    limit
        The largest accepted mean risk.
    rows, required
        Rows at hand and n*; None where there are none.
    """
    x = {"field": "rows", "type": "quantitative", "scale": {"type": "log", "nice": False}, "title": "rows"}
    y = {"field": "risk", "type": "quantitative", "scale": {"type": "log"}, "title": "risk R(n), nats"}
    tips = [_tip("rows", "rows", form=","), _tip("risk", "risk", form=".4g"), _tip("first order", "a/n", form=".4g")]
    layers: list[Spec] = []
    if "low" in curve.columns:
        tips += [_tip("low", "from", form=".4g"), _tip("high", "to", form=".4g")]
        floor = float(curve["risk"].abs().to_numpy().min()) / 10  # the axis is logarithmic
        curve = curve.with_columns(pl.col("low").clip(lower_bound=floor))
        band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.append({"mark": {"type": "area", "opacity": 0.25}, "encoding": band})
    layers.append({"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y}})
    dashed = {"type": "line", "strokeDash": [4, 3], "color": "var(--c2)"}
    layers.append({"mark": dashed, "encoding": {"x": x, "y": {**y, "field": "first order"}}})
    hover = {"name": "hover", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    seen = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    points = {"mark": {"type": "point", "filled": True, "size": 70}, "params": [hover]}
    layers.append({**points, "encoding": {"x": x, "y": y, "opacity": seen, "tooltip": tips}})
    layers.append(_rule("y", limit, f"accepted: {limit:.4g}"))
    layers += [_rule("x", rows, "rows at hand")] if rows else []
    layers += [_rule("x", required, "required", below=14)] if required else []
    positive = curve.filter(pl.col("risk") > 0)
    return {"data": {"values": positive.to_dicts()}, "layer": layers}


def _rule(axis: str, place: float, text: str, below: int = 0) -> Spec:
    """Draw a line with its text; `below` moves it away from another's (pixels)."""
    label = {"align": "left", "dx": 4, "dy": -6} if axis == "y" else {"align": "left", "dx": 4, "baseline": "top"}
    other = {"x": {"value": 0}} if axis == "y" else {"y": {"value": below}}
    here = {axis: {"datum": place, "type": "quantitative"}}
    return {
        "data": {"values": [{}]},  # drawn once, not once a row
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": here},
            {"mark": {"type": "text", "text": text, **label}, "encoding": here | other},
        ],
    }


def shares_figure(statistics: pl.DataFrame) -> Spec:
    """Share of each statistic in tr(G^-1 V), the largest departures from 1 first.

    Parameters
    ----------
    statistics
        Columns `statistic` and `share`, sorted.
    """
    rows = statistics.head(MOST_BARS).to_dicts()
    y = {"field": "statistic", "type": "nominal", "sort": None, "title": None}
    x = {"field": "share", "type": "quantitative", "title": "variance under the data / under the model"}
    tips = [_tip("statistic", "statistic", "nominal"), _tip("share", "share", form=".3f")]
    bar = {"mark": "bar", "encoding": {"x": x, "y": y, "tooltip": tips}}
    one = {"mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": {"x": {"datum": 1}}}
    return {"data": {"values": rows}, "layer": [bar, one]}


def compression_figure(path: pl.DataFrame, rows: float) -> Spec:
    """Rows required after each removal, beside the rows at hand.

    Parameters
    ----------
    path
        Columns `parameters`, `removed`, `rows required`, `risk`, `fit lost`.
    rows
        Rows at hand.
    """
    x = {"field": "parameters", "type": "quantitative", "title": "parameters left", "scale": {"zero": False}}
    y = {"field": "rows required", "type": "quantitative", "title": "rows required", "scale": {"zero": False}}
    tips = [
        _tip("removed", "removed last", "nominal"),
        _tip("parameters", "parameters left"),
        _tip("rows required", "rows required", form=",.0f"),
        _tip("risk", "risk at these rows", form=".4g"),
        _tip("fit lost", "fit lost, nats", form=".4g"),
    ]
    line = {"mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": y, "tooltip": tips}}
    return {"data": {"values": path.to_dicts()}, "layer": [line, _rule("y", rows, "rows at hand")]}
