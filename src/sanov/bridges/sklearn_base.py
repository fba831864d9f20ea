"""What the scikit-learn estimators share: rows, a teacher and parameters become a table and the `Config` of a system."""

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
from sanov.systems import find

require("sklearn", "demo")
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data  # noqa: E402

__all__ = ["Distilled"]

SEEDS = 2**31 - 1  # number of seeds that a random state is asked for
OUTSIDE = {"self", "teacher", "random_state", "options"}  # parameters that are no options of a system


class Distilled(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A student as a scikit-learn classifier; what derives from it names its system and lists the options.

    scikit-learn reads the parameters off ``__init__``, which must take anything and keep it as it is: `fit` checks them.
    """

    _system: ClassVar[str]
    _groups: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("width", "depth", "buckets", "embedding", "ngrams"), "student"),
        **dict.fromkeys(("epochs", "learning_rate", "batch_size", "weight_decay"), "training"),
        "validation_share": "validation",
    }

    def _keep(self, parameters: Mapping[str, Any]) -> None:
        for name in self._get_param_names():
            setattr(self, name, parameters[name])

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
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict_log_proba(self, X: Any) -> Float64[np.ndarray, "rows classes"]:
        """Return the logarithms of the student's probabilities.

        Parameters
        ----------
        X
            Rows of numbers, or texts: whatever `fit` had.
        """
        table = self._to_predict(X)
        with self._in_their_words():
            logits = self.student_.logits(table)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    def _to_predict(self, X: Any) -> DistilTable:
        check_is_fitted(self)
        texts = _texts(X)
        inputs = validate_data(self, X, reset=False, dtype=np.float64) if texts is None else texts
        return DistilTable(inputs, self.student_.classes, name="X")

    def _fit(self, X: Any, y: Any, logits: Any, embeddings: Any = None) -> Any:
        table = self._read(X, y)
        seed = _seed(self.random_state)
        with self._in_their_words():
            config = self._config()
            if logits is None and embeddings is None:
                table, self.teacher_ = self._asked(table, X, config, seed)
            else:
                table, self.teacher_ = self._told(table, config, logits, embeddings), None
            self.student_ = self._module().fit(table, self._fitting(config, table, seed), seed=seed)
        return self

    # -- rows and teacher ---------------------------------------------------------------------------------------------

    def _read(self, X: Any, y: Any) -> DistilTable:
        """Check rows and labels, and set what scikit-learn expects an estimator to know of them."""
        texts = _texts(X)
        if texts is None:
            inputs, y = validate_data(self, X, y, dtype=np.float64)
        else:
            inputs, y = texts, validate_data(self, "no_validation", y)
            check_consistent_length(texts, y)
            self.__dict__.pop("n_features_in_", None)  # of an earlier fit, to numbers
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            found = f"all {len(y)} rows are of one class ({self.classes_[0]!s})"
            raise DataError(found, where="y", expected="at least two classes")
        features = tuple(map(str, getattr(self, "feature_names_in_", ())))
        classes = tuple(map(str, self.classes_))
        return DistilTable(inputs, classes, labels=labels.astype(np.int64), features=features, name="X")

    def _asked(self, table: DistilTable, X: Any, config: Any, seed: int) -> tuple[DistilTable, Any]:
        """Ask the teacher. Where columns have names it gets X itself, for it may look for them."""
        teacher, labels = self.teacher, self.classes_[table.labels]
        if teacher is None:
            teacher = default_teacher(labels, None if table.is_text else np.shape(table.inputs)[1], seed)
        given = X if hasattr(X, "columns") else table.inputs
        logits, fitted = taught(teacher, given, labels, seed=seed)
        return self._with_inside(replace(table, logits=logits), fitted, given, config), fitted

    def _with_inside(self, table: DistilTable, teacher: Any, given: Any, config: Any) -> DistilTable:
        """Add what the system needs of a teacher beyond its logits."""
        return table

    def _told(self, table: DistilTable, config: Any, logits: Any, embeddings: Any) -> DistilTable:
        """Take a teacher's outputs from the caller, and check them as those in a file are."""
        if self.teacher is not None:
            raise DataError(
                "a teacher was given, and its outputs too", where="teacher_logits", fix="drop one of the two"
            )
        arrays = {"inputs": np.zeros((len(table), 1)), "logits": logits, "classes": table.classes}
        try:
            found = distillation.read([arrays]).logits
        except InputError as error:
            raise DataError(error.found, where="teacher_logits", expected=error.expected, fix=error.fix) from None
        return replace(table, logits=found)

    # -- options ------------------------------------------------------------------------------------------------------

    def _module(self) -> ModuleType:
        require("torch", "demo")
        return find(self._system).load()

    def _config(self) -> Any:
        options = {self._dotted(name): getattr(self, name) for name in self._own()}
        return parse(self._module().Config, options | dict(self.options or {}))

    def _fitting(self, config: Any, table: DistilTable, seed: int) -> Any:
        """Return the options where the rows ask for others."""
        return config

    def _own(self) -> list[str]:
        """Return the parameters that are options of the system."""
        return [name for name in self._get_param_names() if name not in OUTSIDE]

    def _dotted(self, name: str) -> str:
        group = self._groups.get(name)
        return name if group is None else f"{group}.{name.removeprefix(f'{group}_')}"

    @contextmanager
    def _in_their_words(self) -> Iterator[None]:
        """Turn an error into a `DataError` that names a parameter as it is named here."""
        try:
            yield
        except DataError:
            raise
        except InputError as error:
            names = {self._dotted(name): name for name in self._own()}
            where = None if error.where is None else names.get(error.where, error.where)
            raise DataError(error.found, where=where, expected=error.expected, fix=error.fix) from None


def _seed(random_state: Any) -> int:
    state = check_random_state(random_state)
    return int(random_state) if isinstance(random_state, Integral) else int(state.randint(SEEDS))


def _texts(X: Any) -> tuple[str, ...] | None:
    """Return the texts, or None where there are none.

    Raises
    ------
    DataError
        Some rows are texts and others are not.
    """
    if getattr(X, "ndim", 1) != 1 or not hasattr(X, "__len__") or isinstance(X, str | bytes | Mapping):
        return None
    values = list(X)
    others = [row for row, value in enumerate(values, start=1) if not isinstance(value, str)]
    if len(others) == len(values):
        return None
    if others:
        found = f"{len(others)} rows are no texts, the first is row {others[0]} (counted from 1)"
        raise DataError(found, where="X", expected="a text in each row", fix="leave out those rows")
    return tuple(map(str, values))
