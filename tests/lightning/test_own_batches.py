"""R8Callback alone: loaders, rates and steps of the user's own, to the bit, and one NaN healed."""

import math
import warnings

import pytest

pytest.importorskip("lightning")

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from learnit_r8 import OwnBatches, events
from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.testing import record_events
from tests.lightning.common import DATA, QUIET, Checkpoints, Digits, fit
from tests.torch_common import equal

# Lightning's own, of how it looks at several loaders.
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")]


class Plain(Digits):
    """With a rate of its own, and a NaN in its weights before one of its steps."""

    def __init__(self, nan_at=None):
        super().__init__(exact=False)
        self.nan_at, self.num_steps = nan_at, 0

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]

    def on_train_batch_start(self, batch, batch_idx):
        self.num_steps += 1
        if self.num_steps == self.nan_at:
            self.net[0].weight.data[0, 0] = float("nan")

    def loaders(self):
        return DataLoader(DATA, batch_size=32, shuffle=True)


class Stream(Plain):
    class Samples(IterableDataset):
        def __iter__(self):
            for index in torch.randperm(len(DATA)).tolist():
                yield DATA[index]

    def loaders(self):
        return DataLoader(self.Samples(), batch_size=32)


class Two(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

    def loaders(self):
        rest = torch.utils.data.Subset(DATA, range(100))
        loaders = {"a": DataLoader(DATA, 32, shuffle=True), "b": DataLoader(rest, 16, shuffle=True)}
        return CombinedLoader(loaders, "max_size_cycle")


class Gan(Plain):
    """Two networks, two optimizers, manual optimization, nothing returned."""

    def __init__(self, nan_at=None):
        super().__init__(nan_at)
        self.automatic_optimization = False
        self.generator = torch.nn.Linear(8, 64)

    def configure_optimizers(self):
        own = [torch.optim.Adam(each.parameters(), 1e-3) for each in (self.net, self.generator)]
        return own, []

    def training_step(self, batch, _):
        x, _ = batch
        first, second = self.optimizers()
        ones, fake = torch.ones(len(x), 1), self.generator(torch.randn(len(x), 8))
        first.zero_grad()
        real = binary_cross_entropy_with_logits(self.net(x)[:, :1], ones)
        self.manual_backward(real + binary_cross_entropy_with_logits(self.net(fake.detach())[:, :1], 0 * ones))
        first.step()
        second.zero_grad()
        self.manual_backward(binary_cross_entropy_with_logits(self.net(fake)[:, :1], ones))
        second.step()


def train(module, *, callbacks=(), ckpt_path=None, **options):
    torch.manual_seed(1)
    given = {"max_epochs": 3, "enable_checkpointing": False, **QUIET, **options}
    trainer = lightning.Trainer(callbacks=list(callbacks), **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, module.loaders(), ckpt_path=ckpt_path)
    return trainer


def built(kind, **settings):
    torch.manual_seed(0)
    return kind(**settings)


def state_of(module, trainer):
    optimizers = [each.state_dict()["state"] for each in trainer.optimizers]
    return [*module.state_dict().values(), torch.get_rng_state(), *torch.utils._pytree.tree_leaves(optimizers)]


def loss_of(module):
    with torch.no_grad():
        return float(cross_entropy(module.eval().net(DATA.tensors[0]), DATA.tensors[1]))


class Sought(Plain):
    """With a rate that Lightning looks for in a fit before the fit."""

    def __init__(self):
        super().__init__()
        self.lr = 0.2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def test_a_rate_is_found_first_as_without_r8(tmp_path):
    def ended(*callbacks):
        module = built(Sought)
        finder = LearningRateFinder(num_training_steps=20)
        return state_of(module, train(module, callbacks=[*callbacks, finder], default_root_dir=tmp_path))

    assert equal(ended(), ended(callback := R8Callback()))
    assert callback.scheduler.global_step == 39


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Plain, {"accumulate_grad_batches": 3, "max_epochs": 8}), (Stream, {}), (Two, {}), (Gan, {})],
    ids=["accumulated", "stream", "two loaders", "gan"],
)
def test_nothing_changes_without_an_incident_and_a_nan_is_healed(kind, options):
    """Weights, optimizers and generators are those of the Trainer alone; one NaN in the weights goes back."""
    plain = built(kind)
    plain_state = state_of(plain, train(plain, **options))
    watched, callback = built(kind), R8Callback()
    trainer = train(watched, callbacks=[callback], **options)

    assert equal(plain_state, state_of(watched, trainer))
    assert callback.scheduler.global_step == 13 * trainer.max_epochs
    # The losses of networks that train against each other need not fall.
    assert callback.scheduler.sentry.guard.expects_progress == (kind is not Gan)
    assert callback.scheduler.current_epoch == trainer.max_epochs - 1
    assert callback.scheduler.sentry.num_refused == 0
    assert "training_step" not in vars(watched)
    assert "manual_backward" not in vars(watched)

    hurt, callback = built(kind, nan_at=29), R8Callback(guard="finite", backup_every=9)
    train(hurt, callbacks=[callback], **options)
    assert callback.scheduler.sentry.num_refused >= 1
    assert all(each.isfinite().all() for each in hurt.state_dict().values())
    if kind is not Gan:
        assert loss_of(hurt) < max(1.25 * loss_of(plain), 0.6)


