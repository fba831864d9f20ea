"""The same acts on a network with a LoRA adapter and with ours: PEFT's own states, warnings and refusals must agree."""

import copy
import re
import warnings

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from bridges.peft_toy import EVERY, IDS, LINEAR, METHODS, adapted, add, config, net, output
from sanov.bridges.peft import AdapterError, NolaLayer
from sanov.core.errors import InputError

NAMES = re.compile(r"\.(lora|nola)_.*$")


class Log:
    """What a scenario did, in words that do not name the method."""

    def __init__(self, method):
        self.method, self.lines, self.outputs, self.model = method, [], {"base": output(net())}, None

    def state(self, model):
        """Append PEFT's reports, which parameters are trained, and which earlier output this one is."""
        status, layers = model.get_model_status(), model.get_layer_status()
        self.lines.append((status.enabled, status.active_adapters, status.merged_adapters, status.requires_grad))
        self.lines.append(
            (status.available_adapters, status.devices, status.num_adapter_layers, status.base_model_type)
        )
        self.lines.append(
            [(layer.name, layer.module_type[5:], layer.active_adapters, layer.merged_adapters) for layer in layers]
        )
        self.lines.append(
            sorted({NAMES.sub("", name) for name, weight in model.named_parameters() if weight.requires_grad})
        )
        self.output(model)

    def output(self, model):
        found = output(model)
        for name, known in self.outputs.items():
            if torch.allclose(found, known, atol=1e-5):
                self.lines.append(f"gives {name}")
                return
        self.outputs[f"output {len(self.outputs)}"] = found
        self.lines.append(f"gives output {len(self.outputs) - 1}, which is new")

    def refused(self, act, *arguments, **options):
        """Append the kind of an error, and its text where PEFT itself wrote it."""
        with pytest.raises(Exception) as caught:  # noqa: PT011
            act(*arguments, **options)
        kinds = [
            kind.__name__ for kind in type(caught.value).__mro__ if kind.__module__ in ("builtins", "peft.utils.other")
        ]
        self.lines.append((kinds[0], None if isinstance(caught.value, InputError) else self.plain(caught.value)))

    def plain(self, text):
        return re.sub(r"\b(LORA|NOLA)\b|[Ll]ora|[Nn]ola", "it", re.sub(r"\{.*?\}", "", str(text)))


def switched(log):
    model = adapted(log.method)
    log.state(model)
    add(model, "other", log.method, r=3, target_modules=["down", "mix"], bias="none")
    log.state(model)
    model.set_adapter("other")
    log.state(model)
    model.base_model.set_adapter(["default", "other"])
    log.state(model)
    model.set_adapter("default", inference_mode=True)
    log.state(model)
    model.set_requires_grad("other")
    log.state(model)
    log.refused(model.set_adapter, "none")
    log.refused(model.add_adapter, "other", config(log.method))
    log.refused(model.add_adapter, "third", VeraConfig(target_modules=["up"]))


def disabled(log):
    model = adapted(log.method)
    log.output(model)
    with model.disable_adapter():
        log.state(model)
    log.state(model)
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        raise ZeroDivisionError
    log.state(model)
    model.merge_adapter()
    with model.disable_adapter():
        log.output(model)
    log.state(model)


def merged(log):
    model = adapted(log.method)
    add(model, "other", log.method)
    log.output(model)
    model.merge_adapter()
    log.state(model)
    model.merge_adapter()
    model.merge_adapter(["other"])
    log.state(model)
    log.refused(model.delete_adapter, "other")
    log.refused(model.merge_adapter, "other")
    model.unmerge_adapter()
    log.state(model)
    model.merge_adapter(["other"], safe_merge=True)
    log.state(model)
    model.set_adapter("other")
    log.state(model)
    model.merge_adapter(safe_merge=True)
    add(model, "third", log.method)
    log.state(model)


def deleted(log):
    model = adapted(log.method)
    add(model, "other", log.method, target_modules=["down", "mix"])
    add(model, "third", log.method, r=1)
    log.refused(model.delete_adapter, "none")
    model.delete_adapter("third")
    log.state(model)
    model.delete_adapter("default")
    log.state(model)
    model.delete_adapter("other")
    log.lines.append(model.base_model.active_adapters)
    log.output(model.base_model.model)
    add(model, "default", log.method)
    model.set_adapter("default")
    log.state(model)


