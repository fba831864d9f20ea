"""Real tables that serve as populations whose every property is known.

Nothing is fetched. scikit-learn carries two of the tables; the third is read from the folder that the environment
variable ``SANOV_DATA`` names. Each is checked against its digest, since damaged copies are common.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core import files
from sanov.core.errors import InputError, require
from sanov.core.frames import check_columns, numeric, read_frame

__all__ = ["DIGESTS", "Population", "is_available", "population"]

DIGESTS = {
    "breast_cancer": "6b202a2072f9a0385f405a8f8605b1b06f6f36ae6d23d9cd6cbbc0974a416bc7",
    "wine": "8edcf3903afd97c64d51e0212eb10b213f7943da650574d1c055b836c5c35d37",
    "red_wine": "d6a0d9bd24806944818795f22500c46cb6424cbff517aacda36595d3ed9b2daa",
}
RED_WINE = Path("wine") / "winequality-red.csv"


@dataclass(frozen=True)
class Population:
    """A real table: its columns and all its rows."""

    name: str
    columns: tuple[str, ...]
    values: Float[ndarray, "rows columns"]


def is_available(name: str) -> bool:
    """Whether the table can be read here: its package is installed, or its file is there."""
    return find_spec("sklearn") is not None if name in SCIKIT_LEARN else (_folder() / RED_WINE).is_file()


def population(name: str, columns: Sequence[str] = ()) -> Population:
    """Return a table that is used as a whole population.

    Parameters
    ----------
    name
        ``breast_cancer`` (569 rows, 30 columns), ``wine`` (178, 13), or ``red_wine`` (1,599; its 11 measurements).
    columns
        The columns to keep; all by default.

    Raises
    ------
    InputError
        Unknown table or column, a missing file, or values that are not the published ones.
    MissingExtra
        scikit-learn is not installed.
    """
    if name not in DIGESTS:
        raise InputError("there is no such table", where=name, expected=" or ".join(DIGESTS))
    names, values = _scikit_learn(name) if name in SCIKIT_LEARN else _red_wine()
    if columns:
        unknown = [column for column in columns if column not in names]
        if unknown:
            raise InputError(f"there is no column {unknown[0]!r}", where=name, expected=", ".join(names))
        values, names = values[:, [names.index(column) for column in columns]], list(columns)
    return Population(name, tuple(names), values)


SCIKIT_LEARN = {"breast_cancer": "load_breast_cancer", "wine": "load_wine"}


def _scikit_learn(name: str) -> tuple[list[str], Float[ndarray, "rows columns"]]:
    load: Callable[[], object] = getattr(require("sklearn.datasets", "tabular"), SCIKIT_LEARN[name])
    table = load()
    values = np.ascontiguousarray(table.data, dtype="<f8")  # type: ignore[attr-defined]
    _check_digest(name, files.digest(values.tobytes()), "scikit-learn's copy")
    return [str(column) for column in table.feature_names], values.astype(np.float64)  # type: ignore[attr-defined]


def _folder() -> Path:
    return Path(os.environ.get("SANOV_DATA", "no folder is named"))


def _red_wine() -> tuple[list[str], Float[ndarray, "rows columns"]]:
    path = _folder() / RED_WINE
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="set SANOV_DATA to the folder that holds it")
    _check_digest("red_wine", files.digest(path), str(path))
    frame = read_frame(path)
    names = [column for column in frame.columns if column != "quality"]
    check_columns(frame, names, name=str(path))
    return names, numeric(frame, names, name=str(path))


def _check_digest(name: str, found: str, where: str) -> None:
    if found != DIGESTS[name]:
        raise InputError(f"holds other values ({found[:12]})", where=where, expected=f"digest {DIGESTS[name][:12]}")
