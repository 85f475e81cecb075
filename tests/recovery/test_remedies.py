import json
import math
from types import SimpleNamespace

import pytest

from learnit_r8 import events
from learnit_r8.events.bus import Announcer
from learnit_r8.events.incident import MEANT, MOST_FINDINGS, NEVER_FINITE, Incident
from learnit_r8.recovery.cause import BAD_NOW, UNSEEN
from learnit_r8.recovery.experiment import Alarm, Case, Finding
from learnit_r8.recovery.progress import Progress
from learnit_r8.recovery.remedies import Remedies, diverged_text
from learnit_r8.recovery.state import IncidentLog
from learnit_r8.testing import record_events


def log_of(step, reason):
    log = IncidentLog(Announcer([], lambda: (0, 0.0)))
    log.open(step, reason)
    return log


def text_of(incident, **more):
    given = {"refused": 400, "step": 500, "loss": math.nan, "lr": 0.1, "samples": "", "failures": []} | more
    return diverged_text(incident, **given)


@pytest.mark.parametrize(("count", "text"), [(1, "the refused batch was"), (3, "the 3 refused batches were")])
def test_without_a_finding_the_batches_were_to_blame(count, text):
    """An incident that ended without an experiment ended with a good batch, which clears the weights."""
    said = "or a transient fault (not tested), not the weights: the next one was good."
    assert Incident(5, "not finite", num_refused=count).conclusion == f"{text} to blame, {said}"
    assert (
        Incident(5, "spike", num_refused=count).conclusion
        == f"{text} to blame, not the weights: the next one was good."
    )


@pytest.mark.parametrize(
    ("cause", "is_doubtful"),
    [
        ("NaN first in `0` (forward), for row 3 of the batch, whose input holds NaN at [0] of x", False),
        ("NaN first in `0` (forward), for sample 3, whose input holds Inf", False),
        ("probably NaN first in `0` (forward), for row 3 of the batch, whose input holds NaN at [0]", True),
        ("NaN first in `0` (forward), for row 3 of the batch, whose input holds 1e+30 at [0]", True),
        ("NaN first in `0` (forward)", True),
        ("", True),
    ],
)
def test_an_input_that_holds_nan_is_no_transient_fault(cause, is_doubtful):
    """Once it was found in the input of the only refused batch, the conclusion leaves no doubt; of several it does."""
    one, two = (Incident(5, "not finite", num_refused=count, cause=cause).conclusion for count in (1, 2))
    assert ("transient" in one) == is_doubtful
    assert one.startswith("the refused batch was to blame")
    assert one.endswith("not the weights: the next one was good.")
    assert "transient" in two


def test_last_finding_is_the_conclusion():
    """The conclusion is what the last experiment found."""
    log = log_of(5, "spike")
    log.note(6, "the weights are healthy: as recorded")
    log.note(9, "the weights were damaged")

    assert log.current.conclusion == "the weights were damaged."


@pytest.mark.parametrize(("seen", "is_named"), [("all outputs are finite", True), (f"it is {BAD_NOW}", False)])
def test_a_batch_that_is_good_with_older_weights_is_not_to_blame(seen, is_named):
    """Though a test has found that the weights are healthy: one of the two is wrong, and nobody knows which."""
    heard = record_events()
    log = IncidentLog(Announcer([heard], lambda: (5, 0.0)))
    log.open(5, "spike")
    log.change(cause=f"{UNSEEN}{seen}")
    lineage = SimpleNamespace(
        progress=Progress(), updates=5, healthy_at=[], is_proving=False, is_looping=lambda step: False
    )
    refusals = SimpleNamespace(weights_are_healthy=lambda **how: None)
    live = SimpleNamespace(step=5, mended="", announcer=log.announcer)
    state = SimpleNamespace(incidents=log, lineage=lineage, refusals=refusals)
    remedies = Remedies(state, live, None, SimpleNamespace(calm=lambda: None), None)
    remedies.go_on(Case(Alarm.SPIKE), Finding("healthy", "the weights are healthy"))

    assert bool(heard.of(events.CauseFound)) is is_named


def test_findings_are_bounded():
    """An incident remembers its newest findings."""
    log = log_of(0, "spike")
    for step in range(MOST_FINDINGS + 5):
        log.note(step, "healthy")

    assert len(log.current.findings) == MOST_FINDINGS
    assert log.current.findings[0] == "step 5: healthy"


@pytest.mark.parametrize(
    ("about", "can_restore", "text"),
    [
        ({"num_restored": 1}, False, "The model was restored in between, and losses were refused again."),
        ({"findings": ("step 1: x",)}, False, "Nothing was restored: no state was found to be better."),
        ({}, True, "no state was found to be better"),
        ({}, False, "never restored: pass load_callback with state_callback, or call update_cpu_backup()."),
    ],
)
def test_error_says_what_was_restored(about, can_restore, text):
    """Whether the model was restored, and otherwise why not; who can restore is not told to pass callbacks."""
    assert text in text_of(Incident(1, "spike", **about), can_restore=can_restore)


def test_error_names_what_is_known():
    """The error names the loss, its rate, the suspects, the findings, what could not be loaded, and what to do."""
    log = log_of(1, "not finite")
    log.note(7, "healthy")
    text = text_of(log.current, samples="sample 3", failures=["backup of step 4: no"])

    assert text.startswith(
        "400 batches in a row were refused, the last loss (nan) at step 500 with lr=0.1, not finite."
    )
    assert all(
        each in text for each in ("Suspected: sample 3.", "step 7: healthy", "backup of step 4: no", NEVER_FINITE)
    )
    assert MEANT in text_of(Incident(1, "spike"))


def test_log_tells_of_an_incident_once():
    """An incident is told when it ends, once; what is noted without one is dropped, but restores are counted."""
    heard = record_events()
    log = IncidentLog(Announcer([heard], lambda: (0, 0.0)))
    log.note(1, "nothing")
    log.note_restore()
    log.note_probe(leaves_out=True)
    incident = log.open(2, "spike")
    assert log.open(3, "raised") == incident
    log.note_probe(leaves_out=True)
    log.note_probe(leaves_out=False)
    log.note_restore()
    incident = log.current
    log.end()
    log.end()

    assert (log.num_restored, log.num_probes, incident.num_probes, incident.num_restored) == (2, 3, 2, 1)
    [ended] = heard.of(events.IncidentEnded)
    assert ended.text.endswith("A test of the weights took the place of one batch.")


def test_incident_under_way_is_saved_whole():
    """What a checkpoint holds of an incident comes back as it was."""
    log = log_of(3, "spike")
    log.change(num_refused=2, cause="layer 1", is_lasting=True, held_from_start=0.5)
    log.note_probe(leaves_out=True)
    log.note_restore()
    log.note(7, "healthy")
    again = IncidentLog(Announcer([], lambda: (0, 0.0)))
    again.load_state_dict(json.loads(json.dumps(log.state_dict())))

    assert again.current == log.current
