"""From a table to a family and its statistics: coding, scaling, and everything that can be wrong with a column."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.systems.pn.drawn import SUPPORTS, Ising, UserFamily
from sanov.systems.pn.members import Exponential, Family, Multinomial, Normal, Poisson

__all__ = ["FAMILIES", "Prepared", "cross", "dependent_columns", "prepare"]

FAMILIES = ("gaussian", "ising", "multinomial", "poisson", "exponential")
NAMED = 10  # dependent columns that are named
CLEAR = 0.1  # share of the heaviest weight in a dependence that a column must have to be the one that is named


@dataclass(frozen=True)
class Prepared:
    """A table in the coordinates of a family.

    Parameters
    ----------
    family
        Its name, or ``module:function``.
    model
        Its statistics and members.
    columns
        The columns kept.
    table
        Their values as the family takes them: standardised (gaussian), -1 and 1 (ising), places of cells
        (multinomial), as they are otherwise.
    statistics_before
        How many statistics the table had before dependent columns were dropped.
    notes
        What was dropped or assumed, a sentence each.
    """

    family: str
    model: Family
    columns: tuple[str, ...]
    table: Float[ndarray, "rows columns"]
    statistics_before: int
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics."""
        return self.model.names


def prepare(
    family: str,
    table: Float[ndarray, "rows columns"],
    columns: Sequence[str],
    *,
    cells: Sequence[str] | None = None,
    rank_tolerance: float = 1e-9,
) -> Prepared:
    """Check the columns and bring them into the coordinates of a family.

    Parameters
    ----------
    family
        ``gaussian``, ``ising``, ``multinomial``, ``poisson``, ``exponential``, or ``module:function``: a function that
        takes the table and returns the sufficient statistics, a row per row. It may carry the attributes `names` (of
        the statistics), `log_base` (table -> logarithm of the base measure) and `support` (``real``, ``positive`` or
        ``binary``).
    table
        The data. For ``multinomial`` one column that holds the place of each row's cell in `cells` (see `cross`).
    columns
        Names of the columns.
    cells
        Names of the cells, for ``multinomial``.
    rank_tolerance
        Eigenvalues of the correlation matrix below this share of the largest mean that columns depend linearly.

    Raises
    ------
    InputError
        A cell that is not finite; values that the family does not have; an empty cell of a multinomial; a column of
        counts that is all zero; no such family; a function that cannot be used.
    """
    if len(table) < 2 or table.shape[1] == 0:
        found = f"rows: {len(table)}, columns: {table.shape[1]}"
        raise InputError(found, where="table", expected="at least 2 rows of data", fix="collect more rows")
    _check_finite(table, columns)
    if family == "multinomial":
        return _cells(table, cells)
    if ":" in family:
        model = _users(family, table)
        return Prepared(family, model, tuple(columns), table, len(model.names))
    if family not in FAMILIES:
        expected, near = f"one of {', '.join(FAMILIES)}, or module:function", get_close_matches(family, FAMILIES, n=1)
        fix = f"did you mean '{near[0]}'?" if near else None
        raise InputError(f"the family is {family!r}", where="family", expected=expected, fix=fix)
    if family in ("poisson", "exponential"):
        _check_values(family, table, columns)
    kept, notes = _varying(table, columns)
    table, columns = table[:, kept], tuple(itertools.compress(columns, kept))
    if table.shape[1] == 0:
        fix = "name columns that vary with columns=..."
        raise InputError("every column is constant", where="table", expected="a column that varies", fix=fix)
    if family == "poisson":
        return Prepared(family, Poisson(columns), columns, table, len(columns), notes)
    if family == "exponential":
        return Prepared(family, Exponential(columns), columns, table, len(columns), notes)
    if family == "ising":
        table, coded = _signs(table, columns)
        notes += coded
    return _independent(family, table, columns, notes, rank_tolerance)


def _check_finite(table: Float[ndarray, "rows columns"], columns: Sequence[str]) -> None:
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = (int(place) for place in bad[0])
        raise InputError(
            f"the value is {table[row, column]}; remove or impute", where=f"row {row + 1}, column '{columns[column]}'"
        )


def _varying(
    table: Float[ndarray, "rows columns"], columns: Sequence[str]
) -> tuple[Bool[ndarray, " columns"], tuple[str, ...]]:
    varies = np.ptp(table, axis=0) > 0
    names = [name for name, kept in zip(columns, varies, strict=True) if not kept]
    return varies, tuple(f"column '{name}' is constant: carries no parameter, dropped" for name in names)


