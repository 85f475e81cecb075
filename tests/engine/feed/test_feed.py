import itertools
import random
import signal
import warnings

import numpy as np
import pytest

from learnit_r8 import OwnBatches, R8Scheduler, RateShape
from learnit_r8.engine.settings import grouped
from learnit_r8.events import BatchRefused, EpochDone, Notice, RunStarted, SamplesSurveyed, StepDone
from learnit_r8.testing import FakeClock, record_events
from learnit_r8.triggers import Elapsed
from tests.drive import Weights

from .drive import Line, Loader, seed_all, train

QUIET = {"handle_signals": False, "scheduler_mode": "keep"}


def run(loader, *, loss=1.0, r8=None, **settings):
    """Train on a loader, and return the scheduler and the batches."""
    r8 = R8Scheduler(**grouped({**QUIET, **settings})) if r8 is None else r8
    seen = []
    for _ in r8.epoch_iterator():
        for batch in r8.batches(loader):
            if batch == "error":
                raise ZeroDivisionError
            seen.append(batch)
            r8.update_with_loss(loss)
    return r8, seen


@pytest.mark.parametrize(("budget", "gap"), [({"num_steps": 80}, 10), ({"num_steps": 1200}, 30), ({}, 100)])
def test_backups_without_epochs_fit_a_short_run(budget, gap):
    """Where nobody knows the length of an epoch, a short run has some forty backups at least, ten steps apart."""
    r8 = R8Scheduler(**grouped(dict(**QUIET, **budget)), state_callback=lambda: {"w": np.zeros(2)}, load_callback=print)
    when = r8.host.persistence.backup_timer.when

    assert [step for step in range(1, 221) if when(Elapsed(step, last_steps=step - 1))] == list(range(gap, 221, gap))


def test_batches_are_handed_on_as_they_are():
    """Items of any kind come out unchanged, the very same objects."""
    items = [object(), None, "text", {"a": np.zeros(2)}, [1, 2]]
    _, seen = run(items, num_epochs=1)

    assert all(one is other for one, other in zip(seen, items, strict=True))


@pytest.mark.parametrize("call", ["batches", "steps", "follow", "epoch_iterator"])
def test_a_loop_after_close_is_told_that_nothing_is_recorded(call):
    """As where the scheduler draws the batches: it may go on, and a warning says so."""
    r8, _ = run([[1.0], [2.0], [3.0]], num_steps=9)
    other = R8Scheduler(**grouped(QUIET), num_steps=9)
    other.close()
    r8.close()
    arguments = [[np.zeros(2)]] if call == "batches" else []

    with pytest.warns(RuntimeWarning, match="the run was closed at step 0: what is trained from here on"):
        next(iter(getattr(other, call)(*arguments))) if call != "follow" else other.follow()
    with pytest.warns(RuntimeWarning, match="the budget was spent at step 9") as said:
        assert not list(r8.batches([np.zeros(2)]))
    assert len(said) == 1


def test_nothing_is_asked_for_before_the_loop_asks():
    """The iterable is begun once an epoch, and an item is taken only when the loop asks for it."""
    taken = []

    def stream():
        for number in itertools.count():
            taken.append(number)
            yield number

    r8 = R8Scheduler(num_steps=3, **grouped(QUIET))
    for batch in r8.batches(stream()):
        assert taken == list(range(batch + 1))
        r8.update_with_loss(1.0)

    assert taken == [0, 1, 2]


def test_length_and_attributes_are_those_of_the_loader():
    """``len()``, ``set_epoch()`` and every attribute go to the loader; one that it lacks is an AttributeError."""
    loader = Loader(5)
    batches = R8Scheduler(num_epochs=1, **grouped(QUIET)).batches(loader)
    batches.set_epoch(3)

    assert len(batches) == 5
    assert loader.epoch == 3
    with pytest.raises(AttributeError, match="no_such"):
        _ = batches.no_such


# Epochs and budgets.


def test_an_epoch_is_one_run_through_the_iterable():
    """Of runs of different lengths each is an epoch, and listeners hear of its end."""
    heard = []
    lengths = iter([3, 1, 5])
    r8 = R8Scheduler(num_epochs=3, listeners=[heard.append], **grouped(QUIET))
    numbers = []
    for epoch in r8.epoch_iterator():
        for _ in r8.batches([[0.0]] * next(lengths)):
            numbers.append((epoch, r8.current_epoch))
            r8.update_with_loss(1.0)

    assert numbers == [(0, 0)] * 3 + [(1, 1)] + [(2, 2)] * 5
    assert [event.epoch for event in heard if isinstance(event, EpochDone)] == [0, 1, 2]
    assert [event.samples for event in heard if isinstance(event, EpochDone)] == [3, 1, 5]
    assert r8.is_over


