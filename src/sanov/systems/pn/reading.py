"""From what a user hands over to a sample: columns, weights, clusters, outcome, and every check of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.core.frames import check_columns, fingerprint, name_of, numeric, read_frame
from sanov.data.embedded import resolve
from sanov.systems.pn.config import Config
from sanov.systems.pn.sample import Sample, WeightsKind
from sanov.systems.pn.statistics import cross, prepare

__all__ = ["Data", "Outcome", "naming", "read"]

MOST_CELLS = 100_000


@dataclass(frozen=True)
class Outcome:
    """A column to predict and the columns that predict it; text is coded as indicators."""

    name: str
    values: Float[ndarray, " rows"]
    predictors: Float[ndarray, "rows predictors"]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """What `apply` takes.

    Parameters
    ----------
    sample
        The rows in the coordinates of their family; None where there are no data yet.
    columns
        Columns of the family.
    outcome
        Where one is named.
    source
        What the user handed over.
    digest
        Of the table.
    name
        What to call the table in a message.
    roles
        Part that a column plays (weights, clusters) -> its name.
    """

    sample: Sample | None = None
    columns: tuple[str, ...] = ()
    outcome: Outcome | None = None
    source: Any = None
    digest: str = ""
    name: str = "table"
    roles: Mapping[str, str] = field(default_factory=dict)


def read(sources: Sequence[Any], config: Config) -> Data:
    """Read one table, or none where `parameters` are given, and check it.

    Parameters
    ----------
    sources
        At most one table or path; ``embedded:wine`` needs no file.
    config
        The options.

    Raises
    ------
    InputError
        Anything that is wrong with the table or does not fit its family; the message names the column or row.
    """
    if not sources and config.parameters:
        _refuse_columns_without_table(config)
        return Data()
    if not sources:
        raise InputError(
            "there are no data",
            where="pn",
            expected="a table, or parameters=24",
            fix="name a file, parameters=..., or embedded:wine, which needs none",
        )
    if config.parameters:
        fix = "leave out one of the two"
        raise InputError("both a table and a number of parameters are given", where="parameters", fix=fix)
    if len(sources) > 1:
        raise InputError(f"{len(sources)} tables are given", where="pn", expected="one")
    _refuse_plans_with_table(config)
    frame = read_frame(resolve(sources[0]), delimiter=config.map.delimiter or None)
    return _read_table(frame, name_of(sources[0]), config, sources[0])


def _refuse_columns_without_table(config: Config) -> None:
    for role in ("outcome", "weights", "clusters"):
        if getattr(config.map, role):
            fix = (
                "for a prediction model give riley.prevalence or riley.r_squared"
                if role == "outcome"
                else "leave it out"
            )
            raise InputError("names a column, and there is no table", where=f"map.{role}", fix=fix)


def _refuse_plans_with_table(config: Config) -> None:
    if config.riley.prevalence is not None:
        fix = "leave it out: the rows have a share of their own"
        raise InputError("plans a study without a table, and there is one", where="riley.prevalence", fix=fix)
    if config.riley.r_squared is not None and not config.map.outcome:
        raise InputError("there is no outcome to explain", where="riley.r_squared", fix="name it by map.outcome=...")


def _read_table(frame: pl.DataFrame, name: str, config: Config, source: Any) -> Data:
    roles = [role for role in (config.map.outcome, config.map.weights, config.map.clusters) if role]
    check_columns(frame, roles, name=name)
    columns = config.columns or tuple(column for column in frame.columns if column not in roles)
    check_columns(frame, columns, name=name)
    if not columns:
        raise InputError("no column is left for the family", where=name, fix="add columns")
    both = next((column for column in columns if column in roles), None)
    if both:
        raise InputError(f"column '{both}' is used twice", where="map", fix=f"take it out of columns={both},...")
    given = {"weights": config.map.weights, "clusters": config.map.clusters}
    named = {role: column for role, column in given.items() if column}
    with naming(name, named):
        sample = _sample(frame, columns, name, config)
    outcome = _outcome(frame, config.map.outcome, columns, name) if config.map.outcome else None
    return Data(sample, columns, outcome, source, fingerprint(frame), name, named)


def _sample(frame: pl.DataFrame, columns: Sequence[str], name: str, config: Config) -> Sample:
    if config.family == "multinomial":
        codes, cells = _crossed(frame, columns, name)
        prepared = prepare("multinomial", codes, ["cell"], cells=cells, rank_tolerance=config.rank_tolerance)
    else:
        _refuse_text(frame, columns, name)
        values = numeric(frame, columns, name=name)
        prepared = prepare(config.family, values, columns, rank_tolerance=config.rank_tolerance)
        if config.family == "gaussian":
            prepared = replace(prepared, notes=prepared.notes + _two_valued(values, columns))
    kind, clusters = config.map.weights_kind, config.map.clusters
    return Sample(
        prepared,
        weights=_weights(frame, config.map.weights, name, kind) if config.map.weights else None,
        weights_kind=kind,
        clusters=_labels(frame, clusters, name) if clusters else None,
    )


def _two_valued(values: Float[ndarray, "rows columns"], columns: Sequence[str]) -> tuple[str, ...]:
    found = [name for name, cells in zip(columns, values.T, strict=True) if len(np.unique(cells)) == 2]
    if not found:
        return ()
    names = ", ".join(f"'{name}'" for name in found)
    return (f"two values and yet normal here: {names}; if it is an outcome, say map.outcome={found[0]}",)


@contextmanager
def naming(table: str, roles: Mapping[str, str]) -> Iterator[None]:
    """Say in a message which table, and which of its columns, it is about.

    Parameters
    ----------
    table
        What to call the table.
    roles
        Part that a column plays (weights, clusters) -> its name.
    """
    try:
        yield
    except InputError as error:
        place = error.where or "table"
        for role, column in roles.items():
            place = place.replace(role, f"column '{column}'") if place.endswith(role) else place
        if place == "table":
            place = table
        elif place.startswith(("row ", "column ", "cell ")):
            place = f"{table}, {place}"
        raise InputError(error.found, where=place, expected=error.expected, fix=error.fix) from None


def _refuse_text(frame: pl.DataFrame, columns: Sequence[str], name: str) -> None:
    """Refuse columns without a single number; a column with some bad cells is left to `numeric`, which names them."""
    for column in columns:
        cells = frame[column].drop_nulls()
        if cells.dtype == pl.String and len(cells) and cells.cast(pl.Float64, strict=False).is_null().all():
            raise InputError(
                f"is text (such as '{cells[0]}')",
                where=f"{name}, column '{column}'",
                fix="encode it or choose family=multinomial",
            )


def _crossed(frame: pl.DataFrame, columns: Sequence[str], name: str) -> tuple[Float[ndarray, "rows 1"], list[str]]:
    for column in columns:
        _refuse_missing(frame[column], name)
    count = math.prod(frame[column].n_unique() for column in columns)
    if count > MOST_CELLS:
        fix = "choose fewer columns, or merge their values"
        raise InputError(f"the columns have {count:,} combinations of values", where="family=multinomial", fix=fix)
    return cross({column: frame[column].to_list() for column in columns})


def _refuse_missing(cells: pl.Series, name: str) -> None:
    if cells.null_count():
        row = int(cells.is_null().arg_true()[0]) + 1
        where = f"{name}, row {row}, column '{cells.name}'"
        raise InputError("the cell is missing", where=where, fix="remove or impute it")


def _weights(frame: pl.DataFrame, column: str, name: str, kind: WeightsKind) -> Float[ndarray, " rows"]:
    values = numeric(frame, [column], name=name)[:, 0]
    broken = np.flatnonzero(values != np.floor(values))
    if kind == "frequency" and len(broken):
        raise InputError(
            f"the frequency is {values[broken[0]]:g}",
            where=f"{name}, row {broken[0] + 1}, column '{column}'",
            expected="a whole number >= 0",
            fix="correct it, or choose map.weights_kind=probability",
        )
    return values


def _labels(frame: pl.DataFrame, column: str, name: str) -> ndarray:
    _refuse_missing(frame[column], name)
    return np.unique(frame[column].cast(pl.String).to_numpy(), return_inverse=True)[1]


def _outcome(frame: pl.DataFrame, column: str, columns: Sequence[str], name: str) -> Outcome:
    cells = frame[column]
    _refuse_missing(cells, name)
    classes = tuple(map(str, cells.unique().sort().to_list())) if cells.dtype == pl.String else ()
    if len(classes) > 2:
        raise InputError(
            f"the outcome has {len(classes)} classes of text",
            where=f"{name}, column '{column}'",
            expected="two classes, or numbers",
        )
    values = (cells == cells.unique().sort()[-1]).to_numpy().astype(float) if classes else None
    values = numeric(frame, [column], name=name)[:, 0] if values is None else values
    if len(np.unique(values)) < 2:
        raise InputError(
            f"the outcome has one class only ('{cells[0]}')",
            where=f"{name}, column '{column}'",
            expected="two classes, or numbers that vary",
        )
    return Outcome(column, values, _predictors(frame, columns, name), classes)


def _predictors(frame: pl.DataFrame, columns: Sequence[str], name: str) -> Float[ndarray, "rows predictors"]:
    """Code text by indicators of all values but the first, and leave out what is constant."""
    parts = []
    for column in columns:
        cells = frame[column]
        if cells.dtype == pl.String:
            parts += [(cells == value).to_numpy().astype(float) for value in cells.unique().sort()[1:]]
        else:
            parts.append(numeric(frame, [column], name=name)[:, 0])
    varying = [part for part in parts if np.ptp(part) > 0]
    if not varying:
        raise InputError("every column is constant", where=name, expected="a column that varies")
    return np.column_stack(varying)
