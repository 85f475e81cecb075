import math
import warnings

import numpy as np
import pytest
import torch
from drive import (
    INF,
    NAN,
    FakeClock,
    TickingClock,
    advance_to,
    batch_loss,
    flat,
    known,
    make,
    sample_losses,
    steps,
    train,
)
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import Policy, R8Scheduler, events
from learnit_r8.guard import Verdict

POLICIES = ["balanced", "quartile", "shuffle", "match_mean", "steady"]


def test_first_epoch_takes_every_sample_once():
    """The first epoch draws every sample exactly once, in random order."""
    seen = [batch for epoch, batch, _ in train(make(50, batch_size=8)) if epoch == 0]

    assert sorted(flat(seen)) == list(range(50))
    assert flat(seen) != list(range(50))


def test_batches_are_int64_arrays():
    """A batch is an int64 array of B samples, fewer in the short last one."""
    r8 = make(10, num_epochs=1)
    batches = [indices for _, indices, _ in steps(r8) if r8.update_with_loss(1.0)]

    assert [(type(batch), batch.dtype, batch.shape) for batch in batches] == [
        (np.ndarray, np.int64, (4,)), (np.ndarray, np.int64, (4,)), (np.ndarray, np.int64, (2,))
    ]  # fmt: skip


@pytest.mark.parametrize(("last_batch", "lengths"), [("short", [4, 4, 2]), ("drop", [4, 4]), ("fill", [4, 4, 4])])
def test_last_batch(last_batch, lengths):
    """The last batch of an epoch is short, dropped, or filled up."""
    seen = train(make(10, num_epochs=1, last_batch=last_batch))

    assert [len(batch) for _, batch, _ in seen] == lengths


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("num_samples", "batch_size"), [(1, 1), (1, 5), (3, 5), (7, 1), (7, 2), (7, 3), (10, 4), (4, 4)]
)
def test_odd_sizes_train(num_samples, batch_size, policy):
    """One sample, batches larger than the data, of one, and of no divisor: all run to their end."""
    r8 = make(num_samples, batch_size=batch_size, num_epochs=3, policy=policy)
    seen = train(r8)

    assert len(seen) == r8.total_steps == 3 * math.ceil(num_samples / batch_size)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("loss", [1.0, 0.0, -3.0, 1e-30, 1e30])
def test_constant_losses_train(loss, policy):
    """Equal, zero, negative, tiny and huge losses are learned from and stay finite."""
    r8 = make(10, num_epochs=3, policy=policy)
    for _ in steps(r8):
        assert r8.update_with_loss(loss)

    assert np.isfinite(r8.table.loss[r8.table.usage_count > 0]).all()


@pytest.mark.parametrize(("epochs", "total"), [(1, 3), (2, 6), (0.5, 2), (1.4, 5), (0.01, 1)])
def test_total_steps_round_up(epochs, total):
    """total_steps is ceil(num_epochs * steps_per_epoch), and the run takes exactly that many."""
    r8 = make(10, num_epochs=epochs)

    assert (r8.total_steps, len(train(r8)), r8.progress) == (total, total, 1.0)


def test_fractional_epochs_number_epochs():
    """A fraction of an epoch at the end is an epoch of its own, begun and not finished."""
    heard = []
    seen = train(make(10, num_epochs=1.5, listeners=[heard.append]))

    assert [epoch for epoch, _, _ in seen] == [0, 0, 0, 1, 1]
    assert sum(isinstance(event, events.EpochDone) for event in heard) == 1


def test_num_steps_may_end_in_mid_epoch():
    """A budget of steps ends the run at that step."""
    r8 = make(10, num_steps=7)

    assert [epoch for epoch, _, _ in train(r8)] == [0, 0, 0, 1, 1, 1, 2]
    assert (r8.phase, list(r8.epoch_iterator()), list(r8.batch_iterator())) == ("finished", [], [])


def test_break_goes_on_in_the_same_epoch():
    """After a break, both iterators go on in the epoch that was left, with the batches that were left."""
    r8 = make(12, num_epochs=2)
    seen, epochs = [], []
    for epoch in r8.epoch_iterator():
        epochs.append(epoch)
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            seen.append(indices.tolist())
            if r8.global_step % 2 == 1:
                break

    assert epochs == [0, 0, 1, 1]
    assert [sorted(flat(seen[:3])), sorted(flat(seen[3:]))] == [list(range(12))] * 2


