"""Training: what is plain GRPO bit for bit, when the loss and the advantages begin, and what changes nothing."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from learning.policy_toy import TOKENIZER, decoder, gradient, rollouts_of, run, tasks
from learning.toy_run import vector
from sanov.advantages import group_advantages
from sanov.core.errors import InputError, SanovWarning
from sanov.learning import policies, policy
from sanov.learning.rollouts import Rollouts, local_sampler
from sanov.learning.token_teachers import LocalTeacher
from sanov.systems import laser
from sanov.systems.kdrl import Distillation, KdSignal, Mixing
from sanov.systems.laser import SelfReward, SelfRewardSignal, permuted_labels
from sanov.systems.laser.judging import judge_own
from sanov.systems.laser.scoring import end_log_probs
from systems.laser_toy import EOS, LABEL, SHORT, SPARE, Still, config, eager, questions, signal, small_digits

SUPPRESSED = SHORT.model_copy(update={"suppress": (LABEL, SPARE)})


def a_step(rows=8, group_size=4, cut=(3,), rewards=(1, 0, 0, 1, 0, 0, 1, 0), seed=0):
    """Completions of a step whose label has log-probabilities that differ."""
    rng = np.random.default_rng(seed)
    texts = [[*rng.integers(0, 20, rng.integers(1, 5)).tolist(), *([] if row in cut else [EOS])] for row in range(rows)]
    heads = [tuple(rng.integers(0, 20, 3).tolist()) for _ in texts]
    found = rollouts_of(texts, rewards, prompt=heads, eos=EOS, group_size=group_size, pad=TOKENIZER.pad)
    found.advantages = group_advantages(found.rewards, group_size)
    ends = torch.from_numpy(rng.uniform(-9.5, -4.5, rows))
    found.ends = {LABEL: torch.where(found.finished, ends, torch.nan)}
    return found


def begun(own, group_size=4):
    """A signal that has looked at a policy."""
    own.begin(decoder(), TOKENIZER, tasks(8)[0], SHORT.model_copy(update={"group_size": group_size}))
    return own


# -- plain GRPO -------------------------------------------------------------------------------------------------------


def test_without_alpha_and_tau_it_is_grpo_bit_for_bit():
    """With the same tokens suppressed: parameters and losses of five steps; with either of the two it is not."""
    plain, history, _ = run(eager(), steps=5, rollouts=SUPPRESSED, reward=small_digits)
    off, same, _ = run(eager(), steps=5, signals=[signal(alpha=0.0, tau=0.0)], reward=small_digits)
    assert torch.equal(vector(off), vector(plain))
    assert same.totals == history.totals
    assert same.grad_norms == history.grad_norms
    for options in ({"alpha": 0.0, "tau": 0.1, "std_threshold": 0.0}, {"alpha": 0.1, "tau": 0.0}):
        on, _, _ = run(eager(), steps=5, signals=[signal(**options)], reward=small_digits)
        assert not torch.equal(vector(on), vector(plain))


def test_the_objective_is_the_sum_of_its_terms():
    _, history, _ = run(eager(), signals=[signal(alpha=0.3, tau=0.0)], reward=small_digits)
    frame = history.to_frame()
    expected = frame["loss_policy"] + 0.3 * frame["loss_self_reward"]
    np.testing.assert_allclose(frame["loss"], expected, rtol=1e-9)
    np.testing.assert_allclose(frame["loss_self_reward"], frame["self_reward/mse"], rtol=1e-4)  # one update a sampling


def test_with_a_teacher_beside_it_gradients_add():
    model = decoder()
    kd = KdSignal(
        LocalTeacher(decoder(seed=5), TOKENIZER), Distillation(beta=0.2, schedule="constant"), Mixing(), steps=9
    )
    kd.group_size = 4
    own, both = begun(signal(tau=0.0)), []
    for signals in ([], [kd], [own], [kd, own]):
        rollouts = a_step()
        for each in signals:
            each.score(rollouts, 0, model)
        both.append(gradient(model, rollouts, signals)[0])
    nothing, with_kd, with_laser, with_both = both
    torch.testing.assert_close(with_both - nothing, (with_kd - nothing) + (with_laser - nothing), rtol=1e-4, atol=1e-6)


def test_scores_of_a_step_cost_no_further_pass(monkeypatch):
    """They are read off the sampler's cache; only a sampler that does not watch asks for a pass."""
    from sanov.systems.laser import signal as module

    monkeypatch.setattr(module, "end_log_probs", lambda *_: pytest.fail("another pass"))
    _, history, _ = run(eager(), steps=1, signals=[signal(tau=0.3)], reward=small_digits)
    assert "self_reward/acc" in history.to_frame().columns
    with pytest.raises(pytest.fail.Exception):
        run(eager(), steps=1, signals=[signal()], reward=small_digits, sampler=lambda *a, **b: local_sampler(*a, **b))


