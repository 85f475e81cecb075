"""Writes files of the version at hand, for later versions to prove that they still read them.

    python tests/runs/saved/write_saved.py tests/runs/saved/01c0f9e2

The files in ``01c0f9e2`` were written by that commit with Python 3.11 and numpy 2.4; they are never written again. A
later format writes its own beside them. ``mid_epoch`` and ``incident`` hold a checkpoint, ``torch`` a state, ``run`` a
run folder. ``expected.npz`` holds what that version itself did next: the batches, their rates, and what the table knew
of the samples after them. ``tests/runs/test_saved_files.py`` builds schedulers and goes on with the functions below.
"""

import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import FakeClock, FaultPlan, ToyTask

SIZE = 300
GROUPS = ["cat", "dog", "owl"] * (SIZE // 3)
CASES = {
    "mid_epoch": {
        "num_samples": SIZE, "batch_size": 32, "num_epochs": 8, "policy": "focus", "groups": GROUPS,
        "sample_ids": [f"{number}.png" for number in range(SIZE)], "monitor": "accuracy", "mode": "max", "seed": 3,
        "keep_checkpoints": 1,
    },
    "incident": {"num_samples": SIZE, "batch_size": 16, "num_epochs": 16, "scheduler_mode": "linear"},
}  # fmt: skip
"""What each scheduler is built with."""

NEXT_STEPS = {"mid_epoch": 40}
"""How many batches are written down; of an incident none, since a later version may answer it better."""

BAD_SAMPLE = 7
"""The loss of this sample is never a number in the run with an incident, so that it is quarantined before it."""

KNOWN = ("loss", "last", "mean", "usage_count")
NEVER = 10**6


def losses_of(indices, step):
    """float64[B], what is reported of some samples: the same on every machine, and healthy."""
    return (0.75 + np.asarray(indices) * 7919 % 101 / 200) * (1 + 30 / (30 + step))


def report(r8, name, ticket):
    """Report a batch, in the way of this case."""
    losses = losses_of(ticket.indices, r8.global_step)
    if name == "incident":
        losses[ticket.indices == BAD_SAMPLE] = math.nan
    r8.report(ticket, losses)


def callbacks_of(toy):
    """The callbacks of every case."""
    return {"save_callback": toy.save, "load_callback": toy.load, "state_callback": toy.state}


def build(name, folder, toy, **more):
    """The scheduler of a case, as it was built for its checkpoint."""
    settings = {**CASES[name], **callbacks_of(toy), "checkpoint_every": NEVER, **more}
    return R8Scheduler(settings.pop("num_samples"), checkpoint_dir=folder, **grouped(settings))


def go_on(r8, name, count):
    """The samples and rates of the next ``count`` batches, at most; they are reported."""
    seen = []
    while len(seen) < count and (ticket := r8.draw_if_any()) is not None:
        seen.append((ticket.indices.tolist(), ticket.lr))
        report(r8, name, ticket)
    return seen


def saved_model():
    """The model that every case has saved."""
    return ToyTask(16, seed=7)


def save(name, folder):
    """Bring a run to where it is worth saving, and save it."""
    r8 = build(name, folder, saved_model())
    if name == "mid_epoch":
        for epoch in range(3):
            go_on(r8, name, r8.steps_per_epoch)
            r8.log(accuracy=[0.5, 0.7, 0.6][epoch])
        go_on(r8, name, 5)
        r8.host.give_up(r8.draw(), on_purpose=True)
        _ = r8.draw(), r8.draw()
    else:
        go_on(r8, name, 200)
        ticket = r8.draw()
        r8.report(ticket, 1e6 * losses_of(ticket.indices, r8.global_step))
        assert r8.table.quarantined.tolist() == [BAD_SAMPLE]
        assert r8.global_step == 201
    r8.save_checkpoint()
    return r8.global_step


def write_case(folder, name):
    """A checkpoint, and beside it what comes next."""
    step = save(name, folder / name)
    if name not in NEXT_STEPS:
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder / name, Path(scratch) / name))
        r8 = build(name, copy, ToyTask(16), resume="auto")
        write_expected(folder / name, step, go_on(r8, name, NEXT_STEPS[name]), r8.table)


