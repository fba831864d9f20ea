"""Coordinates of subclasses: a few linear projections of a teacher's embeddings, for each class its own.

z_{c,s}(x) = v_{c,s}' (h~(x) - mean_c) / sd, where h~ is the embedding without what the teacher's head reads, v_{c,s} is the
s-th rotated principal direction of the rows of class c, and sd is pooled over classes, rows of the class and directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sanov.core.errors import InputError
from sanov.subspaces import hadamard, null_space_projector, orthogonal, principal_directions, rank

__all__ = ["ClassReport", "Projection", "Rotation", "largest_subclasses", "project"]

Rows = Float[np.ndarray, "rows width"]
Rotation = Literal["random", "hadamard", "none", "rescale"]
ROTATION, DIRECTIONS = 0, 1  # second words of seeds


class ClassReport(NamedTuple):
    """What the subclasses of one class are made of.

    ``rank`` is that of the class's embeddings once the head's directions are out; ``explained`` is the share of their
    variance along the directions taken; ``visible`` the share of that which a softmax over the subclasses can see, for it
    is blind to the sum of the coordinates.
    """

    name: str
    rows: int
    rank: int
    explained: float
    visible: float

    def sentence(self, subclasses: int) -> str:
        """Say it in words."""
        carry = f"{subclasses} directions carry {self.explained:.0%} of what varies in its {self.rows} rows"
        return f"class {self.name!r}: {carry}, and the softmax over subclasses sees {self.visible:.0%} of that"


@dataclass(frozen=True)
class Projection:
    """The projections of all classes.

    Parameters
    ----------
    directions
        The null-space step, the rotation and the scale are in them.
    offsets
        Projection of each class's mean.
    report
        One entry a class.
    """

    directions: Float[Tensor, "classes width subclasses"]
    offsets: Float[Tensor, "classes subclasses"]
    report: tuple[ClassReport, ...]

    def coordinates(self, embeddings: Rows) -> Float64[np.ndarray, "rows classes subclasses"]:
        """Return z of every row for every class."""
        wide = _wide(embeddings)
        return (torch.einsum("nd,cds->ncs", wide, self.directions) - self.offsets).numpy()

    def log_conditional(self, embeddings: Rows, temperature: float) -> Float64[np.ndarray, "rows classes subclasses"]:
        """Return log p_{s|c} = log softmax_s(z / beta).

        Parameters
        ----------
        embeddings
            Of the teacher.
        temperature
            beta: small, and each row belongs to one subclass; large, and all are alike.
        """
        scaled = torch.from_numpy(self.coordinates(embeddings)) / temperature
        return torch.log_softmax(scaled, dim=-1).numpy()


def project(
    embeddings: Rows,
    members: Int64[np.ndarray, " rows"],
    names: Sequence[str],
    *,
    subclasses: int,
    head: Float[np.ndarray, "head_width classes"] | None = None,
    center_head: bool = False,
    rotation: Rotation = "random",
    directions: Literal["principal", "random"] = "principal",
    centre: bool = True,
    scale: bool = True,
    seed: int = 0,
) -> Projection:
    """Find the subclasses of every class.

    Parameters
    ----------
    embeddings
        Input of the teacher's last linear map.
    members
        Class of each row.
    names
        Of the classes.
    subclasses
        S.
    head
        Weight of that map, whose directions are taken out of the embeddings; None leaves them in.
    center_head
        Take out the differences of its columns alone, which are all that changes a softmax.
    rotation
        ``random`` (Haar) equalises the variances of the S directions in expectation; ``hadamard`` exactly, and loses the
        weakest direction alone; ``rescale`` divides each direction by its standard deviation; ``none`` does nothing.
    directions
        Principal ones, or any (a control).
    centre
        Subtract the mean of the class.
    scale
        Divide by the pooled standard deviation.
    seed
        Of rotations, one for each class, and of random directions.

    Raises
    ------
    InputError
        A class has too few rows, or they vary in fewer than S directions; S is no power of two and ``hadamard`` is asked
        for; head and embeddings do not fit; an embedding is not finite.

    Reference
    ---------
    loo2024lelp, algorithm 1.
    """
    residual, length, projector = _without_head(embeddings, head, center_head)
    groups = [residual[torch.from_numpy(members == place)] for place in range(len(names))]
    ranks = _checked_ranks(groups, names, subclasses, length)
    rotated, spread, report = [], [], []
    for place, (name, group) in enumerate(zip(names, groups, strict=True)):
        v = _directions(group, subclasses, directions, _generator(seed, DIRECTIONS, place), projector)
        w = _rotated(group, v, rotation, _generator(seed, ROTATION, place))
        rotated.append(w)
        spread.append((group - group.mean(dim=0)) @ w)
        report.append(_report(name, group, spread[-1], ranks[place], v))
    pooled = float(torch.cat(spread).square().mean().sqrt()) if scale else 1.0
    # The projector is symmetric and the directions lie in its range: h~' v is h' v.
    matrix = torch.stack(rotated) / pooled
    means = torch.stack([group.mean(dim=0) for group in groups])
    offsets = torch.einsum("cd,cds->cs", means, matrix) if centre else matrix.new_zeros(len(names), subclasses)
    return Projection(matrix, offsets, tuple(report))


def largest_subclasses(
    embeddings: Rows,
    members: Int64[np.ndarray, " rows"],
    classes: int,
    *,
    head: Float[np.ndarray, "head_width classes"] | None = None,
    center_head: bool = False,
) -> int:
    """Return the largest S for which every class has enough rows and directions; 0 where one has none.

    Parameters
    ----------
    embeddings, members, head, center_head
        As in `project`.
    classes
        Number of classes.
    """
    residual, length, _ = _without_head(embeddings, head, center_head)
    groups = [residual[torch.from_numpy(members == place)] for place in range(classes)]
    return min(_rank(group, length) for group in groups)


# -- steps ------------------------------------------------------------------------------------------------------------


def _without_head(embeddings: np.ndarray, head: np.ndarray | None, center: bool) -> tuple[Tensor, float, Tensor]:
    """Embeddings with the directions of the head taken out, the length of the longest before, and the projector."""
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        found = f"NaN or an infinite value in row {bad.argmax() + 1} (the first is 1), {bad.sum()} such rows in all"
        raise InputError(found, where="embeddings", expected="finite numbers")
    rows = _wide(embeddings)
    length = float((rows - rows.mean(dim=0)).norm(dim=1).max()) if len(rows) else 0.0
    if head is None:
        return rows, length, torch.eye(rows.shape[1], dtype=torch.float64)
    if len(head) != rows.shape[1]:
        found = f"embeddings of shape {list(rows.shape)} and a head of shape {list(head.shape)}"
        expected = "as many columns of the one as rows of the other"
        fix = "the head looks transposed: pass head.T" if head.shape[1] == rows.shape[1] else None
        raise InputError(found, where="embeddings", expected=expected, fix=fix)
    weight = _wide(head)
    weight = weight - weight.mean(dim=1, keepdim=True) if center else weight
    projector = null_space_projector(weight)
    return rows @ projector, length, projector


def _wide(values: np.ndarray) -> Tensor:
    """In float64; a copy, for arrays that are read from a mapped file must not be written."""
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _rank(group: Tensor, length: float) -> int:
    if len(group) < 2:
        return 0
    return rank(group - group.mean(dim=0), scale=length * len(group) ** 0.5)


def _checked_ranks(groups: Sequence[Tensor], names: Sequence[str], subclasses: int, length: float) -> list[int]:
    for name, group in zip(names, groups, strict=True):
        if len(group) <= subclasses:
            told = f"has {len(group)} rows" if len(group) else "does not occur"
            need = f"at least {subclasses + 1} rows for {subclasses} subclasses"
            raise InputError(told, where=f"class {name!r}", expected=need, fix="add rows, or leave out the class")
    ranks = [_rank(group, length) for group in groups]
    for name, group, found in zip(names, groups, ranks, strict=True):
        if found == 0:
            raise InputError(
                f"all {len(group)} embeddings are equal once what the head reads is out (zero variance)",
                where=f"class {name!r}",
                fix="take embeddings of an earlier layer, set null_space=false, or distil without subclasses",
            )
        if found < subclasses:
            raise InputError(
                f"its {len(group)} embeddings vary in {found} directions once what the head reads is out",
                where=f"class {name!r}",
                expected=f"at least subclasses = {subclasses}",
                fix=f"set subclasses to {min(ranks)} or less",
            )
    return ranks


def _directions(group: Tensor, subclasses: int, kind: str, generator: torch.Generator, projector: Tensor) -> Tensor:
    if kind == "principal":
        return principal_directions(group, subclasses).directions
    draws = torch.randn(len(projector), subclasses, generator=generator, dtype=torch.float64)
    q: Tensor = torch.linalg.qr(projector @ draws).Q
    return q


def _rotated(group: Tensor, directions: Tensor, rotation: Rotation, generator: torch.Generator) -> Tensor:
    """Directions after the rotation: columns that mix those of the class."""
    if rotation == "none":
        return directions
    if rotation == "rescale":
        scores = (group - group.mean(dim=0)) @ directions
        return directions / scores.square().mean(dim=0).sqrt()
    size = directions.shape[1]
    q: Tensor = hadamard(size) if rotation == "hadamard" else orthogonal(size, generator)
    return directions @ q


def _report(name: str, group: Tensor, coordinates: Tensor, found: int, directions: Tensor) -> ClassReport:
    centred = group - group.mean(dim=0)
    along = (centred @ directions).square().sum()
    seen = (coordinates - coordinates.mean(dim=1, keepdim=True)).square().sum() / coordinates.square().sum()
    return ClassReport(name, len(group), found, float(along / centred.square().sum()), float(seen))


def _generator(seed: int, use: int, place: int) -> torch.Generator:
    word = np.random.default_rng([seed, use, place]).integers(2**62)
    return torch.Generator().manual_seed(int(word))
