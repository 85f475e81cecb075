"""SharedRun on ranks that are threads: the rules that do not depend on how messages travel."""

import itertools
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import CheckpointStore, Policy, Recovery, TrainingDiverged
from learnit_r8.bridge import ranks as agreement_module
from learnit_r8.events import CheckpointSaved
from learnit_r8.guard import Verdict
from learnit_r8.recovery import persistence
from learnit_r8.schedules.span import Span
from learnit_r8.state import store
from learnit_r8.testing import record_events
from learnit_r8.torch import RanksDiffer, SharedRun
from learnit_r8.torch.distributed.exchange import slice_of
from tests.drive import INF, NAN, FakeClock, TickingClock, Weights, advance_to, flat, known, make, sample_losses, steps
from tests.rank_common import in_threads


def shares(shared):
    """Every share to the end of the run; the caller reports."""
    for _ in shared.r8.epoch_iterator():
        yield from shared


def follow(shared, bad=(), value=NAN, *, at=None):
    """Train to the end; samples, rate and outcome of each step.

    Args:
        shared: The run of this rank.
        bad: (rank, step) of losses that are ``value``.
        value: That.
        at: By step, what is done before it is reported.
    """
    seen = []
    for share in shares(shared):
        if at and share.ticket.step in at:
            at[share.ticket.step]()
        losses = sample_losses(share.indices)
        if (shared.ranks.rank, share.ticket.step) in bad:
            losses[0] = value
            _spread(shared.r8.host.persistence.callbacks.state, value)
        outcome = shared.report(share.ticket, losses)
        seen.append((share.indices.tolist(), share.lr, outcome))
    return seen


def _spread(get, loss):
    """What the optimizer's step does to the model with a loss that is not finite."""
    if get is not None and not np.isfinite(loss):
        get()["w"][:] = NAN


def alone(num_samples):
    """What one rank knows after three epochs of the same batches, with nothing shared, and their rates."""
    r8, rates = make(num_samples, batch_size=8, num_epochs=3), []
    for _, indices, lr in steps(r8):
        rates.append(lr)
        r8.update_with_loss(sample_losses(indices))
    return known(r8), rates


def healing(weights, **more):
    """A scheduler that can put a model back."""
    more = {"backup_every": 10} | more
    return make(48, batch_size=8, num_epochs=4, state_callback=weights.get, load_callback=weights.load, **more)


def raised(answers):
    """The one kind of error that all ranks raised, and the message of rank 0."""
    assert len({type(answer) for answer in answers}) == 1, answers
    return type(answers[0]), str(answers[0])


@pytest.mark.parametrize(
    ("every", "num_samples", "size"),
    [(1, 48, 2), (3, 48, 2), (16, 48, 2), (None, 48, 2), (3, 50, 2), (None, 49, 4), (3, 5, 4)],
)
def test_tables_and_rates_are_those_of_one_process(every, num_samples, size):
    """Ranks that share batches know bit for bit what one process knows that trains on them alone, at its rates."""
    expected, rates = alone(num_samples)

    def job(ranks):
        shared = SharedRun(make(num_samples, batch_size=8, num_epochs=3), ranks, every=every)
        return [lr for _, lr, _ in follow(shared)], known(shared.r8)

    for used, found in in_threads(size, job):
        assert used == rates
        np.testing.assert_equal(found, expected)


@pytest.mark.parametrize(("count", "size"), [(8, 2), (8, 4), (7, 4), (1, 4), (5, 2)])
def test_slices_are_contiguous_and_equal(count, size):
    """Ranks take equal slices in order; a batch that they do not divide is filled up with its own first samples."""
    batch = np.arange(count)
    slices = in_threads(size, lambda ranks: slice_of(batch, ranks).tolist())

    joined = flat(slices)

    assert {len(part) for part in slices} == {-(-count // size)}
    assert joined[:count] == batch.tolist()
    assert joined[count:] == np.resize(batch, len(joined))[count:].tolist()


def test_losses_are_exchanged_in_bulk():
    """An exchange holds up to 16 steps; an epoch's first and last step have one of their own."""

    def job(ranks):
        shared = SharedRun(make(8 * 100, batch_size=8, num_epochs=2), ranks, every=16)
        follow(shared)
        return shared.exchange.count

    assert in_threads(2, job) == [2 * (1 + 7)] * 2


def test_slow_steps_are_exchanged_at_once():
    """Where a step takes a quarter of a second, its loss is judged before its backward pass."""

    def job(ranks):
        shared = SharedRun(make(8 * 40, batch_size=8, num_epochs=1), ranks)
        seen = []
        for share in shares(shared):
            shared.exchange._began -= 0.3
            seen.append(shared.report(share.ticket, sample_losses(share.indices)).verdict)
        return seen

    [first, second] = in_threads(2, job)

    assert first == second
    assert Verdict.PENDING not in first[16:]


def reported(job, every, num_steps=20, **settings):
    """What ``job(shared, share)`` returns after each report of a run of one epoch, the same on both ranks."""

    def work(ranks):
        shared = SharedRun(make(8 * num_steps, batch_size=8, num_epochs=1, **settings), ranks, every=every)
        return [job(shared, share) for share in shares(shared)]

    [one, other] = in_threads(2, work)
    assert one == other
    return one


def step_after(shared, share):
    """The steps that the scheduler knows of after one more was reported to it."""
    shared.report(share.ticket, sample_losses(share.indices))
    return shared.r8.global_step


def test_what_is_sent_at_one_step_is_read_at_the_next():
    """No step waits for the losses that were sent in it, but the last of an epoch, after which it is to be complete."""
    assert reported(step_after, every=4, num_steps=14) == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 14]


def test_a_verdict_lags_by_at_most_16_steps():
    """With 16 steps in an exchange the oldest loss of it is judged 16 steps after it was computed."""
    known_after = reported(step_after, every=16, num_steps=80)

    lags = [next(after for after, steps in enumerate(known_after) if steps > step) - step for step in range(80)]
    assert max(lags) == 16


def test_losses_are_read_at_once_where_a_backup_is_due():
    """A backup needs that no loss is open: the exchange at its step is read in it, the others a step later."""
    taken = []

    def job(shared, share):
        taken.append([event.step for event in events[shared.ranks.rank] if type(event).__name__ == "BackupTaken"])
        return step_after(shared, share)

    events = {0: [], 1: []}
    weights = Weights()

    def work(ranks):
        callbacks = {
            "state_callback": weights.get,
            "load_callback": weights.load,
            "listeners": [events[ranks.rank].append],
        }
        r8 = make(8 * 30, batch_size=8, num_epochs=1, backup_every=12, **callbacks)
        shared = SharedRun(r8, ranks, every=4)
        return [job(shared, share) for share in shares(shared)]

    [one, other] = in_threads(2, work)

    assert one == other
    assert one[:14] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 12, 12, 12]
    assert taken[-1] == [0, 12, 24]


