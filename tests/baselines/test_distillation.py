"""Textbook distillation: each loss against its definition, and the baseline from end to end."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from typer.testing import CliRunner

from sanov.baselines import distillation
from sanov.baselines.distillation import ROW_LOSSES, Config, components, decoupled, row_loss, sorted_l1
from sanov.cli import app
from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.learning.components import Rows, teacher_loss
from sanov.systems import sinkd

TEMPERATURE = 1.7
generator = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)


def definition(name, student, teacher):
    """The sums of the docstring, in NumPy."""
    p, q = softmax(teacher / TEMPERATURE), softmax(student / TEMPERATURE)
    m = (p + q) / 2
    return {
        "kl": rel_entr(p, q).sum(),
        "reverse_kl": rel_entr(q, p).sum(),
        "jensen_shannon": rel_entr(p, m).sum() / 2 + rel_entr(q, m).sum() / 2,
        "total_variation": abs(p - q).sum() / 2,
        "sorted_l1": abs(np.sort(p) - np.sort(q)).sum(),
        "squared_error": ((teacher - student) ** 2).mean(),
    }[name]


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_every_row_is_as_defined(name):
    found = row_loss(name, STUDENT, TEACHER, TEMPERATURE)
    expected = [definition(name, s, t) for s, t in zip(STUDENT.numpy(), TEACHER.numpy(), strict=True)]
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_zero_where_student_and_teacher_agree_and_not_elsewhere(name):
    assert row_loss(name, TEACHER, TEACHER, TEMPERATURE).abs().max() < 1e-12
    assert row_loss(name, STUDENT, TEACHER, TEMPERATURE).min() > 1e-4


@pytest.mark.parametrize("name", [name for name in ROW_LOSSES if name != "squared_error"])
def test_adding_a_constant_to_all_logits_changes_nothing(name):
    shifted = row_loss(name, STUDENT + 3.0, TEACHER - 5.0, TEMPERATURE)
    assert torch.allclose(shifted, row_loss(name, STUDENT, TEACHER, TEMPERATURE), atol=1e-12)


def test_bounds():
    """Jensen-Shannon reaches log 2, total variation 1 and sorted L1 its 2 (1 - 1/K) at the far ends."""
    apart = torch.tensor([[60.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 60.0, 0.0, 0.0]])
    assert row_loss("jensen_shannon", *apart).item() == pytest.approx(math.log(2), rel=1e-6)
    assert row_loss("total_variation", *apart).item() == pytest.approx(1, rel=1e-6)
    assert row_loss("sorted_l1", *apart).item() == pytest.approx(0, abs=1e-6)  # blind to which class it is
    flat = torch.zeros(1, 4), torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    assert row_loss("sorted_l1", *flat).item() == pytest.approx(1.5, rel=1e-6)


def test_sorted_l1_is_blind_to_names_and_takes_different_numbers_of_classes():
    log_p, log_q = torch.log_softmax(TEACHER, -1), torch.log_softmax(STUDENT, -1)
    assert torch.allclose(sorted_l1(log_p[:, [2, 0, 3, 1]], log_q), sorted_l1(log_p, log_q))
    none = torch.full((5, 2), -math.inf, dtype=torch.float64)
    assert torch.allclose(sorted_l1(log_p, torch.cat([log_q, none], -1)), sorted_l1(log_p, log_q))
    certain = torch.zeros(5, 1, dtype=torch.float64)  # one class, of probability 1
    assert torch.allclose(sorted_l1(log_p, certain), 2 * (1 - log_p.exp().amax(-1)))


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_gradient_is_that_of_finite_differences_and_spares_the_teacher(name):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: row_loss(name, s, teacher, TEMPERATURE).sum(), student)
    row_loss(name, student, teacher).sum().backward()
    assert teacher.grad is None


def test_kl_has_the_gradient_of_the_cross_entropy_form():
    """That of the transport system, whose baseline this is."""
    rows = Rows(TEACHER, torch.zeros(5, dtype=torch.long))
    gradients = []
    for component in (distillation.divergence_component("kl", 1.0, 2.0), teacher_loss(1.0, 2.0)):
        student = STUDENT.clone().requires_grad_()
        gradients.append(torch.autograd.grad(component.loss(student, rows), student)[0])
    assert torch.allclose(*gradients, atol=1e-14)


LABELS = torch.tensor([0, 3, 1, 2, 0])


@pytest.mark.parametrize("weight", [0.0, 1.0, 8.0])
def test_the_decoupled_loss_is_as_defined(weight):
    found = decoupled(STUDENT, TEACHER, LABELS, TEMPERATURE, weight)
    expected = []
    for s, t, y in zip(STUDENT.numpy(), TEACHER.numpy(), LABELS.tolist(), strict=True):
        p, q = softmax(t / TEMPERATURE), softmax(s / TEMPERATURE)
        own = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
        others = rel_entr(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])).sum()
        expected.append(own + weight * others)
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-12)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decoupled(x, TEACHER, LABELS, TEMPERATURE, weight).sum(), student)


def test_the_decoupled_loss_of_two_classes_is_kl():
    """There is one other class: its share of the rest is 1 for both, and the weight does not matter."""
    student, teacher = STUDENT[:, :2], TEACHER[:, :2]
    for weight in (0.0, 8.0):
        found = decoupled(student, teacher, LABELS % 2, TEMPERATURE, weight)
        assert torch.allclose(found, row_loss("kl", student, teacher, TEMPERATURE), atol=1e-14, rtol=0)


def test_half_precision_is_computed_in_single():
    half = row_loss("kl", STUDENT.half(), TEACHER.half())
    assert half.dtype == torch.float32
    assert torch.allclose(half, row_loss("kl", STUDENT.half().float(), TEACHER.half().float()))


def test_terms_and_their_weights():
    assert [(c.name, c.weight) for c in components(Config(alpha=0.25))] == [("label", 0.75), ("teacher", 0.25)]
    assert [(c.name, c.weight) for c in components(Config(loss="ce", alpha=0.25))] == [("label", 1.0)]


def test_mistakes_are_told():
    with pytest.raises(InputError, match="one of kl, reverse_kl"):
        row_loss("ce", STUDENT, TEACHER)
    with pytest.raises(InputError, match=r"\[5, 4\], teacher logits \[5, 3\]"):
        row_loss("kl", STUDENT, TEACHER[:, :3])


# -- end to end -------------------------------------------------------------------------------------------------------

SMALL = {"training": {"epochs": 8, "batch_size": 32, "learning_rate": 0.02}, "student": {"width": 8}}


@pytest.fixture(scope="module")
def table():
    """Three well separated classes and a teacher that is nearly always right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 180)
    centres = 3 * rng.standard_normal((3, 5))
    inputs = centres[labels] + rng.standard_normal((180, 5))
    logits = 4 * np.eye(3)[labels] + rng.standard_normal((180, 3))
    return DistilTable(inputs, ("a", "b", "c"), logits, labels.astype(np.int64))


