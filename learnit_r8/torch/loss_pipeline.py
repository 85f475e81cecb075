"""The loss pipeline: brings losses from the training step to the scheduler, and verdicts back to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..bridge.group_rates import FOREIGN, GroupRates
from ..bridge.prefetch import Prefetch
from ..guard.verdict import Verdict
from ..sampling.ticket import Outcome, Ticket
from ..table.labels.predictions import NUM_ROWS, Predictions
from .batches.sampler_iterator import find_batch
from .flight.hand import Hand, Held
from .predictions import check_exchanged
from .readback import Readback

if TYPE_CHECKING:
    from ..checkpoint.callbacks import Callbacks
    from ..scheduler import R8Scheduler
    from .distributed.together import Sharing
    from .flight.second_run import SecondRun
    from .state import ModelState
    from .stepper import Stepper


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


class Sent(NamedTuple):
    """The batch that values on their way belong to.

    Attributes:
        ticket: The batch, as its training began.
        num_samples: Samples of the batch that this process trained on.
        part_size: 1 where the values are losses of single samples, None for one mean over ``num_samples`` of them, else
            the samples in a part of which each value is a mean.
        extras: Names of the values behind the losses, of "grad_norm" and "skipped".
        held: The batch itself, so that it can run again.
        num_classes: C, where three more values of each label follow the losses, as `predictions.packed` makes them; 0
            where there are losses only.
    """

    ticket: Ticket
    num_samples: int
    part_size: int | None
    extras: tuple[str, ...] = ()
    num_classes: int = 0
    held: Held | None = None


def _with_extras(sent: Sent, values: torch.Tensor, **extras: torch.Tensor | None) -> tuple[Sent, torch.Tensor]:
    given = {name: value for name, value in extras.items() if value is not None}
    more = [value.detach().to(values).reshape(1) for value in given.values()]
    return sent._replace(extras=tuple(given)), torch.cat([values, *more])


class LossPipeline:
    """Sends losses on their way, and reports them when they have come; the `Trainer` of an adapter's batches.

    Args:
        batches: Holds the batches of the scheduler.
        training: What is trained.

    Attributes:
        outcome: The outcome of the last report.
        recorded: Losses that are noted and not sent yet.
        readback: Holds the losses on their way; None before the first.
    """

    def __init__(self, batches: Prefetch, training: Training) -> None:
        r8, state, stepper, hand = training.scheduler, training.state, training.stepper, training.hand
        self._rates, self._sharing, self._ahead = training.rates, training.sharing, training.ahead
        self.outcome = Outcome(Verdict.PENDING, r8.lr, None)
        self.recorded: tuple[Sent, torch.Tensor] | None = None
        self.readback: Readback | None = None
        self._r8, self._report_now = r8, r8.report
        self._own_optimizer = training.optimizers[0] if r8.host.rates.are_own else None
        self._batches, self._stepper, self._state = batches, stepper, state
        self._num_loads, self._hand = state.num_loads, hand
        # Holds a batch that is handed out, until the next one.
        self.hand_out = hand.hold
        # A feed notes the start of each batch that it hands out.
        self._notes_start = r8.feed is None
        stepper.note_run(r8)

    @property
    def num_on_their_way(self) -> int:
        """Losses sent and not reported yet."""
        return 0 if self.readback is None else len(self.readback)

    def find(self, ticket: int | Ticket | None) -> Ticket:
        """The batch that losses are of.

        Raises:
            RuntimeError: it is not clear which batch it is.
        """
        return ticket if isinstance(ticket, Ticket) else find_batch(self._batches, ticket, ahead=self._ahead)

    def check_used(self) -> None:
        """Raise RuntimeError if the losses noted last were neither reported nor skipped."""
        recorded = self.recorded
        if recorded is not None:
            raise RuntimeError(
                f"the losses of step {recorded[0].ticket.step} must be used before the next ones are noted, got loss() "
                "again: call step(loss) after each loss(), or report() in a loop with its own backward() and "
                "optimizer.step(), or skip()."
            )

    def count(self, ticket: Ticket) -> int:
        """Samples of a batch that this process trains on."""
        return len(self._sharing.part(ticket.indices))

    def record(
        self, ticket: Ticket, values: torch.Tensor, *, count: int, part_size: int | None, num_classes: int = 0
    ) -> Ticket:
        """Note the losses of a batch; `tell` sends them.

        Args:
            ticket: As `find` gave it.
            values: float32[P], the losses.
            count: Samples of it that this process trained on.
            part_size: As in `Sent`.
            num_classes: As in `Sent`.

        Returns:
            The ticket as if it were drawn when the training on it began.
        """
        if num_classes:
            check_exchanged(self._sharing.size, len(values) // (NUM_ROWS * count), num_classes)
        self._batches.take(ticket)
        self._note_rate()
        begun = self._r8.host.begin(ticket, held_back=self.num_on_their_way, is_late=True)
        self.set_rates(begun.lr)
        held = self._hand.take(begun)
        self.recorded = Sent(begun, count, part_size, num_classes=num_classes, held=held), values
        return begun

    def tell(self, norm: torch.Tensor | None = None, skipped: torch.Tensor | None = None) -> Outcome:
        """Send the recorded losses, and report those that have arrived.

        Args:
            norm: 0-dim, norm of the gradient, to be judged along with the loss.
            skipped: 0-dim, whether the optimizer's step was left out.
        """
        if self.recorded is None:
            return self.outcome
        (sent, values), self.recorded = self.recorded, None
        if not (norm is None and skipped is None):
            sent, values = _with_extras(sent, values, grad_norm=norm, skipped=skipped)
        if self.readback is None:
            self.readback = self._sharing.readback(values.device)
        self.readback.put(sent, values)
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

    def tell_now(self, ticket: Ticket, loss: Any) -> Outcome:
        """Report a loss that is in main memory, in a process that trains alone with rates of the user's own.

        Args:
            ticket: The batch.
            loss: A number, or float32[P].
        """
        num_loads, hand = self._state.num_loads, self._hand
        held = hand.reported = hand.take(ticket)
        self._note_rate()
        outcome = self.outcome = self._report_now(ticket, loss)
        # Without the call of its truth.
        if outcome.verdict is Verdict.GOOD and outcome.rolled_back_to is None:
            hand.good = held
        else:
            self._stepper.drop_update()
            if outcome.rolled_back_to is not None or self._state.num_loads != num_loads:
                self.drop()
        return outcome

    def _note_rate(self) -> None:
        """Tell views and guard the rate that the user has set."""
        if self._own_optimizer is None:
            return
        rate = self._own_optimizer.param_groups[0]["lr"]
        if rate is self._r8.host.rates.own:
            return
        # A tensor on a device is not read, as that would wait for it.
        if type(rate) is float or not getattr(rate, "is_cuda", False):
            self._r8.host.rates.tell(float(rate))

    def load_scheduler(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the scheduler alone; losses on their way are dropped.

        Raises:
            ValueError: it is of another run. Then nothing was changed.
        """
        if self._rates is not None:
            # Whoever loads the scheduler has loaded the optimizer too, with its rates.
            self._rates.expect_any()
        self._r8.load_state_dict(state)
        self.set_rates(self._r8.lr)

    def settle(self) -> None:
        """Wait for all losses on their way, and report them."""
        self.tell()
        if self.readback is not None and len(self.readback):
            self._hear(self.readback.drain())

    def _hear(self, here: list[tuple[Sent, Any]]) -> None:
        for number, (sent, values) in enumerate(here):
            num_loads, put_back_to = self._state.num_loads, None
            try:
                self._hand.reported = sent.held
                self.outcome = self._report(sent, values)
                if self.outcome:
                    self._hand.good = sent.held
                if not self.outcome:
                    self._stepper.drop_update()
                put_back_to = self.outcome.rolled_back_to
            finally:
                is_put_back = put_back_to is not None or self._state.num_loads != num_loads
                if is_put_back:
                    self._discard([sent for sent, _ in here[number + 1 :]])
                    self.drop()
            if is_put_back:
                break

    def _report(self, sent: Sent, values: Any) -> Outcome:
        ticket = sent.ticket
        if not ticket.is_out:
            # A state was loaded meanwhile, and the batch belongs to the plan before.
            return self.outcome
        extras: dict[str, Any] = {}
        if sent.extras:
            count = len(values) - len(sent.extras)
            extras = dict(zip(sent.extras, values[count:].tolist(), strict=True))
            extras["skipped"] = bool(extras.get("skipped", 0))
            values = values[:count]
        if sent.num_classes:
            # Those of several ranks come as one batch.
            count = sent.num_samples if self._sharing.size == 1 else len(ticket.indices)
            values, extras["predictions"] = Predictions.unpack(values.reshape(-1, count), sent.num_classes)
        if sent.part_size is None:
            return self._r8.report(ticket, float(values[0]), **extras)
        part_size = None if sent.part_size == 1 else sent.part_size
        return self._r8.report(ticket, values, part_size=part_size, **extras)

    def skip(self) -> bool:
        """Give up the batch whose losses are recorded; it comes once more. Returns whether there was one."""
        if self.recorded is None:
            return False
        (sent, _), self.recorded = self.recorded, None
        self._r8.give_up(sent.ticket, on_purpose=True)
        return True

    def drop(self) -> None:
        """Discard the losses on their way: the weights that they were computed with are gone."""
        if self._rates is not None:
            self._rates.expect_any()
        if self.readback is not None:
            self._discard(self.readback.clear())

    def _discard(self, sent: list[Sent]) -> None:
        for each in sent:
            self._r8.host.discard(each.ticket)

    def forget(self) -> None:
        """Drop the losses on their way: a state of the scheduler was loaded.

        A loader keeps the batches that it has fetched before; their losses are ignored when they arrive, and not taken
        for losses of batches drawn since.
        """
        self.recorded = None
        if self.readback is not None:
            self.readback.clear()

    def set_next_rates(self) -> None:
        """Set the optimizer's rates for the batch that comes next: a loop may step before it reports."""
        lr = None if self._rates is None else self._r8.host.rates.after(self.num_on_their_way)
        if lr is not None:
            self.set_rates(lr)

    def set_rates(self, lr: float) -> None:
        """Set the optimizer's rates, unless other code does."""
        rates = self._rates
        if rates is None:
            return
        if self._state.num_loads != self._num_loads:
            # The optimizer was put back with its rates.
            self._num_loads = self._state.num_loads
            rates.expect_any()
        if rates.set(lr):
            self._r8.host.say_once("foreign rate", FOREIGN)

    def between_steps(self) -> None:
        """Do what is due between two steps; a loader calls it whenever it asks for a batch."""
        if self._stepper.ask_between_steps():
            if self._stepper.has_grown():
                # Earlier backups no longer fit the optimizer.
                self._r8.host.look_at_weights()
            num_loads = self._state.num_loads
            readback = self.readback
            self._sharing.between_steps(self._r8, 0 if readback is None else len(readback))
            if self._state.num_loads != num_loads:
                self.drop()
        if self._notes_start and not self.num_on_their_way:
            self._r8.controller.note_start()
        if self._rates is not None:
            self.set_next_rates()

    def before_probe(self) -> None:
        """Forget the gradients that wait for others to be added."""
        self._stepper.drop_update()

    def is_probe(self, ticket: Ticket) -> bool:
        """Whether a batch tests weights, which must not change before its loss is known."""
        return self._r8.controller.experiment.is_probe(ticket)

    def before_iteration(self) -> None:
        """Report the losses on their way; at the border of an epoch, restore the saved random generators."""
        self.settle()
        # However few batches there were, the optimizer has taken its step at the end of the epoch.
        self._r8.controller.end_update()
        self._sharing.before_iteration()
        self.between_steps()
        if self._r8.pace.place % self._r8.steps_per_epoch == 0:
            self._state.resume_generators()

    def before_first_batch(self) -> None:
        """Restore random generators that were saved in mid-epoch, which is after the loader had set itself up."""
        self._state.resume_generators()
