"""Every way in gives the same answer, and the answer says what was asked: enough, how many more, for how many, and why."""

import json
import math
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import integrate, optimize, stats
from typer.testing import CliRunner

import sanov
from sanov.cli import app
from sanov.core.answers import SUFFIXES
from sanov.core.errors import InputError
from sanov.families import coin_toss_equivalent
from sanov.systems.pn.riley import binary_criteria, explained

ROWS = 400
DELTA = 8 * 0.05**2


def table(rows=ROWS, seed=0):
    """Two normal columns that depend on one another, and one of heavy tails: the family is wrong about 'heavy'."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2))
    return pl.DataFrame({"one": x[:, 0], "two": x[:, 0] + x[:, 1], "heavy": rng.standard_t(5, size=rows)})


@pytest.fixture
def screen(tmp_path, monkeypatch):
    """Run `sanov apply pn` in a folder of its own; return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["sanov", "apply", "pn", *map(str, words)])
        done = CliRunner().invoke(app, ["apply", "pn", *map(str, words)])
        assert done.exit_code == 0, done.exception
        return done.output

    return run


def line(answer, heading):
    """One line of the summary, with its continuations."""
    found = re.search(
        rf"^{heading} +(.*(?:\n {{12}}.*)*)", answer if isinstance(answer, str) else answer.summary(), re.M
    )
    assert found, heading
    return " ".join(found[1].split())


# -- tables -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_table_has_one_answer(tmp_path):
    data = table()
    data.write_csv(tmp_path / "data.csv")
    data.write_parquet(tmp_path / "data.parquet")
    sources = {
        "polars": data,
        "pandas": data.to_pandas(),
        "arrow": data.to_arrow(),
        "dictionary": data.to_dict(as_series=False),
        "csv": str(tmp_path / "data.csv"),
        "parquet": tmp_path / "data.parquet",
    }
    answers = {name: sanov.pn(source, bootstrap=50) for name, source in sources.items()}
    first = answers["polars"]
    for name, answer in answers.items():
        assert answer.values == first.values, name
        assert answer.provenance == first.provenance, name
        assert answer.summary() == first.summary(), name
    kinds = {name: type(answer.to_frame()) for name, answer in answers.items()}
    assert kinds.pop("pandas") is pd.DataFrame
    assert kinds.pop("arrow") is pa.Table
    assert set(kinds.values()) == {pl.DataFrame}
    frames = [pl.DataFrame(answer.to_frame()) for answer in answers.values()]
    assert all(frame.equals(frames[0]) for frame in frames)


def test_missing_cells_are_refused_alike(tmp_path):
    data = table().with_columns(one=pl.when(pl.col("one") > 2).then(None).otherwise("one"))
    data.write_csv(tmp_path / "data.csv")
    row = int(data["one"].is_null().arg_true()[0]) + 1
    for source in (data, data.to_pandas(), data.to_arrow(), tmp_path / "data.csv"):
        with pytest.raises(InputError, match=f"row {row}, column 'one': the cell is missing"):
            sanov.pn(source)


def test_columns_are_chosen_and_the_rest_may_be_text():
    data = table().with_columns(ward=pl.lit("a"))
    assert sanov.pn(data, columns=["one", "two"], bootstrap=0).values["parameters"] == 5


# -- one screen -------------------------------------------------------------------------------------------------------


def first_order(data):
    """tr(G^-1 V) / 2 under the normal family, from Mardia's kurtosis."""
    z = data.to_numpy() - data.to_numpy().mean(axis=0)
    square = np.einsum("ri,ij,rj->r", z, np.linalg.inv(z.T @ z / len(z)), z)
    return (z.shape[1] + (np.square(square).mean() - z.shape[1]) / 2) / 2


def test_one_screen_answers_the_four_questions(screen):
    data = table()
    data.write_csv("data.csv")
    told = screen("data.csv", "family=gaussian", "epsilon=0.05", "order=1")
    assert len(told.splitlines()) <= 24
    assert max(map(len, told.splitlines())) <= 100
    a = first_order(data)
    required, carried = a / DELTA, math.floor(DELTA * ROWS / (a / 9))
    enough = required <= ROWS
    assert told.startswith(f"pn: {'Enough' if enough else 'Not enough'}")
    assert f"{a / ROWS:.4g} nats" in told
    assert f"{math.ceil(required):,} are required" in line(told, "rows")
    assert enough or f"{math.ceil(required - ROWS):,} more than these {ROWS}" in line(told, "rows")
    assert re.search(rf"\b9 in the family.*\b{carried}$", line(told, "parameters"))
    assert re.search(r"^misspecified: .* most by heavy\^2 \([2-9]", line(told, "model"))


