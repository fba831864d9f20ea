"""Several processes: which one this is, what the others have, and rows that all of them see."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from sanov.core.errors import InputError, require

__all__ = ["every_process", "gathered", "joined", "place"]

Value = TypeVar("Value")


def joined() -> Any:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started, and return Accelerate's view of them.

    Raises
    ------
    InputError
        Several processes were started, but there is no way for them to talk.
    """
    state = require("accelerate", "torch").PartialState
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    device = torch.accelerator.current_accelerator()
    # without this, each of several processes on a machine without GPUs would take itself for the only one
    cpu = _flag("ACCELERATE_USE_CPU") or (launched > 1 and (device is None or device.type == "mps"))
    found = state(cpu=cpu)
    if launched > found.num_processes:
        fix = "join them at the start of the script: sanov.learning.training.place()"
        raise InputError(f"{launched} processes were started, but each is alone", where="the launcher", fix=fix)
    return found


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on", "y", "t"}


def place() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) unless a launcher started several."""
    state = joined()
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
