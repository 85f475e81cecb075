"""The exchange: makes the schedulers of all ranks one, by a small message in up to 16 steps.

Every rank draws the same batch and trains on its own slice, so ranks send each other no indices. They send losses, and
everything else that they must agree on: the time, the requests made on any of them, and digests that show when they
differ. The same numbers reported in the same order give the same tables, verdicts and rates, bit for bit.

A message sent at one step is read at the next: it takes a millisecond or more where every core is at work, and no rank
waits for it. Only where no loss may be held back it is read at once: see `Exchange.turn`.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._validation import whole_number
from ...bridge.ranks import PartsOfRanks, RanksDiffer, check_same, digest_of_state
from ...events.launcher import restarts_cannot_meet
from ...sources.ticket import Ticket
from ...table.labels.predictions import NUM_ROWS, Predictions
from ...table.losses import WHOLE_BATCH, check_kind
from ..readback import Note
from .ranks import Ranks

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler

MOST_HELD_BACK = 16
"""Steps whose losses may wait to be exchanged."""

EXCHANGE_SECONDS = 0.25
"""Steps slower than this exchange their losses at once: that costs little, and a refused loss needs no restore."""

CHECK_STEPS = 256
"""Steps between two digests of the tables."""


class Exchange(PartsOfRanks):
    """Exchanges losses, clock and requests between the schedulers of all ranks; every rank makes one.

    Args:
        r8: This rank's scheduler, built with the same arguments as those of the others; no batch was drawn from it
            yet. Its clock becomes that of rank 0, only rank 0 writes checkpoints, and all ranks answer its requests.
        ranks: The ranks.
        every: Steps between two exchanges, in [1, 16]; None for 16, and fewer where steps are slow and in the first 16
            of the user's own batches, and 1 for 1,024 steps after a loss was refused.
        probe: Returns a digest of the model, which must be the same on all ranks.
        settings: Other settings that must be the same on all ranks, by name.
        resume: What to continue from, as for `R8Scheduler`; the ranks choose it together.

    Raises:
        RanksDiffer: another rank has built its scheduler with other arguments.
        ValueError: the batch size is no multiple of the number of ranks; the scheduler searches for a learning rate;
            ``every`` is outside its range.

    Attributes:
        r8: As given.
        ranks: As given.
        count: Exchanges so far.
        under_way: Steps whose losses were sent and not read yet.
    """

    def __init__(
        self,
        r8: R8Scheduler,
        ranks: Ranks,
        every: int | None = None,
        *,
        probe: Callable[[], int] = lambda: 0,
        settings: Mapping[str, Any] | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        _check_shareable(r8, ranks)
        super().__init__(ranks, settings)
        self.r8, self.ranks = r8, ranks
        self.count = 0
        self._own_every = every
        self._every = every or MOST_HELD_BACK
        self._codec = MessageCodec(ranks.size, MOST_HELD_BACK, max(1, r8.table.batch_size // ranks.size))
        self._probe = probe
        self._drawn = 0
        self._last_check = self._num_checks = 0
        self._began = time.perf_counter()
        self.under_way: list[Note] = []
        self._read: Callable[[], NDArray[Any]] | None = None
        self._is_hurried = True
        self._requests = r8.requests
        if ranks.rank == 0 and restarts_cannot_meet():
            r8.host.say_once(
                "restarts",
                "torchrun keeps one store for all restarts, in which ranks often find the addresses of dead ones and "
                "do not meet again: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --standalone, or "
                "--rdzv-backend=c10d on several hosts.",
            )
        r8.host.share(self, resume)

    def check(self, note: Note, held: Sequence[Note]) -> None:
        """Raise ValueError unless the losses of a step can be exchanged with those held back."""
        self._codec.check(note, held or self.under_way, self.r8.table.storage.part_size)

    def turn(self, num_held: int, last: Ticket, take: Callable[[], Sequence[Note]]) -> list[Note]:
        """Read the messages sent before, and send the losses that are held back if it is time; at each step.

        It is time where enough losses are held back, at the end of an epoch or the run, and where the run must answer
        a request. In the last two cases the messages are read at once; also where a backup or a checkpoint may be due
        before the next exchange, as these need every loss, where steps are slow, and where each step is exchanged.

        Args:
            num_held: Steps whose losses are held back, >= 1.
            last: The last of them.
            take: Returns them with the losses of this rank's slices, and holds them back no longer.

        Returns:
            Steps with the losses of whole batches, to report in this order.

        Raises:
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
        """
        here = self.receive()
        must_close = self.r8.pace.ends_epoch(last.step + 1) or self._requests.is_agreed
        if num_held >= (every := self._most_held) or must_close:
            is_hurried = must_close or self._is_hurried or every == 1
            self._send(take())
            if is_hurried:
                here += self.receive()
        return here

    @property
    def _most_held(self) -> int:
        """Steps that may be held back now: one where a loss was refused lately, as a bad sample comes in each epoch.

        All that is held back with a bad batch is undone, which a short run does not make up for: of the user's own
        batches no more than were reported. Of others, false alarms of the first steps, known so soon, cost more.
        """
        r8, step = self.r8, self.r8.global_step
        if self._own_every:
            return self._own_every
        if step < r8.controller.state.refusals.wary_until:
            return 1
        return self._every if r8.feed is None else min(self._every, max(1, step))

    def run(self, held: Sequence[Note]) -> list[Note]:
        """Read the messages sent before, send these losses, and read at once; on all ranks at the same place."""
        here = self.receive()
        self._send(held)
        return here + self.receive()

    def drain(self, held: Sequence[Note]) -> list[Note]:
        """Every step held back or under way, with whole batches; sends a message only if there are losses to send."""
        return self.run(held) if held else self.receive()

    def _send(self, held: Sequence[Note]) -> None:
        for note in held:
            self._drawn = zlib.crc32(note.ticket.indices.data, self._drawn)
        # The digest of the model goes along with that of the table, and once early.
        state, early = self._digest_if_due(), 0 < self.r8.global_step <= 2 * MOST_HELD_BACK
        step = held[-1].ticket.step + 1 if held else self.r8.global_step
        every = self._next_every(len(held))
        own = self._codec.write(
            held,
            step=step,
            drawn=self._drawn,
            state=state,
            model=self._probe() if state or early else 0,
            clock=self._clock.own(),
            span=self._requests.span,
            every=every,
            is_hurried=self.r8.host.may_be_due(step + every),
            wished=self._requests.wished,
        )
        self.under_way = list(held)
        self._read = self.ranks.send(own)
        self.count += 1

    def receive(self) -> list[Note]:
        """Read the messages sent before, if there are any: their steps with the losses of whole batches.

        Raises:
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
        """
        read, self._read = self._read, None
        if read is None:
            return []
        messages = read()[:, 0]
        held, self.under_way = self.under_way, []
        self._check(messages)
        first = messages[0]
        self._clock.now = float(first["clock"])
        self._every, self._is_hurried = int(first["every"]), bool(first["is_hurried"])
        self._requests.agree(messages["wished"].tolist(), messages["span"].tolist())
        return self._codec.read(messages, held, int(first["num_classes"]))

    def _digest_if_due(self) -> int:
        """Digest of the scheduler's state after the last exchange; 0 if none is due."""
        step = self.r8.global_step
        if self._num_checks and step - self._last_check < CHECK_STEPS:
            return 0
        self._last_check = step
        self._num_checks += 1
        return digest_of_state(self.r8, self._num_checks)

    def _next_every(self, num_held: int) -> int:
        """Steps to the next exchange, as rank 0 sees it."""
        began, self._began = self._began, time.perf_counter()
        if self._own_every or not num_held:
            return self._every
        step_seconds = (self._began - began) / num_held
        return int(min(MOST_HELD_BACK, max(1.0, EXCHANGE_SECONDS // max(step_seconds, 1e-9))))

    def _check(self, messages: NDArray[Any]) -> None:
        """Raise RanksDiffer unless the ranks have done the same; warn if their models differ."""
        sent = {name: messages[name].tolist() for name in WHOLE_NUMBERS}
        place = f"step {sent['step'][self.ranks.rank]}"
        held = f"all ranks must exchange losses together, got {sent['num_steps']} held back at {place}"
        classes = f"all ranks must report predictions of as many classes at {place}"
        check_same("the step", sent["step"], f"all ranks must report the same steps, got {sent['step']}")
        check_same("the number of losses", sent["num_steps"], held)
        check_same("the kind of losses", sent["part_size"], f"all ranks must report one kind of loss at {place}")
        check_same("the predictions", sent["num_classes"], classes)
        check_same("what was drawn", sent["drawn"], f"all ranks must draw the same batches before {place}")
        check_same("the table", sent["state"], f"the tables of all ranks must be equal before {place}")
        if len(set(sent["model"])) > 1:
            self.r8.host.say_once(
                "models differ",
                f"the models of the ranks have drifted apart before {place}: unless that is meant, average their "
                "gradients, by DistributedDataParallel for instance, and begin with the same weights.",
            )


def check_every(every: int | None) -> None:
    """Raise unless ``every`` is None or in [1, 16]."""
    if every is not None:
        whole_number("every", every, least=1, most=MOST_HELD_BACK)


def slice_of(rows: NDArray[Any], ranks: Ranks) -> NDArray[Any]:
    """This rank's part of a batch: an equal, contiguous one, so that it is as balanced as the batch.

    Args:
        rows: T[B], indices or weights of the batch; where the ranks do not divide it, it is filled up with its own
            first samples, which are trained on twice and learned from once.
        ranks: The ranks.

    Returns:
        T[ceil(B / size)].
    """
    share = -(-len(rows) // ranks.size)
    if share * ranks.size != len(rows):
        rows = np.resize(rows, share * ranks.size)
    return rows[ranks.rank * share : (ranks.rank + 1) * share]


def _check_shareable(r8: R8Scheduler, ranks: Ranks) -> None:
    if r8.phase == "searching":
        raise ValueError("auto_find_lr must be False on several ranks, got True; give initial_lr.")
    if r8.feed is None and r8.table.batch_size % ranks.size:
        raise ValueError(
            f"batch_size must be a multiple of the {ranks.size} ranks, as each takes an equal slice, got "
            f"{r8.table.batch_size}."
        )


NOTHING = -1
"""Kind of the losses in a message without losses."""


WHOLE_NUMBERS = (
    "num_steps", "part_size", "step", "drawn", "state", "num_classes", "model", "every", "is_hurried", "wished",
)  # fmt: skip


class MessageCodec:
    """Writes the message of this rank, and reads the messages of all.

    A message is a record. Its whole numbers are:

    - ``num_steps``, the steps whose losses are in it, and ``part_size``, the kind of these losses;
    - ``step``, the steps that the sender has reported, these included;
    - ``drawn``, a digest of all batches drawn so far, and ``state``, one of the scheduler's state, 0 if none is due;
    - ``num_classes``, C of the predictions that come with some of the losses, 0 without any;
    - ``model``, a digest of the model, 0 if none is due;
    - ``every``, the steps to the next message, and ``is_hurried``, whether that must be read at once: rank 0's count;
    - ``wished``, the requests made on the sender, as bits.

    Args:
        size: Number of ranks.
        most_steps: Steps whose losses fit into a message.
        share: Samples of a rank in a full batch.
    """

    def __init__(self, size: int, most_steps: int, share: int) -> None:
        self._size = size
        fields: list[tuple[Any, ...]] = [
            *((name, "i8") for name in WHOLE_NUMBERS),
            ("clock", "f8"),
            # Length of the cool-down that is wished, as `Requests.span` gives it.
            ("span", "f8", (2,)),
            # Whether the step was skipped, whether its gradient has a norm, and the norm.
            ("extras", "f8", (3, most_steps)),
            ("losses", "f8", (most_steps, share)),
            # What the logits say of the labels; NaN for steps without predictions.
            ("said", "f4", (most_steps, NUM_ROWS, share)),
        ]
        self._own: NDArray[Any] = np.zeros(1, np.dtype(fields))

    def share_of(self, ticket: Ticket) -> int:
        """Samples of a rank in a batch."""
        return -(-len(ticket.indices) // self._size)

    def check(self, note: Note, before: Sequence[Note], kind: int | None) -> None:
        """Raise ValueError unless the losses of a step fit into a message.

        Args:
            note: The losses of this rank's slice.
            before: The notes that are held back.
            kind: Kind of the losses reported so far; None before the first report.
        """
        share = self.share_of(note.ticket)
        if note.part_size != WHOLE_BATCH and share % note.part_size:
            raise ValueError(
                f"part_size must divide the {share} samples of a rank, got {note.part_size}; for a short last batch "
                "give last_batch='drop' or 'fill'."
            )
        check_kind(note.part_size, before[-1].part_size if before else kind)

    def write(
        self, notes: Sequence[Note], *, clock: float, span: tuple[float, float] = (0.0, 0.0), **head: int
    ) -> NDArray[Any]:
        """Write the message of this rank: a record array of length 1.

        Args:
            notes: The steps that are held back.
            clock: Seconds on the clock of this rank.
            span: `Requests.span` of this rank.
            **head: The other whole numbers.
        """
        own = self._own[0]
        kind = notes[-1].part_size if notes else NOTHING
        num_classes = max((each.predictions.num_classes for each in notes if each.predictions is not None), default=0)
        for name, number in (head | {"num_steps": len(notes), "part_size": kind, "num_classes": num_classes}).items():
            own[name] = number
        own["clock"], own["span"] = clock, span
        own["said"].fill(np.nan)
        for row, said, note in zip(own["losses"], own["said"], notes, strict=False):
            row[: len(note.losses)] = note.losses
            if note.predictions is not None:
                said[:, : len(note.losses)] = note.predictions[:NUM_ROWS]
        if notes:
            norms = [note.grad_norm for note in notes]
            has_norm = [norm is not None for norm in norms]
            own["extras"][:, : len(notes)] = [note.skipped for note in notes], has_norm, [norm or 0.0 for norm in norms]
        return self._own

    def _joined_predictions(self, rows: NDArray[np.float32], note: Note, num_classes: int) -> Predictions | None:
        """What the logits say of one batch; ``rows`` is float32[size, NUM_ROWS, share]."""
        share, count = self.share_of(note.ticket), len(note.ticket.indices)
        margin, predicted, given = (rows[:, row, :share].reshape(-1)[:count] for row in range(NUM_ROWS))
        is_missing = np.isnan(given)
        if is_missing.all():
            return None
        if is_missing.any():
            raise RanksDiffer(f"all ranks must report predictions, or none, got some at step {note.ticket.step + 1}.")
        return Predictions(margin, predicted.astype(np.int64), given.astype(np.int64), num_classes)

    def read(self, messages: NDArray[Any], own: Sequence[Note], num_classes: int = 0) -> list[Note]:
        """The steps that were sent, with the losses of whole batches, and with what their logits say.

        Args:
            messages: [size], in the order of the ranks.
            own: The notes that this rank has sent.
            num_classes: C of the predictions that came with some of the steps; 0 without any.
        """
        # A step that one rank skipped, or a gradient that overflowed on one, is so for all.
        skipped, has_norm, norms = messages["extras"].max(0).tolist()
        losses, said = messages["losses"], messages["said"]
        return [
            Note(
                note.ticket,
                self._joined(losses[:, place], note),
                note.part_size,
                skipped[place] > 0,
                norms[place] if has_norm[place] else None,
                self._joined_predictions(said[:, place], note, num_classes) if num_classes else None,
            )
            for place, note in enumerate(own)
        ]

    def _joined(self, losses: NDArray[np.float64], note: Note) -> NDArray[np.float64]:
        """float64[P], the losses of one batch: slice after slice, without those of samples that fill the batch up."""
        kind = note.part_size
        if kind == WHOLE_BATCH:
            with np.errstate(invalid="ignore", over="ignore"):
                mean: NDArray[np.float64] = losses[:, 0].sum(keepdims=True) / self._size
            return mean
        count = len(note.ticket.indices)
        return losses[:, : self.share_of(note.ticket) // kind].reshape(-1)[: -(-count // kind)]