@pytest.mark.parametrize("draws", [False, True])
def test_losses_of_accumulated_batches_are_those_of_batches(draws):
    """What Lightning divides, to add up gradients, is told as it was."""
    first = []
    for accumulate in (1, 2):
        heard, module = record_events(), built(Plain)
        loader = R8Loader(DATA, batch_size=32, scheduler_mode="keep", listeners=[heard]) if draws else module.loaders()
        module.loaders = lambda loader=loader: loader
        callbacks = [R8Callback(loader) if draws else R8Callback(listeners=[heard])]
        train(module, callbacks=callbacks, accumulate_grad_batches=accumulate, max_epochs=1)
        first.append(heard.of(events.StepDone)[0].loss)

    assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_all_losses_of_a_step_of_ones_own_count():
    """A step that goes backward from two losses is watched by their sum."""

    class Manual(Plain):
        automatic_optimization = False

        def training_step(self, batch, index):
            zero, optimizer = 0.0 * self.net(batch[0]).sum(), self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(zero + 1.0, retain_graph=True)
            self.manual_backward(zero + 2.0)
            optimizer.step()

    heard = record_events()
    train(built(Manual), callbacks=[R8Callback(listeners=[heard])], max_epochs=1)

    assert {each.loss for each in heard.of(events.StepDone)} == {3.0}


def test_what_a_step_of_ones_own_has_logged_counts_only_if_its_loss_does():
    """With manual optimization, too, the mean of an epoch is that of the batches that were not refused."""

    class Manual(Plain):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.turn, self.losses, self.means, self.sizes = 0, [], [], []

        def training_step(self, batch, index):
            x, y = batch
            loss = cross_entropy(self.net(x * (math.nan if self.turn == 20 else 1.0)), y)
            self.turn += 1
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log("own", loss, on_step=False, on_epoch=True)
            # What a refused step has added to a list is taken off again.
            self.losses.append(float(loss) * len(x))
            self.sizes.append(len(x))

        def on_train_epoch_end(self):
            self.means.append((float(self.trainer.callback_metrics["own"]), sum(self.losses) / sum(self.sizes)))
            self.losses.clear()
            self.sizes.clear()

    module, callback = built(Manual), R8Callback()
    train(module, callbacks=[callback], max_epochs=3)

    assert callback.scheduler.sentry.num_refused == 1
    assert [logged for logged, _ in module.means] == pytest.approx([mean for _, mean in module.means])


class TwoRates(Plain):
    """Manual optimization: two optimizers of the same weights, and a step of nothing where it leaves out NaN itself."""

    automatic_optimization, leaves_out, returns = False, False, False

    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters(), rate) for rate in (1e-3, 3e-3)], []

    def training_step(self, batch, _):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        if self.leaves_out and not loss.isfinite():
            return None
        for each in self.optimizers():
            each.zero_grad()
        self.manual_backward(loss)
        for each in self.optimizers():
            each.step()
        return {"loss": loss.detach()} if self.returns else None

    def loaders(self):
        return DataLoader(self.samples, batch_size=32, shuffle=True)


