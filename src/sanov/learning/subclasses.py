r"""Distillation of subclasses: a student of C * S outputs trained on how a teacher divides each of its C classes.

Whatever divides the classes (a teacher's embeddings, clusters, true labels) gives every row and every class a distribution
over the subclasses of that class. With the teacher's p_c = softmax(t / tau)_c the target is p_{c,s} = p_c p_{s|c}, and by the
chain rule the divergence of the student's q from it has two parts, which are logged apart::

    KL(p_SC || q_SC) = KL(p_C || q_C) + sum_c p_c KL(p_{.|c} || q_{.|c})

The first is ordinary distillation, the second what subclasses add. Reference: loo2024lelp, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.divergences import kl
from sanov.learning import distil
from sanov.learning.components import Component, Rows, label_loss
from sanov.learning.readout import Readout, on_classes
from sanov.learning.students import Fitted

__all__ = [
    "class_divergence",
    "class_of_rows",
    "components",
    "divided",
    "embeddings_of",
    "fit",
    "head_of",
    "joint_log_probs",
    "subclass_divergence",
]

SUBCLASSES = "subclasses"  # the table's extra array of log p(s | c), [rows, classes, subclasses]


def embeddings_of(table: DistilTable) -> Float64[np.ndarray, "rows width"]:
    """Return the teacher's embeddings.

    Raises
    ------
    InputError
        The table has none.
    """
    if table.embeddings is None:
        fix = "add the array `embeddings` (.npz), or name a Hugging Face classifier by teacher=DIR"
        raise InputError("there are no teacher embeddings", where=table.name, fix=fix)
    return table.embeddings


def head_of(table: DistilTable) -> Float64[np.ndarray, "width classes"]:
    """Return the weight of the teacher's last linear map, whose directions the null-space step takes out.

    Raises
    ------
    InputError
        The table has none.
    """
    if table.head is None:
        fix = "add the arrays `head_weight` and `head_bias`, or set null_space=false"
        raise InputError("the teacher's head is not known, and null_space needs it", where=table.name, fix=fix)
    return table.head.weight


def class_of_rows(table: DistilTable, by: Literal["label", "teacher"] = "label") -> Int64[np.ndarray, " rows"]:
    """Return the class that each row belongs to.

    Parameters
    ----------
    table
        With labels, the teacher's logits, or both.
    by
        Its label, or the teacher's class where it has none; or the teacher's class in any case.

    Raises
    ------
    InputError
        A row has no class.
    """
    labels = np.full(len(table), -1) if table.labels is None else table.labels
    if by == "label" and (labels >= 0).all():
        return labels
    if table.logits is None:
        found = "there are neither labels nor teacher logits"
        raise InputError(found, where=table.name, expected="a class for each row")
    given = table.logits.argmax(axis=1)
    return given if by == "teacher" else np.where(labels >= 0, labels, given)


def divided(table: DistilTable, log_conditional: Float64[np.ndarray, "rows classes subclasses"]) -> DistilTable:
    """Return a table that carries how each row divides every class.

    Parameters
    ----------
    table
        The rows.
    log_conditional
        log p_{s|c}.
    """
    return replace(table, extras={**table.extras, SUBCLASSES: log_conditional})


def joint_log_probs(
    teacher_logits: Float[Tensor, "*rows classes"],
    log_conditional: Float[Tensor, "*rows classes subclasses"],
    temperature: float = 1.0,
) -> Float[Tensor, "*rows classes subclasses"]:
    """Return log p_{c,s} = log p_c + log p_{s|c}: what the student's outputs are to follow.

    Parameters
    ----------
    teacher_logits
        Of the classes.
    log_conditional
        log p_{s|c} of every class, also of those that a row does not belong to.
    temperature
        tau, of the teacher's softmax.

    Reference
    ---------
    loo2024lelp, section 3.3.
    """
    return torch.log_softmax(teacher_logits / temperature, dim=-1)[..., None] + log_conditional


def class_divergence(
    teacher_logits: Float[Tensor, "*rows classes"],
    student_logits: Float[Tensor, "*rows classes subclasses"],
    temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> Float[Tensor, "*rows"]:
    """KL(p_C || q_C): how far the student's class probabilities, summed over subclasses, are from the teacher's.

    Parameters
    ----------
    teacher_logits
        Of the classes.
    student_logits
        Of the subclasses; the softmax is over classes and subclasses at once.
    temperature, student_temperature
        tau of the teacher's softmax, and the student's.
    """
    log_q = torch.logsumexp(student_logits / student_temperature, dim=-1)
    return kl(torch.log_softmax(teacher_logits / temperature, dim=-1), torch.log_softmax(log_q, dim=-1))


def subclass_divergence(
    teacher_logits: Float[Tensor, "*rows classes"],
    log_conditional: Float[Tensor, "*rows classes subclasses"],
    student_logits: Float[Tensor, "*rows classes subclasses"],
    temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> Float[Tensor, "*rows"]:
    """sum_c p_c KL(p_{.|c} || q_{.|c}): how far the student is from the division of the classes.

    Parameters
    ----------
    teacher_logits
        Of the classes.
    log_conditional
        log p_{s|c}.
    student_logits
        Of the subclasses.
    temperature, student_temperature
        tau of the teacher's softmax, and the student's.
    """
    log_q = torch.log_softmax(student_logits / student_temperature, dim=-1)
    within = kl(log_conditional, log_q)
    return (torch.softmax(teacher_logits / temperature, dim=-1) * within).sum(dim=-1)


def components(readout: Readout, *, alpha: float = 0.0) -> list[Component]:
    """Return the terms of L = alpha CE(label) + (1 - alpha) KL(p_SC || q_SC), the divergence in its two parts.

    Parameters
    ----------
    readout
        Classes and subclasses of the student, and the temperatures of both softmaxes.
    alpha
        Share of the labels, whose cross-entropy takes the class logits: the softmax of the summed probabilities to the
        power tau, as a student that follows softmax(t / tau) has softmax(t).
    """
    temperatures = (readout.temperature, readout.student_temperature)

    def classes(outputs: Tensor, rows: Rows) -> Tensor:
        student = _checked(outputs, readout)
        return class_divergence(rows.teacher, student, *temperatures).sum()

    def within(outputs: Tensor, rows: Rows) -> Tensor:
        student, conditional = _checked(outputs, readout), rows.extras[SUBCLASSES]
        return subclass_divergence(rows.teacher, conditional, student, *temperatures).sum()

    return [
        on_classes(label_loss(alpha), readout),
        Component("teacher", classes, 1 - alpha),
        Component("subclass", within, 1 - alpha),
    ]


def _checked(outputs: Tensor, readout: Readout) -> Tensor:
    if outputs.shape[-1] != readout.outputs:
        expected = f"{readout.outputs}: {readout.subclasses} subclasses for each of {readout.classes} classes"
        raise InputError(f"the student has {outputs.shape[-1]} outputs", where="subclasses", expected=expected)
    return readout.subclass_logits(outputs)


def fit(
    table: DistilTable,
    divide: Callable[[DistilTable], DistilTable],
    *,
    subclasses: int,
    alpha: float = 0.0,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    found: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Fitted:
    """Train a student on a teacher's classes and on a division of each into subclasses.

    Parameters
    ----------
    table
        Inputs with the teacher's logits, and with what `divide` needs.
    divide
        Called with the rows that are trained on; what it returns is `divided`.
    subclasses
        S.
    alpha
        Share of the labels.
    temperature, student_temperature
        tau of the teacher's softmax, and the student's.
    found
        Further results to write down; read after `divide` was called.
    out
        Folder for the fitted student and the checkpoints.
    options
        Of `distil.fit`.
    """
    readout = Readout(len(table.classes), subclasses, temperature=temperature, student_temperature=student_temperature)
    return distil.fit(
        table,
        components(readout, alpha=alpha),
        readout=readout,
        prepare=divide,
        before=lambda outputs, teacher: dict(found or {}),
        out=out,
        **options,
    )
