"""Checkpoints: written whole or not at all, checked by their digests, and refused by another run.

A checkpoint is a folder ``step-00000100`` with the weights that change (``weights.safetensors``), the optimizer's state
(``optimizer.pt``, tensors and numbers only), the history, and what the run is (``run.json``). ``seal.json`` has the
digest of each file. There is no state of random numbers, schedules or data in it: those are functions of seed and step.
Weights and optimizer's state are of the whole model, whatever the number of processes.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.learning.history import History
from sanov.learning.parallel import Prepared, whole
from sanov.learning.processes import every_process

__all__ = ["Checkpoints", "Publish", "full_weights", "load_weights"]

WEIGHTS, OPTIMIZER, HISTORY, RUN, SEAL = "weights.safetensors", "optimizer.pt", "history.json", "run.json", "seal.json"
NAME = re.compile(r"step-\d{8,}")
Publish = Callable[[History], Callable[[Path], None] | None]


class Checkpoints:
    """The checkpoints of one run in one folder.

    Parameters
    ----------
    folder
        Made where it is missing. Every process must see it.
    keep
        How many of the newest stay.
    run
        What the run is: a tree that must be the same where it is resumed.
    setup
        The model that is trained.
    publish
        See `training.train`.
    lengthen
        Whether a run of fewer steps may be resumed.

    Raises
    ------
    InputError
        The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        run: Mapping[str, Any],
        setup: Prepared,
        *,
        publish: Publish | None = None,
        lengthen: bool = False,
    ):
        self.folder, self.keep, self.run, self.setup = folder, keep, files.plain(run), setup
        self.publish, self.lengthen = publish, lengthen
        self.kept: list[Path] = []
        with suppress(OSError):  # the check says why
            folder.mkdir(parents=True, exist_ok=True)
        files.check_writable(folder, folder=True)

    def save(self, history: History) -> None:
        """Write a checkpoint, then drop the oldest, and those of an earlier run. All processes must call it."""
        main = self.setup.main
        weights = full_weights(self.setup.inner, trained_only=True, here=main)
        state = _full_state(self.setup.inner, self.setup.optimizer, here=main)
        scaler = self.setup.accelerator.scaler
        state["scaler"] = None if scaler is None else scaler.state_dict()
        write = None if self.publish is None else self.publish(history)
        if main:
            path = self.folder / f"step-{len(history):08d}"
            with files.atomic_folder(path) as temporary:
                save_file(weights, temporary / WEIGHTS)
                torch.save(state, temporary / OPTIMIZER)
                files.write_json(temporary / HISTORY, history.to_dict())
                files.write_json(temporary / RUN, self.run)
                files.write_json(temporary / SEAL, _digests(temporary))
                if write is not None:
                    write(temporary)
            self.kept = [*self.kept, path][-self.keep :]
            for old in set(_found(self.folder)) - set(self.kept):
                shutil.rmtree(old, ignore_errors=True)
        every_process(None)  # nobody goes on, and perhaps ends, before it is written

    def open(self, resume: bool) -> History:
        """Begin anew, or go on from the newest checkpoint that is undamaged, if there is one.

        Raises
        ------
        InputError
            It is of another run, all are damaged, or an unfinished run would be overwritten.
        """
        if not resume:
            refuse_unfinished(self.folder)
            if self.setup.main:
                for old in _found(self.folder):  # of a finished run: a later resume must not take them for this one's
                    shutil.rmtree(old)
            return History()
        name = every_process(self._newest() if self.setup.main else None)[0]
        if name is None:
            return History()
        path = self.folder / name
        if not path.is_dir():
            fix = "use a folder that all machines share"
            raise InputError("is not seen by every process", where=str(path), fix=fix)
        self._check_run(path)
        self.kept = [found for found in _found(self.folder) if found.name <= name][-self.keep :]
        load_weights(self.setup.inner, load_file(path / WEIGHTS))
        shared = self.setup.processes > 1  # a machine then reads the file once for all of its processes
        state = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True, mmap=shared)
        _load_state(self.setup.inner, self.setup.optimizer, state)
        if self.setup.accelerator.scaler is not None and state["scaler"] is not None:
            self.setup.accelerator.scaler.load_state_dict(state["scaler"])
        history = History.from_dict(files.read_json(path / HISTORY))
        if len(history) == files.read_json(path / RUN).get("steps") != self.run.get("steps"):
            history.finished = False  # it came to its end, which now is a later one
        return history

    def _newest(self) -> str | None:
        """Return the name of the newest checkpoint that is undamaged, with a warning for each newer one."""
        found = _found(self.folder)
        for path in reversed(found):
            damage = _damage(path)
            if damage is None:
                return path.name
            text = f"{path}: the checkpoint is damaged ({damage}); the one before it is used instead"
            warnings.warn(text, SanovWarning, stacklevel=4)
        if found:
            fix = "delete the folder to begin anew"
            raise InputError("every checkpoint is damaged", where=str(self.folder), fix=fix)
        return None

    def _check_run(self, path: Path) -> None:
        theirs = files.read_json(path / RUN)
        for name, ours in self.run.items():
            if name == "steps" and self.lengthen and theirs.get(name, ours) <= ours:
                continue
            if theirs.get(name) != ours:
                raise InputError(
                    f"is of a run with {name} = {_short(theirs.get(name))}",
                    where=str(path),
                    expected=_short(ours),
                    fix="resume with the options of that run, or choose another folder",
                )


