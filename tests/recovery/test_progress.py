import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.backups import Backup
from learnit_r8.recovery.progress import EARLY_UPDATES, FIRST, LOOK_EVERY, Progress


def note_first(progress, loss, record):
    """Take one of the first losses, as every fourth update does."""
    if len(progress.first) < EARLY_UPDATES:
        progress.first.append(loss)
    if math.isnan(progress.start):
        progress.find_start(Backup(0, 0, losses=[record]))


def after(losses, record=math.nan):
    """The progress after some losses."""
    progress = Progress()
    for loss in losses:
        progress.recent.append(loss)
        progress.reported.append(loss)
        note_first(progress, loss, record)
    return progress


def test_start_is_known_after_eight_losses():
    """The level of the start is the higher one of the first loss of the run and of the first eight's median."""
    assert math.isnan(after([2.0] * (FIRST - 1)).start)
    assert after([2.0] * FIRST).start == 2.0
    assert after([2.0] * FIRST, record=3.0).start == 3.0


@pytest.mark.parametrize(("loss", "is_alarm"), [(2.9, False), (3.1, True)])
def test_early_alarm(loss, is_alarm):
    """A loss of the first steps is suspicious if it exceeds the first one by half of it."""
    assert (after([2.0] * 5, record=2.0).early_suspicion(loss, 2.0, 5) > 1) is is_alarm


@pytest.mark.parametrize(("num_lost", "is_alarm"), [(0, True), (1, True), (4, False), (16, True), (500, True)])
def test_the_loss_of_a_small_batch_is_noisy(num_lost, is_alarm):
    """Of four samples that are lost for good twice as much is needed, being twice as noisy; of one nothing is known."""
    progress = after([2.0] * 5, record=2.0)

    assert (progress.early_suspicion(3.9, 2.0, 5, num_lost) > 1) is is_alarm
    assert progress.early_suspicion(4.1, 2.0, 5, num_lost) > 1


def test_no_rise_from_zero_is_suspicious():
    """Losses that were all 0 are no scale: whatever follows them is judged as usual, and costs no batch."""
    assert after([0.0] * 20, record=0.0).early_suspicion(1e9, 0.0, 20) == 0
    assert after([0.0] * 20 + [0.5] * 20, record=0.0).early_suspicion(1e9, 0.0, 40) == 0


def test_early_alarms_wait_while_weights_prove_healthy():
    """After a look that found healthy weights, the next ones wait two updates, then four."""
    progress = after([2.0] * 5, record=2.0)
    progress.note_healthy(10)
    assert [progress.early_suspicion(9.0, 2.0, updates) > 1 for updates in (10, 11, 12)] == [False, False, True]
    progress.note_healthy(12)

    assert [progress.early_suspicion(9.0, 2.0, updates) > 1 for updates in (13, 15, 16)] == [False, False, True]


def best_backup():
    return Backup(100, 100, recent=(1.0, 1.02, 0.98, 1.01) * 8, witness=[np.arange(2)], losses=[1.0])


@pytest.mark.parametrize(
    ("start", "level", "updates", "is_lost"),
    [(2.0, 1.3, 148, False), (2.0, 1.4, 148, True), (1.15, 1.14, 148, False), (2.0, 1.9, 385, False)],
    ids=["less than a third", "a third", "less than a fifth of the start's level", "after the first steps"],
)
def test_lost_progress(start, level, updates, is_lost):
    """A third of the progress of the best backup that was lost is looked into; later that is for the guard to find."""
    best = best_backup()
    progress = after([start] * FIRST + [level] * 40)

    assert progress.lost_progress([best], updates) is (best if is_lost else None)


@pytest.mark.parametrize(
    ("usual", "last", "has_exploded"),
    [
        (1.0, (2.1,), True),
        (1.0, (1.9,), False),
        (1.7, (2.5,), False),
        (1.9, (9.0,), False),
        (1.0, (2.5, 2.5), False),
        (1.0, (2.5, *[1.0] * 7, 2.5), False),
        (1.0, (2.5, *[1.0] * 8, 2.5), True),
        (-1.0, (1.9,), False),
        (-1.0, (2.1,), True),
    ],
)
def test_an_explosion(usual, last, has_exploded):
    """One loss above the untrained model's, and half above usual ones that are a tenth below that one's; of several in
    a row, as with new data, only the first counts."""
    progress = after([2.0] * FIRST + [usual] * 60 + list(last), record=2.0)

    assert progress.has_exploded is has_exploded


