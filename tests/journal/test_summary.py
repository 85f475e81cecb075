"""The limits of a journal."""

from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.events.condenser import steps_of
from learnit_r8.journal.writer import MOST_OF_A_KIND, STEPS_AT_FIRST, STEPS_PER_SECOND, Summary
from tests.drive import NAN


def step(number, loss=1.0, *, seconds=None, expected=NAN):
    return events.StepDone(
        number, number * 0.01 if seconds is None else seconds, 0, 0.5, loss, expected, 0.1, 32, number % 2 == 0
    )


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 30), st.booleans()), min_size=1, max_size=30))
def test_records_of_steps_are_limited_and_complete(windows):
    """Whatever comes when: steps are never lost, and their records stay within the limit."""
    clock, summary, kept, num_steps = 0.0, Summary(0.0), [], 0
    summary._steps_left = 3.0
    for passed, count, with_event in windows:
        clock += passed
        happened = [steps_of(step(num_steps + i + 1)) for i in range(count)]
        num_steps += count
        if with_event:
            happened.insert(count // 2, events.BackupTaken(num_steps, 0.0))
        kept += summary.take(happened, clock)
    kept += summary.rest()
    records = [event for event in kept if isinstance(event, events.StepsDone)]

    assert sum(record.num_steps for record in records) == num_steps
    assert len(records) <= 3 + STEPS_PER_SECOND * clock + 2
    assert [record.step for record in records] == sorted(record.step for record in records)


def test_order_is_kept_while_the_limits_allow_it():
    """Steps before an event are written before it, those after it after it."""
    happened = [steps_of(step(1)), events.BackupTaken(1, 0.0), steps_of(step(2)), events.BackupTaken(2, 0.0)]

    assert [event.step for event in Summary(0.0).take(happened, 0.0)] == [1, 1, 2, 2]
    assert STEPS_AT_FIRST >= 1000


def test_flood_of_one_kind_is_cut_with_a_notice():
    """A loop that logs at every step leaves a part out, and the journal says so."""
    happened = [events.MetricsLogged(number, 0.0, number, {"a": 1.0}) for number in range(500)]
    kept = Summary(0.0).take(happened, 0.0)

    assert len(kept) == MOST_OF_A_KIND + 1
    assert kept[-1].text == (
        "436 of 500 MetricsLogged at once are not in the journal; log less often than at every step."
    )
