"""Small models with adapters whose coefficients are not zero."""

import torch
from torch import nn

from sanov.systems.nola.layers import attach
from sanov.systems.nola.updates import Plan

PLAN = Plan(rank=3, num_basis_a=9, num_basis_b=7, alpha=6.0)
LAYERS = ("0", "1", "3")


def toy():
    """An embedding and two linear layers with a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Linear(8, 2))


def stirred(model, seed=0, scale=0.5):
    """Give the adapter of a model random coefficients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("nola_alpha", "nola_beta")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def adapted_toy(plan=PLAN, seed=3, stir=0, layers=LAYERS):
    """The toy with an adapter."""
    model = toy()
    attach(model, layers, plan, seed=seed)
    return stirred(model, stir)


def tokens():
    """A batch for the toy."""
    return torch.randint(50, (4, 7), generator=torch.Generator().manual_seed(1))
