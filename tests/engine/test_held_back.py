"""The engine's support for losses that an adapter reports some steps late."""

import numpy as np
import pytest

from learnit_r8 import Outcome
from learnit_r8.guard import Verdict
from tests.drive import Weights, make


def test_a_pending_loss_counts_until_it_is_judged():
    """A loop applies a step whose loss was not judged yet."""
    outcome = Outcome(Verdict.PENDING, 0.1, None)

    assert outcome


def test_a_late_report_has_the_rate_of_its_step():
    """A batch begun while reports are held back has the same step and rate as without."""
    prompt, late = make(num_epochs=4), make(num_epochs=4)
    for _ in range(3):
        prompt.report(prompt.host.begin(prompt.host.draw_ahead()), 1.0)
    for _ in range(3):
        late.host.draw_ahead()

    ticket = late.host.begin(late.host.draw_ahead(), held_back=3)

    assert (ticket.step, ticket.lr) == (3, prompt.host.begin(prompt.host.draw_ahead()).lr)


def test_nothing_is_done_between_steps_while_reports_are_held_back():
    """A backup waits until model and scheduler are consistent."""
    weights = Weights()
    r8 = make(num_epochs=4, state_callback=weights.get, load_callback=weights.load)
    r8.host.begin(r8.host.draw_ahead(), held_back=1)

    assert r8.host.persistence.backup.is_empty


def test_a_discarded_batch_is_a_step_of_which_nothing_is_learned():
    """Training that was undone before it was judged counts as a step, but not as a use of its samples."""
    r8 = make(8, num_epochs=1)
    first, second = r8.draw(), r8.host.draw_ahead()
    r8.report(first, 1.0)
    r8.host.discard(second)

    assert r8.global_step == 2
    assert r8.pace.is_finished
    np.testing.assert_array_equal(r8.table.usage_count[second.indices], 0)


def test_a_batch_is_discarded_once():
    """Discarding a batch that is not open does nothing."""
    r8 = make()
    ticket = r8.draw()
    r8.report(ticket, 1.0)
    r8.host.discard(ticket)

    assert r8.global_step == 1


class Late:
    """An adapter that reports the loss of a batch when it is asked for."""

    def __init__(self, r8, ticket):
        self.r8, self.ticket = r8, ticket

    def settle(self):
        if self.ticket.is_out:
            self.r8.report(self.ticket, 1.0)


@pytest.mark.parametrize("end", ["epoch", "checkpoint", "close"])
def test_held_back_losses_are_reported_in_time(end, tmp_path):
    """The end of an epoch, a checkpoint and the end of the run wait for losses held back."""
    r8 = make(4, num_epochs=1, checkpoint_dir=tmp_path)
    ticket = r8.host.begin(r8.host.draw_ahead())
    r8.host.join(Late(r8, ticket))
    {"epoch": lambda: list(r8.epoch_iterator()), "checkpoint": r8.save_checkpoint, "close": r8.close}[end]()

    assert r8.global_step == 1