def test_a_metric_logged_on_one_rank_changes_no_exchange(tmp_path):
    """`log` is each rank's own affair, though it may make a checkpoint due: only rank 0 says when ranks hurry."""

    def job(shared, share):
        if shared.ranks.rank == 1:
            shared.r8.log(accuracy=float(share.ticket.step))
        return step_after(shared, share)

    with pytest.warns(RuntimeWarning, match="monitor"):
        known_after = reported(job, every=4, num_steps=14, checkpoint_dir=tmp_path, monitor="accuracy", mode="max")

    assert known_after == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 14]


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_bad_loss_under_way_makes_the_step_void_in_which_it_is_read(culprit):
    """The ranks train on until the bad loss is read; the steps since, and the one at hand, are left out by all."""

    def work(ranks):
        weights = Weights()
        callbacks = {"state_callback": weights.get, "load_callback": weights.load, "backup_every": 1000}
        r8 = make(8 * 40, batch_size=8, num_epochs=1, **callbacks)
        seen = follow(SharedRun(r8, ranks, every=4), bad={(culprit, 13)})
        return [bool(outcome) for *_, outcome in seen], r8.global_step, r8.sentry.num_refused, known(r8)

    [one, other] = in_threads(2, work)

    # Steps 12 to 15 are sent together, and read in step 16: 13 is refused, 14, 15 and 16 are void, 17 is a probe.
    assert [step for step, counts in enumerate(one[0]) if not counts] == [16, 17]
    assert one[1:3] == (39, 1)
    assert one[3]["usage_count"].sum() == 8 * 35
    np.testing.assert_equal(one[3], other[3])


@pytest.mark.parametrize("last", range(3, 10))
def test_a_break_with_losses_under_way_loses_none(last):
    """A loop that is left while losses are held back or under way goes on with the next batch, and knows them all."""

    def job(ranks):
        shared = SharedRun(make(8 * 20, batch_size=8, num_epochs=1), ranks, every=4)
        seen = []
        for share in shared:
            seen += share.indices.tolist()
            shared.report(share.ticket, sample_losses(share.indices))
            if share.ticket.step == last:
                break
        seen += flat(indices for indices, *_ in follow(shared))
        return seen, shared.r8.table.usage_count.tolist()

    [one, other] = in_threads(2, job)

    assert sorted(one[0] + other[0]) == list(range(160))
    assert one[1] == other[1] == [1] * 160


@pytest.mark.parametrize("every", [1, 3, 16])
@pytest.mark.parametrize("at", [5, 8])
def test_a_state_is_loaded_in_mid_epoch(at, every):
    """Losses held back or under way when a state is loaded are forgotten: the run is that of the state, unbroken."""

    def job(ranks, at):
        shared = SharedRun(make(8 * 20, batch_size=8, num_epochs=2), ranks, every=every)
        saved, seen = None, []
        for share in shares(shared):
            seen.append((share.lr, share.indices.tolist()))
            shared.report(share.ticket, sample_losses(share.indices))
            if len(seen) == 3:
                shared.settle()
                saved = shared.r8.state_dict()
            elif len(seen) == at:
                shared.r8.load_state_dict(saved)
                del seen[3:]
                at = -1
        return known(shared.r8), seen

    expected = in_threads(2, lambda ranks: job(ranks, -1))
    found = in_threads(2, lambda ranks: job(ranks, at))

    np.testing.assert_equal(found, expected)


