"""The system as a person uses it: arrays and tables in, a student out that answers by classes and knows its subclasses."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

from sanov.baselines import distillation
from sanov.cli import app
from sanov.core.errors import InputError, SanovWarning
from sanov.data.distillation import DistilTable, Head
from sanov.learning.students import Fitted
from sanov.learning.training import Training
from sanov.systems import lelp
from systems.lelp_toy import LAST, SHORT, SMALL, config, table

LONG = Training(batch_size=32, epochs=15, learning_rate=0.02)


def weights(fitted):
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


# -- the objective ----------------------------------------------------------------------------------------------------


def test_one_subclass_is_plain_distillation_step_by_step():
    """Loss and weights of every step, so every gradient: with the student at the teacher's temperature."""
    ours = lelp.fit(table(), config(subclasses=1, temperature=3.0, student_temperature=3.0))
    options = {"loss": "kl", "alpha": 1.0, "temperature": 3.0, "student": SMALL, "training": SHORT, "validation": LAST}
    plain = distillation.fit(table(), distillation.Config(**options))
    np.testing.assert_allclose(ours.history["loss_teacher"], plain.history["loss_teacher"], atol=1e-6)
    assert ours.history["loss_subclass"].abs().max() == 0
    np.testing.assert_allclose(weights(ours), weights(plain), atol=1e-5)


def test_one_subclass_needs_no_embeddings():
    plain = table(embeddings=None, head=None)
    assert torch.equal(weights(lelp.fit(plain, config(subclasses=1))), weights(lelp.fit(table(), config(subclasses=1))))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_loss_is_the_sum_of_its_parts(alpha):
    h = lelp.fit(table(), config(alpha=alpha)).history
    labels = alpha * h["loss_label"] if alpha else 0.0
    np.testing.assert_allclose(h["loss"], labels + (1 - alpha) * (h["loss_teacher"] + h["loss_subclass"]), rtol=1e-5)
    assert (h["loss_subclass"] > 0).all()