def test_the_epoch_begins_where_its_number_is_given():
    """Code between the head of the loop and the first batch, as ``set_epoch``, reads the epoch that comes."""
    r8 = R8Scheduler(num_epochs=3, **grouped(QUIET))
    numbers = []
    for epoch in r8.epoch_iterator():
        numbers.append((epoch, r8.current_epoch))
        for _ in r8.batches([1, 2]):
            r8.update_with_loss(1.0)
        # What is validated here belongs to the epoch that has ended.
        numbers.append((epoch, r8.current_epoch))

    assert numbers == [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)]
    assert r8.current_epoch == 2


@pytest.mark.parametrize(("last", "position"), [(2, "step 6, finished"), (1, "step 5 of ?, stopped")])
def test_a_break_in_the_last_batch_of_all_leaves_a_run_that_has_finished(last, position):
    """A loop that is left in its last batch has trained on all of them; one that is left before has been stopped."""
    r8 = R8Scheduler(**grouped(QUIET), num_epochs=2)
    for epoch in range(2):
        for number, _ in enumerate(r8.batches(["a", "b", "c"])):
            r8.update_with_loss(1.0)
            if epoch and number == last:
                break
    r8.close()

    assert r8.summary().startswith(position)


def test_own_loop_over_epochs_counts_the_same():
    """With a ``range`` of one's own, current_epoch is its number."""
    r8 = R8Scheduler(num_epochs=3, **grouped(QUIET))
    for epoch in range(3):
        for _ in r8.batches([1, 2]):
            r8.update_with_loss(1.0)
            assert r8.current_epoch == epoch
        assert r8.current_epoch == epoch

    assert r8.global_step == 6


@pytest.mark.parametrize("last", [1, 3])
def test_a_loop_over_epochs_goes_on_with_the_next_after_a_break(last):
    """Each number comes once, as with a ``range``, and no empty epoch follows the last."""
    r8 = R8Scheduler(num_epochs=3, **grouped(QUIET))
    seen = []
    for epoch in r8.epoch_iterator():
        seen.append(epoch)
        for batch in r8.batches([1, 2, 3]):
            r8.update_with_loss(1.0)
            if batch == last:
                break

    assert seen == [0, 1, 2]
    assert (r8.global_step, r8.phase) == (3 * last, "finished")


def test_a_pass_that_is_left_by_a_break_was_an_epoch():
    """After a break the next loop begins the iterable anew, as without R8; nothing is said of the batch it stood at."""
    r8 = R8Scheduler(num_epochs=5, **grouped(QUIET))
    seen = []
    for _ in range(3):
        for batch in r8.batches([1, 2, 3]):
            if batch == 3:
                break
            seen.append((r8.current_epoch, batch))
            r8.update_with_loss(1.0)

    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert r8.global_step == 6


