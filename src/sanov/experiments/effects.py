"""Effects between the arms of a claim on students: paired by seed, with the figure that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from sanov.claims import Record
from sanov.comparisons import paired_effect

__all__ = ["Effect", "complete_seeds", "difference", "interval", "interval_figure", "uninformative"]

Effect = Callable[[Sequence[Record]], dict[int, float]]


def complete_seeds(
    records: Sequence[Record], arms: Sequence[str], data: Sequence[str], field: str = "accuracy", variant: str = ""
) -> dict[int, np.ndarray]:
    """Return values [data sets, arms] of each seed for which all of them were run.

    Parameters
    ----------
    records
        Of stage ``compare``, whose keys have ``data``, ``arm``, ``seed`` and, where it is no main run, ``variant``.
    arms, data
        Which, in this order.
    field
        The value that is read.
    variant
        Which runs; empty for the main ones.
    """
    wanted = list(product(data, arms))
    read = [r for r in records if (r.cell.key["data"], r.cell.key["arm"]) in wanted]
    read = [r for r in read if r.cell.key.get("variant", "") == variant]
    found = {(str(r.cell.key["data"]), str(r.cell.key["arm"]), int(r.cell.key["seed"])): r.values[field] for r in read}
    seeds = sorted({seed for _, _, seed in found})
    return {
        seed: np.reshape([found[*pair, seed] for pair in wanted], (len(data), len(arms)))
        for seed in seeds
        if all((*pair, seed) in found for pair in wanted)
    }


def difference(arm: str, other: str, data: Sequence[str], field: str = "accuracy", variant: str = "") -> Effect:
    """Return the effect arm minus other for each seed, averaged over the data sets."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = complete_seeds(records, (arm, other), data, field, variant)
        return {seed: float((values[:, 0] - values[:, 1]).mean()) for seed, values in found.items()}

    return effect


def uninformative(data: Sequence[str], arm: str = "ce") -> Callable[[Sequence[Record]], str | None]:
    """Return a sanity check: where no teacher is better than a student of labels alone, there is nothing to distil."""

    def informative(records: Sequence[Record]) -> bool:
        teacher, student = (np.mean([r.values[key] for r in records]) for key in ("teacher", "accuracy"))
        return bool(teacher > student)

    def reason(records: Sequence[Record]) -> str | None:
        main = [r for r in records if not r.cell.key.get("variant")]
        alone = [[r for r in main if (r.cell.key["data"], r.cell.key["arm"]) == (d, arm)] for d in data]
        found = [informative(each) for each in alone if each]
        return None if any(found) or not found else "the teacher is no better than a student trained on labels alone"

    return reason


def interval(effects: Mapping[int, float]) -> dict[str, float]:
    """Return mean and 95 % interval, rounded for a figure; nothing for fewer than two seeds."""
    if len(effects) < 2:
        return {}
    found = paired_effect(list(effects.values()))
    return {"difference": round(found.mean, 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def interval_figure(rows: Sequence[Mapping[str, Any]], y: str, colour: str, order: Sequence[str]) -> dict[str, Any]:
    """Return a figure: one row a value of `y`, in it an interval for each value of `colour`, and a line at 0."""
    place = {
        "y": {"field": y, "type": "nominal", "sort": list(order), "title": None},
        "yOffset": {"field": colour, "type": "nominal"},
        "color": {"field": colour, "type": "nominal", "title": None},
    }
    x = {"field": "difference", "type": "quantitative", "title": "percentage points"}
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    tooltip = [{"field": name} for name in (y, colour, "difference", "low", "high")]
    return {
        "data": {"values": list(rows)},
        "height": {"step": 12},
        "layer": [
            {"mark": "rule", "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**place, **ends, "tooltip": tooltip}},
            {"mark": {"type": "point", "filled": True}, "encoding": {**place, "x": x, "tooltip": tooltip}},
        ],
    }
