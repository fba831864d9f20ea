"""Two processes compute what one does: DDP by Accelerate, FSDP2 by torch. One launch finds out everything."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from learning.toy_run import batches_of, data, loss, net, run, search_path, vector

PROCESSES = 2
PATIENCE = 120  # seconds after which the processes are given up


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(process, port, folder):
    place = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
    place |= {"PYTHONPATH": search_path(), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "learning.distributed_run", str(folder)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {name: str(value) for name, value in place.items()}, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left what they found."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    processes = [start(process, port, folder) for process in range(PROCESSES)]
    try:
        texts = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * PROCESSES, "\n".join(texts)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


def assert_same(found, model, history, rtol=1e-9):
    """Compare with a run in one process; far stricter than 1e-5, as everything is float64."""
    np.testing.assert_allclose(found["totals"], history.totals, rtol=rtol)
    for name, values in history.losses.items():
        np.testing.assert_allclose(found["losses"][name], values, rtol=rtol)
    np.testing.assert_allclose(found["grad_norms"], history.grad_norms, rtol=rtol)
    np.testing.assert_allclose(found["weights"], vector(model), rtol=rtol, atol=1e-12)


def test_processes_find_one_another(found):
    assert found["processes"] == PROCESSES


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "accelerate"])
def test_processes_compute_what_one_does(found, kind):
    """Of 7 rows one process has 4; an epoch ends with a batch of 1; two terms count different rows; gradients are cut."""
    assert_same(found[kind], *run(batches=batches_of(7)))


def test_sharded_weights_are_divided(found):
    assert found["fsdp"]["sharded"] == [True, True]
    assert found["accelerate"]["sharded"]


def test_counts_weigh_processes_with_unequal_rows(found):
    x, y, labels = (values[:3] for values in data())
    counts = {"value": 3, "label": int((labels >= 0).sum())}
    batch = {"x": x, "y": y, "labels": labels, "counts": counts}
    assert_same(found["uneven"], *run(batches=lambda step, model: [batch]))


def test_evaluations_are_those_of_the_first_process(found):
    for kind in ("ddp", "fsdp"):
        assert found[kind]["evaluations"] == {"10": {"process": 0.0}}


def test_a_checkpoint_of_ddp_is_resumed_by_fsdp(found):
    assert found["interrupted"] == [True, True]
    assert_same(found["resumed"], *run())


def test_a_checkpoint_of_fsdp_is_resumed_by_one_process(folder, found):
    model, history = run(out=folder / "b", resume=True)
    assert len(history) == 10
    expected, expected_history = run()
    assert_same({"weights": vector(model).tolist(), **history.to_dict()}, expected, expected_history)


def test_gathered_rows_give_the_whole_batch(found):
    def whole(model, batch):
        value, _ = model(batch["x"])
        return loss(model, batch) | {"label": (value.sum(dim=0).square().sum(), 0.01)}

    assert_same(found["gathered"], *run(loss=whole, steps=5))
    assert found["rows"] == [[0, 0], [1, 1], [1, 1]]


def test_a_whole_batch_on_own_rows_is_told_once(found):
    (first, second), acknowledged = found["warned"]
    assert len(first) == 1
    assert first[0].startswith("each of the 2 processes computes 'label' on its own rows")
    assert second == []
    assert acknowledged == [[], []]


def test_processes_draw_different_numbers(found):
    first, second = found["drawn"]
    assert first != second
    seen = []

    def batches(step, model):
        seen.append(torch.rand(()).item())
        return batches_of()(step, model)

    run(net(), batches, steps=1)
    assert seen == [first]


def test_all_processes_refuse_together(found):
    for messages, text in [
        (found["split"], "'label' is no sum over rows"),
        (found["lopsided"], "the processes have 1, 2 micro-batches"),
        (found["other"], "the components are c1; expected c0"),
    ]:
        assert messages[0] == messages[1]
        assert text in messages[0]


def test_whole_weights_are_loaded_into_divided_ones(found):
    saved, loaded = found["loaded"]
    assert saved == loaded


def test_mixed_precision_of_divided_weights(found):
    assert found["half"] == ["torch.float32", "torch.bfloat16"]


def test_the_launchers_fsdp_is_obeyed_on_cpus(found):
    assert found["launched"] == [True, "parallel: the launcher asks for FSDP; expected auto or fsdp."]


def test_the_first_process_asks_the_teacher_for_all(found):
    (calls, *first), (others, *second) = found["taught"]
    assert (calls, others) == (1, 0)
    assert first == second
    assert first[0] == [[1, 2, 3], [5, 6, 7], [9, 10, 11], [13, 14, 15], [17, 18, 19]]
