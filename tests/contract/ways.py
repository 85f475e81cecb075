"""What the tests of row 10 share."""

import numpy as np


class Left(Exception):
    """Raised by a script that leaves a training in the middle of an epoch."""


def are_equal(one, two):
    """Whether two lists of arrays are equal to the bit."""
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def check_resumed(train, way, kind, folder):
    """Left in mid-epoch and run again, a training ends with the same arrays, after the same number of steps.

    Args:
        train: Trains; returns the arrays, whatever else, and the scheduler as the third.
        way: What the script does besides.
        kind: Who gives the batches.
        folder: Of the checkpoints.
    """
    whole = train(way, kind)
    try:
        train(way, kind, folder, leave_at=25)
    except Left:
        parts = train(way, kind, folder)
        assert are_equal(whole[0], parts[0])
        assert parts[2].global_step == whole[2].global_step
    else:
        raise AssertionError("the script was not left")
