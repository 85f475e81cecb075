"""Events as text: a level and one sentence."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import NamedTuple

from .. import events
from .text import clean, number

INFO, GOOD, WARN, ALERT = "info", "good", "warn", "alert"


class EventText(NamedTuple):
    """The text of an event.

    Attributes:
        level: "info", "good", "warn" or "alert".
        text: One sentence, safe to show.
        mark: A letter for the axis of the charts, or "".
    """

    level: str
    text: str
    mark: str = ""


def describe(event: events.Event) -> EventText | None:
    """The text of an event; None for events that only carry numbers (steps, surveys, backups)."""
    if isinstance(event, _SILENT):
        return None
    said = _of_trouble(event) or _of_progress(event) or _of_run(event)
    if said is None:
        # An event of a later version: its name as words, and its fields.
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(event).__name__).lower()
        values = []
        for field in dataclasses.fields(event):
            if field.name not in ("step", "seconds", "epoch"):
                value = getattr(event, field.name)
                text = number(value) if isinstance(value, float) else clean(value, 60)
                values.append(f"{field.name.replace('_', ' ')} {text}")
        said = EventText(WARN if _TROUBLE.search(name) else INFO, f"{name}: {', '.join(values)}" if values else name)
    return said._replace(text=clean(said.text))


_SILENT = (
    events.StepDone,
    events.StepsDone,
    events.SamplesSurveyed,
    events.BackupTaken,
    events.LrPlanned,
    events.Alive,
    events.MachineLoad,
)
"""Events that only carry numbers."""


def _of_trouble(event: events.Event) -> EventText | None:
    match event:
        case events.BatchRefused():
            samples = f", samples {few(event.samples, 5)}" if event.samples else ""
            # NaN where the rate is the user's own and was never told.
            is_other = event.next_lr != event.lr == event.lr
            rate = f"; lr {number(event.lr)} -> {number(event.next_lr)}" if is_other else ""
            again = f" ({event.tries} in a row)" if event.tries > 1 else ""
            return EventText(ALERT, f"loss {number(event.loss)} refused, {event.reason}{again}{samples}{rate}", "S")
        case events.CauseFound():
            return EventText(ALERT, f"cause: {event.text}")
        case events.Probed():
            weights = "present weights" if event.is_present else "weights of a backup"
            losses = f"loss {number(event.loss)}, was {number(event.record)}"
            return EventText(INFO, f"probe of step {event.of_step:,}: {losses} ({weights})", "P")
        case events.RolledBack() if event.step == event.to_step:
            return EventText(ALERT, "the weights set aside were restored", "B")
        case events.RolledBack():
            steps = event.step - event.to_step
            state = f"{event.source} of step {event.to_step:,}"
            return EventText(ALERT, f"model restored from {state} ({-steps:+,} steps)", "B")
        case events.RestoreFailed():
            where = f"{_file_name(event.source)} of step {event.to_step:,}"
            return EventText(WARN, f"{where} could not be restored: {event.reason}")
        case events.DamageFound():
            return EventText(ALERT, f"the model holds a number that is not finite, in {event.array}")
        case events.LrCapped():
            share = " of yours" if event.is_share else ""
            until = f", {event.until}" if event.until else ""
            return EventText(WARN, f"learning rate held below {number(event.ceiling)}{share}: {event.reason}{until}")
        case events.GaveUp():
            kept = f" (diagnosis in {_file_name(event.bundle)})" if event.bundle else ""
            return EventText(ALERT, f"gave up{kept}: {event.text}")
        case events.IncidentEnded():
            return EventText(GOOD, f"found: {event.text}" if event.text else "recovered")
        case events.LrRestored():
            return EventText(GOOD, "learning rate back on its schedule")
        case events.SamplesQuarantined():
            return EventText(ALERT, f"quarantine: {event.text}", "Q")
        case events.SamplesReleased():
            return EventText(INFO, f"out of quarantine: samples {few(event.samples, 5)}")
        case events.BatchAbandoned():
            rest = "it comes again" if event.drawn_again else "refused"
            return EventText(WARN, f"a batch was not reported; {rest}")
    return None


def _of_progress(event: events.Event) -> EventText | None:
    match event:
        case events.EpochDone():
            speed = event.samples / event.epoch_seconds if event.epoch_seconds > 0 else math.nan
            rest = f"mean loss {number(event.loss)}, {number(speed)} samples/s"
            return EventText(INFO, f"epoch {event.epoch + 1} done: {rest}")
        case events.MetricsLogged():
            values = "  ".join(f"{name} {number(value)}" for name, value in list(event.named.items())[:8])
            return EventText(INFO, f"measured: {values}")
        case events.BackupsOutlive(is_on=True):
            return EventText(GOOD, "backups outlive the process again")
        case events.BackupsOutlive():
            return EventText(WARN, f"backups do not outlive the process: {event.reason}")
        case events.CheckpointSaved():
            return EventText(INFO, f"checkpoint {_file_name(event.path)} saved{event.mark}", "C")
        case events.CheckpointLoaded():
            name = _file_name(event.path)
            source = f"checkpoint {name}"
            if name.startswith("gen_"):
                source = f"the backup in shared memory {event.path}, which is newer than every checkpoint on disk,"
            return EventText(INFO, f"goes on from {source} at step {event.step:,}")
        case events.LrFound():
            return EventText(INFO, f"learning rate {number(event.lr)} found in {event.num_steps} steps")
        case events.Notice():
            return EventText(WARN if event.is_warning else INFO, event.text)
    return None


def _of_run(event: events.Event) -> EventText | None:
    match event:
        case events.RunStarted():
            where = f"resumed at step {event.step:,}" if event.step else "started"
            return EventText(INFO, f"{where}: {describe_data(event)}", "R" * bool(event.step))
        case events.RunPaused():
            return EventText(INFO, f"paused: {event.reason}" if event.reason else "paused")
        case events.RunResumed():
            return EventText(INFO, "goes on")
        case events.CoolDownBegan():
            return EventText(INFO, describe_end(event), "D")
        case events.RunStopped() if event.is_early:
            return EventText(GOOD, f"ends early: {event.reason}" if event.reason else "ends early")
        case events.RunStopped():
            return EventText(WARN, f"asked to stop: {event.reason}" if event.reason else "asked to stop")
        case events.ProcessLeft():
            return EventText(ALERT, f"died: {event.error}") if event.error else EventText(INFO, "the process left")
        case events.RunEnded():
            return EventText(GOOD, end_of(event)) if event.finished else EventText(WARN, "stopped before its end")
    return None


def describe_data(event: events.RunStarted) -> str:
    """The samples of a run and its batches; or that there is no table of them."""
    if event.grows:
        known = f"{event.num_samples:,} samples" if event.num_samples else "samples counted as they come,"
        return f"{known} in your own batches"
    if not event.num_samples:
        return events.NO_TABLE
    return f"{event.num_samples:,} samples in batches of {event.batch_size:,}"


def end_of(event: events.RunEnded) -> str:
    """How a run has ended, in one or two words."""
    if not event.finished:
        return "stopped"
    return "finished" if event.early is None else "finished early"


def describe_end(event: events.CoolDownBegan) -> str:
    """The end that a cool-down has set, as a sentence."""
    if event.until is not None:
        try:
            end = f"at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event.until))}"
        except (OverflowError, ValueError, OSError):
            # A damaged file of events may hold any number.
            end = f"at {number(event.until)} s after 1970"
    elif event.total_steps is not None:
        end = f"at step {event.total_steps:,}"
    else:
        end = f"after {event.train_duration_seconds or 0.0:,.0f} s"
    because = f" ({event.reason})" if event.reason else ""
    return f"cooling down from a rate of {number(event.lr)}, to the end {end}{because}"


_TROUBLE = re.compile(r"refused|failed|diverged|spike|drift|damaged|lost|abandoned|gave|stall", re.IGNORECASE)


def few(samples: tuple[int, ...], most: int) -> str:
    """Positions of the first samples, and the number of the others."""
    return ", ".join(map(str, samples[:most])) + (f" and {len(samples) - most} more" if len(samples) > most else "")


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]
