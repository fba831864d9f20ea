"""What a tested claim leaves behind: its cells, and a JSON file of verdicts, effects and provenance."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from sanov.core import files
from sanov.core.errors import InputError

__all__ = [
    "Cell", "Cells", "ClaimResult", "MissingValue", "PartResult", "Record", "Stage", "complete", "provenance",
    "read_result", "write_result",
]  # fmt: skip

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("numpy", "scipy", "polars", "torch", "accelerate", "transformers", "scikit-learn", "statsmodels")


# -- cells ------------------------------------------------------------------------------------------------------------

Stage = Literal["shared", "tune", "compare"]


@dataclass(frozen=True)
class Cell:
    """One piece of work, named by a small dictionary such as ``{"arm": "kl", "seed": 3, "data": "digits"}``."""

    stage: Stage
    key: Mapping[str, str | int | float]

    def matches(self, match: Mapping[str, Any]) -> bool:
        """Whether every entry of `match` stands in the key."""
        return all(self.key.get(name) == value for name, value in match.items())

    def agrees(self, other: Cell) -> bool:
        """Whether the two keys say the same wherever both say something."""
        return all(other.key[name] == value for name, value in self.key.items() if name in other.key)

    def __str__(self) -> str:
        return f"{self.stage} " + " ".join(f"{name}={value}" for name, value in self.key.items())


@dataclass(frozen=True)
class Record:
    """A cell that has been run: what it returned and how long it took (seconds)."""

    cell: Cell
    values: Mapping[str, Any]
    seconds: float
    digest: str = ""
    older: bool = False  # run with other source than today's


class MissingValue(Exception):
    """A cell has no value of that name."""


class _Known(dict[str, Any]):
    """Values of a cell, of which a missing one cannot be read."""

    def __init__(self, values: Mapping[str, Any], where: str):
        super().__init__(values)
        self.where = where

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise MissingValue(f"{name} is missing in {self.where}")
        return _Known(value, self.where) if isinstance(value, Mapping) else value


def complete(records: Iterable[Record]) -> list[Record]:
    """Copy records so that reading a missing value of one raises `MissingValue`: nothing can be computed from it."""
    return [replace(record, values=_Known(record.values, str(record.cell))) for record in records]


class Cells:
    """The cells of one claim and preset on disk: one JSON line each, appended when it is done.

    Parameters
    ----------
    path, folder
        The file of lines, and the folder of what shared cells leave.
    preset, settings, data
        What a cell depends on besides its key.
    source
        Digest of today's source.
    reuse
        Accept cells of older source.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        preset: str,
        settings: Mapping[str, Any],
        *,
        data: str,
        source: str,
        reuse: bool,
    ):
        self.path, self.folder = path, folder
        self.preset, self.settings, self.data, self.source, self.reuse = preset, settings, data, source, reuse
        self.lines: dict[str, dict[str, Any]] = {}

    def _keep(self, line: dict[str, Any]) -> None:
        current = line["source"] == self.source
        if current or line["identity"] not in self.lines or self.lines[line["identity"]]["source"] != self.source:
            self.lines[line["identity"]] = line

    def identity(self, cell: Cell) -> str:
        """Hash of everything but the source."""
        return files.digest([self.preset, dict(self.settings), cell.stage, dict(cell.key), self.data])

    def digest(self, cell: Cell) -> str:
        """Hash of everything, with the source."""
        return files.digest([self.identity(cell), self.source])

    def found(self, cells: Iterable[Cell]) -> list[Record]:
        """Return those of the cells that were run, by whatever process."""
        for line in files.read_lines(self.path):
            self._keep(line)
        return [record for cell in cells if (record := self.find(cell))]

    def find(self, cell: Cell) -> Record | None:
        """Return a cell that was run, by this process or before the last call of `found`."""
        line = self.lines.get(self.identity(cell))
        if line is None or (line["source"] != self.source and not self.reuse):
            return None
        older = line["source"] != self.source
        return Record(cell, line["values"], line["seconds"], files.digest([line["identity"], line["source"]]), older)

    def lacks_files(self, cell: Cell, later: Sequence[Cell]) -> bool:
        """Whether a shared cell that was run left files which are gone, and which a later cell will need."""
        record = self.find(cell)
        if record is None or not record.values.get("files") or (self.folder / record.digest[:16]).is_dir():
            return False
        return any(cell.agrees(other) for other in later)

    def add(self, record: Record, *, mixed: bool = False) -> None:
        """Keep a cell; one that has read cells of older source is no cell of today's."""
        line: dict[str, Any] = {
            "identity": self.identity(record.cell),
            "source": "mixed" if mixed else self.source,
            "stage": record.cell.stage,
            "key": dict(record.cell.key),
            "values": dict(record.values),
            "seconds": record.seconds,
        }
        files.append_line(self.path, line)
        self.lines[line["identity"]] = line


# -- verdicts ---------------------------------------------------------------------------------------------------------


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
        noun = "seed" if all(map(str.isdecimal, self.values)) else "value"  # published results have no seeds
        seeds = f"{len(self.values)} {noun}{'' if len(self.values) == 1 else 's'}"
        return f"{self.mean:.4g}{unit}{interval}, {seeds}{self._asked()}"

    def _asked(self) -> str:
        if isinstance(self.bound, tuple):
            return f", asked: within [{self.bound[0]:g}, {self.bound[1]:g}]"
        signs = {"above": ">", "not_below": ">=", "not_above": "not >", "equal_to": "="}
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
