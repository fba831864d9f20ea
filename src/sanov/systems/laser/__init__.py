r"""LaSeR: move the policy's last-token score onto the verifier's reward, and let the model grade its own answers.

A policy pi that answers x by y says how likely y is right by the probability that it gives one reserved token z after
EOS. Seen as a verification task with reward 1 for the right label, regularised towards a reference, the best policy is
the reference tilted by that reward, so that::

    r_s = beta (log pi(z | x, y) - c_ref)  ~  r_v in {0, 1},         c_ref for log pi_ref(z | x, y)

    L   = L_GRPO + alpha / (N_c + N_i) * sum over finished rows of w (r_s - r_v)^2
    w   = (N_c + N_i) / (2 N_c) for right rows, (N_c + N_i) / (2 N_i) for wrong ones
    A   = (1 - tau) A_v + tau A_s,   A_s = (r_s - mean) / std of the group, r_s held in [0, 1]

The loss begins after a warm-up, the advantages after another. At test time the score gives a verdict (r_s > 0.5), a
weighted vote, and the best of several answers; it costs one token.

Deviations from the paper
-------------------------
- The label is read from the logits at EOS itself, at temperature 1 whatever the temperature of sampling. The released
  code appends the label to the input; by causality that is the same number.
- The released code's advantages read another token than the label, and take truncated rows for good; its loss divides by
  all rows. Here advantages read the label, truncated rows count as 0 in them and not at all in the loss, which is divided
  by the finished rows of the whole step.
- c_ref is measured on the policy's own completions before the first step; where it varies too much for beta, the policy
  at its start takes its place. ``correction`` adds the neglected term beta log Z.
- The paper does not define its weighted vote: here a completion's weight is its score held in [0, 1]. A completion that
  was cut, or gives no answer, has score 0 and does not vote.
- With the tokenizer of the embedded tasks, whose c_ref is some -10, beta is 0.25 and warm-ups are short.

Reference: yang2025laser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sanov.core import pages
from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.learning import policies
from sanov.learning.policies import Evaluation, Lora, Start, Tasks
from sanov.learning.policy import Grpo, Optimisation
from sanov.learning.remembered import remembered
from sanov.learning.rollouts import Rollout
from sanov.learning.validation import Validation
from sanov.systems.laser import judging, reading, report
from sanov.systems.laser.calibration import Platt, fit_platt, fit_threshold, verdicts
from sanov.systems.laser.fitted import REFERENCE, Fitted, save_reference
from sanov.systems.laser.losses import (
    class_weights,
    label_losses,
    log_normaliser_term,
    mixed_advantages,
    self_reward,
    squared_errors,
)
from sanov.systems.laser.reading import Questions
from sanov.systems.laser.scale import Scale
from sanov.systems.laser.signal import SelfReward, SelfRewardSignal, permuted_labels
from sanov.systems.laser.votes import Vote, best_of_n, majority_vote, vote_table, weighted_vote

__all__ = [
    "Config",
    "Fitted",
    "Platt",
    "Questions",
    "Scale",
    "SelfReward",
    "SelfRewardSignal",
    "Vote",
    "apply",
    "best_of_n",
    "class_weights",
    "fit",
    "fit_platt",
    "fit_threshold",
    "label_losses",
    "log_normaliser_term",
    "majority_vote",
    "mixed_advantages",
    "permuted_labels",
    "read",
    "self_reward",
    "squared_errors",
    "verdicts",
    "vote_table",
    "weighted_vote",
]


class Config(Options):
    """Options of `laser`."""

    policy: str = option("", "Folder of a Hugging Face model; empty for a small one (`start`).", source="choice")
    rewards: tuple[str, ...] = option(
        (), "Reward functions: built in, or module:function; none for what the columns allow.", source="choice"
    )
    score_threshold: float | Literal["calibrated"] = option(
        0.5, "apply: a higher score says right; calibrated: fitted on a share of the prompts.", source="paper; choice"
    )
    calibration_share: float = option(
        0.5, "apply: share of the prompts that threshold and probabilities are fitted on.", source="choice", gt=0, lt=1
    )
    self_reward: SelfReward = SelfReward()
    rollouts: Rollout = Rollout()
    grpo: Grpo = Grpo()
    training: Optimisation = Optimisation()
    lora: Lora = Lora()
    evaluation: Evaluation = Evaluation()
    start: Start = Start()


def read(sources: Sequence[Any], config: Config) -> Questions:
    """Read prompts, and find their rewards.

    Parameters
    ----------
    sources
        Tables with a column ``prompt`` (JSONL, Parquet, CSV), or ``embedded:chain_sum`` and the like. With a column
        ``completion`` (a text, or a list) `apply` scores these; with ``answer`` and ``score`` it votes.
    config
        Which rewards.

    Raises
    ------
    InputError
        See `reading.read`.
    """
    return reading.read(sources, config.rewards)


def fit(data: Tasks, config: Config, *, seed: int = 0, out: str | Path | None = None, resume: bool = False) -> Fitted:
    """Train a policy on a verifier's rewards, and with it the score of its own answers.

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
        The label token cannot be used, beta does not go with c_ref, a reward is no 0 or 1, or see `learning.policies.fit`.
    """
    own, steps = config.self_reward, config.training.steps
    own.check_steps(steps)
    follows = own.reasoning_warmup_steps is None or own.warmup_steps is None  # they are a share of the steps
    opened = policies.start(data, config, seed=seed, out=out, resume=resume, follows=follows)
    signal = SelfRewardSignal(config.self_reward, seed=seed, keep=_keeper(out, opened[1], resume))

    def more(found: policies.Fitted, validation: Validation) -> tuple[Mapping[str, Any], list[pages.Block]]:
        return report.calibration(Fitted.of(found, signal.reference), validation, config.calibration_share, seed)

    how: dict[str, Any] = {"system": "laser", "config": config, "opened": opened, "seed": seed, "out": out}
    found = policies.fit(data, signals=[signal], resume=resume, follows=follows, more=more, **how)
    return Fitted.of(found, signal.reference)


def _keeper(out: str | Path | None, tokenizer: Any, resume: bool) -> Callable[[nn.Module], None] | None:
    """Return what writes the reference down, so that a policy in a folder can be scored with it."""
    if out is None:
        return None
    folder = Path(out)

    def keep(model: nn.Module) -> None:
        if not (resume and (folder / REFERENCE).is_dir()):
            save_reference(model, tokenizer, folder)

    return keep


def apply(data: Tasks, config: Config, *, fitted: policies.Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Complete prompts, or take the completions of a table; score them, judge the scores, and vote by them.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The system's options; of them ``score_threshold``, ``calibration_share``, ``rollouts``, ``evaluation.samples``
        matter here, and of ``self_reward`` what is to be other than `fit` stored. What is not given of ``rewards``,
        ``rollouts`` and ``evaluation.samples`` is as it was in the training.
    fitted
        What `fit` returned, or its folder: it scores its own completions, or those of the table. None where the table has
        scores.
    seed
        Of the sampling, of which prompts are there to calibrate on, and of intervals.

    Raises
    ------
    InputError
        There is nothing to score with, c_ref is missing, or see `judging` and `verification`.
    """
    questions = data if isinstance(data, Questions) else Questions(data.prompts, data.rewards)
    notes: list[str] = []
    untrained = None
    if fitted is None:
        if questions.given is None or questions.given.scores is None:
            fix = "first: sanov fit laser PROMPTS --out DIR; then pass --fitted DIR"
            expected = "a policy, or a table with a column `score`"
            raise InputError("there is no policy", where="laser", expected=expected, fix=fix)
        judged = judging.scored_already(questions)
    else:
        policy = _opened(fitted)
        untrained = policy.untrained()
        questions, config, notes = remembered(questions, config, policy)
        questions = reading.judged(questions)
        scale = judging.scale_of(policy, config.self_reward, questions, config.rollouts, seed=seed)
        if questions.given is not None:
            judged = judging.judge_given(policy, scale, questions, name=questions.prompts.name)
        else:
            samples = config.evaluation.samples
            judged = judging.judge_own(policy, scale, questions, config.rollouts, samples, seed=seed)
        notes.append(_told(scale))
    if reading.verifier_of(questions) is None and (questions.given is None or questions.given.answers is None):
        notes.append(PLAIN)
    answer = report.answer(
        judged,
        threshold=config.score_threshold,
        share=config.calibration_share,
        seed=seed,
        notes=notes,
        provenance={"input": questions.prompts.digest()},
        prompts=questions.prompts,
    )
    return answer if untrained is None else replace(answer, sentence=f"{untrained}; {answer.sentence}")


PLAIN = (
    "no built-in reward reads answers here: an answer is the last box of a completion, else what follows its last #### or "
    "colon, else all of it."
)


def _opened(fitted: Any) -> Fitted:
    if isinstance(fitted, str | Path):
        return Fitted.load(fitted)
    return fitted if isinstance(fitted, Fitted) else Fitted.of(fitted)


def _told(scale: Scale) -> str:
    token = f"the token {scale.token} after the answer"
    if scale.loss == "bce":
        return f"the score is the probability of {token}."
    if scale.exact:
        return f"the score is {scale.beta:g} times the gain in log-probability, since the policy's start, of {token}."
    return f"the score is {scale.beta:g} (log p - c_ref) with c_ref = {scale.constant:.3f} and p the probability of {token}."
