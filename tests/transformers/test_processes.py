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
    "healed": (digest(healed), r8.sentry.num_refused, r8.global_step + r8.pace.left_out),
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


OWN_BATCHES = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import Trainer
from learnit_r8.torch.distributed import exchange
from tests.own_rank_jobs import digest
from tests.transformers.common import Digits, Model, R8Trainer, arguments
folder, rank = sys.argv[1], os.environ["RANK"]

class Hurt(Model):
    nan_at = num_steps = 0

    def forward(self, images, labels):
        self.num_steps += self.training
        if self.num_steps == self.nan_at:
            next(self.parameters()).data.view(-1)[0] = float("nan")
        return super().forward(images, labels)

def run(with_r8=True, nan_at=None, resume=None, **more):
    torch.manual_seed(0)
    model = Hurt()
    model.nan_at = nan_at
    given = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "ddp_backend": "gloo", **more}
    parts = {"model": model, "args": arguments(folder, **given), "train_dataset": Digits()}
    trainer = R8Trainer(**parts, r8={"batches": False, "backup_every": 6}) if with_r8 else Trainer(**parts)
    trainer.train(resume_from_checkpoint=resume)
    is_finite = all(bool(each.isfinite().all()) for each in model.parameters())
    return digest(model), is_finite, trainer.r8.scheduler.sentry.num_refused if with_r8 else 0

done = {"plain": run(False), "whole": run(save_strategy="steps", save_steps=9)}
done["resumed"] = run(resume=f"{folder}/checkpoint-9")
done["healed"] = run(nan_at=21 if rank == "1" else None)

class Bad(Digits):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "images": sample["images"] * float("nan")} if index == 7 else sample

# As where steps are quick.
exchange.EXCHANGE_SECONDS = 1e6
seen = []
settings = {"batches": False, "listeners": [seen.append]}
torch.manual_seed(0)
args = arguments(folder, per_device_train_batch_size=16, ddp_backend="gloo")
trainer = R8Trainer(model=Model(), args=args, train_dataset=Bad(), r8=settings)
trainer.train()
names = [type(each).__name__ for each in seen]
done["bad sample"] = [names.count(name) for name in ("StepDone", "BatchRefused", "RolledBack")], trainer.state.max_steps
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


@pytest.mark.program
def test_two_processes_with_batches_of_the_trainers_own(tmp_path):
    """To the bit what the Trainer does alone, resumed from its checkpoint; a NaN in the weights of one is healed, and a
    bad sample costs little more than its batches."""
    first, second = run_on_two_ranks(OWN_BATCHES, tmp_path)

    assert first == second
    assert first["whole"][0] == first["resumed"][0] == first["plain"][0] != first["healed"][0]
    assert first["whole"][2] == 0
    assert first["healed"][1]
    (num_learned, num_refused, num_restored), num_steps = first["bad sample"]
    assert (num_refused, num_restored) == (3, 1)
    # At the first visit up to as many as before it are undone; tests of the weights take no step of the Trainer's.
    assert num_steps - num_learned <= 3
