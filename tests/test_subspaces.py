"""Principal directions, projectors and rotations: identities, NumPy's SVD, and what a rotation must leave alone."""

import math

import numpy as np
import pytest
import torch

from sanov.core.errors import InputError
from sanov.subspaces import column_space, hadamard, null_space_projector, orthogonal, principal_directions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(rows, width, seed=0):
    scales = torch.linspace(3, 0.5, width, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator(seed), dtype=torch.float64) * scales + 1.5


@pytest.mark.parametrize(("rows", "width"), [(200, 6), (5, 9)])
def test_directions_are_those_of_the_singular_value_decomposition(rows, width):
    x = drawn(rows, width)
    found = principal_directions(x, 3)
    centred = (x - x.mean(dim=0)).numpy()
    _, values, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.variances[:3], values[:3] ** 2 / rows, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.directions.numpy() * right[:3].T, axis=0)), 1.0, rtol=1e-10)
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.mean, x.mean(dim=0))


def test_the_score_that_is_largest_in_size_is_positive():
    x = drawn(50, 4)
    found = principal_directions(x, 4)
    scores = (x - found.mean) @ found.directions
    assert (scores.gather(0, scores.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_directions_turn_with_the_rows(seed):
    x, turn = drawn(40, 5, seed), orthogonal(5, generator(seed))
    plain, turned = principal_directions(x, 3), principal_directions(x @ turn, 3)
    np.testing.assert_allclose(turned.directions, turn.T @ plain.directions, atol=1e-9)


@pytest.mark.parametrize("rows", [3, 30])
def test_rank_counts_what_is_more_than_rounding(rows):
    x = drawn(rows, 2) @ torch.randn(2, 6, generator=generator(), dtype=torch.float64)
    for values in (x, x.float()):
        found = principal_directions(values, 1)
        assert len(found.variances) == min(rows, 6)
        assert found.rank(float(x.std())) == 2
        assert found.rank(1e9) == 0
    assert principal_directions(torch.zeros(rows, 4), 2).rank(1.0) == 0


@pytest.mark.parametrize("shape", [(3, 9), (9, 3)])
def test_more_directions_than_rows_or_columns_are_refused(shape):
    with pytest.raises(InputError, match=r"4 directions of .* expected at most 3"):
        principal_directions(torch.zeros(shape), 4)


def test_a_basis_of_columns():
    weight = drawn(7, 3)
    basis = column_space(torch.cat([weight, weight @ torch.ones(3, 1, dtype=torch.float64)], dim=1))
    assert basis.shape == (7, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(basis @ (basis.T @ weight), weight, atol=1e-12)
    assert column_space(torch.zeros(4, 2)).shape == (4, 0)


def test_a_projector_leaves_what_a_map_does_not_read():
    weight = drawn(7, 3)
    weight = torch.cat([weight, weight[:, :1]], dim=1)  # a column twice
    p = null_space_projector(weight)
    np.testing.assert_allclose(p @ weight, 0, atol=1e-12)
    np.testing.assert_allclose(p @ p, p, atol=1e-12)
    np.testing.assert_allclose(p, p.T, atol=1e-15)
    assert float(p.trace()) == pytest.approx(4)
    np.testing.assert_allclose(null_space_projector(torch.zeros(3, 2)), np.eye(3))


def test_rotations_are_uniform():
    """Haar: entries have mean 0 and variance 1/k, and no sign or column is preferred (six standard errors)."""
    draws = 4000
    source = generator(3)
    q = torch.stack([orthogonal(3, source) for _ in range(draws)])
    identity = torch.eye(3, dtype=torch.float64).expand_as(q)
    np.testing.assert_allclose(q.transpose(1, 2) @ q, identity, atol=1e-12)
    tolerance = 6 / math.sqrt(draws)
    assert q.mean(dim=0).abs().max() < tolerance * math.sqrt(1 / 3)
    assert (q.square().mean(dim=0) - 1 / 3).abs().max() < tolerance * math.sqrt(2 * 2 / (9 * 5))  # Beta(1/2, 1)
    assert abs(float((torch.linalg.det(q) > 0).double().mean()) - 0.5) < tolerance * 0.5


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_hadamard_equalises_variances_and_hides_the_last_direction(k):
    q = hadamard(k)
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(q.abs(), 1 / math.sqrt(k))
    variances = torch.arange(k, 0, -1, dtype=torch.float64).square()
    diagonal = (q.T @ torch.diag(variances) @ q).diagonal()
    np.testing.assert_allclose(diagonal, float(variances.sum()) / k)
    blind = q @ torch.ones(k, dtype=torch.float64) / math.sqrt(k)
    np.testing.assert_allclose(blind, np.eye(k)[-1], atol=1e-12)


@pytest.mark.parametrize(("k", "told"), [(3, "2 or 4"), (6, "4 or 8"), (0, "power of two")])
def test_hadamard_needs_a_power_of_two(k, told):
    with pytest.raises(InputError, match=told):
        hadamard(k)
