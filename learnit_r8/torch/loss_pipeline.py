"""The loss pipeline: brings losses from the training step to the scheduler, and verdicts back to the model."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..bridge.group_rates import FOREIGN, GroupRates
from ..bridge.host import expect_rivals
from ..bridge.prefetch import Prefetch
from ..engine.run import Trainer
from ..engine.turns import RunInterrupted
from ..guard.verdict import Verdict
from ..sources.ticket import Outcome, Ticket
from ..table.labels.predictions import NUM_ROWS
from .flight.hand import Hand
from .predictions import check_exchanged
from .readback import ALONE, Note, Readback, Sent, note_of

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..state.callbacks import Callbacks
    from .distributed.together import Gathered, Sharing
    from .state import ModelState
    from .stepper import SecondRun, Stepper


class Training(NamedTuple):
    """A model's training under a scheduler, as `attach` has put it together.

    Attributes:
        scheduler: The R8Scheduler.
        model: The model.
        optimizers: Those whose steps train it, that of `attach` first.
        state: The state of the training, which the scheduler may put back.
        stepper: Takes the steps of the first optimizer.
        rates: Sets the scheduler's rates on it; None if other code does.
        sharing: The processes that train together; selects this one's part of a batch.
        hand: Holds the batch in hand.
        ahead: Batches that something between loader and training fetches in advance.
        own: The user's own callbacks, which add to the state; None where there are none.
        second_run: Computes steps once more that are not finite; None where nothing steps the optimizer.
    """

    scheduler: R8Scheduler
    model: torch.nn.Module
    optimizers: list[Any]
    state: ModelState
    stepper: Stepper
    rates: GroupRates | None
    sharing: Sharing
    hand: Hand
    ahead: int = 0
    own: Callbacks | None = None
    second_run: SecondRun | None = None


NOT_OF_BATCHES = (
    "the loss of step {} is of no batch of adapter.batches(): epochs are not counted, no sample is known, and a "
    "resumed run does not find its place in the loader. Write adapter.batches() in place of the loader; for steps "
    "without one, attach None and iterate over adapter.steps()."
)


class LossPipeline(Trainer):
    """Sends losses on their way, and reports them when they have come; the `Trainer` of an adapter's batches.

    Args:
        batches: Holds the batches of the scheduler.
        training: What is trained.
        has_loader: Whether the user has a loader, where the batches are the user's own.

    Attributes:
        outcome: The outcome of the last report.
        recorded: Losses that are noted and not sent yet.
        reduced: Returns what was made of the losses noted last; None once it is gone.
        readback: Holds the losses on their way; None before the first that are not in main memory, or not all here.
        is_other: Whether batches of the user's own are of another loader than that of `attach`.
    """

    def __init__(self, batches: Prefetch, training: Training, *, has_loader: bool) -> None:
        r8, state, stepper, hand = training.scheduler, training.state, training.stepper, training.hand
        self._rates, self._sharing = training.rates, training.sharing
        self.outcome = Outcome(Verdict.PENDING, r8.lr, None)
        self.recorded: tuple[Sent, torch.Tensor] | None = None
        self._trained: torch.Tensor | None = None
        self.reduced: Callable[[], torch.Tensor | None] = lambda: None
        self.readback: Readback | Gathered | None = None
        self._r8, self._feed, self._has_loader = r8, r8.feed, has_loader
        self.is_other = False
        self._optimizer, self._num_optimizers = training.optimizers[0], len(training.optimizers)
        self._num_groups = len(self._optimizer.param_groups)
        self._own_optimizer = self._optimizer if r8.host.rates.are_own else None
        self._batches, self._stepper, self._state = batches, stepper, state
        self._num_loads, self._hand = state.num_loads, hand
        # Holds a batch that is handed out, until the next one.
        self.hand_out = hand.hold  # type: ignore[assignment, method-assign]
        stepper.note_run(r8)

    @property
    def num_on_their_way(self) -> int:
        """Losses sent and not reported yet."""
        return 0 if self.readback is None else len(self.readback)

    def record(
        self, ticket: Ticket, values: torch.Tensor, *, count: int, part_size: int | None, num_classes: int = 0
    ) -> None:
        """Note the losses of a batch; `tell` sends them.

        Args:
            ticket: The batch.
            values: float32[P], the losses; or 0-dim, their mean.
            count: Samples of it that this process trained on.
            part_size: As in `Sent`.
            num_classes: As in `Sent`.
        """
        if num_classes:
            check_exchanged(self._sharing.size, len(values) // (NUM_ROWS * count), num_classes)
        if self._own_optimizer is not None:
            # A tensor on a device is not read, as that would wait for it.
            rate = self._own_optimizer.param_groups[0]["lr"]
            if rate is not self._r8.host.rates.own and not getattr(rate, "is_cuda", False):
                self._r8.host.rates.tell(float(rate))
        # A batch of the user's own has begun as it was handed out, unless losses of others are on their way.
        if self._feed is None or self._rates is not None or not (self._sharing is ALONE and values.is_cpu):
            self._batches.take(ticket)
            ticket = self._r8.host.begin(ticket, held_back=self.num_on_their_way, is_late=True)
            self.set_rates(ticket.lr)
        self.recorded = Sent(ticket, count, part_size, num_classes=num_classes, held=self._hand.take(ticket)), values

    def record_own(self, losses: tuple[torch.Tensor, ...], ids: Any = None) -> Ticket | None:
        """Note the losses of the own batch in hand; see `Adapter.report`.

        Returns:
            The batch; None after the end, where nothing is noted.
        """
        ticket, count = self.take_own(ids), 0
        chunk: Any = None if ticket is None else ticket.chunk
        found: list[torch.Tensor] = []
        for loss in losses:
            if not (isinstance(loss, torch.Tensor) and loss.is_floating_point()):
                raise TypeError(f"loss must be a tensor of floats, got {loss!r}.")
            found.append(loss.detach())
        values = found[0]
        num_rows = 0 if chunk is None or chunk.members is None else chunk.members.num_rows
        if len(found) == 1 and values.ndim and values.numel() and len(values) == num_rows:
            count = num_rows
            values = values.reshape(count, -1).mean(1, dtype=torch.float32) if values.ndim > 1 else values
        else:
            if len(found) > 1:
                expect_rivals(self._r8, len(found), self._num_optimizers)
            values = functools.reduce(operator.add, [each.mean() if each.ndim else each for each in found])
        if ticket is not None:
            # A mean has no rows.
            if not count and len(losses) == 1 and self._feed is not None and losses[0].ndim:
                self._feed.note_rows(ticket, losses[0])
            self.record(ticket, values.float(), count=count or 1, part_size=1 if count else None)
        return ticket

    def judge_with(self, loss: torch.Tensor) -> None:
        """Have the loss that is trained on judged along with the losses that `tell` sends next; it may hold more."""
        if loss is self.reduced() and not loss.is_cpu:
            # One more number would have to be read.
            return
        loss = loss.detach().mean() if loss.ndim else loss.detach()
        # In main memory it can be read; from a device it comes with the others.
        self._trained = None if loss.is_cpu and math.isfinite(loss) else loss

    def tell(
        self, norm: torch.Tensor | None = None, skipped: torch.Tensor | None = None, again: torch.Tensor | None = None
    ) -> Outcome:
        """Send the recorded losses, and report those that have arrived.

        Args:
            norm: 0-dim, norm of the gradient, to be judged along with the loss.
            skipped: 0-dim, whether the optimizer's step was left out.
            again: 0-dim, the loss of the batch, computed once more, in place of values that are not finite.
        """
        if self.recorded is None:
            return self.outcome
        (sent, values), self.recorded = self.recorded, None
        trained, self._trained = self._trained, None
        if again is not None:
            values, trained = torch.where(torch.isfinite(values), values, again.to(values)), None
        if not (norm is None and skipped is None and trained is None):
            given = {"grad_norm": norm, "skipped": skipped, "trained": trained}
            more = {name: value for name, value in given.items() if value is not None}
            sent = sent._replace(extras=tuple(more))
            values = torch.cat([values.reshape(-1), *(each.detach().to(values).reshape(1) for each in more.values())])
        if self.readback is None and values.is_cpu and self._sharing is ALONE:
            # What is in main memory needs no way round.
            self._hear([(sent, values.numpy())])
            return self.outcome
        if self.readback is None:
            self.readback = self._sharing.readback(values.device)
        self.readback.put(sent, values.reshape(-1))
        # A search for a rate and an experiment must know each loss before the next batch.
        controller = self._r8.controller
        is_awaited = sent.ticket.epoch < 0 or controller.experiment.is_open
        here = self.readback.drain() if is_awaited else self.readback.ready()
        if here:
            self._hear(here)
            if controller.experiment.is_open and self.num_on_their_way:
                self._hear(self.readback.drain())
        if self.num_on_their_way:
            # The losses that have arrived belong to earlier batches.
            self.outcome = Outcome(Verdict.PENDING, self.outcome.lr, None)
        return self.outcome

    def settle(self) -> None:
        """Wait for all losses on their way, and report them."""
        self.tell()
        if self.readback is not None and len(self.readback):
            self._hear(self.readback.drain())

    def _hear(self, here: list[tuple[Sent, Any]]) -> None:
        """Report losses, up to one that puts the model back: the later ones are of weights that are gone."""
        hand = self._hand
        for number, (sent, values) in enumerate(here):
            if isinstance(values, Note) or sent.extras or sent.num_classes:
                arguments = (values if isinstance(values, Note) else note_of(sent, values)).arguments
            else:
                # Nearly always there is nothing but losses.
                losses = values.reshape(-1)
                arguments = {"loss": float(losses[0]) if sent.part_size is None else losses}
            num_loads, put_back_to = self._state.num_loads, None
            hand.reported = sent.held
            try:
                # If not, a state was loaded meanwhile, and the batch belongs to the plan before.
                if sent.ticket.is_out:
                    self.outcome = self._r8.report(sent.ticket, **arguments)
                if self.outcome:
                    hand.good = sent.held
                # What waits is of good batches alone if this one has added nothing: not so for losses that come late.
                elif not (self._stepper.adds_later and self.readback is None):
                    self._stepper.drop_update()
                put_back_to = self.outcome.rolled_back_to
            finally:
                is_put_back = put_back_to is not None or self._state.num_loads != num_loads
                if is_put_back:
                    self._discard([later for later, _ in here[number + 1 :]])
                    self.drop()
            if is_put_back:
                break

    # Batches of the user's own.

    @property
    def num_rows(self) -> int:
        """Rows of the own batch in hand, with one sample each; 0 where its samples are not known."""
        chunk: Any = None if self._feed is None or self._feed.source.open is None else self._feed.source.open.chunk
        members = None if chunk is None else chunk.members
        return 0 if members is None or members.counts is not None else members.num_rows

    def take_own(self, ids: Any = None) -> Ticket | None:
        """The own batch that a loss belongs to; None after the end."""
        feed = self._feed
        assert feed is not None
        ticket = feed.source.open
        if ticket is None:
            if self._has_loader and not (feed.has_asked or feed.source.iteration is not None or self._r8.is_over):
                self._r8.host.say_once("no batches", NOT_OF_BATCHES.format(self._r8.global_step))
            ticket = feed.take_step()
        if ids is not None and ticket is not None:
            ticket = feed.tell_ids(ticket, ids)
        feed.source.open = None
        return ticket

    def drop(self) -> None:
        """Discard the losses on their way: the weights that they were computed with are gone."""
        if self._rates is not None:
            self._rates.expect_any()
        if self.readback is not None:
            self._discard(self.readback.clear())

    def _discard(self, sent: list[Sent]) -> None:
        # Where a report was cut short, its own error says why: it names the rank that is lost.
        with contextlib.suppress(RunInterrupted):
            for each in sent:
                self._r8.host.discard(each.ticket)

    def forget(self) -> None:
        """Drop the losses on their way: a state of the scheduler was loaded.

        A loader keeps the batches that it has fetched before; their losses are ignored when they arrive, and not taken
        for losses of batches drawn since.
        """
        self.recorded = self._trained = None
        if self.readback is not None:
            self.readback.clear()

    def set_rates(self, lr: float | None = None) -> None:
        """Set the optimizer's rates, unless other code does.

        Args:
            lr: The rate; by default that of the batch that comes next: a loop may step before it reports.
        """
        rates, host = self._rates, self._r8.host
        # A batch of the search for a rate brings its own.
        if rates is None or (lr is None and host.rates.search is not None):
            return
        lr = host.rates.at(host.pace.step + self.num_on_their_way) if lr is None else lr
        if self._state.num_loads != self._num_loads:
            # The optimizer was put back with its rates.
            self._num_loads = self._state.num_loads
            rates.expect_any()
        if rates.set(lr):
            self._r8.host.say_once("foreign rate", FOREIGN)

    def between_steps(self) -> None:
        """Do what is due between two steps; a loader calls it whenever it asks for a batch."""
        stepper = self._stepper
        if not stepper.is_adding:
            stepper.is_adding = stepper.accumulate > 1
            before, self._num_groups = self._num_groups, len(self._optimizer.param_groups)
            if before != self._num_groups:
                # Earlier backups no longer fit the optimizer.
                self._r8.host.look_at_weights()
            num_loads = self._state.num_loads
            if self._sharing is ALONE:
                self._r8.host.between_steps()
            else:
                self._sharing.between_steps(self._r8, self.num_on_their_way)
            if self._state.num_loads != num_loads:
                self.drop()
        # A feed notes the start of each batch that it hands out.
        if self._feed is None and not self.num_on_their_way:
            self._r8.controller.note_start()
        if self._rates is not None:
            self.set_rates()

    def before_probe(self) -> None:
        """Forget the gradients that wait for others to be added."""
        self._stepper.drop_update()

    def before_iteration(self) -> None:
        """Report the losses on their way; at the border of an epoch, restore the saved random generators."""
        self.settle()
        # However few batches there were, the optimizer has taken its step at the end of the epoch.
        self._r8.host.backup.end_update()
        self._sharing.before_iteration()
        self.between_steps()
        if self._r8.pace.place % self._r8.steps_per_epoch == 0:
            self._state.resume_generators()

    def before_first_batch(self) -> None:
        """Restore random generators that were saved in mid-epoch, which is after the loader had set itself up."""
        self._state.resume_generators()
