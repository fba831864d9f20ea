"""Corrected tests of a study: the numbers of the published files, and what holds for any study."""

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sanov.comparisons import sign_flip
from sanov.data import studies
from sanov.systems.fidelity.study_checks import (
    below_chance_counts,
    bound_counts,
    budgets,
    collapsed,
    excess_agreement,
    expected_agreement,
)  # fmt: skip
from sanov.systems.fidelity.study_corrected import (
    Settings,
    cluster_tests,
    correlations,
    friedman,
    leave_one_teacher_out,
    rho_interval,
    shared_term,
    task_tests,
)  # fmt: skip
from sanov.systems.fidelity.study_paper import by_method, paper_tests
from sanov.systems.fidelity.study_rows import select
from systems.fidelity_studies import field, long_table, published

SETTINGS = Settings(draws=10_000)
CASES = [("math", "best"), ("math", "fixed"), ("commonsense", "best"), ("commonsense", "fixed")]
TABLE = {
    "mean, t, p": [(4.78, 8.465, 5.7e-10), (4.39, 7.636, 5.3e-9), (3.24, 3.862, 2.6e-4), (-2.33, -0.760, 0.773)],
    "t by method": [(3.72, 6.32, 5.11), (3.19, 6.32, 5.11), (4.33, 1.18, 2.96), (3.58, -1.52, 2.96)],
    "mean by method": [(3.21, 5.97, 5.14), (2.06, 5.97, 5.14), (3.27, 2.42, 4.04), (1.78, -12.82, 4.04)],
    "anova": [(2.267, 0.121), (5.478, 0.009), (0.296, 0.746), (3.411, 0.046)],
    "friedman": [(14.727, 6.3e-4), (18.727, 8.6e-5), (1.636, 0.441), (4.545, 0.103)],
    "pair": [(3.1, 6.3), (2.8, 5.9), (1.4, 5.3), (-8.6, 3.3)],
    "student": [(2.7, 6.5), (2.5, 6.0), (1.2, 5.7), (-7.5, 4.1)],
    "flip pairs": [2 / 2048, 2 / 2048, 11 / 2048, 0.760],
    "flip students": [2 / 64, 2 / 64, 1 / 64, 0.531],
    "size": [-0.656, -0.567, -0.539, -0.312],
    "left out": [(5.9, 8.0), (5.5, 7.6), (2.7, 4.3), (-1.2, 0.5)],
}


@pytest.fixture(scope="module", params=range(4), ids=[" ".join(case) for case in CASES])
def case(request):
    name, selection = CASES[request.param]
    return select(field(name), selection), {key: values[request.param] for key, values in TABLE.items()}


@published
def test_means_and_t(case):
    rows, expected = case
    row = paper_tests(rows, "greater").row(-1, named=True)
    mean, t, p = expected["mean, t, p"]
    assert row["mean gain"] == pytest.approx(mean, abs=6e-3)
    assert row["t"] == pytest.approx(t, abs=1e-3)
    assert row["p"] == pytest.approx(p, rel=0.02)
    assert (row["F"], row["F p"]) == pytest.approx(expected["anova"], abs=1e-3)
    assert row["H3 rho"] == pytest.approx(expected["size"], abs=1e-3)
    found = {each["method"]: each for each in by_method(rows, "greater").to_dicts()}
    methods = ("SeqKD", "RevKD", "GKD")
    assert [found[m]["t"] for m in methods] == pytest.approx(expected["t by method"], abs=6e-3)
    assert [found[m]["mean gain"] for m in methods] == pytest.approx(expected["mean by method"], abs=6e-3)


@published
def test_methods_within_pairs(case):
    rows, expected = case
    statistic, p, pairs = friedman(rows)
    assert (statistic, pairs) == (pytest.approx(expected["friedman"][0], abs=1e-3), 11)
    assert p == pytest.approx(expected["friedman"][1], rel=0.02)


