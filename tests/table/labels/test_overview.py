"""The data at a glance: what the visits of a sample say of it, of its class and of the model."""

import math

import numpy as np
import pytest

from learnit_r8.table.labels.evidence import EVIDENCE, learn
from learnit_r8.table.labels.overview import Overview


def visited(logits, given):
    """The evidence and the last losses of samples, after visits with these logits: float[V, N, C] and int[N]."""
    rows, records = np.arange(len(given)), np.zeros(len(given), EVIDENCE)
    for scores in np.asarray(logits, np.float64):
        own, others = scores[rows, given], scores.copy()
        others[rows, given] = -np.inf
        learn(records, np.stack([others.max(1) - own, scores.argmax(1), given]).astype(np.float32))
        last = np.log(np.exp(scores).sum(1)) - own
    return records, last.astype(np.float32)


def two_visits():
    """Four samples of three classes: learnt, forgotten, never learnt, and learnt at the second visit."""
    first = [[3, 0, 0], [0, 2, 0], [0, 0, 2], [1, 0, 0]]
    second = [[5, 0, 0], [2, 0, 0], [0, 0, 4], [0, 0, 3]]
    return np.array([first, second], float), np.array([0, 1, 1, 2])


def test_samples_are_described_by_their_visits():
    """Mean and spread of the margin, when the label was first predicted, and how often it was forgotten."""
    logits, given = two_visits()
    records, last = visited(logits, given)
    overview = Overview.of(last, records)
    chance = np.exp(logits[1]) / np.exp(logits[1]).sum(1, keepdims=True)

    np.testing.assert_allclose(overview.margin, [-4, 0, 3, -1])
    np.testing.assert_allclose(overview.variability, [1, 2, 1, 2])
    np.testing.assert_array_equal(overview.learned, [1, 1, np.nan, 2])
    np.testing.assert_array_equal(overview.forgotten, [0, 1, 0, 0])
    np.testing.assert_array_equal(overview.predicted, [0, 0, 2, 2])
    np.testing.assert_allclose(overview.confidence, chance.max(1), rtol=2e-3)


def test_what_was_memorised_is_counted():
    """Of the labels that other classes beat at first, the share that is predicted at last; the others do not count."""
    against, given = [[0, 3, 0], [0, 3, 0], [3, 0, 0], [0, 3, 0]], np.zeros(4, int)
    by_heart = [[4, 0, 0], [0, 2, 0], [0, 3, 0], [2, 0, 0]]
    records, last = visited([against] * 7 + [by_heart], given)

    assert Overview.of(last, records).memorised == pytest.approx(2 / 3)
    assert math.isnan(Overview.of(*visited([by_heart], np.array([0, 1, 1, 0]))[::-1]).memorised)


def test_classes_and_confusions_are_counted():
    """The quality of each class, by name where there is one, and which other class the model predicts for how many."""
    records, last = visited(*two_visits())
    overview = Overview.of(last, records)
    ant, bee, two = overview.classes(np.array([2]), {0: "ant", 1: "bee"})

    assert (ant.label, ant.size, ant.accuracy, ant.num_suspects, ant.rival) == ("ant", 1, 1.0, 0, None)
    assert (bee.label, bee.size, bee.accuracy, bee.num_suspects, bee.rival) == ("bee", 2, 0.0, 1, 2)
    assert (bee.margin, bee.learned, bee.forgotten) == (1.5, 1.0, 0.5)
    assert (two.label, two.learned, two.rival) == (2, 2.0, None)
    assert [part.tolist() for part in overview.confusion()] == [[1, 1], [0, 2], [1, 1]]


def test_regions_of_the_map_have_their_samples():
    """A region holds what is in it, low ends included and high ones not; a sample never seen is in none."""
    records, last = visited(*two_visits())
    records["visits"][0] = 0
    overview = Overview.of(last, records)

    assert overview.region().tolist() == [1, 2, 3]
    assert overview.region(margin=(-1, 3)).tolist() == [1, 3]
    assert overview.region(variability=(1, 2)).tolist() == [2]
    with pytest.raises(ValueError, match=r"variability must be a range \(low, high\) with low <= high, got \(2, 1\)"):
        overview.region(variability=(2, 1))
    with pytest.raises(ValueError, match="margin must be a range"):
        overview.region(margin=(math.nan, 1))


@pytest.mark.parametrize("sharpened", [1.0, 3.0])
def test_calibration_tells_a_model_that_is_too_sure(sharpened):
    """Labels drawn as the model says give no error; a model three times as sure of itself is found out."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 1.5
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = (chance.cumsum(1) < rng.random(20_000)[:, None]).sum(1)
    records, last = visited([sharpened * logits], given)
    found = Overview.of(last, records).calibration()

    assert found.counts.sum() == 20_000
    gap = found.mean(found.confidence) - found.mean(found.accuracy)
    if sharpened == 1:
        assert found.error < 0.02
    else:
        assert found.error > 0.15
        assert gap == pytest.approx(found.error, abs=0.01)


@pytest.mark.parametrize("change", [lambda losses: 0.9 * losses + 0.4, lambda losses: 2 * losses])
def test_other_losses_tell_no_confidence(change):
    """Smoothed or weighted losses are no cross entropies of the predictions: how sure the model was is unknown."""
    logits = np.random.default_rng(1).normal(size=(500, 4)) * 2
    records, last = visited([logits], np.arange(500) % 4)

    assert Overview.of(last, records).calibration() is not None
    assert Overview.of(change(last), records).calibration() is None


def test_nothing_is_known_without_predictions():
    """Without predictions every field is unknown, and there are no classes."""
    overview = Overview.of(np.ones(3, np.float32), None)

    assert not overview.is_known
    assert np.isnan(overview.margin).all()
    assert overview.calibration() is None
    assert overview.classes(np.array([0]), {}) == []
    assert not len(overview.region((-9, 9)))
