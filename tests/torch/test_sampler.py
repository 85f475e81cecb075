"""`R8BatchSampler`: exact coverage and right tables, however far a loader works ahead."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Subset, default_collate

from learnit_r8 import TokenBatches
from learnit_r8.torch import R8BatchSampler, attach
from learnit_r8.torch.loader import make_loader
from tests.torch_common import DIGITS, STEPS, ManyRows, Rows, X, Y, as_is, no_steady, scheduler, together

# torch's advice on a machine with few cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LOADERS = {
    "alone": {},
    "1 worker": {"num_workers": 1, "prefetch_factor": 8},
    "2 workers": {"num_workers": 2, "prefetch_factor": 4},
    "persistent": {"num_workers": 2, "prefetch_factor": 2, "persistent_workers": True},
}
SOME_LOADERS = [
    name if name in ("alone", "1 worker") else pytest.param(name, marks=pytest.mark.program) for name in LOADERS
]


def loader_of(r8, dataset=None, *, sampler=None, **settings):
    dataset = Rows() if dataset is None else dataset
    sampler = R8BatchSampler(r8, **(sampler or {}))
    if isinstance(dataset, ManyRows):
        settings.setdefault("collate_fn", as_is)
    return DataLoader(dataset, batch_sampler=sampler, **settings), sampler


def true_losses(indices):
    """float64[B], a loss that tells which sample it is of."""
    return 1.0 + np.asarray(indices) / 1000


def run(r8, loader, sampler, epochs=2, *, report=lambda number: True):
    """Train some epochs: the batches as the loader handed them out."""
    batches = []
    for _ in range(epochs):
        for _x, _y, indices in loader:
            batches.append(indices.tolist())
            if report(len(batches) - 1):
                sampler.report(true_losses(indices))
    return batches


@pytest.mark.parametrize("name", LOADERS)
def test_exact_however_far_ahead(name):
    """Every sample comes once an epoch, and the table has the loss of each, with any number of workers.

    The same seed gives the same batches, under a policy that looks at losses.
    """
    r8, alone = scheduler(policy="balanced"), scheduler(policy="balanced")
    batches = run(r8, *loader_of(r8, **LOADERS[name]))

    assert batches == run(alone, *loader_of(alone))
    assert [len(batch) for batch in batches] == ([16] * 12 + [8]) * 2
    assert sorted(together(batches[:STEPS])) == sorted(together(batches[STEPS:])) == list(range(200))
    np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)
    assert set(r8.table.usage_count.tolist()) == {2}
    assert r8.pace.is_finished


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Rows(), list),
        (ManyRows(), np.ndarray),
        (Subset(ManyRows(), range(200)), list),
        (DIGITS, list),
    ],
    ids=["items", "own __getitems__", "subset", "tensors"],
)
def test_form_of_batches(dataset, expected):
    """A data set with a way of its own to fetch many gets an array, others a list of ints."""
    r8 = scheduler()
    loader, _ = loader_of(r8, dataset, collate_fn=lambda items: None)
    iterator = iter(loader)
    kinds = []
    fetch = iterator._dataset_fetcher.fetch
    iterator._dataset_fetcher.fetch = lambda rows: kinds.append(type(rows)) or fetch(rows)
    next(iterator)

    assert kinds == [expected]


class Kinds(Rows):
    """Keeps the type of the indices that it is asked for."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def __getitem__(self, index):
        self.kinds.add(type(index))
        return super().__getitem__(index)


def test_items_are_asked_for_by_ints():
    """A data set of items gets plain ints from the adapter's loader too, as from torch's samplers."""
    dataset = Kinds()
    next(iter(make_loader(dataset, R8BatchSampler(scheduler()), settings={})))

    assert dataset.kinds == {int}


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_of_tensors_are_taken_at_once(workers):
    """The adapter's loader gives of a TensorDataset what torch's own collating makes of the same samples."""
    sampler = R8BatchSampler(scheduler())
    batch = next(iter(make_loader(DIGITS, sampler, settings={"num_workers": workers})))
    expected = default_collate([DIGITS[index] for index in r8_indices(sampler).tolist()])

    assert type(batch) is type(expected)
    assert all(map(torch.equal, batch, expected))


def test_own_collating_of_tensors_stays():
    """A collate_fn of the user's own gets the items one by one."""
    sampler = R8BatchSampler(scheduler())
    loader = make_loader(DIGITS, sampler, settings={"collate_fn": lambda items: items})

    assert [type(item) for item in next(iter(loader))] == [tuple] * 16


