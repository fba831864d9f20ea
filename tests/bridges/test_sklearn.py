"""The estimators as scikit-learn's own tools use them, and against the systems called directly."""

import pickle
import re
import subprocess
import sys
import warnings
from inspect import signature
from pathlib import Path

import jaxtyping
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import sklearn
from scipy.special import rel_entr
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_wine, make_blobs
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import sanov
from sanov.bridges import sklearn_teachers
from sanov.bridges.sklearn import DataError, LelpClassifier, SinkdClassifier
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import describe
from sanov.systems import find

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("estimator", [SinkdClassifier, LelpClassifier])
QUICK = {"epochs": 4, "learning_rate": 0.03, "width": 16, "random_state": 0}
WINE = load_wine(return_X_y=True)
NAMES = list("abcdefgh")
BLOBS = make_blobs(60, n_features=len(NAMES), centers=3, random_state=0)

# Twenty rounds are the paper's, and on peaked outputs they leave a few per cent: the user is told, and may ask for more.
pytestmark = pytest.mark.filterwarnings(
    "ignore:after 20 rounds a row of the plan is off:sanov.core.errors.SanovWarning"
)


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    """What costs time and is checked elsewhere: six fits of a teacher where three do, and the shapes of each function."""
    monkeypatch.setattr(sklearn_teachers, "FOLDS", 2)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def taught_wine(columns=WINE[0].shape[1]):
    """A linear teacher of wine: inputs, labels, its logits and what its last layer reads."""
    inputs, labels = WINE[0][:, :columns], WINE[1]
    embeddings = StandardScaler().fit_transform(inputs)
    teacher = LogisticRegression().fit(embeddings, labels)
    return inputs, labels, teacher.decision_function(embeddings), embeddings, teacher


# -- what scikit-learn asks of an estimator ---------------------------------------------------------------------------


