"""Arrays by row that are dear to compute: formed shard by shard, kept in a folder, and mapped into memory when read.

A folder is named by the digest of what the rows are. It holds one ``.npy`` file for each array and the journal
``rows.jsonl``, in which a line with the digests of a shard follows once the shard is on the disk. So a pass that was killed
goes on where it stopped and ends with the same bytes; a damaged shard is found by its digest and computed again; and of
several processes one computes while the others wait for its lock.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.core.locks import lock
from sanov.core.progress import track

__all__ = ["SHARD", "Work", "computed", "kept", "known", "writable"]

SHARD = 512  # rows between two lines of the journal: what a kill may cost
JOURNAL, ABOUT = "rows.jsonl", "about.json"
NAME = 32  # hexadecimal digits of a folder's name

Arrays = dict[str, np.ndarray]


@runtime_checkable
class Work(Protocol):
    """What computes the rows. It is begun only if some are missing; ``name`` is for whoever looks into the folder."""

    name: str

    def rows(self, start: int, stop: int) -> Arrays:
        """Return the arrays of some rows: the same for the same rows, whatever was computed before."""

    def constants(self) -> Arrays:
        """Return arrays that are not by row; asked for after some rows."""


def computed(work: Work, rows: int) -> Arrays:
    """Return all arrays, kept nowhere.

    Parameters
    ----------
    work
        What computes them.
    rows
        How many there are.
    """
    starts = track(range(0, rows, SHARD), "teacher")
    parts = [work.rows(start, min(start + SHARD, rows)) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} | work.constants()


def known(root: Path, about: Mapping[str, Any], rows: int) -> Arrays | None:
    """Return arrays that are wholly kept, mapped into memory; None where something is missing or damaged.

    Parameters
    ----------
    root
        Folder of all that is kept. Nothing is written.
    about
        What the rows are, as a tree: all that they depend on.
    rows
        How many there are.
    """
    entry = _Entry(root, about, rows)
    return entry.mapped() if entry.folder.is_dir() and not entry.missing() else None


def kept(root: Path, about: Mapping[str, Any], rows: int, work: Work) -> Arrays:
    """Return the arrays, mapped into memory; what is not kept yet is computed first.

    Parameters
    ----------
    root, about, rows
        As in `known`.
    work
        What computes them.

    Raises
    ------
    InputError
        The place cannot be written. What was computed before is kept.
    """
    entry = _Entry(root, about, rows)
    with lock(entry.folder):
        missing = entry.missing()
        if missing:
            entry.tell_damage()
        for start in track(missing, "teacher"):
            arrays = work.rows(start, min(start + SHARD, rows))
            with _telling(entry):
                entry.write(start, arrays, work)
        return entry.mapped()


@contextmanager
def writable(root: Path) -> Iterator[bool]:
    """Yield whether files can be made in a folder, which is made if it is missing; it goes again if nothing came into it."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                found = True
        except OSError:
            found = False
        yield found
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


class _Entry:
    """One folder, and what is known of its content.

    Parameters
    ----------
    root, about, rows
        As in `known`.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], rows: int):
        self.about, self.count = {**about, "rows": rows, "shard": SHARD}, rows
        self.folder = root / files.digest(self.about)[:NAME]
        self.damaged = 0
        self.sound: dict[int, dict[str, str]] = {}
        self.constants: dict[str, str] = {}

    def missing(self) -> list[int]:
        """Read the journal and check what it lists; return where the shards begin that have to be computed."""
        shards: dict[int, dict[str, str]] = {}
        try:
            for line in files.read_lines(self.folder / JOURNAL):
                if "constants" in line:
                    self.constants = line["constants"]
                else:
                    shards[line["start"]] = line["digests"]
        except (InputError, KeyError, TypeError):
            shards, self.damaged = {}, 1
        constants = all(_digest(self.folder / f"{name}.npy") == digest for name, digest in self.constants.items())
        if not constants or (shards and not self._is_whole(next(iter(shards.values())))):
            shards, self.constants, self.damaged = {}, {}, len(shards) or 1
        self.sound = {start: digests for start, digests in shards.items() if self._is_sound(start, digests)}
        self.damaged += len(shards) - len(self.sound)
        return [start for start in range(0, self.count, SHARD) if start not in self.sound]

    def _is_whole(self, names: Mapping[str, str]) -> bool:
        try:
            return all(len(self._array(name)) == self.count for name in names)
        except (OSError, ValueError):
            return False

    def _is_sound(self, start: int, digests: Mapping[str, str]) -> bool:
        part = slice(start, start + SHARD)
        return all(files.digest(self._array(name)[part].tobytes()) == digest for name, digest in digests.items())

    def _array(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    def mapped(self) -> Arrays:
        """Return the arrays of a complete folder."""
        names = next(iter(self.sound.values()))
        whole = {name: np.load(self.folder / f"{name}.npy", allow_pickle=False) for name in self.constants}
        return {name: self._array(name) for name in names} | whole

    def tell_damage(self) -> None:
        """Warn of shards that are not what the journal says."""
        if self.damaged:
            shards = "one shard" if self.damaged == 1 else f"{self.damaged} shards"
            text = f"{self.folder} is damaged: {shards} of its rows, on which the teacher is run again."
            warnings.warn(text, SanovWarning, stacklevel=5)

    def write(self, start: int, arrays: Arrays, work: Work) -> None:
        """Write a shard, and then its line; before the first one, all that is not by row."""
        if not self.sound:
            (self.folder / JOURNAL).unlink(missing_ok=True)
            files.write_json(self.folder / ABOUT, {"name": work.name, **self.about})
            constants = {name: self._save(name, values) for name, values in work.constants().items()}
            for name, values in arrays.items():
                self._make(name, values)
            files.append_line(self.folder / JOURNAL, {"constants": constants})
            self.constants = constants
        digests = {name: self._put(name, start, values) for name, values in arrays.items()}
        files.append_line(self.folder / JOURNAL, {"start": start, "digests": digests})
        self.sound[start] = digests

    def _save(self, name: str, values: np.ndarray) -> str:
        path = self.folder / f"{name}.npy"
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        return _digest(path)

    def _make(self, name: str, values: np.ndarray) -> None:
        """Make the file of an array: its header, and as many empty rows as there will be."""
        shape = (self.count, *values.shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": shape}
        with files.atomic_path(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)) * values.dtype.itemsize)

    def _put(self, name: str, start: int, values: np.ndarray) -> str:
        """Write rows into an array's file and sync them; by plain writes, for a mapping dies where the disk is full."""
        data = np.ascontiguousarray(values).tobytes()
        with (self.folder / f"{name}.npy").open("r+b", buffering=0) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.seek(start * (len(data) // len(values)), 1)
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        return files.digest(data)


def _digest(path: Path) -> str:
    return files.digest(path) if path.is_file() else ""


@contextmanager
def _telling(entry: _Entry) -> Iterator[None]:
    """Tell a user what is kept when a place can no longer be written."""
    try:
        yield
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        done = sum(min(SHARD, entry.count - start) for start in entry.sound)
        fix = f"mend that and run again: {done} of {entry.count} rows are kept"
        raise InputError(f"cannot be written ({reason})", where=str(entry.folder), fix=fix) from error