def test_break_with_an_open_batch_loses_nothing():
    """A batch that was open at a break comes again in the same epoch."""
    r8 = make(12, num_epochs=1)
    for _ in r8.batch_iterator():
        break
    with pytest.warns(RuntimeWarning, match="was not reported"):
        seen = train(r8)

    assert sorted(flat(batch for _, batch, _ in seen)) == list(range(12))


def test_unreported_batch_comes_once_more_at_the_end_of_the_epoch():
    """A batch given up by asking for the next is drawn again last in its epoch, and warned about once in the run."""
    r8 = make(16, num_epochs=1)
    seen = []

    def train_but_two():
        for indices, _ in r8.batch_iterator():
            seen.append(indices.tolist())
            if len(seen) in (1, 3):
                continue
            r8.update_with_loss(1.0)

    with pytest.warns(
        RuntimeWarning, match=r"the batch of step 0 was not reported with update_with_loss\(\)"
    ) as caught:
        train_but_two()

    assert (len(caught), len(seen)) == (1, 6)
    assert [seen[4], seen[5]] == [seen[0], seen[2]]
    assert r8.table.usage_count.tolist() == [1] * 16
    assert (r8.global_step, r8.plan.abandoned) == (4, 2)


def test_batch_abandoned_twice_is_a_refused_step():
    """A batch not reported the second time either counts as a step and teaches nothing; the run ends."""
    heard = []
    r8 = make(12, num_epochs=1, listeners=[heard.append])
    seen = []

    def train_but_one():
        for _, indices, _ in steps(r8):
            seen.append(indices.tolist())
            if indices.tolist() != seen[0]:
                r8.update_with_loss(1.0)

    with pytest.warns(RuntimeWarning, match="was not reported"):
        train_but_one()
    abandoned = [event.drawn_again for event in heard if isinstance(event, events.BatchAbandoned)]

    assert (len(seen), r8.global_step, r8.progress) == (4, 3, 1.0)
    assert abandoned == [True, False]
    assert sorted(np.flatnonzero(r8.table.usage_count == 0).tolist()) == sorted(seen[0])


def test_run_that_never_reports_ends():
    """A loop that never calls update_with_loss() ends after drawing everything twice."""
    r8 = make(12, num_epochs=2)
    with pytest.warns(RuntimeWarning, match="was not reported") as caught:
        count = sum(1 for _ in steps(r8))

    assert (count, r8.global_step, len(caught)) == (12, 6, 1)


def test_search_that_never_reports_ends():
    """A search for a learning rate whose batches are never reported ends with an error after its number of steps."""
    r8 = make(12, num_epochs=2, auto_find_lr=True, load_callback=print, state_callback=dict)
    drawn = []

    def train():
        for step in steps(r8):
            drawn.append(step)

    with pytest.raises(
        RuntimeError, match="auto_find_lr needs at least 8 good losses to begin with, got 0 in 50 steps"
    ):
        train()

    assert len(drawn) == 50


def test_update_without_a_batch_is_an_error():
    """update_with_loss() before any batch, and twice for one batch, is a RuntimeError that changes nothing."""
    r8 = make()
    with pytest.raises(
        RuntimeError, match=r"update_with_loss\(\) was called at step 0 with no batch open; draw one first"
    ):
        r8.update_with_loss(1.0)
    next(r8.batch_iterator())
    r8.update_with_loss(1.0)
    with pytest.raises(RuntimeError, match=r"update_with_loss\(\) was called at step 1 with no batch open"):
        r8.update_with_loss(1.0)

    assert r8.global_step == 1


WRONG_LOSSES = [
    (None, TypeError, "loss must be a real number, or an array or tensor of them, got None"),
    ("0.5", TypeError, "loss must be a real number, .* got '0.5'"),
    (1 + 2j, TypeError, r"loss must be a real number, .* got \(1\+2j\)"),
    (True, TypeError, "loss must be a real number, .* got True"),
    ([1.0, "x", 2.0, 3.0], TypeError, "loss must be a real number"),
    ({"loss": 1.0}, TypeError, "loss must be a real number"),
    (
        [1.0, 2.0],
        ValueError,
        r"loss must be a number or have shape \(4,\), one loss for each of the 4 samples, got shape \(2,\)",
    ),
    ([], ValueError, r"got shape \(0,\)"),
    (np.ones((4, 1)), ValueError, r"got shape \(4, 1\)"),
    (torch.ones(5), ValueError, r"got shape \(5,\)"),
]


