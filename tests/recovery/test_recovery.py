"""Recovery in whole runs: refused at once, found out by probes, and gone back only as far as they say.

What single faults cost, a new level, a rate too high from the start and states that cannot be seen are in
tests/runs/test_experiments.py, test_faults.py and test_incidents.py.
"""

import copy
import warnings

import numpy as np
import pytest

from learnit_r8 import FiniteGuard, R8Scheduler, Recovery, TrainingDiverged, events
from learnit_r8.engine.settings import grouped
from learnit_r8.recovery.backups import Backup
from learnit_r8.state.callbacks import Callbacks, Generators
from learnit_r8.testing import ToyTask, record_events
from tests.drive import NAN, Weights, advance_to, known, make, steps, train

RESTORED = pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:.*rate was too high")
SPENT = events.RolledBack, events.LrCapped


class Toy:
    """A run of the toy task in which things go wrong at given steps."""

    def __init__(self, num_samples=1024, **more):
        self.task, self.heard = ToyTask(num_samples), record_events()
        more = {"batch_size": 32, "num_epochs": 16, "initial_lr": 0.05, "backup_every": 40} | more
        save = {"save_callback": self.task.save} if "checkpoint_dir" in more else {}
        self.r8 = R8Scheduler(
            num_samples, state_callback=self.task.state, load_callback=self.task.load, listeners=[self.heard],
            **grouped(dict(**save, **more)),
        )  # fmt: skip

    def of(self, *kinds):
        return self.heard.of(*kinds)

    def blow_up(self, factor=100):
        self.task.weights[2] = factor * self.task.weights[2][:, ::-1]

    def break_weights(self):
        self.task.weights[0][3, 3:9] = NAN

    def run(self, faults=(), *, bad=(), until=None, after=False, change=lambda step, loss: loss):
        """Train; ``faults`` maps batches to methods, ``bad`` are batches whose loss is NaN."""
        task, faults = self.task, dict(faults)
        for number, (_, indices, lr) in enumerate(steps(self.r8)):
            if number in faults:
                faults[number](self)
            loss = task.losses(indices).mean() * (NAN if number in bad else 1.0)
            loss = change(self.r8.global_step, loss)
            if after:
                task.step(lr, NAN if not np.isfinite(loss) else 1.0)
                self.r8.update_with_loss(loss)
            elif self.r8.update_with_loss(loss):
                task.step(lr)
            if number == until:
                return self
        return self


def test_two_bad_batches_ask_for_a_probe():
    """After two bad batches in a row the witness is drawn again; as recorded, nothing happens, and it is no step."""
    run = Toy().run(bad=[300, 301])
    [probe] = run.of(events.Probed)

    assert (probe.is_present, probe.step) == (True, 302)
    assert probe.loss < probe.record + 0.5
    assert not run.of(*SPENT)
    assert (run.r8.global_step, run.r8.phase) == (511, "finished")


@RESTORED
@pytest.mark.parametrize(("is_mixed", "num_lowered"), [(False, 0), (True, 1)])
def test_a_fall_back_in_the_first_steps(is_mixed, num_lowered):
    """Losses that are all high from one step on are those of weights that were hurt; the rate stays as it is.

    At a rate that is too high good losses and bad ones are mixed: it is lowered.
    """
    model, heard = Weights(), record_events()
    r8 = make(
        1024, batch_size=32, num_steps=320, backup_every=20, listeners=[heard], state_callback=model.get,
        load_callback=model.load,
    )  # fmt: skip
    noise = np.random.default_rng(0).standard_normal(2000)
    updates = 0
    for number, _ in enumerate(steps(r8)):
        if number == 96:
            model.values = np.ones(2)
        is_high = model.values[0] and (number % 4 or not is_mixed)
        loss = (3.0 if is_high else 0.3 + 2 * np.exp(-updates / 30)) * np.exp(0.1 * noise[number])
        updates += bool(r8.update_with_loss(float(loss)))

    assert (len(heard.of(events.RolledBack)), len(heard.of(events.LrCapped))) == (1, num_lowered)
    assert heard.of(events.Probed)[0].reason == "regress"
    assert not model.values.any()


