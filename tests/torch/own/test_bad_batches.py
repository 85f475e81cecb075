"""A refused batch leaves nothing behind in the model, and what R8 does not heal is not taken for damage."""

import contextlib
import math
import os
import re
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from wild_scripts import clouds, seed_all

from learnit_r8 import Backups, Recovery, TrainingDiverged
from learnit_r8.events import Notice
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from learnit_r8.torch.flight.hand import MOST_OF_BUFFER
from tests.torch_common import NanGradient

NAN = float("nan")
EPOCHS, SIZE = 6, 8
pytestmark = pytest.mark.filterwarnings("ignore:.*refused", "ignore:.*not finite")


def network():
    seed_all()
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(), nn.Linear(16, 4))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches_of(x, y):
    """The batches of all epochs, each in an order of its own."""
    orders = [np.random.default_rng(epoch).permutation(len(x)).reshape(-1, SIZE) for epoch in range(EPOCHS)]
    return [(x[rows], y[rows]) for order in orders for rows in order]


def is_bad(inputs):
    return not bool((inputs.abs() < 500).all())


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("has_loader", [True, False])
def test_nan_leaves_the_statistics_of_a_norm_as_they_were(has_loader):
    """A sample of NaN in each epoch, under BatchNorm: to the bit as with its batches left out by hand."""
    x, y = clouds()
    x[7] = NAN
    batches, model = batches_of(x, y), network()
    expected, optimizer = model, sgd(model)
    for inputs, labels in batches:
        if not is_bad(inputs):
            step(optimizer, cross_entropy(model(inputs), labels))

    model = network()
    optimizer = sgd(model)
    adapter = attach(model, optimizer, batches if has_loader else None, num_steps=len(batches))
    given = adapter.batches() if has_loader else (batches[number] for number in adapter.steps())
    for inputs, labels in given:
        loss = cross_entropy(model(inputs), labels)
        if adapter.report(loss):
            step(optimizer, loss)

    assert adapter.scheduler.sentry.num_refused == sum(is_bad(inputs) for inputs, _ in batches) == EPOCHS
    assert "model restored" not in adapter.summary()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "fused": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.001, momentum=0.9),
}


def train_with_nan_gradients(make, with_r8, *, faults, num_steps=96, is_watched=False, reports_first=True):
    """A training in which some gradients are NaN though the losses are finite; model, optimizer, adapter."""
    batches, model = (batches_of(*clouds()) * 4)[:num_steps], network()
    optimizer, adapter = make(model), None
    if with_r8:
        adapter = attach(model, optimizer, batches, num_steps=num_steps)
        if is_watched:
            adapter.scheduler.controller.state.watch_steps()
    for number, (inputs, labels) in enumerate(batches if adapter is None else adapter.batches()):
        outputs = model(inputs)
        loss = cross_entropy(NanGradient.apply(outputs) if number in faults else outputs, labels)
        if adapter is not None and reports_first and not adapter.report(loss):
            continue
        optimizer.zero_grad()
        loss.backward()
        if adapter is not None or number not in faults:
            optimizer.step(None)
        if number in faults:
            assert all(bool(each.grad.isnan().any()) for each in model.parameters())
        if adapter is not None and not reports_first:
            adapter.report(loss)
    return model, optimizer, adapter


@pytest.mark.parametrize("reports_first", [True, False], ids=["report, step", "step, report"])
@pytest.mark.parametrize(
    "name", ["sgd", *(pytest.param(each, marks=pytest.mark.program) for each in [*OPTIMIZERS][1:])]
)
def test_a_gradient_of_nan_is_kept_from_the_optimizer(name, reports_first):
    """Once weights were not finite, a step whose gradient is NaN is left out: to the bit as by hand, with its state."""
    faults = {5, 40, 41, 95}
    expected, of_expected, _ = train_with_nan_gradients(OPTIMIZERS[name], False, faults=faults)
    given = {"is_watched": True, "reports_first": reports_first}
    model, optimizer, adapter = train_with_nan_gradients(OPTIMIZERS[name], True, faults=faults, **given)

    assert "; 4 steps left out for gradients that were not finite" in adapter.summary()
    assert "model restored" not in adapter.summary()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    for one, other in zip(of_expected.state.values(), optimizer.state.values(), strict=True):
        for kept, found in zip(one.values(), other.values(), strict=True):
            assert torch.equal(torch.as_tensor(kept), torch.as_tensor(found))


