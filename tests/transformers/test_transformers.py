"""`learnit_r8.transformers`: Trainer's own loop and checkpoints, with the batches of R8Scheduler."""

import importlib
import json
import re
import runpy
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import learnit_r8.transformers
from learnit_r8 import Backups
from learnit_r8.transformers import R8Mixin
from learnit_r8.transformers.losses import document_losses, losses_of
from tests.drive import Weighing
from tests.transformers.common import IMAGES, LABELS, STEPS, Digits, Model, R8Trainer, arguments, digest, train

pytestmark = [
    pytest.mark.program,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:.*learning rate was changed.*"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "transformers_digits.py"


@pytest.mark.program
@pytest.mark.parametrize("accumulate", [1, 2])
def test_random_augmentation_is_the_same_after_a_resume(tmp_path, accumulate):
    """Trainer sets the random generators once it has fetched the first batches: each has numbers of its own."""

    class Noisy(Digits):
        def __getitem__(self, index):
            return {"images": IMAGES[index] + 0.1 * torch.randn(64), "labels": LABELS[index]}

    class Noted(Model):
        def forward(self, images, labels=None):
            sums.append(float(images.double().sum()))
            return super().forward(images, labels)

    seen = []
    for resume in (None, tmp_path / "checkpoint-4"):
        sums = []
        trainer = R8Trainer(
            model=Noted(), train_dataset=Noisy(), r8={"guard": "finite", "backup_every": Backups(backup_dir=False)},
            args=arguments(
                tmp_path, max_steps=9, save_strategy="steps", save_steps=4, gradient_accumulation_steps=accumulate
            ),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume and str(resume))
        seen.append((sums, digest(trainer)))

    assert len(seen[1][0]) == len(seen[0][0]) - 4 * accumulate
    assert seen[1][0] == seen[0][0][4 * accumulate :]
    assert seen[1][1] == seen[0][1]


@pytest.mark.program
@pytest.mark.parametrize("draws", [True, False], ids=["drawn", "own batches"])
def test_resumes_twice_with_incidents_before_and_after(tmp_path, draws):
    """Twice in mid-epoch, within accumulated gradients: a NaN before the first resume, between both and after."""

    class Broken(Model):
        def forward(self, images, labels=None):
            self.bad = [self.calls] if self.training and trainers[-1].r8.scheduler.global_step in {5, 20, 33} else []
            return super().forward(images, labels)

    trainers = []

    def run(folder, resume=None):
        torch.manual_seed(0)
        options = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 3}
        r8 = {"backup_every": 1, **({} if draws else {"batches": False})}
        args = arguments(folder, **options)
        trainers.append(R8Trainer(model=Broken(), args=args, train_dataset=Digits(), r8=r8))
        trainers[-1].train(resume_from_checkpoint=resume)
        weights = [each.tolist() for each in trainers[-1].model.parameters()]
        return weights, digest(trainers[-1]) if draws else (), trainers[-1].r8.scheduler.sentry.num_refused

    whole = run(tmp_path)
    once = run(tmp_path / "again", tmp_path / "checkpoint-6")
    twice = run(tmp_path / "again", tmp_path / "again/checkpoint-8")

    assert whole[-1] >= 3
    # Not NaN, which would be equal to nothing.
    assert once == twice == whole


def test_evaluation(tmp_path):
    """Evaluation and early saves are Trainer's; the metrics reach the scheduler's listeners."""
    heard = []
    trainer = train(
        tmp_path, eval_strategy="epoch", logging_strategy="steps", logging_steps=5, parts={"eval_dataset": Digits()},
        r8={"listeners": [lambda event: heard.append(getattr(event, "metrics", {}))]},
    )  # fmt: skip
    rates = [each["learning_rate"] for each in trainer.state.log_history if "learning_rate" in each]

    assert sum("eval_loss" in each for each in heard) == 3
    assert max(rates) > min(rates) > 0


