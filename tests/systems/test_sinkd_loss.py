"""The transport loss against its golden case, plain iterations, linear assignment, POT, and finite differences."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.autograd import gradcheck

from sanov.core.errors import InputError
from sanov.systems.sinkd.losses import sinkhorn_loss
from sanov.transport import sinkhorn

# A case of three rows and three classes whose values were computed by plain iterations in NumPy and confirmed by POT.
YS = torch.tensor([[2.0, 0, -1], [0, 1, 0], [-1, 0, 3]], dtype=torch.float64)
YT = torch.tensor([[1.0, 1, 0], [0, 2, -2], [0, -1, 2]], dtype=torch.float64)
GOLDEN = {1: 1.1327715894, 5: 1.2392449308, 20: 1.2375127370, 5000: 1.2344426336}
ASSIGNMENT = 1.1797168630


def random_logits(rows, classes, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


def cost(student, teacher, temperature=2.0, p=1):
    ps, pt = (torch.softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return torch.linalg.vector_norm(ps[:, None] - pt[None], ord=p, dim=-1)


def plain(student, teacher, rounds=20, epsilon=0.1, columns_first=False):
    """The released code's iteration: scale rows, then columns, of exp(-D / epsilon), in the plain domain; the sum form."""
    distance = cost(student, teacher)
    plan = torch.exp(-distance / epsilon)
    for _ in range(rounds):
        for axis in (0, 1) if columns_first else (1, 0):
            plan = plan / plan.sum(axis, keepdim=True)
    return (plan * distance).sum()


def total(student, teacher, **options):
    return float(sinkhorn_loss(student, teacher, **options).total)


def gradient(student, teacher, form="total", **options):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(getattr(sinkhorn_loss(student, teacher, **options), form), student)[0]


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rounds", "expected"), GOLDEN.items())
def test_golden_case(rounds, expected):
    assert total(YS, YT, iterations=rounds) == pytest.approx(expected, abs=1e-9)


def test_golden_marginals():
    """Row sums 1.005135, 1.005222, 0.989643; the columns are exact."""
    assert float(sinkhorn_loss(YS, YT).marginal_error) == pytest.approx(1 - 0.989643, abs=1e-6)
    assert float(sinkhorn_loss(YS, YT, iterations=5000).marginal_error) < 1e-12


@pytest.mark.parametrize("tolerance", [0.05, 0.01, 1e-4])
@pytest.mark.parametrize("mode", ["unroll", "envelope"])
def test_tolerance_is_of_the_mean_deviation_of_a_row_and_the_error_is_the_largest(tolerance, mode):
    student, teacher = random_logits(16, 2, spread=3.0)
    options = {"epsilon": 0.05, "iterations": 5000, "tolerance": tolerance, "gradient": mode}
    moved = sinkhorn_loss(student.requires_grad_(), teacher, **options)
    plan = sinkhorn(cost(student, teacher), **options)  # of a cost with a gradient, as the loss has it
    rows_off = (16 * plan.plan.detach().sum(1) - 1).abs()
    assert float(rows_off.mean()) == pytest.approx(float(plan.marginal_error), rel=1e-9)
    assert float(rows_off.mean()) <= tolerance
    assert float(moved.marginal_error) == pytest.approx(float(rows_off.max()), rel=1e-9)
    assert rows_off.mean() <= moved.marginal_error <= 8 * rows_off.mean() * (1 + 1e-9)
    assert moved.iterations == plan.iterations < 5000


def test_without_tolerance_the_rounds_are_those_asked_for_and_sorting_has_none():
    student, teacher = random_logits(8, 2)
    assert sinkhorn_loss(student, teacher, iterations=7).iterations == 7
    assert sinkhorn_loss(student, teacher, sort=True).iterations == 0


def test_mean_form_is_the_sum_form_by_row():
    moved = sinkhorn_loss(YS, YT)
    assert float(moved.total) == 3 * float(moved.value)


@pytest.mark.parametrize("rounds", [1, 2, 20])
def test_agrees_with_plain_iterations(rounds):
    student, teacher = random_logits(8, 5)
    assert total(student, teacher, iterations=rounds) == pytest.approx(
        float(plain(student, teacher, rounds)), abs=1e-13
    )


def test_order_of_the_half_steps_is_rows_first():
    swapped = float(plain(YS, YT, 1, columns_first=True))
    assert abs(swapped - GOLDEN[1]) > 1e-3
    assert total(YS, YT, iterations=1) == pytest.approx(float(plain(YS, YT, 1)), abs=1e-12)