class Handwritten(torch.optim.Optimizer):
    """An optimizer that expects a gradient of each parameter."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for each in group["params"]:
                each.sub_(each.grad, alpha=group["lr"])


def test_an_optimizer_that_needs_all_gradients_gets_them():
    """Nothing is kept from one whose code does not pass over what has none; the weights are put back as before."""
    model, _, adapter = train_with_nan_gradients(
        lambda model: Handwritten(model.parameters()), True, faults={10, 30, 50}, is_watched=True
    )

    assert "left out for gradients" not in adapter.summary()
    assert all(bool(each.isfinite().all()) for each in model.state_dict().values())


def test_hooks_of_the_user_see_the_gradient_that_was_kept_from_the_optimizer():
    """Also those that were there before the adapter."""
    seen = []

    def make(model):
        optimizer = sgd(model)
        optimizer.register_step_post_hook(lambda *_: seen.append(next(model.parameters()).grad.isfinite().all().item()))
        return optimizer

    train_with_nan_gradients(make, True, faults={40}, is_watched=True)

    assert seen.count(False) == 1


def test_gradients_of_nan_that_come_again_cost_their_steps_alone():
    """The first is found in the weights, which go back; the others undo nothing, and the run says how many they are."""
    faults = set(range(10, 96, 9))
    model, _, adapter = train_with_nan_gradients(sgd, True, faults=faults)
    r8 = adapter.scheduler

    assert "model restored once" in adapter.summary()
    assert r8.state_dict()["recovery"]["incidents"]["num_withheld"] == len(faults) - 1
    assert all(bool(each.isfinite().all()) for each in model.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*in a row were left out")
def test_gradients_that_are_all_nan_end_the_run():
    """As refused batches do: a warning first says where such gradients come from, and a step that is taken ends the
    count."""
    weight = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    adapter = attach(nn.ParameterList([weight]), optimizer, None, num_steps=600, recovery=Recovery(max_refused=110))
    heard = record_events()
    adapter.scheduler.host.announcer.add(heard)

    def train():
        for number in adapter.steps():
            # The root is not defined: its value is left out, its gradient is NaN.
            inputs = weight if number == 50 else torch.where(weight > 0, weight, (weight - 9).sqrt())
            loss = (inputs * torch.randn(8)).mean()
            if adapter.report(loss):
                step(optimizer, loss)

    with pytest.raises(TrainingDiverged, match=r"110 steps in a row .* the last at step 161, .* torch\.where\(\)"):
        train()

    assert sum("100 steps in a row were left out, the last at step 151" in each.text for each in heard.of(Notice)) == 1
    assert bool(weight.isfinite().all())


def test_nan_leaves_a_hidden_state_as_it_was():
    """A sequence of NaN in each epoch, with a hidden state carried on: to the bit as with it left out by hand."""
    x, y = clouds()
    x[7] = NAN
    batches = batches_of(x, y)

    def train(with_r8):
        seed_all()
        cell, head = nn.GRUCell(8, 16), nn.Linear(16, 4)
        model = nn.ModuleList([cell, head])
        optimizer, hidden, adapter, place = sgd(model), torch.zeros(SIZE, 16), None, 0

        def put(saved):
            nonlocal hidden
            hidden = saved

        def place_at(saved):
            nonlocal place
            place = int(saved)

        if with_r8:
            also = {
                "hidden": (lambda: hidden, put, "heal"),
                # What is no floating number may be how far a loop is in its data, and goes on.
                "place": (lambda: torch.tensor(place), place_at, "heal"),
            }
            adapter = attach(model, optimizer, None, num_steps=len(batches), also=also)
        for _ in range(len(batches)) if adapter is None else adapter.steps():
            inputs, labels = batches[place]
            place += 1
            if adapter is None and is_bad(inputs):
                continue
            hidden = cell(inputs, hidden.detach())
            loss = cross_entropy(head(hidden), labels)
            if adapter is None or adapter.report(loss):
                step(optimizer, loss)
        return [*model.state_dict().values(), hidden.detach()], adapter

    expected, (got, adapter) = train(False)[0], train(True)

    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert adapter.scheduler.sentry.num_refused == EPOCHS


def test_a_refused_spike_leaves_the_statistics_of_a_norm_as_they_were():
    """Those of a batch that is too large are not in the running variance, nor is a test of the weights."""
    model = network()
    optimizer, found = sgd(model), []
    adapter = attach(model, optimizer, batches_of(*clouds()))
    for number, (inputs, labels) in enumerate(adapter.batches()):
        before, factor = [each.clone() for each in model.buffers()], 1e4 if number == 40 else 1.0
        if adapter.report(cross_entropy(model(inputs * factor), labels) * factor):
            continue
        found.append([*map(torch.equal, model.buffers(), before)])

    assert adapter.scheduler.sentry.num_refused == 1
    assert len(found) >= 2
    assert all(map(all, found))


@pytest.mark.filterwarnings("ignore:.*batches were left out for their high losses")
def test_bad_batches_among_those_that_test_weights_say_nothing_of_them():
    """Where no witness can be drawn, the median of eight losses stands for one: not one bad one in four."""
    batches, model, num_trained = batches_of(*clouds()) * 2, network(), 0
    optimizer = sgd(model)
    adapter = attach(model, optimizer, None, num_steps=len(batches))
    for number in adapter.steps():
        inputs, labels = batches[number]
        loss = cross_entropy(model(inputs), labels) * (1e4 if number >= 40 and not number % 4 else 1.0)
        if adapter.report(loss):
            step(optimizer, loss)
            num_trained += number >= 40

    assert num_trained > 50
    assert "restored" not in adapter.summary()
    assert adapter.scheduler.lr_factor == 1.0


class Last(nn.Module):
    """Keeps what it has seen last, in another tensor each time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        self.seen = x.mean(0)
        return self.layer(x)


