import io
import re
import subprocess
import sys
import unicodedata

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.plain import PlainLog
from tests.drive import INF, NAN, FakeClock, make, train

STARTED = events.RunStarted(0, 0.0, "digits", 1000, 32, 32, 320, None, "balanced")

SCRIPT = [
    (STARTED, "r8 digits: 1,000 samples in batches of 32, 320 steps"),
    (events.BackupTaken(0, 0.0), None),
    (events.StepDone(1, 0.5, 0, 1 / 320, 2.3026, NAN, 0.001, 32, False), None),
    (
        events.StepDone(80, 60.0, 2, 0.25, 0.51234, 0.5, 0.0123456, 32, False),
        "r8 epoch 3/10 step 80/320  loss 0.5123  lr 0.0123  left 2:00:00",
    ),
    (events.StepDone(81, 61.0, 2, 0.253, 0.5, 0.5, 0.01, 32, False), None),
    (
        events.EpochDone(96, 120.0, 2, 0.3, 0.75, 0.01, 1000, 0.5),
        "r8 epoch 3/10 step 96/320  loss 0.75  lr 0.01  2,000 samples/s  left 3:44",
    ),
    (
        events.BatchRefused(97, 121.0, 3, NAN, 0.01, 0.005, 1, (3, 17), "not finite"),
        "r8 step 97: loss nan refused, not finite, samples 3, 17; lr 0.01 -> 0.005",
    ),
    (
        events.BatchRefused(98, 121.0, 3, INF, 0.01, 0.001, 2, (), "not finite"),
        "r8 step 98: loss inf refused, not finite (2 in a row); lr 0.01 -> 0.001",
    ),
    (events.RolledBack(98, 121.0, 64, "backup"), "r8 step 98: model restored from backup of step 64 (-34 steps)"),
    (events.IncidentEnded(130, 125.0), "r8 step 130: recovered"),
    (events.LrRestored(130, 125.0), "r8 step 130: learning rate back on its schedule"),
    (events.BatchAbandoned(130, 125.0, 4, True), None),
    (events.Notice(130, 125.0, "a warning was shown already", is_warning=True), None),
    (events.Notice(130, 125.0, "no model is saved", is_warning=False), "r8 no model is saved"),
    (events.LrFound(0, 0.0, 0.0321, 50), "r8 step 0: learning rate 0.0321 found in 50 steps"),
    (events.CheckpointSaved(160, 130.0, "runs/ck_5.r8", "runs/model_5"), "r8 step 160: checkpoint ck_5.r8 saved"),
    (events.RunPaused(160, 130.0, "a look"), "r8 step 160: paused: a look"),
    (events.RunResumed(160, 130.0), "r8 step 160: goes on"),
    (events.RunStopped(160, 130.0, ""), "r8 step 160: asked to stop"),
    (
        events.MetricsLogged(160, 130.0, 155, {"accuracy": 0.98765, "loss": NAN}),
        "r8 step 160: measured at step 155: accuracy 0.9877  loss nan",
    ),
    (events.RunEnded(320, 3725.4, True), "r8 finished after 320 steps, 1:02:05"),
    (events.RunEnded(7, 0.0, False), "r8 stopped after 7 steps, 0.0s"),
]


def lines_of(happened):
    stream = io.StringIO()
    log = PlainLog(stream)
    for event in happened:
        log(event)
    return stream.getvalue().splitlines()


def test_script_gives_these_lines():
    """Each event has its exact line, or none."""
    assert lines_of(event for event, _ in SCRIPT) == [line for _, line in SCRIPT if line is not None]


@pytest.mark.parametrize("event", [event for event, _ in SCRIPT], ids=lambda event: type(event).__name__)
def test_every_event_can_come_first(event):
    """A log that missed the start of the run prints later events without an error."""
    assert len(lines_of([event])) <= 1


def test_time_budget_has_no_totals():
    """With a time budget the seconds are shown in place of the steps, and no totals; the time left may be unknown."""
    lines = lines_of(
        [
            events.RunStarted(0, 0.0, "", 10, 5, 2, None, 90.0, "shuffle"),
            events.EpochDone(2, 9.0, 0, 0.1, NAN, 0.01, 10, 0.0),
        ]
    )

    assert lines == [
        "r8 run: 10 samples in batches of 5, 90 s",
        "r8 epoch 1 step 2  loss nan  lr 0.01  nan samples/s  left 1:21",
    ]
    assert lines_of([events.EpochDone(2, 9.0, 0, 0.0, 1.0, 0.01, 10, 1.0)])[0].endswith("  10 samples/s  left ?")


def test_one_line_a_minute_in_between():
    """A step gets a line only when the last line is a minute old."""
    happened = [STARTED]
    happened += [events.StepDone(step, step * 7.0, 0, step / 320, 1.0, 1.0, 0.01, 32, False) for step in range(1, 31)]
    lines = lines_of(happened)

    assert [line.split("step ")[1].split("/")[0] for line in lines[1:]] == ["9", "18", "27"]


@pytest.mark.parametrize(
    "event",
    [
        events.RunStarted(0, 0.0, "\x1b[31mred\r\x07", 10, 5, 2, 4, None, "shuffle"),
        events.MetricsLogged(1, 1.0, 1, {"\x1b]0;title\x07": 1.0}),
        events.CheckpointSaved(1, 1.0, "runs/\x1b[2J/ck.r8", None),
    ],
    ids=lambda event: type(event).__name__,
)
def test_control_characters_do_not_reach_the_terminal(event):
    """Control characters in a run's own text are not printed."""
    (line,) = lines_of([event])

    assert not [char for char in line if unicodedata.category(char) == "Cc"]


def test_lines_go_to_the_current_stderr(capsys):
    """Lines go to sys.stderr at the time of printing, not to stdout, and without carriage returns or escapes."""
    clock = FakeClock()
    with make(use_curses=True, num_epochs=1, clock=clock) as r8:
        train(r8)
    out, err = capsys.readouterr()

    assert out == ""
    assert "\r" not in err
    assert "\x1b" not in err
    assert [line.split("  ")[0] for line in err.splitlines()] == [
        "r8 run: 12 samples in batches of 4, 3 steps",
        "r8 epoch 1/1 step 3/3",
        "r8 finished after 3 steps, 0.0s",
    ]


def test_lines_of_the_program_stay_whole(tmp_path):
    """What a program prints and the lines of the run keep their order, and their ends, in one file."""
    code = (
        "from learnit_r8.dashboard.plain import PlainLog\n"
        "log = PlainLog()\n"
        "for number in range(2000):\n"
        "    print(f'line {number} of what the program itself prints')\n"
        "    log.say(f'line {number}') if number % 100 == 99 else None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()

    assert len(lines) == 2020
    assert all(re.fullmatch(r"(r8 line \d+|line \d+ of what the program itself prints)", text) for text in lines)
    assert lines[100] == "r8 line 99"
