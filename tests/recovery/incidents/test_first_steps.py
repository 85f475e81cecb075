"""The watch over the first steps."""

import numpy as np
import pytest

from learnit_r8.recovery.incidents.first_steps import are_large

LOSSES = np.array([1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.3, 1.0])


@pytest.mark.parametrize(
    ("losses", "share", "size", "expected"),
    [
        (LOSSES, -0.2, 32, True),
        (LOSSES, 0.2, 32, True),
        (LOSSES, -0.03, 32, False),
        (LOSSES, -0.2, 2, False),  # the update of two samples serves just these
        (LOSSES, -0.2, 256, True),
        # Where noise has heavy tails, a batch whose loss changes much has a high one.
        (np.where(np.arange(8) == 3, 20.0, LOSSES), -0.04, 32, False),
        (LOSSES, 0.2 * (-1.0) ** np.arange(8), 32, False),  # and noise points in both directions
    ],
)
def test_large_updates(losses, share, size, expected):
    """Rates are tried where updates change the losses of their own batches by a large share, all in one direction."""
    changes = list(zip(losses.tolist(), (share * losses).tolist(), strict=True))
    assert are_large(changes, size) is expected
