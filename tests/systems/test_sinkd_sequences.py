"""Two vocabularies: what the ranked distributions are, and that every axis is the one that is named."""

import math

import pytest
import torch

from sanov.systems.sinkd.losses import sinkhorn_loss
from sanov.systems.sinkd.sequences import FLOOR, ranked_distributions, sequence_loss

ALL = {"top": 0, "epsilon": 0.1, "iterations": 200}


def logits(batch=2, time=5, vocab=7, seed=0):
    return torch.randn(batch, time, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(batch=2, time=5, lengths=(5, 3)):
    return torch.arange(time) < torch.tensor(lengths)[:, None]


def test_distributions_are_over_the_vocabulary_and_ranked_over_the_batch():
    z, kept = logits(), mask()
    found = ranked_distributions(z, kept, top=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    mass = found[kept].sum(0)
    assert (mass.diff() <= 0).all()
    scaled = torch.softmax(z / (z.std(-1, keepdim=True) + FLOOR), -1)
    torch.testing.assert_close(found[kept].sort(-1).values, scaled[kept].sort(-1).values)
    torch.testing.assert_close(ranked_distributions(z, kept, top=3), found[..., :3])


def test_names_of_tokens_do_not_matter():
    """A permutation of a side's vocabulary changes nothing, and no vocabulary need be the other's."""
    student, teacher = logits(), logits(vocab=11, seed=1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    first, second = (sequence_loss(z, teacher, mask(), **ALL) for z in (student, student[..., order]))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_equal_sides_have_no_ranked_distance():
    z = logits()
    found = sequence_loss(z, z, mask(), **ALL)
    assert float(found.ranked) == 0
    p = ranked_distributions(z, mask(), 0)
    entropy = -(p * p.log()).sum(-1)
    expected = torch.stack([entropy[i][mask()[i]].mean() for i in range(2)]).mean()
    torch.testing.assert_close(found.cross_entropy, expected)


def test_positions_beyond_the_answer_do_not_matter():
    student, teacher = logits(), logits(seed=1)
    changed = student.clone()
    changed[1, 3:] = 100.0 * logits(time=2, seed=3)[1]
    for one, other in zip(
        sequence_loss(student, teacher, mask(), **ALL), sequence_loss(changed, teacher, mask(), **ALL), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_not_even_what_is_no_number(value, side):
    sides = [logits().requires_grad_(), logits(seed=1)]
    expected = sequence_loss(*sides, mask(), **ALL)
    spoilt = [z.detach().clone() for z in sides]
    spoilt[side][1, 3:] = value
    spoilt[0].requires_grad_()
    found = sequence_loss(*spoilt, mask(), **ALL)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    gradients = [torch.autograd.grad(x.total(), s)[0] for x, s in ((found, spoilt[0]), (expected, sides[0]))]
    assert torch.equal(*gradients)


def test_a_forbidden_token_is_as_one_that_is_not_in_the_vocabulary():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    more = torch.cat([student, torch.full((2, 5, 2), -math.inf, dtype=torch.float64)], -1)
    expected, found = (sequence_loss(z, teacher, mask(), **ALL) for z in (student, more))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(x.total(), student)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    at_some = teacher.masked_fill(teacher == teacher.amin(-1, keepdim=True), -math.inf)
    assert sequence_loss(student, at_some, mask(), **ALL).total().isfinite()


def test_positions_of_equal_logits_or_of_one_token_have_a_gradient():
    flat = torch.zeros(2, 5, 7, dtype=torch.float64, requires_grad=True)
    sequence_loss(flat, logits(seed=1), mask(), **ALL).total().backward()
    assert flat.grad.isfinite().all()
    alone = ranked_distributions(torch.tensor([[[2.0, -math.inf], [1.0, 0.0]]]), torch.ones(1, 2, dtype=torch.bool), 0)
    assert alone[0, 0].tolist() == [1, 0]


def test_logits_are_scaled_by_position():
    z = logits()
    scales = torch.linspace(1, 9, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        ranked_distributions(1e3 * z, mask(), 0), ranked_distributions(1e3 * z * scales, mask(), 0), rtol=0, atol=1e-6
    )


def test_each_sequence_counts_alike_and_alone():
    """The mean over sequences of what each gives alone, where the ranking is that of the batch."""
    student, teacher = logits(), logits(seed=1)
    together = sequence_loss(student, teacher, mask(), **ALL)
    ranked = [ranked_distributions(z, mask(), 0) for z in (student, teacher)]
    alone = [(ranked[0][i, :n] - ranked[1][i, :n]).abs().sum(-1).mean() for i, n in enumerate((5, 3))]
    torch.testing.assert_close(together.ranked, torch.stack(alone).mean())
    moved = [
        sinkhorn_loss(s[:n].log(), t[:n].log(), temperature=1.0, iterations=200).total
        for s, t, n in zip(*ranked, (5, 3), strict=True)
    ]
    torch.testing.assert_close(together.transport, torch.stack(moved).mean())


def test_total_has_the_published_weights():
    found = sequence_loss(logits(), logits(seed=1), mask(), **ALL)
    expected = found.ranked + 0.1 * found.cross_entropy + 0.1 * 0.001 * found.transport
    torch.testing.assert_close(found.total(), expected)


def test_gradient_reaches_the_student_alone():
    student, teacher = logits().requires_grad_(), logits(seed=1).requires_grad_()
    sequence_loss(student, teacher, mask(), **ALL).total().backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert not student.grad[1, 3:].any()


def test_a_batch_without_answers_adds_nothing():
    student = logits().requires_grad_()
    found = sequence_loss(student, logits(seed=1), torch.zeros(2, 5, dtype=torch.bool), **ALL)
    found.total().backward()
    assert found.total().item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_scale_of_the_logits_hardly_matters(scale):
    """They are divided by their standard deviation, but for the small number added to it."""
    student, teacher = logits(), logits(seed=1)
    one, other = (sequence_loss(z, teacher, mask(), **ALL).total() for z in (student, scale * student))
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
