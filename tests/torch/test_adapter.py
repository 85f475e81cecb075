"""`attach`: a training with torch under a scheduler, in each of the ways people write their loops."""

import copy
import functools
import math
import warnings
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy, mse_loss

from learnit_r8 import Focus, R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.events import StepDone
from learnit_r8.guard import Verdict
from learnit_r8.torch import R8BatchSampler, attach
from learnit_r8.torch.readback import Sent, note_of
from tests.torch_common import (
    STEPS,
    ManyRows,
    Rows,
    X,
    Y,
    adapted,
    as_is,
    classifier,
    descend,
    no_steady,
    sgd,
    together,
    train,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def plainly_trained(batches, clip=lambda model: None):
    """A model after a loop of torch alone over these batches."""
    model = classifier()
    optimizer = sgd(model)
    for rows in batches:
        optimizer.zero_grad()
        cross_entropy(model(X[rows]), Y[rows], reduction="none").mean().backward()
        clip(model)
        optimizer.step()
    return model


def adapter_loader(adapter, dataset, **settings):
    """A loader of a data set that shows its indices, over the adapter's batches."""
    collate = {"collate_fn": as_is} if isinstance(dataset, ManyRows) else {}
    return torch.utils.data.DataLoader(dataset, batch_sampler=adapter.sampler, **collate, **settings)


def test_rates_of_all_groups():
    """Every parameter group follows the schedule, and the ratios stay."""
    model = classifier()
    groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    adapter = adapted(model=model, optimizer=optimizer)
    rates = []
    adapter.scheduler.host.announcer.add(lambda event: rates.append(adapter.lr_scheduler.get_last_lr()))
    train(adapter)
    rates = np.array([rate for rate in rates if rate[1] > 0])

    assert rates[:, 1].max() == pytest.approx(0.1, rel=0.01)
    np.testing.assert_allclose(rates[:, 0], rates[:, 1] / 2)
    assert len(set(rates[:, 1].tolist())) > STEPS


def test_rate_in_a_tensor_stays_that_tensor():
    """A rate held in a tensor, as compiled optimizers need it, is changed in place."""
    model = classifier()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, capturable=False, foreach=False)
    adapter = adapted(model=model, optimizer=optimizer)
    train(adapter, epochs=1)

    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(adapter.scheduler.lr, rel=0.1)


def test_somebody_else_sets_the_rate():
    """A second scheduler on the same optimizer is noticed, and said once."""
    model = classifier()
    optimizer = sgd(model)
    adapter = adapted(model=model, optimizer=optimizer, num_epochs=1)
    loader = adapter.loader()
    with pytest.warns(RuntimeWarning, match="changed by something other than R8Scheduler") as said:
        train(adapter, other_rates(loader, optimizer), epochs=1)

    assert len(said) == 1


def other_rates(loader, optimizer):
    """The batches of a loader, with another rate set before each."""
    for number, batch in enumerate(loader):
        optimizer.param_groups[0]["lr"] = 0.3 / (1 + number)
        yield batch


RESTORES = pytest.mark.filterwarnings("ignore:.*the weights were damaged")


@RESTORES
@pytest.mark.parametrize("nan_at", [0, 1, 6, STEPS - 1, STEPS, 2 * STEPS - 1])
@pytest.mark.parametrize("order", ["step", "report, backward", "backward, report"])
def test_nan_heals(nan_at, order):
    """A NaN at any step leaves finite weights, and every sample counted that was trained on, in each order.

    It costs its batch alone where it is reported before the update; the model is put back where it was stepped.
    """
    check_nan(nan_at, order, num_workers=0)


@RESTORES
def test_nan_heals_with_workers():
    """The same with a worker that holds 8 batches."""
    check_nan(5, "backward, report", num_workers=1, prefetch_factor=8)


