"""Tuning of `rlg`: each method against what it is known to reach, or against its own formula written out."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sanov.core.errors import InputError, SanovWarning
from sanov.systems.rlg import policy_gradient, training
from sanov.systems.rlg.paths import levels, predicted
from sanov.systems.rlg.policy_gradient import PolicyGradient
from sanov.systems.rlg.reading import Images
from sanov.systems.rlg.rewards import Reward, ink, load, symmetry
from sanov.systems.rlg.training import Matching, Pairs, Task, Tune, effective_sample_size, reward_weights

DOUBLE = {"dtype": torch.float64}


def images(rows=64, labels=True):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(rows, 1, 4, 4, generator=generator) * 2 - 1
    codes = torch.arange(rows) % 2
    return Images(pixels, codes if labels else None, ("a", "b") if labels else (), 1.0, "made up")


# -- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["flow", "cosine"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "sample", "score"])
def test_noised_images_and_targets_solve_for_image_and_noise(prediction, path):
    x0, eps, t = torch.randn(5, 2, **DOUBLE), torch.randn(5, 2, **DOUBLE), torch.linspace(0.1, 0.9, 5, **DOUBLE)
    x, target = training.noised(x0, eps, t, prediction, path)
    for row in range(5):
        (a, b), (p, q) = levels(path, float(t[row])), predicted(prediction, path, float(t[row]))
        solved = np.linalg.solve([[a, b], [p, q]], torch.stack([x[row], target[row]]).numpy())
        np.testing.assert_allclose(solved, torch.stack([x0[row], eps[row]]).numpy(), atol=1e-9)


class Table(nn.Module):
    """The best constant at each of a few times: what a network of infinitely many units says, where nothing is seen."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition=None):
        return self.value.view(1, 1, 1, 1).expand_as(x)


@pytest.mark.filterwarnings("ignore:.*effective sample")
def test_weighted_matching_has_the_tilted_mean():
    """At x0-prediction the best constant is the mean of the images under the weights."""
    data, beta = images(), 0.05
    rewards = ink(data.pixels).double()
    weights = reward_weights(rewards, beta)
    assert float(weights.mean()) == pytest.approx(1.0)
    task = Matching(data, weights, "sample", "flow", 64, seed=0)
    model = Table()
    how = Task(task.batches, task.loss, 100, 0.05)
    training.run(how, model, seed=0, out=None, resume=False, checkpoint_every=0)
    tilted = (rewards / beta).softmax(0) @ data.pixels.double().flatten(1).mean(1)
    assert model.value.item() == pytest.approx(float(tilted), abs=2e-3)
    assert abs(float(tilted) - float(data.pixels.mean())) > 0.02


