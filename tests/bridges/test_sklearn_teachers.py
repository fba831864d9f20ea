"""Teachers that are scikit-learn classifiers: none is asked of a row that it was fitted to; its last layer is what it was."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sanov.bridges.sklearn_teachers import (
    SMALLEST,
    DataError,
    default_teacher,
    head_of,
    is_fitted,
    last_layer,
    plain_embeddings,
    taught,
)
from sanov.core.errors import SanovWarning

IRIS = load_iris(return_X_y=True)
rng = np.random.default_rng(0)


class Memory(ClassifierMixin, BaseEstimator):
    """Is certain of every row it was fitted to, and undecided about any other."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.known_ = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
        return self

    def predict_proba(self, X):
        found = np.full((len(X), len(self.classes_)), 1 / len(self.classes_))
        for place, row in enumerate(X):
            if row.tobytes() in self.known_:
                found[place] = self.classes_ == self.known_[row.tobytes()]
        return found

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def test_no_row_is_answered_by_a_teacher_that_saw_it():
    inputs, labels = rng.standard_normal((40, 2)), np.repeat([0, 1], 20)
    log_probs, fitted = taught(Memory(), inputs, labels, seed=0)
    np.testing.assert_allclose(log_probs, np.log(0.5))
    assert fitted.predict_proba(inputs).max(axis=1).min() == 1  # while this one saw all of them


def test_a_fitted_teacher_answers_as_it_is():
    inputs, labels = rng.standard_normal((40, 2)), np.repeat(["a", "b"], 20)
    teacher = Memory().fit(inputs, labels)
    for given in (teacher, FrozenEstimator(teacher)):
        log_probs, fitted = taught(given, inputs, labels, seed=0)
        assert fitted is given
        np.testing.assert_array_equal(log_probs.argmax(axis=1), np.repeat([0, 1], 20))
        assert np.isfinite(log_probs).all()  # a probability of 0 has no logarithm


def test_cross_fitting_is_less_sure_and_nearer_the_truth():
    inputs, labels = make_classification(200, flip_y=0.3, random_state=0)
    given, fitted = taught(KNeighborsClassifier(1), inputs, labels, seed=0)
    assert log_loss(labels, fitted.predict_proba(inputs)) < 1e-6
    assert log_loss(labels, np.clip(np.exp(given), 0, 1 - SMALLEST)) > 1
    assert (given.argmax(axis=1) == labels).mean() < 0.8


def test_columns_follow_the_sorted_classes():
    inputs, labels = IRIS
    teacher = LogisticRegression(max_iter=1000).fit(inputs, np.array(["c", "a", "b"])[labels])
    several, _ = taught(teacher, inputs[50:], np.array(["c", "a", "b"])[labels[50:]], seed=0)
    np.testing.assert_allclose(several, teacher.predict_log_proba(inputs[50:])[:, :2])  # "c" is not among these rows


def test_a_class_of_one_row_is_told():
    inputs, labels = IRIS
    few = np.r_[:60, 100]
    with pytest.warns(
        SanovWarning, match="class 2 has one row, so that the teacher answers for rows that it was fitted"
    ):
        given, fitted = taught(LogisticRegression(max_iter=1000), inputs[few], labels[few], seed=0)
    np.testing.assert_allclose(given, fitted.predict_log_proba(inputs[few]), atol=1e-6)


def test_small_classes_have_fewer_folds():
    inputs, labels = IRIS
    few = np.r_[:60, 100:102]
    given, _ = taught(LogisticRegression(max_iter=1000), inputs[few], labels[few], seed=0)  # a warning is an error
    assert given.shape == (62, 3)


def test_a_seed_reaches_what_has_none():
    inputs, labels = IRIS
    forests = [make_pipeline(StandardScaler(), RandomForestClassifier(5)) for _ in range(2)]
    first, second = (taught(forest, inputs, labels, seed=3)[0] for forest in forests)
    np.testing.assert_array_equal(first, second)
    own = taught(RandomForestClassifier(5, random_state=8), inputs, labels, seed=3)[1]
    assert own.random_state == 8


def test_what_is_fitted():
    teacher = default_teacher(IRIS[1], 4, seed=0)
    assert not is_fitted(teacher)
    assert is_fitted(teacher.fit(*IRIS))
    assert is_fitted(FrozenEstimator(teacher))


