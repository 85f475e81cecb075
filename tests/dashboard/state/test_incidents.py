"""The incidents of a run, folded from its events."""

import math

from learnit_r8 import events
from learnit_r8.dashboard.state.incidents import MOST_INCIDENTS, MOST_TRIED
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps
from tests.screen_common import fake_view, screen


def refused(step, tries=1, samples=()):
    return events.BatchRefused(step, float(step), step // 10, math.nan, 0.1, 0.05, tries, samples, "not finite")


def told(*happened):
    view = View()
    for event in (start(), steps(1, 1.0), *happened):
        view.fold(event)
    return view


def test_incident_holds_what_was_tried_and_found():
    """Refusals and restores until the end are one incident; the next one is another."""
    view = told(
        refused(20), events.RolledBack(20, 20.0, 10, "backup"),
        refused(21, 2), events.RolledBack(21, 21.0, 4, "backup"),
        events.IncidentEnded(60, 60.0, "a rate that was too high"), events.LrRestored(90, 90.0), refused(200),
    )  # fmt: skip
    first, second = view.incidents.incidents

    assert (first.step, first.epoch, first.num_refused, first.num_restored) == (20, 2, 2, 2)
    assert (first.state, first.diagnosis) == ("over", "a rate that was too high")
    assert [step for step, _ in first.tried] == [20, 20, 21, 21, 90]
    assert (second.step, second.state, second.num_restored) == (200, "open", 0)


def test_damage_and_divergence():
    """Damage found at a backup begins an incident, too; giving up ends it."""
    view = told(events.DamageFound(30, 30.0, "layer.weight"), events.GaveUp(31, 31.0, "everything was tried", None))
    (only,) = view.incidents.incidents

    assert (only.reason, only.state, only.diagnosis) == ("not finite: layer.weight", "gave up", "everything was tried")


def test_resume_forgets_later_incidents():
    """An incident after the checkpoint that a run goes on from did not happen."""
    view = told(refused(20), events.IncidentEnded(30, 30.0, "x"), refused(80), start(step=50, seconds=50.0))

    assert [incident.step for incident in view.incidents.incidents] == [20]


def test_flood_of_incidents_is_bounded():
    """However many incidents and tries there are, a bounded number is kept."""
    view = told()
    for step in range(10, 3000, 10):
        view.fold(refused(step))
        if step > 2000:
            continue
        view.fold(events.IncidentEnded(step, float(step), "x"))

    assert len(view.incidents.incidents) == MOST_INCIDENTS
    assert len(view.incidents.incidents[-1].tried) == MOST_TRIED


def test_page_tells_the_whole_incident():
    """The page of incidents shows the texts in full, the diagnosis first, on a small screen too."""
    cause = "one loss was not finite, because of its batch or a passing fault, not of earlier weights" * 2
    view = told(refused(20, samples=(3, 5)), events.IncidentEnded(60, 60.0, cause))
    frame = screen(view, 60, 24, view="incidents")
    words = " ".join(" ".join(line.split()) for line in frame)

    assert cause in words
    assert "samples 3, 5" in words
    assert words.index("diagnosis") < words.index("tried")


def test_earlier_incident_is_chosen_with_the_arrows():
    """Down goes back to the incident before."""
    view = told(refused(20), events.IncidentEnded(30, 30.0, "the first"), refused(80))

    assert any("not settled yet" in line for line in screen(view, 80, 24, view="incidents"))
    assert any("the first" in line for line in screen(view, 80, 24, view="incidents", selected=1))


def test_run_without_incidents_says_so():
    """Without an incident the page says so."""
    assert any("no loss was refused" in line for line in screen(told(), 80, 24, view="incidents"))


def test_spike_of_the_made_up_run():
    """The made-up run has one incident, with its restore."""
    (only,) = fake_view().incidents.incidents

    assert (only.reason, only.num_restored, only.state) == ("spike", 1, "over")


def test_probes_are_told_and_counted():
    """A probe says whose weights it tested, with both losses; those of a rate that is tried are no incident."""
    heard = told(
        events.Probed(40, 40.0, 20, 0.012, 0.013, True, "wild"),
        events.Probed(60, 60.0, 50, 0.012, 0.013, True, "regress"),
        events.Probed(61, 61.0, 50, 0.013, 0.013, False, "regress"),
        events.IncidentEnded(61, 61.0, "the weights are healthy."),
    )
    (only,) = heard.incidents.incidents

    assert (only.step, only.reason, only.num_probes, only.state) == (60, "regress", 2, "over")
    assert only.tried[0][1] == "probe of step 50: loss 0.012, was 0.013 (present weights)"
    assert only.tried[1][1] == "probe of step 50: loss 0.013, was 0.013 (weights of a backup)"
    assert only.diagnosis == "the weights are healthy."
