"""Results are read as they were written, and say where they come from but not on whose machine."""

import getpass
import json
import math
import platform
import socket
import subprocess
from pathlib import Path

import pytest

from sanov.core import results
from sanov.core.errors import InputError
from sanov.core.results import ClaimResult, PartResult, provenance, read_result, write_result

PART = PartResult(
    name="beats KL",
    statement="Transport beats KL.",
    kind="above",
    bound=0.0,
    required=True,
    unit="points",
    values={"0": 1.0, "1": 1.5},
    mean=1.25,
    low=0.5,
    high=2.0,
    verdict="holds",
)
RESULT = ClaimResult(
    system="sinkd",
    statement="A statement.",
    source="A paper, table 1.",
    preset="paper",
    scale="Small next to the paper's.",
    verdict="holds",
    parts=[PART, PART.model_copy(update={"bound": (-1.0, 2.0), "kind": "within"})],
    cells={"shared": 1, "tune": 2, "compare": 4},
    older_cells=0,
    cell_seconds=1.5,
    figures={"effects": {"mark": "point", "data": {"values": [{"a": 1}]}}},
    data={"digits": "0" * 64},
    provenance={"version": "1"},
    seconds=2.0,
)


def test_a_result_is_read_as_it_was_written(tmp_path):
    write_result(tmp_path / "results" / "x.json", RESULT)
    assert read_result(tmp_path / "results" / "x.json") == RESULT


def test_the_fields_of_a_result_do_not_change(tmp_path):
    """Pages, docs and later versions read files that were committed long ago."""
    tree = RESULT.model_dump(mode="json")
    assert list(tree) == [
        "system", "statement", "source", "preset", "scale", "verdict", "parts", "cells", "older_cells", "cell_seconds",
        "figures", "data", "provenance", "seconds",
    ]  # fmt: skip
    assert list(tree["parts"][0]) == [
        "name", "statement", "kind", "bound", "required", "unit", "values", "mean", "low", "high", "verdict", "reason",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="extra"):
        ClaimResult(**{**tree, "more": 1})


def test_numbers_that_are_not_finite_are_absent(tmp_path):
    part = PartResult(**{**PART.model_dump(), "values": {"0": math.inf}, "mean": math.nan, "low": -math.inf})
    assert (part.values, part.mean, part.low) == ({"0": None}, None, None)
    write_result(tmp_path / "x.json", RESULT.model_copy(update={"parts": [part]}))
    assert read_result(tmp_path / "x.json").parts == [part]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "is no result of a claim (system: Field required). Run: sanov reproduce"), ("[", "cannot be read as JSON")],
)
def test_a_file_that_holds_something_else_is_said(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_result(tmp_path / "x.json")
    assert message in str(caught.value)
    assert "x.json" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "holds: beats KL: 1.25 points, 95 % [0.5, 2], 2 seeds, asked: > 0"),
        (
            {"bound": (-1.0, 2.0), "kind": "within"},
            "holds: beats KL: 1.25 points, 95 % [0.5, 2], 2 seeds, asked: within [-1, 2]",
        ),
        (
            {"kind": "reported", "verdict": "reported", "required": False, "unit": ""},
            "reported: beats KL: 1.25, 95 % [0.5, 2], 2 seeds",
        ),
        ({"verdict": "not run", "values": {}, "mean": None, "low": None, "high": None}, "not run: beats KL: no value"),
        ({"verdict": "inconclusive", "reason": "one class"}, "inconclusive (one class): beats KL: 1.25 points,"),
        ({"values": {"0": 1.0}, "low": None, "high": None}, "holds: beats KL: 1.25 points, 1 seed, asked: > 0"),
        ({"required": False}, "asked: > 0, not required"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_part_is_told_in_one_line(more, line):
    assert line in PART.model_copy(update=more).line()


def test_provenance_is_strict_json_and_names_no_machine():
    told = provenance()
    text = json.dumps(told, allow_nan=False)
    assert told["python"] == platform.python_version()
    assert told["packages"]["numpy"]
    for secret in (str(Path(__file__).parents[2]), str(Path.home()), socket.gethostname()):
        assert secret not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def git(*words, cwd):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *words]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_which_tracks_the_package(tmp_path, monkeypatch):
    package = tmp_path / "src" / "sanov"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(results, "PACKAGE", package)
    assert provenance()["commit"] is None
    git("init", "--quiet", cwd=tmp_path)
    (tmp_path / "other").touch()
    git("add", "other", cwd=tmp_path)
    git("commit", "--quiet", "--message", "x", cwd=tmp_path)
    assert provenance()["commit"] is None  # somebody else's checkout, in which the package is installed
    git("add", ".", cwd=tmp_path)
    git("commit", "--quiet", "--message", "y", cwd=tmp_path)
    assert provenance()["commit"] == git("rev-parse", "HEAD", cwd=tmp_path)
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance()["commit"].endswith(" with changes")


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] is None