def test_viewers_see_the_samples_while_losses_are_under_way():
    """A viewer on one rank is shown the samples in mid-epoch, where no step ever ends with every loss known."""

    class Viewer:
        wants_surveys = True

        def __init__(self):
            self.steps = []

        def __call__(self, event):
            if type(event).__name__ == "SamplesSurveyed":
                self.steps.append(event.step)

    viewer = Viewer()

    def job(ranks):
        clock = TickingClock(0.5)
        listeners = [viewer] if ranks.rank == 0 else []
        shared = SharedRun(make(8 * 200, batch_size=8, num_epochs=1, clock=clock, listeners=listeners), ranks, every=4)
        follow(shared)
        return known(shared.r8)

    [one, other] = in_threads(2, job)

    np.testing.assert_equal(one, other)
    assert len([step for step in viewer.steps if step < 200]) > 3


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
@pytest.mark.parametrize("every", [1, 5, 16])
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_bad_loss_on_one_rank_puts_all_back_at_the_same_step(culprit, every):
    """All ranks refuse the same batch, skip the same backward pass, and restore the backup of the same step."""

    def job(ranks):
        weights = Weights()
        events = []
        shared = SharedRun(healing(weights, listeners=[events.append]), ranks, every=every)
        seen = follow(shared, bad={(culprit, 9)})
        restored = [(event.step, event.to_step) for event in events if type(event).__name__ == "RolledBack"]
        return restored, [bool(outcome) for *_, outcome in seen], known(shared.r8), len(weights.loaded)

    [one, other] = in_threads(2, job)

    assert one[0] == other[0]
    assert len(one[0]) == 1
    # Before its probe, and after it has passed; late losses have it span the end of an epoch, for whose validation the
    # present state comes back.
    assert one[3] == other[3] == (4 if every == 16 else 2)
    assert one[1] == other[1]
    np.testing.assert_equal(one[2], other[2])


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_bad_sample_that_comes_again_costs_its_batch_alone(is_resumed, monkeypatch):
    """After a refused loss the ranks judge each at once, in a resumed run, too: no other batch is undone again."""
    # As on a machine where no step is slow.
    monkeypatch.setattr("learnit_r8.torch.distributed.exchange.EXCHANGE_SECONDS", 1e6)
    num_epochs, length = 3, 40

    def job(ranks):
        weights, restored = Weights(), []
        settings = {"num_epochs": num_epochs, "state_callback": weights.get, "load_callback": weights.load}

        def begin():
            r8 = make(8 * length, batch_size=8, backup_every=8, listeners=[restored.append], **settings)
            return SharedRun(r8, ranks)

        shared, skipped = begin(), []
        for epoch in range(num_epochs):
            if epoch and is_resumed:
                state = shared.r8.state_dict()
                shared = begin()
                shared.r8.load_state_dict(state)
            for share in shared:
                is_bad = share.ticket.step % length == 20 and ranks.rank == 1
                outcome = shared.report(share.ticket, sample_losses(share.indices) * (NAN if is_bad else 1.0))
                if is_bad and outcome:
                    weights.get()["w"][:] = NAN
                if not outcome:
                    skipped.append(share.ticket.step)
        restores = [event.step for event in restored if type(event).__name__ == "RolledBack"]
        return skipped, restores, shared.r8.sentry.num_refused

    [(skipped, restores, num_refused), other] = in_threads(2, job)

    assert (skipped, restores, num_refused) == other
    # As the run ends, a probe is drawn.
    assert [step for step in skipped if length <= step < 2 * length + 30] == [length + 20, 2 * length + 20]
    assert num_refused == num_epochs
    assert len(restores) == 1


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
def test_no_rank_skips_a_step_on_its_own_verdict():
    """Until the losses are exchanged the rank with the bad one goes on like the others; these steps are steps, which
    are undone, and nothing is learned of them."""

    def job(ranks):
        shared = SharedRun(healing(Weights()), ranks, every=4)
        seen = follow(shared, bad={(1, 8)})
        skipped = [step for step, (*_, outcome) in enumerate(seen) if not outcome]
        r8 = shared.r8
        return skipped, r8.global_step, r8.sentry.num_refused, int(r8.table.usage_count.sum())

    # Epochs of 6 steps are exchanged after 4 and 6: of 24, step 8 is refused, 9 was trained on, and 10 is a probe.
    assert in_threads(2, job) == [([9, 10], 23, 1, 48 * 4 - 3 * 8)] * 2


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
def test_a_loss_that_stays_bad_ends_all_ranks(tmp_path):
    """All ranks give up together, and the error of the first names the folder of the records."""

    def job(ranks):
        recovery = Recovery(max_refused=8)
        shared = SharedRun(healing(Weights(), checkpoint_dir=tmp_path, recovery=recovery), ranks, every=2)
        for share in shares(shared):
            shared.report(share.ticket, np.full(4, NAN if share.ticket.step > 6 else 1.0))

    one, other = answers = in_threads(2, job)

    assert raised(answers)[0] is TrainingDiverged
    assert str(tmp_path) in str(one)
    assert str(tmp_path) not in str(other)


def test_the_clock_of_rank_0_rules():
    """A budget in seconds ends at the same step everywhere, whatever the other clocks show."""

    def job(ranks):
        clock = TickingClock(0.01 if ranks.rank == 0 else 5.0)
        shared = SharedRun(make(48, batch_size=8, train_duration_seconds=0.4, clock=clock), ranks, every=2)
        followed = follow(shared)
        return len(followed), shared.r8.pace.seconds, [lr for _, lr, _ in followed]

    [one, other] = in_threads(2, job)

    assert one == other
    assert one[0] > 4


