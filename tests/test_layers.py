"""The walls of the house: which module may import which, and what no module may do. Each finding names its line."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sanov"
FILES = sorted(PACKAGE.rglob("*.py"))
# A module may import what stands below it, and its own layer unless that is said otherwise.
LAYERS = (
    {"core"},
    {"mathematics", "data", "report"},
    {"claims", "nets"},
    {"learning", "tracing"},
    {"systems", "baselines"},
    {"experiments", "bridges"},
    {"cli"},
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
ONLY = {  # narrower than the layers say
    "core": {"core"},
    "mathematics": {"mathematics", "core.errors"},
    "data": {"data", "core"},
    "report": {"core"},
    "claims": {"core", "mathematics"},
}
APART = ("systems", "baselines")  # their members never import one another
TABLE = "systems"  # rows of text, which the package's door reads
FREE_OF_TORCH = (
    "families",
    "comparisons",
    "scores",
    "systems.fidelity",
    "systems.pn",
    "core",
    "report",
    "claims",
    "cli",
)
LONGEST_FILE, LONGEST_FUNCTION = 450, 60


def name_of(path):
    """Dotted name below `sanov`; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name):
    first = name.split(".")[0]
    return first if first in LEVEL else "mathematics"


def is_module(name):
    place = PACKAGE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports_of(tree):
    """Line and dotted name below `sanov` of everything of ours that is imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            if module.split(".")[0] == "sanov":
                inside = module.removeprefix("sanov").removeprefix(".")
                for alias in node.names:
                    full = f"{inside}.{alias.name}".strip(".")
                    yield node.lineno, full if is_module(full) else inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sanov":
                    yield node.lineno, alias.name.removeprefix("sanov").removeprefix(".")


def complaint(importer, imported):
    """Why this arrow is wrong, or None. Names are dotted, below `sanov`; the package itself is the empty name."""
    if importer == "":
        return None if imported == TABLE else "the package itself imports only its table of systems"
    if imported == "":  # __version__
        return "the mathematics knows nothing of the package" if layer_of(importer) == "mathematics" else None
    here, there = layer_of(importer), layer_of(imported)
    if there == "bridges" and here != "bridges":
        return "imports a bridge"
    if here in ONLY and there not in ONLY[here] and imported not in ONLY[here]:
        return f"{here} imports only {sorted(ONLY[here])}"
    if here in APART and there in APART and importer.split(".")[:2] != imported.split(".")[:2]:
        return "systems and baselines never import one another"
    if LEVEL[there] > LEVEL[here]:
        return f"{here} stands below {there}"
    return None


@functools.cache
def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def test_imports_go_one_way():
    found = []
    for path, tree in trees():
        importer = name_of(path)
        for line, imported in imports_of(tree):
            if reason := complaint(importer, imported):
                found.append(f"{path.relative_to(PACKAGE)}:{line}: {importer} -> {imported}: {reason}")
    assert found == []


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("core.files", "data.images", True),
        ("transport", "core.files", True),
        ("transport", "core.errors", False),
        ("transport", "divergences", False),
        ("transport", "nets.encoder", True),
        ("data.images", "nets", True),
        ("nets.encoder", "divergences", False),
        ("learning.training", "systems.sinkd", True),
        ("systems.sinkd", "systems.pn", True),
        ("systems.pn.riley", "systems.pn.risk", False),
        ("systems.sinkd", "baselines.distillation", True),
        ("baselines.distillation", "learning.distil", False),
        ("systems.sinkd", "bridges.losses", True),
        ("experiments.sinkd", "systems.sinkd", False),
        ("experiments.sinkd", "bridges.losses", True),
        ("claims", "systems.pn", True),
        ("report", "claims", True),
        ("report", "core.results", False),
        ("bridges.losses", "systems.sinkd", False),
        ("cli", "claims", False),
        ("core.answers", "", False),
        ("", "systems", False),
        ("", "systems.pn", True),
        ("transport", "", True),
    ],
)
def test_a_wrong_arrow_would_be_seen(importer, imported, wrong):
    assert (complaint(importer, imported) is not None) == wrong


def test_every_import_is_seen_wherever_it_stands():
    lines = [
        "import sanov.claims",
        "from sanov.core import files",
        "from sanov import core, __version__",
        "def f():",
        "    from sanov.core.files import lock",
    ]
    seen = list(imports_of(ast.parse("\n".join(lines))))
    assert seen == [(1, "claims"), (2, "core.files"), (3, "core"), (3, ""), (5, "core.files")]


# -- what is imported at run time -------------------------------------------------------------------------------------


def loaded_by(*names):
    script = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'transformers', 'accelerate', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_package_and_its_table_import_nothing_heavy():
    assert loaded_by("sanov", "sanov.systems") == []


def test_what_needs_no_torch_imports_none():
    names = [name_of(path) for path in FILES]
    free = [
        f"sanov.{name}" for name in names if any(name == free or name.startswith(f"{free}.") for free in FREE_OF_TORCH)
    ]
    assert len(free) > len(FREE_OF_TORCH)
    assert loaded_by(*free) == []


def test_experiments_can_be_imported_without_what_they_run():
    assert loaded_by(*(f"sanov.{name_of(path)}" for path in FILES if path.parent.name == "experiments")) == []


def test_a_heavy_import_would_have_been_seen():
    assert "pandas" in loaded_by("pandas")


# -- what no module may do --------------------------------------------------------------------------------------------

FORBIDDEN = {
    "os.fork": "Windows has none",
    "os.rename": "it fails on Windows where the target exists; use core.files",
    "os.system": "a shell is another on every system",
    "os.path.join": "use pathlib",
    "os.mkfifo": "Windows has none",
    "pickle.load": "it runs whatever it reads",
    "pickle.loads": "it runs whatever it reads",
}
CONTEXTS = ('get_context("fork")', "get_context('fork')", 'set_start_method("fork")', "set_start_method('fork')")
OPENERS = {"open", "Path", "joinpath", "read_csv", "read_parquet"}  # their first argument is a path


def is_joined_path(node):
    """Whether an expression glues strings with slashes: ``folder + "/x"`` or ``f"{folder}/x"``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (node.left, node.right)
        return any(isinstance(side, ast.Constant) and "/" in str(side.value) for side in sides) or any(
            map(is_joined_path, sides)
        )
    if isinstance(node, ast.JoinedStr):
        texts = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
        return any("/" in text or "\\" in text for text in texts)
    return False


