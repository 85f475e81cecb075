"""A run that is killed: trains a toy model of numpy, or one of torch with dropout, and logs every step.

Arguments: folder, steps at which to be killed (0 for never), "numpy", "torch" or "saving", which is numpy with
checkpoints, steps in all.
"""

import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped

ARGUMENTS = sys.argv[1:] if __name__ == "__main__" else [".", "0", "numpy", "0"]
FOLDER, KILLED_AT, KIND, TOTAL = Path(ARGUMENTS[0]), int(ARGUMENTS[1]), ARGUMENTS[2], int(ARGUMENTS[3])
COMMON = {"checkpoint_dir": FOLDER / "ck", "backup_dir": FOLDER / "shm", "resume": "auto", "batch_size": 8,
          "num_steps": TOTAL, "checkpoint_every": 25 if KIND == "saving" else 10_000, "backup_every": 10}  # fmt: skip


def log(*values):
    with open(FOLDER / "log", "a") as file:
        print(*values, file=file)


def end_of_step(r8, value):
    log(r8.global_step, value)
    if r8.global_step == KILLED_AT:
        # The background finishes what it has begun.
        while r8.host.persistence.generations.is_writing:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)


class Moments(NamedTuple):
    """As the states of optimizers of optax are."""

    mu: np.ndarray


def numpy_run():
    model = {"w": np.zeros(50), "opt": Moments(np.zeros(2))}

    def load(source, from_ram=False):
        model["w"] = np.array(source["w"]) if from_ram else np.load(source)
        if from_ram:
            model["opt"] = Moments(np.array(source["opt"].mu))

    def save(state, path):
        with open(path, "wb") as file:
            np.save(file, state["model"]["w"])

    r8 = R8Scheduler(640, **grouped(COMMON), state_callback=lambda: model, load_callback=load, save_callback=save)
    log("began", r8.global_step, model["w"][0])
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            model["w"] += lr * indices.mean()
            r8.update_with_loss(1.0 + indices.mean() / 640)
            time.sleep(0.004)
            end_of_step(r8, repr(float(model["w"][0])))


def torch_run():
    import torch

    from learnit_r8.torch import attach

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.arange(640 * 4, dtype=torch.float32).reshape(640, 4) / 2560
    adapter = attach(model, optimizer, torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), **grouped(COMMON))
    log("began", adapter.scheduler.global_step, 0)
    for _ in adapter.epochs():
        for xs, ys in adapter.loader():
            losses = torch.nn.functional.mse_loss(model(xs), ys, reduction="none").mean(1)
            adapter.step(adapter.loss(losses))
            time.sleep(0.004)
            end_of_step(adapter.scheduler, repr(float(losses.detach().mean())))
    adapter.close()


if __name__ == "__main__":
    warnings.simplefilter("error")
    {"numpy": numpy_run, "saving": numpy_run, "torch": torch_run}[KIND]()
    log("ended")
