"""Predictions made here: by fitted students of sanov and by Hugging Face classifiers, from the folders that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float64
from scipy.special import softmax

from sanov.core.errors import InputError, require
from sanov.core.files import read_json
from sanov.data.predictions import Predictions

if TYPE_CHECKING:
    from sanov.data.distillation import DistilTable
    from sanov.systems.fidelity.config import Config

__all__ = ["read_models"]


def read_models(sources: Sequence[Any], config: Config) -> tuple[dict[str, Predictions], tuple[str, ...]]:
    """Ask the models for their outputs on a table.

    Parameters
    ----------
    sources
        One table of texts or of features, with labels; its own logits are the teacher's where no teacher is named.
    config
        The options; ``models`` names the folders.

    Returns
    -------
    The predictions by their part, and what was assumed.

    Raises
    ------
    InputError
        The folder holds no model, the table no inputs for it, or a model is missing.
    MissingExtra
        torch, or transformers, is not installed.
    """
    if config.baseline:
        raise InputError(
            "is a file, and models are given", where="baseline", fix="name its folder by models.baseline=DIR"
        )
    table = _table(sources, config)
    found, notes = {}, []
    for part in ("teacher", "student", "baseline"):
        folder = getattr(config.models, part)
        if folder:
            logits, classes = _outputs(Path(folder), table, part)
            found[part] = _predictions(folder, table, logits, classes)
        elif part == "teacher" and table.logits is not None:
            found[part] = _predictions(table.name, table, table.logits, table.classes)
            notes.append(f"assumed: the logits in {table.name} are the teacher's")
    for part in ("teacher", "student"):
        if part not in found:
            fix = f"pass models.{part}=DIR" + (", or a table with its logits" if part == "teacher" else "")
            raise InputError(f"there is no {part}", where="models", fix=fix)
    return found, tuple(notes)


def _table(sources: Sequence[Any], config: Config) -> DistilTable:
    from sanov.data.distillation import read
    from sanov.data.distillation_sources import Columns

    if len(sources) != 1:
        found = f"{len(sources)} tables are given"
        raise InputError(found, where="fidelity", expected="one table of inputs for the models")
    named = {
        name: getattr(config.map, name) for name in config.map.model_fields_set & {"id", "label", "delimiter", "logits"}
    }
    return read(sources, Columns(**named))


def _outputs(
    folder: Path, table: DistilTable, part: str
) -> tuple[Float64[np.ndarray, "rows classes"], tuple[str, ...]]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(found, where=f"models.{part}={folder}", expected="a folder of a fitted model")
    settings = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    require("torch", "torch")
    if {"sanov", "system", "student"} <= settings.keys():
        from sanov.learning.students import Fitted

        fitted = Fitted.load(folder)
        return fitted.logits(table), fitted.classes
    from sanov.nets.foreign import classifier_classes, classifier_logits

    classes = classifier_classes(folder)
    if not isinstance(table.inputs, tuple):
        found = f"the inputs of {table.name} are features"
        raise InputError(found, where=f"models.{part}={folder}", expected="texts, for a Hugging Face classifier")
    return classifier_logits(folder, table.inputs), classes


def _predictions(name: str, table: DistilTable, logits: np.ndarray, classes: tuple[str, ...]) -> Predictions:
    names = pl.Series(classes, dtype=pl.String)
    labels = None
    if table.labels is not None and table.n_labelled:
        codes = replace(table, logits=None).aligned(classes).labels
        assert codes is not None
        labels = names.gather(pl.Series(codes).replace(-1, None))
    return Predictions(
        name=name,
        rows=len(table),
        ids=None if table.ids is None else pl.Series(table.ids, dtype=pl.String),
        answers=names.gather(logits.argmax(axis=1)),
        labels=labels,
        probabilities=softmax(logits, axis=1),
        classes=classes,
        source=table.source,
    )
