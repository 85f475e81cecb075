"""The backup timer takes backups when they are due, of states in which every number is finite."""

import numpy as np
import pytest

from learnit_r8 import RamBackup, events
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.agreement import Agreement
from learnit_r8.recovery.backup_timer import MOST_LASTING, BackupTimer
from learnit_r8.testing import record_events
from learnit_r8.triggers import Elapsed, as_trigger

NAN, INF = float("nan"), float("inf")


def of(every=10, backup=None, agreement=None):
    heard = record_events()
    announcer = Announcer([heard], lambda: (0, 0.0))
    return BackupTimer(as_trigger("backup_every", every), announcer, backup or RamBackup(), agreement), heard


def ask(timer, step, state, *, is_calm=True):
    """Ask at a step; the witness of a backup that was taken is noted at once."""
    elapsed = Elapsed(step, step, float(step), step - 1, step - 1, float(step - 1))
    damaged = timer.take_if_due(elapsed, step, lambda: state, lambda: None, is_calm=is_calm)
    if timer.backup.awaits_witness:
        timer.backup.newest.witness.append(np.arange(2))
    return damaged


def test_first_backup_is_taken_at_once():
    """Without any backup one is due at once, whatever is suspected, and then at its interval."""
    timer, _ = of()
    for step in range(25):
        ask(timer, step, {"w": np.ones(2)}, is_calm=step > 0)

    assert [each.step for each in timer.backup.backups] == [0, 10, 20]


def test_backup_waits_while_something_is_suspected():
    """A backup that is due waits until nothing is suspected."""
    timer, _ = of()
    for step in range(16):
        ask(timer, step, {"w": np.ones(2)}, is_calm=not 8 < step < 13)

    assert [each.step for each in timer.backup.backups] == [0, 13]


def test_look_that_is_asked_for_after_a_backup_is_not_lost():
    """With two batches out, a step is asked about twice: a look asked for in between comes with the next step."""
    timer, _ = of()
    for step in range(11):
        ask(timer, step, {"w": np.ones(2)})
    timer.look_soon()
    ask(timer, 10, {"w": np.ones(2)})

    assert ask(timer, 11, {"w": np.array([1.0, NAN])}) == "w"


@pytest.mark.parametrize("bad", [NAN, INF])
def test_damaged_state_is_not_taken(bad):
    """A state with a number that is not finite is not taken; its array is named."""
    timer, heard = of()
    ask(timer, 0, {"w": np.ones(2)})

    assert ask(timer, 10, {"w": np.array([1.0, bad])}) == "w"
    assert [event.array for event in heard.of(events.DamageFound)] == ["w"]
    assert (len(timer.backup.backups), timer.clean_step) == (1, 0)


def test_infinities_of_the_first_state_are_meant():
    """An array that holds infinities from the start, as masks do, is meant to; one with NaN is not."""
    timer, _ = of()
    assert ask(timer, 0, {"mask": np.array([0.0, -INF]), "w": np.ones(2)}) == ""

    assert timer.meant == {"mask"}
    assert of()[0].take({"w": np.array([NAN])}, 0, 0) == "w"


def test_array_that_is_damaged_again_and_again():
    """An array that is NaN again whatever is done is not checked any more, after a warning that names it."""
    timer, _ = of()
    ask(timer, 0, {"w": np.ones(2)})
    for _ in range(MOST_LASTING - 1):
        timer.note_lasting("w")
    assert timer.damage_in({"w": np.array([NAN])}) == "w"
    with pytest.warns(RuntimeWarning, match="'w' in the model's state is not finite again and again"):
        timer.note_lasting("w")

    assert timer.damage_in({"w": np.array([NAN])}) == ""


def test_no_memory_keeps_the_previous_backup():
    """Without memory for a copy the previous backup is kept, and one warning says so."""

    def no_memory(state):
        raise MemoryError

    timer, _ = of(backup=RamBackup(no_memory))
    with pytest.warns(RuntimeWarning, match="no memory for the backup at step 0; the previous one is kept"):
        timer.take({"w": np.ones(2)}, 0, 0)

    assert timer.backup.is_empty


def test_shortage_of_another_rank():
    """A backup for which another rank has no memory is missing on all, which must go back to the same step."""
    answers = iter(["", "rank 1"])

    class Other(Agreement):
        def agree(self, trouble):
            return next(answers)

    timer, _ = of(agreement=Other())
    with pytest.warns(RuntimeWarning, match="no memory for the backup at step 0"):
        timer.take({"w": np.ones(2)}, 0, 0)

    assert timer.backup.is_empty


def test_state_callback_that_returns_none():
    """A state callback that returns nothing is an error that says so."""
    timer, _ = of()
    with pytest.raises(TypeError, match="state_callback must return the state of the model, got None"):
        ask(timer, 0, None)


def test_state_that_cannot_be_read_is_of_unknown_health():
    """Where the state callback raises, or there is none, it is unknown whether the state is damaged."""
    timer, _ = of()

    def broken():
        raise KeyError("layer4")

    assert timer.damage_of(broken, unknown="?") == timer.damage_of(None, unknown="?") == "?"
    assert timer.damage_of(lambda: {"w": np.array([NAN])}) == "w"
