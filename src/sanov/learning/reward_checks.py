"""Completions without a reward: refused where a step has no other, told where it has."""

from __future__ import annotations

import warnings

import numpy as np

from sanov.core.errors import InputError, SanovWarning
from sanov.learning.processes import every_process
from sanov.learning.rollouts import Rollouts

__all__ = ["check_rewarded"]


def check_rewarded(rollouts: Rollouts, step: int, *, needed: bool, told: bool) -> bool:
    """Refuse a step in which no completion has a reward, and tell of one in which some have none.

    Parameters
    ----------
    rollouts
        With rewards.
    step
        Updates that lie behind.
    needed
        Whether it takes rewards to learn from.
    told
        Whether it was told before that some have none.

    Returns
    -------
    Whether it is told now.

    Raises
    ------
    InputError
        None has a reward, on any process.
    """
    missing = np.concatenate(every_process(np.isnan(rollouts.rewards.cpu().numpy())))
    lacking = int(missing.sum())
    if not lacking:
        return told
    rollouts.metrics["completions/unrewarded"] = float(lacking)
    names = " + ".join(rollouts.names)
    if needed and lacking == len(missing):
        found = f"none of {lacking} completions has a reward: every function ({names}) returned None for all of them"
        fix = "return a number wherever a completion can be judged: 0 for a wrong one"
        raise InputError(found, where=f"step {step + 1}", expected="a reward to learn from", fix=fix)
    if not told:
        text = (
            f"step {step + 1}: {lacking} of {len(missing)} completions have no reward ({names} returned None), and are "
        )
        warnings.warn(f"{text}not learned from (completions/unrewarded)", SanovWarning, stacklevel=5)
    return True
