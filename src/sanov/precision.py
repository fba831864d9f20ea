"""In what kind of number something is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["widen"]


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half precision (float16, bfloat16) as float32, and anything wider as it is, without a copy.

    Parameters
    ----------
    x
        A tensor of any shape.

    Returns
    -------
    The tensor, in float32 or wider.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
