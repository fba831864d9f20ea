"""TRL's own GRPOTrainer on a model of a few thousand weights, with signals and without."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import tiny_llama
from learning.policy_toy import gradient
from sanov.bridges import trl as trl_bridge
from sanov.bridges.trl import kdrl, laser, with_signals
from sanov.bridges.trl_checks import check_batch, check_trainer
from sanov.core.errors import InputError, MissingExtra
from sanov.learning.policy import Grpo, Signal
from sanov.learning.token_teachers import LocalTeacher
from sanov.nets.foreign_causal import ForeignCausal
from sanov.nets.vocabulary import Vocabulary
from sanov.systems.kdrl import Distillation, KdSignal, Mixing

# of TRL 1.16 about transformers 5.14
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

PROMPTS = ["w2 w3 w4", "w5", "w6 w7", "w8 w9 w10 w11"]
GROUP, PAD, LABEL, SPARE = 4, 0, 20, 21


def policy():
    return tiny_llama.llama()


def other():
    """A teacher that differs from the policy."""
    model = tiny_llama.llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def third(prompts, completions, completion_ids, **columns):
    """Reward completions whose first token has one of every third numbers: some of a group."""
    return [float(ids[0] % 3 == 0) for ids in completion_ids]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_llama.save_tokenizer(folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.add_tokens([f"w{LABEL}", f"w{SPARE}"], special_tokens=True)  # two that are there already
    return found


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return LocalTeacher(ForeignCausal(other()), Vocabulary(tokenizer))


class Look(Signal):
    """Keeps completions."""

    def __init__(self):
        self.seen = []

    def score(self, rollouts, step, model):
        self.seen.append(rollouts)


class Keep(transformers.TrainerCallback):
    """Keeps gradients and weights of each step, before weights change."""

    def __init__(self):
        self.gradients, self.weights = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
        self.gradients.append(torch.cat([weight.grad.flatten().clone() for weight in model.parameters()]))
        self.weights.append({name: weight.detach().clone() for name, weight in model.state_dict().items()})


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory, tokenizer):
    """Make a trainer with signals; None is TRL's own class, or the base as it is."""

    def make(signals, *, model=None, base=None, keep=None, evaluated=False, tools=None, rollout_func=None, **options):
        settings = {
            "output_dir": str(tmp_path_factory.mktemp("trl")),
            "per_device_train_batch_size": 8,
            "num_generations": GROUP,
            "max_completion_length": 10,
            "max_steps": 1,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1e9,
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "generation_kwargs": {"suppress_tokens": [PAD]},  # transformers keeps the embedding of padding fixed
        }
        data = Dataset.from_dict({"prompt": PROMPTS})
        return (base or GRPOTrainer if signals is None else with_signals(signals, base))(
            policy() if model is None else model,
            third,
            args=GRPOConfig(**{**settings, **options}),
            train_dataset=data,
            eval_dataset=data.select([0, 1]) if evaluated else None,
            processing_class=tokenizer,
            callbacks=[] if keep is None else [keep],
            tools=tools,
            rollout_func=rollout_func,
        )

    return make


@pytest.fixture(scope="module")
def gradients_of(trainer_of):
    """Train, and return the gradient of each step."""

    def run(signals, **options):
        keep = Keep()
        trainer_of(signals, keep=keep, **options).train()
        return keep.gradients

    return run


def close(found, expected, tolerance=1e-5):
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


# -- TRL alone --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(gradients_of):
    return gradients_of(None, max_steps=2)


def test_where_nothing_is_asked_for_the_gradients_are_trls_bit_for_bit(gradients_of, plain):
    idle = [Look(), KdSignal(None, Distillation(beta=0, schedule="constant"), Mixing(), steps=2)]
    for signals in ([], idle):
        found = gradients_of(signals, max_steps=2)
        assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))
    assert len(idle[0].seen) == 2
    assert idle[0].seen[0].rewards.std() > 0  # there was something to learn
    assert plain[0].abs().max() > 0


