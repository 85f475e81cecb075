"""R8Mixin with the Trainer's own batches and rates: to the bit what the Trainer does alone, and one NaN healed."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, WeightedRandomSampler
from transformers import Trainer

from learnit_r8 import Monitor, RunDir, events
from learnit_r8.recovery.record import numbers_in
from learnit_r8.testing import record_events
from learnit_r8.torch import load_incident
from learnit_r8.transformers import R8Mixin
from tests.torch_common import equal
from tests.transformers.common import IMAGES, LABELS, STEPS, Digits, Model, R8Trainer, arguments, train
from tests.transformers.test_transformers import GROUPED

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


class Stream(IterableDataset):
    def __iter__(self):
        for index in torch.randperm(len(LABELS)).tolist():
            yield Digits()[index]


class Sampled(Trainer):
    """With a sampler of its own: half of what it draws are zeros."""

    def _get_train_sampler(self, *_):
        weights = torch.where(LABELS == 0, 9.0, 1.0)
        return WeightedRandomSampler(weights, len(LABELS))


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = cross_entropy(outputs["logits"], inputs["labels"], label_smoothing=0.1)
        return (loss, outputs) if return_outputs else loss


class Adversarial(Trainer):
    """Goes backward from each batch a second time, with other weights, as adversarial training does."""

    leaves_out = calls_loss = False

    def training_step(self, model, inputs, *more):
        model.net[2].p = 0.0
        if self.leaves_out and not inputs["images"].isfinite().all():
            return torch.zeros(())
        loss = super().training_step(model, inputs, *more)
        inputs, weight = self._prepare_inputs(inputs), model.net[0].weight
        before = weight.data.clone()
        weight.data.add_(0.01)
        (self.compute_loss(model, inputs) if self.calls_loss else model(**inputs)["loss"]).backward()
        weight.data = before
        return loss


class Grouped(Digits):
    """Rows with a length to group them by."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "input_ids": torch.zeros(1 + index % 7)}


def collate(rows):
    return torch.utils.data.default_collate([{name: row[name] for name in ("images", "labels")} for row in rows])


class Hurt(Model):
    def __init__(self, nan_at=None):
        super().__init__()
        self.nan_at = nan_at

    def forward(self, images, labels=None):
        if self.calls == self.nan_at and self.training:
            self.net[0].weight.data[0, 0] = float("nan")
        return super().forward(images, labels)