def test_converged_value_is_that_of_pot():
    student, teacher = random_logits(12, 4)
    weights, distance = np.full(12, 1 / 12), cost(student, teacher).numpy()
    plan = ot.sinkhorn(weights, weights, distance, 0.1, numItermax=100_000, stopThr=1e-14)
    assert total(student, teacher, iterations=20_000) == pytest.approx(12 * (plan * distance).sum(), abs=1e-9)


def test_one_row_is_twice_the_total_variation():
    """There the released code's per-sample class is plain L1, and half a batch of one says nothing of transport."""
    student, teacher = random_logits(1, 6)
    assert total(student, teacher) == pytest.approx(float(cost(student, teacher)), abs=1e-14)


def test_large_epsilon_gives_the_mean_cost():
    """2.083821 in the limit, 2.081552 at epsilon = 100."""
    assert total(YS, YT, epsilon=1e9) == pytest.approx(2.083821, abs=1e-6)
    assert total(YS, YT, epsilon=1e9) == pytest.approx(float(cost(YS, YT).sum() / 3), abs=1e-8)
    assert total(YS, YT, epsilon=100.0) == pytest.approx(2.081552, abs=1e-6)


def test_small_epsilon_gives_the_linear_assignment():
    assert total(YS, YT, epsilon=0.01, iterations=20_000) == pytest.approx(1.179750, abs=1e-6)
    for seed in range(4):
        student, teacher = random_logits(16, 3, seed)
        distance = cost(student, teacher).numpy()
        rows, columns = linear_sum_assignment(distance)
        best = distance[rows, columns].sum()
        near = total(student, teacher, epsilon=0.002, iterations=20_000, tolerance=1e-6)
        assert best - 1e-5 <= near <= best + 0.05


def test_golden_assignment():
    distance = cost(YS, YT).numpy()
    assert distance[linear_sum_assignment(distance)].sum() == pytest.approx(ASSIGNMENT, abs=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_sorting_is_exact_for_two_classes(p):
    student, teacher = random_logits(32, 2, spread=3.0)
    distance = cost(student, teacher, p=p).numpy()
    assert total(student, teacher, sort=True, p=p) == pytest.approx(
        distance[linear_sum_assignment(distance)].sum(), abs=1e-12
    )


def test_sorting_has_the_gradient_of_the_assignment():
    student, teacher = random_logits(8, 2)
    assert gradcheck(lambda x: sinkhorn_loss(x, teacher, sort=True).value, student.clone().requires_grad_())


def test_permutation_of_the_students_rows_changes_nothing():
    """Transport cannot tell which row got which output: shuffling within the batch is no control for it."""
    student, teacher = random_logits(10, 4)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert total(student[order], teacher) == pytest.approx(total(student, teacher), abs=1e-12)
    moved = gradient(student[order], teacher)
    torch.testing.assert_close(moved, gradient(student, teacher)[order], atol=1e-12, rtol=0)


def test_identity_penalty_tells_rows_apart():
    student, teacher = random_logits(10, 4)
    shuffled = total(student.roll(1, 0), teacher, identity_penalty=0.3)
    assert abs(shuffled - total(student, teacher, identity_penalty=0.3)) > 0.01
    by_row = float(cost(student, teacher).diagonal().sum())
    assert total(student, teacher, identity_penalty=100.0) == pytest.approx(by_row, abs=1e-9)
    assert total(YS, YT, identity_penalty=100.0) == pytest.approx(ASSIGNMENT, abs=1e-9)


def test_a_cloud_is_not_at_distance_zero_from_itself():
    student, _ = random_logits(16, 5)
    assert total(student, student) > 0.1


def test_symmetry_holds_at_convergence_only():
    """At 20 rounds 1.2375127 one way and 1.2354242 the other."""
    assert total(YT, YS) == pytest.approx(1.2354242, abs=1e-7)
    assert total(YT, YS, iterations=5000) == pytest.approx(total(YS, YT, iterations=5000), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_range_and_unconverged_rounds(seed):
    student, teacher = random_logits(64, 2, seed, spread=3.0)
    moved = sinkhorn_loss(student, teacher)
    assert 0 <= float(moved.value) <= 2
    assert float(moved.marginal_error) > 1e-3
    assert float(sinkhorn_loss(student, teacher, iterations=100_000, tolerance=1e-7).marginal_error) < 1e-5


def test_debiased_is_zero_for_equal_clouds_and_above_otherwise():
    options = {"debiased": True, "iterations": 5000, "tolerance": 1e-9}
    for seed in range(10):
        student, teacher = random_logits(8, 3, seed)
        assert float(sinkhorn_loss(student, teacher, **options).value) > 1e-3
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        assert abs(float(sinkhorn_loss(student, student[order], **options).value)) < 1e-8


@pytest.mark.parametrize(("epsilon", "collapses"), [(2.0, True), (0.5, False), (0.1, False), (0.02, False)])
def test_large_epsilon_prefers_a_collapsed_student(epsilon, collapses):
    """A teacher of 32 rows and 3 classes; the student is the teacher, drawn towards the mean output by a share."""
    outputs = torch.softmax(random_logits(32, 3, spread=3.0)[0] / 2, dim=-1)
    teacher = 2 * outputs.log()

    def at(share):
        return total(2 * torch.lerp(outputs, outputs.mean(0), share).log(), teacher, epsilon=epsilon, iterations=2000)

    assert (at(1.0) < at(0.0)) is collapses


# -- gradients --------------------------------------------------------------------------------------------------------


def test_golden_gradient_of_twenty_rounds():
    expected = [[0.226674, -0.153887, -0.072787], [0.081003, -0.202591, 0.121588], [-0.088862, 0.016969, 0.071893]]
    found = gradient(YS, YT)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(found.norm()) == pytest.approx(0.395097, abs=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-14, rtol=0)


def test_golden_gradient_of_the_envelope():
    expected = [[0.206906, -0.154609, -0.052296], [0.027409, -0.136412, 0.109003], [-0.089649, 0.015945, 0.073704]]
    found = gradient(YS, YT, gradient="envelope", iterations=5000)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    unrolled = gradient(YS, YT)
    assert float((found * unrolled).sum() / found.norm() / unrolled.norm()) == pytest.approx(0.9813, abs=1e-4)


def test_golden_gradient_of_the_converged_value():
    first = torch.tensor([0.224072, -0.151214, -0.072858], dtype=torch.float64)
    torch.testing.assert_close(gradient(YS, YT, gradient="implicit", iterations=5000)[0], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(YS, YT, iterations=5000)[0], first, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"identity_penalty": 0.5}, {"debiased": True}, {"p": 2.0}], ids=str)