def test_importing_the_bridge_needs_no_trl(monkeypatch):
    for name in ("trl", "trl_batches", "trl_checks", "trl_trainer"):
        monkeypatch.delitem(sys.modules, f"sanov.bridges.{name}")
    for name in ("trl", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    anew = importlib.import_module("sanov.bridges.trl")
    with pytest.raises(MissingExtra, match=r"pip install 'sanov\[trl\]'"):
        anew.with_signals([])


@pytest.mark.parametrize("name", ["KDRLTrainer", "LaSeRTrainer"])
def test_the_named_trainers_are_the_signals(trainer_of, gradients_of, tokenizer, name):
    if name == "KDRLTrainer":
        signal, ours = (
            kdrl(other(), tokenizer, beta=0.3),
            {"teacher": other(), "teacher_tokenizer": tokenizer, "kd": {"beta": 0.3}},
        )
    else:
        about = {"ref_constant": -4.0, "beta": 1.0, **NOW}
        signal, ours = laser(**about), {"self_reward": about}
    found = getattr(trl_bridge, name)
    assert issubclass(found, GRPOTrainer)

    class Mine(found):
        """One that is derived from it, as users do."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **ours, **kwargs)

    expected, same = gradients_of([signal]), gradients_of(None, base=Mine)
    assert torch.equal(expected[0], same[0])
    assert not torch.equal(same[0], gradients_of([])[0])


class Engine:
    """In the place of TRL's door to vLLM: samples by the trainer's model, and gives log-probabilities as vLLM does."""

    bias = 0.0  # by which those differ from the policy's own

    def __init__(self, *, model, **options):
        self.model, self.options, self.synced = model, options, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        generator = torch.Generator().manual_seed(7 + self.synced)
        texts, log_probs = [], []
        for prompt in prompts:
            ids, own = list(prompt), []
            for _ in range(self.options["max_completion_length"]):
                with torch.no_grad():
                    logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
                for token in (PAD, *((self.options["generation_kwargs"] or {}).get("logit_bias") or {})):
                    logits[token] = -torch.inf
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
                own.append([float(logits.log_softmax(-1)[token]) + self.bias])
                ids.append(token)
                if token == 1:
                    break
            texts.append(ids[len(prompt) :])
            log_probs.append(own)
        return prompts, texts, log_probs, None


def test_signals_work_on_what_vllm_sampled(gradients_of, tokenizer, monkeypatch):
    """TRL's own path for vLLM, with another engine in its place."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    plain, none = (gradients_of(signals, use_vllm=True) for signals in (None, []))
    assert torch.equal(plain[0], none[0])
    signal = kdrl(other(), tokenizer, beta=0.3, schedule="constant")
    found, uncorrected = (
        gradients_of([signal], use_vllm=True, vllm_importance_sampling_correction=on) for on in (True, False)
    )
    close(found[0], uncorrected[0], 2e-3)  # the engine has no dropout, and the ratio is 1 but for PAD's probability
    assert (found[0] - plain[0]).abs().max() > 1e-2 * found[0].abs().max()
    with pytest.raises(InputError, match=r"logit_bias.*20: -100"):
        gradients_of([laser(ref_constant=-4.0, beta=1.0, token=f"w{LABEL}", **NOW)], use_vllm=True)
    biased = {"logit_bias": {LABEL: -100, SPARE: -100}}
    own = laser(ref_constant=-4.0, beta=1.0, token=f"w{LABEL}", **NOW)
    scored = gradients_of([own], use_vllm=True, generation_kwargs=biased)
    assert scored[0].isfinite().all()


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="KDTrainer"):
        trl_bridge.KDTrainer  # noqa: B018
    assert set(trl_bridge.__all__) >= {"KDRLTrainer", "LaSeRTrainer"}


# -- the same gradients as by learning.policy -------------------------------------------------------------------------

WAYS = [
    ({"combine": "loss"}, {}),
    ({"combine": "loss", "mask": "response", "denominator": "masked_tokens", "estimator": "k3"}, {}),
    ({"combine": "loss", "mask": "group"}, {"loss_type": "grpo"}),
    ({"combine": "loss", "mask_eos": True}, {"mask_truncated_completions": True, "temperature": 0.7}),
    ({"combine": "advantage", "discount": 0.5}, {}),
    ({"combine": "reward"}, {}),
    ({"combine": "srpo"}, {}),
    ({"combine": "trrd"}, {}),
]


