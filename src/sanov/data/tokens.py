"""The tokenizer of the embedded tasks: one token a character, 32 tokens in all.

Teacher and student share it. Its folder is one that ``transformers.AutoTokenizer`` loads, with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sanov.core import files
from sanov.core.errors import InputError

__all__ = ["CHARACTERS", "SPECIAL", "CharTokenizer"]

CHARACTERS = "0123456789+-*/%=(),:? abcde"
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|reserved_0|>", "<|reserved_1|>")
IDS = {character: place for place, character in enumerate(CHARACTERS)}
FIRST_SPECIAL = len(CHARACTERS)
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class CharTokenizer:
    """Digits, the signs of arithmetic, a space, and the letters of five tasks.

    No text leads to `pad`, `bos`, `eos` or the `reserved` ids, and nothing is added before or after a text. The first
    reserved id is there for a score of the model's own, the second is spare.
    """

    pad: ClassVar[int] = FIRST_SPECIAL
    bos: ClassVar[int] = FIRST_SPECIAL + 1
    eos: ClassVar[int] = FIRST_SPECIAL + 2
    reserved: ClassVar[tuple[int, ...]] = (FIRST_SPECIAL + 3, FIRST_SPECIAL + 4)
    vocabulary: ClassVar[int] = FIRST_SPECIAL + len(SPECIAL)

    def encode(self, text: str, *, where: str = "the text") -> list[int]:
        """Return the ids of a text.

        Parameters
        ----------
        text
            Of `CHARACTERS` only.
        where
            What to call the text in a message, such as ``"prompts.jsonl, row 3"``.

        Raises
        ------
        InputError
            A character that has no id.
        """
        try:
            return [IDS[character] for character in text]
        except KeyError as error:
            (unknown,) = error.args
            found = f"character {text.index(unknown) + 1} is {unknown!r}, which has no token"
            fix = "policy=DIR for a model that knows ordinary text"
            raise InputError(found, where=where, expected=f"text of these alone: {CHARACTERS}", fix=fix) from None

    def encode_rows(self, texts: Iterable[str], *, name: str = "the texts") -> list[list[int]]:
        """Return the ids of each text.

        Raises
        ------
        InputError
            A character that has no id, with its row (the first is 1).
        """
        return [self.encode(text, where=f"{name}, row {row}") for row, text in enumerate(texts, start=1)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special ids say nothing.

        Raises
        ------
        InputError
            An id outside the vocabulary.
        """
        return "".join(self.tokens(ids, special=False))

    def tokens(self, ids: Iterable[int], *, special: bool = True) -> list[str]:
        """Return the name of each id, as a person reads it: a character, or ``<|eos|>``.

        Raises
        ------
        InputError
            An id outside the vocabulary.
        """
        names = []
        for token in map(int, ids):
            if not 0 <= token < self.vocabulary:
                raise InputError(f"there is no token {token}", expected=f"0 to {self.vocabulary - 1}")
            names.append(NAMES[token])
        return names if special else [name for name in names if len(name) == 1]

    def continued(self, text: str) -> list[int]:
        """Return the ids of a completion: those of its text."""
        return self.encode(text, where="the completion")

    def token_ids(self) -> dict[str, int]:
        """Return the id of each token's name."""
        return {name: place for place, name in enumerate(NAMES)}

    def save(self, directory: str | Path) -> None:
        """Write the files that ``AutoTokenizer.from_pretrained`` reads into a folder, beside what is there."""
        folder = Path(directory)
        for name, tree in zip(FILES, (_tokenizer(), _config(), _special_map()), strict=True):
            files.write_json(folder / name, tree)

    @classmethod
    def load(cls, directory: str | Path) -> CharTokenizer:
        """Return the tokenizer of a folder that `save` wrote.

        Raises
        ------
        InputError
            The folder holds none, or another.
        """
        path = Path(directory) / FILES[0]
        tree = files.read_json(path)
        vocabulary = tree.get("model", {}).get("vocab") if isinstance(tree, dict) else None
        if vocabulary != {name: place for place, name in enumerate(NAMES)}:
            size = len(vocabulary) if isinstance(vocabulary, dict | list) else "no"
            found = f"is another tokenizer ({size} tokens)"
            raise InputError(found, where=str(path), expected=f"the {cls.vocabulary} tokens of the embedded tasks")
        return cls()


NAMES: Sequence[str] = (*CHARACTERS, *SPECIAL)


# -- the folder -------------------------------------------------------------------------------------------------------


def _tokenizer() -> dict[str, Any]:
    """The file of the tokenizers library: a text falls into characters, each of which is a word."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": FIRST_SPECIAL + place, "content": name, "special": True, **_plain_token()}
            for place, name in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # The name of the unknown is no token: the library then refuses an unknown character, as `encode` does.
        "model": {"type": "WordLevel", "vocab": {name: place for place, name in enumerate(NAMES)}, "unk_token": ""},
    }


def _plain_token() -> dict[str, bool]:
    return {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # of prompts, which a completion follows
        **_special_map(),
    }


def _special_map() -> dict[str, Any]:
    pad, bos, eos, *reserved = SPECIAL
    return {"pad_token": pad, "bos_token": bos, "eos_token": eos, "additional_special_tokens": reserved}
