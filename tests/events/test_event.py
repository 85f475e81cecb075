"""The events of a small run."""

import dataclasses
import math

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.events import EVENTS
from tests.drive import INF, NAN, FakeClock, Weights, make, train
from tests.package_copy import copy_package, run_beside

ADDED = '''

@dataclass(frozen=True)
class Milestone(Event):
    """The run has come to a place that the user has named.

    Attributes:
        name: Its name.
    """

    name: str

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, f"has come to {self.name}")
'''

USED = """
from learnit_r8 import R8Scheduler, events
from learnit_r8.cli import main
from learnit_r8.journal.run import Run

r8 = R8Scheduler(8, batch_size=4, num_epochs=1, listeners=[print], run_dir="shown")
for indices, _ in r8.batch_iterator():
    r8.update_with_loss(indices + 1.0)
    r8.host.announcer.tell(events.Milestone, name="the top")
r8.close()
print([record.event for record in Run("shown").poll() if isinstance(record.event, events.Milestone)])
main(["report", "shown"])
with open("shown/report.html", encoding="utf-8") as page:
    print("has come to the top" in page.read())
"""


@pytest.mark.parametrize("kind", EVENTS.values())
def test_events_are_frozen(kind):
    """A listener cannot change an event for the next one."""
    event = kind(**{field.name: None for field in dataclasses.fields(kind)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 3


def test_events_of_a_small_run():
    """A run with one refused loss sends its start, backups, steps, refusal, epochs, metrics and end, in this order."""
    model, heard = Weights(), []
    r8 = make(
        8,
        num_epochs=2,
        state_callback=model.get,
        load_callback=model.load,
        backup_every=2,
        listeners=[heard.append],
        name="it",
    )
    train(r8, bad={2})
    r8.log(accuracy=0.5)
    r8.close()
    r8.close()

    assert [(type(event).__name__, event.step) for event in heard] == [
        ("RunStarted", 0),
        ("BackupTaken", 0),
        ("StepDone", 1),
        ("StepDone", 2),
        ("EpochDone", 2),
        ("BackupTaken", 2),
        ("BatchRefused", 3),
        ("IncidentEnded", 4),
        ("StepDone", 4),
        ("EpochDone", 4),
        ("BackupTaken", 4),
        ("MetricsLogged", 4),
        ("RunEnded", 4),
    ]


def test_fields_of_a_small_run():
    """Events carry the facts of the run: sizes, losses, rates, expected losses, sources."""
    clock, heard = FakeClock(), []
    model = Weights()
    r8 = make(
        4, batch_size=2, num_epochs=1.5, scheduler_mode="linear", warmup_proportion=0, initial_lr=0.3, name="it",
        state_callback=model.get, load_callback=model.load, backup_every=10, listeners=[heard.append], clock=clock,
    )  # fmt: skip
    for loss in (2.0, NAN, 1.0):
        ticket = r8.draw()
        clock.advance(1)
        r8.report(ticket, loss)

    assert dataclasses.replace(heard[0], settings={}, lr_plan=()) == events.RunStarted(
        0, 0.0, "it", 4, 2, 2, 3, None, "balanced"
    )
    assert heard[2].expected_loss != heard[2].expected_loss
    assert dataclasses.replace(heard[2], expected_loss=0.0, own_seconds=0.0) == events.StepDone(
        1, 1.0, 0, pytest.approx(1 / 3), 2.0, 0.0, 0.3, 2, False
    )
    assert heard[3] == events.EpochDone(2, 2.0, 0, pytest.approx(2 / 3), 2.0, pytest.approx(0.2), 2, 2.0)
    assert isinstance(heard[4], events.BatchRefused)
    assert math.isnan(heard[4].loss)
    assert dataclasses.replace(heard[4], loss=0.0) == events.BatchRefused(
        2, 2.0, 0, 0.0, pytest.approx(0.2), pytest.approx(0.1), 1, (), "not finite"
    )
    blamed = "the refused batch was to blame, or a transient fault (not tested), not the weights"
    assert heard[5] == events.IncidentEnded(3, 3.0, f"{blamed}: the next one was good.")


def test_refused_vector_names_its_samples():
    """A refused vector of losses names the samples that were not finite."""
    heard = []
    r8 = make(listeners=[heard.append])
    ticket = r8.draw()
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        r8.report(ticket, np.array([1.0, NAN, 2.0, INF]))
    refused = [event for event in heard if isinstance(event, events.BatchRefused)]

    assert refused[0].samples == (int(ticket.indices[1]), int(ticket.indices[3]))


def test_an_event_is_added_in_one_file(tmp_path):
    """Its class with its words: then listeners hear it, and journals and reports have it."""
    package = copy_package(tmp_path)
    module = package / "events" / "run.py"
    module.write_text(module.read_text(encoding="utf-8") + ADDED, encoding="utf-8")
    lines = run_beside(tmp_path, USED)

    heard = [line for line in lines if line.startswith("Milestone(")]
    assert [line.partition(", seconds")[0] for line in heard] == ["Milestone(step=1", "Milestone(step=2"]
    assert f"[{', '.join(heard)}]" in lines
    assert lines[-1] == "True"