def test_own_rate_scheduler(tmp_path):
    """A rate scheduler given besides is refused by name; with scheduler_mode="keep" Trainer's own has its way."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    with pytest.raises(ValueError, match=r"must hold no rate scheduler, .*StepLR"):
        R8Trainer(model=model, args=arguments(tmp_path), train_dataset=Digits(), optimizers=(optimizer, own))
    trainer = train(tmp_path, r8={"scheduler_mode": "keep"}, lr_scheduler_type="constant")
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.program
def test_resumes_with_rates_of_the_trainer(tmp_path):
    """Where the rate is left to Trainer's own scheduler, its checkpoint resumes exactly too."""
    options = {"r8": {"scheduler_mode": "keep"}, "lr_scheduler_type": "cosine", "warmup_steps": 5}
    whole = train(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=None, **options)
    resumed = train(tmp_path, resume=f"{tmp_path}/checkpoint-17", **options)

    assert digest(resumed) == digest(whole)
    assert resumed.lr_scheduler.last_epoch == whole.lr_scheduler.last_epoch == 3 * STEPS


@pytest.mark.parametrize(
    ("r8", "error", "message"),
    [
        (3, TypeError, "r8 must be a dict of settings"),
        ({"batch_size": 8}, ValueError, "batch_size must be left out of r8"),
        ({"policy": "nothing"}, ValueError, "policy"),
    ],
)
def test_arguments(tmp_path, r8, error, message):
    """Each wrong setting is named."""
    with pytest.raises(error, match=message):
        train(tmp_path, r8=r8)


def test_before_training(tmp_path):
    """The adapter is there once the training has begun."""
    trainer = R8Trainer(model=Model(), args=arguments(tmp_path), train_dataset=Digits())

    with pytest.raises(RuntimeError, match=r"before train\(\) was called"):
        _ = trainer.r8


class Tokens(Digits):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        row = (torch.arange(12) * (index + 1)) % 17
        labels = row.clone()
        labels[8 + index % 4 :] = -100
        return {"input_ids": row, "labels": labels}


def language_trainer(folder, size, *, kind=R8Trainer, parts=None, r8=None, data_collator=None, **more):
    torch.manual_seed(0)
    # A plain loader draws from the generator that dropout would draw from.
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(vocab_size=17, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, **dropout)
    options = {"per_device_train_batch_size": size, "num_train_epochs": 1, "lr_scheduler_type": "constant", **more}
    given = {"model": GPT2LMHeadModel(config), "args": arguments(folder, **options), "train_dataset": Tokens()}
    given |= {"data_collator": data_collator, **(parts or {})}
    return kind(**given, r8=r8) if issubclass(kind, R8Trainer) else kind(**given)


class Recording(R8Trainer):
    """Keeps the batches that it trains on."""

    batches = ()

    def training_step(self, model, inputs, *more):
        self.batches = [*self.batches, {name: each.clone() for name, each in inputs.items()}]
        return super().training_step(model, inputs, *more)