def test_timed_backups_are_taken_at_the_same_steps():
    """Triggers in seconds go by the clock of rank 0."""

    def job(ranks):
        events = []
        clock = FakeClock()
        weights = Weights()
        shared = SharedRun(healing(weights, clock=clock, backup_every="3s", listeners=[events.append]), ranks, every=1)
        for share in shares(shared):
            clock.advance(1.0 if ranks.rank == 0 else 100.0)
            shared.report(share.ticket, sample_losses(share.indices))
        return [event.step for event in events if type(event).__name__ == "BackupTaken"]

    [one, other] = in_threads(2, job)

    assert one == other
    assert len(one) >= 3


def test_early_backups_are_taken_at_the_same_steps(monkeypatch):
    """How close they come is decided by the rank whose copies take longest."""
    own = threading.local()

    class Clock:
        """Copies of one rank take .05 s, those of the other no time."""

        @staticmethod
        def perf_counter():
            own.now += own.took
            return own.now

    def job(ranks):
        events, own.now, own.took = [], 0.0, 0.05 * ranks.rank
        settings = {"clock": FakeClock(), "backup_every": None, "listeners": [events.append]}
        shared = SharedRun(healing(Weights(), **settings), ranks, every=1)
        follow(shared)
        return [event.step for event in events if type(event).__name__ == "BackupTaken"]

    monkeypatch.setattr(persistence, "time", Clock)
    taken = in_threads(2, job)

    assert taken == 2 * [[0, 1, 2, 3, 5, 8, 10, 15, 20]]


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_asked_for_on_one_rank_stops_all_after_the_same_step(asked, tmp_path):
    """All ranks stop at the step after which they read the wish; rank 0 has saved by then.

    So it is where one asks who knew the run before the ranks met, as a screen and a journal do.
    """

    def job(ranks):
        r8 = make(48, batch_size=8, num_epochs=4, checkpoint_dir=tmp_path)
        requests, shared = r8.requests, SharedRun(r8, ranks, every=4)
        follow(shared, at={8: lambda: requests.stop("enough")} if ranks.rank == asked else {})
        return shared.r8.global_step, shared.r8.pace.is_stopped

    # The wish is sent after step 10 and read after 11.
    assert in_threads(2, job) == [(11, True)] * 2
    assert (
        make(48, batch_size=8, num_epochs=4, checkpoint_dir=tmp_path).host.saver.store.load().state["pace"]["step"]
        == 11
    )


def test_a_checkpoint_asked_for_on_another_rank_is_written_by_rank_0(tmp_path):
    """Any rank may ask; only rank 0 writes."""

    def job(ranks):
        shared = SharedRun(
            make(48, batch_size=8, num_steps=9, checkpoint_dir=tmp_path / str(ranks.rank)), ranks, every=3
        )
        follow(shared, at={1: shared.r8.requests.save} if ranks.rank == 1 else {})

    in_threads(2, job)

    # After step 3 because it was asked for, then after the epoch, and at the end.
    assert len(list((tmp_path / "0").iterdir())) >= 1
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("way_out", ["resume", "stop"])
def test_a_pause_on_one_rank_pauses_all(way_out):
    """All ranks wait, their time does not count, and go on together."""
    is_waiting = threading.Event()

    def job(ranks):
        clock = FakeClock()
        shared = SharedRun(make(48, batch_size=8, num_steps=12, clock=clock), ranks, every=2)
        requests = shared.r8.requests

        def release():
            is_waiting.wait(20)
            clock.advance(1000.0)
            getattr(requests, way_out)()

        shared.r8.host.announcer.add(lambda event: is_waiting.set() if type(event).__name__ == "RunPaused" else None)
        releaser = threading.Thread(target=release)

        def pause():
            requests.pause("lunch")
            releaser.start()

        follow(shared, at={2: pause} if ranks.rank == 0 else {})
        return shared.r8.global_step, shared.r8.pace.seconds

    [one, other] = in_threads(2, job)

    assert one == other == (12 if way_out == "resume" else 5, 0.0)


@pytest.mark.parametrize(
    ("name", "of_rank"),
    [
        ("seed", lambda rank: {"seed": rank}),
        ("policy", lambda rank: {"policy": ["balanced", "shuffle"][rank]}),
        ("budget", lambda rank: {"num_epochs": 2 + rank}),
        ("learning rates", lambda rank: {"initial_lr": 0.1 + rank}),
        ("groups", lambda rank: {"groups": (np.arange(48) + rank) % 3}),
        ("sample_ids", lambda rank: {"sample_ids": [f"{rank}{number}" for number in range(48)]}),
        ("backup_every", lambda rank: {"backup_every": 8 + rank, "state_callback": Weights().get}),
        (
            "whether backup_every is given",
            lambda rank: {
                "state_callback": Weights().get,
                "backup_every": [None, persistence.usual_interval(6)][rank],
            },
        ),
        ("load_callback", lambda rank: {"load_callback": Weights().load} if rank else {}),
    ],
)
def test_other_arguments_on_another_rank_are_refused(name, of_rank):
    """Schedulers that would not draw the same batches are not shared; the message names the argument and the rank."""
    answers = in_threads(2, lambda ranks: SharedRun(make(48, batch_size=8, **of_rank(ranks.rank)), ranks))

    kind, text = raised(answers)
    assert kind is RanksDiffer
    assert text.startswith(f"{name} must be the same on all ranks")
    assert f"{name} of rank 1 is not that of rank 0" in text