def check_nan(nan_at, order, **settings):
    adapter = adapted(recovery=no_steady())
    batches, outcomes = [], []
    for _ in adapter.epochs():
        for x, y, rows in adapter_loader(adapter, Rows(), **settings):
            batches.append(rows.tolist())
            factor = float("nan") if len(batches) - 1 == nan_at else 1.0
            losses = cross_entropy(adapter.model(x), y, reduction="none") * factor
            outcomes.append(ORDERS[order](adapter, losses))

    refused = [number for number, outcome in enumerate(outcomes) if not outcome]
    is_stepped = order == "backward, report"
    assert refused[0] == nan_at
    assert (outcomes[nan_at].rolled_back_to is not None) == is_stepped
    assert np.isfinite(weights(adapter.model)).all()
    assert adapter.scheduler.global_step + adapter.scheduler.pace.probes == 2 * STEPS
    if not is_stepped:
        # One probe more where the last loss was bad.
        assert all(number >= 2 * STEPS for number in refused[1:])
        for epoch in (batches[:STEPS], batches[STEPS : 2 * STEPS]):
            assert sorted(together(epoch)) == list(range(200))
    uses = np.zeros(200)
    for batch, outcome in zip(batches, outcomes, strict=True):
        uses[batch] += bool(outcome)
    np.testing.assert_array_equal(adapter.scheduler.table.usage_count, uses)
    assert np.isfinite(adapter.scheduler.table.loss[uses > 0]).all()


def by_step(adapter, losses):
    return adapter.step(adapter.loss(losses))


def report_first(adapter, losses):
    adapter.optimizer.zero_grad()
    outcome = adapter.report(losses)
    if outcome:
        losses.mean().backward()
        adapter.optimizer.step()
    return outcome


def report_last(adapter, losses):
    descend(adapter.optimizer, losses.mean())
    return adapter.report(losses)


ORDERS = {"step": by_step, "report, backward": report_first, "backward, report": report_last}


@pytest.mark.parametrize("order", ["step", "report, backward", "backward, report"])
def test_orders_agree(order):
    """Without a bad loss all three orders give the same weights."""
    one, other = adapted(), adapted()
    for adapter, way in ((one, ORDERS[order]), (other, by_step)):
        for _ in adapter.epochs():
            for x, y in adapter.loader():
                way(adapter, cross_entropy(adapter.model(x), y, reduction="none"))

    assert np.array_equal(weights(one.model), weights(other.model))


def noted(adapter, batch):
    """The loss of a batch, noted."""
    x, y = batch
    return adapter.loss(cross_entropy(adapter.model(x), y, reduction="none"))


def test_noting_never_restores():
    """A refused loss is answered where it is reported, not while gradients are on their way to the next step."""
    adapter = adapted(backup_every=1)
    restored = []
    for number, batch in enumerate(adapter.loader()):
        before = adapter.state.num_loads
        loss = noted(adapter, batch)
        restored.append(adapter.state.num_loads != before)
        adapter.step(loss * (float("nan") if number == 5 else 1))

    assert not any(restored)


@pytest.mark.parametrize(("is_noted", "at"), [(False, 0), (True, 3)])
def test_passed_over(is_noted, at):
    """A batch can be passed over before and after its losses were noted; it comes once more."""
    adapter = adapted(num_epochs=1)
    count = 0
    for number, batch in enumerate(adapter.loader()):
        count += 1
        loss = noted(adapter, batch) if is_noted or number != at else None
        if number == at:
            adapter.skip()
        else:
            adapter.step(loss)

    assert count == STEPS + 1
    assert set(adapter.scheduler.table.usage_count.tolist()) == {1}


def test_optimizer_loaded_by_other_code():
    """A trainer that loads the optimizer, with the rates of then, is not taken for a second scheduler."""
    adapter = adapted()
    saved = copy.deepcopy(adapter.optimizer.state_dict())
    notices = []
    adapter.scheduler.host.announcer.add(lambda event: notices.append(getattr(event, "text", "")))
    train(adapter, epochs=1)
    adapter.optimizer.load_state_dict(saved)
    train(adapter, epochs=1)

    assert not any("changed by something other" in text for text in notices)


def test_beginning_an_epoch_draws_no_number():
    """Torch's global generator is the model's: the adapter's loader leaves it as it is."""
    adapter = adapted()
    before = torch.get_rng_state()
    next(iter(adapter.loader()))

    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_stepped_after_a_refusal():
    """A refused step moves neither weights nor momentum, and clears the gradients."""
    adapter = adapted(backup_every=1)
    loader = iter(adapter.loader())
    states = []
    for number in range(4):
        x, y = next(loader)
        losses = cross_entropy(adapter.model(x), y, reduction="none")
        states.append(copy.deepcopy(adapter.state.read()))
        outcome = adapter.step(adapter.loss(losses * (float("nan") if number == 3 else 1)))
    before, after = states[3], adapter.state.read()

    assert outcome.verdict is Verdict.NOT_FINITE
    for name, value in before["model"].items():
        assert torch.equal(value, after["model"][name])
    for number, momentum in before["optimizer"]["state"].items():
        assert torch.equal(momentum["momentum_buffer"], after["optimizer"]["state"][number]["momentum_buffer"])
    assert all(parameter.grad is None for parameter in adapter.model.parameters())


