"""A child process that checks answers with libraries which may never come back: it is ended where it takes too long.

SymPy, on which they stand, can be kept busy for hours by ten characters (``9^{9^{9^9}}``), or fill the memory; an alarm works
in the main thread of some systems only. A process can be ended anywhere.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from importlib.util import find_spec
from io import TextIOBase
from pathlib import Path
from typing import Any

from sanov.core.errors import InputError, MissingExtra

__all__ = ["AnswerProcess", "answer_process"]

SCRIPT = Path(__file__).with_name("answer_script.py")
PACKAGES = {"math": ("math_verify", "language"), "gym": ("reasoning_gym", "reasoning")}  # package, extra
PATIENCE = 10.0  # seconds for one answer
START = 120.0  # seconds for the imports


class AnswerProcess:
    """One child, which is started when it is first asked, and anew after it was ended.

    Parameters
    ----------
    patience
        Seconds after which a question stays without an answer.
    """

    def __init__(self, patience: float = PATIENCE):
        self.patience = patience
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._finish: weakref.finalize[[subprocess.Popen[str], threading.Thread], AnswerProcess] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._loaded: set[str] = set()

    def ask(self, kind: str, **question: Any) -> Any:
        """Return the answer to a question; None where it fails, or is not there in time.

        Parameters
        ----------
        kind
            ``math`` or ``gym``.
        question
            What the script's function of that kind takes.

        Raises
        ------
        MissingExtra
            The package that would answer is not installed.
        """
        package, extra = PACKAGES[kind]
        if find_spec(package) is None:
            raise MissingExtra(package, extra)
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            if kind not in self._loaded:
                if self._say({"load": package}, START) is not True:
                    raise InputError(f"the package {package!r} is installed, but cannot be imported")
                self._loaded.add(kind)
            return self._say({"kind": kind, **question}, self.patience)

    def end(self) -> None:
        """End the child, if there is one."""
        if self._finish is not None:
            self._finish()
        self._child = None

    def _start(self) -> None:
        self.end()
        # -P keeps the script's folder off the path, where its neighbours would hide modules of the same name.
        command = [sys.executable, "-P", str(SCRIPT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, **pipes, text=True, encoding="utf-8")  # type: ignore[call-overload]
        self._child, self._lines, self._loaded = child, queue.Queue(), set()
        reader = threading.Thread(target=_forward, args=(child.stdout, self._lines), daemon=True)
        reader.start()
        self._finish = weakref.finalize(self, _end, child, reader)

    def _say(self, question: dict[str, Any], seconds: float) -> Any:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except (queue.Empty, OSError):
            line = ""
        except BaseException:  # an interruption; the answer that is under way must not be taken for the next one
            self.end()
            raise
        if not line.endswith("\n"):  # too slow, or dead
            self.end()
            return None
        return json.loads(line)


def _forward(stream: TextIOBase, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")
    stream.close()


def _end(child: subprocess.Popen[str], reader: threading.Thread) -> None:
    child.kill()
    child.wait()
    reader.join()
    with suppress(OSError):  # what was not yet sent has nobody to go to
        child.stdin.close()  # type: ignore[union-attr]


@functools.cache
def _of(_process: int) -> AnswerProcess:
    return AnswerProcess()


def answer_process() -> AnswerProcess:
    """Return this process's one child; a forked process gets its own."""
    return _of(os.getpid())