@BOTH
def test_every_check_of_scikit_learn_passes(estimator, monkeypatch):
    """All 55, none skipped, none expected to fail; what is said meanwhile is what a user of such data should know."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it one check is skipped
    rarely = {"training.evaluate_every": 100}  # than which no run here is longer: one evaluation, at its end
    checked = estimator(**{**QUICK, "random_state": None, "options": rarely})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", SanovWarning)
        results = check_estimator(checked, on_skip=None, on_fail=None)
    assert [(found["check_name"], found["exception"]) for found in results if found["status"] != "passed"] == []
    assert len(results) == len(list(estimator_checks_generator(checked)))
    if sklearn.__version__.startswith("1.9."):
        assert len(results) == 55
    expected = ("invites collapse", "a row of the plan is off", "is too many:")
    assert [str(one.message) for one in said if not any(text in str(one.message) for text in expected)] == []


@BOTH
def test_parameters_are_the_options_of_the_system(estimator):
    """Same names and defaults, but for the budget; what is left out has its reason."""
    own = {name: value.default for name, value in signature(estimator).parameters.items()}
    options = {row["name"]: row["default"] for row in describe(find(estimator._system).load().Config)}
    known = {estimator()._dotted(name): name for name in own}
    other_budget = {"training.epochs": 30, "training.learning_rate": 0.003}
    for name, default in options.items():
        if name in known and name not in {"teacher", *other_budget}:
            value = own[known[name]]
            assert ("none" if value is None else str(value).lower()) == default, name
    assert all(own[known[name]] == value for name, value in other_budget.items())
    ours, the_systems = other_budget.values(), (options[name] for name in other_budget)
    told = f"{' and '.join(map(str, ours))}, where the .* has {' and '.join(the_systems)}\\b"
    page = (ROOT / "docs" / "systems" / f"{estimator._system}.md").read_text()
    assert all(re.search(told, " ".join(text.split())) for text in (estimator.__doc__, page))
    assert set(known) - set(options) == {"random_state", "options"}
    assert {name for name in options if name not in known and "." not in name} <= {"preset"}  # of released code
    groups = {name for name in options if name not in known and "." in name}
    assert {name.split(".")[0] for name in groups} <= {"map", "transport", "projection", "training", "validation"}
    assert {name for name in groups if name.split(".")[0] in {"transport", "projection"}} <= {
        "transport.gather",  # several processes
        "projection.seed",
    }


def test_other_options_come_by_their_dotted_names():
    inputs, labels = BLOBS
    student = SinkdClassifier(**QUICK, options={"training.schedule": "linear", "preset": "paper"})
    assert student.fit(inputs, labels).student_.config["training"]["schedule"] == "linear"
    assert student.student_.config["preset"] == "paper"


@BOTH
def test_clone_pickle_and_tags(estimator):
    inputs, labels = BLOBS
    student = estimator(**QUICK, subclasses=2) if estimator is LelpClassifier else estimator(**QUICK)
    copy = clone(student)
    assert copy.get_params() == student.get_params()
    assert not hasattr(copy, "classes_")
    student.fit(inputs, labels)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(student)).predict_proba(inputs), student.predict_proba(inputs)
    )
    np.testing.assert_array_equal(copy.fit(inputs, labels).predict_proba(inputs), student.predict_proba(inputs))
    assert is_classifier(student)
    assert student.__sklearn_tags__().input_tags.sparse is False


@BOTH
def test_sparse_input_is_refused(estimator):
    inputs, labels = BLOBS
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        estimator().fit(scipy.sparse.csr_matrix(inputs), labels)


@BOTH
def test_pipeline_and_grid_search(estimator):
    inputs, labels = WINE
    grid = {"student__temperature": [1.0, 2.0], "student__epochs": np.array([1, 8])}
    pipeline = make_pipeline(StandardScaler(), estimator(**QUICK))
    pipeline.steps[-1] = ("student", pipeline[-1])
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(inputs, labels)
    assert search.score(inputs, labels) > 0.85
    assert len(set(search.cv_results_["mean_test_score"])) > 1  # the parameters matter
    assert search.best_params_["student__epochs"] == 8


@BOTH
def test_cross_validation_is_in_the_order_of_the_rows(estimator):
    inputs, labels = WINE
    answers = cross_val_predict(estimator(**QUICK), inputs, labels, cv=3)
    assert (answers == labels).mean() > 0.85
    shuffled = np.random.default_rng(0).permutation(len(labels))
    student = estimator(**QUICK).fit(inputs, labels)
    np.testing.assert_allclose(
        student.predict_proba(inputs[shuffled]), student.predict_proba(inputs)[shuffled], rtol=1e-5
    )


@BOTH
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_have_any_names(estimator, classes):
    inputs, labels = make_blobs(90, n_features=4, centers=classes, random_state=1)
    names = np.array(["dog", "cat", "-1"])[labels]
    by_name, by_number = estimator(**QUICK).fit(inputs, names), estimator(**QUICK).fit(inputs, 7 - labels)
    assert by_name.classes_.tolist() == sorted(set(names))
    assert set(by_name.predict(inputs)) <= set(names)
    assert by_name.score(inputs, names) > 0.9
    assert by_number.score(inputs, 7 - labels) > 0.9
    assert by_name.predict_proba(inputs).shape == (90, classes)
    np.testing.assert_allclose(by_name.predict_proba(inputs).sum(axis=1), 1)
    np.testing.assert_array_equal(by_name.predict(inputs), by_name.classes_[by_name.predict_proba(inputs).argmax(1)])


@BOTH
@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_columns_are_known_by_name(estimator, kind):
    inputs, labels = BLOBS
    frame = pd.DataFrame(inputs, columns=NAMES) if kind == "pandas" else pl.DataFrame(inputs, schema=NAMES)
    student = estimator(**QUICK).fit(frame, labels)
    assert student.feature_names_in_.tolist() == NAMES
    assert student.n_features_in_ == 8
    assert student.student_.encoder.features == tuple(NAMES)
    plain = estimator(**QUICK).fit(inputs, labels)
    np.testing.assert_array_equal(student.predict_proba(frame), plain.predict_proba(inputs))
    with pytest.raises(ValueError, match="feature names"):
        student.predict(frame[NAMES[::-1]])
    assert not hasattr(student.fit(inputs, labels), "feature_names_in_")


@BOTH
def test_single_precision_and_constant_columns(estimator):
    inputs, labels = BLOBS
    single = estimator(**QUICK).fit(inputs.astype(np.float32), labels)
    double = estimator(**QUICK).fit(inputs.astype(np.float32).astype(np.float64), labels)
    np.testing.assert_array_equal(single.predict_proba(inputs), double.predict_proba(inputs))
    constant = np.column_stack([inputs, np.full(len(inputs), 3.0)])
    assert estimator(**QUICK).fit(constant, labels).score(constant, labels) > 0.9


@BOTH
def test_texts(estimator):
    words, rng = [f"word{place}" for place in range(20)], np.random.default_rng(0)
    labels = np.array(["+", "-"] * 24)
    texts = [f"a {' '.join(rng.choice(words, 4))} {'good' if label == '+' else 'bad'} film" for label in labels]
    small = {**QUICK, "buckets": 512, "embedding": 8, "epochs": 12}
    for given in (texts, np.array(texts), np.array(texts, dtype=object), pd.Series(texts)):
        student = estimator(**small).fit(given, labels)
        assert student.predict(["a good film", "a bad film"]).tolist() == ["+", "-"]
        assert not hasattr(student, "n_features_in_")
    with pytest.raises(DataError, match="1 rows are no texts, the first is row 2"):
        student.fit(["good", None, "bad"], [0, 1, 1])
    with pytest.raises(DataError, match="the inputs are 8 features; expected texts"):
        student.predict(BLOBS[0])
    with pytest.raises(DataError, match="the inputs are texts; expected 8 features"):
        student.fit(*BLOBS).predict(texts)
    assert student.n_features_in_ == 8
    assert not hasattr(student.fit(texts, labels), "n_features_in_")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        student.fit(texts, labels[1:])


@BOTH
def test_random_state(estimator):
    inputs, labels = BLOBS

    def answer(random_state):
        return estimator(**{**QUICK, "random_state": random_state}).fit(inputs, labels).predict_proba(inputs)

    np.testing.assert_array_equal(answer(3), answer(3))
    assert not np.array_equal(answer(3), answer(4))
    np.testing.assert_array_equal(answer(np.random.RandomState(5)), answer(np.random.RandomState(5)))
    assert not np.array_equal(answer(None), answer(None))


# -- the system underneath --------------------------------------------------------------------------------------------


def test_sinkd_is_the_system():
    """Bit for bit what `sanov.sinkd` gives for the same arrays, options and seed; also from its folder."""
    inputs, labels, logits, *_ = taught_wine()
    student = SinkdClassifier(epochs=3, width=8, random_state=7, alpha=0.6, p=2.0, validation_share=0.2)
    student.fit(inputs, labels, teacher_logits=logits)
    direct = sanov.sinkd.fit(
        {"inputs": inputs, "logits": logits, "labels": labels},
        seed=7,
        alpha=0.6,
        transport={"p": 2.0},
        student={"width": 8},
        training={"epochs": 3, "learning_rate": 0.003},
        validation={"share": 0.2},
    )
    assert student.student_.history.equals(direct.history)
    assert student.teacher_ is None


def test_a_saved_student_is_the_systems(tmp_path):
    frame = pd.DataFrame(BLOBS[0], columns=NAMES)
    student = SinkdClassifier(**QUICK).fit(frame, np.array(["x", "y", "z"])[BLOBS[1]])
    student.student_.save(tmp_path / "student")
    answer = sanov.sinkd(frame[NAMES[::-1]], fitted=tmp_path / "student").to_frame()
    np.testing.assert_allclose(
        answer[["p_x", "p_y", "p_z"]].to_numpy(), student.predict_proba(frame), rtol=1e-4, atol=1e-6
    )


def test_lelp_is_the_system():
    """The head is found again from logits and embeddings, so that the targets are those of the head itself."""
    inputs, labels, logits, embeddings, teacher = taught_wine()
    student = LelpClassifier(epochs=3, width=8, random_state=7, subclasses=2, alpha=0.2)
    student.fit(inputs, labels, teacher_logits=logits, teacher_embeddings=embeddings)
    arrays = {"inputs": inputs, "labels": labels, "embeddings": embeddings}
    head = {"head_weight": teacher.coef_.T, "head_bias": teacher.intercept_}
    direct = sanov.lelp.fit(
        {**arrays, **head, "logits": logits},
        seed=7,
        subclasses=2,
        alpha=0.2,
        student={"width": 8},
        training={"epochs": 3, "learning_rate": 0.003},
    )
    np.testing.assert_allclose(student.student_.history["loss_subclass"], direct.history["loss_subclass"], rtol=1e-4)
    assert student.subclasses_ == direct.subclasses == 2


def test_subclasses_sum_to_the_classes():
    inputs, labels = WINE
    student = LelpClassifier(**QUICK, subclasses=3).fit(inputs, labels)
    found = student.subclass_proba(inputs)
    assert found.shape == (len(labels), 3, 3)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-6)
    powers = found.sum(axis=2) ** 4.0  # the sums are at the temperature of the training, the answer is at 1
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), student.predict_proba(inputs), rtol=1e-5)


@pytest.mark.parametrize(("columns", "power_of_two"), [(5, 2), (6, 4)])
def test_fewer_subclasses_where_rows_allow_no_more(columns, power_of_two):
    """S is at most D - rank W, and the head of three classes has rank 2: the softmax of its columns fixes their sum."""
    inputs, labels, logits, embeddings, teacher = taught_wine(columns)
    most = columns - np.linalg.matrix_rank(teacher.coef_)
    given = {"teacher_logits": logits, "teacher_embeddings": embeddings}
    assert LelpClassifier(**QUICK, subclasses=most).fit(inputs, labels, **given).subclasses_ == most
    reason = f"the embeddings have {columns} columns, of which the teacher's head reads 2"
    with pytest.warns(SanovWarning, match=f"subclasses = 9 is too many: {reason}. {most} are taken"):
        assert LelpClassifier(**QUICK, subclasses=9).fit(inputs, labels, **given).subclasses_ == most
    with pytest.warns(SanovWarning, match=f"{power_of_two} are taken, a power of two as the rotation asks"):
        student = LelpClassifier(**QUICK, subclasses=8, rotation="hadamard").fit(inputs, labels, **given)
    assert student.subclass_proba(inputs).shape[2] == power_of_two


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_held_out_do_not_count(seed):
    """Six rows of a class allow 5 subclasses, but half of all rows are held out."""
    few = np.r_[:40, 60:66]
    student = LelpClassifier(**{**QUICK, "random_state": seed}, subclasses=5, validation_share=0.5)
    with pytest.warns(SanovWarning, match=r"class '1' has \d rows? to learn from"):
        student.fit(WINE[0][few], WINE[1][few])
    assert student.subclasses_ < 5


def test_without_room_for_subclasses_it_is_plain_distillation():
    inputs, labels, logits, embeddings, _ = taught_wine(columns=2)
    given = {"teacher_logits": logits, "teacher_embeddings": embeddings}
    with pytest.warns(SanovWarning, match="1 is taken, which is plain distillation"):
        student = LelpClassifier(**QUICK).fit(inputs, labels, **given)
    plain = LelpClassifier(**QUICK, subclasses=1).fit(inputs, labels, teacher_logits=logits)
    np.testing.assert_array_equal(student.predict_proba(inputs), plain.predict_proba(inputs))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_lelp_answers_at_its_teachers_temperature(temperature):
    """Whatever the temperature of the training, probabilities are the teacher's, not those flattened to a power of 1/4."""
    inputs, labels = WINE
    student = LelpClassifier(temperature=temperature, random_state=0).fit(inputs, labels)
    logits = student.teacher_.decision_function(inputs)
    off = []
    for flattened in (1.0, 4.0):
        powers = np.exp(logits / flattened)
        target = powers / powers.sum(axis=1, keepdims=True)
        off.append(rel_entr(target, student.predict_proba(inputs)).sum(axis=1).mean())
    assert off[0] < off[1] / 2