# -- when -------------------------------------------------------------------------------------------------------------


def test_the_loss_begins_after_the_first_warm_up_and_advantages_after_both():
    own = signal(reasoning_warmup_steps=2, warmup_steps=3)
    _, history, _ = run(eager(), steps=7, signals=[own], reward=small_digits)
    frame = history.to_frame()
    assert frame["step"].filter(frame["loss_self_reward"].is_not_nan()).to_list() == [3, 4, 5, 6, 7]
    assert frame["step"].filter(frame["swa/active"] == 1).to_list() == [6, 7]
    assert frame["step"].filter(frame["swa/filtered_frac"].is_not_null()).to_list() == [6, 7]


def test_before_the_warm_up_nothing_is_changed():
    late = signal(reasoning_warmup_steps=9)
    stop = {"callbacks": [lambda done, metrics: done == 3]}
    one, history, _ = run(eager(), steps=10, signals=[late], reward=small_digits, **stop)
    plain, other, _ = run(eager(), rollouts=SUPPRESSED, reward=small_digits)
    torch.testing.assert_close(vector(one), vector(plain), rtol=0, atol=1e-5)
    assert "self_reward/acc" in history.to_frame().columns
    assert "self_reward/acc" not in other.to_frame().columns


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reasoning_warmup_steps": 3}, r"the score would never be trained: its loss begins after 3 steps, and there are 3"),
        ({"warmup_steps": 5}, r"would never change advantages: it does after 5 steps, and there are 3"),
    ],
)  # fmt: skip
def test_warm_ups_that_leave_nothing_are_refused(tmp_path, given, message):
    own = SelfReward(correction=True, **given)
    with pytest.raises(InputError, match=message):
        laser.fit(questions(), config(tmp_path / "start", self_reward=own), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=message):
        run(eager(), signals=[SelfRewardSignal(own)], reward=small_digits)
    run(eager(), steps=6, signals=[SelfRewardSignal(own)], reward=small_digits)


# -- what counts ------------------------------------------------------------------------------------------------------


def test_cut_rows_are_no_part_of_the_loss_and_score_zero_in_advantages():
    own, rollouts = begun(signal(alpha=0.1, tau=1.0, std_threshold=0.0)), a_step()
    own.score(rollouts, 0, decoder())
    own.advantages(rollouts, 0)
    weights = rollouts.rows["self_reward_weight"]
    finished = rollouts.finished
    assert float(weights[3]) == 0
    n_right, n_wrong = 2, 5  # row 3 is right, and was cut
    expected = torch.where(rollouts.rewards == 1, 7 / (2 * n_right), 7 / (2 * n_wrong)) * finished
    torch.testing.assert_close(weights, expected.double())
    assert own.counts(rollouts, 0) == {"self_reward": 7}
    assert rollouts.metrics["self_reward/unfinished"] == 1
    score = torch.where(finished, (0.25 * (rollouts.ends[LABEL] + 9)).clamp(0, 1), 0.0).view(2, 4)
    relative = (score - score.mean(1, keepdim=True)) / score.std(1, keepdim=True)
    torch.testing.assert_close(rollouts.advantages, relative.flatten())


@pytest.mark.parametrize("budget", [8, 16, 10**6])
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_micro_batches_change_nothing(budget, loss):
    model = decoder(layers=2).double()
    own = begun(signal(tau=0.0, loss=loss))
    found = []
    for size in (10**6, budget):
        rollouts = a_step()
        own.score(rollouts, 0, model)
        found.append(gradient(model, rollouts, [own], budget=size))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=1e-12)
    assert found[1][1] == pytest.approx(found[0][1])