@pytest.mark.parametrize(("loss", "kind", "text"), WRONG_LOSSES, ids=lambda value: str(value)[:12])
def test_wrong_loss_changes_nothing(loss, kind, text):
    """A loss of a wrong kind or length is refused, the batch stays open, and everything is as before."""
    r8 = make(clock=FakeClock())
    advance_to(r8, 2)
    next(r8.batch_iterator())
    before = r8.state_dict()
    with pytest.raises(kind, match=text):
        r8.update_with_loss(loss)
    np.testing.assert_equal(r8.state_dict(), before)

    assert r8.update_with_loss(1.0)


@pytest.mark.parametrize("part_size", [0, -1, 1.5, "2"])
def test_part_size_is_a_count(part_size):
    """A part_size below 1, or not whole, is refused by name and value."""
    r8 = make()
    next(r8.batch_iterator())
    with pytest.raises(ValueError, match=f"part_size must be a whole number >= 1, got {part_size!r}"):
        r8.update_with_loss([1.0, 2.0], part_size=part_size)


def test_kind_of_report_is_fixed_by_the_first():
    """A vector after a batch mean is a ValueError that says what was reported first."""
    r8 = make()
    next(r8.batch_iterator())
    r8.update_with_loss(1.0)
    r8.draw()
    with pytest.raises(
        ValueError, match=r"loss must stay of the kind reported first \(one mean per batch\), got one loss per sample"
    ):
        r8.report(r8.draw(), [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    "make_loss",
    [
        float,
        np.float64,
        np.float32,
        np.float16,
        np.array,
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.float16),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, requires_grad=True) * 1.0,
        lambda x: 2 if x == 2.0 else x,
    ],
)
def test_every_framework_s_number_is_a_loss(make_loss):
    """Floats, ints and 0-dim arrays and tensors of every float type mean the same."""
    r8, plain = make(), make()
    for run, loss in ((r8, make_loss(2.0)), (plain, 2.0)):
        run.report(run.draw(), loss)

    np.testing.assert_equal(known(r8), known(plain))


def test_no_graph_is_kept_alive():
    """A reported tensor can be freed: nothing of the scheduler holds it or its graph."""
    import gc
    import weakref

    r8 = make()
    weights = torch.ones(4, requires_grad=True)
    loss = (weights * 2).sum()
    gone = weakref.ref(loss)
    outcome = r8.report(r8.draw(), loss)
    del loss
    gc.collect()

    assert outcome
    assert gone() is None


def test_ticket_is_reported_once():
    """A second report of one ticket is a RuntimeError that changes nothing."""
    r8 = make()
    ticket = r8.draw()
    r8.report(ticket, 1.0)
    with pytest.raises(RuntimeError, match="ticket of step 0 was reported or given up before, or is not of this run"):
        r8.report(ticket, 1.0)

    assert r8.global_step == 1


def test_ticket_belongs_to_its_scheduler():
    """A ticket of another scheduler is refused."""
    r8, other = make(), make()
    r8.draw()
    ticket = other.draw()
    with pytest.raises(RuntimeError, match="is not of this run"):
        r8.report(ticket, 1.0)

    assert (r8.global_step, other.global_step) == (0, 0)


