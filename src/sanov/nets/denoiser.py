"""Small networks that denoise small images: a residual perceptron, or a UNet, told time and class.

What the output means (velocity, noise, sample, score) and on which path is the caller's; it stands in the shape, so that
two networks can be told apart by it.

References: ho2020ddpm (the UNet and the embedding of time); perez2018film (scale and shift by a condition).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sanov.core.errors import InputError

__all__ = ["Denoiser", "DenoiserShape"]

FREQUENCIES = 16
FASTEST = 1000.0  # the largest of the frequencies of time, which runs from 0 to 1
GROUPS = 4


@dataclass(frozen=True)
class DenoiserShape:
    """What a network looks like and what it says.

    Parameters
    ----------
    channels, height, width
        Of an image.
    classes
        Number of classes it can be told; 0 for none.
    kind
        ``mlp`` or ``unet``, whose images have sides divisible by 4.
    units
        Of a hidden layer, or channels of the UNet's first level.
    depth
        Residual blocks, of each level in a UNet.
    predicts, path
        What the output means.
    """

    channels: int
    height: int
    width: int
    classes: int = 0
    kind: Literal["mlp", "unet"] = "mlp"
    units: int = 256
    depth: int = 3
    predicts: str = "velocity"
    path: str = "flow"

    @property
    def event(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.channels, self.height, self.width


class Denoiser(nn.Module):
    """A network of noised images, times and classes.

    Parameters
    ----------
    shape
        What it looks like.
    seed
        Of the weights; None takes the global generator.

    Raises
    ------
    InputError
        The images do not fit a UNet.
    """

    def __init__(self, shape: DenoiserShape, *, seed: int | None = None):
        super().__init__()
        if shape.kind == "unet" and (shape.height % 4 or shape.width % 4 or shape.units % GROUPS):
            found = f"images of {shape.height} x {shape.width} and {shape.units} units"
            raise InputError(found, where="a UNet", expected="numbers divisible by 4", fix="take the kind mlp")
        self.shape = shape
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, shape.units), nn.SiLU())
            self.condition = nn.Embedding(shape.classes + 1, shape.units)  # the last one is none
            self.body: nn.Module = (_Perceptron if shape.kind == "mlp" else _UNet)(shape)
        spread = torch.linspace(0, math.log(FASTEST), FREQUENCIES).exp()
        self.register_buffer("frequencies", spread, persistent=False)

    frequencies: Tensor

    def forward(
        self,
        x: Float[Tensor, "rows channels height width"],
        t: Float[Tensor, " rows"],
        condition: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows channels height width"]:
        """Return what is predicted.

        Parameters
        ----------
        x
            Noised images.
        t
            Their times, 1 for noise.
        condition
            A class each, or the number of classes for none; None for none at all.
        """
        if condition is None:
            condition = torch.full((len(x),), self.shape.classes, device=x.device)
        angles = t[:, None] * self.frequencies
        told = self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.condition(condition)
        output: Tensor = self.body(x, told)
        return output


class _Perceptron(nn.Module):
    def __init__(self, shape: DenoiserShape):
        super().__init__()
        size = math.prod(shape.event)
        self.first = nn.Linear(size, shape.units)
        self.blocks = nn.ModuleList(_Block(shape.units) for _ in range(shape.depth))
        self.last = nn.Linear(shape.units, size)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, told)
        output: Tensor = self.last(nn.functional.silu(hidden))
        return output.view_as(x)


class _Block(nn.Module):
    def __init__(self, units: int):
        super().__init__()
        self.told, self.first, self.last = (nn.Linear(units, units) for _ in range(3))

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(hidden)) + self.told(told)
        output: Tensor = hidden + self.last(nn.functional.silu(inner))
        return output


class _UNet(nn.Module):
    """Three levels, halved twice; each level's blocks on the way up also see what they were on the way down."""

    def __init__(self, shape: DenoiserShape):
        super().__init__()
        widths = [shape.units, shape.units * 2, shape.units * 2]
        self.first = nn.Conv2d(shape.channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for width in widths:
            self.down.append(_level(before, width, shape))
            before = width
        for width in reversed(widths):
            self.up.append(_level(before + width, width, shape))
            before = width
        self.last = nn.Sequential(
            nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, shape.channels, 3, padding=1)
        )

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden, seen = self.first(x), []
        for place, level in enumerate(self.down):
            hidden = _through(level, nn.functional.avg_pool2d(hidden, 2) if place else hidden, told)
            seen.append(hidden)
        for place, level in enumerate(self.up):
            hidden = nn.functional.interpolate(hidden, scale_factor=2.0) if place else hidden
            hidden = _through(level, torch.cat([hidden, seen.pop()], dim=1), told)
        output: Tensor = self.last(hidden)
        return output


def _level(before: int, width: int, shape: DenoiserShape) -> nn.ModuleList:
    return nn.ModuleList(_Residual(before if not n else width, width, shape.units) for n in range(shape.depth))


def _through(level: nn.Module, hidden: Tensor, told: Tensor) -> Tensor:
    for block in level.children():
        hidden = block(hidden, told)
    return hidden


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, units: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, width, 3, padding=1))
        self.norm = nn.GroupNorm(GROUPS, width)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.told = nn.Linear(units, 2 * width)
        self.skip = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm(self.first(hidden)) * (1 + scale) + shift
        output: Tensor = self.skip(hidden) + self.last(nn.functional.silu(inner))
        return output
