"""A user who is interrupted once, somewhere inside of the package, and goes on; and what must be true then."""

import collections
import ctypes
import dis
import functools
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import Predictions, R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.engine.turns import RunInterrupted
from learnit_r8.table.table import SampleTable
from tests.drive import FakeClock, observe, sample_losses

PACKAGE = str(Path(learnit_r8.__file__).parent)
NUM_SAMPLES, BATCH = 22, 4
REACTIONS = ["retry", "go on", "save", "resume"]
"""What the user does first after an interrupt that left the run whole: the same call again; the next batch; a
checkpoint and then the same call; or a new scheduler from `state_dict()`."""


@functools.lru_cache(None)
def closed_places(code):
    """Offsets where CPython delivers no exception, since it does so after calls, at loops and at the begin of functions
    only (bpo-29988): between the end of a ``with`` block and its ``__exit__``, and at ``return`` and ``yield``.
    """
    places, run, last = set(), [], 0
    for instruction in dis.get_instructions(code):
        leads_to_exit = instruction.opname in ("POP_BLOCK", "DUP_TOP", "SWAP", "ROT_TWO", "PRECALL", "NOP") or (
            instruction.opname == "LOAD_CONST" and instruction.argval is None
        )
        if instruction.opname in ("CALL", "CALL_FUNCTION"):
            names = [name for name, _ in run]
            if names[-4:].count("LOAD_CONST") == 3 or names[-2:] == ["DUP_TOP", "DUP_TOP"]:
                places |= {offset for _, offset in run} | {instruction.offset}
        if instruction.opname in ("NOP", "RETURN_VALUE", "RETURN_CONST", "RERAISE", "CALL_INTRINSIC_1", "JUMP_FORWARD"):
            places.add(instruction.offset)
        if instruction.opname == "YIELD_VALUE":
            places |= {last, instruction.offset}
        last = instruction.offset
        run = [*run, (instruction.opname, instruction.offset)] if leads_to_exit else []
    return frozenset(places)


class Interrupter:
    """Raises KeyboardInterrupt before a bytecode that the package runs inside of a ``with`` block.

    Args:
        at: Before how many-th bytecode; 0 for none.

    Attributes:
        places: The code and offset of every bytecode so far.
    """

    def __init__(self, at=0):
        self.at, self.places = at, []

    def __enter__(self):
        self._before = sys.gettrace()
        self.start()
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def start(self):
        """Look at every bytecode from the next call on."""
        sys.settrace(self._trace)

    def _trace(self, frame, event, arg):
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti not in closed_places(code):
            self.places.append((code, frame.f_lasti))
            if len(self.places) == self.at:
                raise KeyboardInterrupt
        return self._trace


class Model:
    """A user's model of two arrays, which are put back one after the other."""

    def __init__(self):
        self.first, self.second = np.zeros(1), np.zeros(1)

    def get(self):
        return {"first": self.first, "second": self.second}

    def load(self, source, from_ram):
        if not from_ram:
            with open(source, "rb") as file:
                source = {"first": np.load(file), "second": np.load(file)}
        self.first = source["first"]
        self.second = source["second"]

    def save(self, state_dict, filepath):
        with open(filepath, "wb") as file:
            np.save(file, state_dict["model"]["first"])
            np.save(file, state_dict["model"]["second"])

    def step(self, lr):
        self.first = self.first + lr
        self.second = self.second - lr


