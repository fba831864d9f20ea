"""A guider of diffusers' modular pipelines: guidance by the prompt within each model, then the mixture of the two.

To import this module imports diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from sanov.bridges.adapter_switch import adapter_layers, check_adapters, switch
from sanov.core.errors import InputError
from sanov.systems.rlg.weights import check_weight, combine, needed

__all__ = ["RLGuidance"]


class RLGuidance(BaseGuidance):
    """Mixes a model with its adapter and without it.

    Parameters
    ----------
    w
        0 is the model without its adapter, 1 with it; any finite number.
    guidance_scale
        By the prompt, in both models; 1 is off.
    start, stop
        Shares of the steps between which is mixed; ``outside`` says which model is used elsewhere.
    outside
        ``policy`` or ``reference``.
    enabled
        Whether anything is mixed or guided at all.
    """

    _input_predictions = ["policy_cond", "policy_uncond", "reference_cond", "reference_uncond"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        w: float | int = 1.6,
        guidance_scale: float | int = 4.5,
        start: float | int = 0.0,
        stop: float | int = 1.0,
        outside: Literal["policy", "reference"] = "policy",
        enabled: bool = True,
    ):
        super().__init__(start, stop, enabled)
        if outside not in ("policy", "reference"):
            raise InputError(f"it is {outside!r}", where="outside", expected="policy or reference")
        self.w, self.guidance_scale, self.outside = float(check_weight(w)), float(guidance_scale), outside
        self._restore: Callable[[], None] | None = None

    # -- which passes a step needs ------------------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """The weight of the step that is being made."""
        if not self._enabled:
            return 1.0
        if self._num_inference_steps is not None:
            first, last = (int(share * self._num_inference_steps) for share in (self._start, self._stop))
            if not first <= self._step < last:
                return 1.0 if self.outside == "policy" else 0.0
        return self.w

    @property
    def passes(self) -> list[str]:
        """Names of the predictions of the step, in the order in which they are made."""
        asked = needed([self.weight])
        models = [name for name, wanted in (("policy", asked.tuned[0]), ("reference", asked.reference)) if wanted]
        guides = self._enabled and self.guidance_scale != 1
        return [f"{model}_{kind}" for model in models for kind in (("cond", "uncond") if guides else ("cond",))]

    @property
    def num_conditions(self) -> int:
        """Number of forward passes of the step."""
        return len(self.passes)

    @property
    def is_conditional(self) -> bool:
        """Whether the pass that is being made has the prompt."""
        return self.passes[max(self._count_prepared - 1, 0)].endswith("_cond")

    # -- what a pipeline calls ----------------------------------------------------------------------------------------

    def prepare_inputs(self, data: Any) -> list[Any]:
        """Return the inputs of each pass."""
        return [self._prepare_batch(data, int(name.endswith("uncond")), name) for name in self.passes]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """Return the inputs of each pass, from a block's state."""
        return [
            self._prepare_batch_from_block_state(input_fields, data, int(name.endswith("uncond")), name)
            for name in self.passes
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Switch the adapter off for a pass of the reference; it is on again after it, whatever happens in it."""
        super().prepare_models(denoiser)
        if self._count_prepared == 1 and len(self.passes) > 0:
            check_adapters(denoiser, where="the guider's denoiser")
        if not self.passes[self._count_prepared - 1].startswith("reference"):
            return
        layers, before = adapter_layers(denoiser), switch(denoiser, True)

        def restore() -> None:
            for layer, off in zip(layers, before, strict=True):
                layer._disable_adapters = off
            hook.remove()

        hook = denoiser.register_forward_hook(lambda *_: restore(), always_call=True)
        self._restore = restore

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """See that the adapter is on again."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    def forward(
        self,
        policy_cond: Tensor | None = None,
        policy_uncond: Tensor | None = None,
        reference_cond: Tensor | None = None,
        reference_uncond: Tensor | None = None,
    ) -> GuiderOutput:
        """Return the mixture of both models, each guided by its prompt."""
        scale, outputs = self.guidance_scale, []
        for cond, uncond in ((policy_cond, policy_uncond), (reference_cond, reference_uncond)):
            if cond is not None and uncond is not None:
                cond = uncond + scale * (cond - uncond)  # as diffusers rounds it
            outputs.append(cond)
        seen = next(output for output in (policy_cond, reference_cond) if output is not None)
        mixture = combine(outputs[1], [outputs[0]], [self.weight]).to(seen.dtype)
        return GuiderOutput(pred=mixture, pred_cond=policy_cond, pred_uncond=policy_uncond)
