r"""Textbook distillation: a student trained on labels and on a divergence from its teacher, row by row.

The objective is::

    L = (1 - alpha) CE(labels) + alpha mean_i d(t_i, s_i)

for teacher logits t and student logits s, with p = softmax(t / T), q = softmax(s / T) and d one of::

    kl               KL(p || q)                          reverse_kl       KL(q || p)
    jensen_shannon   KL(p || m)/2 + KL(q || m)/2         total_variation  sum_c |p_c - q_c| / 2        m = (p + q)/2
    sorted_l1        sum_c |p_(c) - q_(c)|               squared_error    mean_c (t_c - s_c)^2
    decoupled        KL of (p_y, 1 - p_y) + w KL of p and q among the other classes, for the label y
    ce               0: the labels alone

and with ``hint_weight`` a regression of the teacher's embeddings from the student's last hidden layer (FitNet)::

    + hint_weight mean_i ||A h_s(x_i) + a - (h_t(x_i) - mean) / sd||^2 / D

No term is multiplied by T^2: a temperature above 1 makes the teacher's share smaller, which alpha can undo. ``sorted_l1``
compares probabilities by rank (universal logit distillation), so it needs no common order of classes, and cannot teach
which class is which.

Deviations from the papers
--------------------------
``kl`` is the divergence, and 0 where student and teacher agree; the cross-entropy form differs from it by the teacher's
entropy, and has the same gradient. Hinton et al. multiply by T^2, and so do the authors of ``decoupled``, which for two
classes is ``kl``: there is one other class. FitNet trains the hidden layer first and distils then; here both at once,
and embeddings are standardised, so that the weight has no unit.

Reference: hinton2015distilling; boizard2024uld (sorted_l1); zhao2022decoupled; romero2015fitnets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.data.distillation_sources import Columns
from sanov.divergences import jensen_shannon, kl, total_variation
from sanov.learning import distil, predictions, teachers
from sanov.learning.distil import Component, Rows, Validation
from sanov.learning.readout import Readout, on_classes
from sanov.learning.students import Fitted, Student
from sanov.learning.training import Training
from sanov.precision import wide_dtype

__all__ = [
    "ROW_LOSSES",
    "Config",
    "Fitted",
    "apply",
    "components",
    "decoupled",
    "divergence_component",
    "fit",
    "read",
    "row_loss",
    "sorted_l1",
]

ByRow = Literal["kl", "reverse_kl", "jensen_shannon", "total_variation", "sorted_l1", "squared_error"]
Name = Literal["ce", "decoupled", ByRow]
ROW_LOSSES: tuple[ByRow, ...] = get_args(ByRow)
TINY = 1e-12  # of a standard deviation
HINT = "hint"  # the table's extra array of standardised embeddings


class Config(Options):
    """Options of `distillation`."""

    loss: Name = option("kl", "Divergence of the student from its teacher.", source="hinton2015distilling")
    alpha: float = option(
        0.9, "Share of the teacher against the labels.", source="choice: as in the released code of SinKD", ge=0, le=1
    )
    temperature: float = option(
        2.0, "Temperature T of both softmaxes.", source="choice: as in the released code of SinKD", gt=0
    )
    non_target_weight: float = option(
        8.0,
        "Of the other classes in the decoupled loss.",
        source="zhao2022decoupled: 8 on CIFAR-100 for most pairs",
        ge=0,
    )
    hint_weight: float = option(
        0.0,
        "Weight of the regression of the teacher's embeddings; 0 for none.",
        source="romero2015fitnets; choice",
        ge=0,
    )
    teacher: str = option("", "Folder of a Hugging Face classifier; empty where the data hold logits.", source="choice")
    map: Columns = Columns()
    student: Student = Student()
    training: Training = Training()
    validation: Validation = Validation()


# -- losses -----------------------------------------------------------------------------------------------------------


def sorted_l1(
    log_p: Float[Tensor, "*batch classes"], log_q: Float[Tensor, "*batch other_classes"]
) -> Float[Tensor, "*batch"]:
    """L1 distance between the probabilities of two distributions, each in descending order.

    Parameters
    ----------
    log_p, log_q
        Log-probabilities; where one has fewer classes, it is filled up with probability 0.

    Reference
    ---------
    boizard2024uld.
    """
    p, q = (torch.sort(side.exp(), dim=-1, descending=True).values for side in (log_p, log_q))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(side, (0, width - side.shape[-1])) for side in (p, q))
    return (p - q).abs().sum(dim=-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "reverse_kl": lambda log_p, log_q: kl(log_q, log_p),
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "sorted_l1": sorted_l1,
}


def row_loss(
    name: Name,
    student_logits: Float[Tensor, "*student_rows student_classes"],
    teacher_logits: Float[Tensor, "*teacher_rows teacher_classes"],
    temperature: float = 1.0,
) -> Float[Tensor, "*student_rows"]:
    """How far a student's output is from its teacher's, for each row; 0 where they agree.

    Parameters
    ----------
    name
        One of `ROW_LOSSES`.
    student_logits, teacher_logits
        Of the same rows. No gradient reaches the teacher. Half precision is computed in float32.
    temperature
        T of both softmaxes; ``squared_error`` has none.

    Raises
    ------
    InputError
        Unknown name, or shapes that differ.
    """
    if name not in DIVERGENCES and name != "squared_error":
        raise InputError(f"the loss is {name!r}", where="loss", expected=f"one of {', '.join(ROW_LOSSES)}")
    if student_logits.shape != teacher_logits.shape:
        found = f"student logits of shape {list(student_logits.shape)}, teacher logits {list(teacher_logits.shape)}"
        raise InputError(found, where=name, expected="the same rows and classes in both")
    wide = wide_dtype(student_logits)
    student, teacher = student_logits.to(wide), teacher_logits.detach().to(wide)
    if name == "squared_error":
        return (student - teacher).square().mean(dim=-1)
    log_p, log_q = (torch.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    return DIVERGENCES[name](log_p, log_q)


def decoupled(
    student_logits: Float[Tensor, "*rows classes"],
    teacher_logits: Float[Tensor, "*rows classes"],
    labels: Int64[Tensor, "*rows"],
    temperature: float = 1.0,
    non_target_weight: float = 8.0,
) -> Float[Tensor, "*rows"]:
    """Distillation of the label's probability, and apart from it of the other classes', for each row.

    Parameters
    ----------
    student_logits, teacher_logits
        Of the same rows. No gradient reaches the teacher.
    labels
        Class of each row.
    temperature
        T of all softmaxes.
    non_target_weight
        w; with 1 - p_y in its place the sum would be KL(p || q).

    Reference
    ---------
    zhao2022decoupled, eq. 7.
    """
    target = torch.nn.functional.one_hot(labels, student_logits.shape[-1]).bool()
    logs = [logits / temperature for logits in (teacher_logits.detach(), student_logits)]
    binary = [
        torch.stack(
            [x.masked_fill(~target, -torch.inf).logsumexp(-1), x.masked_fill(target, -torch.inf).logsumexp(-1)], -1
        )
        for x in logs
    ]
    others = [x.masked_fill(target, -torch.inf) for x in logs]
    of_label, of_others = (kl(*(torch.log_softmax(x, dim=-1) for x in pair)) for pair in (binary, others))
    return of_label + non_target_weight * of_others


def divergence_component(name: Name, weight: float = 1.0, temperature: float = 2.0) -> Component:
    """Return a divergence as a component for `learning.distil.fit`.

    Parameters
    ----------
    name
        One of `ROW_LOSSES`.
    weight
        Of the component.
    temperature
        T of both softmaxes.
    """

    def loss(student_logits: Tensor, rows: Rows) -> Tensor:
        return row_loss(name, student_logits, rows.teacher, temperature).sum()

    return Component("teacher", loss, weight)


def components(config: Config) -> list[Component]:
    """Return the terms of the objective without the hint: labels and teacher, or for ``ce`` the labels alone."""
    if config.loss == "ce":
        return [distil.label_loss()]
    if config.loss == "decoupled":
        return [distil.label_loss(1 - config.alpha), _decoupled_component(config)]
    teacher = divergence_component(config.loss, config.alpha, config.temperature)
    return [distil.label_loss(1 - config.alpha), teacher]


def _decoupled_component(config: Config) -> Component:
    def loss(student_logits: Tensor, rows: Rows) -> Tensor:
        kept = rows.labels >= 0
        given = (student_logits[kept], rows.teacher[kept], rows.labels[kept])
        return decoupled(*given, config.temperature, config.non_target_weight).sum()

    return Component("teacher", loss, config.alpha, counts="labelled")


def _hint_component(weight: float, readout: Readout) -> Component:
    def loss(outputs: Tensor, rows: Rows) -> Tensor:
        return (readout.hint(outputs) - rows.extras[HINT]).square().mean(dim=-1).sum()

    return Component("hint", loss, weight)


def _standardised(table: DistilTable) -> DistilTable:
    """Give a table its embeddings as targets: centred, and divided by one standard deviation."""
    if table.embeddings is None:
        raise InputError("there are no teacher embeddings", where=table.name, fix="add them, or set hint_weight=0")
    centred = table.embeddings - table.embeddings.mean(axis=0)
    return replace(table, extras={**table.extras, HINT: centred / max(float(centred.std()), TINY)})


# -- the system -------------------------------------------------------------------------------------------------------


def read(sources: Sequence[Any], config: Config) -> DistilTable:
    """Read inputs, teacher logits and labels.

    Parameters
    ----------
    sources
        An ``.npz`` file with ``inputs``, ``logits``, ``labels``; a table; or a table of inputs and one of logits.
    config
        Names of columns, and the teacher's folder where there is one.

    Raises
    ------
    InputError
        See `data.distillation.read` and `learning.teachers.read`.
    """
    return teachers.read(sources, config.map, config.teacher)


def fit(
    data: DistilTable, config: Config, *, seed: int = 0, out: str | Path | None = None, resume: bool = False
) -> Fitted:
    """Train a student.

    Parameters
    ----------
    data
        What `read` returned: teacher logits, except for ``loss=ce``; labels where alpha is below 1.
    config
        The options.
    seed
        Of the initial weights, the order of rows and the validation split: as `sinkd` for the same seed.
    out
        Folder for weights, configuration, history and checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        What a term needs is missing, or there is one class.
    """
    terms, hinted = components(config), config.hint_weight > 0
    if config.loss == "decoupled" and config.alpha > 0 and not data.n_labelled:
        raise InputError("there are no labels, and the decoupled loss needs them", where=data.name)
    if hinted:
        readout = Readout(len(data.classes))
        terms = [*(on_classes(term, readout) for term in terms), _hint_component(config.hint_weight, readout)]
    return distil.fit(
        data,
        terms,
        hint=HINT if hinted else "",
        prepare=_standardised if hinted else None,
        embeddings=hinted,
        seed=seed,
        out=out,
        resume=resume,
        **distil.settings(config, "distillation"),
    )


def apply(data: DistilTable, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Predict with a fitted student; where the data hold labels or logits, say how well it does.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options; of them only ``map`` and ``teacher`` matter here.
    fitted
        What `fit` returned, or its folder.
    seed
        Nothing is random here.

    Raises
    ------
    InputError
        Nothing fitted was given, or the inputs are others than in training.
    """
    student = predictions.load(fitted, system="distillation")
    return predictions.predict(teachers.with_teacher(data, config.teacher), student, system="distillation")
