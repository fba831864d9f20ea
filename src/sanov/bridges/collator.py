"""Batches for Hugging Face's ``Trainer`` that carry what a teacher said of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from sanov.core.errors import InputError, require
from sanov.data.distillation import DistilTable
from sanov.learning.readout import Readout
from sanov.learning.teachers import Outputs

__all__ = ["TeacherCollator", "pack", "plain_labels", "unpack"]

NONE = -1  # a row without label; Trainer's own -100 is read as one too
IGNORED = -100.0  # what Trainer leaves out when it counts the items of a batch
LABELS = ("labels", "label")  # what a row's label may be called


def pack(
    teacher_logits: Any, labels: Sequence[int] | np.ndarray | None = None, subclasses: np.ndarray | None = None
) -> Float32[np.ndarray, "rows columns"]:
    """Return ``labels`` for a ``Trainer``: for each row the label, then the teacher's logits, then what else is known of it.

    Parameters
    ----------
    teacher_logits
        Of every row, before any temperature: an array or nested lists [rows, classes].
    labels
        Index of the class; negative where a row has none. None where none has.
    subclasses
        log p(s | c) [rows, classes, subclasses], for `lelp`.

    Raises
    ------
    InputError
        Rows differ in number, labels are no classes, or logits are not finite.
    """
    teacher_logits = np.asarray(teacher_logits)
    if teacher_logits.ndim != 2:
        found = f"shape {list(teacher_logits.shape)}"
        raise InputError(found, where="teacher_logits", expected="[rows, classes]")
    rows, classes = teacher_logits.shape
    column = np.full(rows, NONE) if labels is None else np.asarray(labels)
    if len(column) != rows:
        raise InputError(f"there are {rows} rows of teacher logits and {len(column)} labels", where="labels")
    wrong = np.flatnonzero((column >= classes) | (column != np.rint(column)))
    if len(wrong):
        found = f"row {wrong[0] + 1} has the label {column[wrong[0]]}"
        raise InputError(found, where="labels", expected=f"0 to {classes - 1}, negative for none")
    bad = np.flatnonzero(~np.isfinite(teacher_logits).all(axis=1))
    if len(bad):
        found = f"{len(bad)} rows are not finite, the first is row {bad[0] + 1}"
        raise InputError(found, where="teacher_logits", fix="remove them, or run the teacher again")
    more = [] if subclasses is None else [np.asarray(subclasses).reshape(rows, -1)]
    packed = np.column_stack([np.maximum(column, NONE), teacher_logits, *more]).astype(np.float32)
    packed[packed == IGNORED] = np.nextafter(np.float32(IGNORED), np.float32(0))  # or Trainer would not count it
    return packed


def unpack(
    packed: Float[Tensor, "rows columns"] | Float[np.ndarray, "rows columns"], classes: int | None = None
) -> tuple[Int64[Tensor, " rows"], Float[Tensor, "rows classes"]]:
    """Return the labels (-1 for none) and the teacher's logits of what `pack` made.

    Parameters
    ----------
    packed
        The labels of a batch, or of all rows, as ``compute_metrics`` gets them.
    classes
        How many there are, where subclasses were packed too.
    """
    values = torch.as_tensor(packed)
    return values[:, 0].long(), values[:, 1:] if classes is None else values[:, 1 : 1 + classes]


def plain_labels(
    compute_metrics: Callable[[Any], dict[str, float]],
    subclasses: int = 1,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> Callable[[Any], dict[str, float]]:
    """Return a ``compute_metrics`` that is given logits of classes and the labels alone, as without a teacher.

    Parameters
    ----------
    compute_metrics
        The user's.
    subclasses
        The student's outputs for each class; their probabilities are summed.
    temperature, student_temperature
        Those of the objective; by them the logits follow the teacher's (see `learning.readout`).
    """

    def unpacked(found: Any) -> dict[str, float]:
        labels = unpack(found.label_ids)[0].numpy()
        logits = torch.as_tensor(found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions)
        classes = logits.shape[-1] // subclasses
        readout = Readout(classes, subclasses, temperature=temperature, student_temperature=student_temperature)
        kind = require("transformers", "language").EvalPrediction
        return compute_metrics(
            kind(readout.class_logits(logits).numpy(), labels, inputs=found.inputs, losses=found.losses)
        )

    return unpacked


class TeacherCollator:
    """A data collator that looks up what a teacher said of each row, and packs it with the row's label.

    Each row names itself in a column: the place of its outputs, counted from 0, or its id where ids are given. ``Trainer``
    drops columns that the model does not take: set ``remove_unused_columns=False``, or call the column ``label_ids``, which
    it keeps.

    Parameters
    ----------
    collate
        A tokenizer, which pads what it made and leaves out all other columns; or the collator that is used without a teacher.
    teacher
        `learning.teachers.Outputs`, an array of logits [rows, classes], or a table with logits (for `lelp`, that of
        `bridges.losses.with_subclasses`).
    ids
        Name of each row of the outputs; None takes those of the table, or numbers.
    column
        In which a row names itself.

    Raises
    ------
    InputError
        There are no logits, an id occurs twice, or there are others than rows.
    """

    def __init__(
        self,
        collate: Any,
        teacher: Outputs | DistilTable | np.ndarray,
        *,
        ids: Sequence[Any] | np.ndarray | None = None,
        column: str = "row",
    ):
        logits = teacher if isinstance(teacher, np.ndarray) else teacher.logits
        if logits is None:
            fix = "use a teacher that is a classifier"
            raise InputError("there are no logits", where="the teacher's outputs", fix=fix)
        if ids is None and isinstance(teacher, DistilTable):
            ids = teacher.ids
        self.logits, self.column = logits, column
        self.subclasses = teacher.extras.get("subclasses") if isinstance(teacher, DistilTable) else None
        self.places = None if ids is None else {str(key): place for place, key in enumerate(ids)}
        if ids is not None and self.places is not None and not len(self.places) == len(ids) == len(logits):
            found = f"{len(ids)} ids, {len(self.places)} of them different, for {len(logits)} rows"
            raise InputError(found, where="ids", expected="one id a row")
        self.columns: set[str] | None = None
        if hasattr(collate, "pad"):
            self.columns = set(collate.model_input_names)
            collate = require("transformers", "language").DataCollatorWithPadding(collate)
        self.collate = collate

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch as the collator makes it, with ``labels`` as `pack` makes them.

        Raises
        ------
        InputError
            A row does not name itself, or names no row of the teacher's.
        """
        rows = [self._place(feature) for feature in features]
        labels = [_label(feature) for feature in features]
        more = None if self.subclasses is None else self.subclasses[rows]
        batch = self.collate([self._inputs(feature) for feature in features])
        batch["labels"] = torch.from_numpy(pack(self.logits[rows], labels, more))
        return dict(batch)

    def _inputs(self, feature: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: values for name, values in feature.items() if name not in {*LABELS, self.column}}
        return own if self.columns is None else {name: values for name, values in own.items() if name in self.columns}

    def _place(self, feature: Mapping[str, Any]) -> int:
        if self.column not in feature:
            fix = "add it to the data set, and set remove_unused_columns=False in TrainingArguments, for Trainer drops what "
            fix += "the model does not take (or name it label_ids, which it keeps, and pass column='label_ids')"
            found = f"a row has no column {self.column!r} (only {', '.join(map(repr, feature))})"
            raise InputError(found, where="TeacherCollator", expected="the row's number or id", fix=fix)
        key = feature[self.column]
        key = key.item() if hasattr(key, "item") else key
        if self.places is not None and str(key) in self.places:
            return self.places[str(key)]
        if self.places is None and isinstance(key, int) and 0 <= key < len(self.logits):
            return key
        numbers = f"a number from 0 to {len(self.logits) - 1}"
        expected = numbers if self.places is None else "an id of the teacher's rows"
        raise InputError(f"{self.column!r} is {key!r}", where="TeacherCollator", expected=expected)


def _label(feature: Mapping[str, Any]) -> int:
    return next((int(feature[name]) for name in LABELS if feature.get(name) is not None), NONE)
