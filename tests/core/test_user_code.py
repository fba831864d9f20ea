"""A user's own function: found beside them, and every way in which it is not."""

import sys

import pytest

from sanov.core.errors import InputError
from sanov.core.user_code import load_function, place_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_working_directory_comes_first(here):
    (here / "own_rewards.py").write_text(
        "def length(completions, **_):\n    return [len(text) for text in completions]\n"
    )
    assert load_function("own_rewards:length")(["ab", ""]) == [2, 0]
    (here / "folder").mkdir()
    (here / "folder" / "inner_rewards.py").write_text("from math import sqrt\nanswer = 42\n")
    assert load_function("folder.inner_rewards:sqrt")(4) == 2
    assert load_function("statistics:mean")([1, 3]) == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_rewards", "the value is 'own_rewards'; expected module:function. Write own_rewards:function"),
        ("own_rewards.py:length", "Write own_rewards:length, for a module in the working directory"),
        (":length", "Write module:length"),
        ("own_rewards:", "Write own_rewards:function"),
        ("no_such_module:length", "cannot be imported .ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken_rewards:length", r"cannot be imported \(SyntaxError: .*; expected module:function"),
        ("failing_rewards:length", r"cannot be imported \(ZeroDivisionError: division by zero"),
        ("plain_rewards:length", "'plain_rewards' has no function 'length'"),
        ("plain_rewards:answer", "'plain_rewards' has no function 'answer'"),
    ],
)
def test_mistakes_are_told(here, reference, message):
    (here / "broken_rewards.py").write_text("def length(\n")
    (here / "failing_rewards.py").write_text("1 / 0\n")
    (here / "plain_rewards.py").write_text("answer = 42\n")
    with pytest.raises(InputError, match=message):
        load_function(reference)


def test_an_error_is_placed_in_the_users_own_file(here):
    (here / "deep_rewards.py").write_text("import json\n\ndef read(text):\n    return json.loads(text)\n")
    read = load_function("deep_rewards:read")
    with pytest.raises(ValueError, match="Expecting value") as told:
        read("no")
    assert place_of(told.value, read) == "deep_rewards.py, line 4"
    assert place_of(told.value, len).startswith("decoder.py, line ")
    assert place_of(ValueError(), read) == "in no line of its own"
