"""Faults in a training with torch: found out by probes, and healed, with workers, late verdicts and accumulation."""

import pytest

torch = pytest.importorskip("torch")

from sklearn.datasets import load_digits
from torch.nn.functional import binary_cross_entropy, cross_entropy

from learnit_r8 import events
from learnit_r8.torch import attach
from tests.fault_common import BAD_SAMPLE, BATCH, HEALED, KINDS, NUM_STEPS, SOME_KINDS, Samples, train
from tests.torch.test_readback import Slow
from tests.torch_common import descend
from tests.trial_common import begin_trial

RESTORED = ("large weights", "moments")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(weights were damaged|gradient is not finite|sample 77|loss of sample)"
)


@pytest.mark.program
@pytest.mark.parametrize(
    ("workers", "accumulate", "is_exact"), [(0, 1, True), (0, 1, False), (2, 1, True), (0, 4, True)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_heals(kind, workers, accumulate, is_exact):
    """A fault of any kind is healed, whoever fetches the batches and however many make an update."""
    check_healing(kind, workers=workers, accumulate=accumulate, is_exact=is_exact)


@pytest.mark.program
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_fault_heals_with_workers_and_accumulation(kind):
    """Probes of several batches overtake what workers have fetched."""
    check_healing(kind, workers=2, accumulate=4)


def check_healing(kind, *, workers, accumulate, is_exact=True):
    heard = []
    adapter, loss = train(kind, workers=workers, accumulate=accumulate, is_exact=is_exact, listeners=[heard.append])
    r8 = adapter.scheduler

    assert loss < HEALED
    assert r8.global_step == NUM_STEPS * accumulate
    assert not r8.controller.is_open
    if kind in RESTORED:
        assert any(isinstance(each, events.RolledBack) for each in heard)
    if kind == "bad sample" and is_exact:
        assert r8.table.quarantined.tolist() == [BAD_SAMPLE]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.program)])
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_fault_heals_late(kind, workers):
    """A fault is healed where losses are known some steps later, and workers have fetched: probes wait for theirs."""
    adapter, loss = train(kind, workers=workers, sharing=Slow(5))

    assert loss < HEALED
    assert adapter.scheduler.global_step == NUM_STEPS
    assert not adapter.scheduler.controller.is_open


def test_a_users_own_loader_with_workers_draws_no_probes():
    """Batches that a loader of the user's has fetched ahead cannot be overtaken."""
    model = torch.nn.Linear(4, 1)
    adapter = attach(model, torch.optim.SGD(model.parameters(), lr=0.01), Samples(), batch_size=BATCH, num_epochs=1)
    seen = []
    for workers in (1, 0):
        loader = torch.utils.data.DataLoader(Samples(), batch_sampler=adapter.sampler, num_workers=workers)
        next(iter(loader))
        seen.append(adapter.scheduler.controller.experiment.can_probe)

    assert seen == [False, True]


class Probability(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 1), torch.nn.Sigmoid())


def probability(**settings):
    """A model whose loss function raises for what is not a probability, and its adapter."""
    torch.manual_seed(0)
    model = Probability()
    return model, attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Samples(), batch_size=BATCH, **settings)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_that_raises_for_nan_is_refused(reduction):
    """An exception where the model was given NaN costs its batch, and nothing else; so does one of the first batch."""
    model, adapter = probability(num_steps=20)
    outcomes = []
    for x, _ in adapter.loader():
        x = x * float("nan") if len(outcomes) in (0, 9) else x
        with adapter.batch():
            losses = binary_cross_entropy(model(x), torch.ones(len(x), 1), reduction=reduction)
            adapter.step(adapter.loss(losses.flatten() if losses.ndim else losses))
        outcomes.append(bool(adapter.outcome))

    assert outcomes == [number not in (0, 9) for number in range(20)]
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def raise_in_batch(model, adapter, x, error, *, notes=False):
    with adapter.batch():
        losses = model(x).flatten()
        if notes:
            adapter.loss(losses)
        raise error


@pytest.mark.parametrize("error", [RuntimeError("of the user's"), MemoryError("none left"), IndexError("no such row")])
@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_other_exceptions_are_raised_on(error, factor):
    """What no value explains is raised on unchanged: where all is finite, and of kinds that never come from values."""
    model, adapter = probability(num_steps=20)
    if type(error) is RuntimeError and factor != 1.0:
        pytest.skip("explained by the value")
    x, _ = next(iter(adapter.loader()))
    with pytest.raises(type(error)) as raised:
        raise_in_batch(model, adapter, x * factor, error)

    assert raised.value is error


