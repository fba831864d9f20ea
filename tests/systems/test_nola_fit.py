"""NOLA as its user runs it: a table in, a folder out, resumed, applied, exported, and what is refused."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import tiny_bert
import tiny_llama
from learning.toy_run import vector
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import parse
from sanov.systems import nola
from sanov.systems.nola import fitting, tasks
from sanov.systems.nola.layers import adapted, attach
from systems.nola_toy import PLAN, toy

pytestmark = pytest.mark.filterwarnings("ignore:.*texts reach the limit")
SMALL = {
    "adapter.rank": "2",
    "adapter.num_basis_a": "12",
    "adapter.num_basis_b": "10",
    "adapter.alpha": "2",
    "training.epochs": "4",
    "training.batch_size": "8",
}
WORDS = ("a good film", "a bad film", "very good", "very bad", "good good a", "a film bad")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A classifier, an encoder without a head, a language model, and tables."""
    folder = tmp_path_factory.mktemp("nola")
    tiny_bert.save(folder / "bert", head=False)
    tiny_llama.save(tiny_llama.llama(), folder / "llama")
    texts = [f"{text} {'a ' * (row % 5)}".strip() for row in range(8) for text in WORDS]
    labels = ["pos" if "good" in text else "neg" for text in texts]
    pl.DataFrame({"text": texts, "label": labels}).write_csv(folder / "texts.csv")
    (folder / "plain.txt").write_text("\n".join(f"w{2 + i % 9} w{3 + i % 7} w4 w{5 + i % 3}" for i in range(20)))
    pairs = {"prompt": [f"w{2 + i % 6} w3" for i in range(24)], "completion": [f"w{4 + i % 6} w5" for i in range(24)]}
    pl.DataFrame(pairs).write_csv(folder / "pairs.csv")
    return folder


def config(place, *more, model="bert", **options):
    return parse(nola.Config, {"model": str(place / model), **SMALL, **options})


def fitted(place, data="texts.csv", model="bert", out=None, resume=False, seed=0, **options):
    chosen = config(place, model=model, **options)
    return nola.fit(nola.read([str(place / data)], chosen), chosen, seed=seed, out=out, resume=resume)


@pytest.fixture(scope="module")
def classifier(place):
    """A fit of the labelled texts, and its folder."""
    return fitted(place, out=place / "fit"), place / "fit"


def test_labels_are_learned_by_coefficients_and_head_alone(place, classifier):
    found, folder = classifier
    assert found.results["coefficients"] == 4 * (12 + 10)
    assert found.results["head_weights"] == 16 * 2 + 2
    losses = found.history["loss"].to_list()
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])  # of the last epoch and the first
    assert 0 <= found.results["validation_accuracy"] <= 1
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.bert.encoder.layer.0.attention.self.query.nola_alpha" in names
    assert {name for name in names if "nola" not in name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }


def test_a_folder_gives_the_same_predictions(place, classifier):
    found, folder = classifier
    chosen = config(place)
    data = nola.read([str(place / "texts.csv")], chosen)
    first, second = (nola.apply(data, chosen, fitted=each) for each in (found, folder))
    assert first.tables["Texts"].equals(second.tables["Texts"])
    assert first.values["accuracy_low"] <= first.values["accuracy"] <= first.values["accuracy_high"]
    assert "were trained on" in first.notes[0]
    log_probs = np.log(first.tables["Texts"].select("prob_neg", "prob_pos").to_numpy())
    right = log_probs[np.arange(len(data)), data.labels]
    assert first.values["log_loss"] == pytest.approx(-right.mean())


def test_a_classifier_keeps_its_head_and_gets_another_for_other_classes(place, tmp_path):
    tiny_bert.save(tmp_path / "bert")
    one = {"training.epochs": "1", "validation_share": "0", "model": str(tmp_path / "bert")}
    same = fitted(place, out=tmp_path / "same", **one)
    assert same.adapter.head_numbers == 0
    rows = pl.read_csv(place / "texts.csv").with_columns(label=pl.Series(["a", "b", "c"] * 16))
    rows.write_csv(place / "three.csv")
    other = fitted(place, "three.csv", out=tmp_path / "other", **one)
    assert other.adapter.head_numbers == 16 * 3 + 3
    ids = torch.tensor([[2, 5, 7, 3]])
    for found, folder in ((same, "same"), (other, "other")):
        again = nola.Fitted.load(tmp_path / folder)
        assert torch.equal(again.base.model(input_ids=ids).logits, found.base.model(input_ids=ids).logits)


