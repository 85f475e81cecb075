"""``learnit-r8 completion``: a script that completes commands, options and runs in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

from .._validation import how_to_install

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
    from ..dashboard.render.pages import VIEWS
    from ..dashboard.theme import NAMES
    from . import _parser

    parser = _parser()
    for action in _actions(parser):
        if action.dest in ("run", "runs", "other"):
            action.complete = RUN
        elif action.dest in ("view", "theme"):
            action.choices = VIEWS if action.dest == "view" else NAMES
    print(shtab.complete(parser, shell=options.shell, preamble=PREAMBLE))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the arguments of all commands."""
    (group,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for command in group.choices.values():
        yield from command._actions
