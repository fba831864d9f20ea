"""A guard that needs no scorer: four plain measures of an image, and the w from which they leave those of w = 0.

A hacked reward is paid for in how images look: edges, colours, brightness, darkness. A measure is followed over w on the same
noise, in standard deviations of single images at w = 0; it has left its band where the mean shift, with its 95 % interval,
lies beyond the band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sanov.core.options import Options, option

__all__ = ["Band", "Left", "leaves", "measures", "shifts"]

MEASURES = ("edge_density", "colour_entropy", "brightness", "dark_share")
EDGE, DARK, LEVELS = 0.25, 0.2, 16  # of the range from black to white; and how many colours are told apart
INTERVAL = 1.96  # standard errors to an end of a 95 % interval
LEAST = 1e-3  # a spread below this is none, in the unit of the measure


class Band(Options):
    """How far measures may move before it is told."""

    width: float = option(
        0.5, "Shift of a measure that is told, in standard deviations of images at w = 0.", source="choice", gt=0
    )


def measures(images: Float[Tensor, "rows channels height width"]) -> dict[str, Float64[np.ndarray, " rows"]]:
    """Return the four measures of each image.

    Parameters
    ----------
    images
        In [-1, 1]; what lies outside is cut, as it is in a file.

    Returns
    -------
    ``edge_density``: share of neighbours that differ by more than a quarter of the range. ``colour_entropy``: of the
    histogram of 16 levels, a mean over channels, in nats. ``brightness``: mean in [0, 1]. ``dark_share``: share of pixels
    below a fifth.
    """
    x = (images.clamp(-1, 1) + 1) / 2
    across, down = (x.diff(dim=-1).abs() > EDGE).flatten(1), (x.diff(dim=-2).abs() > EDGE).flatten(1)
    edges = torch.cat([across, down], dim=1).double().mean(dim=1)
    level = (x * LEVELS).long().clamp(max=LEVELS - 1).flatten(2)
    counts = torch.zeros(*level.shape[:2], LEVELS, dtype=torch.float64).scatter_add_(
        2, level.cpu(), torch.ones(level.shape, dtype=torch.float64)
    )
    share = counts / counts.sum(dim=2, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(dim=2).mean(dim=1)
    bright, dark = x.flatten(1).double().mean(dim=1), (x < DARK).flatten(1).double().mean(dim=1)
    return dict(zip(MEASURES, (value.cpu().numpy() for value in (edges, entropy, bright, dark)), strict=True))


def shifts(found: Mapping[float, Mapping[str, Float64[np.ndarray, " rows"]]], width: float) -> pl.DataFrame:
    """Return the shift of each measure at each w, in standard deviations of images at w = 0.

    Parameters
    ----------
    found
        Measures by w, of images from the same noise; w = 0 is among them.
    width
        Of the band.

    Returns
    -------
    One row a w and measure: ``w``, ``measure``, ``mean``, ``shift``, ``low``, ``high`` (95 %, paired by noise), and
    ``inside``.
    """
    rows = []
    for name in MEASURES:
        start = found[0.0][name]
        spread = max(float(start.std()), LEAST)
        for weight in sorted(found):
            gap = (found[weight][name] - start) / spread
            error = INTERVAL * float(gap.std(ddof=1)) / math.sqrt(len(gap))
            shift = float(gap.mean())
            inside = abs(shift) - error <= width
            rows.append((weight, name, float(found[weight][name].mean()), shift, shift - error, shift + error, inside))
    return pl.DataFrame(rows, schema=["w", "measure", "mean", "shift", "low", "high", "inside"], orient="row")


@dataclass(frozen=True)
class Left:
    """A measure, and the w at which it leaves its band on the way from 0."""

    measure: str
    weight: float


def leaves(frame: pl.DataFrame, width: float) -> list[Left]:
    """Return which measures leave their band, and where: the w nearest to 0 on either side, between two that were tried.

    Parameters
    ----------
    frame
        What `shifts` returned.
    width
        Of the band.
    """
    found = []
    for name in MEASURES:
        rows = frame.filter(pl.col("measure") == name)
        for side in (rows.filter(pl.col("w") >= 0).sort("w"), rows.filter(pl.col("w") <= 0).sort("w", descending=True)):
            weight = _crossing(side["w"].to_list(), side["shift"].to_list(), side["inside"].to_list(), width)
            if weight is not None:
                found.append(Left(name, weight))
    return sorted(found, key=lambda left: abs(left.weight))


def _crossing(weights: Sequence[float], shifts: Sequence[float], inside: Sequence[bool], width: float) -> float | None:
    """Return where the shift passes the band, on a line between the last w inside and the first outside."""
    place = next((place for place, within in enumerate(inside) if not within), None)
    if place is None or place == 0:
        return None
    before, after = abs(shifts[place - 1]), abs(shifts[place])
    share = (width - before) / (after - before) if after > before else 1.0
    return weights[place - 1] + min(max(share, 0.0), 1.0) * (weights[place] - weights[place - 1])
