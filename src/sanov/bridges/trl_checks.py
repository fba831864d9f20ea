"""What must be as it was read in TRL's source, and what of TRL's options excludes signals; told before models are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from sanov.core.errors import InputError

__all__ = ["PIP", "VERSIONS", "check_arguments", "check_batch", "check_trainer", "check_version"]

VERSIONS = ((1, 16),)  # of TRL, major and minor
PIP = "run: pip install 'trl==1.16.*'"
HOOKS = {  # what is called or overridden, and the parameters that are relied upon
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep"),
        *("batch_size", "compute_entropy", "compute_aux_loss"),
    ),
    "compute_loss": ("model", "inputs"),
    "log": ("logs",),
}
ALLOWED = (  # option, what it may be, why nothing else
    ("use_liger_kernel", (False,), "it replaces parts of the model's forward pass, which was not tested with signals"),
    ("loss_type", ("dapo", "grpo"), "others weigh tokens in a way that a signal's advantages were not made for"),
    ("importance_sampling_level", ("token",), "a teacher's advantages differ from token to token"),
)
OWN = ("rollout_func", "tools", "environment_factory")  # arguments by which others write some of the tokens
KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
STRANGE = {  # keys of TRL's batches that no signal knows what to do with
    "tool_mask": "tools or an environment wrote some of the tokens",
    "pixel_values": "there are images",
    "num_images": "there are images",
}


def check_version(version: str, trainer: type) -> None:
    """Refuse a TRL whose internals are not those that are relied upon.

    Parameters
    ----------
    version
        Of TRL.
    trainer
        Its ``GRPOTrainer``, or a class that derives from it.

    Raises
    ------
    InputError
        The version, or the first method or parameter that is missing.
    """
    numbers = tuple(int(part) if part.isdecimal() else -1 for part in version.split(".")[:2])
    expected = " or ".join(f"{major}.{minor}" for major, minor in VERSIONS)
    if numbers not in VERSIONS:
        raise InputError(f"TRL {version} is installed", where="trl", expected=expected, fix=PIP)
    for name, parameters in HOOKS.items():
        method = getattr(trainer, name, None)
        taken = inspect.signature(method).parameters if callable(method) else {}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            continue  # a user's class that hands everything on
        missing = [parameter for parameter in parameters if parameter not in taken]
        if missing:
            found = f"{name} has no parameter {missing[0]!r}" if taken else f"{name} is not there"
            raise InputError(found, where=f"{trainer.__name__} of TRL {version}", expected=f"TRL {expected}", fix=PIP)


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments and options of the trainer that exclude signals.

    Parameters
    ----------
    given
        Arguments of ``GRPOTrainer`` by their names.

    Raises
    ------
    InputError
        The first of them.
    """
    for name in OWN:
        if given.get(name):
            found = "it writes tokens that are not the policy's own"
            raise InputError(found, where=f"GRPOTrainer({name}=...)", expected="nothing, where there are signals")
    config = given.get("args")
    if config is None:
        return
    for name, allowed, why in ALLOWED:
        value = getattr(config, name)
        if value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise InputError(f"it is {value!r}: {why}", where=f"GRPOConfig.{name}", expected=expected)
    rows, group = config.per_device_train_batch_size * config.steps_per_generation, config.num_generations
    if rows % group:
        found = f"a process samples {rows} completions at once, and {group} belong to a prompt: groups are divided"
        fix = "make per_device_train_batch_size * steps_per_generation a multiple of num_generations"
        raise InputError(found, where="GRPOConfig.per_device_train_batch_size", fix=fix)


def check_trainer(trainer: Any) -> None:
    """Refuse a policy that sees images, and one that is not trained.

    Raises
    ------
    InputError
        Which one.
    """
    if hasattr(trainer.processing_class, "image_processor"):
        raise InputError("the policy sees images", where="GRPOTrainer(processing_class=...)", expected="a tokenizer")
    if not any(weight.requires_grad for weight in trainer.model.parameters()):
        fix = "give the teacher a model of its own: that of a teacher is frozen"
        raise InputError("no weight of the policy is trained", where="GRPOTrainer(model=...)", fix=fix)


def check_batch(batch: Mapping[str, Any], *, old: bool) -> None:
    """Refuse completions that signals cannot look at.

    Parameters
    ----------
    batch
        What TRL made of its completions.
    old
        Whether they serve several updates, and so need log-probabilities of the policy that sampled them.

    Raises
    ------
    InputError
        Tokens that are not the policy's own, or a key that is missing: TRL is another one.
    """
    for key, why in STRANGE.items():
        if batch.get(key) is not None:
            raise InputError(why, where=f"{key!r} in TRL's batch", expected="tokens of the policy's own alone")
    wanted: Sequence[str] = (*KEYS, "old_per_token_logps") if old else KEYS
    missing = [key for key in wanted if batch.get(key) is None]
    if missing:
        what = ", which completions that serve several updates need" if missing[0] not in KEYS else ""
        raise InputError(f"there is no {missing[0]!r}{what}", where="TRL's batch", fix=PIP)
