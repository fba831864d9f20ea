"""An answer in all its forms: the same numbers in each, and none of them ever half-written."""

import errno
import io
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pytest

from sanov.core import files
from sanov.core.answers import HEIGHT, SUFFIXES, WIDTH, Answer, check_place
from sanov.core.errors import InputError, MissingExtra

MAIN = pl.DataFrame({"statistic": ["x_1", "50% & more"], "risk": [1 / 3, None], "n": [10, 20], "odd": [np.inf, np.nan]})
CURVE = {
    "data": {"values": [{"n": 1, "risk": 2.0}, {"n": 2, "risk": 1.0}]},
    "mark": "line",
    "encoding": {"x": {"field": "n", "type": "quantitative"}, "y": {"field": "risk", "type": "quantitative"}},
}
ANSWER = Answer(
    system="pn",
    sentence="20 rows are enough (95 % 15 to 18).",
    values={"rows": 20, "risk_now": np.float64(0.123456), "enough": True, "odd": float("nan"), "curve": [1, 2]},
    tables={"main table": MAIN, "Main Table": MAIN.head(1)},
    figures={"risk / rows": CURVE},
    notes=("dropped the constant column 'c'", "assumed independent rows"),
    files={"adapter/weights.txt": lambda path: path.write_text("weights") and None},
    provenance={"input": "0" * 64, "command": "sanov apply pn data.csv"},
)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- one screen -------------------------------------------------------------------------------------------------------


def test_the_summary_begins_with_the_sentence_and_ends_with_the_notes():
    lines = ANSWER.summary().splitlines()
    assert lines[0] == "pn: 20 rows are enough (95 % 15 to 18)."
    assert lines[2:6] == ["rows      20", "risk now  0.1235", "enough    yes", "odd       –"]
    assert lines[-2:] == ["- dropped the constant column 'c'", "- assumed independent rows"]
    assert str(ANSWER) == ANSWER.summary()


def test_lines_of_a_system_replace_the_numbers():
    assert "a line of its own" in replace(ANSWER, lines={"own": "a line of its own", "empty": ""}).summary()
    assert "risk now" not in replace(ANSWER, lines={"own": "a line of its own", "empty": ""}).summary()


@pytest.mark.parametrize(
    "more",
    [
        {"sentence": "word " * 90},
        {"lines": {f"line {i}": "a very long line " * 9 for i in range(30)}},
        {"notes": ("a note that is longer than the screen is wide " * 4,) * 30},
        {"values": {f"number {i}": i for i in range(40)}, "notes": ("note",) * 40},
        {"values": {}, "notes": ()},
    ],
    ids=["sentence", "lines", "notes", "both", "nothing"],
)
def test_the_summary_is_one_screen_and_says_what_it_left_out(more):
    text = replace(ANSWER, **more).summary()
    lines = text.splitlines()
    assert len(lines) <= HEIGHT
    assert max(map(len, lines)) <= WIDTH
    assert not text.endswith("\n")
    full = len(lines) == HEIGHT
    assert full == ("more lines: save the answer to see them" in text)


# -- forms ------------------------------------------------------------------------------------------------------------


def test_the_dictionary_is_strict_json():
    told = json.loads(json.dumps(ANSWER.to_dict(), allow_nan=False))
    assert told["values"] == {"rows": 20, "risk_now": 0.123456, "enough": True, "odd": None, "curve": [1, 2]}
    assert told["tables"]["main table"]["risk"] == [1 / 3, None]
    assert told["tables"]["main table"]["odd"] == [None, None]
    assert told["provenance"]["version"].startswith("sanov ")
    assert told["provenance"]["command"] == "sanov apply pn data.csv"


def test_tables_come_in_the_callers_kind():
    assert ANSWER.to_frame().equals(MAIN)
    assert ANSWER.to_frame("Main Table").height == 1
    frame = replace(ANSWER, source=pd.DataFrame({"a": [1]})).to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["n"].tolist() == [10, 20]
    with pytest.raises(InputError, match="there is no table 'none'; expected main table or Main Table"):
        ANSWER.to_frame("none")


