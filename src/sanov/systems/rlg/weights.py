"""The rule: outputs of a reference and of its tuned versions, mixed by weights that may change with noise and sample.

Score, noise, sample and velocity are affine in one another with coefficients that depend on state and time alone, and
the weights sum to one: mixing any of them is mixing all of them::

    out = ref + sum_i w_i (tuned_i - ref)            guidance by a condition comes first, within each model
    out_m = out_m(nothing) + g (out_m(condition) - out_m(nothing))

Pure functions of tensors and numbers: they know neither models nor schedulers.

Reference: jin2025rlg; ho2022classifierfree.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError, SanovWarning
from sanov.precision import widen
from sanov.tilting import mix

__all__ = [
    "Passes",
    "Weight",
    "Window",
    "check_compatible",
    "check_switchable",
    "check_weight",
    "combine",
    "guided",
    "needed",
    "warn_of_clipping",
    "weight_at",
]

Weight = float | int | Sequence[float] | Tensor | Callable[[float], Any]
SHARED = "reference and policy must share architecture and prediction type"


# -- the rule ---------------------------------------------------------------------------------------------------------


def combine(
    reference: Float[Tensor, "rows ..."] | None,
    tuned: Sequence[Float[Tensor, "rows ..."] | None],
    weights: Sequence[float | Tensor],
) -> Float[Tensor, "rows ..."]:
    """Mix the outputs of a reference and of tuned models.

    Parameters
    ----------
    reference
        Output of the reference; None where `needed` says that it does not count.
    tuned
        Outputs of the tuned models, of the same kind and shape; None where one does not count.
    weights
        One a tuned model: a number, or one a row.

    Returns
    -------
    The mixture in float32 or wider. A weight of 0 gives the reference and a weight of 1 the tuned model bit for bit, also
    in single rows.
    """
    own = [(output, weight) for output, weight in zip(tuned, weights, strict=True) if output is not None]
    if reference is None or not own:
        alone = own[0][0] if reference is None else reference
        return alone if alone.dtype == torch.float32 else widen(alone)
    if len(own) == 1:
        return mix(reference, own[0][0], _over_rows(own[0][1], reference))
    total: Tensor = _over_rows(1 - sum(weight for _, weight in own), reference) * widen(reference)
    for output, weight in own:
        total = total + _over_rows(weight, reference) * widen(output)
    return total


def guided(
    nothing: Float[Tensor, "*shape"], condition: Float[Tensor, "*shape"], scale: float
) -> Float[Tensor, "*shape"]:
    """Guide a model by its condition (classifier-free guidance); it goes before the mixture of models.

    Parameters
    ----------
    nothing, condition
        Outputs of the model without and with the condition.
    scale
        g: 1 gives the output with the condition, exactly.
    """
    return mix(nothing, condition, scale)


class Passes(NamedTuple):
    """Which models a step has to ask."""

    reference: bool
    tuned: tuple[bool, ...]

    @property
    def models(self) -> int:
        """Number of models."""
        return int(self.reference) + sum(self.tuned)


def needed(weights: Sequence[float | Tensor], *, skip: bool = True) -> Passes:
    """Say which models count: the reference where the weights do not sum to 1, a tuned one where its weight is not 0.

    Parameters
    ----------
    weights
        One a tuned model: a number, or one a row.
    skip
        Whether a model that does not count is left out.
    """
    if not skip:
        return Passes(True, (True,) * len(weights))
    if len(weights) == 1 and not isinstance(weights[0], Tensor):  # the usual case, at every step
        return Passes(weights[0] != 1, (weights[0] != 0,))
    total = sum(weights)
    alone = (
        sum(_any(weight, 0.0) for weight in weights) == 1
    )  # several, of which the reference's share cancels, are summed
    return Passes(_any(total, 1.0) or not alone, tuple(_any(weight, 0.0) for weight in weights))


def _any(weight: float | int | Tensor, value: float) -> bool:
    """Whether a weight differs from a value, in any row."""
    return bool((weight != value).any()) if isinstance(weight, Tensor) else weight != value


def _over_rows(weight: float | int | Tensor, like: Tensor) -> Any:
    if not isinstance(weight, Tensor):
        return float(weight)
    return weight.to(widen(like)).view(-1, *[1] * (like.ndim - 1))


# -- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The noise levels between which models are mixed.

    Parameters
    ----------
    start, stop
        Largest and smallest sigma; sigma falls from 1 to 0 (for a scheduler of another scale, in its unit).
    outside
        Which model is used alone outside.
    """

    start: float = math.inf
    stop: float = 0.0
    outside: Literal["policy", "reference"] = "policy"

    def holds(self, sigma: float) -> bool:
        """Whether a level is inside."""
        return self.stop <= sigma <= self.start


