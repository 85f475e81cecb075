"""The samples of a `DataLoader` of the user's, observed as its sampler draws them."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, WeightedRandomSampler
from wild_scripts import seed_all

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach
from tests.torch_common import Killed, descend

SIZE = 40


class Points(Dataset):
    """Points with their class, noise from the generator, and their index; some have NaN for a label's loss."""

    def __init__(self, bad=()):
        self.x = torch.randn(SIZE, 6, generator=torch.Generator().manual_seed(0))
        self.y, self.bad = self.x[:, :3].argmax(1), bad

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        x = self.x[index] + 0.1 * torch.randn(6)
        return x * float("nan") if index in self.bad else x, self.y[index], index


class Twice(BatchSampler):
    """A batch sampler of one's own: batches of changing sizes, in which samples come again."""

    def __init__(self):
        super().__init__(RandomSampler(range(SIZE)), 4, False)

    def __iter__(self):
        for batch in super().__iter__():
            yield batch + batch[: len(batch) // 2]


def loader_of(kind, data, **settings):
    if kind == "batches":
        return DataLoader(data, batch_sampler=Twice(), **settings)
    if kind == "weighted":
        return DataLoader(data, batch_size=8, sampler=WeightedRandomSampler(torch.rand(SIZE), SIZE), **settings)
    if kind == "single":
        return DataLoader(data, batch_size=None, shuffle=True, **settings)
    return DataLoader(data, batch_size=8, shuffle=True, drop_last=True, **settings)


def train(kind, *, with_r8=True, epochs=3, bad=(), hook=None, workers=None, loader=None, **settings):
    """Train a model; returns what it has seen and its weights."""
    seed_all(0)
    data = Points(bad)
    loader = loader_of(kind, data, **(workers or {})) if loader is None else loader
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    adapter = None
    if with_r8:
        adapter = attach(model, optimizer, loader, num_epochs=epochs, handle_signals=False, **grouped(settings))
    seen = []
    for _ in range(epochs) if adapter is None else adapter.epochs():
        for x, y, index in loader if adapter is None else adapter.batches():
            losses = cross_entropy(torch.atleast_2d(model(x)), torch.atleast_1d(y), reduction="none")
            seen.append((torch.atleast_1d(torch.as_tensor(index)).tolist(), losses.detach().tolist()))
            if hook is not None:
                hook(adapter)
            if adapter is None or adapter.report(losses):
                descend(optimizer, losses.mean())
    return seen, model.state_dict(), torch.get_rng_state(), adapter


KINDS = ("shuffled", "weighted", "batches", "single")
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
OTHERS = [
    {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True},
    {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    {"num_workers": 1, "multiprocessing_context": "forkserver"},
]


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        *((kind, None) for kind in KINDS),
        ("shuffled", FORK),
        *(pytest.param(kind, FORK, marks=pytest.mark.program) for kind in KINDS[1:]),
        *(pytest.param(kind, workers, marks=pytest.mark.slow) for kind in KINDS for workers in OTHERS),
    ],
)
def test_samples_are_known_and_nothing_is_changed(kind, workers):
    """Whatever sampler and workers: the table is that of the samples seen, and the script is what it was to the bit."""
    given = {"workers": workers, "epochs": 2}
    plain, weights, generator, _ = train(kind, with_r8=False, **given)
    seen, own, own_generator, adapter = train(kind, **given)
    table, uses, last = adapter.scheduler.table, torch.zeros(SIZE), torch.full((SIZE,), float("nan"))
    for indices, losses in seen:
        for index, loss in zip(indices, losses, strict=True):
            uses[index] += 1
            last[index] = loss

    assert seen == plain
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert torch.equal(generator, own_generator)
    assert table.source == "exact"
    assert table.usage_count.tolist() == uses.tolist()
    assert torch.equal(torch.nan_to_num(torch.from_numpy(table.last)), torch.nan_to_num(last))


def test_a_loader_that_was_used_before_and_is_used_besides():
    """Workers that stay are watched from the second use on; other iterations over the loader stay out of it."""
    data = Points()
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    sampler = loader.batch_sampler
    list(loader)
    passes = []
    seen, _, _, adapter = train("", loader=loader, epochs=2)
    passes = list(loader)

    assert loader.batch_sampler is sampler
    assert len(passes) == 5
    assert adapter.scheduler.table.usage_count.tolist() == [2] * SIZE
    assert len(seen) == 10


