"""Estimates of KL(p || q) from samples x ~ p, through their log-ratios log p(x) - log q(x).

As *values*, k1 and k3 are unbiased and k2 is not. As *losses* on fixed samples of the moving p they are something else:
the gradient follows whatever divergence has it, which `score_gradient_target` names.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.linear_heads import linear_token_log_probs
from sanov.precision import widen

__all__ = ["k1", "k2", "k3", "linear_token_log_probs", "score_gradient_target", "token_log_probs"]

Kind = Literal["k1", "k2", "k3"]
Target = Literal["zero", "reverse_kl", "forward_kl"]


def k1(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return r = log p(x) - log q(x): unbiased for KL(p || q), of either sign.

    Parameters
    ----------
    log_ratio
        log p(x) - log q(x) at samples x ~ p.

    Returns
    -------
    One estimate a sample, in nats, float32 or wider.

    Reference
    ---------
    schulman2020kl.
    """
    return widen(log_ratio)


def k2(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return r^2 / 2: never negative, of low variance, and biased; exact to second order where p and q are near.

    Parameters
    ----------
    log_ratio
        log p(x) - log q(x) at samples x ~ p.

    Returns
    -------
    One estimate a sample, in nats, float32 or wider.

    Reference
    ---------
    schulman2020kl.
    """
    return widen(log_ratio).square() / 2


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return exp(-r) - 1 + r: unbiased for KL(p || q) where q is zero outside the support of p, and never negative.

    Parameters
    ----------
    log_ratio
        log p(x) - log q(x) at samples x ~ p. It overflows below about -88 in float32.

    Returns
    -------
    One estimate a sample, in nats, float32 or wider.

    Reference
    ---------
    schulman2020kl.
    """
    log_ratio = widen(log_ratio)
    return torch.expm1(-log_ratio) + log_ratio


def score_gradient_target(kind: Kind) -> Target:
    """Name the divergence whose gradient an estimator has in expectation when it is used as a loss.

    p is the policy that moves, and the samples x ~ p are held fixed. With r = log p(x) - log q(x) the gradient of a
    loss k(r) is k'(r) grad log p(x), and E_p[grad log p] = 0. Hence

    - k1, with k' = 1, follows nothing: q does not enter, and the expected gradient is zero;
    - k2, with k' = r, follows the reverse KL(p || q);
    - k3, with k' = 1 - exp(-r), follows the forward KL(q || p), as maximum likelihood on samples of q would.

    Parameters
    ----------
    kind
        ``k1``, ``k2`` or ``k3``.

    Returns
    -------
    ``zero``, ``reverse_kl`` for KL(p || q), or ``forward_kl`` for KL(q || p).

    Raises
    ------
    InputError
        If there is no such estimator.

    Reference
    ---------
    xu2025kdrl, App. A.3 (k1, k2, k3).
    """
    if kind not in get_args(Kind):
        raise InputError(f"it is {kind!r}", where="kind", expected="k1, k2 or k3")
    targets: dict[Kind, Target] = {"k1": "zero", "k2": "reverse_kl", "k3": "forward_kl"}
    return targets[kind]


def token_log_probs(
    logits: Float[Tensor, "*batch vocabulary"], tokens: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability of each token: its logit less the log-sum-exp of all.

    The log-softmax of the whole vocabulary, as large as the logits, is neither kept for the backward pass nor returned.

    Parameters
    ----------
    logits
        [*batch, vocabulary]; ``-inf`` forbids a token.
    tokens
        Indices into the vocabulary, [*batch].

    Returns
    -------
    Log-probabilities in nats, [*batch], float32 or wider.

    Reference
    ---------
    The computation is ours; equal to the log-softmax at the tokens.
    """
    logits = widen(logits)
    return logits.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
