"""Teachers: their outputs on the rows of a table, computed in one pass and kept.

Where they are kept: in the folder that the environment variable ``SANOV_CACHE`` names, for all fits and processes to share;
without it, in the folder of the fit. An entry is found by the content of the teacher, its tokenizer and the rows, so nothing
in it is ever out of date, and any of it may be deleted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sanov.core.errors import InputError, SanovWarning
from sanov.data import distillation
from sanov.data.distillation import DistilTable, Head
from sanov.data.distillation_sources import Columns
from sanov.learning import row_cache
from sanov.learning.processes import every_process, gathered, joined
from sanov.learning.teacher_kinds import Arrays, OfRows, OfTexts, Rows, Teacher, checked
from sanov.nets import foreign

__all__ = ["CACHE", "VARIABLE", "Outputs", "Teacher", "outputs", "read", "with_teacher"]

CACHE = "teacher"  # folder inside that of a fit
VARIABLE = "SANOV_CACHE"


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a teacher says of rows; where it is kept, arrays by row are mapped into memory and cannot be written.

    Parameters
    ----------
    logits
        Before any temperature; None for an encoder without a head.
    embeddings
        Input of the last linear layer; None where they were not asked for.
    head
        That layer.
    """

    logits: Float[np.ndarray, "_rows _classes"] | None = None
    embeddings: Float[np.ndarray, "_rows _width"] | None = None
    head: Head | None = None

    def __len__(self) -> int:
        values = self.embeddings if self.logits is None else self.logits
        return 0 if values is None else len(values)


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
    if foreign.is_encoder(teacher):
        fix = "fine-tune it as a classifier first, and save that"
        raise InputError("is an encoder without a classification head, which gives no logits", where=teacher, fix=fix)
    if not table.is_text:
        fix = f"name the column of texts by map.text=NAME (found: features {', '.join(table.features[:4])})"
        raise InputError("a Hugging Face teacher reads texts, and the table has none", where=table.name, fix=fix)
    if table.logits is not None or table.embeddings is not None:
        found = "logits" if table.logits is not None else "embeddings"
        raise InputError(f"the table has teacher {found}, and a teacher is named too", where=table.name, fix="drop one")
    return table.aligned(classes)


def with_teacher(
    table: DistilTable,
    teacher: Teacher,
    *,
    folder: str | Path | None = None,
    embeddings: bool = False,
    max_length: int | None = None,
    key: str = "",
) -> DistilTable:
    """Return the table with the logits that a teacher gives to its rows, and its embeddings where they are wanted.

    Parameters
    ----------
    table
        Rows, as `read` returned them.
    teacher, max_length, key
        As in `outputs`; an empty name returns the table as it is.
    folder
        The fit's, in which the outputs are kept where ``SANOV_CACHE`` names no other.
    embeddings
        Whether the input of the teacher's last linear layer is wanted too, with that layer.

    Raises
    ------
    InputError
        As in `outputs`, or the teacher's classes are others than the table's.
    """
    complete = table.logits is not None and (table.embeddings is not None or not embeddings)
    if complete or (isinstance(teacher, str) and not teacher):
        return table
    if isinstance(teacher, str | Path) and not foreign.is_encoder(teacher):
        table = table.aligned(foreign.classifier_classes(teacher))
    root = None if folder is None else Path(folder) / CACHE
    found = outputs(teacher, table.inputs, embeddings=embeddings, max_length=max_length, folder=root, key=key)
    logits, inside = (None if x is None else x.astype(np.float64) for x in (found.logits, found.embeddings))
    logits = table.logits if logits is None else logits
    return replace(table, classes=_classes(table, found), logits=logits, embeddings=inside, head=found.head)


