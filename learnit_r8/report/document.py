"""A page of data: the template with its script and one object, and the parts that the script draws."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..events.codec import strict_json

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'"
"""The browser loads nothing, and runs the one script of the page, whatever the text of the run."""
PICTURES = "; img-src data:"
"""What a page with pictures allows besides: those that it holds itself."""
Data = dict[str, Any]


def document(content: Mapping[str, Any], *, has_pictures: bool = False) -> str:
    """A whole page, which loads nothing: the template with its script and one object of data."""
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = strict_json(content, non_finite=lambda value: None).replace("<", "\\u003c")
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        TITLE=html.escape(content["title"]), POLICY=POLICY.format(digest) + PICTURES * has_pictures, SCRIPT=script,
        DATA=data,
    )  # fmt: skip


def section(title: str, *blocks: Data, note: str = "", kind: str = "") -> Data:
    """A section of the page; of kind "half" two stand beside each other."""
    return {"title": title, "note": note, "kind": kind, "blocks": list(blocks)}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> Data:
    """A table: cells are texts, numbers, or what `page.js` draws."""
    return {"table": {"columns": list(columns), "rows": [list(row) for row in rows], **more}}


def curve(name: str, x: ArrayLike, y: ArrayLike, look: str = "c0", **more: Any) -> Data:
    """A curve of a chart: its points, in one of the looks c0 to c5; by keyword what `page.js` draws besides."""
    return {"name": name, "look": look, "x": np.asarray(x, float).tolist(), "y": known(y), **more}


def chart(name: str, series: Sequence[Data], **more: Any) -> Data:
    """A chart of curves; ``more`` are the names of `page.js`."""
    return {"chart": {"name": name, "series": list(series), **more}}


def bars(name: str, counts: Sequence[int], ends: tuple[float, float], **more: Any) -> Data:
    """A histogram whose bins have equal widths between two values."""
    wide = (ends[1] - ends[0]) / len(counts)
    middles = ends[0] + wide * (np.arange(len(counts)) + 0.5)
    series = [curve("samples", middles, counts, bars=wide)]
    return chart(name, series, title=name, height=110, **{"from": ends[0], "to": ends[1]}, **more)


def known(values: ArrayLike) -> list[float | None]:
    """Values with None where they are not finite; to six digits, which no screen can tell from all."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in np.asarray(values, float).tolist()]
