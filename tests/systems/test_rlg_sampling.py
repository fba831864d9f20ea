"""Samplers of `rlg` under exact models: what they sample, what they do not, and how many passes they take."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sanov.core.errors import InputError
from sanov.systems.rlg.gaussian import EXAMPLE, Pair, propagated
from sanov.systems.rlg.mixing import Guidance, Mixed
from sanov.systems.rlg.mixtures import Mixture
from sanov.systems.rlg.sampling import Sampler, sample
from sanov.systems.rlg.weights import Window

DOUBLE = {"dtype": torch.float64}
SAMPLERS = {
    "flow_ode": Sampler(),
    "flow_sde": Sampler(name="flow_sde"),
    "ddim": Sampler(name="ddim"),
    "ddim, eta 1": Sampler(name="ddim", eta=1.0),
    "ddpm": Sampler(name="ddpm"),
    "pc": Sampler(name="pc", corrections=2),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def normal(mean, spread, **how):
    return Mixture(torch.tensor([[mean]], **DOUBLE), torch.tensor(spread**2, **DOUBLE), **how)


def run(
    models, weight, sampler, *, rows=64, size=1, seed=0, dtype=torch.float64, prediction="velocity", path="flow", **how
):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, size, generator=generator, dtype=dtype)
    mixed = Mixed(models[0], models[1:], [weight] * (len(models) - 1), **how)
    return sample(mixed, start, sampler, prediction=prediction, path=path, generator=generator)


class Net:
    """A small network in float32 that is not smooth, and says how often it was asked."""

    def __init__(self, seed, classes=3):
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(7, 32, generator=generator) / 3
        self.last = torch.randn(32, 5, generator=generator) / 6
        self.classes = torch.randn(classes, 32, generator=generator)
        self.asked = 0

    def __call__(self, x, t, condition):
        self.asked += 1
        inputs = torch.cat([x, t[:, None], torch.ones_like(t)[:, None]], dim=1)
        hidden = inputs @ self.first + (0 if condition is None else self.classes[condition])
        return torch.tanh(hidden) @ self.last


NETS = Net(0), Net(1)


# -- the rule in a sampler --------------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("skip", [True, False])
def test_ends_are_the_models_own_runs_bit_for_bit(sampler, skip):
    """Weight 0 is the reference, weight 1 the policy, whether or not the other one is asked; in single rows, too."""
    alone = [run([net, net], 1.0, sampler, size=5, dtype=torch.float32).x for net in NETS]
    for weight, right in zip((0.0, 1.0), alone, strict=True):
        assert torch.equal(run(NETS, weight, sampler, size=5, dtype=torch.float32, skip=skip).x, right)
    if sampler.name != "pc":  # whose step size is one for all rows
        by_row = torch.arange(64) % 2
        mixed = run(NETS, by_row, sampler, size=5, dtype=torch.float32).x
        assert torch.equal(mixed, torch.where(by_row[:, None] == 1, alone[1], alone[0]))


@every_sampler
def test_equal_models_leave_the_weight_without_effect(sampler):
    one, two = (run([NETS[0], NETS[0]], w, sampler, size=5, dtype=torch.float32, skip=False).x for w in (0.0, 2.5))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("path", ["flow", "cosine"])
def test_noise_sample_velocity_and_score_give_the_same_samples(path, dtype, tolerance):
    """Mixing one is mixing all: exact models of each kind, with one grid for all."""
    found = []
    for prediction in ("noise", "sample", "velocity", "score"):
        pair = [normal(m, s, prediction=prediction, path=path) for m, s in ((0.0, 1.0), (1.0, 0.7))]
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, 1, generator=generator, **DOUBLE).to(dtype)
        mixed = Mixed(pair[0], pair[1:], [1.6])
        from sanov.systems.rlg.paths import step

        for before, after in pairwise([0.9, 0.6, 0.3, 0.1, 0.0]):
            each = step("ddim", before, after, prediction=prediction, path=path)
            x = each.keep * x + each.gain * mixed(x, before, None)
        found.append(x)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=tolerance, atol=tolerance)


@every_sampler
def test_equal_covariances_make_guidance_exact_step_by_step(sampler):
    """A linear reward on a normal reference: the run with two models is that with the tilt at beta / w, with its noise."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(3, 3, generator=generator, **DOUBLE)
    reference = Mixture(torch.randn(1, 3, generator=generator, **DOUBLE), root @ root.T + torch.eye(3, **DOUBLE))
    slope, beta = torch.tensor([1.0, -0.5, 0.3], **DOUBLE), 2.0
    policy = reference.tilted(slope, beta)
    for weight in (-1.0, 0.5, 2.0, 3.0):
        exact = reference.tilted(slope, beta / weight)
        guided = run([reference, policy], weight, sampler, size=3).x
        torch.testing.assert_close(guided, run([exact, exact], 1.0, sampler, size=3).x, rtol=0, atol=1e-12)
    moved = run([reference, policy], 2.0, sampler, size=3).x - run([reference, policy], 0.0, sampler, size=3).x
    if sampler.name in ("flow_ode", "ddim"):
        torch.testing.assert_close(moved.mean(0), 2 * reference._spread(slope) / beta, rtol=0, atol=1e-9)


