"""A network's outputs together with what its last linear layer reads: one forward pass, watched by a hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LastLinear", "logits_of"]

HALF = {torch.float16, torch.bfloat16}


def logits_of(outputs: Any) -> Tensor:
    """Return the logits among a model's outputs: a tensor, anything with ``logits``, a dictionary or a tuple.

    Raises
    ------
    TypeError
        There are none.
    """
    found = outputs
    if isinstance(outputs, dict):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, tuple | list):
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"the outputs are {type(outputs).__name__} without logits")
    return found


class LastLinear:
    """Calls a model, and catches the input of the linear layer whose outputs are the logits.

    The layer is looked for in the first pass: of those with as many outputs as there are classes, the one that was called
    last, if what it gave is the logits, bit for bit. Where it reads every token (as in decoders), the logits say which.

    Parameters
    ----------
    model
        In evaluation mode; its weights are left alone.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.layer: nn.Linear | None = None
        self.searched = False

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Float[Tensor, "rows classes"], Tensor | None]:
        """Return logits and embeddings; None for these where the logits are not what a linear layer gave."""
        calls: dict[int, tuple[nn.Linear, Tensor, Tensor]] = {}

        def keep(layer: nn.Linear, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            calls[layer.out_features] = (layer, inputs[0], outputs)  # the latest of each size, or memory would fill up

        layers = [self.layer] if self.searched else [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        hooks = [layer.register_forward_hook(keep) for layer in layers if layer is not None]
        try:
            logits = logits_of(self.model(*args, **kwargs))
        finally:
            for hook in hooks:
                hook.remove()
        call = calls.get(logits.shape[-1])
        embeddings = None if call is None else _inputs_of(logits, *call[1:])
        if not self.searched:
            self.searched, self.layer = True, call[0] if call is not None and embeddings is not None else None
        if embeddings is not None and self.layer is not None and logits.dtype in HALF:
            logits = _wide(self.layer, embeddings)
        return logits, embeddings

    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return weight [width, classes] and bias [classes] of the layer; None where there is none."""
        if self.layer is None:
            return None
        weight = self.layer.weight.detach().double().cpu().numpy().T
        bias = self.layer.bias
        return weight, np.zeros(weight.shape[1]) if bias is None else bias.detach().double().cpu().numpy()


def _inputs_of(logits: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """Rows of a layer's inputs whose outputs are the logits."""
    if logits.ndim != 2 or outputs.shape[0] != logits.shape[0]:
        return None
    if outputs.ndim == 2:
        return inputs if torch.equal(outputs, logits) else None
    if outputs.ndim != 3:
        return None
    same = (outputs == logits[:, None]).all(dim=-1)
    if not same.any(dim=1).all():
        return None
    return inputs[torch.arange(len(logits), device=inputs.device), same.int().argmax(dim=1)]


def _wide(layer: nn.Linear, embeddings: Tensor) -> Tensor:
    """Form logits anew in single precision: in half precision they are rounded more coarsely than the embeddings."""
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(embeddings.float(), layer.weight.float(), bias)
