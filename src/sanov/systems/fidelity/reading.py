"""From files, tables or models to one set of examples with the answers of each system, and every check of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data.predictions import Predictions, join
from sanov.systems.fidelity.config import Config
from sanov.systems.fidelity.extraction import extract
from sanov.systems.fidelity.models import read_models
from sanov.systems.fidelity.rationales import scorer
from sanov.systems.fidelity.sources import PARTS, Opened, listed, open_sources, tell_apart
from sanov.systems.fidelity.vocabularies import check_labels, doubts, short

__all__ = ["Data", "read"]


@dataclass(frozen=True, eq=False)
class Data:
    """What the report is made of.

    Parameters
    ----------
    systems
        Teacher, student and, where there is one, baseline.
    answers
        Code of the answer of each system to each example, -1 where there is none.
    vocabulary
        The answer of each code.
    possible
        Number of possible answers.
    labels
        Code of the right answer; None where there are no labels.
    tasks
        Name of the task of each example.
    probabilities
        Of each system, or None; the classes are those of ``classes``.
    rationales
        Of each system, or None.
    ids
        Of the examples.
    origins
        One row a system: where it was read, and how many examples have no answer.
    notes
        What was dropped or assumed.
    digest
        Of all of this.
    source
        What the user handed over first.
    """

    systems: tuple[str, ...]
    answers: Int64[np.ndarray, "_systems _rows"]
    vocabulary: pl.Series
    possible: int
    labels: Int64[np.ndarray, " _rows"] | None = None
    tasks: pl.Series | None = None
    probabilities: tuple[Float64[np.ndarray, "_rows _classes"] | None, ...] = ()
    classes: tuple[str, ...] = ()
    rationales: tuple[pl.Series | None, ...] = ()
    ids: pl.Series | None = None
    origins: pl.DataFrame = field(default_factory=pl.DataFrame)
    notes: tuple[str, ...] = ()
    digest: str = ""
    source: Any = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Number of examples."""
        return int(self.answers.shape[1])


def read(sources: Sequence[Any], config: Config, opened: Sequence[Opened] | None = None) -> Data:
    """Read predictions of a teacher and a student, join them, and take the answers out of them.

    Parameters
    ----------
    sources
        The teacher's table and the student's, then the baseline's or one of labels; or one wide table; or, with
        ``models``, the inputs of the models.
    config
        The options.
    opened
        The sources as tables, where they have been read.

    Raises
    ------
    InputError
        Anything that is wrong with the files; the message names the file and the row.
    MissingExtra
        There are rationales, and sacrebleu is not installed.
    """
    if any((config.models.teacher, config.models.student, config.models.baseline)):
        made, assumed = read_models(sources, config)
        parts = {part: given.plain() for part, given in made.items()}
    else:
        tables = open_sources(sources, config) if opened is None else opened
        parts, assumed = tell_apart(tables, config)
    parts, extracted = _with_answers(parts, config)
    joined, paired = join(parts)
    if all(joined[part].rationales is not None for part in ("teacher", "student")):
        scorer()  # what is missing is told before any work
    return _assembled(joined, config, (*assumed, *paired, *extracted), sources[0] if sources else None)


# -- answers ----------------------------------------------------------------------------------------------------------


def _with_answers(parts: Mapping[str, Predictions], config: Config) -> tuple[dict[str, Predictions], tuple[str, ...]]:
    """Take the answers out of the texts, and refuse a label that is none."""
    found, lost = {}, []
    for part, given in parts.items():
        answers = None if given.answers is None else extract(given.answers, config.answers, config.names)
        labels = None if given.labels is None else _labels(given.labels, given.name, config)
        if answers is not None and given.answers is not None:
            lost += _lost(part, given.name, given.answers, answers)
        found[part] = replace(given, answers=answers, labels=labels)
    what = f"are none of {listed(config.options)}" if config.options else f"hold no {config.answers}"
    return found, (f"answers that {what} count as no answer: {'; '.join(lost)}",) if lost else ()


def _labels(cells: pl.Series, name: str, config: Config) -> pl.Series:
    labels = extract(cells, config.answers, config.names)
    bad = labels.is_null() & cells.is_not_null()
    if bad.any():
        row = int(bad.arg_true()[0])
        expected = f"one of {listed(config.options)}" if config.options else f"a text that holds a {config.answers}"
        found = f"the label is {short(cells[row])}"
        raise InputError(found, where=f"{name}, row {row + 1}, column {cells.name!r}", expected=expected)
    return labels


def _lost(part: str, name: str, given: pl.Series, answers: pl.Series) -> list[str]:
    """Say how many answers were given and yet not found, with the first."""
    lost = answers.is_null() & given.is_not_null()
    if not lost.any():
        return []
    row = int(lost.arg_true()[0])
    return [f"{lost.sum():,} of {part} ({short(given[row])} in {name}, row {row + 1})"]


# -- one set of examples ----------------------------------------------------------------------------------------------