def test_unrolled_gradient_equals_finite_differences(options):
    student, teacher = random_logits(6, 3, seed=3)
    assert gradcheck(lambda x: sinkhorn_loss(x, teacher, **options).value, student.clone().requires_grad_())


def test_unrolled_gradient_equals_that_of_plain_iterations():
    student, teacher = random_logits(8, 4, seed=5)
    x = student.clone().requires_grad_()
    expected = torch.autograd.grad(plain(x, teacher), x)[0]
    torch.testing.assert_close(gradient(student, teacher), expected, atol=1e-12, rtol=0)


def test_no_gradient_reaches_the_teacher():
    teacher = YT.clone().requires_grad_()
    student = YS.clone().requires_grad_()
    sinkhorn_loss(student, teacher).value.backward()
    assert teacher.grad is None
    assert student.grad is not None


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("epsilon", [0.1, 0.01, 1e-4])
def test_disjoint_outputs_stay_finite(dtype, epsilon):
    """In the plain domain exp(-20) is 0 in half precision and exp(-200) in single, and 0/0 follows."""
    student = torch.full((4, 2), -100.0, dtype=dtype)
    teacher = student.clone()
    student[:, 0], teacher[:, 1] = 100.0, 100.0
    moved = sinkhorn_loss(student.requires_grad_(), teacher, epsilon=epsilon)
    assert moved.value.dtype == torch.float32
    assert moved.total.item() == pytest.approx(8.0, abs=1e-5)
    moved.value.backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher = (logits.to(torch.float16) for logits in random_logits(8, 4))
    expected = sinkhorn_loss(student.float(), teacher.float()).value
    assert torch.equal(sinkhorn_loss(student, teacher).value, expected)


def test_double_precision_stays_double():
    assert sinkhorn_loss(YS, YT).value.dtype == torch.float64


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_shapes_that_differ_are_named():
    with pytest.raises(InputError, match=r"\[3, 3\].*\[3, 2\].*vocabularies"):
        sinkhorn_loss(YS, YT[:, :2])
    with pytest.raises(InputError, match=r"\[3, 3\].*\[2, 3\]"):
        sinkhorn_loss(YS, YT[:2])


def test_sorting_more_than_two_classes():
    with pytest.raises(InputError, match="sorting was asked for with 3 classes"):
        sinkhorn_loss(YS, YT, sort=True)
    with pytest.raises(InputError, match="identity penalty"):
        sinkhorn_loss(YS[:, :2], YT[:, :2], sort=True, identity_penalty=1.0)


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"iterations": 0}, {"tolerance": -1.0}, {"p": 0.5}])
def test_options_out_of_range(options):
    with pytest.raises(InputError):
        sinkhorn_loss(YS, YT, **options)
