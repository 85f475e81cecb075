"""The limit of the margins: which samples a policy leaves out as wrong, by what predictions say of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..label_noise import mirror_margins
from .margins import class_margins
from .mirror import Mirror
from .suspicion import LEAST_USES, spare

FEW = 0.005
"""Share of the samples that may have missed visits without being left out."""


class MarginLimit(NamedTuple):
    """A criterion for wrong labels from predictions, for samples that were not looked at, too.

    A sample is wrong if its mean margin is at least the limit. One that was left out stays out: its margin is of a
    younger network than those of the others, and says no more how they compare.

    Attributes:
        least: The lowest mean margin in a list of suspects, > 0; infinity if the list is empty.
        field: The field of the evidence that it is of: the margins in which late visits count more, or others where
            those fade.
        fresh: Least visits of a sample that was not left out.
        levels: Mean margins > 0, rising, and the probability that a label is wrong from each on.
    """

    least: float
    field: str
    fresh: int
    levels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @classmethod
    def of(
        cls, records: Any, evidence: Any, *, precision: float, by_group: bool, is_weighed: bool = False
    ) -> MarginLimit | None:
        """The limit of the list that the margins give for this precision; None where nobody is left out.

        Args:
            records: Field group uint16[M] if ``by_group``, M >= 1.
            evidence: EVIDENCE[M].
            precision: Least share of the list to be wrong, as estimated, in (0, 1).
            by_group: Whether to protect groups, see `Suspicion.flags`.
            is_weighed: Whether losses have had weights; until then they get some only where labels are surely wrong.
        """
        visits = evidence["visits"]
        judged = np.flatnonzero(visits >= LEAST_USES)
        if not len(judged):
            return None
        field = class_margins(evidence).field
        # Each sweep over the data takes the samples that look right once, so those that were never left out differ by
        # one visit at most; but for a few, whose batches were refused.
        taken = visits[judged][evidence[field][judged] <= 0]
        place = int(FEW * len(taken))
        limit = cls(math.inf, field, int(np.partition(taken, place)[place]) if len(taken) else 0)
        margin = limit.margins(evidence)[judged]
        is_fresh = margin < np.inf
        group = (records["group"] if by_group else evidence["given"])[judged].astype(np.int64)
        fitted, _, chosen = mirror_margins(margin[is_fresh].astype(np.float64), group[is_fresh], precision)
        if len(chosen):
            return limit._replace(least=float(fitted[chosen[-1]]), levels=_levels(fitted, is_sure=not is_weighed))
        # Those left out are what lists of this precision have held.
        return None if is_fresh.all() else limit._replace(levels=((math.inf,), (precision,)))

    def margins(self, evidence: Any) -> NDArray[np.float32]:
        """float32[M], mean margins: infinity for samples that stay out, minus infinity for those not judged yet."""
        visits = evidence["visits"]
        margin: NDArray[np.float32] = evidence[self.field]
        margin = np.where((visits < self.fresh) & (margin > 0), np.float32(np.inf), margin)
        return np.where(visits >= LEAST_USES, margin, np.float32(-np.inf))

    def flags(self, margin: NDArray[np.float32], group: NDArray[Any] | None = None) -> NDArray[np.bool_]:
        """bool[M], the samples to leave out.

        Args:
            margin: float32[M], as `margins` gives them.
            group: int[M], see `Suspicion.flags`.
        """
        return _flagged(margin, self.least, group)

    def wrong(self, margin: NDArray[np.float32], group: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """float32[M], the probability that each label is wrong.

        Args:
            margin, group: As for `flags`; the samples that this would spare count as right.
        """
        margins, chances = self.levels
        if not margins:
            return np.zeros(len(margin), np.float32)
        level = np.searchsorted(np.array(margins, np.float32), margin, side="right")
        chance = np.array([0.0, *chances], np.float32)[level]
        return np.where(_flagged(margin, margins[0], group), chance, np.float32(0))


def _flagged(margin: NDArray[np.float32], least: float, group: NDArray[Any] | None) -> NDArray[np.bool_]:
    flagged: NDArray[np.bool_] = margin >= np.float32(least)
    spare(flagged, margin, group)
    return flagged


def _levels(margin: NDArray[np.float64], *, is_sure: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lowest margin of each score above 0, which never falls with the margin, and the scores.

    A list must hold what was asked for, so it is fitted with caution; a weight must neither be too high nor too low.
    """
    mirror = Mirror.of(margin, caution=0.0, is_sure=is_sure)
    score = np.zeros(len(margin)) if mirror is None else mirror.score(margin)
    order = np.flatnonzero(score > 0)
    order = order[np.argsort(margin[order])]
    chances, firsts = np.unique(score[order], return_index=True)
    return tuple(margin[order[firsts]].tolist()), tuple(chances.tolist())
