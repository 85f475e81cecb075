"""The gallery: the most suspect samples with their pictures, and which labels are confused with which."""

from __future__ import annotations

import base64
import io
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dashboard.export import write_csv
from ..dashboard.render.svg import sparkline
from ..events.text import number, share
from .charts import text
from .style import wide_table

if TYPE_CHECKING:
    from .data import Confusion, ReportData, Row

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

GALLERY_STYLE = """
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:12px;margin:8px 0}
.gallery figure{margin:0;padding:8px;border:1px solid var(--rule);border-radius:8px;min-width:0}
.gallery img{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;
background:var(--paper);border-radius:4px;margin-bottom:6px}
.gallery figcaption{font-size:12px;line-height:1.4;color:var(--quiet);overflow-wrap:anywhere}
.gallery b{color:var(--ink);font-weight:600}.gallery .better{color:var(--alert)}
.matrix td,.matrix th{text-align:right;white-space:nowrap;padding:3px 8px}
.matrix .none{color:var(--faint)}
""" + "".join(
    f".shade{part}{{background:color-mix(in srgb,var(--alert) {part}%,transparent)}}" for part in range(5, 55, 5)
)


class Look(NamedTuple):
    """What a user can add to the samples of a report.

    Attributes:
        thumbnail: Returns the picture of a sample, given its index: an array, bytes of a PNG or JPEG file, or None.
        describe: Returns a text about it.
    """

    thumbnail: Callable[[int], Any] | None = None
    describe: Callable[[int], object] | None = None

    def of(self, rows: Sequence[Row]) -> list[Card]:
        """A card for each row; pictures that no longer fit into the page are left out."""
        cards, room = [], MOST_TOTAL
        for row in rows:
            picture = None if self.thumbnail is None else self.thumbnail(row.number)
            address = "" if picture is None else data_address(picture)
            address = address if len(address) <= room else ""
            room -= len(address)
            about = "" if self.describe is None else str(self.describe(row.number))
            cards.append(Card(row, address, about))
        return cards


class Card(NamedTuple):
    """A sample in the gallery.

    Attributes:
        row: What is known of it.
        picture: The ``data:`` address of its picture; "" without one.
        about: The user's text.
    """

    row: Row
    picture: str
    about: str


NO_LOOK = Look()


def gallery_of(data: ReportData, look: Look) -> Iterator[tuple[str, str, str]]:
    """Title, body and note of the gallery, and of the table of confused labels, as far as there are any.

    Without a verdict there is a gallery only where the user gives something to look at.
    """
    if not data.ranked or not (data.suspects or look != NO_LOOK):
        return
    cards = look.of(data.ranked)
    body, first = f'<div class="gallery">{"".join(map(card_text, cards))}</div>', f"The first {len(cards):,}"
    if not data.suspects:
        yield (
            "Samples to look at",
            body,
            f"{first} by mean loss. This is an order and no verdict: no sample is called mislabelled.",
        )
        return
    total = 0 if data.verdict is None else len(data.verdict.indices)
    yield "Labels to look at", body, f"{first} of {total:,} samples that look mislabelled, most suspect first."
    if data.confusion is not None:
        note = "Samples that look mislabelled, by the label they have and the one that was predicted most."
        yield "Which labels are confused", confusion_table(data.confusion), note


def card_text(card: Card) -> str:
    """A sample as a figure."""
    row = card.row
    picture = f'<img src="{card.picture}" alt="sample {row.number}">' if card.picture else ""
    lines = [f"<b>{_labels(row)}</b>"] if row.given or row.suggested else []
    lines += [text(row.name, 60)] if row.name != str(row.number) else [f"#{row.number}"]
    lines += [text(card.about, 120)] if card.about else []
    score = f"score {row.score:.2f}, " if math.isfinite(row.score) else ""
    lines.append(f"{score}mean loss {number(row.mean)}")
    lines += [text(row.why)] if row.why else []
    return f"<figure>{picture}<figcaption>{'<br>'.join(lines)}{sparkline(row.history)}</figcaption></figure>"


def _labels(row: Row) -> str:
    given = text(row.given or "?", 40)
    if not row.suggested:
        return given
    votes = f' title="predicted at {row.votes:,} visits or more"' if row.votes else ""
    return f'{given} → <span class="better"{votes}>{text(row.suggested, 40)}</span>'


def confusion_table(confusion: Confusion, instead: str = "should be") -> str:
    """The counts as a table: a row for each label given, a column for each suggested; darker for more."""
    most = max(1, int(confusion.counts.max()))
    rows = (
        f"<tr><th>{text(label, 20)}</th>{''.join(_counts(row.tolist(), most))}</tr>"
        for label, row in zip(confusion.labels, confusion.counts, strict=True)
    )
    return wide_table("matrix", (f"given ↓ {instead} →", *(text(label, 20) for label in confusion.labels)), rows)


def _counts(row: list[int], most: int) -> Iterator[str]:
    for count in row:
        shade = 5 * -(-10 * count // most)
        yield f'<td class="shade{shade}">{count:,}</td>' if count else '<td class="none">·</td>'


MOST_CURVES = 100
"""Rows with the curve of their losses."""

HEAD = ("mark", "#", "sample", "label", "should be", "odds", "mean loss", "uses", "epochs", "why")
COLUMNS = ("index", "name", "label", "should_be", "score", "mean_loss", "uses", "votes", "why")


def suspect_table(rows: Sequence[Row], total: int) -> tuple[str, str]:
    """The table, and a sentence on what it shows."""
    shown = f"All {total:,}" if len(rows) == total else f"The first {len(rows):,} of {total:,}"
    out = io.StringIO(newline="")
    cells = (
        (
            row.number,
            row.name,
            row.given,
            row.suggested,
            "" if math.isnan(row.score) else round(row.score, 4),
            row.mean,
            row.uses,
            row.votes,
            row.why,
        )
        for row in rows
    )
    write_csv(out, COLUMNS, cells)
    address = base64.b64encode(out.getvalue().encode()).decode()
    export = f'<a download="suspects.csv" href="data:text/csv;base64,{address}">Save them as CSV</a>'
    note = (
        f"{shown} samples that look mislabelled, most suspect first. Odds: the probability that the label is wrong, by "
        f"this model. {export}; or run learnit-r8 samples --suspects."
    )
    return wide_table("suspects", HEAD, itertools.starmap(_row, enumerate(rows)), is_tall=True), note


def _row(place: int, row: Row) -> str:
    curve = sparkline(row.history) if place < MOST_CURVES else ""
    odds = share(row.score, 0) if math.isfinite(row.score) else ""
    cells = (
        f'<input type="checkbox" aria-label="mark sample {row.number}">',
        str(row.number),
        text(row.name, 100),
        text(row.given, 40),
        text(row.suggested, 40),
        odds,
        number(row.mean, 4),
        f"{row.uses:,}",
        curve,
        text(row.why),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
