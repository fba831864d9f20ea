"""What a student's subclasses are, so that a person sees what was divided: examples, what sets them apart, known truths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from sanov.data.distillation import DistilTable
from sanov.scores import adjusted_rand

__all__ = ["Cards", "cards"]

EXAMPLES, SIGNS = 3, 5  # a card shows so many examples, and so many words or features
LONGEST = 80  # letters of an example
FEWEST = 3  # texts that a word stands in before it is called a sign
LARGEST_IMAGE = 1024  # pixels
MOST_CELLS = 20_000  # of a figure
WORD = re.compile(r"\w+")


class Cards(NamedTuple):
    """Subclass of each row (within the class predicted), a table with a row a subclass, figures, and what is to be said."""

    subclass: Int64[np.ndarray, " rows"]
    table: pl.DataFrame
    figures: dict[str, dict[str, Any]]
    values: dict[str, float]
    notes: list[str]


def cards(table: DistilTable, log_p: Float64[np.ndarray, "rows classes subclasses"]) -> Cards:
    """Describe the subclasses that a student sees in a table.

    Parameters
    ----------
    table
        Rows; with known subclasses their agreement is measured.
    log_p
        The student's log-probabilities of all subclasses.

    Returns
    -------
    For each subclass its rows, typical examples, and the words (or features) that set it apart from the rest of its class:
    those whose share (or mean) differs most, in standard errors. Agreement with known subclasses is the adjusted Rand
    index of the rows of each known class.
    """
    best = np.logaddexp.reduce(log_p, axis=2).argmax(axis=1)
    own = log_p[np.arange(len(table)), best]
    subclass = own.argmax(axis=1)
    certainty = np.exp(own.max(axis=1) - np.logaddexp.reduce(own, axis=1))
    rows = []
    for c, name in enumerate(table.classes):
        of_class = np.flatnonzero(best == c)
        for s in range(log_p.shape[2]):
            members = of_class[subclass[of_class] == s]
            rest = of_class[subclass[of_class] != s]
            typical = members[np.argsort(-own[members, s], kind="stable")[:EXAMPLES]]
            rows.append({
                "class": name,
                "subclass": s + 1,
                "rows": len(members),
                "share of class": len(members) / len(of_class) if len(of_class) else None,
                "mean certainty": float(certainty[members].mean()) if len(members) else None,
                "set apart by": ", ".join(_signs(table, members, rest)),
                "typical rows": " | ".join(_example(table, int(row)) for row in typical),
            })  # fmt: skip
    values, notes = _agreement(table, best, subclass)
    figures = _mean_images(table, best, subclass, log_p.shape[2])
    return Cards(subclass, pl.DataFrame(rows), figures, values, notes)


# -- what sets a subclass apart ---------------------------------------------------------------------------------------


def _example(table: DistilTable, row: int) -> str:
    name = f"row {row + 1}" if table.ids is None else table.ids[row]
    if not isinstance(table.inputs, tuple):
        return name
    text = " ".join(table.inputs[row].split())
    return f"{text[: LONGEST - 1]}…" if len(text) > LONGEST else text


def _signs(table: DistilTable, members: np.ndarray, rest: np.ndarray) -> list[str]:
    if not len(members) or not len(rest):
        return []
    if isinstance(table.inputs, tuple):
        return _words([table.inputs[i] for i in members], [table.inputs[i] for i in rest])
    inside, outside = table.inputs[members], table.inputs[rest]
    error = np.sqrt(inside.var(axis=0) / len(inside) + outside.var(axis=0) / len(outside))
    gap = inside.mean(axis=0) - outside.mean(axis=0)
    score = np.divide(gap, error, out=np.zeros_like(gap), where=error > 0)
    names = table.features or tuple(f"x{j + 1}" for j in range(len(score)))
    order = np.argsort(-np.abs(score), kind="stable")[:SIGNS]
    return [f"{names[j]} {'high' if score[j] > 0 else 'low'}" for j in order if abs(score[j]) > 2]


def _words(inside: Sequence[str], outside: Sequence[str]) -> list[str]:
    """Words whose share of texts is larger inside, by the z of the difference of two shares."""
    counts = [
        Counter(word for text in texts for word in set(WORD.findall(text.lower()))) for texts in (inside, outside)
    ]
    n, m = len(inside), len(outside)
    scores = {}
    for word, found in counts[0].items():
        if found >= FEWEST:
            pooled = (found + counts[1][word]) / (n + m)
            error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
            scores[word] = (found / n - counts[1][word] / m) / error if error > 0 else 0.0
    best = sorted(scores, key=lambda word: (-scores[word], word))[:SIGNS]
    return [word for word in best if scores[word] > 2]


def _agreement(table: DistilTable, best: np.ndarray, subclass: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """Adjusted Rand index with the known subclasses, within the rows of each predicted class and averaged over rows."""
    if table.subclasses is None:
        return {}, []
    known = np.array([name or "" for name in table.subclasses])
    has = np.array([name is not None for name in table.subclasses])
    total, rows = 0.0, 0
    for c in range(len(table.classes)):
        members = has & (best == c)
        if members.sum() > 1:
            total += members.sum() * adjusted_rand(known[members], subclass[members])
            rows += int(members.sum())
    if not rows:
        return {}, []
    value = total / rows
    told = f"within classes the subclasses agree with the known ones by an adjusted Rand index of {value:.2f} "
    return {"adjusted_rand": value}, [told + "(1 is the same division, 0 what chance gives)."]


def _mean_images(table: DistilTable, best: np.ndarray, subclass: np.ndarray, size: int) -> dict[str, dict[str, Any]]:
    """Mean image of each subclass, where the features are the pixels of square images."""
    if isinstance(table.inputs, tuple):
        return {}
    pixels = table.inputs.shape[1]
    side = round(pixels**0.5)
    if side * side != pixels or not 16 <= pixels <= LARGEST_IMAGE or size * len(table.classes) * pixels > MOST_CELLS:
        return {}
    cells = []
    for c, name in enumerate(table.classes):
        for s in range(size):
            members = (best == c) & (subclass == s)
            mean = table.inputs[members].mean(axis=0) if members.any() else np.zeros(pixels)
            cells += [
                {"class": name, "subclass": s + 1, "x": j % side, "y": j // side, "mean": round(float(mean[j]), 3)}
                for j in range(pixels)
            ]
    hidden = {"axis": None, "type": "ordinal"}
    figure = {
        "data": {"values": cells},
        "mark": "rect",
        "width": 90,
        "height": 90,
        "encoding": {
            "x": {"field": "x", **hidden},
            "y": {"field": "y", **hidden},
            "color": {"field": "mean", "type": "quantitative", "legend": None, "scale": {"scheme": "greys"}},
            "row": {"field": "class", "type": "nominal"},
            "column": {"field": "subclass", "type": "ordinal"},
        },
    }
    return {"Mean of the rows of each subclass": figure}
