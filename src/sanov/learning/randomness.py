"""Random numbers inside a step follow from the seed, the step and the process; outside, nothing is disturbed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["kept_random_states", "seed_step"]


@contextmanager
def kept_random_states(device: torch.device) -> Iterator[None]:
    """Give the generators of Python, NumPy and torch (CPU and `device`) their states back when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 the legacy generator is the global one
    cpu = torch.get_rng_state()
    module = None if device.type == "cpu" else torch.get_device_module(device)
    own = None if module is None else module.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if module is not None:
            module.set_rng_state(own)


def seed_step(seed: int, step: int, process: int, device: torch.device) -> None:
    """Set those generators to states that follow from seed, step and process alone."""
    words = np.random.SeedSequence([seed, step, process]).generate_state(4)
    number = int(words[0]) << 31 | int(words[1]) >> 1
    random.seed(number)
    np.random.seed(words)  # noqa: NPY002
    # torch.manual_seed would keep a traceback at each call where a device is not initialised
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
