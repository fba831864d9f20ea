"""The coefficients of the risk from a sample, in three ways.

``simple``: the sample's cumulants stand for the model's, so no normaliser and no estimate are needed, and a = p/2.
``sandwich``: the cumulants are those of the member closest to the data, V and K are the data's; right also where the
model is not. ``closed_form``: all cumulants are those of that member, so the model is taken to be right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import InputError
from sanov.systems.pn.bootstrap import interval, multiplier_replicates
from sanov.systems.pn.expansion import (
    METHODS,
    Frame,
    Method,
    Order,
    drawing_error,
    frame_of,
    order_one,
    order_two,
    terms_of,
)
from sanov.systems.pn.sample import Sample

__all__ = ["Coefficients", "estimate"]

OFTEN = 1e-3  # a probability of no MLE that is worth a sentence
INFLATION = 0.02  # so is a bias of b of this share,
NOISY = 0.02  # and a Monte Carlo error of the risk
HEAVY = 2.5  # times 1/sqrt(n): share of tr(G^-1 V) in one row; with a finite variance it tends to 0 times 1/sqrt(n)


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The risk R(n) = a/n + b/n^2 of a sample's family, and what it was made of.

    Parameters
    ----------
    method, order
        As asked for.
    rows, units
        n, and how many independent units they form.
    columns, parameters
        Statistics before and after dependent ones were dropped; the second is p.
    names, dependent
        The statistics kept and dropped.
    a, b, b_dual
        Coefficients, in nats times rows and rows squared; b and b_dual are 0 at first order.
    trace
        tr(G^-1 V): p where the model is right.
    eigenvalues
        Of G^-1 V.
    shares
        Statistic -> its share of `trace`, 1 where the model is right. It is the variance, under the data, of the
        statistic after whitening under the model with the whitening that stays closest to the statistics
        (kessy2018optimal), so the shares are not negative and add up to `trace`.
    t1, t2, k4
        Invariants of the cumulants that stand for the model's; None at first order.
    a_error, b_error
        Monte Carlo standard errors; 0 where nothing was drawn.
    log_likelihood
        At the estimate, in the units of the data; None where the normaliser is not known.
    no_mle
        Upper bound of the probability that another sample of this size has no MLE; None where it is not known.
    replicates
        Of (a, b), from the bootstrap; None where it was not asked for.
    confidence
        Of the intervals.
    warnings
        What the user should know, a sentence each.
    theta
        Natural parameter of the member closest to the data, in the order of `names`; None where there is no member.
    frame, found
        What it was computed from.
    """

    method: Method
    order: int
    rows: float
    units: float
    columns: int
    parameters: int
    names: tuple[str, ...]
    dependent: tuple[str, ...]
    a: float
    b: float
    b_dual: float
    trace: float
    eigenvalues: Float[ndarray, " p"]
    shares: dict[str, float]
    t1: float | None
    t2: float | None
    k4: float | None
    a_error: float
    b_error: float
    log_likelihood: float | None
    no_mle: float | None
    replicates: Float[ndarray, "replicates 2"] | None
    confidence: float
    warnings: tuple[str, ...]
    theta: Float[ndarray, " p"] | None = field(repr=False)
    frame: Frame = field(repr=False)
    found: Order = field(repr=False)

    @property
    def a_simple(self) -> float:
        """p/2: a where the model is right."""
        return self.parameters / 2

    @property
    def ratio(self) -> float:
        """tr(G^-1 V) / p: 1 where the model is right."""
        return self.trace / self.parameters

    @property
    def aic(self) -> float | None:
        """-2 log L + 2p."""
        return self._criterion(2.0 * self.parameters)

    @property
    def aic2(self) -> float | None:
        """-2 log L + 2p + (T1 + T2 - K4) / n: AIC to the next order; for the normal distribution it agrees with AICc.

        It is not in the literature: the correction is n times the second-order optimism of the log-likelihood, doubled.
        """
        if self.t1 is None or self.t2 is None or self.k4 is None:
            return None
        return self._criterion(2 * self.parameters + (self.t1 + self.t2 - self.k4) / self.rows)

    @property
    def tic(self) -> float | None:
        """-2 log L + 2 tr(G^-1 V): AIC where the model may be wrong (takeuchi1976distribution)."""
        return self._criterion(2 * self.trace)

    def _criterion(self, penalty: float) -> float | None:
        return None if self.log_likelihood is None else -2 * self.log_likelihood + penalty

    def interval(self, of: str | Callable[[float, float], float]) -> tuple[float, float] | None:
        """Percentile interval of ``"a"``, ``"b"`` or a function of (a, b); None without a bootstrap."""
        if self.replicates is None:
            return None
        pick: dict[str, Callable[[float, float], float]] = {"a": lambda a, b: a, "b": lambda a, b: b}
        return interval(self.replicates, pick[of] if isinstance(of, str) else of, self.confidence)


