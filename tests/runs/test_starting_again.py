"""The same program, started again: after it has finished, and within what follows an epoch in the user's loop."""

import re
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import Backups, Checkpoints, R8Scheduler, events
from learnit_r8.dashboard.watch import look
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import ToyTask
from learnit_r8.torch import attach

NUM_EPOCHS, LENGTH = 4, 10


class Killed(BaseException):
    """Stands for a process that ends at once."""


def train(folder, *, is_planned=False, loops="epochs", kill_at=None, numbers=None, listeners=()):
    """A script whose rate a schedule of torch's lowers after each epoch; ``kill_at``: (place in the loop, epoch)."""
    torch.manual_seed(0)
    x = torch.randn(16 * LENGTH, 8)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = torch.nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    settings = {"scheduler_mode": "keep", "batch_size": 16} if is_planned else {}
    adapter = attach(
        model, optimizer, data if is_planned else DataLoader(data, batch_size=16, shuffle=True), num_epochs=NUM_EPOCHS,
        checkpoint_dir=folder, resume="auto", backup_every=Backups(backup_dir=False), handle_signals=False,
        also={"schedule": schedule},
        listeners=listeners, **grouped(settings),
    )  # fmt: skip
    epochs = adapter.epochs() if loops == "epochs" else range(adapter.scheduler.current_epoch, NUM_EPOCHS)
    numbers = [] if numbers is None else numbers
    for epoch in epochs:
        numbers.append(0)
        for inputs, labels in adapter.loader() if is_planned else adapter.batches():
            losses = cross_entropy(model(inputs), labels, reduction="none")
            if adapter.report(losses if is_planned else losses.mean()):
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
            numbers[-1] += 1
            if kill_at == (numbers[-1], epoch):
                raise Killed
        if kill_at == ("before", epoch):
            raise Killed
        schedule.step()
        if kill_at == ("after", epoch):
            raise Killed
    adapter.close()
    return [each.detach().clone() for each in model.parameters()], optimizer.param_groups[0]["lr"]


@pytest.fixture(scope="module", params=[False, True])
def whole(request, tmp_path_factory):
    """Whether R8 draws the batches; weights and rate of a run that nothing ended."""
    return request.param, train(tmp_path_factory.mktemp("whole"), is_planned=request.param)


@pytest.mark.parametrize("loops", ["epochs", "range"])
@pytest.mark.parametrize("at", [(5, 1), (LENGTH, 1), ("before", 1), ("after", 1), (1, 2)], ids=str)
def test_a_schedule_by_epochs_goes_on_as_it_was(at, whole, loops, tmp_path):
    """Killed within an epoch or after one, before or after the schedule's step: weights and rate equal to the bit."""
    is_planned, (weights, rate) = whole
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Killed):
            train(tmp_path, is_planned=is_planned, loops=loops, kill_at=at)
        resumed, last = train(tmp_path, is_planned=is_planned, loops=loops)

    assert last == rate
    assert all(torch.equal(one, two) for one, two in zip(weights, resumed, strict=True))


def test_an_epoch_without_batches_is_said_once(tmp_path):
    """With batches of one's own, what follows an epoch is repeated, and only that."""
    numbers, heard = [], []
    with pytest.raises(Killed):
        train(tmp_path, kill_at=("before", 1))
    train(tmp_path, numbers=numbers, listeners=[heard.append])

    assert numbers == [0, LENGTH, LENGTH]
    said = [event.text for event in heard if isinstance(event, events.Notice)]
    assert len([text for text in said if "what follows them in your loop is repeated" in text]) == 1


class Loader:
    """Batches of rows of the toy task."""

    def __len__(self):
        return LENGTH

    def __iter__(self):
        yield from np.arange(16 * LENGTH).reshape(LENGTH, 16)


