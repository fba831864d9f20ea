"""The digest of the source that a computation depends on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sanov.core import files

__all__ = ["source_digest"]

PACKAGE = Path(__file__).parents[1]
BYSTANDERS = ("sanov.core", "sanov.claims")  # they move results about, and cannot change a computed value
TABLES = ("sanov", "sanov.systems")  # text alone


def source_digest(module: str) -> str:
    """Digest of a module and of all that it imports of sanov.

    `core`, the runner of claims and the table of systems are left out: they cannot change a value. Comments, docstrings
    and layout do not count.

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
        if path is None or name in trees or name in TABLES or name.startswith(BYSTANDERS):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        trees[name] = ast.dump(_without_docstrings(tree))
        queue += _imports(tree)
    return files.digest(trees)


def _path(module: str) -> Path | None:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        match node:
            case ast.Module(body=[ast.Expr(value=ast.Constant()), *rest]):
                node.body = rest
            case ast.FunctionDef(body=[ast.Expr(value=ast.Constant()), *rest]):
                node.body = rest
            case ast.ClassDef(body=[ast.Expr(value=ast.Constant()), *rest]):
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
