"""Intervals against plain resampling of examples, sizes of tests on null data, and negative controls."""

import numpy as np
import pytest
import scipy.stats

import sanov
from sanov.comparisons import mcnemar
from sanov.systems.fidelity.calibration import Confidence, calibrate
from sanov.systems.fidelity.counts import count
from sanov.systems.fidelity.divergence import divergences
from sanov.systems.fidelity.labels import label_statistics
from sanov.systems.fidelity.resampling import draw_counts, draw_means, interval
from systems.fidelity_truths import answers, calibration, pair, probabilities

SYSTEMS = ("teacher", "student", "baseline")
ENDS = [0.025, 0.975]


def draws_of(labels, systems, draws=4000, seed=0, few=1000):
    counts = count(SYSTEMS[: len(systems)], np.stack(systems), labels)
    return label_statistics(counts, *draw_counts(counts, draws, seed, few), len(np.unique(labels)))


def test_counts_are_drawn_as_examples_are():
    """The quantiles of every statistic, beside those of 1,000 resamples of the examples themselves."""
    labels, systems = answers(120, 3, 0)
    rng = np.random.default_rng(1)
    resampled = []
    for _ in range(1000):
        rows = rng.integers(0, 120, 120)
        resampled.append(pair(labels[rows], systems[0][rows], systems[1][rows], 3))
    found = draws_of(labels, systems, draws=8000)
    for name in resampled[0]:
        plain = np.array([each[name] for each in resampled])
        ours = found["teacher, student", name]
        error = plain.std() / np.sqrt(len(plain))
        assert ours.mean() == pytest.approx(plain.mean(), abs=5 * error), name
        assert ours.std() == pytest.approx(plain.std(), rel=0.1), name
        assert np.quantile(ours, ENDS) == pytest.approx(np.quantile(plain, ENDS), abs=8 * error + 1 / 120), name


def test_kappa_of_many_answers_is_drawn_to_first_order():
    labels, systems = answers(4000, 30, 2)
    exact = draws_of(labels, systems, few=10**9, draws=1000)
    linear = draws_of(labels, systems, few=0, draws=1000)
    for of in ("teacher, student", "teacher, baseline"):
        one, two = exact[of, "kappa"], linear[of, "kappa"]
        assert np.array_equal(
            exact[of, "agreement"], linear[of, "agreement"]
        )  # which of the two it is matters to kappa alone
        assert two.mean() == pytest.approx(one.mean(), abs=5 * one.std() / np.sqrt(1000))
        assert two.std() == pytest.approx(one.std(), rel=0.1)


def test_chance_is_drawn_where_answers_are_uneven():
    """With most answers alike the chance of agreement varies much; its first-order draw must vary as much."""
    rng = np.random.default_rng(3)
    weights = np.array([0.6, 0.3, 0.05, 0.05])
    systems = [rng.choice(4, 3000, p=weights) for _ in range(2)]
    counts = count(SYSTEMS[:2], np.stack(systems), rng.integers(0, 4, 3000))
    exact, linear = (draw_counts(counts, 4000, 0, few)[1] for few in (10**9, 0))
    by_rows = []
    for _ in range(1000):
        rows = rng.integers(0, 3000, 3000)
        shares = [np.bincount(row[rows], minlength=4) / 3000 for row in systems]
        by_rows.append(shares[0] @ shares[1])
    for drawn in (exact, linear):
        assert drawn.std() == pytest.approx(np.std(by_rows), rel=0.12)
        assert drawn.mean() == pytest.approx(np.mean(by_rows), abs=5 * np.std(by_rows) / np.sqrt(1000))


@pytest.mark.parametrize("rows", [300, 3000])
def test_means_are_drawn_as_examples_are(rows):
    _, systems = answers(rows, 4, 4)
    values = divergences(probabilities(systems[0], 4, 0), probabilities(systems[1], 4, 1), 0.5)
    drawn = draw_means(values, 4000, 0)
    rng = np.random.default_rng(5)
    plain = np.array([values[rng.integers(0, rows, rows)].mean(axis=0) for _ in range(1000)])
    assert drawn.mean(axis=0) == pytest.approx(plain.mean(axis=0), abs=5 * plain.std() / np.sqrt(1000))
    assert np.cov(drawn.T) == pytest.approx(np.cov(plain.T), rel=0.15)