@pytest.mark.parametrize("num_bad", [16, 40])
@pytest.mark.parametrize("guard", ["spike", "finite"])
def test_many_bad_batches_in_a_row_undo_no_update(num_bad, guard):
    """The minibatches of a rollout with NaN are left out, and no weights go back for them."""
    x, y = clouds()
    rng, model = np.random.default_rng(0), network()
    optimizer = sgd(model)
    adapter = attach(model, optimizer, None, num_steps=400, guard=guard)
    for number in adapter.steps():
        rows = rng.integers(0, len(x), SIZE)
        inputs = x[rows] * NAN if 200 <= number < 200 + num_bad else x[rows]
        loss = cross_entropy(model(inputs), y[rows])
        if adapter.report(loss):
            step(optimizer, loss)
    adapter.close()
    summary = adapter.scheduler.summary()

    assert "model restored" not in summary
    assert "the weights are healthy: other batches have a median loss" in summary


@pytest.mark.parametrize(("num_bad", "share"), [(2, 0.95), (4, 0.9), (8, 0.8)])
def test_a_few_bad_minibatches_in_each_rollout_cost_few_good_ones(num_bad, share):
    """Eight others stand for each batch that tests the weights: these are tested ever more seldom."""
    x, y = clouds()
    rng, model, num_trained = np.random.default_rng(0), network(), 0
    optimizer = sgd(model)
    adapter = attach(model, optimizer, None, num_steps=320, guard="finite")
    for number in adapter.steps():
        rows = rng.integers(0, len(x), SIZE)
        loss = cross_entropy(model(x[rows] * NAN if number % 16 < num_bad else x[rows]), y[rows])
        if adapter.report(loss):
            step(optimizer, loss)
            num_trained += 1
    adapter.close()

    assert num_trained >= share * 20 * (16 - num_bad)


