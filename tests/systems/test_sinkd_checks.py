"""What is told before training: overlap, collapse, marginals."""

import re
import warnings

import numpy as np
import pytest
import torch

from sanov.core.errors import SanovWarning
from sanov.systems.sinkd import checks
from sanov.systems.sinkd.checks import (
    Overlap,
    invites_collapse,
    overlap,
    rounds_needed,
    safe_epsilon,
    tolerance_needed,
    warn_of_batch,
    warn_of_error,
)
from sanov.systems.sinkd.losses import sinkhorn_loss

OPTIONS = {"epsilon": 0.1, "iterations": 20, "temperature": 2.0, "p": 1.0}


def clouds(rows=32, classes=3, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return 0.1 * torch.randn(rows, classes, generator=generator, dtype=torch.float64), teacher


def apart():
    """Clouds on which some rows settle much later than others."""
    _, teacher = clouds()
    return teacher.roll(1, 0) * 0.8, teacher


# -- overlap ----------------------------------------------------------------------------------------------------------


def test_a_student_that_equals_its_teacher_overlaps():
    _, teacher = clouds()
    found = overlap(teacher, teacher)
    assert found.median_distance == pytest.approx(0, abs=1e-12)
    assert found.share_apart == 0
    assert "can add little" in found.sentence()


def test_disjoint_outputs_do_not_overlap():
    student, teacher = torch.full((6, 2), 50.0), torch.full((6, 2), 50.0)
    student[:, 0] = teacher[:, 1] = -50.0
    found = overlap(student, teacher)
    assert found.median_distance == pytest.approx(1)
    assert found.share_apart == 1
    assert found.effective_dimension == 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_effective_dimension_of_balanced_one_hot_outputs(classes):
    """The simplex of k equally likely corners has k - 1 equal directions."""
    teacher = 200.0 * torch.eye(classes).repeat(4, 1)
    found = overlap(torch.zeros(4 * classes, classes), teacher)
    assert found.effective_dimension == pytest.approx(classes - 1)
    assert found.median_distance == pytest.approx(1 - 1 / classes)
    assert ("one number" in found.sentence()) is (classes == 2)


def test_effective_dimension_is_the_participation_ratio():
    student, teacher = clouds(rows=50, classes=4)
    values = np.linalg.eigvalsh(np.cov(torch.softmax(teacher, -1).numpy().T))
    found = overlap(student, teacher).effective_dimension
    assert found == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert Overlap(0.8, 0.9, found).sentence().endswith("there is room for transport")


# -- collapse ---------------------------------------------------------------------------------------------------------


def test_collapse_is_what_the_loss_prefers():
    """At epsilon = 2 the mean output costs less than the teacher's own; at 0.1 it does not."""
    student, teacher = clouds()
    mean = 2 * torch.softmax(teacher / 2, -1).mean(0).log().expand_as(teacher)
    for epsilon in (0.1, 2.0):
        options = OPTIONS | {"epsilon": epsilon}
        perfect, collapsed = (float(sinkhorn_loss(x, teacher, **options).value) for x in (teacher, mean))
        assert invites_collapse(student, teacher, **options) is (perfect > collapsed)


def test_safe_epsilon_is_safe_and_the_largest_of_its_halvings():
    student, teacher = clouds()
    safe = safe_epsilon(student, teacher, **OPTIONS | {"epsilon": 3.2})
    assert safe < 3.2
    assert not invites_collapse(student, teacher, **OPTIONS | {"epsilon": safe})
    assert invites_collapse(student, teacher, **OPTIONS | {"epsilon": 2 * safe})


def test_epsilon_beyond_half_the_median_cost_is_told():
    student, teacher = clouds(spread=0.02)
    assert invites_collapse(student / 10, teacher, **OPTIONS)
    assert safe_epsilon(student / 10, teacher, **OPTIONS) < 0.1


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_usual_options_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_batch(*clouds(), OPTIONS)


def test_large_epsilon_is_told_with_one_that_is_safe():
    student, teacher = clouds()
    safe = safe_epsilon(student, teacher, **OPTIONS | {"epsilon": 3.2})
    with pytest.warns(SanovWarning, match=rf"epsilon = 3.2 invites collapse.*set epsilon to {safe:g} or less"):
        warn_of_batch(student, teacher, OPTIONS | {"epsilon": 3.2})


def test_unmet_marginals_are_told_with_the_rounds_that_would_do():
    _, teacher = clouds()
    student = teacher.roll(1, 0) * 0.8
    options = OPTIONS | {"iterations": 1, "epsilon": 0.05}
    rounds = rounds_needed(student, teacher, **options)
    assert rounds > 1
    assert float(sinkhorn_loss(student, teacher, **options | {"iterations": rounds}).marginal_error) <= 0.05
    assert float(sinkhorn_loss(student, teacher, **options | {"iterations": rounds // 2}).marginal_error) > 0.05
    with pytest.warns(
        SanovWarning, match=rf"after 1 rounds a row of the plan is off by \d+%; {rounds} rounds would do"
    ):
        warn_of_batch(student, teacher, options)


@pytest.mark.parametrize("gradient", ["unroll", "envelope"])
def test_a_tolerance_that_leaves_a_row_far_off_is_told_with_a_smaller_one_and_its_rounds(gradient):
    student, teacher = apart()
    options = OPTIONS | {"epsilon": 0.05, "iterations": 5000, "tolerance": 0.02, "gradient": gradient}
    moved = sinkhorn_loss(student.clone().requires_grad_(), teacher, **options)
    assert moved.marginal_error > 0.05
    assert moved.iterations < 100
    with pytest.warns(SanovWarning) as told:
        warn_of_batch(student, teacher, options)
    text = str(told[-1].message)
    assert text.startswith(
        f"after {moved.iterations} rounds, stopped at tolerance = 0.02, a row of the plan is off by "
        f"{float(moved.marginal_error):.0%}; "
    )
    rounds, tolerance = re.search(r"; (\d+) rounds, to tolerance = ([\d.]+), would do\.$", text).groups()
    assert float(tolerance) < 0.02
    followed = options | {"iterations": int(rounds), "tolerance": float(tolerance)}
    assert sinkhorn_loss(student.clone().requires_grad_(), teacher, **followed).marginal_error <= 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_batch(student, teacher, followed)


def test_rounds_that_end_before_the_tolerance_are_told_with_those_that_reach_it():
    student, teacher = apart()
    options = OPTIONS | {"epsilon": 0.05, "iterations": 2, "tolerance": 1e-3}
    rounds = rounds_needed(student, teacher, **options)
    assert sinkhorn_loss(student, teacher, **options | {"iterations": rounds}).marginal_error <= 0.05
    words = rf"after 2 rounds a row of the plan is off by \d+%; {rounds} rounds would do\."
    with pytest.warns(SanovWarning, match=words):
        warn_of_batch(student, teacher, options)


def test_the_needed_tolerance_is_the_largest_of_its_halvings():
    student, teacher = apart()
    options = OPTIONS | {"epsilon": 0.05, "tolerance": 0.3}
    tolerance, rounds = tolerance_needed(student, teacher, **options)
    halvings = np.log2(0.3 / tolerance)
    assert halvings == int(halvings) > 0
    errors = [
        float(
            sinkhorn_loss(
                student.clone().requires_grad_(), teacher, **options | {"tolerance": t, "iterations": n}
            ).marginal_error
        )
        for t, n in ((tolerance, rounds), (2 * tolerance, 10_000))
    ]
    assert errors[0] <= 0.05 < errors[1]


def test_marginals_out_of_reach_ask_for_a_larger_epsilon(monkeypatch):
    monkeypatch.setattr(checks, "MOST_ROUNDS", 40)
    student, teacher = apart()
    for tolerance in (None, 1e-9):
        options = OPTIONS | {"epsilon": 1e-6, "tolerance": tolerance}
        with pytest.warns(SanovWarning, match=r"after 20 rounds a row of the plan is off by \d+%; raise epsilon\."):
            warn_of_batch(student, teacher, options)


def test_the_advice_without_a_look_fits_how_the_rounds_ended():
    with pytest.warns(SanovWarning, match=r"after 20 rounds a row .* 7%; set more iterations, or a larger epsilon\."):
        warn_of_error(0.07, 20)
    words = r"after 26 rounds, stopped at tolerance = 0.02, a row .* 7%; set a smaller tolerance, or a larger epsilon\."
    with pytest.warns(SanovWarning, match=words):
        warn_of_error(0.07, 26, tolerance=0.02)
