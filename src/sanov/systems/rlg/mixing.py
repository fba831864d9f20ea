"""Models under the rule: guided by their condition, mixed by their weights, asked only where they count, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.systems.rlg.weights import Weight, Window, combine, guided, needed, weight_at

__all__ = ["Guidance", "Mixed", "Model"]

Model = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Guidance by a condition: its scale for the reference and for tuned models, and whether they share a pass.

    Parameters
    ----------
    reference, policy
        g of either; 1 is off, and costs no pass without condition.
    share_unconditional
        Take the reference's output without condition for all models.
    """

    reference: float = 1.0
    policy: float = 1.0
    share_unconditional: bool = False


@dataclass
class Mixed:
    """A reference and its tuned versions as one model.

    Parameters
    ----------
    reference, tuned
        ``model(x, t, condition)`` with the times as a tensor, one a row, and a condition of None for none.
    weights
        One a tuned model; see `weight_at`.
    window
        Noise levels between which is mixed.
    guidance
        By the condition.
    skip
        Leave out a model that does not count.
    measure
        Ask the reference also where it does not count, so that `moved` is known; such a pass is not counted.
    careful
        Look at every output, and refuse one that is not finite; `sampling.sample` does so where its samples are not.
    passes
        Number of passes of each call, in order.
    """

    reference: Model
    tuned: Sequence[Model]
    weights: Sequence[Weight]
    window: Window | None = None
    guidance: Guidance = Guidance()
    skip: bool = True
    measure: bool = False
    careful: bool = False
    passes: list[int] = field(default_factory=list)
    moved: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "rows ..."], t: float, condition: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows ..."]:
        """Return the mixture at a time.

        Raises
        ------
        InputError
            A weight is none, or, if careful, a model's output is not finite.
        """
        weights = [weight_at(weight, t, window=self.window, rows=len(x)) for weight in self.weights]
        asked = needed(weights, skip=self.skip)
        self.passes.append(0)
        times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        nothing: list[Tensor] = []
        reference = None
        if asked.reference or self.measure:
            shared = nothing if asked.reference else []  # a pass that only measures changes nothing, and is not counted
            reference = self._asked(self.reference, self.guidance.reference, x, times, condition, shared)
            self.passes[-1] *= asked.reference
        tuned = [
            self._asked(model, self.guidance.policy, x, times, condition, nothing) if wanted else None
            for model, wanted in zip(self.tuned, asked.tuned, strict=True)
        ]
        mixture = combine(reference if asked.reference else None, tuned, weights)
        if self.careful and not torch.isfinite(mixture).all():
            raise self._not_finite([reference, *tuned], t)
        self.moved = mixture - reference if self.measure and reference is not None else None
        return mixture

    def _asked(
        self, model: Model, scale: float, x: Tensor, times: Tensor, condition: Tensor | None, nothing: list[Tensor]
    ) -> Tensor:
        """Return a model's output under guidance; `nothing` keeps the output without condition that may be shared."""
        self.passes[-1] += 1
        output = model(x, times, condition)
        if scale == 1 or condition is None:
            return output
        if not (self.guidance.share_unconditional and nothing):
            self.passes[-1] += 1
            nothing.append(model(x, times, None))
        return guided(nothing[-1], output, scale)

    def _not_finite(self, outputs: Sequence[Tensor | None], t: float) -> InputError:
        names = ["the reference", *(["the policy"] if len(self.tuned) == 1 else [])]
        names += [f"policy {place + 1}" for place in range(len(self.tuned))] if len(self.tuned) > 1 else []
        bad = [name for name, out in zip(names, outputs, strict=True) if out is not None and not out.isfinite().all()]
        which = f"the output of {bad[0]} is" if bad else "the models' outputs are finite, and their mixture is"
        fix = "use a smaller w, fewer units of guidance, or look at the model" if not bad else "look at this model"
        found = f"{which} not finite at step {len(self.passes)}, sigma {t:.4g}"
        return InputError(found, where="rlg", expected="finite numbers", fix=fix)
