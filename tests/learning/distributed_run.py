"""What one of several processes finds out about the training loop: ``python -m learning.distributed_run FOLDER``.

The first process writes ``found.json``; the tests read it, and do the same in one process.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from learning.toy_run import batches_of, data, loss, net, run
from sanov.core.errors import InputError, SanovWarning
from sanov.learning import teachers
from sanov.learning.processes import every_process
from sanov.learning.training import full_weights, gathered, load_weights, place


def numbers(model, history):
    """Return what tests compare: weights of the whole model, and history."""
    weights = torch.cat([values.flatten() for values in full_weights(model).values()])
    return {"weights": weights.tolist(), **history.to_dict()}


def sharded(model):
    """Whether every weight is divided, and over how many processes the bodies are."""
    return all(isinstance(weight, DTensor) for weight in model.parameters()), hasattr(model.blocks[0], "unshard")


class Killed(Exception):
    pass


def interrupt(out, parallel):
    """Train until update 6, with a checkpoint at 5."""

    def die(updates, metrics):
        if updates == 6:
            raise Killed

    try:
        run(out=out, checkpoint_every=5, parallel=parallel, callbacks=[die])
    except Killed:
        return True
    return False


def whole_rows(model, batch):
    """Return the square of a sum over all rows, which is no sum over rows."""
    value, _ = model(batch["x"])
    rows = gathered(value)
    return loss(model, batch) | {"label": (rows.sum(dim=0).square().sum(), 0.01)}


def own_rows(step, model):
    """As many rows as the process has number: one, then two."""
    rows = torch.arange(3).tensor_split([1])[place()[0]]
    x, y, labels = data()
    counts = {"value": len(rows), "label": int((labels[rows] >= 0).sum())}
    yield {"x": x[rows], "y": y[rows], "labels": labels[rows], "counts": counts}


def refused(**options):
    """Return the message with which every process stops, or nothing."""
    try:
        run(**options)
    except InputError as error:
        return every_process(str(error))
    return every_process("")


def drawn():
    """Return the first random number of each process."""
    seen = []

    def batches(step, model):
        seen.append(torch.rand(()).item())
        return batches_of()(step, model)

    run(batches=batches, steps=1, parallel="ddp")
    return every_process(seen[0])


def warned(whole_batch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(whole_batch=whole_batch, steps=2)
    texts = [str(warning.message) for warning in caught if warning.category is SanovWarning]
    return every_process(texts)


def loaded():
    """Train on, sharded, from weights that were put together; return both."""
    model, _ = run(parallel="fsdp", steps=1)
    weights = full_weights(model)
    run(model, parallel="fsdp", steps=1)
    load_weights(model, weights)
    return [vector_of(weights), vector_of(full_weights(model))]


def vector_of(weights):
    return torch.cat([values.flatten() for values in weights.values()]).tolist()


def in_half_precision():
    """Return the types of weights and of what they compute, where the caller asked for mixed precision."""
    AcceleratorState._reset_state()
    Accelerator(mixed_precision="bf16")
    model, seen = net().float(), set()
    model.value.register_forward_hook(lambda module, inputs, output: seen.add(str(output.dtype)))

    def single(model, batch):
        return loss(model, {"x": batch["x"].float(), "y": batch["y"].float(), "labels": batch["labels"]})

    run(model, loss=single, parallel="fsdp", steps=2)
    AcceleratorState._reset_state()
    return [str(model.value.weight.dtype), *seen]


def as_launched_with_fsdp():
    """Do as under a launcher that asks for FSDP, which Accelerate ignores on CPUs; the environment stays so."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    model, _ = run(steps=1)
    return [sharded(model)[0], refused(parallel="ddp")[0]]


def as_accelerate_shards(out):
    """Do as on a device where Accelerate shards by itself; must be the last."""
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    model, history = run(batches=batches_of(7, 2), out=out)
    return numbers(model, history) | {"sharded": all(isinstance(weight, DTensor) for weight in model.parameters())}


def taught():
    """Return how often this process asked a teacher whose outputs are kept nowhere, and what it got."""
    calls = []

    def teacher(rows):
        calls.append(len(rows))
        return {"embeddings": rows, "head_weight": np.ones((2, 3)), "head_bias": np.arange(3.0)}

    found = teachers.outputs(teacher, np.arange(10.0).reshape(5, 2), embeddings=True)
    return [len(calls), found.logits.tolist(), found.embeddings.tolist(), found.head.bias.tolist()]


def main(folder):
    torch.set_num_threads(1)
    process, processes = place()
    found = {"processes": processes}
    try:
        options = {"evaluate": lambda model, updates: {"process": float(process)}}
        found["ddp"] = numbers(*run(batches=batches_of(7, 2), parallel="ddp", **options))
        model, history = run(batches=batches_of(7, 2), parallel="fsdp", **options)
        found["fsdp"] = numbers(model, history) | {"sharded": sharded(model)}
        found["uneven"] = numbers(*run(batches=own_rows))
        found["interrupted"] = [interrupt(folder / "a", "ddp"), interrupt(folder / "b", "fsdp")]
        found["resumed"] = numbers(*run(out=folder / "a", resume=True, parallel="fsdp"))
        found["gathered"] = numbers(*run(loss=whole_rows, whole_batch={"label": "gathered"}, steps=5))
        found["warned"] = [warned(("label",)), warned({"label": "own"})]
        found["drawn"] = drawn()
        found["split"] = refused(batches=batches_of(8, 2), whole_batch={"label": "own"})
        found["lopsided"] = refused(batches=lambda step, model: list(batches_of()(step, model)) * (1 + process))
        found["other"] = refused(batches=lambda step, model: [{"counts": {f"c{process}": 1}}])
        found["loaded"] = loaded()
        found["rows"] = gathered(torch.full((process + 1, 2), float(process))).tolist()
        found["taught"] = every_process(taught())
        found["half"] = in_half_precision()
        found["launched"] = as_launched_with_fsdp()
        found["accelerate"] = as_accelerate_shards(folder / "c")
        if process == 0:
            (folder / "found.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    np.seterr(all="raise")
    main(Path(sys.argv[1]))
