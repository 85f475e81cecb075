"""What the processes of the tests and the benchmark of sharded models do."""

import copy
import hashlib
import io
import itertools
import random
import zlib

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import Together, attach
from learnit_r8.torch.state import ModelState
from tests.rank_jobs import table_digest

EXACT = {"scheduler_mode": "constant", "warmup_proportion": 0.0}


class Heads(torch.nn.Module):
    """Two linear heads: with an absolute error their gradients are whole numbers, so that no sum is rounded."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 3), torch.nn.Linear(5, 2)
        with torch.no_grad():
            for number, each in enumerate(self.parameters()):
                each.copy_((torch.arange(each.numel()).reshape(each.shape) % (3 + number) - 1) / 4)

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x)], dim=1)


class Normed(torch.nn.Module):
    """Parameters of its own, which come first, between those of its parts, and buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(9, 13), torch.nn.BatchNorm1d(13), torch.nn.Linear(13, 3)
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.last(self.norm(self.first(x))) * self.scale


class ForgetfulHeads(Heads):
    """With dropout: sums are still exact, whatever their order."""

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


def exact_data(count=512):
    """Whole numbers, and halves for targets."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-2, 3, (count, 5), generator=generator).float()
    return TensorDataset(x, torch.randint(-8, 9, (count, 5), generator=generator) / 2)


def exact_losses(model, x, y):
    return (model(x) - y).abs().sum(1)


def mixed():
    """A model with dropout, and dimensions that no number of ranks divides."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(9, 13), torch.nn.Dropout(0.3), torch.nn.GELU(), torch.nn.Linear(13, 3))


