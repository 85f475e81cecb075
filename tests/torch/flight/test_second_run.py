"""A step that is not finite is computed once more: what is finite then was a transient fault, and the batch counts."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from learnit_r8.torch import attach
from tests.torch_common import equal

NUM_STEPS, BATCH_SIZE = 24, 4


class Net(nn.Module):
    """With buffers that change and random numbers, and a place for a fault in the forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.drop, self.strike = nn.Dropout(0.3), lambda hidden: hidden

    def forward(self, x):
        return self.last(self.drop(self.strike(self.norm(self.first(x)).relu())))


def flipped(values, place):
    """A copy in which the bits of the exponent of one number are all set, as hardware may leave it."""
    values = values.clone()
    values.view(-1).view(torch.int32)[place % values.numel()] |= 0x7F800000
    return values


class Flip:
    """Strikes the gradient of one parameter, or the output of a layer, at some of its calls."""

    def __init__(self, steps, where, seed=0):
        self.steps, self.where, self.seed, self.step, self.left = steps, where, seed, -1, 0

    def at(self, step):
        """Whether the next computation is struck, once for each step."""
        self.step, self.left = step, int(step in self.steps)

    def __call__(self, values):
        if not self.left:
            return values
        self.left -= 1
        return flipped(values, self.seed)


def train(flip=None, *, seed=0, bad_step=None, draws=False, keeps=True, scaler=None, stop=None, model=None, **settings):
    """Train; returns the model, the adapter, the warnings, and the losses that the loop saw."""
    torch.manual_seed(seed)
    model = Net() if model is None else model
    x, y = torch.randn(NUM_STEPS * BATCH_SIZE, 6), torch.randn(NUM_STEPS * BATCH_SIZE, 1)
    batches = [(x[at : at + BATCH_SIZE], y[at : at + BATCH_SIZE]) for at in range(0, len(x), BATCH_SIZE)]
    if bad_step is not None:
        batches[bad_step] = (batches[bad_step][0] * float("nan"), batches[bad_step][1])
    if flip is not None and flip.where == "forward":
        model.strike = flip
    elif flip is not None:
        next(iter(model.parameters())).register_hook(flip)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    if keeps:
        settings["run_batch"] = lambda batch: mse_loss(model(batch[0]), batch[1])
    data = torch.utils.data.TensorDataset(x, y) if draws else batches
    sizes = {"batch_size": BATCH_SIZE, "num_epochs": 1} if draws else {"num_steps": NUM_STEPS}
    with (
        warnings.catch_warnings(record=True) as caught,
        attach(model, optimizer, data, scaler=scaler, **{**sizes, **settings}) as adapter,
    ):
        warnings.simplefilter("always")
        for step, (xs, ys) in enumerate(adapter.loader() if draws else adapter.batches()):
            if flip is not None:
                flip.at(step)
            if draws:
                loss = adapter.loss(mse_loss(model(xs), ys, reduction="none").mean(1))
            else:
                loss = mse_loss(model(xs), ys)
            adapter.step(loss)
            if step == stop:
                break
    return model, adapter, [str(each.message) for each in caught]


@pytest.mark.parametrize("where", ["backward", "forward"])
@pytest.mark.parametrize("draws", [False, True])
def test_a_flip_is_transient_and_leaves_no_trace(where, draws):
    """The weights, buffers and random numbers of the run are those of one without the fault, to the bit."""
    model, adapter, said = train(Flip({9}, where), draws=draws)
    plain = train(draws=draws)[0]

    assert equal(model.state_dict().values(), plain.state_dict().values())
    assert adapter.scheduler.sentry.num_refused == 0
    assert "1 transient fault" in adapter.scheduler.summary()
    assert not [each for each in said if "refused" in each]


@pytest.mark.program
def test_flips_are_called_transient_and_calm_runs_are_not():
    """Of forty flips in gradients at least 95 % are called transient; of forty calm runs none."""
    found, calm = [], []
    for seed in range(40):
        place = int(np.random.default_rng(seed).integers(2, NUM_STEPS))
        # With another guard one of these may strike a probe, of which nothing is learned.
        _, adapter, _ = train(Flip({place}, "backward", seed), seed=seed, guard="finite")
        found.append(adapter.scheduler.controller.state_dict()["incidents"]["num_transient"])
        if seed < 10:
            calm.append(train(seed=seed)[1].scheduler.controller.state_dict()["incidents"]["num_transient"])
    assert found.count(1) >= 38
    assert not any(calm)


def test_a_batch_that_is_not_finite_again_is_refused_and_the_sentence_says_so():
    """Its gradient is not finite either: nothing is learned, and no device is suspected."""
    model, adapter, said = train(bad_step=9)

    assert adapter.scheduler.sentry.num_refused == 1
    assert "transient" not in adapter.scheduler.summary()
    assert any("computed once more from the same weights, it was not finite either" in each for each in said)
    assert all(torch.isfinite(each).all() for each in model.parameters())


def test_a_gradient_that_is_never_finite_is_refused_before_it_is_learned():
    """Without clipping nobody looked at it, and the weights were lost."""
    flip = Flip({9}, "backward")
    flip.at = lambda step: setattr(flip, "left", 2 * (step == 9))
    _, adapter, _ = train(flip)

    assert adapter.scheduler.sentry.num_refused == 1
    assert adapter.scheduler.controller.state_dict()["incidents"]["num_restored"] == 0


def test_three_transient_faults_name_the_device_and_a_resume_goes_on_counting(tmp_path):
    """The number is shown, and saved."""
    settings = {"checkpoint_dir": tmp_path, "num_steps": 2 * NUM_STEPS, "checkpoint_every": 1}
    said = train(Flip({5, 8}, "backward"), stop=12, **settings)[2]
    assert not [each for each in said if "point to" in each]
    _, adapter, said = train(Flip({2}, "backward"), resume="auto", **settings)

    assert "3 transient faults" in adapter.scheduler.summary()
    (text,) = [each for each in said if "point to" in each]
    assert "the CPU of" in text


def test_what_cannot_be_computed_again_is_not_tested():
    """Without run_batch, and where a scaler skips the step, no sentence says that it was tested."""
    _, adapter, said = train(Flip({9}, "forward"), keeps=False)
    assert adapter.scheduler.sentry.num_refused == 1
    assert "or a transient fault (not tested)" in adapter.scheduler.summary()
    assert not [each for each in said if "once more" in each]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    _, adapter, _ = train(Flip({9}, "backward"), scaler=scaler)
    assert "transient" not in adapter.scheduler.summary()
