"""Distillation as scikit-learn estimators: `fit` trains a teacher, unless one is given, and a student on what it says.

::

    student = SinkdClassifier(teacher=RandomForestClassifier(), epochs=50)
    student.fit(X, y).predict_proba(X_new)

The parameters are the options of the system (``sanov show sinkd``), those of a group without the group's name: ``epochs``
is ``training.epochs``. ``X`` holds numbers, or is a list of texts. A teacher is over-confident on the rows that it was
fitted to; one that is fitted here therefore answers for each row by a copy that never saw it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from sanov.bridges.sklearn_base import Distilled
from sanov.bridges.sklearn_teachers import DataError, head_of, last_layer, plain_embeddings
from sanov.core.errors import SanovWarning
from sanov.data.distillation import DistilTable

__all__ = ["DataError", "LelpClassifier", "SinkdClassifier"]


class SinkdClassifier(Distilled):
    """A small network that learns from a teacher by Sinkhorn distillation (`systems.sinkd`).

    Parameters
    ----------
    teacher
        A classifier with ``predict_proba``. One that is not fitted is copied and fitted to the rows of `fit`; one that is
        fitted is asked as it is. (Cross-validation unfits what it copies: there, wrap a fitted teacher in
        ``sklearn.frozen.FrozenEstimator``.) None takes logistic regression on Nystroem features, for texts on TF-IDF.
    transport_weight, alpha, temperature, anneal, transport_temperature, epsilon, iterations, gradient, \
