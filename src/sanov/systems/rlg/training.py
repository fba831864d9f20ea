"""How the networks are trained: the reference by matching its path, a policy by weights of the reward or by pairs.

With weights ``e^(R / beta)`` the minimiser of the same loss is the tilt of what the images are drawn from, exactly, at every
time: the reward-weighted policy is p*_beta in the limit of many images and units.

References: lipman2023flow (matching); peters2007rwr (weights by the reward); wallace2024diffusiondpo (pairs).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.learning.optimizers import adamw
from sanov.learning.training import History, micro_batches, schedule, shuffled, train
from sanov.nets.encoder import mlp
from sanov.systems.rlg.paths import FIRST, Path, Prediction, levels, predicted
from sanov.systems.rlg.reading import Images

__all__ = [
    "CLASSIFIER_UNITS",
    "FEWEST",
    "Base",
    "Matching",
    "Pairs",
    "Task",
    "Tune",
    "classifier",
    "conditions",
    "effective_sample_size",
    "errors",
    "noised",
    "preference_losses",
    "resolved_beta",
    "reward_weights",
    "run",
]

Method = Literal["weighted", "analytic", "flow_grpo", "flow_grpo_exact", "ddpo", "dpo"]
FEWEST = 100  # effective rows that a weighted policy should rest on
CLASSIFIER_STEPS, CLASSIFIER_UNITS = 400, 64
DPO_BETA, GRPO_KL = 5000.0, 0.01  # of the released codes


class Base(Options):
    """The reference that is trained where none is given."""

    network: Literal["auto", "mlp", "unet"] = option(
        "auto", "A residual perceptron, or a UNet; auto: perceptron up to 16 x 16.", source="choice"
    )
    units: int = option(256, "Units of a layer, or channels of the UNet's first level.", source="choice", ge=4)
    depth: int = option(3, "Residual blocks (of each level).", source="choice", ge=1)
    predicts: Prediction = option("velocity", "What the network says.", source="released code: a flow")
    path: Path = option("flow", "From noise to data.", source="released code: a flow")
    steps: int = option(3000, "Steps of training.", source="choice", ge=1)
    batch_size: int = option(128, "Images of a step.", source="choice", unit="images", ge=1)
    learning_rate: float = option(1e-3, "At the first step; it falls as a cosine.", source="choice", gt=0)
    conditional: bool = option(True, "Tell the network the class, where images have one.", source="choice")
    drop: float = option(0.1, "Share of images whose class is not told.", source="choice", ge=0, le=1)


class Tune(Options):
    """How the policy comes about."""

    method: Method = option(
        "weighted",
        "Reward-weighted matching, exact mixtures, Flow-GRPO (as released, or with its exact optimum), DDPO, DPO.",
        source="choice: exact in the limit",
    )
    beta: float | None = option(
        None,
        "KL coefficient, in units of the reward. None: 2 sd(R); flow_grpo 0.01 and dpo 5000, in units of their codes.",
        source="choice: reward weights keep an effective sample",
        gt=0,
    )
    steps: int = option(1500, "Updates.", source="choice", ge=1)
    batch_size: int = option(128, "Images, or rollouts, of an update.", source="choice", ge=2)
    learning_rate: float = option(5e-4, "At the first step; it falls as a cosine.", source="choice", gt=0)
    group_size: int = option(
        16, "Rollouts that are compared: of one class.", source="choice (released: 24, 6, 4)", ge=2
    )
    rollout_steps: int = option(10, "Steps of a rollout.", source="released code (DDPO: 50)", ge=2)
    updates: int = option(1, "Updates from the rollouts of one policy.", source="choice: on-policy", ge=1)
    clip: float = option(1e-4, "Ratios are clipped beyond 1 +- this.", source="released codes", gt=0)
    bandwidth: float = option(0.1, "analytic: standard deviation of the kernels.", source="choice", gt=0)


# -- the loop ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One training: batches and loss for the loop, and how long."""

    batches: Callable[[int, nn.Module], Any]
    loss: Callable[[nn.Module, Mapping[str, Any]], Any]
    steps: int
    learning_rate: float
    every: int = 1  # checkpoints fall on multiples of this


def run(task: Task, model: nn.Module, *, seed: int, out: Folder | None, resume: bool, checkpoint_every: int) -> History:
    """Train a network in place.

    Parameters
    ----------
    task, model
        What, and which.
    seed
        Of everything random.
    out, resume, checkpoint_every
        As in `learning.training.train`.
    """
    every = -(-checkpoint_every // task.every) * task.every
    return train(
        model,
        task.batches,
        task.loss,
        optimizer=lambda weights: adamw(weights, learning_rate=task.learning_rate, weight_decay=0.0),
        steps=task.steps,
        schedule=schedule("cosine", task.steps, 0.0),
        clip_norm=1.0,
        out=out,
        checkpoint_every=every,
        resume=resume,
        seed=seed,
    )


# -- matching ---------------------------------------------------------------------------------------------------------


def noised(
    x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction, path: Path
) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]:
    """Return states and what a network should say of them."""
    shape = (-1, *[1] * (x0.ndim - 1))
    a, b = (value.view(shape) for value in levels(path, t))
    p, q = (value.view(shape) if isinstance(value, Tensor) else value for value in predicted(prediction, path, t))
    return a * x0 + b * eps, p * x0 + q * eps


