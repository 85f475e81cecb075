"""What tables, tickets and suspects look like to a person."""

import html
import re
from dataclasses import replace

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.table.labels.suspects import Suspects


def trained():
    r8 = R8Scheduler(100, batch_size=10, num_epochs=1)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(1.0 + indices / 100)
    return r8


def suspects(count=60):
    some = np.arange(count)
    why = ("always high",) * count
    return Suspects(some, some.astype(np.float32), some / count, why, 0.05, (0.04, 0.06), "", num_judged=800)


def test_ticket_is_short():
    """One line, without the internals of the plan."""
    ticket = R8Scheduler(100, batch_size=10, num_epochs=1).draw()

    assert re.fullmatch(r"Ticket\(step 0, epoch 0, 10 samples: (\d+, ){4}\.\.\.; lr=0\.001\)", repr(ticket))


def test_parts_of_a_run_say_what_they_are():
    """What the losses of the table rest on, where the run stands; in a notebook the summary."""
    r8 = trained()

    assert repr(r8.table) == "SampleTable(100 samples, losses: exact)"
    assert repr(r8.pace).startswith("Pace(step 10 of 10, epoch 1, ")
    assert repr(r8.sentry).endswith(", 0 losses refused)")
    assert html.unescape(r8._repr_html_()) == f"<pre>{r8.summary()}</pre>"


def test_suspects_are_counted():
    assert repr(suspects()) == "Suspects(60 samples, 7.5% of those judged: 0, 1, 2, 3, 4, 5, 6, 7, ...)"
    assert "too few" in repr(replace(suspects(), reason="too few uses."))
