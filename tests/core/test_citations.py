"""Entries of the bibliography."""

import re
from pathlib import Path

import pytest

from sanov.core.citations import citation
from sanov.core.errors import InputError

TEXT = (Path(__file__).parents[2] / "docs" / "references.bib").read_text()


def test_every_entry_is_found_whole():
    keys = re.findall(r"^@\w+\{(\w+),", TEXT, re.MULTILINE)
    assert len(keys) == len(set(keys))
    for key in keys:
        entry = citation(key)
        assert entry in TEXT
        assert entry.count("{") == entry.count("}")
        assert len(re.findall(r"^@", entry, re.MULTILINE)) == 1


def test_an_unknown_key():
    with pytest.raises(InputError, match="nobody1900: is no key"):
        citation("nobody1900")
