"""What R8 does about updates that are too large where it steps the optimizer: dead parameters, and clipping."""

import contextlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnit_r8.engine.values import grouped
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from tests.torch_common import X, Y

NUM_STEPS = 320


class Left(Exception):
    """The loop is left."""


def rectifiers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def batches(size=16):
    dice = np.random.default_rng(0)
    rows = [torch.as_tensor(dice.integers(0, len(X), size)) for _ in range(NUM_STEPS)]
    return [(X[each], Y[each]) for each in rows]


def kill(model):
    """What one update that is far too large leaves behind: rectifiers that no input activates."""
    with torch.no_grad():
        model[4].bias.fill_(-1e3)


def loss_of(model):
    with torch.no_grad():
        return float(cross_entropy(model(X), Y))


class Run:
    """A training on one's own batches.

    Args:
        kills: Steps before which the rectifiers die.
        steps: Whether R8 steps the optimizer.
        saves_at, until: Steps before which a checkpoint is written, and the loop is left.
    """

    def __init__(
        self, *, kills=(), model=None, make=torch.optim.Adam, lr=3e-3, steps=True, saves_at=None, until=None, **settings
    ):
        self.model, self.heard, self.weights = rectifiers() if model is None else model, record_events(), {}
        optimizer, left = make(self.model.parameters(), lr), set(kills)
        with warnings.catch_warnings(record=True) as said, contextlib.suppress(Left):
            warnings.simplefilter("always")
            with attach(
                self.model, optimizer, batches(), num_steps=NUM_STEPS, listeners=[self.heard],
                **grouped(dict(backup_every=20, **settings)),
            ) as self.adapter:  # fmt: skip
                r8 = self.adapter.scheduler
                for x, y in self.adapter.batches():
                    step = r8.global_step
                    self.weights[step] = torch.cat([each.detach().flatten() for each in self.model.parameters()])
                    if step == saves_at:
                        r8.save_checkpoint()
                    if step == until:
                        raise Left
                    if step in left:
                        left.discard(step)
                        kill(self.model)
                    loss = cross_entropy(self.model(x), y)
                    if steps:
                        self.adapter.step(loss)
                    elif self.adapter.report(loss):
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
        self.said = " ".join(str(each.message) for each in said)
        self.kinds = [type(each).__name__ for each in self.heard]


def bare(*, kills=(), lr=3e-3, model=None, make=torch.optim.Adam):
    model = rectifiers() if model is None else model
    optimizer = make(model.parameters(), lr)
    for step, (x, y) in enumerate(batches()):
        if step in kills:
            kill(model)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("kills", [[100, 220], [3], pytest.param([100], marks=pytest.mark.program)])
def test_dead_parameters_are_revived(kills):
    """Where most parameters get no gradient any more, a state from before that goes on at a tenth of the rate."""
    run = Run(kills=kills)

    assert loss_of(bare(kills=kills)) > 2.2
    assert loss_of(run.model) < 2.0
    assert "have had no gradient at all" in run.said
    assert next(event.reason for event in run.heard if type(event).__name__ == "LrCapped") == "no gradient"
    assert run.kinds.count("RolledBack") >= len(kills)
    assert "the norm of the gradient is clipped" in run.adapter.scheduler.summary()


def test_a_rate_at_which_units_die_is_lowered():
    """Without any fault: at a rate far beyond the edge the network dies within the first steps, and is revived."""
    assert loss_of(bare(lr=8.0, make=torch.optim.SGD)) > 2.2
    assert loss_of(Run(lr=8.0, make=torch.optim.SGD).model) < 2.0


