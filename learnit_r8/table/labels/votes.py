"""Votes of a sample's visits for the label that it should have, in four bytes: the leading class and its lead."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_WEIGHT = 64
"""The vote of a visit weighs its number, but at most this."""

MOST_LEAD = 2**16 - 1


def vote(records: NDArray[Any], predicted: NDArray[np.uint16]) -> None:
    """Count the votes for other classes, so that a class with most of them leads at last; late votes count more.

    Source: R. S. Boyer & J. S. Moore, "MJRTY", 1981, with weights.
    """
    votes, lead = predicted != records["given"], records["lead"].astype(np.int64)
    weight = np.minimum(records["visits"], MOST_WEIGHT).astype(np.int64)
    agrees = predicted == records["leader"]
    lead += np.where(votes, np.where(agrees, weight, -weight), 0)
    records["leader"] = np.where(lead < 0, predicted, records["leader"])
    records["lead"] = np.minimum(np.abs(lead), MOST_LEAD)


def votes_of(records: Any) -> NDArray[np.int64]:
    """int64[M], visits at which the leading class was predicted, at least; EVIDENCE[M] or its fields by name."""
    most = np.clip(records["visits"].astype(np.int64), 1, MOST_WEIGHT)
    votes: NDArray[np.int64] = -(-records["lead"].astype(np.int64) // most)
    return votes
