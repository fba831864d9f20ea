"""A mistake ends with status 2 and one message that says where, what was found and what to do; nothing is written."""

import errno
import os

import numpy as np
import polars as pl
import pytest

from sanov.core import files
from sanov.core.answers import SUFFIXES
from sanov.core.errors import InputError
from sanov.core.options import parse
from sanov.systems import pn

ROWS = 60
NORMAL = np.random.default_rng(0).standard_normal((ROWS, 3))
QUICK = ("bootstrap=0", "--quiet")


def frame(**changes):
    columns = {name: list(values) for name, values in zip("abc", NORMAL.T, strict=True)}
    return pl.DataFrame(columns | changes, strict=False)


def spoilt(value, row=7):
    cells = list(NORMAL[:, 1])
    cells[row - 1] = value
    return cells


def refused(command, tmp_path, words, message, out="answer"):
    """Run a command that must fail: one message, and neither the answer nor a temporary is left."""
    before = sorted(tmp_path.rglob("*"))
    status, told = command("apply", "pn", *words, "--out", out, *QUICK)
    assert status == 2, told
    assert message in told
    assert len([line for line in told.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before


# -- the table --------------------------------------------------------------------------------------------------------

TABLES = {
    "missing cell": (
        frame(b=spoilt(None)),
        (),
        "t.csv, row 7, column 'b': the cell is missing; expected a finite number. Remove or impute it.",
    ),
    "NaN": (frame(b=spoilt(float("nan"))), (), "t.csv, row 7, column 'b': the cell is missing"),
    "infinity": (
        frame(b=spoilt(float("inf"))),
        (),
        "t.csv, row 7, column 'b': the cell is inf; expected a finite number. Remove or impute it.",
    ),
    "a word among numbers": (
        frame(b=spoilt("many")),
        (),
        "t.csv, row 7, column 'b': the cell is 'many'; expected a number",
    ),
    "column of text": (
        frame(b=["far"] * ROWS),
        (),
        "t.csv, column 'b': is text (such as 'far'). Encode it or choose family=multinomial.",
    ),
    "only constant columns": (frame()[["a"]].with_columns(a=1.0), (), "t.csv: every column is constant; expected"),
    "too few rows": (
        frame()[:9],
        (),
        "t.csv: n=9, p=9: covariance is singular; reduce p or use first order.",
    ),
    "too few rows, simple": (frame()[:8], ("method=simple",), "t.csv: n=8, p=9: covariance is singular"),
    "one row": (frame()[:1], (), "t.csv: rows: 1, columns: 3; expected at least 2 rows of data. Collect more rows."),
    "too many statistics": (
        pl.DataFrame(np.random.default_rng(1).standard_normal((200, 120))),
        ("order=1",),
        "t.csv: p=7,380; expected at most 5,000 statistics. Choose fewer columns with columns=...",
    ),
    "empty cell": (
        pl.DataFrame({"a": ["x", "x", "y"] * 5, "b": ["u", "v", "v"] * 5}),
        ("family=multinomial",),
        "t.csv, cell 'a=y, b=u': the cell is empty: the MLE does not exist; merge cells.",
    ),
    "missing cell of a multinomial": (
        pl.DataFrame({"a": ["x", None, "y"]}),
        ("family=multinomial",),
        "t.csv, row 2, column 'a': the cell is missing. Remove or impute it.",
    ),
    "counts that are all zero": (
        pl.DataFrame({"a": [0] * 10, "b": [1, 2] * 5}),
        ("family=poisson",),
        "t.csv, column 'a': every value is zero: the MLE is on the boundary; risk is infinite.",
    ),
    "no counts": (
        pl.DataFrame({"a": [1.0, 2.0, 2.5]}),
        ("family=poisson",),
        "t.csv, row 3, column 'a': the value is 2.5; expected a count: a whole number >= 0.",
    ),
    "negative waiting time": (
        pl.DataFrame({"a": [1.0, -2.0, 2.5]}),
        ("family=exponential",),
        "t.csv, row 2, column 'a': the value is -2; expected a number >= 0. Choose another family than exponential.",
    ),
    "negative weight": (
        frame(w=[1.0] * 4 + [-2.0] + [1.0] * 55),
        ("map.weights=w",),
        "t.csv, row 5, column 'w': the weight is -2.0; expected a number >= 0. Correct it, or leave the row out.",
    ),
    "missing weight": (
        frame(w=[None] + [1.0] * 59),
        ("map.weights=w",),
        "t.csv, row 1, column 'w': the cell is missing",
    ),
    "no weight above zero": (
        frame(w=[0.0] * ROWS),
        ("map.weights=w",),
        "t.csv, column 'w': fewer than two rows have a weight above 0",
    ),
    "broken frequency": (
        frame(w=[1, 1.5] * 30),
        ("map.weights=w", "map.weights_kind=frequency"),
        "t.csv, row 2, column 'w': the frequency is 1.5; expected a whole number >= 0.",
    ),
    "weights of text": (frame(w=["heavy"] * ROWS), ("map.weights=w",), "t.csv, column 'w': is text (such as 'heavy')"),
    "missing cluster": (
        frame(ward=[None, *range(59)]),
        ("map.clusters=ward",),
        "t.csv, row 1, column 'ward': the cell is missing. Remove or impute it.",
    ),
    "one cluster": (
        frame(ward=[3] * ROWS),
        ("map.clusters=ward",),
        "t.csv, column 'ward': all rows are in one cluster; expected two or more clusters.",
    ),
    "outcome of one class": (
        frame(died=["no"] * ROWS),
        ("map.outcome=died",),
        "t.csv, column 'died': the outcome has one class only ('no'); expected two classes",
    ),
    "outcome of three words": (
        frame(died=["no", "yes", "perhaps"] * 20),
        ("map.outcome=died",),
        "t.csv, column 'died': the outcome has 3 classes of text; expected two classes, or numbers.",
    ),
    "missing outcome": (
        frame(died=[None, 1] + [0] * 58),
        ("map.outcome=died",),
        "t.csv, row 1, column 'died': the cell is missing",
    ),
    "no column left": (frame()[["a"]], ("map.outcome=a",), "t.csv: no column is left for the family. Add columns."),
}


@pytest.mark.parametrize(("data", "options", "message"), TABLES.values(), ids=TABLES)
def test_tables(command, tmp_path, data, options, message):
    data.write_csv(tmp_path / "t.csv")
    refused(command, tmp_path, ("t.csv", *options), message)


# -- options ----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "epsilon too large": (("epsilon=.5",), "epsilon: the value is '.5'; expected a number > 0 and < 0.5."),
    "epsilon of zero": (("epsilon=0",), "epsilon: the value is '0'; expected a number > 0 and < 0.5."),
    "epsilon of a word": (("epsilon=small",), "epsilon: the value is 'small'; expected a number > 0 and < 0.5."),
    "epsilon too small": (("epsilon=1e-200",), "epsilon: the value is 1e-200; expected a number >= 1e-06 and < 0.5."),
    "unknown option": (("epsilom=.1",), "epsilom: there is no such option. Did you mean 'epsilon'?"),
    "option without its group": (("clusters=a",), "clusters: there is no such option. Did you mean 'map.clusters'?"),
    "option of a group": (("map.weight=a",), "map.weight: there is no such option. Did you mean 'map.weights'?"),
    "nothing near": (("zzz=1",), "zzz: there is no such option. The options are: family, epsilon,"),
    "method": (("method=simpl",), "method: the value is 'simpl'; expected sandwich | simple | closed_form."),
    "order": (("order=3",), "order: the value is '3'; expected 1 | 2."),
    "bound": (("bound=pinker",), "bound: the value is 'pinker'; expected pinsker | bretagnolle_huber | sharp."),
    "guarantee": (("guarantee=x",), "guarantee: the value is 'x'; expected mean | markov | chi2."),
    "bootstrap": (("bootstrap=-1",), "bootstrap: the value is '-1'; expected a whole number >= 0."),
    "confidence": (("confidence=1",), "confidence: the value is '1'; expected a number > 0.5 and < 1."),
    "draws": (("draws=5",), "draws: the value is '5'; expected a whole number >= 100."),
    "draws for these rows": (
        ("draws=599", "family=ising"),
        "draws: the value is 599; expected at least 10 per row, 600.",
    ),
    "rank": (("rank_tolerance=1",), "rank_tolerance: the value is '1'; expected a number > 0 and < 0.001."),
    "family": (("family=gausian",), "family: the family is 'gausian'; expected one of gaussian, ising,"),
    "family, near": (("family=gausian",), "Did you mean 'gaussian'?"),
    "shrinkage": (("riley.shrinkage=2",), "riley.shrinkage: the value is '2'; expected a number > 0 and < 1."),
    "option twice": (("epsilon=.1", "epsilon=.2"), "epsilon: the option is given twice. Keep one of the two."),
    "unknown column": (("columns=a,bb",), "t.csv: there is no column 'bb'. Did you mean 'b'?"),
    "unknown weights": (("map.weights=mass",), "t.csv: there is no column 'mass'. The columns are: a, b, c."),
    "unknown clusters": (("map.clusters=ward",), "t.csv: there is no column 'ward'. The columns are: a, b, c."),
    "one column, two parts": (("columns=a,b", "map.outcome=b"), "map: column 'b' is used twice."),
    "one column, two roles": (("map.weights=c", "map.clusters=c"), "t.csv: the column 'c' is asked for twice."),
    "data and no data": (("parameters=24",), "parameters: both a table and a number of parameters are given."),
    "prevalence of a table": (
        ("riley.prevalence=.2",),
        "riley.prevalence: plans a study without a table, and there is",
    ),
    "R-squared of nothing": (
        ("riley.r_squared=.2",),
        "riley.r_squared: there is no outcome to explain. Name it by map.outcome=...",
    ),
    "two tables": (("t.csv",), "pn: 2 tables are given; expected one."),
    "something fitted": (("--fitted", "folder"), "pn: there is nothing to fit, so nothing fitted to apply."),
    "no such module": (("family=nowhere_at_all:f",), "nowhere_at_all:f: the module cannot be imported"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(command, tmp_path, options, message):
    frame().write_csv(tmp_path / "t.csv")
    quick = [word for word in ("bootstrap=0",) if not any(option.startswith("bootstrap") for option in options)]
    before = sorted(tmp_path.rglob("*"))
    status, told = command("apply", "pn", "t.csv", *options, *quick, "--out", "answer.json", "--quiet")
    assert status == 2
    assert message in told
    assert told.count("error:") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("parameters=0",), "parameters: the value is '0'; expected a whole number >= 1 and <= 10000000."),
        (("parameters=many",), "parameters: the value is 'many'; expected a whole number"),
        (("embedded:win",), "embedded:win: there is no such table; expected embedded:digits"),
        ((), "pn: there are no data; expected a table, or parameters=24. Name a file"),
    ],
)
def test_no_table(command, tmp_path, words, message):
    refused(command, tmp_path, words, message)


