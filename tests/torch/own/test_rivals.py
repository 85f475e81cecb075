"""Networks that train against each other, under the usual guard: their losses need not fall."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import SpikeGuard, events
from learnit_r8.testing import record_events
from learnit_r8.torch import attach

X = torch.tensor(load_digits().data / 16, dtype=torch.float32)
EPOCHS = 20


def gan(*, watched=None, bad_at=None, folder=None, ends_at=None, reports_both=True, lr=1e-3, **settings):
    """A GAN of the digits, whose losses rise for long.

    Args:
        watched: Is told of events, where R8 watches; None for the script alone.
        bad_at: The step with a batch 1e4 times as large.
        folder: Checkpoints are written to it, and the run resumes from it.
        ends_at: The step before which the program is left.
        reports_both: Whether both losses are reported, before the steps; else that of the generator before its own.
        lr: The rate of both.
    """
    torch.manual_seed(3)
    g = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Sigmoid())
    d = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LeakyReLU(0.2), torch.nn.Linear(64, 1))
    g_optimizer, d_optimizer = (torch.optim.Adam(each.parameters(), lr, betas=(0.5, 0.999)) for each in (g, d))
    loader = DataLoader(TensorDataset(X), 64, shuffle=True, drop_last=True)
    epochs = (loader for _ in range(EPOCHS))
    adapter = None
    if watched is not None:
        adapter = attach(
            d, d_optimizer, loader, num_epochs=EPOCHS, scheduler_mode="keep", listeners=[watched],
            checkpoint_dir=folder, resume="auto" if folder else None, also={"g": g, "g_optimizer": g_optimizer},
            **settings,
        )  # fmt: skip
        epochs = (adapter.batches() for _ in adapter.epochs())
    step = 0 if adapter is None else adapter.scheduler.global_step
    for epoch in epochs:
        for (x,) in epoch:
            step += 1
            if step == ends_at:
                return adapter
            x = x * 1e4 if step == bad_at else x
            made, ones = g(torch.randn(len(x), 16)), torch.ones(len(x), 1)
            d_loss = bce(d(x), ones) + bce(d(made.detach()), 0 * ones)
            if adapter is not None and reports_both and not adapter.report(d_loss, bce(d(made), ones)):
                continue
            d_optimizer.zero_grad()
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = bce(d(made), ones)
            if adapter is not None and not reports_both and not adapter.report(g_loss):
                continue
            g_loss.backward()
            g_optimizer.step()
    if adapter is not None:
        adapter.close()
    return [each.detach().clone() for net in (g, d) for each in net.state_dict().values()]


def same(one, two):
    return all(map(torch.equal, one, two))


@pytest.fixture(scope="module")
def alone():
    return gan()


@pytest.mark.parametrize("settings", [{}, {"guard": SpikeGuard(expects_progress=False)}], ids=["usual", "named"])
def test_such_losses_are_no_measure_of_progress(settings):
    """What is told by itself is what the documented guard says: recovery looks into no level and no gradient."""
    adapter = gan(watched=record_events(), ends_at=3, **settings)
    adapter.close()
    r8 = adapter.scheduler

    assert not r8.sentry.guard.expects_progress
    assert not any([r8.sentry.tests_progress, r8.sentry.watches_level])
    assert not any([r8.controller.is_early, r8.controller.watches_gradients])


def test_losses_that_rise_change_nothing(alone):
    """The usual guard sent 14 of 20 such runs back, most by 200 steps: what the losses of rivals do is no damage."""
    heard = record_events()

    assert same(alone, gan(watched=heard))
    assert any("2 optimizers take steps" in each.text for each in heard.of(events.Notice))


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_one_loss_of_several_changes_nothing(lr):
    """One optimizer has stepped before the loss is reported, the other steps after it: each must have a loss of its
    own. The usual guard sent 31 of 72 such runs back, nearly all at high rates.
    """
    heard = record_events()

    assert same(gan(lr=lr), gan(watched=heard, reports_both=False, lr=lr))
    assert ["others after it" in each.text for each in heard.of(events.Notice)].count(True) == 1


def test_they_change_nothing_after_a_resume(alone, tmp_path):
    """The second session learns of the rivals at its first report, before it judges."""
    left = gan(watched=record_events(), folder=tmp_path, checkpoint_every=100, ends_at=420)
    left.scheduler.host.saver.store.release()
    heard = record_events()

    assert same(alone, gan(watched=heard, folder=tmp_path, checkpoint_every=100))


def test_an_absurd_loss_is_left_out():
    """A batch 1e4 times as large; two others find the weights healthy, so that nothing is restored."""
    heard = record_events()
    gan(watched=heard, bad_at=100, ends_at=200)

    assert [(each.step, each.reason) for each in heard.of(events.BatchRefused)] == [(100, "spike")]
    assert "the weights are healthy" in heard.of(events.IncidentEnded)[0].text
    assert not heard.of(events.RolledBack)


def test_a_guard_that_is_named_is_kept():
    adapter = gan(watched=record_events(), guard="spike", ends_at=3)
    adapter.close()

    assert adapter.scheduler.sentry.guard.expects_progress
