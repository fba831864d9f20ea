"""Splits that keep the shares of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from sanov.core.errors import InputError

__all__ = ["stratified"]


def stratified(
    labels: Int64[np.ndarray, " rows"], sizes: Sequence[int], seed: int
) -> tuple[Int64[np.ndarray, " part"], ...]:
    """Split rows at random into parts of given sizes, each with nearly the classes' shares of the whole.

    Parameters
    ----------
    labels
        Class of each row.
    sizes
        Number of rows of each part; what is left over is in none.
    seed
        Of the draw. The same seed gives the same parts.

    Returns
    -------
    Rows of each part, in random order.

    Raises
    ------
    InputError
        The parts need more rows than there are.
    """
    if sum(sizes) > len(labels):
        raise InputError(f"the parts need {sum(sizes)} rows", where="the split", expected=f"at most {len(labels)}")
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    # A row's place within its class, as a share: sorted by it, every stretch of rows has the classes' shares.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + generator.uniform()) / len(members)
    order = np.argsort(place, kind="stable")
    bounds = np.cumsum([0, *sizes])
    parts = (order[start:end] for start, end in pairwise(bounds))
    return tuple(generator.permutation(part) for part in parts)
