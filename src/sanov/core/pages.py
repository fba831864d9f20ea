"""Pages for a person: a few kinds of block, rendered to one HTML file that asks no host for anything."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jinja2
import polars as pl
from markupsafe import Markup

from sanov.core import charts, files
from sanov.core.cells import shown_column

__all__ = ["Block", "Figure", "Page", "Passage", "Passages", "Section", "Table", "Text", "fragment", "render"]

SHADES = (0.1, 0.3, 1.0, 3.0)  # nats from which on a token has the next darker shade
ROWS = 500  # rows of a table that a page shows; its CSV button gives the same
VERDICTS = ("holds", "fails", "inconclusive", "not run", "reported")


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    heading: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A data frame; columns of text named in `right` are set right like numbers."""

    heading: str
    frame: pl.DataFrame
    caption: str = ""
    right: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite specification with its data inside."""

    heading: str
    spec: Mapping[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Passage:
    """A text in tokens, each shaded by a number around 0; None for none."""

    prompt: str
    label: str
    tokens: Sequence[str]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Passages:
    """Texts to browse, those of one prompt under one another."""

    heading: str
    passages: Sequence[Passage]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """Blocks under a heading with a badge: the verdict on a claim, or any other word."""

    heading: str
    badge: str = ""
    lead: str = ""
    blocks: Sequence[Text | Table | Figure | Passages] = ()

    @property
    def kind(self) -> str:
        """The verdict that the badge begins with, as a CSS class."""
        return next((verdict for verdict in VERDICTS if self.badge.startswith(verdict)), "other").replace(" ", "-")


Block: TypeAlias = Text | Table | Figure | Passages | Section


@dataclass(frozen=True)
class Page:
    """What a page says, in the order in which it says it.

    Parameters
    ----------
    title
        Name of the system or of the page.
    lead
        The answer in one sentence, with its interval.
    notes
        What was dropped or assumed.
    blocks
        Everything else.
    footer
        Version, digest of the input, command that rebuilds the page.
    """

    title: str
    lead: str
    notes: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    footer: Mapping[str, str] = field(default_factory=dict)


def render(page: Page) -> str:
    """Return a page as one HTML file: scripts, styles and data inside, in light and dark, for a screen or for paper."""
    charted = any(isinstance(block, Figure) for block in _flat(page.blocks))
    return _template("page.html.j2").render(
        page=page,
        sections=[block for block in page.blocks if isinstance(block, Section)],
        script=Markup(charts.javascript()) if charted else "",
        config=_json(charts.CONFIG),
    )


def fragment(page: Page, rows: int) -> str:
    """Return a page as HTML without scripts, for a notebook: pictures, and tables of at most so many rows."""
    return _template("fragment.html.j2").render(page=page, blocks=_flat(page.blocks), rows=rows)


def _flat(blocks: Sequence[Block]) -> list[Text | Table | Figure | Passages]:
    flat: list[Text | Table | Figure | Passages] = []
    for block in blocks:
        flat += block.blocks if isinstance(block, Section) else [block]
    return flat


# -- cells ------------------------------------------------------------------------------------------------------------


def _cells(table: Table, rows: int) -> list[list[dict[str, str | None]]]:
    """Return what is shown in each cell, with the exact value where that is something else."""
    columns = [_column(column) for column in table.frame.head(rows)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(column: pl.Series) -> list[dict[str, str | None]]:
    texts, exact = shown_column(column), [_exact(cell) for cell in column.to_list()]
    minus = column.dtype.is_numeric()
    return [
        {"text": text.replace("-", "\u2212", 1) if minus else text, "exact": None if text == value else value}
        for text, value in zip(texts, exact, strict=True)
    ]


def _exact(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else files.to_json(cell)


def _right(table: Table) -> list[bool]:
    return [column.dtype.is_numeric() or column.name in table.right for column in table.frame]


# -- passages ---------------------------------------------------------------------------------------------------------


def _by_prompt(block: Passages) -> dict[str, list[Passage]]:
    found: dict[str, list[Passage]] = {}
    for passage in block.passages:
        found.setdefault(passage.prompt, []).append(passage)
    return found


def _shaded(passage: Passage) -> list[dict[str, str]]:
    """Return each token with the class of its shade, and its number."""
    tokens = []
    for text, value in zip(passage.tokens, passage.values, strict=True):
        level = 0 if value is None else sum(abs(value) >= bound for bound in SHADES)
        tone = f"{'more' if value and value > 0 else 'less'}-{level}" if level else ""
        tokens.append({"text": text, "tone": tone, "number": "" if value is None else f"{value:+.2f}"})
    return tokens


# -- templates --------------------------------------------------------------------------------------------------------


def _json(tree: Any) -> Markup:
    """Return JSON that can stand inside a script element: nothing in it closes one."""
    return Markup(files.to_json(tree).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sanov.core"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "spec": lambda figure: _json(charts.embeddable(figure.spec)),
        "svg": lambda figure: Markup(charts.svg(figure.spec)),
        "cells": _cells,
        "right": _right,
        "by_prompt": _by_prompt,
        "shaded": _shaded,
    }
    environment.globals |= {"light": charts.LIGHT, "dark": charts.DARK, "font": Markup(charts.FONT), "limit": ROWS}
    return environment


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)
