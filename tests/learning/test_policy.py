"""GRPO: the exact gradient by enumeration, what splitting must not change, what is skipped, resumed and refused."""

import math

import numpy as np
import pytest
import torch

from learning.policy_toy import (
    SMALL,
    TOKENIZER,
    Table,
    completions,
    decoder,
    few_letters,
    gradient,
    rollouts_of,
    run,
    tasks,
)
from learning.toy_run import vector
from sanov.advantages import group_advantages
from sanov.core.errors import InputError, SanovWarning
from sanov.data.rewards import Rewards
from sanov.learning import policy, policy_steps
from sanov.learning.imitation import imitate
from sanov.learning.policy import Grpo, Signal, advantages_of
from sanov.learning.rollouts import Rollout
from sanov.nets.reads import Read

# -- the gradient -----------------------------------------------------------------------------------------------------


def test_the_mean_gradient_over_all_completions_is_that_of_the_expected_reward():
    """Every completion of at most three tokens of three, weighted by its probability."""
    table, every = Table(seed=1), completions()
    reward = torch.linspace(-1, 2, len(every), dtype=torch.float64) ** 2
    log_probs = torch.stack([table.log_prob(text) for text in every])
    assert float(log_probs.detach().exp().sum()) == pytest.approx(1, abs=1e-12)
    (exact,) = torch.autograd.grad((log_probs.exp() * reward).sum(), table.logits)
    weights = (log_probs.exp() * reward).detach()
    sampled, values = gradient(table, rollouts_of(every, advantages=weights))
    tokens = sum(map(len, every))
    torch.testing.assert_close(-sampled * tokens, exact.flatten(), rtol=0, atol=1e-12)
    # the value of the loss is no measure of anything: it is minus the mean advantage of a token
    assert values["policy"] == pytest.approx(
        -sum(w * len(t) for w, t in zip(weights.tolist(), every, strict=True)) / tokens
    )


@pytest.mark.parametrize("normalise", ["tokens", "sequence"])
@pytest.mark.parametrize("budget", [8, 17, 10**6])
def test_splitting_padding_and_order_change_nothing(budget, normalise):
    model = decoder(layers=2).double()
    rng = np.random.default_rng(0)
    texts = [[*rng.integers(0, 20, rng.integers(0, 6)), TOKENIZER.eos] for _ in range(8)]
    heads = [tuple(rng.integers(0, 20, rng.integers(1, 4)).tolist()) for _ in texts]
    grpo = Grpo(normalise=normalise)
    weights = rng.standard_normal(8)
    whole, _ = gradient(model, rollouts_of(texts, prompt=heads, eos=TOKENIZER.eos, advantages=weights), grpo=grpo)
    order = rng.permutation(8)
    other = rollouts_of(
        [texts[i] for i in order], prompt=[heads[i] for i in order], eos=TOKENIZER.eos, advantages=weights[order], pad=7
    )
    other.ids = torch.nn.functional.pad(other.ids, (0, 5), value=9)
    other.log_probs = torch.nn.functional.pad(other.log_probs, (0, 5))
    split, _ = gradient(model, other, grpo=grpo, budget=budget)
    assert float((whole - split).norm() / whole.norm()) < 1e-12


def test_rows_without_an_advantage_are_left_out_and_still_counted():
    model = decoder().double()
    texts = [[1, 2, 3], [4, TOKENIZER.eos], [5, 6, 7, 8], [9, TOKENIZER.eos]]
    rollouts = rollouts_of(texts, eos=TOKENIZER.eos, advantages=[1.0, 0.0, -1.0, 0.0])
    (part,) = policy.packed(rollouts, (), Grpo(), 1000, 0)
    assert len(part["ids"]) == 2
    assert part["counts"] == {"policy": 11.0}
    found, _ = gradient(model, rollouts)
    model.zero_grad()
    batch = policy_steps._batch(
        rollouts, torch.arange(4), policy_steps._token_weights(rollouts, Grpo()), rollouts.advantages[:, None], 0
    )
    (policy.sums(model, batch, (), Grpo())["policy"][0] / 11).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in model.parameters()]), rtol=1e-12, atol=1e-14)


