"""The answer of study mode: what it says, where the two sides of a re-analysis differ, and what it warns of."""

import re
import warnings

import numpy as np
import polars as pl
import pytest

from sanov.core.charts import svg
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import parse
from sanov.systems.fidelity import study
from sanov.systems.fidelity.study_options import StudyOptions
from sanov.systems.fidelity.study_rows import select
from systems.fidelity_studies import config, long_table, paths, published


def answer(*tables, **options):
    chosen = config(**options)
    return study.answer(study.read(list(tables), chosen), chosen, seed=0)


@pytest.fixture(scope="module")
def math():
    return answer(*paths("math"), draws=1000)


@pytest.fixture(scope="module")
def commonsense():
    return answer(*paths("commonsense"), draws=1000)


def numbers(text):
    return [float(each) for each in re.findall(r"-?\d+\.\d", text)]


# -- the published studies --------------------------------------------------------------------------------------------


@published
def test_math_gains_at_one_temperature(math):
    assert math.sentence.startswith("Distillation raised the mean score of 6 tasks by 4.4 points [")
    assert numbers(math.sentence)[1:3] == pytest.approx([2.8, 5.9], abs=0.15)
    assert "at temperature 1" in math.sentence
    assert "but" not in math.sentence
    assert math.values["verdict"] == "BEATS"
    assert math.values["p_sign_flip_pairs"] == 2 / 2048
    assert math.lines["size"].startswith("smaller students gain more: rho -0.57")
    assert math.lines["teacher"].startswith("no clear relation (interval too wide to say)")
    assert not any("cannot be of" in note for note in math.notes)


@published
def test_commonsense_says_both_sides(commonsense):
    said = commonsense.sentence
    assert said.startswith("Undecided whether distillation raised the mean score of 8 tasks: the gain is -2.3 points [")
    assert "3.2 points [" in said
    assert "at the best temperature of each" in said
    assert "2.9 points [" in said
    assert "without RevKD" in said
    rules = commonsense.to_frame("Gain by rule")
    assert rules["verdict"].to_list() == ["INCONCLUSIVE", "BEATS", "BEATS"]
    notes = " ".join(commonsense.notes)
    assert "23 of 88 scores of RevKD at temperature 1" in notes
    assert "50 of 64 scores of models that were not trained" in notes
    assert "31 of 40 scores of students of a teacher unaware of the task" in notes
    assert "likely answer-format failures" in notes
    assert "cannot be of SeqKD (58 of 88 cells), GKD (65 of 88 cells)" in notes
    assert "fits RevKD best (84 of 88)" in notes


@published
def test_the_papers_own_way_is_there_and_says_so():
    found = answer(*paths("commonsense"), selection="best", correction="none", cluster="none")
    assert found.sentence.startswith("Distillation raised the mean score of 8 tasks by 3.2 points [")
    assert "at the best temperature of each" in found.sentence
    assert "but -2.3 points" in found.sentence
    notes = " ".join(found.notes)
    assert "budgets are unequal" in notes
    assert "GKD 1" in notes
    assert "rows are taken as independent" in notes
    assert found.to_frame()["p adjusted"].to_list() == found.to_frame()["p"].to_list()


@published
def test_it_is_one_screen_and_every_form_can_be_saved(commonsense, tmp_path):
    lines = commonsense.summary().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    for spec in commonsense.figures.values():
        assert "<svg" in svg(spec)
    assert set(commonsense.figures) >= {"Gain against the student's size", "Gain against excess agreement"}
    commonsense.save(tmp_path / "answer")
    commonsense.save(tmp_path / "answer.json")
    page = (tmp_path / "answer" / "index.html").read_text(encoding="utf-8")
    assert "Undecided whether distillation raised" in page
    assert (tmp_path / "answer" / "tables" / "gain-by-task.csv").is_file()


