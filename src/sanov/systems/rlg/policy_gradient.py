"""Policies by gradients of the reward: Flow-GRPO as released, with an exact optimum, and DDPO.

A stochastic sampler is a chain of normal steps ``x' ~ N(keep x + gain out, noise^2)``, and its network the policy::

    flow_grpo         SDE of level 0.7; A = (R - mean) / (sd + 1e-4) of the group, held in +-5; log-probabilities are means
                      over pixels; KL term beta ||mean - mean_ref||^2 / (2 std^2), a mean over pixels
    flow_grpo_exact   memoryless SDE (level sqrt 2); log-probabilities and KL are sums, the step's variance is exact, and
                      each step is credited with R - beta (KL of the steps after it), less the group's mean
    ddpo              ancestral steps (DDIM, eta 1); A = (R - mean) / (sd + 1e-8), held in +-5; no KL

The second maximises ``E[R] - beta KL(path || path of the reference)``: with memoryless noise its optimum is the tilt at beta.
The released objectives have another, or none.

References: liu2025flowgrpo; domingo2024adjoint; black2024ddpo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sanov.advantages import clipped_surrogate, group_advantages
from sanov.core.errors import InputError
from sanov.learning.training import micro_batches
from sanov.systems.rlg.paths import Path, Prediction, Step, sampler_steps
from sanov.systems.rlg.rewards import Reward
from sanov.systems.rlg.training import Tune

__all__ = ["RECIPES", "PolicyGradient", "Recipe", "check_groups"]

FARTHEST = 5.0  # advantages are held within this, as in the released codes
SUMMED_CLIP = 0.2  # of sums over pixels; the released clip of 1e-4 is one of means
TRAINED = 0.99  # share of the steps that flow_grpo trains


@dataclass(frozen=True)
class Recipe:
    """What tells the methods apart.

    Parameters
    ----------
    chain
        The sampler of rollouts, with its noise level.
    scale, eps
        How advantages are divided; see `sanov.advantages.group_advantages`.
    summed
        Log-probabilities and KL are sums over pixels, and not means.
    credited
        A step is credited with the reward less the KL that follows it.
    share
        Of the steps that are trained, from the first.
    kl
        Whether there is a KL term.
    """

    chain: Any
    noise: float
    scale: Any
    eps: float
    summed: bool
    credited: bool
    share: float
    kl: bool


RECIPES = {
    "flow_grpo": Recipe("flow_sde", 0.7, "group", 1e-4, False, False, TRAINED, True),
    "flow_grpo_exact": Recipe("flow_sde", math.sqrt(2), "none", 0.0, True, True, 1.0, True),
    "ddpo": Recipe("ddpm", 0.0, "group", 1e-8, False, False, 1.0, False),
}


@dataclass
class PolicyGradient:
    """Rollouts of the policy, their advantages, and the clipped surrogate.

    Parameters
    ----------
    reference
        The network that the policy began as; None where there is no KL term.
    reward
        Of images.
    tune
        With method, batch size, group size, steps of a rollout, updates and clip.
    beta
        Of the KL term.
    event
        Shape of an image.
    prediction, path
        Of the networks.
    classes
        Number of classes that are asked for in turn at random; 0 for none.
    """

    reference: nn.Module
    reward: Reward
    tune: Tune
    beta: float
    event: tuple[int, ...]
    prediction: Prediction
    path: Path
    classes: int = 0

    def __post_init__(self) -> None:
        self.recipe = RECIPES[self.tune.method]
        tune = self.tune
        check_groups(tune)
        how: dict[str, Any] = {"prediction": self.prediction, "path": self.path, "noise": self.recipe.noise}
        self.plan = sampler_steps(self.recipe.chain, tune.rollout_steps, **how)
        noisy = [step for step in self.plan if step.noise > 0]
        self.trained = noisy[: max(int(len(noisy) * self.recipe.share), 1)]
        self.kept: dict[str, Tensor] = {}

    def batches(self, step: int, model: nn.Module) -> list[dict[str, Any]]:
        """Return rollouts of the policy as it is now, or the next share of those of the policy some updates ago."""
        part = step % self.tune.updates
        report: dict[str, float] = {}
        if part == 0:
            self.kept, report = self._rollouts(model)
        rows = slice(part, None, self.tune.updates)
        batch: dict[str, Any] = {name: values[rows] for name, values in self.kept.items()}
        count = len(batch["advantages"]) * len(self.trained)
        names = ["policy", "kl"] if self.recipe.kl else ["policy"]
        return [{**batch, "counts": dict.fromkeys(names, count), **({"metrics": report} if report else {})}]

    @torch.no_grad()
    def _rollouts(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, float]]:
        tune = self.tune
        groups = len(micro_batches(np.arange(tune.batch_size // tune.group_size))[0])
        rows, device = groups * tune.group_size, next(model.parameters()).device
        condition = None
        if self.classes:
            condition = torch.randint(self.classes, (groups,)).repeat_interleave(tune.group_size).to(device)
        x = torch.randn(rows, *self.event).to(device)
        kept: dict[str, list[Tensor]] = {"x": [], "after": [], "log_old": [], "mean_reference": [], "kl": []}
        for each in self.plan:
            mean = self._mean(model, x, each, condition)
            after = mean + each.noise * torch.randn(x.shape).to(device) if each.noise > 0 else mean
            if each in self.trained:
                of_reference = self._mean(self.reference, x, each, condition) if self.recipe.kl else mean
                found = (x, after, self._log_prob(after, mean, each), of_reference, self._kl(mean, of_reference, each))
                for values, value in zip(kept.values(), found, strict=True):
                    values.append(value)
            x = after
        rewards = self.reward(x.float(), condition).to(device)
        stacked = {name: torch.stack(values, dim=1) for name, values in kept.items()}
        stacked["advantages"] = self._advantages(rewards, stacked.pop("kl").double())
        if condition is not None:
            stacked["condition"] = condition
        return stacked, {"reward": float(rewards.mean()), "reward_sd": float(rewards.std())}

    def _advantages(self, rewards: Tensor, kl: Float[Tensor, "rows steps"]) -> Float[Tensor, "rows steps"]:
        """Return the advantage of each step."""
        size, recipe = self.tune.group_size, self.recipe
        if not recipe.credited:
            own = group_advantages(rewards, size, recipe.scale, recipe.eps).clamp(-FARTHEST, FARTHEST)
            return own.float()[:, None].expand(-1, len(self.trained))
        later = kl.flip(1).cumsum(dim=1).flip(1) - kl
        credit = rewards[:, None] - self.beta * later
        return torch.stack([group_advantages(each, size, recipe.scale) for each in credit.T], dim=1).float()

    def _mean(self, model: nn.Module, x: Tensor, step: Step, condition: Int[Tensor, " rows"] | None) -> Tensor:
        t = torch.full((len(x),), step.before, dtype=x.dtype, device=x.device)
        output: Tensor = step.keep * x + step.gain * model(x, t, condition)
        return output

    def _reduced(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat.sum(dim=1) if self.recipe.summed else flat.mean(dim=1)

    def _log_prob(self, after: Tensor, mean: Tensor, step: Step) -> Tensor:
        """Return the log-probability of a step but for its constant."""
        return -self._reduced((after - mean).square()) / (2 * step.noise**2)

    def _kl(self, mean: Tensor, of_reference: Tensor, step: Step) -> Tensor:
        """Return the KL of a step; the released form leaves |dt| out of its variance."""
        variance = step.noise**2 if self.recipe.summed else step.noise**2 / (step.before - step.after)
        return self._reduced((mean - of_reference).square()) / (2 * variance)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
        """Return minus the sum of surrogates, and the sum of the steps' KL."""
        log_new, kl = [], []
        for place, each in enumerate(self.trained):
            mean = self._mean(model, batch["x"][:, place], each, batch.get("condition"))
            log_new.append(self._log_prob(batch["after"][:, place], mean, each))
            kl.append(self._kl(mean, batch["mean_reference"][:, place], each))
        mask = torch.ones_like(batch["log_old"], dtype=torch.bool)
        clip = self.tune.clip if not self.recipe.summed else max(self.tune.clip, SUMMED_CLIP)
        surrogate = clipped_surrogate(
            torch.stack(log_new, dim=1), batch["log_old"], batch["advantages"], mask, clip, clip
        )
        found: dict[str, tuple[Tensor, float]] = {"policy": (-surrogate.sum(), 1.0)}
        return {**found, "kl": (torch.stack(kl).sum(), self.beta)} if self.recipe.kl else found


def check_groups(tune: Tune) -> None:
    """Refuse a number of rollouts that makes no whole groups for every update.

    Raises
    ------
    InputError
        It does not.
    """
    if tune.batch_size % (tune.group_size * tune.updates):
        found = f"{tune.batch_size} rollouts in groups of {tune.group_size} for {tune.updates} updates"
        raise InputError(found, where="tune", fix="make batch_size a multiple of group_size times updates")