def test_truncated_rows_can_be_left_out():
    texts = [[1, 2, 3], [4, TOKENIZER.eos]]
    rollouts = rollouts_of(texts, eos=TOKENIZER.eos, advantages=[1.0, 1.0])
    (part,) = policy.packed(rollouts, (), Grpo(mask_truncated=True), 1000, 0)
    assert part["counts"] == {"policy": 2.0}
    assert part["ids"].tolist() == [[0, 4, TOKENIZER.eos]]


def test_clipping_and_the_dual_clip_by_hand():
    """Ratios 2 and 0.5 with advantages of both signs, clip 0.2 and dual clip 1.5."""
    table = Table()
    every = [(0,), (1,), (0,), (1,)]
    now = [float(table.log_prob(text).detach()) for text in every]
    ratios = zip(now, (2, 2, 0.5, 0.5), strict=True)
    old = torch.tensor([[0.0, value - math.log(ratio)] for value, ratio in ratios], dtype=torch.float64)
    rollouts = rollouts_of(every, advantages=[1.0, -1.0, 1.0, -1.0], log_probs=old)
    _, values = gradient(table, rollouts, grpo=Grpo(iterations=2))
    assert values["policy"] == pytest.approx(-(1.2 - 2 + 0.5 - 0.8) / 4)
    _, values = gradient(table, rollouts, grpo=Grpo(iterations=2, dual_clip=1.5, clip_high=0.5))
    assert values["policy"] == pytest.approx(-(1.5 - 1.5 + 0.5 - 0.8) / 4)


def test_the_ratio_is_one_at_the_first_update():
    """Log-probabilities of sampling and of training agree, and the first of several updates has the gradient of one."""
    model = decoder(layers=2)
    feed = policy._Feed(
        tasks()[0], TOKENIZER, Rewards((few_letters,)), 48, (), SMALL, Grpo(iterations=2), 1000, policy.local_sampler, 0
    )
    rollouts = feed.rollouts(0, model)
    rollouts.advantages = torch.randn(16, generator=torch.Generator().manual_seed(0))
    batch = policy.packed(rollouts, (), Grpo(), 1000, 0)[0]
    new = Read(batch["before"], batch["ids"][batch["completion"]])
    found = model(batch["ids"], batch["real"], {"new": new})["new"]
    torch.testing.assert_close(batch["log_old"][batch["completion"]], found, rtol=0, atol=1e-5)
    once, _ = gradient(model, rollouts)
    several, _ = gradient(model, rollouts, grpo=Grpo(iterations=2))
    torch.testing.assert_close(once, several, rtol=1e-4, atol=1e-6)


# -- advantages -------------------------------------------------------------------------------------------------------


def test_rows_without_a_reward_have_no_advantage_and_do_not_count():
    nan = math.nan
    rewards = torch.tensor([1.0, 0.0, nan, 0.0, nan, nan, 1.0, nan], dtype=torch.float64)
    found = advantages_of(rewards, 4, Grpo())
    alone = group_advantages(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), 3, "group", 1e-6)
    torch.testing.assert_close(found[[0, 1, 3]], alone)
    assert found[[2, 4, 5, 6, 7]].tolist() == [0.0] * 5


def test_the_scale_of_the_batch_is_one_for_all_groups():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = advantages_of(rewards, 2, Grpo(scale_rewards="batch"))
    np.testing.assert_allclose(found, [0.5, -0.5, 0, 0, 0, 0] / (np.std(rewards.numpy(), ddof=1) + 1e-6), rtol=1e-12)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_reward_that_can_be_had_is_learned():
    _, history, _ = run(steps=30, rate=1e-2)
    reward = np.array([report["reward"] for report in history.reports.values()])
    assert reward[-5:].mean() > reward[:5].mean() + 0.2


def test_permuted_rewards_are_not_learned():
    """The control of the loop: rewards that do not belong to their rows."""
    rng = np.random.default_rng(0)

    def elsewhere(prompts, completions, **columns):
        return rng.permutation(few_letters(prompts, completions)).tolist()

    gains = []
    for seed in range(5):
        _, history, _ = run(decoder(seed), steps=30, rate=1e-2, reward=elsewhere, seed=seed)
        reward = np.array([report["reward"] for report in history.reports.values()])
        gains.append(reward[-10:].mean() - reward[:10].mean())
    gains = np.array(gains)
    assert gains.mean() - 2.776 * gains.std(ddof=1) / math.sqrt(5) <= 0


