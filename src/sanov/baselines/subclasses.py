r"""Distillation of subclasses that come from elsewhere than a teacher's projections: what `lelp` is compared with.

The objective is that of `lelp`, L = alpha CE(label) + (1 - alpha) KL(p_SC || q_SC) with p_{c,s} = p_c p_{s|c}; the
division p_{s|c} of each class is one of::

    kmeans      the nearest of S centres, found among the class's own embeddings
    retrained   a teacher with S outputs for each class, trained anew on its embeddings or inputs (subclass distillation)
    given       known labels of subclasses (`map.subclass`): an upper reference, for its own class; others evenly
    random      any subclass for each row and class: a negative control

A retrained teacher learns CE of its summed probabilities plus ``contrast`` times::

    mean_i log sum_j exp(v_i' v_j / 1) - 1 - log n      v = its outputs in a batch, centred and scaled to length 1

which is small where subclasses differ from row to row; its softmax over all outputs, at tau, is then the target.

Deviations from the paper
-------------------------
The retrained teacher is a network on the embeddings (``retrained.on=embeddings``), so that a large encoder is not
trained again, or on the inputs (``retrained.on=inputs``).

Reference: muller2020subclass; k-means: loo2024lelp, baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sanov.core.answers import Answer
from sanov.core.errors import InputError, require
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.data.distillation_sources import Columns
from sanov.learning import distil, predictions, subclasses, teachers
from sanov.learning.components import Component, label_loss
from sanov.learning.distil import Validation
from sanov.learning.readout import Readout, on_classes
from sanov.learning.students import Fitted, Student
from sanov.learning.training import Training
from sanov.subspaces import null_space_projector

__all__ = [
    "Config",
    "Fitted",
    "apply",
    "contrast",
    "fit",
    "given_division",
    "kmeans_division",
    "random_division",
    "read",
    "retrained_division",
]

OTHER_WEIGHTS = 20_000  # added to the seed of a retrained teacher: no student begins with its weights
Partition = Literal["kmeans", "retrained", "given", "random"]


class Retrained(Options):
    """The teacher that `retrained` trains: a network of one hidden layer."""

    on: Literal["embeddings", "inputs"] = option("embeddings", "What it sees.", source="choice")
    contrast: float = option(1.0, "Weight of the term that spreads its outputs.", source="choice", ge=0)
    width: int = option(256, "Units of its hidden layer.", source="choice", ge=1)
    epochs: int = option(30, "Passes over the rows.", source="choice", ge=1)
    learning_rate: float = option(3e-3, "Of AdamW, at batches of 32 rows.", source="choice", gt=0)


class Config(Options):
    """Options of `subclasses`."""

    partition: Partition = option("kmeans", "What divides the classes.", source="loo2024lelp, baselines")
    subclasses: int = option(4, "Subclasses S of a class; those of `given` are counted.", source="choice", ge=1)
    temperature: float = option(4.0, "tau, of the teacher's softmax.", source="choice", gt=0)
    student_temperature: float = option(1.0, "Of the student's softmax.", source="choice", gt=0)
    alpha: float = option(0.0, "Share of the labels against the teacher.", source="loo2024lelp: 0", ge=0, le=1)
    null_space: bool = option(
        False, "kmeans: take what the teacher's head reads out of the embeddings first.", source="choice"
    )
    teacher: str = option(
        "", "Folder of a Hugging Face classifier; empty where the data hold embeddings.", source="choice"
    )
    retrained: Retrained = Retrained()
    map: Columns = Columns()
    student: Student = Student()
    training: Training = Training()
    validation: Validation = Validation()


# -- divisions --------------------------------------------------------------------------------------------------------

Division = Float64[np.ndarray, "rows classes subclasses"]


def random_division(rows: int, classes: int, subclasses: int, *, seed: int) -> Division:
    """Return log p_{s|c} of subclasses drawn at random, for each row and class."""
    drawn = np.random.default_rng(seed).integers(subclasses, size=(rows, classes))
    return _one_hot(drawn, subclasses)


def given_division(
    members: Int64[np.ndarray, " rows"], fine: Int64[np.ndarray, " rows"], classes: int
) -> Float64[np.ndarray, "rows classes subclasses"]:
    """Return log p_{s|c} of known subclasses: certain for a row's own class, even for the others.

    Parameters
    ----------
    members
        Class of each row.
    fine
        Number of each row's subclass, among all.
    classes
        Number of classes; the class of most subclasses decides how many there are.
    """
    own = [np.unique(fine[members == c]) for c in range(classes)]
    most = max(map(len, own))
    even = np.stack([np.arange(most) < len(found) for found in own]) / np.maximum([[len(f)] for f in own], 1)
    share = np.repeat(even[None], len(members), axis=0)
    place = np.array([np.searchsorted(own[c], f) for c, f in zip(members, fine, strict=True)], dtype=np.int64)
    share[np.arange(len(members)), members] = np.eye(most)[place]
    return _log(share)


def kmeans_division(
    embeddings: Float[np.ndarray, "rows width"],
    members: Int64[np.ndarray, " rows"],
    classes: int,
    subclasses: int,
    *,
    head: Float[np.ndarray, "width classes"] | None = None,
    seed: int = 0,
) -> Division:
    """Return log p_{s|c} of the nearest of the S centres that k-means finds in each class.

    Parameters
    ----------
    embeddings
        Of the teacher.
    members
        Class of each row.
    classes, subclasses
        C and S.
    head
        Weight of the teacher's last map, whose directions are taken out; None leaves them in.
    seed
        Of the starts.

    Raises
    ------
    InputError
        A class has fewer than S rows.
    MissingExtra
        Without scikit-learn.
    """
    cluster = require("sklearn.cluster", "tabular")
    values = np.array(embeddings, dtype=np.float64)
    if head is not None:
        values = values @ null_space_projector(torch.from_numpy(np.array(head))).numpy()
    nearest = np.empty((len(values), classes), dtype=np.int64)
    for c in range(classes):
        own = values[members == c]
        if len(own) < subclasses:
            raise InputError(f"class {c} has {len(own)} rows", where="kmeans", expected=f"at least {subclasses}")
        found = cluster.KMeans(subclasses, n_init=4, random_state=seed).fit(own)
        nearest[:, c] = found.predict(values)
    return _one_hot(nearest, subclasses)


def _one_hot(places: np.ndarray, size: int) -> np.ndarray:
    return _log(np.eye(size)[places])


def _log(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(shares))


# -- a teacher trained anew -------------------------------------------------------------------------------------------


def contrast(outputs: Float[Tensor, "rows outputs"]) -> Float[Tensor, ""]:
    """Return how much alike the rows of a batch are: mean_i log(sum_j exp(v_i' v_j) / (n e)), at most 0.

    Parameters
    ----------
    outputs
        Of all subclasses, before any softmax.

    Reference
    ---------
    muller2020subclass, section 2.
    """
    centred = outputs - outputs.mean(dim=0)
    v = torch.nn.functional.normalize(centred, dim=-1)
    value: Tensor = (torch.logsumexp(v @ v.T, dim=-1) - 1 - math.log(len(v))).mean()
    return value


def retrained_division(
    table: DistilTable, config: Config, *, seed: int
) -> tuple[Float64[np.ndarray, "rows classes"], Division]:
    """Train a teacher of C * S outputs on labels, and return its class logits and log p_{s|c}.

    Parameters
    ----------
    table
        Rows with labels.
    config
        Of them ``subclasses``, ``temperature`` and the group ``retrained``.
    seed
        Of the teacher.

    Returns
    -------
    Logits whose softmax at ``temperature`` is that of the teacher's outputs at ``temperature`` summed over subclasses, and
    the division within classes at that temperature.
    """
    options = config.retrained
    if table.n_labelled < len(table):
        found = f"{len(table) - table.n_labelled} of {len(table)} rows have no label"
        raise InputError(found, where=table.name, expected="a label in each row, which a teacher is trained on anew")
    inputs = table.embeddings if options.on == "embeddings" else table.inputs
    if inputs is None:
        raise InputError("there are no teacher embeddings", where=table.name, fix="set retrained.on=inputs")
    readout = Readout(len(table.classes), config.subclasses)
    spread = Component(
        "contrast", lambda outputs, rows: len(outputs) * contrast(outputs), options.contrast, whole_batch="own"
    )
    own = replace(table, inputs=inputs, features=() if options.on == "embeddings" else table.features)
    teacher = distil.fit(
        own,
        [on_classes(label_loss(), readout), spread],
        readout=readout,
        student=Student(width=options.width),
        training=Training(epochs=options.epochs, batch_size=32, learning_rate=options.learning_rate),
        validation=Validation(share=0.0),
        seed=OTHER_WEIGHTS + seed,
        diagnose=False,
    )
    log_p = torch.from_numpy(teacher.subclass_log_probs(own)) / config.temperature
    logits = config.temperature * torch.logsumexp(log_p, dim=-1)
    return logits.numpy(), torch.log_softmax(log_p, dim=-1).numpy()


# -- the baseline -----------------------------------------------------------------------------------------------------


def divide(table: DistilTable, config: Config, *, seed: int) -> DistilTable:
    """Return the rows to train on with a division of the classes that is found among them.

    Parameters
    ----------
    table
        Rows with what the partition needs.
    config
        The options.
    seed
        Of clusters, draws, or a teacher trained anew.
    """
    classes, size = len(table.classes), config.subclasses
    if config.partition == "random":
        return subclasses.divided(table, random_division(len(table), classes, size, seed=seed))
    if config.partition == "retrained":
        logits, division = retrained_division(table, config, seed=seed)
        return subclasses.divided(replace(table, logits=logits), division)
    embeddings, members = subclasses.embeddings_of(table), subclasses.class_of_rows(table)
    head = subclasses.head_of(table) if config.null_space else None
    return subclasses.divided(table, kmeans_division(embeddings, members, classes, size, head=head, seed=seed))


def _known(table: DistilTable) -> np.ndarray:
    """Number of each row's known subclass, in the order of their names."""
    if table.subclasses is None:
        raise InputError("there is no column of subclasses", where=table.name, fix="name it by map.subclass=NAME")
    absent = [row for row, name in enumerate(table.subclasses, start=1) if name is None]
    if absent:
        found = f"the subclass is missing ({len(absent)} in all)"
        raise InputError(found, where=f"{table.name}, row {absent[0]}", fix="leave out those rows")
    names = {name: number for number, name in enumerate(sorted({str(name) for name in table.subclasses}))}
    return np.array([names[str(name)] for name in table.subclasses], dtype=np.int64)


def read(sources: Sequence[Any], config: Config) -> DistilTable:
    """Read inputs, the teacher's outputs, labels and known subclasses.

    Parameters
    ----------
    sources
        As for `lelp`.
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
    """Train a student on a division of the teacher's classes.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options.
    seed
        Of the division, the initial weights, the order of rows and the validation split: as `lelp` for the same seed.
    out
        Folder for weights, configuration, history and checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        What the partition needs is missing.
    """
    size, given = config.subclasses, config.partition == "given"
    if given:  # of all rows, before some are held out: the number of outputs must not depend on which
        data = teachers.with_teacher(data, config.teacher) if data.n_labelled < len(data) else data
        division = given_division(subclasses.class_of_rows(data), _known(data), len(data.classes))
        data, size = subclasses.divided(data, division), division.shape[2]
    return subclasses.fit(
        data,
        (lambda rows: rows) if given else lambda rows: divide(rows, config, seed=seed),
        subclasses=size,
        alpha=config.alpha,
        temperature=config.temperature,
        student_temperature=config.student_temperature,
        embeddings=config.partition == "kmeans"
        or (config.partition == "retrained" and config.retrained.on == "embeddings"),
        seed=seed,
        out=out,
        resume=resume,
        **distil.settings(config, "subclasses"),
    )


def apply(data: DistilTable, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Predict with a fitted student.

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
    student = predictions.load(fitted, system="subclasses")
    return predictions.predict(teachers.with_teacher(data, config.teacher), student, system="subclasses")
