"""What the processes of the tests of several ranks do."""

import hashlib
import itertools
import os
import random
import signal
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from learnit_r8 import Backups, Monitor, R8Scheduler, RunDir, events
from learnit_r8.engine.settings import grouped
from learnit_r8.state.tree import clone
from learnit_r8.torch import Ranks, RanksDiffer, SharedRun, Together, attach
from tests.digits import load_digits
from tests.trial_common import begin_trial


def gathered(rank):
    """Messages of three numbers, from everyone."""
    return Ranks().gather(np.array([rank, 0.1, np.nan])).tolist()


def named(rank, text):
    """What rank 0 says."""
    return Ranks().of_first(text if rank == 0 else "something else")


def table_digest(r8):
    """Of everything in the table."""
    digest = hashlib.sha256()
    for value in r8.table.state_dict().values():
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def toy_run(rank, num_steps, every_bad):
    """A run on made-up losses, with a NaN on a random rank every so many steps: table, refusals, steps."""
    # By chance the same sample may be the bad one twice.
    warnings.filterwarnings("ignore", "the loss of sample")
    ranks = Ranks()
    model = {"w": np.zeros(3)}
    r8 = R8Scheduler(
        5000,
        batch_size=32,
        num_steps=num_steps,
        seed=1,
        state_callback=lambda: model,
        load_callback=model.update,
        backup_every=64,
    )
    shared = SharedRun(r8, ranks)
    # The same on all ranks.
    culprits = np.random.default_rng(7).integers(ranks.size, size=num_steps)
    for _ in r8.epoch_iterator():
        for share in shared:
            step = share.ticket.step
            losses = 1.0 + (share.indices * 7919 % 101) / 50 + 1 / (1 + step)
            if step % every_bad == every_bad - 1 and culprits[step] == rank:
                losses[0] = np.nan
            shared.report(share.ticket, losses)
            if rank == 0 and step % 37 == 0:
                # Looking at a table is each rank's own affair.
                assert len(r8.table.loss) == 5000
    r8.close()
    return table_digest(r8), r8.sentry.num_refused, r8.global_step