def run(
    folder, base, *, with_r8=True, nan_at=None, resume=None, dataset=None, eval_dataset=None, r8=None, **options
):  # fmt: skip
    kind = type("Own", (R8Mixin, base), {}) if with_r8 else base
    given = {"data_collator": collate} if isinstance(dataset, Grouped) else {"eval_dataset": eval_dataset}
    if with_r8:
        given["r8"] = {"batches": False, **(r8 or {})}
    torch.manual_seed(0)
    model, args = Hurt(nan_at), arguments(folder, **{"lr_scheduler_type": "cosine", "warmup_steps": 5, **options})
    trainer = kind(model=model, args=args, train_dataset=dataset or Digits(), **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state_of(trainer):
    optimizer = torch.utils._pytree.tree_leaves(trainer.optimizer.state_dict())
    return [*trainer.model.state_dict().values(), torch.get_rng_state(), *optimizer]


SITUATIONS = {
    "accumulated": (Trainer, {"gradient_accumulation_steps": 3, "num_train_epochs": 5}),
    "stream": (Trainer, {"dataset": Stream(), "max_steps": 3 * STEPS}),
    "sampler": (Sampled, {}),
    "own loss": (OwnLoss, {}),
    "groups": (Trainer, {**GROUPED, "dataset": Grouped(), "remove_unused_columns": False}),
}


@pytest.mark.parametrize(("base", "options"), SITUATIONS.values(), ids=SITUATIONS)
def test_nothing_changes_without_an_incident_and_a_nan_is_healed(tmp_path, base, options):
    """Weights, optimizer and generators are those of the Trainer alone; one NaN in the weights goes back."""
    plain = run(tmp_path, base, with_r8=False, **options)
    before = state_of(plain)
    watched = run(tmp_path, base, **options)

    assert equal(before, state_of(watched))
    r8 = watched.r8.scheduler
    assert r8.global_step == STEPS * int(options.get("num_train_epochs", 3))
    assert r8.sentry.num_refused == 0

    hurt = run(tmp_path, base, nan_at=22, r8={"backup_every": 9}, **options)
    assert hurt.r8.scheduler.sentry.num_refused >= 1
    assert hurt.state.global_step == plain.state.global_step
    losses = [float(cross_entropy(each.model.eval().net(IMAGES), LABELS).detach()) for each in (plain, hurt)]
    assert losses[1] < max(1.25 * losses[0], 0.6)


@pytest.mark.parametrize("draws", [True, False])
def test_a_best_checkpoint_of_long_ago_is_kept(tmp_path, draws):
    """It is loaded as the training ends: that its weights are far smaller than the last ones is no damage."""
    model = Model()
    model.net[2].p = 0.0
    for each in model.parameters():
        each.data.mul_(0.01)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    kept = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    given = {"r8": None if draws else {"batches": False}, "parts": {"eval_dataset": Digits()}}
    trainer = train(tmp_path, model=model, num_train_epochs=8, learning_rate=0.02, **given, **best, **kept)
    saved = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")

    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    assert "restored" not in trainer.r8.summary()


class Parts(Model):
    """Its loss is the part of the batch in that of all batches of a step, as that of transformers' own models."""

    def forward(self, images, labels=None, **more):
        found = super().forward(images, labels)
        # The Trainer tells it to a model that takes any keyword.
        return {"loss": cross_entropy(found["logits"], labels, reduction="sum") / more["num_items_in_batch"]}


@pytest.mark.parametrize("draws", [True, False])
def test_losses_of_accumulated_batches_are_those_of_batches(tmp_path, draws):
    """What is divided by the items of all batches of a step is told as it was; the budget counts all batches."""
    first = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        heard, kind = record_events(), type("Own", (R8Mixin, Trainer), {})
        args = arguments(tmp_path, gradient_accumulation_steps=accumulate, max_steps=4)
        settings = {"batches": draws, "listeners": [heard]}
        trainer = kind(model=Parts(), args=args, train_dataset=Digits(), r8=settings)
        trainer.train()
        first.append(heard.of(events.StepDone)[0].loss)
        assert trainer.r8.scheduler.global_step == 4 * accumulate

    assert first[0] == pytest.approx(first[1], rel=0.2)


def test_a_checkpoint_without_r8_is_refused(tmp_path):
    """One that the Trainer alone has written is refused by name."""
    run(tmp_path, Trainer, with_r8=False, save_strategy="steps", save_steps=10, max_steps=10)

    with pytest.raises(ValueError, match=r"checkpoint-10.*, which holds no state of R8"):
        run(tmp_path, Trainer, resume=f"{tmp_path}/checkpoint-10")


def test_a_sampler_of_the_class_is_not_dropped(tmp_path):
    """Where R8Scheduler draws, a Trainer with a sampler or a batch sampler of its own is refused, before training."""
    kind = type("Own", (R8Mixin, Sampled), {})
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match=r"got Sampled with a _get_train_sampler.*'batches': False"):
        kind(model=Model(), args=args, train_dataset=Digits()).train()

    args.batch_sampler = "no_duplicates"
    with pytest.raises(ValueError, match="got 'no_duplicates'"):
        R8Trainer(model=Model(), args=args, train_dataset=Digits()).train()


def test_the_seed_is_that_of_the_arguments(tmp_path):
    """Other seeds of the TrainingArguments draw other batches; one given in r8 goes first."""
    seeds = [
        R8Trainer(model=Model(), args=arguments(tmp_path, **seed), train_dataset=Digits(), r8=r8)
        for seed, r8 in [({"seed": 1}, None), ({"seed": 1, "data_seed": 7}, None), ({"seed": 1}, {"seed": 3})]
    ]
    for trainer in seeds:
        trainer.get_train_dataloader()

    assert [trainer.r8.scheduler.host.source.seed for trainer in seeds] == [1, 7, 3]


