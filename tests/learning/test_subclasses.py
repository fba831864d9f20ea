"""Targets and losses of subclasses: golden values, the chain rule, limits, and gradients by differences."""

import math

import numpy as np
import pytest
import torch

from oracles import kl_by_sum, subclass_targets_by_hand
from sanov.baselines.distillation import row_loss
from sanov.core.errors import InputError
from sanov.divergences import kl
from sanov.learning.components import Rows, teacher_loss
from sanov.learning.readout import Readout
from sanov.learning.subclasses import class_divergence, components, joint_log_probs, subclass_divergence


def drawn(rows=7, classes=3, subclasses=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    teacher, coordinates, student = (
        torch.randn(*shape, generator=source, dtype=torch.float64) * 2
        for shape in ((rows, classes), (rows, classes, subclasses), (rows, classes, subclasses))
    )
    return teacher, coordinates, student


def test_golden_targets():
    logits = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[[1.0, -1.0], [0.5, 0.0]]], dtype=torch.float64)
    found = joint_log_probs(logits, torch.log_softmax(z / 0.5, dim=-1), 4.0).exp()[0]
    np.testing.assert_allclose(found.sum(dim=-1), [0.62245933, 0.37754067], atol=1e-8)
    np.testing.assert_allclose(found, [[0.61126365, 0.01119568], [0.27600434, 0.10153632]], atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_a_division_of_the_classes(seed):
    teacher, z, _ = drawn(seed=seed)
    found = joint_log_probs(teacher, torch.log_softmax(z / 0.7, dim=-1), 3.0).exp()
    np.testing.assert_allclose(found, subclass_targets_by_hand(teacher.numpy(), z.numpy(), 3.0, 0.7), rtol=1e-12)
    np.testing.assert_allclose(found.sum(dim=-1), torch.softmax(teacher / 3.0, dim=-1), atol=1e-12)
    np.testing.assert_allclose(found.sum(dim=(1, 2)), 1.0, atol=1e-12)


@pytest.mark.parametrize("student_temperature", [1.0, 2.5])
def test_the_chain_rule(student_temperature):
    teacher, z, student = drawn()
    conditional = torch.log_softmax(z / 0.5, dim=-1)
    parts = class_divergence(teacher, student, 4.0, student_temperature) + subclass_divergence(
        teacher, conditional, student, 4.0, student_temperature
    )
    log_q = torch.log_softmax((student / student_temperature).flatten(1), dim=-1)
    whole = kl(joint_log_probs(teacher, conditional, 4.0).flatten(1), log_q)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    p, q = joint_log_probs(teacher, conditional, 4.0).exp().flatten(1).tolist(), log_q.exp().tolist()
    np.testing.assert_allclose(whole, [kl_by_sum(x, y) for x, y in zip(p, q, strict=True)], rtol=1e-10)


def test_the_gradient_in_a_subclass_logit_is_q_minus_p():
    teacher, z, student = drawn()
    conditional, student = torch.log_softmax(z / 0.5, dim=-1), student.requires_grad_()
    total = (class_divergence(teacher, student, 4.0) + subclass_divergence(teacher, conditional, student, 4.0)).sum()
    (gradient,) = torch.autograd.grad(total, student)
    q = torch.softmax(student.detach().flatten(1), dim=-1).view_as(student)
    np.testing.assert_allclose(gradient, q - joint_log_probs(teacher, conditional, 4.0).exp(), atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda s: class_divergence(teacher, s, 4.0).sum() + subclass_divergence(teacher, conditional, s, 4.0).sum(),
        (student,),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_subclass_is_plain_distillation_in_loss_and_gradient(temperature):
    teacher, _, student = drawn(subclasses=1)
    terms = components(Readout(3, 1, temperature=temperature, student_temperature=temperature))
    outputs = student.flatten(1).requires_grad_()
    rows = Rows(
        teacher, torch.zeros(len(teacher), dtype=torch.int64), extras={"subclasses": torch.zeros(7, 3, 1).double()}
    )
    value = sum(term.weight * term.loss(outputs, rows) for term in terms[1:])
    plain = row_loss("kl", outputs, teacher, temperature).sum()
    cross_entropy = teacher_loss(1.0, temperature).loss(outputs, rows)
    gradients = [torch.autograd.grad(loss, outputs)[0] for loss in (value, plain, cross_entropy)]
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradients[0], gradient, atol=1e-12)


def test_a_large_subclass_temperature_divides_evenly():
    teacher, z, student = drawn()
    conditional = torch.log_softmax(z / 1e12, dim=-1)
    np.testing.assert_allclose(
        joint_log_probs(teacher, conditional).exp(),
        torch.softmax(teacher, dim=-1)[..., None].expand(-1, -1, 4) / 4,
        atol=1e-11,
    )
    even = student.mean(dim=-1, keepdim=True).expand_as(student)
    np.testing.assert_allclose(subclass_divergence(teacher, conditional, even), 0.0, atol=1e-11)
    joint = joint_log_probs(teacher, conditional)
    q = torch.log_softmax(even.flatten(1), dim=-1)
    cross_entropy = -(joint.exp().flatten(1) * q).sum(dim=-1)
    log_q = torch.log_softmax(torch.logsumexp(even, dim=-1), dim=-1)
    plain = -(torch.softmax(teacher, dim=-1) * log_q).sum(dim=-1)
    np.testing.assert_allclose(cross_entropy, plain + math.log(4), atol=1e-9)


def test_a_small_subclass_temperature_is_a_hard_partition():
    teacher, z, student = drawn()
    conditional = torch.log_softmax(z / 1e-9, dim=-1)
    assert torch.equal(conditional.exp().argmax(dim=-1), z.argmax(dim=-1))
    np.testing.assert_allclose(conditional.exp().amax(dim=-1), 1.0)
    hard = torch.where(conditional.exp() > 0.5, 0.0, -torch.inf).double()
    found = subclass_divergence(teacher, hard, student)
    picked = -torch.log_softmax(student, dim=-1).gather(-1, z.argmax(dim=-1, keepdim=True))[..., 0]
    np.testing.assert_allclose(found, (torch.softmax(teacher, dim=-1) * picked).sum(dim=-1), rtol=1e-12)


def test_the_blind_direction():
    _, z, _ = drawn()
    shift = torch.randn(7, 3, 1, generator=torch.Generator().manual_seed(1)).double()
    for beta in (0.3, 2.0):
        plain, moved = (torch.log_softmax(x / beta, dim=-1) for x in (z, z + shift))
        np.testing.assert_allclose(plain, moved, atol=1e-12)


def test_the_answer_is_the_sum_not_the_largest_subclass():
    p = torch.tensor([[[0.30, 0.25], [0.40, 0.05]]], dtype=torch.float64)
    found = Readout(2, 2).class_logits(p.log().flatten(1))
    np.testing.assert_allclose(torch.softmax(found, dim=-1), [[0.55, 0.45]], atol=1e-12)
    assert int(found.argmax()) == 0
    assert int(p.flatten().argmax()) // 2 == 1


@pytest.mark.parametrize(("temperature", "student_temperature"), [(4.0, 1.0), (4.0, 4.0), (1.0, 1.0)])
def test_a_student_that_follows_its_targets_has_its_teachers_probabilities(temperature, student_temperature):
    """Outputs with KL 0 give the teacher's softmax at temperature 1, whatever the division and the temperatures."""
    teacher, z, _ = drawn()
    conditional = torch.log_softmax(z / 0.3, dim=-1)
    outputs = student_temperature * joint_log_probs(teacher, conditional, temperature).flatten(1) + 1.7
    readout = Readout(3, 4, temperature=temperature, student_temperature=student_temperature)
    rows = Rows(teacher, torch.zeros(7, dtype=torch.int64), extras={"subclasses": conditional})
    for term in components(readout)[1:]:
        assert term.loss(outputs, rows).item() == pytest.approx(0, abs=1e-10)
    found = torch.softmax(readout.class_logits(outputs), dim=-1)
    np.testing.assert_allclose(found, torch.softmax(teacher, dim=-1), atol=1e-10)


def test_a_readout_keeps_hints_apart():
    outputs = torch.arange(10.0)[None]
    readout = Readout(2, 3, hints=4)
    assert readout.outputs == 10
    assert readout.subclass_logits(outputs).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert readout.hint(outputs).tolist() == [[6, 7, 8, 9]]
    assert torch.equal(Readout(2, 1, hints=8).class_logits(outputs), outputs[:, :2])


def test_labels_are_learned_from_summed_probabilities():
    teacher, z, student = drawn()
    labels = torch.tensor([0, 1, 2, 0, -1, 2, 1])
    label, *_ = components(Readout(3, 4), alpha=0.3)
    rows = Rows(teacher, labels, extras={"subclasses": torch.log_softmax(z, dim=-1)})
    summed = torch.softmax(student.flatten(1), dim=-1).view_as(student).sum(dim=-1)
    kept = labels >= 0
    expected = -summed[kept, labels[kept]].log().sum()
    assert float(label.loss(student.flatten(1), rows)) == pytest.approx(float(expected), rel=1e-12)
    assert label.weight == 0.3
    assert label.count(labels) == 6


def test_a_student_of_other_outputs_is_refused():
    teacher, z, student = drawn()
    rows = Rows(teacher, torch.zeros(7, dtype=torch.int64), extras={"subclasses": torch.log_softmax(z, dim=-1)})
    with pytest.raises(InputError, match="the student has 12 outputs; expected 15: 5 subclasses for each of 3 classes"):
        components(Readout(3, 5))[1].loss(student.flatten(1), rows)
