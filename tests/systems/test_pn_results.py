"""The statsmodels door against sandwich covariances that statsmodels itself computes, and against known truths."""

import numpy as np
import pytest

import sanov
from sanov.core.errors import InputError
from sanov.systems.pn.results import read_results

api = pytest.importorskip("statsmodels.api")
ROWS = 4000


@pytest.fixture(scope="module")
def design():
    rng = np.random.default_rng(11)
    return api.add_constant(rng.standard_normal((ROWS, 3)))


def linear(design, noise):
    return api.OLS(design @ [1.0, 0.5, -0.2, 0.0] + noise, design).fit()


def standard_errors_away(found, expected):
    return abs(found.first - expected) / found.error


def test_well_specified_linear_model_costs_half_a_parameter_each(design):
    found = read_results(linear(design, np.random.default_rng(1).standard_normal(ROWS)))
    assert found.parameters == 5  # four coefficients and the variance
    assert standard_errors_away(found, 5 / 2) < 4
    assert all(share == pytest.approx(1, abs=0.25) for share in found.shares.values())


def test_linear_coefficient_is_the_sandwich_of_statsmodels(design):
    """tr(X'X HC0) / sigma^2 for the coefficients, (kurtosis - 1) / 2 for the variance."""
    noise = np.random.default_rng(2).standard_normal(ROWS) * np.exp(0.7 * design[:, 1])
    fitted = linear(design, noise)
    residual = np.asarray(fitted.resid)
    variance = (residual**2).mean()
    covariance = fitted.get_robustcov_results("HC0").cov_params()
    coefficients = np.trace(design.T @ design @ covariance) / variance
    kurtosis = ((residual**2 / variance - 1) ** 2).mean() / 2
    found = read_results(fitted)
    assert found.first == pytest.approx((coefficients + kurtosis) / 2, rel=1e-9)
    assert found.first > 1.5 * 5 / 2  # heteroscedastic data depart from p/2
    assert max(found.shares, key=found.shares.get) == "log(sigma)"


def test_logit_well_specified_and_its_two_doors_agree(design):
    rng = np.random.default_rng(3)
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-design @ [0.2, 1.0, -0.5, 0.0]))).astype(float)
    logit = read_results(api.Logit(y, design).fit(disp=False))
    binomial = read_results(api.GLM(y, design, family=api.families.Binomial()).fit())
    assert logit.parameters == 4
    assert standard_errors_away(logit, 2) < 4
    assert binomial.first == pytest.approx(logit.first, rel=1e-6)


def test_overdispersed_counts_cost_their_dispersion(design):
    """Under a Poisson model with negative-binomial counts, 2a = the sum of Var / mean along the scores."""
    rng = np.random.default_rng(4)
    mean = np.exp(design @ [1.0, 0.3, 0.0, 0.0])
    counts = rng.poisson(mean * rng.gamma(1.0, 1.0, ROWS))
    fitted = api.Poisson(counts, design).fit(disp=False)
    found = read_results(fitted)
    covariance = api.Poisson(counts, design).fit(disp=False, cov_type="HC0").cov_params()
    information = -fitted.model.hessian(np.asarray(fitted.params))
    assert found.first == pytest.approx(np.trace(information @ covariance) / 2, rel=1e-6)
    assert found.first > 2 * 4 / 2
    glm = read_results(api.GLM(counts, design, family=api.families.Poisson()).fit())
    assert glm.first == pytest.approx(found.first, rel=1e-5)


def test_expected_and_observed_information_are_told_apart(design):
    """Probit through GLM: A is the observed, I the expected information."""
    rng = np.random.default_rng(5)
    y = (design @ [0.1, 1.0, 0.0, 0.0] + rng.standard_t(2, ROWS) > 0).astype(float)
    family = api.families.Binomial(link=api.families.links.Probit())
    fitted = api.GLM(y, design, family=family).fit()
    params = np.asarray(fitted.params)
    observed = -fitted.model.hessian(params, observed=True) / ROWS
    expected = -fitted.model.hessian(params, observed=False) / ROWS
    scores = fitted.model.score_obs(params)
    inverse = np.linalg.inv(observed)
    reference = np.trace(expected @ inverse @ (scores.T @ scores / ROWS) @ inverse) / 2
    assert read_results(fitted).first == pytest.approx(reference, rel=1e-9)
    plain = read_results(api.Probit(y, design).fit(disp=False))
    assert "stands for the expected" in plain.notes[0]


