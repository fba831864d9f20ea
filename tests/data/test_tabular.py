"""Real tables are the published ones, or a message says why not."""

import numpy as np
import pytest

from sanov.core.errors import InputError, MissingExtra
from sanov.data import tabular
from sanov.data.tabular import is_available, population


@pytest.mark.parametrize(("name", "rows", "columns"), [("breast_cancer", 569, 30), ("wine", 178, 13)])
def test_scikit_learn_tables(name, rows, columns):
    pytest.importorskip("sklearn")
    assert is_available(name)
    table = population(name)
    assert table.values.shape == (rows, columns)
    assert len(table.columns) == columns


def test_columns_are_kept_in_the_order_asked_for():
    pytest.importorskip("sklearn")
    whole = population("wine")
    some = population("wine", ("hue", "ash"))
    assert some.columns == ("hue", "ash")
    np.testing.assert_array_equal(some.values[:, 1], whole.values[:, whole.columns.index("ash")])
    with pytest.raises(InputError, match="no column 'colour'"):
        population("wine", ("colour",))


@pytest.mark.data
def test_red_wine_has_its_published_means(data_folder):
    assert data_folder.is_dir()
    table = population("red_wine")
    assert table.values.shape == (1599, 11)
    means = dict(zip(table.columns, table.values.mean(axis=0), strict=True))
    assert means["volatile acidity"] == pytest.approx(0.5278, abs=5e-5)
    assert means["alcohol"] == pytest.approx(10.423, abs=5e-4)


def test_missing_and_damaged_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("SANOV_DATA", str(tmp_path))
    assert not is_available("red_wine")
    with pytest.raises(InputError, match="SANOV_DATA"):
        population("red_wine")
    (tmp_path / "wine").mkdir()
    (tmp_path / "wine" / "winequality-red.csv").write_text("alcohol,quality\n9.6e14,5\n")
    with pytest.raises(InputError, match="other values"):
        population("red_wine")
    with pytest.raises(InputError, match="no such table"):
        population("iris")


def test_without_scikit_learn_a_message_says_what_to_install(monkeypatch):
    def missing(module, extra):
        raise MissingExtra(module.split(".")[0], extra)

    monkeypatch.setattr(tabular, "require", missing)
    with pytest.raises(MissingExtra, match=r"sanov\[tabular\]"):
        population("wine")