def start(folder, *, is_planned, breaks_after=False):
    """The run; returns its scheduler, what was heard, and the epochs that were begun."""
    task, heard, begun = ToyTask(), [], []
    settings = {"num_samples": 16 * LENGTH, "batch_size": 16} if is_planned else {"scheduler_mode": "keep"}
    r8 = R8Scheduler(
        num_epochs=2, checkpoint_dir=folder / "saved", resume="auto", handle_signals=False,
        save_callback=task.save, load_callback=task.load, state_callback=task.state,
        backup_every=Backups(backup_dir=False),
        listeners=[heard.append], **grouped(dict(run_dir=folder / "run", **settings)),
    )  # fmt: skip
    with r8:
        for epoch in r8.epoch_iterator():
            begun.append(epoch)
            for batch in (indices for indices, _ in r8.batch_iterator()) if is_planned else r8.batches(Loader()):
                loss = float(task.losses(batch).mean())
                if r8.update_with_loss(loss):
                    task.step(0.02)
            assert loss < 10
        if breaks_after:
            raise NameError("loss")
    return r8, heard, begun


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_finished_run_yields_no_epoch(is_planned, tmp_path):
    """It says so once and stays finished, also where the script fails over what no epoch has given it."""
    r8, heard, begun = start(tmp_path, is_planned=is_planned)

    assert begun == [0, 1]
    for breaks_after in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if breaks_after:
                with pytest.raises(NameError):
                    start(tmp_path, is_planned=is_planned, breaks_after=True)
            else:
                r8, heard, begun = start(tmp_path, is_planned=is_planned)
                assert begun == []
                assert (r8.phase, r8.global_step, r8.current_epoch) == ("finished", 2 * LENGTH, 2)
                assert not [event for event in heard if isinstance(event, events.RunStarted)]

        assert len([each for each in caught if re.search("finished, nothing to do", str(each.message))]) == 1
        assert look(tmp_path / "run").state.word == "finished"


def average(folder, *, is_planned, changes=True, keep=3):
    """A script that averages the weights after each epoch; returns how often, the average, and the steps saved."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(80, 4), torch.zeros(80, dtype=torch.int64))
    model, averaged, done, steps = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2), {"epochs": 0}, []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapter = attach(
        model, optimizer, data if is_planned else DataLoader(data, batch_size=16, shuffle=True), num_epochs=2,
        checkpoint_dir=folder, resume="auto", checkpoint_every=Checkpoints(4, keep_checkpoints=keep),
        backup_every=Backups(backup_dir=False), handle_signals=False,
        also={"average": averaged, "done": (lambda: done["epochs"], lambda value: done.update(epochs=value))},
        listeners=[lambda event: steps.append(event.step) if isinstance(event, events.CheckpointSaved) else None],
        **({"batch_size": 16} if is_planned else {}),
    )  # fmt: skip
    with adapter:
        for _ in adapter.epochs():
            for inputs, labels in adapter.batches():
                adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction="none")))
            if changes:
                averaged.load_state_dict(model.state_dict())
                done["epochs"] += 1
    return done["epochs"], averaged.weight.detach().clone(), steps


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("is_planned", [False, True])
def test_what_follows_the_last_batch_is_in_the_last_checkpoint(is_planned, keep, tmp_path):
    """A finished run that is started again has what the loop changed after its last epoch."""
    num_done, averaged, steps = average(tmp_path, is_planned=is_planned, keep=keep)
    with pytest.warns(RuntimeWarning, match="finished, nothing to do"):
        again = average(tmp_path, is_planned=is_planned, keep=keep)

    assert (num_done, steps) == (2, [4, 8, 10, 10])
    assert (again[0], again[2]) == (2, [])
    assert torch.equal(again[1], averaged)
    assert len(list(tmp_path.glob("ck_*"))) == keep


@pytest.mark.parametrize("is_planned", [False, True])
def test_the_last_checkpoint_is_written_once_where_nothing_changed(is_planned, tmp_path):
    """The loop comes back from the last epoch with the model as it was: no second file, and none left over."""
    steps = average(tmp_path, is_planned=is_planned, changes=False, keep=9)[2]

    assert steps == [4, 8, 10]
    assert len(list(tmp_path.glob("ck_*"))) == len(list(tmp_path.glob("model_*"))) == 3
