"""Scores of a study as percent: empty cells left out, fractions that nobody has named refused."""

from __future__ import annotations

import polars as pl

from sanov.core.errors import InputError

__all__ = ["percent", "refuse_fractions", "without_gaps"]


def without_gaps(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Leave out cells without a score, and say how many."""
    gaps = rows["score"].null_count()
    note = [f"{gaps} cell{'s' if gaps > 1 else ''} without a score left out"] if gaps else []
    return rows.filter(pl.col("score").is_not_null()), note


def percent(rows: pl.DataFrame, scale: str) -> pl.DataFrame:
    """Bring scores to percent.

    Raises
    ------
    InputError
        A score is outside its scale.
    """
    top, named = (1.0, "fraction") if scale == "fraction" else (100.0, "percent")
    for bad in rows.filter((pl.col("score") < 0) | (pl.col("score") > top)).head(1).iter_rows(named=True):
        where = f"{bad['where']}, row {bad['row']}"
        raise InputError(
            f"the score of {bad['task']} is {bad['score']:g}",
            where=where,
            expected=f"{named}, 0 to {top:g}",
            fix="pass study.scale=percent, which reads 0 to 100"
            if scale == "fraction"
            else f"correct it, or, if {bad['task']} is no task, name the tasks by study.tasks=A,B,...",
        )
    return rows.with_columns(score=pl.col("score") * (100.0 / top))


def refuse_fractions(table: pl.DataFrame, scale: str, baseline: str) -> None:
    """Refuse a table, or the baselines of one, without a score above 1 where nobody has said that these are percent.

    Raises
    ------
    InputError
        The scale is ``auto``, and none is above 1.
    """
    alone = table.filter(pl.col("method").str.to_lowercase() == baseline.lower())
    for part, what in ((table, "score"), (alone, f"score of {baseline}")):
        known = part.filter(pl.col("score").is_not_null())
        if scale == "auto" and known.height and (known["score"] <= 1).all():
            fix = (
                "are these fractions? Then pass study.scale=fraction, every table being of fractions; if they are percent, "
                "pass study.scale=percent"
            )
            raise InputError(f"no {what} is above 1", where=known["where"][0], expected="percent", fix=fix)
