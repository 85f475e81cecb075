"""States are put back through the load callback, and it is checked that they arrived."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.recovery.agreement import Agreement
from learnit_r8.recovery.backups import Backup
from learnit_r8.testing import record_events
from tests.drive import Weights, advance_to, make


class Others(Agreement):
    """The agreement with another rank, on which nothing can be restored."""

    def agree(self, trouble):
        return trouble or "rank 1: no memory"


def of(load, *, state=None, agreement=None, **more):
    """The model of a run that has not begun, what keeps it, and the events of the run."""
    heard = record_events()
    r8 = make(load_callback=load, state_callback=state, listeners=[heard], **more)
    persistence = r8.host.persistence
    persistence.agreement = agreement or persistence.agreement
    return r8.controller.live, persistence, heard


def test_puts_a_fresh_copy():
    """Each time the callback gets a copy of its own, which it may change."""
    got = []
    live, persistence, _ = of(got.append)
    kept = persistence.backup.offer({"w": np.ones(2)}, step=3)
    assert live.put(kept)
    got[0]["w"][:] = 9
    assert live.put(kept)

    assert got[1]["w"].tolist() == [1, 1]


def test_failure_of_another_rank():
    """A failure on any rank is one on all."""
    live, persistence, _ = of(lambda state: None, agreement=Others())

    assert not live.put(persistence.backup.offer(1, step=3))
    assert live.failures == ["backup of step 3: rank 1: no memory"]


def test_checkpoint_that_is_gone():
    """A checkpoint without a file cannot be put back."""
    live, persistence, _ = of(pytest.fail)

    assert not live.put(Backup(3, 3, is_on_disk=True))
    assert persistence.name_of(Backup(3, 3, is_on_disk=True)) == ""


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
    live, persistence = r8.controller.live, r8.host.persistence
    kept = Backup(2, 2, is_on_disk=True)

    assert live.put(kept)
    assert persistence.name_of(kept) == saved.path.name
    assert model.values.tolist() == [0, 0]
    assert live.guard["num_refused"] == 0


@pytest.mark.filterwarnings("ignore:losses were far too high")
def test_a_weight_that_no_witness_holds_is_put_back():
    """A loss far too high, from a row of a table that other batches do not use: what has grown alone tells it."""
    rng, heard = np.random.default_rng(0), record_events()
    table, goal, rows = {"rows": np.full(50, 0.1)}, rng.normal(size=50), rng.integers(1, 50, (400, 16))
    rows[[100, 200, 223], 0] = 0
    r8 = R8Scheduler(
        num_steps=400, scheduler_mode="keep", state_callback=lambda: table, load_callback=table.update,
        listeners=[heard], handle_signals=False, backup_every=10,
    )  # fmt: skip
    for number in r8.batches(range(400)):
        if number == 205:
            table["rows"] = np.where(np.arange(50) == 0, 1e3, table["rows"])
        errors = table["rows"][rows[number]] - goal[rows[number]] + 0.1 * rng.normal(size=16)
        if r8.update_with_loss(np.mean(errors**2)):
            table["rows"] = table["rows"].copy()
            np.subtract.at(table["rows"], rows[number], 0.3 * errors)
    r8.close()

    [restored] = heard.of(events.RolledBack)
    assert restored.to_step <= 205
    assert table["rows"].max() < 4
