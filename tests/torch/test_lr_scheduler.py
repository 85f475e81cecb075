"""Schedules of torch's own on an optimizer whose rate R8 is to set: the peak is never what they have written."""

import contextlib
import copy
import gc
import math
import types
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import Backups
from learnit_r8.torch import attach
from tests.torch_common import Killed, descend

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))
HELD = "holds the optimizer"
BATCHES = [{"batch_size": 8}, {"scheduler_mode": "cosine"}]


def parts(lr=0.1, groups=1, **options):
    """A model and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    given = [{"params": [each], "lr": lr / 2**place} for place, each in enumerate(model.parameters())]
    return model, torch.optim.SGD(given if groups == 2 else model.parameters(), lr=lr, momentum=0.9, **options)


def attached(model, optimizer, **settings):
    """A training of five batches an epoch on R8's batches, or on batches of its own."""
    data = DATA if "batch_size" in settings else DataLoader(DATA, 8)
    return attach(model, optimizer, data, num_epochs=2, **settings)


def peak(adapter):
    """The highest rate of the schedule."""
    return max(adapter.scheduler.schedule(place / 100) for place in range(101))


@pytest.mark.parametrize("settings", BATCHES, ids=["drawn", "own"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_live_schedule_that_shows_its_peak(groups, settings):
    """It is max_lr while one has it, else the groups' initial_lr; one line says so, at the second attach() none."""
    model, optimizer = parts(groups=groups)
    highest = [0.1, 0.05][:groups]
    live = lr_scheduler.OneCycleLR(optimizer, highest, total_steps=100)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.004)
    with pytest.warns(RuntimeWarning, match=f"a OneCycleLR {HELD}.* 0.1, its max_lr, not 0.004") as said:
        first = attached(model, optimizer, **settings)
    assert peak(first) == pytest.approx(0.1)
    first.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peak(attached(model, optimizer, **settings)) == pytest.approx(0.1)
    assert len([one for one in said if HELD in str(one.message)]) == 1

    model, optimizer = parts(groups=groups)
    live = lr_scheduler.StepLR(optimizer, 30)
    with pytest.warns(RuntimeWarning, match=rf"StepLR {HELD}.*0.1, its initial_lr\."):
        assert peak(attached(model, optimizer, **settings)) == pytest.approx(0.1)
    assert live.last_epoch == 0


@pytest.mark.parametrize("settings", BATCHES, ids=["drawn", "own"])
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.001),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 50),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: step / 50),
        lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.001, 0.1),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer, 0.1), lr_scheduler.CosineAnnealingLR(optimizer, 9)], [5]
        ),
    ],
    ids=["linear", "warm-up", "warm-up from 0", "cyclic", "sequential"],
)
def test_a_live_schedule_whose_rate_is_neither(make, settings):
    """No peak can be told from the rates that it has written: initial_lr= is asked for, and nothing was changed."""
    model, optimizer = parts()
    live = make(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"initial_lr must be given.*{type(live).__name__} {HELD}"):
        attached(model, optimizer, **settings)
    assert optimizer.state_dict() == before
    assert peak(attached(model, optimizer, initial_lr=0.1, **settings)) == pytest.approx(0.1)
    assert attached(model, optimizer, **{**settings, "scheduler_mode": "keep"}).scheduler.host.rates.are_own


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_live_schedule_that_has_come_half_way():
    """Its rate is neither max_lr nor initial_lr any more."""
    model, optimizer = parts()
    live = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    live.step()
    with pytest.raises(ValueError, match="initial_lr must be given"):
        attached(model, optimizer, batch_size=8)


def test_a_live_plateau():
    """The present rate is the peak, as a plateau leaves no trace in the optimizer; its first step under R8 is said."""
    model, optimizer = parts(0.2)
    live = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = attached(model, optimizer, batch_size=8)
    assert peak(adapter) == pytest.approx(0.2)

    def train():
        with adapter:
            for _ in adapter.epochs():
                for x, y in adapter.loader():
                    adapter.step(adapter.loss(mse_loss(model(x), y, reduction="none").mean(1)))
                    live.step(1.0)

    with pytest.warns(RuntimeWarning, match="changed by something other than R8Scheduler"):
        train()


