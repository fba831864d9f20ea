"""Tokenizers of Hugging Face behind the few words that `learning.rollouts` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data.tokens import CharTokenizer
from sanov.nets import foreign

__all__ = ["Vocabulary", "load_tokenizer"]


class Vocabulary:
    """A tokenizer of Hugging Face.

    Parameters
    ----------
    tokenizer
        Of the transformers library.
    name
        For messages.

    Raises
    ------
    InputError
        It has no token that ends a text.
    """

    bos = None  # the tokenizer itself puts it in front, or does not

    def __init__(self, tokenizer: Any, name: str = "the tokenizer"):
        if tokenizer.eos_token_id is None:
            fix = "set tokenizer.eos_token to the token that ends an answer, and save it"
            raise InputError("the tokenizer has no EOS token: rollouts would never end", where=name, fix=fix)
        self.tokenizer, self.name = tokenizer, name
        self.eos = int(tokenizer.eos_token_id)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.vocabulary = len(tokenizer)

    def encode(self, text: Any) -> list[int]:
        """Return the tokens of a prompt, or of chat messages by the tokenizer's template; a completion follows them.

        Raises
        ------
        InputError
            There are messages and no template.
        """
        if isinstance(text, str):
            ids: list[int] = self.tokenizer(text)["input_ids"]
            return ids[:-1] if ids and ids[-1] == self.eos else ids
        if self.tokenizer.chat_template is None:
            fix = "give prompts as text, or a tokenizer with a chat template"
            raise InputError("the prompts are chats, and the tokenizer has no template", where=self.name, fix=fix)
        found = self.tokenizer.apply_chat_template(
            list(text), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(found["input_ids"])

    def continued(self, text: str) -> list[int]:
        """Return the tokens of a written completion, without anything in front."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_ids(self) -> Mapping[str, int]:
        """Return the number of each token, special ones included."""
        found: Mapping[str, int] = self.tokenizer.get_vocab()
        return found

    def save(self, folder: str | Path) -> None:
        """Write it into a folder."""
        self.tokenizer.save_pretrained(str(folder))


def load_tokenizer(folder: str | Path) -> CharTokenizer | Vocabulary:
    """Load the tokenizer of a folder: that of the embedded tasks, or any of Hugging Face.

    Raises
    ------
    InputError
        The folder holds none, or one without EOS.
    """
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        tree = files.read_json(path)
        if isinstance(tree, dict) and len(tree.get("model", {}).get("vocab", ())) == CharTokenizer.vocabulary:
            return CharTokenizer.load(folder)
    return Vocabulary(foreign.load_tokenizer(folder), str(folder))
