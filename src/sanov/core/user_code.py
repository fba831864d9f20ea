"""A user's own function, named on the command line as ``module:function``."""

from __future__ import annotations

import importlib
import sys
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


def place_of(error: BaseException) -> str:
    """Return where an error arose: file and line of the innermost frame."""
    trace, place = error.__traceback__, "an unknown place"
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
