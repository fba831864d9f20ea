"""A mistake ends with status 2 and one message that says where, what was found and what to do; nothing is written."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from sanov.cli import app
from sanov.core.errors import SanovWarning

ROWS = 40
IDS = [f"q{row}" for row in range(ROWS)]
LABELS = ["yes", "no"] * (ROWS // 2)


def predictions(ids=IDS, answers=LABELS, **more):
    return pl.DataFrame({"id": ids, "prediction": answers, **more}, strict=False)


GOOD = {"t.csv": predictions(label=LABELS), "s.csv": predictions()}
BOTH = ("t.csv", "s.csv")


def probabilities(*first, rows=ROWS):
    """Columns of two classes; the rows given come first."""
    table = [*first, *[(0.5, 0.5)] * (rows - len(first))]
    return {f"prob_{name}": [row[k] for row in table] for k, name in enumerate(("yes", "no"))}


def refused(command, tmp_path, files, words, *messages):
    """Run a command that must fail: one message, and neither the answer nor a temporary is left."""
    for name, table in (GOOD | files).items():
        table.write_csv(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    status, told = command("apply", "fidelity", *words, "--out", "answer", "--quiet")
    assert status == 2, told
    for message in messages:
        assert message in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before


FILES = {
    "a class twice": (
        {"s.csv": pl.DataFrame({"id": IDS, "prob_True": [0.5] * ROWS, "prob_true": [0.5] * ROWS})},
        BOTH,
        "s.csv: the columns 'prob_True' and 'prob_true' both name the class 'true'; expected one column for each class",
    ),
    "other ids": (
        {"s.csv": predictions([*IDS[:-2], "x", "y"])},
        BOTH,
        "the ids differ: t.csv has 40, s.csv has 40 rows; t.csv lacks 2 (x, y); s.csv lacks 2 (q38, q39)",
    ),
    "fewer ids": (
        {"s.csv": predictions(IDS[5:], LABELS[5:]), "l.csv": pl.DataFrame({"id": IDS[:39], "label": LABELS[:39]})},
        (*BOTH, "l.csv"),
        "t.csv has 40, s.csv has 35, l.csv has 39 rows; s.csv lacks 5 (q0, q1, q2 ...); l.csv lacks 1 (q39)",
    ),
    "an id twice": (
        {"s.csv": predictions([*IDS[:6], "q2", *IDS[7:]])},
        BOTH,
        "s.csv: the id 'q2' occurs in rows 3 and 7; expected each id once.",
    ),
    "an id missing": (
        {"s.csv": predictions([*IDS[:6], None, *IDS[7:]])},
        BOTH,
        "s.csv, row 7, column 'id': the id is missing; expected one id a row.",
    ),
    "ids in one file alone": (
        {"s.csv": predictions().drop("id")},
        BOTH,
        "s.csv: there are no ids, and t.csv has some. Add it, name it by map.id=NAME, or take the ids out",
    ),
    "no ids and other lengths": (
        {"t.csv": predictions().drop("id"), "s.csv": predictions()[:30].drop("id")},
        BOTH,
        "t.csv has 40 rows, s.csv has 30 rows, and there are no ids to pair them by; expected as many rows in each.",
    ),
    "probabilities that do not sum to 1": (
        {"s.csv": predictions(**probabilities((0.5, 0.5), (0.6, 0.3)))},
        BOTH,
        "s.csv, row 2: the probabilities sum to 0.9; expected 1. Classes exclude one another here",
    ),
    "per cent": (
        {"s.csv": predictions(**probabilities((60, 40), *[(33.3, 66.6)] * (ROWS - 1)))},
        BOTH,
        "s.csv, row 1: the probabilities sum to 100 (39 more such rows); expected 1. These are per cent: divide them by 100.",
    ),
    "logits above 0": (
        {"s.csv": predictions(**probabilities(*[(2.5, 0.1)] * ROWS))},
        BOTH,
        "s.csv, row 1: the probabilities sum to 2.6 (39 more such rows); expected 1. Pass logits=true if these are logits",
    ),
    "a class without a column": (
        {"s.csv": predictions(answers=["maybe", *LABELS[1:]], **probabilities(*[(0.25, 0.5)] * ROWS))},
        BOTH,
        "s.csv: there is no column 'prob_maybe', though 'maybe' is a prediction; expected a column for each class.",
    ),
    "a class without a column that the other file has": (
        {
            "t.csv": predictions(**probabilities(*[(0.25, 0.5)] * ROWS), prob_maybe=[0.25] * ROWS),
            "s.csv": predictions(**probabilities(*[(0.25, 0.5)] * ROWS)),
        },
        BOTH,
        "s.csv: there is no column prob_maybe; expected the classes of t.csv: yes, no, maybe.",
    ),
    "labels of another vocabulary": (
        {"t.csv": predictions(label=[0, 1] * (ROWS // 2))},
        BOTH,
        "t.csv and s.csv: no answer of any system is ever a label: the answers are no, yes, the labels 0, 1; expected",
    ),
    "one system's answers of another vocabulary": (
        {"s.csv": predictions(answers=[1, 0] * (ROWS // 2))},
        BOTH,
        "s.csv: no answer of the student is ever a label: the answers are 0, 1, the labels no, yes; expected answers",
    ),
    "a negative probability": (
        {"s.csv": predictions(**probabilities((1.5, -0.5)))},
        BOTH,
        "s.csv, row 1: the probability of 'no' is -0.5; expected a number from 0 to 1. Pass logits=true if these are",
    ),
    "a probability of text": (
        {"s.csv": predictions(**probabilities(("high", 0.5)))},
        BOTH,
        "s.csv, row 1, column 'prob_yes': the cell is 'high'; expected a number.",
    ),
    "one class": (
        {"s.csv": predictions(prob_yes=[1.0] * ROWS)},
        BOTH,
        "s.csv: only one column begins with 'prob_'; expected one for each class.",
    ),
    "other classes": (
        {
            "t.csv": predictions(**probabilities()),
            "s.csv": predictions(**probabilities()).rename({"prob_yes": "prob_ja"}),
        },
        BOTH,
        "s.csv: the probabilities are of the classes ja, no; expected those of t.csv: yes, no.",
    ),
    "no predictions": (
        {"s.csv": predictions().rename({"prediction": "predictions"})},
        BOTH,
        "s.csv: there is no column 'prediction', none of probabilities (prob_CLASS) and no label. "
        "Did you mean 'predictions'? Then pass map.prediction=predictions.",
    ),
    "nothing like predictions": (
        {"s.csv": pl.DataFrame({"id": IDS, "text": LABELS})},
        BOTH,
        "The columns are: id, text; map.prediction=NAME names one.",
    ),
    "one file": (
        {},
        ("t.csv",),
        "fidelity: the files are t.csv (predictions); expected predictions of a teacher and of",
    ),
    "labels alone beside a teacher": (
        {"l.csv": pl.DataFrame({"id": IDS, "label": LABELS})},
        ("t.csv", "l.csv"),
        "the files are t.csv (predictions), l.csv (labels); expected predictions of a teacher and of a student",
    ),
    "four files of predictions": (
        {},
        (*BOTH, "s.csv", "t.csv"),
        "the files are t.csv (predictions), s.csv (predictions), s.csv (predictions), t.csv (predictions); expected",
    ),
    "a teacher and a baseline": (
        {},
        ("t.csv", "baseline=s.csv"),
        "the files are t.csv (predictions), s.csv (predictions); expected predictions of a teacher and of a student",
    ),
    "a baseline of labels": (
        {"l.csv": pl.DataFrame({"id": IDS, "label": LABELS})},
        (*BOTH, "baseline=l.csv"),
        "s.csv (predictions), l.csv (labels); expected predictions of a teacher and of a student",
    ),
    "two files of labels": (
        {"l.csv": pl.DataFrame({"id": IDS, "label": LABELS})},
        (*BOTH, "l.csv", "l.csv"),
        "l.csv (labels), l.csv (labels); expected",
    ),
    "a wide table and another teacher": (
        {"w.csv": pl.DataFrame({"teacher": LABELS, "student": LABELS, "baseline": LABELS})},
        ("w.csv", "s.csv"),
        "the files are w.csv (teacher and student), s.csv (predictions); expected predictions of a teacher and of a student",
    ),
    "labels that differ": (
        {"l.csv": pl.DataFrame({"id": IDS, "label": ["no", *LABELS[1:]]})},
        (*BOTH, "l.csv"),
        "t.csv: the label of id 'q0' is 'yes' here and 'no' in l.csv (1 differ). Keep the labels in one file.",
    ),
    "a label that two later files tell otherwise": (
        {
            "t.csv": predictions(label=[*LABELS[:5], *[None] * (ROWS - 5)]),
            "s.csv": predictions(label=[None] * 5 + LABELS[5:]),
            "l.csv": pl.DataFrame({"id": IDS, "label": [*LABELS[:7], "yes", *LABELS[8:]]}),
        },
        (*BOTH, "l.csv"),
        "s.csv: the label of id 'q7' is 'no' here and 'yes' in l.csv (1 differ). Keep the labels in one file.",
    ),
    "no label at all": (
        {"t.csv": predictions(label=pl.Series([None] * ROWS, dtype=pl.String))},
        BOTH,
        "t.csv: every label is missing. Fill the column, or leave it out.",
    ),
    "a label that is no option": (
        {"t.csv": predictions(label=["perhaps", *LABELS[1:]])},
        (*BOTH, "options=yes,no"),
        "t.csv, row 1, column 'label': the label is 'perhaps'; expected one of yes, no.",
    ),
    "a label without a number": (
        {"t.csv": predictions(label=["none", *["4"] * 39])},
        (*BOTH, "answers=number"),
        "t.csv, row 1, column 'label': the label is 'none'; expected a text that holds a number.",
    ),
    "a baseline that is not there": ({}, (*BOTH, "baseline=b.csv"), "b.csv: no such file. Did you mean"),
    "a column that is in no file": (
        {},
        (*BOTH, "map.task=tasks"),
        "map.task: there is no column 'tasks' in any file. The columns are: id, prediction, label.",
    ),
    "a prefix that is in no file": ({}, (*BOTH, "map.probabilities=p_"), "map.probabilities: there is no column 'p_'"),
    "a missing file": ({}, ("t.csv", "ss.csv"), "ss.csv: no such file. Did you mean 's.csv'?"),
}


@pytest.mark.parametrize(("files", "words", "message"), FILES.values(), ids=FILES)
def test_files(command, tmp_path, files, words, message):
    refused(command, tmp_path, files, words, message)


OPTIONS = {
    "draws": (("draws=100",), "draws: the value is '100'; expected a whole number >= 1000."),
    "confidence": (("confidence=0.5",), "confidence: the value is '0.5'; expected a number > 0.5 and < 1."),
    "bins": (("bins=1",), "bins: the value is '1'; expected a whole number >= 2."),
    "weight": (("jsd_weight=1",), "jsd_weight: the value is '1'; expected a number > 0 and < 1."),
    "answers": (("answers=words",), "answers: the value is 'words'; expected exact | number | letter | options."),
    "mode": (("mode=both",), "mode: the value is 'both'; expected auto | report | study."),
    "options without names": (("answers=options",), "answers=options looks for names: give them by options=yes,no"),
    "names of numbers": (("answers=number", "options=1,2"), "answers=number takes any number: leave out options"),
    "long letters": (("answers=letter", "options=yes,no"), "answers=letter takes options of one letter each"),
    "one option": (("options=yes",), "options must be at least two different names"),
    "unknown": (("map.predictions=a",), "map.predictions: there is no such option. Did you mean 'map.prediction'?"),
    "a model and no table for it": (
        ("models.student=dir",),
        "fidelity: 2 tables are given; expected one table of inputs",
    ),
    "something fitted": (("--fitted", "folder"), "fidelity: there is nothing to fit, so nothing fitted to apply."),
}


@pytest.mark.parametrize(("words", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(command, tmp_path, words, message):
    refused(command, tmp_path, {}, (*BOTH, *words), message)


def test_no_data(command, tmp_path):
    refused(
        command, tmp_path, {}, (), "fidelity: there are no data; expected predictions, or a table of scores. Name the"
    )


def test_models(command, tmp_path):
    (tmp_path / "empty").mkdir()
    texts = {"d.csv": pl.DataFrame({"text": ["a", "b"] * 20, "label": LABELS})}
    for words, message in {
        (
            "models.student=nowhere",
        ): "models.student=nowhere: there is no such folder; expected a folder of a fitted model.",
        ("models.teacher=empty", "models.student=empty"): "empty: the folder has no config.json",
        ("models.student=t.csv",): "models.student=t.csv: is a file; expected a folder of a fitted model.",
        ("models.baseline=empty", "baseline=b.csv"): "baseline: is a file, and models are given.",
    }.items():
        refused(command, tmp_path, texts, ("d.csv", *words), message)


def test_arrays(command, tmp_path):
    np.savez(tmp_path / "p.npz", probs=np.ones((ROWS, 2)) / 3)
    np.savez(tmp_path / "q.npz", prob=np.ones((ROWS, 2)) / 2)
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04 and nothing more")
    for name, message in {
        "p.npz": "p.npz, row 1: the probabilities sum to 0.6667 (39 more such rows); expected 1.",
        "q.npz": "q.npz: the array 'prob' is not known; expected probs, logits, classes, ids, predictions, labels, tasks, "
        "rationales. Did you mean 'probs'?",
        "r.npz": "r.npz: is no archive of plain arrays (damaged, or something else).",
        "n.npz": "n.npz: no such file.",
    }.items():
        refused(command, tmp_path, {}, ("t.csv", name), message)


# -- what gives an answer all the same, and is named in it ------------------------------------------------------------


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Run a command that gives an answer; return it as JSON."""
    monkeypatch.chdir(tmp_path)

    def run(files, *words):
        for name, table in (GOOD | files).items():
            table.write_csv(name)
        monkeypatch.setattr("sys.argv", ["sanov", "apply", "fidelity", *words])
        done = CliRunner().invoke(app, ["apply", "fidelity", *words, "draws=1000", "--json"])
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    return run


