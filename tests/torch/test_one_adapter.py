"""One adapter: over batches that the scheduler draws and over a loader of the user's, every name does the same."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach
from tests.torch_common import DIGITS, X, Y, descend

SOURCES = ("planned", "own")


def data_of(size=96):
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(5))
    return TensorDataset(x, x[:, :3].argmax(1))


def attached(source, *, data=None, seed=0, batch_size=8, **settings):
    """A model, its optimizer, and what attach() returns for batches that are drawn, or for a loader."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = data_of() if data is None else data
    settings = {"num_epochs": 2, "scheduler_mode": "keep", "handle_signals": False, "backup_dir": False, **settings}
    if source == "planned":
        return model, optimizer, attach(model, optimizer, data, batch_size=batch_size, **grouped(settings))
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    return model, optimizer, attach(model, optimizer, loader, **grouped(settings))


def weights_of(model):
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def train(model, adapter, *, until=None):
    """The same loop over both; ends after so many steps."""
    for _ in adapter.epochs():
        for x, y in adapter.batches():
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
            if adapter.scheduler.global_step == until:
                return


@pytest.mark.parametrize("source", SOURCES)
def test_one_loop_for_both(source):
    """epochs(), batches(), loss() and step() train, the table learns each sample, and the rest is at hand."""
    model, _, adapter = attached(source)
    train(model, adapter)
    adapter.log(val_loss=0.5)

    assert len(adapter) == 12
    assert adapter.table is adapter.scheduler.table
    assert adapter.table.source == "exact"
    assert adapter.table.usage_count.min() == 2
    assert "finished, lr 0.1\n" in adapter.summary()
    assert adapter.check()
    assert adapter.finished


@pytest.mark.parametrize("source", SOURCES)
def test_iterating_over_the_adapter_is_an_epoch(source):
    model, optimizer, adapter = attached(source)
    for _ in adapter.epochs():
        for x, y in adapter:
            if adapter.report(losses := cross_entropy(model(x), y, reduction="none")):
                descend(optimizer, losses.mean())

    assert adapter.scheduler.global_step == 24


def test_a_training_with_noted_losses_stays_the_same():
    """Over the user's loader loss() and step() leave weights and generators as they are in the plain script."""
    model, _, adapter = attached("own")
    train(model, adapter)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    plain, plain_optimizer, _ = attached("own")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data_of(), batch_size=8, shuffle=True)
    for _ in range(2):
        for x, y in loader:
            loss = cross_entropy(plain(x), y, reduction="none").mean()
            loss.backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()

    assert torch.equal(weights_of(model), weights_of(plain))
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("at", [5, 12, 17])
def test_a_state_of_the_whole_training_goes_on_to_the_bit(source, at):
    """`state_dict` in mid-epoch or at its end, loaded by another adapter, gives the weights of the whole run."""
    whole, _, adapter = attached(source)
    train(whole, adapter)
    model, _, adapter = attached(source)
    train(model, adapter, until=at)
    state = copy.deepcopy(adapter.state_dict())
    model, _, adapter = attached(source, seed=9)
    adapter.load_state_dict(state)
    train(model, adapter)

    assert adapter.scheduler.global_step == 24
    assert torch.equal(weights_of(model), weights_of(whole))


