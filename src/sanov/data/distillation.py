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
from sanov.core.frames import name_of
from sanov.data.distillation_sources import Columns, Part, read_part
from sanov.data.embedded import resolve
from sanov.data.heads import Head, checked_logits
from sanov.data.labels import encode_labels, listed

__all__ = ["Columns", "DistilTable", "Head", "encode_labels", "read"]

NAMES = "use the same names in both, of labels and of classes, or number the labels in the order of the classes"
ADD_NAMES = "add the array `classes`, names in the order of the columns of logits, or call these columns logit_NAME"
SOURCES = "one .npz file or table, or a table of inputs and one of logits or embeddings; and a head alone, if wanted"

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
    embeddings
        Input of the teacher's last linear layer, by row.
    head
        That layer, its columns in the order of ``classes``; embeddings may come without it.
    subclasses
        Known subclass of each row, or None: a truth to compare with, which nothing is trained on unless it is asked for.
    compare_logits
        Whether logits must be what the head makes of the embeddings. False says that they are others on purpose:
        of copies of the teacher that have not seen the row, log-probabilities, or beside embeddings of other rows.

    Raises
    ------
    InputError
        The arrays differ in rows, the head does not fit the embeddings or the classes, or logits are others than it gives.
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
    embeddings: Float64[np.ndarray, "_rows _width"] | None = None
    head: Head | None = None
    subclasses: tuple[str | None, ...] | None = None
    compare_logits: bool = True

    def __post_init__(self) -> None:
        by_row: dict[str, Any] = {
            "embeddings": self.embeddings,
            "logits": self.logits,
            "labels": self.labels,
            "ids": self.ids,
        }
        by_row |= {"subclasses": self.subclasses, **self.extras}
        for name, values in by_row.items():
            if values is not None and len(values) != len(self):
                found = f"inputs has {len(self)} rows and {name} has {len(values)}"
                raise InputError(found, where=self.name, expected="one row each for every input")
        if self.head is not None:
            self._check_head(self.head)

    def _check_head(self, head: Head) -> None:
        if self.embeddings is None:
            fix = "add the array `embeddings`, or leave out head_weight and head_bias"
            raise InputError("there is a head of the teacher, and no embeddings", where=self.name, fix=fix)
        head.check_width(self.embeddings.shape[1], self.name)
        if len(head.bias) != len(self.classes):
            found = f"the teacher's head has {len(head.bias)} classes, and there are {len(self.classes)}"
            raise InputError(found, where=self.name, expected=listed(self.classes))
        if self.compare_logits and self.logits is not None:
            checked_logits(self.embeddings, head, self.logits, name=self.name)

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        rows = "text" if isinstance(self.inputs, tuple) else "row"
        width = "" if isinstance(self.inputs, tuple) else f" of {_counted(self.inputs.shape[1], 'feature')}"
        parts = ("logits", "labels", "embeddings", "head", "subclasses")
        held = [f", {part}" for part in parts if getattr(self, part) is not None]
        shape = f"{_counted(len(self), rows)}{width}, {_counted(len(self.classes), 'class', 'classes')}"
        return f"<DistilTable {self.name!r}: {shape}{''.join(held)}>"

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
            embeddings=None if self.embeddings is None else self.embeddings[index],
            subclasses=None if self.subclasses is None else tuple(self.subclasses[i] for i in index),
            extras={name: values[index] for name, values in self.extras.items()},
            # Rows with a head were compared: among few of them what is small beside all logits may be large.
            compare_logits=self.compare_logits and self.head is None,
        )

    def aligned(self, classes: Sequence[str]) -> DistilTable:
        """Return the table with its labels, logits and head in another order of classes.

        Raises
        ------
        InputError
            The table's classes are others: by name, or by number where its labels are numbers.
        """
        classes = tuple(classes)
        if classes == self.classes:
            return self
        if self.logits is not None or self.head is not None:
            return self._reordered(classes)
        if self.labels is None:
            return replace(self, classes=classes)
        names = [None if label < 0 else self.classes[label] for label in self.labels]
        return replace(self, classes=classes, labels=encode_labels(names, classes, name=self.name, fix=NAMES)[0])

    def _reordered(self, classes: tuple[str, ...]) -> DistilTable:
        if sorted(classes) != sorted(self.classes):
            found = f"the classes are {listed(self.classes)}"
            raise InputError(found, where=self.name, expected=listed(classes), fix="name the columns of logits so")
        order = [self.classes.index(name) for name in classes]
        place = np.append(np.argsort(order), -1)  # the last place is that of the label -1
        labels = None if self.labels is None else place[self.labels].astype(np.int64)
        logits = None if self.logits is None else self.logits[:, order]
        head = None if self.head is None else self.head.take(order)
        return replace(self, classes=classes, labels=labels, logits=logits, head=head)

    def digest(self) -> str:
        """SHA-256 (hex) of inputs, logits and labels; of embeddings, head and known subclasses where there are any."""
        arrays = [array for array in (self.inputs, self.logits, self.labels) if array is not None]
        parts = [files.digest(list(a) if isinstance(a, tuple) else a.tobytes()) for a in arrays]
        shapes = [np.shape(array) for array in arrays]
        known = [] if self.subclasses is None else [["subclasses", list(self.subclasses)]]
        return files.digest([*parts, shapes, list(self.classes), *self._digests_inside(), *known])

    def _digests_inside(self) -> list[Any]:
        """Of what lies inside the teacher: nothing where nothing is known of it."""
        head = {} if self.head is None else {"head_weight": self.head.weight, "head_bias": self.head.bias}
        arrays = {} if self.embeddings is None else {"embeddings": self.embeddings, **head}
        return [[name, files.digest(array.tobytes()), array.shape] for name, array in arrays.items()]


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def read(sources: Sequence[Any], columns: Columns | None = None) -> DistilTable:
    """Read rows to distil from, or to predict.

    Parameters
    ----------
    sources
        One ``.npz`` file or mapping with the arrays ``inputs`` [rows, features] (or one text a row), ``logits`` [rows,
        classes], ``embeddings`` [rows, width], ``head_weight`` [width, classes], ``head_bias``, ``labels``,
        ``subclasses``, ``ids`` and ``classes``, all but the first optional; or one table; or two of either, of which the
        one holds the teacher's logits or embeddings and both hold row ids. One more may hold the head alone.
        ``embedded:digits`` needs no file.
    columns
        The user's names of columns; None for the usual ones.

    Returns
    -------
    The table; where embeddings and head were given, its logits are checked against them, or formed from them.

    Raises
    ------
    InputError
        With the file, the row and the column or array at fault.
    """
    if len(sources) == 1 and isinstance(sources[0], DistilTable):
        return sources[0]
    columns = columns or Columns()
    part = _one(sources, columns)
    if part.inputs is None:
        fix = "add a column of text or numeric columns of features"
        if part.embeddings is not None and part.columns:
            fix += (
                f" (columns {columns.embeddings}... are the teacher's embeddings; map.embeddings= makes them features)"
            )
        raise InputError("there are no inputs for the student", where=part.name, fix=fix)
    logits = part.logits
    if part.head is not None and part.embeddings is not None:
        logits = checked_logits(part.embeddings, part.head, logits, name=part.name)
    if part.logits is not None:
        _check_logits(part.logits, part.name)
    labels, classes = None, part.classes or (() if logits is None else tuple(map(str, range(logits.shape[1]))))
    if part.labels is not None:
        fix = NAMES if part.classes else ADD_NAMES
        labels, classes = encode_labels(part.labels, classes or None, name=part.name, fix=fix)
    ids = None if part.ids is None else _unique(part)
    return DistilTable(
        part.inputs,
        classes,
        logits,
        labels,
        ids,
        part.features,
        name=part.name,
        source=part.source,
        embeddings=part.embeddings,
        head=part.head,
        subclasses=None if part.subclasses is None else tuple(part.subclasses),
    )


