import functools
import warnings
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from wild_scripts import SCRIPTS, InPlace, OneCycle, OwnGenerator, clouds, seed_all

from learnit_r8 import Verdict, events
from learnit_r8.engine.settings import grouped
from learnit_r8.guard.monitor import USUAL_GUARD
from learnit_r8.state.tree import clone
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from tests.torch_common import DIGITS, X, Y, classifier, descend


class Fault:
    """Writes one NaN into the weights, once.

    Args:
        at: The step before which it does.
    """

    def __init__(self, at):
        self.at, self.has_struck = at, False

    def __call__(self, step, script):
        if step == self.at and not self.has_struck:
            self.has_struck = True
            with torch.no_grad():
                next(iter(script.model.parameters())).view(-1)[0] = float("nan")


def trained(kind, seed=0, **settings):
    seed_all(seed)
    script = kind(**settings)
    seed_all(seed + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return script.run()


def level(losses):
    """The mean of the last ones."""
    last = [loss for loss in losses[-8:] if loss == loss]
    return sum(last) / len(last)


@functools.cache
def undisturbed(kind):
    """The losses of five seeds; the first is that of the healed run. Six of the stream end between .46 and .69."""
    return [trained(kind, seed).losses for seed in (0, 10, 20, 30, 40)]


@pytest.mark.program
@pytest.mark.parametrize("at", [3, 18])
@pytest.mark.parametrize("kind", [each for each in SCRIPTS if each is not OwnGenerator], ids=lambda kind: kind.__name__)
def test_a_nan_in_the_weights_is_healed(kind, at):
    """Every weight is finite in the end, and the losses are where they are without the fault, within their spread."""
    fault = Fault(at)
    healed = trained(kind, hook=fault)
    # After as many steps: the last batches of an epoch are left out for tests of the weights.
    left_out = healed.r8.scheduler.pace.left_out
    levels = [level(losses[: len(losses) - left_out]) for losses in undisturbed(kind)]
    last = level(healed.losses)
    spread = max(levels) - min(levels)

    assert fault.has_struck
    for part in healed.parts():
        if isinstance(part, torch.nn.Module):
            assert all(bool(each.isfinite().all()) for each in part.parameters())
    assert abs(last - levels[0]) <= max(0.1 * abs(levels[0]), spread) or last < max(levels)


@pytest.mark.parametrize("fault", ["high loss", "high rate"])
@pytest.mark.parametrize("mode", ["cosine", "constant", "wsd", "linear", "keep"])
def test_the_first_losses_of_own_batches_may_be_high(mode, fault):
    """One loss four times as high, or a rate that is too high, is answered, and the run goes on to its last step."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (256,))
    inputs = torch.randn(4, 8)[labels] + torch.randn(256, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if fault == "high loss" else 30.0, momentum=0.9)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=16)
    verdicts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with attach(model, optimizer, loader, num_steps=60, scheduler_mode=mode, handle_signals=False) as adapter:
            for _ in adapter.epochs():
                for x, y in adapter.batches():
                    loss = cross_entropy(model(x), y)
                    if fault == "high loss" and len(verdicts) == 12:
                        loss = 6.0 * loss / loss.detach()
                    outcome = adapter.report(loss)
                    verdicts.append(outcome.verdict)
                    if outcome:
                        descend(optimizer, loss)

    assert adapter.scheduler.global_step == 60
    # At a rate of the user's own a first loss may be high, but not hundreds of times as high.
    assert (Verdict.EARLY in verdicts) == (mode != "keep" or fault == "high rate")
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_a_batch_that_the_loop_has_changed_is_handed_out_again_as_it_came():
    """Weights are tested with what the loader gave, though the loop scales its batches in place."""
    given, probes = [], []

    class Noted(InPlace):
        @property
        def batches(self):
            for batch in super().batches:
                chunk = self.r8.scheduler.feed.source.open.batch.chunk
                (given if chunk.pass_number >= 0 else probes).append(batch[0].clone())
                yield batch

    trained(Noted, hook=Fault(18))

    assert probes
    assert all(any(torch.equal(probe, each) for each in given) for probe in probes)


def test_the_rate_stays_the_users_after_a_restore():
    """A recursive schedule goes on from its own rate, not from that of the backup or a lowered one."""
    seen = {}

    class Noted(OneCycle):
        def ok(self, *losses):
            rates = seen.setdefault(self.hook is not None and self.name, [])
            rates.append((self.optimizer.param_groups[0]["lr"], self.optimizer.param_groups[0]["momentum"]))
            return super().ok(*losses)

    for name, hook in (("healed", Fault(18)), ("whole", lambda step, script: None)):
        Noted.name = name
        trained(Noted, hook=hook)

    healed, whole = seen["healed"], seen["whole"]
    # The tests of weights are iterations of the loop, in which its schedule goes on, too.
    assert healed[:18] == whole[:18]
    assert set(healed) <= set(whole) or healed[: len(whole)] == whole


def test_the_factor_is_put_on_for_the_step_only():
    """Within the step the rate is lowered; before and after it, it is the user's, also of a tensor and in groups."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": torch.tensor(0.01)}]
    optimizer = torch.optim.Adam(groups)
    adapter = attach(model, optimizer, None, handle_signals=False)
    inside = []
    optimizer.register_step_pre_hook(lambda *_: inside.append([float(group["lr"]) for group in optimizer.param_groups]))
    limit = adapter.scheduler.controller.limit
    for step in range(3):
        if step == 1:
            limit.restored()
            adapter.scheduler.controller.is_quiet = False
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        optimizer.step()
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])

    factor = adapter.scheduler.lr_factor
    assert factor < 1
    assert inside[0] == pytest.approx([0.1, 0.01])
    assert inside[1] == pytest.approx([0.1 * factor, 0.01 * factor])


