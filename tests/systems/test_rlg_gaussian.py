"""Closed forms of `rlg`: against tables, brute force, and the limits that are known."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from sanov.core.errors import InputError
from sanov.systems.rlg.gaussian import EXAMPLE, Pair, check_proper, correlation, laws, propagated, self_check
from sanov.systems.rlg.paths import correction, grid, levels, predicted, sampler_steps, step

ROOT2 = math.sqrt(2)
TABLE = {  # of the specification: w, wanted, eta = 0, 0.245, 1, 20; mean and variance
    0.5: ((1.600, 0.4000), (1.226, 0.5000), (1.259, 0.4873), (1.333, 0.4621), (1.564, 0.4069)),
    1.0: ((2, 0.25),) * 5,
    1.6: ((2.207, 0.1724), (2.546, 0.1088), (2.486, 0.1230), (2.377, 0.1443), (2.219, 0.1703)),
    2.0: ((2.286, 0.1429), (2.760, 0.0625), (2.663, 0.0820), (2.500, 0.1094), (2.300, 0.1403)),
    3.0: ((2.400, 0.1000), (3.000, 0.0156), (2.845, 0.0380), (2.625, 0.0666), (2.414, 0.0974)),
}
STEPS = {
    ("flow_ode", 0.0): {20: (2.5497, 0.0894), 50: (2.5477, 0.1007), 200: (2.5468, 0.1067), 1000: (2.5465, 0.1084)},
    ("flow_sde", 0.7): {20: (2.4837, 0.1167), 50: (2.4848, 0.1211), 200: (2.4854, 0.1230)},
    ("flow_sde", ROOT2): {200: (2.3755, 0.1445)},
}


@pytest.mark.parametrize("weight", TABLE)
def test_table_of_laws(weight):
    wanted, *found = TABLE[weight]
    assert EXAMPLE.target(weight) == pytest.approx(wanted, abs=6e-4)
    for eta, pair in zip((0.0, 0.245, 1.0, 20.0), found, strict=True):
        assert EXAMPLE.law(weight, eta) == pytest.approx(pair, abs=6e-4), eta


@pytest.mark.parametrize(("sampler", "count"), [(key, count) for key, found in STEPS.items() for count in found])
def test_table_of_steps(sampler, count):
    """What so many Euler steps give, without any sampling."""
    name, noise = sampler
    assert propagated(EXAMPLE, 1.6, name, count, noise=noise) == pytest.approx(STEPS[sampler][count], abs=6e-5)


@pytest.mark.parametrize(
    ("name", "noise", "eta"), [("flow_ode", 0.0, 0.0), ("flow_sde", 0.7, 0.245), ("flow_sde", ROOT2, 1.0)]
)
def test_many_steps_reach_the_closed_forms(name, noise, eta):
    for weight in (0.5, 1.6):
        found = propagated(EXAMPLE, weight, name, 1500, noise=noise)
        assert found == pytest.approx(EXAMPLE.law(weight, eta), abs=3e-3)


@pytest.mark.parametrize("eta", [0.0, 0.245, 1.0])
@pytest.mark.parametrize("weight", [-1.0, 0.5, 1.6])
def test_integral_and_integration_agree(weight, eta):
    """Two ways to the same law: quadrature, and the moments' differential equations."""
    assert EXAMPLE._integrated(weight, eta) == pytest.approx(EXAMPLE.law(weight, eta), rel=1e-5, abs=1e-5)


def test_elementary_forms():
    """eta = 1 has a formula without an integral, with a logarithm at w = 1/2."""
    z = 0.25
    for weight in (1.6, 3.0):
        variance = (z ** (2 * weight) - z) / ((1 - z) * (1 - 2 * weight))
        assert EXAMPLE.law(weight, 1.0) == pytest.approx((2 * (1 - z**weight) / (1 - z), variance), rel=1e-8)
    assert EXAMPLE.law(0.5, 1.0)[1] == pytest.approx(-z * math.log(z) / (1 - z), rel=1e-8)
    assert Pair(0.0, 1.0, 0.0, 1.5).law(2.0, 0.0)[1] == pytest.approx(5.0625, rel=1e-5)
    assert Pair(0.0, 1.0, 0.0, 1.5).law(2.0, 1.0)[1] == pytest.approx(6.2344, rel=1e-4)


def test_equal_variances_shift_and_nothing_else():
    """The mean is w exactly, at any number of steps; the variance is Euler's, whatever w."""
    pair = Pair(0.0, 1.0, 1.0, 1.0)
    for weight in (-1.0, 0.0, 1.6, 3.0):
        mean, variance = propagated(pair, weight, "flow_ode", 20)
        assert mean == pytest.approx(weight, abs=1e-12)
        assert variance == pytest.approx(0.87928, abs=5e-6)
        assert pair.law(weight, 0.7) == (weight, 1.0)
    assert propagated(pair, 2.0, "flow_ode", 1000)[1] == pytest.approx(0.99743, abs=5e-6)


def moment(x, k, weight):
    return x**k * math.exp(-x * x / 2 - weight * 3 * (x - 8 / 3) ** 2 / 2)


def test_target_is_the_tilt_by_quadrature():
    """The reward -q (x - c)^2 / 2 of the example, q / beta = 3 and c = 8 / 3, at beta / w."""

    for weight in (0.5, 1.0, 2.0):
        mass, first, second = (quad(moment, -12, 12, (k, weight))[0] for k in range(3))
        mean = first / mass
        assert EXAMPLE.target(weight) == pytest.approx((mean, second / mass - mean**2), rel=1e-6)