@pytest.mark.usefixtures("python_handles_ctrl_c")
@pytest.mark.parametrize("head", ["epoch_iterator", "range"])
def test_a_loop_that_ctrl_c_has_ended_goes_on_within_its_epoch(head):
    """Run again, as a cell of a notebook is, the loop goes on to the bit as if nothing had come between; twice."""
    line, loader, rates = Line(), Loader(), []
    seed_all()
    r8 = R8Scheduler(num_epochs=4, scheduler_mode="keep")

    def loop(stop_at=None):
        numbers = r8.epoch_iterator() if head == "epoch_iterator" else range(r8.current_epoch, 4)
        for epoch in numbers:
            for batch in r8.batches(loader):
                rates.append((epoch, r8.current_epoch, r8.step_in_epoch))
                if r8.update_with_loss(line.loss(batch)):
                    line.step(0.02)
                if r8.global_step == stop_at:
                    signal.raise_signal(signal.SIGINT)

    for stop_at in (40, 75):
        with pytest.raises(KeyboardInterrupt):
            loop(stop_at)
    loop()
    plain, seen = Line(), []
    seed_all()
    for epoch in range(4):
        for number, batch in enumerate(Loader()):
            seen.append((epoch, epoch, number))
            plain.loss(batch)
            plain.step(0.02)

    assert r8.global_step == 120
    assert rates == seen
    np.testing.assert_array_equal(line.weights, plain.weights)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_an_iterator_goes_on_by_itself_after_ctrl_c():
    """Nothing of it is skipped, as it has its place."""

    def stream():
        for number in range(8):
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            yield number

    r8, numbers = R8Scheduler(num_steps=6, scheduler_mode="keep"), stream()
    with pytest.raises(KeyboardInterrupt):
        run(numbers, r8=r8)
    _, seen = run(numbers, r8=r8)

    assert r8.global_step == 6
    assert seen == [4, 5]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"num_steps": 7}, 7),
        ({"num_epochs": 2}, 8),
        ({"num_epochs": 1.5, "steps_per_epoch": 4}, 6),
        ({"num_tokens": 50}, 5),
        ({"train_duration_seconds": 10}, 10),
    ],
)
def test_budget_ends_the_run(budget, steps):
    """Steps, epochs, tokens or seconds; the step that reaches it is the last."""
    clock = FakeClock()
    r8 = R8Scheduler(clock=clock, **grouped(dict(**budget, **QUIET)))
    for _ in r8.epoch_iterator():
        for _ in r8.batches([{"input_ids": np.zeros((2, 5))}] * 4):
            clock.advance(1.0)
            r8.update_with_loss(1.0)

    assert r8.global_step == pytest.approx(steps, abs=1 if "train_duration_seconds" in budget else 0)
    assert r8.progress == 1.0


def test_rates_of_ours_follow_the_steps_of_epochs_that_are_told():
    """With steps_per_epoch the schedule falls over the epochs, and a longer last one is trained to its end."""
    rates = []
    r8 = R8Scheduler(num_epochs=2, batch_size=OwnBatches(steps_per_epoch=4), initial_lr=1.0,
                     scheduler_mode=RateShape("linear", warmup_proportion=0.0),
                     handle_signals=False)  # fmt: skip
    for epoch in r8.epoch_iterator():
        for _ in r8.batches([0] * (4 + epoch)):
            rates.append(r8.lr)
            r8.update_with_loss(1.0)

    assert rates[:8] == pytest.approx([1 - step / 8 for step in range(8)])
    assert len(rates) == 9
    assert rates[8] < 1e-6


def test_steps_ends_with_the_budget():
    """A loop without an iterable ends with the budget, and each report is one step."""
    r8 = R8Scheduler(num_steps=4, **grouped(QUIET))

    assert [(step, bool(r8.update_with_loss(1.0))) for step in r8.steps()] == [
        (0, True),
        (1, True),
        (2, True),
        (3, True),
    ]
    assert r8.is_over


def test_a_report_alone_is_a_step():
    """With neither batches() nor steps() each report is one step; what comes after the budget is not watched."""
    r8 = R8Scheduler(num_steps=2, **grouped(QUIET))
    r8.update_with_loss(1.0)
    r8.update_with_loss(2.0)
    with pytest.warns(RuntimeWarning, match="the run is over at step 2; losses reported from here on are not watched"):
        outcome = r8.update_with_loss(float("nan"))

    assert outcome
    assert r8.global_step == 2


# Rates of one's own.


def test_the_rate_is_what_was_told():
    """r8.lr is NaN before a rate is told, then that rate; views hear it too."""
    heard = []
    r8 = R8Scheduler(num_steps=3, listeners=[heard.append], **grouped(QUIET))
    assert np.isnan(r8.lr)
    for step in r8.steps():
        r8.update_with_loss(1.0, lr=0.1 * (step + 1))

    assert r8.lr == pytest.approx(0.3)
    assert [event.lr for event in heard if isinstance(event, StepDone)] == pytest.approx([0.1, 0.2, 0.3])
    assert r8.lr_factor == 1.0


# Incidents.