@published
def test_a_folder_stands_for_its_tables(tmp_path, math):
    for path in paths("math"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found, named = (study.read(sources, config()).scores for sources in ([tmp_path], paths("math")))
    assert found.sort(found.columns).equals(named.sort(named.columns))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no table"):
        study.read([tmp_path / "empty"], config())


# -- any study --------------------------------------------------------------------------------------------------------


def test_a_study_of_ones_own_in_plain_numbers():
    generator = np.random.default_rng(0)
    gains = {}

    def gain(teacher, student, method, task):
        return gains.setdefault((teacher, student, method, task), float(generator.normal(3, 1)))

    found = answer(long_table(gain))
    assert found.values["mean_gain"] == pytest.approx(np.mean(list(gains.values())))
    assert found.values["verdict"] == "BEATS"
    assert (found.values["pairs"], found.values["students"], found.values["teachers"]) == (6, 3, 2)
    assert "6 pairs of teacher and student" in found.sentence
    assert found.values["rho_h3"] is not None
    assert "rho_h4" not in found.values
    assert isinstance(found.to_frame(), pl.DataFrame)


@pytest.mark.parametrize(
    ("gain", "verdict", "start"), [(4.0, "BEATS", "Distillation raised"), (-4.0, "WORSE", "Distillation lowered")]
)
def test_the_verdict_follows_the_interval(gain, verdict, start):
    noise = np.random.default_rng(1)
    found = answer(long_table(lambda *_: gain + float(noise.normal(0, 0.5))))
    assert found.values["verdict"] == verdict
    assert found.sentence.startswith(start)
    assert numbers(found.sentence)[0] == pytest.approx(4.0, abs=0.5)
    assert numbers(found.sentence)[1] <= numbers(found.sentence)[0] <= numbers(found.sentence)[2]


def test_it_is_the_callers_kind_of_frame():
    pandas = pytest.importorskip("pandas")
    noise = np.random.default_rng(2)
    found = answer(long_table(lambda *_: float(noise.normal())).to_pandas())
    assert isinstance(found.to_frame(), pandas.DataFrame)


def test_two_runs_give_one_answer():
    noise = np.random.default_rng(3)
    table = long_table(lambda *_: float(noise.normal(1, 2)))
    assert answer(table).to_dict() == answer(table).to_dict()


def test_few_clusters_are_warned_of():
    noise = np.random.default_rng(4)
    table = long_table(lambda *_: float(noise.normal(1, 2)))
    with pytest.warns(SanovWarning, match=r"there are 2 clusters \(teacher\).*1/2\^2 = 0.25"):
        found = answer(table, cluster="teacher")
    assert any("fewer than 6" in note for note in found.notes)
    with pytest.warns(SanovWarning, match=r"2/2\^3 = 0.25"):
        answer(table, cluster="student", alternative="two-sided")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(table, cluster="pair")


def test_one_pair_has_no_interval():
    table = pl.DataFrame({
        "teacher": ["-", "-", "big", "big"], "student": ["tiny", "big", "tiny", "tiny"], "method": ["SFT", "SFT", "A", "B"],
        "task": "t", "score": [50.0, 80.0, 55.0, 56.0],
    })  # fmt: skip
    with pytest.warns(SanovWarning, match="there are 1 clusters"):
        found = answer(table)
    assert found.sentence.startswith("Distillation changed the score on t by 5.5 points, without an interval")
    assert found.values["verdict"] == "no verdict"


def varied(seed=0, spread=0.5):
    """Gains around 3 points that differ by row."""
    noise = np.random.default_rng(seed)
    return lambda *_: 3.0 + float(noise.normal(0, spread))


def test_rows_without_every_task_have_no_part_in_the_mean():
    table = long_table(varied())
    gap = (pl.col("student") == "student-1B") & (pl.col("method") == "KD") & (pl.col("task") == "facts")
    short = table.filter(~(gap & (pl.col("teacher") == "teacher-9B")))
    found = answer(short)
    assert found.values["rows"] == 11
    assert found.sentence.count("(11 rows, ") == 1
    rows = found.to_frame("Rows")["gain Average"]
    assert found.values["mean_gain"] == pytest.approx(rows.drop_nulls().mean())
    note = "1 of 12 rows have no score on every task, and so no part in the mean (the first: teacher-9B -> student-1B by KD)"
    assert note in found.notes
    of_one_pair = short.filter(~((pl.col("student") == "student-1B") & (pl.col("teacher") == "teacher-9B")
                                 & (pl.col("method") == "RKD") & (pl.col("task") == "facts")))  # fmt: skip
    with pytest.warns(SanovWarning, match="there are 5 clusters"):
        lost = answer(of_one_pair)
    assert (lost.values["rows"], lost.values["pairs"]) == (10, 5)
    assert "5 pairs of teacher and student" in lost.sentence
    assert not [note for note in answer(table).notes if "no part in the mean" in note]


def test_a_study_without_any_row_of_every_task_is_refused():
    own = pl.col("teacher") == "-"
    table = long_table(varied()).filter(own | ((pl.col("method") == "KD") == (pl.col("task") == "maths")))
    told = r"no row has a score and a baseline on every task.*\(of 12 rows have: maths 6, facts 6\).*study.tasks=maths"
    with pytest.raises(InputError, match=told):
        answer(table)


@pytest.mark.parametrize(
    ("pairs", "cluster", "verdict"), [(2, "none", "INCONCLUSIVE"), (4, "pair", "INCONCLUSIVE"), (5, "pair", "BEATS")]
)
@pytest.mark.filterwarnings("ignore:there are . clusters")
def test_few_pairs_have_no_verdict_however_far_their_gain_lies_from_0(pairs, cluster, verdict):
    table = long_table(varied())
    chosen = table.filter(pl.col("teacher") != "-").select("teacher", "student").unique(maintain_order=True).head(pairs)
    kept = pl.concat(
        [table.filter(pl.col("teacher") == "-"), table.join(chosen, on=["teacher", "student"], how="semi")]
    )
    found = answer(kept, cluster=cluster)
    assert found.values["mean_gain_low"] > 0
    assert found.values["verdict"] == verdict
    assert found.sentence.startswith("Undecided" if verdict == "INCONCLUSIVE" else "Distillation raised")
    few = f"INCONCLUSIVE: {pairs} pairs of teacher and student are fewer than 5"
    assert (found.lines["verdict"] == few) == (pairs < 5)


def test_few_clusters_have_no_verdict_either():
    with pytest.warns(SanovWarning, match="there are 3 clusters"):
        found = answer(long_table(varied()), cluster="student")
    assert found.lines["verdict"] == "INCONCLUSIVE: 3 clusters are fewer than 5"


def test_an_interval_without_width_is_told():
    note = "all clusters have the same mean gain: the interval has no width, and does not say how gains vary"
    assert note in answer(long_table(lambda *_: 3.1)).notes
    assert note not in answer(long_table(varied(spread=0.01))).notes


@pytest.mark.parametrize(("students", "drawn"), [(20, False), (21, True)])
def test_signs_of_many_clusters_are_drawn_and_that_is_said(students, drawn):
    gain, rows = varied(), [("-", "big-99B", "SFT", 90.0)]
    for place in range(students):
        rows += [("-", f"s-{place + 1}B", "SFT", 50.0), ("big-99B", f"s-{place + 1}B", "KD", 50.0 + gain())]
    table = pl.DataFrame(rows, schema=["teacher", "student", "method", "score"], orient="row")
    found = answer(table.with_columns(task=pl.lit("t")))
    how = " (signs drawn at random)" if drawn else ""
    p = 1 / 100_001 if drawn else 1 / 2**20
    assert f"{students} pair means p = {p:.2g}{how}" in found.lines["clusters"]
    assert found.lines["clusters"].startswith("test of signs" if drawn else "exact test of signs")
    row = found.to_frame("Clusters").row(0, named=True)
    assert (row["exact"], row["smallest possible p"]) == (not drawn, p)


def test_the_best_row_gives_its_own_gain():
    """The row of the highest score is that of seed 1, whose baseline is high too; the other has the larger gain."""
    rows = [("-", "s-1B", "SFT", None, 0, 50.0), ("-", "s-1B", "SFT", None, 1, 58.0), ("-", "t-9B", "SFT", None, 0, 80.0),
            ("t-9B", "s-1B", "KD", 1.0, 0, 60.0), ("t-9B", "s-1B", "KD", 2.0, 1, 62.0)]  # fmt: skip
    names = ["teacher", "student", "method", "temperature", "seed", "score"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(task=pl.lit("a"))
    best = select(study.read([table], config()), "best")
    assert (best.score.item(), best.baseline.item(), best.gain.item()) == (62.0, 58.0, 4.0)


def test_scores_below_chance_of_ones_own_tasks():
    table = long_table(lambda t, s, method, task: -45.0 if method == "RKD" else 3.0)
    found = answer(table, chance={"maths": 25.0, "facts": 50.0}, below_chance_margin=2.0)
    note = next(note for note in found.notes if "below chance" in note)
    below = table.filter(pl.col("method") == "RKD").join(
        pl.DataFrame({"task": ["maths", "facts"], "c": [25.0, 50.0]}), on="task"
    )
    count = below.filter(pl.col("score") < pl.col("c") - 2).height
    assert f"{count} of 12 scores of RKD" in note
    assert "without RKD" in found.to_frame("Gain by rule")["rule"].to_list()[-1]
    assert found.sentence.endswith(" without RKD")
    assert " at without" not in found.sentence
    assert "at ," not in found.sentence
    quiet = answer(table)
    assert not any("below chance" in note for note in quiet.notes)


def with_temperatures(table, values):
    """Every distilled row once for each temperature; the higher, the worse."""
    distilled = table.filter(pl.col("teacher") != "-")
    rows = [distilled.with_columns(pl.lit(v).alias("temperature"), pl.col("score") - v) for v in values]
    own = table.filter(pl.col("teacher") == "-").with_columns(pl.lit(None, pl.Float64).alias("temperature"))
    return pl.concat([own, *rows])


def test_rules_for_temperatures():
    data = study.read([with_temperatures(long_table(), [1.0, 2.0])], config())
    assert select(data, "fixed", 1.0).gain == pytest.approx(2.0)
    assert select(data, "fixed", 2.0).gain == pytest.approx(1.0)
    assert select(data, "best").gain == pytest.approx(2.0)
    every = select(data, "all")
    assert len(every) == 2 * 12
    assert sorted(set(np.round(every.gain[:, 0], 9))) == [1.0, 2.0]
    one = select(study.read([with_temperatures(long_table(), [4.0])], config()), "fixed", 1.0)
    assert one.label == "temperature 4, the only one"


def test_mixed_temperatures_without_a_rule_are_refused():
    table = with_temperatures(long_table(), [1.0, 2.0])
    lacking = table.filter(~((pl.col("method") == "KD") & (pl.col("temperature") == 1.0)))
    with pytest.raises(
        InputError, match=r"temperatures are mixed \(1, 2\), and 6 of 12 students have none at 1.*study.selection=best"
    ):
        answer(lacking)
    answer(lacking, selection="best")
    answer(lacking, temperature=2.0)


def test_a_cell_with_and_without_temperature_is_refused():
    table = with_temperatures(long_table(), [1.0, 2.0])
    taught = pl.col("teacher") != "-"
    mixed = table.with_columns(
        temperature=pl.when(taught & (pl.col("temperature") == 2.0)).then(None).otherwise(pl.col("temperature"))
    )
    with pytest.raises(InputError, match="both with a temperature and without one"):
        answer(mixed)
    assert select(study.read([mixed], config()), "best").gain == pytest.approx(2.0)


def test_scores_without_a_baseline_of_their_seed_are_counted():
    seed = pl.when(pl.col("teacher") == "-").then(pl.lit("0")).otherwise(pl.lit("7"))
    found = answer(long_table().with_columns(seed=seed))
    assert any("24 of 24 scores have no baseline of their seed" in note for note in found.notes)


def test_a_wide_interval_speaks_for_nothing():
    noise = np.random.default_rng(1)
    found = answer(long_table(lambda *_: float(noise.normal(0, 2))))
    row = found.values
    assert row["rho_h2_low"] < 0 < row["rho_h2_high"]
    assert row["rho_h2_high"] - row["rho_h2_low"] >= 0.6
    assert found.lines["teacher"].startswith("no clear relation (interval too wide to say)")
    assert "approximate p" in found.lines["own score"]


def test_losses_are_no_gains():
    noise = np.random.default_rng(1)
    found = answer(long_table(lambda *_: -4.0 + float(noise.normal(0, 0.5))), alternative="two-sided")
    assert found.lines["tasks"].startswith("0 of 2 gain, 2 lose beyond chance")
    assert "(rows as independent)" in found.lines["tasks"]


def test_a_study_is_told_by_its_columns():
    wide = pl.DataFrame({"Teacher": ["-"], "Student": ["s"], "Method": ["SFT"], "task a": [1.0]})
    predictions = pl.DataFrame({"id": [1], "teacher": [0], "student": [1], "label": [0]})
    assert study.looks_like_study([wide])
    assert study.looks_like_study([long_table()])
    assert study.looks_like_study([long_table().drop("student")])
    assert not study.looks_like_study([predictions])
    assert study.looks_like_study([wide.rename({"Method": "Methode"})])
    assert not study.looks_like_study([predictions.rename({"label": "answer"})])
    renamed = long_table().rename({"method": "how", "task": "what", "score": "right"})
    assert not study.looks_like_study([renamed.drop("teacher")])
    assert study.looks_like_study([renamed], config(map={"method": "how"}))
    found = study.read([renamed], config(map={"method": "how", "task": "what", "score": "right"}))
    assert found.scores.equals(study.read([long_table()], config()).scores)


@pytest.mark.parametrize(
    ("columns", "is_study"),
    [
        ("id prediction task score", False),
        ("id prob_a prob_b label task score", False),
        ("id teacher student label task score", False),
        ("id teacher student method label", False),
        ("teacher student method score label", True),
        ("student task score", True),
        ("Teacher Student METHOD t", True),
    ],
)
def test_predictions_with_a_task_and_a_score_are_no_study(columns, is_study):
    assert study.looks_like_study([pl.DataFrame({name: ["1"] for name in columns.split()})], config()) == is_study


def test_a_column_of_methods_is_known_by_the_baseline_in_it():
    table = long_table().rename({"method": "recipe", "task": "t", "score": "law"})
    assert study.looks_like_study([table])
    assert not study.looks_like_study([table.filter(pl.col("recipe") != "SFT")])
    with pytest.raises(
        InputError, match=r"lacks 'method'.*study.map.method=recipe\? If these are predictions, pass mode=report"
    ):
        study.read([table], config())


def test_a_folder_says_how_to_pick(tmp_path):
    for name in ("a", "b"):
        long_table().write_csv(tmp_path / f"{name}.csv")
    told = r"stands twice.*; a folder stands for all its tables; to pick, name files in its place \(a.csv, b.csv\)"
    with pytest.raises(InputError, match=told):
        study.read([tmp_path], config())
    with pytest.raises(InputError) as caught:
        study.read([tmp_path / "a.csv", tmp_path / "b.csv"], config())
    assert "a folder stands" not in str(caught.value)


def test_unknown_chance_is_told_and_tasks_are_known_in_any_case():
    unknown = (
        "what guessing gets on maths, facts is not known (study.chance=TASK:PERCENT): no score there is held against"
    )
    assert f"{unknown} chance" in answer(long_table(varied())).notes
    named = answer(long_table(varied()), chance={"MATHS": 25.0, "Facts": 0.5})
    assert not [note for note in named.notes if "is not known" in note]
    assert "guessing is taken to get 0.5 percent on facts, as among 200 options" in named.notes
    published = long_table(lambda *_: -60.0, tasks=("Arc_Easy", "BoolQ"))
    below = answer(published.with_columns(pl.col("score").clip(lower_bound=0)))
    assert set(below.to_frame("Scores below chance")["chance"]) == {25.0, 50.0}
    with pytest.raises(InputError, match=r"study.chance: the study has no task 'fact'. Did you mean 'facts'\?"):
        answer(long_table(varied()), chance={"fact": 25.0})


# -- options ----------------------------------------------------------------------------------------------------------


def test_options_from_words():
    options = parse(StudyOptions, {"selection": "best", "chance": "boolq:50,my task:33.3", "map.student": "pupil"})
    known, tasks = {"boolq": 1.0, "piqa": 50.0, "siqa": 33.0}, ("boolq", "piqa", "my task", "law")
    assert options.chance_of(known, tasks) == {"boolq": 50.0, "piqa": 50.0, "my task": 33.3}
    assert options.map.student == "pupil"
    assert parse(StudyOptions, {"chance": {"a:b": 20}}).chance_of({}, ["a:b"]) == {"a:b": 20.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"chance": "boolq"}, r"'boolq' is no task with its percent, such as boolq:50"),
        ({"chance": "boolq:150"}, "is no task with its percent"),
        ({"chance": "boolq:62"}, "'boolq:62' is more than the 50 percent that guessing between two answers gets"),
        ({"selection": "worst"}, r"expected fixed \| best \| all"),
        ({"temperature": "0"}, "expected a number > 0"),
        ({"below_chance_margin": "-1"}, ">= 0"),
        ({"clusters": "pair"}, "did you mean 'cluster'|Did you mean 'cluster'"),
    ],
)
def test_bad_options_are_named(words, told):
    with pytest.raises(InputError, match=told):
        parse(StudyOptions, words)
