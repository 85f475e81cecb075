"""Keys: one table that drives what they do, the footer and the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .looking import LISTS, VIEWS, ZOOMS, Action, Looking
from .view import View

PAGE = 10
"""Rows that page up and page down scroll."""

MOST_SCROLL = 10**6
MOST_TYPED = 60

Answer = tuple[Looking, Action | None]


@dataclass(frozen=True)
class Binding:
    """A line of the key table.

    Attributes:
        keys: Names of keys: a character, or "up", "down", "left", "right", "page up", "page down", "home", "end",
            "enter", "escape", "tab", "shift-tab", "backspace", "ctrl-l", "ctrl-s".
        shown: How they are written.
        label: For the footer; "" where there is no room for it.
        text: For the help.
        act: What comes of it.
        modes: Where it works.
        views: In which views; empty for all.
    """

    keys: tuple[str, ...]
    shown: str
    label: str
    text: str
    act: Callable[[Looking, View], Answer]
    modes: tuple[str, ...] = ("live", "watch", "replay")
    views: tuple[str, ...] = ()


def _look(**changes: object) -> Callable[[Looking, View], Answer]:
    return lambda looking, view: (replace(looking, **changes), None)  # type: ignore[arg-type]


def _ask(action: Action) -> Callable[[Looking, View], Answer]:
    return lambda looking, view: (looking, action)


def _go(number: int) -> Callable[[Looking, View], Answer]:
    return lambda looking, view: (_to(looking, VIEWS[number]), None)


def _to(looking: Looking, view: str) -> Looking:
    return replace(looking, view=view, scroll=0, inspected=None)


def _turn(by: int) -> Callable[[Looking, View], Answer]:
    return lambda looking, view: (_to(looking, VIEWS[(VIEWS.index(looking.view) + by) % len(VIEWS)]), None)


def _flip(name: str) -> Callable[[Looking, View], Answer]:
    def act(looking: Looking, view: View) -> Answer:
        changes: dict[str, Any] = {name: not getattr(looking, name)}
        return replace(looking, **changes), None

    return act


def _zoom(by: int) -> Callable[[Looking, View], Answer]:
    return lambda looking, view: (replace(looking, zoom=ZOOMS[(ZOOMS.index(looking.zoom) + by) % len(ZOOMS)]), None)


def _move(rows: int) -> Callable[[Looking, View], Answer]:
    def act(looking: Looking, view: View) -> Answer:
        if looking.view == "samples":
            last = max(0, num_listed(looking, view) - 1)
            return replace(looking, selected=min(last, max(0, looking.selected + rows))), None
        # The newest line of the output is at the bottom: up is back in time.
        step = -rows if looking.view == "output" else rows
        return replace(looking, scroll=min(MOST_SCROLL, max(0, looking.scroll + step))), None

    return act


def _type(looking: Looking, view: View) -> Answer:
    return replace(looking, typing=looking.filter), None


def _list(looking: Looking, view: View) -> Answer:
    listed = LISTS[(LISTS.index(looking.listed) + 1) % len(LISTS)]
    return replace(looking, listed=listed, selected=0, inspected=None), None


def _inspect(looking: Looking, view: View) -> Answer:
    samples = listed_samples(looking, view)
    if looking.inspected is not None or not samples:
        return replace(looking, inspected=None), None
    return replace(looking, inspected=samples[min(looking.selected, len(samples) - 1)]), None


def _back(looking: Looking, view: View) -> Answer:
    if looking.inspected is not None:
        return replace(looking, inspected=None), None
    if looking.filter:
        return replace(looking, filter="", scroll=0), None
    return _to(looking, "overview"), None


def listed_samples(looking: Looking, view: View) -> list[int]:
    """Positions of the samples in the list that is shown, after the filter."""
    survey = view.survey
    if survey is None:
        return []
    if looking.listed == "suspects":
        rows = zip(survey.suspects, survey.suspect_names, strict=False)
    else:
        rows = zip(survey.hardest, survey.hardest_names, strict=False)
    wanted = looking.filter.lower()
    return [index for index, name in rows if wanted in f"{index} {name}".lower()]


def num_listed(looking: Looking, view: View) -> int:
    """How many samples `listed_samples` has."""
    return len(listed_samples(looking, view))


TABLE = (
    *(
        Binding((str(number), *more), str(number), label, f"view: {text}", _go(number - 1))
        for number, label, text, more in (
            (1, "all", "overview", ()),
            (2, "data", "what happens to the data", ()),
            (3, "samples", "hardest samples and suspects", ()),
            (4, "events", "what happened", ()),
            (5, "output", "captured output", ("o",)),
            (6, "config", "configuration, versions, files", ()),
        )
    ),
    Binding(("tab", "right"), "Tab", "", "next view", _turn(1)),
    Binding(("shift-tab", "left"), "Shift-Tab", "", "view before", _turn(-1)),
    Binding(("up", "k"), "up k", "", "scroll or select up", _move(-1)),
    Binding(("down", "j"), "down j", "", "scroll or select down", _move(1)),
    Binding(("page up",), "PgUp", "", "ten rows up", _move(-PAGE)),
    Binding(("page down",), "PgDn", "", "ten rows down", _move(PAGE)),
    Binding(("home", "g"), "Home g", "", "to the first", _move(-MOST_SCROLL)),
    Binding(("end", "G"), "End G", "", "to the last", _move(MOST_SCROLL)),
    Binding(("enter",), "Enter", "inspect", "history of the sample, and back", _inspect, views=("samples",)),
    Binding(("l",), "l", "suspects", "hardest or suspects", _list, views=("samples",)),
    Binding(("e",), "e", "alerts", "only warnings, or all", _flip("alerts_only"), views=("events",)),
    Binding(
        ("/",),
        "/",
        "filter",
        "filter by a text (Enter keeps it)",
        _type,
        views=("samples", "events", "output", "config"),
    ),
    Binding(("y",), "y", "log", "log or linear scale of the loss", _flip("log_scale"), views=("overview", "data")),
    Binding(("z",), "z", "zoom", "all, last 10 %, last epoch", _zoom(1), views=("overview", "data")),
    Binding((" ",), "space", "freeze", "freeze the picture only", _flip("frozen"), modes=("live", "watch")),
    Binding((" ",), "space", "pause", "pause the replay or go on", _ask(Action.PAUSE), modes=("replay",)),
    Binding(("+", ">"), "+", "faster", "faster", _ask(Action.FASTER), modes=("replay",)),
    Binding(("-", "<"), "-", "slower", "slower", _ask(Action.SLOWER), modes=("replay",)),
    Binding(("p",), "p", "pause", "pause the training, or go on", _ask(Action.PAUSE), modes=("live",)),
    Binding(("s", "ctrl-s"), "s", "save", "save a checkpoint", _ask(Action.SAVE), modes=("live",)),
    Binding(("x",), "x", "export", "export the panel's numbers (CSV)", _ask(Action.EXPORT_CSV)),
    Binding(("X",), "X", "", "export the chart (SVG)", _ask(Action.EXPORT_SVG)),
    Binding(("c",), "c", "", "next colours (or none)", _ask(Action.THEME)),
    Binding(("ctrl-l", "r"), "r", "", "paint everything again", _ask(Action.REPAINT)),
    Binding(("escape",), "Esc", "", "back", _back),
    Binding(("q",), "q", "quit", "how to leave (asks first)", _look(menu=True), modes=("live",)),
    Binding(("q",), "q", "quit", "leave (the training goes on)", _ask(Action.LEAVE), modes=("watch", "replay")),
    Binding(("?", "h"), "?", "help", "this help", _look(help=True)),
)
"""Every key there is. The footer has those with a label."""

MENU = {"s": Action.STOP, "d": Action.DETACH}
"""After q in a training: what a second key does; every other one goes back."""


def works(binding: Binding, looking: Looking) -> bool:
    """Whether a key means something where the person looks."""
    return looking.mode in binding.modes and (not binding.views or looking.view in binding.views)


def press(key: str, looking: Looking, view: View) -> Answer:
    """What a key does.

    Args:
        key: Its name, see `Binding`.
        looking: Where the person looks.
        view: What is known of the run.

    Returns:
        Where the person looks now, and what the owner of the screen has to do, if anything. No single key ends a
        run: q asks first.
    """
    if looking.typing is not None:
        return _typed(key, looking), None
    if looking.menu:
        return replace(looking, menu=False), MENU.get(key)
    if looking.help:
        return replace(looking, help=False), None
    for binding in TABLE:
        if key in binding.keys and works(binding, looking):
            return binding.act(looking, view)
    return looking, None


def _typed(key: str, looking: Looking) -> Looking:
    typing = looking.typing or ""
    if key == "enter":
        return replace(looking, typing=None, filter=typing, scroll=0, selected=0)
    if key == "escape":
        return replace(looking, typing=None)
    if key == "backspace":
        return replace(looking, typing=typing[:-1])
    if len(key) == 1 and key.isprintable():
        return replace(looking, typing=(typing + key)[:MOST_TYPED])
    return looking