def test_the_batch_after_a_backup_is_handed_out_again_where_weights_are_tested():
    """A test is a batch that comes once more, with the same values, and is no batch of the loader."""
    items, line, loader = [], Line(), Loader()
    r8 = R8Scheduler(
        num_epochs=4, state_callback=line.read, load_callback=line.load, **grouped(dict(backup_every=10, **QUIET))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in r8.epoch_iterator():
            for batch in r8.batches(loader):
                if r8.global_step == 50:
                    line.weights = line.weights + 1e3
                items.append(np.array(batch))
                if r8.update_with_loss(line.loss(batch)):
                    line.step(0.02 * r8.lr_factor)

    assert r8.controller.summary()
    # The last batches of the epoch are left out for them.
    assert len(items) == 120 > r8.global_step
    assert all(any(np.array_equal(item, batch) for batch in loader.batches) for item in items)
    assert np.abs(line.weights - line.target).max() < 0.1


class StartsOver(Loader):
    """Its own iterator, which begins anew once it has run out, as loaders written by hand often are."""

    def __init__(self):
        super().__init__()
        self.place, self.order = 0, list(range(len(self.batches)))

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == len(self.batches):
            self.place = 0
            random.shuffle(self.order)
            raise StopIteration
        self.place += 1
        return self.batches[self.order[self.place - 1]]


@pytest.mark.filterwarnings("ignore:.*restored")
def test_a_loader_that_is_an_iterator_and_starts_over_counts_each_epoch(tmp_path):
    """A test of the weights takes one place of its epoch, in any epoch, and a resumed run finds its place in it."""
    settings = dict(num_epochs=4, checkpoint_dir=tmp_path, checkpoint_every=10, resume="auto", **QUIET)

    def turns_of(line, stop_at=None):
        r8 = R8Scheduler(
            state_callback=line.read, load_callback=line.load, save_callback=line.save, **grouped(settings)
        )
        loader, turns = StartsOver(), []
        for _ in r8.epoch_iterator():
            turns.append(0)
            for batch in r8.batches(loader):
                turns[-1] += 1
                if r8.global_step == 70:
                    line.spoil()
                if r8.global_step == stop_at:
                    return r8, turns
                if r8.update_with_loss(line.loss(batch)):
                    line.step(0.02 * r8.lr_factor)
        return r8, turns

    r8, turns = turns_of(Line(), stop_at=95)
    assert r8.controller.summary()
    assert turns[:3] == [30, 30, 30]
    del r8
    r8, turns = turns_of(Line())
    assert r8.is_over
    assert 20 <= turns[0] <= 30
    assert r8.global_step >= 114


@pytest.mark.parametrize("stop_at", [45, 60, 61])
def test_a_loader_that_shuffles_as_it_starts_over_goes_on_in_its_order(stop_at, tmp_path):
    """In place, as an epoch ends: the order is that of the run which was not stopped."""

    def batches_of(stop_at=None, folder=None):
        seed_all()
        more = (
            {"checkpoint_dir": folder, "checkpoint_every": 1, "resume": "auto", "backup_dir": False} if folder else {}
        )
        line = Line()
        r8 = R8Scheduler(
            state_callback=line.read, load_callback=line.load, save_callback=line.save if more else None,
            **grouped(dict(num_epochs=3, **QUIET, **more)),
        )  # fmt: skip
        loader, seen = StartsOver(), []
        for _ in r8.epoch_iterator():
            for batch in r8.batches(loader):
                if r8.global_step == stop_at:
                    return seen
                seen.append(batch)
                r8.update_with_loss(line.loss(batch))
        return seen

    whole = batches_of()
    batches_of(stop_at, tmp_path)
    rest = batches_of(None, tmp_path)

    assert len(whole) == 90
    assert len(rest) in (90 - stop_at, 91 - stop_at)
    assert all(map(np.array_equal, rest, whole[-len(rest) :]))


def test_the_rate_is_a_factor_after_a_restore():
    """Recovery lowers the user's rate for some steps, whatever it is, and gives it back."""
    factors = []

    def spoil(r8, line):
        factors.append(r8.lr_factor)
        if len(factors) == 101:
            line.spoil()

    seed_all()
    with pytest.warns(RuntimeWarning, match="restored"):
        _, _, r8 = train(on_batch=spoil)

    assert min(factors) < 1
    assert r8.lr_factor == 1.0


# Views.


def test_views_say_that_there_is_no_table():
    """The summary says so in one line; the table is there and empty; no survey is made."""
    heard = []
    r8, _ = run([[1.0]] * 3, num_epochs=2, listeners=[heard.append])
    r8.close()

    assert "no table: it is not known which samples these batches hold." in r8.summary().splitlines()
    assert len(r8.table) == 0
    assert r8.table.quartiles() == r8.table.hardest() == []
    assert not r8.table.suspects().indices.size
    assert not [event for event in heard if isinstance(event, SamplesSurveyed)]
    started = next(event for event in heard if isinstance(event, RunStarted))
    assert (started.num_samples, started.batch_size, started.steps_per_epoch) == (0, 0, 0)


def test_losses_of_any_shape_are_reported_by_their_mean():
    """A batch of any size may come with a loss of any shape, another one each time."""
    heard = []
    r8 = R8Scheduler(num_steps=3, listeners=[heard.append], **grouped(QUIET))
    for loss in (1.0, np.array([1.0, 3.0]), np.full((2, 3), 4.0)):
        r8.update_with_loss(loss)

    assert [event.loss for event in heard if isinstance(event, StepDone)] == [1.0, 2.0, 4.0]


# Bad input.


def test_a_loader_that_yields_nothing_is_said():
    """An empty loader is no epoch, and the loop over epochs does not go on for ever."""
    with (
        pytest.warns(RuntimeWarning, match=r"the loader of batches\(\) gave no batch"),
        pytest.raises(RuntimeError, match="epoch 0 ended with no batch reported"),
    ):
        run([], num_epochs=2)


def test_batches_that_are_never_reported_are_said():
    """They count as no steps, and an epoch of them is none."""
    r8 = R8Scheduler(num_epochs=2, **grouped(QUIET))
    with pytest.warns(RuntimeWarning) as said:
        for _ in r8.batches([1, 2, 3]):
            pass

    assert r8.global_step == r8.current_epoch == 0
    assert any("was not reported with update_with_loss(); it counts as no step" in str(each.message) for each in said)
    assert any("an epoch of 3 batches ended with no loss reported" in str(each.message) for each in said)
    assert r8.pace.num_out == r8.pace.passes == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("budget", [{"num_epochs": 2}, {"num_steps": 4}, {}])
def test_a_loop_that_never_reports_ends(budget):
    """Whatever the budget, which nothing would ever spend."""
    r8 = R8Scheduler(**grouped(dict(**budget, **QUIET)))
    looked = (list(r8.batches([1, 2, 3])) for _ in r8.epoch_iterator())
    assert next(looked) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="ended with no batch reported"):
        next(looked)


