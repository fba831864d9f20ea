"""Answers out of free text: a number, a letter, or the name of an option; nothing found is no answer.

Deviations from the released code, each of which changes an answer that the code gets wrong: a minus sign counts only where
it begins a number ("3-4" ends in 4, not in -4); only commas that group thousands are taken out ("3,4" is two numbers);
numbers are compared as numbers ("5.", "5.0" and "05" are 5); a letter must stand by itself (the A of "Answer" is none).
As in the code, units and percent signs are dropped, and a fraction gives its last number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal

import polars as pl

__all__ = ["Answers", "extract"]

Answers = Literal["exact", "number", "letter", "options"]
LETTERS = ("A", "B", "C", "D", "E")  # of the released code (AQuA)
NUMBER = re.compile(
    r"((?<![\w)\]])[-\u2212])?[$\u20ac\u00a3]?"  # a sign that follows neither a word, a number nor a bracket
    r"(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.\d+|(?<!\d)\.\d+|\d+)"
    r"([eE][+-]?\d{1,2}(?![\w.]))?"
)


def extract(cells: pl.Series, how: Answers, options: Sequence[str] = ()) -> pl.Series:
    """Return the answer that each text gives, as text; null where none is found.

    Parameters
    ----------
    cells
        Texts.
    how
        ``exact``: the whole text, which must be an option where there are any. ``number``: the last number. ``letter``:
        the letter of a choice. ``options``: the first option that is named, in whatever case.
    options
        Names of the answers; for letters, the letters (default A to E).

    Reference
    ---------
    ramesh2025fidelity, released code.
    """
    if how == "exact" and not options:
        return cells
    find = _finder(how, tuple(options))
    texts = cells.unique().drop_nulls()
    answers = pl.Series([find(text) for text in texts.to_list()], dtype=pl.String)
    return cells.replace_strict(texts, answers, default=None, return_dtype=pl.String)


def _finder(how: Answers, options: tuple[str, ...]) -> Callable[[str], str | None]:
    match how:
        case "number":
            return _last_number
        case "letter":
            return _letter_finder(tuple(map(str.upper, options)) or LETTERS)
        case "options":
            return _option_finder(options)
        case _:
            return lambda text: text if text in options else None


def _last_number(text: str) -> str | None:
    found = None
    for found in NUMBER.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    sign, digits, exponent = found.groups("")
    number = Decimal(digits.replace(",", "") + exponent).normalize() + 0  # the zero takes the sign off -0
    return format(-number if sign and number else number, "f")


def _letter_finder(letters: tuple[str, ...]) -> Callable[[str], str | None]:
    """Look for a lone letter, then for one that is announced, then for one in brackets, then for any that stands alone."""
    some = "[" + "".join(map(re.escape, letters)) + "]"
    alone = re.compile(rf"\W*({some})\W*", re.IGNORECASE)
    announced = re.compile(rf"(?i:answer|option|choice)(?i:\s+is)?\W*({some})(?!\w)")
    marked = re.compile(rf"\(({some})\)|(?<!\w)({some})[).:]")
    anywhere = re.compile(rf"(?<!\w)(?!A\s+[a-z])({some})(?![\w'])")  # the article is no choice

    def find(text: str) -> str | None:
        if whole := alone.fullmatch(text):
            return whole[1].upper()
        if told := announced.findall(text):
            return str(told[-1])
        if place := marked.search(text) or anywhere.search(text):
            return next(group for group in place.groups() if group)
        return None

    return find


def _option_finder(options: tuple[str, ...]) -> Callable[[str], str | None]:
    spelled = {option.lower(): option for option in options}
    names = "|".join(re.escape(option) for option in sorted(spelled, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)({names})(?!\w)", re.IGNORECASE)

    def find(text: str) -> str | None:
        found = pattern.search(text)
        return spelled[found[1].lower()] if found else None

    return find
