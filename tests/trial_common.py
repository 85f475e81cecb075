"""A trial of a lower rate, begun as the first losses of a run may ask for, and what the epochs within it must show."""

import hashlib

import numpy as np


def begin_trial(r8):
    """Begin one between two steps; what is there counts as better than the initial state if the losses have fallen."""
    controller = r8.controller
    controller.begin_call(r8.global_step, 1.0)
    controller.witnesses.first.replayed = 0.0
    controller.early._begin_trial(1.0)


def digest(arrays):
    """Of weights, bit by bit."""
    found = hashlib.blake2b(digest_size=8)
    for each in arrays:
        found.update(np.ascontiguousarray(each).tobytes())
    return found.hexdigest()


class Sight:
    """The weights that the steps of each epoch begin and end with, and those that the code after it sees.

    Attributes:
        aside: Those from before the trial.
    """

    def __init__(self):
        self.aside = ""
        self._steps, self._epochs = [], []

    def begin(self, weights):
        """A step begins with these."""
        self._steps.append([digest(weights)])

    def end(self, weights):
        """The step has made these."""
        self._steps[-1].append(digest(weights))

    def leave(self, weights, r8):
        """The code after an epoch sees these."""
        self._epochs.append((self._steps, digest(weights), r8.controller.state.early.trial is not None))
        self._steps = []

    def check(self):
        """Several epochs end within the trial: with the state from before it; each next one goes on with the trial."""
        within = [number for number, (_, _, is_on) in enumerate(self._epochs) if is_on]
        assert len(within) > 2
        assert {self._epochs[number][1] for number in within} == {self.aside}
        for number in within:
            last, first = self._epochs[number][0][-1][-1], self._epochs[number + 1][0][0][0]
            assert last == first != self.aside
