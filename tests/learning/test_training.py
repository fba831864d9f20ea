"""The training loop: what is divided by what, what is refused, what is random, what it costs."""

import json
import math
import random
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from torch import nn

from learning.toy_run import batches_of, data, loss, net, random_state, run, sgd, vector
from sanov.core import files
from sanov.core.errors import InputError
from sanov.learning.history import History
from sanov.learning.processes import joined
from sanov.learning.randomness import kept_random_states, seed_step
from sanov.learning.schedules import schedule
from sanov.learning.training import Training, gathered, micro_batches, place, shuffled, train

# -- the objective ----------------------------------------------------------------------------------------------------


def test_one_step_follows_the_gradient_of_the_weighted_means():
    model, reference = net(), net()
    batch = next(iter(batches_of(batch_size=11)(0, model)))
    value, logits = reference(batch["x"])
    labelled = batch["labels"] >= 0
    mean_value = (value - batch["y"]).square().sum() / 11
    mean_label = nn.functional.cross_entropy(logits[labelled], batch["labels"][labelled])
    (0.7 * mean_value + mean_label).backward()
    expected = {name: w - 0.1 * (0 if w.grad is None else w.grad) for name, w in reference.named_parameters()}

    _, history = run(model, batches_of(batch_size=11), optimizer=sgd, steps=1, clip_norm=None)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-13, atol=1e-15)
    assert history.losses["value"] == [pytest.approx(mean_value.item(), rel=1e-13)]
    assert history.losses["label"] == [pytest.approx(mean_label.item(), rel=1e-13)]
    assert history.totals == [pytest.approx((0.7 * mean_value + mean_label).item(), rel=1e-13)]


def test_a_weight_may_be_a_function_of_the_step():
    _, history = run(clip_norm=None)
    values, labels = history.losses["value"], history.losses["label"]
    expected = [0.7 * values[t] + labels[t] / (1 + t) for t in range(10)]
    np.testing.assert_allclose(history.totals, expected, rtol=1e-13)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_micro_batches_are_one_batch(micro_batch):
    """8 x 1 = 1 x 8, though the two terms count different rows in every micro-batch."""
    whole, whole_history = run(batches=batches_of(8))
    split, split_history = run(batches=batches_of(8, micro_batch))
    torch.testing.assert_close(vector(split), vector(whole), rtol=1e-12, atol=1e-12)
    for name in ("value", "label"):
        np.testing.assert_allclose(split_history.losses[name], whole_history.losses[name], rtol=1e-12)
    np.testing.assert_allclose(split_history.grad_norms, whole_history.grad_norms, rtol=1e-12)


def test_a_component_that_counts_nothing_adds_nothing():
    def unlabelled(step, model):
        for batch in batches_of()(step, model):
            yield batch | {"labels": torch.full_like(batch["labels"], -1), "counts": batch["counts"] | {"label": 0}}

    def alone(model, batch):
        return {"value": loss(model, batch)["value"]}

    def counted_alone(step, model):
        for batch in batches_of()(step, model):
            yield batch | {"counts": {"value": batch["counts"]["value"]}}

    both, history = run(batches=unlabelled, optimizer=sgd)
    one, _ = run(batches=counted_alone, loss=alone, optimizer=sgd)
    torch.testing.assert_close(vector(both), vector(one), rtol=1e-13, atol=1e-15)
    assert all(math.isnan(value) for value in history.losses["label"])
    assert all(math.isfinite(value) for value in history.totals)


def test_clipping_is_that_of_torch():
    model, reference = net(), net()
    batch = next(iter(batches_of()(0, model)))
    sums = loss(reference, batch)
    (0.7 * sums["value"][0] / 7 + sums["label"][0] / batch["counts"]["label"]).backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    sgd(reference.parameters()).step()
    _, history = run(model, optimizer=sgd, steps=1, clip_norm=0.05)
    torch.testing.assert_close(vector(model), vector(reference), rtol=1e-12, atol=1e-15)
    assert history.grad_norms == [pytest.approx(float(norm), rel=1e-12)]
    assert float(norm) > 0.05