def estimate(
    sample: Sample,
    *,
    method: str = "sandwich",
    order: int = 2,
    bootstrap: int = 200,
    draws: int | None = None,
    rank_tolerance: float = 1e-9,
    confidence: float = 0.95,
    seed: int = 0,
) -> Coefficients:
    """Estimate the coefficients of the risk.

    The cost is linear in the rows: at second order about rows * p^3 / 6 for the moments and as much for the terms of
    the bootstrap; p^3 numbers are held, never rows times p.

    Parameters
    ----------
    sample
        The rows.
    method
        ``sandwich``, ``simple`` or ``closed_form``.
    order
        1 or 2.
    bootstrap
        Replicates; 0 makes none.
    draws
        Draws for members that must be sampled; None is 50 per row or 10 p^2, at most a million, and never fewer than
        10 per row.
    rank_tolerance
        Relative cut of the eigenvalues that decides whether statistics depend on one another.
    confidence
        Of the intervals.
    seed
        Of draws and multipliers.

    Raises
    ------
    InputError
        Not more rows than statistics where their covariance is needed, too many statistics for arrays of p^3, a model
        whose MLE does not exist.

    Reference: sheena2021pn.
    """
    chosen = next((known for known in METHODS if known == method), None)
    if chosen is None:
        raise InputError(f"the method is {method!r}", where="method", expected=f"one of {', '.join(METHODS)}")
    if order not in (1, 2):
        raise InputError(f"the order is {order!r}", where="order", expected="1 or 2")
    frame = frame_of(sample, chosen, order, draws=draws, tolerance=rank_tolerance, seed=seed)
    found = order_one(frame) if order == 1 else order_two(frame)
    replicates = None
    if bootstrap:
        terms, copies = terms_of(frame, found)
        a, b, total = found.expansion.a, found.expansion.b, sample.rows
        replicates = multiplier_replicates(a, b, terms, copies, total, replicates=bootstrap, seed=seed + 1)
    return _collected(frame, found, replicates, confidence)


def _collected(
    frame: Frame, found: Order, replicates: Float[ndarray, "replicates 2"] | None, confidence: float
) -> Coefficients:
    sample, member, expansion = frame.sample, frame.member, found.expansion
    names = tuple(sample.prepared.names[place] for place in frame.kept)
    model = sample.prepared.model
    no_mle = model.no_mle(frame.centre, sample.rows)
    errors = drawing_error(frame, found)
    return Coefficients(
        method=frame.method,
        order=frame.order,
        rows=sample.rows,
        units=sample.units,
        columns=sample.prepared.statistics_before,
        parameters=len(frame.kept),
        names=names,
        dependent=frame.dependent,
        a=expansion.a,
        b=expansion.b,
        b_dual=expansion.b_dual,
        trace=float(np.trace(frame.v)),
        eigenvalues=np.linalg.eigvalsh(frame.v)[::-1],
        shares=dict(zip(names, map(float, np.diag(frame.v)), strict=True)),
        t1=found.invariants.t1 if found.invariants else None,
        t2=found.invariants.t2 if found.invariants else None,
        k4=found.invariants.k4 if found.invariants else None,
        a_error=errors[0],
        b_error=errors[1],
        log_likelihood=_log_likelihood(frame),
        no_mle=no_mle,
        replicates=replicates,
        confidence=confidence,
        warnings=sample.prepared.notes + frame.notes + _doubts(frame, found, no_mle, errors),
        theta=None if member is None else member.theta,
        frame=frame,
        found=found,
    )


def _log_likelihood(frame: Frame) -> float | None:
    """Return n (theta . mean - Psi + mean log base)."""
    if frame.member is None or frame.member.log_partition is None:
        return None
    base = frame.sample.mean_log_base()
    if base is None:
        return None
    return float(frame.sample.rows * (frame.member.theta @ frame.centre - frame.member.log_partition + base))


def _doubts(frame: Frame, found: Order, no_mle: float | None, errors: tuple[float, float]) -> tuple[str, ...]:
    n, p, a, b = frame.sample.rows, len(frame.kept), found.expansion.a, found.expansion.b
    said = []
    if frame.order == 2 and frame.method != "closed_form" and p * p > n:
        said.append(f"p^2 = {p * p} exceeds n = {n:g}: the second-order term is mostly noise; order=1 leaves it out")
    elif frame.order == 2 and frame.method == "simple" and p**3 / n > INFLATION * abs(b):
        said.append(
            f"the sample's own third moments are off by an amount of order p^3/n = {p**3 / n:.3g}, which the interval of "
            f"b = {b:.4g} does not show; method=sandwich or closed_form is free of it"
        )
    if frame.order == 1 and frame.method == "sandwich" and n <= p:
        said.append(f"n = {n:g} is not above p = {p}: V is singular, and what it says of the model is of little worth")
    if frame.method == "sandwich":
        said += _heavy_tails(frame)
    if abs(b) / n > a / 2:
        said.append(f"|b|/n = {abs(b) / n:.3g} exceeds a/2 = {a / 2:.3g}: n is too small for the expansion")
    if no_mle is not None and no_mle > OFTEN:
        said.append(f"with probability up to {no_mle:.2g} a sample of this size has no MLE; the risk is that given one")
    if errors[0] > NOISY * a or errors[1] > NOISY * a * n:
        said.append(
            f"the draws leave standard errors of {errors[0]:.2g} on a and {errors[1]:.2g} on b: take more draws"
        )
    return tuple(said)


def _heavy_tails(frame: Frame) -> list[str]:
    """Tell of a row that carries so much of tr(G^-1 V) that the variance of the rows' parts cannot be finite."""
    blocks = frame.sample.units_of(frame.centre, frame.matrix, "tails")
    heaviest = max(float(np.square(block.sums).sum(axis=1).max()) for block in blocks)
    share = heaviest / (float(np.trace(frame.v)) * frame.sample.rows)
    if share * np.sqrt(frame.sample.units) < HEAVY:
        return []
    spread = np.diag(frame.v)
    most = frame.sample.prepared.names[frame.kept[int(spread.argmax())]]
    return [
        f"one row carries {share:.0%} of tr(G^-1 V), and {most} departs most: with tails so heavy n* and its interval are "
        "probably too low; transform that column (its logarithm?) and ask again"
    ]