def test_weights_of_several_policies_add_their_shifts():
    reference = normal(0.0, 1.0)
    policies = [reference.tilted(torch.tensor([g], **DOUBLE), 1.0) for g in (0.5, -2.0)]
    mixed = Mixed(reference, policies, [2.0, 0.25])
    start = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), **DOUBLE)
    plain = sample(Mixed(reference, policies, [0.0, 0.0]), start, Sampler())
    torch.testing.assert_close(sample(mixed, start, Sampler()).x, plain.x + 2 * 0.5 - 0.25 * 2)


def test_window_uses_one_model_alone_outside():
    for outside, place in (("policy", 1), ("reference", 0)):
        alone = run([NETS[place]] * 2, 1.0, Sampler(), size=5, dtype=torch.float32)
        never = run(NETS, 3.0, Sampler(), size=5, dtype=torch.float32, window=Window(0.0, 0.0, outside))
        assert torch.equal(never.x, alone.x)
        assert sum(never.passes) == 20
    half = run(NETS, 3.0, Sampler(), size=5, dtype=torch.float32, window=Window(0.5, 0.0))
    assert half.passes == (1,) * 10 + (2,) * 10


# -- passes -----------------------------------------------------------------------------------------------------------

CONDITION = torch.zeros(8, dtype=torch.long)


@pytest.mark.parametrize(
    ("weight", "guidance", "expected"),
    [
        (1.6, Guidance(), 2),
        (1.6, Guidance(4.5, 4.5), 4),
        (1.6, Guidance(4.5, 4.5, share_unconditional=True), 3),
        (0.0, Guidance(), 1),
        (1.0, Guidance(), 1),
        (0.0, Guidance(4.5, 4.5), 2),
        (1.0, Guidance(4.5, 4.5), 2),
        (1.6, Guidance(1.0, 4.5), 3),
    ],
)
def test_passes_are_counted_and_spared(weight, guidance, expected):
    nets = Net(0), Net(1)
    mixed = Mixed(nets[0], [nets[1]], [weight], guidance=guidance)
    start = torch.zeros(8, 5)
    found = sample(mixed, start, Sampler(steps=3), condition=CONDITION)
    assert found.passes == (expected,) * 3
    assert nets[0].asked + nets[1].asked == 3 * expected


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.6])
def test_measuring_changes_neither_samples_nor_counts(weight):
    start = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    found = [
        sample(
            Mixed(
                *NETS[:1], NETS[1:], [weight], guidance=Guidance(4.5, 3.0, share_unconditional=True), measure=measure
            ),
            start,
            Sampler(steps=3),
            condition=CONDITION,
        )
        for measure in (False, True)
    ]
    assert torch.equal(found[0].x, found[1].x)
    assert found[0].passes == found[1].passes
    assert found[1].path_kl is not None


