import json
import math

from hypothesis import example, given
from hypothesis import strategies as st

from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.backups import Backup
from learnit_r8.recovery.rate_limit import NormLimit, RateLimit
from learnit_r8.recovery.state import (
    BROKEN,
    LEAST_BAD,
    LEAST_TRIAL,
    MOST_BAD,
    RELAPSE_UPDATES,
    IncidentLog,
    Lineage,
    RecoveryState,
    Refusals,
    of_version_4,
)


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


def test_two_in_a_row_are_worth_a_look():
    """One loss that is not finite is left out; the second in a row is looked into."""
    refusals = Refusals()
    refusals.refused(is_finite=False)
    assert not refusals.is_worth_looking
    refusals.refused(is_finite=False)

    assert refusals.is_worth_looking


def test_good_batch_ends_the_row():
    """A good batch between two bad ones is a free test: the weights are healthy."""
    refusals = Refusals()
    for _ in range(9):
        refusals.refused(is_finite=False)
        refusals.good()

    assert (refusals.in_a_row, refusals.is_worth_looking) == (0, False)


def test_only_weights_that_get_further_end_the_count_in_vain():
    """A good batch after which the weights are no further than before leaves the count as it is, on file, too."""
    refusals, again = Refusals(), Refusals()
    refusals.refused(is_finite=False)
    refusals.probed()
    refusals.good(gains=False)
    again.load_state_dict(refusals.state_dict())
    assert (again.in_a_row, again.in_vain) == (0, 2)
    again.good()

    assert again.in_vain == 0


@given(st.lists(st.booleans(), max_size=99))
@example([True] * 9)
def test_limit_stays_within_its_bounds(script):
    """The row that is looked into doubles while weights prove healthy, and shrinks with good batches, within bounds."""
    refusals = Refusals()
    for is_healthy in script:
        refusals.weights_are_healthy() if is_healthy else refusals.good()
        assert LEAST_BAD <= refusals.bad_limit <= MOST_BAD


@given(st.lists(st.booleans(), max_size=300))
def test_counts_of_the_last_hundred(script):
    """Share and verdict are those of the last hundred batches, and all is well after as many good ones."""
    refusals = Refusals()
    for is_refused in script:
        refusals.refused(is_finite=True) if is_refused else refusals.good()
    assert refusals.is_broken == (sum(script[-100:]) > BROKEN)
    assert 0 < refusals.share_of(0) < 1
    assert refusals.share_of(100) <= refusals.share_of(0)
    for _ in range(100):
        refusals.good()

    assert not refusals.outcomes


OLD = {
    "restored": 3, "probes": 4, "transient": 5, "kinds": [["spike", 2, "step 7: the batch"]], "steady_left": 6,
    "looked_last_at": 7, "num_equal": 1, "is_look_due": True, "is_on_trial": True, "witnesses": [],
    "incident": {
        "first_step": 9, "findings": ["step 9: healthy"], "is_restored": True, "reason": "spike", "num_refused": 2,
        "num_probes": 3, "cause": "", "num_left_out": 0, "kind": "spike", "is_lasting": False, "held_from_start": 0.0,
    },
    "limit": {
        "ceiling": 0.025, "slow_above": 0.05, "calm": 3, "hits": 1, "gentle_left": 2, "best": None, "may_rise": False,
        "top": 0.1, "goal": None, "is_back": True, "before_trial": 0.0, "since": 100, "past": "",
    },
    "norms": {"is_on": True, "is_used": True, "since": 8, "until": None, "norms": [0.5]},
    "lineage": {
        "updates": 40, "relapses": 1, "rises": True, "proving": [30, 64, True], "rates": [0.1], "fuse": [38, 2, 1],
        "gained": 31, "lowered": [3, 0.25], "healthy_at": [11],
        "progress": {
            "recent": [1.0], "reported": [2.0], "first": [3.0], "start": 4.0, "untrained": None, "gap": 2,
            "record": 3.5, "peak": [0.2, 17], "wait": [42, 32], "above_from": 56,
        },
    },
    "refusals": {"in_a_row": 1, "bad_in_a_row": 1, "bad_limit": 4, "outcomes": [True, False]},
    "first_steps": {
        "trials": 2, "measure_from": 12, "size": 8, "changes": [[1.0, -0.5]], "compared": None, "last": None,
        "first": None, "trial": None, "dead": [[9, 3]], "num_dead": 1, "alive": [0.75], "is_reviving": True,
    },
}  # fmt: skip
"""What version 4 saved."""


def test_state_of_version_4():
    """Every number that version 4 has saved is where this version looks for it, under the name of its field."""
    log = IncidentLog(Announcer([], lambda: (0, 0.0)))
    state = RecoveryState(RateLimit(0.5, 16), NormLimit(), log)
    state.load_state_dict(of_version_4(OLD))
    lineage, progress, early = state.lineage, state.lineage.progress, state.early

    assert (lineage.since, lineage.trial, lineage.is_proving, lineage.failed_at) == (30, 64, True, 38)
    assert (lineage.num_restores, lineage.num_older, lineage.num_lowered, lineage.level_before) == (2, 1, 3, 0.25)
    assert (lineage.gained, list(lineage.healthy_at), lineage.rates.maxlen) == (31, [11], 16)
    assert (progress.peak, progress.peak_at, progress.wait_until, progress.look_wait) == (0.2, 17, 42, 32)
    assert (progress.record, progress.above_from, math.isnan(progress.untrained)) == (3.5, 56, True)
    assert (state.limit.failed, state.limit.lowest, state.limit.best, state.limit.is_on) == (
        0.05,
        0.025,
        math.inf,
        True,
    )
    assert (state.refusals.in_vain, state.refusals.bad_limit, sum(state.refusals.outcomes)) == (1, 4, 1)
    assert (log.num_restored, log.num_probes, log.num_transient, log.current.step) == (3, 4, 5, 9)
    assert log.kinds == {"spike": (2, "step 7: the batch")}
    assert (early.num_trials, early.dead.found, early.dead.shares, early.changes) == (
        2,
        [[9, 3]],
        [0.75],
        [[1.0, -0.5]],
    )
    assert (state.steady_left, state.looked_last_at, state.num_equal, state.is_look_due) == (6, 7, 1, True)
    assert (state.norms.until, state.norms.norms) == (math.inf, [0.5])


def test_a_state_that_is_saved_is_the_same_when_it_is_loaded():
    """Of every part, also after the conversion; a second one changes nothing."""
    one, two = (
        RecoveryState(RateLimit(0.5, 16), NormLimit(), IncidentLog(Announcer([], lambda: (0, 0.0)))) for _ in range(2)
    )
    one.load_state_dict(of_version_4(OLD))
    saved = json.loads(json.dumps(one.state_dict()))
    two.load_state_dict(of_version_4(saved))

    assert two.state_dict() == one.state_dict() == saved


def test_an_older_state_without_first_steps():
    """Version 3 knew only how many trials there were; nothing of it was on trial."""
    old = {name: value for name, value in OLD.items() if name not in ("first_steps", "norms", "kinds", "transient")}
    new = of_version_4({**old, "rate_trials": 2})

    assert (new["early"]["num_trials"], new["early"]["trial"], new["is_on_trial"]) == (2, None, False)
