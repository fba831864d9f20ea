r"""Sinkhorn knowledge distillation: move the *batch* of student outputs onto the *batch* of teacher outputs by transport.

Where student and teacher hardly overlap, KL and its kin have poor gradients; the cost of transporting one cloud of outputs
onto the other still says where to go. The objective is::

    L = (1 - alpha) CE(labels) + alpha H_T + transport_weight * SD / b

    H_T = - mean_i sum_c softmax(t_i / T)_c log softmax(s_i / T)_c            no factor T^2
    SD  = sum_ij P_ij D_ij,   D_ij = ||softmax(s_i / T_ot) - softmax(t_j / T_ot)||_1
    P   = exp(-D / epsilon), its rows and then its columns scaled to sum 1, 20 times

for student logits s and teacher logits t of the b rows of a batch; gradients go through the 20 rounds.

Deviations from the paper
-------------------------
- The mean form SD/b, whose weight does not depend on the batch size. The released code takes ``beta * 1e-3 * SD``: its
  beta = 0.8 at b = 32 is ``transport_weight = 0.8e-3 * 32 = 0.0256``. ``preset=paper`` takes the released form, with
  ``transport_weight`` as its beta.
- Rounds are stable at any epsilon, and may stop at a tolerance; the gradient may also be that of the envelope or the
  implicit one.
- Options of our own, off by default: the debiased form, a penalty on moving mass between different rows, exact transport by
  sorting for two classes, transport over the rows of all processes, and a weight that keeps the gradient of the transport
  term at a chosen ratio to that of the others.
- The student of `fit` is a small network, not half a BERT. The best evaluation on validation data is kept, never one on the
  data that a result is reported on.

Reference: cui2024sinkd.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor

from sanov.core.answers import Answer
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.data.distillation_sources import Columns
from sanov.learning import distil, predictions, teachers
from sanov.learning.distil import Component, Rows, Validation
from sanov.learning.students import Fitted, Student
from sanov.learning.training import Training, gathered
from sanov.systems.sinkd import checks
from sanov.systems.sinkd.losses import Gradient, Transported, sinkhorn_loss

__all__ = [
    "Config",
    "Fitted",
    "Transported",
    "apply",
    "components",
    "fit",
    "read",
    "sinkhorn_loss",
    "transport_component",
]

SUM_FORM = 1e-3  # the factor inside the released code's loss, there before its beta


class Transport(Options):
    """How the plan is computed, beyond what is usually tuned."""

    tolerance: float | None = option(
        None,
        "Stop the rounds where the rows of the plan are off by this in the mean; none makes all of them.",
        source="choice: none is the paper",
        gt=0,
    )
    p: float = option(1.0, "Order of the norm in the cost.", source="released code", ge=1)
    debiased: bool = option(False, "Subtract half the cost of each cloud to itself.", source="choice: off is the paper")
    sort: bool = option(False, "Two classes: exact transport by sorting.", source="choice: off is the paper")
    gather: bool = option(False, "Transport between the rows of all processes at once.", source="choice")


class Config(Options):
    """Options of `sinkd`."""

    transport_weight: float = option(
        0.0256,
        "Weight of SD/b; with preset=paper the released code's beta, whose default is 0.8.",
        source="released code: 0.8 * 1e-3 * 32, converted to the mean form",
        ge=0,
    )
    alpha: float = option(0.9, "Share of the teacher against the labels.", source="released code (SST-2)", ge=0, le=1)
    temperature: float = option(2.0, "Temperature T of the teacher term.", source="released code (SST-2)", gt=0)
    anneal: bool = option(False, "Lower T linearly to 1 over the epochs.", source="released code (`kd_anneal`)")
    transport_temperature: float = option(
        2.0, "Temperature T_ot of both softmaxes of the transport term.", source="released code", gt=0
    )
    epsilon: float = option(0.1, "Entropic regularisation, in the unit of the cost.", source="released code", gt=0)
    iterations: int = option(20, "Rounds; with a tolerance, the most.", source="released code", ge=1)
    gradient: Gradient = option(
        "unroll", "Gradient of the plan: through the rounds, none, or exact at convergence.", source="released code"
    )
    identity_penalty: float = option(
        0.0,
        "Added to the cost between different rows: large, the term becomes a distance by row.",
        source="choice",
        ge=0,
    )
    balance: float = option(
        0.0,
        "If above 0, the transport weight is set at each step so that the gradient of the transport term is this many "
        "times that of the other terms (in the student's logits).",
        source="choice: off is the paper",
        ge=0,
    )
    preset: Literal["mean", "paper"] = option(
        "mean", "Mean form SD/b, or the released code's beta * 1e-3 * SD.", source="choice: free of the batch size"
    )
    teacher: str = option("", "Folder of a Hugging Face classifier; empty where the data hold logits.", source="choice")
    transport: Transport = Transport()
    map: Columns = Columns()
    student: Student = Student()
    training: Training = Training()
    validation: Validation = Validation()

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") == "paper":
            return {"transport_weight": 0.8, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.transport.sort and (self.identity_penalty or self.transport.debiased):
            raise ValueError("transport.sort=true is for the plain cost: drop identity_penalty and transport.debiased")
        return self

    def solver(self) -> dict[str, Any]:
        """Return the options of `sinkhorn_loss`."""
        own = {name: getattr(self, name) for name in ("epsilon", "iterations", "gradient", "identity_penalty")}
        fine = {name: getattr(self.transport, name) for name in ("tolerance", "p", "debiased", "sort")}
        return {**own, **fine, "temperature": self.transport_temperature}

    @property
    def transports(self) -> bool:
        """Whether the transport term is part of the loss."""
        return self.transport_weight > 0 or self.balance > 0


# -- the loss ---------------------------------------------------------------------------------------------------------


def transport_component(config: Config, *, extra: str | None = None) -> Component:
    """Return the transport term for `learning.distil.fit`.

    Parameters
    ----------
    config
        The system's options.
    extra
        Name of the table's extra array of logits to transport to; None takes the teacher's. With the teacher's outputs
        of other rows it is the negative control of the method.
    """

    def move(student_logits: Tensor, rows: Rows) -> Transported:
        target = rows.teacher if extra is None else rows.extras[extra]
        if config.transport.gather:
            student_logits, target = gathered(student_logits), gathered(target)
        return sinkhorn_loss(student_logits, target, **config.solver())

    def loss(student_logits: Tensor, rows: Rows) -> Tensor:
        if not len(student_logits) and not config.transport.gather:  # more processes than rows in the batch
            return student_logits.sum()
        moved = move(student_logits, rows)
        form = SUM_FORM * moved.rows if config.preset == "paper" else 1.0
        return form * moved.rows * moved.value

    def monitor(student_logits: Tensor, rows: Rows) -> dict[str, float]:
        if not len(student_logits) and not config.transport.gather:
            return {}
        moved = move(student_logits, rows)
        return {
            "transport_cost": float(moved.value),
            "marginal_error": float(moved.marginal_error),
            "transport_rounds": float(moved.iterations),
        }

    return Component(
        "transport",
        loss,
        weight=config.transport_weight,
        whole_batch="gathered" if config.transport.gather else "own",
        balance=config.balance,
        monitor=monitor,
    )


def components(config: Config) -> list[Component]:
    """Return the three terms of the objective."""
    return [
        distil.label_loss(1 - config.alpha),
        distil.teacher_loss(config.alpha, config.temperature, anneal=config.anneal),
        transport_component(config),
    ]


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
    """Train a student on the teacher's outputs.

    Parameters
    ----------
    data
        What `read` returned; teacher logits are needed, labels are not.
    config
        The system's options.
    seed
        Of the initial weights, the order of rows and the validation split.
    out
        Folder for weights, configuration, history and checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        There are no teacher logits, one class, or nothing that tells rows apart.
    """
    _check(data, config)
    if config.transports:
        _warn_of_partial_batch(data, config)
    fitted = distil.fit(
        data,
        components(config),
        seed=seed,
        out=out,
        resume=resume,
        **distil.settings(config, "sinkd"),
        before=lambda student, teacher: _look(student, teacher, config),
    )
    if config.transports:
        _warn_of_error(fitted, config)
    return fitted


def apply(data: DistilTable, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Predict with a fitted student; where the data hold labels or logits, say how well it does.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The system's options; of them only ``map`` and ``teacher`` matter here.
    fitted
        What `fit` returned, or its folder.
    seed
        Nothing is random here.

    Raises
    ------
    InputError
        Nothing fitted was given, or the inputs are others than in training.
    """
    student = predictions.load(fitted, system="sinkd")
    data = teachers.with_teacher(data, config.teacher)
    return predictions.predict(data, student, system="sinkd")