@BOTH
def test_the_student_comes_near_its_teacher(estimator):
    """With nothing but defaults, on rows that neither saw; far above the largest class."""
    parts = train_test_split(*WINE, test_size=0.4, random_state=0, stratify=WINE[1])
    student = estimator(random_state=0).fit(parts[0], parts[2])
    assert student.score(parts[1], parts[3]) > student.teacher_.score(parts[1], parts[3]) - 0.08
    assert student.score(parts[1], parts[3]) > 2 * np.bincount(parts[3]).max() / len(parts[3])


def test_a_last_batch_of_one_row_is_left_out():
    """72 rows, of which 7 are held out: 65, a batch of 64 and one row, on which transport would be of no use."""
    inputs, labels = make_blobs(72, random_state=0)
    student = SinkdClassifier(**QUICK).fit(inputs, labels)  # a warning is an error here
    assert student.student_.results["steps"] == QUICK["epochs"]
    with pytest.warns(SanovWarning, match="last batch of an epoch has one row"):
        SinkdClassifier(**QUICK, options={"validation.drop_last": False}).fit(inputs, labels)


# -- teachers ---------------------------------------------------------------------------------------------------------


@BOTH
def test_an_unfitted_teacher_is_copied_and_a_fitted_one_used(estimator):
    inputs, labels = BLOBS
    teacher = LogisticRegression()
    first = estimator(teacher, **QUICK).fit(inputs, labels)
    assert not hasattr(teacher, "coef_")
    np.testing.assert_array_equal(first.teacher_.coef_, LogisticRegression().fit(inputs, labels).coef_)
    teacher.fit(inputs[:, ::-1], labels)
    before = teacher.coef_.copy()
    assert estimator(teacher, **QUICK).fit(inputs[:, ::-1], labels).teacher_ is teacher
    np.testing.assert_array_equal(teacher.coef_, before)