def unloaded(log):
    model = adapted(log.method, target_modules=EVERY)
    log.output(model)
    plain = model.unload()
    log.output(plain)
    log.lines.append((sorted(plain.state_dict()), hasattr(plain, "peft_config"), type(plain.mix).__name__))
    model = adapted(log.method, plain)
    log.output(model)
    log.output(model.merge_and_unload(safe_merge=True))
    model = adapted(log.method)
    add(model, "other", log.method)
    log.output(model.merge_and_unload(adapter_names=["default", "other"]))
    model = adapted(log.method)
    get_peft_model(model.base_model.model, config(log.method))  # a second time, with a warning


def heads(log):
    model = adapted(log.method, modules_to_save=["head"], target_modules=["up", "head"])
    log.state(model)
    add(model, "other", log.method, modules_to_save=["head"])
    log.state(model)
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["other"].weight.add_(1.0)
    model.set_adapter("other")
    log.state(model)
    with model.disable_adapter():
        log.output(model)
    log.lines.append(sorted(NAMES.sub("", name) for name in get_peft_model_state_dict(model, adapter_name="other")))
    model.delete_adapter("other")
    log.state(model)


def biases(log):
    for bias in ("all", "nola_only"):
        model = adapted(log.method, bias=bias)
        log.state(model)
        log.lines.append(sorted({NAMES.sub("", name) for name in get_peft_model_state_dict(model)}))
        log.refused(add, model, "other", log.method, bias="all")
        with model.disable_adapter():
            log.output(model)


def frozen(log):
    model = adapted(log.method, inference_mode=True)
    log.state(model)
    model.set_adapter("default")
    log.state(model)


def copied(log):
    model = adapted(log.method)
    log.output(model)
    log.output(model)  # a second time, from what was remembered
    twin = copy.deepcopy(model)
    log.state(twin)
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.requires_grad:
                weight.mul_(2.0)
    log.output(twin)
    log.output(model)


def injected(log):
    model = adapted(log.method)
    log.output(model)
    state = {
        name.removeprefix("base_model.model."): weight for name, weight in get_peft_model_state_dict(model).items()
    }
    for source in (state, get_peft_model_state_dict(model)):
        plain = inject_adapter_in_model(config(log.method, init=True), net())
        log.output(plain)
        found = set_peft_model_state_dict(plain, source)
        log.lines.append(found.unexpected_keys)
        log.output(plain)
    log.output(inject_adapter_in_model(config(log.method, target_modules=["up"], init=True), net(), state_dict=None))


SCENARIOS = (switched, disabled, merged, deleted, unloaded, heads, biases, frozen, copied, injected)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_state_warning_and_refusal_is_that_of_lora(scenario):
    found = {}
    for method in METHODS:
        log = Log(method)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scenario(log)
        log.lines += [log.plain(warning.message) for warning in said if "fan_in_fan_out" not in str(warning.message)]
        found[method] = log.lines
    assert len(found["nola"]) > 0
    for number, (theirs, ours) in enumerate(zip(*found.values(), strict=False)):
        assert ours == theirs, f"line {number} of {scenario.__name__}"
    assert len(found["nola"]) == len(found["lora"])


TARGETS = [
    {"target_modules": ["up"]},
    {"target_modules": r"layers\.\d\.up|tokens"},
    {"target_modules": "all-linear"},
    {"target_modules": EVERY, "exclude_modules": r"layers\.0.*"},
    {"target_modules": LINEAR, "layers_to_transform": 1},
    {"target_modules": LINEAR, "layers_to_transform": [0], "layers_pattern": "layers"},
    {"target_modules": "all-linear", "modules_to_save": ["head"]},
    {"target_modules": ["absent"]},
    {"target_modules": ["up"], "exclude_modules": ["up"]},
    {"target_modules": LINEAR, "exclude_modules": ["absent"]},
    {"target_modules": r"layers\..*", "layers_to_transform": 1},
    {"target_modules": None},
]


