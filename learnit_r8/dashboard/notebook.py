"""The run in a notebook: one HTML view that is updated in place, without widgets or scripts.

The notebook keeps the newest view only, so that a file that is opened again shows the run as it was left: the view is
brought up to date when the cell ends, closed run or not. What is trained in a later cell is shown there.
"""

from __future__ import annotations

import html
import importlib
import math
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.samples import count_text
from ..events.text import clean, number, share
from ..events.threaded_listener import ThreadedListener
from .render.curves import metric_label
from .render.header import incident_line, loss_line, speed_line, title_line, total_line
from .render.texts import entry_line
from .state.curve import Columns, range_of
from .state.ui_state import Scene, UiState
from .state.view import View
from .text import Line, Span
from .theme import Theme

EVERY_SECONDS = 1.0
CPU_SHARE = 0.006
"""Least time between two updates, and the share of a core that drawing may take: dear views are updated less often."""

MOST_QUEUED = 100_000
COLUMNS = 240
WIDTH, HEIGHT = 560, 130
CELLS = 400
"""Longest line of the screen that is shown; the notebook breaks it."""
MOST_EVENTS = 5
MOST_METRICS = 8
END_SECONDS = 2.0

_COLOURS = {"good": "#1c8a4b", "busy": "#2f6fde", "warn": "#b3730b", "alert": "#d0342c"}


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook; imports nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookView(ThreadedListener):
    """A listener that shows the run as one view of the cell that began it.

    Args:
        display: Shows a view: called with its HTML, its text, and whether it replaces the one before. By default that
            of IPython, whose cells the view follows then.

    Attributes:
        view: The run; only the thread of the view folds events into it.
        error: The error that ended the view; None without one.
    """

    wants_surveys = True

    def __init__(self, *, display: Callable[[str, str, bool], None] | None = None) -> None:
        super().__init__("r8-notebook", most_queued=MOST_QUEUED, every_seconds=0.0)
        self.view = View()
        self.error: Exception | None = None
        self._display = display or _display_of_ipython()
        self._is_shown = False
        self._left, self._trains_on = "", 0
        if display is None:
            _follow_cells(self)

    def __call__(self, event: events.Event) -> None:
        """Queue an event; on the training thread."""
        self._trains_on = threading.get_ident()
        if self._left and isinstance(event, (events.StepDone, events.BatchRefused)):
            # It goes on in a cell further down, or in one that is run again, whose output is gone.
            self._left, self._is_shown = "", False
        super().__call__(event)
        if isinstance(event, events.RunEnded):
            self.end_thread(END_SECONDS)

    def cell_ended(self, error: BaseException | None) -> None:
        """Show the run as it is left by its cell, which has ended; a later one gets a view of its own.

        A run that trains on another thread goes on.

        Args:
            error: What ended the cell; None if it was its last line.
        """
        if self._trains_on != threading.get_ident():
            return
        self._trains_on = 0
        self._left = "the cell has ended" if error is None else f"{type(error).__name__} {error}".strip()
        if self.view.ended is None:
            self._condenser.flush()
            self.end_thread(END_SECONDS)

    def handle(self, waiting: deque[events.Event], *, is_last: bool) -> None:
        """Fold the events of the queue, and update the view if there are any, or if the run is left."""
        if not (waiting or (is_last and self._left)) or self.error is not None:
            waiting.clear()
            return
        began = time.thread_time()
        try:
            while waiting:
                self.view.fold(waiting.popleft())
            page, text = html_of(self.view, self.view.seconds, left=self._left), text_of(self.view)
            self._display(page, text, self._is_shown)
            self._is_shown = True
        except Exception as error:
            # A front end that is gone must not end the training; the run folder has everything.
            self.error = error
        self.every_seconds = max(EVERY_SECONDS, (time.thread_time() - began) / CPU_SHARE)


def _display_of_ipython() -> Callable[[str, str, bool], None]:
    display: Any = importlib.import_module("IPython.display").display
    name = ""

    def show(page: str, text: str, again: bool) -> None:
        nonlocal name
        # An output that is gone, as that of a cell that is run again, cannot be updated.
        name = name if again else f"learnit-r8-{uuid.uuid4().hex}"
        display({"text/html": page, "text/plain": text}, raw=True, display_id=name, update=again)

    return show


def _follow_cells(view: NotebookView) -> None:
    """Tell a view when a cell has ended, as long as there is the view and its run."""
    cells = importlib.import_module("IPython").get_ipython().events
    reference = weakref.ref(view)

    def ended(result: Any) -> None:
        view = reference()
        if view is not None:
            view.cell_ended(result.error_before_exec or result.error_in_exec)
        if view is None or view.view.ended is not None:
            cells.unregister("post_run_cell", ended)

    cells.register("post_run_cell", ended)


