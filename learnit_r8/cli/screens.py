"""``learnit-r8 watch`` and ``replay``: the screen of a run, from its folder."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dashboard.live import why_plain
from ..dashboard.painter import Painter
from ..dashboard.render.frame import render
from ..dashboard.state.ui_state import UiState
from ..dashboard.terminal.terminal_hooks import EndingSignals
from ..dashboard.theme import Theme, choose_theme
from ..dashboard.watch import Replay, Watch
from ..events.codec import to_json
from ..events.event import describe
from ..events.text import clean
from ..journal.run import UnreadableRun, find_run
from .status import EXIT_CODES, line_of, print_facts

SIZE = (120, 40)
FOLLOW_SECONDS = 0.5
LINE_SECONDS = 60.0


def watch(options: argparse.Namespace) -> int:
    """Show a run while it goes on; without a terminal, follow it in plain lines.

    Returns:
        The exit code of ``status`` when the viewer is left.
    """
    owner = Watch(find_run(options.run), other=find_run(options.other) if options.other else None)
    if options.other and options.view == "overview":
        options.view = "compare"
    if options.once and options.json:
        print_facts(owner.run, owner.view)
    elif options.once:
        _print_once(owner, options, "watch")
    elif options.json or why_plain():
        _follow(owner, as_json=options.json)
    else:
        _show(owner, options, "watch")
    return EXIT_CODES[owner.run.state().word]


def replay(options: argparse.Namespace) -> int:
    """Show a run again; without a terminal, print its last picture."""
    owner = Replay(find_run(options.run), to_step=options.to)
    if options.once or options.json or why_plain():
        owner.jump()
        print_facts(owner.run, owner.view) if options.json else _print_once(owner, options, "replay")
    else:
        _show(owner, options, "replay")
    return 0


def _theme(options: argparse.Namespace, encoding: str = "", ground: str = "") -> Theme:
    return choose_theme(
        ground=ground,
        encoding=encoding or sys.stdout.encoding or "ascii",
        name=options.theme,
        glyphs="ascii" if options.ascii else None,
    )


def _show(owner: Any, options: argparse.Namespace, mode: str) -> None:
    """Draw on the terminal until the person leaves."""
    # Loaded here, because a machine may have no curses.
    from ..dashboard.terminal.screen import Screen, UnusableTerminal, find_ground, screen_encoding
    from ..dashboard.terminal.tty_modes import TtyModes

    ui = UiState(mode=mode, view=options.view)
    painter = Painter(Screen(_theme(options, screen_encoding(), find_ground()), TtyModes()), owner, ui)
    try:
        with EndingSignals(), _drawing(), contextlib.suppress(KeyboardInterrupt):
            painter.run()
    except UnusableTerminal as error:
        print(f"learnit-r8 {mode}: plain lines, no screen: {clean(error)}", file=sys.stderr)
        _follow(owner) if mode == "watch" else _print_once(owner, options, mode)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Turn errors of drawing, which odd numbers in a run cause, into UnreadableRun."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, LookupError, TypeError) as error:
        raise UnreadableRun(f"run must hold numbers that can be drawn, got {error!r}.") from error


def _print_once(owner: Any, options: argparse.Namespace, mode: str) -> None:
    """Print one picture as text without colours."""
    terminal = shutil.get_terminal_size(SIZE)
    width = min(options.width or terminal.columns, 500)
    height = min(options.height or terminal.lines, 300)
    ui = UiState(mode=mode, view=options.view)
    with _drawing():
        lines = render(owner.view, ui, width, height, _theme(options), owner.scene())
    for line in lines:
        print("".join(span.text for span in line).rstrip())


def _follow(owner: Watch, *, as_json: bool = False) -> None:
    """Print a line for every event and every minute until the run ends; as JSON, every event and nothing else."""

    def say() -> str:
        line = line_of(owner.run, owner.view, owner.run.state())
        if not as_json:
            print(line, flush=True)
        return line

    said_last, last = say(), time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        while owner.run.state().word in ("running", "stalled", "empty"):
            time.sleep(FOLLOW_SECONDS)
            for event in owner.events():
                owner.view.fold(event)
                said = describe(event)
                if as_json:
                    print(to_json(event), flush=True)
                elif said is not None:
                    print(f"step {event.step}: {said.text}", flush=True)
                    said_last, last = "", time.monotonic()
            if time.monotonic() - last >= LINE_SECONDS:
                said_last, last = say(), time.monotonic()
    # Of a run that has ended already, the first line says it all.
    if line_of(owner.run, owner.view, owner.run.state()) != said_last:
        say()
