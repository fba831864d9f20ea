"""What a policy was trained with, as the defaults of applying it: how completions are sampled, and who judges them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from sanov.core.errors import InputError
from sanov.data.rewards import Rewards, load
from sanov.data.verifiers import Verifier
from sanov.learning.completing import Tasks
from sanov.learning.policy_folders import Fitted

__all__ = ["remembered"]

OF_ROLLOUTS = ("max_completion_length", "temperature", "top_p", "top_k", "suppress")
OF_EVALUATION = ("samples",)

Data = TypeVar("Data", bound=Tasks)


def remembered(data: Data, config: Any, fitted: Fitted) -> tuple[Data, Any, list[str]]:
    """Take what a policy was trained with, wherever nothing else was given.

    Parameters
    ----------
    data
        Prompts, and the rewards that their columns allow.
    config
        Options: those that were given (`model_fields_set`) stay.
    fitted
        A policy with the options of its training.

    Returns
    -------
    The prompts with the rewards of the training, where their columns allow these; the options; and what to say of it.
    """
    groups: dict[str, Any] = {}
    told: list[str] = []
    for group, names in (("rollouts", OF_ROLLOUTS), ("evaluation", OF_EVALUATION)):
        own, stored = getattr(config, group), fitted.config.get(group) or {}
        taken = {
            name: stored[name]
            for name in names
            if name in stored and name not in own.model_fields_set and stored[name] != _plain(getattr(own, name))
        }
        groups[group] = type(own)(**{**own.model_dump(exclude_unset=True), **taken})
        told += [f"{group}.{name}={_word(value)}" for name, value in taken.items()]
    notes, names = [], tuple(fitted.config.get("rewards") or ())
    if names and not _judged_otherwise(data, config):
        try:
            rewards = Rewards(tuple(map(load, names)))
            rewards.check(data.prompts)
        except InputError as error:
            notes.append(f"not judged by the rewards of its training, rewards={','.join(names)}: {error}")
        else:
            data = replace(data, rewards=rewards)
            told.insert(0, f"rewards={','.join(names)}")
    if told:
        notes.insert(0, f"as in its training, where nothing else was given: {' '.join(told)}.")
    return data, config.model_copy(update=groups), notes


def _judged_otherwise(data: Tasks, config: Any) -> bool:
    """Whether rewards were named, or handed over as functions, and not found by the columns of the prompts."""
    functions = () if data.rewards is None else data.rewards.functions
    return "rewards" in config.model_fields_set or not all(isinstance(each, Verifier) for each in functions)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
