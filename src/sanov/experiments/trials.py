"""Settings to try: points of a Latin hypercube, the same for every arm of a claim."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["draw"]


def draw(
    trial: int,
    trials: int,
    ranges: Mapping[str, tuple[float, float]],
    *,
    uniform: Collection[str] = (),
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Return one point of a Latin hypercube: of `trials` points, one falls into each of as many parts of every range.

    Parameters
    ----------
    trial, trials
        Which point, from 0, and how many there are.
    ranges
        Name of each coordinate, with its ends.
    uniform
        Coordinates that are uniform between their ends; the others are log-uniform.
    choices
        Further coordinates, with their values, each drawn equally often where `trials` is a multiple of their number.

    Returns
    -------
    The coordinates by name, numbers rounded to four digits.
    """
    choices = choices or {}
    generator = np.random.default_rng(0)
    strata = np.array([generator.permutation(trials) for _ in (*ranges, *choices)])
    places = dict(zip((*ranges, *choices), ((strata + generator.random(strata.shape)) / trials)[:, trial], strict=True))
    found: dict[str, Any] = {}
    for name, (low, high) in ranges.items():
        place = places[name]
        value = low + (high - low) * place if name in uniform else low * (high / low) ** place
        found[name] = float(f"{value:.4g}")
    return found | {name: values[int(places[name] * len(values))] for name, values in choices.items()}
