"""The run in a notebook: one HTML view that is updated in place, without widgets or scripts.

The notebook keeps the newest view only, so that a file that is opened again shows the run as it was left.
"""

from __future__ import annotations

import html
import importlib
import math
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.condenser import Condenser
from .state.status import state_of
from .state.ui_state import Scene
from .state.view import View
from .text import clean, clock, number, share

EVERY_SECONDS = 1.0
CPU_SHARE = 0.006
"""Least time between two updates, and the share of a core that drawing may take: dear views are updated less often."""

MOST_QUEUED = 100_000
COLUMNS = 240
WIDTH, HEIGHT = 560, 130
MOST_EVENTS = 5
MOST_METRICS = 8
END_SECONDS = 2.0

_COLOURS = {"good": "#1c8a4b", "busy": "#2f6fde", "warn": "#b3730b", "alert": "#d0342c"}


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook; imports nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookView:
    """A listener that shows the run as one view of the cell that began it.

    Args:
        display: Shows a view: called with its HTML, its text, and whether it replaces the one before. By default that
            of IPython.
        clock: Returns seconds, monotonic.
        cpu_clock: Returns the CPU seconds of the calling thread.

    Attributes:
        view: The run; only the thread of the view folds events into it.
        error: The error that ended the view; None without one.
    """

    wants_surveys = True

    def __init__(
        self,
        *,
        display: Callable[[str, str, bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.view = View()
        self.error: Exception | None = None
        self._display = display or _display_of_ipython()
        self._clock, self._cpu_clock = clock, cpu_clock
        self._queue: deque[tuple[float, events.Event]] = deque(maxlen=MOST_QUEUED)
        self._condenser = Condenser(self._append)
        self._anchor = (clock(), 0.0)
        self._is_shown = False
        self._wake = threading.Event()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="r8-notebook", daemon=True)
        self._thread.start()

    def __call__(self, event: events.Event) -> None:
        """Queue an event; on the training thread."""
        self._condenser(event)
        if isinstance(event, events.RunEnded):
            self._is_ending = True
            self._wake.set()
            self._thread.join(END_SECONDS)

    def _append(self, event: events.Event) -> None:
        self._queue.append((self._clock(), event))

    def _run(self) -> None:
        """The loop of the thread."""
        try:
            while True:
                is_last = self._is_ending
                began = self._cpu_clock()
                self._draw()
                if is_last:
                    return
                cost = self._cpu_clock() - began
                self._wake.wait(max(EVERY_SECONDS, cost / CPU_SHARE))
        except Exception as error:
            # A front end that is gone must not end the training; the run folder has everything.
            self.error = error

    def _draw(self) -> None:
        """Fold what is new, and show it; nothing where nothing is."""
        is_new = False
        while self._queue:
            arrived, event = self._queue.popleft()
            self._anchor = (arrived, event.seconds)
            self.view.fold(event)
            is_new = True
        if is_new:
            arrived, seconds = self._anchor
            page, text = html_of(self.view, seconds + self._clock() - arrived), text_of(self.view)
            self._display(page, text, self._is_shown)
            self._is_shown = True


def _display_of_ipython() -> Callable[[str, str, bool], None]:
    display: Any = importlib.import_module("IPython.display").display
    name = f"learnit-r8-{uuid.uuid4().hex}"

    def show(page: str, text: str, again: bool) -> None:
        display({"text/html": page, "text/plain": text}, raw=True, display_id=name, update=again)

    return show


def text_of(view: View) -> str:
    """The run in one line, for places that show no HTML."""
    name = clean(view.run.name, 60) if view.run is not None else ""
    loss = f", loss {number(view.ema, 4)}" if view.last is not None else ""
    return f"{name or 'run'}: {share(view.progress)}, step {view.step_text}{loss}"


def html_of(view: View, now: float) -> str:
    """The view as HTML with inline styles only, in the colours of the notebook.

    Args:
        view: The run.
        now: Training seconds now.
    """
    parts = [_head(view, now), _bar(view), _numbers(view, now)]
    if not view.loss.is_empty:
        last = max(1, view.step)
        loss = view.loss.columns(min(COLUMNS, last), 0, last)
        rate = view.lr.columns(min(COLUMNS, last), 0, last).mean
        parts.append(_chart("loss of the batches", loss.mean, "#2f6fde", (loss.low, loss.high)))
        parts.append(_chart("learning rate", rate, "#0f8f7a", height=50))
    parts += [_metrics(view), _events(view)]
    style = "font:13px/1.45 system-ui,sans-serif;max-width:600px"
    return f'<div class="learnit-r8" style="{style}">{"".join(parts)}</div>'


def _safe(value: object, most: int = 120) -> str:
    return html.escape(clean(value, most))


def _head(view: View, now: float) -> str:
    state = state_of(view, Scene(now=None if view.is_paused or view.ended else now))
    name = _safe(view.run.name if view.run is not None and view.run.name else "run", 60)
    detail = f" {_safe(state.detail)}" if state.detail else ""
    colour = _COLOURS.get(state.style, "inherit")
    return f'<div><b>{name}</b> <span style="float:right;color:{colour}"><b>{state.word}</b>{detail}</span></div>'


def _bar(view: View) -> str:
    filled = f"width:{100 * view.progress:.1f}%;background:#2f6fde;height:6px;border-radius:3px"
    return f'<div style="background:#8884;border-radius:3px;margin:4px 0"><div style="{filled}"></div></div>'


def _numbers(view: View, now: float) -> str:
    left = "" if view.ended is not None else f"left {clock(view.time_left(now).seconds)}"
    facts = [share(view.progress), f"epoch {view.epoch_text}", f"step {view.step_text}", left]
    if view.last is not None:
        facts += [f"loss {number(view.last.last_loss, 4)}", f"smoothed {number(view.ema, 4)}"]
        facts.append(f"lr {number(view.last.lr, 4)}")
    if view.pacing.is_measured:
        facts.append(f"{number(round(view.pacing.samples_per_second, 1))} samples/s")
    if view.survey is not None and view.survey.num_suspects:
        facts.append(f"{view.survey.num_suspects:,} labels look wrong")
    if view.num_refused:
        facts.append(f"{view.num_refused} losses refused")
    return f'<div style="opacity:.8">{" &middot; ".join(fact for fact in facts if fact)}</div>'


Values = NDArray[np.float64]


def _chart(title: str, values: Values, colour: str, band: Sequence[Values] = (), *, height: int = HEIGHT) -> str:
    """A curve with its range as SVG, the lowest and the highest value beside it."""
    known = values[np.isfinite(values)]
    if not len(known):
        return ""
    low, high = float(known.min()), float(np.quantile(band[1][np.isfinite(band[1])], 0.99) if band else known.max())
    room = (high - low) or abs(high) or 1.0
    places = np.arange(len(values)) * (WIDTH / max(1, len(values) - 1))

    def points(row: Values, *, back: bool = False) -> Iterator[str]:
        heights = np.clip((row - low) / room, 0, 1) * (height - 4)
        pairs = zip(places.tolist(), (height - 2 - heights).tolist(), strict=True)
        found = [f"{x:.0f},{y:.1f}" for x, y in pairs if math.isfinite(y)]
        return iter(reversed(found) if back else found)

    shapes = f'<polyline points="{" ".join(points(values))}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    if band:
        outline = " ".join([*points(band[0]), *points(band[1], back=True)])
        shapes = f'<polygon points="{outline}" fill="{colour}" fill-opacity=".18"/>{shapes}'
    note = f'<span style="opacity:.7">{title}: {number(low, 4)} to {number(high, 4)}</span>'
    size = f'viewBox="0 0 {WIDTH} {height}" style="width:100%;height:auto;display:block"'
    return f'<div style="margin-top:6px">{note}<svg {size} role="img" aria-label="{title}">{shapes}</svg></div>'


def _metrics(view: View) -> str:
    rows = []
    for name in list(view.metrics)[:MOST_METRICS]:
        best = view.bests.get(name)
        note = f"best {number(best.value, 4)} at step {best.step:,}" if best is not None else ""
        rows.append(f"<div>{_safe(name, 40)} <b>{number(view.metrics[name][-1].value, 4)}</b> {note}</div>")
    return f'<div style="margin-top:6px">{"".join(rows)}</div>' if rows else ""


def _events(view: View) -> str:
    entries = list(view.log)[-MOST_EVENTS:][::-1]
    rows = (
        f'<div style="color:{_COLOURS.get(entry.level, "inherit")}">{clock(entry.seconds)} &middot; '
        f"step {entry.step:,} &middot; {_safe(entry.text, 300)}</div>"
        for entry in entries
    )
    return f'<div style="margin-top:6px;opacity:.85;font-size:12px">{"".join(rows)}</div>' if entries else ""
