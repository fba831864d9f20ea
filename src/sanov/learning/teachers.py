"""Teachers: a Hugging Face classifier's outputs on a table of texts, computed once and kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.data import distillation
from sanov.data.distillation import DistilTable
from sanov.data.distillation_sources import Columns
from sanov.nets import foreign

__all__ = ["CACHE", "read", "with_teacher"]

CACHE = "teacher.safetensors"


def read(sources: Sequence[Any], columns: Columns, teacher: str = "") -> DistilTable:
    """Read rows to distil from; where a teacher is named, check that it and the table fit together.

    Parameters
    ----------
    sources
        As in `data.distillation.read`.
    columns
        The user's names of columns.
    teacher
        Folder of a Hugging Face classifier; empty for none. It is not run yet.

    Raises
    ------
    InputError
        The data or the folder are at fault, or the table has no texts, or labels that the teacher does not know.
    """
    table = distillation.read(sources, columns)
    if not teacher:
        return table
    classes = foreign.classifier_classes(teacher)
    if not table.is_text:
        fix = f"name the column of texts by map.text=NAME (found: features {', '.join(table.features[:4])})"
        raise InputError("a Hugging Face teacher reads texts, and the table has none", where=table.name, fix=fix)
    if table.logits is not None:
        raise InputError("the table has teacher logits, and a teacher is named too", where=table.name, fix="drop one")
    return table.aligned(classes)


def with_teacher(
    table: DistilTable, teacher: str, *, folder: str | Path | None = None, embeddings: bool = False
) -> DistilTable:
    """Return the table with the logits that a Hugging Face classifier gives to its texts.

    Parameters
    ----------
    table
        Texts, as `read` returned them.
    teacher
        Folder of the classifier; empty returns the table as it is.
    folder
        Where the logits are kept, and found again if neither texts nor teacher changed.
    embeddings
        Whether the embeddings are needed as well.
    """
    if not teacher or table.logits is not None:
        return table
    if not isinstance(table.inputs, tuple):
        raise InputError("a Hugging Face teacher reads texts, and the table has none", where=table.name)
    key = files.digest([list(table.inputs), files.digest(Path(teacher))])
    place = None if folder is None else Path(folder) / CACHE
    logits = _kept(place, key)
    if logits is None:
        logits = foreign.classifier_logits(teacher, table.inputs)
        if place is not None:
            files.write_bytes(place, save_arrays({"logits": logits}, metadata={"key": key}))
    return replace(table, logits=logits)


def _kept(place: Path | None, key: str) -> np.ndarray | None:
    if place is None or not place.is_file():
        return None
    try:
        content = place.read_bytes()
        if key.encode() not in content[:4096]:  # the header, in which the metadata stands
            return None
        return np.asarray(load_arrays(content)["logits"])
    except (OSError, SafetensorError, KeyError):
        warnings.warn(f"{place} is damaged; the teacher is run again.", SanovWarning, stacklevel=3)
        return None