def test_ranks_at_different_steps_are_refused():
    """A rank that was not resumed like the others is found at once."""

    def job(ranks):
        r8 = make(48, batch_size=8)
        if ranks.rank == 1:
            advance_to(r8, 3)
        SharedRun(r8, ranks)

    assert "global_step must be the same" in raised(in_threads(2, job))[1]


def test_a_damaged_table_is_found(monkeypatch):
    """One bit of one sample on one rank is found within 256 steps."""
    monkeypatch.setattr(agreement_module, "WINDOW", 100)
    steps = []

    def job(ranks):
        shared = SharedRun(make(160, batch_size=8, num_epochs=60), ranks)
        for share in shares(shared):
            if share.ticket.step == 317:
                # Whoever looks makes the table learn what it knows so far.
                assert len(shared.r8.table.mean) == 160
                if ranks.rank == 1:
                    shared.r8.table.storage.records.whole["mean"][130] += np.float32(1e-6)
            steps.append(share.ticket.step)
            shared.report(share.ticket, sample_losses(share.indices))

    kind, text = raised(in_threads(2, job))

    assert kind is RanksDiffer
    assert "the tables of all ranks must be equal" in text
    assert max(steps) <= 317 + 2 * 272


def test_other_batches_on_another_rank_are_found():
    """A rank that draws other samples than the rest is found when losses are exchanged."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks)
        if ranks.rank == 1:
            shared.r8.host.source.seed = 5
        follow(shared)

    assert "must draw the same batches" in raised(in_threads(2, job))[1]


def test_a_rank_that_leaves_a_batch_out_is_found():
    """A loop that reports on one rank and not on the other is an error, not a shift of all that follows."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks, every=16)
        with pytest.warns(RuntimeWarning) if ranks.rank else threading.Lock():
            for share in shares(shared):
                if ranks.rank == 0 or share.ticket.step != 2:
                    shared.report(share.ticket, sample_losses(share.indices))

    assert "must exchange losses together" in str(in_threads(2, job)[0])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (lambda rank, step, losses: losses if rank else losses.mean(), "must report one kind of loss"),
        (lambda rank, step, losses: losses if step < 2 else 1.0, "must be of the kind reported first"),
    ],
)
def test_losses_of_another_kind_are_found(kind, text):
    """One rank may not report means where another reports losses of samples, nor all of them from some step on."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks)
        for share in shares(shared):
            shared.report(share.ticket, kind(ranks.rank, share.ticket.step, sample_losses(share.indices)))

    assert text in raised(in_threads(2, job))[1]


def test_a_batch_left_out_on_all_ranks_comes_again():
    """A batch that no rank reports is drawn once more at the end of the epoch."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=1), ranks)
        seen = []
        for share in shares(shared):
            seen.append(share.indices.tolist())
            if len(seen) != 2:
                shared.report(share.ticket, sample_losses(share.indices))
        return seen, shared.r8.table.usage_count.tolist()

    with pytest.warns(RuntimeWarning, match="not reported"):
        answers = in_threads(2, job)

    for seen, uses in answers:
        assert seen[6] == seen[1]
        assert uses == [1] * 48


@pytest.mark.parametrize(("before", "after", "step"), [(4, 2, 3), (2, 4, 6), (1, 4, 9), (4, 1, 6), (2, 4, 9)])
def test_another_number_of_ranks_goes_on_with_the_same_batches(before, after, step):
    """A state says nothing of ranks: resumed on more or fewer, a run has the batches and tables of an unbroken one."""
    expected, _ = alone(48)

    def first(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=3), ranks)
        for share in shares(shared):
            shared.report(share.ticket, sample_losses(share.indices))
            if share.ticket.step == step:
                break
        shared.settle()
        return shared.r8.state_dict()

    state = in_threads(before, first)[0]

    def second(ranks):
        r8 = make(48, batch_size=8, num_epochs=3)
        r8.load_state_dict(state)
        shared = SharedRun(r8, ranks)
        follow(shared)
        return known(shared.r8)

    for found in in_threads(after, second):
        np.testing.assert_equal(found, expected)


@pytest.mark.parametrize(
    ("of_slice", "of_batch", "part_size", "source"),
    [
        (np.mean, lambda losses: np.mean([half.mean() for half in np.split(losses, 2)]), None, "batch means of 8"),
        (lambda losses: losses.reshape(-1, 2).mean(1), lambda losses: losses.reshape(-1, 2).mean(1), 2, "parts of 2"),
    ],
)
def test_means_of_slices_are_those_of_the_batch(of_slice, of_batch, part_size, source):
    """Where only means are reported, or those of parts, the table learns from the batch's, whatever the ranks."""
    r8 = make(48, batch_size=8, num_epochs=2)
    for _, indices, _ in steps(r8):
        r8.update_with_loss(of_batch(sample_losses(indices)), part_size=part_size)

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=2), ranks)
        for share in shares(shared):
            shared.report(share.ticket, of_slice(sample_losses(share.indices)), part_size=part_size)
        return known(shared.r8), shared.r8.table.source

    for found, said in in_threads(2, job):
        np.testing.assert_equal(found, known(r8))
        assert said == source