def misdeeds(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN:
            yield node.lineno, f"{ast.unparse(node)}: {FORBIDDEN[ast.unparse(node)]}"
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "pickle"):
            names = {f"{node.module}.{alias.name}" for alias in node.names} & FORBIDDEN.keys()
            yield from ((node.lineno, f"{name}: {FORBIDDEN[name]}") for name in names)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "rename" and len(node.args) == 1 and not isinstance(node.args[0], ast.Dict | ast.DictComp):
                yield node.lineno, "Path.rename fails on Windows where the target exists; use core.files"
            if called in OPENERS and any(map(is_joined_path, node.args[:1])):
                yield node.lineno, "a path joined as a string; use pathlib"
            if any(context in ast.unparse(node) for context in CONTEXTS):
                yield node.lineno, "Windows has no fork"


def test_nothing_is_done_that_only_one_system_can():
    found = [f"{path.relative_to(PACKAGE)}:{line}: {what}" for path, tree in trees() for line, what in misdeeds(tree)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "os.fork()",
        "os.rename(a, b)",
        "from os import rename",
        "path.rename(target)",
        "multiprocessing.get_context('fork')",
        "open(folder + '/x')",
        "Path(f'{folder}/x')",
        "pl.read_csv(str(folder) + '/' + name)",
        "os.path.join(a, b)",
        "pickle.load(file)",
    ],
)
def test_a_misdeed_would_be_seen(text):
    assert len(list(misdeeds(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text", ["frame.rename({'a': 'b'})", "Path(folder) / 'x'", "print(f'{a}/{b}')", "path.replace(b)"]
)
def test_what_is_no_misdeed_is_left_alone(text):
    assert list(misdeeds(ast.parse(text))) == []


def test_files_and_functions_can_be_read_at_a_sitting():
    found = []
    for path, tree in trees():
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONGEST_FILE:
            found.append(f"{path.relative_to(PACKAGE)}: {length} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (node.end_lineno - body[0].lineno + 1) if body else 0
                if length > LONGEST_FUNCTION:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.name} has {length} lines")
    assert found == []


def test_what_is_public_is_said():
    """Every module but a package's door names what it offers, and nothing else is taken from it by another."""
    silent = [
        str(path.relative_to(PACKAGE))
        for path, tree in trees()
        if path.name != "__init__.py"
        and not any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree.body)
    ]
    assert silent == []
    private = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {alias.name}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sanov")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert private == []


def test_there_is_no_drawer_for_odds_and_ends():
    assert [path.name for path in FILES if path.stem in ("utils", "helpers", "misc", "common")] == []
