"""The code of the document that specified this package runs unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from tests.terminals import ENTER, Terminal

SEED = """
```python
import time
import random
from learnit_r8 import R8Scheduler

# 1. Define your training components
def my_train_step(batch_indices, lr):
    # Your actual model training logic goes here
    # print(f"Training on {len(batch_indices)} samples with LR: {lr:.6f}")
    time.sleep(0.05)
    # Simulate a loss that depends on the data and learning rate
    return 1.0 / (lr * 100 + 1) + random.uniform(-0.1, 0.1)

def save_model_callback(state_dict, filepath):
    # In a real scenario, you would save model weights, e.g., torch.save(...)
    print(f"\\n[Callback] Saving model state to {filepath}...")
    return True

def load_model_callback(filepath):
    # In a real scenario, you would load model weights, e.g., model.load_state_dict(...)
    print(f"\\n[Callback] Loading model state from {filepath}...")
    return {"key": "mock_model_state"} # Return the loaded state

# 2. Setup the Scheduler
scheduler = R8Scheduler(
    num_samples=1000,
    num_epochs=10,
    batch_size=32,
    initial_lr=0.01,
    scheduler_mode='cosine',
    save_callback=save_model_callback,
    load_callback=load_model_callback,
    use_curses=True
)

# 3. Run the training loop
try:
    for epoch in scheduler.epoch_iterator():
        for batch_indices, lr in scheduler.batch_iterator():
            # Perform a training step
            loss = my_train_step(batch_indices, lr)
            
            # Update the scheduler with the result
            scheduler.update_with_loss(loss)

finally:
    # Ensure curses UI is closed properly
    scheduler.close()

print("\\nTraining complete!")
```

```python
# The standard training loop with learnit_r8
for epoch in scheduler.epoch_iterator():
    for batch_indices, lr in scheduler.batch_iterator():
        # 1. You get indices and the learning rate from the scheduler
        
        # 2. You perform your training step
        loss = my_train_step(batch_indices, lr) 
        
        # 3. You report the loss back. The scheduler handles the rest.
        scheduler.update_with_loss(loss)
```

```python
# Inside your training loop, maybe every 50 steps
if scheduler.global_step % 50 == 0:
    # In PyTorch, this would be model.state_dict().to('cpu')
    current_model_state_on_cpu = get_current_model_weights_on_cpu()
    scheduler.update_cpu_backup(current_model_state_on_cpu)
```
"""  # noqa: W293, W291

INTERVENTION = re.compile(r"refused|restored|recovered|Loading model|not reported", re.IGNORECASE)


def block(marker):
    """The Python block of the document that contains a text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", SEED, re.DOTALL) if marker in code]
    return found


# Its losses are random, and rise as the rate falls: one run in four hundred has a spike.
QUICK_START = "import random\nrandom.seed(0)\n" + block("Setup the Scheduler").replace(
    "time.sleep(0.05)", "time.sleep(0)"
)


def check(output, tmp_path):
    assert output.rstrip().splitlines()[-1] == "Training complete!"
    assert not INTERVENTION.search(output), output
    assert output.count("[Callback] Saving model state to") == 10
    assert output.count("epoch 10/10") == 1
    assert len(list((tmp_path / "checkpoints").glob("ck_*.r8"))) == 3


def test_quick_start_runs_without_a_terminal(tmp_path):
    """The Quick Start runs unchanged with its output in a pipe, to its last line, and nothing intervenes."""
    done = subprocess.run(
        [sys.executable, "-c", QUICK_START], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    check(done.stderr + done.stdout, tmp_path)


def test_quick_start_runs_in_a_terminal(tmp_path):
    """The Quick Start runs unchanged with its screen on a terminal, to its last line, and nothing intervenes."""
    with Terminal(["-c", QUICK_START], cwd=tmp_path) as terminal:
        code = terminal.wait_for_end()
        lines = terminal.after.rstrip().splitlines()

        assert code == 0
        assert ENTER in terminal.raw
        assert terminal.is_restored
        assert lines[-1] == "Training complete!"
        assert sum("[Callback] Saving model state to" in line for line in lines) == 10
        assert not INTERVENTION.search(terminal.after)
        assert len(list((tmp_path / "checkpoints").glob("ck_*.r8"))) == 3


def test_quick_start_is_an_example():
    """examples/quick_start.py is the Quick Start of the document, line for line."""
    example = Path(__file__).parents[2] / "examples" / "quick_start.py"

    assert example.read_text(encoding="utf-8").strip() == block("Setup the Scheduler").strip()


def test_core_loop_runs():
    """The core loop trains every epoch's batches."""
    scheduler = R8Scheduler(num_samples=100, num_epochs=3, batch_size=10)
    trained = []

    def my_train_step(batch_indices, lr):
        trained.append(batch_indices)
        return 1.0 / (lr + 1)

    exec(block("standard training loop"), {"scheduler": scheduler, "my_train_step": my_train_step})

    assert len(trained) == 30
    assert sorted(np.concatenate(trained).tolist()) == sorted(3 * list(range(100)))


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
@pytest.mark.parametrize("place", ["before the step", "after the report"])
def test_backup_snippet_runs_inside_the_loop(place):
    """The backup snippet, put anywhere into the loop, gives the load callback a good copy after a loss explosion."""
    loaded = []
    scheduler = R8Scheduler(num_samples=1000, num_epochs=10, batch_size=32, load_callback=loaded.append)
    weights = np.zeros(1)
    snippet = compile(block("update_cpu_backup"), "seed", "exec")
    names = {"scheduler": scheduler, "get_current_model_weights_on_cpu": lambda: weights}
    for _ in scheduler.epoch_iterator():
        for _ in scheduler.batch_iterator():
            if place == "before the step":
                exec(snippet, names)
            if scheduler.global_step == 120:
                weights[:] = float("nan")
            loss = float(1.0 + 0.0 * weights[0])
            if not np.isnan(loss):
                weights += 1
            outcome = scheduler.update_with_loss(loss)
            if not outcome:
                weights[:] = loaded[-1]
            if place == "after the report":
                exec(snippet, names)

    assert {float(state[0]) for state in loaded} == {100}
    assert outcome
