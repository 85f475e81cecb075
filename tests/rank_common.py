"""What the tests of several ranks share: processes that stay, connected by gloo, and ranks that are threads."""

import contextlib
import json
import multiprocessing
import os
import threading
import traceback
import unittest.mock
import warnings

import numpy as np

from tests.programs import torchrun


class Failed(AssertionError):
    """A job raised on a rank; the message is the traceback."""


class World:
    """Some processes in one gloo group, that run one job after the other.

    Args:
        size: How many.
        folder: Where they find each other.
    """

    def __init__(self, size, folder):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            # No daemon: loaders of theirs may have workers.
            process = context.Process(target=_serve, args=(theirs, rank, size, str(folder / "store")))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, job, *args):
        """``job(rank, *args)`` on all ranks; what it returned on each."""
        for pipe in self.pipes:
            pipe.send((job, args))
        answers = [pipe.recv() for pipe in self.pipes]
        for text, _ in answers:
            if text:
                raise Failed(text)
        return [answer for _, answer in answers]

    def close(self):
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(pipe, rank, size, store):
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionError):
            break
        if task is None:
            break
        job, args = task
        try:
            # What a launcher or accelerate sets for one job is not there for the next. Early backups come while they
            # are cheap, and losses are exchanged more often where steps are slow: both depend on whatever else the
            # machine does.
            with (
                unittest.mock.patch.dict(os.environ),
                unittest.mock.patch("learnit_r8.recovery.persistence.DOUBLING_SECONDS", 1000.0),
                unittest.mock.patch("learnit_r8.torch.distributed.exchange.EXCHANGE_SECONDS", 1e6),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("error")
                # As in pyproject.toml: said of the first refused loss, and of the first array that is mended.
                warnings.filterwarnings("ignore", "(a loss was|.* losses were) refused (at|from) step")
                warnings.filterwarnings("ignore", "losses or weights were not finite at step .* came from the backup")
                pipe.send(("", job(rank, *args)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
    dist.destroy_process_group()
    # Tearing down what the frameworks have loaded takes seconds.
    os._exit(0)


def run_on_two_ranks(program, folder):
    """What two ranks that torchrun starts have found: each leaves it in ``folder/RANK.json``."""
    (folder / "train.py").write_text(program)
    torchrun(folder, "train.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


class ThreadRanks:
    """Ranks that are threads of one process, for rules that do not depend on how messages travel."""

    def __init__(self, rank, size, barrier, box):
        self.rank, self.size = rank, size
        self._barrier, self._box = barrier, box

    def gather(self, message):
        return self.send(message)()

    def send(self, message):
        """Threads wait for each other when they read."""
        message = message.copy()

        def read():
            self._box[self.rank] = message
            self._barrier.wait(20)
            everything = np.stack([self._box[rank] for rank in range(self.size)])
            self._barrier.wait(20)
            return everything

        return read

    def of_first(self, text):
        if self.rank == 0:
            self._box["text"] = text
        self._barrier.wait(20)
        text = self._box["text"]
        self._barrier.wait(20)
        return text


def in_threads(size, job):
    """``job(ranks)`` on ranks that are threads; what it returned on each, or the exception it raised."""
    barrier, box, answers, is_failed = threading.Barrier(size), {}, [None] * size, threading.Event()

    def work(rank):
        try:
            answers[rank] = job(ThreadRanks(rank, size, barrier, box))
        except Exception as error:
            answers[rank] = error
            is_failed.set()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not is_failed.wait(0.02):
        pass
    for thread in threads:
        # Others raise the same, or wait for one that is gone.
        thread.join(1 if is_failed.is_set() else 60)
    barrier.abort()
    for thread in threads:
        thread.join(60)
    return answers