def test_guidance_comes_before_the_mixture():
    mixed = Mixed(NETS[0], [NETS[1]], [1.6], guidance=Guidance(4.5, 3.0))
    x, t = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.full((8,), 0.5)
    own = [
        net(x, t, None) + g * (net(x, t, CONDITION) - net(x, t, None)) for net, g in zip(NETS, (4.5, 3.0), strict=True)
    ]
    torch.testing.assert_close(mixed(x, 0.5, CONDITION), own[0] + 1.6 * (own[1] - own[0]), rtol=0, atol=1e-5)


# -- what is sampled --------------------------------------------------------------------------------------------------

ROWS = 10_000
PAIR = normal(0.0, 1.0), normal(2.0, 0.5)


def moments(x):
    return float(x.mean()), float(x.var())


@pytest.mark.parametrize(("name", "noise"), [("flow_ode", 0.0), ("flow_sde", 0.7), ("flow_sde", math.sqrt(2))])
def test_samples_have_the_propagated_moments(name, noise):
    """To the error of 10,000 samples, four standard errors."""
    mean, variance = propagated(EXAMPLE, 1.6, name, 20, noise=noise)
    found = moments(run(PAIR, 1.6, Sampler(name=name, noise=noise), rows=ROWS).x)
    assert found[0] == pytest.approx(mean, abs=4 * math.sqrt(variance / ROWS))
    assert found[1] == pytest.approx(variance, rel=4 * math.sqrt(2 / ROWS))


def test_ode_does_not_sample_the_tilt_and_the_corrector_does():
    """With unequal variances the ODE's variance is .109 where .172 is wanted; Langevin steps on the mixture mend it."""
    mean, variance = EXAMPLE.target(1.6)
    ode = moments(run(PAIR, 1.6, Sampler(steps=100), rows=ROWS).x)
    assert not 0.9 < ode[1] / variance < 1.1
    corrected = Sampler(name="pc", steps=30, corrections=25, correction_size=0.1, last=0.01)
    found = moments(run(PAIR, 1.6, corrected, rows=ROWS).x)
    assert 0.9 < found[1] / variance < 1.1
    assert found[0] == pytest.approx(mean, abs=0.02)
    assert abs(ode[0] - mean) > 0.3


def test_corrector_has_the_stationary_law_of_its_step_size():
    """Langevin steps of size e on a precision L have variance 1 / (L (1 - e L / 2)): .1480 for L = 7 and e = .01."""
    precision, size, rows = 7.0, 0.01, 40_000
    generator = torch.Generator().manual_seed(0)
    x = math.sqrt(0.2) * torch.randn(rows, generator=generator, **DOUBLE)
    for _ in range(100):
        x = x - size * precision * x + math.sqrt(2 * size) * torch.randn(rows, generator=generator, **DOUBLE)
    assert float(x.var()) == pytest.approx(0.1480, rel=4 * math.sqrt(2 / rows))
    from sanov.systems.rlg.sampling import _corrected

    time = 0.5  # the model's noised precision there, and the relative size that makes e L = 0.07
    noised = normal(0.0, 1.0)
    wide = 0.25 + 0.25
    sampler = Sampler(name="pc", corrections=200, correction_size=0.07)
    start = math.sqrt(wide) * torch.randn(rows, 1, generator=generator, **DOUBLE)
    mixed = Mixed(noised, [noised], [1.0])
    found = _corrected(mixed, start, time, sampler, ("velocity", "flow"), None, generator)
    assert float(found.var()) == pytest.approx(wide / (1 - 0.07 / 2), rel=4 * math.sqrt(2 / rows))


def test_path_kl_is_that_of_the_steps_and_grows_with_the_square():
    """Equal variances: the two means differ by the same at all states, so that the sum is known."""
    shifted = normal(1.0, 1.0)
    sampler = Sampler(name="flow_sde", steps=10)
    by_hand = 0.0
    for each in sampler.plan("velocity", "flow"):
        a, b = 1 - each.before, each.before
        gap = (-1 * 1.0) - (-a + b) / (a * a + b * b) * a * 1.0  # of the velocities of N(1, 1) and N(0, 1)
        by_hand += (each.gain * gap) ** 2 / (2 * each.noise**2)
    for weight in (0.0, 0.5, 1.0, 2.0):
        found = run([normal(0.0, 1.0), shifted], weight, sampler, measure=True)
        assert found.path_kl is not None
        torch.testing.assert_close(found.path_kl, torch.full((64,), weight**2 * by_hand, **DOUBLE), rtol=1e-9, atol=0)
    assert run(NETS, 1.0, sampler, size=5, dtype=torch.float32).path_kl is None


