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
from sanov.subspaces import column_space, hadamard, orthogonal, principal_directions

__all__ = ["ClassReport", "Largest", "Projection", "Rotation", "largest_subclasses", "project"]

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


class Largest(NamedTuple):
    """The largest number of subclasses that all classes allow; 0 where one has no structure at all.

    ``reason`` says what stands in the way of more.
    """

    number: int
    reason: str


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
        flat = self.directions.permute(1, 0, 2).flatten(1).numpy()  # one product for all classes
        z: np.ndarray = (embeddings @ flat).reshape(len(embeddings), *self.offsets.shape)
        z -= self.offsets.numpy()
        return z

    def log_conditional(self, embeddings: Rows, temperature: float) -> Float64[np.ndarray, "rows classes subclasses"]:
        """Return log p_{s|c} = log softmax_s(z / beta).

        Parameters
        ----------
        embeddings
            Of the teacher.
        temperature
            beta: small, and each row belongs to one subclass; large, and all are alike.
        """
        scaled = torch.from_numpy(self.coordinates(embeddings) / temperature)
        return torch.log_softmax(scaled, dim=-1).numpy()


def project(
    embeddings: Rows,
    members: Int64[np.ndarray, " _rows"],
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
    groups = _groups(embeddings, members, len(names), head, center_head)
    _check_rows(groups, names, subclasses)
    found = [principal_directions(group.centred, min(subclasses, embeddings.shape[1])) for group in groups]
    ranks = [own.rank(group.scale) for own, group in zip(found, groups, strict=True)]
    _check_ranks(ranks, groups, names, subclasses)
    rotated, spread, report = [], [], []
    for place, (name, group, own) in enumerate(zip(names, groups, found, strict=True)):
        v = own.directions
        if directions == "random":
            v = _random(len(v), subclasses, group.basis, _generator(seed, DIRECTIONS, place))
        w = _rotated(group.centred, v, rotation, _generator(seed, ROTATION, place))
        rotated.append(w)
        spread.append(group.centred @ w)
        report.append(_report(name, group.centred @ v, spread[-1], ranks[place], float(own.variances.sum())))
    pooled = float(torch.cat(spread).square().mean().sqrt()) if scale else 1.0
    matrix = torch.stack(rotated) / pooled  # orthogonal to the head: of an embedding it sees what the head does not
    means = torch.stack([group.mean for group in groups])
    offsets = torch.einsum("cd,cds->cs", means, matrix) if centre else matrix.new_zeros(len(names), subclasses)
    return Projection(matrix, offsets, tuple(report))


def largest_subclasses(
    embeddings: Rows,
    members: Int64[np.ndarray, " _rows"],
    names: Sequence[str],
    *,
    head: Float[np.ndarray, "head_width classes"] | None = None,
    center_head: bool = False,
) -> Largest:
    """Return the largest S for which every class has enough rows and directions, and what stands in the way of more.

    Parameters
    ----------
    embeddings, members, names, head, center_head
        As in `project`.
    """
    groups = _groups(embeddings, members, len(names), head, center_head)
    for name, group in zip(names, groups, strict=True):
        if len(group.centred) < 2:
            return Largest(0, f"class {name!r} has {_counted(len(group.centred), 'row')} to learn from")
    ranks = [principal_directions(group.centred, 1).rank(group.scale) for group in groups]
    place = int(np.argmin(ranks))
    return Largest(ranks[place], _binding(names[place], groups[place], ranks[place]))


def _binding(name: str, group: _Group, rank: int) -> str:
    """Which of three bounds it is: the width of the embeddings, the rows of the class, or how these lie."""
    rows, width = group.centred.shape
    read = 0 if group.basis is None else group.basis.shape[1]
    if rank == width - read:
        seen = f", of which the teacher's head reads {read}" if read else ""
        return f"the embeddings have {_counted(width, 'column')}{seen}"
    if rank == rows - 1:
        return f"class {name!r} has {_counted(rows, 'row')} to learn from, and there must be fewer subclasses"
    seen = " once what the teacher's head reads is out" if read else ""
    return f"the {rows} embeddings of class {name!r} vary in {_counted(rank, 'direction')}{seen}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- steps ------------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Rows of a class without what the head reads, centred; their mean; that basis; and the size of an embedding."""

    centred: Tensor
    mean: Tensor
    basis: Tensor | None
    scale: float


def _groups(
    embeddings: np.ndarray, members: np.ndarray, classes: int, head: np.ndarray | None, center: bool
) -> list[_Group]:
    if not np.isfinite(embeddings.sum()):  # one pass without a mask, and the rows only where there is something to tell
        bad = ~np.isfinite(embeddings).all(axis=1)
        found = f"NaN or an infinite value in row {bad.argmax() + 1} (the first is 1), {bad.sum()} such rows in all"
        if bad.any():
            raise InputError(found, where="embeddings", expected="finite numbers")
    strange = np.flatnonzero((members < 0) | (members >= classes))
    if len(members) != len(embeddings) or len(strange):
        found = f"{len(embeddings)} embeddings and classes of {len(members)} rows"
        if len(strange):
            found = f"the class of row {strange[0] + 1} is {members[strange[0]]}"
        raise InputError(found, where="embeddings", expected=f"one class a row, 0 to {classes - 1}")
    basis = None if head is None else _basis(embeddings, head, center)
    parts, squares = [], 0.0
    for place in range(classes):
        rows = torch.from_numpy(np.array(embeddings[members == place], dtype=np.float64))
        mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
        rows -= mean
        squares += float(torch.linalg.vector_norm(rows)) ** 2
        if basis is not None:
            rows -= (rows @ basis) @ basis.T
        parts.append((rows, mean))
    # The size of an embedding before the head was taken out, the distance between classes in it: rounding is relative to it.
    between = torch.stack([mean for _, mean in parts]).var(dim=0, correction=0).sum()
    scale = (squares / max(len(embeddings), 1) + float(between)) ** 0.5
    return [_Group(rows, mean, basis, scale) for rows, mean in parts]


def _basis(embeddings: np.ndarray, head: np.ndarray, center: bool) -> Tensor:
    if len(head) != embeddings.shape[1]:
        found = f"embeddings of shape {list(embeddings.shape)} and a head of shape {list(head.shape)}"
        expected = "as many columns of the one as rows of the other"
        fix = "the head looks transposed: pass head.T" if head.shape[1] == embeddings.shape[1] else None
        raise InputError(found, where="embeddings", expected=expected, fix=fix)
    weight = torch.from_numpy(np.array(head, dtype=np.float64))
    return column_space(weight - weight.mean(dim=1, keepdim=True) if center else weight)


def _check_rows(groups: Sequence[_Group], names: Sequence[str], subclasses: int) -> None:
    for name, group in zip(names, groups, strict=True):
        rows = len(group.centred)
        if rows <= subclasses:
            told = f"has {rows} rows" if rows else "does not occur"
            need = f"at least {subclasses + 1} rows for {subclasses} subclasses"
            raise InputError(told, where=f"class {name!r}", expected=need, fix="add rows, or leave out the class")


def _check_ranks(ranks: Sequence[int], groups: Sequence[_Group], names: Sequence[str], subclasses: int) -> None:
    for name, group, found in zip(names, groups, ranks, strict=True):
        rows = len(group.centred)
        if found == 0:
            raise InputError(
                f"all {rows} embeddings are equal once what the head reads is out (zero variance)",
                where=f"class {name!r}",
                fix="take embeddings of an earlier layer, set null_space=false, or distil without subclasses",
            )
        if found < subclasses:
            raise InputError(
                f"its {rows} embeddings vary in {found} directions once what the head reads is out",
                where=f"class {name!r}",
                expected=f"at least subclasses = {subclasses}",
                fix=f"set subclasses to {min(ranks)} or less",
            )


def _random(width: int, subclasses: int, basis: Tensor | None, generator: torch.Generator) -> Tensor:
    draws = torch.randn(width, subclasses, generator=generator, dtype=torch.float64)
    q: Tensor = torch.linalg.qr(draws if basis is None else draws - basis @ (basis.T @ draws)).Q
    return q


def _rotated(centred: Tensor, directions: Tensor, rotation: Rotation, generator: torch.Generator) -> Tensor:
    """Directions after the rotation: columns that mix those of the class."""
    if rotation == "none":
        return directions
    if rotation == "rescale":
        return directions / (centred @ directions).square().mean(dim=0).sqrt()
    size = directions.shape[1]
    q: Tensor = hadamard(size) if rotation == "hadamard" else orthogonal(size, generator)
    return directions @ q


def _report(name: str, scores: Tensor, coordinates: Tensor, rank: int, variance: float) -> ClassReport:
    along = float(scores.square().sum()) / len(scores)
    seen = (coordinates - coordinates.mean(dim=1, keepdim=True)).square().sum() / coordinates.square().sum()
    return ClassReport(name, len(scores), rank, along / variance, float(seen))


def _generator(seed: int, use: int, place: int) -> torch.Generator:
    word = np.random.default_rng([seed, use, place]).integers(2**62)
    return torch.Generator().manual_seed(int(word))
