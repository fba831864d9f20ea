"""Files that are either written whole or not at all, and digests.

A write goes to a temporary beside its target, is synced to the disk, and then takes the target's place in one step. A
killed process, a full disk or an exception leaves the target as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from decimal import Decimal
from io import FileIO
from pathlib import Path
from typing import Any

from sanov.core.errors import InputError
from sanov.core.locks import lock

__all__ = [
    "append_line",
    "atomic_folder",
    "atomic_path",
    "check_writable",
    "digest",
    "lock",
    "open_as_usual",
    "plain",
    "read_json",
    "read_lines",
    "to_json",
    "write_bytes",
    "write_json",
    "write_text",
]

PRIVATE = 0o600  # the mode of a file that its owner alone may read
DAY = 86_400.0  # seconds; a temporary that is older belongs to a process that was killed
DEVICE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # faults of the place, not of the writer


# -- atomic writes ----------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Missing parents are made. After an exception nothing is left of the temporary and `path` is untouched.

    Raises
    ------
    InputError
        The place cannot be written: a full disk, no permission, a folder of that name.
    """
    target = _resolved(path)
    with _telling(target):
        temporary = _temporary(target)
    try:
        with _telling(target, temporary):
            yield temporary
            if target.is_file():
                shutil.copymode(target, temporary)
            else:
                _open_as_usual([temporary])
            _sync(temporary)
            temporary.replace(target)
            _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it becomes `path` when the block ends well.

    An existing folder `path` is replaced as a whole, and keeps its content after an exception. After a kill
    between the two renames it lies beside as `.NAME.old`, until the next writer takes it back.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    target = _resolved(path)
    with _telling(target):
        _take_back(target)
        temporary = _temporary(target)
        temporary.mkdir()
    try:
        with _telling(target, temporary):
            yield temporary
            open_as_usual(temporary)
            _sync_tree(temporary)
            _replace_folder(temporary, target)
            _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def open_as_usual(folder: str | Path) -> None:
    """Give the files of a folder that their writer kept to itself (as safetensors does) the mode that umask leaves."""
    _open_as_usual(path for path in sorted(Path(folder).rglob("*")) if path.is_file())


def _open_as_usual(paths: Iterable[Path]) -> None:
    private = [path for path in paths if stat.S_IMODE(path.stat().st_mode) == PRIVATE]
    if not private:
        return
    probe = private[0].with_name(f".{private[0].stem}.tmp-{secrets.token_hex(6)}")  # umask can be asked in no other way
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in private:
        path.chmod(mode)


