"""The objective inside any loop: the same numbers as the system's own training, with every kind of batch."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from sanov.bridges.losses import distillation_loss
from sanov.core.errors import InputError, SanovWarning
from sanov.systems.sinkd import sinkhorn_loss

generator = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 6, 3, generator=generator)
LABELS = torch.tensor([0, 1, 2, 0, -1, -100])
LABELLED = LABELS >= 0


def cross(teacher, student, temperature):
    """H of the paper: the mean over rows."""
    return -(torch.softmax(teacher / temperature, -1) * torch.log_softmax(student / temperature, -1)).sum(-1).mean()


def test_value_is_the_equation():
    loss, metrics = distillation_loss("sinkd", transport_weight=0.3, alpha=0.6, temperature=2.0)(
        STUDENT, TEACHER, LABELS
    )
    expected = {
        "label": cross_entropy(STUDENT[LABELLED], LABELS[LABELLED]),
        "teacher": cross(TEACHER, STUDENT, 2.0),
        "transport": sinkhorn_loss(STUDENT, TEACHER).value,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-6
    )
    weighted = 0.4 * expected["label"] + 0.6 * expected["teacher"] + 0.3 * expected["transport"]
    assert loss.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_gradients_reach_the_student_alone():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss, metrics = distillation_loss()(student, teacher, LABELS)
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert not any(value.requires_grad for value in metrics.values())


def test_textbook_losses_come_through_the_same_door():
    loss, metrics = distillation_loss("distillation", loss="jensen_shannon", alpha=1.0)(TEACHER, TEACHER)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert list(metrics) == ["teacher"]


def test_tokens_are_rows_and_the_mask_leaves_some_out():
    objective = distillation_loss(transport_weight=0.1)
    shape = (2, 3)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    tokens = objective(STUDENT.view(*shape, 3), TEACHER.view(*shape, 3), LABELS.view(shape), mask=mask)
    keep = mask.flatten()
    rows = objective(STUDENT[keep], TEACHER[keep], LABELS[keep])
    assert tokens.value.item() == pytest.approx(rows.value.item(), rel=1e-6)
    everything = objective(STUDENT, TEACHER, LABELS)
    assert tokens.value.item() != pytest.approx(everything.value.item(), rel=1e-3)


def test_half_precision_is_computed_in_single():
    found = distillation_loss()(STUDENT.half(), TEACHER.half(), LABELS)
    expected = distillation_loss()(STUDENT.half().float(), TEACHER.half().float(), LABELS)
    assert found.value.dtype == torch.float32
    assert found.value.item() == expected.value.item()


def test_progress_anneals_the_temperature():
    objective = distillation_loss(anneal=True, temperature=4.0, transport_weight=0.0, alpha=1.0)
    for progress, temperature in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        found = objective(STUDENT, TEACHER, progress=progress).value
        assert found.item() == pytest.approx(cross(TEACHER, STUDENT, temperature).item(), rel=1e-6)


def test_balance_sets_the_ratio_of_the_gradients():
    """The transport term pulls half as hard as the others together, in the student's logits."""
    options = {"alpha": 0.5, "temperature": 1.0}
    student = STUDENT.clone().requires_grad_()

    def gradient(**more):
        loss = distillation_loss(**options, **more)(student, TEACHER, LABELS).value
        return torch.autograd.grad(loss, student)[0]

    others = gradient(transport_weight=0.0)
    transport = gradient(balance=0.5) - others
    assert (transport.norm() / others.norm()).item() == pytest.approx(0.5, rel=1e-4)


def test_a_loop_learns_what_it_is_taught():
    """A linear student of the teacher's own form comes to agree with it."""
    inputs, weight = torch.randn(64, 5, generator=generator), torch.randn(5, 3, generator=generator)
    student = torch.nn.Linear(5, 3)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    objective = distillation_loss(alpha=1.0, temperature=1.0, transport_weight=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        objective(student(inputs), inputs @ weight).value.backward()
        optimizer.step()
    assert (student(inputs).argmax(-1) == (inputs @ weight).argmax(-1)).float().mean() > 0.95


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_shapes_are_named():
    objective = distillation_loss()
    with pytest.raises(InputError, match=r"\[6, 3\], teacher logits \[6, 2\]"):
        objective(STUDENT, TEACHER[:, :2])
    with pytest.raises(InputError, match=r"\[6\] rows, labels of shape \[5\]"):
        objective(STUDENT, TEACHER, LABELS[:5])
    with pytest.raises(InputError, match="mask of shape"):
        objective(STUDENT, TEACHER, mask=torch.ones(5, dtype=torch.bool))
    with pytest.raises(InputError, match="no row counts"):
        objective(STUDENT, TEACHER, mask=torch.zeros(6, dtype=torch.bool))


def test_values_are_checked():
    objective = distillation_loss()
    with pytest.raises(InputError, match="labels: a label is 3; expected 0 to 2, negative for none"):
        objective(STUDENT, TEACHER, LABELS.masked_fill(LABELS == 2, 3))
    with pytest.raises(InputError, match="teacher_logits: some are NaN or infinite"):
        objective(STUDENT, TEACHER * float("inf"), LABELS)


def test_transport_alone_is_refused():
    objective = distillation_loss(alpha=0.0)
    with pytest.raises(InputError, match="cannot tell rows apart"):
        objective(STUDENT, TEACHER)
    assert objective(STUDENT, TEACHER, LABELS).value.isfinite()
    assert distillation_loss(alpha=0.0, identity_penalty=10.0)(STUDENT, TEACHER).value.isfinite()


def test_a_batch_of_one_is_told_what_it_is():
    with pytest.warns(SanovWarning, match="twice the total variation"):
        _, metrics = distillation_loss()(STUDENT[:1], TEACHER[:1], LABELS[:1])
    total_variation = (torch.softmax(STUDENT[0] / 2, -1) - torch.softmax(TEACHER[0] / 2, -1)).abs().sum() / 2
    assert metrics["transport"].item() == pytest.approx(2 * total_variation.item(), rel=1e-5)


def test_options_are_checked():
    with pytest.raises(InputError, match="Did you mean 'epsilon'"):
        distillation_loss(epsilonn=0.1)
    with pytest.raises(InputError, match="alpha"):
        distillation_loss(alpha=1.5)
    with pytest.raises(InputError, match="no objective of distillation"):
        distillation_loss("pn")
    with pytest.raises(InputError, match=r"transport\.gather"):
        distillation_loss(transport={"gather": True})


def test_a_hint_is_refused_not_dropped():
    with pytest.raises(InputError, match="a hint needs embeddings"):
        distillation_loss("distillation", hint_weight=5.0)
