"""Vega-Lite figures of the report: agreement in its bounds, error transfer, reliability, effects by task."""

from __future__ import annotations

from typing import Any

import polars as pl

__all__ = ["agreement_figure", "forest_figure", "reliability_figure", "transfer_figure"]

Spec = dict[str, Any]
COLOURS = {
    "corrected": "var(--c3)",
    "inherited": "var(--c2)",
    "both wrong, different": "var(--c5)",
    "lost": "var(--c4)",
}


def _tip(field: str, title: str, form: str = "") -> Spec:
    kind = "quantitative" if form else "nominal"
    return {"field": field, "title": title, "type": kind} | ({"format": form} if form else {})


def _percent(field: str, title: str, *, zero: bool = False) -> Spec:
    axis = {"format": ".0%"} if zero else {"format": ".3~%"}
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": {"zero": zero}}


def agreement_figure(pairs: pl.DataFrame) -> Spec:
    """Agreement of each pair with its interval, between the least and the most that the accuracies allow.

    Parameters
    ----------
    pairs
        Columns `pair`, `agreement`, `low`, `high`, `lowest`, `highest`, `expected`.
    """
    y = {"field": "pair", "type": "nominal", "sort": None, "title": None}
    tips = [
        _tip("pair", "pair"),
        _tip("agreement", "agreement", ".2%"),
        _tip("low", "from", ".2%"),
        _tip("high", "to", ".2%"),
        _tip("expected", "expected of unrelated systems", ".2%"),
        _tip("lowest", "lowest possible", ".2%"),
        _tip("highest", "highest possible", ".2%"),
    ]
    title = "examples with the same answer"
    span = {"x": _percent("lowest", title), "x2": {"field": "highest"}, "y": y}
    error = {"x": _percent("low", title), "x2": {"field": "high"}, "y": y}
    tick = {"type": "tick", "color": "var(--c2)", "thickness": 3, "size": 18}
    point = {"type": "point", "filled": True, "size": 90}
    return {
        "data": {"values": pairs.to_dicts()},
        "height": {"step": 44},
        "layer": [
            {"mark": {"type": "bar", "opacity": 0.15, "size": 16}, "encoding": {**span, "tooltip": tips}},
            {"mark": tick, "encoding": {"x": _percent("expected", title), "y": y, "tooltip": tips}},
            {"mark": {"type": "rule", "color": "var(--c1)", "strokeWidth": 2}, "encoding": error},
            {"mark": point, "encoding": {"x": _percent("agreement", title), "y": y, "tooltip": tips}},
        ],
    }


def transfer_figure(transfer: pl.DataFrame) -> Spec:
    """What became of errors: for each pair, the examples that not both have right, by cell.

    Parameters
    ----------
    transfer
        Columns `pair`, `cell`, `examples`, `share`, `low`, `high`.
    """
    wrong = transfer.filter(pl.col("cell") != "both right").with_columns(
        pl.col("cell").replace_strict({name: place for place, name in enumerate(COLOURS)}).alias("order")
    )
    tips = [
        _tip("pair", "pair"),
        _tip("cell", "cell"),
        _tip("examples", "examples", ","),
        _tip("share", "share", ".2%"),
        _tip("low", "from", ".2%"),
        _tip("high", "to", ".2%"),
    ]
    colour = {
        "field": "cell",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(COLOURS), "range": list(COLOURS.values())},
        "legend": {"orient": "top"},
    }
    x = {**_percent("share", "examples that not both have right", zero=True), "stack": "zero"}
    y = {"field": "pair", "type": "nominal", "sort": None, "title": None}
    order = {"field": "order", "type": "quantitative"}
    return {
        "data": {"values": wrong.to_dicts()},
        "height": {"step": 44},
        "mark": {"type": "bar", "size": 26},
        "encoding": {"x": x, "y": y, "color": colour, "order": order, "tooltip": tips},
    }


def reliability_figure(table: pl.DataFrame) -> Spec:
    """Share right against mean confidence, one point a bin, of every system, with the diagonal.

    Parameters
    ----------
    table
        Columns `system`, `low`, `high`, `rows`, `confidence`, `right`.
    """
    unit = {"domain": [0, 1]}
    x = {"field": "confidence", "type": "quantitative", "scale": unit, "title": "mean confidence"}
    y = {"field": "right", "type": "quantitative", "scale": unit, "title": "share right"}
    colour = {"field": "system", "type": "nominal", "sort": None, "title": None, "legend": {"orient": "top"}}
    tips = [
        _tip("system", "system"),
        _tip("confidence", "mean confidence", ".3f"),
        _tip("right", "share right", ".3f"),
        _tip("rows", "examples", ","),
    ]
    ends = [{"confidence": 0, "right": 0}, {"confidence": 1, "right": 1}]
    dashed = {"type": "line", "strokeDash": [4, 4], "color": "var(--muted)"}
    size = {"field": "rows", "type": "quantitative", "title": "examples", "legend": None}
    points = {"mark": {"type": "point", "filled": True}, "encoding": {"x": x, "y": y, "color": colour, "size": size}}
    points["encoding"]["tooltip"] = tips
    return {
        "layer": [
            {"data": {"values": ends}, "mark": dashed, "encoding": {"x": x, "y": y}},
            {
                "data": {"values": table.to_dicts()},
                "layer": [{"mark": "line", "encoding": {"x": x, "y": y, "color": colour}}, points],
            },
        ]
    }


def forest_figure(groups: pl.DataFrame, grouping: str, effect: str, title: str, *, zero: bool) -> Spec:
    """An effect with its interval in each task or class.

    Parameters
    ----------
    groups
        Columns `grouping`, `examples`, and the effect with its ``low`` and ``high``.
    grouping
        Name of the first column: task or class.
    effect
        Name of the column of the effect.
    title
        Of the axis.
    zero
        Whether to draw a line at zero.
    """
    rows = groups.select(
        pl.col(grouping).alias("group"),
        "examples",
        pl.col(effect).alias("effect"),
        pl.col(f"{effect} low").alias("low"),
        pl.col(f"{effect} high").alias("high"),
    )
    y = {"field": "group", "type": "nominal", "sort": None, "title": None}
    tips = [
        _tip("group", grouping),
        _tip("effect", title, ".2%"),
        _tip("low", "from", ".2%"),
        _tip("high", "to", ".2%"),
        _tip("examples", "examples", ","),
    ]
    span = {"x": _percent("low", title), "x2": {"field": "high"}, "y": y}
    point = {"type": "point", "filled": True, "size": 70}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "color": "var(--c1)", "strokeWidth": 2}, "encoding": span},
        {"mark": point, "encoding": {"x": _percent("effect", title), "y": y, "tooltip": tips}},
    ]
    if zero:
        line = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": {"datum": 0, "type": "quantitative"}}}
        layers.insert(0, {"data": {"values": [{}]}, **line})
    return {"data": {"values": rows.to_dicts()}, "layer": layers}
