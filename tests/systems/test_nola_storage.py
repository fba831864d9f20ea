"""Adapters on disk: round trips in every number of bits, another process, LoRA folders for plain PEFT, banks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_bert
from sanov.core.errors import InputError
from sanov.systems.nola.bank import Bank, combined
from sanov.systems.nola.layers import adapted, attach
from sanov.systems.nola.lora import export_lora
from sanov.systems.nola.quantised import dequantised, packed, quantised, straight_through, unpacked
from sanov.systems.nola.storage import CONFIG, WEIGHTS, Adapter
from sanov.systems.nola.updates import Plan
from systems.nola_toy import LAYERS, PLAN, adapted_toy, stirred, tokens, toy

SRC = Path(__file__).parents[2] / "src"


def taken(model, **more):
    return Adapter.of(model, PLAN, LAYERS, base="toy", **more)


@pytest.fixture
def saved(tmp_path):
    """A folder, and what the model that was saved in it gives."""
    model = adapted_toy()
    taken(model).save(tmp_path / "adapter")
    return tmp_path / "adapter", model(tokens())


def edited(folder, change):
    tree = json.loads((folder / CONFIG).read_text())
    change(tree)
    (folder / CONFIG).write_text(json.dumps(tree))


def test_round_trip_is_bit_for_bit(saved):
    folder, before = saved
    model = toy()
    Adapter.load(folder).put(model)
    assert torch.equal(model(tokens()), before)
    assert set(load_file(folder / WEIGHTS)) == {
        f"base_model.model.{layer}.nola_{kind}" for layer in LAYERS for kind in ("alpha", "beta")
    }


def test_another_process_gives_the_same_bits(saved, tmp_path):
    folder, before = saved
    torch.save([toy().state_dict(), tokens()], tmp_path / "model.pt")
    code = f"""
import torch
from torch import nn
from sanov.systems.nola.storage import Adapter
torch.set_num_threads(1)
torch.manual_seed(5)
model = nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Linear(8, 2))
state, ids = torch.load({str(tmp_path / "model.pt")!r})
model.load_state_dict(state)
Adapter.load({str(folder)!r}).put(model)
torch.save(model(ids).detach(), {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SRC)})
    assert torch.equal(torch.load(tmp_path / "out.pt"), before)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_fewer_bits_are_within_half_a_step(bits, tmp_path):
    model = adapted_toy()
    adapter = taken(model, head_modules=["4"])
    adapter.save(tmp_path / "a", bits)
    read = Adapter.load(tmp_path / "a")
    assert read.numbers == adapter.numbers == 3 * (9 + 7)
    assert read.head_numbers == 2 * 8 + 2
    for name, pair in adapter.coefficients.items():
        for old, new in zip(pair, read.coefficients[name], strict=True):
            step = float(old.abs().max()) / {16: 1024, 8: 127, 4: 7}[bits]
            assert (old - new).abs().max() <= step / 2 * (1 + 1e-5)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    if bits < 16:
        assert tensors["coefficients"].numel() == -(-48 * bits // 8)
        assert tensors["scales"].numel() == 6


def test_error_of_the_update_is_bounded_by_that_of_the_coefficients(tmp_path):
    """|dW - dW'| <= s (|B| |dA| + |dB| |A'|), and |dA| <= |d alpha| max |U| / sqrt(k)."""
    model = adapted_toy()
    taken(model).save(tmp_path / "a", 8)
    other = toy()
    Adapter.load(tmp_path / "a").put(other)
    for name, layer in adapted(model).items():
        (a, b), (a2, b2) = layer.update.factors(), adapted(other)[name].update.factors()
        alpha, alpha2 = layer.update.nola_alpha, adapted(other)[name].update.nola_alpha
        assert (a - a2).norm() <= (alpha - alpha2).abs().sum() * a.numel() ** 0.5 / 9**0.5
        assert (b @ a - b2 @ a2).norm() <= b.norm() * (a - a2).norm() + (b - b2).norm() * a2.norm() + 1e-6


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7)])
def test_codes(bits, largest):
    vector = torch.tensor([1.0, -1.0, 0.0, 0.4999 / largest, 0.5001 / largest, -3.0 / largest, 0.25])
    codes, scale = quantised(vector, bits)
    assert codes.tolist()[:6] == [largest, -largest, 0, 0, 1, -3]
    assert (dequantised(codes, scale) - vector).abs().max() <= float(scale) / 2 * (1 + 1e-5)
    assert unpacked(packed(codes, bits), [3, 4], bits)[0].tolist() == codes.tolist()[:3]
    assert unpacked(packed(codes, bits), [3, 4], bits)[1].tolist() == codes.tolist()[3:]
    assert quantised(torch.zeros(3), bits)[0].tolist() == [0, 0, 0]


