"""The suspicion of the losses: samples whose losses form a component of their own, worse than an untrained model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..quantiles import falling_order
from .mixture import Humps, find_humps

LEAST_USES = 4
LEAST_HIGH = 1.03
"""Least position of the higher component: clearly worse than untrained, which is 1."""

HIGHEST = 25.0
"""Limit to which mean losses are clipped, in multiples of the untrained loss, so that one absurd sample does not hide
the others."""

TEN_CLASSES = math.log(10)
"""Untrained cross entropy of ten classes. The surprise is divided by the untrained loss, but by no less than this, as
losses may be in any unit."""

LEAST_SURPRISE = 0.3
"""Share of the expected surprise at wrong labels that the higher component must show.

A model that knows the share p of wrong labels gives each wrong one a probability of p / (classes - 1): its cross
entropy is -log(p) above that of an untrained model. Rare classes that are still being learnt have lower losses.
"""

UNLEARNED, LEAST_OF_CLASS = 0.9, 10
"""Share of the labels of a class for which another one is predicted, above which the class has not been learned; and
least labels for that."""

GROUP_SHARE = 1.5
"""Largest share of suspects in a group, relative to that in all samples: a rare class is hard, not wrong."""


class Suspicion(NamedTuple):
    """A criterion for mislabelled samples, fitted to the losses of many samples.

    Attributes:
        untrained_loss: Loss of an untrained model, > 0.
        humps: The two components of the square root of (mean loss / untrained loss).
    """

    untrained_loss: float
    humps: Humps

    @classmethod
    def of(cls, mean_loss: NDArray[np.float32], usage_count: NDArray[Any], untrained_loss: float) -> Suspicion | None:
        """Fit the criterion to samples; None if nothing is suspect.

        Samples are suspect if the mean losses fall into two components, the higher of which is clearly worse than
        untrained. With a model that has not learnt much yet, or with hard samples, there is one component with a tail.
        A rare class that is learnt late may look like wrong labels: pass the groups to `flags`.

        Args:
            mean_loss: float32[M], mean loss of each sample over its uses.
            usage_count: int[M], its uses; samples with fewer than 4 are left out.
            untrained_loss: Loss of an untrained model, in the unit of the loss.
        """
        judged = np.asarray(usage_count) >= LEAST_USES
        if not untrained_loss > 0 or not judged.any():
            return None
        humps = find_humps(_scaled(mean_loss[judged], untrained_loss))
        if humps is None or not humps.are_apart or humps.high <= LEAST_HIGH:
            return None
        return cls(untrained_loss, humps)

    @property
    def is_surprising(self) -> bool:
        """Whether the losses of the higher component are as high as those of wrong labels must be.

        Only then may its samples be left out. Rare classes that are still being learnt have lower losses.
        """
        surprise = -math.log(self.humps.high_share) / max(TEN_CLASSES, self.untrained_loss)
        return self.humps.high**2 > 1 + LEAST_SURPRISE * surprise

    def score(self, mean_loss: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64[M] in [0, 1], the probability of belonging to the higher component."""
        return self.humps.belonging(_scaled(mean_loss, self.untrained_loss))

    def flags(
        self,
        mean_loss: NDArray[np.float32],
        usage_count: NDArray[Any],
        group: NDArray[Any] | None = None,
        *,
        least: float = 1.0,
    ) -> NDArray[np.bool_]:
        """bool[M], the suspect samples: more likely in the higher component, and worse than untrained.

        Args:
            mean_loss: float32[M].
            usage_count: int[M]; samples used fewer than 4 times are never flagged.
            group: int[M], a code for the label of each. In each group, at most 1.5 times the share of all samples is
                flagged, those of highest loss first.
            least: Limit above which a sample counts as worse than untrained, as the square root of
                mean loss / untrained loss.
        """
        bound = self.untrained_loss * max(least, self.humps.divide) ** 2
        flagged: NDArray[np.bool_] = (mean_loss > bound) & (usage_count >= LEAST_USES)
        if group is not None and flagged.any():
            spare(flagged, mean_loss, group)
        return flagged

    def are_being_learnt(self, last: NDArray[np.float32]) -> bool:
        """Whether most of some suspects are no longer worse than untrained, given their last losses, float32[K].

        This is so for rare classes, which a model learns later than others, and for wrong labels once it has memorised
        them.
        """
        return bool(len(last)) and float((last < self.untrained_loss).mean()) > 0.5


def spare(flagged: NDArray[np.bool_], mean_loss: NDArray[np.float32], group: NDArray[Any]) -> None:
    """Clear the flags of the samples with the lowest losses in groups that have too many."""
    chosen = np.flatnonzero(flagged)
    chosen = chosen[falling_order(mean_loss[chosen])]
    flagged[chosen[are_spared(group[chosen], group)]] = False


def are_spared(group: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.bool_]:
    """bool[K], which of some suspects are not, as they have the lowest losses of a group that has too many.

    Args:
        group: int[K], the code of the group of each, < 65536; the highest loss first.
        groups: int[M], that of each of all samples, or of some of many, suspect or not.
    """
    if not len(group):
        return np.zeros(0, bool)
    sizes = np.bincount(groups, minlength=int(group.max()) + 1)
    order = np.argsort(group.astype(np.uint16), kind="stable")
    found = np.bincount(group, minlength=len(sizes))
    # None of a rare group may be among some of the samples.
    sizes = np.maximum(sizes, 1)
    count, most = 0, found
    # Each flag that is cleared lowers the share that the other groups may have.
    while count != most.sum():
        count = int(most.sum())
        most = np.minimum(found, np.ceil(GROUP_SHARE * count / len(groups) * sizes).astype(np.int64))
    rank = np.arange(len(order)) - (np.cumsum(found) - found)[group[order]]
    spared = np.empty(len(order), bool)
    spared[order] = rank >= most[group[order]]
    return spared


def unlearned(
    margin: NDArray[np.float64], given: NDArray[Any], place: NDArray[np.int64]
) -> Callable[[NDArray[Any], NDArray[np.int64]], NDArray[np.bool_]]:
    """A function that says which labels are of a class that the model has not learned: those are hard, not wrong.

    It predicts another class for more than nine in ten of them, among all or at one place.

    Args:
        margin: float64[M], of labels that are judged; more may follow.
        given: [M], their classes.
        place: int64[M], which of the labels of its sample each is.
    """
    bad = set()
    for codes in (given.astype(np.int64), _at(given, place)):
        names, code, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        share = np.bincount(code, margin[: len(code)] > 0, len(names)) / sizes
        bad |= set(names[(share > UNLEARNED) & (sizes >= LEAST_OF_CLASS)].tolist())
    known = np.array(sorted(bad), np.int64)
    return lambda given, place: np.isin(given.astype(np.int64), known) | np.isin(_at(given, place), known)


def _at(given: NDArray[Any], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[M], codes of classes at places, other than those of classes."""
    return (place + 1) * 2**16 + given.astype(np.int64)


def _scaled(mean_loss: NDArray[np.float32], untrained_loss: float) -> NDArray[np.float64]:
    """Rescale losses so that learnt and mislabelled samples form components of similar width, and untrained is 1."""
    return np.sqrt(np.clip(mean_loss.astype(np.float64) / untrained_loss, 0, HIGHEST))
