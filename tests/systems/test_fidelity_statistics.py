"""Identities, golden numbers, and the same statistics by independent programs."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
import sklearn.metrics
import torch
from sacrebleu.metrics import BLEU
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

import sanov
from sanov import divergences as torch_divergences
from sanov.systems.fidelity.counts import CELLS, count
from sanov.systems.fidelity.divergence import divergences, jensen_shannon, kl
from sanov.systems.fidelity.rationales import sentence_bleu
from systems.fidelity_truths import answers, calibration, pair, probabilities

FAST = {"draws": 1000}
GOLDEN = {
    "teacher": [0, 1, 2, 0, 1, 2, 0, 1],
    "student": [0, 1, 1, 0, 2, 2, 1, 2],
    "label": [0, 1, 2, 1, 0, 2, 1, 1],
}
P, Q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.5, 0.3, 0.2]])


def frame(labels, systems, names=("teacher", "student", "baseline"), **more):
    return pl.DataFrame({"label": labels, **dict(zip(names, systems, strict=False)), **more})


def statistics(answer):
    return {(row["of"], row["statistic"]): row for row in answer.to_frame().to_dicts()}


def value(answer, of, name):
    return statistics(answer)[of, name]["value"]


# -- against lists and against other programs -------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_every_statistic_of_labels_is_what_lists_say(classes, seed):
    labels, systems = answers(180, classes, seed)
    found = statistics(sanov.fidelity(frame(labels, systems), **FAST))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        names = [("teacher", "student", "baseline")[place] for place in (a, b)]
        expected = pair(labels, systems[a], systems[b], classes)
        for name, number in expected.items():
            assert found[", ".join(names), name]["value"] == pytest.approx(number, abs=1e-12), name
    gain = (systems[1] == labels).mean() - (systems[2] == labels).mean()
    assert found["student - baseline", "accuracy"]["value"] == pytest.approx(gain)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_and_mcnemar_agree_with_scikit_learn_statsmodels_and_scipy(seed):
    labels, (teacher, student, _) = answers(300, 4, seed)
    answer = sanov.fidelity(frame(labels, (teacher, student)), **FAST)
    kappa = value(answer, "teacher, student", "kappa")
    assert kappa == pytest.approx(sklearn.metrics.cohen_kappa_score(teacher, student))
    table = sklearn.metrics.confusion_matrix(teacher, student)
    assert kappa == pytest.approx(cohens_kappa(table).kappa)
    right = sklearn.metrics.confusion_matrix(teacher == labels, student == labels)
    row = answer.to_frame("McNemar").to_dicts()[0]
    assert row["p"] == pytest.approx(statsmodels_mcnemar(right, exact=True).pvalue)
    lost, corrected = row["only the first right"], row["only the second right"]
    assert (lost, corrected) == (right[1, 0], right[0, 1])
    assert row["p"] == pytest.approx(scipy.stats.binomtest(lost, lost + corrected).pvalue)


def test_error_consistency_is_kappa_of_right_and_wrong():
    """Its chance is that of two systems that are right independently, which is Cohen's on the two values."""
    labels, (teacher, student, _) = answers(500, 3, 5)
    found = value(sanov.fidelity(frame(labels, (teacher, student)), **FAST), "teacher, student", "error consistency")
    assert found == pytest.approx(sklearn.metrics.cohen_kappa_score(teacher == labels, student == labels))


def test_divergences_are_those_of_scipy_and_of_the_shared_mathematics():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 200), rng.dirichlet(np.ones(5), 200)
    log_p, log_q = (torch.log(torch.tensor(values)) for values in (p, q))
    for weight in (0.1, 0.5, 0.8):
        found = divergences(p, q, weight)
        assert found[:, 0] == pytest.approx([scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)])
        assert found[:, 1] == pytest.approx([scipy.stats.entropy(b, a) for a, b in zip(p, q, strict=True)])
        assert found[:, 2] == pytest.approx(torch_divergences.jensen_shannon(log_p, log_q, weight).numpy())
        assert found[:, 0] == pytest.approx(torch_divergences.kl(log_p, log_q).numpy())


def test_report_gives_means_of_divergences_and_the_calibration_error():
    labels, systems = answers(400, 4, 1)
    p = {name: probabilities(given, 4, place) for place, (name, given) in enumerate(zip("tsb", systems, strict=True))}
    names = dict(zip("tsb", ("teacher", "student", "baseline"), strict=True))
    columns = {f"{names[key]}_prob_{k}": values[:, k] for key, values in p.items() for k in range(4)}
    answer = sanov.fidelity(frame(labels, systems, **columns), jsd_weight=0.2, bins=10, **FAST)
    for name, number in zip(
        ("forward KL", "reverse KL", "JSD"), divergences(p["t"], p["s"], 0.2).mean(axis=0), strict=True
    ):
        assert value(answer, "teacher, student", name) == pytest.approx(number)
    gap = kl(p["t"], p["s"]).mean() - kl(p["t"], p["b"]).mean()
    assert value(answer, "student - baseline", "forward KL with the teacher") == pytest.approx(gap)
    for key, given in zip("tsb", systems, strict=True):
        expected = calibration(p[key].max(axis=1), given == labels, 10)
        assert value(answer, names[key], "ECE") == pytest.approx(expected)


