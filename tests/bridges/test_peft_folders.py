"""Adapters as folders: one format that PEFT and we both read, refused where bases or the base model would be others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import nn

import tiny_bert
from bridges.peft_toy import EVERY, IDS, LINEAR, Net, adapted, add, config, net, output
from sanov.bridges.peft import AdapterError, NolaConfig, NolaLayer, register
from sanov.core.errors import InputError
from sanov.nets.adaptable import load_base
from sanov.random_bases import GENERATOR
from sanov.systems.nola.fitting import adapter_of
from sanov.systems.nola.layers import adapted as adapted_layers
from sanov.systems.nola.layers import attach
from sanov.systems.nola.storage import Adapter
from sanov.systems.nola.updates import Plan

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")
PLAN = Plan(rank=2, num_basis_a=5, num_basis_b=4, alpha=3.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    with pytest.warns(UserWarning, match="fan_in_fan_out did not agree with the layers and is now True"):
        model = adapted(target_modules=EVERY, basis_cache="recompute")
    folder = tmp_path_factory.mktemp("written") / "adapter"
    model.save_pretrained(folder)
    return folder, output(model)


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written[0], tmp_path / "adapter"))


def changed(folder, change):
    """Edit the configuration."""
    path = folder / "adapter_config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return folder


def layers_of(model):
    return [layer for layer in model.modules() if isinstance(layer, NolaLayer)]


def random_coefficients(model):
    generator = torch.Generator().manual_seed(3)
    for layer in adapted_layers(model).values():
        for vector in (layer.update.nola_alpha, layer.update.nola_beta):
            vector.data = torch.randn(vector.shape, generator=generator)


def test_a_folder_is_two_vectors_a_layer_and_loads_bit_for_bit(folder, written):
    expected = written[1]
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [name for name, layer in net().named_modules() if name.endswith(tuple(EVERY))]
    assert sorted(tensors) == sorted(
        f"base_model.model.{name}.nola_{kind}" for name in names for kind in ("alpha", "beta")
    )
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(5,), (4,)}
    for cheap in (False, True):
        loaded = PeftModel.from_pretrained(net(), folder, low_cpu_mem_usage=cheap)
        assert torch.equal(output(loaded), expected)
        loaded.load_adapter(folder, "again", low_cpu_mem_usage=cheap)
        loaded.set_adapter("again")
        assert torch.equal(output(loaded), expected)
        assert {weight.device.type for weight in loaded.parameters()} == {"cpu"}


@pytest.mark.parametrize("share_basis", ["none", "by_shape"])
def test_both_draw_the_same_bases_from_the_same_seed(share_basis):
    ours = net()
    attach(ours, EVERY, Plan(rank=2, num_basis_a=5, num_basis_b=4, alpha=3.0, share_basis=share_basis), seed=7)
    random_coefficients(ours)
    theirs = adapted(target_modules=EVERY, seed=7, share_basis=share_basis)
    for name, layer in adapted_layers(ours).items():
        twin = theirs.base_model.model.get_submodule(name)
        twin.nola_alpha["default"], twin.nola_beta["default"] = layer.update.nola_alpha, layer.update.nola_beta
    assert torch.equal(output(theirs), output(ours))
    assert not torch.allclose(output(theirs), output(net()), atol=1e-2)


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_each_reads_what_the_other_wrote(tmp_path, bits):
    ours = net()
    attach(ours, LINEAR, PLAN, seed=1)
    random_coefficients(ours)
    Adapter.of(ours, PLAN, LINEAR, head_modules=["head"]).save(tmp_path / "ours", bits)
    again = net()
    with torch.no_grad():
        again.head.weight.zero_()  # which is to come from the folder
    loaded = PeftModel.from_pretrained(again, tmp_path / "ours")
    known = net()
    Adapter.load(tmp_path / "ours").put(known)
    assert torch.allclose(output(loaded), output(known), rtol=0, atol=0 if bits > 8 else 1e-5)
    assert torch.allclose(output(loaded), output(ours), atol={32: 0, 16: 5e-3, 4: 2.0}[bits])
    loaded.save_pretrained(tmp_path / "theirs")
    back, third = net(), Adapter.load(tmp_path / "theirs")
    third.put(back)
    assert torch.allclose(output(back), output(loaded), rtol=0, atol=0 if bits > 8 else 1e-5)
    assert third.layers == Adapter.load(tmp_path / "ours").layers
    written = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert set(Adapter.load(tmp_path / "ours").config()) <= set(written)
    assert written["coefficient_bits"] == bits


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("head", [True, False])
def test_a_classifier_of_ours_is_one_of_theirs_with_its_head_where_it_was_trained(tmp_path, head):
    register()
    tiny_bert.save(tmp_path / "bert", head=head)
    base = load_base(tmp_path / "bert", ("neg", "pos"))
    attach(base.model, ["query", "value"], PLAN)
    random_coefficients(base.model)
    adapter_of(base, PLAN, ("query", "value"), ("neg", "pos")).save(tmp_path / "mine")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=2)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "mine").eval()
    assert hasattr(theirs.base_model.model.classifier, "modules_to_save") != head
    ids = torch.tensor([[2, 5, 7, 3], [2, 6, 7, 3]])
    assert torch.equal(output(theirs, ids).logits, output(base.model, ids).logits)
    theirs.save_pretrained(tmp_path / "back")
    assert (Adapter.load(tmp_path / "back").head_numbers > 0) != head


def test_packed_layers_do_not_depend_on_their_order(tmp_path):
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(12))  # 10 sorts before 2

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    options = {"target_modules": "all-linear", "coefficient_bits": 8}
    model = adapted(model=net(Many), **options)
    model.save_pretrained(tmp_path)
    for given in (None, config(**options)):
        loaded = PeftModel.from_pretrained(net(Many), tmp_path, config=given)
        assert torch.allclose(output(loaded, x), output(model, x))  # which rounds as the file does
    known = net(Many)
    Adapter.load(tmp_path).put(known)
    assert torch.allclose(output(known, x), output(model, x))
    full = adapted(model=net(Many), target_modules="all-linear")
    assert not torch.allclose(output(full, x), output(model, x))


def test_several_adapters_of_a_model_are_saved_and_loaded_by_name(tmp_path):
    model = adapted()
    add(model, "other", r=3, target_modules=["down", "head"], coefficient_bits=16)
    add(model, "other_default", num_basis_a=3)
    model.save_pretrained(tmp_path)
    expected = {}
    for name in model.peft_config:
        model.set_adapter(name)
        expected[name] = output(model)
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    for name in ("other", "other_default"):
        assert loaded.load_adapter(tmp_path / name, name).missing_keys == []
    for name, known in expected.items():
        loaded.set_adapter(name)
        assert torch.equal(output(loaded), known)
    assert load_file(tmp_path / "other" / "adapter_model.safetensors").popitem()[1].dtype == torch.float16


def test_a_configuration_that_served_two_models_is_saved_as_each_has_it(tmp_path):
    shared = config(target_modules=LINEAR)
    first = adapted()
    first.peft_config["default"] = shared
    expected = output(first)
    shared.seed, shared.share_basis = 5, "by_shape"
    second = PeftModel(net(), shared)  # draws other seeds
    assert not torch.allclose(output(second), expected, atol=1e-3)
    for name, model in (("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
        loaded = PeftModel.from_pretrained(net(), tmp_path / name)
        assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["layers"]["head"].update(seed=5),
            r"head, bases of .*: their fingerprint is \w+; expected \w+",
        ),
        (lambda tree: tree["layers"]["mix"].update(fingerprint="0" * 16), r"mix, bases .* expected 0000"),
        (lambda tree: tree.update(r=3), "their fingerprint is"),
        (lambda tree: tree.update(distribution="rademacher"), "their fingerprint is"),
        (lambda tree: tree["layers"]["head"].pop("seed"), "head, seed: there is no seed"),
        (lambda tree: tree["layers"]["head"].update(seed=5.0), "head, seed: the seed is 5.0"),
        (lambda tree: tree.update(generator="mt19937"), f"generator mt19937; expected {GENERATOR}"),
        (lambda tree: tree["layers"].pop("head"), "head: there is no seed for it in the configuration"),
        (lambda tree: tree["layers"]["head"].update(weight=[0.0] * 4), "head: the weight is not that on which"),
        (lambda tree: tree["layers"].update(tail=tree["layers"]["head"]), "tail: the model has no such layer"),
        (
            lambda tree: tree["target_modules"].remove("head"),
            "head: the adapter changes it, but the configuration does not",
        ),
        (lambda tree: tree.update(coefficient_bits=7), "coefficient_bits: is 7; expected 32, 16, 8 or 4"),
    ],
)
def test_a_folder_of_other_bases_is_refused_before_the_model_is_touched(folder, change, message):
    model = net()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match=message):
        PeftModel.from_pretrained(model, changed(folder, change))
    assert [name for name, _ in model.named_modules()] == names


def test_a_folder_that_is_refused_leaves_no_trace_in_a_model_with_adapters(folder):
    model = adapted(target_modules=["head"])
    expected = output(model)
    with pytest.raises(InputError, match="mix, bases"):
        model.load_adapter(changed(folder, lambda tree: tree["layers"]["mix"].update(seed=1)), "other")
    assert list(model.peft_config) == ["default"]
    assert not any("other" in name for name, _ in model.named_parameters())
    assert torch.equal(output(model), expected)


def test_another_base_model_is_refused(folder):
    wide = net()
    wide.head = nn.Linear(5, 4)
    with pytest.raises(InputError, match="head: the weight is 4 x 5; expected 3 x 5"):
        PeftModel.from_pretrained(wide, folder)
    other = net()
    with torch.no_grad():
        other.layers[1].down.weight.mul_(1.01)
    with pytest.raises(InputError, match=r"layers\.1\.down: the weight is not that on which the adapter was trained"):
        PeftModel.from_pretrained(other, folder)
    PeftModel.from_pretrained(net(dtype=torch.bfloat16), folder)  # the same, rounded


def test_layers_and_adapters_of_one_seed_and_shape_share_their_bases():
    model = adapted(share_basis="by_shape")
    model.add_adapter("other", config(share_basis="by_shape", r=2, nola_alpha=1.0))
    model.add_adapter("third", config(share_basis="by_shape", r=3))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, NolaLayer)}
    spaces = {name: {key: made.space for key, made in layer.nola_factors.items()} for name, layer in layers.items()}
    up, down = (spaces[f"base_model.model.layers.0.{name}"] for name in LINEAR)
    assert up["default"].first is spaces["base_model.model.layers.1.up"]["other"].first
    assert up["default"].first is up["other"].first is not up["third"].first
    assert up["default"].first is not down["default"].first
    own = adapted()
    spaces = [layer.nola_factors["default"].space for layer in layers_of(own)]
    assert len({id(space.first) for space in spaces}) == len(spaces) == 4


def test_an_adapter_is_of_the_base_weights_also_where_another_was_merged():
    model = adapted()
    known = {name: entry["weight"] for name, entry in model.peft_config["default"].layers.items()}
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        add(model, "other")
    for name, entry in model.peft_config["other"].layers.items():
        assert entry["weight"] == pytest.approx(known[name], abs=1e-6)


def test_a_deleted_adapter_leaves_nothing_behind():
    model = adapted()
    before = [vars(layer)["_modules"].keys() | vars(layer).keys() for layer in layers_of(model)]
    add(model, "other")
    model.delete_adapter("other")
    for layer, names in zip(layers_of(model), before, strict=True):
        assert vars(layer)["_modules"].keys() | vars(layer).keys() == names
        for table in (layer.nola_alpha, layer.nola_beta, layer.nola_factors, layer.nola_layers, layer.nola_dropout):
            assert list(table) == ["default"]


@pytest.mark.parametrize(("cache", "kept"), [("auto", True), ("full", True), ("recompute", False)])
def test_a_cache_changes_no_bit(cache, kept, monkeypatch):
    model = adapted(basis_cache=cache, distribution="sparse")
    assert {layer.nola_factors["default"].space.first.kept for layer in layers_of(model)} == {kept}
    assert torch.equal(output(model), output(adapted(distribution="sparse")))
    monkeypatch.setattr("sanov.bridges.peft_config.KEPT_BYTES", 4 * 2 * (5 * (5 + 10) + 4 * (5 + 10)) * 2 - 1)
    assert {layer.nola_factors["default"].space.first.kept for layer in layers_of(adapted())} == {False}
    assert {layer.nola_factors["default"].space.first.kept for layer in layers_of(adapted(share_basis="by_shape"))} == {
        True
    }


def test_the_configuration_is_read_back_whole_by_its_kind(tmp_path):
    register()
    options = {"r": 4, "num_basis_a": 3, "seed": 2**64 - 1, "preset": "vit", "layers_to_transform": [1], "bias": "all"}
    NolaConfig(target_modules=["up"], **options).save_pretrained(tmp_path)
    found = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(found, NolaConfig)
    assert {name: getattr(found, name) for name in options} == options
    assert found.target_modules == {"up"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r: is 0; expected a whole number >= 1"),
        ({"num_basis_b": -1}, "num_basis_b: is -1"),
        ({"preset": "flat"}, "preset: is 'flat'; expected gpt, readme or vit"),
        ({"distribution": "normal"}, "distribution: is 'normal'"),
        ({"share_basis": "all"}, "share_basis"),
        ({"bias": "lora_only"}, "bias: is 'lora_only'; expected none, all or nola_only"),
        ({"seed": 2**64}, "seed: is 18446744073709551616"),
        ({"chunk": 20}, "chunk: is 20; expected a multiple of 16"),
        ({"nola_dropout": 1.0}, "nola_dropout"),
        (
            {"target_modules": "up", "layers_to_transform": 1},
            "layers_to_transform: target_modules is a regular expression",
        ),
    ],
)
def test_options_out_of_range_are_refused_as_value_errors(options, message):
    with pytest.raises(AdapterError, match=message) as caught:
        config(**options)
    assert isinstance(caught.value, ValueError)


def test_more_bases_than_numbers_are_warned_of():
    with pytest.warns(
        UserWarning, match=r"num_basis_b: 11 bases are more than the 10 numbers of a factor of layers.0.down"
    ):
        adapted(num_basis_b=11)


def test_a_layer_of_another_type_is_refused():
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(3)

    with pytest.raises(InputError, match=r"target_modules, norm: is a LayerNorm; expected Linear"):
        adapted(model=net(Other), target_modules=["norm"])
    quantised = net()
    quantised.head.weight = nn.Parameter(quantised.head.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(InputError, match=r"quantised .*De-quantise the layer, or export the adapter to LoRA"):
        adapted(model=quantised, target_modules=["head"]).merge_adapter()
    assert output(adapted()).shape == (len(IDS), 3)
