"""The expansion of the risk at a sample: its coordinates, its first and second order, its terms per unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.families import Expansion, expand, well_specified
from sanov.systems.pn.cumulants import Cumulants, StateCumulants
from sanov.systems.pn.exact import Invariants
from sanov.systems.pn.influence import Sensitivity, Term, model_gradient, sensitivity
from sanov.systems.pn.members import Member
from sanov.systems.pn.sample import Sample, ThirdOrder
from sanov.systems.pn.sampling import Drawing
from sanov.systems.pn.statistics import dependent_columns

__all__ = [
    "LARGEST",
    "METHODS",
    "Frame",
    "Method",
    "Order",
    "drawing_error",
    "frame_of",
    "order_one",
    "order_two",
    "terms_of",
]

Method = Literal["sandwich", "simple", "closed_form"]
METHODS: tuple[Method, ...] = get_args(Method)
LARGEST = 300  # statistics: a p^3 array then takes 216 MB, and half a dozen of them are needed
WIDEST = 5000  # statistics at first order: a p^2 array then takes 200 MB
DRAWS_PER_ROW, MOST_DRAWS, FEWEST_PER_ROW = 50, 1_000_000, 10
DRAWS_PER_PAIR = 10  # per p^2: inverting the draws' covariance inflates a by about p^2 / (2 draws)


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates ``u = matrix' (xi - centre)`` in which G = 1, and who is at home in them.

    Parameters
    ----------
    sample
        The rows.
    method, order
        As asked for.
    centre
        Mean of all statistics.
    kept, dependent
        Places of the statistics kept; names of those that are linear functions of the others in these data.
    matrix
        The whitening that keeps each coordinate as close to its own statistic as whitening can.
    v
        V.
    member
        The member closest to the data, and
    cumulants
        its cumulants in these coordinates; both None where the sample's stand for it.
    notes
        What the user should know.
    """

    sample: Sample
    method: Method
    order: int
    centre: Float[ndarray, " q"]
    kept: list[int]
    dependent: tuple[str, ...]
    matrix: Float[ndarray, "q p"]
    v: Float[ndarray, "p p"]
    member: Member | None
    cumulants: Cumulants | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Order:
    """The coefficients to some order, and what their derivatives need.

    Parameters
    ----------
    expansion
        a, b, b_dual.
    invariants
        Of the cumulants that stand for the model's; None at first order.
    trace
        sum_ij Psi_ijk V_ij.
    moments
        Of the data, where they were gathered.
    third
        Psi_3, where it was.
    found
        Partial derivatives of b, where b is not known by its formula.
    """

    expansion: Expansion
    invariants: Invariants | None = None
    trace: Float[ndarray, " p"] | None = None
    moments: ThirdOrder | None = None
    third: Float[ndarray, "p p p"] | None = None
    found: Sensitivity | None = None


def frame_of(sample: Sample, method: Method, order: int, *, draws: int | None, tolerance: float, seed: int) -> Frame:
    """Find the member where there is one, and the coordinates.

    Parameters
    ----------
    sample
        The rows.
    method, order
        As in `coefficients.estimate`.
    draws
        Draws for members that must be sampled.
    tolerance
        Relative cut of eigenvalues.
    seed
        Of the draws.

    Raises
    ------
    InputError
        Not more rows than statistics where the covariance of the sample is needed.
    """
    if sample.p > WIDEST:
        fix = "choose fewer columns with columns=..."
        raise InputError(f"p={sample.p:,}", where="table", expected=f"at most {WIDEST:,} statistics", fix=fix)
    short = sample.rows <= sample.p
    if short and method != "closed_form" and (order == 2 or (method == "simple" and not sample.plain)):
        raise InputError(
            f"n={sample.rows:g}, p={sample.p}: covariance is singular; reduce p or use first order", where="table"
        )
    centre = sample.mean()
    rows, units = sample.covariances(centre)
    dropped = [] if short else dependent_columns(rows, tolerance)
    if method == "simple":
        return _sample_frame(sample, order, centre, rows, units, dropped, short)
    member = sample.prepared.model.project(centre, Drawing(sample.table, _draws(sample, draws), seed))
    matrix = _closest_whitening(member.cumulants.information())
    dependent, listed = _named(sample, dropped)
    notes = member.notes
    if dropped:
        notes += (f"in these data these statistics are linear functions of the others: {listed}",)
    cumulants, v = member.cumulants.transformed(matrix), matrix.T @ units @ matrix
    return Frame(sample, method, order, centre, list(range(sample.p)), dependent, matrix, v, member, cumulants, notes)


