"""Completions are samples of the model: with its own log-probabilities, whatever the batch, and stopped where they end."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from sanov.core.errors import InputError
from sanov.nets.decoding import CachedDecoding
from sanov.nets.reads import Read
from sanov.nets.sampling import keyed_uniforms, sample
from sanov.nets.shapes import Shape
from sanov.nets.transformer import Decoder

SMALL = Shape(vocabulary=24, width=16, layers=2, heads=4, mlp=24, kv_heads=2, context=64)
PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11], [12, 13]]
LIMIT = 12


def decoder(shape=SMALL, std=0.3):
    model = Decoder(shape, seed=3)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, std, generator=torch.Generator().manual_seed(number))
    return model


def noise(rows, limit=LIMIT, seed=0):
    return keyed_uniforms(seed, 0, torch.arange(rows), limit)


def drawn(model, prompts=PROMPTS, group_size=1, limit=LIMIT, eos=1, pad=0, **options):
    options.setdefault("uniforms", noise(len(prompts) * group_size, limit))
    return sample(model, prompts, group_size=group_size, limit=limit, eos=eos, pad=pad, **options)


def rows_of(sampled):
    return [row[:length].tolist() for row, length in zip(sampled.tokens, sampled.lengths, strict=True)]


def full_log_probs(model, prompt, completion, temperature=1.0):
    ids = torch.tensor([[*prompt, *completion]])
    at = torch.zeros_like(ids, dtype=torch.bool)
    at[0, len(prompt) - 1 : -1] = True
    read = Read(at, torch.tensor(completion), temperature)
    with torch.no_grad():
        return model(ids, torch.ones_like(at), {"a": read})["a"]


# -- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [SMALL, Shape(24, 16, 3, 2, 24, head_width=6, tied=True, attention_bias=True)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_cached_decode_gives_the_log_probs_of_a_full_forward(dtype, tolerance, shape, temperature):
    model = decoder(shape, 0.25).to(dtype)
    sampled = drawn(model, group_size=3, eos=22, temperature=temperature)
    assert sampled.log_probs.dtype == dtype
    assert len(set(sampled.lengths.tolist())) > 1  # rows ended and were dropped on the way
    for row, completion in enumerate(rows_of(sampled)):
        expected = full_log_probs(model, PROMPTS[row // 3], completion, temperature)
        assert (sampled.log_probs[row, : len(completion)] - expected).abs().max() < tolerance


def test_half_precision_stays_near():
    model = decoder().bfloat16()
    sampled = drawn(model, group_size=2)
    assert sampled.log_probs.dtype == torch.float32
    for row, completion in enumerate(rows_of(sampled)):
        expected = full_log_probs(model, PROMPTS[row // 2], completion)
        assert (sampled.log_probs[row, : len(completion)] - expected).abs().max() < 0.2


def test_what_stands_behind_the_end_is_padding():
    sampled = drawn(decoder(), group_size=8, pad=17)
    assert sampled.tokens.shape == sampled.log_probs.shape
    behind = torch.arange(sampled.tokens.shape[1]) >= sampled.lengths[:, None]
    assert behind.any()
    assert (sampled.tokens[behind] == 17).all()
    assert not sampled.log_probs[behind].any()
    for completion, finished in zip(rows_of(sampled), sampled.finished, strict=True):
        assert (1 in completion) == bool(finished)
        assert 1 not in completion[:-1]
        assert finished or len(completion) == LIMIT


def test_samples_can_be_used_in_training():
    """What inference mode made must not come into the graph of gradients."""
    model = decoder()
    sampled = drawn(model)
    ids = sampled.tokens
    at = torch.ones_like(ids, dtype=torch.bool)
    model(ids, at, {"a": Read(at, ids.flatten())})["a"].mul(sampled.log_probs.flatten()).sum().backward()
    assert model.lm_head.weight.grad.any()


# -- rows do not depend on one another --------------------------------------------------------------------------------


def test_rows_order_and_groups_change_nothing():
    model, group = decoder(), 4
    uniforms = noise(16)
    together = rows_of(drawn(model, group_size=group, uniforms=uniforms))
    alone = [rows_of(drawn(model, [PROMPTS[row // group]], uniforms=uniforms[row : row + 1]))[0] for row in range(16)]
    assert together == alone
    order = [2, 0, 3, 1]
    mixed = torch.cat([uniforms[group * place : group * (place + 1)] for place in order])
    shuffled = rows_of(drawn(model, [PROMPTS[place] for place in order], group_size=group, uniforms=mixed))
    assert shuffled == [row for place in order for row in together[group * place : group * (place + 1)]]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_ended_rows_changes_nothing(share, monkeypatch):
    model = decoder()
    usual = drawn(model, group_size=8)
    monkeypatch.setattr("sanov.nets.sampling.DROPPED", share)
    selected = []
    select = CachedDecoding.select
    monkeypatch.setattr(
        CachedDecoding, "select", lambda self, rows: (selected.append(len(rows)), select(self, rows))[1]
    )
    other = drawn(model, group_size=8)
    assert (len(selected) > 2) == (share == 0)
    assert torch.equal(other.tokens, usual.tokens)
    assert torch.equal(other.lengths, usual.lengths)
    torch.testing.assert_close(other.log_probs, usual.log_probs, atol=1e-5, rtol=0)


def test_a_prompt_is_run_once_whatever_its_group(monkeypatch):
    run = {"prompts": [], "rows": []}
    prefill, step = CachedDecoding.prefill, CachedDecoding.step
    monkeypatch.setattr(
        CachedDecoding,
        "prefill",
        lambda self, ids, mask: (run["prompts"].append(int(mask.sum())), prefill(self, ids, mask))[1],
    )
    monkeypatch.setattr(
        CachedDecoding, "step", lambda self, tokens: (run["rows"].append(len(tokens)), step(self, tokens))[1]
    )
    sampled = drawn(decoder(), group_size=8)
    assert run["prompts"] == [12]
    assert len(run["rows"]) == sampled.tokens.shape[1] - 1
    assert run["rows"][0] == 32
    assert run["rows"][-1] < 32


# -- where rows end ---------------------------------------------------------------------------------------------------


def test_sampling_stops_when_all_rows_ended():
    model = decoder()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are equally likely: the uniform number says which
    uniforms = torch.full((4, LIMIT), 0.5, dtype=torch.float64)
    uniforms[torch.arange(4), torch.tensor([2, 0, 4, 1])] = 1.5 / 24
    sampled = drawn(model, uniforms=uniforms)
    assert sampled.lengths.tolist() == [3, 1, 5, 2]
    assert sampled.tokens.shape == (4, 5)
    assert sampled.finished.all()


def test_the_end_in_the_last_place_counts():
    model = decoder()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    uniforms = torch.full((4, 3), 0.5, dtype=torch.float64)
    uniforms[1, 2] = uniforms[2, 1] = 1.5 / 24
    sampled = drawn(model, limit=3, uniforms=uniforms)
    assert sampled.finished.tolist() == [False, True, True, False]
    assert sampled.lengths.tolist() == [3, 3, 2, 3]


def test_padding_and_end_may_be_one_token():
    usual, same = drawn(decoder(), group_size=4), drawn(decoder(), group_size=4, pad=1)
    assert rows_of(same) == rows_of(usual)
    assert torch.equal(same.finished, usual.finished)
    assert usual.finished.any()
    assert not usual.finished.all()


def test_suppressed_tokens_never_appear():
    model = decoder()
    with torch.no_grad():
        model.lm_head.weight[7] = 0
        state = model.hidden(torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool))[0, 0]
        model.lm_head.weight[7] = 20 * state / state.square().sum()  # the model prefers this token
    free = drawn(model, [[2]], group_size=100, limit=1)
    assert (free.tokens == 7).all()
    rows = 10_000
    sampled = drawn(model, [[2]], group_size=rows, limit=1, suppress=(7,))
    assert not (sampled.tokens == 7).any()
    logits = model.lm_head.weight @ state
    expected = logits.log_softmax(-1)[sampled.tokens[:, 0]]  # the probability of before tokens were suppressed
    torch.testing.assert_close(sampled.log_probs[:, 0], expected, atol=1e-5, rtol=0)


def test_samples_follow_the_model():
    """Two tokens of a row by the product of their probabilities, over all pairs."""
    shape = Shape(vocabulary=4, width=8, layers=1, heads=2, mlp=8)
    model, rows = decoder(shape, 0.8), 40_000
    sampled = drawn(model, [[2, 3]], group_size=rows, limit=2, eos=9, suppress=())
    pairs = list(itertools.product(range(4), repeat=2))
    expected = np.array([full_log_probs(model, [2, 3], list(pair)).sum().exp().item() for pair in pairs])
    counted = np.bincount(4 * sampled.tokens[:, 0] + sampled.tokens[:, 1], minlength=16)
    assert stats.chisquare(counted, expected / expected.sum() * rows).pvalue > 1e-3
    assert abs(expected.sum() - 1) < 1e-5


def test_greedy_completions_are_those_of_transformers(tmp_path):
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    import tiny_llama
    from sanov.nets.transformer import load_decoder

    theirs = tiny_llama.llama()
    ours = load_decoder(tiny_llama.save(theirs, tmp_path / "model"))
    sampled = drawn(ours, limit=30, temperature=0.0)
    for prompt, completion in zip(PROMPTS, rows_of(sampled), strict=True):
        ids = torch.tensor([prompt])
        full = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
        assert completion == full[0, len(prompt) :].tolist()


# -- around the model -------------------------------------------------------------------------------------------------


def test_the_mode_comes_back():
    model = torch.nn.Sequential(decoder()).train()
    model[0].model.norm.eval()
    drawn(model)
    assert model.training
    assert model[0].training
    assert not model[0].model.norm.training


def test_weights_of_which_each_process_holds_a_part():
    """One process holds all of them here; what is gathered is spread again afterwards."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        model = decoder()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert hasattr(model.lm_head.weight, "full_tensor")
        assert torch.equal(drawn(model).tokens, drawn(decoder()).tokens)
        assert hasattr(model.lm_head.weight, "full_tensor")
        ids = torch.tensor([[2, 3, 4]])
        at = torch.ones_like(ids, dtype=torch.bool)
        found = model(ids, at, {"a": Read(at)})["a"]
        torch.testing.assert_close(found, decoder()(ids, at, {"a": Read(at)})["a"])
    finally:
        dist.destroy_process_group()


