"""The mathematics of LaSeR: the score, its loss balanced over right and wrong answers, and the advantage it joins.

Everything is of rows: one completion each. ``log_self`` is the log-probability of the label token after EOS under the
policy, from logits that no temperature has touched.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import widen
from sanov.tilting import implicit_reward

__all__ = [
    "class_weights",
    "label_losses",
    "log_normaliser_term",
    "mixed_advantages",
    "self_reward",
    "squared_errors",
]


def self_reward(
    log_self: Float[Tensor, " rows"],
    log_reference: Float[Tensor, " rows"] | float,
    beta: float,
    *,
    correction: bool = False,
) -> Float[Tensor, " rows"]:
    """Return the score beta (log pi(z | x, y) - log pi_ref(z | x, y)), about 1 for a right answer and 0 for a wrong one.

    Parameters
    ----------
    log_self
        Log-probability of the label token under the policy.
    log_reference
        The same under the reference: one a row, or the constant that stands for all.
    beta
        Coefficient of the KL term of the imagined verification task.
    correction
        Add beta log Z, which the paper neglects: where the reference is no smaller than some e^-8 it counts.

    Raises
    ------
    InputError
        Beta is not positive.

    Reference
    ---------
    yang2025laser.
    """
    log_self = widen(log_self)
    reference = torch.as_tensor(log_reference, dtype=log_self.dtype, device=log_self.device).expand_as(log_self)
    found = implicit_reward(log_self, reference, beta)
    return found + log_normaliser_term(reference, beta) if correction else found


def log_normaliser_term(log_reference: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """Return beta log Z with Z = 1 + pi_ref(z) (exp(1 / beta) - 1), where the one label z is rewarded by 1.

    Parameters
    ----------
    log_reference
        log pi_ref(z).
    beta
        Positive.

    Reference
    ---------
    yang2025laser, eq. 9 in the form where exactly one label is rewarded; `tilting.log_normaliser` over two outcomes.
    """
    grown = 1 / beta + math.log1p(-math.exp(-1 / beta))  # log(exp(1 / beta) - 1), which may itself overflow
    exponent = widen(log_reference) + grown
    return beta * torch.logaddexp(torch.zeros_like(exponent), exponent)


def class_weights(
    right: Bool[Tensor, " rows"],
    counted: Bool[Tensor, " rows"],
    n_right: int,
    n_wrong: int,
    *,
    balanced: bool = True,
) -> Float[Tensor, " rows"]:
    """Return N / (2 N_c) for right rows and N / (2 N_i) for wrong ones, 0 for those that do not count.

    With both classes present the weights add up to N = N_c + N_i. A single class gets one half.

    Parameters
    ----------
    right
        Which rows are right.
    counted
        Finished rows whose reward is known.
    n_right, n_wrong
        Of the whole step: over all micro-batches and processes.
    balanced
        False: 1 for all that count.

    Reference
    ---------
    yang2025laser, eq. 14.
    """
    total = n_right + n_wrong
    by_class = [total / (2 * n) if n else 0.0 for n in (n_wrong, n_right)] if balanced else [1.0, 1.0]
    return torch.tensor(by_class, dtype=torch.float64, device=right.device)[right.long()] * counted


def squared_errors(
    scores: Float[Tensor, " rows"], right: Bool[Tensor, " rows"], weights: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Return w (r_s - r_v)^2 of each row; the loss is their sum over the number of rows that count.

    Parameters
    ----------
    scores
        r_s, with gradient. Where a row does not count, anything.
    right
        r_v.
    weights
        See `class_weights`.

    Reference
    ---------
    yang2025laser, eq. 14.
    """
    error = torch.where(weights > 0, scores - right.to(scores.dtype), 0.0)
    return weights.to(scores.dtype) * error**2


def label_losses(log_label: Float[Tensor, " rows"], weights: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return -w log pi(label | x, y) of each row: the cross-entropy of a verifier with two label tokens, a baseline.

    Parameters
    ----------
    log_label
        Log-probability of the label that is true of a row.
    weights
        See `class_weights`.

    Reference
    ---------
    yang2025laser, released code.
    """
    return -weights.to(log_label.dtype) * torch.where(weights > 0, log_label, 0.0)


def mixed_advantages(
    advantages: Float[Tensor, " rows"] | Float[Tensor, "rows tokens"],
    scores: Float[Tensor, " rows"],
    finished: Bool[Tensor, " rows"],
    group_size: int,
    tau: float,
    threshold: float = 0.1,
) -> tuple[Tensor, Bool[Tensor, " groups"]]:
    """Mix advantages of scores, relative to their group, into those of rewards: (1 - tau) A_v + tau A_s.

    Scores are clamped to [0, 1], and those of rows that were cut are 0. A group whose scores have a standard deviation of
    at most the threshold keeps its advantages as they are, bit for bit.

    Parameters
    ----------
    advantages
        A_v, the rows of a group side by side; one a row or one a token.
    scores
        r_s under the policy that sampled. No gradient flows through them; where a row was cut, anything.
    finished
        Which rows ended by themselves.
    group_size
        At least 2.
    tau
        Share of A_s.
    threshold
        Least standard deviation (divided by n - 1) of scores that say anything.

    Returns
    -------
    The advantages, and the groups that were left alone.

    Raises
    ------
    InputError
        Groups of one.

    Reference
    ---------
    yang2025laser, eq. 15.
    """
    if group_size < 2:
        found = "SWA needs at least 2 completions per prompt"
        raise InputError(found, where="rollouts.group_size", fix="set self_reward.tau=0, or larger groups")
    held = torch.where(finished, scores.detach().to(advantages.dtype).clamp(0, 1), 0.0).view(-1, group_size)
    spread = held.std(dim=1, keepdim=True)
    filtered = spread[:, 0] <= threshold
    relative = (held - held.mean(dim=1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
    shared = relative.flatten() if advantages.ndim == 1 else relative.flatten()[:, None]
    mixed = (1 - tau) * advantages + tau * shared
    left = filtered.repeat_interleave(group_size)
    return torch.where(left if advantages.ndim == 1 else left[:, None], advantages, mixed), filtered
