"""Faults in a training with Lightning: found out by probes, and healed."""

import pytest

pytest.importorskip("lightning")

import torch
from torch.nn.functional import binary_cross_entropy

from learnit_r8.lightning import R8Loader
from tests.fault_common import BATCH, Samples
from tests.lightning.common import DATA, Digits, fit
from tests.trial_common import Sight, begin_trial, digest

lightning = pytest.importorskip("lightning")

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


class Probability(lightning.LightningModule):
    def __init__(self, error=None):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Sigmoid())
        self.error, self.calls = error, 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, _):
        x, _ = batch
        self.calls += 1
        is_bad = self.calls == 9
        if is_bad and self.error is not None:
            raise self.error
        return binary_cross_entropy(self.net(x * float("nan") if is_bad else x), torch.ones(len(x), 1))


def test_a_loss_that_raises_for_nan_is_refused():
    """An exception where what the network returned is seen to be NaN costs its batch, and nothing else."""
    module = Probability()
    _, r8, _ = fit(module=module, loader=R8Loader(Samples(), batch_size=BATCH, num_steps=20), epochs=-1)

    assert r8.global_step == 20
    assert r8.sentry.num_refused == 1
    assert "training_step" not in vars(module)


def test_every_other_exception_ends_the_training():
    """An exception that no value explains is raised on, unchanged."""
    with pytest.raises(RuntimeError, match=r"^not of a value$"):
        fit(
            module=Probability(RuntimeError("not of a value")),
            loader=R8Loader(Samples(), batch_size=BATCH, num_steps=20),
            epochs=-1,
        )


class Seen(Digits):
    """Notes the weights of each step."""

    def __init__(self):
        super().__init__()
        self.sight = Sight()

    def weights(self):
        return [each.detach().numpy() for each in self.parameters()]

    def training_step(self, batch, index):
        self.sight.begin(self.weights())
        return super().training_step(batch, index)

    def optimizer_step(self, *given, **named):
        super().optimizer_step(*given, **named)
        self.sight.end(self.weights())

    def val_dataloader(self):
        return torch.utils.data.DataLoader(DATA, batch_size=100)

    def validation_step(self, batch, index):
        pass


class Trial(lightning.Callback):
    """A trial from the fourth epoch on."""

    def __init__(self, loader):
        self.loader = loader

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 3:
            module.sight.aside = digest(module.weights())
            begin_trial(self.loader.scheduler)

    def on_validation_epoch_start(self, trainer, module):
        module.sight.leave(module.weights(), self.loader.scheduler)


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_sees_no_weights_on_trial(workers):
    """Where an epoch ends within a trial it sees those from before it; the next epoch goes on with the trial's own."""
    module, loader = Seen(), R8Loader(DATA, batch_size=32, num_workers=workers, guard="spike")
    fit(module=module, loader=loader, epochs=9, more=[Trial(loader)], num_sanity_val_steps=0)

    module.sight.check()
