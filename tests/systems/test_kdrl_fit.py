"""KDRL as its user runs it: files in, a folder out, resumed, recorded, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sanov
from learning.policy_toy import TOKENIZER, decoder, rollouts_of
from learning.toy_run import vector
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import parse
from sanov.data.prompts import Prompts
from sanov.learning.token_teachers import LocalTeacher, RecordedTeacher, check_tokenizers
from sanov.nets.causal import load_model, save_model
from sanov.nets.transformer import Decoder, Shape
from sanov.systems import kdrl
from systems.policy_files import LETTERS, SMALL, policy_folder, prompts_file

PROMPTS = Prompts(("a1+1=",))

pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts, a policy and a teacher."""
    place = tmp_path_factory.mktemp("kdrl")
    prompts_file(place / "prompts.jsonl")
    policy_folder(place / "policy", seed=0, steps=25)
    policy_folder(place / "teacher", seed=1, steps=100, width=24)
    return place


def config(folder, *more, **kd):
    options = dict(word.split("=", 1) for word in (*SMALL, *more))
    options = {"policy": str(folder / "policy"), "teacher": str(folder / "teacher")} | options
    return parse(kdrl.Config, options | {f"kd.{k}": v for k, v in kd.items()})


def fitted(folder, *more, seed=0, out=None, resume=False, **kd):
    chosen = config(folder, *more, **kd)
    return kdrl.fit(kdrl.read([str(folder / "prompts.jsonl")], chosen), chosen, seed=seed, out=out, resume=resume)


# -- from the command line --------------------------------------------------------------------------------------------


def test_a_file_of_prompts_and_two_folders_make_a_policy(folder, command, capsys, tmp_path):
    where = [f"policy={folder / 'policy'}", f"teacher={folder / 'teacher'}"]
    status, said = command("fit", "kdrl", folder / "prompts.jsonl", *where, *SMALL, "--out", "student", "--quiet")
    assert status == 0, said
    assert {"config.json", "model.safetensors", "tokenizer.json", "history.csv", "sanov.json"} <= {
        path.name for path in Path("student").iterdir()
    }
    found = json.loads(Path("student/sanov.json").read_text())
    assert found["system"] == "kdrl"
    assert 0 <= found["results"]["validation_reward"] <= 1
    header = Path("student/history.csv").read_text().splitlines()[0].split(",")
    assert {"reward", "loss_policy", "loss_kd", "kd/k1", "kd/k2", "kd/k3", "kd/teacher_logp", "kd/beta"} <= set(header)
    status, said = command("apply", "kdrl", folder / "prompts.jsonl", "--fitted", "student", *SMALL, "--out", "a.json")
    assert status == 0, said
    answer = json.loads(Path("a.json").read_text())
    assert answer["values"]["completions"] == 48
    assert len(answer["tables"]["Completions"]["reward"]) == 48
    by_prompt = np.reshape(answer["tables"]["Completions"]["reward"], (24, 2)).mean(axis=1)
    assert answer["values"]["mean_reward"] == pytest.approx(by_prompt.mean())
    assert answer["values"]["mean_reward_low"] >= 0
    gold = [json.loads(line)["answer"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert answer["tables"]["Completions"]["answer"] == np.repeat(gold, 2).tolist()
    np.testing.assert_allclose(answer["tables"]["Prompts"]["mean_reward"], by_prompt)


def test_apply_remembers_how_a_policy_was_fitted(folder, tmp_path, command, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def long(completions, goal):\n    return [float(len(text) > 1) for text in completions]\n"
    )
    prompts_file(tmp_path / "own.jsonl", goal="any")
    words = [f"policy={folder / 'policy'}", f"teacher={folder / 'teacher'}", "rewards=mine:long"]
    status, said = command("fit", "kdrl", "own.jsonl", *words, *SMALL, "--out", "student", "--quiet")
    assert status == 0, said
    found = sanov.kdrl("own.jsonl", fitted="student")
    assert found.notes == (
        "as in its training, where nothing else was given: rewards=mine:long rollouts.max_completion_length=6 "
        "evaluation.samples=2.",
    )
    table = found.to_frame()
    assert len(table) == 48
    assert table["tokens"].max() <= 6
    assert table["reward"].to_list() == [float(len(text) > 1) for text in table["completion"]]
    without = sanov.kdrl(folder / "prompts.jsonl", fitted="student", rollouts={"max_completion_length": 4})
    assert without.to_frame()["tokens"].max() == 4
    assert "rewards=mine:long: reward function 'long': it needs the column 'goal'" in without.notes[1]


def test_transformers_loads_what_was_trained(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = fitted(folder, out=tmp_path / "student")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("a1+2=")["input_ids"]]])
    assert ids[0, 1:].tolist() == TOKENIZER.encode("a1+2=")
    ours = student.model(ids, torch.ones_like(ids) > 0, {"all": kdrl.signal.Read(torch.ones_like(ids) > 0)})["all"]
    torch.testing.assert_close(model(ids).logits[0], ours, rtol=1e-4, atol=1e-4)
    assert model.generation_config.eos_token_id == TOKENIZER.eos