def test_cleared_gradients_keep_their_memory_until_the_next_backward():
    """On a CPU the memory of gradients is not given back where a plain script would hold it: in the forward pass.

    Whoever looks at a parameter meanwhile finds no gradient.
    """
    adapter = adapted()
    batches = iter(adapter.loader())
    memory, alive = [], []
    for _ in range(2):
        x, y = next(batches)
        alive.append([each() is not None for each in memory])
        loss = adapter.loss(cross_entropy(adapter.model(x), y, reduction="none"))
        adapter._stepper.backward(loss, is_last=False)
        alive.append([each() is not None for each in memory])
        memory = [weakref.ref(parameter.grad) for parameter in adapter.model.parameters()]
        adapter.report()
        adapter._stepper.clear()
        assert all(parameter.grad is None for parameter in adapter.model.parameters())

    count = len(memory)
    assert alive == [[], [], [True] * count, [False] * count]


def test_optimizer_with_a_zero_grad_of_its_own():
    """One that takes no argument, as older ones do, is asked without."""

    class Own(torch.optim.SGD):
        def zero_grad(self):
            super().zero_grad()

    model = classifier()
    adapter = adapted(model=model, optimizer=Own(model.parameters(), lr=0.1), backup_every=1)
    outcomes = train(adapter, nan_at=[3])

    assert [number for number, outcome in enumerate(outcomes) if not outcome] == [3]
    assert np.isfinite(weights(adapter.model)).all()


@RESTORES
def test_groups_added_in_training():
    """Backups of before do not fit the optimizer any more: a new one is taken at the next step."""
    adapter = adapted(num_epochs=3)
    seen = []
    for epoch in adapter.epochs():
        for number, (x, y) in enumerate(adapter.loader()):
            losses = cross_entropy(adapter.model(x), y, reduction="none")
            if (epoch, number) == (1, 0):
                adapter.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01})
            is_bad = (epoch, number) == (1, 4)
            seen.append(report_last(adapter, losses * (float("nan") if is_bad else 1)))

    refused = seen[STEPS + 4]
    assert not refused
    # Mended: of the newest backup, which fits, come the arrays that are not finite.
    assert refused.rolled_back_to == STEPS + 5
    assert np.isfinite(weights(adapter.model)).all()


@pytest.mark.parametrize(("how", "workers"), [("state", 1), ("scheduler", 0), ("checkpoint", 0)])
def test_load_in_mid_epoch(tmp_path, how, workers):
    """Batches that workers have fetched for the run before are not taken for those that come after a load."""
    x = torch.arange(640.0)[:, None]
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    data = torch.utils.data.TensorDataset(x)
    adapter = attach(model, optimizer, data, batch_size=16, num_epochs=2, checkpoint_dir=tmp_path, checkpoint_every=999)
    number, saved = 0, {}
    for _ in adapter.epochs():
        for (xs,) in adapter.loader(num_workers=workers):
            adapter.step(adapter.loss(1 + xs[:, 0] / 640 + 0 * model(xs)[:, 0]))
            number += 1
            if number == 5:
                saved = copy.deepcopy(adapter.state_dict())
                adapter.scheduler.save_checkpoint()
            elif number == 10 and how == "checkpoint":
                adapter.scheduler.load_checkpoint()
            elif number == 10 and how == "state":
                adapter.load_state_dict(saved)
            elif number == 10:
                adapter.lr_scheduler.load_state_dict(saved["scheduler"])
    table = adapter.scheduler.table

    np.testing.assert_allclose(table.loss, 1 + np.arange(640) / 640, rtol=1e-5)
    assert adapter.scheduler.global_step == 80


