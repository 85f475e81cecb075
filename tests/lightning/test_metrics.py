"""What a module logs in validation reaches ``monitor``, the best checkpoint, early stopping and listeners."""

import json
import warnings

import pytest

pytest.importorskip("lightning")

import lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import learnit_r8
from learnit_r8 import events
from learnit_r8.lightning import R8Callback, R8Loader
from tests.lightning.common import DATA, QUIET, STEPS, Digits
from tests.rank_common import run_on_two_ranks

# Lightning's own, of how it looks at several loaders.
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")]
OWN = pytest.mark.parametrize("own", [False, True], ids=["R8Loader", "own loaders"])


class Validated(Digits):
    """With metrics of its own choice, one for each validation.

    Args:
        values: Those of "val_loss", in order; None for the loss.
        says_it: Whether it also gives them to `R8Scheduler.log`, before Lightning does or after.
    """

    def __init__(self, values=None, *, says_it=""):
        super().__init__(exact=False)
        self.values, self.says_it, self.seen, self.r8 = values, says_it, [], None

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, _, dataloader_idx=0):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        if self.values is not None and not self.trainer.sanity_checking:
            loss = torch.tensor(float(self.values[len(self.seen)]))
        self.log("val_loss", loss)
        self.log("step", 1.0)

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            return
        value = float(self.trainer.callback_metrics.get("val_loss", 0.0))
        self.seen.append((value, {name: each.clone() for name, each in self.state_dict().items()}))
        if self.says_it == "before" and self.trainer.state.fn == "fit":
            self.r8().log(val_loss=value)

    def on_train_epoch_end(self):
        if self.says_it == "after":
            self.r8().log(val_loss=self.seen[-1][0])


def train(own, module=None, *, loaders=1, epochs=3, trainer=(), **settings):
    """A training with validation: ``(module, scheduler, what was logged)``."""
    torch.manual_seed(0)
    module = Validated() if module is None else module
    heard = []
    settings["listeners"] = [lambda event: heard.append(event) if isinstance(event, events.MetricsLogged) else None]
    loader = DataLoader(DATA, 32, shuffle=True) if own else R8Loader(DATA, batch_size=32, **settings)
    callback = R8Callback(**settings) if own else R8Callback(loader)
    module.r8 = lambda: callback.scheduler
    options = {"max_epochs": epochs, "enable_checkpointing": False, **QUIET, **dict(trainer)}
    found = lightning.Trainer(callbacks=[callback], **options)
    found.fit(module, loader, [DataLoader(DATA, 400)] * loaders)
    found.validate(module, DataLoader(DATA, 400), verbose=False)
    return module, callback.scheduler, heard


@OWN
@pytest.mark.parametrize("interval", [1.0, 5], ids=["epochs", "mid-epoch"])
def test_the_best_by_what_lightning_logged(own, interval, tmp_path):
    """Each validation of the fit counts once, without the training's metrics, and its weights are the best file's."""
    module = Validated([3, 1, 2, 4, 5, 6, 7, 8, 9, 10])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        module, r8, heard = train(
            own, module, monitor="val_loss", checkpoint_dir=tmp_path / "ck", run_dir=tmp_path / "run",
            trainer={"val_check_interval": interval},
        )  # fmt: skip
        best = learnit_r8.load_weights(tmp_path / "ck")
    seen, steps = module.seen[:-1], [STEPS * (1 + epoch) for epoch in range(3)]
    steps = steps if interval == 1.0 else [5, 10, 18, 23, 31, 36]
    journal = [json.loads(line) for line in next(tmp_path.glob("run/**/*.jsonl")).read_text().splitlines()]

    assert [(each.at_step, each.metrics) for each in heard] == [
        (step, {"val_loss": value}) for step, (value, _) in zip(steps, seen, strict=True)
    ]
    assert (r8.best_checkpoint.value, r8.best_checkpoint.step) == (1.0, steps[1])
    assert all(torch.equal(best[name], value) for name, value in seen[1][1].items())
    assert [each["metrics"] for each in journal if "metrics" in each] == [each.metrics for each in heard]


@OWN
@pytest.mark.parametrize("says_it", ["before", "after"])
def test_what_the_user_logs_too_counts_once(own, says_it):
    """A value that the module also gives to the scheduler is heard once, and early stopping counts it once."""
    _, r8, heard = train(
        own, Validated([3, 1, 2, 4, 5, 6, 7], says_it=says_it), epochs=6, monitor="val_loss", early_stopping=2
    )

    assert [each.metrics["val_loss"] for each in heard] == [3, 1, 2, 4]
    assert r8.phase == "finished early"
    assert r8.global_step == 4 * STEPS


