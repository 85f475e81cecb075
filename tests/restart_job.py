"""What torchrun starts in the tests and the benchmark of restarts: a training whose ranks kill themselves.

    torchrun ... tests/restart_job.py FOLDER PLAN

PLAN is JSON: ``kills``, for each launch the rank, the forward pass and whether it damages its newest backup in shared
memory first; and ``settings`` of `attach`.
"""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # Not this folder, in which "torch" would be that of the tests.
    sys.path[0] = str(ROOT)

FLAG = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Where it is 1, torchrun gives the ranks a new store at each launch; else they read the addresses of those before."""


def main(folder, plan):
    import torch
    import torch.distributed as dist

    from learnit_r8.events import CheckpointLoaded
    from tests.shard_jobs import sharded_run

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, launch = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    (folder / f"launched.{launch}.{rank}").touch()
    if launch < len(plan["kills"]) and plan["kills"][launch][0] == rank:
        _plan_death(torch.nn.Sequential, *plan["kills"][launch][1:], own=f"rank{rank}", folder=folder)

    def note(event):
        if isinstance(event, CheckpointLoaded):
            (folder / f"loaded.{launch}.{rank}").write_text(Path(event.path).name)

    options = {"every": 4, "checkpoint_dir": str(folder / "checkpoints"), "resume": "auto", "listeners": [note]}
    found = sharded_run(rank, plan.get("kind", "ddp"), "mixed", {**options, **plan["settings"]})
    ended = {name: found[name] for name in ("weights", "table", "numbers")}
    (folder / f"ended.{rank}").write_text(json.dumps(ended))
    dist.destroy_process_group()


def _plan_death(model, number, damages, *, own, folder):
    """Kill this process in the given forward pass."""
    original, calls = model.__call__, [0]

    def dying(*args, **keywords):
        calls[0] += 1
        if calls[0] == number:
            (folder / f"killed.{time.time()}").touch()
            if damages:
                newest = max((folder / "shm").glob(f"learnit_r8-*/*/{own}/gen_*"))
                newest.write_bytes(newest.read_bytes()[:-50])
                (folder / "damaged").write_text(newest.name)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keywords)

    model.__call__ = dying


def torchrun(folder, kills=(), *, size=2, kind="ddp", limit=240.0, **settings):
    """Train under ``torchrun --max-restarts``, with backups in shared memory in a folder of their own.

    Args:
        folder: Made for it.
        kills: For each launch the rank that kills itself, in which forward pass, and whether it damages its newest
            backup in shared memory first.
        size: Ranks.
        kind: As for `wrapped`.
        limit: Seconds after which it is ended.
        **settings: Of `attach`.

    Returns:
        What each rank ended with; None for one that did not end.
    """
    folder.mkdir(parents=True)
    (folder / "shm").mkdir()
    plan = json.dumps({"kills": list(kills), "kind": kind, "settings": settings})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}",
               f"--max-restarts={len(kills)}", "--monitor-interval=0.2", __file__, str(folder), plan]  # fmt: skip
    environment = {FLAG: "1", **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "R8_BACKUPS": str(folder / "shm")}  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as run:
        try:
            run.wait(limit)
        except subprocess.TimeoutExpired:
            run.terminate()
    files = [folder / f"ended.{rank}" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def loaded(folder, launch, size=2):
    """The name of the file that each rank continued from; "" where there was none."""
    files = [folder / f"loaded.{launch}.{rank}" for rank in range(size)]
    return [file.read_text() if file.exists() else "" for file in files]


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
