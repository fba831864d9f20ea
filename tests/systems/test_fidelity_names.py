"""Answers, labels, classes and options are spelled alike in every file, and what seems written otherwise is told."""

import numpy as np
import polars as pl
import pytest

import sanov
from sanov.data.predictions import Predictions

TRUTHS = [row % 3 == 0 for row in range(60)]


def accuracies(*tables, **options):
    found = sanov.fidelity(*tables, draws=1000, **options).values
    return found["teacher_accuracy"], found["student_accuracy"]


def test_classes_of_truth_values_are_those_of_columns():
    """The teacher gives probabilities of True and False, the student and the labels are truth values."""
    p = np.where(TRUTHS, 0.9, 0.1)
    teacher = {"prob_True": p, "prob_False": 1 - p, "label": TRUTHS}
    assert accuracies(teacher, {"prediction": TRUTHS}) == (1, 1)


@pytest.mark.parametrize("odd", ["Unknown", "perhaps true"])
def test_truth_values_beside_another_word_are_truth_values(odd):
    labels = [*map(str, TRUTHS[:-1]), odd]
    assert accuracies({"prediction": TRUTHS, "label": labels}, {"prediction": labels}) == (59 / 60, 1)


def test_whole_numbers_are_one_however_the_rest_of_the_column_is_written():
    labels = ["1", "2"] * 30
    student = ["1.0", "2.0", "n/a", "2", *["1.", "2.00"] * 28]
    teacher = {"prediction": pl.Series([1.0, 2.0] * 29 + [0.5, None]), "label": labels}
    assert accuracies(teacher, {"prediction": student}) == (58 / 60, 59 / 60)


def test_versions_and_codes_are_no_whole_numbers():
    labels = ["1.10", "01", "1.5", "1.0.0"] * 10
    found = sanov.fidelity(
        {"prediction": labels, "label": labels}, {"prediction": ["1.1", "1", "1.5", "1"] * 10}, draws=1000
    )
    assert (found.values["teacher_accuracy"], found.values["student_accuracy"]) == (1, 0.25)


@pytest.mark.parametrize("how", ["exact", "options"])
def test_options_are_spelled_as_columns_are(how):
    tables = {"prediction": TRUTHS, "label": TRUTHS}, {"prediction": TRUTHS}
    assert accuracies(*tables, options=("True", "False"), answers=how) == (1, 1)
    numbers = [1.0 + truth for truth in TRUTHS]
    tables = {"prediction": numbers, "label": numbers}, {"prediction": numbers}
    assert accuracies(*tables, options=("1.0", "2"), answers=how) == (1, 1)


@pytest.mark.parametrize("labelled", [True, False])
def test_answers_that_nobody_else_gives_are_doubted(labelled):
    words = ["yes", "no"] * 30
    student = ["Yes" if row % 4 == 0 else word for row, word in enumerate(words)]
    teacher = {"prediction": words} | ({"label": words} if labelled else {})
    notes = sanov.fidelity(teacher, {"prediction": student}, draws=1000).notes
    what = "a label" if labelled else "one of the teacher's"
    assert f"student: 15 (25.0 %) of its answers are never {what} (such as 'Yes'): written alike?" in notes
    assert not [note for note in notes if note.startswith("teacher: ")]


def test_wrong_answers_in_free_text_are_not_doubted():
    labels = [str(row) for row in range(60)]
    student = [str(row + 1000 * (row % 2)) for row in range(60)]
    notes = sanov.fidelity({"prediction": labels, "label": labels}, {"prediction": student}, draws=1000).notes
    assert not [note for note in notes if "written alike" in note]


def test_what_a_model_says_is_spelled_as_columns_are():
    said = Predictions(
        "m", 2, answers=pl.Series(["True", "2.0"]), labels=pl.Series(["FALSE", None]), classes=("True", "2.0")
    )
    plain = said.plain()
    assert (plain.answers.to_list(), plain.labels.to_list()) == (["true", "2"], ["false", None])
    assert plain.classes == ("true", "2")
