import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch

from learnit_r8 import R8Scheduler, events
from learnit_r8.policies import Steady, even_groups
from learnit_r8.testing import FakeClock
from tests.drive import NAN, advance_to, batch_loss, flat, make, steps, train

POLICIES = ["balanced", "quartile", "shuffle", Steady()]


def test_batches_are_int64_arrays():
    """A batch is an int64 array of B samples, fewer in the short last one."""
    r8 = make(10, num_epochs=1)
    batches = [indices for _, indices, _ in steps(r8) if r8.update_with_loss(1.0)]

    assert [(type(batch), batch.dtype, batch.shape) for batch in batches] == [
        (np.ndarray, np.int64, (4,)), (np.ndarray, np.int64, (4,)), (np.ndarray, np.int64, (2,))
    ]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("loss", [1.0, 0.0, -3.0, 1e-30, 1e30])
def test_constant_losses_train(loss, policy):
    """Equal, zero, negative, tiny and huge losses are learned from and stay finite."""
    r8 = make(10, num_epochs=3, policy=policy)
    for _ in steps(r8):
        assert r8.update_with_loss(loss)

    assert np.isfinite(r8.table.loss[r8.table.usage_count > 0]).all()


@pytest.mark.filterwarnings("ignore:the loss of step 1 is NaN")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_good", [0, 1])
def test_first_epoch_may_teach_nothing(policy, num_good):
    """A run goes on where none of the first epoch's losses could be learned from, or only that of its short batch."""
    r8 = make(50, batch_size=8, num_epochs=3, policy=policy)
    for _, indices, _ in steps(r8):
        is_bad = r8.global_step < r8.steps_per_epoch - num_good
        r8.update_with_loss(NAN if is_bad else batch_loss(indices), skipped=is_bad)

    assert r8.phase == "finished"
    assert np.count_nonzero(r8.table.usage_count) >= 8


@pytest.mark.filterwarnings(
    "ignore:more than half of the last", "ignore:a loss was refused", "ignore:a loss has been refused"
)
def test_all_of_the_first_epoch_may_be_refused():
    """A run goes on where all samples are suspects, those of a short last batch, too."""
    r8 = make(50, batch_size=8, num_epochs=3)
    for _, indices, _ in steps(r8):
        r8.update_with_loss(NAN if r8.global_step < r8.steps_per_epoch else batch_loss(indices))

    assert r8.phase == "finished"


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
    with pytest.warns(RuntimeWarning, match="the budget was spent at step 7"):
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
    assert (r8.global_step, r8.host.source.abandoned) == (4, 2)


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


def test_epoch_without_a_batch_is_an_error():
    """An epoch loop that draws nothing would never end; it is a RuntimeError."""
    with pytest.raises(RuntimeError, match=r"epoch 0 ended with no batch drawn; loop over batch_iterator\(\)"):
        list(make().epoch_iterator())


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


@pytest.mark.parametrize(("ends", "phase"), [("whole", "finished"), ("error", "stopped"), ("stop", "stopped")])
def test_a_run_without_a_budget_ends_where_its_loop_does(ends, phase):
    """Closed after a whole loop it has finished; after an exception or a request to stop it has not."""
    heard = []
    with (
        contextlib.suppress(ZeroDivisionError),
        R8Scheduler(scheduler_mode="keep", handle_signals=False, listeners=[heard.append]) as r8,
    ):
        for _ in r8.batches([1, 2, 3]):
            r8.update_with_loss(1.0)
        before = r8.phase
        if ends == "stop":
            r8.requests.stop("enough")
        elif ends == "error":
            raise ZeroDivisionError

    assert (before, r8.phase, heard[-1].finished) == ("training", phase, phase == "finished")