# -- exact mixtures ---------------------------------------------------------------------------------------------------


def density(model, x, t):
    """The noised density of a mixture in one dimension, by its sum."""
    a, b = 1 - t, t
    wide = a * a * float(model.variance) + b * b
    weights = model.log_weights.softmax(0).numpy()
    parts = np.exp(-((x[:, None] - a * model.means[:, 0].numpy()) ** 2) / (2 * wide)) / math.sqrt(2 * math.pi * wide)
    return parts @ weights


BUMPS = Mixture(
    torch.tensor([[-1.0], [0.5], [2.0]], **DOUBLE),
    torch.tensor(0.09, **DOUBLE),
    torch.tensor([0.1, 0.0, -0.7], **DOUBLE),
)


def test_score_of_a_mixture_is_the_slope_of_its_log_density():
    x, t, h = np.linspace(-2, 3, 11), 0.4, 1e-5
    model = Mixture(BUMPS.means, BUMPS.variance, BUMPS.log_weights, prediction="score")
    slope = (np.log(density(BUMPS, x + h, t)) - np.log(density(BUMPS, x - h, t))) / (2 * h)
    found = model(torch.tensor(x)[:, None], torch.full((11,), t, **DOUBLE))[:, 0]
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("quadratic", [False, True])
def test_tilted_mixture_is_the_tilt_by_quadrature(quadratic):
    x, beta = np.linspace(-8, 10, 20_001), 0.8
    reward = -1.5 * (x - 0.3) ** 2 / 2 if quadratic else 0.7 * x
    slope = torch.tensor([0.7], **DOUBLE)
    tilted = BUMPS.tilted_quadratic(1.5, 0.3, beta) if quadratic else BUMPS.tilted(slope, beta)
    expected = density(BUMPS, x, 0.0) * np.exp(reward / beta)
    expected /= np.trapezoid(expected, x)
    np.testing.assert_allclose(density(tilted, x, 0.0), expected, rtol=1e-6, atol=1e-9)
    if not quadratic:
        assert tilted.mean_reward(slope) == pytest.approx(np.trapezoid(expected * 0.7 * x, x), rel=1e-6)


def test_tilt_without_a_density_is_refused():
    with pytest.raises(InputError, match="no proper tilted density exists"):
        BUMPS.tilted_quadratic(-12.0, 0.0, 1.0)
    with pytest.raises(InputError, match="beta"):
        BUMPS.tilted(torch.ones(1, **DOUBLE), 0.0)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_output_that_is_not_finite_names_step_and_model():
    def broken(x, t, condition):
        return torch.full_like(x, math.nan) if t[0] < 0.83 else x

    with pytest.raises(InputError, match=r"output of the policy is not finite at step 5, sigma 0.8"):
        run([NETS[0], broken], 1.6, Sampler(), size=5, dtype=torch.float32)
    with pytest.raises(InputError, match="output of the reference is not finite"):
        run([broken, NETS[0]], 1.6, Sampler(), size=5, dtype=torch.float32)


def test_weight_that_is_none_is_refused_in_a_run():
    with pytest.raises(InputError, match=r"shape \(3,\) at sigma 1"):
        run(NETS, [1.0, 2.0, 3.0], Sampler(), size=5, dtype=torch.float32)


def test_target_of_normals_by_the_same_formula():
    pair = Pair(0.0, 1.0, 2.0, 0.5)
    exact = normal(0.0, 1.0).tilted_quadratic(3.0 * 1.6, 8 / 3, 1.0)
    assert pair.target(1.6) == pytest.approx((float(exact.means[0]), float(exact.variance)))