def test_bleu_is_that_of_sacrebleu():
    one = ["the cat sat on the mat", "so the answer is 42", "two words"]
    two = ["the cat is on the mat", "therefore the answer is 41", "two other words"]
    score = BLEU(effective_order=True).sentence_score
    assert sentence_bleu(one, two) == pytest.approx([score(a, [b]).score for a, b in zip(one, two, strict=True)])
    rows = 30
    columns = {"teacher_rationale": (two * 10)[:rows], "student_rationale": (one * 10)[:rows]}
    labels, systems = answers(rows, 3, 0)
    answer = sanov.fidelity(frame(labels, systems[:2], **columns), **FAST)
    assert value(answer, "teacher, student", "BLEU") == pytest.approx(sentence_bleu(one, two).mean())


# -- identities -------------------------------------------------------------------------------------------------------


def test_a_student_that_equals_its_teacher():
    labels, (teacher, _, _) = answers(100, 3, 2)
    p = probabilities(teacher, 3, 0)
    columns = {f"{name}_prob_{k}": p[:, k] for name in ("teacher", "student") for k in range(3)}
    texts = {f"{name}_rationale": [f"because of {k}" for k in range(100)] for name in ("teacher", "student")}
    answer = sanov.fidelity(frame(labels, (teacher, teacher), **columns, **texts), **FAST)
    of = "teacher, student"
    exact = {
        "agreement": 1,
        "kappa": 1,
        "error consistency": 1,
        "forward KL": 0,
        "reverse KL": 0,
        "JSD": 0,
        "BLEU": 100,
    }
    for name, number in exact.items():
        assert value(answer, of, name) == pytest.approx(number, abs=1e-12), name
    assert value(answer, of, "inherited") == pytest.approx(1 - value(answer, "teacher", "accuracy"))
    assert answer.to_frame("McNemar")["p"].to_list() == [1.0]


@pytest.mark.parametrize("classes", [2, 5])
def test_agreement_lies_in_its_bounds_and_cells_add_up(classes):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels, systems = answers(60, classes, seed, accuracy=rng.random(3), copied=rng.random())
        found = {key: row["value"] for key, row in statistics(sanov.fidelity(frame(labels, systems), **FAST)).items()}
        for of in ("teacher, student", "teacher, baseline", "student, baseline"):
            agreement = found[of, "agreement"]
            assert found[of, "agreement, lowest possible"] <= agreement + 1e-12
            assert agreement <= found[of, "agreement, highest possible"] + 1e-12
            assert sum(found[of, cell] for cell in CELLS) == pytest.approx(1)
            first, second = of.split(", ")
            gap = found[second, "accuracy"] - found[first, "accuracy"]
            assert found[of, "corrected"] - found[of, "lost"] == pytest.approx(gap)
            agrees_and_first_right = found[of, "both right"]
            assert found[second, "accuracy"] == pytest.approx(agrees_and_first_right + found[of, "corrected"])
            if classes == 2:
                assert found[of, "both wrong, different"] == 0
                assert agreement == pytest.approx(found[of, "both right"] + found[of, "inherited"])


def test_bounds_are_reached():
    """Errors that never coincide, and errors nested in one another."""
    labels = np.zeros(100, int)
    apart = np.where(np.arange(100) < 30, 1, 0), np.where(np.arange(100) >= 60, 2, 0)
    nested = np.where(np.arange(100) < 30, 1, 0), np.where(np.arange(100) < 40, 1, 0)
    for systems, end in ((apart, "lowest"), (nested, "highest")):
        answer = sanov.fidelity(frame(labels, systems), **FAST)
        agreement = value(answer, "teacher, student", "agreement")
        assert agreement == pytest.approx(value(answer, "teacher, student", f"agreement, {end} possible"))


def test_divergences_vanish_at_equality_and_are_bounded():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.full(4, 0.3), 500), rng.dirichlet(np.full(4, 0.3), 500)
    assert (divergences(p, q, 0.5) >= 0).all()
    assert np.abs(divergences(p, p, 0.3)).max() < 1e-15
    apart = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    for weight in (0.1, 0.5, 0.9):
        bound = scipy.stats.entropy([weight, 1 - weight])
        assert (jensen_shannon(p, q, weight) <= bound + 1e-12).all()
        assert jensen_shannon(*apart, weight) == pytest.approx(bound)  # reached where they do not overlap
        assert jensen_shannon(p, q, weight) == pytest.approx(jensen_shannon(q, p, 1 - weight), abs=1e-15)
    assert jensen_shannon(*apart) == pytest.approx(np.log(2))
    assert np.isinf(kl(*apart)).all()


