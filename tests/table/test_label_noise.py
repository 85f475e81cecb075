"""Label noise: which samples look mislabelled."""

import math

import numpy as np
import pytest

from learnit_r8 import SampleTable
from learnit_r8.table.label_noise import find_suspects, rank
from learnit_r8.table.labels.evidence import EVIDENCE
from learnit_r8.table.labels.suspicion import Suspicion
from learnit_r8.table.labels.trust import EARLY, PLAIN
from learnit_r8.table.records import RECORD

UNTRAINED = 2.0


def learnt(num_samples=100, wrong=(7, 3), loss=0.1, uses=5):
    """Records of a trained model: all samples are learnt, each a little differently, except some that stay bad."""
    records = np.zeros(num_samples, RECORD)
    records["mean"] = loss * np.linspace(0.5, 1.5, num_samples)
    records["usage_count"] = uses
    for place, index in enumerate(wrong):
        records["mean"][index] = 5.0 - 0.1 * (place % 10)
    records["loss"] = records["last"] = records["mean"]
    return records


def found(records, untrained=UNTRAINED, exact=True, by_group=False):
    return find_suspects(records, untrained, exact=exact, by_group=by_group)


def test_finds_mislabelled_samples():
    """Samples that stay worse than untrained, apart from the others, are named, the worst first, with their share."""
    suspects = found(learnt(wrong=(70, 3)))

    assert suspects.indices.tolist() == [70, 3]
    assert suspects.mean_loss.tolist() == pytest.approx([5.0, 4.9])
    assert (suspects.score > 0.99).all()
    assert suspects.noise_rate == 0.02
    assert suspects.noise_range[0] <= 0.02 <= suspects.noise_range[1]
    assert suspects.reason == ""


@pytest.mark.parametrize("absurd", [1e3, 1e10, 3e38])
def test_one_absurd_sample_hides_no_other(absurd):
    """A sample with an absurd mean loss is one more suspect, and the others are still found."""
    records = learnt(1000, wrong=range(100))
    records["mean"][500] = absurd

    assert sorted(found(records).indices.tolist()) == [*range(100), 500]


def test_equals_come_by_index():
    """Samples that are equally bad are named in the order of the data."""
    records = learnt(wrong=(9, 4, 30, 2))
    records["mean"][[9, 4, 30, 2]] = 5.0

    assert found(records).indices.tolist() == [2, 4, 9, 30]


@pytest.mark.parametrize(
    ("field", "value"), [("usage_count", 3), ("mean", UNTRAINED), ("mean", 0.1)], ids=["young", "not worse", "learnt"]
)
def test_young_and_learnt_samples_are_not_suspected(field, value):
    """A sample with few uses, or no worse than untrained over the run, is not suspected."""
    records = learnt(wrong=(7, 3, 5))
    records[field][3] = value

    assert found(records).indices.tolist() == [7, 5]


@pytest.mark.parametrize(("last", "why"), [(0.2, "memorised"), (5.0, "always high"), (8.0, "rising")])
def test_says_why(last, why):
    """A loss that was high and is low is memorised; one higher than ever is rising; any other is always high."""
    records = learnt()
    records["last"][7] = last

    assert found(records).why == (why, "always high")


def humble(num_samples=1000):
    """Records of a model that learns slowly: one component with a long tail beyond untrained."""
    records = learnt(num_samples, wrong=())
    records["mean"] = np.random.default_rng(0).gamma(3, 0.5, num_samples)
    return records


NO_GROUP = "no group of samples stands apart from the others and is worse than an untrained model."