def test_effective_sample_size_and_its_warning():
    assert effective_sample_size(torch.ones(50, **DOUBLE)) == pytest.approx(50)
    assert effective_sample_size(torch.tensor([1.0, 0, 0], **DOUBLE)) == pytest.approx(1)
    rewards = torch.randn(1000, generator=torch.Generator().manual_seed(0), **DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward_weights(rewards, 2.0)
    with pytest.warns(
        SanovWarning, match=r"effective sample of \d+ of 1000 images; the smallest beta that leaves 100 is"
    ) as w:
        reward_weights(rewards, 0.2)
    smallest = float(str(w[0].message).split("that leaves 100 is ")[1].split(",")[0])
    assert 100 <= effective_sample_size(training._weights(rewards, smallest)) < 110


def test_classes_are_dropped_and_kept():
    task = Matching(images(), None, "velocity", "flow", 64, seed=0, drop=0.5, nothing=2)
    told = torch.cat([task.batches(step, nn.Identity())[0]["condition"] for step in range(20)])
    assert float((told == 2).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert set(told.tolist()) == {0, 1, 2}
    assert "condition" not in Matching(images(), None, "velocity", "flow", 64, seed=0).batches(0, nn.Identity())[0]


def test_classifier_learns_its_labels(monkeypatch):
    monkeypatch.setattr(training, "CLASSIFIER_STEPS", 100)
    data = images()
    bright = ink(data.pixels) > ink(data.pixels).median()
    data = Images(data.pixels, bright.long(), ("dark", "bright"), 1.0, "made up")
    found = training.classifier(data, seed=0)
    assert float((found(data.pixels.flatten(1)).argmax(1) == data.labels).float().mean()) > 0.95
    assert not any(weight.requires_grad for weight in found.parameters())


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_preference_loss_is_written_as_released():
    d, ref = torch.tensor([0.1, -0.2], **DOUBLE), torch.tensor([0.05, 0.1], **DOUBLE)
    found = training.preference_losses(d, ref, 4.0)
    expected = [math.log(1 + math.exp(2.0 * (x - y))) for x, y in zip(d, ref, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, **DOUBLE))
    assert training.preference_losses(d, d, 5000.0)[0].item() == pytest.approx(math.log(2))


def test_pairs_are_of_one_class_and_share_noise_and_time():
    data = images()
    rewards = ink(data.pixels).double()
    pairs = Pairs(data, rewards, Table(), "velocity", "flow", 10.0, 32, nothing=2)
    better, worse = pairs._drawn(200)
    assert bool((rewards[better] > rewards[worse]).all())
    assert torch.equal(data.labels[better], data.labels[worse])
    torch.manual_seed(0)
    (batch,) = pairs.batches(0, Table())
    a, b = (value.view(-1, 1, 1, 1) for value in levels("flow", batch["t"]))
    eps = [(batch[f"x{end}"] - a * (batch[f"x{end}"] - b * batch[f"target{end}"])) / b for end in ("", "_worse")]
    torch.testing.assert_close(eps[0], eps[1], rtol=1e-3, atol=1e-4)
    assert pairs.loss(Table(), batch)["preference"][0].item() == pytest.approx(32 * math.log(2), rel=1e-5)


def test_equal_rewards_make_no_pairs():
    with pytest.raises(InputError, match="no two images of one class differ"):
        Pairs(images(), torch.zeros(64, **DOUBLE), Table(), "velocity", "flow", 10.0, 32)


# -- gradients of the reward ------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Exact velocity of N(m, 1): m = 0 is the reference, m = 1 / beta its tilt by x at beta."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition=None):
        b = float(t[0])
        a = 1 - b
        slope = (b - a) / (a * a + b * b)
        return slope * (x - a * self.mean) - self.mean


FIRST = Reward("x", lambda x, condition: x.flatten(1)[:, 0])


def learned(method, *, steps, beta=1.0, rate=0.1, rows=256, **options):
    model = Shifted()
    tune = Tune(method=method, batch_size=rows, group_size=rows // 2, **options)
    task = PolicyGradient(Shifted(), FIRST, tune, beta, (1, 1, 1), "velocity", "flow")
    how = Task(task.batches, task.loss, steps, rate, tune.updates)
    history = training.run(how, model, seed=0, out=None, resume=False, checkpoint_every=0)
    return float(model.mean.detach()), history


@pytest.mark.parametrize(("beta", "updates"), [(1.0, 1), (2.0, 2)])
def test_exact_flow_grpo_ends_at_the_tilt(beta, updates):
    """The reward x on N(0, 1) at beta: the policy is to be N(1 / beta, 1)."""
    mean, _ = learned("flow_grpo_exact", steps=60, rollout_steps=20, updates=updates, beta=beta)
    assert mean == pytest.approx(1 / beta, abs=0.07)


def test_noise_with_memory_falls_short(monkeypatch):
    """With little noise a reward can only move what is independent of the first noise: 1 - corr^2 of the way."""
    recipe = policy_gradient.RECIPES["flow_grpo_exact"]
    monkeypatch.setitem(policy_gradient.RECIPES, "flow_grpo_exact", replace(recipe, noise=0.35))
    mean, _ = learned("flow_grpo_exact", steps=60, rollout_steps=20)
    assert mean < 0.85


@pytest.mark.parametrize("method", ["flow_grpo", "ddpo"])
def test_released_methods_raise_the_reward(method):
    mean, history = learned(method, steps=25, rate=0.02, rollout_steps=8)
    assert mean > 0.15
    rewards = [report["reward"] for report in history.reports.values()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1


def by_hand(task, batch, model):
    """The released objectives, a transition at a time."""
    recipe, total, kl = task.recipe, 0.0, 0.0
    for place, step in enumerate(task.trained):
        for row in range(len(batch["advantages"])):
            x, after = batch["x"][row, place], batch["after"][row, place]
            mean = step.keep * x + step.gain * model(x[None], torch.tensor([step.before]))[0]
            reduce = torch.sum if recipe.summed else torch.mean
            log = -reduce((after - mean) ** 2) / (2 * step.noise**2)
            ratio = math.exp(float(log - batch["log_old"][row, place]))
            advantage = float(batch["advantages"][row, place])
            clip = 0.2 if recipe.summed else 1e-4
            total -= min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
            std2 = step.noise**2 if recipe.summed else step.noise**2 / (step.before - step.after)
            kl += float(reduce((mean - batch["mean_reference"][row, place]) ** 2) / (2 * std2))
    return total, kl


@pytest.mark.parametrize("method", ["flow_grpo", "flow_grpo_exact", "ddpo"])
def test_objective_is_written_as_released(method):
    tune = Tune(method=method, batch_size=6, group_size=3, rollout_steps=4)
    model = Shifted()
    task = PolicyGradient(Shifted(), FIRST, tune, 0.3, (1, 1, 1), "velocity", "flow")
    torch.manual_seed(0)
    (batch,) = task.batches(0, model)
    with torch.no_grad():
        model.mean += 0.05  # the policy has moved since
        found = task.loss(model, batch)
        total, kl = by_hand(task, batch, model)
    assert float(found["policy"][0]) == pytest.approx(total, rel=1e-4)
    assert ("kl" in found) == (method != "ddpo")
    if "kl" in found:
        assert float(found["kl"][0]) == pytest.approx(kl, rel=1e-4)
        assert found["kl"][1] == 0.3
    trained = {"flow_grpo": 3, "flow_grpo_exact": 4, "ddpo": 3}
    assert len(task.trained) == trained[method]
    mean = batch["advantages"].view(2, 3, -1).mean(1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)


def test_group_shares_its_class():
    task = PolicyGradient(Told(), FIRST, Tune(method="ddpo", batch_size=12, group_size=3, rollout_steps=2), 1.0, (1, 1, 1),
                          "velocity", "flow", classes=5)  # fmt: skip
    (batch,) = task.batches(0, Told())
    assert all(len(group.unique()) == 1 for group in batch["condition"].view(4, 3))


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, condition):
        return x * self.weight + condition.view(-1, 1, 1, 1)


def test_groups_that_do_not_fit_are_refused():
    tune = Tune(method="ddpo", batch_size=10, group_size=4)
    with pytest.raises(InputError, match="10 rollouts in groups of 4 for 1 updates"):
        PolicyGradient(Told(), FIRST, tune, 1.0, (1, 1, 1), "velocity", "flow")


def test_beta_is_two_standard_deviations_where_it_means_that():
    rewards = torch.tensor([0.0, 1.0, 2.0], **DOUBLE)
    assert training.resolved_beta(Tune(), rewards) == pytest.approx(2.0)
    assert training.resolved_beta(Tune(beta=0.3), rewards) == 0.3
    assert training.resolved_beta(Tune(method="dpo"), rewards) == 5000
    with pytest.raises(InputError, match="all images have the same reward"):
        training.resolved_beta(Tune(), torch.ones(3, **DOUBLE))


# -- rewards ----------------------------------------------------------------------------------------------------------


def test_ink_is_linear_and_symmetry_is_its_own_mirror():
    x = images().pixels
    assert float(ink(torch.ones(1, 1, 4, 4))) == 1.0
    assert float(ink(-torch.ones(1, 1, 4, 4))) == 0.0
    torch.testing.assert_close(ink(0.3 * x[:5] + 0.7 * x[5:10]), 0.3 * ink(x[:5]) + 0.7 * ink(x[5:10]))
    assert torch.equal(symmetry(x + x.flip(-1)), torch.zeros(64))
    torch.testing.assert_close(symmetry(x), symmetry(x.flip(-1)))
    assert float(symmetry(x).max()) < 0


def test_class_reward_is_the_log_probability_of_what_was_asked():
    model = nn.Linear(16, 2)
    x, asked = images().pixels, torch.arange(64) % 2
    log_p = model(x.flatten(1)).log_softmax(1)
    own = load("class", ("a", "b"), lambda: model)
    torch.testing.assert_close(own(x, asked), log_p.gather(1, asked[:, None])[:, 0].double())
    torch.testing.assert_close(load("class:b", ("a", "b"), lambda: model)(x), log_p[:, 1].double())
    with pytest.raises(InputError, match=r"no class was asked for.* class:NAME"):
        own(x)


def test_users_own_reward_sees_images_in_0_1(tmp_path, monkeypatch):
    text = "def bright(images, labels):\n    assert images.shape[1:] == (4, 4, 1)\n    return images.mean(axis=(1, 2, 3))\n"
    text += "def short(images, labels):\n    return [1.0]\n\n"
    text += "def bad(images, labels):\n    return [float('nan')] * len(images)\n\n"
    text += "def failing(images, labels):\n    return 1 / 0\n"
    (tmp_path / "my_rewards.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    x = images().pixels
    torch.testing.assert_close(load("my_rewards:bright", (), lambda: None)(x), ink(x).double(), rtol=1e-5, atol=1e-6)
    for name, message in {
        "short": r"it gave shape \(1,\); expected one number an image: shape \(64,\)",
        "bad": "64 of 64 values are not finite; the first is nan at row 1",
        "failing": r"it failed \(ZeroDivisionError: division by zero; my_rewards.py, line",
    }.items():
        with pytest.raises(InputError, match=f"reward=my_rewards:{name}: {message}"):
            load(f"my_rewards:{name}", (), lambda: None)(x)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("inc", ("a",), "there is no reward 'inc'; expected ink, symmetry, class, class:NAME or module:function"),
        ("class", (), "the images have no labels"),
        ("class:c", ("a", "b"), "there is no class 'c'; expected a, b"),
    ],
)
def test_unknown_reward_is_refused(name, classes, message):
    with pytest.raises(InputError, match=message):
        load(name, classes, lambda: None)


def test_checkpoints_fall_on_new_rollouts(tmp_path):
    """With several updates of one rollout, a run is only ever resumed where a rollout begins."""
    task = PolicyGradient(Told(), FIRST, Tune(method="ddpo", batch_size=12, group_size=3, updates=2, rollout_steps=2), 1.0,
                          (1, 1, 1), "velocity", "flow", classes=5)  # fmt: skip
    how = Task(task.batches, task.loss, 8, 1e-3, every=2)
    training.run(how, Told(), seed=0, out=tmp_path, resume=False, checkpoint_every=3)
    steps = [int(path.name.split("-")[1]) for path in tmp_path.glob("step-*")]
    assert steps
    assert all(step % 2 == 0 for step in steps)
