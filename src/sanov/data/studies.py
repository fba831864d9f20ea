"""A distillation study: scores of students by teacher, method, temperature and task, beside those without a teacher.

Several tables make one study: scores in one or more files, long or wide, and tables of how often teacher and student
agree, and of how alike their texts are. All checks of the user's input are here; nothing is computed from it.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sanov.core import files
from sanov.core.errors import InputError
from sanov.core.frames import fingerprint
from sanov.data.study_pairs import paired
from sanov.data.study_scale import percent, refuse_fractions, without_gaps
from sanov.data.study_tables import (
    AVERAGE,
    NO_TEACHER,
    Columns,
    Kind,
    Source,
    bookkeeping,
    few,
    kind_of,
    named_tasks,
    open_pairs,
    open_source,
    tidy,
)  # fmt: skip

__all__ = ["AVERAGE", "Columns", "StudyData", "chance_levels", "read", "size_of"]

UNTUNED = ("basemodel", "base", "untuned", "zero-shot")  # methods of a model that was neither tuned nor distilled
UNAWARE = r"base_?teacher|unaware"  # in a method's name: the teacher did not know the task
SIZE = re.compile(r"(\d+(?:\.\d+)?)([bmk]?)", re.IGNORECASE)
UNITS = {"b": 1.0, "m": 1e-3, "k": 1e-6, "": 1.0}  # in billions
KEY = ("teacher", "student", "method", "temperature", "seed", "task")
AVERAGE_ERROR = 0.05  # points by which a given average may differ from the mean of the tasks: rounding


@dataclass(frozen=True, eq=False)
class StudyData:
    """What a study's tests need. Every frame is tidy: a row a score.

    Parameters
    ----------
    scores
        Students of a teacher: teacher, student, method, temperature (null where none is given), seed, task, score.
    baselines
        Models trained on labels alone, students and teachers: model, seed, task, score.
    untuned
        Models that were not trained: model, task, score.
    unaware
        Students of a teacher that was not trained on the task: as `scores`.
    agreement, similarity
        teacher, student, kind, task, value; empty where there is none. The kind is ``SFT`` for the baseline, ``KD`` for
        a student by whatever method, or a method's name.
    sizes
        Size of each model, where it has one.
    tasks
        Names of the tasks, in their order; `AVERAGE` is none of them.
    notes
        What was left out or assumed.
    digest
        SHA-256 of the input.
    source
        The caller's first table.
    """

    scores: pl.DataFrame
    baselines: pl.DataFrame
    untuned: pl.DataFrame
    unaware: pl.DataFrame
    agreement: pl.DataFrame
    similarity: pl.DataFrame
    sizes: Mapping[str, float]
    tasks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    digest: str = ""
    source: Any = None


PAIRED: tuple[Kind, ...] = ("agreement", "similarity")


def read(
    sources: Sequence[Any],
    columns: Columns | None = None,
    *,
    baseline: str = "SFT",
    scale: str = "auto",
    tasks: Sequence[str] = (),
    agreement: str | None = None,
    similarity: str | None = None,
) -> StudyData:
    """Read the tables of one study.

    Parameters
    ----------
    sources
        Data frames or paths, in any order; what each holds is told by its columns.
    columns
        The user's names of columns.
    baseline
        Method of the rows that were trained on labels alone.
    scale
        ``percent`` (0 to 100), ``fraction`` (0 to 1), or ``auto``: percent, of which one is above 1.
    tasks
        Names of the tasks, if they are not all columns (all tasks of a long table) but bookkeeping; case does not count.
    agreement, similarity
        Paths of a table of pairs, where its name does not say what it is.

    Raises
    ------
    InputError
        With the file and row at fault.
    """
    columns = columns or Columns()
    tables = [(kind_of(table, baseline), table) for table in (open_source(each, columns) for each in sources)]
    named: list[tuple[Kind, str | None]] = [("agreement", agreement), ("similarity", similarity)]
    tables += [(kind, open_pairs(path, columns, baseline)) for kind, path in named if path]
    _refuse_unknown_tasks(tasks, [name for kind, table in tables if kind not in PAIRED for name in named_tasks(table)])
    parts = [(kind, tidy(table, kind, tasks)) for kind, table in tables]
    rows, notes = _scored([rows for kind, rows in parts if kind not in PAIRED], scale, baseline)
    notes += _ignored([table for kind, table in tables if kind == "wide"], tasks)
    compared = rows.filter(pl.col("role") == "distilled")["task"].unique(maintain_order=True)
    scored = tuple(task for task in compared if task != AVERAGE)
    _refuse_unknown_tasks(tasks, scored)
    rows, more = _complete(rows.filter(pl.col("task").is_in([*scored, AVERAGE])), scored, baseline)
    groups = rows.partition_by("role", as_dict=True)
    empty = rows.clear()
    group = {role: groups.get((role,), empty) for role in ("distilled", "baseline", "untuned", "unaware")}
    pairs = {}
    for kind in PAIRED:
        pairs[kind], unmatched = paired(parts, kind, scale, baseline, group["distilled"])
        notes += unmatched
    return StudyData(
        scores=group["distilled"].select(*KEY, "score"),
        baselines=group["baseline"]
        .select(pl.col("student").alias("model"), "seed", "task", "score")
        .unique(("model", "seed", "task"), maintain_order=True),
        untuned=group["untuned"].select(pl.col("student").alias("model"), "task", "score"),
        unaware=group["unaware"].select(*KEY, "score"),
        agreement=pairs["agreement"],
        similarity=pairs["similarity"],
        sizes=_sizes(rows),
        tasks=scored,
        notes=(*notes, *more, *_left_out(group)),
        digest=files.digest([fingerprint(table.frame) for _, table in tables]),
        source=sources[0] if sources else None,
    )


def size_of(name: str) -> float | None:
    """Return the number after the last hyphen of a model's name, in billions (``-0.5B``, ``-70M``); None without one."""
    found = SIZE.fullmatch(name.rsplit("-", 1)[-1]) if "-" in name else None
    return float(found[1]) * UNITS[found[2].lower()] if found else None


