"""Where the person looks: which view, what is selected, how it is drawn. Nothing of this comes from the run."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

VIEWS = ("overview", "data", "samples", "events", "output", "config")
ZOOMS = ("all", "last 10%", "last epoch")
LISTS = ("hardest", "suspects")
MODES = ("live", "watch", "replay")


@dataclass(frozen=True)
class Looking:
    """How a person looks at the run; `keys.press` makes the next one.

    Attributes:
        mode: "live" inside the training, "watch" from outside (q just leaves), "replay".
        view: One of VIEWS.
        scroll: Rows scrolled away from where the view begins: from the newest, in events and output.
        selected: Row of the list of samples, from 0.
        listed: Which samples are listed: one of LISTS.
        inspected: Position of the sample whose history is shown; None for the list.
        filter: Text that events, samples and output lines must contain; "" for all.
        typing: The filter being typed; None when keys are commands.
        zoom: One of ZOOMS.
        log_scale: Whether the loss is drawn on a log scale.
        alerts_only: Whether only warnings and alerts are listed among the events.
        frozen: Whether the picture stands still; the painter goes on drawing the view as it was.
        help: Whether the help is shown.
        menu: Whether the person is asked how to leave.
    """

    mode: str = "live"
    view: str = "overview"
    scroll: int = 0
    selected: int = 0
    listed: str = "hardest"
    inspected: int | None = None
    filter: str = ""
    typing: str | None = None
    zoom: str = "all"
    log_scale: bool = False
    alerts_only: bool = False
    frozen: bool = False
    help: bool = False
    menu: bool = False


class Action(enum.Enum):
    """What a key asks of the one who owns the screen."""

    PAUSE = "pause or go on"
    SAVE = "save a checkpoint"
    STOP = "stop after this step and save"
    DETACH = "only close the screen"
    LEAVE = "leave the viewer"
    EXPORT_CSV = "export the panel as CSV"
    EXPORT_SVG = "export the chart as SVG"
    REPAINT = "paint everything again"
    THEME = "next theme"
    SLOWER = "replay slower"
    FASTER = "replay faster"


@dataclass(frozen=True)
class Scene:
    """What the owner of the screen knows beside the run's events.

    Attributes:
        now: Training seconds by the clock; None for those of the newest event (a replay, a test).
        output: Captured lines, oldest first, as many as are kept; cleaned when drawn.
        num_output: Lines captured so far.
        num_unread: Of them, those that came since the output view was last looked at.
        ui_share: Share of one core that the screen takes; NaN if unknown.
        said: An answer to the last key, such as "save requested...".
        link: What a viewer from outside knows of the process: "", "running", "stalled 45 s", "died" or "finished".
        is_paused: Whether the training is paused by a key.
        folder: Where the run's files are; "" if nowhere.
        speed: Of a replay, training seconds per second; 0 where there is none.
    """

    now: float | None = None
    output: Sequence[str] = ()
    num_output: int = 0
    num_unread: int = 0
    ui_share: float = float("nan")
    said: str = ""
    link: str = ""
    is_paused: bool = False
    folder: str = ""
    speed: float = 0.0