@pytest.mark.filterwarnings("ignore:the batch of step")
def test_a_look_at_a_batch_is_no_epoch():
    """``next(iter(loader))`` before each epoch takes nothing from the budget, and a break still ends an epoch."""
    r8, seen = R8Scheduler(num_epochs=2, **grouped(QUIET)), []
    batches = r8.batches([1, 2, 3])
    for epoch in r8.epoch_iterator():
        assert next(iter(batches)) == 1
        for batch in batches:
            seen.append((epoch, batch))
            r8.update_with_loss(1.0)

    assert seen == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("count", [3, 6])
def test_a_loader_of_another_length_than_it_says_is_named(count):
    """Every batch is trained on, each epoch ends where the loader does, and it is said once."""
    heard = record_events()
    r8, _ = run(range(count), num_epochs=2, steps_per_epoch=4, listeners=[heard])

    assert r8.global_step == 2 * count
    said = [each.text for each in heard.of(Notice) if "steps_per_epoch" in each.text]
    assert len(said) == 1
    assert said[0].startswith(f"a run through the loader gave {count} batches, where its length or")


@pytest.mark.parametrize("steps_per_epoch", [None, 5])
def test_a_loader_without_an_end_is_named_where_epochs_wait_for_it(steps_per_epoch, monkeypatch):
    """It is said once, and the loop goes on; with a budget in steps nothing is said."""
    monkeypatch.setattr("learnit_r8.engine.feed.feed.LONG_PASS", 10)
    said = []
    for budget in ({"num_epochs": 2, "steps_per_epoch": steps_per_epoch}, {"num_steps": 30}):
        heard = record_events()
        r8 = R8Scheduler(**grouped(dict(**budget, **QUIET)), listeners=[heard])
        for batch in r8.batches(itertools.count()):
            r8.update_with_loss(1.0 + batch % 7)
            if batch == 25:
                break
        said.append([each.text for each in heard.of(Notice) if "size of a batch" not in each.text])

    assert said[1] == []
    assert len(said[0]) == 1
    assert said[0][0].startswith("a run through the loader has given 10 batches so far and not ended")


