"""A mistake ends with status 2 and one message that says where, what was found and what to do; nothing is written."""

import errno
import os

import numpy as np
import polars as pl
import pytest

import tiny_bert
from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import parse
from sanov.learning.distil import Validation
from sanov.learning.training import Training
from sanov.systems import sinkd
from systems.sinkd_toy import SMALL, config, table

QUICK = ["student.width=4", "training.epochs=1", "training.batch_size=32", "--quiet"]


def archive(path, **changes):
    data = table()
    arrays = {"inputs": data.inputs, "logits": data.logits, "labels": data.labels} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


def spoilt(array, value):
    array = array.copy()
    array[7, 1] = value
    return array


def frame(**more):
    data = table()
    columns = {f"x{j}": data.inputs[:, j] for j in range(4)} | {
        f"logit_{c}": data.logits[:, j] for j, c in enumerate("abc")
    }
    return pl.DataFrame(columns | {"label": data.labels} | more)


# -- through the command line -----------------------------------------------------------------------------------------

ARCHIVES = {
    "NaN": ({"inputs": spoilt(table().inputs, np.nan)}, (), "t.npz, array 'inputs': NaN or an infinite value in row 8"),
    "infinite logits": (
        {"logits": spoilt(table().logits, np.inf)},
        (),
        "t.npz, array 'logits': NaN or an infinite value",
    ),
    "label out of range": ({"labels": table().labels + 1}, (), "the label is '3'; expected 0 to 2"),
    "one class of labels": ({"labels": np.zeros(96, dtype=int)}, (), "all labels are of one class ('0')"),
    "one class of logits": ({"logits": table().logits[:, :1]}, (), "there is one class; expected at least two"),
    "no logits": ({"logits": None}, (), "there are no teacher logits. Add the array `logits`"),
    "transport alone": ({"labels": None}, ("alpha=0",), "transport alone cannot tell rows apart. Add labels"),
    "sorting three classes": (
        {},
        ("transport.sort=true",),
        "transport.sort: there are 3 classes; expected two classes",
    ),
    "sorting with a penalty": ({}, ("transport.sort=true", "identity_penalty=1"), "drop identity_penalty"),
    "split transport": (
        {},
        ("training.micro_batch=8",),
        "'transport' is no sum over rows, and training.micro_batch splits",
    ),
    "epsilon": ({}, ("epsilon=0",), "epsilon: the value is '0'; expected a number > 0"),
    "temperature": ({}, ("temperature=-1",), "temperature: the value is '-1'; expected a number > 0"),
    "alpha": ({}, ("alpha=1.5",), "alpha: the value is '1.5'; expected a number >= 0 and <= 1"),
    "unknown option": ({}, ("epsilo=1",), "did you mean 'epsilon'?"),
    "arrays for a teacher": ({}, ("teacher=bert",), "there is no such folder"),
}


