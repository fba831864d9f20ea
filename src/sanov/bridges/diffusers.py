"""The knob in diffusers: a classic pipeline whose model is mixed with its reference, and a guider for modular ones.

::

    from sanov.bridges.diffusers import reinforced

    pipe.load_lora_weights("my-flow-grpo-lora")
    with reinforced(pipe, w=1.6) as run:                   # one model: the adapter on is the policy, off the reference
        image = pipe("a cat", num_inference_steps=20).images[0]
    run.passes                                             # of the model, at each step

    from sanov.bridges.diffusers import RLGuidance

    pipe.update_components(guider=RLGuidance(w=1.6, guidance_scale=4.5))

Guidance by a prompt and the mixture commute where both models have one scale, so that the wrapper, which sees both halves of
a pipeline's batch, mixes each; what follows and is not affine (rescaled guidance, clipped samples) then comes last, as it
has to. Mixtures are formed in float32. Read and tested in diffusers 0.42.1, whose guiders are marked experimental there.

Reference: jin2025rlg.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sanov.bridges.adapter_switch import adapter_layers, check_adapters, reference_of
from sanov.core.errors import InputError
from sanov.systems.rlg.weights import (
    Weight,
    Window,
    check_compatible,
    check_weight,
    combine,
    needed,
    warn_of_clipping,
    weight_at,
)

__all__ = ["RLGuidance", "Run", "reinforced"]  # noqa: F822 (the first is made on demand)

DENOISERS = ("transformer", "unet")
CLIPS = ("clip_sample", "thresholding")
SAME = ("in_channels", "out_channels", "sample_size", "cross_attention_dim", "joint_attention_dim", "prediction_type")


def __getattr__(name: str) -> Any:
    """Make the guider when it is asked for: it derives from diffusers', which takes seconds to import."""
    if name != "RLGuidance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sanov.bridges.diffusers_guider import RLGuidance

    return RLGuidance


@dataclass
class Run:
    """What a wrapped pipeline did.

    Attributes
    ----------
    passes
        Models asked, at each call of the denoiser: 1 where the weight is 0 or 1, else 2.
    sigmas, weights
        The noise level of each call, and the weight there (the mean, where rows have their own).
    compiled
        Graphs that ``torch.compile`` made in each call: one for each state of the adapter at the first, and then none.
    """

    passes: list[int] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    compiled: list[int] = field(default_factory=list)


@contextmanager
def reinforced(
    pipeline: Any,
    w: Weight = 1.6,
    *,
    reference: nn.Module | None = None,
    window: Window | None = None,
    skip: bool = True,
) -> Iterator[Run]:
    """Mix a classic pipeline's model with its reference at every step, inside the block.

    Parameters
    ----------
    pipeline
        Of diffusers, with a ``transformer`` or a ``unet``, and a scheduler.
    w
        0 is the reference, 1 the policy; any finite number, one an image, or a function of sigma.
    reference
        A model of its own; None for the pipeline's without its adapters.
    window
        Noise levels between which is mixed, in the scheduler's unit of sigma.
    skip
        Leave out a model that does not count.

    Yields
    ------
    What happens, call by call. Afterwards the pipeline is as it was, also where something failed.

    Raises
    ------
    InputError
        There is no such model; its adapters are merged, or there are none and there is no reference; models differ in
        what they predict; a weight is not finite.
    """
    name = next((name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)), None)
    if name is None:
        raise InputError(
            f"a {type(pipeline).__name__}", where="pipeline", expected=f"one with a {' or a '.join(DENOISERS)}"
        )
    model: Any = getattr(pipeline, name)
    _check(pipeline, model, reference, w)
    run = Run()
    inner = model.forward
    model.forward = _mixing(inner, model, reference, pipeline.scheduler, w, window, skip, run)
    try:
        yield run
    finally:
        if model.__dict__.get("forward") is not None:
            del model.forward
        if model.forward != inner:  # somebody else had wrapped it before
            model.forward = inner


