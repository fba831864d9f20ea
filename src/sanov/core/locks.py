"""A lock between threads and processes, on Linux, macOS and Windows.

The operating system holds it on an open file. So a process that dies, in whatever way, gives it back at once: no lock
is ever stale, and none has to be broken.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from sanov.core.errors import InputError

__all__ = ["lock"]

POLL = 0.02  # seconds between two attempts
LOCKED_BYTE = 1 << 30  # far beyond the content, because Windows hides a locked byte from everybody else


@contextmanager
def lock(path: str | Path, wait: float = math.inf) -> Iterator[None]:
    """Hold the lock of `path`, which need not exist; missing parents are made.

    The lock is a hidden file beside `path`, which is there only while somebody holds it.

    Parameters
    ----------
    path
        What is protected: a file or a folder.
    wait
        Seconds to wait for another holder.

    Raises
    ------
    InputError
        Another process still holds it (the message has its number), or the place cannot be written.
    """
    path = Path(path)
    place = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _take(path, place, time.monotonic() + wait)
    except OSError as error:
        raise InputError(f"cannot be locked ({error.strerror})", where=str(path)) from error
    try:
        yield
    finally:
        _give_back(file, place)


def _take(path: Path, place: Path, deadline: float) -> FileIO:
    while True:
        file = place.open("a+b", buffering=0)
        try:
            if _locked(file):
                if _same(file, place):
                    file.truncate(0)
                    file.write(str(os.getpid()).encode())
                    return file
            elif time.monotonic() > deadline:
                file.seek(0)
                owner = file.read(32).decode()
                raise InputError(f"is in use by another process (number {owner})", where=str(path), fix="wait for it")
            else:
                time.sleep(POLL)
        except BaseException:
            file.close()
            raise
        file.close()


def _give_back(file: FileIO, place: Path) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        file.close()
    with suppress(OSError):
        place.unlink()
    file.close()


def _same(file: FileIO, place: Path) -> bool:
    """Whether the open file is still the one at that place: its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def _locked(file: FileIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN, errno.EDEADLK}:
            return False
        raise
    return True