def write_expected(folder, step, seen, table):
    """What came next, and what was known of the samples after it."""
    np.savez_compressed(
        folder / "expected.npz",
        step=step,
        indices=np.array([index for batch, _ in seen for index in batch], np.int16),
        sizes=np.array([len(batch) for batch, _ in seen], np.int16),
        rates=np.array([lr for _, lr in seen]),
        **{field: getattr(table, field) for field in KNOWN},
    )


TORCH = {"batch_size": 8, "num_epochs": 12, "seed": 2}


def torch_training():
    """The adapter of a small model of torch, its model, and a loss for each sample that no processor changes."""
    import torch

    from learnit_r8.torch import attach

    torch.manual_seed(5)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.utils.data.TensorDataset(torch.ones(60, 2), torch.arange(60))
    return attach(model, optimizer, data, **grouped(TORCH)), model


def train_torch(adapter, model, count):
    """The samples and rates of the next ``count`` batches."""
    import torch

    seen = []
    for _ in adapter.epochs():
        for x, rows in adapter.loader():
            seen.append((rows.tolist(), adapter.optimizer.param_groups[0]["lr"]))
            losses = torch.from_numpy(losses_of(rows.numpy(), adapter.scheduler.global_step))
            adapter.step(adapter.loss(0 * model(x).squeeze(1) + losses))
            if len(seen) == count:
                return seen
    return seen


def write_torch(folder):
    """What ``adapter.state_dict()`` returns, as ``torch.save`` writes it, and what comes next."""
    import torch

    folder.mkdir(parents=True)
    adapter, model = torch_training()
    train_torch(adapter, model, 20)
    torch.save(adapter.state_dict(), folder / "state.pt")
    resumed, model = torch_training()
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    write_expected(folder, 20, train_torch(resumed, model, 40), resumed.scheduler.table)


def write_run(folder):
    """A run folder of a run in which much happens, and which ends."""
    clock, toy, faults = FakeClock(), ToyTask(160), FaultPlan(nan=[15], spike=[25, 26], spike_by=1e4)
    before, scratch = Path.cwd(), Path(tempfile.mkdtemp()).resolve()
    os.chdir(scratch)
    try:
        with mock.patch("platform.node", return_value="example"), R8Scheduler(
            160, batch_size=16, num_epochs=6, initial_lr=0.05, groups=toy.labels, name="saved",
            sample_ids=[f"{number}.png" for number in range(160)], monitor="loss", clock=clock.__call__,
            checkpoint_dir="kept", run_dir="run", state_callback=toy.state, load_callback=toy.load,
            save_callback=toy.save,
        ) as r8:  # fmt: skip
            for _ in r8.epoch_iterator():
                for indices, lr in r8.batch_iterator():
                    clock.advance(0.5)
                    losses = faults.loss(r8.global_step, toy.losses(indices))
                    if r8.update_with_loss(losses):
                        toy.step(lr)
                r8.log(loss=toy.loss())
    finally:
        os.chdir(before)
    shutil.copytree(scratch / "run", folder)
    shutil.rmtree(scratch)
    about = json.loads((folder / "run.json").read_text())
    unknown = {"pid": 1, "host": "example", "boot_id": "", "pid_namespace": "", "process_started": None}
    about["sessions"] = [{**session, **unknown} for session in about["sessions"]]
    about["platform"] = "Linux"
    (folder / "run.json").write_text(json.dumps(about, indent=1))
    lines = (folder / "events.jsonl").read_text().replace(f"{scratch}{os.sep}", "")
    lines = lines.replace(f'"process": "{os.getpid()}"', '"process": "1"')
    (folder / "events.jsonl").write_text(lines)


def main(folder):
    """Write everything; the folder must not be there yet."""
    folder.mkdir(parents=True)
    for name in CASES:
        write_case(folder, name)
    write_torch(folder / "torch")
    write_run(folder / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
