"""Tables in text files: read as text, checked line by line where something is odd, and only then cast to numbers."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from sanov.core.errors import InputError, SanovWarning

__all__ = ["read_delimited", "typed"]

DELIMITERS = {",": '","', ";": '";"', "\t": "tab", "|": '"|"'}
MISSING = ["", "NA", "NaN", "null", "na", "nan", "NAN", "Null", "NULL", "N/A", "n/a"]
TRUTH = {"true": True, "false": False}
HEAD = 65_536  # bytes that are looked at before a file is taken for text


def read_delimited(path: Path, delimiter: str) -> pl.DataFrame:
    """Read a text file whose first line names the columns.

    Parameters
    ----------
    path
        A file in UTF-8, with or without a byte order mark.
    delimiter
        What separates the cells.

    Raises
    ------
    InputError
        The file is empty, binary, in another encoding, without rows, ragged, or delimited otherwise; the message names
        the line.
    """
    _check_text(path)
    names = _header(path, delimiter)
    try:
        frame = pl.read_csv(path, separator=delimiter, infer_schema=False, glob=False, new_columns=names)
    except pl.exceptions.PolarsError as error:
        _find_bad_line(path, delimiter, len(names))
        reason = str(error).splitlines()[0]
        raise InputError(
            f"is no table of text ({reason})", where=str(path), fix='look for a quote (") that is not closed'
        ) from None
    frame = _without_blank_lines(frame)
    if frame.height == 0:
        raise InputError("has a header but no rows", where=str(path))
    if frame[:, -1].null_count() and len(names) > 1:  # a line that ends too early is filled with missing cells
        _find_bad_line(path, delimiter, len(names))
    return typed(frame)


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise InputError("is empty", where=str(path), expected="a table with a header")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("is encoded in UTF-16", where=str(path), expected="UTF-8", fix="save it as CSV UTF-8")
    if b"\x00" in head:
        raise InputError("is binary", where=str(path), expected="a table of text")


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record with the number of the line on which it ends."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        for row in reader:
            yield reader.line_num, row


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(row for _, row in _rows(path, delimiter) if row)]
    except UnicodeDecodeError:
        _check_encoding(path)
        raise
    except csv.Error as error:
        raise InputError(f"the header cannot be read ({error})", where=str(path)) from None
    if len(names) == 1:
        _check_delimiter(path, names[0], delimiter)
    _check_names(path, names)
    return names


def _check_delimiter(path: Path, header: str, delimiter: str) -> None:
    counts = Counter(character for character in header if character in DELIMITERS and character != delimiter)
    if counts:
        likely = DELIMITERS[counts.most_common(1)[0][0]]
        raise InputError(
            f"the header {_short(header)} is one column when split at {DELIMITERS.get(delimiter, repr(delimiter))}",
            where=str(path),
            expected="another delimiter",
            fix=f"pass map.delimiter={likely} (from Python: delimiter)",
        )


def _check_names(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise InputError(
            f"column {names.index('') + 1} has no name",
            where=str(path),
            fix="name it or leave it out (saved row numbers: to_csv(index=False))",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"the column name {twice[0]!r} occurs twice", where=str(path), fix="rename one of the two")
    if all(_is_number(name) for name in names):
        warnings.warn(
            f"{path}: every column name is a number ({_short(', '.join(names))}). Is the header missing?",
            SanovWarning,
            stacklevel=4,
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _find_bad_line(path: Path, delimiter: str, columns: int) -> None:
    """Raise an error for the first line that is not UTF-8 or has another number of cells, if there is one."""
    _check_encoding(path)
    try:
        for line, row in _rows(path, delimiter):
            if row and len(row) != columns:
                raise InputError(
                    f"has {len(row)} cell{'' if len(row) == 1 else 's'}",
                    where=f"{path}, line {line}",
                    expected=f"{columns}, as in the header",
                    fix="complete the line, or quote a cell that holds the delimiter",
                )
    except csv.Error as error:
        raise InputError(f"cannot be split into cells ({error})", where=str(path)) from None


def _check_encoding(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"holds the byte 0x{line[error.start]:02x}, which is no UTF-8",
                    where=f"{path}, line {number}",
                    expected="UTF-8",
                    fix="save the file as CSV UTF-8",
                ) from None


def _without_blank_lines(frame: pl.DataFrame) -> pl.DataFrame:
    """Drop lines without any cell; in a table of one column an empty line is a missing cell."""
    if frame.width == 1 or not frame[:, 0].null_count():
        return frame
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


# -- from text to numbers ---------------------------------------------------------------------------------------------


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Cast every column of text whose cells are all numbers (or all true/false); missing cells become null.

    One cell that is no number leaves its column text, so that it can be named.
    """
    return frame.with_columns(_typed(column) for column in frame if column.dtype == pl.String)


def _typed(text: pl.Series) -> pl.Series:
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() or numbers.is_nan().any():
        text = _with_nulls(text)
        numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return _whole(text, numbers)
    words = text.drop_nulls().str.to_lowercase()
    if words.is_in(list(TRUTH)).all():
        return text.str.to_lowercase().replace_strict(TRUTH, return_dtype=pl.Boolean)
    return text


def _with_nulls(text: pl.Series) -> pl.Series:
    """Make missing cells null, and take the spaces off numbers."""
    text = _without(text, MISSING)
    stripped = _without(text.str.strip_chars(), MISSING)
    return stripped if stripped.cast(pl.Float64, strict=False).null_count() == stripped.null_count() else text


def _without(text: pl.Series, words: Sequence[str]) -> pl.Series:
    return text.set(text.is_in(words).fill_null(False), None)


def _whole(text: pl.Series, numbers: pl.Series) -> pl.Series:
    """Give whole numbers where every cell is written as one."""
    if text.drop_nulls().head(100).cast(pl.Int64, strict=False).null_count():
        return numbers
    whole = text.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == text.null_count() and whole.null_count() < len(whole) else numbers