def test_names_do_not_shadow_those_of_trainers():
    """What R8Mixin adds to a Trainer of others is private to it by name, as TRL's have a _compute_loss()."""
    own = {name for name in vars(R8Mixin) if name.startswith("_") and not name.startswith("__")}
    added = {name for name in own if not hasattr(Trainer, name)}

    assert added
    assert all(name.startswith("_r8_") for name in added)
    assert own - added == {"_load_best_model"}


@pytest.mark.parametrize("value", [0, None, "no"])
def test_batches_must_be_a_truth_value(tmp_path, value):
    """A value that is neither is refused."""
    with pytest.raises(TypeError, match="batches in r8 must be True or False"):
        R8Trainer(model=Model(), args=arguments(tmp_path), train_dataset=Digits(), r8={"batches": value})


@pytest.mark.parametrize("batches", [False, True])
def test_the_place_of_an_incident_is_found_by_computing_the_loss_again(tmp_path, batches):
    """The Trainer's own compute_loss, on its own batches and on those of the scheduler."""
    heard = record_events()
    settings = {"batches": batches, "guard": "finite", "backup_every": 9, "listeners": [heard]}
    run(tmp_path, OwnLoss, nan_at=29, r8=settings)

    (cause, *_) = heard.of(events.CauseFound)
    # Before the optimizer takes its step, which would spread it.
    assert "1 of the weights `net.0.weight` is not finite, and all others are" in cause.text


