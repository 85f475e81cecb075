"""Loggers that are slow, hang or raise: what they cost the training, and what they say."""

import threading
import time
import warnings

import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.loggers import Logger, background
from tests.dashboard.state.told import start, steps


class Notebook(Logger):
    """Keeps what it is told to write."""

    def __init__(self, **options):
        super().__init__(**options)
        self.written, self.num_finished, self.threads = [], 0, set()

    def write(self, event):
        self.threads.add(threading.current_thread())
        self.written.append(event)

    def finish(self):
        self.num_finished += 1


class Stuck(Notebook):
    """Hangs in its first event until it is let go."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gate = threading.Event()

    def write(self, event):
        self.gate.wait(60)
        super().write(event)


class Broken(Notebook):
    def write(self, event):
        raise OSError("no route to host")


def run(logger, num_epochs=2, name="it"):
    """A short run; its longest step, in seconds, which includes the logger."""
    longest = 0.0
    with R8Scheduler(100, batch_size=10, num_epochs=num_epochs, listeners=[logger], name=name) as r8:
        for epoch in r8.epoch_iterator():
            for _, _ in r8.batch_iterator():
                began = time.perf_counter()
                r8.update_with_loss(1.0)
                longest = max(longest, time.perf_counter() - began)
            r8.log(accuracy=epoch / 2)
    return longest


def test_events_are_written_in_order_on_another_thread():
    """What is logged is written by one thread that is not the training's, in order, before the run is closed."""
    logger = Notebook()
    run(logger)
    kinds = [type(event) for event in logger.written]

    assert logger.threads
    assert threading.main_thread() not in logger.threads
    assert kinds[0] is events.RunStarted
    assert kinds[-1] is events.RunEnded
    assert kinds.count(events.MetricsLogged) == 2
    assert events.StepDone not in kinds
    assert sum(event.num_steps for event in logger.written if isinstance(event, events.StepsDone)) == 20
    assert (logger.num_finished, logger.num_lost) == (1, 0)


def test_logger_serves_a_second_run():
    """A logger that was closed with one run starts again with the next."""
    logger = Notebook()
    run(logger)
    run(logger)

    assert logger.num_finished == 2
    assert sum(isinstance(event, events.RunStarted) for event in logger.written) == 2
    assert len(logger.threads) == 2


def test_logger_that_hangs_costs_what_it_loses(monkeypatch):
    """A logger that hangs delays the end by a bounded time only; what it lost is counted and said."""
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.2)
    logger = Stuck(most_queued=3)
    with pytest.warns(RuntimeWarning, match=r"logger Stuck has lost \d+ of \d+ events, and was not done after 0.2 s"):
        run(logger, num_epochs=10)
    heard, lost = logger.num_events, logger.num_lost
    logger.gate.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "r8-Stuck"]:
        thread.join(10)

    assert lost == heard
    # The one in its hands came through in the end.
    assert logger.num_lost == heard - 1
    assert len(logger.written) == 1
    assert logger.num_finished == 1


def test_logger_that_raises_is_named_once():
    """An error is said once with its traceback, the logger goes on, and the run is what it was."""
    logger = Broken()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(logger)
        run(logger)
    texts = [str(one.message) for one in said]

    assert sum("could not write" in text for text in texts) == 1
    assert "no route to host" in next(text for text in texts if "could not write" in text)
    assert logger.num_lost == logger.num_events > 0
    assert any("has lost" in text for text in texts)


def test_only_the_first_rank_logs(monkeypatch):
    """With several ranks a logger is silent on all but the first, unless every rank is asked for."""
    monkeypatch.setenv("RANK", "1")
    silent, loud = Notebook(), Notebook(every_rank=True)
    run(silent)
    run(loud)

    assert silent.written == []
    assert loud.written


def test_closing_twice_and_before_a_run():
    """`close` may be called at any time, also by a run that never began, and from the thread of the logger."""
    logger = Notebook()
    logger.close()
    logger(start())
    logger(steps(1, 1.0))
    logger.close()
    logger.close()

    assert [type(event) for event in logger.written] == [events.RunStarted, events.StepsDone]


@pytest.mark.parametrize("most", [0, -1])
def test_queue_needs_room(most):
    """A queue without room is refused when the logger is made."""
    with pytest.raises(ValueError, match="most_queued must be at least 1"):
        Notebook(most_queued=most)