class User:
    """Trains to the end of a run, and is interrupted once.

    Args:
        kind: "exact", "parts", "means" or "predicted": what is reported.
        loop: "bare" for the iterators, "tickets" for `draw` and `report` with two batches out.
        bad: Steps whose loss is NaN.
        bad_sample: A sample whose loss is NaN whenever it comes; -1 for none.
        lowest: What falls from the losses with every step; they turn negative.
        decay: What the losses are multiplied by with every step.
        damaged_at: Steps after which the model has NaN in it; -1 for never.
        poisoned_at: Steps after which the model is finite, and its losses are far too high; -1 for never.
        has_model: Whether there are callbacks for backups.
        call: Number of the call that is interrupted, and
        at: before which bytecode in it.
        reaction: One of REACTIONS.
        more: Arguments of the scheduler.

    Attributes:
        came_back: How the user went on from a run that was not whole: "backup", "checkpoint", "anew" or "".
        num_lost: Tickets that were drawn, and lost before the user had them.
        has_lost_probe: Whether that was a probe, which is drawn anew and not again.
        kept: The model's first number, the guard and the recovery at every step that had a backup taken.
    """

    def __init__(
        self, *, kind="exact", loop="bare", bad=(), bad_sample=-1, lowest=0.0, decay=0.98, damaged_at=-1,
        poisoned_at=-1, has_model=False, call=-1, at=0, reaction="retry", **more,
    ):  # fmt: skip
        self.kind, self.loop, self.lowest, self.decay, self.reaction = kind, loop, lowest, decay, reaction
        self.bad, self.bad_sample, self.damaged_at, self.poisoned_at = bad, bad_sample, damaged_at, poisoned_at
        self.is_plain = not bad and bad_sample < 0 and damaged_at < 0 and poisoned_at < 0
        self.model = Model()
        self.more = {"num_epochs": 3, "clock": FakeClock(), "handle_signals": False, **more}
        if has_model:
            self.more |= {"state_callback": self._get, "load_callback": self.model.load, "backup_every": 3}
        if "checkpoint_dir" in more:
            self.more["save_callback"] = self.model.save
        self.kept = {}
        self.r8 = R8Scheduler(NUM_SAMPLES, batch_size=BATCH, **grouped(self.more))
        self.to_interrupt, self.at = call, at
        self.num_calls, self.num_interrupted, self.places = 0, 0, {}
        self.learned, self.trained, self.out = [], {}, []
        self.came_back, self.num_lost, self.has_lost_probe = "", 0, False

    def _get(self):
        if self.r8.host.turns.is_mine:
            # It is asked whether what was put back is sound.
            return self.model.get()
        state = judgement_of(self.r8)
        self.kept[self.r8.global_step] = self.model.first.copy(), state
        return self.model.get()

    def call(self, function, *arguments):
        """Call the scheduler; KeyboardInterrupt if this is the call that is interrupted."""
        number, self.num_calls = self.num_calls, self.num_calls + 1
        assert number < 500, "the run does not end"
        if number != self.to_interrupt and self.at >= 0:
            return function(*arguments)
        interrupter = Interrupter(max(self.at, 0))
        try:
            with interrupter:
                return function(*arguments)
        finally:
            self.places[number] = interrupter.places

    def run(self):
        """Train to the end."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while True:
                self._train()
                # An exception that a trace function raises inside of ``except`` may leave the handled one in
                # sys.exc_info() for good, which close() asks; a signal does not come there.
                ctypes.pythonapi.PyErr_SetExcInfo(None, None, None)
                try:
                    self.call(self.r8.close)
                    return self
                except KeyboardInterrupt:
                    # Who comes back from an earlier state trains on from there.
                    self._react()

    def _train(self):
        while not self._is_done():
            try:
                self._train_bare() if self.loop == "bare" else self._train_tickets()
            except KeyboardInterrupt:
                ticket = self.r8.host.open_ticket
                self.has_lost_probe |= ticket is not None and ticket.chunk.is_probe
                self._react()
            if (
                not self.out
                and self.r8.pace.num_out
                and not self.r8.host.turns.is_cut
                and self.r8.host.open_ticket is None
            ):
                self._find_lost()

    def _is_done(self):
        return self.r8.pace.place == self.r8.total_steps and not self.r8.pace.num_out

    def _find_lost(self):
        """A ticket that was drawn and lost on its way is drawn again after the state is loaded."""
        self.num_lost += self.r8.pace.num_out
        self.r8.load_state_dict(self.r8.state_dict())

    def _react(self):
        """What comes first after an interrupt; whether the run was whole."""
        self.num_interrupted += 1
        if self.r8.host.turns.is_cut:
            self._come_back()
            return False
        if self.reaction == "save" and self.r8.host.persistence.saver is not None:
            self.call(self.r8.save_checkpoint)
        elif self.reaction in ("save", "resume"):
            state = self.call(self.r8.state_dict)
            if self.reaction == "resume":
                self.r8 = R8Scheduler(NUM_SAMPLES, batch_size=BATCH, **grouped(self.more))
                self.r8.load_state_dict(state)
                self.out.clear()
        return True

    def _come_back(self):
        """Go on as the message says."""
        r8 = self.r8
        self.out.clear()
        for call in (r8.draw_if_any, r8.state_dict, r8.host.between_steps):
            with pytest.raises(RunInterrupted, match=r"was cut short.*load_checkpoint\(\), or with restore_backup\(\)"):
                call()
        self.came_back = self._restored()
        assert not r8.host.turns.is_cut or self.came_back == "anew"

    def _restored(self):
        r8, refusal = self.r8, ""
        try:
            step = r8.restore_backup()
        except RuntimeError as error:
            refusal = str(error)
        assert "load_checkpoint()" in (refusal or "load_checkpoint()")
        if not refusal:
            first, state = self.kept[step]
            assert r8.global_step == step
            assert (self.model.first, self.model.second) == (first, -first), "the model is of another step"
            assert judgement_of(r8) == state, "guard and model are of two steps"
            return "backup"
        if r8.host.persistence.saver is not None and list(r8.host.persistence.store.folder.glob("ck_*")):
            r8.load_checkpoint()
            assert r8.sentry.num_refused >= 0
            return "checkpoint"
        self.r8 = R8Scheduler(NUM_SAMPLES, batch_size=BATCH, **grouped(self.more))
        return "anew"

    def _train_bare(self):
        epochs = self.r8.epoch_iterator()
        while self.call(next, epochs, None) is not None:
            batches = self.r8.batch_iterator()
            while (batch := self.call(next, batches, None)) is not None:
                if not self._report(self.r8.update_with_loss, batch[0].copy(), batch[1], self.r8.current_epoch):
                    return
            if self.r8.pace.num_out:
                return

    def _train_tickets(self):
        out = self.out
        while True:
            while len(out) < 2 and (ticket := self.call(self.r8.draw_if_any)) is not None:
                out.append(ticket)
            if not out:
                self.call(self.r8.host.between_steps)
                return
            ticket = out.pop(0)
            report = functools.partial(self.r8.report, ticket)
            if not self._report(report, ticket.indices.copy(), ticket.lr, ticket.epoch):
                if ticket.is_out and ticket.batch.chunk in self.r8.host.source._open:
                    # What was not reported is reported later.
                    out.append(ticket)
                return

    def _report(self, report, indices, lr, epoch):
        """Report a batch, and again after an interrupt if that is the user's reaction; whether it was reported."""
        turns, not_learned = self.r8.pace.turns, self._num_not_learned(self.r8)
        given, keywords = self._loss(indices, self.r8.global_step)
        outcome, before = None, self.r8
        while outcome is None:
            try:
                outcome = self.call(functools.partial(report, **keywords), given)
            except KeyboardInterrupt:
                is_whole = self._react()
                if before.pace.turns > turns and is_whole:
                    # It was complete, and the outcome was lost.
                    outcome = self._num_not_learned(before) == not_learned
                elif not is_whole or self.reaction in ("go on", "resume"):
                    return False
        if before.pace.turns > turns:
            self.trained.setdefault(epoch, []).extend(indices.tolist())
            if outcome:
                self.learned.append((indices, given, keywords))
        if outcome:
            self._step_model(lr)
        return self.r8 is before

    @staticmethod
    def _num_not_learned(r8):
        """Batches whose outcome was false so far: refused, or a probe."""
        return r8.sentry.num_refused + r8.pace.probes

    def _step_model(self, lr):
        self.model.step(lr)
        if self.r8.global_step == self.damaged_at:
            self.damaged_at = -1
            self.model.step(np.nan)
        if self.r8.global_step == self.poisoned_at:
            self.poisoned_at = -1
            self.model.step(1e6)

    def _loss(self, indices, step):
        losses = sample_losses(indices) * self.decay**step - self.lowest * step
        losses = losses * np.nan if step in self.bad else losses
        losses = losses * 50 if abs(self.model.first[0]) > 1e5 else losses
        losses = np.where(indices == self.bad_sample, np.nan, losses)
        if self.kind == "exact":
            return losses, {}
        if self.kind == "predicted":
            return losses, {"predictions": Predictions(losses - 2.0, (indices + step) % 3, indices % 3, 3)}
        if self.kind == "means":
            return float(losses.mean()), {}
        return np.array([part.mean() for part in np.split(losses, range(2, len(losses), 2))]), {"part_size": 2}


