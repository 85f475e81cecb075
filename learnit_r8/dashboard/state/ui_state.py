"""The choices of the person at the screen: view, selection, scale; and what is listed by them."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ...events.text import clean, share

if TYPE_CHECKING:
    from ...events import SamplesSurveyed
    from .view import View

ZOOMS = ("all", "whole range", "last 10%", "last epoch")
LISTS = ("hardest", "suspects")
MODES = ("live", "watch", "replay", "list")
SORTS = ("written", "metric", "state", "step", "name")


@dataclass(frozen=True)
class UiState:
    """State of the screen; `keys.press` makes the next one.

    Attributes:
        mode: "live" inside the training, "watch" from outside (q just leaves), "replay", "list" of runs.
        view: Name of a page, see `render.pages`.
        scroll: Rows scrolled away from the start of the view; events and output start at the newest.
        selected: Row of the list of samples, from 0.
        listed: Which samples are listed: one of LISTS.
        filter: Text that events, samples and output lines must contain; "" for all.
        typing: The filter being typed; None when keys are commands.
        asking: The length of a cool-down being typed; None when keys are commands.
        asked: The length that was typed last.
        zoom: One of ZOOMS.
        sort: What a list of runs is sorted by: one of SORTS.
        log_scale: Whether the loss is drawn on a log scale.
        alerts_only: Whether only warnings and alerts are listed among the events.
        opened: Whether events are shown with their whole text.
        frozen: Whether the picture stands still; the painter folds no events then.
        help: Whether the help is shown.
        help_scroll: Rows by which the help is scrolled.
        menu: Whether the person is asked how to leave.
    """

    mode: str = "live"
    view: str = "overview"
    scroll: int = 0
    selected: int = 0
    listed: str = "hardest"
    filter: str = ""
    typing: str | None = None
    asking: str | None = None
    asked: str = ""
    zoom: str = "all"
    sort: str = "written"
    log_scale: bool = False
    alerts_only: bool = False
    opened: bool = False
    frozen: bool = False
    help: bool = False
    help_scroll: int = 0
    menu: bool = False


class Action(enum.Enum):
    """The action of a key that the owner of the screen takes."""

    PAUSE = "pause or go on"
    SAVE = "save a checkpoint"
    STOP = "stop after this step and save"
    COOL_DOWN = "let the rate fall, then end"
    ASK = "say how to control the training from a viewer"
    DETACH = "only close the screen"
    LEAVE = "leave the viewer"
    REPAINT = "paint everything again"
    THEME = "next theme"
    OPEN = "open the selected run"


class RunRow(NamedTuple):
    """A run in a list.

    Attributes:
        folder: Its folder.
        texts: Name, state, share done, step, smoothed loss, best value of its metric with its step, age of its last
            record; "" where it is not known.
        curve: The course of the metric, else of the loss: some values, NaN where unknown.
        keys: What it is sorted by, for each of SORTS.
    """

    folder: str
    texts: tuple[str, ...]
    curve: tuple[float, ...]
    keys: tuple[float | str, ...]


HEADER = ("run", "state", "done", "step", "smoothed", "metric", "written")
"""Names of the texts of a `RunRow`."""


def chosen_rows(ui: UiState, rows: Sequence[RunRow]) -> list[RunRow]:
    """The rows that pass the filter, in their order."""
    wanted, place = ui.filter.lower(), SORTS.index(ui.sort)
    return sorted((row for row in rows if wanted in " ".join(row.texts).lower()), key=lambda row: row.keys[place])


@dataclass(frozen=True)
class Scene:
    """Facts of the owner of a screen beside the events of the run.

    Attributes:
        now: Training seconds now; None for those of the newest event (a replay, a test).
        output: Captured lines, oldest first, as many as are kept; cleaned when drawn.
        num_output: Lines captured so far.
        num_unread: Lines captured since the output view was last open.
        ui_share: Share of one core that the screen takes; NaN if unknown.
        said: An answer to the last key, such as "save requested...".
        clock: The time now, by the clock of `View.heard`; NaN where the run is not followed as it goes on.
        is_gone: Whether the process that trains has ended; None where that cannot be told.
        left: Why nothing trains now though the run is open, as a notebook's cell has ended; "" where it does.
        is_paused: Whether the training is paused by a key.
        folder: The run folder; "" without one.
        runs: The runs of a list.
    """

    now: float | None = None
    output: Sequence[str] = ()
    num_output: int = 0
    num_unread: int = 0
    ui_share: float = float("nan")
    said: str = ""
    clock: float = math.nan
    is_gone: bool | None = None
    left: str = ""
    is_paused: bool = False
    folder: str = ""
    runs: Sequence[RunRow] = ()


class Row(NamedTuple):
    """A sample in a list."""

    name: str
    loss: float
    last: float
    uses: int
    history: tuple[float, ...]
    note: str
    given: str = ""
    suggested: str = ""

    @property
    def labels(self) -> str:
        """The label given and the one suggested, as text; "" where the first is unknown."""
        differs = self.suggested and self.suggested != self.given
        return f"{self.given} -> {self.suggested}" if differs else self.given


def rows_of(survey: SamplesSurveyed, listed: str) -> dict[int, Row]:
    """The samples of a list by their positions: "hardest" or "suspects"."""
    labels: Iterator[tuple[str, str]] = itertools.repeat(("", ""))
    if listed == "hardest":
        kind, last = "hardest", survey.hardest_last
        notes = ["suspect" if is_suspected else "" for is_suspected in survey.hardest_suspected]
    else:
        kind, last = "suspect", (math.nan,) * len(survey.suspects)
        reasons = zip(survey.suspect_score, survey.suspect_why, strict=False)
        notes = [f"{share(score, 0):>5}  {clean(why, 20)}" for score, why in reasons]
        known = itertools.zip_longest(survey.suspect_given, survey.suspect_suggested, fillvalue="")
        told = ((clean(given, 30), clean(suggested, 30)) for given, suggested in known)
        labels = itertools.chain(told, labels)
    parts = (getattr(survey, f"{kind}_{part}") for part in ("names", "loss", "uses", "history"))
    names, losses, uses, histories = parts
    rows = zip(getattr(survey, listed), names, losses, last, uses, histories, notes, labels, strict=False)
    return {index: Row(clean(name, 60), *others, *label) for index, name, *others, label in rows}


def listed_samples(ui: UiState, view: View) -> dict[int, Row]:
    """The samples in the chosen list that pass the filter, by their positions."""
    rows = {} if view.survey is None else rows_of(view.survey, ui.listed)
    wanted = ui.filter.lower()
    return {index: row for index, row in rows.items() if wanted in f"{index} {row.name}".lower()}
