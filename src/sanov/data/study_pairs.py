"""Tables of pairs in a study: how often teacher and student agree, and how alike their texts are."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from sanov.core.errors import InputError
from sanov.data.study_scale import percent, refuse_fractions, without_gaps
from sanov.data.study_tables import AVERAGE, Kind

__all__ = ["SFT", "paired"]

SFT = "SFT"  # kind of a row of the baseline, whatever the user calls it


def paired(
    parts: Sequence[tuple[Kind, pl.DataFrame]], kind: Kind, scale: str, baseline: str, compared: pl.DataFrame
) -> tuple[pl.DataFrame, list[str]]:
    """Return a table of pairs, its teachers named as in the scores, and what of the study it does not have.

    Parameters
    ----------
    parts
        All tables of the study as rows, with their kinds.
    kind
        The one that is asked for.
    scale, baseline
        As for `sanov.data.studies.read`.
    compared
        The scores of students of a teacher.

    Raises
    ------
    InputError
        There are two such tables, or a pair stands twice.
    """
    tables = [rows for found, rows in parts if found == kind]
    if len(tables) > 1:
        names = " and ".join(table["where"][0] for table in tables[:2])
        fix = f"leave one out, or leave both out of the data and name one by study.{kind}=FILE"
        raise InputError(f"two tables of {kind}", where=names, expected="one", fix=fix)
    empty = {"teacher": pl.String, "student": pl.String, "kind": pl.String, "task": pl.String, "value": pl.Float64}
    if not tables:
        return pl.DataFrame(schema=empty), []
    rows, _ = without_gaps(tables[0])
    if kind == "agreement":
        refuse_fractions(rows, scale, baseline)
        rows = percent(rows, scale)
    told = (
        pl.when(pl.col("method").str.to_lowercase() == baseline.lower()).then(pl.lit(SFT)).otherwise(pl.col("method"))
    )
    known = set(compared["teacher"])
    cut = {name: name.split("_")[0] for name in rows["teacher"].unique() if name not in known}
    rows = rows.with_columns(told.alias("kind"), teacher=pl.col("teacher").replace(cut))
    key = ("teacher", "student", "kind", "task")
    for bad in rows.filter(pl.struct(key).is_duplicated()).head(1).iter_rows(named=True):
        found = f"{kind} of {bad['teacher']} -> {bad['student']}, {bad['kind']}, on {bad['task']!r} stands twice"
        raise InputError(found, where=f"{bad['where']}, row {bad['row']}", expected="one row each")
    return rows.select(*key, value="score"), _unmatched(rows, kind, compared)


def _unmatched(rows: pl.DataFrame, kind: Kind, compared: pl.DataFrame) -> list[str]:
    """Say which pairs and tasks of the scores a table of pairs does not have."""
    name, pair = rows["where"][0], ("teacher", "student")
    pairs = compared.select(pair).unique(maintain_order=True)
    lost = pairs.join(rows.select(pair).unique(), on=list(pair), how="anti")
    tasks = [task for task in compared["task"].unique(maintain_order=True) if task != AVERAGE]
    absent = [task for task in tasks if task not in set(rows["task"])]
    told = []
    if lost.height:
        first = " -> ".join(lost.row(0))
        told.append(f"{name} has no {kind} of {lost.height} of {pairs.height} pairs (the first: {first})")
    if absent:
        told.append(f"{name} has no {kind} on {', '.join(map(repr, absent))}: what is averaged over tasks is left out")
    return told
