"""What one source of rows to distil from holds: arrays in a file or a mapping, or the columns of a table."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sanov.core import frames
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.heads import Head

__all__ = ["Columns", "Part", "read_part"]

EXACT = 2**53  # up to here a float is one whole number
ARRAYS = (
    "inputs",
    "logits",
    "embeddings",
    "head_weight",
    "head_bias",
    "labels",
    "subclasses",
    "ids",
    "classes",
)  # what .npz may hold
CELLS = ("labels", "ids", "subclasses")
ROWS = {"inputs", "logits", "embeddings", "head_weight"}  # of which one tells arrays from columns


class Columns(Options):
    """The user's names of columns."""

    label: str = option("label", "Column of labels; a row may have none.", source="choice: the usual name")
    logits: str = option(
        "logit_",
        "Prefix of the columns of teacher logits (what follows it names the class), or one column of lists.",
        source="choice",
    )
    embeddings: str = option(
        "embedding_",
        "Prefix of the columns of teacher embeddings (input of its last linear layer), or one column of lists.",
        source="choice",
    )
    text: str = option("text", "Column of texts; without it all other columns are features.", source="choice")
    subclass: str = option(
        "subclass", "Column of subclasses that are known, to compare with; it is no feature.", source="choice"
    )
    id: str = option("id", "Column of row ids, by which two tables are joined.", source="choice")
    ignore: tuple[str, ...] = option((), "Columns to leave out.", source="choice: all are used")
    delimiter: str = option("", "What separates the cells of a text file, if not the usual.", source="choice")


@dataclass(frozen=True, eq=False)
class Part:
    """What one source holds; ``classes`` only where it names them, ``columns`` those of a table."""

    name: str
    source: Any = None
    inputs: Any = None
    features: tuple[str, ...] = ()
    logits: Any = None
    classes: tuple[str, ...] | None = None
    labels: list[str | None] | None = None
    ids: list[str | None] | None = None
    embeddings: Any = None
    head: Head | None = None
    columns: tuple[str, ...] = ()
    subclasses: list[str | None] | None = None

    @property
    def is_head_alone(self) -> bool:
        """Whether there is a teacher's head, and nothing by row."""
        rows = (self.inputs, self.logits, self.embeddings, self.labels, self.ids)
        return self.head is not None and all(values is None for values in rows)


def read_part(source: Any, columns: Columns, *, name: str) -> Part:
    """Return what one source holds, checked.

    Parameters
    ----------
    source
        The path of an ``.npz`` file, a mapping with such arrays, or anything that `frames.read_frame` takes.
    columns
        The user's names of columns.
    name
        What to call the source in a message.

    Raises
    ------
    InputError
        With the file, the row and the column or array at fault.
    """
    if frames.is_path(source) and Path(source).suffix.lower() == ".npz":
        return _from_arrays(_load(Path(source)), name)
    if isinstance(source, Mapping) and ROWS & source.keys() and not _is_flat(source):
        return _from_arrays(source, name)
    cells = (columns.label, columns.text, columns.id, columns.subclass)
    frame = frames.read_frame(source, delimiter=columns.delimiter or None, text=cells)
    return _from_frame(frame, columns, name, None if frames.is_path(source) else source)


def _is_flat(source: Mapping[Any, Any]) -> bool:
    return all(np.ndim(values) == 1 for values in source.values())


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(found, where=str(path)) from None
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = "an array of objects" if "pickle" in str(error) else "damaged, or something else"
        fix = "write it with numpy.savez, from arrays of numbers or of text"
        raise InputError(f"is no archive of plain arrays ({reason})", where=str(path), fix=fix) from None