@pytest.mark.parametrize(("changes", "options", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives(command, tmp_path, changes, options, message):
    archive(tmp_path / "t.npz", **changes)
    status, told = command("fit", "sinkd", "t.npz", "--out", "student", *QUICK, *options)
    assert status == 2
    assert message.lower() in told.lower()
    assert len([line for line in told.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in told
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npz"]
    assert not left


TABLES = {
    "column of text": (frame(x2=["far"] * 96), (), "column 'x2': is text (such as 'far')"),
    "missing cell": (frame(x2=[None, *[1.0] * 95]), (), "row 1, column 'x2': the cell is missing"),
    "infinite logit": (frame(logit_b=[*[1.0] * 95, np.inf]), (), "row 96, column 'logit_b': the cell is inf"),
    "unknown label": (
        frame(label=["a", "b", "c", "d"] * 24),
        (),
        "row 4: the label is 'd'; expected one of 'a', 'b', 'c'",
    ),
    "unknown column": (frame(), ("map.label=lable",), "there is no column 'lable'. Did you mean 'label'?"),
}


@pytest.mark.parametrize(("data", "options", "message"), TABLES.values(), ids=TABLES)
def test_tables(command, tmp_path, data, options, message):
    data.write_csv(tmp_path / "t.csv")
    status, told = command("fit", "sinkd", "t.csv", "--out", "student", *QUICK, *options)
    assert status == 2
    assert message in told
    assert not (tmp_path / "student").exists()


def test_files(command, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder").mkdir()
    frame().write_csv(tmp_path / "semicolons.csv", separator=";")
    for name, message in {
        "empty.csv": "empty.csv: is empty",
        "folder": "folder: is a folder",
        "semicolons.csv": "delimiter",
        "nothing.npz": "no such file",
        "nothing.csv": "no such file",
    }.items():
        status, told = command("fit", "sinkd", name, "--out", "student", *QUICK)
        assert status == 2
        assert message in told
        assert not (tmp_path / "student").exists()
    assert command("fit", "sinkd", "semicolons.csv", "map.delimiter=;", "--out", "student", *QUICK)[0] == 0


def test_places_that_cannot_be_written(command, tmp_path):
    archive(tmp_path / "t.npz")
    (tmp_path / "taken").write_text("mine")
    status, told = command("fit", "sinkd", "t.npz", "--out", "taken", *QUICK)
    assert (status, (tmp_path / "taken").read_text()) == (2, "mine")
    assert "is a file" in told
    assert command("fit", "sinkd", "t.npz", "--out", "none/student", *QUICK)[0] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    status, told = command("fit", "sinkd", "t.npz", "--out", "mine", *QUICK)
    assert status == 2
    assert "is a folder with other files in it" in told
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.filterwarnings("default::sanov.core.errors.SanovWarning")
def test_nothing_to_resume_is_said(command, tmp_path):
    archive(tmp_path / "t.npz")
    status, told = command("fit", "sinkd", "t.npz", "--out", "student", "--resume", *QUICK)
    assert status == 0
    assert "there is nothing to resume in student" in told


def test_a_folder_without_permission(command, tmp_path, monkeypatch):
    """Told by the trial that is made before any work; simulated, for the superuser may write anywhere."""

    def refused(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    archive(tmp_path / "t.npz")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    status, told = command("fit", "sinkd", "t.npz", "--out", "student", *QUICK)
    assert status == 2
    assert "student: cannot be written (Permission denied)" in told
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_up_leaves_nothing_half_written(command, tmp_path, monkeypatch, reason):
    archive(tmp_path / "t.npz")
    assert command("fit", "sinkd", "t.npz", "--out", "student", *QUICK)[0] == 0
    before = files.digest(tmp_path / "student")
    sync = os.fsync

    def full(handle):
        if full.after == 0:
            raise OSError(reason, os.strerror(reason))
        full.after -= 1
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    for after in (0, 3):
        full.after = after
        status, told = command("fit", "sinkd", "t.npz", "--out", "other", *QUICK)
        assert status == 2
        assert os.strerror(reason) in told
        assert not (tmp_path / "other" / "config.json").exists()
        assert not list(tmp_path.rglob("*.tmp-*"))
    monkeypatch.undo()
    assert files.digest(tmp_path / "student") == before


def test_apply_without_a_student(command, tmp_path):
    archive(tmp_path / "t.npz")
    status, told = command("apply", "sinkd", "t.npz")
    assert status == 2
    assert "there is no fitted student" in told
    assert "--fitted DIR" in told
    status, told = command("apply", "sinkd", "t.npz", "--fitted", "student")
    assert status == 2
    assert "student: there is no such folder" in told


def test_apply_to_other_columns(command, tmp_path):
    archive(tmp_path / "t.npz")
    command("fit", "sinkd", "t.npz", "--out", "student", *QUICK)
    archive(tmp_path / "narrow.npz", inputs=table().inputs[:, :2])
    status, told = command("apply", "sinkd", "narrow.npz", "--fitted", "student", "--out", "answer.csv")
    assert status == 2
    assert "expected 4 features" in told
    assert not (tmp_path / "answer.csv").exists()


# -- a Hugging Face teacher -------------------------------------------------------------------------------------------


def test_teachers(tmp_path):
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    bert = str(tiny_bert.save(tmp_path / "bert"))
    texts = pl.DataFrame({"text": ["good film", "bad film"], "label": ["pos", "neg"]})
    for source, message in {
        "features": (frame(), "reads texts, and the table has none"),
        "logits": (texts.with_columns(logit_neg=0.5, logit_pos=-0.5), "the table has teacher logits, and a teacher"),
        "labels": (texts.with_columns(label=pl.Series(["pos", "mixed"])), "row 2: the label is 'mixed'"),
        "numbers": (texts.with_columns(label=pl.Series([0, 2])), "row 2: the label is '2'; expected 0 to 1"),
    }.values():
        with pytest.raises(InputError, match=message):
            sinkd.read([source], parse(sinkd.Config, {"teacher": bert}))
    assert sinkd.read([texts], parse(sinkd.Config, {"teacher": bert})).classes == ("neg", "pos")


IDS = [f"r{row}" for row in range(96)]
INPUTS = frame().drop("logit_a", "logit_b", "logit_c").with_columns(id=pl.Series(IDS))
LOGITS = frame().select("^logit_.*$").with_columns(id=pl.Series(IDS))

PAIRS = {
    "ids of others": (
        INPUTS,
        LOGITS.with_columns(id="x" + pl.col("id")),
        "teacher.csv: 96 of 96 row ids of rows.csv have no logits ('r0', 'r1', 'r2')",
    ),
    "ids moved by one row": (
        INPUTS,
        LOGITS.with_columns(id=pl.Series([*IDS[1:], "r96"])),
        "teacher.csv: 1 of 96 row ids of rows.csv have no logits ('r0')",
    ),
    "an id of the rows twice": (
        INPUTS.with_columns(id=pl.Series(["r0", *IDS[:95]])),
        LOGITS,
        "rows.csv, row 2: the row id 'r0' occurs twice; expected one id a row",
    ),
    "an id of the teacher twice": (INPUTS, pl.concat([LOGITS, LOGITS.head(1)]), "teacher.csv, row 97: the row id 'r0'"),
    "a missing id": (
        INPUTS,
        LOGITS.with_columns(id=pl.Series([None, *IDS[1:]])),
        "teacher.csv, row 1: the row id is missing",
    ),
    "no ids": (INPUTS, LOGITS.drop("id"), "teacher.csv: there is no column 'id' of row ids. Add one"),
    "a class that the teacher lacks": (
        INPUTS.with_columns(label=pl.Series(["a", "b", "c"] * 32)),
        LOGITS.drop("logit_c"),
        "rows.csv, row 3: the label is 'c'; expected one of 'a', 'b'",
    ),
    "classes of other names": (
        INPUTS.with_columns(label=pl.Series(["x", "y", "z"] * 32)),
        LOGITS,
        "rows.csv, row 1: the label is 'x'; expected one of 'a', 'b', 'c'",
    ),
}


@pytest.mark.parametrize(("inputs", "logits", "message"), PAIRS.values(), ids=PAIRS)
def test_rows_and_their_teacher(command, tmp_path, inputs, logits, message):
    inputs.write_csv(tmp_path / "rows.csv")
    logits.write_csv(tmp_path / "teacher.csv")
    status, told = command("fit", "sinkd", "rows.csv", "teacher.csv", "--out", "student", *QUICK)
    assert status == 2
    assert message in told
    assert not (tmp_path / "student").exists()


def test_a_teacher_may_have_a_class_that_no_label_has(command, tmp_path):
    INPUTS.with_columns(label=pl.Series(["a", "c"] * 48)).write_csv(tmp_path / "rows.csv")
    LOGITS.reverse().write_csv(tmp_path / "teacher.csv")
    assert command("fit", "sinkd", "rows.csv", "teacher.csv", "--out", "student", *QUICK)[0] == 0


def test_teachers_that_cannot_be_asked(command, tmp_path):
    """Each is told through the command line, and leaves no folder behind."""
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    pl.DataFrame({"text": ["good film", "bad film"] * 20, "label": ["pos", "neg"] * 20}).write_csv(tmp_path / "t.csv")
    without, other = (tiny_bert.save(tmp_path / name) for name in ("without", "other"))
    (without / "tokenizer.json").unlink()
    (without / "vocab.txt").unlink()
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"good": 5', '"good": 99'))
    tiny_bert.save(tmp_path / "encoder", head=False, num_labels=2)
    tiny_bert.save(tmp_path / "classes", classes=("sad", "glad", "mad"))
    for folder, message in {
        "without": "without: the folder has no tokenizer (tokenizer.json or vocab.txt)",
        "other": "other: the tokenizer gives the token 99, and the model knows 11",
        "encoder": "encoder: is an encoder without a classification head, which gives no logits. Fine-tune it",
        "classes": "row 1: the label is 'pos'; expected one of 'sad', 'glad', 'mad'",
    }.items():
        status, told = command("fit", "sinkd", "t.csv", f"teacher={folder}", "--out", "student", *QUICK)
        assert (status, message in told) == (2, True), told
        assert not (tmp_path / "student").exists()


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_an_epsilon_that_invites_collapse():
    with pytest.warns(SanovWarning, match="epsilon = 4 invites collapse.*set epsilon to"):
        sinkd.fit(table(), config(epsilon=4.0))


def test_rounds_that_leave_marginals_unmet():
    with pytest.warns(SanovWarning, match=r"after 1 rounds a row of the plan is off by \d+%"):
        sinkd.fit(table(), config(iterations=1, epsilon=0.01))


def test_batches_of_one_row():
    with pytest.warns(SanovWarning, match=r"last batch of an epoch has one row.*validation.drop_last=true"):
        sinkd.fit(table(33), config())
    with pytest.warns(SanovWarning, match="every batch has one row, on which transport is twice the total variation"):
        sinkd.fit(table(9), config(training=Training(batch_size=1, epochs=1)))
    kept = Validation(share=0.0, select="last", drop_last=True)
    assert len(sinkd.fit(table(33), config(validation=kept)).history) == 4
    sinkd.fit(table(33), config(transport_weight=0.0))


def test_a_config_says_what_is_wrong():
    with pytest.raises(InputError, match=r"training\.epochs.*>= 1"):
        parse(sinkd.Config, {"training.epochs": "0"})
    with pytest.raises(InputError, match=r"unroll \| envelope \| implicit"):
        parse(sinkd.Config, {"gradient": "none"})
    assert parse(sinkd.Config, {"student": SMALL.model_dump()}).student == SMALL
