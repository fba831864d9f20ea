"""A user's own function, named on the command line as ``module:function``."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sanov.core.errors import InputError

__all__ = ["load_function", "place_of"]


def load_function(reference: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names; modules of the working directory come first.

    Raises
    ------
    InputError
        The module cannot be imported, or has no such function.
    """
    module, colon, name = reference.partition(":")
    if not (colon and name and module) or module.endswith(".py"):
        fix = f"write {Path(module).stem or 'module'}:{name or 'function'}, for a module in the working directory"
        raise InputError(f"the value is {reference!r}", expected="module:function", fix=fix)
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # the module is the user's, and may fail in any way
        found = f"the module cannot be imported ({type(error).__name__}: {error})"
        raise InputError(found, where=reference, expected="module:function") from error
    finally:
        sys.path.remove(here)
    function = getattr(loaded, name, None)
    if not callable(function):
        raise InputError(f"'{module}' has no function '{name}'", where=reference, expected="module:function")
    found_function: Callable[..., Any] = function
    return found_function


def place_of(error: BaseException, function: Callable[..., Any]) -> str:
    """Return where an error arose, as file and line: in the function's own file, if it passed through that."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    inside = [(frame, line) for frame, line in frames if frame.f_code.co_filename == own]
    if not frames:
        return "in no line of its own"
    frame, line = (inside or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}, line {line}"
