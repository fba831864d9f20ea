"""The textbook losses against their formulas written out, and a student trained with each."""

import numpy as np
import pytest
import torch

from sanov.baselines import distillation
from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable
from sanov.learning.distil import Rows

LOSSES = ["ce", "kl", "reverse_kl", "jensen_shannon", "total_variation"]


def components(loss, **options):
    return distillation.components(distillation.Config.model_validate({"loss": loss, **options}))


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return student, Rows(teacher, torch.tensor([0, 1, 2, 3, 0, 1]))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "ce"])
def test_teacher_term_is_least_where_the_student_is_the_teacher(loss):
    student, known = rows()
    term = next(part for part in components(loss) if part.name != "label")
    here = float(term.loss(known.teacher, known))
    assert float(term.loss(student, known)) > here
    moved = known.teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term.loss(moved, known), moved)
    assert float(gradient.abs().max()) < 1e-8


def test_reverse_kl_is_the_formula():
    student, known = rows()
    term = next(part for part in components("reverse_kl", temperature=2.0) if part.name != "label")
    log_s, log_t = (torch.log_softmax(part / 2.0, -1) for part in (student, known.teacher))
    torch.testing.assert_close(term.loss(student, known), (log_s.exp() * (log_s - log_t)).sum())


def test_total_variation_is_half_the_l1_distance():
    student, known = rows()
    term = next(part for part in components("total_variation", temperature=1.0) if part.name != "label")
    gap = torch.softmax(student, -1) - torch.softmax(known.teacher, -1)
    torch.testing.assert_close(term.loss(student, known), 0.5 * gap.abs().sum())


def test_labels_alone_is_the_cross_entropy():
    student, known = rows()
    (label,) = [part for part in components("ce") if part.weight > 0]
    torch.testing.assert_close(
        label.loss(student, known), torch.nn.functional.cross_entropy(student, known.labels, reduction="sum")
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_learns(loss, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    inputs = 2 * np.eye(3)[labels] @ rng.standard_normal((3, 5)) + 0.3 * rng.standard_normal((200, 5))
    logits = 4 * np.eye(3)[labels]
    table = DistilTable(inputs, ("0", "1", "2"), logits=logits, labels=labels, name="made")
    config = distillation.Config.model_validate(
        {"loss": loss, "training": {"epochs": 8, "learning_rate": 0.01}, "student": {"width": 16}}
    )
    fitted = distillation.fit(table, config, seed=1, out=tmp_path / "student")
    answer = distillation.apply(table, config, fitted=tmp_path / "student")
    assert answer.values["accuracy"] > 0.9
    assert "student" in fitted.summary().lower() or fitted.summary()


def test_nothing_fitted_is_a_users_mistake():
    table = DistilTable(np.zeros((2, 1)), ("a", "b"), name="made")
    with pytest.raises(InputError):
        distillation.apply(table, distillation.Config())
