"""The bibliography that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path

from sanov.core.errors import InputError

__all__ = ["citation"]

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "references.bib", PACKAGE.parents[1] / "docs" / "references.bib")  # in a wheel; in the repository


def citation(key: str) -> str:
    """Return the BibTeX entry of a key.

    Raises
    ------
    InputError
        There is no such entry.
    """
    place = next(path for path in PLACES if path.is_file())
    found = re.search(
        rf"^@\w+\{{{re.escape(key)},.*?^\}}$", place.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise InputError("is no key of the bibliography", where=key)
    return found[0]