def test_jensen_shannon_tends_to_both_kl():
    for weight in (1e-4, 1e-6):
        assert jensen_shannon(P, Q, weight) / weight == pytest.approx(kl(P, Q), rel=10 * weight)
        assert jensen_shannon(P, Q, 1 - weight) / weight == pytest.approx(kl(Q, P), rel=10 * weight)
        assert jensen_shannon(P, Q, weight) < 1e-3


def test_bleu_of_a_text_with_itself_is_100():
    texts = ["a", "two words", "one two three four five", "x = 3, y = 4; so 7"]
    assert sentence_bleu(texts, texts) == pytest.approx(100)
    assert sentence_bleu(["entirely other text"], ["nothing alike here"])[0] < 10


def relabelled(data, names):
    same = dict(enumerate(names))
    return data.with_columns(pl.col("label", "teacher", "student", "baseline").replace_strict(same))


def test_row_order_and_names_of_classes_change_nothing():
    labels, systems = answers(200, 4, 3)
    data = frame(labels, systems)
    columns = {f"{name}_prob_{k}": column for name, place in (("teacher", 0), ("student", 1))
               for k, column in enumerate(probabilities(systems[place], 4, place).T)}  # fmt: skip
    names = ("d", "b", "a", "c")
    renamed = {key: f"{key[:-1]}{names[int(key[-1])]}" for key in columns}
    data = data.with_columns(**{key: pl.Series(column) for key, column in columns.items()})
    first = sanov.fidelity(data, **FAST)
    shuffled = sanov.fidelity(data.sample(fraction=1.0, shuffle=True, seed=1), **FAST)
    other = sanov.fidelity(relabelled(data, names).rename(renamed), **FAST)
    for answer, loose in ((shuffled, ()), (other, ("kappa",))):
        for key, row in statistics(first).items():
            again = statistics(answer)[key]
            assert again["value"] == pytest.approx(row["value"], abs=1e-12), key
            within = 0.02 if key[1].startswith(loose) and loose else 1e-12  # draws of kappa go through the classes
            assert [again["low"], again["high"]] == pytest.approx([row["low"], row["high"]], abs=within), key


# -- golden numbers ---------------------------------------------------------------------------------------------------


def test_golden_table():
    answer = sanov.fidelity(GOLDEN)
    expected = {
        "agreement": 0.5,
        "agreement, lowest possible": 0.125,
        "agreement, highest possible": 0.875,
        "both right": 0.375,
        "inherited": 0.125,
        "both wrong, different": 0.125,
        "corrected": 0.125,
        "lost": 0.25,
        "error consistency": 0.25,
        "kappa": 0.2558139535,
    }
    for name, number in expected.items():
        assert value(answer, "teacher, student", name) == pytest.approx(number, abs=1e-10), name
    assert [value(answer, name, "accuracy") for name in ("teacher", "student")] == [0.625, 0.5]
    assert answer.to_frame("McNemar")["p"].to_list() == [1.0]


def test_golden_divergences():
    assert kl(P, Q) == pytest.approx([0.0851228260], abs=1e-10)
    assert kl(Q, P) == pytest.approx([0.0920328502], abs=1e-10)
    for weight, number in {0.5: 0.0219011790, 0.1: 0.0076946877, 0.9: 0.0081847558}.items():
        assert jensen_shannon(P, Q, weight) == pytest.approx([number], abs=1e-10)
    assert abs(jensen_shannon(P, Q, 0.1)[0] - 0.0656450026) > 0.05  # that of swapped weights


# -- counting ---------------------------------------------------------------------------------------------------------


def test_patterns_hold_every_example_once():
    labels, systems = answers(500, 6, 4)
    groups = np.arange(500) % 7
    counts = count(("teacher", "student", "baseline"), np.stack(systems), labels, groups)
    assert counts.patterns.sum() == counts.cells.sum() == counts.groups.sum() == 500
    assert counts.groups.sum(axis=0).tolist() == counts.patterns.tolist()
    assert counts.groups.sum(axis=1).tolist() == np.bincount(groups).tolist()
    assert len(counts.patterns) <= 15
    for place in range(3):
        assert counts.transfer(place).sum(axis=1).tolist() == [1.0] * len(counts.patterns)
    by_pattern = np.bincount(counts.cell_patterns, counts.cells)
    assert by_pattern.tolist() == counts.patterns.tolist()
    for place, row in enumerate(systems):
        shares = np.bincount(counts.cell_answers[place], counts.cells)
        assert shares.tolist() == np.bincount(row).tolist()
