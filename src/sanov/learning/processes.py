"""Several processes: which one this is, what the others have, and rows that all of them see."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from sanov.core.errors import require

__all__ = ["every_process", "gathered", "place"]

Value = TypeVar("Value")


def place() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) unless a launcher started several.

    The first call joins the processes that ``torchrun`` or ``accelerate launch`` started.
    """
    state = require("accelerate", "torch").PartialState()
    return state.process_index, state.num_processes


def every_process(value: Value) -> list[Value]:
    """Return what each process passed, in the order of the processes. All of them must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gathered(rows: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
    """Return the rows of all processes, in the order of the processes; gradients reach this process's rows only.

    So the gradients of the processes add up to that of a function of all rows. Processes may have different numbers of
    rows. All of them must call it.
    """
    sizes = every_process(len(rows))
    if len(sizes) == 1:
        return rows
    padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    parts = [part[:size] for part, size in zip(found, sizes, strict=True)]
    parts[dist.get_rank()] = rows
    return torch.cat(parts)