def outputs(
    teacher: Teacher,
    rows: Rows,
    *,
    embeddings: bool = False,
    max_length: int | None = None,
    folder: str | Path | None = None,
    key: str = "",
) -> Outputs:
    """Return what a teacher says of rows: from where it was kept, else in one pass.

    Parameters
    ----------
    teacher
        Folder of a Hugging Face classifier, or (for embeddings alone) of an encoder; a network of features; any function of
        some of the rows that returns logits, logits and embeddings, or a mapping of `Outputs`' names with ``head_weight``
        and ``head_bias``; or such an array or mapping itself.
    rows
        Texts, or features [rows, features].
    embeddings
        Whether the input of the last linear layer is wanted; of an encoder, the mean of its last hidden states.
    max_length
        Tokens after which a text is cut; None takes the model's own limit.
    folder
        Where outputs are kept if the environment variable ``SANOV_CACHE`` is not set; None for nowhere.
    key
        What a function is, in any words that change with it; without one its outputs are not kept, for nothing else tells
        two functions apart.

    Raises
    ------
    InputError
        The teacher is at fault, its outputs are not finite or do not fit the rows, embeddings are wanted that it does not
        have, or the folder is full.
    """
    if len(rows) == 0:
        raise InputError("there are no rows", where="the teacher's input")
    if isinstance(teacher, Mapping | np.ndarray):
        return _made(checked(teacher, embeddings, len(rows)), embeddings)
    if isinstance(teacher, str | Path):
        work: OfTexts | OfRows = OfTexts(teacher, rows, embeddings, max_length)
    else:
        work = OfRows(teacher, rows, embeddings)
    about = work.about(key)
    found = None if about is None else _known(about, len(rows), folder)
    if found is None:
        with _root([] if about is None else _roots(folder)) as root:
            found = _shared(work, len(rows)) if root is None else row_cache.kept(root, about or {}, len(rows), work)
        work.told()
    return _made(found, embeddings)


# -- where outputs are kept -------------------------------------------------------------------------------------------


def _roots(folder: str | Path | None) -> list[Path]:
    shared = os.environ.get(VARIABLE, "")
    return [*([Path(shared).expanduser()] if shared else []), *([] if folder is None else [Path(folder)])]


def _known(about: dict[str, Any], rows: int, folder: str | Path | None) -> Arrays | None:
    """Outputs that are kept whole; a pass that kept more than is wanted will do."""
    for root in _roots(folder):
        for more in {about["embeddings"], True}:
            found = row_cache.known(root, {**about, "embeddings": more}, rows)
            if found is not None:
                return found
    return None


@contextmanager
def _root(places: Sequence[Path]) -> Iterator[Path | None]:
    """Yield the first folder that can be written."""
    for place in places:
        with row_cache.writable(place) as found:
            if found:
                yield place
                return
        text = f"{place} cannot be written: the teacher's outputs are not kept there."
        warnings.warn(text, SanovWarning, stacklevel=5)
    yield None


def _shared(work: row_cache.Work, rows: int) -> Arrays:
    """Compute in the first process, and hand the arrays to the others."""
    state = joined()
    if state.num_processes == 1:
        return row_cache.computed(work, rows)
    own = row_cache.computed(work, rows) if state.process_index == 0 else {}
    shapes = every_process({name: (values.shape[1:], str(values.dtype)) for name, values in own.items()})[0]
    arrays = {name: own.get(name, np.empty((0, *shape), dtype)) for name, (shape, dtype) in shapes.items()}
    return {name: gathered(torch.from_numpy(x).to(state.device)).cpu().numpy() for name, x in arrays.items()}


# -- outputs ----------------------------------------------------------------------------------------------------------


def _made(found: Arrays, embeddings: bool) -> Outputs:
    inside = found.get("embeddings") if embeddings else None
    head = Head(found["head_weight"], found["head_bias"]) if inside is not None and "head_weight" in found else None
    return Outputs(found.get("logits"), inside, head)


def _classes(table: DistilTable, found: Outputs) -> tuple[str, ...]:
    """Names of the classes: the table's; numbers where it has none, or only the first of them."""
    if found.logits is None:
        return table.classes
    numbers = tuple(map(str, range(found.logits.shape[1])))
    if table.classes == numbers[: len(table.classes)]:
        return numbers
    if len(table.classes) != len(numbers):
        shown = f"the teacher has {len(numbers)} classes, and the table {len(table.classes)}"
        raise InputError(shown, where=table.name, expected="the same classes in both")
    return table.classes
