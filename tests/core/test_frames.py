"""Every kind of table leads to the same frame, and whatever is wrong with one is named by its place."""

import errno
import json
import subprocess
import sys
from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanov.core import frames
from sanov.core.errors import InputError, SanovWarning
from sanov.core.frames import fingerprint, like, name_of, numeric, read_frame

COLUMNS = {
    "weight": [1.5, None, -2e-3, 4.0],
    "count": [1, 2, 3, 4],
    "kind": ["red", "white, dry", 'a "quoted" one', "two\nlines"],
    "known": [True, False, True, True],
}
TABLE = pl.DataFrame(COLUMNS)


def csv(folder, text, name="data.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(source, **options):
    with pytest.raises(InputError) as caught:
        read_frame(source, **options)
    return str(caught.value)


# -- one table, many kinds --------------------------------------------------------------------------------------------

IN_MEMORY = {
    "polars": lambda: TABLE,
    "polars lazy": lambda: TABLE.lazy(),
    "polars categorical": lambda: TABLE.with_columns(pl.col("kind").cast(pl.Categorical)),
    "polars nan": lambda: TABLE.with_columns(pl.col("weight").fill_null(float("nan"))),
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas nullable": lambda: pd.DataFrame(COLUMNS).convert_dtypes(),
    "pandas arrow": lambda: pd.DataFrame(COLUMNS).convert_dtypes(dtype_backend="pyarrow"),
    "pandas object": lambda: pd.DataFrame(COLUMNS, dtype=object),
    "pandas categorical": lambda: pd.DataFrame(COLUMNS).astype({"kind": "category"}),
    "pandas with an index": lambda: pd.DataFrame(COLUMNS, index=[7, 3, 9, 1]),
    "arrow": lambda: pa.table(COLUMNS),
    "arrow dictionary": lambda: pa.table({**COLUMNS, "kind": pa.array(COLUMNS["kind"]).dictionary_encode()}),
    "lists": lambda: COLUMNS,
    "arrays": lambda: {name: pd.Series(column).to_numpy() for name, column in COLUMNS.items()},
}
ON_DISK = {
    "data.csv": lambda path: TABLE.write_csv(path),
    "bom.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + TABLE.write_csv().encode()),
    "windows.csv": lambda path: TABLE.write_csv(path, line_terminator="\r\n"),
    "pandas.csv": lambda path: pd.DataFrame(COLUMNS).to_csv(path, index=False, na_rep="NA"),
    "data.tsv": lambda path: TABLE.write_csv(path, separator="\t"),
    "data.txt": lambda path: TABLE.write_csv(path, separator="\t"),
    "commas.txt": lambda path: TABLE.write_csv(path),
    "data.parquet": lambda path: TABLE.write_parquet(path),
    "data.jsonl": lambda path: TABLE.write_ndjson(path),
    "data.ndjson": lambda path: TABLE.write_ndjson(path),
    "data.feather": lambda path: pa.feather.write_feather(pa.table(COLUMNS), path),
    "data.arrow": lambda path: TABLE.write_ipc(path),
    "data.xlsx": lambda path: TABLE.write_excel(path),
    "UPPER.CSV": lambda path: TABLE.write_csv(path),
}


@pytest.mark.parametrize("make", IN_MEMORY.values(), ids=IN_MEMORY)
def test_tables_in_memory_are_equal(make):
    check(make())


@pytest.mark.parametrize("name", ON_DISK)
def test_tables_on_disk_are_equal(name, tmp_path):
    ON_DISK[name](tmp_path / name)
    check(tmp_path / name)
    check(str(tmp_path / name))


def check(source):
    frame = read_frame(source)
    assert frame.columns == TABLE.columns
    assert frame["kind"].to_list() == COLUMNS["kind"]
    assert frame["known"].to_list() == COLUMNS["known"]
    assert frame["weight"].to_list() == COLUMNS["weight"]
    assert fingerprint(frame) == fingerprint(TABLE)
    assert np.array_equal(numeric(frame, ["count", "known"], name="x"), [[1, 1], [2, 0], [3, 1], [4, 1]])


def test_a_matrix_is_a_table():
    frame = read_frame(np.arange(6.0).reshape(3, 2))
    assert frame.columns == ["x1", "x2"]
    assert np.array_equal(numeric(frame, ["x2"], name="x"), [[1.0], [3.0], [5.0]])


def test_pandas_is_read_without_pyarrow():
    """Users of pandas need not have it."""
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import pandas as pd; from sanov.core.frames import like, read_frame\n"
        "table = pd.DataFrame({'a': [1.5, None], 's': ['x', None], 'd': pd.to_datetime(['2024-01-01', None])})\n"
        "frame = read_frame(table)\nassert frame.rows()[1] == (None, None, None), frame\n"
        "assert type(like(frame, table)) is pd.DataFrame"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (pd.DataFrame({"a": [1]}), pd.DataFrame),
        (pa.table({"a": [1]}), pa.Table),
        (pl.DataFrame({"a": [1]}), pl.DataFrame),
        (pl.LazyFrame({"a": [1]}), pl.DataFrame),
        ({"a": [1]}, pl.DataFrame),
        (np.ones((1, 1)), pl.DataFrame),
        ("data.csv", pl.DataFrame),
        (None, pl.DataFrame),
    ],
    ids=lambda part: name_of(part) if not isinstance(part, type) else "",
)
def test_an_answer_comes_in_the_callers_kind(source, kind):
    answer = like(TABLE, source)
    assert type(answer) is kind
    assert read_frame(answer).to_dict(as_series=False) == COLUMNS


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.integers(-(2**53), 2**53),
            st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1).filter(str.strip),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=50)
