"""How good a policy is on held-out prompts while it is trained, and what it gained, with intervals over the prompts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import nn

from sanov.comparisons import paired_effect
from sanov.core import files
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.learning.completing import FEWEST, Completed, complete, interval_over_prompts
from sanov.learning.history import History
from sanov.learning.processes import place
from sanov.learning.rollouts import Rollout, Tokenizer
from sanov.learning.signals import Signal

__all__ = ["VALIDATION", "Validation", "results_of", "sentence"]

VALIDATION = "validation.json"
REWARD, GAIN = "validation_reward", "validation_gain"


class Validation:
    """What judges a policy, again and again on the same prompts with the same noise.

    Parameters
    ----------
    prompts, rewards
        Held-out prompts, and who judges their completions.
    tokenizer, options, samples, seed
        How they are completed.
    signals
        Of the training: what they suppress is not sampled here either, and what they watch is in ``last.ends``.
    folder
        Where the mean reward of each prompt is kept by the number of updates, for a run that is resumed; None for nowhere.

    Attributes
    ----------
    last
        The newest completions of this process; None before there are any.
    means
        Mean reward of each prompt, by the number of updates.
    """

    def __init__(
        self,
        prompts: Prompts,
        rewards: Rewards,
        tokenizer: Tokenizer,
        options: Rollout,
        samples: int,
        seed: int,
        *,
        signals: Sequence[Signal] = (),
        folder: Path | None = None,
    ):
        self.prompts, self.rewards, self.tokenizer, self.options = prompts, rewards, tokenizer, options
        self.samples, self.seed, self.signals = samples, seed, signals
        self.last: Completed | None = None
        self.place = None if folder is None else folder / VALIDATION
        kept = files.read_json(self.place) if self.place is not None and self.place.is_file() else {}
        self.means = {int(done): np.array(values, dtype=float) for done, values in kept.items()}

    def __call__(self, policy: nn.Module, done: int) -> dict[str, float]:
        """Return the mean reward with the ends of its interval, mean length, and the share that ended."""
        suppress = {*self.options.suppress, *(token for signal in self.signals for token in signal.suppressed)}
        options = self.options.model_copy(update={"suppress": tuple(sorted(suppress))})
        watch = tuple(token for signal in self.signals for token in signal.watched)
        how: dict[str, Any] = {"samples": self.samples, "seed": self.seed, "watch": watch}
        found = complete(policy, self.tokenizer, self.prompts, self.rewards, options, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a prompt to which no reward applies has no mean
            self.means[done] = np.nanmean(found.rewards, axis=1)
        self.last = found
        if self.place is not None and place()[0] == 0:
            files.write_json(self.place, self.means)
        return _told_rewards(found.rewards) | {
            "validation_length": float(found.lengths.mean()),
            "validation_finished": float(found.finished.mean()),
        }

    def gain(self, done: int) -> dict[str, float]:
        """Return the gain in mean reward since before the first update, with the ends of its interval over prompts."""
        if not done or not {0, done} <= self.means.keys() or len(self.means[0]) != len(self.means[done]):
            return {}
        change = self.means[done] - self.means[0]
        change = change[~np.isnan(change)]
        if len(change) < FEWEST:
            return {GAIN: float(change.mean())} if len(change) else {}
        effect = paired_effect(change)
        return {GAIN: effect.mean, f"{GAIN}_low": effect.low, f"{GAIN}_high": effect.high}


def _told_rewards(rewards: Float64[np.ndarray, "prompts samples"]) -> dict[str, float]:
    """Return the mean over prompts, and the ends of its interval where there are enough of them."""
    judged = rewards[~np.isnan(rewards).all(axis=1)]
    if not len(judged):
        return {REWARD: float("nan")}
    mean = float(np.nanmean(judged, axis=1).mean())
    if len(judged) < FEWEST:
        return {REWARD: mean}
    low, high = interval_over_prompts(judged)
    return {REWARD: mean, f"{REWARD}_low": low, f"{REWARD}_high": high}


def results_of(history: History, validation: Validation | None) -> dict[str, float]:
    """Return what is known of held-out prompts before the training and now; without them, the reward of the last step."""
    done = len(history)
    now = history.evaluations.get(done, {})
    if not now and "reward" in history.reports.get(done, {}):
        now = {"training_reward": history.reports[done]["reward"]}
    before = {name.replace("validation_", "validation_start_"): value
              for name, value in history.evaluations.get(0, {}).items()}  # fmt: skip
    return now | before | ({} if validation is None else validation.gain(done))


def sentence(results: Mapping[str, Any]) -> str:
    """Return what `results_of` found in words; "" where nothing was held out."""
    if results.get("validation_reward") is None:
        return ""
    after = _told(results, "validation_reward")
    if results.get("validation_start_reward") is None:
        return f"mean reward on held-out prompts {after} (95 % interval over prompts)"
    text = f"mean reward on held-out prompts from {_told(results, 'validation_start_reward')} to {after}"
    if results.get("validation_gain") is not None:
        text += f", a gain of {_told(results, 'validation_gain')}"
    return f"{text} (95 % intervals over prompts)"


def _told(results: Mapping[str, Any], name: str) -> str:
    text = f"{results[name]:.3f}"
    low, high = results.get(f"{name}_low"), results.get(f"{name}_high")
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"
