"""What the update of NOLA is compared with, beside the same layers: LoRA's, single coordinates, and its own one, spoilt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sanov.systems.nola.layers import Adapted, adapted, chosen, layer_seed
from sanov.systems.nola.updates import weight_shape

__all__ = ["Coordinates", "LowRank", "beside", "damaged"]


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


def beside(
    model: nn.Module, targets: tuple[str, ...], make: Callable[[tuple[int, int], int], nn.Module], seed: int
) -> dict[str, Adapted]:
    """Freeze a model, and put an update of another kind beside its layers.

    Parameters
    ----------
    model, targets, seed
        As in `attach`.
    make
        From outputs and inputs of a weight, and a seed, to its update.
    """
    model.requires_grad_(False)
    layers = {}
    for number, (name, layer) in enumerate(chosen(model, targets).items()):
        layers[name] = Adapted(layer, make(weight_shape(layer), layer_seed(seed, number)))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layers[name])
    return layers


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