@pytest.mark.parametrize(
    ("records", "untrained", "exact", "reason"),
    [
        (learnt(), UNTRAINED, False, "per-sample losses are needed: report a vector of losses."),
        (np.zeros(5, RECORD), UNTRAINED, True, "too early: samples are judged from 4 uses on."),
        (learnt(), math.nan, True, "the loss of an untrained model must be > 0 to compare with, got nan."),
        (learnt(), -1.0, True, "the loss of an untrained model must be > 0 to compare with, got -1."),
        (learnt(wrong=()), UNTRAINED, True, NO_GROUP),
        (learnt(wrong=(3, 7)), 6.0, True, NO_GROUP),
        (humble(), UNTRAINED, True, NO_GROUP),
    ],
    ids=["batch means", "nothing seen", "unknown", "negative losses", "none", "not worse", "one hump with a tail"],
)
def test_says_why_there_are_none(records, untrained, exact, reason):
    """Without per-sample losses, too early, or without a second component beyond untrained, the reason is given."""
    suspects = found(records, untrained, exact)

    assert suspects.reason == reason
    assert len(suspects.indices) == len(suspects.mean_loss) == len(suspects.score) == len(suspects.why) == 0
    assert math.isnan(suspects.noise_rate)


def test_rare_groups_are_protected():
    """In each group at most 1.5 times the overall share is suspected, the worst first; without groups, all are."""
    records = learnt(200, wrong=range(20))
    records["group"][:10] = 1
    alone = found(records).indices
    grouped = found(records, by_group=True).indices

    assert len(alone) == 20
    # One in eighteen is left at last, so at most 8 % of the ten of group 1, rounded up, and 15.7 of the others.
    assert sorted(grouped.tolist()) == [0, *range(10, 20)]


@pytest.mark.parametrize(
    ("high", "untrained", "is_surprising"),
    [(2.9, 2.3, False), (4.2, 2.3, True), (1.25e-3, 1e-3, False), (2e-3, 1e-3, True), (60, 46, True)],
)
def test_wrong_labels_surprise(high, untrained, is_surprising):
    """A tenth slightly worse than untrained may be a rare class; a tenth of wrong labels has higher losses."""
    mean = np.full(1000, 0.05 * untrained, np.float32)
    mean[:100] = high
    suspicion = Suspicion.of(mean, np.full(1000, 6), untrained)

    assert suspicion.is_surprising == is_surprising


def test_suspicion_of_a_part_judges_all():
    """A criterion fitted to a part of the samples flags the same samples as one fitted to all."""
    records = learnt(2000, wrong=range(0, 2000, 10))
    uses, mean = records["usage_count"], records["mean"]
    part = slice(None, 500)
    from_part = Suspicion.of(mean[part], uses[part], UNTRAINED)

    assert np.array_equal(from_part.flags(mean, uses), Suspicion.of(mean, uses, UNTRAINED).flags(mean, uses))
    assert np.flatnonzero(from_part.flags(mean, uses)).tolist() == list(range(0, 2000, 10))


def evidence_of(margin, visits=12, **fields):
    """The evidence for samples with these mean margins, all of them with the label 0, suggested 3."""
    records = np.zeros(len(margin), EVIDENCE)
    records["margin"] = records["early"] = margin
    records["visits"], records["leader"], records["lead"] = visits, 3, 24
    for name, values in fields.items():
        records[name] = values
    return records


