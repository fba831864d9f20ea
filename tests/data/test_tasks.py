"""Generated tasks: their answers by Python's own arithmetic, their purity, and splits that share no prompt."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sanov.core.errors import InputError
from sanov.data import tasks
from sanov.data.arithmetic_tasks import ChainSum, Countdown, Modular
from sanov.data.prompt_rows import SPLITS, split_of
from sanov.data.verifiers import Exact

PAPER = ChainSum(terms=(2, 4), largest=9)
EVERY = [ChainSum(), PAPER, Modular(), Countdown()]


def every(task, count=300, seed=0, split="train"):
    table = task.rows(count, seed, split)
    return [table.row(index) for index in range(len(table))]


@pytest.mark.parametrize("task", [ChainSum(), PAPER])
def test_chain_sums_are_right_and_of_the_sizes_asked_for(task):
    terms, operands = set(), set()
    for row in every(task):
        letter, body, equals = row["prompt"][0], row["prompt"][1:-1], row["prompt"][-1]
        assert (letter, equals) == ("a", "=")
        parts = body.replace("-", "+-").split("+")
        numbers = [int(part) for part in parts]
        assert row["answer"] == sum(numbers)
        running = np.cumsum(numbers)[1:]
        assert row["solution"] == ",".join(map(str, running)) + f":{sum(numbers)}"
        terms.add(len(numbers))
        operands |= {abs(number) for number in numbers}
    assert terms == set(range(task.terms[0], task.terms[1] + 1))
    assert operands == set(range(task.largest + 1))


def test_remainders_are_right():
    task, moduli = Modular(modulus=(3, 7), largest=5), set()
    for row in every(task):
        assert row["prompt"][0] == "b"
        product = eval(row["prompt"][2:].partition("+")[0])
        total = eval(row["prompt"][1:].partition("%")[0])
        value = eval(row["prompt"][1:-1])
        assert row["answer"] == value
        assert row["solution"] == f"{product},{total}:{value}"
        moduli.add(int(row["prompt"][:-1].partition("%")[2]))
    assert moduli == {3, 4, 5, 6, 7}


def test_hidden_expressions_have_their_value_and_their_numbers():
    task, signs = Countdown(numbers=(3, 4), largest=9, target=(-5, 30)), set()
    for row in every(task):
        numbers, _, target = row["prompt"][1:-1].partition("?")
        assert row["numbers"] == [int(number) for number in numbers.split(",")]
        assert int(target) == row["answer"] == round(eval(row["solution"]), 9)
        assert sorted(row["numbers"]) == sorted(
            map(int, "".join(" " if c in "+-*/()" else c for c in row["solution"]).split())
        )
        assert -5 <= row["answer"] <= 30
        assert len(row["numbers"]) in (3, 4)
        signs |= set(row["solution"]) - set("0123456789")
    assert signs == set("+-*/()")
    assert any("-(" in row["solution"] for row in every(task))


@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_a_row_is_a_function_of_task_seed_and_index(task):
    assert task.rows(60, 3, "train").digest() == task.rows(60, 3, "train").digest()
    assert task.rows(200, 3, "train").take(range(60)).digest() == task.rows(60, 3, "train").digest()
    assert task.rows(60, 4, "train").digest() != task.rows(60, 3, "train").digest()


def test_other_sizes_are_other_rows_and_other_processes_the_same():
    assert ChainSum(largest=20).rows(50, 0, "train").digest() != ChainSum(largest=19).rows(50, 0, "train").digest()
    script = "from sanov.data.tasks import named; print(named('countdown').rows(40, 1, 'test').digest())"
    here = Countdown().rows(40, 1, "test").digest()
    for hashing in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == here


@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_no_prompt_is_in_two_splits(task):
    found = {split: set(task.rows(150, seed, split).prompts) for seed, split in enumerate(SPLITS)}
    assert found["train"].isdisjoint(found["validation"] | found["test"])
    assert found["validation"].isdisjoint(found["test"])
    assert len(found["validation"]) == len(found["test"]) == 150  # each counts once
    assert {split_of(prompt) for prompt in found["test"]} == {"test"}


def test_splits_have_their_shares():
    rng = np.random.default_rng(0)
    drawn = [split_of(f"a{number}=") for number in rng.integers(0, 10**9, 20_000)]
    for split, share in (("test", 0.1), ("validation", 0.1), ("train", 0.8)):
        assert abs(drawn.count(split) / 20_000 - share) < 4 * np.sqrt(share * (1 - share) / 20_000)
    chat = [{"role": "user", "content": "a1+2="}]
    assert split_of(chat) == split_of([dict(message) for message in chat])


def test_short_prompts_come_again_in_training():
    prompts = ChainSum(terms=(2, 2), largest=3).rows(200, 0, "train").prompts
    assert len(set(prompts)) < 200


def test_every_gold_answer_is_checked(monkeypatch):
    monkeypatch.setattr(ChainSum, "verifier", Picky())
    with pytest.raises(
        InputError, match=r"chain_sum, row \d+: the gold answer '.*:7' fails .* reads '7'; expected answer=7"
    ):
        ChainSum().rows(200, 0, "train")


class Picky(Exact):
    """Takes seven for wrong."""

    def is_right(self, completion, row):
        return super().is_right(completion, row) and row["answer"] != 7


def test_a_task_says_what_is_right():
    task = ChainSum()
    row = every(task, 1)[0]
    assert task.verify(row["solution"], row) == 1.0
    assert task.verify(row["solution"] + "0", row) == 0.0


# -- names and mistakes -----------------------------------------------------------------------------------------------


def test_tasks_have_names_and_sizes():
    assert tasks.named("chain_sum", terms=[2, 4], largest=9) == PAPER
    assert tasks.named("modular") == Modular()
    assert tasks.is_known("countdown")
    assert not tasks.is_known("count")
    assert not tasks.is_known(None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.named("chain"), "no task 'chain'; expected chain_sum or modular or countdown"),
        (
            lambda: tasks.named("chain_sum", term=3),
            "chain_sum: the sizes are term=3; expected numbers or pairs of them for terms, largest",
        ),
        (lambda: tasks.named("chain_sum", terms=3), "chain_sum: the sizes are terms=3"),
        (lambda: tasks.verifier_of("chain"), "no task 'chain'"),
        (lambda: ChainSum(terms=(4, 2)), r"chain_sum, terms: the range is \(4, 2\); expected"),
        (lambda: ChainSum(terms=(1, 2)), "from 2 to 50"),
        (lambda: ChainSum(largest=-1), "chain_sum, largest"),
        (lambda: Modular(modulus=(0, 3)), "modular, modulus"),
        (lambda: Countdown(numbers=(1, 3)), "countdown, numbers"),
        (lambda: Countdown(largest=0), "countdown, largest"),
        (lambda: PAPER.rows(5, 0, "dev"), "the split is 'dev'; expected train or validation or test"),
        (lambda: PAPER.rows(0, 0, "test"), "0 rows are asked for"),
        (lambda: tasks.resolve("embedded:chains"), "no task 'chains'"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_more_rows_than_there_are():
    task = ChainSum(terms=(2, 2), largest=2)  # 18 prompts
    there = {f"a{x}{sign}{y}=" for x in range(3) for y in range(3) for sign in "+-"}
    tests = {prompt for prompt in there if split_of(prompt) == "test"}
    assert tests
    assert set(task.rows(len(tests), 0, "test").prompts) == tests
    with pytest.raises(
        InputError, match=rf"only {len(tests)} test rows were found in \d+ draws; expected {len(tests) + 1}"
    ):
        task.rows(len(tests) + 1, 0, "test")


def test_names_stand_for_prompts():
    train, new = tasks.resolve("embedded:modular"), tasks.resolve("embedded:modular-new")
    assert (len(train), len(new)) == (2000, 500)
    assert set(train.prompts).isdisjoint(new.prompts)
    assert set(train.columns) == {"answer", "solution", "task"}
    assert tasks.resolve("modular.jsonl") == "modular.jsonl"
