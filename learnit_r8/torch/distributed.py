"""SharedRun: one scheduler on several ranks, with the same table, the same batches and the same decisions on all.

Every rank draws the same batch and trains on its own slice, so that no index ever travels. Losses do, together with
everything else the ranks must agree on: the time, what was asked of the run on one of them, and digests that show when
they differ. That is one small message in up to 16 steps. Each rank then reports the whole batches to its scheduler, in
order: the same numbers in the same order give the same tables, verdicts and rates, bit for bit.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import whole_number
from ..guard import Verdict
from ..ticket import Outcome, Ticket
from .agreement import check_same, check_same_run, digest_of_state
from .letters import Letters
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


class Share(NamedTuple):
    """What one rank trains on of a batch.

    Attributes:
        indices: int64[B / size], its samples; in a short batch some may come twice.
        lr: The learning rate.
        weights: float32[B / size], what to multiply each sample's loss by, or None.
        ticket: The whole batch, to report with.
    """

    indices: NDArray[np.int64]
    lr: float
    weights: NDArray[np.float32] | None
    ticket: Ticket


class SharedRun:
    """Makes the schedulers of all ranks one; every rank makes it, after building its scheduler with the same arguments.

    Args:
        r8: This rank's scheduler, from which nothing was drawn yet. Its clock becomes that of rank 0, and only rank 0
            writes checkpoints.
        ranks: The ranks; by default all of ``torch.distributed``.
        every: Steps between two exchanges of losses, in [1, 16]; by default 16, and fewer where steps are slow.

    Raises:
        RanksDiffer: another rank has built its scheduler with other arguments.
        ValueError: the batch size is no multiple of the number of ranks; the scheduler searches for a learning rate;
            ``every`` is outside its range.
        RuntimeError: ``torch.distributed`` was not initialised.

    Attributes:
        r8: As given.
        ranks: As given.
        num_exchanges: Exchanges so far.
    """

    def __init__(self, r8: R8Scheduler, ranks: Ranks | None = None, *, every: int | None = None) -> None:
        if every is not None:
            whole_number("every", every, least=1, most=MOST_HELD_BACK)
        if r8.phase == "searching":
            raise ValueError("auto_find_lr must be False on several ranks, got True; give initial_lr.")
        self.ranks = ranks = Ranks() if ranks is None else ranks
        if r8.table.batch_size % ranks.size:
            raise ValueError(
                f"batch_size must be a multiple of the {ranks.size} ranks, as each takes an equal slice, got "
                f"{r8.table.batch_size}."
            )
        check_same_run(r8, ranks)
        self.r8 = r8
        self.num_exchanges = 0
        self._own_every = every
        self._every = every or MOST_HELD_BACK
        self._letters = Letters(ranks.size, MOST_HELD_BACK, r8.table.batch_size // ranks.size)
        self._held: list[Ticket] = []
        self._drawn = 0
        self._last_check = self._num_checks = 0
        self._began = time.perf_counter()
        self._clock = SharedClock(r8.pace.clock, ranks)
        r8.pace.use_clock(self._clock)
        self._requests = r8.requests = SharedRequests(r8.requests, ranks, self._clock)
        if r8.safekeeping.store is not None:
            r8.safekeeping.store = SharedStore(r8.safekeeping.store, ranks)  # type: ignore[assignment]
        r8.settle = self.settle

    @property
    def held_back(self) -> int:
        """Steps trained on whose losses were not exchanged yet."""
        return len(self._held)

    def slice_of(self, values: NDArray[Any]) -> NDArray[Any]:
        """This rank's part of a batch: an equal, contiguous one, so that it is as balanced as the batch.

        Args:
            values: T[B], indices or weights of the batch; where the ranks do not divide it, it is filled up with its
                own first samples, which are trained on twice and learned from once.

        Returns:
            T[ceil(B / size)].
        """
        share = -(-len(values) // self.ranks.size)
        if share * self.ranks.size != len(values):
            values = np.resize(values, share * self.ranks.size)
        return values[self.ranks.rank * share : (self.ranks.rank + 1) * share]

    def __iter__(self) -> Iterator[Share]:
        """This rank's shares of the batches to the end of the epoch, or of the time.

        Asking for the next one gives up a batch that was not reported, on all ranks alike; it comes once more at the
        end of the epoch.
        """
        r8 = self.r8
        self.start_epoch()
        epoch = r8.current_epoch
        while (r8.global_step + self.held_back) // r8.steps_per_epoch == epoch:
            if not self._held:
                # Before the drawing: a run that is to stop trains on no further batch.
                r8.between_steps()
            ticket = r8.draw_ahead()
            if ticket is None:
                break
            share = self.begin(ticket)
            try:
                yield share
            except GeneratorExit:
                # After a break the next batch is the one in hand.
                self._take_back(share, r8.hand_back)
                raise
            self._take_back(share, r8.give_up)
        self.settle()

    def _take_back(self, share: Share, do: Callable[[Ticket], None]) -> None:
        """Hand a batch back or give it up, if it was not reported."""
        if not (self._held and self._held[-1] is share.ticket):
            do(share.ticket)

    def start_epoch(self) -> None:
        """Exchange what is held back before an epoch's first batch is drawn; on all ranks at the same place."""
        self._exchange()

    def begin(self, ticket: Ticket) -> Share:
        """Start to train on a batch that was drawn ahead, in the order of the drawing.

        Args:
            ticket: As `R8Scheduler.draw_ahead` gave it.
        """
        ticket = self.r8.begin(ticket, held_back=len(self._held))
        weights = None if ticket.weights is None else self.slice_of(ticket.weights)
        return Share(self.slice_of(ticket.indices), ticket.lr, weights, ticket)

    def report(
        self,
        ticket: Ticket,
        loss: Any,
        *,
        part_size: int | None = None,
        grad_norm: float | None = None,
        skipped: bool = False,
    ) -> Outcome:
        """Note the losses of this rank's slice; exchange them when it is time.

        Args:
            ticket: Of the batch that `begin` gave last.
            loss: As for `R8Scheduler.report`, but of the slice: its mean, float[B / size] of its samples, or of its
                parts.
            part_size: Samples in a part, a divisor of the slice.
            grad_norm: As there; the largest of all ranks counts.
            skipped: As there; a step that is skipped on one rank is so for all.

        Returns:
            The same on every rank: pending, until losses are exchanged; then false if this batch's loss is refused,
            or if that of one before was and the model has been put back. Then skip ``backward()`` and ``step()``, as
            all ranks do.

        Raises:
            ValueError: the loss is of another length or kind than it must be. Nothing was changed.
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        share = -(-len(ticket.indices) // self.ranks.size)
        self._letters.write(len(self._held), loss, share, part_size, table=self.r8.table)
        self._letters.write_step(len(self._held), grad_norm, skipped)
        self._held.append(ticket)
        self._drawn = zlib.crc32(ticket.indices.data, self._drawn)
        if self.held_back < self._every and not self._is_last:
            return Outcome(Verdict.PENDING, ticket.lr, None)
        return self._exchange()

    @property
    def _is_last(self) -> bool:
        """Whether nothing comes before the next epoch, or the end."""
        step = self.r8.global_step + self.held_back
        return not step % self.r8.steps_per_epoch or step == self.r8.total_steps

    def settle(self) -> None:
        """Exchange what is held back, if anything is; on all ranks at the same place."""
        if self._held:
            self._exchange()

    def _exchange(self) -> Outcome:
        """Exchange losses and everything else, and report."""
        held = self._held
        self._write_head()
        letters = self.ranks.gather(self._letters.own)[:, 0]
        self.num_exchanges += 1
        self._check(letters)
        self._clock.now = float(letters["clock"][0])
        self._every = int(letters["every"][0])
        self._requests.agree(letters["wished"].tolist())
        self._held = []
        return self._report_all(held, self._letters.read(letters, [len(ticket.indices) for ticket in held]))

    def _write_head(self) -> None:
        self._letters.write_head(
            num_held=self.held_back,
            step=self.r8.global_step + self.held_back,
            drawn=self._drawn,
            state=self._digest_if_due(),
            clock=self._clock.own(),
            every=self._next_every(),
            wished=self._requests.wished,
        )

    def _digest_if_due(self) -> int:
        """Of the state that the last exchange left; 0 if it is not its turn."""
        step = self.r8.global_step
        if self._num_checks and step - self._last_check < CHECK_STEPS:
            return 0
        self._last_check = step
        self._num_checks += 1
        return digest_of_state(self.r8, self._num_checks)

    def _next_every(self) -> int:
        """Steps to the next exchange, if this rank is the first."""
        began, self._began = self._began, time.perf_counter()
        if self._own_every or not self.held_back:
            return self._every
        step_seconds = (self._began - began) / self.held_back
        return int(min(MOST_HELD_BACK, max(1.0, EXCHANGE_SECONDS // max(step_seconds, 1e-9))))

    def _check(self, letters: NDArray[Any]) -> None:
        place = f"step {self.r8.global_step + self.held_back}"
        check_same("the step", letters["step"], f"all ranks must report the same steps, got {letters['step'].tolist()}")
        check_same(
            "the number of losses", letters["num_held"],
            f"all ranks must exchange losses together, got {letters['num_held'].tolist()} held back at {place}",
        )  # fmt: skip
        check_same("the kind of losses", letters["part_size"], f"all ranks must report one kind of loss at {place}")
        check_same("what was drawn", letters["drawn"], f"all ranks must draw the same batches before {place}")
        check_same("the table", letters["state"], f"the tables of all ranks must be equal before {place}")

    def _report_all(self, tickets: list[Ticket], losses: list[dict[str, Any]]) -> Outcome:
        r8 = self.r8
        outcome = Outcome(Verdict.PENDING, r8.lr, None)
        for number, (ticket, report) in enumerate(zip(tickets, losses, strict=True)):
            outcome = r8.report(ticket, **report)
            if outcome.rolled_back_to is not None:
                for later in tickets[number + 1 :]:
                    r8.discard(later)
                break
        return outcome
