"""What models said of examples: one source each, or one wide table, read, checked and joined by the ids of the examples.

A source is a table (or an ``.npz`` archive, which becomes one) with any of: an id, a prediction, a probability or a logit of
each class, a label, a task, a rationale. All checks of these are here; nothing is computed from them.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from sanov.core import frames
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.probabilities import read_probabilities
from sanov.data.spelling import as_text, ids_as_text, names_as_text

__all__ = ["Columns", "Predictions", "Role", "join", "open_table", "parse", "wide_roles"]

ARRAYS = ("probs", "logits", "classes", "ids", "predictions", "labels", "tasks", "rationales")
SHOWN = 3  # ids named in a message


class Columns(Options):
    """The user's names of columns; an empty name leaves a column out."""

    id: str = option("id", "Column of the ids of examples, by which files are joined.", source="choice")
    prediction: str = option("prediction", "Column of predictions: classes, or free text.", source="choice")
    label: str = option("label", "Column of reference answers, in any of the files.", source="choice")
    task: str = option("task", "Column of tasks or subsets, in any of the files.", source="choice")
    rationale: str = option("rationale", "Column of rationales.", source="choice")
    probabilities: str = option(
        "prob_", "Prefix of the columns of probabilities; what follows it names the class.", source="choice"
    )
    logits: str = option("logit_", "Prefix of the columns of logits.", source="choice")
    teacher: str = option("teacher", "In one wide table: the teacher's predictions.", source="choice")
    student: str = option("student", "In one wide table: the student's predictions.", source="choice")
    baseline: str = option("baseline", "In one wide table: the undistilled student's.", source="choice")
    delimiter: str = option("", "What separates the cells of a text file, if not the usual.", source="choice")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the columns that hold names or text."""
        return (
            self.id,
            self.prediction,
            self.label,
            self.task,
            self.rationale,
            self.teacher,
            self.student,
            self.baseline,
        )


@dataclass(frozen=True)
class Role:
    """Where one model's outputs stand in a table: a column, and the prefixes of others."""

    prediction: str
    probabilities: str
    logits: str
    rationale: str


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one source says of the examples.

    Parameters
    ----------
    name
        What to call the source in a message.
    rows
        Number of examples.
    ids, labels, tasks
        Text, where there is any.
    answers
        Text as it was given; where only probabilities are, the most probable class.
    rationales
        Text.
    probabilities
        Of each class, with rows that sum to 1.
    classes
        Names of the columns of ``probabilities``.
    notes
        What was assumed.
    source
        What the user handed over.
    """

    name: str
    rows: int
    ids: pl.Series | None = None
    answers: pl.Series | None = None
    labels: pl.Series | None = None
    tasks: pl.Series | None = None
    rationales: pl.Series | None = None
    probabilities: Float64[np.ndarray, "_rows _classes"] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Any = field(default=None, repr=False)

    def plain(self) -> Predictions:
        """Return the same with answers, labels and classes as `as_text` spells them."""
        answers, labels = (None if cells is None else as_text(cells) for cells in (self.answers, self.labels))
        return replace(self, answers=answers, labels=labels, classes=names_as_text(self.classes))

    def take(self, rows: np.ndarray) -> Predictions:
        """Return some of the rows, in the order asked for."""
        texts = {name: getattr(self, name) for name in ("ids", "answers", "labels", "tasks", "rationales")}
        kept: dict[str, Any] = {name: None if cells is None else cells.gather(rows) for name, cells in texts.items()}
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return replace(self, rows=len(rows), probabilities=probabilities, **kept)


# -- one source -------------------------------------------------------------------------------------------------------


def open_table(source: Any, columns: Columns) -> pl.DataFrame:
    """Return a source as a table: a data frame, a file that `frames.read_frame` takes, or arrays (``.npz``).

    Parameters
    ----------
    source
        A frame, a path, or a mapping of arrays. Arrays are ``probs`` or ``logits`` [rows, classes], ``classes``, ``ids``,
        ``predictions``, ``labels``, ``tasks`` and ``rationales``.
    columns
        The user's names of columns.

    Raises
    ------
    InputError
        With the file and what is wrong with it.
    """
    if frames.is_path(source) and Path(source).suffix.lower() == ".npz":
        return _from_arrays(_load(Path(source)), columns, str(source))
    if isinstance(source, Mapping) and any(np.ndim(values) == 2 for values in source.values()):
        return _from_arrays(source, columns, "the dictionary")
    return frames.read_frame(source, delimiter=columns.delimiter or None, text=columns.texts)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(found, where=str(path)) from None
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = "an array of objects" if "pickle" in str(error) else "damaged, or something else"
        fix = "write it with numpy.savez, from arrays of numbers or of text"
        raise InputError(f"is no archive of plain arrays ({reason})", where=str(path), fix=fix) from None


def _from_arrays(arrays: Mapping[str, Any], columns: Columns, name: str) -> pl.DataFrame:
    for other in arrays:
        if other not in ARRAYS:
            near = difflib.get_close_matches(str(other), ARRAYS, n=1)
            fix = f"did you mean '{near[0]}'?" if near else None
            raise InputError(f"the array {other!r} is not known", where=name, expected=", ".join(ARRAYS), fix=fix)
    found = {key: np.asarray(values) for key, values in arrays.items()}
    single = {"ids": "id", "predictions": "prediction", "labels": "label", "tasks": "task", "rationales": "rationale"}
    cells = {getattr(columns, single[key]): found[key] for key in single if key in found}
    for key, prefix in (("probs", columns.probabilities), ("logits", columns.logits)):
        if key in found:
            cells |= _by_class(found[key], found.get("classes"), prefix, f"{name}, array '{key}'")
    lengths = {key: len(values) for key, values in found.items() if key != "classes"}
    if len(set(lengths.values())) != 1 or any(np.ndim(values) != 1 for values in cells.values()):
        told = ", ".join(f"{key} {list(values.shape)}" for key, values in found.items())
        raise InputError(f"the arrays do not fit one another ({told})", where=name, expected="one row an example")
    return frames.read_frame(cells)


def _by_class(matrix: np.ndarray, classes: np.ndarray | None, prefix: str, where: str) -> dict[str, np.ndarray]:
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        found = f"is of shape {list(matrix.shape)} and type {matrix.dtype}"
        raise InputError(found, where=where, expected="numbers in [rows, classes]")
    names = [str(place) for place in range(matrix.shape[1])] if classes is None else list(map(str, classes))
    if len(names) != matrix.shape[1]:
        raise InputError(f"it has {matrix.shape[1]} columns, and classes {len(names)} names", where=where)
    return {f"{prefix}{name}": matrix[:, place] for place, name in enumerate(names)}


def parse(
    frame: pl.DataFrame,
    columns: Columns,
    name: str,
    *,
    role: Role | None = None,
    logits: bool = False,
    source: Any = None,
) -> Predictions:
    """Return what a table says of the examples, checked.

    Parameters
    ----------
    frame
        From `open_table`.
    columns
        The user's names of columns.
    name
        What to call the table in a message.
    role
        In a wide table, the model that is asked for; None in a table of one model.
    logits
        Whether the columns of probabilities hold logits.
    source
        What the user handed over.

    Raises
    ------
    InputError
        A missing or repeated id, a probability below 0, or a row whose probabilities do not sum to 1.
    """
    role = role or Role(columns.prediction, columns.probabilities, columns.logits, columns.rationale)
    texts = {key: as_text(frame[key]) for key in {*columns.texts, role.prediction, role.rationale} & {*frame.columns}}
    naming = {"prediction": role.prediction, "label": columns.label}
    named = [texts[key].alias(part) for part, key in naming.items() if key in texts]
    found = read_probabilities(frame, role.probabilities, name, logits=logits, named=named)
    found = found or read_probabilities(frame, role.logits, name, logits=True)
    answers = texts.get(role.prediction)
    if answers is None and found is not None:
        answers = pl.Series(found.classes, dtype=pl.String).gather(found.values.argmax(axis=1))
    return Predictions(
        name=name,
        rows=frame.height,
        ids=_ids(frame[columns.id], name) if columns.id in frame.columns else None,
        answers=answers,
        labels=texts.get(columns.label),
        tasks=texts.get(columns.task),
        rationales=texts.get(role.rationale),
        probabilities=found.values if found else None,
        classes=found.classes if found else (),
        notes=(found.note,) if found and found.note else (),
        source=source,
    )


def wide_roles(frame: pl.DataFrame, columns: Columns) -> dict[str, Role]:
    """Return the models of a wide table by their part; empty if the table is none.

    The columns of a model's probabilities are ``teacher_prob_CLASS`` where its predictions are in ``teacher``.
    """
    found = {}
    for part in ("teacher", "student", "baseline"):
        stem = getattr(columns, part)
        names = (columns.probabilities, columns.logits, columns.rationale)
        role = Role(stem, *(f"{stem}_{name}" if name else "" for name in names))
        prefixes = tuple(filter(None, (role.probabilities, role.logits)))
        if role.prediction in frame.columns or any(name.startswith(prefixes) for name in frame.columns):
            found[part] = role
    return found if {"teacher", "student"} <= found.keys() else {}


def _ids(cells: pl.Series, name: str) -> pl.Series:
    """Return ids as text; refuse a missing one, and one that stands twice."""
    ids = ids_as_text(cells)
    if ids.null_count():
        row = int(ids.is_null().arg_true()[0]) + 1
        raise InputError("the id is missing", where=f"{name}, row {row}, column {ids.name!r}", expected="one id a row")
    twice = ids.is_duplicated()
    if twice.any():
        first = ids.filter(twice)[0]
        rows = [int(row) + 1 for row in (ids == first).arg_true()]
        more = ids.filter(twice).n_unique() - 1
        also = f" ({more} more ids occur more than once)" if more else ""
        told = " and ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        raise InputError(f"the id {first!r} occurs in rows {told}{also}", where=name, expected="each id once")
    return ids


# -- several sources --------------------------------------------------------------------------------------------------


def join(parts: Mapping[str, Predictions]) -> tuple[dict[str, Predictions], tuple[str, ...]]:
    """Put the rows of all sources into the order of the first.

    Parameters
    ----------
    parts
        The sources by their part.

    Returns
    -------
    The same, with rows that belong together; and what was assumed.

    Raises
    ------
    InputError
        The sources hold other ids, some have ids and others none, or without ids they differ in length.
    """
    with_ids = [part for part in parts.values() if part.ids is not None]
    if not with_ids:
        return dict(parts), _by_position(list(parts.values()))
    for part in parts.values():
        if part.ids is None:
            fix = "add it, name it by map.id=NAME, or take the ids out of all files to pair rows by their position"
            raise InputError(f"there are no ids, and {with_ids[0].name} has some", where=part.name, fix=fix)
    exact = _matched(parts, {name: part.ids for name, part in parts.items() if part.ids is not None})
    if exact is not None:
        return exact, ()
    alike = {name: as_text(part.ids) for name, part in parts.items() if part.ids is not None}
    joined = None if any(ids.is_duplicated().any() for ids in alike.values()) else _matched(parts, alike)
    if joined is None:
        raise _other_ids(with_ids)
    return joined, ("assumed: ids that are one number, such as 1 and 1.0, are one id",)


def _matched(parts: Mapping[str, Predictions], ids: Mapping[str, pl.Series]) -> dict[str, Predictions] | None:
    """Put the rows of all sources into the order of the first; None where they do not hold the same ids."""
    first = next(iter(ids.values()))
    joined = {}
    for name, part in parts.items():
        rows = _places(ids[name], first)
        if part.rows != len(first) or rows.null_count():
            return None
        joined[name] = part if (rows == pl.int_range(part.rows, eager=True)).all() else part.take(rows.to_numpy())
    return joined


def _by_position(parts: Sequence[Predictions]) -> tuple[str, ...]:
    if len({part.rows for part in parts}) > 1:
        told = ", ".join(f"{part.name} has {part.rows:,} rows" for part in parts)
        fix = "add a column of ids to each file (map.id=NAME names it)"
        raise InputError(f"{told}, and there are no ids to pair them by", expected="as many rows in each", fix=fix)
    if len(parts) == 1:
        return ()
    return (f"assumed: without ids, row i of each of the {len(parts)} files is the same example",)


def _other_ids(parts: Sequence[Predictions]) -> InputError:
    tables = [pl.DataFrame({"id": part.ids}) for part in parts]
    everything = pl.concat(tables).unique(maintain_order=True)
    absent = {}
    for part, table in zip(parts, tables, strict=True):
        if everything.height > table.height:
            absent[part.name] = everything.join(table, on="id", how="anti", maintain_order="left")["id"].to_list()
    counts = ", ".join(f"{part.name} has {part.rows:,}" for part in parts)
    gaps = "; ".join(f"{name} lacks {len(ids):,} ({_listed(ids)})" for name, ids in absent.items())
    return InputError(
        f"the ids differ: {counts} rows; {gaps}",
        expected="the same ids in every file",
        fix="add those rows, or leave them out of every file",
    )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")


def _places(ids: pl.Series, wanted: pl.Series) -> pl.Series:
    """Return the row of each wanted id, null where there is none."""
    left, right = pl.DataFrame({"id": wanted}), pl.DataFrame({"id": ids}).with_row_index("row")
    return left.join(right, on="id", how="left", maintain_order="left")["row"]
