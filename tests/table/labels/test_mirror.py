"""The mirror of the margins: right labels are never a list, wrong ones are, at the precision asked for."""

import numpy as np
import pytest

from learnit_r8.table.labels.mirror import (
    LEAST_LISTED,
    LEAST_POSITIVE,
    LEAST_RIGHT,
    LEAST_RISE_OF_TWO,
    MISFIT,
    STRAIGHT,
    Mirror,
    OddsCounts,
    fit_odds,
)


def margins_of(seed, *, wrong=0.0, count=6000, slope=1.2):
    """Margins of a calibrated model: positive ones with odds exp(-slope * m); and which labels are wrong."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(2.0, 1.0, count)
    margin = np.where(rng.random(count) < 1 / (1 + np.exp(slope * size)), size, -size)
    is_wrong = rng.random(count) < wrong
    return np.where(is_wrong, rng.normal(3.0, 2.0, count), margin), is_wrong


@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0])
def test_right_labels_are_no_suspects(slope):
    """However hard the samples are, the margins of right labels have a mirror image."""
    for seed in range(8):
        margin, _ = margins_of(seed, slope=slope)

        assert Mirror.of(margin) is None


@pytest.mark.parametrize(("wrong", "precision"), [(0.03, 0.5), (0.1, 0.5), (0.1, 0.9), (0.3, 0.5), (0.3, 0.9)])
def test_lists_have_the_precision_asked_for(wrong, precision):
    """Of what is listed, at least the share asked for is wrong; most of the wrong labels are listed at 0.5."""
    listed = found = total = 0
    for seed in range(10):
        margin, is_wrong = margins_of(seed, wrong=wrong)
        chosen = Mirror.of(margin).longest(margin, precision)
        listed, found, total = listed + len(chosen), found + is_wrong[chosen].sum(), total + is_wrong.sum()

    assert found >= precision * listed - 2 * np.sqrt(listed)
    assert precision > 0.5 or found > (0.35 if wrong == 0.03 else 0.7) * total


def test_list_comes_highest_first():
    """The list is the beginning of the order by margin, and longer the less precision is asked for."""
    margin, _ = margins_of(0, wrong=0.1)
    mirror = Mirror.of(margin)
    short, long = (mirror.longest(margin, precision) for precision in (0.9, 0.5))

    assert 10 * LEAST_RIGHT <= len(short) < len(long)
    assert (short == long[: len(short)]).all()
    assert (np.diff(margin[long]) <= 0).all()


def test_short_lists_are_not_shown():
    """Where fewer than five right labels may be in a list, their number cannot be told, however sure it looks."""
    margin, is_wrong = margins_of(0, wrong=0.1, count=900)
    mirror = Mirror.of(margin)

    assert is_wrong[np.argsort(-margin)[:40]].mean() > 0.9
    assert len(mirror.longest(margin, 0.5)) >= LEAST_LISTED
    assert len(mirror.longest(margin, 0.95)) == 0


def test_score_rises_with_the_margin():
    """The probability of being wrong lies in [0, 1], is 0 where the label is predicted, and never falls."""
    margin, is_wrong = margins_of(1, wrong=0.1)
    score = Mirror.of(margin).score(margin)

    assert (score[margin <= 0] == 0).all()
    assert 0 <= score.min() <= score.max() <= 1
    assert (np.diff(score[np.argsort(margin)]) >= 0).all()
    assert 0.5 * is_wrong.sum() < score.sum() < 1.1 * is_wrong.sum()


def test_expected_counts_right_labels():
    """The samples that look right are counted by the odds that their mirror image looks wrong."""
    margin = np.array([-5.0, -3.0, -2.0, -1.0, 1.0, 2.5])
    found = Mirror(1.0, 4.0, 0.01).expected(margin, np.array([2.5, 0.5]))

    np.testing.assert_allclose(found, [0.01 + np.exp(-3), 0.01 + np.exp(-3) + np.exp(-2) + np.exp(-1)])


def test_right_labels_are_not_more_than_there_are_samples():
    """Where nearly all samples are learnt by a margin that none is wrong by, learnt ones explain nothing."""
    wrong = np.random.default_rng(3).normal(3.0, 1.0, 150)
    hard, _ = margins_of(3, count=600, slope=2.0)
    margin = np.concatenate([wrong, hard, np.full(5000, -9.0)])
    mirror = Mirror.of(margin)
    listed = mirror.longest(margin, 0.5)

    assert mirror.beyond <= 0.003
    assert (listed < 150).sum() > 130
    assert (listed < 150).mean() > 0.5


@pytest.mark.parametrize(("share", "slope", "rise"), [(0.02, 4.0, 4.0), (0.1, 3.0, 2.5), (0.3, 2.0, 3.0)])
def test_odds_are_recovered(share, slope, rise):
    """Counts drawn from a sum of falling and rising odds give the slope back, within its error, and a great gain."""
    rng, size = np.random.default_rng(4), (np.arange(256) + 0.5) / 256
    odds = (1 - share) * np.exp(-slope * size) + share * np.exp(rise * size)
    total = np.full(256, 400)
    positive = rng.binomial(total, odds / (1 + odds))
    fit = fit_odds(positive, total - positive)

    assert abs(fit.slope - slope) < 3 * fit.error
    assert fit.error < slope / 2
    assert abs(fit.share - share) < 0.1
    assert fit.gain > 50


def test_most_samples_between_two_classes_are_right():
    """The counts of a training, in twelfths of the reach, have a likelier fit: few right labels near zero, 57 % wrong.

    Its slope is 32, where that of the right labels is 2.0; a list for .7 would hold .39.
    """
    right = [140, 118, 101, 89, 50, 29, 16, 22, 4, 2, 1, 1], [201, 187, 173, 124, 98, 87, 49, 37, 26, 17, 12, 5]
    wrong = [20, 18, 27, 35, 45, 37, 32, 32, 26, 25, 14, 15], [21, 14, 8, 4, 0, 0, 1, 0, 0, 0, 0, 0]
    size = np.arange(12) + 0.5
    margin = np.concatenate(
        [np.repeat(part, count) for counts in (right, wrong) for part, count in zip((size, -size), counts, strict=True)]
    )
    is_wrong = np.repeat([False, True], [np.sum(right), np.sum(wrong)])
    chosen = Mirror.of(margin).longest(margin, 0.7)

    assert len(chosen) > 100
    assert is_wrong[chosen].mean() > 0.65


def test_odds_that_rise_ever_faster_do_not_flatten_the_slope():
    """Where the odds of wrong labels bend upward, as far out no right labels look right, the right slope is found."""
    rng, size = np.random.default_rng(4), (np.arange(256) + 0.5) / 256
    odds = 0.91 * np.exp(-3.9 * size) + 0.09 * np.exp(1.0 * size + 5.0 * size**2)
    total = np.full(256, 60)
    positive = rng.binomial(total, odds / (1 + odds))
    straight, _ = OddsCounts(size, positive, total).climb(np.array([-2.0, 3.0, 2.0, 0.0]), STRAIGHT)

    assert straight[1] < 3.2
    assert abs(fit_odds(positive, total - positive).slope - 3.9) < 0.5


def test_wrong_labels_of_two_classes_do_not_flatten_the_slope():
    """A wrong label of two classes is a right one of the other, so that their odds are the same at every margin."""
    rng, size = np.random.default_rng(4), (np.arange(256) + 0.5) / 256
    right, wrong = np.exp(-9 * size), 0.11
    odds = (right + wrong) / (1 + wrong * right)
    total = np.full(256, 400)
    positive = rng.binomial(total, odds / (1 + odds))

    assert fit_odds(positive, total - positive).slope < 7.2
    assert 7.8 < fit_odds(positive, total - positive, least_rise=0.0).slope < 9.5


@pytest.mark.parametrize("alike", [1, 20])
def test_labels_of_a_sample_that_err_together_count_as_fewer(alike):
    """Pixels of an object are all wrong or all right: twenty of them make the slope no surer than one would."""
    single, _ = margins_of(2, wrong=0.1, count=4000)
    margin = np.repeat(single, alike)
    sample = np.arange(len(margin)) // 20
    alone, apart, together = (
        Mirror.of(some, sample=which, caution=3.0).slope
        for some, which in ((single, None), (margin, None), (margin, sample))
    )

    assert together == pytest.approx(alone, rel=0.02)
    assert alike == 1 or apart > 1.05 * together


@pytest.mark.parametrize("caution", [1.0, 2.0])
def test_a_slope_is_as_flat_as_the_likelihood_allows(caution):
    """Where the other numbers explain the odds as well but for half of the square of the errors, and not beyond."""
    rng, size = np.random.default_rng(5), (np.arange(32) + 0.5) / 32
    odds = 0.7 * np.exp(-6 * size) + 0.3 * np.exp(2 * size)
    total = np.full(32, 64)
    positive = rng.binomial(total, odds / (1 + odds))
    fit = fit_odds(positive, total - positive, caution=caution)
    least = fit.slope - np.sqrt(fit.error**2 - (MISFIT * fit.slope) ** 2)

    def best(slope):
        """The highest log likelihood with this slope, by trying shares, rises and bends one after the other."""
        share, rise, bend = np.meshgrid(np.linspace(0.02, 0.9, 45), np.linspace(1, 8, 29), np.linspace(0, 6, 13))
        share, rise, bend = (each.reshape(-1, 1) for each in (share, rise, bend))
        tried = (1 - share) * np.exp(-slope * size) + share * np.exp((rise + bend * size) * size)
        return (np.log(tried) @ positive - np.log1p(tried) @ total).max()

    top = max(best(slope) for slope in np.linspace(3, 11, 17))

    assert top - best(least) == pytest.approx(caution**2 / 2, rel=0.15)


def test_lists_are_shorter_where_right_labels_come_in_clumps():
    """Of the pixels of a few objects as many may be right by chance as of some single ones, and more."""
    margin, is_wrong = margins_of(2, wrong=0.1)
    mirror = Mirror.of(margin)
    single, clumped = (mirror._replace(clump=clump).longest(margin, 0.9) for clump in (0.0, 9.0))

    assert 50 < len(clumped) < 0.9 * len(single)
    assert is_wrong[clumped].mean() > is_wrong[single].mean()


def test_right_labels_of_two_kinds_are_no_list():
    """Where some right labels are harder than the others, odds that fall twice explain the counts as well."""
    rng = np.random.default_rng(20)
    size = rng.gamma(2.0, 1.0, 3000)
    slope = np.where(rng.random(3000) < 0.15, 0.5, 1.6)
    margin = np.where(rng.random(3000) < 1 / (1 + np.exp(slope * size)), size, -size)

    assert Mirror.of(margin, is_steady=True) is None


def test_few_positive_margins_say_nothing():
    """A model that has memorised its labels leaves nothing to fit."""
    margin = np.append(np.full(LEAST_POSITIVE - 1, 2.0), np.full(1000, -2.0))

    assert Mirror.of(margin) is None


@pytest.mark.parametrize("negative", [[], [3], [0] * 255 + [9]])
def test_counts_on_one_side_give_a_finite_fit(negative):
    """Where hardly a label is predicted, or none is not, the numbers stay finite."""
    counts = np.resize(np.array([*negative, *[0] * (256 - len(negative))]), 256)
    for fit in (fit_odds(np.full(256, 4), counts), fit_odds(counts, np.full(256, 4))):
        assert np.isfinite(fit).all()


def test_lists_of_many_samples_hold_what_was_asked_for():
    """No number of samples makes the slope certain, as the odds do not fall quite evenly; nor is a list too short."""
    held = {0.5: [], 0.7: [], 0.9: []}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        size, is_wrong = rng.gamma(2.0, 1.0, 20000), rng.random(20000) < 0.1
        margin = np.where(rng.random(20000) < 1 / (1 + np.exp(1.2 * size)), size, -size)
        margin[is_wrong] = np.abs(rng.normal(3.5, 1.5, is_wrong.sum()))
        for precision, shares in held.items():
            shares.append(is_wrong[Mirror.of(margin, is_steady=True).longest(margin, precision)].mean())

    for precision, shares in held.items():
        assert precision - 0.02 < np.mean(shares) < precision + 0.05


@pytest.mark.parametrize(("bend", "count"), [(1.0, 2000), (2.0, 4000)])
def test_a_network_that_has_learnt_nothing_has_no_mirror(bend, count):
    """Its right labels look wrong as often as right, by large margins more often: that tells nothing about them."""
    rng = np.random.default_rng(0)
    size = rng.gamma(2.0, 0.25, count)

    assert Mirror.of(np.where(rng.random(count) < 1 / (1 + np.exp(-bend * size**2)), size, -size)) is None


def test_wrong_labels_of_two_classes_that_are_learnt_in_part_do_not_flatten_the_slope():
    """What is learnt of them shortens their margins, so that the odds of wrong labels fall, too."""
    rng, size = np.random.default_rng(4), (np.arange(256) + 0.5) / 256
    odds = np.exp(-30 * size) + 0.1 * np.exp(-2 * size)
    total = np.full(256, 400)
    positive = rng.binomial(total, odds / (1 + odds))

    assert fit_odds(positive, total - positive, least_rise=0.0).slope < 22
    assert 26 < fit_odds(positive, total - positive, least_rise=LEAST_RISE_OF_TWO).slope < 33
