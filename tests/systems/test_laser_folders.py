"""What a fit leaves in its folder: policy, scale, reference and card; adapters, half precision, stopped runs."""

import warnings

import pytest
import torch
from safetensors.torch import load_file

from learning.policy_toy import TOKENIZER
from learning.toy_run import vector
from sanov.core.errors import InputError
from sanov.learning import policy
from sanov.nets.causal import save_model
from sanov.nets.reads import Read
from sanov.systems import laser
from sanov.systems.laser import SelfReward
from systems.laser_toy import FIXED, LABEL, SPARE, config, eager, questions, small_digits


def test_a_fit_writes_what_its_scores_need(tmp_path):
    options = config(tmp_path / "start", self_reward=SelfReward(correction=True, reference="exact"))
    fitted = laser.fit(questions(), options, seed=3, out=tmp_path / "out")
    loaded = laser.Fitted.load(tmp_path / "out")
    assert torch.equal(vector(loaded.model), vector(fitted.model))
    scale = loaded.results["self_reward"]
    assert (scale["token"], scale["spare"], scale["beta"]) == (LABEL, SPARE, 0.25)
    assert scale["constant"] < 0
    assert scale["exact"]
    torch.testing.assert_close(vector(loaded.reference), vector(eager()))
    assert "c ref" in fitted.summary()
    assert laser.Config.model_validate(loaded.config) == options
    assert fitted.to_dict()["results"]["c_ref"] == scale["constant"]
    loaded.save(tmp_path / "copy")
    card = pytest.importorskip("huggingface_hub").ModelCard.load(tmp_path / "copy" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["sanov", "laser"],
    }  # fmt: skip
    assert fitted.summary() in card.text
    assert str(tmp_path / "start") in card.text
    assert load_file(tmp_path / "copy" / "reference" / "model.safetensors").keys()
    with pytest.raises(InputError, match="finished policy"):
        laser.fit(questions(), options, out=tmp_path / "out")


def test_weights_in_half_precision_are_trained_in_single(tmp_path):
    """A step of 1e-6 is less than half precision tells from none."""
    options = config(tmp_path / "start", eager().bfloat16(), training=policy.Optimisation(steps=2, learning_rate=1e-6))
    before = load_file(tmp_path / "start" / "model.safetensors")
    assert {weight.dtype for weight in before.values()} == {torch.bfloat16}
    after = laser.fit(questions(), options).model.state_dict()
    moved = torch.cat([(after[name] != weight.float()).flatten() for name, weight in before.items()])
    assert moved.float().mean() > 0.5


def test_an_adapter_is_trained_alone(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    save_model(eager(), tmp_path / "start", TOKENIZER)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of before
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    TOKENIZER.save(tmp_path / "adapter")
    options = config(tmp_path / "start", self_reward=SelfReward(correction=True, reference="exact"))
    found = laser.fit(
        questions(), options.model_copy(update={"policy": str(tmp_path / "adapter")}), out=tmp_path / "out"
    )
    own = dict(found.model.named_parameters())
    trained = {name for name, weight in own.items() if weight.requires_grad}
    assert trained == {name for name in own if "lora_" in name}
    assert all(own[name].any() for name in trained)  # one of each two begins at zero
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["adapter_model.safetensors"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    loaded = laser.Fitted.load(tmp_path / "out")
    reads = {"logits": Read(mask)}
    torch.testing.assert_close(theirs(ids).logits.flatten(0, 1), loaded.model(ids, mask, reads)["logits"])
    torch.testing.assert_close(loaded.reference(ids, mask, reads)["logits"], eager()(ids, mask, reads)["logits"])


def test_what_was_interrupted_is_what_never_was(tmp_path):
    options = config(tmp_path / "start", training=policy.Optimisation(steps=4, learning_rate=3e-3, checkpoint_every=1))
    whole = laser.fit(questions(), options, seed=1, out=tmp_path / "whole")

    calls = []

    def failing(prompts, completions, **_):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return small_digits(prompts, completions)

    failing.__name__ = "small_digits"
    with pytest.raises(KeyboardInterrupt):
        laser.fit(questions(reward=failing), options, seed=1, out=tmp_path / "cut")
    resumed = laser.fit(questions(), options, seed=1, out=tmp_path / "cut", resume=True)
    assert torch.equal(vector(resumed.model), vector(whole.model))
    assert resumed.results == whole.results
    assert resumed.history.equals(whole.history)


def test_evaluation_suppresses_the_label_too(tmp_path):
    seen = []

    def watch(prompts, completions, completion_ids, **_):
        seen.extend(token for row in completion_ids for token in row)
        return [float(row % 2) for row in range(len(completions))]

    laser.fit(
        questions(reward=watch), config(tmp_path / "start", eager(label=9.0, eos=0.5), self_reward=SelfReward(**FIXED))
    )
    assert len(seen) > 100
    assert not {LABEL, SPARE} & set(seen)