class Digits:
    """A small model of the digits under DDP, its optimizer and its data."""

    def __init__(self):
        images, digits = load_digits()
        self.x, self.y = torch.from_numpy((images / 16).astype(np.float32)), torch.from_numpy(digits)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        self.model = DistributedDataParallel(net)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def losses(self, indices):
        index = torch.from_numpy(indices)
        return torch.nn.functional.cross_entropy(self.model(self.x[index]), self.y[index], reduction="none")

    def step(self, losses, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()

    def attach(self, count=None, **settings):
        """An adapter of the first so many of them."""
        data = torch.utils.data.TensorDataset(self.x[:count], self.y[:count])
        return attach(self.model, self.optimizer, data, **grouped({"batch_size": 64, **settings}))

    def batches(self, adapter, workers=0):
        """The number and the losses of each batch of a run, which the caller steps."""
        numbers = itertools.count()
        for _ in adapter.epochs():
            for xs, ys in adapter.loader(num_workers=workers):
                yield next(numbers), torch.nn.functional.cross_entropy(self.model(xs), ys, reduction="none")

    def accuracy(self):
        with torch.no_grad():
            return (self.model.module(self.x).argmax(1) == self.y).float().mean().item()


def parameter_digest(model):
    """Of all weights."""
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def attached_run(rank, bad_rank, bad_step, settings, workers):
    """Train on the digits through the adapter: table, parameters, refusals, steps, uses, accuracy.

    Each rank has as many workers, or those of its place in a list.
    """
    task = Digits()
    adapter = task.attach(**settings)
    for step, losses in task.batches(adapter, workers if isinstance(workers, int) else workers[rank]):
        adapter.step(adapter.loss(losses * (float("nan") if (rank, step) == (bad_rank, bad_step) else 1)))
    adapter.close()
    r8 = adapter.scheduler
    uses = sorted(set(r8.table.usage_count.tolist()))
    return table_digest(r8), parameter_digest(task.model), r8.sentry.num_refused, r8.global_step, uses, task.accuracy()


def reloaded_run(rank, at, folder):
    """Save in one step and load in another while losses are under way: table, parameters, steps.

    With a folder it is a checkpoint that is saved and loaded, and the loop goes on.
    """
    task = Digits()
    settings = {"checkpoint_dir": folder, "checkpoint_every": 10**6} if folder else {}
    adapter = task.attach(num_epochs=6, sharing=Together(every=4), **settings)
    saved = None
    for _ in adapter.epochs():
        for xs, ys in adapter.loader():
            losses = torch.nn.functional.cross_entropy(task.model(xs), ys, reduction="none")
            adapter.step(adapter.loss(losses))
            steps = adapter.scheduler.global_step + adapter._losses.num_on_their_way
            if saved is None and steps == 33:
                saved = adapter.scheduler.save_checkpoint().path if folder else clone(adapter.state_dict())
            elif saved is not None and steps == at:
                at = -1
                if folder:
                    adapter.scheduler.load_checkpoint()
                else:
                    adapter.load_state_dict(saved)
                    break
    adapter.close()
    return table_digest(adapter.scheduler), parameter_digest(task.model), adapter.scheduler.global_step


def made_otherwise(rank):
    """What is said of attach() with another accumulate on each rank, and with a Together that is in use."""
    said = []
    data = torch.utils.data.TensorDataset(torch.randn(64, 2))

    def made(**settings):
        model = torch.nn.Linear(2, 1)
        return attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), data, batch_size=8, num_epochs=1, **grouped(settings)
        )

    sharing = Together()
    made(sharing=sharing)
    for settings in ({"accumulate": 1 + rank}, {"sharing": sharing}):
        try:
            made(**settings)
        except (RanksDiffer, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def drifting_run(rank, num_steps):
    """Train a model whose gradients nobody averages: what was warned of."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    x = torch.randn(640, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapter = attach(model, optimizer, torch.utils.data.TensorDataset(x), batch_size=8, num_steps=num_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in adapter.epochs():
            for (xs,) in adapter.loader():
                adapter.step(adapter.loss((model(xs)[:, 0] - xs.sum(1)) ** 2))
        adapter.close()
    return [str(warning.message) for warning in caught]


def settings_made(rank):
    """What the scheduler of each rank is made with."""
    shown = {"run_dir": RunDir("runs", record="batch"), "monitor": Monitor("loss", mode="min")}
    return Together().settings({"use_curses": True, **shown, "seed": 3})


def backups_without_rank(rank, folder):
    """Whether backups outlive a process that was started without RANK; or why that is refused."""
    os.environ.pop("RANK", None)
    data, found = torch.utils.data.TensorDataset(torch.randn(64, 4)), []
    for number, backup_dir in enumerate((None, False, folder)):
        model = torch.nn.Linear(4, 1)
        try:
            adapter = attach(
                model, torch.optim.SGD(model.parameters(), lr=0.1), data, batch_size=8, num_epochs=1,
                checkpoint_dir=f"{folder}/{number}", backup_every=Backups(5, backup_dir=backup_dir),
            )  # fmt: skip
            found.append(adapter.scheduler.host.persistence.generations is not None)
        except ValueError as error:
            found.append(str(error))
    return found


def resumed_numbers(rank, folder):
    """Random numbers that follow on a checkpoint, as it is saved and each time it is loaded, and its parameters."""
    task = Digits()
    adapter = task.attach(num_epochs=2, checkpoint_dir=folder)
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(rank)
    next(adapter.epochs())
    for xs, ys in adapter.loader():
        adapter.step(adapter.loss(torch.nn.functional.cross_entropy(task.model(xs), ys, reduction="none")))
    adapter.scheduler.save_checkpoint()
    numbers = []
    for is_loaded in (False, True, True):
        if is_loaded:
            adapter.scheduler.load_checkpoint()
        numbers.append((torch.rand(1).item(), np.random.random(), random.random()))
    adapter.close()
    return numbers, parameter_digest(task.model)


def begun_run(rank, folder, until):
    """A run on made-up losses that is left at a step, with a checkpoint of it."""
    r8 = R8Scheduler(640, batch_size=8, num_epochs=3, checkpoint_dir=folder)
    shared = SharedRun(r8)
    for _ in r8.epoch_iterator():
        for share in shared:
            shared.report(share.ticket, 1.0 + share.indices / 640)
            if share.ticket.step == until:
                r8.save_checkpoint()
                return r8.close()
    return None


def program(rank, code):
    """Run a program that begins and ends the process group itself; the accuracy it found, if it found one."""
    begin, end = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group = dist.destroy_process_group = lambda *_: None
    names = {"__name__": "program"}
    try:
        exec(compile(code, "program", "exec"), names)
    finally:
        dist.init_process_group, dist.destroy_process_group = begin, end
    return names.get("accuracy")


def stopped_run(rank, folder):
    """A run that is asked to stop by a signal to rank 1: where it ended."""
    r8 = R8Scheduler(640, batch_size=8, num_epochs=50, checkpoint_dir=folder)
    shared = SharedRun(r8)
    before = signal.signal(signal.SIGUSR1, lambda *_: r8.requests.stop("signal"))
    try:
        for _ in r8.epoch_iterator():
            for share in shared:
                if rank == 1 and share.ticket.step == 100:
                    os.kill(os.getpid(), signal.SIGUSR1)
                shared.report(share.ticket, 1.0 + share.indices / 640)
        r8.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    return r8.global_step, r8.pace.is_stopped


def preempted_run(rank, folder, at):
    """A run whose rank 1 gets SIGTERM: how it ended, and where."""
    task, how = Digits(), "stopped"
    adapter = task.attach(num_epochs=50, checkpoint_dir=folder)
    try:
        for step, losses in task.batches(adapter):
            if rank == 1 and step + 1 == at:
                os.kill(os.getpid(), signal.SIGTERM)
            adapter.step(adapter.loss(losses))
        adapter.close()
    except SystemExit as error:
        how = f"exit {error.code}"
    return how, adapter.scheduler.global_step


def lost_adapter_run(rank, killed):
    """Train through the adapter until a rank dies: what the other raised."""
    task = Digits()
    adapter = task.attach(num_epochs=50)
    try:
        for step, losses in task.batches(adapter):
            loss = adapter.loss(losses)
            if rank == killed and step == 29:
                os.kill(os.getpid(), signal.SIGKILL)
            adapter.step(loss)
    except RuntimeError as error:
        return type(error).__name__, str(error)
    return None


def lost_run(rank, killed, how):
    """Train until a rank dies or hangs: what the others raised, after how long."""
    ranks = Ranks(timeout_seconds=3.0 if how == "hangs" else 600.0)
    task = Digits() if how == "dies in backward" else None
    r8 = R8Scheduler(1797, batch_size=64, num_epochs=50)
    shared = SharedRun(r8, ranks, every=4)
    began = time.monotonic()
    try:
        for _ in r8.epoch_iterator():
            for share in shared:
                if rank == killed and share.ticket.step == 30:
                    if how == "hangs":
                        time.sleep(8)
                        return None
                    os.kill(os.getpid(), signal.SIGKILL)
                began = time.monotonic()
                with ranks.watching():
                    losses = 1.0 + share.indices / 1797 if task is None else task.losses(share.indices)
                    if shared.report(share.ticket, losses) and task is not None:
                        task.step(losses, share.lr)
    except RuntimeError as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return None


def predicting_run(rank, bad_step):
    """Train on the digits through the adapter, with predictions and one NaN: evidence, refusals, share predicted."""
    task = Digits()
    adapter = task.attach(num_epochs=4, max_grad_norm=5.0)
    steps = 0
    for _ in adapter.epochs():
        for xs, ys in adapter.loader():
            logits = task.model(xs)
            logits = logits * float("nan") if (rank, steps) == (1, bad_step) else logits
            steps += 1
            adapter.step(adapter.cross_entropy(logits, ys))
    adapter.close()
    evidence = adapter.scheduler.table.storage.evidence.whole
    is_right = (evidence["margin"] < 0).mean()
    assert (evidence["given"] == task.y.numpy()).all()
    return hashlib.sha256(evidence.tobytes()).hexdigest(), adapter.scheduler.sentry.num_refused, float(is_right)


def faulty_run(rank, kind, accumulate, bad_rank):
    """A training that a fault strikes, that of a batch on one rank only: the loss, the steps and the refusals."""
    from . import fault_common

    warnings.filterwarnings("ignore")
    only = kind == "nan batch" and rank != bad_rank
    wrap = DistributedDataParallel
    adapter, loss = fault_common.train(kind, accumulate=accumulate, wrap=wrap, strikes=not only)
    r8 = adapter.scheduler
    found = r8.controller.state_dict()["incidents"]
    return loss, r8.global_step, r8.sentry.num_refused, found["num_probes"], found["num_restored"]


TRIAL = {"batch_size": 32, "num_steps": 120, "policy": "shuffle", "scheduler_mode": "keep"}


def validated_run(rank):
    """A trial of a lower rate from the fourth epoch on: after each epoch the loss on all ranks, and the weights."""
    warnings.simplefilter("ignore", RuntimeWarning)
    digits = Digits()
    adapter = digits.attach(480, **TRIAL)
    found, controller, loss_of = [], adapter.scheduler.controller, torch.nn.functional.cross_entropy
    with adapter:
        for epoch in adapter.epochs():
            if epoch == 3:
                begin_trial(adapter.scheduler)
            begun = None
            for inputs, targets in adapter.loader():
                begun = begun or parameter_digest(digits.model)
                adapter.step(adapter.loss(loss_of(digits.model(inputs), targets, reduction="none")))
                if rank == 0 and epoch == 4:
                    # Each rank's own affair, in mid-trial, too.
                    before = parameter_digest(digits.model)
                    with adapter.scheduler.paused():
                        adapter.scheduler.log(loss=1.0)
                        adapter.scheduler.state_dict()
                    assert parameter_digest(digits.model) == before
            with torch.no_grad():
                loss = loss_of(digits.model(digits.x), digits.y)
            dist.all_reduce(loss)
            found.append((loss.item(), controller.state.early.trial is not None, begun, parameter_digest(digits.model)))
    return found


def saving_run(rank, folder):
    """A trial of a lower rate from step 30 on, a checkpoint due every four: the steps on trial, and those saved."""
    warnings.simplefilter("ignore", RuntimeWarning)
    digits, heard, within = Digits(), [], []
    files = {"checkpoint_dir": folder, "checkpoint_every": 4}
    adapter = digits.attach(480, listeners=[heard.append], **files, **TRIAL)
    loss_of = torch.nn.functional.cross_entropy
    with adapter:
        for epoch in adapter.epochs():
            if epoch == 2:
                begin_trial(adapter.scheduler)
            for inputs, targets in adapter.loader():
                adapter.step(adapter.loss(loss_of(digits.model(inputs), targets, reduction="none")))
                if adapter.scheduler.controller.state.early.trial is not None:
                    within.append(adapter.scheduler.global_step)
    return within, [event.step for event in heard if isinstance(event, events.CheckpointSaved)]


def left_run(rank, folder, damages):
    """Both ranks leave the run at one step by a break, and rank 1 is closed before the other comes: what is said."""
    digits = Digits()
    sharing = Together(Ranks(timeout_seconds=20))
    adapter = digits.attach(480, batch_size=32, num_steps=40, checkpoint_dir=folder, sharing=sharing)
    for _, losses in digits.batches(adapter):
        adapter.step(adapter.loss(losses))
        if adapter.scheduler.global_step >= 7:
            break
    if damages:
        next(digits.model.parameters()).data[0] = float("nan")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for closes in (1, 0):
            if rank == closes:
                adapter.close()
            dist.barrier()
    is_finite = all(bool(each.isfinite().all()) for each in digits.model.parameters())
    return [str(each.message) for each in said], is_finite, len(list(folder.glob("*.r8")))
