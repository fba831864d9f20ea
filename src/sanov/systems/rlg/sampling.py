"""Samples of the mixture: a probability-flow ODE, SDEs, and a predictor with Langevin corrections.

A predictor alone does not sample the tilted density for w other than 0 and 1, even with exact models: the mixture of the
noised scores is not the score of the noised mixture. The corrector is Langevin dynamics on the mixture at each noise level;
towards t = 0 its density is the tilted one.

References: song2021score (predictor and corrector); bradley2024cfg (what guided samplers sample).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.systems.rlg.mixing import Mixed
from sanov.systems.rlg.paths import Path, Prediction, SamplerName, Step, correction, sampler_steps

__all__ = ["Sampled", "Sampler", "sample"]


class Sampler(Options):
    """How noise becomes samples."""

    name: SamplerName = option(
        "flow_ode",
        "ODE or SDE of a flow, DDIM, DDPM, or a predictor with corrections (pc).",
        source="released code: the deterministic Euler",
    )
    steps: int = option(20, "Steps from noise to data.", source="released code: script (its evaluation has 40)", ge=1)
    noise: float = option(
        0.7,
        "Level a of flow_sde; the square root of 2 is memoryless. Measures the path KL.",
        source="released code",
        ge=0,
    )
    eta: float = option(0.0, "Share of DDPM's noise that ddim adds.", source="choice", ge=0, le=1)
    corrections: int = option(5, "pc: Langevin steps at each noise level.", source="choice", ge=0)
    correction_size: float = option(
        0.1, "pc: size of such a step times the mixture's mean precision.", source="choice", gt=0, lt=2
    )
    last: float = option(
        0.02, "pc: last time at which is corrected, from where one step leads to 0.", source="choice", gt=0, lt=0.5
    )

    def plan(self, prediction: Prediction, path: Path) -> list[Step]:
        """Return the steps of a run."""
        return sampler_steps(
            self.name, self.steps, prediction=prediction, path=path, noise=self.noise, eta=self.eta, last=self.last
        )


@dataclass(frozen=True)
class Sampled:
    """What a run gives.

    Parameters
    ----------
    x
        The samples.
    path_kl
        KL of the run's path from that of the reference, in nats a sample; None where it was not measured. Without noise in
        the sampler it is a proxy, by the noise of the stochastic sampler next to it.
    passes
        Passes of models at each step, corrections included.
    """

    x: Float[Tensor, "rows ..."]
    path_kl: Float64[Tensor, " rows"] | None
    passes: tuple[int, ...]


@torch.no_grad()
def sample(
    mixed: Mixed,
    start: Float[Tensor, "rows ..."],
    sampler: Sampler,
    *,
    prediction: Prediction = "velocity",
    path: Path = "flow",
    condition: Int[Tensor, " rows"] | None = None,
    generator: torch.Generator | None = None,
) -> Sampled:
    """Run a sampler from noise.

    Parameters
    ----------
    mixed
        The models under the rule.
    start
        Noise, whose kind of number (float32 or wider) is that of the run.
    sampler
        Which, and how long.
    prediction, path
        What all models predict, on which path.
    condition
        One a row; None for none.
    generator
        Of all further noise: it draws the same whatever the weights.

    Raises
    ------
    InputError
        See `Mixed` and `paths.step`.
    """
    state = None if generator is None else generator.get_state()
    found = _run(mixed, start, sampler, (prediction, path), condition, generator)
    if torch.isfinite(found.x).all():
        return found
    if generator is not None and state is not None:
        generator.set_state(state)
    _run(
        replace(mixed, careful=True, passes=[]), start, sampler, (prediction, path), condition, generator
    )  # says where
    raise InputError("the samples are not finite", where="rlg", fix="use a smaller w, or more steps")


def _run(
    mixed: Mixed,
    start: Tensor,
    sampler: Sampler,
    kind: tuple[Prediction, Path],
    condition: Tensor | None,
    generator: torch.Generator | None,
) -> Sampled:
    x = start
    kl = torch.zeros(len(x), dtype=torch.float64, device=x.device) if mixed.measure else None
    counts = []
    for each in sampler.plan(*kind):
        before = len(mixed.passes)
        output = mixed(x, each.before, condition)
        if kl is not None and mixed.moved is not None and each.reach > 0:
            kl += (each.gain / each.reach) ** 2 * mixed.moved.double().pow(2).flatten(1).sum(dim=1) / 2
        x = x * each.keep + output * each.gain if each.keep != 1 else x + output * each.gain
        if each.noise > 0:
            x = x + each.noise * _normal(x, generator)
        if sampler.name == "pc" and each.after > 0:
            x = _corrected(mixed, x, each.after, sampler, kind, condition, generator)
        counts.append(sum(mixed.passes[before:]))
    return Sampled(x, kl, tuple(counts))


def _corrected(
    mixed: Mixed,
    x: Tensor,
    t: float,
    sampler: Sampler,
    kind: tuple[Prediction, Path],
    condition: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the state after Langevin steps at one time, their size in units of the inverse precision.

    The mean square of a score is the mean precision of a normal density; it is measured once a level, over all rows.
    """
    keep, gain = correction(t, prediction=kind[0], path=kind[1])
    size = 0.0
    for number in range(sampler.corrections):
        score = keep * x + gain * mixed(x, t, condition)
        if number == 0:
            size = sampler.correction_size / max(float(score.double().pow(2).mean()), torch.finfo(torch.float32).tiny)
        x = x + size * score + math.sqrt(2 * size) * _normal(x, generator)
    return x


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