@pytest.mark.parametrize("source", SOURCES)
def test_logits_judge_labels(source):
    """cross_entropy() finds the wrong labels, whoever makes the batches."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(600) % 3
    x = torch.randn(600, 8, generator=generator) + 4 * torch.nn.functional.one_hot(y, 8)
    wrong = torch.randperm(600, generator=generator)[:30]
    given = y.clone()
    given[wrong] = (given[wrong] + 1) % 3
    model, _, adapter = attached(source, data=TensorDataset(x, given), batch_size=20, num_epochs=8)
    for _ in adapter.epochs():
        for inputs, labels in adapter.batches():
            adapter.step(adapter.cross_entropy(model(inputs), labels))
    found = adapter.table.suspects()

    assert np.array_equal(adapter.table.given, given.numpy())
    assert np.mean(found.suggested == y.numpy()[found.indices]) > 0.8
    assert len(set(found.indices.tolist()) & set(wrong.tolist())) >= 24
    assert len(found.indices) <= 36


def test_noted_losses_of_unknown_samples_count_by_their_mean():
    """Of a list of batches nobody knows the samples: their mean is reported, and logits are refused."""
    model = torch.nn.Linear(4, 3)
    batches = [(torch.randn(6, 4), torch.arange(6) % 3), (torch.randn(2, 4), torch.arange(2))]
    adapter = attach(model, torch.optim.SGD(model.parameters(), 0.1), batches, num_epochs=1, handle_signals=False)
    for (x, y), weights in zip(adapter.batches(), [torch.ones(6), torch.tensor([1.0, 0.0])], strict=False):
        logits = model(x)
        losses = cross_entropy(logits, y, reduction="none")
        with pytest.raises(ValueError, match=r"nobody knows which samples .* batches\(ids=\.\.\.\)"):
            adapter.loss(losses, logits=logits, targets=y)
        loss = adapter.loss(losses, weights=weights)
        assert torch.allclose(loss, (losses * weights).sum() / weights.sum())
        assert adapter.step(loss)

    assert adapter.scheduler.global_step == 2


def test_a_skipped_batch_of_a_loader_is_no_step():
    """It does not come again; with noted losses too."""
    model, _, adapter = attached("own", num_epochs=1)
    for number, (x, y) in enumerate(adapter.batches()):
        if number == 3:
            adapter.skip()
            continue
        loss = adapter.loss(cross_entropy(model(x), y, reduction="none"))
        if number == 7:
            adapter.skip()
            continue
        adapter.step(loss)

    assert number == 11
    assert adapter.scheduler.global_step == 10
    assert int(np.sum(adapter.table.usage_count)) == 80


@pytest.mark.parametrize("source", SOURCES)
def test_two_losses_noted_in_a_row_are_an_error(source):
    """The message says what to call; the first ones can still be reported."""
    model, _, adapter = attached(source)
    for x, y in adapter.batches():
        losses = cross_entropy(model(x), y, reduction="none")
        loss = adapter.loss(losses)
        with pytest.raises(RuntimeError, match=r"of step 0 must be used before .* call step\(loss\) after each"):
            adapter.loss(losses)
        assert adapter.report()
        loss.backward()
        break

    assert adapter.scheduler.global_step == 1


def test_an_argument_of_the_other_kind_is_named():
    """Before anything changes."""
    model, _, planned = attached("planned")
    _, _, own = attached("own")
    with pytest.raises(ValueError, match="size must be left out where the scheduler draws the batches, got 3"):
        planned.batches(size=3)
    with pytest.raises(RuntimeError, match=r"steps\(\) was called where the scheduler draws"):
        planned.steps()
    with pytest.raises(RuntimeError, match=r"loader\(\) was called where the batches are your own.*batches\(\)"):
        own.loader(num_workers=2)
    x, y = next(iter(planned.batches()))
    losses = cross_entropy(model(x), y, reduction="none")
    with pytest.raises(ValueError, match=r"ids must be left out where the scheduler draws"):
        planned.report(losses, ids=[1])
    with pytest.raises(TypeError, match="losses of one batch that the scheduler has drawn, got 2"):
        planned.report(losses, losses)
    for name, value in (("ticket", 3), ("predictions", 2)):
        with pytest.raises(ValueError, match=f"{name} must be left out where the batches are your own, got {value}"):
            own.report(losses, **{name: value})

    assert planned.scheduler.global_step == own.scheduler.global_step == 0


def test_the_state_of_a_loader_that_has_one_is_its_own():
    """The adapter stands in for it, so a script that saves the loader's state saves and loads that."""

    class Stateful(list):
        place = 0

        def state_dict(self):
            return {"place": self.place}

        def load_state_dict(self, state):
            self.place = state["place"]

    model = torch.nn.Linear(2, 1)
    loader = Stateful([torch.ones(2, 2)])
    adapter = attach(model, torch.optim.SGD(model.parameters(), 0.1), loader, num_epochs=1)
    adapter.load_state_dict({"place": 3})

    assert adapter.state_dict() == {"place": 3}


@pytest.mark.parametrize("given", [{}, {"guard": "finite"}], ids=["default", "given"])
def test_losses_that_should_rise_put_nothing_back(given):
    """An optimizer that maximizes trains as one that minimizes the same loss with the other sign."""
    trained = []
    for sign, settings in ((-1.0, given), (1.0, {"guard": "finite"})):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 10)
        optimizer = torch.optim.Adam(model.parameters(), 0.01, maximize=sign < 0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with attach(model, optimizer, DIGITS, batch_size=20, num_epochs=10, **settings) as adapter:
                for _ in adapter.epochs():
                    for x, y in adapter.loader():
                        adapter.step(adapter.loss(sign * cross_entropy(model(x), y, reduction="none")))
        assert any("maximize=True" in str(each.message) for each in said) == (sign < 0 and not given)
        trained.append(float(cross_entropy(model(X), Y).detach()))

    assert trained[0] < 1.0
    assert trained[0] == pytest.approx(trained[1], rel=0.2)


def test_a_run_that_is_refused_to_its_end_says_so():
    """Who reads only the last line of a finished run learns that nothing came of it."""
    model = torch.nn.Linear(64, 10)
    adapter = attach(model, torch.optim.SGD(model.parameters(), 0.1), DIGITS, batch_size=10, num_epochs=2)
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none") * float("nan")))

    with pytest.warns(RuntimeWarning, match=r"the last 40 batches of the run .* were refused, up to step 40"):
        adapter.close()