def test_another_tensor_in_the_place_of_a_buffer_goes_back_too():
    """The buffer is then the tensor that it was before the batch."""
    model = Last()
    adapter = attach(model, sgd(model), batches_of(*clouds()))
    for number, (inputs, labels) in enumerate(adapter.batches()):
        before = model.seen
        is_good = adapter.report(cross_entropy(model(inputs * (NAN if number == 5 else 1.0)), labels))

        assert bool(is_good) == (number != 5)
        assert (model.seen is before) == (number == 5)


class Book(nn.Module):
    """Beside a norm it keeps a buffer wider than any statistic, which its batches change."""

    def __init__(self):
        super().__init__()
        self.layers = network()
        self.register_buffer("book", torch.zeros(MOST_OF_BUFFER + 1))

    def forward(self, x):
        with torch.no_grad():
            self.book.lerp_(x.mean().expand_as(self.book), 0.1)
        return self.layers(x)


def test_a_wide_buffer_comes_from_a_backup():
    """It is not copied at each step, which would cost milliseconds for masks; the norm beside it is as it was."""
    model = Book()
    optimizer = sgd(model)
    adapter = attach(model, optimizer, batches_of(*clouds()))
    for number, (inputs, labels) in enumerate(adapter.batches()):
        before = [each.clone() for each in model.layers[1].buffers()]
        loss = cross_entropy(model(inputs * (NAN if number == 40 else 1.0)), labels)
        if adapter.report(loss):
            step(optimizer, loss)
        elif number == 40:
            assert all(map(torch.equal, model.layers[1].buffers(), before))

    assert adapter.scheduler.sentry.num_refused == 1
    assert "book had numbers that are not finite, and came from the backup" in adapter.summary()
    assert model.book.isfinite().all()


class Changing(nn.Module):
    """Takes its buffer away, or gives it another shape, in a step; or it is one number in many places."""

    def __init__(self, way):
        super().__init__()
        self.layers, self.way, self.num_calls = network(), way, 0
        self.register_buffer("seen", torch.zeros(1).expand(16) if way == "expanded" else torch.zeros(4))

    def forward(self, x):
        self.num_calls += 1
        # Once before the bad batch, and once in it.
        if self.way == "deleted" and self.num_calls == 10:
            del self.seen
        if self.way == "another shape" and self.num_calls in (10, 21):
            self.seen.data = torch.zeros(7 + self.num_calls)
        return self.layers(x)


@pytest.mark.parametrize("way", ["deleted", "another shape", "expanded"])
def test_a_buffer_may_change_as_it_likes(way):
    """The run goes on, a bad batch leaves the norm beside it as it was, and the buffer its shape."""
    model = Changing(way)
    optimizer, found = sgd(model), []
    adapter = attach(model, optimizer, batches_of(*clouds()))
    for number, (inputs, labels) in enumerate(adapter.batches()):
        before = {name: each.clone() for name, each in model.named_buffers()}
        loss = cross_entropy(model(inputs * (NAN if number == 20 else 1.0)), labels)
        if adapter.report(loss):
            step(optimizer, loss)
        else:
            after = dict(model.named_buffers())
            found.append(
                before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in after)
            )

    assert found == [True]
    assert ("seen" in dict(model.named_buffers())) == (way != "deleted")


