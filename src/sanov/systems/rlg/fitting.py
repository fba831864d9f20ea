"""From images to a reference and its policy, in a folder that a stopped run goes on from."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.learning.checkpoints import refuse_unfinished
from sanov.learning.processes import every_process, place
from sanov.learning.training import History
from sanov.nets.denoiser import DenoiserShape
from sanov.systems.rlg import training
from sanov.systems.rlg.fitted import Fitted, clear, is_finished, network
from sanov.systems.rlg.mixtures import Mixture
from sanov.systems.rlg.policy_gradient import RECIPES, PolicyGradient, check_groups
from sanov.systems.rlg.reading import Images
from sanov.systems.rlg.rewards import Reward, load
from sanov.systems.rlg.training import Base, Matching, Pairs, Task, Tune

__all__ = ["fit", "shape_for", "train_reference", "tune_policy"]

RUN, CHECKPOINTS = "run.json", "checkpoints"
LARGE = 16  # sides from which a UNet is taken


def fit(images: Images, config: Any, *, seed: int, out: Path | None, resume: bool) -> Fitted:
    """Train a reference, or take one, and tune its policy.

    Parameters
    ----------
    images
        What the reference learns, and what the reward is measured on.
    config
        Options of the system: ``reference``, ``reward``, ``checkpoint_every``, ``base`` and ``tune``.
    seed
        Of everything random.
    out, resume
        Folder for everything, and whether to go on from what is in it.

    Raises
    ------
    InputError
        Something does not fit; nothing is written then.
    """
    given = Fitted.load(config.reference) if config.reference else None
    shape = shape_for(images, config.base) if given is None else given.shape
    _check(images, config, shape, given)
    reward = load(config.reward, images.classes, lambda: training.classifier(images, seed=seed))
    rewards = reward(images.pixels, images.labels)
    beta = training.resolved_beta(config.tune, rewards)
    main = place()[0] == 0
    if out is not None and main:
        _begin(out, {"data": images.digest(), "options": config.model_dump(mode="json"), "seed": seed}, resume)
    every_process(None)
    how = {"seed": seed, "resume": resume, "checkpoint_every": config.checkpoint_every}
    places = {stage: None if out is None else out / CHECKPOINTS / stage for stage in ("reference", "policy")}
    history = History()
    if config.tune.method == "analytic":
        shape = replace(shape, classes=0)  # exact mixtures are of all images at once
        reference, policy = _mixtures(images, shape, config.tune.bandwidth, beta)
    else:
        reference = (
            given.reference if given else train_reference(shape, images, config.base, out=places["reference"], **how)
        )
        policy, history = tune_policy(
            reference, shape, images, reward, rewards, beta, config.tune, out=places["policy"], **how
        )
    weighs = config.tune.method in ("weighted", "analytic", "flow_grpo_exact")
    results = {"images": len(images), "seed": seed, "reward": config.reward, "method": config.tune.method}
    results |= {"reward_of_images": float(rewards.mean()), "reward_sd": float(rewards.std()), "updates": len(history)}
    results |= {"beta": beta} if config.tune.method != "ddpo" else {}
    found = Fitted(
        reference.eval(),
        policy.eval(),
        shape,
        images.classes,
        config.reward,
        beta if weighs else None,
        reward.classifier,
        config.model_dump(mode="json"),
        results,
        history.to_frame(),
    )
    if out is not None and main:
        found.save(out)
    every_process(None)
    return found


def shape_for(images: Images, base: Base) -> DenoiserShape:
    """Return the shape of networks for images."""
    _, channels, height, width = images.pixels.shape
    kind = base.network if base.network != "auto" else "unet" if max(height, width) > LARGE else "mlp"
    classes = len(images.classes) if base.conditional else 0
    return DenoiserShape(channels, height, width, classes, kind, base.units, base.depth, base.predicts, base.path)


def train_reference(
    shape: DenoiserShape, images: Images, base: Base, *, seed: int, out: Path | None = None, **how: Any
) -> nn.Module:
    """Train a reference on images.

    Parameters
    ----------
    shape, images, base
        What it looks like, what it learns, and how.
    seed
        Of weights, order and noise.
    out, how
        As in `training.run`.
    """
    model = network(shape, seed=seed)
    training.run(
        _matching(shape, images, None, base.batch_size, base, seed),
        model,
        out=out,
        **{"seed": seed, "resume": False, "checkpoint_every": 0, **how},
    )
    return model.eval().requires_grad_(False)


def _matching(
    shape: DenoiserShape, images: Images, weights: Tensor | None, batch_size: int, base: Base | Tune, seed: int
) -> Task:
    nothing = shape.classes or None
    drop = base.drop if isinstance(base, Base) else 0.1
    told: dict[str, Any] = {"prediction": shape.predicts, "path": shape.path, "nothing": nothing}
    task = Matching(images, weights, batch_size=batch_size, seed=seed, drop=drop if nothing else 0.0, **told)
    return Task(task.batches, task.loss, base.steps, base.learning_rate)


def tune_policy(
    reference: nn.Module,
    shape: DenoiserShape,
    images: Images,
    reward: Reward,
    rewards: Tensor,
    beta: float,
    tune: Tune,
    *,
    seed: int,
    out: Path | None = None,
    **how: Any,
) -> tuple[nn.Module, History]:
    """Tune a copy of the reference.

    Parameters
    ----------
    reference, shape
        Where it begins.
    images, rewards
        Images and their rewards.
    reward
        The reward itself, for methods that sample.
    beta, tune, seed
        How.
    out, how
        As in `training.run`.
    """
    policy = copy.deepcopy(reference).requires_grad_(True)
    nothing, kind = shape.classes or None, (shape.predicts, shape.path)
    if tune.method == "weighted":
        task = _matching(shape, images, training.reward_weights(rewards, beta), tune.batch_size, tune, seed)
    elif tune.method == "dpo":
        pairs = Pairs(images, rewards, reference, *kind, beta, tune.batch_size, nothing)  # type: ignore[arg-type]
        task = Task(pairs.batches, pairs.loss, tune.steps, tune.learning_rate)
    else:
        gradient = PolicyGradient(reference, reward, tune, beta, shape.event, *kind, shape.classes)  # type: ignore[arg-type]
        task = Task(gradient.batches, gradient.loss, tune.steps, tune.learning_rate, tune.updates)
    history = training.run(task, policy, seed=seed + 1, out=out, **{"resume": False, "checkpoint_every": 0, **how})
    return policy.eval().requires_grad_(False), history


def _mixtures(images: Images, shape: DenoiserShape, bandwidth: float, beta: float) -> tuple[nn.Module, nn.Module]:
    """Return the kernel density of images, and its exact tilt by ink."""
    means = images.pixels.flatten(1).double()
    slope = torch.full((means.shape[1],), 1 / (2 * means.shape[1]), dtype=torch.float64)
    kind: dict[str, Any] = {"prediction": shape.predicts, "path": shape.path}
    reference = Mixture(means, torch.tensor(bandwidth**2, dtype=torch.float64), **kind)
    return reference, reference.tilted(slope, beta)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(images: Images, config: Any, shape: DenoiserShape, given: Fitted | None) -> None:
    method = config.tune.method
    if images.pixels.shape[1:] != shape.event:
        found = f"images are {tuple(images.pixels.shape[1:])} (channels, height, width)"
        raise InputError(found, where=images.name, expected=f"{shape.event}, as the reference's")
    if shape.classes and given is not None and given.classes != images.classes:
        raise InputError("the classes are others than the reference's", where=images.name)
    if method == "analytic" and (config.reward != "ink" or given is not None):
        fix = "take reward=ink and no reference, or another method"
        raise InputError("exact mixtures need a linear reward", where="tune.method=analytic", fix=fix)
    if given is not None and isinstance(given.reference, Mixture):
        raise InputError("the reference is an exact mixture", where=str(config.reference), expected="a network")
    if config.reward == "class" and not shape.classes:
        fix = "write class:NAME, or let the network be told (base.conditional=true)"
        raise InputError("no class is asked for", where="reward=class", fix=fix)
    if method in RECIPES:
        check_groups(config.tune)
    if method in RECIPES and RECIPES[method].chain == "flow_sde" and shape.path != "flow":
        raise InputError(
            f"the path is {shape.path!r}", where=f"tune.method={method}", expected="base.path=flow, or ddpo"
        )
    if method == "analytic":
        side = math.prod(shape.event)
        if side > 4096:
            raise InputError(f"images have {side} numbers", where="tune.method=analytic", expected="at most 4096")


def _begin(folder: Path, run: dict[str, Any], resume: bool) -> None:
    """Write down what a run is; resume none that was another, and clear away what a finished one left.

    Raises
    ------
    InputError
        The folder has other files in it, or a run of other data or options. Nothing is changed then.
    """
    path = folder / RUN
    found = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    if found and RUN not in found:
        raise InputError("is a folder with other files in it", where=str(folder), fix="name a new or an empty folder")
    before = files.read_json(path) if path.is_file() else {}
    other = " and other ".join(name for name, value in before.items() if files.plain(run).get(name) != value)
    if resume:
        if other:
            fix = "resume with the same, or begin anew in another folder"
            raise InputError(f"the run in this folder had other {other}", where=str(folder), fix=fix)
        if not before:
            warnings.warn(f"there is nothing to resume in {folder}: it begins anew", SanovWarning, stacklevel=4)
    else:
        for stage in ("reference", "policy"):
            refuse_unfinished(folder / CHECKPOINTS / stage)
        if other and is_finished(folder):
            warnings.warn(f"{folder} held models of other {other}, which are replaced.", SanovWarning, stacklevel=4)
        clear(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    files.write_json(path, run)