def test_frozen_and_unused_weights_stay():
    model, _ = run()
    start = net()
    for name in ("frozen.weight", "unused.weight"):
        assert torch.equal(model.get_parameter(name), start.get_parameter(name))
    assert not torch.equal(model.value.weight, start.value.weight)


# -- schedules, batches, options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_schedules_have_closed_forms(kind, warmup):
    steps, rising = 50, round(50 * warmup)
    found = [schedule(kind, steps, warmup)(step) for step in range(steps)]
    t = np.arange(steps - rising) / (steps - rising)
    falling = {"constant": np.ones_like(t), "linear": 1 - t, "cosine": np.cos(np.pi * t / 2) ** 2}[kind]
    np.testing.assert_allclose(found[:rising], np.arange(1, rising + 1) / max(rising, 1))
    np.testing.assert_allclose(found[rising:], falling, atol=1e-15)
    assert min(found) > 0


def test_a_schedule_scales_the_learning_rates():
    seen = []

    def optimizer(weights):
        weights = list(weights)
        groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.01}]
        made = torch.optim.SGD(groups)
        made.register_step_post_hook(lambda *_: seen.append([group["lr"] for group in made.param_groups]))
        return made

    factor = Training(schedule="cosine", warmup=0.3).factor(10)
    run(optimizer=optimizer, schedule=factor)
    np.testing.assert_allclose(seen, [[0.1 * factor(step), 0.01 * factor(step)] for step in range(10)])


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    order = shuffled(23, 5, seed=3)
    assert order.steps_per_epoch == 5
    epochs = [np.concatenate([order(5 * epoch + batch) for batch in range(5)]) for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(23))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(order(11), shuffled(23, 5, seed=3)(11))
    assert not np.array_equal(order(11), shuffled(23, 5, seed=4)(11))
    rows = order(0)
    rows[:] = -1
    assert order(0).min() >= 0


def test_a_smaller_last_batch_can_be_dropped():
    order = shuffled(23, 5, seed=3, drop_last=True)
    assert order.steps_per_epoch == 4
    assert [len(order(step)) for step in range(8)] == [5] * 8
    with pytest.raises(InputError, match="make no batch"):
        shuffled(4, 5, seed=0, drop_last=True)
    with pytest.raises(InputError, match="0 rows"):
        shuffled(0, 5, seed=0)


@pytest.mark.parametrize(("rows", "size", "expected"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (5, 0, [5]), (0, 3, [0])])
def test_micro_batches_divide_the_rows(rows, size, expected):
    parts = micro_batches(np.arange(rows), size)
    assert [len(part) for part in parts] == expected
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(rows))