def test_draw_beyond_the_budget_is_an_error():
    """draw() with every remaining step out, or none left, is a RuntimeError with the budget."""
    r8 = make(num_steps=2)
    first, second = r8.draw(), r8.draw()
    with pytest.raises(
        RuntimeError,
        match=r"draw\(\) was called with 2 steps reported or out after .* s, and the budget is Budget\(steps=2",
    ):
        r8.draw()
    r8.report(second, 1.0)
    r8.report(first, 1.0)

    assert r8.phase == "finished"


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 6), st.randoms(use_true_random=False))
def test_tickets_may_come_back_in_any_order(num_samples, batch_size, most_out, random):
    """With several tickets out and reported in any order, an epoch still takes every sample exactly once."""
    r8 = make(num_samples, batch_size=batch_size, num_epochs=2)
    out, seen = [], []
    while r8.pace.next_step < r8.total_steps or out:
        if r8.pace.next_step < r8.total_steps and len(out) < most_out and (not out or random.random() < 0.6):
            out.append(r8.draw())
            seen.append((out[-1].epoch, out[-1].indices.tolist()))
        else:
            ticket = out.pop(random.randrange(len(out)))
            r8.report(ticket, batch_loss(ticket.indices))

    assert [sorted(flat(b for e, b in seen if e == epoch)) for epoch in (0, 1)] == [list(range(num_samples))] * 2
    assert r8.table.usage_count.tolist() == [2] * num_samples


def test_tickets_carry_their_step_and_rate():
    """A ticket tells the step it will be, its epoch, and the rate of that step."""
    r8 = make(num_steps=4, scheduler_mode=lambda progress: 1 + progress)
    tickets = [r8.draw() for _ in range(4)]

    assert [(t.step, t.epoch, t.lr, t.weights) for t in tickets] == [
        (0, 0, 1.0, None), (1, 0, 1.25, None), (2, 0, 1.5, None), (3, 1, 1.75, None)
    ]  # fmt: skip


