"""Adapted layers in models: a no-op at the start, merged and unmerged, switched off, and under what torch wraps around."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tiny_bert
from sanov.core.errors import InputError
from sanov.systems.nola.layers import adapted, attach, detach, disabled, layer_seed
from sanov.systems.nola.updates import Plan
from systems.nola_toy import LAYERS, PLAN, adapted_toy, stirred, tokens, toy


class Conv1D(nn.Module):
    """A linear layer of GPT-2: its weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


KINDS = {
    "linear": (nn.Linear(6, 8), (4, 6)),
    "transposed": (Conv1D(8, 6), (4, 6)),
    "conv1": (nn.Conv1d(3, 5, 3, padding=1), (2, 3, 9)),
    "conv2": (nn.Conv2d(3, 5, (3, 2), stride=2, dilation=2, padding=1, padding_mode="circular"), (2, 3, 9, 9)),
    "same": (nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect"), (2, 3, 7, 7)),
    "conv3": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("preset", ["gpt", "readme"])
def test_nothing_changes_at_the_start(preset):
    model, ids = toy(), tokens()
    before = model(ids)
    attach(model, LAYERS, Plan(preset=preset), seed=3)
    assert torch.equal(model(ids), before)


def test_vit_starts_with_a_small_update_of_known_norm():
    """Every entry of A is a mean of k uniform ones of variance 1 / (3 r in): |A|^2 is 1 / (3 k) on average."""
    layers = [attach(nn.Sequential(nn.Linear(40, 30)), ["0"], Plan(preset="vit"), seed=seed)["0"] for seed in range(30)]
    norms = [layer.update.factors()[0].pow(2).sum().item() for layer in layers]
    assert abs(np.mean(norms) - 1 / (3 * 64)) < 4 * np.std(norms, ddof=1) / 30**0.5
    assert all(layer.update.delta().abs().max() > 0 for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_for_every_kind_of_layer(kind):
    layer, shape = KINDS[kind]
    model = nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    base, weight = model(x).detach(), model[0].weight.detach().clone()
    found = attach(model, ["0"], PLAN, seed=1)["0"]
    stirred(model)
    with_update = model(x)
    assert (with_update - base).abs().max() > 1e-2
    found.merge()
    torch.testing.assert_close(model(x), with_update, rtol=0, atol=1e-5)
    found.unmerge()
    torch.testing.assert_close(found.base.weight, weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(x), with_update, rtol=0, atol=1e-5)
    found.merge()
    detach(model)
    assert type(model[0]) is type(layer)
    torch.testing.assert_close(model(x), with_update, rtol=0, atol=1e-5)


def test_merged_embedding():
    model, ids = adapted_toy(), tokens()
    before = model(ids)
    for layer in adapted(model).values():
        layer.merge()
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-5)


def test_bases_of_layers_are_shared_by_shape_only_where_asked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    own = [layer.update.space.first.seed for layer in attach(copy.deepcopy(model), r"\d", PLAN).values()]
    by_shape = attach(model, r"\d", Plan(share_basis="by_shape", kept=True))
    shared = [layer.update.space.first.seed for layer in by_shape.values()]
    assert len(set(own)) == 3
    assert len(set(shared)) == 2
    assert by_shape["0"].update.space.first is by_shape["1"].update.space.first
    assert len({layer_seed(seed, number) for seed in range(50) for number in range(50)}) == 2500


def test_number_of_trained_numbers_knows_neither_width_nor_rank():
    for plan in (PLAN, Plan(rank=5, num_basis_a=9, num_basis_b=7)):
        for width in (4, 40):
            model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
            attach(model, r"\d", plan)
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (9 + 7)


def test_switched_off_and_on_again_also_after_an_error():
    model, ids = adapted_toy(), tokens()
    on, base = model(ids), toy()(ids)

    def fail():
        with disabled(model):
            torch.testing.assert_close(model(ids), base, rtol=0, atol=0)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert torch.equal(model(ids), on)
    adapted(model)["1"].merge()
    with (
        pytest.raises(InputError, match=r"1: its update is merged and cannot be switched off. Unmerge it first"),
        disabled(model),
    ):
        pass


def test_no_random_state_is_touched():
    model, ids = adapted_toy(), tokens()
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        model(ids).sum().backward()
        assert torch.equal(torch.random.get_rng_state(), before)


def test_what_was_made_once_is_made_anew_after_a_change():
    model, ids = adapted_toy(), tokens()
    with torch.no_grad():
        before = model(ids)
        assert torch.equal(model(ids), before)
        model[1].update.nola_beta.add_(0.5)
        assert not torch.equal(model(ids), before)


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for use in (False, True):
        model, x = (
            nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)),
            torch.ones(3, 6, requires_grad=True),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for weight in model.parameters():
                nn.init.normal_(weight)
            attach(model, ["0", "2"], PLAN)
            stirred(model)
            out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if use else model(x)
            out.pow(2).sum().backward()
        grads.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_under_autocast_sums_stay_in_float32():
    model, ids = adapted_toy(), tokens()
    factors = [factor.clone() for factor in model[1].update.factors()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model[1].update.factors()
        out = model(ids)
        out.float().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(factors, inside, strict=True))
    assert out.dtype == torch.bfloat16
    assert model[1].update.nola_beta.grad.dtype == torch.float32


def test_a_copy_is_independent():
    model, ids = adapted_toy(), tokens()
    other = copy.deepcopy(model)
    assert torch.equal(other(ids), model(ids))
    stirred(other, seed=9)
    assert not torch.equal(other(ids), model(ids))


def test_in_a_wrapper_of_several_processes(tmp_path):
    from torch import distributed

    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model, ids = adapted_toy(), tokens()
        model(ids).pow(2).sum().backward()
        expected = [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]
        model.zero_grad()
        nn.parallel.DistributedDataParallel(model)(ids).pow(2).sum().backward()
        found = [weight.grad for weight in model.parameters() if weight.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    finally:
        distributed.destroy_process_group()


def test_padding_and_order_of_rows_make_no_difference(tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_bert.save(tmp_path / "bert", head=False)).eval()
    attach(model, ["query", "value"], PLAN)
    stirred(model)
    ids = torch.tensor([[2, 5, 7, 3, 0, 0], [2, 6, 8, 9, 5, 3]])
    mask = (ids != 0).long()
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    alone = model(input_ids=ids[:1, :4]).last_hidden_state
    turned = model(input_ids=ids.flip(0), attention_mask=mask.flip(0)).last_hidden_state
    torch.testing.assert_close(states[:1, :4], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.flip(0), states, rtol=0, atol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_no_layer_of_that_name_is_told_with_the_nearest():
    model = nn.ModuleDict({"query_proj": nn.Linear(2, 2), "value_proj": nn.Linear(2, 2), "act": nn.Tanh()})
    with pytest.raises(InputError, match=r"no layer is named \['query'\]. The nearest are: query_proj"):
        attach(model, ["query"], PLAN)


def test_a_layer_of_another_type_is_told():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(InputError, match=r"target_modules, 1: is a LayerNorm; expected Linear, Conv1D, Embedding"):
        attach(model, ["0", "1"], PLAN)
    with pytest.raises(InputError, match="of 2 groups"):
        attach(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), ["0"], PLAN)
    assert all(weight.requires_grad for weight in model.parameters())  # nothing was changed


def test_two_adapters_on_a_layer_are_refused():
    model = adapted_toy()
    with pytest.raises(InputError, match="has an adapter already"):
        attach(model, ["1"], PLAN)


def test_merging_twice_or_into_quantised_weights_is_refused():
    layer = adapted_toy()[1]
    with pytest.raises(InputError, match="not in the weight"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(InputError, match="in the weight already"):
        layer.merge()
    layer.unmerge()
    layer.base.weight = nn.Parameter(torch.zeros(10, 12, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="De-quantise the layer, or export the adapter to LoRA instead"):
        layer.merge()