def test_without_a_folder_a_small_policy_is_made(tmp_path, folder):
    options = {**dict(word.split("=") for word in (*SMALL, *LETTERS)), "start.steps": 5, "kd.combine": "grpo"}
    chosen = parse(kdrl.Config, options)
    data = kdrl.read(["embedded:chain_sum"], chosen)
    student = kdrl.fit(data, chosen, out=tmp_path / "student")
    assert load_model(tmp_path / "student" / "start").shape.width == 16
    again = kdrl.Fitted.load(tmp_path / "student")
    assert torch.equal(vector(again.model), vector(student.model))
    assert again.results["steps"] == 3


def test_from_python():
    prompts = {"prompt": ["a1+1=", "a1+2="] * 6, "answer": [2, 3] * 6}
    start = {name.split(".")[1]: int(value) for name, value in (word.split("=") for word in LETTERS)}
    small = {"group_size": 2, "prompts_per_step": 2, "max_completion_length": 4}
    student = sanov.kdrl.fit(
        prompts, rewards=("exact",), kd={"combine": "grpo"}, start=start, rollouts=small, training={"steps": 1},
        evaluation={"share": 0.5},
    )  # fmt: skip
    assert "validation_reward" in student.results
    answer = sanov.kdrl(prompts, fitted=student, rewards=("exact",), rollouts=small)
    assert answer.to_frame().shape[0] == 48
    assert "interval over 12 prompts" in answer.sentence


# -- the run ----------------------------------------------------------------------------------------------------------


def test_beta_zero_is_plain_grpo_bitwise(folder):
    plain = fitted(folder, combine="grpo")
    zero = fitted(folder, beta=0.0, beta_end=0.0)
    other = fitted(folder, beta=0.5, schedule="constant")
    assert torch.equal(vector(plain.model), vector(zero.model))
    assert not torch.equal(vector(plain.model), vector(other.model))


@pytest.mark.parametrize(
    "combine", ["advantage", "reward", "opd", "opd_then_rl", "srpo", "hdpo", "rlsd", "trrd", "sft"]
)
def test_every_way_to_combine_trains(folder, combine):
    student = fitted(folder, "mixing.opd_steps=1", combine=combine, beta=0.1, schedule="constant")
    assert not torch.equal(vector(student.model), vector(load_model(folder / "policy")))


def test_the_joint_loss_and_the_advantage_form_train_alike(folder):
    loss, advantage = (fitted(folder, combine=c, beta=0.3, schedule="constant") for c in ("loss", "advantage"))
    torch.testing.assert_close(vector(loss.model), vector(advantage.model), rtol=0, atol=1e-5)


def test_distillation_brings_the_policy_nearer_to_its_teacher(folder):
    student = fitted(folder, "training.steps=25", "training.learning_rate=1e-2", combine="opd")
    gap = student.history["kd/k1"].to_numpy()
    assert gap[-5:].mean() < 0.7 * gap[:5].mean()


