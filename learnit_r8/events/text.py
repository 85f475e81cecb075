"""Texts for people: safe to show, with numbers and durations in few characters."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

REPLACEMENT = "?"

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
"""ANSI control sequences: CSI; OSC, DCS, SOS, PM and APC strings; escapes of two or three characters."""

_PLAIN = re.compile(r"[ -~]*\Z")
_MOST_MARKS = 2
"""Combining marks kept on one character."""


def clean(text: object, most: int = 400) -> str:
    """A text that is safe to show: without control sequences, with "?" for other characters that do not print.

    Bidirectional marks, zero-width characters, private and unassigned ones count as not printable; white space
    becomes a space; at most two combining marks stay on a character.

    Args:
        text: Anything; `str` converts it.
        most: Characters to keep; an ellipsis stands for the rest.

    >>> clean("loss\\x1b[2J\\x1b]0;owned\\x07 of\\ttank\\u202e")
    'loss of tank?'
    """
    text = str(text)[: 4 * most]
    if not _PLAIN.match(text):
        text = _SEQUENCES.sub("", text)
        kept: list[str] = []
        marks = 0
        for character in text:
            kind = unicodedata.category(character)
            if kind[0] == "M":
                marks += 1
                # A mark needs a base character; variation selectors change the width in some terminals only.
                if marks > _MOST_MARKS or not kept or kind == "Me" or unicodedata.name(character, "").startswith("VAR"):
                    continue
                kept.append(character)
                continue
            marks = 0
            if character in "\t\n\r\v\f" or kind[0] == "Z":
                kept.append(" ")
            else:
                kept.append(REPLACEMENT if kind[0] == "C" else character)
        text = "".join(kept)
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float, digits: int | None = None) -> str:
    """A number in at most nine characters: four digits, or a power of ten.

    Args:
        value: The number.
        digits: Significant digits to round it to first; all by default, which large numbers show.

    >>> number(0.41831), number(2450), number(1234567.0), number(3.6e-5), number(float("nan"))
    ('0.4183', '2,450', '1.235e+06', '3.6e-05', 'nan')
    """
    if digits is not None:
        value = float(f"{value:.{digits}g}")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """A duration: "9.5s", "1:24", "35:51", "3:05:51", "2d 03:05", "?" if unknown.

    >>> clock(84), clock(11151), clock(183900), clock(float("inf"))
    ('1:24', '3:05:51', '2d 03:05', '?')
    """
    if not (0 <= seconds < 1e10):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds_text(seconds: float) -> str:
    """A duration in one unit: "45 s", "12 min", "3.5 h", "2.1 days"."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def counted(count: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "warning"), counted(1200, "probe")
    ('1 warning', '1,200 probes')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def share(value: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "?"


def few(samples: Sequence[object], most: int) -> str:
    """Positions of the first samples, and the number of the others."""
    return ", ".join(map(str, samples[:most])) + (f" and {len(samples) - most} more" if len(samples) > most else "")


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", path)[-1]
