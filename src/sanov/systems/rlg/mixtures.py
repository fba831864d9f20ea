"""Models that are known exactly: mixtures of normal densities, noised, tilted by a reward, and asked like a network.

The posterior of x0 given x_t is a mixture again, so that velocity, noise, sample and score have closed forms. A kernel
density on images is the reference that needs no training; tilted by a linear reward it is its exact policy, for any beta.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.systems.rlg.paths import Path, Prediction, levels, predicted

__all__ = ["Mixture"]


class Mixture(nn.Module):
    """Mixture of normal densities with one covariance, as a model of what is asked for at any time.

    Parameters
    ----------
    means
        Of the components, flattened.
    variance
        One for all directions, or a covariance matrix.
    log_weights
        Of the components, not necessarily normalised; None for equal ones.
    prediction, path
        What is given back.
    """

    def __init__(
        self,
        means: Float64[Tensor, "components size"],
        variance: Float64[Tensor, "*matrix"],
        log_weights: Float64[Tensor, " components"] | None = None,
        *,
        prediction: Prediction = "velocity",
        path: Path = "flow",
    ):
        super().__init__()
        self.prediction, self.path = prediction, path
        if variance.ndim == 0:
            values, vectors = variance.expand(means.shape[1]), None
        else:
            values, vectors = torch.linalg.eigh(variance)
        equal = torch.zeros(len(means), dtype=torch.float64)
        self.register_buffer("means", means)
        self.register_buffer("log_weights", equal if log_weights is None else log_weights)
        self.register_buffer("variance", variance)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)

    means: Tensor
    log_weights: Tensor
    variance: Tensor
    values: Tensor
    vectors: Tensor | None

    def forward(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, " rows"], condition: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows ..."]:
        """Return what is predicted of each row; all rows have one time, and a condition does not count."""
        time = float(t[0])
        a, b = levels(self.path, time)
        flat = self._turned(x.flatten(1).to(self.means))
        means = self._turned(self.means)
        scale = a * a * self.values + b * b  # variances of the noised components
        share = self._shares(flat, means, a, scale)
        centre = share @ means
        pull = (flat - a * centre) / scale
        p, q = predicted(self.prediction, self.path, time)
        output = p * (centre + a * self.values * pull) + q * b * pull
        return self._turned(output, back=True).to(x.dtype).view_as(x)

    def _shares(self, x: Tensor, means: Tensor, a: float, scale: Tensor) -> Tensor:
        """Return the probability of each component given each state."""
        x, means = x / scale.sqrt(), a * means / scale.sqrt()
        distance = means.pow(2).sum(dim=1) - 2 * x @ means.T  # the states' own squares are the same for all components
        return (self.log_weights - distance / 2).softmax(dim=1)

    def _turned(self, x: Tensor, *, back: bool = False) -> Tensor:
        if self.vectors is None:
            return x
        return x @ (self.vectors.T if back else self.vectors)

    def _with(self, means: Tensor, variance: Tensor, log_weights: Tensor) -> Mixture:
        return Mixture(means, variance, log_weights.log_softmax(dim=0), prediction=self.prediction, path=self.path)

    def tilted(self, slope: Float64[Tensor, " size"], beta: float) -> Mixture:
        """Return the tilt by the linear reward slope . x: shifted means, other weights.

        Parameters
        ----------
        slope
            Of the reward.
        beta
            Coefficient of KL; infinite for none, negative against the reward.
        """
        _check_beta(beta)
        shift = self._spread(slope) / beta
        weights = self.log_weights + self.means @ slope / beta + slope @ shift / (2 * beta)
        return self._with(self.means + shift, self.variance, weights)

    def tilted_quadratic(self, curvature: float, centre: float, beta: float) -> Mixture:
        """Return the tilt by the reward -curvature (x - centre)^2 / 2 of one number.

        Raises
        ------
        InputError
            There is no such density: the reward grows faster than the components fall.
        """
        _check_beta(beta)
        rate, variance = curvature / beta, float(self.variance)
        wide = 1 + rate * variance
        if wide <= 0:
            raise InputError(
                f"the precision is {wide / variance:.4g}", where="the tilt", expected="no proper tilted density exists"
            )
        m = self.means[:, 0]
        weights = self.log_weights - rate * (m - centre) ** 2 / (2 * wide)
        means = (m / variance + rate * centre) * variance / wide
        return self._with(means[:, None], self.variance / wide, weights)

    def mean_reward(self, slope: Float64[Tensor, " size"]) -> float:
        """Return the mean of a linear reward."""
        return float(self.log_weights.softmax(dim=0) @ self.means @ slope)

    def draw(self, rows: int, generator: torch.Generator) -> Float64[Tensor, "rows size"]:
        """Return samples of the mixture itself, without noise."""
        chosen = torch.multinomial(self.log_weights.softmax(dim=0), rows, replacement=True, generator=generator)
        z = torch.randn(rows, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[chosen] + self._turned(z * self.values.sqrt(), back=True)

    def _spread(self, slope: Tensor) -> Tensor:
        return self.variance * slope if self.variance.ndim == 0 else self.variance @ slope


def _check_beta(beta: Any) -> None:
    if beta == 0 or beta != beta:
        raise InputError(f"it is {beta}", where="beta", expected="a number other than 0")
