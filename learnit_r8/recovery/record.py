"""The record of an incident on the disk: where it is, and how it is read; nothing in it is trusted."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import codec
from ..checkpoint.durable_io import open_regular
from ..checkpoint.tree import unpack
from ..events import Event
from ..events.codec import from_fields
from ..events.incident import Incident, begun_by
from .cause import KINDS

FOLDER, RECORD = "incidents", "incident.json"
KIND, FORMAT = "learnit_r8 incident", 1
MOST_RECORDS, MOST_BYTES = 32, 2**32
"""Records of a run, and bytes of all of them; the oldest go first, and the first of the run stays."""

MOST_JSON = 2**22
"""Bytes of a record without its parts; a real one has some ten thousand."""

MOST_DEPTH = 12
PARTS = ("batch", "generators", "refused", "restored")
"""What a record may hold besides, in files of the checkpoints' own format."""

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str, "format": int, "number": int, "run": str, "step": int, "last_step": int, "seconds": (int, float, str),
    "state": str, "diagnosis": str, "cause": str, "finding": (dict, type(None)), "record": str, "num_refused": int,
    "refusals": list, "num_events": int, "timeline": list, "files": dict, "left_out": dict, "versions": dict,
    "rank": int, "num_ranks": int,
}  # fmt: skip
STATES = ("open", "over", "gave up")


class BadRecord(ValueError):
    """A file is not a record of an incident, is damaged, or of another version; the message says which."""


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the incidents that are recorded in a run's folder, in order."""
    try:
        names = os.listdir(folder / FOLDER)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 10)


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the record of an incident.

    Args:
        path: Its folder, its ``incident.json``, or a file that ``learnit-r8 incidents --export`` wrote.

    Raises:
        BadRecord: it is not one.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".r8":
        return _checked_record(_exported(path).get("record"), path)
    if path.is_dir() and not (path / RECORD).exists():
        there = numbers_in(path)
        inside = f"; give one of its incidents, as {path / FOLDER / str(there[0])}" if there else ""
        raise BadRecord(f"{path} must be the folder of one incident, got one without {RECORD}{inside}.")
    path = path / RECORD if path.is_dir() else path
    try:
        with open_regular(path) as file:
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ValueError(f"it must have at most {MOST_JSON:,} bytes, got more")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{path} must be the record of an incident, got something else ({error}).") from None
    return _checked_record(content, path)


def incident_of(record: Mapping[str, Any]) -> Incident:
    """A record as the incident that screen and report fold from the events, whose words it has."""
    refusals, timeline = record["refusals"], record["timeline"]
    happened: list[Event] = []
    for fields in timeline:
        # What another version wrote, and this one does not know, has no words.
        with contextlib.suppress(ValueError):
            happened.append(from_fields(fields))
    begun = next(filter(None, map(begun_by, happened)), None)
    first = refusals[0] if refusals else {}
    loss, lr = (_number(first.get(name)) for name in ("loss", "lr"))
    reason = str(first.get("verdict", "")) if refusals else begun.reason if begun else "the weights were tested"
    finding = record["finding"] or {}
    samples = tuple(each for each in first.get("not_finite", ()) if isinstance(each, int))
    incident = Incident(record["step"], reason, _number(record["seconds"]), loss=loss, lr=lr, samples=samples)
    for event in happened:
        incident = incident.after(event)
    return replace(
        incident, num_refused=record["num_refused"], cause=record["cause"], fault=finding.get("kind", ""),
        state=record["state"], diagnosis=record["diagnosis"], last_step=record["last_step"],
    )  # fmt: skip


def _number(value: Any) -> float:
    """A number of a record, whose JSON has texts for those that are not finite; NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def read_part(path: str | os.PathLike[str], name: str) -> Any:
    """A part of a record: its batch, generators or a state; None where it holds none.

    Args:
        path: As for `read_record`.
        name: One of `PARTS`.

    Raises:
        BadRecord: it is damaged.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".r8":
            packed = _exported(path).get("parts", {}).get(name)
            return None if packed is None else unpack(packed)
        home = path if path.is_dir() else path.parent
        if name not in read_record(home)["files"]:
            return None
        return unpack(codec.read(home / f"{name}.r8"))
    except BadRecord:
        raise
    except ValueError as error:
        raise BadRecord(f"{path} must hold a whole {name}, got a damaged one ({error}).") from None


def export(path: Path, names: tuple[str, ...], file: Any) -> None:
    """Write a record as one file.

    Args:
        path: Its folder.
        names: The parts to put into it.
        file: A file opened for binary writing, at its beginning.
    """
    record = read_record(path)
    parts = {name: codec.read(path / f"{name}.r8") for name in names if name in record["files"]}
    record = {**record, "files": {name: f"{name}.r8" for name in parts}}
    codec.write({"kind": KIND, "record": json.dumps(record), "parts": parts}, file)


def _exported(path: Path) -> dict[str, Any]:
    try:
        content = codec.read(path)
        if content.keys() != {"kind", "record", "parts"} or content["kind"] != KIND:
            raise ValueError(f"its keys are {sorted(content)[:5]}")
        if not isinstance(content["parts"], Mapping) or content["parts"].keys() - set(PARTS):
            raise ValueError("its parts are others")
        return {"record": json.loads(content["record"]), "parts": content["parts"]}
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRecord(f"{path} must be an exported incident, got something else ({error}).") from None


def _checked_record(content: Any, path: Path) -> dict[str, Any]:
    """A record whose fields have their types.

    Raises:
        BadRecord: it is something else.
    """

    def refuse(what: str) -> BadRecord:
        return BadRecord(f"{path} must be the record of an incident, got {what}.")

    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise refuse("something else")
    if content.get("format") != FORMAT:
        raise refuse(f"one of format {str(content.get('format'))[:20]}, where this version reads {FORMAT}")
    for name, kind in _FIELDS.items():
        value = content.get(name)
        if name not in content or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise refuse(f"{str(value)[:40]!r} for {name}")
    if content["state"] not in STATES or set(content["files"]) - set(PARTS):
        raise refuse("an unknown state or unknown files")
    if not all(isinstance(each, dict) for each in (*content["refusals"], *content["timeline"])):
        raise refuse("an invalid refusal or event")
    finding = content["finding"]
    if finding is not None and not _is_finding(finding):
        raise refuse("an invalid finding")
    if _depth(content) > MOST_DEPTH:
        raise refuse(f"one nested deeper than {MOST_DEPTH}")
    return content


def _is_finding(value: Mapping[str, Any]) -> bool:
    texts = all(isinstance(value.get(name), str) for name in ("text", "about", "missing", "where"))
    lists = all(isinstance(value.get(name), list) for name in ("rows", "rest", "evidence"))
    return texts and lists and value.get("kind") in KINDS and isinstance(value.get("is_certain"), bool)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
