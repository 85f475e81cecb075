"""``learnit-r8 watch`` and ``replay``: the screen of a run, from its folder."""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dashboard.choice import why_plain
from ..dashboard.looking import Looking
from ..dashboard.painter import Painter
from ..dashboard.render import render
from ..dashboard.replay import Replay
from ..dashboard.text import clean
from ..dashboard.theme import Theme, choose_theme
from ..dashboard.watch import Watch
from ..dashboard.words import describe
from ..journal import UnreadableRun, find_run
from .status import EXIT_CODES, line_of

SIZE = (120, 40)
FOLLOW_SECONDS = 0.5
LINE_SECONDS = 60.0


def watch(options: argparse.Namespace) -> int:
    """Show a run while it goes on; without a terminal, follow it in plain lines.

    Returns:
        What ``status`` returns for the run when it is left.
    """
    owner = Watch(find_run(options.run))
    if options.once:
        _print_once(owner, options, "watch")
    elif why_plain():
        _follow(owner)
    else:
        _show(owner, options, "watch")
    return EXIT_CODES[owner.run.state().word]


def replay(options: argparse.Namespace) -> int:
    """Show a run again; without a terminal, print the picture it ends with."""
    owner = Replay(find_run(options.run), speed=options.speed, to_step=options.to)
    if options.once or why_plain():
        owner.jump()
        _print_once(owner, options, "replay")
    else:
        _show(owner, options, "replay")
    return 0


def _theme(options: argparse.Namespace) -> Theme:
    encoding = sys.stdout.encoding or "ascii"
    return choose_theme(encoding=encoding, name=options.theme, glyphs="ascii" if options.ascii else None)


def _show(owner: Any, options: argparse.Namespace, mode: str) -> None:
    """Draw on the terminal until the person leaves."""
    # Not before it is needed: a machine may have no curses.
    from ..dashboard.guards import modes_of_terminal
    from ..dashboard.terminal import Screen, Unfit

    painter = Painter(
        Screen(_theme(options), modes_of_terminal()), owner.view, owner, Looking(mode=mode, view=options.view)
    )
    owner.show = lambda view: setattr(painter, "view", view)
    try:
        with _terminated_in_order(), _drawing(), contextlib.suppress(KeyboardInterrupt):
            painter.run()
    except Unfit as error:
        print(f"learnit-r8 {mode}: plain lines, no screen: {clean(error)}", file=sys.stderr)
        _follow(owner) if mode == "watch" else _print_once(owner, options, mode)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """What a run's odd numbers do to the drawing is its own fault, and said so."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, LookupError, TypeError) as error:
        raise UnreadableRun(f"run must hold numbers that can be drawn, got {error!r}.") from error


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP leave by an exception, so that the terminal comes back; curses would just end the process."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _print_once(owner: Any, options: argparse.Namespace, mode: str) -> None:
    """One picture, as text without colours."""
    terminal = shutil.get_terminal_size(SIZE)
    width = min(options.width or terminal.columns, 500)
    height = min(options.height or terminal.lines, 300)
    looking = Looking(mode=mode, view=options.view)
    with _drawing():
        lines = render(owner.view, looking, width, height, _theme(options), owner.scene())
    for line in lines:
        print("".join(span.text for span in line).rstrip())


def _follow(owner: Watch) -> None:
    """Plain lines: one an event, and one a minute, until the run ends."""
    print(line_of(owner.run, owner.view, owner.state), flush=True)
    last = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        while owner.run.state().word in ("running", "stalled", "empty"):
            time.sleep(FOLLOW_SECONDS)
            for event in owner.events():
                owner.view.fold(event)
                said = describe(event)
                if said is not None:
                    print(f"step {event.step}: {said.text}", flush=True)
                    last = time.monotonic()
            if time.monotonic() - last >= LINE_SECONDS and math.isfinite(last):
                print(line_of(owner.run, owner.view, owner.state), flush=True)
                last = time.monotonic()
    print(line_of(owner.run, owner.view, owner.run.state()), flush=True)