def test_too_few_rows_are_counted(screen):
    data = table(120)
    data.write_csv("data.csv")
    told = screen("data.csv", "order=1", "bootstrap=0")
    more = math.ceil(first_order(data) / DELTA - 120)
    assert told.startswith("pn: Not enough")
    assert f"{more} more than these 120" in line(told, "rows")


def test_a_right_model_is_not_called_wrong(screen):
    rng = np.random.default_rng(5)
    pl.DataFrame(rng.standard_normal((2000, 3)), schema=list("abc")).write_csv("data.csv")
    assert line(screen("data.csv"), "model").startswith("no sign of misspecification")


def test_the_values_are_those_of_the_table(screen):
    table().write_csv("data.csv")
    told = json.loads(screen("data.csv", "bootstrap=50", "--json"))
    values, estimates = told["values"], told["tables"]["Estimates"]
    last = {name: cells[-1] for name, cells in estimates.items()}
    assert last["estimate"] == "sandwich second order"
    assert last["rows required"] == values["rows_required"]
    assert values["risk"] == pytest.approx(values["a"] / ROWS + values["b"] / ROWS**2)
    root = values["rows_required"]
    assert values["a"] / root + values["b"] / root**2 == pytest.approx(DELTA, rel=1e-10)
    assert values["rows_more"] == max(0, math.ceil(root - ROWS))
    assert values["rows_required_low"] < root < values["rows_required_high"]
    assert told["system"] == "pn"


def test_guarantees_and_bounds_stand_beside_each_other():
    answer = sanov.pn(table(), order=1, bootstrap=0)
    found = {(row["bound"], row["guarantee"]): row for row in answer.tables["Bounds and guarantees"].to_dicts()}
    a = first_order(table())
    assert found["pinsker", "mean"]["rows required"] == math.ceil(a / DELTA)
    assert found["pinsker", "markov"]["rows required"] == math.ceil(a / (0.05 * DELTA))
    assert found["bretagnolle_huber", "mean"]["delta"] == pytest.approx(-math.log(1 - 4 * 0.05**2))
    for bound, guarantee in (("pinsker", "chi2"), ("bretagnolle_huber", "markov"), ("sharp", "mean")):
        asked = sanov.pn(table(), order=1, bootstrap=0, bound=bound, guarantee=guarantee)
        assert math.ceil(asked.values["rows_required"]) == found[bound, guarantee]["rows required"]


# -- every form it can be saved in ------------------------------------------------------------------------------------


def test_what_is_saved_is_what_was_said(screen, tmp_path):
    table().write_csv("data.csv")
    answer = sanov.pn("data.csv", bootstrap=20)
    for suffix in SUFFIXES:
        assert f"saved in answer{suffix}" in screen("data.csv", "bootstrap=20", "--out", f"answer{suffix}")
    screen("data.csv", "bootstrap=20", "--out", "everything")
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["values"] == json.loads(json.dumps(answer.to_dict()["values"]))
    assert told["provenance"]["command"].startswith("sanov apply pn data.csv")
    assert pl.read_parquet("answer.parquet").equals(answer.to_frame())
    assert pl.read_csv("answer.csv")["rows required"].to_list() == pytest.approx(
        answer.to_frame()["rows required"].to_list()
    )
    with pd.ExcelFile("answer.xlsx") as book:
        assert {"answer", "Estimates", "Bounds and guarantees"} <= set(book.sheet_names)
    page = (tmp_path / "answer.html").read_text()
    assert answer.sentence[:30] in page
    assert r"\begin{tabular}" in (tmp_path / "answer.tex").read_text()
    names = {path.relative_to(tmp_path / "everything").as_posix() for path in (tmp_path / "everything").rglob("*")}
    assert {"answer.json", "summary.txt", "index.html", "tables/estimates.csv", "figures/fewer-parameters.svg"} <= names


