"""What a person sees: the sentence, calibration against w, the guard, sheets of images, and every image as a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sanov.core import files
from sanov.core.answers import Answer
from sanov.systems.rlg import guard, pictures
from sanov.systems.rlg.calibration import Run, improper, table, wanted_weight
from sanov.systems.rlg.fitted import Fitted
from sanov.systems.rlg.gaussian import Pair, laws, self_check

__all__ = ["about_images", "about_normals"]

CELL = 40  # pixels of an image on a page
ACROSS = 16  # images in a row of the grid under the slider
NAMES = {name: name.replace("_", " ") for name in guard.MEASURES}


def about_images(
    runs: Mapping[float, Run],
    fitted: Fitted,
    *,
    conditions: Sequence[int] | None,
    band: float,
    sheet: int,
    seed: int,
    wanted_kl: float | None,
    judged: Mapping[str, Mapping[float, float]],
    about: Mapping[str, str],
    notes: Sequence[str],
) -> Answer:
    """Lay out what was sampled.

    Parameters
    ----------
    runs
        By w; 0 is among them.
    fitted
        What was sampled.
    conditions
        Class of each image; None for none.
    band
        Width of the guard's.
    sheet
        Rows of the contact sheet.
    seed
        Of the noise.
    wanted_kl
        Path KL not to be passed.
    judged
        Means of further rewards, by name and w.
    about
        What else is written into every image.
    notes
        What else is to be said.
    """
    frame = table(runs, fitted.beta)
    for name, means in judged.items():
        frame = frame.with_columns(pl.Series(name, [means[weight] for weight in frame["w"]]))
    strip = guard.shifts({weight: guard.measures(run.images) for weight, run in runs.items()}, band)
    left = guard.leaves(strip, band)
    best, why = wanted_weight(frame, wanted_kl)
    weights, bytes_ = list(runs), {weight: pictures.pixels(run.images) for weight, run in runs.items()}
    origin = {**about, "seed": str(seed), **fitted.digests()}
    grid = np.stack([np.stack([bytes_[weight][row] for weight in weights]) for row in range(sheet)])
    titles = [_row(fitted, conditions, row) for row in range(sheet)]
    row = frame.row(by_predicate=pl.col("w") == best, named=True)
    return Answer(
        system="rlg",
        sentence=_sentence(row, fitted.reward, left),
        values={"w": best, "reward": row["reward"], "low": row["low"], "high": row["high"], "gain": row["gain"]},
        tables={"Weights": frame, "Guard": strip},
        figures={
            "Contact sheet: the same noise in each row": _sheet_figure(grid, weights, titles),
            "One weight at a time": _slider_figure(bytes_, weights),
            **_curves(frame, fitted.reward),
            "Guard: shift from w = 0, in standard deviations of images": _strip_figure(strip, band),
        },
        notes=(*notes, f"w = {best:g}: {why}.", *_notes(runs, fitted, left)),
        files=_files(bytes_, grid, origin, conditions, fitted.classes),
        provenance={"reference": origin["reference"][:16], "policy": origin["policy"][:16]},
        lines=_lines(frame, left),
    )


def _sentence(row: Mapping[str, Any], reward: str, left: Sequence[guard.Left]) -> str:
    interval = f"{row['reward']:.4g} (95 % interval {row['low']:.4g} to {row['high']:.4g})"
    said = f"at w = {row['w']:g} the mean reward '{reward}' is {interval}, {row['gain']:+.2f} standard deviations from w = 0"
    if not left:
        return f"{said}; no measure of the guard leaves its band"
    first = min(left, key=lambda each: abs(each.weight))
    return f"{said}; the guard warns from w = {first.weight:.2g} on ({NAMES[first.measure]})"


def _lines(frame: pl.DataFrame, left: Sequence[guard.Left]) -> dict[str, str]:
    found = {}
    for row in frame.to_dicts():
        target = "" if row["target"] is None else f", tilt at beta / w {row['target']:.4g}"
        kl = "" if row["path_kl"] is None else f", path KL {row['path_kl']:.3g} nats"
        diversity = f", diversity {row['diversity']:.4g}"
        found[f"w = {row['w']:g}"] = f"reward {row['reward']:.4g} ({row['gain']:+.2f} sd){target}{kl}{diversity}"
    told = ", ".join(f"{NAMES[each.measure]} from w = {each.weight:.2g}" for each in left)
    return {**found, "guard": told or "no measure leaves its band"}


def _notes(runs: Mapping[float, Run], fitted: Fitted, left: Sequence[guard.Left]) -> list[str]:
    notes = []
    if fitted.beta is not None:
        notes.append(
            "beta / w is nominal: a sampler at w other than 0 and 1 does not sample the tilt at beta / w, and a policy is "
            "not the exact optimum; the column `target` says what that tilt's reward is, from the reference's own images."
        )
    for weight, threshold in improper(runs).items():
        notes.append(
            f"at w = {weight:g} normal fits of the rewards have no proper tilted density (threshold w = {threshold:.3g}): "
            "the images are what the sampler makes of that."
        )
    if left:
        notes.append(
            "the guard knows nothing of the reward: a measure that the reward asks for may leave its band in good order."
        )
    return notes


def _row(fitted: Fitted, conditions: Sequence[int] | None, row: int) -> str:
    return f"{row + 1}" if conditions is None else f"{row + 1}: {fitted.classes[conditions[row]]}"


# -- files ------------------------------------------------------------------------------------------------------------


def _files(
    images: Mapping[float, np.ndarray],
    grid: np.ndarray,
    origin: Mapping[str, str],
    conditions: Sequence[int] | None,
    classes: Sequence[str],
) -> dict[str, Callable[[Path], None]]:
    """Return a writer for every image, and for the contact sheet."""
    scale = max(1, CELL // grid.shape[2])
    told = {**origin, "w": ",".join(f"{weight:g}" for weight in images)}
    found: dict[str, Callable[[Path], None]] = {
        "sheet.png": partial(pictures.written, image=pictures.sheet(grid, scale), about=told)
    }
    for weight, own in images.items():
        for row, image in enumerate(own):
            asked = {} if conditions is None else {"condition": classes[conditions[row]]}
            about = {**origin, "w": f"{weight:.17g}", "row": str(row + 1), **asked}
            name = Path("images", f"w={weight:g}", f"{row:05d}.png").as_posix()
            found[name] = partial(pictures.written, image=image, about=about)
    return found


# -- figures ----------------------------------------------------------------------------------------------------------

WEIGHT = {"field": "w", "type": "quantitative", "title": "w"}


def _image_mark() -> dict[str, Any]:
    return {"type": "image", "width": CELL, "height": CELL, "smooth": False}


def _sheet_figure(grid: np.ndarray, weights: Sequence[float], titles: Sequence[str]) -> dict[str, Any]:
    rows = [
        {"w": f"{weight:g}", "row": title, "image": pictures.data_address(grid[row, column])}
        for row, title in enumerate(titles)
        for column, weight in enumerate(weights)
    ]
    step = {"step": CELL + 4}
    return {
        "data": {"values": rows},
        "mark": _image_mark(),
        "width": step,
        "height": step,
        "encoding": {
            "x": {"field": "w", "type": "nominal", "sort": None, "axis": {"orient": "top", "labelAngle": 0}},
            "y": {"field": "row", "type": "nominal", "sort": None, "title": None},
            "url": {"field": "image"},
        },
    }


def _slider_figure(images: Mapping[float, np.ndarray], weights: Sequence[float]) -> dict[str, Any]:
    """Return a grid of images of the w nearest to where the slider stands."""
    ends = [-math.inf, *((one + other) / 2 for one, other in pairwise(weights)), math.inf]
    shown = min(len(next(iter(images.values()))), 2 * ACROSS)
    rows = [
        {"w": weight, "low": max(ends[k], -1e9), "high": min(ends[k + 1], 1e9), "x": row % ACROSS, "y": row // ACROSS,
         "image": pictures.data_address(images[weight][row])}
        for k, weight in enumerate(weights) for row in range(shown)
    ]  # fmt: skip
    place = {"type": "ordinal", "axis": None}
    low, high = weights[0], weights[-1]
    slider = {"input": "range", "min": low, "max": high, "step": (high - low) / 100 or 1, "name": "w "}
    return {
        "params": [{"name": "chosen", "value": high, "bind": slider}],
        "data": {"values": rows},
        "transform": [{"filter": "datum.low <= chosen && chosen < datum.high"}],
        "mark": _image_mark(),
        "width": {"step": CELL + 2},
        "height": {"step": CELL + 2},
        "encoding": {
            "x": {"field": "x", **place},
            "y": {"field": "y", **place},
            "url": {"field": "image"},
            "tooltip": [{"field": "w"}],
        },
    }


def _curves(frame: pl.DataFrame, reward: str) -> dict[str, dict[str, Any]]:
    """Return reward, path KL and diversity against w; the tilt's reward beside the first."""
    rows = frame.to_dicts()
    value = {"field": "reward", "type": "quantitative", "title": f"mean {reward}", "scale": {"zero": False}}
    band = {"y": {**value, "field": "low"}, "y2": {"field": "high"}, "x": WEIGHT}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "area", "opacity": 0.2}, "encoding": band},
        {"mark": {"type": "line", "point": True}, "encoding": {"x": WEIGHT, "y": value}},
    ]
    if any(row["target"] is not None for row in rows):
        dashed = {"type": "line", "strokeDash": [4, 4], "color": "var(--c2)"}
        layers.append({"mark": dashed, "encoding": {"x": WEIGHT, "y": {**value, "field": "target"}}})
    found: dict[str, dict[str, Any]] = {
        "Reward against w; dashed, the tilt at beta / w": {"data": {"values": rows}, "layer": layers}
    }
    for name, title in (("path_kl", "path KL, nats"), ("diversity", "mean distance of two images")):
        if any(row[name] is not None for row in rows):
            y = {"field": name, "type": "quantitative", "title": title, "scale": {"zero": name == "path_kl"}}
            found[f"{title[0].upper()}{title[1:]}, against w"] = {
                "data": {"values": rows},
                "mark": {"type": "line", "point": True},
                "encoding": {"x": WEIGHT, "y": y},
            }
    return found


