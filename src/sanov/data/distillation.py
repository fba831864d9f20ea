"""What a student is distilled from: inputs, the teacher's logits, and labels where there are any.

Three doors lead to one `DistilTable`: arrays in an ``.npz`` file, a table whose columns hold features (or a text) and
logits, and two tables that are joined by row id. All checks of the user's input are here; nothing is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.data.distillation_sources import Columns, Part, read_part
from sanov.data.embedded import resolve

__all__ = ["Columns", "DistilTable", "encode_labels", "read"]

TRUTH = {"false": 0, "true": 1}

# The axes are named for the reader alone (the underscore): `__post_init__` compares them, and tells the user.
Inputs = Float64[np.ndarray, "_rows _features"] | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DistilTable:
    """Rows to distil from, as plain arrays.

    Parameters
    ----------
    inputs
        Features, or one text a row.
    classes
        Names of the classes, in the order of the columns of ``logits``.
    logits
        The teacher's, before any temperature.
    labels
        Index of the class; -1 where a row has no label.
    ids
        Name of each row.
    features
        Names of the columns of ``inputs``.
    extras
        Further arrays by row, which a loss may read.
    name
        What to call the table in a message.
    source
        The caller's frame, if there was one.
    """

    inputs: Inputs
    classes: tuple[str, ...]
    logits: Float64[np.ndarray, "_rows _classes"] | None = None
    labels: Int64[np.ndarray, " _rows"] | None = None
    ids: tuple[str, ...] | None = None
    features: tuple[str, ...] = ()
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "the table"
    source: Any = None

    def __post_init__(self) -> None:
        by_row = {"logits": self.logits, "labels": self.labels, "ids": self.ids, **self.extras}
        for name, values in by_row.items():
            if values is not None and len(values) != len(self):
                found = f"inputs has {len(self)} rows and {name} has {len(values)}"
                raise InputError(found, where=self.name, expected="one row each for every input")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def is_text(self) -> bool:
        """Whether the inputs are texts."""
        return isinstance(self.inputs, tuple)

    @property
    def n_labelled(self) -> int:
        """Number of rows that have a label."""
        return 0 if self.labels is None else int((self.labels >= 0).sum())

    def take(self, rows: Sequence[int] | np.ndarray) -> DistilTable:
        """Return some of the rows, in the order asked for."""
        index = np.asarray(rows, dtype=np.int64)
        inputs = self.inputs
        return replace(
            self,
            inputs=tuple(inputs[i] for i in index) if isinstance(inputs, tuple) else inputs[index],
            logits=None if self.logits is None else self.logits[index],
            labels=None if self.labels is None else self.labels[index],
            ids=None if self.ids is None else tuple(self.ids[i] for i in index),
            extras={name: values[index] for name, values in self.extras.items()},
        )

    def aligned(self, classes: Sequence[str]) -> DistilTable:
        """Return the table with its labels and logits in another order of classes.

        Raises
        ------
        InputError
            The table's classes are others: by name, or by number where its labels are numbers.
        """
        classes = tuple(classes)
        if classes == self.classes:
            return self
        if self.logits is not None:
            return self._reordered(classes)
        if self.labels is None:
            return replace(self, classes=classes)
        names = [None if label < 0 else self.classes[label] for label in self.labels]
        return replace(self, classes=classes, labels=encode_labels(names, classes, name=self.name)[0])

    def _reordered(self, classes: tuple[str, ...]) -> DistilTable:
        if sorted(classes) != sorted(self.classes):
            found = f"the classes are {_list(self.classes)}"
            raise InputError(found, where=self.name, expected=_list(classes), fix="name the columns of logits so")
        order = [self.classes.index(name) for name in classes]
        place = np.append(np.argsort(order), -1)  # the last place is that of the label -1
        labels = None if self.labels is None else place[self.labels].astype(np.int64)
        logits = None if self.logits is None else self.logits[:, order]
        return replace(self, classes=classes, labels=labels, logits=logits)

    def digest(self) -> str:
        """SHA-256 (hex) of inputs, logits and labels."""
        arrays = [array for array in (self.inputs, self.logits, self.labels) if array is not None]
        parts = [files.digest(list(a) if isinstance(a, tuple) else a.tobytes()) for a in arrays]
        shapes = [np.shape(array) for array in arrays]
        return files.digest([*parts, shapes, list(self.classes)])


def read(sources: Sequence[Any], columns: Columns | None = None) -> DistilTable:
    """Read rows to distil from, or to predict.

    Parameters
    ----------
    sources
        One ``.npz`` file or mapping with the arrays ``inputs`` [rows, features] (or one text a row), ``logits`` [rows,
        classes], ``labels``, ``ids`` and ``classes``, all but the first optional; or one table; or two of either, of
        which the one holds the logits and both hold row ids. ``embedded:digits`` needs no file.
    columns
        The user's names of columns; None for the usual ones.

    Raises
    ------
    InputError
        With the file, the row and the column or array at fault.
    """
    if len(sources) == 1 and isinstance(sources[0], DistilTable):
        return sources[0]
    if not 1 <= len(sources) <= 2:
        expected = "one .npz file or table, or a table of inputs and a table of logits"
        found, fix = f"{len(sources)} sources were given", ""
        if not sources:
            found, fix = "no data were given", "name a file, or embedded:digits, which needs none"
        raise InputError(found, expected=expected, fix=fix)
    columns = columns or Columns()
    parts = [read_part(resolve(source), columns) for source in sources]
    part = parts[0] if len(parts) == 1 else _join(parts, columns)
    if part.inputs is None:
        fix = "add a column of text or numeric columns of features"
        raise InputError("there are no inputs for the student", where=part.name, fix=fix)
    if part.logits is not None:
        _check_logits(part)
    labels, classes = None, part.classes or ()
    if part.labels is not None:
        labels, classes = encode_labels(part.labels, part.classes, name=part.name)
    ids = None if part.ids is None else _unique(part)
    return DistilTable(
        part.inputs, classes, part.logits, labels, ids, part.features, name=part.name, source=part.source
    )


# -- two sources ------------------------------------------------------------------------------------------------------


def _join(parts: list[Part], columns: Columns) -> Part:
    """Give the rows of the table of inputs the logits of the same ids."""
    with_logits = [part for part in parts if part.logits is not None]
    if len(with_logits) != 1:
        names = " and ".join(part.name for part in parts)
        found = "both hold logits" if with_logits else f"neither has a column that begins with {columns.logits!r}"
        raise InputError(found, where=names, expected="inputs in the one and logits in the other")
    teacher = with_logits[0]
    inputs = next(part for part in parts if part is not teacher)
    for part in parts:
        if part.ids is None:
            fix = f"add one, name it by map.id=NAME, or put inputs and logits in one file (found: {part.name})"
            raise InputError(f"there is no column {columns.id!r} of row ids", where=part.name, fix=fix)
    wanted, place = _unique(inputs), {key: row for row, key in enumerate(_unique(teacher))}
    absent = [key for key in wanted if key not in place]
    if absent:
        found = f"{len(absent)} of {len(wanted)} row ids of {inputs.name} have no logits ({_list(absent[:3])})"
        raise InputError(found, where=teacher.name, fix="add their logits, or leave those rows out")
    rows = [place[key] for key in wanted]
    labels = inputs.labels
    if labels is None and teacher.labels is not None:
        labels = [teacher.labels[row] for row in rows]
    return replace(inputs, logits=teacher.logits[rows], classes=teacher.classes, labels=labels)


def _unique(part: Part) -> tuple[str, ...]:
    ids = part.ids or []
    seen: set[str] = set()
    for row, key in enumerate(ids, start=1):
        if key is None or key in seen:
            found = "the row id is missing" if key is None else f"the row id {key!r} occurs twice"
            raise InputError(found, where=f"{part.name}, row {row}", expected="one id a row")
        seen.add(key)
    return tuple(key for key in ids if key is not None)


# -- labels and logits ------------------------------------------------------------------------------------------------


def encode_labels(
    labels: Sequence[str | None], classes: Sequence[str] | None, *, name: str
) -> tuple[Int64[np.ndarray, " rows"], tuple[str, ...]]:
    """Turn labels into indices of classes; -1 where there is none.

    Parameters
    ----------
    labels
        Names of classes; or their numbers, counted from 0. None means that a row has no label, and so does ``"-1"``
        where no class has that name. ``"true"`` and ``"false"`` are the classes of those names, in whatever case; where
        classes are numbered, 1 and 0.
    classes
        Names of the classes; None takes those that occur.
    name
        What to call the table in a message.

    Raises
    ------
    InputError
        A label that is no class, with its row; labels that can be read in two ways.
    """
    unlabelled = {None} if "-1" in (classes or ()) else {None, "-1"}
    present = {label for label in labels if label is not None and label not in unlabelled}
    numbers = all(label.isdecimal() for label in present)
    if classes is None:
        top = max((int(label) for label in present), default=-1) if numbers else -1
        names = tuple(map(str, range(top + 1))) if numbers and top < 1000 else tuple(sorted(present))
    else:
        names = tuple(classes)
    _refuse_two_readings(labels, present, names, name)
    index: dict[str | None, int] = dict.fromkeys(unlabelled, -1)
    if numbers and not any(_is_whole(name) for name in names):
        index |= {str(place): place for place in range(len(names))}
    else:
        index |= _truths(present, names) | {name: place for place, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in index:
            expected = f"0 to {len(names) - 1}" if numbers else f"one of {_list(names)}"
            raise InputError(f"the label is {label!r}", where=f"{name}, row {row}", expected=expected)
    return np.array([index[label] for label in labels], dtype=np.int64), names


def _refuse_two_readings(labels: Sequence[str | None], present: set[str], names: Sequence[str], where: str) -> None:
    """Refuse numbers that most people mean otherwise than they would be read."""
    signs = "-1" in labels and present in ({"1"}, {"+1"})
    if signs and set(names) <= {"0", "1", "+1"}:
        fix = "for two classes write 0 and 1 (or name them: logit_-1, logit_1), for rows without a label leave it empty"
        raise InputError("the labels are -1 and 1, and -1 means that there is no label", where=where, fix=fix)
    places = {name.lower(): place for place, name in enumerate(names)}
    crossed = any(places.get(word, number) != number for word, number in TRUTH.items())
    if crossed and present & {"0", "1"}:
        expected = "true and false, as the classes are named"
        raise InputError("the labels are 0 and 1", where=where, expected=expected, fix="write the labels so")


def _truths(present: set[str], names: Sequence[str]) -> dict[str | None, int]:
    """Where labels are true and false, the place of each: by name in any case, or by number."""
    if not {label.lower() for label in present} <= set(TRUTH):
        return {}
    places = {name.lower(): place for place, name in enumerate(names)}
    if not places.keys() & set(TRUTH):
        places = {word: places[str(number)] for word, number in TRUTH.items() if str(number) in places}
    return {label: places[label.lower()] for label in present if label.lower() in places}


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").removeprefix("+").isdecimal()


def _check_logits(part: Part) -> None:
    logits = part.logits
    if logits.shape[1] < 2:
        fix = "for a teacher with one output z give the two logits 0 and z"
        raise InputError("there is one class", where=f"{part.name}, logits", expected="at least two", fix=fix)
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):
        text = "the logits look like probabilities (none is negative and each row sums to 1). Pass their logarithms"
    elif (logits == np.rint(logits)).all():
        text = "the logits are whole numbers, which is unusual. Pass the teacher's outputs before softmax"
    else:
        return
    warnings.warn(f"{part.name}: {text}.", SanovWarning, stacklevel=3)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