@pytest.mark.parametrize("options", TARGETS, ids=str)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_the_layers_that_are_chosen_are_those_of_lora(options):
    found = []
    for method in METHODS:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                names = adapted(method, **options).base_model.targeted_module_names
            except ValueError as error:
                own = isinstance(error, InputError) or options["target_modules"] in (None, r"layers\..*")
                names = ValueError if own else (type(error), str(error))  # texts of a method, and those of PEFT itself
        found.append((names, [str(warning.message) for warning in said if "fan_in" not in str(warning.message)]))
    assert found[0] == found[1]


def test_a_linear_layer_with_an_adapter_is_still_linear_to_a_second_one():
    model = adapted(target_modules=["up"])
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        add(model, "other", target_modules="all-linear")
    assert all("other" in layer.nola_alpha for layer in model.modules() if isinstance(layer, NolaLayer))
    assert model.get_model_status().num_adapter_layers == 6


def test_an_expression_does_not_reach_inside_layers_with_an_adapter():
    model = adapted(target_modules=r"layers\.0\..*")
    add(model, "other", target_modules=r"layers\.0\..*|head")
    assert sorted(model.peft_config["other"].layers) == ["head", "layers.0.down", "layers.0.up"]


@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_of_weights_and_outputs_are_those_of_lora(dtype, cast):
    found = []
    for method in METHODS:
        model = get_peft_model(net(dtype=dtype), config(method), autocast_adapter_dtype=cast)
        model.add_adapter("other", config(method), autocast_adapter_dtype=cast)
        kinds = {weight.dtype for name, weight in model.named_parameters() if f".{method}_" in name}
        found.append((kinds, output(model).dtype))
        output(model.merge_and_unload())
    assert found[0] == found[1] == ({torch.float32 if cast else dtype}, dtype)


def test_a_batch_that_mixes_adapters_is_refused():
    model = adapted()
    add(model, "other")
    with pytest.raises(ValueError, match="'NOLA' is not compatible with the `PeftMixedModel`"):
        get_peft_model(net(), config(), mixed=True)
    with pytest.raises(AdapterError, match=r"adapter_names: one batch cannot mix.*LoRA") as caught:
        model(IDS, adapter_names=["default", "other", "default", "other"])
    assert isinstance(caught.value, ValueError)
    assert torch.equal(model(IDS, adapter_names=None), model(IDS))


def test_layers_without_a_peft_model_are_saved_in_16_bits_under_the_names_of_32():
    states = {}
    for bits in (32, 16):
        plain = inject_adapter_in_model(config(coefficient_bits=bits), net())
        states[bits] = get_peft_model_state_dict(plain)
        twin = inject_adapter_in_model(config(init=True, coefficient_bits=bits), net())
        set_peft_model_state_dict(twin, states[bits])
        assert torch.equal(output(twin), output(plain))
    assert sorted(states[16]) == sorted(states[32])
    assert {tensor.dtype for tensor in states[16].values()} == {torch.float16}
    with pytest.raises(AdapterError, match="coefficient_bits: 8 and 4 bits need a PeftModel"):
        get_peft_model_state_dict(inject_adapter_in_model(config(coefficient_bits=4), net()))


def test_a_sum_that_is_not_finite_is_not_merged():
    model = adapted()
    before = {name: weight.clone() for name, weight in model.named_parameters() if "base_layer" in name}
    with torch.no_grad():
        model.base_model.model.layers[0].up.nola_beta["default"][3] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected in the merged weights of adapter default"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)
    model.merge_adapter()  # as PEFT does: only the safe way looks
    assert model.base_model.model.layers[0].up.base_layer.weight.isnan().any()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_training_moves_coefficients_alone_and_loading_frozen_is_frozen(tmp_path):
    model = adapted(init=True, target_modules=EVERY)
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(output(model), output(net()))  # zero at the start, bit for bit
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 0.1)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "nola_" in name}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert all(
        weight.requires_grad == ("nola_" in name)
        for name, weight in PeftModel.from_pretrained(net(), tmp_path, is_trainable=True).named_parameters()
    )