def judgement_of(r8):
    """What guard and recovery know of the weights, to be compared."""
    return repr((r8.sentry.present.losses, r8.controller.lineage.updates, r8.controller.limit.state_dict()))


def frozen(state):
    """A state as nested tuples that can be compared."""
    if isinstance(state, dict):
        return tuple((name, frozen(value)) for name, value in sorted(state.items()))
    if isinstance(state, (list, tuple)):
        return tuple(frozen(value) for value in state)
    if isinstance(state, np.ndarray):
        return state.dtype.str, state.shape, state.tobytes()
    return repr(state)


SET_ASIDE = (
    "_persistence", "_announcer", "persistence", "announcer", "_spares", "_lent", "_restorer", "_on_disk", "waiting",
    "witnesses", "looked_last_at", "left_at", "recorder", "_recorder",
)  # fmt: skip
"""Attributes that are not part of a state: other parts, which the controller has too, what is only a cache, the
witnesses of checkpoints (see `everything`), where the end, or that of an epoch, was looked at, which a call that was
cut there is not repeated for, and the recorder, whose thread writes what is queued at its own time, at the latest as
the program ends."""


def memory_of(r8):
    """All that a report changes but the losses themselves, attribute by attribute, as nested tuples."""
    names = ("part_size", "are_offsets", "exclusions", "batch_trend")
    table = {name: getattr(r8.table.storage, name) for name in names}
    parts = (
        r8.sentry,
        r8.controller,
        r8.host.persistence.backup,
        r8.host.rates.search,
        r8.host.rates.found_lr,
        r8.pace.tally,
    )
    return _remembered((table, r8.pace.step, r8.pace.num_out, *parts), [r8.table])


