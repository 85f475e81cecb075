"""What a command prints, and steps of a run to look at."""

from pathlib import Path

from learnit_r8 import events
from learnit_r8.cli import main
from learnit_r8.journal.run import this_process

ROOT = Path(__file__).parents[2]
SEVEN = [events.StepsDone(n, n / 2, 50, n // 100, n / 1000, 2 / n, 1 / n, 3 / n, 2 / n, 2 / n, 0.05, 500, 0)
         for n in range(50, 351, 50)]  # fmt: skip

GONE = {**this_process(), "process_started": 1}


def printed(capsys, *arguments):
    """Exit code and lines of a command."""
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()