def test_rows_without_an_advantage_still_teach_the_score():
    """A group that is all wrong has no policy gradient, and seven finished rows to tell apart."""
    model, own = decoder(), begun(signal(tau=0.0))
    rollouts = a_step(rewards=(0,) * 8)
    own.score(rollouts, 0, model)
    found, values = gradient(model, rollouts, [own])
    assert float(found.abs().max()) > 0
    assert values["policy"] == 0
    assert sum(len(part["ids"]) for part in policy.packed(rollouts, [own], policy.Grpo(), 10**6, 0)) == 7
    assert policy.packed(rollouts, [], policy.Grpo(), 10**6, 0)[0]["metrics"]["step_skipped"] == 1


def test_a_row_that_only_fills_up_counts_nothing(monkeypatch):
    """Where another process has more micro-batches."""
    model, own = decoder(), begun(signal(tau=0.0))
    rollouts = a_step()
    own.score(rollouts, 0, model)
    alone = gradient(model, rollouts, [own])
    monkeypatch.setattr(
        policy, "every_process", lambda value: [value, value + 2] if isinstance(value, int) else [value]
    )
    filled = gradient(model, rollouts, [own])
    torch.testing.assert_close(filled[0], alone[0])
    assert filled[1] == pytest.approx(alone[1])


def test_rows_without_a_reward_are_left_alone():
    rollouts = a_step(rewards=(1, 0, 0, 1, math.nan, 0, 1, 0))
    rollouts.advantages = policy.advantages_of(rollouts.rewards, 4, policy.Grpo())
    own = begun(signal(tau=0.5, std_threshold=0.0))
    own.score(rollouts, 0, decoder())
    own.advantages(rollouts, 0)
    assert float(rollouts.rows["self_reward_weight"][4]) == 0
    assert float(rollouts.advantages[4]) == 0


def test_permuted_labels_are_a_matter_of_the_loss_alone():
    rollouts, true = a_step(), a_step()
    control, own = begun(signal(tau=0.5)), begun(signal(tau=0.5))
    control.labels = permuted_labels(seed=4)
    for each, step in ((control, rollouts), (own, true)):
        each.score(step, 0, decoder())
        each.advantages(step, 0)
    taught, right = rollouts.rows["self_reward_right"], true.rows["self_reward_right"]
    counted = rollouts.finished
    assert not torch.equal(taught, right)
    assert int(taught[counted].sum()) == int(right[counted].sum())
    assert torch.equal(taught[~counted], right[~counted])
    assert torch.equal(rollouts.advantages, true.advantages)
    assert rollouts.metrics["self_reward/auroc"] == true.metrics["self_reward/auroc"]
    assert "labels" not in laser.SelfReward.model_fields


def test_a_step_without_a_finished_row_has_no_loss_and_says_so():
    own = signal(alpha=1.0, tau=0.5)
    with pytest.warns(SanovWarning, match=r"completions/clipped_ratio = 1"):
        model, history, _ = run(eager(eos=-40.0), signals=[own], reward=small_digits, cut_is_told=True)
    frame = history.to_frame()
    assert frame["self_reward/mse"].to_list() == [0, 0, 0]
    assert frame["self_reward/unfinished"].to_list() == [16, 16, 16]
    assert vector(model).isfinite().all()


# -- references and the two-label verifier ----------------------------------------------------------------------------


def test_against_itself_a_policy_scores_zero():
    """The exact reference is the policy at its start: every score of the first step is 0."""
    own = signal(reference="exact", tau=0.0)
    _, history, noted = run(eager(), signals=[own], reward=small_digits, rate=3e-2)
    assert noted["self_reward"]["exact"]
    first = history.to_frame()["self_reward/mse"]
    share = history.to_frame()["reward"][0]
    assert 0 < share < 1
    assert first[0] == pytest.approx(0.5, abs=1e-5)  # right rows are off by 1, wrong ones by 0, and both weigh the same
    assert first[2] != pytest.approx(0.5, abs=1e-3)
    assert own.reference is not None
    assert not any(weight.requires_grad for weight in own.reference.parameters())
    torch.testing.assert_close(vector(own.reference), vector(eager()))