def _check(data: DistilTable, config: Config) -> None:
    by_row = config.alpha > 0 or config.identity_penalty > 0
    if config.transports and not by_row and not data.n_labelled:
        raise InputError(
            "alpha is 0 and there are no labels, and transport alone cannot tell rows apart",
            where=data.name,
            fix="add labels, set alpha above 0, or identity_penalty above 0",
        )
    if config.transport.sort and len(data.classes) != 2:
        raise InputError(f"there are {len(data.classes)} classes", where="transport.sort", expected="two classes")


def _warn_of_partial_batch(data: DistilTable, config: Config) -> None:
    rows = len(data) - distil.held_out_rows(data, config.validation)
    size = min(config.training.batch_size, rows)
    if size == 1:
        text = "every batch has one row, on which transport is twice the total variation."
    elif size > 1 and rows % size == 1 and not config.validation.drop_last:
        text = "the last batch of an epoch has one row, on which transport is twice the total variation; "
        text += "set validation.drop_last=true."
    else:
        return
    warnings.warn(text, SanovWarning, stacklevel=3)


def _warn_of_error(fitted: Fitted, config: Config) -> None:
    seen = fitted.history.drop_nulls("marginal_error").sort("marginal_error")
    if len(seen) and seen["marginal_error"][-1] > checks.LARGEST_ERROR:
        rounds = int(seen["transport_rounds"][-1])
        tolerance = config.transport.tolerance if rounds < config.iterations else None
        checks.warn_of_error(seen["marginal_error"][-1], rounds, tolerance=tolerance)


def _look(student_logits: Tensor, teacher_logits: Tensor, config: Config) -> dict[str, Any]:
    """Before training: warn of what will go wrong, and say whether transport has anything to do."""
    if not config.transports:
        return {}
    size = config.training.batch_size
    checks.warn_of_batch(student_logits[:size], teacher_logits[:size], config.solver())
    found = checks.overlap(student_logits, teacher_logits)
    return {"overlap": found._asdict(), "notes": [found.sentence()]}
