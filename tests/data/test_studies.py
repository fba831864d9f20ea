"""Readers of distillation studies: long, wide and pair tables, and what is wrong with them."""

import re

import polars as pl
import pytest

from sanov.core.errors import InputError
from sanov.data import studies
from sanov.data.study_tables import Columns

WIDE = """Teacher,Student,Method,gsm8k,boolq,Average
-,m-1B,BaseModel,1,2,1.5
-,m-1B,SFT,40,60,50
-,m-7B,SFT,70,80,75
m-7B_ckpt9,m-1B,student_KD_temp_1.0,45,62,53.5
m-7B,m-1B,student_RevKD_temp_2.0,46,63,54.5
m-7B,m-1B,student_GKD_temp_1.0,47,64,55.5
m-7B,m-1B,student_KD_base_teacher_temp_1.0,5,6,5.5
"""
PAIRS = """Teacher,Student,Pair,Method,boolq,gsm8k
m-7B,m-1B,m-7B -> m-1B,SFT,61,41
m-7B,m-1B,m-7B -> m-1B,KD,66,46
"""


@pytest.fixture
def write(tmp_path):
    def save(text, name="scores.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return save


def cells(frame, *columns):
    return set(frame.select(*columns).iter_rows())


def test_a_wide_table_is_taken_apart(write):
    data = studies.read([write(WIDE)])
    assert data.tasks == ("gsm8k", "boolq")
    assert cells(
        data.scores.filter(pl.col("task") == "gsm8k"), "teacher", "student", "method", "temperature", "score"
    ) == {
        ("m-7B", "m-1B", "SeqKD", 1.0, 45.0),
        ("m-7B", "m-1B", "RevKD", 2.0, 46.0),
        ("m-7B", "m-1B", "GKD", 1.0, 47.0),
    }
    assert cells(data.baselines, "model", "task", "score") == {
        ("m-1B", "gsm8k", 40.0), ("m-1B", "boolq", 60.0), ("m-1B", "Average", 50.0),
        ("m-7B", "gsm8k", 70.0), ("m-7B", "boolq", 80.0), ("m-7B", "Average", 75.0),
    }  # fmt: skip
    assert cells(data.unaware, "score") == {(5.0,), (6.0,), (5.5,)}
    assert cells(data.untuned, "score") == {(1.0,), (2.0,), (1.5,)}
    assert data.sizes == {"m-1B": 1.0, "m-7B": 7.0}
    said = " ".join(data.notes)
    assert "'m-7B_ckpt9' is read as 'm-7B'" in said
    assert "not trained" in said
    assert "did not know the task" in said


def test_long_and_wide_tables_of_the_same_numbers_are_the_same_study(write):
    wide = studies.read([write(WIDE)])
    rows = wide.scores.with_columns(model=pl.col("student")).select(
        "teacher", "model", "method", "temperature", "task", "score"
    )
    own = wide.baselines.select(pl.lit("-").alias("teacher"), "model", pl.lit("SFT").alias("method"),
                                pl.lit(None, pl.Float64).alias("temperature"), "task", "score")  # fmt: skip
    long = pl.concat([rows, own]).filter(pl.col("task") != "Average")
    data = studies.read([long], Columns(student="model"))
    order = ["teacher", "method", "task"]
    assert data.scores.sort(order).drop("seed").equals(wide.scores.sort(order).drop("seed"))
    key = ["model", "task"]
    assert data.baselines.sort(key).drop("seed").equals(wide.baselines.sort(key).drop("seed"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "polars", "pandas", "arrow", "two files"])
def test_every_kind_of_table_is_the_same(write, tmp_path, kind):
    path = write(WIDE)
    frame = pl.read_csv(path)
    frame.write_parquet(tmp_path / "scores.parquet")
    lines = WIDE.splitlines()
    halves = ["\n".join([lines[0], *part]) for part in (lines[1:4], lines[4:])]
    sources = {
        "csv": [path],
        "parquet": [tmp_path / "scores.parquet"],
        "polars": [frame],
        "pandas": [frame.to_pandas()],
        "arrow": [frame.to_arrow()],
        "two files": [write(half, f"{place}.csv") for place, half in enumerate(halves)],
    }
    assert studies.read(sources[kind]).scores.equals(studies.read([path]).scores)


def test_pairs_are_told_apart_by_their_columns_and_name(write):
    tables = [write(PAIRS, "em1.csv"), write(WIDE), write(PAIRS, "bleu.csv")]
    data = studies.read(tables)
    expected = {("SFT", "boolq", 61.0), ("SFT", "gsm8k", 41.0), ("KD", "boolq", 66.0), ("KD", "gsm8k", 46.0)}
    assert cells(data.agreement, "kind", "task", "value") == expected
    assert cells(data.similarity, "kind", "task", "value") == expected
    named = studies.read([write(WIDE)], agreement=str(write(PAIRS, "x.csv")), similarity=str(write(PAIRS, "y.csv")))
    assert named.agreement.equals(data.agreement)
    assert named.similarity.equals(data.similarity)


def test_fractions_become_percent(write):
    rows = [line.split(",") for line in WIDE.splitlines()]
    scaled = [rows[0], *([*row[:3], *(str(float(cell) / 100) for cell in row[3:])] for row in rows[1:])]
    data = studies.read([write("\n".join(map(",".join, scaled)))], scale="fraction")
    assert data.scores["score"].to_list() == pytest.approx(studies.read([write(WIDE)]).scores["score"].to_list())


def test_a_given_average_that_is_none_is_said(write):
    data = studies.read([write(WIDE.replace("47,64,55.5", "47,64,58"))])
    assert any("1 given averages are not the mean" in note for note in data.notes)
    assert 58.0 in data.scores["score"].to_list()


def test_empty_cells_are_left_out_and_said(write):
    data = studies.read([write(WIDE.replace("47,64,55.5", "47,,55.5"))])
    assert "1 cell without a score left out" in data.notes


@pytest.mark.parametrize(
    ("name", "size"),
    [("Qwen2.5-0.5B", 0.5), ("Llama-3.1-8B", 8.0), ("gpt-70m", 0.07), ("net-16", 16.0), ("small", None), ("a-b", None)],
)
def test_size_is_the_number_after_the_last_hyphen(name, size):
    assert studies.size_of(name) == (pytest.approx(size) if size else None)


def test_a_size_may_be_a_column():
    table = pl.DataFrame({
        "teacher": ["-", "-", "big"], "student": ["tiny", "big", "tiny"], "method": ["SFT", "SFT", "KD"],
        "task": "t", "score": [50.0, 80.0, 55.0], "units": [3, 9, 3],
    })  # fmt: skip
    assert studies.read([table], Columns(size="units")).sizes == {"big": 9.0, "tiny": 3.0}


def test_the_baseline_may_stand_once_for_each_teacher():
    table = pl.DataFrame({
        "teacher": ["a-9B", "b-9B", "-", "-", "a-9B", "b-9B"], "student": ["s-1B", "s-1B", "a-9B", "b-9B", "s-1B", "s-1B"],
        "method": ["SFT", "SFT", "SFT", "SFT", "KD", "KD"], "task": "t", "score": [50.0, 50.0, 80.0, 81.0, 55.0, 56.0],
    })  # fmt: skip
    data = studies.read([table])
    assert cells(data.baselines, "model", "score") == {("s-1B", 50.0), ("a-9B", 80.0), ("b-9B", 81.0)}


def test_chance_levels_of_options():
    """With K options guessing gets 100/K."""
    known = studies.chance_levels()
    assert {known[task] for task in ("boolq", "piqa", "winogrande")} == {50.0}
    assert known["social_i_qa"] == pytest.approx(100 / 3)
    assert {known[task] for task in ("hellaswag", "ARC-Easy", "ARC-Challenge", "openbookqa")} == {25.0}
    assert known["gsm8k"] == 0.0


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "Teacher,Student,Method",
            "Teacher,Student,Methode",
            r"scores.csv: the table lacks 'method'.*study.map.method=Methode",
        ),
        ("Teacher,Student,Method", "Teacher,Model,Method", r"lacks 'student'.*found: Teacher, Model, Method"),
        ("-,m-1B,SFT,40,60,50\n", "", r"scores.csv, row 3: there is no SFT score of m-1B on gsm8k.*no gain"),
        (
            "m-7B,m-1B,student_GKD",
            "n-7B_x,m-1B,student_GKD",
            r"row 6: the teacher is 'n-7B_x'.*expected one of m-1B, m-7B",
        ),
        ("45,62,53.5", "145,62,53.5", r"row 4: the score of gsm8k is 145; expected percent, 0 to 100"),
        ("45,62,53.5", "-4,62,53.5", r"row 4: the score of gsm8k is -4"),
        ("45,62,53.5", "n/k,62,53.5", r"row 4: the cell of 'gsm8k' is 'n/k'; expected a score"),
        ("student_GKD_temp_1.0", "student_KD_temp_1.0", r"the score of m-7B m-1B SeqKD gsm8k stands twice"),
        ("-,m-1B,BaseModel", "-,m-1B,Magic", r"row 1: m-1B has no teacher, and its method is 'Magic'"),
        ("m-7B,m-1B,student_GKD", "m-7B,,student_GKD", r"row 6: there is no student"),
    ],
)
def test_what_is_wrong_is_named(write, old, new, told):
    assert old in WIDE
    with pytest.raises(InputError) as found:
        studies.read([write(WIDE.replace(old, new))])
    assert re.search(told, str(found.value), re.DOTALL), str(found.value)


