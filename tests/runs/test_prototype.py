"""The defects of this package's public prototype stay fixed."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import learnit_r8
from learnit_r8 import Recovery
from tests.drive import INF, NAN, Weights, advance_to, make, steps, train


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


def test_a_healthy_run_says_nothing(tmp_path, capsys):
    """A healthy run with all options on causes no warning, and without use_curses it prints nothing."""
    model = Weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callbacks = {"save_callback": model.save, "load_callback": model.load, "state_callback": model.get}
        with make(checkpoint_dir=tmp_path, backup_every=1, **callbacks) as r8:
            train(r8)

    assert capsys.readouterr() == ("", "")