def test_mean_loss():
    """With reduction="mean" the losses of samples are estimated, which is said."""
    adapter, said = adapted(num_epochs=6), []
    adapter.scheduler.host.announcer.add(lambda event: said.append(getattr(event, "text", "")))
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(adapter.model(x), y)))

    assert adapter.scheduler.table.source == "batch means of 16"
    assert sum("estimated from batch means" in text for text in said) == 1
    assert (adapter.model(X).argmax(1) == Y).float().mean() > 0.7


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_gradients(accumulate):
    """Several batches make one step, with the mean of their gradients; the rest of an epoch makes one of its own."""
    adapter = adapted(accumulate=accumulate, scheduler_mode="constant", warmup_proportion=0.0)
    batches = []
    train(adapter, adapter_loader(adapter, Rows()), seen=batches)
    model = classifier()
    optimizer = sgd(model)
    for start in (0, STEPS):
        epoch = batches[start : start + STEPS]
        for first in range(0, STEPS, accumulate):
            for rows in epoch[first : first + accumulate]:
                (cross_entropy(model(X[rows]), Y[rows], reduction="none").mean() / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert np.array_equal(weights(model), weights(adapter.model))
    assert set(adapter.scheduler.table.usage_count.tolist()) == {2}


@pytest.mark.parametrize("way", ["step", "own"])
def test_backups_only_at_optimizer_steps(way):
    """While gradients are added up no backup is taken."""
    adapter = adapted(accumulate=4, backup_every=1)
    steps = []
    adapter.scheduler.host.announcer.add(
        lambda event: steps.append(event.step) if type(event).__name__ == "BackupTaken" else None
    )
    for number, (x, y) in enumerate(adapter.loader()):
        losses = cross_entropy(adapter.model(x), y, reduction="none")
        if way == "step":
            adapter.step(adapter.loss(losses))
            continue
        loss = adapter.loss(losses)
        adapter.report()
        (loss / 4).backward()
        if number % 4 == 3:
            adapter.optimizer.step()
            adapter.optimizer.zero_grad()

    assert set(steps) <= {0, 4, 8, 12, 13}
    assert {0, 4, 8} <= set(steps)


def test_a_witness_is_all_batches_of_an_update():
    """Weights are tested with the batches whose gradients were added up, not with the first of them."""
    adapter = adapted(accumulate=4, backup_every=8)
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        if adapter.scheduler.global_step == 6:
            break
    [first] = adapter.scheduler.host.persistence.backup.backups

    assert len(first.witness) == len(first.losses) == 4


def test_refused_part_of_an_accumulated_gradient():
    """One bad batch takes the whole gradient with it."""
    adapter = adapted(accumulate=4, num_epochs=1, recovery=no_steady())
    before = weights(adapter.model)
    moved = []
    for number, (x, y) in enumerate(adapter.loader()):
        losses = cross_entropy(adapter.model(x), y, reduction="none")
        adapter.step(adapter.loss(losses * (float("nan") if number == 2 else 1)))
        moved.append(not np.array_equal(weights(adapter.model), before))

    # After the third the next four make the first step.
    assert moved.index(True) == 6


def test_scaled_gradients_of_a_refused_part_are_gone():
    """A loop that calls backward() itself, with a GradScaler, adds no later gradients to those of a bad batch."""
    scaler = torch.amp.GradScaler("cpu")
    adapter = adapted(accumulate=4, num_epochs=1, scaler=scaler, recovery=no_steady())
    for number, (x, y) in enumerate(adapter.loader()):
        losses = cross_entropy(adapter.model(x), y, reduction="none")
        adapter.loss(losses * (float("nan") if number == 2 else 1))
        scaler.scale(losses.mean() / 4).backward()
        adapter.report()
        if number == 2:
            break

    assert not any(parameter.grad.any() for parameter in adapter.model.parameters())


class Overflowing(torch.amp.GradScaler):
    """A real scaler whose gradients overflow at some steps."""

    def __init__(self, at):
        super().__init__("cpu", init_scale=1024.0, growth_interval=1000)
        self.at, self.number = at, -1

    def scale(self, outputs):
        self.number += 1
        return super().scale(outputs) * (float("inf") if self.number in self.at else 1.0)


def test_a_term_of_ones_own_that_is_not_finite_is_refused():
    """What ``step`` trains on is judged, too, and not only what ``loss`` was given: no weight sees its NaN."""
    adapter = adapted(policy="shuffle")
    outcomes = []
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            loss = adapter.loss(cross_entropy(adapter.model(x), y, reduction="none"))
            outcomes.append(adapter.step(loss + (math.nan if len(outcomes) == 9 else 1.0)))

    assert [number for number, outcome in enumerate(outcomes) if not outcome] == [9]
    assert "model restored" not in adapter.summary()


def test_a_loss_that_is_not_finite_hides_no_sample():
    """Where losses of samples are not finite themselves, they still say which; also where all come from a device."""
    note = functools.partial(Sent, None, 3, 1, ("trained",))
    for losses, trained, expected in (([1, 2, 3], 6.0, 0), ([1, 2, 3], math.inf, 3), ([1, math.nan, 3], math.nan, 1)):
        found = note_of(note(), np.array([*losses, trained], np.float32)).losses
        assert len(found) == 3
        assert np.isnan(found).sum() == expected


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("fused", [False, True])
def test_overflow_is_skipped(max_grad_norm, fused):
    """A step that a loss scaler leaves out is no alarm: its samples are learned from, and nothing is put back."""
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = Overflowing({2, 3, 9})
    adapter = adapted(model=model, optimizer=optimizer, scaler=scaler, max_grad_norm=max_grad_norm)
    skipped = []
    adapter.scheduler.host.announcer.add(lambda _: skipped.append(adapter.scheduler.sentry.present.num_skipped))
    outcomes = train(adapter)

    assert all(outcome.rolled_back_to is None for outcome in outcomes)
    assert scaler.get_scale() == 1024.0 / 8
    # Two in a row, and one alone.
    assert (max(skipped), skipped[-1]) == (2, 0)
    assert np.isfinite(weights(model)).all()
    assert adapter.finished


@pytest.mark.filterwarnings(
    "ignore:the loss of step", "ignore:sample 7 was in 2", "ignore:losses or weights", "ignore:a loss was"
)
@pytest.mark.parametrize("fault", ["sample", "weight"])
def test_nan_is_no_overflow(fault):
    """With a scaler a sample whose loss is NaN is found as without one, and so is NaN in a weight, at its first loss;
    the scaler leaves out the steps."""

    def run(scaler):
        model, numbers = classifier(), iter(range(10_000))
        adapter = adapted(model=model, scaler=scaler, num_epochs=3, backup_every=5)
        for _ in adapter.epochs():
            for x, y in adapter.loader():
                if fault == "weight" and next(numbers) == 20:
                    next(model.parameters()).detach()[0, 0] = float("nan")
                losses = cross_entropy(model(x), y, reduction="none")
                if fault == "sample":
                    losses = losses * torch.where((x == X[7]).all(1), float("nan"), 1.0)
                adapter.step(adapter.loss(losses))
        return adapter, weights(model)

    scaler = torch.amp.GradScaler("cpu")
    (scaled, its_weights), (_, others) = run(scaler), run(None)

    assert scaled.scheduler.table.quarantined.tolist() == ([7] if fault == "sample" else [])
    assert scaler.get_scale() == 65536 / (4 if fault == "sample" else 2)
    assert np.array_equal(its_weights, others)


@pytest.mark.filterwarnings("ignore:the loss of step 40 is NaN")
def test_half_precision():
    """Under autocast with a scaler the digits are learned, and a NaN heals."""
    model = classifier()
    adapter = adapted(model=model, scaler=torch.amp.GradScaler("cpu"), max_grad_norm=5.0, num_epochs=8)
    number = 0
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            with torch.autocast("cpu", torch.bfloat16):
                losses = cross_entropy(model(x), y, reduction="none")
            number += 1
            adapter.step(adapter.loss(losses * (float("nan") if number == 40 else 1)))

    assert (model(X).argmax(1) == Y).float().mean() > 0.85
    assert np.isfinite(weights(model)).all()


def test_disabled_scaler():
    """A scaler that is switched off changes nothing."""
    one, other = adapted(scaler=torch.amp.GradScaler("cpu", enabled=False)), adapted()
    train(one)
    train(other)

    assert np.array_equal(weights(one.model), weights(other.model))


def test_clipping():
    """Longer gradients are cut to max_grad_norm, as torch does it."""
    adapter = adapted(max_grad_norm=0.1, scheduler_mode="constant", warmup_proportion=0.0)
    batches = []
    train(adapter, adapter_loader(adapter, Rows()), seen=batches)
    plain = plainly_trained(batches, lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))

    assert np.array_equal(weights(plain), weights(adapter.model))


