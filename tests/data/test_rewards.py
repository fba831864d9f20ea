"""Reward functions: called as TRL calls them, and everything that they may return or do wrong."""

import asyncio
import gc
import math

import numpy as np
import pytest

from sanov.core.errors import InputError, MissingExtra, SanovWarning
from sanov.data.prompt_rows import Prompts, concatenate
from sanov.data.rewards import BUILT_IN, Rewards, load
from sanov.data.tasks import TASKS

ROWS = Prompts(("1+2=", "2+2=", "3+2="), {"answer": [3, 4, 5], "level": ["a", "b", "c"]}, "mine.jsonl")
TEXTS = ["12", "3", ""]


def rewards(*functions, weights=None):
    return Rewards(functions, weights)


# -- the protocol -----------------------------------------------------------------------------------------------------


def test_a_function_gets_what_trl_passes():
    seen = {}

    def probe(prompts, completions, completion_ids, answer, level, trainer_state, log_extra, log_metric, **kwargs):
        seen.update(locals())
        return [len(text) for text in completions]

    def extra(*_):
        return None

    state, metric = object(), print
    scores = rewards(probe).score(
        ROWS, TEXTS, completion_ids=[[1, 2], [3], []], trainer_state=state, log_extra=extra, log_metric=metric
    )
    np.testing.assert_array_equal(scores, [[2.0], [1.0], [0.0]])
    assert seen["prompts"] == list(ROWS.prompts)
    assert seen["completions"] == TEXTS
    assert seen["completion_ids"] == [[1, 2], [3], []]
    assert (seen["answer"], seen["level"]) == ([3, 4, 5], ["a", "b", "c"])
    assert (seen["trainer_state"], seen["log_extra"], seen["log_metric"]) == (state, extra, metric)
    assert seen["kwargs"] == {}


def test_chats_arrive_as_messages():
    chat = Prompts(([{"role": "user", "content": "1+2="}],), {"answer": [3]})
    seen = []

    def probe(prompts, completions, **kwargs):
        seen.extend([prompts, completions])
        return [1.0]

    rewards(probe, load("exact")).score(chat, ["3:3"])
    assert seen == [[[{"role": "user", "content": "1+2="}]], [[{"role": "assistant", "content": "3:3"}]]]
    np.testing.assert_array_equal(rewards(load("exact")).score(chat, ["3:3"]), [[1.0]])


def test_a_function_gets_only_what_it_takes():
    def short(completions, level):
        return [float(name == "b") for name in level]

    np.testing.assert_array_equal(rewards(short).score(ROWS, TEXTS)[:, 0], [0, 1, 0])


def test_state_and_logs_are_there_without_a_trainer():
    def logging(completions, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("text", list(completions))
        log_metric("length", 1.0)
        return [trainer_state.global_step] * len(completions)

    np.testing.assert_array_equal(rewards(logging).score(ROWS, TEXTS, step=9), [[9.0]] * 3)


def test_a_table_stays_as_it_is_whatever_a_function_does_to_its_lists():
    def spoiling(prompts, completions, answer, **kwargs):
        prompts.clear()
        answer.clear()
        return [0.0] * 3

    digest = ROWS.digest()
    rewards(spoiling).score(ROWS, TEXTS)
    assert ROWS.digest() == digest


def test_asynchronous_functions_wait_for_one_another():
    """Each ends only when the other has begun: one after the other they would never."""
    begun = [asyncio.Event(), asyncio.Event()]

    def meeting(own):
        async def meet(completions, **kwargs):
            begun[own].set()
            await asyncio.wait_for(begun[1 - own].wait(), 20)
            return [float(own)] * len(completions)

        return meet

    scores = rewards(meeting(0), lambda completions, **_: [7] * len(completions), meeting(1)).score(ROWS, TEXTS)
    np.testing.assert_array_equal(scores, [[0, 7, 1]] * 3)


def test_a_running_loop_is_no_hindrance():
    async def half(completions, **kwargs):
        return [0.5] * len(completions)

    async def notebook():
        return rewards(half).score(ROWS, TEXTS)

    np.testing.assert_array_equal(asyncio.run(notebook()), [[0.5]] * 3)


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5, None], (True, 0.5, None), [np.float32(1), np.float64(0.5), None]],
)
def test_numbers_of_every_kind(returned):
    scores = rewards(lambda **_: returned).score(ROWS, TEXTS)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores[:, 0], [1.0, 0.5, math.nan])


