"""What a run of `kdrl`, `laser`, `grpo` or `sft` leaves behind while it goes on and at its end: page, card, checkpoints."""

import json
import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import tiny_llama
from learning.policy_toy import TOKENIZER
from learning.toy_run import vector
from sanov.baselines import grpo, sft
from sanov.core.errors import InputError
from sanov.core.options import parse
from sanov.learning import policies
from sanov.learning.rollouts import Rollout
from sanov.nets.causal import load_model, load_tokenizer, save_model
from sanov.nets.foreign_causal import ForeignCausal
from sanov.systems import kdrl, laser
from systems import laser_toy
from systems.policy_files import SMALL, policy_folder, prompts_file

pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut")
HELD = ["evaluation.share=0.5", "evaluation.prompts=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts, a policy and a teacher."""
    place = tmp_path_factory.mktemp("runs")
    prompts_file(place / "prompts.jsonl")
    policy_folder(place / "policy", seed=0, steps=25)
    policy_folder(place / "teacher", seed=1, steps=25, width=24)
    return place


def fitted(system, folder, *more, resume=False, out=None, **options):
    words = dict(word.split("=", 1) for word in (*SMALL, *HELD, f"policy={folder / 'policy'}", *more))
    config = parse(system.Config, words | options)
    return system.fit(system.read([str(folder / "prompts.jsonl")], config), config, out=out, resume=resume)


def taught(folder, *more, **how):
    return fitted(kdrl, folder, f"teacher={folder / 'teacher'}", "kd.beta=0.3", "kd.schedule=constant", *more, **how)


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """A finished run with a checkpoint an update."""
    out = tmp_path_factory.mktemp("out") / "student"
    return taught(folder, "training.checkpoint_every=1", "training.diagnose_every=1", out=out), out


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_every_checkpoint_is_a_policy_that_transformers_loads(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student, out = done
    steps = sorted((out / "checkpoints").iterdir())
    assert [path.name for path in steps] == ["step-00000002", "step-00000003"]
    for path in (*steps, out):
        assert AutoTokenizer.from_pretrained(path)("a1+2=")["input_ids"] == TOKENIZER.encode("a1+2=")
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.generation_config.eos_token_id == TOKENIZER.eos
        card = (path / "README.md").read_text()
        digest = student.results["data"]["digest"]
        assert "library_name: transformers" in card
        result = "training reward  " if path == steps[0] else "validation reward  "
        for part in ("/policy`", digest, "kd.beta=0.3", result, "prompts.jsonl"):
            assert part in card, (path, part)
    ids = torch.tensor([TOKENIZER.encode("a1+2=")])
    last, final = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (steps[-1], out))
    before = AutoModelForCausalLM.from_pretrained(steps[0])(ids).logits
    torch.testing.assert_close(last, final, rtol=0, atol=0)
    assert not torch.equal(before, final)


def test_files_have_the_mode_that_umask_leaves(done, folder, tmp_path):
    umask = os.umask(0o027)
    try:
        save_model(load_model(folder / "policy"), tmp_path / "saved", TOKENIZER)
        taught(folder, "training.steps=1", out=tmp_path / "out")
    finally:
        os.umask(umask)
    for path in [*(tmp_path / "saved").rglob("*"), *(tmp_path / "out").rglob("*.safetensors")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def adapted(place):
    """A LoRA adapter of PEFT on a small model of transformers, with its tokenizer."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    tiny_llama.save(tiny_llama.llama(), place)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(place)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(1)
        warnings.simplefilter("ignore", FutureWarning)
        return ForeignCausal(
            peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        ), load_tokenizer(place)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_saved_as_one_and_no_bar_is_shown(folder, tmp_path, capfd):
    config = parse(grpo.Config, dict(word.split("=") for word in SMALL) | {"training.checkpoint_every": 1})
    data = grpo.read([{"prompt": ["1 + 1 =", "2 + 1 ="] * 8, "answer": [2, 3] * 8}], config)
    data = policies.Tasks(data.prompts, laser_toy.questions().rewards)
    opened = adapted(tmp_path / "base")
    capfd.readouterr()
    policies.fit(data, system="grpo", config=config, opened=opened, seed=0, out=tmp_path / "out", resume=False)
    assert "shards" not in capfd.readouterr().err
    from peft import AutoPeftModelForCausalLM

    for path in (tmp_path / "out", tmp_path / "out" / "checkpoints" / "step-00000002"):
        assert (path / "adapter_config.json").is_file()
        assert not (path / "model.safetensors").exists()
        assert "tags:\n- sanov" in (path / "README.md").read_text()
        AutoPeftModelForCausalLM.from_pretrained(path)


def test_checkpoints_are_made_without_being_asked_for():
    assert (kdrl.Config().training.checkpoint_every, sft.Config().training.checkpoint_every) == (20, 100)


# -- a run that was stopped -------------------------------------------------------------------------------------------


def stop_at(monkeypatch, update):
    """Make the signal fail at an update, and return what takes that back."""
    score, calls = kdrl.KdSignal.score, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == update:
            raise KeyboardInterrupt
        score(self, *arguments)

    monkeypatch.setattr(kdrl.KdSignal, "score", failing)
    return lambda: monkeypatch.setattr(kdrl.KdSignal, "score", score)


def test_a_killed_run_shows_its_curve_and_a_resumed_one_all_of_it(folder, tmp_path, monkeypatch):
    out, more = tmp_path / "out", ("training.steps=4", "training.checkpoint_every=1")
    back = stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        taught(folder, *more, out=out)
    assert pl.read_csv(out / "history.csv")["step"].to_list() == [1, 2]
    assert (
        "after 2 of 4 updates" in (out / "index.html").read_text()
        or "in 2 of 4 updates" in (out / "index.html").read_text()
    )
    back()
    with pytest.raises(InputError, match=r"unfinished run .*--resume"):
        taught(folder, *more, out=out)
    resumed = taught(folder, *more, out=out, resume=True)
    html = (out / "index.html").read_text()
    assert "after 4 updates" in html
    whole = taught(folder, *more, out=tmp_path / "whole")
    assert resumed.results == whole.results
    assert torch.equal(vector(resumed.model), vector(whole.model))
    assert charts(html).keys() == charts((tmp_path / "whole" / "index.html").read_text()).keys()
    assert charts(html)["Reward"][0]["step"] == 1


def test_a_finished_run_is_made_longer(folder, tmp_path):
    taught(folder, out=tmp_path / "out")
    longer = taught(folder, "training.steps=5", out=tmp_path / "out", resume=True)
    straight = taught(folder, "training.steps=5", out=tmp_path / "straight")
    assert torch.equal(vector(longer.model), vector(straight.model))
    assert longer.results == straight.results
    assert torch.equal(vector(kdrl.Fitted.load(tmp_path / "out").model), vector(straight.model))
    with pytest.raises(InputError, match=r"other training.steps \(5 there, 4 here\)"):
        taught(folder, "training.steps=4", out=tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    "more", [("training.schedule=linear",), ("training.warmup=0.5",), ("kd.schedule=cosine",), ("kd.anneal_share=0.5",)]
)
def test_what_follows_from_the_number_of_steps_is_not_made_longer(folder, tmp_path, more):
    more = ("kd.schedule=linear", "kd.beta_end=0.1", *more)
    taught(folder, *more, "training.steps=2", out=tmp_path / "out")
    with pytest.raises(InputError, match=r"other training.steps \(2 there, 3 here\).*a run grows longer only where"):
        taught(folder, *more, "training.steps=3", out=tmp_path / "out", resume=True)
    with pytest.raises(InputError, match=r"other training.learning_rate \(0.0001 there, 0.5 here\)"):
        taught(folder, *more, "training.steps=2", "training.learning_rate=0.5", out=tmp_path / "out", resume=True)


# -- held-out prompts -------------------------------------------------------------------------------------------------


def test_held_out_prompts_before_and_after(done, folder, tmp_path):
    """The means and the gain are those of completions that are drawn again by hand."""
    student, _ = done
    data = kdrl.read([str(folder / "prompts.jsonl")], kdrl.Config())
    _, held = policies.divided(data.prompts, policies.Evaluation(share=0.5, prompts=6), 0)
    means = {}
    for name, model in (("start", load_model(folder / "policy")), ("end", student.model)):
        found = policies.complete(model, TOKENIZER, held, data.rewards, Rollout(max_completion_length=6), samples=2)
        means[name] = found.rewards.mean(axis=1)
    results = student.results
    assert results["validation_start_reward"] == pytest.approx(means["start"].mean())
    assert results["validation_reward"] == pytest.approx(means["end"].mean())
    gain = means["end"] - means["start"]
    half = 2.5705818366 * gain.std(ddof=1) / np.sqrt(6)  # Student's t with 5 degrees of freedom
    expected = [gain.mean(), gain.mean() - half, gain.mean() + half]
    found = [results[f"validation_gain{end}"] for end in ("", "_low", "_high")]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert re.search(r"validation reward +\S+ \[\S+, \S+\]", student.summary())
    assert "validation start reward" in student.summary()


# -- the page ---------------------------------------------------------------------------------------------------------


def charts(html):
    """The points of every chart of a page, by its heading."""
    found = re.findall(r'data-name="([^"]*)">.*?<script type="application/json">(.*?)</script>', html, re.DOTALL)
    specs = {name: json.loads(text) for name, text in found}
    return {name: spec["data"]["values"] for name, spec in specs.items() if "data" in spec}


def test_the_page_has_the_answer_curves_and_samples(done):
    student, out = done
    html = (out / "index.html").read_text()
    assert re.search(r"<h1>Mean reward on held-out prompts from .* to .*, a gain of .* after 3 updates.</h1>", html)
    assert "2 newest checkpoints are kept" in html
    found = charts(html)
    assert {
        "Reward",
        "Length (tokens)",
        "Masks",
        "Groups",
        "Entropy (nats a token)",
        "Norms of gradients",
    } <= found.keys()
    curve = [point["value"] for point in found["Reward"] if point["of"] == "training"]
    assert curve == student.history["reward"].to_list()
    cosines = [point["value"] for point in found["Cosine of the gradients of rewards and signal"]]
    assert len(cosines) >= 1
    assert all(-1 <= value <= 1 for value in cosines)
    assert "likelier than the teacher" in html
    assert html.count('<div class="passage">') == 16
    assert re.search(r'<span class="(more|less)-\d" title="[+-]\d', html)
    assert student.results["data"]["digest"] in html
    assert "sanov fit kdrl" in html
    links = set(re.findall(r"(?:src|href)=\"([^\"#]+)\"", html.split("<script>")[0]))
    assert links == {"data:,"}


def test_without_a_teacher_tokens_are_compared_with_the_start(folder, tmp_path):
    fitted(grpo, folder, out=tmp_path / "plain")
    assert "likelier than the policy at its start" in (tmp_path / "plain" / "index.html").read_text()
    fitted(sft, folder, "training.learning_rate=1e-2", out=tmp_path / "written")
    html = (tmp_path / "written" / "index.html").read_text()
    assert "Completions of held-out prompts" in html
    assert "likelier than the policy at its start" in html
    assert charts(html).keys() >= {"Loss", "Norms of gradients"}


def test_the_ratio_to_the_teacher_is_the_one_that_was_learned_from(folder, tmp_path):
    """One update, on every token: the mean of the ratios on the page is kd/k1 of the rows that it shows."""
    student = taught(folder, "training.steps=1", "rollouts.prompts_per_step=2", out=tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text()
    ratios = [float(text) for text in re.findall(r'title="([+-][\d.]+)"', html)]
    assert np.mean(ratios) == pytest.approx(student.history["kd/k1"][0], abs=0.01)


def test_laser_tells_how_good_its_scores_are(tmp_path):
    options = laser_toy.config(tmp_path / "start")
    policy = laser.fit(laser_toy.questions(), options, out=tmp_path / "out")
    assert 0 <= policy.results["self_reward_auroc_low"] <= policy.results["self_reward_auroc"] <= 1
    assert re.search(r"self reward auroc +\S+ \[\S+, \S+\]", policy.summary())
    html = (tmp_path / "out" / "index.html").read_text()
    assert {"Reliability", "Scores"} <= set(re.findall(r'data-name="([^"]*)"', html))
    again = laser.fit(laser_toy.questions(), options, out=tmp_path / "out", resume=True)
    assert again.results == policy.results
    assert Path(tmp_path / "out" / "sanov.json").is_file()


def test_quiet_says_nothing(folder, command):
    words = [*SMALL, f"policy={folder / 'policy'}"]
    status, said = command("fit", "grpo", folder / "prompts.jsonl", *words, "--out", "one", "--quiet")
    assert (status, said) == (0, "")
    status, said = command("fit", "grpo", folder / "prompts.jsonl", *words, "--out", "two")
    assert "reward" in said.splitlines()[0]
