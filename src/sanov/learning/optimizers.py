"""The optimizer of policies: AdamW, all weights in one operation where the device has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["adamw"]


def adamw(weights: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over weights.

    Parameters
    ----------
    weights
        Those that are trained.
    learning_rate, weight_decay
        Its options; the decay is decoupled.

    Reference
    ---------
    loshchilov2019adamw.
    """
    weights = list(weights)
    plain = all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights)
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=plain or None)