# -- several sources --------------------------------------------------------------------------------------------------


def _one(sources: Sequence[Any], columns: Columns) -> Part:
    """Read all sources, and make one of them."""
    if not 1 <= len(sources) <= 3:
        found, fix = f"{len(sources)} sources were given", ""
        if not sources:
            found, fix = "no data were given", "name a file, or embedded:digits, which needs none"
        raise InputError(found, expected=SOURCES, fix=fix)
    parts = [read_part(resolve(source), columns, name=name_of(source)) for source in sources]
    for name in {"logits", "embeddings"} & columns.model_fields_set:
        prefix = getattr(columns, name)
        if prefix and all(getattr(part, name) is None for part in parts):
            where, fix = parts[0].name, f"the columns are: {', '.join(parts[0].columns)}"
            raise InputError(f"no column begins with {prefix!r}", where=where, fix=fix)
    heads = [part for part in parts if part.is_head_alone]
    parts = [part for part in parts if not part.is_head_alone]
    if len(heads) > 1 or not 1 <= len(parts) <= 2:
        found = f"{len(parts)} sources with rows were given, and {len(heads)} that hold a head alone"
        raise InputError(found, expected=SOURCES)
    part = parts[0] if len(parts) == 1 else _join(parts, columns)
    return _with_head(part, heads[0]) if heads else part


