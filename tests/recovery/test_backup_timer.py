"""The backup timer takes backups when they are due, of states in which every number is finite."""

import warnings

import numpy as np
import pytest

from learnit_r8 import RamBackup, events
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.agreement import Agreement
from learnit_r8.recovery.persistence import NO_MEMORY, BackupTimer
from learnit_r8.testing import record_events
from learnit_r8.triggers import Elapsed, as_trigger

NAN, INF = float("nan"), float("inf")


class Other(Agreement):
    """The agreement with another rank, whose backups take so many microseconds."""

    def __init__(self, took):
        super().__init__()
        self.took = took

    def most(self, number):
        return max(number, self.took)


def of(every=10, backup=None, agreement=None, **more):
    heard = record_events()
    announcer = Announcer([heard], lambda: (max(0, timer.clean_step), 0.0))
    timer = BackupTimer(as_trigger("backup_every", every), announcer, backup or RamBackup(), agreement, **more)
    return timer, heard


def ask(timer, step, state, *, is_calm=True, per_step=1.0):
    """Ask at a step; the witness of a backup that was taken is noted at once."""
    last = step - 1
    elapsed = Elapsed(step, step, per_step * step, last, last, per_step * last)
    damaged = timer.take_if_due(elapsed, step, lambda: state, lambda state: None, is_calm=is_calm)
    newest = timer.backup.newest
    if newest is not None and not newest.is_closed:
        timer.backup.add_witness(newest, np.arange(2), 1.0)
    return damaged


def test_backup_waits_while_something_is_suspected():
    """Without any backup one is due at once, whatever is suspected, and then at its interval, once nothing is."""
    timer, _ = of()
    for step in range(25):
        ask(timer, step, {"w": np.ones(2)}, is_calm=step > 0 and not 8 < step < 13)

    assert [each.step for each in timer.backup.backups] == [0, 13, 20]


@pytest.mark.filterwarnings("ignore:.*the largest number of")
def test_a_look_does_not_wait():
    """Where losses are high and remain so, a layer of zeros is learned anew before they are calm."""
    timer, _ = of(every=100)
    for step in (0, 100):
        ask(timer, step, {"model": {"w": np.ones((8, 8))}})
    timer.is_look_due = True

    assert ask(timer, 104, {"model": {"w": np.full((8, 8), 0.01)}}, is_calm=False) == "model.w"
    assert ask(timer, 105, {"model": {"w": np.zeros((8, 8))}}, is_calm=False) == ""


@pytest.mark.filterwarnings("ignore:.*unless that is intended")
@pytest.mark.parametrize(("newest", "step", "is_told"), [(74, 92, True), (74, 78, False), (30, 92, False)])
def test_a_layer_of_zeros_just_after_the_first_steps_is_told_of(newest, step, is_told):
    """Who starts a layer anew before the eightieth means it; a backup of before may be that of far smaller weights."""
    timer = BackupTimer(as_trigger("backup_every", 1), Announcer([], lambda: (step, 0.0)), RamBackup())
    for each in (0, newest):
        ask(timer, each, {"model": {"w": np.ones((8, 8))}})

    assert ask(timer, step, {"model": {"w": np.zeros((8, 8))}}) == ("model.w" if is_told else "")


@pytest.mark.parametrize(
    ("step", "factors", "found"),
    [
        (104, (1.3, 1.3, 1.3), "model.a"),
        (104, (1.01, 1.3, 1.3), ""),
        (104, (1.0, 1.3, 1.3), "model.b"),
        (104, (1.1, 1.1, 1.1), ""),
        (120, (1.3, 1.3, 1.3), ""),
    ],
    ids=["all", "two of three", "all but a frozen one", "an update's", "in many steps"],
)
def test_most_matrices_that_become_larger_at_once_are_found(step, factors, found):
    """As where noise was added to the weights; in many steps they may grow so."""
    now = 100
    timer = BackupTimer(as_trigger("backup_every", 1), Announcer([], lambda: (now, 0.0)), RamBackup())
    timer.watches_moves, matrix = True, np.random.default_rng(0).standard_normal((8, 8))
    ask(timer, now, {"model": dict.fromkeys("abc", matrix)})
    now = step
    state = {"model": {name: factor * matrix for name, factor in zip("abc", factors, strict=True)}}

    assert ask(timer, now, state) == found
    now = step + 1
    assert ask(timer, now, state) == ""