@BOTH
def test_a_frozen_teacher_survives_cross_validation(estimator):
    inputs, labels = BLOBS
    teacher = LogisticRegression().fit(inputs, labels)
    search = GridSearchCV(estimator(FrozenEstimator(teacher), **QUICK), {"epochs": [3]}, cv=2).fit(inputs, labels)
    assert search.best_estimator_.teacher_.estimator is teacher
    unfrozen = GridSearchCV(estimator(teacher, **QUICK), {"epochs": [3]}, cv=2).fit(inputs, labels)
    assert unfrozen.best_estimator_.teacher_ is not teacher


@BOTH
@pytest.mark.filterwarnings("ignore:the teacher is right on 0%:sanov.core.errors.SanovWarning")  # as planted
def test_logits_are_divided_as_the_rows_are(estimator):
    """A teacher that says the contrary of each row's label: whoever learns from another row's logits is found out."""
    inputs, labels = make_blobs(80, n_features=4, centers=2, random_state=0)
    contrary = 7.5 * np.eye(2)[1 - labels]
    extra = {} if estimator is SinkdClassifier else {"subclasses": 1}
    student = estimator(**QUICK, **extra).set_params(alpha=1.0 if estimator is SinkdClassifier else 0.0)
    search = GridSearchCV(student, {"epochs": [8]}, cv=2, error_score="raise")
    assert search.fit(inputs, labels, teacher_logits=contrary).cv_results_["mean_test_score"][0] < 0.2
    divided = {"cv": 2, "params": {"teacher_logits": contrary}}
    assert cross_val_score(student, inputs, labels, **divided).max() < 0.2
    with sklearn.config_context(enable_metadata_routing=True):
        student.set_fit_request(teacher_logits=True)
        assert cross_val_score(student, inputs, labels, **divided).max() < 0.2


