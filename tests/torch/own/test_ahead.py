"""What fetches ahead of the training: a killed run is resumed to the bit, or says as it begins that it will not be."""

import random
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset, IterableDataset
from wild_scripts import seed_all

from learnit_r8 import Backups
from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach
from tests.torch_common import Killed, descend

NUM = 24


class Noisy(Dataset):
    """Samples with noise from the global generators of all three kinds; ``amount`` 0 has none."""

    def __init__(self, amount=0.1):
        self.amount = amount

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        noise = self.amount and self.amount * (torch.randn(4) + np.random.randn() + random.random())
        return torch.full((4,), index / NUM) + noise, index


class Stream(IterableDataset):
    def __iter__(self):
        return map(Noisy().__getitem__, range(NUM))


class Ahead:
    """A loader that fetches a batch before the training on the last one begins."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        batch = next(batches)
        for coming in batches:
            yield batch
            batch = coming
        yield batch


def prepared(data, *, shuffle=True, workers=0, **settings):
    """A loader that accelerate has prepared."""
    accelerate = pytest.importorskip("accelerate")
    for state in (accelerate.state.AcceleratorState, accelerate.state.GradientState):
        state._reset_state()
    config = accelerate.utils.DataLoaderConfiguration(**settings)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
    return accelerator.prepare(DataLoader(data, 4, shuffle=shuffle, num_workers=workers))


def lasting(amount):
    return DataLoader(Noisy(amount), 4, shuffle=True, num_workers=1, persistent_workers=True)


def trained(make, folder, *, kill_at=None, seed=0, every=2, collate=None, **settings):
    """Losses and samples of each step, the weights, and where the random generators end up."""
    seed_all(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data, is_drawn = make(), "batch_size" in settings
    adapter = attach(
        model, optimizer, data, num_epochs=3, guard="finite", checkpoint_dir=folder,
        resume="auto", backup_every=Backups(backup_dir=False), handle_signals=False,
        **grouped(dict(checkpoint_every=every, **settings)),
    )  # fmt: skip
    begun, seen = adapter.scheduler.global_step, []
    loader = adapter.loader(collate_fn=collate) if is_drawn else None
    for _ in adapter.epochs():
        for x, y in Ahead(loader) if is_drawn and settings["ahead"] else loader or adapter.batches():
            losses = (model(x) - y[:, None] / NUM).square().mean(1)
            seen.append((losses.tolist(), y.tolist()))
            if is_drawn:
                adapter.step(adapter.loss(losses))
            elif adapter.report(losses.mean()):
                descend(optimizer, losses.mean())
            if adapter.scheduler.global_step == kill_at:
                raise Killed
    adapter.close()
    return begun, seen, [each.tolist() for each in model.parameters()], torch.get_rng_state().tolist()


def resumed(make, folder, kills, **settings):
    """A run that was killed at some steps, each time started again with other seeds."""
    for number, kill_at in enumerate(kills):
        with pytest.raises(Killed):
            trained(make, folder, kill_at=kill_at, seed=number and 5, **settings)
    return trained(make, folder, seed=7, **settings)


def check_kills(make, folder, cases, **settings):
    """After kills, with a checkpoint after so many steps, a run is the whole one to the bit from the newest one on."""
    whole = trained(make, folder / "whole", **settings)
    for number, (every, kills) in enumerate(cases):
        again = resumed(make, folder / str(number), kills, every=every, **settings)

        assert again[0] == kills[-1] // every * every, kills
        assert again[1:] == (whole[1][again[0] :], *whole[2:]), kills


LOADERS = {
    "accelerate": lambda: prepared(Noisy()),
    "accelerate, own sampler": lambda: prepared(Noisy(), use_seedable_sampler=True),
    "accelerate, dispatched": lambda: prepared(Noisy(), dispatch_batches=True),
    "accelerate, stream": lambda: prepared(Stream(), shuffle=False),
    "accelerate, dispatched stream": lambda: prepared(Stream(), shuffle=False, dispatch_batches=True),
    "an own class": lambda: Ahead(DataLoader(Noisy(), 4, shuffle=True)),
    "plain": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "accelerate, workers": lambda: prepared(Noisy(), workers=1),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.program) if "workers" in name else name for name in LOADERS]
)
def test_a_killed_run_goes_on_to_the_bit(name, tmp_path):
    """With dropout and augmentation: after a kill in mid-epoch, at an epoch's end, in its second batch, twice."""
    cases = [(2, [5]), (2, [7]), (2, [13])] if "workers" in name else [(2, [7]), (7, [8]), (2, [9, 15])]
    check_kills(LOADERS[name], tmp_path, cases)


@pytest.mark.program
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_workers_that_stay_are_exact_but_for_what_they_draw_themselves(tmp_path):
    """That is said as the run begins, if it writes checkpoints; the order of the samples is that of the saved run."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_kills(lambda: lasting(0), tmp_path, [(2, [at]) for at in (5, 7, 11, 13)])
    told = [str(one.message) for one in said if "persistent_workers=True" in str(one.message)]
    assert len(told) == 9
    assert "other random augmentation" in told[0]

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        whole = trained(lambda: lasting(0.1), tmp_path / "noisy whole")
        again = resumed(lambda: lasting(0.1), tmp_path / "noisy", [9])
    assert again[0] == 8
    assert [samples for _, samples in again[1]] == [samples for _, samples in whole[1][8:]]
    assert again[1] != whole[1][8:]


def noisy_batch(items):
    """A collate function that draws, as those that mask words do."""
    x, y = torch.utils.data.default_collate(items)
    return x + 0.1 * torch.randn(len(x), 4), y


@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_that_r8_draws(ahead, tmp_path):
    """Where something fetches ahead of the training each batch has random numbers of its own, as with workers."""
    check_kills(Noisy, tmp_path, [(2, [7]), (2, [9, 15])], batch_size=4, ahead=ahead, collate=noisy_batch)