def test_every_example_is_drawn_as_often():
    """The draws of one of n indicators are a binomial's of n tries, over n."""
    rows, draws = 7, 4000
    drawn = rows * draw_means(np.eye(rows), draws, 0)
    assert drawn.sum(axis=1) == pytest.approx(rows)
    assert drawn.mean(axis=0) == pytest.approx(1, abs=5 * np.sqrt((1 - 1 / rows) / draws))
    assert drawn.var(axis=0) == pytest.approx(1 - 1 / rows, rel=0.15)


@pytest.mark.parametrize("rows", [400, 4000])
def test_calibration_is_drawn_as_examples_are(rows):
    """Two systems that are nearly one, so that their difference varies less than either: they must be drawn together."""
    labels, systems = answers(rows, 4, 6)
    rng = np.random.default_rng(7)
    confidence = probabilities(systems[0], 4, 0).max(axis=1)
    right = (systems[0] == labels).astype(float)
    unknown = rng.random(rows) < 0.2
    both = [
        Confidence("teacher", confidence, right),
        Confidence("student", np.where(unknown, np.nan, np.clip(confidence + 0.1, 0, 1)), right),
    ]
    found = calibrate(both, 15, 2000, 0)
    plain = []
    for _ in range(300):
        at = rng.integers(0, rows, rows)
        kept = at[~unknown[at]]
        plain.append([
            calibration(both[0].confidence[at], right[at], 15),
            calibration(both[1].confidence[kept], right[kept], 15),
        ])  # fmt: skip
    plain, ours = np.array(plain), np.stack([found.draws[each.system] for each in both], axis=1)
    assert found.errors["student"] == pytest.approx(calibration(both[1].confidence[~unknown], right[~unknown], 15))
    assert ours.mean(axis=0) == pytest.approx(plain.mean(axis=0), abs=6 * plain.std(axis=0).max() / np.sqrt(300))
    assert ours.std(axis=0) == pytest.approx(plain.std(axis=0), rel=0.15)
    gaps = (ours[:, 0] - ours[:, 1], plain[:, 0] - plain[:, 1])
    assert gaps[0].std() == pytest.approx(gaps[1].std(), rel=0.15)
    assert gaps[0].std() < 0.8 * np.hypot(*ours.std(axis=0))


