import json
from collections import deque
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.backups import Backup, RunningVariances
from learnit_r8.recovery.rate_limit import NormLimit, RateLimit
from learnit_r8.recovery.saved_fields import SavedFields
from learnit_r8.recovery.state import (
    LEAST_BAD,
    LEAST_TRIAL,
    MOST_BAD,
    RELAPSE_UPDATES,
    Explosions,
    IncidentLog,
    Lineage,
    RecoveryState,
    Refusals,
)
from learnit_r8.state.tree import Sum


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


@pytest.mark.parametrize(
    ("shares", "are_of_weights", "are_of_batches"),
    [
        ([0.6], True, False),
        ([0.59], False, False),
        ([0.59, 0.5], True, False),
        ([0.59, 0.49], False, False),
        ([0.0, 0.0, 0.9], False, True),
        ([0.0, 0.6, 0.9], True, False),
        ([0.9, 0.9, 0.0], False, False),
        ([0.0] * 8 + [0.9] * 4, False, False),
        ([0.0] * 8 + [0.9] * 5, True, False),
        ([0.0, 0.1], False, False),
    ],
)
def test_whose_fault_explosions_are(shares, are_of_weights, are_of_batches):
    """The weights', if the last one and the median of the last eight say so, the first more clearly than the others.

    Three are needed to blame the batches.
    """
    explosions = Explosions()
    for share in shares:
        explosions.take(share, 100)

    assert (explosions.are_of_weights, explosions.are_of_batches) == (are_of_weights, are_of_batches)
    assert explosions.num_new == sum(share >= 0.5 for share in shares)


def test_explosions_of_batches_are_tested_ever_later():
    """Sixteen updates after one, twice as many after each further one; at once again after one due to the weights."""
    explosions, waits = Explosions(), []
    for share in (0.0, 0.0, 0.0, 1.0, 0.0):
        explosions.take(share, 100)
        waits.append(explosions.wait_until - 100)

    assert waits == [16, 32, 64, 64, 16]


def explosion(updates):
    return Backup(updates, updates, witness=[np.arange(4)], losses=[9.0])


@pytest.mark.parametrize(("shares", "few"), [((), True), ((0.3, 0.5, 0.3), False), ((0.5, 0.4, 0.6), True)])
def test_healthy_losses_that_explode_cost_few_probes(shares, few):
    """Four of any kind, or one in a hundred updates, unless most are due to the weights; the first is always tested."""
    explosions, again = Explosions(), Explosions()
    for share in shares:
        explosions.take(share, 0)
    again.load_state_dict(explosions.state_dict())

    for each in (explosions, again):
        assert each.note(explosion(100), 3)
        assert each.note(explosion(501), 5)
        assert each.note(explosion(500), 5) is few


def test_a_batch_that_repeats_its_loss_need_not_be_drawn_twice_again():
    """That is known from one that was, and whose loss was due to the weights: the share of others is 0 for noise."""
    explosions = Explosions()
    explosions.take(0.0, 0, is_twice=True)
    explosions.take(0.9, 0)
    assert not explosions.repeats
    explosions.take(0.9, 0, is_twice=True)
    assert explosions.repeats


def test_two_in_a_row_are_worth_a_look():
    """One loss that is not finite is left out; the second in a row is looked into."""
    refusals = Refusals()
    refusals.refused(is_finite=False, step=1)
    assert refusals.bad_in_a_row < refusals.bad_limit
    refusals.refused(is_finite=False, step=1)

    assert refusals.bad_in_a_row == refusals.bad_limit


def test_good_batch_ends_the_row():
    """A good batch between two bad ones is a free test: the weights are healthy."""
    refusals = Refusals()
    for _ in range(9):
        refusals.refused(is_finite=False, step=1)
        refusals.good()

    assert (refusals.in_a_row, refusals.bad_in_a_row) == (0, 0)


