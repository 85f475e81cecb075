"""Row 10 for `attach`: what a step may do besides a gradient and a rate, healthy, healed and resumed."""

import contextlib

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.torch import attach

from . import task
from .columns_torch import Network
from .ways import Left, check_healed, check_healthy, check_resumed

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
WEIGHTS = torch.linspace(0.5, 1.5, task.NUM_SAMPLES)
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
WAYS = (
    "sample weights", "class weights", "accumulation", "clipping", "bfloat16", "averaged weights", "low rank",
    "two optimizers", "evaluation in mid-epoch", "a short last batch",
)  # fmt: skip
KINDS = "reported", "stepped", "drawn"
"""One's own batches with steps of the user's; the same with the adapter's steps; batches of R8's."""


class LowRank(torch.nn.Module):
    """A frozen layer, and a product of two small matrices that is trained beside it."""

    def __init__(self, layer):
        super().__init__()
        self.frozen = layer.requires_grad_(False)
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


class Script:
    """A training of one way, whose step may ruin a weight or leave.

    Args:
        way: One of `WAYS`.
        hurt_at: The step before which a weight becomes NaN.
        leave_at: The step before which an exception ends the run.
    """

    def __init__(self, way, hurt_at=None, leave_at=None):
        torch.manual_seed(0)
        self.way, self.hurt_at, self.leave_at, self.num_begun = way, hurt_at, leave_at, 0
        self.network = Network()
        if way == "low rank":
            self.network.first = LowRank(self.network.first)
        trained = [[each for each in self.network.parameters() if each.requires_grad]]
        if way == "two optimizers":
            trained = [[*self.network.first.parameters()], [*self.network.last.parameters()]]
        self.optimizers = [torch.optim.SGD(each, lr=task.RATE, momentum=task.MOMENTUM) for each in trained]
        self.mean = torch.optim.swa_utils.AveragedModel(self.network) if way == "averaged weights" else None
        count = 250 if way == "a short last batch" else task.NUM_SAMPLES
        x, y = torch.from_numpy(task.X[:count]), torch.from_numpy(task.Y[:count])
        self.data, self.num_held = TensorDataset(x, y, WEIGHTS[:count]), 0
        self.loader = DataLoader(self.data, task.BATCH, shuffle=True)

    def loss(self, x, y, weights):
        """The losses of a batch; before them comes what happens to the run."""
        if self.num_begun == self.leave_at:
            raise Left
        if self.num_begun == self.hurt_at:
            with torch.no_grad():
                self.network.last.weight.fill_(np.nan)
        self.num_begun += 1
        if self.way == "evaluation in mid-epoch" and self.num_begun % 16 == 8:
            self.network.eval()
            with torch.no_grad():
                self.network(torch.from_numpy(task.VAL_X))
            self.network.train()
        is_half = self.way == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if is_half else contextlib.nullcontext():
            logits = self.network(x).float()
        classes = CLASS_WEIGHTS if self.way == "class weights" else None
        losses = cross_entropy(logits, y, classes, reduction="none")
        return losses * weights if self.way == "sample weights" else losses

    def step(self, loss):
        """A step of the script's own, after its loss was reported."""
        size = 4 if self.way == "accumulation" else 1
        (loss / size).backward()
        self.num_held += 1
        if self.num_held % size:
            return
        if self.way == "clipping":
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        for each in self.optimizers:
            each.step()
            each.zero_grad()
        self.average()

    def average(self):
        if self.mean is not None:
            self.mean.update_parameters(self.network)

    @property
    def arrays(self):
        """All that was trained."""
        holders = [*self.network.state_dict().values(), *([] if self.mean is None else self.mean.state_dict().values())]
        moments = [held["momentum_buffer"] for each in self.optimizers for held in each.state_dict()["state"].values()]
        return [each.numpy().copy() for each in [*holders, *moments]]

    @property
    def error(self):
        with torch.no_grad():
            return float(cross_entropy(self.network(self.data.tensors[0]), self.data.tensors[1]))


def train(way, kind, folder=None, *, hurt_at=None, leave_at=None):
    """The arrays at the end, the error, and the scheduler; without R8 for the kind "plain"."""
    script = Script(way, hurt_at, leave_at)
    if kind == "plain":
        for _ in range(task.EPOCHS):
            for batch in script.loader:
                script.step(script.loss(*batch).mean())
        return script.arrays, script.error, None
    files = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 4, "resume": "auto"}
    given = {"num_epochs": task.EPOCHS, "handle_signals": False, "ema": script.mean, **files}
    if script.optimizers[1:]:
        given["also"] = {"other": script.optimizers[1]}
    if way == "accumulation":
        given["accumulate"] = 4
    if way == "clipping" and kind != "reported":
        given["max_grad_norm"] = 0.5
    if kind == "drawn":
        given.update(batch_size=task.BATCH, scheduler_mode="keep", policy="shuffle")
    adapter = attach(script.network, script.optimizers[0], script.data if kind == "drawn" else script.loader, **given)
    # Those that R8 steps are of one optimizer; another one of the user's is stepped beside it.
    others = script.optimizers[1:]
    try:
        for _ in adapter.epochs():
            for batch in adapter.loader() if kind == "drawn" else adapter.batches():
                losses = script.loss(*batch)
                if kind == "reported":
                    if adapter.report(losses):
                        script.step(losses.mean())
                    continue
                for each in others:
                    each.zero_grad()
                if adapter.step(adapter.loss(losses) if kind == "drawn" else losses.mean()):
                    for each in others:
                        each.step()
                    if script.num_begun % (4 if way == "accumulation" else 1) == 0:
                        script.average()
    except Left:
        adapter.scheduler.host.saver.store.release()
        raise
    adapter.close()
    return script.arrays, script.error, adapter.scheduler


@pytest.mark.parametrize("kind", ["reported", "stepped"])
@pytest.mark.parametrize("way", WAYS)
def test_healthy(way, kind):
    """Weights, averages and momenta are to the bit those without R8."""
    check_healthy(train, way, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_healed(way, kind):
    """A weight that becomes NaN in mid-run is put back, and the run ends as well as the one without it."""
    check_healed(train, way, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_resumed(way, kind, tmp_path):
    """Left in mid-epoch and run again, it ends with the same bits, after the same number of steps."""
    check_resumed(train, way, kind, tmp_path)