def samples_with(index, value):
    x, y = (each.clone() for each in DATA.tensors)
    x[index] *= value
    return torch.utils.data.TensorDataset(x, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_returned_as_well_is_judged_before_the_step():
    """As the same loss that only went through ``manual_backward``."""
    silent, returning = built(TwoRates), built(TwoRates)
    silent.samples = returning.samples = samples_with(7, 1e4)
    returning.returns = True
    states = [state_of(each, train(each, callbacks=[R8Callback()])) for each in (silent, returning)]

    assert equal(*states)


def test_a_bad_batch_of_a_step_of_ones_own_is_left_out():
    """A loss that is known before the first step of an optimizer is judged before it: the weights stay as they were."""
    by_hand, watched, callback = built(TwoRates), built(TwoRates), R8Callback()
    by_hand.samples = watched.samples = samples_with(7, math.nan)
    by_hand.leaves_out = True
    plain = train(by_hand)
    trainer = train(watched, callbacks=[callback])

    assert callback.scheduler.sentry.num_refused == 3
    assert equal(state_of(by_hand, plain), state_of(watched, trainer))
    assert "came from" not in callback.scheduler.summary()
    assert "restored" not in callback.scheduler.summary()


class AddsUp(TwoRates):
    """The gradients of two batches for each step; one batch of NaN, after which none follows."""

    turn, to_none = 0, True

    def training_step(self, batch, index):
        x, y = batch
        loss = cross_entropy(self.net(x * (math.nan if self.turn == 17 else 1.0)), y)
        self.turn += 1
        if loss.isfinite() or not self.leaves_out:
            self.manual_backward(loss / 2)
        if index % 2:
            for each in self.optimizers():
                each.step()
                each.zero_grad(set_to_none=self.to_none)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_bad_batch_adds_nothing_to_the_gradient_of_others(to_none):
    """Where a step of one's own adds gradients up, as with the batch left out by hand."""
    by_hand, watched, callback = built(AddsUp), built(AddsUp), R8Callback()
    by_hand.to_none = watched.to_none = to_none
    by_hand.samples = watched.samples = DATA
    by_hand.leaves_out = True
    plain = train(by_hand)
    trainer = train(watched, callbacks=[callback])

    assert callback.scheduler.sentry.num_refused == 1
    assert equal(state_of(by_hand, plain), state_of(watched, trainer))


def test_a_generator_keeps_its_weights_where_the_discriminator_has_met_nan():
    """Where the losses of a step come one after the other, a NaN so far decides for the optimizers' steps to come."""
    module, callback = built(Gan), R8Callback(guard="finite")
    samples = samples_with(7, math.nan)
    module.loaders = lambda: DataLoader(samples, batch_size=32, shuffle=True)
    train(module, callbacks=[callback])

    assert callback.scheduler.sentry.num_refused == 3
    assert all(each.isfinite().all() for each in module.state_dict().values())
    assert "came from" not in callback.scheduler.summary()
    assert "restored" not in callback.scheduler.summary()


class OneCycle(Plain):
    """Asks how many steps there are, for which Lightning begins to iterate over the loader."""

    def configure_optimizers(self):
        optimizer = Digits.configure_optimizers(self)
        count = self.trainer.estimated_stepping_batches // self.trainer.max_epochs
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=3 * count)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_resumes_at_the_end_of_an_epoch(tmp_path):
    """A checkpoint of Lightning's brings the generators back, so that the next epoch has the same order."""
    whole = built(OneCycle)
    train(whole, callbacks=[R8Callback()])
    callbacks = [R8Callback(), lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True)]
    train(built(OneCycle), callbacks=callbacks, max_epochs=2, enable_checkpointing=True)
    torch.manual_seed(99)
    again, callback = built(OneCycle), R8Callback()
    train(again, callbacks=[callback], ckpt_path=tmp_path / "last.ckpt")

    assert callback.scheduler.global_step == 39
    assert equal(whole.state_dict().values(), again.state_dict().values())


