"""The arms of the claim on `nola`: ways to fine-tune a model, each with its grid of learning rates.

LoRA and the controls are put beside the same layers as NOLA's update; the other small tuners are those of PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sanov.experiments.nola_parts import ARMS

__all__ = ["GRIDS", "PEFT", "adapt"]

PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "vera": ("VeraConfig", {"r": 16}),
    "unilora": ("UniLoraConfig", {"r": 4, "theta_d_length": 1536}),
    "tinylora": ("TinyLoraConfig", {"r": 8, "u": 128}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 32, "vector_length": 64}),
    "randlora": ("RandLoraConfig", {"r": 32}),
}
NARROW = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
WIDE = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2)
GRIDS: dict[str, Sequence[float]] = {  # the probe's are inverse penalties
    **dict.fromkeys(ARMS, WIDE),
    "lora1": NARROW,
    "lora4": NARROW,
    "randlora": NARROW,
    "full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "probe": (0.01, 0.1, 1.0, 10.0, 100.0),
}
SIZES = {"nola": 64, "nola4": 4, "nola16": 16, "nola256": 256}
RANK = 8


def adapt(arm: str, model: Any, targets: tuple[str, ...], heads: Sequence[str], seed: int) -> Any:
    """Freeze a model but for what an arm trains.

    Parameters
    ----------
    arm
        Of `ARMS`, without the probe.
    model
        Changed in place.
    targets
        Ends of the names of the layers to adapt.
    heads
        Modules that are trained besides.
    seed
        Of bases and start weights.

    Returns
    -------
    What is to be called: the model, or PEFT's wrapper of it.
    """
    from sanov.systems.nola.controls import Coordinates, LowRank, beside
    from sanov.systems.nola.layers import adapted, attach
    from sanov.systems.nola.updates import Plan

    if arm == "full":
        return model.requires_grad_(True)
    wrapped = model
    if arm in PEFT:
        wrapped = _peft(arm, model, targets, seed)
    elif arm in SIZES or arm in ("shuffled", "a0_only"):
        count = SIZES.get(arm, SIZES["nola"])
        second = 2 * count if arm == "a0_only" else count
        plan = Plan(rank=RANK, num_basis_a=count, num_basis_b=second, alpha=float(RANK), kept=True)
        attach(model, targets, plan, seed=seed)
        if arm == "a0_only":
            for layer in adapted(model).values():
                layer.update.nola_alpha.requires_grad_(False)
    elif arm == "coordinates":
        beside(model, targets, lambda shape, own: Coordinates(shape, RANK, SIZES["nola"], own), seed)
    else:
        rank = int(arm.removeprefix("lora"))
        beside(model, targets, lambda shape, own: LowRank(shape, rank, own), seed)
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    return wrapped


def _peft(arm: str, model: Any, targets: tuple[str, ...], seed: int) -> Any:
    import peft
    import torch

    kind, settings = PEFT[arm]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return peft.get_peft_model(model, getattr(peft, kind)(target_modules=list(targets), **settings))
