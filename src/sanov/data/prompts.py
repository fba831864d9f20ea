"""Prompts from files and frames as people have them: TRL's and verl's columns, GSM8K's and MATH's; and generated ones.

What every table needs is a column ``prompt``. These layouts are known besides:

==================================== ================================================================================
columns                              become
==================================== ================================================================================
verl: ``reward_model.ground_truth``  ``answer``, where there is none
``question``, ``answer`` (GSM8K)     ``prompt``; the text is the ``solution``, the number after ``####`` the ``answer``
``problem``, ``answer`` (MATH)       ``prompt``
==================================== ================================================================================
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sanov.core import frames
from sanov.core.errors import InputError
from sanov.data import tasks
from sanov.data.prompt_rows import PASSED, SPLITS, Message, Prompts, concatenate, split_of

__all__ = ["PASSED", "SPLITS", "Message", "Prompts", "concatenate", "read", "split_of", "usual_rewards"]

TEXTS = ("prompt", "question", "problem", "answer", "solution")  # they stay text, even if they look like numbers
MARK = "####"
PLAIN_ANSWERS = (
    "math",
    "math_dapo",
    "math_dapo_reasoning",
)  # verl's sources whose prompts ask for "Answer: ...", and no box
Columns = dict[str, list[Any]]


def read(sources: Any) -> Prompts:
    """Return the prompts of one source, or of several one after the other.

    Parameters
    ----------
    sources
        Paths (JSONL, Parquet, CSV and what else `frames.read_frame` reads), data frames, a Hugging Face ``Dataset``, mappings
        of columns, `Prompts`, or ``embedded:NAME`` and ``reasoning_gym:NAME``, which are generated (`tasks.resolve`).

    Raises
    ------
    InputError
        No source, an empty file, no column of prompts, a prompt that is missing, or files of different columns.
    """
    several = list(sources) if isinstance(sources, list | tuple) else [sources]
    if not several:
        raise InputError("no prompts were given", fix="name a file with a column `prompt`, or embedded:chain_sum")
    tables = [_table(tasks.resolve(source)) for source in several]
    for source, table in zip(several, tables, strict=True):
        if table.columns.keys() != tables[0].columns.keys() and not any(map(tasks.is_named, several)):
            found = f"has the columns {', '.join(table.columns) or 'of prompts alone'}"
            expected = f"those of {tables[0].name} ({', '.join(tables[0].columns) or 'prompts alone'})"
            raise InputError(found, where=frames.name_of(source), expected=expected)
    return tables[0] if len(tables) == 1 else concatenate(tables)


def usual_rewards(table: Prompts) -> list[str]:
    """Return the built-in rewards that fit the columns of a table; none where that cannot be told."""
    columns = table.columns
    if "task" in columns and all(map(tasks.is_known, columns["task"])):
        return ["task"]
    if {"numbers", "answer"} <= columns.keys():
        return ["countdown"]
    solutions = [str(text) for text in columns.get("solution", ("",))]
    sources = {str(source).lower() for source in columns.get("data_source", ("",))}
    if "answer" in columns and (all(MARK in text for text in solutions) or all("gsm8k" in name for name in sources)):
        return ["number"]
    boxed = all(r"\boxed" in text for text in solutions)
    asks_for_boxes = all("math" in name and name not in PLAIN_ANSWERS for name in sources)
    return ["math"] if boxed or ("answer" in columns and asks_for_boxes) else []


# -- one source -------------------------------------------------------------------------------------------------------


def _table(source: Any) -> Prompts:
    if isinstance(source, Prompts):
        return source
    name = frames.name_of(source)
    if frames.is_path(source) and Path(source).suffix.lower() in (".jsonl", ".ndjson"):
        columns = _json_columns(Path(source))
    elif isinstance(source, Mapping):
        columns = {str(column): list(cells) for column, cells in source.items()}
    elif hasattr(source, "column_names") and hasattr(source, "to_dict"):  # a Dataset, whose cells are Python's own
        columns = source.to_dict()
    else:
        frame = frames.read_frame(source, text=TEXTS)
        columns = {column.name: column.to_list() for column in frame}
    prompts, rest = _arranged(columns, name)
    return Prompts(tuple(map(_without_gaps, prompts)), rest, name)


def _json_columns(path: Path) -> Columns:
    """Cells as they stand in the file: a frame would give each column one type, and messages each other's fields."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            rows.append(_object(line, f"{path}, line {number}"))
    if not rows:
        raise InputError("has no rows", where=str(path), expected="one JSON object a line")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        fix = f"did you mean '{path.with_name(near[0])}'?" if near else None
        raise InputError("no such file", where=str(path), fix=fix) from None
    except UnicodeDecodeError:
        raise InputError("is not encoded in UTF-8", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=where) from None
    if not isinstance(row, dict):
        raise InputError(f"is a {type(row).__name__}", where=where, expected="an object")
    return row


# -- layouts ----------------------------------------------------------------------------------------------------------


def _arranged(columns: Columns, name: str) -> tuple[list[Any], Columns]:
    """Return the prompts, and the other columns by the names that this package has for them."""
    rest = dict(columns)
    if "prompt" in rest:
        prompts = rest.pop("prompt")
    elif {"question", "answer"} <= rest.keys():
        prompts, rest = rest.pop("question"), _marked(rest)
    elif {"problem", "answer"} <= rest.keys():
        prompts = rest.pop("problem")
    else:
        found = f"has no column 'prompt'; its columns are: {', '.join(columns)}"
        fix = "rename the column of prompts"
        raise InputError(found, where=name, expected="a column 'prompt' (or question and answer)", fix=fix)
    truths = [
        model.get("ground_truth") if isinstance(model, Mapping) else None for model in rest.get("reward_model", ())
    ]
    if truths and "answer" not in rest:
        rest["answer"] = truths
    return prompts, rest


def _marked(columns: Columns) -> Columns:
    """Where every answer is a text that ends in ``#### number``, the text is the solution and the number the answer."""
    answers = columns["answer"]
    if "solution" in columns or not all(isinstance(text, str) and MARK in text for text in answers):
        return columns
    numbers = [text.rpartition(MARK)[2].strip().replace(",", "") for text in answers]
    return {**columns, "solution": answers, "answer": numbers}


def _without_gaps(prompt: Any) -> Any:
    """Drop from messages the fields that a table of one type gave them and that hold nothing."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return prompt
    return [
        {key: cell for key, cell in message.items() if cell is not None or key == "content"}
        if isinstance(message, Mapping)
        else message
        for message in prompt
    ]
