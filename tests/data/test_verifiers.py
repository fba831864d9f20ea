"""Verifiers: what is right, every way of being wrong, and expressions against Python's own parser."""

import ast
import itertools
import json
import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanov.core.errors import InputError, SanovWarning
from sanov.data import arithmetic, prompts
from sanov.data.prompt_rows import Prompts
from sanov.data.verifiers import Countdown, Exact, Number, plain_number, text_of

SUM = {"prompt": "a12+7-3=", "answer": 16}
GAME = {"prompt": "c3,7,2?23=", "numbers": [3, 7, 2], "answer": 23}
WORDS = {"prompt": "How many in all?", "answer": "1080"}


@pytest.mark.parametrize(
    ("verifier", "row", "right"),
    [
        (Exact(), SUM, ["19,16:16", ":16", "19,17:17:16", "anything:16", ":016"]),
        (Countdown(), GAME, ["3*7+2", "2+7*3", "(3*7)+2", " 3 * 7 + 2 ", "((3))*7+2", "9+9:3*7+2", "2+(3*7)"]),
        (
            Number(),
            WORDS,
            [
                "#### 1080",
                "so\n#### 1,080",
                "####1080",
                "#### $1,080",
                "#### 1080.0",
                "#### 1080.",
                "#### 3\n#### 1080\n",
            ],
        ),
    ],
)
def test_what_is_right(verifier, row, right):
    for completion in right:
        assert verifier.is_right(completion, row), completion


WRONG_SUMS = {
    "nothing": ["", ":", "19,16:", ":\n"],
    "another": [":17", ":15", ":160", ":116", ":-16", ":" + "9" * 10_000],
    "the prompt": ["a12+7-3=", "a12+7-3=16"],
    "not the last": ["16:17", "19,16:16:17", ":16:", ":16 "],
    "written otherwise": ["16", ": 16", ":1 6", ":16.0", ":+16", ":16a", ":1６", ":0x10", ":16\n", "16;16"],
}
WRONG_GAMES = {
    "nothing": ["", "3*7+2:", "()", "3*7+", "*3*7+2"],
    "another": ["3*7-2", "3*7+3", "3*(7+2)"],
    "other numbers": ["23", "37+2", "3*7+2+0*9", "21+2", "7+7+7+2", "2*7+7+2", "(3*7+2)*(3-2)", "3*7+2+2-2"],
    "the prompt": ["c3,7,2?23=", "3,7,2", "3*7+2=23", "3*7+2=", "3*7+2,"],
    "not the last": ["3*7+2:3*7", "3*7+2:3"],
    "no such arithmetic": ["-3*-7+2", "3*7--2", "+3*7+2", "3**7+2", "3//7+2", "3*7+2.0", "3(7)+2", "3 7 2", "３*7+2"],
    "open": ["3*(7+2", "3*7)+2", "()3*7+2", "(3*7+2", ")3*7+2("],
    "code": ["3*7+2#", "__import__('os')", "int(23)", "3*7+2 if 1 else 0", "3*7\n+2", "3*7+2;"],
}
WRONG_NUMBERS = {
    "nothing": ["", "####", "#### ", "#### none"],
    "another": ["#### 1081", "#### 10800", "#### 108", "#### -1080", "#### 11080", "#### 1080.5"],
    "the prompt": ["How many in all?", "1080"],
    "not the last": ["#### 1080 #### 3", "#### 1080\n#### 3", "#### 1080\n1", "#### 1080 and 3"],
    "written otherwise": [
        "#### 10,80",
        "#### 1080..",
        "#### 1.080",
        "#### 1e3",
        "#### １０８０",
        "### 1080",
        "#### 1080 eggs",
    ],
}


