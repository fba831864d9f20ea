r"""Reinforcement learning guidance: mix a generator with its reward-tuned version while it samples, by one number w.

What a network says of a noised image x_t (score, noise, sample or velocity; they are affine in one another) is mixed at
every step of the sampler, after guidance by a condition::

    out = (1 - w) out_ref + w out_policy              several policies: out_ref + sum_i w_i (out_i - out_ref)

w = 0 is the reference, w = 1 the policy, w > 1 goes beyond it, w < 0 away from it. The mixed score is that of the geometric
average ``p_ref^(1 - w) p_policy^w``. If the policy is ``p_ref e^(R / beta) / Z``, the average at t = 0 is the same at
**beta / w**: alignment is turned up or down after training.

What holds of that, and what does not
-------------------------------------
- The mixture is exact as the score of the average of the *noised* densities at every t, and of the tilt at t = 0 alone. A
  sampler follows the first, and does not end in the second unless w is 0 or 1, or both are normal with one covariance.
  ODE and SDE give different laws; Langevin steps on the mixture (``sampler.name=pc``) bring it near.
- A policy is not the exact optimum. So beta / w is nominal, and `apply` measures what w does.
- Where the policy spreads more than its reference, there is no tilted density beyond some w; samplers run all the same.

Deviations from the paper and its released code
-----------------------------------------------
- ``(1 - w) ref + w policy`` instead of ``ref + w (policy - ref)``, which is not exact at w = 1 in floating point; a model
  that does not count is not asked. The mixture is in float32 or wider.
- w may be any number, one a row, or a function of sigma; it may hold in a window of sigma; policies may be several.
- The policy is trained here by one of five methods, or exact (`tune.method`); the released code takes an adapter of SD3.5.
  ``weighted`` is reward-weighted flow matching; ``flow_grpo_exact`` has the exact tilt for its optimum.
- Guidance by a condition is off by default: the networks here are small, and 4.5 is the released default for SD3.5.

Reference: jin2025rlg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.systems.rlg import fitting, report
from sanov.systems.rlg.calibration import Run
from sanov.systems.rlg.fitted import Fitted, interpolated
from sanov.systems.rlg.gaussian import Pair, self_check
from sanov.systems.rlg.guard import Band
from sanov.systems.rlg.mixing import Guidance, Mixed
from sanov.systems.rlg.mixtures import Mixture
from sanov.systems.rlg.reading import Images, Normal
from sanov.systems.rlg.reading import read as read_images
from sanov.systems.rlg.sampling import Sampled, Sampler, sample
from sanov.systems.rlg.training import Base, Tune
from sanov.systems.rlg.weights import Window, check_weight, combine, guided

__all__ = [
    "Config",
    "Fitted",
    "Guidance",
    "Images",
    "Mixed",
    "Mixture",
    "Pair",
    "Sampled",
    "Sampler",
    "Window",
    "apply",
    "combine",
    "fit",
    "guided",
    "interpolated",
    "read",
    "sample",
    "self_check",
]


class WindowOptions(Options):
    """Where models are mixed."""

    start: float = option(1.0, "Largest sigma at which models are mixed.", source="choice: everywhere", ge=0)
    stop: float = option(0.0, "Smallest such sigma.", source="choice: everywhere", ge=0)
    outside: Literal["policy", "reference"] = option(
        "policy", "Which model is used alone outside.", source="choice, as the released `zero_init_step`"
    )


class GuidanceOptions(Options):
    """Guidance by the class, of each model before they are mixed."""

    scale: float = option(1.0, "g; 1 is off.", source="choice: off (released code: 4.5)")
    reference: float | None = option(None, "g of the reference; none for `scale`.", source="choice")
    policy: float | None = option(None, "g of the policy; none for `scale`.", source="choice")
    share_unconditional: bool = option(
        False, "Take the reference's output without a class for both: 3 passes in place of 4.", source="choice"
    )

    def settled(self) -> Guidance:
        """Return both scales."""
        own = [self.scale if value is None else value for value in (self.reference, self.policy)]
        return Guidance(own[0], own[1], self.share_unconditional)


class NormalOptions(Options):
    """Two normal densities, for ``embedded:normal``."""

    m0: float = option(0.0, "Mean of the reference.", source="choice: the example")
    s0: float = option(1.0, "Standard deviation of the reference.", source="choice: the example", gt=0)
    m1: float = option(2.0, "Mean of the policy.", source="choice: the example")
    s1: float = option(0.5, "Standard deviation of the policy.", source="choice: the example", gt=0)


class Config(Options):
    """Options of `rlg`."""

    w: tuple[float, ...] = option(
        (0.0, 0.5, 1.0, 1.6), "apply: weights; any finite numbers.", source="released code: 1.6"
    )
    images: int = option(64, "apply: images of each weight.", source="choice", ge=2)
    sheet: int = option(10, "apply: rows of the contact sheet.", source="choice", ge=1)
    reward: str = option(
        "ink",
        "fit: ink, symmetry, class, class:NAME, or module:function.",
        source="choice: linear, and needs no labels",
    )
    judge: tuple[str, ...] = option((), "apply: further rewards that are told by weight.", source="choice")
    reference: str = option("", "fit: folder of an earlier fit, whose reference is taken.", source="choice")
    also: tuple[str, ...] = option((), "apply: folders of further policies of the same reference.", source="choice")
    also_w: tuple[float, ...] = option((), "apply: their weights, which stay as they are.", source="choice")
    skip_redundant: bool = option(True, "apply: do not ask a model that does not count.", source="choice")
    wanted_kl: float | None = option(
        None,
        "apply: path KL not to be passed by the w that is named; none for the peak.",
        source="choice",
        unit="nats",
        ge=0,
    )
    checkpoint_every: int = option(0, "fit: steps between checkpoints; 0 for one at the end.", source="choice", ge=0)
    sampler: Sampler = Sampler()
    window: WindowOptions = WindowOptions()
    guidance: GuidanceOptions = GuidanceOptions()
    guard: Band = Band()
    base: Base = Base()
    tune: Tune = Tune()
    normal: NormalOptions = NormalOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        bad = [value for value in (*self.w, *self.also_w) if not math.isfinite(value)]
        if bad or not self.w:
            raise ValueError(f"w holds {bad[0] if bad else 'no weight'}: expected finite numbers, of any sign and size")
        if len(self.also) != len(self.also_w):
            raise ValueError(f"there are {len(self.also_w)} weights also_w for {len(self.also)} policies also")
        return self


def read(sources: Sequence[Any], config: Config) -> Images | Normal | None:
    """Read images; `apply` with a fitted folder needs none.

    Parameters
    ----------
    sources
        ``embedded:digits``, ``embedded:mnist``, an .npz file with ``images`` and perhaps ``labels``, or a table of pixels;
        ``embedded:normal`` for two normal densities in place of images.
    config
        The system's options.

    Raises
    ------
    InputError
        See `reading.read`.
    """
    normal = config.normal
    return read_images(sources, Pair(normal.m0, normal.s0, normal.m1, normal.s1))


def fit(
    data: Images | Normal | None,
    config: Config,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
) -> Fitted:
    """Train a reference on images, or take one, and tune its policy to a reward.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The system's options.
    seed
        Of everything random.
    out
        Folder for both models and the checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        There are no images, or see `fitting.fit`.
    """
    if not isinstance(data, Images):
        fix = "name a file of images, or embedded:digits"
        raise InputError("there are no images to learn from", where="rlg", fix=fix)
    return fitting.fit(data, config, seed=seed, out=None if out is None else Path(out), resume=resume)


def apply(
    data: Images | Normal | None, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0
) -> Answer:
    """Sample images at several weights from the same noise, and say what the weight does.

    Parameters
    ----------
    data
        What `read` returned; images are not needed. Two normal densities need nothing fitted.
    config
        The system's options.
    fitted
        What `fit` returned, or its folder.
    seed
        Of the noise.

    Raises
    ------
    InputError
        Nothing was fitted, a further policy does not go with it, or a model's output is not finite.
    """
    if isinstance(data, Normal):
        return report.about_normals(data.pair, config.w, config.sampler.noise)
    if fitted is None:
        fix = "first: sanov fit rlg IMAGES --out DIR; then pass --fitted DIR"
        raise InputError("there are no models", where="rlg", fix=fix)
    models = fitted if isinstance(fitted, Fitted) else Fitted.load(fitted)
    others = [(Fitted.load(folder), weight) for folder, weight in zip(config.also, config.also_w, strict=True)]
    for folder, (other, _) in zip(config.also, others, strict=True):
        models.check_same(other, folder)
    weights = sorted({0.0, *(float(check_weight(weight)) for weight in config.w)})
    runs, judged = _runs(models, config, weights, [(other.policy, weight) for other, weight in others], seed)
    notes = [] if 0.0 in config.w else ["w = 0 was added: everything is told relative to it."]
    condition = models.asked(config.images)
    return report.about_images(
        runs,
        models,
        conditions=None if condition is None else condition.tolist(),
        band=config.guard.width,
        sheet=min(config.sheet, config.images),
        seed=seed,
        wanted_kl=config.wanted_kl,
        judged=judged,
        about={"software": "sanov rlg", "sampler": config.sampler.name, "steps": str(config.sampler.steps)},
        notes=notes,
    )


def _runs(
    models: Fitted, config: Config, weights: Sequence[float], others: Sequence[tuple[Any, float]], seed: int
) -> tuple[dict[float, Run], dict[str, dict[float, float]]]:
    """Sample at each weight; return images with their rewards, and what further rewards say."""
    condition, reward = models.asked(config.images), models.scorer()
    judges = {name: models.scorer(name) for name in config.judge}
    window = config.window
    how: dict[str, Any] = {
        "sampler": config.sampler,
        "condition": condition,
        "window": Window(window.start, window.stop, window.outside),
        "guidance": config.guidance.settled(),
        "skip": config.skip_redundant,
        "seed": seed,
    }
    runs: dict[float, Run] = {}
    judged: dict[str, dict[float, float]] = {name: {} for name in judges}
    for weight in weights:
        found = models.sample(weight, config.images, others=others, measure=config.sampler.noise > 0, **how)
        runs[weight] = Run(found.x, reward(found.x, condition), found.path_kl, sum(found.passes) / len(found.passes))
        for name, judge in judges.items():
            judged[name][weight] = float(judge(found.x, condition).mean())
    return runs, judged
