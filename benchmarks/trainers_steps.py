"""The time of a step over the framework's own, with everything on: backups, checkpoints, a run folder.

The digits (64-32-10) and a small transformer (2 layers of 64, rows of 64 tokens, batches of 32), on the CPU; plain and
ours take turns in one process. "As it comes" is what a user changes: the framework's loader collates samples, where
ours takes the rows of a TensorDataset at once. "Read alike" has both read many rows at once, so that R8Scheduler alone
is between them. Lightning and Trainer log every 50 steps; their own checkpoints are off. A run gives its mean step from
the third epoch on; printed are the median over runs of plain's, and of the ratio of each pair with its quartiles,
with the defaults and with a run folder and a checkpoint each epoch.
"""

import argparse
import contextlib
import io
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)

from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.torch import attach
from learnit_r8.transformers import R8Mixin

BATCH = 32
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Samples(Dataset):
    """Reads one sample at a time, as a dict of tensors."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


class Rows(Samples):
    """Reads many rows at once, as a dict of tensors."""

    def __getitems__(self, indices):
        rows = torch.as_tensor(indices)
        return {name: column[rows] for name, column in self.columns.items()}


def as_is(batch):
    return batch


class Classifier(torch.nn.Module):
    """For the digits."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, images, labels=None):
        logits = self.net(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}

    def losses(self, batch):
        images, labels = batch.values() if isinstance(batch, dict) else batch
        return cross_entropy(self.net(images), labels, reduction="none")


class Language(torch.nn.Module):
    """A small transformer."""

    def __init__(self):
        super().__init__()
        config = GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0)
        self.gpt = GPT2LMHeadModel(config)

    def losses(self, batch):
        logits = self.gpt(input_ids=batch["input_ids"]).logits[:, :-1]
        rows = cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
        return rows.view(len(logits), -1).mean(1)


def digits():
    found = load_digits()
    return {"images": torch.tensor(found.data / 16, dtype=torch.float32), "labels": torch.tensor(found.target)}


def language():
    rows = torch.randint(0, 96, (384, 64), generator=torch.Generator().manual_seed(0))
    return {"input_ids": rows, "labels": rows}


def tasks_of(framework):
    """``(name, model, data, epochs)``."""
    as_it_comes = Samples(**digits()) if framework == "transformers" else TensorDataset(*digits().values())
    return [
        ("digits, as it comes", Classifier, as_it_comes, 8),
        ("digits, read alike", Classifier, Rows(**digits()), 12),
        ("transformer, read alike", Language, Rows(**language()), 3),
    ]


def collate_for(data):
    return as_is if isinstance(data, Rows) else None


class Clock:
    """The times at which steps end."""

    def __init__(self):
        self.times = []

    def tick(self):
        self.times.append(time.perf_counter())

    def mean(self, skipped):
        return (self.times[-1] - self.times[skipped]) / (len(self.times) - 1 - skipped)


def by_lightning(make, data, epochs, folder, *, ours, settings):
    clock = Clock()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        def training_step(self, batch, _):
            losses = self.net.losses(batch)
            return {"loss": losses.mean(), "losses": losses.detach()} if ours else losses.mean()

    class Ticks(lightning.Callback):
        def on_train_batch_end(self, *_):
            clock.tick()

    options = {"batch_size": BATCH, "collate_fn": collate_for(data)}
    loader = R8Loader(data, **options, **settings) if ours else DataLoader(data, shuffle=True, **options)
    callbacks = [R8Callback(loader), Ticks()] if ours else [Ticks()]
    lightning.Trainer(max_epochs=epochs, enable_checkpointing=False, callbacks=callbacks, **QUIET).fit(Module(), loader)
    return clock


class R8Trainer(R8Mixin, Trainer):
    """Ours."""


def by_transformers(make, data, epochs, folder, *, ours, settings):
    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.tick()

    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=0.01, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=50, remove_unused_columns=False,
    )  # fmt: skip
    model = make()
    parts = {
        "model": getattr(model, "gpt", model),
        "args": arguments,
        "train_dataset": data,
        "data_collator": collate_for(data),
    }
    trainer = R8Trainer(**parts, r8=settings) if ours else Trainer(**parts)
    trainer.add_callback(Ticks())
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
        trainer.train()
    return clock


def by_accelerate(make, data, epochs, folder, *, ours, settings):
    clock, accelerator, net = Clock(), Accelerator(cpu=True), make()
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    if ours:
        adapter = attach(model, optimizer, data, batch_size=BATCH, num_epochs=epochs, **settings)
        loader, rates = accelerator.prepare(adapter.loader(collate_fn=collate_for(data)), adapter.lr_scheduler)
    else:
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, epochs * 64)
        loader = DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=collate_for(data))
        loader, rates = accelerator.prepare(loader, rates)
    for _ in range(epochs):
        for batch in loader:
            losses = net.losses(batch)
            loss = adapter.loss(losses) if ours else losses.mean()
            if not ours or adapter.report():
                accelerator.backward(loss)
                optimizer.step()
                rates.step()
            optimizer.zero_grad()
            clock.tick()
    if ours:
        adapter.close()
    return clock


def compare(train, make, data, epochs, repeats, *, everything):
    """Seconds of plain's step, and the ratios of pairs, sorted."""
    plain, ratios = [], []
    for number in range(repeats + 1):
        seconds = {}
        for ours in (number % 2 == 0, number % 2 == 1):
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                settings = {"run_dir": f"{folder}/run", "checkpoint_dir": f"{folder}/saved"} if everything else {}
                clock = train(make, data, epochs, folder, ours=ours, settings=settings)
                seconds[ours] = clock.mean(2 * (len(data) // BATCH))
        if number:
            # The first pair warms up.
            plain.append(seconds[False])
            ratios.append(seconds[True] / seconds[False])
    return statistics.median(plain), sorted(ratios)


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--only", choices=["lightning", "transformers", "accelerate"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 1 if given.quick else 4
    print(f"{platform.processor() or platform.machine()}, one thread, {repeats} pairs")
    trains = {"lightning": by_lightning, "transformers": by_transformers, "accelerate": by_accelerate}
    for name, train in trains.items():
        if given.only not in (None, name):
            continue
        for task, make, data, epochs in tasks_of(name):
            for everything in [False] if given.quick else [False, True]:
                plain, ratios = compare(train, make, data, epochs, repeats, everything=everything)
                low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                print(
                    f"{name}, {task}, {'everything on' if everything else 'defaults'}: {plain * 1e3:.2f} ms plain, "
                    f"ours {statistics.median(ratios):.3f}x ({low:.3f} to {high:.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