def test_an_answer_without_tables_gives_its_numbers():
    frame = replace(ANSWER, tables={}).to_frame()
    assert frame.columns == ["rows", "risk_now", "enough", "odd"]
    assert frame.height == 1


def test_latex_is_escaped_and_aligned():
    lines = ANSWER.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert lines[2] == r"statistic & risk & n & odd \\"
    assert lines[4] == r"x\_1 & 0.3333 & 10 & inf \\"
    assert lines[5].startswith(r"50\% \& more &  & 20 &")
    special = pl.DataFrame({"a": ["\\ ~ ^ & % $ # _ { }\nb"]})
    row = replace(ANSWER, tables={"t": special}).to_latex().splitlines()[4]
    assert row == (
        r"\textbackslash{} \textasciitilde{} \textasciicircum{} \& \% \$ \# \_ \{ \} b \\"
    )  # every character that TeX would take for a command


def test_every_suffix_holds_the_same_numbers(tmp_path):
    for suffix in SUFFIXES:
        ANSWER.save(tmp_path / f"a{suffix}")
    assert names(tmp_path) == sorted(f"a{suffix}" for suffix in SUFFIXES)
    assert json.loads((tmp_path / "a.json").read_text())["sentence"] == ANSWER.sentence
    assert pl.read_csv(tmp_path / "a.csv")["risk"].to_list() == [1 / 3, None]
    assert pl.read_parquet(tmp_path / "a.parquet").equals(MAIN)
    assert (tmp_path / "a.tex").read_text() == ANSWER.to_latex()
    assert ANSWER.sentence in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_workbook_has_a_sheet_a_table_and_no_formula(tmp_path):
    tables = {
        "a [very] long title / with signs that Excel refuses": pl.DataFrame({"t": ["=1+1", "http://x"], "x": [1, None]})
    }
    replace(ANSWER, tables={**ANSWER.tables, **tables}).to_excel(tmp_path / "a.xlsx")
    sheets = pd.read_excel(tmp_path / "a.xlsx", sheet_name=None, header=None, keep_default_na=False)
    assert list(sheets)[:3] == ["answer", "main table", "Main Table 2"]
    assert sheets["answer"].iloc[0].tolist() == ["pn", ANSWER.sentence]
    assert sheets["main table"].iloc[1].tolist()[:3] == ["x_1", 1 / 3, 10]
    last = list(sheets.values())[-1]
    assert last.iloc[1].tolist() == ["=1+1", 1]


def test_a_workbook_loses_no_cell(tmp_path):
    large = replace(ANSWER, tables={"t": pl.DataFrame({"n": [2**53 + 1], "m": [-(2**53)]})})
    large.save(tmp_path / "a.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx")["t"]
    assert [cell.value for cell in sheet[2]] == ["9007199254740993", -(2**53)]
    long = replace(ANSWER, tables={"t": pl.DataFrame({"a": ["x", "x" * 32_768], "n": [1, 2]})})
    message = "sheet 't', row 2, column 'a': the cell has 32768 characters; expected at most 32767. Save it as .csv"
    with pytest.raises(InputError, match=message):
        long.save(tmp_path / "b.xlsx")
    assert names(tmp_path) == ["a.xlsx"]


def test_a_workbook_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(MissingExtra, match=r"sanov\[excel\]"):
        ANSWER.save(tmp_path / "a.xlsx")
    assert names(tmp_path) == []


def test_a_folder_gets_everything(tmp_path):
    ANSWER.save(tmp_path / "all")
    assert names(tmp_path / "all") == [
        "adapter/weights.txt",
        "answer.json",
        "figures/risk-rows.svg",
        "figures/risk-rows.vl.json",
        "index.html",
        "summary.txt",
        "tables/main-table-2.csv",
        "tables/main-table.csv",
    ]
    assert json.loads((tmp_path / "all/figures/risk-rows.vl.json").read_text()) == CURVE
    assert ElementTree.parse(tmp_path / "all/figures/risk-rows.svg").getroot().tag.endswith("svg")
    assert pl.read_csv(tmp_path / "all/tables/main-table-2.csv").height == 1


