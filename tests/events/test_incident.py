"""The incidents of a run, folded from its events."""

import math

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.cli import main
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.watch import look
from learnit_r8.events.incident import ADVICE, MOST_INCIDENTS, MOST_TRIED, Incident, begun_by
from learnit_r8.recovery.cause import KINDS
from learnit_r8.recovery.record import FlightRecorder, incident_of, read_record
from learnit_r8.report import write_report
from tests.dashboard.state.told import start, steps
from tests.drive import make
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
    first, second = view.incidents

    assert (first.step, first.epoch, first.num_refused, first.num_restored) == (20, 2, 2, 2)
    assert (first.state, first.diagnosis) == ("over", "a rate that was too high")
    assert [step for step, _ in first.tried] == [20, 20, 21, 21, 90]
    assert (second.step, second.state, second.num_restored) == (200, "open", 0)


def test_damage_and_divergence():
    """Damage found at a backup begins an incident, too; giving up ends it."""
    view = told(events.DamageFound(30, 30.0, "layer.weight"), events.GaveUp(31, 31.0, "everything was tried"))
    (only,) = view.incidents

    assert (only.reason, only.state, only.diagnosis) == ("not finite: layer.weight", "gave up", "everything was tried")


def test_resume_forgets_later_incidents():
    """An incident after the checkpoint that a run goes on from did not happen."""
    view = told(refused(20), events.IncidentEnded(30, 30.0, "x"), refused(80), start(step=50, seconds=50.0))

    assert [incident.step for incident in view.incidents] == [20]


def test_flood_of_incidents_is_bounded():
    """However many incidents and tries there are, a bounded number is kept."""
    view = told()
    for step in range(10, 3000, 10):
        view.fold(refused(step))
        if step > 2000:
            continue
        view.fold(events.IncidentEnded(step, float(step), "x"))

    assert len(view.incidents) == MOST_INCIDENTS
    assert len(view.incidents[-1].tried) == MOST_TRIED


def test_page_tells_the_whole_incident():
    """The page of incidents shows the texts in full, what was found first, on a small screen too."""
    cause = "one loss was not finite, because of its batch or a passing fault, not of earlier weights" * 2
    view = told(refused(20, samples=(3, 5)), events.IncidentEnded(60, 60.0, cause))
    frame = screen(view, 60, 24, view="incidents")
    words = " ".join(" ".join(line.split()) for line in frame)

    assert cause in words
    assert "samples 3, 5" in words
    assert words.index("found") < words.index("tried")


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
    (only,) = fake_view().incidents

    assert (only.reason, only.num_restored, only.state) == ("spike", 1, "over")


def test_probes_are_told_and_counted():
    """A probe says whose weights it tested, with both losses; those of a rate that is tried are no incident."""
    heard = told(
        events.Probed(40, 40.0, 20, 0.012, 0.013, True, "wild"),
        events.Probed(60, 60.0, 50, 0.012, 0.013, True, "regress"),
        events.Probed(61, 61.0, 50, 0.013, 0.013, False, "regress"),
        events.IncidentEnded(61, 61.0, "the weights are healthy."),
    )
    (only,) = heard.incidents

    assert (only.step, only.reason, only.num_probes, only.state) == (60, "regress", 2, "over")
    assert only.tried[0][1] == "probe of step 50: loss 0.012, was 0.013 (present weights)"
    assert only.tried[1][1] == "probe of step 50: loss 0.013, was 0.013 (weights of a backup)"
    assert only.diagnosis == "the weights are healthy."


def test_command_page_and_screen_say_the_same_words(tmp_path, capsys):
    """What was refused, what it was and what was done: the record on the disk, the page and the screen agree."""
    model = {"w": np.zeros(1)}
    callbacks = {"state_callback": lambda: model, "load_callback": model.update}
    r8 = make(40, batch_size=4, num_epochs=8, run_dir=tmp_path / "run", **callbacks)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(np.ones(len(indices)) * (math.nan if r8.global_step in (33, 51) else 1.0))
    r8.close()
    view = look(tmp_path / "run").view
    folders = [tmp_path / "run" / "incidents" / str(number) for number in (1, 2)]
    recorded = [incident_of(read_record(folder)) for folder in folders]

    assert [each.what for each in recorded] == [each.what for each in view.incidents] == ["loss nan: not finite"] * 2
    assert [each.found for each in recorded] == [each.found for each in view.incidents]
    assert [each.done for each in recorded] == [each.done for each in view.incidents] == ["1 refused"] * 2
    main(["incidents", str(tmp_path / "run"), "2"])
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [f"step 52: {view.incidents[1].what}", f"found   {view.incidents[1].found}", "done    1 refused"]
    assert view.incidents[1].found in r8.summary()
    page = write_report(tmp_path / "run", tmp_path / "out.html").read_text()
    shown = " ".join(" ".join(line.split()) for line in screen(view, 100, 40, view="incidents"))
    assert all(each.found in page and each.found in shown for each in view.incidents[1:])


def test_many_probes_are_one_line_and_nothing_is_cut(tmp_path, capsys):
    """Forty probes in a row do not bury what was found; a long sentence comes whole through a pipe."""
    cause = "a cause " * 100
    heard = [events.DamageFound(5, 1.0, "layer")]
    heard += [events.Probed(5, 1.0, number, 1.0, 0.5, False, "spike") for number in range(40)]
    heard.append(events.IncidentEnded(6, 1.0, cause.strip()))
    recorder = FlightRecorder("names", tmp_path, "it")
    for event in heard:
        recorder(event)
    recorder.close()
    main(["incidents", str(tmp_path), "1"])
    lines = capsys.readouterr().out.splitlines()
    main(["incidents", str(tmp_path)])
    listed = capsys.readouterr().out

    assert f"found   {cause.strip()}" in lines
    assert any("40 probes; the last:" in line for line in lines)
    assert len(lines) < 14
    assert cause.strip() in listed


@pytest.mark.parametrize("fault", sorted(ADVICE))
def test_every_fault_has_advice(fault):
    """Whatever was found at fault, the incident says what to do."""
    begun = begun_by(refused(20)).after(events.CauseFound(20, 20.0, "x", fault, "", (), True))

    assert begun.advice == ADVICE[fault]
    assert fault in KINDS


def test_a_restore_that_the_run_ended_soon_after_is_told():
    """What was put back is known, and only that it held is not."""
    found = "step 3: the weights were damaged, restored to step 1, 2 batches back"
    incident = Incident(3, "not finite", num_refused=1, num_restored=1, findings=(found,))

    assert incident.conclusion_at_end == f"{found}; the run ended before enough good losses had proven that"