@pytest.mark.parametrize(("kd", "options"), WAYS)
def test_gradients_are_ours_on_the_same_completions(gradients_of, plain, teacher, kd, options):
    look, signal = Look(), KdSignal(teacher, Distillation(beta=0.3, schedule="constant", **kd), Mixing(), steps=1)
    (found,) = gradients_of([look, signal], **options)
    (rollouts,) = look.seen
    grpo = Grpo(normalise="sequence" if options.get("loss_type") == "grpo" else "tokens")
    expected, _ = gradient(
        ForeignCausal(policy()), rollouts, [signal], grpo, temperature=options.get("temperature", 1.0)
    )
    assert close(found, expected)
    assert not close(found, plain[0], 1e-3)
    assert 0 < rollouts.finished.sum() < len(rollouts)


def test_shaped_rewards_become_advantages_as_trls_do(gradients_of, teacher):
    look = Look()
    signal = KdSignal(teacher, Distillation(beta=0.3, schedule="constant", combine="reward"), Mixing(), steps=1)
    gradients_of([look, signal])
    (rollouts,) = look.seen
    shaped = rollouts.shaped.numpy().reshape(-1, GROUP)
    expected = (shaped - shaped.mean(1, keepdims=True)) / (shaped.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(rollouts.advantages.reshape(-1, GROUP), expected, rtol=1e-6)


def test_micro_batches_change_nothing(gradients_of, teacher):
    """Completions differ in length, and masks in how much of them they leave; two steps may share what was sampled."""
    kd = Distillation(beta=0.3, schedule="constant", mask="response", denominator="masked_tokens")
    whole, parts, halves = (
        gradients_of(
            [KdSignal(teacher, kd, Mixing(), steps=2), laser(ref_constant=-4.0, beta=1.0, **NOW)],
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=many,
            steps_per_generation=8 // rows,
            max_steps=steps,
            learning_rate=0.0,
        )
        for rows, many, steps in ((8, 1, 1), (2, 4, 1), (2, 2, 2))
    )
    assert close(parts[0], whole[0])
    assert close((halves[0] + halves[1]) / 2, whole[0])
    assert not close(halves[0], whole[0], 1e-3)


def test_completions_that_serve_two_updates_are_off_policy_in_the_second(trainer_of, teacher):
    kd = Distillation(beta=0.3, beta_end=0.1, anneal_share=1.0, combine="advantage")
    look, signal, keep = Look(), KdSignal(teacher, kd, Mixing(), steps=2), Keep()
    trainer_of([look, signal], keep=keep, num_iterations=2, max_steps=2).train()
    model = policy()
    model.load_state_dict(keep.weights[1])
    grpo = Grpo(iterations=2)
    (rollouts,) = look.seen
    expected, _ = gradient(ForeignCausal(model), rollouts, [signal], grpo, step=1)
    on_policy, _ = gradient(ForeignCausal(model), rollouts, [signal], Grpo(), step=1)
    assert close(keep.gradients[1], expected)
    assert not close(on_policy, expected, 1e-3)


# -- LaSeR ------------------------------------------------------------------------------------------------------------

NOW = {"reasoning_warmup_steps": 0, "warmup_steps": 0, "alpha": 0.5, "std_threshold": 0.0}


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_laser_reads_the_label_after_the_end(gradients_of, plain, loss):
    options = {"ref_constant": -4.0, "beta": 1.0, "reference": "constant"} if loss == "mse" else {"loss": "bce"}
    look, signal = Look(), laser(**options, **NOW)
    (found,) = gradients_of([look, signal], max_completion_length=16)
    (rollouts,) = look.seen
    model = ForeignCausal(policy())
    expected, _ = gradient(model, rollouts, [signal])
    assert close(found, expected)
    assert not close(found, plain[0], 1e-3)
    assert rollouts.metrics["swa/active"] == 1
    sampled = rollouts.ids[rollouts.completion]
    assert not torch.isin(sampled, torch.tensor([PAD, LABEL, SPARE])).any()
    row = int(rollouts.finished.nonzero()[0])
    with torch.no_grad():
        logits = model.wrapped(rollouts.ids[None, row, : int(rollouts.lengths[row])]).logits[0, -1]
    assert float(rollouts.ends[LABEL][row]) == pytest.approx(float(logits.log_softmax(-1)[LABEL]), abs=1e-5)


def test_the_policy_at_its_start_stays_as_it_was(trainer_of):
    signal = laser(ref_constant=-4.0, beta=1.0, reference="exact", **NOW)
    trainer = trainer_of([signal], max_steps=2)
    trainer.train()
    ids = torch.tensor([[2, 3, 4]])
    before, now, kept = (model(ids).logits for model in (policy(), trainer.model, signal.reference.wrapped))
    assert torch.equal(before, kept)
    assert not torch.allclose(before, now, atol=1e-3)


def test_a_run_that_goes_on_keeps_what_it_measured(trainer_of, tmp_path):
    first, then = (laser(reference="constant", correction=True, **NOW) for _ in range(2))
    place = {"output_dir": str(tmp_path)}
    trainer_of([first], save_strategy="steps", save_steps=1, **place).train()
    trainer_of([then], max_steps=2, **place).train(resume_from_checkpoint=True)
    assert (then.scale.constant, then.scale.beta) == (first.scale.constant, first.scale.beta)
    assert first.scale.samples > 0
    assert then.scale.samples == 0
    trainer = trainer_of([laser(reference="exact", correction=True, **NOW)])
    trainer.state.global_step = 1
    with pytest.raises(InputError, match="nothing is known of the run's start"):
        trainer._begin()


def test_a_warm_up_longer_than_the_run_is_refused(trainer_of):
    with pytest.raises(InputError, match=r"begins after 9 steps, and there are 1"):
        trainer_of([laser(ref_constant=-4.0, beta=1.0, reasoning_warmup_steps=9)]).train()


# -- a script of a user's ---------------------------------------------------------------------------------------------


class Counting(GRPOTrainer):
    """Counts the passes of the policy."""

    passes = 0

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.passes += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


def test_a_script_trains_and_logs_as_before(trainer_of, tmp_path):
    folder = tiny_llama.save(other(), tmp_path / "teacher")
    look = Look()
    signals = [look, kdrl(folder, record=tmp_path / "teacher.db", beta=0.3, beta_end=0.1, anneal_share=1.0)]
    trainer = trainer_of(signals, base=Counting, max_steps=2, evaluated=True, per_device_eval_batch_size=8)
    judged = trainer.evaluate()
    assert np.isfinite(judged["eval_loss"])
    assert not look.seen
    trainer.passes = 0
    trainer.train()
    assert trainer.passes == 2 * 2  # what was sampled, and the loss
    logged = [row for row in trainer.state.log_history if "kd/k1" in row]
    assert [row["kd/beta"] for row in logged] == pytest.approx([0.3, 0.2])
    assert {"kd/k2", "kd/mask_frac", "kd/teacher_logp", "reward", "entropy", "loss", "grad_norm"} <= logged[0].keys()
    assert logged[0]["kd/k1"] == pytest.approx(gap_by_transformers(look.seen[0]), rel=1e-4)
    assert (tmp_path / "teacher.db").is_file()


def gap_by_transformers(rollouts):
    """Mean log-ratio of policy and teacher over the tokens of completions."""
    gaps = []
    for row in range(len(rollouts)):
        ids, start = rollouts.ids[row, : int(rollouts.lengths[row])], int(rollouts.starts[row])
        with torch.no_grad():
            logs = [model(ids[None]).logits[0, start - 1 : -1].log_softmax(-1) for model in (policy(), other())]
        gaps.append((logs[0] - logs[1]).gather(1, ids[start:, None]))
    return float(torch.cat(gaps).mean())


def test_a_teacher_may_be_a_model(trainer_of, tokenizer):
    found = with_signals([kdrl(other(), tokenizer, combine="opd")])
    assert issubclass(found, GRPOTrainer)
    with pytest.raises(InputError, match="tokenizer: there is none; expected that of the teacher"):
        kdrl(other())


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss_type": "cispo"}, r"GRPOConfig.loss_type: it is 'cispo'.*expected 'dapo' or 'grpo'"),
        ({"importance_sampling_level": "sequence"}, r"importance_sampling_level: it is 'sequence'.*expected 'token'"),
        ({"use_liger_kernel": True}, r"GRPOConfig.use_liger_kernel: it is True"),
        ({"tools": [third]}, r"GRPOTrainer\(tools=...\)"),
        ({"rollout_func": third}, r"GRPOTrainer\(rollout_func=...\)"),
    ],
)
def test_options_that_exclude_signals_are_refused_by_name(trainer_of, options, told):
    with pytest.raises(InputError, match=told):
        trainer_of([Look()], **options)


