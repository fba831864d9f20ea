"""One message per mistake, and it survives the way back from a worker process."""

import pickle
import sys

import pytest

from sanov.core.errors import InputError, MissingExtra, SanovError, require


def test_the_message_says_where_what_expected_and_what_to_do():
    error = InputError("the cell is 'x'", where="data.csv, row 3", expected="a number", fix="correct it")
    assert str(error) == "data.csv, row 3: the cell is 'x'; expected a number. Correct it."
    assert (error.where, error.found, error.expected, error.fix) == (
        "data.csv, row 3",
        "the cell is 'x'",
        "a number",
        "correct it",
    )


@pytest.mark.parametrize(
    ("fix", "end"), [("did you mean 'a'?", "a'?"), ("run `sanov list`", "list`"), (None, "found.")], ids=str
)
def test_the_message_ends_once(fix, end):
    assert str(InputError("found", fix=fix)).endswith(end)


@pytest.mark.parametrize("fix", ["rewards=module:function", "grpo.clip_low=0.2 or less", "sanov fit kdrl ..."])
def test_options_and_commands_in_advice_can_be_copied(fix):
    assert f". {fix}" in str(InputError("found", fix=fix))


@pytest.mark.parametrize(
    "error",
    [
        InputError("found", where="here", expected="this", fix="do that"),
        InputError("found"),
        MissingExtra("ot", "bench"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert isinstance(again, SanovError)


def test_a_missing_package_is_said_with_the_command_that_installs_it():
    with pytest.raises(MissingExtra, match=r"pip install 'sanov\[excel\]'"):
        require("a_module_that_nobody_wrote", "excel")


def test_an_error_inside_an_installed_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_module_that_nobody_wrote\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_wrote") as caught:
        require("half_installed", "excel")
    assert not isinstance(caught.value, MissingExtra)


def test_what_is_installed_is_returned():
    assert require("json.decoder", "none") is sys.modules["json.decoder"]