def _with_head(part: Part, head: Part) -> Part:
    if part.head is not None:
        raise InputError("both hold the teacher's head", where=f"{part.name} and {head.name}", fix="drop one")
    if part.classes and head.classes and part.classes != head.classes:
        found = f"the classes are {listed(head.classes)}"
        raise InputError(found, where=head.name, expected=f"{listed(part.classes)}, as in {part.name}")
    return replace(part, head=head.head, classes=part.classes or head.classes)


def _join(parts: list[Part], columns: Columns) -> Part:
    """Give the rows of the table of inputs the teacher's logits and embeddings of the same ids."""
    of_teacher = [part for part in parts if part.logits is not None or part.embeddings is not None]
    if len(of_teacher) != 1:
        names = " and ".join(part.name for part in parts)
        found = f"neither has a column that begins with {columns.logits!r}"
        if of_teacher:
            found = (
                "both hold logits" if all(part.logits is not None for part in parts) else "both hold the teacher's part"
            )
        raise InputError(found, where=names, expected="inputs in the one and logits (or embeddings) in the other")
    teacher = of_teacher[0]
    inputs = next(part for part in parts if part is not teacher)
    for part in parts:
        if part.ids is None:
            fix = f"add one, name it by map.id=NAME, or put inputs and logits in one file (found: {part.name})"
            raise InputError(f"there is no column {columns.id!r} of row ids", where=part.name, fix=fix)
    rows = _places(inputs, teacher)
    labels = inputs.labels
    if labels is None and teacher.labels is not None:
        labels = [teacher.labels[row] for row in rows]
    logits, embeddings = (None if x is None else x[rows] for x in (teacher.logits, teacher.embeddings))
    head, classes = teacher.head or inputs.head, teacher.classes or inputs.classes
    known = inputs.subclasses
    if known is None and teacher.subclasses is not None:
        known = [teacher.subclasses[row] for row in rows]
    inputs = replace(inputs, logits=logits, embeddings=embeddings, head=head)
    return replace(inputs, classes=classes, labels=labels, subclasses=known)


def _places(inputs: Part, teacher: Part) -> list[int]:
    """Rows of the teacher, in the order of the inputs."""
    wanted, place = _unique(inputs), {key: row for row, key in enumerate(_unique(teacher))}
    absent = [key for key in wanted if key not in place]
    if absent:
        what = "logits" if teacher.logits is not None else "embeddings"
        found = f"{len(absent)} of {len(wanted)} row ids of {inputs.name} have no {what} ({listed(absent[:3])})"
        raise InputError(found, where=teacher.name, fix=f"add their {what}, or leave those rows out")
    return [place[key] for key in wanted]


def _unique(part: Part) -> tuple[str, ...]:
    ids = part.ids or []
    seen: set[str] = set()
    for row, key in enumerate(ids, start=1):
        if key is None or key in seen:
            found = "the row id is missing" if key is None else f"the row id {key!r} occurs twice"
            raise InputError(found, where=f"{part.name}, row {row}", expected="one id a row")
        seen.add(key)
    return tuple(key for key in ids if key is not None)


def _check_logits(logits: np.ndarray, name: str) -> None:
    if logits.shape[1] < 2:
        fix = "for a teacher with one output z give the two logits 0 and z"
        raise InputError("there is one class", where=f"{name}, logits", expected="at least two", fix=fix)
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):
        text = "the logits look like probabilities (none is negative and each row sums to 1). Pass their logarithms"
    elif (logits == np.rint(logits)).all():
        text = "the logits are whole numbers, which is unusual. Pass the teacher's outputs before softmax"
    else:
        return
    warnings.warn(f"{name}: {text}.", SanovWarning, stacklevel=3)
