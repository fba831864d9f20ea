"""A client of servers that speak JSON: what fails is asked again for a while, and then stops the run so that it can go on."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from sanov.core.errors import InputError, SanovWarning

__all__ = ["KEY", "PATIENCE", "Client"]

PATIENCE = 600.0  # seconds that a request may take, with all its attempts
KEY = "SANOV_SERVER_KEY"  # environment variable with what a server was started with as its --api-key
FIRST, LONGEST = 0.5, 30.0  # seconds between attempts: twice as many each time
SHORTEST = 1.0  # seconds that an attempt is given at least
LENGTH = 300  # characters of a server's message that are repeated
ABSENT = (404, 405, 501)  # what a server answers to a call that it does not have
AGAIN = (408, 425, 429)  # what it answers to one that may succeed later, besides 5xx


class _FailedError(Exception):
    """An attempt failed in a way that may pass."""


class Client:
    """A server, and how long it is waited for.

    Parameters
    ----------
    url
        ``http://HOST:PORT``, with or without ``/v1`` behind it; ``#NAME`` at the end names one of several models.
    patience
        Seconds that a request may take in all, with the attempts after those that failed.
    clock, wait
        Seconds of a clock, and how to wait for a number of them, or for an event that ends the waiting.

    Attributes
    ----------
    url, name
        The address without its end, and the name of the model or None.

    Raises
    ------
    InputError
        It is no address.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ):
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InputError("is no address of a server", where=url, expected="http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self.name = parts.fragment or None
        self.patience, self.clock, self.wait = patience, clock, wait

    def at(self, url: str) -> Client:
        """Return a client of another address that is waited for as this one."""
        return Client(url, patience=self.patience, clock=self.clock, wait=self.wait)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, optional: bool = False) -> Any:
        """Return what the server answers to a call.

        Parameters
        ----------
        path
            Of the call.
        body
            Of a POST; none for a GET.
        optional
            Return None where the server has no such call.

        Raises
        ------
        InputError
            It gave no answer in time, refused the call, or the answer is no JSON.
        """
        return self._ask(path, body, optional, threading.Event())

    def tell(self, path: str, body: Mapping[str, Any]) -> None:
        """Make a call whose answer says no more than that it was heard, be it JSON or not.

        Raises
        ------
        InputError
            The server gave no answer in time, or refused the call.
        """
        self._answer(path, body, False, threading.Event())

    def ask_each(self, path: str, bodies: Sequence[Mapping[str, Any]], at_once: int) -> list[Any]:
        """Return the answers to several calls in their order; the first that fails for good ends the others' waiting.

        Raises
        ------
        InputError
            See `ask`.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(at_once) as pool:
            calls = [pool.submit(self._ask, path, body, False, stop) for body in bodies]
            try:
                done, _ = wait(calls, return_when=FIRST_EXCEPTION)
                for call in done:
                    call.result()
                return [call.result() for call in calls]
            finally:
                stop.set()
                for call in calls:
                    call.cancel()

    def _ask(self, path: str, body: Mapping[str, Any] | None, optional: bool, stop: threading.Event) -> Any:
        content = self._answer(path, body, optional, stop)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            shown = content[:LENGTH].decode(errors="replace") if content else ""
            raise InputError(f"the answer is {shown!r}", where=self.url + path, expected="JSON") from None

    def _answer(self, path: str, body: Mapping[str, Any] | None, optional: bool, stop: threading.Event) -> bytes | None:
        """Return what the server answers; None where the call may be absent, and is."""
        start, delay = self.clock(), FIRST
        while True:
            try:
                return self._attempt(path, body, optional, max(self._left(start), SHORTEST))
            except _FailedError as failure:
                reason = str(failure)
            left = self._left(start)
            if left <= 0 or stop.is_set():
                found = f"gave no answer within {self.patience:g} s ({reason})"
                fix = "see that the server runs, or wait longer (rollouts.patience), and go on with --resume (resume=True)"
                raise InputError(found, where=self.url + path, fix=fix)
            if delay == FIRST:
                text = f"{self.url}: no answer ({reason}); it is asked again for {self.patience:g} s"
                warnings.warn(text, SanovWarning, stacklevel=3)
            self.wait(stop, min(delay, left))
            delay = min(2 * delay, LONGEST)

    def _left(self, start: float) -> float:
        return self.patience - (self.clock() - start)

    def _attempt(self, path: str, body: Mapping[str, Any] | None, optional: bool, timeout: float) -> bytes | None:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(path, error.code, _message(error), optional)
            return None
        except (OSError, HTTPException) as error:  # refused, reset, cut off, too slow, no such host
            raise _FailedError(str(getattr(error, "reason", error)) or type(error).__name__) from None

    def _refuse(self, path: str, status: int, message: str, optional: bool) -> None:
        if status in AGAIN or (status >= 500 and status not in ABSENT):
            raise _FailedError(f"status {status}: {message}")
        if not (optional and status in ABSENT):
            fix = f"put its key into the environment variable {KEY}" if status == 401 else None
            raise InputError(
                f"the server refused the call (status {status}: {message})", where=self.url + path, fix=fix
            )


def _message(error: urllib.error.HTTPError) -> str:
    """Return what a server says of a call that it does not answer."""
    try:
        content = error.read()
        tree = json.loads(content)
    except ValueError:
        return content[:LENGTH].decode(errors="replace").strip() or str(error.reason)
    except (OSError, HTTPException):
        return str(error.reason)
    for name in ("error", "message", "detail"):
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
    return str(tree)[:LENGTH]
