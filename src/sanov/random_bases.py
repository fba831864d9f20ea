"""Random bases from a counter: identical on every device and in any chunking, so that a seed is all there is to store.

A value is a word of Philox4x32-10 under the key of a 64-bit seed. Element e of basis i in a stream (rows first) is word
``e mod 4`` of the block whose counter is ``(e div 4, 0, i, stream)``, as ``(word >> 8) 2^-23 - 1``: exact in float32, and
uniform on [-1, 1). This layout is the version `GENERATOR`.

Reference: salmon2011parallel; the layout is ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["GENERATOR", "Law", "counter_uniform", "fingerprint", "philox", "random_bases"]

GENERATOR = "philox-u24-v1"
Law = Literal["uniform", "rademacher", "sparse"]
MULTIPLIERS, WEYL, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
WORD = 0xFFFFFFFF
TOGETHER = 8192  # blocks at a time: their few arrays stay in a core's cache
ZEROS = 3  # of four entries of a sparse basis


def philox(counter: Sequence[Int[Tensor, " blocks"]], key: tuple[int, int]) -> list[Int[Tensor, " blocks"]]:
    """Return the four words of each block of Philox4x32-10.

    Parameters
    ----------
    counter
        Four arrays of 32-bit words, as int64.
    key
        Two 32-bit words.

    Returns
    -------
    Four arrays of 32-bit words, as int64.

    Reference
    ---------
    salmon2011parallel, sec. 3.3.
    """
    zero, one, two, three = (word.clone() for word in counter)
    first, second = key
    for _ in range(ROUNDS):
        low, high = zero * MULTIPLIERS[0], two * MULTIPLIERS[1]  # 64 bits, of which int64 keeps every one
        zero = ((high >> 32) & WORD).bitwise_xor_(one).bitwise_xor_(first)
        two = ((low >> 32) & WORD).bitwise_xor_(three).bitwise_xor_(second)
        one, three = high.bitwise_and_(WORD), low.bitwise_and_(WORD)
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return [zero, one, two, three]


def counter_uniform(
    seed: int, stream: int, shape: Sequence[int], *, first: int = 0, device: torch.device | str | None = None
) -> Float[Tensor, "bases ..."]:
    """Return numbers uniform on [-1, 1): the same on every device and in any chunking.

    Parameters
    ----------
    seed
        0 to 2^64 - 1.
    stream
        0 to 2^32 - 1: streams of one seed have nothing in common.
    shape
        Number of bases, and the shape of one.
    first
        Number of the first basis.
    device
        Where to make them; the CPU by default.

    Returns
    -------
    Float32, multiples of 2^-23.

    Raises
    ------
    InputError
        The seed is out of range.
    """
    return random_bases(seed, stream, shape, first=first, device=device)


def random_bases(
    seed: int,
    stream: int,
    shape: Sequence[int],
    *,
    law: Law = "uniform",
    first: int = 0,
    device: torch.device | str | None = None,
) -> Float[Tensor, "bases ..."]:
    """Return random bases whose entries have the mean 0 and the variance 1/3 of `counter_uniform`, whatever their law.

    Parameters
    ----------
    seed, stream, shape, first, device
        As in `counter_uniform`.
    law
        ``uniform`` on [-1, 1); ``rademacher``, of two values; or ``sparse``, of which one entry in four is not 0.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"is {seed}", where="seed", expected="0 to 2^64 - 1")
    count, size = shape[0], math.prod(shape[1:])
    blocks = -(-size // 4)
    values = torch.empty(count * blocks, 4, device=device)
    for start in range(0, count * blocks, TOGETHER):
        places = torch.arange(start, min(start + TOGETHER, count * blocks), device=device)
        numbers = torch.div(places, blocks, rounding_mode="floor")
        for place, entries in enumerate(_blocks(seed, stream, places - numbers * blocks, numbers + first, law)):
            values[start : start + len(places), place] = entries
    return values.view(count, 4 * blocks)[:, :size].reshape(tuple(shape))


def _blocks(
    seed: int, stream: int, blocks: Int[Tensor, " blocks"], numbers: Int[Tensor, " blocks"], law: Law
) -> list[Float[Tensor, " blocks"]]:
    """Return the four entries of each block of each basis."""
    counter = (blocks, torch.zeros_like(blocks), numbers, torch.full_like(blocks, stream))
    return [_entries(words, law) for words in philox(counter, (seed & WORD, seed >> 32))]


def _entries(words: Int[Tensor, " blocks"], law: Law) -> Float[Tensor, " blocks"]:
    if law == "uniform":
        return (words >> 8).to(torch.float32).mul_(2.0**-23).sub_(1.0)
    signs = 1.0 - 2.0 * (words >> 31).to(torch.float32)
    if law == "rademacher":
        return signs / math.sqrt(3)
    return signs * ((words & ZEROS) == 0) * math.sqrt((ZEROS + 1) / 3)


def fingerprint(seed: int, bases: Mapping[int, Sequence[int]], law: Law = "uniform") -> str:
    """Return a few hexadecimal digits that another generator, seed, law or shape would not give.

    Parameters
    ----------
    seed
        Of the bases.
    bases
        Shape by stream, the number of bases first.
    law
        Of their entries.

    Notes
    -----
    Read from the first and the last four entries of the first and the last basis of each stream.
    """
    parts = hashlib.blake2b(
        f"{GENERATOR} {law} {sorted((s, tuple(b)) for s, b in bases.items())}".encode(), digest_size=8
    )
    for stream, (count, *shape) in sorted(bases.items()):
        last = -(-math.prod(shape) // 4) - 1
        blocks = torch.tensor([0, last, 0, last], device="cpu")
        numbers = torch.tensor([0, 0, count - 1, count - 1], device="cpu")
        parts.update(torch.stack(_blocks(seed, stream, blocks, numbers, law)).numpy().astype("<f4").tobytes())
    return parts.hexdigest()