def test_a_step_that_raises_leaves_the_rate():
    """The rate that an interrupted step has lowered is taken back before the next one."""

    class Broken(torch.optim.SGD):
        raises = False

        def step(self, closure=None):
            if self.raises:
                raise ZeroDivisionError
            return super().step(closure)

    model = torch.nn.Linear(2, 1)
    optimizer = Broken(model.parameters(), lr=0.1)
    adapter = attach(model, optimizer, None, handle_signals=False)
    adapter.scheduler.controller.limit.restored()
    adapter.scheduler.controller.is_quiet = False
    optimizer.raises = True
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    optimizer.raises = False
    optimizer.step()

    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("is_resume", [False, True])
def test_what_belongs_to_the_run_goes_back_or_stays_by_its_kind(is_resume):
    """Networks, optimizers and what is marked "heal" go back; schedules and the best value only as a run is resumed."""
    seed_all()
    model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 2)
    optimizer, second = (torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, other))
    best, marked = {"acc": 0.5}, {"state": 0.5}
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    adapter = attach(
        model, optimizer, None, handle_signals=False,
        also={
            "net": other, "opt": second, "schedule": schedule, "frozen": (torch.nn.Linear(1, 1), "resume"),
            "best": (lambda: dict(best), best.update), "marked": (lambda: dict(marked), marked.update, "heal"),
        },
    )  # fmt: skip
    optimizer.step()
    kept, before = clone(adapter.state.read()), other.weight.detach().clone()
    best["acc"], marked["state"] = 0.9, 0.9
    schedule.step()
    with torch.no_grad():
        other.weight += 1
    torch.rand(3)
    generators = torch.get_rng_state()
    adapter.state.load(kept, from_ram=True, is_resume=is_resume)

    assert torch.equal(other.weight, before)
    assert marked["state"] == 0.5
    assert best["acc"] == (0.5 if is_resume else 0.9)
    assert schedule.last_epoch == (0 if is_resume else 1)
    assert optimizer.param_groups[0]["lr"] == (0.1 if is_resume else pytest.approx(0.01))
    assert torch.equal(torch.get_rng_state(), generators) is not is_resume


