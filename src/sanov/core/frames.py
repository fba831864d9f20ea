"""Any data frame in, one kind inside: Polars. What a user handed over is told apart here and nowhere else.

pandas, Polars and Arrow tables, dictionaries of arrays and files that hold the same numbers lead to equal frames:
missing cells are null (never NaN), categories are text, and a column is numeric if all its cells are (in a file of text,
if a number also gives each of them back: 007 is a code).
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import narwhals as nw
import numpy as np
import polars as pl
from jaxtyping import Float64

from sanov.core import files
from sanov.core.delimited import MISSING, check_names, read_delimited, typed
from sanov.core.errors import InputError, SanovWarning, require

__all__ = ["check_columns", "fingerprint", "is_path", "like", "name_of", "numeric", "read_frame"]

Read = TypeVar("Read")


def read_frame(source: Any, *, delimiter: str | None = None, text: Collection[str] = ()) -> pl.DataFrame:
    """Return the table that `source` holds.

    Parameters
    ----------
    source
        A data frame (pandas, Polars, Arrow, or any other that narwhals knows), a dictionary of columns, a matrix, or
        the path of a ``.csv``, ``.tsv``, ``.txt``, ``.parquet``, ``.jsonl``, ``.ndjson``, ``.xlsx``, ``.feather`` or
        ``.arrow`` file.
    delimiter
        What separates the cells of a text file, where it is not the suffix's own.
    text
        Columns whose cells are names: what a file holds as text stays text, even if it looks like a number.

    Raises
    ------
    InputError
        The file is missing, empty, no table, or there are two columns of one name.
    """
    if is_path(source):
        return _clean(_read_file(Path(source), delimiter, text))
    frame = _from_memory(source)
    if frame.height == 0 or frame.width == 0:
        raise InputError(f"the table has {frame.height} rows and {frame.width} columns", where=name_of(source))
    return _clean(frame)


def is_path(source: Any) -> bool:
    """Whether the source is a path, and not a table in memory."""
    return isinstance(source, str | Path)


def name_of(source: Any) -> str:
    """Return what to call a source in a message: the path as it was given, or the kind of table."""
    if is_path(source):
        return str(source)
    if isinstance(source, Mapping):
        return "the dictionary"
    if isinstance(source, np.ndarray):
        return "the matrix"
    return f"the {type(source).__module__.split('.')[0]} table"


def like(frame: pl.DataFrame, source: Any) -> Any:
    """Return the frame as the caller's kind of table; as Polars where the source is a path, a dictionary or None."""
    if source is None or is_path(source) or isinstance(source, Mapping | np.ndarray | pl.DataFrame | pl.LazyFrame):
        return frame
    native = nw.from_native(source, eager_only=True)
    columns = {column.name: _as_list_or_array(column) for column in frame}
    return nw.from_dict(columns, backend=native.implementation).to_native()


def _as_list_or_array(column: pl.Series) -> Any:
    exact = column.dtype.is_numeric() and not column.null_count()
    return column.to_numpy(writable=True) if exact else column.to_list()


# -- tables in memory -------------------------------------------------------------------------------------------------


def _from_memory(source: Any) -> pl.DataFrame:
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, Mapping):
        return _from_columns(source)
    if isinstance(source, np.ndarray) and source.ndim == 2:
        return pl.DataFrame(source, schema=[f"x{j + 1}" for j in range(source.shape[1])])
    try:
        table = nw.from_native(source, eager_only=True)
    except nw.exceptions.DuplicateError:
        raise InputError("two columns have one name", where=name_of(source), fix="rename one of the two") from None
    except TypeError:
        kinds = "a path, a data frame (pandas, Polars, Arrow), a dictionary of columns or a matrix"
        raise InputError(f"an object of type {type(source).__name__} is no table", expected=kinds) from None
    return _from_foreign(table)


