"""The defects of this package's public prototype stay fixed."""

import json
import math
import re
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import learnit_r8
from learnit_r8 import R8Scheduler, Recovery
from tests.drive import INF, NAN, FakeClock, Weights, advance_to, flat, make, steps, train


@pytest.mark.parametrize("budget", [{"num_epochs": 2}, {"num_steps": 5}, {"train_duration_seconds": 5}])
def test_it_can_be_constructed(budget):
    """A scheduler can be built with every kind of budget."""
    assert make(**budget).progress == 0


def test_arguments_are_validated():
    """A misspelt mode, a negative rate and sizes of zero are refused."""
    for wrong in ({"scheduler_mode": "cosin"}, {"initial_lr": -1}, {"batch_size": 0}, {"num_samples": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(**wrong)


def test_warmup_of_the_whole_run():
    """warmup_proportion=1.0 runs to the last step."""
    assert len(train(make(warmup_proportion=1.0))) == 6


def test_a_time_budget_decays_the_rate():
    """With a time budget the rate has completed its schedule when the time is up."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=100, clock=clock)
    rates = []
    for _, _, lr in steps(r8):
        rates.append(lr)
        clock.advance(1)
        r8.update_with_loss(1.0)

    assert max(rates) > 0.0099
    assert rates[-1] < 0.0001


def test_a_time_budget_has_epochs():
    """With a time budget epochs count up and data-aware batching begins with the second."""
    clock, phases = FakeClock(), []
    r8 = make(train_duration_seconds=9, clock=clock)
    for epoch, _, _ in steps(r8):
        phases.append((epoch, r8.phase))
        clock.advance(1)
        r8.update_with_loss(1.0)

    assert phases == [(0, "cataloguing")] * 3 + [(1, "training")] * 3 + [(2, "training")] * 3


@pytest.mark.parametrize("budget", [{"num_epochs": 2}, {"num_steps": 4}, {"train_duration_seconds": 5}])
def test_runs_end_without_an_error(budget):
    """No iterator raises at the end of time or steps, also in a resumed run."""
    clock = FakeClock()
    r8 = make(**budget, clock=clock)
    advance_to(r8, 2)
    resumed = make(**budget, clock=clock)
    resumed.load_state_dict(r8.state_dict())
    for run in (r8, resumed):
        for _ in steps(run):
            clock.advance(1)
            run.update_with_loss(1.0)

    assert resumed.progress == 1


def test_a_resumed_run_does_not_repeat_its_epoch():
    """After a resume in the second epoch, the second epoch goes on."""
    r8 = make(num_epochs=3)
    advance_to(r8, 4)
    resumed = make(num_epochs=3)
    resumed.load_state_dict(r8.state_dict())

    assert [epoch for epoch, _, _ in train(resumed)] == [1, 1, 2, 2, 2]


def test_the_last_batch_repeats_no_sample():
    """The last batch of the first epoch holds the samples that are left and no others."""
    seen = train(make(100, batch_size=16, num_epochs=1))

    assert (len(seen[-1][1]), len(set(flat(batch for _, batch, _ in seen)))) == (4, 100)


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_batches_that_are_no_multiple_of_four_are_balanced(batch_size):
    """Also batches of 2, 3 and 7 are spread over the losses: their means vary less than those of a shuffle."""
    spread = {}
    for policy in ("balanced", "shuffle"):
        r8 = make(840, batch_size=batch_size, num_epochs=2, policy=policy)
        means = []
        for epoch, indices, _ in steps(r8):
            losses = indices / 100
            r8.update_with_loss(losses)
            means += [losses.mean()] * (epoch == 1)
        spread[policy] = np.var(means)

    assert spread["balanced"] < 0.6 * spread["shuffle"]


@pytest.mark.parametrize("policy", ["balanced", "quartile", "shuffle"])
def test_every_epoch_uses_every_sample_once(policy):
    """No sample is left out of an epoch, and none comes twice."""
    r8 = make(1000, batch_size=32, num_epochs=4, policy=policy)
    train(r8)

    assert set(r8.table.usage_count.tolist()) == {4}


def test_the_table_is_small():
    """With a million samples, the table and everything beside it take less than 30 bytes per sample."""
    tracemalloc.start()
    r8 = make(1_000_000, batch_size=100, num_steps=3)
    train(r8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 30e6


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_samples_of_a_nan_batch_are_not_starved():
    """Samples whose first batch was refused are used as often as the others from then on."""
    r8 = make(64, num_epochs=6, load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    lost = train(r8, bad={3})[3][1]

    assert r8.table.usage_count[lost].tolist() == [5] * 4


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_only_what_is_not_finite_is_an_explosion():
    """Infinities are refused from the first step; negative, tiny and lastingly higher losses are not."""
    for value in (NAN, INF, -INF):
        r8 = make(load_callback=lambda state: None)
        r8.update_cpu_backup(0)
        assert not r8.report(r8.draw(), value)
    r8 = make(num_epochs=20)
    for number, _ in enumerate(steps(r8)):
        assert r8.update_with_loss((1.0, -2.0, 1e-9, 5.0)[number * 4 // 60])


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_a_refused_step_counts_and_one_argument_is_enough():
    """A one-argument load callback works, and a run with refused losses has its number of steps and tests."""
    got = []
    r8 = make(load_callback=lambda source: got.append(source))
    r8.update_cpu_backup("state")
    train(r8, bad={1, 4})

    assert set(got) == {"state"}
    assert r8.global_step + r8.pace.probes == r8.total_steps


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_the_reduced_rate_lasts():
    """After a restore the rate is halved for some steps, as the document says, and then follows the schedule again."""
    r8 = make(400, num_epochs=10, scheduler_mode="constant", warmup_proportion=0, load_callback=lambda state: None)
    for _ in range(100):
        r8.report(r8.draw(), 1.0)
    r8.update_cpu_backup(0)
    rates = [round(lr / 0.01, 9) for _, _, lr in train(r8, bad={160})]
    lowered = [step for step, rate in enumerate(rates, 100) if rate < 1]

    assert {rates[step - 100] for step in lowered} == {0.5}
    assert 160 < lowered[0] < 170
    assert len(lowered) == lowered[-1] - lowered[0] + 1 == 16


def test_without_a_backup_there_is_a_warning():
    """A refused loss with nothing to restore warns, and ends in an error if it goes on."""
    with pytest.warns(RuntimeWarning, match="nothing to restore"), pytest.raises(learnit_r8.TrainingDiverged):
        train(make(num_epochs=9, recovery=Recovery(max_refused=9)), bad=range(99))


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
@pytest.mark.parametrize("state", [np.zeros(3), torch.zeros(3), {}], ids=["array", "tensor", "empty"])
def test_any_backup_is_restored_as_a_copy(state):
    """Arrays, tensors and empty dicts are backups; the second recovery gets what was saved."""
    got = []

    def load(saved):
        got.append(repr(saved))
        if len(saved):
            saved[:] = 7
        else:
            saved["x"] = 7

    r8 = make(load_callback=load)
    r8.update_cpu_backup(state)
    r8.report(r8.draw(), NAN)
    r8.report(r8.draw(), NAN)

    assert got == [repr(state)] * 2


def test_backups_are_taken_automatically():
    """A state_callback is enough for backups."""
    model = Weights()
    r8 = make(state_callback=model.get, load_callback=model.load)
    r8.draw()

    assert r8.restore_backup() == 0
    assert len(model.loaded) == 1


def test_a_checkpoint_restores_everything(tmp_path):
    """Loading a checkpoint restores model, rate, epoch, table and the search's result, and ends without an error."""
    model = Weights()
    more = {"num_epochs": 3, "save_callback": model.save, "load_callback": model.load, "state_callback": model.get}
    first = make(checkpoint_dir=tmp_path, **more)
    advance_to(first, 5)
    model.values = np.array([5.0, 5.0])
    first.save_checkpoint()
    model.values = np.zeros(2)
    second = make(checkpoint_dir=tmp_path, **more)
    second.load_checkpoint()

    assert (second.lr, second.current_epoch, model.values.tolist()) == (first.lr, 1, [5, 5])
    assert [epoch for epoch, _, _ in train(second)] == [1, 2, 2, 2]


def test_a_checkpoint_needs_no_save_callback(tmp_path):
    """The scheduler's own state is saved without a save_callback."""
    train(make(checkpoint_dir=tmp_path))

    assert len(list(tmp_path.glob("ck_*"))) == 2


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_the_state_is_complete():
    """Refusals, use counts and rates continue exactly after a resume; see test_exact_resume.py."""
    r8 = make(64, num_epochs=3, load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    advance_to(r8, 30, bad={20})
    resumed = make(64, num_epochs=3)
    resumed.load_state_dict(r8.state_dict())

    assert resumed.lr == r8.lr
    assert train(resumed) == train(r8)


def test_numpy_losses_can_be_saved(tmp_path):
    """A state with float32 losses and unseen samples makes a readable checkpoint."""
    r8 = make(checkpoint_dir=tmp_path)
    r8.report(r8.draw(), np.float32(0.5))
    r8.save_checkpoint()
    fresh = make(checkpoint_dir=tmp_path)
    fresh.load_checkpoint()

    np.testing.assert_array_equal(fresh.table.loss, r8.table.loss)


@pytest.mark.filterwarnings("ignore:auto_find_lr")
def test_the_rate_search_is_bounded():
    """A search whose loss never explodes ends within 50 steps, and leaves rate, warm-up and length of the run alone."""
    model = Weights()
    r8 = make(num_epochs=2, auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    rates = [lr for _, _, lr in train(r8)]

    assert len(rates) == 50 + 6
    assert max(rates[:50]) == pytest.approx(10)
    assert rates[50] == pytest.approx(0.1 * 0.01)


def test_runs_are_reproducible():
    """The same seed gives the same batches, whatever other code does with global random numbers."""
    runs = []
    for seed in (1, 2):
        np.random.seed(seed)
        runs.append(train(make(30, seed=5)))

    assert runs[0] == runs[1]


def test_misuse_is_an_error():
    """update_with_loss() without a batch is an error, and a loop that never reports is warned about."""
    with pytest.raises(RuntimeError, match="no batch open"):
        make().update_with_loss(1.0)
    with pytest.warns(RuntimeWarning, match="was not reported"):
        list(steps(make()))


def test_losses_of_any_kind_become_numbers():
    """Tensors and vectors are read; the events hold floats."""
    heard = []
    r8 = make(8, num_epochs=1, listeners=[heard.append])
    for loss in (torch.ones(4, requires_grad=True), np.float16([1, 2, 3, 4])):
        r8.report(r8.draw(), loss)

    assert [type(event.loss) for event in heard if hasattr(event, "expected_loss")] == [float, float]


def test_no_screen_is_needed(capsys):
    """use_curses=True without a terminal prints plain lines, at least one an epoch, and `print` beside it is fine."""
    with make(use_curses=True) as r8:
        train(r8)
    err = capsys.readouterr().err

    assert len(re.findall(r"epoch [12]/2", err)) == 2


def test_close_is_idempotent():
    """close() can be called twice, before the first step, and by `with`."""
    with make() as r8:
        r8.close()
    r8.close()


def test_nothing_is_printed_without_being_asked(capsys):
    """Without use_curses a run prints nothing."""
    train(make())

    assert capsys.readouterr() == ("", "")


def test_state_dict_is_plain():
    """A state holds arrays and plain values only: everything but the arrays is JSON."""
    r8 = make(load_callback=lambda state: None)
    advance_to(r8, 4)

    def plain(value):
        assert isinstance(value, np.ndarray), type(value)
        assert not value.dtype.hasobject
        return value.tolist()

    assert math.isfinite(len(json.dumps(r8.state_dict(), default=plain)))


def test_docstring_of_the_scheduler_names_every_argument():
    """Every argument of R8Scheduler is explained in its docstring."""
    import inspect

    names = list(inspect.signature(R8Scheduler).parameters)

    assert [name for name in names if not re.search(rf"^\s+{name}: ", R8Scheduler.__doc__, re.MULTILINE)] == []


def test_no_warning_in_a_healthy_run(tmp_path):
    """A healthy run with all options on causes no warning."""
    model = Weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make(
            checkpoint_dir=Path(tmp_path),
            save_callback=model.save,
            load_callback=model.load,
            state_callback=model.get,
            backup_every=1,
        ) as r8:
            train(r8)
