"""Wrong arguments and broken data: each a clear error, and nothing recorded is lost."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy

from learnit_r8 import OwnBatches, RateShape
from learnit_r8.engine.settings import grouped
from learnit_r8.torch import Ranks, SampleError, attach
from learnit_r8.torch.losses import read_losses
from tests.programs import ROOT, ended
from tests.torch_common import (
    DIGITS,
    STEPS,
    ManyRows,
    Rows,
    X,
    Y,
    adapted,
    as_is,
    classifier,
    sgd,
    together,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from DIGITS


def attached(model=None, optimizer=None, dataset=DIGITS, **settings):
    model = classifier() if model is None else model
    optimizer = sgd(model if isinstance(model, torch.nn.Module) else classifier()) if optimizer is None else optimizer
    given = {"batch_size": 16, "num_epochs": 1, **settings}
    return attach(
        model, optimizer, dataset, **grouped({name: each for name, each in given.items() if each is not None})
    )


HELD = classifier()


def finished():
    """Attached again, after something else than R8 has set the rate to 0."""
    model = classifier()
    optimizer = sgd(model)
    attached(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    attached(model, optimizer)


# fmt: off
MISTAKES = [
    *[(lambda arguments=arguments: attached(**arguments), error, text) for arguments, error, text in (
        ({"dataset": Stream()}, TypeError,
         "dataset must have a length and an index, as the scheduler says .* leave batch_size out"),
        ({"dataset": iter([1])}, TypeError, "dataset must have a length"),
        ({"dataset": {1, 2}}, TypeError, r"dataset must have an index, got \{1, 2\}\."),
        ({"model": 3}, TypeError, r"model must be a torch\.nn\.Module, got 3\."),
        ({"model": torch.nn.Linear(2, 2, device="meta")}, ValueError,
         "got 'weight' on the meta device; call to_empty"),
        ({"model": torch.nn.LazyLinear(2)}, ValueError, "got 'weight' of a lazy module; run a batch through it"),
        ({"optimizer": 3}, TypeError, r"optimizer must be a torch\.optim\.Optimizer, got 3\."),
        ({"optimizer": sgd(classifier())}, ValueError,
         "optimizer must hold parameters of the model, got 4 tensors that"),
        ({"dataset": torch.utils.data.DataLoader(DIGITS)}, TypeError,
         r"dataset must be the data set itself, got <.*DataLoader.*>; give its \.dataset"),
        ({"scaler": "cpu"}, TypeError, r"scaler must be a torch\.amp\.GradScaler, got 'cpu'\."),
        ({"ema": 0.99}, TypeError, r"ema must have state_dict\(\) and load_state_dict\(\), got 0\.99\. .* also="),
        ({"sharing": 2}, TypeError, r"sharing must be a Together\(\) or None, got 2\."),
        ({"accumulate": 0}, ValueError, r"accumulate must be a whole number >= 1, got 0\."),
        ({"ahead": -1}, ValueError, r"ahead must be a whole number >= 0, got -1\."),
        ({"max_grad_norm": -1.0}, ValueError, r"max_grad_norm must be a number > 0 or None, got -1\.0\."),
        ({"max_grad_norm": "1"}, ValueError, r"max_grad_norm must be a number > 0 or None, got '1'\."),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        # A rate of 0 is no peak for a schedule; nobody guesses what one was that something else has set to 0.
        ({"optimizer": sgd(HELD, lr=0.0), "model": HELD}, ValueError, r"a learning rate > 0, got \[0\.0\]\."),
        *[({wrong: 1}, TypeError, rf"attach\(\) got an unexpected .* '{wrong}'\. Did you mean '{right}'\?")
          for wrong, right in (("lr", "initial_lr"), ("nmu_epochs", "num_epochs"), ("accumulation", "accumulate"))])],
    (lambda: finished(), ValueError, r"learning rate > 0, got 0\.0, as a finished schedule leaves it"),
    (lambda: adapted().step(torch.ones(())), RuntimeError, "with no losses|before the losses of this batch"),
    (lambda: adapted().report(), RuntimeError, "with no losses|before the losses of this batch"),
    *[(lambda name=name: adapted().loader(**{name: 1}), ValueError,
       rf"{name} must be left out, the scheduler decides it, got 1\.")
      for name in ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")],
    *[(lambda act=act: getattr(adapted(), act)(torch.ones(16), ticket=3), TypeError,
       r"ticket must be what draw\(\) returned, got 3\.") for act in ("loss", "report")],
    # torch itself refuses to shuffle what a batch sampler orders.
    (lambda: torch.utils.data.DataLoader(DIGITS, batch_sampler=adapted().sampler, shuffle=True), ValueError,
     "batch_sampler option is mutually exclusive"),
    # Scores in place of losses: their mean would even go down.
    *[(lambda shape=shape: read_losses(*shape(classifier()(X[:16]))), ValueError,
       r"losses must be one number per sample, got what look like logits of shape .* cross_entropy") for shape in (
        lambda logits: (logits, 16), lambda logits: (logits.log_softmax(1), 16),
        lambda logits: (logits.view(4, 4, 10), 4), lambda logits: (logits.view(4, 4, 10).transpose(0, 1)[:, :3], 4))],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """With what to do."""
    with pytest.raises(error, match=text):
        act()


def test_values_reach_the_scheduler_of_attach():
    """Old names are told of, and a value says what the argument alone would, and more."""
    model = classifier()
    batches = torch.utils.data.DataLoader(DIGITS, batch_size=32)
    own = OwnBatches(keep_witness=False)

    with pytest.raises(TypeError, match=r"attach\(\) got .* 'backup_dir'.*write backup_every=Backups\(backup"):
        attach(model, sgd(model), DIGITS, batch_size=16, num_epochs=1, backup_dir=False)
    adapter = attach(model, sgd(model), batches, num_epochs=2, batch_size=own, scheduler_mode=RateShape("keep"))
    assert adapter.scheduler.host.rates.are_own
    assert adapter.scheduler.feed.source.settings == OwnBatches(keep_witness=False, steps_per_epoch=len(batches))


def test_notebook_cells_run_twice_say_what_happened():
    """The loop trains nothing more; attached again, the optimizer trains with its own rate, not with the last, 0."""
    model = classifier()
    optimizer = sgd(model)
    own = optimizer.param_groups[0]["lr"]
    adapter = attached(model, optimizer, scheduler_mode="linear")
    for _ in adapter.epochs():
        for x, y, *_ in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))

    with pytest.warns(RuntimeWarning, match="the budget was spent at step"):
        assert list(adapter.epochs()) == []
    assert optimizer.param_groups[0]["lr"] == 0
    for again in (attached(model, optimizer), attached(model, optimizer)):
        rates = again.scheduler.host.rates
        assert max(rates.scheduled(progress / 100) for progress in range(100)) == pytest.approx(own)


def test_losses_of_tokens_are_no_logits():
    """Losses in the shape (batch, tokens), and a critic's score, are taken."""
    losses = cross_entropy(classifier()(X[:16]), Y[:16], reduction="none").view(4, 4)

    assert len(read_losses(losses, 4).values) == 4
    assert len(read_losses(torch.nn.Linear(64, 1)(X[:16]), 16).values) == 16