def _times(rows: int, prediction: Prediction) -> Tensor:
    t = torch.rand(rows)
    return t.clamp(1 - FIRST, FIRST) if prediction in ("noise", "score") else t


@dataclass
class Matching:
    """Mean squared error of what is predicted, each image with a weight.

    Parameters
    ----------
    images
        What is learned.
    weights
        One an image, of mean 1; None for 1.
    prediction, path
        Of the network.
    batch_size, seed
        Of the order of rows.
    drop
        Share of rows whose class is not told.
    nothing
        The condition that means none; None for networks without classes.
    """

    images: Images
    weights: Tensor | None
    prediction: Prediction
    path: Path
    batch_size: int
    seed: int
    drop: float = 0.0
    nothing: int | None = None
    order: Any = field(init=False)

    def __post_init__(self) -> None:
        self.order = shuffled(len(self.images), min(self.batch_size, len(self.images)), seed=self.seed, drop_last=True)

    def batches(self, step: int, model: nn.Module) -> list[dict[str, Any]]:
        """Return the rows of a step, noised."""
        return [self._batch(torch.from_numpy(rows)) for rows in micro_batches(self.order(step))]

    def _batch(self, rows: Tensor) -> dict[str, Any]:
        x0 = self.images.pixels[rows]
        t = _times(len(rows), self.prediction)
        x, target = noised(x0, torch.randn_like(x0), t, self.prediction, self.path)
        weight = torch.ones(len(rows)) if self.weights is None else self.weights[rows].float()
        condition = conditions(self.images, rows, self.nothing, self.drop)
        batch = {"x": x, "t": t, "target": target, "weight": weight, "counts": {"matching": len(rows)}}
        return batch if condition is None else {**batch, "condition": condition}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
        """Return the weighted sum of squared errors; a score's is told in units of the noise."""
        error = errors(model(batch["x"], batch["t"], batch.get("condition")), batch["target"])
        if self.prediction == "score":
            error = error * levels(self.path, batch["t"])[1] ** 2
        return {"matching": ((error * batch["weight"]).sum(), 1.0)}


def errors(output: Tensor, target: Tensor) -> Float[Tensor, " rows"]:
    """Return the mean squared error of each row."""
    return (output - target).square().flatten(1).mean(dim=1)


def conditions(images: Images, rows: Tensor, nothing: int | None, drop: float = 0.0) -> Int[Tensor, " rows"] | None:
    """Return the classes of rows, some of them dropped; None for networks without classes."""
    if nothing is None or images.labels is None:
        return None
    labels = images.labels[rows]
    return torch.where(torch.rand(len(rows)) < drop, nothing, labels) if drop else labels


# -- weights of the reward --------------------------------------------------------------------------------------------


