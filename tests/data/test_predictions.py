"""Predictions out of tables and arrays, and joined by id."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sanov.core.errors import InputError
from sanov.data.predictions import Columns, join, open_table, parse, wide_roles

COLUMNS = Columns()


def read(source, columns=COLUMNS, **how):
    return parse(open_table(source, columns), columns, "it", **how)


def test_a_table_of_one_model():
    found = read(
        {"id": [3, 1], "prediction": ["a", "b"], "label": ["a", None], "task": ["x", "y"], "rationale": ["", "so"]}
    )
    assert found.ids.to_list() == ["3", "1"]
    assert found.answers.to_list() == ["a", "b"]
    assert found.labels.to_list() == ["a", None]
    assert found.tasks.to_list() == ["x", "y"]
    assert found.rationales.to_list() == [None, "so"]
    assert (found.rows, found.probabilities, found.classes) == (2, None, ())


def test_probabilities_and_logits_of_columns():
    p = read({"prob_a": [0.7, 0.2], "prob_b": [0.3, 0.8004]})
    assert p.classes == ("a", "b")
    assert p.answers.to_list() == ["a", "b"]  # without predictions, the most probable class
    assert p.probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-15)
    logits = np.log([[0.7, 0.3], [0.2, 0.8]]) + 5
    by_prefix = read({"logit_a": logits[:, 0], "logit_b": logits[:, 1]})
    by_option = read({"prob_a": logits[:, 0], "prob_b": logits[:, 1]}, logits=True)
    for found in (by_prefix, by_option):
        assert found.probabilities == pytest.approx(np.array([[0.7, 0.3], [0.2, 0.8]]))


@pytest.mark.parametrize("key", ["probs", "logits"])
def test_arrays_are_a_table(tmp_path, key):
    probs = np.array([[0.7, 0.3], [0.2, 0.8]])
    arrays = {
        key: np.log(probs) if key == "logits" else probs,
        "ids": np.array([5, 6]),
        "classes": np.array(["no", "yes"]),
    }
    np.savez(tmp_path / "it.npz", **arrays, labels=np.array(["yes", "yes"]))
    for source in (str(tmp_path / "it.npz"), tmp_path / "it.npz", {**arrays, "labels": ["yes", "yes"]}):
        found = read(source)
        assert found.answers.to_list() == ["no", "yes"]
        assert found.labels.to_list() == ["yes", "yes"]
        assert found.ids.to_list() == ["5", "6"]
        assert found.probabilities == pytest.approx(probs)
    np.savez(tmp_path / "it.npz", **{key: arrays[key]})
    assert read(tmp_path / "it.npz").classes == ("0", "1")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "tsv"])
def test_files_and_frames_lead_to_the_same(tmp_path, suffix):
    frame = pl.DataFrame(
        {"id": [1, 2, 3], "prediction": ["a", None, "b"], "prob_a": [0.5, 0.25, 0.125], "prob_b": [0.5, 0.75, 0.875]}
    )
    path = tmp_path / f"it.{suffix}"
    {
        "csv": frame.write_csv,
        "parquet": frame.write_parquet,
        "jsonl": frame.write_ndjson,
        "tsv": lambda place: frame.write_csv(place, separator="\t"),
    }[suffix](path)
    for source in (path, frame, frame.to_pandas(), frame.to_arrow()):
        found = read(source)
        assert found.ids.to_list() == ["1", "2", "3"]
        assert found.answers.to_list() == ["a", None, "b"]
        assert found.probabilities == pytest.approx(frame.select("prob_a", "prob_b").to_numpy())


def test_columns_of_other_names():
    columns = Columns(id="uid", prediction="class", probabilities="p_", label="truth")
    found = read({"uid": ["u"], "class": ["a"], "p_a": [0.9], "p_b": [0.1], "truth": ["b"]}, columns)
    assert [cells.to_list() for cells in (found.ids, found.answers, found.labels)] == [["u"], ["a"], ["b"]]
    assert found.classes == ("a", "b")


def test_a_wide_table_holds_several_models():
    frame = open_table(
        {"teacher": ["a"], "student_prob_a": [0.4], "student_prob_b": [0.6], "student_rationale": ["so"]}, COLUMNS
    )
    roles = wide_roles(frame, COLUMNS)
    assert list(roles) == ["teacher", "student"]
    student = parse(frame, COLUMNS, "it", role=roles["student"])
    assert (student.answers.to_list(), student.rationales.to_list()) == (["b"], ["so"])
    assert parse(frame, COLUMNS, "it", role=roles["teacher"]).probabilities is None
    assert wide_roles(frame.select("teacher"), COLUMNS) == {}


def source(ids, answers):
    return parse(pl.DataFrame({"id": ids, "prediction": answers}), COLUMNS, f"{answers[0]}.csv")


def test_rows_are_joined_by_id_in_the_order_of_the_first():
    joined, notes = join({"teacher": source([3, 1, 2], ["c", "a", "b"]), "student": source([1, 2, 3], ["A", "B", "C"])})
    assert joined["student"].answers.to_list() == ["C", "A", "B"]
    assert joined["student"].ids.to_list() == joined["teacher"].ids.to_list() == ["3", "1", "2"]
    assert notes == ()


def test_ids_that_are_two_as_text_are_never_made_one():
    """As numbers 1 and 1.0 are one id, of which the first source would have two rows."""
    with pytest.raises(InputError, match=r"the ids differ: .* lacks 1 \(2\); .* lacks 1 \(1.0\)"):
        join({"teacher": source(["1", "1.0"], ["a", "b"]), "student": source(["1", "2"], ["A", "B"])})


def test_rows_without_ids_are_paired_by_position_and_that_is_said():
    parts = [
        parse(pl.DataFrame({"prediction": row}), COLUMNS, name)
        for name, row in (("one", ["a", "b"]), ("two", ["c", "d"]))
    ]
    joined, notes = join({"teacher": parts[0], "student": parts[1]})
    assert joined["student"].answers.to_list() == ["c", "d"]
    assert "row i of each of the 2 files is the same example" in notes[0]


def test_pandas_ids_with_a_gap_are_still_ids():
    """A missing prediction makes pandas write its whole column as floats."""
    frame = pd.DataFrame({"id": [1, 2], "prediction": [3, None]})
    assert read(frame).answers.to_list() == ["3", None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": [1, 2, 1]}, "it: the id '1' occurs in rows 1 and 3"),
        ({"id": [1, None, 3]}, "it, row 2, column 'id': the id is missing"),
        ({"prob_a": [0.5, None], "prob_b": [0.5, 0.5]}, "it, row 2, column 'prob_a': the cell is missing"),
    ],
)
def test_what_is_refused(table, message):
    with pytest.raises(InputError) as caught:
        read(table)
    assert message in str(caught.value)


def test_arrays_that_do_not_fit():
    for arrays, message in (
        ({"probs": np.ones((2, 2)) / 2, "id": [1, 2]}, "the array 'id' is not known"),
        ({"probs": np.ones((2, 2)) / 2, "ids": [1]}, "the arrays do not fit one another (probs [2, 2], ids [1])"),
        ({"probs": np.ones((2, 2)) / 2, "classes": ["a"]}, "it has 2 columns, and classes 1 names"),
    ):
        with pytest.raises(InputError) as caught:
            open_table(arrays, COLUMNS)
        assert message in str(caught.value)
