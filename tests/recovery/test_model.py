"""What an experiment may do to the model, through the callbacks of a run."""

import math
from dataclasses import replace

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.recovery.backups import Backup, moved_in
from learnit_r8.recovery.model import LiveModel
from learnit_r8.state.tree import sums_of, weights_in
from learnit_r8.testing import record_events
from tests.drive import NAN, Weights, advance_to, make


def live_of(model, *, steps=3, **more):
    """The live model of a run with a backup of step 0 that has its witness."""
    heard = record_events()
    more |= {"backup_every": 10, "listeners": [heard]}
    r8 = make(num_epochs=9, state_callback=model.get, load_callback=model.load, **more)
    advance_to(r8, steps)
    live = LiveModel(r8.host.persistence, r8.host.announcer)
    live.step = steps
    live.begin()
    return live, r8, heard


class Layers(Weights):
    """A model with weights and two statistics."""

    def __init__(self):
        super().__init__()
        self.parts = {"w": np.ones(2), "mean": np.zeros(2), "var": np.ones(2)}

    def get(self):
        return self.parts

    def load(self, source, from_ram=False):
        self.parts = source


def test_present_state_comes_back():
    """The state kept aside is a copy: it comes back as it was, as often as a test asks for it."""
    model = Weights()
    live, r8, _ = live_of(model)
    model.values = np.full(2, 7.0)
    assert live.keep_present()
    assert live.put(r8.host.persistence.backup.newest)
    assert (model.values.tolist(), live.put_step) == ([0, 0], 0)
    for _ in range(2):
        assert live.put_present()

        assert (model.values.tolist(), live.put_step, live.current) == ([7, 7], 3, None)
        model.values += 1.0
    live.end()
    assert not live.put_present()


@pytest.mark.parametrize(
    ("by", "updates", "kept"), [(1e4, 100, [60, 100]), (1e4, 60, [60, 100, 140, 180]), (100, 100, [60, 100, 140, 180])]
)
def test_a_backup_whose_moments_are_far_larger_at_once(by, updates, kept):
    """It and all later ones are no state to go back to, unless moments may have grown so in the first steps."""
    live, _, _ = live_of(Weights())
    known = [Backup(step, step, state={"w": np.ones(4), "m": np.full(4, 1e-3)}) for step in (60, 100, 140, 180)]
    for each in known:
        each.state["m"] *= by if each.updates > updates else 1.0

    assert [each.updates for each in live.before_swollen(known)] == kept
    assert live.before_swollen([*known[:1], Backup(100, 100, is_on_disk=True)])[-1].updates == 100


@pytest.mark.parametrize("has_nan", [False, True])
def test_nan_beside_ruined_statistics_is_an_incident(has_nan):
    """Statistics alone are put back without one."""
    model, heard = Layers(), record_events()
    model.parts = {"w": np.ones(2), "norm": {"running_mean": np.zeros(2), "running_var": np.ones(2)}}
    callbacks = {"state_callback": model.get, "load_callback": model.load}
    r8 = make(num_epochs=99, backup_every=10, listeners=[heard], **callbacks)
    for step in range(10, 60, 10):
        model.parts["norm"]["running_var"] = np.full(2, 1.0 + step)
        advance_to(r8, step)
    model.parts["norm"] = {"running_mean": np.full(2, 1e6), "running_var": np.full(2, 1e9)}
    model.parts["w"][0] = NAN if has_nan else 1.0
    with pytest.warns(RuntimeWarning, match="'norm.running_var' was more than 300 times"):
        advance_to(r8, 62)

    assert len(heard.of(events.DamageFound)) == has_nan == ("weights not finite: one incident" in r8.summary())
    assert np.isfinite(model.parts["w"]).all()
    assert max(each.max() for each in model.parts["norm"].values()) < 100


def test_state_that_cannot_be_read_is_of_unknown_health():
    """Where the state callback raises, or there is none, it is unknown whether the state is damaged."""
    live, r8, _ = live_of(Weights())

    def broken():
        raise KeyError("layer4")

    for state, damage in ((broken, ""), (None, ""), (lambda: {"w": np.array([NAN])}, "w")):
        r8.host.persistence.callbacks = replace(r8.host.persistence.callbacks, state=state)

        assert live.damage() == live.damage(is_shared=False) == damage


def test_damaged_state_is_not_kept():
    """A present state with NaN is nothing to come back to."""
    model = Weights()
    live, _, _ = live_of(model)
    model.values = np.full(2, NAN)

    assert not live.keep_present()


