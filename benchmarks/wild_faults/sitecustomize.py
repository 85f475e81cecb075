"""Moves the seeds of a script and writes a NaN into its weights, as the environment says: for wild_checkouts.py."""

import os
import random

import numpy as np
import torch

SEED, FAULT = int(os.environ.get("WILD_SEED", "0")), int(os.environ.get("WILD_FAULT", "0"))
optimizers: list[torch.optim.Optimizer] = []
backward, made = torch.Tensor.backward, torch.optim.Optimizer.__init__
passes = 0


def moved(plain):
    """A function that takes a seed, which is moved; what a loader seeds its workers with follows from it."""

    def seed_moved(seed=0, *args, **settings):
        is_own = isinstance(seed, int) and torch.utils.data.get_worker_info() is None
        return plain(seed + SEED if is_own else seed, *args, **settings)

    return seed_moved


def noted(tensor, *args, **settings):
    """Count the backward passes, and write the NaN after one of them."""
    global passes
    backward(tensor, *args, **settings)
    passes += 1
    if passes == FAULT:
        with torch.no_grad():
            optimizers[0].param_groups[0]["params"][0].view(-1)[0] = float("nan")


def kept(optimizer, *args, **settings):
    """Keep an optimizer in mind."""
    made(optimizer, *args, **settings)
    optimizers.append(optimizer)


for module, name in ((torch, "manual_seed"), (np.random, "seed"), (random, "seed")):
    setattr(module, name, moved(getattr(module, name)))
    getattr(module, name)(0)
torch.Tensor.backward, torch.optim.Optimizer.__init__ = noted, kept
