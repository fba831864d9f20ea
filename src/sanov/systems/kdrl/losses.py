"""The mathematics of KDRL: estimators of the reverse KL as losses, masks, the coefficient, and every way to combine.

With d = log pi(o) - log pi_T(o) at tokens o that the policy sampled, and R = -d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.divergences import kl
from sanov.estimators import k2, k3

__all__ = [
    "Combine",
    "Denominator",
    "Estimator",
    "Mask",
    "Schedule",
    "coefficient",
    "distillation_mask",
    "distillation_values",
    "exact_values",
    "return_to_go",
    "token_advantages",
]

Estimator = Literal["k1", "k2", "k3", "k3_is", "exact"]
Mask = Literal["none", "response", "group"]
Denominator = Literal["all_tokens", "masked_tokens"]
Schedule = Literal["constant", "linear", "cosine", "exponential"]
Combine = Literal["loss", "advantage", "reward", "grpo", "opd", "opd_then_rl", "srpo", "hdpo", "rlsd", "trrd", "sft"]

LARGEST = 20.0  # nats: exp of a larger log-ratio says nothing more, and overflows in the end


def distillation_values(
    log_policy: Float[Tensor, "rows tokens"],
    log_teacher: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    estimator: Estimator = "k2",
    *,
    log_old: Float[Tensor, "rows tokens"] | None = None,
    clip: float | None = None,
) -> Float[Tensor, "rows tokens"]:
    """Estimate KL(policy || teacher) of each sampled token, as a loss: what counts is its gradient.

    ``k2`` and ``k3_is`` (k3 times the differentiable ratio to the policy that sampled) follow the reverse KL, ``k3`` the
    forward KL. k1 is refused: its expected gradient is zero, whatever the teacher says.

    Parameters
    ----------
    log_policy
        Log-probabilities of the sampled tokens, with gradient, [rows, tokens].
    log_teacher
        The teacher's, without gradient.
    mask
        True where a token counts; the others are exactly zero.
    estimator
        ``k2``, ``k3`` or ``k3_is``.
    log_old
        For ``k3_is``: the policy's when it sampled; None for now.
    clip
        Largest factor of grad log pi; None for any. The loss keeps its value, and the gradient its direction, where a
        clamp of the loss itself would have no gradient at all.

    Returns
    -------
    Values in nats, [rows, tokens].

    Raises
    ------
    InputError
        There is no such estimator, or it is k1.

    Reference
    ---------
    xu2025kdrl, App. A.3.
    """
    refuse_k1(estimator)
    if estimator not in ("k2", "k3", "k3_is"):
        raise InputError(f"it is {estimator!r}", where="estimator", expected="k2, k3 or k3_is")
    gap = torch.where(mask, log_policy - log_teacher.detach(), 0.0)
    held = gap.clamp(-LARGEST, LARGEST)
    with torch.no_grad():
        if estimator == "k2":
            values, slope = k2(gap), gap
        else:
            values, slope = k3(held), -torch.expm1(-held)
            if estimator == "k3_is":  # d (ratio k3) = ratio (k3 + k3') d log pi = ratio d d log pi
                ratio = torch.ones_like(gap) if log_old is None else (log_policy - log_old).clamp(max=LARGEST).exp()
                values, slope = ratio * values, ratio * held
        slope = slope if clip is None else slope.clamp(-clip, clip)
        slope = slope * mask
    moved = torch.where(mask, log_policy, 0.0)
    return (values * mask) + slope * (moved - moved.detach())


def refuse_k1(estimator: Estimator) -> None:
    """Refuse the estimator whose expected gradient is zero."""
    if estimator == "k1":
        found = "k1 as a loss has zero expected gradient: the teacher would not matter"
        raise InputError(found, where="kd.estimator", fix="use k2, or kd.combine=advantage")


def exact_values(
    logits: Float[Tensor, "places vocabulary"],
    log_teacher: Float[Tensor, "places vocabulary"],
    temperature: float = 1.0,
) -> Float[Tensor, " places"]:
    """Reverse KL of each place, over the whole vocabulary.

    Parameters
    ----------
    logits
        The policy's.
    log_teacher
        The teacher's log-probabilities.
    temperature
        Of the policy's softmax.

    Reference
    ---------
    xu2025kdrl, eq. 4.
    """
    return kl((logits / temperature).log_softmax(dim=-1), log_teacher)


def distillation_mask(
    kind: Mask,
    completion: Bool[Tensor, "rows tokens"],
    rewards: Float[Tensor, " rows"],
    group_size: int,
    last: Bool[Tensor, "rows tokens"] | None = None,
) -> Bool[Tensor, "rows tokens"]:
    """Return the tokens that are distilled: all, those of wrong completions, or of prompts without a right one.

    Parameters
    ----------
    kind
        ``none``, ``response`` or ``group``.
    completion
        True on tokens of completions.
    rewards
        0 or 1; the rows of a group side by side. A row without a reward (NaN) counts as wrong.
    group_size
        Completions a prompt.
    last
        True on tokens to leave out: EOS, where the teacher has another one.

    Reference
    ---------
    xu2025kdrl, sec. 3.4.
    """
    right = rewards > 0
    if kind == "response":
        completion = completion & ~right[:, None]
    elif kind == "group":
        failed = ~right.view(-1, group_size).any(dim=1)
        completion = completion & failed.repeat_interleave(group_size)[:, None]
    return completion if last is None else completion & ~last


def coefficient(
    kind: Schedule, start: float, end: float, steps: int, *, decay: float | None = None, share: float | None = None
) -> Callable[[int], float]:
    """Return beta as a function of the step, which counts from 0.

    Parameters
    ----------
    kind
        Shape of the way from `start` to `end`.
    start, end
        Values at step 0, and from the end of the way on.
    steps
        Length of the run.
    decay
        Linear: what a step takes away.
    share
        Share of the steps after which `end` is reached.

    Reference
    ---------
    xu2025kdrl, sec. 3.3: max(5e-3 - 5e-5 step, 1e-3).
    """
    if kind == "constant":
        return lambda step: start
    if kind == "linear" and decay is not None:
        return lambda step: max(start - decay * step, end)
    length = max((1.0 if share is None else share) * steps, 1.0)

    def beta(step: int) -> float:
        done = min(step / length, 1.0)
        if kind == "linear":
            return start + (end - start) * done
        if kind == "cosine":
            return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
        return start * (end / start) ** done if start > 0 and end > 0 else start * (1 - done)

    return beta


def return_to_go(rewards: Float[Tensor, "rows tokens"], discount: float) -> Float[Tensor, "rows tokens"]:
    """Sum of each token's and all later rewards, those s tokens later times discount^s.

    Parameters
    ----------
    rewards
        0 outside of completions.
    discount
        0 leaves the rewards as they are, 1 gives the gradient of the KL of whole sequences.
    """
    if discount == 0:
        return rewards
    found = rewards.clone()
    for place in range(rewards.shape[1] - 2, -1, -1):
        found[:, place] += discount * found[:, place + 1]
    return found


def token_advantages(
    combine: Combine,
    advantages: Float[Tensor, "rows tokens"],
    teacher_reward: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    right: Bool[Tensor, " rows"],
    beta: float,
    *,
    step: int = 0,
    opd_steps: int = 60,
    rlsd_lambda: float = 0.5,
    rlsd_epsilon: float = 0.2,
) -> Float[Tensor, "rows tokens"]:
    """Return the advantage of each token, for the ways that are one surrogate.

    Parameters
    ----------
    combine
        The way. ``loss``, ``reward``, ``grpo`` and ``trrd`` leave the advantages as they are.
    advantages
        Of GRPO.
    teacher_reward
        R, or its return to go.
    mask
        The tokens that are distilled: for ``hdpo`` those of prompts without a right completion.
    right
        Which rows are right.
    beta
        The coefficient now.
    step, opd_steps
        ``opd_then_rl`` takes the teacher's reward in the first `opd_steps` steps; steps count from 0.
    rlsd_lambda, rlsd_epsilon
        Share and range of the factor of ``rlsd``.

    Reference
    ---------
    arXiv 2609.04108, which lists them; arXiv 2602.22495 (trrd).
    """
    reward = torch.where(mask, teacher_reward, 0.0)
    if combine in ("advantage", "hdpo"):
        return advantages + beta * reward
    if combine == "opd":
        return reward
    if combine == "opd_then_rl":
        return reward if step < opd_steps else advantages
    if combine == "srpo":
        return torch.where(right[:, None], advantages, reward)
    if combine == "rlsd":
        held = (advantages.sign() * teacher_reward).clamp(-LARGEST, LARGEST).exp()
        return (1 - rlsd_lambda + rlsd_lambda * held.clamp(1 - rlsd_epsilon, 1 + rlsd_epsilon)) * advantages
    return advantages