def test_fractions_that_are_taken_for_percent_are_refused(write):
    table = pl.read_csv(write(WIDE)).with_columns(pl.col("gsm8k", "boolq", "Average") / 100)
    with pytest.raises(InputError, match=r"no score is above 1; expected percent. Are these fractions\?"):
        studies.read([table])


def test_percent_that_is_taken_for_fractions_is_refused(write):
    with pytest.raises(InputError, match="row 2: the score of gsm8k is 40; expected fraction, 0 to 1"):
        studies.read([write(WIDE)], scale="fraction")


def test_two_studies_at_once_are_refused(write):
    other = WIDE.replace("gsm8k,boolq", "piqa,winogrande")
    with pytest.raises(InputError, match="Average stands twice"):
        studies.read([write(WIDE), write(other, "other.csv")])


def test_two_tables_of_agreement_are_refused(write):
    with pytest.raises(
        InputError, match=r"em1.csv and .*em2.csv: two tables of agreement.*name one by study.agreement=FILE"
    ):
        studies.read([write(WIDE), write(PAIRS, "em1.csv"), write(PAIRS, "em2.csv")])


def test_a_named_table_of_pairs_lacks_a_column(write):
    bad = write(PAIRS.replace("Teacher,Student", "T,Student"), "x.csv")
    with pytest.raises(InputError, match=r"x.csv: the table lacks 'teacher'"):
        studies.read([write(WIDE)], agreement=str(bad))