@published
def test_clusters(case):
    rows, expected = case
    found = {row["clusters"]: row for row in cluster_tests(rows, SETTINGS).to_dicts()}
    for kind, number in (("pair", 11), ("student", 6)):
        assert (found[kind]["low"], found[kind]["high"]) == pytest.approx(expected[kind], abs=0.15)
        assert found[kind]["number"] == number
        assert found[kind]["smallest possible p"] == 1 / 2**number
    exact = expected["flip pairs"] < 0.1  # where the table gives a fraction
    assert found["pair"]["sign-flip p"] == pytest.approx(expected["flip pairs"], abs=1e-12 if exact else 5e-4)
    assert found["student"]["sign-flip p"] == pytest.approx(expected["flip students"], abs=5e-4)


@published
def test_leave_one_teacher_out(case):
    rows, expected = case
    found = leave_one_teacher_out(rows, "greater")["t"]
    assert (found.min(), found.max()) == pytest.approx(expected["left out"], abs=0.06)
    assert len(found) == 4


@published
def test_holm_over_tasks():
    math = task_tests(select(field("math"), "best"), Settings(draws=50))
    assert math["p adjusted"][:-1].max() < 1.5e-4
    found = dict(
        task_tests(select(field("commonsense"), "best"), Settings(draws=50)).select("task", "p adjusted").iter_rows()
    )
    assert (found.pop("hellaswag"), found.pop("boolq")) == (
        pytest.approx(0.257, abs=1e-3),
        pytest.approx(0.171, abs=1e-3),
    )
    del found["Average"]
    assert len(found) == 6
    assert max(found.values()) < 6e-5


@published
def test_without_the_collapsed_method_commonsense_gains():
    """SeqKD and GKD alone at temperature 1: mean 2.91, t 3.878, p 4.4e-4, 22 rows."""
    rows = select(field("commonsense"), "fixed")
    assert collapsed(rows, studies.chance_levels(), 3.0) == ["RevKD"]
    row = paper_tests(rows.take(~rows.of_method("RevKD")), "greater").row(-1, named=True)
    assert (row["rows"], row["mean gain"], row["t"]) == (
        22,
        pytest.approx(2.91, abs=6e-3),
        pytest.approx(3.878, abs=1e-3),
    )
    assert row["p"] == pytest.approx(4.4e-4, rel=0.02)
    assert collapsed(select(field("commonsense"), "best"), studies.chance_levels(), 3.0) == []
    assert collapsed(select(field("math"), "fixed"), studies.chance_levels(), 3.0) == []


@published
def test_the_collapse_is_of_four_pairs():
    rows = select(field("commonsense"), "fixed")
    revkd = rows.take(rows.of_method("RevKD"))
    gains = dict(zip(revkd.clusters("pair"), revkd.column("Average"), strict=True))
    expected = {("3B", "1.5B"): -59.1, ("7B", "1.5B"): -52.2, ("7B", "3B"): -55.4, ("7B", "0.5B"): -10.8}
    for (teacher, student), value in expected.items():
        assert gains.pop(f"Qwen2.5-{teacher} -> Qwen2.5-{student}") == pytest.approx(value, abs=0.06)
    assert (min(gains.values()), max(gains.values())) == pytest.approx((1.2, 12.7), abs=0.06)


# -- what the files say about themselves ------------------------------------------------------------------------------


@published
def test_cells_below_chance():
    counts = below_chance_counts(field("commonsense"), studies.chance_levels(), 3.0)
    found = {(group, temperature): (below, cells) for group, temperature, cells, below in counts.iter_rows()}
    assert found["RevKD", 1.0] == (23, 88)
    assert found["GKD", 1.0] == (2, 88)
    assert found["baseline", None] == (0, 64)
    assert found["not trained", None] == (50, 64)
    assert found["teacher unaware of the task", 1.0] == (31, 40)


