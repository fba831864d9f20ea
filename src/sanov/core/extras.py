"""Which optional packages an extra of sanov needs, and which of them are missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["missing"]


def missing(extras: str) -> list[str]:
    """Names of the distributions that the extras (separated by commas) need and that are not installed."""
    absent = []
    for name in sorted({name for extra in filter(None, extras.split(",")) for name in _needs(extra.strip())}):
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def _needs(extra: str) -> Iterator[str]:
    for line in requires("sanov") or []:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", marker):
            continue
        name, inner = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == "sanov":
            for other in inner.split(","):
                yield from _needs(other.strip())
        else:
            yield name