def test_what_comes_back_on_resume_alone_is_not_looked_at():
    """A replay buffer or a list of losses with NaN is the script's own: no damage, and no end of the run."""
    model = nn.Linear(3, 1)
    kept = {"losses": torch.zeros(4), "last": 0.0}
    adapter = attach(model, sgd(model), None, num_steps=40, also={"kept": (lambda: kept, kept.update)})
    for number in adapter.steps():
        if number == 9:
            kept["losses"][1], kept["last"] = NAN, math.nan
        x = torch.randn(4, 3)

        assert adapter.check()
        adapter.report(mse_loss(model(x), x.sum(1, keepdim=True)) * (NAN if number == 12 else 1.0))

    assert "model restored" not in adapter.summary()
    assert adapter.scheduler.sentry.num_refused == 1


@pytest.mark.filterwarnings("ignore:.*batches were left out for their high losses")
def test_weights_that_prove_healthy_time_and_again_make_no_absurd_loss_usual():
    """Of one batch in six: each is left out, and only the first ones cost tests of the weights."""
    x, y = clouds()
    model = nn.Linear(8, 4)
    optimizer, num_absurd = sgd(model), 0
    adapter = attach(model, optimizer, batches_of(x, y) * 3)
    for number, (inputs, labels) in enumerate(adapter.batches()):
        is_absurd = number > 20 and number % 6 == 5 and not adapter.scheduler.controller.is_open
        num_absurd += is_absurd
        loss = cross_entropy(model(inputs), labels) + (1e5 if is_absurd else 0.0)
        is_good = adapter.report(loss)
        if is_good:
            step(optimizer, loss)

        assert not (is_good and is_absurd)

    assert adapter.scheduler.sentry.num_refused == num_absurd > 20
    assert adapter.scheduler.lr_factor == 1.0
    assert "in a row" not in adapter.summary()


def errors_after(batches, bad, *, has_r8):
    """Squared errors on the good data, and the adapter; without R8 the bad batches are left out by hand."""
    seed_all()
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    adapter = attach(model, optimizer, batches, num_steps=len(batches)) if has_r8 else None
    for inputs, targets in adapter.batches() if adapter else batches:
        loss = mse_loss(model(inputs), targets)
        if adapter.report(loss) if adapter else not is_bad(inputs):
            step(optimizer, loss)
    good = [batch for number, batch in enumerate(batches) if number != bad]
    with torch.no_grad():
        return float(np.mean([float(mse_loss(model(inputs), targets)) for inputs, targets in good])), adapter


@pytest.mark.parametrize("place", [1, 3, 7])
def test_a_huge_sample_among_the_first_losses_is_left_out(place):
    """It filled Adam's second moments, so that the rest of a short run learned next to nothing."""
    noise = np.random.default_rng(place)
    x = torch.as_tensor(noise.normal(size=(64, 16, 16)), dtype=torch.float32)
    batches = [(inputs.clone(), inputs.sum(1, keepdim=True)) for inputs in x]
    batches[place][0][5] *= 1e4
    by_hand, _ = errors_after(batches, place, has_r8=False)

    errors, adapter = errors_after(batches, place, has_r8=True)

    assert errors < 1.2 * by_hand
    assert adapter.scheduler.sentry.num_refused == 1


@pytest.mark.parametrize("size", [4, 16])
def test_first_losses_of_weights_that_fit_are_trained_on(size):
    """Now and then a batch with the only hard sample follows easy ones whose losses are next to nothing."""
    x, y = clouds()
    seed_all()
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer, rises = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(100):
        step(optimizer, cross_entropy(model(x), y))
    for seed in range(40):
        rows = torch.as_tensor(np.random.default_rng(seed).choice(len(x), (8, size)))
        batches, losses = [(x[each], y[each]) for each in rows], []
        with attach(model, torch.optim.SGD(model.parameters(), 1e-6), batches) as adapter:
            for inputs, labels in adapter.batches():
                loss = cross_entropy(model(inputs), labels)
                if adapter.report(loss):
                    losses.append(loss.item())
        assert len(losses) == len(batches)
        rises.append(losses[1] / losses[0])

    assert max(rises) > 4


