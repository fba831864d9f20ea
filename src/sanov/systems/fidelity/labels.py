"""Statistics of right, wrong and equal answers, as functions of the shares of the patterns: of the data, or of many draws.

For systems A and B with accuracies a and b, and K possible answers::

    agreement = P(same answer),  max(0, a + b - 1) <= agreement <= 1 - |a - b|
    expected  = a b + (1 - a)(1 - b) / (K - 1)          right or wrong by chance, wrong answers spread evenly
    excess    = agreement - expected
    error consistency = (c - e) / (1 - e),   c = P(both right) + P(both wrong),  e = a b + (1 - a)(1 - b)
    kappa     = (agreement - p) / (1 - p),   p = sum_k P(A = k) P(B = k)

For two answers excess is c - e. Reference: cohen1960coefficient, geirhos2020beyond; the excess is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.systems.fidelity.counts import CELLS, Counts, pair_name

__all__ = ["Key", "Statistics", "differences", "label_statistics", "pair_statistics"]

Key = tuple[str, str]  # what a statistic is of, and its name
Statistics = dict[Key, Float[ndarray, " draws"]]
COMPARED = (
    "agreement",
    "excess agreement",
    "kappa",
    "error consistency",
    "errors inherited",
    "forward KL",
    "reverse KL",
    "JSD",
    "BLEU",
)


def label_statistics(
    counts: Counts,
    shares: Float[ndarray, "draws patterns"],
    chance: Float[ndarray, "draws pairs"],
    answers: int | None,
) -> Statistics:
    """Compute every statistic of systems and pairs.

    Parameters
    ----------
    counts
        Which patterns there are.
    shares
        Of each pattern.
    chance
        For each pair, sum_k P(a=k) P(b=k).
    answers
        Number of possible answers; None where there are no labels, and so nothing is right or wrong.
    """
    found: Statistics = {}
    if answers is not None:
        for system, right in zip(counts.systems, counts.right, strict=True):
            found[system, "accuracy"] = shares @ right.astype(float)
    for place, pair in enumerate(counts.pairs):
        cells = shares @ counts.transfer(place)
        of = pair_name(counts.systems, pair)
        pairs = pair_statistics(cells, chance[..., place], answers)
        found |= {(of, name): values for name, values in pairs.items()}
    return found


def pair_statistics(
    cells: Float[ndarray, "draws 5"], chance: Float[ndarray, " draws"], answers: int | None
) -> dict[str, Float[ndarray, " draws"]]:
    """Compute the statistics of a pair from the shares of `CELLS`; NaN where one is not defined."""
    both, inherited, different, corrected, lost = np.moveaxis(cells, -1, 0)
    agreement = both + inherited
    found = {"agreement": agreement, "kappa": _over_chance(agreement, chance)}
    if answers is None:
        return found
    first, second = both + lost, both + corrected
    wrong = (1 - first) * (1 - second)
    expected = first * second + wrong / (max(answers, 2) - 1)
    consistent = both + inherited + different
    shares = np.divide(inherited, 1 - first, out=np.full_like(first, np.nan), where=1 - first > 1e-12)
    return {
        "agreement": agreement,
        "agreement, lowest possible": np.maximum(0, first + second - 1),
        "agreement, highest possible": 1 - np.abs(first - second),
        "expected agreement": expected,
        "excess agreement": agreement - expected,
        "kappa": found["kappa"],
        "error consistency": _over_chance(consistent, first * second + wrong),
        **dict(zip(CELLS, np.moveaxis(cells, -1, 0), strict=True)),
        "errors inherited": shares,
    }


def _over_chance(observed: Float[ndarray, " draws"], chance: Float[ndarray, " draws"]) -> Float[ndarray, " draws"]:
    room = 1 - chance
    return np.asarray(np.divide(observed - chance, room, out=np.full_like(observed, np.nan), where=room > 1e-12))


def differences(found: Mapping[Key, Any]) -> dict[Key, Any]:
    """Return differences (of estimates, or of draws) of systems, and of what two of them share with the teacher."""
    gaps: Statistics = {}
    for first, second in (("student", "baseline"), ("student", "teacher"), ("teacher", "baseline")):
        for name in ("accuracy", "ECE"):
            if (first, name) in found and (second, name) in found:
                gaps[f"{first} - {second}", name] = found[first, name] - found[second, name]
    for name in COMPARED:
        both = [found.get((f"teacher, {system}", name)) for system in ("student", "baseline")]
        if both[0] is not None and both[1] is not None:
            gaps["student - baseline", f"{name} with the teacher"] = both[0] - both[1]
    return gaps
