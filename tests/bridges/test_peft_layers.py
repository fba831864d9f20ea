"""What a layer computes with adapters: merged, as LoRA, in half precision, on every kind of layer, and in transformers."""

import copy
import importlib
import pickle
import sys

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, save_as_lora
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType, set_peft_model_state_dict
from torch import nn
from torch.func import functional_call
from transformers import Trainer, TrainingArguments
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import tiny_llama
from bridges.peft_toy import EVERY, IDS, Net, adapted, add, config, net, output
from sanov.bridges import peft as bridge
from sanov.core.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
    pytest.mark.filterwarnings(
        "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
    ),  # of PEFT about transformers
]


class Scaled(Net):
    """With an embedding that multiplies what it looked up."""

    def __init__(self):
        super().__init__()
        self.tokens = Gemma3TextScaledWordEmbedding(11, 6, 0, embed_scale=3.0)


class Padded(Net):
    """With a convolution that pads with what is on the other side, and strides."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=1, dilation=(2, 1), padding_mode="circular")


CASES = [(Net, target) for target in EVERY] + [(Scaled, "tokens"), (Padded, "patch"), (Net, None)]


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_output_is_that_of_a_network_with_the_update_in_its_weight(kind, target):
    model = adapted(model=net(kind), target_modules=EVERY if target is None else [target])
    weights = dict(net(kind).named_parameters())
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, bridge.NolaLayer):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    expected = functional_call(net(kind), weights, (IDS,))
    assert torch.allclose(output(model), expected, atol=1e-6)
    assert not torch.allclose(output(model), output(net(kind)), atol=1e-4, rtol=0)
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(output(model), expected, atol=1e-5)
    model.unmerge_adapter()
    for name, weight in model.named_parameters():
        if "base_layer.weight" in name:
            known = net(kind).get_parameter(name.removeprefix("base_model.model.").replace(".base_layer", ""))
            assert torch.allclose(weight, known, atol=1e-6)


def test_several_active_adapters_add_up():
    model = adapted(target_modules=["up"])
    add(model, "other", r=3, target_modules=["up", "head"])
    model.base_model.set_adapter(["default", "other"])
    both = output(model)
    model.merge_adapter()
    assert torch.allclose(output(model), both, atol=1e-5)
    layer = model.base_model.model.layers[0].up
    change = layer.base_layer.weight - net().layers[0].up.weight
    assert torch.allclose(change, layer.get_delta_weight("default") + layer.get_delta_weight("other"), atol=1e-6)


def test_as_lora_it_is_the_same_network(tmp_path):
    model = adapted(target_modules=["mix", "up", "down", "head"])
    assert model.supports_lora_conversion()
    settings, state = convert_to_lora(model, rank=2)
    assert isinstance(settings, LoraConfig)
    lora = get_peft_model(net(), settings).eval()
    set_peft_model_state_dict(lora, state)
    assert torch.allclose(output(lora), output(model), atol=1e-5)
    save_as_lora(tmp_path, model, rank=2)
    assert torch.allclose(output(PeftModel.from_pretrained(net(), tmp_path)), output(model), atol=1e-5)
    assert not adapted(target_modules=["tokens", "up"]).supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(adapted(target_modules=["patch"]), rank=2)


def test_dropout_is_of_the_update_alone_and_in_training_alone():
    model = adapted(nola_dropout=0.5, target_modules=["head"])
    plain = adapted(target_modules=["head"])
    assert torch.equal(output(model), output(plain))
    model.train()
    torch.manual_seed(0)
    one, two = output(model), output(model)
    assert not torch.equal(one, two)
    with model.disable_adapter():
        assert torch.equal(output(model), output(net()))


def llama(**options):
    return get_peft_model(
        tiny_llama.llama(), config(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    )


def test_gradients_are_the_same_with_checkpointing_of_activations():
    ids = torch.arange(2, 18).view(2, 8)
    found = []
    for reentrant in (None, False, True):
        model = llama().train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert set(found[0]) == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(found[0]) == 8
    for other in found[1:]:
        assert all(torch.equal(other[name], grad) for name, grad in found[0].items())


def test_transformers_trainer_trains_saves_and_resumes(tmp_path):
    rows = [{"input_ids": [2 + (row + place) % 20 for place in range(6)]} for row in range(16)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]

    def trained(folder, model, resume=None):
        arguments = TrainingArguments(
            folder,
            max_steps=6,
            save_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            gradient_checkpointing=True,
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return model.eval()

    ids = torch.tensor([rows[0]["input_ids"]])
    model = trained(tmp_path / "a", llama(init=True))
    expected = model(input_ids=ids).logits
    assert not torch.allclose(expected, tiny_llama.llama()(input_ids=ids).logits, atol=1e-3)
    loaded = PeftModel.from_pretrained(tiny_llama.llama(), tmp_path / "a" / "checkpoint-6")
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    resumed = trained(tmp_path / "b", llama(init=True), str(tmp_path / "a" / "checkpoint-3"))
    assert torch.equal(resumed(input_ids=ids).logits, expected)
    alone = tiny_llama.llama()
    alone.load_adapter(str(tmp_path / "a" / "checkpoint-6"))  # transformers' own door
    assert torch.equal(alone(input_ids=ids).logits, expected)
    assert loaded.generate(input_ids=ids, max_new_tokens=3).shape == (1, 9)


def test_default_targets_are_those_of_lora_for_a_known_model():
    names = [
        get_peft_model(tiny_llama.llama(), config(method, target_modules=None)).base_model.targeted_module_names
        for method in ("lora", "nola")
    ]
    assert names[0] == names[1]
    assert len(names[1]) == 4


def known():
    """All that `register` may change in PEFT."""
    inside = (PeftType._member_names_, PeftType._member_map_, PeftType._value2member_map_)
    tables = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    return [copy.copy(table) for table in (*inside, *tables, PEFT_TYPE_TO_MIXED_MODEL_MAPPING, dict(vars(PeftType)))]


@pytest.fixture
def unregistered(monkeypatch):
    """PEFT as it is in a new process, where nothing of ours was imported."""
    bridge.register()
    monkeypatch.setattr(PeftType, "_member_names_", [name for name in PeftType._member_names_ if name != "NOLA"])
    for table in (PeftType._member_map_, PeftType._value2member_map_):
        monkeypatch.delitem(table, "NOLA")
    for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        monkeypatch.delitem(table, "NOLA")
    member = PeftType.NOLA
    type.__delattr__(PeftType, "NOLA")
    for name in ("peft", "peft_config", "peft_layers", "peft_model"):
        monkeypatch.setattr(f"sanov.bridges.{name}", sys.modules[f"sanov.bridges.{name}"])  # to come back afterwards
        monkeypatch.delitem(sys.modules, f"sanov.bridges.{name}")
    yield
    type.__setattr__(PeftType, "NOLA", member)


def test_importing_changes_nothing_and_registering_twice_is_once(unregistered, monkeypatch):
    before = known()
    fresh = importlib.import_module("sanov.bridges.peft")
    assert fresh is not bridge
    assert known() == before
    with pytest.raises(
        ValueError, match=r"does not know this method yet\. Call sanov\.bridges\.peft\.register\(\) first"
    ):
        fresh.NolaConfig(target_modules=["up"])
    monkeypatch.setattr(peft, "__version__", "0.20.3")
    with pytest.raises(InputError, match=r"PEFT 0\.20\.3 is installed; expected 0\.21"):
        fresh.register()
    assert known() == before
    monkeypatch.setattr(peft, "__version__", "0.21.1")
    fresh.register()
    after = known()
    fresh.register()
    assert known() == after
    member = PeftType.NOLA
    assert [*before[0], "NOLA"] == after[0] == [kind.name for kind in PeftType]
    assert member is PeftType("NOLA") is PeftType["NOLA"] is pickle.loads(pickle.dumps(member)) is copy.deepcopy(member)
    assert isinstance(member, PeftType)
    assert (member, member.value, member.name, hash(member)) == ("NOLA", "NOLA", "NOLA", hash("NOLA"))
    assert (str(member), repr(member)) == ("PeftType.NOLA", "<PeftType.NOLA: 'NOLA'>")
    assert sorted(vars(member)) == sorted(vars(PeftType.LORA))
    assert fresh.NolaConfig(target_modules=["up"]).peft_type is member
    for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        del table["NOLA"]


def test_a_version_or_a_method_that_was_not_seen_is_refused(monkeypatch):
    with pytest.raises(
        InputError, match=r"register: PEFT 0\.22\.0 is installed; expected 0\.21\. Run: pip install 'peft"
    ):
        bridge.check_version("0.22.0")
    monkeypatch.delattr("peft.tuners.tuners_utils.BaseTuner._remove_adapter_name_from_key")
    with pytest.raises(InputError, match=r"PEFT 0\.21\.2 has no BaseTuner\._remove_adapter_name_from_key"):
        bridge.check_version("0.21.2")
    bridge.register()
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "NOLA", object)
    with pytest.raises(InputError, match="PEFT has another method of the name NOLA"):
        bridge.register()
