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

__all__ = [
    "AVERAGE",
    "NO_TEACHER",
    "Columns",
    "Kind",
    "Source",
    "bookkeeping",
    "few",
    "holds_baseline",
    "kind_of",
    "named_tasks",
    "open_pairs",
    "open_source",
    "plain",
    "tidy",
]

AVERAGE = "Average"
NO_TEACHER = "-"
NOTHING = (NO_TEACHER, "", "none", "null", "nan")  # what stands where a model has no teacher
AVERAGES = ("average", "avg", "mean")
METHOD = re.compile(r"(?:student_)?(?P<name>.+?)(?:_temp_(?P<temperature>\d+(?:\.\d+)?))?$")
PUBLISHED = {"KD": "SeqKD"}  # the files' name of what the paper calls SeqKD
SIMILARITY = re.compile(r"bleu|rouge|simil|rationale|cosine", re.IGNORECASE)
# columns of numbers that tables of results hold beside scores, as `plain` spells them
BOOKKEEPING = re.compile(
    r"""
      (num_|n_|max_|train_|warmup_)? ( epochs? | steps? | iter(ation)?s? | batch(es)? | tokens? | layers? | params
                                     | parameters | samples | examples | rows | shots? | fewshot | length )
    | batch_size | bs | lr | learning_rate | weight_decay | dropout | warmup(_ratio)? | lambda | alpha | beta | gamma
    | (lora_)? (r | rank | alpha) | width | hidden(_size)? | params_b | parameters_b | size_b | (model|student|teacher)_size
    | seeds | random_(seed|state) | runs? | run_id | trial | fold | id | index | idx | n | unnamed.*
    | (gpu_|train_|wall_)? (time | seconds | minutes | hours) | runtime | duration | flops | memory | date | timestamp | year
    | (train_|val_|eval_|test_)? (loss | perplexity | ppl) | std | stderr | se | ci_(low|high)
    | temp | tau | (kd|distillation)_temperature | top_[pk] | version | checkpoint | ckpt | notes? | comments?
    """,
    re.VERBOSE,
)

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
    spelled = [way(name) for name in names for way in (str, str.lower, str.upper, str.title, str.capitalize)]
    frame = read_frame(
        source, text=[f"{space}{name}{end}" for name in spelled for space in ("", " ") for end in ("", " ")]
    )
    return Source(name_of(source), frame, _places(frame, columns))


def plain(name: str) -> str:
    """Return a name of a column without what does not count: case, spaces around, and what joins its words."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _places(frame: pl.DataFrame, columns: Columns) -> dict[str, str]:
    by_name = {plain(name): name for name in reversed(frame.columns)}  # of two, the first
    found = {part: by_name.get(plain(name)) for part, name in columns.given().items()}
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
        raise _lacking(source, missing, baseline)
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


def _lacking(source: Source, missing: Sequence[str], baseline: str) -> InputError:
    free = {plain(name): name for name in source.frame.columns if name not in source.places.values()}
    near = {part: difflib.get_close_matches(part, free, n=1) for part in missing}
    meant = {part: free[match[0]] for part, match in near.items() if match}
    holder = holds_baseline(source.frame, baseline)
    if "method" in missing and holder is not None:
        meant["method"] = holder
    found = f"the table lacks {', '.join(map(repr, missing))}"
    told = " ".join(f"study.map.{part}={name}" for part, name in meant.items())
    named = f"name them by {' '.join(f'study.map.{part}=NAME' for part in missing)}"
    fix = (f"did you mean {told}?" if told else f"{named}.") + " If these are predictions, pass mode=report"
    return InputError(
        found,
        where=source.name,
        expected=f"teacher, student and method, with task and score or a column a task (found: {few(source.frame.columns)})",
        fix=fix,
    )


def holds_baseline(frame: pl.DataFrame, baseline: str) -> str | None:
    """Return the column of text with a cell that is the baseline's name: it holds methods, whatever it is called."""
    for name in frame.columns:
        if (
            frame[name].dtype == pl.String
            and (frame[name].str.strip_chars().str.to_lowercase() == baseline.lower()).any()
        ):
            return name
    return None


def few(names: Sequence[str]) -> str:
    """Join a few names."""
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def bookkeeping(source: Source, tasks: Sequence[str] = ()) -> list[str]:
    """Return the columns of a wide table that are left out as no tasks; none where the tasks are named."""
    if tasks or {"task", "score"} <= source.places.keys():
        return []
    return [name for name in _other_columns(source) if _is_bookkeeping(name)]


def named_tasks(source: Source) -> list[str]:
    """Return the tasks that a table of scores may name: cells of a long one, columns of a wide one."""
    if "task" not in source.places:
        return _other_columns(source)
    return source.frame[source.places["task"]].cast(pl.String).str.strip_chars().drop_nulls().unique().to_list()


def _is_bookkeeping(name: str) -> bool:
    return not name.strip() or BOOKKEEPING.fullmatch(plain(name)) is not None


def _other_columns(source: Source) -> list[str]:
    known = set(source.places.values())
    return [name for name in source.frame.columns if name not in known and plain(name) != "pair"]


def tidy(source: Source, kind: Kind, tasks: Sequence[str] = ()) -> pl.DataFrame:
    """Return the cells of a table as rows: teacher, student, method, temperature, seed, task, score, size, where.

    Parameters
    ----------
    source, kind
        The table, and its shape.
    tasks
        Names of the tasks; where there are none, all but averages and bookkeeping.

    Raises
    ------
    InputError
        A row without a student or method, a score that is no number.
    """
    frame = source.frame.with_row_index("row", offset=1)
    places = source.places
    if not {"task", "score"} <= places.keys():
        scored = _task_columns(source, tasks)
        kept = ["row", *(name for part, name in places.items() if part not in ("task", "score"))]
        frame = frame.unpivot(scored, index=kept, variable_name="task", value_name="score")
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
    if tasks:  # an average that is given is one over all tasks
        rows = rows.filter(pl.col("task").str.to_lowercase().is_in([name.strip().lower() for name in tasks]))
    return rows if kind == "long" else _with_methods(rows)


def _task_columns(source: Source, tasks: Sequence[str]) -> list[str]:
    """Return the columns of tasks; a text column besides the known ones is refused unless it is a pair's name."""
    wanted = {name.strip().lower() for name in tasks}
    others = _other_columns(source)
    rest = [name for name in others if (name.strip().lower() in wanted if tasks else not _is_bookkeeping(name))]
    text = [name for name in rest if not source.frame[name].dtype.is_numeric()]
    for name in text:
        numbers = source.frame[name].cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
        bad = (numbers.is_null() & source.frame[name].is_not_null()).arg_true()
        if len(bad):
            row = int(bad[0])
            found = f"the cell of {name!r} is {source.frame[name][row]!r}"
            fix = "correct it, or name the tasks by study.tasks=A,B,...; if these are predictions, pass mode=report"
            raise InputError(
                found, where=source.row(row + 1), expected="a score, as every column but names is a task", fix=fix
            )
    if not rest:
        found = "there is no column of scores" + (f" on {few(tasks)}" if tasks else "")
        fix = f"the columns are: {few(source.frame.columns)}; study.tasks=A,B,... names those of tasks"
        raise InputError(found, where=source.name, expected="a column a task, or task and score", fix=fix)
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
