"""Models and arms of the claim on `rlg`: digits, two rewards, and every way to more of a reward that it is compared with.

A seed has one reference, a class-conditional flow of digits, and for each reward one reward-weighted policy and one placebo,
tuned on permuted rewards. All arms of a seed begin with the same noise and ask for the same digits, and have as many passes
of a network for an image as guidance at two passes a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sanov.systems.rlg import Fitted, Images

__all__ = ["KNOBS", "REWARDS", "SAMPLERS", "exact_gaps", "make_models", "scored"]

REWARDS = {"ink": "ink", "class": "class:8"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "flow_ode": {"name": "flow_ode"},
    "flow_sde": {"name": "flow_sde", "noise": 0.7},
    "pc": {"name": "pc", "corrections": 5, "correction_size": 0.2, "last": 0.02},
}
KNOBS: dict[str, tuple[float, ...]] = {  # what is tuned of each baseline
    "slider": (1.5, 2.0, 2.5, 3.0),  # w of the interpolated weights
    "cfg": (1.5, 2.0, 3.0, 4.5),  # scale of the policy's guidance by the class
    "retrained": (1.5, 2.0, 2.5, 3.0),  # w of a policy retrained at beta / w
    "gradient": (0.25, 0.5, 1.0, 2.0),  # w of explicit guidance, (w / beta) grad R
    "longer": (1.5, 2.0, 3.0, 4.0),  # times as many updates of the policy
    "cfgrl": (1.5, 2.0, 3.0, 4.0),  # w of guidance by a network that is told which images are good
}
WEIGHT = 2.0  # of the claim
FARTHEST = 10.0  # factor of a reward's gradient in a velocity, t / (1 - t), is held below this
BACKWARD = 3  # passes that one pass and its gradient count for


# -- models -----------------------------------------------------------------------------------------------------------


def digits() -> Images:
    """Return the digits."""
    from sanov.systems import rlg

    found = rlg.read(["embedded:digits"], rlg.Config())
    assert isinstance(found, rlg.Images)
    return found


def make_models(data: str, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Train reference, policy, placebo and classifier of a seed, and save them.

    Parameters
    ----------
    data
        Which reward.
    seed, settings, folder
        Of everything random, sizes, and where they are saved.
    """
    import torch

    from sanov.systems.rlg import Fitted, fitting, rewards, training

    images = digits()
    base, tune = training.Base(**settings["base"]), training.Tune(**settings["tune"])
    shape = fitting.shape_for(images, base)
    reference = fitting.train_reference(shape, images, base, seed=seed)
    classifier = training.classifier(images, seed=seed, steps=settings["classifier"])
    reward = rewards.load(REWARDS[data], images.classes, lambda: classifier)
    found = reward(images.pixels, images.labels)
    beta = training.resolved_beta(tune, found)
    permuted = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]
    for name, own in (("policy", found), ("placebo", permuted)):
        policy, _ = fitting.tune_policy(reference, shape, images, reward, own, beta, tune, seed=seed)
        Fitted(reference, policy, shape, images.classes, REWARDS[data], beta, classifier).save(folder / name)
    return {"beta": beta, "sd": float(found.std())}


def _tuned(
    models: Fitted, seed: int, settings: Mapping[str, Any], *, weight: float = 1.0, longer: float = 1.0
) -> nn.Module:
    """Return a policy tuned anew: at beta / w, or for longer."""
    from sanov.systems.rlg import fitting, training

    images, reward = digits(), models.scorer()
    steps = round(settings["tune"]["steps"] * longer)
    tune = training.Tune(**{**settings["tune"], "steps": steps})
    rewards = reward(images.pixels, images.labels)
    assert models.beta is not None
    policy, _ = fitting.tune_policy(
        models.reference, models.shape, images, reward, rewards, models.beta / weight, tune, seed=seed
    )
    return policy


def _told_what_is_good(models: Fitted, seed: int, settings: Mapping[str, Any]) -> nn.Module:
    """Return a network of twice as many classes, where the second ten are images of above-median reward alone."""
    from dataclasses import replace

    import torch

    from sanov.systems.rlg import Images, fitting, training

    images = digits()
    assert images.labels is not None
    rewards = models.scorer()(images.pixels, images.labels)
    good = torch.nonzero(rewards > rewards.median())[:, 0]
    pixels = torch.cat([images.pixels, images.pixels[good]])
    labels = torch.cat([images.labels, images.labels[good] + len(images.classes)])
    names = (*images.classes, *(f"good {name}" for name in images.classes))
    base = training.Base(**{**settings["base"], "steps": settings["base"]["steps"] + settings["tune"]["steps"]})
    shape = replace(models.shape, classes=len(names))
    return fitting.train_reference(shape, Images(pixels, labels, names, images.white, "digits"), base, seed=seed)


