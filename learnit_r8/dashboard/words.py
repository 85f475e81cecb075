"""What an event says to people: a level and one sentence."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from .. import events
from .text import clean

INFO, GOOD, WARN, ALERT = LEVELS = ("info", "good", "warn", "alert")


class Said(NamedTuple):
    """What an event says.

    Attributes:
        level: One of LEVELS.
        text: One sentence, safe to show.
        mark: A letter for the axis of the charts, or "".
    """

    level: str
    text: str
    mark: str = ""


def describe(event: events.Event) -> Said | None:
    """What an event says; None for those that only carry numbers (steps, surveys, backups)."""
    said = _known(event)
    return None if said is None else Said(said.level, clean(said.text), said.mark)


_SILENT = (
    events.StepDone,
    events.StepsDone,
    events.SamplesSurveyed,
    events.BackupTaken,
    events.LrPlanned,
    events.Alive,
)
"""Events that only carry numbers."""


def _known(event: events.Event) -> Said | None:
    if isinstance(event, _SILENT):
        return None
    return _of_trouble(event) or _of_progress(event) or _of_run(event) or _unknown(event)


def _of_trouble(event: events.Event) -> Said | None:
    match event:
        case events.BatchRefused():
            samples = f", samples {_few(event.samples)}" if event.samples else ""
            rate = f"; lr {number(event.lr)} -> {number(event.next_lr)}" if event.next_lr != event.lr else ""
            again = f" ({event.tries} in a row)" if event.tries > 1 else ""
            return Said(ALERT, f"loss {number(event.loss)} refused, {event.reason}{again}{samples}{rate}", "S")
        case events.RolledBack():
            steps = event.step - event.to_step
            return Said(ALERT, f"model restored from {event.source} of step {event.to_step:,} ({-steps:+,} steps)", "B")
        case events.RestoreFailed():
            where = f"{_file_name(event.source)} of step {event.to_step:,}"
            return Said(WARN, f"{where} could not be put back: {event.reason}")
        case events.DamageFound():
            return Said(ALERT, f"the model holds a number that is not finite, in {event.array}")
        case events.LrCapped():
            return Said(WARN, f"learning rate held below {number(event.ceiling)}: {event.reason}")
        case events.GaveUp():
            kept = f" (diagnosis in {_file_name(event.bundle)})" if event.bundle else ""
            return Said(ALERT, f"gave up{kept}: {event.text}")
        case events.IncidentEnded():
            return Said(GOOD, f"recovered: {event.text}" if event.text else "recovered")
        case events.SamplesQuarantined():
            return Said(ALERT, f"quarantine: {event.text}", "Q")
        case events.SamplesReleased():
            return Said(INFO, f"out of quarantine: samples {_few(event.samples)}")
        case events.LrRestored():
            return Said(GOOD, "learning rate back on its schedule")
        case events.BatchAbandoned():
            return Said(WARN, "a batch was not reported; " + ("it comes again" if event.drawn_again else "refused"))
    return None


def _of_progress(event: events.Event) -> Said | None:
    match event:
        case events.EpochDone():
            speed = event.samples / event.epoch_seconds if event.epoch_seconds > 0 else math.nan
            rest = f"mean loss {number(event.loss)}, {number(speed)} samples/s"
            return Said(INFO, f"epoch {event.epoch + 1} done: {rest}")
        case events.MetricsLogged():
            values = "  ".join(f"{name} {number(value)}" for name, value in list(event.metrics.items())[:8])
            return Said(INFO, f"measured: {values}")
        case events.CheckpointSaved():
            return Said(INFO, f"checkpoint {_file_name(event.path)} saved", "C")
        case events.LrFound():
            return Said(INFO, f"learning rate {number(event.lr)} found in {event.num_steps} steps")
        case events.Notice():
            return Said(WARN if event.is_warning else INFO, event.text)
    return None


def _of_run(event: events.Event) -> Said | None:
    match event:
        case events.RunStarted():
            where = f"resumed at step {event.step:,}" if event.step else "started"
            size = f"{event.num_samples:,} samples in batches of {event.batch_size:,}"
            return Said(INFO, f"{where}: {size}", "R" * bool(event.step))
        case events.RunPaused():
            return Said(WARN, f"paused: {event.reason}" if event.reason else "paused")
        case events.RunResumed():
            return Said(INFO, "goes on")
        case events.RunStopped():
            return Said(WARN, f"asked to stop: {event.reason}" if event.reason else "asked to stop")
        case events.ProcessLeft():
            return Said(ALERT, f"died: {event.error}") if event.error else Said(INFO, "the process left")
        case events.RunEnded():
            return Said(GOOD if event.finished else WARN, "finished" if event.finished else "stopped before its end")
    return None


_TROUBLE = re.compile(r"refused|failed|diverged|spike|drift|damaged|lost|abandoned|gave|stall", re.IGNORECASE)


def _unknown(event: events.Event) -> Said:
    """Whatever a later version tells: its name as words, and its fields."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(event).__name__).lower()
    fields = [field.name for field in dataclasses.fields(event) if field.name not in ("step", "seconds", "epoch")]
    values = ", ".join(f"{field.replace('_', ' ')} {_short(getattr(event, field))}" for field in fields)
    return Said(WARN if _TROUBLE.search(name) else INFO, f"{name}: {values}" if values else name)


def _short(value: object) -> str:
    return number(value) if isinstance(value, float) else clean(value, 60)


def _few(samples: tuple[int, ...]) -> str:
    return ", ".join(map(str, samples[:5])) + (f" and {len(samples) - 5} more" if len(samples) > 5 else "")


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def number(value: float) -> str:
    """A number in at most nine characters: four digits, or a power of ten.

    >>> number(0.41831), number(2450), number(1234567.0), number(3.6e-5), number(float("nan"))
    ('0.4183', '2,450', '1.235e+06', '3.6e-05', 'nan')
    """
    if not math.isfinite(value):
        return "nan" if value != value else ("inf" if value > 0 else "-inf")
    size = abs(value)
    if size and not 1e-4 <= size < 1e6:
        return f"{value:.4g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


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