def test_norm_of_the_gradient_is_judged():
    """With clipping, a gradient that is not finite is refused though its loss is."""
    adapter = adapted(max_grad_norm=1.0, recovery=no_steady())
    x, y = next(iter(adapter.loader()))
    adapter.model[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    outcome = adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))

    assert not outcome
    assert np.isfinite(weights(adapter.model)).all()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.program)])
def test_compiled_model(backend):
    """A compiled model trains, heals, and keeps the names of the plain one."""
    torch._dynamo.reset()
    plain = classifier()
    model = torch.compile(plain, backend=backend)
    adapter = adapted(model=model)
    train(adapter, nan_at=[8])

    assert adapter.state.read()["model"].keys() == plain.state_dict().keys()
    assert np.isfinite(weights(plain)).all()
    assert adapter.finished


def test_sequence_losses():
    """The loss of a sequence is the mean over its tokens without padding; the batch's that over all tokens."""
    adapter = adapted(num_epochs=1)
    _x, _y = next(iter(adapter.loader()))
    losses = torch.arange(32.0).reshape(16, 2).requires_grad_()
    mask = torch.ones(16, 2, dtype=torch.bool)
    mask[0, 1] = mask[3, 0] = mask[3, 1] = False
    poisoned = torch.where(mask, losses, float("nan"))
    loss = adapter.loss(poisoned, mask=mask)
    ticket = adapter._losses.recorded[0].ticket
    loss.backward()
    adapter.report()

    rows = [losses[n][mask[n]].mean().item() if mask[n].any() else 0.0 for n in range(16)]
    np.testing.assert_allclose(adapter.scheduler.table.last[ticket.indices], rows)
    assert loss.item() == pytest.approx(losses[mask].mean().item())
    assert torch.isfinite(losses.grad).all()