def _remembered(value, path):
    """A value as nested tuples; objects of the package by their attributes, and other ones by their kind."""
    if any(value is above for above in path):
        return "above"
    if isinstance(value, dict):
        return tuple((repr(name), _remembered(each, path)) for name, each in value.items() if name not in SET_ASIDE)
    if isinstance(value, (list, tuple, collections.deque)):
        return tuple(_remembered(each, path) for each in value)
    if isinstance(value, np.ndarray):
        return frozen(value)
    if isinstance(value, (bool, int, float, str, set, type(None), np.generic)):
        return repr(value)
    if type(value).__module__.startswith("learnit_r8") and hasattr(value, "__dict__"):
        return type(value).__name__, _remembered(vars(value), [*path, value])
    return type(value).__name__


def everything(user):
    """All that is remembered in the end, to be compared with a run that was not interrupted."""
    r8 = user.r8
    saver = r8.host.persistence.saver
    state = r8.state_dict()
    witnesses, _ = state["recovery"].pop("witnesses"), state["recovery"].pop("looked_last_at")
    about = {
        "state": state,
        "witnesses": witnesses,
        "memory": memory_of(r8),
        "model": user.model.get(),
        "newest": saver and saver.store.load().state["pace"]["step"],
        "trained": user.trained,
    }
    return {name: frozen(value) for name, value in about.items()}


def check(user, undisturbed):
    """Raise AssertionError unless an interrupted run is as good as any, or has said that it was not and came back."""
    r8 = user.r8
    assert not r8.controller.live.is_restoring, "is_restoring is left set"
    assert is_free(r8.host.turns.lock), "the lock is left held"
    assert is_free(r8.host.turns._turn), "the turn is left taken"
    assert (r8.pace.num_out, r8.pace.place) == (0, r8.total_steps), "a batch is lost"
    assert np.array_equal(user.model.first, -user.model.second, equal_nan=True), "the model is half put back"
    assert user.num_lost <= 1
    if user.came_back:
        return
    if user.reaction in ("retry", "save") and not (user.num_lost or user.has_lost_probe or r8.host.source.abandoned):
        now = everything(user)
        # A checkpoint more has a witness more.
        aside = ("witnesses",) if user.reaction == "save" else ()
        others = [name for name in now if now[name] != undisturbed[name] and name not in aside]
        assert not others, f"{others} are other ones"
    evidence = r8.table.storage.evidence.whole
    assert evidence is None or (evidence["visits"] == r8.table.usage_count).all(), "evidence is not that of the losses"
    uses = np.zeros(NUM_SAMPLES, int)
    for indices, _, _ in user.learned:
        uses[indices] += 1
    assert (r8.table.usage_count == uses).all(), "uses are not those of the reports"
    # A lost batch comes again when its epoch is over, perhaps.
    if user.is_plain and not user.num_lost:
        for samples in user.trained.values():
            assert sorted(samples) == list(range(NUM_SAMPLES)), "an epoch is not every sample once"
        check_table(user)


def check_table(user):
    """Raise AssertionError unless the table is that of learning each report as it comes."""
    slow = SampleTable(NUM_SAMPLES, batch_size=BATCH)
    for indices, given, keywords in user.learned:
        size = {name: value for name, value in keywords.items() if name == "part_size"}
        reading = learnit_r8.table.losses.read_loss(given, len(indices), **size)
        slow.storage.part_size = reading.part_size
        early = slow.storage.batch_trend
        believed = reading.mean, reading.means, reading.lowest
        mean, means, lowest = early.believed(*believed) if early.is_early else believed
        trend = observe(slow, mean, lowest, reading.mean)
        means = np.atleast_1d(means)
        size = reading.part_size or len(indices)
        sizes = np.array([len(part) for part in np.split(indices, range(size, len(indices), size))])
        slow.learner.learn(indices, means, None if size == 1 else sizes, np.full(len(means), trend))
    for name in ("loss", "last", "mean"):
        np.testing.assert_array_equal(getattr(user.r8.table, name), getattr(slow, name))


def is_free(lock):
    """Whether another thread can have a lock."""
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(timeout=1) and lock.release() is None))
    thread.start()
    thread.join()
    return got == [True]