@pytest.mark.parametrize("as_list", [True, False])
def test_form_asked_for(as_list):
    """The form of a batch can be chosen."""
    batch = next(iter(R8BatchSampler(scheduler(), as_list=as_list)))

    assert type(batch) is (list if as_list else np.ndarray)


def test_tensors_without_collating():
    """Given as sampler with batch_size=None, a TensorDataset is indexed once a batch."""
    r8 = scheduler(num_epochs=1)
    sampler = R8BatchSampler(r8, as_list=False)
    for x, y in DataLoader(DIGITS, sampler=sampler, batch_size=None):
        indices = r8_indices(sampler)

        assert torch.equal(x, X[indices])
        assert torch.equal(y, Y[indices])
        sampler.report(true_losses(indices))

    assert r8.pace.is_finished


def r8_indices(sampler):
    """The samples of the oldest batch that is out."""
    return next(iter(sampler.batches.waiting.values())).indices


def test_hugging_face_dataset():
    """A data set of Hugging Face's `datasets` works, with workers too."""
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"x": list(range(200))})
    for workers in (0, 1):
        r8 = scheduler(num_epochs=1)
        loader, sampler = loader_of(r8, dataset, num_workers=workers)
        seen = []
        for batch in loader:
            seen += batch["x"].tolist()
            sampler.report(true_losses(batch["x"]))

        assert sorted(seen) == list(range(200))
        np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)


@pytest.mark.parametrize("name", SOME_LOADERS)
def test_break_goes_on_in_the_same_epoch(name):
    """After a break the next iteration goes on with what was not reported, and the epoch is whole."""
    r8 = scheduler()
    loader, sampler = loader_of(r8, **LOADERS[name])
    first = []
    for number, (_x, _y, indices) in enumerate(loader):
        if number == 5:
            in_hand = indices.tolist()
            break
        first.append(indices.tolist())
        sampler.report(true_losses(indices))
    rest = run(r8, loader, sampler, epochs=1)

    assert rest[0] == in_hand
    assert sorted(together(first + rest)) == list(range(200))
    assert (r8.global_step, len(rest)) == (STEPS, STEPS - 5)
    np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)


@pytest.mark.parametrize("name", ["alone", "1 worker"])
def test_peeking_at_a_batch_loses_none(name):
    """``next(iter(loader))`` to look at a batch takes nothing away."""
    r8 = scheduler(num_epochs=1)
    loader, sampler = loader_of(r8, **LOADERS[name])
    next(iter(loader))
    batches = run(r8, loader, sampler, epochs=1)

    assert sorted(together(batches)) == list(range(200))
    assert set(r8.table.usage_count.tolist()) == {1}


def test_second_iterator_replaces_the_first():
    """An iteration that another one has replaced cannot go on."""
    r8 = scheduler()
    loader, _ = loader_of(r8)
    old, new = iter(loader), iter(loader)
    next(old)
    next(new)

    with pytest.raises(RuntimeError, match="an iteration that another one has replaced"):
        next(old)


def test_a_loader_that_does_not_keep_the_order_is_refused():
    """The batches of a loader whose workers hand them out as they come cannot be told apart."""
    loader, _ = loader_of(scheduler(), num_workers=2, in_order=False)

    with pytest.raises(ValueError, match="in_order must be True where R8Scheduler draws the batches"):
        next(iter(loader))


@pytest.mark.parametrize("name", SOME_LOADERS)
def test_batch_left_out_comes_again(name):
    """A batch that the loop passed over is noticed; no loss goes to another batch, and it comes once more."""
    r8 = scheduler(num_epochs=1)
    with pytest.warns(RuntimeWarning, match="the batch of step 4 was not reported"):
        batches = run(r8, *loader_of(r8, **LOADERS[name]), epochs=1, report=lambda number: number != 4)

    assert batches[4] in batches[STEPS - 1 :]
    assert len(batches) == STEPS + 1
    np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)
    assert r8.pace.is_finished


@pytest.mark.parametrize("name", SOME_LOADERS)
def test_last_batch_left_out_counts_as_refused(name):
    """One run through the loader is one epoch, even if its last batch was not reported."""
    r8 = scheduler(num_epochs=2)
    loader, sampler = loader_of(r8, **LOADERS[name])
    batches = run(r8, loader, sampler, report=lambda number: number != STEPS - 1)

    assert len(batches) == 2 * STEPS
    assert r8.pace.is_finished
    assert sorted(r8.table.usage_count.tolist()) == [1] * 8 + [2] * 192


