"""The journal of a scheduler: a listener that writes events to a run folder, from a thread of its own.

The training thread only condenses steps, and appends a few records a second to a queue. The run goes on whether the
disk is full, slow or gone: the queue is bounded, and events that cannot be written are left out with one warning.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .. import events
from ..events import launcher
from ..events.bus import RunControl
from ..events.caller import warn
from ..events.codec import strict_json, to_json
from ..events.condenser import merged
from ..events.threaded_listener import ThreadedListener
from ..state.durable_io import NotOwnFile, make_first_free, numbered, open_output
from ..table.table import SampleTable
from .requests import RequestFolder
from .run import SCHEMA, is_gone, read_sessions, runs_folder, write_about
from .samples import Samples, samples_of, write_samples

SECONDS_BETWEEN_WRITES = 0.25
SECONDS_BETWEEN_HEARTBEATS = 10.0
SECONDS_BETWEEN_LOOKS = 1.0
"""Least time between two looks for requests."""
SECONDS_BETWEEN_TRIES = 10.0
MOST_WAITING = 20_000
SAMPLES_PAUSE = 20
"""Pause after a samples file, in units of the time it took to write: writing takes at most 5 % of the time."""
MOST_HELD_BYTES = 2**24
"""Most bytes of losses that wait to be written; with the other numbers of the samples three times as much."""
CLOSE_SECONDS = 5.0


class Journal(ThreadedListener):
    """Writes events to ``events.jsonl`` and the table to ``samples-*.safetensors``.

    Args:
        folder: The run folder; made if there is none. The journal of an earlier process is continued.
        name: Name of the run.
        configuration: Arguments of the scheduler, for run.json.
        samples: Called with epoch and step, returns losses and uses of every sample; None to write no samples.
        clock: Returns seconds, monotonic.
        wall: Returns seconds since 1970.
        requests: Takes what is asked for by files in the run folder.

    Raises:
        ValueError: another running process writes to this folder, or its journal is a link.
        OSError: the folder cannot be made or written to.

    Attributes:
        num_lost: Number of events that could not be written.
    """

    wants_surveys = True

    def __init__(
        self, folder: str | os.PathLike[str], *, name: str = "", configuration: Mapping[str, str] | None = None,
        samples: Callable[[int, int], Samples] | None = None, clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time, requests: RunControl | None = None,
    ) -> None:  # fmt: skip
        super().__init__("learnit_r8 journal", most_queued=MOST_WAITING, every_seconds=SECONDS_BETWEEN_WRITES)
        # A relative path must mean the same folder after the program changes its working directory.
        self.folder = Path(folder).absolute()
        self.num_lost = 0
        self._samples_of, self._clock, self._wall = samples, clock, wall
        self._lines: list[str] = []
        self._pending_samples: list[Samples] = []
        self._samples_due, self._samples_step, self._steps_per_epoch = -1.0, -1, 1
        self._epoch = self._epoch_step = -1
        self._summary = Summary(clock())
        self._position = (0, 0.0)
        self._last_written, self._retry = clock(), 0.0
        self._trouble = ""
        self._has_warned = self._has_ended = self._is_closed = self._is_stuck = False
        self._lock = threading.RLock()
        self._prepare(name, configuration or {})
        self._requests = None if requests is None else RequestFolder(self.folder, requests)
        self._next_look = 0.0

    def _prepare(self, name: str, configuration: Mapping[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for session in read_sessions(self.folder)[-1:]:
            if session.get("pid") != os.getpid() and is_gone(session) is False:
                raise ValueError(
                    f"run_dir must be a folder that no running process writes to, got {str(self.folder)!r} "
                    f"of process {session.get('pid')}."
                )
        earlier = _open_journals.get(os.path.realpath(self.folder))
        if earlier is not None and not earlier._is_closed and earlier._pid == os.getpid():
            # A cell of a notebook that is run again, or two schedulers of one program.
            warn(
                f"the run in {str(self.folder)!r} was not closed, and another one starts there: the record of the "
                "first ends here. Close a scheduler before the next one, or give each its own run_dir."
            )
            earlier.close()
        now = self._wall()
        write_about(self.folder, name=name, configuration=configuration, wall=now)
        path = self.folder / "events.jsonl"
        header = strict_json({"kind": "Journal", "schema": SCHEMA, "time": round(now, 3)}) + "\n"
        # Ends a line that a killed process left half written, which readers skip.
        os.close(open_output(path, "a", permissions=0o644))
        _append(path, ("\n" if path.stat().st_size else "") + header)
        # Last, as one that could not be made has nothing to close.
        _open_journals[os.path.realpath(self.folder)] = self
        atexit.register(_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        # A scheduler that was never closed, in a notebook for instance.
        if hasattr(self, "_next_look") and not self._is_closed:
            with contextlib.suppress(Exception):
                self.close()

    def enqueue(self, event: events.Event) -> None:
        """See `ThreadedListener`; more than fit are summed up, and samples are copied when they are due."""
        if os.getpid() != self._pid or self._is_stuck:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._sum_up(self._waiting)
        super().enqueue(event)
        self._warn_of_trouble()
        if type(event) is not events.StepsDone:
            self._look(event)

    def start_thread(self) -> None:
        """See `ThreadedListener`; none is started after the end."""
        if not self._is_closed:
            super().start_thread()

    def handle(self, waiting: deque[events.Event], *, is_last: bool) -> None:
        """Write what is due."""
        try:
            self.write_due(waiting)
        except Exception:
            # A bug here must be reported, and must not end the thread.
            self._trouble = traceback.format_exc()

    def _warn_of_trouble(self) -> None:
        if self._trouble and not self._has_warned:
            self._has_warned = True
            warn(
                f"the journal in {str(self.folder)!r} cannot be written and may lack events: {self._trouble}. "
                "The training goes on."
            )

    def _look(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._steps_per_epoch = event.steps_per_epoch
        if isinstance(event, events.EpochDone):
            self._epoch, self._epoch_step = event.epoch, event.step
        self._has_ended |= isinstance(event, events.RunEnded)
        if isinstance(event, (events.EpochDone, events.RunEnded)):
            self._look_at_samples(event)
        if isinstance(event, events.RunEnded) or self._is_closed:
            self.close()

    def _look_at_samples(self, event: events.EpochDone | events.RunEnded) -> None:
        """Copy the table if a samples file is due; the time of copying counts as writing."""
        held = sum(one.loss.nbytes for one in self._pending_samples)
        due = self._clock() >= self._samples_due and held < MOST_HELD_BYTES
        is_new = event.step > max(0, self._samples_step)
        if self._samples_of is None or not is_new or not (due or isinstance(event, events.RunEnded)):
            return
        began = self._clock()
        self._samples_step = event.step
        # Of the user's own batches an epoch may have no known length.
        per_epoch = self._steps_per_epoch
        epoch = (event.step - 1) // per_epoch if per_epoch else self._epoch + (event.step > self._epoch_step)
        try:
            samples = self._samples_of(epoch, event.step)
        except MemoryError as error:
            self._trouble = self._trouble or f"there was no memory for a copy of the samples ({error})"
            return
        if not len(samples.loss):
            return
        with self._lock:
            self._pending_samples.append(samples)
        self._samples_due = self._clock() + SAMPLES_PAUSE * (self._clock() - began)

    def write_due(self, waiting: deque[events.Event] | None = None) -> None:
        """Write the events since the last call, which wait in this queue, by default the listener's own."""
        now = self._clock()
        if self._requests is not None and now >= self._next_look and not self._is_closed:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            self._requests.look()
        self._sum_up(self._waiting if waiting is None else waiting)
        if now - self._last_written >= SECONDS_BETWEEN_HEARTBEATS:
            self._add(events.Alive(*self._position))
        if now < self._retry:
            return
        try:
            with self._lock:
                lines, self._lines = self._lines, []
            try:
                if lines:
                    _append(self.folder / "events.jsonl", "".join(lines))
            except OSError:
                self.num_lost += len(lines)
                raise
            began = self._clock()
            with self._lock:
                pending, self._pending_samples = self._pending_samples, []
            if pending:
                write_samples(self.folder, pending)
                self._samples_due += SAMPLES_PAUSE * (self._clock() - began)
        except OSError as error:
            is_gone = isinstance(error, FileNotFoundError)
            self._trouble = "it was deleted or moved away during the run" if is_gone else str(error)
            self._retry = now + SECONDS_BETWEEN_TRIES

    def _sum_up(self, waiting: deque[events.Event]) -> None:
        """Turn waiting events into lines, of which memory holds at most `MOST_WAITING`."""
        with self._lock:
            happened = [waiting.popleft() for _ in range(len(waiting))]
            if happened:
                self._position = (happened[-1].step, happened[-1].seconds)
            for event in self._summary.take(happened, self._clock()):
                self._add(event)

    def _add(self, event: events.Event) -> None:
        with self._lock:
            if len(self._lines) >= MOST_WAITING:
                self.num_lost += 1
                return
            self._last_written = self._clock()
            self._lines.append(f'{to_json(event)[:-1]}, "time": {self._wall():.3f}}}\n')

    def close(self, error: BaseException | None = None) -> None:
        """Write the rest and stop the thread; later events are written at once. Safe to call twice.

        Args:
            error: The exception that ended the run; by default the one on the way to the caller, if any.
        """
        if os.getpid() != self._pid or self._is_stuck:
            return
        self._condenser.flush()
        if not self.end_thread(CLOSE_SECONDS):
            # The program must end even if the disk hangs.
            self._is_stuck = True
            return
        self._sum_up(self._waiting)
        for event in self._summary.rest():
            self._add(event)
        if not self._is_closed:
            self._is_closed = True
            reason = _reason(sys.exc_info()[1] if error is None else error)
            if reason or not self._has_ended:
                self._add(events.ProcessLeft(*self._position, reason))
        self._retry = 0.0
        self.write_due()
        self._warn_of_trouble()


