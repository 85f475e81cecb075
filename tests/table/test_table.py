"""The sample table: estimates, use counts, and views of them."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import R8Scheduler, SampleTable
from learnit_r8.guard import LARGEST_LOSS
from learnit_r8.table.losses import EXACT, WHOLE_BATCH
from learnit_r8.table.quantiles import Quartile
from learnit_r8.table.storage import SampleStorage
from learnit_r8.table.trend import UntrainedLoss
from tests.drive import observe


def tell(table, indices, losses, part_size=EXACT):
    """Report at once: losses of samples, or one mean for all of them."""
    losses = np.array(losses, np.float64)
    table.storage.part_size = part_size
    trend = observe(table, float(losses.mean()), float(losses.min()))
    sizes = None if part_size == EXACT else np.array([len(indices)])
    means = losses if part_size == EXACT else losses.mean(keepdims=True)
    table.learner.learn(np.array(indices), means, sizes, np.full(len(means), trend))


def test_begins_with_nothing():
    """Nothing is known before the first report."""
    table = SampleTable(3, batch_size=2)

    assert len(table) == 3
    assert np.isnan([table.loss, table.last, table.mean]).all()
    assert table.usage_count.tolist() == [0, 0, 0]
    assert (table.source, table.quartiles(), table.hardest()) == ("nothing yet", [], [])
    assert math.isnan(table.trend)
    assert math.isnan(table.untrained_loss)


def test_exact_losses_by_hand():
    """An exact loss moves the estimate halfway, or by alpha, from the second visit on; the mean is over all visits."""
    table = SampleTable(2, batch_size=2)
    for losses in ([4.0, 1.0], [2.0, 1.0], [5.0, 1.0]):
        tell(table, [0, 1], losses)

    assert table.loss.tolist() == [4.0, 1.0]
    assert table.last.tolist() == [5.0, 1.0]
    np.testing.assert_allclose(table.mean, [11 / 3, 1.0])
    assert table.usage_count.tolist() == [3, 3]
    table = SampleTable(1, batch_size=1, alpha=1.0)
    for loss in (8.0, 2.0):
        tell(table, [0], [loss])
    assert table.loss.tolist() == [2.0]


@pytest.mark.parametrize("part_size", [EXACT, WHOLE_BATCH])
@pytest.mark.parametrize("estimator", ["relative", "additive"])
def test_negative_losses(estimator, part_size):
    """Losses below zero are learned like others."""
    table = SampleTable(4, batch_size=2, estimator=estimator)
    for _ in range(40):
        tell(table, [0, 1], [-3.0, -3.0], part_size)
        tell(table, [2, 3], [-1.0, -1.0], part_size)

    assert table.loss[0] == table.loss[1] < table.loss[2] == table.loss[3]
    assert table.mean.tolist() == [-3.0, -3.0, -1.0, -1.0]


def test_turning_negative_keeps_the_estimates():
    """The first loss below zero changes how estimates are stored, not their values."""
    table = SampleTable(8, batch_size=2)
    for first, loss in ((0, 1.0), (2, 2.0), (4, 3.0)):
        tell(table, [first, first + 1], [loss, loss], WHOLE_BATCH)
    before, trend = table.loss, table.trend
    tell(table, [6, 7], [-1.0, -1.0], WHOLE_BATCH)

    np.testing.assert_allclose(table.loss[:6] - table.trend, before[:6] - trend, rtol=1e-5, atol=1e-6)


def test_use_saturates():
    """A use count stays at its largest value, while the averages continue."""
    table = SampleTable(1, batch_size=1)
    tell(table, [0], [3.0])
    state = table.state_dict()
    state["usage_count"][:] = 2**16 - 1
    table.load_state_dict(state)
    tell(table, [0], [3.0])

    assert table.usage_count.tolist() == [2**16 - 1]
    assert table.loss.tolist() == [3.0]


@pytest.mark.parametrize("bad", [1e39, -1e39])
def test_huge_sample_losses_stay_finite(bad):
    """A single loss beyond float32 in a batch with an acceptable mean counts as the largest one."""
    table = SampleTable(2, batch_size=2)
    tell(table, [0, 1], [bad, 1.0])

    assert table.loss.tolist() == [np.float32(math.copysign(LARGEST_LOSS, bad)), 1.0]


def test_trend_by_hand():
    """The trend is the plain mean of the batch losses at first, then their average over half an epoch."""
    table = SampleTable(12, batch_size=2)
    befores = [observe(table, loss, loss) for loss in (4.0, 2.0, 3.0)]

    # Half an epoch is three batches: the weight is 2 / (3 + 1).
    assert befores == [4.0, 4.0, 3.0]
    assert table.trend == 3.0
    assert observe(table, 7.0, 7.0) == 3.0
    assert table.trend == 5.0


@given(st.integers(1, 100), st.integers(1, 100), st.lists(st.floats(0.01, 10), min_size=1, max_size=30))
def test_trend_stays_between_the_losses(num_samples, batch_size, losses):
    """The trend is an average: it never leaves the range of what was observed, however small the data."""
    table = SampleTable(num_samples, batch_size=batch_size)
    for loss in losses:
        observe(table, loss, loss)

        assert min(losses) * (1 - 1e-9) <= table.trend <= max(losses) * (1 + 1e-9)


@pytest.mark.parametrize(("num_samples", "count"), [(10, 2), (40, 2), (400, 10), (401, 11)])
def test_untrained_loss(num_samples, count):
    """The untrained loss is the mean of the first 5 % of an epoch, of two batches at least."""
    table = SampleTable(num_samples, batch_size=2)
    losses = [float(3 + number % 5) for number in range(30)]
    for loss in losses:
        observe(table, loss, loss)

    assert table.untrained_loss == pytest.approx(np.mean(losses[:count]))


@pytest.mark.parametrize("outlier", [None, 0, 5])
def test_untrained_loss_is_robust(outlier):
    """An outlier among the first losses does not move the untrained loss, wherever it is."""
    untrained = UntrainedLoss(3)
    for number, loss in enumerate([2.3, 2.2, 2.1, 2.0, 2.1, 1.9, 1.8, 1.9]):
        untrained.add(1e9 if number == outlier else loss)

    assert untrained.value == pytest.approx(2.2, rel=0.06)


def test_views():
    """Quarters are of the seen samples, the first ones larger; the hardest come highest first; all are copies."""
    table = SampleTable(10, batch_size=9, sample_ids=[f"image {number}" for number in range(10)])
    tell(table, range(9), [0.5 + number for number in range(9)])
    quarters, (sample, unseen) = table.quartiles(), table.describe(np.array([3, 9]))

    assert [q.num_samples for q in quarters] == [3, 2, 2, 2]
    assert [(q.low, q.high, q.mean) for q in quarters][:2] == [(0.5, 2.5, 1.5), (3.5, 4.5, 4.0)]
    assert [q.uses for q in quarters] == [1.0] * 4
    assert [each.index for each in table.hardest(3)] == [8, 7, 6]
    assert len(table.hardest(100)) == 9
    assert (sample.index, sample.name, sample.loss, sample.last, sample.mean) == (3, "image 3", 3.5, 3.5, 3.5)
    assert [type(value) for value in (sample.loss, sample.last, sample.mean)] == [float] * 3
    assert type(sample.index) is type(sample.usage_count) is int
    assert unseen.usage_count == 0
    assert np.isnan([unseen.loss, unseen.last, unseen.mean]).all()
    np.testing.assert_array_equal(table.avg_loss, table.loss)
    for values in (table.loss, table.last, table.mean, table.usage_count):
        values[:] = 7
    assert (table.loss[0], table.last[0], table.mean[0], table.usage_count[0]) == (0.5, 0.5, 0.5, 1)


def test_views_beside_a_thread_that_trains(monkeypatch):
    """What a view shows of a sample is of one moment, whoever learns meanwhile, and the lock is free as it computes."""
    monkeypatch.setattr("learnit_r8.table.records.SLICE", 64)
    table, stop, is_free = SampleTable(2000, batch_size=20), threading.Event(), []
    rank = Quartile.__init__

    def watched(quartile, *given, **fields):
        other = threading.Thread(
            target=lambda: is_free.append(table.lock.acquire(timeout=1) and not table.lock.release())
        )
        other.start()
        other.join()
        rank(quartile, *given, **fields)

    def train():
        value = 1.0
        while not stop.is_set():
            value = 3 - value
            with table.lock:
                tell(table, range(2000), [value] * 2000)

    tell(table, range(2000), [1.0] * 2000)
    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    monkeypatch.setattr(Quartile, "__init__", watched)
    found = [sample for _ in range(30) for sample in table.describe(np.arange(0, 2000, 7))]
    hardest, quarters, suspects = table.hardest(3), table.quartiles(), table.suspects()
    stop.set()
    thread.join()

    # After n visits of 1, 2, 1, ... the last loss and the mean tell how many there were.
    for sample in found:
        odd = sample.usage_count % 2
        mean = (3 * sample.usage_count - odd) / (2 * sample.usage_count)
        assert sample.last == (1.0 if odd else 2.0)
        assert sample.mean == pytest.approx(mean, rel=1e-3)
    assert (len(hardest), len(quarters), len(suspects.indices)) == (3, 4, 0)
    assert is_free == [True] * 4


def test_groups():
    """Groups are numbered in the order of their labels; without names a sample is called by its index."""
    assert [sample.name for sample in SampleTable(3, batch_size=1).describe([2, 0])] == [2, 0]
    table = SampleTable(4, batch_size=3, groups=["dog", "cat", "dog", "cat"])

    assert table.storage.group_labels.tolist() == ["cat", "dog"]
    assert table.storage.records.take(np.arange(4))["group"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("num_samples", {"num_samples": 7, "sample_ids": None}),
        ("batch_size", {"batch_size": 4}),
        ("estimator", {"estimator": "additive"}),
        ("sample_ids", {"sample_ids": list("abcdeg")}),
    ],
)
def test_identity_tells_data_apart(name, change):
    """Tables of other sizes, another estimator or other names have another identity, and equal ones the same."""
    arguments = {"num_samples": 6, "batch_size": 3, "sample_ids": list("abcdef")}
    one, other = SampleStorage(**arguments).identity(), SampleStorage(**{**arguments, **change}).identity()

    assert SampleStorage(**arguments).identity() == one
    assert other[name] != one[name]


def test_trend_of_another_meaning_is_not_gone_back_to():
    """After the first loss below zero the trend is that of offsets: that of a backup from before does not count."""
    table = SampleTable(100, batch_size=10)
    observe(table, 2.0, 2.0)
    mark = table.learner.trend_mark
    observe(table, -1.0, -1.0)
    trend = table.learner.trend_mark
    table.learner.go_back_to(mark)

    assert table.learner.trend_mark == trend


@pytest.mark.parametrize("level", [2.0, -1.0])
def test_trend_begins_anew_before_the_first_loss(level):
    """Back where no loss was known, none of those since is a part of it; what is known of samples stays usable."""
    table = SampleTable(100, batch_size=10)
    mark = table.learner.trend_mark
    tell(table, range(10), [1e6], WHOLE_BATCH)
    table.learner.go_back_to(mark)
    for start in range(10, 100, 10):
        tell(table, range(start, start + 10), [level], WHOLE_BATCH)

    assert table.trend == table.untrained_loss == level
    np.testing.assert_allclose(table.loss, level)


def test_an_early_outlier_is_scaled_down_with_its_samples():
    """A loss that the first ones do not believe is learned as less, and so are the losses of its parts."""
    trend = SampleTable(1000, batch_size=10).storage.batch_trend
    for loss in np.linspace(1.0, 1.4, 20):
        trend.believed(loss, np.full(2, loss), loss)
        trend.observe_early(loss, loss)
    mean, means, lowest = trend.believed(50.0, np.array([40.0, 60.0]), 40.0)

    assert mean < 5
    assert means.tolist() == pytest.approx([0.8 * mean, 1.2 * mean])
    assert lowest == pytest.approx(0.8 * mean)


def test_groups_have_the_means_of_their_seen_samples():
    """Mean and counts of each group are those of a slow count, the highest first, groups that were not seen last."""
    rng = np.random.default_rng(0)
    labels = np.array([f"source {number}" for number in rng.integers(0, 70, 500)] + ["rare"] * 3)
    losses = rng.random(400) * 3
    r8 = R8Scheduler(503, batch_size=400, num_epochs=1, groups=labels)
    ticket = r8.draw()
    r8.report(ticket, losses)
    table, where = r8.table, ticket.indices
    slow = {
        label: (int((labels == label).sum()), losses[labels[where] == label])
        for label in dict.fromkeys(labels.tolist())
    }
    found = table.groups()

    assert [group.mean for group in found if group.num_seen] == sorted(
        (group.mean for group in found if group.num_seen), reverse=True
    )
    assert {group.label: (group.num_samples, group.num_seen) for group in found} == {
        label: (count, len(seen)) for label, (count, seen) in slow.items()
    }
    for group in found:
        assert not group.num_seen or group.mean == pytest.approx(slow[group.label][1].mean(), rel=1e-6)
    assert SampleTable(4, batch_size=2).groups() == []
    with pytest.raises(ValueError, match="groups must have at most 65535 distinct labels, got 65536"):
        SampleTable(2**16, batch_size=2, groups=np.arange(2**16))
