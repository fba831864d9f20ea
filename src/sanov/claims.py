"""What every experiment is made of: a claim, its parts, and cells that are run once and kept.

A `Claim` splits its work into cells in three stages. ``shared`` makes what all arms of a seed start from (a teacher,
start weights), ``tune`` tries settings on validation data, ``compare`` runs the arms side by side. A stage reads the
one before from disk, and a comparison waits for all its trials. A cell is one line of ``results/cells/<system>.jsonl``
(``build/results/cells`` for `smoke`), keyed by a hash of its configuration, its data and the source that it uses: a run
can be stopped, resumed, spread over processes and extended by seeds without repeating anything.
"""

from __future__ import annotations

import importlib
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sanov.comparisons import Effect, Interval, paired_effect
from sanov.core import files
from sanov.core.errors import InputError, SanovWarning, require
from sanov.core.progress import track
from sanov.core.results import (
    Cell,
    Cells,
    ClaimResult,
    MissingValue,
    PartResult,
    Record,
    Stage,
    complete,
    provenance,
)  # fmt: skip
from sanov.core.sources import source_digest
from sanov.core.workers import BACKENDS, spread

__all__ = ["Cell", "Claim", "Context", "Part", "Preset", "Record", "judge", "reproduce"]

Kind = Literal["above", "not_below", "not_above", "within", "equal_to", "reported"]
STAGES: tuple[Stage, ...] = ("shared", "tune", "compare")
FEWEST_SEEDS = 5
Found = Effect | Interval | None


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
        """Return the tuning cell with the largest ``values["validation"]``, not null, among those that match."""
        found = [record for record in self.records if record.cell.stage == "tune" and record.cell.matches(match)]
        found = [record for record in found if record.values["validation"] is not None]
        if not found:
            raise LookupError(f"no tuning cell with a validation result matches {match}")
        return max(found, key=lambda record: float(record.values["validation"]))


@dataclass(frozen=True)
class Preset:
    """The size of a run.

    Parameters
    ----------
    cells
        Seeds to cells, all stages.
    seeds
        How many seeds, decided beforehand. With any other number all verdicts are inconclusive.
    scale
        One sentence: this size next to the paper's.
    settings
        What the cells read through `Context.settings`; part of every cell's hash.
    parts
        The parts at this size, where they are not those of the claim.
    extras
        The extra of sanov that the cells need; empty for the core install.
    """

    cells: Callable[[Sequence[int]], Sequence[Cell]]
    seeds: int
    scale: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    extras: str = ""


@dataclass(frozen=True)
class Part:
    """One statement that can be tested.

    Parameters
    ----------
    effect
        The records of stage ``compare`` to one number per seed; empty where its cells were not run.
    kind
        ``above``: the interval lies above the bound. ``not_below``: it does not reach below it. ``not_above``: it does not
        lie above it (a wide one never does: add a `sanity` check). ``within``: it lies between two bounds. ``equal_to``: all
        values equal the bound. ``reported``: no verdict.
    sanity
        Records to the reason why these data say nothing about the part, or None.
    interval
        Records to the effect with an interval of its own, where values depend on one another; None for Student's t.
    over
        What a value is of; results that were published before anybody planned have no seeds.
    """

    name: str
    statement: str
    effect: Callable[[Sequence[Record]], Mapping[Any, float]]
    kind: Kind = "above"
    bound: float | tuple[float, float] = 0.0
    required: bool = True
    sanity: Callable[[Sequence[Record]], str | None] | None = None
    unit: str = ""
    interval: Callable[[Sequence[Record]], Interval] | None = None
    over: str = "seed"


