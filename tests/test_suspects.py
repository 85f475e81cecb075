"""Which samples look mislabelled."""

import math

import numpy as np
import pytest

from learnit_r8.records import RECORD
from learnit_r8.suspects import worse_than_untrained

UNTRAINED = 2.0


def learnt(num_samples=100, wrong=(7, 3), loss=0.1):
    """Records of a trained model: everything well learnt but for some samples that stay bad."""
    records = np.zeros(num_samples, RECORD)
    records["loss"], records["last"], records["mean"], records["usage_count"] = loss, loss, 1.0, 4
    for place, index in enumerate(wrong):
        records[index]["loss"] = records[index]["last"] = 4.0
        records[index]["mean"] = 5.0 - place
    return records


def flagged(records, untrained=UNTRAINED, exact=True):
    return worse_than_untrained(records, untrained, exact=exact)


def test_finds_them():
    """Samples that stay worse than untrained are named, the worst over the run first, with their share."""
    indices, mean_loss, noise_rate, reason = flagged(learnt(wrong=(70, 3)))

    assert indices.tolist() == [70, 3]
    assert mean_loss.tolist() == [5.0, 4.0]
    assert (noise_rate, reason) == (0.02, "")


def test_equals_come_by_index():
    """Samples that are equally bad are named in the order of the data."""
    records = learnt(wrong=(9, 4, 30, 2))
    records["mean"] = 1.0

    assert flagged(records).indices.tolist() == [2, 4, 9, 30]


@pytest.mark.parametrize(
    ("field", "value"),
    [("usage_count", 3), ("loss", UNTRAINED), ("last", UNTRAINED), ("last", 0.8 * 4.0)],
    ids=["young", "not worse", "last one not worse", "falling"],
)
def test_spares(field, value):
    """A sample that is young, no worse than untrained, or improving is not suspected."""
    records = learnt(wrong=(7, 3, 5))
    records[field][3] = value

    assert flagged(records).indices.tolist() == [7, 5]


@pytest.mark.parametrize(
    ("records", "untrained", "exact", "reason"),
    [
        (learnt(), UNTRAINED, False, "per-sample losses are needed: report a vector of losses."),
        (np.zeros(5, RECORD), UNTRAINED, True, "too early: samples are judged from 4 uses on."),
        (learnt(loss=0.6), UNTRAINED, True, "the model has not learnt the rest yet: median loss 0.6, untrained 2."),
        (learnt(), math.nan, True, "the model has not learnt the rest yet: median loss 0.1, untrained nan."),
        (learnt(), -1.0, True, "the model has not learnt the rest yet: median loss 0.1, untrained -1."),
        (learnt(wrong=(3,)), UNTRAINED, True, "only 1.0% of the samples stay worse than untrained: nothing unusual."),
        (learnt(wrong=()), UNTRAINED, True, "only 0.0% of the samples stay worse than untrained: nothing unusual."),
    ],
    ids=["batch means", "nothing seen", "not learnt", "unknown", "negative losses", "stray one", "none"],
)
def test_says_why_there_are_none(records, untrained, exact, reason):
    """Without per-sample losses, too early, before the model has learnt, or for stray samples, the reason is given."""
    found = flagged(records, untrained, exact)

    assert found.reason == reason
    assert len(found.indices) == len(found.mean_loss) == 0
    assert math.isnan(found.noise_rate)


def test_unseen_samples_do_not_count_as_learnt():
    """The median is over the samples seen."""
    records = learnt(loss=0.7)
    records["usage_count"][50:] = records["loss"][50:] = 0

    assert flagged(records).reason.startswith("the model has not learnt the rest yet: median loss 0.7")