def _sample_frame(
    sample: Sample, order: int, centre: ndarray, rows: ndarray, units: ndarray, dropped: list[int], short: bool
) -> Frame:
    """Whiten by the covariance of the rows, without the statistics that depend on others."""
    kept = [place for place in range(sample.p) if place not in dropped]
    matrix = np.zeros((sample.p, len(kept)))
    matrix[kept] = np.eye(sample.p) if short else _closest_whitening(rows[np.ix_(kept, kept)])
    v = np.eye(len(kept)) if sample.plain else matrix.T @ units @ matrix
    dependent, listed = _named(sample, dropped)
    said = f"p reduced from {sample.p} to {len(kept)}: linear functions of the other statistics: {listed}"
    notes = (said,) if dropped else ()
    return Frame(sample, "simple", order, centre, kept, dependent, matrix, v, None, None, notes)


def _named(sample: Sample, dropped: list[int]) -> tuple[tuple[str, ...], str]:
    names = tuple(sample.prepared.names[place] for place in dropped)
    return names, ", ".join(f"'{name}'" for name in names)


def _draws(sample: Sample, draws: int | None) -> int:
    fewest = int(FEWEST_PER_ROW * sample.rows)
    if draws is None:
        wanted = max(DRAWS_PER_ROW * sample.rows, DRAWS_PER_PAIR * sample.p**2)
        return max(fewest, min(int(wanted), MOST_DRAWS))
    if draws < fewest:
        raise InputError(f"the value is {draws}", where="draws", expected=f"at least 10 per row, {fewest}")
    return draws


def _closest_whitening(covariance: Float[ndarray, "p p"]) -> Float[ndarray, "p p"]:
    """D^-1/2 P^-1/2 with P the correlation matrix: the whitening of kessy2018optimal, section 3.2 (ZCA-cor)."""
    scale = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T / scale[:, None])


# -- the two orders ---------------------------------------------------------------------------------------------------


def order_one(frame: Frame) -> Order:
    """Compute a alone: p^2 numbers suffice."""
    p = len(frame.kept)
    if frame.method == "closed_form":
        return Order(Expansion(p / 2, 0.0, 0.0))
    trace = None if frame.cumulants is None else frame.cumulants.third_with(frame.v)
    return Order(Expansion(float(np.trace(frame.v)) / 2, 0.0, 0.0), trace=trace)


def order_two(frame: Frame) -> Order:
    """Compute a and b.

    Raises
    ------
    InputError
        If an array of p^3 would be too large.
    """
    p = len(frame.kept)
    member = frame.member
    invariants = None if member is None or frame.method != "closed_form" else member.invariants
    if member is not None and invariants is not None and (member.same_for_all or p > LARGEST):
        return Order(well_specified(p, *invariants), invariants)
    if p > LARGEST:
        raise InputError(
            f"p={p}", where="order=2", expected=f"at most {LARGEST} statistics", fix="reduce p or use first order"
        )
    if frame.method == "closed_form":
        return _model_only(frame)
    moments = frame.sample.third_order(frame.centre, frame.matrix, frame.v)
    v, one = frame.v, np.eye(p)
    if frame.cumulants is None:
        third, fourth = moments.rows_third, moments.rows_fourth - np.trace(v) * one - 2 * v
        k4 = _sample_kurtosis(frame)
    else:
        third, fourth = frame.cumulants.third(), frame.cumulants.fourth(v)
        k4 = float(np.trace(frame.cumulants.fourth(one)))
    expansion = expand(third, float(np.vdot(fourth, v)), v, moments.skewness)
    found = sensitivity(third, fourth, v, moments.skewness)
    return Order(expansion, _invariants(third, k4), found.trace, moments, third, found)


def _model_only(frame: Frame) -> Order:
    assert frame.cumulants is not None
    one = np.eye(len(frame.kept))
    third, fourth = frame.cumulants.third(), frame.cumulants.fourth(one)
    found = sensitivity(third, fourth, one, third)
    invariants = _invariants(third, float(np.trace(fourth)))
    expansion = expand(third, float(np.trace(fourth)), one, third)
    return Order(expansion, invariants, found.trace, None, third, found)


def _invariants(third: Float[ndarray, "p p p"], k4: float) -> Invariants:
    return Invariants(float(np.square(third).sum()), float(np.square(np.einsum("iik->k", third)).sum()), k4)