def test_constant_and_exact_training_agree_where_the_reference_is_constant():
    """A head that gives the label the same log-probability everywhere: all weights of the head are equal."""
    flat = eager()
    with torch.no_grad():
        flat.lm_head.weight.copy_(flat.lm_head.weight[:1].expand_as(flat.lm_head.weight))
    constant = -math.log(TOKENIZER.vocabulary)
    rollouts, found = {}, {}
    for kind in ("constant", "exact"):
        own = signal(reference=kind, tau=0.0, ref_constant=constant, beta=0.9)
        rollouts[kind] = a_step()
        own.begin(flat, TOKENIZER, tasks(8)[0], SHORT)
        own.score(rollouts[kind], 0, flat)
        found[kind] = gradient(decoder(seed=2), rollouts[kind], [own])
    torch.testing.assert_close(found["exact"][0], found["constant"][0], rtol=1e-3, atol=1e-6)
    assert found["exact"][1] == pytest.approx(found["constant"][1], rel=1e-4)


def test_auto_takes_the_model_where_the_constant_is_rough(monkeypatch):
    from sanov.systems.laser import signal as module
    from sanov.systems.laser.scale import Measured

    for std, exact in ((0.3, False), (0.5, True)):
        monkeypatch.setattr(module, "measure", lambda *_, std=std, **__: Measured(-9.5, std, 300))
        own = SelfRewardSignal(SelfReward())
        noted = own.begin(decoder(), TOKENIZER, tasks(8)[0], SHORT)
        assert noted["self_reward"]["exact"] is exact
        assert (own.reference is not None) is exact
        assert noted["c_ref"] == -9.5


def test_the_two_label_verifier_learns_probabilities():
    own = signal(loss="bce", tau=0.0, alpha=1.0)
    _, history, noted = run(eager(), steps=4, signals=[own], reward=small_digits, rate=3e-2)
    assert noted["self_reward"]["constant"] is None
    losses = history.to_frame()["loss_self_reward"]
    assert losses[0] == pytest.approx(math.log(32), abs=0.4)  # 32 tokens, and little known of them
    assert losses[3] < losses[0] - 0.5
    scores = own.scale.scores(torch.tensor([math.log(0.25)]))
    assert float(scores[0]) == pytest.approx(0.25)


def test_each_label_is_taught_after_the_answers_that_it_is_true_of():
    """The loss of a step by hand: -w log pi(z_c) after right rows, -w log pi(z_i) after wrong ones."""
    model, own, rollouts = decoder(), begun(signal(loss="bce", tau=0.0)), a_step()
    own.score(rollouts, 0, model)
    labels = {
        token: end_log_probs(model, rollouts.ids, rollouts.lengths, rollouts.finished, token)
        for token in (LABEL, SPARE)
    }
    true = torch.where(rollouts.rewards == 1, labels[LABEL], labels[SPARE])[rollouts.finished].double()
    expected = -(rollouts.rows["self_reward_weight"][rollouts.finished] * true).sum() / 7
    assert gradient(model, rollouts, [own])[1]["self_reward"] == pytest.approx(float(expected), rel=1e-5)
    assert float((labels[LABEL] - labels[SPARE])[rollouts.finished].abs().max()) > 0.01


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught():
    """Policies whose score was trained on what is so, and on what is not; the policy itself had nothing to gain."""
    found = {}
    for name, labels in (("true", None), ("permuted", permuted_labels(1))):
        own = SelfRewardSignal(SelfReward(tau=0.0, alpha=1.0, beta=0.4, correction=True), labels=labels)
        rollouts = SHORT.model_copy(update={"group_size": 8, "prompts_per_step": 8, "max_completion_length": 8})
        options = {"rollouts": rollouts, "reward": small_digits, "rate": 1e-2}
        model, history, noted = run(eager(), steps=60, signals=[Still(), own], **options)
        found[name] = laser.Fitted("laser", model, TOKENIZER, {}, noted, history.to_frame())
    return found


