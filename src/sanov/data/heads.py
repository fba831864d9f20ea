"""A teacher's last linear map, and whether embeddings are what it reads: ``logits = embeddings @ weight + bias``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from sanov.core.errors import InputError

__all__ = ["Head", "checked_logits"]

TOLERANCE = 1e-3  # of the largest logit: a teacher in half precision stays below it

# The axes are named for the reader alone (the underscore): `Head` compares them, and tells the user.
Weight = Float64[np.ndarray, "_width _classes"]
Bias = Float64[np.ndarray, " _classes"]
Matrix = Float[np.ndarray, "_rows _columns"]


@dataclass(frozen=True, eq=False)
class Head:
    """The teacher's last linear map: ``logits = embeddings @ weight + bias``.

    Parameters
    ----------
    weight
        One row for each number of an embedding, one column a class. (PyTorch's ``Linear.weight`` is its transpose.)
    bias
        One number a class.

    Raises
    ------
    InputError
        The two are of different classes.
    """

    weight: Weight
    bias: Bias

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            found = f"head_weight is of shape {list(self.weight.shape)} and head_bias of shape {list(self.bias.shape)}"
            expected = "[width, classes] and [classes]"
            turned = self.bias.shape == self.weight.shape[:1]
            raise InputError(found, where="the teacher's head", expected=expected, fix=_transpose(turned))

    def logits(self, embeddings: Matrix) -> Matrix:
        """Return the logits of embeddings."""
        return np.asarray(embeddings @ self.weight + self.bias)

    def take(self, classes: Sequence[int]) -> Head:
        """Return the head of some classes, in the order asked for."""
        return Head(self.weight[:, classes], self.bias[list(classes)])

    def of_two_classes(self) -> Head:
        """Return the head of one output z as that of two classes, whose logits are 0 and z."""
        zeros = np.zeros_like(self.weight)
        return Head(np.concatenate([zeros, self.weight], axis=1), np.concatenate([np.zeros(1), self.bias]))

    def check_width(self, width: int, name: str) -> None:
        """Refuse embeddings that the head cannot read.

        Parameters
        ----------
        width
            Numbers in an embedding.
        name
            What to call their table in a message.
        """
        rows = self.weight.shape[0]
        if width == rows:
            return
        found = f"embeddings have {width} columns and head_weight is of shape {list(self.weight.shape)}"
        expected = f"head_weight of shape [{width}, classes]: its first axis and the columns of embeddings must agree"
        raise InputError(found, where=name, expected=expected, fix=_transpose(width == self.weight.shape[1]))


def _transpose(turned: bool) -> str | None:
    return "pass the transpose of head_weight (PyTorch keeps it as [classes, width])" if turned else None


def checked_logits(embeddings: Matrix, head: Head, logits: Matrix | None, *, name: str) -> Matrix:
    """Return the teacher's logits: those given, if they are what the head makes of the embeddings, else the head's.

    Parameters
    ----------
    embeddings
        Input of the teacher's last linear layer, by row.
    head
        That layer.
    logits
        The teacher's, where they were given too.
    name
        What to call the table in a message.

    Raises
    ------
    InputError
        The shapes do not fit, or the logits are others: then the embeddings were taken elsewhere in the teacher.
    """
    head.check_width(embeddings.shape[1], name)
    found = head.logits(embeddings)
    if logits is None:
        return found
    if found.shape != logits.shape:
        told = f"the head gives logits of shape {list(found.shape)} and those given are of shape {list(logits.shape)}"
        raise InputError(told, where=name, expected="the same rows and classes in both")
    _check_finite(found, logits, name)
    limit = TOLERANCE * float(np.abs(logits).max())
    gaps = np.abs(found - logits).max(axis=1)
    if gaps.max() <= limit:
        return logits
    row = int(np.argmax(gaps > limit))
    told = (
        f"embeddings @ head_weight + head_bias differs from logits by up to {gaps.max():.3g} (first in row {row + 1}, "
    )
    told += f"by {gaps[row]:.3g})"
    expected = f"at most {limit:.3g}: embeddings must be the input of the last linear layer"
    raise InputError(told, where=name, expected=expected, fix=_reason(found, logits, limit))


def _check_finite(found: Matrix, logits: Matrix, name: str) -> None:
    bad = ~(np.isfinite(found) & np.isfinite(logits)).all(axis=1)
    if bad.any():
        told = (
            f"NaN or an infinite value in row {bad.argmax() + 1} of embeddings or logits, {bad.sum()} such rows in all"
        )
        raise InputError(told, where=name, expected="finite numbers", fix="remove those rows or mend them")


def _reason(found: Matrix, logits: Matrix, limit: float) -> str:
    """What to do, by what the two have in common."""
    shift = found - logits
    if np.ptp(shift, axis=1).max() <= limit:
        return "the two differ by one number a row: pass the logits before softmax, or leave them out"
    if np.ptp(shift, axis=0).max() <= limit:
        return "the two differ by one number a class: pass the bias that belongs to head_weight"
    return "take them after every activation, normalisation and (in evaluation mode) dropout, or leave out the head"