def _from_arrays(arrays: Mapping[str, Any], name: str) -> Part:
    for other in arrays:
        if other not in ARRAYS:
            near = difflib.get_close_matches(other, ARRAYS, n=1)
            fix = f"did you mean '{near[0]}'?" if near else None
            raise InputError(f"the array {other!r} is not known", where=name, expected=", ".join(ARRAYS), fix=fix)
    found = {key: np.asarray(values) for key, values in arrays.items()}
    inputs, features = _inputs(found["inputs"], name) if "inputs" in found else (None, ())
    logits, embeddings = (_matrix(found[k], k, name) if k in found else None for k in ("logits", "embeddings"))
    head = _head(found, name)
    classes = tuple(map(str, found["classes"])) if "classes" in found else None
    for array, columns in (("logits", logits), ("head_weight", None if head is None else head.weight)):
        if classes is not None and columns is not None and len(classes) != columns.shape[1]:
            raise InputError(f"{array} has {columns.shape[1]} columns and classes {len(classes)} names", where=name)
    cells = {key: _cells(pl.Series(_flat(found[key], key, name))) for key in CELLS if key in found}
    labels, ids = cells.get("labels"), cells.get("ids")
    known = cells.get("subclasses")
    return Part(name, None, inputs, features, logits, classes, labels, ids, embeddings, head, subclasses=known)


def _head(found: Mapping[str, np.ndarray], name: str) -> Head | None:
    given = [array for array in ("head_weight", "head_bias") if array in found]
    if not given:
        return None
    if len(given) == 1:
        fix = "give both; a head without bias has one of zeros"
        raise InputError(f"there is an array {given[0]!r} without the other half of the head", where=name, fix=fix)
    bias, weight = np.atleast_1d(found["head_bias"]), found["head_weight"]
    weight = weight[:, None] if weight.ndim == 1 and bias.shape == (1,) else weight
    bias = _flat(bias, "head_bias", name)
    try:
        head = Head(_matrix(weight, "head_weight", name), _matrix(bias[None], "head_bias", name)[0])
        return head.of_two_classes() if len(head.bias) == 1 else head
    except InputError as error:
        if error.where == "the teacher's head":
            error = InputError(error.found, where=name, expected=error.expected, fix=error.fix)
        raise error from None


def _inputs(values: np.ndarray, name: str) -> tuple[Any, tuple[str, ...]]:
    if values.ndim == 1 and (values.dtype.kind in "UT" or any(isinstance(value, str) for value in values.flat)):
        return _all_texts(values, name), ("text",)
    matrix = _matrix(values, "inputs", name)
    return matrix, tuple(f"x{j + 1}" for j in range(matrix.shape[1]))


def _all_texts(values: np.ndarray, name: str) -> tuple[str, ...]:
    others = [row for row, value in enumerate(values, start=1) if not isinstance(value, str)]
    if others:
        where, found = f"{name}, array 'inputs', row {others[0]}", f"is no text ({len(others)} such rows in all)"
        raise InputError(found, where=where, expected="a text in each row", fix="leave out those rows")
    return tuple(map(str, values))


def _matrix(values: np.ndarray, array: str, name: str) -> np.ndarray:
    where = f"{name}, array '{array}'"
    if values.ndim != 2 or values.dtype.kind not in "fiub" or 0 in values.shape:
        found = f"is of shape {values.shape} and type {values.dtype}"
        raise InputError(found, where=where, expected="numbers in [rows, columns]", fix=_remedy(values, array))
    matrix = values.astype(np.float64)
    _check_finite(matrix, where)
    return matrix


def _remedy(values: np.ndarray, array: str) -> str:
    """What to do with values that are no matrix of numbers."""
    if values.dtype.kind in "fiub":
        return "reshape it"
    if values.dtype.kind == "S":
        return "decode it by numpy.char.decode(values), if these are texts"
    if array == "inputs" and any(isinstance(value, str) for value in values.flat):
        return "write categories as numbers, a column for each; or give one text a row, in an array of one axis"
    return "make numbers of it, by values.astype(float) if they are"


def _check_finite(matrix: np.ndarray, where: str) -> None:
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        found = f"NaN or an infinite value in row {bad.argmax() + 1} (the first is 1), {bad.sum()} such rows in all"
        raise InputError(found, where=where, expected="finite numbers", fix="remove those rows or mend them")


