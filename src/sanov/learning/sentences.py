"""Batches of tokenised texts: rows of like length go together, in an order that follows from seed and step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from sanov.learning.training import micro_batches

__all__ = ["Sentences", "padded"]

STRETCH = 50  # batches of shuffled rows that are sorted by length together


class Sentences:
    """The batches of several epochs: padding is most of the cost of short texts.

    Parameters
    ----------
    tokens
        Of each row.
    batch_size
        Rows of a step, on all processes together.
    epochs
        How often each row is taken.
    seed
        Of the order.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], *, batch_size: int, epochs: int, seed: int):
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed
        self.lengths = np.array([len(ids) for ids in tokens])
        self._rows = [rows for epoch in range(epochs) for rows in self._epoch(epoch)]

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self._rows)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def rows(self, step: int, micro_batch: int = 0) -> list[Int64[np.ndarray, " rows"]]:
        """Return the rows of a step that are this process's, in micro-batches."""
        return micro_batches(self._rows[step], micro_batch)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        generator, size = np.random.default_rng([self.seed, epoch]), self.batch_size
        order = generator.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size * STRETCH):
            stretch = order[start : start + size * STRETCH]
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            batches += [stretch[first : first + size] for first in range(0, len(stretch), size)]
        return [batches[place] for place in generator.permutation(len(batches))]


def padded(tokens: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """Return rows as one array, padded on the right, with a mask that is 1 on tokens.

    Parameters
    ----------
    tokens
        Of each row; none makes one row of padding, which counts nothing.
    pad
        The token that fills up.
    """
    rows = tokens or [[pad]]
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    mask = torch.arange(length)[None] < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids, "attention_mask": mask.long()}
