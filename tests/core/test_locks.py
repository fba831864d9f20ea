"""A lock keeps others out, and a process that dies gives it back."""

import subprocess
import sys
import threading

import pytest

from sanov.core.errors import InputError
from sanov.core.locks import lock

HOLDER = "import sys; from sanov.core.locks import lock\nwith lock(sys.argv[1]): print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_kept_out_and_named(holder, tmp_path):
    with (
        pytest.raises(InputError, match=f"out: is in use by another process .number {holder.pid}."),
        lock(tmp_path / "out", 0.0),
    ):
        pass


def test_a_killed_process_gives_its_lock_back(holder, tmp_path):
    holder.kill()
    holder.wait()
    with lock(tmp_path / "out", wait=10.0):
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    assert list(tmp_path.iterdir()) == []


def test_one_thread_at_a_time(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(10):
            with lock(tmp_path / "deep" / "out"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(most)) == (1, 40)


def test_an_error_inside_gives_the_lock_back(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), lock(tmp_path / "out", wait=0.0):
            raise ValueError("inside")


def test_a_place_without_room_for_a_lock_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be locked"), lock(tmp_path / "file" / "out"):
        pass