def test_only_weights_that_get_further_end_the_count_in_vain():
    """A good batch after which the weights are no further than before leaves the count as it is, on file, too."""
    refusals, again = Refusals(), Refusals()
    refusals.refused(is_finite=False, step=1)
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
        refusals.refused(is_finite=True, step=1) if is_refused else refusals.good()
    assert sum(refusals.outcomes) == sum(script[-100:])
    assert 0 < refusals.share_of(0) < 1
    assert refusals.share_of(100) <= refusals.share_of(0)
    for _ in range(100):
        refusals.good()

    assert not refusals.outcomes


NOT_OF_A_FILE = {
    "gentle_factor", "gentle_steps", "is_share", "is_ignored", "announcer", "current", "kinds", "is_compared", "last",
    "batch", "falls", "ruined",
}  # fmt: skip
"""Fields that are settings, that their owner saves in another form, or that hold one of the user's batches."""


def numbers_of(part, name=""):
    """Every field of a state but those, by its dotted name, with the object that has it."""
    for each in fields(part):
        value = getattr(part, each.name)
        if isinstance(value, SavedFields):
            yield from numbers_of(value, f"{name}{each.name}.")
        elif each.name not in NOT_OF_A_FILE and f"{name}{each.name}" != "early.trial":
            yield f"{name}{each.name}", part, each.name


def test_a_state_that_is_saved_is_the_same_when_it_is_loaded():
    """Every number of every part, in the same kind of container."""
    announcer = Announcer([], lambda: (0, 0.0))
    one, two = (
        RecoveryState(RateLimit(0.5, 16), NormLimit(), IncidentLog(announcer), RunningVariances(announcer))
        for _ in range(2)
    )
    for name, part, field in numbers_of(one):
        value = getattr(part, field)
        if isinstance(value, dict):
            value["norm.running_var"] = 7
        elif isinstance(value, (list, deque)):
            value.append([9, 3] if name in ("early.dead.found", "early.changes") else 2)
        else:
            setattr(part, field, f"{value}x" if isinstance(value, str) else not value if type(value) is bool else 7)
    one.incidents.kinds = {"spike": (2, "step 7: the batch")}
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))

    assert two.incidents.kinds == one.incidents.kinds
    assert [(name, getattr(part, field)) for name, part, field in numbers_of(two)] == [
        (name, getattr(part, field)) for name, part, field in numbers_of(one)
    ]


@pytest.mark.parametrize("scale", [1e6, 1e2])
def test_a_variance_that_one_of_the_first_batches_ruined_is_found_where_looks_are_far_apart(scale):
    """A slow disk or a busy machine may put off the looks: the first one after it shows the ruined sum alone."""
    now = {"step": 0}
    variances = RunningVariances(Announcer([], lambda: (now["step"], 0.0)))
    for now["step"], total in (
        (1, 1.0),
        (12, scale),
        (22, scale * 0.99**10),
        (32, scale * 0.99**20),
        (42, scale * 0.99**30),
    ):
        variances.compare([Sum("norm.running_var", None, None, complex(total))], is_alone=True)

    assert list(variances.ruined) == ["norm.running_var"] * (scale > 1e3)


@pytest.mark.parametrize(("step", "by", "is_ruined"), [(40, 400, True), (40, 250, False), (5, 400, False)])
def test_a_running_variance_that_jumps(step, by, is_ruined):
    """In the first steps it may only now come near what the data have."""
    now = {"step": 0}
    variances = RunningVariances(Announcer([], lambda: (now["step"], 0.0)))
    for now["step"], total in ((step - 2, 1.0), (step - 1, 0.99), (step, 0.99 * by)):
        variances.compare([Sum("norm.running_var", None, None, complex(total))], is_alone=True)

    assert bool(variances.ruined) is is_ruined


def test_a_variance_that_begins_at_zero_may_fall_evenly():
    """Equinox begins with zeros, which tell no scale."""
    now = {"step": 0}
    variances = RunningVariances(Announcer([], lambda: (now["step"], 0.0)))
    for now["step"], total in ((0, 0.0), (2, 8.0), (4, 4.0), (6, 2.0), (8, 1.0), (10, 0.5)):
        variances.compare([Sum("Net.norm.ema_state_index.1", None, None, complex(total))], is_alone=True)

        assert not variances.ruined
