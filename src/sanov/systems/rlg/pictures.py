"""Images as PNG files that say where they come from, and sheets of them."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sanov.core import files
from sanov.core.errors import InputError

__all__ = ["data_address", "pixels", "png", "sheet", "written"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {1: 0, 3: 2}  # channels to the format's kind of colour
GAP = 1  # pixels between the images of a sheet


def pixels(images: Float[Tensor, "rows channels height width"]) -> UInt8[np.ndarray, "rows height width channels"]:
    """Return images in [-1, 1] as bytes, 0 for black; what lies outside is cut."""
    found: np.ndarray = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return found


def png(image: UInt8[np.ndarray, "height width channels"], about: Mapping[str, str] | None = None) -> bytes:
    """Return a PNG file of one image.

    Parameters
    ----------
    image
        One channel (grey) or three.
    about
        Written into the file as text, by keyword.

    Raises
    ------
    InputError
        Another number of channels.
    """
    height, width, channels = image.shape
    if channels not in COLOURS:
        raise InputError(f"an image has {channels} channels", where="PNG", expected="1 or 3")
    header = struct.pack(">IIBBBBB", width, height, 8, COLOURS[channels], 0, 0, 0)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)  # 0: unfiltered
    chunks = [_chunk(b"IHDR", header)]
    for keyword, text in (about or {}).items():
        chunks.append(_chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1", "replace")))
    chunks += [_chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def written(path: Path, image: UInt8[np.ndarray, "height width channels"], about: Mapping[str, str]) -> None:
    """Write a PNG file."""
    files.write_bytes(path, png(image, about))


def data_address(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Return an image as an address that holds it, for a page that asks no host."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def sheet(
    grid: UInt8[np.ndarray, "rows columns height width channels"], scale: int
) -> UInt8[np.ndarray, "tall wide channels"]:
    """Return images in rows and columns as one, each pixel a square of so many."""
    rows, columns, height, width, channels = grid.shape
    tall, wide = rows * (height + GAP) - GAP, columns * (width + GAP) - GAP
    found = np.full((tall, wide, channels), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + GAP), column * (width + GAP)
            found[top : top + height, left : left + width] = grid[row, column]
    return found.repeat(scale, axis=0).repeat(scale, axis=1)
