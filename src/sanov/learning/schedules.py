"""Learning rates as pure functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from sanov.core.errors import InputError

__all__ = ["Kind", "schedule"]

Kind = Literal["constant", "linear", "cosine"]


def schedule(kind: Kind, steps: int, warmup: float = 0.0) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step, which counts from 0.

    Over the first w = round(warmup * steps) steps it rises linearly, (step + 1) / w. Over the other d = steps - w, with
    t = step - w, it is 1 (constant), 1 - t / d (linear) or (1 + cos(pi t / d)) / 2 (cosine). No step has the factor 0.

    Parameters
    ----------
    kind
        The shape after the warm-up.
    steps
        Length of the run.
    warmup
        Share of the steps over which the rate rises, in [0, 1).

    Raises
    ------
    InputError
        `warmup` is out of range.

    Reference
    ---------
    loshchilov2017sgdr, eq. 5 with one period (cosine).
    """
    if not 0 <= warmup < 1:
        raise InputError(f"the value is {warmup}", where="warmup", expected="a share of the steps, >= 0 and < 1")
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(steps - rising, 1)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]

    return factor