def _from_columns(source: Mapping[Any, Any]) -> pl.DataFrame:
    _check_twice(list(map(str, source)), name_of(source))
    columns = {str(name): _column(str(name), values) for name, values in source.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(f"the columns differ in length ({told})", where=name_of(source))
    return _lossless(columns, name_of(source))


def _check_twice(names: Sequence[str], where: str) -> None:
    """Refuse names that are one as text, such as 1 and "1"."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"the column name {twice[0]!r} occurs twice", where=where, fix="rename one of the two")


def _lossless(columns: Mapping[str, Any], where: str) -> pl.DataFrame:
    """Make a frame of columns, and refuse cells that its types would lose: Polars makes them null without a word."""
    try:
        frame = pl.DataFrame(columns, strict=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"its columns have mixed types ({str(error).splitlines()[0]})", where=where) from None
    for name, cells in columns.items():
        if isinstance(cells, list):
            _check_kept(frame[name], cells, where)
    return frame


def _check_kept(column: pl.Series, cells: Sequence[Any], where: str) -> None:
    if column.dtype == pl.Object and any(isinstance(cell, list | dict) for cell in cells):
        raise InputError("holds lists or objects among other cells", where=f"{where}, column {column.name!r}")
    if column.null_count():
        for row, (kept, cell) in enumerate(zip(column.to_list(), cells, strict=True), start=1):
            if kept is None and isinstance(cell, int | float | str | list | dict):
                found = f"the cell is {cell!r}, and the column of type {column.dtype}"
                raise InputError(found, where=f"{where}, row {row}, column {column.name!r}", expected="one type")


def _column(name: str, values: Any) -> Any:
    if getattr(values, "ndim", 1) != 1:
        raise InputError(f"the array has {values.ndim} dimensions", where=f"column {name!r}", expected="one")
    return values if isinstance(values, pl.Series | np.ndarray) else list(values)


def _from_foreign(table: nw.DataFrame[Any]) -> pl.DataFrame:
    """Copy column by column: the direct conversion of pandas needs a package more for some of its types."""
    if table.implementation.is_pyarrow():
        return table.to_polars()
    _check_twice([str(name) for name in table.columns], name_of(table.to_native()))
    return pl.DataFrame([_series(column) for column in table.iter_columns()])


def _series(column: nw.Series[Any]) -> pl.Series:
    name, missing = str(column.name), column.is_null().to_list()
    zoned = getattr(column.dtype, "time_zone", None) is not None  # an array would lose the zone
    if column.dtype.is_float() or not (any(missing) or zoned):
        array = column.to_numpy()
        if array.dtype.kind in "fiubM":
            return pl.Series(name, array)
    cells = [None if gone else cell for cell, gone in zip(column.to_list(), missing, strict=True)]
    return pl.Series(name, cells, strict=False)


def _clean(frame: pl.DataFrame) -> pl.DataFrame:
    """Make missing cells null; make categories text, and what no column has a type for (a period, an interval)."""
    kinds = {column.name: column.dtype for column in frame}
    foreign = [column for column in frame if column.dtype == pl.Object]
    frame = frame.with_columns(pl.Series(column.name, _as_text(column), pl.String) for column in foreign)
    return frame.with_columns(
        *(pl.col(name).fill_nan(None) for name, kind in kinds.items() if kind.is_float()),
        *(pl.col(name).cast(pl.String) for name, kind in kinds.items() if kind in (pl.Categorical, pl.Enum)),
    )


def _as_text(column: pl.Series) -> list[str | None]:
    return [None if cell is None else str(cell) for cell in column.to_list()]


# -- files ------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, delimiter: str | None, text: Collection[str]) -> pl.DataFrame:
    _check_file(path)
    suffix = path.suffix.lower()
    if delimiter is not None and suffix not in READERS:
        return read_delimited(path, _one_character(delimiter), text)
    if suffix in (".csv", ".tsv", ".txt"):
        return read_delimited(path, _one_character(delimiter) if delimiter else _usual_delimiter(path), text)
    if suffix not in READERS:
        known = ", ".join([".csv", ".tsv", ".txt", *READERS])
        raise InputError(
            f"the suffix is {suffix!r}" if suffix else "the name has no suffix", where=str(path), expected=known
        )
    if path.stat().st_size == 0:
        raise InputError("is empty", where=str(path))
    frame = READERS[suffix](path, text)
    if frame.height == 0:
        raise InputError("has no rows", where=str(path))
    return frame


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError("is a folder", where=str(path), expected="a file", fix="name a file inside it")
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        near = _nearest(path)
        raise InputError("no such file", where=str(path), fix=f"did you mean '{near}'?" if near else None) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None


def _nearest(path: Path) -> str | None:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return str(path.with_name(near[0])) if near else None


def _one_character(delimiter: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(character) != 1:
        raise InputError(f"the value is {delimiter!r}", where="delimiter", expected="one character, or tab")
    return character


def _usual_delimiter(path: Path) -> str:
    if path.suffix.lower() == ".csv":
        return ","
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        return "\t" if b"\t" in file.readline() else ","


def _read_parquet(path: Path, _text: Collection[str]) -> pl.DataFrame:
    return _telling(path, "Parquet", lambda: pl.read_parquet(path, glob=False))


def _read_arrow(path: Path, _text: Collection[str]) -> pl.DataFrame:
    return _telling(path, "Arrow", lambda: pl.read_ipc(path))


def _read_excel(path: Path, text: Collection[str]) -> pl.DataFrame:
    """Read the first sheet; its names are read apart, because the library renames those that occur twice."""
    fastexcel = require("fastexcel", "excel")
    first = {"n_rows": 1, "dtypes": "string"}
    whole = functools.partial(pl.read_excel, path, drop_empty_rows=False, drop_empty_cols=False)
    sheets = _telling(path, "an Excel sheet", lambda: fastexcel.read_excel(path).sheet_names)
    header = _telling(path, "an Excel sheet", lambda: whole(has_header=False, read_options=first).row(0))
    frame = _telling(path, "an Excel sheet", lambda: whole(infer_schema_length=None))
    if len(sheets) > 1:
        left = ", ".join(map(repr, sheets[1:]))
        warnings.warn(f"{path}: only the first sheet, {sheets[0]!r}, is read, not {left}.", SanovWarning, stacklevel=4)
    names = [(name or "").strip() for name in header]
    kept = [j for j, name in enumerate(names) if name or frame[:, j].null_count() < frame.height]
    check_names(path, [names[j] for j in kept])
    return typed(pl.DataFrame([frame[:, j].alias(names[j]) for j in kept]), text)


def _telling(path: Path, kind: str, read: Callable[[], Read]) -> Read:
    try:
        return read()
    except Exception as error:  # each library has errors of its own kind, and all mean that the file is at fault
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot be read as {kind} ({reason})", where=str(path)) from None


def _read_json_lines(path: Path, _text: Collection[str]) -> pl.DataFrame:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError("is not encoded in UTF-8", where=str(path), fix="save it as UTF-8") from None
    rows = [_json_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    return _lossless({name: [row.get(name) for row in rows] for name in names}, str(path))


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=f"{path}, line {number}") from None
    if not isinstance(row, dict):
        raise InputError(f"is a {type(row).__name__}", where=f"{path}, line {number}", expected="an object")
    return row


READERS: dict[str, Callable[[Path, Collection[str]], pl.DataFrame]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".xlsx": _read_excel,
    ".feather": _read_arrow,
    ".arrow": _read_arrow,
}


# -- columns ----------------------------------------------------------------------------------------------------------


def check_columns(frame: pl.DataFrame, columns: Sequence[str], *, name: str) -> None:
    """Refuse columns that the frame does not have, or that are named twice.

    Raises
    ------
    InputError
        With the nearest name.
    """
    for column, count in Counter(columns).items():
        if column not in frame.columns:
            near = difflib.get_close_matches(column, frame.columns, n=1)
            fix = f"did you mean '{near[0]}'?" if near else f"the columns are: {', '.join(frame.columns)}"
            raise InputError(f"there is no column {column!r}", where=name, fix=fix)
        if count > 1:
            raise InputError(f"the column {column!r} is asked for twice", where=name)


def numeric(frame: pl.DataFrame, columns: Sequence[str], *, name: str) -> Float64[np.ndarray, "rows columns"]:
    """Return columns as one array of floats.

    Parameters
    ----------
    frame
        What `read_frame` returned.
    columns
        Names of the columns.
    name
        What to call the table in a message: `name_of` its source.

    Raises
    ------
    InputError
        A column of text, a cell that is no number, missing or infinite: with its row (the first row below the header
        is 1) and column.
    """
    check_columns(frame, columns, name=name)
    values = np.empty((frame.height, len(columns)))
    for j, column in enumerate(columns):
        cells = frame[column]
        if not (cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null)):
            raise _no_number(cells, name)
        values[:, j] = cells.cast(pl.Float64).to_numpy()
        finite = np.isfinite(values[:, j])
        if not finite.all():
            raise _not_finite(cells, finite, name)
    return values


def _no_number(cells: pl.Series, name: str) -> InputError:
    if cells.dtype != pl.String:
        return InputError(
            f"holds cells of type {cells.dtype}", where=f"{name}, column {cells.name!r}", expected="numbers"
        )
    bad = cells.is_not_null() & cells.str.strip_chars().cast(pl.Float64, strict=False).is_null()
    if not bad.any():
        found = f"holds numbers that are kept as text (such as {cells.drop_nulls()[0]!r})"
        fix = "write them without leading zeros and with at most 15 digits, or leave the column out"
        return InputError(found, where=f"{name}, column {cells.name!r}", expected="plain numbers", fix=fix)
    if not cells.filter(bad).is_in(MISSING).all():
        bad &= ~cells.is_in(MISSING).fill_null(False)  # the cell that made the column text is another one
    row = int(bad.arg_true()[0])
    if bad.sum() == cells.is_not_null().sum():
        fix = "encode it as numbers, or leave it out"
        return InputError(f"is text (such as {cells[row]!r})", where=f"{name}, column {cells.name!r}", fix=fix)
    where, more = f"{name}, row {row + 1}, column {cells.name!r}", int(bad.sum()) - 1
    also = f" ({more} more cell{'s' if more > 1 else ''} of the column too)" if more else ""
    comma = re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cells[row])
    fix = "write decimals with a point" if comma else "correct it, encode it as a number, or leave the column out"
    return InputError(f"the cell is {cells[row]!r}{also}", where=where, expected="a number", fix=fix)


def _not_finite(cells: pl.Series, finite: np.ndarray, name: str) -> InputError:
    row, count = int(np.argmin(finite)), int((~finite).sum())
    found = "is missing" if cells[row] is None or cells[row] != cells[row] else f"is {cells[row]}"
    also = f" ({count} such cells in the column)" if count > 1 else ""
    where = f"{name}, row {row + 1}, column {cells.name!r}"
    return InputError(f"the cell {found}{also}", where=where, expected="a finite number", fix="remove or impute it")


def fingerprint(frame: pl.DataFrame) -> str:
    """SHA-256 (hex) of a frame's names and cells: the same for equal tables, whatever kind they came as."""
    parts = [files.digest(column.name) + _digest_cells(column) for column in frame]
    return files.digest(parts)


def _digest_cells(column: pl.Series) -> str:
    if column.dtype.is_numeric() and _is_exact(column):
        return files.digest(column.cast(pl.Float64).fill_null(float("nan")).to_numpy().tobytes())
    return files.digest(column.to_list())


def _is_exact(column: pl.Series) -> bool:
    """Whether floats tell the column's numbers apart: whole numbers beyond 2^53 may need more."""
    if not column.dtype.is_integer():
        return True
    return column.cast(pl.Float64).cast(column.dtype, strict=False).eq_missing(column).all()
