"""The flight recorder: writes a record of every incident, on its own thread.

While all is well it holds nothing and hears nothing: it listens only to events of trouble.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import events
from ..checkpoint import codec
from ..checkpoint.durable_io import make_own_folder, remove, replace
from ..checkpoint.tree import leave_out, pack, size_of
from ..events import launcher
from ..events.caller import warn
from ..events.codec import strict_json
from ..events.incident import begun_by
from ..events.threaded_listener import ThreadedListener
from ..events.versions import versions
from .cause import Finding, to_plain
from .record import FOLDER, FORMAT, KIND, MOST_BYTES, MOST_RECORDS, RECORD, numbers_in

CLOSE_SECONDS = 5.0
"""Longest time that the end of a run waits for the records."""

MOST_QUEUED = 1000
MOST_REFUSALS, MOST_TIMELINE = 200, 500
"""Refused batches and events that a record lists; it only counts later ones."""

MOST_PART = MOST_BYTES // 4
"""Bytes of a batch or a state; larger ones are left out."""

EVERY_SECONDS = 1.0
"""Least time between two writes of an open record; its first and its last wait for nothing."""

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
        clock: Seconds, monotonic.

    Attributes:
        record: As given.
        error: The newest error of writing; "" without one.
    """

    def __init__(
        self, record: str, folder: Path | None, run: str, *, copy_state: Callable[[], Any] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__("r8-incidents", most_queued=MOST_QUEUED, every_seconds=0.1)
        self.record, self.error = record, ""
        self.hears = (
            events.DamageFound, events.Probed, events.RolledBack, events.RestoreFailed, events.LrCapped,
            events.LrRestored, events.SamplesQuarantined, events.SamplesReleased, events.IncidentEnded, events.GaveUp,
            events.RunEnded,
        )  # fmt: skip
        self._folder, self._run, self._copy_state, self._clock = folder, run, copy_state, clock
        self._is_on = not launcher.rank_of()
        self._written_at, self._has_changed, self._is_new = 0.0, False, False
        self._open: dict[str, Any] | None = None
        self._number = 0
        self._has_said = False

    @property
    def is_writing(self) -> bool:
        """Whether there is a folder to write to."""
        return self._is_on and self._folder is not None

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
                ended = self._open is not None and self._open["state"] != "open"
                if ended:
                    self._write()
                    self._open = None
            is_due = is_last or self._is_new or self._clock() - self._written_at >= EVERY_SECONDS
            if self._has_changed and is_due:
                self._write()
        except Exception as error:
            self.error = self.error or f"{type(error).__name__}: {error}"
            self._has_changed = False
            if ended:
                self._open = None

    def _fold(self, event: events.Event) -> bool:
        """Add an event to the record; return whether that changed it."""
        if isinstance(event, events.RunEnded):
            return False
        if self._open is None:
            if not isinstance(event, Noted) and begun_by(event) is None:
                # What comes after an incident, such as the rate on its schedule again; or a measurement.
                return False
            self._begin(event)
        record = self._open
        assert record is not None
        record["last_step"] = event.step
        if isinstance(event, Noted):
            self._fold_refusal(record, event)
            return True
        if isinstance(event, Kept):
            self._write_parts(record, event.parts)
            return False
        record["num_events"] += 1
        if len(record["timeline"]) < MOST_TIMELINE:
            record["timeline"].append({"kind": type(event).__name__, **dataclasses.asdict(event)})
        if isinstance(event, events.IncidentEnded):
            record["state"], record["diagnosis"] = "over", event.text
        elif isinstance(event, events.GaveUp):
            record["state"], record["diagnosis"] = "gave up", event.text
        return True

    def _begin(self, event: events.Event) -> None:
        assert self._folder is not None
        self._number = max(numbers_in(self._folder), default=0) + 1
        self._is_new = True
        self._open = {
            "kind": KIND, "format": FORMAT, "number": self._number, "run": self._run, "step": event.step,
            "last_step": event.step, "seconds": event.seconds, "state": "open", "diagnosis": "", "cause": "",
            "finding": None, "record": self.record, "num_refused": 0, "refusals": [], "num_events": 0, "timeline": [],
            "files": {}, "left_out": {}, "versions": versions(), "rank": launcher.rank_of(),
            "num_ranks": launcher.num_ranks_of(),
        }  # fmt: skip

    def _fold_refusal(self, record: dict[str, Any], noted: Noted) -> None:
        record["num_refused"] += 1
        finding = None if noted.finding is None else to_plain(noted.finding)
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
        assert self._folder is not None
        whole = self._folder / FOLDER
        os.makedirs(self._folder, exist_ok=True)
        make_own_folder(whole)
        home = whole / str(self._number)
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
            replace(self._home() / f"{name}.r8", lambda file: codec.write(packed, file), durable=False)
            record["files"][name] = f"{name}.r8"
        except (OSError, TypeError, ValueError, MemoryError) as error:
            record["left_out"][name] = f"{type(error).__name__}: {error}"[:500]
        record["left_out"].update({f"{name}.{key}": what[:200] for key, what in list(left.items())[:50]})

    def _write(self) -> None:
        assert self._open is not None
        replace(self._home() / RECORD, strict_json(self._open, indent=1).encode())
        if self._is_new:
            self._thin()
        self._written_at, self._has_changed, self._is_new = self._clock(), False, False

    def _thin(self) -> None:
        """Delete the oldest records but the first, while there are too many or they are too large."""
        assert self._folder is not None
        whole = self._folder / FOLDER
        sizes = {number: _bytes_of(whole / str(number)) for number in numbers_in(self._folder)}
        while len(sizes) > 1 and (len(sizes) > MOST_RECORDS or sum(sizes.values()) > MOST_BYTES):
            gone = next((number for number in sorted(sizes)[1:] if number != self._number), None)
            if gone is None:
                return
            remove(whole / str(gone))
            del sizes[gone]


def _bytes_of(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