def mixed_data(count=512):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(count, 9, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def mixed_losses(model, x, y):
    return cross_entropy(model(x), y, reduction="none")


TASKS = {
    "exact": (Heads, exact_data, exact_losses),
    "exact dropout": (ForgetfulHeads, exact_data, exact_losses),
    "mixed": (mixed, mixed_data, mixed_losses),
}


def wrapped(model, kind):
    """The model as it is trained: "plain", under "ddp", or sharded, "fsdp2"."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def whole_weights(model):
    """Every weight, whole, by name."""
    state = (model.module if isinstance(model, DistributedDataParallel) else model).state_dict()
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def digest_of(values):
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def optimizer_of(model, task):
    if task != "mixed":
        return torch.optim.SGD(model.parameters(), lr=2**-7, momentum=0.5)
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def sharded_run(rank, kind, task="mixed", options=None):
    """Train, with one NaN on the last rank, to the end or to a step whose checkpoint is saved.

    Args:
        rank: Number of this process.
        kind: As for `wrapped`.
        task: One of TASKS.
        options: ``nan_at``, ``stop_at``, ``every`` of `Together` or a ``sharing``, and settings of `attach`.

    Returns:
        Digests of weights and table, one of each batch; refused losses; steps; and random numbers that come next.
    """
    settings = {"num_epochs": 3, **(options or {})}
    nan_at, stop_at, every = (settings.pop(name, None) for name in ("nan_at", "stop_at", "every"))
    make, data, losses_of = TASKS[task]
    model = wrapped(make(), kind)
    torch.manual_seed(rank)
    np.random.seed(rank)
    random.seed(rank)
    optimizer, many = optimizer_of(model, task), kind != "plain" and torch.distributed.get_world_size() > 1
    sharing = settings.pop("sharing", None) or (Together(every=every) if many else None)
    exact = {"max_grad_norm": 0.5} if task == "mixed" else EXACT
    adapter = attach(model, optimizer, data(), batch_size=32, sharing=sharing, **grouped(dict(**exact, **settings)))
    last, batches = (torch.distributed.get_world_size() if many else 1) - 1, []
    counter = itertools.count(adapter.scheduler.global_step)
    for xs, ys in _batches(adapter):
        step = next(counter)
        batches.append(zlib.crc32(adapter.in_hand.indices.tobytes()))
        losses = losses_of(model, xs, ys)
        if nan_at is not None and step == nan_at and rank == last:
            # Of one sample, so that one process that trains on all of them meets the same.
            losses = losses * torch.where(torch.arange(len(losses)) == len(losses) - 1, torch.nan, 1.0)
        adapter.step(adapter.loss(losses))
        if stop_at is not None and step + 1 == stop_at:
            adapter.flush()
            adapter.scheduler.save_checkpoint()
            break
    adapter.close()
    r8 = adapter.scheduler
    weights = digest_of(value.numpy() for value in whole_weights(model).values())
    numbers = torch.rand(1).item(), float(np.random.random()), random.random()
    refused = r8.sentry.num_refused
    return {"weights": weights, "table": table_digest(r8), "batches": batches, "refused": refused,
            "steps": r8.global_step, "numbers": numbers}  # fmt: skip


def checkpointed_run(rank, kind, begin_at, stop_at, folder):
    """Train on the exact task from one checkpoint of torch.distributed.checkpoint to the next.

    Args:
        rank: Number of this process.
        kind: As for `wrapped`.
        begin_at: Step of the checkpoint to go on from; 0 for none.
        stop_at: Step after which a checkpoint is written, and the training ends; None for its end.
        folder: Of the checkpoints.

    Returns:
        As `sharded_run`: weights, table and batches.
    """
    make, data, losses_of = TASKS["exact"]
    model = wrapped(make(), kind)
    optimizer = optimizer_of(model, "exact")
    adapter = attach(model, optimizer, data(), batch_size=32, num_epochs=3, **grouped(EXACT))
    if begin_at:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "scheduler": b""}
        dcp.load(state, checkpoint_id=folder / str(begin_at))
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        adapter.lr_scheduler.load_state_dict(torch.load(io.BytesIO(state["scheduler"])))
    batches = []
    for xs, ys in _batches(adapter):
        batches.append(zlib.crc32(adapter.in_hand.indices.tobytes()))
        adapter.step(adapter.loss(losses_of(model, xs, ys)))
        if begin_at + len(batches) == stop_at:
            buffer = io.BytesIO()
            torch.save(adapter.lr_scheduler.state_dict(), buffer)
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "scheduler": buffer.getvalue()}
            dcp.save(state, checkpoint_id=folder / str(stop_at))
            break
    digest = digest_of(value.numpy() for value in whole_weights(model).values())
    return {"weights": digest, "table": table_digest(adapter.scheduler), "batches": batches}


def restored_after_forward(rank, kind):
    """Outputs before a step, after one, and after a backup was put back between forward and backward pass."""
    torch.manual_seed(rank)
    model = wrapped(Normed(), kind)
    x = torch.randn(8, 9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state = ModelState(model, optimizer)
    model(x).sum().backward()
    optimizer.step()
    backup = copy.deepcopy(state.read())
    outputs = [model(x)]
    outputs[0].square().sum().backward()
    optimizer.step()
    outputs.append(model(x))
    state.load(backup, from_ram=True)
    outputs.append(model(x))
    return [each.detach() for each in outputs]


def clipped_step(rank, kind):
    """How far one step of SGD at the rate 1 goes whose gradient is cut to 0.01."""
    torch.manual_seed(rank)
    model = wrapped(mixed(), kind)
    before = [value.clone() for value in whole_weights(model).values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    adapter = attach(model, optimizer, mixed_data(), batch_size=32, num_epochs=1, max_grad_norm=0.01, **grouped(EXACT))
    xs, ys = next(iter(adapter.loader()))
    adapter.step(adapter.loss(mixed_losses(model, xs, ys)))
    adapter.flush()
    steps = [new - old for new, old in zip(whole_weights(model).values(), before, strict=True)]
    return torch.cat([each.flatten() for each in steps]).norm().item()


def states(rank, kind):
    """What `state_dict` of the adapter holds of the model, before a step, after one, and after it was put back."""
    model = wrapped(Normed(), kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    adapter = attach(model, optimizer, mixed_data(64), batch_size=8, num_epochs=1)
    found = [copy.deepcopy(adapter.state_dict()["model"])]
    batches = iter(adapter.loader())
    for _ in range(2):
        xs, ys = next(batches)
        adapter.step(adapter.loss(mixed_losses(model, xs, ys)))
        found.append(copy.deepcopy(adapter.state_dict()))
    adapter.load_state_dict(found[1])
    return [found[0], found[1]["model"], adapter.state_dict()["model"]]


def _batches(adapter):
    for _ in adapter.epochs():
        yield from adapter.loader()


def refusals(rank):
    """What `attach` says of models whose shards it cannot handle."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    size = torch.distributed.get_world_size()
    cpu = torch.device("cpu")
    tensor_wise = init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "tensor"))
    parallel = parallelize_module(torch.nn.Linear(4, 4), tensor_wise["tensor"], ColwiseParallel())
    fully_shard(parallel, mesh=tensor_wise["data"])
    said = []
    flat = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=cpu)
    for model in (parallel, flat, torch.nn.Sequential(flat)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for data, options in ((mixed_data(64), {"batch_size": 8}), ([torch.ones(8, 4)], {})):
            try:
                attach(model, optimizer, data, num_epochs=1, **grouped(options))
            except ValueError as error:
                said.append(str(error))
    return said
