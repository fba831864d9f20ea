"""Are answers and labels written in one way? Refused where they never are, told where some are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int64

from sanov.core.errors import InputError
from sanov.systems.fidelity.config import Config
from sanov.systems.fidelity.sources import listed

__all__ = ["check_labels", "doubts", "short"]

REPEATED = 10  # examples for each known answer, from which these are classes: free text has new answers all the time
FEW = 10  # known answers that are classes however few the examples are, if these are twice as many

Codes = Int64[np.ndarray, " _rows"]


def check_labels(
    systems: Sequence[str],
    origins: Sequence[str],
    answers: Int64[np.ndarray, "systems rows"],
    labels: Codes,
    vocabulary: pl.Series,
    config: Config,
) -> list[str]:
    """Refuse labels of another vocabulary than the answers, and say how many labels no system ever gives.

    Parameters
    ----------
    systems, origins
        Names of the systems, and of the tables that they were read from.
    answers, labels
        Codes in the vocabulary, -1 where there is none.
    vocabulary
        The text of each code.
    config
        The options: where all possible answers are named, an answer that is no label is wrong and no more.

    Raises
    ------
    InputError
        No label equals an answer; or labels are classes, and a system that gives several answers never gives one of them.
    """
    usual, given = np.unique(labels[labels >= 0]), np.unique(answers[answers >= 0])
    if config.options or not usual.size or not given.size:
        return []
    if not np.isin(given, usual).any():
        raise _foreign("no answer of any system", " and ".join(dict.fromkeys(origins)), given, usual, vocabulary)
    if not _are_classes(usual, labels):
        return []
    for system, origin, row in zip(systems, origins, answers, strict=True):
        own = np.unique(row[row >= 0])
        if own.size > 1 and not np.isin(own, usual).any():
            raise _foreign(f"no answer of the {system}", origin, own, usual, vocabulary)
    strange = labels[~np.isin(labels, given)]
    if not strange.size:
        return []
    example = short(vocabulary[int(strange.min())])
    share = f"{strange.size:,} of {labels.size:,} labels are never an answer of any system (such as {example})"
    return [f"{share}: written alike?"]


def _foreign(who: str, where: str, own: Codes, usual: Codes, vocabulary: pl.Series) -> InputError:
    told = [listed(vocabulary.gather(codes).to_list()) for codes in (own, usual)]
    return InputError(
        f"{who} is ever a label: the answers are {told[0]}, the labels {told[1]}",
        where=where,
        expected="answers and labels that are written alike",
        fix="write them alike, or name all possible answers by options=A,B,... if every answer really is wrong; "
        "without labels agreement alone is told",
    )


def doubts(
    systems: Sequence[str], answers: Int64[np.ndarray, "systems rows"], labels: Codes | None, vocabulary: pl.Series
) -> list[str]:
    """Say which share of a system's answers is never a label (without labels: never an answer of the other)."""
    told = []
    for place, (system, row) in enumerate(zip(systems, answers, strict=True)):
        other = 1 if place == 0 else 0
        known, what = (answers[other], f"one of the {systems[other]}'s") if labels is None else (labels, "a label")
        usual, given = np.unique(known[known >= 0]), row[row >= 0]
        strange = given[~np.isin(given, usual)]
        if not strange.size or not usual.size:
            continue
        example = short(vocabulary[int(strange.min())])
        if strange.size == given.size:
            here = short(vocabulary[int(usual[0])])
            told.append(f"{system}: no answer is ever {what} ({example}, {here}): written alike?")
        elif _are_classes(usual, row):
            share = f"{strange.size:,} ({100 * strange.size / given.size:.1f} %) of its answers are never {what}"
            told.append(f"{system}: {share} (such as {example}): written alike?")
    return told


def _are_classes(usual: Codes, rows: Codes) -> bool:
    return usual.size <= max(rows.size // REPEATED, min(FEW, rows.size // 2))


def short(text: str) -> str:
    """Quote a text, cut if it is long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
