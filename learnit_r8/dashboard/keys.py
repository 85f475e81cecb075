"""The table of keys: their actions, and their texts in the footer and the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .render.pages import PAGES, VIEWS
from .state.ui_state import LISTS, MODES, SORTS, ZOOMS, Action, UiState, listed_samples
from .state.view import View

PAGE = 10
"""Rows that page up and page down scroll."""

MOST_SCROLL = 10**6
MOST_HELP = 60
MOST_TYPED = 60

Change = Callable[[UiState, View], UiState]


@dataclass(frozen=True)
class Binding:
    """A line of the key table.

    Attributes:
        keys: Names of keys: a character, or "up", "down", "left", "right", "page up", "page down", "home", "end",
            "enter", "escape", "tab", "shift-tab", "backspace", "ctrl-l", "ctrl-s".
        shown: How footer and help write them.
        label: Text in the footer; "" for a key that the footer does not name.
        text: Text in the help.
        act: Returns the next state of the screen; or the action that its owner has to take.
        modes: Modes of the screen in which it works.
        views: Views in which it works; empty for all.
        opens: The view it opens; "" for other keys.
    """

    keys: tuple[str, ...]
    shown: str
    label: str
    text: str
    act: Change | Action
    modes: tuple[str, ...] = ("live", "watch", "replay")
    views: tuple[str, ...] = ()
    opens: str = ""


def _page(name: str) -> Change:
    return lambda ui, view: replace(ui, view=name, scroll=0, selected=0)


def _next(name: str, values: tuple[Any, ...] = (False, True), by: int = 1, **more: Any) -> Change:
    """The next of some values, or the one before, over and over; by default on and off."""

    def act(ui: UiState, view: View) -> UiState:
        following = values[(values.index(getattr(ui, name)) + by) % len(values)]
        return replace(ui, **{name: following}, **more)

    return act


def _move(rows: int) -> Change:
    def act(ui: UiState, view: View) -> UiState:
        if ui.mode == "list":
            return replace(ui, selected=min(MOST_SCROLL, max(0, ui.selected + rows)))
        if ui.view in ("samples", "incidents"):
            rows_there = listed_samples(ui, view) if ui.view == "samples" else view.incidents
            last = max(0, len(rows_there) - 1)
            return replace(ui, selected=min(last, max(0, ui.selected + rows)))
        # The newest line of the output is at the bottom: up is back in time.
        step = -rows if ui.view == "output" else rows
        return replace(ui, scroll=min(MOST_SCROLL, max(0, ui.scroll + step)))

    return act


def _back(ui: UiState, view: View) -> UiState:
    return replace(ui, filter="", scroll=0) if ui.filter else _page("overview")(ui, view)


def _type(ui: UiState, view: View) -> UiState:
    return replace(ui, typing=ui.filter)


_LIST, _SORT = _next("listed", LISTS, selected=0), _next("sort", SORTS, selected=0)
_CHARTS = tuple(name for name, page in PAGES.items() if page.has_chart)
_FILTERED = tuple(name for name, page in PAGES.items() if page.has_filter)

TABLE = (
    *(
        Binding((str(number), *page.keys), str(number), page.label, f"view: {page.text}", _page(name), opens=name)
        for number, (name, page) in enumerate(PAGES.items(), start=1)
    ),
    Binding(("tab", "right"), "Tab", "", "next view", _next("view", VIEWS, scroll=0, selected=0)),
    Binding(("shift-tab", "left"), "Shift-Tab", "", "view before", _next("view", VIEWS, -1, scroll=0, selected=0)),
    Binding(("up", "k"), "up k", "", "scroll or select up", _move(-1), modes=MODES),
    Binding(("down", "j"), "down j", "", "scroll or select down", _move(1), modes=MODES),
    Binding(("page up",), "PgUp", "", "ten rows up", _move(-PAGE), modes=MODES),
    Binding(("page down",), "PgDn", "", "ten rows down", _move(PAGE), modes=MODES),
    Binding(("home", "g"), "Home g", "", "to the first", _move(-MOST_SCROLL), modes=MODES),
    Binding(("end", "G"), "End G", "", "to the last", _move(MOST_SCROLL), modes=MODES),
    Binding(("enter",), "Enter", "open", "whole texts, or a line for each event", _next("opened"), views=("events",)),
    Binding(("l",), "l", "suspects", "hardest or suspects", _LIST, views=("samples",)),
    Binding(("e",), "e", "alerts", "only warnings, or all", _next("alerts_only"), views=("events",)),
    Binding(("/",), "/", "filter", "filter by a text (Enter keeps it)", _type, views=_FILTERED),
    Binding(("y",), "y", "log", "log or linear scale of the loss", _next("log_scale"), views=_CHARTS),
    Binding(("z",), "z", "zoom", "all, its whole range, last 10 %, last epoch", _next("zoom", ZOOMS), views=_CHARTS),
    Binding((" ",), "space", "freeze", "freeze the picture only", _next("frozen"), modes=("live", "watch")),
    Binding((" ",), "space", "pause", "pause the replay or go on", Action.PAUSE, modes=("replay",)),
    Binding(("p",), "p", "pause", "pause the training, or go on", Action.PAUSE, modes=("live",)),
    Binding(("s", "ctrl-s"), "s", "save", "save a checkpoint", Action.SAVE, modes=("live",)),
    Binding(("d",), "d", "", "cool down the rate, then end", lambda ui, view: replace(ui, asking=""), modes=("live",)),
    Binding(("p", "s", "ctrl-s", "d"), "p s d", "", "how to ask the training", Action.ASK, modes=("watch",)),
    Binding(("c",), "c", "", "next colours (or none)", Action.THEME, modes=MODES),
    Binding(("ctrl-l", "r"), "r", "", "paint everything again", Action.REPAINT, modes=MODES),
    Binding(("escape",), "Esc", "", "back", _back, modes=MODES),
    Binding(("q",), "q", "quit", "how to leave (asks first)", _next("menu"), modes=("live",)),
    Binding(("q",), "q", "quit", "leave (the training goes on)", Action.LEAVE, modes=("watch",)),
    Binding(("q",), "q", "quit", "leave the replay", Action.LEAVE, modes=("replay",)),
    Binding(("?", "h"), "?", "help", "this help", _next("help"), modes=MODES),
    Binding(("enter",), "Enter", "open", "open this run", Action.OPEN, modes=("list",)),
    Binding(("/",), "/", "filter", "only runs with a text", _type, modes=("list",)),
    Binding(("s",), "s", "sort", "sort by age, metric, state, step, name", _SORT, modes=("list",)),
    Binding(("q",), "q", "quit", "leave the list", Action.LEAVE, modes=("list",)),
)
"""Every key. The footer names those with a label."""

MENU = {"s": Action.STOP, "d": Action.DETACH}
"""Second keys after q in a training, and their actions; every other key goes back."""


def works(binding: Binding, ui: UiState) -> bool:
    """Whether a key has an action in this mode and view."""
    return ui.mode in binding.modes and (not binding.views or ui.view in binding.views)


def press(key: str, ui: UiState, view: View) -> tuple[UiState, Action | None]:
    """The next state of the screen, and the action that its owner has to take, if any.

    No single key ends a run: q asks first.
    """
    if ui.typing is not None:
        if key == "enter":
            return replace(ui, typing=None, filter=ui.typing, scroll=0, selected=0), None
        return replace(ui, typing=None if key == "escape" else _edited(ui.typing, key)), None
    if ui.asking is not None:
        if key == "enter":
            return replace(ui, asking=None, asked=ui.asking), Action.COOL_DOWN
        return replace(ui, asking=None if key == "escape" else _edited(ui.asking, key)), None
    if ui.menu:
        return replace(ui, menu=False), MENU.get(key)
    if ui.help:
        if key not in _HELP_ROWS:
            return replace(ui, help=False, help_scroll=0), None
        return replace(ui, help_scroll=min(MOST_HELP, max(0, ui.help_scroll + _HELP_ROWS[key]))), None
    for binding in TABLE:
        if key in binding.keys and works(binding, ui):
            return (ui, binding.act) if isinstance(binding.act, Action) else (binding.act(ui, view), None)
    return ui, None


_HELP_ROWS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE, "home": -MOST_SCROLL}
"""The keys that scroll do so in the help; every other key closes it."""


def _edited(text: str, key: str) -> str:
    if key == "backspace":
        return text[:-1]
    return (text + key)[:MOST_TYPED] if len(key) == 1 and key.isprintable() else text