def _assembled(joined: Mapping[str, Predictions], config: Config, notes: Sequence[str], source: Any) -> Data:
    systems = tuple(part for part in PARTS if part in joined)
    labels, filled = _common_labels(list(joined.values()))
    tasks = next((part.tasks for part in joined.values() if part.tasks is not None), None)
    told = [*notes, *filled]
    parts = [joined[system] for system in systems]
    ids = next((part.ids for part in joined.values() if part.ids is not None), None)
    if labels is not None and labels.null_count():
        kept = labels.is_not_null().arg_true().to_numpy()
        told.append(f"dropped: {labels.null_count():,} examples without a label")
        parts = [part.take(kept) for part in parts]
        labels, tasks, ids = (None if cells is None else cells.gather(kept) for cells in (labels, tasks, ids))
    codes, vocabulary = _encoded([*(part.answers for part in parts), *([] if labels is None else [labels])])
    answers, right = codes[: len(parts)], None if labels is None else codes[-1]
    if right is not None:
        told += check_labels(systems, [part.name for part in parts], answers, right, vocabulary, config)
    probabilities, classes = _aligned(parts)
    data = Data(
        systems=systems,
        answers=answers,
        vocabulary=vocabulary,
        possible=len(config.options) or len(set(classes) | set(vocabulary)) or 2,
        labels=right,
        tasks=None if tasks is None else tasks.fill_null("no task"),
        probabilities=probabilities,
        classes=classes,
        rationales=tuple(part.rationales for part in parts),
        ids=ids,
        origins=_origins(systems, parts, answers),
        notes=(*told, *doubts(systems, answers, right, vocabulary)),
        source=source,
    )
    return replace(data, digest=_digest(data))


def _common_labels(parts: Sequence[Predictions]) -> tuple[pl.Series | None, list[str]]:
    """Return each label from the first source that has it, where all that have it agree; and which were filled in."""
    found: list[tuple[Predictions, pl.Series]] = [(part, part.labels) for part in parts if part.labels is not None]
    if not found:
        return None, []
    labels, told = found[0][1], []
    for place, (part, more) in enumerate(found[1:], start=1):
        differ = (labels != more).fill_null(False)
        if differ.any():
            raise _labels_differ(found[:place], part.name, labels, more)
        filled = int((labels.is_null() & more.is_not_null()).sum())
        if filled:
            lacking = " and ".join(before.name for before, _ in found[:place])
            told.append(f"the labels of {filled:,} examples are those of {part.name}: {lacking} has none for them")
        labels = labels.zip_with(labels.is_not_null(), more)
    if labels.null_count() == len(labels):
        names = " and ".join(dict.fromkeys(part.name for part, _ in found))
        raise InputError("every label is missing", where=names, fix="fill the column, or leave it out")
    return labels, told


def _labels_differ(
    before: Sequence[tuple[Predictions, pl.Series]], name: str, labels: pl.Series, more: pl.Series
) -> InputError:
    differ = (labels != more).fill_null(False)
    row = int(differ.arg_true()[0])
    first = next(part for part, cells in before if cells[row] is not None)
    which = f"id {first.ids[row]!r}" if first.ids is not None else f"row {row + 1}"
    told = f"is {labels[row]!r} here and {more[row]!r} in {name} ({differ.sum():,} differ)"
    return InputError(f"the label of {which} {told}", where=first.name, fix="keep the labels in one file")


def _encoded(columns: Sequence[pl.Series | None]) -> tuple[Int64[np.ndarray, "columns rows"], pl.Series]:
    """Return the code of each text, -1 where it is null, and the texts in their order."""
    texts = [cells.alias("") for cells in columns if cells is not None]
    vocabulary = pl.concat(texts).unique().drop_nulls().sort()
    if vocabulary.is_empty():
        vocabulary = pl.Series([""], dtype=pl.String)
    kind = pl.Enum(vocabulary)
    codes = [cells.cast(kind).to_physical().cast(pl.Int64).fill_null(-1).to_numpy() for cells in texts]
    return np.stack(codes), vocabulary


def _aligned(parts: Sequence[Predictions]) -> tuple[tuple[np.ndarray | None, ...], tuple[str, ...]]:
    """Return all probabilities in one order of classes."""
    given = [part for part in parts if part.probabilities is not None]
    if not given:
        return tuple(None for _ in parts), ()
    classes = given[0].classes
    for part in given[1:]:
        if set(part.classes) != set(classes):
            found = f"the probabilities are of the classes {listed(part.classes)}"
            raise InputError(found, where=part.name, expected=f"those of {given[0].name}: {listed(classes)}")
    return tuple(_in_order(part, classes) for part in parts), classes


def _in_order(part: Predictions, classes: tuple[str, ...]) -> np.ndarray | None:
    if part.probabilities is None or part.classes == classes:
        return part.probabilities
    return part.probabilities[:, [part.classes.index(name) for name in classes]]


def _origins(systems: Sequence[str], parts: Sequence[Predictions], answers: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({
        "system": list(systems),
        "read from": [part.name for part in parts],
        "examples": [part.rows for part in parts],
        "without an answer": [int((row == -1).sum()) for row in answers[: len(parts)]],
        "probabilities": [part.probabilities is not None for part in parts],
        "rationales": [part.rationales is not None for part in parts],
    })  # fmt: skip


def _digest(data: Data) -> str:
    arrays = [data.answers, data.labels, *data.probabilities]
    texts = [data.tasks, *data.rationales]
    parts = [None if array is None else files.digest(np.ascontiguousarray(array).tobytes()) for array in arrays]
    parts += [None if cells is None else files.digest(cells.to_list()) for cells in texts]
    return files.digest([*parts, data.vocabulary.to_list(), list(data.classes), list(data.systems), data.rows])
