"""What is gained and lost by leaving statistics out, one after the other.

The statistics left out come last in a Cholesky factor of G, so its leading blocks whiten every smaller family of the
path, and one pass over the rows gives the coefficients of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.families import expand, required_sample_size, risk
from sanov.systems.pn.coefficients import Coefficients
from sanov.systems.pn.cumulants import Cumulants, StateCumulants
from sanov.systems.pn.expansion import LARGEST, Frame, Order

__all__ = ["Step", "compression_path"]


@dataclass(frozen=True)
class Step:
    """A family on the path.

    Parameters
    ----------
    removed
        The statistic left out last; empty at the start.
    parameters
        p.
    a, b
        Coefficients of its risk.
    risk
        At the rows of the sample, nats.
    required
        n* at the threshold; None where the expansion never reaches it.
    lost
        Likelihood lost so far, nats per row, by Wald's quadratic approximation: good while it is small; None where the
        member is not known.
    total
        `risk` plus what the smaller family is away from the larger one: `lost` less what the estimate's error alone
        would lose, at least 0. Where it is smallest, the family is as large as these rows can carry.
    """

    removed: str
    parameters: int
    a: float
    b: float
    risk: float
    required: float | None
    lost: float | None
    total: float | None


def compression_path(coefficients: Coefficients, delta: float) -> list[Step]:
    """Leave statistics out one by one, the one that costs least first.

    Where the member closest to the data is known, the next to go is the one whose parameter is nearest to 0 in standard
    errors (the least likelihood lost); where the sample stands for the model, the one that the others explain best. The
    cumulants of a smaller family are taken to be those of the larger one, which is right to the order of `lost`.
    Statistics without which there would be no family (means and variances, fields) stay.

    Parameters
    ----------
    coefficients
        Of the whole family, from `coefficients.estimate`.
    delta
        Threshold on the risk, nats, for n*.
    """
    frame, order = coefficients.frame, coefficients.found
    p = len(frame.kept)
    inverse = frame.matrix[frame.kept] @ frame.matrix[frame.kept].T
    sequence, lost = _sequence(frame, inverse)
    stay = [place for place in range(p) if place not in sequence]
    path = _path(frame, order, stay + sequence[::-1])
    rows, steps = coefficients.rows, []
    for done in range(len(sequence) + 1):
        a, b = path[p - done]
        steps.append(
            Step(
                removed=coefficients.names[sequence[done - 1]] if done else "",
                parameters=p - done,
                a=a,
                b=b,
                risk=risk(a, b, rows),
                required=_required(a, b, delta),
                lost=None if lost is None else lost[done],
                total=None if lost is None else risk(a, b, rows) + max(0.0, lost[done] - (path[p][0] - a) / rows),
            )
        )
    return steps


def _required(a: float, b: float, delta: float) -> float | None:
    try:
        return required_sample_size(a, b, delta)
    except InputError:
        return None


def _sequence(frame: Frame, inverse: Float[ndarray, "p p"]) -> tuple[list[int], list[float] | None]:
    """Places in the order in which they go, and the likelihood lost before and after each."""
    protected = frame.sample.prepared.model.protected
    left = [place for place, statistic in enumerate(frame.kept) if statistic not in protected]
    spared = 1 if len(left) == len(frame.kept) else 0  # a family has at least one statistic
    theta = None if frame.member is None else frame.member.theta[frame.kept].copy()
    variance = np.diag(np.linalg.inv(inverse))
    sequence, lost = [], [0.0]
    while len(left) > spared:
        diagonal = np.diag(inverse)[left]
        cost = 1 / (diagonal * variance[left]) if theta is None else theta[left] ** 2 / (2 * diagonal)
        place = left.pop(int(np.argmin(cost)))
        sequence.append(place)
        lost.append(lost[-1] + float(cost.min()))
        column = inverse[:, place] / inverse[place, place]
        if theta is not None:
            theta = theta - column * theta[place]
        inverse = inverse - np.outer(column, inverse[place])
    return sequence, (None if theta is None else lost)


def _path(frame: Frame, order: Order, places: list[int]) -> dict[int, tuple[float, float]]:
    """Number of statistics -> (a, b), for the leading statistics in this order."""
    white = frame.matrix[frame.kept][places]
    # the rotation from coordinates of the frame to those in which leading blocks belong to leading statistics
    root = np.linalg.cholesky(np.linalg.inv(white @ white.T))
    turn = np.linalg.solve(root, np.linalg.inv(white).T)
    one = np.eye(len(places))
    v = one if frame.method == "closed_form" else turn @ frame.v @ turn.T
    sizes = range(1, len(places) + 1)
    third = order.third
    if third is None and frame.order == 2 and frame.cumulants is not None and len(places) <= LARGEST:
        third = frame.cumulants.third()  # where b came from a formula for the whole family
    if third is None:
        sums = np.cumsum(np.diag(v)) / 2
        return {size: (float(sums[size - 1]), 0.0) for size in sizes}
    third = _turned(third, turn)
    skewness = third if order.moments is None else _turned(order.moments.skewness, turn)
    fourth = _fourth(frame, turn, v)
    path = {}
    for size in sizes:
        lead = slice(size)
        found = expand(third[lead, lead, lead], fourth[size - 1], v[lead, lead], skewness[lead, lead, lead])
        path[size] = (found.a, found.b)
    return path


def _turned(tensor: Float[ndarray, "p p p"], turn: Float[ndarray, "p p"]) -> Float[ndarray, "p p p"]:
    for _ in range(3):
        tensor = np.tensordot(tensor, turn, (0, 1))
    return tensor


def _fourth(frame: Frame, turn: Float[ndarray, "p p"], v: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
    """Psi_4 contracted twice with each leading block of V."""
    if frame.cumulants is None:
        blocks = frame.sample.units_of(frame.centre, frame.matrix @ turn.T)
        return _from_states(((block.rows, block.weights / frame.sample.rows) for block in blocks), v)
    cumulants = frame.cumulants.transformed(turn.T)
    return _from_states(cumulants, v) if isinstance(cumulants, StateCumulants) else _from_formula(cumulants, v)


def _from_states(states: Iterable[tuple[ndarray, ndarray]], v: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
    triangle = 2 * np.tril(v, -1) + np.diag(np.diag(v))  # u_k times row k of it is what k adds to u'Vu
    moment = np.zeros(len(v))
    for rows, weights in states:
        moment += weights @ np.square(np.cumsum(rows * (rows @ triangle.T), axis=1))
    squares = np.cumsum(2 * np.square(np.tril(v, -1)).sum(axis=1) + np.diag(v) ** 2)
    return np.asarray(moment - np.cumsum(np.diag(v)) ** 2 - 2 * squares)


def _from_formula(cumulants: Cumulants, v: Float[ndarray, "p p"]) -> Float[ndarray, " p"]:
    values = np.zeros(len(v))
    for size in range(1, len(v) + 1):
        block = np.zeros_like(v)
        block[:size, :size] = v[:size, :size]
        values[size - 1] = np.vdot(cumulants.fourth(block), block)
    return values
