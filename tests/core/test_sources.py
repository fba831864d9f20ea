"""The digest of a computation's source: what can change a number changes it, and nothing else does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sanov.core import sources
from sanov.core.sources import source_digest

FILES = {
    "experiments/x.py": '"""Words."""\nfrom sanov.systems import x\nfrom sanov import core\n',
    "systems/__init__.py": "ROWS = 1\n",
    "systems/x.py": (
        "from sanov.mathematics import f\nfrom sanov.core import files, frames\nfrom sanov.core.results import R\n"
        "from sanov.claims import Cell\nfrom sanov.claims_of_others import C\n\ndef g():\n    return f()\n"
    ),
    "mathematics.py": 'def f():\n    """Words."""\n    return 1  # one\n',
    "claims.py": "Cell = 1\n",
    "claims_of_others.py": "C = 1\n",
    "core/__init__.py": "",
    "core/files.py": "A = 1\n",
    "core/frames.py": "from sanov.core.delimited import D\n",
    "core/delimited.py": "D = 1\n",
    "core/results.py": "R = 1\n",
    "other.py": "B = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("mathematics.py", "return 1", "return 2", True),
        ("systems/x.py", "return f()", "return -f()", True),
        ("mathematics.py", "Words.", "Other words.", False),
        ("mathematics.py", "# one", "# still one", False),
        ("mathematics.py", "return 1", "return  1", False),
        ("mathematics.py", "return 1", "return '1'", True),
        ("core/files.py", "A = 1", "A = 2", True),
        ("core/delimited.py", "D = 1", "D = 2", True),
        ("core/results.py", "R = 1", "R = 2", False),
        ("claims.py", "Cell = 1", "Cell = 2", False),
        ("claims_of_others.py", "C = 1", "C = 2", True),
        ("systems/__init__.py", "ROWS = 1", "ROWS = 2", False),
        ("other.py", "B = 1", "B = 2", False),
    ],
)
def test_only_what_can_change_a_number_counts(name, old, new, changes, package):
    before = source_digest("sanov.experiments.x")
    path = package / name
    path.write_text(path.read_text().replace(old, new))
    assert (source_digest("sanov.experiments.x") != before) == changes


@pytest.mark.parametrize(
    ("name", "counts"), [("frames", True), ("delimited", True), ("files", True), ("pages", False), ("answers", False)]
)
def test_a_reader_of_files_counts_for_the_claims_that_read_files(name, counts, monkeypatch):
    """The real package: what `pn` reads goes through the first three, what shows a result does not."""
    before, read = source_digest("sanov.experiments.pn"), Path.read_text

    def changed(path, **more):
        return read(path, **more) + "\nX = 1" * (path == sources.PACKAGE / "core" / f"{name}.py")

    monkeypatch.setattr(Path, "read_text", changed)
    assert (source_digest("sanov.experiments.pn") != before) == counts


CODE = """
def f(x: int = 1, *rest, **more) -> str:
    class A:
        async def g(self): return [None, 1, 1.5, b"1", "1", ..., *rest]
    return f"{x!r:>{4}} {'a' 'b'}" f"{more}"
"""


def test_fields_that_only_some_versions_have_do_not_count():
    tree, other = ast.parse(CODE), ast.parse(CODE)
    for node in ast.walk(other):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            node.type_params, node._fields = [], (*node._fields, "type_params", "fresh")
            node.fresh = None
    lines = CODE.encode().split(b"\n")
    assert sources._dump(tree, lines) == sources._dump(other, lines)


def test_an_f_string_is_taken_as_it_is_written():
    code = 'x = "ä", f"ö{1}"; y = (f"""a\n{2}""" "b"\n  f"ü")\n'
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.JoinedStr)]
    written = [sources._written(node, code.encode().split(b"\n")) for node in found]
    assert written == [ast.get_source_segment(code, node) for node in found] != []


def test_all_versions_of_python_give_one_digest():
    """Those that are installed here; each reads the source as it is."""
    script = (
        "import sys; from sanov.core.sources import source_digest\n"
        "print(sys.version_info[:2], source_digest('sanov.experiments.pn'))"
    )
    found = {}
    for python in (sys.executable, *(f"python3.{minor}" for minor in range(11, 16))):
        environment = {**os.environ, "PYTHONPATH": str(sources.PACKAGE.parent)}
        try:
            done = subprocess.run([python, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            version, _, digest = done.stdout.strip().rpartition(" ")
            found[version] = digest
    if len(found) < 2:
        pytest.skip("one version of Python is installed here")
    assert len(set(found.values())) == 1, found
