"""One table of a distillation study: which of the published shapes it has, and its cells as tidy rows.

A *long* table has a row a score. A *wide* one has a row a model and a column a task, as the tables of
ramesh2025fidelity. A *pair* table has a row a pair of teacher and student and a column a task: how often the two agree, or
how alike their texts are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from sanov.core.errors import InputError
from sanov.core.frames import name_of, read_frame
from sanov.core.options import Options, option

__all__ = ["AVERAGE", "NO_TEACHER", "Columns", "Kind", "Source", "kind_of", "open_pairs", "open_source", "tidy"]

AVERAGE = "Average"
NO_TEACHER = "-"
NOTHING = (NO_TEACHER, "", "none", "null", "nan")  # what stands where a model has no teacher
AVERAGES = ("average", "avg", "mean")
METHOD = re.compile(r"(?:student_)?(?P<name>.+?)(?:_temp_(?P<temperature>\d+(?:\.\d+)?))?$")
PUBLISHED = {"KD": "SeqKD"}  # the files' name of what the paper calls SeqKD
SIMILARITY = re.compile(r"bleu|rouge|simil|rationale|cosine", re.IGNORECASE)

Kind = Literal["long", "wide", "agreement", "similarity"]


class Columns(Options):
    """The user's names of the columns of a study; case does not count."""

    teacher: str = option("teacher", "Column of teachers; `-` or empty for a model without one.", source="choice")
    student: str = option("student", "Column of students.", source="choice")
    method: str = option(
        "method", "Column of methods; the baseline's rows are those of study.baseline.", source="choice"
    )
    task: str = option("task", "Column of tasks of a long table.", source="choice")
    score: str = option("score", "Column of scores of a long table.", source="choice")
    temperature: str = option("temperature", "Column of temperatures; a table may have none.", source="choice")
    seed: str = option("seed", "Column of training seeds; a table may have none.", source="choice")
    size: str = option(
        "size", "Column of the student's size; without it, the number at the end of its name.", source="choice"
    )

    def given(self) -> dict[str, str]:
        """Part that a column plays -> its name."""
        return {name: str(value) for name, value in self.model_dump().items()}


@dataclass(frozen=True)
class Source:
    """A table as it was read: its name in messages, its cells, and the names of its columns by the part they play."""

    name: str
    frame: pl.DataFrame
    places: dict[str, str]

    def row(self, number: int) -> str:
        """Name a row, the first below the header being 1, as it is named in messages."""
        return f"{self.name}, row {number}"


def open_source(source: Any, columns: Columns) -> Source:
    """Read a table and find its columns."""
    names = [value for part, value in columns.given().items() if part in ("teacher", "student", "method", "task")]
    frame = read_frame(source, text=(*names, *(name.capitalize() for name in names)))
    return Source(name_of(source), frame, _places(frame, columns))


def _places(frame: pl.DataFrame, columns: Columns) -> dict[str, str]:
    by_case = {name.lower(): name for name in frame.columns}
    found = {part: by_case.get(name.lower()) for part, name in columns.given().items()}
    return {part: name for part, name in found.items() if name is not None}


def kind_of(source: Source, baseline: str) -> Kind:
    """Tell which shape a table has.

    Raises
    ------
    InputError
        It lacks a column of every shape, with the missing names, those found and the nearest match.
    """
    places = source.places
    long = "task" in places or "score" in places
    wanted = ["teacher", "student", "method", *(["task", "score"] if long else [])]
    missing = [part for part in wanted if part not in places]
    if missing:
        raise _lacking(source, missing)
    if long:
        return "long"
    methods = {str(method).lower() for method in source.frame[places["method"]].drop_nulls()}
    teachers = source.frame[places["teacher"]].fill_null("").str.to_lowercase()
    pairs = "kd" in methods and methods <= {"kd", "sft", baseline.lower()} and not teachers.is_in(NOTHING).any()
    if not pairs or "pair" not in {name.lower() for name in source.frame.columns}:
        return "wide"
    return "similarity" if SIMILARITY.search(source.name) else "agreement"


def open_pairs(source: Any, columns: Columns, baseline: str) -> Source:
    """Read a table that the user says is of pairs, whatever its name.

    Raises
    ------
    InputError
        It lacks a column.
    """
    table = open_source(source, columns)
    kind_of(table, baseline)
    return table