@pytest.mark.parametrize("bits", ["16", "8", "4"])
def test_what_is_stored_in_fewer_bits_is_what_was_fitted(bits, place, tmp_path):
    more = {"coefficient_bits": bits, "straight_through": "true", "training.epochs": "1"}
    found = fitted(place, out=tmp_path / "fit", **more)
    again = nola.Fitted.load(tmp_path / "fit")
    for name, pair in found.adapter.coefficients.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, again.adapter.coefficients[name], strict=True))
    ids = torch.tensor([[2, 5, 7, 3]])
    assert torch.equal(found.base.model(input_ids=ids).logits, again.base.model(input_ids=ids).logits)


@pytest.mark.parametrize(("data", "model"), [("texts.csv", "bert"), ("pairs.csv", "llama")])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data, model, place, tmp_path, monkeypatch):
    more = {"training.checkpoint_every": "2", "validation_share": "0.2", "training.epochs": "2"}
    whole = fitted(place, data, model, out=tmp_path / "whole", **more)
    real, calls = tasks.loss_of, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "loss_of", stops)
        with pytest.raises(KeyboardInterrupt):
            fitted(place, data, model, out=tmp_path / "part", **more)
    with pytest.raises(InputError, match="holds an unfinished run"):
        fitted(place, data, model, out=tmp_path / "part", **more)
    with pytest.raises(InputError, match="had other seed"):
        fitted(place, data, model, out=tmp_path / "part", resume=True, seed=1, **more)
    again = fitted(place, data, model, out=tmp_path / "part", resume=True, **more)
    assert torch.equal(vector(whole.base.model), vector(again.base.model))
    assert whole.history.equals(again.history)
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "part" / n).read_bytes() for n in names)


def test_micro_batches_change_nothing_but_rounding(place):
    plain = {"training.epochs": "1", "validation_share": "0", "training.clip_norm": "none"}
    runs = [fitted(place, "pairs.csv", "llama", **plain, **{"training.micro_batch": size}) for size in ("0", "3")]
    torch.testing.assert_close(*(torch.tensor(run.history["loss"].to_list()) for run in runs))


@pytest.mark.parametrize("data", ["plain.txt", "pairs.csv"])
def test_texts_alone_and_completions_are_learned_by_a_language_model(data, place, tmp_path):
    found = fitted(place, data, "llama", out=tmp_path / "fit", **{"training.learning_rate": "0.05"})
    assert found.adapter.head_numbers == 0
    chosen = config(place, model="llama")
    answer = nola.apply(nola.read([str(place / data)], chosen), chosen, fitted=tmp_path / "fit")
    assert answer.values["token_loss"] < answer.values["base_token_loss"]
    rows = answer.tables["Texts"]
    weighted = (rows["token_loss"] * rows["tokens"]).sum() / rows["tokens"].sum()
    assert answer.values["token_loss"] == pytest.approx(weighted)


def test_token_losses_are_those_of_the_library(place):
    """Of a text alone all tokens but the first count, of a completion its own and the end."""
    base = nola.fitting.load_base(place / "llama", None)
    data = nola.read([str(place / "pairs.csv")], config(place))
    tokens, starts = tasks.language_tokens(data, base.tokenizer, 99)
    sums, counts = tasks.token_losses(tasks.ForeignCausal(base.model), tokens, starts, 0)
    for row in (0, 5):
        ids = torch.tensor([tokens[row]])
        labels = torch.where(torch.arange(ids.shape[1]) >= int(starts[row]), ids, -100)
        expected = float(base.model(input_ids=ids, labels=labels).loss.detach())
        assert sums[row] / counts[row] == pytest.approx(expected, rel=1e-5)
        assert counts[row] == 3
    alone, starts = tasks.language_tokens(nola.read([str(place / "plain.txt")], config(place)), base.tokenizer, 99)
    assert len(alone[0]) == 5
    assert starts[0] == 1


def test_rows_of_one_prompt_are_never_on_both_sides(place):
    data = nola.read([str(place / "pairs.csv")], config(place))
    train, held = data.divided(0.3, 0)
    assert len(train) + len(held) == 24
    assert not set(train.prompts) & set(held.prompts)