def test_skip():
    """A batch passed over by name comes once more, the first one too."""
    r8 = scheduler(num_epochs=1)
    loader, sampler = loader_of(r8, num_workers=1, prefetch_factor=4)
    batches = []
    for number, (_x, _y, indices) in enumerate(loader):
        batches.append(indices.tolist())
        if number == 0:
            sampler.skip()
        else:
            sampler.report(true_losses(indices))

    assert batches[-1] == batches[0]
    np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)


def test_first_batch_left_out_is_an_error():
    """Whether the first batch was passed over or something fetches ahead cannot be told, so it is asked."""
    r8 = scheduler()
    loader, sampler = loader_of(r8, num_workers=1, prefetch_factor=4)
    iterator = iter(loader)
    next(iterator)
    next(iterator)

    with pytest.raises(RuntimeError, match=r"got 2 batches handed out\. .* say so with ahead=1"):
        sampler.report(1.0)


def test_a_wrapper_that_fetches_ahead():
    """With ahead=1 the losses go to the right batches where something holds one batch back."""
    r8 = scheduler(num_epochs=2)
    loader, sampler = loader_of(r8, sampler={"ahead": 1})
    for _ in range(2):
        held = None
        for _x, _y, indices in loader:
            if held is not None:
                sampler.report(true_losses(held))
            held = indices
        sampler.report(true_losses(held))

    np.testing.assert_allclose(r8.table.loss, true_losses(range(200)), rtol=1e-6)
    assert set(r8.table.usage_count.tolist()) == {2}


def test_reporting_twice_is_an_error():
    """A second loss for a batch is not taken for the loss of the next one, which the workers have ready."""
    r8 = scheduler()
    loader, sampler = loader_of(r8, num_workers=1, prefetch_factor=4)
    iterator = iter(loader)
    next(iterator)
    sampler.report(1.0)

    with pytest.raises(RuntimeError, match="with 1 batches handed out and as many reported"):
        sampler.report(1.0)


def test_length():
    """The length is that of a whole epoch, at any time: trainers count with it."""
    r8 = scheduler()
    loader, sampler = loader_of(r8)
    lengths = [len(loader)]
    for number, (_x, _y, indices) in enumerate(loader):
        sampler.report(true_losses(indices))
        lengths.append(len(loader))
        if number == 3:
            break
    iterator = iter(loader)
    next(iterator)

    assert lengths == [STEPS] * 5
    assert len(loader) == STEPS


@pytest.mark.parametrize("name", SOME_LOADERS)
def test_nothing_reported(name):
    """A trainer that reports nothing and stops at len(loader) is told so once, and gets other batches each epoch."""
    r8 = scheduler(num_epochs=3)
    loader, _ = loader_of(r8, **LOADERS[name])
    epochs, notices = [], []
    r8.host.announcer.add(lambda event: notices.append(getattr(event, "text", "")))
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batches = iter(loader)
            epochs.append([next(batches)[2].tolist() for _ in range(len(loader))])
        del batches

    assert sum("epoch of 13 batches ended with no loss reported" in text for text in notices) == 1
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(together(epochs[1])) == list(range(200))


@pytest.mark.parametrize("name", SOME_LOADERS)
def test_update_with_loss(name):
    """The scheduler's own update_with_loss reports the batch that the loader gave, as the sampler's report does."""
    tables = []
    for way in ("update_with_loss", "report"):
        r8 = scheduler(num_epochs=1)
        loader, sampler = loader_of(r8, **LOADERS[name])
        report = getattr(r8 if way == "update_with_loss" else sampler, way)
        order = []
        for _ in r8.epoch_iterator():
            for _x, _y, indices in loader:
                order += indices.tolist()
                report(true_losses(indices))
        tables.append((order, r8.table.storage.records.take(np.arange(200)).tobytes(), r8.global_step))

    assert tables[0] == tables[1]
    assert tables[0][2] == STEPS


def test_update_with_loss_of_a_wrong_shape():
    """Losses that do not fit change nothing; the right ones can be given then."""
    r8 = scheduler()
    loader, _ = loader_of(r8)
    batches = iter(loader)
    indices = next(batches)[2]
    with pytest.raises(ValueError, match="loss"):
        r8.update_with_loss(np.ones(3))
    r8.update_with_loss(true_losses(indices))

    assert r8.global_step == 1
    with pytest.raises(RuntimeError, match="with no batch open"):
        r8.update_with_loss(1.0)