class Gated(nn.Module):
    """With parameters that have no gradient: from the start on, in turns, and from some step on with the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(64, 10) for _ in range(8))
        self.unused, self.turn = nn.ModuleList(nn.Linear(64, 10) for _ in range(6)), 0

    def forward(self, x):
        self.turn += 1
        return sum(
            expert(x) * float(number == self.turn % 8) for number, expert in enumerate([*self.experts, *self.unused])
        )


@pytest.mark.parametrize("make", [rectifiers, pytest.param(Gated, marks=pytest.mark.program)])
def test_a_healthy_run_is_the_same_to_the_bit(make):
    """Parameters that never had a gradient, or have one in turns, are not dead: nothing is probed or changed."""
    run, other = Run(model=make()), bare(model=make())

    assert "Probed" not in run.kinds
    assert all(map(torch.equal, run.model.parameters(), other.parameters()))
    assert "clipped" not in run.adapter.scheduler.summary()


@pytest.mark.parametrize("settings", [{"steps": False}, {"guard": "finite"}], ids=["user steps", "finite"])
def test_nothing_is_tried_where_r8_may_not(settings):
    """Where the loop steps by itself R8 sees no gradient, and with guard="finite" losses are no measure of progress."""
    run = Run(kills=[100], **settings)

    assert "no gradient" not in run.said
    assert "RolledBack" not in run.kinds


@pytest.mark.parametrize("at", [6, pytest.param(40, marks=pytest.mark.program)])
def test_a_run_resumed_within_the_trial_goes_on_to_the_bit(at, tmp_path):
    """A checkpoint holds the dead state, that of the trial, the rate, and the norms learned so far."""
    begun = next(event.step for event in Run(kills=[100]).heard if type(event).__name__ == "LrCapped")
    given = {"checkpoint_every": 10**6, "backup_dir": False}
    whole = Run(kills=[100], saves_at=begun + at, checkpoint_dir=tmp_path / "whole", **given)
    Run(kills=[100], saves_at=begun + at, until=begun + at + 9, checkpoint_dir=tmp_path / "cut", **given)
    resumed = Run(checkpoint_dir=tmp_path / "cut", resume="auto", **given)

    assert min(resumed.weights) == begun + at
    assert all(torch.equal(weights, whole.weights[step]) for step, weights in resumed.weights.items())
    assert loss_of(resumed.model) == loss_of(whole.model) < 1.5


def test_gradients_are_clipped_while_a_rate_is_held_down():
    """From some norms on, longer gradients are cut to four times the usual; of two limits the lower one counts."""
    torch.manual_seed(0)
    for own, most in ((None, 4.0), (1.0, 1.0), (9.0, 4.0)):
        weight = nn.Parameter(torch.zeros(4))
        adapter = attach(
            nn.ParameterList([weight]), torch.optim.SGD([weight], 1.0), None, num_steps=99, max_grad_norm=own
        )
        norms = adapter.scheduler.controller.norms
        norms.begin(0)
        for number, _ in zip(range(20), adapter.steps(), strict=False):
            length = 100.0 if number == 19 else 1.0
            before = weight.detach().clone()
            outcome = adapter.step((weight[0] * length + 2.0) - float(weight[0].detach()) * length)
        moved = float((weight.detach() - before).norm())

        assert math.isclose(moved, most, rel_tol=1e-5)
        assert math.isclose(outcome.clip_factor, 0.04, rel_tol=1e-5)
        assert json.loads(json.dumps(norms.state_dict())) == norms.state_dict()


def test_scaled_gradients_are_clipped_at_their_own_norm():
    """A GradScaler's gradient is divided by its scale before it is clipped."""
    weight = nn.Parameter(torch.zeros(4))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    adapter = attach(nn.ParameterList([weight]), torch.optim.SGD([weight], 1.0), None, num_steps=99, scaler=scaler)
    adapter.scheduler.controller.norms.begin(0)
    for number, _ in zip(range(20), adapter.steps(), strict=False):
        before = weight.detach().clone()
        adapter.step(weight[0] * (100.0 if number == 19 else 1.0) - float(weight[0].detach()) + 2.0)

    assert math.isclose(float((weight.detach() - before).norm()), 4.0, rel_tol=1e-5)


def test_a_second_optimizer_is_its_owners():
    """Of several optimizers, R8 steps the first and looks at its parameters; the other one keeps its gradients."""
    model, second = rectifiers(), nn.Linear(10, 10)
    other = torch.optim.SGD(second.parameters(), 0.0)
    run = Run(kills=[100], model=model, also={"second": second, "second optimizer": other})

    assert loss_of(run.model) < 1.5


def test_parameters_of_any_kind_are_looked_at():
    """Empty ones, without a gradient, of several types, complex: the look at gradients ends no training."""
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]
    weights = nn.ParameterList([torch.ones(3, dtype=each) for each in kinds] + [torch.ones(0), torch.ones(2)])
    adapter = attach(weights, torch.optim.SGD(weights, 0.01), None, num_steps=40, handle_signals=False)
    for _ in adapter.steps():
        adapter.step(sum((each.abs() ** 2).sum().float() for each in weights[:5]))
    adapter.close()

    assert adapter.scheduler.global_step == 40
    assert adapter.scheduler.sentry.num_refused == 0
