"""Distillation inside Hugging Face's ``Trainer``: a collator that carries the teacher's outputs, the objective as its loss.

::

    found = teachers.outputs("teacher-bert", texts)             # sanov.learning.teachers: one pass, kept
    rows = [{**tokenizer(text), "label": label, "row": row} for row, (text, label) in enumerate(zip(texts, labels))]
    Trainer(
        model=student,
        args=TrainingArguments(..., remove_unused_columns=False),
        train_dataset=rows,
        data_collator=TeacherCollator(tokenizer, found),
        compute_loss_func=trainer_loss("sinkd", transport_weight=0.1),
        compute_metrics=plain_labels(compute_metrics),          # where there is one
    )

For `lelp` the student has ``classes * subclasses`` labels, and the collator carries the table that
`bridges.losses.with_subclasses` returns.

``Trainer`` hands a loss function the model's outputs and ``labels``, nothing else. So the teacher's logits travel there: each
row of ``labels`` is the label followed by the logits. `pack` makes such rows, and `unpack` takes them apart again.

Where every row has a label, gradient accumulation and several devices change nothing for terms that are sums over rows;
where some have none, each micro-batch divides by its own labels, for ``Trainer`` counts none. Transport sees the rows of one
micro-batch on one device. A step in half precision by DeepSpeed rounds the labels too: those beyond 256 are then not exact.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from sanov.bridges.collator import TeacherCollator, pack, plain_labels, unpack
from sanov.bridges.losses import DistillationLoss, distillation_loss
from sanov.core.errors import InputError
from sanov.nets.last_linear import logits_of

__all__ = ["TeacherCollator", "TrainerLoss", "pack", "plain_labels", "trainer_loss", "unpack"]


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
            What `pack` made.
        num_items_in_batch
            Cells of the labels in all micro-batches of the step.

        Raises
        ------
        InputError
            The labels are not what `pack` makes, or for other classes than the student's.
        """
        logits = logits_of(outputs)
        each, rest = self.objective.subclasses, logits.shape[-1] % self.objective.subclasses
        if rest:
            found = f"the student has {logits.shape[-1]} outputs"
            expected = f"{each} for each class"
            raise InputError(found, where="subclasses", expected=expected, fix="set num_labels to classes * subclasses")
        classes = logits.shape[-1] // each
        columns = 1 + classes + (logits.shape[-1] if each > 1 else 0)
        if labels is None or labels.ndim != 2 or labels.shape[-1] != columns:
            found = "there are none" if labels is None else f"shape {list(labels.shape)}"
            expected = f"[rows, {columns}]: the label and the {classes} logits of the teacher"
            expected += f", and {logits.shape[-1]} numbers of its subclasses" if each > 1 else ""
            fix = "let bridges.transformers.TeacherCollator make the batches, of a teacher of the student's classes"
            raise InputError(found, where="labels", expected=expected, fix=fix)
        own, teacher = unpack(labels, classes)
        extras = {"subclasses": labels[:, 1 + classes :].reshape(-1, classes, each)} if each > 1 else {}
        loss, self.metrics = self.objective(logits, teacher, own, extras=extras)
        return loss if num_items_in_batch is None else loss * (labels.numel() / num_items_in_batch)


def trainer_loss(system: str = "sinkd", **options: Any) -> TrainerLoss:
    """Return a system's objective as ``compute_loss_func`` of a ``Trainer``.

    Parameters
    ----------
    system
        ``sinkd``, ``lelp``, or ``distillation`` for the textbook losses.
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
