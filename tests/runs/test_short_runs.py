"""Short runs at rates near the highest: what they end with is as good as it may be, whatever was tried on the way."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from learnit_r8 import R8Scheduler

NUM_FIXED, WIDTH, MOMENTUM = 256, 32, 0.9


def _houses():
    """Targets with heavy tails, and skewed inputs, as prices of houses have."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1500, 8))
    x[:, 3:6] = np.exp(1.2 * x[:, 3:6])
    x = (x - x.mean(0)) / x.std(0)
    y = np.tanh(x @ rng.normal(size=8)) + 0.5 * np.sin(2 * x[:, 0]) * x[:, 1] + 0.3 * rng.standard_t(3, size=1500)
    return x, y


def _scaled(y):
    return ((y - y.mean()) / y.std())[:, None]


_digits, _diabetes = load_digits(), load_diabetes()
KINDS = (
    (_houses()[0], _scaled(_houses()[1]), (0.03, 0.07)),
    (_digits.data / 16, np.eye(10)[_digits.target], (0.05, 0.2)),
    (_diabetes.data / _diabetes.data.std(0), _scaled(_diabetes.target), (0.03, 0.07)),
)
"""Inputs, targets, rates. More than one target are those of classes."""


class Network:
    """Three hidden layers, and SGD with momentum.

    Args:
        sizes: Of the layers.
        seed: Of the initial weights.
    """

    def __init__(self, sizes, seed):
        rng = np.random.default_rng(seed)
        bounds = [1 / math.sqrt(size) for size in sizes[:-1]]
        self.weights = [
            rng.uniform(-bound, bound, (1 + before, size))
            for bound, before, size in zip(bounds, sizes[:-1], sizes[1:], strict=True)
        ]
        self.speeds = [np.zeros_like(each) for each in self.weights]

    def state(self):
        return {"weights": self.weights, "speeds": self.speeds}

    def load(self, state):
        self.weights, self.speeds = state["weights"], state["speeds"]

    def losses(self, x, y):
        """float[B], the losses; and float[B, outputs], their gradient."""
        self.inputs = []
        for each in self.weights:
            self.inputs.append(np.hstack([np.ones((len(x), 1)), x if not self.inputs else np.maximum(x, 0)]))
            x = self.inputs[-1] @ each
        if y.shape[1] == 1:
            return (x - y)[:, 0] ** 2, 2 * (x - y)
        x = x - x.max(1, keepdims=True)
        logs = x - np.log(np.exp(x).sum(1, keepdims=True))
        return -(logs * y).sum(1), np.exp(logs) - y

    def step(self, gradient, lr):
        """Take the step for what `losses` has returned."""
        gradient = gradient / len(gradient)
        for n in reversed(range(len(self.weights))):
            own = self.inputs[n].T @ gradient
            gradient = (gradient @ self.weights[n][1:].T) * (self.inputs[n][:, 1:] > 0)
            self.speeds[n] = MOMENTUM * self.speeds[n] + own
            self.weights[n] = self.weights[n] - lr * self.speeds[n]


class Case:
    """A short run; ``number`` says which."""

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.x, self.y, (low, high) = KINDS[number % len(KINDS)]
        self.lr = math.exp(rng.uniform(math.log(low), math.log(high)))
        self.settings = {
            "num_steps": int(rng.integers(100, 200)), "batch_size": int(rng.choice([16, 32])), "seed": number,
            "policy": "shuffle", "scheduler_mode": "keep", "handle_signals": False,
        }  # fmt: skip

    def network(self):
        return Network([self.x.shape[1], WIDTH, WIDTH, WIDTH, self.y.shape[1]], self.settings["seed"])

    def loss(self, network):
        """The loss of the fixed samples."""
        return float(network.losses(self.x[:NUM_FIXED], self.y[:NUM_FIXED])[0].mean())

    def train(self, *, is_plain=False):
        """The network after the run; ``is_plain``: as if there were no R8, with the same batches and rate."""
        network = self.network()
        callbacks = {} if is_plain else {"state_callback": network.state, "load_callback": network.load}
        r8 = R8Scheduler(len(self.x), **self.settings, **callbacks)
        for _ in r8.epoch_iterator():
            for indices, factor in r8.batch_iterator():
                losses, gradient = network.losses(self.x[indices], self.y[indices])
                if r8.update_with_loss(1.0 if is_plain else losses) or is_plain:
                    network.step(gradient, factor * self.lr)
        r8.close()
        return network


