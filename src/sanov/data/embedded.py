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
DIGITS, LABELLED = 10, 400


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


def _parity() -> dict[str, np.ndarray]:
    """The same 1,200 digits as even and odd, with a teacher of the two that shows its embeddings; the digit is known."""
    return _even_and_odd(slice(TRAINING_ROWS), taught=True)


def _new_parity() -> dict[str, np.ndarray]:
    """The 597 other digits as even and odd."""
    return _even_and_odd(slice(TRAINING_ROWS, None), taught=False)


def _even_and_odd(rows: slice, *, taught: bool) -> dict[str, np.ndarray]:
    """Kernel logistic regression: its random features are the embeddings, its coefficients the head."""
    pixels, labels = _load_digits()
    arrays = {"inputs": pixels[rows], "labels": labels[rows] % 2, "subclasses": labels[rows].astype(str)}
    arrays["classes"] = np.array(["even", "odd"])
    if not taught:
        return arrays
    teacher = _teacher().fit(arrays["inputs"], arrays["labels"])
    embeddings, found = teacher[:-1].transform(arrays["inputs"]), teacher[-1]
    weight = np.stack([np.zeros_like(found.coef_[0]), found.coef_[0]], axis=1)
    head = {"head_weight": weight, "head_bias": np.array([0.0, found.intercept_[0]])}
    return {**arrays, "embeddings": embeddings, **head}


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
    from sklearn.model_selection import cross_val_predict

    return np.asarray(cross_val_predict(_teacher(), pixels, labels, cv=5, method="decision_function"))


def _teacher() -> Any:
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = Nystroem(gamma=1e-3, n_components=300, random_state=0)
    return make_pipeline(features, LogisticRegression(C=100.0, max_iter=1000))


def _predictions() -> pl.DataFrame:
    """1,797 digits as a teacher, its student and the same student without a teacher see them, on rows held out from each.

    The teacher sees all pixels; the other two are linear in 16 coarse ones. The baseline has the labels of 400 rows, the
    student the teacher's probabilities of all rows: each row once for every class, with that weight.
    """
    require("sklearn", "demo")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    pixels, labels = _load_digits()
    coarse = pixels.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(pixels), -1) / 16
    found = {part: np.empty((len(labels), DIGITS)) for part in ("teacher", "student", "baseline")}
    for train, test in KFold(5, shuffle=True, random_state=0).split(pixels):
        teacher = _teacher().fit(pixels[train], labels[train])
        soft = teacher.predict_proba(pixels[train])
        row, digit = np.nonzero(soft > 0.01)  # weights below this change nothing but the time
        student, baseline = (LogisticRegression(C=10.0, max_iter=500) for _ in range(2))
        student.fit(coarse[train][row], digit, soft[row, digit])
        baseline.fit(coarse[train[:LABELLED]], labels[train[:LABELLED]])
        found["teacher"][test] = teacher.predict_proba(pixels[test])
        found["student"][test] = student.predict_proba(coarse[test])
        found["baseline"][test] = baseline.predict_proba(coarse[test])
    columns = {part: values.argmax(axis=1) for part, values in found.items()}
    columns |= {f"{part}_prob_{digit}": values[:, digit] for part, values in found.items() for digit in range(DIGITS)}
    return pl.DataFrame({"id": np.arange(1, len(labels) + 1), "label": labels, **columns})


TABLES: dict[str, Callable[[], Any]] = {
    "digits": _digits,
    "digits-new": _new_digits,
    "parity": _parity,
    "parity-new": _new_parity,
    "predictions": _predictions,
    "wine": _wine,
}