def _check(pipeline: Any, model: Any, reference: Any, w: Weight) -> None:
    if not callable(w):
        check_weight(w)
    if reference is None:
        check_adapters(model, where=f"pipeline.{type(model).__name__}")
    else:
        check_compatible(_about(reference), _about(model))
    for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        part = getattr(pipeline, encoder, None)
        if isinstance(part, nn.Module) and adapter_layers(part):
            found = "it has an adapter too, so that reference and policy would read different prompts"
            raise InputError(found, where=f"pipeline.{encoder}", fix="unload it, or train the denoiser alone")
    config = getattr(pipeline.scheduler, "config", {})
    numbers = [float(x) for x in torch.as_tensor(w).flatten()] if not callable(w) else [math.nan]
    for name in CLIPS:
        if config.get(name):
            warn_of_clipping(numbers, what=name)


def _about(model: Any) -> Mapping[str, Any]:
    config = getattr(model, "config", {})
    return {"type": type(model).__name__, **{name: config.get(name) for name in SAME if name in config}}


def _mixing(
    inner: Callable[..., Any],
    model: nn.Module,
    reference: nn.Module | None,
    scheduler: Any,
    w: Weight,
    window: Window | None,
    skip: bool,
    run: Run,
) -> Callable[..., Any]:
    """Return a forward pass that asks both models where both count."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        state: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        rows = len(state)
        sigma = sigma_of(scheduler, args[1] if len(args) > 1 else kwargs["timestep"])
        weight = weight_at(_for_all(w, rows), sigma, window=window, rows=rows)
        asked = needed([weight], skip=skip)
        theirs, before = None, _graphs()
        if asked.reference and reference is not None:
            theirs = reference(*args, **kwargs)
        elif asked.reference:
            with reference_of(model):
                theirs = inner(*args, **kwargs)
        ours = inner(*args, **kwargs) if asked.tuned[0] else None
        run.compiled.append(_graphs() - before)
        run.passes.append(asked.models)
        run.sigmas.append(sigma)
        run.weights.append(float(torch.as_tensor(weight).double().mean()))
        return _mixed(theirs, ours, weight)

    return forward


def _graphs() -> int:
    """Return how many graphs were compiled until now; nothing is imported to know it."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])


def _for_all(w: Weight, rows: int) -> Weight:
    """Return one weight a row of a batch that holds every image once or, with guidance by a prompt, twice."""
    if callable(w) or isinstance(w, int | float):
        return w
    found = torch.as_tensor(w)
    return found.repeat(rows // len(found)) if found.ndim == 1 and len(found) and rows % len(found) == 0 else found


def _mixed(theirs: Any, ours: Any, weight: float | Tensor) -> Any:
    """Mix the first tensor of two outputs, and keep the form in which it came."""
    if theirs is None or ours is None:
        return ours if theirs is None else theirs
    first, second = _tensor(theirs), _tensor(ours)
    mixture = combine(first, [second], [weight]).to(second.dtype)
    if isinstance(ours, tuple):
        return (mixture, *ours[1:])
    return mixture if isinstance(ours, Tensor) else type(ours)(**{**ours, "sample": mixture})


def _tensor(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else output[0]
    assert isinstance(found, Tensor)
    return found


def sigma_of(scheduler: Any, timestep: Any) -> float:
    """Return a scheduler's noise level at a timestep: its sigma, where it has some, else that of a variance-preserving one.

    Parameters
    ----------
    scheduler
        Of diffusers.
    timestep
        As the denoiser gets it; a flow model may get it divided by the number of training steps.
    """
    value = float(torch.as_tensor(timestep).flatten()[0])
    total = getattr(scheduler.config, "num_train_timesteps", 1000)
    sigmas, times = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    if sigmas is not None and times is not None and len(times):
        gaps, scaled = (times.double().cpu() - value).abs(), (times.double().cpu() / total - value).abs()
        return float(sigmas[int((gaps if gaps.min() <= 1e-3 * total * scaled.min() else scaled).argmin())])
    kept: Sequence[float] | None = getattr(scheduler, "alphas_cumprod", None)
    if kept is None:
        return value / total
    alpha = float(kept[int(value)])
    return math.sqrt((1 - alpha) / alpha)
