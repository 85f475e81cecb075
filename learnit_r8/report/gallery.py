"""The samples of a page as cards, with the pictures and texts that the user gives."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.text import clean, number

if TYPE_CHECKING:
    from .data import Row

SIDE = 96
"""Longest side of an array's picture, in pixels; larger arrays are averaged down."""
MOST_BYTES = 2**16
"""Largest PNG or JPEG file that is embedded."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""The colour type of PNG by the number of channels: grey, grey and alpha, RGB, RGBA."""


def data_address(picture: Any) -> str:
    """The ``data:`` address of a picture.

    Args:
        picture: Bytes of a PNG or JPEG file of at most 64 kB; or an array as `pixels_of` takes it.

    Raises:
        TypeError: it is neither.
        ValueError: the bytes are of another format or too many, or the array has another shape.
    """
    content = bytes(picture) if isinstance(picture, (bytes, bytearray, memoryview)) else png_of(pixels_of(picture))
    kind = "png" if content.startswith(PNG) else "jpeg" if content.startswith(JPEG) else ""
    if not kind:
        raise ValueError(f"thumbnail must give bytes of a PNG or JPEG file, got bytes that begin with {content[:8]!r}.")
    if len(content) > MOST_BYTES:
        raise ValueError(f"thumbnail must give at most {MOST_BYTES:,} bytes a picture, got {len(content):,}.")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pixels_of(picture: Any) -> NDArray[np.uint8]:
    """The pixels of an array, at most 96 a side.

    Args:
        picture: Array, or what numpy makes one of (a tensor on the CPU, a PIL image): [H, W], [H, W, C] or [C, H, W]
            with 1 to 4 channels. Integers and booleans are in [0, 255]; floats in [0, 1], or else their own range is
            stretched to the whole scale, NaN black.

    Returns:
        uint8[h, w, C].

    Raises:
        TypeError: it holds no numbers.
        ValueError: it is empty, or has another shape.
    """
    array = np.asarray(picture)
    if array.dtype.kind not in "buif":
        raise TypeError(
            f"thumbnail must give an array of numbers or bytes of a PNG file, got a {type(picture).__name__}."
        )
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[-1] > 4 and array.shape[0] <= 4:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or not array.size or array.shape[-1] > 4:
        raise ValueError(
            f"thumbnail must give an array of shape [H, W], [H, W, C] or [C, H, W] with 1 to 4 channels, got "
            f"{np.shape(picture)}."
        )
    # Means of square blocks, as few pixels a block as bring the longest side to 96.
    values = _scaled(array)
    height, width, channels = values.shape
    block = -(-max(height, width) // SIDE)
    if block > 1:
        tall, wide = -(-height // block), -(-width // block)
        values = np.pad(values, ((0, tall * block - height), (0, wide * block - width), (0, 0)), mode="edge")
        values = values.reshape(tall, block, wide, block, channels).mean(axis=(1, 3))
    return np.rint(values).astype(np.uint8)


def _scaled(array: NDArray[Any]) -> NDArray[np.float64]:
    """The values as floats in [0, 255]."""
    values = array.astype(np.float64)
    if array.dtype.kind == "b":
        return values * 255
    if array.dtype.kind in "ui":
        return np.clip(values, 0, 255)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-300), 0, 1), nan=0.0) * 255


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels.

    Args:
        pixels: uint8[H, W, C] with 1 to 4 channels: grey, grey and alpha, RGB, RGBA.

    Source: the PNG specification, third edition (W3C 2025); no filter, one IDAT chunk.
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


MOST_TOTAL = 2**21
"""Most bytes of pictures in a page; samples beyond go without."""


class Look(NamedTuple):
    """What a user can add to the samples of a report.

    Attributes:
        thumbnail: Returns the picture of a sample, given its index: an array, bytes of a PNG or JPEG file, or None.
        describe: Returns a text about it.
    """

    thumbnail: Callable[[int], Any] | None = None
    describe: Callable[[int], object] | None = None

    def of(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """A card for each row, as `page.js` draws it; pictures that no longer fit into the page are left out."""
        cards, room = [], MOST_TOTAL
        for row in rows:
            picture = None if self.thumbnail is None else self.thumbnail(row.number)
            address = "" if picture is None else data_address(picture)
            address = address if len(address) <= room else ""
            room -= len(address)
            lines = [clean(row.name, 60) if row.name != str(row.number) else f"#{row.number}"]
            lines += [] if self.describe is None else [clean(self.describe(row.number), 120)]
            score = f"score {row.score:.2f}, " if math.isfinite(row.score) else ""
            lines.append(f"{score}mean loss {number(row.mean)}")
            history = [value if math.isfinite(value) else None for value in row.history]
            card = {"number": row.number, "picture": address, "lines": [*lines, *([clean(row.why)] if row.why else [])]}
            labels = {"given": clean(row.given, 40), "suggested": clean(row.suggested, 40), "votes": row.votes}
            cards.append(card | labels | {"history": history})
        return cards


NO_LOOK = Look()
