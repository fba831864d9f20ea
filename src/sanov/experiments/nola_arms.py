"""The arms of the claim on `nola`: ways to fine-tune a model, each with its grid of learning rates.

LoRA and the controls are put beside the same layers as NOLA's update; the other small tuners are those of PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sanov.experiments.nola_parts import ARMS
from sanov.systems.nola.layers import Adapted, Plan, adapted, attach, chosen, layer_seed, weight_shape

__all__ = ["GRIDS", "PEFT", "adapt", "damaged"]

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


class LowRank(nn.Module):
    """LoRA's update: A as `torch.nn.Linear` begins, B at 0, both trained, with scale 1."""

    def __init__(self, shape: tuple[int, int], rank: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed % 2**63)
        bound = 1 / math.sqrt(shape[1])
        self.a = nn.Parameter((torch.rand(rank, shape[1], generator=generator) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(shape[0], rank))

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        return self.a.to(dtype or self.a.dtype), self.b.to(dtype or self.b.dtype)


class Coordinates(nn.Module):
    """As many numbers as NOLA trains, but entries of A and B: A begins as A_0, and all other entries stay as they were."""

    def __init__(self, shape: tuple[int, int], rank: int, count: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed % 2**63)
        bound = 1 / math.sqrt(shape[1])
        start = (torch.rand(rank, shape[1], generator=generator) * 2 - 1) * bound
        sizes = rank * shape[1], rank * shape[0]
        places = [torch.randperm(size, generator=generator)[:count] for size in sizes]
        self.register_buffer("start", start.flatten())
        self.register_buffer("first", places[0])
        self.register_buffer("second", places[1])
        self.values_a = nn.Parameter(torch.zeros(min(count, sizes[0])))
        self.values_b = nn.Parameter(torch.zeros(min(count, sizes[1])))
        self.shape, self.rank = shape, rank

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        start: Any = self.start
        places: Any = (self.first, self.second)
        a = start.index_add(0, places[0], self.values_a).view(self.rank, self.shape[1])
        b = self.values_b.new_zeros(self.shape[0] * self.rank).index_add(0, places[1], self.values_b)
        b = b.view(self.shape[0], self.rank)
        return a.to(dtype or a.dtype), b.to(dtype or b.dtype)


def adapt(arm: str, model: nn.Module, targets: tuple[str, ...], heads: Sequence[str], seed: int) -> nn.Module:
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
    else:
        _beside(arm, model, targets, seed)
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    return wrapped


def _beside(arm: str, model: nn.Module, targets: tuple[str, ...], seed: int) -> None:
    model.requires_grad_(False)
    for number, (name, layer) in enumerate(chosen(model, targets).items()):
        shape, own = weight_shape(layer), layer_seed(seed, number)
        update: Any = Coordinates(shape, RANK, SIZES["nola"], own)
        if arm != "coordinates":
            update = LowRank(shape, int(arm.removeprefix("lora")), own)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Adapted(layer, update))


def _peft(arm: str, model: nn.Module, targets: tuple[str, ...], seed: int) -> nn.Module:
    import peft

    kind, settings = PEFT[arm]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        wrapped: nn.Module = peft.get_peft_model(model, getattr(peft, kind)(target_modules=list(targets), **settings))
    return wrapped


def damaged(model: nn.Module, how: str, seed: int) -> Mapping[str, Any]:
    """Spoil a trained NOLA adapter in place, and return what undoes it.

    Parameters
    ----------
    model
        With the adapter.
    how
        ``wrong_seed``: the coefficients stay, the bases are others; ``permuted``: the coefficients of each vector are in
        another order; ``random_update``: a random update of the same Frobenius norm.
    seed
        Of the damage.
    """
    before = {}
    generator = torch.Generator().manual_seed(seed)
    for number, (name, layer) in enumerate(adapted(model).items()):
        update: Any = layer.update
        before[name] = update
        spoilt: Any = _Fixed(*_spoilt(update, how, layer_seed(seed + 1, number), generator))
        layer.update = spoilt
    return before


class _Fixed(nn.Module):
    def __init__(self, a: Tensor, b: Tensor):
        super().__init__()
        self.a, self.b = a, b

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return self.a.to(dtype or self.a.dtype), self.b.to(dtype or self.b.dtype)


@torch.no_grad()
def _spoilt(update: Any, how: str, seed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    alpha, beta, space = update.nola_alpha, update.nola_beta, update.space
    if how == "random_update":
        a, b = (torch.randn(factor.shape, generator=generator) for factor in update.factors())
        return a, b * (update.delta().norm() / (b @ a).norm().clamp_min(1e-12))
    if how == "permuted":
        alpha, beta = (vector[torch.randperm(len(vector), generator=generator)] for vector in (alpha, beta))
    else:
        space = type(space).of(
            seed,
            inputs=space.shape[1],
            outputs=space.shape[0],
            rank=space.rank,
            num_basis_a=len(alpha),
            num_basis_b=len(beta),
        )
    a, b = space.factors(alpha, beta)
    return a, b * update.scaling