def test_no_explosion_among_few_losses():
    """What is usual must be known, and the loss of the untrained model."""
    assert not after([2.0] * FIRST + [1.0] * 20 + [9.0], record=2.0).has_exploded
    assert not after([2.0] * FIRST + [1.0] * 60 + [9.0]).has_exploded


def test_wild_losses():
    """Losses that swing and make no progress look like those of too high a rate; falling or calm ones do not.

    Where the rate is known to have been too high, calm ones do, too: units may be dead.
    """
    swing = np.tile([1.0, 3.0, 2.0, 4.0], 20)

    assert after([2.0] * FIRST + swing.tolist()).stands_still(is_known=False)
    assert not after([2.0] * FIRST + (swing * np.linspace(1, 0.3, 80)).tolist()).stands_still(is_known=True)
    assert [after([2.0] * 80).stands_still(is_known=known) for known in (False, True)] == [False, True]


@pytest.mark.parametrize("count", [7, 8, 32])
def test_split_losses(count):
    """Losses are split where eight or more of the last ones are above all sixteen before them."""
    usual, high = [0.3, 0.5] * 16, [0.7, 1.5] * 16

    assert after(usual + high[:count]).is_split == (count >= 8)
    assert not after([*usual, *high[: count - 1], 0.4]).is_split
    assert not after(high[:count]).is_split


def test_sudden_rise():
    """A rise within one step is sudden; one over fifty steps is not."""
    jump = after([1.0] * 40 + [5.0] * 4)
    slope = after([1.0] * 8 + np.linspace(1, 5, 50).tolist())

    assert (jump.is_sudden(), slope.is_sudden()) == (True, False)


def test_rise_is_the_mean_of_the_last():
    """The level that raised an alarm is the mean of the last reported losses; NaN without any."""
    assert after([1.0, 2.0, 4.0]).rise(2) == 3.0
    assert math.isnan(Progress().rise(2))


def test_going_back():
    """After a restore, the last losses are those from before the backup."""
    progress = after([2.0] * FIRST + [9.0] * 40)
    progress.went_back([1.0] * 40, 100)

    assert (progress.level, progress.rise(2), progress.start) == (1.0, 1.0, 2.0)


def test_beginning_anew():
    """Where losses mean something else, even the level of the start is forgotten."""
    progress = after([2.0] * 40)
    progress.begin_anew()

    assert math.isnan(progress.start)
    assert math.isnan(progress.level)


def test_look_waits_after_a_healthy_one():
    """After a look that found healthy weights, two looks, sixteen updates apart, are left out."""
    best, progress = best_backup(), after([2.0] * FIRST + [1.9] * 40)
    progress.note_healthy(148)
    found = [progress.lost_progress([best], 148 + LOOK_EVERY * number) for number in range(3)]

    assert found == [None, best, best]


def test_first_losses_after_the_state_that_was_put_back_are_forgotten():
    """They were those of damaged weights: high ones must not make later high ones usual."""
    progress = after([2.0] * 5 + [90.0] * 5, record=2.0)
    assert progress.early_suspicion(9.0, 2.0, 40) < 1
    progress.went_back([2.0] * 20, 20)

    assert progress.early_suspicion(9.0, 2.0, 20) > 1


@pytest.mark.parametrize(("last", "is_above"), [(3.0, False), (3.6, True)])
@pytest.mark.parametrize("is_saved", [False, True])
def test_losses_far_above_those_of_the_untrained_model(last, is_above, is_saved):
    """Half as much again as the untrained model's is far above, also where the first updates have ruined it."""
    progress = Progress()
    progress.recent.extend([2.3, 2.2, *[40.0] * 6])
    note_first(progress, 40.0, 2.3)
    progress.recent.extend([last] * 16)
    if is_saved:
        saved, progress = progress.state_dict(), Progress()
        progress.load_state_dict(saved)

    assert progress.untrained == 2.3
    assert progress.is_above_untrained(32) is is_above


@given(st.lists(st.floats(-2.0, 2.0), min_size=24, max_size=64), st.integers(24, 64))
def test_losses_as_noisy_as_the_first_ones_are_rarely_looked_into(noise, updates):
    """Where one of sixteen losses is as low as the first one, or half of eight are, nothing is looked into."""
    progress = Progress()
    losses = [math.exp(each) for each in noise]
    progress.recent.extend(losses[:8])
    note_first(progress, losses[7], losses[0])
    progress.recent.extend([*losses[8:], losses[0], losses[0]])

    assert not progress.is_above_untrained(updates)


