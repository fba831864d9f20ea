"""The digest of the source that a computation depends on."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanov.core import files

__all__ = ["source_digest"]

PACKAGE = Path(__file__).parents[1]
SHOWING = ("answers", "cells", "charts", "locks", "pages", "progress", "results")  # of core: they come after a value
BYSTANDERS = {"sanov", "sanov.systems", "sanov.claims", *(f"sanov.core.{name}" for name in SHOWING)}


def source_digest(module: str) -> str:
    """Digest of a module and of all modules of sanov that it imports, directly or through others.

    Left out is what cannot change a value: the runner of claims, the table of systems, and of `core` what shows a
    result (`answers`, `cells`, `charts`, `locks`, `pages`, `progress`, `results`). Readers of files are in it, as a
    reader decides which numbers there are. Comments, docstrings and layout do not count, except in f-strings, which
    count as they are written. All versions of Python give the same digest. What is not seen: a module that is imported
    by a computed name, the ``__init__`` of a package of which modules alone are imported, versions of other packages.

    Parameters
    ----------
    module
        Dotted name, such as ``"sanov.experiments.pn"``. Nothing is imported.
    """
    trees: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _path(name)
        if path is None or name in trees or name in BYSTANDERS:
            continue
        trees[name], imports = _read(path.read_text(encoding="utf-8"))
        queue += imports
    return files.digest(trees)


@functools.cache
def _read(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a module's syntax tree as text, and the modules that it may import."""
    tree = ast.parse(text)
    return json.dumps(_dump(_without_docstrings(tree), text.encode().split(b"\n"))), tuple(_imports(tree))


def _path(module: str) -> Path | None:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _dump(node: Any, lines: list[bytes]) -> Any:
    """Return a syntax tree as lists and texts. `ast.dump` differs between versions of Python: this does not."""
    match node:
        case ast.JoinedStr():  # 3.12 took f-strings apart in another way
            return ["f-string", _written(node, lines)]
        case ast.AST():
            fields = [(name, value) for name, value in ast.iter_fields(node) if name != "type_params"]
            filled = [[name, _dump(value, lines)] for name, value in fields if value not in (None, [])]
            return [type(node).__name__, filled]
        case list():
            return [_dump(each, lines) for each in node]
        case str():
            return node
    return [type(node).__name__, repr(node)]


def _written(node: ast.JoinedStr, lines: list[bytes]) -> str:
    """Return the source of a node, as `ast.get_source_segment` does in much more time."""
    assert node.end_lineno is not None
    *above, last = lines[node.lineno - 1 : node.end_lineno]
    return b"\n".join([*above, last[: node.end_col_offset]])[node.col_offset :].decode()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
                | ast.ClassDef(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
                | ast.FunctionDef(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
                | ast.AsyncFunctionDef(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
            ):
                node.body = rest
    return tree


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.startswith("sanov."))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "sanov":
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