def test_written_forms_agree(place, classifier, tmp_path):
    """A merged folder for transformers, a LoRA folder, a bank and the adapter itself."""
    from transformers import AutoModelForSequenceClassification

    found, folder = classifier
    fitted(place, out=tmp_path / "other", seed=1)
    chosen = config(place, write="adapter,lora,merged,bank", adapters=str(tmp_path / "other"))
    answer = nola.apply(nola.read([], chosen), chosen, fitted=folder)
    answer.save(tmp_path / "out")
    ids = torch.tensor([[2, 5, 7, 3], [2, 6, 8, 3]])
    expected = found.base.model(input_ids=ids).logits
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "merged").eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    assert merged.config.id2label == {0: "neg", 1: "pos"}
    config_ = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert (config_["peft_type"], config_["r"], config_["lora_alpha"]) == ("LORA", 2, 2)
    bank = nola.Bank.load(tmp_path / "out" / "bank.safetensors")
    assert bank.names == ("first", "other")
    same = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert same == (folder / "adapter_model.safetensors").read_bytes()
    assert answer.tables["Files"]["bytes"].min() > 0
    handed_on = nola.Fitted.load(tmp_path / "out" / "adapter")
    assert torch.equal(handed_on.base.model(input_ids=ids).logits, expected)


def test_from_the_command_line(place, command, tmp_path):
    words = [f"{name}={value}" for name, value in {**SMALL, "training.epochs": 1}.items()]
    told = command("fit", "nola", place / "texts.csv", f"model={place / 'bert'}", "--out", tmp_path / "fit", *words)
    assert told[0] == 0, told
    told = command(
        "apply", "nola", place / "texts.csv", "--fitted", tmp_path / "fit", "write=lora", "--out", tmp_path / "out"
    )
    assert told[0] == 0, told
    assert (tmp_path / "out" / "lora" / "adapter_model.safetensors").is_file()
    status, message = command("fit", "nola", place / "plain.txt", "--out", tmp_path / "no")
    assert status == 2
    assert "texts without labels need a causal language model. Name a folder of one: model=DIR" in message
    assert not (tmp_path / "no").exists()


def test_rows_without_a_label_are_left_out(place):
    some = nola.Texts(("good film", "bad film", "very good", "a"), np.array([1, 0, 1, -1]), ("neg", "pos"))
    found = nola.fit(some, config(place, validation_share="0", **{"training.epochs": "1"}))
    assert found.results["texts"] == 3
    answer = nola.apply(some, config(place), fitted=found)
    assert answer.tables["Texts"]["label"].to_list() == ["pos", "neg", "pos", None]
    assert "3 labelled texts" in answer.sentence


def test_embedded_texts_are_on_one_side_only():
    first, second = (nola.read([f"embedded:reviews{end}"], nola.Config()) for end in ("", "-new"))
    assert len(first) == len(second) == 2048
    assert not set(first.texts) & set(second.texts)
    assert abs(first.labels.mean() - 0.5) < 0.01


# -- negative control -------------------------------------------------------------------------------------------------


