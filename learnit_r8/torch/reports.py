"""Reports: the way of losses from the training step to the scheduler, and of verdicts back to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..guard import Verdict
from ..ticket import Outcome, Ticket
from .desk import Desk
from .rates import FOREIGN, GroupRates
from .readback import Readback
from .sharing import Sharing

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class Sent(NamedTuple):
    """What values on their way belong to.

    Attributes:
        ticket: The batch, as its training began.
        num_samples: Samples of it that this process trained on.
        part_size: 1 where the values are losses of single samples, None for one mean over ``num_samples`` of them, else
            the samples in a part of which each value is a mean.
        extras: Names of the values behind the losses, of "grad_norm" and "skipped".
    """

    ticket: Ticket
    num_samples: int
    part_size: int | None
    extras: tuple[str, ...] = ()


def _with_extras(sent: Sent, values: torch.Tensor, **extras: torch.Tensor | None) -> tuple[Sent, torch.Tensor]:
    given = {name: value for name, value in extras.items() if value is not None}
    more = [value.detach().to(values).reshape(1) for value in given.values()]
    return sent._replace(extras=tuple(given)), torch.cat([values, *more])


class Reports:
    """Sends losses on their way, and answers for them when they have come.

    Args:
        r8: The scheduler.
        rates: Sets its rate on the optimizer; None if somebody else does.
        sharing: Which part of a batch is this process's.
        ahead: Batches that something between loader and training fetches in advance.

    Attributes:
        desk: The batches that are out.
        outcome: What became of the loss reported last.
        recorded: Losses that are noted and not sent yet.
        readback: Where losses are on their way; None before the first.
    """

    def __init__(self, r8: R8Scheduler, *, rates: GroupRates | None, sharing: Sharing, ahead: int) -> None:
        self.desk = Desk.of(r8)
        self.outcome = Outcome(Verdict.PENDING, r8.lr, None)
        self.recorded: tuple[Sent, torch.Tensor] | None = None
        self.readback: Readback | None = None
        self._r8, self._rates, self._sharing, self._ahead = r8, rates, sharing, ahead
        self._was_put_back = False

    @property
    def num_on_their_way(self) -> int:
        """Losses sent and not reported yet."""
        return 0 if self.readback is None else len(self.readback)

    def find(self, ticket: int | Ticket | None) -> Ticket:
        """The batch that losses are of.

        Raises:
            RuntimeError: it cannot be told which it is.
        """
        return ticket if isinstance(ticket, Ticket) else self.desk.find(ticket, ahead=self._ahead)

    def record(self, ticket: Ticket, values: torch.Tensor, *, count: int, part_size: int | None) -> Ticket:
        """Note the losses of a batch; `tell` sends them.

        Args:
            ticket: As `find` gave it.
            values: float32[P], the losses.
            count: Samples of it that this process trained on.
            part_size: As in `Sent`.

        Returns:
            The ticket as if it were drawn when the training on it began.
        """
        self.desk.take(ticket)
        begun = self._r8.begin(ticket, held_back=self.num_on_their_way, is_late=True)
        self.set_rates(begun.lr)
        self.recorded = Sent(begun, count, part_size), values
        return begun

    def tell(self, norm: torch.Tensor | None = None, skipped: torch.Tensor | None = None) -> Outcome:
        """Send what is recorded, and report what has come.

        Args:
            norm: 0-dim, that of the gradient, to be judged along with it.
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
        # The search for a rate must know each loss before the next rate.
        here = self.readback.drain() if self._r8.search.is_on else self.readback.ready()
        if here:
            self._hear(here)
        if self.num_on_their_way:
            # What has come was of batches before.
            self.outcome = Outcome(Verdict.PENDING, self.outcome.lr, None)
        return self.outcome

    def flush(self) -> None:
        """Report everything that is on its way, waiting for it."""
        self.tell()
        if self.readback is not None and len(self.readback):
            self._hear(self.readback.drain())

    def _hear(self, here: list[tuple[Sent, Any]]) -> None:
        for number, (sent, values) in enumerate(here):
            self._was_put_back = False
            try:
                self.outcome = self._report(sent, values)
            finally:
                if self._was_put_back:
                    self._discard([sent for sent, _ in here[number + 1 :]])
                    self.drop()
            if self._was_put_back:
                break

    def _report(self, sent: Sent, values: Any) -> Outcome:
        ticket = sent.ticket
        if not ticket.batch.is_out:
            # A state was loaded meanwhile, and its batch is not of this plan any more.
            return self.outcome
        extras: dict[str, Any] = {}
        if sent.extras:
            count = len(values) - len(sent.extras)
            extras = dict(zip(sent.extras, values[count:].tolist(), strict=True))
            extras["skipped"] = bool(extras.get("skipped", 0))
            values = values[:count]
        if sent.part_size is None:
            outcome = self._r8.report(ticket, float(values[0]), **extras)
        else:
            part_size = None if sent.part_size == 1 else sent.part_size
            outcome = self._r8.report(ticket, values, part_size=part_size, **extras)
        self._was_put_back |= outcome.rolled_back_to is not None
        return outcome

    def drop(self) -> None:
        """Discard what is on its way: the weights that those losses were computed with are gone."""
        if self._rates is not None:
            self._rates.forget()
        if self.readback is not None:
            self._discard(self.readback.clear())

    def _discard(self, sent: list[Sent]) -> None:
        for each in sent:
            self._r8.discard(each.ticket)

    def note_put_back(self) -> None:
        """Note that the model was put back, and the optimizer with its rates."""
        self._was_put_back = True
        if self._rates is not None:
            self._rates.forget()

    def forget(self) -> None:
        """Forget what is on its way: a state of the scheduler was loaded.

        Batches that a loader has fetched for the run before stay out with it: losses of them are passed over when they
        come, and not taken for those of batches drawn since.
        """
        self.recorded = None
        if self.readback is not None:
            self.readback.clear()

    def set_next_rates(self) -> None:
        """Set the optimizer's rates for the batch that comes next: a loop may step before it reports."""
        r8 = self._r8
        if self._rates is not None and not r8.search.is_on:
            self.set_rates(r8.lr_after(self.num_on_their_way))

    def set_rates(self, lr: float) -> None:
        """Set the optimizer's rates, if they are ours to set."""
        rates = self._rates
        if rates is None:
            return
        if rates.set(lr):
            self._r8.announcer.warn_once("foreign rate", FOREIGN)
        if rates.has_grown:
            # No backup of before can be put into the optimizer any more.
            rates.has_grown = False
            self._r8.safekeeping.look_at_weights()
