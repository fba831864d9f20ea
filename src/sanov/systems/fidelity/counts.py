"""Examples counted by what the systems said of them: all that accuracies, agreements and error transfer depend on.

For two or three systems an example falls into one of at most fifteen *patterns*: which systems are right, and which give the
same answer. Every statistic of labels but Cohen's kappa is a function of the shares of the patterns; kappa also needs how
often each answer is given, and so the *cells*, in which the answers are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from numpy import ndarray

__all__ = ["CELLS", "NO_ANSWER", "Counts", "count", "pair_name"]

NO_ANSWER = -1  # the code of an answer that was not found; it is never right, and equals only its like
CELLS = ("both right", "inherited", "both wrong, different", "corrected", "lost")


@dataclass(frozen=True, eq=False)
class Counts:
    """Numbers of examples.

    Parameters
    ----------
    systems
        Names of the systems.
    right
        Whether a system is right, by pattern.
    same
        Whether a pair of systems gives the same answer, by pattern; pairs as in `pairs`.
    patterns
        Examples of each pattern.
    groups
        Examples of each pattern in each group (task or class).
    cells, cell_patterns, cell_answers
        Examples of each distinct combination of answers within a pattern; the pattern; the systems' answers.
    """

    systems: tuple[str, ...]
    right: Bool[ndarray, "systems patterns"]
    same: Bool[ndarray, "pairs patterns"]
    patterns: Int[ndarray, " patterns"]
    groups: Int[ndarray, "groups patterns"]
    cells: Int[ndarray, " cells"]
    cell_patterns: Int[ndarray, " cells"]
    cell_answers: Int[ndarray, "systems cells"]

    @property
    def rows(self) -> int:
        """Number of examples."""
        return int(self.patterns.sum())

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of systems, by their numbers."""
        return tuple(combinations(range(len(self.systems)), 2))

    def transfer(self, pair: int) -> Float[ndarray, "patterns 5"]:
        """Return the cell of `CELLS` that each pattern belongs to for a pair of systems, as an indicator."""
        first, second = (self.right[place] for place in self.pairs[pair])
        same = self.same[pair]
        wrong = ~first & ~second
        return np.stack([first & second, wrong & same, wrong & ~same, ~first & second, first & ~second], axis=1).astype(
            float
        )

    def chance(self, pair: int) -> float:
        """Return how often two systems would agree if each gave its answers to random examples: sum of P(a=k) P(b=k)."""
        first, second = (self._shares(place) for place in self.pairs[pair])
        return float(sum(share * second.get(answer, 0.0) for answer, share in first.items()))

    def _shares(self, system: int) -> dict[int, float]:
        answers, place = np.unique(self.cell_answers[system], return_inverse=True)
        totals = np.bincount(place, self.cells) / self.rows
        return dict(zip(answers.tolist(), totals.tolist(), strict=True))


def pair_name(systems: Sequence[str], pair: tuple[int, int]) -> str:
    """Return what a pair is called in tables."""
    return f"{systems[pair[0]]}, {systems[pair[1]]}"


def count(
    systems: Sequence[str],
    answers: Int[ndarray, "systems rows"],
    labels: Int[ndarray, " rows"] | None = None,
    groups: Int[ndarray, " rows"] | None = None,
) -> Counts:
    """Count examples.

    Parameters
    ----------
    systems
        Names of the systems.
    answers
        Code of each system's answer, `NO_ANSWER` where there is none.
    labels
        Code of the right answer; without them nothing counts as right.
    groups
        Number of the group of each example, from 0.
    """
    pairs = list(combinations(range(len(systems)), 2))
    facts = [np.zeros(answers.shape[1], bool) if labels is None else row == labels for row in answers]
    facts += [answers[a] == answers[b] for a, b in pairs]
    code = np.zeros(answers.shape[1], np.uint8)
    for place, fact in enumerate(facts):
        code |= fact.astype(np.uint8) << place
    totals = np.bincount(code, minlength=1 << len(facts))
    present = np.flatnonzero(totals)
    bits = (present >> np.arange(len(facts))[:, None] & 1).astype(bool)
    pattern = np.zeros(len(totals), np.int64)
    pattern[present] = np.arange(len(present))
    group = np.zeros(len(code), np.int64) if groups is None else groups.astype(np.int64)
    by_group = np.bincount(group * len(present) + pattern[code])
    by_group = np.append(by_group, np.zeros(-len(by_group) % len(present), np.int64)).reshape(-1, len(present))
    cells = pl.DataFrame({"pattern": pattern[code], **{f"a{k}": row for k, row in enumerate(answers)}})
    cells = cells.group_by(cells.columns).len("rows").sort(cells.columns)
    return Counts(
        systems=tuple(systems),
        right=bits[: len(systems)],
        same=bits[len(systems) :],
        patterns=totals[present],
        groups=by_group,
        cells=cells["rows"].cast(pl.Int64).to_numpy(),
        cell_patterns=cells["pattern"].to_numpy(),
        cell_answers=cells.select(pl.col("^a\\d+$")).to_numpy().T,
    )