def test_other_bases_or_shuffled_coefficients_lose_what_was_learned(place):
    """A task that the head alone cannot do: after training, wrong bases leave nothing of it."""
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()

    def net():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 2))

    plan = nola.Plan(rank=4, num_basis_a=80, num_basis_b=60, kept=True)
    model = net()
    attach(model, ["0", "2"], plan, seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def accuracy(changed):
        return float((changed(x).argmax(dim=1) == y).double().mean())

    assert accuracy(model) > 0.9
    adapter = nola.Adapter.of(model, plan, ["0", "2"])
    wrong = net()
    attach(wrong, ["0", "2"], plan, seed=2)
    adapter.write(adapted(wrong))
    shuffled = net()
    adapter.put(shuffled)
    for layer in adapted(shuffled).values():
        for weight in (layer.update.nola_alpha, layer.update.nola_beta):
            weight.data = weight.data[torch.randperm(len(weight))]
    assert accuracy(wrong) < 0.7
    assert accuracy(shuffled) < 0.7


# -- what is refused, and what is warned of ----------------------------------------------------------------------------


def test_bad_tables_are_told_with_rows(place, tmp_path):
    pl.DataFrame({"text": ["a", "", "b", None]}).write_csv(tmp_path / "gaps.csv")
    with pytest.raises(InputError, match=r"gaps.csv, row 2, 4: the text is empty \(2 in all\)"):
        nola.read([str(tmp_path / "gaps.csv")], config(place))
    pl.DataFrame({"words": ["a"]}).write_csv(tmp_path / "words.csv")
    with pytest.raises(InputError, match="text"):
        nola.read([str(tmp_path / "words.csv")], config(place))
    with pytest.raises(InputError, match="no data were given"):
        nola.read([], config(place))
    texts = nola.Texts(("a", "b"), np.array([0, 0]), ("one",))
    with pytest.raises(InputError, match="at least two classes"):
        nola.fit(texts, config(place))


def test_labels_outside_the_classes_are_told_with_their_row(place, classifier):
    data = nola.Texts(("good", "bad"), np.array([0, 1]), ("pos", "mixed"), name="new.csv")
    with pytest.raises(InputError, match=r"new.csv, row 2: the label is 'mixed'; expected one of 'neg', 'pos'"):
        nola.apply(data, config(place), fitted=classifier[0])


def test_layers_that_are_not_there_are_told_with_the_nearest(place):
    with pytest.raises(InputError, match=r"no layer is named .*The nearest are: .*query"):
        fitted(place, target_modules="queri")


def test_a_folder_with_other_things_or_a_finished_adapter_is_refused(place, classifier, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is a folder with other files in it"):
        fitted(place, out=tmp_path)
    with pytest.raises(InputError, match="holds a finished adapter"):
        fitted(place, out=classifier[1])
    with pytest.raises(InputError, match="there is no adapter"):
        nola.apply(nola.Texts(("a",)), config(place))
    with pytest.raises(InputError, match="holds no finished adapter"):
        nola.Fitted.load(tmp_path)


def test_another_base_model_is_refused(place, classifier, tmp_path):
    with torch.random.fork_rng(devices=[]):
        tiny_bert.save(tmp_path / "bert", head=False)
        from transformers import AutoModel

        model = AutoModel.from_pretrained(tmp_path / "bert")
        torch.manual_seed(9)
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        model.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="not that on which the adapter was trained"):
        nola.Fitted.load(classifier[1], model=tmp_path / "bert")
    with pytest.raises(InputError, match="the base model is not at"):
        nola.Fitted.load(classifier[1], model=tmp_path / "nowhere")


def test_a_loss_that_is_not_finite_stops_with_its_step(place):
    with pytest.raises(InputError, match=r"step \d+: .*(lower|Lower) the learning rate"):
        fitted(
            place, **{"training.learning_rate": "1e30", "training.clip_norm": "none", "training.schedule": "constant"}
        )


@pytest.mark.parametrize(
    ("plan", "training", "message"),
    [
        (nola.Plan(preset="readme"), {"learning_rate": 5e-3}, "preset=readme .* a step is 8 times that of gpt"),
        (PLAN, {"weight_decay": 0.1}, "weight decay draws the coefficients"),
    ],
)
def test_sizes_and_rates_that_do_not_go_together_are_warned_of(plan, training, message):
    with pytest.warns(SanovWarning, match=message):
        fitting.check_plan(toy(), ("1",), plan, nola.Config().training.model_copy(update=training))


def test_more_bases_than_the_space_has_dimensions_are_refused():
    plan, training = nola.Plan(rank=1, num_basis_a=13, num_basis_b=10), nola.Config().training
    with pytest.raises(InputError, match=r"num_basis_a: 13 bases are more than dimensions.*at most r\*in = 12"):
        fitting.check_plan(toy(), ("1",), plan, training)
    fitting.check_plan(toy(), ("1",), nola.Plan(rank=1, num_basis_a=12, num_basis_b=10), training)


def test_zero_without_an_offset_is_refused():
    layers = attach(toy(), ("1",), nola.Plan(preset="vit"))
    fitting.check_start(layers)
    for weight in (layers["1"].update.nola_alpha, layers["1"].update.nola_beta):
        torch.nn.init.zeros_(weight)
    with pytest.raises(InputError, match="zero coefficients without an offset are a stationary point"):
        fitting.check_start(layers)


@pytest.mark.parametrize("options", [{"adapter.rank": "0"}, {"adapter.chunk": "20"}, {"straight_through": "true"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        parse(nola.Config, options)
