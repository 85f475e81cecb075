"""The choices of the person at the screen: view, selection, scale. Nothing of this comes from the run."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...events.system import Load
    from .view import View

ZOOMS = ("all", "whole range", "last 10%", "last epoch")
LISTS = ("hardest", "suspects")
MODES = ("live", "watch", "replay")


@dataclass(frozen=True)
class UiState:
    """State of the screen; `keys.press` makes the next one.

    Attributes:
        mode: "live" inside the training, "watch" from outside (q just leaves), "replay".
        view: Name of a page, see `render.pages`.
        scroll: Rows scrolled away from the start of the view; events and output start at the newest.
        selected: Row of the list of samples, from 0.
        listed: Which samples are listed: one of LISTS.
        inspected: Position of the sample whose history is shown; None for the list.
        marked: Positions and names of the samples that the person has marked, in the order of marking.
        filter: Text that events, samples and output lines must contain; "" for all.
        typing: The filter being typed; None when keys are commands.
        asking: The length of a cool-down being typed; None when keys are commands.
        asked: The length that was typed last.
        zoom: One of ZOOMS.
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
    inspected: int | None = None
    marked: tuple[tuple[int, str], ...] = ()
    filter: str = ""
    typing: str | None = None
    asking: str | None = None
    asked: str = ""
    zoom: str = "all"
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
    EXPORT_CSV = "export the panel as CSV"
    REPAINT = "paint everything again"
    THEME = "next theme"


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
        link: State of the process as a viewer sees it: "", "running", "stalled 45 s", "died" or "finished".
        left: Why nothing trains now though the run is open, as a notebook's cell has ended; "" where it does.
        is_paused: Whether the training is paused by a key.
        folder: The run folder; "" without one.
        load: Load of the machine; None where it is not this one.
        other: The run to compare with; None without one.
    """

    now: float | None = None
    output: Sequence[str] = ()
    num_output: int = 0
    num_unread: int = 0
    ui_share: float = float("nan")
    said: str = ""
    link: str = ""
    left: str = ""
    is_paused: bool = False
    folder: str = ""
    load: Load | None = None
    other: View | None = None