def test_a_batch_that_is_left_out_uses_no_budget():
    """Neither its tokens nor its step count: the run has as many trained ones as it may, which is said."""
    r8, tokens = R8Scheduler(batch_size=OwnBatches(num_tokens=40), scheduler_mode="keep"), []

    def train():
        for number, _ in enumerate(r8.batches([np.ones(2)] * 9, tokens=10)):
            if number != 1:
                r8.update_with_loss(1.0)
                tokens.append(r8.pace.tokens)

    with pytest.warns(RuntimeWarning, match="it counts as no step and does not come again"):
        train()

    assert tokens == [10, 20, 30, 40]
    assert (r8.global_step, r8.pace.num_out) == (4, 0)


def test_the_end_of_an_epoch_ends_an_update():
    """Where the gradients of two batches make an update, the last of three is a witness alone."""
    model = Weights()
    calls = {"state_callback": model.get, "load_callback": model.load}
    r8 = R8Scheduler(num_epochs=2, **grouped(dict(backup_every=2, scheduler_mode="keep", **calls)))
    r8.host.backup.witness_size = 2
    for _ in range(2):
        for _ in r8.batches([1, 2, 3]):
            r8.update_with_loss(1.0)
    witnesses = {each.step: each.witness for each in r8.host.backup.backups}

    assert (witnesses[0], witnesses[2]) == ([1, 2], [3])


def test_two_loops_at_once_are_refused():
    """The newer loop has the run; the older one is told so when it asks."""
    r8 = R8Scheduler(num_steps=20, **grouped(QUIET))
    batches = r8.batches([1, 2, 3])
    older, newer = iter(batches), iter(batches)
    next(older)
    r8.update_with_loss(1.0)
    next(newer)
    r8.update_with_loss(1.0)
    with pytest.raises(RuntimeError, match="an iteration that another one has replaced"):
        next(older)
    assert next(newer) == 2


def test_a_batch_is_reported_once():
    """A second report of a batch is named."""
    r8 = R8Scheduler(num_steps=9, **grouped(QUIET))
    for _ in r8.batches([1, 2]):
        r8.update_with_loss(1.0)
        with pytest.raises(RuntimeError, match="the last one was reported already"):
            r8.update_with_loss(1.0)

    assert r8.global_step == 2


def test_an_exception_in_the_loop_leaves_a_whole_run():
    """The loop can be entered again, and goes on with a new run through the loader."""
    r8 = R8Scheduler(num_epochs=2, **grouped(QUIET))
    with pytest.raises(ZeroDivisionError):
        run([1, "error"], r8=r8)
    run([1, 2], r8=r8)

    assert r8.global_step == 3
    assert r8.pace.num_out == 0


def test_a_ceiling_is_told_as_a_share_of_the_users_rate():
    """With rates of one's own a limit is no rate, and the summary does not give it for one."""
    kept, set_here = R8Scheduler(num_steps=3, **grouped(QUIET)), R8Scheduler(num_steps=3, handle_signals=False)
    for r8 in (kept, set_here):
        r8.controller.limit.lower(1.0, by=10)

    assert "learning rate at most 0.1 of yours" in kept.summary()
    assert "learning rate at most 0.1 since step 0, as" in set_here.summary()


@pytest.mark.filterwarnings("ignore:a loss was refused, and there is nothing to restore")
@pytest.mark.parametrize("told", [0.3, None])
def test_a_refusal_tells_the_rate_that_is_the_users(told):
    """Not the share of it that recovery uses; NaN where it is not told."""
    heard = []
    r8 = R8Scheduler(num_steps=6, listeners=[heard.append], **grouped(QUIET))
    for step in r8.steps():
        r8.update_with_loss(float("nan") if step == 4 else 1.0, lr=told)
    refused = [event for event in heard if isinstance(event, BatchRefused)]

    assert len(refused) == 1
    assert [refused[0].lr, refused[0].next_lr] == pytest.approx([told or np.nan] * 2, nan_ok=True)


def test_a_trainer_counts_its_epochs():
    """Where a trainer says which epoch begins, the run is in that one, however many it has seen itself."""
    r8 = R8Scheduler(num_epochs=9, scheduler_mode="keep")
    batches = r8.follow()
    for number in (0, 1, 5):
        batches.begin_run()
        batches.begin_pass(number)
        batches.begin(np.ones(2))
        r8.update_with_loss(1.0)
        batches.end_pass()
        assert r8.current_epoch == number
    batches.end_run()


