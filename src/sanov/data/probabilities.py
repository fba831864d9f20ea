"""Columns of probabilities: found by their prefix, and told from what is none (logits, per cent, a class left out)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64
from scipy.special import softmax

from sanov.core import frames
from sanov.core.errors import InputError
from sanov.data.spelling import names_as_text

__all__ = ["Probabilities", "classes_of", "read_probabilities"]

TOLERANCE = 1e-3  # by which the probabilities of a row may miss the sum of 1
MOST = 0.05  # by which rounded ones may at most: what misses more is not rounded alone
DECIMALS = (1, 2, 3, 4, 5)  # to which probabilities are rounded by hand or by a format
PERCENT = 1.0  # by which per cent may miss the sum of 100


@dataclass(frozen=True, eq=False)
class Probabilities:
    """Probabilities of classes.

    Parameters
    ----------
    values
        Rows that sum to 1.
    classes
        Names of the columns.
    note
        What was assumed; empty if nothing was.
    """

    values: Float64[np.ndarray, "_rows _classes"]
    classes: tuple[str, ...]
    note: str = ""


def classes_of(columns: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Return the classes that columns of a prefix name; none without a prefix."""
    return names_as_text([name.removeprefix(prefix) for name in columns if prefix and name.startswith(prefix)])


def read_probabilities(
    frame: pl.DataFrame, prefix: str, name: str, *, logits: bool = False, named: Sequence[pl.Series] = ()
) -> Probabilities | None:
    """Return the columns that begin with a prefix as probabilities, checked; None where there is no such column.

    Parameters
    ----------
    frame
        The table.
    prefix
        What the columns begin with; the class follows it.
    name
        What to call the table in a message.
    logits
        Whether they are logits.
    named
        Columns of answers and labels: a class that they name and no column does may be why rows do not sum to 1.

    Raises
    ------
    InputError
        There is one class alone, or one twice; a cell is no number, or below 0; rows do not sum to 1, by more than rounding.
    """
    used = [column for column in frame.columns if prefix and column.startswith(prefix)]
    if not used:
        return None
    classes = classes_of(used, prefix)
    if len(used) < 2:
        fix = f"add the other classes; two classes need {prefix}no and {prefix}yes"
        raise InputError(f"only one column begins with {prefix!r}", where=name, expected="one for each class", fix=fix)
    _check_classes(classes, used, name)
    values = frames.numeric(frame, used, name=name)
    if logits:
        return Probabilities(softmax(values, axis=1), classes)
    _refuse_negative(values, classes, name)
    sums = values.sum(axis=1)
    decimals = _decimals(values)
    allowed = max(TOLERANCE, 0.0 if decimals is None else min(MOST, 0.5 * len(used) * 10.0**-decimals) + 1e-9)
    if (np.abs(sums - 1) > allowed).any():
        _refuse_left_out(sums, classes, prefix, name, named)
        raise _no_distribution(values, sums, np.abs(sums - 1) > allowed, name)
    return Probabilities(np.asarray(values / sums[:, None]), classes, _rounded(sums, decimals, prefix, name))


def _check_classes(classes: Sequence[str], columns: Sequence[str], name: str) -> None:
    for place, one in enumerate(classes):
        first = classes.index(one)
        if first < place:
            found = f"the columns {columns[first]!r} and {columns[place]!r} both name the class {one!r}"
            raise InputError(found, where=name, expected="one column for each class")


def _refuse_negative(values: Float64[np.ndarray, "rows classes"], classes: Sequence[str], name: str) -> None:
    if (values < 0).any():
        row, place = map(int, np.argwhere(values < 0)[0])
        found = f"the probability of {classes[place]!r} is {values[row, place]:.4g}"
        fix = "pass logits=true if these are logits"
        raise InputError(found, where=f"{name}, row {row + 1}", expected="a number from 0 to 1", fix=fix)


def _decimals(values: Float64[np.ndarray, "rows classes"]) -> int | None:
    """Return the fewest decimals to which all numbers may be rounded; None where there are more than `DECIMALS`."""
    return next((d for d in DECIMALS if (np.abs(values - np.round(values, d)) < 1e-7).all()), None)


def _refuse_left_out(
    sums: Float64[np.ndarray, " rows"], classes: Sequence[str], prefix: str, name: str, named: Sequence[pl.Series]
) -> None:
    """Refuse a table whose rows sum to less than 1 because the column of a class that it names itself is missing."""
    if (sums > 1 + TOLERANCE).any():
        return
    for cells in named:
        said = cells.drop_nulls().unique(maintain_order=True).to_list()
        absent = [each for each in said if each not in classes]
        if absent and len(absent) < len(said):
            found = f"there is no column '{prefix}{absent[0]}', though {absent[0]!r} is a {cells.name}"
            fix = "add it: the other probabilities sum to less than 1"
            raise InputError(found, where=name, expected="a column for each class", fix=fix)


def _no_distribution(
    values: Float64[np.ndarray, "rows classes"], sums: Float64[np.ndarray, " rows"], bad: np.ndarray, name: str
) -> InputError:
    """Say what rows may be that do not sum to 1."""
    row, more = int(bad.argmax()), int(bad.sum()) - 1
    if (np.abs(sums - 100) <= PERCENT).all():
        fix = "these are per cent: divide them by 100"
    elif (values > 1).any():
        fix = "pass logits=true if these are logits; counts are divided by the sum of their row"
    elif (sums < 1).all():
        fix = "add the column of the class that is missing, or divide each row by its sum"
    else:
        fix = "classes exclude one another here: divide each row by its sum if that is what the scores mean"
    also = f" ({more:,} more such rows)" if more else ""
    found = f"the probabilities sum to {sums[row]:.4g}{also}"
    return InputError(found, where=f"{name}, row {row + 1}", expected="1", fix=fix)


def _rounded(sums: Float64[np.ndarray, " rows"], decimals: int | None, prefix: str, name: str) -> str:
    off = np.abs(sums - 1) > TOLERANCE + 1e-9
    if not off.any():
        return ""
    told = f"the columns {prefix}... of {name} are rounded to {decimals} decimal{'s' if decimals != 1 else ''}"
    return f"{told}: {int(off.sum()):,} rows sum to {sums.min():.4g} to {sums.max():.4g}, and are divided by their sum"
