"""The claim on `nola`: paired arms, equal budgets, controls that control, and a verdict that follows its rule."""

import numpy as np
import pytest
import torch

from sanov.claims import Cell, Record, judge
from sanov.core.charts import svg
from sanov.core.errors import InputError
from sanov.experiments import nola, nola_data
from sanov.experiments.nola_arms import GRIDS, PEFT, adapt
from sanov.experiments.nola_parts import ARMS, figures, parts
from sanov.systems.nola.controls import Coordinates, LowRank, damaged
from sanov.systems.nola.layers import adapted, attach, disabled
from sanov.systems.nola.reading import Texts
from systems.nola_toy import PLAN, stirred

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
PAPER = nola.CLAIM.presets["paper"]
TARGETS = ("query", "value")


# -- the design -------------------------------------------------------------------------------------------------------


def test_arms_that_decide_have_ten_seeds_and_all_the_same_trials():
    cells = PAPER.cells(range(10))
    compared = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "compare"]
    for data in ("rotten", "sst2"):
        assert {compared.count((data, arm)) for arm in nola.MAIN} == {10}
        assert {compared.count((data, arm)) for arm in nola.OTHERS} == {5}
    assert {compared.count(("e2e", arm)) for arm in nola.LANGUAGE} == {5}
    assert {arm for _, arm in compared} == set(ARMS) == set(GRIDS)
    trials = [(c.key["data"], c.key["arm"]) for c in cells if c.stage == "tune"]
    assert {trials.count(("rotten", arm)) for arm in ARMS if arm not in nola.TUNED_BY} == {5}
    assert {trials.count(("e2e", arm)) for arm in nola.LANGUAGE} == {3}
    assert all(len(set(grid)) == 5 for grid in GRIDS.values())
    assert nola._grid(GRIDS["nola"], "e2e", PAPER.settings) == GRIDS["nola"][1:4]


@pytest.mark.parametrize("data", ["rotten", "sst2", "e2e"])
def test_no_seed_trains_on_what_it_is_judged_by(data, data_folder):
    if reason := nola_data.unavailable(data) if data != "e2e" else None:
        pytest.skip(reason)
    rows = PAPER.settings["rows"][data]
    train, validation, test = (nola_data.split(data, part, 3, rows) for part in ("train", "validation", "test"))
    nola_data.refuse_shared(train, validation)
    nola_data.refuse_shared(train, test)
    nola_data.refuse_shared(validation, test)
    assert len(train) == rows["train"]
    if data == "e2e":
        assert len(set(test.prompts)) == 200
    else:
        assert 0.99 * rows["test"] < len(test) <= rows["test"]  # SST-2 says some sentences twice
        assert abs(np.mean(train.labels) - 0.5) < 0.03
    assert nola_data.split(data, "train", 4, rows).texts != train.texts


def test_shared_prompts_are_told_with_their_number_and_one():
    train, test = (Texts((t, "x"), prompts=(p, "c"), name=n) for t, p, n in (("a", "m", "train"), ("b", "m", "test")))
    with pytest.raises(InputError, match="test: 2 prompts are in train too, such as 'm'"):
        nola_data.refuse_shared(train, test)


def test_slot_errors():
    meaning = "name[The Mill], food[English], familyFriendly[no]"
    assert nola_data.slot_errors(meaning, "the mill serves english food") == 0
    assert nola_data.slot_errors(meaning, "The Mill is a pub") == 0.5


# -- arms -------------------------------------------------------------------------------------------------------------


def bert(width=24):
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=20,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
        return BertForSequenceClassification(config).eval()


IDS = torch.tensor([[2, 5, 7, 3], [2, 6, 8, 3]])


def counted(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_lora_is_that_of_peft():
    """From the same factors the same output and gradients."""
    import peft

    ours, theirs = bert(), peft.get_peft_model(bert(), peft.LoraConfig(r=3, lora_alpha=3, target_modules=list(TARGETS)))
    adapt("lora3", ours, TARGETS, (), seed=0)
    pairs = {name.removeprefix("base_model.model."): layer for name, layer in theirs.named_modules()}
    for name, layer in adapted(ours).items():
        layer.update.b.data.normal_(generator=torch.Generator().manual_seed(1))
        pairs[name].lora_A["default"].weight.data.copy_(layer.update.a)
        pairs[name].lora_B["default"].weight.data.copy_(layer.update.b)
    assert counted(ours) == counted(theirs) == 4 * 3 * 48
    outs = [model(input_ids=IDS).logits for model in (ours, theirs.eval())]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.pow(2).sum().backward()
    for name, layer in adapted(ours).items():
        torch.testing.assert_close(layer.update.a.grad, pairs[name].lora_A["default"].weight.grad)


def test_counts_of_the_arms():
    """On MiniLM's widths NOLA and its controls train 1,536 numbers in six layers, LoRA 9,216 a rank."""
    expected = {
        "nola": 256,
        "lora1": 1536,
        "lora4": 6144,
        "coordinates": 256,
        "shuffled": 256,
        "a0_only": 256,
        "nola4": 16,
    }
    for arm, count in expected.items():
        model = bert(384)
        adapt(arm, model, TARGETS, ("classifier",), seed=0)
        assert counted(model) == 2 * count + 770
    whole = bert(384)
    assert counted(adapt("full", whole, TARGETS, ("classifier",), seed=0)) == sum(w.numel() for w in whole.parameters())


@pytest.mark.parametrize("arm", PEFT)
def test_small_tuners_of_peft_begin_at_the_model_and_learn(arm):
    base = bert(384)
    before = base(input_ids=IDS).logits.detach()
    model = adapt(arm, base, TARGETS, ("classifier",), seed=0)
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=1e-3, atol=2e-2)
    model(input_ids=IDS).logits.pow(2).sum().backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(float(w.grad.abs().sum()) > 0 for w in trained if w.grad is not None) > 2


