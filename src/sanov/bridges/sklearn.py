"""Distillation as scikit-learn estimators: `fit` trains a teacher, unless one is given, and a student on what it says.

::

    student = SinkdClassifier(teacher=RandomForestClassifier(), epochs=50)
    student.fit(X, y).predict_proba(X_new)

The parameters are the options of the system (``sanov show sinkd``), those of a group without the group's name: ``epochs``
is ``training.epochs``. They are checked by `fit`. ``X`` holds numbers, or is a list of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from sanov.bridges.sklearn_teachers import DataError, default_teacher, taught
from sanov.core.errors import InputError, require
from sanov.core.options import parse
from sanov.data import distillation
from sanov.data.distillation import DistilTable
from sanov.learning.distil import held_out_rows
from sanov.systems import find

require("sklearn", "demo")
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data  # noqa: E402

__all__ = ["DataError", "SinkdClassifier"]

SEEDS = 2**31 - 1  # number of seeds that a random state is asked for


class _Distilled(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What the estimators share: they differ in their system and its options."""

    _system: ClassVar[str]
    _groups: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("width", "depth", "buckets", "embedding", "ngrams"), "student"),
        **dict.fromkeys(("epochs", "learning_rate", "batch_size", "weight_decay"), "training"),
        "validation_share": "validation",
    }

    def predict(self, X: Any) -> np.ndarray:
        """Return the class that the student finds most probable.

        Parameters
        ----------
        X
            Rows of numbers, or texts: whatever `fit` had.
        """
        places = self.predict_log_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[places])

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "rows classes"]:
        """Return the student's probabilities; the classes are in the order of ``classes_``.

        Parameters
        ----------
        X
            Rows of numbers, or texts: whatever `fit` had.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Float64[np.ndarray, "rows classes"]:
        """Return the logarithms of the student's probabilities.

        Parameters
        ----------
        X
            Rows of numbers, or texts: whatever `fit` had.
        """
        check_is_fitted(self)
        inputs = _texts(X)
        if inputs is None:
            inputs = validate_data(self, X, reset=False, dtype=np.float64)
        with self._in_their_words():
            logits = self.student_.logits(DistilTable(inputs, self.student_.classes, name="X"))
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    def _fit(self, X: Any, y: Any, teacher_logits: Any) -> Any:
        table = self._read(X, y)
        seed = _seed(self.random_state)
        with self._in_their_words():
            config = self._config(table)
            if teacher_logits is None:
                table, self.teacher_ = self._taught(table, X, seed)
            else:
                table, self.teacher_ = self._with_logits(table, teacher_logits), None
            self.student_ = self._module().fit(table, config, seed=seed)
        return self

    # -- what is given ------------------------------------------------------------------------------------------------

    def _read(self, X: Any, y: Any) -> DistilTable:
        """Check rows and labels, and set what scikit-learn expects to know of them."""
        texts = _texts(X)
        if texts is None:
            inputs, y = validate_data(self, X, y, dtype=np.float64)
        else:
            inputs, y = texts, validate_data(self, "no_validation", y)
            check_consistent_length(texts, y)
            self.__dict__.pop("n_features_in_", None)  # of an earlier fit to numbers
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            found = f"all {len(y)} rows are of one class ({self.classes_[0]!s})"
            raise DataError(found, where="y", expected="at least two classes")
        features = tuple(getattr(self, "feature_names_in_", ()))
        classes = tuple(str(name) for name in self.classes_)
        return DistilTable(inputs, classes, labels=labels.astype(np.int64), features=features, name="X")

    def _taught(self, table: DistilTable, X: Any, seed: int) -> tuple[DistilTable, Any]:
        """Ask the teacher; it reads X as it was given where the columns have names, for it may ask for them."""
        teacher = self.teacher
        if teacher is None:
            width = None if isinstance(table.inputs, tuple) else table.inputs.shape[1]
            teacher = default_teacher(table.labels, width, seed)
        given = X if hasattr(X, "columns") else table.inputs
        logits, fitted = taught(teacher, given, self.classes_[table.labels], seed=seed)
        return replace(table, logits=logits), fitted

    def _with_logits(self, table: DistilTable, teacher_logits: Any) -> DistilTable:
        if self.teacher is not None:
            raise DataError(
                "a teacher was given, and its logits too", where="teacher_logits", fix="drop one of the two"
            )
        arrays = {"inputs": np.zeros((len(table), 1)), "logits": teacher_logits, "classes": table.classes}
        try:
            logits = distillation.read([arrays]).logits
        except InputError as error:
            where = "teacher_logits"
            raise DataError(error.found, where=where, expected=error.expected, fix=error.fix) from None
        return replace(table, logits=logits)

    # -- options ------------------------------------------------------------------------------------------------------

    def _module(self) -> ModuleType:
        return find(self._system).load()

    def _config(self, table: DistilTable) -> Any:
        options = {_dotted(name, self._groups): _plain(value) for name, value in self._own().items()}
        return parse(self._module().Config, options | dict(self.options or {}))

    def _own(self) -> dict[str, Any]:
        """Return the parameters that are options of the system."""
        parameters = self.get_params(deep=False)
        return {name: value for name, value in parameters.items() if name not in OUTSIDE}

    @contextmanager
    def _in_their_words(self) -> Iterator[None]:
        """Turn an error into a `DataError` that names the parameter as it is named here."""
        try:
            yield
        except DataError:
            raise
        except InputError as error:
            names = {_dotted(name, self._groups): name for name in self._own()}
            where = None if error.where is None else names.get(error.where, error.where)
            raise DataError(error.found, where=where, expected=error.expected, fix=error.fix) from None


OUTSIDE = {"teacher", "random_state", "options"}  # parameters that are no options of the system


def _dotted(name: str, groups: Mapping[str, str]) -> str:
    group = groups.get(name)
    return name if group is None else f"{group}.{name.removeprefix(f'{group}_')}"


def _plain(value: Any) -> Any:
    """Return Python's own number for NumPy's, which grids of parameters are made of."""
    return value.item() if isinstance(value, np.generic) else value


def _seed(random_state: Any) -> int:
    state = check_random_state(random_state)
    return int(random_state) if isinstance(random_state, Integral) else int(state.randint(SEEDS))


def _texts(X: Any) -> tuple[str, ...] | None:
    """Return the texts, or None where X is something else.

    Raises
    ------
    DataError
        Some of them are texts.
    """
    if getattr(X, "ndim", 1) != 1 or not hasattr(X, "__len__") or isinstance(X, str | bytes | Mapping) or not len(X):
        return None
    values = list(X)
    others = [row for row, value in enumerate(values, start=1) if not isinstance(value, str)]
    if len(others) == len(values):
        return None
    if others:
        found = f"{len(others)} rows are no texts, the first is row {others[0]}"
        raise DataError(found, where="X", expected="a text in each row", fix="leave out those rows")
    return tuple(str(value) for value in values)


class SinkdClassifier(_Distilled):
    """A small network that learns from a teacher by Sinkhorn distillation (`systems.sinkd`).

    Parameters
    ----------
    teacher
        A classifier with ``predict_proba``. One that is not fitted is copied and fitted to the rows of `fit`, and asked of
        each row by a copy that did not see it; one that is fitted is asked as it is. (Cross-validation copies what it is
        given, unfitted: wrap a fitted teacher in ``sklearn.frozen.FrozenEstimator``.) None takes logistic regression on
        Nystroem features, for texts on TF-IDF.
    transport_weight, alpha, temperature, anneal, transport_temperature, epsilon, iterations, gradient, identity_penalty, balance
        Options of the system, with its defaults.
    tolerance, p, debiased, sort
        Its options ``transport.tolerance`` ...
    width, depth
        Units of a hidden layer of the student, and number of these layers.
    buckets, embedding, ngrams
        Texts: its options ``student.buckets`` ...
    epochs, learning_rate, batch_size, weight_decay
        Of the student's training. The first two are larger than the system's own: tables are often small.
    validation_share
        Share of rows held out, by which the best epoch is chosen.
    random_state
        Of everything random; a whole number is the system's seed.
    options
        Further options of the system, by dotted name: ``{"training.schedule": "linear"}``.

    Attributes
    ----------
    classes_
        The classes, sorted.
    student_
        What `systems.sinkd.fit` returned: ``student_.summary()``, ``student_.history``, ``student_.save(folder)``.
    teacher_
        The teacher, fitted to all rows; None where its logits were given.
    n_features_in_, feature_names_in_
        Of ``X``, as everywhere in scikit-learn; not for texts.

    Reference
    ---------
    cui2024sinkd.
    """

    _system = "sinkd"
    _groups: ClassVar[Mapping[str, str]] = {
        **_Distilled._groups,
        **dict.fromkeys(("tolerance", "p", "debiased", "sort"), "transport"),
    }

    def __init__(
        self,
        teacher: Any = None,
        *,
        transport_weight: float = 0.0256,
        alpha: float = 0.9,
        temperature: float = 2.0,
        anneal: bool = False,
        transport_temperature: float = 2.0,
        epsilon: float = 0.1,
        iterations: int = 20,
        gradient: str = "unroll",
        identity_penalty: float = 0.0,
        balance: float = 0.0,
        tolerance: float | None = None,
        p: float = 1.0,
        debiased: bool = False,
        sort: bool = False,
        width: int = 128,
        depth: int = 1,
        buckets: int = 65_536,
        embedding: int = 64,
        ngrams: int = 2,
        epochs: int = 30,
        learning_rate: float = 0.003,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        validation_share: float = 0.1,
        random_state: Any = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.teacher = teacher
        self.transport_weight = transport_weight
        self.alpha = alpha
        self.temperature = temperature
        self.anneal = anneal
        self.transport_temperature = transport_temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.gradient = gradient
        self.identity_penalty = identity_penalty
        self.balance = balance
        self.tolerance = tolerance
        self.p = p
        self.debiased = debiased
        self.sort = sort
        self.width = width
        self.depth = depth
        self.buckets = buckets
        self.embedding = embedding
        self.ngrams = ngrams
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.validation_share = validation_share
        self.random_state = random_state
        self.options = options

    def fit(self, X: Any, y: Any, teacher_logits: Any = None) -> SinkdClassifier:
        """Train a student.

        Parameters
        ----------
        X
            Numbers [rows, features], or one text a row.
        y
            Class of each row.
        teacher_logits
            The teacher's, [rows, classes] with the classes sorted, in place of a teacher. In cross-validation they are
            divided as the rows are.

        Raises
        ------
        DataError
            A parameter is out of range, there is one class, or the teacher does not fit the rows. It is a ``ValueError``.
        """
        fitted: SinkdClassifier = self._fit(X, y, teacher_logits)
        return fitted

    def _config(self, table: DistilTable) -> Any:
        """Leave out a last batch of one row, which transport cannot use, unless the user says otherwise."""
        config = super()._config(table)
        rows = len(table) - held_out_rows(table, config.validation)
        alone = rows > config.training.batch_size > 1 == rows % config.training.batch_size
        if alone and "validation.drop_last" not in (self.options or {}):
            config = config.model_copy(update={"validation": config.validation.model_copy(update={"drop_last": True})})
        return config
