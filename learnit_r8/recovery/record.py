"""The record of an incident: the search for its cause, the flight recorder, which writes on its own thread, the reader.

While all is well the recorder holds nothing and hears nothing: it listens only to events of trouble. Nothing that is
read is trusted.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import events
from ..events import Event, launcher
from ..events.caller import warn
from ..events.codec import from_fields, strict_json
from ..events.incident import Incident, begun_by, describe_error
from ..events.threaded_listener import ThreadedListener
from ..events.versions import versions
from ..guard.monitor import plain
from ..state import codec, durable_io
from ..state.durable_io import make_own_folder, read_json, remove
from ..state.kinds import ANYTHING, check_kinds
from ..state.tree import leave_out, pack, size_of, unpack
from .cause import UNKNOWN, Finding, Refusal, sentence_of

if TYPE_CHECKING:
    from ..events.bus import Announcer
    from ..guard.monitor import Sentry
    from ..guard.verdict import Verdict
    from ..sources.ticket import Ticket
    from ..table.losses import Reading
    from ..table.storage import SampleStorage
    from .persistence import Persistence

FOLDER, RECORD = "incidents", "incident.json"
KIND, FORMAT = "learnit_r8 incident", 1
MOST_RECORDS, MOST_BYTES = 32, 2**32
"""Records of a run, and bytes of all of them; the oldest go first, and the first of the run stays."""

MOST_JSON = 2**22
"""Bytes of a record without its parts; a real one has some ten thousand."""

MOST_DEPTH = 12
PARTS = ("batch", "generators", "refused", "restored")
"""What a record may hold besides, in files of the checkpoints' own format."""

_FINDING = {
    "kind": "", "text": "", "about": "", "missing": "", "where": "", "rows": [0], "rest": [""], "evidence": [""],
    "is_certain": False,
}  # fmt: skip
_EXAMPLE: dict[str, Any] = {
    "kind": "", "format": 0, "number": 0, "run": "", "step": 0, "last_step": 0, "seconds": ANYTHING, "state": "",
    "diagnosis": "", "cause": "", "finding": (_FINDING,), "record": "", "num_refused": 0, "refusals": [{}],
    "num_events": 0, "timeline": [{}], "files": {}, "left_out": {}, "versions": {}, "rank": 0, "num_ranks": 0,
}  # fmt: skip
"""A record, see `check_kinds`; its seconds are text where they are not finite."""

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
        return _checked_record(_exported(path)["record"], path)
    if path.is_dir() and not (path / RECORD).exists():
        there = numbers_in(path)
        inside = f"; give one of its incidents, as {path / FOLDER / str(there[0])}" if there else ""
        raise BadRecord(f"{path} must be the folder of one incident, got one without {RECORD}{inside}.")
    path = path / RECORD if path.is_dir() else path
    try:
        content = read_json(path, MOST_JSON)
    except ValueError as error:
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
            packed = _exported(path)["parts"].get(name)
        else:
            home = path if path.is_dir() else path.parent
            packed = codec.read(home / f"{name}.r8") if name in read_record(home)["files"] else None
        return None if packed is None else unpack(packed)
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
    try:
        check_kinds(content, _EXAMPLE, {}, "record", is_example=True)
    except ValueError as error:
        raise refuse(f"another one ({error})") from None
    if content["state"] not in STATES or set(content["files"]) - set(PARTS):
        raise refuse("an unknown state or unknown files")
    if _depth(content) > MOST_DEPTH:
        raise refuse(f"one nested deeper than {MOST_DEPTH}")
    return content


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


MOST_LOOKS = 3
"""Refusals of a kind that are looked into."""

MOST_SHARE, LEAST_SECONDS = 0.01, 2.0
"""Largest share of the run's time that may go into it, and how much may in a run that has only begun."""

MOST_BEFORE = 64
"""Losses before a refusal that a record holds."""

CLOSE_SECONDS = 5.0
"""Longest time that the end of a run waits for the records."""

MOST_QUEUED = 1000
MOST_REFUSALS, MOST_TIMELINE = 200, 500
"""Refused batches and events that a record lists; it only counts later ones."""

MOST_PART = MOST_BYTES // 4
"""Bytes of a batch or a state; larger ones are left out."""

REFUSED, RESTORED = "refused", "restored"
"""States of the model that a record of "all" holds."""


