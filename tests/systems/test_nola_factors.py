"""The factors of an update against materialised bases: sums, gradients, norms, and what they can reach."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sanov.core.errors import InputError
from sanov.random_bases import random_bases
from sanov.systems.nola.factors import Basis, Space, combine
from sanov.systems.nola.updates import Plan, Update


def space(**changed):
    sizes = {"inputs": 12, "outputs": 10, "rank": 3, "num_basis_a": 20, "num_basis_b": 33}
    return Space.of(changed.pop("seed", 4), **{**sizes, **changed})


def normal(count, seed=0, dtype=torch.float64):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_gradient_is_that_of_materialised_bases():
    basis = Basis(7, 1, 21, (4, 5))
    dense = random_bases(7, 1, (21, 4, 5)).double()
    coefficients, weight = normal(21).requires_grad_(), normal(20, 1).view(4, 5)
    (combine(coefficients, basis).sin() * weight).sum().backward()
    own = coefficients.detach().clone().requires_grad_()
    made = torch.einsum("k,krc->rc", own, dense)
    (made.sin() * weight).sum().backward()
    assert (coefficients.grad - own.grad).abs().max() <= 1e-12
    inner = torch.einsum("krc,rc->k", dense, weight * made.detach().cos())
    assert (coefficients.grad - inner).abs().max() <= 1e-12


@pytest.mark.parametrize("kept", [False, True])
def test_gradcheck(kept):
    basis = Basis(1, 2, 40, (3, 5), kept=kept)
    assert torch.autograd.gradcheck(lambda c: combine(c, basis), (normal(40).requires_grad_(),))


def test_a_second_derivative_is_refused():
    coefficients = normal(5).requires_grad_()
    value = combine(coefficients, Basis(1, 1, 5, (2, 2))).pow(2).sum()
    with pytest.raises(InputError, match="first derivative"):
        torch.autograd.grad(value, coefficients, create_graph=True)


@pytest.mark.parametrize("law", ["uniform", "rademacher", "sparse"])
def test_chunks_and_cache_change_no_bit(law):
    alpha, beta = normal(150, 1, torch.float32), normal(150, 2, torch.float32)
    found = []
    for chunk, kept in ((16, False), (64, False), (160, False), (64, True)):
        chosen = space(num_basis_a=150, num_basis_b=150, chunk=chunk, kept=kept, law=law)
        a, b = alpha.clone().requires_grad_(), beta.clone().requires_grad_()
        first, second = chosen.factors(a, b)
        (second @ first).pow(2).sum().backward()
        found.append([first, second, a.grad, b.grad])
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_factors_are_the_sums_of_the_specification():
    alpha, beta = normal(20), normal(33, 1)
    u, v = (random_bases(4, stream, shape).double() for stream, shape in ((1, (20, 3, 12)), (2, (33, 10, 3))))
    offset = random_bases(4, 0, (1, 3, 12)).double()[0] / math.sqrt(12)
    sums = torch.einsum("k,krc->rc", alpha, u), torch.einsum("k,krc->rc", beta, v)
    expected = {
        "gpt": (offset + sums[0] / math.sqrt(20), sums[1] / math.sqrt(33)),
        "readme": (offset + sums[0], sums[1]),
        "vit": (sums[0] / math.sqrt(12 * 3), sums[1] / math.sqrt(10 * 3)),
    }
    for preset, factors in expected.items():
        for found, wanted in zip(space(preset=preset).factors(alpha, beta), factors, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7)  # A_0 is a multiple of 2^-23, exact in float32


@pytest.mark.parametrize("preset", ["gpt", "readme"])
def test_the_first_gradient_moves_beta_alone(preset):
    update = Update(space(preset=preset), 1.0)
    update.delta().mul(normal(120, 3, torch.float32).view(10, 12)).sum().backward()
    assert update.nola_alpha.grad.abs().max() == 0
    assert update.nola_beta.grad.abs().max() > 0


def test_without_an_offset_zero_is_a_stationary_point():
    chosen = space(preset="vit")
    alpha, beta = torch.zeros(20, requires_grad=True), torch.zeros(33, requires_grad=True)
    a, b = chosen.factors(alpha, beta)
    ((b @ a) - 1).pow(2).sum().backward()
    assert alpha.grad.abs().max() == beta.grad.abs().max() == 0


def test_norm_of_a_sum_of_bases():
    """E |(1/sqrt k) sum alpha U|^2 = |alpha|^2 m r / (3 k) over draws of the bases."""
    alpha = normal(20)
    norms = [float(combine(alpha, Basis(seed, 1, 20, (4, 6))).pow(2).sum() / 20) for seed in range(200)]
    expected = float(alpha.pow(2).sum()) * 24 / 3 / 20
    assert abs(np.mean(norms) - expected) < 4 * np.std(norms, ddof=1) / math.sqrt(200)


def test_captured_energy_of_a_target():
    """A span of k random directions of d holds the share k / d of any target, on average."""
    target = normal(64)
    shares = []
    for seed in range(200):
        bases = random_bases(seed, 1, (16, 64)).double().T
        kept = torch.linalg.lstsq(bases, target[:, None]).solution
        shares.append(float((bases @ kept).pow(2).sum() / target.pow(2).sum()))
    assert abs(np.mean(shares) - 0.25) < 4 * 0.0754 / math.sqrt(200)


def test_as_many_bases_as_dimensions_reach_any_lora_pair():
    chosen = space(num_basis_a=40, num_basis_b=31, outputs=10)
    a, b = normal(36, 5).view(3, 12), normal(30, 6).view(10, 3)
    u, v = (random_bases(4, s, (n, x)).double().T for s, n, x in ((1, 40, 36), (2, 31, 30)))
    zero = torch.zeros(40, dtype=torch.float64), torch.zeros(31, dtype=torch.float64)
    offset, _ = chosen.factors(*zero)
    alpha = math.sqrt(40) * torch.linalg.lstsq(u, (a - offset).reshape(-1, 1), driver="gelsd").solution[:, 0]
    beta = math.sqrt(31) * torch.linalg.lstsq(v, b.reshape(-1, 1), driver="gelsd").solution[:, 0]
    found = chosen.factors(alpha, beta)
    assert (found[0] - a).abs().max() < 1e-8
    assert (found[1] - b).abs().max() < 1e-8


def test_one_coefficient_moves_a_along_one_random_matrix():
    chosen = space(num_basis_a=1, num_basis_b=1)
    a, _ = chosen.factors(torch.tensor([2.0]), torch.tensor([1.0]))
    start, _ = chosen.factors(torch.tensor([0.0]), torch.tensor([1.0]))
    torch.testing.assert_close(a - start, 2 * random_bases(4, 1, (1, 3, 12))[0])


def test_training_beta_reaches_least_squares():
    """With A fixed the loss is a quadratic in beta, of which an independent solver knows the minimum."""
    chosen = space(num_basis_a=4, num_basis_b=6, rank=2, kept=True)
    x, y = normal(240, 1).view(20, 12), normal(200, 2).view(20, 10)
    alpha, beta = torch.zeros(4, dtype=torch.float64), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([beta], max_iter=60, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        a, b = chosen.factors(alpha, beta)
        value = (x @ a.T @ b.T - y).pow(2).mean()
        value.backward()
        return value

    optimizer.step(loss)
    a, _ = chosen.factors(alpha, beta.detach())
    v = random_bases(4, 2, (6, 10, 2)).double() / math.sqrt(6)
    design = torch.stack([(x @ a.T @ basis.T).flatten() for basis in v], dim=1)
    best = (design @ torch.linalg.lstsq(design, y.flatten()[:, None]).solution - y.flatten()[:, None]).pow(2).mean()
    assert abs(float(loss().detach() - best)) < 1e-6


def test_rank_of_an_update():
    update = Update(space(), 1.0)
    nn.init.normal_(update.nola_alpha), nn.init.normal_(update.nola_beta)
    values = torch.linalg.svdvals(update.delta().double().detach())
    assert values[2] > 1e-3 * values[0]
    assert values[3:].max() < 1e-6 * values[0]


def test_bases_of_one_seed_and_shape_are_shared():
    pool = {}
    plan = Plan(kept=True)
    first, second, other = plan.space((8, 6), 3, pool), plan.space((8, 6), 3, pool), plan.space((8, 6), 4, pool)
    assert first.first is second.first
    assert first.first is not other.first


@pytest.mark.parametrize("chunk", [0, 8, 24])
def test_a_chunk_that_would_change_sums_is_refused(chunk):
    with pytest.raises(InputError, match="multiple of 16"):
        Basis(0, 1, 4, (2, 2), chunk=chunk)


@pytest.mark.parametrize("field", ["rank", "num_basis_a", "num_basis_b", "alpha"])
def test_a_size_out_of_range_is_refused(field):
    with pytest.raises(InputError, match=field):
        Plan(**{field: 0.0 if field == "alpha" else 0})
