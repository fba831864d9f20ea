"""Which rows a step takes, and which of them are this process's: pure functions of the seed and the step."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sanov.core.errors import InputError
from sanov.learning.processes import place

__all__ = ["Shuffled", "micro_batches", "shuffled"]


@dataclass(frozen=True)
class Shuffled:
    """The rows of each step: every epoch takes all rows once, in an order of its own.

    Parameters
    ----------
    n_rows
        Number of rows of the table.
    batch_size
        Rows of a step, on all processes together.
    seed
        Of the orders.
    drop_last
        Leave out the last batch of an epoch where it is smaller.
    """

    n_rows: int
    batch_size: int
    seed: int
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.n_rows // self.batch_size if self.drop_last else -(-self.n_rows // self.batch_size)

    def __call__(self, step: int) -> Int[np.ndarray, " rows"]:
        """Return the rows of a step; steps count from 0, over all epochs."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        return _order(self.n_rows, self.seed, epoch)[start : start + self.batch_size].copy()


@functools.lru_cache(maxsize=4)
def _order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def shuffled(n_rows: int, batch_size: int, *, seed: int, drop_last: bool = False) -> Shuffled:
    """Return the function from a step to its rows.

    Raises
    ------
    InputError
        There are no rows, or no batch is full where the last is dropped.
    """
    if n_rows < 1 or batch_size < 1:
        raise InputError(f"{n_rows} rows in batches of {batch_size}", where="batches", expected="at least one of each")
    if drop_last and batch_size > n_rows:
        fix = "make the batches smaller or keep the last one"
        raise InputError(f"{n_rows} rows make no batch of {batch_size}", where="batches", fix=fix)
    return Shuffled(n_rows, batch_size, seed, drop_last)


def micro_batches(rows: Int[np.ndarray, " rows"], size: int = 0) -> list[Int[np.ndarray, " _"]]:
    """Divide the rows of a step: every n-th is this process's, in micro-batches of at most `size` (0: in one).

    Each process gets as many micro-batches as the others, as the training loop asks; where rows are too few, some are
    empty.
    """
    process, processes = place()
    most = -(-len(rows) // processes)
    own = rows[process::processes]
    size = size or max(most, 1)
    return [own[start : start + size] for start in range(0, max(most, 1), size)]
