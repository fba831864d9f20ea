"""What a policy-gradient step weighs its samples with: rewards relative to their group, and a clipped ratio."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import widen

__all__ = ["clipped_surrogate", "group_advantages"]

Scale = Literal["group", "batch", "none"]


def group_advantages(
    rewards: Float[Tensor, " rows"] | Int[Tensor, " rows"] | Bool[Tensor, " rows"],
    group_size: int,
    scale: Scale = "group",
    eps: float = 1e-6,
) -> Float[Tensor, " rows"]:
    """Rewards less the mean of their group, over a standard deviation.

    ``group`` divides by the standard deviation of the group, as GRPO does; ``none`` only centres, as Dr. GRPO does,
    which gives prompts on which all answers nearly agree no extra weight; ``batch`` divides by the standard deviation
    of all rewards. Standard deviations are unbiased (n - 1). The advantages of a group sum to zero, and are exactly
    zero where its rewards are equal.

    Parameters
    ----------
    rewards
        [groups * group_size], the answers to one prompt side by side. Whole numbers and truth values count as float32.
    group_size
        Answers a prompt, at least 2.
    scale
        ``group``, ``batch`` or ``none``.
    eps
        Added to the standard deviation.

    Returns
    -------
    Advantages, [groups * group_size], float32 or wider.

    Raises
    ------
    InputError
        If the group size is below 2 or does not divide the number of rewards, or the scale is unknown.

    Reference
    ---------
    shao2024grpo, sec. 4.1.2 (``group``); liu2025drgrpo, sec. 3.2 (``none``).
    """
    if scale not in get_args(Scale):
        raise InputError(f"it is {scale!r}", where="scale", expected="group, batch or none")
    if group_size < 2 or len(rewards) % group_size:
        found = f"it is {group_size}, with {len(rewards)} rewards"
        raise InputError(found, where="group_size", expected="at least 2, and a divisor of the number of rewards")
    rewards = widen(rewards) if rewards.is_floating_point() else rewards.float()
    groups = rewards.view(-1, group_size)
    shifted = groups - groups[:, :1]  # equal rewards are exactly zero now, which their mean need not give
    centred = shifted - shifted.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (shifted.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        centred = centred / (rewards.std() + eps)
    return centred.view(-1)


def clipped_surrogate(
    log_new: Float[Tensor, "rows tokens"],
    log_old: Float[Tensor, "rows tokens"],
    advantages: Float[Tensor, " rows"] | Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    low: float,
    high: float,
) -> Float[Tensor, "rows tokens"]:
    """Clipped surrogate min(ratio A, clip(ratio, 1 - low, 1 + high) A) of each token, to be *maximised*.

    The ratio is exp(log_new - log_old). A loss is minus its sum over a number of tokens of the caller's choice. The
    minimum only ever takes away the incentive to move further: a token whose ratio has left the range in the direction
    that its advantage asks for has no gradient. With ``log_old = log_new.detach()`` the ratio is 1, nothing is clipped,
    and the gradient is A grad log_new.

    The log-ratio is held below the logarithm of the largest float (88.7 in float32, 709.8 in float64). A token beyond it,
    as every one is that was impossible when it was sampled, has no gradient, and a finite ratio.

    Parameters
    ----------
    log_new, log_old
        Log-probabilities of the sampled tokens under the policy now and when they were sampled, [rows, tokens]. The
        gradient goes to both if both ask for it.
    advantages
        One a row, or one a token.
    mask
        True where a token counts; the others are exactly zero, whatever stands there.
    low, high
        How far the ratio may fall below and rise above 1; low in [0, 1], high not negative.

    Returns
    -------
    Surrogates, [rows, tokens], float32 or wider.

    Raises
    ------
    InputError
        If the clip range is none.

    Reference
    ---------
    schulman2017ppo, eq. 7; yu2025dapo, sec. 3.1 (low and high apart).
    """
    if not (0 <= low <= 1 and high >= 0):
        raise InputError(f"low is {low} and high is {high}", where="clip range", expected="0 <= low <= 1 and high >= 0")
    weight = widen(advantages if advantages.ndim == 2 else advantages.unsqueeze(-1))
    log_ratio = (widen(log_new) - widen(log_old)).masked_fill(~mask, 0)
    number = torch.finfo(log_ratio.dtype)
    ratio = log_ratio.clamp(max=math.log(number.max) * (1 - number.eps)).exp()
    surrogate = torch.minimum(ratio * weight, ratio.clamp(1 - low, 1 + high) * weight)
    return surrogate.masked_fill(~mask, 0)
