"""Values as a person reads them: four significant digits, and the same decimals down a column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

__all__ = ["shown", "shown_column"]

SMALL, LARGE = 1e-4, 1e9  # outside of these a number is written with an exponent
SPREAD = 1e4  # largest ratio of two numbers that are written with the same decimals
MOST_DECIMALS = 8


def shown(value: Any) -> str:
    """Return one value as text; nothing for a missing one."""
    match value:
        case None:
            return ""
        case bool() | np.bool_():
            return "yes" if value else "no"
        case float() | np.floating():
            return _number(float(value))
        case Mapping():
            return ", ".join(f"{key}: {shown(cell)}" for key, cell in value.items())
        case list() | tuple() | pl.Series():
            return ", ".join(map(shown, value))
    return str(value)


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    if value == 0 or SMALL <= abs(value) < 1e4 or math.isinf(value):
        return f"{value:.4g}"
    return f"{value:.0f}" if 1e4 <= abs(value) < LARGE else f"{value:.3e}"


def shown_column(column: pl.Series) -> list[str]:
    """Return every cell of a column as text, numbers with the same decimals where their sizes allow it."""
    cells: Sequence[Any] = column.to_list()
    decimals = _decimals(column) if column.dtype.is_float() else None
    if decimals is None:
        return [shown(cell) for cell in cells]
    texts = [shown(cell) if cell is None or not math.isfinite(cell) else f"{cell:.{decimals}f}" for cell in cells]
    return _without_common_zeros(texts, decimals)


def _without_common_zeros(texts: list[str], decimals: int) -> list[str]:
    numbers = [text for text in texts if "." in text]
    zeros = min((len(text) - len(text.rstrip("0")) for text in numbers), default=0)
    cut = zeros + (zeros == decimals)  # the point goes with the last decimal
    return [text[: len(text) - cut] if "." in text else text for text in texts]


def _decimals(column: pl.Series) -> int | None:
    """Enough decimals for four digits of the largest number and two of the smallest; None if that were too many."""
    numbers = np.abs(column.drop_nulls().to_numpy())
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    if numbers.size == 0:
        return None
    largest, smallest = float(numbers.max()), float(numbers.min())
    if largest / smallest >= SPREAD or smallest < SMALL or largest >= LARGE:
        return None
    if (numbers == np.round(numbers)).all():
        return 0
    wanted = max(3 - math.floor(math.log10(largest)), 1 - math.floor(math.log10(smallest)), 0)
    return min(MOST_DECIMALS, wanted)
