"""Our decoder is transformers' Llama: logits, gradients and folders; and padding, neighbours and order change nothing."""

import json
import re
from dataclasses import replace

import pytest
import torch

from sanov.core.errors import InputError
from sanov.nets.reads import Read
from sanov.nets.shapes import Shape
from sanov.nets.transformer import Decoder, load_decoder, save_decoder

transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")

import tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one head of keys": {"num_key_value_heads": 1},
    "no groups": {"num_key_value_heads": 4},
    "head width given": {"head_dim": 6},
    "biases": {"attention_bias": True},
    "short wavelengths": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "long wavelengths": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "llama3": {"rope_parameters": LLAMA3},
    "another epsilon": {"rms_norm_eps": 0.1},
}
SMALL = Shape(vocabulary=24, width=16, layers=2, heads=4, mlp=24, kv_heads=2, context=64)


def ids_of(rows, tokens, seed=0):
    return torch.randint(2, 24, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def all_logits(model, ids, mask=None):
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    with torch.no_grad():
        return model(ids, mask, {"all": Read(torch.ones_like(mask))})["all"].view(*ids.shape, -1)


def spread_out(model, std=0.3):
    """Weights large enough that the outputs say something."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            centre = 1.0 if weight.ndim == 1 else 0.0
            weight.normal_(centre, std, generator=torch.Generator().manual_seed(number))
    return model


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_logits_and_folders_are_those_of_transformers(settings, tmp_path):
    theirs = tiny_llama.llama(**settings)
    ours = load_decoder(tiny_llama.save(theirs, tmp_path / "theirs"))
    ids = ids_of(3, 40)
    with torch.no_grad():
        expected = theirs(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(all_logits(ours, ids), expected, atol=1e-4, rtol=0)
    save_decoder(ours, tmp_path / "ours")
    again, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)
    assert again.generation_config.eos_token_id == 1
    assert again.config.bos_token_id is None
    assert load_decoder(tmp_path / "ours").shape == ours.shape


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True, "attention_bias": True}])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_transformers(settings, padded, tmp_path):
    theirs = tiny_llama.llama(**settings).double()
    ours = load_decoder(tiny_llama.save(theirs, tmp_path / "theirs"))
    ids, lengths = ids_of(3, 12), torch.tensor([12, 3, 5] if padded else [12, 12, 12])
    mask = torch.arange(12) < lengths[:, None]
    at = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    at[:, 0] = False
    tokens = ids[:, 1:][at[:, :-1]]
    ours(ids, mask, {"a": Read(at, tokens)})["a"].square().sum().backward()
    logits = theirs(ids, attention_mask=mask.long()).logits[at]
    logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].square().sum().backward()
    compared = 0
    for name, weight in theirs.named_parameters():
        assert (
            ours.get_parameter(name).grad - weight.grad
        ).norm() < 1e-5 * weight.grad.norm()  # their norms are float32
        compared += 1
    assert compared == len(list(ours.parameters()))


def test_a_folder_of_the_older_spelling(tmp_path):
    """Before its fifth version transformers wrote the base and the stretch of rotations side by side."""
    theirs = tiny_llama.llama(rope_parameters=LLAMA3)
    folder = tiny_llama.save(theirs, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    (folder / "config.json").write_text(json.dumps(config))
    ids = ids_of(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(all_logits(load_decoder(folder), ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_weights_in_several_files(tmp_path):
    theirs = tiny_llama.llama()
    folder = tiny_llama.save(theirs, tmp_path / "theirs", max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    ids = ids_of(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(all_logits(load_decoder(folder), ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_half_precision_stays_near(tmp_path):
    theirs = tiny_llama.llama().bfloat16()
    ours = load_decoder(tiny_llama.save(theirs, tmp_path / "theirs"))
    assert ours.lm_head.weight.dtype == torch.bfloat16
    ids = ids_of(2, 9)
    with torch.no_grad():
        their_error = theirs(ids).logits
    exact = all_logits(ours.float(), ids)
    their_error = (their_error - exact).abs().mean()
    assert 0 < (all_logits(ours.bfloat16(), ids) - exact).abs().mean() < 1.5 * their_error


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right", "both", "between"])
@pytest.mark.parametrize("amount", [1, 30])
def test_padding_changes_nothing(side, amount):
    model = spread_out(Decoder(SMALL))
    row = ids_of(1, 7)
    alone = all_logits(model, row)
    places = {
        "left": amount + torch.arange(7),
        "right": torch.arange(7),
        "both": amount + torch.arange(7),
        "between": torch.cat([torch.arange(3), amount + torch.arange(3, 7)]),
    }[side]
    ids = torch.full((1, amount + 7 + (amount if side == "both" else 0)), 23)
    ids[0, places] = row[0]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, places] = True
    padded = all_logits(model, ids, mask)
    torch.testing.assert_close(padded[:, places], alone, atol=1e-5, rtol=0)
    assert padded.isfinite().all()
    other = torch.where(mask, ids, torch.tensor(5))
    assert torch.equal(all_logits(model, other, mask)[:, places], padded[:, places])


def test_neighbours_and_order_change_nothing():
    model = spread_out(Decoder(SMALL))
    ids, lengths = ids_of(5, 20), torch.tensor([20, 3, 11, 1, 7])
    mask = torch.arange(20) >= 20 - lengths[:, None]
    together = all_logits(model, ids, mask)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = all_logits(model, ids[order], mask[order])
    for row in range(5):
        alone = all_logits(model, ids[row : row + 1, -lengths[row] :])[0]
        for found in (together[row], shuffled[order.tolist().index(row)]):
            torch.testing.assert_close(found[-lengths[row] :], alone, atol=1e-5, rtol=0)


def test_a_row_of_padding_alone_is_finite():
    mask = torch.zeros(2, 4, dtype=torch.bool)
    assert all_logits(spread_out(Decoder(SMALL)), ids_of(2, 4), mask).isfinite().all()
    mask[0, :2] = True
    assert all_logits(spread_out(Decoder(SMALL)), ids_of(2, 4), mask).isfinite().all()


def test_nothing_may_be_read_and_no_row_be_there():
    """A process that has no rows of a step still takes part in it."""
    model, ids = Decoder(SMALL), ids_of(3, 5)
    nowhere = torch.zeros_like(ids, dtype=torch.bool)
    for rows in (3, 0):
        mask, at = ~nowhere[:rows], nowhere[:rows]
        found = model(ids[:rows], mask, {"a": Read(at, ids[:rows][at]), "logits": Read(at)})
        assert (found["a"].shape, found["logits"].shape) == ((0,), (0, 24))
        found["a"].sum().backward()
    assert all(not weight.grad.any() for weight in model.parameters())


def test_a_token_depends_on_those_before_it_alone():
    model = spread_out(Decoder(SMALL))
    ids = ids_of(1, 10)
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 24
    difference = (all_logits(model, ids) - all_logits(model, changed)).abs().amax(dim=-1)[0]
    assert not difference[:6].any()
    assert (difference[6:] > 1e-3).all()


def test_hidden_states_are_what_the_head_reads():
    model = spread_out(Decoder(SMALL))
    ids, mask = ids_of(2, 6), torch.tensor([[False, True, True, True, True, True], [True] * 3 + [False] * 3])
    states = model.hidden(ids, mask)
    assert states.shape == (2, 6, 16)
    logits = all_logits(model, ids, mask)
    torch.testing.assert_close((states @ model.lm_head.weight.T)[mask], logits[mask], atol=1e-5, rtol=0)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_weights():
    state = torch.get_rng_state()
    first, again, other, empty = (
        Decoder(SMALL),
        Decoder(SMALL, seed=0),
        Decoder(SMALL, seed=1),
        Decoder(SMALL, seed=None),
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert name.endswith("norm.weight") or not torch.equal(weight, other.state_dict()[name])
        assert not empty.state_dict()[name].any() or name.endswith("norm.weight")
    assert 0.018 < first.lm_head.weight.std() < 0.022


def test_a_folder_is_refused_with_the_reason(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        load_decoder(tmp_path / "none")
    with pytest.raises(InputError, match=r"config.json: no such file"):
        load_decoder(tmp_path)
    folder = tmp_path / "model"
    save_decoder(Decoder(SMALL), folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "silu"', '"hidden_act": "gelu"'))
    with pytest.raises(InputError, match="hidden_act = 'gelu'"):
        load_decoder(folder)
    (folder / "config.json").write_text(config.replace('"intermediate_size": 24', '"intermediate_size": 26'))
    expected = re.escape("the weight model.layers.0.mlp.down_proj.weight is [16, 24]; expected [16, 26]")
    with pytest.raises(InputError, match=expected):
        load_decoder(folder)
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(InputError, match=r"layers\.1\..* expected absent"):
        load_decoder(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        load_decoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        load_decoder(folder)


def test_saving_leaves_other_files_alone(tmp_path):
    (tmp_path / "README.md").write_text("a card")
    save_decoder(Decoder(SMALL), tmp_path)
    save_decoder(Decoder(SMALL, seed=1), tmp_path)
    assert (tmp_path / "README.md").read_text() == "a card"
    assert torch.equal(load_decoder(tmp_path).lm_head.weight, Decoder(SMALL, seed=1).lm_head.weight)


def test_an_adapter_on_a_tied_head_unties_it(tmp_path):
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.flip(-1) @ self.weight.T

    model = spread_out(Decoder(replace(SMALL, tied=True)))
    adapted = Adapted(16, 24, bias=False)
    adapted.weight = model.lm_head.weight
    model.lm_head = adapted
    save_decoder(torch.nn.Sequential(model), tmp_path)
    again, ids = load_decoder(tmp_path), ids_of(2, 6)
    assert not again.shape.tied
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    torch.testing.assert_close(all_logits(again, ids), all_logits(model, ids), atol=1e-5, rtol=0)


def test_mixed_precision_stays_near():
    model, ids = spread_out(Decoder(SMALL)), ids_of(2, 9)
    mask = torch.arange(9) < torch.tensor([9, 3])[:, None]
    reads = {"a": Read(mask, ids[mask])}
    exact = model(ids, mask, reads)["a"]
    exact.sum().backward()
    gradient, model.lm_head.weight.grad = model.lm_head.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = model(ids, mask, reads)["a"]
    found.sum().backward()
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.1
    assert (model.lm_head.weight.grad - gradient).norm() < 0.05 * gradient.norm()


def test_rows_beyond_the_context():
    model = Decoder(SMALL)
    ids = ids_of(1, 65)
    with pytest.raises(InputError, match="the longest row has 65 tokens; expected at most the model's context of 64"):
        model(ids, torch.ones_like(ids, dtype=torch.bool), {"a": Read(torch.ones_like(ids, dtype=torch.bool))})
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 0] = False  # padding is not in the context
    assert all_logits(model, ids, mask).isfinite().all()