def test_the_score_learns_what_is_right_and_not_what_is_not(taught):
    data = laser.Questions(tasks(60, seed=9)[0], questions().rewards)
    rollouts, area = SHORT.model_copy(update={"max_completion_length": 8}), {}
    for name, fitted in taught.items():
        scale = laser.Scale.from_dict(fitted.results["self_reward"])
        found = judge_own(fitted, scale, data, rollouts, 8)
        area[name] = roc_auc_score(found.rewards[found.finished], found.columns["log_label"][found.finished])
    assert area["true"] > 0.65
    assert abs(area["permuted"] - 0.5) < 0.2
    assert area["true"] - area["permuted"] > 0.15


# -- several processes ------------------------------------------------------------------------------------------------


class Gathering:
    """What stands in for the exchange between processes: it notes what is told, and answers what was heard before."""

    def __init__(self, told, heard):
        self.told, self.heard = told, iter(heard)

    def __call__(self, value):
        self.told.append(value)
        return list(next(self.heard, (value,)))


def half(rollouts, first, last):
    """Some of a step's rows, as one of two processes has them."""
    own = {
        "group_size": rollouts.group_size,
        "log_probs": rollouts.log_probs[first:last],
        "texts": [""] * (last - first),
    }
    own |= {name: getattr(rollouts, name)[first:last] for name in ("ids", "starts", "lengths", "finished")}
    found = Rollouts(rollouts.prompts, version=0, index=np.arange(2), **own)
    found.rewards, found.advantages = rollouts.rewards[first:last], rollouts.advantages[first:last]
    found.ends = {LABEL: rollouts.ends[LABEL][first:last]}
    return found


def test_two_processes_find_what_one_does(monkeypatch):
    """What each tells the others may depend on what they told before: asked again, until all have heard all."""
    from sanov.systems.laser import signal as module

    own, model = begun(signal(tau=0.3, std_threshold=0.0)), decoder()
    whole = a_step()

    def asked(number, gather):
        found = half(whole, 4 * number, 4 * number + 4)
        monkeypatch.setattr(module, "every_process", gather)
        own.score(found, 0, model)
        own.advantages(found, 0)
        return found

    heard, parts = [], []
    for _ in range(4):
        told, parts = ([], []), []
        for number in range(2):
            parts.append(asked(number, Gathering(told[number], heard)))
        heard = list(zip(*told, strict=True))
    monkeypatch.undo()
    own.score(whole, 0, model)
    own.advantages(whole, 0)
    for name in ("self_reward_weight", "self_reward_right"):
        assert torch.equal(torch.cat([part.rows[name] for part in parts]), whole.rows[name])
    assert torch.equal(torch.cat([part.advantages for part in parts]), whole.advantages)
    assert parts[0].metrics == pytest.approx(whole.metrics)
    assert parts[1].metrics == pytest.approx(whole.metrics)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_rewards_have_to_be_zero_or_one():
    model = eager()
    before = vector(model)

    def graded(prompts, completions, **_):
        return [1.0] + [0.5] * (len(completions) - 1)

    with pytest.raises(InputError, match=r"the reward \(graded\) is 0\.5.*[Bb]inarise before self-reward training"):
        run(model, signals=[signal()], reward=graded)
    assert torch.equal(vector(model), before)


def test_groups_of_one_are_refused_with_tau_alone():
    single = SHORT.model_copy(update={"group_size": 1})
    options = {"rollouts": single, "grpo": policy.Grpo(scale_rewards="none"), "reward": small_digits}
    with pytest.raises(InputError, match="SWA needs at least 2 completions per prompt"):
        run(eager(), signals=[signal()], **options)
    run(eager(), steps=1, signals=[signal(tau=0.0)], **options)


def test_a_beta_that_cannot_work_is_refused_before_anything_is_trained(tmp_path):
    options = config(tmp_path / "start", self_reward=SelfReward(beta=0.25))
    with pytest.raises(InputError, match="a correct answer would need probability >= 1"):
        laser.fit(questions(), options)


def test_a_policy_of_another_kind_has_no_scores(tmp_path):
    plain = policies.Fitted("kdrl", eager(), TOKENIZER)
    with pytest.raises(InputError, match="not trained by laser, or c_ref missing: pass it or re-estimate"):
        laser.apply(questions(), laser.Config(rollouts=SHORT), fitted=plain)