def test_losses_with_more_dimensions():
    """Losses of pixels or outputs are averaged over all but the samples."""
    adapter = adapted(num_epochs=1)
    next(iter(adapter.loader()))
    losses = torch.rand(16, 3, 5)
    loss = adapter.loss(losses)
    ticket = adapter._losses.recorded[0].ticket
    adapter.report()

    np.testing.assert_allclose(adapter.scheduler.table.last[ticket.indices], losses.mean((1, 2)), rtol=1e-6)
    assert loss.item() == pytest.approx(losses.mean().item())


def test_class_weights():
    """Raw losses are reported; what is trained on is what torch's own weights would give."""
    adapter = adapted(num_epochs=1)
    x, y = next(iter(adapter.loader()))
    classes = torch.linspace(0.5, 2.0, 10)
    raw = cross_entropy(adapter.model(x), y, reduction="none")
    loss = adapter.loss(raw, weights=classes[y])
    ticket = adapter._losses.recorded[0].ticket
    expected = cross_entropy(adapter.model(x), y, weight=classes)
    adapter.step(loss)

    assert loss.item() == pytest.approx(expected.item())
    np.testing.assert_allclose(adapter.scheduler.table.last[ticket.indices], raw.detach(), rtol=1e-6)


def test_mixup():
    """Losses of mixed samples are not exact: only their mean is reported."""
    adapter = adapted(num_epochs=2)
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            mixed = adapter.model(0.7 * x + 0.3 * x.roll(1, 0))
            losses = 0.7 * cross_entropy(mixed, y, reduction="none")
            losses = losses + 0.3 * cross_entropy(mixed, y.roll(1, 0), reduction="none")
            adapter.step(adapter.loss(losses, exact=False))

    assert adapter.scheduler.table.source == "batch means of 16"


def test_weights_of_the_policy():
    """A policy that selects has its weights multiplied in."""
    from tests.common import HardHalf

    adapter = adapted(policy=HardHalf(), num_epochs=3)
    products = []
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            losses = cross_entropy(adapter.model(x), y, reduction="none")
            shares = next(iter(adapter.sampler.batches.waiting.values())).weights
            loss = adapter.loss(losses)
            if shares is not None:
                products.append((loss.item(), (losses * torch.from_numpy(shares)).mean().item()))
            adapter.step(loss)

    assert len(products) == 2 * STEPS
    np.testing.assert_allclose(*zip(*products, strict=True), rtol=1e-6)