def test_the_student_learns_the_planted_subclasses():
    data = table()
    fitted = lelp.fit(data, config(training=LONG, rotation="hadamard"))
    log_q = fitted.subclass_log_probs(data)
    np.testing.assert_allclose(np.exp(log_q).sum(axis=(1, 2)), 1)
    assert adjusted_rand_score(data.subclasses, log_q.reshape(len(data), 4).argmax(axis=1)) == 1
    at_tau = fitted.logits(data) / 4.0  # the default temperature
    shifted = at_tau - np.log(np.exp(at_tau).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(shifted, np.log(np.exp(log_q).sum(axis=2)), atol=1e-9)


def test_a_random_rotation_follows_from_the_seed_alone():
    same = [weights(lelp.fit(table(), config(), seed=2)) for _ in range(2)]
    assert torch.equal(*same)
    own = config(projection={"seed": 5})
    first, second = (lelp.find_subclasses(table(), own, seed=seed).directions for seed in (1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, lelp.find_subclasses(table(), config(), seed=1).directions)


def test_rows_without_a_label_belong_where_the_teacher_puts_them():
    data = table()
    wrong = np.where(np.arange(240) < 20, 1 - data.labels, data.labels)
    some = np.where(np.arange(240) < 20, -1, data.labels)
    by_label, by_teacher = (
        lelp.find_subclasses(table(labels=wrong), config(projection={"class_sets": sets}, rotation="none"))
        for sets in ("label", "teacher")
    )
    completed = lelp.find_subclasses(table(labels=some), config(rotation="none"))
    none = lelp.find_subclasses(table(labels=None), config(rotation="none"))
    for other in (completed, none):
        np.testing.assert_allclose(other.directions, by_teacher.directions)
    assert (by_label.offsets - by_teacher.offsets).abs().max() > 0.01


def test_subclasses_are_found_among_the_rows_that_are_trained_on():
    """Rows held out do not count, or they would be seen in training after all."""
    held = config(validation={"share": 0.5})
    fitted = lelp.fit(table(), held)
    assert sum(report["rows"] for report in fitted.results["by_class"]) == 120 == fitted.results["rows"]


def test_a_killed_fit_goes_on(tmp_path):
    options = config(training={**SHORT.model_dump(), "checkpoint_every": 5})
    whole = lelp.fit(table(), options, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path / "part", options)
    again = lelp.fit(table(), options, out=tmp_path / "part", resume=True)
    assert torch.equal(weights(again), weights(whole))


def stopped(folder, options):
    """Run until step 12, at which the loop is interrupted."""
    from unittest.mock import patch

    from sanov.learning import distil

    original = distil._Feed.batches

    def interrupted(self, step, model):
        if step == 12:
            raise KeyboardInterrupt
        return original(self, step, model)

    with patch.object(distil._Feed, "batches", interrupted):
        lelp.fit(table(), options, out=folder)


def test_a_saved_student_is_the_same(tmp_path):
    fitted = lelp.fit(table(), config(), out=tmp_path / "student")
    again = Fitted.load(tmp_path / "student")
    assert again.subclasses == 2
    assert np.array_equal(again.logits(table()), fitted.logits(table()))
    assert np.array_equal(again.subclass_log_probs(table()), fitted.subclass_log_probs(table()))
    assert "2 subclasses each" in again.summary()
    assert "class 'a': 2 directions carry" in again.summary()


# -- what a user may get wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"embeddings": None, "head": None}, {}, r"no teacher embeddings.*array `embeddings`.*teacher=DIR"),
        ({"head": None}, {}, r"head is not known.*head_weight.*null_space=false"),
        ({}, {"subclasses": 4}, r"class 'a': its .* vary in 3 directions .* subclasses = 4\. Set subclasses to 3"),
        ({}, {"subclasses": 3, "rotation": "hadamard"}, "2 or 4, or a random rotation"),
        ({"labels": np.zeros(240, dtype=np.int64)}, {}, "all labels are of one class"),
        ({"labels": None, "logits": None}, {}, "no teacher logits"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(changes, options, told, tmp_path):
    with pytest.raises(InputError, match=told):
        lelp.fit(table(**changes), config(**options), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_logits_is_refused_before_its_student_learns_zeros():
    """Embeddings alone leave the table's own logits as they are, and are no teacher where there are none."""
    from sanov.learning.teachers import with_teacher

    given = {"embeddings": table().embeddings}
    assert np.array_equal(
        with_teacher(table(embeddings=None, head=None), given, embeddings=True).logits, table().logits
    )
    from sanov.learning import subclasses

    bare = table(embeddings=None, head=None, logits=None)
    with pytest.raises(InputError, match="neither head nor logits"):
        subclasses.fit(bare, lambda rows: rows, subclasses=1, teacher=given, embeddings=True)


def test_a_table_to_choose_by_needs_something_to_judge_by():
    from sanov.learning import distil

    nothing = table(labels=None, logits=None, embeddings=None, head=None)
    with pytest.raises(InputError, match="neither labels nor teacher logits to choose by"):
        distil.fit(table(), [distil.label_loss()], training=SHORT, validation=nothing)


def test_known_subclasses_are_part_of_what_a_run_is_of():
    """A run stopped with one truth does not go on with another."""
    assert table().digest() != table(subclasses=("x",) * 240).digest()


def test_many_classes_are_warned_of():
    rng = np.random.default_rng(0)
    labels = np.arange(210) % 21
    embeddings = rng.standard_normal((210, 30)) + 3 * np.eye(30)[labels]
    head = Head(np.eye(30, 21), np.zeros(21))
    names = tuple(f"c{c}" for c in range(21))
    data = DistilTable(embeddings, names, head.logits(embeddings), labels, embeddings=embeddings, head=head)
    with pytest.warns(SanovWarning, match="21 classes: logits carry structure"):
        lelp.fit(data, config(training=Training(epochs=1)))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("temperature=0", "temperature"),
        ("subclass_temperature=-1", "subclass_temperature"),
        ("subclasses=0", "subclasses"),
        ("rotation=hadamrd", "hadamard"),
        ("alpha=1.5", "alpha"),
    ],
)
def test_options_out_of_range(option, told, command, tmp_path):
    save()
    status, error = command("fit", "lelp", "teacher.npz", "--out", "student", option)
    assert status == 2
    assert told in error
    assert not (tmp_path / "student").exists()


def save(path="teacher.npz", **changes):
    data = table()
    arrays = {
        "inputs": data.inputs,
        "embeddings": data.embeddings,
        "labels": data.labels,
        "subclasses": data.subclasses,
    }
    arrays |= {"head_weight": data.head.weight, "head_bias": data.head.bias}
    np.savez(path, **(arrays | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head_weight": table().head.weight.T}, "transpose"),
        ({"logits": table().logits + 1}, "embeddings must be the input of the last linear layer"),
        ({"embeddings": np.where(np.arange(240)[:, None] == 2, np.nan, table().embeddings)}, "row 3"),
        ({"labels": np.arange(240) % 5}, "the label is '2'"),
    ],
)
def test_arrays_that_do_not_fit(changes, told, command, tmp_path):
    save(**changes)
    status, error = command("fit", "lelp", "teacher.npz", "--out", "student")
    assert status == 2
    assert told in " ".join(error.split())
    assert not (tmp_path / "student").exists()


# -- the command line ---------------------------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save()
    words = [
        "fit",
        "lelp",
        "teacher.npz",
        "--out",
        "student",
        "subclasses=2",
        "training.epochs=12",
        "rotation=hadamard",
    ]
    done = CliRunner().invoke(app, [*words, "training.learning_rate=0.02"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["apply", "lelp", "teacher.npz", "--fitted", "student", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["values"]["accuracy"] > 0.9


def test_a_teacher_whose_head_is_turned_is_warned_of():
    data = table()
    flipped = Head(-data.head.weight, data.head.bias)
    wrong = table(head=flipped, logits=flipped.logits(data.embeddings))
    with pytest.warns(SanovWarning, match="right on 0% of 240 labelled rows, far below chance"):
        fitted = lelp.fit(wrong, config())
    assert fitted.results["teacher_accuracy"] == 0
    assert "teacher accuracy" in fitted.summary()
    assert lelp.fit(data, config()).results["teacher_accuracy"] == 1


def test_embeddings_without_a_head_are_told_so():
    with pytest.raises(InputError, match=r"embeddings, and neither head nor logits.*head_weight"):
        lelp.fit(table(head=None, logits=None), config())