USERS = """
import math
import numpy as np

def standardised(table): return (table - table.mean(axis=0)) / table.std(axis=0)
def logarithm(table): return np.where(table > 0, 1.0, np.nan)
def flat(table): return table[:, 0]
def whole(table): return math.sin(table)
"""


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("broken:f", "broken:f: the module cannot be imported (invalid syntax"),
        (":f", ":f: the module cannot be imported"),
        ("users:absent", "users:absent: 'users' has no function 'absent'; expected module:function."),
        ("users:standardised", "the statistics of a row change with the other rows; expected a function of each row"),
        ("users:logarithm", "users:logarithm: statistic 2 of row 1 is nan; expected finite numbers."),
        ("users:flat", "users:flat: it returned an array of shape [60]; expected numbers of shape [60, p]."),
        ("users:whole", "users:whole: it fails on the table: "),
    ],
)
def test_families_that_a_user_writes(command, tmp_path, family, message):
    frame(a=[1.0, -1.0] * 30).write_csv(tmp_path / "t.csv")
    (tmp_path / "users.py").write_text(USERS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    status, told = command("apply", "pn", "t.csv", f"family={family}", "--out", "answer.json", *QUICK)
    assert status == 2
    assert message in told
    assert told.count("error:") == 1
    assert not (tmp_path / "answer.json").exists()


def test_unknown_flags_are_told_by_the_parser(command, tmp_path):
    frame().write_csv(tmp_path / "t.csv")
    for words, message in ((("--sed", "1"), "No such option: --sed"), (("--seed", "one"), "'--seed'")):
        status, told = command("apply", "pn", "t.csv", *words, *QUICK)
        assert status == 2
        assert message in told
        assert "Traceback" not in told


# -- files and places -------------------------------------------------------------------------------------------------


def test_files(command, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n4,5\n")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\x00\x00")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "folder").mkdir()
    frame().write_csv(tmp_path / "semicolons.csv", separator=";")
    for name, message in {
        "empty.csv": "empty.csv: is empty; expected a table with a header.",
        "header.csv": "header.csv: has a header but no rows.",
        "ragged.csv": "ragged.csv, line 3: has 1 cell; expected 2, as in the header.",
        "picture.csv": "picture.csv: is binary; expected a table of text.",
        "torn.parquet": "torn.parquet: cannot be read as Parquet",
        "folder": "folder: is a folder; expected a file. Name a file inside it.",
        "semicolon.csv": "semicolon.csv: no such file. Did you mean 'semicolons.csv'?",
        "data.xls": "data.xls: no such file.",
        "semicolons.csv": 'Pass map.delimiter=";"',
    }.items():
        refused(command, tmp_path, (name,), message)
    assert command("apply", "pn", "semicolons.csv", "map.delimiter=;", *QUICK)[0] == 0


