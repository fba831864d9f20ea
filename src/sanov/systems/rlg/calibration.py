"""What w does: reward, path KL and diversity against w, next to what beta / w would give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sanov.comparisons import paired_effect
from sanov.systems.rlg.gaussian import Pair
from sanov.systems.rlg.training import FEWEST, effective_sample_size
from sanov.tilting import equivalent_beta

__all__ = ["Run", "diversity", "improper", "table", "tilted_mean", "wanted_weight"]

MOST = 1024  # images whose distances are taken


@dataclass(frozen=True)
class Run:
    """Images at one w, their rewards, the KL of their paths, and the passes of models a step."""

    images: Float[Tensor, "rows channels height width"]
    rewards: Float64[Tensor, " rows"]
    path_kl: Float64[Tensor, " rows"] | None
    passes: float


def diversity(images: Float[Tensor, "rows ..."]) -> float:
    """Return the mean distance between two images, per pixel: the root mean square difference of pixels in [0, 1].

    Parameters
    ----------
    images
        In [-1, 1]; of more than 1,024 the first are taken.
    """
    flat = images[:MOST].flatten(1).double() / 2
    return float(torch.pdist(flat).mean()) / math.sqrt(flat.shape[1])


def tilted_mean(rewards: Float64[Tensor, " rows"], beta: float, weight: float) -> float | None:
    """Return the mean reward of the tilt at beta / w, estimated from images of the reference by their weights.

    None where fewer than 100 effective images carry it.

    Parameters
    ----------
    rewards
        Of images of the reference (w = 0).
    beta, weight
        Coefficient of KL, and w.
    """
    share = (rewards * weight / beta).softmax(dim=0)
    if effective_sample_size(share) < min(FEWEST, len(rewards) / 2):
        return None
    return float(share @ rewards)


def table(runs: Mapping[float, Run], beta: float | None) -> pl.DataFrame:
    """Return one row a w.

    Parameters
    ----------
    runs
        By w; 0 is among them.
    beta
        For which the policy was tuned; None where that says nothing.

    Returns
    -------
    ``w``; ``nominal_beta`` (beta / w); ``reward`` with its 95 % interval; ``gain`` in standard deviations of the reward at
    w = 0; ``target``, the reward of the tilt at beta / w; ``path_kl`` (nats); ``diversity``; ``passes`` of models a step.
    """
    rows = []
    spread = float(runs[0.0].rewards.std()) or math.nan
    base = float(runs[0.0].rewards.mean())
    for weight in sorted(runs):
        run = runs[weight]
        effect = paired_effect(run.rewards.tolist())
        rows.append({
            "w": weight,
            "nominal_beta": equivalent_beta(beta, weight) if beta is not None and weight > 0 else None,
            "reward": effect.mean,
            "low": effect.low,
            "high": effect.high,
            "gain": (effect.mean - base) / spread,
            "target": None if beta is None else tilted_mean(runs[0.0].rewards, beta, weight),
            "path_kl": None if run.path_kl is None else float(run.path_kl.mean()),
            "diversity": diversity(run.images),
            "passes": run.passes,
        })  # fmt: skip
    kinds: dict[str, Any] = {"nominal_beta": pl.Float64, "target": pl.Float64, "path_kl": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=kinds)


def wanted_weight(frame: pl.DataFrame, wanted_kl: float | None) -> tuple[float, str]:
    """Return the w to take, among those tried, and why: that of the largest reward, or of the wanted KL.

    Parameters
    ----------
    frame
        What `table` returned.
    wanted_kl
        Path KL not to be passed, in nats; None for the peak of the reward.
    """
    if wanted_kl is None:
        best = frame.row(frame["reward"].arg_max() or 0, named=True)
        return best["w"], "largest reward of those tried"
    allowed = frame.filter(pl.col("path_kl").fill_null(math.inf) <= wanted_kl)
    if not allowed.height:
        return 0.0, f"no w tried has a path KL of at most {wanted_kl:g} nats"
    best = allowed.row(allowed["reward"].arg_max() or 0, named=True)
    return best["w"], f"largest reward with a path KL of at most {wanted_kl:g} nats"


def improper(runs: Mapping[float, Run]) -> dict[float, float]:
    """Return the weights at which normal fits of the rewards have no tilt, with the threshold.

    The rewards at w = 0 and w = 1 are taken for normal: where the policy's spread more than the reference's, a weight above
    the threshold has a negative precision.

    Parameters
    ----------
    runs
        By w; nothing is said without 0 and 1.
    """
    if not {0.0, 1.0} <= runs.keys():
        return {}
    (m0, s0), (m1, s1) = ((float(runs[w].rewards.mean()), float(runs[w].rewards.std())) for w in (0.0, 1.0))
    if not (s0 > 0 and s1 > 0):
        return {}
    pair = Pair(m0, s0, m1, s1)
    return {weight: pair.threshold for weight in runs if pair.precision(weight) <= 0 and pair.threshold is not None}