def _replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another. No portable call swaps two folders, so the old one steps aside first."""
    if not target.is_dir():
        new.replace(target)
        return
    aside = _aside(target)
    target.replace(aside)
    try:
        new.replace(target)
    except BaseException:
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    """Where an old folder waits for the new one: a name that `_temporary` clears away at no age."""
    return target.with_name(f".{target.name}.old")


def _take_back(target: Path) -> None:
    """Finish what a killed process began: the old folder comes back, or goes if the new one is in its place."""
    aside = _aside(target)
    if not aside.is_dir():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.replace(target)


def _resolved(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def _temporary(target: Path) -> Path:
    """Return a free name beside the target, of the same suffix, and clear away what killed processes left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    start = f".{target.stem}.tmp-"
    for leftover in target.parent.iterdir():
        if leftover.name.startswith(start) and leftover.name.endswith(target.suffix):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > DAY:
                    _remove(leftover)
    return target.with_name(f"{start}{secrets.token_hex(6)}{target.suffix}")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(file: Path) -> None:
    with file.open("r+b") as handle:
        os.fsync(handle.fileno())


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
        elif path.is_file():
            _sync(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder as a file
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems sync files only
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


@contextmanager
def _telling(target: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn an operating system's error about the target into a message for the user.

    Where a caller's block runs inside, only faults of the target, its temporary or the device are ours to tell.
    """
    try:
        yield
    except OSError as error:
        about = str(error.filename) if error.filename is not None else ""
        ours = error.errno in DEVICE or about == str(target) or about.startswith(str(temporary))
        if temporary is not None and not ours:
            raise
        reason = error.strerror or str(error)
        raise InputError(f"cannot be written ({reason})", where=str(target), fix="nothing was changed") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically; missing parents are made."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with the same line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


# -- JSON -------------------------------------------------------------------------------------------------------------


def plain(tree: Any) -> Any:
    """Copy a tree of anything usual into what JSON can hold. NaN and infinities become None."""
    return _plain(tree, finite=True)


def _plain(tree: Any, finite: bool) -> Any:
    match tree:
        case None | bool() | int() | str():
            return tree
        case float():
            return None if finite and not math.isfinite(tree) else float(tree)
        case Mapping():
            return {str(key): _plain(value, finite) for key, value in tree.items()}
        case list() | tuple():
            return [_plain(value, finite) for value in tree]
        case set() | frozenset():
            return sorted((_plain(value, finite) for value in tree), key=repr)
        case Path():
            return tree.as_posix()
        case timedelta():
            return tree.total_seconds()
        case Decimal():
            return _plain(float(tree), finite)
        case bytes():
            return tree.hex()
    return _plain(_opened(tree), finite)


def _opened(thing: Any) -> Any:
    """Turn an array, a number of NumPy, a series, a model or a date into something simpler."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return asdict(thing)
    for method in ("tolist", "to_list", "model_dump", "isoformat"):
        if hasattr(thing, method):
            return getattr(thing, method)()
    raise TypeError(f"{type(thing).__name__} cannot be written as JSON")


def to_json(tree: Any, indent: int | None = None) -> str:
    """Return a tree as JSON text; NaN and infinities become null."""
    return json.dumps(plain(tree), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | Path, tree: Any) -> None:
    """Write a tree as JSON, atomically; NaN and infinities become null."""
    write_text(path, to_json(tree, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        It is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON ({error})", where=str(path)) from None


def append_line(path: str | Path, tree: Any) -> None:
    """Append a tree to a file of JSON lines: one synced write under the file's lock; missing parents are made.

    Raises
    ------
    InputError
        The place cannot be written; the file is as it was.
    """
    path = Path(path)
    line = to_json(tree).encode("utf-8") + b"\n"
    with _telling(path), lock(path), path.open("a+b", buffering=0) as file:
        end = _drop_torn_line(file)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _drop_torn_line(file: FileIO) -> int:
    """Cut off a last line that a killed process left without its end; return the length that remains."""
    file.seek(0)
    content = file.readall()
    end = content.rfind(b"\n") + 1
    file.truncate(end)
    return end


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a missing file has none, and a torn last line is dropped.

    Raises
    ------
    InputError
        A line in the middle is not JSON.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise InputError("is not JSON", where=f"{path}, line {number}", fix="delete that line") from None
    return found


# -- digests and checks -----------------------------------------------------------------------------------------------


def digest(source: Any) -> str:
    """SHA-256 (hex) of bytes, of a `Path` (a file, or a folder with its names), or of a tree as canonical JSON."""
    if isinstance(source, Path):
        return _digest_folder(source) if source.is_dir() else _digest_file(source)
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    text = json.dumps(_plain(source, finite=False), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None


def _digest_folder(path: Path) -> str:
    inside = {file.relative_to(path).as_posix(): _digest_file(file) for file in path.rglob("*") if file.is_file()}
    return digest(inside)


def check_writable(path: str | Path, *, folder: bool | None = None) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Parameters
    ----------
    path
        Where a file or a folder will be written.
    folder
        Whether it will be a folder; by default, what has no suffix is one.

    Raises
    ------
    InputError
        The parent is missing, a file stands where a folder is meant or the reverse, or there is no permission.
    """
    path = Path(path)
    folder = (path.suffix == "" or path.is_dir()) if folder is None else folder
    if folder and path.exists() and not path.is_dir():
        raise InputError("is a file", where=str(path), expected="a folder", fix="choose another place")
    if not folder and path.is_dir():
        raise InputError("is a folder", where=str(path), expected="a file", fix="add a file name")
    place = path if path.is_dir() else path.parent
    if not place.is_dir():
        raise InputError("there is no such folder", where=str(place), fix="make it first")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(path), fix="choose another place") from None