def effective_sample_size(weights: Float64[Tensor, " rows"]) -> float:
    """Return (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / weights.square().sum())


def reward_weights(rewards: Float64[Tensor, " rows"], beta: float) -> Float64[Tensor, " rows"]:
    """Return e^(R / beta), of mean 1; a warning where few rows carry most of it.

    Parameters
    ----------
    rewards
        Of the images.
    beta
        Coefficient of KL.
    """
    weights = _weights(rewards, beta)
    size = effective_sample_size(weights)
    if size < min(FEWEST, len(rewards) / 2):
        warnings.warn(
            f"the weights e^(R / beta) leave an effective sample of {size:.0f} of {len(rewards)} images; the smallest beta "
            f"that leaves {min(FEWEST, len(rewards) // 2)} is {_smallest_beta(rewards):.4g}, and it is {beta:.4g}",
            SanovWarning,
            stacklevel=3,
        )
    return weights


def _weights(rewards: Tensor, beta: float) -> Tensor:
    return (rewards / beta).softmax(dim=0) * len(rewards)


def _smallest_beta(rewards: Tensor) -> float:
    """Return the smallest beta, to one per cent, with enough of an effective sample."""
    spread = float(rewards.std()) or 1.0
    wanted = min(FEWEST, len(rewards) / 2)
    tried = (spread * 1.01**power for power in range(-700, 1400))
    return next(beta for beta in tried if effective_sample_size(_weights(rewards, beta)) >= wanted)


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Diffusion DPO: of two images of one class the better is to be denoised better than the reference does it.

    ``-log sigmoid(-beta / 2 (d - d_ref))``, with d the difference of mean squared errors of the better and the worse, which
    have the same noise and time.
    """

    images: Images
    rewards: Tensor
    reference: nn.Module
    prediction: Prediction
    path: Path
    beta: float
    batch_size: int
    nothing: int | None = None

    def __post_init__(self) -> None:
        labels = torch.zeros(len(self.images)) if self.nothing is None else self.images.labels
        assert labels is not None
        self.groups = [
            rows for value in np.unique(labels.numpy()).tolist() if len(rows := (labels == value).nonzero()[:, 0]) > 1
        ]
        if not any(float(self.rewards[rows].std()) > 0 for rows in self.groups):
            raise InputError("no two images of one class differ in their reward", where="tune.method=dpo")

    def batches(self, step: int, model: nn.Module) -> list[dict[str, Any]]:
        """Return pairs, better and worse, noised alike, and how the reference does on them."""
        share = micro_batches(np.arange(self.batch_size))[0]
        better, worse = self._drawn(len(share))
        x0 = [self.images.pixels[rows] for rows in (better, worse)]
        t, eps = _times(len(share), self.prediction), torch.randn_like(x0[0])
        (x, target), (x_worse, target_worse) = (noised(each, eps, t, self.prediction, self.path) for each in x0)
        batch = {"x": x, "target": target, "x_worse": x_worse, "target_worse": target_worse, "t": t}
        condition = conditions(self.images, better, self.nothing)
        batch |= {} if condition is None else {"condition": condition}
        with torch.no_grad():
            batch["of_reference"] = self._difference(self.reference, batch)
        return [{**batch, "counts": {"preference": len(share)}}]

    def _drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """Return pairs of rows of one class, the one with the larger reward first; equal ones are drawn again."""
        better: list[int] = []
        worse: list[int] = []
        while len(better) < count:
            rows = self.groups[int(torch.randint(len(self.groups), ()))]
            one, other = (int(rows[int(torch.randint(len(rows), ()))]) for _ in range(2))
            if self.rewards[one] != self.rewards[other]:
                first, second = (one, other) if self.rewards[one] > self.rewards[other] else (other, one)
                better.append(first)
                worse.append(second)
        return torch.tensor(better), torch.tensor(worse)

    def _difference(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        condition = batch.get("condition")
        own = errors(model(batch["x"], batch["t"], condition), batch["target"])
        return own - errors(model(batch["x_worse"], batch["t"], condition), batch["target_worse"])

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
        """Return the sum of the pairs' losses."""
        return {
            "preference": (
                preference_losses(self._difference(model, batch), batch["of_reference"], self.beta).sum(),
                1.0,
            )
        }


def preference_losses(
    difference: Float[Tensor, " pairs"], of_reference: Float[Tensor, " pairs"], beta: float
) -> Float[Tensor, " pairs"]:
    """Return -log sigmoid(-beta / 2 (d - d_ref)), log 2 where the policy is its reference.

    Parameters
    ----------
    difference, of_reference
        Error on the better image less that on the worse, of the policy and of the reference.
    beta
        Coefficient of the implicit KL.

    Reference
    ---------
    wallace2024diffusiondpo, eq. 14.
    """
    return -nn.functional.logsigmoid(-beta / 2 * (difference - of_reference))


# -- a classifier -----------------------------------------------------------------------------------------------------


def classifier(images: Images, *, seed: int, steps: int = 0) -> nn.Module:
    """Train a small classifier of images, on lightly noised ones so that it does not break on what a sampler leaves.

    Parameters
    ----------
    images
        With labels.
    seed
        Of weights and order.
    steps
        Updates; 0 for the usual number.
    """
    assert images.labels is not None
    labels, pixels = images.labels, images.pixels.flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = mlp(pixels.shape[1], len(images.classes), CLASSIFIER_UNITS, 2)
    order = shuffled(len(images), min(128, len(images)), seed=seed)

    def batches(step: int, model: nn.Module) -> list[dict[str, Any]]:
        rows = torch.from_numpy(micro_batches(order(step))[0])
        x = pixels[rows] + 0.1 * torch.randn(len(rows), pixels.shape[1])
        return [{"x": x, "labels": labels[rows], "counts": {"class": len(rows)}}]

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
        return {"class": (nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum"), 1.0)}

    task = Task(batches, loss, steps or CLASSIFIER_STEPS, 3e-3)
    run(task, model, seed=seed, out=None, resume=False, checkpoint_every=0)
    return model.eval().requires_grad_(False)


def resolved_beta(tune: Tune, rewards: Float64[Tensor, " rows"]) -> float:
    """Return beta as the method means it.

    Raises
    ------
    InputError
        It is to be a multiple of the rewards' spread, and they have none.
    """
    if tune.beta is not None:
        return tune.beta
    if tune.method in ("dpo", "flow_grpo"):
        return DPO_BETA if tune.method == "dpo" else GRPO_KL
    spread = float(rewards.std())
    if not (math.isfinite(spread) and spread > 0):
        raise InputError("all images have the same reward", where="reward", fix="take another, or pass tune.beta=...")
    return 2 * spread
