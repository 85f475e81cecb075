"""A refused batch under Lightning: no step, no word in the metrics, whatever ``training_step`` looks like."""

import pytest

pytest.importorskip("lightning")

import lightning
import torch
from torch.nn.functional import binary_cross_entropy, cross_entropy
from torch.utils.data import DataLoader

from learnit_r8 import events
from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.testing import record_events
from tests.lightning.common import DATA, STEPS, Digits
from tests.lightning.test_own_batches import Gan, Plain, built, state_of, train
from tests.torch_common import equal

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore:.*the weights were damaged")]


class BatchAlone(Plain):
    """With the signature of Lightning's own PPO."""

    def training_step(self, batch):
        return super().training_step(batch, 0)


class GanOfBatch(Gan):
    """With that of its GAN."""

    def training_step(self, batch):
        return super().training_step(batch, 0)


@pytest.mark.parametrize("kind", [BatchAlone, GanOfBatch])
def test_a_step_without_the_number_of_the_batch_is_called_so(kind):
    """``training_step(self, batch)`` trains as without R8, and the module has it back at the end."""
    plain, watched = built(kind), built(kind)
    expected = state_of(plain, train(plain))

    assert equal(expected, state_of(watched, train(watched, callbacks=[R8Callback()])))
    assert "training_step" not in vars(watched)


def test_a_step_without_the_number_of_the_batch_takes_batches_of_r8():
    """The same on an R8Loader."""
    module, loader = built(BatchAlone), R8Loader(DATA, batch_size=32, scheduler_mode="keep")
    module.loaders = lambda: loader
    train(module, callbacks=[R8Callback(loader)])

    assert loader.scheduler.global_step == 3 * STEPS


class Raising(lightning.LightningModule):
    """Binary cross entropy raises where the network returns NaN; or the batch is left out by hand.

    Args:
        bad: Numbers of the batches.
        by_hand: Whether it returns nothing for them.
    """

    def __init__(self, bad, *, by_hand):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 1), torch.nn.Sigmoid())
        self.bad, self.by_hand, self.calls = bad, by_hand, 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def loaders(self):
        return DataLoader(DATA, batch_size=32)

    def training_step(self, batch, _):
        x, y = batch
        self.calls += 1
        if self.calls in self.bad:
            if self.by_hand:
                return None
            x = x * float("nan")
        return binary_cross_entropy(self.net(x), (y[:, None] > 4).float())


def test_a_step_that_raises_because_of_nan_costs_no_step():
    """Weights and momentum are those of a script that leaves the batches out, twice in an epoch, too."""
    left_out, raising = built(Raising, bad=(5, 6, 20), by_hand=True), built(Raising, bad=(5, 6, 20), by_hand=False)
    expected = state_of(left_out, train(left_out))
    callback = R8Callback()
    trainer = train(raising, callbacks=[callback])

    assert equal(expected, state_of(raising, trainer))
    assert callback.scheduler.sentry.num_refused == 3


class Logging(Digits):
    """It logs its loss, and what is logged at the end of each epoch is kept."""

    def __init__(self, bad):
        super().__init__(exact=False, bad=bad)
        self.net[2] = torch.nn.Identity()
        self.losses, self.epochs = [], []

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log_dict({"loss": loss}, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs, *_):
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self):
        self.epochs.append(float(self.trainer.callback_metrics["loss_epoch"]))

    def loaders(self):
        return DataLoader(DATA, batch_size=25)


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_refused_batch_is_not_logged(place):
    """An epoch logs the mean of the others, wherever in it the batch stands, and none of the epoch before."""
    module = built(Logging, bad=(16 + place,))
    train(module, callbacks=[R8Callback()])
    means = [sum(each for each in module.losses[at : at + 16] if each == each) for at in (0, 16, 32)]

    assert module.epochs == pytest.approx([means[0] / 16, means[1] / 15, means[2] / 16])


class Lbfgs(Plain):
    """Its optimizer asks for the loss several times a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=3)


def test_an_optimizer_that_asks_several_times_reports_once():
    """LBFGS trains as without R8, with a step for each batch."""
    plain, watched, callback = built(Lbfgs), built(Lbfgs), R8Callback(guard="finite")
    train(plain)
    train(watched, callbacks=[callback])

    assert all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values()))
    assert callback.scheduler.global_step == 3 * STEPS


class Swelling(Plain):
    """Its weights grow tenfold before one of its steps."""

    def on_train_batch_start(self, batch, batch_idx):
        self.num_steps += 1
        if self.num_steps == self.nan_at:
            for each in self.net.parameters():
                each.data *= 10

    def training_step(self, batch, index):
        x, y = batch
        return cross_entropy(self.net(x), y)


def test_a_backup_repeats_the_loss_that_it_had():
    """Where weights are tested outside of the loop, dropout draws what it drew when the loss was recorded."""
    module, heard = built(Swelling, nan_at=45), record_events()
    train(module, callbacks=[R8Callback(listeners=[heard], backup_every=6)], max_epochs=5)
    probes = [each for each in heard.of(events.Probed) if not each.is_present]

    assert probes[0].loss == probes[0].record
    assert heard.of(events.RolledBack)