@dataclass(frozen=True)
class Noted(events.Event):
    """A refused batch, for the record alone.

    Attributes:
        facts: Plain values.
        finding: Where it began; None where nobody has looked.
        parts: Copies of batch, generators and states, by the name of their file.
    """

    facts: Mapping[str, Any]
    finding: Finding | None
    cause: str
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept(events.Event):
    """Further parts of the open record: copies, by the name of their file."""

    parts: Mapping[str, Any]


class FlightRecorder(ThreadedListener):
    """Writes ``incidents/<k>/incident.json``, and what else is asked for.

    Args:
        record: "names", "batch" or "all".
        folder: Where the folder "incidents" is made; None until `write_to` says it.
        run: Name of the run.
        copy_state: Copies the state of the model; returns None where there is none. Only called with "all".

    Attributes:
        record: As given.
        error: The newest error of writing; "" without one.
    """

    def __init__(
        self, record: str, folder: Path | None, run: str, *, copy_state: Callable[[], Any] = lambda: None
    ) -> None:
        super().__init__("r8-incidents", most_queued=MOST_QUEUED, every_seconds=0.1)
        self.record, self.error = record, ""
        self.hears = (
            events.DamageFound, events.Probed, events.RolledBack, events.RestoreFailed, events.LrCapped,
            events.LrRestored, events.SamplesQuarantined, events.SamplesReleased, events.IncidentEnded, events.GaveUp,
            events.RunEnded,
        )  # fmt: skip
        self._folder, self._run, self._copy_state = folder, run, copy_state
        self._is_on = not launcher.rank_of()
        self._has_changed = False
        self._open: dict[str, Any] = {}
        self._has_said = False

    @property
    def is_writing(self) -> bool:
        """Whether there is a folder to write to."""
        return self._is_on and self._folder is not None

    @property
    def folder(self) -> Path:
        """Where the records are."""
        assert self._folder is not None
        return self._folder / FOLDER

    def write_to(self, folder: Path) -> None:
        """Write the records into this folder from now on."""
        self._folder = folder

    def note(self, step: int, seconds: float, *, parts: Mapping[str, Any], **about: Any) -> None:
        """Note a refused batch; see `Noted`."""
        if self.is_writing:
            self.enqueue(Noted(step, seconds, parts={**parts, **self._state_as(REFUSED)}, **about))

    def _state_as(self, name: str) -> dict[str, Any]:
        """A copy of the state of the model, where it is recorded; or why there is none."""
        if self.record != "all":
            return {}
        try:
            state = self._copy_state()
        except Exception as error:
            state = error
        return {} if state is None else {name: state}

    def __call__(self, event: events.Event) -> None:
        """Take in an event; on the training thread."""
        if not self.is_writing:
            return
        is_end = isinstance(event, events.RunEnded)
        if self._thread is not None or not is_end:
            self.enqueue(event)
        if isinstance(event, events.RolledBack):
            parts = self._state_as(RESTORED)
            if parts:
                self.enqueue(Kept(event.step, event.seconds, parts))
        if is_end or isinstance(event, events.GaveUp):
            self.close()
        if self.error and not self._has_said:
            self._has_said = True
            warn(f"the record of an incident could not be written, and training goes on: {self.error}")

    def start_thread(self) -> None:
        """See `ThreadedListener`; the program writes what is queued before it ends."""
        super().start_thread()
        atexit.register(self.close)

    def close(self) -> None:
        """Write what is queued and end the thread; waits at most five seconds. Safe to call twice."""
        if self._thread is not None:
            atexit.unregister(self.close)
            self.end_thread(CLOSE_SECONDS)

    # On the thread.

    def handle(self, waiting: deque[events.Event], *, is_last: bool) -> None:
        """Fold the events in the queue into the record, and write it."""
        ended = False
        try:
            while waiting:
                self._has_changed |= self._fold(waiting.popleft())
                ended = self._open.get("state", "open") != "open"
                if ended:
                    self._write()
                    self._open = {}
            if self._has_changed:
                self._write()
        except Exception as error:
            self.error = self.error or f"{type(error).__name__}: {error}"
            self._has_changed = False
            if ended:
                self._open = {}

    def _fold(self, event: events.Event) -> bool:
        """Add an event to the record; return whether that changed it."""
        if isinstance(event, events.RunEnded):
            return False
        if not (self._open or isinstance(event, Noted) or begun_by(event)):
            # What comes after an incident, such as the rate on its schedule again; or a measurement.
            return False
        record = self._open or self._begin(event)
        record["last_step"] = event.step
        if isinstance(event, Noted):
            self._fold_refusal(record, event)
            return True
        if isinstance(event, Kept):
            self._write_parts(record, event.parts)
            return False
        record["num_events"] += 1
        if len(record["timeline"]) < MOST_TIMELINE:
            record["timeline"].append({"kind": type(event).__name__, **asdict(event)})
        if isinstance(event, events.IncidentEnded):
            record["state"], record["diagnosis"] = "over", event.text
        elif isinstance(event, events.GaveUp):
            record["state"], record["diagnosis"] = "gave up", event.text
        return True

    def _begin(self, event: events.Event) -> dict[str, Any]:
        self._open = {
            "kind": KIND, "format": FORMAT, "number": max(numbers_in(self.folder.parent), default=0) + 1,
            "run": self._run, "step": event.step,
            "last_step": event.step, "seconds": event.seconds, "state": "open", "diagnosis": "", "cause": "",
            "finding": None, "record": self.record, "num_refused": 0, "refusals": [], "num_events": 0, "timeline": [],
            "files": {}, "left_out": {}, "versions": versions(), "rank": launcher.rank_of(),
            "num_ranks": launcher.num_ranks_of(),
        }  # fmt: skip
        return self._open

    def _fold_refusal(self, record: dict[str, Any], noted: Noted) -> None:
        record["num_refused"] += 1
        finding = None if noted.finding is None else plain(noted.finding)
        if len(record["refusals"]) < MOST_REFUSALS:
            record["refusals"].append({**noted.facts, "cause": noted.cause, "finding": finding})
        is_better = finding is not None and finding["is_certain"] and not (record["finding"] or {}).get("is_certain")
        if noted.cause and (not record["cause"] or is_better):
            record["cause"], record["finding"] = noted.cause, finding
        # Batch and state are those of the first refusal.
        self._write_parts(record, {name: part for name, part in noted.parts.items() if name not in record["files"]})

    def _write_parts(self, record: dict[str, Any], parts: Mapping[str, Any]) -> None:
        if not parts:
            return
        # Before the parts, which take far longer: a process that is killed meanwhile leaves a record to read.
        self._write()
        for name, part in parts.items():
            self._write_part(record, name, part)
        self._write()
        self._thin()

    def _home(self) -> Path:
        """Make the folder of the open incident and return it."""
        os.makedirs(self.folder.parent, exist_ok=True)
        make_own_folder(self.folder)
        home = self.folder / str(self._open["number"])
        make_own_folder(home)
        return home

    def _write_part(self, record: dict[str, Any], name: str, part: Any) -> None:
        """Write a batch, generators or a state; the record names what cannot be written."""
        left: dict[str, str] = {}
        try:
            if isinstance(part, Exception):
                raise ValueError(f"it could not be copied ({type(part).__name__}: {part})") from part
            packed = pack(leave_out(part, left))
            size = size_of(packed)
            if size > MOST_PART:
                raise ValueError(f"{size:,} bytes are more than the {MOST_PART:,} that a record holds of one part")
            durable_io.replace(self._home() / f"{name}.r8", lambda file: codec.write(packed, file), durable=False)
            record["files"][name] = f"{name}.r8"
        except (OSError, TypeError, ValueError, MemoryError) as error:
            record["left_out"][name] = f"{type(error).__name__}: {error}"[:500]
        record["left_out"].update({f"{name}.{key}": what[:200] for key, what in list(left.items())[:50]})

    def _write(self) -> None:
        home = self._home()
        is_new = not (home / RECORD).exists()
        durable_io.replace(home / RECORD, strict_json(self._open, indent=1).encode())
        if is_new:
            self._thin()
        self._has_changed = False

    def _thin(self) -> None:
        """Delete the oldest records but the first, while there are too many or they are too large."""
        sizes = {number: _bytes_of(self.folder / str(number)) for number in numbers_in(self.folder.parent)}
        while len(sizes) > 1 and (len(sizes) > MOST_RECORDS or sum(sizes.values()) > MOST_BYTES):
            gone = next((number for number in sorted(sizes)[1:] if number != self._open["number"]), None)
            if gone is None:
                return
            remove(self.folder / str(gone))
            del sizes[gone]


