"""The answer of a system to a person: one sentence, numbers, tables, figures, and every form they can be saved in."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sanov import __version__
from sanov.core import charts, files, frames, pages, spreadsheets
from sanov.core.cells import shown, shown_column
from sanov.core.errors import InputError

__all__ = ["SUFFIXES", "Answer", "check_place"]

WIDTH, HEIGHT = 100, 24  # one screen
SHOWN = 20  # rows of a table in a notebook
SUFFIXES = (".json", ".csv", ".parquet", ".xlsx", ".html", ".tex")
MARK = "answer.json"  # the file by which a folder is known to be an earlier answer, and which lists its files
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what a file manager leaves in a folder that was looked at


@dataclass(frozen=True)
class Answer:
    """What `apply` returns.

    Parameters
    ----------
    system
        Name of the system.
    sentence
        The answer in one sentence, with its interval.
    values
        Headline numbers by name.
    tables
        Tables by title; the first is the main one.
    figures
        Vega-Lite specifications by title, with their data inside.
    notes
        What was dropped or assumed.
    files
        Writers of extra files, by file name: each is called with the path to write.
    provenance
        Version, digest of the input, command that rebuilds this.
    source
        What the user handed over; `to_frame` returns tables of its kind.
    lines
        What the summary says, by heading, where the headline numbers alone do not say enough; "" is left out.
    """

    system: str
    sentence: str
    values: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    source: Any = None
    lines: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the answer on one screen: at most 24 lines of 100 characters."""
        body = _headed(self._said()) or _aligned(self.values)
        notes = [part for note in self.notes for part in _wrapped(f"- {note}", "  ")]
        head = _wrapped(f"{self.system}: {self.sentence}")
        room = HEIGHT - len(head) - 2
        notes = _cut(notes, max(room // 3, room - len(body)))
        body = _cut(body, room - len(notes))
        return "\n".join([*head, *([""] if body else []), *body, *([""] if notes else []), *notes])

    def __str__(self) -> str:
        return self.summary()

    def to_frame(self, name: str | None = None) -> Any:
        """Return a table (the main one, or the one of that title) as the caller's kind of data frame.

        Raises
        ------
        InputError
            There is no table of that title.
        """
        return frames.like(self._table(name), self.source)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but figures and extra files as what JSON can hold; a table is a list per column."""
        tree: dict[str, Any] = files.plain({
            "system": self.system,
            "sentence": self.sentence,
            "lines": self._said(),
            "values": self.values,
            "tables": {title: table.to_dict(as_series=False) for title, table in self.tables.items()},
            "notes": self.notes,
            "provenance": self._origin(),
        })  # fmt: skip
        return tree

    def to_latex(self, name: str | None = None) -> str:
        """Return a table as a LaTeX tabular (packages: booktabs)."""
        return _latex(self._table(name))

    def to_excel(self, path: str | Path) -> None:
        """Write the summary and every table as the sheets of one workbook.

        Raises
        ------
        MissingExtra
            Without the extra ``excel``.
        """
        files.write_bytes(path, spreadsheets.workbook(self._front_sheet(), self.tables))

    def page(self) -> pages.Page:
        """Return the answer as a page: the sentence, notes, what the summary says, figures, tables."""
        said = self._said()
        numbers = [(name.replace("_", " "), value) for name, value in self.values.items() if _is_scalar(value)]
        blocks: list[pages.Block] = [pages.Figure(title, spec) for title, spec in self.figures.items()]
        blocks += [pages.Table(title, table) for title, table in self.tables.items()]
        if numbers:
            cells = {"quantity": [name for name, _ in numbers], "value": [shown(value) or "–" for _, value in numbers]}
            blocks.insert(len(blocks) if said else 0, pages.Table("Numbers", pl.DataFrame(cells), right=("value",)))
        if said:
            blocks.insert(0, pages.Table("Summary", pl.DataFrame({"about": list(said), "answer": list(said.values())})))
        return pages.Page(self.system, self.sentence, self.notes, blocks, self._origin())

    def save(self, path: str | Path) -> None:
        """Save the answer, whole or not at all. The suffix chooses the form; a path without one gets everything.

        Parameters
        ----------
        path
            ``.json`` (`to_dict`), ``.csv`` and ``.parquet`` (the main table), ``.xlsx`` (all tables), ``.html`` (the
            page), ``.tex`` (the main table), or a folder.

        Raises
        ------
        InputError
            The place cannot be written, or is a folder that holds something else.
        """
        path = Path(path)
        check_place(path)
        match path.suffix.lower():
            case ".json":
                files.write_json(path, self.to_dict())
            case ".csv":
                files.write_bytes(path, _csv(self._table(None)))
            case ".parquet":
                files.write_bytes(path, _parquet(self._table(None)))
            case ".xlsx":
                self.to_excel(path)
            case ".html":
                files.write_text(path, pages.render(self.page()))
            case ".tex":
                files.write_text(path, self.to_latex())
            case _:
                with files.atomic_folder(path) as folder:
                    self._write_all(folder)

    def _write_all(self, folder: Path) -> None:
        files.write_text(folder / "summary.txt", self.summary() + "\n")
        files.write_text(folder / "index.html", pages.render(self.page()))
        for name, table in _file_names(self.tables):
            files.write_bytes(folder / "tables" / f"{name}.csv", _csv(table))
        for name, spec in _file_names(self.figures):
            files.write_json(folder / "figures" / f"{name}.vl.json", spec)
            files.write_text(folder / "figures" / f"{name}.svg", charts.svg(spec))
        for name, write in self.files.items():
            with files.atomic_path(folder / name) as place:
                write(place)
        contents = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        files.write_json(folder / MARK, {**self.to_dict(), "contents": [*contents, MARK]})

    def _repr_html_(self) -> str:
        return pages.fragment(self.page(), SHOWN)

    def _table(self, name: str | None) -> pl.DataFrame:
        if name is None and not self.tables:
            return pl.DataFrame({key: [value] for key, value in self.values.items() if _is_scalar(value)})
        title = next(iter(self.tables)) if name is None else name
        if title not in self.tables:
            raise InputError(f"there is no table {title!r}", where=self.system, expected=" or ".join(self.tables))
        return self.tables[title]

    def _said(self) -> dict[str, str]:
        return {heading: text for heading, text in self.lines.items() if text}

    def _origin(self) -> dict[str, str]:
        return {"version": f"sanov {__version__}", **self.provenance}

    def _front_sheet(self) -> list[list[Any]]:
        values = [(name.replace("_", " "), value) for name, value in self.values.items() if _is_scalar(value)]
        notes = [("note", note) for note in self.notes]
        rows = [(self.system, self.sentence), *self._said().items(), *values, *notes, *self._origin().items()]
        return [files.plain(row) for row in rows]


def check_place(path: str | Path) -> None:
    """Refuse a place where an answer cannot be saved, before it is computed.

    Raises
    ------
    InputError
        An unknown suffix, a place that cannot be written, or a folder whose files are not an earlier answer's.
    """
    path = Path(path)
    if path.suffix and path.suffix.lower() not in SUFFIXES and not path.is_dir():
        expected = f"one of {', '.join(SUFFIXES)}, or a folder (no suffix)"
        raise InputError(f"the suffix is {path.suffix!r}", where=str(path), expected=expected)
    files.check_writable(path, folder=path.suffix.lower() not in SUFFIXES)
    strangers = _strangers(path) if path.is_dir() else []
    if strangers:
        found = f"is a folder with other files in it ({', '.join(strangers[:3])}{', ...' if strangers[3:] else ''})"
        raise InputError(found, where=str(path), fix="name a new or an empty folder")


def _strangers(folder: Path) -> list[str]:
    """What lies in a folder, and no earlier answer put there."""
    try:
        known = set(files.read_json(folder / MARK)["contents"])
    except (InputError, LookupError, TypeError):  # no answer
        known = set()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name not in LITTER}
    return sorted(found - known)


# -- text -------------------------------------------------------------------------------------------------------------


def _wrapped(line: str, indent: str = "") -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent) or [""]


def _headed(said: Mapping[str, str]) -> list[str]:
    """Each text with its heading in a column of its own."""
    width = max(map(len, said), default=0) + 1
    return [part for name, text in said.items() for part in _wrapped(f"{name:<{width}}{text}", " " * width)]


def _cut(lines: list[str], room: int) -> list[str]:
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... {len(lines) - room + 1} more lines: save the answer to see them"]


def _aligned(values: Mapping[str, Any]) -> list[str]:
    scalars = {name.replace("_", " "): shown(value) or "–" for name, value in values.items() if _is_scalar(value)}
    width = max(map(len, scalars), default=0)
    return [f"{name:<{width}}  {value}"[:WIDTH] for name, value in scalars.items()]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float) or getattr(value, "ndim", None) == 0


# -- forms of a table -------------------------------------------------------------------------------------------------


def _csv(table: pl.DataFrame) -> bytes:
    nested = [column.name for column in table if column.dtype.is_nested()]
    as_text = [pl.Series(name, [files.to_json(cell) for cell in table[name]], pl.String) for name in nested]
    return table.with_columns(as_text).write_csv().encode("utf-8")


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(table: pl.DataFrame) -> str:
    columns = "".join("r" if column.dtype.is_numeric() else "l" for column in table)
    rows = [_latex_row(row) for row in zip(*map(shown_column, table), strict=True)]
    lines = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(table.columns), r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    escaped = ("".join(LATEX.get(character, character) for character in str(cell)) for cell in cells)
    return " & ".join(" ".join(cell.split()) for cell in escaped) + r" \\"


def _file_names(things: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield things with a name that every file system takes, and that occurs once."""
    taken: set[str] = set()
    for title, thing in things.items():
        stem = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:60] or "unnamed"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield name, thing