def test_what_is_written_as_csv_is_read_again(tmp_path_factory, rows):
    """Numbers to the last bit, and text that is not all numbers as it stands (here it never is)."""
    table = pl.DataFrame(
        [(a, b, f"x{text}") for a, b, text in rows],
        schema={"a": pl.Float64, "b": pl.Int64, "t": pl.String},
        orient="row",
    )
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    table.write_csv(path)
    again = read_frame(path)
    for name in table.columns:
        assert again[name].to_list() == table[name].to_list()


# -- from text to numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2"], pl.Series([1, 2])),
        (["1", "2.5"], pl.Series([1.0, 2.5])),
        (["1", ""], pl.Series([1, None])),
        ([" 1 ", "NA", "nan", "NULL", "+3e2"], pl.Series([1.0, None, None, None, 300.0])),
        (["", "NA"], pl.Series([None, None], dtype=pl.Float64)),
        (["True", "false", ""], pl.Series([True, False, None])),
        (["1", "true"], pl.Series(["1", "true"])),
        (["1", "x", ""], pl.Series(["1", "x", None])),
        (["-inf", "1"], pl.Series([-np.inf, 1.0])),
        (["9007199254740993"], pl.Series([9007199254740993])),
        (["99999999999999999999"], pl.Series(["99999999999999999999"])),
        (["1e20", "2"], pl.Series([1e20, 2.0])),
        (["9007199254740993", "0.5"], pl.Series(["9007199254740993", "0.5"])),
        (["007", "7"], pl.Series(["007", "7"])),
        (["01", "NA", "10"], pl.Series(["01", None, "10"])),
        (["0", "0.5", "-0.25", "0e3"], pl.Series([0.0, 0.5, -0.25, 0.0])),
        (["NA", "EU", ""], pl.Series(["NA", "EU", None])),
        (["NA", "true"], pl.Series([None, True])),
        (["null", "x", "1"], pl.Series(["null", "x", "1"])),
        (["1.0"], pl.Series([1.0])),
        (["1_000", "2"], pl.Series(["1_000", "2"])),
    ],
    ids=str,
)
def test_a_column_is_numeric_if_all_its_cells_are(cells, expected, tmp_path):
    rows = "".join(f"{cell},.\n" for cell in cells)
    column = read_frame(csv(tmp_path, "a,b\n" + rows))["a"]
    assert column.dtype == expected.dtype
    assert column.to_list() == expected.to_list()


def test_blank_lines_are_no_rows_but_a_blank_cell_is_missing(tmp_path):
    assert read_frame(csv(tmp_path, "a,b\n\n1,2\n\n3,4\n\n")).rows() == [(1, 2), (3, 4)]
    assert read_frame(csv(tmp_path, "a\n1\n\n3\n")).rows() == [(1,), (None,), (3,)]
    assert read_frame(csv(tmp_path, "a,b\n1,\n,2\n")).rows() == [(1, None), (None, 2)]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=repr)
def test_a_row_of_missing_cells_is_a_row_however_it_is_written(end, tmp_path):
    """Ids in another file must go on standing beside the same rows."""
    expected = [(1, 2), (None, None), (3, 4), (None, None)]
    for missing in (",", "NA,NA"):
        lines = ["", "a,b", "", "1,2", missing, "", "3,4", missing, "", ""]
        assert read_frame(csv(tmp_path, end.join(lines))).rows() == expected
    assert read_frame(csv(tmp_path, 'a,b\n"x\n\ny",2\n\n,\n')).rows() == [("x\n\ny", 2), (None, None)]
    assert "mixes line ends" in message(csv(tmp_path, "a,b\n1,x\ry\n\n"))


