"""Evidence of several runs on the same samples: what one network got wrong by chance, others get right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .suspicion import LEAST_USES

Fields = Mapping[str, NDArray[Any]]


def combine(first: Fields | None, others: Sequence[Fields | None]) -> dict[str, NDArray[Any]]:
    """The evidence of several runs as that of one: mean margins, and the votes of all visits together.

    Another run counts for the samples that it has visited often enough with the label of the first. Networks that
    start from other weights err on other samples, so among right labels fewer margins are positive by chance.

    Args:
        first: Fields margin, early, visits, given, leader and lead of `EVIDENCE`, N each; None without predictions.
        others: The same for other runs.

    Raises:
        ValueError: a run has no predictions, or another number of samples.
    """
    if first is None or any(each is None or "margin" not in each for each in (first, *others)):
        raise ValueError("runs must all have reported predictions with the losses; one has not.")
    found = {name: first[name] for name in ("margin", "early", "visits", "given", "leader", "lead")}
    count = np.ones(len(found["margin"]), np.float32)
    leader, lead = found["leader"].astype(np.int64), found["lead"].astype(np.int64)
    margin, early = found["margin"].copy(), found["early"].copy()
    for other in others:
        assert other is not None
        if len(other["margin"]) != len(count):
            raise ValueError(f"runs must be of the same {len(count):,} samples, got one of {len(other['margin']):,}.")
        same = (other["visits"] >= LEAST_USES) & (other["given"] == found["given"])
        count += same
        margin += np.where(same, other["margin"] - margin, 0) / count
        early += np.where(same, other["early"] - early, 0) / count
        # As Boyer and Moore merge the counts of parts.
        votes = np.where(same, other["lead"].astype(np.int64), 0)
        lead = np.where(other["leader"] == leader, lead + votes, lead - votes)
        leader = np.where(lead < 0, other["leader"], leader)
        lead = np.abs(lead)
        found["visits"] = np.where(same, np.maximum(found["visits"], other["visits"]), found["visits"])
    return found | {"margin": margin, "early": early, "leader": leader, "lead": lead}