@pytest.mark.parametrize("why", {**WRONG_SUMS, **WRONG_GAMES, **WRONG_NUMBERS})
def test_what_is_wrong(why):
    for verifier, row, wrong in (
        (Exact(), SUM, WRONG_SUMS),
        (Countdown(), GAME, WRONG_GAMES),
        (Number(), WORDS, WRONG_NUMBERS),
    ):
        for completion in wrong.get(why, ()):
            assert not verifier.is_right(completion, row), completion


def test_every_right_expression_is_right_and_no_other():
    """All expressions of three numbers in both shapes, against Python's fractions."""
    texts = [
        text
        for a, b, c in itertools.permutations((2, 3, 8))
        for x, y in itertools.product("+-*/", repeat=2)
        for text in (f"({a}{x}{b}){y}{c}", f"{a}{x}({b}{y}{c})", f"{a}{x}{b}{y}{c}")
    ]
    values = {text: value_by_python(text) for text in texts}
    for target in (Fraction(16, 3), Fraction(4, 3), 14, -3):
        right = {text for text in texts if Countdown().is_right(text, {"numbers": [8, 3, 2], "answer": target})}
        assert right == {text for text in texts if values[text] == target} != set()


def test_division_by_zero_is_wrong():
    row = {"numbers": [3, 5, 5], "answer": 0}
    assert not Countdown().is_right("3/(5-5)", row)
    assert Countdown().is_right("3*(5-5)", row)