@pytest.mark.parametrize("settings", [{}, {"batch_size": 8}])
def test_callbacks_of_ones_own_add_to_the_backup_of_the_model(settings, tmp_path):
    """Both are put back after damage, twice in the run, and on resume, which the load callback can tell apart."""
    x, y = clouds()

    def run(nan_at=(), kill_at=None):
        data, own, heard, damages = TensorDataset(x, y), {"steps": 0}, [], list(nan_at)
        model = torch.nn.Linear(8, 4)

        def load(state, is_resume):
            heard.append((own["steps"], state["steps"], is_resume))
            own.update(state)

        given = {
            "num_epochs": 4, "handle_signals": False, "state_callback": lambda: dict(own), "load_callback": load,
            "backup_every": 5, "checkpoint_dir": tmp_path, "checkpoint_every": 5, "resume": "auto", "backup_dir": False,
        } | settings  # fmt: skip
        adapter = attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), data if settings else DataLoader(data, batch_size=8),
            **grouped(given),
        )  # fmt: skip
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader() if settings else adapter.batches():
                own["steps"] += 1
                if own["steps"] == kill_at:
                    return heard, own, model
                losses = cross_entropy(model(inputs), labels, reduction="none")
                adapter.step(adapter.loss(losses) if settings else losses.mean())
                if own["steps"] in damages:
                    damages.remove(own["steps"])
                    model.weight.data[:] = model.bias.data[:] = float("nan")
        adapter.close()
        return heard, own, model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        heard, _, model = run(nan_at=(13, 28), kill_at=36)

    # A backup that is tested is put back before each test, and at last to go on from.
    undone = {}
    for before, restored, is_resume in heard:
        assert not is_resume
        undone[restored] = max(before - restored, undone.get(restored, 0))
    assert len(undone) == 2
    # Of R8's batches the weights alone are mended.
    assert all((not settings) <= steps <= 9 for steps in undone.values())
    assert model.weight.isfinite().all()

    again, own, model = run()
    assert again == [(0, again[0][1], True)]
    assert again[0][1] >= 25
    assert own["steps"] > again[0][1]
    assert model.weight.isfinite().all()


def test_the_state_of_an_adapter_holds_what_ones_own_callbacks_keep():
    """Whoever saves `Adapter.state_dict` by other means goes on with it."""

    def attached(own):
        model, data = torch.nn.Linear(8, 4), TensorDataset(*clouds())
        return attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), data, batch_size=8, num_epochs=1,
            handle_signals=False, state_callback=lambda: dict(own), load_callback=own.update,
        )  # fmt: skip

    own = {"steps": 0}
    saved = attached({"steps": 7}).state_dict()
    attached(own).load_state_dict(saved)

    assert own == {"steps": 7}


def test_a_loop_that_asks_for_the_backup_draws_the_batches_again():
    """restore_backup() ends the iteration; the next one goes on behind the backup, and the run ends the same."""

    def run(restores_at=None):
        torch.manual_seed(0)
        model, data = torch.nn.Linear(8, 4), TensorDataset(*clouds())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader, drawn = DataLoader(data, batch_size=16, shuffle=True), []
        with attach(model, optimizer, loader, num_epochs=3, backup_every=5) as adapter:
            r8 = adapter.scheduler
            while r8.global_step < 3 * len(loader):
                for _ in adapter.epochs():
                    for x, y in adapter:
                        drawn.append((r8.global_step, x.sum().item()))
                        loss = cross_entropy(model(x), y)
                        descend(optimizer, loss)
                        adapter.report(loss)
                        if len(drawn) == restores_at:
                            restored = r8.restore_backup()
                            assert (r8.global_step, restored % 5) == (restored, 0)
                            break
                    else:
                        continue
                    break
        return model.weight.detach(), drawn

    (plain, drawn), (again, more) = run(), run(restores_at=9)

    assert torch.equal(plain, again)
    assert len(more) > len(drawn)
    assert set(more) == set(drawn)


def attached(given=(1,), **settings):
    model = torch.nn.Linear(1, 1)
    return attach(model, torch.optim.SGD(model.parameters(), lr=0.1), given, **grouped(settings))