def test_no_memory_for_a_third_copy(monkeypatch):
    """Without memory for one more copy the experiment goes on, and one warning says what may be lost."""
    live, r8, _ = live_of(Weights())

    def no_memory(state):
        raise MemoryError

    r8.host.persistence.backup.copy_with(no_memory)
    with pytest.warns(RuntimeWarning, match="no memory to set the present weights aside: .* they are lost"):
        assert not live.keep_present()
    assert live.put_present() is False


@pytest.mark.parametrize(
    ("w", "mean", "is_mended"),
    [
        (np.full(2, 5.0), np.full(2, NAN), True),
        (np.full(2, NAN), np.full(2, NAN), False),
        (np.full(3, NAN), 0.0, False),
    ],
    ids=["less than half of the arrays", "more than half of them", "a state of another form than the backup"],
)
def test_arrays_that_are_not_finite_are_mended(w, mean, is_mended):
    """Only they come from the newest backup, and it is said; else the state is damaged, and left alone."""
    model = Layers()
    live, _, heard = live_of(model)
    model.parts = {"w": w.copy(), "mean": np.broadcast_to(mean, 2).copy(), "var": np.ones(2)}

    assert live.mend() is is_mended
    np.testing.assert_array_equal(model.parts["w"], w)
    assert not is_mended or model.parts["mean"].tolist() == [0, 0]
    assert any("taken from the backup of step 0" in event.text for event in heard.of(events.Notice)) == is_mended


@pytest.mark.parametrize("keeps_rates", [True, False])
def test_numbers_beside_the_arrays_are_no_fine_ones(keeps_rates):
    """At rates of the user's own, weights that are lost as a whole are not mended, whatever an optimizer counts."""
    model = Layers()
    live, r8, _ = live_of(model)
    live = LiveModel(r8.host.persistence, r8.host.announcer, keeps_rates=keeps_rates)
    beside = {"lr": 0.1, "momentum": 0.9, "decay": 0.0, "steps": np.zeros(2, int)}
    r8.host.persistence.backup.newest.state.update(beside)
    model.parts = {"w": np.full(2, NAN), "mean": np.full(2, NAN), "var": np.ones(2), **beside}

    assert live.mend() is not keeps_rates
    assert np.isnan(model.parts["w"]).all() == keeps_rates


def test_state_that_cannot_be_seen():
    """Without a state callback it is unknown whether the state is whole, and there is nothing to keep."""
    model = Weights()
    r8 = make(load_callback=model.load)
    r8.update_cpu_backup(model.get())
    live = LiveModel(r8.host.persistence, r8.host.announcer)
    live.begin()

    assert (live.mend(), live.keep_present(), live.can_restore) == (None, False, True)


def test_without_a_load_callback():
    """Without a load callback nothing can be restored."""
    r8 = make(state_callback=Weights().get)
    live = LiveModel(r8.host.persistence, r8.host.announcer)
    live.begin()

    assert (live.can_restore, live.put(Backup(0, 0, state=1)), live.of_trial) == (False, False, None)


def test_one_weight_that_has_outgrown_all_others():
    """A weight of 1,000 among hundreds hardly moves their mean; from the first state on they may grow so."""
    weights, model = np.linspace(-1.0, 1.0, 999), Layers()
    model.parts = {"model": {"w": weights, "bias": np.full(2, 0.03)}}
    live, r8, _ = live_of(model)
    model.parts = {"model": {"w": np.append(weights[1:], 1e3), "bias": np.full(2, 0.6)}}

    assert live.find_jump() is None
    r8.host.persistence.backup.backups[0].updates = 7
    assert live.find_jump() == 7
    assert live.jump.startswith("a stray write or a fault of the memory: 'model.w' reaches 1e+03 (in 1 of 999 numbers)")
    # An update that was far too large: one number is beyond ten times, and others are nearly so.
    model.parts = {"model": {"w": np.append(weights[2:], [11.0, -9.0]), "bias": np.full(2, 0.6)}}
    live.begin()
    assert (live.find_jump(), live.jump) == (7, "")
    model.parts = {"model": {"w": weights, "bias": np.full(2, 0.6)}}
    assert live.find_jump() is None


@pytest.mark.parametrize(
    ("bias", "by", "until", "found"),
    [(0.0, 3.5, 99, 90), (0.0, 2.5, 99, None), (0.0, 0.0, 85, 80), (3.5, 0.0, 99, 90), (0.0, 3.5, 45, None)],
    ids=["farther", "as far", "before a damaged one", "one array", "few before"],
)
def test_a_backup_that_was_taken_since_weights_have_moved_far_is_left_out(bias, by, until, found):
    """Each number moves by .5 from one backup to the next, and by 3 to the last of them."""
    model = Layers()
    live, r8, _ = live_of(model)
    r8.host.persistence.backup.backups = [
        Backup(step, step, state={"model": {"w": np.full(4, moved), "bias": np.full(1, moved)}})
        for step, moved in ((10, 0.0), (20, 0.5), (40, 1.0), (80, 1.5), (90, 4.5))
    ]
    model.parts = {"model": {"w": np.full(4, 4.5 + by), "bias": np.full(1, 4.5 + bias)}}
    state = live.before_move(until)

    assert (state and state.updates) == found


