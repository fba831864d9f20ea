"""The paper's tests on its published files, number by number, and identities that hold for any study."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sanov.data import studies
from sanov.experiments.fidelity_published import PUBLISHED, differing
from sanov.systems.fidelity.study_paper import by_method, by_size, correlation, paper_tests, t_test
from sanov.systems.fidelity.study_rows import select
from systems.fidelity_studies import field, long_table, published


@pytest.fixture(scope="module", params=["math", "commonsense"])
def name(request):
    return request.param


@published
def test_every_published_number_comes_out(name):
    """139 numbers of H1 to H5, each to its printed digits."""
    assert differing(name, paper_tests(select(field(name), "best"), "greater")) == []
    table = pl.read_csv(PUBLISHED).filter(pl.col("field") == name)
    assert table.height == {"math": 10 * 7 - 2, "commonsense": 8 * 9 - 1}[name]


def test_a_wrong_digit_would_be_seen():
    found = pl.DataFrame({"task": ["gsm8k"], "t": [8.866]})
    shown = pl.read_csv(PUBLISHED).filter((pl.col("field") == "math") & (pl.col("quantity") == "H1 t"))
    assert shown.filter(pl.col("column") == "gsm8k")["value"].item() == 8.865
    full = paper_like(found)
    assert [row["column"] for row in differing("math", full) if row["quantity"] == "H1 t"][:1] == ["gsm8k"]


def paper_like(found):
    """A table of the right shape with the published values, but for what is given."""
    names = {"mean gain": "mean gain", "H1 t": "t", "H1 p": "p", "ANOVA F": "F", "ANOVA p": "F p"}
    rows = pl.read_csv(PUBLISHED).filter(pl.col("field") == "math")
    table = {}
    for row in rows.to_dicts():
        quantity = names.get(row["quantity"], row["quantity"])
        table.setdefault(row["column"], {"task": row["column"]})[quantity] = row["value"]
    for row in found.to_dicts():
        table[row["task"]].update(row)
    return pl.DataFrame(list(table.values()))


METHODS = {
    "math": {"SeqKD": (3.722, 0.002), "RevKD": (6.315, 4.4e-5), "GKD": (5.105, 2.3e-4)},
    "commonsense": {"SeqKD": (4.329, 7.5e-4), "RevKD": (1.181, 0.132), "GKD": (2.959, 0.007)},
}


@published
def test_h1_by_method(name):
    found = {row["method"]: row for row in by_method(select(field(name), "best"), "greater").to_dicts()}
    for method, (t, p) in METHODS[name].items():
        assert found[method]["t"] == pytest.approx(t, abs=1e-3)
        assert found[method]["p"] == pytest.approx(p, rel=0.08)


@published
def test_largest_gains(name):
    rows = select(field(name), "best")
    assert rows.column("Average").max() == pytest.approx({"math": 12.05, "commonsense": 12.66}[name], abs=1e-9)
    if name == "math":
        place = np.unravel_index(np.argmax(rows.gain[:, :-1]), rows.gain[:, :-1].shape)
        assert rows.gain[place] == pytest.approx(22.33, abs=1e-9)
        assert rows.columns[place[1]] == "MultiArith"
        assert rows.labels.row(int(place[0])) == ("Llama-3.1-8B", "Llama-3.2-1B", "GKD")


@published
def test_means_by_size():
    found = by_size(select(field("math"), "best"))
    expected = {
        0.5: (6.83, 9.18, 6.13), 1.0: (12.05, 8.04, 3.50), 1.5: (3.71, 5.57, 2.44), 3.0: (4.28, 4.39, 2.26),
        7.0: (0.07, 0.21, -0.65),
    }  # fmt: skip
    for row in found.to_dicts():
        assert (row["GKD"], row["RevKD"], row["SeqKD"]) == pytest.approx(expected[row["size"]], abs=6e-3)


@published
def test_the_other_similarity_file_changes_h5():
    from systems.fidelity_studies import FOLDER, paths

    data = studies.read([*paths("math")[:2], FOLDER / "math_rationale_similarity_bleu2.csv"])
    found = dict(paper_tests(select(data, "best"), "greater").select("task", "H5 rho").iter_rows())
    expected = {
        "gsm8k": -0.291, "SVAMP": -0.216, "MultiArith": -0.651, "SingleEq": -0.169, "AddSub": -0.346, "AQuA": -0.322
    }  # fmt: skip
    assert {task: found[task] for task in expected} == pytest.approx(expected, abs=1e-3)


# -- for any study ----------------------------------------------------------------------------------------------------


def test_against_scipy_on_a_made_up_study():
    generator = np.random.default_rng(0)
    data = studies.read([long_table(lambda *_: float(generator.normal(2, 3)), methods=("A", "B", "C"))])
    rows = select(data, "fixed")
    found = {row["task"]: row for row in paper_tests(rows, "two-sided").to_dicts()}
    gains = rows.column("maths")
    expected = stats.ttest_1samp(gains, 0)
    assert (found["maths"]["t"], found["maths"]["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    anova = stats.f_oneway(*(gains[rows.of_method(method)] for method in "ABC"))
    assert (found["maths"]["F"], found["maths"]["F p"]) == pytest.approx((anova.statistic, anova.pvalue))
    rho = stats.spearmanr(gains, rows.size)
    assert (found["maths"]["H3 rho"], found["maths"]["H3 p"]) == pytest.approx((rho.statistic, rho.pvalue))
    assert rows.column("Average") == pytest.approx((rows.column("maths") + rows.column("facts")) / 2)


def test_order_of_rows_and_names_change_nothing():
    generator = np.random.default_rng(1)
    table = long_table(lambda *_: float(generator.normal(2, 3)))
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=3)
    renamed = shuffled.with_columns(
        pl.col("teacher", "student").str.replace("student-", "pupil-").str.replace("teacher-", "master-")
    )
    tables = [
        paper_tests(select(studies.read([each]), "fixed"), "greater").sort("task")
        for each in (table, shuffled, renamed)
    ]
    for other in tables[1:]:
        for column in tables[0].columns[1:]:
            assert other[column].to_list() == pytest.approx(tables[0][column].to_list(), nan_ok=True), column


def test_seeds_are_paired_before_they_are_averaged():
    """A seed that raises baseline and student alike leaves the gain alone, whatever seeds the others have."""
    table = long_table(lambda *_: 3.0, seeds=(0, 1, 2))
    assert select(studies.read([table]), "fixed").gain == pytest.approx(3.0)
    lacking = table.filter(~((pl.col("method") == "KD") & (pl.col("seed") == 2)))
    assert select(studies.read([lacking]), "fixed").gain == pytest.approx(3.0)


def test_what_has_no_value_is_null_and_no_number():
    data = studies.read([long_table(methods=("only",), tasks=("one",))])
    row = paper_tests(select(data, "fixed"), "greater").row(0, named=True)
    assert row["mean gain"] == pytest.approx(3.0)
    assert [row[name] for name in ("t", "F", "H4 rho", "H5 rho")] == [None] * 4
    assert np.isnan(t_test(np.array([1.0]), "greater")[0])
    assert np.isnan(correlation(np.array([1.0, 2.0, 3.0]), np.ones(3))[0])
