"""Answers out of texts: what the released code gets right, and what it gets wrong."""

import re

import polars as pl
import pytest

from sanov.systems.fidelity.extraction import extract


def answers(how, texts, options=()):
    return extract(pl.Series(texts, dtype=pl.String), how, options).to_list()


def released_number(text):
    """The rule of the released code: no commas, the last match."""
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found else None


PLAIN = [
    "The answer is 42",
    "She has 3 apples and buys 4, so 7 in all",
    "the total is $1,234.50",
    "x = -3",
    "It is -0.75 degrees",
    "1,234,567",
    "so 12 / 4 = 3",
    "72",
    "#### 18",
    "no number at all",
    "",
]


@pytest.mark.parametrize("text", PLAIN)
def test_numbers_are_those_of_the_released_code_where_it_is_right(text):
    found, expected = answers("number", [text])[0], released_number(text)
    assert (found is None) == (expected is None)
    assert found is None or float(found) == expected


@pytest.mark.parametrize(
    ("text", "number", "released"),
    [
        ("so the score was 3-4", "4", -4.0),
        ("between 10-12", "12", -12.0),
        ("f(2)-7", "7", -7.0),
        ("the pair is 3,4", "4", 34.0),
        ("so it is .5", "0.5", 5.0),
        ("that is 1.5e3", "1500", 3.0),
        ("the result is \u22125", "-5", 5.0),
    ],
)
def test_numbers_that_the_released_code_gets_wrong(text, number, released):
    assert answers("number", [text]) == [number]
    assert released_number(text) == released


@pytest.mark.parametrize("text", ["5", "5.", "5.0", "05", "5.000", "It is 5.", "5 km", "5%", "5 %", "+5", "$5", "5,"])
def test_one_number_is_written_in_one_way(text):
    assert answers("number", [text]) == ["5"]


def test_signs_zeros_and_limits_of_numbers():
    assert answers("number", ["-0", "-0.0", "0", "-$4", "(-4)", "1/4", "100", "1200000"]) == [
        "0", "0", "0", "-4", "-4", "4", "100", "1200000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b)", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("Answer: E", "E"),
        ("After all, the answer is (C), not A", "C"),
        ("A train leaves at noon, so B is right", "B"),
        ("Option (A) fails. The correct answer is B", "B"),
        ("C. because 3 + 4 = 7", "C"),
        ("I choose A", "A"),
        ("Answer", None),
        ("nothing of the kind", None),
        ("F", None),
    ],
)
def test_letters(text, letter):
    assert answers("letter", [text]) == [letter]


def test_letters_of_the_user():
    assert answers("letter", ["x", "the answer is Z", "A"], ("x", "z")) == ["X", "Z", None]


def test_options_are_found_as_words_in_any_case():
    names = ("solution1", "solution2", "solution10")
    texts = ["the correct answer is Solution2", "solution10", "solution1.", "solution", None]
    assert answers("options", texts, names) == ["solution2", "solution10", "solution1", None, None]
    assert answers("options", ["in New York City"], ("new york", "new york city")) == ["new york city"]
    assert answers("options", ["It is True", "untrue", "false, not true"], ("true", "false")) == ["true", None, "false"]


def test_exact_answers_pass_and_options_keep_the_rest_out():
    assert answers("exact", ["cat", "The cat", None]) == ["cat", "The cat", None]
    assert answers("exact", ["cat", "The cat", "Dog", None], ("cat", "dog")) == ["cat", None, None, None]