def test_ode_overshoots_and_falls_back():
    """The ODE's mean has a peak of 3.036 near w = 3.8; the mean that is wanted grows for ever."""
    weights = np.arange(0.0, 8.01, 0.1)
    means = [EXAMPLE.law(weight, 0.0)[0] for weight in weights]
    assert max(means) == pytest.approx(3.036, abs=1e-3)
    assert weights[int(np.argmax(means))] == pytest.approx(3.8, abs=0.2)
    wanted = [EXAMPLE.target(weight)[0] for weight in weights]
    assert np.all(np.diff(wanted) > 0)


def test_correlation_with_the_first_noise():
    assert correlation(1.0, 0.7) == pytest.approx(0.3244, abs=1e-4)
    assert correlation(1.0, ROOT2) == pytest.approx(0.0101, abs=1e-4)
    assert correlation(1.0, 0.0) == 1.0
    assert correlation(1.0, 0.7) ** 2 == pytest.approx(0.105, abs=1e-3)  # how much of a shift is lost


# -- improper tilts ---------------------------------------------------------------------------------------------------


def test_improper_tilt_is_found_though_samplers_run():
    wide = Pair(0.0, 1.0, 0.0, 1.5)
    assert wide.threshold == pytest.approx(1.8)
    with pytest.raises(InputError, match=r"precision at w = 2 is -0.1111: no proper tilted density .* below 1.8"):
        check_proper(wide, 2.0)
    check_proper(wide, 1.79)
    assert all(map(math.isfinite, wide.law(2.0, 0.0)))
    narrow = Pair(0.0, 1.0, 0.0, 0.5)
    with pytest.raises(InputError, match=r"a weight above -0.3333"):
        check_proper(narrow, -0.5)
    check_proper(narrow, -0.3)
    check_proper(Pair(0.0, 1.0, 5.0, 1.0), -40.0)
    table = laws(wide, [1.0, 2.0])
    assert table["target_variance"].to_list() == pytest.approx([2.25, None])
    assert table["ode_variance"][1] == pytest.approx(5.0625, rel=1e-5)


def test_self_check_passes_and_can_fail(monkeypatch):
    assert self_check()["passed"].all()
    monkeypatch.setattr("sanov.systems.rlg.gaussian.STEPS", 10)
    assert not self_check()["passed"].all()


# -- steps ------------------------------------------------------------------------------------------------------------


def test_grid_ends_at_data():
    assert grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grid(4, "noise")[0] < 1
    assert grid(4, last=0.1) == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert grid(1, last=0.1) == [1.0, 0.0]
    with pytest.raises(InputError, match="steps: the value is 0"):
        grid(0)


@pytest.mark.parametrize("path", ["flow", "cosine"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "sample", "score"])
def test_step_is_affine_in_what_the_network_says(path, prediction):
    """For any x0 and eps, the step gives what DDIM writes: a' x0 + sqrt(b'^2 - s^2) eps."""
    before, after, x0, eps = 0.7, 0.4, 0.3, -1.2
    (a, b), (a_after, b_after) = levels(path, before), levels(path, after)
    p, q = predicted(prediction, path, before)
    for eta in (0.0, 0.5, 1.0):
        found = step("ddim", before, after, prediction=prediction, path=path, eta=eta)
        moved = found.keep * (a * x0 + b * eps) + found.gain * (p * x0 + q * eps)
        assert moved == pytest.approx(a_after * x0 + math.sqrt(b_after**2 - found.noise**2) * eps, abs=1e-12)
    keep, gain = correction(before, prediction=prediction, path=path)
    assert keep * (a * x0 + b * eps) + gain * (p * x0 + q * eps) == pytest.approx(-eps / b)


def test_noise_of_ddpm_is_the_published_one():
    """On a path that keeps the variance: (1 - abar') / (1 - abar) (1 - abar / abar')."""
    found = step("ddpm", 0.7, 0.4, path="cosine")
    bar, after = (levels("cosine", t)[0] ** 2 for t in (0.7, 0.4))
    assert found.noise**2 == pytest.approx((1 - after) / (1 - bar) * (1 - bar / after))


def test_ddim_without_noise_is_the_ode_of_a_flow():
    euler, ddim = sampler_steps("flow_ode", 7), sampler_steps("ddim", 7)
    for one, other in zip(euler, ddim, strict=True):
        assert (one.keep, one.gain, one.noise) == pytest.approx((other.keep, other.gain, other.noise), abs=1e-12)


def test_flow_sde_is_written_as_released():
    """std = a sqrt(s / (1 - s)), and the second time in place of 1."""
    first, second = sampler_steps("flow_sde", 4, noise=0.7)[:2]
    for found, sigma, held in ((first, 1.0, 0.75), (second, 0.75, 0.75)):
        std, dt = 0.7 * math.sqrt(sigma / (1 - held)), -0.25
        assert found.keep == pytest.approx(1 + std**2 / (2 * sigma) * dt)
        assert found.gain == pytest.approx((1 + std**2 * (1 - sigma) / (2 * sigma)) * dt)
        assert found.noise == found.reach == pytest.approx(std * math.sqrt(-dt))


def test_samplers_of_flows_refuse_other_paths():
    with pytest.raises(InputError, match="sampler=flow_ode: the path is 'cosine'; expected ddim"):
        step("flow_ode", 0.5, 0.4, path="cosine")
    with pytest.raises(InputError, match="x0 does not follow from noise at t = 1"):
        step("ddim", 1.0, 0.9, prediction="noise")