def _strip_figure(strip: pl.DataFrame, band: float) -> dict[str, Any]:
    rows = [{**row, "measure": NAMES[row["measure"]]} for row in strip.to_dicts()]
    y = {"field": "shift", "type": "quantitative", "title": "shift"}
    colour = {"field": "measure", "type": "nominal", "title": None}
    ends = [
        {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": end}}} for end in (-band, band)
    ]
    spread = {"x": WEIGHT, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    return {
        "data": {"values": rows},
        "layer": [
            *ends,
            {"mark": {"type": "area", "opacity": 0.15}, "encoding": spread},
            {"mark": {"type": "line", "point": True}, "encoding": {"x": WEIGHT, "y": y, "color": colour}},
        ],
    }


# -- normal densities -------------------------------------------------------------------------------------------------


def about_normals(pair: Pair, weights: Sequence[float], noise: float) -> Answer:
    """Say what samplers make of two normal densities, and whether this installation's samplers do.

    Parameters
    ----------
    pair
        Reference and policy.
    weights
        Values of w.
    noise
        Level of the SDE that is shown.
    """
    checks, frame = self_check(), laws(pair, list(weights), noise)
    passed = int(checks["passed"].sum())
    rows = [row for row in frame.to_dicts() if row["target_variance"] is not None]
    worst = max(rows, key=lambda row: abs(row["ode_mean"] - row["target_mean"]), default=None)
    said = f"{passed} of {checks.height} checks of the samplers against closed forms pass"
    if worst is not None:
        said += f"; at w = {worst['w']:g} the ODE has mean {worst['ode_mean']:.4g} and variance {worst['ode_variance']:.4g}, "
        said += f"where the tilt has {worst['target_mean']:.4g} and {worst['target_variance']:.4g}"
    lost = [row["w"] for row in frame.to_dicts() if row["target_variance"] is None]
    notes = []
    if pair.threshold is not None:
        notes.append(f"the tilted precision changes its sign at w = {pair.threshold:.4g}.")
    if lost:
        notes.append(f"no proper tilted density exists at w = {', '.join(f'{w:g}' for w in lost)}.")
    return Answer(
        system="rlg",
        sentence=said,
        values={"checks": checks.height, "passed": passed},
        tables={"Laws": frame, "Checks": checks},
        notes=tuple(notes),
        provenance={"input": files.digest([pair.m0, pair.s0, pair.m1, pair.s1])},
        lines={
            f"w = {row['w']:g}": f"tilt {_law(row, 'target')}, ODE {_law(row, 'ode')}, SDE {_law(row, 'sde')}, "
            f"full SDE {_law(row, 'full_sde')}"
            for row in frame.to_dicts()
        },
    )


def _law(row: Mapping[str, Any], name: str) -> str:
    mean, variance = row[f"{name}_mean"], row[f"{name}_variance"]
    return "none" if variance is None else f"({mean:.3f}, {variance:.4f})"
