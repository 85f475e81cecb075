"""Reports of the user's batches are learned together as they would be one by one."""

import numpy as np
import pytest

from learnit_r8.engine.feed.followed import FollowedBatches
from learnit_r8.engine.pace import Pace
from learnit_r8.engine.settings import OwnBatches
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.agreement import Agreement
from learnit_r8.schedules.budget import Budget
from learnit_r8.sources.chunk import FollowedChunk
from learnit_r8.table.labels.predictions import PredictionRows
from learnit_r8.table.names import Members
from learnit_r8.table.table import SampleTable
from tests.drive import observe


def source_of(table):
    """The source of the user's own batches, for a table."""
    pace = Pace(Budget(steps=1000), FollowedBatches.steps_per_pass)
    announcer = Announcer([], pace.where)
    return FollowedBatches(table, pace=pace, settings=OwnBatches(), announcer=announcer, agreement=Agreement())


def drawn(source, members):
    """A batch of these samples, handed out."""
    source.offered = FollowedChunk(source.table, 0, None, 1, 0, members.indices, members), True
    return source.next()


def batches_of(kind, rng, num_samples=60, count=120):
    """Members and reports of batches in which samples come again, also within one, and some are not kept."""
    for number in range(count):
        size = int(rng.integers(1, 9))
        counts = rng.integers(0 if size > 1 else 1, 4, size) if kind == "parts" and number % 3 else None
        total = size if counts is None else int(counts.sum())
        indices = rng.integers(-1 if number % 5 == 0 else 0, num_samples, total)
        means = float(rng.gamma(2)) if kind == "means" else rng.gamma(2, size=size)
        yield Members(indices, size, counts), means


def learned(kind, part_size, *, at_once, has_predictions=False):
    """The table after all of them."""
    table = SampleTable(0, batch_size=1, most_ids=100)
    table.storage.expect(60)
    source = source_of(table)
    table.storage.part_size, table.storage.batch_size = part_size, 8
    rng = np.random.default_rng(3)
    for members, means in batches_of(kind, rng):
        batch = drawn(source, members)
        trend = observe(table, float(np.mean(means)), 0.1)
        predictions = None
        if has_predictions:
            table.storage.evidence.make_records(PredictionRows(np.zeros((3, 1), np.float32), 4))
            predictions = PredictionRows(rng.integers(0, 4, (3, len(members.indices))).astype(np.float32), 4)
        source.report(batch.chunk, batch.slot, means, trend, predictions)
        if not at_once:
            source.hand_over()
    source.hand_over()
    return table


@pytest.mark.parametrize(
    ("kind", "part_size", "has_predictions"),
    [("rows", 1, False), ("rows", 1, True), ("means", 0, False), ("parts", 3, False), ("parts", 1, False)],
)
def test_reports_that_are_held_back_are_learned_as_if_each_was_learned_at_once(kind, part_size, has_predictions):
    """Whatever samples come again in whatever batches, the table is to the bit that of learning after each report."""
    one = learned(kind, part_size, at_once=True, has_predictions=has_predictions)
    two = learned(kind, part_size, at_once=False, has_predictions=has_predictions)

    assert one.usage_count.sum() > 300
    assert one.storage.records.whole.tobytes() == two.storage.records.whole.tobytes()
    if has_predictions:
        assert one.storage.evidence.whole.tobytes() == two.storage.evidence.whole.tobytes()


def test_each_time_that_a_sample_comes_is_a_visit():
    """A sample that is in a batch twice has two uses, and its mean is that of both losses."""
    table = SampleTable(0, batch_size=1, most_ids=100)
    source, members = source_of(table), table.storage.find(["a", "b", "a"], are_indices=False)
    batch = drawn(source, members)
    table.storage.part_size = 1
    source.report(batch.chunk, batch.slot, np.array([1.0, 2.0, 4.0]), 1.0)
    source.hand_over()

    assert table.usage_count.tolist() == [2, 1]
    assert table.mean.tolist() == [2.5, 2.0]
    assert table.last.tolist() == [4.0, 2.0]


def test_a_batch_that_is_out_is_learned_when_it_is_reported():
    """One that is not reported when others are learned waits; one that is given up is never learned."""
    table = SampleTable(0, batch_size=1, most_ids=100)
    source = source_of(table)
    members = [table.storage.find([name], are_indices=False) for name in "abc"]
    first, second, third = (drawn(source, each) for each in members)
    table.storage.part_size = 1
    source.report(second.chunk, second.slot, np.array([2.0]), 1.0)
    source.hand_over()
    source.abandon(third)

    assert table.usage_count.tolist() == [0, 1, 0]
    source.report(first.chunk, first.slot, np.array([1.0]), 1.0)
    source.hand_over()
    assert table.usage_count.tolist() == [1, 1, 0]
