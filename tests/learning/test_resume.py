"""Checkpoints: a run that was killed and resumed is the run that was not, bit for bit; what is damaged is not used."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from learning.toy_run import adam, batches_of, long_run, net, random_state, run, search_path, sgd, vector
from sanov.core.errors import InputError, SanovWarning
from sanov.learning import parallel
from sanov.learning.history import History
from sanov.learning.training import full_weights, load_weights

STEPS = 60
PATIENCE = 120.0  # seconds after which a process that should have written is given up


@pytest.fixture(scope="module")
def uninterrupted():
    return long_run(STEPS, resume=False)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Folder of a run that was killed, by a signal, at a random moment after a random checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "checkpoints"
    target = random.randrange(2, 14)
    command = [sys.executable, "-m", "learning.killed_run", str(folder), str(STEPS), "50"]
    settings = {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        deadline = time.monotonic() + PATIENCE
        while max(numbers(folder), default=0) < 3 * target:
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    return folder


@pytest.fixture
def killed(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "checkpoints"))


def numbers(folder):
    """Steps of the checkpoints in a folder."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def numbers_of_checkpoints(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-[0-9]*"))


def spoil(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def assert_same(found, expected, first):
    """Compare weights, history and random numbers; those were drawn from a step on."""
    (model, history, drawn), (other, other_history, other_drawn) = found, expected
    assert torch.equal(vector(model), vector(other))
    assert str(history) == str(other_history)  # NaN is NaN there, and every digit counts
    assert drawn == other_drawn[first:]


# -- killed and resumed -----------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_the_same_bits(killed, uninterrupted):
    start, state = numbers(killed)[-1], random_state()
    assert 0 < start < STEPS
    assert_same(long_run(STEPS, out=killed), uninterrupted, start)
    assert random_state() == state


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "history.json", "run.json", "seal.json"])
def test_the_checkpoint_before_a_damaged_one_is_used(killed, uninterrupted, name):
    before, last = numbers(killed)[-2:]
    spoil(killed / f"step-{last:08d}" / name)
    with pytest.warns(SanovWarning, match=rf"step-{last:08d}: the checkpoint is damaged .*{name}"):
        found = long_run(STEPS, out=killed)
    assert_same(found, uninterrupted, before)


def test_a_checkpoint_that_lost_a_file_is_damaged(killed, uninterrupted):
    before, last = numbers(killed)[-2:]
    (killed / f"step-{last:08d}" / "optimizer.pt").unlink()
    with pytest.warns(SanovWarning, match="the checkpoint is damaged"):
        found = long_run(STEPS, out=killed)
    assert_same(found, uninterrupted, before)


def test_when_all_are_damaged_nothing_is_overwritten(killed):
    for path in killed.glob("step-*/weights.safetensors"):  # where the kill met a removal, it is gone already
        spoil(path)
    with pytest.warns(SanovWarning), pytest.raises(InputError, match="every checkpoint is damaged"):
        long_run(STEPS, out=killed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 6}, "is of a run with seed = 5; expected 6"),
        ({"steps": STEPS + 1}, f"is of a run with steps = {STEPS}; expected {STEPS + 1}"),
        ({"clip_norm": None}, "is of a run with clip_norm = 0.5; expected None"),
        ({"optimizer": sgd}, "is of a run with optimizer = 'AdamW'; expected 'SGD'"),
        ({"optimizer": lambda weights: adam(weights, lr=0.5)}, "is of a run with group 0 lr = '0.02'; expected '0.5'"),
    ],
)
def test_another_run_is_refused(killed, options, message):
    with pytest.raises(InputError, match=message):
        long_run(**({"steps": STEPS} | options), out=killed)
    assert numbers(killed)[-1] < STEPS


class Killed(Exception):
    pass


def die_at(step):
    def callback(updates, metrics):
        if updates == step:
            raise Killed

    return callback


@pytest.fixture
def unfinished(tmp_path):
    """Folder of a run that ended with an exception at update 5."""
    with pytest.raises(Killed):
        run(out=tmp_path / "run", checkpoint_every=2, callbacks=[die_at(5)])
    return tmp_path / "run"


def test_other_components_are_refused(unfinished):
    def renamed(step, model):
        for batch in batches_of()(step, model):
            yield batch | {"counts": {"other": 1}}

    with pytest.raises(InputError, match="step 5: the components are other; expected label, value"):
        run(batches=renamed, out=unfinished, resume=True)


def test_other_weights_are_refused(unfinished):
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.more = net(), nn.Linear(1, 1).double()

        def forward(self, x):
            return self.net(x)

    with pytest.raises(InputError, match="is of a run with weights"):
        run(Wider(), out=unfinished, resume=True)


