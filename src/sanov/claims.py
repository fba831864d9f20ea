"""What every experiment is made of: a claim, its parts, and cells that are run once and kept.

A `Claim` splits its work into cells in three stages. ``shared`` makes what all arms of a seed start from (a teacher,
start weights), ``tune`` tries settings on validation data, ``compare`` runs the arms side by side. A stage reads the
one before from disk. A cell is one line of ``results/cells/<system>.jsonl`` (``build/results/cells`` for `smoke`),
keyed by a hash of its configuration, its data and the source that it uses: a run can be stopped, resumed, spread over
processes and extended by seeds without repeating anything.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sanov.comparisons import paired_effect
from sanov.core import files
from sanov.core.errors import InputError
from sanov.core.progress import track
from sanov.core.results import ClaimResult, PartResult, provenance
from sanov.core.sources import source_digest

__all__ = ["Cell", "Claim", "Context", "Part", "Preset", "Record", "judge", "reproduce"]

Stage = Literal["shared", "tune", "compare"]
Kind = Literal["above", "not_below", "within", "equal_to", "reported"]
STAGES: tuple[Stage, ...] = ("shared", "tune", "compare")
FEWEST_SEEDS = 5


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


@dataclass(frozen=True)
class Context:
    """What a cell may read besides its key: the preset's settings, and what earlier stages left."""

    preset: str
    settings: Mapping[str, Any]
    records: Sequence[Record] = ()
    folder: Path = Path()

    def shared(self, **match: Any) -> tuple[Mapping[str, Any], Path]:
        """Return the values of the one shared cell that matches, and the folder where its files are."""
        found = [record for record in self.records if record.cell.stage == "shared" and record.cell.matches(match)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} shared cells match {match}")
        return found[0].values, self.folder / found[0].digest[:16]

    def tuned(self, **match: Any) -> Record:
        """Return the tuning cell with the largest ``values["validation"]`` among those that match."""
        found = [record for record in self.records if record.cell.stage == "tune" and record.cell.matches(match)]
        if not found:
            raise LookupError(f"no tuning cell matches {match}")
        return max(found, key=lambda record: float(record.values["validation"]))


