"""Data and teachers of the claim on `sinkd`: three data sets, their splits, and a teacher each.

Test rows are fixed. The other rows of the image sets are split anew for every seed, into those of training and of
validation, and each seed has its own teacher; SST-2 keeps its published split and one fine-tuned teacher.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import log_softmax, softmax

from sanov.data import images, text
from sanov.data.distillation import DistilTable
from sanov.data.splits import stratified
from sanov.experiments.text_teachers import fine_tune

if TYPE_CHECKING:
    from sanov.learning.students import Fitted

__all__ = [
    "PARTS",
    "Parts",
    "accuracy",
    "digests",
    "distance_at_start",
    "log_loss",
    "make_teacher",
    "parts",
    "with_teacher",
]

PARTS = ("train", "validation", "test")
TEST_SEED = 20_240_217  # of the fixed split into test rows and others


class Parts(NamedTuple):
    """A data set, split."""

    train: DistilTable
    validation: DistilTable
    test: DistilTable


def digests(names: tuple[str, ...]) -> dict[str, str]:
    """Return the digest of each data set; the readers refuse files of another."""
    sst2 = "+".join(text.DIGESTS[f"sst2_{part}.tsv"][:16] for part in ("train", "dev", "test"))
    known = {"digits": images.DIGESTS["digits"], "mnist": images.DIGESTS["mnist"], "sst2": sst2}
    return {name: known[name] for name in names}


def parts(name: str, seed: int, sizes: Mapping[str, int]) -> Parts:
    """Return a data set's training, validation and test rows.

    Parameters
    ----------
    name
        ``digits``, ``mnist`` or ``sst2``.
    seed
        Of the split into training and validation; SST-2 has its own.
    sizes
        Rows of each part (images only).
    """
    if name == "sst2":
        return Parts(*(_whole(f"sst2_{part}") for part in ("train", "dev", "test")))
    table = _whole(name)
    labels = table.labels
    assert labels is not None
    test, pool = stratified(labels, (sizes["test"], len(labels) - sizes["test"]), TEST_SEED)
    train, validation = stratified(labels[pool], (sizes["train"], sizes["validation"]), seed)
    return Parts(table.take(pool[train]), table.take(pool[validation]), table.take(test))


@functools.cache
def _whole(name: str) -> DistilTable:
    """Read a table once a process: it is the same for hundreds of cells."""
    if name.startswith("sst2"):
        return text.sst2(name.removeprefix("sst2_"))
    return images.digits() if name == "digits" else images.mnist()


# -- teachers ---------------------------------------------------------------------------------------------------------


def make_teacher(name: str, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Train a teacher on the training rows and leave its logits of all rows in `folder`.

    Parameters
    ----------
    name, seed
        Of the data set and its split, also of the teacher's weights.
    settings
        Those of the preset.
    folder
        Where ``logits.npz`` is written.

    Returns
    -------
    Accuracy on validation and test rows, in percentage points. Nothing is chosen by either.
    """
    split = parts(name, seed, settings["sizes"].get(name, {}))
    make = _fine_tuned if name == "sst2" else _wide_net
    logits = make(split, seed, settings["teacher"][name], folder)
    np.savez(folder / "logits.npz", **logits)  # type: ignore[arg-type]
    return {part: accuracy(logits[part], getattr(split, part)) for part in ("validation", "test")}


def with_teacher(split: Parts, folder: Path) -> Parts:
    """Return the parts with the logits that `make_teacher` left."""
    from dataclasses import replace

    with np.load(folder / "logits.npz") as logits:
        return Parts(*(replace(table, logits=logits[part]) for part, table in zip(PARTS, split, strict=True)))


def accuracy(logits: Float64[np.ndarray, "rows classes"], table: DistilTable) -> float:
    """Share of rows whose label has the largest logit, in percentage points."""
    return 100.0 * float((logits.argmax(axis=1) == table.labels).mean())


def log_loss(logits: Float64[np.ndarray, "rows classes"], table: DistilTable) -> float:
    """Mean log loss of the labels, in nats."""
    log_p = log_softmax(logits, axis=1)
    return -float(log_p[np.arange(len(table)), table.labels].mean())


def distance_at_start(student: Fitted, table: DistilTable, seed: int) -> Float64[np.ndarray, " rows"]:
    """Total variation between the teacher's outputs and those of the untrained student, for each row.

    Parameters
    ----------
    student
        Any student of the same options and seed: the initial weights follow from the seed.
    table
        Rows with the teacher's logits.
    seed
        Of the student.
    """
    from sanov.learning.students import build, outputs

    assert table.logits is not None
    start = build(student.encoder, student.student, len(table.classes), seed=seed)
    at_start = outputs(start, student.encoder.encode(table), len(table)).double().numpy()
    gap: Float64[np.ndarray, "rows classes"] = softmax(at_start, axis=1) - softmax(table.logits, axis=1)
    return np.asarray(0.5 * np.abs(gap).sum(axis=1))


def _wide_net(split: Parts, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, np.ndarray]:
    from sanov.learning import distil
    from sanov.learning.students import Student
    from sanov.learning.training import Training

    teacher = distil.fit(
        split.train,
        [distil.label_loss()],
        training=Training(**settings["training"]),
        student=Student(**settings["net"]),
        validation=distil.Validation(share=0.0, select="last"),
        seed=10_000 + seed,  # no student starts from these weights
    )
    return {part: teacher.logits(table) for part, table in zip(PARTS, split, strict=True)}


def _fine_tuned(split: Parts, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, np.ndarray]:
    from sanov.nets.foreign import classifier_logits

    fine_tune(split.train, settings, folder / "model", seed=seed)
    length = settings["max_length"]
    return {
        part: classifier_logits(folder / "model", list(map(str, table.inputs)), max_length=length)
        for part, table in zip(PARTS, split, strict=True)
    }
