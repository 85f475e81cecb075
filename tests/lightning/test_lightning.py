"""`learnit_r8.lightning`: a Trainer's own loop, checkpoints and stops, with the batches of R8Scheduler."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader

import learnit_r8.lightning
from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.lightning.callback import budget_of
from learnit_r8.policies import Focus
from learnit_r8.testing import FakeClock
from tests.drive import Weighing
from tests.lightning.common import DATA, QUIET, STEPS, Broken, Checkpoints, Digits, digest, fit

pytestmark = [
    pytest.mark.program,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:.*learning rate was changed.*"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_digits.py"


def test_resumes_twice_with_incidents_before_and_after(tmp_path):
    """Twice in mid-epoch, within accumulated gradients: a NaN before the first resume, between both and after."""

    def run(folder, ckpt_path=None):
        loader = R8Loader(DATA, batch_size=32, backup_every=1)
        module = Broken(lambda: loader.scheduler.global_step, {5, 20, 33})
        saves = [Checkpoints(folder, (9, 22))]
        _, r8, _ = fit(module=module, loader=loader, more=saves, ckpt_path=ckpt_path, accumulate_grad_batches=3)
        return *digest(module, r8), r8.sentry.num_refused

    (tmp_path / "again").mkdir()
    whole = run(tmp_path)
    once = run(tmp_path / "again", tmp_path / "9.ckpt")
    twice = run(tmp_path / "again", tmp_path / "again/22.ckpt")

    assert whole[-1] >= 3
    assert once == twice == whole


@pytest.mark.parametrize("scheduling", [{0: 2}, {0: 4, 1: 1}, {0: 1, 2: 4}])
def test_the_budget_counts_batches_that_a_schedule_adds_up(scheduling):
    """The run takes as many steps of the optimizer as the Trainer's limit says."""
    schedule = GradientAccumulationScheduler(scheduling)
    *_, trainer = fit(more=[schedule], max_steps=3 * STEPS // 2, max_epochs=-1)

    assert trainer.global_step == 3 * STEPS // 2


def test_validation_early_stopping_and_checkpoints(tmp_path):
    """The Trainer's validation, EarlyStopping and ModelCheckpoint work, and its last checkpoint resumes."""

    class Validated(Digits):
        def validation_step(self, batch, _):
            x, y = batch
            self.log("val_loss", torch.nn.functional.cross_entropy(self.net(x), y))

    torch.manual_seed(0)
    saves = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    loader = R8Loader(DATA, batch_size=32)
    callbacks = [R8Callback(loader), saves, EarlyStopping("val_loss", patience=1, min_delta=10.0)]
    trainer = lightning.Trainer(max_epochs=9, callbacks=callbacks, **QUIET)
    trainer.fit(Validated(), loader, DataLoader(DATA, batch_size=100))

    assert loader.scheduler.global_step == 2 * STEPS
    assert "lr" in trainer.progress_bar_metrics
    _, r8, _ = fit(module=Validated(), ckpt_path=saves.last_model_path, epochs=9)
    assert r8.global_step == 9 * STEPS


def test_manual_optimization():
    """A module that takes its own steps is reported for all the same."""

    class Manual(Digits):
        automatic_optimization = False

        def training_step(self, batch, index):
            found = super().training_step(batch, index)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(found["loss"])
            optimizer.step()
            return {"losses": found["losses"]}

    _, r8, _ = fit(module=Manual(bad=[6]))

    assert r8.table.source == "exact"
    assert (r8.pace.turns, r8.sentry.num_refused) == (3 * STEPS, 1)


def test_length_is_that_of_the_batches():
    """Lightning counts the batches before there is a scheduler: without the short one that is dropped."""
    assert [len(R8Loader(DATA, batch_size=32, last_batch=last)) for last in ("short", "fill", "drop")] == [13, 13, 12]


def test_own_rate_scheduler():
    """A rate scheduler of the module's is refused by name, or has its way with scheduler_mode="keep"."""

    class Own(Digits):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    with pytest.raises(ValueError, match=r"must return no rate scheduler, .*StepLR.*scheduler_mode='keep'"):
        fit(module=Own())
    _, _, trainer = fit(module=Own(), settings={"scheduler_mode": "keep"})

    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.5**3)


