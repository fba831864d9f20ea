"""The teacher's embeddings and its head: the doors they come through, and what is said where they do not fit."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable, Head, read
from sanov.data.distillation_sources import Columns

RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(8, 3))
HIDDEN = RNG.normal(size=(8, 4))
WEIGHT, BIAS = RNG.normal(size=(4, 2)), np.array([0.3, -0.2])
LOGITS = HIDDEN @ WEIGHT + BIAS
TEACHER = {"embeddings": HIDDEN, "head_weight": WEIGHT, "head_bias": BIAS}
ARRAYS = {"inputs": INPUTS, **TEACHER}
IDS = [f"r{row}" for row in range(8)]


def columns(prefix, values):
    return {f"{prefix}{place}": column for place, column in enumerate(values.T)}


FRAME = pl.DataFrame({"id": IDS, "text": list("abcdefgh"), **columns("embedding_", HIDDEN), "label": ["no", "yes"] * 4})


# -- the doors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", [{}, {"logits": LOGITS}], ids=["formed", "given"])
def test_arrays(logits, tmp_path):
    np.savez(tmp_path / "t.npz", **ARRAYS, **logits)
    for source in (tmp_path / "t.npz", ARRAYS | logits):
        table = read([source])
        np.testing.assert_array_equal(table.embeddings, HIDDEN)
        np.testing.assert_array_equal(table.head.weight, WEIGHT)
        np.testing.assert_array_equal(table.head.bias, BIAS)
        np.testing.assert_allclose(table.logits, LOGITS, rtol=1e-12)
        assert table.classes == ("0", "1")


def test_columns_with_a_prefix(tmp_path):
    table = read([FRAME])
    np.testing.assert_array_equal(table.embeddings, HIDDEN)
    assert (table.logits, table.head, table.features) == (None, None, ("text",))
    named = FRAME.rename({f"embedding_{place}": f"h{place}" for place in range(4)})
    np.testing.assert_array_equal(read([named], Columns(embeddings="h")).embeddings, HIDDEN)


@pytest.mark.parametrize("name", ["embedding", "embeddings"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_of_lists(name, suffix, tmp_path):
    if suffix == "jsonl":
        rows = [{"text": "a", name: list(row)} for row in HIDDEN]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pl.DataFrame({"text": ["a"] * 8, name: HIDDEN.tolist()}).write_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(read([tmp_path / f"t.{suffix}"]).embeddings, HIDDEN)


def test_columns_may_be_features_of_the_student():
    plain = FRAME.drop("text")
    with pytest.raises(InputError, match=r"no inputs for the student.*map\.embeddings= makes them features"):
        read([plain])
    table = read([plain], Columns(embeddings=""))
    np.testing.assert_array_equal(table.inputs, HIDDEN)
    assert table.embeddings is None


def test_a_table_of_texts_and_an_archive_of_the_teacher(tmp_path):
    turned = {"embeddings": HIDDEN[::-1], "head_weight": WEIGHT, "head_bias": BIAS, "ids": np.array(IDS[::-1])}
    np.savez(tmp_path / "teacher.npz", **turned, classes=np.array(["no", "yes"]))
    texts = FRAME.select("id", "text", "label")
    for sources in ([texts, tmp_path / "teacher.npz"], [tmp_path / "teacher.npz", texts]):
        table = read(sources)
        np.testing.assert_array_equal(table.embeddings, HIDDEN)
        np.testing.assert_allclose(table.logits, LOGITS, rtol=1e-12)
        assert table.classes == ("no", "yes")
        assert table.labels.tolist() == [0, 1] * 4


def test_the_head_may_be_a_source_of_its_own(tmp_path):
    np.savez(tmp_path / "head.npz", head_weight=WEIGHT, head_bias=BIAS, classes=np.array(["yes", "no"]))
    whole = read([FRAME, tmp_path / "head.npz"])
    np.testing.assert_allclose(whole.logits, LOGITS, rtol=1e-12)
    assert (whole.classes, whole.labels.tolist()) == (("yes", "no"), [1, 0] * 4)
    apart = [FRAME.select("id", "text"), FRAME.select("id", "^embedding_.*$"), tmp_path / "head.npz"]
    np.testing.assert_array_equal(read(apart).logits, whole.logits)


def test_a_prefix_of_the_user_names_columns_of_one_of_two_tables():
    inputs = FRAME.select("id", "text")
    teacher = pl.DataFrame({"id": IDS, **columns("z.", LOGITS)})
    np.testing.assert_array_equal(read([inputs, teacher], Columns(logits="z.")).logits, LOGITS)


# -- the table --------------------------------------------------------------------------------------------------------


def table(**changes):
    whole = {"inputs": INPUTS, "classes": ("no", "yes"), "embeddings": HIDDEN, "head": Head(WEIGHT, BIAS)}
    return DistilTable(**(whole | changes))


def test_rows_stay_together():
    part = table().take([5, 1])
    np.testing.assert_array_equal(part.embeddings, HIDDEN[[5, 1]])
    np.testing.assert_array_equal(part.head.logits(part.embeddings), LOGITS[[5, 1]])


@pytest.mark.parametrize("logits", [None, LOGITS], ids=["without logits", "with logits"])
def test_classes_in_another_order_take_the_head_along(logits):
    turned = table(logits=logits).aligned(("yes", "no"))
    np.testing.assert_allclose(turned.head.logits(turned.embeddings), LOGITS[:, ::-1], rtol=1e-12)
    with pytest.raises(InputError, match="the classes are 'no', 'yes'"):
        table(logits=logits).aligned(("yes", "maybe"))


def test_digest_tells_what_lies_inside_the_teacher():
    tables = [
        table(),
        table(embeddings=HIDDEN + 1),
        table(head=Head(WEIGHT + 1, BIAS)),
        table(head=Head(WEIGHT, BIAS + 1)),
        table(head=None),
        table(head=None, embeddings=None),
        table(head=None, embeddings=None, logits=HIDDEN[:, :2].copy()),
    ]
    assert len({found.digest() for found in tables}) == len(tables)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def spoilt(array, row, value):
    array = array.copy()
    array[row, 0] = value
    return array


def matches(message, **arrays):
    with pytest.raises(InputError, match=f"(?s){message}"):
        read([{name: values for name, values in (ARRAYS | arrays).items() if values is not None}])


def test_widths_that_do_not_agree():
    both = r"embeddings have 3 columns and head_weight is of shape \[4, 2\]"
    matches(
        both + r".*\[3, classes\]: its first axis and the columns of embeddings must agree", embeddings=HIDDEN[:, :3]
    )
    with pytest.raises(InputError, match=r"embeddings have 5 columns"):
        table(embeddings=np.ones((8, 5)))


def test_a_transposed_head():
    matches(r"shape \[2, 4\].*shape \[2\].*\[width, classes\] and \[classes\].*transpose", head_weight=WEIGHT.T)
    turned = {"embeddings": HIDDEN[:, :2], "head_weight": WEIGHT[:3, :2], "head_bias": BIAS}
    matches(r"shape \[3, 2\].*transpose", **turned)


def test_logits_that_the_head_does_not_give():
    matches(
        r"differs from logits by up to 7.*first in row 3.*input of the last linear layer",
        logits=LOGITS + 7 * (np.arange(8) == 2)[:, None] * [1, 0],
    )
    normal = HIDDEN / np.linalg.norm(HIDDEN, axis=1, keepdims=True)
    matches("embeddings must be the input of the last linear layer.*normalisation", logits=LOGITS, embeddings=normal)
    shifted = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    matches("one number a row: pass the logits before softmax", logits=shifted)
    matches("one number a class: pass the bias", logits=LOGITS + np.array([0.5, 0.0]))
    matches("logits of shape .*8, 2.* of shape .*8, 3", logits=np.column_stack([LOGITS, LOGITS[:, 0]]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"logits": LOGITS + 7 * (np.arange(8) == 2)[:, None] * [1, 0]}, "by up to 7.*first in row 3"),
        ({"embeddings": np.tanh(HIDDEN), "logits": LOGITS}, "must be the input of the last linear layer"),
        ({"logits": LOGITS - LOGITS.max(axis=1, keepdims=True)}, "one number a row"),
        ({"head": Head(WEIGHT, BIAS + np.array([0.5, 0.0])), "logits": LOGITS}, "one number a class"),
    ],
)
def test_a_table_that_is_made_in_python_is_checked_as_a_file_is(changes, told):
    with pytest.raises(InputError, match=f"^wine: .*{told}"):
        table(**changes, name="wine")
    given = table(**changes, compare_logits=False)
    for kept in (given, given.take([1, 2]), given.aligned(("yes", "no")), replace(given, ids=tuple(IDS))):
        assert not kept.compare_logits


def test_a_table_whose_numbers_are_not_finite_says_so():
    with pytest.raises(InputError, match=r"NaN or an infinite value in row 4 .* 1 such row"):
        table(embeddings=spoilt(HIDDEN, 3, np.nan), logits=LOGITS)


def test_rows_that_were_compared_are_not_measured_by_their_own_size():
    """What is small beside the largest logit of a table may be large beside those of a few of its rows."""
    small = np.vstack([1e-6 * HIDDEN[:4], HIDDEN[4:]])
    noisy = Head(WEIGHT, np.zeros(2)).logits(small) + np.where(np.arange(8) == 1, 1e-4, 0)[:, None] * [1, -1]
    whole = table(embeddings=small, logits=noisy, head=Head(WEIGHT, np.zeros(2)))
    assert len(whole.take([0, 1, 2])) == 3
    with pytest.raises(InputError, match="differs from logits"):
        table(inputs=INPUTS[:3], embeddings=small[:3], logits=noisy[:3], head=whole.head)


def test_the_mismatch_is_measured_by_the_size_of_the_logits():
    small = spoilt(LOGITS, 4, LOGITS[4, 0] + 0.9e-3 * np.abs(LOGITS).max())
    np.testing.assert_array_equal(read([ARRAYS | {"logits": small}]).logits, small)
    matches("first in row 5", logits=spoilt(LOGITS, 4, LOGITS[4, 0] + 2e-3 * np.abs(LOGITS).max()))


def test_embeddings_that_are_not_finite():
    matches("array 'embeddings'.*row 4.*1 such row", embeddings=spoilt(HIDDEN, 3, np.nan))
    with pytest.raises(InputError, match=r"row 2, column 'embedding_1'.*inf"):
        read([FRAME.with_columns(embedding_1=np.where(np.arange(8) == 1, np.inf, 0.0))])


def test_halves():
    matches("'head_weight' without the other half", head_bias=None)
    matches("a head of the teacher, and no embeddings", embeddings=None)
    with pytest.raises(InputError, match="a head of the teacher, and no embeddings"):
        table(embeddings=None)
    with pytest.raises(InputError, match=r"head has 2 classes, and there are 3"):
        table(classes=("a", "b", "c"))
    matches("head_weight has 2 columns and classes 3 names", classes=["a", "b", "c"])
    matches("inputs has 8 rows and embeddings has 7", embeddings=HIDDEN[:7])


def test_several_sources_that_do_not_fit(tmp_path):
    head = {"head_weight": WEIGHT, "head_bias": BIAS}
    cases = {
        "both hold the teacher's part": [
            {**TEACHER, "ids": IDS},
            pl.DataFrame({"id": IDS, **columns("logit_", LOGITS)}),
        ],
        "both hold the teacher's head": [ARRAYS, head],
        "2 that hold a head alone": [FRAME, head, head],
        "5 of 8 row ids of .* have no embeddings .'r3', 'r4', 'r5'.": [
            FRAME.select("id", "text"),
            FRAME.select("id", "^embedding_.*$").head(3),
        ],
        "the classes are 'x', 'y'.*'no', 'yes', as in": [
            FRAME.with_columns(logit_no=LOGITS[:, 0], logit_yes=LOGITS[:, 1]),
            head | {"classes": ["x", "y"]},
        ],
        "no column begins with 'h_'": [FRAME],
    }
    for message, sources in cases.items():
        names = Columns(embeddings="h_") if "h_" in message else None
        with pytest.raises(InputError, match=f"(?s){message}"):
            read(sources, names)


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_a_head_of_one_output_is_that_of_two_classes(shape):
    """A sigmoid of z is the softmax of 0 and z."""
    rng = np.random.default_rng(0)
    weight, embeddings = rng.standard_normal(4), rng.standard_normal((6, 4))
    arrays = {"inputs": embeddings, "embeddings": embeddings, "labels": np.arange(6) % 2}
    table = read([{**arrays, "head_weight": weight.reshape(shape), "head_bias": np.array([0.5])}])
    np.testing.assert_allclose(table.logits, np.stack([np.zeros(6), embeddings @ weight + 0.5], axis=1))
    assert table.classes == ("0", "1")