def text_of(view: View) -> str:
    """The run in one line, for places that show no HTML."""
    name = clean(view.run.name, 60) if view.run is not None else ""
    loss = f", loss {number(view.ema, 4)}" if view.last is not None else ""
    return f"{name or 'run'}: {share(view.progress)}, step {view.step_text}{loss}"


def html_of(view: View, now: float, *, left: str = "") -> str:
    """The lines of the screen and its curves as HTML with inline styles only, in the colours of the notebook.

    Args:
        view: The run.
        now: Training seconds now.
        left: Why nothing trains now though the run is open; "" where it does.
    """
    scene = Scene(now=None if view.is_paused or view.ended or left else now, left=left)
    survey, theme, charts = view.survey, Theme(), []
    lines = [
        title_line(view, UiState(), CELLS, theme, scene), total_line(view, CELLS, theme, scene),
        loss_line(view, CELLS), speed_line(view, CELLS, scene), incident_line(view, CELLS, theme, scene),
    ]  # fmt: skip
    if survey is not None and survey.num_suspects:
        lines.append((Span(count_text(survey.num_suspects, survey.num_judged)),))
    lines += [metric_label(view, name, "", theme) for name in list(view.metrics)[:MOST_METRICS]]
    if not view.loss.is_empty:
        last = max(1, view.step)
        loss, rate = (curve.columns(min(COLUMNS, last), 0, last) for curve in (view.loss, view.lr))
        charts = [
            _chart("loss of the batches", loss, "#2f6fde", is_range=True),
            _chart("learning rate", rate, "#0f8f7a", height=50),
        ]
    events = [entry_line(entry, CELLS, theme) for entry in list(view.log)[-MOST_EVENTS:][::-1]]
    style = "font:13px/1.45 system-ui,sans-serif;max-width:600px"
    blocks = [*map(_line, lines), *charts, *map(_line, events)]
    return f'<div class="learnit-r8" style="{style}">{"".join(blocks)}</div>'


def _line(line: Line, theme: Theme = Theme()) -> str:
    """A line of the screen, whose bar is a coloured one.

    Other texts have the colour of the notebook, as no other can be read on light and dark ones; the mark of the state
    has its own.
    """
    parts = []
    for text, style in line:
        words, colour = html.escape(clean(text, CELLS)), _COLOURS.get(style)
        if style == "bar":
            wide = 100 * len(text) / max(1, sum(len(span.text) for span in line if span.style in ("bar", "rest")))
            filled = f'<div style="width:{wide:.1f}%;background:#2f6fde;height:6px;border-radius:3px"></div>'
            words = f'<span style="display:inline-block;width:50%;background:#8884;border-radius:3px">{filled}</span>'
        elif style == "rest":
            words = ""
        elif style == "label":
            words = f'<span style="opacity:.7">{words}</span>'
        elif colour is not None or style in ("value", "title"):
            words = f"<b>{words}</b>"
            words = words.replace(theme.glyphs.dot, f'<span style="color:{colour}">&#9679;</span>')
        parts.append(words)
    return f"<div>{''.join(parts)}</div>" if line else ""


def _chart(title: str, values: Columns, colour: str, *, height: int = HEIGHT, is_range: bool = False) -> str:
    """A curve, with its range where that is wanted, and the lowest and the highest value above it."""
    known = values.mean[np.isfinite(values.mean)]
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    if is_range:
        high = range_of(values.high, share=0.99)[1]
    low_end, high_end = range_of([low, high])

    def places_of(column: NDArray[np.float64]) -> list[str]:
        """Pixels of the values that are known."""
        up = height - 2 - np.clip((column - low_end) / (high_end - low_end), 0, 1) * (height - 4)
        along = np.arange(len(column)) * WIDTH / max(1, len(column) - 1)
        return [f"{a:.1f},{b:.1f}" for a, b in zip(along, up, strict=True) if math.isfinite(b)]

    area = " ".join([*places_of(values.high), *places_of(values.low)[::-1]]) if is_range else ""
    shapes = f'<polygon style="fill:{colour};fill-opacity:.18" points="{area}"/>' if area else ""
    points = " ".join(places_of(values.mean))
    shapes += f'<polyline style="fill:none;stroke:{colour};stroke-width:1.5" points="{points}"/>'
    note = f'<span style="opacity:.7">{title}: {number(low, 4)} to {number(high, 4)}</span>'
    size = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"'
    return f'<div style="margin-top:6px">{note}<svg {size}>{shapes}</svg></div>'