@pytest.mark.parametrize(
    ("by", "step", "found"),
    [(16.0, 304, "model.w"), (16.0, None, ""), (14.0, 304, ""), (16.0, 400, ""), (-16.0, 304, "model.w")],
    ids=["at once", "any number of steps", "less than its length", "many steps", "back"],
)
def test_weights_that_were_replaced_at_once(by, step, found):
    """They move by 6 in a hundred steps, which is 1.2 in four; their length is 20.6 at last."""
    known = [Backup(at, at, state={"model": {"w": np.array([10.0, 0.06 * at])}}) for at in (0, 100, 200, 300)]
    state = {"model": {"w": np.array([10.0, 18.0 + by])}}

    assert moved_in(known, state, lambda key: True, times=4.0, step=step) == found


def test_weights_that_are_no_longer_frozen_have_not_moved_far():
    live, r8, _ = live_of(Layers())
    r8.host.persistence.backup.backups = [
        Backup(step, step, state={"model": {"w": np.full(4, 0.1 * step), "head": np.full(4, max(0.0, step - 40.0))}})
        for step in (10, 20, 30, 40, 50)
    ]
    live.persistence.callbacks.state().update(model={"w": np.full(4, 5.1), "head": np.full(4, 90.0)})

    assert live.before_move(99) is None


@pytest.mark.parametrize(
    ("key", "shape", "changes", "trained", "is_stray"),
    [
        ("model.w", (8, 16), {3: 1e3}, slice(None), True),
        ("state.params.w", (8, 16), {3: -1e3}, slice(32, 96), True),
        ("model.w", (8, 16), {3: 1e3, 4: 5.0}, slice(None), False),
        ("model.w", (64, 4), {3: 1e3}, np.r_[:160, 162:256], True),
        ("model.w", (64, 4), {3: 1e3}, np.r_[:160, 162:200, 203:256], True),
        ("model.w", (64, 4), {3: 1e3}, np.r_[:160:4, 162:256], False),
        ("model.w", (8, 16), {3: 50.0}, slice(None), False),
        ("model.w", (8, 16), {3: 1e3}, slice(0, None, 5), False),
        ("model.w", (8, 16), {3: 1e3}, slice(0), False),
        ("model.w", (128,), {3: 1e3}, slice(None), False),
        ("model.w", (1, 128), {3: 1e3}, slice(None), False),
        ("model.w", (128, 1), {3: 1e3}, slice(None), False),
        ("model.w", (64, 2), {3: 1e3}, slice(0, None, 2), False),
        ("model.w", (4, 4), {3: 1e3}, slice(None), False),
        ("optimizer.w", (8, 16), {3: 1e3}, slice(None), False),
        ("state.opt_state.params.w", (8, 16), {3: 1e3}, slice(None), False),
    ],
)
def test_what_is_taken_for_a_stray_write(key, shape, changes, trained, is_stray):
    """One number of a matrix trained in rows, far beyond all; not what an update may do, or somebody with a buffer."""
    timer = make(state_callback=Weights().get).host.persistence.backup_timer
    weights = np.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)
    first, *path = reversed(key.split("."))

    def state(array):
        nest = {first: array, "other": np.ones(2)}
        for name in path:
            nest = {name: nest}
        return nest

    assert timer.take(state(weights), 1, 1) == ""
    changed = weights.copy()
    changed.flat[trained] *= 1.01
    for place, value in changes.items():
        changed.flat[place] = value
    assert timer.stray_in(sums_of(state(changed))) == (key if is_stray else "")


@pytest.mark.parametrize("name", ["model.logvar.weight", "z_mean/kernel", "params.variance_head.kernel", "model.mean"])
def test_a_layer_may_be_named_after_a_statistic(name):
    """Its weights are watched: those of an autoencoder's `z_log_var` as others."""
    statistics = [
        "model.norm.running_mean", "norm/moving_variance", "batch_stats.norm.mean", "norm.var.value", "state_index.1",
    ]  # fmt: skip
    state = dict.fromkeys([name, *statistics], np.ones((4, 4)))

    assert [*weights_in(sums_of(state), lambda key: True)] == [name] * (name != "model.mean")
