"""Transport against the published case, POT, assignment, naive iterations and central differences."""

import inspect
import itertools
import math

import numpy as np
import ot
import pytest
import torch
from torch.autograd import gradcheck

from oracles import assignment_cost, central_differences, sinkhorn_logarithmic, sinkhorn_unit_marginals
from sanov import ground_cost
from sanov.core.errors import InputError
from sanov.ground_cost import FEW_FEATURES, MANY_PAIRS
from sanov.kernel_scaling import gibbs_kernel
from sanov.transport import pairwise_cost, sinkhorn, sinkhorn_divergence, sorted_transport_1d

STUDENT = torch.tensor([[2, 0, -1], [0, 1, 0], [-1, 0, 3]], dtype=torch.float64)
TEACHER = torch.tensor([[1, 1, 0], [0, 2, -2], [0, -1, 2]], dtype=torch.float64)
MODES = ("unroll", "envelope", "implicit")


def outputs(rows, classes, seed, spread=3.0, dtype=torch.float64, batch=()):
    logits = torch.randn(*batch, rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (spread * logits / 2).softmax(-1).to(dtype)


def clouds_cost(rows, classes, seed, columns=None, **options):
    return pairwise_cost(
        outputs(rows, classes, seed, **options), outputs(columns or rows, classes, seed + 1, **options)
    )


def weights(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1


def case_cost(student=STUDENT):
    return pairwise_cost((student / 2).softmax(-1), (TEACHER / 2).softmax(-1))


def unit_mass_cost(cost, iterations, epsilon=0.1, **options):
    """The loss of the paper, whose plan has unit marginals."""
    return cost.shape[-2] * sinkhorn(cost, epsilon=epsilon, iterations=iterations, **options).cost


def converged(cost, epsilon=0.1, **options):
    return sinkhorn(cost, epsilon=epsilon, iterations=100_000, tolerance=1e-13, **options)


# -- the case computed by others: three rows, three classes, epsilon 0.1 -----------------------------------------------


@pytest.mark.parametrize(
    ("iterations", "value"), [(1, 1.1327715894), (5, 1.2392449308), (20, 1.2375127370), (5000, 1.2344426336)]
)
def test_value_of_the_case(iterations, value):
    assert unit_mass_cost(case_cost(), iterations).item() == pytest.approx(value, abs=1e-9)


def test_marginals_of_the_case_after_20_rounds():
    found = sinkhorn(case_cost(), epsilon=0.1, iterations=20)
    torch.testing.assert_close(
        3 * found.plan.sum(1), torch.tensor([1.005135, 1.005222, 0.989643], dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(3 * found.plan.sum(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.iterations == 20
    error = (found.plan.sum(1) - 1 / 3).abs().sum()
    torch.testing.assert_close(found.marginal_error, error, rtol=1e-10, atol=0)


def gradient_of_the_case(function):
    student = STUDENT.clone().requires_grad_()
    return torch.autograd.grad(function(case_cost(student)), student)[0]


def test_unrolled_gradient_of_the_case():
    found = gradient_of_the_case(lambda cost: unit_mass_cost(cost, 20))
    printed = [[0.226674, -0.153887, -0.072787], [0.081003, -0.202591, 0.121588], [-0.088862, 0.016969, 0.071893]]
    torch.testing.assert_close(found, torch.tensor(printed, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.norm().item() == pytest.approx(0.395097, abs=1e-6)
    assert found.sum(-1).abs().max() < 1e-15  # a shift of all logits of a row changes nothing
    differences = central_differences(lambda student: unit_mass_cost(case_cost(student), 20), STUDENT)
    torch.testing.assert_close(found, differences, rtol=0, atol=1e-9)


def test_envelope_gradient_of_the_case_is_that_of_the_regularised_cost():
    found = gradient_of_the_case(lambda cost: unit_mass_cost(cost, 5000, gradient="envelope"))
    printed = [[0.206906, -0.154609, -0.052296], [0.027409, -0.136412, 0.109003], [-0.089649, 0.015945, 0.073704]]
    torch.testing.assert_close(found, torch.tensor(printed, dtype=torch.float64), rtol=0, atol=1e-6)
    differences = central_differences(lambda student: 3 * converged(case_cost(student)).regularised_cost, STUDENT)
    torch.testing.assert_close(found, differences, rtol=0, atol=1e-9)
    unrolled = gradient_of_the_case(lambda cost: unit_mass_cost(cost, 20))
    assert torch.cosine_similarity(found.flatten(), unrolled.flatten(), 0).item() == pytest.approx(0.9813, abs=1e-4)


def test_implicit_gradient_of_the_case_is_that_of_the_sharp_cost():
    found = gradient_of_the_case(lambda cost: 3 * converged(cost, gradient="implicit").cost)
    torch.testing.assert_close(
        found[0], torch.tensor([0.224072, -0.151214, -0.072858], dtype=torch.float64), rtol=0, atol=1e-6
    )
    differences = central_differences(lambda student: 3 * converged(case_cost(student)).cost, STUDENT)
    torch.testing.assert_close(found, differences, rtol=0, atol=1e-9)


def test_swapped_half_steps_would_be_seen():
    cost = case_cost()
    swapped = (sinkhorn_unit_marginals(cost, 0.1, 1, columns_first=True) * cost).sum()
    found = sinkhorn(cost, epsilon=0.1, iterations=1)
    assert abs(3 * found.cost - swapped) > 1e-3
    assert (3 * found.plan.sum(0) - 1).abs().max() < 1e-12 < (3 * found.plan.sum(1) - 1).abs().max()


# -- limits and identities ---------------------------------------------------------------------------------------------


def test_one_pair_costs_twice_the_total_variation():
    x, y = outputs(1, 5, 0), outputs(1, 5, 1)
    found = sinkhorn(pairwise_cost(x, y), epsilon=0.1, iterations=20)
    torch.testing.assert_close(found.plan, torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(found.cost, (x - y).abs().sum(), rtol=1e-14, atol=0)


def test_large_epsilon_gives_the_independent_plan():
    assert unit_mass_cost(case_cost(), 20, epsilon=100).item() == pytest.approx(2.081552, abs=1e-6)
    assert unit_mass_cost(case_cost(), 20, epsilon=1e9).item() == pytest.approx(2.083821, abs=1e-6)
    cost = clouds_cost(16, 2, 0)
    assert sinkhorn(cost, epsilon=1e9, iterations=5).cost.item() == pytest.approx(cost.mean().item(), rel=1e-8)


def test_small_epsilon_gives_the_assignment():
    cost = case_cost()
    assert assignment_cost(cost).item() == pytest.approx(1.1797168630, abs=1e-9)
    assert unit_mass_cost(cost, 20_000, epsilon=0.01).item() == pytest.approx(1.179750, abs=1e-6)
    for seed in range(4):
        cost = clouds_cost(12, 4, seed)
        found = 12 * sinkhorn(cost, epsilon=0.01, iterations=5000, tolerance=1e-6).cost
        assert -1e-5 <= found - assignment_cost(cost) < 12 * 0.01 * math.log(12)  # the entropy it may gain


@pytest.mark.parametrize("rows", [2, 7, 32])
def test_two_classes_are_transport_on_a_line(rows):
    x, y = outputs(rows, 2, rows), outputs(rows, 2, rows + 1)
    on_a_line = 2 * rows * sorted_transport_1d(x[:, 0], y[:, 0])
    torch.testing.assert_close(on_a_line, assignment_cost(pairwise_cost(x, y)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("columns", [16, 9])
@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.05])
def test_converged_plan_is_that_of_pot(columns, epsilon):
    cost = clouds_cost(16, 4, 5, columns)
    row, column = np.full(16, 1 / 16), np.full(columns, 1 / columns)
    theirs = torch.from_numpy(ot.sinkhorn(row, column, cost.numpy(), epsilon, stopThr=1e-14, numItermax=100_000))
    torch.testing.assert_close(converged(cost, epsilon=epsilon).plan, theirs, rtol=1e-8, atol=1e-12)


def test_weights_are_those_of_pot():
    cost, row, column = clouds_cost(8, 3, 2, 5), weights(8), weights(5)
    found = converged(cost, row_weights=3 * row, column_weights=column)  # they are scaled to total mass 1
    row, column = row / row.sum(), column / column.sum()
    theirs = ot.sinkhorn(row.numpy(), column.numpy(), cost.numpy(), 0.1, stopThr=1e-14, numItermax=100_000)
    torch.testing.assert_close(found.plan, torch.from_numpy(theirs), rtol=1e-8, atol=1e-12)
    assert found.marginal_error <= 1e-13


@pytest.mark.parametrize("iterations", [1, 2, 15, 16, 17, 40])
def test_after_equally_many_rounds_the_plan_is_that_of_the_naive_iterations(iterations):
    cost = clouds_cost(12, 3, 3, 10)
    found = sinkhorn(cost, epsilon=0.1, iterations=iterations).plan
    torch.testing.assert_close(found, sinkhorn_logarithmic(cost, 0.1, iterations), rtol=1e-11, atol=1e-15)
    square = clouds_cost(12, 3, 3)
    plain = sinkhorn_unit_marginals(square, 0.1, iterations) / 12
    torch.testing.assert_close(sinkhorn(square, epsilon=0.1, iterations=iterations).plan, plain, rtol=1e-11, atol=1e-15)


def test_twenty_rounds_are_not_converged_and_say_so():
    cost = clouds_cost(64, 2, 0)
    found = sinkhorn(cost, epsilon=0.1, iterations=20)
    assert found.marginal_error > 1e-3
    torch.testing.assert_close(found.marginal_error, (found.plan.sum(1) - 1 / 64).abs().sum(), rtol=1e-9, atol=0)
    assert abs(found.cost / converged(cost).cost - 1) > 1e-3


def test_order_within_the_batch_is_not_seen():
    x, y = outputs(20, 4, 0), outputs(20, 4, 1)
    shuffled = x[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    one, other = (unit_mass_cost(pairwise_cost(points, y), 20) for points in (x, shuffled))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_penalty_off_the_diagonal_pairs_samples():
    x, y = outputs(6, 4, 0), outputs(6, 4, 1)
    penalty = 100 * (1 - torch.eye(6, dtype=torch.float64))
    found = 6 * converged(pairwise_cost(x, y) + penalty).cost
    torch.testing.assert_close(found, (x - y).abs().sum(), rtol=1e-10, atol=0)
    bound = 3 * converged(case_cost() + 100 * (1 - torch.eye(3, dtype=torch.float64))).cost
    assert bound.item() == pytest.approx(1.1797168630, abs=1e-9)


def test_converged_cost_is_symmetric_and_20_rounds_are_not():
    cost = case_cost()
    torch.testing.assert_close(converged(cost).cost, converged(cost.T).cost, rtol=1e-11, atol=0)
    assert unit_mass_cost(cost.T, 20).item() == pytest.approx(1.2354242, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_mass_is_one_and_the_cost_bounded_and_a_cloud_has_a_cost_to_itself(seed):
    x, y = outputs(16, 3, seed), outputs(16, 3, seed + 50)
    found = sinkhorn(pairwise_cost(x, y), epsilon=0.1, iterations=3)
    torch.testing.assert_close(found.plan.sum(-2), torch.full((16,), 1 / 16, dtype=torch.float64), rtol=1e-12, atol=0)
    assert 0 <= found.cost <= 2
    assert converged(pairwise_cost(x, x)).cost > 1e-3


def test_regularised_cost_is_as_defined():
    cost = clouds_cost(7, 3, 0, 5)
    for gradient in MODES:
        found = sinkhorn(cost, epsilon=0.1, iterations=4, gradient=gradient)
        f, g = found.potentials
        torch.testing.assert_close(
            found.plan, torch.exp((f[:, None] + g - cost) / 0.1), rtol=1e-12, atol=1e-16, msg=gradient
        )
        direct = (found.plan * cost).sum() + 0.1 * (found.plan * found.plan.log()).sum()
        torch.testing.assert_close(found.regularised_cost, direct, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.cost, (found.plan * cost).sum(), rtol=1e-13, atol=0)


def test_debiased_cost_is_zero_at_equality_and_else_positive():
    def divergence(x, y):
        costs = (pairwise_cost(*pair) for pair in ((x, y), (x, x), (y, y)))
        return sinkhorn_divergence(*costs, epsilon=0.1, iterations=10_000, tolerance=1e-7)

    x, y = (outputs(8, 3, seed, batch=(60,)) for seed in (0, 1))
    assert divergence(x, y).min() > 1e-4
    assert divergence(x, x).abs().max() < 1e-12
    short = outputs(5, 3, 2, batch=(60,))
    assert divergence(x, short).min() > 1e-4


def test_gradient_of_the_debiased_cost():
    x, y = outputs(4, 3, 0), outputs(4, 3, 1)

    def divergence(points):
        costs = (pairwise_cost(*pair) for pair in ((points, y), (points, points), (y, y)))
        return sinkhorn_divergence(*costs, epsilon=0.3, iterations=10_000, tolerance=1e-13)

    points = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(points), points)
    torch.testing.assert_close(found, central_differences(divergence, x), rtol=0, atol=1e-8)


def test_large_epsilon_draws_the_student_to_the_mean_and_small_epsilon_does_not():
    teacher = outputs(32, 3, 0)
    mean = teacher.mean(0, keepdim=True)

    def curve(epsilon):
        shares = torch.linspace(0, 1, 5, dtype=torch.float64).tolist()
        shrunk = (teacher + share * (mean - teacher) for share in shares)
        return [sinkhorn(pairwise_cost(student, teacher), epsilon=epsilon, iterations=300).cost for student in shrunk]

    large, small = curve(2.0), curve(0.1)
    assert large[0] > large[-1]
    assert all(left < right for left, right in itertools.pairwise(small))
    torch.testing.assert_close(large[-1], small[-1], rtol=1e-8, atol=0)  # equal points: every plan costs the same


# -- in range where the plain iteration is not -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.1, 0.01, 1e-4])
def test_disjoint_one_hots(dtype, epsilon):
    points = torch.eye(8, dtype=dtype)
    found = sinkhorn(pairwise_cost(points[:4], points[4:]), epsilon=epsilon, iterations=20)
    assert found.cost.dtype == torch.promote_types(dtype, torch.float32)
    assert 4 * found.cost.item() == pytest.approx(8, rel=1e-6)
    torch.testing.assert_close(found.plan, torch.full_like(found.plan, 1 / 16))
    if epsilon == 0.01:
        assert not sinkhorn_unit_marginals(pairwise_cost(points[:4], points[4:]).float(), 0.01, 1).isfinite().all()


@pytest.mark.parametrize("iterations", [1, 7, 30])
@pytest.mark.parametrize("epsilon", [0.02, 0.005, 0.001])
def test_float32_at_small_epsilon_is_float64_on_logarithms(epsilon, iterations):
    x = outputs(24, 5, 0, spread=8, dtype=torch.float32)
    y = torch.cat([outputs(20, 5, 1, spread=8, dtype=torch.float32), torch.eye(5)[:4]])  # columns far from all rows
    cost = pairwise_cost(x, y).requires_grad_()
    wide = cost.detach().double().requires_grad_()
    found = sinkhorn(cost, epsilon=epsilon, iterations=iterations)
    exact = sinkhorn_logarithmic(wide, epsilon, iterations)
    # The exponents cost / epsilon have float32's relative error.
    bound = 30 * torch.finfo(torch.float32).eps * 2 / epsilon
    torch.testing.assert_close(found.plan.double(), exact, rtol=bound, atol=1e-9)
    (mine,) = torch.autograd.grad(found.cost, cost)
    (reference,) = torch.autograd.grad((exact * wide).sum(), wide)
    assert (mine - reference).norm() <= 2 * bound * reference.norm()


def test_kernels_hold_no_subnormal_numbers():
    for dtype in (torch.float32, torch.float64):
        cost = torch.linspace(0, 3000, 5000, dtype=dtype).reshape(50, 100)
        kernel = gibbs_kernel(cost, 1.0, torch.zeros(50, dtype=dtype), torch.zeros(100, dtype=dtype))
        assert kernel.min() >= torch.finfo(dtype).tiny


def far_clusters(dtype=torch.float64):
    """Two clusters, 50 apart, of 6 and 2 points on one side and of 2 and 6 on the other."""
    jitter = torch.linspace(0, 1, 8, dtype=dtype)
    return (jitter + 50 * (torch.arange(8) >= 6))[:, None], (jitter + 50 * (torch.arange(8) >= 2))[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_potentials_far_apart_are_absorbed(dtype):
    """Mass has to cross, which moves the potentials by hundreds of epsilon; nothing of it may be cut."""
    x, y = far_clusters(dtype)
    found = sinkhorn(pairwise_cost(x, y), epsilon=0.2, iterations=20_000, tolerance=1e-6)
    assert found.marginal_error <= 1e-6
    exact = sorted_transport_1d(x[:, 0], y[:, 0]).item()
    assert exact - 1e-3 <= found.cost.item() <= exact + 0.2 * math.log(8)


@pytest.mark.parametrize("iterations", [1, 2, 5, 40])
@pytest.mark.parametrize(("dtype", "epsilon", "bound"), [(torch.float32, 0.2, 1e-2), (torch.float64, 0.02, 1e-8)])
def test_gradient_through_rounds_that_move_the_potentials_far(dtype, epsilon, bound, iterations):
    cost = pairwise_cost(*far_clusters(dtype)).requires_grad_()
    wide = cost.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(sinkhorn(cost, epsilon=epsilon, iterations=iterations).cost, cost)
    (exact,) = torch.autograd.grad((sinkhorn_logarithmic(wide, epsilon, iterations) * wide).sum(), wide)
    assert (found - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_gradient_through_a_round_that_goes_far_by_itself(dtype, bound, iterations, batch):
    """A column far from all rows moves its potential, in the first round, by more than a kernel can hold."""
    cost = clouds_cost(6, 4, 0, 5, batch=batch).to(dtype)
    cost[..., 2] += 64
    cost, wide = cost.clone().requires_grad_(), cost.double().requires_grad_()
    pull = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = sinkhorn(cost, epsilon=0.1, iterations=iterations).plan
    (found,) = torch.autograd.grad((plan * pull.to(dtype)).sum(), cost)
    naive = torch.stack([sinkhorn_logarithmic(part, 0.1, iterations) for part in wide.reshape(-1, 6, 5)])
    (exact,) = torch.autograd.grad((naive.view_as(wide) * pull).sum(), wide)
    assert (found - exact).norm() <= bound * exact.norm()


# -- tolerance, batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.1), (2, 0.02), (10, 0.05)])
def test_over_relaxed_rounds_are_fewer_and_end_in_the_same_plan(classes, epsilon):
    cost = clouds_cost(48, classes, 0)
    found = sinkhorn(cost, epsilon=epsilon, iterations=100_000, tolerance=1e-10)
    plain = next(
        k for k in range(50, 100_000, 50) if sinkhorn(cost, epsilon=epsilon, iterations=k).marginal_error < 1e-10
    )
    assert found.marginal_error <= 1e-10
    assert 2 * found.iterations < plain
    exact = sinkhorn(cost, epsilon=epsilon, iterations=2 * plain).plan
    torch.testing.assert_close(found.plan, exact, rtol=0, atol=1e-9)
    assert (found.plan.sum(0) - 1 / 48).abs().max() < 1e-14


def test_iterations_bound_the_rounds_of_a_tolerance():
    cost = clouds_cost(32, 2, 0)
    for iterations in (1, 5, 11):
        found = sinkhorn(cost, epsilon=0.01, iterations=iterations, tolerance=1e-12)
        assert found.iterations == iterations
        assert found.marginal_error > 1e-12
    loose = sinkhorn(cost, epsilon=0.1, iterations=1000, tolerance=1e-2)
    assert loose.iterations < 100
    assert loose.marginal_error <= 1e-2


def test_an_unrolled_gradient_with_a_tolerance_is_that_of_plain_rounds():
    cost = clouds_cost(8, 3, 0).requires_grad_()
    found = sinkhorn(cost, epsilon=0.1, iterations=1000, tolerance=1e-3)
    same = sinkhorn(cost, epsilon=0.1, iterations=found.iterations)
    torch.testing.assert_close(found.plan, same.plan, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(
        *(torch.autograd.grad(plan.cost, cost)[0] for plan in (found, same)), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("gradient", MODES)
def test_a_batch_is_its_problems(gradient):
    x, y = outputs(6, 3, 0, batch=(2, 3)), outputs(4, 3, 1, batch=(2, 3))
    cost = pairwise_cost(x, y).requires_grad_()
    rows = weights(2, 3, 6)
    options = {"epsilon": 0.05, "iterations": 25, "gradient": gradient}
    found = sinkhorn(cost, **options, row_weights=rows)
    (whole,) = torch.autograd.grad((found.cost + found.regularised_cost).sum(), cost)
    for place in np.ndindex(2, 3):
        part = cost[place].detach().requires_grad_()
        alone = sinkhorn(part, **options, row_weights=rows[place])
        for name in ("plan", "cost", "regularised_cost", "marginal_error"):
            torch.testing.assert_close(getattr(found, name)[place], getattr(alone, name), rtol=1e-10, atol=1e-14)
        for mine, theirs in zip(found.potentials, alone.potentials, strict=True):
            torch.testing.assert_close(mine[place], theirs, rtol=1e-10, atol=1e-12)
        (single,) = torch.autograd.grad(alone.cost + alone.regularised_cost, part)
        torch.testing.assert_close(whole[place], single, rtol=1e-9, atol=1e-13)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.2, 0.02, 0.002])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_unrolled_gradient_is_that_of_autograd_on_logarithms(iterations, epsilon):
    cost = clouds_cost(9, 4, 1, 6).requires_grad_()
    row, column = weights(9) / weights(9).sum(), weights(6) / weights(6).sum()
    pull = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sinkhorn(cost, epsilon=epsilon, iterations=iterations, row_weights=row, column_weights=column)
    naive = sinkhorn_logarithmic(cost, epsilon, iterations, row, column)
    torch.testing.assert_close(found.plan, naive, rtol=1e-10, atol=1e-15)
    pairs = [
        (found.cost, (naive * cost).sum()),
        ((pull * found.plan).sum(), (pull * naive).sum()),
        (found.regularised_cost, (naive * cost).sum() + epsilon * torch.special.xlogy(naive, naive).sum()),
    ]
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-14)
        mine, reference = (torch.autograd.grad(value, cost, retain_graph=True)[0] for value in (mine, reference))
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-10 / epsilon)


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)])
def test_implicit_gradient_of_any_loss_of_the_plan(shape):
    cost = clouds_cost(shape[0], 3, 2, shape[1])
    pull = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(entries):
        found = converged(entries, gradient="implicit")
        return (pull * found.plan**2).sum() + found.regularised_cost

    differences = central_differences(loss, cost, step=1e-4)
    cost.requires_grad_()
    (found,) = torch.autograd.grad(loss(cost), cost)
    torch.testing.assert_close(found, differences, rtol=1e-5, atol=1e-7)


def test_implicit_gradient_is_the_limit_of_the_unrolled_one():
    cost = clouds_cost(8, 3, 4).requires_grad_()
    (unrolled,) = torch.autograd.grad(sinkhorn(cost, epsilon=0.1, iterations=2000).cost, cost)
    (implicit,) = torch.autograd.grad(converged(cost, gradient="implicit").cost, cost)
    torch.testing.assert_close(implicit, unrolled, rtol=1e-9, atol=1e-12)


def test_implicit_gradient_of_a_plan_that_is_nearly_a_permutation():
    cost = (clouds_cost(5, 3, 0) + 3 * (1 - torch.eye(5, dtype=torch.float64))).requires_grad_()
    found = sinkhorn(cost, epsilon=0.05, iterations=50, gradient="implicit")
    (gradient,) = torch.autograd.grad(found.cost, cost)
    torch.testing.assert_close(gradient, torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gradient", ["envelope", "implicit"])
def test_at_convergence_the_plan_is_the_gradient_of_the_regularised_cost(gradient):
    cost = clouds_cost(6, 3, 1, 5).requires_grad_()
    found = converged(cost, gradient=gradient)
    (slope,) = torch.autograd.grad(found.regularised_cost, cost, retain_graph=True)
    torch.testing.assert_close(slope, found.plan.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(
        slope,
        central_differences(lambda entries: converged(entries).regularised_cost, cost.detach()),
        rtol=0,
        atol=1e-9,
    )
    assert found.plan.requires_grad == (gradient == "implicit")


@pytest.mark.parametrize("gradient", MODES)
def test_without_gradients_nothing_is_tracked_and_values_are_the_same(gradient):
    cost = clouds_cost(6, 3, 1).requires_grad_()
    tracked = sinkhorn(cost, epsilon=0.1, iterations=7, gradient=gradient)
    with torch.no_grad():
        free = sinkhorn(cost, epsilon=0.1, iterations=7, gradient=gradient)
    assert tracked.cost.requires_grad
    assert not free.cost.requires_grad
    for name in ("plan", "cost", "regularised_cost", "marginal_error"):
        torch.testing.assert_close(getattr(free, name), getattr(tracked, name).detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("of", ["cost", "regularised_cost"])
@pytest.mark.parametrize("gradient", MODES)
def test_a_second_derivative_of_a_plan_is_an_error_and_never_a_number(gradient, of):
    cost = clouds_cost(6, 3, 1).requires_grad_()

    def value(entries):
        return getattr(sinkhorn(entries, epsilon=0.1, iterations=7, gradient=gradient), of)

    def penalised():
        (slope,) = torch.autograd.grad(value(cost), cost, create_graph=True)
        return slope.square().sum() + cost.square().sum()

    with pytest.raises(InputError, match="create_graph"):
        penalised().backward()
    with pytest.raises(InputError, match="create_graph"):
        torch.autograd.functional.hessian(value, cost)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("gradient", MODES)
def test_autocast_changes_nothing(gradient, batch):
    x, y = (outputs(20, 4, seed, dtype=torch.float32, batch=batch) for seed in (0, 1))
    x.requires_grad_()

    def run():
        found = sinkhorn(pairwise_cost(x, y), epsilon=0.1, iterations=20, gradient=gradient)
        return found.cost, found.plan.detach(), torch.autograd.grad(found.cost.sum(), x)[0]

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run()
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


# -- the cost of a pair ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("classes", [2, FEW_FEATURES, FEW_FEATURES + 3])
@pytest.mark.parametrize("rows", [5, math.isqrt(MANY_PAIRS) + 3])
def test_cost_is_the_norm_of_the_difference(rows, classes, p):
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(k, classes, generator=generator, dtype=torch.float64).requires_grad_() for k in (rows, rows + 1)
    )
    pull = torch.randn(rows, rows + 1, generator=generator, dtype=torch.float64)
    found = pairwise_cost(x, y, p)
    naive = torch.linalg.vector_norm(x[:, None] - y, p, dim=-1)
    torch.testing.assert_close(found, naive, rtol=1e-12, atol=1e-13)
    mine, reference = (torch.autograd.grad((pull * cost).sum(), (x, y)) for cost in (found, naive))
    torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [4, math.isqrt(MANY_PAIRS)])
def test_cost_of_a_batch(rows):
    x, y = outputs(rows, 3, 0, batch=(2, 3)), outputs(rows, 3, 1, batch=(2, 3))
    y.requires_grad_()
    found = pairwise_cost(x, y)
    naive = (x.unsqueeze(-2) - y.unsqueeze(-3)).abs().sum(-1)
    torch.testing.assert_close(found, naive, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(
        *(torch.autograd.grad(cost.square().sum(), y)[0] for cost in (found, naive)), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("rows", [6, math.isqrt(MANY_PAIRS)])
@pytest.mark.parametrize("classes", [2, FEW_FEATURES + 2])
def test_ties_have_gradient_zero(rows, classes, p):
    x = torch.eye(classes, dtype=torch.float32)[torch.arange(rows) % classes].requires_grad_()
    y = torch.zeros(rows, classes)
    y[:, 0] = 1.0
    (gradient,) = torch.autograd.grad(pairwise_cost(x, y, p).sum(), x)
    same = torch.arange(rows) % classes == 0
    assert (gradient[same] == 0).all()
    assert (gradient[~same][:, 0] < 0).all()
    if p == 1:  # features in which the two points agree
        third = torch.arange(rows) % classes == 1
        assert (gradient[third][:, 2:] == 0).all()


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("p", [3, 200, math.inf])
def test_the_largest_differences_share_the_gradient(rows, p):
    x = torch.tensor([[0.75, 0.25]]).expand(rows, 2).clone().requires_grad_()
    y = torch.tensor([[0.25, 0.75]])
    cost = pairwise_cost(x, y, p)
    torch.testing.assert_close(cost, torch.full((rows, 1), 0.5 * 2 ** (1 / p)))
    (gradient,) = torch.autograd.grad(cost.sum(), x)
    share = 0.5 * 2 ** (1 / p)  # of each of the two, by symmetry and Euler's theorem
    torch.testing.assert_close(gradient, torch.tensor([[share, -share]]).expand(rows, 2))


@pytest.mark.parametrize("p", [1.5, 3, 10, 200, 1e4, math.inf])
def test_norms_of_high_order_neither_underflow_nor_break_at_ties(p):
    x = 1e-4 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.cat([x[:3], 1e4 * x[3:]]).requires_grad_()
    cost = pairwise_cost(x, y, p)
    sizes = (x[:, None] - y).detach().double().abs()
    exact = sizes.amax(-1) if p == math.inf else (p * sizes.log()).logsumexp(-1).div(p).exp()
    torch.testing.assert_close(cost.detach().double(), exact, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(cost.sum(), y)
    assert gradient.isfinite().all()
    (at_ties,) = torch.autograd.grad(pairwise_cost(x[:1], y[:1], p).sum(), y)
    assert (at_ties == 0).all()


@pytest.mark.parametrize("p", [3.5, math.inf])
def test_norms_in_blocks_are_those_of_all_pairs(p, monkeypatch):
    monkeypatch.setattr(ground_cost, "HELD", 50)
    x, y = (outputs(9, 4, seed, batch=(2,)).requires_grad_() for seed in (0, 1))
    found, naive = pairwise_cost(x, y, p), torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, dim=-1)
    torch.testing.assert_close(found, naive, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(cost.square().sum(), (x, y)) for cost in (found, naive)), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("rows", [5, math.isqrt(MANY_PAIRS)])
@pytest.mark.parametrize("p", [1, 2, 3.5, math.inf])
def test_a_second_derivative_of_a_cost_is_right_or_an_error(rows, p):
    """Where it is a number, as in the orders that autograd differentiates, it is that of the norm written out."""
    x, y = outputs(rows, 3, 0).requires_grad_(), outputs(rows, 3, 1)
    direction = outputs(rows, 3, 2)

    def second(cost):
        (slope,) = torch.autograd.grad(cost.square().sum(), x, create_graph=True)
        return torch.autograd.grad((slope * direction).sum(), x)[0]

    if p in (1, 2):
        with pytest.raises((InputError, RuntimeError), match=r"create_graph|not implemented"):
            second(pairwise_cost(x, y, p))
    else:
        naive = torch.linalg.vector_norm(x[:, None] - y, p, dim=-1)
        torch.testing.assert_close(second(pairwise_cost(x, y, p)), second(naive), rtol=1e-8, atol=1e-10)


def test_the_way_of_one_feature_at_a_time_is_for_cpus():
    """Its blocks fit a CPU's cache; other devices get one call, seen here by what the gradient's node is called."""
    rows = math.isqrt(MANY_PAIRS)
    on_cpu = pairwise_cost(torch.rand(rows, 2, requires_grad=True), torch.rand(rows, 2))
    assert "Manhattan" in on_cpu.grad_fn.name()
    elsewhere = torch.rand(rows, 2, device="meta", requires_grad=True)
    assert "Cdist" in pairwise_cost(elsewhere, elsewhere.detach()).grad_fn.name()


@pytest.mark.parametrize("p", [1, 2])
def test_near_points_far_from_the_origin_keep_their_digits(p):
    points = 1000 + torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    found, exact = pairwise_cost(*points, p), pairwise_cost(*points.double(), p)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_half_precision_costs_are_computed_in_float32():
    x = outputs(8, 3, 0, dtype=torch.float16).requires_grad_()
    cost = pairwise_cost(x, outputs(8, 3, 1, dtype=torch.float16))
    assert cost.dtype == torch.float32
    assert torch.autograd.grad(cost.sum(), x)[0].dtype == torch.float16
    mixed = pairwise_cost(x.detach(), outputs(8, 3, 1))
    assert mixed.dtype == torch.float64


# -- transport on a line -----------------------------------------------------------------------------------------------


def test_transport_on_a_line_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 17, generator=generator, dtype=torch.float64) for _ in range(2))
    found = sorted_transport_1d(x, y)
    for place in range(3):
        cost = (x[place, :, None] - y[place]).abs()
        torch.testing.assert_close(17 * found[place], assignment_cost(cost), rtol=1e-13, atol=0)
    assert gradcheck(sorted_transport_1d, (x.requires_grad_(), y.requires_grad_()))
    (at_equality,) = torch.autograd.grad(sorted_transport_1d(x, x.detach()).sum(), x)
    assert (at_equality == 0).all()
    assert sorted_transport_1d(x.half(), y.half()).dtype == torch.float32


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"iterations": 0}, "iterations"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"row_weights": torch.tensor([1.0, 0.0, 1.0])}, "row_weights"),
        ({"column_weights": torch.tensor([1.0, math.nan, 1.0])}, "column_weights"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(InputError, match=rf"^{said}: .*expected"):
        sinkhorn(torch.ones(3, 3), **{"epsilon": 0.1, "iterations": 5, **options})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", [None, 1e-6])
def test_costs_that_are_not_finite_are_refused(bad, tolerance):
    cost = torch.ones(4, 4)
    cost[1, 2] = bad
    with pytest.raises(InputError, match=r"^cost: "):
        sinkhorn(cost, epsilon=0.1, iterations=100, tolerance=tolerance)


@pytest.mark.parametrize(
    ("function", "shapes", "said"),
    [
        (pairwise_cost, [(3, 2), (3, 4)], "equal numbers of features"),
        (pairwise_cost, [(2, 3, 2), (3, 2)], "equal leading axes"),
        (sorted_transport_1d, [(3,), (4,)], "as many points"),
        (sorted_transport_1d, [(2, 0), (2, 0)], "at least one"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, shapes, said):
    unchecked = inspect.unwrap(function)  # users run it without the checks of annotations that tests add
    with pytest.raises(InputError, match=said):
        unchecked(*(torch.ones(shape) for shape in shapes))


def test_other_mistakes_are_refused():
    with pytest.raises(InputError, match="at least one row"):
        sinkhorn(torch.ones(0, 3), epsilon=0.1, iterations=1)
    with pytest.raises(InputError, match="at least 1"):
        pairwise_cost(torch.ones(3, 2), torch.ones(3, 2), p=0.5)
    unchecked = inspect.unwrap(sinkhorn)
    with pytest.raises(InputError, match="one of unroll, envelope, implicit"):
        unchecked(torch.ones(3, 3), epsilon=0.1, iterations=1, gradient="straight")
    with pytest.raises(InputError, match="3 weights a problem"):
        unchecked(torch.ones(3, 4), epsilon=0.1, iterations=1, row_weights=torch.ones(4))