def test_every_code_of_four_bits_is_read_back():
    codes = torch.arange(-7, 8, dtype=torch.int8)
    assert unpacked(packed(codes, 4), [15], 4)[0].tolist() == codes.tolist()
    with pytest.raises(InputError, match="there are 8 bytes"):
        unpacked(packed(codes, 4), [17], 4)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_straight_through_rounds_and_passes_the_gradient_on(bits, tmp_path):
    plan = Plan(rank=3, num_basis_a=9, num_basis_b=7, alpha=3.0, bits=bits)
    model = adapted_toy(plan)
    before, vector = model(tokens()), torch.randn(9, requires_grad=True)
    Adapter.of(model, plan, LAYERS).save(tmp_path / "a", bits)
    other = toy()
    Adapter.load(tmp_path / "a").put(other)
    torch.testing.assert_close(other(tokens()), before, rtol=0, atol=1e-6)
    (straight_through(vector, bits) * torch.arange(9.0)).sum().backward()
    assert torch.equal(vector.grad, torch.arange(9.0))
    assert len(straight_through(vector, bits).unique()) <= 15 or bits > 4


# -- LoRA -------------------------------------------------------------------------------------------------------------


def test_plain_peft_loads_the_export_where_there_is_no_sanov(tmp_path):
    """Linear and embedding layers and a head, in a process that cannot import this package."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny_bert.save(tmp_path / "bert")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    attach(model, ["query", "value", "word_embeddings"], PLAN, seed=1)
    stirred(model)
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[2, 5, 7, 3], [2, 6, 8, 3]])
    before = model(input_ids=ids).logits.detach()
    export_lora(model, tmp_path / "lora", base=str(folder), task="SEQ_CLS", head_modules=["classifier"])
    code = f"""
import sys, torch
sys.modules["sanov"] = None  # to import it fails from here on, wherever it is installed
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained({str(tmp_path / "lora")!r}).eval()
ids = torch.tensor({ids.tolist()})
out = [model(input_ids=ids).logits.detach()]
out.append(model.merge_and_unload()(input_ids=ids).logits.detach())
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-S", "-c", _without_editable() + code], check=True, env=env, cwd=tmp_path)
    for found in torch.load(tmp_path / "out.pt"):
        torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-6)


def _without_editable():
    """The installed packages without what was installed in place."""
    import torch as somewhere

    return f"import sys; sys.path.append({str(Path(somewhere.__file__).parents[1])!r})\n"


def test_exports_of_other_layers_are_those_of_peft(tmp_path):
    from peft import PeftModel
    from transformers.pytorch_utils import Conv1D

    class Net(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.layer = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1) if kind == "conv" else Conv1D(6, 9)

        def forward(self, x):
            return self.layer(x)

    for kind, shape in (("conv", (2, 3, 9, 9)), ("transposed", (4, 9))):
        model, x = Net(kind), torch.randn(shape, generator=torch.Generator().manual_seed(1))
        attach(model, ["layer"], PLAN)
        stirred(model)
        export_lora(model, tmp_path / kind)
        other = PeftModel.from_pretrained(Net(kind), tmp_path / kind).eval()
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-6)


# -- banks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_bank_gives_each_adapter_as_its_own_folder_does(bits, tmp_path):
    models = {f"m{number}": adapted_toy(stir=number) for number in range(5)}
    for number, model in enumerate(models.values()):
        model[4].bias.data.add_(number)
    adapters = {name: taken(model, head_modules=["4"]) for name, model in models.items()}
    Bank.of(adapters, bits=bits).save(tmp_path / "bank.safetensors")
    bank, model = Bank.load(tmp_path / "bank.safetensors"), adapted_toy(stir=9)
    assert len(bank) == 5
    for name, adapter in adapters.items():
        adapter.save(tmp_path / name, bits)
        other = toy()
        Adapter.load(tmp_path / name).put(other)
        bank.switch(model, name)
        assert torch.equal(model(tokens()), other(tokens()))
    sizes = [(tmp_path / "bank.safetensors").stat().st_size, (tmp_path / "m0" / WEIGHTS).stat().st_size]
    rows = {32: 4 * 48, 16: 2 * 48, 8: 48 + 24, 4: 24 + 24}[bits] + 18 * (4 if bits == 32 else 2)
    Bank.of({f"a{i}": next(iter(adapters.values())) for i in range(25)}, bits=bits).save(tmp_path / "large.safetensors")
    grown = (tmp_path / "large.safetensors").stat().st_size - sizes[0]
    assert 20 * rows <= grown <= 20 * rows + 500  # and the names


def test_mean_and_difference_are_exact_in_each_factor():
    models = [adapted_toy(stir=number) for number in (1, 2)]
    first, second = map(taken, models)
    for weights, expected in ((None, (0.5, 0.5)), ((1.0, -1.0), (1.0, -1.0))):
        model = toy()
        combined([first, second], weights).put(model)
        for name, layer in adapted(model).items():
            (a, b), (a1, b1), (a2, b2) = (
                m.update.factors() for m in (layer, adapted(models[0])[name], adapted(models[1])[name])
            )
            start = layer.update.space.factors(torch.zeros(9), torch.zeros(7))[0]
            torch.testing.assert_close(b, expected[0] * b1 + expected[1] * b2)
            torch.testing.assert_close(a - start, expected[0] * (a1 - start) + expected[1] * (a2 - start))


