"""The system as a person uses it: arrays, tables, and a Hugging Face teacher in; a student and its answer out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.metrics import log_loss as sklearn_log_loss

import tiny_bert
from sanov.core import charts
from sanov.core.options import parse
from sanov.learning import distil
from sanov.learning.distil import Validation, label_loss, teacher_loss
from sanov.learning.students import Fitted
from sanov.learning.training import Training
from sanov.systems import sinkd
from systems.sinkd_toy import LAST, SHORT, SMALL, config, table


def weights(fitted):
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


# -- the objective ----------------------------------------------------------------------------------------------------


def test_without_transport_it_is_plain_distillation_bit_for_bit():
    kd = distil.fit(
        table(), [label_loss(1 - 0.9), teacher_loss(0.9, 2.0)], training=SHORT, student=SMALL, validation=LAST
    )
    assert torch.equal(weights(sinkd.fit(table(), config(transport_weight=0.0))), weights(kd))
    assert not torch.equal(weights(sinkd.fit(table(), config())), weights(kd))


def test_without_transport_and_teacher_it_is_plain_cross_entropy():
    plain = distil.fit(table(), [label_loss(1.0)], training=SHORT, student=SMALL, validation=LAST)
    assert torch.equal(weights(sinkd.fit(table(), config(transport_weight=0.0, alpha=0.0))), weights(plain))


def test_the_objective_is_the_sum_of_its_terms():
    """L = (1 - alpha) CE + alpha H + transport_weight SD / b, from the losses of each step."""
    fitted = sinkd.fit(table(), config(transport_weight=0.5, alpha=0.7))
    h = fitted.history
    expected = 0.3 * h["loss_label"] + 0.7 * h["loss_teacher"] + 0.5 * h["loss_transport"]
    np.testing.assert_allclose(h["loss"], expected, rtol=1e-6)


def test_first_step_by_hand():
    """The losses of the first step are those of the untrained student on the first batch."""
    data, options = table(), config(training=SHORT.model_copy(update={"batch_size": 96, "epochs": 1}))
    seen = []
    fitted = distil.fit(
        data,
        sinkd.components(options),
        training=options.training,
        student=SMALL,
        validation=LAST,
        before=lambda s, t: seen.append((s.double(), t.double())) or {},
    )
    (student, teacher), first = seen[0], fitted.history.row(0, named=True)
    assert first["loss_transport"] == pytest.approx(float(sinkd.sinkhorn_loss(student, teacher).value), rel=1e-4)
    h = -(torch.softmax(teacher / 2, -1) * torch.log_softmax(student / 2, -1)).sum(-1).mean()
    assert first["loss_teacher"] == pytest.approx(float(h), rel=1e-4)


def test_the_paper_preset_is_the_sum_form_with_its_factor():
    """beta * 1e-3 * SD equals transport_weight * SD / b for transport_weight = beta * 1e-3 * b."""
    data = table(96)
    paper = sinkd.fit(data, config(preset="paper"))
    mean = sinkd.fit(data, config(transport_weight=0.8e-3 * 16))
    assert sinkd.Config(preset="paper").transport_weight == 0.8
    assert sinkd.Config(preset="paper", transport_weight=0.1).transport_weight == 0.1
    torch.testing.assert_close(weights(paper), weights(mean), atol=1e-6, rtol=1e-4)


def test_unlabelled_rows_get_no_label_loss():
    """Labels of rows that have none do not exist for the loss: any value below 0 gives the same student."""
    labels = np.where(np.arange(96) < 48, table().labels, -1)
    mixed = sinkd.fit(table(labels=labels), config(alpha=0.5))
    assert mixed.results["labelled_rows"] == 48
    none = sinkd.fit(table(labels=None), config(alpha=0.5))
    assert "loss_label" in mixed.history.columns
    assert none.history["loss_label"].is_nan().all()


def test_balance_holds_the_ratio_of_gradients():
    fitted = sinkd.fit(table(), config(balance=0.25, transport_weight=0.0, alpha=1.0))
    seen = fitted.history.drop_nulls()
    np.testing.assert_allclose(seen["gradient_transport"] / seen["gradient_teacher"], 0.25, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "envelope"},
        {"gradient": "implicit", "iterations": 500},
        {"identity_penalty": 0.5},
        {"anneal": True, "temperature": 4.0, "alpha": 1.0},
        {"transport": {"tolerance": 1e-3}, "iterations": 500},
        {"transport": {"debiased": True}},
        {"transport": {"p": 2.0}},
    ],
    ids=str,
)
def test_every_option_trains(options):
    fitted = sinkd.fit(table(), config(transport_weight=1.0, **options))
    assert np.isfinite(fitted.history["loss"].to_numpy()).all()
    assert not torch.equal(weights(fitted), weights(sinkd.fit(table(), config(transport_weight=1.0))))


def test_gathering_on_one_process_changes_no_bit():
    one, other = (sinkd.fit(table(), config(transport={"gather": gather})) for gather in (False, True))
    assert torch.equal(weights(one), weights(other))


def test_two_classes_by_sorting():
    data = table(classes=2)
    sorted_ = sinkd.fit(data, config(transport_weight=1.0, transport={"sort": True}))
    near = sinkd.fit(data, config(transport_weight=1.0, epsilon=1e-3, iterations=2000))
    torch.testing.assert_close(weights(sorted_), weights(near), atol=2e-2, rtol=0)


def test_transport_to_other_rows_outputs():
    """The negative control: the table carries other rows' logits beside the right ones."""
    data = table()
    other = table(extras={"other": data.logits[::-1].copy()})
    component = sinkd.transport_component(config(), extra="other")
    logits = torch.zeros(4, 3)
    rows = distil.Rows(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), 0.0, {"other": torch.eye(4, 3) * 5})
    expected = 4 * sinkd.sinkhorn_loss(logits, torch.eye(4, 3) * 5).value
    torch.testing.assert_close(component.loss(logits, rows), expected)
    fitted = distil.fit(other, [label_loss(), component], training=SHORT, student=SMALL, validation=LAST)
    assert np.isfinite(fitted.history["loss_transport"].to_numpy()).all()