def test_what_is_raised_after_the_losses_were_noted_is_raised_on():
    """The loss is known then: nothing that comes after it is of the loss function."""
    model, adapter = probability(num_steps=20)
    x, _ = next(iter(adapter.loader()))
    with pytest.raises(RuntimeError, match="later"):
        raise_in_batch(model, adapter, x * float("nan"), RuntimeError("later"), notes=True)


def test_guards_by_name():
    """The word of a guard goes through attach() to the scheduler."""
    from learnit_r8.guard import FiniteGuard, SpikeGuard

    assert probability(num_steps=2, guard="finite")[1].scheduler.sentry.guard == FiniteGuard()
    assert probability(num_steps=2, guard="spike")[1].scheduler.sentry.guard == SpikeGuard()
    with pytest.raises(ValueError, match=r"guard must be one of .* or a guard, got 'finit'. Did you mean 'finite'"):
        probability(num_steps=2, guard="finit")


def test_loop_that_ends_within_a_trial_of_a_rate_ends_with_trained_weights():
    """The better weights are back before `close`, where the code after a loop looks at them."""
    torch.manual_seed(1)
    layers = [each for size in (64, 32, 32) for each in (torch.nn.Linear(size, 32), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 10))
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    adapter = attach(
        model, torch.optim.SGD(model.parameters(), 0.3, momentum=0.9), torch.utils.data.TensorDataset(x, y),
        batch_size=32, num_steps=160, seed=5, policy="shuffle", scheduler_mode="keep",
    )  # fmt: skip

    def loss():
        with torch.no_grad():
            return cross_entropy(model(x[:256]), y[:256]).item()

    before, trials = loss(), 0
    for _ in adapter.epochs():
        for inputs, targets in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(inputs), targets, reduction="none")))
            trials += adapter.scheduler.controller.state.early.trial is not None
    after = loss()
    adapter.close()

    assert trials
    assert after < 0.7 * before
    assert loss() == after


def test_state_saved_within_a_trial_goes_on_with_it(tmp_path):
    """What ``torch.save`` keeps of an adapter in mid-trial holds both states; to ask for it puts nothing back."""

    def begun():
        torch.manual_seed(3)
        x, y = torch.randn(256, 4), torch.randn(256)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        data = torch.utils.data.TensorDataset(x, y)
        return model, optimizer, attach(model, optimizer, data, batch_size=16, num_epochs=10, backup_every=8)

    def trained(model, adapter, act):
        weights = {}
        for _ in adapter.epochs():
            for x, y in adapter.loader():
                adapter.step(adapter.loss((model(x)[:, 0] - y) ** 2))
                act(adapter.scheduler)
                weights[adapter.scheduler.global_step] = [each.detach().clone() for each in model.parameters()]
        adapter.close()
        return weights

    def act(r8):
        controller = r8.controller
        if r8.global_step == 40:
            begin_trial(r8)
        if r8.global_step == 70:
            with r8.paused():
                torch.save(adapter.state_dict(), tmp_path / "state.pt")
            heard.append((controller.state.early.trial is not None, controller.is_on_trial))

    model, _, adapter = begun()
    heard = []
    whole = trained(model, adapter, act)
    other, _, resumed = begun()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    others = trained(other, resumed, lambda r8: None)

    assert heard[0][0]
    assert min(others) == 71
    assert not resumed.scheduler.controller.is_open
    for step, weights in others.items():
        assert all(map(torch.equal, weights, whole[step])), step


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize(("workers", "settings"), [(0, {"sharing": Slow(3)}), (1, {})], ids=["late", "a worker"])
def test_code_after_an_epoch_sees_sound_weights_with_a_backward_of_ones_own(workers, settings):
    """What the last batch has done to them is seen as its loop ends, whoever fetches and however late losses come."""
    torch.manual_seed(0)
    model, data = torch.nn.Linear(3, 2), torch.utils.data.TensorDataset(torch.randn(64, 3), torch.zeros(64).long())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    adapter = attach(model, optimizer, data, batch_size=8, num_epochs=3, **settings)
    num_trained, seen = 0, []
    with adapter:
        for _ in adapter.epochs():
            for inputs, targets in adapter.loader(num_workers=workers):
                loss = adapter.loss(cross_entropy(model(inputs), targets, reduction="none"))
                if adapter.report():
                    descend(optimizer, loss)
                num_trained += 1
                if num_trained == 8:
                    model.weight.data[0] = float("nan")
            seen.append(bool(model.weight.isfinite().all()))

    assert seen == [True, True, True]