def test_checkpoint_without_a_scheduler(tmp_path):
    """A checkpoint of a training without R8Loader is refused before training begins."""
    torch.manual_seed(0)
    plain = lightning.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    plain.fit(Digits(), DataLoader(DATA, batch_size=32, shuffle=True))
    plain.save_checkpoint(tmp_path / "plain.ckpt")

    with pytest.raises(ValueError, match="ckpt_path must be a checkpoint of a training with R8Callback"):
        fit(ckpt_path=tmp_path / "plain.ckpt")


def test_resume_beside_a_checkpoint(tmp_path):
    """With ckpt_path Lightning's checkpoint wins over resume=, which is said."""
    settings = {"checkpoint_dir": tmp_path / "own", "resume": "auto"}
    fit(more=[Checkpoints(tmp_path, [5])], settings=settings)
    heard = []
    listen = {"listeners": [lambda event: heard.append(getattr(event, "text", ""))]}
    _, r8, _ = fit(ckpt_path=f"{tmp_path}/5.ckpt", settings=settings | listen)

    assert any("resume='auto' of R8Loader is ignored" in text for text in heard)
    assert r8.pace.turns == 3 * STEPS


def test_without_the_callback():
    """A Trainer without the callback, and one with that of another loader, are told so."""
    with pytest.raises(RuntimeError, match=r"Trainer\(callbacks=\[R8Callback\(loader\)\]\)"):
        lightning.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(Digits(), R8Loader(DATA, batch_size=8))
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[R8Callback(R8Loader(DATA, batch_size=8))], enable_checkpointing=False, **QUIET
    )
    with pytest.raises(ValueError, match=r"fit\(\) must be given the R8Loader of R8Callback"):
        trainer.fit(Digits(), DataLoader(DATA, batch_size=8))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: R8Loader(DataLoader(DATA), batch_size=8), TypeError, "dataset must be the data set itself"),
        (lambda: R8Loader(DATA, batch_size=0), ValueError, "batch_size must be a whole number >= 1, got 0"),
        (lambda: R8Loader(DATA, batch_size=8, shuffle=True), ValueError, "shuffle must be left out"),
        (lambda: R8Loader(Stream(), batch_size=8), TypeError, "For a stream, collect as many samples as fit"),
        (lambda: R8Callback(DataLoader(DATA)), TypeError, "loader must be an R8Loader"),
        (lambda: R8Loader(DATA, batch_size=8).go_on_from({}), RuntimeError, "got no R8Callback"),
        (lambda: R8Loader(DATA, batch_size=8).whole_state(), RuntimeError, "got no R8Callback"),
        (lambda: budget_of(lightning.Trainer(max_epochs=-1, **QUIET), 5), ValueError, "must have a budget"),
    ],
)
def test_arguments(make, error, message):
    """Each wrong argument is named, with what would be right."""
    with pytest.raises(error, match=message):
        make()


def test_time_limit():
    """With max_time alone the budget is in seconds, and the rate has come down when the Timer ends the training."""
    _, r8, trainer = fit(epochs=-1, max_time={"milliseconds": 400})

    assert r8.total_steps is None
    assert 0.99 <= r8.progress <= 1.0
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.02


def test_time_that_runs_out_between_epochs():
    """A budget in seconds that is spent during validation, say, ends a training without a limit of epochs."""
    clock = FakeClock()

    class Slow(lightning.Callback):
        def on_train_epoch_end(self, *_):
            clock.advance(11.0)

    _, r8, _ = fit(epochs=-1, more=[Slow()], settings={"train_duration_seconds": 10.0, "clock": clock})

    assert r8.global_step == STEPS


def test_logged_rate(tmp_path):
    """The logger and the progress bar show the rate that R8Scheduler has set."""
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    _, _, trainer = fit(logger=logger, log_every_n_steps=1)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr")
    rates = [float(row.split(",")[column]) for row in rows[1:]]

    assert len(rates) == 3 * STEPS
    assert max(rates) == pytest.approx(0.2, rel=0.05)
    assert rates[-1] < 0.02
    assert trainer.progress_bar_metrics["lr"] == pytest.approx(rates[-1])


