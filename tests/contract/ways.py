"""What the tests of row 10 share."""

import numpy as np


class Left(Exception):
    """Raised by a script that leaves a training in the middle of an epoch."""


def are_equal(one, two):
    """Whether two lists of arrays are equal to the bit."""
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def check_healthy(train, way, kind):
    """The arrays are to the bit those without R8, and nothing is refused; returns both runs."""
    plain, watched = train(way, "plain"), train(way, kind)
    assert are_equal(plain[0], watched[0])
    assert watched[2].sentry.num_refused == 0
    return plain, watched


def check_healed(train, way, kind):
    """A weight that becomes NaN leaves none behind, and the run ends as well as the one without it; returns both."""
    whole, hurt = train(way, kind), train(way, kind, hurt_at=40)
    assert all(np.isfinite(each).all() for each in hurt[0])
    assert hurt[1] <= 1.2 * whole[1]
    return whole, hurt


def check_resumed(train, way, kind, folder):
    """Left in mid-epoch and run again, a training ends with the same arrays, after the same number of steps.

    Args:
        train: Trains; returns the arrays, the error, the scheduler, and whatever else.
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
