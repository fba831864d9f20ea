"""Texts to adapt a model to: with labels, alone, or as completions of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from sanov.core import files, frames
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.labels import encode_labels
from sanov.data.splits import stratified

__all__ = ["EMBEDDED", "Columns", "Texts", "read"]

EMBEDDED = ("embedded:reviews", "embedded:reviews-new")
ROWS = 2048  # of each of the two


class Columns(Options):
    """The user's names of columns."""

    text: str = option("text", "Column of texts.", source="choice: the usual name")
    label: str = option("label", "Column of labels; without it the model learns the texts themselves.", source="choice")
    prompt: str = option(
        "prompt", "Column of prompts, of which the texts (or `completion`) are the continuation.", source="choice"
    )
    completion: str = option("completion", "Column of completions of prompts.", source="choice")


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, and what belongs to them.

    Parameters
    ----------
    texts
        What is read or written.
    labels
        Index of the class; -1 where a row has none. None where there are no labels at all.
    classes
        Names of the classes.
    prompts
        What each text continues; None where it stands alone.
    name, source
        What to call the table in a message, and the caller's own.
    """

    texts: tuple[str, ...]
    labels: Int64[np.ndarray, " rows"] | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None
    name: str = "the texts"
    source: Any = None

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self) -> list[str]:
        """Return what makes rows one and the same: the prompt, or the text."""
        return list(self.prompts or self.texts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Texts:
        """Return some of the rows, in the order asked for."""
        index = [int(row) for row in rows]
        return Texts(
            tuple(self.texts[row] for row in index),
            None if self.labels is None else self.labels[index],
            self.classes,
            None if self.prompts is None else tuple(self.prompts[row] for row in index),
            self.name,
        )

    def labelled(self) -> Texts:
        """Return the rows that have a label; all of them where labels are not what is learned."""
        return self if self.labels is None or (self.labels >= 0).all() else self.take(np.flatnonzero(self.labels >= 0))

    def aligned(self, classes: Sequence[str]) -> Texts:
        """Return the texts with labels that are indices of other names.

        Raises
        ------
        InputError
            A label is none of these classes, with its row.
        """
        if self.labels is None or tuple(classes) == self.classes:
            return self
        names = [None if label < 0 else self.classes[label] for label in self.labels]
        fix = "leave out those rows, or fit a model to these classes"
        labels, _ = encode_labels(names, classes, name=self.name, fix=fix)
        return replace(self, labels=labels, classes=tuple(classes))

    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        labels = None if self.labels is None else self.labels.tolist()
        return files.digest([self.texts, labels, self.classes, self.prompts])

    def divided(self, share: float, seed: int) -> tuple[Texts, Texts | None]:
        """Return the rows to train on and those held out; rows of one text, or of one prompt, are on one side."""
        keys = self.keys()
        distinct = sorted(set(keys))
        count = min(round(share * len(distinct)), len(distinct) - 1)
        if count < 1:
            return self, None
        chosen = np.random.default_rng([seed, len(distinct)]).permutation(len(distinct))[:count]
        held = {distinct[place] for place in chosen}
        inside = [key in held for key in keys]
        rows = np.arange(len(keys))
        return self.take(rows[~np.array(inside)]), self.take(rows[np.array(inside)])


def read(sources: Sequence[Any], columns: Columns, classes: Sequence[str] | None = None) -> Texts:
    """Read one table of texts, or a file of one text a line.

    Parameters
    ----------
    sources
        One table (or ``embedded:reviews``), or a ``.txt`` file.
    columns
        The user's names.
    classes
        Those of a model, to which labels must belong; None takes those that occur.

    Raises
    ------
    InputError
        There is no such column, a text is empty (with the rows), or a label is no class.
    """
    if len(sources) != 1:
        found = f"{len(sources)} sources were given" if sources else "no data were given"
        fix = f"name a file, or {EMBEDDED[0]}, which needs none"
        raise InputError(found, expected="one table of texts", fix=fix)
    source, name = sources[0], frames.name_of(sources[0])
    if isinstance(source, Texts):
        return source
    if isinstance(source, str) and source.startswith("embedded:"):
        return _embedded(source)
    if frames.is_path(source) and Path(source).suffix == ".txt":
        return _checked(Texts(tuple(_lines(Path(source))), name=name))
    frame = frames.read_frame(source)
    prompts = _cells(frame, columns.prompt, name) if columns.prompt in frame.columns else None
    column = columns.completion if prompts and columns.completion in frame.columns else columns.text
    texts = _cells(frame, column, name)
    if prompts is not None or columns.label not in frame.columns:
        if "label" in columns.model_fields_set and prompts is None:
            frames.check_columns(frame, [columns.label], name=name)
        return _checked(Texts(texts, prompts=prompts, name=name, source=source))
    cells = frame[columns.label]
    labels: list[str | None] = (cells.cast(pl.Int64) if _whole(cells) else cells).cast(pl.String).to_list()
    fix = "leave out those rows, or fit a model to these classes"
    encoded, names = encode_labels(labels, classes, name=name, fix=fix)
    return _checked(Texts(texts, encoded, names, name=name, source=source))


def _whole(cells: pl.Series) -> bool:
    return cells.dtype.is_float() and bool((cells.drop_nulls() % 1 == 0).all())


def _cells(frame: pl.DataFrame, column: str, name: str) -> tuple[str, ...]:
    frames.check_columns(frame, [column], name=name)
    return tuple(text or "" for text in frame[column].cast(pl.String).to_list())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as UTF-8 ({error})", where=str(path)) from None


def _checked(found: Texts) -> Texts:
    empty = [row for row, text in enumerate(found.texts, start=1) if not text.strip()]
    if empty:
        rows = ", ".join(map(str, empty[:5])) + (" ..." if len(empty) > 5 else "")
        fix = "leave out those rows"
        raise InputError(f"the text is empty ({len(empty)} in all)", where=f"{found.name}, row {rows}", fix=fix)
    return found


def _embedded(source: str) -> Texts:
    """Return 2,048 sentences of film reviews, or 2,048 others; no text is in both."""
    from sanov.data.text import movie_reviews

    if source not in EMBEDDED:
        raise InputError("there is no such table", where=source, expected=" or ".join(EMBEDDED))
    table = movie_reviews()
    assert table.labels is not None
    chosen = table.take(stratified(table.labels, (ROWS, ROWS), 0)[EMBEDDED.index(source)])
    return Texts(tuple(map(str, chosen.inputs)), chosen.labels, chosen.classes, name=source)