def test_budget_in_steps_ends_in_mid_epoch():
    """Steps beyond the budget are not drawn, and a further iteration is empty and says so once."""
    r8 = scheduler(num_epochs=None, num_steps=5)
    loader, sampler = loader_of(r8, num_workers=1, prefetch_factor=4)
    assert len(run(r8, loader, sampler, epochs=1)) == 5

    with pytest.warns(RuntimeWarning, match="the budget is spent after 5 steps"):
        assert run(r8, loader, sampler, epochs=2) == []


def test_time_budget():
    """When the time is up no batch is drawn; what is out is still trained on."""
    now = [0.0]
    r8 = scheduler(num_epochs=None, train_duration_seconds=10, clock=lambda: now[0])
    loader, sampler = loader_of(r8, num_workers=2, prefetch_factor=1)
    count = 0
    for _x, _y, indices in loader:
        count += 1
        now[0] = 20.0 if count == 3 else now[0]
        sampler.report(true_losses(indices))

    # Two were ready, and one more was asked for before the time was up.
    assert count == 5


def test_search_for_a_rate():
    """A search for the learning rate goes before the first epoch, whose batches then come as ever."""
    r8 = scheduler(num_epochs=1, auto_find_lr=True, load_callback=lambda source: None, state_callback=lambda: 1)
    with pytest.warns(RuntimeWarning, match="never turned up"):
        batches = run(r8, *loader_of(r8), epochs=1)

    assert sorted(together(batches[-STEPS:])) == list(range(200))
    assert r8.pace.is_finished


@pytest.mark.filterwarnings("ignore:a loss was refused, and there is nothing to restore")
@pytest.mark.parametrize("nan_at", [0, STEPS - 1])
def test_refused_batch_with_workers_ahead(nan_at):
    """After a refused loss every other batch is trained on once, and its samples keep their records."""
    r8 = scheduler(num_epochs=1, recovery=no_steady())
    loader, sampler = loader_of(r8, num_workers=1, prefetch_factor=8)
    batches = []
    for number, (_x, _y, indices) in enumerate(loader):
        batches.append(indices.tolist())
        sampler.report(np.nan if number == nan_at else true_losses(indices).mean())

    assert sorted(together(batches)) == list(range(200))
    assert set(r8.table.usage_count[batches[nan_at]].tolist()) == {0}
    assert r8.pace.is_finished


def test_samplers_of_a_scheduler_share_its_batches():
    """Two samplers of one scheduler share what is out."""
    r8 = scheduler()

    assert R8BatchSampler(r8).batches is R8BatchSampler(r8).batches
    assert R8BatchSampler(r8).r8 is r8


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_similar_lengths_are_drawn_for_a_loader(workers):
    """With TokenBatches alone; padded batches stay within the budget, and each text comes once an epoch."""
    lengths = np.random.default_rng(0).integers(1, 90, 60)
    texts = [torch.full((int(length),), number) for number, length in enumerate(lengths)]
    # A refused loss would be followed by a probe, which takes the place of a batch.
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    adapter = attach(model, optimizer, texts, batch_size=TokenBatches(lengths, max_tokens=256), num_epochs=2)
    pad = torch.nn.utils.rnn.pad_sequence
    for _ in adapter.epochs():
        seen = []
        for batch in adapter.loader(num_workers=workers, collate_fn=lambda rows: pad(rows, batch_first=True)):
            assert batch.numel() <= 256
            seen += batch[:, 0].tolist()
            adapter.step(adapter.loss(model(batch[:, :1] / 60).square().flatten()))
        assert sorted(seen) == list(range(60))

    assert adapter.scheduler.table.usage_count.tolist() == [2] * 60


def handed_out():
    """A sampler with a batch out."""
    sampler = R8BatchSampler(scheduler())
    next(iter(sampler))
    return sampler


# fmt: off
MISTAKES = [
    (lambda: R8BatchSampler(3), TypeError, r"r8 must be an R8Scheduler, got 3\."),
    (lambda: R8BatchSampler(scheduler(), ahead=-1), ValueError, r"ahead must be a whole number >= 0, got -1\."),
    (lambda: R8BatchSampler(scheduler()).report(1.0), RuntimeError,
     "handed out and not reported yet, got none out"),
    (lambda: next(iter(DataLoader(DIGITS, sampler=R8BatchSampler(scheduler()), batch_size=4))), ValueError,
     "sampler must be left out and R8BatchSampler given as batch_sampler"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    with pytest.raises(error, match=text):
        act()