def test_outcome_is_true_if_the_step_counts():
    """An outcome is truthy for a good loss and falsy for a refused one."""
    r8 = make(load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    good, bad = r8.report(r8.draw(), 1.0), r8.report(r8.draw(), NAN)

    assert (bool(good), good.verdict, good.rolled_back_to) == (True, Verdict.GOOD, None)
    assert (bool(bad), bad.verdict, bad.rolled_back_to) == (False, Verdict.NOT_FINITE, 0)


class Doubled(Policy):
    """A user's policy that weights every sample by two from the second epoch on."""

    name = "doubled"
    selects = True

    def select(self, chunk, context, rng):
        return np.ones(len(chunk.indices), bool), np.full(len(chunk.indices), 2.0, np.float32)


def test_weights_come_with_the_ticket():
    """The weights of a policy reach the user through the ticket."""
    r8 = make(8, policy=Doubled())
    weights = []
    while r8.phase != "finished":
        ticket = r8.draw()
        weights.append(None if ticket.weights is None else ticket.weights.tolist())
        r8.report(ticket, 1.0)

    assert weights == [None, None, [2, 2, 2, 2], [2, 2, 2, 2]]


def test_batch_iterator_refuses_weights():
    """batch_iterator() does not silently drop the weights of a policy."""
    with pytest.raises(
        RuntimeError, match=r"policy .*Doubled.* weights samples: use draw\(\) and report\(\), and ticket.weights"
    ):
        train(make(8, policy=Doubled()))


def test_epoch_without_a_batch_is_an_error():
    """An epoch loop that draws nothing would never end; it is a RuntimeError."""
    with pytest.raises(RuntimeError, match=r"epoch 0 ended with no batch drawn; iterate over batch_iterator\(\)"):
        list(make().epoch_iterator())


def test_overwritten_batch_is_learned_as_drawn():
    """A user who writes into a batch's array does not change what is learned of whom."""
    r8, plain = make(), make()
    for run in (r8, plain):
        for _, indices, _ in steps(run):
            loss = sample_losses(indices)
            if run is r8:
                indices[:] = 0
            run.update_with_loss(loss)

    np.testing.assert_equal(known(r8), known(plain))


@pytest.mark.parametrize("kind", ["mean", "vector", "parts"])
def test_every_kind_of_report_is_told_by_source(kind):
    """The table says where its estimates come from."""
    r8 = make()
    losses = sample_losses(r8.draw().indices)
    ticket = r8.draw()
    assert r8.table.source == "nothing yet"
    if kind == "parts":
        r8.report(ticket, losses[::2], part_size=2)
    else:
        r8.report(ticket, losses if kind == "vector" else 1.0)

    assert r8.table.source == {"mean": "batch means of 4", "vector": "exact", "parts": "parts of 2"}[kind]


def test_same_seed_gives_the_same_run():
    """Two runs with one seed draw the same batches; another seed draws others."""
    runs = [train(make(30, seed=seed)) for seed in (1, 1, 2)]

    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_listeners_and_screen_change_nothing(capsys):
    """With listeners and the log on, a seed gives the same batches, rates and table as without."""
    heard = []
    bad = {2, 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet, loud = make(30, num_epochs=3), make(30, num_epochs=3, use_curses=True, listeners=[heard.append, print])
        assert train(quiet, bad) == train(loud, bad)

    np.testing.assert_equal(known(quiet), known(loud))
    assert heard


def test_global_random_numbers_are_left_alone():
    """A run neither reads nor moves the global generators."""
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    first = train(make(30))
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(4)

    assert train(make(30)) == first


def test_two_schedulers_do_not_meet():
    """Two schedulers used in turn give what each gives alone."""
    alone = [train(make(30, seed=seed, policy=policy)) for seed, policy in ((1, "balanced"), (2, "quartile"))]
    runs = [make(30, seed=1), make(30, seed=2, policy="quartile")]
    together = [[], []]
    for pair in zip(*(steps(run) for run in runs), strict=True):
        for run, seen, (epoch, indices, lr) in zip(runs, together, pair, strict=True):
            seen.append((epoch, indices.tolist(), lr))
            run.update_with_loss(batch_loss(indices))

    assert together == alone


def test_close_twice_tells_once():
    """close() may be called any number of times; the end is told once."""
    heard = []
    r8 = make(listeners=[heard.append])
    r8.close()
    r8.close()

    assert [type(event) for event in heard] == [events.RunEnded]
    assert not heard[0].finished


def test_context_manager_closes():
    """Leaving a `with` block closes the run, also through an exception, which passes on."""
    heard = []

    def interrupted():
        with make(listeners=[heard.append]) as r8:
            advance_to(r8, 1)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    with make(listeners=[heard.append]) as r8:
        train(r8)
    ends = [event for event in heard if isinstance(event, events.RunEnded)]

    assert [(event.step, event.finished) for event in ends] == [(1, False), (6, True)]


def test_phases_of_a_run():
    """A run catalogues, trains, steadies after a refusal, and is finished."""
    r8 = make(64, num_epochs=2, load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    phases = []
    for _, _, _ in steps(r8):
        r8.update_with_loss(NAN if r8.global_step == 20 else 1.0)
        phases.append(r8.phase)

    assert phases == ["cataloguing"] * 15 + ["training"] * 5 + ["steadying"] * 4 + ["training"] * 7 + ["finished"]


def test_summary_is_for_people():
    """The summary names step, phase, refusals and quartiles."""
    r8 = make(load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    train(r8, bad={1})
    lines = r8.summary().splitlines()

    assert lines[0].startswith("step 6 of 6")
    assert "finished" in lines[0]
    assert lines[1].startswith("losses refused: 1; batches not reported: 0")
    assert [line.split()[0] for line in lines[3:]] == ["Q1", "Q2", "Q3", "Q4"]


def test_summary_of_a_time_budget():
    """A summary before the first step of a run without a number of steps is a summary all the same."""
    assert make(train_duration_seconds=9).summary().startswith("step 0 of ?")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), 1])
def test_log_tells_metrics(value):
    """log() hands numbers of any framework to the listeners, with the step."""
    heard = []
    r8 = make(listeners=[heard.append])
    r8.log(accuracy=value)
    r8.log(step=99, loss=NAN)

    assert heard[0] == events.MetricsLogged(0, 0.0, 0, {"accuracy": float(value)})
    assert (heard[1].at_step, str(heard[1].metrics)) == (99, "{'loss': nan}")


@pytest.mark.parametrize("value", ["high", None, 1j])
def test_log_refuses_what_is_no_number(value):
    """A metric that is not a number is a TypeError that names the metric."""
    with pytest.raises(TypeError, match="accuracy must be a real number"):
        make().log(accuracy=value)


def test_log_refuses_several_numbers():
    """A metric of several numbers is a ValueError that names the metric and its shape."""
    with pytest.raises(ValueError, match=r"accuracy must be one number, got shape \(2,\)"):
        make().log(accuracy=[1.0, 2.0])


def timed(seconds, clock, per_step, *, more=None, **arguments):
    """Steps of a run with a time budget whose every step takes per_step seconds."""
    r8 = make(train_duration_seconds=seconds, clock=clock, **arguments)
    count = 0
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(per_step)
            r8.update_with_loss(1.0)
            count += 1
        if more is not None:
            more(r8, epoch)
    return r8, count


@pytest.mark.parametrize(("seconds", "per_step", "count"), [(10, 1, 10), (10, 4, 3), (0.5, 1, 1), (7, 0.5, 14)])
def test_time_budget_ends_on_time(seconds, per_step, count):
    """A time budget ends the run with the step in which the time is up, in mid-epoch, without an error."""
    r8, done = timed(seconds, FakeClock(), per_step)

    assert (done, r8.progress, r8.phase, r8.total_steps) == (count, 1.0, "finished", None)


def test_time_budget_counts_validation():
    """Time between epochs counts towards a time budget."""
    clock = FakeClock()
    _, count = timed(10, clock, 1, more=lambda r8, epoch: clock.advance(2))

    assert count == 6


def test_time_budget_leaves_pauses_out():
    """Time inside paused() does not count towards a time budget."""
    clock = FakeClock()

    def pause(r8, epoch):
        with r8.paused():
            clock.advance(1000)

    _, count = timed(10, clock, 1, more=pause)

    assert count == 10


def test_time_before_the_first_draw_does_not_count():
    """Loading data between building the scheduler and the first batch costs none of the budget."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=3, clock=clock)
    clock.advance(1000)

    assert r8.progress == 0


def test_time_budget_reaches_later_epochs():
    """With a time budget epochs go on counting, and the policy leaves the cataloguing epoch."""
    epochs = []
    timed(10, FakeClock(), 1, more=lambda r8, epoch: epochs.append(epoch))

    assert epochs == [0, 1, 2, 3]


def test_time_that_ends_in_validation_is_no_error():
    """Time that runs out between an epoch's number and its first batch ends the run."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=10, clock=clock)
    epochs = []
    for epoch in r8.epoch_iterator():
        epochs.append(epoch)
        clock.advance(8)
        for _ in r8.batch_iterator():
            clock.advance(1)
            r8.update_with_loss(1.0)

    assert epochs == [0, 1]


@pytest.mark.parametrize("tick", [0.01, 0.3, 0.7, 1.0, 1.7, 2.3])
def test_time_that_ends_between_two_looks_at_the_clock_is_no_error(tick):
    """Whenever time passes, also between asking whether it is up and drawing, the run ends without an error."""
    r8 = make(train_duration_seconds=50, clock=TickingClock(tick))
    for _ in steps(r8):
        r8.update_with_loss(1.0)

    assert r8.progress == 1


def test_time_that_ends_in_a_backup_is_no_error():
    """Time that runs out while a backup is taken ends the run without an error."""
    clock = FakeClock()

    def state():
        clock.advance(4)
        return {}

    r8 = make(train_duration_seconds=10, state_callback=state, backup_every="3s", clock=clock)
    for _ in steps(r8):
        clock.advance(1)
        r8.update_with_loss(1.0)

    assert r8.phase == "finished"


def test_speed_leaves_validation_out():
    """The time of an epoch is from its first draw to its last report, without the validation after it."""
    clock, heard = FakeClock(), []
    r8 = make(num_epochs=2, clock=clock, listeners=[heard.append])
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(1)
            r8.update_with_loss(1.0)
        clock.advance(100)

    assert [event.epoch_seconds for event in heard if isinstance(event, events.EpochDone)] == [3, 3]


def test_expected_loss_is_what_the_table_knew():
    """In the seed's rule the expected loss of a batch is the mean of its samples' averages before it was drawn."""
    heard = []
    r8 = make(8, estimator="additive", listeners=[heard.append])
    expected = []
    for _, indices, _ in steps(r8):
        expected.append(float(r8.table.loss[indices].mean()))
        r8.update_with_loss(batch_loss(indices))
    told = [event.expected_loss for event in heard if isinstance(event, events.StepDone)]

    np.testing.assert_allclose(told, expected, rtol=1e-6)


def test_seed_rule_is_kept_as_written():
    """estimator="additive" is avg += 0.1 * (loss - mean(avg of the batch)), the first loss being the first average."""
    r8 = make(12, num_epochs=3, estimator="additive")
    averages = np.full(12, NAN)
    for number, (_, indices, _) in enumerate(steps(r8)):
        loss = 3.0 / (number + 1)
        first = np.isnan(averages[indices])
        averages[indices] = np.where(first, loss, averages[indices] + 0.1 * (loss - averages[indices].mean()))
        r8.update_with_loss(loss)

    np.testing.assert_allclose(r8.table.avg_loss, averages, rtol=1e-5)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_losses_not_finite_in_a_row_move_no_average(value):
    """Whatever is refused leaves every average finite."""
    r8 = make(64, num_epochs=2, load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    train(r8, bad={17, 18, 25}, value=value)

    assert np.isfinite(r8.table.loss).all()


def test_sizes_may_be_numpy_integers():
    """Sizes that come out of numpy are as good as ints."""
    r8 = R8Scheduler(np.int64(12), batch_size=np.int32(4), num_epochs=2, seed=np.uint8(3))

    assert (r8.total_steps, type(r8.total_steps)) == (6, int)


def test_handed_back_batch_is_drawn_next():
    """A batch handed back untrained is the next one drawn, with the same samples and rate, and counts for nothing."""
    r8 = make()
    ticket = r8.draw()
    r8.hand_back(ticket)
    again = r8.draw()

    assert (again.indices.tolist(), again.lr, again.step) == (ticket.indices.tolist(), ticket.lr, ticket.step)


def test_redrawn_batch_is_as_it_was():
    """What the user writes into the indices of a batch is gone when the batch is drawn again."""
    r8 = make()
    ticket = r8.draw()
    samples = ticket.indices.tolist()
    ticket.indices[:] += 1000
    r8.hand_back(ticket)

    assert r8.draw().indices.tolist() == samples


def test_raising_schedule_loses_no_batch():
    """A schedule of the user's own that raises once costs neither a batch nor a step."""
    answers = iter([0.1, 0.1, ValueError("later")])

    def schedule(progress):
        answer = next(answers, 0.1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    r8 = make(num_epochs=1, scheduler_mode=schedule)
    with pytest.raises(ValueError, match="later"):
        r8.report(r8.draw(), 1.0)
    for _ in steps(r8):
        r8.update_with_loss(1.0)

    assert r8.table.usage_count.tolist() == [1] * 12


def test_single_sample_may_come_squeezed():
    """The loss of a last batch of one sample may have lost its dimension."""
    r8 = make(5, num_epochs=1)
    for _, indices, _ in steps(r8):
        losses = np.full(len(indices), 2.0)
        r8.update_with_loss(losses if len(indices) > 1 else losses.squeeze())

    assert r8.table.loss.tolist() == [2.0] * 5


def test_damaged_state_is_refused_whole():
    """A state with a part missing inside changes nothing."""
    r8, other = make(), make()
    other.report(other.draw(), 1.0)
    state = other.state_dict()
    del state["plan"]["sweep"]
    before = repr(r8.state_dict())

    with pytest.raises(ValueError, match="state must be what state_dict\\(\\) returned, got a damaged one"):
        r8.load_state_dict(state)
    assert repr(r8.state_dict()) == before
    with pytest.raises(ValueError, match=r"\(format 1\), got format 99"):
        r8.load_state_dict({**other.state_dict(), "format": 99})


def test_groups_are_not_ignored():
    """Groups under a policy that has no use for them are refused."""
    with pytest.raises(
        ValueError, match="groups need policy='balanced', 'match_mean' or your own to use them, got 'shuffle'"
    ):
        make(groups=[0, 1] * 6, policy="shuffle")


def test_report_takes_tickets_only():
    """Anything but a ticket is a TypeError."""
    with pytest.raises(TypeError, match=r"ticket must be what draw\(\) returned, got 3"):
        make().report(3, 1.0)


def test_repr_says_where_the_run_stands():
    """The scheduler's repr tells step, phase and rate."""
    assert (
        repr(make(scheduler_mode="constant", warmup_proportion=0)) == "R8Scheduler(step 0 of 6, cataloguing, lr=0.01)"
    )
