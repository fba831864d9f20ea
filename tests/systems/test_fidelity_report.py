"""Every way in gives the same answer; the answer says what was asked; and it can be saved in every form."""

import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import log_softmax
from typer.testing import CliRunner

import sanov
from browser import look
from sanov.cli import app
from sanov.core import pages
from sanov.core.errors import MissingExtra
from sanov.systems.fidelity.analysis import Value
from sanov.systems.fidelity.wording import verdict
from systems.fidelity_truths import answers, probabilities

FAST = "draws=1000"
ROWS = 240
NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def examples():
    """Labels and answers as words, with ids, probabilities, tasks and rationales, as one table a model."""
    labels, systems = answers(ROWS, 3, 0, accuracy=(0.85, 0.7, 0.5), copied=0.6)
    ids = [f"q{row}" for row in range(ROWS)]
    tables = {}
    for place, (name, given) in enumerate(zip(("teacher", "student", "baseline"), systems, strict=True)):
        p = probabilities(given, 3, place)
        tables[name] = pl.DataFrame(
            {"id": ids, "prediction": NAMES[given], **{f"prob_{word}": p[:, k] for k, word in enumerate(NAMES)}}
        )
    tables["labels"] = pl.DataFrame({"id": ids, "label": NAMES[labels]})
    return tables


@pytest.fixture
def screen(tmp_path, monkeypatch):
    """Run `sanov apply fidelity` in a folder of its own; return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["sanov", "apply", "fidelity", *map(str, words)])
        done = CliRunner().invoke(app, ["apply", "fidelity", *map(str, words)])
        assert done.exit_code == 0, done.exception
        return done.output

    return run


def wide(examples, *names):
    parts = []
    for name in names:
        new = {column: column.replace("prob_", f"{name}_prob_") for column in examples[name].columns}
        parts.append(examples[name].rename(new | {"prediction": name}).drop("id"))
    return pl.concat([examples["labels"], *parts], how="horizontal")


def line(told, heading):
    """One line of the summary, with its continuations."""
    found = re.search(rf"^{heading} +(.*(?:\n {{10,}}.*)*)", told, re.M)
    assert found, heading
    return " ".join(found[1].split())


# -- doors ------------------------------------------------------------------------------------------------------------


def test_every_way_in_has_one_answer(examples, screen, tmp_path):
    for name, table in examples.items():
        table.write_csv(f"{name}.csv")
    examples["teacher"].write_parquet("teacher.parquet")
    examples["student"].sample(fraction=1.0, shuffle=True, seed=1).write_ndjson("student.jsonl")
    wide(examples, "teacher", "student", "baseline").write_csv("wide.csv")
    wide(examples, "teacher", "student").write_csv("pair.csv")
    joined = examples["teacher"].join(examples["labels"], on="id")
    joined.write_csv("with_labels.csv")
    array = examples["student"].select(pl.col("^prob_.*$")).to_numpy()
    np.savez("student.npz", probs=array, ids=np.array(examples["student"]["id"].to_list()), classes=NAMES)
    ways = {
        "files": ["teacher.csv", "student.csv", "labels.csv", "baseline=baseline.csv"],
        "third file": ["teacher.csv", "student.csv", "baseline.csv", "labels.csv"],
        "labels first": ["labels.csv", "teacher.csv", "student.csv", "baseline.csv"],
        "labels in a file of predictions": ["with_labels.csv", "student.csv", "baseline.csv"],
        "kinds of files": ["teacher.parquet", "student.jsonl", "labels.csv", "baseline=baseline.csv"],
        "arrays": ["teacher.csv", "student.npz", "labels.csv", "baseline=baseline.csv"],
        "one wide table": ["wide.csv"],
        "a wide table and a baseline": ["pair.csv", "baseline=baseline.csv"],
    }
    told = {way: json.loads(screen(*words, FAST, "--json")) for way, words in ways.items()}
    for way, found in told.items():
        assert found["values"] == told["files"]["values"], way
        assert found["provenance"]["input"] == told["files"]["provenance"]["input"], way
    assumed = "assumed: baseline.csv, one more file of predictions, is the student without a teacher"
    assert told["third file"]["notes"] == [assumed]
    assert told["files"]["notes"] == []


def test_classes_are_matched_by_name(examples):
    columns = examples["student"].columns
    turned = examples["student"].select(*columns[:2], *columns[:1:-1])
    assert turned.columns != columns
    one, other = (sanov.fidelity(examples["teacher"], table, examples["labels"], draws=1000).values
                  for table in (examples["student"], turned))  # fmt: skip
    numbers = one.keys() - {"verdict"}
    assert [other[name] for name in numbers] == pytest.approx([one[name] for name in numbers], rel=1e-9)


def test_every_kind_of_table_has_one_answer(examples):
    kinds = {
        "polars": lambda table: table,
        "pandas": lambda table: table.to_pandas(),
        "arrow": lambda table: table.to_arrow(),
        "dictionary": lambda table: table.to_dict(as_series=False),
    }
    found = {
        kind: sanov.fidelity(*(make(examples[name]) for name in ("teacher", "student", "labels")), draws=1000)
        for kind, make in kinds.items()
    }
    for kind, answer in found.items():
        assert answer.values == found["polars"].values, kind
        assert answer.provenance == found["polars"].provenance, kind
    assert type(found["pandas"].to_frame()) is pd.DataFrame


def test_columns_of_other_names(examples, screen):
    """Such as those of `sanov apply sinkd`, whose table of predictions also holds the teacher's."""
    student = examples["student"].rename({"prediction": "class", **{f"prob_{word}": f"p_{word}" for word in NAMES}})
    student.with_columns(teacher=examples["teacher"]["prediction"], truth=examples["labels"]["label"]).write_csv(
        "all.csv"
    )
    found = json.loads(screen("all.csv", "map.student=class", "map.label=truth", FAST, "--json"))["values"]
    expected = sanov.fidelity(examples["teacher"], examples["student"], examples["labels"], draws=1000).values
    assert found["agreement"] == expected["agreement"]
    assert found["student_accuracy"] == expected["student_accuracy"]


