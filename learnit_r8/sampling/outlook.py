"""The outlook for policies: a summary of the table, made once per pass from a random part of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.base import Outlook
from ..policies.radix import keys_of, order_of
from ..table.labels.margin_limit import MarginLimit
from ..table.labels.suspicion import Humps, Suspicion
from ..table.losses import EXACT
from ..table.storage import SampleStorage

MOST_LOOKED_AT = 2**14
"""Most samples that are read: enough to know a share to 0.4 %, in a third of a millisecond for a table of any size."""

PRECISION = 0.7
"""Least share of wrong labels, as estimated, in a list of samples to leave out."""


def look_at(storage: SampleStorage, rng: np.random.Generator, *, weighed: Outlook | None = None) -> Outlook:
    """Make the outlook from a random part of the table, which must have learned all reports.

    Args:
        storage: The storage of the table.
        rng: Chooses the part if the table has more than 16,384 samples.
        weighed: Of a policy that weighs, the outlook of the pass before; None of others.
    """
    kind = storage.part_size
    if kind != EXACT:
        return Outlook()
    if storage.num_samples <= MOST_LOOKED_AT:
        chosen = np.arange(storage.num_samples)
    else:
        chosen = rng.integers(0, storage.num_samples, MOST_LOOKED_AT)
        chosen = chosen[order_of(chosen)]
    records, evidence = storage.records.take(chosen), storage.evidence.take(chosen)
    uses, mean = records["usage_count"], records["mean"]
    limit, judged = None, uses > 0
    if evidence is not None:
        by_group = storage.group_labels is not None
        limit = MarginLimit.of(records, evidence, precision=PRECISION, by_group=by_group)
    # While all others get better, those that margins left out or weighed less keep high losses: two humps that say
    # nothing. Nobody is left out by the margins of a policy that weighs.
    if weighed is not None:
        judged &= weighed.limit is None
    elif limit is not None:
        judged &= limit.margins(evidence) < np.inf
    suspicion = Suspicion.of(mean[judged], uses[judged], storage.untrained_loss)
    fine = uses > 0
    if suspicion is not None:
        flagged = suspicion.flags(mean, uses)
        if not suspicion.is_surprising or suspicion.are_being_learnt(records["last"][flagged]):
            suspicion = None
        else:
            limit = None
            fine &= ~flagged
    if not fine.any():
        return Outlook(True, float(uses.mean()), 1.0, math.nan, suspicion, limit)
    hard_share = float((mean[fine] > storage.untrained_loss).mean())
    return Outlook(True, float(uses.mean()), hard_share, _median(records["last"][fine]), suspicion, limit)


def _median(losses: NDArray[np.float32]) -> float:
    """Median of some losses."""
    count = len(losses)
    return float(losses[order_of(keys_of(losses))[(count - 1) // 2 : count // 2 + 1]].mean())


def to_plain(outlook: Outlook) -> list[Any]:
    """Convert to plain values, which `from_plain` reads back."""
    suspicion, limit = outlook.suspicion, outlook.limit
    return [
        *outlook[:-2],
        None if suspicion is None else [suspicion.untrained_loss, *suspicion.humps],
        None if limit is None else [*limit],
    ]


def from_plain(values: Sequence[Any]) -> Outlook:
    """Convert the values of `to_plain` back to an outlook."""
    is_exact, num_uses, hard_share, middle_loss, suspicion, limit = values
    known = None if suspicion is None else Suspicion(suspicion[0], Humps(*suspicion[1:]))
    if limit is not None:
        if len(limit) not in (3, 4):
            raise ValueError(f"the limit in plan.context must be a list of 3 or 4, got {limit!r}.")
        # Those of before have no levels.
        least, field, fresh, *levels = limit
        limit = MarginLimit(least, field, fresh, *((tuple(margins), tuple(chances)) for margins, chances in levels))
    return Outlook(is_exact, num_uses, hard_share, middle_loss, known, limit)
