"""Study mode: a table of scores of many pairs of teacher and student, and what it says about distillation.

The paper's claims are that distillation raises scores (H1), whatever the teacher's own score (H2), more so for smaller
students (H3) and weaker ones (H3.2), while agreement (H4) and alike texts (H5) do not predict the gain. Here each is
tested as the paper does, and with what its rows share taken into account. Which temperature a row is of is a rule that is
stated: one fixed temperature by default, the best of each column only where that is asked for.

Reference: ramesh2025fidelity.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sanov.core.answers import Answer
from sanov.core.errors import InputError, SanovWarning
from sanov.core.frames import is_path
from sanov.data import predictions, studies
from sanov.data.studies import StudyData
from sanov.data.study_tables import holds_baseline, plain
from sanov.systems.fidelity.study_figures import figures
from sanov.systems.fidelity.study_findings import FEWEST_CLUSTERS, Findings, Side, analyse
from sanov.systems.fidelity.study_options import StudyOptions
from sanov.systems.fidelity.study_wording import few_clusters, lines, notes, sentence, verdict

__all__ = ["StudyData", "StudyOptions", "answer", "looks_like_study", "read"]

ALIKE = 0.75  # of difflib's ratio, from which a column is taken for a misspelt `method`
MOST = 20  # files of a folder that are named
TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl", ".ndjson", ".feather", ".arrow")


def looks_like_study(frames: Sequence[pl.DataFrame], config: Any = None) -> bool:
    """Whether some table has a study's columns: a method beside a teacher or student, or a task beside its score.

    A misspelt method counts, and one whose cells hold the baseline's name: what is wrong with a study is told by its reader.
    A table with a column of predictions, of probabilities or of labels is none, unless it has a method and a score.

    Parameters
    ----------
    frames
        The tables.
    config
        The options, for the user's names of columns.
    """
    columns, baseline = (studies.Columns(), "SFT") if config is None else (config.study.map, config.study.baseline)
    named = {part: plain(name) for part, name in columns.given().items()}
    return any(_is_study(frame, named, baseline, _Names.of(config)) for frame in frames)


@dataclass(frozen=True)
class _Names:
    """Columns that predictions have and scores do not."""

    whole: tuple[str, ...]
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, config: Any) -> _Names:
        columns = getattr(config, "map", None) or predictions.Columns()
        return cls((columns.prediction, columns.label), tuple(filter(None, (columns.probabilities, columns.logits))))

    def are_in(self, frame: pl.DataFrame) -> bool:
        return any(name in self.whole or name.startswith(self.prefixes) for name in frame.columns)


def _is_study(frame: pl.DataFrame, named: Mapping[str, str], baseline: str, of_predictions: _Names) -> bool:
    found = {plain(name) for name in frame.columns}
    has = {part for part, name in named.items() if name in found}
    if "method" in has and has & {"teacher", "student"}:
        return "score" in has or not of_predictions.are_in(frame)
    if of_predictions.are_in(frame):
        return False
    if {"teacher", "student"} <= has and holds_baseline(frame, baseline) is not None:
        return True
    misspelt = {"teacher", "student"} <= has and difflib.get_close_matches(named["method"], found, n=1, cutoff=ALIKE)
    return bool(misspelt) or {"task", "score"} <= has


def read(sources: Sequence[Any], config: Any) -> StudyData:
    """Read the tables of a study; a folder stands for the tables in it.

    Parameters
    ----------
    sources
        Data frames, paths or folders, in any order; what each holds is told by its columns.
    config
        The options.

    Raises
    ------
    InputError
        Anything that is wrong with the input; the message names the file and the row.
    """
    options: StudyOptions = config.study
    opened = [_opened(source) for source in sources]
    try:
        return studies.read(
            [table for tables in opened for table in tables],
            options.map,
            baseline=options.baseline,
            scale=options.scale,
            tasks=options.tasks,
            agreement=options.agreement,
            similarity=options.similarity,
        )
    except InputError as error:
        folders = [tables for source, tables in zip(sources, opened, strict=True) if _is_folder(source)]
        if not folders:
            raise
        names = [path.name for tables in folders for path in tables]
        told = f"a folder stands for all its tables; to pick, name files in its place ({', '.join(names[:MOST])})"
        fix = f"{error.fix}{'' if error.fix.endswith('?') else ';'} {told}" if error.fix else told
        raise InputError(error.found, where=error.where, expected=error.expected, fix=fix) from None


def _is_folder(source: Any) -> bool:
    return is_path(source) and Path(source).is_dir()


def _opened(source: Any) -> list[Any]:
    if not _is_folder(source):
        return [source]
    found = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in TABLES)
    if not found:
        fix = "name a folder of tables of scores, or files; a folder of a model is named by models.teacher=DIR"
        expected = f"files of {', '.join(TABLES)}"
        raise InputError("the folder holds no table", where=str(source), expected=expected, fix=fix)
    return list(found)


def answer(data: StudyData, config: Any, *, seed: int = 0) -> Answer:
    """Say whether distillation raised the scores, for whom, and what the files say about themselves.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options.
    seed
        Of the bootstrap.

    Raises
    ------
    InputError
        Temperatures are mixed, and the rule gives some student no row.
    """
    found = analyse(data, config, seed=seed)
    if found.options.cluster != "none" and found.n_clusters < FEWEST_CLUSTERS:
        warnings.warn(few_clusters(found) + ".", SanovWarning, stacklevel=2)
    return Answer(
        system="fidelity",
        sentence=sentence(found),
        values=_values(found),
        tables=_tables(found),
        figures=figures(found),
        notes=notes(found),
        provenance={"input": data.digest},
        source=data.source,
        lines=lines(found),
    )


def _values(found: Findings) -> dict[str, Any]:
    side = found.asked
    clusters = {row["clusters"]: row for row in found.clusters.to_dicts()}
    values: dict[str, Any] = {
        "verdict": verdict(side),
        "mean_gain": side.mean,
        "mean_gain_low": side.interval.low if side.interval else None,
        "mean_gain_high": side.interval.high if side.interval else None,
        "rows": side.rows,
        "pairs": clusters["pair"]["number"],
        "students": clusters["student"]["number"],
        "teachers": clusters["teacher"]["number"],
        "p_sign_flip_pairs": clusters["pair"]["sign-flip p"],
        "p_sign_flip_students": clusters["student"]["sign-flip p"],
        "p_friedman": found.friedman[1],
        "selection": side.label,
    }
    for row in found.correlations.to_dicts():
        name = f"rho_{row['hypothesis'].replace('.', '_').lower()}"
        values |= {name: row["rho"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    values |= {"rho_h3_2_null": found.shared.null, "p_h3_2_corrected": found.shared.p_value}
    return values


def _tables(found: Findings) -> dict[str, pl.DataFrame]:
    tables = {
        "Gain by task": found.tasks,
        "Gain by rule": _sides(found),
        "Gain by method": found.methods,
        "Gain by size": found.sizes,
        "Clusters": found.clusters,
        "Correlations": found.correlations,
        "Without one teacher": found.without_teacher,
        "The paper's tests": found.paper,
        "Rows": _rows(found),
        "Temperatures tried": found.budgets,
        "Scores below chance": found.below,
        "Shares below chance": found.below_counts,
        "Agreement within its bounds": found.bounds,
    }
    return {title: table for title, table in tables.items() if table.height}


def _sides(found: Findings) -> pl.DataFrame:
    def row(side: Side) -> dict[str, Any]:
        low, high = (side.interval.low, side.interval.high) if side.interval else (None, None)
        return {
            "rule": side.label or "all rows",
            "rows": side.rows,
            "mean gain": side.mean,
            "low": low,
            "high": high,
            "verdict": verdict(side),
        }

    overrides = {"low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame([row(side) for side in (found.asked, *found.sides)], schema_overrides=overrides)


def _rows(found: Findings) -> pl.DataFrame:
    """Return the rows that were compared: names, size, scores, gain by column, agreement and its excess on average."""
    rows = found.rows
    gains = [pl.Series(f"gain {name}", rows.gain[:, place]) for place, name in enumerate(rows.columns)]
    return rows.labels.with_columns(
        pl.Series("size", rows.size),
        pl.Series("score", rows.score[:, -1]),
        pl.Series("baseline", rows.baseline[:, -1]),
        pl.Series("teacher's score", rows.teacher[:, -1]),
        *gains,
        pl.Series("agreement", rows.agreement[:, -1]),
        pl.Series("excess agreement", found.excess[:, -1]),
    ).fill_nan(None)
