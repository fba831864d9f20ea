"""The digest of a computation's source: what can change a number changes it, and nothing else does."""

import pytest

from sanov.core import sources
from sanov.core.sources import source_digest

FILES = {
    "experiments/x.py": '"""Words."""\nfrom sanov.systems import x\nfrom sanov import core\n',
    "systems/__init__.py": "ROWS = 1\n",
    "systems/x.py": "from sanov.mathematics import f\nfrom sanov.core import files\n\ndef g():\n    return f()\n",
    "mathematics.py": 'def f():\n    """Words."""\n    return 1  # one\n',
    "core/__init__.py": "",
    "core/files.py": "A = 1\n",
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
        ("core/files.py", "A = 1", "A = 2", False),
        ("systems/__init__.py", "ROWS = 1", "ROWS = 2", False),
        ("other.py", "B = 1", "B = 2", False),
    ],
)
def test_only_what_can_change_a_number_counts(name, old, new, changes, package):
    before = source_digest("sanov.experiments.x")
    path = package / name
    path.write_text(path.read_text().replace(old, new))
    assert (source_digest("sanov.experiments.x") != before) == changes
