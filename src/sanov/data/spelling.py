"""One spelling of names that were read as numbers, truth values or text: of classes, answers, labels and ids."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

__all__ = ["as_text", "ids_as_text", "names_as_text"]

EXACT = 2**53  # up to here a float is one whole number
WHOLE = r"^(-?(?:0|[1-9]\d*))\.0*$"  # a whole number that is written with a point
TRUTH = r"^(?i:true|false)$"


def as_text(cells: pl.Series) -> pl.Series:
    """Return names as text, whatever type they were read as.

    Each cell by itself, so that a name is written alike in every column, whatever else the column holds: whole numbers lose
    their point, true and false are small, spaces around go, and what is empty is null.
    """
    texts = ids_as_text(cells)
    texts = texts.str.replace(WHOLE, "$1").str.replace(r"^-0$", "0")
    return texts.str.to_lowercase().zip_with(texts.str.contains(TRUTH).fill_null(False), texts)


def ids_as_text(cells: pl.Series) -> pl.Series:
    """Return ids as text: text as it stands but for spaces around it, so that "1" and "1.0" are two; numbers as `as_text`."""
    if cells.dtype.is_float():
        whole = ((cells % 1 == 0) & (cells.abs() <= EXACT)).fill_null(False)
        texts = cells.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole, cells.fill_nan(None).cast(pl.String))
    else:
        texts = cells.cast(pl.String)
    texts = texts.str.strip_chars()
    return texts.set(texts == "", None)


def names_as_text(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes or of options in the spelling that `as_text` gives the cells of columns."""
    return tuple(as_text(pl.Series(names, dtype=pl.String)).fill_null("").to_list())
