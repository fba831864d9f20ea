"""A model and its optimizer on whatever Accelerate finds: one device, or many processes with DDP or FSDP2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sanov.core.errors import InputError, require
from sanov.learning.processes import joined

__all__ = ["Parallel", "Prepared", "is_sharded", "prepared"]

Parallel = Literal["auto", "ddp", "fsdp"]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
OTHERS = {"DEEPSPEED", "MEGATRON_LM", "XLA"}  # launchers' engines that bring a loop or an optimizer of their own
MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")  # what Accelerate hangs on a model


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that is ready to train.

    Parameters
    ----------
    accelerator
        Accelerate's, which knows device, precision and trackers.
    model
        What a loss calls: the model, or its wrapper that adds gradients over processes.
    inner
        The caller's model.
    optimizer
        The caller's optimizer.
    step
        Updates the weights.
    """

    accelerator: Any
    model: nn.Module
    inner: nn.Module
    optimizer: Optimizer
    step: Callable[[], object]

    @property
    def device(self) -> torch.device:
        """Where batches belong."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def process(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def processes(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.process == 0

    @contextmanager
    def adding(self, last: bool) -> Iterator[None]:
        """Run forward and backward pass of a micro-batch; gradients are added over processes with the last one only."""
        model: Any = self.model
        if last or self.processes == 1:
            yield
        elif is_sharded(model):
            model.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)
        else:
            with model.no_sync():
                yield

    def moved(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a batch with its tensors on the device."""
        if self.device.type == "cpu":
            return batch
        from accelerate.utils import send_to_device

        found: Mapping[str, Any] = send_to_device(batch, self.device, non_blocking=True)
        return found

    def set_rate(self, factor: float) -> None:
        """Set the learning rates to a factor of those that the optimizer began with."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def clip(self, limit: float | None) -> float:
        """Scale the gradients down to a norm of at most `limit`, and return the norm that they had."""
        self.accelerator.unscale_gradients()
        parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
        norm = whole(norm)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)


@contextmanager
def prepared(
    model: nn.Module,
    optimizer: MakeOptimizer,
    *,
    parallel: Parallel = "auto",
    trackers: Sequence[Any] = (),
    folder: Path | None = None,
) -> Iterator[Prepared]:
    """Prepare a model for the processes that were launched; afterwards it is the caller's again, trained.

    Parameters
    ----------
    model
        Trained in place. It moves to the device; under FSDP2 its parameters stay sharded.
    optimizer
        Makes the optimizer of the weights that ask for a gradient.
    parallel
        ``"auto"`` does what the launcher said, by default DDP; ``"fsdp"`` divides weights, gradients and optimizer
        state. With one process there is nothing to divide.
    trackers
        Names that Accelerate knows (``"tensorboard"``, ``"wandb"`` ...), or trackers of its kind.
    folder
        Where trackers put their files.

    Raises
    ------
    InputError
        The launcher asks for an engine with a loop of its own, a tracker is missing, or no weight asks for a gradient.
    """
    state = require("accelerate", "torch").state.AcceleratorState
    theirs = state._shared_state != {}
    accelerator = _accelerator(trackers, folder)
    kept = {name: model.__dict__[name] for name in MARKS if name in model.__dict__}
    try:
        yield _prepared(accelerator, model, optimizer, _sharded(accelerator, model, parallel))
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        for name in MARKS:
            model.__dict__.pop(name, None)
        model.__dict__.update(kept)
        if not theirs and accelerator.num_processes == 1:  # a later Accelerator may want another precision
            state._reset_state()


def _accelerator(trackers: Sequence[Any], folder: Path | None) -> Any:
    joined()
    accelerate = require("accelerate", "torch")
    utils = accelerate.utils
    _check_trackers(name for name in trackers if isinstance(name, str))
    accelerator = accelerate.Accelerator(
        gradient_accumulation_plugin=utils.GradientAccumulationPlugin(num_steps=1),
        # a component may use some weights only, and a step some components
        kwargs_handlers=[utils.DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )
    kind = accelerator.distributed_type.value
    if kind in OTHERS or (kind == "FSDP" and not accelerator.is_fsdp2):
        fix = "launch with DDP or with FSDP version 2"
        raise InputError(f"the launcher asks for {kind}", where="accelerate launch", fix=fix)
    if trackers:
        accelerator.init_trackers("sanov")
    return accelerator


def _check_trackers(names: Iterable[str]) -> None:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known, here = set(LoggerType.list()) - {"all"}, {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise InputError(f"the tracker is {name!r}", where="trackers", expected=" | ".join(sorted(known)))
        if name not in here:
            raise InputError("is not installed", where=f"the tracker {name}", fix=f"pip install {name}")


def _sharded(accelerator: Any, model: nn.Module, parallel: Parallel) -> bool:
    """Whether weights are sharded by us: Accelerate does so on some devices only, and else falls back to DDP."""
    if is_sharded(model):
        return True
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if parallel == "ddp" and asked:
        raise InputError("the launcher asks for FSDP", where="parallel", expected="auto or fsdp")
    wanted = parallel == "fsdp" or (parallel == "auto" and asked)
    return wanted and accelerator.num_processes > 1 and not accelerator.is_fsdp2


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of a model's weights."""
    return hasattr(model, "set_requires_gradient_sync")  # what FSDP2 adds to a module


def _prepared(accelerator: Any, model: nn.Module, make: MakeOptimizer, sharded: bool) -> Prepared:
    model.train()
    if not (accelerator.is_fsdp2 or is_sharded(model)):
        model.to(accelerator.device)
    if sharded and not is_sharded(model):  # it is, where it was trained before
        _shard(accelerator, model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise InputError("no weight asks for a gradient", where="the model", fix="unfreeze what is to be trained")
    optimizer = make(weights)
    if sharded:
        return Prepared(accelerator, model, model, optimizer, optimizer.step)
    wrapped, wrapper = accelerator.prepare(model, optimizer)
    step = optimizer.step if accelerator.scaler is None else wrapper.step
    return Prepared(accelerator, wrapped, model, optimizer, step)


def _shard(accelerator: Any, model: nn.Module) -> None:
    """Divide the weights over all processes: each block that the model names as one, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if accelerator.mixed_precision not in {"no", "bf16"}:
        raise InputError(f"mixed precision is {accelerator.mixed_precision}", where="fsdp", expected="no or bf16")
    for values in [*model.parameters(), *model.buffers()]:
        dist.broadcast(values.detach(), src=0)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    inside = outside = MixedPrecisionPolicy()
    if accelerator.mixed_precision == "bf16":  # losses are computed in single precision
        inside = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        outside = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in list(model.modules()):
        if type(module).__name__ in blocks and module is not model:
            fully_shard(module, mesh=mesh, mp_policy=inside)
    fully_shard(model, mesh=mesh, mp_policy=outside)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; all of them must call it where it is divided."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
