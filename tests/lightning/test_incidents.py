"""Records of incidents inside ``Trainer.fit``: named, replayed, and numbered on where a fit is resumed."""

import math

import pytest

lightning = pytest.importorskip("lightning")
torch = pytest.importorskip("torch")

from learnit_r8 import RunDir
from learnit_r8.lightning import R8Callback
from learnit_r8.recovery.record import numbers_in
from learnit_r8.torch import load_incident
from tests.lightning import common
from tests.lightning.common import Digits

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


class Module(lightning.LightningModule):
    """A small regression with BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1)]
        self.net = torch.nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def fit(folder, epochs, checkpoint=None):
    torch.manual_seed(0)
    x = torch.randn(128, 4)
    x[21] = float("nan")
    data = torch.utils.data.TensorDataset(x, x[:, :1].nan_to_num())
    callback = R8Callback(run_dir=RunDir(folder / "run", record="all"), guard="finite")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback], enable_checkpointing=False, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(data, 16), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "saved.ckpt")


def test_a_resumed_fit_numbers_its_incidents_on(tmp_path):
    """The second one has batch and refused weights as the first, and is replayed by ``training_step``."""
    fit(tmp_path, 2)
    first = numbers_in(tmp_path / "run")
    fit(tmp_path, 4, tmp_path / "saved.ckpt")
    numbers = numbers_in(tmp_path / "run")

    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > len(first) >= 1
    for number in (1, numbers[-1]):
        incident = load_incident(tmp_path / "run" / "incidents" / str(number))
        assert "row 5 of the batch, whose input holds NaN at [0]" in incident.cause
        loss = incident.replay(Module(), lambda module, batch: module.training_step(*batch[0], **batch[1]))
        assert math.isnan(loss.item())
        assert incident.refused["model"].keys() == Module().state_dict().keys()


class WithTerm(Digits):
    """Its loss holds more than that of the samples, once NaN."""

    turn = 0

    def training_step(self, batch, index):
        self.turn += 1
        found = super().training_step(batch, index)
        return {**found, "loss": found["loss"] * (math.nan if self.turn == 9 else 1.0)}


def test_a_loss_of_ones_own_is_judged_too():
    """The samples' losses are finite, the one that is trained on is not: its batch is refused."""
    r8 = common.fit(module=WithTerm(exact=True))[1]

    assert r8.sentry.num_refused == 1
    assert "model restored" not in r8.summary()
