"""What the ranks of `test_own_batches` run: a small model on a stream of each rank's own."""

import hashlib
import itertools
import os
import warnings
from unittest import mock

import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.nn.parallel import DistributedDataParallel

from learnit_r8 import Backups, OwnBatches, events
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from learnit_r8.torch.distributed import exchange
from tests.torch_common import Attention, NanGradient, X, Y


class Stream:
    """Batches of changing sizes, in an order and with noise from this rank's generators; endless without a length."""

    def __init__(self, rank, length):
        generator = torch.Generator().manual_seed(10 + rank)
        self.batches = [torch.randn(2 + place % 4, 3, generator=generator) for place in range(length or 8)]
        self.is_endless, self.seen = length is None, []

    def __iter__(self):
        order = torch.randperm(len(self.batches)).tolist()
        for place in itertools.cycle(order) if self.is_endless else order:
            self.seen.append(place)
            batch = self.batches[place]
            yield batch + 0.01 * torch.randn(batch.shape)


def begun(rank, length, dropout=0.0):
    """A model that is averaged over the ranks, its optimizer, and the stream of this one."""
    torch.manual_seed(0)
    noise = [torch.nn.Dropout(dropout)] if dropout else []
    layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), *noise, torch.nn.Linear(8, 1))
    model = DistributedDataParallel(layers)
    torch.manual_seed(1 + rank)
    return model, torch.optim.Adam(model.parameters(), lr=0.01), Stream(rank, length)


def loss_of(model, batch):
    return mse_loss(model(batch), batch.sum(1, keepdim=True))


def digest(model):
    return hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in model.parameters())).hexdigest()