@pytest.mark.parametrize(("column", "cell"), [("temperature", "hot"), ("score", "good"), ("size", "big")])
def test_what_is_no_number_is_named(column, cell):
    table = pl.DataFrame({
        "teacher": ["-", "-", "t-9B"], "student": ["s-1B", "t-9B", "s-1B"], "method": ["SFT", "SFT", "KD"], "task": "a",
        "score": ["50", "80", "55"], "temperature": ["1", "1", "1"], "size": ["1", "9", "1"],
    })  # fmt: skip
    changed = table.with_columns(pl.Series(column, [*table[column][:2], cell]))
    with pytest.raises(InputError, match=f"row 3: the {column} is '{cell}'; expected a number"):
        studies.read([changed])


def test_pairs_alone_are_no_study(write):
    with pytest.raises(InputError, match="there is no table of scores"):
        studies.read([write(PAIRS, "em1.csv")])


def test_students_of_nobody_are_no_study(write):
    with pytest.raises(InputError, match="no student of a teacher"):
        studies.read([write("\n".join(WIDE.splitlines()[:4]))])


def test_no_teacher_with_a_score_is_said_once(write):
    """Where none is known, nothing is misspelt: their scores are simply not in the table."""
    data = studies.read([write("\n".join(line for line in WIDE.splitlines() if not line.startswith("-,m-7B")))])
    assert any("no teacher has a score of its own" in note for note in data.notes)


def test_a_task_of_the_baselines_alone_is_none_of_the_study():
    table = pl.DataFrame({
        "teacher": ["-", "-", "-", "big-9B"], "student": ["s-1B", "big-9B", "s-1B", "s-1B"],
        "method": ["SFT", "SFT", "SFT", "KD"], "task": ["a", "a", "b", "a"], "score": [50.0, 80.0, 10.0, 55.0],
    })  # fmt: skip
    data = studies.read([table])
    assert data.tasks == ("a",)
    assert cells(data.baselines, "task") == {("a",)}