def test_a_stopped_fit_is_resumed_to_the_same_weights(folder, tmp_path, monkeypatch):
    calls = []

    def stopping(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, *arguments, **options)

    more = ("training.steps=4", "training.checkpoint_every=1")
    whole = fitted(folder, *more)
    score = kdrl.KdSignal.score
    monkeypatch.setattr(kdrl.KdSignal, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(folder, *more, out=tmp_path / "out")
    monkeypatch.setattr(kdrl.KdSignal, "score", score)
    with pytest.raises(InputError, match="holds an unfinished run"):
        fitted(folder, *more, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"had other kd.beta"):
        fitted(folder, *more, out=tmp_path / "out", resume=True, beta=0.9)
    again = fitted(folder, *more, out=tmp_path / "out", resume=True)
    assert torch.equal(vector(whole.model), vector(again.model))
    assert whole.history.equals(again.history)


def test_what_a_teacher_said_is_recorded_and_not_asked_again(folder, tmp_path, monkeypatch):
    record = f"record={tmp_path / 'teacher.db'}"
    first = fitted(folder, record, beta=0.3, schedule="constant")
    monkeypatch.setattr(LocalTeacher, "log_probs", lambda *_: pytest.fail("the teacher was asked"))
    again = fitted(folder, record, beta=0.3, schedule="constant")
    assert torch.equal(vector(first.model), vector(again.model))
    chosen = config(folder, record, beta=0.1, schedule="constant").model_copy(update={"teacher": ""})
    data = kdrl.read([str(folder / "prompts.jsonl")], chosen)
    with pytest.raises(InputError, match=r"of 16 completions are not recorded.*Give a teacher too"):
        kdrl.fit(data, chosen, seed=1)


def test_a_record_is_that_of_one_teacher(folder, tmp_path):
    record = f"record={tmp_path / 'teacher.db'}"
    fitted(folder, record, beta=0.3, schedule="constant")
    policy_folder(tmp_path / "other", seed=2, steps=1, width=24)
    with pytest.raises(InputError, match=r"teacher.db: it holds what another teacher said.*[Nn]ame another file"):
        fitted(folder, record, f"teacher={tmp_path / 'other'}", beta=0.3, schedule="constant")
    shutil.copytree(folder / "teacher", tmp_path / "moved")
    fitted(folder, record, f"teacher={tmp_path / 'moved'}", beta=0.3, schedule="constant")


def test_distillation_alone_needs_no_reward(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    chosen = config(folder, combine="opd")
    student = kdrl.fit(kdrl.read([str(path)], chosen), chosen, out=tmp_path / "student")
    assert student.history["kd/k1"].is_finite().all()
    rewarded = fitted(folder, combine="opd")
    assert torch.equal(vector(student.model), vector(rewarded.model))
    chosen = config(folder)
    with pytest.raises(InputError, match="nothing says how completions are rewarded"):
        kdrl.fit(kdrl.read([str(path)], chosen), chosen)


def test_updates_over_the_same_completions_are_told_and_sample_nothing(folder):
    with pytest.warns(SanovWarning, match=r"grpo.iterations=2: the term of k2 is not weighted.*kd.combine=advantage"):
        student = fitted(folder, "grpo.iterations=2", beta=0.3, schedule="constant")
    once, again, new = student.history["num_tokens"].to_list()
    assert once > 0
    assert again == 0
    assert new > 0
    assert student.history["reward"].is_null().to_list() == [False, True, False]


def test_everything_about_completions_is_made_where_they_are():
    """What forgets to say where a tensor is made makes it on the device that holds nothing."""

    class Teacher:
        tokenizer = None

        def log_probs(self, rollouts, rows, temperature):
            return rollouts.log_probs[rows] * 2

    signal = kdrl.KdSignal(Teacher(), kdrl.Distillation(), kdrl.Mixing(), steps=3)
    rollouts = rollouts_of([(2, 3, 4), (5, 2)], [1.0, 0.0], group_size=2, eos=2, log_probs=-torch.ones(2, 4))
    with torch.device("meta"):
        signal.score(rollouts, 0, decoder())
    assert rollouts.metrics["kd/clip_frac"] == 0


def test_a_teacher_on_the_cpu_goes_where_the_completions_are():
    teacher = LocalTeacher(decoder(1), TOKENIZER)
    rollouts = rollouts_of([(2, 3, 4)], eos=2)
    rollouts.ids = rollouts.ids.to("meta")
    with pytest.raises(RuntimeError, match="meta"):  # this device computes nothing
        teacher.log_probs(rollouts, torch.tensor([0]), 1.0)
    assert {weight.device.type for weight in teacher.model.parameters()} == {"meta"}


def test_a_fall_of_the_entropy_is_told_once():
    signal = kdrl.KdSignal(LocalTeacher(decoder(1), TOKENIZER), kdrl.Distillation(), kdrl.Mixing(), steps=9)

    def step(number, surprise):
        log_probs = torch.tensor([[0.0, -surprise, -surprise]])
        signal.score(rollouts_of([(3, 4)], [1.0], log_probs=log_probs), number, decoder())

    step(0, 2.0)
    step(1, 0.21)
    with pytest.warns(SanovWarning, match=r"step 3: the entropy fell from 2 to 0.19 nats"):
        step(2, 0.19)
    step(3, 0.01)


def test_exact_divergence_from_a_local_teacher_alone(folder, tmp_path):
    fitted(folder, estimator="exact", beta=0.1)
    with pytest.raises(InputError, match=r"the teacher gives sampled tokens alone.*[Uu]se k2"):
        fitted(folder, f"record={tmp_path / 'r.db'}", estimator="exact", beta=0.1)
    save_model(Decoder(Shape(40, 16, 1, 2, 32, context=48)), tmp_path / "wide", TOKENIZER)
    with pytest.raises(
        InputError, match=r"the policy has 32 logits and the teacher 40, unused ones included.*[Uu]se k2"
    ):
        fitted(folder, f"teacher={tmp_path / 'wide'}", estimator="exact", beta=0.1)
    assert torch.isfinite(vector(fitted(folder, f"teacher={tmp_path / 'wide'}", beta=0.1).model)).all()


def test_a_teacher_with_a_short_context_is_told(folder, tmp_path):
    save_model(decoder(1, context=8), tmp_path / "short", TOKENIZER)
    with pytest.raises(InputError, match=r"teacher: its context is 8 tokens; expected at least the \d+ of prompt and"):
        fitted(folder, f"teacher={tmp_path / 'short'}", beta=0.1, schedule="constant")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(folder, tmp_path, parallel):
    """The same global batch on two gloo processes, weights whole or divided: equal weights to 1e-4."""
    import socket

    whole = fitted(folder, "training.steps=4", beta=0.3, schedule="constant", out=tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *(word for word in SMALL if "steps" not in word),
        "training.steps=4",
        f"policy={folder / 'policy'}",
        f"teacher={folder / 'teacher'}",
    ]
    words += ["kd.beta=0.3", "kd.schedule=constant", f"training.parallel={parallel}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    launch += ["-m", "sanov.cli", "fit", "kdrl", str(folder / "prompts.jsonl"), *words, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = kdrl.Fitted.load(tmp_path / "two")
    assert float((vector(whole.model) - vector(two.model)).abs().max()) < 1e-4
    for name in ("reward", "kd/k2", "entropy", "completions/mean_length", "advantage_std", "loss_policy", "loss_kd"):
        np.testing.assert_allclose(whole.history[name], two.history[name], rtol=1e-4, atol=1e-5, err_msg=name)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kd", "message"),
    [
        ({"estimator": "k1"}, r"k1 as a loss has zero expected gradient.*kd.combine=advantage"),
        ({"beta": -1}, r"kd.beta: the value is -1.*>= 0"),
        ({"beta": 0.1, "beta_end": 0.2}, r"kd.beta_end: it is 0.2, above kd.beta = 0.1"),
        ({"beta_decay": 0.1, "anneal_share": 0.5}, r"are both given.*[Ss]et one of the two"),
        ({"discount": 0.5}, r"Return-to-go exists only in the advantage form"),
        ({"denominator": "masked_tokens", "combine": "advantage"}, r"kd.denominator.*all_tokens"),
        ({"mask": "response", "combine": "opd"}, r"kd.mask: combine=opd says by itself.*expected none"),
        ({"mask": "group", "combine": "hdpo"}, r"kd.mask: combine=hdpo says by itself.*expected none"),
        ({"estimator": "k3", "combine": "advantage"}, r"kd.estimator: combine=advantage has no loss.*k1 or k2"),
        ({"clip": 1.0, "combine": "trrd"}, r"kd.clip: combine=trrd has no factor to clip"),
        ({"clip": 1.0, "estimator": "exact"}, r"kd.clip: estimator=exact has no factor to clip"),
    ],
)
def test_options_that_exclude_one_another(folder, kd, message):
    with pytest.raises(InputError, match=message):
        fitted(folder, **kd)


def test_a_coefficient_needs_a_teacher(folder, command):
    status, said = command("fit", "kdrl", folder / "prompts.jsonl", f"policy={folder / 'policy'}", *SMALL, "--out", "x")
    assert status == 2
    assert "kd.beta > 0 needs a teacher" in said
    assert not Path("x").exists()


def test_masks_need_binary_rewards(folder, tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("def half(prompts, completions, **columns):\n    return [0.5] * len(prompts)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"a reward \(half\) is 0.5.*Masks need the binary outcome reward"):
        fitted(folder, "rewards=half:half", mask="response")


def test_other_tokens_are_refused(folder):
    class Other(type(TOKENIZER)):
        def token_ids(self):
            found = super().token_ids()
            return {**found, "+": found["-"], "-": found["+"]}

    with pytest.raises(InputError, match=r"the token '\+' is 10 for the policy and 11 for the teacher"):
        check_tokenizers(TOKENIZER, Other())

    class Longer(type(TOKENIZER)):
        def token_ids(self):
            return {**super().token_ids(), "<|more|>": 32}

    with pytest.raises(InputError, match=r"the policy's tokenizer has 32 tokens and the teacher's 33"):
        check_tokenizers(TOKENIZER, Longer())


def test_ends_that_differ_are_left_out_or_told():
    class Other(type(TOKENIZER)):
        eos = TOKENIZER.reserved[0]

    teacher = LocalTeacher(decoder(1), Other())
    for given, masked in ((None, True), (True, True)):
        signal = kdrl.KdSignal(teacher, kdrl.Distillation(mask_eos=given), kdrl.Mixing(), steps=3)
        assert signal.begin(decoder(), TOKENIZER, PROMPTS, kdrl.Rollout())["mask_eos"] is masked
    signal = kdrl.KdSignal(teacher, kdrl.Distillation(mask_eos=False), kdrl.Mixing(), steps=3)
    with pytest.warns(
        SanovWarning, match=r"the policy ends with the token 29 and the teacher with 30.*kd.mask_eos=true"
    ):
        signal.begin(decoder(), TOKENIZER, PROMPTS, kdrl.Rollout())


def test_a_teacher_that_would_be_trained_is_refused():
    policy = decoder()
    teacher = LocalTeacher(policy, TOKENIZER)
    policy.requires_grad_(True)
    signal = kdrl.KdSignal(teacher, kdrl.Distillation(), kdrl.Mixing(), steps=3)
    with pytest.raises(InputError, match=r"the teacher would be trained too: lm_head.weight|model.embed_tokens.weight"):
        signal.begin(policy, TOKENIZER, PROMPTS, kdrl.Rollout())


def test_a_large_vocabulary_has_no_exact_divergence():
    class Large(type(TOKENIZER)):
        vocabulary = 50_000

    signal = kdrl.KdSignal(
        LocalTeacher(decoder(1), Large()), kdrl.Distillation(estimator="exact"), kdrl.Mixing(), steps=3
    )
    with pytest.raises(
        InputError, match=r"a vocabulary of 50000 needs up to 12,500 MiB.*at most 4096 tokens.*[Uu]se k2"
    ):
        signal.begin(decoder(), Large(), PROMPTS, kdrl.Rollout())


def test_a_teacher_that_rules_a_token_out_is_told(folder, monkeypatch):
    def never(self, rollouts, rows, temperature):
        return torch.full((len(rows), rollouts.ids.shape[1]), -torch.inf)

    monkeypatch.setattr(LocalTeacher, "log_probs", never)
    with pytest.raises(
        InputError, match=r"completion 1, position \d+: the teacher's log-probability of token \d+ is -inf"
    ):
        fitted(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no rows"),
        ('{"question": "a1+1="}\n', r"prompt"),
        ('{"prompt": "a1+1="}\n', r"nothing says how completions are rewarded"),
        ('{"prompt": "a1+1=", "answer": 2}\n{"prompt": null, "answer": 2}\n', r"row 2|line 2"),
        (
            '{"prompt": "a1+1=", "answer": 2}\n{"prompt": "A1+1=", "answer": 2}\n',
            r"p.jsonl, row 2: character 1 is 'A', which has no token",
        ),
    ],
)
def test_prompts_that_are_none(folder, tmp_path, text, message, command):
    (tmp_path / "p.jsonl").write_text(text)
    more = [] if '"answer"' not in text else ["rewards=exact"]
    status, said = command(
        "fit", "kdrl", "p.jsonl", f"policy={folder / 'policy'}", "kd.combine=grpo", *SMALL, *more, "--out", "x"
    )
    assert status == 2, said
    assert re.search(message, said), said
    assert not Path("x/sanov.json").exists()


def test_folders_that_are_none(folder, tmp_path, command):
    for given in (f"policy={tmp_path / 'none'}", f"teacher={tmp_path / 'none'}"):
        words = [f"policy={folder / 'policy'}", f"teacher={folder / 'teacher'}"]
        words = [word for word in words if word.split("=")[0] != given.split("=")[0]]
        status, said = command("fit", "kdrl", folder / "prompts.jsonl", *words, given, *SMALL, "--out", "x")
        assert (status, str(tmp_path / "none") in said) == (2, True), said
    status, said = command("apply", "kdrl", folder / "prompts.jsonl", "--fitted", folder / "policy", *SMALL)
    assert status == 2
    assert "holds no finished policy" in said
    status, said = command("apply", "kdrl", folder / "prompts.jsonl", *SMALL)
    assert status == 2
    assert "there is no policy" in said
    assert "sanov fit kdrl" in said


def test_a_name_on_the_hub_is_told(folder, command):
    words = ["policy=Org/Name-1.5B", f"teacher={folder / 'teacher'}"]
    status, said = command("fit", "kdrl", folder / "prompts.jsonl", *words, *SMALL, "--out", "x")
    assert status == 2
    assert "`hf download Org/Name-1.5B --local-dir Name-1.5B`" in said


def test_options_of_a_policy_that_is_not_made_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"start.steps, start.width: policy=.* no policy is made"):
        fitted(folder, "start.width=16", "start.steps=3", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is a folder with other files in it"):
        fitted(folder, out=tmp_path / "out")
    fitted(folder, out=tmp_path / "done")
    with pytest.raises(InputError, match="holds a finished policy"):
        fitted(folder, out=tmp_path / "done")


def test_a_damaged_policy_is_told(folder, tmp_path):
    fitted(folder, out=tmp_path / "done")
    save_model(decoder(5), tmp_path / "done", TOKENIZER)
    with pytest.raises(InputError, match=r"the weights are not those that sanov.json describes"):
        kdrl.Fitted.load(tmp_path / "done")


def test_a_file_that_is_no_record(folder):
    with pytest.raises(InputError, match=r"cannot be read.*recorded log-probabilities"):
        RecordedTeacher(folder / "policy" / "config.json")
    with pytest.raises(InputError, match="there is no such file"):
        RecordedTeacher(folder / "none.db")