def test_answers_outside_the_options_count_as_none(told):
    answers = ["yes", "no", "perhaps", *LABELS[3:38], "maybe", "no"]
    found = told({"s.csv": predictions(answers=answers)}, *BOTH, "options=yes,no")
    note = "answers that are none of yes, no count as no answer: 2 of student ('perhaps' in s.csv, row 3)"
    assert note in found["notes"]
    assert found["tables"]["Systems"]["without an answer"] == [0, 2]
    assert found["values"]["student_accuracy"] == 38 / 40
    assert "student 2 of 40 examples" in found["lines"]["no answer"]


def test_few_examples_have_no_interval_and_no_verdict(told):
    files = {name: table[:29] for name, table in GOOD.items()}
    found = told(files, *BOTH, "baseline=s.csv")
    assert "only 29 examples: intervals and the verdict are left out (they need 30)" in found["notes"]
    assert found["values"]["verdict"] is None
    assert set(found["tables"]["Statistics"]["low"]) == {None}
    assert found["lines"]["verdict"] == "none: too few examples"
    assert told({}, *BOTH, "baseline=s.csv")["values"]["verdict"] == "INCONCLUSIVE"


def test_constant_predictions_are_named(told):
    found = told({"s.csv": predictions(answers=["yes"] * ROWS)}, *BOTH)
    note = "the student answers 'yes' on every example: Cohen's kappa and error consistency are left out"
    assert note in found["notes"]
    assert "kappa" not in found["values"]
    assert "error_consistency" not in found["values"]
    numbers = ["1", "2"] * (ROWS // 2)
    files = {"t.csv": predictions(answers=numbers, label=numbers), "s.csv": predictions(answers=["yes"] * ROWS)}
    silent = told(files, *BOTH, "answers=number")
    assert any(note.startswith("the student gives no answer at all on every example") for note in silent["notes"])


def test_empty_rationales_are_named(told):
    texts = ["because of this and that", None, *["so it is"] * 38]
    found = told({name: table.with_columns(rationale=pl.Series(texts)) for name, table in GOOD.items()}, *BOTH)
    assert "1 examples with an empty rationale are left out of BLEU" in found["notes"]
    assert found["values"]["bleu"] == pytest.approx(100)
    assert "bleu" not in told({}, *BOTH, "map.rationale=")["values"]  # an empty name leaves the column out


def test_labels_that_no_system_ever_gives_are_counted(told):
    labels = ["Yes" if row % 4 == 0 else label for row, label in enumerate(LABELS)]
    found = told({"t.csv": predictions(label=labels)}, *BOTH)
    assert "10 of 40 labels are never an answer of any system (such as 'Yes'): written alike?" in found["notes"]
    assert not [note for note in told({}, *BOTH)["notes"] if "never an answer" in note]


def test_options_say_that_wrong_answers_are_answers(told):
    """All labels are yes and every answer is no: of the declared answers, they are simply wrong."""
    files = {
        "t.csv": predictions(answers=["no"] * ROWS, label=["yes"] * ROWS),
        "s.csv": predictions(answers=["no"] * ROWS),
    }
    found = told(files, *BOTH, "options=yes,no")
    assert (found["values"]["teacher_accuracy"], found["values"]["agreement"]) == (0, 1)


def test_rounded_probabilities_are_taken_and_that_is_said(told):
    rounded = predictions(**probabilities((0.33, 0.66), (0.34, 0.67)))
    found = told({"t.csv": predictions(**probabilities()), "s.csv": rounded}, *BOTH)
    note = "the columns prob_... of s.csv are rounded to 2 decimals: 2 rows sum to 0.99 to 1.01, and are divided by their sum"
    assert note in found["notes"]
    p = [(0.33 / 0.99, 0.66 / 0.99), (0.34 / 1.01, 0.67 / 1.01), *[(0.5, 0.5)] * (ROWS - 2)]
    expected = np.mean([0.5 * np.log(0.5 / a) + 0.5 * np.log(0.5 / b) for a, b in p])
    assert found["values"]["forward_kl"] == pytest.approx(expected)


def test_ids_of_text_are_compared_as_text(told):
    ids = ["1", "1.0", *IDS[2:]]
    files = {"t.csv": predictions(ids, label=LABELS), "s.csv": predictions(ids[::-1], LABELS[::-1])}
    found = told(files, *BOTH)
    assert found["values"]["agreement"] == 1
    assert not [note for note in found["notes"] if "one id" in note]


def test_ids_that_one_file_holds_as_numbers_with_a_point_are_joined_and_that_is_said(told):
    files = {"t.csv": predictions(range(ROWS), label=LABELS), "s.csv": predictions([f"{row}.0" for row in range(ROWS)])}
    found = told(files, *BOTH)
    assert found["values"]["agreement"] == 1
    assert "assumed: ids that are one number, such as 1 and 1.0, are one id" in found["notes"]


def test_labels_that_are_filled_in_are_counted(told):
    some = predictions(label=[*LABELS[:15], *[None] * (ROWS - 15)])
    found = told({"t.csv": some, "l.csv": pl.DataFrame({"id": IDS, "label": LABELS})}, *BOTH, "l.csv")
    assert "the labels of 25 examples are those of l.csv: t.csv has none for them" in found["notes"]


WRONG = [*("no" if label == "yes" else "yes" for label in LABELS[:15]), *LABELS[15:]]


def test_whose_file_is_which_is_said_and_swapped_ones_are_asked_for(told):
    files = {"t.csv": predictions(answers=WRONG, label=LABELS)}
    with pytest.warns(SanovWarning, match="are the two swapped"):
        found = told(files, *BOTH)
    assert found["lines"]["read from"] == "teacher: t.csv, student: s.csv"
    assert found["notes"][0].startswith(
        "the teacher (t.csv) is less accurate than the student (s.csv) by 37.5 points ("
    )
    few = [*WRONG[:4], *LABELS[4:]]  # four examples say nothing by the exact test: no question, no warning
    assert not [
        note for note in told({"t.csv": predictions(answers=few, label=LABELS)}, *BOTH)["notes"] if "swapped" in note
    ]
    assert told(files, "s.csv", "t.csv")["lines"]["read from"] == "teacher: s.csv, student: t.csv"  # and no warning