identity_penalty, balance
        Options of the system, with its defaults.
    tolerance, p, debiased, sort
        Its options ``transport.tolerance`` ...
    width, depth
        Units of a hidden layer of the student, and number of these layers.
    buckets, embedding, ngrams
        Texts: the options ``student.buckets`` ...
    epochs, learning_rate, batch_size, weight_decay
        Of the student's training. The first two are 30 and 0.003, where the system has 10 and 0.001 (``sanov fit`` too): of
        a table of a few hundred rows an epoch is a few steps.
    validation_share
        Share of rows held out of the training, by which the best epoch is chosen.
    random_state
        Of everything random; a whole number is the seed of the system.
    options
        Further options of the system, by dotted name: ``{"training.schedule": "linear"}``.

    Attributes
    ----------
    classes_
        The classes, sorted.
    student_
        What `systems.sinkd.fit` returned: ``student_.summary()``, ``student_.history``, ``student_.save(folder)``.
    teacher_
        The teacher, fitted to all rows; None where its outputs were given.
    n_features_in_, feature_names_in_
        Of ``X``, as everywhere in scikit-learn; not for texts.

    Reference
    ---------
    cui2024sinkd.
    """

    _system = "sinkd"
    _groups: ClassVar[Mapping[str, str]] = {
        **Distilled._groups,
        **dict.fromkeys(("tolerance", "p", "debiased", "sort"), "transport"),
    }

    def __init__(
        self,
        teacher: Any = None,
        *,
        transport_weight: Any = 0.0256,
        alpha: Any = 0.9,
        temperature: Any = 2.0,
        anneal: Any = False,
        transport_temperature: Any = 2.0,
        epsilon: Any = 0.1,
        iterations: Any = 20,
        gradient: Any = "unroll",
        identity_penalty: Any = 0.0,
        balance: Any = 0.0,
        tolerance: Any = None,
        p: Any = 1.0,
        debiased: Any = False,
        sort: Any = False,
        width: Any = 128,
        depth: Any = 1,
        buckets: Any = 65_536,
        embedding: Any = 64,
        ngrams: Any = 2,
        epochs: Any = 30,
        learning_rate: Any = 0.003,
        batch_size: Any = 64,
        weight_decay: Any = 0.01,
        validation_share: Any = 0.1,
        random_state: Any = None,
        options: Any = None,
    ):
        self._keep(locals())

    def fit(self, X: Any, y: Any, teacher_logits: Any = None) -> SinkdClassifier:
        """Train a student.

        Parameters
        ----------
        X
            Numbers [rows, features], or one text a row.
        y
            Class of each row.
        teacher_logits
            In place of a teacher: its logits [rows, classes] with the classes sorted. In cross-validation they are divided
            as the rows are.

        Raises
        ------
        DataError
            A parameter is out of range, there is one class, or the teacher does not fit the rows. It is a ``ValueError``.
        """
        fitted: SinkdClassifier = self._fit(X, y, teacher_logits)
        return fitted

    def _fitting(self, config: Any, table: DistilTable, seed: int) -> Any:
        """Leave out a last batch of one row, of which transport makes nothing, unless `options` say otherwise."""
        from sanov.learning.distil import held_out_rows

        rows, size = len(table) - held_out_rows(table, config.validation), config.training.batch_size
        if rows > size > 1 == rows % size and "validation.drop_last" not in (self.options or {}):
            validation = config.validation.model_copy(update={"drop_last": True})
            return config.model_copy(update={"validation": validation})
        return config


class LelpClassifier(Distilled):
    """A small network that learns the subclasses that projections of a teacher's embeddings reveal (`systems.lelp`).

    Parameters
    ----------
    teacher
        A classifier whose last layer is linear, at the end of a pipeline or not: ``LogisticRegression``, whose inputs are
        the embeddings, or ``MLPClassifier``, whose last hidden layer they are. One that is not fitted is copied and fitted
        to the rows of `fit`; one that is fitted is asked as it is. (Cross-validation unfits what it copies: there, wrap a
        fitted teacher in ``sklearn.frozen.FrozenEstimator``.) None takes logistic regression on Nystroem features, for
        texts on TF-IDF.
    subclasses, subclass_temperature, temperature, student_temperature, alpha, null_space, rotation
        Options of the system, with its defaults. Where a class has not as many rows or directions as there are to be
        subclasses, `fit` warns, says what is missing, and takes the largest number that all classes allow.
    center_head, directions, class_sets, centre, scale
        Its options ``projection.center_head`` ...
    width, depth
        Units of a hidden layer of the student, and number of these layers.
    buckets, embedding, ngrams
        Texts: the options ``student.buckets`` ...
    epochs, learning_rate, batch_size, weight_decay
        Of the student's training. The first two are 30 and 0.003, where the system has 10 and 0.001 (``sanov fit`` too): of
        a table of a few hundred rows an epoch is a few steps.
    validation_share
        Share of rows held out of the training, by which the best epoch is chosen.
    random_state
        Of everything random; a whole number is the seed of the system.
    options
        Further options of the system, by dotted name: ``{"training.schedule": "linear"}``.

    Attributes
    ----------
    classes_
        The classes, sorted.
    subclasses_
        How many subclasses a class was divided into.
    student_
        What `systems.lelp.fit` returned: ``student_.summary()``, ``student_.history``, ``student_.save(folder)``.
    teacher_
        The teacher, fitted to all rows; None where its outputs were given.
    n_features_in_, feature_names_in_
        Of ``X``, as everywhere in scikit-learn; not for texts.

    Reference
    ---------
    loo2024lelp.
    """

    _system = "lelp"
    _groups: ClassVar[Mapping[str, str]] = {
        **Distilled._groups,
        **dict.fromkeys(("center_head", "directions", "class_sets", "centre", "scale"), "projection"),
    }

    def __init__(
        self,
        teacher: Any = None,
        *,
        subclasses: Any = 4,
        subclass_temperature: Any = 0.3,
        temperature: Any = 4.0,
        student_temperature: Any = 1.0,
        alpha: Any = 0.0,
        null_space: Any = True,
        rotation: Any = "random",
        center_head: Any = False,
        directions: Any = "principal",
        class_sets: Any = "label",
        centre: Any = True,
        scale: Any = True,
        width: Any = 128,
        depth: Any = 1,
        buckets: Any = 65_536,
        embedding: Any = 64,
        ngrams: Any = 2,
        epochs: Any = 30,
        learning_rate: Any = 0.003,
        batch_size: Any = 64,
        weight_decay: Any = 0.01,
        validation_share: Any = 0.1,
        random_state: Any = None,
        options: Any = None,
    ):
        self._keep(locals())

    def fit(self, X: Any, y: Any, teacher_logits: Any = None, teacher_embeddings: Any = None) -> LelpClassifier:
        """Train a student.

        Parameters
        ----------
        X
            Numbers [rows, features], or one text a row.
        y
            Class of each row.
        teacher_logits
            In place of a teacher: its logits [rows, classes] with the classes sorted. In cross-validation they are divided
            as the rows are.
        teacher_embeddings
            With them, the input of its last linear layer [rows, width]. The layer itself is what takes these to the
            logits, by least squares.

        Raises
        ------
        DataError
            A parameter is out of range, there is one class, or the teacher does not fit the rows or has no linear last
            layer. It is a ``ValueError``.
        """
        fitted: LelpClassifier = self._fit(X, y, teacher_logits, teacher_embeddings)
        return fitted

    def subclass_proba(self, X: Any) -> Float64[np.ndarray, "rows classes subclasses"]:
        """Return the student's probabilities of all subclasses, at the temperature of its softmax in training.

        They sum to 1 over classes and subclasses; `predict_proba` is at temperature 1.

        Parameters
        ----------
        X
            Rows of numbers, or texts: whatever `fit` had.
        """
        table = self._to_predict(X)
        with self._in_their_words():
            return np.asarray(np.exp(self.student_.subclass_log_probs(table)))

    def _with_inside(self, table: DistilTable, teacher: Any, given: Any, config: Any) -> DistilTable:
        if config.subclasses == 1:
            return table
        embeddings, head = last_layer(teacher, given, self.classes_)
        # The logits are log-probabilities, and where the teacher was fitted here those of copies of it.
        return replace(table, embeddings=embeddings, head=head, compare_logits=False)

    def _told(self, table: DistilTable, config: Any, logits: Any, embeddings: Any) -> DistilTable:
        if logits is None or (embeddings is None and config.subclasses > 1):
            missing = "teacher_logits" if logits is None else "teacher_embeddings"
            fix = "give both, or a teacher; subclasses=1 needs the logits alone"
            raise DataError("the teacher's other output is missing", where=missing, fix=fix)
        table = super()._told(table, config, logits, None)
        if config.subclasses == 1 or table.logits is None:
            return table
        found = plain_embeddings(embeddings, where="teacher_embeddings")
        head = head_of(found, table.logits) if config.null_space else None  # it compares them, but for a number a row
        return replace(table, embeddings=found, head=head, compare_logits=False)

    def _fitting(self, config: Any, table: DistilTable, seed: int) -> Any:
        """Take fewer subclasses where the rows to train on do not allow as many."""
        self.subclasses_ = config.subclasses
        if config.subclasses > 1:
            most, reason = self._most(config, table, seed)
            if most < config.subclasses:
                self.subclasses_ = _taken(most, config.rotation)
                told = "1 is taken, which is plain distillation"
                if self.subclasses_ > 1:
                    power = ", a power of two as the rotation asks" * (config.rotation == "hadamard")
                    told = f"{self.subclasses_} are taken{power}"
                text = f"subclasses = {config.subclasses} is too many: {reason}. {told}."
                warnings.warn(text, SanovWarning, stacklevel=4)
        return config.model_copy(update={"subclasses": self.subclasses_})

    def _most(self, config: Any, table: DistilTable, seed: int) -> tuple[int, str]:
        from sanov.learning.distil import divided

        rows, _ = divided(table, config.validation, seed)
        found: tuple[int, str] = self._module().most_subclasses(rows, config)
        return found


def _taken(most: int, rotation: str) -> int:
    """Return the largest number of subclasses that the rotation takes, at least 1."""
    return 1 << max(most.bit_length() - 1, 0) if rotation == "hadamard" else max(most, 1)