def _bytes_of(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


class CauseSearch:
    """Has the adapter look for the cause of a refusal, and the recorder write it down.

    Args:
        persistence: Holds the callbacks, of which the adapter's `examine` looks, and the backups.
        announcer: Knows how long the run has trained.
        storage: That of the table; names the samples.
        sentry: Says what the guard saw.
        recorder: Writes the records; None for none.
    """

    def __init__(
        self, persistence: Persistence, announcer: Announcer, storage: SampleStorage, sentry: Sentry,
        recorder: FlightRecorder | None,
    ) -> None:  # fmt: skip
        self._persistence, self._announcer, self._storage = persistence, announcer, storage
        self._sentry, self._recorder = sentry, recorder
        self._looks: Counter[str] = Counter()
        self._seconds = 0.0

    def look(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, recent: Sequence[float],
        samples: Sequence[int], is_finite: bool, lr: float,
    ) -> dict[str, Any]:  # fmt: skip
        """Look for the cause of a refusal and note it; returns what `CauseFound` says of it, empty if nobody looked.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: Why it was refused.
            step: Steps reported, this one included.
            recent: The losses before it.
            samples: Those whose own loss was not finite.
            is_finite: Whether it was refused for its height alone.
            lr: The rate as the user knows it; NaN if that is not known.
        """
        usual, found = float(np.median(recent)) if len(recent) else math.nan, dict[str, Any]()
        known = reversed(self._persistence.backup.backups)
        backups = [(each.step, each.state) for each in known if each.state is not None]
        kind = verdict.value
        finding = self._find(Refusal(step, reading.mean, usual, is_finite, kind == "gradient", backups, lr), kind)
        # None where batches are the user's own.
        has_names = self._storage.num_samples and not (ticket.indices < 0).any()
        indices, name_of = ticket.indices.tolist() if has_names else [], self._storage.name_of
        if finding is not None:
            blamed = list(finding.samples) or [indices[row] for row in finding.rows if row < len(indices)]
            names = [f"{each}" if name_of(each) == each else f"{each} ({name_of(each)!r})" for each in blamed[:1000]]
            found = {
                "text": sentence_of(finding, step, names), "fault": finding.kind, "where": finding.where,
                "samples": tuple(blamed), "is_certain": finding.is_certain,
            }  # fmt: skip
        recorder, collect = self._recorder, self._persistence.callbacks.in_hand
        if recorder is not None and recorder.is_writing:
            facts = {
                "step": step, "epoch": ticket.epoch, "loss": reading.mean, "lr": lr, "verdict": kind,
                "samples": indices[:4096], "names": [str(name_of(each)) for each in indices[:256]],
                "not_finite": list(samples)[:256], "losses_before": list(recent)[-MOST_BEFORE:],
                "guard": self._thresholds(), "suspicion": self._sentry.suspicion,
                "highest_grad_norm": self._sentry.present.highest_norm,
            }  # fmt: skip
            parts = {} if recorder.record == "names" or collect is None else collect()
            text, seconds = found.get("text", ""), self._announcer.where()[1]
            recorder.note(step, seconds, facts=facts, finding=finding, cause=text, parts=parts)
        return found

    def _find(self, refusal: Refusal, kind: str) -> Finding | None:
        """Have the adapter look, as long as that takes little of the run's time."""
        examine = self._persistence.callbacks.examine
        allowed = max(MOST_SHARE * self._announcer.where()[1], LEAST_SECONDS)
        if examine is None or self._looks[kind] >= MOST_LOOKS:
            return None
        # All ranks look or none, as they tell each other what they find.
        if self._persistence.agreement.agree("late" if self._seconds > allowed else ""):
            return None
        self._looks[kind] += 1
        began = time.perf_counter()
        try:
            finding: Finding | None = examine(refusal)
        except Exception as error:
            # Whatever a model does when it is run once more, it must not end the training.
            what = f"the search for the cause failed ({describe_error(error)})"
            finding = Finding(UNKNOWN, what, missing="the search failed")
        self._seconds += time.perf_counter() - began
        return finding

    def _thresholds(self) -> dict[str, float]:
        """The numbers that the guard compares losses with, by name."""
        memory = self._sentry.present.losses
        found: dict[str, float] = {}
        for part in (memory, getattr(memory, "reference", None)):
            fields: dict[str, Any] = getattr(part, "_asdict", dict)()
            found |= {name: float(value) for name, value in fields.items() if type(value) in (int, float)}
        return found
