"""Scripts that index by what they count: batches of an epoch, steps of the run, gradients that are added up."""

import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach
from tests.torch_common import Killed, descend

NUM_EPOCHS = 3


def parts(*, is_planned=False, seed=0, **settings):
    """A model, its optimizer, its data in 20 batches, and what attach() returns for them."""
    torch.manual_seed(seed)
    x = torch.randn(320, 8)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data, batch_size=16, shuffle=True)
    settings = {"num_epochs": NUM_EPOCHS, "backup_every": 5, "handle_signals": False, "backup_dir": False, **settings}
    if is_planned:
        adapter = attach(model, optimizer, data, batch_size=16, **grouped(dict(scheduler_mode="keep", **settings)))
    else:
        adapter = attach(model, optimizer, loader, **grouped(settings))
    return model, optimizer, len(loader), adapter


def batches_of(adapter, is_planned):
    return adapter.loader() if is_planned else adapter.batches()


@pytest.mark.filterwarnings("ignore:losses or weights were not finite", "ignore:.*the weights were damaged")
@pytest.mark.parametrize("is_planned", [False, True])
@pytest.mark.parametrize("at", [25, 58])
def test_a_table_of_rates(at, is_planned):
    """A script that takes its rate from a table, by the number of the step, ends with its last epoch."""
    model, optimizer, length, adapter = parts(is_planned=is_planned)
    rates, r8, turns = torch.linspace(0.1, 0.01, NUM_EPOCHS * length).tolist(), adapter.scheduler, 0
    with adapter:
        for _ in adapter.epochs():
            for x, y in batches_of(adapter, is_planned):
                optimizer.param_groups[0]["lr"] = rates[turns]
                assert rates[r8.global_step] >= rates[turns]
                turns += 1
                if turns == at:
                    model[0].weight.data[0, 0] = float("nan")
                losses = cross_entropy(model(x), y, reduction="none")
                if adapter.report(losses if is_planned else losses.mean()):
                    descend(optimizer, losses.mean())

    assert turns == NUM_EPOCHS * length
    assert r8.global_step < turns
    assert r8.phase == "finished"
    assert all(bool(each.isfinite().all()) for each in model.parameters())


@pytest.mark.filterwarnings("ignore:losses or weights were not finite", "ignore:.*the weights were damaged")
@pytest.mark.parametrize(("is_planned", "num_workers"), [(False, 0), (True, 0), (True, 1)])
def test_the_number_of_the_batch(is_planned, num_workers):
    """A script that divides by the batches that are left meets no zero, and finishes each epoch with its last batch."""
    model, optimizer, length, adapter = parts(is_planned=is_planned)
    ends, seconds = [], 0.0
    with adapter:
        for epoch in range(NUM_EPOCHS):
            loader = adapter.loader(num_workers=num_workers) if is_planned else adapter
            for batch_idx, (x, y) in enumerate(loader):
                seconds += 1.0 / (length - batch_idx)
                if (epoch, batch_idx) == (1, 6):
                    model[0].weight.data[0, 0] = float("nan")
                losses = cross_entropy(model(x), y, reduction="none")
                if adapter.report(losses if is_planned else losses.mean()):
                    descend(optimizer, losses.mean())
            ends.append(batch_idx + 1)

    assert ends == [length] * NUM_EPOCHS
    assert adapter.scheduler.global_step < NUM_EPOCHS * length
    assert adapter.scheduler.phase == "finished"


def accumulate(folder, *, kill_at=None, seed=0):
    """Add up the gradients of three batches, and of what is left at the end of an epoch; 20 batches make it two."""
    model, optimizer, length, adapter = parts(
        seed=seed, accumulate=3, checkpoint_dir=folder, checkpoint_every=3, resume="auto"
    )
    r8, order = adapter.scheduler, []
    begun = r8.global_step
    optimizer.zero_grad()
    for _ in adapter.epochs():
        for x, y in adapter.batches():
            if r8.global_step == kill_at:
                raise Killed
            loss = cross_entropy(model(x), y)
            if adapter.report(loss):
                (loss / 3).backward()
                if r8.step_in_epoch % 3 == 0 or r8.handed_out == length:
                    optimizer.step()
                    optimizer.zero_grad()
            order.append(y.tolist())
    adapter.close()
    return begun, order, [each.detach().clone() for each in model.parameters()]


@pytest.mark.parametrize("at", [29, 47])
def test_gradients_are_added_up_after_a_resume_in_mid_epoch(at, tmp_path):
    """Windows of accumulation are those of the run that was not killed, so that the weights are equal to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, order, whole = accumulate(tmp_path / "whole")
        with pytest.raises(Killed):
            accumulate(tmp_path / "killed", kill_at=at)
        begun, rest, resumed = accumulate(tmp_path / "killed", seed=0)

    assert begun % 20
    assert at - 3 <= begun <= at
    assert order[begun:] == rest
    assert all(torch.equal(one, two) for one, two in zip(whole, resumed, strict=True))


@pytest.mark.filterwarnings("ignore:losses or weights were not finite", "ignore:.*the weights were damaged")
def test_a_probe_lies_outside_a_window_of_accumulation():
    """It moves no count by which a script takes its step, and adds no gradient."""
    model, optimizer, length, adapter = parts(accumulate=4)
    r8, turns, window, windows = adapter.scheduler, 0, 0, []
    with adapter:
        for _ in adapter.epochs():
            for x, y in adapter.batches():
                turns += 1
                if turns == 30:
                    model[0].weight.data[0, 0] = float("nan")
                is_probe, before = r8.controller.experiment.is_open, r8.step_in_epoch
                loss = cross_entropy(model(x), y)
                if not adapter.report(loss):
                    # A refused batch ends its window, whose gradients are dropped.
                    assert (r8.step_in_epoch == before) == is_probe
                    assert all(each.grad is None or not each.grad.any() for each in model.parameters())
                    window = 0
                    continue
                (loss / 4).backward()
                window += 1
                if r8.step_in_epoch % 4 == 0 or r8.handed_out == length:
                    optimizer.step()
                    optimizer.zero_grad()
                    windows.append(window)
                    window = 0

    assert r8.pace.probes > 0
    assert turns == NUM_EPOCHS * length
    assert windows[:7] == [4] * 7
    assert windows.count(4) >= len(windows) - 2