def test_a_step_without_anything_to_learn_is_skipped_and_counted():
    before = vector(decoder())
    model, history, _ = run(reward=lambda prompts, completions: [1.0] * len(prompts), training={"weight_decay": 0.1})
    assert torch.equal(vector(model), before)
    assert [report["step_skipped"] for report in history.reports.values()] == [1.0] * 3
    assert [report["frac_reward_zero_std"] for report in history.reports.values()] == [1.0] * 3


def nothing(prompts, completions):
    return [None] * len(prompts)


def test_a_step_without_a_reward_is_refused_where_it_takes_one():
    before = vector(model := decoder())
    with pytest.raises(InputError, match=r"step 1: none of 16 completions has a reward.*\(nothing\) returned None"):
        run(model, reward=nothing)
    assert torch.equal(vector(model), before)


def test_completions_without_a_reward_are_counted_and_told_once():
    def some(prompts, completions):
        return [None, 1.0, 0.0, 1.0] * (len(prompts) // 4)

    with pytest.warns(SanovWarning, match=r"step 1: 4 of 16 completions have no reward \(some\b") as caught:
        _, history, _ = run(reward=some)
    assert sum("no reward" in str(each.message) for each in caught) == 1
    assert [report["completions/unrewarded"] for report in history.reports.values()] == [4.0] * 3


def test_where_no_reward_is_needed_none_is_refused():
    before = vector(decoder())
    with pytest.warns(SanovWarning, match="16 of 16 completions have no reward"):
        model, history, _ = run(steps=1, reward=nothing, rewarded=False)
    assert torch.equal(vector(model), before)
    assert math.isnan(history.reports[1]["reward"])


def test_the_numbers_of_a_step_are_those_of_its_completions():
    seen = []

    class Look(Signal):
        def score(self, rollouts, step, model):
            seen.append(rollouts)

    _, history, _ = run(steps=1, signals=[Look()])
    (rollouts,) = seen
    found = history.reports[1]
    lengths = rollouts.completion_lengths.numpy()
    assert found["completions/mean_length"] == lengths.mean()
    assert found["completions/max_length"] == lengths.max()
    assert found["reward"] == float(rollouts.rewards.mean())
    assert found["completions/clipped_ratio"] == 1 - rollouts.finished.double().mean()
    groups = rollouts.rewards.view(-1, 4)
    assert found["reward_std"] == pytest.approx(float(groups.std(dim=1).mean()))
    assert found["frac_reward_zero_std"] == float((groups.std(dim=1) == 0).double().mean())
    assert found["entropy"] == pytest.approx(-float(rollouts.log_probs.sum()) / lengths.sum(), rel=1e-6)
    assert history.to_frame()["reward"].to_list() == [found["reward"]]


def test_a_stopped_run_that_is_resumed_is_the_run_that_was_not(tmp_path):
    class Stopped(Exception):
        pass

    def stop(updates, metrics):
        if updates == 5:
            raise Stopped

    for iterations in (1, 2):
        out, grpo = tmp_path / str(iterations), Grpo(iterations=iterations)
        training = {"checkpoint_every": 3}
        whole, whole_history, _ = run(steps=8, grpo=grpo, training=training)
        with pytest.raises(Stopped):
            run(steps=8, grpo=grpo, training=training, out=out, callbacks=[stop])
        again, again_history, _ = run(steps=8, grpo=grpo, training=training, out=out, resume=True)
        assert torch.equal(vector(whole), vector(again))
        assert whole_history.to_dict() == again_history.to_dict()


def test_two_runs_of_one_seed_are_one():
    first, second, other = run(seed=3)[0], run(seed=3)[0], run(seed=4)[0]
    assert torch.equal(vector(first), vector(second))
    assert not torch.equal(vector(first), vector(other))


def test_every_prompt_is_sampled_once_an_epoch():
    seen = []

    class Look(Signal):
        def score(self, rollouts, step, model):
            seen.extend(rollouts.prompts.prompts)

    run(steps=6, signals=[Look()])
    assert sorted(seen) == sorted(tasks()[0].prompts)


# -- imitation --------------------------------------------------------------------------------------------------------


def test_imitation_is_maximum_likelihood_of_completions_and_their_end():
    prompts, _ = tasks(8)
    model = decoder().double()
    rows = list(zip(prompts.prompts, prompts.columns["solution"], strict=True))
    total, count = 0.0, 0
    for prompt, text in rows:
        ids = torch.tensor([[TOKENIZER.bos, *TOKENIZER.encode(prompt), *TOKENIZER.encode(text), TOKENIZER.eos]])
        start = 1 + len(prompt)
        logits = model(ids, torch.ones_like(ids, dtype=torch.bool), {"all": Read(torch.ones_like(ids) > 0)})["all"]
        loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="sum")
        total += float(loss.detach())
        count += ids.shape[1] - start
    history = imitate(prompts, model, TOKENIZER, steps=1, batch_size=8, micro_batch_tokens=40)
    assert history.losses["nll"] == [pytest.approx(total / count, rel=1e-9)]
    history = imitate(prompts, model, TOKENIZER, steps=60, batch_size=8, learning_rate=1e-2)
    assert history.losses["nll"][-1] < 0.5 * total / count