def test_columns_that_are_names_stay_as_they_are_written(tmp_path):
    path = csv(tmp_path, "id,text,x\n1e3,1.50,7\n1000,NA,8\n+5,2,NA\n")
    assert read_frame(path, text=["id", "text", "none"]).rows() == [
        ("1e3", "1.50", 7),
        ("1000", None, 8),
        ("+5", "2", None),
    ]


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    book = "word " * 40_000
    assert read_frame(csv(tmp_path, f"text,y\n{book},\nshort,1\n")).rows() == [(book, None), ("short", 1)]


def test_csv_and_parquet_of_one_table_are_one_table(tmp_path):
    table = pl.DataFrame({
        "country": ["NA", "null", "FR", None],
        "zip": ["01234", "94110", None, "00001"],
        "number": ["12345678901234567890", "1", "2", "3"],
        "x": [1, None, 3, 4],
        "y": [True, None, False, True],
    })  # fmt: skip
    table.write_csv(tmp_path / "data.csv")
    table.write_parquet(tmp_path / "data.parquet")
    assert read_frame(tmp_path / "data.csv").equals(read_frame(tmp_path / "data.parquet"))


# -- Excel ------------------------------------------------------------------------------------------------------------


def excel(folder, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, start=1):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(folder / "data.xlsx")
    return folder / "data.xlsx"


def test_a_late_cell_of_text_is_not_lost(tmp_path):
    rows = [[i, 1] for i in range(1500)]
    frame = read_frame(excel(tmp_path, [["a", "b"], *rows, ["x", 1], [2.5, 1]]))
    assert frame["a"].to_list()[-3:] == ["1499", "x", "2.5"]
    with pytest.raises(InputError, match="row 1501, column 'a': the cell is 'x'"):
        numeric(frame, ["a"], name="data")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["a", "b", "a"], [1, 2, 3]], "the column name 'a' occurs twice"),
        ([["a", " a "], [1, 2]], "the column name 'a' occurs twice"),
        ([["a", None], [1, 2]], "column 2 has no name"),
        ([["My table"], ["a", "b"], [1, 2]], "column 2 has no name"),
        ([["a", "b"]], "has no rows"),
    ],
    ids=str,
)
def test_names_of_an_excel_sheet_are_checked_as_those_of_text(rows, expected, tmp_path):
    assert expected in message(excel(tmp_path, rows))


def test_rows_and_text_of_an_excel_sheet_are_kept(tmp_path):
    rows = [[None, None, None], [None, "a", "id"], [None, 1, "007"], [None, None, None], [None, 3, "7"]]
    assert read_frame(excel(tmp_path, rows)).rows() == [(1, "007"), (None, None), (3, "7")]
    assert read_frame(excel(tmp_path, [["a"], ["1"], ["2"]])).rows() == [(1,), (2,)]
    assert read_frame(excel(tmp_path, [["a"], ["1"], ["2"]]), text=["a"]).rows() == [("1",), ("2",)]


def test_sheets_that_are_not_read_are_told(tmp_path):
    path = excel(tmp_path, [["a"], [1]], [["a"], [2]])
    with pytest.warns(SanovWarning, match="only the first sheet, 'sheet 1', is read, not 'sheet 2'"):
        assert read_frame(path).rows() == [(1,)]


# -- types ------------------------------------------------------------------------------------------------------------


def test_a_time_zone_is_kept_whether_or_not_a_cell_is_missing():
    times = pd.to_datetime(["2024-01-01T12:00", "2024-06-01T12:00"]).tz_localize("Europe/Berlin")
    whole, partial = (read_frame(pd.DataFrame({"t": cells})) for cells in (times, [times[0], pd.NaT]))
    assert whole.schema == partial.schema
    assert whole["t"][0] == partial["t"][0] == times[0].to_pydatetime()


def test_what_no_column_has_a_type_for_is_text():
    periods = pd.DataFrame({"month": pd.period_range("2024-01", periods=2, freq="M")})
    assert read_frame(periods)["month"].to_list() == ["2024-01", "2024-02"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"b": 1}, 3], "row 2, column 'a': the cell is 3"),
        ([3, {"b": 1}], "column 'a'"),
        ([[1], 2], "column 'a': holds lists or objects among other cells"),
    ],
    ids=str,
)
def test_cells_of_many_types_are_refused_and_not_lost(rows, expected, tmp_path):
    assert expected in message({"a": rows})
    lines = "".join(f"{json.dumps({'a': cell})}\n" for cell in rows)
    assert expected in message(csv(tmp_path, lines, "data.jsonl"))