@dataclass(frozen=True)
class Preset:
    """The size of a run.

    Parameters
    ----------
    cells
        Seeds to cells, all stages.
    seeds
        How many seeds, unless the user asks for more.
    scale
        One sentence: this size next to the paper's.
    settings
        What the cells read through `Context.settings`; part of every cell's hash.
    """

    cells: Callable[[Sequence[int]], Sequence[Cell]]
    seeds: int
    scale: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One statement that can be tested.

    Parameters
    ----------
    effect
        The records of stage ``compare`` to one number per seed; empty where its cells were not run.
    kind
        ``above``: the interval lies above the bound. ``not_below``: it does not reach below it. ``within``: it lies
        between two bounds. ``equal_to``: it covers the bound. ``reported``: no verdict.
    sanity
        Records to the reason why these data say nothing about the part, or None.
    """

    name: str
    statement: str
    effect: Callable[[Sequence[Record]], Mapping[int, float]]
    kind: Kind = "above"
    bound: float | tuple[float, float] = 0.0
    required: bool = True
    sanity: Callable[[Sequence[Record]], str | None] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Claim:
    """A paper's statement, how its cells are run, and the parts that decide it.

    Parameters
    ----------
    run
        ``run(cell, context, folder) -> values``: a pure function of the key, the settings, and what earlier stages
        left.
        A shared cell may leave files in `folder`.
    data
        Settings to ``{name: digest}`` of the data that the cells read.
    holds
        Verdicts by part name to the verdict of the claim, where it is not "all required parts hold".
    figures
        Records of stage ``compare`` and the judged parts to Vega-Lite specifications by title.
    extras
        The extra of sanov that the cells need; empty for the core install.
    """

    system: str
    statement: str
    source: str
    parts: Sequence[Part]
    presets: Mapping[str, Preset]
    run: Callable[[Cell, Context, Path], Mapping[str, Any]]
    data: Callable[[Mapping[str, Any]], Mapping[str, str]]
    holds: Callable[[Mapping[str, str]], str] | None = None
    figures: Callable[[Sequence[Record], Sequence[PartResult]], Mapping[str, Mapping[str, Any]]] | None = None
    extras: str = ""


# -- verdicts ---------------------------------------------------------------------------------------------------------


def judge(part: Part, records: Sequence[Record], *, fewest: int = FEWEST_SEEDS) -> PartResult:
    """Judge a part by the 95 % interval of its mean effect over the seeds (paired t).

    Parameters
    ----------
    part
        The part.
    records
        Records of stage ``compare``.
    fewest
        Fewer seeds than this are ``inconclusive (n seeds)``.
    """
    values = {str(seed): float(value) for seed, value in sorted(part.effect(records).items())}
    effect = paired_effect(list(values.values())) if len(values) > 1 else None
    reason = part.sanity(records) if part.sanity and values else None
    if not values:
        verdict = "not run"
    elif part.kind == "reported":
        verdict = "reported"
    elif reason:
        verdict = "inconclusive"
    elif effect is None or len(values) < fewest:
        verdict = f"inconclusive ({len(values)} seed{'s' if len(values) > 1 else ''})"
    else:
        verdict = _verdict(part, effect.low, effect.high)
    return PartResult(
        name=part.name,
        statement=part.statement,
        kind=part.kind,
        bound=part.bound,
        required=part.required,
        unit=part.unit,
        values=values,
        mean=effect.mean if effect else next(iter(values.values()), None),
        low=effect.low if effect else None,
        high=effect.high if effect else None,
        verdict=verdict,
        reason=reason,
    )


def _verdict(part: Part, low: float, high: float) -> str:
    if isinstance(part.bound, tuple):
        below, above = part.bound
        if below <= low and high <= above:
            return "holds"
        return "fails" if high < below or low > above else "inconclusive"
    if part.kind == "equal_to":
        return "holds" if low <= part.bound <= high else "fails"
    reached = low > part.bound if part.kind == "above" else low >= part.bound
    return "holds" if reached else "fails" if high < part.bound else "inconclusive"


def _all_required(parts: Sequence[PartResult]) -> str:
    verdicts = [part.verdict for part in parts if part.required and part.kind != "reported"]
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts and all(verdict == "holds" for verdict in verdicts) else "inconclusive"


# -- the runner -------------------------------------------------------------------------------------------------------


def reproduce(
    claim: Claim,
    preset: str = "paper",
    *,
    seeds: int = 0,
    jobs: int = 1,
    backend: str = "loky",
    reuse: bool = False,
    only: Mapping[str, str] | None = None,
) -> ClaimResult:
    """Run the cells of a claim that are not yet on disk, judge its parts and write ``results/<system>-<preset>.json``.

    Parameters
    ----------
    claim, preset
        The claim and the size of the run. `smoke` is written under ``build/``.
    seeds
        Number of seeds; 0 for the preset's.
    jobs, backend
        Processes, and joblib's backend (``loky``, ``ray``, ``dask``).
    reuse
        Accept cells of older source; the result counts them.
    only
        Run the cells whose key has these entries (as text), and those that name none of them. Others are judged where
        they were run before, and their parts are ``not run`` where they were not.

    Raises
    ------
    InputError
        Unknown preset.
    """
    if preset not in claim.presets:
        raise InputError("there is no such preset", where=preset, expected=" or ".join(claim.presets))
    start = time.monotonic()
    store = _Store(claim, preset, reuse)
    cells = list(claim.presets[preset].cells(range(seeds or claim.presets[preset].seeds)))
    _check_budget(cells)
    records: list[Record] = []
    for stage in STAGES:
        records += _run_stage(stage, cells, records, store, Work(jobs, backend, only or {}))
    result = _result(claim, preset, records, time.monotonic() - start)
    files.write_json(store.base / f"{claim.system}-{preset}.json", result.model_dump(mode="json"))
    return result


def _check_budget(cells: Iterable[Cell]) -> None:
    """Every arm gets the same number of tuning trials on each data set."""
    trials = Counter((cell.key.get("data"), cell.key.get("arm")) for cell in cells if cell.stage == "tune")
    if len(set(trials.values())) > 1:
        raise ValueError(f"arms differ in their number of tuning trials: {dict(trials)}")


@dataclass(frozen=True)
class Work:
    """How much is run, and where."""

    jobs: int
    backend: str
    only: Mapping[str, str]

    def wants(self, cell: Cell) -> bool:
        """Whether a cell is to be run where it is not on disk."""
        return all(str(cell.key.get(name, value)) == value for name, value in self.only.items())


def _run_stage(
    stage: Stage, cells: Sequence[Cell], before: Sequence[Record], store: _Store, work: Work
) -> list[Record]:
    wanted = [cell for cell in cells if cell.stage == stage]
    missing = [cell for cell in wanted if work.wants(cell) and not store.find(cell)]
    later = [cell for cell in cells if cell.stage != "shared" and work.wants(cell) and not store.find(cell)]
    missing += [cell for cell in wanted if stage == "shared" and store.lacks_files(cell, later)]
    context = Context(store.preset, store.settings, tuple(before), store.folder)
    fresh = _spread(store, missing, context, work)
    for record in track(fresh, f"{store.claim.system}: {stage}", total=len(missing)):
        store.add(record)
    return [found for cell in wanted if (found := store.find(cell))]


def _spread(store: _Store, cells: Sequence[Cell], context: Context, work: Work) -> Iterator[Record]:
    module = f"sanov.experiments.{store.claim.system}"
    if work.jobs == 1 or len(cells) < 2:
        for cell in cells:
            yield _run_cell(store.claim.run, cell, context, store.digest(cell))
        return
    from joblib import Parallel, delayed, parallel_config

    limit: dict[str, Any] = {"inner_max_num_threads": 1} if work.backend == "loky" else {}
    with parallel_config(backend=work.backend, n_jobs=work.jobs, **limit):
        tasks = (delayed(_run_by_name)(module, cell, context, store.digest(cell)) for cell in cells)
        yield from Parallel(return_as="generator_unordered")(tasks)


def _run_by_name(module: str, cell: Cell, context: Context, digest: str) -> Record:
    return _run_cell(importlib.import_module(module).CLAIM.run, cell, context, digest)


def _run_cell(
    run: Callable[[Cell, Context, Path], Mapping[str, Any]], cell: Cell, context: Context, digest: str
) -> Record:
    start = time.monotonic()
    if cell.stage == "shared":
        with files.atomic_folder(context.folder / digest[:16]) as folder:
            values = dict(run(cell, context, folder))
            values["files"] = sorted(path.name for path in folder.iterdir())
    else:
        values = dict(run(cell, context, Path()))
    return Record(cell, values, round(time.monotonic() - start, 3), digest)


class _Store:
    """The cells of one claim and preset on disk: one JSON line each, appended when it is done."""

    def __init__(self, claim: Claim, preset: str, reuse: bool):
        self.claim, self.preset, self.reuse = claim, preset, reuse
        self.settings = claim.presets[preset].settings
        self.base = Path("build/results" if preset == "smoke" else "results")
        self.path = self.base / "cells" / f"{claim.system}.jsonl"
        self.folder = Path("build") / "shared" / claim.system
        self.source = source_digest(f"sanov.experiments.{claim.system}")
        self.data = files.digest(dict(claim.data(self.settings)))
        self.lines: dict[str, dict[str, Any]] = {}
        for line in files.read_lines(self.path):
            self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        current = line["source"] == self.source
        if current or line["identity"] not in self.lines or self.lines[line["identity"]]["source"] != self.source:
            self.lines[line["identity"]] = line

    def identity(self, cell: Cell) -> str:
        """Hash of everything but the source."""
        return files.digest([self.preset, dict(self.settings), cell.stage, dict(cell.key), self.data])

    def digest(self, cell: Cell) -> str:
        return files.digest([self.identity(cell), self.source])

    def find(self, cell: Cell) -> Record | None:
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

    def add(self, record: Record) -> None:
        line: dict[str, Any] = {
            "identity": self.identity(record.cell),
            "source": self.source,
            "stage": record.cell.stage,
            "key": dict(record.cell.key),
            "values": dict(record.values),
            "seconds": record.seconds,
        }
        files.append_line(self.path, line)
        self.lines[line["identity"]] = line


def _result(claim: Claim, preset: str, records: Sequence[Record], seconds: float) -> ClaimResult:
    compared = [record for record in records if record.cell.stage == "compare"]
    parts = [judge(part, compared) for part in claim.parts]
    verdicts = {part.name: part.verdict for part in parts}
    return ClaimResult(
        system=claim.system,
        statement=claim.statement,
        source=claim.source,
        preset=preset,
        scale=claim.presets[preset].scale,
        verdict=claim.holds(verdicts) if claim.holds else _all_required(parts),
        parts=parts,
        cells={stage: sum(record.cell.stage == stage for record in records) for stage in STAGES},
        older_cells=sum(record.older for record in records),
        cell_seconds=round(sum(record.seconds for record in records), 1),
        figures=dict(claim.figures(compared, parts)) if claim.figures and compared else {},
        data=dict(claim.data(claim.presets[preset].settings)),
        provenance=provenance(),
        seconds=round(seconds, 1),
    )