@functools.cache
def chance_levels() -> dict[str, float]:
    """Return the percent that guessing gets on the tasks of the published study, 0 where the answer is free."""
    table = pl.read_csv(Path(__file__).with_name("chance_levels.csv"))
    return dict(zip(table["task"], table["chance"].cast(pl.Float64), strict=True))


# -- tasks ------------------------------------------------------------------------------------------------------------


def _ignored(tables: Sequence[Source], tasks: Sequence[str]) -> list[str]:
    """Say which columns of wide tables are taken for bookkeeping."""
    names = list(dict.fromkeys(name.strip() or "(no name)" for table in tables for name in bookkeeping(table, tasks)))
    if not names:
        return []
    return [f"assumed: bookkeeping and no tasks, so left out: {', '.join(names)} (study.tasks=A,B,... names the tasks)"]


def _refuse_unknown_tasks(tasks: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a task that the user names and that is none of these."""
    known = {task.strip().lower(): task.strip() for task in names}
    for name in tasks:
        if name.strip().lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            fix = f"did you mean '{known[near[0]]}'?" if near else None
            found = f"no student of a teacher has a score on {name!r}"
            expected = f"names of tasks ({few(list(known.values()))})"
            raise InputError(found, where="study.tasks", expected=expected, fix=fix)


# -- scores -----------------------------------------------------------------------------------------------------------


def _scored(tables: Sequence[pl.DataFrame], scale: str, baseline: str) -> tuple[pl.DataFrame, list[str]]:
    """Return all scores in percent, each with the role that its row plays, and how many cells are empty."""
    if not tables:
        expected = "a table with the columns teacher, student and method, and scores"
        raise InputError("there is no table of scores", where="the study", expected=expected)
    for table in tables:
        refuse_fractions(table, scale, baseline)
    rows, notes = without_gaps(pl.concat(tables))
    return _with_roles(percent(rows, scale), baseline), notes


def _complete(rows: pl.DataFrame, tasks: Sequence[str], baseline: str) -> tuple[pl.DataFrame, list[str]]:
    """Return rows whose teachers are known, with averages; refuse what stands twice, and a student without a baseline."""
    rows, notes = _with_known_teachers(rows)
    _refuse_repeated(rows)
    _refuse_other_baselines(rows)
    rows, more = _with_averages(rows, tasks)
    _refuse_students_without_baseline(rows, baseline)
    return rows, [*notes, *more]


def _with_roles(rows: pl.DataFrame, baseline: str) -> pl.DataFrame:
    method, alone = pl.col("method").str.to_lowercase(), pl.col("teacher") == NO_TEACHER
    role = (
        pl.when(method == baseline.lower())
        .then(pl.lit("baseline"))
        .when(alone & method.is_in(UNTUNED))
        .then(pl.lit("untuned"))
        .when(alone)
        .then(pl.lit("unknown"))
        .when(method.str.contains(UNAWARE))
        .then(pl.lit("unaware"))
        .otherwise(pl.lit("distilled"))
    )
    rows = rows.with_columns(role=role)
    for bad in rows.filter(pl.col("role") == "unknown").head(1).iter_rows(named=True):
        raise InputError(
            f"{bad['student']} has no teacher, and its method is {bad['method']!r}",
            where=f"{bad['where']}, row {bad['row']}",
            expected=f"{baseline} (trained on labels alone) or BaseModel (not trained)",
            fix=f"name the teacher, or pass study.baseline={bad['method']}",
        )
    if rows.filter(pl.col("role") == "distilled").is_empty():
        raise InputError("there is no student of a teacher", where=rows["where"][0], expected="rows with a teacher")
    return rows


def _with_known_teachers(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Cut what stands behind `_` off the names of teachers that are not known by their whole name."""
    known = set(rows.filter(pl.col("role") == "baseline")["student"])
    taught = rows.filter(pl.col("role").is_in(["distilled", "unaware"]))
    names = taught["teacher"].unique(maintain_order=True).to_list()
    cut = {name: name.split("_")[0] for name in names if name not in known and name.split("_")[0] in known}
    unknown = [name for name in names if name not in known and name not in cut]
    told = [f"teacher {name!r} is read as {short!r}" for name, short in cut.items()]
    if unknown and len(unknown) == len(names):
        return rows, [*told, "no teacher has a score of its own: what depends on it is left out"]
    for bad in taught.filter(pl.col("teacher").is_in(unknown)).head(1).iter_rows(named=True):
        raise InputError(
            f"the teacher is {bad['teacher']!r}, also cut at '_' no model with a score of its own",
            where=f"{bad['where']}, row {bad['row']}",
            expected=f"one of {', '.join(sorted(known))}",
            fix="correct the name, or add the teacher's own row without a teacher",
        )
    return rows.with_columns(teacher=pl.col("teacher").replace(cut)), told


def _refuse_repeated(rows: pl.DataFrame) -> None:
    """A score may stand twice only where it is the same baseline, listed once for each teacher."""
    baseline = pl.col("role") == "baseline"
    keyed = rows.with_columns(teacher=pl.when(baseline).then(pl.lit(NO_TEACHER)).otherwise(pl.col("teacher")))
    once = pl.concat([keyed.filter(~baseline), keyed.filter(baseline).unique((*KEY, "score"), maintain_order=True)])
    twice = once.filter(pl.struct(KEY).is_duplicated())
    if twice.is_empty():
        return
    first = twice.row(0, named=True)
    same = twice.filter(pl.all_horizontal(pl.col(name).eq_missing(first[name]) for name in KEY))
    places = " and ".join(f"{row['where']}, row {row['row']}" for row in same.head(2).iter_rows(named=True))
    fix = (
        "these are two studies: pass one at a time"
        if first["task"] == AVERAGE
        else "keep one, or add a column of seeds"
    )
    what = " ".join(str(first[name]) for name in ("teacher", "student", "method", "task"))
    raise InputError(f"the score of {what} stands twice", where=places, expected="one score a cell", fix=fix)


def _refuse_other_baselines(rows: pl.DataFrame) -> None:
    """A baseline has one score a seed: it has no temperature by which one of several could be chosen."""
    key = ["student", "seed", "task"]
    several = rows.filter(pl.col("role") == "baseline").filter(pl.col("score").n_unique().over(key) > 1)
    if several.is_empty():
        return
    first = several.row(0, named=True)
    same = several.filter(pl.all_horizontal(pl.col(name) == first[name] for name in key))
    raise InputError(
        f"{same['score'].n_unique()} scores of the baseline of {first['student']} on {first['task']}",
        where=" and ".join(f"{row['where']}, row {row['row']}" for row in same.head(2).iter_rows(named=True)),
        expected="one for each seed: a baseline has no teacher's temperature",
        fix="keep one, or add a column of seeds",
    )


def _with_averages(rows: pl.DataFrame, tasks: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """Add the plain mean over tasks where it is not given; say where a given one is another number."""
    if len(tasks) < 2:
        return rows, []
    key = [name for name in KEY if name != "task"]
    mine = rows.filter(pl.col("task") != AVERAGE).group_by([*key, "role"], maintain_order=True)
    means = mine.agg(
        pl.col("score").mean(), pl.col("task").n_unique().alias("n"), pl.col("row", "where", "size").first()
    ).filter(pl.col("n") == len(tasks))
    given = rows.filter(pl.col("task") == AVERAGE).select(*key, "role", pl.col("score").alias("given"))
    both = means.join(given, on=[*key, "role"], how="left", nulls_equal=True)
    off = both.filter((pl.col("given") - pl.col("score")).abs() > AVERAGE_ERROR).height
    added = both.filter(pl.col("given").is_null()).with_columns(task=pl.lit(AVERAGE)).select(rows.columns)
    note = [f"{off} given averages are not the mean of their tasks; they are used as given"] if off else []
    return pl.concat([rows, added]), note


def _refuse_students_without_baseline(rows: pl.DataFrame, baseline: str) -> None:
    have = rows.filter(pl.col("role") == "baseline").select("student", "task").unique()
    lacking = rows.filter((pl.col("role") == "distilled") & (pl.col("task") != AVERAGE)).join(
        have, on=["student", "task"], how="anti", maintain_order="left"
    )
    for bad in lacking.head(1).iter_rows(named=True):
        raise InputError(
            f"there is no {baseline} score of {bad['student']} on {bad['task']}, so that no gain can be formed",
            where=f"{bad['where']}, row {bad['row']}",
            fix=f"add its row without a teacher and with the method {baseline}, or pass study.baseline=...",
        )


def _sizes(rows: pl.DataFrame) -> dict[str, float]:
    given = rows.filter(pl.col("size").is_not_null()).group_by("student").agg(pl.col("size").first())
    sizes = dict(given.iter_rows())
    for name in {*rows["student"], *rows["teacher"]} - {NO_TEACHER}:
        found = size_of(name)
        if name not in sizes and found is not None:
            sizes[name] = found
    return dict(sorted(sizes.items()))


def _left_out(group: Mapping[str, pl.DataFrame]) -> list[str]:
    told = {"untuned": "models that were not trained", "unaware": "students of a teacher that did not know the task"}
    counts = {role: group[role].select("teacher", "student", "method").n_unique() for role in told}
    return [f"{counts[role]} rows of {text} are in no test" for role, text in told.items() if group[role].height]
