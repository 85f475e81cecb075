"""The exchange: makes the schedulers of all ranks one, by a small message in up to 16 steps.

Every rank draws the same batch and trains on its own slice, so that no index ever travels. Losses do, together with
everything else the ranks must agree on: the time, what was asked of the run on one of them, and digests that show when
they differ. The same numbers reported in the same order give the same tables, verdicts and rates, bit for bit.

What is sent at one step is read at the next: a message takes a millisecond or more where every core is at work, and
no rank waits for it. Only where nothing may be open it is read at once: see `Exchange.turn`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import whole_number
from ..ticket import Ticket
from .agreement import check_same, check_same_run, digest_of_state
from .letters import Head, Letters, Note
from .ranks import Ranks
from .shared_parts import SharedClock, SharedRequests, SharedStore

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

MOST_HELD_BACK = 16
"""Steps whose losses may wait to be exchanged."""

EXCHANGE_SECONDS = 0.25
"""Steps slower than this exchange their losses at once: it costs nothing then, and a bad loss needs no restore."""

CHECK_STEPS = 256
"""Steps between two digests of the tables."""


class Exchange:
    """What the schedulers of all ranks share; every rank makes it, having built its own with the same arguments.

    Args:
        r8: This rank's scheduler, from which nothing was drawn yet. Its clock becomes that of rank 0, only rank 0
            writes checkpoints, and what is asked of it on one rank is done on all.
        ranks: The ranks.
        every: Steps between two exchanges, in [1, 16]; None for 16, and fewer where steps are slow.
        probe: Returns a digest of the model, which is to be the same on all ranks.
        settings: What else must be the same on all ranks, by name.

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
    ) -> None:
        check_every(every)
        _check_shareable(r8, ranks)
        check_same_run(r8, ranks, settings or {})
        self.r8, self.ranks = r8, ranks
        self.count = 0
        self._own_every = every
        self._every = every or MOST_HELD_BACK
        self._letters = Letters(ranks.size, MOST_HELD_BACK, r8.table.batch_size // ranks.size)
        self._probe = probe
        self._drawn = 0
        self._last_check = self._num_checks = 0
        self._began = time.perf_counter()
        self.under_way: list[Note] = []
        self._read: Callable[[], NDArray[Any]] | None = None
        self._is_hurried = True
        self._clock = SharedClock(r8.pace.clock, ranks)
        r8.pace.use_clock(self._clock)
        self._requests = r8.requests = SharedRequests(r8.requests, ranks, self._clock)
        r8.safekeeping.agree = self.agree
        if r8.safekeeping.store is not None:
            r8.safekeeping.store = SharedStore(r8.safekeeping.store, ranks)  # type: ignore[assignment]

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This rank's part of a batch: an equal, contiguous one, so that it is as balanced as the batch.

        Args:
            rows: T[B], indices or weights of the batch; where the ranks do not divide it, it is filled up with its own
                first samples, which are trained on twice and learned from once.

        Returns:
            T[ceil(B / size)].
        """
        return slice_of(rows, self.ranks)

    def agree(self, trouble: str) -> str:
        """What went wrong on this rank, or that something did on another; "" if nothing did anywhere."""
        if self.r8.is_stopped:
            # A rank that was told to end by a signal is gone by now.
            return trouble
        everyone = self.ranks.gather(np.array([bool(trouble)]))[:, 0]
        elsewhere = ", ".join(map(str, np.flatnonzero(everyone).tolist()))
        return trouble or (elsewhere and f"it went wrong on rank {elsewhere}")

    def check(self, note: Note, held: Sequence[Note]) -> None:
        """Raise ValueError unless the losses of a step can be exchanged with those held back."""
        self._letters.check(note, held or self.under_way, self.r8.table.part_size)

    def turn(self, num_held: int, last: Ticket, take: Callable[[], Sequence[Note]]) -> list[Note]:
        """To be called at each step on all ranks: reads what was sent before, and sends what is held if it is time.

        It is time where enough is held back, where nothing comes before the next epoch or the end, and where the run
        is to answer a request. In the last two cases it is read at once; so it is where a backup or a checkpoint may be
        due before the next exchange, for which no loss may be open, and where steps are slow.

        Args:
            num_held: Steps held back, >= 1.
            last: The last of them.
            take: Returns them, with the losses of this rank's slices, to be held back no longer.

        Returns:
            Steps with the losses of whole batches, to be reported in this order.

        Raises:
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
        """
        here = self.receive()
        step = last.step + 1
        ends = not step % self.r8.steps_per_epoch or step == self.r8.total_steps
        must_close = ends or self._requests.is_agreed
        if num_held >= self._every or must_close:
            is_hurried = must_close or self._is_hurried or self._every == 1
            self._send(take())
            if is_hurried:
                here += self.receive()
        return here

    def run(self, held: Sequence[Note]) -> list[Note]:
        """Read what was sent before, and exchange at once; on all ranks at the same place. See `turn`."""
        here = self.receive()
        self._send(held)
        return here + self.receive()

    def drain(self, held: Sequence[Note]) -> list[Note]:
        """All that is held or under way; on all ranks at the same place. Nothing is sent where nothing is held."""
        return self.run(held) if held else self.receive()

    def _send(self, held: Sequence[Note]) -> None:
        for note in held:
            self._drawn = zlib.crc32(note.ticket.indices.data, self._drawn)
        # The model is looked at along with the table, and once early.
        state, early = self._digest_if_due(), 0 < self.r8.global_step <= 2 * MOST_HELD_BACK
        step = held[-1].ticket.step + 1 if held else self.r8.global_step
        every = self._next_every(len(held))
        own = self._letters.write(
            held,
            step=step,
            drawn=self._drawn,
            state=state,
            model=self._probe() if state or early else 0,
            clock=self._clock.own(),
            every=every,
            is_hurried=self._must_hurry(step + every),
            wished=self._requests.wished,
        )
        self.under_way = list(held)
        self._read = self.ranks.send(own)
        self.count += 1

    def receive(self) -> list[Note]:
        """Read what was sent before, if anything was: the same steps with the losses of whole batches.

        Raises:
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
        """
        read, self._read = self._read, None
        if read is None:
            return []
        letters = read()[:, 0]
        held, self.under_way = self.under_way, []
        heads = self._letters.heads(letters)
        self._check(heads)
        self._clock.now = float(letters["clock"][0])
        self._every, self._is_hurried = heads[0].every, bool(heads[0].is_hurried)
        self._requests.agree([head.wished for head in heads])
        return self._letters.read(letters, held)

    def show(self) -> None:
        """Let viewers see the samples while losses are held back or under way, if it is time."""
        r8 = self.r8
        if r8.announcer.wants_surveys:
            r8.telling.between_steps(r8.pace.epoch, epoch_ended=False)

    def _must_hurry(self, next_step: int) -> bool:
        """Whether something may be due at the exchange after this one, if this rank is the first."""
        keeping = self.r8.safekeeping
        return next_step >= keeping.quiet_steps or self.r8.pace.seconds >= keeping.quiet_seconds

    def _digest_if_due(self) -> int:
        """Of the state that the last exchange left; 0 if it is not its turn."""
        step = self.r8.global_step
        if self._num_checks and step - self._last_check < CHECK_STEPS:
            return 0
        self._last_check = step
        self._num_checks += 1
        return digest_of_state(self.r8, self._num_checks)

    def _next_every(self, num_held: int) -> int:
        """Steps to the next exchange, if this rank is the first."""
        began, self._began = self._began, time.perf_counter()
        if self._own_every or not num_held:
            return self._every
        step_seconds = (self._began - began) / num_held
        return int(min(MOST_HELD_BACK, max(1.0, EXCHANGE_SECONDS // max(step_seconds, 1e-9))))

    def _check(self, heads: Sequence[Head]) -> None:
        first, own = heads[0], heads[self.ranks.rank]
        place = f"step {own.step}"
        if any(head.common != first.common for head in heads):
            self._raise_what_differs(heads, place)
        if any(head.model != first.model for head in heads):
            self.r8.announcer.warn_once(
                "models differ",
                f"the models of the ranks have drifted apart before {place}: unless that is meant, average their "
                "gradients, by DistributedDataParallel for instance, and begin with the same weights.",
            )

    @staticmethod
    def _raise_what_differs(heads: Sequence[Head], place: str) -> None:
        numbers, kinds, steps, drawn, states = (list(values) for values in zip(*(h.common for h in heads), strict=True))
        check_same("the step", steps, f"all ranks must report the same steps, got {steps}")
        held = f"all ranks must exchange losses together, got {numbers} held back at {place}"
        check_same("the number of losses", numbers, held)
        check_same("the kind of losses", kinds, f"all ranks must report one kind of loss at {place}")
        check_same("what was drawn", drawn, f"all ranks must draw the same batches before {place}")
        check_same("the table", states, f"the tables of all ranks must be equal before {place}")


def check_every(every: int | None) -> None:
    """Raise unless ``every`` is None or in [1, 16]."""
    if every is not None:
        whole_number("every", every, least=1, most=MOST_HELD_BACK)


def slice_of(rows: NDArray[Any], ranks: Ranks) -> NDArray[Any]:
    """`Exchange.part` for some ranks."""
    share = -(-len(rows) // ranks.size)
    if share * ranks.size != len(rows):
        rows = np.resize(rows, share * ranks.size)
    return rows[ranks.rank * share : (ranks.rank + 1) * share]


def _check_shareable(r8: R8Scheduler, ranks: Ranks) -> None:
    if r8.phase == "searching":
        raise ValueError("auto_find_lr must be False on several ranks, got True; give initial_lr.")
    if r8.table.batch_size % ranks.size:
        raise ValueError(
            f"batch_size must be a multiple of the {ranks.size} ranks, as each takes an equal slice, got "
            f"{r8.table.batch_size}."
        )
