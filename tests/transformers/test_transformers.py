"""`learnit_r8.transformers`: Trainer's own loop and checkpoints, with the batches of R8Scheduler."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from transformers import GPT2Config, GPT2LMHeadModel

from learnit_r8.transformers.losses import is_packed, losses_of
from tests.transformers.common import IMAGES, LABELS, STEPS, Digits, Model, R8Trainer, arguments, digest, train

pytestmark = pytest.mark.filterwarnings("ignore")


def test_learns(tmp_path):
    """One changed line: every sample is used once an epoch, its loss is known, and the model learns."""
    trainer = train(tmp_path, num_train_epochs=8)
    trainer.model.eval()
    accuracy = (trainer.model.net(IMAGES).argmax(1) == LABELS).float().mean()
    r8 = trainer.r8.scheduler

    assert r8.table.source == "exact"
    assert set(r8.table.usage_count.tolist()) == {8}
    assert (r8.global_step, trainer.state.global_step) == (8 * STEPS, 8 * STEPS)
    assert accuracy > 0.9


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_resumes_by_its_own_checkpoint(tmp_path, accumulate, workers):
    """Killed at any step and resumed by resume_from_checkpoint, weights and tables are those of a whole run."""
    options = {"gradient_accumulation_steps": accumulate, "dataloader_num_workers": workers}
    updates = -(-STEPS // accumulate)
    at = (1, updates - 1, updates, updates + 1, 3 * updates - 1)
    whole = digest(train(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=None, **options))
    found = {step: digest(train(tmp_path, resume=f"{tmp_path}/checkpoint-{step}", **options)) for step in at}

    assert found == dict.fromkeys(at, whole)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("bad", [4, 5, 6, STEPS - 1])
def test_heals(tmp_path, accumulate, bad):
    """A NaN in any place is refused, within an accumulated gradient too, and the training has as many steps."""
    trainer = train(tmp_path, model=Model(bad=[bad]), gradient_accumulation_steps=accumulate)
    r8 = trainer.r8.scheduler

    assert (r8.sentry.num_refused, r8.global_step) == (1, 3 * STEPS)
    assert all(each.isfinite().all() for each in trainer.model.parameters())


def test_max_steps(tmp_path):
    """The schedule ends where the Trainer ends, counted in steps of the optimizer."""
    trainer = train(tmp_path, max_steps=7, gradient_accumulation_steps=3)

    assert (trainer.state.global_step, trainer.r8.scheduler.global_step) == (7, STEPS + 6)


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
    """A rate scheduler given besides is refused by name; with sets_lr=False Trainer's own has its way."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    with pytest.raises(ValueError, match=r"must hold no rate scheduler, .*StepLR"):
        R8Trainer(model=model, args=arguments(tmp_path), train_dataset=Digits(), optimizers=(optimizer, own))
    trainer = train(tmp_path, r8={"sets_lr": False}, lr_scheduler_type="constant")
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01


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


def test_language_model(tmp_path):
    """The losses of a causal model are those of its rows, over the tokens that count."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=12, n_embd=16, n_layer=1, n_head=2, bos_token_id=0))
    args = arguments(tmp_path, per_device_train_batch_size=8, num_train_epochs=2, lr_scheduler_type="constant")
    trainer = R8Trainer(model=model, args=args, train_dataset=Tokens())
    trainer.train()

    assert trainer.r8.scheduler.table.source == "exact"
    assert set(trainer.r8.scheduler.table.usage_count.tolist()) == {2}


def test_losses_of_tokens():
    """A token's logits are for the next label, and labels of -100 do not count."""
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, -100], [6, -100, -100, 1, 2]])
    own = losses_of(logits, labels, shifted=True, smoothing=0.0)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)

    torch.testing.assert_close(own.losses[own.mask].mean(), expected)
    with pytest.raises(ValueError, match="logits must have the shape of the labels"):
        losses_of(logits, labels[:, 1:], shifted=True, smoothing=0.0)


def test_packed_rows():
    """A row in which positions begin anew holds several documents."""
    assert is_packed({"position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    assert not is_packed({"position_ids": torch.tensor([[0, 1, 2, 3, 4]])})
    assert not is_packed({})


def test_label_smoothing(tmp_path):
    """With label smoothing the losses of samples are smoothed as the Trainer's own are."""
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    own = losses_of(logits, labels, shifted=False, smoothing=0.1)

    torch.testing.assert_close(
        own.losses.mean(), torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_a_checkpoint_is_torchs_own(tmp_path):
    """The scheduler's state is in scheduler.pt, readable without running code."""
    train(tmp_path, save_strategy="epoch")
    state = torch.load(tmp_path / f"checkpoint-{STEPS}" / "scheduler.pt", weights_only=True)

    assert state
    assert json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["global_step"] == STEPS