def test_groups_that_processes_share_are_refused(trainer_of, monkeypatch):
    """Two processes with half a group each: TRL's trainer itself would take that."""
    settings = GRPOConfig.__post_init__

    def shared(self):
        settings(self)
        self.per_device_train_batch_size = 2

    monkeypatch.setattr(GRPOConfig, "__post_init__", shared)
    with pytest.raises(InputError, match="a process samples 2 completions at once, and 4 belong to a prompt"):
        trainer_of([Look()])


class Changed(GRPOTrainer):
    """TRL's trainer as it might become."""

    def _generate_and_score_completions(self, inputs):
        return {**super()._generate_and_score_completions(inputs), "tool_mask": torch.ones(8, 10)}


class Otherwise(GRPOTrainer):
    def compute_loss(self, model, inputs, **rest):
        return sum(weight.sum() for weight in model.parameters())


def test_a_trl_that_changed_is_told(trainer_of, monkeypatch):
    with pytest.raises(InputError, match="'tool_mask' in TRL's batch: tools or an environment wrote"):
        trainer_of([Look()], base=Changed).train()
    with pytest.raises(InputError, match="its loss computes log-probabilities by other means"):
        trainer_of([Look()], base=Otherwise).train()
    batch = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), torch.ones(1))
    with pytest.raises(InputError, match="TRL's batch: there is no 'advantages'"):
        check_batch(batch, old=False)
    check_batch(batch | {"advantages": torch.ones(1)}, old=False)
    with pytest.raises(InputError, match="no 'old_per_token_logps', which completions that serve several updates need"):
        check_batch(batch | {"advantages": torch.ones(1)}, old=True)
    renamed = type("Renamed", (GRPOTrainer,), {"_calculate_rewards": lambda self, rows: None})
    with pytest.raises(InputError, match="_calculate_rewards has no parameter 'inputs'"):
        with_signals([], renamed)
    monkeypatch.setattr(trl, "__version__", "1.17.0.dev0")
    with pytest.raises(
        InputError, match=r"trl: TRL 1.17.0.dev0 is installed; expected 1.16. Run: pip install 'trl==1.16"
    ):
        with_signals([])