@pytest.mark.parametrize(
    ("loss", "more", "num_refused"), [(INF, {"skipped": True}, 0), (1.0, {"grad_norm": NAN}, 1)], ids=str
)
def test_what_one_rank_alone_knows_of_a_step_counts(loss, more, num_refused):
    """A loss scaler's overflow is no alarm, and the largest norm of the gradient counts, on whichever rank it is."""

    def job(ranks):
        shared = SharedRun(healing(Weights()), ranks)
        for share in shares(shared):
            losses, is_time = sample_losses(share.indices), share.ticket.step == 7
            given = more if is_time and ranks.rank == 1 else {"grad_norm": 1.0} if "grad_norm" in more else {}
            shared.report(share.ticket, np.full(4, loss) if is_time else losses, **given)
        return shared.r8.sentry.num_refused

    assert in_threads(2, job) == [num_refused] * 2


@dataclass(frozen=True)
class DoubleOdd(Policy):
    """A selection that keeps everything, odd samples at double weight."""

    name = "double_odd"
    selects = True

    def select(self, chunk, context, rng):
        return np.ones(len(chunk.indices), bool), np.where(chunk.indices % 2, 2, 1).astype(np.float32)


def test_weights_go_with_their_samples():
    """Each rank gets the weights of its own slice."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, policy=DoubleOdd()), ranks)
        fits = True
        for share in shares(shared):
            if share.weights is not None:
                fits &= np.array_equal(share.weights, np.where(share.indices % 2, 2, 1))
            shared.report(share.ticket, sample_losses(share.indices))
        return fits

    assert in_threads(2, job) == [True, True]


@pytest.mark.filterwarnings("ignore:.*no test of the weights could be made", "ignore:more than half of the last 100")
def test_all_ranks_restore_the_checkpoint_that_rank_0_names(tmp_path):
    """Where there is no backup, all ranks go back to the same checkpoint, which rank 0 wrote."""

    def job(ranks):
        weights = Weights()
        shared = SharedRun(
            make(
                48, batch_size=8, num_epochs=3, checkpoint_dir=tmp_path, save_callback=_save_zeros,
                load_callback=weights.load,
            ),
            ranks,
        )  # fmt: skip
        follow(shared, bad={(1, 8)})
        return weights.loaded

    [one, other] = in_threads(2, job)

    assert one == other
    assert len(set(one)) == 1
    assert one[0][0].startswith(str(tmp_path))


def _save_zeros(state_dict, filepath):
    with open(filepath, "wb") as file:
        np.save(file, np.zeros(2))


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
def test_a_backup_that_one_rank_cannot_put_back_is_left_by_all(tmp_path):
    """Where the load callback raises on one rank, all ranks go on to the next state, a checkpoint here."""

    def job(ranks):
        weights = Weights()

        def load(source, from_ram=False):
            weights.load(source, from_ram)
            if from_ram and ranks.rank == 1:
                raise OSError("no")

        callbacks = {"save_callback": _save_zeros, "load_callback": load, "state_callback": weights.get}
        settings = {"num_epochs": 3, "checkpoint_dir": tmp_path, "backup_every": 10}
        shared = SharedRun(make(48, batch_size=8, **settings, **callbacks), ranks)
        follow(shared, bad={(1, 8)})
        return [from_ram for _, from_ram in weights.loaded]

    [one, other] = in_threads(2, job)

    assert one == other
    assert one[-1] is False


@pytest.mark.filterwarnings("ignore:.*the weights were damaged", "ignore:more than half of the last 100")
def test_damage_on_one_rank_is_damage_on_all():
    """A state that is not finite on one rank is a backup on none, and all are put back."""

    def job(ranks):
        weights, events = Weights(), []

        def get():
            bad = ranks.rank == 1 and shared.r8.global_step > 0 and not weights.loaded
            return {"w": np.full(2, NAN) if bad else weights.values}

        r8 = make(
            48, batch_size=8, num_epochs=2, state_callback=get, load_callback=weights.load, backup_every=6,
            listeners=[events.append],
        )  # fmt: skip
        shared = SharedRun(r8, ranks)
        for share in itertools.islice(shares(shared), 7):
            shared.report(share.ticket, sample_losses(share.indices))
        return [type(event).__name__ for event in events if "Damage" in type(event).__name__], len(weights.loaded)

    # Before its probe, and after it has passed; it is found as an epoch ends, whose code sees the state that counts.
    assert in_threads(2, job) == [(["DamageFound"], 4)] * 2


def test_all_ranks_load_the_checkpoint_that_rank_0_finds(tmp_path):
    """`load_checkpoint` takes rank 0's newest on all ranks."""
    r8 = make(48, batch_size=8, num_epochs=3, checkpoint_dir=tmp_path)
    advance_to(r8, 4)
    path = r8.save_checkpoint().path
    r8.close()

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=3, checkpoint_dir=tmp_path), ranks)
        shared.r8.load_checkpoint(path if ranks.size == 2 else None)
        return shared.r8.global_step

    assert in_threads(2, job) == [4, 4]
    assert in_threads(4, job) == [4] * 4


