"""Groups of samples: however many there are, views and loggers have the mean loss of each."""

import json
import warnings

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events, loggers
from learnit_r8.cli import main
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.watch import look
from learnit_r8.report import write_report
from learnit_r8.testing import FakeClock, record_events
from tests.dashboard.state.told import start, steps

SOURCES = np.arange(1200) % 157
NAMES = np.array([f"source {number}" for number in range(157)])


def trained(num_epochs=3, *, groups=NAMES[SOURCES], batch_size=32, batches=None, until=None, **more):
    """A run whose group 7 gets worse in the second half, and whose others fall, the last one slowest."""
    r8 = R8Scheduler(1200, batch_size=batch_size, num_epochs=num_epochs, groups=groups, **more)
    with r8:
        for _ in r8.epoch_iterator():
            for batch, _ in r8.batch_iterator():
                if batches is not None:
                    batches.append(batch.tolist())
                share = r8.current_epoch / num_epochs
                losses = (1 + SOURCES[batch] / 157) * np.exp(-2 * share)
                r8.update_with_loss(losses + (SOURCES[batch] == 7) * 4 * max(0.0, share - 0.5))
                if r8.global_step == until:
                    return r8
    return r8


def test_from_batch_size_on_balance_ignores_them_and_says_so_once():
    """With B groups or more the batches are those without groups, to the bit; a notice says so once, no warning."""
    drawn, plain, heard = [], [], record_events()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(batches=drawn, listeners=[heard])
    trained(batches=plain, groups=None)
    said = [event.text for event in heard.of(events.Notice)]

    assert drawn == plain
    assert said == [
        "157 groups are reported, but batches of 32 samples are not balanced over them: that takes fewer groups than "
        "samples in a batch."
    ]
    for groups, differs in ((SOURCES % 32, False), (SOURCES % 31, True)):
        some, heard = [], record_events()
        trained(batches=some, groups=groups, listeners=[heard])
        assert (some != plain) == differs == (not heard.of(events.Notice))


class Numbers(loggers.Logger):
    """A logger that keeps events, and the newest of each number."""

    def __init__(self):
        super().__init__()
        self.heard, self.numbers = [], {}

    def write(self, event):
        self.heard.append(event)
        self.numbers |= loggers.numbers_of(event)[1]


def test_every_view_has_them_the_rising_and_the_worst_first(tmp_path, capsys):
    """Screen, report, loggers and status --json show the same means, in one order."""
    folder = tmp_path / "run"
    logger = Numbers()
    r8 = trained(8, run_dir=folder, listeners=[logger])
    means = {group.label: group.mean for group in r8.table.groups()}
    capsys.readouterr()
    main(["status", str(folder), "--json"])
    groups = json.loads(capsys.readouterr().out)["groups"]
    view = look(folder).view
    screen = ["".join(span.text for span in line) for line in render(view, UiState(view="data"), 80, 24)]
    page = write_report(folder, tmp_path / "page.html").read_text()

    assert [groups[0]["name"], groups[1]["name"], groups[-1]["name"]] == ["source 7", "source 156", "source 0"]
    assert groups[0]["rise"] > 0 == groups[1]["rise"]
    assert len(groups) == 157
    for group in groups:
        assert group["loss"] == pytest.approx(means[group["name"]], rel=1e-4)
        assert logger.numbers[f"r8/group/{group['name']}"] == pytest.approx(means[group["name"]], rel=1e-4)
        assert group["samples"] in (7, 8)
    assert len(view.groups["source 7"].points) == 8
    first = next(place for place, line in enumerate(screen) if "of 157, rising and worst first" in line)
    assert screen[first + 2].split()[:3] == ["source", "7", "8"]
    assert "+" in screen[first + 2]
    assert screen[first + 3].startswith(" source 156 ")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    (section,) = [each for each in data["sections"] if each["title"] == "Groups"]
    assert [row[0] for row in section["blocks"][1]["table"]["rows"]][:2] == ["source 7", "source 156"]
    assert len(section["blocks"][1]["table"]["rows"]) == 157
    assert section["blocks"][0]["chart"]["series"][0]["name"] == "source 7"


def test_a_long_epoch_tells_them_every_thirty_seconds():
    """Within an epoch they come every 30 s of training, and to a logger, which wants no surveys, too."""
    clock, rows, logger = FakeClock(), record_events(), Numbers()
    with R8Scheduler(
        1200, batch_size=10, num_epochs=1, groups=SOURCES, listeners=[logger, rows], clock=clock,
    ) as r8:  # fmt: skip
        for batch, _ in r8.batch_iterator():
            clock.advance(1.0)
            r8.update_with_loss(batch * 1.0)

    assert [event.step for event in rows.of(events.GroupsMeasured)] == [30, 60, 90, 120]
    assert not rows.of(events.SamplesSurveyed)
    assert sum(isinstance(event, events.GroupsMeasured) for event in logger.heard) == 4


def test_a_resumed_run_goes_on_with_their_curves(tmp_path):
    """What was told after the checkpoint is told anew: each step has one point."""
    settings = {"run_dir": tmp_path / "run", "checkpoint_dir": tmp_path / "saved", "checkpoint_every": 20}
    r8 = trained(4, until=50, **settings)
    before = len(look(tmp_path / "run").view.groups["source 0"].points)
    r8 = trained(4, resume="auto", **settings)
    view = look(tmp_path / "run").view
    told = [point.step for point in view.groups["source 0"].points]

    assert before == 2
    assert told == sorted(set(told)) == [38, 50, 76, 114, 152] or told == [38, 76, 114, 152]
    assert len(view.groups) == 157 == len(r8.table.groups())


def test_a_view_holds_a_bounded_number_and_bears_any_name():
    """Of more than 256 groups the largest are told; names with control sequences reach no terminal."""
    heard = record_events()
    sizes = np.repeat(np.arange(400), 1 + np.arange(400) % 5)
    with R8Scheduler(len(sizes), batch_size=64, num_epochs=1, groups=sizes, listeners=[heard]) as r8:
        for batch, _ in r8.batch_iterator():
            r8.update_with_loss(batch * 1.0)
    told = heard.of(events.GroupsMeasured)[-1]
    assert (len(told.names), told.num_groups) == (256, 400)
    assert (max(told.counts), min(told.counts), told.counts.count(3)) == (5, 2, 80)

    from learnit_r8.dashboard.state.view import View

    view = View()
    view.fold(start())
    view.fold(steps(10, 1.0))
    names = ("\x1b[2Jred", "", "x" * 300, "nan")
    view.fold(events.GroupsMeasured(10, 1.0, 0, "exact", names, (1, 2, 3, 4), (1.0, -2.0, 1e30, float("nan")), 4))
    for size in ((30, 6), (80, 24), (200, 60)):
        text = "".join(span.text for line in render(view, UiState(view="data"), *size) for span in line)
        assert "\x1b" not in text
    assert [group.num_samples for group in view.ranked_groups()] == [3, 1, 2]
