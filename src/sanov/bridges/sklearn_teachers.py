"""Teachers that are scikit-learn classifiers, and what they say of the rows that a student learns from.

A classifier is over-confident on the rows that it was fitted to. One that is fitted here is therefore asked of each row
by a copy that never saw it (five folds); one that comes fitted is asked as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from sanov.core.errors import InputError, SanovWarning

__all__ = ["DataError", "default_teacher", "is_fitted", "taught"]

FOLDS = 5
SMALLEST = 1e-7  # to which a probability of 0 is raised, so that it has a logarithm: 1 of 10 at temperature 7
COMPONENTS = 300  # features of the default teacher
CERTAINTY = 10.0  # C of its logistic regression: by log loss on scikit-learn's own small data sets
WORD = r"(?u)\w+|[^\w\s]"  # a run of letters and digits, or one mark of punctuation, as for the student


class DataError(InputError, ValueError):
    """A mistake in what was given to an estimator: a ``ValueError``, as scikit-learn's callers expect."""


def default_teacher(labels: np.ndarray, features: int | None, seed: int) -> Any:
    """Return the classifier that teaches where none is given: logistic regression on features found without labels.

    For numbers these are the Nystroem features of an RBF kernel on the standardised columns, for texts TF-IDF of words and
    pairs.

    Parameters
    ----------
    labels
        Class of each row that it will learn from.
    features
        Columns of the inputs; None for texts.
    seed
        Of the features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    head = LogisticRegression(C=CERTAINTY, max_iter=1000)
    if features is None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD), head)
    from sklearn.kernel_approximation import Nystroem
    from sklearn.preprocessing import StandardScaler

    folds, rows = _folds(labels), len(labels)
    smallest = rows - math.ceil(rows / folds) if folds > 1 else rows  # part of the rows that a copy is fitted to
    kernel = Nystroem(gamma=1 / features, n_components=min(COMPONENTS, smallest), random_state=seed)
    return make_pipeline(StandardScaler(), kernel, head)


def is_fitted(teacher: Any) -> bool:
    """Whether a classifier was fitted already."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(teacher)
    except NotFittedError:
        return False
    return True


def _folds(labels: np.ndarray) -> int:
    """Return the number of folds such that each class is in all of them; below 2 there are none."""
    return min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))


def taught(
    teacher: Any, inputs: Any, labels: np.ndarray, *, seed: int
) -> tuple[Float64[np.ndarray, "rows classes"], Any]:
    """Return what a teacher says of each row, and the teacher, fitted to all rows.

    Parameters
    ----------
    teacher
        A classifier with ``predict_proba``. It is never changed: one that is not fitted is copied.
    inputs
        What it reads, by row.
    labels
        Class of each row.
    seed
        Of the folds, and of a teacher that has no seed of its own.

    Returns
    -------
    Log-probabilities, whose softmax is the teacher's answer, with the classes in sorted order; and the fitted teacher.

    Raises
    ------
    DataError
        The teacher gives no probabilities, or does not know a class.
    """
    if isinstance(teacher, type) or not hasattr(teacher, "predict_proba"):
        found = f"{teacher if isinstance(teacher, type) else type(teacher).__name__} has no predict_proba"
        fix = "wrap it in sklearn.calibration.CalibratedClassifierCV, or give its logits to fit as teacher_logits"
        raise DataError(found, where="teacher", expected="a classifier that gives probabilities", fix=fix)
    if is_fitted(teacher):
        return _logarithm(teacher.predict_proba(inputs)[:, _columns(teacher, np.unique(labels))]), teacher
    seeded = _seeded(teacher, seed)
    probabilities = _cross_fitted(seeded, inputs, labels, seed)
    fitted = seeded.fit(inputs, labels)
    return _logarithm(fitted.predict_proba(inputs) if probabilities is None else probabilities), fitted


def _cross_fitted(teacher: Any, inputs: Any, labels: np.ndarray, seed: int) -> Any:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = _folds(labels)
    if folds < 2:
        names, counts = np.unique(labels, return_counts=True)
        text = f"class {names[counts.argmin()]!s} has one row, so that the teacher answers for rows that it was fitted to: "
        warnings.warn(text + "it is too sure of them.", SanovWarning, stacklevel=5)
        return None
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(teacher, inputs, labels, cv=parts, method="predict_proba")


def _seeded(teacher: Any, seed: int) -> Any:
    """Return an unfitted copy in which whatever has no seed has this one."""
    from sklearn.base import clone

    copy = clone(teacher)
    open_seeds = [
        name
        for name, value in copy.get_params().items()
        if value is None and name.rsplit("__", 1)[-1] == "random_state"
    ]
    return copy.set_params(**dict.fromkeys(open_seeds, seed))


def _columns(teacher: Any, classes: Sequence[Any]) -> list[int]:
    """Return where the teacher has each class.

    Raises
    ------
    DataError
        It has not all of them.
    """
    known = list(teacher.classes_)
    unknown = [name for name in classes if name not in known]
    if unknown:
        found = f"it was fitted to the classes {known}, and the labels have {unknown[0]!s}"
        raise DataError(found, where="teacher", fix="fit it to rows of all classes")
    return [known.index(name) for name in classes]


def _logarithm(probabilities: Any) -> Float64[np.ndarray, "rows classes"]:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST))