# -- no data, and a fitted model --------------------------------------------------------------------------------------


def test_a_study_without_data(screen):
    told = screen("parameters=24", "epsilon=0.05")
    assert told.startswith("pn: 24 parameters need 600 rows at first order")  # 25 p: p / (16 epsilon^2)
    tosses = math.ceil(coin_toss_equivalent(DELTA))
    assert f"{tosses} tosses" in line(told, "coin")
    assert "1,200 rows" in line(told, "wrong model")
    values = sanov.pn(parameters=24).values
    assert values["rows_required"] == pytest.approx(600)
    assert values["rows_required_bretagnolle_huber"] == pytest.approx(12 / -math.log(1 - 4 * 0.05**2))
    assert sanov.pn(parameters=24, guarantee="markov").values["rows_required"] == pytest.approx(12_000)
    chi2 = sanov.pn(parameters=24, guarantee="chi2").values["rows_required"]
    assert chi2 == pytest.approx(stats.chi2.ppf(0.95, 24) / (2 * DELTA))
    for epsilon, per_parameter in ((0.1, 6.25), (0.02, 156.25), (0.01, 625)):
        assert sanov.pn(parameters=8, epsilon=epsilon).values["rows_required"] == pytest.approx(8 * per_parameter)


def test_a_model_fitted_by_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    design = api.add_constant(rng.standard_normal((900, 2)))
    counts = rng.poisson(np.exp(design @ [0.5, 0.4, 0.0]) * rng.gamma(1.0, 1.0, 900))
    model = api.GLM(counts, design, family=api.families.Poisson())
    answer = sanov.pn.from_results(model.fit(), epsilon=0.1)
    robust = model.fit(cov_type="HC0").cov_params()
    a = np.trace(np.linalg.solve(model.fit().cov_params(), robust)) / 2
    assert answer.values["a"] == pytest.approx(a, rel=1e-6)
    assert answer.values["rows_required"] == pytest.approx(a / 0.08, rel=1e-6)
    assert answer.values["parameters_carried"] == math.floor(0.08 * 900 * 3 / a)
    tic = api.Poisson(counts, design).fit(disp=False)
    assert sanov.pn.from_results(tic).values["a"] == pytest.approx((tic.info_criteria("tic") + 2 * tic.llf) / 4)
    assert any(note.startswith("first order only") for note in answer.notes)
    assert line(answer, "model").startswith("misspecified")  # the counts vary more than a Poisson model says
    assert "this GLM model" in answer.sentence
    clusters = np.repeat(np.arange(450), 2)
    clustered = sanov.pn.from_results(model.fit(), clusters=clusters)
    assert clustered.values["a"] != pytest.approx(a)
    assert sanov.pn.from_results(model.fit(), clusters=np.arange(900)).values["a"] == pytest.approx(a, rel=1e-6)
    with pytest.raises(InputError, match="epsilon"):
        sanov.pn.from_results(model.fit(), epsilon=0.5)


# -- an outcome -------------------------------------------------------------------------------------------------------


def test_an_outcome_brings_the_other_two_criteria(screen):
    rng = np.random.default_rng(4)
    data = table(600)
    died = (data["one"].to_numpy() + rng.logistic(size=600) > 1).astype(float)
    data.with_columns(died=pl.Series(np.where(died, "yes", "no"))).write_csv("patients.csv")
    told = screen("patients.csv", "map.outcome=died", "bootstrap=0")
    r_squared = explained(data.to_numpy(), died, binary=True)
    size = max(binary_criteria(3, r_squared, died.mean()).values())
    assert f"{size:,} rows to predict 'died' with 3 parameters" in line(told, "Riley")
    assert "one regression overfits little" in line(told, "Riley")  # why it differs from pn
    events = int(min(died.sum(), 600 - died.sum()))
    assert f"{events} events, {events / 3:.3g} per parameter" in line(told, "events")
    assert "does not know how strong the effects are" in line(told, "events")  # why it differs from both
    assert "'died' is the outcome, and no column of the family" in told
    same = sanov.pn("patients.csv", columns=["one", "two", "heavy"], bootstrap=0)
    assert sanov.pn("patients.csv", map={"outcome": "died"}, bootstrap=0).values["a"] == same.values["a"]


