"""Move a model onto a reference distribution under a divergence: published methods, as software people use.

``sanov.pn(frame, family="gaussian")`` applies a system; ``sanov.sinkd.fit(...)`` reaches into one. Nothing heavy is
imported before it is used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["__version__"]

try:
    __version__ = version("sanov")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    from sanov.systems import BASELINES, SYSTEMS, System

    for row in SYSTEMS + BASELINES:
        if row.name == name:
            return System(row)
    if name in {"baselines", "bridges", "claims", "core", "data", "learning", "nets", "systems"} | _MATHEMATICS:
        return importlib.import_module(f"sanov.{name}")
    raise AttributeError(f"module 'sanov' has no attribute '{name}'")


def __dir__() -> list[str]:
    from sanov.systems import BASELINES, SYSTEMS

    return sorted([*__all__, *_MATHEMATICS, "systems", *(row.name for row in SYSTEMS + BASELINES)])


_MATHEMATICS = {
    "advantages",
    "comparisons",
    "divergences",
    "estimators",
    "families",
    "scores",
    "tilting",
    "transport",
}