def weight_at(
    weight: Weight, sigma: float, *, window: Window | None = None, rows: int | None = None
) -> float | Float[Tensor, " rows"]:
    """Return the weight at a noise level: a number, or one a row.

    Parameters
    ----------
    weight
        A number, one a row, or a function of sigma that gives either. It may be any finite number.
    sigma
        The noise level.
    window
        Where models are mixed; None for everywhere.
    rows
        Number of rows, which a weight with one a row must have.

    Raises
    ------
    InputError
        The weight is not finite, or there is not one a row.
    """
    if window is not None and not window.holds(sigma):
        return 1.0 if window.outside == "policy" else 0.0
    return check_weight(weight(sigma) if callable(weight) else weight, rows, sigma=sigma)


def check_weight(weight: Any, rows: int | None = None, *, sigma: float | None = None) -> float | Tensor:
    """Return a weight as a number or a tensor with one a row.

    Raises
    ------
    InputError
        It is not finite, or there is not one a row.
    """
    if isinstance(weight, int | float) and math.isfinite(weight):
        return float(weight)
    at = "" if sigma is None else f" at sigma {sigma:.4g}"
    own = isinstance(weight, Tensor) and weight.is_floating_point()
    found = torch.as_tensor(weight, dtype=None if own else torch.float64)
    if not torch.isfinite(found).all():
        value = weight if found.ndim == 0 else found[~torch.isfinite(found)][0].item()
        raise InputError(f"the weight is {value}{at}", where="w", expected="finite numbers, of any sign and size")
    if found.ndim == 0:
        return float(found)
    if found.ndim > 1 or (rows is not None and len(found) != rows):
        expected = f"a number, or one a row: shape ({'rows' if rows is None else rows},)"
        raise InputError(f"the weights have shape {tuple(found.shape)}{at}", where="w", expected=expected)
    return found


# -- what can be mixed ------------------------------------------------------------------------------------------------


def check_compatible(
    reference: Mapping[str, Any], policy: Mapping[str, Any], *, expected: str = SHARED, where: str = "the policy"
) -> None:
    """Refuse to mix models whose outputs do not mean the same.

    Parameters
    ----------
    reference, policy
        What each is: prediction type, shapes, scheduler, scale of the latent space ... by name.
    expected, where
        Words of the message.

    Raises
    ------
    InputError
        They differ; with every field that does.
    """
    names = [name for name in {**reference, **policy} if reference.get(name) != policy.get(name)]
    if names:
        told = ", ".join(
            f"{name} is {policy.get(name)!r}, and {reference.get(name)!r} in the reference" for name in names
        )
        raise InputError(told, where=where, expected=expected)


def check_switchable(*, adapters: Sequence[str], merged: Sequence[str] = (), where: str = "the policy") -> None:
    """Refuse an adapter that cannot be switched off, where the reference is the model without it.

    Parameters
    ----------
    adapters
        Names of the adapters that are there.
    merged
        Names of those that are merged into the weights.

    Raises
    ------
    InputError
        There is none, or one is merged.
    """
    if merged or not adapters:
        found = f"the adapter {merged[0]!r} is merged into the weights" if merged else "there is no adapter"
        fix = "load it unmerged (no `fuse_lora`, no `merge_adapter`), or pass the reference as a model of its own"
        raise InputError(f"{found}: the policy adapter cannot be disabled", where=where, fix=fix)


def warn_of_clipping(weights: Sequence[float], *, what: str = "clip_sample") -> bool:
    """Warn where something that is not affine follows the mixture, and is no matter at w = 0 and 1 only.

    Parameters
    ----------
    weights
        Those that are going to be used.
    what
        What follows: ``clip_sample``, thresholding, rescaled guidance ...

    Returns
    -------
    Whether a warning was given.
    """
    mixed = [weight for weight in weights if weight not in (0, 1)]
    if mixed:
        text = f"{what} is on: the mix happens before clipping; the result at w = {mixed[0]:g} is not affine in w"
        warnings.warn(text, SanovWarning, stacklevel=2)
    return bool(mixed)
