"""A training in numpy with batches of its own, as a script without R8 would have them."""

import random

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped


class Line:
    """A line fitted to points by SGD with momentum, and its noise from the global generators."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=3)
        self.speed = np.zeros(3)
        self.target = np.array([1.0, -2.0, 0.5])

    def loss(self, batch):
        """Mean squared error of a batch float[B, 3], with noise as of dropout."""
        self.batch = batch * (1 + 0.01 * np.random.standard_normal(batch.shape))
        self.error = self.batch @ self.weights - batch @ self.target
        return float(np.mean(self.error**2))

    def step(self, lr):
        """Take a step."""
        self.speed = 0.9 * self.speed - lr * 2 * self.batch.T @ self.error / len(self.error)
        self.weights = self.weights + self.speed

    def read(self):
        """The state."""
        return {"weights": self.weights, "speed": self.speed}

    def spoil(self):
        """Have a fault write NaN into all of it."""
        self.weights, self.speed = self.weights * np.nan, self.speed * np.nan

    def load(self, source, from_ram=False):
        """Put it back."""
        if not from_ram:
            with np.load(source) as file:
                source = dict(file)
        self.weights, self.speed = source["weights"].copy(), source["speed"].copy()

    def save(self, state, path):
        """Write it."""
        with open(path, "wb") as file:
            np.savez(file, **state["model"])


class Loader:
    """Batches of changing sizes in an order that Python's global generator shuffles at the start of each run."""

    def __init__(self, length=30, seed=7):
        rng = np.random.default_rng(seed)
        self.batches = [rng.normal(size=(1 + place % 5, 3)) for place in range(length)]
        self.given, self.begun, self.epoch = [], 0, -1

    def __len__(self):
        return len(self.batches)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.begun += 1
        order = list(range(len(self.batches)))
        random.shuffle(order)
        for place in order:
            self.given.append(place)
            yield self.batches[place]


def seed_all(seed=3):
    """Seed the global generators."""
    random.seed(seed)
    np.random.seed(seed)


def generators():
    """Their states, to be compared."""
    return random.getstate(), [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]


def train(epochs=4, *, with_r8=True, on_batch=None, line=None, loader=None, lr=0.02, **settings):
    """The same training with R8 or without; returns its parts."""
    line, loader = line or Line(), loader or Loader()
    if not with_r8:
        for _ in range(epochs):
            for batch in loader:
                line.loss(batch)
                line.step(lr)
        return line, loader, None
    given = {"num_epochs": epochs, "scheduler_mode": "keep", "handle_signals": False, "backup_every": 10, **settings}
    if not given.pop("is_blind", False):
        given |= {"state_callback": line.read, "load_callback": line.load}
    else:
        given.pop("backup_every")
    r8 = R8Scheduler(**grouped(given))
    with r8:
        for _ in r8.epoch_iterator():
            for batch in r8.batches(loader):
                if on_batch is not None:
                    on_batch(r8, line)
                if r8.update_with_loss(line.loss(batch)):
                    line.step(lr * r8.lr_factor)
    return line, loader, r8
