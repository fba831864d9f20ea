"""Tables that need no file: ``embedded:NAME`` where the path of a table may stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from sanov.core.errors import InputError, require
from sanov.data.tabular import population

__all__ = ["PREFIX", "TABLES", "resolve"]

PREFIX = "embedded:"
TRAINING_ROWS = 1200  # of the 1,797 digits; the last 597 are of other writers


def resolve(source: Any) -> Any:
    """Return the table that ``embedded:NAME`` stands for, and any other source as it is.

    Raises
    ------
    InputError
        No table has this name.
    MissingExtra
        scikit-learn, which carries them, is not installed.
    """
    if not (isinstance(source, str) and source.startswith(PREFIX)):
        return source
    name = source.removeprefix(PREFIX)
    if name not in TABLES:
        raise InputError(
            "there is no such table", where=source, expected=" or ".join(PREFIX + known for known in TABLES)
        )
    return TABLES[name]()


def _wine() -> pl.DataFrame:
    """178 wines, 13 measurements."""
    table = population("wine")
    return pl.DataFrame(dict(zip(table.columns, table.values.T, strict=True)))


def _digits() -> pl.DataFrame:
    """1,200 handwritten digits: 64 pixels, labels, and a teacher's logits, each from a fit to other rows."""
    pixels, labels = _load_digits()
    pixels, labels = pixels[:TRAINING_ROWS], labels[:TRAINING_ROWS]
    return _frame(pixels, labels, _teacher_logits(pixels, labels))


def _new_digits() -> pl.DataFrame:
    """The 597 other digits, with their labels."""
    pixels, labels = _load_digits()
    return _frame(pixels[TRAINING_ROWS:], labels[TRAINING_ROWS:])


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    found = require("sklearn.datasets", "demo").load_digits()
    return found.data, found.target


def _frame(pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray | None = None) -> pl.DataFrame:
    columns = {f"pixel_{place // 8}_{place % 8}": values for place, values in enumerate(pixels.T)}
    outputs = {} if logits is None else {f"logit_{digit}": values for digit, values in enumerate(logits.T)}
    return pl.DataFrame({**columns, "label": labels, **outputs})


def _teacher_logits(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Kernel logistic regression by random features, cross-fitted on five folds."""
    require("sklearn", "demo")
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    features = Nystroem(gamma=1e-3, n_components=300, random_state=0)
    teacher = make_pipeline(features, LogisticRegression(C=100.0, max_iter=1000))
    return np.asarray(cross_val_predict(teacher, pixels, labels, cv=5, method="decision_function"))


TABLES: dict[str, Callable[[], pl.DataFrame]] = {"digits": _digits, "digits-new": _new_digits, "wine": _wine}
