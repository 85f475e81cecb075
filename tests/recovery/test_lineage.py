import json

from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.lineage import LEAST_TRIAL, RELAPSE_UPDATES, Lineage
from learnit_r8.recovery.ram_backup import Backup


def test_trial_lasts_its_updates():
    """An alarm within the trial of a restored state is a relapse, one after it is not."""
    lineage = Lineage()
    lineage.begin(Backup(100, 90), LEAST_TRIAL)
    assert (lineage.updates, lineage.since_restore, lineage.is_on_trial) == (90, 0, True)
    lineage.updates += LEAST_TRIAL

    assert not lineage.is_on_trial


def test_weights_get_further_by_updates_after_a_restore_or_by_newer_states():
    """They gain by enough updates since the restore, or where each state put back is newer than those before."""
    lineage = Lineage()
    lineage.updates = 90
    assert lineage.gains()
    for updates, gains in ((60, False), (80, False), (90 + LEAST_TRIAL, True), (40, False)):
        lineage.begin(Backup(updates, updates), LEAST_TRIAL)
        assert lineage.gains() is gains
    lineage.updates += LEAST_TRIAL

    assert lineage.gains()


def test_weights_that_were_never_restored_are_not_on_trial():
    """Before the first restore no alarm is a relapse."""
    assert not Lineage().is_on_trial


def test_slow_rises_that_come_back_are_the_loss_itself():
    """Two gradual rises soon after restores are what training does; sudden ones, or ones far apart, are not."""
    lineage = Lineage()
    for is_sudden, rises in ((True, False), (False, False), (False, True)):
        lineage.note_restore(is_sudden=is_sudden)
        assert lineage.rises_again is rises
    lineage.updates += 4 * lineage.trial + RELAPSE_UPDATES

    assert not lineage.rises_again


@given(st.integers(0, 10**9), st.integers(0, 9), st.booleans(), st.integers(0, 10**6))
def test_state(updates, relapses, rises, trial):
    """Saved as plain values and loaded, a lineage is the same."""
    lineage, other = Lineage(), Lineage()
    lineage.updates, lineage.num_older = updates + 7, 2
    lineage.begin(Backup(updates, updates), trial)
    lineage.relapses, lineage.rises = relapses, rises
    lineage.rates.append(0.1)
    lineage.num_lowered, lineage.level_before = 3, 0.25
    lineage.healthy_at.extend((updates, updates + 40))
    other.load_state_dict(json.loads(json.dumps(lineage.state_dict())))
    fields = vars(lineage).keys() - {"progress", "gained"}

    assert {name: vars(other)[name] for name in fields} == {name: vars(lineage)[name] for name in fields}