# -- what is kept, and what is overwritten ----------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(tmp_path):
    run(out=tmp_path / "a", checkpoint_every=2, keep=3)
    assert numbers(tmp_path / "a") == [6, 8, 10]
    run(out=tmp_path / "b")
    assert numbers(tmp_path / "b") == [10]


def test_an_unfinished_run_is_not_overwritten(unfinished):
    with pytest.raises(InputError, match=r"holds an unfinished run \(step-00000004\). Resume it"):
        run(out=unfinished)
    assert numbers(unfinished) == [2, 4]


def test_a_finished_run_is_replaced_and_its_checkpoints_with_it(tmp_path):
    run(out=tmp_path, steps=10)
    _, history = run(out=tmp_path, steps=4, checkpoint_every=2)
    assert len(history) == 4
    assert numbers(tmp_path) == [2, 4]


def test_a_stopped_run_is_not_taken_for_the_finished_one_before_it(tmp_path):
    run(out=tmp_path, seed=1)
    with pytest.raises(Killed):
        run(out=tmp_path, seed=1, callbacks=[die_at(5)])
    assert numbers(tmp_path) == []


def test_other_folders_are_left_alone(tmp_path):
    notes = tmp_path / "step-by-step"
    notes.mkdir()
    run(out=tmp_path, checkpoint_every=2, keep=1)
    assert notes.is_dir()
    assert numbers_of_checkpoints(tmp_path) == [10]


def test_the_scale_of_gradients_is_resumed(tmp_path, monkeypatch):
    """Of half precision: the scaler doubles every third step here."""
    make, scales = parallel._accelerator, []

    def scaling(*arguments):
        accelerator = make(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        accelerator.native_amp = True
        scales.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(parallel, "_accelerator", scaling)
    run(out=tmp_path / "whole")
    with pytest.raises(Killed):
        run(out=tmp_path / "killed", checkpoint_every=4, callbacks=[die_at(5)])
    run(out=tmp_path / "killed", checkpoint_every=4, resume=True)
    assert scales[0].get_scale() == scales[2].get_scale() == 4.0 * 2**3


def test_resuming_where_nothing_is_begins_anew(tmp_path):
    found, _ = run(out=tmp_path / "a", resume=True)
    assert torch.equal(vector(found), vector(run()[0]))


def test_a_finished_run_is_not_trained_further(tmp_path):
    trained, history = run(out=tmp_path)
    found, again = run(out=tmp_path, resume=True, batches=lambda step, model: 1 / 0)
    assert torch.equal(vector(found), vector(trained))
    assert again == history
    assert again.finished


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    trained, history = run(out=tmp_path, callbacks=[lambda updates, metrics: updates == 4])
    found, again = run(out=tmp_path, resume=True)
    assert len(again) == len(history) == 4
    assert torch.equal(vector(found), vector(trained))


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(InputError, match="file"):
            run(out=out, batches=lambda step, model: 1 / 0)


# -- what is in a checkpoint ------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_was_trained_and_nothing_that_can_run(tmp_path):
    model, history = run(out=tmp_path)
    folder = tmp_path / "step-00000010"
    weights = load_file(folder / "weights.safetensors")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(weights) == trained
    assert all(torch.equal(weights[name], model.get_parameter(name)) for name in trained)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    assert set(state["state"]["value.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["state"]["unused.weight"] == {}
    assert History.from_dict(json.loads((folder / "history.json").read_text())) == history


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    def tied():
        model = net()
        model.blocks[1].linear.weight = model.blocks[0].linear.weight
        return model

    expected, _ = run(tied())
    with pytest.raises(Killed):
        run(tied(), out=tmp_path, checkpoint_every=3, callbacks=[die_at(7)])
    found, _ = run(tied(), out=tmp_path, resume=True)
    assert torch.equal(vector(found), vector(expected))
    assert found.blocks[0].linear.weight is found.blocks[1].linear.weight


def test_weights_are_copied_out_and_in():
    model, other = net(0), net(1)
    weights = full_weights(model)
    load_weights(other, weights)
    assert torch.equal(vector(other), vector(model))
    weights["value.bias"].zero_()
    assert model.value.bias.any()
    with pytest.raises(InputError, match=r"not those of this model \(value.bias differs\)"):
        load_weights(other, {name: values for name, values in weights.items() if name != "value.bias"})
    with pytest.raises(InputError, match=r"\(value.weight differs\)"):
        load_weights(other, weights | {"value.weight": torch.zeros(1)})