def test_arrays_tensors_and_series():
    torch, pl = pytest.importorskip("torch"), pytest.importorskip("polars")
    for returned in (
        np.array([1, 0, 2]),
        torch.tensor([1.0, 0, 2]),
        pl.Series([1, 0, 2]),
        [torch.tensor(1), 0, np.array(2)],
    ):
        np.testing.assert_array_equal(rewards(lambda **_: returned).score(ROWS, TEXTS)[:, 0], [1, 0, 2])  # noqa: B023


# -- several ----------------------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_what_applies():
    found = rewards(len, max, weights=(2.0, -1.0)).total(
        np.array([[1.0, 3.0], [math.nan, 3.0], [1.0, math.nan], [math.nan] * 2])
    )
    np.testing.assert_array_equal(found, [-1.0, -3.0, 2.0, math.nan])
    np.testing.assert_array_equal(rewards(len, max).total(np.array([[1.0, 3.0]])), [4.0])


def test_names_tell_functions_apart():
    async def half(**_):
        return []

    assert rewards(half, load("exact"), half, lambda **_: []).names == ("half_1", "exact", "half_2", "<lambda>")


def test_no_function_applies_to_any_row():
    none = rewards(lambda **_: [None] * 3, lambda **_: [None] * 3)
    assert np.isnan(none.total(none.score(ROWS, TEXTS, step=7))).all()  # the training tells of steps
    with pytest.warns(SanovWarning, match=r"no reward function \(.*lambda.*\) applied to any of 3 completions"):
        none.score(ROWS, TEXTS)


# -- by name ----------------------------------------------------------------------------------------------------------


def test_built_in_rewards_have_their_names():
    assert set(BUILT_IN) == {"exact", "countdown", "number", "math", "reasoning_gym", "task"}
    assert all(load(name).__name__ == name for name in BUILT_IN)


def test_ones_own_function_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text(
        "def length(completions, **kwargs):\n    return list(map(len, completions))\n"
    )
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(rewards(load("my_own_rewards:length")).score(ROWS, TEXTS)[:, 0], [2, 1, 0])


def test_rows_of_several_tasks_go_to_their_own_verifiers():
    table = concatenate([task().rows(5, 0, "train") for task in TASKS.values()])
    found = rewards(load("task"))
    found.check(table)
    np.testing.assert_array_equal(found.score(table, table.columns["solution"])[:, 0], 1.0)
    np.testing.assert_array_equal(found.score(table, list(table.prompts))[:, 0], 0.0)
    turned = table.columns["solution"][5:] + table.columns["solution"][:5]
    assert found.score(table, turned).mean() < 0.5
    row = table.row(14)
    assert load("task").answer(row["solution"], row) == row["solution"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def broken(prompts, completions, **kwargs):
    return [1 / len(text) for text in completions]


async def late(prompts, completions, **kwargs):
    raise KeyError("level")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **_: [1.0, 2.0], "it returned 2 rewards; expected 3, one a completion"),
        (lambda **_: [], "it returned 0 rewards; expected 3"),
        (lambda **_: None, "it returned a NoneType; expected a list of 3 numbers"),
        (lambda **_: 1.0, "it returned a float"),
        (lambda **_: "abc", "it returned a str"),
        (lambda **_: {1: 1, 2: 2, 3: 3}, "it returned a dict"),
        (lambda **_: (n for n in (1, 2, 3)), "it returned a generator"),
        (
            lambda **_: [1.0, math.nan, 1.0],
            "row 2: the reward is nan; expected a finite number, or None where it does not apply",
        ),
        (lambda **_: [1.0, 1.0, -math.inf], "row 3: the reward is -inf"),
        (lambda **_: ["1.0", 1.0, 1.0], "row 1: the reward is '1.0'"),
        (lambda **_: [1.0, 2j, 1.0], "row 2: the reward is 2j"),
        (lambda **_: [1.0, [1.0], 1.0], r"row 2: the reward is \[1.0\]"),
        (lambda **_: [1.0, 10**400, 1.0], "row 2: the reward is 1000"),
        (lambda **_: np.array([1.0, math.nan, 0.0]), "row 2: the reward is nan"),
        (lambda **_: np.zeros((3, 2)), r"row 1: the reward is \[0.0, 0.0\]"),
    ],
)
def test_what_may_not_be_returned(function, message):
    with pytest.raises(InputError, match=f"reward function '<lambda>'.*{message}"):
        rewards(load("exact"), function).score(ROWS, TEXTS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, r"'broken': it raises ZeroDivisionError: division by zero \(test_rewards\.py, line \d+\)"),
        (late, r"'late': it raises KeyError: 'level' \(test_rewards\.py, line \d+\)"),
    ],
)
def test_a_function_that_raises_is_told_with_its_line(function, message):
    with pytest.raises(InputError, match=message) as told:
        rewards(function).score(ROWS, TEXTS)
    assert told.value.__cause__ is not None


