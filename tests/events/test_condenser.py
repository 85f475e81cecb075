import math

from learnit_r8 import events
from learnit_r8.events.codec import to_json
from learnit_r8.events.condenser import Condenser, merged, steps_of
from tests.drive import FakeClock, make, train
from tests.events.any_events import from_json

NAN = math.nan


def step(number, seconds, loss=1.0, **more):
    fields = {"epoch": 0, "progress": 0.5, "expected_loss": 1.0, "lr": 0.1, "batch_size": 4, "steady": False} | more
    return events.StepDone(step=number, seconds=seconds, loss=loss, **fields)


def condensed(told, **how):
    heard = []
    condenser = Condenser(heard.append, **{"first": 0} | how)
    for event in told:
        condenser(event)
    condenser.flush()
    return heard


def test_fast_steps_become_one_event():
    """Steps within a quarter of a second become one event with their mean, extremes, sums and the newest rate."""
    told = [
        step(1, 0.0),
        step(2, 60.0, 3.0, lr=0.2),
        step(3, 60.1, 3.0, lr=0.2),
        step(4, 60.2, 2.0, expected_loss=NAN, own_seconds=0.01, steady=True, suspicion=0.3),
    ]
    first, _, rest = condensed(told)

    assert first == steps_of(told[0])
    assert rest == events.StepsDone(
        step=4, seconds=60.2, num_steps=2, epoch=0, progress=0.5, loss=2.5, lowest=2.0, highest=3.0, last_loss=2.0,
        expected_loss=1.0, lr=0.1, samples=8, num_steady=1, own_seconds=0.01, data_seconds=0.0, suspicion=0.3,
    )  # fmt: skip


def test_short_run_has_a_record_for_each_step_and_a_long_one_hundreds():
    """The first steps are not gathered; later ones over a share of the training so far, at most a quarter second."""
    short = condensed([step(number, 1e-5 * number) for number in range(200)], first=256)
    long = condensed([step(number, 1e-3 * number) for number in range(100_000)], first=256)

    assert len(short) == 200
    assert 1000 < len(long) < 1800
    assert max(each.num_steps for each in long) <= 251


def test_slow_steps_stay_single():
    """Steps longer than a quarter of a second are sent one by one, at once."""
    assert [event.num_steps for event in condensed([step(1, 1.0), step(2, 2.0), step(3, 3.0)])] == [1, 1, 1]


def test_order_stays():
    """Gathered steps are sent before an event of another kind."""
    heard = condensed([step(1, 0.0), step(2, 0.01), events.BackupTaken(2, 0.02), step(3, 0.03)])

    assert [(type(event).__name__, event.step) for event in heard] == [
        ("StepsDone", 1), ("StepsDone", 2), ("BackupTaken", 2), ("StepsDone", 3),
    ]  # fmt: skip


def test_step_without_a_time_is_sent():
    """A step whose time is NaN, as in a damaged file, is sent at once."""
    assert [event.num_steps for event in condensed([step(1, 1.0), step(2, NAN)])] == [1, 1]
    assert math.isnan(steps_of(step(2, NAN)).seconds)


def test_nothing_expected_is_nan():
    """Where the table predicted nothing, the condensed event predicts nothing."""
    assert math.isnan(condensed([step(1, 0.0, expected_loss=NAN)])[0].expected_loss)


def test_no_step_is_lost_in_a_run():
    """However fast a run is, its condensed events count every step and sample once."""
    heard, clock = [], FakeClock()
    r8 = make(100, batch_size=7, num_epochs=3, listeners=[Condenser(heard.append)], clock=clock)
    train(r8)
    r8.close()
    steps = [event for event in heard if isinstance(event, events.StepsDone)]

    assert sum(event.num_steps for event in steps) == r8.global_step
    assert sum(event.samples for event in steps) == 300
    assert not any(isinstance(event, events.StepDone) for event in heard)


def test_merged_records_weigh_by_steps():
    """Merging records gives what one record of all their steps would be."""
    parts = [
        steps_of(step(1, 0.0, 2.0, expected_loss=4.0, steady=True)),
        steps_of(step(2, 0.1, 5.0, expected_loss=NAN)),
        steps_of(step(3, 0.2, 2.0)),
    ]
    whole = merged([merged(parts[:2]), parts[2]])

    assert (whole.num_steps, whole.loss, whole.lowest, whole.highest, whole.last_loss) == (3, 3.0, 2.0, 5.0, 2.0)
    assert (whole.step, whole.seconds, whole.samples, whole.num_steady) == (3, 0.2, 12, 1)


def test_merged_records_keep_the_highest_suspicion():
    """Where a loss came near to being refused, the merged record says how near."""
    parts = [steps_of(step(number, 0.1 * number, suspicion=0.9)) for number in (1, 2)]

    assert merged(parts).suspicion == 0.9


def test_merging_is_condensing():
    """Records of single steps merged are the record that the condenser makes of the steps."""
    told = [step(number, 3600.0, 1.5 * number, own_seconds=0.25, suspicion=0.1 * number) for number in (1, 2)]
    *_, together = condensed([step(0, -1.0), step(0, 3599.0), *told], every_seconds=9.0)

    assert merged([steps_of(event) for event in told]) == together


def test_condensed_steps_survive_json():
    """A condensed event comes back from its line as it was."""
    event = condensed([step(1, 0.0), step(2, 0.1)])[0]

    assert from_json(to_json(event)) == event
