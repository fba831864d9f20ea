"""What a study's files say about themselves: scores below chance, agreement that cannot be, unequal budgets.

Two models that are right on the shares aT and aS of the same items agree on at least max(0, aT + aS - 1) of them, and on
at most 1 - |aT - aS|. An agreement outside these bounds is of other models than the two that are named.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from jaxtyping import Float64

from sanov.data.studies import AVERAGE, StudyData
from sanov.systems.fidelity.study_rows import Rows

__all__ = [
    "below_chance",
    "below_chance_counts",
    "bound_counts",
    "budgets",
    "collapsed",
    "excess_agreement",
    "expected_agreement",
]

ROUNDING = 0.02  # points: accuracies are published to two decimals
COLLAPSE = 0.10  # share of cells below chance from which a method's scores measure format rather than skill
GROUP = {"baselines": "baseline", "untuned": "not trained", "unaware": "teacher unaware of the task"}


def below_chance(data: StudyData, chance: Mapping[str, float], margin: float) -> pl.DataFrame:
    """Return the cells that lie more than a margin (points) below what guessing gets on their task.

    Returns
    -------
    Columns group (method, or kind of model), temperature, teacher, student, task, score, chance; the lowest first.
    """
    cells = _all_cells(data, chance)
    return cells.filter(pl.col("score") < pl.col("chance") - margin).sort(pl.col("score") - pl.col("chance"))


def below_chance_counts(data: StudyData, chance: Mapping[str, float], margin: float) -> pl.DataFrame:
    """Return, for each group of cells at each temperature, how many there are and how many lie below chance."""
    cells = _all_cells(data, chance)
    below = (pl.col("score") < pl.col("chance") - margin).sum().cast(pl.Int64).alias("below chance")
    return cells.group_by("group", "temperature", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("cells"), below
    )


def _all_cells(data: StudyData, chance: Mapping[str, float]) -> pl.DataFrame:
    """Return the scores of tasks whose chance is known and not 0."""
    blank = pl.lit(None, pl.String)
    frames = [data.scores.with_columns(group=pl.col("method"))]
    frames.append(data.unaware.with_columns(group=pl.lit(GROUP["unaware"])))
    for name in ("baselines", "untuned"):
        models = getattr(data, name).rename({"model": "student"})
        temperature = pl.lit(None, pl.Float64)
        frames.append(models.with_columns(group=pl.lit(GROUP[name]), teacher=blank, temperature=temperature))
    columns = ("group", "temperature", "teacher", "student", "task", "score")
    cells = pl.concat([frame.select(columns) for frame in frames]).filter(pl.col("task") != AVERAGE)
    level = pl.col("task").replace_strict(chance, default=None, return_dtype=pl.Float64)
    return cells.with_columns(chance=level).filter(pl.col("chance") > 0)


def collapsed(rows: Rows, chance: Mapping[str, float], margin: float) -> list[str]:
    """Methods of which so many selected cells lie below chance that their mean gain measures the format of answers."""
    levels = np.array([chance.get(name, np.nan) for name in rows.columns])
    below = rows.score < levels - margin
    counted = np.isfinite(rows.score) & (levels > 0)
    found = []
    for name in rows.methods:
        mine = rows.of_method(name)
        if counted[mine].any() and below[mine].sum() > COLLAPSE * counted[mine].sum():
            found.append(name)
    return found


def bound_counts(data: StudyData) -> pl.DataFrame:
    """Return, for each kind of row of the agreement table and each student that it may describe, how many cells fit.

    Returns
    -------
    Columns kind (as the table says), student (the baseline, or a method), temperature, cells, within (the bounds), and
    misses, the pairs with a cell outside; empty without agreement.
    """
    own = data.baselines.group_by("model", "task").agg(pl.col("score").mean().alias("teacher score"))
    base = own.rename({"model": "student", "teacher score": "student score"}).with_columns(
        method=pl.lit("SFT"), temperature=pl.lit(None, pl.Float64)
    )
    key = ["teacher", "student", "method", "temperature", "task"]
    students = data.scores.group_by(key, maintain_order=True).agg(pl.col("score").mean().alias("student score"))
    pairs = data.agreement.join(own.rename({"model": "teacher"}), on=["teacher", "task"], maintain_order="left")
    of_baseline = pairs.filter(pl.col("kind") == "SFT").join(base, on=["student", "task"], maintain_order="left")
    of_students = pairs.filter(pl.col("kind") != "SFT").join(
        students, on=["teacher", "student", "task"], maintain_order="left"
    )
    of_students = of_students.filter((pl.col("kind") == "KD") | (pl.col("kind") == pl.col("method")))
    cells = pl.concat(
        [of_baseline.select(sorted(of_students.columns)), of_students.select(sorted(of_students.columns))]
    )
    low = (pl.col("teacher score") + pl.col("student score") - 100).clip(lower_bound=0) - ROUNDING
    high = 100 - (pl.col("teacher score") - pl.col("student score")).abs() + ROUNDING
    pair = pl.col("teacher") + " -> " + pl.col("student")
    cells = cells.with_columns(fits=pl.col("value").is_between(low, high), pair=pair)
    return cells.group_by("kind", pl.col("method").alias("student"), "temperature", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("cells"),
        pl.col("fits").sum().cast(pl.Int64).alias("within"),
        pl.col("pair").filter(~pl.col("fits")).unique(maintain_order=True).alias("misses"),
    )


def budgets(data: StudyData) -> pl.DataFrame:
    """Return how many temperatures each method was tried at: for the pair with fewest, and with most."""
    tried = data.scores.group_by("method", "teacher", "student", maintain_order=True).agg(
        pl.col("temperature").n_unique().cast(pl.Int64).alias("tried")
    )
    return tried.group_by("method", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("pairs"),
        pl.col("tried").min().alias("fewest temperatures"),
        pl.col("tried").max().alias("most temperatures"),
        (pl.col("tried") == pl.col("tried").max()).sum().cast(pl.Int64).alias("pairs with most"),
    )


def excess_agreement(rows: Rows, chance: Mapping[str, float]) -> Float64[np.ndarray, "rows columns"]:
    """Agreement (points) beyond that of two models of these scores that err independently; on average: the tasks' mean.

    Of a task whose chance is not known, wrong answers are taken to be never the same.
    """
    levels = np.array([chance.get(name, 0.0) for name in rows.columns])
    excess: Float64[np.ndarray, "rows columns"] = rows.agreement - expected_agreement(rows.teacher, rows.score, levels)
    if rows.columns[-1] == AVERAGE:
        excess[:, -1] = excess[:, :-1].mean(axis=1)
    return excess


def expected_agreement(
    teacher: Float64[np.ndarray, "*cells"],
    student: Float64[np.ndarray, "*cells"],
    chance: Float64[np.ndarray, " columns"] | float,
) -> Float64[np.ndarray, "*cells"]:
    """Agreement (percent) of two models that err independently: both right, or both wrong with the same answer.

    Parameters
    ----------
    teacher, student
        Percent right.
    chance
        What guessing gets: with K options 100 / K, and two wrong answers are the same once in K - 1; 0 where the answer
        is free, and two wrong answers are never the same.
    """
    right_t, right_s, level = teacher / 100, student / 100, chance / 100
    return 100 * (right_t * right_s + (1 - right_t) * (1 - right_s) * level / (1 - level))