def _lacking(source: Source, missing: Sequence[str]) -> InputError:
    free = [name for name in source.frame.columns if name not in source.places.values()]
    near = {part: difflib.get_close_matches(part, [name.lower() for name in free], n=1) for part in missing}
    lowered = {name.lower(): name for name in free}
    told = [f"study.map.{part}={lowered[match[0]]}" for part, match in near.items() if match]
    found = f"the table lacks {', '.join(map(repr, missing))}"
    fix = (
        f"did you mean {' '.join(told)}?"
        if told
        else f"name them by {' '.join(f'study.map.{part}=...' for part in missing)}"
    )
    return InputError(
        found,
        where=source.name,
        expected=f"teacher, student and method, with task and score or a column a task (found: {_few(source.frame.columns)})",
        fix=fix,
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def tidy(source: Source, kind: Kind) -> pl.DataFrame:
    """Return the cells of a table as rows: teacher, student, method, temperature, seed, task, score, size, where.

    Raises
    ------
    InputError
        A row without a student or method, a score that is no number.
    """
    frame = source.frame.with_row_index("row", offset=1)
    places = source.places
    if not {"task", "score"} <= places.keys():
        tasks = _task_columns(source)
        kept = ["row", *(name for part, name in places.items() if part not in ("task", "score"))]
        frame = frame.unpivot(tasks, index=kept, variable_name="task", value_name="score")
        places = {**places, "task": "task", "score": "score"}
    for part in ("score", "temperature", "size"):
        if part in places:
            _check_numbers(frame, part, places[part], source)
    parts = {
        "teacher": _name(places, "teacher"),
        "student": _name(places, "student"),
        "method": _name(places, "method"),
        "temperature": _number(places, "temperature"),
        "seed": _whole(places),
        "task": _name(places, "task"),
        "score": _number(places, "score"),
        "size": _number(places, "size"),
        "row": pl.col("row").cast(pl.Int64),
        "where": pl.lit(source.name),
    }
    rows = frame.select(**parts)
    _check_names(rows, source)
    rows = rows.with_columns(
        teacher=pl.when(pl.col("teacher").fill_null("").str.to_lowercase().is_in(NOTHING))
        .then(pl.lit(NO_TEACHER))
        .otherwise(pl.col("teacher")),
        task=pl.when(pl.col("task").str.to_lowercase().is_in(AVERAGES)).then(pl.lit(AVERAGE)).otherwise(pl.col("task")),
    )
    return rows if kind == "long" else _with_methods(rows)


def _task_columns(source: Source) -> list[str]:
    """Return the columns of tasks; a text column besides the known ones is refused unless it is a pair's name."""
    known = {*source.places.values()}
    rest = [name for name in source.frame.columns if name not in known and name.lower() != "pair"]
    text = [name for name in rest if not source.frame[name].dtype.is_numeric()]
    for name in text:
        numbers = source.frame[name].cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
        bad = (numbers.is_null() & source.frame[name].is_not_null()).arg_true()
        if len(bad):
            row = int(bad[0])
            found = f"the cell of {name!r} is {source.frame[name][row]!r}"
            fix = "correct it, or leave the column out"
            raise InputError(
                found, where=source.row(row + 1), expected="a score, as every column but names is a task", fix=fix
            )
    if not rest:
        raise InputError(
            "there is no column of scores", where=source.name, expected="a column a task, or task and score"
        )
    return rest


def _check_numbers(frame: pl.DataFrame, part: str, column: str, source: Source) -> None:
    cells = frame[column]
    numbers = cells.cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
    bad = (cells.is_not_null() & (numbers.is_null() | ~numbers.is_finite())).arg_true()
    if len(bad):
        place = int(bad[0])
        raise InputError(f"the {part} is {cells[place]!r}", where=source.row(frame["row"][place]), expected="a number")


def _check_names(rows: pl.DataFrame, source: Source) -> None:
    for part in ("student", "method", "task"):
        empty = rows.filter(pl.col(part).is_null() | (pl.col(part) == ""))
        if empty.height:
            raise InputError(f"there is no {part}", where=source.row(empty["row"][0]), expected="a name in every row")


def _name(places: dict[str, str], part: str) -> pl.Expr:
    return pl.col(places[part]).cast(pl.String).str.strip_chars()


def _number(places: dict[str, str], part: str) -> pl.Expr:
    if part not in places:
        return pl.lit(None, pl.Float64)
    return pl.col(places[part]).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def _whole(places: dict[str, str]) -> pl.Expr:
    """Return the seed as text: it is a name, and need be no number; 0, 0.0 and '0' are one."""
    if "seed" not in places:
        return pl.lit("")
    text = pl.col(places["seed"]).cast(pl.String).str.strip_chars().fill_null("")
    number = text.cast(pl.Float64, strict=False)
    whole = number.cast(pl.Int64, strict=False)
    return pl.when(number == whole).then(whole.cast(pl.String)).otherwise(text)


def _with_methods(rows: pl.DataFrame) -> pl.DataFrame:
    """Take ``student_RevKD_temp_2.0`` apart into method and temperature; other names stay what they are."""
    known = {method: _parsed(method) for method in rows["method"].unique()}
    names = {method: name for method, (name, _) in known.items()}
    temperatures = {method: value for method, (_, value) in known.items()}
    written = pl.col("method").replace_strict(temperatures, return_dtype=pl.Float64)
    return rows.with_columns(
        temperature=pl.col("temperature").fill_null(written),
        method=pl.col("method").replace_strict(names, return_dtype=pl.String),
    )


def _parsed(method: str) -> tuple[str, float | None]:
    found = METHOD.match(method)
    if found is None:
        return method, None
    name, temperature = found["name"], found["temperature"]
    if method.startswith("student_"):
        name = PUBLISHED.get(name, name)
    return name, float(temperature) if temperature else None