def test_weights_of_a_policy():
    """A policy that weights losses is refused: training_step computes what is trained on, and knows no weights.

    One that is known to do so sooner or later is refused before the first step.
    """
    with pytest.raises(ValueError, match="policy must give no weights under Lightning"):
        fit(settings={"policy": Weighing()})
    with pytest.raises(ValueError, match="policy must give no weights under Lightning"):
        fit(settings={"policy": Focus(noise_guard="weigh"), "groups": np.zeros(len(DATA))})


def test_batches_that_the_module_leaves_out_end_no_epoch():
    """A `training_step` that returns nothing costs its batches alone, twice in an epoch, too."""

    class Sparing(Digits):
        num_begun = 0

        def training_step(self, batch, index):
            self.num_begun += 1
            return None if self.num_begun in (2, 5, STEPS + 3) else super().training_step(batch, index)

    module, r8, _ = fit(module=Sparing(), epochs=3)

    assert module.num_begun == r8.global_step == 3 * STEPS
    assert r8.phase == "finished"
    assert sorted(np.unique(r8.table.usage_count).tolist()) == [2, 3]


def test_nothing_returned():
    """A manual step that returns nothing is told what to return."""

    class Silent(Digits):
        automatic_optimization = False

        def training_step(self, batch, index):
            return None

    with pytest.raises(TypeError, match=r"training_step\(\) must return the loss, or a dict"):
        fit(module=Silent())


@pytest.mark.program
def test_example(capsys):
    """The example of the guide learns the digits."""
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out

    assert float(re.search(r"^accuracy ([\d.]+)", printed, re.MULTILINE)[1]) > 0.9


def test_old_release(monkeypatch):
    """An old release of Lightning is named when the adapter is imported, with what will do."""
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.9.5")

    with pytest.raises(ImportError, match=r"lightning must be release 2.5 or newer, got 1.9.5; pip install -U"):
        importlib.reload(learnit_r8.lightning)


LIMITS = {
    "epochs": {},
    "steps": {"max_steps": STEPS + 7, "max_epochs": -1},
    "steps within epochs": {"max_steps": STEPS + 7},
    "a part of an epoch": {"limit_train_batches": 0.5},
    "validation in mid-epoch": {"val_check_interval": 0.5},
    "validation by steps": {"val_check_interval": STEPS + 7, "check_val_every_n_epoch": None},
    "accumulation": {"accumulate_grad_batches": 3},
    "few batches": {"overfit_batches": 2},
}


class Counted(Digits):
    """Counts its batches."""

    num_trained = num_validated = 0

    def training_step(self, batch, index):
        self.num_trained += 1
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.num_validated += 1


@pytest.mark.parametrize("fits", [1, 2])
@pytest.mark.parametrize(
    "name", [each if each == "steps" else pytest.param(each, marks=pytest.mark.program) for each in LIMITS]
)
def test_a_trainer_does_as_much_as_without_r8(name, fits):
    """As many batches are trained on and validated, by one fit and by a second one of the same Trainer."""
    counts = {}
    for kind in ("plain", "own", "drawn"):
        loader = R8Loader(DATA, batch_size=32) if kind == "drawn" else DataLoader(DATA, 32, shuffle=True)
        callbacks = [] if kind == "plain" else [R8Callback(*[loader] * (kind == "drawn"))]
        options = {"max_epochs": 2, **LIMITS[name], "enable_checkpointing": False, **QUIET}
        trainer, module = lightning.Trainer(callbacks=callbacks, **options), Counted(exact=kind == "drawn")
        counts[kind] = []
        for number in range(fits):
            if number:
                trainer.fit_loop.max_epochs *= 1 if trainer.max_epochs < 0 else 2
                trainer.fit_loop.epoch_loop.max_steps *= 1 if trainer.max_steps < 0 else 2
            trainer.fit(module, loader, DataLoader(DATA, 128))
            counts[kind].append((module.num_trained, module.num_validated))
        if callbacks:
            assert callbacks[0].scheduler.phase == "finished"

    assert counts["plain"] == counts["own"] == counts["drawn"]
