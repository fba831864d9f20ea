"""The published results of ramesh2025fidelity, read again: what the paper's tests give, and what corrected ones do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data import studies, text
from sanov.systems.fidelity import study_checks, study_corrected, study_paper
from sanov.systems.fidelity.study_rows import Rows, select

__all__ = ["FIELDS", "PUBLISHED", "differing", "digests", "field_values", "read_field", "unavailable"]

DIGESTS = {
    "math_qwen_accuracy.csv": "375c370b37297f572841851e46d6b54986126a27f0b7d1cc58bd65760a17183a",
    "math_llama_accuracy.csv": "7247b92659f581b7122d6cb2855a09532a540b4b3b51a7bd7986232c173f6357",
    "math_agreement_em1.csv": "389ae4fc196e654e4de803371126e1a167be5eb912cceaa20d17decd5c90f73a",
    "math_rationale_similarity_bleu.csv": "c391034c126bca03e6839f598d97d3ff7ab325d2cd78a7104f3742b563be985a",
    "commonsense_qwen_accuracy.csv": "6bec3505cbf71e5e41162accdc6b82f42f61b2203690da0ded8f7e66a4b134ed",
    "commonsense_llama_accuracy.csv": "8ac66d3ada5ac24e68d74796f7991757f2e7eab8863822820d7f857844979e7e",
    "commonsense_agreement_em1.csv": "748e0ba4ab83411396802d75d10d87f4d9acabb737558122f888ceaefe16a709",
}
FIELDS = ("math", "commonsense")
PUBLISHED = Path(__file__).with_name("fidelity_published.csv")  # field, quantity, column, value as it was printed
COLUMNS = {"mean gain": "mean gain", "H1 t": "t", "H1 p": "p", "ANOVA F": "F", "ANOVA p": "F p"}


def unavailable() -> str | None:
    """Return why the published files cannot be read here, or None."""
    found = text.folder()
    if found is None:
        return "SANOV_DATA names no folder"
    return None if (found / "fidelity").is_dir() else "the folder of SANOV_DATA holds no fidelity/"


def digests() -> dict[str, str]:
    """Return the digest of each field's files; `read_field` refuses others."""
    return {
        f"published {field}": "+".join(digest[:16] for name, digest in DIGESTS.items() if name.startswith(field))
        for field in FIELDS
    }


def read_field(field: str) -> studies.StudyData:
    """Read a field's published files.

    Raises
    ------
    InputError
        There is no folder, or a file is not the published one.
    """
    folder = text.folder()
    if folder is None:
        raise InputError("names no folder", where="SANOV_DATA", fix="set it to the folder that holds fidelity/")
    paths = [folder / "fidelity" / name for name in DIGESTS if name.startswith(field)]
    for path in paths:
        if (found := files.digest(path)) != DIGESTS[path.name]:
            expected = f"digest {DIGESTS[path.name][:12]}"
            raise InputError(f"holds other results ({found[:12]})", where=str(path), expected=expected)
    return studies.read(paths)


def field_values(field: str, draws: int) -> dict[str, Any]:
    """Return what a cell of the claim keeps of a field.

    Returns
    -------
    ``rows``: pair, method and gain in points of the plain mean over tasks, at temperature 1 and at the best one;
    ``differing``: by column, how many published numbers come out otherwise; ``corrected``: the tests by cluster.
    """
    data = read_field(field)
    best, fixed = select(data, "best"), select(data, "fixed", 1.0)
    settings = study_corrected.Settings(draws=draws)
    wrong = differing(field, study_paper.paper_tests(best, "greater"))
    collapsed = study_checks.collapsed(fixed, studies.chance_levels(), 3.0)
    return {
        "rows": {"best": _rows(best), "fixed": _rows(fixed)},
        "differing": {name: sum(row["column"] == name for row in wrong) for name in best.columns},
        "collapsed": collapsed,
        "corrected": {
            name: study_corrected.cluster_tests(rows, settings).to_dicts()
            for name, rows in (("best", best), ("fixed", fixed))
        },
    }


def _rows(rows: Rows) -> dict[str, list[Any]]:
    gains = rows.column(rows.headline)
    return {
        "pair": rows.clusters("pair").tolist(),
        "method": rows.labels["method"].to_list(),
        "gain": [round(float(gain), 6) for gain in gains],
    }


def differing(field: str, found: pl.DataFrame) -> list[Mapping[str, Any]]:
    """Return the published numbers that are not among those found, rounded to their digits."""
    table = {row["task"]: row for row in found.to_dicts()}
    published = pl.read_csv(PUBLISHED, schema_overrides={"value": pl.String}).filter(pl.col("field") == field)
    wrong: list[Mapping[str, Any]] = []
    for row in published.to_dicts():
        value = table[row["column"]][COLUMNS.get(row["quantity"], row["quantity"])]
        if not np.isclose(value, float(row["value"]), rtol=0, atol=_unit(row["value"]) / 2 + 1e-12):
            wrong.append({**row, "found": value})
    return wrong


def _unit(printed: str) -> float:
    """One unit of the last digit of a printed number."""
    digits, _, exponent = printed.partition("e")
    decimals = len(digits.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - decimals))