@published
def test_whom_the_agreement_is_of():
    expected = {
        "math": {("SFT", "SFT", None): (66, 66), ("KD", "SeqKD", 1.0): (66, 66), ("KD", "RevKD", 1.0): (66, 66),
                 ("KD", "GKD", 1.0): (61, 66)},
        "commonsense": {("SFT", "SFT", None): (88, 88), ("KD", "SeqKD", 1.0): (58, 88), ("KD", "GKD", 1.0): (65, 88),
                        ("KD", "RevKD", 1.0): (84, 88)},
    }  # fmt: skip
    for name, counts in expected.items():
        table = bound_counts(field(name))
        found = {(k, s, t): (within, cells) for k, s, t, cells, within, _ in table.iter_rows()}
        assert {key: found[key] for key in counts} == counts
    misses = table.filter((pl.col("student") == "RevKD") & (pl.col("temperature") == 1.0))["misses"].item()
    assert misses.to_list() == ["Qwen2.5-7B -> Qwen2.5-0.5B"]


@published
def test_unequal_budgets():
    for name in ("math", "commonsense"):
        found = {row["method"]: row for row in budgets(field(name)).to_dicts()}
        columns = ("fewest temperatures", "most temperatures", "pairs with most")
        counts = {method: tuple(row[column] for column in columns) for method, row in found.items()}
        assert counts == {"SeqKD": (1, 3, 5), "RevKD": (1, 3, 5), "GKD": (1, 1, 11)}


def test_agreement_of_independent_errors():
    """Simulated answers to questions with K options."""
    generator, n = np.random.default_rng(0), 200_000
    for options, t, s in ((2, 0.8, 0.7), (5, 0.6, 0.3)):
        truth = generator.integers(0, options, n)
        teacher, student = (
            np.where(generator.random(n) < right, truth, (truth + generator.integers(1, options, n)) % options)
            for right in (t, s)
        )
        found = expected_agreement(np.array([100 * t]), np.array([100 * s]), 100 / options)
        assert found == pytest.approx(100 * (teacher == student).mean(), abs=100 * 4 * 0.5 / np.sqrt(n))
    assert expected_agreement(np.array([60.0]), np.array([50.0]), 0.0) == pytest.approx(30.0)


def test_excess_on_average_is_that_of_the_tasks():
    table = long_table()
    teachers, students = ["teacher-9B", "teacher-14B"], ["student-1B", "student-3B", "student-7B"]
    pairs = pl.DataFrame([(t, s, f"{t} -> {s}", "KD", 70.0, 75.0) for t in teachers for s in students],
                         schema=["teacher", "student", "pair", "method", "maths", "facts"], orient="row")  # fmt: skip
    rows = select(studies.read([table, pairs]), "fixed")
    found = excess_agreement(rows, {"maths": 50.0})
    assert found[:, -1] == pytest.approx(found[:, :-1].mean(axis=1))
    t, s = rows.teacher[0, 0] / 100, rows.score[0, 0] / 100
    assert found[0, 0] == pytest.approx(70 - 100 * (t * s + (1 - t) * (1 - s)))


# -- for any study ----------------------------------------------------------------------------------------------------


def study(generator, effect=0.0):
    """A study whose gains are noise by pair, by row and of a common mean."""
    pairs = {}

    def gain(teacher, student, method, task):
        pair = pairs.setdefault((teacher, student), generator.normal(0, 2))
        return effect + pair + generator.normal(0, 1)

    return select(studies.read([long_table(gain)]), "fixed")


def test_exact_p_is_that_of_all_signs():
    rows = study(np.random.default_rng(5), effect=1.5)
    found = {row["clusters"]: row["sign-flip p"] for row in cluster_tests(rows, Settings(draws=10)).to_dicts()}
    gains, pairs = rows.column("Average"), rows.clusters("pair")
    means = np.array([gains[pairs == name].mean() for name in np.unique(pairs)])
    sums = [np.dot(signs, means) for signs in itertools.product((-1, 1), repeat=len(means))]
    assert found["pair"] == pytest.approx(np.mean(np.array(sums) >= means.sum() - 1e-12))


def test_friedman_against_scipy():
    rows = select(studies.read([long_table(lambda *_: float(G.normal()), methods=("A", "B", "C"))]), "fixed")
    gains, pairs = rows.column("Average"), rows.clusters("pair")
    table = [[gains[(pairs == pair) & rows.of_method(method)].item() for pair in np.unique(pairs)] for method in "ABC"]
    expected = stats.friedmanchisquare(*table)
    assert friedman(rows)[:2] == pytest.approx((expected.statistic, expected.pvalue))
    assert np.isnan(friedman(study(np.random.default_rng(0)))[0])