@pytest.mark.filterwarnings("error")
def test_without_a_live_schedule_the_present_rate_counts():
    """So a fine-tune that loads an optimizer with a stale initial_lr or max_lr is at the rate that it sets; so is one
    whose schedule was dropped, also in a cycle that nobody has collected, or is of another optimizer.
    """
    _, old = parts()
    other = lr_scheduler.OneCycleLR(old, 0.1, total_steps=100)
    model, optimizer = parts()
    optimizer.load_state_dict(old.state_dict())
    optimizer.param_groups[0]["lr"] = 0.003
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.004)
    assert peak(attached(model, optimizer, batch_size=8)) == pytest.approx(0.003)
    assert other.last_epoch == 0

    model, optimizer = parts()
    dropped = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    dropped.itself = dropped
    del dropped
    optimizer.param_groups[0]["lr"] = 0.003
    gc.disable()
    try:
        assert peak(attached(model, optimizer, batch_size=8)) == pytest.approx(0.003)
    finally:
        gc.enable()


def test_a_stale_max_lr_is_not_the_peak():
    """Of a loaded optimizer, under a live schedule that has none."""
    _, old = parts()
    lr_scheduler.OneCycleLR(old, 0.5, div_factor=5, total_steps=100)
    model, optimizer = parts()
    optimizer.load_state_dict(old.state_dict())
    live = lr_scheduler.StepLR(optimizer, 30)
    with pytest.warns(RuntimeWarning, match="0.1, its initial_lr"):
        assert peak(attached(model, optimizer, batch_size=8)) == pytest.approx(0.1)
    assert live.last_epoch == 0


def rates_of_steps(settings, every=None, *, is_after=False, tensor=False):
    """The rates that the optimizer's steps were taken at, and what was said of other code that sets them."""
    model, optimizer = parts(torch.tensor(0.1) if tensor else 0.1)
    live = None if is_after or every is None else lr_scheduler.StepLR(optimizer, 1)
    adapter, used = attached(model, optimizer, **settings), []
    live = lr_scheduler.StepLR(optimizer, 1) if live is None and every else live
    optimizer.register_step_pre_hook(lambda *_: used.append(float(optimizer.param_groups[0]["lr"])))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in adapter.epochs():
            for x, y in adapter.loader() if "batch_size" in settings else adapter.batches():
                loss = mse_loss(model(x), y)
                if adapter.report(loss):
                    descend(optimizer, loss)
                if every == "batch":
                    live.step()
            if every == "epoch":
                live.step()
    return used, [one for one in said if "changed by something other than R8Scheduler" in str(one.message)]


@pytest.mark.filterwarnings(f"ignore:.*{HELD}")
@pytest.mark.parametrize("settings", BATCHES, ids=["drawn", "own"])
@pytest.mark.parametrize("is_after", [False, True], ids=["built before", "built after"])
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_a_schedule_that_acts_later_is_warned_of(tensor, is_after, settings):
    """Where its step() is called in the loop, after each batch or each epoch, once; the rates of the steps are R8's."""
    alone, said = rates_of_steps(settings, tensor=tensor)
    assert not said
    assert len(alone) == 10

    for every in ("batch", "epoch"):
        used, said = rates_of_steps(settings, every, is_after=is_after, tensor=tensor)
        assert used == alone, every
        assert len(said) == 1, every


