"""The tokenizer of the embedded tasks: what has an id, what has none, and the same ids in transformers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanov.core.errors import InputError
from sanov.data.tasks import TASKS
from sanov.data.tokens import CHARACTERS, SPECIAL, CharTokenizer

TOKENIZER = CharTokenizer()
TEXTS = st.text(alphabet=CHARACTERS, max_size=60)


@given(TEXTS)
def test_text_comes_back_and_no_special_id_is_made(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) == len(text)
    special = {TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos, *TOKENIZER.reserved}
    assert len(special) == len(SPECIAL) == 5
    assert special.isdisjoint(ids)
    assert special | set(range(len(CHARACTERS))) == set(range(TOKENIZER.vocabulary)) == set(range(32))


def test_special_ids_say_nothing_in_text_and_their_names_among_tokens():
    ids = [TOKENIZER.bos, *TOKENIZER.encode("1+2"), TOKENIZER.reserved[0], TOKENIZER.eos, TOKENIZER.pad]
    assert TOKENIZER.decode(ids) == "1+2"
    assert TOKENIZER.tokens(ids) == ["<|bos|>", "1", "+", "2", "<|reserved_0|>", "<|eos|>", "<|pad|>"]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_written(name):
    table = TASKS[name]().rows(50, 0, "train")
    for prompt, solution in zip(table.prompts, table.columns["solution"], strict=True):
        assert TOKENIZER.decode(TOKENIZER.encode(prompt + solution)) == prompt + solution


@pytest.mark.parametrize("unknown", ["f", "A", "<", "\n", "é", "²"])
def test_an_unknown_character_is_named_with_its_row(unknown):
    with pytest.raises(InputError) as told:
        TOKENIZER.encode_rows(["1+2=", f"12{unknown}"], name="mine.jsonl")
    assert str(told.value).startswith(f"mine.jsonl, row 2: character 3 is {unknown!r}, which has no token")


@pytest.mark.parametrize("token", [-1, 32])
def test_an_id_outside_is_refused(token):
    with pytest.raises(InputError, match=f"no token {token}"):
        TOKENIZER.decode([token])


def test_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        CharTokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    assert CharTokenizer.load(tmp_path) == TOKENIZER
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["model"]["vocab"]["z"] = tree["model"]["vocab"].pop("a")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"another tokenizer \(32 tokens\)"):
        CharTokenizer.load(tmp_path)


def test_transformers_gives_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (
        TOKENIZER.pad,
        TOKENIZER.bos,
        TOKENIZER.eos,
    )
    assert len(theirs) == theirs.vocab_size == TOKENIZER.vocabulary
    assert theirs.get_vocab() == TOKENIZER.token_ids()
    for text in (CHARACTERS, CHARACTERS[::-1], " 1 , 2  = a", "a12+7-3=", "", "((3*7)+2)%9?:"):
        ids = TOKENIZER.encode(text)
        assert theirs(text).input_ids == ids
        with_special = [*ids, TOKENIZER.reserved[0], TOKENIZER.eos, TOKENIZER.pad]
        assert theirs.decode(with_special, skip_special_tokens=True) == TOKENIZER.decode(with_special) == text
        assert theirs.convert_ids_to_tokens(with_special) == TOKENIZER.tokens(with_special)
    padded = theirs(["1", "1+2"], padding=True).input_ids
    assert padded[0] == [TOKENIZER.pad, TOKENIZER.pad, *TOKENIZER.encode("1")]  # prompts are padded on the left
    with pytest.raises(Exception, match="UNK"):
        theirs("é")
    theirs.save_pretrained(tmp_path / "theirs")
    assert CharTokenizer.load(tmp_path / "theirs") == TOKENIZER
