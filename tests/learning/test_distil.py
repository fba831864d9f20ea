"""Distillation as a sum of components: what counts, what is paired and what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learning.distil_toy import SHORT, SMALL, fit, table, texts, weights
from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.learning.components import Component, Rows, gradient_norms, label_loss, teacher_loss, weighted_sums
from sanov.learning.distil import Validation, held_out_rows
from sanov.learning.selection import scores
from sanov.learning.students import Encoder, Fitted, build
from sanov.learning.training import Training


def noise(weight=1.0, **options):
    """A component with a gradient of its own."""
    return Component("noise", lambda s, rows: (s * torch.arange(s.shape[1])).sum(), weight, **options)


# -- components -------------------------------------------------------------------------------------------------------


def rows_of(data, **more):
    return Rows(torch.from_numpy(data.logits).float(), torch.from_numpy(data.labels), **more)


def test_label_loss_is_the_sum_over_labelled_rows():
    data = table(12, unlabelled=5)
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    by_row = [-float(torch.log_softmax(logits[i], -1)[data.labels[i]]) for i in range(5, 12)]
    assert float(label_loss().loss(logits, rows_of(data))) == pytest.approx(sum(by_row), rel=1e-6)
    assert label_loss().count(torch.from_numpy(data.labels)) == 7
    assert teacher_loss().count(torch.from_numpy(data.labels)) == 12


def test_label_loss_without_labels_is_zero():
    data = table(4, unlabelled=4)
    assert float(label_loss().loss(torch.zeros(4, 3), rows_of(data))) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_teacher_loss_is_kl_plus_the_teachers_entropy(temperature):
    data = table(12)
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    p, q = (torch.distributions.Categorical(logits=z / temperature) for z in (rows_of(data).teacher, logits))
    expected = (torch.distributions.kl_divergence(p, q) + p.entropy()).sum()
    torch.testing.assert_close(teacher_loss(1.0, temperature).loss(logits, rows_of(data)), expected)


def test_annealing_runs_from_the_temperature_to_one():
    data, logits = table(6), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    annealed = teacher_loss(1.0, 4.0, anneal=True).loss
    for progress, temperature in [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)]:
        expected = teacher_loss(1.0, temperature).loss(logits, rows_of(data))
        torch.testing.assert_close(annealed(logits, rows_of(data, progress=progress)), expected)


def test_balance_fixes_the_ratio_of_gradients():
    data = table(8)
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    components = [label_loss(0.3), teacher_loss(0.7), noise(balance=0.25)]
    found = weighted_sums(components, logits, rows_of(data))
    parts = [weight * total / 8 for total, weight in found.values()]
    base, own = (torch.autograd.grad(part, logits, retain_graph=True)[0].norm() for part in (sum(parts[:2]), parts[2]))
    assert float(own / base) == pytest.approx(0.25, rel=1e-5)
    norms = gradient_norms(components, logits, rows_of(data))
    assert norms["gradient_noise"] == pytest.approx(float(own), rel=1e-5)


def test_gradient_norms_are_those_of_the_weighted_means():
    data, logits = table(8, unlabelled=4), torch.zeros(8, 3)
    norms = gradient_norms([label_loss(0.5), noise(2.0)], logits, rows_of(data))
    labels = torch.from_numpy(data.labels[4:])
    by_hand = 0.5 / 4 * (torch.full((4, 3), 1 / 3) - torch.nn.functional.one_hot(labels, 3)).norm()
    assert norms["gradient_label"] == pytest.approx(float(by_hand), rel=1e-6)
    assert norms["gradient_noise"] == pytest.approx(2 / 8 * np.sqrt(8 * 5), rel=1e-6)


# -- fitting ----------------------------------------------------------------------------------------------------------


def test_a_student_learns_from_the_teacher_alone():
    data = table(300)
    silent = DistilTable(data.inputs, data.classes, data.logits)
    student = fit(silent, teacher_loss(1.0, 1.0), training=Training(batch_size=32, epochs=30, learning_rate=0.02))
    found = scores(torch.from_numpy(student.logits(data)), data)
    assert found["validation_agreement"] > 0.9
    assert found["validation_accuracy"] > 0.6


def test_a_student_learns_texts():
    data = texts()
    student = fit(data, training=Training(batch_size=8, epochs=20, learning_rate=0.02))
    assert (student.logits(data).argmax(axis=1) == data.labels).all()


def test_labels_alone_need_no_teacher():
    data = table()
    without = DistilTable(data.inputs, data.classes, None, data.labels)
    assert torch.equal(weights(fit(without, label_loss())), weights(fit(data, label_loss())))


def test_a_component_of_weight_zero_changes_no_bit():
    data = table()
    assert torch.equal(
        weights(fit(data, label_loss(0.1), teacher_loss(0.9), noise(0.0))),
        weights(fit(data, label_loss(0.1), teacher_loss(0.9))),
    )
    assert torch.equal(weights(fit(data, label_loss(), teacher_loss(0.0))), weights(fit(data, label_loss())))


def test_the_seed_fixes_weights_batches_and_split_whatever_the_components():
    data = table()
    seen = []

    def spy(name):
        def loss(student_logits, rows):
            seen.append((name, rows.labels.tolist()))
            return student_logits.sum() * 0.0

        return Component(name, loss)

    held = Validation(share=0.2, select="last")
    first = fit(data, label_loss(), spy("x"), validation=held, diagnose=False)
    batches = [labels for _, labels in seen]
    seen.clear()
    fit(data, teacher_loss(), spy("y"), validation=held, diagnose=False)
    assert [labels for _, labels in seen] == batches
    assert torch.equal(weights(first), weights(fit(data, label_loss(), validation=held)))
    assert not torch.equal(weights(first), weights(fit(data, label_loss(), validation=held, seed=1)))


def test_initial_weights_follow_from_the_seed_alone():
    encoder = Encoder.of(table(), SMALL)
    state = torch.get_rng_state()
    first, again, other = (build(encoder, SMALL, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_micro_batches_change_nothing():
    data = table(64, unlabelled=20)
    whole = fit(data, training=SHORT)
    split = fit(data, training=SHORT.model_copy(update={"micro_batch": 4}))
    torch.testing.assert_close(weights(whole), weights(split), atol=1e-5, rtol=1e-4)


def test_a_whole_batch_is_not_split():
    with pytest.raises(InputError, match="noise"):
        fit(table(), label_loss(), noise(whole_batch="own"), training=SHORT.model_copy(update={"micro_batch": 4}))
    with pytest.raises(InputError, match="noise"):
        fit(table(), label_loss(), noise(balance=0.1), training=SHORT.model_copy(update={"micro_batch": 4}))


def test_extras_reach_the_loss_with_their_rows():
    data = table()
    data = DistilTable(data.inputs, data.classes, data.logits, data.labels, extras={"copy": data.logits.copy()})

    def loss(student_logits, rows):
        torch.testing.assert_close(rows.extras["copy"], rows.teacher)
        return student_logits.sum()

    fit(data, Component("check", loss), label_loss())


def test_last_batch_can_be_left_out():
    data, sizes = table(40), []

    def loss(student_logits, rows):
        sizes.append(len(student_logits))
        return student_logits.sum()

    fit(data, Component("size", loss), diagnose=False)
    assert sorted(sizes) == [8, 8, 16, 16, 16, 16]
    sizes.clear()
    fit(data, Component("size", loss), diagnose=False, validation=Validation(share=0, select="last", drop_last=True))
    assert sizes == [16] * 4


def test_progress_runs_from_zero_to_one_over_the_epochs():
    seen = []

    def loss(student_logits, rows):
        seen.append(rows.progress)
        return student_logits.sum()

    fit(table(32), Component("progress", loss), training=SHORT.model_copy(update={"epochs": 3}), diagnose=False)
    assert seen == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "share", "expected"), [(100, 0.1, 10), (5, 0.1, 1), (2, 0.9, 1), (100, 0.0, 0)])
def test_held_out_rows(rows, share, expected):
    assert held_out_rows(table(rows), Validation(share=share)) == expected


def test_the_best_evaluation_is_kept():
    """The loss drives the student to where it was best and then away."""
    data = table(120)
    calls = []

    def turning(student_logits, rows):
        calls.append(1)
        sign = 1.0 if len(calls) <= 8 * 2 else -3.0
        return sign * torch.nn.functional.cross_entropy(student_logits, rows.labels, reduction="sum")

    training = Training(batch_size=16, epochs=6, learning_rate=0.05)
    best = fit(data, Component("turning", turning), training=training, validation=data, diagnose=False)
    accuracy = [e for e in best.history["validation_accuracy"].to_list() if e is not None]
    kept = scores(torch.from_numpy(best.logits(data)), data)["validation_accuracy"]
    assert kept == max(accuracy) == best.results["validation_accuracy"]
    assert kept > accuracy[-1]


def test_without_validation_nothing_is_evaluated():
    fitted = fit(table(), diagnose=False)
    assert not any(name.startswith("validation") for name in fitted.history.columns)


def test_history_holds_losses_gradients_and_scores():
    fitted = fit(table(), validation=Validation(share=0.2))
    assert {"label", "teacher"} <= {name.removeprefix("loss_") for name in fitted.history.columns}
    assert {"gradient_label", "gradient_teacher", "validation_accuracy"} <= set(fitted.history.columns)


# -- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [table(), texts()], ids=["features", "texts"])
def test_saved_and_loaded_students_agree(data, tmp_path):
    fitted = fit(data, config={"alpha": 0.9})
    fitted.save(tmp_path / "student")
    loaded = Fitted.load(tmp_path / "student")
    np.testing.assert_array_equal(loaded.logits(data), fitted.logits(data))
    assert loaded.to_dict() == fitted.to_dict()
    assert loaded.classes == data.classes
    assert loaded.config == {"alpha": 0.9}
    assert len(loaded.summary().splitlines()) <= 24


@pytest.mark.parametrize(
    ("data", "said", "rows"),
    [
        (table(), "67 weights on 4 features, 3 classes", "60 rows of 4 features, 3 classes, logits, labels"),
        (texts(), "314 weights on texts, 2 classes", "40 texts, 2 classes, logits, labels"),
    ],
    ids=["features", "texts"],
)
def test_students_and_tables_are_printed_in_one_line(data, said, rows):
    """Weights of a hidden layer of 8: 4 * 8 + 8 + 8 * 3 + 3 on features; 64 * 4, 4 * 8 + 8 and 8 * 2 + 2 on texts."""
    fitted = fit(data)
    assert repr(fitted) == f"<student of distil: {said}>"
    assert fitted.summary().startswith(f"distil: a student of {said}")
    assert repr(data) == f"<DistilTable 'the table': {rows}>"
    bare = DistilTable(np.zeros((1, 1)), ("a", "b"), name="x.csv", embeddings=np.ones((1, 5)))
    assert repr(bare) == "<DistilTable 'x.csv': 1 row of 1 feature, 2 classes, embeddings>"


def test_features_are_found_by_name_and_cut_where_they_are_far_out():
    data = table()
    named = DistilTable(data.inputs, data.classes, data.logits, data.labels, features=tuple("wxyz"))
    fitted = fit(named)
    turned = DistilTable(data.inputs[:, ::-1].copy(), data.classes, features=tuple("zyxw"))
    np.testing.assert_allclose(fitted.logits(turned), fitted.logits(named))
    with pytest.raises(InputError, match=r"features v, x, y, z.*4 features \(w, x, y, z\)"):
        fitted.logits(DistilTable(data.inputs, data.classes, features=tuple("vxyz")))
    far, farther = (DistilTable(np.full((1, 4), size), data.classes) for size in (1e6, 1e9))
    np.testing.assert_array_equal(fitted.logits(far), fitted.logits(farther))


def test_other_inputs_than_in_training():
    with pytest.raises(InputError, match="inputs are texts; expected 4 features"):
        fit(table()).logits(texts())
    with pytest.raises(InputError, match="inputs are 4 features; expected texts"):
        fit(texts()).logits(table())


def test_a_validation_table_may_name_the_classes_in_another_order():
    data = table(64)
    turned = data.aligned(tuple(reversed(data.classes)))
    one, other = (fit(data, validation=held_out).results for held_out in (data, turned))
    assert one == other


@pytest.mark.parametrize("named", [True, False])
def test_a_teacher_is_asked_of_a_validation_table_as_of_the_rows(named):
    """The same scores as with logits in the table; arrays are of the rows to train on, and nobody else can be asked."""
    data, held_out = table(40), table(20, seed=1)

    def teacher(rows):
        return 2 * rows[:, :3] - 1

    bare, unseen = (replace(part, logits=None, labels=None) for part in (data, held_out))
    classes = {} if named else {"classes": ("0", "1")}  # of three, whose number the teacher tells
    found = fit(
        replace(bare, **classes), teacher_loss(), teacher=teacher, validation=replace(unseen, **classes)
    ).results
    given = fit(data, teacher_loss(), validation=replace(held_out, labels=None)).results
    names = ("validation_agreement", "validation_cross_entropy")
    assert [found[name] for name in names] == pytest.approx([given[name] for name in names])
    arrays = fit(bare, teacher_loss(), teacher=data.logits, validation=replace(held_out, logits=None)).results
    assert ("validation_accuracy" in arrays, "validation_agreement" in arrays) == (True, False)
    with pytest.raises(InputError, match="neither labels nor teacher logits to choose by"):
        fit(bare, teacher_loss(), teacher=data.logits, validation=unseen)


@pytest.mark.parametrize("seed", range(5))
def test_rows_with_a_label_are_held_out_where_there_is_no_teacher(seed):
    labels = np.full(60, -1)
    labels[:4] = [0, 1, 0, 1]
    data = DistilTable(np.random.default_rng(0).normal(size=(60, 3)), ("a", "b"), None, labels)
    found = fit(data, label_loss(), validation=Validation(share=0.05), seed=seed).results
    assert found["labelled_rows"] == 1
    assert "validation_accuracy" in found


# -- mistakes ---------------------------------------------------------------------------------------------------------


def without(**changes):
    data = table()
    parts = {"inputs": data.inputs, "classes": data.classes, "logits": data.logits, "labels": data.labels}
    return DistilTable(**(parts | changes))


MISTAKES = {
    "no logits": (without(logits=None), (teacher_loss(),), "no teacher logits.*teacher=DIR"),
    "no labels": (without(labels=None), (label_loss(),), "no labels, and only labels"),
    "one row": (table(1), (teacher_loss(),), "1 rows"),
    "one class": (
        without(labels=np.zeros(60, dtype=np.int64)),
        (teacher_loss(),),
        r"all labels are of one class \('a'\)",
    ),
    "no classes": (DistilTable(np.zeros((4, 2)), (), None, None), (label_loss(),), "0 classes"),
    "nothing to learn": (table(), (label_loss(0.0),), "weight 0"),
    "balance without others": (table(), (noise(balance=1.0),), "relative to the others"),
}


@pytest.mark.parametrize(("data", "components", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_anything_is_written(data, components, message, tmp_path):
    with pytest.raises(InputError, match=f"(?s){message}"):
        fit(data, *components, out=tmp_path / "student")
    assert not list(tmp_path.iterdir())
