"""How the next token is chosen among logits, given one uniform number a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import widen

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """Temperature, cuts, and tokens that are never chosen; what `sample` says of them holds.

    Raises
    ------
    InputError
        An option is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or a positive number"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens), or how many"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise InputError(f"it is {value}", where=name, expected=expected)

    def check(self, eos: int, vocabulary: int) -> None:
        """Refuse what could never be sampled.

        Raises
        ------
        InputError
            The end token is suppressed, or a token that does not exist, or all that exist.
        """
        if eos in self.suppress:
            raise InputError("cannot suppress EOS: rollouts would never end", where="suppress", expected="other tokens")
        if strange := [token for token in self.suppress if not 0 <= token < vocabulary]:
            raise InputError(f"there is no token {strange[0]}", where="suppress", expected=f"0 to {vocabulary - 1}")
        if len(set(self.suppress)) == vocabulary:
            raise InputError("all tokens are suppressed", where="suppress", expected="at least one that is left")

    def __call__(
        self, logits: Float[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return a token a row, and its probability before anything is cut off or suppressed."""
        logits = widen(logits)
        probs = (logits if self.temperature in (0, 1) else logits / self.temperature).softmax(dim=-1)
        tokens = self._likeliest(logits) if self.temperature == 0 else _passed(self._weights(probs), uniforms)
        return tokens, probs.gather(1, tokens[:, None])[:, 0]

    def _likeliest(self, logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
        if self.suppress:
            logits = logits.index_fill(1, torch.tensor(self.suppress, device=logits.device), -torch.inf)
        return logits.argmax(dim=-1)

    def _weights(self, probs: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Return probabilities up to a factor, 0 where a token must not be chosen."""
        if self.suppress:
            probs = probs.index_fill(1, torch.tensor(self.suppress, device=probs.device), 0.0)
        if 0 < self.top_k < probs.shape[1]:
            probs = probs.where(probs >= probs.topk(self.top_k, dim=-1).values[:, -1:], 0.0)
        return probs if self.top_p == 1 else _nucleus(probs, self.top_p)


def _nucleus(weights: Float[Tensor, "rows vocabulary"], share: float) -> Float[Tensor, "rows vocabulary"]:
    """Keep the fewest largest weights that together reach a share of the sum."""
    falling, order = weights.sort(dim=-1, descending=True, stable=True)
    above = falling.cumsum(dim=-1, dtype=torch.float64) - falling
    kept = above < share * falling.sum(dim=-1, keepdim=True, dtype=torch.float64)
    return weights.where(torch.zeros_like(kept).scatter(1, order, kept), 0.0)


def _passed(weights: Float[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the first token at which the cumulated weights pass a share of their sum; never one of weight 0."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1]
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))  # a share may round up to all
    passed = (cumulated > target[:, None]) & (weights > 0)  # parallel sums need not rise in order: weights decide too
    return passed.view(torch.uint8).argmax(dim=-1)
