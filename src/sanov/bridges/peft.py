"""Adapters of `nola` inside PEFT: train, save, load, merge and switch them as any of PEFT's own.

::

    from peft import PeftModel, get_peft_model
    from sanov.bridges import peft as nola

    nola.register()                                              # once in a process, before anything below
    model = get_peft_model(model, nola.NolaConfig(r=8, num_basis_a=64, num_basis_b=64, target_modules=["q_proj", "v_proj"]))
    ...                                                          # any loop, such as transformers' Trainer
    model.save_pretrained("adapter")                             # two vectors a layer, and what their bases are made from
    model = PeftModel.from_pretrained(base, "adapter")

The folder is that of ``sanov fit nola``, and each loads what the other wrote. Where a folder is loaded, the bases are made
from its seeds and compared with its fingerprints, and the base model with a sample of the weights that the adapter was
trained on. (``load_adapter`` under a name that is taken reads the coefficients alone: give a new name.) Layers of the same
seed and shape, also those of several adapters, share their bases.

Mixed batches (``adapter_names``) are refused. For what PEFT offers to LoRA alone, ``convert_to_lora(model, rank=r)`` is
exact, up to rounding.

`register` extends PEFT's enumeration of methods, which has no public door, and then calls ``register_peft_method``, which
is one. Touched besides are the hooks of `HOOKS`; they are looked for, and versions of PEFT other than those in `VERSIONS`,
where this was read and tested, are refused. Importing this module changes nothing in PEFT.
"""

from __future__ import annotations

import inspect
from typing import Any

import peft
from peft.tuners import tuners_utils
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from sanov.bridges.peft_config import NAME, AdapterError, NolaConfig
from sanov.bridges.peft_layers import NolaLayer
from sanov.bridges.peft_model import NolaModel
from sanov.core.errors import InputError

__all__ = ["VERSIONS", "AdapterError", "NolaConfig", "NolaLayer", "NolaModel", "check_version", "register"]

VERSIONS = ((0, 21),)  # of PEFT, major and minor
HOOKS: dict[
    str, dict[str, tuple[str, ...]]
] = {  # what is overridden or called that is not public, and the parameters that are relied upon
    "BaseTuner": {
        "_prepare_model": ("peft_config", "model"),
        "_create_and_replace": ("peft_config", "adapter_name", "target", "target_name", "parent", "current_key"),
        "_check_target_module_exists": ("peft_config", "key"),
        "_replace_module": ("parent", "child_name", "new_module", "child"),
        "_get_adapter_state_dict": ("model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"),
        "_remove_adapter_name_from_key": ("key", "adapter_name"),
        "_remap_adapter_state_dict_for_load": ("model", "config", "adapter_name", "state_dict"),
    },
    "BaseTunerLayer": {"_move_adapter_to_device_of_base_layer": ("adapter_name",)},
}


def register() -> None:
    """Make PEFT know the method NOLA; a second call does nothing.

    Raises
    ------
    InputError
        The installed PEFT is of a version that was not tested, lacks something that is relied upon, or has another
        method of this name.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if NAME in PeftType.__members__:
        if PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(NAME)) is NolaModel:
            return
        fix = "use the folder with sanov.systems.nola, or that other method"
        raise InputError(f"PEFT has another method of the name {NAME}", where="register", fix=fix)
    check_version(peft.__version__)
    _add_member(PeftType, NAME)
    register_peft_method(name=NAME.lower(), config_cls=NolaConfig, model_cls=NolaModel)


def check_version(version: str) -> None:
    """Refuse a PEFT whose internals are not those that are relied upon.

    Parameters
    ----------
    version
        Of PEFT.

    Raises
    ------
    InputError
        The version, or the first method or parameter that is missing.
    """
    fix = "run: pip install 'peft==0.21.*'; or use the adapter without PEFT (sanov.systems.nola)"
    numbers = tuple(int(part) if part.isdecimal() else -1 for part in version.split(".")[:2])
    if numbers not in VERSIONS:
        expected = " or ".join(f"{major}.{minor}" for major, minor in VERSIONS)
        raise InputError(f"PEFT {version} is installed", where="register", expected=expected, fix=fix)
    for owner, methods in HOOKS.items():
        for name, parameters in methods.items():
            method = getattr(getattr(tuners_utils, owner), name, None)
            known = () if method is None else inspect.signature(method).parameters
            if missing := [parameter for parameter in parameters if parameter not in known]:
                found = f"PEFT {version} has no {owner}.{name}" + (f" with {missing[0]}" if known else "")
                raise InputError(found, where="register", fix=fix)


def _add_member(enumeration: Any, name: str) -> None:
    """Add a member to an enumeration of strings, as its class statement would have done."""
    member: Any = str.__new__(enumeration, name)
    member._name_ = member._value_ = name
    member.__objclass__, member._sort_order_ = enumeration, len(enumeration._member_names_)
    enumeration._member_names_.append(name)
    enumeration._member_map_[name] = enumeration._value2member_map_[name] = member
    type.__setattr__(enumeration, name, member)
