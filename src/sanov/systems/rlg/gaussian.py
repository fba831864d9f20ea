"""What the mixture samples where reference and policy are normal: closed forms, exact propagation, and a self-check.

In one dimension (or along each eigendirection of covariances that commute), reference N(m0, s0^2) and policy N(m1, s1^2).
Wanted is the tilted density at beta / w, of precision ``(1 - w) / s0^2 + w / s1^2``. A sampler with noise eta (0: ODE;
a^2 / 2: the SDE of level a; 1: the full reverse SDE) gives another one unless s0 = s1 or w is 0 or 1::

    eta = 0    variance s0^(2 (1 - w)) s1^(2 w), the geometric mean where the harmonic one is wanted
    eta -> oo  the wanted one

References: jin2025rlg; domingo2024adjoint (memoryless noise); the closed forms are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sanov.core.errors import InputError
from sanov.systems.rlg.paths import SamplerName, levels, predicted, sampler_steps

__all__ = ["Pair", "check_proper", "correlation", "laws", "propagated", "self_check"]

FARTHEST = 1e6  # u from which moments are integrated: noise against which data do not count


@dataclass(frozen=True)
class Pair:
    """Means and standard deviations of a normal reference and of its normal policy."""

    m0: float
    s0: float
    m1: float
    s1: float

    @property
    def threshold(self) -> float | None:
        """The weight at which the tilted precision is 0; None where it never is."""
        if self.s0 == self.s1:
            return None
        return self.s1**2 / (self.s1**2 - self.s0**2)

    def precision(self, weight: float) -> float:
        """Return that of the tilted density."""
        return (1 - weight) / self.s0**2 + weight / self.s1**2

    def target(self, weight: float) -> tuple[float, float]:
        """Return mean and variance of the tilted density at beta / w.

        Raises
        ------
        InputError
            There is none.
        """
        check_proper(self, weight)
        of_both = (1 - weight) * self.m0 / self.s0**2 + weight * self.m1 / self.s1**2
        return of_both / self.precision(weight), 1 / self.precision(weight)

    def law(self, weight: float, eta: float) -> tuple[float, float]:
        """Return mean and variance of what a sampler of infinitely many steps gives, with noise eta.

        A sampler gives finite numbers also where there is no tilted density.
        """
        if self.s1 > self.s0:
            return self._integrated(weight, eta)
        if self.s0 == self.s1:
            return self.m0 + weight * (self.m1 - self.m0), self.s0**2
        return self.m0 + (self.m1 - self.m0) * self._shift(weight, eta), self._variance(weight, eta)

    def _shift(self, weight: float, eta: float) -> float:
        """Return the share of m1 - m0 by which the mean moves, in y with z = 1 - y^(2 / n)."""
        from scipy.integrate import quad

        z, n = self.s1**2 / self.s0**2, 1 + eta
        end = (1 - z) ** (n / 2)
        value, _ = quad(lambda y: (1 - y ** (2 / n)) ** (-1 - n * weight / 2), 0, end, epsabs=0, epsrel=1e-10)
        return float(weight * z ** (n * weight / 2) * (1 - z) ** (-n / 2) * value)

    def _variance(self, weight: float, eta: float) -> float:
        from scipy.integrate import quad

        z, n = self.s1**2 / self.s0**2, 1 + eta
        if eta == 0:
            return float(self.s0 ** (2 * (1 - weight)) * self.s1 ** (2 * weight))
        end = (1 - z) ** eta  # z = 1 - y^(1 / eta) takes the singular end away
        value, _ = quad(lambda y: (1 - y ** (1 / eta)) ** (-n * weight), 0, end, epsabs=0, epsrel=1e-10)
        return float(self.s0**2 * z ** (n * weight) * (1 - z) ** -eta * value)

    def _integrated(self, weight: float, eta: float) -> tuple[float, float]:
        """Integrate mean and variance in u = (b / a)^2, from far away to 0, in its logarithm and then plainly."""
        from scipy.integrate import solve_ivp

        n = 1 + eta

        def slopes(u: float, moments: np.ndarray) -> np.ndarray:
            p, q = self.s0**2 + u, self.s1**2 + u
            pull, push = (1 - weight) / p + weight / q, (1 - weight) * self.m0 / p + weight * self.m1 / q
            return np.array([n / 2 * (pull * moments[0] - push), n * pull * moments[1] - eta])

        how: dict[str, Any] = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
        mean = (1 - weight) * self.m0 + weight * self.m1  # of the mixture where noise is large, to first order in 1 / u
        variance = FARTHEST + (1 - weight) * self.s0**2 + weight * self.s1**2
        far = solve_ivp(
            lambda v, m: math.exp(v) * slopes(math.exp(v), m), (math.log(FARTHEST), 0), [mean, variance], **how
        )
        near = solve_ivp(slopes, (1, 0), far.y[:, -1], **how)
        return float(near.y[0, -1]), float(near.y[1, -1])


def check_proper(pair: Pair, weight: float) -> None:
    """Refuse a weight at which there is no tilted density.

    Raises
    ------
    InputError
        The precision is not positive; with the weight from which it is not.
    """
    if pair.precision(weight) <= 0:
        found = f"the precision at w = {weight:g} is {pair.precision(weight):.4g}: no proper tilted density exists"
        side = "below" if pair.threshold is not None and pair.threshold > 0 else "above"
        raise InputError(found, where="w", expected=f"a weight {side} {pair.threshold:.4g}")


def correlation(s0: float, noise: float, start: float = 0.99) -> float:
    """Return the correlation of data with the noise that a flow's SDE of level a began with, for a normal reference.

    Only what is independent of it can be tilted by fine-tuning: a linear reward moves the mean by 1 - corr^2 of what it
    should.

    Parameters
    ----------
    s0
        Standard deviation of the reference.
    noise
        Level a.
    start
        Time at which the run begins.

    Reference
    ---------
    domingo2024adjoint.
    """
    u = (start / (1 - start)) ** 2
    return float((s0**2 / (s0**2 + u)) ** (noise**2 / 4))


# -- steps, exactly ---------------------------------------------------------------------------------------------------


def propagated(
    pair: Pair, weight: float, name: SamplerName, count: int, *, noise: float = 0.7, eta: float = 0.0
) -> tuple[float, float]:
    """Return mean and variance of what so many steps of a sampler give: each step is affine, so there is no sampling.

    Parameters
    ----------
    pair, weight
        The two normal densities, and w.
    name, count, noise, eta
        Of the sampler.
    """
    mean, variance = 0.0, 1.0
    for each in sampler_steps(name, count, noise=noise, eta=eta):
        slope, offset = _mixture(pair, weight, each.before)
        factor = each.keep + each.gain * slope
        mean, variance = factor * mean + each.gain * offset, factor * factor * variance + each.noise**2
    return mean, variance


def _mixture(pair: Pair, weight: float, t: float) -> tuple[float, float]:
    """Return slope and offset of the mixed velocity, which is affine in x."""
    (slope0, offset0), (slope1, offset1) = _velocity(pair.m0, pair.s0, t), _velocity(pair.m1, pair.s1, t)
    return (1 - weight) * slope0 + weight * slope1, (1 - weight) * offset0 + weight * offset1


def _velocity(mean: float, spread: float, t: float) -> tuple[float, float]:
    a, b = levels("flow", t)
    p, q = predicted("velocity", "flow", t)
    pull = 1 / (a * a * spread**2 + b * b)
    slope = (p * a * spread**2 + q * b) * pull
    return slope, p * mean - slope * a * mean


# -- for a user -------------------------------------------------------------------------------------------------------

EXAMPLE = Pair(0.0, 1.0, 2.0, 0.5)
STEPS = 1000
NEAR = 3e-3  # of a thousand steps from their limit


def laws(pair: Pair, weights: list[float], noise: float = 0.7) -> pl.DataFrame:
    """Return what is wanted and what samplers give, by weight: mean and variance of each; null where there is no density."""
    rows = []
    for weight in weights:
        proper = pair.precision(weight) > 0
        wanted = pair.target(weight) if proper else (None, None)
        found = {"ode": pair.law(weight, 0.0), "sde": pair.law(weight, noise**2 / 2), "full_sde": pair.law(weight, 1.0)}
        row = {"w": weight, "target_mean": wanted[0], "target_variance": wanted[1]}
        for name, (mean, variance) in found.items():
            row |= {f"{name}_mean": mean, f"{name}_variance": variance}
        rows.append(row)
    return pl.DataFrame(rows)


def self_check() -> pl.DataFrame:
    """Hold the samplers to the closed forms on this machine: one row a check, with what was found and what is right."""
    rows = []
    for weight in (0.5, 1.6, 3.0):
        for name, noise in (("flow_ode", 0.0), ("flow_sde", 0.7), ("flow_sde", math.sqrt(2))):
            found = propagated(EXAMPLE, weight, name, STEPS, noise=noise)  # type: ignore[arg-type]
            right = EXAMPLE.law(weight, noise**2 / 2)
            label = f"{name}{f', a = {noise:.3g}' if noise else ''}, w = {weight:g}"
            rows += [(f"{label}: {what}", f, r) for what, f, r in zip(("mean", "variance"), found, right, strict=True)]
    equal = Pair(0.0, 1.0, 1.0, 1.0)
    rows.append(("equal variances, flow_ode, 20 steps: mean = w", propagated(equal, 3.0, "flow_ode", 20)[0], 3.0))
    frame = pl.DataFrame(rows, schema=["check", "found", "right"], orient="row")
    return frame.with_columns(passed=(pl.col("found") - pl.col("right")).abs() <= NEAR)