def test_places_that_cannot_be_written(command, tmp_path):
    frame().write_csv(tmp_path / "t.csv")
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for place, message in {
        "taken": "taken: is a file; expected a folder. Choose another place.",
        "full": "full: is a folder with other files in it",
        "none/answer.json": "none: there is no such folder. Make it first.",
        "answer.jsn": "answer.jsn: the suffix is '.jsn'; expected one of .json, .csv,",
    }.items():
        refused(command, tmp_path, ("t.csv",), message, out=place)
    assert (tmp_path / "taken").read_text() == "mine"
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["answer.json", "answer"])
def test_a_folder_without_permission(command, tmp_path, monkeypatch, place):
    """Told by the trial that is made before any work; simulated, for the superuser may write anywhere."""

    def denied(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    frame().write_csv(tmp_path / "t.csv")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", denied)
    refused(command, tmp_path, ("t.csv",), f"{place}: cannot be written (Permission denied)", out=place)


@pytest.mark.parametrize(("suffix", "after"), [*((suffix, 0) for suffix in SUFFIXES), ("", 0), ("", 3)])
def test_a_full_disk_leaves_the_answer_before_it(command, tmp_path, monkeypatch, suffix, after):
    frame().write_csv(tmp_path / "t.csv")
    place = tmp_path / f"answer{suffix}"
    assert command("apply", "pn", "t.csv", "--out", place, *QUICK)[0] == 0
    before, sync, left = files.digest(place), os.fsync, [after]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    refused(command, tmp_path, ("t.csv", "epsilon=.1"), os.strerror(errno.ENOSPC), out=place)
    assert files.digest(place) == before


# -- what is told with an answer --------------------------------------------------------------------------------------


def noted(data, **options):
    config = parse(pn.Config, {"bootstrap": 0} | options)
    return pn.apply(pn.read([data], config), config)


def test_a_constant_column_is_told():
    answer = noted(frame(b=[2.0] * ROWS))
    assert answer.values["parameters"] == 5
    assert "column 'b' is constant: carries no parameter, dropped" in answer.summary()


def test_dependent_columns_are_told():
    answer = noted(frame(d=list(NORMAL[:, 0] + NORMAL[:, 1])))
    assert answer.values["parameters"] == 9
    assert "p reduced from 14 to 9: 'd' depends on the other columns" in answer.summary()
    many = noted(frame(**{f"d{k}": list(k * NORMAL[:, 0]) for k in range(1, 13)}))
    assert "'d9', 'd10' and 2 more depend on the other columns" in many.notes[0]


@pytest.mark.parametrize("method", ["simple", "sandwich"])
def test_noise_is_told(method):
    assert "p^2 = 81 exceeds n = 60: the second-order term is mostly noise" in noted(frame(), method=method).summary()


def test_a_risk_that_meets_no_limit_is_told(tmp_path, monkeypatch):
    """Two far and opposite rows: a kurtosis so large that b < 0 and a^2 + 4 b delta < 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean_alone.py").write_text("def f(table):\n    return table\n")
    data = pl.DataFrame({"x": [-50.0, 50.0] + [-1.0, 1.0] * 200})
    answer = noted(data, family="mean_alone:f")
    assert answer.values["a"] ** 2 + 4 * answer.values["b"] * answer.values["delta"] < 0
    assert not answer.values["enough"]
    assert answer.sentence.startswith("Undecided: no n meets delta = 0.02 at second order")
    assert "first-order n* is 25" in answer.sentence
    assert "no n meets delta at second order; first-order n* is 25" in " ".join(answer.lines.values())
    assert noted(data, family="mean_alone:f", order=1).values["rows_required"] == pytest.approx(25)


def test_few_replicates_are_told():
    assert "intervals of 95% are rough with bootstrap=20: take 40 or more" in noted(frame(), bootstrap=20).notes[-1]
    assert "rough" not in noted(frame(), bootstrap=40).summary()


def test_a_table_in_memory_has_a_name_too():
    with pytest.raises(InputError, match="the polars table: n=8, p=9: covariance is singular"):
        noted(frame()[:8])
    with pytest.raises(InputError, match=r"the dictionary, row 2, column 'w': the weight is -1\.0"):
        noted({"a": [1.0, 2.0, 4.0], "w": [1.0, -1.0, 1.0]}, map={"weights": "w"})
