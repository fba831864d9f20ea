"""Names are one text whatever they were read as; ids of text stay what they are."""

import polars as pl
import pytest

from sanov.data.spelling import as_text, ids_as_text


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([1, 2, None], ["1", "2", None]),
        ([1.0, 2.0, float("nan")], ["1", "2", None]),
        ([1.5, 2.0, -0.0], ["1.5", "2", "0"]),
        (["1.0", "2"], ["1", "2"]),
        (["007", "8"], ["007", "8"]),
        ([True, False], ["true", "false"]),
        (["True", "FALSE", None], ["true", "false", None]),
        ([" a ", "", "b"], ["a", None, "b"]),
        (["True", "maybe", "maybe True"], ["true", "maybe", "maybe True"]),
        (["1.0", "n/a", "-2.", "1.10", "01.0"], ["1", "n/a", "-2", "1.10", "01.0"]),
    ],
)
def test_names_are_one_text_whatever_they_were_read_as(cells, texts):
    assert as_text(pl.Series("x", cells)).to_list() == texts


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (["1", "1.0", " 1 ", "True"], ["1", "1.0", "1", "True"]),
        ([1.0, 2.5, None], ["1", "2.5", None]),
        ([1, 2], ["1", "2"]),
        (["", " "], [None, None]),
    ],
)
def test_ids_of_text_are_text(cells, texts):
    assert ids_as_text(pl.Series("x", cells)).to_list() == texts