def test_nested_columns_are_json_in_csv(tmp_path):
    table = pl.DataFrame({"id": [1, 2], "probabilities": [[0.25, 0.75], None]})
    replace(ANSWER, tables={"t": table}).save(tmp_path / "a.csv")
    cells = pl.read_csv(tmp_path / "a.csv")["probabilities"].to_list()
    assert [json.loads(cell) for cell in cells] == [[0.25, 0.75], None]


# -- places -----------------------------------------------------------------------------------------------------------


def test_an_earlier_answer_is_replaced_and_other_files_never(tmp_path):
    ANSWER.save(tmp_path / "all")
    replace(ANSWER, figures={}).save(tmp_path / "all")
    assert not (tmp_path / "all" / "figures").exists()
    (tmp_path / "theses").mkdir()
    ANSWER.save(tmp_path / "theses")  # an empty folder is free
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(InputError, match="photos: is a folder with other files in it"):
        ANSWER.save(tmp_path / "photos")
    assert names(tmp_path / "photos") == ["1.jpg"]


@pytest.mark.parametrize("name", ["thesis.docx", "tables/mine.csv", "empty/"])
def test_a_file_that_was_put_into_an_answer_is_never_deleted(name, tmp_path):
    ANSWER.save(tmp_path / "all")
    mine = tmp_path / "all" / name
    if name.endswith("/"):
        mine.mkdir()
    else:
        mine.touch()
    with pytest.raises(InputError, match=rf"all: is a folder with other files in it \({name.rstrip('/')}\)"):
        ANSWER.save(tmp_path / "all")
    assert mine.exists()


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"contents": 3}'])
def test_a_file_that_is_only_named_as_an_answer_is_none(text, tmp_path):
    (tmp_path / "answer.json").write_text(text)
    with pytest.raises(InputError, match=r"other files in it \(answer\.json\)"):
        check_place(tmp_path)


def test_what_a_file_manager_leaves_does_not_matter(tmp_path):
    ANSWER.save(tmp_path / "all")
    (tmp_path / "all" / ".DS_Store").touch()
    ANSWER.save(tmp_path / "all")
    assert not (tmp_path / "all" / ".DS_Store").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("a.docx", "the suffix is '.docx'; expected one of .json, .csv"),
        ("none/a.json", "none: there is no such folder"),
        ("folder.json", "folder.json: is a folder; expected a file"),
        ("file", "file: is a file; expected a folder"),
    ],
)
def test_a_place_that_will_not_do_is_said_before_any_work(place, message, tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        check_place(tmp_path / place)
    assert message in str(caught.value)


@pytest.mark.parametrize("place", [f"a{suffix}" for suffix in SUFFIXES] + ["all"])
def test_a_full_disk_leaves_what_was_there(place, tmp_path, monkeypatch):
    ANSWER.save(tmp_path / place)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        replace(ANSWER, sentence="another").save(tmp_path / place)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_writer_that_fails_leaves_no_folder(tmp_path):
    def breaks(path):
        path.write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        replace(ANSWER, files={"x": breaks}).save(tmp_path / "all")
    assert list(tmp_path.iterdir()) == []


# -- notebook ---------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_it_without_scripts_or_addresses():
    long = pl.DataFrame({"i": range(50), "<b>name</b>": ["<script>x</script>"] * 50})
    html = replace(ANSWER, tables={"long": long})._repr_html_()
    assert "<script" not in html
    assert re.findall(r"""(?:src|href)=["']?(?!#)""", html) == []
    assert ANSWER.sentence in html
    assert "The first 20 of 50 rows." in html
    assert "&lt;b&gt;name" in html
    assert html.count("<svg") == 1
    ElementTree.parse(io.StringIO(html.replace("&nbsp;", " ")))  # every element is closed