def test_an_expected_r_squared_is_taken_as_given():
    data = table(600).with_columns(died=pl.Series(np.arange(600) % 4 == 0))
    options = {"riley": {"r_squared": 0.1, "shrinkage": 0.95}}
    answer = sanov.pn(data, map={"outcome": "died"}, bootstrap=0, **options)
    asked = binary_criteria(3, 0.1, 0.25, shrinkage=0.95)
    table_of = dict(answer.tables["Riley's criteria"].iter_rows())
    assert table_of == asked
    assert answer.values["riley_rows"] == max(asked.values())


# -- designs ----------------------------------------------------------------------------------------------------------


def test_weights_and_clusters_come_as_columns():
    data = table().with_columns(same=pl.lit(2.0), times=pl.Series(np.arange(ROWS) % 3 + 1))
    plain = sanov.pn(table(), bootstrap=0)
    weighted = sanov.pn(data.drop("times"), map={"weights": "same"}, bootstrap=0)
    assert weighted.values["a"] == pytest.approx(plain.values["a"], rel=1e-9)
    assert weighted.values["effective_rows"] == pytest.approx(ROWS)
    frequent = sanov.pn(data.drop("same"), map={"weights": "times", "weights_kind": "frequency"}, bootstrap=0)
    repeated = table()[np.repeat(np.arange(ROWS), data["times"].to_numpy()).tolist()]
    assert frequent.values["rows"] == repeated.height
    assert frequent.values["a"] == pytest.approx(sanov.pn(repeated, bootstrap=0).values["a"], rel=1e-9)
    uneven = sanov.pn(data.drop("same"), map={"weights": "times"}, bootstrap=0)
    kish = data["times"].sum() ** 2 / (data["times"] ** 2).sum()
    assert uneven.values["effective_rows"] == pytest.approx(kish)
    assert f"weigh as much as {kish:,.1f} (Kish)" in uneven.summary()


def test_rows_that_are_copies_of_each_other_count_once():
    twice = pl.concat([table().with_columns(ward=pl.Series(np.arange(ROWS)).cast(pl.String))] * 2)
    once, clustered = sanov.pn(table(), bootstrap=0), sanov.pn(twice, map={"clusters": "ward"}, bootstrap=0)
    naive = sanov.pn(twice.drop("ward"), bootstrap=0)
    assert clustered.values["risk"] == pytest.approx(once.values["risk"], rel=1e-9)
    assert clustered.values["rows_required"] == pytest.approx(2 * once.values["rows_required"], rel=1e-9)
    assert naive.values["rows_required"] == pytest.approx(once.values["rows_required"], rel=1e-9)
    assert f"clusters: {ROWS} of them are the independent units" in clustered.summary()


# -- families ---------------------------------------------------------------------------------------------------------


def test_a_saturated_table_of_counts_is_never_wrong():
    """Every distribution on the cells belongs to the multinomial family: a = p/2 whatever the data."""
    rng = np.random.default_rng(6)
    data = pl.DataFrame({"sex": rng.choice(["f", "m"], 300), "group": rng.choice(list("ABC"), 300, p=[0.6, 0.3, 0.1])})
    answer = sanov.pn(data, family="multinomial", bootstrap=0)
    shares = data.group_by("sex", "group").len()["len"].to_numpy() / 300
    assert answer.values["parameters"] == 5
    assert answer.values["a"] == pytest.approx(2.5)
    assert answer.values["b"] == pytest.approx((5 * (1 / shares).sum() - 6 * 5 - 5) / 12)


def test_overdispersed_counts_ask_for_more():
    counts = np.random.default_rng(7).negative_binomial(2, 0.4, 500)
    answer = sanov.pn({"visits": counts}, family="poisson", order=1, bootstrap=0)
    assert answer.values["a"] == pytest.approx(counts.var() / counts.mean() / 2)


def test_spins_are_coded_from_any_two_values():
    data = pl.DataFrame({"a": [0, 0, 1, 1, 1, 0, 1, 0] * 20, "b": [0, 1, 0, 1, 1, 0, 1, 1] * 20})
    answer = sanov.pn(data, family="ising", bootstrap=0)
    assert answer.values["parameters"] == 3
    assert answer.values["a"] == pytest.approx(1.5)  # two spins with their product: saturated as well


