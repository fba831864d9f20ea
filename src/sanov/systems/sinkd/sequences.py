"""Distillation of sequences without a shared vocabulary: the multi-level transport of MultiLevelOT, as pure losses.

Student and teacher may have different tokenizers. At each position the logits are divided by their standard deviation
over the vocabulary, of which a token with a logit of ``-inf`` is no part; then, with each side's own most probable tokens
ranked,

    L = mean_i [ mean_t ||s_t - t_t||_1  +  0.1 * mean_t H(t_t, s_t)  +  0.1 * 0.001 * SD(s, t) ]

where SD is the sum form of the Sinkhorn distance between the two sequences of token distributions. Every softmax and sum
over tokens is over the last axis, and every one over positions over the axis before it.

Deviations from the released code: probabilities are not put through a second softmax before the transport term, and that
term is averaged over the sequences as the others are, not summed. The ranking is by probability over the batch, as there.

Reference: cui2025multilevel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sanov.divergences import masked_mean
from sanov.precision import widen
from sanov.transport import pairwise_cost, sinkhorn

__all__ = ["SequenceLoss", "ranked_distributions", "sequence_loss"]

FLOOR = 1e-4  # added to the standard deviation of a position's logits (released code)
FLAT = 1e-9  # probability below which a logarithm is cut


class SequenceLoss(NamedTuple):
    """The three levels, each a mean over sequences, before their weights."""

    ranked: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    transport: Float[Tensor, ""]

    def total(self, cross_entropy_weight: float = 0.1, transport_weight: float = 1e-4) -> Float[Tensor, ""]:
        """Weighted sum; the defaults are the released code's (its 0.1 times 0.001 for transport)."""
        return self.ranked + cross_entropy_weight * self.cross_entropy + transport_weight * self.transport


def ranked_distributions(
    logits: Float[Tensor, "batch time vocab"], mask: Bool[Tensor, "batch time"], top: int = 50
) -> Float[Tensor, "batch time top"]:
    """Distributions over a side's own most probable tokens, in the order of their probability over the whole batch.

    Parameters
    ----------
    logits
        Of every position; ``-inf`` forbids a token.
    mask
        True at the positions of the answer; what stands at the others, a NaN too, does not matter.
    top
        Tokens kept; 0 keeps all.

    Returns
    -------
    Probabilities, whose sum over the last axis falls short of 1 by that of the tokens left out; equal where masked.
    """
    logits = widen(logits).masked_fill(~mask.unsqueeze(-1), 0)
    probabilities = torch.softmax(_scaled(logits), dim=-1)
    mass = (probabilities.detach() * mask.unsqueeze(-1)).sum(dim=(0, 1))
    order = mass.argsort(descending=True, stable=True)[: top or None]
    return probabilities[..., order]


def _scaled(logits: Float[Tensor, "batch time vocab"]) -> Float[Tensor, "batch time vocab"]:
    """Divide the logits of a position by their standard deviation; forbidden tokens stay so and do not count."""
    forbidden = logits == -math.inf
    allowed = (~forbidden).sum(dim=-1, keepdim=True)
    logits = logits.masked_fill(forbidden, 0)
    centred = (logits - logits.sum(dim=-1, keepdim=True) / allowed).masked_fill(forbidden, 0)
    # a norm, unlike the root of a sum, has a gradient where all are equal
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (allowed - 1).clamp_min(1).sqrt()
    return (logits / (deviation + FLOOR)).masked_fill(forbidden, -math.inf)


def sequence_loss(
    student_logits: Float[Tensor, "batch time student_vocab"],
    teacher_logits: Float[Tensor, "batch time teacher_vocab"],
    mask: Bool[Tensor, "batch time"],
    *,
    top: int = 50,
    epsilon: float = 0.1,
    iterations: int = 10,
) -> SequenceLoss:
    """Multi-level transport loss between answers of one length under two vocabularies.

    Parameters
    ----------
    student_logits, teacher_logits
        Of the same positions; the vocabularies may differ, and ``-inf`` forbids a token. No gradient reaches the teacher.
    mask
        True at the positions of the answer, the others may hold anything; a sequence without any adds 0.
    top
        Tokens kept on each side.
    epsilon, iterations
        Of the transport between the positions of one sequence.

    Returns
    -------
    Ranked L1, cross-entropy and SD (sum form), each averaged over the sequences.
    """
    student = ranked_distributions(student_logits, mask, top)
    teacher = ranked_distributions(teacher_logits.detach(), mask, top)
    width = max(student.shape[-1], teacher.shape[-1])
    student, teacher = (torch.nn.functional.pad(side, (0, width - side.shape[-1])) for side in (student, teacher))
    answers = mask.any(dim=-1)
    ranked = _mean_over_positions((student - teacher).abs().sum(dim=-1), mask)
    cross = _mean_over_positions(-(teacher * student.clamp_min(FLAT).log()).sum(dim=-1), mask)
    moved = [
        span.sum() * sinkhorn(pairwise_cost(s[span], t[span]), epsilon=epsilon, iterations=iterations).cost
        for s, t, span in zip(student, teacher, mask, strict=True)
        if span.any()
    ]
    transport = torch.stack(moved).mean() if moved else student.sum() * 0.0
    return SequenceLoss(masked_mean(ranked, answers), masked_mean(cross, answers), transport)


def _mean_over_positions(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)
