"""Killed at step k and resumed by the framework's checkpoint: weights and tables against those of a whole run.

Also a NaN in every position, and the time of a step over the framework's own. ``--quick`` does a part of the grid.
Measured with seed 0 of torch on the CPU; the digits, one process (two are in ``tests/lightning/test_processes.py``).
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")


def lightning_grid(positions, accumulates, workers):
    """Cells that are equal to the bit, and how many there are."""
    from tests.lightning.common import Checkpoints, digest, fit

    equal = count = 0
    for accumulate in accumulates:
        for num_workers in workers:
            options = {"accumulate_grad_batches": accumulate, "settings": {"num_workers": num_workers}}
            at = sorted({13 * (k // 13) + k % 13 // accumulate * accumulate for k in positions} - {0})
            with tempfile.TemporaryDirectory() as folder:
                whole = digest(*fit(more=[Checkpoints(folder, at)], **options)[:2])
                resumed = [digest(*fit(ckpt_path=f"{folder}/{step}.ckpt", **options)[:2]) for step in at]
            equal, count = equal + sum(each == whole for each in resumed), count + len(resumed)
    return equal, count


def lightning_nans(positions, accumulates):
    """Runs that healed a NaN and did all their steps, and how many there are."""
    from tests.lightning.common import Digits, fit

    done = 0
    for accumulate in accumulates:
        for bad in positions:
            module, r8, _ = fit(module=Digits(bad=[bad]), accumulate_grad_batches=accumulate)
            is_finite = all(each.isfinite().all() for each in module.parameters())
            done += r8.sentry.num_refused == 1 and r8.global_step == 39 and is_finite
    return done, len(accumulates) * len(positions)


def transformers_grid(positions):
    """Cells that are equal to the bit, and how many there are."""
    from tests.transformers.common import digest, train

    with tempfile.TemporaryDirectory() as folder:
        whole = digest(train(folder, save_strategy="steps", save_steps=1))
        resumed = [digest(train(folder, resume=f"{folder}/checkpoint-{step}")) for step in positions]
    return sum(each == whole for each in resumed), len(resumed)


def lightning_step_seconds(epochs):
    """Seconds of a step: the framework's own, and with R8."""
    import lightning
    from torch.utils.data import DataLoader

    from tests.lightning.common import DATA, QUIET, Digits, fit

    def plain():
        torch.manual_seed(0)
        trainer = lightning.Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        trainer.fit(Digits(), DataLoader(DATA, batch_size=32, shuffle=True))

    seconds = []
    for run in (plain, lambda: fit(epochs=epochs)):
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) / (13 * epochs))
        seconds.append(min(times))
    return seconds


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    is_quick = parser.parse_args().quick
    positions = [3, 13, 25] if is_quick else range(1, 39, 2)
    accumulates, workers = ([1], [0]) if is_quick else ([1, 3], [0, 2])
    print("Lightning, resumed to the bit: {} of {}".format(*lightning_grid(positions, accumulates, workers)))
    print("Lightning, NaN healed: {} of {}".format(*lightning_nans(positions, accumulates)))
    print("Trainer, resumed to the bit: {} of {}".format(*transformers_grid(positions)))
    plain, ours = lightning_step_seconds(5 if is_quick else 30)
    print(f"Lightning, step: {plain * 1e3:.2f} ms plain, {ours * 1e3:.2f} ms with R8, {ours / plain:.3f}x")


if __name__ == "__main__":
    main()