def test_imitation_needs_its_column_and_room():
    prompts, _ = tasks(4)
    with pytest.raises(InputError, match=r"there is no column 'gold'.*answer, solution, task"):
        imitate(prompts, decoder(), TOKENIZER, column="gold", steps=1)
    with pytest.raises(InputError, match=r"row 1: prompt and completion have \d+ tokens, and the context 6"):
        imitate(prompts, decoder(context=6), TOKENIZER, steps=1)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_groups_of_one_have_no_standard_deviation():
    with pytest.raises(InputError, match=r">= 2 for group advantages \(got 1\).*scale_rewards=none"):
        run(rollouts=Rollout(group_size=1, max_completion_length=4))
    run(steps=1, rollouts=Rollout(group_size=1, max_completion_length=4), grpo=Grpo(scale_rewards="none"))


def test_the_context_holds_prompt_and_completion():
    with pytest.raises(
        InputError, match=r"the longest prompt has 6 tokens and a completion up to 44.*the context's 48"
    ):
        run(rollouts=Rollout(max_completion_length=44))
    with pytest.raises(InputError, match=r"row 1: the prompt has 6 tokens, and the context 5"):
        run(decoder(context=5))


def test_micro_batches_hold_the_longest_row():
    with pytest.raises(InputError, match=r"it is 10, and a row may have 12 tokens"):
        run(training={"micro_batch_tokens": 10})


def test_eos_cannot_be_suppressed():
    with pytest.raises(InputError, match="Cannot suppress EOS: rollouts would never end"):
        run(rollouts=SMALL.model_copy(update={"suppress": (TOKENIZER.eos,)}))


def test_completions_that_are_all_cut_are_told_once():
    never = SMALL.model_copy(update={"max_completion_length": 1})
    model = decoder()
    cut = r"step \d: every completion was cut at 1 tokens \(completions/clipped_ratio = 1\)"
    with pytest.warns(SanovWarning, match=cut) as told:
        _, history, _ = run(model, steps=8, rollouts=never, cut_is_told=True, rate=1e-5)
    assert len(told) == 1
    assert [report["completions/clipped_ratio"] for report in history.reports.values()].count(1.0) > 1


def test_completions_of_an_older_policy_are_refused():
    def stale(model, prompts, uniforms, *, version, **options):
        return policy.local_sampler(model, prompts, uniforms, version=max(version - 1, 0), **options)

    with pytest.raises(InputError, match=r"the completions are of version 0.*expected 1"):
        run(steps=2, sampler=stale)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompts, completions: [0.0], r"returned 1 rewards.*16, one a completion"),
        (lambda prompts, completions: [math.nan] * 16, r"row 1: the reward is nan"),
        (lambda prompts, completions: 1 / 0, r"raises ZeroDivisionError"),
        (lambda prompts, completions, level: [0.0] * 16, r"raises TypeError|needs the column 'level'"),
    ],
)
def test_rewards_that_are_none_are_refused(reward, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(steps=1, reward=reward)
