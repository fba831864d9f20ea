"""Who says what: the sources as tables, told apart by what they hold into teacher, student, baseline and labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from sanov.core.errors import InputError
from sanov.core.frames import name_of
from sanov.data.embedded import resolve
from sanov.data.predictions import Columns, Predictions, open_table, parse, wide_roles
from sanov.data.probabilities import classes_of
from sanov.systems.fidelity.config import Config

__all__ = ["PARTS", "Opened", "listed", "open_sources", "tell_apart"]

PARTS = ("teacher", "student", "baseline")
PREFIXES = ("probabilities", "logits", "teacher", "student", "baseline")  # options that name the start of a column
MOST_SHOWN = 6


class Opened(NamedTuple):
    """A source as a table, with what to call it."""

    name: str
    frame: pl.DataFrame
    source: Any


def open_sources(sources: Sequence[Any], config: Config) -> list[Opened]:
    """Read all sources as tables, the baseline's file last.

    Raises
    ------
    InputError
        A source that is no table.
    """
    given = [*sources, *([config.baseline] if config.baseline else [])]
    return [Opened(name_of(source), open_table(resolve(source), config.map), source) for source in given]


def tell_apart(opened: Sequence[Opened], config: Config) -> tuple[dict[str, Predictions], tuple[str, ...]]:
    """Return what the sources say, by their part: labels alone, the models in their order, the file `baseline` names.

    Parameters
    ----------
    opened
        From `open_sources`.
    config
        The options.

    Returns
    -------
    The predictions by part (teacher, student, baseline, labels), and what was assumed.

    Raises
    ------
    InputError
        There is no teacher with a student among the sources, or there are too many.
    """
    _check_named_columns(opened, config.map)
    _refuse_left_out(opened, config.map)
    positional = opened[:-1] if config.baseline else opened
    wide = next((table for table in positional if wide_roles(table.frame, config.map)), None)
    everything = [_parsed(table, config) for table in opened if table is not wide]
    named = everything[-1] if config.baseline else None
    found = [part for part in everything if part is not named]
    labels = [part for part in found if part.answers is None]
    models = [part for part in found if part.answers is not None]
    parts = {} if wide is None else _wide_parts(wide, config)
    free = [name for name in PARTS if name not in parts and not (named is not None and name == "baseline")]
    taken = named is not None and (named.answers is None or "baseline" in parts)
    if len(models) > len(free) or len(parts) + len(models) < 2 or len(labels) > 1 or taken:
        raise _no_pair(opened, wide, everything)
    parts |= dict(zip(free, models, strict=False)) | ({"labels": labels[0]} if labels else {})
    third = parts.get("baseline") if named is None and "baseline" in free else None
    notes = (f"assumed: {third.name}, one more file of predictions, is the student without a teacher",) if third else ()
    parts |= {"baseline": named} if named else {}
    return parts, (*notes, *(note for part in parts.values() for note in part.notes))


def _parsed(table: Opened, config: Config) -> Predictions:
    part = parse(table.frame, config.map, table.name, logits=config.logits, source=table.source)
    if part.answers is None and part.labels is None:
        raise _no_predictions(table, config.map)
    return part


def _wide_parts(wide: Opened, config: Config) -> dict[str, Predictions]:
    return {
        part: parse(wide.frame, config.map, wide.name, role=role, logits=config.logits, source=wide.source)
        for part, role in wide_roles(wide.frame, config.map).items()
    }


def _no_pair(opened: Sequence[Opened], wide: Opened | None, found: Sequence[Predictions]) -> InputError:
    models = {part.name for part in found if part.answers is not None}
    kinds = {table.name: "predictions" if table.name in models else "labels" for table in opened}
    if wide is not None:
        kinds[wide.name] = "teacher and student"
    return InputError(
        f"the files are {', '.join(f'{table.name} ({kinds[table.name]})' for table in opened)}",
        where="fidelity",
        expected="predictions of a teacher and of a student, then at most those of a baseline, and one of labels",
        fix="a single table needs columns teacher and student (map.teacher and map.student name them)",
    )


def _check_named_columns(opened: Sequence[Opened], columns: Columns) -> None:
    """Refuse a column that the user names and no file has; in a wide table it stands behind the name of a model."""
    known = list(dict.fromkeys(name for table in opened for name in table.frame.columns))
    for option in columns.model_fields_set - {"delimiter"}:
        name = getattr(columns, option)
        if not name or any(_stands_for(column, name, option in PREFIXES) for column in known):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"the columns are: {listed(known)}"
        raise InputError(f"there is no column {name!r} in any file", where=f"map.{option}", fix=fix)


def _refuse_left_out(opened: Sequence[Opened], columns: Columns) -> None:
    """Refuse probabilities without a class that others have: that rows then do not sum to 1 is not what is wrong."""
    found = []
    for table in opened:
        roles = wide_roles(table.frame, columns).values()
        prefixes = [(role.probabilities, role.logits) for role in roles] or [(columns.probabilities, columns.logits)]
        for prefix in (each for pair in prefixes for each in pair):
            found.append((table.name, prefix, classes_of(table.frame.columns, prefix)))
    full, _, classes = max(found, key=lambda each: len(each[2]))
    for name, prefix, own in found:
        if own and set(own) < set(classes):
            lost = [each for each in classes if each not in own]
            raise InputError(
                f"there is no column {listed([prefix + each for each in lost])}",
                where=name,
                expected=f"the classes of {full}: {listed(classes)}",
                fix="add it, or take the class out of every file",
            )


def _stands_for(column: str, name: str, prefix: bool) -> bool:
    return column == name or f"_{name}" in column or (prefix and column.startswith(name))


def _no_predictions(table: Opened, columns: Columns) -> InputError:
    near = difflib.get_close_matches(columns.prediction, table.frame.columns, n=1)
    known = f"the columns are: {listed(table.frame.columns)}; map.prediction=NAME names one"
    return InputError(
        f"there is no column {columns.prediction!r}, none of probabilities ({columns.probabilities}CLASS) and no label",
        where=table.name,
        fix=f"did you mean '{near[0]}'? Then pass map.prediction={near[0]}" if near else known,
    )


def listed(names: Sequence[str]) -> str:
    """Join a few names."""
    return ", ".join(names[:MOST_SHOWN]) + (" ..." if len(names) > MOST_SHOWN else "")
