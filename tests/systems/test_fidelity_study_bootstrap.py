"""The study's bootstrap is the shared one, all draws at once."""

import numpy as np
import pytest
from scipy import stats

from sanov.comparisons import cluster_bootstrap
from sanov.systems.fidelity import study_bootstrap
from sanov.systems.fidelity.study_bootstrap import draw_mean, draw_rho

HOW = {"draws": 300, "confidence": 0.9, "seed": 3}


def spearman(rows):
    x, y = rows.T
    return stats.spearmanr(x, y).statistic if np.ptp(x) and np.ptp(y) else np.nan


@pytest.fixture(params=[2, 5, 13])
def study(request):
    """Rows of clusters of unequal size, in no order, with ties."""
    generator = np.random.default_rng(request.param)
    clusters = generator.permutation(np.repeat(np.arange(request.param), 3))[1:].astype(str)
    x, y = generator.normal(size=(2, len(clusters))).round(1)
    return x, x + y, clusters


@pytest.mark.parametrize("at_once", [2**21, 100])
def test_mean_and_correlation_are_those_of_copied_rows(study, monkeypatch, at_once):
    monkeypatch.setattr(study_bootstrap, "AT_ONCE", at_once)
    x, y, clusters = study
    for ours, theirs in (
        (draw_mean(x, clusters, **HOW), cluster_bootstrap(x, clusters, **HOW)),
        (draw_rho(x, y, clusters, **HOW), cluster_bootstrap(np.stack([x, y], axis=1), clusters, spearman, **HOW)),
    ):
        assert (ours.estimate, ours.low, ours.high) == pytest.approx(
            (theirs.estimate, theirs.low, theirs.high), abs=1e-12
        )
        assert (ours.clusters, ours.draws) == (theirs.clusters, theirs.draws)


def test_a_draw_in_which_nothing_varies_has_no_correlation():
    x, clusters = np.array([1.0, 1.0, 2.0, 2.0]), np.array(["a", "a", "b", "b"])
    found = draw_rho(x, np.array([0.0, 1.0, 2.0, 3.0]), clusters, **HOW)
    assert 0 < found.draws < 300
    assert found.estimate == pytest.approx(stats.spearmanr(x, [0, 1, 2, 3]).statistic)
