"""Every error that sanov raises on purpose.

::

    SanovError
    ├── InputError      the user's data, options or paths are at fault (the command line exits with 2)
    └── MissingExtra    an optional package is not installed (exit 2, with the command that installs it)

    SanovWarning        a result was computed, but the user should know something about it
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

__all__ = ["InputError", "MissingExtra", "SanovError", "SanovWarning", "require"]


class SanovError(Exception):
    """Base class of all errors raised on purpose."""


class InputError(SanovError):
    """A user's mistake, told in one message: where, what was found, what is expected, what to do.

    Parameters
    ----------
    found
        What was found, as a statement: ``"the value is 'abc'"``.
    where
        The file, row, column or field.
    expected
        What was expected instead.
    fix
        What to do, as an instruction.
    """

    def __init__(self, found: str, *, where: str | None = None, expected: str | None = None, fix: str | None = None):
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        message = f"{where}: {found}" if where else found
        if expected:
            message += f"; expected {expected}"
        if fix:
            message += f". {_begun(fix)}"
        super().__init__(message if message.endswith((".", "?", "`", "'")) else message + ".")

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(type(self), where=self.where, expected=self.expected, fix=self.fix)
        return rebuild, (self.found,)  # so that a worker process can hand it over


def _begun(fix: str) -> str:
    """Return an instruction as a sentence; one that begins with an option or a command can be copied as it is."""
    first, _, _ = fix.partition(" ")
    copied = "=" in first or "." in first.rstrip(".") or first == "sanov"
    return fix if copied else f"{fix[0].upper()}{fix[1:]}"


class MissingExtra(SanovError, ImportError):
    """An optional package is missing; the message holds the command that installs it."""

    def __init__(self, module: str, extra: str):
        self.module, self.extra = module, extra
        super().__init__(
            f"this needs the package '{module}', which is not installed. Run: pip install 'sanov[{extra}]'"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.module, self.extra)


class SanovWarning(UserWarning):
    """Something about a result that the user should know."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra provides it.

    Parameters
    ----------
    module
        Dotted name of the module.
    extra
        The extra of sanov that installs it.

    Raises
    ------
    MissingExtra
        If the module's top-level package is not installed. An error inside an installed package is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(module.split(".")[0], extra) from None