def worst_jump(*, place=None, scale=1.0, averages=False):
    """Train, with one batch out of range if there is a place; returns the warnings of running variances, and what the
    network loses in validation.
    """
    model = network()
    other = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer, (x, y) = sgd(model), clouds()
    batches = [(scale * inputs, labels) for inputs, labels in batches_of(x, y)]
    bad = None if place is None else int(place * len(batches))
    adapter = attach(model, optimizer, batches, num_epochs=1, also={"average": other})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with adapter:
            for number, (inputs, labels) in enumerate(adapter.batches()):
                loss = cross_entropy(model(1e4 * inputs if number == bad else inputs), labels)
                if adapter.report(loss):
                    step(optimizer, loss)
                if averages and number > 30:
                    other.update_parameters(model)
    model.eval()
    with torch.no_grad():
        validation = float(cross_entropy(model(scale * x), y))
    return [str(each.message) for each in caught if "running_var" in str(each.message)], validation


@pytest.mark.parametrize("place", [0.5, 0.99])
def test_running_statistics_that_a_batch_ruins_are_put_back(place):
    """Validation uses those, and no loss of training shows it; at the end of the run, too."""
    (text,), validation = worst_jump(place=place)

    assert re.match(
        r"step [\d]+: 'model.1.running_var' was .* times as large as ever before.* the backup of step", text
    )
    assert validation < 2 * worst_jump()[1] < 0.2


@pytest.mark.parametrize(("left", "is_healed"), [(5, False), (8, True)])
def test_running_statistics_of_a_weight_that_has_grown_are_left_alone(left, is_healed):
    """They are right for it, and those of the weight before would ruin a model that the norm keeps whole. It is put
    back as a whole alone, where losses are perhaps high as the run ends.
    """
    validation, (x, y), batches = {}, clouds(), batches_of(*clouds())
    for has_r8 in (False, True):
        model = network()
        optimizer = sgd(model)
        adapter = attach(model, optimizer, batches, num_epochs=1) if has_r8 else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number, (inputs, labels) in enumerate(adapter.batches() if adapter else batches):
                if number == len(batches) - left:
                    model[0].weight.data[0, :2] = 1e3
                loss = cross_entropy(model(inputs), labels)
                if adapter is None or adapter.report(loss):
                    step(optimizer, loss)
            if adapter:
                adapter.close()
        with torch.no_grad():
            validation[has_r8] = float(cross_entropy(model.eval()(x), y))

    if is_healed:
        assert validation[True] < 0.5 * validation[False]
    else:
        assert validation[True] == validation[False]
    assert adapter.summary().count("restored to step") == is_healed
    assert sum("restored to step" in str(each.message) for each in caught) == is_healed
    assert any("numbers in 'model.0.weight' have grown" in str(each.message) for each in caught)


@pytest.mark.filterwarnings("ignore:.*times as large as ever before")
@pytest.mark.parametrize("places", [(7, 90, 140, 190), (60, 100, 190)], ids=["early", "between backups"])
def test_statistics_are_put_back_as_often_as_a_batch_ruins_them(places):
    """Far from any backup its own loss, which is high, asks for a look."""
    model, (x, y) = network(), clouds()
    given = batches_of(x, y) * 3
    batches = [(inputs * (1e4 if at in places else 1.0), labels) for at, (inputs, labels) in enumerate(given)]
    every = {} if places[0] < 16 else {"backup_every": 50}
    with attach(model, sgd(model), batches, num_epochs=1, **every) as adapter:
        for inputs, labels in adapter.batches():
            adapter.step(cross_entropy(model(inputs), labels))
    with torch.no_grad():
        validation = float(cross_entropy(model.eval()(x), y))

    assert f"running statistics of norms put back {len(places)} times" in adapter.summary()
    assert validation < 0.2


