"""Columns of probabilities, and what is told of columns that are none."""

import numpy as np
import polars as pl
import pytest

from sanov.core.errors import InputError
from sanov.data.probabilities import classes_of, read_probabilities


def read(table, **how):
    return read_probabilities(pl.DataFrame(table), "prob_", "it", **how)


def test_no_column_is_no_probability():
    assert read({"p_a": [0.5], "p_b": [0.5]}) is None
    assert classes_of(["id", "prob_True", "prob_1.0"], "prob_") == ("true", "1")
    assert classes_of(["id"], "") == ()


@pytest.mark.parametrize("decimals", [2, 3, 4])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_what_rounding_leaves_is_accepted(decimals, classes):
    """Any distribution, rounded, is taken: its sum is off by at most half a digit a class."""
    p = np.random.default_rng(classes).dirichlet(np.ones(classes), 2000)
    rounded = np.round(p, decimals)
    found = read({f"prob_{k}": rounded[:, k] for k in range(classes)})
    assert found.values.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert np.abs(found.values - p).max() < 0.5 * (classes + 1) * 10.0**-decimals
    off = int((np.abs(rounded.sum(axis=1) - 1) > 1e-3 + 1e-9).sum())
    assert found.note == "" if not off else f"rounded to {decimals} decimals: {off:,} rows sum to" in found.note


def test_single_precision_is_no_rounding():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50).astype(np.float32)
    assert read({f"prob_{k}": p[:, k] for k in range(3)}).note == ""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prob_a": [0.5, 0.5], "prob_b": [0.5, 0.4]}, "it, row 2: the probabilities sum to 0.9; expected 1"),
        ({"prob_a": [0.5123, 0.5], "prob_b": [0.4877, 0.49]}, "it, row 2: the probabilities sum to 0.99; expected 1"),
        (
            {"prob_a": [0.5, 0.5], "prob_b": [0.4, 0.4]},
            "(1 more such rows); expected 1. Add the column of the class that is",
        ),
        ({"prob_a": [0.9], "prob_b": [0.8]}, "sum to 1.7; expected 1. Classes exclude one another here"),
        ({"prob_a": [1.2], "prob_b": [-0.2]}, "it, row 1: the probability of 'b' is -0.2"),
        (
            {"prob_a": [-3.0], "prob_b": [2.0]},
            "the probability of 'a' is -3; expected a number from 0 to 1. Pass logits=true",
        ),
        (
            {"prob_a": [70.0, 33.3], "prob_b": [30.0, 66.6]},
            "sum to 100 (1 more such rows); expected 1. These are per cent",
        ),
        ({"prob_a": [3.0, 1.0], "prob_b": [1.0, 9.0]}, "Pass logits=true if these are logits; counts are divided"),
        ({"prob_a": [0.5]}, "it: only one column begins with 'prob_'"),
        ({"prob_a": [0.5], "prob_b": [0.5], "prob_a ": [0.0]}, "both name the class 'a'"),
    ],
)
def test_what_is_refused(table, message):
    with pytest.raises(InputError) as caught:
        read(table)
    assert message in str(caught.value)


def test_a_class_that_answers_name_and_no_column_does():
    table, answers = {"prob_a": [0.5, 0.2], "prob_b": [0.5, 0.2]}, pl.Series("prediction", ["a", "c"])
    with pytest.raises(InputError, match="there is no column 'prob_c', though 'c' is a prediction"):
        read(table, named=[answers])
    assert read({"prob_a": [0.5, 0.2], "prob_b": [0.5, 0.8]}, named=[answers]).classes == ("a", "b")
