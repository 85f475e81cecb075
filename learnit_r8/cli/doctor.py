"""``learnit-r8 doctor`` and ``completion``: what this terminal can do, and a script that completes commands."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import locale
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from .._validation import how_to_install
from ..dashboard.live import why_plain
from ..dashboard.render.pages import VIEWS
from ..dashboard.terminal.screen import screen_encoding
from ..dashboard.theme import NAMES, choose_theme
from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import runs_folder, runs_in
from . import _parser

PACKAGES = ("numpy", "torch", "tensorflow", "keras", "jax", "flax", "optax")
VARIABLES = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "CI", "R8_UI", "R8_GLYPHS", "R8_THEME", "R8_RUNS")


def doctor(options: argparse.Namespace) -> int:
    """Print a line for every finding, with a hint where something is missing."""
    if options.json:
        print(strict_json(dict(findings())))
    else:
        print(*(f"{name:<12} {clean(text)}" for name, text in findings()), sep="\n")
    return 0


def findings() -> Iterator[tuple[str, str]]:
    """Topic and finding."""
    yield "learnit_r8", f"{__version__} in {Path(__file__).parent.parent}"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from _terminal()
    reason = why_plain()
    yield "screen", f"plain lines here: {reason}" if reason else "the full screen works here"
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "-"
    runs = runs_folder()
    there = next(each for each in (runs.absolute(), *runs.absolute().parents) if each.exists())
    note = "" if os.access(there, os.W_OK) else "; it cannot be written"
    yield "runs", f"{len(runs_in(runs))} in {runs.absolute()}{note}"


def _terminal() -> Iterator[tuple[str, str]]:
    size = shutil.get_terminal_size((0, 0))
    streams = {"stdin": sys.__stdin__, "stdout": sys.__stdout__, "stderr": sys.__stderr__}
    where = [f"{name} {'yes' if stream and stream.isatty() else 'no'}" for name, stream in streams.items()]
    yield "terminal", f"{', '.join(where)}; {size.columns} x {size.lines}"
    known = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "environment", ", ".join(known) or "nothing set"
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    yield "locale", f"{locale.setlocale(locale.LC_CTYPE)}, output in {encoding}"
    theme = choose_theme(encoding=screen_encoding())
    yield "drawing", f"{theme.name}, {theme.glyphs.name}, {theme.num_colours or 'no'} colours"
    has_curses = importlib.util.find_spec("_curses") is not None
    advice = ": pip install windows-curses" if sys.platform == "win32" else ""
    yield "curses", "there" if has_curses else f"not there{advice}"


RUN = {
    "bash": "_learnit_r8_runs",
    "zsh": "_learnit_r8_runs",
    "fish": "(ls $R8_RUNS runs 2>/dev/null; __fish_complete_directories)",
}
"""What completes the name of a run, by shell."""

PREAMBLE = {
    "bash": """_learnit_r8_runs() {
  compgen -W "$(ls "${R8_RUNS:-runs}" 2>/dev/null)" -- "$1"
  compgen -d -- "$1"
}""",
    "zsh": """_learnit_r8_runs() {
  compadd -- "${R8_RUNS:-runs}"/*(N/:t)
  _files -/
}""",
}
"""The functions that ``RUN`` names."""


def completion(options: argparse.Namespace) -> int:
    """Print the script for a shell; ``source <(learnit-r8 completion bash)`` turns it on."""
    try:
        shtab: Any = importlib.import_module("shtab")
    except ImportError as error:
        raise ValueError(f"completion needs shtab: {how_to_install('completion')} ({error}).") from error
    parser = _parser()
    (group,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for action in (action for command in group.choices.values() for action in command._actions):
        if action.dest in ("run", "runs", "other"):
            action.complete = RUN
        elif action.dest in ("view", "theme"):
            action.choices = VIEWS if action.dest == "view" else NAMES
    print(shtab.complete(parser, shell=options.shell, preamble=PREAMBLE))
    return 0