def test_other_mistakes_are_told(trainer_of, tokenizer):
    with pytest.raises(InputError, match=r"base: it is .*Trainer.*expected a class that derives from trl.GRPOTrainer"):
        with_signals([], transformers.Trainer)
    with pytest.raises(InputError, match="signals: one is 'kdrl'"):
        with_signals(["kdrl"])
    with pytest.raises(InputError, match=r"kd.bata"):
        kdrl(other(), tokenizer, bata=1.0)
    with pytest.raises(InputError, match="k1 as a loss has zero expected gradient"):
        kdrl(other(), tokenizer, estimator="k1")
    with pytest.raises(InputError, match=r"kd.estimator: TRL gives log-probabilities of sampled tokens"):
        kdrl(other(), tokenizer, estimator="exact")
    with pytest.raises(InputError, match="SFTTrainer"):
        kdrl(other(), tokenizer, combine="sft")
    model = policy()
    with pytest.raises(InputError, match=r"no weight of the policy is trained. Give the teacher a model of its own"):
        trainer_of([kdrl(model, tokenizer)], model=model)
    with pytest.raises(InputError, match="the policy sees images"):
        check_trainer(SimpleNamespace(processing_class=SimpleNamespace(image_processor=None)))
    with pytest.raises(InputError, match=r"GRPOConfig.temperature: it is 0.5; expected 1.0"):
        trainer_of([laser(ref_constant=-4.0, beta=1.0, **NOW)], temperature=0.5).train()