@pytest.mark.parametrize(
    ("size", "settings", "text"),
    [
        (3, {}, r"batch_size must be a multiple of the 3 ranks, .*got 8"),
        (2, {"auto_find_lr": True}, "auto_find_lr must be False on several ranks"),
    ],
)
def test_runs_that_cannot_be_shared_are_refused(size, settings, text):
    """Ranks take equal slices, and a search for a rate needs every loss at once."""
    weights = Weights()
    callbacks = {"state_callback": weights.get, "load_callback": weights.load}
    [error, *_] = in_threads(size, lambda ranks: SharedRun(make(48, batch_size=8, **settings, **callbacks), ranks))

    with pytest.raises(ValueError, match=text):
        raise error


@pytest.mark.parametrize(
    ("most", "store", "is_said"), [("3", "True", True), ("3", "False", False), ("0", "True", False)]
)
def test_restarts_that_cannot_meet_are_said(most, store, is_said, monkeypatch):
    """Rank 0 warns of a torchrun that would start all ranks again with the store of the dead ones."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", most)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", store)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        in_threads(2, lambda ranks: SharedRun(make(48, batch_size=8), ranks))

    remedies = ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --standalone" in str(each.message) for each in said]
    assert remedies == [True] * is_said


@pytest.mark.parametrize("every", [0, 17, 2.5, "2"])
def test_every_must_be_in_its_range(every):
    """Verdicts lag by at most 16 steps."""
    with pytest.raises((ValueError, TypeError), match="every must be"):
        SharedRun(make(), every=every)


@pytest.mark.parametrize(
    ("losses", "part_size", "text"),
    [
        ([1.0] * 8, None, "one loss for each of the 4 samples"),
        ([1.0, 1.0], 3, "part_size must divide the 4 samples of a rank, got 3"),
        ("no", None, "must be a real number"),
    ],
)
def test_a_loss_that_does_not_fit_changes_nothing(losses, part_size, text):
    """The mistake is said on the rank that made it, and the batch can be reported still."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=1), ranks)
        for share in shares(shared):
            with pytest.raises((ValueError, TypeError), match=text):
                shared.report(share.ticket, losses, part_size=part_size)
            shared.report(share.ticket, sample_losses(share.indices))
        return shared.r8.global_step

    assert in_threads(2, job) == [6, 6]


@pytest.mark.filterwarnings("ignore:sample 7 was in", "ignore:the loss of sample 7")
@pytest.mark.parametrize("exact", [True, False])
def test_all_ranks_quarantine_the_same_sample(exact):
    """A bad sample that only one rank trains on is quarantined on all, by the same report."""

    def job(ranks):
        weights, told = Weights(), []
        shared = SharedRun(
            make(320, batch_size=8, num_epochs=8, state_callback=weights.get, load_callback=weights.load, listeners=[
                lambda event: told.append(event.step) if type(event).__name__ == "SamplesQuarantined" else None
            ]), ranks,
        )  # fmt: skip
        drawn = []
        for share in shares(shared):
            losses = sample_losses(share.indices)
            losses[share.indices == 7] = NAN
            drawn.append(share.ticket.indices.tolist())
            shared.report(share.ticket, losses if exact else losses.mean())
        return shared.r8.table.quarantined.tolist(), told, drawn

    one, other = in_threads(2, job)

    assert one == other
    assert one[0] == [7]
    assert not any(7 in batch for batch in one[2][-40:])


@pytest.mark.parametrize("asked", [[0], [1], [0, 1]])
@pytest.mark.parametrize("span", [Span("steps", 10), Span("until", 60.0), Span("share", 0.5)])
def test_a_cool_down_asked_for_on_any_rank_begins_on_all_after_the_same_step(asked, span):
    """All ranks have the same rates, bit for bit, and the same end, whatever its unit and their clocks."""

    def job(ranks):
        clock = FakeClock()
        clock.wall = lambda: clock.now + 5 * ranks.rank
        r8 = make(48, batch_size=8, scheduler_mode="wsd", num_epochs=None, clock=clock, warmup_steps=3)
        shared = SharedRun(r8, ranks, every=4)
        if span.unit == "until":
            # Rank 0 has the wall clock that counts.
            shared.r8.pace.clock._offset = 0.0
        rates = []
        for share in shares(shared):
            rates.append(share.lr)
            if ranks.rank in asked and share.ticket.step == 8:
                r8.requests.cool_down(span, "test")
            clock.advance(1 if ranks.rank == 0 else 1.5)
            shared.report(share.ticket, sample_losses(share.indices))
        return r8.global_step, r8.total_steps, rates

    one, other = in_threads(2, job)

    assert one == other
    assert one[1] in (21, 22) if span.unit != "until" else one[1] is None and 50 <= one[0] <= 62
    assert one[0] == one[1] or span.unit == "until"
    assert one[2][-1] < one[2][10]


@pytest.mark.parametrize("asked_on", [(0,), (1,), (0, 1)])
def test_what_was_asked_before_the_ranks_met_is_answered_together(asked_on, tmp_path):
    """A stop, a checkpoint or a cool-down that one rank was asked for in between is none of that rank alone."""

    def job(ranks):
        r8 = make(48, batch_size=8, num_epochs=None, scheduler_mode="wsd", checkpoint_dir=tmp_path / str(ranks.rank))
        if ranks.rank in asked_on:
            r8.requests.save()
            r8.requests.cool_down(Span("steps", 9.0), "test")
        follow(SharedRun(r8, ranks, every=4))
        return r8.global_step, r8.total_steps

    one, other = in_threads(2, job)

    assert one == other == (one[1], one[1])
    assert 9 <= one[0] <= 15