def double(outputs, labels, num_items_in_batch=None):
    """A loss of the user's own."""
    rows = outputs["logits"][:, :-1].flatten(0, 1)
    return 2 * torch.nn.functional.cross_entropy(rows, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("options", "parts"),
    [({}, {}), ({"label_smoothing_factor": 0.1}, {}), ({}, {"compute_loss_func": double})],
    ids=["items of a step", "label smoothing", "own loss"],
)
def test_trains_on_the_loss_of_the_trainer(tmp_path, options, parts):
    """On the same batches the weights are those of the plain Trainer, whatever its loss, over all tokens of a step."""
    options = {"gradient_accumulation_steps": 4, **options}
    ours = language_trainer(tmp_path, 4, kind=Recording, parts=parts, r8={"scheduler_mode": "keep"}, **options)
    ours.train()

    class Fixed(Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(ours.batches, batch_size=None)

    plain = language_trainer(tmp_path, 4, kind=Fixed, parts=parts, **options)
    plain.train()

    assert len(ours.batches) == 6
    assert ours.r8.scheduler.table.source == "exact"
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Weighted(R8Trainer):
    """A loss of the class's own, as most scripts that change the loss write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(inputs["images"], labels)["logits"]
        loss = torch.nn.functional.cross_entropy(logits, labels, weight=torch.linspace(0.5, 1.5, 10))
        return (loss, {"logits": logits}) if return_outputs else loss


def test_a_class_may_compute_its_own_loss(tmp_path):
    """The losses of samples are noted whatever compute_loss a subclass has, in training, evaluation and a resume."""
    options = {"save_strategy": "steps", "save_steps": 17}
    whole = train(tmp_path, trainer=Weighted, model=Model(bad=(20,)), **options)
    again = train(tmp_path, trainer=Weighted, resume=str(tmp_path / "checkpoint-34"), **options)

    assert (whole.r8.scheduler.pace.turns, whole.r8.scheduler.sentry.num_refused) == (3 * STEPS, 1)
    assert whole.r8.scheduler.table.source == "exact"
    assert digest(again) == digest(whole)
    assert whole.evaluate(Digits())["eval_loss"] < 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_samples_are_those_of_the_trainer(tmp_path, smoothing):
    """The mean of the losses that R8Scheduler learns is the loss that is trained on."""
    means, logged = [], []

    class Compared(R8Trainer):
        def sample_losses(self, model, inputs, outputs):
            own = super().sample_losses(model, inputs, outputs)
            means.append(float(own.losses[own.mask].mean()))
            return own

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # A mean over the tokens of the batch.
            loss = super().compute_loss(model, inputs, return_outputs, None)
            logged.append(float(loss))
            return loss

    language_trainer(tmp_path, 4, kind=Compared, label_smoothing_factor=smoothing).train()

    assert len(means) == 6
    assert means == pytest.approx(logged, rel=1e-5)


class Fresh(R8Trainer):
    """Makes an optimizer at each call, as many do; Trainer's own method makes one."""

    def create_optimizer(self):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        return self.optimizer


class Guarded(Fresh):
    def create_optimizer(self):
        return super().create_optimizer() if self.optimizer is None else self.optimizer


def test_an_optimizer_that_the_user_makes_is_the_one_that_steps(tmp_path):
    fresh, guarded = (train(tmp_path / each.__name__, trainer=each) for each in (Fresh, Guarded))
    assert fresh.optimizer.param_groups[0]["lr"] == guarded.optimizer.param_groups[0]["lr"] < 0.001
    assert digest(fresh) == digest(guarded)


def test_a_second_training_begins_at_the_rate_of_the_arguments(tmp_path):
    """By then the Trainer has the optimizer as accelerate wraps it, at the last rate of the first training."""
    rates = []

    class Noted(Model):
        def forward(self, images, labels=None):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            return super().forward(images, labels)

    trainer = R8Trainer(model=Noted(), train_dataset=Digits(), args=arguments(tmp_path, max_steps=6))
    for _ in range(2):
        trainer.train()

    assert rates[:6] == rates[6:]
    assert max(rates) > 5 * min(rates)


def test_weights_of_a_policy(tmp_path):
    """Where a policy weights losses the weighted mean is trained on: with half the weight, half the gradient."""
    norms = []
    for r8 in ({"policy": "shuffle"}, {"policy": Weighing(0.5)}):
        options = {"max_grad_norm": 1e9, "logging_strategy": "steps", "logging_steps": 1, "num_train_epochs": 2}
        trainer = language_trainer(tmp_path, 24, r8=r8, **options)
        trainer.train()
        norms.append([each["grad_norm"] for each in trainer.state.log_history if "grad_norm" in each])

    # The first epoch is the same for all policies.
    assert norms[1] == pytest.approx([norms[0][0], norms[0][1] / 2], rel=0.2)


def test_weights_of_a_policy_need_the_whole_loss(tmp_path):
    """A loss of the class's own gives way to that of the samples where a policy weights them: a warning says so."""
    with pytest.warns(RuntimeWarning, match="the policy weights samples, .* and not the Trainer's loss of") as said:
        train(tmp_path, trainer=Weighted, model=Model(), r8={"policy": Weighing(0.5)})
    assert sum("the policy weights" in str(each.message) for each in said) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the policy weights")
        train(tmp_path, model=Model(), r8={"policy": Weighing(0.5)})


def test_losses_of_tokens():
    """A token's logits are for the next label, and labels of -100 do not count."""
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, -100], [6, -100, -100, 1, 2]])
    own = losses_of(logits, labels, shifted=True, smoothing=0.0)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)

    torch.testing.assert_close(own.losses[own.mask].mean(), expected)
    with pytest.raises(ValueError, match="logits must have the shape of the labels"):
        losses_of(logits, labels[:, 1:], shifted=True, smoothing=0.0)