def value_by_python(text):
    """The value by Python's parser and fractions; None for what divides by zero or is no such expression."""
    try:
        tree = ast.parse(text.strip(" "), mode="eval")
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        allowed = (ast.Expression, ast.BinOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div)
        if not isinstance(node, allowed) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            return None
    try:
        return eval(re.sub(r"(\d+)", r"Fraction(\1)", text.strip(" ")), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


@given(st.text(alphabet="12+-*/() ", max_size=14))
@example("1//2")
@example("1**2")
@example("(1)(2)")
@example("1 2")
@example("-1")
@example("2-1-1")
@example("2/2/2")
@example("1-(2-1)*2/(1+1)")
def test_expressions_are_what_python_takes_them_for(text):
    postfix = arithmetic.parse(text)
    found = None if postfix is None else arithmetic.evaluate(postfix)
    assert found == value_by_python(text)


def test_bombs_end_soon():
    start = time.perf_counter()
    bombs = ["9**9**9**9", "9^9^9", "(" * 200_000, "(" * 250 + "3" + ")" * 250, "9" * 10**6, "1/" * 10**5 + "1"]
    bombs += ["*".join(["999999999999"] * 40), ":" * 10**6, "3*7+2" + " " * 10**6, "-" * 10**6]
    for bomb in bombs:
        for verifier, row in ((Exact(), SUM), (Countdown(), GAME), (Number(), WORDS)):
            assert not verifier.is_right(bomb, row)
            assert not verifier.is_right(":" + bomb, row)
            assert not verifier.is_right("####" + bomb, row)
    assert time.perf_counter() - start < 5  # it takes a tenth of a second


def test_answers_have_one_form():
    assert Exact().answer("1:007", SUM) == Exact().answer(":7", SUM) == "7"
    assert Exact().answer(":-0", SUM) == "0"
    assert Countdown().answer("x: 3 *7+ 2", GAME) == "3*7+2"
    assert Countdown().answer("seven", GAME) is None
    assert Exact().same("7", "7")
    assert not Exact().same("7", "8")


NUMBERS = {
    "72": "72",
    "1,234,567": "1234567",
    "$5": "5",
    "-3": "-3",
    "0.50": "0.5",
    "7.00": "7",
    "-0": "0",
    " 4. ": "4",
}
NO_NUMBERS = dict.fromkeys(["1,23", "12,34", "", "-", ".5", "5 %", "1" * 16, "nan", "inf"])


@pytest.mark.parametrize(("text", "plain"), (NUMBERS | NO_NUMBERS).items())
def test_plain_numbers(text, plain):
    assert plain_number(text) == plain


# -- gold answers -----------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("part", "rows", "commas", "negative"), [("train", 7473, 79, 3), ("test", 1319, 14, 2)])
def test_gsm8k_passes_whole(data_folder, part, rows, commas, negative):
    path = data_folder / "math" / f"gsm8k_{part}.jsonl"
    raw = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    tails = [re.fullmatch(r"(?s).*#### (-?[\d,]+(\.\d+)?)\s*", text)[1] for text in raw]
    assert [len(tails), sum("," in tail for tail in tails), sum(tail[0] == "-" for tail in tails)] == [
        rows,
        commas,
        negative,
    ]
    table = prompts.read(path)
    assert prompts.usual_rewards(table) == ["number"]
    verifier = Number()
    verifier.validate(table)
    for index, tail in enumerate(tails):
        row = table.row(index)
        assert float(row["answer"]) == float(tail.replace(",", ""))
        assert verifier.is_right(row["solution"], row)
        number, text = int(row["answer"]), row["solution"]
        for wrong in ("", row["prompt"], f"#### {number + 1}", f"#### {number}1", f"{text}\n#### {number + 1}"):
            assert not verifier.is_right(wrong, row)


def test_a_gold_answer_that_fails_is_told():
    table = Prompts(("1?", "2?"), {"answer": ["3", "4"], "solution": ["#### 3", "so #### 5"]}, "mine.jsonl")
    message = (
        r"mine\.jsonl, row 2: the gold answer 'so #### 5' fails its own verifier, which reads '5'; expected answer='4'"
    )
    with pytest.raises(InputError, match=message):
        Number().validate(table)


def test_gold_answers_need_no_solution():
    for verifier, answers in ((Exact(), [3, "-4"]), (Number(), ["3", "1,000"])):
        verifier.validate(Prompts(("1?", "2?"), {"answer": answers}))
        with pytest.raises(InputError, match="row 2: the gold answer"):
            verifier.validate(Prompts(("1?", "2?"), {"answer": [3, "four"]}))
        with pytest.raises(InputError, match="row 1: the gold answer"):
            verifier.validate(Prompts(("1?",), {"answer": [None]}))
    Countdown().validate(Prompts(("1?",), {"numbers": ["3,7,2"], "answer": ["23"]}))


def test_solutions_that_say_it_otherwise_are_warned_of():
    table = Prompts(("1?", "2?"), {"answer": [3, 4], "solution": ["1:3", "2:4"]}, "mine")
    Exact().validate(table)
    with pytest.warns(SanovWarning, match="mine: the reward 'number' reads an answer in none of the solutions"):
        Number().validate(table)
    Number().validate(Prompts(("1?", "2?"), {"answer": [3, 4], "solution": ["three", "#### 4"]}))  # some may be short


def test_what_countdown_asks_for_may_be_text():
    assert Countdown().is_right("3*7+2", {"numbers": "[3, 7, 2]", "answer": "23"})
    with pytest.raises(InputError, match="the numbers are None and the answer is 23"):
        Countdown().is_right("3*7+2", {"numbers": None, "answer": 23})
    with pytest.raises(InputError, match="the answer is 'many'"):
        Countdown().is_right("3*7+2", {"numbers": [3], "answer": "many"})


# -- as reward functions ----------------------------------------------------------------------------------------------


def test_a_verifier_is_a_reward_function_as_trl_calls_one():
    columns = {"answer": [16, 16, 16], "trainer_state": object(), "log_extra": print, "completion_ids": [[1], [2], [3]]}
    texts = ["19,16:16", ":17", ""]
    assert Exact()(["a", "b", "c"], texts, **columns) == [1.0, 0.0, 0.0]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert Exact()(["a", "b", "c"], chats, **columns) == [1.0, 0.0, 0.0]
    assert Exact().__name__ == "exact"


def test_text_of_messages():
    assert text_of([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    assert (
        text_of([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
        == "ab"
    )
    assert text_of([{"role": "assistant", "content": None}]) == ""
    assert text_of([]) == ""
