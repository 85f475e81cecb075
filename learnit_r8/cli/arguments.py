"""The parser of the command line, whose errors say what may have been meant."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

SAME = {
    "--out": "--html", "--output": "--html", "--html": "--out", "--limit": "--top", "--format": "--csv",
    "--csv": "--format", "suspects": "samples", "show": "watch", "plot": "report",
}  # fmt: skip
"""Options and commands that are called otherwise here."""


class Parser(argparse.ArgumentParser):
    """A parser that suggests the command, option or value that a wrong one is similar to."""

    def error(self, message: str) -> NoReturn:
        """End the program with the usage, this message and a suggestion."""
        import difflib
        import re

        known: list[str] = []
        if (found := re.search(r"invalid choice: '([^']*)' (\(choose from .*)", message)) is not None:
            known = re.findall(r"[\w-]+", found[2].removeprefix("(choose from"))
        elif (found := re.match(r"unrecognized arguments: (--[\w-]+)", message)) is not None:
            known = [option for action in self._actions for option in action.option_strings]
        meant = SAME.get(found[1]) if found is not None else None
        near = [meant] if meant in known else difflib.get_close_matches(found[1], known, 1, 0.55) if found else []
        super().error(f"{message}; did you mean {near[0]}?" if near else message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a command refuses what it does not know itself, as it knows its own options."""
        options, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None:
            run = getattr(options, "run", None)
            if run is None or rest[0].startswith("-"):
                self.error(f"unrecognized arguments: {' '.join(rest)}")
            meant = {"find": f"--find {rest[0]} lists the runs with that text", "html": "--html FILE names the page",
                     "csv": "> FILE writes to a file"}  # fmt: skip
            more = next((text for option, text in meant.items() if option in options), "compare takes several")
            self.error(f"RUN must be one folder or name, got {run!r} and {rest[0]!r} ({more})")
        return options, rest