def test_the_untrained_loss_of_a_run_that_was_resumed_is_not_that_of_its_first_batch():
    """Without the record of an untrained state nothing is compared with it."""
    progress = Progress()
    progress.recent.extend([0.1] * 8)
    note_first(progress, 0.1, math.nan)
    progress.recent.extend([9.0] * 16)

    assert math.isnan(progress.untrained)
    assert not progress.is_above_untrained(32)


def test_losses_that_were_looked_into_are_not_far_above_again_at_once():
    """A look that found healthy weights makes the next one wait."""
    progress = Progress()
    progress.recent.extend([2.3] * 8)
    note_first(progress, 2.3, 2.3)
    progress.recent.extend([9.0] * 16)
    progress.note_healthy(16)

    assert not progress.is_above_untrained(16)
    assert progress.is_above_untrained(32)


@pytest.mark.parametrize(("lows", "is_above"), [([0.5], True), ([0.5, 0.4], False)])
def test_wild_losses_that_jumped_are_looked_into_though_one_of_eight_is_low(lows, is_above):
    """Seven of eight above all before them and the untrained model's, their median far above, are enough."""
    progress = Progress()
    progress.recent.extend([1.2] * 8)
    note_first(progress, 1.2, 1.2)
    progress.recent.extend([0.8, 0.7] * 4)
    progress.recent.extend([*[3.5, 1.7, 1.8, 4.7, 7.0, 3.1, 5.3, 3.0][: 8 - len(lows)], *lows])

    assert progress.is_above_untrained(24) is is_above


@pytest.mark.parametrize(("last", "is_calm"), [([60.0], True), ([0.1, 60.0, 0.2, 0.3], True), ([0.1, 1e4], False)])
def test_a_high_loss_among_others_announces_no_damage(last, is_calm):
    """The untrained loss may be that of easy batches; where updates are too large, one goes far beyond all others."""
    progress = after([0.1, 0.3, 50.0, 2.0, 0.2, 0.4, 8.0, 0.3] * 4 + last, record=0.1)

    assert progress.untrained == 0.2
    assert progress.is_calm(8) is is_calm
    assert not progress.is_calm(3)


def test_a_loss_above_all_others_announces_damage_where_none_is_positive():
    """Losses below zero have no multiples."""
    losses = [-5.0, -3.0] * 20

    assert after([*losses, -3.0]).is_calm(8)
    assert not after([*losses, -2.0]).is_calm(8)


def num_fallen_back(later, noise, *, is_last=False):
    """How many of 40 runs with noise have fallen back, in losses that were usual for some time."""
    usual = [2.3] * 8 + [1.95] * (128 - len(later))
    runs = [noise * np.random.default_rng(seed).standard_normal(136) + [*usual, *later] for seed in range(40)]
    return sum(after(run, record=2.3).has_fallen_back(136, is_last=is_last) for run in runs)


@pytest.mark.parametrize(("losses", "least", "most"), [([2.3], 34, 40), ([1.95], 0, 0), ([1.9, 1.9, 1.9, 2.6], 0, 0)])
def test_losses_that_fall_back_to_those_of_the_untrained_model(losses, least, most):
    """24 of them are clear though the spread of a loss is a third of the progress; a few high ones are not."""
    assert least <= num_fallen_back((losses * 24)[:24], noise=0.1) <= most


@pytest.mark.parametrize(
    ("later", "noise", "least", "most"), [([2.12], 0.02, 38, 40), ([2.05], 0.02, 0, 0), ([2.12], 0.1, 0, 0)]
)
def test_half_of_the_progress_lost_at_once_beyond_all_noise_is_enough(later, noise, least, most):
    """As where the last layer of a denoiser is set to 0, whose losses are lower than those of its first weights."""
    assert least <= num_fallen_back(later * 24, noise=noise) <= most


@pytest.mark.parametrize(
    ("later", "is_late"),
    [
        ([2.9] * 24, True),
        ([2.9] * 10, True),
        ([2.7] * 24, False),
        (np.linspace(2.7, 2.9, 40), False),
        ([2.8] * 24, False),
    ],
    ids=["jump", "late jump", "none", "slow", "noise"],
)
def test_a_jump_of_the_last_losses_is_seen_as_the_run_ends(later, is_late):
    """A fifth of the progress lost at once is little for the guard, and the last look there is."""
    losses = [*np.linspace(4.2, 2.7, 60), *([2.65, 2.75] * 40), *later]

    assert after(losses, record=4.2).has_risen_late is is_late


