r"""KDRL: move the policy onto its teacher, tilted by the reward, on the policy's own samples.

One student learns from a 0/1 outcome reward and from the reverse KL to a frozen teacher at once::

    L = L_GRPO + beta(step) / D * sum_{i,t} M_{i,t} k2(log pi(o_{i,t}) - log pi_T(o_{i,t})),       k2(d) = d^2 / 2

over completions o_i that the policy sampled itself. The gradient of k2, as a loss on the policy's samples, is in
expectation that of KL(pi || pi_T); that of k1 is zero, and that of k3 follows the forward KL. With one update a step it
is, sample by sample, the gradient of the GRPO surrogate with token advantages A_i + beta M R, R = log pi_T - log pi.

Deviations from the paper
-------------------------
- The denominator D is all tokens of the step, so that beta means the same under every mask; the paper's was not seen.
  ``kd.denominator=masked_tokens`` divides by the distilled ones.
- ``kd.clip`` clips the factor of grad log pi, where other code clamps the loss and so loses the gradient.
- The exact formula of the paper's reward shaping was not seen: ``kd.combine=reward`` adds beta times the sum of R.
- The embedded tasks need a larger beta than the paper's mathematics: the page says which.

Reference: xu2025kdrl.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanov.core.answers import Answer
from sanov.core.errors import SanovWarning
from sanov.core.options import Options, option
from sanov.learning import policies
from sanov.learning.policies import Evaluation, Fitted, Lora, Start, Tasks
from sanov.learning.policy import Grpo, Optimisation
from sanov.learning.rollouts import Rollout
from sanov.learning.token_teachers import TokenTeacher, open_teacher
from sanov.systems.kdrl.losses import (
    coefficient,
    distillation_mask,
    distillation_values,
    exact_values,
    return_to_go,
    token_advantages,
)
from sanov.systems.kdrl.signal import Distillation, KdSignal, Mixing

__all__ = [
    "Config",
    "Distillation",
    "Fitted",
    "KdSignal",
    "Mixing",
    "apply",
    "coefficient",
    "distillation_mask",
    "distillation_values",
    "exact_values",
    "fit",
    "read",
    "return_to_go",
    "token_advantages",
]


class Config(Options):
    """Options of `kdrl`."""

    policy: str = option("", "Folder of a Hugging Face model; empty for a small one (`start`).", source="choice")
    teacher: str = option(
        "", "Folder of the teacher, a server (http://...), or a file of recorded log-probabilities.", source="choice"
    )
    record: str = option("", "File in which the teacher's log-probabilities are kept, and looked up.", source="choice")
    rewards: tuple[str, ...] = option(
        (), "Reward functions: built in, or module:function; none for what the columns allow.", source="choice"
    )
    kd: Distillation = Distillation()
    mixing: Mixing = Mixing()
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
    """Train a policy from a teacher and a verifier at once.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The system's options.
    seed
        Of the order of prompts, of all sampling, and of a policy that is made.
    out
        Folder for the policy, which transformers loads, and for checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        Teacher and policy have different tokens, an option excludes another, a reward is refused, or there is no teacher.
    """
    teacher = _teacher(config)
    signal = KdSignal(teacher, config.kd, config.mixing, steps=config.training.steps)
    follows = signal.follows_steps
    opened = policies.start(data, config, seed=seed, out=out, resume=resume, follows=follows)
    how: dict[str, Any] = {
        "system": "kdrl",
        "config": config,
        "opened": opened,
        "seed": seed,
        "out": out,
        "resume": resume,
        "follows": follows,
    }
    if config.kd.combine == "sft":
        return policies.imitated(data, **how)
    if config.grpo.iterations > 1 and config.kd.combine == "loss" and config.kd.estimator in ("k2", "k3"):
        text = (
            f"grpo.iterations={config.grpo.iterations}: the term of {config.kd.estimator} is not weighted by the ratio"
        )
        warnings.warn(f"{text} to the policy that sampled; kd.combine=advantage is", SanovWarning, stacklevel=2)
    signals = [] if config.kd.combine == "grpo" else [signal]
    return policies.fit(data, signals=signals, rewarded=config.kd.combine != "opd", **how)


def _teacher(config: Config) -> TokenTeacher | None:
    if not config.teacher and not config.record:
        return None
    return open_teacher(config.teacher, config.record, patience=config.rollouts.patience)


def apply(data: Tasks, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Complete prompts with a trained policy, and say how often it is right.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The system's options; of them ``rollouts`` and ``evaluation.samples`` matter here.
    fitted
        What `fit` returned, or its folder.
    seed
        Of the sampling.

    Raises
    ------
    InputError
        Nothing fitted was given, or a prompt does not fit the context.
    """
    return policies.apply("kdrl", data, config, fitted, seed)