def resumed(folder, make, *, also=True, by_epoch=False, every=5, kill_at=27, set_rate=None, restore=None):
    """What is warned of in a run of ten steps an epoch, and after it was killed and has gone on.

    Args:
        folder: Of the checkpoints.
        make: Makes the schedule of an optimizer, or None.
        also: Whether `attach` gets it.
        by_epoch: Whether it is stepped at the end of an epoch.
        every: Steps between checkpoints.
        kill_at: The step at which the first process ends.
        set_rate: ``(optimizer, schedule, step)``, called before each step of the optimizer.
        restore: ``(schedule, step)``, called before the loop of a resumed run.
    """
    said = []
    for until in (kill_at, None):
        torch.manual_seed(0)
        model, optimizer = parts()
        schedule = make(optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapter = attach(
                model, optimizer, DataLoader(DATA, 4), num_epochs=5, checkpoint_dir=folder, resume="auto",
                checkpoint_every=every, backup_every=Backups(backup_dir=False),
                also={"schedule": schedule} if also else None,
            )  # fmt: skip
            if restore is not None:
                restore(schedule, adapter.scheduler.global_step)
            with contextlib.suppress(Killed):
                for _ in adapter.epochs():
                    for x, y in adapter.batches():
                        optimizer.zero_grad()
                        loss = mse_loss(model(x), y)
                        if adapter.report(loss):
                            if set_rate is not None:
                                set_rate(optimizer, schedule, adapter.scheduler.global_step)
                            loss.backward()
                            optimizer.step()
                            if schedule is not None and not by_epoch:
                                schedule.step()
                        if adapter.scheduler.global_step == until:
                            raise Killed
                    if by_epoch:
                        schedule.step()
        said.append([str(each.message) for each in caught if "starts over" in str(each.message)])
    return said


STARTED_OVER = {
    "one cycle": (lambda each: lr_scheduler.OneCycleLR(each, 0.1, total_steps=50), {}),
    "in the first epoch": (lambda each: lr_scheduler.OneCycleLR(each, 0.1, total_steps=50), {"kill_at": 8}),
    "warm-up, then another": (
        lambda each: lr_scheduler.SequentialLR(
            each, [lr_scheduler.LinearLR(each, 0.1), lr_scheduler.CosineAnnealingLR(each, 9)], [5]
        ),
        {},
    ),
    "chain": (
        lambda each: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(each), lr_scheduler.StepLR(each, 9)]),
        {},
    ),
    "by epochs": (lambda each: lr_scheduler.StepLR(each, 4), {"by_epoch": True}),
    "by epochs, at the end of one": (lambda each: lr_scheduler.StepLR(each, 4), {"by_epoch": True, "kill_at": 30}),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("make", "more"), STARTED_OVER.values(), ids=STARTED_OVER)
def test_a_schedule_that_starts_over_on_resume_is_warned_of_once(make, more, tmp_path):
    """Where it is not among also=, and in a resumed run only."""
    fresh, later = resumed(tmp_path, make, also=False, **more)
    assert fresh == []
    (text,) = later
    assert type(make(parts()[1])).__name__ in text
    assert 'also={"schedule": schedule}' in text


def cosine_of(optimizer, _, step):
    optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(step / 50 * math.pi)) / 2


WENT_ON = {
    "kept": {"make": STARTED_OVER["one cycle"][0], "also": True},
    "a chain, kept": {"make": STARTED_OVER["chain"][0], "also": True},
    "by epochs, kept": {"make": STARTED_OVER["by epochs"][0], "by_epoch": True, "also": True},
    "a function of the step": {"make": lambda _: None, "set_rate": cosine_of},
    "none": {"make": lambda _: None},
    "set by the step": {
        "make": lambda each: lr_scheduler.CosineAnnealingWarmRestarts(each, 2),
        "set_rate": lambda _, schedule, step: schedule.step(step / 10),
        "by_epoch": True,
        "kill_at": 17,
    },
    "stepped anew": {
        "make": lambda each: lr_scheduler.OneCycleLR(each, 0.1, total_steps=51),
        "restore": lambda schedule, step: [schedule.step() for _ in range(step)],
    },
    "recursive": {"make": lambda each: lr_scheduler.ExponentialLR(each, 0.9)},
    "by epochs, in the first": {"make": lambda each: lr_scheduler.StepLR(each, 1), "by_epoch": True, "kill_at": 8},
    "by epochs, over the end of one": {
        "make": lambda each: lr_scheduler.StepLR(each, 1),
        "by_epoch": True,
        "every": 9,
        "kill_at": 19,
        "restore": lambda schedule, step: schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step // 10}),
    },
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("given", WENT_ON.values(), ids=WENT_ON)
def test_a_rate_that_goes_on_is_not_warned_of(given, tmp_path):
    """One that R8 keeps among also=, and one that the program sets or restores by itself."""
    assert resumed(tmp_path, **{"also": False, **given})[1] == []


def test_what_accelerate_wraps_around_a_schedule_is_among_the_parts():
    """Its AcceleratedScheduler holds the schedule."""
    model, optimizer = parts()
    schedule = lr_scheduler.StepLR(optimizer, 1)
    wrapped = types.SimpleNamespace(
        scheduler=schedule, state_dict=schedule.state_dict, load_state_dict=schedule.load_state_dict
    )
    state = attached(model, optimizer, also={"schedule": wrapped}).state

    assert state.holds(schedule)
    assert state.holds(wrapped)
    assert not state.holds(lr_scheduler.StepLR(optimizer, 1))