@pytest.mark.parametrize("delimiter", [";", "|", " ", "tab", "\t"])
def test_another_delimiter_can_be_named(delimiter, tmp_path):
    character = "\t" if delimiter == "tab" else delimiter
    path = csv(tmp_path, f"a{character}b\n1{character}2\n", "data.dat")
    assert read_frame(path, delimiter=delimiter).rows() == [(1, 2)]


def test_names_with_wildcards_are_names(tmp_path):
    csv(tmp_path, "a,b\n9,9\n", "x1.csv")
    assert read_frame(csv(tmp_path, "a,b\n1,2\n", "x[1].csv")).rows() == [(1, 2)]


# -- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "empty": ("", "data.csv: is empty"),
    "blank": (" \n\n", "data.csv: is empty"),
    "header only": ("a,b\n", "data.csv: has a header but no rows"),
    "semicolons": ("a;b\n1;2\n", 'Pass map.delimiter=";"'),
    "tabs": ("a\tb\n1\t2\n", "Pass map.delimiter=tab"),
    "bars": ("a|b\n1|2\n", 'Pass map.delimiter="|"'),
    "decimal commas": ("a;b\n1,5;2,5\n", 'Pass map.delimiter=";"'),
    "short row": ("a,b\n1,2\n3\n", "data.csv, line 3: has 1 cell; expected 2, as in the header"),
    "long row": ("a,b\n1,2\n3,4,5\n", "data.csv, line 3: has 3 cells; expected 2"),
    "ragged after a quoted line end": ('a,b\n"x\ny",2\n3\n', "data.csv, line 4: has 1 cell"),
    "latin-1": ("a,b\n1,2\ncafé,3\n".encode("latin-1"), "data.csv, line 3: holds the byte 0xe9, which is no UTF-8"),
    "latin-1 header": ("é,b\n1,2\n".encode("latin-1"), "data.csv, line 1: holds the byte 0xe9"),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "is encoded in UTF-16"),
    "binary": (b"\x7fELF\x00\x00\x01", "is binary"),
    "no name": (",a\n0,1\n", "column 1 has no name"),
    "twice": ("a,b,a\n1,2,3\n", "the column name 'a' occurs twice"),
    "open quote": ('a,b\n1,"2\n3,4\n', 'a quote (") that is not closed'),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_a_bad_text_file_is_one_message(text, expected, tmp_path):
    assert expected in message(csv(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.parquet", "PAR1", "cannot be read as Parquet"),
        ("data.parquet", "", "is empty"),
        ("data.feather", "x", "cannot be read as Arrow"),
        ("data.xlsx", "x", "cannot be read as an Excel sheet"),
        ("data.jsonl", '{"a": 1}\n{"a":\n', "line 2: is not JSON"),
        ("data.jsonl", '{"a": 1}\n[1]\n', "line 2: is a list; expected an object"),
        ("data.jsonl", b"\xff\n", "is not encoded in UTF-8"),
        ("data.jsonl", "\n", "has no rows"),
        ("data.pkl", "x", "the suffix is '.pkl'; expected .csv, .tsv"),
        ("data", "x", "the name has no suffix"),
    ],
)
def test_a_bad_file_of_another_kind_is_one_message(name, content, expected, tmp_path):
    told = message(csv(tmp_path, content, name))
    assert expected in told
    assert name in told
    assert "\n" not in told


def test_a_missing_file_has_a_near_name(tmp_path):
    near = csv(tmp_path, "a,b\n1,2\n", "wine.csv")
    assert message(tmp_path / "wines.csv") == f"{tmp_path / 'wines.csv'}: no such file. Did you mean '{near}'?"
    assert message(tmp_path / "none" / "x.csv").endswith("no such file.")
    assert "is a folder; expected a file" in message(tmp_path)


