"""The scikit-learn digits with Trainer: one line and an import beside the plain script."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from learnit_r8.transformers import R8Mixin

digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


class Digits(Dataset):
    def __len__(self):
        return len(labels)

    def __getitem__(self, index):
        return {"images": images[index], "labels": labels[index]}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class R8Trainer(R8Mixin, Trainer):
    pass


torch.manual_seed(0)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=6,
    per_device_train_batch_size=64,
    learning_rate=0.01,
    use_cpu=True,
    report_to=[],
    save_strategy="no",
)
trainer = R8Trainer(model=Model(), args=arguments, train_dataset=Digits())
trainer.train()
accuracy = (trainer.model.net(images).argmax(1) == labels).float().mean()
print(f"accuracy {accuracy:.3f}")
print(trainer.r8.scheduler.summary())
