"""An adapter that a fit begins: trained alone, resumed to the same bits, and loaded by transformers and PEFT."""

from pathlib import Path

import pytest
import torch

from learning.toy_run import vector
from sanov.baselines import grpo, sft
from sanov.core.errors import InputError
from sanov.core.options import parse
from sanov.learning import policies
from sanov.nets.adapters import with_adapter
from sanov.nets.causal import load_model
from sanov.nets.reads import Read
from systems.policy_files import LETTERS, SMALL, policy_folder, prompts_file

peft = pytest.importorskip("peft", reason="the extra `language` is not installed")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut", "ignore::FutureWarning")
MORE = ("lora.rank=2", "training.learning_rate=0.02", "training.checkpoint_every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lora")
    prompts_file(place / "prompts.jsonl")
    policy_folder(place / "policy", steps=25)
    return place


def fitted(folder, *more, system=grpo, **how):
    options = {"policy": str(folder / "policy"), **dict(word.split("=", 1) for word in (*SMALL, *MORE, *more))}
    chosen = parse(system.Config, options)
    return system.fit(system.read([str(folder / "prompts.jsonl")], chosen), chosen, **how)


def logits(model, ids):
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        return model(ids, mask, {"all": Read(mask)})["all"].view(*ids.shape, -1)


def test_a_new_adapter_changes_nothing_and_is_trained_alone(folder, tmp_path, monkeypatch):
    ids = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    base = load_model(folder / "policy")
    fresh = with_adapter(folder / "policy", rank=2, alpha=4.0, seed=3)
    torch.testing.assert_close(logits(fresh, ids), logits(base, ids), rtol=1e-4, atol=1e-5)
    again, other = (with_adapter(folder / "policy", rank=2, alpha=4.0, seed=seed) for seed in (3, 4))
    assert torch.equal(vector(fresh), vector(again))
    assert not torch.equal(vector(fresh), vector(other))
    monkeypatch.chdir(folder)  # a base that is named from here is found from elsewhere too
    found = fitted(Path(), out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    own = dict(found.model.named_parameters())
    trained = {name for name, weight in own.items() if weight.requires_grad}
    assert trained == {name for name in own if "lora_" in name}
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not torch.allclose(logits(found.model, ids), logits(base, ids), atol=1e-4)
    assert sorted(path.name for path in Path("out").glob("*.safetensors")) == ["adapter_model.safetensors"]
    loaded = policies.Fitted.load("out")
    torch.testing.assert_close(logits(loaded.model, ids), logits(found.model, ids))
    theirs = [transformers.AutoModelForCausalLM, peft.AutoPeftModelForCausalLM]
    for auto in theirs:
        model = auto.from_pretrained("out").eval()
        torch.testing.assert_close(model(input_ids=ids).logits, logits(found.model, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("system", [grpo, sft])
def test_an_adapter_is_resumed_to_the_same_bits(folder, tmp_path, monkeypatch, system):
    more = ("lora.dropout=0.3",) if system is sft else ()
    whole = fitted(folder, *more, system=system, out=tmp_path / "whole")
    assert len(whole.history) == 3
    run = policies.imitate if system is sft else policies.fit_policy
    name = "imitate" if system is sft else "fit_policy"

    def stopping(*arguments, **options):
        def stop(done, metrics):
            if done == 2:
                raise KeyboardInterrupt

        return run(*arguments, **{**options, "callbacks": [*options.get("callbacks", ()), stop]})

    monkeypatch.setattr(policies, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(folder, *more, system=system, out=tmp_path / "cut")
    monkeypatch.setattr(policies, name, run)
    resumed = fitted(folder, *more, system=system, out=tmp_path / "cut", resume=True)
    assert torch.equal(vector(resumed.model), vector(whole.model))
    assert resumed.history.equals(whole.history)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("policy=", *LETTERS), r"lora.rank: the small policy that is made has no use for an adapter"),
        (("lora.target_modules=nothing",), r"lora.target_modules: cannot be adapted there.*down_proj"),
    ],
)
def test_what_cannot_be_adapted_is_refused(folder, words, message):
    with pytest.raises(InputError, match=message):
        fitted(folder, *words)


def test_an_adapter_on_an_adapter_is_refused(folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"an adapter already.*[Ll]eave lora.rank out"):
        with_adapter(tmp_path, rank=2, alpha=4.0)
