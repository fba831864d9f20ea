"""A reference tilted by a reward, and the way back from the tilted model to the reward.

Among all p, the tilt ``p*(x) = ref(x) exp(r(x) / beta) / Z`` maximises ``E_p[r] - beta KL(p || ref)``, with the maximum
``beta log Z``: it is the information projection of the reference onto the distributions with as much reward.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import widen

__all__ = ["equivalent_beta", "geometric_average", "implicit_reward", "log_normaliser", "mix", "tilt"]


def tilt(
    log_ref: Float[Tensor, "*batch classes"], reward: Float[Tensor, "*batch classes"], beta: float
) -> Float[Tensor, "*batch classes"]:
    """Tilt a reference by a reward: log ref + reward / beta, normalised over the last axis.

    Parameters
    ----------
    log_ref
        Log-probabilities of the reference, [*batch, classes].
    reward
        Of each class; ``-inf`` forbids it, and a constant added to a row changes nothing.
    beta
        Coefficient of the KL term, positive, in units of the reward: the smaller, the further from the reference. At
        infinity it is the reference, where no reward counts, not even an infinite one.

    Returns
    -------
    Log-probabilities of the tilted distribution, [*batch, classes], float32 or wider.

    Raises
    ------
    InputError
        If beta is not positive.

    Reference
    ---------
    rafailov2023dpo, eq. 4.
    """
    return _exponents(log_ref, reward, beta).log_softmax(dim=-1)


def log_normaliser(
    log_ref: Float[Tensor, "*batch classes"], reward: Float[Tensor, "*batch classes"], beta: float
) -> Float[Tensor, "*batch"]:
    """Logarithm of the normaliser of the tilt, log Z = log E_ref[exp(reward / beta)].

    ``beta log Z`` is the maximum of ``E_p[reward] - beta KL(p || ref)`` over p.

    Parameters
    ----------
    log_ref, reward, beta
        As in `tilt`.

    Returns
    -------
    log Z, [*batch], float32 or wider.

    Raises
    ------
    InputError
        If beta is not positive.

    Reference
    ---------
    rafailov2023dpo, eq. 4.
    """
    return _exponents(log_ref, reward, beta).logsumexp(dim=-1)


def implicit_reward(
    log_tuned: Float[Tensor, "*shape"], log_ref: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """Reward for which a tuned model is the tilt of its reference: beta (log tuned - log ref), per element.

    Where ``log_tuned = tilt(log_ref, r, beta)`` it is ``r - beta log Z``, so that adding ``beta log_normaliser(log_ref,
    r, beta)`` gives r exactly. Differences between answers to one prompt need no normaliser.

    Parameters
    ----------
    log_tuned, log_ref
        Log-probabilities of the same outcomes (tokens, or whole answers) under the two models, of any one shape.
    beta
        Coefficient of the KL term, positive.

    Returns
    -------
    Rewards, of the same shape, float32 or wider; NaN, that is undetermined, for an outcome impossible under both.

    Raises
    ------
    InputError
        If beta is not positive.

    Reference
    ---------
    rafailov2023dpo, eq. 5.
    """
    _check_beta(beta)
    return beta * (widen(log_tuned) - widen(log_ref))


def geometric_average(
    log_ref: Float[Tensor, "*batch classes"], log_tuned: Float[Tensor, "*batch classes"], weight: float
) -> Float[Tensor, "*batch classes"]:
    """Normalised geometric average ref^(1 - w) tuned^w, extrapolated beyond the two where w < 0 or w > 1.

    If ``log_tuned = tilt(log_ref, r, beta)`` it is ``tilt(log_ref, r, equivalent_beta(beta, w))``.

    Parameters
    ----------
    log_ref, log_tuned
        Log-probabilities, [*batch, classes].
    weight
        Exponent w of the tuned distribution: 0 gives the reference, 1 the tuned one.

    Returns
    -------
    Log-probabilities, [*batch, classes], float32 or wider. A class that is impossible under either is impossible (at
    w = 0 and w = 1 only the one that is given back counts); where that leaves none, NaN.

    Reference
    ---------
    csiszar1975divergence, sec. 3 (the exponential family through two distributions).
    """
    parts = [(c, log_p) for c, log_p in ((1 - weight, widen(log_ref)), (weight, widen(log_tuned))) if c != 0]
    impossible = torch.stack([log_p == -math.inf for _, log_p in parts]).any(dim=0)
    exponents = torch.stack([c * log_p for c, log_p in parts]).sum(dim=0)
    return exponents.masked_fill(impossible, -math.inf).log_softmax(dim=-1)


def mix(
    ref: Float[Tensor, "*shape"], tuned: Float[Tensor, "*shape"], weight: float | Float[Tensor, "*weights"]
) -> Float[Tensor, "*shape"]:
    """Affine combination (1 - w) ref + w tuned, for scores, velocities and logits.

    A score is the gradient of a log-density, so that mixing scores averages the densities geometrically.

    Parameters
    ----------
    ref, tuned
        Outputs of the two models, of one shape.
    weight
        Weight w of the tuned model, a number or a tensor that broadcasts; beyond 1 it extrapolates. 0, 1, and equal
        inputs give back an input exactly.

    Returns
    -------
    The combination, of the same shape, float32 or wider.
    """
    return torch.lerp(widen(ref), widen(tuned), weight)


def equivalent_beta(beta: float, weight: float) -> float:
    """KL coefficient of the tilt that a geometric average of weight w amounts to: beta / w.

    Parameters
    ----------
    beta
        KL coefficient with which the tuned model is the tilt of its reference, positive.
    weight
        Weight w of the tuned model, not negative.

    Returns
    -------
    The coefficient; infinite at weight 0, which is the reference itself.

    Raises
    ------
    InputError
        If beta is not positive, or the weight is negative.
    """
    _check_beta(beta)
    if not weight >= 0:
        raise InputError(f"it is {weight}", where="weight", expected="a number not below 0")
    return beta / weight if weight else math.inf


def _exponents(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    _check_beta(beta)
    reward = widen(reward)
    if beta == math.inf:  # as weight 0 in `geometric_average`
        reward = reward.masked_fill(reward.isinf(), 0)
    return widen(log_ref) + reward / beta


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise InputError(f"it is {beta}", where="beta", expected="a positive number")
