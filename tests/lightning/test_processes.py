"""`learnit_r8.lightning` on two processes, each with its part of every batch."""

import json

import pytest

from tests.programs import printed_by
from tests.rank_common import run_on_two_ranks

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from tests.lightning.common import Checkpoints, Digits, digest, fit
folder, rank = sys.argv[1], os.environ["RANK"]
options = {"devices": 2, "strategy": "ddp"}
module, r8, _ = fit(module=Digits(), more=[Checkpoints(folder, [4])], **options)
whole, uses = digest(module, r8), sorted(set(r8.table.usage_count.tolist()))
resumed = digest(*fit(module=Digits(), ckpt_path=f"{folder}/4.ckpt", **options)[:2])
module, r8, _ = fit(module=Digits(bad=[5] if rank == "1" else []), **options)
done = {"whole": whole, "resumed": resumed, "uses": uses, "healed": (digest(module, r8), r8.sentry.num_refused)}
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


@pytest.mark.program
def test_two_processes(tmp_path):
    """With use_distributed_sampler left on, both share every batch, resume exactly, and heal a NaN of one of them."""
    first, second = run_on_two_ranks(PROGRAM, tmp_path)

    assert first == second
    assert first["resumed"] == first["whole"]
    assert first["uses"] == [3]
    assert first["healed"][1] == 1


ELSEWHERE = """
import json, os, sys, torch, warnings
warnings.simplefilter("ignore")
from tests.lightning.common import DATA, Checkpoints, Digits, R8Loader, fit
folder, world, ckpt = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None
rank, seen = os.environ.get("LOCAL_RANK", "0"), []
data = torch.utils.data.TensorDataset(*DATA.tensors, torch.arange(len(DATA)))

class Numbered(Digits):
    def training_step(self, batch, index):
        seen.append(batch[2].tolist())
        return super().training_step(batch[:2], index)

options = {"devices": world, "strategy": "ddp"} if world > 1 else {}
more = [Checkpoints(folder, [int(each) for each in sys.argv[4].split()])]
loader = R8Loader(data, batch_size=16, policy="shuffle")
module, r8, _ = fit(module=Numbered(), loader=loader, ckpt_path=ckpt, more=more, **options)
open(f"{folder}/seen-{world}-{rank}.json", "w").write(json.dumps(seen))
"""


def batches(folder, world, ckpt="", save=""):
    """The samples of each step, over all processes."""
    script = folder / "elsewhere.py"
    script.write_text(ELSEWHERE)
    printed_by(folder, script, folder, world, ckpt, save)
    parts = [json.loads((folder / f"seen-{world}-{rank}.json").read_text()) for rank in range(world)]
    return [sorted(set().union(*slices)) for slices in zip(*parts, strict=True)]


@pytest.mark.slow
def test_other_number_of_processes(tmp_path):
    """A training goes on with the very same batches on one process, then on four, with batch_size left as it was."""
    whole = batches(tmp_path, 2, save="10")
    alone = batches(tmp_path, 1, ckpt=str(tmp_path / "10.ckpt"), save="25")
    four = batches(tmp_path, 4, ckpt=str(tmp_path / "25.ckpt"))

    assert len(whole) == 39
    assert alone == whole[10:]
    assert four == whole[25:]


OWN_BATCHES = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from lightning.pytorch.callbacks import ModelCheckpoint
from learnit_r8.lightning import R8Callback
from tests.own_rank_jobs import digest
from tests.lightning.test_own_batches import Plain, built, train
folder, rank = sys.argv[1], os.environ["RANK"]

def run(with_r8=True, nan_at=None, keeps=False, **more):
    r8 = [R8Callback(backup_every=6)] if with_r8 else []
    kept = [ModelCheckpoint(folder, save_last=True)] if keeps else []
    module = built(Plain, nan_at=nan_at)
    train(module, callbacks=r8 + kept, devices=2, strategy="ddp", enable_checkpointing=keeps, **more)
    is_finite = all(bool(each.isfinite().all()) for each in module.parameters())
    return digest(module), is_finite, [each.scheduler.sentry.num_refused for each in r8]

run(max_epochs=2, keeps=True)
done = {"plain": run(False), "whole": run(), "resumed": run(ckpt_path=f"{folder}/last.ckpt")}
done["healed"] = run(nan_at=12 if rank == "1" else None)
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


@pytest.mark.program
def test_two_processes_with_a_loader_of_their_own(tmp_path):
    """To the bit what Lightning does alone, resumed from its checkpoint, and a NaN in the weights of one is healed."""
    first, second = run_on_two_ranks(OWN_BATCHES, tmp_path)

    assert first == second
    assert first["whole"][0] == first["resumed"][0] == first["plain"][0] != first["healed"][0]
    assert first["whole"][2] == [0]
    assert first["healed"][1]


TOO_HIGH = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import lightning, torch
from torch.nn.functional import mse_loss, one_hot
from torch.utils.data import DataLoader
from learnit_r8.lightning import R8Callback
from tests.lightning.common import DATA, QUIET
from tests.own_rank_jobs import digest
folder, rank = sys.argv[1], os.environ["RANK"]

class Convex(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.lr = torch.nn.Linear(64, 10), lr

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch, _):
        return mse_loss(self.net(batch[0]), one_hot(batch[1], 10).float())

def run(lr):
    module, r8 = Convex(lr), R8Callback(backup_every=20)
    trainer = lightning.Trainer(
        max_epochs=10, devices=2, strategy="ddp", callbacks=[r8], enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, DataLoader(DATA, batch_size=8, shuffle=True))
    return digest(module), module.training_step(DATA.tensors, 0).item()

open(f"{folder}/{rank}.json", "w").write(json.dumps([run(3.0), run(300.0)]))
# A thread of gloo that is left as Python ends may abort the process.
torch.distributed.destroy_process_group()
"""


@pytest.mark.program
def test_a_rate_that_is_too_high_from_the_start_is_lowered_on_two_processes(tmp_path):
    """At ten and a thousand times the rate that holds a convex model ends at .03 and less; untrained it is at .16."""
    first, second = run_on_two_ranks(TOO_HIGH, tmp_path)

    assert first == second
    assert all(end < 0.08 for _, end in first)
