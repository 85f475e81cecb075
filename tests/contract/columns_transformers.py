"""Hugging Face Trainer: R8's batches, and its own."""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from learnit_r8.transformers import R8Mixin

from . import task
from .columns_torch import Network, Order, Rows, hurt, read_weights, sgd, write_down

logging.getLogger("transformers").setLevel(logging.ERROR)


class Model(torch.nn.Module):
    """The network as Trainer takes it."""

    def __init__(self, run):
        super().__init__()
        self.network = Network(run.case.activation)

    def forward(self, x, labels=None):
        logits = self.network(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class NamedRows(Rows):
    """The samples under their names."""

    def __getitems__(self, rows):
        return [{"x": x, "labels": y} for x, y in super().__getitems__(rows)]


class Validation(torch.utils.data.Dataset):
    """The samples to validate on."""

    def __len__(self):
        return len(task.VAL_X)

    def __getitem__(self, index):
        return {"x": torch.from_numpy(task.VAL_X[index]), "labels": int(task.VAL_Y[index])}


class Notes(TrainerCallback):
    """User code at the start of each step and behind each epoch."""

    def __init__(self, run):
        self.run, self.trainer = run, None

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
        hurt(self.run, model.network)
        if self.run.rate is not None:
            optimizer.param_groups[0]["lr"] = self.run.rate

    def on_evaluate(self, args, state, control, metrics=None, model=None, **_):
        loss = [each["loss"] for each in state.log_history if "loss" in each][-1]
        self.run.end_epoch(read_weights(model.network), loss=loss, val_loss=metrics["eval_loss"])
        counted = self.trainer.counted["train"].pop("loss")
        self.run.counted.append([*counted, sum(counted) / len(counted)])


class CountingTrainer(Trainer):
    """With metrics of its own, as those of TRL have."""

    def compute_loss(self, model, inputs, *given, **more):
        found = super().compute_loss(model, inputs, *given, **more)
        if self.train_dataset.run.leaves_out and model.training and not found.isfinite():
            return torch.zeros((), requires_grad=True)
        if model.training:
            self.counted["train"]["loss"].append(float(found))
        return found


class OrderedTrainer(CountingTrainer):
    """With an order of one's own."""

    def _get_train_sampler(self, *_):
        return Order(self.train_dataset.run)


class R8Trainer(R8Mixin, CountingTrainer):
    """One with R8's batches."""


class R8OrderedTrainer(R8Mixin, OrderedTrainer):
    """One with its own batches, watched."""


class HfTrainer:
    """R8's batches."""

    own = False
    options: ClassVar = {}

    def train(self, run):
        self.fit(run, R8Trainer, r8={"seed": 0, **task.CONSTANT, **run.settings})

    def plain(self, run):
        self.fit(run, OrderedTrainer)

    def fit(self, run, kind, **given):
        torch.manual_seed(0)
        model = Model(run)
        optimizer = sgd(model.network)
        options = {
            "output_dir": str(run.case.folder or tempfile.mkdtemp()), "num_train_epochs": run.case.epochs,
            "max_grad_norm": 0.0, "per_device_train_batch_size": task.BATCH, "learning_rate": task.RATE,
            "use_cpu": True, "report_to": [], "save_strategy": "steps" if run.case.folder else "no",
            "save_steps": run.case.every, "disable_tqdm": True, "logging_strategy": "epoch", "eval_strategy": "epoch",
            "per_device_eval_batch_size": 128,
            **({} if kind is R8Trainer else {"lr_scheduler_type": "constant"}),
        }  # fmt: skip
        arguments = TrainingArguments(**{**options, **self.options})
        notes = Notes(run)
        notes.trainer = trainer = kind(
            model=model, args=arguments, train_dataset=NamedRows(run), eval_dataset=Validation(),
            optimizers=(optimizer, None), callbacks=[notes], **given,
        )  # fmt: skip
        trainer.counted = {"train": defaultdict(list)}
        trainer.remove_callback(PrinterCallback)
        resumed = run.case.folder is not None and any(run.case.folder.glob("checkpoint-*"))
        trainer.train(resume_from_checkpoint=resumed)
        write_down(run, model.network, optimizer)
        run.r8 = trainer.r8.scheduler if given else None


class HfTrainerOwn(HfTrainer):
    """The Trainer's own batches and rates."""

    own = True

    def train(self, run):
        self.fit(run, R8OrderedTrainer, r8={"batches": False, **run.settings})


COLUMNS = {"trainer": HfTrainer, "trainer own": HfTrainerOwn}