def refuse_unfinished(folder: Path) -> None:
    """Raise where an unfinished run would be overwritten; one that is finished may be.

    Raises
    ------
    InputError
        The newest undamaged checkpoint is of an unfinished run.
    """
    for path in reversed(_found(folder)):
        if _damage(path) is None:
            if not files.read_json(path / HISTORY)["finished"]:
                fix = "resume it (--resume), choose another folder, or delete this one"
                raise InputError(f"holds an unfinished run ({path.name})", where=str(folder), fix=fix)
            return


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _digests(folder: Path) -> dict[str, str]:
    return {name: files.digest(folder / name) for name in (WEIGHTS, OPTIMIZER, HISTORY, RUN)}


def _damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint; None if nothing is."""
    try:
        sealed = files.read_json(path / SEAL)
        changed = [name for name, digest in _digests(path).items() if sealed.get(name) != digest]
    except (InputError, AttributeError) as error:
        return str(error)
    return f"{changed[0]} is not what {SEAL} says" if changed else None


# -- weights and optimizer state of the whole model -------------------------------------------------------------------


def full_weights(model: nn.Module, *, trained_only: bool = False, here: bool = True) -> dict[str, Tensor]:
    """Copy the weights and buffers to the CPU, whole also where they are sharded. All processes must call it.

    Parameters
    ----------
    model
        As it was given to `train`.
    trained_only
        Leave out the weights that ask for no gradient.
    here
        Whether this process wants them; one that does not helps the others and gets nothing.
    """
    frozen = {name for name, weight in _weights(model) if not weight.requires_grad} if trained_only else set()
    state = {name: values for name, values in model.state_dict().items() if name not in frozen}
    gathered = ((name, whole(values)) for name, values in state.items())
    return {name: _copy(values).contiguous() for name, values in gathered if here}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model what `full_weights` returned, also where it is sharded. All processes must call it.

    Raises
    ------
    InputError
        The weights are not those of this model.
    """
    state = model.state_dict()
    needed = set(state) - {name for name, weight in _weights(model) if not weight.requires_grad}
    wrong = (set(weights) - set(state)) | (needed - set(weights))
    wrong |= {name for name, values in weights.items() if name in state and values.shape != state[name].shape}
    if wrong:
        raise InputError(f"the weights are not those of this model ({min(wrong)} differs)", where="the checkpoint")
    with torch.no_grad():
        for name, values in weights.items():
            state[name].copy_(_like(values, state[name]))


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from model.named_parameters(remove_duplicate=False)


def _names(model: nn.Module, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """Return the optimizer's weights with their names, in its order."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [(names[id(weight)], weight) for weight in weights]


def _full_state(model: nn.Module, optimizer: Optimizer, *, here: bool) -> dict[str, Any]:
    """Return the optimizer's state by the names of the weights."""
    tree = optimizer.state_dict()
    names = [name for name, _ in _names(model, optimizer)]
    state: dict[str, dict[str, Any]] = {name: {} for name in names}
    for place, values in tree["state"].items():
        for key, value in values.items():
            found = whole(value) if isinstance(value, Tensor) else value
            if here:
                state[names[place]][key] = _copy(found) if isinstance(found, Tensor) else found
    return {"state": state, "names": names, "param_groups": tree["param_groups"]}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _load_state(model: nn.Module, optimizer: Optimizer, tree: Mapping[str, Any]) -> None:
    weights = _names(model, optimizer)
    if [name for name, _ in weights] != tree["names"]:
        fix = "give it the weights that it had in that run"
        raise InputError("the optimizer is of other weights", where="the checkpoint", fix=fix)
    state = {
        place: {key: _like(value, weight) for key, value in tree["state"][name].items()}
        for place, (name, weight) in enumerate(weights)
        if tree["state"][name]
    }
    optimizer.load_state_dict({"state": state, "param_groups": tree["param_groups"]})


def _like(value: Any, weight: Tensor) -> Any:
    """Shard a value as the weight is that it belongs to; other values are what they are."""
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(weight.device), mesh, weight.placements, src_data_rank=None)  # type: ignore[attr-defined]