@pytest.mark.parametrize("with_loader", [False, True])
def test_averaged_weights_are_healed_too(with_loader):
    """The copy that a callback of Lightning's averages goes back with the model."""
    module = built(Plain, nan_at=29)
    loader = R8Loader(DATA, batch_size=32, scheduler_mode="keep", backup_every=9) if with_loader else None
    callback = R8Callback(loader) if with_loader else R8Callback(backup_every=9)
    module.loaders = lambda: loader or DataLoader(DATA, 32)
    train(module, callbacks=[callback, EMAWeightAveraging(decay=0.9)])

    assert callback.scheduler.sentry.num_refused >= 1
    assert all(each.isfinite().all() for each in module.state_dict().values())


class Probe(lightning.Callback):
    """Trains a network of its own on the module's batches, one of which spoils it."""

    def on_fit_start(self, trainer, pl_module):
        torch.manual_seed(0)
        self.network = torch.nn.Linear(64, 10)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        x, y = batch
        scale = math.nan if trainer.global_step == 29 else 1.0
        cross_entropy(self.network(scale * x.flatten(1)), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("is_behind", [False, True])
def test_what_a_callback_trains_is_healed(is_behind):
    """A network and an optimizer that another callback keeps go back when they are not finite, also if it makes them
    after R8Callback has begun."""
    module, probe, callback = built(Plain), Probe(), R8Callback(backup_every=9)
    train(module, callbacks=[callback, probe] if is_behind else [probe, callback])

    name = "made later.callback 2 network" if is_behind else "callback 1 network"
    assert f"{name}.weight, {name}.bias" in callback.scheduler.summary()
    slots = [state["momentum_buffer"] for state in probe.optimizer.state.values()]
    assert all(each.isfinite().all() for each in [*probe.network.parameters(), *slots])


class TwoSteps(lightning.LightningModule):
    """Two optimizers in turn over a layer, of which the first has stepped as the loss is known; one batch is huge.

    Args:
        huge_at: Its number.
    """

    def __init__(self, huge_at):
        super().__init__()
        self.automatic_optimization, self._huge_at = False, huge_at
        self.body, self.back, self.head = torch.nn.Linear(64, 16), torch.nn.Linear(16, 64), torch.nn.Linear(16, 10)

    def training_step(self, batch, batch_idx):
        x, y = batch[0].flatten(1), batch[1]
        x = x * 1e4 if self.trainer.fit_loop.total_batch_idx == self._huge_at else x
        for number, optimizer in enumerate(self.optimizers()):
            hidden = self.body(x).tanh() + self.body(x)
            loss = cross_entropy(self.head(hidden), y) if number else (self.back(hidden) - x).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        parts = [*self.body.parameters(), *self.back.parameters()], [*self.body.parameters(), *self.head.parameters()]
        return [torch.optim.SGD(each, 0.01) for each in parts]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("to_go", [2, 5])
def test_weights_that_a_spike_has_damaged_do_not_stay_as_the_run_ends(to_go):
    """Where a backup's losses are fine as far as the run goes, it is the better one."""
    torch.manual_seed(0)
    callback, num_steps = R8Callback(backup_every=9), 3 * len(DataLoader(DATA, 32))
    module = TwoSteps(num_steps - 1 - to_go)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="refused only after training_step had taken its steps"):
        trainer.fit(module, DataLoader(DATA, 32, shuffle=True))

    x, y = DATA.tensors[0].flatten(1), DATA.tensors[1]
    with torch.no_grad():
        hidden = module.body(x).tanh() + module.body(x)
        assert cross_entropy(module.head(hidden), y) + (module.back(hidden) - x).square().mean() < math.log(10) + 0.5
    assert "model restored once" in callback.scheduler.summary()


