"""A file is written whole or not at all: whatever fails, the target is as it was and nothing lies beside it."""

import errno
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanov.core import files
from sanov.core.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- atomic writes ----------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_parents_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    files.write_text(path, "one\n")
    files.write_text(path, "two\n")
    assert path.read_bytes() == b"two\n"
    assert names(path.parent) == ["text.txt"]


def test_the_temporary_has_the_targets_suffix_and_lies_beside_it(tmp_path):
    with files.atomic_path(tmp_path / "table.xlsx") as temporary:
        assert (temporary.suffix, temporary.parent) == (".xlsx", tmp_path)
        temporary.write_bytes(b"x")
        assert not (tmp_path / "table.xlsx").exists()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_leaves_the_old_file_and_no_temporary(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stops():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        stops()
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.replace"])
def test_a_full_disk_is_one_message_and_changes_nothing(place, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(place, fail(FULL))
    with pytest.raises(InputError, match="No space left on device") as caught:
        files.write_json(path, {"a": 1})
    assert str(path) in str(caught.value)
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.json"])


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_an_old_folder_whole(place, tmp_path, monkeypatch):
    path = tmp_path / "folder"
    with files.atomic_folder(path) as folder:
        (folder / "old").touch()
    monkeypatch.setattr(place, fail(FULL))
    with pytest.raises(InputError, match="No space left on device"), files.atomic_folder(path) as folder:
        (folder / "new").touch()
    assert (names(tmp_path), names(path)) == (["folder"], ["old"])


@pytest.mark.parametrize("call", [0, 1], ids=["the old one steps aside", "the new one steps in"])
def test_a_folder_that_cannot_be_replaced_comes_back(call, tmp_path, monkeypatch):
    path, replace, calls = tmp_path / "folder", Path.replace, []

    def sometimes(self, target):
        calls.append(self)
        if len(calls) - 1 == call:
            raise PermissionError(errno.EACCES, "in use", str(self))
        return replace(self, target)

    with files.atomic_folder(path) as folder:
        (folder / "old").touch()
    monkeypatch.setattr(Path, "replace", sometimes)
    with pytest.raises((InputError, PermissionError)), files.atomic_folder(path) as folder:
        (folder / "new").touch()
    assert (names(tmp_path), names(path)) == (["folder"], ["old"])


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    for name in ("old", "new"):
        with files.atomic_folder(path) as folder:
            (folder / "inside").mkdir()
            (folder / "inside" / name).touch()
    assert (names(path.parent), names(path / "inside")) == (["folder"], ["new"])


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
def test_a_process_that_is_killed_before_the_rename_leaves_the_target(kind, tmp_path):
    script = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from sanov.core import files
        Path.replace = lambda *_: os._exit(9)  # neither handlers nor `finally` run, as after a kill
        with files.{kind}(sys.argv[1]) as place:
            (place / "new" if place.is_dir() else place).write_text("new")
    """)
    path = tmp_path / "target"
    files.write_text(path if kind == "atomic_path" else path / "old", "old")
    assert subprocess.run([sys.executable, "-c", script, path], timeout=60, check=False).returncode == 9
    assert (path if kind == "atomic_path" else path / "old").read_text() == "old"
    leftover = next(entry for entry in tmp_path.iterdir() if entry != path)
    with getattr(files, kind)(path) as place:
        (place / "x" if place.is_dir() else place).touch()
    assert leftover.exists()  # it might be a writer's that is still at work
    os.utime(leftover, (0, 0))
    with getattr(files, kind)(path) as place:
        (place / "x" if place.is_dir() else place).touch()
    assert names(tmp_path) == ["target"]


KILLED = """
import os, sys
from pathlib import Path
from sanov.core import files
replace, calls = Path.replace, []
def sometimes(self, target):
    calls.append(self)
    return os._exit(9) if len(calls) == {last} else replace(self, target)
Path.replace = sometimes
files.shutil.rmtree = lambda *_, **__: os._exit(9)
with files.atomic_folder(sys.argv[1]) as place:
    (place / "new").touch()
"""


@pytest.mark.parametrize(("last", "survivor"), [(1, "old"), (2, "old"), (3, "new")], ids=["aside", "in", "cleared"])
def test_a_process_that_is_killed_between_two_renames_leaves_a_copy(last, survivor, tmp_path):
    """However long ago: the next writer takes it back, and does not clear it away."""
    path = tmp_path / "target"
    files.write_text(path / "old", "")
    done = subprocess.run([sys.executable, "-c", KILLED.format(last=last), path], timeout=60, check=False)
    assert done.returncode == 9
    for leftover in tmp_path.iterdir():
        os.utime(leftover, (0, 0))
    with pytest.raises(ValueError, match="x"), files.atomic_folder(path):
        raise ValueError("x")
    assert (names(tmp_path), names(path)) == (["target"], [survivor])
    with files.atomic_folder(path) as place:
        (place / "newest").touch()
    assert (names(tmp_path), names(path)) == (["target"], ["newest"])


def test_an_error_of_the_callers_own_is_not_taken_for_the_targets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.csv"), files.atomic_path(tmp_path / "a"):
        (tmp_path / "data.csv").read_text()
    with pytest.raises(ConnectionResetError), files.atomic_folder(tmp_path / "b"):
        raise ConnectionResetError(errno.ECONNRESET, "gone")
    assert names(tmp_path) == []


def test_a_folder_in_the_way_is_a_users_mistake(tmp_path):
    (tmp_path / "a.json" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a\.json: cannot be written"):
        files.write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither mode bits nor links without a privilege")
def test_mode_and_link_of_the_target_are_kept(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.write_text(link, "new")
    assert (target.read_text(), target.stat().st_mode & 0o777, link.is_symlink()) == ("new", 0o640, True)


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_json_holds_no_nan_and_takes_what_is_usual(tmp_path):
    tree = {
        "array": np.array([1.0, np.nan, np.inf]),
        "number": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "series": pl.Series([1, None]),
        1: (float("-inf"), {"x"}),
        "path": Path("a") / "b",
        "day": date(2024, 2, 29),
        "wait": timedelta(milliseconds=1500),
        "bytes": b"\x00a",
        "price": Decimal("1.5"),
    }
    files.write_json(tmp_path / "a.json", tree)
    text = (tmp_path / "a.json").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict == {
        "array": [1.0, None, None],
        "number": 0.5,
        "count": 3,
        "flag": True,
        "series": [1, None],
        "1": [None, ["x"]],
        "path": "a/b",
        "day": "2024-02-29",
        "wait": 1.5,
        "bytes": "0061",
        "price": 1.5,
    }
    assert files.read_json(tmp_path / "a.json") == strict


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        files.plain({"a": object()})


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("{", "cannot be read as JSON")])
def test_json_that_cannot_be_read_is_named(text, message, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        files.read_json(tmp_path / "a.json")


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(trees)
def test_plain_leaves_json_as_it_is(tree):
    assert files.plain(tree) == tree
    assert json.loads(files.to_json(tree)) == tree


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_appended_and_read(tmp_path):
    path = tmp_path / "new" / "cells.jsonl"
    assert files.read_lines(path) == []
    for i in range(3):
        files.append_line(path, {"i": i, "value": math.nan})
    assert files.read_lines(path) == [{"i": i, "value": None} for i in range(3)]
    assert names(path.parent) == ["cells.jsonl"]


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "cells.jsonl"
    files.append_line(path, {"i": 0})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"i": 1')
    assert files.read_lines(path) == [{"i": 0}]
    files.append_line(path, {"i": 2})
    assert path.read_bytes() == whole + b'{"i": 2}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "cells.jsonl").write_text('{"i": 0}\n{"i":\n{"i": 2}\n')
    with pytest.raises(InputError, match=r"cells\.jsonl, line 2: is not JSON"):
        files.read_lines(tmp_path / "cells.jsonl")


def test_a_full_disk_leaves_the_lines_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "cells.jsonl"
    files.append_line(path, {"i": 0})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail(FULL))
        with pytest.raises(InputError, match="No space left"):
            files.append_line(path, {"i": 1})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["cells.jsonl"]


def test_lines_of_many_threads_do_not_mix(tmp_path):
    path = tmp_path / "cells.jsonl"
    work = [
        threading.Thread(
            target=lambda w=w: [files.append_line(path, {"w": w, "i": i, "x": "y" * 999}) for i in range(9)]
        )
        for w in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted((line["w"], line["i"]) for line in files.read_lines(path)) == [
        (w, i) for w in range(4) for i in range(9)
    ]


# -- digests and checks -----------------------------------------------------------------------------------------------


def test_digests_are_sha256_of_content(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4, of no bytes
    assert files.digest(b"") == empty
    (tmp_path / "a").touch()
    assert files.digest(tmp_path / "a") == empty
    assert files.digest({"a": 1, "b": [2.0]}) == files.digest({"b": [2.0], "a": 1})
    assert files.digest({"a": math.nan}) != files.digest({"a": None})
    with pytest.raises(InputError, match="cannot be read"):
        files.digest(tmp_path / "none")


def test_the_digest_of_a_folder_follows_names_and_contents(tmp_path):
    for name in ("one", "two"):
        files.write_text(tmp_path / name / "deep" / "a", "x")
    first = files.digest(tmp_path / "one")
    assert files.digest(tmp_path / "two") == first
    (tmp_path / "two" / "deep" / "a").rename(tmp_path / "two" / "deep" / "b")
    assert files.digest(tmp_path / "two") != first
    files.write_text(tmp_path / "one" / "deep" / "a", "y")
    assert files.digest(tmp_path / "one") != first


@pytest.mark.parametrize("name", ["new", "new.json", "folder", "old.json"])
def test_a_place_that_can_be_written_is_left_alone(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").touch()
    files.check_writable(tmp_path / name)
    assert names(tmp_path) == ["folder", "old.json"]


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("none/x.json", None, "none: there is no such folder"),
        ("file", None, "file: is a file; expected a folder"),
        ("folder.d", False, "is a folder; expected a file"),
        ("file/x.json", None, "file: there is no such folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(name, folder, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.d").mkdir()
    with pytest.raises(InputError) as caught:
        files.check_writable(tmp_path / name, folder=folder)
    assert message in str(caught.value)


def test_no_permission_is_told(tmp_path, monkeypatch):
    """A superuser may write everywhere, so the refusal is the operating system's word, put into its mouth."""
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", fail(denied))
    with pytest.raises(InputError, match="Permission denied"):
        files.check_writable(tmp_path / "x.json")