def _flat(values: np.ndarray, array: str, name: str) -> np.ndarray:
    if values.ndim != 1:
        raise InputError(f"is of shape {values.shape}", where=f"{name}, array '{array}'", expected="one value a row")
    return values


def _from_frame(frame: pl.DataFrame, columns: Columns, name: str, source: Any) -> Part:
    named = [getattr(columns, key) for key in ("label", "text", "id", "subclass") if key in columns.model_fields_set]
    frames.check_columns(frame, [*columns.ignore, *named], name=name)
    frame = frame.drop(columns.ignore)
    logits, classes, used = _frame_matrix(frame, columns, "logits", name)
    embeddings, _, also = _frame_matrix(frame, columns, "embeddings", name)
    named_cells = (columns.label, columns.id, columns.subclass)
    labels, ids, known = (_cells(frame[key]) if key in frame.columns else None for key in named_cells)
    if columns.text in frame.columns:
        inputs: Any = _texts(frame[columns.text], name)
        features: tuple[str, ...] = (columns.text,)
    else:
        others = {*used, *also, *named_cells}
        features = tuple(column for column in frame.columns if column not in others)
        inputs = frames.numeric(frame, features, name=name) if features else None
    found = tuple(frame.columns)
    return Part(
        name, source, inputs, features, logits, classes, labels, ids, embeddings, columns=found, subclasses=known
    )


def _frame_matrix(
    frame: pl.DataFrame, columns: Columns, field: str, name: str
) -> tuple[Any, tuple[str, ...] | None, list[str]]:
    """Logits or embeddings, what follows the prefix in each column's name, and the columns that held them."""
    prefix = getattr(columns, field)
    for column in (prefix, prefix.removesuffix("_"), f"{prefix.removesuffix('_')}s"):
        if column in frame.columns and isinstance(frame[column].dtype, pl.List | pl.Array):
            return _list_column(frame[column], f"{name}, column {column!r}"), None, [column]
    used = [column for column in frame.columns if column.startswith(prefix)] if prefix else []
    if not used:
        return None, None, []
    return frames.numeric(frame, used, name=name), tuple(column.removeprefix(prefix) for column in used), used


def _list_column(cells: pl.Series, where: str) -> np.ndarray:
    lists = cells.to_list()
    lengths = [-1 if values is None else len(values) for values in lists]
    width = lengths[0]
    row = next((i for i, length in enumerate(lengths) if length != width or length < 1), None)
    if row is not None:
        found = "the cell is missing" if lengths[row] < 0 else f"the list has {lengths[row]} numbers"
        expected = f"{width} numbers, as in row 1" if row else "at least one number"
        raise InputError(found, where=f"{where}, row {row + 1}", expected=expected)
    try:
        matrix = np.asarray(lists, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("the lists hold something other than numbers", where=where) from None
    _check_finite(matrix, where)
    return matrix


def _texts(cells: pl.Series, name: str) -> tuple[str, ...]:
    if cells.dtype != pl.String and cells.null_count() < len(cells):
        cells = cells.cast(pl.String)
    empty = cells.is_null() if cells.dtype == pl.String else pl.Series([True] * len(cells))
    if empty.any():
        where = f"{name}, row {int(empty.arg_true()[0]) + 1}, column {cells.name!r}"
        raise InputError(f"the text is missing ({empty.sum()} in all)", where=where, fix="leave out those rows")
    return tuple(cells.to_list())


def _cells(cells: pl.Series) -> list[str | None]:
    """Labels or ids as text, whatever type they were read as: whole numbers without a point, true and false small."""
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
        if ((cells % 1 == 0) & (cells.abs() <= EXACT)).all():
            cells = cells.cast(pl.Int64)
    texts = cells.cast(pl.String)
    if texts.str.contains(r"^-?(0|[1-9]\d*)(\.0*)?$").all():
        texts = texts.str.replace(r"\.0*$", "")
    small = texts.str.to_lowercase()
    found: list[str | None] = (small if small.drop_nulls().is_in(["true", "false"]).all() else texts).to_list()
    return found