@pytest.mark.parametrize(
    ("replaced", "speed", "at", "found"),
    [
        ("b", 1.0, 50, "model.b"),
        ("b", 1.0, 90, "model.b"),
        ("b", 3.0, 90, "model.b"),
        ("b", 6.0, 90, ""),
        ("ab", 1.0, 90, ""),
        ("", 6.0, 90, ""),
        ("b", 1.0, 30, ""),
        ("d", 1.0, 90, ""),
    ],
    ids=["early", "late", "others faster", "others far", "two", "none", "few looks", "a frozen one"],
)
def test_a_matrix_that_alone_moves_far_is_found(replaced, speed, at, found):
    """Whether losses show it or not: no update moves one by its own length and leaves all others as they are."""
    now, dice = 0, np.random.default_rng(0)
    timer = BackupTimer(as_trigger("backup_every", 10), Announcer([], lambda: (now, 0.0)), RamBackup())
    timer.watches_moves, matrices = True, {name: dice.standard_normal((8, 8)) for name in "abcd"}
    said = {}
    for now in range(0, 120, 10):
        for name, matrix in matrices.items():
            if name in replaced and now == at:
                matrices[name] = matrix.std() * dice.standard_normal((8, 8))
            elif name != "d":
                step = 0.02 * (speed if now == at else 1.0)
                matrices[name] = matrix + step * dice.standard_normal((8, 8))
        said[now] = ask(timer, now, {"model": dict(matrices)})

    assert said == {**dict.fromkeys(said, ""), at: found}