# fmt: off
MISTAKES = [
    # One callback would read what nobody loads, or load what nobody reads.
    *[(lambda name=name: attached(**{name: lambda *_: {}}), ValueError,
       f"{other} must be given together with {name}, got it left out")
      for name, other in (("state_callback", "load_callback"), ("load_callback", "state_callback"))],
    *[(lambda also=also: attached(also=also), error, text) for also, error, text in (
        ([1], TypeError, r"also must be a dict of parts by their names, got \[1\]"),
        ({"model": torch.nn.Linear(1, 1)}, ValueError, "also must have names other than"),
        ({"ema": torch.nn.Linear(1, 1)}, ValueError, r"got 'ema'\. Give it to attach\(\) as ema="),
        ({"ema": (dict, print)}, ValueError, r'another name: also={"averages": \(get, set, "heal"\)}, where get'),
        ({"x": 5}, TypeError, r"the part 'x' of also must have state_dict\(\) and load_state_dict\(\), or be a pair"),
        ({"x": (torch.nn.Linear(1, 1), "later")}, ValueError, "'x' of also must be put back at 'heal' or 'resume'"))],
    # A data set without a size of batches may be a mistake, and its items are no batches.
    (lambda: attached(TensorDataset(torch.ones(3, 1)), num_epochs=1), ValueError,
     "batch_size must be given with a data set"),
    (lambda: attached(5, num_epochs=1), TypeError, "the loader must be an iterable of batches, or None, got 5"),
    (lambda: attached(None).batches(), ValueError, r"loader must be given to attach\(\) or here, got None"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    with pytest.raises(error, match=text):
        act()


def test_weights_of_nan_in_each_epoch_cost_no_more_at_the_end():
    """A run that ends with NaN goes back to its newest sound state, though none had the time to be trusted."""
    torch.manual_seed(0)
    model, heard = classifier(), record_events()
    loader, optimizer = DataLoader(DIGITS, batch_size=10), torch.optim.Adam(model.parameters(), lr=0.002)
    with warnings.catch_warnings(), attach(model, optimizer, loader, num_epochs=12, listeners=[heard]) as adapter:
        warnings.simplefilter("ignore")
        for _ in adapter.epochs():
            for inputs, labels in adapter.batches():
                if adapter.report(loss := cross_entropy(model(inputs), labels)):
                    descend(optimizer, loss)
                    if adapter.scheduler.handed_out == len(loader):
                        moments = [
                            each[name] for each in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
                        ]
                        for each in (*model.parameters(), *moments):
                            each.data.fill_(float("nan"))
    restored = [each.to_step for each in heard if isinstance(each, events.RolledBack)]

    assert restored[-1] > 10 * len(loader)


RARE = 63
"""A row of the table that only the first batches and the last ones use."""


def train_embeddings(writes, *, with_r8=True, steps=120):
    """A table of embeddings, whose loss never sees a row while numbers are written into it; its weights, the adapter.

    Args:
        writes: By step, what is written into the second number of the rare row.
        with_r8: Whether R8 watches.
        steps: How many there are.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 4), torch.nn.Flatten(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randint(RARE, (steps, 16, 2))
    rows[[0, 1, 2, steps - 2, steps - 1], 0] = RARE
    adapter = attach(model, optimizer, None, num_steps=steps) if with_r8 else None
    for step in range(steps) if adapter is None else adapter.steps():
        if step in writes:
            with torch.no_grad():
                model[0].weight[RARE, 1] = writes[step]
        loss = cross_entropy(model(rows[step]), rows[step].sum(1) % 3)
        if adapter is None or adapter.report(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict(), adapter


@pytest.mark.parametrize("writes", [{40: 1e3}, {40: 1e3, 90: -5e4}], ids=["once", "twice"])
def test_a_stray_write_that_no_loss_shows_is_put_back(writes):
    """A single weight a hundred times as large as all others: to the bit as if nothing had been written."""
    expected, _ = train_embeddings({}, with_r8=False)
    with pytest.warns(RuntimeWarning, match="probably a stray write .* that weight came from"):
        found, adapter = train_embeddings(writes)

    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert adapter.summary().count("a stray write found in 'model.0.weight'") == len(writes)
    assert "model restored" not in adapter.summary()
    assert "weights tested" not in adapter.summary()


@pytest.mark.filterwarnings("ignore:.*stray write")
def test_a_weight_that_is_written_again_and_again_stays():
    """Whoever sets it means it: after three times it is left alone, and said."""
    found, adapter = train_embeddings(dict.fromkeys(range(20, 116), 1e3))

    assert found["0.weight"][RARE, 1] == pytest.approx(1e3, rel=0.01)
    assert adapter.scheduler.controller.live.persistence.backup_timer.singles == ["model.0.weight"] * 4


def test_weights_that_grow_at_a_high_rate_are_no_stray_write():
    """At a rate a thousand times too high many grow, and one alone is no finding."""
    torch.manual_seed(0)
    model = classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = attach(model, torch.optim.SGD(model.parameters(), lr=300.0), None, num_steps=60)
        for step in adapter.steps():
            rows = slice(16 * (step % 12), 16 * (step % 12) + 16)
            adapter.step(cross_entropy(model(X[rows]), Y[rows]))

    assert not adapter.scheduler.controller.live.persistence.backup_timer.singles


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:.*the largest number of")
@pytest.mark.parametrize("at", [120, 175])
def test_a_model_that_has_lost_all_is_healed_where_losses_have_hardly_fallen(at):
    """Labels of which half are random: all weights become 0, and losses are those of a model that was never trained."""

    def train(*, at=None, with_r8=True):
        torch.manual_seed(0)
        labels = torch.where(torch.rand(len(Y)) < 0.5, torch.randint(0, 10, Y.shape), Y)
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loader = DataLoader(TensorDataset(X, labels), batch_size=16, shuffle=True)
        adapter = attach(model, optimizer, loader, num_epochs=16) if with_r8 else None
        step = 0
        for _ in range(16) if adapter is None else adapter.epochs():
            for inputs, targets in loader if adapter is None else adapter.batches():
                if step == at:
                    with torch.no_grad():
                        for each in model.parameters():
                            each.zero_()
                step += 1
                loss = cross_entropy(model(inputs), targets)
                if adapter is None or adapter.report(loss):
                    descend(optimizer, loss)
        return cross_entropy(model(X), labels).item(), adapter

    bare, _ = train(with_r8=False)
    healthy, adapter = train()
    healed, healing = train(at=at)

    assert healthy == bare
    assert "weights tested" not in adapter.summary()
    assert healed < bare + 0.1
    assert healing.summary().count("restored to step") == 1


@pytest.mark.filterwarnings("ignore:losses were far too high")
def test_moments_that_were_damaged_just_before_a_backup():
    """Adam's moments become 1e6 times as large: the backup that holds them repeats its loss, and is not put back."""
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    loader = DataLoader(DIGITS, batch_size=16, shuffle=True)
    adapter = attach(model, optimizer, loader, num_epochs=20)
    backups, damaged_at = adapter.scheduler.host.persistence.backup, None
    for _ in adapter.epochs():
        for inputs, targets in adapter.batches():
            loss = cross_entropy(model(inputs), targets)
            if adapter.report(loss):
                descend(optimizer, loss)
            if damaged_at is None and backups.newest.step >= 120:
                damaged_at = adapter.scheduler.global_step
                for held in (optimizer.state, backups.newest.state["optimizer"]["state"]):
                    for each in held.values():
                        each["exp_avg"] *= 1e6
                        each["exp_avg_sq"] *= 1e6

    (restored,) = (text for text in adapter.summary().splitlines() if "restored to step" in text)
    assert int(restored.split("restored to step ")[1].split(",")[0]) < damaged_at
    assert "model restored once" in adapter.summary()
    assert "learning rate at most" not in adapter.summary()
    assert cross_entropy(model(X), Y).item() < 0.27


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:.*the largest number of", "ignore:losses rose")
@pytest.mark.parametrize("factor", [0.0, 100.0])
@pytest.mark.parametrize("at", [140, 205])
def test_weights_that_change_at_once_late_in_a_run(factor, at):
    """A last layer of zeros, or a hundred times as large, leaves losses below those of the untrained model."""

    def train(*, at=None, with_r8=True):
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loader = DataLoader(DIGITS, batch_size=16, shuffle=True)
        adapter = attach(model, optimizer, loader, num_epochs=16) if with_r8 else None
        step = 0
        for _ in range(16) if adapter is None else adapter.epochs():
            for inputs, targets in loader if adapter is None else adapter.batches():
                loss = cross_entropy(model(inputs), targets)
                if adapter is None or adapter.report(loss):
                    descend(optimizer, loss)
                step += 1
                if step == at:
                    model[-1].weight.data.mul_(factor)
        if adapter is not None:
            adapter.close()
        return cross_entropy(model(X), Y).item(), model[-1].weight.abs().max().item(), adapter

    bare, largest, _ = train(with_r8=False)
    healed, healed_largest, adapter = train(at=at)

    assert train()[0] == bare
    assert healed < 1.5 * bare
    assert 0.5 * largest < healed_largest < 2 * largest
    assert "model restored once" in adapter.summary()
    assert "losses refused: 0" in adapter.summary()


@pytest.mark.parametrize("at", [6, 24])
def test_weights_changed_in_the_first_steps(at):
    """Whoever starts a layer anew then means it, and nothing is said."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    adapter = attach(model, optimizer, DataLoader(DIGITS, batch_size=16), num_epochs=6)
    for _ in adapter.epochs():
        for inputs, targets in adapter.batches():
            if adapter.scheduler.global_step == at:
                model[-1].weight.data.mul_(0.01)
            loss = cross_entropy(model(inputs), targets)
            if adapter.report(loss):
                descend(optimizer, loss)

    assert "weights tested" not in adapter.summary()
    assert "restored" not in adapter.summary()


def test_moments_that_swell_beside_the_model():
    """Squares of the optimizer in ``also=`` become a million times as large: no loss shows it, and it is told once."""

    def train(at=None):
        model, other = classifier(), torch.nn.Linear(64, 10)
        optimizer, second = (torch.optim.Adam(each.parameters(), lr=0.01) for each in (model, other))
        loader = DataLoader(DIGITS, batch_size=16, shuffle=True)
        adapter = attach(model, optimizer, loader, num_epochs=16, also={"other": other, "second": second})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in adapter.epochs():
                for inputs, targets in adapter.batches():
                    if adapter.scheduler.global_step == at:
                        for each in second.state.values():
                            each["exp_avg_sq"].mul_(1e6)
                    loss, beside = (cross_entropy(each(inputs), targets) for each in (model, other))
                    if adapter.report(loss):
                        descend(optimizer, loss)
                        descend(second, beside)
        return [str(each.message) for each in said]

    assert train() == []
    (told,) = train(at=150)
    assert "exp_avg_sq' and 1 more beside the weights" in told


def trained_for_240(hurt=None, *, at=None, with_r8=True, **options):
    """The loss of a classifier after so many batches of one's own, and the adapter, if there is one.

    ``hurt(model, optimizer)`` is called before the batch ``at``; ``options`` are those of SGD.
    """
    model, batches = classifier(), [*DataLoader(DIGITS, batch_size=16, shuffle=True)] * 20
    optimizer = torch.optim.SGD(model.parameters(), **options)
    adapter = attach(model, optimizer, batches, num_steps=240) if with_r8 else None
    for step, (inputs, targets) in enumerate(batches[:240] if adapter is None else adapter.batches()):
        if step == at:
            hurt(model, optimizer)
        loss = cross_entropy(model(inputs), targets)
        if adapter is None or adapter.report(loss):
            descend(optimizer, loss)
    if adapter is not None:
        adapter.close()
    return cross_entropy(model(X), Y).item(), adapter


@pytest.mark.filterwarnings("ignore:losses rose")
def test_a_level_that_is_lost_for_good_is_looked_into_as_the_run_ends():
    """A last layer that lost some of its size raises the losses, never near those of the untrained model."""

    def hurt(model, optimizer):
        model[-1].weight.data.mul_(0.3)
        optimizer.param_groups[0]["lr"] = 1e-4

    bare, _ = trained_for_240(lr=0.3, with_r8=False)
    damaged, _ = trained_for_240(hurt, at=200, lr=0.3, with_r8=False)
    healed, adapter = trained_for_240(hurt, at=200, lr=0.3)

    assert trained_for_240(lr=0.3)[0] == bare
    assert 8 * bare < damaged < 0.33 * 2.3
    assert healed < 2 * bare
    assert adapter.summary().count("restored to step") == 1


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:.*may be a hard batch")
@pytest.mark.parametrize("at", [150, 200])
def test_noise_of_the_weights_own_size_is_undone(at):
    """It leaves losses far below those of the untrained model, and is seen by the sizes of all matrices."""

    def hurt(model, optimizer):
        with torch.no_grad():
            for each in model.parameters():
                each.add_(each.std() * torch.randn_like(each))

    options = {"lr": 0.1, "momentum": 0.9}
    bare, _ = trained_for_240(with_r8=False, **options)
    damaged, _ = trained_for_240(hurt, at=at, with_r8=False, **options)
    healed, adapter = trained_for_240(hurt, at=at, **options)

    assert trained_for_240(**options)[0] == bare
    assert healed < 1.2 * bare < damaged
    assert adapter.summary().count("restored to step") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("at", "times"), [(182, 1000), (186, 500), (188, 100), (188, 1000)])
def test_what_goes_wrong_again_in_the_last_steps_is_undone(at, times):
    """A rate that is far too high in the last 13 steps of 195: after them there is no batch left for a test."""

    def train(*, at=None):
        model, loader = classifier(), DataLoader(DIGITS, batch_size=16, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        adapter = attach(model, optimizer, loader, num_epochs=15)
        for _ in adapter.epochs():
            for inputs, targets in adapter.batches():
                if adapter.scheduler.global_step == at:
                    optimizer.param_groups[0]["lr"] *= times
                loss = cross_entropy(model(inputs), targets)
                if adapter.report(loss):
                    descend(optimizer, loss)
        adapter.close()
        return cross_entropy(model(X), Y).item(), adapter.summary()

    healthy, calm = train()
    healed, told = train(at=at)

    assert "restored" not in calm
    assert healed < 1.2 * healthy < 0.2
    assert "no test of the weights could be made" in told or "changed at once" in told


def trained_to_the_end(hurt=None, *, at=193, with_r8=True, begin=None, data=DIGITS, has_two=False, **settings):
    """The loss of a classifier after 195 batches of one's own, and what its adapter says of them.

    ``hurt(model, optimizer, targets)`` is called before the batch ``at`` and returns its targets; after the last one
    there is no batch left for a test. ``begin(model)`` is called at first. ``has_two``: whether biases have another
    optimizer.
    """
    model, loader = classifier(), DataLoader(data, batch_size=16, shuffle=True)
    if begin is not None:
        begin(model)
    parameters, step = [*model.parameters()], 0
    optimizer = torch.optim.SGD(parameters[::2] if has_two else parameters, lr=0.02, momentum=0.9)
    other = torch.optim.SGD(parameters[1::2], lr=0.02, momentum=0.9) if has_two else None
    settings |= {"also": {"other": other}} if has_two else {}
    adapter = attach(model, optimizer, loader, num_epochs=15, **settings) if with_r8 else None
    for _ in range(15) if adapter is None else adapter.epochs():
        for inputs, targets in loader if adapter is None else adapter.batches():
            if step == at and hurt is not None:
                targets = hurt(model, optimizer, targets)
            step += 1
            loss = cross_entropy(model(inputs), targets)
            if adapter is None or adapter.report(loss):
                descend(optimizer, loss)
                if other is not None:
                    other.step()
                    other.zero_grad()
    if adapter is not None:
        adapter.close()
    inputs, targets = data.tensors
    return cross_entropy(model(inputs), targets).item(), "" if adapter is None else adapter.summary()


def make_noise(model, optimizer, targets):
    with torch.no_grad():
        model[0].weight.copy_(torch.randn_like(model[0].weight))
    return targets


@pytest.mark.filterwarnings("ignore:the last losses are high", "ignore:losses were far too high")
@pytest.mark.filterwarnings("ignore:weights changed at once")
@pytest.mark.parametrize("has_rivals", [False, True])
@pytest.mark.parametrize("at", [193, 191])
def test_a_matrix_of_noise_in_the_last_steps_is_undone(at, has_rivals):
    """No batch is left for a test, and weights have moved farther in those steps than in a hundred before."""
    damaged, _ = trained_to_the_end(make_noise, at=at, with_r8=False)
    bare, _ = trained_to_the_end(with_r8=False)
    rivals = {"guard": replace(USUAL_GUARD, expects_progress=False)} if has_rivals else {}
    healed, told = trained_to_the_end(make_noise, at=at, **rivals)

    assert trained_to_the_end(**rivals)[0] == bare
    assert healed < 1.2 * bare < 0.2 * damaged
    assert told.count("restored to step") == 1


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:the last losses are high")
@pytest.mark.parametrize("at", [190, 191, 192])
def test_noise_in_the_last_steps_is_undone_though_losses_are_hardly_high(at):
    """A fifth of the labels are wrong: losses of before are as high. The weights tell, which have moved by their length
    at once.
    """
    random = torch.Generator().manual_seed(5)
    wrong = torch.rand(len(Y), generator=random) < 0.2
    noisy = TensorDataset(X, torch.where(wrong, torch.randint(10, Y.shape, generator=random), Y))

    def blend(model, optimizer, targets):
        with torch.no_grad():
            model[0].weight.mul_(0.1).add_(0.9 * model[0].weight.std() * torch.randn_like(model[0].weight))
        return targets

    damaged, _ = trained_to_the_end(blend, at=at, data=noisy, with_r8=False)
    bare, _ = trained_to_the_end(data=noisy, with_r8=False)
    healed, told = trained_to_the_end(blend, at=at, data=noisy)

    assert trained_to_the_end(data=noisy)[0] == bare
    assert healed < 1.1 * bare < 0.8 * damaged
    assert told.count("restored to step") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_losses_mean_nothing_none_in_the_last_steps_puts_weights_back():
    damaged, _ = trained_to_the_end(make_noise, with_r8=False)

    final, told = trained_to_the_end(make_noise, guard="finite")

    assert final == damaged
    assert "restored" not in told


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_hard_batch_in_the_last_steps_puts_no_weights_back():
    """They have not moved far."""
    mixed = lambda model, optimizer, targets: targets.flip(0)  # noqa: E731
    bare, _ = trained_to_the_end(mixed, at=194, with_r8=False)
    watched, told = trained_to_the_end(mixed, at=194)

    assert watched == bare
    assert "restored" not in told


def prefer_zero(model):
    """Make the untrained loss far higher than that of a network without a bias."""
    with torch.no_grad():
        model[-1].bias[0] += 30


def begin_anew(model, optimizer, targets):
    """With weights that are a third as large as they were, which alone is no sign of damage."""
    for each in model.parameters():
        peak = each.abs().max()
        torch.nn.init.normal_(each)
        each.data.mul_(peak / each.abs().max() / 3)
    return targets


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:.*the largest number of")
@pytest.mark.parametrize("has_two", [False, True])
@pytest.mark.parametrize("at", [80, 98, 101, 150])
def test_a_network_that_was_begun_anew_is_put_back(at, has_two):
    """Its losses are far below the first ones of the run, which no level of theirs would tell."""
    settings = {"begin": prefer_zero, "has_two": has_two}
    bare, _ = trained_to_the_end(**settings, with_r8=False)
    damaged, _ = trained_to_the_end(begin_anew, at=at, **settings, with_r8=False)
    healed, told = trained_to_the_end(begin_anew, at=at, **settings)

    assert trained_to_the_end(**settings)[0] == bare
    assert healed < 1.4 * bare < 0.9 * damaged
    assert told.count("model restored once; weights tested with") == 1


def make_noise_of_its_size(model, optimizer, targets):
    with torch.no_grad():
        weight = model[0].weight
        weight.copy_(weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return targets


@pytest.mark.filterwarnings("ignore:weights changed at once")
@pytest.mark.parametrize("at", [125, 140])
def test_a_matrix_of_noise_of_its_own_size_is_undone(at):
    """It has moved less than five times as far as in all the steps before, but by its own length, and at once."""
    damaged, _ = trained_to_the_end(make_noise_of_its_size, at=at, with_r8=False)
    healed, told = trained_to_the_end(make_noise_of_its_size, at=at)

    assert healed < 0.9 * damaged
    assert told.count("model restored once") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_learn_other_data_may_grow():
    """Five classes, and in the last steps the other five: once that is known, growth of all matrices is no damage."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    halves = torch.nonzero(y < 5).squeeze(1), torch.nonzero(y >= 5).squeeze(1)

    def train(*, with_r8):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        optimizer, dice = torch.optim.Adam(model.parameters(), 0.01), torch.Generator().manual_seed(0)
        drawn = [half[torch.randint(len(half), (32,), generator=dice)] for half in halves for _ in range(560)]
        batches = [(x[each], y[each]) for each in drawn]
        adapter = attach(model, optimizer, batches, num_steps=600) if with_r8 else None
        for inputs, targets in batches[:600] if adapter is None else adapter.batches():
            loss = cross_entropy(model(inputs), targets)
            if adapter is None or adapter.report(loss):
                descend(optimizer, loss)
        if adapter is not None:
            adapter.close()
        return cross_entropy(model(x[halves[1]]), y[halves[1]]).item(), adapter

    bare, _ = train(with_r8=False)
    found, adapter = train(with_r8=True)

    assert found < 1.3 * bare
    assert "restored" not in adapter.summary()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("closes", [True, False])
def test_after_the_run_the_rate_is_the_users_again(closes):
    """A rate that was lowered in a run is lowered to its last step, and not in what the optimizer does afterwards."""
    torch.manual_seed(0)
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    adapter, seen = attach(model, optimizer, DataLoader(DIGITS, batch_size=16), num_epochs=12), []
    weight = model[0].bias

    def share():
        """Of the rate, how far a gradient of 1 moves a weight."""
        optimizer.zero_grad()
        for each in model.parameters():
            each.grad = torch.ones_like(each)
        before = weight.detach().clone()
        optimizer.step()
        return ((before - weight.detach()) / optimizer.param_groups[0]["lr"]).mean().item()

    for _ in adapter.epochs():
        for inputs, targets in adapter.batches():
            loss, before = cross_entropy(model(inputs), targets), weight.detach().clone()
            if adapter.report(loss):
                descend(optimizer, loss)
                seen.append((adapter.scheduler.lr_factor, before, weight.detach().clone(), weight.grad.clone()))
    factor, before, after, gradient = seen[-1]
    if closes:
        adapter.close()

    assert factor < 0.5
    assert torch.allclose(before - after, factor * 30.0 * gradient, atol=1e-6)
    assert share() == pytest.approx(1.0, rel=1e-4)
