"""What property tests draw from: distributions, also with classes of probability zero."""

import contextlib
import math

import jaxtyping
import torch
from hypothesis import settings
from hypothesis import strategies as st

modest = settings(deadline=None, max_examples=40)


@contextlib.contextmanager
def unchecked():
    """Without the checks of the annotations, as users run the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@st.composite
def log_probs(draw, *shape, zeros=True):
    """Normalised float64 log-probabilities; with `zeros`, any class but the first may be impossible."""
    number = st.floats(-8, 8, allow_subnormal=False)
    size = math.prod(shape)
    logits = torch.tensor(draw(st.lists(number, min_size=size, max_size=size)), dtype=torch.float64).view(shape)
    if zeros:
        drop = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
        drop[..., 0] = False
        logits = logits.masked_fill(drop, -math.inf)
    return logits.log_softmax(-1)
