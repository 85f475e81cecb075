"""A run that is killed in the middle and goes on when it is started again: resume="auto" and a folder are all it takes.

python examples/resume.py          # ends at step 70, as in a power cut
python examples/resume.py          # goes on to the end, and compares itself with an unbroken run
"""

import os
import sys
import tempfile

import numpy as np

from learnit_r8 import R8Scheduler

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 5))
y = x @ np.array([1.0, -2.0, 3.0, 0.5, 0.0]) + 0.1 * rng.normal(size=1000)


def train(die_at=None, **settings):
    """Train to the end, or to the step to die at; returns batches, rates, weights and table."""
    model, batches, rates = {"w": np.zeros(5)}, [], []

    def save(state_dict, path):
        with open(path, "wb") as file:
            np.save(file, model["w"])

    def load(path):
        model["w"] = np.load(path)

    with R8Scheduler(
        1000, batch_size=20, num_epochs=2, initial_lr=0.05, save_callback=save, load_callback=load, **settings
    ) as r8:
        began_at = r8.global_step
        print(f"begins at step {began_at}")
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                batches.append(indices)
                rates.append(lr)
                error = x[indices] @ model["w"] - y[indices]
                model["w"] = model["w"] - lr * 2 * x[indices].T @ error / len(indices)
                r8.update_with_loss(float((error**2).mean()))
                if began_at == 0 and r8.global_step == die_at:
                    os._exit(9)
    print(f"ends at step {r8.global_step}: weights {model['w'].round(1).tolist()}")
    return np.reshape(batches, (-1, 20)), np.array(rates), model["w"], r8.table.loss


resumed = train(
    die_at=70, checkpoint_dir=sys.argv[1] if len(sys.argv) > 1 else "resume_example", checkpoint_every=10, resume="auto"
)
print("the same training, never stopped:")
with tempfile.TemporaryDirectory() as elsewhere:
    unbroken = train(checkpoint_dir=elsewhere)
for name, ours, theirs in zip(("batches", "rates", "weights", "table"), resumed, unbroken, strict=True):
    # The resumed run has the batches and rates from the step on at which it began.
    is_equal = np.array_equal(ours, theirs[len(theirs) - len(ours) :])
    print(f"{name}: {'equal to the bit' if is_equal else 'DIFFERENT'}")
