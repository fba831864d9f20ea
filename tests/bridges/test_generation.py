"""The knob in transformers' own ``generate``, with adapters of PEFT and two models of a few thousand weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny_llama
from sanov.bridges.adapter_switch import adapter_layers
from sanov.bridges.generation import RLGLogits
from sanov.core.errors import InputError
from sanov.tilting import equivalent_beta, implicit_reward, tilt

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
PROMPTS = torch.tensor([[2, 3, 4], [5, 6, 7]])


def adapted():
    torch.manual_seed(0)
    return get_peft_model(
        tiny_llama.llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits[:, -1].float()


def written(model, w=None, prompts=PROMPTS, mask=None, **more):
    knob = None if w is None else RLGLogits(model, w, attention_mask=mask)
    about = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompts) if mask is None else mask
    found = model.generate(
        input_ids=prompts, attention_mask=mask, logits_processor=[knob] if knob else None, **{**about, **more}
    )
    return found, knob


@pytest.mark.parametrize("w", [-0.5, 0.4, 1.6])
def test_greedy_texts_are_those_of_the_mixture_written_out(w):
    model, ids = adapted(), PROMPTS
    for _ in range(6):
        ours = logits(model, ids).log_softmax(-1)
        with model.disable_adapter():
            theirs = logits(model, ids).log_softmax(-1)
        mixture = (1 - w) * theirs + w * ours
        ids = torch.cat([ids, mixture.argmax(-1, keepdim=True)], dim=1)
    found, knob = written(model, w)
    assert torch.equal(found, ids)
    assert knob.passes == 6


def test_weights_0_and_1_are_the_two_models():
    model = adapted()
    with model.disable_adapter():
        base = written(model)[0]
    assert torch.equal(written(model, 0)[0], base)
    policy, knob = written(model, 1)
    assert torch.equal(policy, written(model)[0])
    assert knob.passes == 0
    assert not torch.equal(policy, base)


def test_one_token_is_the_tilt_at_beta_over_w():
    model, w, beta = adapted(), 1.7, 0.4
    ours = logits(model, PROMPTS).log_softmax(-1)
    with model.disable_adapter():
        theirs = logits(model, PROMPTS).log_softmax(-1)
    reward = implicit_reward(ours, theirs, beta)
    expected = tilt(theirs, reward, equivalent_beta(beta, w))
    found = RLGLogits(model, w)(PROMPTS, logits(model, PROMPTS)).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_padding_on_the_left_changes_nothing():
    model = adapted()
    alone = [written(model, 1.6, prompts=row)[0][0, row.shape[1] :] for row in (torch.tensor([[5, 6]]), PROMPTS[:1])]
    padded, mask = torch.tensor([[0, 5, 6], [2, 3, 4]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    together, _ = written(model, 1.6, prompts=padded, mask=mask)
    assert torch.equal(together[:, 3:], torch.stack(alone))


def test_beams_are_followed_and_rows_may_have_their_own_weight():
    model = adapted()
    found, _ = written(model, 1.6, num_beams=3)
    assert found.shape == (2, 9)
    knob = RLGLogits(model, [0.0, 1.0])
    mixed = knob(PROMPTS, logits(model, PROMPTS)).log_softmax(-1)
    with model.disable_adapter():
        base = logits(model, PROMPTS).log_softmax(-1)
    torch.testing.assert_close(mixed[0], base[0])
    torch.testing.assert_close(mixed[1], logits(model, PROMPTS).log_softmax(-1)[1])
    with pytest.raises(InputError, match="2 weights for 1 rows"):
        knob(PROMPTS[:1], logits(model, PROMPTS[:1]))


def test_a_cache_that_goes_on_is_the_whole_read_anew():
    model, knob = adapted(), None
    knob = RLGLogits(model, 2.0)
    longer = torch.cat([PROMPTS, torch.tensor([[8, 9], [10, 11]])], dim=1)
    knob(PROMPTS, logits(model, PROMPTS))
    on = knob(longer, logits(model, longer))
    anew = RLGLogits(model, 2.0)(longer, logits(model, longer))
    torch.testing.assert_close(on, anew, rtol=0, atol=1e-5)
    other = longer.flip(0)  # as beams change places
    torch.testing.assert_close(
        knob(other, logits(model, other)), RLGLogits(model, 2.0)(other, logits(model, other)), rtol=0, atol=1e-5
    )


def test_the_adapter_is_on_afterwards_and_two_models_do_too():
    model = adapted()
    before = [layer._disable_adapters for layer in adapter_layers(model)]
    written(model, 0.5)
    assert [layer._disable_adapters for layer in adapter_layers(model)] == before == [False] * len(before)
    first, second = tiny_llama.llama(), adapted().merge_and_unload()
    knob = RLGLogits(second, 0, reference=first)
    assert torch.equal(knob(PROMPTS, logits(second, PROMPTS)), logits(first, PROMPTS))


def test_what_cannot_be_is_refused():
    model = adapted()
    with pytest.raises(InputError, match="finite"):
        RLGLogits(model, float("inf"))
    with pytest.raises(InputError, match="there is no adapter"):
        RLGLogits(tiny_llama.llama())
    with pytest.raises(InputError, match="one vocabulary"):
        RLGLogits(model, 2.0)(PROMPTS, torch.zeros(2, 1000))
    model.merge_adapter()
    with pytest.raises(InputError, match="merged into the weights"):
        RLGLogits(model)