def _independent(
    family: str,
    table: Float[ndarray, "rows columns"],
    columns: tuple[str, ...],
    notes: tuple[str, ...],
    tolerance: float,
) -> Prepared:
    """Drop columns that depend linearly on the others; scale the rest."""
    centre, scale = table.mean(axis=0), table.std(axis=0)
    scaled = (table - centre) / scale
    dropped = dependent_columns(scaled.T @ scaled / len(scaled), tolerance)
    kept = [place for place in range(len(columns)) if place not in dropped]
    whole = _model(family, columns, scale)
    columns_kept = tuple(columns[place] for place in kept)
    model = _model(family, columns_kept, scale[kept])
    if dropped:
        more = f" and {len(dropped) - NAMED} more" if len(dropped) > NAMED else ""
        names = ", ".join(f"'{columns[place]}'" for place in dropped[:NAMED]) + more
        depend = "depends" if len(dropped) == 1 else "depend"
        notes += (f"p reduced from {len(whole.names)} to {len(model.names)}: {names} {depend} on the other columns",)
    values = scaled if family == "gaussian" else table
    return Prepared(family, model, columns_kept, np.ascontiguousarray(values[:, kept]), len(whole.names), notes)


def _model(family: str, columns: tuple[str, ...], scale: Float[ndarray, " columns"]) -> Family:
    return Normal(columns, float(np.log(scale).sum())) if family == "gaussian" else Ising(columns)


