"""Tasks of reasoning-gym, where it is installed: its answers pass, ours agree, and nothing partial is right."""

import sys

import numpy as np
import pytest

from sanov.core.errors import InputError, MissingExtra
from sanov.data import gym, prompts
from sanov.data.rewards import Rewards, load
from sanov.data.tasks import GymTask, named
from sanov.data.verifiers import Countdown


@pytest.fixture
def installed():
    pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "knights_knaves", "spell_backward"])
def test_its_own_answers_pass_and_no_other(installed, name):
    table = named(f"reasoning_gym:{name}").rows(6, 0, "train")
    assert table.name == f"reasoning_gym:{name}"
    answers = table.columns["answer"]
    tagged = [f"<think>{text}</think> <answer> {text} </answer>" for text in answers]
    wrong = [text[: len(text) // 2] if name == "knights_knaves" else f"{text}0" for text in answers]
    found = Rewards((load("task"), load("reasoning_gym")))
    found.check(table)
    last = [f"<answer>{right}</answer> <answer>{other}</answer>" for right, other in zip(answers, wrong, strict=True)]
    for texts, reward in ((answers, 1), (tagged, 1), (wrong, 0), (last, 0), (list(table.prompts), 0), ([""] * 6, 0)):
        np.testing.assert_array_equal(found.score(table, texts), reward)


def test_rows_are_a_function_of_seed_and_index(installed):
    task = named("reasoning_gym:chain_sum", min_terms=2, max_terms=3)
    table = task.rows(50, 1, "train")
    assert table.digest() == task.rows(50, 1, "train").digest()
    assert table.take(range(20)).digest() == task.rows(20, 1, "train").digest()
    assert table.digest() != task.rows(50, 2, "train").digest()
    assert set(table.prompts).isdisjoint(task.rows(50, 1, "test").prompts)
    assert table.columns["source"][0]["options"] == {"min_terms": 2, "max_terms": 3}
    sizes = [len(text.split(":")[1].replace("-", "+").split("+")) for text in table.prompts]
    assert set(sizes) <= {2, 3, 4}  # a leading minus counts for one more


def test_rows_are_those_of_its_own_data_sets(installed):
    import reasoning_gym

    entries = list(named("reasoning_gym:gcd").drawn(3, gym.BLOCK + 5))
    assert len(entries) == gym.BLOCK + 5
    for entry in (entries[0], entries[gym.BLOCK], entries[-1]):
        source = entry["source"]
        theirs = reasoning_gym.create_dataset("gcd", seed=source["seed"], size=gym.BLOCK)[source["index"]]
        assert (theirs["question"], theirs["answer"]) == (entry["prompt"], entry["answer"])
    assert len({entry["prompt"] for entry in entries}) > gym.BLOCK  # no block is another again


def test_countdown_agrees_with_ours(installed):
    """Both checks see expressions of all numbers, right ones and wrong ones."""
    import reasoning_gym

    data = reasoning_gym.create_dataset("countdown", seed=5, size=60, min_numbers=3, max_numbers=4, max_target=200)
    ours, rights = Countdown(), 0
    for index in range(60):
        entry = data[index]
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
        texts = [
            entry["answer"],
            "+".join(map(str, numbers)),
            "*".join(map(str, numbers)),
            str(target),
            f"{entry['answer']}+1",
        ]
        for text in texts:
            mine = ours.is_right(text, {"numbers": numbers, "answer": target})
            assert mine == (data.score_answer(text, entry) == 1.0), text
            rights += mine
    assert rights >= 60


def test_partial_credit_is_none(installed):
    row = named("reasoning_gym:gcd").rows(1, 0, "train").row(0)
    assert gym.answer_process().ask("gym", **row["source"], size=gym.BLOCK, answer=f"{row['answer']} or so") not in (
        0,
        1,
    )
    assert not gym.GymVerifier().is_right(f"{row['answer']} or so", row)


def test_a_name_stands_for_prompts(installed):
    table = prompts.read("reasoning_gym:gcd-new")
    assert len(set(table.prompts)) == len(table) == 500
    assert prompts.usual_rewards(table) == ["task"]


def test_data_sets_without_one_answer_can_be_asked_all_the_same(installed):
    table = named("reasoning_gym:rush_hour").rows(2, 0, "train")
    assert table.columns["answer"] == [None, None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named("reasoning_gym:countdwn"), "no data set 'countdwn'. Did you mean 'countdown'"),
        (lambda: named("reasoning_gym:countdown", numbers=3), "reasoning_gym:countdown: cannot be configured so"),
        (lambda: named("reasoning_gym:countdown", min_numbers=9, max_numbers=3), "cannot be configured so"),
    ],
)
def test_mistakes_are_told(installed, make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sanov\[reasoning\]'"):
        named("reasoning_gym:countdown")
    with pytest.raises(MissingExtra, match="reasoning"):
        prompts.read("reasoning_gym:countdown-new")
    assert GymTask.verifier.answer("<answer> 3 </answer> or <answer>4</answer>", {}) == "4"
    assert GymTask.verifier.answer(" 5 ", {}) == "5"
    assert GymTask.verifier.answer(" ", {}) is None