def test_losses_of_documents():
    """Documents laid one behind the other have the losses they would have alone, found by their positions."""
    logits, labels = torch.randn(1, 7, 5), torch.tensor([[-100, 2, 3, -100, 1, -100, 4]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1]])
    own = losses_of(logits, labels, shifted=True, smoothing=0.0)
    alone = [
        losses_of(logits[:, a:b], labels[:, a:b], shifted=True, smoothing=0.0) for a, b in ((0, 3), (3, 5), (5, 7))
    ]
    expected = torch.stack([each.losses[each.mask].mean() for each in alone])

    torch.testing.assert_close(document_losses(own, positions, 3).losses, expected)
    assert document_losses(own, positions, 2) is None
    assert document_losses(own, None, 3) is None


def flattened(items):
    """A batch of documents in one row."""
    lists = [{name: value.tolist() for name, value in item.items()} for item in items]
    return DataCollatorWithFlattening()(lists)


@pytest.mark.parametrize("size", [4, 1])
def test_documents_in_one_row(tmp_path, size):
    """With a collator that flattens documents into a row the loss of each document is known."""
    trainer = language_trainer(tmp_path, size, data_collator=flattened)
    trainer.train()

    assert trainer.r8.scheduler.table.source == "exact"
    assert set(trainer.r8.scheduler.table.usage_count.tolist()) == {1}


def test_rows_that_are_no_samples(tmp_path):
    """Where a row holds other documents than the batch's samples, the losses of samples are estimated; said once."""

    def merged(items):
        return {name: value for name, value in flattened(items).items() if name != "position_ids"}

    heard = []
    listeners = [lambda event: heard.append(getattr(event, "text", ""))]
    trainer = language_trainer(tmp_path, 4, data_collator=merged, r8={"listeners": listeners})
    trainer.train()

    assert trainer.r8.scheduler.table.source == "batch means of 4"
    assert sum("losses for 1 rows of a batch of 4" in text for text in heard) == 1


def test_a_checkpoint_is_torchs_own(tmp_path):
    """The scheduler's state is in scheduler.pt, readable without running code."""
    train(tmp_path, save_strategy="epoch")
    state = torch.load(tmp_path / f"checkpoint-{STEPS}" / "scheduler.pt", weights_only=True)

    assert state
    assert json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["global_step"] == STEPS


def test_the_training_ends_with_a_budget_of_r8(tmp_path):
    """When the budget is spent the training ends, whatever number of epochs the Trainer was told."""
    assert train(tmp_path, r8={"num_steps": 20}).state.global_step == 20


def test_resume_beside_a_checkpoint(tmp_path):
    """With resume_from_checkpoint Trainer's checkpoint wins over resume="auto", which is said."""
    heard = []
    r8 = {"checkpoint_dir": tmp_path / "own", "resume": "auto"}
    train(tmp_path, r8=r8, save_strategy="steps", save_steps=5)
    listen = {"listeners": [lambda event: heard.append(getattr(event, "text", ""))]}
    trainer = train(tmp_path, r8=r8 | listen, resume=f"{tmp_path}/checkpoint-5")

    assert any("resume='auto' of r8 is ignored" in text for text in heard)
    assert trainer.r8.scheduler.global_step == 3 * STEPS


def test_checkpoint_without_a_scheduler(tmp_path):
    """A checkpoint of a training without R8Mixin is refused before training begins."""
    plain = Trainer(model=Model(), args=arguments(tmp_path, save_strategy="epoch"), train_dataset=Digits())
    plain.train()

    with pytest.raises(ValueError, match="resume_from_checkpoint must be a checkpoint of a training with R8Mixin"):
        train(tmp_path, resume=True)


def test_another_batch_size(tmp_path):
    """On resume the batches keep the size that they had in the checkpoint, which is said."""
    whole = digest(train(tmp_path, save_strategy="steps", save_steps=5))
    heard = []
    listen = {"listeners": [lambda event: heard.append(getattr(event, "text", ""))]}
    resumed = train(tmp_path, resume=f"{tmp_path}/checkpoint-5", per_device_train_batch_size=16, r8=listen)

    assert digest(resumed) == whole
    # Old releases of Trainer take the size from the checkpoint themselves.
    is_said = any("the batches have 32 samples, as in the checkpoint" in text for text in heard)
    assert is_said or resumed._train_batch_size == 32


GROUPED = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else {"group_by_length": True}
)
"""Batches of similar lengths, as releases of Transformers call it."""


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Digits())


