"""The answer of report mode: sentence, verdict, tables, figures, and one line an example."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl

from sanov.core.answers import Answer
from sanov.core.errors import SanovWarning
from sanov.systems.fidelity.analysis import Findings, Value, analyse
from sanov.systems.fidelity.config import Config
from sanov.systems.fidelity.counts import CELLS, pair_name
from sanov.systems.fidelity.figures import agreement_figure, forest_figure, reliability_figure, transfer_figure
from sanov.systems.fidelity.reading import Data
from sanov.systems.fidelity.wording import lines, notes, sentence, swapped, verdict

__all__ = ["answer"]


def answer(data: Data, config: Config, *, seed: int = 0) -> Answer:
    """Report on a teacher, a student and, where there is one, the student without a teacher.

    Parameters
    ----------
    data
        What `reading.read` returned.
    config
        The options.
    seed
        Of the bootstrap.
    """
    found = analyse(data, config, seed=seed)
    if doubt := swapped(found):
        warnings.warn(doubt, SanovWarning, stacklevel=2)
    return Answer(
        system="fidelity",
        sentence=sentence(found),
        values=_headlines(found),
        tables=_tables(found),
        figures=_figures(found),
        notes=notes(found),
        files={"examples.csv": lambda path: _examples(data).write_csv(path)},
        provenance={"input": data.digest},
        source=data.source,
        lines=lines(found),
    )


# -- numbers ----------------------------------------------------------------------------------------------------------

HEADLINES = (
    ("teacher", "accuracy"),
    ("student", "accuracy"),
    ("baseline", "accuracy"),
    ("student - baseline", "accuracy"),
    ("student - teacher", "accuracy"),
    ("teacher, student", "agreement"),
    ("teacher, student", "expected agreement"),
    ("teacher, student", "excess agreement"),
    ("teacher, student", "kappa"),
    ("teacher, student", "error consistency"),
    ("teacher, student", "errors inherited"),
    ("teacher, student", "forward KL"),
    ("teacher, student", "JSD"),
    ("teacher, student", "BLEU"),
    ("student", "ECE"),
    ("student - baseline", "agreement with the teacher"),
    ("student - baseline", "excess agreement with the teacher"),
)


def _headlines(found: Findings) -> dict[str, Any]:
    values: dict[str, Any] = {
        "examples": found.data.rows,
        "verdict": verdict(
            found.get("student - baseline", "accuracy"),
            found.tests.get("student, baseline", (0, 0, None))[2],
            found.config.confidence,
        ),
    }
    for of, name in HEADLINES:
        value = found.get(of, name)
        if value is not None:
            key = (
                (name if of == "teacher, student" else f"{of.replace(' - ', ' less ')} {name}")
                .lower()
                .replace(" ", "_")
            )
            values |= {key: value.estimate, f"{key}_low": value.low, f"{key}_high": value.high}
    return values


def _tables(found: Findings) -> dict[str, pl.DataFrame]:
    cells = [
        {"of": of, "statistic": name, "value": value.estimate, "low": value.low, "high": value.high}
        for (of, name), value in found.values.items()
    ]
    schema = {"of": pl.String, "statistic": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    tables = {"Statistics": pl.DataFrame(cells, schema=schema), "Systems": _systems(found)}
    if found.data.labels is not None:
        tables |= {"Error transfer": _transfer(found), "McNemar": _mcnemar(found)}
    if found.groups is not None:
        tables[f"By {found.grouping}"] = found.groups
    if found.reliability is not None:
        tables["Reliability"] = found.reliability
    return tables


def _systems(found: Findings) -> pl.DataFrame:
    table = found.data.origins
    for name in ("accuracy", "ECE"):
        values = [found.get(system, name) for system in found.data.systems]
        if any(values):
            parts = {name: "estimate", f"{name} low": "low", f"{name} high": "high"}
            columns = [[getattr(value, part, None) for value in values] for part in parts.values()]
            table = table.with_columns(
                pl.Series(column, cells, pl.Float64) for column, cells in zip(parts, columns, strict=True)
            )
    return table


def _transfer(found: Findings) -> pl.DataFrame:
    rows = []
    for place, pair in enumerate(found.counts.pairs):
        of = pair_name(found.counts.systems, pair)
        numbers = (found.counts.patterns @ found.counts.transfer(place)).round().astype(int)
        for cell, number in zip(CELLS, numbers.tolist(), strict=True):
            value = found.get(of, cell) or Value(0.0)
            shares = {"share": value.estimate, "low": value.low, "high": value.high}
            rows.append({"pair": of, "cell": cell, "examples": number, **shares})
    return pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64})


def _mcnemar(found: Findings) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"pair": pair, "only the first right": first, "only the second right": second, "p": p}
            for pair, (first, second, p) in found.tests.items()
        ]
    )


# -- figures ----------------------------------------------------------------------------------------------------------


def _figures(found: Findings) -> dict[str, dict[str, Any]]:
    figures = {}
    if found.data.labels is not None:
        figures["Agreement (bar: what is possible; tick: unrelated systems)"] = agreement_figure(_bounds(found))
        figures["What became of errors"] = transfer_figure(_transfer(found))
    if found.reliability is not None:
        figures["Reliability"] = reliability_figure(found.reliability)
    groups = found.groups
    if groups is not None and not groups["agreement low"].null_count():
        for effect in ("student - baseline", "student - teacher"):
            if effect in groups.columns:
                name = f"Accuracy by {found.grouping}, {effect}"
                figures[name] = forest_figure(groups, found.grouping, effect, "difference of accuracies", zero=True)
        name = f"Agreement with the teacher by {found.grouping}"
        figures[name] = forest_figure(groups, found.grouping, "agreement", "examples with the same answer", zero=False)
    return figures


def _bounds(found: Findings) -> pl.DataFrame:
    names = {
        "lowest": "agreement, lowest possible",
        "highest": "agreement, highest possible",
        "expected": "expected agreement",
    }
    rows = []
    for pair in found.counts.pairs:
        of = pair_name(found.counts.systems, pair)
        value = found.values[of, "agreement"]
        others = {column: found.values[of, name].estimate for column, name in names.items()}
        rows.append({"pair": of, "agreement": value.estimate, "low": value.low, "high": value.high, **others})
    return pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64})


# -- one line an example ----------------------------------------------------------------------------------------------


def _examples(data: Data) -> pl.DataFrame:
    """Return the answers and, where there are labels, the cell of error transfer of each example."""
    columns: dict[str, Any] = {"row": np.arange(1, data.rows + 1)} if data.ids is None else {"id": data.ids}
    codes = dict(zip(data.systems, data.answers, strict=True)) | ({} if data.labels is None else {"label": data.labels})
    columns |= {name: data.vocabulary.gather(pl.Series(row).replace(-1, None)) for name, row in codes.items()}
    if data.labels is not None:
        teacher, student = data.answers[:2]
        right, same = (teacher == data.labels, student == data.labels), teacher == student
        place = np.select([right[0] & right[1], right[0], right[1], same], [0, 4, 3, 1], 2)
        columns["error transfer"] = pl.Series(CELLS, dtype=pl.String).gather(place)
    return pl.DataFrame(columns)