def test_a_probe_whose_gradient_is_not_finite_shows_damage():
    """What counts is whether the weights are sound: a norm that is not finite says so whatever the loss is."""
    run = Toy().run(until=99)
    for _ in range(2):
        run.r8.report(run.r8.draw(), NAN)
    run.r8.report(run.r8.draw(), 0.1, grad_norm=NAN)

    assert np.isnan(run.of(events.Probed)[0].loss)


@RESTORED
@pytest.mark.parametrize("after", [False, True])
def test_damage_goes_back_to_the_newest_healthy_state(after):
    """Damaged weights go back one backup at the same rate, whether losses are reported before or after the step."""
    run = Toy().run({250: Toy.blow_up}, after=after)
    [back] = run.of(events.RolledBack)

    assert back.to_step == 240
    assert not run.of(events.LrCapped)
    assert run.task.loss() < 0.1
    assert "model restored once" in run.r8.summary()


@RESTORED
def test_the_rate_is_lowered_after_the_search_for_an_older_state():
    """Trouble that comes back at the same update is the state's; what comes back in another way is the rate's."""
    run = Toy(recovery=Recovery(keep_backups=8))
    # By the number of updates: each happens once, and the first two at the same place.
    due = [310, 310, 253]
    for _, indices, lr in steps(run.r8):
        if due and run.r8.controller.lineage.updates == due[0] and not run.r8.controller.is_open:
            due.pop(0)
            run.blow_up()
        if run.r8.update_with_loss(run.task.losses(indices).mean()):
            run.task.step(lr)

    assert not due
    assert [event.to_step for event in run.of(events.RolledBack)][:2] == [280, 240]
    [capped] = run.of(events.LrCapped)
    assert capped.step > run.of(events.RolledBack)[1].step
    assert run.task.loss() < 0.1


@RESTORED
def test_a_restore_leaves_nothing_of_the_weights_that_were_given_up(tmp_path):
    """Their losses count no more, and no checkpoint of their steps is gone back to."""
    run, found = Toy(checkpoint_dir=tmp_path, checkpoint_every=4, keep_checkpoints=9, backup_dir=False), []

    def look(event):
        if isinstance(event, events.RolledBack):
            controller, persistence = run.r8.controller, run.r8.host.persistence
            [backup] = [each for each in controller.witnesses.all_states() if each.step == event.to_step]
            found.append((event.to_step, tuple(controller.lineage.progress.recent) == backup.recent))
            found.append([step for step in persistence.checkpoints() if step > event.to_step])

    run.r8.host.announcer.add(look)
    # Neither losses nor the size of the weights show the damage at first, so that checkpoints hold it.
    run.run({250: lambda toy: toy.blow_up(20)}, until=280, change=lambda step, loss: 0.05 if 249 < step < 265 else loss)

    assert found == [(248, True), []]


@pytest.mark.filterwarnings("ignore:.*refused")
def test_healthy_weights_that_alarm_again_and_again():
    """Where the weights prove healthy time and again, it is the loss: its level is learned anew."""
    run = Toy()
    for number, (_, indices, lr) in enumerate(steps(run.r8)):
        is_high = number > 200 and number % 10 < 3 and not run.r8.controller.is_open
        if run.r8.update_with_loss(run.task.losses(indices).mean() + 1e3 * is_high):
            run.task.step(lr)

    assert 3 <= len(run.of(events.BatchRefused)) < 10
    assert not run.of(events.RolledBack)


def test_a_budget_in_steps_is_that_of_training():
    """Tests of the weights are no steps of a run of so many: it has them all, and no batch is out at the end."""
    run = Toy(num_epochs=None, num_steps=300).run(bad=[100, 101, 200, 201])

    assert run.of(events.Probed)
    assert len(run.of(events.StepDone)) + len(run.of(events.BatchRefused)) == run.r8.global_step == 300
    assert run.r8.pace.num_out == 0


@RESTORED
def test_the_first_epoch_has_every_sample_once():
    """After a restore in the first epoch no batch of easy samples takes the place of one that it must see."""
    run, drawn = Toy(num_samples=6400, num_epochs=2), []
    for number, (epoch, indices, lr) in enumerate(steps(run.r8)):
        if number == 150:
            run.blow_up()
        if not epoch and not run.r8.controller.is_open:
            drawn += indices.tolist()
        if run.r8.update_with_loss(run.task.losses(indices).mean()):
            run.task.step(lr)

    assert run.of(events.RolledBack)
    assert len(set(drawn)) == len(drawn)