def test_a_student_learns_from_transport_and_teacher_without_labels():
    data = table(300, labels=None)
    options = config(transport_weight=0.1, alpha=1.0, training=Training(batch_size=32, epochs=12, learning_rate=0.03))
    answer = sinkd.apply(data, options, fitted=sinkd.fit(data, options))
    assert answer.values["agreement"] > 0.9


# -- what is told -----------------------------------------------------------------------------------------------------


def test_summary_says_whether_transport_has_anything_to_do():
    fitted = sinkd.fit(table(), config(validation=Validation(share=0.2)))
    assert "before training the median total variation" in fitted.summary()
    assert len(fitted.summary().splitlines()) <= 24
    assert max(map(len, fitted.summary().splitlines())) <= 100
    assert 0 < fitted.results["overlap"]["median_distance"] < 1
    assert {"marginal_error", "transport_cost", "gradient_transport"} <= set(fitted.history.columns)


def test_kept_evaluation_is_in_the_results():
    fitted = sinkd.fit(table(), config(validation=Validation(share=0.2)))
    row = fitted.history.row(fitted.results["kept_step"] - 1, named=True)
    assert row["validation_accuracy"] == fitted.results["validation_accuracy"]


# -- predicting -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return sinkd.fit(table(), config())


def test_scores_agree_with_scikit_learn(fitted):
    data = table(200, seed=1)
    answer = sinkd.apply(data, config(), fitted=fitted)
    logits = torch.from_numpy(fitted.logits(data))
    p = torch.softmax(logits, -1).numpy()
    right = p.argmax(1) == data.labels
    assert answer.values["accuracy"] == accuracy_score(data.labels, p.argmax(1))
    assert answer.values["log_loss"] == pytest.approx(sklearn_log_loss(data.labels, p))
    assert answer.values["agreement"] == pytest.approx((p.argmax(1) == data.logits.argmax(1)).mean())
    interval = binomtest(int(right.sum()), 200).proportion_ci(method="wilson")
    assert (answer.values["accuracy_low"], answer.values["accuracy_high"]) == pytest.approx(tuple(interval))
    matrix = confusion_matrix(data.labels, p.argmax(1))
    by_class = answer.tables["By class"]
    np.testing.assert_array_equal(by_class["right"], matrix.diagonal())
    np.testing.assert_array_equal(by_class["predicted"], matrix.sum(0))
    np.testing.assert_array_equal(by_class["rows"], matrix.sum(1))


def test_predictions_by_row(fitted):
    data = table(50, seed=1, ids=tuple(f"r{i}" for i in range(50)))
    frame = sinkd.apply(data, config(), fitted=fitted).to_frame()
    assert frame.columns == ["id", "class", "confidence", "p_a", "p_b", "p_c", "label", "teacher"]
    p = frame.select("p_a", "p_b", "p_c").to_numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    assert frame["class"].to_list() == [data.classes[j] for j in p.argmax(1)]
    np.testing.assert_allclose(frame["confidence"], p.max(1))


def test_rows_alone_are_predicted(fitted):
    answer = sinkd.apply(table(20, logits=None, labels=None), config(), fitted=fitted)
    assert "20 rows are classified" in answer.sentence
    assert "accuracy" not in answer.values
    assert not answer.figures


