"""One page of all claims, and the generated blocks of README and docs. A system is known here by its JSON alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from sanov.core import files, pages
from sanov.core.errors import InputError
from sanov.core.results import ClaimResult, PartResult, read_result

__all__ = ["gather", "options_table", "refresh", "results_block", "row_table", "systems_table", "write"]

MARKS = re.compile(r"<!-- (?P<kind>begin|end): (?P<name>[^>]+?) -->")
BLOCK = re.compile(r"(<!-- begin: (?P<name>[^>]+?) -->\n)(?P<text>.*?)(<!-- end: (?P=name) -->)", re.DOTALL)


# -- the page ---------------------------------------------------------------------------------------------------------


def gather(folder: Path) -> list[ClaimResult]:
    """Read the results below a folder: those of `paper` first, then those of `smoke`."""
    found = [
        *sorted((folder / "results").glob("*-paper.json")),
        *sorted((folder / "build/results").glob("*-smoke.json")),
    ]
    return [read_result(path) for path in found]


def write(out: Path, results: Sequence[ClaimResult]) -> Path:
    """Write the page of some results to ``index.html`` in a folder, and return its path.

    Raises
    ------
    InputError
        There is no result, or the folder cannot be written.
    """
    if not results:
        raise InputError("there are no results to report", fix="run: sanov demo")
    path = out / "index.html"
    files.write_text(path, pages.render(_page(results)))
    return path


def _page(results: Sequence[ClaimResult]) -> pages.Page:
    papers = [result for result in results if result.preset == "paper"]
    counts = {verdict: sum(result.verdict.startswith(verdict) for result in papers) for verdict in _ORDER}
    lead = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no verdict at this size"
    notes = [
        "A part is judged by the 95 % interval of its mean effect over paired seeds, whose number was decided "
        "beforehand; a claim holds if all its required parts hold, unless it says another rule.",
    ]
    if len(papers) < len(results):
        notes.append(
            "Results of the preset smoke show that everything runs; their size is too small to quote a verdict."
        )
    footer = {"version": str(results[0].provenance.get("version", "")), "command": "sanov report"}
    count = len(papers or results)
    title = f"{count} published claim{'s' if count > 1 else ''}, {'tested' if papers else 'run at a small size'}"
    return pages.Page(title, f"{lead[0].upper()}{lead[1:]}.", notes, [_section(result) for result in results], footer)


_ORDER = ("holds", "inconclusive", "fails")


def _section(result: ClaimResult) -> pages.Section:
    figures = [pages.Figure(title, spec) for title, spec in result.figures.items()]
    counts = ", ".join(f"{count} {stage}" for stage, count in result.cells.items() if count)
    run = f"{counts} cells; {result.cell_seconds:.0f} s of work."
    if result.older_cells:
        run += f" {result.older_cells} cells are of older source."
    return pages.Section(
        f"{result.system}, {result.preset}",
        result.verdict if result.preset == "paper" else result.preset,
        result.statement,
        [
            pages.Table("Parts", _parts(result.parts), "Effect: mean over the seeds, with its 95 % interval."),
            *figures,
            pages.Text("How it was run", [result.scale, run, f"Source: {result.source}."]),
        ],
    )


def _parts(parts: Sequence[PartResult]) -> pl.DataFrame:
    return pl.DataFrame({
        "part": [part.name for part in parts],
        "statement": [part.statement for part in parts],
        "effect": [part.effect() for part in parts],
        "verdict": [f"{part.verdict}{f' ({part.reason})' if part.reason else ''}" for part in parts],
    })  # fmt: skip


# -- generated blocks -------------------------------------------------------------------------------------------------


def refresh(documents: Sequence[Path], blocks: Mapping[str, str], *, check: bool = False) -> list[Path]:
    """Renew the generated blocks of some documents.

    A block stands between ``<!-- begin: name -->`` and ``<!-- end: name -->``.

    Parameters
    ----------
    documents
        Markdown files.
    blocks
        Text by name.
    check
        Change nothing.

    Returns
    -------
    The documents that are not current.

    Raises
    ------
    InputError
        A document asks for a block that does not exist, or one of its marks has no partner.
    """
    stale = []
    for document in documents:
        text = document.read_text(encoding="utf-8")
        _check_marks(document, text)
        for match in BLOCK.finditer(text):
            if match["name"] not in blocks:
                raise InputError(f"there is no block '{match['name']}'", where=str(document))
        fresh = BLOCK.sub(lambda match: f"{match[1]}{blocks[match['name']].strip()}\n{match[4]}", text)
        if fresh != text:
            stale.append(document)
            if not check:
                files.write_text(document, fresh)
    return stale


def _check_marks(document: Path, text: str) -> None:
    """Refuse a mark without a partner: its block would never be renewed."""
    rest = BLOCK.sub("", text)
    for block in BLOCK.finditer(text):
        rest += block["text"]
    if mark := MARKS.search(rest):
        line = text[: text.index(mark[0])].count("\n") + 1
        other = "end" if mark["kind"] == "begin" else "begin"
        raise InputError(
            f"'{mark[0]}' has no partner",
            where=f"{document}, line {line}",
            expected=f"<!-- {other}: {mark['name']} -->",
        )


def systems_table(rows: Sequence[Mapping[str, str]], results: Path) -> str:
    """Return the systems as a Markdown table: question, name, what moves onto what, and whether the claim holds."""
    head = ["question", "system", "model that moves", "reference", "divergence", "its claim, tested here"]
    body = []
    for row in rows:
        path = results / f"{row['name']}-paper.json"
        verdict = read_result(path).verdict if path.is_file() else "not run"
        body.append([row["question"], f"`{row['name']}`", row["model"], row["reference"], row["divergence"], verdict])
    return _table(head, body)


def row_table(row: Mapping[str, str]) -> str:
    """Return one system as a Markdown table."""
    extras = f"`pip install 'sanov[{row['extras']}]'`" if row["extras"] else "`pip install sanov`"
    head = ["model that moves", "reference", "divergence", "install", "cite"]
    return _table(head, [[row["model"], row["reference"], row["divergence"], extras, f"`{row['paper']}`"]])


def options_table(options: Sequence[Mapping[str, str]]) -> str:
    """Return the options of a system, with the source of each default, as a Markdown table."""
    body = [
        [f"`{option['name']}`", option["default"], option["legal"], option["meaning"], option["source"]]
        for option in options
    ]
    return _table(["option", "default", "legal", "meaning", "source of the default"], body)


def results_block(path: Path) -> str:
    """Return what a tested claim gave, from its JSON; a sentence where there is none."""
    if not path.is_file():
        return "Not run yet."
    result = read_result(path)
    lines = [f"**{result.verdict}**: {result.statement}", "", f"{result.scale} {sum(result.cells.values())} cells."]
    body = [[part.name, part.statement, part.effect(), part.verdict] for part in result.parts]
    return "\n".join([*lines, "", _table(["part", "statement", "effect", "verdict"], body)])


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