@pytest.mark.parametrize("rows", [6, 7, 11, 150])
def test_the_default_teacher_has_no_more_features_than_rows(rows):
    """Of the smallest part that a copy is fitted to; scikit-learn would warn otherwise."""
    inputs, labels = rng.standard_normal((rows, 3)), np.arange(rows) % 3
    teacher = default_teacher(labels, 3, seed=0)
    fewest = min(len(part) for part, _ in StratifiedKFold(min(5, np.bincount(labels).min())).split(inputs, labels))
    assert teacher[:-1].get_params()["nystroem__n_components"] <= fewest
    taught(teacher, inputs, labels, seed=0)


def test_the_default_teacher_sees_what_is_not_linear():
    inputs = rng.uniform(-1, 1, (300, 2))
    labels = (inputs.prod(axis=1) > 0).astype(int)
    teacher = default_teacher(labels[:200], 2, seed=0).fit(inputs[:200], labels[:200])
    assert teacher.score(inputs[200:], labels[200:]) > 0.9
    assert LogisticRegression().fit(inputs[:200], labels[:200]).score(inputs[200:], labels[200:]) < 0.7


# -- the last layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_last_layer_of_a_network(activation, classes):
    """softmax(H W + b) is what the network says, and H what a network cut off there would give."""
    inputs, labels = IRIS[0][: 50 * classes], IRIS[1][: 50 * classes]
    network = MLPClassifier((6, 5), activation=activation, max_iter=20, random_state=0).fit(inputs, labels)
    embeddings, head = last_layer(network, inputs, network.classes_)
    assert embeddings.shape == (50 * classes, 5)
    assert head.weight.shape == (5, classes)
    powers = np.exp(head.logits(embeddings))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), network.predict_proba(inputs), atol=1e-9)


def test_the_last_layer_of_a_pipeline_is_its_last_step():
    inputs, labels = IRIS
    teacher = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, labels)
    for given in (teacher, FrozenEstimator(teacher)):
        embeddings, head = last_layer(given, inputs, np.array([2, 0, 1]))
        np.testing.assert_allclose(embeddings, teacher[0].transform(inputs))
        np.testing.assert_allclose(head.weight, teacher[-1].coef_.T[:, [2, 0, 1]])
        np.testing.assert_allclose(head.bias, teacher[-1].intercept_[[2, 0, 1]])


def test_one_output_stands_for_two_logits():
    inputs, labels = IRIS[0][:100], IRIS[1][:100]
    teacher = LogisticRegression().fit(inputs, labels)
    embeddings, head = last_layer(teacher, inputs, teacher.classes_)
    np.testing.assert_allclose(np.diff(head.logits(embeddings))[:, 0], teacher.decision_function(inputs))


def test_what_is_no_softmax_is_refused():
    inputs, labels = IRIS
    one_against_rest = SGDClassifier(loss="log_loss", random_state=0).fit(inputs, labels)
    with pytest.raises(DataError, match="the probabilities of SGDClassifier are no softmax of its last layer"):
        last_layer(one_against_rest, inputs, one_against_rest.classes_)


def test_sparse_columns_are_written_out_where_they_are_few(monkeypatch):
    texts, labels = ["good film", "bad film", "very good", "very bad"], [1, 0, 1, 0]
    teacher = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    assert last_layer(teacher, texts, teacher.classes_)[0].shape == (4, 4)
    monkeypatch.setattr("sanov.bridges.sklearn_teachers.WIDEST", 3)
    with pytest.raises(
        DataError, match=r"reads 4 sparse columns; expected at most 3. Put TruncatedSVD\(100\) before it"
    ):
        last_layer(teacher, texts, teacher.classes_)


def test_a_head_is_found_again():
    embeddings, weight, bias = rng.standard_normal((50, 6)), rng.standard_normal((6, 3)), rng.standard_normal(3)
    logits = embeddings @ weight + bias
    found = head_of(embeddings, logits)
    np.testing.assert_allclose(found.weight, weight, atol=1e-10)
    np.testing.assert_allclose(found.bias, bias, atol=1e-10)
    shifted = head_of(embeddings, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))  # log-probabilities
    np.testing.assert_allclose(shifted.weight, weight - weight.mean(axis=1, keepdims=True), atol=1e-10)


def test_embeddings_are_checked():
    with pytest.raises(DataError, match="no matrix of finite numbers"):
        plain_embeddings([[0.0, np.inf]], where="here")
    for wrong in ([["a"]], [1.0, 2.0], None):
        with pytest.raises(DataError, match=r"here: is no matrix of finite numbers; expected \[rows, width\]"):
            plain_embeddings(wrong, where="here")
