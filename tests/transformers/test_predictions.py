"""What a classifier under Trainer says of labels reaches the table with no line changed; other models report losses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from torch.utils.data import Dataset
from transformers import BertConfig, BertForMultipleChoice, BertForSequenceClassification, BertForTokenClassification

from learnit_r8 import predictions_of
from learnit_r8.transformers.losses import losses_of
from tests.drive import evidence_of
from tests.transformers.common import IMAGES, LABELS, STEPS, Model, R8Trainer, arguments, train

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


def evidence(trainer):
    return evidence_of(trainer.r8.scheduler)


class Fixed(Model):
    """A classifier without dropout, whose first logits are noted."""

    def __init__(self, **more):
        super().__init__(**more)
        self.net = torch.nn.Linear(64, 10)


def test_first_visit_is_that_of_the_logits(tmp_path):
    """With a rate of next to nothing each sample's margin is that of its own logits, the short last batch's too."""
    model = Fixed()
    before = predictions_of(model.net(IMAGES).detach().numpy(), LABELS.numpy())
    found = evidence(train(tmp_path, model=model, num_train_epochs=1, learning_rate=1e-12))

    np.testing.assert_allclose(found["margin"], before.margin, atol=1e-4)
    np.testing.assert_array_equal(found["given"], LABELS.numpy())
    assert set(found["visits"]) == {1}


def test_ignored_labels_are_not_judged(tmp_path):
    """The label -100 is none: such samples have a loss of 0, and no evidence; the training goes on as ever."""

    class Some(Dataset):
        def __len__(self):
            return len(LABELS)

        def __getitem__(self, index):
            return {"images": IMAGES[index], "labels": LABELS[index] if index % 4 else torch.tensor(-100)}

    trainer = R8Trainer(model=Model(), args=arguments(tmp_path), train_dataset=Some())
    trainer.train()

    assert trainer.r8.scheduler.pace.turns == 3 * STEPS
    np.testing.assert_array_equal(evidence(trainer)["visits"], np.where(np.arange(len(LABELS)) % 4, 3, 0))


class Texts(Dataset):
    """Short sequences of tokens, with labels of a shape and a kind."""

    def __init__(self, labels, choices=()):
        self.labels = labels
        self.tokens = torch.randint(0, 20, (len(labels), *choices, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


SMALL = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
}  # fmt: skip


def text_trained(folder, kind, data, **config):
    trainer = R8Trainer(
        model=kind(BertConfig(**SMALL, **config)),
        args=arguments(folder, num_train_epochs=2, per_device_train_batch_size=8),
        train_dataset=data,
    )
    trainer.train()
    return trainer


def test_sequence_classifier(tmp_path):
    """A model of the library is judged by its own outputs."""
    labels = torch.arange(20) % 3
    found = evidence(text_trained(tmp_path, BertForSequenceClassification, Texts(labels), num_labels=3))

    np.testing.assert_array_equal(found["given"], labels.numpy())
    assert set(found["visits"]) == {2}


@pytest.mark.parametrize(
    ("kind", "data", "config", "source"),
    [
        (BertForTokenClassification, Texts(torch.randint(0, 3, (20, 6))), {"num_labels": 3}, "exact"),
        (BertForSequenceClassification, Texts(torch.rand(20)), {"num_labels": 1}, "batch means of 8"),
        (BertForSequenceClassification, Texts(torch.arange(20) % 5), {"num_labels": 1}, "batch means of 8"),
        (BertForSequenceClassification, Texts(torch.randint(0, 2, (20, 3)).float()), {"num_labels": 3}, "batch"),
        (BertForMultipleChoice, Texts(torch.randint(0, 4, (20,)), choices=(4,)), {}, "exact"),
    ],
    ids=["labels of tokens", "regression", "regression of whole numbers", "several labels", "choices"],
)
def test_models_without_one_class_a_sample_report_losses_alone(tmp_path, kind, data, config, source):
    """Sequences of labels, real numbers, several labels and choices are trained as ever, and nothing fails."""
    trainer = text_trained(tmp_path, kind, data, **config)

    pace = trainer.r8.scheduler.pace
    assert pace.step + pace.left_out == 6
    assert trainer.r8.scheduler.table.source.startswith(source)
    assert evidence(trainer) is None


def test_scores_of_pairs_are_no_classes(tmp_path):
    """Scores of each sample against the others of its batch change their number with the short last batch."""

    class Pairs(Model):
        def forward(self, images, labels=None):
            features = self.net(images)
            logits, own = features @ features.T, torch.arange(len(images))
            return {"loss": torch.nn.functional.cross_entropy(logits, own), "logits": logits}

    trainer = train(tmp_path, model=Pairs())

    assert trainer.r8.scheduler.pace.turns == 3 * STEPS


class Own(Model):
    """A model with a loss of its own, a number of scores, and perhaps a config."""

    def __init__(self, classes, loss, problem_type=None):
        super().__init__()
        self.net, self.loss = torch.nn.Linear(64, classes), loss
        if problem_type:
            self.config = BertConfig(num_labels=classes, problem_type=problem_type)

    def forward(self, images, labels=None):
        logits = self.net(images)
        return {"loss": self.loss(logits, labels), "logits": logits}


def own_trained(folder, model, labels):
    data = [{"images": image, "labels": label} for image, label in zip(IMAGES, labels, strict=True)]
    trainer = R8Trainer(model=model, args=arguments(folder, num_train_epochs=1), train_dataset=data)
    trainer.train()
    return trainer


def squared(logits, labels):
    return (logits[:, 0] - labels).square().mean()


def crossed(logits, labels):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (Own(1, crossed), LABELS % 2),
        (Own(1, squared), LABELS),
        (Own(3, squared, "regression"), LABELS),
        (Own(3, crossed, "multi_label_classification"), LABELS % 2),
    ],
    ids=["one logit", "one number", "called regression", "called several labels"],
)
def test_whole_numbers_that_are_no_classes_report_means(tmp_path, model, labels):
    """One score, or a config that says so: the labels are of no classes, and the batch means are reported."""
    trainer = own_trained(tmp_path, model, labels)

    assert trainer.r8.scheduler.table.source == "batch means of 32"
    assert evidence(trainer) is None


@pytest.mark.parametrize("ignored", [-1, 255])
def test_labels_that_a_model_ignores_are_not_judged(tmp_path, ignored):
    """A model may ignore another label than -100: such a sample has no loss and no evidence."""
    few = torch.arange(len(LABELS)) < 5
    model = Own(10, lambda z, y: torch.nn.functional.cross_entropy(z, y, ignore_index=ignored))
    trainer = own_trained(tmp_path, model, LABELS.masked_fill(few, ignored))

    np.testing.assert_array_equal(evidence(trainer)["visits"], ~few.numpy())
    assert not trainer.r8.scheduler.table.loss[:5].any()


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool])
def test_labels_may_have_any_whole_type(tmp_path, kind):
    """Labels that the model turns into int64 itself are judged as int64 ones are."""
    labels = (LABELS % 2).to(kind)
    trainer = own_trained(tmp_path, Own(2, lambda z, y: torch.nn.functional.cross_entropy(z, y.long())), labels)

    np.testing.assert_array_equal(evidence(trainer)["given"], (LABELS % 2).numpy())


def test_few_or_too_many_classes_are_left_out():
    """One class is none to choose from; more than 65,535 do not fit the table."""
    for classes in (1, 2**16):
        assert losses_of(torch.zeros(2, classes), torch.zeros(2).long(), shifted=False, smoothing=0.0).logits is None
