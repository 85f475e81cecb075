"""Which samples look mislabelled: those that stay worse than an untrained model would be."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_USES = 4
FALLING = 0.8
LEAST_SHARE = 0.015
LEARNT = 0.3


class Suspects(NamedTuple):
    """Samples that look mislabelled.

    Attributes:
        indices: int64[K], most suspect (highest mean loss) first.
        mean_loss: float32[K], mean loss of each over the run.
        noise_rate: K / N, an estimate of the share of wrong labels.
        reason: Why there are none, or "" if there are some.
    """

    indices: NDArray[np.int64]
    mean_loss: NDArray[np.float32]
    noise_rate: float
    reason: str


def worse_than_untrained(records: Any, untrained_loss: float, *, exact: bool) -> Suspects:
    """Flag the samples that a trained model gets worse than an untrained one, and does not improve on.

    A sample is flagged when it was used at least 4 times, its running and its last loss exceed the untrained loss,
    and the last one is not falling (> 0.8 x running). The flags count only once the model has learnt the rest
    (median running loss < 0.3 x untrained loss) and where they are more than stray ones (> 1.5 % of the samples);
    without these gates rare classes look mislabelled.

    Args:
        records: Fields loss, last, mean float32[N] and usage_count uint16[N].
        untrained_loss: What a model that has learnt nothing loses, in the unit of the loss.
        exact: Whether the losses were reported per sample; nothing can be said otherwise.

    Source: measured in ``benchmarks/``; the same mean-loss ranking as the area under the margin of Pleiss et al.
    (arXiv:2001.10528), without needing logits.
    """
    if not exact:
        return _none("per-sample losses are needed: report a vector of losses.")
    if int(records["usage_count"].max()) < LEAST_USES:
        return _none(f"too early: samples are judged from {LEAST_USES} uses on.")
    loss = records["loss"]
    seen = records["usage_count"] > 0
    median = float(np.median(loss[seen]))
    if not (untrained_loss > 0 and median < LEARNT * untrained_loss):
        return _none(
            f"the model has not learnt the rest yet: median loss {median:.3g}, untrained {untrained_loss:.3g}."
        )
    flagged = (records["usage_count"] >= LEAST_USES) & (loss > untrained_loss)
    flagged &= (records["last"] > untrained_loss) & (records["last"] > np.float32(FALLING) * loss)
    share = float(flagged.mean())
    if share <= LEAST_SHARE:
        return _none(f"only {share:.1%} of the samples stay worse than untrained: nothing unusual.")
    indices = np.flatnonzero(flagged)
    indices = indices[np.argsort(-records["mean"][indices], kind="stable")]
    return Suspects(indices, records["mean"][indices], share, "")


def _none(reason: str) -> Suspects:
    return Suspects(np.empty(0, np.int64), np.empty(0, np.float32), math.nan, reason)
