"""Divergences between distributions, given by the logarithms of their probabilities.

The last axis holds the classes and is reduced; nothing else is. Logarithms are natural and normalised, ``0 log 0 = 0``,
and a probability of zero is a log-probability of ``-inf``, as a logit of ``-inf`` gives it. Where a value is finite so
is its gradient; an infinite value has the gradient of its finite terms. Half precision is computed in float32.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.linear_heads import linear_jensen_shannon, linear_kl, linear_kl_per_token
from sanov.precision import widen

__all__ = [
    "bernoulli_kl",
    "entropy",
    "gaussian_kl",
    "jensen_shannon",
    "kl",
    "linear_jensen_shannon",
    "linear_kl",
    "linear_kl_per_token",
    "masked_mean",
    "total_variation",
]


def entropy(log_p: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Entropy H(p) = -sum_c p_c log p_c, between 0 and log(classes) nats.

    Parameters
    ----------
    log_p
        Log-probabilities, [*batch, classes].

    Returns
    -------
    Entropies in nats, [*batch], float32 or wider.

    Reference
    ---------
    shannon1948communication, sec. 6.
    """
    log_p = widen(log_p)
    return -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0)).sum(dim=-1)


def kl(log_p: Float[Tensor, "*batch classes"], log_q: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence KL(p || q) = sum_c p_c (log p_c - log q_c).

    It is zero if and only if p = q, and infinite if q gives probability zero to a class to which p does not.

    Parameters
    ----------
    log_p, log_q
        Log-probabilities, [*batch, classes].

    Returns
    -------
    Divergences in nats, [*batch], float32 or wider. Rounding may leave about -1e-16 of a float64 zero unless p = q
    exactly.

    Raises
    ------
    InputError
        If the shapes differ.

    Reference
    ---------
    kullback1951information, sec. 2.
    """
    log_p, log_q = _pair(log_p, log_q)
    log_ratio = (log_p - log_q).masked_fill(log_p == -math.inf, 0)
    infinite = log_ratio == math.inf
    # set apart before the product, where a p that underflows to zero would make them NaN
    terms = log_p.exp() * log_ratio.masked_fill(infinite, 0)
    return terms.masked_fill(infinite, math.inf).sum(dim=-1)


def jensen_shannon(
    log_p: Float[Tensor, "*batch classes"], log_q: Float[Tensor, "*batch classes"], weight: float = 0.5
) -> Float[Tensor, "*batch"]:
    """Generalised Jensen-Shannon divergence JS_w = w KL(p || m) + (1 - w) KL(q || m), with m = w p + (1 - w) q.

    It lies between 0 (p = q) and the entropy of the weight, -w log w - (1 - w) log(1 - w) (no class in common); at w =
    1/2 it is symmetric, with the upper bound log 2. At both ends of the weight it vanishes, and divided by the small
    weight it tends to a KL divergence: JS_w / w -> KL(p || q) as w -> 0, and JS_w / (1 - w) -> KL(q || p) as w -> 1.

    Parameters
    ----------
    log_p, log_q
        Log-probabilities, [*batch, classes].
    weight
        Mixture weight w of p, inside (0, 1).

    Returns
    -------
    Divergences in nats, [*batch], float32 or wider; finite for all p and q.

    Raises
    ------
    InputError
        If the shapes differ, or the weight is not inside (0, 1).

    Reference
    ---------
    lin1991divergence, eq. 4.1.
    """
    if not 0 < weight < 1:
        raise InputError(f"it is {weight}", where="weight", expected="a number between 0 and 1, both excluded")
    log_p, log_q = _pair(log_p, log_q)
    log_m = _log_mixture(log_p, log_q, weight)
    return weight * kl(log_p, log_m) + (1 - weight) * kl(log_q, log_m)


def total_variation(
    log_p: Float[Tensor, "*batch classes"], log_q: Float[Tensor, "*batch classes"]
) -> Float[Tensor, "*batch"]:
    """Total variation distance TV(p, q) = sum_c |p_c - q_c| / 2: the largest difference in probability of any event.

    It lies in [0, 1], and TV(p, q)^2 <= KL(p || q) / 2 (Pinsker's inequality).

    Parameters
    ----------
    log_p, log_q
        Log-probabilities, [*batch, classes].

    Returns
    -------
    Distances, [*batch], float32 or wider.

    Raises
    ------
    InputError
        If the shapes differ.

    Reference
    ---------
    csiszar1967information (both the distance and the inequality).
    """
    log_p, log_q = _pair(log_p, log_q)
    return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2


def gaussian_kl(
    mean_p: Float[Tensor, "*batch d"],
    cov_p: Float[Tensor, "*batch d d"],
    mean_q: Float[Tensor, "*batch d"],
    cov_q: Float[Tensor, "*batch d d"],
) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence between Gaussians, with S_p and S_q their covariances and z = mean_p - mean_q.

    KL(p || q) = (tr(S_q^-1 S_p) - d - log det(S_q^-1 S_p) + z' S_q^-1 z) / 2

    Parameters
    ----------
    mean_p, mean_q
        Means, [*batch, d].
    cov_p, cov_q
        Covariance matrices, [*batch, d, d], symmetric and positive definite; only their lower triangles are read.

    Returns
    -------
    Divergences in nats, [*batch], float32 or wider.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance matrix is not positive definite.

    Reference
    ---------
    kullback1951information, sec. 2, of two normal densities.
    """
    root_p, root_q = (torch.linalg.cholesky(widen(cov)) for cov in (cov_p, cov_q))
    shift = (widen(mean_p) - widen(mean_q)).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(root_q, root_p, upper=False)  # a root of S_q^-1 S_p, again triangular
    distance = torch.linalg.solve_triangular(root_q, shift, upper=False).square().sum(dim=(-2, -1))
    trace = whitened.square().sum(dim=(-2, -1))
    log_det = 2 * whitened.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return torch.div(trace - mean_p.shape[-1] - log_det + distance, 2)


def bernoulli_kl(p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Kullback-Leibler divergence p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of two-valued variables, per element.

    Parameters
    ----------
    p, q
        Probabilities, not their logarithms. One outside [0, 1] gives NaN.

    Returns
    -------
    Divergences in nats, of the shape of `p`, float32 or wider; exact at 0 and 1, where they may be infinite.

    Raises
    ------
    InputError
        If the shapes differ.

    Reference
    ---------
    kullback1951information, sec. 2.
    """
    _same_shape(p, q, "p and q")
    return kl(_two_classes(widen(p)), _two_classes(widen(q)))


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the values where the mask is True; what is masked may be infinite or NaN.

    Parameters
    ----------
    values
        Of any shape.
    mask
        Of the same shape, True where a value counts.

    Returns
    -------
    The mean, a scalar, float32 or wider; zero if nothing counts, so that such a batch moves no weight.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _same_shape(values, mask, "values and mask")
    total, count = widen(values).masked_fill(~mask, 0).sum(), mask.sum().clamp(min=1)
    return torch.div(total, count)


def _same_shape(first: Tensor, second: Tensor, names: str) -> None:
    if first.shape != second.shape:
        found = f"their shapes are {list(first.shape)} and {list(second.shape)}"
        raise InputError(found, where=names, expected="one shape")


def _pair(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    _same_shape(log_p, log_q, "log_p and log_q")
    return widen(log_p), widen(log_q)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    # logaddexp has no derivative at two minus infinities; kl does not read the mixture there
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    log_p, log_q = log_p.masked_fill(nowhere, 0), log_q.masked_fill(nowhere, 0)
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))


def _two_classes(p: Tensor) -> Tensor:
    """Return log p and log(1 - p), with no infinite derivative at 0 and 1."""
    log_p = p.masked_fill(p == 0, 1).log().masked_fill(p == 0, -math.inf)
    log_not = (-p.masked_fill(p == 1, 0)).log1p().masked_fill(p == 1, -math.inf)
    return torch.stack([log_p, log_not], dim=-1)
