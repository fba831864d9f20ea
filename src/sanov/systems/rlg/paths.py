"""From noise to data: the path, what a network predicts on it, and one step of a sampler as three numbers.

A state is ``x_t = a x0 + b eps`` with time t from 1 (noise) to 0 (data): on the path ``flow`` a = 1 - t and b = t, on
``cosine`` a = cos(pi t / 2) and b = sin(pi t / 2). What a network predicts is ``out = p x0 + q eps``, so that x0 and eps are
affine in (x, out), and every step of every sampler here is::

    x' = keep x + gain out + noise z,    z ~ N(0, I)

References: lipman2023flow (flow); nichol2021improved (cosine); song2021ddim (DDIM); liu2025flowgrpo (the SDE of a flow).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sanov.core.errors import InputError

__all__ = [
    "FIRST",
    "Path",
    "Prediction",
    "SamplerName",
    "Step",
    "correction",
    "grid",
    "levels",
    "predicted",
    "sampler_steps",
    "step",
]

Path = Literal["flow", "cosine"]
Prediction = Literal["velocity", "noise", "sample", "score"]
SamplerName = Literal["flow_ode", "flow_sde", "ddim", "ddpm", "pc"]
FIRST = 0.98  # largest time from which x0 is read off noise or score, where it is divided by a


def levels(path: Path, t: Any) -> tuple[Any, Any]:
    """Return a and b at a time, a number or a tensor."""
    if path == "flow":
        return 1 - t, t
    angle = t * (math.pi / 2)
    if isinstance(t, Tensor):
        return torch.cos(angle), torch.sin(angle)
    return math.cos(angle), math.sin(angle)


def predicted(prediction: Prediction, path: Path, t: Any) -> tuple[Any, Any]:
    """Return p and q, with which a network's output is p x0 + q eps at a time."""
    a, b = levels(path, t)
    match prediction:
        case "noise":
            return 0.0, 1.0
        case "sample":
            return 1.0, 0.0
        case "score":
            return 0.0, -1.0 / b
        case _:  # on the cosine path what is called v-prediction
            return (-1.0, 1.0) if path == "flow" else (-b, a)


@dataclass(frozen=True)
class Step:
    """One step of a sampler, x' = keep x + gain out + noise z, from one time to another.

    ``reach`` is the standard deviation by which the path KL is measured: that of the step, or where it has none that of the
    stochastic sampler next to it.
    """

    before: float
    after: float
    keep: float
    gain: float
    noise: float
    reach: float


def grid(count: int, prediction: Prediction = "velocity", *, last: float = 0.0) -> list[float]:
    """Return the times of a run, evenly spaced from 1 (or just below it) to `last`, and then 0.

    Raises
    ------
    InputError
        There is no step.
    """
    if count < 1:
        raise InputError(f"the value is {count}", where="steps", expected="a whole number >= 1")
    first = FIRST if prediction in ("noise", "score") else 1.0
    steps = count - 1 if last > 0 else count
    if steps < 1:
        return [first, 0.0]
    times = [first + (last - first) * place / steps for place in range(steps + 1)]
    return [*times[:-1], last, 0.0] if last > 0 else [*times[:-1], 0.0]