def test_rows_without_a_label_are_told(fitted):
    data = table(20, labels=np.where(np.arange(20) < 5, -1, np.arange(20) % 3))
    answer = sinkd.apply(data, config(), fitted=fitted)
    assert answer.values["labelled_rows"] == 15
    assert answer.notes == ("5 rows have no label; they are predicted, and left out of the scores.",)


def test_reliability_is_drawn_with_the_answer(fitted):
    answer = sinkd.apply(table(60), config(), fitted=fitted)
    assert answer.tables["Reliability"]["rows"].sum() == 60
    assert "share right" in charts.svg(answer.figures["Reliability"])
    assert len(answer.summary().splitlines()) <= 24


def test_frames_come_back_as_they_went_in(fitted):
    frame = pl.DataFrame(table(10).inputs, schema=["x1", "x2", "x3", "x4"]).to_pandas()
    answer = sinkd.apply(sinkd.read([frame], config()), config(), fitted=fitted)
    assert type(answer.to_frame()) is type(frame)


# -- files ------------------------------------------------------------------------------------------------------------


def test_from_an_archive_to_a_folder_and_back(tmp_path):
    data = table()
    np.savez(tmp_path / "teacher.npz", inputs=data.inputs, logits=data.logits, labels=data.labels)
    options = parse(sinkd.Config, {"student.width": "8", "training.epochs": "2", "epsilon": "0.2"})
    fitted = sinkd.fit(sinkd.read([tmp_path / "teacher.npz"], options), options, seed=3, out=tmp_path / "student")
    answer = sinkd.apply(sinkd.read([tmp_path / "teacher.npz"], options), options, fitted=tmp_path / "student")
    assert (
        answer.values["agreement"]
        == sinkd.apply(sinkd.read([tmp_path / "teacher.npz"], options), options, fitted=fitted).values["agreement"]
    )
    tree = json.loads((tmp_path / "student" / "config.json").read_text())
    assert tree["config"]["epsilon"] == 0.2
    assert tree["results"]["seed"] == 3
    assert sinkd.Config.model_validate(tree["config"]) == options


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    return tiny_bert.save(tmp_path_factory.mktemp("teacher") / "bert")


def reviews(path, rows=40):
    texts = [f"a {'very ' * (i % 3)}{'good' if i % 2 else 'bad'} film" for i in range(rows)]
    pl.DataFrame({"text": texts, "label": ["pos" if i % 2 else "neg" for i in range(rows)]}).write_csv(path)
    return path


def test_a_hugging_face_teacher_and_a_table_of_texts(teacher, tmp_path):
    options = config(teacher=str(teacher))
    data = sinkd.read([reviews(tmp_path / "reviews.csv")], options)
    fitted = sinkd.fit(data, options, out=tmp_path / "student")
    assert fitted.classes == ("neg", "pos")
    with_logits = distil.with_teacher(data, str(teacher))
    again = sinkd.fit(with_logits, config())
    assert torch.equal(weights(fitted), weights(again))
    answer = sinkd.apply(data, options, fitted=tmp_path / "student")
    assert {"accuracy", "agreement"} <= answer.values.keys()


def test_the_teacher_is_asked_once(teacher, tmp_path, monkeypatch):
    from sanov.learning import teachers

    options = config(teacher=str(teacher))
    data = sinkd.read([reviews(tmp_path / "reviews.csv")], options)
    first = teachers.with_teacher(data, str(teacher), folder=tmp_path)
    monkeypatch.setattr(teachers.foreign, "TextTeacher", lambda *_, **__: pytest.fail("asked again"))
    np.testing.assert_array_equal(teachers.with_teacher(data, str(teacher), folder=tmp_path).logits, first.logits)
    with pytest.raises(pytest.fail.Exception):
        teachers.with_teacher(data.take(range(5)), str(teacher), folder=tmp_path)


# -- several processes ------------------------------------------------------------------------------------------------


def test_gathered_transport_of_two_processes_is_that_of_one(tmp_path):
    """One cloud over two processes trains the student of one process; two clouds train another."""
    script = Path(__file__).with_name("sinkd_processes.py")
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(40_000 + os.getpid() % 20_000), "WORLD_SIZE": "2"}
    paths = {"PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env=os.environ | ports | paths | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one = sinkd.fit(table(), config(transport_weight=1.0))
    together, apart, balanced = (Fitted.load(tmp_path / name) for name in ("together", "apart", "balanced"))
    torch.testing.assert_close(weights(together), weights(one), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(together.history["loss"], one.history["loss"], rtol=1e-5)
    assert float((weights(apart) - weights(one)).abs().max()) > 1e-3
    alone = sinkd.fit(table(), config(balance=0.5, transport_weight=0.0))
    torch.testing.assert_close(weights(balanced), weights(alone), atol=1e-4, rtol=1e-3)
