"""Where the tokens of padded rows stand while a decoder works on them.

The real tokens of a row are moved to its beginning. Then each sees what stands before it and nothing else, so that no mask
is needed, and where the padding was makes no difference. Where much of the rows is padding, whatever works on each token
alone is handed the real ones only; attention spreads them over rows and collects them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Layout", "layout_of"]

SPARSE = 0.9  # share of real tokens below which leaving out the others saves more than moving the rest costs


@dataclass(frozen=True)
class Layout:
    """Tokens one after the other, and the way back.

    Attributes
    ----------
    ids, positions
        Each token, and its place in its row.
    index
        Which of them stands for a place of the original rows; for padding, a real token before it, or the first.
    rows, longest
        Shape of the rows over which attention spreads the tokens.
    slots
        Where it puts each, counted row by row; None where the tokens fill the rows.
    """

    ids: Int[Tensor, " places"]
    positions: Int[Tensor, " places"]
    index: Int[Tensor, "rows tokens"]
    rows: int
    longest: int
    slots: Int[Tensor, " places"] | None

    def spread(self, x: Float[Tensor, "places ..."]) -> Float[Tensor, "rows longest ..."]:
        """Lay tokens out in rows, zeros behind them."""
        if self.slots is not None:
            x = _Spread.apply(x, self.slots, self.rows * self.longest)  # type: ignore[no-untyped-call]
        return x.view(self.rows, self.longest, *x.shape[1:])

    def collect(self, x: Float[Tensor, "rows longest ..."]) -> Float[Tensor, "places ..."]:
        """Take the tokens out of the rows."""
        flat = x.flatten(0, 1)
        if self.slots is None:
            return flat
        taken: Tensor = _Collect.apply(flat, self.slots)  # type: ignore[no-untyped-call]
        return taken


def layout_of(ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], *, dense: bool = False) -> Layout:
    """Choose a layout.

    Parameters
    ----------
    ids
        Tokens; on padding, any.
    mask
        True on real tokens.
    dense
        Whether the tokens must fill the rows, whatever is padding.
    """
    rows, tokens = mask.shape
    lengths = mask.sum(dim=1)
    longest = max(int(lengths.max()), 1) if rows else 1
    positions, real = (mask.cumsum(dim=1) - 1).clamp_min(0), mask.flatten().nonzero()[:, 0]
    slots = real // max(tokens, 1) * longest + positions.flatten()[real]
    chosen = ids.flatten()[real]
    if not dense and 0 < len(real) < SPARSE * rows * longest:
        index = (mask.flatten().cumsum(dim=0) - 1).clamp_min(0).view_as(mask)
        return Layout(chosen, positions.flatten()[real], index, rows, longest, slots)
    filled = ids.new_zeros(rows * longest).index_copy_(0, slots, chosen)
    counted = torch.arange(longest, device=ids.device).repeat(rows)
    index = positions + longest * torch.arange(rows, device=ids.device)[:, None]
    return Layout(filled, counted, index, rows, longest, None)


class _Spread(torch.autograd.Function):
    """Rows of an array put into one of zeros, none twice; PyTorch's own way back adds row by row, which is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros((total, *x.shape[1:])).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return _Collect.apply(grad, slots), None, None  # type: ignore[no-untyped-call]


class _Collect(torch.autograd.Function):
    """The reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.total = len(x)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return _Spread.apply(grad, slots, ctx.total), None  # type: ignore[no-untyped-call]