def dependent_columns(covariance: Float[ndarray, "p p"], tolerance: float) -> list[int]:
    """Places of the columns to drop so that the others have full rank; as far to the right as is safe.

    Parameters
    ----------
    covariance
        Of the columns.
    tolerance
        Relative cut of the eigenvalues of the correlation matrix, below which a direction has no variance.
    """
    variance = np.diag(covariance)
    constant = variance <= 1e-14 * max(float(variance.max()), 1e-300)
    scale = np.sqrt(np.where(constant, 1.0, variance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    null = vectors[:, values <= tolerance * values.max()]
    dropped: list[int] = []
    for _ in range(null.shape[1]):
        # dropping a column uses up one direction of dependence: the one along its own row of the basis
        norms = np.linalg.norm(null, axis=1)
        place = int(np.flatnonzero(norms >= CLEAR * norms.max())[-1])
        dropped.append(place)
        row = null[place] / norms[place]
        null = null - np.outer(null @ row, row)
    return sorted(dropped)


# -- values that a family has -----------------------------------------------------------------------------------------


def _check_values(family: str, table: Float[ndarray, "rows columns"], columns: Sequence[str]) -> None:
    legal = (table >= 0) & (table == np.floor(table)) if family == "poisson" else table >= 0
    if not legal.all():
        row, column = (int(place) for place in np.argwhere(~legal)[0])
        raise InputError(
            f"the value is {table[row, column]:g}",
            where=f"row {row + 1}, column '{columns[column]}'",
            expected="a count: a whole number >= 0" if family == "poisson" else "a number >= 0",
            fix=f"choose another family than {family}",
        )
    for name, largest in zip(columns, table.max(axis=0), strict=True):
        if largest == 0:
            raise InputError(
                "every value is zero: the MLE is on the boundary; risk is infinite",
                where=f"column '{name}'",
                fix="drop the column or collect more rows",
            )


def _signs(
    table: Float[ndarray, "rows columns"], columns: Sequence[str]
) -> tuple[Float[ndarray, "rows columns"], tuple[str, ...]]:
    """Code the two values of a column as -1 and 1; a column with more is cut at its median."""
    coded, cut_at = np.empty_like(table), []
    for place, name in enumerate(columns):
        values = np.unique(table[:, place])
        cut = values[0] if len(values) == 2 else np.median(table[:, place])
        cut = min(cut, values[-2])  # where more than half share the largest value, the median would leave one side bare
        coded[:, place] = np.where(table[:, place] > cut, 1.0, -1.0)
        if len(values) > 2:
            cut_at.append(f"'{name}' {cut:g}")
    said = f"columns with more than two values are cut into two, above the median or not: {', '.join(cut_at)}"
    return coded, (said,) if cut_at else ()


def cross(columns: Mapping[str, Sequence[Any]]) -> tuple[Float[ndarray, "rows 1"], list[str]]:
    """Cross-classify columns of any kind: every combination of their values is a cell, whether it occurs or not.

    Parameters
    ----------
    columns
        Name -> values, all of one length.

    Returns
    -------
    codes, cells
        The place of each row's cell, and the names of the cells.
    """
    code: ndarray = np.zeros(0)
    labels: list[list[str]] = []
    for name, values in columns.items():
        text = np.array([str(value) for value in values])
        levels, place = np.unique(text, return_inverse=True)
        code = code * len(levels) + place if labels else place
        labels.append([f"{name}={level}" for level in levels])
    return code.astype(float)[:, None], [", ".join(parts) for parts in itertools.product(*labels)]


def _cells(table: Float[ndarray, "rows columns"], cells: Sequence[str] | None) -> Prepared:
    if cells is None or table.shape[1] != 1:
        raise InputError(
            "the cells are not named", where="family=multinomial", expected="one column of places in cells"
        )
    if len(cells) < 2:
        raise InputError(f"there is one cell only ('{cells[0]}')", where="family=multinomial", expected="two or more")
    counts = np.bincount(table[:, 0].astype(int), minlength=len(cells))
    empty = [cell for cell, count in zip(cells, counts, strict=True) if count == 0]
    if empty:
        others = f", and so are {len(empty) - 1} others" if len(empty) > 1 else ""
        raise InputError(f"the cell is empty{others}: the MLE does not exist; merge cells", where=f"cell '{empty[0]}'")
    return Prepared("multinomial", Multinomial(tuple(cells)), ("cell",), table, len(cells) - 1)


# -- families that a user writes --------------------------------------------------------------------------------------


def _users(reference: str, table: Float[ndarray, "rows columns"]) -> UserFamily:
    function = _load(reference)
    support = getattr(function, "support", "real")
    if support not in SUPPORTS:
        raise InputError(f"its support is {support!r}", where=reference, expected=f"one of {', '.join(SUPPORTS)}")
    if (support == "positive" and table.min() <= 0) or (support == "binary" and not np.isin(table, (0, 1)).all()):
        raise InputError(f"the data do not lie in its support '{support}'", where=reference)
    values = _values_of(function, reference, table)
    names = getattr(function, "names", None) or [f"{reference.partition(':')[2]}[{k}]" for k in range(values.shape[1])]
    if len(names) != values.shape[1]:
        raise InputError(f"it names {len(names)} statistics", where=reference, expected=f"{values.shape[1]}")
    return UserFamily(tuple(names), function, getattr(function, "log_base", None), support)


def _values_of(
    function: Callable[[ndarray], ndarray], reference: str, table: Float[ndarray, "rows columns"]
) -> Float[ndarray, "rows p"]:
    half = len(table) // 2
    try:
        values, first = (np.asarray(function(rows), dtype=float) for rows in (table, table[:half]))
    except Exception as error:
        raise InputError(f"it fails on the table: {error}", where=reference) from error
    if values.ndim != 2 or len(values) != len(table):
        found, expected = f"it returned an array of shape {list(values.shape)}", f"numbers of shape [{len(table)}, p]"
        raise InputError(found, where=reference, expected=expected)
    if not np.isfinite(values).all():
        row, place = (int(index) for index in np.argwhere(~np.isfinite(values))[0])
        found = f"statistic {place + 1} of row {row + 1} is {values[row, place]}"
        raise InputError(found, where=reference, expected="finite numbers")
    if first.shape != values[:half].shape or not np.allclose(first, values[:half], rtol=1e-6):
        found = "the statistics of a row change with the other rows"
        raise InputError(found, where=reference, expected="a function of each row alone", fix="use no means")
    return values


def _load(reference: str) -> Callable[[ndarray], ndarray]:
    module, _, name = reference.partition(":")
    here = str(Path.cwd())
    try:
        sys.path.insert(0, here)
        loaded = importlib.import_module(module)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise InputError(
            f"the module cannot be imported ({error})", where=reference, expected="module:function"
        ) from None
    finally:
        sys.path.remove(here)
    function: Callable[[ndarray], ndarray] | None = getattr(loaded, name, None)
    if function is None or not callable(function):
        raise InputError(f"'{module}' has no function '{name}'", where=reference, expected="module:function")
    return function
