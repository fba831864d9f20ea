"""The table of a run: lines elsewhere, a table on a terminal, nothing where it is quiet."""

import io

import pytest

from sanov.core.progress import quiet
from sanov.learning import live as module
from sanov.learning.live import REWARDED, live

NUMBERS = {"reward": 0.25, "completions/mean_length": 7.0, "entropy": 1.5, "num_tokens": 100.0, "kd/k1": 0.5,
           "groups/mixed": 0.75, "groups/all_right": 0.0, "groups/all_wrong": 0.25}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass by a tenth at every look."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks) / 10)


def rows(steps):
    with live(steps, REWARDED | {"KL"}) as callbacks:
        for done in range(1, steps + 1):
            for call in callbacks:
                assert call(done, NUMBERS) is None


def test_plain_lines_every_so_many_steps(clock, capsys):
    rows(40)
    out, err = capsys.readouterr()
    head, *lines = err.splitlines()
    assert out == ""
    assert head.split() == ["step", "reward", "length", "KL", "entropy", "right", "wrong", "mixed", "tokens/s"]
    assert [line.split()[0] for line in lines] == [f"{done}/40" for done in range(2, 41, 2)]
    assert lines[3].split() == ["8/40", "0.25", "7", "0.5", "1.5", "0%", "25%", "75%", "1,000"]


def test_a_slow_run_shows_more_than_is_due(monkeypatch, capsys):
    ticks = iter(range(0, 10**6, 20))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))
    rows(100)
    assert len(capsys.readouterr().err.splitlines()) == 101


def test_quiet_shows_nothing(capsys):
    with quiet():
        rows(10)
    with live(10, REWARDED, here=False) as callbacks:
        assert callbacks == []
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_table(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(module.sys, "stderr", terminal)
    rows(3)
    said = terminal.getvalue()
    assert "tokens/s" in said
    assert "3/3" in said