def long(rows, *more):
    names = ["teacher", "student", "method", "score", *more]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(task=pl.lit("a"))


def test_a_seed_is_one_however_it_is_written():
    own = long(
        [("-", "s-1B", "SFT", 50.0, "0"), ("-", "s-1B", "SFT", 60.0, "1"), ("-", "t-9B", "SFT", 80.0, "0")], "seed"
    )
    taught = long([("t-9B", "s-1B", "KD", 55.0, 0.0), ("t-9B", "s-1B", "KD", 66.0, 1.0)], "seed")
    data = studies.read([own, taught])
    assert set(data.scores["seed"]) == set(data.baselines.filter(pl.col("model") == "s-1B")["seed"])


def test_baselines_of_several_temperatures_are_refused():
    rows = [("-", "s-1B", "SFT", 50.0, 1.0), ("-", "s-1B", "SFT", 60.0, 2.0), ("-", "t-9B", "SFT", 80.0, 1.0),
            ("t-9B", "s-1B", "KD", 55.0, 1.0)]  # fmt: skip
    with pytest.raises(InputError, match=r"row 1 and .*row 2: 2 scores of the baseline of s-1B on a"):
        studies.read([long(rows, "temperature")])


def test_fractions_of_one_table_or_of_baselines_are_refused():
    own = [("-", "s-1B", "SFT", 0.5), ("-", "t-9B", "SFT", 0.8)]
    taught = [("t-9B", "s-1B", "KD", 55.0)]
    with pytest.raises(InputError, match="no score is above 1"):
        studies.read([long(own), long(taught)])
    with pytest.raises(InputError, match="no score of SFT is above 1"):
        studies.read([long(own + taught)])


# -- tables of pairs that do not fit ----------------------------------------------------------------------------------


def test_a_table_of_pairs_names_its_teachers_as_scores_do(write):
    other = PAIRS.replace("m-7B,m-1B,m-7B ->", "m-7B_ckpt9,m-1B,m-7B ->")
    data = studies.read([write(WIDE), write(other, "em1.csv")])
    assert set(data.agreement["teacher"]) == {"m-7B"}
    assert not any("has no agreement" in note for note in data.notes)


def test_what_a_table_of_pairs_does_not_have_is_told(write):
    renamed = write(PAIRS.replace("boolq,gsm8k", "boolq,GSM"), "em1.csv")
    assert any("has no agreement on 'gsm8k'" in note for note in studies.read([write(WIDE), renamed]).notes)
    strangers = write(PAIRS.replace("m-1B", "n-1B"), "em2.csv")
    notes = studies.read([write(WIDE), strangers]).notes
    assert any("no agreement of 1 of 1 pairs (the first: m-7B -> m-1B)" in note for note in notes)


def test_agreement_that_stands_twice_is_refused(write):
    twice = PAIRS + "m-7B,m-1B,m-7B -> m-1B,KD,10,20\n"
    with pytest.raises(
        InputError, match=r"agreement of m-7B -> m-1B, KD, on 'boolq' stands twice; expected one row each"
    ):
        studies.read([write(WIDE), write(twice, "em1.csv")])


def test_a_table_of_scores_without_pairs_is_no_agreement(write):
    """Methods KD and SFT alone do not make a table one of agreement: it has a column `Pair`."""
    scores = """Teacher,Student,Method,gsm8k,boolq
m-7B,m-1B,KD,45,62
"""
    data = studies.read([write(WIDE), write(scores, "more.csv")])
    assert data.agreement.is_empty()
    assert "KD" in set(data.scores["method"])


# -- what is a task, and on what scale --------------------------------------------------------------------------------


def with_column(name, cells, table=WIDE):
    lines = table.splitlines()
    return "\n".join([f"{lines[0]},{name}", *(f"{line},{cell}" for line, cell in zip(lines[1:], cells, strict=True))])


KEPT = [
    "epochs",
    "Epoch",
    "max_steps",
    "Learning Rate",
    "lr",
    "run id",
    "LoRA-rank",
    "GPU hours",
    "eval_loss",
    "std",
    "Notes",
]


