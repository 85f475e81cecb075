"""The recovery ladder: the age of weights, which states are tried, and how repeated spikes lower the rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learnit_r8.recovery.incident_state import Move, RecoveryState
from learnit_r8.recovery.ladder import RollbackDepth, WeightAge, rollback_order

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, events
from learnit_r8.recovery.policy import EARLY_STEPS
from learnit_r8.testing import ToyTask, record_events


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 100)), max_size=12))
def test_age_counts_the_steps_that_are_in_the_weights(runs):
    """Steps that a restore undid are not part of the age, however many restores there were."""
    lineage, step, age, ages = WeightAge(), 0, 0, {0: 0}
    for length, back in runs:
        for _ in range(length):
            step, age = step + 1, age + 1
            ages[step] = age
        known = sorted(ages)
        to = known[back % len(known)]
        assert [lineage.age(at) for at in known] == [ages[at] for at in known]
        # The refused step is counted, and no state is taken after it.
        step, age = step + 1, ages[to]
        lineage.went_back(now=step, to=to)
        ages = {at: age for at, age in ages.items() if at <= to}
        assert lineage.age(step + 1) == age + 1
    again = WeightAge()
    again.load_state_dict(lineage.state_dict())
    for at in range(step + 2, step + 5):
        assert again.age(at) == lineage.age(at)


@pytest.mark.parametrize("isolated", [False, True])
def test_damage_that_shows_at_an_age_is_not_taken_for_a_sample(isolated):
    """Weights that fail after so many steps, whatever the batches: the ladder passes what they descend from.

    The batches that are refused may well share samples by accident; that they come on time tells.
    """
    task, heard = ToyTask(1000), record_events()
    r8 = R8Scheduler(
        1000, batch_size=32, num_steps=1800, initial_lr=0.02, backup_every=50, listeners=[heard],
        state_callback=lambda: {**task.state(), "age": age}, load_callback=lambda state: load(state),
    )  # fmt: skip
    age = {"steps": 0, "poisoned": False}

    def load(state):
        task.load(state, True)
        age.update(state["age"])

    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            step = r8.global_step
            age["steps"] += 1
            age["poisoned"] |= step == 680
            is_bad = (age["poisoned"] and age["steps"] >= 820) or (isolated and step == 190)
            if r8.update_with_loss(task.losses(indices) * (math.nan if is_bad else 1.0)):
                task.step(lr)
    restored = [event.to_step for event in heard.of(events.RolledBack)]

    assert not age["poisoned"]
    assert len(restored) <= 6
    assert min(restored[isolated:]) < 680


def spiked(recovery, state, *, accepted, move, lr=1.0, step=600):
    """The state after a spike that came ``accepted`` good losses after the one before."""
    return recovery.refused(state._replace(accepted=accepted), 0, move=move, step=step, sudden=False, lr=lr)


@pytest.mark.parametrize(("accepted", "ceiling"), [(0, 0.1), (1, 0.004), (3, 0.004), (4, 0.02), (31, 0.02), (32, 0.1)])
def test_the_sooner_a_rate_fails_the_lower_the_next(accepted, ceiling):
    """If a state fails at once, its rate is not to blame; if a little later, the rate is far too high."""
    recovery = Recovery()
    first = spiked(recovery, RecoveryState(), accepted=0, move=Move.FIRST)
    again = recovery.restored(first, 500, distance=100, is_proven=True)

    assert first.ceiling == 0.5
    assert spiked(recovery, again, accepted=accepted, move=Move.AGAIN).ceiling == pytest.approx(ceiling)


def test_a_proven_state_is_tried_again_below_its_proven_rate():
    """The second try of a state stays below half of the rate at which it passed its trial."""
    recovery = Recovery()
    first = spiked(recovery, RecoveryState(), accepted=0, move=Move.FIRST, lr=1000.0)
    again = recovery.restored(first, 500, distance=100, is_proven=True, proven_lr=1.0)

    assert spiked(recovery, again, accepted=2, move=Move.AGAIN, lr=1000.0).ceiling == 0.5


def test_an_older_state_keeps_the_rate_if_the_last_failed_at_once():
    """With no good loss after a restore the weights are to blame and the rate stays; after some, the rate may be."""
    recovery = Recovery()
    first = recovery.restored(
        spiked(recovery, RecoveryState(), accepted=0, move=Move.FIRST), 500, distance=100, is_proven=False
    )

    assert spiked(recovery, first, accepted=0, move=Move.FURTHER).ceiling == 0.5
    assert spiked(recovery, first, accepted=8, move=Move.FURTHER).ceiling < 0.5


@pytest.mark.parametrize(("step", "factor", "ceiling"), [(EARLY_STEPS, 1.0, None), (EARLY_STEPS + 1, 0.5, 0.5)])
def test_the_first_spike_of_a_beginning_leaves_the_rate_alone(step, factor, ceiling):
    """A second one lowers it like any other."""
    recovery = Recovery()
    first = spiked(recovery, RecoveryState(), accepted=0, move=Move.FIRST, step=step)
    second = spiked(recovery, first, accepted=2, move=Move.STUCK, step=step + 3)

    assert (first.factor, first.ceiling) == (factor, ceiling)
    assert second.factor == 0.1
    assert second.ceiling <= 0.04


def test_a_proven_rate_is_soon_back():
    """After a first passing fault of the rate, the ceiling doubles up to the rate of the trial; not the second time."""
    recovery = Recovery()
    state = RecoveryState(ceiling=0.01, culprit=1.0, num_capped=1, proven_lr=0.6)
    again = state._replace(num_capped=2)
    for _ in range(recovery.calm_steps + 6 * recovery.relax_steps):
        state, again = recovery.accepted(state), recovery.accepted(again)

    assert 0.3 < state.ceiling < 0.6
    assert again.ceiling < 0.02


def test_too_high_a_rate_from_the_first_step_is_lowered_in_time():
    """If the rate is far too high from the start, a few tries lower it enough, though the first one is free."""
    task, heard = ToyTask(2048), record_events()
    r8 = R8Scheduler(
        2048, batch_size=32, num_steps=600, initial_lr=50.0, listeners=[heard], state_callback=task.state,
        load_callback=task.load, scheduler_mode="constant",
    )  # fmt: skip
    try:
        for indices, lr in r8.batch_iterator():
            if r8.update_with_loss(task.losses(indices)):
                task.step(lr)
            if r8.global_step == 600:
                break
    except TrainingDiverged:
        pytest.fail("gave up")
    assert task.loss() < 1


@pytest.mark.parametrize("depth", range(1, 9))
def test_eight_backups_deep_takes_five_tries(depth):
    """With a backup every 50 steps, five tries get past damage that is eight backups old."""
    steps = list(range(950, -1, -50))
    healthy, last, tries = 1000 - 50 * depth, 950, 1
    while last > healthy:
        last, tries = steps[rollback_order(steps, RollbackDepth(1000, last))[0]], tries + 1

    assert tries <= 5


def test_never_forward_within_an_incident():
    """Newer states are tried only if there is no other, as after a resume."""
    assert rollback_order([900, 800], RollbackDepth(1000, 700)) == [0, 1]
    assert rollback_order([900, 700], RollbackDepth(1000, 700)) == [1]


def test_after_a_raised_level_an_older_state_is_next():
    """As levels rise slowly, even a state that has passed its trial may be affected already."""
    proven = RecoveryState(tries=1, restored=500, is_proven=True)

    assert Recovery().plan(proven, steps={300, 500}) is Move.AGAIN
    assert Recovery().plan(proven, steps={300, 500}, is_level=True) is Move.FURTHER
    assert Recovery().plan(proven, steps={500}, is_level=True) is Move.AGAIN
