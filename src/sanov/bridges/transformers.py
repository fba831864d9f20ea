"""Distillation inside Hugging Face's ``Trainer``: the objective as ``compute_loss_func``, the teacher in the labels.

``Trainer`` hands a loss function the model's outputs and the column ``labels``, nothing else. So the teacher's logits
travel in that column: each row of it is the label followed by the logits::

    logits = classifier_logits("teacher-bert", texts)           # sanov.nets.foreign
    rows = [{**tokenizer(text), "labels": row} for text, row in zip(texts, pack(logits, labels))]
    Trainer(model=student, train_dataset=rows, compute_loss_func=trainer_loss("sinkd", transport_weight=0.1), ...)

`unpack` takes them apart again, for instance in ``compute_metrics``. Where every row has a label, gradient
accumulation and several devices change nothing for terms that are sums over rows; where some have none, each micro-batch
divides by its own labels, for ``Trainer`` counts none. Transport sees the rows of one micro-batch on one device. A step in
half precision by DeepSpeed rounds the column too: labels beyond 256 are then not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from sanov.bridges.losses import NONE, DistillationLoss, distillation_loss
from sanov.core.errors import InputError

__all__ = ["TrainerLoss", "pack", "trainer_loss", "unpack"]

IGNORED = -100.0  # what Trainer leaves out when it counts the items of a batch


def pack(teacher_logits: Any, labels: Sequence[int] | np.ndarray | None = None) -> Float32[np.ndarray, "rows columns"]:
    """Return the column ``labels``: for each row the label, then the teacher's logits.

    Parameters
    ----------
    teacher_logits
        Of every row, before any temperature: an array or nested lists [rows, classes].
    labels
        Index of the class; negative where a row has none. None where none has.

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
    packed = np.column_stack([np.maximum(column, NONE), teacher_logits]).astype(np.float32)
    packed[packed == IGNORED] = np.nextafter(np.float32(IGNORED), np.float32(0))  # or Trainer would not count it
    return packed


def unpack(
    packed: Float[Tensor, "rows columns"] | Float[np.ndarray, "rows columns"],
) -> tuple[Int64[Tensor, " rows"], Float[Tensor, "rows classes"]]:
    """Return the labels (-1 for none) and the teacher's logits of what `pack` made.

    Parameters
    ----------
    packed
        A batch of the column ``labels``, or all of it, as ``compute_metrics`` gets it.
    """
    values = torch.as_tensor(packed)
    return values[:, 0].long(), values[:, 1:]


class TrainerLoss:
    """A distillation objective with the signature that ``Trainer`` asks of ``compute_loss_func``.

    Parameters
    ----------
    objective
        The objective. ``metrics`` holds its components on the latest batch.
    """

    def __init__(self, objective: DistillationLoss):
        self.objective = objective
        self.metrics: dict[str, Tensor] = {}

    def __call__(
        self,
        outputs: Any,
        labels: Float[Tensor, "rows columns"] | None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of a micro-batch, scaled so that those of a step add up to their mean over rows.

        Parameters
        ----------
        outputs
            Of the model: anything with ``logits``, a dictionary, or a tuple that begins with them.
        labels
            The column that `pack` made.
        num_items_in_batch
            Cells of that column in all micro-batches of the step.

        Raises
        ------
        InputError
            The column is not what `pack` makes, or for other classes than the student's.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        columns = logits.shape[-1] + 1
        if labels is None or labels.ndim != 2 or labels.shape[-1] != columns:
            found = "there are none" if labels is None else f"shape {list(labels.shape)}"
            expected = f"[rows, {columns}]: the label and the {columns - 1} logits of the teacher"
            raise InputError(
                found, where="labels", expected=expected, fix="make the column by bridges.transformers.pack"
            )
        classes, teacher = unpack(labels)
        loss, self.metrics = self.objective(logits, teacher, classes)
        return loss if num_items_in_batch is None else loss * (labels.numel() / num_items_in_batch)


def trainer_loss(system: str = "sinkd", **options: Any) -> TrainerLoss:
    """Return a system's objective as ``compute_loss_func`` of a ``Trainer``.

    Parameters
    ----------
    system
        ``sinkd``, or ``distillation`` for the textbook losses.
    options
        As on the command line.

    Raises
    ------
    InputError
        An unknown option, a value out of range, or ``anneal``, which needs to know how far the training is.
    """
    objective = distillation_loss(system, **options)
    if getattr(objective.config, "anneal", False):
        fix = "lower the temperature yourself, or call bridges.losses with `progress` from a loop of your own"
        raise InputError("a Trainer's loss does not know how far the training is", where="anneal", fix=fix)
    return TrainerLoss(objective)
