"""The limit of the margins: what it leaves out is mostly wrong, stays out, and is of no group alone."""

import numpy as np
import pytest

from learnit_r8.table.label_noise import MarginLimit
from learnit_r8.table.labels.evidence import EVIDENCE
from tests.table.labels.test_mirror import margins_of

RECORDS = np.dtype([("group", "<u2")])


def limited(seed=0, *, wrong=0.2, visits=6, group=None, precision=0.7):
    """The limit, the evidence it is of, the records, and which labels are wrong."""
    margin, is_wrong = margins_of(seed, wrong=wrong)
    evidence, records = np.zeros(len(margin), EVIDENCE), np.zeros(len(margin), RECORDS)
    evidence["margin"], evidence["visits"] = margin, visits
    records["group"] = np.arange(len(margin)) % 10 if group is None else group(is_wrong)
    return MarginLimit.of(records, evidence, precision=precision, by_group=True), evidence, records, is_wrong


def flags(limit, evidence, records):
    return limit.flags(limit.margins(evidence), records["group"].astype(np.int64))


def test_most_that_is_left_out_is_wrong():
    """At least the share asked for is wrong, over some data sets, and most of the wrong labels are left out."""
    found = []
    for seed in range(10):
        limit, evidence, records, is_wrong = limited(seed)
        out = flags(limit, evidence, records)
        found.append((out.sum(), out[is_wrong].sum(), is_wrong.sum()))
    out, wrong_out, wrong = np.sum(found, axis=0)

    assert wrong_out >= 0.7 * out
    assert wrong_out > 0.5 * wrong


@pytest.mark.parametrize("change", [{"wrong": 0.0}, {"visits": 3}])
def test_nobody_is_left_out_without_reason(change):
    """Right labels have no limit, nor have samples that were hardly seen."""
    for seed in range(10):
        assert limited(seed, **change)[0] is None


def test_weights_begin_only_where_labels_are_surely_wrong():
    """As that is asked in each pass: what names suspects once is too little to begin with, and enough to go on."""
    limit, evidence, records, _ = limited(1, wrong=0.02)
    later = MarginLimit.of(records, evidence, precision=0.7, by_group=True, is_weighed=True)

    assert flags(limit, evidence, records).any()
    assert limit.levels == ((), ())
    assert len(later.levels[0]) > 1
    assert limited(wrong=0.2)[0].levels[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_what_was_left_out_stays_out(share):
    """Samples behind the others stay out, whatever the others are like now, of whom some have one visit more."""
    limit, evidence, records, _ = limited()
    out = flags(limit, evidence, records)
    is_ahead = np.random.default_rng(1).random((~out).sum()) < share
    evidence["visits"][~out] += 1 + is_ahead.astype(np.uint16)
    # The network has learnt to tell the others by far more.
    evidence["margin"][~out] *= 3
    later = MarginLimit.of(records, evidence, precision=0.7, by_group=True)
    still = later._replace(least=np.inf)

    assert np.array_equal(flags(still, evidence, records), out)
    assert (flags(later, evidence, records) & out).sum() == out.sum()


def test_hard_samples_that_are_behind_are_kept():
    """Who is behind, but whose label is the predicted one, was left out for another reason: it comes again."""
    _, evidence, records, _ = limited()
    evidence["visits"] = np.where(evidence["margin"] < -1, 4, 8)
    later = MarginLimit.of(records, evidence, precision=0.7, by_group=True)

    assert not flags(later, evidence, records)[evidence["margin"] < 0].any()


def test_no_group_is_left_out_alone():
    """If all that look wrong are of one class, most of it is kept: it may be learnt late."""
    limit, evidence, records, _ = limited(group=lambda is_wrong: np.where(is_wrong, 3, 1))
    assert limit is None or flags(limit, evidence, records).mean() < 0.1


def test_as_many_labels_are_likely_wrong_as_are_wrong():
    """The probabilities rise with the margin, are 0 below 0, and sum up to about the wrong labels, over some sets."""
    likely = wrong = 0.0
    for seed in range(10):
        limit, evidence, _, is_wrong = limited(seed)
        margin = limit.margins(evidence)
        chance = limit.wrong(margin)
        order = np.argsort(margin)
        assert (np.diff(chance[order]) >= 0).all()
        assert not chance[margin <= 0].any()
        assert 0 <= chance.min() <= chance.max() <= 1
        likely, wrong = likely + chance.sum(), wrong + is_wrong.sum()

    assert likely == pytest.approx(wrong, rel=0.15)


def test_no_group_is_likely_wrong_alone():
    """Of a class to which most of what looks wrong belongs, as one that is learnt late, most labels count as right."""
    _, evidence, _, is_wrong = limited()
    limit = limited()[0]
    margin, group = limit.margins(evidence), np.where(is_wrong, 3, 1)

    assert limit.wrong(margin, group).sum() < 0.5 * limit.wrong(margin).sum()