@pytest.mark.parametrize("name", ["ce", "decoupled", *ROW_LOSSES])
def test_a_student_learns_under_every_loss(table, name):
    config = Config.model_validate({"loss": name, "alpha": 0.5, **SMALL})
    fitted = distillation.fit(table, config)
    answer = distillation.apply(table, config, fitted=fitted)
    assert answer.values["accuracy"] > 0.9
    assert answer.system == fitted.system == "distillation"


def test_labels_alone_need_no_teacher(table):
    from dataclasses import replace

    config = Config.model_validate({"loss": "ce", **SMALL})
    with_logits, without = (distillation.fit(t, config).logits(table) for t in (table, replace(table, logits=None)))
    assert np.array_equal(with_logits, without)
    with pytest.raises(InputError, match="no teacher logits"):
        distillation.fit(replace(table, logits=None), Config.model_validate({"loss": "kl", **SMALL}))


def test_kl_is_the_transport_system_without_transport(table):
    """The same seed gives the same weights, batches and objective, up to the entropy of the teacher."""
    config = {"alpha": 0.5, **SMALL}
    ours = distillation.fit(table, Config.model_validate({"loss": "kl", **config})).logits(table)
    theirs = sinkd.fit(table, sinkd.Config.model_validate({"transport_weight": 0.0, **config})).logits(table)
    assert np.allclose(log_softmax(ours, axis=1), log_softmax(theirs, axis=1), atol=1e-3)


def with_embeddings(table, width=3):
    """Embeddings that are a linear map of the inputs: a linear student can repeat them exactly."""
    from dataclasses import replace

    mixing = np.random.default_rng(1).standard_normal((table.inputs.shape[1], width))
    return replace(table, embeddings=5 + 40 * table.inputs @ mixing)


def test_hints_are_learned_beside_the_classes_and_not_used_afterwards(table):
    long = {**SMALL["training"], "epochs": 60}
    config = Config.model_validate({"loss": "kl", "hint_weight": 1.0, "training": long, "student": {"depth": 0}})
    fitted = distillation.fit(with_embeddings(table), config)
    assert fitted.readout.hints == 3
    assert fitted.history["loss_hint"][-1] < 0.02 * fitted.history["loss_hint"][0]
    assert fitted.logits(table).shape == (180, 3)
    assert distillation.apply(table, config, fitted=fitted).values["accuracy"] > 0.9


def test_a_student_with_hints_is_saved_and_found_again(table, tmp_path):
    config = Config.model_validate({"hint_weight": 0.1, **SMALL})
    fitted = distillation.fit(with_embeddings(table), config, out=tmp_path / "student")
    again = distillation.Fitted.load(tmp_path / "student")
    assert np.array_equal(fitted.logits(table), again.logits(table))


def test_the_first_hint_loss_by_hand(table):
    """Embeddings are centred and divided by one standard deviation; the mean is over rows and numbers."""
    data = with_embeddings(table)
    options = {"epochs": 1, "batch_size": 180, "learning_rate": 1e-3}
    config = Config.model_validate({"hint_weight": 2.0, "training": options, "validation": {"share": 0}})
    fitted = distillation.fit(data, config)
    from sanov.learning.students import Encoder, Student, build

    encoder = Encoder.of(data, Student())
    untrained = build(encoder, Student(), 6, seed=0)
    with torch.no_grad():
        hint = untrained(encoder.encode(data).values)[:, 3:].double().numpy()
    centred = data.embeddings - data.embeddings.mean(axis=0)
    expected = np.mean((hint - centred / centred.std()) ** 2)
    assert fitted.history["loss_hint"][0] == pytest.approx(expected, rel=1e-5)


def test_what_hints_and_the_decoupled_loss_need(table):
    from dataclasses import replace

    with pytest.raises(InputError, match=r"no teacher embeddings.*hint_weight=0"):
        distillation.fit(table, Config.model_validate({"hint_weight": 1.0, **SMALL}))
    with pytest.raises(InputError, match="the decoupled loss needs them"):
        distillation.fit(replace(table, labels=None), Config.model_validate({"loss": "decoupled", **SMALL}))


def test_from_the_command_line(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("teacher.npz", inputs=table.inputs, logits=table.logits, labels=table.labels)
    words = ["fit", "distillation", "teacher.npz", "--out", "student", "loss=jensen_shannon", "training.epochs=2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["apply", "distillation", "teacher.npz", "--fitted", "student"])
    assert done.exit_code == 0, done.output
    assert "180 labelled rows" in done.output
