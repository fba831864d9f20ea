"""An Excel workbook from tables, in memory."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from sanov.core.errors import InputError, require

__all__ = ["workbook"]

ROWS, NAME, CELL = 1_048_576, 31, 32_767  # limits of the format: rows of a sheet, characters of its name and a cell
EXACT = 2**53  # numbers of the format are floats
OPTIONS = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "nan_inf_to_errors": True}


def workbook(front: Sequence[Sequence[Any]], tables: Mapping[str, pl.DataFrame]) -> bytes:
    """Return the bytes of a workbook.

    Parameters
    ----------
    front
        Rows of the first sheet: a label and what belongs to it.
    tables
        Further sheets by title.

    Raises
    ------
    InputError
        A table has more rows than a sheet can hold, or a cell more characters.
    MissingExtra
        Without the extra ``excel``.
    """
    xlsxwriter = require("xlsxwriter", "excel")
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, OPTIONS) as book:
        bold = book.add_format({"bold": True, "bottom": 1})
        sheet = book.add_worksheet("answer")
        for i, row in enumerate(front):
            sheet.write_row(i, 0, map(_cell, row))
        sheet.set_column(0, 0, 24)
        for name, table in zip(_sheet_names(tables), tables.values(), strict=True):
            _write(book.add_worksheet(name), table, bold, name)
    return buffer.getvalue()


def _write(sheet: Any, table: pl.DataFrame, bold: Any, name: str) -> None:
    if table.height >= ROWS:
        raise InputError(
            f"has {table.height} rows", where=f"sheet {name!r}", expected=f"fewer than {ROWS}", fix="save it as .csv"
        )
    sheet.write_row(0, 0, table.columns, bold)
    for i, row in enumerate(table.iter_rows(), start=1):
        cells = list(map(_cell, row))
        _check_lengths(cells, table.columns, f"sheet {name!r}, row {i}")
        sheet.write_row(i, 0, cells)
    sheet.freeze_panes(1, 0)
    sheet.autofit()


def _check_lengths(cells: Sequence[Any], columns: Sequence[str], where: str) -> None:
    """Refuse a text that the format would cut, and with it the rest of its row."""
    for column, cell in zip(columns, cells, strict=True):
        if isinstance(cell, str) and len(cell) > CELL:
            found, expected = f"the cell has {len(cell)} characters", f"at most {CELL}"
            raise InputError(found, where=f"{where}, column {column!r}", expected=expected, fix="save it as .csv")


def _cell(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > EXACT:
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _sheet_names(titles: Iterable[str]) -> list[str]:
    """Names that Excel takes: at most 31 characters, some of them forbidden, no two equal in any case."""
    names = ["answer"]
    for title in titles:
        stem = re.sub(r"[\[\]:*?/\\']", " ", title).strip() or "table"
        name, number = stem[:NAME], 2
        while name.lower() in {taken.lower() for taken in names} or name.lower() == "history":
            name, number = f"{stem[: NAME - 4]} {number}", number + 1
        names.append(name)
    return names[1:]