def step_of(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_run(rank, lengths):
    """Train three epochs without R8, of as many batches as both ranks have; the weights."""
    model, optimizer, stream = begun(rank, lengths[rank])
    least = min(each for each in lengths if each)
    for _ in range(3):
        # As R8 asks for the next batch to find out that there is none.
        for number, batch in enumerate(stream):
            if number == least:
                break
            step_of(optimizer, loss_of(model, batch))
    return digest(model)


def own_run(rank, lengths, fault):
    """Train three epochs with R8."""
    model, optimizer, stream = begun(rank, lengths[rank])
    adapter = attach(model, optimizer, stream, num_epochs=3, handle_signals=False, backup_every=10)
    r8, hits, count = adapter.scheduler, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in adapter.epochs():
            for batch in adapter.batches():
                count.append(batch)
                loss = loss_of(model, batch)
                if fault and (rank or fault == "weights") and len(count) >= 35 and not hits:
                    hits.append(len(count))
                    loss = loss * (float("nan") if fault == "loss" else 1)
                    if fault in ("weights", "weights of one"):
                        next(model.parameters()).data[:] = float("nan")
                if adapter.report(loss):
                    step_of(optimizer, loss)
    adapter.close()
    return {
        "weights": digest(model), "steps": r8.global_step, "samples": r8.host.source.num_samples,
        "refused": r8.sentry.num_refused,
        "is_finite": all(bool(each.isfinite().all()) for each in model.parameters()),
    }  # fmt: skip


def known_run(rank, length):
    """Train an epoch on batches that are read in turn; the steps that R8 knows of after each."""
    model, optimizer, stream = begun(rank, length)
    adapter, known = attach(model, optimizer, stream.batches, num_epochs=1, handle_signals=False), []
    with mock.patch.object(exchange, "EXCHANGE_SECONDS", 1e6):
        for batch in adapter.batches():
            loss = loss_of(model, batch)
            if adapter.report(loss):
                step_of(optimizer, loss)
            known.append(adapter.scheduler.global_step)
        adapter.close()
    return known


def recurring_run(rank, lengths, bad, is_hidden=False):
    """Train with one batch of rank 1 that is multiplied by ``bad``; batches refused, restores, and the weights.

    Where it is hidden, its gradient is NaN instead, and its loss is finite.
    """
    model, optimizer, stream = begun(rank, lengths[rank])
    if rank and not is_hidden:
        stream.batches[10] = stream.batches[10] * bad
    happened = []
    adapter = attach(model, optimizer, stream.batches, num_epochs=4, handle_signals=False, listeners=[happened.append])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in adapter.epochs():
            for batch in adapter.batches():
                loss = loss_of(model, batch)
                if rank and is_hidden and batch is stream.batches[10]:
                    loss = NanGradient.apply(loss)
                if adapter.report(loss):
                    step_of(optimizer, loss)
        adapter.close()
    names = [type(each).__name__ for each in happened]
    return names.count("BatchRefused"), names.count("RolledBack"), digest(model)


def dropout_run(rank):
    """Train with dropout, once on NaN; the losses of the probes and their records, and the restores."""
    model, optimizer, stream = begun(rank, 30, dropout=0.5)
    happened, count = [], 0
    adapter = attach(model, optimizer, stream, num_epochs=2, handle_signals=False, listeners=[happened.append])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in adapter.epochs():
            for batch in adapter.batches():
                count += 1
                loss = loss_of(model, batch * (float("nan") if count == 45 else 1))
                if adapter.report(loss):
                    step_of(optimizer, loss)
        adapter.close()
    probes = [(each.loss, each.record) for each in happened if isinstance(each, events.Probed)]
    return probes, [each.to_step for each in happened if isinstance(each, events.RolledBack)]


def named_run(rank, where):
    """Train with ids of samples, given to `batches` or with the loss; what is said of them, and the samples known."""
    model, optimizer, stream = begun(rank, 6)
    adapter = attach(model, optimizer, stream, num_steps=4, handle_signals=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch in adapter.batches(ids=(lambda batch: range(len(batch))) if where == "batches" else None):
            losses = (model(batch) - batch.sum(1, keepdim=True)).square()
            if adapter.report(losses, ids=None if where == "batches" else range(len(batch))):
                step_of(optimizer, losses.mean())
        adapter.close()
    return [str(each.message) for each in said if "several processes" in str(each.message)], len(
        adapter.scheduler.table
    )


def token_run(rank, most):
    """Train until all ranks together have seen so many tokens; steps and tokens."""
    model, optimizer, stream = begun(rank, None)
    adapter = attach(model, optimizer, stream, batch_size=OwnBatches(num_tokens=most), handle_signals=False)
    for batch in adapter.batches(tokens=lambda batch: len(batch) * (rank + 1)):
        loss = loss_of(model, batch)
        if adapter.report(loss):
            step_of(optimizer, loss)
    adapter.close()
    return adapter.scheduler.global_step, adapter.scheduler.pace.tokens


def refused_resume(rank, folder, fault):
    """Build what would resume, where only rank 0 finds that it cannot; the error."""
    model, optimizer, stream = begun(rank, 8)
    listdir = os.listdir

    def refuse(path="."):
        if str(path) == str(folder):
            raise OSError(5, "Input/output error")
        return listdir(path)

    if fault == "unreadable" and not rank:
        os.listdir = refuse
    try:
        attach(
            model, optimizer, stream, num_epochs=4, handle_signals=False, checkpoint_dir=folder, resume="auto",
            backup_every=Backups(backup_dir=False),
        )  # fmt: skip
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        os.listdir = listdir
    return "", ""


def resumed_run(rank, folder, until):
    """Train with checkpoints; what was seen from the first batch of this process on, and the weights."""
    model, optimizer, stream = begun(rank, 8)
    adapter = attach(
        model, optimizer, stream, num_epochs=4, handle_signals=False, checkpoint_dir=folder, checkpoint_every=5,
        resume="auto", backup_every=Backups(backup_dir=False),
    )  # fmt: skip
    seen = []
    for _ in adapter.epochs():
        for batch in adapter.batches():
            seen.append(batch.tolist())
            loss = loss_of(model, batch)
            if adapter.report(loss):
                step_of(optimizer, loss)
            if len(seen) == until:
                return None
    adapter.close()
    return {"weights": digest(model), "seen": seen}


def placed_run(rank, kind, folder=None):
    """Train with a sample that holds NaN, which is in the part of either rank; what is told, and the weights."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    optimizer, heard = torch.optim.Adam(model.parameters(), lr=0.01), record_events()

    def run_batch(batch):
        loss = loss_of(model, batch[0])
        if kind == "asks others":
            torch.distributed.all_reduce(loss.detach().clone())
        return loss

    inputs = torch.randn(64, 3)
    inputs[[5, 41], 1] = 3e4 if kind == "far off" else float("nan")
    guard = {} if kind == "far off" else {"guard": "finite"}
    common = {"num_steps": 40, "run_batch": run_batch, "listeners": [heard], "handle_signals": False, "backup_every": 4}
    if folder is not None:
        common |= {"run_dir": folder, "record": "all"}
    data = torch.utils.data.TensorDataset(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = attach(model, optimizer, data, batch_size=8, **grouped(dict(**guard, **common)))
        for _ in adapter.epochs():
            for batch in adapter.loader():
                losses = (model(batch[0]) - batch[0].sum(1, keepdim=True)).pow(2).mean(1)
                adapter.step(adapter.loss(losses))
        adapter.close()
    told = [(each.fault, each.samples, each.is_certain, each.text) for each in heard.of(events.CauseFound)]
    return {"told": told, "weights": digest(model), "steps": adapter.scheduler.global_step}


def accelerated_run(rank, with_r8, faults, folder=None, until=None):
    """Train three epochs over a loader that accelerate has prepared, which gives each rank its part; what it ends with.

    Before each batch in ``faults`` of this process a NaN gets into the weights of both ranks; ``until`` so many batches
    the process is gone, and goes on from ``folder``.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for each in (AcceleratorState, GradientState, PartialState):
        each._reset_state()
    torch.manual_seed(0)
    x, model = torch.randn(101, 3), torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerator = Accelerator(cpu=True)
        loader = torch.utils.data.DataLoader(x, 4, shuffle=True)
        parts = (model, torch.optim.Adam(model.parameters(), lr=0.01), loader)
        model, optimizer, loader = accelerator.prepare(*parts)
        first, number, heard = float(loss_of(model, x)), 0, record_events()
        kept = {"checkpoint_dir": folder, "checkpoint_every": 5, "resume": "auto", "backup_dir": False}
        given = {"num_epochs": 3, "handle_signals": False, "listeners": [heard], **(kept if folder else {})}
        adapter = attach(model, optimizer, loader, **grouped(given)) if with_r8 else None
        begun = 0 if adapter is None else adapter.scheduler.global_step
        for _ in range(3) if adapter is None else adapter.epochs():
            for batch in loader if adapter is None else adapter.batches():
                number += 1
                if number == until:
                    return None
                if number in faults:
                    next(model.parameters()).data[:] = float("nan")
                loss = loss_of(model, batch)
                if adapter is None or adapter.report(loss):
                    optimizer.zero_grad()
                    accelerator.backward(loss)
                    optimizer.step()
        if adapter is not None:
            adapter.close()
    return {
        "weights": digest(model), "generator": torch.get_rng_state().sum().item(), "size": accelerator.num_processes,
        "steps": None if adapter is None else adapter.scheduler.global_step,
        "loss": float(loss_of(model, x)) / first, "backups": [each.step for each in heard.of(events.BackupTaken)],
        "begun": begun,
    }  # fmt: skip


def flipped_run(rank, flip, again, buggy=()):
    """Train with ``run_batch``; at a step ``flip`` of rank 1 a number of the gradient, or of the loss, turns infinite.

    Args:
        rank: This process.
        flip: "gradient", "loss" or None.
        again: Times that it does.
        buggy: Ranks on which ``run_batch`` raises; then no buffers are exchanged, for which the others would wait.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    parts = [] if buggy else [torch.nn.BatchNorm1d(8)]
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), *parts, torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    model = DistributedDataParallel(model)
    torch.manual_seed(1 + rank)
    optimizer, stream, left = torch.optim.Adam(model.parameters(), lr=0.01), Stream(rank, 20), 0

    def strike(values):
        nonlocal left
        left -= 1
        return values * float("inf") if left >= 0 and rank == 1 else values

    def run(batch):
        if rank in buggy:
            raise ValueError("no such batch")
        loss = loss_of(model, batch)
        return strike(loss) if flip == "loss" else loss

    if flip == "gradient":
        next(model.parameters()).register_hook(strike)
    said = []
    with attach(model, optimizer, stream, num_epochs=2, run_batch=run, guard="finite") as adapter:
        for step, batch in enumerate(adapter.batches()):
            left = again if step == 11 else 0
            loss = loss_of(model, batch)
            try:
                adapter.step(strike(loss) if flip == "loss" else loss)
            except RuntimeError as error:
                said.append(str(error))
                break
    found, r8 = adapter.scheduler.controller.state_dict()["incidents"], adapter.scheduler
    return digest(model), found["num_transient"], r8.sentry.num_refused, found["num_restored"], said


def _own_batches_run(rank, model, optimizer, loss_of_batch, *, takes_steps=True, steps=320):
    """Train on batches of one's own; the adapter, and how often and why the rate was lowered."""
    warnings.simplefilter("ignore")
    dice, heard = torch.Generator().manual_seed(10 + rank), record_events()
    stream = [(X[each], Y[each]) for each in torch.randint(len(X), (steps, 8), generator=dice)]
    with attach(model, optimizer, stream, num_steps=steps, listeners=[heard], backup_every=20) as adapter:
        for x, y in adapter.batches():
            loss = loss_of_batch(model(x), y)
            if takes_steps:
                adapter.step(loss)
            else:
                optimizer.zero_grad()
                loss.backward()
                adapter.report(loss)
                optimizer.step()
    return adapter, [(event.step, event.reason) for event in heard.of(events.LrCapped)]


def exploding_run(rank):
    """Train at a rate at which losses explode, on whatever processor; what was done.

    Args:
        rank: This process.
    """
    model = DistributedDataParallel(Attention())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    # The norms are learned anew from each restore on.
    adapter, reasons = _own_batches_run(rank, model, optimizer, cross_entropy, steps=400)
    controller = adapter.scheduler.controller
    return digest(model), reasons, controller.norms.state_dict(), controller.limit.state_dict()


def _squared_error(found, labels):
    return mse_loss(found, one_hot(labels, 10).float())


def too_high_run(rank, lr, takes_steps):
    """Train a convex model at a rate that is too high; its weights, its loss at the end, and how often it was lowered.

    Args:
        rank: This process.
        lr: The rate.
        takes_steps: Whether R8 takes the steps of the optimizer.
    """
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    _, reasons = _own_batches_run(rank, model, optimizer, _squared_error, takes_steps=takes_steps)
    return digest(model), _squared_error(model(X), Y).item(), len(reasons)