def test_a_checkpoint_that_rank_0_cannot_write_counts_as_missing_on_all(tmp_path):
    """All ranks skip and try again at the same step, as they collect the state of the model together."""

    def job(ranks):
        weights, left = Weights(), [OSError("full"), OSError("full")] if ranks.rank == 0 else []

        def save(state, path):
            if left:
                raise left.pop()
            Path(path).write_bytes(b"weights")

        r8 = make(
            8 * 40, batch_size=8, num_epochs=1, save_callback=save, state_callback=weights.get,
            load_callback=weights.load, checkpoint_dir=tmp_path / "checkpoints", checkpoint_every=8,
        )  # fmt: skip
        follow(SharedRun(r8, ranks, every=1))
        return r8.host.persistence.saver.num_failed, r8.host.persistence.saver.has_saved(40)

    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert in_threads(2, job) == [(2, True), (2, True)]


def test_rank_0_writes_in_the_background(tmp_path, monkeypatch):
    """Ranks train on while rank 0 writes; all learn at the same step that a checkpoint is there, or has failed."""
    monkeypatch.setattr("learnit_r8.recovery.persistence.LARGE", 1)
    opened, write, left = threading.Event(), store.write_new, [OSError("full")]

    def waiting(path, content):
        assert opened.wait(30)
        if left:
            raise left.pop()
        write(path, content)

    monkeypatch.setattr(store, "write_new", waiting)

    def job(ranks):
        told, heard = record_events(), []
        r8 = make(8 * 80, batch_size=8, num_epochs=1, checkpoint_dir=tmp_path, checkpoint_every=20, listeners=[told])
        shared = SharedRun(r8, ranks, every=1)
        for share in shares(shared):
            if share.ticket.step == 30 and ranks.rank == 0:
                # Nothing waited for the checkpoint of step 20.
                opened.set()
            writing = r8.host.persistence.saver._writing
            if share.ticket.step in (30, 50, 70) and ranks.rank == 0 and writing is not None:
                # On a busy machine a checkpoint may not be there when the next one is due, which is left out then.
                writing[1].write._thread.join(30)
            shared.report(share.ticket, sample_losses(share.indices))
            heard.append((r8.host.persistence.saver.num_failed, [saved.step for saved in told.of(CheckpointSaved)]))
        return heard

    with pytest.warns(RuntimeWarning, match="checkpoint at step 20 could not be written"):
        one, other = in_threads(2, job)

    assert one == other
    assert one[-1][0] == 1
    assert [
        int(CheckpointStore(tmp_path, keep=9, run_id="").load(path).state["pace"]["step"])
        for path in sorted(tmp_path.glob("ck_*.r8"))
    ] == [40, 60, 80]


def test_a_backup_for_which_one_rank_has_no_memory_is_taken_by_none():
    """All ranks hold backups of the same steps, or a restore would put each back to another one."""

    def job(ranks):
        weights, taken = Weights(), itertools.count()

        def clone(state):
            if ranks.rank == 1 and next(taken) == 2:
                raise MemoryError
            return {name: value.copy() for name, value in state.items()}

        r8 = make(
            8 * 40, batch_size=8, num_epochs=1, state_callback=weights.get, load_callback=weights.load, backup_every=8
        )
        r8.host.persistence.backup.copy_with(clone)
        follow(SharedRun(r8, ranks, every=1))
        return [each.step for each in r8.host.persistence.backup.backups]

    with pytest.warns(RuntimeWarning, match="no memory for the backup"):
        one, other = in_threads(2, job)

    assert one == other
    assert one


def test_a_run_that_one_rank_ends_early_is_a_success_on_all():
    """`stop` on the rank that validates ends the run on every rank after the same step, as finished early."""

    def work(ranks):
        shared = SharedRun(make(8 * 40, batch_size=8, num_epochs=1), ranks, every=4)
        follow(shared, at={10: lambda: shared.r8.stop("good enough")} if ranks.rank == 0 else {})
        return shared.r8.global_step, shared.r8.phase, shared.r8.pace.ended_early is not None

    [one, other] = in_threads(2, work)

    assert one == other
    assert 10 <= one[0] < 40
    assert one[1:] == ("finished early", True)


@pytest.mark.filterwarnings("ignore:the checkpoint at step 8 could not be written")
def test_rank_without_memory_for_the_state_ends_no_run(tmp_path):
    """A checkpoint for which one rank has none is written by none, and the next one is."""

    def job(ranks):
        r8 = make(48, batch_size=8, num_epochs=4, checkpoint_dir=tmp_path, checkpoint_every=8)
        shared, get_state, calls = SharedRun(r8, ranks, every=1), r8.table.state_dict, []

        def fail_once():
            calls.append(r8.global_step)
            if ranks.rank == 1 and len(calls) == 1:
                raise MemoryError
            return get_state()

        r8.table.state_dict = fail_once
        follow(shared)
        r8.close()
        return r8.global_step, calls

    assert in_threads(2, job) == [(24, [8, 16, 24])] * 2
    assert len(list(tmp_path.glob("ck_*.r8"))) == 2