_open_journals: weakref.WeakValueDictionary[str, Journal] = weakref.WeakValueDictionary()
"""The journals of this process, by their folders."""


def _append(path: Path, text: str) -> None:
    """Append whole lines to an existing file: a deleted journal must not come back without its beginning.

    Raises:
        OSError: the file cannot be written, or not all of it.
    """
    content = text.encode("utf-8", errors="replace")
    descriptor = open_output(path, "r+")
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)


def _at_exit(reference: weakref.ref[Journal]) -> None:
    journal = reference()
    if journal is not None and not journal._is_closed:
        # In an interactive session the last exception may be an old one.
        journal.close(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None))


def _reason(error: BaseException | None) -> str:
    """The last line of a traceback; "" for Ctrl-C and an exit, which are no faults."""
    if not isinstance(error, Exception):
        return ""
    return traceback.format_exception_only(type(error), error)[-1].strip()[:500]


STEPS_PER_SECOND = 1.5
STEPS_AT_FIRST = 2400
"""Records of steps beyond that limit at the start: all of the first ten minutes, at four a second."""
SURVEYS_PER_SECOND = 1 / 30
SURVEYS_AT_FIRST = 100
SECONDS_BETWEEN_SURVEYS = 30.0
"""Least time between two surveys within an epoch."""
MOST_OF_A_KIND = 64
"""Most events of another kind kept in one window; a loop that logs at every step must not fill the disk."""


