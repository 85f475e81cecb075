"""The witness of a state is the first batch that is trained on after it."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.state.callbacks import Callbacks
from tests.drive import NAN, Weights, advance_to, make


class Dice:
    """Random generators that count their draws; what an adapter hands over as `Callbacks.generators`."""

    def __init__(self):
        self.state, self.gets = 0, 0

    def get(self):
        self.gets += 1
        return self.state

    def set(self, state):
        self.state = state


def run(**more):
    model = Weights()
    callbacks = {"state_callback": model.get, "load_callback": model.load}
    return make(48, num_epochs=9, backup_every=12, **callbacks, **more), model


def test_first_batch_is_the_witness():
    """The samples and the loss of the first batch after a backup are its witness and record."""
    r8, _ = run()
    ticket = r8.draw()
    r8.report(ticket, 1.25)
    r8.report(r8.draw(), 1.0)
    [backup] = r8.host.persistence.backup.backups

    assert [each.tolist() for each in backup.witness] == [ticket.indices.tolist()]
    assert backup.record == 1.25


def test_refused_batch_is_no_witness():
    """A refused batch says nothing about the weights: the next good one is the witness."""
    r8, _ = run()
    r8.report(r8.draw(), NAN)
    ticket = r8.draw()
    r8.report(ticket, 1.0)

    assert r8.host.persistence.backup.newest.witness[0].tolist() == ticket.indices.tolist()


def test_batch_drawn_before_the_backup_is_no_witness():
    """The loss of a batch that was drawn before a backup was computed with other weights."""
    r8, model = run()
    advance_to(r8, 2)
    early = r8.draw()
    r8.update_cpu_backup(model.get())
    r8.report(early, 1.0)
    assert r8.host.persistence.backup.newest.witness == []
    later = r8.draw()
    r8.report(later, 1.0)

    assert r8.host.persistence.backup.newest.witness[0].tolist() == later.indices.tolist()


def test_witness_is_an_accumulated_step():
    """Where several batches make an update, they are the witness together, and the record is their mean."""
    r8, _ = run()
    r8.host.persistence.backup.witness_size = 3
    for loss in (1.0, 1.1, 1.2, 1.0):
        r8.report(r8.draw(), loss)
    [backup] = r8.host.persistence.backup.backups

    assert (len(backup.witness), backup.record) == (3, pytest.approx(1.1))


def test_checkpoint_without_a_backup_has_a_witness(tmp_path):
    """A checkpoint at a step without a backup is tested with its own first batch."""
    r8, model = run(checkpoint_dir=tmp_path, checkpoint_every=99, backup_dir=False)
    r8.host.persistence.adopt(Callbacks(save=model.save))
    advance_to(r8, 3)
    r8.save_checkpoint()
    ticket = r8.draw()
    r8.report(ticket, 1.25)
    known = {each.step: each for each in r8.controller.witnesses.known()}

    assert sorted(known) == [0, 3]
    assert (known[3].is_on_disk, known[3].record) == (True, 1.25)
    assert known[3].witness[0].tolist() == ticket.indices.tolist()


def test_trust_takes_calm_losses():
    """A witness is a reference once so many calm losses have come after its backup, and not before."""
    r8, _ = run(policy="shuffle")
    proven = []
    while len(proven) < 40:
        r8.report(r8.draw(), 1.0 + 0.001 * (len(proven) % 3))
        proven.append(r8.host.persistence.backup.backups[0].is_proven)

    assert proven.index(True) == 31


def test_trust_begins_anew_where_losses_are_not_calm():
    """Calm losses before and after trouble do not make a witness a reference together."""
    r8, _ = run()
    r8.report(r8.draw(), 1.0)
    [backup] = r8.host.persistence.backup.backups
    for updates in range(4, 64, 4):
        r8.controller.witnesses.trust(updates, is_calm=updates != 32)
    assert not backup.is_proven
    r8.controller.witnesses.trust(64, is_calm=True)

    assert backup.is_proven


def test_generators_are_noted_once():
    """The random generators are read as the training on the first batch after a backup begins, and no other."""
    r8, _ = run()
    dice = Dice()
    r8.host.persistence.adopt(Callbacks(generators=dice))
    for state in (5, 6, 7):
        dice.state = state
        ticket = r8.draw()
        r8.controller.note_start()
        r8.report(ticket, 1.0)

    assert (r8.host.persistence.backup.newest.generators, dice.gets) == (5, 1)


def test_witnesses_survive_a_resume(tmp_path):
    """A resumed run knows the witnesses of its checkpoints, and their records."""
    model = Weights()
    more = {
        "checkpoint_dir": tmp_path, "save_callback": model.save, "state_callback": model.get,
        "load_callback": model.load, "num_epochs": 9, "backup_dir": False,
    }  # fmt: skip
    r8 = make(48, **more)
    advance_to(r8, 14)
    r8.save_checkpoint()
    known = {each.step: each for each in r8.controller.witnesses.known()}
    r8.close()
    again = make(48, **more)
    again.load_checkpoint()
    found = {each.step: each for each in again.controller.witnesses.known()}

    assert list(found) == [12]
    assert found[12].record == known[12].record
    assert np.array_equal(found[12].witness, known[12].witness)


def test_the_batch_before_damage_that_no_loss_shows_is_no_witness():
    """It may be what damages: neither it nor a later one tests weights again; the state itself stays, and the first."""
    model = {"w": np.zeros(2), "mean": np.zeros(2)}
    callbacks = {"state_callback": lambda: model, "load_callback": model.update}
    r8 = make(48, num_epochs=9, backup_every=12, scheduler_mode="keep", **callbacks)
    advance_to(r8, 14)
    backups = r8.host.persistence.backup.backups
    had = [len(each.witness) for each in backups]
    model["mean"] = np.array([NAN, NAN])
    r8.check()
    advance_to(r8, 18)

    assert had == [1, 1]
    assert [len(each.witness) for each in backups[:2]] == [1, 0]
    assert backups[1].state is not None
    assert np.isfinite(model["mean"]).all()


ODD = {
    "inputs": (lambda x, y: (x * 1e4, y), 0.005, 0.6, True),
    "one value": (lambda x, y: (np.where(np.arange(x.size).reshape(x.shape) == 5, 1e4, x), y), 0.005, 0.6, True),
    "a weight in a dict": (lambda x, y: {"x": x, "weight": np.where(y, 1e4, 1.0)}, 0.005, 0.6, True),
    "a loss that the guard refuses": (lambda x, y: (x * 1e4, y), 0.9, 150.0, True),
    "nothing": (lambda x, y: (x, y), 0.005, 0.6, False),
    "a class": (lambda x, y: (x, y + 100), 0.005, 0.6, False),
    "a loss like others": (lambda x, y: (x * 1e4, y), 0.005, 0.03, False),
}
"""How a batch is made one of odd numbers, the level of the losses, its loss, and whether it is refused."""


@pytest.mark.filterwarnings("ignore:a loss was refused", "ignore:step .* more than 30 times as high")
@pytest.mark.parametrize("what", ODD)
def test_one_batch_of_odd_numbers(what):
    """A loss far above its neighbours, though not of lost progress, is refused where the data of its batch explain it.

    So it is within an epoch, in the last step of one, and twice in a run; the rate is kept.
    """
    make_odd, level, loss, is_refused = ODD[what]
    places, refused, rng, model = (100, 140, 179, 220, 330), [], np.random.default_rng(0), Weights()
    r8 = R8Scheduler(scheduler_mode="keep", num_epochs=8, state_callback=model.get, load_callback=model.load)

    def batches(epoch):
        for place in range(60 * epoch, 60 * epoch + 60):
            x, y = rng.normal(size=(32, 4)), rng.integers(0, 2, 32)
            is_one = isinstance(make_odd(x, y), dict)
            usual = {"x": x, "weight": np.ones(32)} if is_one else (x, y)
            yield place, make_odd(x, y) if place in places else usual

    for epoch in r8.epoch_iterator():
        for place, _ in r8.batches(batches(epoch)):
            usual = (level + np.exp(-place / 20)) * rng.gamma(20, 1 / 20)
            outcome = r8.update_with_loss(loss if place in places else usual)
            refused += [place] if outcome.verdict.name == "SPIKE" else []

    assert refused == (list(places) if is_refused else [])
    assert r8.lr_factor == 1
