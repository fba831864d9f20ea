"""Progress: every item comes through, nothing is shown of short work, and `quiet` shows nothing at all."""

import io

import pytest

from sanov.core import progress
from sanov.core.progress import quiet, track


@pytest.fixture
def slow(monkeypatch):
    """A clock that advances ten seconds at every look."""
    ticks = iter(range(0, 100_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_short_work_shows_nothing(capsys):
    assert list(track(range(5), "counting")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_long_work_tells_how_far_it_is(slow, capsys):
    assert list(track(iter("abcd"), "spelling", total=4)) == list("abcd")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["spelling: 1 of 4, 20 s", "spelling: 3 of 4, 40 s"]


def test_quiet_shows_nothing_and_ends_with_its_block(slow, capsys):
    with quiet():
        list(track(range(9), "counting"))
        with quiet(False):
            list(track(range(9), "counting"))
    assert capsys.readouterr().err == ""
    list(track(range(9), "counting"))
    assert "counting: 1 of 9" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_that_goes_away_even_after_an_error(slow, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    work = track(range(9), "counting")
    assert [next(work) for _ in range(3)] == [0, 1, 2]
    work.close()
    assert list(track(range(3), "again")) == [0, 1, 2]
