"""Rows are computed once: whatever is killed, damaged, full, or wanted by two processes at once."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learning.cached_rows import Squares
from learning.toy_run import search_path
from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.learning import row_cache
from sanov.learning.row_cache import SHARD, computed, kept, known

ROWS = 3 * SHARD + 100  # three shards and a part of one
ABOUT = {"what": "squares"}


def calls(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def content(root):
    """Bytes of every file in a cache, by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def same(found):
    expected = computed(Squares(os.devnull), ROWS)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


@pytest.fixture
def whole(tmp_path):
    """A cache with all rows."""
    kept(tmp_path / "cache", ABOUT, ROWS, Squares(tmp_path / "first"))
    return tmp_path / "cache"


def entry(root):
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def test_rows_are_computed_once_and_mapped(tmp_path):
    first = kept(tmp_path / "cache", ABOUT, ROWS, Squares(tmp_path / "log"))
    again = kept(tmp_path / "cache", ABOUT, ROWS, Squares(tmp_path / "log"))
    same(first)
    same(again)
    same(known(tmp_path / "cache", ABOUT, ROWS))
    assert calls(tmp_path / "log") == [0, SHARD, 2 * SHARD, 3 * SHARD]
    assert isinstance(again["logits"].base, np.memmap)
    assert not again["logits"].flags.writeable
    assert not list((tmp_path / "cache").glob(".*"))  # neither locks nor temporaries are left


def test_other_rows_are_another_entry(whole):
    assert known(whole, ABOUT, ROWS + 1) is None
    assert known(whole, {"what": "cubes"}, ROWS) is None


def start(folder, last, *other):
    command = [sys.executable, "-m", "learning.cached_rows", str(folder), str(ROWS), str(last), *map(str, other)]
    environment = os.environ | {"PYTHONPATH": search_path()}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(tmp_path, whole):
    (tmp_path / "other").mkdir()
    killed = start(tmp_path / "other", 1)
    assert (killed.communicate(timeout=60)[1], killed.returncode) == ("", 3)
    half = tmp_path / "other" / "cache"
    assert known(half, ABOUT, ROWS) is None
    same(kept(half, ABOUT, ROWS, Squares(tmp_path / "rest")))
    assert calls(tmp_path / "rest") == [2 * SHARD, 3 * SHARD]
    assert content(half) == content(whole)


def test_of_two_processes_one_computes(tmp_path):
    """The first begins a shard only once the second is there; so the second finds the lock held, and waits."""
    first = start(tmp_path, 9, tmp_path / "second")
    second = start(tmp_path, 9, tmp_path / "second")
    while len(list(tmp_path.glob("here-*"))) < 2 and first.poll() is second.poll() is None:
        pass
    (tmp_path / "second").touch()
    told = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], told
    assert told[0][0] == told[1][0]
    (log,) = tmp_path.glob("calls-*")
    assert calls(log) == [0, SHARD, 2 * SHARD, 3 * SHARD]


# -- damage -----------------------------------------------------------------------------------------------------------


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit of the last shard": (lambda f: flip(f / "logits.npy", -1), [3 * SHARD]),
    "a bit of the first": (lambda f: flip(f / "embeddings.npy", 128), [0]),
    "a file cut short": (lambda f: os.truncate(f / "logits.npy", 1000), [0, SHARD, 2 * SHARD, 3 * SHARD]),
    "no file": (lambda f: (f / "embeddings.npy").unlink(), [0, SHARD, 2 * SHARD, 3 * SHARD]),
    "a bit of the head": (lambda f: flip(f / "head_weight.npy", -1), [0, SHARD, 2 * SHARD, 3 * SHARD]),
    "a journal of something else": (
        lambda f: (f / "rows.jsonl").write_text("[1]\n?\n{}\n"),
        [0, SHARD, 2 * SHARD, 3 * SHARD],
    ),
}


@pytest.mark.parametrize(("damage", "again"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_told_and_computed_again(damage, again, whole, tmp_path):
    before = content(whole)
    damage(entry(whole))
    assert known(whole, ABOUT, ROWS) is None
    with pytest.warns(SanovWarning, match="is damaged: .*the teacher is run again"):
        same(kept(whole, ABOUT, ROWS, Squares(tmp_path / "log")))
    assert calls(tmp_path / "log") == again
    after = content(whole)
    journal = str((entry(whole) / "rows.jsonl").relative_to(whole))
    assert {path: data for path, data in after.items() if path != journal} == {
        path: data for path, data in before.items() if path != journal
    }
    same(known(whole, ABOUT, ROWS))


# -- places -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_there_is(tmp_path, monkeypatch):
    def full(file):
        if (written := len(calls(tmp_path / "log"))) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with monkeypatch.context() as patch:
        patch.setattr(row_cache.os, "fsync", full)
        with pytest.raises(
            InputError, match=rf"No space left on device.*run again: {2 * SHARD} of {ROWS} rows are kept"
        ):
            kept(tmp_path / "cache", ABOUT, ROWS, Squares(tmp_path / "log"))
    same(kept(tmp_path / "cache", ABOUT, ROWS, Squares(tmp_path / "rest")))
    assert calls(tmp_path / "rest") == [2 * SHARD, 3 * SHARD]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with row_cache.writable(tmp_path / "file") as found:
        assert not found
    with row_cache.writable(tmp_path / "a" / "b") as found:
        assert found
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with row_cache.writable(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "c").write_text("kept")
    assert (tmp_path / "a" / "b" / "c").exists()
    with pytest.raises(InputError, match="cannot be locked"):
        kept(tmp_path / "file", ABOUT, ROWS, Squares(tmp_path / "log"))


def test_what_is_kept_is_read_without_writing(whole, monkeypatch):
    """As in a folder that is read-only."""
    for name in ("append_line", "atomic_path", "write_json"):
        monkeypatch.setattr(files, name, lambda *_: pytest.fail("written"))
    monkeypatch.setattr(row_cache, "lock", lambda *_: pytest.fail("locked"))
    same(known(whole, ABOUT, ROWS))


def test_a_fault_of_the_work_is_its_own(tmp_path):
    class Broken(Squares):
        def rows(self, start, stop):
            raise InputError("the teacher is at fault")

    with pytest.raises(InputError, match=r"^the teacher is at fault\.$"):
        kept(Path(tmp_path), ABOUT, ROWS, Broken(os.devnull))