def test_any_classifier_teaches_sinkd():
    inputs, labels = WINE
    for teacher in (RandomForestClassifier(20), GaussianNB(), make_pipeline(PolynomialFeatures(), GaussianNB())):
        student = SinkdClassifier(teacher, **QUICK).fit(inputs, labels)
        assert student.score(inputs, labels) > 0.9
    again = SinkdClassifier(RandomForestClassifier(20), **QUICK)  # a forest without a seed gets ours
    np.testing.assert_array_equal(
        again.fit(inputs, labels).predict_proba(inputs), again.fit(inputs, labels).predict_proba(inputs)
    )


def test_a_teacher_of_named_columns_gets_the_frame():
    frame = pd.DataFrame(BLOBS[0], columns=NAMES)
    teacher = LogisticRegression().fit(frame, BLOBS[1])
    seen = []
    asked = teacher.decision_function, teacher.predict_log_proba, teacher.predict_proba
    for call in asked:
        setattr(teacher, call.__name__, lambda X, call=call: (seen.append(list(getattr(X, "columns", ()))), call(X))[1])
    student = SinkdClassifier(teacher, **QUICK).fit(frame, BLOBS[1])  # scikit-learn would warn if the names were lost
    assert seen
    assert all(columns == NAMES for columns in seen)
    assert list(student.feature_names_in_) == NAMES


# -- mistakes ---------------------------------------------------------------------------------------------------------