def test_batches_that_test_the_weights_are_not_said_to_be_refused():
    """Where the losses of later batches tell whether the weights are healed, their steps are wanted."""
    torch.manual_seed(0)
    callback, module = R8Callback(backup_every=9), TwoSteps(huge_at=None)

    class Hurt(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 20:
                module.head.weight.data[0, 0] = math.nan

    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[callback, Hurt()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(DATA, 32, shuffle=True))

    assert any("head.weight had numbers that are not finite" in str(each.message) for each in said)
    assert not any("refused only after" in str(each.message) for each in said)


def test_averaged_weights_are_resumed(tmp_path):
    """A run that was killed in mid-epoch ends with the same averages as one that was not."""

    def averages(folder, ckpt_path=None):
        loader = R8Loader(DATA, batch_size=32, scheduler_mode="keep")
        module = built(Plain)
        module.loaders = lambda: loader
        train(module, callbacks=[R8Callback(loader), EMAWeightAveraging(decay=0.9), Checkpoints(folder, (20,))],
              ckpt_path=ckpt_path)  # fmt: skip
        return list(module.state_dict().values())

    (tmp_path / "again").mkdir()
    whole = averages(tmp_path)

    assert equal(whole, averages(tmp_path / "again", tmp_path / "20.ckpt"))


@pytest.mark.parametrize("nan_at", [None, 33])
def test_stochastic_weight_averaging(nan_at):
    """Its rates, its copy and its count are kept with loaders and rates of the user's own, and healed."""
    ends = []
    for callbacks in ([], [R8Callback(batch_size=OwnBatches(keep_witness=False))]):
        module = built(Plain, nan_at=nan_at if callbacks else None)
        average = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
        train(module, callbacks=[average, *callbacks])
        ends.append((module, int(average.n_averaged)))
    (plain, count), (watched, num_averaged) = ends

    assert num_averaged == count >= 2
    if nan_at is None:
        assert equal(plain.state_dict().values(), watched.state_dict().values())
    else:
        assert callbacks[0].scheduler.sentry.num_refused == 1
        assert loss_of(watched) < max(1.25 * loss_of(plain), 0.6)


def test_stochastic_weight_averaging_is_no_companion_of_our_rates():
    """It would set rates that R8Scheduler sets again."""
    loader = R8Loader(DATA, batch_size=32)
    module = built(Plain)
    module.loaders = lambda: loader
    average = StochasticWeightAveraging(swa_lrs=0.01)

    with pytest.raises(ValueError, match="StochasticWeightAveraging must be left out where R8Scheduler sets the rate"):
        train(module, callbacks=[R8Callback(loader), average])


def test_backups_as_often_as_lightning_counts_batches():
    """A module that a NaN has damaged goes back by less than an epoch, although nobody said how long one is."""
    heard = record_events()
    train(built(Plain), callbacks=[R8Callback(listeners=[heard])])

    # Those of a young run between them depend on how long a copy takes.
    assert {0, 10, 20, 30} <= {event.step for event in heard.of(events.BackupTaken)}


class Module(lightning.LightningModule):
    def __init__(self, lr: float = 0.05):
        super().__init__()
        self.net, self.lr = torch.nn.Linear(64, 10), lr

    def training_step(self, batch, _):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class DataModule(lightning.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.loader = R8Loader(DATA, batch_size=batch_size)
        self.own = DataLoader(DATA, batch_size, shuffle=True)
        self.draws = False

    def train_dataloader(self):
        return self.loader if self.draws else self.own


CLI_QUIET = [
    "fit", "--seed_everything=1", "--trainer.max_epochs=2", "--trainer.logger=false",
    "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_lightning_cli(tmp_path, monkeypatch):
    """R8Callback comes from the command line or a file, with settings; an R8Loader by `before_fit`."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    pytest.importorskip("jsonargparse")
    pytest.importorskip("typeshed_client")
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  callbacks:\n    - class_path: learnit_r8.lightning.R8Callback\n"
        "      dict_kwargs: {guard: finite, backup_every: 7}\n"
    )
    for more in ("--trainer.callbacks=learnit_r8.lightning.R8Callback", f"--config={config}"):
        cli = LightningCLI(Module, DataModule, args=[*CLI_QUIET, more], save_config_callback=None)
        found = [each for each in cli.trainer.callbacks if isinstance(each, R8Callback)]
        assert [each.scheduler.global_step for each in found] == [26]
    assert type(found[0].scheduler.sentry.guard).__name__ == "FiniteGuard"

    class CLI(LightningCLI):
        def before_fit(self):
            self.datamodule.draws = True
            self.trainer.callbacks.append(R8Callback(self.datamodule.loader))

    cli = CLI(Module, DataModule, args=CLI_QUIET, save_config_callback=None)
    assert cli.datamodule.loader.scheduler.global_step == cli.trainer.global_step == 26


@pytest.mark.parametrize("with_loader", [False, True])
def test_parameters_that_are_unfrozen_are_healed(with_loader):
    """A NaN in the step after a group was added goes back to a state with that group."""

    class Unfrozen(Plain):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net[3].parameters(), 1e-2)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": self.net[0].parameters(), "lr": 1e-3})

        def on_before_optimizer_step(self, optimizer):
            if self.num_steps == 15:
                self.net[0].weight.data[0, 0] = float("nan")

    module = built(Unfrozen)
    loader = R8Loader(DATA, batch_size=32, backup_every=100) if with_loader else None
    callback = R8Callback(loader) if with_loader else R8Callback(backup_every=100)
    module.loaders = lambda: loader or DataLoader(DATA, 32)
    train(module, callbacks=[callback])

    assert len(module.optimizers().param_groups) == 2
    assert all(each.isfinite().all() for each in module.state_dict().values())
    assert callback.scheduler.sentry.num_refused >= 1


class Counted(Digits):
    """Asks how many steps there will be as the optimizer is made."""

    def configure_optimizers(self):
        self.num_estimated = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def test_steps_can_be_estimated():
    """Lightning may count the steps of an R8Loader before there is a scheduler."""
    module, r8, _ = fit(module=Counted())

    assert module.num_estimated == r8.global_step == 39


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: R8Callback(3), "loader must be an R8Loader, or be left out"),
        (lambda: R8Callback(R8Loader(DATA, batch_size=8), seed=1), "seed must be given to R8Loader"),
        (lambda: R8Callback().scheduler, "before fit"),
        (lambda: train(built(Plain), callbacks=[R8Callback(scheduler_mode="cosine")]), "must return no rate scheduler"),
    ],
)
def test_refusals(call, text):
    """What cannot be is refused by name."""
    with pytest.raises((TypeError, ValueError, RuntimeError), match=text):
        call()


def test_an_r8_loader_stands_alone():
    """Beside another loader an R8Loader is refused before training: its epochs would not be those of the Trainer."""
    loader = R8Loader(DATA, batch_size=32)
    trainer = lightning.Trainer(callbacks=[R8Callback(loader)], max_epochs=2, enable_checkpointing=False, **QUIET)

    with pytest.raises(ValueError, match="and no other loader, got"):
        trainer.fit(Digits(), {"a": loader, "b": DataLoader(DATA, 16)})


def test_the_place_of_an_incident_is_found_by_running_the_step_again():
    """R8Callback hands over batch and step; nothing is logged a second time."""
    heard = record_events()
    hurt, callback = built(Plain, nan_at=29), R8Callback(guard="finite", backup_every=9, listeners=[heard])
    train(hurt, callbacks=[callback])

    (cause, *_) = heard.of(events.CauseFound)
    # Before the optimizer takes its step, which would spread it.
    assert "1 of the weights `net.0.weight` is not finite, and all others are" in cause.text
    assert not {"log", "log_dict"} & vars(hurt).keys()


def test_a_checkpoint_of_r8_alone_resumes_no_fit(tmp_path):
    """The weights go on, and the Trainer begins anew: said, as with a checkpoint of Lightning's nothing is."""
    common = {"checkpoint_dir": tmp_path / "r8", "resume": "auto"}
    train(built(Plain), callbacks=[R8Callback(**common)], max_steps=20)
    callback = R8Callback(**common)
    with pytest.warns(
        RuntimeWarning, match=r"goes on from step 20 of R8's checkpoint, but Lightning begins at epoch 0"
    ):
        lightning.Trainer(callbacks=[callback], max_epochs=3, enable_checkpointing=False, **QUIET).fit(
            built(Plain), Plain().loaders()
        )
