"""Three doors, one table; and every mistake of the user's is told before anything is written."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sanov.core.errors import InputError, SanovWarning
from sanov.data.distillation import DistilTable, encode_labels, read
from sanov.data.distillation_sources import Columns

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(6, 2))
LOGITS = RNG.normal(size=(6, 3))
LABELS = np.array([0, 1, 2, 0, -1, 2])
NAMES = ("cat", "dog", "emu")


def frame(**more):
    columns = {"id": [f"r{i}" for i in range(6)], "a": INPUTS[:, 0], "b": INPUTS[:, 1]}
    columns |= {f"logit_{name}": LOGITS[:, j] for j, name in enumerate(NAMES)}
    columns["label"] = [None if label < 0 else NAMES[label] for label in LABELS]
    return pl.DataFrame(columns | more)


def same(table, classes=NAMES):
    np.testing.assert_array_equal(table.inputs, INPUTS)
    np.testing.assert_array_equal(table.logits, LOGITS)
    np.testing.assert_array_equal(table.labels, LABELS)
    assert table.classes == classes


# -- the doors --------------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=INPUTS, logits=LOGITS, labels=LABELS, classes=np.array(NAMES))
    table = read([tmp_path / "t.npz"])
    same(table)
    assert table.features == ("x1", "x2")


def test_npz_without_names_of_classes(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=INPUTS, logits=LOGITS, labels=LABELS)
    same(read([tmp_path / "t.npz"]), classes=("0", "1", "2"))


def test_npz_of_texts(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=np.array(["a b", "c"]), logits=LOGITS[:2])
    table = read([tmp_path / "t.npz"])
    assert table.is_text
    assert table.inputs == ("a b", "c")
    assert table.labels is None


def test_texts_as_pandas_and_lists_have_them():
    for texts in (pd.Series(["a b", "c"]).to_numpy(dtype=object), ["a b", "c"]):
        assert read([{"inputs": texts, "logits": LOGITS[:2]}]).inputs == ("a b", "c")


def test_dictionary_of_arrays():
    same(read([{"inputs": INPUTS, "logits": LOGITS, "labels": LABELS, "classes": NAMES}]))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_with_logit_columns(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    getattr(frame(), f"write_{suffix}")(path)
    table = read([path])
    same(table)
    assert table.features == ("a", "b")
    assert table.ids == tuple(f"r{i}" for i in range(6))


def test_pandas_and_polars_agree():
    polars, pandas = read([frame()]), read([frame().to_pandas()])
    assert polars.digest() == pandas.digest()
    assert isinstance(pandas.source, pd.DataFrame)


def test_list_column_of_logits(tmp_path):
    rows = [{"a": a, "b": b, "logits": list(z)} for (a, b), z in zip(INPUTS, LOGITS, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    np.testing.assert_array_equal(read([tmp_path / "t.jsonl"]).logits, LOGITS)


def test_columns_of_other_names():
    table = frame().rename({"label": "y", "id": "uid", **{f"logit_{name}": f"z.{name}" for name in NAMES}})
    names = Columns(label="y", id="uid", logits="z.", ignore=("b",))
    found = read([table], names)
    np.testing.assert_array_equal(found.inputs, INPUTS[:, :1])
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.classes == NAMES


def test_column_of_texts():
    table = read([pl.DataFrame({"text": ["a", "b"], "label": ["neg", "pos"], "stars": [1, 2]})])
    assert table.inputs == ("a", "b")
    assert table.classes == ("neg", "pos")
    assert table.logits is None


def test_two_tables_are_joined_by_id(tmp_path):
    full = frame()
    full.select("id", "a", "b", "label").write_csv(tmp_path / "inputs.csv")
    shuffled = (
        full.select("id", "^logit_.*$")
        .reverse()
        .vstack(pl.DataFrame({"id": ["extra"], **{f"logit_{name}": [0.5] for name in NAMES}}))
    )
    shuffled.write_parquet(tmp_path / "logits.parquet")
    same(read([tmp_path / "inputs.csv", tmp_path / "logits.parquet"]))
    same(read([tmp_path / "logits.parquet", tmp_path / "inputs.csv"]))


def test_a_table_of_inputs_and_an_npz_of_logits(tmp_path):
    np.savez(tmp_path / "l.npz", logits=LOGITS, ids=np.arange(6))
    table = read([pl.DataFrame({"id": range(6), "a": INPUTS[:, 0]}), tmp_path / "l.npz"])
    np.testing.assert_array_equal(table.logits, LOGITS)


# -- the table --------------------------------------------------------------------------------------------------------


def test_take_keeps_rows_together():
    extras = {"other": LOGITS[::-1].copy()}
    table = DistilTable(INPUTS, NAMES, LOGITS, LABELS, ids=tuple("abcdef"), extras=extras)
    part = table.take([4, 0])
    np.testing.assert_array_equal(part.inputs, INPUTS[[4, 0]])
    np.testing.assert_array_equal(part.extras["other"], LOGITS[[1, 5]])
    assert part.ids == ("e", "a")
    assert part.n_labelled == 1


def test_aligned_puts_classes_in_another_order():
    table = DistilTable(INPUTS, NAMES, LOGITS, LABELS)
    other = table.aligned(("emu", "cat", "dog"))
    np.testing.assert_array_equal(other.logits, LOGITS[:, [2, 0, 1]])
    names = [None if label < 0 else other.classes[label] for label in other.labels]
    assert names == [None if label < 0 else NAMES[label] for label in LABELS]


def test_labels_by_number_follow_the_order_of_named_classes():
    labels, classes = encode_labels(["2", "0", None, "-1"], NAMES, name="t")
    assert labels.tolist() == [2, 0, -1, -1]
    assert classes == NAMES


def test_labels_by_number_are_names_where_classes_are_numbers():
    labels, _ = encode_labels(["3", "1"], ("1", "2", "3"), name="t")
    assert labels.tolist() == [2, 0]


BOOLEAN = pl.DataFrame({"x": [1.5, 2.5], "logit_true": [3.1, 0.2], "logit_false": [0.2, 3.1], "label": [True, False]})


@pytest.mark.parametrize("names", [("true", "false"), ("false", "true"), ("True", "False")], ids=str)
@pytest.mark.parametrize("kind", ["csv", "pandas csv", "parquet", "pandas", "dictionary"])
def test_true_and_false_are_the_classes_of_those_names(names, kind, tmp_path):
    """Never the position of a column: the teacher of this table is right in both rows."""
    table = BOOLEAN.select("x", *(pl.col(f"logit_{name.lower()}").alias(f"logit_{name}") for name in names), "label")
    match kind:
        case "csv":
            table.write_csv(tmp_path / "t.csv")
        case "pandas csv":
            table.to_pandas().to_csv(tmp_path / "t.csv", index=False)
        case "parquet":
            table.write_parquet(tmp_path / "t.parquet")
    logits = table.select("^logit_.*$").to_numpy()
    arrays = {"inputs": np.ones((2, 1)), "logits": logits, "classes": names, "labels": np.array([True, False])}
    source = {"pandas": table.to_pandas(), "dictionary": arrays}.get(kind, tmp_path / f"t.{kind.split()[-1]}")
    found = read([source])
    assert found.classes == names
    np.testing.assert_array_equal(found.labels, found.logits.argmax(axis=1))


def test_true_and_false_are_one_and_zero_where_classes_are_numbered():
    assert read(
        [{"inputs": INPUTS[:2], "logits": LOGITS[:2, :2], "labels": np.array([True, False])}]
    ).labels.tolist() == [1, 0]
    assert encode_labels(["true", None, "false"], None, name="t")[1] == ("false", "true")
    assert encode_labels(["1", "0"], ("false", "true"), name="t")[0].tolist() == [1, 0]


def test_a_class_of_the_name_minus_one_is_a_class():
    table = pl.DataFrame({"x": [1.5, 2.5], "logit_-1": [3.1, 0.1], "logit_1": [0.2, 2.2], "label": [-1, 1]})
    assert read([table]).labels.tolist() == [0, 1]
    assert encode_labels(["-1", "+1", None], ("-1", "+1"), name="t")[0].tolist() == [0, 1, -1]
    assert encode_labels(["-1", "1", "0"], None, name="t")[0].tolist() == [-1, 1, 0]


@pytest.mark.parametrize("label", ["-1", "007", "1", "true"])
def test_labels_and_ids_are_as_they_are_written(label, tmp_path):
    """Codes keep their zeros, and whole numbers are the same with a point and without one."""
    (tmp_path / "t.csv").write_text(f"id,x,logit_a,logit_b,label\n{label},1.5,3.1,0.2,a\n")
    assert read([tmp_path / "t.csv"]).ids == (label,)


def test_codes_keep_their_form(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,logit_01,logit_02,label\n007,1.50,3.1,0.2,01\n7,007,0.1,2.2,02\n")
    table = read([tmp_path / "t.csv"])
    assert (table.ids, table.inputs, table.labels.tolist()) == (("007", "7"), ("1.50", "007"), [0, 1])
    np.savez(tmp_path / "l.npz", logits=LOGITS[:2], ids=np.array(["7", "007"]))
    (tmp_path / "i.csv").write_text("id,x\n007,1.5\n7,2.5\n")
    np.testing.assert_array_equal(read([tmp_path / "i.csv", tmp_path / "l.npz"]).logits, LOGITS[[1, 0]])


@pytest.mark.parametrize("ids", ["12345678901234567890 12345678901234567891", "1e3 1000", "inf 1"])
def test_ids_that_look_like_numbers_are_told_apart(ids, tmp_path):
    first, second = ids.split()
    (tmp_path / "t.csv").write_text(f"id,x\n{first},1.5\n{second},2.5\n")
    assert read([tmp_path / "t.csv"]).ids == (first, second)
    assert read([pl.DataFrame({"id": [1e20, 1.0], "x": [1, 2]})]).ids == ("1e+20", "1.0")


def test_labels_that_were_written_as_floats_are_whole_numbers(tmp_path):
    """pandas gives whole numbers a point where one of them is missing."""
    table = pd.DataFrame({"x": [1.5, 2.5, 3.5], "logit_a": 1.5, "logit_b": 2.5, "label": [1, None, 0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert "1.0" in (tmp_path / "t.csv").read_text()
    for source in (table, tmp_path / "t.csv"):
        assert read([source]).labels.tolist() == [1, -1, 0]
    arrays = {"inputs": INPUTS[:3], "logits": LOGITS[:3], "labels": np.array([1.0, np.nan, 0.0])}
    assert read([arrays]).labels.tolist() == [1, -1, 0]


def test_a_class_may_be_named_na(tmp_path):
    table = pl.DataFrame({"x": [1.5, 2.5, 3.5], "logit_NA": 3.5, "logit_EU": 0.5, "label": ["NA", "EU", None]})
    table.write_csv(tmp_path / "t.csv")
    for source in (table, tmp_path / "t.csv"):
        assert read([source]).labels.tolist() == [0, 1, -1]


def test_digest_changes_with_any_part():
    tables = [
        DistilTable(INPUTS, NAMES, LOGITS, LABELS),
        DistilTable(INPUTS + 1, NAMES, LOGITS, LABELS),
        DistilTable(INPUTS, NAMES, LOGITS + 1, LABELS),
        DistilTable(INPUTS, NAMES, LOGITS, LABELS[::-1].copy()),
    ]
    assert len({table.digest() for table in tables}) == 4
    shapes = [DistilTable(np.arange(12.0).reshape(shape), NAMES) for shape in [(4, 3), (3, 4)]]
    assert shapes[0].digest() != shapes[1].digest()


# -- mistakes ---------------------------------------------------------------------------------------------------------


def spoilt(array, row, value):
    array = array.copy()
    array[row, 0] = value
    return array


MISTAKES = {
    "nothing": ([], "no data were given"),
    "four sources": (["a.csv"] * 4, "4 sources"),
    "three tables": ([frame()] * 3, "3 sources with rows"),
    "missing file": (["none.npz"], "no such file"),
    "missing table": (["none.csv"], "no such file"),
    "unknown array": ([{"inputs": INPUTS, "logits": LOGITS, "lables": LABELS}], "did you mean 'labels'"),
    "no inputs": ([{"logits": LOGITS}], "no inputs for the student"),
    "image": ([{"inputs": INPUTS.reshape(6, 2, 1), "logits": LOGITS}], r"shape \(6, 2, 1\).*reshape"),
    "features as text": (
        [{"inputs": INPUTS.astype(str), "logits": LOGITS}],
        r"array 'inputs': is of shape \(6, 2\) and type <U.*categories.*one text a row",
    ),
    "features as objects": (
        [{"inputs": np.array([[1.5, "red"], [2.5, "blue"]], dtype=object), "logits": LOGITS[:2]}],
        "type object.*categories",
    ),
    "numbers as objects": ([{"inputs": INPUTS.astype(object), "logits": LOGITS}], r"type object.*astype\(float\)"),
    "logits as text": ([{"inputs": INPUTS, "logits": LOGITS.astype(str)}], r"array 'logits'.*astype\(float\)"),
    "texts as bytes": ([{"inputs": np.array([b"a", b"c"]), "logits": LOGITS[:2]}], "array 'inputs'.*decode"),
    "texts and holes": (
        [{"inputs": np.array(["a", None, "c", 1.5], dtype=object), "logits": LOGITS[:4]}],
        "array 'inputs', row 2: is no text.*2 such rows",
    ),
    "rows differ": ([{"inputs": INPUTS[:5], "logits": LOGITS}], "inputs has 5 rows and logits has 6"),
    "NaN input": ([{"inputs": spoilt(INPUTS, 3, np.nan), "logits": LOGITS}], "array 'inputs'.*row 4.*1 such row"),
    "infinite logit": ([{"inputs": INPUTS, "logits": spoilt(LOGITS, 2, np.inf)}], "array 'logits'.*row 3.*1 such row"),
    "names": ([{"inputs": INPUTS, "logits": LOGITS, "classes": NAMES[:2]}], "3 columns and classes 2 names"),
    "one class": ([{"inputs": INPUTS, "logits": LOGITS[:, :1]}], "there is one class.*0 and z"),
    "label out of range": ([{"inputs": INPUTS, "logits": LOGITS, "labels": LABELS + 1}], "row 3: the label is '3'"),
    "labels of two columns": ([{"inputs": INPUTS, "logits": LOGITS, "labels": LOGITS}], "array 'labels'.*one value"),
    "unknown label": ([frame(label=["cat", "dog", "ant", "cat", "cat", "cat"])], "row 3: the label is 'ant'.*'emu'"),
    "true of other names": ([frame(label=[True, False] * 3)], "row 1: the label is 'true'.*'emu'"),
    "0 and 1 of true and false": (
        [BOOLEAN.with_columns(label=pl.Series([1, 0]))],
        "the labels are 0 and 1; expected true and false, as the classes are named",
    ),
    "signs": ([pl.DataFrame({"x": [1, 2, 3], "label": [-1, 1, -1]})], "the labels are -1 and 1.*logit_-1"),
    "signs as text": ([pl.DataFrame({"x": [1, 2], "label": ["-1", "+1"]})], "the labels are -1 and 1"),
    "signs of two outputs": (
        [{"inputs": INPUTS[:2], "logits": LOGITS[:2, :2], "labels": np.array([-1, 1])}],
        "the labels are -1 and 1",
    ),
    "column of text": ([frame(a=["x", "y", "z", "x", "y", "z"])], "column 'a'.*is text"),
    "infinite cell": ([frame(logit_dog=[1.0, 2.0, np.inf, 4.0, 5.0, 6.0])], "row 3, column 'logit_dog'.*inf"),
    "missing feature": ([frame(b=[1, None, 3, 4, 5, 6])], "row 2, column 'b'.*missing"),
    "missing text": ([pl.DataFrame({"text": ["a", None]})], "row 2, column 'text'.*missing"),
    "ragged lists": ([pl.DataFrame({"a": [1, 2], "logits": [[1.0, 2.0], [1.0]]})], "row 2: the list has 1 number"),
    "id twice": ([frame(id=["r0", "r1", "r1", "r3", "r4", "r5"])], "row 3: the row id 'r1' occurs twice"),
    "no ids": ([frame().select("a", "b"), frame().select("id", "^logit_.*$")], "no column 'id' of row ids"),
    "two of inputs": ([frame().select("id", "a"), frame().select("id", "b")], "neither has a column"),
    "two of logits": ([frame(), frame()], "both hold logits"),
    "missing ids": (
        [frame().select("id", "a"), frame().select("id", "^logit_.*$").filter(pl.col("id") < "r2")],
        "4 of 6 row ids of .* have no logits \\('r2', 'r3', 'r4'\\)",
    ),
}


@pytest.mark.parametrize(("sources", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(sources, message):
    with pytest.raises(InputError, match=f"(?si){message}"):
        read(sources)


def test_missing_ids_are_told_with_the_file(tmp_path):
    frame().select("id", "^logit_.*$").head(2).write_csv(tmp_path / "teacher.csv")
    with pytest.raises(InputError, match=r"teacher\.csv: 4 of 6"):
        read([frame().select("id", "a"), tmp_path / "teacher.csv"])


def test_damaged_archives(tmp_path):
    path = tmp_path / "t.npz"
    for content in (b"", b"PK\x03\x04 not an archive"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"t\.npz.*no archive of plain arrays"):
            read([path])
    np.savez(path, inputs=np.array([{}, []], dtype=object))
    with pytest.raises(InputError, match="array of objects"):
        read([path])
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read([tmp_path / "folder.npz"])


def test_empty_file_and_wrong_delimiter(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read([tmp_path / "empty.csv"])
    frame().write_csv(tmp_path / "t.csv", separator=";")
    with pytest.raises(InputError, match="delimiter"):
        read([tmp_path / "t.csv"])
    same(read([tmp_path / "t.csv"], Columns(delimiter=";")))


def test_a_column_that_is_not_there():
    with pytest.raises(InputError, match="Did you mean 'label'"):
        read([frame()], Columns(label="labels"))
    with pytest.raises(InputError, match="no column begins with 'z_'"):
        read([frame()], Columns(logits="z_"))


def test_probabilities_and_votes_are_told():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    with pytest.warns(SanovWarning, match="look like probabilities"):
        read([{"inputs": INPUTS, "logits": probabilities}])
    with pytest.warns(SanovWarning, match="whole numbers"):
        read([{"inputs": INPUTS, "logits": np.rint(LOGITS * 5)}])


@pytest.mark.parametrize("labels", [["cat", "dog", "cat"], [1, 2, 3]], ids=["names", "numbers from 1"])
def test_labels_of_classes_without_names_ask_for_the_names(labels, tmp_path):
    """The remedy works: what the message asks for makes the table readable."""
    arrays = {"inputs": INPUTS[:3], "logits": LOGITS[:3], "labels": np.array(labels)}
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(
        InputError, match=r"the label is '.*Add the array `classes`.*in the order of the columns of logits"
    ):
        read([tmp_path / "t.npz"])
    names = np.array(["dog", "cat", "emu"] if labels[0] == "cat" else [2, 1, 3])
    assert read([arrays | {"classes": names}]).labels.tolist()[:2] == [1, 0]
    rows = pl.DataFrame({"a": INPUTS[:3, 0], "logits": LOGITS[:3].tolist(), "label": labels})
    with pytest.raises(InputError, match="call these columns logit_NAME"):
        read([rows])


def test_labels_of_named_classes_ask_for_the_same_names():
    with pytest.raises(InputError, match=r"'ant'.*Use the same names in both, of labels and of classes"):
        read([{"inputs": INPUTS, "logits": LOGITS, "labels": ["cat", "ant"] * 3, "classes": NAMES}])


def test_labels_that_the_fitted_classes_lack():
    table = read([pl.DataFrame({"text": ["a", "b"], "label": ["neg", "pos"]})])
    assert table.aligned(("pos", "neg")).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="row 1: the label is 'neg'"):
        table.aligned(("no", "yes"))