def overlapping(seed, wrong=0.1, count=4000):
    """Records whose losses are one hump, the evidence that tells wrong labels all the same, and which are wrong."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(2.0, 1.0, count)
    margin = np.where(rng.random(count) < 1 / (1 + np.exp(1.2 * size)), size, -size)
    is_wrong = rng.random(count) < wrong
    margin[is_wrong] = np.abs(rng.normal(3.5, 1.5, is_wrong.sum()))
    records = {
        "mean": np.logaddexp(0, margin).astype(np.float32),
        "last": np.logaddexp(0, margin).astype(np.float32),
        "usage_count": np.full(count, 12, np.uint16),
    }
    return records, evidence_of(margin), is_wrong


def test_predictions_decide_where_losses_overlap():
    """Without two groups of losses there is no verdict; with predictions there is one, with labels to suggest."""
    records, evidence, is_wrong = overlapping(0)
    without = find_suspects(records, math.log(10), exact=True)
    suspects = find_suspects(records, math.log(10), exact=True, evidence=evidence)
    strict = find_suspects(records, math.log(10), exact=True, evidence=evidence, precision=0.9)

    assert without.reason
    assert (without.method, suspects.method) == ("", "mirrored margins")
    assert is_wrong[suspects.indices].mean() > 0.5
    assert is_wrong[strict.indices].mean() > 0.9
    assert 0 < len(strict.indices) < len(suspects.indices)
    assert 0.5 <= suspects.precision < strict.precision <= 1
    assert (suspects.given == 0).all()
    assert (suspects.suggested == 3).all()
    assert (suspects.votes == 2).all()
    low, high = suspects.noise_range
    assert low <= suspects.noise_rate <= high
    assert low < is_wrong.mean() < high
    assert (np.diff(evidence["margin"][suspects.indices]) <= 0).all()
    assert "of them wrong" in repr(suspects)


def test_right_labels_that_overlap_have_no_verdict():
    """Hard samples alone are no suspects; the reason says so."""
    for seed in range(5):
        records, evidence, _ = overlapping(seed, wrong=0)
        suspects = find_suspects(records, math.log(10), exact=True, evidence=evidence)

        assert suspects.reason == "no more samples look wrong than hard ones with right labels would explain."
        assert len(suspects.suggested) == 0


@pytest.mark.parametrize("trust", [PLAIN, EARLY])
def test_two_humps_decide_where_margins_are_too_few(trust):
    """Too few margins to fit leave the list to the losses, if these fall into two groups, with labels to suggest.

    So it is where the network is held to what it has said, or losses have weights, from some visit on.
    """
    records = learnt(wrong=range(20, 60))
    margin = np.where(records["mean"] > 1, 5.0, -5.0)
    suspects = find_suspects(records, UNTRAINED, exact=True, evidence=evidence_of(margin), trust=trust)
    without = find_suspects(records, UNTRAINED, exact=True)

    assert suspects.method == "two humps"
    assert (suspects.indices == without.indices).all()
    assert (without.suggested == -1).all()
    assert (suspects.suggested == 3).all()


def test_two_humps_of_other_losses_decide_nothing():
    """Of losses that fall below zero, as with early learning regularisation, nobody knows what is high."""
    records = learnt(wrong=range(20, 60))
    records["last"][:20] = -1.0
    margin = np.where(records["mean"] > 1, 5.0, -5.0)
    evidence = evidence_of(margin, last_margin=np.where(np.arange(len(margin)) < 60, 1.0, -5.0))

    assert not len(find_suspects(records, UNTRAINED, exact=True, evidence=evidence))


@pytest.mark.parametrize(("late", "is_believed"), [("learnt", True), ("hard", False), ("wrong", True)])
def test_early_margins_are_believed_unless_late_ones_are_those_of_hard_labels(late, is_believed):
    """With weights the margins from before decide, unless a third still looks wrong, and looks like right labels."""
    rng = np.random.default_rng(0)
    early = -rng.uniform(1, 6, 1300)
    early[:90] = rng.uniform(0, 6, 90)
    last = -np.abs(early)
    # Of hard right labels the odds of a margin against its mirror fall off with its size.
    last[:40] = {"learnt": last[:40], "hard": rng.exponential(0.1, 40), "wrong": early[:40]}[late]
    last[90:170] = -rng.exponential(0.2, 80)
    evidence = evidence_of(last, early=early, last_margin=last)
    records = {"mean": np.log1p(np.exp(last)), "last": np.log1p(np.exp(last)), "usage_count": np.full(1300, 12)}
    suspects = find_suspects(records, math.log(10), exact=True, evidence=evidence, trust=EARLY)

    assert (len(suspects) > 40) == is_believed
    assert is_believed or suspects.reason.startswith("what looked wrong before weights began has been learnt")


def test_a_class_is_no_suspect():
    """A class for which the model always prefers another is hard or rare: it has few more suspects than others."""
    records, evidence, is_wrong = overlapping(1)
    evidence["given"] = np.arange(len(is_wrong)) % 10
    evidence["margin"][evidence["given"] == 9] = 4.0
    suspects = find_suspects(records, math.log(10), exact=True, evidence=evidence)
    shares = np.bincount(evidence["given"][suspects.indices], minlength=10) / 400

    assert shares[9] <= 1.6 * shares.mean()


@pytest.mark.parametrize("precision", [0.5, 0.7, 0.9])
def test_estimate_is_at_least_what_was_asked_for(precision):
    """The right labels of a class that is spared are no part of the list, whose precision is not estimated too low."""
    for seed in range(4):
        records, evidence, is_wrong = overlapping(seed)
        group = np.where(is_wrong | (evidence["margin"] > 3), np.arange(4000) % 2, 2 + np.arange(4000) % 8)
        known = {name: records[name] for name in ("last", "mean", "usage_count")} | {"group": group.astype(np.uint16)}
        found = find_suspects(known, math.log(10), exact=True, by_group=True, evidence=evidence, precision=precision)

        assert len(found) > 20
        assert found.precision >= precision


def test_memorised_labels_are_told_by_early_visits():
    """Once the late margins of wrong labels have faded, the early ones decide; while they last, the late ones do."""
    records, evidence, is_wrong = overlapping(2)
    fading, lasting = evidence.copy(), evidence.copy()
    fading["margin"] = -np.abs(evidence["margin"])
    lasting["early"] = np.maximum(evidence["margin"] - 1, 0)
    suspects, late = (
        find_suspects(records, math.log(10), exact=True, evidence=each, precision=0.7) for each in (fading, lasting)
    )

    assert is_wrong[suspects.indices].mean() > 0.65
    assert len(suspects.indices) > 200
    assert (late.indices == suspects.indices).all()
    assert (rank(records, fading, 5).indices == np.argsort(-fading["early"], kind="stable")[:5]).all()


def test_ranking_is_an_order_of_all():
    """By margins where they are known, else by losses; samples that were never seen are left out."""
    records = {"mean": np.array([1, 3, 2, 9], np.float32), "usage_count": np.array([1, 1, 1, 0])}
    evidence = evidence_of([5.0, -1.0, 7.0, 9.0], visits=[1, 2, 3, 0])
    by_loss, by_margin = rank(records, None, 9), rank(records, evidence, 2)

    assert by_loss.indices.tolist() == [1, 2, 0]
    assert by_loss.mean_loss.tolist() == [3, 2, 1]
    assert by_loss.suggested.tolist() == [-1, -1, -1]
    assert by_margin.indices.tolist() == [2, 0]
    assert by_margin.suggested.tolist() == [3, 3]


@pytest.mark.parametrize("precision", [0, 1, 1.5, math.nan, "high", None])
def test_precision_is_a_share(precision):
    """A list without a wrong label, or of nothing else, cannot be asked for."""
    table = SampleTable(10, batch_size=2)

    with pytest.raises(ValueError, match=r"precision must be in \(0, 1\)"):
        table.suspects(precision)


def test_few_suspects_are_not_sure():
    """A handful of samples that stay apart may be right and hard: listed only where nothing better can be had."""
    records, margin = learnt(2000, wrong=range(18)), np.full(2000, -5.0)
    listed = find_suspects(records, UNTRAINED, exact=True)
    strict = find_suspects(records, UNTRAINED, exact=True, precision=0.9)
    many = find_suspects(learnt(2000, wrong=range(300)), UNTRAINED, exact=True, precision=0.9)

    assert len(listed.indices) == 18
    assert listed.precision < 0.3
    assert strict.reason.startswith("too few samples stand apart")
    assert len(many.indices) == 300
    assert find_suspects(records, UNTRAINED, exact=True, evidence=evidence_of(margin)).reason