@OWN
def test_several_loaders_have_names_of_their_own(own):
    """Lightning adds the number of the loader to a name."""
    _, _, heard = train(own, loaders=2, epochs=1, monitor="val_loss/dataloader_idx_1")
    names = [sorted(name for name in each.metrics if "val" in name) for each in heard]

    assert names == [["val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"]]


@OWN
def test_values_are_of_weights_that_are_kept(own, tmp_path):
    """With a NaN weight in every part of the run, no value of it is NaN or the run's, and the best file has its own."""

    class Hurt(Validated):
        def on_train_batch_start(self, batch, index):
            if self.calls in (7, 12, 20):
                self.net[0].weight.data[0, 0] = float("nan")

    module, r8, heard = train(
        own, Hurt(), monitor="val_loss", checkpoint_dir=tmp_path, backup_every=4,
        trainer={"val_check_interval": 0.5},
    )  # fmt: skip
    best = learnit_r8.load_weights(tmp_path)
    counted = [each.metrics["val_loss"] for each in heard if not each.is_on_trial]
    module.load_state_dict(best)
    with torch.no_grad():
        loss = float(cross_entropy(module.eval().net(DATA.tensors[0]), DATA.tensors[1]))

    assert counted
    assert all(0 < each < 2.5 for each in counted)
    assert r8.best_checkpoint.value == min(counted) == pytest.approx(loss, rel=1e-5)


@OWN
def test_a_validation_within_an_epoch_sees_no_nan(own):
    """Of an update just before it; early stopping would end the training for it."""

    class Hurt(Validated):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            if self.calls == STEPS + 5:
                self.net[0].weight.data[0, 0] = float("nan")

    module, _, heard = train(own, Hurt(), trainer={"val_check_interval": 5})

    assert [each.at_step for each in heard][:3] == [5, 10, STEPS + 5]
    assert all(0 < loss < 2.5 for loss, _ in module.seen)


@OWN
def test_a_validation_sees_no_nan_that_came_after_r8s_look(own):
    """Of a hook of the module, or a callback behind R8Callback, at the last batch of an epoch."""

    class Hurt(Validated):
        def on_train_batch_end(self, *_):
            if self.trainer.is_last_batch and self.trainer.current_epoch == 1:
                self.net[0].weight.data[0, 0] = float("nan")

    module, _, heard = train(own, Hurt())

    assert len(heard) == 3
    assert all(0 < loss < 2.5 for loss, _ in module.seen)


@OWN
def test_a_value_put_among_the_metrics_by_hand(own):
    """What user code puts into ``callback_metrics`` as a plain number is passed on, and what is no number is not."""

    class ByHand(Validated):
        def on_validation_epoch_end(self):
            self.trainer.callback_metrics.update(f1=0.5, note="text", many=torch.ones(3))

    _, _, heard = train(own, ByHand(), epochs=1)

    assert [sorted(each.metrics) for each in heard] == [["f1", "val_loss"]]


RANKS = """
import json, os, sys, torch, warnings
warnings.simplefilter("ignore")
import lightning
from learnit_r8.lightning import R8Callback, R8Loader
from tests.lightning.common import DATA, QUIET, Digits
from torch.utils.data import DataLoader
folder, rank = sys.argv[1], int(os.environ["RANK"])
done = {}
for sync in (False, True):
    class Logged(Digits):
        def validation_step(self, batch, _):
            # On the ranks in turn: 3 1 2 3, and 5 3 4 5.
            value = [3.0, 1.0, 2.0, 3.0][self.trainer.current_epoch] + 2 * rank
            self.log("val_loss", value, sync_dist=sync, batch_size=1)
    for own in (False, True):
        torch.manual_seed(0)
        where = f"{folder}/{sync}-{own}"
        settings = {"monitor": "val_loss", "checkpoint_dir": where}
        loader = DataLoader(DATA, 16, shuffle=True) if own else R8Loader(DATA, batch_size=16, **settings)
        callback = R8Callback(**settings) if own else R8Callback(loader)
        trainer = lightning.Trainer(
            max_epochs=4, callbacks=[callback], devices=2, strategy="ddp", enable_checkpointing=False, **QUIET
        )
        trainer.fit(Logged(), loader, DataLoader(DATA, 100))
        best = callback.scheduler.best_checkpoint
        done[f"{sync}-{own}"] = None if best is None else [best.value, best.step]
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


def test_on_two_processes_the_first_one_decides(tmp_path):
    """The values of rank 0, which are those of both with ``sync_dist``, say which checkpoint is the best."""
    first, second = run_on_two_ranks(RANKS, tmp_path)

    assert first == {
        "False-False": [1.0, 26], "False-True": [1.0, 26], "True-False": [2.0, 26], "True-True": [2.0, 26],
    }  # fmt: skip
    assert first.keys() == second.keys()
