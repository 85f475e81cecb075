"""Faults in a training with Trainer: found out, and healed."""

import math

import pytest

pytest.importorskip("transformers")

import torch
from torch.nn.functional import binary_cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from learnit_r8.transformers import R8Mixin
from tests.fault_common import BATCH, Samples
from tests.transformers import common
from tests.transformers.common import Digits, Model
from tests.trial_common import Sight, begin_trial, digest

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


class Rows(Samples):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return {"x": x, "labels": y}


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


def train(folder, model, *, steps):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=0.01, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
        remove_unused_columns=False,
    )  # fmt: skip
    r8 = {"policy": "shuffle", "backup_every": 20}
    trainer = R8Trainer(model=model, args=args, train_dataset=Rows(), r8=r8, optimizers=(model.optimizer, None))
    trainer.train()
    return trainer.r8.scheduler


def test_a_loss_that_raises_for_nan_is_refused(tmp_path):
    """An exception where what the model was given is seen to be NaN costs its batch, and nothing else."""
    r8 = train(tmp_path, Probability(), steps=20)

    assert r8.global_step == 20
    assert r8.sentry.num_refused == 1


class WithTerm(Trainer):
    """Its loss holds more than that of the samples, once NaN."""

    turn = 0

    def compute_loss(self, model, inputs, *args, **more):
        self.turn += 1
        return super().compute_loss(model, inputs, *args, **more) * (math.nan if self.turn == 9 else 1.0)


class R8WithTerm(R8Mixin, WithTerm):
    pass


def test_a_loss_of_ones_own_is_judged_too(tmp_path):
    """The samples' losses are finite, the Trainer's is not: its batch is refused, before a weight sees it."""
    trainer = common.train(tmp_path, trainer=R8WithTerm)

    assert trainer.r8.scheduler.sentry.num_refused == 1
    assert "model restored" not in trainer.r8.summary()


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


class Hurt(TrainerCallback):
    """A weight is NaN after the update that the second evaluation within an epoch follows."""

    def on_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 11:
            model.net[0].weight.data[0, 0] = float("nan")


@pytest.mark.parametrize("r8", [None, {"batches": False}], ids=["R8's batches", "own"])
def test_an_evaluation_within_an_epoch_sees_no_nan(tmp_path, r8):
    parts = {"eval_dataset": Digits(), "callbacks": [Hurt()]}
    done = common.train(tmp_path, r8=r8, parts=parts, num_train_epochs=2, eval_strategy="steps", eval_steps=6)

    losses = [each["eval_loss"] for each in done.state.log_history if "eval_loss" in each]
    assert len(losses) > 3
    assert all(0 < each < 2.5 for each in losses)


class Weighted(common.R8Trainer):
    """With class weights as an attribute, which a gradient needs."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        if not hasattr(self, "class_weights"):
            self.class_weights = torch.ones(10)
        loss = torch.nn.functional.cross_entropy(model(**inputs)["logits"], inputs["labels"], self.class_weights)
        return (loss, {}) if return_outputs else loss


def test_a_search_for_a_cause_leaves_what_a_gradient_needs(tmp_path):
    model = common.Model(bad=(11,))
    done = common.train(tmp_path, trainer=Weighted, model=model, r8={"batches": False}, num_train_epochs=2)

    assert "not finite: one incident" in done.r8.scheduler.summary()
    assert "inplace" not in done.r8.scheduler.summary()