@BOTH
def test_parameters_are_named_as_here(estimator):
    for wrong, told in (
        ({"epochs": 0}, "epochs: the value is 0; expected a whole number >= 1"),
        ({"alpha": 1.5}, "alpha: the value is 1.5; expected a number >= 0 and <= 1"),
        ({"validation_share": 1.0}, "validation_share: the value is 1.0"),
        ({"options": {"training.shedule": "linear"}}, r"Did you mean 'training\.schedule'"),
    ):
        with pytest.raises(DataError, match=told):
            estimator(**wrong).fit(*BLOBS)


@BOTH
def test_one_class_is_refused(estimator):
    with pytest.raises(DataError, match=r"y: all 60 rows are of one class \(a\); expected at least two classes"):
        estimator().fit(BLOBS[0], ["a"] * 60)


def test_an_error_is_ours_and_scikit_learns():
    error = DataError("is wrong", where="y", fix="mend it")
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "y: is wrong. Mend it."


@BOTH
def test_teachers_that_cannot_teach(estimator):
    inputs, labels = BLOBS
    with pytest.raises(DataError, match=r"is the class GaussianNB; expected a classifier. Write GaussianNB\(\)"):
        estimator(GaussianNB).fit(inputs, labels)
    for wrong in (LinearSVC(), "a folder"):
        with pytest.raises(DataError, match=r"has no predict_proba.*CalibratedClassifierCV"):
            estimator(wrong).fit(inputs, labels)
    two = LogisticRegression().fit(inputs[labels < 2], labels[labels < 2])
    with pytest.raises(DataError, match=r"it was fitted to the classes \[0, 1\], and the labels have 2"):
        estimator(two).fit(inputs, labels)


@BOTH
def test_outputs_that_do_not_fit(estimator):
    inputs, labels, logits, embeddings, _ = taught_wine()
    given = {} if estimator is SinkdClassifier else {"teacher_embeddings": embeddings}
    for wrong, told in (
        (logits[1:], "inputs has 178 rows and logits has 177"),
        (logits[:, :2], "logits has 2 columns and classes 3 names"),
        (np.where(logits > 3, np.nan, logits), "teacher_logits: NaN"),
    ):
        with pytest.raises(DataError, match=told):
            estimator(**QUICK).fit(inputs, labels, teacher_logits=wrong, **given)
    with pytest.raises(DataError, match="a teacher was given, and its outputs too"):
        estimator(LogisticRegression()).fit(inputs, labels, teacher_logits=logits, **given)


def test_sinkd_is_told_of_probabilities():
    inputs, labels, _, embeddings, teacher = taught_wine()
    with pytest.warns(SanovWarning, match="look like probabilities"):
        SinkdClassifier(**QUICK).fit(inputs, labels, teacher_logits=teacher.predict_proba(embeddings))


def test_lelp_needs_a_linear_last_layer():
    inputs, labels, logits, embeddings, _ = taught_wine()
    with pytest.raises(
        DataError, match=r"RandomForestClassifier has no linear last layer; expected LogisticRegression"
    ):
        LelpClassifier(RandomForestClassifier(5)).fit(inputs, labels)
    assert LelpClassifier(RandomForestClassifier(5), subclasses=1, **QUICK).fit(inputs, labels).subclasses_ == 1
    with pytest.raises(DataError, match="teacher_embeddings: the teacher's other output is missing"):
        LelpClassifier().fit(inputs, labels, teacher_logits=logits)
    with pytest.raises(DataError, match="teacher_logits: the teacher's other output is missing"):
        LelpClassifier().fit(inputs, labels, teacher_embeddings=embeddings)
    with pytest.raises(DataError, match="must be the input of the last linear layer"):
        LelpClassifier().fit(inputs, labels, teacher_logits=logits, teacher_embeddings=np.tanh(embeddings))
    with pytest.raises(DataError, match="teacher_embeddings: there are 177 rows of embeddings and 178 of logits"):
        LelpClassifier().fit(inputs, labels, teacher_logits=logits, teacher_embeddings=embeddings[1:])


def test_without_scikit_learn_one_is_told_what_to_install():
    script = "import sys; sys.modules['sklearn'] = None\nimport sanov.bridges.sklearn"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.strip().endswith("Run: pip install 'sanov[demo]'")