@pytest.mark.filterwarnings("ignore:.*times as large as ever before")
@pytest.mark.parametrize(
    "places", [(0,), (1,), (1, 2), range(8), (1, 5), (10, 11, 12)],
    ids=["first", "second", "two in a row", "the first eight", "second and sixth", "three in a row"],
)  # fmt: skip
@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_statistics_of_the_first_batches_are_put_back(places, momentum):
    """Before the scale of the data is known it is the later batches that tell; and two looks are no new data."""
    (x, y), validation = clouds(), {}
    for is_bad in (True, False):
        model = network()
        model[1].momentum = momentum
        given = batches_of(x, y)
        batches = [
            (inputs * (1e4 if is_bad and at in places else 1), labels) for at, (inputs, labels) in enumerate(given)
        ]
        with attach(model, sgd(model), batches, num_epochs=1) as adapter:
            for inputs, labels in adapter.batches():
                adapter.step(cross_entropy(model(inputs), labels))
        with torch.no_grad():
            validation[is_bad] = float(cross_entropy(model.eval()(x), y))

    assert validation[True] < 1.2 * validation[False]


@pytest.mark.filterwarnings("ignore:.*times as large as ever before")
@pytest.mark.parametrize(("bad", "every"), [(18, 40), (30, 1000)])
def test_statistics_are_put_back_where_the_first_backup_comes_late(bad, every):
    """The scale of the data is seen before it: a bad batch would set it."""
    (x, y), model = clouds(), network()
    model[1].momentum = 0.01
    with attach(model, sgd(model), batches_of(x, y), num_epochs=1, backup_every=every) as adapter:
        for number, (inputs, labels) in enumerate(adapter.batches()):
            loss = cross_entropy(model(1e4 * inputs if number == bad else inputs), labels)
            if adapter.report(loss):
                step(adapter.optimizer, loss)

    assert "running statistics of norms put back once" in adapter.summary()
    assert model[1].running_var.max() < 1e3


