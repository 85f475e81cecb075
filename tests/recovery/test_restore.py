import numpy as np
import pytest

from learnit_r8 import RamBackup, events
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.backups import Backup
from learnit_r8.recovery.persistence import Restorer
from learnit_r8.testing import record_events
from tests.drive import Weights, advance_to, make


def of(load, backup, *, damage=lambda: "", **more):
    heard = record_events()
    announcer = Announcer([heard], lambda: (0, 0.0))
    return Restorer(load, backup=backup, store=None, damage=damage, announcer=announcer, **more), heard


def test_puts_a_fresh_copy():
    """Each time the callback gets a copy of its own, which it may change."""
    backup, got = RamBackup(), []
    kept = backup.offer({"w": np.ones(2)}, step=3)
    restorer, _ = of(lambda state, from_ram: got.append(state), backup)
    assert restorer.put(kept)
    got[0]["w"][:] = 9
    assert restorer.put(kept)

    assert got[1]["w"].tolist() == [1, 1]


def test_callback_that_raises():
    """A load callback that raises is a failure that is told and remembered, and no end of the run."""
    backup = RamBackup()

    def load(state, from_ram):
        raise RuntimeError("no layer4")

    restorer, heard = of(load, backup)

    assert not restorer.put(backup.offer(1, step=3))
    assert restorer.failures == ["backup of step 3: no layer4"]
    assert [event.reason for event in heard.of(events.RestoreFailed)] == ["no layer4"]


def test_state_must_arrive():
    """A model that is not finite after a restore was not restored."""
    backup = RamBackup()
    restorer, _ = of(lambda state, from_ram: None, backup, damage=lambda: "w")

    assert not restorer.put(backup.offer(1, step=3))
    assert "'w' was not finite afterwards: does load_callback restore it?" in restorer.failures[0]


def test_failure_of_another_rank():
    """A failure on any rank is one on all."""
    backup = RamBackup()
    restorer, _ = of(lambda state, from_ram: None, backup, agree=lambda own: own or "rank 1: no memory")

    assert not restorer.put(backup.offer(1, step=3))
    assert restorer.failures == ["backup of step 3: rank 1: no memory"]


def test_checkpoint_that_is_gone():
    """A checkpoint without a file cannot be put back."""
    restorer, _ = of(pytest.fail, RamBackup())

    assert not restorer.put(Backup(3, 3, is_on_disk=True))
    assert restorer.name_of(Backup(3, 3, is_on_disk=True)) == ""


def test_checkpoint_is_put_back_with_the_guards_state(tmp_path):
    """A checkpoint is loaded from its file, by its name, and brings the guard's state of then."""
    model = Weights()
    r8 = make(
        num_epochs=9, checkpoint_dir=tmp_path, state_callback=model.get, save_callback=model.save,
        load_callback=model.load, backup_dir=False,
    )  # fmt: skip
    advance_to(r8, 2)
    saved = r8.save_checkpoint()
    model.values = np.full(2, 5.0)
    restorer = r8.host.persistence.make_restorer()
    kept = Backup(2, 2, is_on_disk=True)

    assert restorer.put(kept)
    assert restorer.name_of(kept) == saved.path.name
    assert model.values.tolist() == [0, 0]
    assert restorer.guard["num_refused"] == 0
