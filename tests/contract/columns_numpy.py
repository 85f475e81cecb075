"""A loop in numpy: R8's batches, and its own."""

from __future__ import annotations

import numpy as np

from learnit_r8 import R8Scheduler

from . import task


class Numpy:
    """R8 draws the batches and sets the rate."""

    own = False

    def train(self, run):
        model = _Model(run)
        samples = () if self.own else (task.NUM_SAMPLES,)
        run.r8 = r8 = R8Scheduler(
            *samples, num_epochs=run.case.epochs, **model.callbacks, **{**self.settings(), **run.settings}, **run.files
        )
        with r8:
            for epoch in r8.epoch_iterator():
                for rows, lr in self.batches(run, epoch):
                    model.hurt()
                    x, y = run.fetch(rows)
                    losses, found = task.gradients(model.weights, x, y, run.case.activation)
                    if r8.update_with_loss(losses.mean()):
                        model.step(found, lr())
                run.end_epoch(model.copy(), val_loss=model.validate())
        model.write_down()

    def plain(self, run):
        model = _Model(run)
        for epoch in range(run.case.epochs):
            for rows in run.epoch_of_rows(epoch):
                model.hurt()
                lr = run.rate or task.RATE
                x, y = run.fetch(rows)
                model.step(task.gradients(model.weights, x, y, run.case.activation)[1], lr)
            run.end_epoch(model.copy(), val_loss=model.validate())
        model.write_down()

    def settings(self):
        return {"batch_size": task.BATCH, "initial_lr": task.RATE, **task.CONSTANT}

    def batches(self, run, epoch):
        for rows, lr in run.r8.batch_iterator():
            yield rows, lambda lr=lr: lr


class NumpyOwn(Numpy):
    """The loop's own batches and rate."""

    own = True

    def settings(self):
        return {"scheduler_mode": "keep"}

    def batches(self, run, epoch):
        for rows in run.r8.batches(run.epoch_of_rows(epoch)):
            yield rows, lambda: task.RATE * run.r8.lr_factor


class _Model:
    """Weights and momentum of the loop."""

    def __init__(self, run):
        self.run, self.weights = run, task.first_weights()
        self.speed = {name: np.zeros_like(each) for name, each in self.weights.items()}
        self.callbacks = {"state_callback": self.state, "load_callback": self.load, "save_callback": self.save}
        if run.case.folder is None:
            del self.callbacks["save_callback"]

    def state(self):
        return {"weights": self.weights, "speed": self.speed}

    def load(self, source):
        if not isinstance(source, dict):
            with np.load(source) as file:
                source = {part: {name: file[f"{part}.{name}"] for name in task.SHAPES} for part in ("weights", "speed")}
        self.weights = {name: each.copy() for name, each in source["weights"].items()}
        self.speed = {name: each.copy() for name, each in source["speed"].items()}

    def save(self, state_dict, filepath):
        with open(filepath, "wb") as file:
            np.savez(
                file,
                **{
                    f"{part}.{name}": each
                    for part, arrays in state_dict["model"].items()
                    for name, each in arrays.items()
                },
            )

    def hurt(self):
        factor = self.run.begin_turn()
        if factor is not None:
            self.weights = {name: self.run.hurt(name, each, factor) for name, each in self.weights.items()}

    def step(self, gradients, lr):
        for name, each in gradients.items():
            self.speed[name] = np.float32(task.MOMENTUM) * self.speed[name] + each
            self.weights[name] = self.weights[name] - np.float32(lr) * self.speed[name]

    def copy(self):
        return {name: each.copy() for name, each in self.weights.items()}

    def validate(self):
        return task.error(self.weights, task.VAL_X, task.VAL_Y, self.run.case.activation)

    def write_down(self):
        self.run.weights, self.run.optimizer = self.weights, list(self.speed.values())
        self.run.generators = np.random.get_state()[1].copy()


COLUMNS = {"numpy": Numpy, "numpy own": NumpyOwn}