def test_coordinates_are_entries_of_the_factors():
    update, start = Coordinates((6, 5), 2, 4, seed=1), LowRank((6, 5), 2, seed=1)
    a, b = update.factors()
    assert torch.equal(a, start.a)
    assert not b.any()
    with torch.no_grad():
        update.values_a.fill_(1), update.values_b.fill_(1)
    moved = update.factors()
    assert int(((moved[0] - a) != 0).sum()) == int((moved[1] != 0).sum()) == 4


@pytest.mark.parametrize("how", ["wrong_seed", "permuted", "random_update"])
def test_damage_is_undone(how):
    model = bert()
    attach(model, TARGETS, PLAN, seed=0)
    stirred(model)
    whole = model(input_ids=IDS).logits
    norms = {name: float(layer.update.delta().detach().norm()) for name, layer in adapted(model).items()}
    before = damaged(model, how, 3)
    assert not torch.allclose(model(input_ids=IDS).logits, whole, atol=1e-3)
    for name, layer in adapted(model).items():
        a, b = layer.update.factors()
        if how == "random_update":
            assert float((b @ a).detach().norm()) == pytest.approx(norms[name], rel=1e-4)
        layer.update = before[name]
    assert torch.equal(model(input_ids=IDS).logits, whole)
    with disabled(model):
        assert not torch.allclose(model(input_ids=IDS).logits, whole)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def records(nola_gain=0.0, lora=75.0, probe=67.0, coordinates=72.0, wrong=67.0, loss=0.0, seeds=10):
    """Cells as a run would leave them, with planted effects."""
    noise = np.random.default_rng(0).normal(size=(seeds, 8)) * 0.3
    found = []
    for seed in range(seeds):
        for data in ("rotten", "sst2"):
            values = {
                "nola": lora + nola_gain,
                "lora1": lora,
                "probe": probe,
                "coordinates": coordinates,
                "shuffled": 50.0,
            }
            for place, (arm, value) in enumerate(values.items()):
                more = (
                    {"wrong_seed": wrong + noise[seed, 6], "permuted": wrong, "random_update": wrong}
                    if arm == "nola"
                    else {}
                )
                key = {"data": data, "arm": arm, "seed": seed}
                numbers = {"accuracy": value + noise[seed, place], "trained": 1536, **more}
                found.append(Record(Cell("compare", key), numbers, 0.0, "d"))
        if seed < 5:
            for arm, value in (("nola", 2.0 + loss), ("lora1", 2.0), ("lora4", 2.0)):
                key = {"data": "e2e", "arm": arm, "seed": seed}
                found.append(Record(Cell("compare", key), {"token_loss": value + noise[seed, 7] / 50}, 0.0, "d"))
    return found


def verdicts(*args, seeds=10, **planted):
    found = [judge(part, records(**planted, seeds=seeds), seeds=10) for part in parts(("rotten", "sst2"), ("e2e",))]
    return {part.name: (part.verdict, part.mean) for part in found}


def test_all_holds_where_all_was_planted():
    found = verdicts()
    required = [part.name for part in parts(("rotten", "sst2"), ("e2e",)) if part.required]
    assert {name: found[name][0] for name in required} == dict.fromkeys(required, "holds")
    assert found["NOLA - control: coordinates"][1] == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(
    ("planted", "part", "verdict"),
    [
        ({"nola_gain": -3.0}, "NOLA - LoRA r = 1", "fails"),
        ({"lora": 67.0}, "NOLA - LoRA r = 1", "inconclusive"),
        ({"coordinates": 78.0}, "NOLA - control: coordinates", "fails"),
        ({"wrong": 72.0}, "control: wrong seed - linear probe", "fails"),
        ({"loss": 0.1}, "NOLA - LoRA r = 1, language", "fails"),
        ({"seeds": 4}, "NOLA - LoRA r = 1, language", "inconclusive"),
        ({"seeds": 8}, "NOLA - LoRA r = 1", "inconclusive (8 seeds, 10 planned)"),
    ],
)
def test_a_planted_failure_is_found(planted, part, verdict):
    assert verdicts(**planted)[part][0] == verdict


def test_figures_are_drawn():
    found = figures(records(), [])
    assert len(found) == 2
    assert all(svg(spec).startswith("<svg") for spec in found.values())
