"""What hand-written gradients and half precision need: the kind of number of a computation, and one derivative only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["first_derivative_only", "wide_dtype", "widen"]


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the kind of number in which tensors are computed together: float32, or the widest of theirs.

    Parameters
    ----------
    tensors
        Any number of tensors.

    Returns
    -------
    float32 for half precision (float16, bfloat16), float64 if one of them is that.
    """
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


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
    return x.to(wide_dtype(x))


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make the backward pass of an autograd function refuse ``create_graph=True``.

    A gradient that is written by hand has no graph. PyTorch's `once_differentiable` says so only where the incoming
    gradient asks for a gradient itself; elsewhere the second derivative would be silently zero.

    Parameters
    ----------
    backward
        The static method of the autograd function.

    Returns
    -------
    The same method, which raises `InputError` where its result is to be differentiated again.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            found = "it is True, but this gradient is written by hand and cannot be differentiated again"
            raise InputError(found, where="create_graph", expected="False: only a first derivative is available")
        return backward(ctx, *grads)

    return checked
