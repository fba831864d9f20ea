"""Options from words, files and defaults, and what is said when one is wrong."""

import json
from typing import Literal

import pytest
from pydantic import ValidationError

from sanov.core.errors import InputError
from sanov.core.options import Options, describe, option, parse, split


class Training(Options):
    rate: float = option(0.1, "Step size.", source="paper", gt=0.0)
    layers: tuple[int, ...] = option((64, 32), "Widths.", source="choice")


class Config(Options):
    epsilon: float = option(0.05, "Bound.", source="paper", unit="nats", gt=0.0, lt=0.5)
    family: Literal["gaussian", "poisson"] = option("gaussian", "Family.", source="choice")
    columns: tuple[str, ...] = option((), "Columns.", source="choice")
    outcome: str | None = option(None, "Outcome.", source="choice")
    exact: bool = option(False, "Exact.", source="choice")
    order: Literal[1, 2] | None = option(2, "Order.", source="choice")
    training: Training = Training()


class Required(Options):
    columns: tuple[str, ...] = option(..., "Columns.", source="choice")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"epsilon": "0.1"}, {"epsilon": 0.1}),
        ({"columns": "a, b,c"}, {"columns": ("a", "b", "c")}),
        ({"columns": "none"}, {"columns": ()}),
        ({"columns": ["a", "b"]}, {"columns": ("a", "b")}),
        ({"outcome": "none"}, {"outcome": None}),
        ({"outcome": "died"}, {"outcome": "died"}),
        ({"exact": "true"}, {"exact": True}),
        ({"order": "1"}, {"order": 1}),
        ({"order": "none"}, {"order": None}),
        ({"training.rate": "2", "training.layers": "8"}, {"training": Training(rate=2.0, layers=(8,))}),
        ({"training": {"rate": 3}}, {"training": Training(rate=3.0)}),
    ],
    ids=str,
)
def test_words_become_values(words, expected):
    assert parse(Config, words) == Config(**expected)


def test_a_default_written_out_is_the_default():
    """What `sanov show` prints as a default can be typed."""
    assert parse(Config, {row["name"]: row["default"] for row in describe(Config)}) == Config()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"epsilom": "1"}, "epsilom: there is no such option. Did you mean 'epsilon'?"),
        ({"training.rat": "1"}, "training.rat: there is no such option. Did you mean 'training.rate'?"),
        ({"table.rate": "1"}, "table.rate: there is no such option. Did you mean 'training.rate'?"),
        ({"training_rate": 1}, "training_rate: there is no such option. Did you mean 'training.rate'?"),
        ({"epsilon": [0.1] * 99}, "epsilon: the value is list; expected a number"),
        ({"order": "3"}, "order: the value is '3'; expected 1 | 2."),
        ({"zzz": "1"}, "The options are: epsilon, family,"),
        ({"epsilon": "0.7"}, "epsilon: the value is '0.7'; expected a number > 0.0 and < 0.5."),
        ({"epsilon": "x"}, "epsilon: the value is 'x'; expected a number > 0.0 and < 0.5."),
        ({"family": "gamma"}, "family: the value is 'gamma'; expected gaussian | poisson."),
        ({"exact": "perhaps"}, "exact: the value is 'perhaps'; expected true | false."),
        ({"training.layers": "8,x"}, "training.layers.1: the value is 'x'; expected a whole number, several"),
        ({"training": "x", "training.rate": "1"}, "training: is given both as a value and as a group"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_wrong_option_is_said_in_one_message(words, message):
    with pytest.raises(InputError) as caught:
        parse(Config, words)
    assert message in str(caught.value)


class Steps(Options):
    steps: int = option(120, "Steps.", source="choice")
    learning_rate: float = option(0.1, "Rate.", source="choice")


class TwoGroups(Options):
    training: Steps = Steps()
    start: Steps = Steps()


def test_options_of_one_last_part_are_all_named_in_their_order():
    with pytest.raises(InputError, match=r"Did you mean 'training.learning_rate' or 'start.learning_rate'\?"):
        parse(TwoGroups, {"learning_rate": "1e-5"})


def test_a_whole_number_may_be_written_as_a_power_of_ten():
    assert parse(TwoGroups, {"training.steps": "1e2"}).training.steps == 100
    with pytest.raises(InputError, match=r"training.steps: the value is '15e-1'; expected a whole number"):
        parse(TwoGroups, {"training.steps": "15e-1"})


def test_an_option_without_default_is_asked_for():
    with pytest.raises(InputError, match=r"columns: this option has no default. Pass columns=..."):
        parse(Required, {})


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path):
    for name, text in {
        "o.toml": "epsilon = 0.2\n[training]\nrate = 0.3\n",
        "o.json": json.dumps({"epsilon": 0.2}),
    }.items():
        (tmp_path / name).write_text(text)
        assert parse(Config, {}, tmp_path / name).epsilon == pytest.approx(0.2)
        config = parse(Config, {"epsilon": "0.3", "training.layers": "8"}, tmp_path / name)
        assert (config.epsilon, config.training.layers) == (pytest.approx(0.3), (8,))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.toml", None, "no such file"),
        ("bad.toml", "epsilon = ", "cannot be read"),
        ("bad.json", "{", "cannot be read"),
        ("list.json", "[1]", "is not a table of options"),
    ],
)
def test_a_file_of_options_that_cannot_be_read_is_named(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse(Config, {}, tmp_path / name)
    assert name in str(caught.value)


def test_words_are_data_or_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.csv").touch()
    assert split(["x.csv", "k=v", "a=b.csv", "e="]) == (["x.csv", "a=b.csv"], {"k": "v", "e": ""})
    with pytest.raises(InputError, match="given twice"):
        split(["k=1", "k=2"])


def test_every_option_is_described():
    rows = {row["name"]: row for row in describe(Config)}
    assert list(rows) == [
        "epsilon",
        "family",
        "columns",
        "outcome",
        "exact",
        "order",
        "training.rate",
        "training.layers",
    ]
    assert rows["epsilon"] == {
        "name": "epsilon",
        "default": "0.05",
        "legal": "a number > 0.0 and < 0.5",
        "unit": "nats",
        "meaning": "Bound.",
        "source": "paper",
    }
    assert rows["training.layers"]["default"] == "64,32"
    assert describe(Required)[0]["default"] == "required"


@pytest.mark.parametrize(("name", "text"), [("c.toml", "epsilon = 0.1\n"), ("c.json", '{"epsilon": 0.1}')])
def test_a_file_of_windows_may_begin_with_a_mark(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert parse(Config, {}, tmp_path / name).epsilon == 0.1


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().epsilon = 0.1
