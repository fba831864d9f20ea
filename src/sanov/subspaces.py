"""Subspaces: principal directions, rotations, and what a linear map leaves unseen.

Reference: loo2024lelp, section 3; Haar measure: mezzadri2007random; Hadamard matrices: sylvester1867thoughts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["Principal", "hadamard", "null_space_projector", "orthogonal", "principal_directions", "rank"]

ROUNDING = 1e-6  # of float32 in a network's outputs, relative to the largest of them


class Principal(NamedTuple):
    """Principal directions (columns, by falling variance), the variances along them, and the mean of the rows."""

    directions: Float[Tensor, "width k"]
    variances: Float[Tensor, " k"]
    mean: Float[Tensor, " width"]


def principal_directions(x: Float[Tensor, "rows width"], k: int) -> Principal:
    """Return the k orthonormal directions along which rows vary most.

    The sign of a direction is that of the score largest in size, which becomes positive. Unlike a rule on the direction's
    own entries it does not change when rows and directions are rotated together.

    Parameters
    ----------
    x
        At least two rows. The computation is in float64.
    k
        Number of directions.

    Returns
    -------
    Directions, variances (divided by the number of rows) and mean, in float64.

    Raises
    ------
    InputError
        The rows vary in fewer than k directions.
    """
    wide = x.double()
    mean = wide.mean(dim=0)
    centred = wide - mean
    found = rank(centred)
    if found < k:
        raise InputError(f"rows vary in {found} directions", where="principal_directions", expected=f"at least {k}")
    if len(wide) > x.shape[1]:  # the smaller of the two symmetric matrices; both have the same spectrum
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors.flip(-1)[:, :k]
    else:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        directions = centred.T @ vectors.flip(-1)[:, :k]
        directions = torch.linalg.qr(directions).Q
    variances = values.flip(-1)[:k].clamp_min(0) / len(wide)
    scores = centred @ directions
    largest = scores.abs().argmax(dim=0, keepdim=True)
    return Principal(directions * scores.gather(0, largest).sign(), variances, mean)


def rank(x: Float[Tensor, "rows columns"], *, scale: float | None = None) -> int:
    """Return the number of directions in which a matrix differs from 0 by more than float32 rounds.

    Parameters
    ----------
    x
        The matrix. The computation is in float64.
    scale
        Singular values count from 1e-6 times this; None takes the largest.
    """
    if 0 in x.shape:
        return 0
    wide = x.double()
    gram = wide.T @ wide if len(x) > x.shape[1] else wide @ wide.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    largest = float(values[-1]) if scale is None else scale
    return int((values > ROUNDING * largest).sum())


def null_space_projector(weight: Float[Tensor, "width columns"]) -> Float[Tensor, "width width"]:
    """Return I - W (W' W)^+ W': what is left of a row once a linear map has read it.

    Parameters
    ----------
    weight
        W. Columns may depend on one another.

    Returns
    -------
    A symmetric projector in float64, whose product with W is 0.
    """
    left, values, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = left[:, values > max(weight.shape) * torch.finfo(torch.float64).eps * values.amax()]
    identity = torch.eye(len(weight), dtype=torch.float64, device=weight.device)
    projector: Tensor = identity - kept @ kept.T
    return projector


def orthogonal(k: int, generator: torch.Generator) -> Float[Tensor, "k k"]:
    """Draw an orthogonal matrix uniformly (Haar measure), in float64.

    Parameters
    ----------
    k
        Number of rows and columns.
    generator
        Of the draw, on the CPU.

    Reference
    ---------
    mezzadri2007random: QR of a Gaussian matrix, the signs of R's diagonal made positive.
    """
    q, r = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))
    signed: Tensor = q * r.diagonal().sign()
    return signed


def hadamard(k: int) -> Float[Tensor, "k k"]:
    """Return the orthogonal matrix of entries +-1/sqrt(k) whose last row is constant, in float64.

    Columns of a product V Q have equal variances whatever the variances of the columns of V, and their sum is along the
    last column of V alone.

    Parameters
    ----------
    k
        A power of two.

    Raises
    ------
    InputError
        k is no power of two; with the nearest ones.
    """
    if k < 1 or k & (k - 1):
        below = 1 << max(k.bit_length() - 1, 0)
        fix = f"take {below} or {2 * below}, or a random rotation"
        raise InputError(f"there is no Hadamard rotation of {k} directions", expected="a power of two", fix=fix)
    q = torch.ones(1, 1, dtype=torch.float64)
    while len(q) < k:
        q = torch.cat([torch.cat([q, q], dim=1), torch.cat([q, -q], dim=1)])
    return q.flip(0) / math.sqrt(k)
