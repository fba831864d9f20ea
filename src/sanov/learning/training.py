"""The only training loop.

It knows no method: a method gives it batches as a function of the step, and named sums over their rows. Splitting a
step into micro-batches or over processes changes nothing for components that are sums over rows::

    objective = sum_c weight_c * (sum over micro-batches and processes of sum_c) / (the same sum of counts_c)

Counts are known before the forward pass, so that they are added up before the first gradient is taken. Everything
random inside a step follows from (seed, step, process), a schedule is a function of the step, and batches are one of
seed, step and weights: a run that was killed and resumed is bit for bit the run that was not, where the device computes
the same twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanov.core.errors import InputError, SanovWarning
from sanov.core.files import digest
from sanov.core.options import Options, option
from sanov.core.progress import quiet, track
from sanov.learning.batches import Shuffled, micro_batches, shuffled
from sanov.learning.checkpoints import Checkpoints, Publish, full_weights, load_weights
from sanov.learning.history import History
from sanov.learning.parallel import MakeOptimizer, Parallel, Prepared, prepared
from sanov.learning.processes import every_process, gathered, place
from sanov.learning.randomness import kept_random_states, seed_step
from sanov.learning.schedules import Kind, schedule
from sanov.learning.steps import Batch, Loss, Objective, Whole

__all__ = [
    "Batch",
    "History",
    "Shuffled",
    "Training",
    "full_weights",
    "gathered",
    "load_weights",
    "micro_batches",
    "place",
    "schedule",
    "shuffled",
    "train",
]


class Training(Options):
    """How something is trained; `train` takes the same as arguments."""

    learning_rate: float = option(1e-3, "Largest learning rate.", source="choice", gt=0)
    batch_size: int = option(64, "Rows of a step, on all processes together.", source="choice", unit="rows", ge=1)
    micro_batch: int = option(
        0, "Rows that are computed at once on a process; 0 for all of its share.", source="choice", unit="rows", ge=0
    )
    epochs: int = option(10, "How often each row is seen.", source="choice", ge=1)
    weight_decay: float = option(0.01, "Decoupled weight decay.", source="choice: that of torch's AdamW", ge=0)
    clip_norm: float | None = option(1.0, "Largest norm of the gradient; none for any.", source="choice", gt=0)
    schedule: Kind = option("constant", "Shape of the learning rate after the warm-up.", source="choice")
    warmup: float = option(0.0, "Share of the steps over which the learning rate rises.", source="choice", ge=0, lt=1)
    evaluate_every: int = option(0, "Steps between evaluations; 0 for once an epoch.", source="choice", ge=0)
    checkpoint_every: int = option(0, "Steps between checkpoints; 0 for one at the end.", source="choice", ge=0)
    parallel: Parallel = option(
        "auto", "How several processes share the work: as their launcher says, DDP, or FSDP2.", source="choice"
    )
    trackers: tuple[str, ...] = option((), "Where to log: tensorboard, wandb, mlflow, trackio ...", source="choice")

    def factor(self, steps: int) -> Callable[[int], float]:
        """Return the factor of the learning rate as a function of the step, for a run of so many steps."""
        return schedule(self.schedule, steps, self.warmup)


def train(
    model: nn.Module,
    batches: Callable[[int, nn.Module], Iterable[Batch]],
    loss: Loss,
    *,
    optimizer: MakeOptimizer,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    whole_batch: Collection[str] | Mapping[str, Whole] = (),
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    evaluate_start: bool = False,
    callbacks: Sequence[Callable[[int, Mapping[str, float]], object]] = (),
    out: str | Path | None = None,
    checkpoint_every: int = 0,
    keep: int = 2,
    publish: Publish | None = None,
    resume: bool = False,
    lengthen: bool = False,
    seed: int = 0,
    parallel: Parallel = "auto",
    trackers: Sequence[Any] = (),
) -> History:
    """Train a model in place.

    Parameters
    ----------
    model
        Put into training mode. Several processes begin with the weights of the first.
    batches
        ``batches(step, model)`` returns the micro-batches of this process for a step, which counts from 0: a function
        of seed, step and weights alone. Every process has as many as the others (`micro_batches` sees to it). Each is a
        mapping with tensors, which are moved to the device, and ``counts``: per component, what its sum will be divided
        by, once it is added over micro-batches and processes; a step whose counts are all zero has nothing to learn, and
        is skipped: weights and optimizer stay as they are. One of them may carry ``metrics``: numbers to log, the same on
        every process. The model is the caller's.
    loss
        ``loss(model, batch)`` returns per component ``(sum, weight)``: a sum over the micro-batch (a tensor of one
        number), never a mean, and a number or a function of the step. The model may be a wrapper: call it.
    optimizer
        Makes the optimizer from the weights that ask for a gradient.
    steps
        Number of updates.
    schedule
        The factor of the learning rate as a function of the step; see `sanov.learning.schedules`.
    clip_norm
        Largest norm of the gradient over all weights and processes.
    whole_batch
        Components that are no sums over rows. A step that has several micro-batches is refused. With several processes
        each computes such a component on its own rows (``{name: "own"}``; a mere name means the same, with a warning),
        or its loss takes the rows of all from `gathered` and returns the value for all of them
        (``{name: "gathered"}``).
    evaluate
        ``evaluate(model, updates)`` returns numbers to log: in evaluation mode, without gradient, on every process,
        of which the first one's are kept.
    evaluate_every
        Updates between evaluations; one more is made at the end.
    evaluate_start
        Whether one is made before the first update too.
    callbacks
        ``callback(updates, metrics)`` is called after every update, on every process with the same numbers; one that
        returns True ends the run.
    out
        Folder of the checkpoints, which every process must see.
    checkpoint_every
        Updates between checkpoints; one more is made at the end.
    keep
        How many checkpoints stay.
    publish
        ``publish(history)`` is called on every process for each checkpoint, and returns what writes further files into
        its folder, on the first process alone; such files are no part of what is resumed.
    resume
        Go on from the newest checkpoint in `out` that is undamaged; begin anew where there is none. The number of
        processes may be another one, DDP may follow on FSDP2 or the reverse; only random numbers then differ.
    lengthen
        Whether a run of fewer steps may be resumed: nothing that is a function of the step may depend on their number.
    seed
        Of everything random inside a step: the generators of Python, NumPy and torch are set from (seed, step, process)
        when it begins. Afterwards they are what they were before.
    parallel
        ``"auto"`` does what the launcher (``torchrun``, ``accelerate launch``) says; ``"fsdp"`` divides the weights
        over the processes, also on CPUs: they stay divided, and `full_weights` puts them together.
    trackers
        Names that Accelerate knows, such as ``"tensorboard"``, or trackers of its kind. Mixed precision is the
        launcher's, or that of an ``accelerate.Accelerator`` which the caller made.

    Returns
    -------
    History of the whole run, the same on every process.

    Raises
    ------
    InputError
        An argument is out of range; `out` cannot be written, or holds an unfinished run and `resume` is False; the
        checkpoint is of another run; processes differ in micro-batches or components; a whole batch is split; a loss
        is not finite. Weights are then those of the last update. If it came from `batches`, as from a server that is
        gone, a single process writes a checkpoint of that update first: the run goes on from there with `resume`.
    """
    _check(steps, keep, evaluate_every, checkpoint_every, clip_norm)
    folder = None if out is None else Path(out)
    with (
        prepared(model, optimizer, parallel=parallel, trackers=trackers, folder=folder) as setup,
        kept_random_states(setup.device),
        quiet(not setup.main),
    ):
        objective = Objective(loss, _modes(whole_batch, setup))
        run = _run(setup, seed, steps, clip_norm)
        how: dict[str, Any] = {"publish": publish, "lengthen": lengthen}
        store = None if folder is None else Checkpoints(folder, keep, run, setup, **how)
        history = History() if store is None else store.open(resume)
        objective.names = tuple(history.losses)
        if evaluate is not None and evaluate_start and not len(history):
            history.evaluations[0] = _evaluated(evaluate, setup.inner, 0)
        label = f"training, resumed at step {len(history)}" if len(history) else "training"
        for step in track(range(len(history), 0 if history.finished else steps), label):
            seed_step(seed, step, setup.process, setup.device)
            setup.set_rate(1.0 if schedule is None else float(schedule(step)))
            micro = _made(batches, step, setup, store, history)
            report = next((batch["metrics"] for batch in micro if "metrics" in batch), None)
            metrics = history.append(*objective.update(setup, micro, step, clip_norm), report)
            done = step + 1
            if evaluate is not None and _due(done, steps, evaluate_every):
                history.evaluations[done] = _evaluated(evaluate, setup.inner, done)
                metrics |= history.evaluations[done]
            stops = [callback(done, metrics) is True for callback in callbacks]
            history.finished = done == steps or any(stops)
            if trackers:
                setup.accelerator.log(metrics, step=done)
            if store is not None and (history.finished or _due(done, steps, checkpoint_every)):
                store.save(history)
            if history.finished:
                break
    return history


def _made(
    batches: Callable[[int, nn.Module], Iterable[Batch]],
    step: int,
    setup: Prepared,
    store: Checkpoints | None,
    history: History,
) -> list[Batch]:
    """Return the micro-batches of a step; where they cannot be made, first save what the steps before have learned.

    Nothing of the step has touched the weights yet. Of several processes one may fail alone, and a checkpoint needs all.
    """
    try:
        return list(batches(step, setup.inner))
    except InputError:
        if store is not None and len(history) and setup.processes == 1:
            store.save(history)
        raise


def _check(steps: int, keep: int, evaluate_every: int, checkpoint_every: int, clip_norm: float | None) -> None:
    least = {"steps": (steps, 1), "keep": (keep, 1)}
    least |= {"evaluate_every": (evaluate_every, 0), "checkpoint_every": (checkpoint_every, 0)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise InputError(f"the value is {value}", where=name, expected=f"a whole number >= {bound}")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"the value is {clip_norm}", where="clip_norm", expected="a number > 0, or none")


def _due(done: int, steps: int, every: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _modes(whole_batch: Collection[str] | Mapping[str, Whole], setup: Prepared) -> Mapping[str, Whole]:
    """Return how each component that is no sum over rows sees the rows of several processes."""
    if isinstance(whole_batch, Mapping):
        for name, mode in whole_batch.items():
            if mode not in ("own", "gathered"):
                raise InputError(f"{name!r} is {mode!r}", where="whole_batch", expected="own or gathered")
        return whole_batch
    if whole_batch and setup.processes > 1 and setup.main:
        names = ", ".join(map(repr, whole_batch))
        warnings.warn(
            f"each of the {setup.processes} processes computes {names} on its own rows of a step, not on all of them; "
            'whole_batch={name: "own"} says that this is meant',
            SanovWarning,
            stacklevel=3,
        )
    return dict.fromkeys(whole_batch, "own")


def _run(setup: Prepared, seed: int, steps: int, clip_norm: float | None) -> dict[str, Any]:
    """Return what a run is, as far as the loop can see it: a checkpoint of another one is refused."""
    shapes = {name: list(weight.shape) for name, weight in setup.inner.named_parameters()}
    run = {"seed": seed, "steps": steps, "clip_norm": clip_norm, "weights (a digest)": digest(shapes)}
    run["optimizer"] = type(setup.optimizer).__name__
    for number, group in enumerate(setup.optimizer.param_groups):
        run |= {f"group {number} {name}": repr(value) for name, value in group.items() if name != "params"}
    return run


def _evaluated(
    evaluate: Callable[[nn.Module, int], Mapping[str, float]], model: nn.Module, done: int
) -> dict[str, float]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            found = {name: float(value) for name, value in evaluate(model, done).items()}
    finally:
        for module, mode in modes:
            module.training = mode
    return every_process(found)[0]