def _sample_kurtosis(frame: Frame) -> float:
    """Mean squared length of the rows squared, less p(p+2)."""
    total, p = 0.0, len(frame.kept)
    for block in frame.sample.units_of(frame.centre, frame.matrix):
        total += float(block.weights @ np.square(np.einsum("ri,ri->r", block.rows, block.rows)))
    return total / frame.sample.rows - p * (p + 2)


# -- terms per unit ---------------------------------------------------------------------------------------------------


def terms_of(frame: Frame, order: Order) -> tuple[Float[ndarray, "units 2"], Float[ndarray, " units"]]:
    """First-order terms of (a, b) of every unit, and how many copies of it there are.

    Parameters
    ----------
    frame
        The coordinates.
    order
        What `order_one` or `order_two` found.
    """
    law, unit = _law_term(frame, order), _unit_term(frame, order)
    if law is not None and unit is not None and frame.sample.plain:
        unit = unit + law  # the cubic forms are then of the same rows: one is half the work
        law = None
    terms, copies, masses = [], [], []
    for block in frame.sample.units_of(frame.centre, frame.matrix, "terms of the bootstrap"):
        value: ndarray = np.zeros((len(block.sums), 2)) if unit is None else unit(block.sums)
        if law is not None:
            rows = law(block.rows)
            value = value + np.stack([block.gathered(rows[:, 0]), block.gathered(rows[:, 1])], axis=1)
        terms.append(value)
        copies.append(block.copies)
        masses.append(block.mass)
    all_terms, all_copies = np.concatenate(terms), np.concatenate(copies)
    mean = all_copies @ all_terms / frame.sample.rows
    return all_terms - np.outer(np.concatenate(masses), mean), all_copies


def _law_term(frame: Frame, order: Order) -> Term | None:
    """Return what a row does where the sample's own cumulants stand for the model's."""
    if frame.member is not None or (frame.order == 1 and frame.sample.plain):
        return None
    return Term.of_law(order.found) if order.found is not None else Term.of_law_first(frame.v)


def _unit_term(frame: Frame, order: Order) -> Term | None:
    """Return what a unit does through V and K, and through the estimate."""
    if frame.order == 1:
        if frame.method == "closed_form" or (frame.method == "simple" and frame.sample.plain):
            return None
        drift = frame.sample.drift(frame.centre, frame.matrix)
        return Term.of_data_first(drift) + Term.linear(*_gradients(frame, order))
    if order.found is None:  # a formula that is the same for all members
        return None
    if frame.method == "closed_form":
        return Term.linear(*_gradients(frame, order))
    assert order.moments is not None
    data = Term.of_data(order.found, order.moments.drift, order.moments.drift_square)
    return data if frame.member is None else data + Term.linear(*_gradients(frame, order))


def _gradients(frame: Frame, order: Order) -> tuple[Float[ndarray, " p"], Float[ndarray, " p"]]:
    """Differentiate a and b by the natural parameter."""
    p, moves_data = len(frame.kept), frame.method == "closed_form"
    by_a = np.zeros(p) if order.trace is None or moves_data else -order.trace / 2
    if order.found is None or order.third is None or frame.cumulants is None:
        return by_a, np.zeros(p)
    return by_a, model_gradient(order.found, order.third, frame.cumulants, moves_data=moves_data)


def drawing_error(frame: Frame, order: Order) -> tuple[float, float]:
    """Monte Carlo standard errors of a and b: the spread between chains of their draws' first-order terms."""
    if frame.member is None or not frame.member.chains or order.trace is None:
        return 0.0, 0.0
    assert isinstance(frame.cumulants, StateCumulants)
    law = Term.of_law_first(frame.v) if order.found is None else Term.of_law(order.found)
    # the estimate solves its equations on the draws, so an error of their mean moves it the other way
    by_a, by_b = _gradients(frame, order)
    term = law + Term.linear(-by_a, -by_b)
    values, weights = (np.concatenate(part) for part in zip(*((term(u), w) for u, w in frame.cumulants), strict=True))
    centred = weights[:, None] * (values - weights @ values)
    sums = centred.reshape(frame.member.chains, -1, 2).sum(axis=1)
    chains = frame.member.chains
    errors = np.sqrt(chains / (chains - 1) * np.square(sums).sum(axis=0))
    return float(errors[0]), float(errors[1])
