"""What a column is asked to do (`Case`), and what one run of it did (`Run`)."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from learnit_r8 import events

from . import task


@dataclass(frozen=True)
class Case:
    """A training, and what goes wrong in it.

    Attributes:
        epochs: How many.
        activation: "tanh", through which NaN goes, or "relu", which makes 0 of it.
        batch_faults: By the number of a batch in the run, as the data hand it out: what its inputs are multiplied by.
        sample_faults: By sample: what its inputs are multiplied by, each time.
        weight_faults: By the number of a turn of the loop: before it a weight of the last layer becomes NaN (NaN), or
            all weights are multiplied by a number.
        kill_at: The turn of the loop within which the process kills itself.
        folder: Of the checkpoints; with it, a run is resumed from the newest that is there.
        every: Steps between two checkpoints.
        r8_last: Whether R8's callback stands behind all others in a framework's list.
        settings: Further settings of R8Scheduler.
    """

    epochs: int = task.EPOCHS
    activation: str = "tanh"
    batch_faults: dict[int, float] = field(default_factory=dict)
    sample_faults: dict[int, float] = field(default_factory=dict)
    weight_faults: dict[int, float] = field(default_factory=dict)
    kill_at: int | None = None
    folder: Path | None = None
    every: int = 5
    r8_last: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self):
        return self.epochs * task.STEPS


class Run:
    """One run of a case: the driver takes its data and faults from it, and writes down here what came of it.

    Args:
        case: The training.
        batches: Lists of samples to train on in place of the column's own, one for each step, for a run without R8.
        rates: The rate of each of these steps.

    Attributes:
        draws: The samples of each batch that the data handed out.
        logged: What the script or framework logged at the end of each epoch.
        counted: The losses that the steps of user code counted in each epoch, where a framework calls them.
        best: The weights that the framework's own keeper of the best model kept; None where a column has none.
        ends: The weights that user code sees after each epoch.
        weights, optimizer, generators: At the end.
        r8: The scheduler; None without R8.
        events: What it told.
        said: Texts of the warnings.
        leaves_out: Whether the script itself leaves out a batch whose loss is not finite, as it does without R8.
    """

    def __init__(self, case, *, batches=None, rates=None):
        self.case, self.batches, self.rates = case, batches, rates
        self.draws, self.logged, self.ends, self.events, self.said = [], [], [], [], []
        self.counted = []
        self.weights, self.optimizer, self.generators, self.best, self.r8 = {}, [], None, None, None
        self.leaves_out, self._num_turns = False, 0

    # What a driver asks for.

    @property
    def settings(self):
        """For R8Scheduler, or for whatever passes them on."""
        return {"listeners": [self.events.append], "handle_signals": False, **self.case.settings}

    @property
    def files(self):
        """What is set besides where R8 writes the checkpoints, and not a trainer."""
        if self.case.folder is None:
            return {}
        return {"checkpoint_dir": self.case.folder, "checkpoint_every": self.case.every, "resume": "auto"}

    @property
    def rate(self):
        """The rate of this turn, in a run that repeats one; None for the column's own."""
        return None if self.rates is None else self.rates[self._num_turns - 1]

    def epoch_of_rows(self, epoch):
        """The batches of an epoch: the column's own, or those to repeat."""
        if self.batches is None:
            return list(task.order(epoch))
        return self.batches[epoch * task.STEPS : (epoch + 1) * task.STEPS]

    def samples(self):
        """All inputs and labels, with the faults of single samples."""
        x = task.X.copy()
        for sample, factor in self.case.sample_faults.items():
            x[sample] *= np.float32(factor)
        return x, task.Y

    def fetch(self, rows, number=None):
        """A batch of the data; ``number`` is its place in the run, where they are not asked for in turn."""
        number = len(self.draws) if number is None else number
        x, y = self.samples()
        if number == len(self.draws):
            self.draws.append([int(each) for each in rows])
        return x[rows] * np.float32(self.case.batch_faults.get(number, 1.0)), y[rows]

    def begin_turn(self):
        """Called where the script's step begins: by what its weights are hurt before, or None."""
        turn = self._num_turns
        self._num_turns += 1
        if turn == self.case.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.case.weight_faults.get(turn)

    @staticmethod
    def hurt(name, array, factor):
        """The array of that name with the damage."""
        if not np.isnan(factor):
            return array * np.float32(factor)
        array = array.copy()
        if name == "w2":
            array[0, 0] = np.nan
        return array

    # What a driver writes down.

    def end_epoch(self, weights, **logged):
        """Called by user code that stands behind an epoch."""
        self.ends.append(weights)
        self.logged.append({name: float(value) for name, value in logged.items()})

    # What rules read.

    @property
    def losses(self):
        """The loss of each step, refused ones included; without R8 those that the driver noted."""
        return [each.loss for each in self.heard(events.StepDone, events.BatchRefused)]

    @property
    def used_rates(self):
        """The rate of each step that was learned from."""
        return [each.lr for each in self.heard(events.StepDone)]

    @property
    def error(self):
        """The mean loss of the last weights on all samples."""
        return task.error(self.weights, activation=self.case.activation)

    def heard(self, *kinds):
        return [each for each in self.events if isinstance(each, kinds)]


_RUNS: dict[tuple[str, str, bool], Run] = {}
"""Those that several rules look at."""


def run(column, case=None, *, with_r8=True, **given):
    """Let a column do a case: the `Run`, perhaps one that was made before."""
    case = case or Case()
    key = type(column).__qualname__, repr(case), with_r8
    if key in _RUNS and not given:
        return _RUNS[key]
    found = Run(case, **given)
    found.leaves_out = not with_r8
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (column.train if with_r8 else column.plain)(found)
    found.said = [str(each.message) for each in said if not issubclass(each.category, DeprecationWarning)]
    if not given and case.folder is None:
        _RUNS[key] = found
    return found