def test_simulated_risk_is_the_one_predicted():
    """The divergence of refits on fresh heteroscedastic samples averages a/n, to the order that is neglected."""
    rng = np.random.default_rng(6)

    def draw(rows):
        x = api.add_constant(rng.standard_normal(rows))
        return x, x @ [1.0, 2.0] + rng.standard_normal(rows) * np.sqrt(0.5 + 0.5 * x[:, 1] ** 2)

    rows, variance = 400, 1.0  # E(0.5 + 0.5 z^2)
    divergences = []
    for _ in range(800):
        x, y = draw(rows)
        fitted = np.linalg.lstsq(x, y, rcond=None)[0]
        found = ((y - x @ fitted) ** 2).mean()
        gap = fitted - [1.0, 2.0]
        divergences.append((np.log(found / variance) + (variance + gap @ gap) / found - 1) / 2)
    x, y = draw(200_000)
    predicted = read_results(api.OLS(y, x).fit()).first / rows
    error = np.std(divergences) / np.sqrt(len(divergences))
    assert abs(np.mean(divergences) - predicted) < 4 * error + 10 * predicted / rows


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_redundant_columns_are_not_counted(design):
    y = design @ [1.0, 0.5, -0.2, 0.0] + np.random.default_rng(7).standard_normal(ROWS)
    doubled = np.column_stack([design, design[:, 1]])
    found = read_results(api.OLS(y, doubled).fit())
    assert found.parameters == 5
    assert found.first == pytest.approx(read_results(api.OLS(y, design).fit()).first, rel=1e-6)
    assert "p reduced from 6 to 5" in found.notes[0]


def test_clusters_of_copies_cost_what_the_originals_cost(design):
    """Every row twice, in a cluster of its own: a/n is that of the original rows."""
    y = design @ [1.0, 0.5, -0.2, 0.0] + np.random.default_rng(8).standard_normal(ROWS)
    once = read_results(api.OLS(y, design).fit())
    twice = read_results(api.OLS(np.tile(y, 2), np.tile(design, (2, 1))).fit(), np.tile(np.arange(ROWS), 2))
    assert twice.first / twice.rows == pytest.approx(once.first / once.rows, rel=1e-9)
    assert twice.error / twice.rows == pytest.approx(once.error / once.rows, rel=1e-9)


def test_several_outcomes_have_a_parameter_each(design):
    rng = np.random.default_rng(9)
    fitted = api.MNLogit(rng.integers(0, 3, ROWS), design).fit(disp=False)
    found = read_results(fitted)
    assert found.parameters == 8
    assert len(found.shares) == 8
    assert standard_errors_away(found, 4) < 4


def test_mistakes_say_what_is_wanted(design):
    y = np.random.default_rng(10).standard_normal(ROWS)
    with pytest.raises(InputError, match="OLS, WLS, GLM"):
        read_results(object())
    counts = np.random.default_rng(0).poisson(3, ROWS)
    penalised = api.Poisson(counts, design).fit_regularized(alpha=200, disp=False)
    with pytest.raises(InputError, match="maximum-likelihood"):
        read_results(penalised)
    weighted = api.GLM(counts, design, family=api.families.Poisson(), freq_weights=np.full(ROWS, 2)).fit()
    with pytest.raises(InputError, match="weighted"):
        read_results(weighted)
    with pytest.raises(InputError, match="one per row"):
        read_results(api.OLS(y, design).fit(), [1, 2])


@pytest.mark.parametrize("kind", ["linear", "logit", "poisson"])
def test_standard_error_is_the_spread_between_samples(kind):
    """The influence function's error against the standard deviation of a over samples: within 25 %."""
    rng = np.random.default_rng(12)
    found = []
    for _ in range(150):
        x = api.add_constant(rng.standard_normal((600, 2)))
        signal = x @ [0.3, 0.7, 0.0]
        if kind == "linear":
            fitted = api.OLS(signal + rng.standard_normal(600) * (1 + 0.2 * np.abs(x[:, 1])), x).fit()
        elif kind == "logit":
            fitted = api.Logit((rng.random(600) < 1 / (1 + np.exp(-signal))).astype(float), x).fit(disp=False)
        else:
            fitted = api.Poisson(rng.poisson(np.exp(signal)), x).fit(disp=False)
        found.append(read_results(fitted))
    spread = np.std([each.first for each in found], ddof=1)
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("kind", ["OLS", "Logit"])
def test_the_clusters_of_the_result_are_taken(kind):
    rng = np.random.default_rng(0)
    design = api.add_constant(rng.standard_normal((300, 2)))
    groups = np.repeat(np.arange(30), 10)
    outcome = design @ [0.2, 1.0, -0.5] + np.repeat(rng.standard_normal(30), 10) + rng.standard_normal(300)
    model = api.OLS(outcome, design) if kind == "OLS" else api.Logit((outcome > 0).astype(float), design)
    options = {} if kind == "OLS" else {"disp": False}
    clustered = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, **options)
    plain = model.fit(**options)
    assert sanov.pn.from_results(clustered).values["a"] == sanov.pn.from_results(plain, clusters=groups).values["a"]
    assert sanov.pn.from_results(plain).values["a"] < sanov.pn.from_results(clustered).values["a"]
