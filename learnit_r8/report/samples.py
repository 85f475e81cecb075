"""The sections of a page on samples: verdict, gallery with pictures, suspects, map, classes, calibration."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dashboard.state.curve import range_of
from ..events.text import clean, number, share
from ..journal.samples import Samples, more_before, verdict_text
from ..table.labels.overview import Overview
from ..table.labels.suspects import Suspects
from ..table.quantiles import top
from .document import Data, bars, chart, curve, document, known, section, table

LISTED = 30
MOST_SUSPECTS = 1000
IN_GALLERY = 48


class Row(NamedTuple):
    """A sample in a table.

    Attributes:
        number: Position of the sample.
        name: Name of the sample, else its position.
        loss, last, mean: Estimate, last and mean observation.
        uses: Number of times the sample was learned from.
        history: Last observation in each of the kept epochs.
        why: Reason for suspicion; "" if the sample is no suspect.
        score: Score of a suspect; else NaN.
        given, suggested: The label that it was trained on, and that which it should have; "" where unknown.
        votes: Visits at which the suggested label was predicted, at least; 0 if unknown.
    """

    number: int
    name: str
    loss: float
    last: float
    mean: float
    uses: int
    history: list[float]
    why: str
    score: float = math.nan
    given: str = ""
    suggested: str = ""
    votes: int = 0


class SamplesData(NamedTuple):
    """What the samples files of a run say, or a table while it learns.

    Attributes:
        newest: The newest samples.
        verdict: The verdict on wrong labels by them.
        history: float32[F, N], the last observation of every sample in each samples file.
        more_before: An epoch with more suspects, and how many; "" without one.
        hardest: The samples with the highest loss.
        suspects: The samples that look mislabelled; empty unless losses are exact.
        ranked: The suspects, or where there are none the samples with the highest mean loss; empty unless losses are
            exact.
        confusion: The suspects by label given and suggested; None where no label is suggested.
        overview: How every sample was learnt; None without predictions.
    """

    newest: Samples
    verdict: Suspects
    history: NDArray[np.float32]
    more_before: str = ""
    hardest: Sequence[Row] = ()
    suspects: Sequence[Row] = ()
    ranked: Sequence[Row] = ()
    confusion: Confusion | None = None
    overview: Overview | None = None

    @classmethod
    def of(cls, files: Sequence[Samples], precision: float) -> SamplesData:
        """What samples files say, oldest first, at least one."""
        samples = files[-1]
        verdict = samples.suspects(precision)
        data = cls(samples, verdict, np.stack([samples.last for samples in files]))
        ranked = verdict.indices if len(verdict.indices) else samples.ranking(IN_GALLERY).indices
        # The labels that look wrong, and what they should be; none of numbers, of which hardly any come again.
        given, suggested = samples.labels(verdict.indices, verdict) if verdict.given.dtype.kind != "f" else ([], [])
        if verdict.places is not None:
            given, suggested = verdict.places.given.tolist(), verdict.places.suggested.tolist()
        overview = samples.overview()
        return data._replace(
            more_before=more_before(files, verdict, precision),
            hardest=data.rows(samples.hardest(LISTED)),
            suspects=data.rows(verdict.indices[:MOST_SUSPECTS]),
            confusion=confusion_of(map(label_text, given), map(label_text, suggested)),
            ranked=data.rows(ranked[:IN_GALLERY]) if samples.is_exact else (),
            overview=overview if overview.is_known else None,
        )

    def rows(self, chosen: NDArray[np.int64]) -> list[Row]:
        """What is known of some samples, for a table or a gallery."""
        samples, verdict = self.newest, self.verdict
        suspects = verdict.indices.tolist()
        reasons, scores = dict(zip(suspects, verdict.why, strict=True)), dict(zip(suspects, verdict.score, strict=True))
        votes = dict(zip(suspects, verdict.votes.tolist(), strict=False))
        columns = (samples.loss, samples.last, samples.mean)
        rows = []
        for index, given, predicted in zip(chosen.tolist(), *samples.labels(chosen, verdict), strict=True):
            loss, last, mean = (float(column[index]) for column in columns)
            history, suggested = self.history[:, index].astype(float).tolist(), "" if predicted == given else predicted
            uses, why, score = int(samples.usage_count[index]), reasons.get(index, ""), scores.get(index, math.nan)
            labels = label_text(given), label_text(suggested), votes.get(index, 0)
            rows.append(Row(index, samples.name_of(index), loss, last, mean, uses, history, why, float(score), *labels))
        return rows


def label_text(label: object) -> str:
    """A label as text; "" for None."""
    return "" if label is None else str(label)


MOST_CONFUSED = 12


class Confusion(NamedTuple):
    """How many suspects with each label should have each other one.

    Attributes:
        labels: K labels; the last stands for "others" where there are more than 12.
        counts: int64[K, K], suspects by the label given, and the one suggested.
    """

    labels: list[str]
    counts: NDArray[np.int64]


def confusion_of(given: Iterable[str], suggested: Iterable[str], numbers: Sequence[int] = ()) -> Confusion | None:
    """Count pairs of different labels; None if no such pair is known.

    Args:
        given, suggested: K texts each, "" where unknown.
        numbers: How often each pair counts, K of them; by default once.
    """
    pairs, counts = Counter[tuple[str, str]](), Counter[str]()
    for one, other, count in zip(given, suggested, numbers or repeat(1), strict=False):
        if one and other and one != other:
            pairs[one, other] += count
            counts.update({one: count, other: count})
    if not pairs:
        return None
    names = sorted(counts, key=lambda name: (-counts[name], name))
    # Numbers first, in their order.
    kept = sorted(names[:MOST_CONFUSED], key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
    labels = kept + (["others"] if len(names) > len(kept) else [])
    places = {name: place for place, name in enumerate(kept)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for (one, other), count in pairs.items():
        matrix[places.get(one, len(kept)), places.get(other, len(kept))] += count
    return Confusion(labels, matrix)


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


MOST_CLASSES = 100
CELLS, GRID = (60, 34), (8, 6)
"""Cells of the map and its regions, along the variation and the mean."""
SHOWN, MOST_IDS = 6, 100_000
"""Samples of a region that are shown; ids that a page holds."""


def samples_page(data: SamplesData, look: Look) -> str:
    """The page of the samples alone, as a notebook shows it."""
    sections = [*map_section(data, look), *overview(data), *verdict(data), *classes(data)]
    return document({"title": "samples", "sections": sections}, has_pictures=look.thumbnail is not None)


def verdict(data: SamplesData) -> Iterator[Data]:
    """How many labels look wrong, and how far to trust that."""
    verdict, samples = data.verdict, data.newest
    blocks: list[Data] = [{"big": f"{len(verdict.indices):,}"}] * bool(len(verdict.indices))
    blocks += [{"text": f"{clean(verdict_text(verdict))}."}]
    if data.more_before:
        blocks += [{"text": f"The list is from the newest survey; there were {clean(data.more_before)}."}]
    uses = samples.usage_count
    seen = f"{int((uses > 0).sum()):,} of {len(uses):,} samples were seen"
    uses_text = f"{int(uses.min()):,} to {int(uses.max()):,} times each"
    source = f"Losses of single samples: {clean(samples.source, 40)}. {_trust(data)}"
    blocks += [{"text": f"{seen}, {uses_text}. {source}"}]
    yield section("What the samples say", *blocks, kind="half")


def _trust(data: SamplesData) -> str:
    if data.newest.is_exact:
        return "The loss of every sample was reported, so these numbers are exact."
    return "Only means were reported, so the loss of a single sample is an estimate, and the order of samples is rough."


def gallery(data: SamplesData, look: Look) -> Iterator[Data]:
    """The most suspect samples, and which labels are confused; without a verdict only with something to look at."""
    if not data.ranked or not (data.suspects or look != NO_LOOK):
        return
    cards, first = look.of(data.ranked), f"The first {len(data.ranked):,}"
    if not data.suspects:
        note = f"{first} by mean loss. This is an order and no verdict: no sample is called mislabelled."
        yield section("Samples to look at", {"gallery": cards}, note=note)
        return
    note = f"{first} of {len(data.verdict.indices):,} samples that look mislabelled, most suspect first."
    yield section("Labels to look at", {"gallery": cards}, note=note)
    if data.confusion is not None:
        note = "Samples that look mislabelled, by the label they have and the one that was predicted most."
        yield section("Which labels are confused", _confusion(data.confusion), note=note)


def _confusion(confusion: Confusion, instead: str = "should be") -> Data:
    """A row for each label given, a column for each other one; darker for more."""
    most = max(1, int(confusion.counts.max()))
    labels = [clean(label, 20) for label in confusion.labels]
    rows = [
        [label, *({"share": count / most, "text": f"{count:,}" if count else "·"} for count in row)]
        for label, row in zip(labels, confusion.counts.tolist(), strict=True)
    ]
    return table((f"given ↓ {instead} →", *labels), rows, kind="matrix")


def suspects(data: SamplesData) -> Iterator[Data]:
    """All that look mislabelled, to mark and to save."""
    if not data.suspects:
        return
    total, rows = len(data.verdict.indices), data.suspects
    shown = f"All {total:,}" if len(rows) == total else f"The first {len(rows):,} of {total:,}"
    columns = ("", "#", "sample", "label", "should be", "odds", "mean loss", "uses", "epochs", "why")
    cells = [
        [
            {"check": f"mark sample {row.number}"}, row.number, clean(row.name, 100), clean(row.given, 40),
            clean(row.suggested, 40), share(row.score, 0) if math.isfinite(row.score) else "", row.mean, row.uses,
            {"spark": known(row.history)}, clean(row.why),
        ]
        for row in rows
    ]  # fmt: skip
    saved = {
        "file": "suspects.csv", "say": "Save them as CSV",
        "columns": ["index", "name", "label", "should_be", "score", "mean_loss", "uses", "votes", "why"],
        "rows": [
            [r.number, r.name, r.given, r.suggested, round(r.score, 4), r.mean, r.uses, r.votes, r.why]
            for r in rows
        ],
    }  # fmt: skip
    note = (
        f"{shown} samples that look mislabelled, most suspect first. Odds: the probability that the label is wrong, by "
        "this model. The command is learnit-r8 samples --suspects."
    )
    yield section("Suspects", {"save": saved}, table(columns, cells, kind="suspects", tall=True), note=note)


def hardest(data: SamplesData) -> Iterator[Data]:
    """The samples with the highest losses."""
    rows = [
        [row.number, clean(row.name, 100), row.loss, row.last, row.mean, row.uses, {"spark": known(row.history)},
         f"suspect: {clean(row.why)}" if row.why else ""]
        for row in data.hardest
    ]  # fmt: skip
    columns = ("#", "sample", "loss", "last", "mean", "uses", "epochs", "")
    if rows:
        yield section("Hardest samples", table(columns, rows, kind="samples", tall=True), note=_trust(data))


class Region(NamedTuple):
    """A box of the map.

    Attributes:
        spread, mean: Its ends, from the first to below the second.
        box: Left, top, width and height, as shares of the picture.
        indices: int64[K], the samples in it, those of the highest mean first.
    """

    spread: tuple[float, float]
    mean: tuple[float, float]
    box: tuple[float, float, float, float]
    indices: NDArray[np.int64]


def regions_of(overview: Overview) -> Iterator[Region]:
    """The regions that hold any samples; the outermost reach to infinity."""
    known = np.flatnonzero(np.isfinite(overview.margin) & np.isfinite(overview.variability))
    known = known[np.argsort(-overview.margin[known], kind="stable")]
    ends, places = [], []
    axes = (overview.variability, overview.margin)
    for values, (low, high), count in zip(axes, _ranges(overview), GRID, strict=True):
        # As wide as the numbers that they part.
        inner = np.linspace(low, high, count + 1)[1:-1].astype(values.dtype)
        places.append(np.searchsorted(inner, values[known], side="right"))
        ends.append([-math.inf, *inner.tolist(), math.inf])
    for column, row in np.ndindex(*GRID):
        indices = known[(places[0] == column) & (places[1] == row)]
        if len(indices):
            spans = [(edges[at], edges[at + 1]) for edges, at in zip(ends, (column, row), strict=True)]
            box = (column / GRID[0], 1 - (row + 1) / GRID[1], 1 / GRID[0], 1 / GRID[1])
            yield Region(spans[0], spans[1], box, indices)


def _ranges(overview: Overview) -> tuple[tuple[float, float], tuple[float, float]]:
    """The axes of the map: variation and mean."""
    low, high = -range_of(-overview.margin, share=0.9995)[1], range_of(overview.margin, share=0.9995)[1]
    return (0.0, range_of(overview.variability, share=0.999)[1]), range_of([low, high])


def map_section(data: SamplesData, look: Look) -> Iterator[Data]:
    """Every sample by the mean and the variation of its margin, and the samples of each region."""
    overview, samples, verdict = data.overview, data.newest, data.verdict
    if overview is None:
        return
    (_, widest), (low, high) = _ranges(overview)
    mean, spread = overview.margin, overview.variability
    known = np.isfinite(mean) & np.isfinite(spread)
    places = np.minimum(spread[known], widest), np.clip(mean[known], low, high)
    counts, _, _ = np.histogram2d(*places, bins=CELLS, range=((0, widest), (low, high)))
    shades = np.log1p(counts) / max(1e-9, math.log1p(counts.max()))
    cells = [[int(c), int(r), round(0.12 + 0.88 * float(shades[c, r]), 2)] for c, r in np.argwhere(counts)]
    found = list(regions_of(overview))
    # Together, as the page has room for so many pictures.
    cards = iter(look.of(data.rows(np.concatenate([each.indices[:SHOWN] for each in found])) if found else []))
    regions = []
    for spans, means, box, indices in found:
        words = f"mean margin {_span(means)}, varies by {_span(spans)}: {len(indices):,} samples"
        region: Data = {"box": box, "words": words, "cards": [next(cards) for _ in indices[:SHOWN]]}
        if len(samples.loss) <= MOST_IDS:
            rows = [[index, samples.name_of(index)] for index in np.sort(indices).tolist()]
            save = {"file": "region.csv", "say": "Save their ids as CSV"}
            region["save"] = {**save, "columns": ["index", "name"], "rows": rows}
        regions.append(region)
    circles = [
        [clean(samples.name_of(index), 80), float(spread[index]), float(mean[index])]
        for index in (verdict.indices[:400] if len(verdict.indices) else top(mean, 10)).tolist()
        if known[index]
    ]
    note = (
        "Every sample by its mean margin, by which the strongest other class beats its label, and how much that varied "
        "over its visits: easy ones below, wavering ones on the right, hard or mislabelled ones at the upper left. "
        f"Circles: {'suspects' if data.suspects else 'the ten highest'}. Click on regions of the map "
        "to see their samples and to save their ids."
    )
    drawn = {"name": "samples by mean margin and its variation", "x": widest, "y": [low, high], "cells": CELLS,
             "counts": cells, "circles": circles, "regions": regions}  # fmt: skip
    yield section("Data map", {"map": drawn}, note=note, kind="half")


def _span(ends: tuple[float, float]) -> str:
    low, high = ends
    if math.isinf(low) or math.isinf(high):
        return f"below {number(high)}" if math.isfinite(high) else f"{number(low)} or more"
    return f"{number(low)} to {number(high)}"


def overview(data: SamplesData) -> Iterator[Data]:
    """The calibration of the model and when it learnt the samples; nothing without predictions."""
    if data.overview is None:
        return
    yield _calibration(data.overview)
    known = data.overview.given >= 0
    learned, forgotten = data.overview.learned[known], data.overview.forgotten[known].astype(np.int64)
    charts = []
    for name, values in (
        ("first visit at which the label was predicted", learned[np.isfinite(learned)].astype(np.int64)),
        ("times it was forgotten", forgotten),
    ):
        if len(values):
            most = int(np.quantile(values, 0.995)) + 1
            charts.append(bars(name, np.bincount(np.minimum(values, most)).tolist(), (-0.5, most + 0.5)))
    note = (
        f"The label of {share(float(np.isnan(learned).mean()), 1)} of the samples was never predicted; that of "
        f"{share(float((forgotten > 0).mean()), 1)} was predicted at a visit and was not at the next. "
        "The outermost bars include everything beyond them."
    )
    yield section("Learnt when, forgotten how often", *charts, note=note, kind="half")


def _calibration(overview: Overview) -> Data:
    """The reliability diagram."""
    last = overview.calibration()
    if last is None:
        reason = "the losses are not the cross entropies of the predictions, so how sure the model was is unknown"
        return section("Calibration", {"text": f"Not shown: {reason}."}, kind="half")
    known = last.counts > 0
    exact = curve("sure and right as often", [0, 1], [0, 1], kind="plan")
    right = curve("how often right", last.confidence[known], last.accuracy[known], dots=True)
    drawn = chart("how often right by how sure", [right, exact], x_name="sure", range=[0, 1], **{"from": 0, "to": 1})
    gap = last.mean(last.confidence) - last.mean(last.accuracy)
    word = "too sure" if gap > 0 else "not sure enough"
    note = (
        f"Every sample at its last visit, before the step: how sure the model was of the class it predicted, and how "
        f"often that was the label. On average it is {share(abs(gap), 1)} {word}; calibration error "
        f"{number(last.error, 2)}. These are samples that it was trained on; on new ones expect it to be worse."
    )
    return section("Calibration", drawn, note=note, kind="half")


def classes(data: SamplesData) -> Iterator[Data]:
    """The tables of classes; nothing without predictions."""
    overview, samples = data.overview, data.newest
    if overview is None:
        return
    names = overview.names(samples.group, samples.group_labels)
    classes = sorted(overview.classes(data.verdict.indices, names), key=lambda one: one.accuracy)
    rows = [
        [clean(one.label, 40), one.size, share(one.accuracy, 1), one.margin,
         one.learned if math.isfinite(one.learned) else "never", one.forgotten, one.num_suspects,
         clean(label_text(one.rival), 40)]
        for one in classes[:MOST_CLASSES]
    ]  # fmt: skip
    columns = ("label", "samples", "predicted", "mean margin", "learnt at visit", "forgotten", "suspects", "rival")
    shown = f"The {MOST_CLASSES} worst of {len(classes):,} classes" if len(classes) > MOST_CLASSES else "The classes"
    note = (
        f"{shown}, worst first. Predicted: the share of their samples whose label was predicted at the last visit, "
        "before the step. Learnt: the median of the first such visits. Forgotten: how often, on average, a sample's "
        "label was predicted at a visit and was not at the next. Rival: the class predicted most instead."
    )
    yield section("Quality of each class", table(columns, rows, kind="classes", tall=True), note=note)
    given, predicted, counts = overview.confusion()
    labels, others = ([label_text(names.get(one, one)) for one in side.tolist()] for side in (given, predicted))
    confusion = confusion_of(labels, others, counts.tolist())
    if confusion is not None:
        note = "Samples by the label they have and the other class that the model predicted at their last visit."
        yield section("What the model confuses", _confusion(confusion, "predicted"), note=note)