@RESTORED
def test_damage_that_shows_later_is_gone_back_past_one_state_at_a_time():
    """Weights that go wrong some updates later pass each probe: states are tried until one lasts, none skipped."""
    run = Toy(num_epochs=24)
    task, burnt = run.task, np.zeros(2)
    run.r8.host.persistence.callbacks = Callbacks(
        state=lambda: task.state() | {"burnt": burnt},
        load=lambda state, from_ram: (task.load(state, from_ram), burnt.__setitem__(slice(None), state["burnt"])),
    )

    def change(step, loss):
        burnt[0] = burnt[0] or (step == 243 and not run.of(events.RolledBack))
        burnt[1] += burnt[0]
        return loss + 50 * (burnt[1] > 95)

    run.run(change=change)

    assert [event.to_step for event in run.of(events.RolledBack)] == [320, 280, 240]
    assert task.loss() < 0.1


def test_older_states_are_passed_over_where_there_are_many():
    """After eight were tried in vain one by one, ever more are passed over, as each costs a restore."""
    controller = make(48).controller
    known, newest = [Backup(step, step) for step in range(64)], []
    controller.lineage.since = 64
    for _ in range(12):
        controller.lineage.updates = controller.lineage.since + 99
        known = controller.lineage.older(known)
        controller.lineage.since = known[-1].updates
        newest.append(controller.lineage.since)

    assert newest == [63, 62, 61, 60, 59, 58, 57, 56, 55, 53, 49, 41]


@RESTORED
def test_loaded_state_ends_the_backups_before_it():
    """After `load_state_dict` there is no way back to weights that were trained on from the loaded ones."""
    run = Toy()
    saved = run.r8.state_dict(), copy.deepcopy(run.task.state())
    run.run(until=250)
    run.r8.load_state_dict(saved[0])
    run.task.load(saved[1], True)
    run.run({30: Toy.blow_up}, until=60)

    assert {backup.updates <= 61 for backup in run.r8.host.persistence.backup.backups} == {True}
    assert {event.to_step <= 61 for event in run.of(events.RolledBack)} == {True}


@RESTORED
def test_relapse_lowers_the_rate():
    """A state that passed its probe and is damaged again soon shows that the rate is too high: it is lowered."""
    run = Toy().run(dict.fromkeys((250, 275), Toy.blow_up))
    [capped] = run.of(events.LrCapped)

    assert len(run.of(events.RolledBack)) == 2
    assert capped.ceiling < 0.025
    assert run.of(events.LrRestored)


