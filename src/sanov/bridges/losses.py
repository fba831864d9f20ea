"""A distillation objective for any training loop: student and teacher logits in, loss and metrics out.

::

    loss_of = distillation_loss("sinkd", transport_weight=0.1, alpha=0.5)
    loss, metrics = loss_of(student(batch), teacher_logits, labels)
    loss.backward()

The options are those of ``sanov show sinkd``, ``lelp`` and ``distillation``; those of the student and of its training belong
to the loop. `lelp` also needs how the teacher's embeddings divide the classes, which `with_subclasses` finds for all rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, parse
from sanov.data.distillation import DistilTable
from sanov.learning import subclasses
from sanov.learning.components import Component, Rows, weighted_sums
from sanov.learning.processes import place
from sanov.learning.readout import Readout
from sanov.precision import wide_dtype
from sanov.systems import find

__all__ = ["DistillationLoss", "Loss", "distillation_loss", "with_subclasses"]

SUBCLASSES = "subclasses"  # among the extras: log p(s | c)
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
        The terms of its objective, for a number of classes.
    """

    config: Options
    components: Callable[[int], Sequence[Component]]

    @property
    def subclasses(self) -> int:
        """Outputs of the student for each class."""
        return int(getattr(self.config, "subclasses", 1))

    def __call__(
        self,
        student_logits: Float[Tensor, "*student_rows student_classes"],
        teacher_logits: Float[Tensor, "*teacher_rows teacher_classes"],
        labels: Int64[Tensor, "*labels"] | None = None,
        *,
        extras: Mapping[str, Tensor] | None = None,
        mask: Bool[Tensor, "*mask"] | None = None,
        progress: float = 0.0,
    ) -> Loss:
        """Return the objective, averaged over the rows of a batch, and the means of its components.

        Parameters
        ----------
        student_logits, teacher_logits
            Of the same rows; further leading axes, such as tokens, are rows too. No gradient reaches the teacher. A student
            of `lelp` has ``subclasses`` logits for each class, those of a class side by side.
        labels
            Index of the class; negative where a row has no label. None where none has.
        extras
            Further arrays of the same rows; for `lelp` the ``subclasses`` that `with_subclasses` found.
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
        student, rows = self._rows(student_logits, teacher_logits, labels, mask, progress, extras or {})
        components = self.components(teacher_logits.shape[-1])
        self._check(rows, components)
        counts = {component.name: component.count(rows.labels) for component in components}
        sums = weighted_sums(components, student, rows)
        means = {name: total / max(counts[name], 1) for name, (total, _) in sums.items()}
        terms = [sums[name][1] * mean for name, mean in means.items()]
        return Loss(sum(terms[1:], terms[0]), {name: mean.detach() for name, mean in means.items()})

    def _rows(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        mask: Tensor | None,
        progress: float,
        extras: Mapping[str, Tensor],
    ) -> tuple[Tensor, Rows]:
        leading, wide = student.shape[:-1], wide_dtype(student)
        if student.shape != (*teacher.shape[:-1], teacher.shape[-1] * self.subclasses):
            found = f"student logits of shape {list(student.shape)}, teacher logits {list(teacher.shape)}"
            of_each = (
                f", {self.subclasses} outputs of the student for each class" if self.subclasses > 1 else " in both"
            )
            raise InputError(found, where="the batch", expected=f"the same rows and classes{of_each}")
        labels = torch.full(leading, NONE, device=student.device) if labels is None else labels
        for name, values in (("labels", labels), ("mask", mask), *extras.items()):
            if values is not None and values.shape[: len(leading)] != leading:
                found = f"logits of {list(leading)} rows, {name} of shape {list(values.shape)}"
                raise InputError(found, where="the batch", expected="one a row")
        keep = slice(None) if mask is None else mask.reshape(-1)
        student, teacher = (x.reshape(-1, x.shape[-1])[keep].to(wide) for x in (student, teacher.detach()))
        further = {name: x.detach().reshape(-1, *x.shape[len(leading) :])[keep].to(wide) for name, x in extras.items()}
        return student, Rows(
            teacher, labels.reshape(-1)[keep].clamp_min(NONE), progress, self._divided(teacher, further)
        )

    def _divided(self, teacher: Tensor, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows' extras with how they divide the classes; with one subclass nobody has to say it."""
        if not hasattr(self.config, "subclasses"):
            return extras
        shape = (*teacher.shape, self.subclasses)
        found = extras.get(SUBCLASSES, torch.zeros(shape, device=teacher.device) if self.subclasses == 1 else None)
        if found is None or found.shape != shape:
            told = "there are none" if found is None else f"shape {list(found.shape)}"
            fix = "take those of the table that with_subclasses returns"
            raise InputError(told, where=f"extras['{SUBCLASSES}']", expected=f"{list(shape)}", fix=fix)
        return {**extras, SUBCLASSES: found.to(teacher.dtype)}

    def _check(self, rows: Rows, components: Sequence[Component]) -> None:
        if len(rows.teacher) == 0:
            raise InputError("no row counts", where="the batch", fix="skip it")
        classes, largest = rows.teacher.shape[-1], int(rows.labels.max())
        if largest >= classes:
            raise InputError(f"a label is {largest}", where="labels", expected=f"0 to {classes - 1}, negative for none")
        if not rows.teacher.isfinite().all():
            raise InputError(
                "some are NaN or infinite", where="teacher_logits", fix="remove them, or run the teacher again"
            )
        whole = [component for component in components if component.whole_batch]
        by_row = [c for c in components if not c.whole_batch and c.count(rows.labels) > 0]
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
        ``sinkd``, ``lelp``, or ``distillation`` for the textbook losses.
    options
        As on the command line; a group is a dictionary, or a dotted name in one. ``balance`` acts where gradients are
        formed; without them the value is that of ``transport_weight``.

    Raises
    ------
    InputError
        An unknown system or option, a value out of range, ``transport.gather``, ``hint_weight``, or ``balance``
        with several processes.
    """
    module = find(system).load()
    if not hasattr(module, "components") and system != "lelp":
        raise InputError("is no objective of distillation", where=system, expected="sinkd, lelp or distillation")
    config = parse(module.Config, options)
    if getattr(config, "hint_weight", 0) > 0:
        fix = "train by `sanov fit distillation`"
        raise InputError("a hint needs embeddings, and outputs of the student for them", where="hint_weight", fix=fix)
    if getattr(config, "balance", 0) > 0 and place()[1] > 1:
        fix = "give transport_weight, or train by `sanov fit sinkd`"
        raise InputError("the ratio of gradients needs the rows of all processes", where="balance", fix=fix)

    @functools.cache
    def components(classes: int) -> Sequence[Component]:
        terms = _of_subclasses(config, classes) if system == "lelp" else module.components(config)
        return [component for component in terms if component.weight > 0 or component.balance > 0]

    if any(component.whole_batch == "gathered" for component in components(2)):
        found = "a loss inside another loop sees the rows of its own process alone"
        raise InputError(found, where="transport.gather", fix="leave it false, or train by `sanov fit sinkd`")
    return DistillationLoss(config, components)


def _of_subclasses(config: Any, classes: int) -> Sequence[Component]:
    temperatures = {"temperature": config.temperature, "student_temperature": config.student_temperature}
    return subclasses.components(Readout(classes, config.subclasses, **temperatures), alpha=config.alpha)


def with_subclasses(table: DistilTable, *, seed: int = 0, **options: Any) -> DistilTable:
    """Return a table that carries how the teacher's embeddings divide every class, for the objective of `lelp`.

    Parameters
    ----------
    table
        With the teacher's embeddings, head and logits: `learning.teachers.with_teacher(..., embeddings=True)`.
    seed
        Of rotations.
    options
        Of `lelp`, as for `distillation_loss`.

    Returns
    -------
    The table, with log p(s | c) [rows, classes, subclasses] among its extras, as ``subclasses``.

    Raises
    ------
    InputError
        The teacher's outputs are missing, or a class has too few rows or directions.
    """
    lelp = find("lelp").load()
    config = parse(lelp.Config, options)
    projection = lelp.find_subclasses(table, config, seed=seed)
    return subclasses.divided(table, projection.log_conditional(table.embeddings, config.subclass_temperature))