# -- arms -------------------------------------------------------------------------------------------------------------


def scored(arm: str, knob: float, folder: Path, seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Sample an arm; return its mean reward and what goes with it.

    Parameters
    ----------
    arm, knob
        Which, and how strong.
    folder
        Of the seed's models.
    seed
        Of noise, and of what is trained anew.
    settings
        Sizes.
    """
    from sanov.systems.rlg import Fitted, calibration, guard

    models = Fitted.load(folder / ("placebo" if arm.startswith("placebo") else "policy"))
    images = digits()
    reward = models.scorer()
    spread = float(reward(images.pixels, images.labels).std())
    asked = models.asked(settings["images"])
    x, path_kl = _images(arm, knob, models, asked, seed, settings)
    found = {
        "reward": float(reward(x, asked).mean()) / spread,
        "diversity": calibration.diversity(x),
        "entropy": _entropy(models, x),
    }
    if path_kl is not None:
        found["path_kl"] = path_kl
    if arm == "placebo":
        start, _ = _images("reference", 0.0, models, asked, seed, settings)
        strip = guard.shifts({0.0: guard.measures(start), WEIGHT: guard.measures(x)}, guard.Band().width)
        found["flagged"] = float(bool(guard.leaves(strip, guard.Band().width)))
    return found


def _entropy(models: Fitted, x: Tensor) -> float:
    """Return the entropy of the classes that the classifier sees, over all images."""
    import torch

    assert models.classifier is not None
    share = models.classifier(x.flatten(1)).softmax(dim=1).mean(dim=0).double()
    return float(torch.special.entr(share).sum())


def _images(
    arm: str, knob: float, models: Fitted, asked: Any, seed: int, settings: Mapping[str, Any]
) -> tuple[Tensor, float | None]:
    """Return images of an arm, and the KL of their paths where it is asked for."""
    rows, steps = settings["images"], settings["steps"]
    if arm in GUIDED:
        found = models.sample(GUIDED[arm], rows, sampler=_sampler(steps), condition=asked, measure=True, seed=seed)
        return found.x, float(found.path_kl.mean()) if found.path_kl is not None else None
    if arm == "equal":
        return _run(models.reference, models.reference, WEIGHT, models, asked, seed, steps, rows), None
    if arm == "best_of_2":
        return _better(models, asked, seed, settings), None
    if arm == "rotated":
        turned = _turned(models, rows, seed)
        return _run(turned, turned, 1.0, models, asked, seed, steps, rows), None
    model, passes = OTHERS[arm](models, knob, seed, settings)
    return _run(model, model, 1.0, models, asked, seed, 2 * steps // passes, rows), None


GUIDED = {"reference": 0.0, "policy": 1.0, "rlg": WEIGHT, "negative": -1.0, "placebo": WEIGHT, "placebo_policy": 1.0}


def _sampler(steps: int) -> Any:
    from sanov.systems.rlg import Sampler

    return Sampler(steps=steps)


def _run(
    reference: Any, policy: Any, weight: float, models: Fitted, asked: Any, seed: int, steps: int, rows: int
) -> Tensor:
    """Run any two models from the noise that `Fitted.sample` begins with."""
    import torch

    from sanov.systems.rlg import Mixed, sample

    start = torch.randn(rows, *models.shape.event, generator=torch.Generator().manual_seed(seed))
    kind: dict[str, Any] = {"prediction": models.shape.predicts, "path": models.shape.path}
    return sample(Mixed(reference, [policy], [weight]), start, _sampler(steps), condition=asked, **kind).x


def _better(models: Fitted, asked: Any, seed: int, settings: Mapping[str, Any]) -> Tensor:
    """Return of two images of the reference the one with more reward."""
    import torch

    rows, reward = settings["images"], models.scorer()
    one, other = (
        _run(models.reference, models.reference, 1.0, models, asked, own, settings["steps"], rows)
        for own in (seed, seed + SECOND)
    )
    first = reward(one, asked) >= reward(other, asked)
    found: Tensor = torch.where(first.view(-1, 1, 1, 1), one, other)
    return found


SECOND = 500_000  # what the seed of the second image is away from that of the first


def _turned(models: Fitted, rows: int, seed: int) -> Any:
    """Return the policy plus its difference from the reference, its pixels permuted and their signs flipped in each row.

    It is the control of guidance beyond w = 1: as far away, in another direction.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    size = math.prod(models.shape.event)
    order = torch.rand(rows, size, generator=generator).argsort(dim=1)
    signs = torch.randint(2, (rows, size), generator=generator) * 2.0 - 1

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        own: Tensor = models.policy(x, t, condition)
        gap = (own - models.reference(x, t, condition)).flatten(1)
        moved: Tensor = own + (WEIGHT - 1) * (gap.gather(1, order) * signs).view_as(own)
        return moved

    return model


def _slider(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    from sanov.systems.rlg import interpolated

    return interpolated(models.reference, models.policy, knob), 1


def _cfg(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    from sanov.systems.rlg import guided

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return guided(models.policy(x, t, None), models.policy(x, t, condition), knob)

    return model, 2


def _retrained(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    return _tuned(models, seed, settings, weight=knob), 1


def _longer(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    return _tuned(models, seed, settings, longer=knob), 1


def _cfgrl(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    from sanov.systems.rlg import guided

    network = _told_what_is_good(models, seed, settings)
    classes = models.shape.classes

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return guided(network(x, t, condition), network(x, t, condition + classes), knob)

    return model, 2


def _gradient(models: Fitted, knob: float, seed: int, settings: Mapping[str, Any]) -> tuple[Any, int]:
    """Return the reference with the gradient of the reward of its denoised image, (w / beta) grad R, in its score."""
    import torch

    from sanov.systems.rlg.rewards import ink

    assert models.beta is not None
    scale = knob / models.beta
    classifier, eight = models.classifier, models.classes.index("8")

    def reward(image: Tensor) -> Tensor:
        if models.reward == "ink":
            return ink(image)
        assert classifier is not None
        log_p: Tensor = classifier(image.flatten(1)).log_softmax(dim=1)
        return log_p[:, eight]

    def model(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        time = float(t[0])
        with torch.enable_grad():
            own = x.detach().requires_grad_(True)
            velocity: Tensor = models.reference(own, t, condition)
            (slope,) = torch.autograd.grad(reward(own - time * velocity).sum(), own)
        factor = min(time / (1 - time), FARTHEST) if time < 1 else FARTHEST
        return velocity.detach() - factor * scale * slope

    return model, BACKWARD


OTHERS: dict[str, Callable[..., tuple[Any, int]]] = {
    "slider": _slider,
    "cfg": _cfg,
    "retrained": _retrained,
    "gradient": _gradient,
    "longer": _longer,
    "cfgrl": _cfgrl,
}


# -- exact digits -----------------------------------------------------------------------------------------------------


def exact_gaps(name: str, weights: Sequence[float], seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return, by w, the mean reward of guidance less that of the exact tilt at beta / w, in sd(R); paired by noise.

    Reference and policy are exact: the kernel density of digits (width 0.1) and its tilt by ink.

    Parameters
    ----------
    name
        Of the sampler, for both.
    weights
        Values of w.
    seed, settings
        Of the noise; sizes.
    """
    import torch

    from sanov.systems.rlg import Mixed, Mixture, Sampler, sample

    pixels = digits().pixels[:: settings["every"]].flatten(1).double()
    slope = torch.full((pixels.shape[1],), 1 / pixels.shape[1], dtype=torch.float64)
    reference = Mixture(pixels, torch.tensor(0.01, dtype=torch.float64))
    spread = float((pixels @ slope).std())
    policy = reference.tilted(slope, 2 * spread)
    found = {}
    for weight in weights:
        exact = reference.tilted(slope, 2 * spread / weight)
        means = []
        for models, own in (((reference, policy), weight), ((exact, exact), 1.0)):
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(settings["rows"], pixels.shape[1], dtype=torch.float64, generator=generator)
            how = Sampler(**{**SAMPLERS[name], "steps": settings["exact_steps"]})
            run = sample(Mixed(models[0], [models[1]], [own]), start, how, generator=generator)
            means.append(float((run.x @ slope).mean()))
        found[f"gap {weight:g}"] = (means[0] - means[1]) / spread
    return found
