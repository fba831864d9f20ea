"""The factors of an update: fixed sums of random bases, of which only the coefficients are learned.

::

    dW = s B A,     A = A_0 + a sum_i alpha_i U_i   [rank, in],     B = b sum_j beta_j V_j   [out, rank]

The bases are never all in memory unless they are kept on purpose: a sum is formed block by block, always of 16 bases and in
their order, so that neither chunks nor a cache change a bit of it; the gradient of a coefficient is the inner product of
its basis with the gradient of the factor, and the bases are made once more for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import first_derivative_only, wide_dtype
from sanov.random_bases import Law, fingerprint, random_bases

__all__ = ["BLOCK", "Basis", "Preset", "Space", "check_chunk", "combine"]

Preset = Literal["gpt", "readme", "vit"]
BLOCK = 16  # bases that are summed together: the order of summation is fixed
OFFSET, FIRST, SECOND = 0, 1, 2  # streams of A_0, of the bases of A and of those of B


@dataclass(eq=False)
class Basis:
    """Random bases of one factor.

    Parameters
    ----------
    seed, stream
        Of the numbers.
    count
        How many there are.
    shape
        Of one.
    law
        Of an entry.
    chunk
        How many are made at a time, a multiple of 16.
    kept
        Whether they stay in memory, ``count * rows * columns * 4`` bytes on each device that asks.

    Raises
    ------
    InputError
        The chunk is no multiple of 16.
    """

    seed: int
    stream: int
    count: int
    shape: tuple[int, int]
    law: Law = "uniform"
    chunk: int = 64
    kept: bool = False
    _all: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_chunk(self.chunk)

    @property
    def key(self) -> tuple[Any, ...]:
        """What another has in common with it whose numbers are the same."""
        return self.seed, self.stream, self.count, self.shape, self.law

    @property
    def size(self) -> int:
        """Numbers in one basis."""
        return self.shape[0] * self.shape[1]

    def blocks(self, device: torch.device) -> Iterator[Float[Tensor, "block size"]]:
        """Yield the bases, 16 rows at a time."""
        for start in range(0, self.count, self.count if self.kept else self.chunk):
            yield from torch.split(self._made(start, device), BLOCK)

    def only(self, device: torch.device) -> Float[Tensor, "rows columns"]:
        """Return the first basis."""
        return self._made(0, device)[0].view(self.shape)

    def _made(self, start: int, device: torch.device) -> Tensor:
        if self.kept and device in self._all:
            return self._all[device]
        count = self.count if self.kept else min(self.chunk, self.count - start)
        shape = (count, *self.shape)
        made = random_bases(self.seed, self.stream, shape, law=self.law, first=start, device=device).flatten(1)
        if self.kept:
            self._all[device] = made
        return made


def check_chunk(chunk: int) -> None:
    """Refuse a number of bases that are made at a time, if sums would depend on it.

    Raises
    ------
    InputError
        It is no multiple of 16.
    """
    if chunk < BLOCK or chunk % BLOCK:
        raise InputError(f"is {chunk}", where="chunk", expected=f"a multiple of {BLOCK}")


class _Combination(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, basis: Basis) -> Tensor:
        ctx.basis, ctx.kind = basis, coefficients.dtype
        dtype = wide_dtype(coefficients)
        total = torch.zeros(basis.size, dtype=dtype, device=coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            parts = torch.split(coefficients.to(dtype), BLOCK)
            for part, block in zip(parts, basis.blocks(coefficients.device), strict=True):
                total.addmv_(block.to(dtype).t(), part)
        return total.view(basis.shape)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        flat = grad.to(wide_dtype(grad)).flatten()
        with torch.autocast(grad.device.type, enabled=False):
            found = [block.to(flat.dtype) @ flat for block in ctx.basis.blocks(grad.device)]
        return torch.cat(found).to(ctx.kind), None


def combine(coefficients: Float[Tensor, " count"], basis: Basis) -> Float[Tensor, "rows columns"]:
    """Return the sum of bases, each times its coefficient, in float32 or wider.

    Parameters
    ----------
    coefficients
        One for each basis.
    basis
        The bases, which are made anew in the backward pass unless they are kept.

    Returns
    -------
    A matrix of the shape of one basis. Its gradient in coefficient i is the inner product of basis i and the gradient of
    the matrix; a second derivative is refused.
    """
    combined: Tensor = _Combination.apply(coefficients, basis)  # type: ignore[no-untyped-call]
    return combined


@dataclass(frozen=True, eq=False)
class Space:
    """Where the update of one weight lies: a rank and two sets of random bases.

    Parameters
    ----------
    offset
        A_0, [rank, in]: one basis, always kept.
    first, second
        Bases of A, each [rank, in], and of B, each [out, rank], of the same seed.
    preset
        How sums are scaled and where they start: ``gpt`` (divided by the root of the number of bases, zero at the start),
        ``readme`` (not divided) or ``vit`` (bases of their own scale, no offset, not zero at the start).
    """

    offset: Basis
    first: Basis
    second: Basis
    preset: Preset = "gpt"

    @classmethod
    def of(
        cls,
        seed: int,
        *,
        inputs: int,
        outputs: int,
        rank: int,
        num_basis_a: int,
        num_basis_b: int,
        preset: Preset = "gpt",
        law: Law = "uniform",
        chunk: int = 64,
        kept: bool = False,
        pool: dict[Any, Basis] | None = None,
    ) -> Space:
        """Return the space of a weight of ``outputs`` rows and ``inputs`` columns.

        Parameters
        ----------
        seed
            Of all its bases.
        inputs, outputs, rank, num_basis_a, num_basis_b, preset
            Sizes, and how the sums are scaled.
        law, chunk, kept
            As in `Basis`.
        pool
            Bases that other weights have; those of the same seed and shape are shared, and new ones added.
        """
        pool = {} if pool is None else pool
        made = (
            Basis(seed, OFFSET, 1, (rank, inputs), "uniform", chunk, True),
            Basis(seed, FIRST, num_basis_a, (rank, inputs), law, chunk, kept),
            Basis(seed, SECOND, num_basis_b, (outputs, rank), law, chunk, kept),
        )
        offset, first, second = (pool.setdefault(basis.key, basis) for basis in made)
        return cls(offset, first, second, preset)

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.first.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return self.second.shape[0], self.first.shape[1]

    def fingerprint(self) -> str:
        """Return what another seed, generator, law or shape would not give."""
        streams = {basis.stream: (basis.count, *basis.shape) for basis in (self.offset, self.first, self.second)}
        return fingerprint(self.first.seed, streams, self.first.law)

    def start(self) -> tuple[Float[Tensor, " k"], Float[Tensor, " l"]]:
        """Return the coefficients before training."""
        if self.preset == "vit":
            return tuple(torch.full((basis.count,), 1 / basis.count) for basis in (self.first, self.second))  # type: ignore[return-value]
        return torch.zeros(self.first.count), torch.zeros(self.second.count)

    def factors(
        self, alpha: Float[Tensor, " k"], beta: Float[Tensor, " l"]
    ) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
        """Return A and B, in float32 or wider."""
        a = combine(alpha, self.first) * self._scale(self.first)
        if self.preset != "vit":  # without an offset, zero coefficients would be a stationary point
            a = a + self.offset.only(alpha.device).to(a.dtype) / math.sqrt(self.first.shape[1])
        return a, combine(beta, self.second) * self._scale(self.second)

    def _scale(self, basis: Basis) -> float:
        if self.preset == "vit":
            return 1 / math.sqrt(basis.size)
        return 1.0 if self.preset == "readme" else 1 / math.sqrt(basis.count)