def test_a_file_without_permission_is_told(tmp_path, monkeypatch):
    path = csv(tmp_path, "a,b\n1,2\n")

    def denied(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", denied)
    assert "cannot be read (Permission denied)" in message(path)


def test_a_delimiter_is_one_character(tmp_path):
    assert "delimiter: the value is '::'" in message(csv(tmp_path, "a,b\n1,2\n"), delimiter="::")


def test_a_header_of_numbers_is_doubted(tmp_path):
    with pytest.warns(SanovWarning, match="Is the header missing"):
        read_frame(csv(tmp_path, "1.5,2\n3,4\n"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (3, "an object of type int is no table"),
        ([1, 2], "an object of type list is no table"),
        (np.ones(3), "an object of type ndarray is no table"),
        (pd.DataFrame(), "the pandas table: the table has 0 rows and 0 columns"),
        (pd.DataFrame({"a": []}), "the table has 0 rows and 1 columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns have one name"),
        ({1: [1], "1": [2]}, "the dictionary: the column name '1' occurs twice"),
        (pd.DataFrame({1: [1], "1": [2]}), "the pandas table: the column name '1' occurs twice"),
        ({"a": [1, 2], "b": [1]}, "the columns differ in length (a: 2, b: 1)"),
        ({"a": np.ones((2, 2))}, "column 'a': the array has 2 dimensions; expected one"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_no_table_is_said(source, expected):
    assert expected in message(source)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (
            [1.0, float("inf")],
            "data, row 2, column 'a': the cell is inf; expected a finite number. Remove or impute it.",
        ),
        ([None, 1.0, None], "data, row 1, column 'a': the cell is missing (2 such cells in the column)"),
        (["1", "x", "2"], "data, row 2, column 'a': the cell is 'x'; expected a number. Correct it, encode it"),
        (["1", "x", None, "y"], "row 2, column 'a': the cell is 'x' (1 more cell of the column too)"),
        (["1", "NA", "x"], "row 3, column 'a': the cell is 'x'; expected"),
        (["NA", "1"], "row 1, column 'a': the cell is 'NA'; expected"),
        (
            ["007", None],
            "data, column 'a': holds numbers that are kept as text (such as '007'); expected plain numbers",
        ),
        (["1,5", "2"], "row 1, column 'a': the cell is '1,5'; expected a number. Write decimals with a point."),
        (["red", None], "data, column 'a': is text (such as 'red'). Encode it as numbers, or leave it out."),
        ([[1.0], [2.0]], "data, column 'a': holds cells of type List(Float64); expected numbers."),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_cell_that_is_no_number_is_named(cells, expected):
    with pytest.raises(InputError) as caught:
        numeric(pl.DataFrame({"ok": [1.0] * len(cells), "a": cells}), ["ok", "a"], name="data")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["wieght"], "there is no column 'wieght'. Did you mean 'weight'?"),
        (["zzz"], "The columns are: weight, count, kind, known."),
        (["count", "count"], "the column 'count' is asked for twice"),
    ],
    ids=str,
)
def test_a_column_that_is_not_there_has_a_near_name(columns, expected):
    with pytest.raises(InputError) as caught:
        numeric(TABLE, columns, name="data")
    assert expected in str(caught.value)


def test_numbers_are_the_tables_own(tmp_path):
    draws = np.random.default_rng(0).standard_normal((500, 3)) * [1e-8, 1.0, 1e8]
    table = pl.DataFrame(draws, schema=["a", "b", "c"])
    table.write_csv(tmp_path / "data.csv")
    assert np.array_equal(numeric(read_frame(tmp_path / "data.csv"), ["c", "a"], name="x"), draws[:, [2, 0]])


def test_the_fingerprint_follows_names_and_cells():
    first = fingerprint(TABLE)
    assert fingerprint(TABLE.rename({"kind": "sort"})) != first
    assert fingerprint(TABLE.with_columns(pl.col("weight").fill_null(0.0))) != first
    assert fingerprint(TABLE.with_columns(kind=pl.lit("x"))) != first
    assert fingerprint(TABLE[::-1]) != first


def test_the_fingerprint_tells_large_numbers_apart():
    exact, next_one = pl.DataFrame({"a": [2**53, None]}), pl.DataFrame({"a": [2**53 + 1, None]})
    assert fingerprint(exact) != fingerprint(next_one)
    assert fingerprint(exact) == fingerprint(exact.cast(pl.Float64))


def test_every_type_has_a_fingerprint():
    columns = {"t": [timedelta(seconds=1)], "b": [b"x"], "d": [date(2024, 1, 1)], "n": [Decimal("1.5")], "l": [[b"x"]]}
    prints = {fingerprint(pl.DataFrame({name: cells})) for name, cells in columns.items()}
    assert len(prints) == len(columns)
    later = pl.DataFrame({"t": [timedelta(seconds=2)]})
    assert fingerprint(later) != fingerprint(pl.DataFrame({"t": columns["t"]}))


def test_a_source_is_named_as_it_was_given(tmp_path):
    assert name_of("x/y.csv") == "x/y.csv"
    assert name_of(pd.DataFrame()) == "the pandas table"
    assert name_of({}) == "the dictionary"
    assert frames.is_path(tmp_path)
    assert not frames.is_path(TABLE)
