"""The knob for language models: next-token distributions of a base and its tuned version, mixed in ``generate``.

::

    from sanov.bridges.generation import RLGLogits

    model = PeftModel.from_pretrained(base, "my-adapter")                   # the adapter on is the policy, off the reference
    knob = RLGLogits(model, w=1.6, attention_mask=inputs["attention_mask"])
    model.generate(**inputs, logits_processor=[knob], renormalize_logits=True)

The logits become ``(1 - w) log p_ref + w log p_policy``: token by token the geometric average of both, which is where the
policy tilts its reference by a reward the same tilt at beta / w. Over whole texts it is not: the tilt of a text looks ahead.

Reference: jin2025rlg; liu2024decoding (the same for language models).
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sanov.bridges.adapter_switch import check_adapters, reference_of
from sanov.core.errors import InputError
from sanov.systems.rlg.weights import check_weight, combine, needed

__all__ = ["RLGLogits"]


class RLGLogits:
    """A logits processor for ``generate``; it goes first, before those that cut or forbid tokens.

    Parameters
    ----------
    model
        The policy that generates; its reference is the same model without its adapters.
    w
        0 is the reference, 1 the policy; any finite number, or one a row.
    reference
        Another causal model of the same vocabulary; None for the model without its adapters.
    attention_mask
        Of the prompts, where they are padded on the left; None where none is padded.

    Raises
    ------
    InputError
        The adapters are merged or there are none, or a weight is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        w: Any = 1.6,
        *,
        reference: nn.Module | None = None,
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
    ):
        if reference is None:
            check_adapters(model)
        self.model, self.reference, self.weight = model, reference, check_weight(w)
        self.prompt_mask, self.passes = attention_mask, 0
        self._ids: Tensor | None = None  # what the cache has taken in
        self._cache: Any = None
        asked: Any = model if reference is None else reference
        base = asked.get_base_model() if hasattr(asked, "get_base_model") else asked
        self._places = "position_ids" in inspect.signature(base.forward).parameters

    @torch.no_grad()
    def __call__(
        self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Return the mixed logits: those of the policy as they are at w = 1, of the reference at w = 0."""
        asked = needed([self.weight])
        if not asked.reference:
            return scores
        theirs = self._logits(input_ids)[..., : scores.shape[-1]]
        if theirs.shape != scores.shape:
            found = f"the reference has {theirs.shape[-1]} tokens and the policy {scores.shape[-1]}"
            raise InputError(found, where="reference", expected="one vocabulary")
        if not asked.tuned[0]:
            return theirs.to(scores.dtype)
        if isinstance(self.weight, Tensor) and len(self.weight) != len(scores):
            raise InputError(f"{len(self.weight)} weights for {len(scores)} rows", where="w", expected="one a row")
        weight = self.weight.to(scores.device) if isinstance(self.weight, Tensor) else self.weight
        logs = [values.float().log_softmax(dim=-1) for values in (theirs, scores)]
        return combine(logs[0], [logs[1]], [weight]).to(scores.dtype)

    def _logits(self, ids: Tensor) -> Tensor:
        """Return the reference's logits of the next token; what it has read already stays in its cache."""
        known = self._ids
        goes_on = known is not None and ids.shape[1] > known.shape[1] and torch.equal(ids[:, : known.shape[1]], known)
        start = known.shape[1] if goes_on and known is not None else 0
        asked: Any = self.model if self.reference is None else self.reference
        mask = self._mask(ids)
        places = {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)[:, start:]} if self._places else {}
        with reference_of(asked) if self.reference is None else nullcontext():
            out = asked(
                input_ids=ids[:, start:],
                attention_mask=mask,
                **places,
                past_key_values=self._cache if goes_on else None,
                use_cache=True,
            )
        self._ids, self._cache, self.passes = ids.clone(), out.past_key_values, self.passes + 1
        found: Tensor = out.logits[:, -1]
        return found

    def _mask(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        if self.prompt_mask is not None:
            rows = len(ids) // len(self.prompt_mask)  # beams and samples stand side by side
            mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask.to(ids).repeat_interleave(rows, dim=0)
        return mask
