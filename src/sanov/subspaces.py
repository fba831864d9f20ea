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

__all__ = ["Principal", "column_space", "hadamard", "null_space_projector", "orthogonal", "principal_directions"]

ROUNDING = 1e-6  # of float32 in a network's outputs, relative to the largest of them


class Principal(NamedTuple):
    """Principal directions of rows, by falling variance.

    ``variances`` are those along all of them, as many as there are rows or columns; ``directions`` the first k, as columns.
    """

    directions: Float[Tensor, "width k"]
    variances: Float[Tensor, " all"]
    mean: Float[Tensor, " width"]

    def rank(self, scale: float) -> int:
        """Return in how many directions the rows vary by more than float32 rounds numbers of this size."""
        return int((self.variances.sqrt() > ROUNDING * scale).sum())


def principal_directions(x: Float[Tensor, "rows width"], k: int) -> Principal:
    """Return the k orthonormal directions along which rows vary most.

    The sign of a direction is that of the score largest in size, which becomes positive. Unlike a rule on the direction's
    own entries it does not change when rows and directions are rotated together. Where rows vary in fewer than k
    directions, the last of them are any; `Principal.rank` says so.

    Parameters
    ----------
    x
        The rows. The computation is in float64.
    k
        Number of directions, at most that of rows and that of columns.

    Returns
    -------
    Directions, variances (divided by the number of rows) and mean, in float64.

    Raises
    ------
    InputError
        There are fewer rows or columns than k.
    """
    if k > min(x.shape):
        found = f"{k} directions of {x.shape[0]} rows and {x.shape[1]} columns"
        raise InputError(found, where="principal_directions", expected=f"at most {min(x.shape)}")
    mean = x.double().mean(dim=0)
    centred = x.double() - mean
    if len(x) > x.shape[1]:  # the smaller of the two symmetric matrices; both have the same spectrum
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors[:, -k:].flip(-1)
    else:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        directions = torch.linalg.qr(centred.T @ vectors[:, -k:].flip(-1)).Q
    scores = centred @ directions
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(directions)
    return Principal(directions * signs, values.flip(-1).clamp_min(0) / len(x), mean)


def column_space(weight: Float[Tensor, "width columns"]) -> Float[Tensor, "width rank"]:
    """Return an orthonormal basis of what the columns span, in float64.

    Parameters
    ----------
    weight
        Columns may depend on one another.
    """
    left, values, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    basis: Tensor = left[:, values > max(weight.shape) * torch.finfo(torch.float64).eps * values.amax()]
    return basis


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
    kept = column_space(weight)
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