def fault_of(number):
    """What is wrong with the end of a run; "" for nothing."""
    case = Case(number)
    first, network = case.network(), case.train()
    before, after = case.loss(first), case.loss(network)
    is_first = all(map(np.array_equal, first.weights, network.weights))
    if after <= 1.02 * before and not is_first:
        # Whatever the run without R8 does.
        return ""
    plain, text = case.loss(case.train(is_plain=True)), f"run {number}: loss {before:.3f} before, {after:.3f} after it"
    if is_first and plain < before:
        return f"{text} with the initial weights, {plain:.3f} without R8"
    if math.isfinite(plain) and not after <= 1.02 * max(before, plain):
        return f"{text}, {plain:.3f} without R8"
    return ""


@pytest.mark.parametrize(
    "numbers", [range(60, 100), pytest.param(range(1000, 1400), marks=pytest.mark.slow)], ids=["40", "400"]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_short_run_ends_worse_than_it_may(numbers):
    """A run ends no worse than it began or than without R8, and never with its initial weights for nothing."""
    faults = [fault for fault in map(fault_of, numbers) if fault]

    assert not faults, "\n".join(faults)


class Watched(Case):
    """A run in which something happens on the way."""

    def train(self, act, *, closes=True):
        """The network after the run; ``act(r8, network)`` is called before each batch, and ends the run if true."""
        network = self.network()
        r8 = R8Scheduler(
            len(self.x), **self.settings, state_callback=network.state, load_callback=network.load, backup_every=10
        )
        for _ in r8.epoch_iterator():
            for indices, factor in r8.batch_iterator():
                if act(r8, network):
                    break
                losses, gradient = network.losses(self.x[indices], self.y[indices])
                if r8.update_with_loss(losses):
                    network.step(gradient, factor * self.lr)
            else:
                continue
            break
        if closes:
            r8.close()
        return network


IN_TRIAL = 7
"""A run that ends within a trial of a lower rate."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_a_trial_kept_aside_comes_back_as_the_run_ends(is_damaged, closes):
    """The weights from before a trial return where they are better, as well if those of the trial are damaged."""
    case = Watched(IN_TRIAL)
    weights = {}

    def act(r8, network):
        trial = r8.controller._first_steps._trial
        if trial is not None:
            weights["aside"] = [each.copy() for each in trial.present["weights"]]
        if is_damaged and trial is not None and r8.global_step == case.settings["num_steps"] - 1:
            network.weights = [30 * each for each in network.weights]

    final = case.train(act, closes=closes)

    assert weights
    assert all(map(np.array_equal, final.weights, weights["aside"]))
    assert case.loss(final) < 0.8 * case.loss(case.network())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("step", [20, 90])
def test_run_that_is_left_in_an_experiment_ends_with_a_better_state(step):
    """Damaged weights do not come back, nor does the initial state replace them while a trained one is no worse."""
    case, tested = Watched(2), []

    def act(r8, network):
        current = r8.controller.experiment._live.current
        if current is None and r8.global_step == step and not tested:
            network.weights = [4 * each for each in network.weights]
        tested.extend([current] if current is not None else [])
        return bool(tested)

    final = case.train(act)
    first, loss = case.network(), case.loss(final)

    assert tested
    assert loss < (0.8 if step == 90 else 1.0) * case.loss(first)
    assert not any(map(np.array_equal, final.weights, first.weights))