def test_context_manager_closes():
    """Leaving a `with` block closes the run, also through an exception, which passes on; the end is told once."""
    heard = []

    def interrupted():
        with make(listeners=[heard.append]) as r8:
            advance_to(r8, 1)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    with make(listeners=[heard.append]) as r8:
        train(r8)
    r8.close()
    ends = [event for event in heard if isinstance(event, events.RunEnded)]

    assert [(event.step, event.finished) for event in ends] == [(1, False), (6, True)]


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_phases_of_a_run():
    """A run catalogues, trains, steadies after a restore, and is finished."""
    r8 = make(64, num_epochs=10, load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    phases = []
    for _, _, _ in steps(r8):
        r8.update_with_loss(NAN if r8.global_step == 100 else 1.0)
        if r8.global_step == 90:
            r8.update_cpu_backup(1)
        phases.append(r8.phase)

    assert list(dict.fromkeys(phases)) == ["cataloguing", "training", "steadying", "finished"]
    assert phases.count("steadying") == 4


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_summary_is_for_people():
    """The summary names step, phase, refusals and quartiles."""
    r8 = make(load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    train(r8, bad={1})
    lines = r8.summary().splitlines()

    # The last batches of the epochs are left out for tests of the weights.
    assert lines[0].startswith(f"step {6 - r8.pace.probes} of 6, finished")
    assert "finished" in lines[0]
    assert lines[1].startswith(
        "losses refused: 1; batches not reported: 0; batches left out for tests of the weights, or low-loss ones "
    )
    assert lines[2] == "  not finite: not settled as the run ended, since step 2."
    assert [line.split()[0] for line in lines[4:]] == ["Q1", "Q2", "Q3", "Q4"]


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_summary_of_damage_that_no_loss_shows():
    """A restore without a refused loss is counted as a restore, and no refused loss is spoken of."""
    state = {name: np.ones(3) for name in "abc"}

    def load(saved):
        state.update({name: array.copy() for name, array in saved.items()})

    r8 = make(40, num_epochs=4, backup_every=10, state_callback=lambda: state, load_callback=load)
    for _, batch, _ in steps(r8):
        if r8.global_step == 25:
            for array in state.values():
                array[0] = NAN
        r8.update_with_loss(batch_loss(batch))

    assert r8.summary().splitlines()[1].startswith("losses refused: 0;")
    assert r8.summary().splitlines()[1].endswith("; model restored once; weights tested with 2 batches")


def test_a_run_that_is_over_has_no_unknown_number_of_steps():
    """The summary of a time budget that is spent, or of a loop over batches of one's own, names the last step alone."""
    clock = FakeClock()
    timed = make(train_duration_seconds=9, clock=clock)
    assert timed.summary().startswith("step 0 of ?")
    for _ in timed.epoch_iterator():
        for _ in timed.batch_iterator():
            timed.update_with_loss(1.0)
            clock.advance(2.0)
    assert timed.summary().startswith("step 4, finished, lr ")
    assert repr(timed).startswith("R8Scheduler(step 4, finished, ")

    with R8Scheduler(num_epochs=2, scheduler_mode="keep") as own:
        for _ in own.epoch_iterator():
            for _ in own.batches(iter(range(3))):
                own.update_with_loss(1.0)
                assert own.summary().startswith(f"step {own.global_step} of ?, training")
    assert own.summary().splitlines()[0] == "step 6, finished"


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), 1])
def test_log_tells_metrics(value):
    """log() hands numbers of any framework to the listeners, with the step."""
    heard = []
    r8 = make(listeners=[heard.append])
    r8.log(accuracy=value)
    r8.log(step=99, loss=NAN)

    assert heard[0] == events.MetricsLogged(0, 0.0, 0, {"accuracy": float(value)})
    assert (heard[1].at_step, str(heard[1].metrics)) == (99, "{'loss': nan}")


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
    with pytest.raises(ValueError, match=r"of format 3 or older, got format 99"):
        r8.load_state_dict({**other.state_dict(), "format": 99})


@pytest.mark.parametrize("policy", ["quartile", "shuffle", Steady(), even_groups("shuffle")])
def test_groups_are_reported_under_any_policy(policy):
    """A policy that makes no use of groups draws what it draws without them; they are reported."""
    drawn = {}
    for groups in (None, np.arange(64) % 2):
        if groups is None and policy == even_groups("shuffle"):
            continue
        r8 = R8Scheduler(64, batch_size=8, num_epochs=2, policy=policy, groups=groups)
        drawn[groups is None] = []
        for _ in r8.epoch_iterator():
            for batch, _ in r8.batch_iterator():
                drawn[groups is None].append(batch.tolist())
                r8.update_with_loss(1.0 + batch % 2)

    assert drawn.get(True, drawn[False]) == drawn[False]
    assert [(group.label, group.mean) for group in r8.table.groups()] == [(1, 2.0), (0, 1.0)]


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_scheduler_is_not_copied(way):
    """A scheduler that is pickled or copied says what to do instead, also from inside something else."""
    r8 = make()
    for what in (r8, {"r8": [r8]}) if way is not copy.copy else (r8,):
        with pytest.raises(TypeError, match=r"R8Scheduler cannot be pickled or copied.*state_dict\(\).*checkpoint"):
            way(what)