@pytest.mark.parametrize(
    ("losses", "settings", "error", "message"),
    [
        (torch.ones(9), {}, ValueError, r"one row for each of the 16 samples of the batch, got shape \(9,\)"),
        (torch.ones(160), {}, ValueError, r"losses of tokens belong in the shape \(batch, tokens\)"),
        (1.0, {}, TypeError, r"losses must be a tensor of floats with a loss for each sample, got 1\.0\."),
        (torch.ones(16, dtype=torch.int64), {}, TypeError, "losses must be a tensor of floats"),
        (
            torch.ones(16, 2),
            {"mask": torch.ones(16, 3)},
            ValueError,
            r"mask must have the shape of the losses \(16, 2\)",
        ),
        (torch.ones(16), {"weights": torch.ones(3)}, ValueError, r"weights must have shape \(16,\), got \(3,\)\."),
        (torch.ones(16), {"weights": [1.0] * 16}, TypeError, r"weights must be a tensor, got a list; torch\.as_tensor"),
        (torch.ones(16), {"mask": np.ones(16)}, TypeError, r"mask must be a tensor, got a ndarray; torch\.as_tensor"),
        (torch.tensor(1.0), {"weights": torch.ones(16)}, ValueError, r"\(reduction='none'\) where samples are masked"),
    ],
)
def test_losses_that_do_not_fit(losses, settings, error, message):
    """A loss of the wrong form is named, the batch stays out, and the right one can still be reported."""
    adapter = adapted(num_epochs=1)
    for number, (x, y) in enumerate(adapter.loader()):
        if number == 3:
            with pytest.raises(error, match=message):
                adapter.loss(losses, **settings)
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))

    assert set(adapter.scheduler.table.usage_count.tolist()) == {1}


def test_optimizer_that_wants_a_closure_is_told_what_to_do():
    """LBFGS cannot be stepped by the adapter; nothing was done to the weights."""
    model = classifier()
    adapter = attached(model, torch.optim.LBFGS(model.parameters(), lr=0.1))
    x, y = next(iter(adapter.loader()))
    loss = adapter.loss(cross_entropy(model(x), y, reduction="none"))

    with pytest.raises(TypeError, match=r"without a closure, got LBFGS; call report\(losses\)"):
        adapter.step(loss)
    assert all(each.grad is None for each in model.parameters())


class Broken(Rows):
    """A sample cannot be read until it is repaired."""

    def __init__(self):
        super().__init__()
        self.bad = {77}

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("no such file")
        return super().__getitem__(index)


class BrokenMany(ManyRows):
    """The same, read a batch at a time."""

    def __init__(self):
        super().__init__()
        self.bad = {77}

    def __getitems__(self, indices):
        if self.bad & set(indices.tolist()):
            raise OSError("no such file")
        return super().__getitems__(indices)


