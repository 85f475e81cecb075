"""`learnit_r8.transformers` on two processes, each with its part of every batch."""

import pytest

from tests.rank_common import run_on_two_ranks

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from tests.transformers.common import Model, digest, train
folder, rank, world = sys.argv[1], os.environ["RANK"], int(os.environ["WORLD_SIZE"])
options = {"per_device_train_batch_size": 32 // world, "ddp_backend": "gloo"}
whole = train(folder, save_strategy="steps", save_steps=5, **options)
resumed = train(folder, resume=f"{folder}/checkpoint-20", **options)
healed = train(f"{folder}/healed", model=Model(bad=[7] if rank == "1" else []), **options)
r8 = healed.r8.scheduler
uses = sorted(set(whole.r8.scheduler.table.usage_count.tolist()))
done = {
    "whole": digest(whole), "resumed": digest(resumed), "uses": uses,
    "healed": (digest(healed), r8.sentry.num_refused, r8.global_step),
}
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


@pytest.mark.program
def test_two_processes(tmp_path):
    """Both save without waiting for each other, share every batch, resume exactly, and heal a NaN of one rank."""
    first, second = run_on_two_ranks(PROGRAM, tmp_path)

    assert first == second
    assert first["resumed"] == first["whole"]
    assert first["uses"] == [3]
    assert first["healed"][1:] == [1, 39]