G = np.random.default_rng(9)


def test_rank_correlation_in_the_bootstrap_is_spearmans():
    rows = study(np.random.default_rng(2))
    found = {row["hypothesis"]: row["rho"] for row in correlations(rows, Settings(draws=20)).to_dicts()}
    assert found["H3"] == pytest.approx(stats.spearmanr(rows.column("Average"), rows.size).statistic)

    interval = rho_interval(rows.column("Average"), rows.size, rows.clusters("pair"), Settings(draws=20))
    assert interval.estimate == pytest.approx(found["H3"])


def test_clusters_reject_a_true_null_as_often_as_they_say():
    """Six pairs of mean 0: the exact test at 1/16 rejects in 1/16 of studies; rows taken as independent, in more."""
    generator, runs, alpha = np.random.default_rng(3), 400, 1 / 16
    exact, naive = 0, 0
    for _ in range(runs):
        pair = generator.normal(0, 2, 6)
        gains = np.repeat(pair, 6) + generator.normal(0, 1, 36)

        exact += sign_flip(gains.reshape(6, 6).mean(axis=1), alternative="greater") <= alpha
        naive += stats.ttest_1samp(gains, 0, alternative="greater").pvalue <= alpha
    error = 3 * np.sqrt(alpha * (1 - alpha) / runs)
    assert abs(exact / runs - alpha) < error
    assert naive / runs > alpha + error


def ten_students():
    """Ten students of one teacher, whose scores are yet to be made."""
    rows = [("-", "t-99B", "SFT", 90.0)]
    for place in range(10):
        rows += [("-", f"s-{place + 1}B", "SFT", 50.0), ("t-99B", f"s-{place + 1}B", "KD", 53.0)]
    table = pl.DataFrame(rows, schema=["teacher", "student", "method", "score"], orient="row")
    return select(studies.read([table.with_columns(task=pl.lit("x"))]), "fixed")


def made_of_noise(rows, generator, noise):
    """Distillation adds 3 points to each student; both scores are measured with noise."""
    skill = generator.normal(60, 3, (10, 1))
    base, score = skill + generator.normal(0, noise, (10, 1)), skill + 3 + generator.normal(0, noise, (10, 1))
    return replace(rows, baseline=base, score=score, gain=score - base)


def test_shared_term_is_no_finding():
    """Noise alone makes gain and baseline correlate, and the naive test reject; the swaps reject as often as they say."""
    generator, runs, alpha = np.random.default_rng(4), 60, 0.1
    settings = Settings(alternative="greater")
    students = ten_students()
    found = [made_of_noise(students, generator, 3.0) for _ in range(runs)]
    corrected = [shared_term(rows, 0, settings) for rows in found]
    naive = [stats.spearmanr(rows.gain[:, 0], rows.baseline[:, 0], alternative="less").pvalue for rows in found]
    error = 3 * np.sqrt(alpha * (1 - alpha) / runs)
    assert abs(np.mean([each.p_value <= alpha for each in corrected]) - alpha) < error
    assert np.mean(np.array(naive) <= alpha) > alpha + error
    assert np.mean([each.null for each in corrected]) < -0.2


def test_shared_term_finds_what_is_there():
    """Students of 40 to 62 gain a quarter of what they lack: without noise no swap does as much."""
    rows = [("-", "t-99B", "SFT", "x", 90.0)]
    for place in range(12):
        base = 40.0 + 2 * place + 0.1 * place**2 % 1
        rows += [
            ("-", f"s-{place + 1}B", "SFT", "x", base),
            ("t-99B", f"s-{place + 1}B", "KD", "x", base + (90 - base) / 4),
        ]
    table = pl.DataFrame(rows, schema=["teacher", "student", "method", "task", "score"], orient="row")
    found = shared_term(select(studies.read([table]), "fixed"), 0, Settings())
    assert found.rho == pytest.approx(-1.0)
    assert found.p_value < 0.05