class Normalizer(nn.Module):
    """Of targets, weighed by how many it has seen, as programs of reinforcement learning have it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))
        self.register_buffer("count", torch.ones(()))

    def update(self, values):
        share = len(values) / (self.count + len(values))
        change = values.mean() - self.running_mean
        self.running_var.lerp_(values.var(), share).add_(change**2 * share * (1 - share))
        self.running_mean.add_(change * share)
        self.count.add_(len(values))


def test_statistics_with_a_count_are_left_alone():
    """Rewards may come late: their variance then jumps, and without its count it would never be right again."""
    found = []
    for is_watched in (True, False):
        torch.manual_seed(0)
        model, norm = nn.Linear(8, 1), Normalizer()
        model.norm = norm
        optimizer = sgd(model)
        adapter = attach(model, optimizer, None, num_steps=400, guard="finite") if is_watched else None
        for number in range(400) if adapter is None else adapter.steps():
            x = torch.randn(SIZE, 8)
            rewards = x.sum(1, keepdim=True) * (1e4 if number > 200 else 1e-3)
            norm.update(rewards)
            loss = (model(x) - (rewards - norm.running_mean) / (norm.running_var + 1e-5).sqrt()).square().mean()
            if adapter is None or adapter.report(loss):
                step(optimizer, loss)
        if adapter is not None:
            adapter.close()
        found.append([each.clone() for each in model.state_dict().values()])

    assert all(map(torch.equal, *found))


@pytest.mark.filterwarnings("ignore:.*times as large as ever before")
@pytest.mark.parametrize(
    ("bad", "nan", "every", "stop"),
    [(49, None, 50, None), (48, 49, 50, None), (52, None, 50, None), (49, None, 1000, signal.SIGTERM)],
    ids=["saved last", "saved with NaN after it", "first after", "saved by a signal"],
)  # fmt: skip
def test_statistics_that_a_batch_ruins_next_to_a_kill_are_put_back(bad, nan, every, stop, tmp_path):
    """No backup is left from before a checkpoint that holds ruined ones; and what is known of the scale is saved."""
    x, y = clouds()
    factors = {bad: 1e4, nan: NAN}
    batches = [(inputs * factors.get(at, 1), labels) for at, (inputs, labels) in enumerate(batches_of(x, y))]
    settings = {"checkpoint_dir": tmp_path, "backup_every": Backups(backup_dir=False), "resume": "auto"}

    def train():
        model = network()
        adapter = attach(model, sgd(model), batches, num_epochs=1, checkpoint_every=every, **settings)
        is_first = not adapter.scheduler.global_step
        for inputs, labels in adapter.batches():
            adapter.step(cross_entropy(model(inputs), labels))
            if is_first and adapter.scheduler.global_step == (50 if stop else 51):
                if not stop:
                    return model
                os.kill(os.getpid(), stop)
        adapter.close()
        return model

    with contextlib.suppress(SystemExit):
        train()
    model = train()
    with torch.no_grad():
        assert float(cross_entropy(model.eval()(x), y)) < 0.2


@pytest.mark.filterwarnings("ignore:.*times as large as ever before")
def test_data_of_another_scale_from_some_step_on_keep_their_statistics():
    """They are put back as long as the batches may be bad ones; as they come again, they are said, and stay."""
    model, (x, y) = network(), clouds()
    batches = [(inputs * (1e4 if at > 40 else 1.0), labels) for at, (inputs, labels) in enumerate(batches_of(x, y))]
    with attach(model, sgd(model), batches, num_epochs=1, backup_every=10) as adapter:
        for inputs, labels in adapter.batches():
            adapter.step(cross_entropy(model(inputs), labels))

    assert model[1].running_var.median() > 1e7


@pytest.mark.parametrize("place", [0.2, 0.6], ids=["early", "late"])
def test_a_loss_far_below_zero_is_refused(place):
    """A cross entropy of targets out of range has no lower bound, and its gradient is as large as that of a spike."""
    x = torch.sigmoid(clouds()[0])
    batches = [x[at % 3 * 32 :][:32] for at in range(300)]

    def train(how):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 8))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        adapter = attach(model, optimizer, batches, num_epochs=1) if how == "r8" else None
        for number, inputs in enumerate(batches if adapter is None else adapter.batches()):
            is_bad = number == int(place * len(batches))
            loss = binary_cross_entropy_with_logits(model(inputs), 1e3 * inputs if is_bad else inputs)
            if adapter.report(loss) if adapter else not (is_bad and how == "by hand"):
                step(optimizer, loss)
        with torch.no_grad():
            return adapter and adapter.summary(), float(binary_cross_entropy_with_logits(model(x), x))

    (_, bare), (_, by_hand), (said, found) = map(train, ("bare", "by hand", "r8"))
    assert "losses refused: 1;" in said
    assert "spike: one incident, at step" in said
    assert found < by_hand + 0.1 * (bare - by_hand)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("averages", [False, True])
def test_running_variances_that_find_their_scale_are_no_jump(scale, averages):
    """They begin at 1, whatever the data; those of an average of the weights stay there until it begins."""
    assert not worst_jump(scale=scale, averages=averages)[0]


def test_updates_are_not_blamed_for_weights_that_are_not_finite():
    """A rectifier hides the NaN, and it is the loss that is far too high; nothing is clipped, and the rate is kept."""

    class Hiding(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x, torch.zeros_like(x))

    torch.manual_seed(0)
    x = torch.randn(512, 8)
    model = nn.Sequential(nn.Linear(8, 32), Hiding(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    batches = [x[at % 16 * 32 :][:32] for at in range(300)]
    with attach(model, torch.optim.SGD(model.parameters(), 0.02), batches, num_epochs=1) as adapter:
        for inputs in adapter.batches():
            if adapter.scheduler.global_step == 200:
                with torch.no_grad():
                    model[0].weight[0, 0] = NAN
                    model[2].weight.mul_(10)
            adapter.step(mse_loss(model(inputs), inputs.sum(1, keepdim=True)))

    assert "spike: one incident, at step" in adapter.scheduler.summary()
    assert "losses or weights were not finite: the weights were damaged, restored" in adapter.scheduler.summary()
    assert "clipped" not in adapter.scheduler.summary()
