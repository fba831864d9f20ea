"""Tables in text files: read as text, checked line by line where something is odd, and only then cast to numbers."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import dropwhile
from pathlib import Path

import polars as pl

from sanov.core.errors import InputError, SanovWarning

__all__ = ["MISSING", "check_names", "read_delimited", "typed"]

DELIMITERS = {",": '","', ";": '";"', "\t": "tab", "|": '"|"'}
MISSING = ["", "NA", "NaN", "null", "na", "nan", "NAN", "Null", "NULL", "N/A", "n/a"]
TRUTH = {"true": True, "false": False}
HEAD = 65_536  # bytes that are looked at before a file is taken for text
LONGEST = 2**31 - 1  # characters of a cell: what the csv module takes on every system; its own 131,072 are one essay
EXACT = 2**53  # from here on a float is not every whole number


def read_delimited(path: Path, delimiter: str, text: Collection[str] = ()) -> pl.DataFrame:
    """Read a text file whose first line names the columns.

    Parameters
    ----------
    path
        A file in UTF-8, with or without a byte order mark.
    delimiter
        What separates the cells.
    text
        Columns that stay text.

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
    frame = _without_blank_lines(frame, path, delimiter)
    if frame.height == 0:
        raise InputError("has a header but no rows", where=str(path))
    if frame[:, -1].null_count() and len(names) > 1:  # a line that ends too early is filled with missing cells
        _find_bad_line(path, delimiter, len(names))
    return typed(frame, text)


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
        csv.field_size_limit(LONGEST)
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
    check_names(path, names)
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


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse a column without a name and two of one name; doubt names that are all numbers.

    Raises
    ------
    InputError
        With the column.
    """
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


def _without_blank_lines(frame: pl.DataFrame, path: Path, delimiter: str) -> pl.DataFrame:
    """Drop lines without any character; in a table of one column such a line is a missing cell.

    A line of delimiters alone is a row whose cells are all missing. Polars gives it as it gives an empty line, so the
    file is asked which of the two it is.
    """
    if frame.width == 1 or not frame[:, 0].null_count():
        return frame
    if not frame.select(pl.all_horizontal(pl.all().is_null()).any()).item():
        return frame
    lines = (bool(row) for _, row in _rows(path, delimiter))
    _header_line, *filled = dropwhile(lambda line: not line, lines)
    if len(filled) != frame.height:
        raise InputError("mixes line ends", where=str(path), fix="save it with one kind of line end")
    return frame.filter(pl.Series(filled, dtype=pl.Boolean))


# -- from text to numbers ---------------------------------------------------------------------------------------------


def typed(frame: pl.DataFrame, text: Collection[str] = ()) -> pl.DataFrame:
    """Cast every column of text whose cells are all numbers (or all true/false); missing cells become null.

    One cell that is no number leaves its column text, so that it can be named. So does one that a number would not
    give back (007, twenty digits): such a column is a code. In a column of text only the empty cell is missing, for
    NA may be Namibia.

    Parameters
    ----------
    frame
        A table of which some columns are text.
    text
        Columns that stay text.
    """
    return frame.with_columns(
        _with_nulls(column) if column.name in text else _typed(column) for column in frame if column.dtype == pl.String
    )


def _typed(text: pl.Series) -> pl.Series:
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() or numbers.is_nan().any():
        text = _with_nulls(text)
        numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return _number(text, numbers)
    if _is_truth(text):
        return text.str.to_lowercase().replace_strict(TRUTH, return_dtype=pl.Boolean)
    return text


def _with_nulls(text: pl.Series) -> pl.Series:
    """Make missing cells null, and take the spaces off numbers."""
    stripped = _without(text.str.strip_chars(), MISSING)
    if stripped.cast(pl.Float64, strict=False).null_count() == stripped.null_count() or _is_truth(stripped):
        return stripped
    return _without(text, [""])


def _without(text: pl.Series, words: Sequence[str]) -> pl.Series:
    return text.set(text.is_in(words).fill_null(False), None)


def _is_truth(text: pl.Series) -> bool:
    return text.drop_nulls().str.to_lowercase().is_in(list(TRUTH)).all()


def _number(text: pl.Series, numbers: pl.Series) -> pl.Series:
    """Give whole numbers where every cell is written as one, and the text where a number would not give it back."""
    if text.str.contains(r"^0\d").any():
        return text
    if not text.drop_nulls().head(100).cast(pl.Int64, strict=False).null_count():
        whole = text.cast(pl.Int64, strict=False)
        if whole.null_count() == text.null_count() and whole.null_count() < len(whole):
            return whole
    large = text.filter(numbers.abs() >= EXACT)
    return text if large.str.contains(r"^[+-]?\d+$").any() else numbers
