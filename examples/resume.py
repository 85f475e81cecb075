"""A run that is killed in the middle and goes on when it is started again: resume="auto" and a folder are all it takes.

python examples/resume.py          # ends at step 70, as in a power cut
python examples/resume.py          # goes on from the newest checkpoint, to the end
"""

import os
import sys

import numpy as np

from learnit_r8 import R8Scheduler

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 5))
y = x @ np.array([1.0, -2.0, 3.0, 0.5, 0.0]) + 0.1 * rng.normal(size=1000)
model = {"w": np.zeros(5)}


def save(state_dict, path):
    with open(path, "wb") as file:
        np.save(file, model["w"])


def load(path):
    model["w"] = np.load(path)


with R8Scheduler(
    1000,
    batch_size=20,
    num_epochs=2,
    initial_lr=0.05,
    save_callback=save,
    load_callback=load,
    checkpoint_dir=sys.argv[1] if len(sys.argv) > 1 else "resume_example",
    checkpoint_every=10,
    resume="auto",
) as r8:
    began_at = r8.global_step
    print(f"begins at step {began_at}")
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            error = x[indices] @ model["w"] - y[indices]
            model["w"] = model["w"] - lr * 2 * x[indices].T @ error / len(indices)
            r8.update_with_loss(float((error**2).mean()))
            if began_at == 0 and r8.global_step == 70:
                os._exit(9)

print(f"ends at step {r8.global_step}: weights {model['w'].round(1).tolist()}")