@dataclass(frozen=True)
class Claim:
    """A paper's statement, how its cells are run, and the parts that decide it.

    Parameters
    ----------
    run
        ``run(cell, context, folder) -> values``: a pure function of the key, the settings, and what earlier stages
        left. A shared cell may leave files in `folder`.
    data
        Settings to ``{name: digest}`` of the data that the cells read.
    holds
        Verdicts by part name to the verdict of the claim, where it is not "all required parts hold".
    figures
        Records of stage ``compare`` and the judged parts to Vega-Lite specifications by title.
    tuned_by
        Arms to the arm whose tuning they use, where it is not their own; an empty text for what is not tuned.
    unavailable
        A cell to the reason why it cannot be run here (its data are missing), or None. It is still read from disk.
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
    tuned_by: Mapping[str, str] = field(default_factory=dict)
    unavailable: Callable[[Cell], str | None] = lambda cell: None

    def reads(self, cell: Cell, earlier: Cell) -> bool:
        """Whether a cell may read one of an earlier stage, as far as their keys tell."""
        key = dict(cell.key)
        if earlier.stage == "tune" and "arm" in key:
            key["arm"] = self.tuned_by.get(str(key["arm"]), key["arm"])
        return earlier.agrees(Cell(cell.stage, key))


# -- verdicts ---------------------------------------------------------------------------------------------------------


def judge(part: Part, records: Sequence[Record], *, seeds: int | None = None) -> PartResult:
    """Judge a part by the 95 % interval of its mean effect over the seeds (paired t, or the part's own interval).

    A part that meets a missing value is ``inconclusive``, with the reason.

    Parameters
    ----------
    part
        The part.
    records
        Records of stage ``compare``.
    seeds
        The number of seeds that was decided beforehand: with another number, or fewer than 5, no part has a verdict,
        since who may stop when a result pleases will find one. None for any number from 5 on.
    """
    values: dict[str, float | None] = {}
    own: Interval | None = None
    try:
        known = complete(records)
        found = sorted(part.effect(known).items())
        values = {str(seed): float(value) if math.isfinite(value) else None for seed, value in found}
        own = part.interval(known) if part.interval and values else None
        undefined = "its interval is not defined" if own and math.isnan(own.low) else None
        reason = undefined or (part.sanity(known) if part.sanity and values else None)
    except MissingValue as error:
        reason = str(error)
    lacking = ", ".join(name for name, value in values.items() if value is None)
    reason = f"no value for {part.over} {lacking}" if lacking else reason
    numbers = [] if lacking else [value for value in values.values() if value is not None]
    effect = own if own and numbers else paired_effect(numbers) if len(numbers) > 1 else None
    mean = effect.estimate if isinstance(effect, Interval) else effect.mean if effect else next(iter(numbers), None)
    return PartResult(
        name=part.name,
        statement=part.statement,
        kind=part.kind,
        bound=part.bound,
        required=part.required,
        unit=part.unit,
        values=values,
        mean=mean,
        low=effect.low if effect else None,
        high=effect.high if effect else None,
        verdict=_verdict(part, numbers, effect, seeds, reason),
        reason=reason,
    )


def _verdict(part: Part, values: Sequence[float], effect: Found, seeds: int | None, reason: str | None) -> str:
    if not values and not reason:
        return "not run"
    if part.kind == "reported":
        return "reported"
    if reason:
        return "inconclusive"
    too_few = part.over == "seed" and (len(values) < FEWEST_SEEDS or len(values) != (seeds or len(values)))
    if effect is None or too_few:
        planned = f", {seeds} planned" if seeds else ""
        return f"inconclusive ({len(values)} seed{'s' if len(values) > 1 else ''}{planned})"
    low, high = effect.low, effect.high
    if isinstance(part.bound, tuple):
        below, above = part.bound
        if below <= low and high <= above:
            return "holds"
        return "fails" if high < below or low > above else "inconclusive"
    if part.kind == "equal_to":
        return "holds" if all(value == part.bound for value in values) else "fails"
    if part.kind == "not_above":
        return "holds" if low <= part.bound else "fails"
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
        Number of seeds; 0 for the preset's. With any other number all verdicts are inconclusive.
    jobs, backend
        Processes, and joblib's backend (``loky``, ``ray``, ``dask``).
    reuse
        Accept cells of older source; the result counts them.
    only
        Run the cells whose key has these entries (as text), and those that name none of them. Others are judged where
        they were run before, and their parts are ``not run`` where they were not. A comparison whose tuning is not
        complete is not run.

    Raises
    ------
    InputError
        Unknown preset or backend, or an entry of `only` that no cell has.
    MissingExtra
        The backend is not installed.
    """
    for name, known in ((preset, claim.presets), (backend, BACKENDS)):
        if name not in known:
            raise InputError("there is no such preset or backend", where=name, expected=" or ".join(known))
    require(BACKENDS[backend], "cluster")
    start = time.monotonic()
    cells = list(claim.presets[preset].cells(range(seeds or claim.presets[preset].seeds)))
    _check_budget(claim, cells)
    _check_only(only or {}, cells)
    store = open_cells(claim, preset, reuse=reuse)
    for stage in STAGES:
        _run_stage(claim, stage, cells, store, Work(jobs, backend, only or {}))
    path = store.path.parents[1] / f"{claim.system}-{preset}.json"
    with files.lock(path):
        result = _result(claim, preset, store.found(cells), time.monotonic() - start)
        files.write_json(path, result.model_dump(mode="json"))
    return result


def _check_budget(claim: Claim, cells: Sequence[Cell]) -> None:
    """Every arm that is compared and tuned on a data set has the same number of trials."""
    tune = [cell for cell in cells if cell.stage == "tune"]
    tuned = [cell for cell in cells if cell.stage == "compare" and claim.tuned_by.get(str(cell.key.get("arm"))) != ""]
    trials = {(c.key.get("data"), c.key.get("arm")): sum(claim.reads(c, trial) for trial in tune) for c in tuned}
    if len({(data, count) for (data, _), count in trials.items()}) > len({data for data, _ in trials}):
        raise ValueError(f"arms differ in their number of tuning trials: {trials}")


def _check_only(only: Mapping[str, str], cells: Sequence[Cell]) -> None:
    keys: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, known in cell.key.items():
            keys.setdefault(name, {})[str(known)] = None
    for name, value in only.items():
        if name not in keys:
            raise InputError("no cell has such a key", where=f"--only {name}={value}", expected=" or ".join(keys))
        if value not in keys[name]:
            expected = " or ".join(keys[name])
            raise InputError(f"no cell has that {name}", where=f"--only {name}={value}", expected=expected)


def open_cells(claim: Claim, preset: str, *, reuse: bool = False) -> Cells:
    """Return the cells of a claim and preset on disk."""
    base, settings = Path("build/results" if preset == "smoke" else "results"), claim.presets[preset].settings
    return Cells(
        base / "cells" / f"{claim.system}.jsonl",
        Path("build") / "shared" / claim.system,
        preset,
        settings,
        data=files.digest(dict(claim.data(settings))),
        source=source_digest(f"sanov.experiments.{claim.system}"),
        reuse=reuse,
    )


@dataclass(frozen=True)
class Work:
    """How much is run, and where."""

    jobs: int
    backend: str
    only: Mapping[str, str]

    def wants(self, cell: Cell) -> bool:
        """Whether a cell is to be run where it is not on disk."""
        return all(str(cell.key.get(name, value)) == value for name, value in self.only.items())


def _run_stage(claim: Claim, stage: Stage, cells: Sequence[Cell], store: Cells, work: Work) -> None:
    before = store.found([cell for cell in cells if STAGES.index(cell.stage) < STAGES.index(stage)])
    wanted = [cell for cell in cells if cell.stage == stage]
    missing = [cell for cell in wanted if work.wants(cell) and not store.find(cell)]
    later = [cell for cell in cells if cell.stage != "shared" and work.wants(cell) and not store.find(cell)]
    missing += [cell for cell in wanted if stage == "shared" and store.lacks_files(cell, later)]
    missing = _ready(missing, cells, before, claim)
    context = Context(store.preset, store.settings, tuple(before), store.folder)
    fresh = _spread(claim, store, missing, context, work)
    for record in track(fresh, f"{claim.system}: {stage}", total=len(missing)):
        store.add(record, mixed=any(earlier.older and claim.reads(record.cell, earlier.cell) for earlier in before))


def _ready(missing: Sequence[Cell], cells: Sequence[Cell], before: Sequence[Record], claim: Claim) -> list[Cell]:
    """Leave out the cells that cannot be run now, and say why."""
    done = {str(record.cell) for record in before}
    trials = [cell for cell in cells if cell.stage == "tune" and str(cell) not in done]
    ready, reasons = [], Counter[str]()
    for cell in missing:
        reason = claim.unavailable(cell)
        if cell.stage == "compare" and any(claim.reads(cell, trial) for trial in trials):
            reason = reason or "their tuning is not complete"
        if reason:
            reasons[reason] += 1
        else:
            ready.append(cell)
    for reason, count in reasons.items():
        warnings.warn(f"{claim.system}: {count} cells were not run: {reason}", SanovWarning, stacklevel=2)
    return ready


def _spread(claim: Claim, store: Cells, cells: Sequence[Cell], context: Context, work: Work) -> Iterator[Record]:
    module = f"sanov.experiments.{claim.system}"
    if work.jobs == 1 or len(cells) < 2:
        for cell in cells:
            yield _run_cell(claim.run, cell, context, store.digest(cell))
        return
    tasks = ((module, cell, context, store.digest(cell)) for cell in cells)
    yield from spread(_run_by_name, tasks, jobs=work.jobs, backend=work.backend)


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
    values = json.loads(files.to_json(values))  # what the disk will give
    return Record(cell, values, round(time.monotonic() - start, 3), digest)


def _result(claim: Claim, preset: str, records: Sequence[Record], seconds: float) -> ClaimResult:
    size = claim.presets[preset]
    compared = [record for record in records if record.cell.stage == "compare"]
    parts = [judge(part, compared, seeds=size.seeds) for part in size.parts or claim.parts]
    verdicts = {part.name: part.verdict for part in parts}
    return ClaimResult(
        system=claim.system,
        statement=claim.statement,
        source=claim.source,
        preset=preset,
        scale=size.scale,
        verdict=claim.holds(verdicts) if claim.holds else _all_required(parts),
        parts=parts,
        cells={stage: sum(record.cell.stage == stage for record in records) for stage in STAGES},
        older_cells=sum(record.older for record in records),
        cell_seconds=round(sum(record.seconds for record in records), 1),
        figures=_figures(claim, compared, parts),
        data=dict(claim.data(size.settings)),
        provenance=provenance(),
        seconds=round(seconds, 1),
    )


def _figures(claim: Claim, records: Sequence[Record], parts: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Draw what was run; nothing where a value is missing, which the parts tell."""
    if claim.figures is None or not records:
        return {}
    try:
        return {title: dict(spec) for title, spec in claim.figures(complete(records), parts).items()}
    except MissingValue:
        return {}