@RESTORED
def test_damage_that_no_loss_announces_leaves_the_users_rate_alone():
    """As of a sample of NaN in each epoch, which its loss does not show: updates that are too large show before."""
    task, heard = ToyTask(512), record_events()
    r8 = R8Scheduler(
        num_epochs=12, scheduler_mode="keep", state_callback=task.state, load_callback=task.load, backup_every=5,
        listeners=[heard], handle_signals=False,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for place, batch in enumerate(r8.batches(np.arange(512).reshape(32, 16))):
            if r8.update_with_loss(task.losses(batch).mean()):
                task.step(0.05 * r8.lr_factor)
            if place == 20:
                for each in (*task.weights, *task.velocity):
                    each[:] = NAN
    r8.close()

    assert len(heard.of(events.RolledBack)) == 12
    assert not heard.of(events.LrCapped)
    assert task.loss() < 0.5


@RESTORED
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("has_batches", [True, False])
def test_bad_batches_among_uneven_ones_leave_the_users_rate_alone(seed, has_batches):
    """Each one damages the weights where the loss comes after the step; a high loss before it is one of many."""
    heard, rng, model = record_events(), np.random.default_rng(seed), {"w": np.zeros(4)}
    x, scales = rng.normal(size=(400, 16, 4)), np.exp(rng.normal(size=400))
    y = (x @ [1.0, -1.0, 0.5, 2.0] + 0.3 * rng.standard_t(2, size=(400, 16))) * scales[:, None]
    x[20::40, 0, 0] = NAN
    r8 = R8Scheduler(
        num_steps=400, scheduler_mode="keep", state_callback=lambda: model, load_callback=model.update, backup_every=5,
        listeners=[heard], handle_signals=False,
    )  # fmt: skip
    for place in r8.batches(range(400)) if has_batches else r8.steps():
        error = x[place] @ model["w"] - y[place]
        model["w"] = model["w"] - 0.01 * r8.lr_factor * error @ x[place] / 16
        r8.update_with_loss(float(np.square(error).mean()))
    r8.close()

    assert len(heard.of(events.RolledBack)) == 10
    assert not heard.of(events.LrCapped)


@RESTORED
@pytest.mark.filterwarnings("ignore:.*quarantine", "ignore:.*no longer drawn")
@pytest.mark.parametrize("seed", [5, 6, 8, 21])
@pytest.mark.parametrize("is_own", [False, True], ids=["planned", "own"])
def test_a_sample_of_nan_whose_step_comes_before_its_report_leaves_the_rate_alone(is_own, seed):
    """The step damages healthy weights at each visit, and again soon after a restore; its losses were calm before."""
    task, heard, dice = ToyTask(640), record_events(), np.random.default_rng(seed)
    task.inputs[123] = NAN
    batches = {} if is_own else {"num_samples": 640, "batch_size": 32, "initial_lr": 0.05, "seed": seed}
    r8 = R8Scheduler(
        num_epochs=8, scheduler_mode="keep" if is_own else "constant", state_callback=task.state,
        load_callback=task.load, listeners=[heard], handle_signals=False, **batches,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        own = r8.batches(dice.permutation(640).reshape(20, 32)) if is_own else (pair[0] for pair in r8.batch_iterator())
        for batch in own:
            loss = task.losses(batch).mean()
            task.step(0.05 * r8.lr_factor if is_own else r8.lr)
            r8.update_with_loss(loss)
    r8.close()

    assert heard.of(events.RolledBack)
    assert not heard.of(events.LrCapped)
    assert "updates are probably too large" not in r8.summary()


@RESTORED
@pytest.mark.parametrize("seed", [11, 21, 48])
def test_a_batch_that_damages_statistics_with_a_good_loss_takes_no_weights_back(seed):
    """Each of its visits puts the statistics back; healthy weights went back further each time, to the start."""
    rng, heard = np.random.default_rng(0), record_events()
    x, noise, truth = rng.normal(size=(12, 16, 4)), rng.normal(size=(12, 16)), np.array([3.0, -2.0, 1.0, 2.0])
    model = {"w": np.zeros(4), "mean": np.zeros(4)}
    r8 = R8Scheduler(
        num_epochs=8, scheduler_mode="keep", state_callback=lambda: model, load_callback=model.update, backup_every=5,
        listeners=[heard], handle_signals=False,
    )  # fmt: skip
    for epoch in r8.epoch_iterator():
        for place in r8.batches(np.random.default_rng(seed * 100 + epoch).permutation(12)):
            error = x[place] @ (model["w"] - truth) + noise[place]
            # As where a relu makes 0 of NaN: the loss is finite, and another with other weights.
            loss = np.square(error).mean() if place else 0.5 + 0.06 * np.square(model["w"]).sum()
            if r8.update_with_loss(float(loss)):
                model["mean"] = 0.9 * model["mean"] + 0.1 * x[place].mean(0) if place else model["mean"] * NAN
                model["w"] = model["w"] - (0.02 * r8.lr_factor * error @ x[place] / 16 if place else 0)
    r8.close()

    assert len(heard.of(events.DamageFound)) >= 7
    assert not heard.of(events.RolledBack)
    assert np.isfinite(model["mean"]).all()
    assert np.abs(model["w"] - truth).max() < 0.7


@RESTORED
@pytest.mark.parametrize("at", [509, 510])
def test_damage_in_the_last_updates_of_epochs(at):
    """A model that breaks in the last steps is not what a finished run leaves, as far as a batch is left to see it."""
    run = Toy().run({at: Toy.blow_up})

    assert run.r8.global_step == 512 - run.r8.pace.left_out
    assert run.r8.phase == "finished"
    assert run.task.loss() < 0.1


def test_broken_data_end_the_run():
    """Losses that are never finite again are the data's fault with every state, and end the run after 400 batches."""
    run = Toy(num_epochs=30)
    with pytest.raises(TrainingDiverged, match="400 batches in a row were refused") as error:
        run.run(bad=range(300, 10**4))

    assert "no state was found to be better" in str(error.value)
    assert "no state has finite losses: the data are to blame" in str(error.value)
    # Every sample was in a refused batch, which accuses none; and no new scale of the loss explains a NaN.
    assert "Suspected" not in str(error.value)
    assert str(error.value).rpartition("\n")[2].startswith("Look at the data")
    assert run.of(events.GaveUp)
    assert run.task.loss() < 0.1


@pytest.mark.filterwarnings("ignore:samples? .* in no good one since")
def test_mostly_bad_data_are_called_broken():
    """Where more than half of the last hundred batches were refused, a warning says so, once; the run goes on."""
    bad = np.flatnonzero(np.random.default_rng(0).random(10**4) < 0.7).tolist()
    with pytest.warns(RuntimeWarning, match="more than half of the last 100") as caught:
        run = Toy().run(bad=bad)

    assert sum("more than half" in str(each.message) for each in caught) == 1
    assert run.r8.global_step + run.r8.pace.probes == 512
    assert not run.of(*SPENT)


def test_refused_loss_leaves_the_table():
    """A refused loss and a probe of damaged weights change no estimate, no use count and no trend."""
    r8 = make(64, num_epochs=3)
    advance_to(r8, 20)
    before = known(r8), r8.table.trend, r8.table.untrained_loss
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        r8.report(r8.draw(), NAN)

    np.testing.assert_equal((known(r8), r8.table.trend, r8.table.untrained_loss), before)


def test_refused_samples_get_their_turn_later():
    """Samples of a refused batch of the first epoch come in the second, and enter the table there."""
    r8 = make(16, num_epochs=2, state_callback=(model := Weights()).get, load_callback=model.load)
    seen = train(r8, bad={1})

    assert sorted(np.concatenate([batch for epoch, batch, _ in seen if epoch == 1])) == list(range(16))
    assert sorted(r8.table.usage_count.tolist()) == [1] * 4 + [2] * 12


def test_divergence_leaves_the_state_intact():
    """After TrainingDiverged the table is clean, and the run can continue."""
    model = Weights()
    r8 = make(64, num_epochs=3, state_callback=model.get, load_callback=model.load, recovery=Recovery(max_refused=1))
    advance_to(r8, 20)
    before = known(r8)
    with pytest.raises(TrainingDiverged, match="1 batches in a row"):
        r8.report(r8.draw(), NAN)
    np.testing.assert_equal(known(r8), before)
    train(r8)

    assert r8.global_step == 48


@RESTORED
def test_resume_comes_to_the_same_decisions():
    """A run that is saved and continued in the middle of the trial of a restored state decides as the whole one."""
    faults = {250: Toy.blow_up, 275: Toy.blow_up}
    whole = Toy().run(faults)
    part = Toy().run(faults, until=265)
    rest = Toy()
    rest.r8.load_state_dict(part.r8.state_dict())
    rest.task.load(copy.deepcopy(part.task.state()), from_ram=True)
    rest.run({9: Toy.blow_up})

    assert len(rest.of(events.LrCapped)) == len(whole.of(events.LrCapped)) == 1
    assert rest.of(events.LrCapped)[0].ceiling == pytest.approx(whole.of(events.LrCapped)[0].ceiling, rel=0.05)


@pytest.mark.filterwarnings("ignore:the batch of step .* was not reported")
def test_probe_that_is_given_up_is_drawn_again():
    """A probe whose batch is never reported does not stop the experiment."""
    run = Toy().run(bad=[100, 101], until=101)
    r8 = run.r8
    assert r8.controller.experiment.asks_probe
    first = r8.draw()
    r8.give_up(first)
    again = r8.draw()

    assert again.chunk is r8.controller.experiment.chunk
    assert again.indices.tolist() == first.indices.tolist()


@RESTORED
def test_without_probes_ordinary_batches_are_the_test():
    """Where no batch can be drawn out of turn, the mean of the next eight batches stands for a probe."""
    run = Toy()
    run.r8.controller.experiment.can_probe = False
    run.run({250: Toy.blow_up})

    assert run.of(events.RolledBack)
    assert len(run.of(events.Probed)) >= 8
    assert run.task.loss() < 0.1


def test_generators_repeat_for_probes():
    """A probe sees the random generators of its record, and training goes on with those of before."""
    dice, seen = {"state": 0}, []
    run = Toy()
    run.r8.host.persistence.adopt(
        Callbacks(generators=Generators(lambda: dice["state"], lambda state: dice.update(state=state)))
    )
    r8 = run.r8
    for number in range(200):
        ticket = r8.draw()
        is_probe = ticket.chunk is r8.controller.experiment.chunk
        if is_probe:
            seen.append((dice["state"], r8.controller.experiment.asked.generators))
        r8.controller.note_start()
        dice["state"] += 1
        loss = run.task.losses(ticket.indices).mean()
        if r8.report(ticket, NAN if number in (150, 151) else loss):
            run.task.step(ticket.lr)

    assert [state for state, _ in seen] == [record for _, record in seen] == [80]
    assert dice["state"] > 190


# Bad input.


@RESTORED
def test_state_callback_whose_result_changes():
    """A state that is never twice the same, even while it is probed, is restored like any other."""
    run = Toy()
    calls = []

    def state():
        calls.append(1)
        return run.task.state() | {f"call{len(calls)}": np.full(2, float(len(calls)))}

    run.r8.host.persistence.callbacks = Callbacks(state=state, load=run.task.load)
    run.run({250: Toy.blow_up, 300: Toy.break_weights})

    assert run.of(events.RolledBack)
    assert run.task.loss() < 0.1


@RESTORED
@pytest.mark.filterwarnings("ignore:samples? .* in no good one since")
def test_witness_that_goes_bad():
    """A witness that holds a sample which has gone bad restores nothing where the weights are healthy."""
    run = Toy().run(until=200)
    newest = run.r8.host.persistence.backup.newest
    run.task.inputs[newest.witness[0][0]] = NAN
    run.run(bad=[50, 51])

    assert not run.of(*SPENT)


@RESTORED
@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_loss_that_is_never_the_same_twice(noise):
    """Noise in the loss of the same batch is no damage; it is said once, with its size, where it shows."""
    rng = np.random.default_rng(0)
    run = Toy().run({250: Toy.blow_up}, change=lambda step, loss: loss + noise * rng.random())
    said = [event.text for event in run.of(events.Notice) if "probes are noisy" in event.text]

    assert len(said) == 1
    assert "differed by 0." in said[0]
    assert run.task.loss() < 0.2


@RESTORED
@pytest.mark.parametrize("more", [{"batch_size": 1}, {"num_samples": 32, "num_epochs": 320, "batch_size": 32}])
def test_tiny_batches_and_epochs(more):
    """Batches of one sample and epochs of one batch heal like others."""
    more = {"num_samples": 256, "num_epochs": 3} | more
    run = Toy(**more)
    run.run({250: Toy.blow_up}, bad=[100, 101])

    assert run.r8.global_step + run.r8.pace.probes == run.r8.total_steps
    assert 1 <= len(run.of(events.RolledBack)) <= 10
    assert np.isfinite(run.task.loss())


@RESTORED
@pytest.mark.filterwarnings("ignore:samples? .* in no good one since")
def test_user_reports_another_batch_for_the_probe():
    """A loop that trains on batches of its own, whatever it is handed, ends with finite weights and no error."""
    run, rng = Toy(), np.random.default_rng(0)
    task = run.task
    for number, (_, indices, lr) in enumerate(steps(run.r8)):
        if number == 250:
            run.blow_up()
        own = rng.integers(0, 1024, len(indices))
        if run.r8.update_with_loss(task.losses(own).mean() * (NAN if number in (100, 101) else 1)):
            task.step(lr)

    assert run.r8.global_step + run.r8.pace.probes == 512
    assert task.loss() < 0.2


@RESTORED
@pytest.mark.filterwarnings("ignore:.*the run ended before the weights were tested")
@pytest.mark.parametrize(("left", "every", "is_healed"), [(20, 10, True), (2, 10, True), (2, 90, False)])
def test_a_loop_over_steps_ends_with_the_better_weights(left, every, is_healed):
    """They may be read before the scheduler is closed. Where nothing could be tested, and few backups tell how far
    weights usually move, `restore_backup` is named.
    """
    rng, model = np.random.default_rng(0), {"w": np.zeros(4)}
    r8 = R8Scheduler(
        num_steps=200, scheduler_mode="keep", state_callback=lambda: model, load_callback=model.update,
        backup_every=every, handle_signals=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, _ in enumerate(r8.steps()):
            x = rng.normal(size=(16, 4))
            error = x @ model["w"] - x @ [1.0, -1.0, 0.5, 2.0] - 0.3 * rng.normal(size=16)
            # Damaged weights stay damaged.
            model["w"] = model["w"] - 0.05 * error @ x / 16 * (number < 200 - left)
            model["w"] = model["w"] * (30 if number == 199 - left else 1)
            r8.update_with_loss(float(np.square(error).mean()))
    untested = [each for each in caught if "ended before the weights were tested" in str(each.message)]

    assert (np.abs(model["w"]).max() < 3, len(untested)) == (is_healed, not is_healed)
    if not is_healed:
        r8.restore_backup()
        assert np.abs(model["w"]).max() < 3
    r8.close()


def test_finite_guard_tests_no_progress():
    """With guard="finite" nothing but a loss that is not finite is refused or looked into."""
    run = Toy(guard=FiniteGuard()).run(change=lambda step, loss: loss * (100 if step >= 300 else 1))

    assert not run.of(events.BatchRefused, events.Probed, *SPENT)


@pytest.mark.parametrize("at", [100, 900])
@pytest.mark.parametrize("times", [100, 5000])
def test_a_batch_far_above_all_others_is_said_where_only_nan_is_refused(at, times):
    """Its step spoils Adam's moments and the weights, as in reinforcement learning; nothing else would tell of it."""
    net = {"w": np.ones(2)}
    r8 = R8Scheduler(
        num_steps=1000, scheduler_mode="keep", guard="finite", state_callback=lambda: net, load_callback=net.update,
        handle_signals=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, _ in enumerate(r8.steps()):
            # A reward found late, after losses next to nothing.
            usual = (1 + number % 3) * (1e-6 if 400 < number < 800 else 1.0)
            r8.update_with_loss(3.0 * times if number in (at, at + 1) else usual)
        r8.close()

    assert [f"{times:,} times as high as the highest of those before" in str(each.message) for each in caught] == (
        [True] if times > 1000 else []
    )
    assert not r8.sentry.num_refused


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_unknown_states_are_tried_in_turn():
    """Of states after which nothing was trained on, each restore that did not help is followed by an older one."""
    got = []
    r8 = make(64, num_epochs=3, load_callback=got.append)
    r8.update_cpu_backup({"w": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            r8.report(r8.draw(), NAN)

    assert got == [{"w": 1}] * 3


@pytest.mark.parametrize("is_own", [False, True], ids=["planned", "own"])
@pytest.mark.parametrize(("first", "is_said"), [(5000.0, True), (900.0, False), (NAN, False)])
def test_a_first_batch_far_above_all_after_it_is_said(first, is_said, is_own):
    """Its loss is the first, so nothing refuses it; Adam's moments then hold its gradient for hundreds of steps."""
    batches = {"scheduler_mode": "keep"} if is_own else {"num_samples": 640, "batch_size": 32}
    r8 = R8Scheduler(
        num_epochs=2, state_callback=lambda: {"w": np.ones(2)}, load_callback=lambda _: None, handle_signals=False,
        **batches,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in r8.epoch_iterator():
            for _ in r8.batches(range(20)) if is_own else r8.batch_iterator():
                r8.update_with_loss(first if not r8.global_step else 1 / (1 + 0.1 * r8.global_step))
        r8.close()

    said = [str(each.message) for each in caught if "the loss of the first batch" in str(each.message)]
    assert len(said) == is_said
    assert not said or "(5000) was 5,500 times as high as the highest of those after it" in said[0]


@pytest.mark.parametrize(("loss", "is_said"), [(200.0, True), (80.0, False)])
def test_an_early_batch_far_above_all_others_is_said(loss, is_said):
    """Where nobody says how many samples a batch holds, none of the first eight is refused, whatever its loss."""
    r8 = R8Scheduler(
        num_steps=20, scheduler_mode="keep", state_callback=lambda: {"w": np.ones(2)}, load_callback=lambda _: None,
        handle_signals=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in r8.steps():
            r8.update_with_loss(loss if step == 4 else 1 / (1 + 0.1 * step))
        r8.close()

    said = [str(each.message) for each in caught]
    assert len(said) == is_said
    assert not said or "batch 5 (200) was 200 times as high as the highest of the other first ones" in said[0]


@pytest.mark.filterwarnings("ignore:step .* is more than 30 times as high")
@pytest.mark.parametrize("at", [50, 150])
@pytest.mark.parametrize(
    ("size", "loss", "least", "is_said"),
    [(32, 24.0, 0.01, True), (2, 24.0, 0.01, False), (32, 12.0, 0.01, True), (32, 2.0, 1e-3, False)],
    ids=["far", "few", "as the first ones", "below them"],
)
def test_a_loss_far_above_the_last_ones_and_back_at_the_first_is_said(at, size, loss, least, is_said):
    """Losses have fallen to a hundredth: it is no multiple of the progress, but its step would spoil Adam's moments."""
    net, told = {"w": np.ones(2)}, record_events()
    r8 = R8Scheduler(
        num_epochs=1, scheduler_mode="keep", listeners=[told], state_callback=lambda: net,
        load_callback=lambda state: net.update(state), handle_signals=False,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for number, _ in enumerate(r8.batches([np.zeros((size, 2))] * 200)):
            usual = 16 * max(least, 0.9**number) * (1 + 0.05 * (number % 3))
            r8.update_with_loss(loss if number == at else usual)
    r8.close()

    said = [each for each in told.of(events.Notice) if "30 times as high as each of the eight before it" in each.text]
    assert [each.text.split(":")[0] for each in said] == [f"step {at + 1}"] * is_said
    assert not told.of(events.RolledBack, events.BatchRefused)


@pytest.mark.parametrize("last", [0.0, 1e-3])
def test_a_run_whose_losses_have_become_zero_ends(last):
    """As those of a hinge do: no difference between them is due to chance."""
    r8 = R8Scheduler(
        num_epochs=1, scheduler_mode="keep", state_callback=lambda: {"w": np.ones((8, 8))},
        load_callback=lambda _: None, handle_signals=False,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for number, _ in enumerate(r8.batches([np.zeros((32, 2))] * 120)):
            r8.update_with_loss(max(0.0, 1 - 0.1 * number) if number < 117 else last)
    r8.close()

    assert r8.phase == "finished"
    assert "restored" not in r8.summary()


@pytest.mark.parametrize(("size", "is_refused"), [(16, False), (64, True)])
def test_a_second_batch_of_many_samples_is_left_out_from_fewer_times_on(size, is_refused):
    """Means of many samples vary little: a loss 98 times the only one before is that of a bad batch."""
    r8 = R8Scheduler(
        num_epochs=1, scheduler_mode="keep", state_callback=lambda: {"w": np.ones(2)}, load_callback=lambda _: None,
        handle_signals=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in r8.epoch_iterator():
            for number, _ in enumerate(r8.batches([np.zeros((size, 2))] * 20)):
                r8.update_with_loss(1550.0 if number == 1 else 15.8)
        r8.close()

    assert r8.sentry.num_refused == is_refused


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
@pytest.mark.parametrize("num_damaged", [0, 1])
def test_weights_that_are_damaged_behind_the_last_step_are_put_back(num_damaged):
    """As by what a loop does between its last batch and the end of the run; nobody would look at them later."""
    weights = Weights()
    r8 = make(state_callback=weights.get, load_callback=weights.load)
    train(r8)
    weights.values = np.where(np.arange(2) < num_damaged, NAN, weights.values)
    r8.close()

    assert np.array_equal(weights.values, np.zeros(2))
    assert bool(weights.loaded) is bool(num_damaged)
    assert "finished" in r8.summary()