def test_weights_are_never_dropped():
    """Losses that were trained on without the weights of the policy are refused; those that loss() weights are not."""
    weighing = {"policy": Focus(noise_guard="weigh"), "groups": Y.numpy()}
    adapter = adapted(**weighing)
    losses = cross_entropy(adapter.model(X[:16]), Y[:16], reduction="none")
    sampler = R8BatchSampler(R8Scheduler(200, batch_size=16, num_epochs=2, **grouped(weighing)))

    next(iter(adapter.loader()))
    with pytest.raises(RuntimeError, match=r"policy Focus.* weights samples: .* attach\(\) of learnit_r8\.torch"):
        adapter.report(losses)
    adapter.loss(losses)
    assert adapter.report()
    next(iter(sampler))
    for report in (sampler.report, sampler.r8.update_with_loss):
        with pytest.raises(RuntimeError, match=r"policy Focus.* weights samples: use draw\(\) and report\(\)"):
            report(losses.detach().numpy())
    assert sampler.r8.global_step == 0


class Slow(Rows):
    """Takes a second for each sample, on a clock of its own."""

    seconds = 0.0

    def __getitem__(self, index):
        self.seconds += 1
        return super().__getitem__(index)


def test_time_spent_waiting_for_data_is_told():
    """Steps tell how long the adapter's loader let them wait."""
    steps, dataset = [], Slow()
    adapter = adapted(dataset, num_epochs=1, listeners=[steps.append])
    adapter.scheduler.host.clock = lambda: dataset.seconds
    train(adapter, adapter.loader())
    told = [event.data_seconds for event in steps if isinstance(event, StepDone)]

    assert told == [16] * 12 + [8]


def test_time_that_runs_out_before_the_first_batch_of_an_epoch():
    """The loop over the epochs ends then, so there is nothing to warn of."""
    now = [0.0]
    adapter = adapted(train_duration_seconds=10, clock=lambda: now[0])
    r8 = adapter.scheduler
    for epoch in adapter.epochs():
        now[0] = 20.0 * epoch
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(adapter, epochs=1)

    assert (epoch, r8.is_over, r8.global_step) == (1, True, r8.steps_per_epoch)


def test_an_epoch_without_a_batch_is_an_error():
    """A loop over epochs that draws nothing would have no end."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    adapter = attach(model, optimizer, torch.zeros(8, 2), batch_size=4, num_epochs=2)

    with pytest.raises(RuntimeError, match=r"epoch 0 ended with no batch drawn; .* or loader\(\)"):
        for _ in adapter.epochs():
            pass


def test_own_draws():
    """A loop without a loader hands over the tickets that it drew."""
    adapter = adapted(num_epochs=1)
    r8 = adapter.scheduler
    while (ticket := r8.draw_if_any()) is not None:
        losses = cross_entropy(adapter.model(X[ticket.indices]), Y[ticket.indices], reduction="none")
        adapter.step(adapter.loss(losses, ticket=ticket))

    assert set(r8.table.usage_count.tolist()) == {1}


def test_close_reports_what_was_noted():
    """What was noted last is not lost at the end."""
    with adapted(num_epochs=1) as adapter:
        noted(adapter, next(iter(adapter.loader())))

    assert adapter.scheduler.global_step == 1


def test_regression_with_a_column():
    """Losses in the shape (B, 1) are losses of B samples."""
    model = torch.nn.Linear(64, 1)
    adapter = adapted(model=model, optimizer=sgd(model, lr=0.01), num_epochs=1)
    for x, y in adapter.loader():
        adapter.step(adapter.loss(mse_loss(model(x), y[:, None].float(), reduction="none")))

    assert adapter.scheduler.table.source == "exact"


def test_facade():
    """Code that wants a scheduler of torch's can step, show and save it."""
    adapter = adapted()
    facade = adapter.lr_scheduler
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        facade.step()

    assert isinstance(facade, torch.optim.lr_scheduler.LRScheduler)
    assert facade.get_last_lr() == facade.get_lr() == [adapter.optimizer.param_groups[0]["lr"]]
    assert facade.last_epoch == adapter.scheduler.global_step == STEPS
    assert facade.base_lrs == [0.1]


def test_facade_state(tmp_path):
    """The facade's state goes through torch.save and torch.load(weights_only=True), and the run goes on from it."""
    one = adapted(policy="balanced", num_epochs=3)
    seen = []
    train(one, adapter_loader(one, Rows()), epochs=2)
    torch.save(one.lr_scheduler.state_dict(), tmp_path / "scheduler.pt")
    other = adapted(policy="balanced", num_epochs=3)
    other.lr_scheduler.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
    for adapter in (one, other):
        batches = []
        train(adapter, adapter_loader(adapter, Rows()), epochs=1, seen=batches)
        seen.append(batches)

    assert seen[0] == seen[1]
    assert other.finished