@pytest.mark.parametrize("name", KEPT)
def test_bookkeeping_is_no_task(write, name):
    data = studies.read([write(with_column(name, [3] * 7))])
    assert data.tasks == ("gsm8k", "boolq")
    note = f"assumed: bookkeeping and no tasks, so left out: {name} (study.tasks=A,B,... names the tasks)"
    assert note in data.notes
    assert data.scores.equals(studies.read([write(WIDE)]).scores)


@pytest.mark.parametrize("name", ["gsm8k_hard", "arc", "copa", "nli", "timeqa", "index_qa", "loss_aversion"])
def test_a_name_that_begins_like_bookkeeping_is_a_task(write, name):
    data = studies.read([write(with_column(name, [3] * 7))])
    assert data.tasks == ("gsm8k", "boolq", name)
    assert not [note for note in data.notes if "bookkeeping" in note]


def test_tasks_may_be_named(write):
    table = write(with_column("memory", [3] * 7, with_column("when", ["today"] * 7)))
    data = studies.read([table], tasks=["BoolQ", "memory"])
    assert data.tasks == ("boolq", "memory")
    assert not [note for note in data.notes if "bookkeeping" in note]
    averages = data.scores.filter((pl.col("task") == "Average") & (pl.col("method") == "GKD"))
    assert averages["score"].to_list() == [(64 + 3) / 2]  # the given one is over other tasks
    own = [("-", model, "SFT", task, 50.0) for model in ("m-1B", "m-7B") for task in ("gsm8k", "boolq")]
    taught = [("m-7B", "m-1B", "KD", task, 60.0) for task in ("gsm8k", "boolq")]
    rows = pl.DataFrame(own + taught, schema=["teacher", "student", "method", "task", "score"], orient="row")
    assert studies.read([rows], tasks=["BOOLQ"]).tasks == ("boolq",)


def test_a_task_that_no_student_has_is_refused(write):
    with pytest.raises(
        InputError, match=r"study.tasks: no student of a teacher has a score on 'boolqq'.*mean 'boolq'\?"
    ):
        studies.read([write(WIDE)], tasks=["gsm8k", "boolqq"])
    with pytest.raises(InputError, match=r"has a score on 'piqa'; expected names of tasks \(gsm8k, boolq, Average\)"):
        studies.read([write(WIDE)], tasks=["piqa"])


def test_a_column_that_may_be_no_task_says_how_to_name_the_tasks(write):
    with pytest.raises(InputError, match=r"the score of evaluated is 1319; expected percent.*study.tasks=A,B"):
        studies.read([write(with_column("evaluated", [1319] * 7))])
    with pytest.raises(InputError, match=r"the cell of 'who' is 'me'.*name the tasks by study.tasks=A,B"):
        studies.read([write(with_column("who", ["me"] * 7))])


def test_scores_up_to_1_are_percent_where_that_is_said():
    rows = [("-", "s-1B", "SFT", 0.5), ("-", "t-9B", "SFT", 0.8), ("t-9B", "s-1B", "KD", 1.0)]
    with pytest.raises(
        InputError, match=r"no score is above 1.*study.scale=fraction.*if they are percent, pass study.scale=percent"
    ):
        studies.read([long(rows)])
    assert studies.read([long(rows)], scale="percent").scores["score"].to_list() == [1.0]
    assert studies.read([long(rows)], scale="fraction").scores["score"].to_list() == [100.0]


@pytest.mark.parametrize("header", ["METHOD", " method", "Method ", "mEtHoD"])
def test_case_and_spaces_of_headers_do_not_count(write, header):
    plainly = studies.read([write(WIDE)])
    other = studies.read([write(WIDE.replace("Teacher,Student,Method", f"TEACHER, Student,{header}"), "other.csv")])
    assert other.scores.equals(plainly.scores)
    assert other.tasks == plainly.tasks


def test_a_method_under_another_name_is_found_by_its_cells(write):
    renamed = write(WIDE.replace("Teacher,Student,Method", "Teacher,Student,Recipe"))
    with pytest.raises(
        InputError, match=r"lacks 'method'.*did you mean study.map.method=Recipe\?".replace("did", "[Dd]id")
    ):
        studies.read([renamed])
