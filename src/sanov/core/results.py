"""What a tested claim leaves behind: a JSON file of verdicts, effects and provenance, of one shape for all systems."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from sanov.core import files
from sanov.core.errors import InputError

__all__ = ["ClaimResult", "PartResult", "provenance", "read_result", "write_result"]

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("numpy", "scipy", "polars", "torch", "accelerate", "transformers", "scikit-learn", "statsmodels")


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinities: a number that is not finite is absent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartResult(_Record):
    """One statement, the effect in each seed, its mean with a 95 % interval, and the verdict."""

    name: str
    statement: str
    kind: str
    bound: float | tuple[float, float]
    required: bool
    unit: str = ""
    values: dict[str, Number]
    mean: Number
    low: Number
    high: Number
    verdict: str
    reason: str | None = None

    def line(self) -> str:
        """Verdict, name, effect with its interval, and what was asked, in one line."""
        reason = f" ({self.reason})" if self.reason else ""
        optional = "" if self.required or self.kind == "reported" else ", not required"
        return f"{self.verdict}{reason}: {self.name}: {self.effect()}{optional}"

    def effect(self) -> str:
        """Return the mean effect with its interval and number of seeds, next to the bound."""
        if self.mean is None:
            return "no value"
        unit = f" {self.unit}" if self.unit else ""
        interval = "" if self.low is None or self.high is None else f", 95 % [{self.low:.4g}, {self.high:.4g}]"
        seeds = f"{len(self.values)} seed{'' if len(self.values) == 1 else 's'}"
        return f"{self.mean:.4g}{unit}{interval}, {seeds}{self._asked()}"

    def _asked(self) -> str:
        if isinstance(self.bound, tuple):
            return f", asked: within [{self.bound[0]:g}, {self.bound[1]:g}]"
        signs = {"above": ">", "not_below": ">=", "equal_to": "="}
        return f", asked: {signs[self.kind]} {self.bound:g}" if self.kind in signs else ""


class ClaimResult(_Record):
    """A paper's statement and what a run of its cells says about it.

    ``cells`` counts the cells of each stage, ``older_cells`` those run with other source than today's; ``data`` maps
    names to digests; ``figures`` maps titles to Vega-Lite specifications.
    """

    system: str
    statement: str
    source: str
    preset: str
    scale: str
    verdict: str
    parts: list[PartResult]
    cells: dict[str, int]
    older_cells: int
    cell_seconds: float
    figures: dict[str, dict[str, Any]]
    data: dict[str, str]
    provenance: dict[str, Any]
    seconds: float


def write_result(path: str | Path, result: ClaimResult) -> None:
    """Write a result as JSON, atomically."""
    files.write_json(path, result.model_dump(mode="json"))


def read_result(path: str | Path) -> ClaimResult:
    """Read a result.

    Raises
    ------
    InputError
        The file is missing or holds something else.
    """
    try:
        return ClaimResult.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"is no result of a claim ({field}: {first['msg']})", where=str(path), fix="run: sanov reproduce"
        ) from None


def provenance() -> dict[str, Any]:
    """Return what a number depends on besides its data: version, commit, Python, platform, packages, peak memory.

    It names neither the machine nor any of its folders.
    """
    return {
        "version": _version("sanov"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "peak_memory_mib": _peak_memory(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that tracks this package; None for an installed copy, even inside another checkout."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changed = _git("status", "--porcelain", "--", ".")
    commit = _git("rev-parse", "HEAD")
    return f"{commit} with changes" if commit and changed else commit


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(PACKAGE), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _peak_memory() -> float | None:
    """Largest resident memory (MiB) of this process or one of its finished children."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(max(usages) / unit, 1)