def test_no_prompts_give_no_rows():
    sampled = drawn(decoder(), [])
    assert sampled.tokens.shape == (0, 0)
    assert sampled.lengths.shape == sampled.finished.shape == (0,)


def test_adapters_count(monkeypatch):
    """What any linear adapter adds to a map is in the samples: here one that stands where PEFT's would."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0.7 * x.flip(-1) @ self.weight.T

    model = decoder()
    plain = drawn(model)
    for layer in model.model.layers:
        for part, name in ((layer.self_attn, "q_proj"), (layer.mlp, "up_proj"), (model, "lm_head")):
            old = getattr(part, name)
            if not isinstance(old, Adapted):
                adapted = Adapted(old.in_features, old.out_features, bias=False)
                adapted.weight = old.weight
                setattr(part, name, adapted)
    sampled = drawn(model)
    assert rows_of(sampled) != rows_of(plain)
    for prompt, completion, found in zip(PROMPTS, rows_of(sampled), sampled.log_probs, strict=True):
        expected = full_log_probs(model, prompt, completion)
        torch.testing.assert_close(found[: len(completion)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[2], []]}, "prompt 1: it has no tokens"),
        ({"prompts": [[2, 24]]}, "prompt 0: it has the token 24; expected tokens of 0 to 23"),
        ({"prompts": [[-1]]}, "prompt 0: it has the token -1"),
        (
            {"prompts": [[2] * 53]},
            "prompt 0: its 53 tokens and 12 of a completion are more than the model's context of 64",
        ),
        ({"limit": 0}, "limit: it is 0"),
        ({"group_size": 0}, "group_size: it is 0"),
        ({"suppress": (1,)}, "cannot suppress EOS"),
        ({"temperature": -1.0}, "temperature: it is -1.0"),
        ({"uniforms": noise(3)}, r"uniforms: .*\[3, 12\]; expected one for each of 4 rows and 12 positions"),
    ],
)
def test_what_cannot_be_sampled(options, message):
    with pytest.raises(InputError, match=message):
        drawn(decoder(), **options)


def test_a_model_that_does_not_generate():
    with pytest.raises(TypeError, match="Linear does not generate"):
        drawn(torch.nn.Linear(2, 2))


# -- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_uniform_and_independent():
    numbers = keyed_uniforms(5, 7, torch.arange(1000), 100).numpy()
    assert numbers.dtype == np.float64
    assert (numbers > 0).all()
    assert (numbers < 1).all()
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    bound = 4.5 / np.sqrt(numbers.size)
    others = (keyed_uniforms(6, 7, torch.arange(1000), 100), keyed_uniforms(5, 8, torch.arange(1000), 100))
    pairs = [
        (numbers[1:], numbers[:-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        *((numbers, other.numpy()) for other in others),
    ]
    for first, second in pairs:
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < bound
        cells, *_ = np.histogram2d(first.ravel(), second.ravel(), bins=10, range=[[0, 1], [0, 1]])
        assert stats.chisquare(cells.ravel()).pvalue > 1e-4


def test_noise_is_keyed():
    """Any rows, in any order and any pieces, have the numbers that they have among all."""
    whole = keyed_uniforms(1, 2, torch.arange(50), 20)
    rows = torch.tensor([7, 49, 0, 7])
    assert torch.equal(keyed_uniforms(1, 2, rows, 20), whole[rows])
    assert torch.equal(keyed_uniforms(1, 2, torch.arange(10, 20), 5), whole[10:20, :5])
    assert len(whole.unique()) == whole.numel()
    for seed, step in ((2, 1), (0, 2), (1, 3), (2**63, 2), (-1, 2)):
        assert not torch.equal(keyed_uniforms(seed, step, torch.arange(50), 20), whole)


def test_noise_is_the_documented_function_of_its_key():
    """SplitMix64, written with Python's own integers."""

    def mixed(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    assert mixed(0) == 0xE220A8397B1DCDAF  # the published first output of seed 0
    for seed, step, row, position in ((0, 0, 0, 0), (12345, 17, 3, 40), (-5, 2**40, 10**9, 1)):
        state = seed % 2**64
        for part in (step, row, position):
            state = mixed(state) ^ part
        expected = ((mixed(state) >> 12) + 0.5) / 2**52
        assert keyed_uniforms(seed, step, torch.tensor([row]), position + 1)[0, position].item() == expected