class Summary:
    """Selects and merges the events to write.

    Args:
        now: Seconds, monotonic.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._steps_left, self._surveys_left = float(STEPS_AT_FIRST), float(SURVEYS_AT_FIRST)
        self._survey_due = now
        self._steps: list[events.StepsDone] = []
        self._survey: events.SamplesSurveyed | None = None

    def take(self, happened: Iterable[events.Event], now: float) -> list[events.Event]:
        """The events to write of one window.

        They keep their order within the limits. Beyond, steps are merged across other events, and come after them.

        Args:
            happened: The events in order; steps are `StepsDone`.
            now: Seconds, monotonic.
        """
        passed, self._last = now - self._last, now
        self._steps_left = min(STEPS_AT_FIRST, self._steps_left + STEPS_PER_SECOND * passed)
        self._surveys_left = min(SURVEYS_AT_FIRST, self._surveys_left + SURVEYS_PER_SECOND * passed)
        kept: list[events.Event] = []
        counts = Counter[type[events.Event]]()
        for event in happened:
            if isinstance(event, events.StepsDone):
                self._steps.append(event)
                self._keep_steps(kept, spare=1)
            elif isinstance(event, events.SamplesSurveyed):
                self._survey = event
            else:
                counts[type(event)] += 1
                if counts[type(event)] <= MOST_OF_A_KIND:
                    kept.append(event)
            survey = self._survey
            if survey is not None and self._surveys_left >= 1 and (survey.epoch_ended or now >= self._survey_due):
                self._surveys_left -= 1
                self._survey_due = now + SECONDS_BETWEEN_SURVEYS
                kept.append(survey)
                self._survey = None
        self._keep_steps(kept, spare=0)
        kept += _left_out(counts, kept)
        return kept

    def rest(self) -> list[events.Event]:
        """The events that still wait."""
        kept: list[events.Event] = [] if self._survey is None else [self._survey]
        if self._steps:
            kept.append(merged(self._steps))
        self._survey, self._steps = None, []
        return kept

    def _keep_steps(self, kept: list[events.Event], *, spare: int) -> None:
        if self._steps and self._steps_left >= 1 + spare:
            self._steps_left -= 1
            kept.append(merged(self._steps))
            self._steps.clear()
        elif len(self._steps) > 1:
            self._steps = [merged(self._steps)]


def _left_out(counts: Counter[type[events.Event]], kept: list[events.Event]) -> list[events.Event]:
    """A notice for every kind with too many events in a window."""
    notices: list[events.Event] = []
    for kind, count in counts.items():
        if count > MOST_OF_A_KIND:
            advice = "; log less often than at every step" if kind is events.MetricsLogged else ""
            said = f"{count - MOST_OF_A_KIND} of {count} {kind.__name__} at once are not in the journal{advice}."
            notices.append(events.Notice(kept[-1].step, kept[-1].seconds, said, is_warning=False))
    return notices


def open_journal(
    run_dir: str | os.PathLike[str] | bool | None, *, is_shown: bool, name: str, configuration: Mapping[str, str],
    table: SampleTable, requests: RunControl | None = None,
) -> Journal | None:  # fmt: skip
    """The journal that R8Scheduler's ``run_dir`` asks for; None without one, and on all ranks but the first.

    Args:
        run_dir: A folder; True for a new one in `runs_folder`; None for a new one if the run is shown, else for no
            journal; False for no journal.
        is_shown: Whether the dashboard is on.
        name: Name of the run.
        configuration: The arguments of the scheduler.
        table: The losses and uses of the samples.
        requests: Takes what is asked for by files in the run folder.

    Raises:
        TypeError: ``run_dir`` is none of these.
        ValueError: another process writes there, or the name is empty.
        OSError: a file is in the way of a folder that was asked for, or something in it is not this user's. Where the
            disk is full or cannot be written, a warning says that the run is not recorded.
    """
    if not (run_dir is None or isinstance(run_dir, (str, os.PathLike, bool))):
        raise TypeError(f"run_dir must be a folder, True, False or None, got {run_dir!r}.")
    if run_dir == "":
        # "" would be the current folder; most likely a variable was not set.
        raise ValueError("run_dir must be a folder, True, False or None, got ''.")
    if run_dir is False or (run_dir is None and not is_shown) or launcher.rank_of() > 0:
        return None
    has_samples = table.num_samples or table.storage.ids is not None
    samples = functools.partial(samples_of, table) if has_samples else None
    named = folder = run_dir if isinstance(run_dir, (str, os.PathLike)) else None
    try:
        if folder is None:
            # With a number added if there is one of this name.
            plain = "".join(each if each.isascii() and (each.isalnum() or each in "-_.") else "_" for each in name)
            stem = runs_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{plain[:60] or 'run'}"
            folder = make_first_free(numbered(stem), lambda new: new.mkdir(parents=True))
        return Journal(folder, name=name, configuration=configuration, samples=samples, requests=requests)
    except OSError as error:
        if named is not None and isinstance(error, (FileExistsError, NotADirectoryError)):
            raise type(error)(f"run_dir must be a folder, or a path where one can be made, got {run_dir!r}.") from error
        if run_dir and isinstance(error, (FileExistsError, NotADirectoryError, NotOwnFile)):
            raise
        where = os.fspath(runs_folder() if named is None else named)
        warn(
            f"the run is not recorded, as nothing can be written to the run folder in {where!r}: {error}. Training "
            "goes on. Free or mend that disk, or give another run_dir."
        )
        return None
