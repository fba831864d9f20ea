r"""LELP: move the student onto the teacher's pseudo-subclasses, which linear projections of its embeddings reveal.

A teacher of few classes says little by its logits, and more by the input h(x) of its last linear map, logits = h W + b.
Each class is divided into S subclasses by the principal directions of its own embeddings, once the directions that W
reads are taken out; the student learns C * S outputs, and sums them for its answer. The objective is::

    p_c(x)     = softmax(logits(x) / tau)_c
    z_{c,s}(x) = v_{c,s}' (h(x) P - mean_c) / sd          P = I - W (W'W)^+ W',  v_c = principal directions, rotated
    p_{c,s}(x) = p_c(x) softmax_s(z_{c,s}(x) / beta)      for all classes c, not the label's alone
    L          = alpha CE(label) + (1 - alpha) KL(p_SC || q_SC)
    answer     = argmax_c sum_s q_{c,s}(x)

and KL(p_SC || q_SC) = KL(p || q) + sum_c p_c KL(p_{.|c} || q_{.|c}): ordinary distillation and what subclasses add,
which are logged as ``teacher`` and ``subclass``.

Deviations from the paper
-------------------------
- Coordinates are centred by the class and divided by one pooled standard deviation, so that beta has no unit; the paper
  does not say. ``projection.centre=false projection.scale=false`` leaves them as they are.
- The defaults of S, beta and tau are ours: the paper's grids were not seen.
- ``rotation=hadamard`` is ours: deterministic, equal variances exactly, and the one direction that a softmax over
  subclasses cannot see is the weakest. The paper's rotation is ``random``; here one draw for each class.
- The answer's logits are tau logsumexp_s(u / T) for outputs u and the student's temperature T: their softmax follows the
  teacher's at temperature 1. The cross-entropy with labels (alpha > 0; every published run has 0) takes the same logits.
- Rows without a label belong to the class that the teacher gives them.

Reference: loo2024lelp.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from sanov.core.answers import Answer
from sanov.core.errors import SanovWarning
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.data.distillation_sources import Columns
from sanov.learning import distil, predictions, subclasses, teachers
from sanov.learning.distil import Validation
from sanov.learning.students import Fitted, Student
from sanov.learning.training import Training
from sanov.systems.lelp.projection import ClassReport, Largest, Projection, Rotation, largest_subclasses, project

__all__ = [
    "ClassReport",
    "Config",
    "Fitted",
    "Largest",
    "Projection",
    "apply",
    "find_subclasses",
    "fit",
    "largest_subclasses",
    "most_subclasses",
    "project",
    "read",
]

MANY = 20  # classes above which logits alone carry structure


class Projecting(Options):
    """How the projections are found, beyond what is usually tuned."""

    center_head: bool = option(
        False, "Take out the differences of the head's columns alone: all that changes a softmax.", source="choice"
    )
    directions: Literal["principal", "random"] = option(
        "principal", "Directions that subclasses are read from; random ones are a control.", source="loo2024lelp"
    )
    class_sets: Literal["label", "teacher"] = option(
        "label",
        "What a row belongs to: its label (the teacher's class where it has none), or the teacher's class.",
        source="choice: not seen in the paper",
    )
    centre: bool = option(True, "Subtract the mean of the class.", source="choice")
    scale: bool = option(True, "Divide by the pooled standard deviation.", source="choice")
    seed: int | None = option(None, "Of rotations; none takes that of the run.", source="choice")


class Config(Options):
    """Options of `lelp`."""

    subclasses: int = option(
        4, "Subclasses S of a class; 1 is plain distillation.", source="choice; grid 2, 4, 8", ge=1
    )
    subclass_temperature: float = option(
        0.3, "beta, of the softmax over the subclasses of a class.", source="choice; grid 0.3, 0.5, 1, 2", gt=0
    )
    temperature: float = option(4.0, "tau, of the teacher's softmax.", source="choice; grid 1, 2, 4", gt=0)
    student_temperature: float = option(1.0, "Of the student's softmax.", source="choice", gt=0)
    alpha: float = option(
        0.0, "Share of the labels against the teacher.", source="loo2024lelp: 0 in all runs", ge=0, le=1
    )
    null_space: bool = option(True, "Take what the teacher's head reads out of the embeddings.", source="loo2024lelp")
    rotation: Rotation = option(
        "random",
        "What equalises the variances of a class's directions: see the page.",
        source="loo2024lelp; others: choice",
    )
    teacher: str = option(
        "", "Folder of a Hugging Face classifier; empty where the data hold embeddings.", source="choice"
    )
    projection: Projecting = Projecting()
    map: Columns = Columns()
    student: Student = Student()
    training: Training = Training()
    validation: Validation = Validation()


# -- subclasses -------------------------------------------------------------------------------------------------------


def find_subclasses(table: DistilTable, config: Config, *, seed: int = 0) -> Projection:
    """Find the subclasses of every class of a table.

    Parameters
    ----------
    table
        With the teacher's embeddings; its head unless ``null_space=false``; its logits, or labels.
    config
        The system's options.
    seed
        Of rotations, unless ``projection.seed`` is given.

    Raises
    ------
    InputError
        There are no embeddings, or no head; or see `project`.
    """
    embeddings = subclasses.embeddings_of(table)
    options = config.projection
    return project(
        embeddings,
        subclasses.class_of_rows(table, config.projection.class_sets),
        table.classes,
        subclasses=config.subclasses,
        head=_head(table, config),
        center_head=options.center_head,
        rotation=config.rotation,
        directions=options.directions,
        centre=options.centre,
        scale=options.scale,
        seed=seed if options.seed is None else options.seed,
    )


def most_subclasses(table: DistilTable, config: Config) -> Largest:
    """Return the largest ``subclasses`` that a table allows, and what stands in the way of more.

    Parameters
    ----------
    table, config
        As in `find_subclasses`.
    """
    embeddings, options = subclasses.embeddings_of(table), config.projection
    members = subclasses.class_of_rows(table, options.class_sets)
    head = _head(table, config)
    return largest_subclasses(embeddings, members, table.classes, head=head, center_head=options.center_head)


def _head(table: DistilTable, config: Config) -> Float64[np.ndarray, "width classes"] | None:
    return subclasses.head_of(table) if config.null_space else None


# -- the system -------------------------------------------------------------------------------------------------------


def read(sources: Sequence[Any], config: Config) -> DistilTable:
    """Read inputs, the teacher's logits, embeddings and head, and labels.

    Parameters
    ----------
    sources
        An ``.npz`` file with ``inputs``, ``embeddings``, ``head_weight``, ``head_bias``, and if need be ``logits`` and
        ``labels``; a table; or a table of inputs and one of the teacher's outputs.
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
    """Train a student on the teacher's subclasses.

    Parameters
    ----------
    data
        What `read` returned: the teacher's embeddings, head and logits. Labels are not needed.
    config
        The system's options.
    seed
        Of rotations, initial weights, the order of rows and the validation split.
    out
        Folder for weights, configuration, history and checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Returns
    -------
    The student. Its answers are of the C classes; `Fitted.subclass_log_probs` has the subclasses.

    Raises
    ------
    InputError
        The teacher's outputs are missing, or a class has too few rows or directions for S subclasses.
    """
    if len(data.classes) > MANY:
        text = f"{len(data.classes)} classes: logits carry structure there already; compare with `distillation`."
        warnings.warn(text, SanovWarning, stacklevel=2)
    found: dict[str, Any] = {}

    def divide(rows: DistilTable) -> DistilTable:
        if config.subclasses == 1:  # plain distillation, which needs no embeddings
            return subclasses.divided(rows, np.zeros((len(rows), len(rows.classes), 1)))
        projection = find_subclasses(rows, config, seed=seed)
        found["by_class"] = [report._asdict() for report in projection.report]
        found["notes"] = [report.sentence(config.subclasses) for report in projection.report]
        embeddings = subclasses.embeddings_of(rows)
        return subclasses.divided(rows, projection.log_conditional(embeddings, config.subclass_temperature))

    return subclasses.fit(
        data,
        divide,
        subclasses=config.subclasses,
        alpha=config.alpha,
        temperature=config.temperature,
        student_temperature=config.student_temperature,
        found=found,
        embeddings=config.subclasses > 1,
        seed=seed,
        out=out,
        resume=resume,
        **distil.settings(config, "lelp"),
    )


def apply(data: DistilTable, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Predict with a fitted student, and say what its subclasses are.

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
    student = predictions.load(fitted, system="lelp")
    data = teachers.with_teacher(data, config.teacher)
    return predictions.predict(data, student, system="lelp")
