"""A distillation objective for any training loop: student and teacher logits in, loss and metrics out.

::

    loss_of = distillation_loss("sinkd", transport_weight=0.1, alpha=0.5)
    loss, metrics = loss_of(student(batch), teacher_logits, labels)
    loss.backward()

The options are those of ``sanov show sinkd`` and ``sanov show distillation``; those of the student and of its training
belong to the loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, parse
from sanov.learning.components import Component, Rows, weighted_sums
from sanov.learning.processes import place
from sanov.precision import wide_dtype
from sanov.systems import find

__all__ = ["DistillationLoss", "Loss", "distillation_loss"]

NONE = -1  # a row without label; a loop may also write PyTorch's -100


class Loss(NamedTuple):
    """The objective of a batch, and what it is made of.

    ``metrics`` holds for each component its mean before its weight, without gradient and on the device of the logits.
    """

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """The terms of a system's objective, as a function of a batch.

    Parameters
    ----------
    config
        The system's options.
    components
        The terms of its objective.
    """

    config: Options
    components: Sequence[Component]

    def __call__(
        self,
        student_logits: Float[Tensor, "*student_rows student_classes"],
        teacher_logits: Float[Tensor, "*teacher_rows teacher_classes"],
        labels: Int64[Tensor, "*labels"] | None = None,
        *,
        mask: Bool[Tensor, "*mask"] | None = None,
        progress: float = 0.0,
    ) -> Loss:
        """Return the objective, averaged over the rows of a batch, and the means of its components.

        Parameters
        ----------
        student_logits, teacher_logits
            Of the same rows; further leading axes, such as tokens, are rows too. No gradient reaches the teacher.
        labels
            Index of the class; negative where a row has no label. None where none has.
        mask
            True where a row counts; None for all.
        progress
            Share of the training that lies behind, from 0 to 1: for options that change with it (``anneal``).

        Raises
        ------
        InputError
            The shapes differ, no row counts, a label is no class, a teacher logit is not finite, or nothing is left that
        tells rows apart.
        """
        student, rows = self._rows(student_logits, teacher_logits, labels, mask, progress)
        self._check(rows)
        counts = {component.name: component.count(rows.labels) for component in self.components}
        sums = weighted_sums(self.components, student, rows)
        means = {name: total / max(counts[name], 1) for name, (total, _) in sums.items()}
        terms = [sums[name][1] * mean for name, mean in means.items()]
        return Loss(sum(terms[1:], terms[0]), {name: mean.detach() for name, mean in means.items()})

    def _rows(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, mask: Tensor | None, progress: float
    ) -> tuple[Tensor, Rows]:
        if student.shape != teacher.shape:
            found = f"student logits of shape {list(student.shape)}, teacher logits {list(teacher.shape)}"
            raise InputError(found, where="the batch", expected="the same rows and classes in both")
        leading, wide = student.shape[:-1], wide_dtype(student)
        labels = torch.full(leading, NONE, device=student.device) if labels is None else labels
        for name, values in (("labels", labels), ("mask", mask)):
            if values is not None and values.shape != leading:
                found = f"logits of {list(leading)} rows, {name} of shape {list(values.shape)}"
                raise InputError(found, where="the batch", expected="one a row")
        keep = slice(None) if mask is None else mask.reshape(-1)
        student, teacher = (x.reshape(-1, x.shape[-1])[keep].to(wide) for x in (student, teacher.detach()))
        return student, Rows(teacher, labels.reshape(-1)[keep].clamp_min(NONE), progress)

    def _check(self, rows: Rows) -> None:
        if len(rows.teacher) == 0:
            raise InputError("no row counts", where="the batch", fix="skip it")
        classes, largest = rows.teacher.shape[-1], int(rows.labels.max())
        if largest >= classes:
            raise InputError(f"a label is {largest}", where="labels", expected=f"0 to {classes - 1}, negative for none")
        if not rows.teacher.isfinite().all():
            raise InputError(
                "some are NaN or infinite", where="teacher_logits", fix="remove them, or run the teacher again"
            )
        whole = [component for component in self.components if component.whole_batch]
        by_row = [c for c in self.components if not c.whole_batch and c.count(rows.labels) > 0]
        if not by_row and not getattr(self.config, "identity_penalty", 0):
            raise InputError(
                "without labels only transport is left, which cannot tell rows apart",
                where="the batch",
                fix="give labels, set alpha above 0, or identity_penalty above 0",
            )
        if whole and len(rows.teacher) == 1:
            text = "a batch of one row: transport is twice the total variation there; drop the last batch."
            warnings.warn(text, SanovWarning, stacklevel=3)


def distillation_loss(system: str = "sinkd", **options: Any) -> DistillationLoss:
    """Return a system's objective for any training loop.

    Parameters
    ----------
    system
        ``sinkd``, or ``distillation`` for the textbook losses.
    options
        As on the command line; a group is a dictionary, or a dotted name in one. ``balance`` acts where gradients are
        formed; without them the value is that of ``transport_weight``.

    Raises
    ------
    InputError
        An unknown system or option, a value out of range, ``transport.gather``, or ``balance`` with several processes.
    """
    module = find(system).load()
    if not hasattr(module, "components"):
        raise InputError("is no objective of distillation", where=system, expected="sinkd or distillation")
    config = parse(module.Config, options)
    if getattr(config, "balance", 0) > 0 and place()[1] > 1:
        fix = "give transport_weight, or train by `sanov fit sinkd`"
        raise InputError("the ratio of gradients needs the rows of all processes", where="balance", fix=fix)
    active = [component for component in module.components(config) if component.weight > 0 or component.balance > 0]
    if any(component.whole_batch == "gathered" for component in active):
        found = "a loss inside another loop sees the rows of its own process alone"
        raise InputError(found, where="transport.gather", fix="leave it false, or train by `sanov fit sinkd`")
    return DistillationLoss(config, active)