@pytest.mark.parametrize("iterates", [True, False])
def test_a_resumed_loop_without_a_loader_hears_that_its_first_batch_came_too_early(iterates, tmp_path, recwarn):
    """Over steps() the batches are those of the unbroken run; else one is left out, one comes twice, and it is said."""

    def drawn(folder, most):
        r8 = R8Scheduler(num_steps=12, checkpoint_dir=folder, checkpoint_every=3, resume="auto", **QUIET)
        batches = []
        for _ in r8.steps() if iterates else range(12 - r8.global_step):
            batches.append(np.random.rand())
            r8.update_with_loss(1.0)
            if len(batches) == most:
                break
        r8.close()
        return batches

    seed_all()
    whole = drawn(tmp_path / "whole", 99)
    seed_all()
    first = drawn(tmp_path / "cut", 7)
    np.random.seed(99)
    rest = drawn(tmp_path / "cut", 99)

    said = any("does not iterate over steps()" in str(each.message) for each in recwarn)
    assert (first + rest == whole, said) == (iterates, not iterates)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("hurt_at", [None, 100, 102, 150])
def test_a_batch_of_another_stage_is_not_handed_out(hurt_at):
    """A training in stages, whose batches have other shapes, gets those of its own stage, healthy or not."""
    rng = np.random.default_rng(0)
    model, true = {"w": np.zeros(8)}, rng.normal(size=8)
    r8 = built(num_steps=200, scheduler_mode="keep", state_callback=lambda: model, load_callback=model.update)
    for size in (4, 8):
        for batch in r8.batches([rng.normal(size=(32, size)) for _ in range(100)]):
            assert batch.shape[1] == size
            if r8.global_step == hurt_at:
                model["w"], hurt_at = model["w"] * np.nan, None
            error = batch @ (model["w"] - true)[:size]
            if r8.update_with_loss((error**2).mean()):
                model["w"] = model["w"] - np.pad(0.05 * batch.T @ error / 32, (0, 8 - size))

    assert np.isfinite(model["w"]).all()


def built(*samples, **settings):
    return R8Scheduler(*samples, **grouped({"handle_signals": False, **settings}))


def drawing():
    return built(10, batch_size=2, num_epochs=1)


NEEDS_AN_END = r"needs steps_per_epoch .* num_steps, num_tokens or train_duration_seconds"
# fmt: off
MISTAKES = [
    *[(lambda name=name, value=value: built(num_steps=3, scheduler_mode="keep", **{name: value}), ValueError,
       f"{name} must be left out with scheduler_mode='keep'")
      for name, value in (("initial_lr", 0.1), ("min_lr", 0.001), ("warmup_proportion", 0.1), ("warmup_steps", 5))],
    (lambda: built(num_steps=3).update_with_loss(1.0, lr=0.1), ValueError,
     r"lr is the scheduler's own unless scheduler_mode='keep', got lr=0\.1"),
    *[(lambda name=name, value=value: built(num_steps=3, **{name: value}), ValueError, f"{name} needs num_samples")
      for name, value in (
          ("batch_size", 4), ("policy", "focus"), ("groups", [0, 1]), ("last_batch", "drop"), ("alpha", 0.5),
          ("sample_ids", ["a"]), ("estimator", "additive"), ("auto_find_lr", True))],
    (lambda: built(10, num_epochs=1, batch_size=OwnBatches(keep_witness=False)), ValueError,
     r"batch_size must be a number or TokenBatches\(...\) with num_samples"),
    *[(lambda mode=mode: built(num_epochs=2, scheduler_mode=mode), ValueError, NEEDS_AN_END)
      for mode in ("cosine", "linear", "one_cycle")],
    (lambda: built(num_steps=2, resume_data="fast"), ValueError, "resume_data must be"),
    (lambda: drawing().batches([1]), RuntimeError, r"batches\(\) is for batches of your own"),
    (lambda: drawing().steps(), RuntimeError, r"steps\(\) is for batches of your own"),
    *[(lambda call=call: call(built(num_steps=3)), RuntimeError,
       r"was built without num_samples; iterate over batches\(loader\)")
      for call in (R8Scheduler.draw, R8Scheduler.draw_if_any, lambda r8: next(r8.batch_iterator()))],
    (lambda: built(num_steps=3).batches(5), TypeError, "loader must be an iterable of batches, got 5"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """Settings that would do nothing, and calls of the other kind of run."""
    with pytest.raises(error, match=text):
        act()


def test_a_rate_that_need_not_know_the_end():
    assert built(num_epochs=2, scheduler_mode="wsd").lr > 0
