"""Votes by hand and against brute force; verdicts and calibration against scikit-learn and SciPy."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, brier_score_loss, recall_score, roc_auc_score

from sanov.core.errors import InputError
from sanov.systems.laser import (
    best_of_n,
    fit_platt,
    fit_threshold,
    majority_vote,
    verdicts,
    vote_table,
    weighted_vote,
)
from sanov.systems.laser.calibration import by_length, held_out, reliability_frame

# -- votes ------------------------------------------------------------------------------------------------------------


def test_the_worked_votes():
    assert weighted_vote(["a", "b", "b"], [0.9, 0.3, 0.3]).answer == "a"
    assert weighted_vote(["a", "b", "b"], [0.0, 0.0, 0.0]).answer == "b"
    assert weighted_vote(["a", "b", "b"], [-2.0, -1.0, -3.0]).answer == "b"


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0, 7.0])
def test_equal_weights_are_the_majority(weight):
    for answers in itertools.product("abc", repeat=5):
        assert weighted_vote(answers, [weight] * 5).answer == majority_vote(answers).answer


def test_the_vote_is_the_largest_sum_of_clipped_scores():
    rng = np.random.default_rng(0)
    for _ in range(200):
        answers = rng.choice(list("abcd"), 8).tolist()
        scores = rng.uniform(-0.5, 1.5, 8)
        sums = Counter()
        for answer, score in zip(answers, scores, strict=True):
            sums[answer] += float(np.clip(score, 0, 1))
        vote = weighted_vote(answers, scores)
        assert sums[vote.answer] == pytest.approx(max(sums.values()))
        assert vote.share == pytest.approx(max(sums.values()) / sum(sums.values()))
        assert answers[vote.row] == vote.answer


def test_ties_go_to_the_higher_score_and_then_to_the_first():
    assert weighted_vote(["a", "b", "b"], [0.5, 0.2, 0.3]).answer == "a"
    assert weighted_vote(["b", "b", "a"], [0.25, 0.25, 0.5]).answer == "a"
    assert weighted_vote(["b", "a"], [1.2, 1.4]).answer == "a"  # both weigh 1
    assert weighted_vote(["a", "b"], [-2.0, -1.0]).answer == "b"  # the majority of one each
    assert weighted_vote(["b", "a"], [0.5, 0.5]).answer == "b"
    assert majority_vote(["b", "a", "a", "b"]).answer == "b"
    assert best_of_n(["b", "a", "c"], [0.2, 0.7, 0.7]).answer == "a"


def test_those_without_an_answer_do_not_vote():
    answers = [None, "a", None, "b"]
    assert weighted_vote(answers, [9.0, 0.1, 9.0, 0.2]).answer == "b"
    assert majority_vote([None, None, "a"]).share == 1
    assert best_of_n(answers, [9.0, -0.1, 9.0, -0.2]).row == 1


@pytest.mark.parametrize("answers", [[None, None], []])
def test_a_vote_over_nothing_says_why(answers):
    for vote in (
        majority_vote(answers),
        weighted_vote(answers, [0.5] * len(answers)),
        best_of_n(answers, [0.5] * len(answers)),
    ):
        assert vote.answer is None
        assert vote.row is None
        assert vote.reason == "no extractable answer"


def test_answers_may_be_the_same_without_the_same_text():
    def same(first, second):
        return float(first) == float(second)

    answers = ["1/2", "0.5", "2", "0.50"]
    assert majority_vote(answers).answer == "1/2"
    numbers = ["0.5", "2", "0.50", "2.0", ".5"]
    assert majority_vote(numbers, same=same).answer == "0.5"
    assert weighted_vote(numbers, [0.3, 0.9, 0.3, 0.1, 0.3], same=same).answer == "2"


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 scores and 3 answers"):
        weighted_vote(["a", "b", "b"], [0.1, 0.2])
    with pytest.raises(InputError, match="completion 2"):
        best_of_n(["a", "b"], [0.1, math.nan])
    with pytest.raises(InputError, match="3 answers and 2 prompts"):
        vote_table(["p", "q"], ["a", "b", "c"], None)


def test_a_table_of_votes():
    prompts = ["p", "q", "p", "p", "q", "r"]
    answers = ["1", "7", "2", "2", "7", None]
    scores = [0.9, 0.2, 0.3, 0.4, 0.1, 0.8]
    right = [1.0, 0.0, 0.0, 0.0, 0.0, math.nan]
    table = vote_table(prompts, answers, scores, right)
    assert table["prompt"].to_list() == ["p", "q", "r"]
    assert table["majority"].to_list() == ["2", "7", None]
    assert table["weighted"].to_list() == ["1", "7", None]
    assert table["best"].to_list() == ["1", "7", None]
    assert table["right_majority"].to_list() == [0, 0, 0]
    assert table["right_weighted"].to_list() == [1, 0, 0]
    assert table["right_any"].to_list() == [1, 0, None]
    assert table["agreement"].to_list() == [pytest.approx(2 / 3), 1, None]
    assert "weighted" not in vote_table(prompts, answers, None).columns


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_worked_verdicts():
    """Eight right, of which six are accepted; four wrong, of which three are rejected."""
    right = np.array([True] * 8 + [False] * 4)
    scores = np.array([0.9] * 6 + [0.1] * 2 + [0.1] * 3 + [0.9])
    found = verdicts(scores, right)
    assert (found["acc"], found["acc_pos"], found["acc_neg"], found["f1"]) == (0.75, 0.75, 0.75, 0.75)


def test_a_perfect_score():
    right = np.array([True, False, True, False])
    found = verdicts(right.astype(float), right)
    assert found["auroc"] == 1
    assert found["ece"] == 0
    assert found["brier"] == 0
    assert found["f1"] == 1


def planted(rows=1500, seed=0):
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < 0.35
    return 0.3 + 0.35 * right + 0.3 * rng.standard_normal(rows), right


@pytest.mark.parametrize("threshold", [0.5, 0.37])
def test_verdicts_are_those_of_scikit_learn(threshold):
    scores, right = planted()
    said = scores > threshold
    found = verdicts(scores, right, threshold=threshold)
    assert found["acc"] == pytest.approx(accuracy_score(right, said))
    recalls = recall_score(right, said), recall_score(~right, ~said)
    assert (found["acc_pos"], found["acc_neg"]) == pytest.approx(recalls)
    assert found["f1"] == pytest.approx(hmean(recalls))
    assert found["auroc"] == pytest.approx(roc_auc_score(right, scores))
    held = np.clip(scores, 0, 1)
    assert found["brier"] == pytest.approx(brier_score_loss(right, held))
    frame = reliability_frame(scores, right)
    share, mean = calibration_curve(right, held, n_bins=15)
    np.testing.assert_allclose(frame["right"], share)
    np.testing.assert_allclose(frame["confidence"], mean)
    assert found["ece"] == pytest.approx(float(np.abs(share - mean) @ frame["rows"].to_numpy() / len(right)))


@pytest.mark.parametrize("right", [True, False])
def test_one_class_alone_has_no_auroc(right):
    found = verdicts(np.array([0.2, 0.8]), np.array([right, right]))
    assert math.isnan(found["auroc"])
    assert math.isnan(found["f1"])
    assert math.isnan(found["acc_neg" if right else "acc_pos"])
    assert found["acc"] == 0.5


def test_lengths_have_to_agree():
    with pytest.raises(InputError, match="3 scores and 2 labels"):
        verdicts(np.zeros(3), np.array([True, False]))


def test_verdicts_by_length():
    scores, right = planted(400)
    lengths = np.random.default_rng(1).integers(3, 30, 400)
    table = by_length(scores, right, lengths)
    assert len(table) == 4
    assert table["rows"].sum() == 400
    for row in table.iter_rows(named=True):
        own = (lengths >= row["from_tokens"]) & (lengths <= row["to_tokens"])
        assert row["auroc"] == pytest.approx(roc_auc_score(right[own], scores[own]))
    assert len(by_length(scores, right, np.full(400, 7))) == 1


# -- calibration ------------------------------------------------------------------------------------------------------


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose decision is its one input."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0).astype(int)]


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_platt_is_that_of_scikit_learn(scale):
    scores, right = planted(300)
    scores = scale * scores
    given = Given().fit(scores[:, None], right)
    reference = CalibratedClassifierCV(FrozenEstimator(given), method="sigmoid", ensemble=False).fit(
        scores[:, None], right
    )
    found = fit_platt(scores, right)(scores)
    np.testing.assert_allclose(found, reference.predict_proba(scores[:, None])[:, 1], atol=2e-5)


def test_platt_exists_where_scores_separate():
    found = fit_platt(np.array([0.0, 0.1, 0.9, 1.0]), np.array([False, False, True, True]))
    assert 0 < found(np.array([0.0]))[0] < 0.5 < found(np.array([1.0]))[0] < 1


def test_platt_calibrates_what_is_not():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-3, 3, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-(1.7 * scores - 0.4)))
    fitted = fit_platt(scores[:2000], right[:2000])
    assert (fitted.slope, fitted.intercept) == pytest.approx((1.7, -0.4), abs=0.3)  # four standard errors
    before, after = (verdicts(values, right[2000:])["ece"] for values in (scores[2000:], fitted(scores[2000:])))
    assert after < 0.03 < before


def test_the_threshold_is_the_best_of_all():
    scores, right = planted(200)
    found = fit_threshold(scores, right)
    best = max(verdicts(scores, right, threshold=cut)["f1"] for cut in scores)
    assert verdicts(scores, right, threshold=found)["f1"] == pytest.approx(best)
    assert not np.isin(found, scores)


def test_a_threshold_of_equal_scores_is_that_score():
    assert fit_threshold(np.full(3, 0.4), np.array([True, False, True])) == 0.4


@pytest.mark.parametrize("fit", [fit_platt, fit_threshold])
def test_one_class_alone_cannot_be_fitted(fit):
    with pytest.raises(InputError, match="all 2 completions to fit on are right"):
        fit(np.array([0.1, 0.2]), np.array([True, True]))


def test_no_prompt_is_on_both_sides():
    groups = np.repeat(np.arange(9), 4)
    fit = held_out(groups, 0.5, seed=3)
    assert set(groups[fit]) & set(groups[~fit]) == set()
    assert len(set(groups[fit])) == 4
    assert not held_out(np.zeros(5, dtype=int), 0.5, seed=3).any()
    assert held_out(np.array([0, 1]), 0.01, seed=3).sum() == 1