@pytest.mark.parametrize("own", [True, False], ids=["own batches", "R8's batches"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_refused_batch_counts_in_the_logged_loss_as_those_before(tmp_path, own, accumulated):
    """For NaN the Trainer would log 0, or half of the loss within an accumulated gradient, as a mean of nothing.

    It is the median of three, as the last one alone may be that of weights that are undone.
    """
    trainer = train(
        tmp_path, model=Model(bad=(6,)), r8={"batches": not own, "guard": "finite"}, max_steps=8,
        logging_strategy="steps", logging_steps=1, gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    logged = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    place = 6 // accumulated

    assert trainer.r8.scheduler.sentry.num_refused == 1
    assert len(logged) == 8
    if accumulated == 1:
        assert logged[place] == pytest.approx(sorted(logged[place - 3 : place])[1])
    assert logged[place] > 0.75 * logged[place - 1]


@pytest.mark.parametrize("monitor", ["val_loss", Monitor("val_loss", mode="min")], ids=["a name", "with a mode"])
@pytest.mark.parametrize("own", [True, False], ids=["own batches", "R8's batches"])
def test_a_monitor_that_no_evaluation_logs_is_named_before_the_first_step(tmp_path, own, monitor):
    """The run would hear of it after its first epoch."""
    with pytest.warns(RuntimeWarning, match="monitor='val_loss' is no metric of the Trainer's evaluations"):
        train(tmp_path, r8={"batches": not own, "monitor": monitor}, max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, r8={"batches": not own, "monitor": "eval_loss"}, max_steps=1)

    assert not [each for each in caught if "evaluations, whose names" in str(each.message)]


class Spoilt(Digits):
    """A row of the sixth batch holds NaN, whichever sample it is."""

    def __init__(self):
        self.count = 0

    def __getitem__(self, index):
        row, self.count = super().__getitem__(index), self.count + 1
        return {**row, "images": row["images"] * float("nan")} if self.count == 5 * 32 + 4 else row


def test_a_resumed_training_numbers_its_incidents_on(tmp_path):
    """Before and after the resume the sample is named, and its batch replayed by ``compute_loss``."""
    r8 = {"run_dir": RunDir(tmp_path / "run", record="all"), "guard": "finite", "backup_every": 4}
    common = {"r8": r8, "save_strategy": "steps", "save_steps": 2 * STEPS}
    run(tmp_path, OwnLoss, max_steps=2 * STEPS, dataset=Spoilt(), **common)
    first = numbers_in(tmp_path / "run")
    trainer = run(tmp_path, OwnLoss, resume=True, max_steps=4 * STEPS, dataset=Spoilt(), **common)
    numbers = numbers_in(tmp_path / "run")

    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > len(first) >= 1
    assert all(torch.isfinite(each).all() for each in trainer.model.parameters())
    for number in (1, numbers[-1]):
        incident = load_incident(tmp_path / "run" / "incidents" / str(number))
        assert "for row 3 of the batch, whose input holds NaN at [0] of images" in incident.cause
        loss = incident.replay(Hurt(), lambda model, batch: trainer.compute_loss(model, batch))
        assert incident.batch["images"].isnan().any()
        assert torch.isnan(loss)


def test_a_backup_repeats_the_loss_that_it_had(tmp_path, monkeypatch):
    """Where weights are tested outside of the loop, a batch has the loss that was reported, by all tokens of a step."""

    class Counting(Trainer):
        """As for a language model: the loss is divided by the items of all batches of a step."""

        is_hurt = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert num_items_in_batch is not None
            if self.state.global_step == 40 and not self.is_hurt:
                self.is_hurt = True
                for each in model.parameters():
                    each.data *= 100
            outputs = model(**inputs)
            loss = cross_entropy(outputs["logits"], inputs["labels"], reduction="sum") / num_items_in_batch
            return (loss, outputs) if return_outputs else loss

    monkeypatch.setattr(Hurt, "accepts_loss_kwargs", True, raising=False)
    heard = record_events()
    r8 = {"backup_every": 6, "listeners": [heard]}
    trainer = run(tmp_path, Counting, r8=r8, gradient_accumulation_steps=2, num_train_epochs=8)
    probes = [each for each in heard.of(events.Probed) if not each.is_present]

    assert trainer.is_hurt
    # Two batches are one update.
    assert sum(each.loss for each in probes[:2]) / 2 == pytest.approx(probes[0].record, rel=1e-6)
    assert heard.of(events.RolledBack)


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_network_begun_anew_two_steps_before_the_end(tmp_path, stops_early):
    """Its weights are tested in the mode of training, dropout and all, and before the evaluation of the last step; but
    that which stops the training sees them damaged."""

    class BegunAnew(Trainer):
        at = None

        def training_step(self, model, inputs, *more):
            if self.state.global_step == self.at:
                for each in model.parameters():
                    each.data = 0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0))
            return super().training_step(model, inputs, *more)

        def evaluate(self, *given, **more):
            found = super().evaluate(*given, **more)
            self.control.should_training_stop |= self.state.global_step == 8 * STEPS
            return found

    def evaluated(name, at):
        options = {"num_train_epochs": 8 + stops_early, "eval_strategy": "steps", "eval_steps": 4 * STEPS}
        trainer = run(tmp_path / name, type("At", (BegunAnew,), {"at": at}), eval_dataset=Digits(), **options)
        losses = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
        return losses, trainer.evaluate()["eval_loss"], trainer.r8.summary()

    untouched, _, _ = evaluated("untouched", None)
    losses, last, told = evaluated("begun anew", 8 * STEPS - 2)

    assert "model restored once" in told
    assert (losses[-1] == last) is not stops_early
    assert last < 1.05 * untouched[-1] < untouched[0]


class OneBad(Digits):
    """One picture is bad, and finite or not."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "images": row["images"] * (self.value if index == 7 else 1.0)}


@pytest.mark.parametrize("calls_loss", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_second_gradient_of_a_refused_batch_is_none(tmp_path, calls_loss, accumulate):
    """A class that goes backward again within training_step leaves no gradient of a batch that is refused.

    A batch whose loss is computed twice is one step.
    """

    class Own(Adversarial):
        pass

    Own.calls_loss, ends = calls_loss, []
    for leaves_out in (True, False):
        Own.leaves_out = leaves_out
        ends.append(
            run(
                tmp_path, Own, with_r8=not leaves_out, dataset=OneBad(float("nan")), optim="sgd", max_grad_norm=0.0,
                gradient_accumulation_steps=accumulate, num_train_epochs=2,
            )
        )  # fmt: skip
    by_hand, watched = ends

    assert watched.r8.scheduler.sentry.num_refused == 2
    assert watched.r8.scheduler.global_step == 2 * STEPS
    assert "came from" not in watched.r8.summary()
    for one, two in zip(by_hand.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, two)
