"""GRPO: the policy moves by the rewards of its own completions, and by nothing else.

The baseline of `kdrl` and `laser`, and what each of them is where its own term is off::

    L = - sum_{i,t} m_{i,t} min(ratio A, clip(ratio, 1 - low, 1 + high) A) / sum m,      A = (r - mean) / (std + eps)

over groups of completions of one prompt (`learning.policy`). There is no KL to a reference model.

Reference: shao2024grpo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanov.core.answers import Answer
from sanov.core.options import Options, option
from sanov.learning import policies
from sanov.learning.policies import Evaluation, Fitted, Lora, Start, Tasks
from sanov.learning.policy import Grpo, Optimisation
from sanov.learning.rollouts import Rollout

__all__ = ["Config", "Fitted", "apply", "fit", "read"]


class Config(Options):
    """Options of `grpo`."""

    policy: str = option("", "Folder of a Hugging Face model; empty for a small one (`start`).", source="choice")
    rewards: tuple[str, ...] = option(
        (), "Reward functions: built in, or module:function; none for what the columns allow.", source="choice"
    )
    rollouts: Rollout = Rollout()
    grpo: Grpo = Grpo()
    training: Optimisation = Optimisation()
    lora: Lora = Lora()
    evaluation: Evaluation = Evaluation()
    start: Start = Start()


def read(sources: Sequence[Any], config: Config) -> Tasks:
    """Read prompts, and find their rewards.

    Parameters
    ----------
    sources
        Tables with a column ``prompt`` (JSONL, Parquet, CSV), or ``embedded:chain_sum`` and the like.
    config
        Which rewards.

    Raises
    ------
    InputError
        See `learning.policies.read`.
    """
    return policies.read(sources, config.rewards, needed=False)


def fit(data: Tasks, config: Config, *, seed: int = 0, out: str | Path | None = None, resume: bool = False) -> Fitted:
    """Train a policy on rewards of its completions.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options.
    seed
        Of the order of prompts, of all sampling, and of a policy that is made.
    out
        Folder for the policy, which transformers loads, and for checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        A reward is refused, or a prompt does not fit the context.
    """
    opened = policies.start(data, config, seed=seed, out=out, resume=resume)
    return policies.fit(data, system="grpo", config=config, opened=opened, seed=seed, out=out, resume=resume)


def apply(data: Tasks, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Complete prompts with a trained policy, and say how often it is right.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options; of them ``rollouts`` and ``evaluation.samples`` matter here.
    fitted
        What `fit` returned, or its folder.
    seed
        Of the sampling.

    Raises
    ------
    InputError
        Nothing fitted was given, or a prompt does not fit the context.
    """
    return policies.apply("grpo", data, config, fitted, seed)
