"""Teachers that are scikit-learn classifiers, and what they say of the rows that a student learns from.

A classifier is over-confident on the rows that it was fitted to. One that is fitted here is therefore asked of each row
by a copy that never saw it (five folds); one that comes fitted is asked as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from sanov.core.errors import InputError, SanovWarning
from sanov.data.heads import Head, checked_logits

__all__ = ["DataError", "default_teacher", "head_of", "is_fitted", "last_layer", "plain_embeddings", "taught"]

FOLDS = 5
SMALLEST = 1e-7  # to which a probability of 0 is raised, so that it has a logarithm: 1 of 10 at temperature 7
COMPONENTS = 300  # features of the default teacher
CERTAINTY = 10.0  # C of its logistic regression: by log loss on scikit-learn's own small data sets
WIDEST = 2000  # columns of sparse embeddings that are written out
AGREE = 1e-4  # of a probability: what two ways to compute it may differ by
WORD = r"(?u)\w+|[^\w\s]"  # a run of letters and digits, or one mark of punctuation, as for the student

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {  # of MLPClassifier
    "identity": lambda x: x,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


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
    if isinstance(teacher, type):
        found, name = f"is the class {teacher.__name__}", teacher.__name__
        raise DataError(found, where="teacher", expected="a classifier", fix=f"write {name}()")
    if not hasattr(teacher, "predict_proba"):
        found = f"{type(teacher).__name__} has no predict_proba"
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


def _columns(teacher: Any, classes: np.ndarray) -> list[int]:
    """Return where the teacher has each class.

    Raises
    ------
    DataError
        It has not all of them.
    """
    known = np.asarray(teacher.classes_).tolist()
    unknown = [name for name in classes.tolist() if name not in known]
    if unknown:
        found = f"it was fitted to the classes {known}, and the labels have {unknown[0]!s}"
        raise DataError(found, where="teacher", fix="fit it to rows of all classes")
    return [known.index(name) for name in classes.tolist()]


def _logarithm(probabilities: Any) -> Float64[np.ndarray, "rows classes"]:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST))


# -- the last layer ---------------------------------------------------------------------------------------------------


def last_layer(teacher: Any, inputs: Any, classes: np.ndarray) -> tuple[Float64[np.ndarray, "rows width"], Head]:
    """Return what a fitted teacher's last linear layer reads of each row, and the layer.

    These come from the teacher that was fitted to all rows, its logits from copies: two copies have not the same
    embeddings. What remains of these once the layer's directions are out is little of what a teacher is over-confident in.

    Parameters
    ----------
    teacher
        As in `taught`.
    inputs
        What it reads, by row.
    classes
        In the order of the columns wanted.

    Raises
    ------
    DataError
        Its last step is not linear with a softmax, or reads thousands of sparse columns.
    """
    model = getattr(teacher, "estimator", teacher) if type(teacher).__name__ == "FrozenEstimator" else teacher
    steps = getattr(model, "steps", None)
    last = model if steps is None else steps[-1][1]
    read = inputs if steps is None or len(steps) == 1 else model[:-1].transform(inputs)
    if hasattr(last, "coefs_"):
        read, weight, bias = _hidden(last, read), last.coefs_[-1], last.intercepts_[-1]
    elif hasattr(last, "coef_") and hasattr(last, "predict_proba"):
        weight, bias = np.transpose(last.coef_), last.intercept_
    else:
        raise _no_layer(f"{type(last).__name__} has no linear last layer")
    embeddings = plain_embeddings(read, where="teacher")
    weight, bias = np.asarray(weight, dtype=np.float64), np.broadcast_to(bias, weight.shape[1:]).astype(np.float64)
    if weight.shape[1] == 1:  # one output z stands for the two logits 0 and z
        weight, bias = np.hstack([np.zeros_like(weight), weight]), np.append(0.0, bias)
    head = Head(weight, bias)
    if not np.allclose(_softmax(head.logits(embeddings)), teacher.predict_proba(inputs), atol=AGREE):
        raise _no_layer(f"the probabilities of {type(last).__name__} are no softmax of its last layer")
    return embeddings, head.take(_columns(teacher, classes))


def _no_layer(found: str) -> DataError:
    expected = "LogisticRegression or MLPClassifier, at the end of a pipeline or not"
    fix = "give such a teacher, subclasses=1, or teacher_logits and teacher_embeddings to fit"
    return DataError(found, where="teacher", expected=expected, fix=fix)


def _hidden(network: Any, inputs: Any) -> Any:
    """Return the last hidden layer of an ``MLPClassifier``."""
    values = inputs.to_numpy() if hasattr(inputs, "to_numpy") else inputs
    for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        values = ACTIVATIONS[network.activation](values @ weight + bias)
    return values


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def plain_embeddings(values: Any, *, where: str) -> Float64[np.ndarray, "rows width"]:
    """Return embeddings as an array of numbers.

    Parameters
    ----------
    values
        A matrix, sparse or not.
    where
        What to name in a message.

    Raises
    ------
    DataError
        It is no matrix of finite numbers, or a sparse one of thousands of columns.
    """
    if hasattr(values, "toarray"):
        if values.shape[1] > WIDEST:
            found = f"its last layer reads {values.shape[1]} sparse columns"
            fix = "put TruncatedSVD(100) before it: make_pipeline(TfidfVectorizer(), TruncatedSVD(100), LogisticRegression())"
            raise DataError(found, where=where, expected=f"at most {WIDEST}", fix=fix)
        values = values.toarray()
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise DataError("is no matrix of finite numbers", where=where, expected="[rows, width]")
    return matrix


def head_of(embeddings: Float64[np.ndarray, "_rows width"], logits: Float64[np.ndarray, "_rows classes"]) -> Head:
    """Return the linear map that takes embeddings to logits, by least squares.

    Logits are known but for one number a row where they were log-probabilities; then the map takes embeddings to the
    centred logits.

    Parameters
    ----------
    embeddings, logits
        Of a teacher, by row.

    Raises
    ------
    DataError
        None does: embeddings must be the input of the last linear layer.
    """
    if len(embeddings) != len(logits):
        found = f"there are {len(embeddings)} rows of embeddings and {len(logits)} of logits"
        raise DataError(found, where="teacher_embeddings")
    if len(embeddings) <= embeddings.shape[1] + 1:
        found = f"{len(embeddings)} rows of {embeddings.shape[1]} embeddings do not determine the teacher's last layer"
        raise DataError(found, where="teacher_embeddings", fix="give more rows, or set null_space=False")
    columns = np.column_stack([embeddings, np.ones(len(embeddings))])
    centred = logits - logits.mean(axis=1, keepdims=True)
    for wanted in (logits, centred):
        found = np.linalg.lstsq(columns, wanted)[0]
        head = Head(found[:-1], found[-1])
        try:
            checked_logits(embeddings, head, wanted, name="teacher_embeddings")
        except InputError as error:
            refused = error
        else:
            return head
    raise DataError(refused.found, where=refused.where, expected=refused.expected, fix=None)
