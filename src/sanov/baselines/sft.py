"""Supervised fine-tuning: the policy moves onto written solutions by maximum likelihood, the forward KL to their writer.

It makes teachers and first policies for `kdrl` and `laser`, and is their baseline::

    L = - sum_{i,t} log pi(o_{i,t} | prompt, o_{i,<t}) / number of tokens

over the column ``solution`` of the prompts, each with the token that ends a text (`learning.imitation`). A step takes as
many rows as a step of the other systems samples completions.

Reference: ouyang2022instructgpt, sec. 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanov.core.answers import Answer
from sanov.core.options import Options, option
from sanov.learning import policies
from sanov.learning.policies import Evaluation, Fitted, Lora, Start, Tasks
from sanov.learning.policy import Optimisation
from sanov.learning.rollouts import Rollout

__all__ = ["Blank", "Config", "Fitted", "Imitation", "apply", "fit", "read"]


class Blank(Start):
    """The small network that is made where no folder is given: it knows nothing yet."""

    steps: int = option(0, "Steps of imitation before those of `training`.", source="choice", ge=0)


class Imitation(Optimisation):
    """How a policy is trained to imitate."""

    steps: int = option(600, "Number of updates.", source="choice", ge=1)
    learning_rate: float = option(1e-3, "Of AdamW.", source="choice", gt=0)
    checkpoint_every: int = option(100, "Updates between checkpoints; 0 for one at the end.", source="choice", ge=0)


class Config(Options):
    """Options of `sft`."""

    policy: str = option("", "Folder of a Hugging Face model; empty for a small one (`start`).", source="choice")
    rewards: tuple[str, ...] = option(
        (), "Reward functions: built in, or module:function; none for what the columns allow.", source="choice"
    )
    rollouts: Rollout = Rollout()
    training: Imitation = Imitation()
    lora: Lora = Lora()
    evaluation: Evaluation = Evaluation()
    start: Blank = Blank()


def read(sources: Sequence[Any], config: Config) -> Tasks:
    """Read prompts, and find their rewards, by which the policy is judged.

    Parameters
    ----------
    sources
        Tables with a column ``prompt`` and one of ``solution`` (JSONL, Parquet, CSV), or ``embedded:chain_sum`` and the like.
    config
        Which rewards.

    Raises
    ------
    InputError
        See `learning.policies.read`.
    """
    return policies.read(sources, config.rewards, needed=False)


def fit(data: Tasks, config: Config, *, seed: int = 0, out: str | Path | None = None, resume: bool = False) -> Fitted:
    """Train a policy on written solutions.

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
        There are no solutions, or one does not fit the context.
    """
    opened = policies.start(data, config, seed=seed, out=out, resume=resume)
    return policies.imitated(data, system="sft", config=config, opened=opened, seed=seed, out=out, resume=resume)


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
    return policies.apply("sft", data, config, fitted, seed)
