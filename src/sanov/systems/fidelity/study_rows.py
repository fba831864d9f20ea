"""The rows that a study's tests are of: one a teacher, student and method, with the gain on every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from sanov.core.errors import InputError
from sanov.data.studies import AVERAGE, StudyData
from sanov.systems.fidelity.study_options import Cluster, Selection

__all__ = ["Rows", "select", "temperatures"]

CELL = ("teacher", "student", "method")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a study, as arrays.

    Parameters
    ----------
    labels
        teacher, student, method of each row; with selection=all also its temperature.
    columns
        The tasks, then `AVERAGE` where there are several tasks.
    score, baseline, teacher
        Percent that the student, the same student without a teacher, and the teacher reach [rows, columns].
    gain
        Score minus baseline of the same seed, averaged over seeds [rows, columns].
    size
        Of the student; NaN where it is not known.
    agreement, similarity
        With the teacher [rows, columns]; NaN where there is none. On average: the mean over the tasks.
    label
        Which rows these are, in words: ``temperature 1``.
    notes
        What was left out.
    """

    labels: pl.DataFrame
    columns: tuple[str, ...]
    score: Float64[np.ndarray, "rows columns"]
    baseline: Float64[np.ndarray, "rows columns"]
    teacher: Float64[np.ndarray, "rows columns"]
    gain: Float64[np.ndarray, "rows columns"]
    size: Float64[np.ndarray, " rows"]
    agreement: Float64[np.ndarray, "rows columns"]
    similarity: Float64[np.ndarray, "rows columns"]
    label: str = ""
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return self.labels.height

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order of the table."""
        return [str(name) for name in self.labels["method"].unique(maintain_order=True)]

    @property
    def headline(self) -> str:
        """The column that the first sentence is about."""
        return self.columns[-1]

    @property
    def has_headline(self) -> Bool[np.ndarray, " rows"]:
        """Which rows have a gain on that column."""
        return np.asarray(np.isfinite(self.column(self.headline)))

    def column(self, name: str) -> Float64[np.ndarray, " rows"]:
        """Gains of one column."""
        return self.gain[:, self.columns.index(name)]

    def of_method(self, name: str) -> Bool[np.ndarray, " rows"]:
        """Rows of one method."""
        return (self.labels["method"] == name).to_numpy()

    def clusters(self, kind: Cluster) -> np.ndarray:
        """Name of the cluster of each row; the row itself for ``none``."""
        match kind:
            case "pair":
                return (self.labels["teacher"] + " -> " + self.labels["student"]).to_numpy()
            case "student" | "teacher":
                return self.labels[kind].to_numpy()
        return np.array([f"row {row}" for row in range(len(self))])

    def with_headline(self) -> Rows:
        """Return the rows that have the gain that the first sentence is about."""
        return self.take(self.has_headline)

    def take(self, kept: Bool[np.ndarray, " rows"], label: str = "") -> Rows:
        """Return some of the rows."""
        return Rows(
            labels=self.labels.filter(kept),
            columns=self.columns,
            score=self.score[kept],
            baseline=self.baseline[kept],
            teacher=self.teacher[kept],
            gain=self.gain[kept],
            size=self.size[kept],
            agreement=self.agreement[kept],
            similarity=self.similarity[kept],
            label=label or self.label,
            notes=self.notes,
        )


def temperatures(data: StudyData) -> list[float]:
    """Temperatures of the table, in order."""
    return sorted(data.scores["temperature"].drop_nulls().unique().to_list())


def select(data: StudyData, selection: Selection, temperature: float = 1.0) -> Rows:
    """Return the rows that a rule selects.

    Parameters
    ----------
    data
        The study.
    selection
        ``fixed``: of a student that was distilled at several temperatures, the row at `temperature`. ``best``: the best
        temperature of every column for itself, as the paper takes it. ``all``: each temperature is a row.
    temperature
        Of ``fixed``.

    Raises
    ------
    InputError
        A student has no row at the fixed temperature; the message lists the temperatures.
    """
    scores, notes = data.scores, _without_own_seed(data)
    known = temperatures(data)
    if selection == "fixed":
        _refuse_partly_named(scores)
    if selection == "fixed" and len(known) == 1:
        label = f"temperature {known[0]:g}, the only one"
    elif selection == "fixed" and known:
        scores, label = _at(scores, temperature, known), f"temperature {temperature:g}"
        if scores.height < data.scores.height:
            left = ", ".join(f"{value:g}" for value in known if value != temperature)
            notes.append(f"temperature {temperature:g} alone is compared, as all students have it; {left} left out")
    else:
        label = "" if not known else "the best temperature of each" if selection == "best" else "all temperatures"
    gains = _gains(scores, data.baselines)
    cell = [*CELL, "temperature"] if selection == "all" and len(known) > 1 else list(CELL)
    highest = pl.col("score").arg_max()  # of one row a cell but for selection=best
    best = gains.group_by([*cell, "task"], maintain_order=True).agg(pl.col("score", "baseline", "gain").get(highest))
    return _arrays(data, best, cell, label, notes)


def _refuse_partly_named(scores: pl.DataFrame) -> None:
    """Refuse a student with scores of one task both at a temperature and at none: no rule chooses between them."""
    empty = pl.col("temperature").is_null()
    both = scores.filter((empty.any() & (~empty).any()).over([*CELL, "task"]))
    if both.height:
        teacher, student, method = both.select(CELL).row(0)
        raise InputError(
            f"{teacher} -> {student} by {method} has scores both with a temperature and without one",
            where="study.selection",
            expected="a temperature in every row of a student, or in none",
            fix="fill in the temperatures, or pass study.selection=best or study.selection=all",
        )


def _without_own_seed(data: StudyData) -> list[str]:
    """Say how many scores are set against the mean of their baseline, as it has none of their seed."""
    base = data.baselines.select("seed", "task", student="model").unique()
    lost = data.scores.join(base, on=["student", "seed", "task"], how="anti").filter(pl.col("task") != AVERAGE).height
    text = "scores have no baseline of their seed, and are set against its mean over seeds"
    return [f"{lost} of {data.scores.filter(pl.col('task') != AVERAGE).height} {text}"] if lost else []


def _at(scores: pl.DataFrame, temperature: float, known: Sequence[float]) -> pl.DataFrame:
    kept = scores.filter(pl.col("temperature").is_null() | (pl.col("temperature") == temperature))
    lost = scores.select(CELL).unique(maintain_order=True).join(kept.select(CELL).unique(), on=list(CELL), how="anti")
    if lost.is_empty():
        return kept
    cells = scores.select(CELL).n_unique()
    first = " -> ".join(lost.row(0)[:2]) + f" by {lost.row(0)[2]}"
    told = ", ".join(f"{value:g}" for value in known)
    raise InputError(
        f"temperatures are mixed ({told}), and {lost.height} of {cells} students have none at {temperature:g} ({first})",
        where="study.selection",
        expected="a rule that gives every student a row",
        fix="pass study.selection=best, study.selection=all or study.temperature=...",
    )


def _gains(scores: pl.DataFrame, baselines: pl.DataFrame) -> pl.DataFrame:
    """Mean over seeds of score, of baseline and of their difference, the baseline being of the same seed if there is one."""
    base = baselines.rename({"model": "student", "score": "same"})
    mean = baselines.group_by("model", "task").agg(pl.col("score").mean().alias("mean")).rename({"model": "student"})
    joined = scores.join(base, on=["student", "seed", "task"], how="left", maintain_order="left").join(
        mean, on=["student", "task"], how="left", maintain_order="left"
    )
    joined = joined.with_columns(baseline=pl.col("same").fill_null(pl.col("mean")))
    joined = joined.with_columns(gain=pl.col("score") - pl.col("baseline"))
    key = [*CELL, "temperature", "task"]
    return joined.group_by(key, maintain_order=True).agg(pl.col("score", "baseline", "gain").mean())


def _arrays(data: StudyData, rows: pl.DataFrame, cell: Sequence[str], label: str, notes: Sequence[str]) -> Rows:
    columns = (*data.tasks, AVERAGE) if len(data.tasks) > 1 else data.tasks
    labels = rows.select(cell).unique(maintain_order=True)
    own = data.baselines.group_by("model", "task").agg(pl.col("score").mean().alias("value"))
    score, baseline, gain = (
        _spread(labels, rows.select(*cell, "task", value=name), columns, cell) for name in ("score", "baseline", "gain")
    )
    return Rows(
        labels=labels,
        columns=columns,
        score=score,
        baseline=baseline,
        teacher=_spread(labels, own.rename({"model": "teacher"}), columns, ["teacher"]),
        gain=gain,
        size=np.array([data.sizes.get(name, np.nan) for name in labels["student"]], dtype=np.float64),
        agreement=_pairwise(labels, data.agreement, columns),
        similarity=_pairwise(labels, data.similarity, columns),
        label=label,
        notes=tuple(notes),
    )


def _spread(labels: pl.DataFrame, cells: pl.DataFrame, columns: Sequence[str], key: Sequence[str]) -> np.ndarray:
    """Put tidy cells where the rows and columns are; NaN where there is none."""
    found: dict[tuple[object, ...], float] = {
        tuple(row[:-1]): row[-1] for row in cells.select(*key, "task", "value").iter_rows()
    }
    return np.array(
        [[found.get((*row, column), np.nan) for column in columns] for row in labels.select(key).iter_rows()],
        dtype=np.float64,
    ).reshape(labels.height, len(columns))


def _pairwise(labels: pl.DataFrame, pairs: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return what a table of pairs says of each row: of its method where it names that, else of distilled students."""
    found: Mapping[tuple[str, ...], float] = {tuple(row[:-1]): row[-1] for row in pairs.iter_rows()}

    def value(teacher: str, student: str, method: str, task: str) -> float:
        return found.get((teacher, student, method, task), found.get((teacher, student, "KD", task), np.nan))

    names = labels.select(CELL).iter_rows()
    cells = [[value(teacher, student, method, column) for column in columns] for teacher, student, method in names]
    table = np.array(cells, dtype=np.float64).reshape(labels.height, len(columns))
    if AVERAGE in columns:
        table[:, -1] = np.where(np.isnan(table[:, -1]), table[:, :-1].mean(axis=1), table[:, -1])
    return table