def test_a_bad_calibration_is_told_from_a_good_one():
    rng = np.random.default_rng(8)
    confidence = rng.beta(5, 1.5, 3000)
    for power, certain in ((1.0, False), (2.0, True)):
        right = (rng.random(3000) < confidence**power).astype(float)
        low, high = calibrate([Confidence("student", confidence, right)], 15, 1000, 0).interval("student", 0.95)
        assert (low > 0) == certain
        assert high > low


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly():
    labels, systems = answers(200, 3, 8)
    one, again, other = (draws_of(labels, systems, seed=seed)["student", "accuracy"] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.quantile(one, ENDS) == pytest.approx(np.quantile(other, ENDS), abs=0.01)


# -- null data --------------------------------------------------------------------------------------------------------

RUNS, ALPHA = 2000, 0.05
THREE_ERRORS = 3 * np.sqrt(ALPHA * (1 - ALPHA) / RUNS)


def test_size_on_permuted_labels():
    """Labels without relation to the answers: no gain. The bootstrap errs in 5 % of runs, McNemar's exact test in no more."""
    rng = np.random.default_rng(9)
    labels = np.repeat([0, 1, 2], 100)
    student, baseline = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    y = rng.permuted(np.tile(labels, (RUNS, 1)), axis=1)
    only = np.stack([((a == y) & (b != y)).sum(axis=1) for a, b in ((student, baseline), (baseline, student))], axis=1)
    shares = np.concatenate([only, 300 - only.sum(axis=1, keepdims=True)], axis=1) / 300
    drawn = rng.multinomial(300, shares[:, None], size=(RUNS, 1000))
    ends = [interval(gains, 1 - ALPHA) for gains in (drawn[..., 0] - drawn[..., 1]) / 300]
    told = sum(low > 0 or high < 0 for low, high in ends)
    tested = sum(mcnemar(*map(int, pair)) <= ALPHA for pair in only)
    assert told / RUNS == pytest.approx(ALPHA, abs=THREE_ERRORS)
    assert tested / RUNS <= ALPHA + THREE_ERRORS


def test_size_of_the_report_on_unrelated_systems():
    """Right or wrong independently, wrong answers spread evenly: nothing to call fidelity, and no system better."""
    rng = np.random.default_rng(10)
    wrong = {"excess agreement": 0, "error consistency": 0, "gain": 0}
    runs = 200
    for run in range(runs):
        labels, systems = answers(300, 4, rng, accuracy=(0.7, 0.7, 0.7), copied=0.0)
        found = draws_of(labels, systems, draws=400, seed=run, few=0)
        gain = found["student", "accuracy"] - found["baseline", "accuracy"]
        for name, values in {
            "excess agreement": found["teacher, student", "excess agreement"],
            "error consistency": found["teacher, student", "error consistency"],
            "gain": gain,
        }.items():
            low, high = interval(values, 1 - ALPHA)
            wrong[name] += low > 0 or high < 0
    for name, count_ in wrong.items():
        assert count_ / runs == pytest.approx(ALPHA, abs=3 * np.sqrt(ALPHA * (1 - ALPHA) / runs)), name


@pytest.mark.parametrize("power", [1.0, 1.05, 1.5])
def test_interval_of_calibration_covers(power):
    """Systems that are right with probability confidence^power; the true error is that of infinitely many examples."""
    rng = np.random.default_rng(11)
    edges = np.linspace(0, 1, 16)
    shares = np.diff(scipy.stats.beta.cdf(edges, 5, 1.5))
    grid = (np.arange(200_000) + 0.5) / 200_000
    density = scipy.stats.beta.pdf(grid, 5, 1.5) / 200_000
    gaps = np.bincount((grid * 15).astype(int), density * (grid - grid**power), 15)
    assert shares.sum() == pytest.approx(density.sum())
    inside, runs = 0, 100
    for run in range(runs):
        confidence = rng.beta(5, 1.5, 2000)
        right = (rng.random(2000) < confidence**power).astype(float)
        low, high = calibrate([Confidence("student", confidence, right)], 15, 1000, run).interval("student", 0.95)
        inside += low <= np.abs(gaps).sum() <= high
    assert inside / runs >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / runs)  # a percentile interval covers 0 at power 1


# -- negative controls ------------------------------------------------------------------------------------------------


def kappa(teacher, student, labels=None):
    columns = {"teacher": teacher, "student": student} | ({} if labels is None else {"label": labels})
    answer = sanov.fidelity(columns, draws=1000)
    return {row["statistic"]: row for row in answer.to_frame().to_dicts() if row["of"] == "teacher, student"}


def test_answers_permuted_within_strata_of_correctness_have_no_kappa():
    rng = np.random.default_rng(12)
    labels, (teacher, student, _) = answers(20_000, 5, 12, accuracy=(0.8, 0.8, 0.8), copied=0.7)
    assert kappa(teacher, student, labels)["kappa"]["low"] > 0.5
    mixed = student.copy()
    for stratum in (teacher == labels, teacher != labels):
        mixed[stratum] = rng.permutation(student[stratum])
    found = kappa(teacher, mixed)["kappa"]
    assert found["low"] < 0 < found["high"]
    assert found["high"] - found["low"] < 0.03


def test_errors_moved_to_other_examples_have_no_consistency():
    """The student keeps its accuracy and its errors, on examples drawn at random: only the relation to the teacher goes."""
    rng = np.random.default_rng(13)
    labels, (teacher, student, _) = answers(20_000, 4, 13, accuracy=(0.8, 0.8, 0.8), copied=0.7)
    before = kappa(teacher, student, labels)
    assert before["error consistency"]["low"] > 0.5
    assert before["excess agreement"]["low"] > 0.1
    shift = rng.permutation((student - labels) % 4)
    after = kappa(teacher, (labels + shift) % 4, labels)
    for name in ("error consistency", "excess agreement"):
        assert after[name]["low"] < 0 < after[name]["high"], name
        assert after[name]["high"] - after[name]["low"] < 0.05
    assert after["kappa"]["low"] > 0.3  # both are often right, which is agreement all the same