@pytest.mark.parametrize("wrong", [{"warmup": 1.0}, {"batch_size": 0}, {"schedule": "step"}, {"clip_norm": 0}])
def test_options_have_ranges(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Training(**wrong)


def test_one_process_is_all_there_are():
    assert place() == (0, 1)
    rows = torch.ones(3, 2)
    assert gathered(rows) is rows


def test_processes_that_cannot_talk_are_refused(monkeypatch):
    """What Accelerate says of itself where a launcher's processes have no backend: each of them is the only one."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes were started, but each is alone"):
        joined()


# -- randomness -------------------------------------------------------------------------------------------------------


def test_dropout_follows_from_the_seed_and_disturbs_nothing():
    state = random_state()
    first, _ = run(net(dropout=0.5), seed=1)
    assert random_state() == state
    torch.rand(3)
    random.random()
    again, _ = run(net(dropout=0.5), seed=1)
    other, _ = run(net(dropout=0.5), seed=2)
    assert torch.equal(vector(first), vector(again))
    assert not torch.equal(vector(first), vector(other))


def test_random_numbers_of_a_step_do_not_depend_on_those_before():
    def drawn(extra):
        seen = []

        def batches(step, model):
            if step == 1 and extra:
                torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
            seen.append((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002
            return batches_of()(step, model)

        run(batches=batches, steps=4)
        return seen

    plain, disturbed = drawn(extra=False), drawn(extra=True)
    assert plain[2:] == disturbed[2:]
    assert plain[1] != disturbed[1]
    assert len({number for step in plain for number in step}) == 12


def test_random_states_are_restored_after_an_error():
    state, python = random_state(), random.getstate()

    def fail():
        with kept_random_states(torch.device("cpu")):
            seed_step(0, 1, 2, torch.device("cpu"))
            assert random.getstate() != python
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert random_state() == state
    assert random.getstate() == python


# -- evaluations, callbacks, trackers ---------------------------------------------------------------------------------


def test_evaluations_are_made_in_evaluation_mode_and_leave_modes_alone():
    model = net()
    seen = []

    def evaluate(model, updates):
        seen.append((updates, model.training, torch.is_grad_enabled()))
        return {"score": torch.tensor(2.0 * updates)}

    def batches(step, model):
        model.frozen.eval()
        assert model.training
        return batches_of()(step, model)

    _, history = run(model, batches, evaluate=evaluate, evaluate_every=4)
    assert seen == [(4, False, False), (8, False, False), (10, False, False)]
    assert history.evaluations == {4: {"score": 8.0}, 8: {"score": 16.0}, 10: {"score": 20.0}}
    assert model.training
    assert not model.frozen.training


def test_callbacks_see_what_the_frame_holds_and_may_end_the_run():
    seen = []

    def callback(updates, metrics):
        seen.append(metrics)
        return updates == 6

    _, history = run(evaluate=lambda model, updates: {"score": 1.0}, evaluate_every=3, callbacks=[callback])
    frame = history.to_frame()
    assert len(history) == len(frame) == 6
    assert history.finished
    assert frame.columns == ["step", "loss", "loss_value", "loss_label", "grad_norm", "score"]
    assert frame["score"].to_list() == [None, None, 1.0, None, None, 1.0]
    for step, metrics in enumerate(seen):
        assert {"step": step + 1} | metrics == {n: v for n, v in frame.row(step, named=True).items() if v is not None}


def test_history_survives_json():
    history = History({"a": [0.1, math.nan]}, [1 / 3, 1e-300], [2.0, 3.0], {2: {"score": 0.5}}, finished=True)
    found = History.from_dict(json.loads(files.to_json(history.to_dict())))
    assert math.isnan(found.losses["a"].pop())
    history.losses["a"].pop()
    assert found == history


class Memory(GeneralTracker):
    name, requires_logging_directory = "memory", False

    def __init__(self):
        super().__init__()
        self.logged, self.finished = [], False

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_trackers_get_every_step():
    memory = Memory()
    _, history = run(trackers=[memory], steps=3)
    assert [step for step, _ in memory.logged] == [1, 2, 3]
    assert [values["loss"] for _, values in memory.logged] == history.totals
    assert memory.finished


def test_a_tracker_that_is_not_there():
    absent = next(name for name in LoggerType.list() if name not in map(str, [*get_available_trackers(), "all"]))
    with pytest.raises(InputError, match=f"{absent}: is not installed"):
        run(trackers=[absent])
    with pytest.raises(InputError, match=r"the tracker is 'tensorbord'; expected .*tensorboard"):
        run(trackers=["tensorbord"])


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_accelerate():
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("fresh_accelerate")
def test_mixed_precision_is_the_callers_and_leaves_the_model_as_it_was():
    Accelerator(mixed_precision="bf16")
    model, seen = net().float(), []
    model.value.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def single(model, batch):
        return loss(model, {"x": batch["x"].float(), "y": batch["y"].float(), "labels": batch["labels"]})

    run(model, loss=single, steps=2)
    assert set(seen) == {torch.bfloat16}
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(model))
    seen.clear()
    model(data()[0].float())
    assert seen == [torch.float32]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_later_accelerator_may_choose_its_precision():
    run(steps=1)
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_whole_batch_is_not_split():
    run(whole_batch=("label",))
    for whole_batch in (("label",), {"label": "own"}, {"label": "gathered"}):
        with pytest.raises(InputError, match=r"'label' is no sum over rows, and the batch is split.*micro_batch=0"):
            run(batches=batches_of(8, 4), whole_batch=whole_batch)


def test_a_loss_that_is_not_finite_names_step_and_component():
    model, weights = net(), []

    def exploding(model, batch):
        weights.append(vector(model))
        sums = loss(model, batch)
        return sums | {"label": (sums["label"][0] * (math.nan if len(weights) == 3 else 1.0), 1.0)}

    with pytest.raises(InputError, match=r"step 3: the loss of 'label' is nan.*learning rate"):
        run(model, loss=exploding)
    assert torch.equal(vector(model), weights[-1])


def test_a_gradient_that_is_not_finite_is_named():
    def kink(model, batch):
        value, _ = model(batch["x"])
        return {"value": ((0 * value).square().sum().sqrt(), 1.0), "label": (value.sum(), 1.0)}

    with pytest.raises(InputError, match="step 1: the norm of the gradient is nan"):
        run(loss=kink)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: the value is 0"),
        ({"keep": 0}, "keep: the value is 0"),
        ({"evaluate_every": -1}, "evaluate_every: the value is -1"),
        ({"clip_norm": -1.0}, "clip_norm: the value is -1.0"),
        ({"whole_batch": ("lable",)}, "whole_batch: 'lable' is no component; expected label, value"),
        ({"whole_batch": "label"}, "whole_batch: 'l' is no component"),
        ({"whole_batch": {"label": "gather"}}, "whole_batch: 'label' is 'gather'; expected own or gathered"),
        ({"loss": lambda model, batch: {"value": loss(model, batch)["value"]}}, "the loss has value; expected .*label"),
        ({"loss": lambda model, batch: dict.fromkeys(("value", "label"), (model(batch["x"])[0], 1.0))}, "shape"),
        ({"batches": lambda step, model: ()}, "step 1: the processes have 0 micro-batches"),
        ({"model": net().requires_grad_(False)}, "no weight asks for a gradient"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)


def test_components_are_the_same_in_every_step():
    def fewer(step, model):
        for batch in batches_of()(step, model):
            yield batch if step < 2 else batch | {"counts": {"value": 1}}

    with pytest.raises(InputError, match="step 3: the components are value; expected label, value"):
        run(batches=fewer)


# -- cost -------------------------------------------------------------------------------------------------------------


def test_a_hundred_steps_cost_less_than_half_a_second():
    """On a net of 1,004 weights: several times what it takes on a machine that does nothing else."""
    x = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    order = shuffled(512, 32, seed=0)

    def batches(step, model):
        rows = torch.from_numpy(order(step))
        yield {"x": x[rows], "counts": {"value": len(rows)}}

    def square(model, batch):
        return {"value": (model(batch["x"]).square().sum(), 1.0)}

    def seconds():
        model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 4))
        start = time.process_time()
        train(model, batches, square, optimizer=torch.optim.AdamW, steps=100, clip_norm=1.0)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_gradients_of_before_do_not_count():
    """What a caller left in the weights, or a step that was refused."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def trained(before):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        before(model)
        batches = lambda step, _: [{"x": x, "counts": {"value": 8}}]  # noqa: E731
        loss = lambda model, batch: {"value": (model(batch["x"]).square().sum(), 1.0)}  # noqa: E731
        train(model, batches, loss, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.01), steps=1)
        return model.weight.detach()

    clean = trained(lambda model: None)
    assert torch.equal(trained(lambda model: model(x).sum().backward()), clean)
    assert torch.equal(trained(lambda model: (model(x) * float("inf")).sum().backward()), clean)