def test_what_was_begun_is_ended_where_another_raises():
    """A coroutine that nobody awaits would warn, and warnings are errors here."""
    with pytest.raises(InputError, match="'broken'"):
        rewards(late, broken).score(ROWS, TEXTS)
    gc.collect()


def test_absent_columns_are_told_before_anything_is_sampled():
    def needs(prompts, completions, solution, **kwargs):
        return []

    message = r"reward function 'needs': it needs the column 'solution'; mine\.jsonl has: prompt, answer, level"
    with pytest.raises(InputError, match=message):
        rewards(needs).check(ROWS)
    for name, column in (("countdown", "numbers"), ("task", "task"), ("reasoning_gym", "source")):
        with pytest.raises(InputError, match=f"reward function '{name}': it needs the column '{column}'"):
            rewards(load(name)).check(ROWS)
    with pytest.raises(InputError, match=r"it needs the column 'prompt'.*Take `prompts`, which are passed"):
        rewards(lambda prompt, completions: []).check(ROWS)
    rewards(lambda completions, answer, *more, level, other=1, **rest: []).check(ROWS)
    games = Prompts(("1?",), {"task": ["countdown"], "answer": [3]}, "games")
    with pytest.raises(
        InputError, match="task 'countdown': it needs the column 'numbers'; games has: prompt, task, answer"
    ):
        rewards(load("task")).check(games)


def test_gold_answers_are_checked_with_the_columns():
    rewards(load("exact")).check(ROWS)
    with pytest.raises(InputError, match="mine, row 1: the gold answer ':three' fails its own verifier"):
        rewards(load("exact")).check(Prompts(("1+2=",), {"answer": ["three"]}, "mine"))
    with pytest.raises(InputError, match="no task 'translation'"):
        rewards(load("task")).check(Prompts(("1+2=",), {"task": ["translation"]}, "mine"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rewards(()), "there is no reward function"),
        (lambda: rewards(len, weights=(1.0, 2.0)), "there are 2 weights for 1 functions"),
        (lambda: rewards(len, weights=(math.nan,)), "expected finite numbers"),
        (
            lambda: load("accuracy"),
            "there is no reward 'accuracy'; expected exact, countdown, number, .* or module:function",
        ),
        (lambda: load("no_such_module:f"), "the module cannot be imported"),
        (lambda: rewards(len).score(ROWS, ["1"]), "there are 1 completions; expected 3, one a row"),
    ],
)
def test_rewards_that_are_none(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_missing_package_keeps_its_message():
    def needs(**_):
        raise MissingExtra("math_verify", "language")

    with pytest.raises(MissingExtra, match=r"pip install 'sanov\[language\]'"):
        rewards(needs).score(ROWS, TEXTS)


# -- TRL's own --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the packages that it imports
def test_the_reward_functions_of_trl_work_here():
    trl_rewards = pytest.importorskip("trl.rewards", exc_type=ImportError)
    pytest.importorskip("math_verify")
    chat = Prompts(
        tuple([{"role": "user", "content": f"{n}?"}] for n in range(3)),
        {"solution": [r"$\frac{1}{3}$", "$2$", ""]},
        "chat",
    )
    texts = [r"<think>\n</think>\n so \boxed{\frac{2}{6}}", r"\boxed{3}", r"\boxed{4}"]
    found = Rewards(
        (
            load("trl.rewards:accuracy_reward"),
            trl_rewards.think_format_reward,
            trl_rewards.get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=5),
            trl_rewards.get_cosine_scaled_reward(max_len=10),
        )
    )
    found.check(chat)
    extras = {}
    ids = [[1] * 5, [1] * 10, [1] * 20]
    scores = found.score(chat, texts, completion_ids=ids, log_extra=lambda name, values: extras.update({name: values}))
    assert found.names[:2] == ("accuracy_reward", "think_format_reward")
    np.testing.assert_array_equal(scores[:, 0], [1.0, 0.0, math.nan])  # no gold answer: it does not apply
    np.testing.assert_allclose(scores[:, 2], [0.0, -1.0, -1.0])
    assert math.isnan(scores[2, 3])
    assert extras["answer_parsed"][2] == "[skipped]"
    with pytest.raises(InputError, match="reward function 'accuracy_reward': it needs the column 'solution'"):
        found.check(ROWS)
