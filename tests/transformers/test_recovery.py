"""Faults in a training with Trainer: found out, and healed."""

import pytest

pytest.importorskip("transformers")

import torch
from torch.nn.functional import binary_cross_entropy, mse_loss
from transformers import Trainer, TrainerCallback, TrainingArguments

from learnit_r8.transformers import R8Mixin
from tests.fault_common import (
    BATCH,
    FAULT_STEP,
    HEALED,
    KINDS,
    NUM_STEPS,
    Fault,
    Samples,
    linear,
    loss_of,
)  # fmt: skip
from tests.transformers import common
from tests.transformers.common import Digits, Model
from tests.trial_common import Sight, begin_trial, digest

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


class Rows(Samples):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return {"x": x, "labels": y}


class Regression(torch.nn.Module):
    def __init__(self, kind, accumulate):
        super().__init__()
        self.net, self.optimizer = linear()
        self._fault = Fault(kind, FAULT_STEP * accumulate)

    def forward(self, x, labels):
        outputs = self.net(self._fault.strike(self.net, self.optimizer, x))
        return {"loss": mse_loss(outputs, labels), "outputs": outputs}


class Probability(torch.nn.Module):
    def __init__(self, error=None):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Sigmoid())
        self.error, self.calls = error, 0
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def forward(self, x, labels):
        self.calls += 1
        is_bad = self.calls == 9
        if is_bad and self.error is not None:
            raise self.error
        outputs = self.net(x * float("nan") if is_bad else x)
        return {"loss": binary_cross_entropy(outputs, torch.ones_like(labels)), "outputs": outputs}


class R8Trainer(R8Mixin, Trainer):
    pass


def train(folder, model, kind=None, *, steps, accumulate=1):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=0.01, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
        gradient_accumulation_steps=accumulate, remove_unused_columns=False,
    )  # fmt: skip
    r8 = {"policy": "shuffle", "backup_every": 20}
    trainer = R8Trainer(model=model, args=args, train_dataset=Rows(kind), r8=r8, optimizers=(model.optimizer, None))
    trainer.train()
    return trainer.r8.scheduler


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_heals(tmp_path, kind, accumulate):
    """A fault of any kind is healed, though Trainer has taken its step before the loss is reported."""
    model = Regression(kind, accumulate)
    r8 = train(tmp_path, model, kind, steps=NUM_STEPS, accumulate=accumulate)

    assert loss_of(model.net) < HEALED
    assert not r8.controller.is_open


def test_a_loss_that_raises_for_nan_is_refused(tmp_path):
    """An exception where what the model was given is seen to be NaN costs its batch, and nothing else."""
    r8 = train(tmp_path, Probability(), steps=20)

    assert r8.global_step == 20
    assert r8.sentry.num_refused == 1


def test_every_other_exception_ends_the_training(tmp_path):
    """An exception that no value explains is raised on, unchanged."""
    with pytest.raises(RuntimeError, match=r"^not of a value$"):
        train(tmp_path, Probability(RuntimeError("not of a value")), steps=20)


class Seen(Model):
    """Notes the weights of each step, and those that an evaluation begins with."""

    def __init__(self):
        super().__init__()
        self.sight, self.trainer, self.is_evaluated = Sight(), None, False

    def weights(self):
        return [each.detach().numpy() for each in self.parameters()]

    def forward(self, images, labels=None):
        if self.training:
            self.sight.begin(self.weights())
        elif not self.is_evaluated:
            self.sight.leave(self.weights(), self.trainer.r8.scheduler)
        self.is_evaluated = not self.training
        return super().forward(images, labels)


class Trial(TrainerCallback):
    """A trial from the fourth epoch on."""

    def __init__(self, model):
        self.model = model

    def on_epoch_begin(self, args, state, control, **_):
        if round(state.epoch) == 3:
            self.model.sight.aside = digest(self.model.weights())
            begin_trial(self.model.trainer.r8.scheduler)

    def on_optimizer_step(self, args, state, control, **_):
        self.model.sight.end(self.model.weights())


def test_evaluation_sees_no_weights_on_trial(tmp_path):
    """Where an epoch ends within a trial it sees those from before it; the next epoch goes on with the trial's own."""
    torch.manual_seed(0)
    model = Seen()
    parts = {"eval_dataset": Digits(), "callbacks": [Trial(model)]}

    class Known(common.R8Trainer):
        def train(self, **given):
            model.trainer = self
            return super().train(**given)

    common.train(tmp_path, model=model, trainer=Known, parts=parts, num_train_epochs=9, eval_strategy="epoch")

    model.sight.check()
