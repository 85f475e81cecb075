"""Backups in RAM: what is kept, copied, trusted and saved."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import RamBackup
from learnit_r8.recovery.backups import Backup, spread_of


def filled(count=30, **more):
    """A backup after a state was offered every ten steps, with a witness after each."""
    backup = RamBackup(**more)
    for step in range(0, 10 * count, 10):
        backup.add_witness(backup.offer(np.full(2, step), step=step, draws=step), np.arange(2), 1.0)
    return backup


def test_empty_backup():
    """Before the first offer, and after clear(), there is nothing to restore."""
    cleared = filled()
    cleared.clear()

    for backup in (RamBackup(), cleared):
        assert (backup.is_empty, backup.newest) == (True, None)


@pytest.mark.parametrize(
    "state",
    [np.array([1.0, 2.0]), {}, [], 0, np.zeros(0), {"w": np.ones(2)}, torch.ones(2), None],
    ids=lambda state: type(state).__name__,
)
def test_any_value_is_a_backup(state):
    """Arrays, tensors, empty values and None are backups like any other."""
    backup = RamBackup()
    kept = backup.offer(state, step=3)

    assert not kept.is_on_disk
    assert repr(backup.clone(kept.state)) == repr(state)


def test_state_is_copied_in_and_out():
    """Changes of the weights, or of a copy that was handed out, do not change the backup; nor does what fails.

    A user's own copying function makes every copy.
    """
    backup, weights = RamBackup(), {"w": np.zeros(2)}
    kept = backup.offer(weights, step=0)
    weights["w"][:] = 9
    backup.clone(kept.state)["w"][:] = 9
    with pytest.raises(TypeError, match=r"state must be something that can be copied, got generator"):
        backup.offer((n for n in range(3)), step=300)
    own = RamBackup(clone=lambda state: [*state, "copy"])

    assert backup.clone(kept.state)["w"].tolist() == [0, 0]
    assert [each.step for each in backup.backups] == [0]
    assert own.clone(own.offer(["state"], step=0).state) == ["state", "copy", "copy"]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(2, 9))
def test_thinning_keeps_the_first_and_the_newest(gaps, most):
    """However far apart states are taken, the first and the newest are kept, in order, and no more than asked."""
    backup, steps = RamBackup(most=most), np.cumsum([0, *gaps]).tolist()
    for step in steps:
        backup.offer(np.full(2, step), step=step).witness.append(np.arange(2))
    kept = [each.step for each in backup.backups]

    assert (kept[0], kept[-1]) == (0, steps[-1])
    assert len(kept) == min(most, len(steps))
    assert kept == sorted(kept)
    assert all(each.state.tolist() == [each.step] * 2 for each in backup.backups)


def test_older_states_are_farther_apart():
    """The states between the first and the newest are the farther apart, the older they are."""
    kept = [each.step for each in filled(100).backups]
    ages = [kept[-1] - step for step in kept[1:-1]]

    assert kept[-2] == 980
    assert all(older > 1.4 * newer for older, newer in itertools.pairwise(ages))


def test_state_that_nothing_was_trained_on_after_is_replaced():
    """A state without a witness says nothing that the next one does not, and makes room for it; but for the first."""
    backup = filled(2)
    backup.offer("a", step=20)
    backup.offer("b", step=21)

    assert [each.step for each in backup.backups] == [0, 10, 21]
    backup = RamBackup()
    backup.offer("a", step=0)
    backup.offer("b", step=5)
    assert [each.step for each in backup.backups] == [0, 5]


def test_witness_of_an_accumulated_step():
    """A witness is complete once it has as many batches as make one update."""
    backup = RamBackup()
    backup.witness_size = 2
    kept = backup.offer("a", step=0)
    backup.add_witness(kept, np.arange(2), 1.0)
    assert not kept.is_closed
    backup.add_witness(kept, np.arange(2), 1.0)

    assert kept.is_closed


def test_going_back_forgets_what_came_later():
    """States of weights that were given up are forgotten."""
    backup = filled(5)
    backup.forget_after(20)

    assert [each.step for each in backup.backups] == [0, 10, 20]


def test_memory_is_reused():
    """In the long run no new arrays are made: one more than the states that are kept."""
    made = []

    def copy_into(buffer, state):
        buffer[:] = state
        return buffer

    filled(200, clone=lambda state: made.append(1) or state.copy(), copy_into=copy_into, most=4)

    assert len(made) == 5


def test_lent_memory_is_left_alone():
    """A state that another thread reads is not overwritten, although it is not kept any more."""
    backup = filled(2, most=2)
    lent = backup.newest.state
    backup.lend(lent)
    for step in (20, 30, 40, 50):
        backup.offer(np.full(2, step), step=step).witness.append(np.arange(2))

    assert lent.tolist() == [10, 10]


def test_level_and_spread():
    """Level and spread are those of the last 32 losses before a backup; without eight, its record stands for them."""
    backup = Backup(0, 0, recent=(9.0,) * 8 + (1.0, 2.0) * 16, losses=[4.0, 6.0])
    few = Backup(0, 0, recent=(1.0,) * 7, losses=[4.0, 6.0])

    assert (backup.level, backup.usual, backup.spread) == (1.5, 1.5, pytest.approx(1.4826 * 0.5))
    assert (math.isnan(few.level), few.usual, few.record) == (True, 5.0, 5.0)


@given(st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_spread(losses):
    """The spread is that of a plain computation, and never below a thousandth of the median."""
    middle = float(np.median(losses)) if losses else 0.0
    plain = 1.4826 * float(np.median([abs(loss - middle) for loss in losses])) if losses else 0.0

    assert spread_of(losses) == (pytest.approx(max(plain, 1e-3 * abs(middle))) if len(losses) > 1 else 0)


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), max_size=3),
    st.lists(st.floats(-1e9, 1e9), max_size=5),
    st.booleans(),
)
def test_witness_survives_a_checkpoint(witness, recent, is_proven):
    """What is saved of a backup is loaded as that of a checkpoint, with equal values."""
    backup = Backup(
        7, 5, recent=tuple(recent), witness=[np.array(each) for each in witness], losses=recent[:1], is_proven=is_proven
    )
    plain = backup.state_dict()
    loaded = Backup.from_plain({**json.loads(json.dumps(plain, default=np.ndarray.tolist))})

    assert loaded.is_on_disk
    assert repr(loaded.state_dict()) == repr(plain)


def test_new_record():
    """Where losses mean something else, the last replay is the record, and what came before is forgotten."""
    backup = Backup(0, 0, recent=(1.0,) * 32, losses=[1.0], is_proven=True)
    assert backup.level == 1.0
    backup.replayed = 7.0
    backup.begin_anew(backup.replayed)

    assert (backup.record, backup.usual, backup.is_proven) == (7.0, 7.0, False)