def test_what_differs_in_its_bases_is_neither_banked_nor_combined():
    first, other = taken(adapted_toy()), taken(adapted_toy(seed=4))
    for make in (lambda: Bank.of({"a": first, "b": other}), lambda: combined([first, other])):
        with pytest.raises(InputError, match="its bases of 0 are others than those of the first adapter"):
            make()
    with pytest.raises(InputError, match="the bank has no such adapter; expected a"):
        Bank.of({"a": first}).adapter("b")
    with pytest.raises(InputError, match="bases are not those of the bank"):
        Bank.of({"a": first}).switch(adapted_toy(seed=4), "a")
    model = adapted_toy()
    adapted(model)["1"].merge()
    with pytest.raises(InputError, match="merged and cannot be exchanged"):
        Bank.of({"a": first}).switch(model, "a")


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["layers"]["1"].update(seed=5),
            r"1, bases of philox-u24-v1: their fingerprint is .*expected .*as the adapter says",
        ),
        (lambda tree: tree["layers"]["1"].update(seed=5.0), r"1, seed: the seed is 5.0; expected a whole number"),
        (lambda tree: tree["layers"]["1"].pop("seed"), "1, seed: there is no seed"),
        (lambda tree: tree["layers"]["1"].update(fingerprint="0"), "their fingerprint is"),
        (lambda tree: tree.update(distribution="rademacher"), "their fingerprint is"),
        (
            lambda tree: tree.update(generator="philox-u24-v0"),
            r"of the generator philox-u24-v0; expected philox-u24-v1",
        ),
        (lambda tree: tree.update(peft_type="LORA"), "the kind of adapter is LORA; expected NOLA"),
        (lambda tree: tree.pop("r"), "lacks or garbles 'r'"),
    ],
)
def test_a_changed_configuration_is_refused(saved, change, message):
    edited(saved[0], change)
    with pytest.raises(InputError, match=message):
        Adapter.load(saved[0])


def test_a_flipped_bit_of_a_fingerprint_is_refused(saved):
    tree = json.loads((saved[0] / CONFIG).read_text())
    known = tree["layers"]["0"]["fingerprint"]
    edited(saved[0], lambda tree: tree["layers"]["0"].update(fingerprint=f"{int(known, 16) ^ 1:016x}"))
    with pytest.raises(InputError, match=f"expected {int(known, 16) ^ 1:016x}"):
        Adapter.load(saved[0])


def test_another_base_model_is_refused(saved):
    adapter, model = Adapter.load(saved[0]), toy()
    model[1].weight.data.mul_(1.001)
    with pytest.raises(InputError, match="1: the weight is not that on which the adapter was trained"):
        adapter.put(model)
    assert not adapted(model)
    model = toy()
    model[3] = torch.nn.Linear(10, 9)
    with pytest.raises(InputError, match="3: the weight is 9 x 10; expected 8 x 10, as the adapter says"):
        adapter.put(model)
    with pytest.raises(InputError, match="target_modules, 0: is a Sequential; expected Linear"):
        adapter.put(torch.nn.Sequential(toy()))
    with pytest.raises(InputError, match="3: the model has no such layer"):
        adapter.put(toy()[:2])


def test_the_base_model_in_half_precision_is_known_again(saved):
    for half in (toy().bfloat16(), toy().half()):
        loaded = Adapter.load(saved[0])
        loaded.put(half)
        assert adapted(half).keys() == adapted(adapted_toy()).keys() != set()
        assert taken(half).numbers == loaded.numbers


def test_missing_or_misshapen_coefficients_are_refused(saved):
    tensors = load_file(saved[0] / WEIGHTS)
    save_file({name: values for name, values in tensors.items() if "1.nola_beta" not in name}, saved[0] / WEIGHTS)
    with pytest.raises(InputError, match="1: there is no beta; expected 7 coefficients"):
        Adapter.load(saved[0])
    save_file({**tensors, "base_model.model.1.nola_beta": torch.zeros(8)}, saved[0] / WEIGHTS)
    with pytest.raises(InputError, match=r"beta has the shape \(8,\)"):
        Adapter.load(saved[0])


def test_what_cannot_be_saved_is_refused_and_nothing_written(tmp_path):
    model = adapted_toy()
    model[1].update.nola_alpha.data[0] = torch.nan
    with pytest.raises(InputError, match="1: coefficients are not finite"):
        taken(model).save(tmp_path / "a")
    with pytest.raises(InputError, match="the model has no adapter"):
        taken(toy())
    model = adapted_toy()
    adapted(model)["1"].merge()
    with pytest.raises(InputError, match=r"merged into the weight. Unmerge it first"):
        taken(model)
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no bank of adapters"):
        Bank.load(tmp_path / "b.safetensors")