@pytest.mark.parametrize("workers", [0, 1])
def test_sample_that_raises(workers):
    """The error names the sample; afterwards the epoch goes on with no batch lost or trained on twice."""
    dataset = Broken()
    adapter = adapted(dataset, num_epochs=1)
    with pytest.raises(SampleError, match="sample 77 could not be read: OSError: no such file"):
        train(adapter, adapter.loader(num_workers=workers))
    before = adapter.scheduler.global_step
    dataset.bad = set()
    outcomes = train(adapter, adapter.loader(num_workers=workers))

    assert before + len(outcomes) == STEPS
    assert set(adapter.scheduler.table.usage_count.tolist()) == {1}


def test_batch_that_raises():
    """Where a data set reads many at once the error names them."""
    adapter = adapted(BrokenMany(), num_epochs=1)

    with pytest.raises(SampleError, match=r"one of the samples \[.*77.*\] could not be read: OSError"):
        train(adapter, adapter.loader(collate_fn=as_is))


def test_sample_of_a_subset_that_raises():
    """In a subset the error names the sample by its place there."""
    adapter = adapted(torch.utils.data.Subset(Broken(), range(7, 200)), num_epochs=1)

    with pytest.raises(SampleError, match=r"^sample 70 could not be read: OSError"):
        train(adapter)


DEADLY = """
import os, pathlib, signal, sys
from torch.nn.functional import cross_entropy
from tests.torch_common import Rows, adapted

mark = pathlib.Path(sys.argv[1])

class Deadly(Rows):
    def __getitem__(self, index):
        if index == 77 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

adapter, seen = adapted(Deadly(), num_epochs=1), []

def run():
    for x, y, rows in adapter.loader(num_workers=2, prefetch_factor=int(sys.argv[2])):
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        seen.extend(rows.tolist())

ended = None
while True:
    try:
        if adapter.finished:
            break
        run()
    except (RuntimeError, OSError, EOFError) as error:
        # torch's own, which comes whenever the signal does, or what its queue met first; or the one after the other.
        ended = error
print("ended:", ended is not None)
uses = set(adapter.scheduler.table.usage_count.tolist())
print("all trained on:", sorted(set(seen)) == list(range(200)), "uses", uses)
"""


@pytest.mark.program
@pytest.mark.parametrize("prefetch", ["1", pytest.param("4", marks=pytest.mark.slow)])
def test_worker_that_dies(prefetch, tmp_path):
    """A worker that is killed ends the loop with an error; afterwards the epoch goes on, and nothing is lost."""
    _, printed, errors = ended(tmp_path, "-c", DEADLY, tmp_path / "died", prefetch)

    assert "ended: True" in printed, errors
    assert "all trained on: True uses {1}" in printed


def test_torch_is_missing():
    """Without torch the error names the extra."""
    code = "import sys; sys.modules['torch'] = None; import learnit_r8.torch"
    _, _, errors = ended(ROOT, "-c", code)

    assert 'pip install ".[torch]" in a clone' in errors


def test_an_interruption_in_a_report_loses_nothing(monkeypatch):
    """Ctrl-C at a bad moment, with the batch taken and its loss not noted, leaves the batch to be drawn first."""
    adapter = adapted(num_epochs=1)
    begin = adapter.scheduler.host.begin

    def interrupted(*arguments, **settings):
        monkeypatch.setattr(adapter.scheduler.host, "begin", begin)
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter.scheduler.host, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(adapter)
    train(adapter)

    assert set(adapter.scheduler.table.usage_count.tolist()) == {1}


def test_an_exception_in_the_loop_loses_nothing():
    """A batch in hand when the loop ends with an error is drawn first afterwards."""
    adapter = adapted(Rows(), num_epochs=1)
    seen = []

    def run(fails_at):
        for number, (x, y, rows) in enumerate(adapter.loader(num_workers=1)):
            losses = cross_entropy(adapter.model(x), y, reduction="none")
            if number == fails_at:
                raise KeyboardInterrupt
            adapter.step(adapter.loss(losses))
            seen.append(rows.tolist())

    with pytest.raises(KeyboardInterrupt):
        run(4)
    run(None)

    assert sorted(together(seen)) == list(range(200))
    assert np.isfinite(adapter.scheduler.table.loss).all()
    assert len(X) == len(Y) == 200


@pytest.mark.parametrize("loss", [None, 1.0])
def test_step_of_no_tensor(loss):
    """What is handed to step() is a tensor; the losses noted before can be stepped with still."""
    adapter = adapted()
    x, y = next(iter(adapter.loader()))
    noted = adapter.loss(cross_entropy(adapter.model(x), y, reduction="none"))

    with pytest.raises(TypeError, match=rf"loss must be the tensor that loss\(\) returned, .*got {loss}"):
        adapter.step(loss)
    assert adapter.step(noted)


def test_ranks_need_a_group():
    """Without torch.distributed there are no ranks."""
    with pytest.raises(RuntimeError, match=r"torch\.distributed must be initialised"):
        Ranks()


@pytest.mark.parametrize("seconds", [0, -1, "5", math.nan, math.inf])
def test_the_time_to_wait_must_be_positive(seconds):
    """The timeout is a number of seconds."""
    with pytest.raises(ValueError, match="timeout_seconds must be a number > 0"):
        Ranks(timeout_seconds=seconds)