@pytest.mark.parametrize(
    ("later", "count"), [([], 0), ([1.2], 1), ([1.2, 1.3, 9.0], 3), ([1.2, 1.0], 0), ([2.0] * 12, 12), ([2.0] * 20, 0)]
)
def test_high_losses_at_the_end_are_counted(later, count):
    assert after([*([1.0, 1.1] * 20), *later]).num_high == count


def test_losses_that_rise_slowly_have_not_fallen_back():
    """They rise because of what is trained: no weights were lost from one step to the next."""
    assert num_fallen_back(np.linspace(1.95, 2.4, 40), noise=0.05) == 0


@pytest.mark.parametrize(
    ("later", "noise", "least", "most"),
    [([2.05], 0.02, 38, 40), ([1.99], 0.02, 0, 0), ([2.05], 0.1, 0, 4), (np.linspace(1.95, 2.15, 40), 0.02, 0, 0)],
    ids=["level", "small", "noise", "slow"],
)
def test_a_fifth_of_the_progress_lost_is_enough_as_a_run_ends(later, noise, least, most):
    """No later loss would tell more, and it is asked once; a slow rise has not lost weights."""
    later = later if len(later) > 1 else later * 34

    assert num_fallen_back(later, noise=noise) == 0
    assert least <= num_fallen_back(later, noise=noise, is_last=True) <= most


def when_above(losses, untrained=1.0):
    """The first update at which losses are above those of the untrained model; None if they never are."""
    progress = Progress()
    for update, loss in enumerate(losses, start=1):
        progress.recent.append(loss)
        if update % 4 == 0:
            progress.first.append(loss)
        if update == FIRST:
            progress.start = progress.untrained = progress.record = untrained
        if update >= FIRST and update % 4 == 0 and progress.is_above_untrained(update):
            return update
    return None


SLOW_RISE = [1.0] * 24 + list(np.linspace(1.0, 6.0, 24))
STEP = [1.0] * 24 + [3.0] * 24


@pytest.mark.parametrize(
    ("losses", "update"),
    [
        (SLOW_RISE + list(np.linspace(6.0, 0.5, 24)) + [0.5] * 200, None),
        (SLOW_RISE + [6.0] * 200, 96),
        (SLOW_RISE + [12.0] * 4, 52),
        (STEP, 28),
        ([1.0] * 8 + [0.4] * 16 + SLOW_RISE[24:], 32),
    ],
    ids=["falls again", "stays", "goes on", "at once", "learned before"],
)
def test_losses_that_rise_slowly_before_anything_was_learned_may_fall_again(losses, update):
    """As those of a codebook do: they are looked into if they stay, or are very high; a step is at once."""
    assert when_above(losses) == update


HIGH = [2.6, 1.6, 3.0, 2.2, 2.4] * 40
WILD = [2.6, 1.3, 3.4, 1.9, 2.2] * 12


def test_in_the_first_steps_a_high_level_is_seen_at_the_next_look():
    """Of sixteen losses one may be low; later the median of eight is asked for, and every sixteenth update."""
    assert when_above([1.0, 1.0, *WILD]) == 20
    assert when_above([0.8, 3.5, 0.9, 1.2] * 25 + HIGH) == 128


def test_losses_that_rise_slowly_do_not_explode():
    """No single batch is to blame for them."""
    slow = [1.0, *[0.8] * 40, *np.linspace(0.8, 1.25, 16)]

    assert after([1.0, *[0.8] * 40, 1.25], record=1.0).has_exploded
    assert not any(after(slow[:count], record=1.0).has_exploded for count in range(42, len(slow) + 1))


def test_losses_that_were_as_high_before_have_not_fallen_back():
    """As with data in the order of their classes: that is how each class begins."""
    earlier, low = [2.3] * 12 + [1.94, 1.96] * 10 + [2.3] * 12, [1.94, 1.96] * 22

    assert not after([*earlier, *low, *[2.25] * 10], record=2.3).has_fallen_back(98)
    assert after([*earlier, *low, *[2.35] * 10], record=2.3).has_fallen_back(98)


def test_losses_that_fell_back_are_looked_into_once():
    """After a look that found healthy weights the next one waits."""
    progress = after([2.3] * 8 + [1.9, 2.0] * 32 + [2.3] * 24, record=2.3)

    assert progress.has_fallen_back(96)

    progress.note_healthy(96)

    assert not progress.has_fallen_back(96)
    assert progress.has_fallen_back(96 + LOOK_EVERY)
