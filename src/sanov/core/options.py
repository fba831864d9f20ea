"""Options: a system's `Config` from ``key=value`` words and a file, and the table that documents it."""

from __future__ import annotations

import difflib
import json
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from sanov.core.errors import InputError

__all__ = ["Options", "describe", "option", "parse", "split"]

Config = TypeVar("Config", bound="Options")


class Options(BaseModel):
    """Base of every `Config` and of every group of options: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        fields = cls.model_fields
        return {name: _from_word(value, fields[name]) if name in fields else value for name, value in tree.items()}


def option(default: Any, description: str, *, source: str, unit: str = "", **constraints: Any) -> Any:
    """Declare one option.

    Parameters
    ----------
    default
        The default; ``...`` where there is none.
    description
        One sentence.
    source
        Where the default comes from: ``"paper"``, ``"released code"``, ``"choice"``, with the place.
    unit
        Unit of the value, if it has one.
    constraints
        pydantic's: ``gt``, ``ge``, ``lt``, ``le``, ``min_length`` ...
    """
    return Field(default, description=description, json_schema_extra={"source": source, "unit": unit}, **constraints)


def split(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Separate data from options: a word with ``=`` is an option, unless a file of that name exists."""
    data: list[str] = []
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and not Path(word).exists():
            if name in options:
                raise InputError("the option is given twice", where=name, fix="keep one of the two")
            options[name] = value
        else:
            data.append(word)
    return data, options


def parse(config: type[Config], options: Mapping[str, Any], file: str | Path | None = None) -> Config:
    """Build a `Config` from dotted options, over a TOML or JSON file, over the defaults.

    Raises
    ------
    InputError
        Unknown name (with the nearest one), a value of the wrong type or out of range (with the legal range), or an
        unreadable file.
    """
    tree: dict[str, Any] = _read(Path(file)) if file is not None else {}
    for name, value in options.items():
        _insert(tree, name.split("."), value)
    try:
        return config.model_validate(tree)
    except ValidationError as error:
        raise _input_error(config, error) from None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError("no such file", where=str(file), expected="a TOML or JSON file of options")
    try:
        text = file.read_text(encoding="utf-8-sig")
        tree = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise InputError(f"cannot be read ({error})", where=str(file), expected="TOML or JSON") from None
    if not isinstance(tree, dict):
        raise InputError("is not a table of options", where=str(file), expected="names with values")
    return tree


def _insert(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise InputError("is given both as a value and as a group", where=part, fix="keep one of the two")
        tree = branch
    tree[path[-1]] = value


def _input_error(config: type[Options], error: ValidationError) -> InputError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    fields = dict(_fields(config))
    if first["type"] == "extra_forbidden":
        if isinstance(first["input"], Mapping) and len(first["input"]) == 1:  # a group that does not exist
            name += f".{next(iter(first['input']))}"
        near = _nearest(name, fields)
        meant = " or ".join(f"'{option}'" for option in near)
        fix = f"did you mean {meant}?" if near else f"the options are: {', '.join(fields)}"
        return InputError("there is no such option", where=name, fix=fix)
    field = next((fields[".".join(path[:n])] for n in range(len(path), 0, -1) if ".".join(path[:n]) in fields), None)
    if first["type"] == "missing":
        return InputError("this option has no default", where=name, fix=f"pass {name}=...")
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" or field is None:
        return InputError(problem, where=name or None)
    value = (
        reprlib.repr(first["input"]) if isinstance(first["input"], str | int | float) else type(first["input"]).__name__
    )
    return InputError(f"the value is {value}", where=name, expected=_legal(field) or problem)


def _nearest(name: str, fields: Iterable[str]) -> list[str]:
    """Return the options that were meant: by dotted name, as Python would write it, or all of one last part, in order."""
    by_last: dict[str, list[str]] = {}
    for known in fields:
        by_last.setdefault(known.rsplit(".", 1)[-1], []).append(known)
    if name in by_last:  # rather than the one whose group is called most like it
        return by_last[name]
    whole = {known: [known] for known in fields}
    by_python = {known.replace(".", "_"): [known] for known in fields}
    for names in (whole, by_python, by_last):
        near = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(
            name.rsplit(".", 1)[-1], names, n=1
        )
        if near:
            return names[near[0]]
    return []


def describe(config: type[Options]) -> list[dict[str, str]]:
    """One row per option: name, default, legal values, unit, meaning, source."""
    rows = []
    for name, field in _fields(config):
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        rows.append({
            "name": name,
            "default": "required" if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            "legal": _legal(field),
            "unit": str(extra.get("unit", "")),
            "meaning": field.description or "",
            "source": str(extra.get("source", "")),
        })  # fmt: skip
    return rows


def _fields(config: type[Options], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(_plain, value)) or "none"
    return str(value)


def _legal(field: FieldInfo) -> str:
    choices = [choice for part in _parts(field.annotation) for choice in part]
    if choices:
        number = ["a number"] if float in _alternatives(field.annotation) else []
        return " | ".join([*number, *map(_plain, choices)])
    bounds = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {_plain(getattr(rule, key))}"
        for rule in field.metadata
        for key, sign in bounds.items()
        if hasattr(rule, key)
    ]
    kind = {bool: "true | false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    several = [part for part in _alternatives(field.annotation) if get_origin(part) is tuple]
    kinds = get_args(several[0]) if several else _alternatives(field.annotation)
    name = next((kind[part] for part in kinds if part in kind), "")
    return " ".join([name, " and ".join(found)]).strip() + (", several separated by commas" if several else "")


def _from_word(value: Any, field: FieldInfo) -> Any:
    """Read ``none`` as None, ``a,b`` as two values, ``1`` and ``1e2`` as whole numbers, where the field can hold that."""
    kinds = _alternatives(field.annotation)
    if not isinstance(value, str) or (str in kinds and value != "none"):
        return value
    if value == "none" and type(None) in kinds:
        return None
    if any(get_origin(kind) is tuple for kind in kinds):
        return tuple(part.strip() for part in value.split(",")) if value not in ("", "none") else ()
    choices = {str(choice): choice for part in _parts(field.annotation) for choice in part}
    return choices.get(value, _whole(value) if int in kinds and float not in kinds else value)


def _whole(word: str) -> str | int:
    """Read ``1e2`` as the whole number that it is."""
    try:
        number = float(word)
    except ValueError:
        return word
    return int(number) if "e" in word.lower() and number.is_integer() else word


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; of anything else, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _parts(annotation: Any) -> Iterator[tuple[Any, ...]]:
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _parts(part)
