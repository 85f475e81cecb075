"""The scikit-learn digits with Lightning: two lines beside the plain script, and a third for exact losses."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from learnit_r8.lightning import R8Callback, R8Loader, cross_entropy

digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)

    def training_step(self, batch, _):
        x, y = batch
        return cross_entropy(self.net(x), y)


torch.manual_seed(0)
module = Digits()
loader = R8Loader(dataset, batch_size=64)
trainer = lightning.Trainer(
    max_epochs=6, callbacks=[R8Callback(loader)], accelerator="cpu", logger=False, enable_checkpointing=False
)
trainer.fit(module, loader)
accuracy = (module.net(dataset.tensors[0]).argmax(1) == dataset.tensors[1]).float().mean()
print(f"accuracy {accuracy:.3f}")
print(loader.scheduler.summary())