def prepared(workers):
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(loader_of("", Points(), num_workers=workers), num_processes=1, put_on_device=False)


def prefetched(workers):
    timm = pytest.importorskip("timm.data.loader")

    class Images(timm.PrefetchLoader):
        """The same for points: without the scaling of images."""

        def __iter__(self):
            waiting = None
            for batch in self.loader:
                if waiting is not None:
                    yield waiting
                waiting = batch
            yield waiting

    Images.__module__, Images.__name__ = timm.__name__, "PrefetchLoader"
    return Images(loader_of("", Points(), num_workers=workers), device=torch.device("cpu"))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [prepared, prefetched])
def test_loaders_that_fetch_one_batch_ahead_are_observed(make, workers):
    """accelerate's and timm's: the table is that of the samples seen, and nothing is changed."""
    plain, weights, generator, _ = train("", with_r8=False, loader=make(workers))
    seen, own, own_generator, adapter = train("", loader=make(workers))
    uses = torch.zeros(SIZE)
    for indices, _ in seen:
        uses[indices] += 1

    assert seen == plain
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert torch.equal(generator, own_generator)
    assert adapter.scheduler.table.source == "exact"
    assert adapter.scheduler.table.usage_count.tolist() == uses.tolist()


class Reversed(BatchSampler):
    """A batch sampler without a state, which a loader that goes on draws from its beginning."""

    def __iter__(self):
        return (list(range(last, last - 8, -1)) for last in range(SIZE - 1, 0, -8))


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("shuffled", {}),
        ("batches", {}),
        pytest.param("shuffled", {**FORK, "snapshot_every_n_steps": 2}, marks=pytest.mark.program),
        pytest.param("batches", {**FORK, "persistent_workers": True}, marks=pytest.mark.program),
    ],
)
def test_a_stateful_loader_is_observed_and_goes_on_by_its_own_state(kind, workers, tmp_path):
    """Killed within an epoch and again at the end of one: the same samples, losses and weights as in one run."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def made(seed=0):
        # Its sampler is seeded as it is made.
        seed_all(seed)
        given = {"batch_sampler": Reversed(None, 8, False)} if kind == "batches" else {"batch_size": 8, "shuffle": True}
        return stateful.StatefulDataLoader(Points(), **given, **workers)

    def stop_at(step):
        def stop(adapter):
            if adapter.scheduler.global_step == step:
                raise Killed

        return stop

    plain = train("", with_r8=False, loader=made())
    seen, weights, _, adapter = train("", loader=made())
    assert seen == plain[0]
    assert all(torch.equal(weights[name], plain[1][name]) for name in weights)
    assert adapter.scheduler.table.usage_count.tolist() == [3] * SIZE

    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 2, "resume": "auto", "backup_dir": False}
    for step, seed in ((5, 0), (8, 7), (14, 8)):
        with pytest.raises(Killed):
            train("", loader=made(seed), hook=stop_at(step), **kept)
    rest, own, _, resumed = train("", loader=made(seed=9), **kept)
    table = resumed.scheduler.table

    assert [indices for indices, _ in rest] == [indices for indices, _ in seen[-len(rest) :]]
    assert len(rest) < 4
    assert table.usage_count.tolist() == [3] * SIZE
    if not workers:
        # Those of a loader that goes on are seeded anew, and so is the noise of the data.
        assert rest == seen[-len(rest) :]
        assert all(torch.equal(weights[name], own[name]) for name in weights)
        assert table.last.tolist() == adapter.scheduler.table.last.tolist()


@pytest.mark.parametrize(
    "loader",
    [
        [(torch.zeros(2, 6), torch.zeros(2, dtype=torch.long), [0, 1])] * 3,
        DataLoader(list(Points()), batch_sampler=[["a", "b"]]).batch_sampler,
    ],
    ids=["list", "names"],
)
def test_where_samples_are_not_known_there_is_no_table(loader):
    """The views say so in one line."""
    if loader[0] == ["a", "b"]:
        points = Points()
        named = dict(zip("ab", (points[0], points[1]), strict=True))
        loader = DataLoader(named, batch_sampler=[["a", "b"]] * 3)
        with pytest.warns(RuntimeWarning, match="must draw whole numbers, got .*so there is no table.*ids="):
            _, _, _, adapter = train("", loader=loader, epochs=1)
    else:
        _, _, _, adapter = train("", loader=loader, epochs=1)
        assert "no table" in adapter.scheduler.summary()

    assert adapter.scheduler.global_step == 3
    assert adapter.scheduler.table.num_seen == 0


@pytest.mark.parametrize("kind", ["shuffled", pytest.param("single", marks=pytest.mark.program)])
def test_a_bad_sample_is_left_out_of_what_the_sampler_draws(kind):
    """It is found by its own loss, and its batches come without it; a batch of nothing else does not come at all."""
    with pytest.warns(RuntimeWarning, match=r"sample 17 was in \d refused batches.*no longer drawn"):
        seen, weights, _, adapter = train(kind, bad=(17,), epochs=6)
    times = [number for number, (indices, _) in enumerate(seen) if 17 in indices]

    assert adapter.scheduler.table.quarantined.tolist() == [17]
    assert len(times) <= 3
    assert all(bool(each.isfinite().all()) for each in weights.values())
    assert {len(indices) for indices, _ in seen} == ({1} if kind == "single" else {7, 8})


@pytest.mark.parametrize("kind", ["shuffled", "single"])
def test_a_resumed_run_draws_what_the_whole_one_would_have(kind, tmp_path):
    """Also where batches before the checkpoint were left out, as they held nothing but a bad sample."""
    steps = 50 if kind == "shuffled" else 190
    settings = {"bad": (17,), "epochs": 14 if kind == "shuffled" else 5, "backup_dir": False, "checkpoint_every": 10}
    folder = tmp_path / "killed"

    def hook(adapter):
        if adapter.scheduler.global_step == steps + 7:
            raise Killed

    with pytest.warns(RuntimeWarning, match="sample 17"):
        whole, weights, _, _ = train(kind, checkpoint_dir=tmp_path / "whole", **settings)
    with pytest.warns(RuntimeWarning, match="sample 17"), pytest.raises(Killed):
        train(kind, checkpoint_dir=folder, hook=hook, **settings)
    seen, own, _, adapter = train(kind, checkpoint_dir=folder, resume="auto", **settings)

    assert seen == whole[-len(seen) :]
    assert len(whole) - len(seen) in (steps, steps - 1, steps - 2)
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert adapter.scheduler.table.quarantined.tolist() == [17]


def test_several_losses_a_row_and_one_for_all():
    """Losses of tokens are averaged by row; step() takes those of rows beside the one that is differentiated."""
    data = [(torch.randn(6), 0, 0) for _ in range(8)]
    loader = DataLoader(data, batch_size=4)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapter = attach(model, optimizer, loader, num_epochs=1)
    tokens = torch.arange(8.0).reshape(4, 2)
    for x, *_ in adapter.batches():
        adapter.step(model(x).square().mean(), losses=tokens)

    assert adapter.scheduler.table.last.tolist() == [0.5, 2.5, 4.5, 6.5] * 2


@pytest.mark.parametrize("at", [7, 9])
def test_restored_backup_goes_on_with_the_same_noise(at):
    """From the newest backup in RAM the batches come as they came, to what is drawn at random for each."""
    seed_all(0)
    model, seen = torch.nn.Linear(6, 3), {}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    adapter = attach(model, optimizer, loader_of("plain", Points()), num_epochs=4, handle_signals=False)

    def go_on(until):
        for _ in adapter.epochs():
            for x, y, _ in adapter.batches():
                seen.setdefault(adapter.scheduler.global_step, []).append(x)
                loss = cross_entropy(model(x), y)
                if adapter.report(loss):
                    descend(optimizer, loss)
                if adapter.scheduler.global_step == until:
                    return

    go_on(at)
    step = adapter.scheduler.restore_backup()
    go_on(at + 3)
    adapter.close()

    assert step < at
    assert all(torch.equal(*seen[each]) for each in range(step, at))
