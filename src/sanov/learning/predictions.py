"""What a fitted student says of a table: classes with probabilities, and how well it does where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import log_softmax

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.learning.students import Fitted
from sanov.learning.subclass_cards import cards
from sanov.scores import calibration_error, reliability_table

__all__ = ["load", "predict"]

MOST_COLUMNS = 50  # classes of which each gets a column of probabilities
BINS = 15


def load(fitted: Fitted | str | Path | None, *, system: str) -> Fitted:
    """Return a fitted student from what `apply` was given.

    Raises
    ------
    InputError
        Nothing was given, or the folder holds no finished student.
    """
    if fitted is None:
        fix = f"first: sanov fit {system} DATA... --out DIR; then pass --fitted DIR"
        raise InputError("there is no fitted student to predict with", where=system, fix=fix)
    return fitted if isinstance(fitted, Fitted) else Fitted.load(fitted)


def predict(table: DistilTable, fitted: Fitted, *, system: str) -> Answer:
    """Predict a table's rows.

    Parameters
    ----------
    table
        Inputs as in training; labels and teacher logits where there are any.
    fitted
        The student.
    system
        Name of the system that asks.

    Returns
    -------
    Class and probabilities of each row. With labels also accuracy with its 95 % interval (Wilson), log loss in nats,
    calibration error of the confidence and the reliability figure; with teacher logits the agreement with the teacher;
    for a student of subclasses that of each row, and what each subclass is.

    Raises
    ------
    InputError
        The inputs are others than in training, or labels are no classes of the student.
    """
    table = table.aligned(fitted.classes)
    log_p = log_softmax(fitted.logits(table), axis=1)
    values: dict[str, Any] = {"rows": len(table)}
    tables, figures = {"Predictions": _predictions(table, log_p)}, {}
    notes: list[str] = []
    if fitted.subclasses > 1:
        found = cards(table, fitted.subclass_log_probs(table))
        with_subclass = tables["Predictions"].with_columns(subclass=pl.Series(found.subclass + 1))
        tables = {"Predictions": with_subclass, "Subclasses": found.table}
        values, figures, notes = values | found.values, found.figures, found.notes
    if table.labels is not None and table.n_labelled:
        rows = table.labels >= 0
        values |= _scores(log_p[rows], table.labels[rows])
        tables["By class"] = _by_class(table, log_p[rows].argmax(axis=1), table.labels[rows])
        figures["Reliability"], tables["Reliability"] = _reliability(log_p[rows], table.labels[rows])
        if not rows.all():
            notes.append(f"{(~rows).sum()} rows have no label; they are predicted, and left out of the scores.")
    if table.logits is not None:
        values |= _share("agreement", log_p.argmax(axis=1) == table.logits.argmax(axis=1))
    return Answer(
        system=system,
        sentence=_sentence(values, log_p),
        values=values,
        tables=tables,
        figures=figures,
        notes=tuple(notes),
        provenance={"input": table.digest()},
        source=table.source,
    )


def _predictions(table: DistilTable, log_p: np.ndarray) -> pl.DataFrame:
    classes = np.array(table.classes)
    best = log_p.argmax(axis=1)
    columns: dict[str, Any] = {"row": np.arange(1, len(table) + 1)} if table.ids is None else {"id": list(table.ids)}
    columns |= {"class": classes[best], "confidence": np.exp(log_p.max(axis=1))}
    if len(classes) <= MOST_COLUMNS:
        columns |= {f"p_{name}": np.exp(log_p[:, place]) for place, name in enumerate(classes)}
    if table.labels is not None and table.n_labelled:
        columns["label"] = [None if label < 0 else str(classes[label]) for label in table.labels]
    if table.logits is not None:
        columns["teacher"] = classes[table.logits.argmax(axis=1)]
    return pl.DataFrame(columns)


def _scores(log_p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    right = log_p.argmax(axis=1) == labels
    return {
        "labelled_rows": len(labels),
        **_share("accuracy", right),
        "log_loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "calibration_error": float(calibration_error(np.exp(log_p.max(axis=1)), right.astype(float), bins=BINS)),
    }


def _share(name: str, right: np.ndarray) -> dict[str, float]:
    """Return a share with its 95 % interval after Wilson."""
    from scipy.stats import binomtest  # imported here: it takes most of a second

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {name: float(right.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def _by_class(table: DistilTable, predicted: np.ndarray, labels: np.ndarray) -> pl.DataFrame:
    n = len(table.classes)
    truth, guess = np.bincount(labels, minlength=n), np.bincount(predicted, minlength=n)
    hits = np.bincount(labels[predicted == labels], minlength=n)
    columns = {"class": list(table.classes), "rows": truth, "predicted": guess, "right": hits}
    frame = pl.DataFrame(columns)
    shares = {"recall": "rows", "precision": "predicted"}
    return frame.with_columns(
        pl.when(pl.col(of) > 0).then(pl.col("right") / pl.col(of)).alias(name) for name, of in shares.items()
    )


def _reliability(log_p: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], pl.DataFrame]:
    confidence, right = np.exp(log_p.max(axis=1)), (log_p.argmax(axis=1) == labels).astype(float)
    frame = pl.DataFrame(reliability_table(confidence, right, bins=BINS))
    return _figure(frame), frame


def _figure(frame: pl.DataFrame) -> dict[str, Any]:
    """Observed share right against mean confidence, one point a bin, with the diagonal."""
    unit = {"domain": [0, 1]}
    ends = [{"confidence": 0, "right": 0}, {"confidence": 1, "right": 1}]
    x = {"field": "confidence", "type": "quantitative", "scale": unit, "title": "mean confidence"}
    y = {"field": "right", "type": "quantitative", "scale": unit, "title": "share right"}
    size = {"field": "rows", "type": "quantitative", "title": "rows"}
    return {
        "layer": [
            {"data": {"values": ends}, "mark": {"type": "line", "strokeDash": [4, 4]}, "encoding": {"x": x, "y": y}},
            {"data": {"values": frame.to_dicts()}, "mark": "point", "encoding": {"x": x, "y": y, "size": size}},
        ]
    }


def _sentence(values: Mapping[str, Any], log_p: np.ndarray) -> str:
    parts = []
    if "accuracy" in values:
        parts.append(f"{_told(values, 'accuracy')} of {values['labelled_rows']} labelled rows are classified rightly")
    if "agreement" in values:
        parts.append(f"{_told(values, 'agreement')} of {values['rows']} rows are classified as the teacher does")
    if not parts:
        return f"{values['rows']} rows are classified, with a mean confidence of {np.exp(log_p.max(axis=1)).mean():.3f}"
    return "; ".join(parts)


def _told(values: Mapping[str, Any], name: str) -> str:
    low, high = values[f"{name}_low"], values[f"{name}_high"]
    return f"{values[name]:.1%} (95 % interval {low:.1%} to {high:.1%})"