@pytest.mark.parametrize(
    ("more", "parts", "error", "message"),
    [
        (GROUPED, {}, ValueError, "(train_sampling_strategy must be 'random'|group_by_length must be False)"),
        ({"max_steps": 5}, {"train_dataset": Stream()}, TypeError, "For a stream, collect as many samples as fit"),
    ],
)
def test_what_trainer_would_draw(tmp_path, more, parts, error, message):
    """An order of the samples that is not R8Scheduler's, and a stream, are refused before training begins."""
    trainer = R8Trainer(**{"model": Model(), "args": arguments(tmp_path, **more), "train_dataset": Digits(), **parts})

    with pytest.raises(error, match=message):
        trainer.train()


def test_rates_that_are_not_used(tmp_path):
    """A schedule asked for in the TrainingArguments is named as not used, before training begins."""
    with pytest.warns(RuntimeWarning, match=r"lr_scheduler_type='cosine', warmup_steps=3.* is not used"):
        train(tmp_path, lr_scheduler_type="cosine", warmup_steps=3)


def test_part_of_an_epoch(tmp_path):
    """With half an epoch more, the schedule ends where the Trainer ends."""
    trainer = train(tmp_path, num_train_epochs=1.5)

    assert (trainer.state.global_step, trainer.r8.scheduler.global_step) == (20, 20)
    assert trainer.r8.scheduler.is_over


@pytest.mark.program
def test_example(capsys):
    """The example of the guide learns the digits."""
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out

    assert float(re.search(r"^accuracy ([\d.]+)", printed, re.MULTILINE)[1]) > 0.9


def test_old_release(monkeypatch):
    """An old release of Transformers is named when the adapter is imported, with what will do."""
    monkeypatch.setattr("importlib.metadata.version", lambda _: "4.9.2")

    with pytest.raises(ImportError, match=r"transformers must be release 4.57 or newer, got 4.9.2; pip install -U"):
        importlib.reload(learnit_r8.transformers)


def test_the_order_of_the_bases_is_checked():
    """The other way round the Trainer would train without R8Scheduler, and say nothing."""
    with pytest.raises(TypeError, match=r"R8Mixin must come before the Trainer .*got class Wrong\(Trainer, R8Mixin\)"):

        class Wrong(Trainer, learnit_r8.transformers.R8Mixin):
            pass

    with pytest.raises(TypeError, match="R8Mixin must have a Trainer beside it"):
        learnit_r8.transformers.R8Mixin()


class Embeddings(torch.nn.Module):
    """A model whose forward pass names no column, as that of sentence-transformers."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.EmbeddingBag(128, 8)

    def forward(self, features):
        return self.net(features)


class PairTrainer(Trainer):
    """It makes its own loader, whose collator takes columns of text, as the trainers of sentence-transformers do."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=8, shuffle=True, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        one, two = model(inputs["anchor_input_ids"]), model(inputs["positive_input_ids"])
        loss = (one - two).square().mean() + (one.mean(0) - inputs["label"].mean()).square().mean()
        return (loss, {}) if return_outputs else loss


def encode_pairs(rows):
    def encode(name):
        return torch.tensor([[ord(letter) for letter in row[name]] for row in rows])

    names = [name for name in rows[0] if name != "label"]
    return {f"{name}_input_ids": encode(name) for name in names} | {
        "label": torch.tensor([row["label"] for row in rows])
    }


def test_the_collator_of_a_trainer_that_makes_its_own_loader_gets_all_columns(tmp_path):
    """Columns of text are not taken from it, though the model's forward pass does not name them; nor after a resume."""
    datasets = pytest.importorskip("datasets")
    words = [f"w{number:03}" for number in range(64)]
    table = {"anchor": words, "positive": words[::-1], "label": [float(number % 2) for number in range(64)]}
    kind = type("R8PairTrainer", (R8Mixin, PairTrainer), {})
    ends = []
    for resume in (None, f"{tmp_path}/checkpoint-8"):
        options = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
        torch.manual_seed(0)
        data, args = datasets.Dataset.from_dict(table), arguments(tmp_path, **options)
        trainer = kind(model=Embeddings(), args=args, train_dataset=data, data_collator=encode_pairs, r8={})
        trainer.train(resume_from_checkpoint=resume)
        ends.append(trainer.model.net.weight.detach().clone())

    assert trainer.r8.scheduler.global_step == 16
    assert torch.equal(*ends)