def step(
    name: SamplerName,
    before: float,
    after: float,
    *,
    prediction: Prediction = "velocity",
    path: Path = "flow",
    noise: float = 0.7,
    eta: float = 0.0,
    largest: float | None = None,
) -> Step:
    """Return the numbers of one step.

    Parameters
    ----------
    name
        The sampler; ``pc`` steps as ``ddim`` does, without noise, and corrects apart.
    before, after
        Times.
    prediction, path
        What the network predicts, and on which path.
    noise
        Level a of ``flow_sde``; it also measures the path KL of ``flow_ode``.
    eta
        Share of the noise of ``ddpm`` that ``ddim`` adds.
    largest
        ``flow_sde``: the time that stands for 1 where noise would be infinite.

    Raises
    ------
    InputError
        A sampler of flows on another path.
    """
    if name in ("flow_ode", "flow_sde"):
        if path != "flow":
            raise InputError(f"the path is {path!r}", where=f"sampler={name}", expected="ddim, ddpm or pc on this path")
        keep, slope, spread = _flow(before, after, noise, after if largest is None else largest)
        own = (1.0, after - before, 0.0) if name == "flow_ode" else (keep, slope, spread)
        return _step(before, after, own[0], -own[1], own[1], own[2], spread, prediction, path)
    a, b = levels(path, after)
    spread = _posterior(path, before, after)
    own_noise = spread * {"ddpm": 1.0, "ddim": eta}.get(name, 0.0)
    return _step(
        before,
        after,
        0.0,
        a,
        math.sqrt(max(b * b - own_noise**2, 0.0)),
        own_noise,
        own_noise or spread,
        prediction,
        path,
    )


def _flow(before: float, after: float, noise: float, largest: float) -> tuple[float, float, float]:
    """Return keep, the factor of the velocity, and the noise of a step of Flow-GRPO's SDE."""
    dt = after - before
    held = largest if before >= 1 else before
    spread = noise * math.sqrt(before / (1 - held)) if held < 1 else math.inf
    rate = spread * spread / (2 * before)
    return 1 + rate * dt, (1 + rate * (1 - before)) * dt, spread * math.sqrt(-dt)


def _posterior(path: Path, before: float, after: float) -> float:
    """Return the standard deviation of x' given x and x0, the noise of DDPM."""
    (a, b), (a_after, b_after) = levels(path, before), levels(path, after)
    return float(b_after * math.sqrt(max(1 - (b_after * a / (a_after * b)) ** 2, 0.0)))


def _step(
    before: float,
    after: float,
    keep: float,
    of_data: float,
    of_noise: float,
    noise: float,
    reach: float,
    prediction: Prediction,
    path: Path,
) -> Step:
    """Return x' = keep x + of_data x0 + of_noise eps + noise z in terms of x and the network's output."""
    of_state, gain = _affine(of_data, of_noise, before, prediction, path)
    return Step(before, after, keep + of_state, gain, noise, reach)


def _affine(of_data: float, of_noise: float, t: float, prediction: Prediction, path: Path) -> tuple[float, float]:
    """Return the factors of x and of the output in of_data x0 + of_noise eps."""
    a, b = levels(path, t)
    p, q = predicted(prediction, path, t)
    scale = a * q - b * p
    if scale == 0:
        fix = f"begin at t = {FIRST}"
        raise InputError(f"x0 does not follow from {prediction} at t = {t:g}", where="steps", fix=fix)
    return (of_data * q - of_noise * p) / scale, (of_noise * a - of_data * b) / scale


def correction(t: float, *, prediction: Prediction = "velocity", path: Path = "flow") -> tuple[float, float]:
    """Return the factors of x and of the network's output in the score -eps / b at a time."""
    _, b = levels(path, t)
    return _affine(0.0, -1 / b, t, prediction, path)


def sampler_steps(
    name: SamplerName,
    count: int,
    *,
    prediction: Prediction = "velocity",
    path: Path = "flow",
    noise: float = 0.7,
    eta: float = 0.0,
    last: float = 0.0,
) -> list[Step]:
    """Return the steps of a run; see `grid` and `step`.

    Parameters
    ----------
    name, prediction, path, noise, eta
        As in `step`.
    count
        Number of steps.
    last
        ``pc``: the last time at which is corrected, from which one more step leads to 0.
    """
    times = grid(count, prediction, last=last if name == "pc" else 0.0)
    how: dict[str, Any] = {"prediction": prediction, "path": path, "noise": noise, "eta": eta}
    return [step(name, before, after, largest=times[1], **how) for before, after in pairwise(times)]
