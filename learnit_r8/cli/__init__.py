"""The program ``learnit-r8``, which shows runs from outside. A command loads its own module only, never a framework."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

DESCRIPTION = "Look at learnit_r8 runs from outside; only ask touches a training."
EPILOG = """RUN is a run folder, a folder of runs (watch and compare show them all, other commands the newest), or the
beginning of a name in "runs" (or in the folder that R8_RUNS names), with or without its time; by default it is the
newest run there. On a screen, ? lists the keys."""

RUNS = 'the folder of runs; by default "runs", or the one that R8_RUNS names'

ASKS = ("cool-down", "pause", "unpause", "save", "stop")
"""What ``ask`` can ask for: `journal.requests.KINDS`, without loading that module."""

_HOME = {
    "watch": "runs", "replay": "runs", "status": "runs", "ls": "runs", "ask": "runs", "compare": "pages",
    "report": "pages", "export": "samples", "mcp": "agent_server",
}  # fmt: skip
"""The modules of commands that are not in a module of their own name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; without one, print the help.

    Args:
        arguments: By default those of the program.

    Returns:
        The exit code: 0 on success, 1 if there is no such run or it cannot be read, 2 for a wrong command line, and
        the codes that the command documents.
    """
    if sys.stdout is None:
        # Started with stdout closed: the caller wants the exit code.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for as long as the program runs
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A character that the terminal cannot encode must not end the command.
            stream.reconfigure(errors="replace")
    module = importlib.import_module(f".{_HOME.get(options.command, options.command)}", __name__)
    try:
        code = int(getattr(module, options.command)(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has closed the pipe; discard the rest of the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (ImportError, OSError, ValueError) as error:
        from ..events.text import clean

        print(f"learnit-r8 {options.command}: {clean(error)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = Parser("learnit-r8", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"learnit-r8 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, *, run: bool = True, json: bool = True) -> argparse.ArgumentParser:
        about = text[0].upper() + text[1:] + "."
        command = commands.add_parser(name, help=text, description=about, epilog=EPILOG if run else None)
        if run:
            command.add_argument("run", nargs="?", metavar="RUN", help="which run; by default the newest")
        if json:
            command.add_argument("--json", action="store_true", help="for programs, as strict JSON")
        return command

    # In the order of the help.
    _add_screens(add("watch", "show a run on the screen while it goes on"), add("replay", "play a run again"))
    add("status", "describe a run in one line; the exit code gives its state")
    option = add("ls", "list the runs in a folder, newest first", run=False).add_argument
    option("run", nargs="?", metavar="RUNS", help=RUNS)
    option("--top", type=_count, default=20, metavar="K", help="how many (default 20)")
    option("--sort", metavar="METRIC", help="by the best value of a metric, the best run first")
    option("--find", metavar="TEXT", help="only runs with this text in name, notes, tags, config or git commit")
    compare = add("compare", "compare runs: figures and settings that differ", run=False)
    compare.epilog = EPILOG
    compare.add_argument("runs", nargs="+", metavar="RUN", help="which runs, two or more, or one folder of runs")
    compare.add_argument("--html", metavar="OUT", help="write a page with their curves in one chart each")
    compare.add_argument("--open", action="store_true", help="show that page in the browser")
    _add_samples(add("samples", "list the samples with the highest loss, or those that look mislabelled", json=False))
    _add_labels(add("labels", "train a small network once, and list the labels that look wrong", run=False))
    option = add("export", "print the numbers of a run, as CSV or JSON lines", json=False).add_argument
    option("--of", choices=("steps", "epochs", "metrics", "events"), default="steps", help="what (default steps)")
    option("--format", choices=("csv", "jsonl"), default="csv")
    option("--json", action="store_const", const="jsonl", dest="format", help="as --format jsonl")
    option("--out", metavar="FILE", help="the file to write; by default standard output")
    option = add("report", "write a page about a run, as one self-contained HTML file").add_argument
    option("--html", metavar="OUT", help="the file to write; by default report.html in the run folder")
    option("--open", action="store_true", help="show it in the browser")
    option = add("incidents", "what went wrong in a run, where it began, and what was done").add_argument
    option("number", nargs="?", type=_count, metavar="K", help="show this one")
    option("--export", metavar="OUT", help="write one, by default the newest, as a file to send")
    option("--data", action="store_true", help="include the recorded batch and weights")
    ask = add("ask", "ask a running training for a cool-down, a pause, a checkpoint or its end")
    ask.add_argument("kind", choices=ASKS, metavar="WHAT", help=", ".join(ASKS))
    length = ask.add_mutually_exclusive_group().add_argument
    length("--for", dest="length", metavar="LENGTH", help='length of a cool-down: "20min", 500, "2 epochs"')
    length("--until", metavar="TIME", help='end of a cool-down, local time: "20:30", "2026-11-22 06:00"')
    serve = "serve the runs to programs and agents, over the Model Context Protocol"
    mcp = add("mcp", serve, run=False, json=False)
    mcp.add_argument("run", nargs="?", metavar="RUNS", help=RUNS)
    mcp.add_argument("--allow-ask", action="store_true", help="also take requests: pause, save, cool-down, stop")
    demo = add("demo", "train a small network without a framework, to show the screen", run=False, json=False)
    demo.add_argument("--seconds", type=_positive, default=20.0, help="about how long it takes (default 20)")
    demo.add_argument("--run-dir", metavar="DIR", help="its run folder; by default a new temporary one, which stays")
    older = "write what an older version wrote, checkpoints, models, runs or backups, in the form of today, beside it"
    add("convert", older, run=False, json=False).add_argument("paths", nargs="+", metavar="PATH", help="folder or file")
    proof = "kill a training with torch, start it again, and say if it goes on exactly (exit 0), not (1) or unknown (2)"
    _add_prove(add("prove", proof, run=False))
    return parser


def _add_screens(watch: argparse.ArgumentParser, replay: argparse.ArgumentParser) -> None:
    for option in (watch.add_argument, replay.add_argument):
        option("--once", action="store_true", help="print one picture as text, and exit")
        option("--view", type=_view, default="overview", help="the view to start with, by its name in the footer")
        option("--width", type=_count, help="width of the picture of --once")
        option("--height", type=_count, help="height of the picture of --once")
    replay.add_argument("--to", type=_count, metavar="STEP", help="stand still at this step")


def _add_samples(samples: argparse.ArgumentParser) -> None:
    option = samples.add_argument
    option("--suspects", action="store_true", help="those that look mislabelled, most suspect first")
    option("--top", type=_count, metavar="K", help="how many (default 50, or all suspects)")
    option("--epoch", type=_count, help="as of this epoch, from 1; by default the newest")
    beside = (
        "with --suspects: another run on the same samples, whose predictions count as well; may be given several times"
    )
    option("--with", dest="others", action="append", default=[], metavar="RUN", help=beside)
    least = "with --suspects: least share of the list to be wrong (default 0.5)"
    option("--precision", type=partial(_positive, below=1.0), metavar="P", help=least)
    option("--places", action="store_true", help="a row for each label, token or pixel that looks wrong")
    option = samples.add_mutually_exclusive_group().add_argument
    option("--csv", action="store_true", help="as CSV")
    option("--json", action="store_true", help="for programs, as strict JSON")


def _add_labels(labels: argparse.ArgumentParser) -> None:
    option, source = labels.add_argument, "a folder with a folder of images for each label, or a CSV file"
    option("source", metavar="FOLDER|TABLE", help=source)
    option("--label", metavar="COLUMN", help="the column of labels in the CSV file, if it cannot be guessed")
    least = "least share of the list to be wrong (default 0.5)"
    option("--precision", type=partial(_positive, below=1.0), default=0.5, metavar="P", help=least)
    end = labels.add_mutually_exclusive_group()
    end.add_argument("--epochs", type=_count, help="how long to train (default 40, with large images 12)")
    end.add_argument("--minutes", type=_positive, help="how long to train, by the clock")
    option("--out", default="wrong_labels.html", metavar="FILE", help="the page (wrong_labels.html)")
    option("--list", default="suspects.csv", metavar="FILE", help="all of them as CSV (suspects.csv)")
    option("--top", type=_count, default=8, metavar="K", help="how many to print (default 8)")


def _add_prove(prove: argparse.ArgumentParser) -> None:
    option = prove.add_argument
    option("--resume", metavar="CMD", help="the command that goes on after a kill; by default the same")
    option("--kills", type=_count, default=3, help="how often to kill it (default 3)")
    option("--steps", type=_count, metavar="N", help="end each training after this step")
    option("--deterministic", action="store_true", help="seed it, and ask torch for deterministic algorithms")
    option("--allow", action="append", default=[], metavar="PATH", help="let it write here, outside the copy")
    option("--link", action="append", default=[], metavar="PATH", help="link this instead of copying it")
    option("--work", metavar="DIR", help="where copies are made; by default in the system's temporary folder")
    option("--seed", type=int, default=0, help="chooses where to kill (default 0)")
    option("--report", metavar="FILE", help="write the finding as a page of Markdown")
    option("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="as in -- python train.py")


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


def _view(text: str) -> str:
    # Not as choices: the help would load the screen to name them.
    from ..dashboard.render.pages import VIEWS

    if text not in VIEWS:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(VIEWS)})")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= 10**9):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}.")
    return int(text)


def _positive(text: str, below: float = float("inf")) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < below:
        limit = " and below 1" if value >= below == 1 else ""
        raise argparse.ArgumentTypeError(f"must be a number above 0{limit}, got {text!r}.")
    return value