def test_without_ids_rows_are_paired_by_position(examples):
    bare = [examples[name].drop("id") for name in ("teacher", "student", "labels")]
    answer = sanov.fidelity(*bare, draws=1000)
    assert (
        answer.values
        == sanov.fidelity(*(examples[name] for name in ("teacher", "student", "labels")), draws=1000).values
    )
    assert any("row i of each of the 3 files is the same example" in note for note in answer.notes)


def test_without_labels_there_is_agreement_alone(examples):
    answer = sanov.fidelity(examples["teacher"], examples["student"], draws=1000)
    assert "there are no labels to say who is right" in answer.sentence
    assert "kappa" in answer.values
    assert "student_accuracy" not in answer.values
    assert "Error transfer" not in answer.tables
    assert answer.values["verdict"] is None


# -- models -----------------------------------------------------------------------------------------------------------


def test_predictions_of_fitted_models(tmp_path, screen):
    """The student needs no training for this: its weights may be random."""
    from sanov.data.distillation import DistilTable
    from sanov.learning.readout import Readout
    from sanov.learning.students import Encoder, Fitted, Student, build

    rng = np.random.default_rng(0)
    truth = np.arange(120) % 3
    inputs = 2 * np.eye(3, 4)[truth] + rng.standard_normal((120, 4))
    data = DistilTable(inputs=inputs, classes=("a", "b", "c"), logits=2 * inputs[:, :3], labels=truth)
    shape = Student(width=8, depth=1)
    encoder = Encoder.of(data, shape)
    parts = build(encoder, shape, 3, seed=0), shape, encoder, data.classes, Readout(3)
    fitted = Fitted("sinkd", *parts, history=pl.DataFrame({"step": [1]}))
    fitted.save(tmp_path / "student")
    letters = np.array(data.classes)
    labels = np.where(np.arange(120) < 20, "-1", letters[data.labels])  # twenty rows have none
    np.savez("data.npz", inputs=data.inputs, logits=data.logits, labels=labels, classes=letters)
    told = json.loads(screen("data.npz", "models.student=student", FAST, "--json"))
    log_p = log_softmax(Fitted.load(tmp_path / "student").logits(data), axis=1)[20:]
    log_q = log_softmax(data.logits, axis=1)[20:]
    teacher, student = log_q.argmax(axis=1), fitted.logits(data)[20:].argmax(axis=1)
    assert told["values"]["examples"] == 100
    assert told["values"]["agreement"] == pytest.approx((teacher == student).mean())
    assert told["values"]["student_accuracy"] == pytest.approx((student == data.labels[20:]).mean())
    kl = (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean()
    assert told["values"]["forward_kl"] == pytest.approx(kl, rel=1e-6)
    assert "assumed: the logits in data.npz are the teacher's" in told["notes"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_predictions_of_hugging_face_classifiers(tmp_path, screen):
    import tiny_bert
    from sanov.nets.foreign import classifier_logits

    texts = ["a good film", "bad film", "very good", "a very bad film"] * 10
    for name, swap in (("teacher", ("neg", "pos")), ("student", ("pos", "neg"))):
        tiny_bert.save(tmp_path / name, swap)
    pl.DataFrame({"text": texts, "label": ["pos", "neg"] * 20, "id": range(40)}).write_csv("data.csv")
    told = json.loads(screen("data.csv", "models.teacher=teacher", "models.student=student", FAST, "--json"))
    guess = classifier_logits(tmp_path / "teacher", texts).argmax(axis=1)
    right = (np.array(["neg", "pos"])[guess] == np.array(["pos", "neg"] * 20)).mean()
    assert told["values"]["teacher_accuracy"] == pytest.approx(right)
    assert told["values"]["student_accuracy"] == pytest.approx(1 - right)  # the same network with its names swapped
    assert told["values"]["agreement"] == 0


# -- what it says -----------------------------------------------------------------------------------------------------


def test_one_screen_answers_the_questions(examples, screen):
    wide(examples, "teacher", "student", "baseline").write_csv("wide.csv")
    told = screen("wide.csv", FAST)
    assert len(told.splitlines()) <= 24
    assert max(map(len, told.splitlines())) <= 100
    labels = examples["labels"]["label"]
    t, s, b = (examples[name]["prediction"] for name in ("teacher", "student", "baseline"))
    head = " ".join(told.split("\n\n")[0].split())
    assert head.startswith("fidelity: The student decides like its teacher beyond what their accuracies imply")
    assert f"agree on {100 * (t == s).mean():.1f} % (95 % " in head
    assert f"of {ROWS} examples" in head
    gain = 100 * ((s == labels).mean() - (b == labels).mean())
    assert line(told, "verdict").startswith(f"BEATS the undistilled baseline: accuracy {gain:+.1f} points (")
    assert f"student {100 * (s == labels).mean():.1f} %" in line(told, "accuracy")
    wrong = int((t != labels).sum())
    repeated = int(((t != labels) & (t == s)).sum())
    assert line(told, "errors").startswith(f"of the teacher's {wrong} the student repeats {repeated}, ")
    lowest = 100 * ((t == labels).mean() + (s == labels).mean() - 1)
    assert f"{lowest:.1f} to " in line(told, "agreement")


@pytest.mark.parametrize(
    ("interval", "p", "word"),
    [
        ((0.01, 0.02), 0.04, "BEATS"),
        ((0.01, 0.02), 0.06, "INCONCLUSIVE"),
        ((-0.01, 0.02), 0.04, "INCONCLUSIVE"),
        ((-0.02, -0.01), 0.04, "WORSE"),
        ((-0.02, -0.01), 0.06, "INCONCLUSIVE"),
        ((0.0, 0.0), 1.0, "INCONCLUSIVE"),
        ((), 0.04, None),
    ],
)
def test_the_verdict_is_the_side_of_the_interval_where_the_test_agrees(interval, p, word):
    assert verdict(Value(0.0, *interval), p, 0.95) == word


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize(("discordant", "decided"), [(4, False), (5, False), (6, True)])
def test_few_examples_on_one_side_are_no_verdict_against_the_exact_test(discordant, decided, better):
    """With k discordant examples all on one side, McNemar's p is 2 / 2^k, and the bootstrap hardly ever draws none."""
    labels = ["a", "b", "c"] * 10
    worse = ["c" if label == "a" else "a" for label in labels[:discordant]] + labels[discordant:]
    student, baseline = (labels, worse) if better else (worse, labels)
    answer = sanov.fidelity(
        {"prediction": labels, "label": labels}, {"prediction": student}, {"prediction": baseline}, draws=2000
    )
    gain = {row["of"]: row for row in answer.to_frame().to_dicts() if row["statistic"] == "accuracy"}[
        "student - baseline"
    ]
    assert (gain["low"] > 0) if better else (gain["high"] < 0)
    assert answer.values["verdict"] == (("BEATS" if better else "WORSE") if decided else "INCONCLUSIVE")
    why = f"McNemar p = {2 / 2**discordant:.2g} is not below 0.05, though the interval leaves out 0"
    assert (why in answer.lines["verdict"]) == (not decided)


def test_a_worse_student_and_one_that_does_not_listen_are_told(examples):
    swapped = sanov.fidelity(
        examples["teacher"], examples["baseline"], examples["student"], examples["labels"], draws=1000
    )
    assert swapped.values["verdict"] == "WORSE"
    assert swapped.sentence.startswith("Undecided whether the student decides like its teacher")
    labels = examples["labels"]["label"]
    contrary = (
        examples["teacher"]
        .select("id")
        .with_columns(
            prediction=pl.when(examples["teacher"]["prediction"] == labels).then(pl.lit("other")).otherwise(labels)
        )
    )
    answer = sanov.fidelity(examples["teacher"], contrary, examples["labels"], draws=1000)
    assert answer.sentence.startswith("The student decides less like its teacher than their accuracies imply")


def test_tasks_have_a_forest_and_small_ones_are_left_out(examples):
    tasks = ["arc"] * 100 + ["boolq"] * 120 + ["tiny"] * 20
    table = wide(examples, "teacher", "student", "baseline").with_columns(task=pl.Series(tasks))
    answer = sanov.fidelity(table, draws=1000)
    rows = answer.to_frame("By task")
    assert rows["task"].to_list() == ["arc", "boolq"]
    assert rows["examples"].to_list() == [100, 120]
    here = table.filter(pl.col("task") == "boolq")
    gain = (here["student"] == here["label"]).mean() - (here["baseline"] == here["label"]).mean()
    found = rows.row(1, named=True)
    assert found["student - baseline"] == pytest.approx(gain)
    assert found["agreement"] == pytest.approx((here["student"] == here["teacher"]).mean())
    assert found["student - baseline low"] < gain < found["student - baseline high"]
    assert "left out of the table by task: tiny (fewer than 30 examples)" in answer.notes
    assert "Accuracy by task, student - baseline" in answer.figures
    classes = sanov.fidelity(table.drop("task"), draws=1000).to_frame("By class")
    assert classes["class"].to_list() == sorted(NAMES)


def test_no_answer_is_wrong_and_counted_apart():
    labels = ["1", "2", "3", "4"] * 10
    teacher = [f"the answer is {label}" for label in labels]
    student = [text if row % 4 else "I cannot say" for row, text in enumerate(teacher)]
    silent = ["nothing" if row % 8 == 0 else text for row, text in enumerate(teacher)]
    answer = sanov.fidelity(
        {"prediction": teacher, "label": labels}, {"prediction": student}, answers="number", draws=1000
    )
    assert answer.values["student_accuracy"] == 0.75
    assert answer.to_frame("Systems")["without an answer"].to_list() == [0, 10]
    assert any("10 of student ('I cannot say' in the dictionary, row 1)" in note for note in answer.notes)
    both = sanov.fidelity(
        {"prediction": silent, "label": labels}, {"prediction": student}, answers="number", draws=1000
    )
    assert both.values["agreement"] == 35 / 40
    told = (
        "in 5 examples neither teacher nor student gives an answer, which counts as the same; without them they agree"
    )
    assert f"{told} on {100 * 30 / 35:.1f} %" in both.notes


def test_examples_without_a_label_are_dropped_and_that_is_said(examples):
    labels = examples["labels"].with_columns(label=pl.when(pl.int_range(ROWS) < 40).then(None).otherwise("label"))
    answer = sanov.fidelity(examples["teacher"], examples["student"], labels, draws=1000)
    assert answer.values["examples"] == ROWS - 40
    assert "dropped: 40 examples without a label" in answer.notes
    kept = [examples[name][40:] for name in ("teacher", "student", "labels")]
    assert answer.values == sanov.fidelity(*kept, draws=1000).values


@pytest.mark.parametrize("given", [0, 100, ROWS])
def test_labels_that_one_file_lacks_are_those_of_the_next(examples, given):
    """The teacher's file has some of the labels, the last one all of them, in another order."""
    labels = examples["labels"]["label"]
    some = examples["teacher"].with_columns(label=pl.when(pl.int_range(ROWS) < given).then(labels))
    answer = sanov.fidelity(some, examples["student"], examples["labels"].reverse(), draws=1000)
    whole = sanov.fidelity(examples["teacher"], examples["student"], examples["labels"], draws=1000)
    assert answer.values == whole.values
    assert not [note for note in answer.notes if note.startswith("dropped")]


def test_an_infinite_divergence_is_told(examples):
    p = np.tile([0.5, 0.5], (40, 1))
    sure = p.copy()
    sure[:3] = [1.0, 0.0]
    columns = {f"{name}_prob_{k}": q[:, k] for name, q in (("teacher", p), ("student", sure)) for k in (0, 1)}
    answer = sanov.fidelity({"label": [0] * 40, **columns}, draws=1000)
    assert answer.values["forward_kl"] == np.inf
    assert answer.values["jsd"] == pytest.approx(
        3 / 40 * (np.log(4 / 3) / 2 + np.log(2 / 3) / 4 + np.log(2) / 4), rel=0.5
    )
    assert any(note.startswith("forward KL of teacher, student is infinite: in 3 examples") for note in answer.notes)
    assert json.loads(json.dumps(answer.to_dict()["values"]))["forward_kl"] is None


def test_confidence_is_that_of_the_answer_given():
    """Ten of forty answers are not the most probable class, and five are no class at all."""
    p = np.tile([0.9, 0.1], (40, 1))
    given = ["no"] * 25 + ["yes"] * 10 + ["perhaps"] * 5
    student = {"prediction": given, "prob_no": p[:, 0], "prob_yes": p[:, 1]}
    labels = ["no"] * 20 + ["yes"] * 20
    answer = sanov.fidelity({"prediction": labels, "label": labels}, student, draws=1000)
    found = {row["of"]: row["value"] for row in answer.to_frame().to_dicts() if row["statistic"] == "ECE"}
    # of 25 answers given with 0.9, 20 are right; of 10 given with 0.1, all are; the other 5 have no confidence
    assert found == {"student": pytest.approx((25 * abs(0.9 - 20 / 25) + 10 * abs(0.1 - 1)) / 35)}
    assert "student: in 15 examples the answer is not the most probable class" in answer.notes


def test_rationales_need_a_package_and_say_which(examples, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    tables = [examples[name].with_columns(rationale=pl.lit("so")) for name in ("teacher", "student")]
    with pytest.raises(MissingExtra, match=r"pip install 'sanov\[rationale\]'"):
        sanov.fidelity(*tables)


# -- every form it can be saved in ------------------------------------------------------------------------------------


def test_what_is_saved_is_what_was_said(examples, screen, tmp_path):
    wide(examples, "teacher", "student", "baseline").write_csv("wide.csv")
    answer = sanov.fidelity("wide.csv", draws=1000)
    assert "saved in answer.json" in screen("wide.csv", FAST, "--out", "answer.json")
    for place in ("answer.xlsx", "answer.parquet"):
        answer.save(place)
    answer.files["examples.csv"](tmp_path / "examples.csv")
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["values"] == json.loads(json.dumps(answer.to_dict()["values"]))
    assert pl.read_parquet("answer.parquet").equals(answer.to_frame())
    with pd.ExcelFile("answer.xlsx") as book:
        assert {"answer", "Statistics", "Error transfer", "McNemar", "Reliability"} <= set(book.sheet_names)
    rows = pl.read_csv("examples.csv")
    assert rows.columns == ["id", "teacher", "student", "baseline", "label", "error transfer"]
    shares = rows["error transfer"].value_counts(normalize=True)
    found = {row["cell"]: row["share"] for row in answer.to_frame("Error transfer")[:5].to_dicts() if row["share"]}
    assert dict(shares.iter_rows()) == pytest.approx(found)


def test_the_page_draws_every_figure_and_asks_no_host(examples, tmp_path):
    tasks = pl.Series(["arc"] * 120 + ["boolq"] * 120)
    table = wide(examples, "teacher", "student", "baseline").with_columns(task=tasks)
    answer = sanov.fidelity(table, draws=1000)
    probe = 'return [...document.querySelectorAll(".role-axis-title text")].map(text => text.textContent);'
    seen = look(pages.render(answer.page()), tmp_path, probe=probe)
    assert (seen.console, seen.requests) == ([], [])
    assert len(re.findall(r'<svg [^>]*class="marks"', seen.dom)) == len(answer.figures) == 5
    wanted = {
        "examples with the same answer",
        "examples that not both have right",
        "share right",
        "difference of accuracies",
    }
    assert wanted <= set(seen.probe)
    assert answer.sentence[:40] in seen.dom
