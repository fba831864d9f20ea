"""Images to learn from: embedded ones, arrays, or tables of pixels; all in [-1, 1], with what their numbers were."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sanov.core import files, frames
from sanov.core.errors import InputError
from sanov.data import distillation, images
from sanov.data.distillation import DistilTable
from sanov.systems.rlg.gaussian import Pair

__all__ = ["Images", "Normal", "read"]

PREFIX, NORMAL = "embedded:", "normal"
EMBEDDED = ("digits", "mnist")
WHITES = (1.0, 16.0, 255.0, 65_535.0)  # the largest values that pixels usually have
FEWEST = 8


@dataclass(frozen=True, eq=False)
class Images:
    """Images, and the class of each where it is known.

    Parameters
    ----------
    pixels
        In [-1, 1].
    labels
        Places in `classes`; None where there are none.
    classes
        Names of the classes.
    white
        The value that became 1; 0 became -1.
    name
        Of the source.
    """

    pixels: Float32[Tensor, "rows channels height width"]
    labels: Int64[Tensor, " rows"] | None
    classes: tuple[str, ...]
    white: float
    name: str

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Tensor) -> Images:
        """Return some of the rows."""
        labels = None if self.labels is None else self.labels[rows]
        return Images(self.pixels[rows], labels, self.classes, self.white, self.name)

    def digest(self) -> str:
        """Return a digest of pixels and labels."""
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return files.digest(self.pixels.numpy().tobytes() + labels)


@dataclass(frozen=True)
class Normal:
    """Two normal densities in place of images: what can be said without any network."""

    pair: Pair


def read(sources: Sequence[Any], pair: Pair) -> Images | Normal | None:
    """Read images; ``embedded:normal`` stands for two normal densities, and no source for none.

    Parameters
    ----------
    sources
        ``embedded:digits`` or ``embedded:mnist``; an .npz file or a mapping with ``images`` (rows, height, width and
        channels, if there are several) and perhaps ``labels``; or a table with a column for each pixel of a square, and
        perhaps ``label``.
    pair
        The two normal densities.

    Raises
    ------
    InputError
        Several sources, or one that holds no images.
    """
    if not sources:
        return None
    if len(sources) > 1:
        raise InputError(f"there are {len(sources)} sources", where="rlg", expected="one table or file of images")
    source = sources[0]
    if isinstance(source, str) and source.startswith(PREFIX):
        return _embedded(source, pair)
    arrays = _arrays(source)
    if arrays is not None:
        return _of_arrays(arrays, frames.name_of(source))
    return _of_table(distillation.read([source]))


def _embedded(source: str, pair: Pair) -> Images | Normal:
    name = source.removeprefix(PREFIX)
    if name == NORMAL:
        return Normal(pair)
    if name not in EMBEDDED:
        expected = ", ".join(PREFIX + known for known in (*EMBEDDED, NORMAL))
        raise InputError("there are no such images", where=source, expected=f"one of {expected}")
    return _of_table(images.digits() if name == "digits" else images.mnist())


def _arrays(source: Any) -> Mapping[str, Any] | None:
    """Return arrays by name where the source has one of images."""
    if isinstance(source, Mapping):
        return source if "images" in source else None
    if not frames.is_path(source) or Path(source).suffix.lower() != ".npz":
        return None
    try:
        with np.load(source, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read ({error})", where=str(source), expected="an .npz file of arrays") from None
    return arrays if "images" in arrays else None


def _of_arrays(arrays: Mapping[str, Any], name: str) -> Images:
    values = np.asarray(arrays["images"])
    if values.ndim not in (3, 4) or values.dtype.kind not in "uif":
        found = f"`images` has shape {values.shape} and type {values.dtype}"
        raise InputError(found, where=name, expected="numbers: rows, height, width, and perhaps channels")
    values = values[..., None] if values.ndim == 3 else values
    labels = np.asarray(arrays["labels"]) if "labels" in arrays else None
    if labels is not None and labels.shape != (len(values),):
        raise InputError(f"`labels` has shape {labels.shape}", where=name, expected=f"({len(values)},)")
    classes, codes = ((), None) if labels is None else np.unique(labels, return_inverse=True)
    return _images(values.transpose(0, 3, 1, 2), codes, tuple(map(str, classes)), name)


def _of_table(table: DistilTable) -> Images:
    if isinstance(table.inputs, tuple):
        raise InputError("holds texts", where=table.name, expected="a column for each pixel")
    side = math.isqrt(table.inputs.shape[1])
    if side * side != table.inputs.shape[1]:
        found = f"there are {table.inputs.shape[1]} columns of pixels, which make no square"
        raise InputError(found, where=table.name, fix="save an .npz file with `images` of their shape")
    labels = table.labels
    if labels is not None and (labels < 0).any():
        raise InputError(f"{int((labels < 0).sum())} rows have no label", where=table.name, fix="leave out these rows")
    return _images(
        table.inputs.reshape(-1, 1, side, side), labels, table.classes if labels is not None else (), table.name
    )


def _images(values: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...], name: str) -> Images:
    if len(values) < FEWEST:
        raise InputError(f"there are {len(values)} images", where=name, expected=f"at least {FEWEST}")
    low, high = float(values.min()), float(values.max())
    white = next((white for white in WHITES if high <= white), None)
    if not (np.isfinite(values).all() and low >= 0 and white):
        raise InputError(
            f"pixels lie between {low:g} and {high:g}",
            where=name,
            expected="finite numbers from 0 (black) to 1, 16 or 255",
        )
    pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) * (2 / white) - 1
    codes = None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return Images(pixels, codes, classes, white, name)