FAMILY = """
import numpy as np

def quartic(table):
    return np.hstack([table**2, table**4])

quartic.names = ["x^2", "x^4"]
"""


def test_a_density_that_nobody_can_normalise(screen, tmp_path):
    """exp(s x^2 + t x^4 - Psi): Markov chains against quadrature, at the maximum-likelihood estimate."""
    rng = np.random.default_rng(8)
    x = np.sign(rng.standard_normal(400)) * rng.gamma(3.0, 0.3, size=400)
    pl.DataFrame({"x": x}).write_csv("data.csv")
    (tmp_path / "quartics.py").write_text(FAMILY)
    words = ("data.csv", "family=quartics:quartic", "order=1", "--seed", 1)
    told = json.loads(screen(*words, "method=sandwich", "draws=20000", "bootstrap=50", "--json"))
    statistics = np.column_stack([x**2, x**4])

    def moments(theta):
        powers = [
            integrate.quad(lambda y, k=k: y**k * np.exp(theta[0] * y**2 + theta[1] * y**4), -8, 8, limit=200)[0]
            for k in (0, 2, 4, 6, 8)
        ]
        second, fourth, sixth, eighth = np.array(powers[1:]) / powers[0]
        mean = np.array([second, fourth])
        return mean, np.array([[fourth, sixth], [sixth, eighth]]) - np.outer(mean, mean)

    theta = optimize.root(lambda t: moments([t[0], -np.exp(t[1])])[0] - statistics.mean(axis=0), [0.5, -1.0]).x
    information = moments([theta[0], -np.exp(theta[1])])[1]
    a = np.trace(np.linalg.solve(information, np.cov(statistics.T, bias=True))) / 2
    note = next(note for note in told["notes"] if note.startswith("Monte Carlo standard errors"))
    error = float(re.search(r"([\d.e-]+) in a", note)[1])
    assert 0 < error < 0.05 * a
    assert abs(told["values"]["a"] - a) < 4 * error
    assert told["tables"]["Statistics"]["statistic"] in (["x^2", "x^4"], ["x^4", "x^2"])
    simple = json.loads(screen(*words, "--json"))  # without a method: the sample's own cumulants, no normaliser
    assert simple["values"]["a"] == 1.0


# -- red wine ---------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_red_wine(screen, data_folder):
    """The numbers of the specification, section 9, through the command line; `quality` is left to the outcome."""
    path = data_folder / "wine" / "winequality-red.csv"
    told = json.loads(screen(path, "map.outcome=quality", "bootstrap=0", "--json"))
    assert (told["values"]["rows"], told["values"]["parameters"]) == (1599, 77)
    estimates = told["tables"]["Estimates"]
    required = dict(zip(estimates["estimate"], estimates["rows required"], strict=True))
    assert required["p/2"] == pytest.approx(1925)
    assert required["p/2 second order"] == pytest.approx(1946.6, abs=0.05)
    assert required["TIC"] == pytest.approx(3633.9, abs=0.05)
    assert 2 * told["values"]["a_tic"] == pytest.approx(145.36, abs=5e-3)
    assert told["values"]["enough"] is False
    simple = json.loads(screen(path, "map.outcome=quality", "method=simple", "bootstrap=0", "--json"))
    assert simple["values"]["rows_required"] == pytest.approx(2022.1, abs=0.05)
    spins = json.loads(screen(path, "map.outcome=quality", "family=ising", "method=simple", "bootstrap=0", "--json"))
    assert (spins["values"]["parameters"], spins["values"]["enough"]) == (66, False)
    assert spins["values"]["rows_required"] == pytest.approx(1675.0, abs=0.05)


def test_options_of_the_command_line_are_those_of_python(screen):
    table().write_csv("data.csv")
    words = ("epsilon=0.1", "bound=sharp", "method=closed_form", "order=1", "guarantee=chi2", "confidence=0.9")
    told = json.loads(screen("data.csv", *words, "bootstrap=0", "--json"))
    options = {"epsilon": 0.1, "bound": "sharp", "method": "closed_form", "order": 1}
    answer = sanov.pn("data.csv", **options, guarantee="chi2", confidence=0.9, bootstrap=0)
    assert told["values"] == json.loads(json.dumps(answer.to_dict()["values"]))