@pytest.mark.filterwarnings("ignore:.*unless that is intended")
@pytest.mark.parametrize(("grown", "is_told"), [("opt_state", True), ("batch_stats", False)])
def test_moments_that_swell_are_told_of_and_running_statistics_have_their_own_rule(grown, is_told):
    """After a batch far out of range these are as large, and are put back."""
    timer, heard = of(every=8)

    def state(step):
        sizes = {"opt_state": 1e-6 * (1 + 0.01 * step), "batch_stats": 1.0 + 0.01 * step}
        if step == 40:
            sizes[grown] *= 1e7
        return {
            "params": {"w": np.ones((8, 8))},
            "opt_state": {
                "mu": np.full(8, 1e-3),
                "nu": np.full(8, sizes["opt_state"]),
                "nu2": np.full(8, sizes["opt_state"]),
            },
            "batch_stats": {name: {"mean": np.ones(4), "var": np.full(4, sizes["batch_stats"])} for name in ("a", "b")},
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(0, 41, 8):
            ask(timer, step, state(step))
    said = [event.text for event in heard.of(events.Notice) if "beside the weights" in event.text]
    assert bool(said) == is_told


def taken_by(took, *, every=100, num_steps=100, per_step=0.01, first=0):
    """The steps at which a run takes backups whose user has not said when, if each takes so many seconds."""
    timer, heard = of(every, agreement=Other(int(1e6 * took)), is_usual=True)
    steps = []
    for step in range(first, num_steps):
        count = len(heard.of(events.BackupTaken))
        if step == first:
            timer.note_done(first)
        ask(timer, step, {"w": np.ones(2)}, per_step=per_step)
        steps += [step] * (len(heard.of(events.BackupTaken)) - count)
    return steps


def test_cheap_backups_come_at_each_eighth_more_steps():
    """In a young run a backup comes whenever the steps have grown by an eighth, until the interval is shorter."""
    taken = taken_by(0.01, every=10, num_steps=130)
    gaps = np.diff(taken)

    assert taken[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(gap <= max(1, -(-step // 8)) for step, gap in zip(taken, gaps, strict=False))
    assert taken[-4:] == [90, 100, 110, 120]


@pytest.mark.parametrize(
    ("took", "taken"),
    [(0.05, [0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]), (0.1, [0, 1, 2, 4, 8, 16, 32, 64]), (0.12, [0])],
)
def test_costly_backups_are_fewer(took, taken):
    """Backups take a tenth of a second at most while the steps double; those that take longer keep to the interval."""
    assert taken_by(took) == taken


def test_costly_backups_of_slow_steps():
    """In a run that takes long anyway, they may take a hundredth of the time so far."""
    assert taken_by(5.0, every=40, num_steps=200, per_step=10.0) == [0, 40, 80, 120, 160]
    assert taken_by(5.0, every=40, num_steps=200, per_step=25.0) == [0, 40, 60, 80, 100, 120, 140, 160, 180]


def test_early_backups_after_a_resume():
    """A resumed run takes a backup at once, and the next ones as its steps grow."""
    assert taken_by(0.01, num_steps=40, first=20) == [20, 23, 26, 30, 34, 39]


def test_early_backup_waits_for_the_witness_of_the_last():
    """Where several batches make an update, the first one is no place for a backup."""
    backup = RamBackup()
    backup.witness_size = 2
    timer, _ = of(100, backup, is_usual=True)
    for step in range(4):
        ask(timer, step, {"w": np.ones(2)})

    assert [each.step for each in timer.backup.backups] == [0, 2]


def test_one_slow_copy_delays_nothing():
    """The shortest of the last three copies counts, as anything may delay one of them."""
    agreement = Other(1000)
    timer, _ = of(100, agreement=agreement, is_usual=True)
    for step in range(8):
        agreement.took = 10**7 if step == 3 else 1000
        ask(timer, step, {"w": np.ones(2)})

    assert timer.backup.newest.step == 7


def test_look_that_is_asked_for_after_a_backup_is_not_lost():
    """With two batches out, a step is asked about twice: a look asked for in between comes with the next step."""
    timer, _ = of()
    for step in range(11):
        ask(timer, step, {"w": np.ones(2)})
    timer.is_due = True
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


def test_nan_is_named_before_ruined_statistics():
    """A look that puts nothing back is no answer to these: they are named again, until they are noted."""
    timer, heard = of()
    for step in range(0, 50, 10):
        ask(timer, step, {"norm": {"running_var": np.full(2, 1.0 + step)}, "w": np.ones(2)})
    ruined = {"norm": {"running_var": np.full(2, 1e6)}, "w": np.ones(2)}

    assert ask(timer, 50, {**ruined, "w": np.array([1.0, NAN])}) == "w"
    assert [ask(timer, 51, ruined), ask(timer, 51, ruined)] == ["norm.running_var"] * 2
    assert len(heard.of(events.DamageFound)) == 1


def test_statistics_that_are_ruined_by_nine_batches_in_a_row_stay():
    """The data are of another scale now, which is said; eight in a row may be bad."""
    timer, _ = of(1)
    for step in range(10):
        assert not ask(timer, step, {"norm": {"running_var": np.full(2, 1.0 + step)}})
    ruined = {"norm": {"running_var": np.full(2, 1e6)}}
    for step in range(10, 18):
        assert ask(timer, step, ruined) == "norm.running_var"
        timer.variances.note(timer.variances.ruined, are_put_back=True)
    with pytest.warns(RuntimeWarning, match="'norm.running_var' is .* times as large as ever before"):
        assert not ask(timer, 18, ruined)


@pytest.mark.parametrize("decay", [0.9, 0.99])
@pytest.mark.parametrize("bad", [1, 2])
def test_statistics_that_one_of_the_first_batches_ruins_are_found(bad, decay):
    """The later ones agree that they have next to nothing of it, and the variance was far lower before."""
    timer, _ = of(1)
    total, step = 1.0, 0
    while not ask(timer, step, {"norm": {"running_var": np.full(2, total)}}):
        step += 1
        total = decay * total + (1 - decay) * (1e8 if step == bad else 1.5 + step % 3)

    assert step == bad + 3
    assert timer.variances.precede(timer.backup.backups[bad - 1].state)
    assert not timer.variances.precede(timer.backup.newest.state)


def test_data_of_a_large_scale_that_begin_wide_are_no_jump():
    """The first batch alone sets the scale, if it is wider than others, and a norm may forget it at once."""
    timer, _ = of(1)
    for step, total in enumerate([1.0, 3e6, 2e6, 4e5, 5e5, 3e5]):
        assert not ask(timer, step, {"norm": {"running_var": np.full(2, total)}})


def test_statistics_ruined_again_after_usual_ones_are_no_new_data():
    """A bad sample that recurs; without usual ones in between the data are of another scale."""
    timer, _ = of()
    for step in range(0, 50, 10):
        ask(timer, step, {"norm": {"running_var": np.full(2, 1.0 + step)}})
    ruined = {"norm": {"running_var": np.full(2, 1e6)}}
    for step in (50, 70):
        assert ask(timer, step, ruined) == "norm.running_var"
        timer.variances.note(timer.variances.ruined, are_put_back=True)
        assert not ask(timer, step + 10, {"norm": {"running_var": np.full(2, 40.0 + step)}})


def test_infinities_of_the_first_state_are_meant():
    """An array that holds infinities from the start, as masks do, is meant to; one with NaN is not."""
    timer, _ = of()
    assert ask(timer, 0, {"mask": np.array([0.0, -INF]), "w": np.ones(2)}) == ""

    assert timer.meant == {"mask"}
    timer, _ = of()
    assert [timer.take({"w": np.array([NAN])}, step, 0) for step in (0, 1)] == ["w", "w"]


def test_shortage_of_another_rank():
    """A backup for which another rank has no memory is missing on all, which must go back to the same step."""
    timer, _ = of(agreement=Other(NO_MEMORY))
    with pytest.warns(RuntimeWarning, match="no memory for the backup at step 0"):
        timer.take({"w": np.ones(2)}, 0, 0)

    assert timer.backup.is_empty
