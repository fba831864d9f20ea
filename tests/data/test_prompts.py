"""Tables of prompts in every layout that people have, equal from every kind of file, and their mistakes."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sanov.core.errors import InputError
from sanov.data import prompts
from sanov.data.prompts import Prompts, concatenate, read, usual_rewards

ROWS = [{"prompt": "1+2=", "answer": "3", "level": 1}, {"prompt": "007", "answer": "07", "level": 2}]
CHAT = [
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1+2="}],
    [{"role": "user", "content": "5?"}],
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_rows(table):
    return [table.row(index) for index in range(len(table))]


# -- the table --------------------------------------------------------------------------------------------------------


def test_rows_can_be_taken_more_than_once():
    table = Prompts(("a", "b", "c"), {"answer": [1, 2, 3]}, "mine")
    taken = table.take(np.repeat([2, 0], 2))
    assert taken.prompts == ("c", "c", "a", "a")
    assert taken.columns == {"answer": [3, 3, 1, 1]}
    assert taken.row(0) == {"prompt": "c", "answer": 3}
    assert (len(taken), taken.name, taken.chat) == (4, "mine", False)


def test_the_digest_is_that_of_what_is_in_the_table():
    table = Prompts(("a", "b"), {"x": [1, 2], "y": ["s", None]}, "mine")
    assert table.digest() == Prompts(("a", "b"), {"y": ["s", None], "x": [1, 2]}, "yours").digest()
    others = [
        Prompts(("a", "c"), {"x": [1, 2], "y": ["s", None]}),
        Prompts(("b", "a"), {"x": [1, 2], "y": ["s", None]}),
        Prompts(("a", "b"), {"x": [1, 3], "y": ["s", None]}),
        Prompts(("a", "b"), {"x": [1, 2], "z": ["s", None]}),
        Prompts(("a", "b"), {"x": [1, 2]}),
    ]
    assert len({table.digest(), *(other.digest() for other in others)}) == 6


def test_tables_are_joined_with_gaps():
    joined = concatenate([Prompts(("a",), {"x": [1]}, "first"), Prompts(("b",), {"y": [2]}, "second")])
    assert joined.name == "first and second"
    assert as_rows(joined) == [{"prompt": "a", "x": 1, "y": None}, {"prompt": "b", "x": None, "y": 2}]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ((), {}, "has no rows; expected at least one prompt"),
        (("a", None), {}, "row 2: the prompt is missing"),
        (("a", ""), {}, "row 2: the prompt is empty"),
        (("a", CHAT[0]), {}, "row 2: is text among chat messages, or the reverse"),
        ((CHAT[0], "a"), {}, "row 2: is text among chat messages, or the reverse"),
        ((CHAT[0], []), {}, "row 2: the prompt is empty"),
        (
            ([{"role": "user"}],),
            {},
            "row 1: a message is {'role': 'user'}; expected an object with 'role' and 'content'",
        ),
        ((["hello"],), {}, "row 1: a message is 'hello'"),
        (("a",), {"x": [1, 2]}, "the column 'x' has 2 cells; expected 1"),
        (("a",), {"completions": [1]}, "a column is called 'completions'.*Rename the column"),
    ],
)
def test_tables_that_are_none(rows, columns, message):
    with pytest.raises(InputError, match=f"mine.*{message}"):
        Prompts(rows, columns, "mine")


def test_a_number_is_no_prompt():
    with pytest.raises(InputError, match="row 1: the prompt is a int; expected text or a list of chat messages"):
        read({"prompt": [5]})


# -- files ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_says_the_same(tmp_path):
    frame = pl.DataFrame(ROWS)
    frame.write_parquet(tmp_path / "rows.parquet")
    frame.write_csv(tmp_path / "rows.csv")
    lines(tmp_path / "rows.jsonl", ROWS)
    memory = [frame, pd.DataFrame(ROWS), pa.Table.from_pylist(ROWS), frame.to_dict(as_series=False)]
    paths = [tmp_path / f"rows.{suffix}" for suffix in ("parquet", "csv", "jsonl")]
    for source in [*memory, *paths, str(paths[0])]:
        assert as_rows(read(source)) == ROWS
    assert len({read(source).digest() for source in [*memory, *paths]}) == 1
    assert read(paths[2]).name == str(paths[2])
    table = read(paths[0])
    assert read(table) is table


@pytest.mark.filterwarnings("ignore")  # of the packages that it imports
def test_hugging_face_datasets_are_tables():
    datasets = pytest.importorskip("datasets")
    assert as_rows(read(datasets.Dataset.from_list(ROWS))) == ROWS
    chats = read(datasets.Dataset.from_list([{"prompt": chat, "answer": 1} for chat in CHAT]))
    assert list(chats.prompts) == CHAT


def test_several_files_are_one_table(tmp_path):
    first, second = lines(tmp_path / "a.jsonl", ROWS), lines(tmp_path / "b.jsonl", ROWS[::-1])
    assert as_rows(read([first, second])) == ROWS + ROWS[::-1]
    other = lines(tmp_path / "c.jsonl", [{"prompt": "x", "gold": 1}])
    with pytest.raises(
        InputError, match=r"c\.jsonl: has the columns gold; expected those of .*a\.jsonl \(answer, level\)"
    ):
        read([first, other])


def test_chats_come_back_as_they_were(tmp_path):
    path = lines(tmp_path / "chat.jsonl", [{"prompt": chat, "extra": {"a": [1, "x"]}} for chat in CHAT])
    table = read(path)
    assert table.chat
    assert list(table.prompts) == CHAT
    assert table.columns["extra"] == [{"a": [1, "x"]}] * 2
    pq.write_table(pa.Table.from_pylist([{"prompt": chat} for chat in CHAT]), tmp_path / "chat.parquet")
    assert list(read(tmp_path / "chat.parquet").prompts) == CHAT
    named = [[{"role": "user", "content": "hi", "name": "Bo"}], CHAT[1]]  # Parquet gives the second an empty name
    pq.write_table(pa.Table.from_pylist([{"prompt": chat} for chat in named]), tmp_path / "named.parquet")
    assert list(read(tmp_path / "named.parquet").prompts) == named


def test_cells_of_json_keep_their_own_types(tmp_path):
    rows = [{"prompt": "a", "answer": 3}, {"prompt": "b", "answer": "x", "more": 1.5}]
    table = read(lines(tmp_path / "mixed.jsonl", rows))
    assert table.columns == {"answer": [3, "x"], "more": [None, 1.5]}


def test_verl_parquet(tmp_path):
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"content": "How many? Put it after ####.", "role": "user"}],
            "ability": "math",
            "reward_model": {"ground_truth": "72", "style": "rule"},
            "extra_info": {"index": index, "split": "train"},
        }
        for index in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    table = read(tmp_path / "train.parquet")
    assert table.columns["answer"] == ["72"] * 3
    assert table.columns["extra_info"] == [row["extra_info"] for row in rows]
    assert list(table.prompts) == [row["prompt"] for row in rows]
    assert usual_rewards(table) == ["number"]


def test_gsm8k_and_math(tmp_path):
    rows = [{"question": "How many?", "answer": "2 * 540 = <<2*540=1080>>1080\n#### 1,080"}]
    table = read(lines(tmp_path / "gsm8k.jsonl", rows))
    assert as_rows(table) == [{"prompt": "How many?", "answer": "1080", "solution": rows[0]["answer"]}]
    assert usual_rewards(table) == ["number"]
    plain = read(lines(tmp_path / "plain.jsonl", [{"question": "How many?", "answer": "many"}]))
    assert as_rows(plain) == [{"prompt": "How many?", "answer": "many"}]
    rows = [{"problem": "Find x.", "answer": "\\frac{1}{2}", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": 5}]
    table = read(lines(tmp_path / "math.jsonl", rows))
    assert as_rows(table) == [
        {"prompt": "Find x.", **{name: rows[0][name] for name in ("answer", "solution", "level")}}
    ]
    assert usual_rewards(table) == ["math"]


def test_generated_prompts_stand_beside_one_another():
    table = read(["embedded:chain_sum", "embedded:modular-new"])
    assert len(table) == 2500
    assert usual_rewards(table) == ["task"]
    assert table.row(0)["task"] == "chain_sum"
    assert table.row(2499)["task"] == "modular"


@pytest.mark.parametrize(
    ("columns", "rewards"),
    [
        ({}, []),
        ({"answer": ["3"]}, []),
        ({"answer": ["3"], "solution": ["three"]}, []),
        ({"solution": [r"so \\boxed{3}"]}, ["math"]),
        ({"answer": ["3"], "data_source": ["lighteval/MATH"]}, ["math"]),
        ({"data_source": ["lighteval/MATH"]}, []),
        ({"answer": ["3"], "data_source": ["math_dapo"]}, []),  # its prompts ask for a line "Answer: 3"
        ({"answer": [3], "numbers": [[1, 2]]}, ["countdown"]),
        ({"answer": [3], "task": ["chain_sum"]}, ["task"]),
        ({"answer": [3], "task": ["translation"]}, []),
    ],
)
def test_rewards_that_go_without_saying(columns, rewards):
    assert usual_rewards(Prompts(("1+2=",), columns)) == rewards


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", "", "has no rows; expected one JSON object a line"),
        ("rows.jsonl", "\n\n", "has no rows"),
        ("rows.csv", "", "is empty"),
        ("rows.csv", "prompt,answer\n", "has a header but no rows"),
        (
            "rows.jsonl",
            '{"text": "a", "answer": 1}\n',
            "has no column 'prompt'; its columns are: text, answer; expected",
        ),
        ("rows.csv", "text,answer\na,b\n", "has no column 'prompt'; its columns are: text, answer; expected"),
        ("rows.jsonl", '{"prompt": "a"}\n\n{"prompt": null}\n', "row 2: the prompt is missing"),
        ("rows.jsonl", '{"prompt": "a"}\n{"answer": 1}\n', "row 2: the prompt is missing"),
        ("rows.csv", "prompt,answer\na,1\n,2\n", "row 2: the prompt is missing"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt":\n', "line 2: is not JSON"),
        ("rows.jsonl", '{"prompt": "a"}\n["prompt"]\n', "line 2: is a list; expected an object"),
        ("rows.jsonl", '{"prompt": "a", "completions": 1}\n', "a column is called 'completions'"),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message) as told:
        read(path)
    assert str(told.value).startswith(str(path))


def test_places_that_hold_no_file(tmp_path):
    lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no such file. Did you mean '.*rows\.jsonl'\?"):
        read(tmp_path / "row.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "folder.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not encoded in UTF-8"):
        read(tmp_path / "latin.jsonl")
    with pytest.raises(InputError, match="no prompts were given"):
        read([])
    with pytest.raises(InputError, match="no task 'sums'"):
        read("embedded:sums")


def test_what_the_module_offers_is_there():
    assert all(hasattr(prompts, name) for name in prompts.__all__)
